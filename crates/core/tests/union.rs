//! The engine alone, on temporary directories: no mount, no FUSE. Root uses `trusted.*`, others `user.*` attributes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use plyfs_core::{Caller, Data, DirEntry, DirSink, Errno, NodeId, Overlay, SetAttr, Settings};
use plyfs_format::StackSpec;
use tempfile::TempDir;

struct Stack {
    dir: TempDir,
    lowers: usize,
}

impl Stack {
    fn new(lowers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..lowers {
            fs::create_dir(dir.path().join(format!("l{number}"))).unwrap();
        }
        fs::create_dir(dir.path().join("u")).unwrap();
        fs::create_dir(dir.path().join("w")).unwrap();
        Self { dir, lowers }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, content: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn open(&self) -> Overlay {
        let root = self.dir.path().display();
        let lowers: Vec<String> = (0..self.lowers).map(|number| format!("{root}/l{number}")).collect();
        let text =
            format!("lowerdir={},upperdir={root}/u,workdir={root}/w,redirect_dir=on", lowers.join(":"));
        let spec = StackSpec::parse(&[text]).unwrap().spec;
        Overlay::assemble(&spec, &Settings::default()).unwrap()
    }
}

fn me() -> Caller {
    let own = fs::metadata("/proc/self").unwrap();
    Caller { uid: own.uid(), gid: own.gid(), pid: 0, umask: 0o022 }
}

fn walk(overlay: &Overlay, path: &str) -> Result<NodeId, Errno> {
    let mut node = NodeId::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        node = overlay.lookup(node, name.as_bytes())?.ok_or(Errno::NOENT)?.node;
    }
    Ok(node)
}

fn read(overlay: &Overlay, path: &str) -> String {
    let node = walk(overlay, path).unwrap();
    let opened = overlay.open(&me(), node, 0, false).unwrap();
    let mut buf = vec![0; 1 << 16];
    let count = overlay.read(opened.handle, 0, &mut buf).unwrap();
    overlay.release(opened.handle);
    String::from_utf8(buf[..count].to_vec()).unwrap()
}

fn write(overlay: &Overlay, path: &str, offset: u64, content: &str) {
    let node = walk(overlay, path).unwrap();
    let opened = overlay.open(&me(), node, 1, false).unwrap();
    assert_eq!(overlay.write(opened.handle, offset, content.as_bytes(), None).unwrap(), content.len());
    overlay.release(opened.handle);
}

#[derive(Default)]
struct Names {
    names: Vec<String>,
    cookies: Vec<u64>,
    room: usize,
}

impl DirSink for Names {
    fn has_room(&self, _: usize) -> bool {
        self.names.len() < self.room
    }

    fn push(&mut self, entry: &DirEntry<'_>) {
        self.names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        self.cookies.push(entry.cookie);
        if let Some(found) = entry.entry {
            assert_eq!(found.attr.ino, entry.ino, "d_ino equals st_ino of {}", self.names.last().unwrap());
        }
    }
}

fn list(overlay: &Overlay, path: &str) -> Vec<String> {
    let mut names = Names { room: usize::MAX, ..Names::default() };
    overlay.read_dir(walk(overlay, path).unwrap(), 0, true, &mut names).unwrap();
    names.names.retain(|name| name != "." && name != "..");
    names.names.sort();
    names.names
}

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[test]
fn the_topmost_layer_with_a_name_wins_and_directories_merge() {
    let stack = Stack::new(2);
    stack
        .file("l0/a", "top")
        .file("l1/a", "bottom")
        .file("l1/b", "b")
        .file("l0/d/x", "x")
        .file("l1/d/y", "y");
    let overlay = stack.open();
    assert_eq!(read(&overlay, "a"), "top");
    assert_eq!(read(&overlay, "b"), "b");
    assert_eq!(list(&overlay, ""), ["a", "b", "d"]);
    assert_eq!(list(&overlay, "d"), ["x", "y"]);
    assert_eq!(overlay.lookup(NodeId::ROOT, b"none").unwrap(), None);
}

#[test]
fn the_first_write_copies_up_and_the_lower_stays() {
    let stack = Stack::new(1);
    stack.file("l0/d/f", "lower");
    let overlay = stack.open();
    let before = overlay.getattr(walk(&overlay, "d/f").unwrap(), None).unwrap();
    write(&overlay, "d/f", 0, "UPPER");
    let after = overlay.getattr(walk(&overlay, "d/f").unwrap(), None).unwrap();
    assert_eq!(before.ino, after.ino, "the inode number survives copy-up");
    assert_eq!(read(&overlay, "d/f"), "UPPER");
    assert_eq!(fs::read_to_string(stack.path("l0/d/f")).unwrap(), "lower");
    assert_eq!(fs::read_to_string(stack.path("u/d/f")).unwrap(), "UPPER");
    drop(overlay);
    let overlay = stack.open();
    let again = overlay.getattr(walk(&overlay, "d/f").unwrap(), None).unwrap();
    assert_eq!(again.ino, before.ino, "the inode number survives a remount");
}

