//! Listing: every entry once, with its type, however many there are.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use common::{name, scratch};
use plyfs_sys::{DirLister, DirMut, Errno, FileKind};

fn names(lister: &mut DirLister) -> BTreeMap<Vec<u8>, (u64, Option<FileKind>)> {
    let mut found = BTreeMap::new();
    lister
        .for_each(|entry| {
            let before = found.insert(entry.name.to_vec(), (entry.ino, entry.dtype));
            assert!(before.is_none(), "{} came twice", entry.name.escape_ascii());
            ControlFlow::Continue(())
        })
        .expect("list");
    found
}

fn fill(dir: &DirMut, count: usize) -> BTreeSet<Vec<u8>> {
    (0..count)
        .map(|index| {
            // Long names, so that several buffers are needed.
            let text = format!("entry-{index:06}-{}", "x".repeat(100));
            dir.mknod(name(&text), libc::S_IFREG | 0o600, 0).expect("create");
            text.into_bytes()
        })
        .collect()
}

#[test]
fn ten_thousand_names_come_once_each_and_again_when_asked_again() {
    let (_temp, dir) = scratch();
    let expected = fill(&dir, 10_000);
    let mut lister = dir.list().expect("open");
    for round in 0..2 {
        let found = names(&mut lister);
        assert!(found.keys().eq(expected.iter()), "round {round}");
    }
    assert_eq!(lister.is_empty(), Ok(false));
}

#[test]
fn types_and_inode_numbers_are_those_of_stat() {
    let (_temp, dir) = scratch();
    dir.create_dir(name("d"), 0o700).expect("mkdir");
    dir.symlink(b"x", name("l")).expect("symlink");
    dir.mknod(name("p"), libc::S_IFIFO | 0o600, 0).expect("mkfifo");
    dir.mknod(name("f"), libc::S_IFREG | 0o600, 0).expect("mknod");
    dir.mknod(name("s"), libc::S_IFSOCK | 0o600, 0).expect("mknod");
    let found = names(&mut dir.list().expect("open"));
    assert_eq!(found.len(), 5, "neither . nor .. is listed");
    for (entry, (ino, dtype)) in found {
        let text = String::from_utf8(entry).expect("text");
        let stat = dir.stat_at(name(&text)).expect("stat");
        assert_eq!((ino, dtype), (stat.ino, Some(stat.kind())), "{text}");
    }
}

#[test]
fn a_visitor_may_stop_and_another_listing_may_run_inside_one() {
    let (_temp, dir) = scratch();
    let expected = fill(&dir, 50);
    let mut lister = dir.list().expect("open");
    let mut seen = 0;
    lister
        .for_each(|_| {
            assert_eq!(names(&mut dir.list().expect("open")).len(), expected.len());
            seen += 1;
            if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("list");
    assert_eq!(seen, 3);
    assert_eq!(names(&mut lister).len(), 50, "a later listing starts from the beginning");
}

#[test]
fn an_empty_and_a_removed_directory_are_told_apart() {
    let (_temp, dir) = scratch();
    dir.create_dir(name("d"), 0o700).expect("mkdir");
    let mut lister = dir.child_dir(name("d")).expect("open").list().expect("list");
    assert_eq!(lister.is_empty(), Ok(true));
    dir.rmdir(name("d")).expect("rmdir");
    assert_eq!(lister.is_empty(), Err(Errno::NOENT));
}
