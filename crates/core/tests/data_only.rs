//! Data-only layers, and the digests of what lies in them.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;

use common::{Stack, attr, kernel_can_be_asked, list, me, read, set_xattr, try_read, walk, write, xattr};
use plyfs_core::{Errno, NodeId, Overlay, SetAttr};
use plyfs_format::{Metacopy, VerityAlgorithm, VerityHasher};
use plyfs_testkit::need::{self, Need};

const METACOPY: &str = "trusted.overlay.metacopy";
const REDIRECT: &str = "trusted.overlay.redirect";

fn content() -> String {
    "data ".repeat(20_000)
}

/// A lower file without data, which refers to `/blobs/b` of the data-only layer `data`.
fn stack_with_data() -> Stack {
    let stack = Stack::new(1);
    stack.file("data/blobs/b", &content()).file("data/shown", "never").file("empty/x", "");
    let path = stack.path("l0/f");
    fs::File::create(&path).unwrap().set_len(content().len() as u64).unwrap();
    set_xattr(&path, METACOPY, b"");
    set_xattr(&path, REDIRECT, b"/blobs/b");
    stack
}

fn with(stack: &Stack, options: &str) -> Overlay {
    let data = ["empty", "data"].map(|name| format!("datadir+={},", stack.path(name).display())).concat();
    stack.open(&format!("{data}{options}"))
}

fn chmod(overlay: &Overlay, path: &str) {
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    overlay.setattr(&me(), walk(overlay, path).unwrap(), None, &set).unwrap();
}

#[test]
fn data_is_found_in_a_data_only_layer_that_is_not_shown_itself() {
    if !kernel_can_be_asked() {
        return;
    }
    for options in ["metacopy=on,redirect_dir=on", ""] {
        let stack = stack_with_data();
        let overlay = with(&stack, options);
        assert_eq!(list(&overlay, ""), ["f"], "{options}");
        assert_eq!(attr(&overlay, "f").size, content().len() as u64);
        assert_eq!(read(&overlay, "f"), content()[..1 << 16], "{options}");
        write(&overlay, "f", 0, "DATA");
        assert_eq!(read(&overlay, "f")[..9], *"DATA data", "{options}");
        drop(overlay);
        let data = format!("datadir+={},{options}", stack.path("data").display());
        let mounted = stack.kernel(&data);
        let text = fs::read_to_string(mounted.path().join("f")).unwrap();
        assert_eq!((&text[..9], text.len()), ("DATA data", content().len()), "{options}");
        mounted.unmount().unwrap();
        assert_eq!(fs::read_to_string(stack.path("data/blobs/b")).unwrap(), content());
    }
}

#[test]
fn the_data_is_looked_for_only_when_it_is_opened() {
    if !need::met(&[Need::Root]) {
        return;
    }
    let stack = stack_with_data();
    fs::remove_file(stack.path("data/blobs/b")).unwrap();
    let overlay = with(&stack, "");
    assert_eq!(attr(&overlay, "f").blocks, (content().len() as u64).div_ceil(512));
    assert_eq!(try_read(&overlay, "f"), Err(Errno::IO));
    stack.file("data/blobs/b", "now");
    assert_eq!(try_read(&overlay, "f").as_deref(), Ok("now"));
}

#[test]
fn neither_symlinks_nor_directories_serve_as_data() {
    if !need::met(&[Need::Root]) {
        return;
    }
    let stack = stack_with_data();
    stack.file("outside", "secret");
    fs::remove_dir_all(stack.path("data/blobs")).unwrap();
    fs::create_dir_all(stack.path("data/blobs/b")).unwrap();
    assert_eq!(try_read(&with(&stack, ""), "f"), Err(Errno::IO));
    fs::remove_dir_all(stack.path("data/blobs")).unwrap();
    fs::create_dir(stack.path("data/blobs")).unwrap();
    std::os::unix::fs::symlink(stack.path("outside"), stack.path("data/blobs/b")).unwrap();
    assert_eq!(try_read(&with(&stack, ""), "f"), Err(Errno::IO));
    fs::remove_dir_all(stack.path("data/blobs")).unwrap();
    fs::rename(stack.path("empty"), stack.path("data/real")).unwrap();
    fs::create_dir(stack.path("empty")).unwrap();
    stack.file("data/real/b", "secret");
    std::os::unix::fs::symlink("real", stack.path("data/blobs")).unwrap();
    assert_eq!(try_read(&with(&stack, ""), "f"), Err(Errno::IO));
}

