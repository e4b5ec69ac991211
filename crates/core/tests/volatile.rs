//! `volatile`: nothing is synced, and an upper that may be inconsistent is not mounted again by mistake.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Stack, kernel_can_be_asked, write};
use plyfs_core::AssembleError;

#[test]
fn a_volatile_mount_leaves_a_mark_that_stops_the_next_mount() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open("volatile");
    let dirty = stack.path("w/work/incompat/volatile/dirty");
    assert!(fs::metadata(&dirty).unwrap().is_file());
    write(&overlay, "f", 0, "y");
    drop(overlay);
    for options in ["", "volatile"] {
        let refused = stack.try_open(options).unwrap_err();
        assert!(matches!(refused, AssembleError::Volatile { .. }), "{options}: {refused}");
    }
    fs::remove_dir_all(stack.path("w/work/incompat/volatile")).unwrap();
    stack.open("");
}

#[test]
fn a_mount_without_fsync_leaves_no_mark() {
    let stack = Stack::new(1);
    drop(stack.open("fsync=0"));
    assert!(!stack.path("w/work/incompat").exists());
    stack.open("");
}

#[test]
fn the_kernel_and_the_engine_honour_each_others_mark() {
    if !kernel_can_be_asked() {
        return;
    }
    let modes = |stack: &Stack| {
        ["incompat", "incompat/volatile", "incompat/volatile/dirty"]
            .map(|path| fs::metadata(stack.path("w/work").join(path)).unwrap().permissions().mode())
    };
    let ours = Stack::new(1);
    drop(ours.open("volatile"));
    assert!(ours.try_kernel("").is_err(), "the kernel mounted what a volatile mount of ours left");
    let kernels = Stack::new(1);
    kernels.kernel("volatile").unmount().unwrap();
    assert!(matches!(kernels.try_open(""), Err(AssembleError::Volatile { .. })));
    assert_eq!(modes(&ours), modes(&kernels));
}
