//! `index=on`: the names of a lower file stay together when it is copied up.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use common::{Stack, attr, kernel_can_be_asked, list, me, read, set_xattr, walk, write, xattr};
use plyfs_core::{AssembleError, NodeId, Overlay, SetAttr};
use plyfs_testkit::need::{self, Need};

const NLINK: &str = "trusted.overlay.nlink";
const ORIGIN: &str = "trusted.overlay.origin";

fn root_here() -> bool {
    need::met(&[Need::Root])
}

/// `a`, `b` and `d/c` are one file.
fn linked() -> Stack {
    let stack = Stack::new(1);
    stack.file("l0/a", "old").file("l0/d/x", "");
    fs::hard_link(stack.path("l0/a"), stack.path("l0/b")).unwrap();
    fs::hard_link(stack.path("l0/a"), stack.path("l0/d/c")).unwrap();
    stack
}

fn entries(stack: &Stack) -> Vec<String> {
    let names = fs::read_dir(stack.path("w/index")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Writes one name of the file and removes another, through the kernel or through the engine.
fn write_and_remove(stack: &Stack, by_kernel: bool, name: &str, text: &str, gone: &str) {
    if by_kernel {
        let mounted = stack.kernel("index=on");
        fs::write(mounted.path().join(name), text).unwrap();
        fs::remove_file(mounted.path().join(gone)).unwrap();
        mounted.unmount().unwrap();
    } else {
        let overlay = stack.open("index=on");
        write(&overlay, name, 0, text);
        overlay.unlink(NodeId::ROOT, gone.as_bytes()).unwrap();
    }
}

fn check(overlay: &Overlay, names: &[&str], content: &str, ino: u64) {
    for name in names {
        assert_eq!(read(overlay, name), content, "{name}");
        let shown = attr(overlay, name);
        assert_eq!((shown.ino, u64::from(shown.nlink)), (ino, names.len() as u64), "{name}");
    }
}

#[test]
fn all_names_of_a_lower_file_see_a_write_through_one_of_them() {
    if !root_here() {
        return;
    }
    let stack = linked();
    let overlay = stack.open("index=on");
    let ino = attr(&overlay, "a").ino;
    assert_eq!(walk(&overlay, "a").unwrap(), walk(&overlay, "d/c").unwrap());
    check(&overlay, &["a", "b", "d/c"], "old", ino);
    write(&overlay, "b", 0, "new");
    check(&overlay, &["a", "b", "d/c"], "new", ino);
    assert_eq!(list(&overlay, ""), ["a", "b", "d"]);
    drop(overlay);
    let overlay = stack.open("index=on");
    assert_eq!(walk(&overlay, "d/c").unwrap(), walk(&overlay, "b").unwrap());
    check(&overlay, &["a", "b", "d/c"], "new", ino);
    drop(overlay);
    assert_eq!(entries(&stack).len(), 1);
}

#[test]
fn the_link_count_follows_names_that_come_go_and_move() {
    if !root_here() {
        return;
    }
    let stack = linked();
    let overlay = stack.open("index=on");
    let ino = attr(&overlay, "a").ino;
    overlay.unlink(NodeId::ROOT, b"a").unwrap();
    check(&overlay, &["b", "d/c"], "old", ino);
    let dir = walk(&overlay, "d").unwrap();
    overlay.link(walk(&overlay, "b").unwrap(), dir, b"e").unwrap();
    check(&overlay, &["b", "d/c", "d/e"], "old", ino);
    overlay.rename(NodeId::ROOT, b"b", dir, b"moved", 0).unwrap();
    check(&overlay, &["d/c", "d/e", "d/moved"], "old", ino);
    drop(overlay);
    let overlay = stack.open("index=on");
    check(&overlay, &["d/c", "d/e", "d/moved"], "old", ino);
    let dir = walk(&overlay, "d").unwrap();
    overlay.rename(dir, b"x", dir, b"moved", 0).unwrap();
    check(&overlay, &["d/c", "d/e"], "old", ino);
    for name in [&b"c"[..], b"e"] {
        assert_eq!(entries(&stack).len(), 1);
        overlay.unlink(dir, name).unwrap();
    }
    assert!(entries(&stack).is_empty(), "the last name took the entry with it");
    assert_eq!(list(&overlay, "d"), ["moved"]);
}

#[test]
fn a_name_can_be_moved_out_of_a_directory_that_only_another_name_would_have_copied_up() {
    if !root_here() {
        return;
    }
    let stack = linked();
    let overlay = stack.open("index=on");
    let ino = attr(&overlay, "a").ino;
    let dir = walk(&overlay, "d").unwrap();
    // The copy is made under the name that was looked up first, which is not in `d`.
    overlay.rename(dir, b"c", NodeId::ROOT, b"moved", 0).unwrap();
    check(&overlay, &["a", "b", "moved"], "old", ino);
    assert_eq!(list(&overlay, "d"), ["x"]);
}

#[test]
fn names_that_only_the_index_leads_to_are_one_file() {
    if !root_here() {
        return;
    }
    let stack = linked();
    let overlay = stack.open("index=on");
    // The copy is made for the name that goes: none is left in upper but that in the index.
    overlay.unlink(NodeId::ROOT, b"a").unwrap();
    assert_eq!(walk(&overlay, "b").unwrap(), walk(&overlay, "d/c").unwrap());
    let ino = attr(&overlay, "b").ino;
    overlay.rename(walk(&overlay, "d").unwrap(), b"x", NodeId::ROOT, b"b", 0).unwrap();
    check(&overlay, &["d/c"], "old", ino);
}

#[test]
fn an_open_file_outlives_its_last_name() {
    if !root_here() {
        return;
    }
    let stack = linked();
    let overlay = stack.open("index=on");
    let node = walk(&overlay, "a").unwrap();
    let opened = overlay.open(&me(), node, 2, false).unwrap();
    for name in [&b"a"[..], b"b"] {
        overlay.unlink(NodeId::ROOT, name).unwrap();
    }
    overlay.unlink(walk(&overlay, "d").unwrap(), b"c").unwrap();
    overlay.write(opened.handle, 0, b"alive", None).unwrap();
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let shown = overlay.setattr(&me(), node, Some(opened.handle), &set).unwrap();
    assert_eq!((shown.size, shown.nlink, shown.mode & 0o777), (5, 0, 0o600));
}

#[test]
fn a_file_with_one_name_has_no_entry() {
    if !root_here() {
        return;
    }
    let stack = linked();
    stack.file("l0/single", "x");
    let overlay = stack.open("index=on");
    write(&overlay, "single", 0, "y");
    assert!(entries(&stack).is_empty());
}

#[test]
fn metadata_only_copies_share_one_entry_too() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = linked();
    let options = "index=on,metacopy=on,redirect_dir=on";
    let overlay = stack.open(options);
    let set = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    overlay.setattr(&me(), walk(&overlay, "b").unwrap(), None, &set).unwrap();
    assert_eq!(attr(&overlay, "d/c").mode, 0o100_640);
    drop(overlay);
    let overlay = stack.open(options);
    assert_eq!((attr(&overlay, "a").mode, read(&overlay, "a")), (0o100_640, "old".to_owned()));
    write(&overlay, "d/c", 0, "new");
    assert_eq!(read(&overlay, "b"), "new");
    drop(overlay);
    let mounted = stack.kernel(options);
    for name in ["a", "b", "d/c"] {
        assert_eq!(fs::read_to_string(mounted.path().join(name)).unwrap(), "new", "{name}");
    }
    mounted.unmount().unwrap();
}

#[test]
fn the_kernel_goes_on_where_the_engine_ended_and_the_reverse() {
    if !kernel_can_be_asked() {
        return;
    }
    for kernel_first in [true, false] {
        let stack = linked();
        write_and_remove(&stack, kernel_first, "a", "one", "b");
        let recorded = xattr(&stack.path("u/a"), NLINK);
        assert_eq!(recorded.as_deref(), Some(&b"U+0"[..]), "kernel first: {kernel_first}");
        let mounted = stack.kernel("index=on");
        let seen = fs::metadata(mounted.path().join("d/c")).unwrap();
        assert_eq!(seen.nlink(), 2);
        mounted.unmount().unwrap();
        let overlay = stack.open("index=on");
        check(&overlay, &["a", "d/c"], "one", seen.ino());
        drop(overlay);
        write_and_remove(&stack, !kernel_first, "d/c", "two", "a");
        let overlay = stack.open("index=on");
        check(&overlay, &["d/c"], "two", seen.ino());
        drop(overlay);
        let mounted = stack.kernel("index=on");
        assert_eq!(fs::read_to_string(mounted.path().join("d/c")).unwrap(), "two");
        assert_eq!(fs::metadata(mounted.path().join("d/c")).unwrap().nlink(), 1);
        mounted.unmount().unwrap();
    }
}

#[test]
fn the_links_of_a_copy_that_is_found_by_its_upper_name_are_those_of_the_lower_file() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = linked();
    let mounted = stack.kernel("index=on");
    fs::write(mounted.path().join("a"), "new").unwrap();
    mounted.unmount().unwrap();
    // As a crash leaves it between the name and the new count.
    set_xattr(&stack.path("u/a"), NLINK, b"L+0");
    let overlay = stack.open("index=on");
    assert_eq!(attr(&overlay, "a").nlink, 3);
    overlay.unlink(NodeId::ROOT, b"a").unwrap();
    assert_eq!((read(&overlay, "b"), attr(&overlay, "b").nlink), ("new".to_owned(), 2));
    drop(overlay);
    assert_eq!(read(&stack.open("index=on"), "d/c"), "new");
}

