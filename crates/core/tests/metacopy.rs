//! `metacopy=on`: changes of attributes copy no data, and the data is found wherever it lies.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Stack, attr, kernel_can_be_asked, me, read, set_xattr, walk, write, xattr};
use plyfs_core::{Errno, NodeId, Overlay, SetAttr, Time, TimeSet};
use plyfs_testkit::need::{self, Need};

const ON: &str = "redirect_dir=on,metacopy=on";
const METACOPY: &str = "trusted.overlay.metacopy";
const REDIRECT: &str = "trusted.overlay.redirect";

/// Large enough that its data cannot be mistaken for an attribute block.
fn content() -> String {
    "0123456789abcdef".repeat(2048)
}

fn root_here() -> bool {
    need::met(&[Need::Root])
}

fn chmod(overlay: &Overlay, path: &str, mode: u32) {
    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
    overlay.setattr(&me(), walk(overlay, path).unwrap(), None, &set).unwrap();
}

fn has_no_data(path: &Path) -> bool {
    fs::metadata(path).unwrap().blocks() <= 8 && xattr(path, METACOPY).is_some()
}

#[test]
fn changes_of_attributes_copy_no_data_and_a_write_does() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    for name in ["chmod", "chown", "utimes", "xattr"] {
        stack.file(&format!("l0/{name}"), &content());
    }
    let overlay = stack.open(ON);
    let node = |name| walk(&overlay, name).unwrap();
    let before = attr(&overlay, "chmod");
    chmod(&overlay, "chmod", 0o600);
    let set = SetAttr { uid: Some(7), ..SetAttr::default() };
    overlay.setattr(&me(), node("chown"), None, &set).unwrap();
    let set = SetAttr { mtime: Some(TimeSet::At(Time { sec: 5, nsec: 0 })), ..SetAttr::default() };
    overlay.setattr(&me(), node("utimes"), None, &set).unwrap();
    overlay.set_xattr(node("xattr"), b"user.a", b"1", 0, false).unwrap();
    for name in ["chmod", "chown", "utimes", "xattr"] {
        assert!(has_no_data(&stack.path("u").join(name)), "{name}");
        assert_eq!(read(&overlay, name), content(), "{name}");
    }
    let after = attr(&overlay, "chmod");
    assert_eq!((after.blocks, after.size, after.ino), (before.blocks, before.size, before.ino));
    write(&overlay, "chmod", 3, "X");
    assert_eq!(xattr(&stack.path("u/chmod"), METACOPY), None);
    let expected = content().replacen("0123", "012X", 1);
    assert_eq!(read(&overlay, "chmod"), expected);
    drop(overlay);
    let overlay = stack.open(ON);
    assert_eq!(read(&overlay, "chmod"), expected);
    assert_eq!(read(&overlay, "chown"), content());
    assert_eq!(attr(&overlay, "chmod").ino, before.ino);
}

#[test]
fn opening_with_truncation_copies_no_data() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/f", &content()).file("l0/g", &content());
    let overlay = stack.open(ON);
    chmod(&overlay, "f", 0o600);
    for name in ["f", "g"] {
        let opened = overlay.open(&me(), walk(&overlay, name).unwrap(), 0o1001, false).unwrap();
        overlay.release(opened.handle);
        assert_eq!(read(&overlay, name), "", "{name}");
        assert_eq!(xattr(&stack.path("u").join(name), METACOPY), None, "{name}");
    }
}

#[test]
fn a_capability_survives_both_steps_of_the_copy() {
    if !root_here() {
        return;
    }
    // Version 2, cap_net_raw permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let stack = Stack::new(1);
    stack.file("l0/f", &content());
    set_xattr(&stack.path("l0/f"), "security.capability", &capability);
    let overlay = stack.open(ON);
    let set = SetAttr { mtime: Some(TimeSet::Now), ..SetAttr::default() };
    overlay.setattr(&me(), walk(&overlay, "f").unwrap(), None, &set).unwrap();
    assert_eq!(xattr(&stack.path("u/f"), "security.capability").as_deref(), Some(&capability[..]));
    let opened = overlay.open(&me(), walk(&overlay, "f").unwrap(), 2, false).unwrap();
    assert_eq!(xattr(&stack.path("u/f"), "security.capability").as_deref(), Some(&capability[..]));
    overlay.release(opened.handle);
}