#[test]
fn a_descriptor_opened_on_the_lower_sees_what_is_written_later() {
    let stack = Stack::new(1);
    stack.file("l0/f", "old");
    let overlay = stack.open();
    let node = walk(&overlay, "f").unwrap();
    let early = overlay.open(&me(), node, 0, false).unwrap();
    assert!(matches!(early.data, Data::LowerOfWritable), "a lower file is never shared under an upper");
    write(&overlay, "f", 0, "new");
    let mut buf = [0; 16];
    let count = overlay.read(early.handle, 0, &mut buf).unwrap();
    assert_eq!(&buf[..count], b"new");
    assert_eq!(fs::read_to_string(stack.path("l0/f")).unwrap(), "old");
}

#[test]
fn deletion_leaves_a_whiteout_and_copies_nothing() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x").file("l0/d/g", "y");
    let overlay = stack.open();
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
    assert!(is_whiteout(&stack.path("u/f")));
    assert_eq!(overlay.lookup(NodeId::ROOT, b"f").unwrap(), None);
    let dir = walk(&overlay, "d").unwrap();
    assert_eq!(overlay.rmdir(NodeId::ROOT, b"d"), Err(Errno::NOTEMPTY));
    overlay.unlink(dir, b"g").unwrap();
    overlay.rmdir(NodeId::ROOT, b"d").unwrap();
    assert!(is_whiteout(&stack.path("u/d")));
    assert!(list(&overlay, "").is_empty());
    assert!(
        fs::read_dir(stack.path("w/work")).unwrap().count() <= 1,
        "work holds no more than the shared whiteout"
    );
}

#[test]
fn a_directory_made_in_the_place_of_a_deleted_one_is_opaque() {
    let stack = Stack::new(1);
    stack.file("l0/d/old", "x");
    let overlay = stack.open();
    let dir = walk(&overlay, "d").unwrap();
    overlay.unlink(dir, b"old").unwrap();
    overlay.rmdir(NodeId::ROOT, b"d").unwrap();
    overlay.mkdir(&me(), NodeId::ROOT, b"d", 0o755).unwrap();
    assert!(list(&overlay, "d").is_empty());
    drop(overlay);
    assert!(list(&stack.open(), "d").is_empty());
}

#[test]
fn a_file_created_over_a_whiteout_takes_its_place() {
    let stack = Stack::new(1);
    stack.file("l0/f", "old");
    let overlay = stack.open();
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
    let (entry, opened) = overlay.create(&me(), NodeId::ROOT, b"f", 0o666, 2).unwrap();
    overlay.write(opened.handle, 0, b"new", None).unwrap();
    assert_eq!(entry.attr.mode & 0o7777, 0o644, "the umask is applied once");
    assert_eq!(read(&overlay, "f"), "new");
    assert_eq!(list(&overlay, ""), ["f"]);
}

#[test]
fn a_lower_directory_is_renamed_without_copying_its_content() {
    let stack = Stack::new(2);
    stack.file("l0/d/x", "x").file("l1/d/y", "y");
    let overlay = stack.open();
    overlay.mkdir(&me(), NodeId::ROOT, b"p", 0o755).unwrap();
    let target = walk(&overlay, "p").unwrap();
    overlay.rename(NodeId::ROOT, b"d", target, b"moved", 0).unwrap();
    assert_eq!(list(&overlay, "p/moved"), ["x", "y"]);
    assert_eq!(fs::read_dir(stack.path("u/p/moved")).unwrap().count(), 0);
    drop(overlay);
    let overlay = stack.open();
    assert_eq!(list(&overlay, ""), ["p"]);
    assert_eq!(read(&overlay, "p/moved/y"), "y");
}

#[test]
fn an_unlinked_file_stays_usable_for_those_who_have_it_open() {
    let stack = Stack::new(1);
    stack.file("l0/f", "lower");
    let overlay = stack.open();
    let node = walk(&overlay, "f").unwrap();
    let opened = overlay.open(&me(), node, 2, false).unwrap();
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
    overlay.write(opened.handle, 0, b"alive", None).unwrap();
    let set = SetAttr { size: Some(3), mode: Some(0o600), ..SetAttr::default() };
    let attr = overlay.setattr(&me(), node, Some(opened.handle), &set).unwrap();
    assert_eq!((attr.size, attr.mode & 0o777, attr.nlink), (3, 0o600, 0));
}