#[test]
fn an_upper_of_other_layers_is_stale_here_and_in_the_kernel() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = linked();
    drop(stack.open("index=on"));
    stack.kernel("index=on").unmount().unwrap();
    fs::rename(stack.path("l0"), stack.path("old")).unwrap();
    stack.file("l0/a", "other");
    let refused = stack.try_open("index=on").unwrap_err();
    assert!(matches!(refused, AssembleError::Stale { .. }), "{refused}");
    assert!(stack.try_kernel("index=on").is_err());
    stack.open("");
}

#[test]
fn a_work_directory_of_another_upper_is_stale() {
    if !root_here() {
        return;
    }
    let stack = linked();
    drop(stack.open("index=on"));
    fs::rename(stack.path("u"), stack.path("old")).unwrap();
    fs::create_dir(stack.path("u")).unwrap();
    assert!(matches!(stack.try_open("index=on"), Err(AssembleError::Stale { .. })));
}

#[test]
fn leftovers_of_the_index_are_removed_and_foreign_entries_stop_the_mount() {
    if !root_here() {
        return;
    }
    let stack = linked();
    let overlay = stack.open("index=on");
    write(&overlay, "a", 0, "new");
    drop(overlay);
    let entry = entries(&stack).remove(0);
    stack.file("w/index/#7", "");
    // An orphan: all its names are gone, and a crash kept it.
    fs::remove_file(stack.path("u/a")).unwrap();
    set_xattr(&stack.path("w/index").join(&entry), NLINK, b"U-1");
    drop(stack.open("index=on"));
    assert!(entries(&stack).is_empty());
    let overlay = stack.open("index=on");
    assert_eq!(read(&overlay, "b"), "old");
    write(&overlay, "b", 0, "new");
    drop(overlay);
    // A stale one: it is the copy of another file than its name says.
    set_xattr(&stack.path("w/index").join(entries(&stack).remove(0)), ORIGIN, b"");
    drop(stack.open("index=on"));
    assert!(entries(&stack).is_empty());
    stack.file("w/index/not-hexadecimal", "");
    assert!(stack.try_open("index=on").is_err());
    assert!(entries(&stack).len() == 1, "what is not understood stays");
}

#[test]
fn special_files_and_symlinks_keep_their_names_together() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    std::os::unix::fs::symlink("target", stack.path("l0/s")).unwrap();
    fs::hard_link(stack.path("l0/s"), stack.path("l0/t")).unwrap();
    let fifo = stack.path("l0/p");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    fs::hard_link(&fifo, stack.path("l0/q")).unwrap();
    let overlay = stack.open("index=on");
    let set = SetAttr { uid: Some(7), ..SetAttr::default() };
    for (changed, other) in [("s", "t"), ("p", "q")] {
        overlay.setattr(&me(), walk(&overlay, changed).unwrap(), None, &set).unwrap();
        let shown = attr(&overlay, other);
        assert_eq!((shown.uid, shown.nlink), (7, 2), "{other}");
    }
    drop(overlay);
    let overlay = stack.open("index=on");
    assert_eq!((attr(&overlay, "t").uid, attr(&overlay, "q").uid), (7, 7));
    assert!(fs::symlink_metadata(stack.path("u/p")).unwrap().file_type().is_fifo());
}