#[test]
fn renamed_and_linked_files_find_their_data_after_a_remount_here_and_in_the_kernel() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = Stack::new(2);
    stack.file("l1/d/f", &content()).file("l1/g", &content()).file("l1/h", &content()).file("l0/e/x", "");
    let overlay = stack.open(ON);
    let dir = |name| walk(&overlay, name).unwrap();
    overlay.rename(dir("d"), b"f", dir("d"), b"near", 0).unwrap();
    overlay.rename(NodeId::ROOT, b"g", dir("e"), b"far", 0).unwrap();
    chmod(&overlay, "h", 0o640);
    overlay.link(dir("h"), dir("e"), b"linked").unwrap();
    overlay.rename(NodeId::ROOT, b"d", dir("e"), b"moved", 0).unwrap();
    let all = ["e/moved/near", "e/far", "e/linked", "h"];
    for name in all {
        assert!(has_no_data(&stack.path("u").join(name)), "{name}");
        assert_eq!(read(&overlay, name), content(), "{name}");
    }
    assert_eq!(xattr(&stack.path("u/e/moved/near"), REDIRECT).as_deref(), Some(&b"f"[..]));
    assert_eq!(xattr(&stack.path("u/e/far"), REDIRECT).as_deref(), Some(&b"/g"[..]));
    drop(overlay);
    let mounted = stack.kernel(ON);
    for name in all {
        assert_eq!(fs::read_to_string(mounted.path().join(name)).unwrap(), content(), "{name}");
    }
    mounted.unmount().unwrap();
    let overlay = stack.open(ON);
    for name in all {
        assert_eq!(read(&overlay, name), content(), "{name}");
    }
    assert_eq!(walk(&overlay, "h").unwrap(), walk(&overlay, "e/linked").unwrap());
}

#[test]
fn what_the_kernel_wrote_is_read_and_completed() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/d/f", &content()).file("l0/g", &content());
    let mounted = stack.kernel(ON);
    let merged = mounted.path();
    fs::set_permissions(merged.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(merged.join("d/f"), merged.join("far")).unwrap();
    fs::rename(merged.join("g"), merged.join("near")).unwrap();
    mounted.unmount().unwrap();
    assert!(has_no_data(&stack.path("u/far")) && has_no_data(&stack.path("u/near")));
    let overlay = stack.open(ON);
    assert_eq!((read(&overlay, "far"), read(&overlay, "near")), (content(), content()));
    assert_eq!(attr(&overlay, "far").mode, 0o100_600);
    write(&overlay, "far", 0, "X");
    drop(overlay);
    let mounted = stack.kernel(ON);
    assert_eq!(fs::read_to_string(mounted.path().join("far")).unwrap(), content().replacen('0', "X", 1));
    mounted.unmount().unwrap();
}

/// Two stages of metadata-only copies, the upper of one stage being a lower of the next.
#[test]
fn metacopies_in_lower_layers_are_followed_down_to_the_data() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/d/f", &content());
    let overlay = stack.open(ON);
    overlay.rename(walk(&overlay, "d").unwrap(), b"f", NodeId::ROOT, b"g", 0).unwrap();
    drop(overlay);
    fs::rename(stack.path("u"), stack.path("middle")).unwrap();
    fs::create_dir(stack.path("u")).unwrap();
    fs::remove_dir_all(stack.path("w")).unwrap();
    fs::create_dir(stack.path("w")).unwrap();
    let layers = ["middle", "l0"];
    let overlay = stack.try_open_layers(&layers, ON).unwrap();
    assert_eq!(read(&overlay, "g"), content());
    assert!(attr(&overlay, "g").blocks >= 64, "blocks are those of the data");
    chmod(&overlay, "g", 0o600);
    overlay.rename(NodeId::ROOT, b"g", NodeId::ROOT, b"h", 0).unwrap();
    assert!(has_no_data(&stack.path("u/h")));
    assert_eq!(read(&overlay, "h"), content());
    drop(overlay);
    let overlay = stack.try_open_layers(&layers, ON).unwrap();
    assert_eq!(read(&overlay, "h"), content());
    write(&overlay, "h", 0, "X");
    assert_eq!(read(&overlay, "h"), content().replacen('0', "X", 1));
    drop(overlay);
    let refused = stack.try_open_layers(&layers, "").unwrap();
    assert_eq!(walk(&refused, "g"), Err(Errno::NOENT), "it was renamed");
    drop(refused);
    fs::remove_dir_all(stack.path("u")).unwrap();
    fs::create_dir(stack.path("u")).unwrap();
    let refused = stack.try_open_layers(&layers, "").unwrap();
    assert_eq!(walk(&refused, "g"), Err(Errno::PERM), "metacopy=off shows no file without its data");
}

#[test]
fn a_metacopy_is_refused_where_it_may_not_be_followed_or_has_no_data() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/f", &content()).file("l0/g", &content());
    let overlay = stack.open(ON);
    chmod(&overlay, "f", 0o600);
    chmod(&overlay, "g", 0o600);
    drop(overlay);
    let off = stack.open("");
    assert_eq!(walk(&off, "f"), Err(Errno::PERM));
    drop(off);
    fs::remove_file(stack.path("l0/f")).unwrap();
    set_xattr(&stack.path("u/g"), METACOPY, &[9, 4, 0, 0]);
    let on = stack.open(ON);
    assert_eq!(walk(&on, "f"), Err(Errno::IO), "its data is gone");
    assert_eq!(walk(&on, "g"), Err(Errno::IO), "a later version of the mark");
}
