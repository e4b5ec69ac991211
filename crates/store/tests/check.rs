//! `check`: each kind of damage is made, found, laid to the images it harms and to no other, and repaired.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Home, dir, file, tar};
use plyfs_store::{CheckOptions, Problem};

fn check(h: &Home, repair: bool) -> Vec<Problem> {
    h.store.check(CheckOptions { repair, quick: false }).unwrap()
}

fn two_images() -> Home {
    let h = Home::new();
    h.import(&tar(&[dir("d"), file("d/f", "one")]), "one:1").unwrap();
    h.import(&tar(&[dir("d"), file("d/f", "two")]), "two:1").unwrap();
    h.store.create("one:1", Some("c1"), None).unwrap();
    assert!(check(&h, false).is_empty());
    h
}

/// Damages the store, checks that it is found with its harm, repaired, and gone.
fn damaged(what: &str, harms: &[&str], damage: impl FnOnce(&Home, &Path)) {
    let h = two_images();
    let top = h.top(&h.store.image("one:1").unwrap());
    damage(&h, &top);
    let found = check(&h, false);
    assert!(found.iter().any(|p| p.why.contains(what)), "{what}: {found:?}");
    for p in &found {
        assert!(!p.repaired);
        assert!(p.harms.iter().all(|x| harms.contains(&x.as_str())), "{what} harms {:?}", p.harms);
    }
    let repaired = check(&h, true);
    assert!(repaired.iter().all(|p| p.repaired), "{what}: {repaired:?}");
    assert_eq!(check(&h, false).len(), 0, "{what} is gone");
    assert_eq!(fs::read_to_string(top.join("d/f")).unwrap(), "one");
}

const ONE: &[&str] = &["image one:1", "container c1"];

#[test]
fn damaged_layers_are_unpacked_again() {
    damaged("content differs", ONE, |_, top| {
        let p = top.join("d/f");
        let times = fs::metadata(&p).unwrap().modified().unwrap();
        fs::write(&p, "0ne").unwrap();
        fs::File::options().write(true).open(&p).unwrap().set_modified(times).unwrap();
    });
    damaged("missing or too many", ONE, |_, top| fs::write(top.join("extra"), "").unwrap());
    damaged("missing or too many", ONE, |_, top| fs::remove_file(top.join("d/f")).unwrap());
    damaged("owner, mode, time", ONE, |_, top| {
        fs::set_permissions(top.join("d"), fs::Permissions::from_mode(0o700)).unwrap()
    });
    damaged("directory is missing", ONE, |_, top| fs::remove_dir_all(top.parent().unwrap()).unwrap());
    damaged("directory is missing", ONE, |_, top| fs::remove_dir_all(top).unwrap());
}

#[test]
fn lost_links_empty_files_and_wide_modes_are_put_right() {
    let link = |h: &Home, top: &Path| {
        h.store.layout().link(&fs::read_to_string(top.parent().unwrap().join("link")).unwrap())
    };
    damaged("lost link", ONE, |h, top| fs::remove_file(link(h, top)).unwrap());
    damaged("file \"link\"", ONE, |_, top| fs::write(top.parent().unwrap().join("link"), "").unwrap());
    damaged("file \"committed\"", ONE, |_, top| {
        fs::remove_file(top.parent().unwrap().join("committed")).unwrap()
    });
    damaged("file \"lower\"", ONE, |_, top| fs::write(top.parent().unwrap().join("lower"), "l/X").unwrap());
    damaged("has mode 755", ONE, |_, top| {
        fs::set_permissions(top.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap()
    });
    damaged("file \"lower\"", ONE, |h, _| {
        let c = h.store.container("c1").unwrap();
        fs::write(h.store.layout().layer(&c.id).join("lower"), "").unwrap();
    });
}

#[test]
fn orphans_are_found_and_removed() {
    damaged("belongs to nothing", &[], |h, _| {
        let l = h.store.layout();
        fs::create_dir_all(l.layer("orphan").join("diff")).unwrap();
        std::os::unix::fs::symlink("../gone/diff", l.link("ABC")).unwrap();
        fs::write(l.blobs().join("0".repeat(64)), "x").unwrap();
        fs::create_dir(l.container("gone")).unwrap();
    });
}

/// A truncated and a bit-flipped blob: one image is harmed, the other goes on, and loading it again mends it.
#[test]
fn a_damaged_blob_harms_only_its_image() {
    for flip in [true, false] {
        let h = two_images();
        let i = h.store.image("one:1").unwrap();
        let p = h.store.layout().blob(&i.layers[0].blob);
        let mut bytes = fs::read(&p).unwrap();
        if flip {
            bytes[600] ^= 1;
        } else {
            bytes.truncate(700);
        }
        fs::write(&p, &bytes).unwrap();
        let found = check(&h, true);
        let bad: Vec<&Problem> = found.iter().filter(|p| !p.harmless).collect();
        assert_eq!(bad.len(), 1, "{found:?}");
        assert!(!bad[0].repaired && bad[0].harms == ONE, "{found:?}");
        let out = h.path("out.tar");
        let e = h
            .store
            .save(&["one:1".into()], plyfs_store::Format::OciArchive, plyfs_store::Compression::None, &out)
            .unwrap_err();
        assert!(!out.exists(), "{e}: nothing half written");
        h.store
            .save(&["two:1".into()], plyfs_store::Format::OciArchive, plyfs_store::Compression::None, &out)
            .unwrap();
    }
}
