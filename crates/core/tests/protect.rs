//! Immutable and append-only files: kept as the kernel keeps them, and refused what the kernel refuses.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{Stack, attr, kernel_can_be_asked, list, me, walk, write, xattr};
use plyfs_core::{Errno, NodeId, Overlay, SetAttr, TimeSet};
use plyfs_testkit::need::{self, Need};

const PROTATTR: &str = "trusted.overlay.protattr";
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;
const NOATIME: u32 = 0x80;

fn chattr(path: &Path, change: &str) {
    assert!(Command::new("chattr").arg(change).arg(path).status().unwrap().success(), "chattr {change}");
}

/// Whether a layer's file system has these flags; says so if not.
fn flags_work(stack: &Stack) -> bool {
    if !need::met(&[Need::Root, Need::Tool("chattr"), Need::Tool("lsattr")]) {
        return false;
    }
    let file = stack.path("l0/probe");
    fs::write(&file, "").unwrap();
    let works = Command::new("chattr").arg("+i").arg(&file).status().unwrap().success();
    if works {
        chattr(&file, "-i");
    } else {
        eprintln!("skipped: the file system of temporary files has no inode flags");
    }
    fs::remove_file(&file).unwrap();
    works
}

fn add_flag(overlay: &Overlay, node: NodeId, flag: u32) {
    let flags = overlay.inode_flags(node).unwrap();
    overlay.set_inode_flags(node, flags | flag).unwrap();
}

#[test]
fn an_immutable_file_refuses_every_change_and_its_real_file_stays_changeable() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    if !flags_work(&stack) {
        return;
    }
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    add_flag(&overlay, node, IMMUTABLE);
    assert_eq!(xattr(&stack.path("u/f"), PROTATTR).as_deref(), Some(&b"i"[..]));
    fs::write(stack.path("u/f"), "x").unwrap();
    refuses_all(&overlay, node);
    drop(overlay);
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    refuses_all(&overlay, node);
    let flags = overlay.inode_flags(node).unwrap();
    assert_eq!(flags & IMMUTABLE, IMMUTABLE);
    overlay.set_inode_flags(node, flags & !IMMUTABLE).unwrap();
    assert_eq!(xattr(&stack.path("u/f"), PROTATTR), None);
    write(&overlay, "f", 0, "y");
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
}

fn refuses_all(overlay: &Overlay, node: NodeId) {
    let chmod = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(overlay.open(&me(), node, 1, false).unwrap_err(), Errno::PERM);
    assert_eq!(overlay.setattr(&me(), node, None, &chmod).unwrap_err(), Errno::PERM);
    assert_eq!(overlay.set_xattr(node, b"user.a", b"", 0, false), Err(Errno::PERM));
    assert_eq!(overlay.link(node, NodeId::ROOT, b"g").unwrap_err(), Errno::PERM);
    assert_eq!(overlay.unlink(NodeId::ROOT, b"f"), Err(Errno::PERM));
    assert_eq!(overlay.rename(NodeId::ROOT, b"f", NodeId::ROOT, b"g", 0), Err(Errno::PERM));
    assert!(overlay.open(&me(), node, 0, false).is_ok());
}

#[test]
fn an_append_only_file_can_be_appended_to_and_touched() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    if !flags_work(&stack) {
        return;
    }
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    add_flag(&overlay, node, APPEND);
    assert_eq!(xattr(&stack.path("u/f"), PROTATTR).as_deref(), Some(&b"a"[..]));
    assert_eq!(overlay.open(&me(), node, 1, false).unwrap_err(), Errno::PERM);
    assert_eq!(overlay.open(&me(), node, 0o3001, false).unwrap_err(), Errno::PERM);
    let opened = overlay.open(&me(), node, 0o2001, false).unwrap();
    overlay.write(opened.handle, 1, b"y", None).unwrap();
    overlay.release(opened.handle);
    let touch = SetAttr { mtime: Some(TimeSet::Now), ..SetAttr::default() };
    assert_eq!(overlay.setattr(&me(), node, None, &touch).unwrap().size, 2);
    let truncate = SetAttr { size: Some(0), ..SetAttr::default() };
    assert_eq!(overlay.setattr(&me(), node, None, &truncate).unwrap_err(), Errno::PERM);
}

#[test]
fn a_protected_lower_file_is_neither_written_nor_deleted_nor_renamed() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x").file("l0/d/g", "");
    if !flags_work(&stack) {
        return;
    }
    for path in ["l0/f", "l0/d"] {
        chattr(&stack.path(path), "+i");
    }
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    refuses_all(&overlay, node);
    let dir = walk(&overlay, "d").unwrap();
    assert_eq!(overlay.mkdir(&me(), dir, b"new", 0o755).unwrap_err(), Errno::PERM);
    assert_eq!(overlay.unlink(dir, b"g"), Err(Errno::PERM));
    assert_eq!(overlay.inode_flags(node).unwrap() & IMMUTABLE, IMMUTABLE);
    assert_eq!(list(&overlay, "d"), ["g"]);
    let flags = overlay.inode_flags(node).unwrap();
    overlay.set_inode_flags(node, flags & !IMMUTABLE).unwrap();
    write(&overlay, "f", 0, "y");
    drop(overlay);
    for path in ["l0/f", "l0/d"] {
        chattr(&stack.path(path), "-i");
    }
    assert_eq!(fs::read_to_string(stack.path("l0/f")).unwrap(), "x");
}

