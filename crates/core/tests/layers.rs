//! What a stack may be made of: whiteouts in attributes, very many layers, UUIDs, and trust beside `userxattr`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

mod common;

use std::fs;

use common::{Stack, attr, kernel_can_be_asked, list, read, set_xattr, walk, write, xattr};
use plyfs_core::{Errno, NodeId, Overlay, Settings};
use plyfs_format::origin::Parsed;
use plyfs_format::{Origin, StackSpec};
use plyfs_testkit::need::{self, Need};

#[test]
fn whiteouts_in_attributes_hide_as_in_the_kernel() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = Stack::new(2);
    for dir in ["marked", "unmarked"] {
        stack.file(&format!("l1/{dir}/f"), "below").file(&format!("l1/{dir}/kept"), "below");
        stack.file(&format!("l0/{dir}/f"), "").file(&format!("l0/{dir}/own"), "");
        set_xattr(&stack.path("l0").join(dir).join("f"), "trusted.overlay.whiteout", b"");
    }
    set_xattr(&stack.path("l0/marked"), "trusted.overlay.opaque", b"x");
    let mounted = stack.kernel("");
    let kernels = ["marked", "unmarked"].map(|dir| {
        let names = fs::read_dir(mounted.path().join(dir)).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    });
    mounted.unmount().unwrap();
    let overlay = stack.open("");
    let ours = ["marked", "unmarked"].map(|dir| list(&overlay, dir));
    assert_eq!(ours, kernels);
    assert_eq!(ours[0], ["kept", "own"]);
    assert_eq!(walk(&overlay, "marked/f"), Err(Errno::NOENT));
    overlay.rename(walk(&overlay, "marked").unwrap(), b"kept", NodeId::ROOT, b"moved", 0).unwrap();
    drop(overlay);
    assert_eq!(list(&stack.open(""), "marked"), ["own"]);
}

#[test]
fn more_layers_than_the_kernel_can_merge_are_one_tree() {
    const LAYERS: usize = 620;
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for number in 0..LAYERS {
        let layer = dir.path().join(format!("l{number}"));
        fs::create_dir_all(layer.join("d")).unwrap();
        fs::write(layer.join("d").join(format!("f{number}")), number.to_string()).unwrap();
        fs::write(layer.join("all"), number.to_string()).unwrap();
        text += &format!("lowerdir+={},", layer.display());
    }
    let overlay = Overlay::assemble(&StackSpec::parse(&[text]).unwrap().spec, &Settings::default()).unwrap();
    assert_eq!(list(&overlay, "d").len(), LAYERS);
    assert_eq!(read(&overlay, "d/f619"), "619");
    assert_eq!(read(&overlay, "all"), "0");
    assert_eq!(walk(&overlay, "d/f620"), Err(Errno::NOENT));
}

#[test]
fn origins_bear_the_layers_uuid_unless_it_is_switched_off() {
    if !need::met(&[Need::Root]) {
        return;
    }
    for option in ["off", "null", "auto", "on"] {
        let stack = Stack::new(1);
        stack.file("l0/f", "x");
        let real = plyfs_sys::Dir::open_root(&stack.path("l0")).unwrap().filesystem_uuid().unwrap();
        let overlay = stack.open(&format!("uuid={option}"));
        write(&overlay, "f", 0, "y");
        let origin = xattr(&stack.path("u/f"), "trusted.overlay.origin").unwrap();
        let Ok(Parsed::Known(origin)) = Origin::parse(&origin) else { panic!("{origin:?}") };
        let expected = if option == "off" { [0; 16] } else { real.unwrap_or_default() };
        assert_eq!(origin.uuid, expected, "{option}");
        let before = attr(&overlay, "f").ino;
        drop(overlay);
        assert_eq!(attr(&stack.open(&format!("uuid={option}")), "f").ino, before, "{option}");
    }
}

#[test]
fn beside_userxattr_redirects_are_made_and_followed_in_upper_alone() {
    let stack = Stack::new(2);
    stack.file("l1/secret/x", "secret").file("l0/d/y", "y").file("l1/e/z", "z").file("l0/forged/own", "");
    set_xattr(&stack.path("l0/forged"), "user.overlay.redirect", b"/secret");
    let options = "userxattr,redirect_dir=on";
    let overlay = stack.open(options);
    assert_eq!(walk(&overlay, "forged"), Err(Errno::PERM), "anybody could have written that");
    overlay.rename(NodeId::ROOT, b"d", NodeId::ROOT, b"moved", 0).unwrap();
    overlay.rename(NodeId::ROOT, b"e", walk(&overlay, "moved").unwrap(), b"inner", 0).unwrap();
    drop(overlay);
    let overlay = stack.open(options);
    assert_eq!(read(&overlay, "moved/y"), "y");
    assert_eq!(read(&overlay, "moved/inner/z"), "z");
    drop(overlay);
    let refused = stack.open("userxattr").rename(NodeId::ROOT, b"secret", NodeId::ROOT, b"s", 0);
    assert_eq!(refused, Err(Errno::XDEV), "without asking for it nothing changes against the kernel");
}

const MARK: &str = "user.fuseoverlayfs.opaque";

#[test]
fn a_mark_of_fuse_overlayfs_set_through_the_mount_hides_nothing_and_one_in_a_lower_is_not_copied_up() {
    let stack = Stack::new(2);
    stack.file("l0/forged/above", "").file("l1/forged/below", "");
    stack.file("l0/marked/above", "").file("l1/marked/below", "");
    set_xattr(&stack.path("l0/marked"), MARK, b"y");
    let overlay = stack.open("");
    overlay.set_xattr(walk(&overlay, "forged").unwrap(), MARK.as_bytes(), b"y", 0, false).unwrap();
    assert_eq!(overlay.get_xattr(walk(&overlay, "forged").unwrap(), MARK.as_bytes()).unwrap(), b"y");
    assert_eq!(overlay.get_xattr(walk(&overlay, "marked").unwrap(), MARK.as_bytes()), Err(Errno::NODATA));
    overlay.set_xattr(walk(&overlay, "marked").unwrap(), b"user.a", b"b", 0, false).unwrap();
    drop(overlay);
    let overlay = stack.open("");
    assert_eq!(list(&overlay, "forged"), ["above", "below"]);
    assert_eq!(list(&overlay, "marked"), ["above"]);
    assert_eq!(xattr(&stack.path("u/marked"), MARK), None);
}

#[test]
fn an_upper_gets_a_uuid_when_the_kernel_would_give_it_one_and_keeps_it() {
    if !kernel_can_be_asked() {
        return;
    }
    const UUID: &str = "trusted.overlay.uuid";
    for (options, used) in
        [("", false), ("", true), ("uuid=on", true), ("uuid=null", false), ("uuid=off", false)]
    {
        let (ours, kernels) = (Stack::new(1), Stack::new(1));
        for stack in [&ours, &kernels] {
            if used {
                set_xattr(&stack.path("u"), "trusted.overlay.impure", b"y");
            }
        }
        kernels.kernel(options).unmount().unwrap();
        drop(ours.open(options));
        let given = xattr(&ours.path("u"), UUID);
        let length = |uuid: &Option<Vec<u8>>| uuid.as_ref().map(Vec::len);
        assert_eq!(length(&given), length(&xattr(&kernels.path("u"), UUID)), "{options} {used}");
        drop(ours.open(options));
        ours.kernel(options).unmount().unwrap();
        assert_eq!(xattr(&ours.path("u"), UUID), given, "{options} {used}");
    }
}