#[test]
fn a_listing_continues_from_its_cookie_while_names_come_and_go() {
    let stack = Stack::new(2);
    for number in 0..400 {
        stack.file(&format!("l{}/d/f{number:03}", number % 2), "");
    }
    let overlay = stack.open();
    let dir = walk(&overlay, "d").unwrap();
    let mut first = Names { room: 100, ..Names::default() };
    overlay.read_dir(dir, 0, true, &mut first).unwrap();
    let gone: Vec<&String> = first.names.iter().filter(|name| name.starts_with('f')).take(50).collect();
    for name in gone {
        overlay.unlink(dir, name.as_bytes()).unwrap();
    }
    overlay.mkdir(&me(), dir, b"late", 0o755).unwrap();
    let mut rest = Names { room: usize::MAX, ..Names::default() };
    overlay.read_dir(dir, *first.cookies.last().unwrap(), true, &mut rest).unwrap();
    let mut all: Vec<&String> =
        first.names.iter().chain(&rest.names).filter(|name| name.starts_with('f')).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 400, "every name that was there throughout came exactly once");
}

#[test]
fn hard_links_in_upper_share_one_node() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open();
    let node = walk(&overlay, "f").unwrap();
    let linked = overlay.link(node, NodeId::ROOT, b"g").unwrap();
    assert_eq!(linked.node, node);
    assert_eq!(linked.attr.nlink, 2);
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
    assert_eq!(overlay.getattr(node, None).unwrap().nlink, 1);
    drop(overlay);
    let overlay = stack.open();
    assert_eq!(read(&overlay, "g"), "x");
    assert_eq!(overlay.lookup(NodeId::ROOT, b"f").unwrap(), None);
}

#[test]
fn forgetting_everything_leaves_only_the_root() {
    let stack = Stack::new(1);
    for number in 0..50 {
        stack.file(&format!("l0/d{number}/f"), "");
    }
    let overlay = stack.open();
    let mut counts = std::collections::BTreeMap::<u64, u64>::new();
    for number in 0..50 {
        let dir = overlay.lookup(NodeId::ROOT, format!("d{number}").as_bytes()).unwrap().unwrap();
        let file = overlay.lookup(dir.node, b"f").unwrap().unwrap();
        *counts.entry(dir.node.0).or_default() += 1;
        *counts.entry(file.node.0).or_default() += 1;
    }
    assert_eq!(overlay.remembered(), 101);
    for (node, count) in counts {
        overlay.forget(NodeId(node), count);
    }
    assert_eq!(overlay.remembered(), 1);
}

#[test]
fn oci_whiteouts_stop_the_merging_below_and_are_never_shown() {
    let stack = Stack::new(3);
    stack
        .file("l2/d/deep", "x")
        .file("l1/.wh.d", "")
        .file("l0/d/top", "y")
        .file("l2/f", "z")
        .file("l1/.wh.f", "");
    let overlay = stack.open();
    assert_eq!(list(&overlay, ""), ["d"]);
    assert_eq!(list(&overlay, "d"), ["top"]);
    assert_eq!(overlay.lookup(NodeId::ROOT, b"f").unwrap(), None);
    assert_eq!(overlay.lookup(NodeId::ROOT, b".wh.f").unwrap(), None);
}

#[test]
fn deep_stacks_answer_like_shallow_ones() {
    let stack = Stack::new(12);
    for number in 0..12 {
        stack.file(&format!("l{number}/d/f{number}"), "x");
    }
    stack.file("l11/hidden/x", "");
    stack.file("l5/.wh.hidden", "");
    let overlay = stack.open();
    assert_eq!(list(&overlay, "d").len(), 12);
    assert_eq!(read(&overlay, "d/f11"), "x");
    assert_eq!(overlay.lookup(NodeId::ROOT, b"hidden").unwrap(), None);
    let dir = walk(&overlay, "d").unwrap();
    overlay.unlink(dir, b"f11").unwrap();
    assert_eq!(overlay.lookup(dir, b"f11").unwrap(), None);
    let (_, opened) = overlay.create(&me(), dir, b"f11", 0o644, 2).unwrap();
    overlay.release(opened.handle);
    assert_eq!(list(&overlay, "d").len(), 12);
}

#[test]
fn a_stack_without_upper_refuses_every_change() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let text = format!("lowerdir={}", stack.path("l0").display());
    let overlay = Overlay::assemble(&StackSpec::parse(&[text]).unwrap().spec, &Settings::default()).unwrap();
    let node = walk(&overlay, "f").unwrap();
    assert!(matches!(overlay.open(&me(), node, 0, false).unwrap().data, Data::Shareable(_)));
    assert_eq!(overlay.open(&me(), node, 1, false).unwrap_err(), Errno::ROFS);
    assert_eq!(overlay.unlink(NodeId::ROOT, b"f").unwrap_err(), Errno::ROFS);
    assert_eq!(fs::metadata(stack.path("l0/f")).unwrap().permissions().mode() & 0o777, 0o644);
}
