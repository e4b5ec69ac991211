//! File handles: the same for the same inode, opened again as that inode, and stale when it is gone.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{name, root_or_skip, scratch};
use plyfs_sys::handle::open_by_handle;
use plyfs_sys::mount::{self, MountPropagationFlags, Namespaces};
use plyfs_sys::{Dir, Errno, File, OFlags};

#[test]
fn a_handle_names_the_inode_and_not_the_name() {
    let (_temp, dir) = scratch();
    let file = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    let Some(handle) = file.file_handle().expect("handle") else {
        eprintln!("skipped: this file system has no file handles");
        return;
    };
    assert!(!handle.bytes().is_empty());
    assert_eq!(dir.file_handle(name("f")).expect("handle").as_ref(), Some(&handle));
    dir.rename(name("f"), &dir, name("g"), plyfs_sys::RenameFlags::empty()).expect("rename");
    assert_eq!(dir.file_handle(name("g")).expect("handle").as_ref(), Some(&handle));
    assert_ne!(dir.own_file_handle().expect("handle").as_ref(), Some(&handle));
    dir.symlink(b"g", name("l")).expect("symlink");
    assert_ne!(dir.file_handle(name("l")).expect("handle").as_ref(), Some(&handle), "a link is not followed");
    assert_eq!(dir.file_handle(name("absent")), Err(Errno::NOENT));
}

#[test]
fn a_handle_opens_its_inode_until_that_is_gone() {
    if !root_or_skip("open by handle") {
        return;
    }
    let (_temp, dir) = scratch();
    let file = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    let Some(handle) = file.file_handle().expect("handle") else {
        eprintln!("skipped: this file system has no file handles");
        return;
    };
    let expected = file.stat().expect("stat");
    let mount = dir.reopen().expect("reopen");
    let fd = open_by_handle(mount.as_fd(), &handle, OFlags::PATH).expect("open");
    assert!(File::from_fd(fd).expect("file").stat().expect("stat").same_inode(&expected));
    drop(file);
    dir.unlink(name("f")).expect("unlink");
    assert_eq!(open_by_handle(mount.as_fd(), &handle, OFlags::PATH).map(drop), Err(Errno::STALE));
}

/// An ext4 image with a UUID of ours, mounted in a mount namespace of this thread's own; `None`, with the reason said, if
/// that cannot be had.
fn mounted_image(base: &Path, uuid: &str) -> Option<PathBuf> {
    let (image, at) = (base.join("image"), base.join("at"));
    std::fs::create_dir(&at).expect("mkdir");
    std::fs::File::create(&image).expect("create").set_len(4 << 20).expect("truncate");
    mount::unshare(Namespaces { mount: true, ..Namespaces::default() }).expect("unshare");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::set_propagation(Path::new("/"), private).expect("make private");
    let (image, target) = (image.display().to_string(), at.display().to_string());
    for words in [&["mkfs.ext4", "-q", "-U", uuid, &image][..], &["mount", "-o", "loop", &image, &target]] {
        match Command::new(words[0]).args(&words[1..]).output() {
            Ok(output) if output.status.success() => {}
            other => {
                eprintln!("skipped: {words:?}: {other:?}");
                return None;
            }
        }
    }
    Some(at)
}

#[test]
fn the_uuid_is_the_one_that_the_file_system_was_made_with() {
    if !root_or_skip("mount a file system with a known UUID") {
        return;
    }
    let work = || {
        let temp = tempfile::tempdir().expect("tempdir");
        let Some(at) = mounted_image(temp.path(), "00112233-4455-6677-8899-aabbccddeeff") else { return };
        let dir = Dir::open_root(&at).expect("open");
        let expected: [u8; 16] = std::array::from_fn(|index| index as u8 * 0x11);
        match dir.filesystem_uuid().expect("uuid") {
            None => eprintln!("skipped: this kernel has no FS_IOC_GETFSUUID"),
            told => assert_eq!(told, Some(expected)),
        }
        drop(dir);
        mount::unmount_detached(&at).expect("unmount");
    };
    std::thread::spawn(work).join().expect("the test's thread");
}

#[test]
fn a_file_system_without_a_uuid_has_none() {
    let proc = Dir::open_root("/proc".as_ref()).expect("open");
    assert_eq!(proc.filesystem_uuid(), Ok(None));
}