#[test]
fn a_copied_up_metadata_only_file_still_refers_to_the_data_only_layer() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = stack_with_data();
    let options = "metacopy=on,redirect_dir=on";
    let overlay = with(&stack, options);
    chmod(&overlay, "f");
    overlay.rename(NodeId::ROOT, b"f", NodeId::ROOT, b"g", 0).unwrap();
    assert_eq!(read(&overlay, "g"), content()[..1 << 16]);
    drop(overlay);
    assert!(xattr(&stack.path("u/g"), METACOPY).is_some());
    let overlay = with(&stack, options);
    assert_eq!(read(&overlay, "g"), content()[..1 << 16]);
    drop(overlay);
    let mounted = stack.kernel(&format!("datadir+={},{options}", stack.path("data").display()));
    assert_eq!(fs::read_to_string(mounted.path().join("g")).unwrap(), content());
    mounted.unmount().unwrap();
}

#[test]
fn a_recorded_digest_is_checked_when_the_data_is_first_opened() {
    if !need::met(&[Need::Root]) {
        return;
    }
    let digest_of = |data: &[u8], algorithm| {
        let mut hasher = VerityHasher::new(algorithm);
        hasher.update(data);
        Metacopy { flags: 0, digest: hasher.finish() }.encode()
    };
    let data = content();
    let right = digest_of(data.as_bytes(), VerityAlgorithm::Sha256);
    let long = digest_of(data.as_bytes(), VerityAlgorithm::Sha512);
    let wrong = digest_of(b"other", VerityAlgorithm::Sha256);
    let unknown = [0, 5, 0, 9, 1].to_vec();
    let none = Vec::new();
    let cases = [
        (&right, [true, true, true]),
        (&long, [true, true, true]),
        (&wrong, [true, false, false]),
        (&unknown, [true, false, false]),
        (&none, [true, true, false]),
    ];
    for (value, expected) in cases {
        let stack = stack_with_data();
        set_xattr(&stack.path("l0/f"), METACOPY, value);
        for (mode, good) in ["off", "on", "require"].into_iter().zip(expected) {
            let overlay = with(&stack, &format!("verity={mode}"));
            let got = try_read(&overlay, "f").map(|text| text == content()[..1 << 16]);
            assert_eq!(got, if good { Ok(true) } else { Err(Errno::IO) }, "{mode} {value:?}");
        }
    }
}

#[test]
fn a_copy_of_the_metadata_carries_the_digest_along() {
    if !need::met(&[Need::Root]) {
        return;
    }
    let stack = stack_with_data();
    let mut hasher = VerityHasher::new(VerityAlgorithm::Sha256);
    hasher.update(content().as_bytes());
    let value = Metacopy { flags: 0, digest: hasher.finish() }.encode();
    set_xattr(&stack.path("l0/f"), METACOPY, &value);
    stack.file("l0/plain", &content());
    let overlay = with(&stack, "verity=require,metacopy=on,redirect_dir=on");
    chmod(&overlay, "f");
    chmod(&overlay, "plain");
    drop(overlay);
    assert_eq!(xattr(&stack.path("u/f"), METACOPY), Some(value));
    assert_eq!(
        xattr(&stack.path("u/plain"), METACOPY),
        None,
        "no digest is kept of it, so its data was copied"
    );
    let overlay = with(&stack, "verity=require,metacopy=on,redirect_dir=on");
    assert_eq!(read(&overlay, "f"), content()[..1 << 16]);
    drop(overlay);
    fs::write(stack.path("data/blobs/b"), content().replacen("data", "date", 1)).unwrap();
    assert_eq!(try_read(&with(&stack, "verity=on,metacopy=on,redirect_dir=on"), "f"), Err(Errno::IO));
}

#[test]
fn marks_in_lower_layers_are_believed_beside_userxattr_only_towards_data_only_layers() {
    let stack = Stack::new(2);
    stack.file("data/b", "data").file("empty/x", "").file("l1/f", "below");
    for (name, redirect) in [("f", None), ("g", Some(&b"/b"[..]))] {
        let path = stack.path("l0").join(name);
        fs::File::create(&path).unwrap().set_len(1 << 16).unwrap();
        set_xattr(&path, "user.overlay.metacopy", b"");
        if let Some(redirect) = redirect {
            set_xattr(&path, "user.overlay.redirect", redirect);
        }
    }
    if !need::met(&[Need::Root]) {
        return;
    }
    let overlay = with(&stack, "userxattr,metacopy=on,redirect_dir=on");
    assert_eq!(walk(&overlay, "f"), Err(Errno::PERM), "anybody could have made it");
    assert_eq!(try_read(&overlay, "g").as_deref(), Ok("data"));
}