/// What `lsattr` lists of the entries of a directory.
fn listed(dir: &Path) -> Vec<(String, String)> {
    let output = Command::new("lsattr").arg(dir).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let entry = |line: &str| {
        let (flags, path) = line.split_once(' ').unwrap();
        let letters = flags.chars().filter(|letter| "SADdia".contains(*letter)).collect();
        (Path::new(path).file_name().unwrap().to_str().unwrap().to_owned(), letters)
    };
    let mut all: Vec<_> = text.lines().map(entry).collect();
    all.sort();
    all
}

#[test]
fn files_and_directories_are_copied_up_with_the_flags_that_the_kernel_copies() {
    if !kernel_can_be_asked() {
        return;
    }
    for options in ["", "metacopy=on"] {
        let copied = |change: &dyn Fn(&Stack)| {
            let stack = Stack::new(1);
            stack.file("l0/data", "x").file("l0/empty", "").file("l0/metadata", "x");
            if !flags_work(&stack) {
                return None;
            }
            for (dir, flags) in [("S", "+S"), ("A", "+A"), ("D", "+D"), ("d", "+d"), ("all", "+SADd")] {
                fs::create_dir(stack.path("l0").join(dir)).unwrap();
                chattr(&stack.path("l0").join(dir), flags);
            }
            for file in ["data", "empty", "metadata"] {
                chattr(&stack.path("l0").join(file), "+SAd");
            }
            change(&stack);
            let all = listed(&stack.path("u"));
            assert_eq!(all.len(), 8, "{all:?}");
            Some(all)
        };
        let mode = fs::Permissions::from_mode(0o700);
        let by_kernel = copied(&|stack| {
            let mounted = stack.kernel(options);
            fs::write(stack.path("m/data"), "y").unwrap();
            for (name, _) in listed(&stack.path("l0")) {
                fs::set_permissions(stack.path("m").join(name), mode.clone()).unwrap();
            }
            mounted.unmount().unwrap();
        });
        let by_plyfs = copied(&|stack| {
            let overlay = stack.open(options);
            write(&overlay, "data", 0, "y");
            for (name, _) in listed(&stack.path("l0")) {
                let set = SetAttr { mode: Some(0o700), ..SetAttr::default() };
                overlay.setattr(&me(), walk(&overlay, &name).unwrap(), None, &set).unwrap();
            }
        });
        assert_eq!(by_plyfs, by_kernel, "{options}");
    }
}

#[test]
fn harmless_flags_are_copied_up() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    if !flags_work(&stack) {
        return;
    }
    chattr(&stack.path("l0/f"), "+A");
    let overlay = stack.open("");
    write(&overlay, "f", 0, "y");
    let node = walk(&overlay, "f").unwrap();
    assert_eq!(overlay.inode_flags(node).unwrap() & NOATIME, NOATIME);
    drop(overlay);
    let listed = Command::new("lsattr").arg(stack.path("u/f")).output().unwrap();
    let flags = String::from_utf8(listed.stdout).unwrap();
    assert!(flags.split(' ').next().unwrap().contains('A'), "{flags}");
}

#[test]
fn the_kernel_and_the_engine_read_each_others_protection() {
    let stack = Stack::new(1);
    stack.file("l0/ours", "x").file("l0/kernels", "x");
    if !kernel_can_be_asked() || !flags_work(&stack) {
        return;
    }
    let overlay = stack.open("");
    add_flag(&overlay, walk(&overlay, "ours").unwrap(), IMMUTABLE);
    drop(overlay);
    let mounted = stack.kernel("");
    assert!(fs::write(mounted.path().join("ours"), "y").is_err());
    chattr(&mounted.path().join("ours"), "-i");
    fs::write(mounted.path().join("ours"), "y").unwrap();
    chattr(&mounted.path().join("kernels"), "+a");
    mounted.unmount().unwrap();
    let overlay = stack.open("");
    write(&overlay, "ours", 0, "z");
    let node = walk(&overlay, "kernels").unwrap();
    assert_eq!(overlay.inode_flags(node).unwrap() & APPEND, APPEND);
    assert_eq!(overlay.open(&me(), node, 1, false).unwrap_err(), Errno::PERM);
    assert_eq!(attr(&overlay, "kernels").size, 1);
}
