//! Deletions as `.wh.` files, where no whiteout device and no attribute can be made.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::{Stack, list, me, read, walk, write};
use plyfs_core::{Errno, NodeId, Overlay};
use plyfs_testkit::need::{self, Need};

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn make(overlay: &Overlay, parent: NodeId, name: &str) {
    let (_, opened) = overlay.create(&me(), parent, name.as_bytes(), 0o644, 2).unwrap();
    overlay.release(opened.handle);
}

/// Deletes, replaces and renames in `d` and `f`, and says what is left.
fn exercise(overlay: &Overlay) {
    write(overlay, "copied", 0, "X");
    overlay.unlink(NodeId::ROOT, b"copied").unwrap();
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
    assert_eq!(overlay.lookup(NodeId::ROOT, b"f").unwrap(), None);
    let dir = walk(overlay, "d").unwrap();
    overlay.unlink(dir, b"x").unwrap();
    assert_eq!(overlay.rmdir(NodeId::ROOT, b"d"), Err(Errno::NOTEMPTY));
    overlay.unlink(dir, b"y").unwrap();
    overlay.rmdir(NodeId::ROOT, b"d").unwrap();
    overlay.mkdir(&me(), NodeId::ROOT, b"d", 0o755).unwrap();
    assert!(list(overlay, "d").is_empty(), "a new directory shows nothing of a deleted one");
    overlay.rename(NodeId::ROOT, b"moved", NodeId::ROOT, b"f", 0).unwrap();
    make(overlay, NodeId::ROOT, "moved");
    overlay.unlink(NodeId::ROOT, b"moved").unwrap();
    assert_eq!(list(overlay, ""), ["d", "f"]);
}

fn lay_out(stack: &Stack) {
    stack
        .file("l0/f", "f")
        .file("l0/copied", "c")
        .file("l0/moved", "m")
        .file("l0/d/x", "x")
        .file("l1/d/y", "y");
}

#[test]
fn what_was_deleted_stays_deleted_after_a_remount() {
    let stack = Stack::new(2);
    lay_out(&stack);
    let overlay = stack.open_named();
    exercise(&overlay);
    drop(overlay);
    assert_eq!(names(&stack.path("u")), [".wh.copied", ".wh.d", ".wh.f", ".wh.moved", "d", "f"]);
    let overlay = stack.open_named();
    assert_eq!(list(&overlay, ""), ["d", "f"]);
    assert!(list(&overlay, "d").is_empty());
    assert_eq!(read(&overlay, "f"), "m");
    drop(overlay);
    let overlay = stack.open("");
    assert_eq!(list(&overlay, ""), ["d", "f"]);
}

#[test]
fn a_name_too_long_for_a_mark_is_refused_and_stays() {
    let stack = Stack::new(1);
    let name = "n".repeat(252);
    stack.file(&format!("l0/{name}"), "x");
    let overlay = stack.open_named();
    assert_eq!(overlay.unlink(NodeId::ROOT, name.as_bytes()), Err(Errno::NAMETOOLONG));
    assert_eq!(list(&overlay, ""), [name]);
}

#[test]
fn a_directory_that_holds_only_marks_can_be_removed_and_replaced() {
    let stack = Stack::new(1);
    stack.file("l0/d/x", "x").file("l0/e/y", "y");
    let overlay = stack.open_named();
    for (dir, name) in [("d", b"x"), ("e", b"y")] {
        overlay.unlink(walk(&overlay, dir).unwrap(), name).unwrap();
    }
    overlay.mkdir(&me(), NodeId::ROOT, b"new", 0o755).unwrap();
    overlay.rename(NodeId::ROOT, b"new", NodeId::ROOT, b"e", 0).unwrap();
    overlay.rmdir(NodeId::ROOT, b"d").unwrap();
    drop(overlay);
    let overlay = stack.open_named();
    assert_eq!(list(&overlay, ""), ["e"]);
    assert!(list(&overlay, "e").is_empty());
}

/// ramfs has neither attributes nor whiteouts by rename.
#[test]
fn an_upper_without_attributes_serves_for_all_but_redirects() {
    if !need::met(&[Need::Root, Need::Filesystem("ramfs")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::ramfs(dir.path());
    let stack = Stack::within(tempfile::tempdir_in(dir.path()).unwrap(), 2);
    lay_out(&stack);
    let overlay = stack.open("redirect_dir=on");
    assert_eq!(overlay.rename(NodeId::ROOT, b"d", NodeId::ROOT, b"e", 0), Err(Errno::XDEV));
    exercise(&overlay);
    assert_eq!(overlay.get_xattr(walk(&overlay, "f").unwrap(), b"user.a"), Err(Errno::NODATA));
    drop(overlay);
    assert_eq!(names(&stack.path("u/d")), [".wh..wh..opq"]);
    let overlay = stack.open("");
    assert!(list(&overlay, "d").is_empty());
    drop(overlay);
    drop(stack);
    drop(mounted);
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    fn ramfs(path: &Path) -> Self {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", path, "ramfs", flags, None).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
