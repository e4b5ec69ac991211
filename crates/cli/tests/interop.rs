//! The kernel mounts what plyfs wrote, and plyfs what the kernel wrote: both show what the writer showed.
//!
//! The differential test does the same with random trees; here each form on disk has a test that names it.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::compare::compare;
use plyfs_testkit::features::Features;
use plyfs_testkit::fixture::Union;
use plyfs_testkit::known::{Conditions, Trees, unexplained};
use plyfs_testkit::layer::{Namespace, TreeSpec};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::need::{Need, met};
use plyfs_testkit::sandbox::{self, Space};
use plyfs_testkit::snapshot::Clock;
use rustix::fs::{AtFlags, CWD, RenameFlags, XattrFlags, renameat_with, setxattr};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

type Change = fn(&Path);

fn layers(namespace: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new()
            .file("d/one", "upper one")
            .file("d/gone", "1")
            .dir("opaque")
            .opaque(namespace)
            .file("opaque/only", "")
            .whiteout("hidden"),
        TreeSpec::new()
            .file("d/one", "lower one")
            .file("d/two", "two")
            .file("d/sub/deep", "deep")
            .mode(0o640)
            .owner(1000, 1000)
            .time(1_000_000_000, 5)
            .xattr("user.a", "value")
            .file("d/linked", "linked")
            .hard_link("d/link", "d/linked")
            .file("opaque/below", "")
            .file("hidden", "")
            .file("tree/a/b/c", "c"),
    ]
}

/// Changes by one driver, and then the same tree by both, and by the writer again, with the same inode numbers.
fn each_way(test: &str, change: Change) {
    both_spaces(test, Space::Mounts, Namespace::Trusted, "redirect_dir=on", change);
}

fn both_spaces(test: &str, space: Space, namespace: Namespace, option: &'static str, change: Change) {
    let Ok(features) = option.parse::<Features>();
    let conditions = Conditions { space, features: &features };
    let options: Vec<&str> = features.options().iter().map(String::as_str).collect();
    let needs = [Need::Root, Need::Fuse, Need::Filesystem("overlay"), Need::Tool("unshare")];
    if Space::current().is_none() && !met(&needs) {
        return;
    }
    sandbox::test(test, space, || {
        let plyfs = Driver::Plyfs(env!("CARGO_BIN_EXE_plyfs").into());
        let backing = Backing::new(Kind::Tmpfs).unwrap();
        for (writer, reader) in [(Driver::Kernel, plyfs.clone()), (plyfs, Driver::Kernel)] {
            let clock = Clock::start();
            let mut union = Union::new(&writer, backing.path(), &layers(namespace), &options).unwrap();
            change(union.merged());
            let written = union.snapshot(clock).unwrap();
            union.remount_with(&reader).unwrap();
            let read = union.snapshot(clock).unwrap();
            union.remount_with(&writer).unwrap();
            let again = union.snapshot(clock).unwrap();
            for (what, other) in [("the reader's", &read), ("the writer's own", &again)] {
                let stage = plyfs_testkit::differential::run::Stage::LeftUpperAgain;
                let differences = unexplained(
                    &conditions,
                    stage,
                    &Trees { left: &written, right: other },
                    compare(&written, other),
                );
                assert!(differences.is_empty(), "{writer}, then {what}: {differences:#?}");
            }
            let mut moved = plyfs_testkit::compare::moved_inodes(&again, &read);
            // In a user namespace the kernel does not resolve the origin of what was copied up, and plyfs does.
            moved.retain(|_| space == Space::Mounts);
            assert!(moved.is_empty(), "{writer} and {reader} number inodes differently: {moved:#?}");
            union.unmount().unwrap();
        }
    });
}

#[test]
fn a_copied_up_file() {
    each_way("a_copied_up_file", |root| {
        fs::OpenOptions::new().append(true).open(root.join("d/sub/deep")).unwrap().set_len(2).unwrap();
        fs::set_permissions(root.join("d/two"), PermissionsExt::from_mode(0o4755)).unwrap();
    });
}

#[test]
fn whiteouts() {
    each_way("whiteouts", |root| {
        fs::remove_file(root.join("d/one")).unwrap();
        fs::remove_file(root.join("d/gone")).unwrap();
        fs::remove_dir_all(root.join("tree")).unwrap();
    });
}

#[test]
fn an_opaque_directory() {
    each_way("an_opaque_directory", |root| {
        fs::remove_dir_all(root.join("d")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/new"), "new").unwrap();
        fs::remove_dir_all(root.join("opaque")).unwrap();
    });
}

#[test]
fn a_renamed_directory() {
    each_way("a_renamed_directory", |root| {
        fs::rename(root.join("d"), root.join("moved")).unwrap();
        fs::rename(root.join("moved/sub"), root.join("tree/a/sub")).unwrap();
        fs::rename(root.join("tree/a/b"), root.join("tree/a/c")).unwrap();
        fs::write(root.join("tree/a/c/new"), "").unwrap();
    });
}

#[test]
fn a_directory_renamed_several_times() {
    each_way("a_directory_renamed_several_times", |root| {
        fs::rename(root.join("tree/a"), root.join("a")).unwrap();
        fs::rename(root.join("a"), root.join("d/a")).unwrap();
        fs::rename(root.join("d"), root.join("e")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::rename(root.join("e/a/b"), root.join("d/b")).unwrap();
    });
}

#[test]
fn a_new_directory_in_place_of_a_lower_one() {
    each_way("a_new_directory_in_place_of_a_lower_one", |root| {
        fs::create_dir(root.join("new")).unwrap();
        fs::write(root.join("new/inside"), "").unwrap();
        fs::rename(root.join("d"), root.join("old")).unwrap();
        fs::rename(root.join("new"), root.join("d")).unwrap();
    });
}

#[test]
fn exchanged_names() {
    each_way("exchanged_names", |root| {
        let exchange = |one: &str, other: &str| {
            renameat_with(CWD, root.join(one), CWD, root.join(other), RenameFlags::EXCHANGE).unwrap();
        };
        exchange("d/one", "d/two");
        exchange("d/sub", "tree");
        exchange("d/gone", "opaque");
    });
}

#[test]
fn hard_links() {
    each_way("hard_links", |root| {
        fs::hard_link(root.join("d/two"), root.join("tree/two")).unwrap();
        fs::write(root.join("d/linked"), "changed").unwrap();
        fs::hard_link(root.join("d/link"), root.join("d/third")).unwrap();
        fs::remove_file(root.join("d/link")).unwrap();
    });
}

#[test]
fn special_files_and_links() {
    each_way("special_files_and_links", |root| {
        use rustix::fs::{FileType, Mode, makedev, mknodat};
        symlink("d/one", root.join("symlink")).unwrap();
        for (name, kind, device) in [
            ("fifo", FileType::Fifo, 0),
            ("socket", FileType::Socket, 0),
            ("null", FileType::CharacterDevice, makedev(1, 3)),
            ("block", FileType::BlockDevice, makedev(240, 5)),
        ] {
            mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o644), device).unwrap();
        }
        fs::rename(root.join("null"), root.join("d/gone")).unwrap();
    });
}

#[test]
fn attributes_of_every_kind() {
    each_way("attributes_of_every_kind", |root| {
        let set = |path: &str, name: &str, value: &[u8]| {
            setxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
        };
        set("d/one", "user.b", b"x");
        set("d/two", "trusted.t", b"y");
        set("d/two", "trusted.overlay.opaque", b"y");
        set("d", plyfs_testkit::acl::DEFAULT, &default_acl());
        fs::write(root.join("d/inherits"), "").unwrap();
        rustix::fs::chownat(
            CWD,
            root.join("d/sub"),
            None,
            Some(rustix::fs::Gid::from_raw(7)),
            AtFlags::empty(),
        )
        .unwrap();
    });
}

fn default_acl() -> Vec<u8> {
    use plyfs_testkit::acl::{Entry, encode};
    encode(&[Entry::UserObj(7), Entry::User(1000, 6), Entry::GroupObj(5), Entry::Mask(7), Entry::Other(0)])
}

#[test]
fn changes_in_a_user_namespace() {
    let test = "changes_in_a_user_namespace";
    both_spaces(test, Space::User, Namespace::User, "userxattr", |root| {
        fs::remove_file(root.join("d/one")).unwrap();
        fs::write(root.join("d/two"), "changed").unwrap();
        fs::remove_dir_all(root.join("tree")).unwrap();
        fs::create_dir(root.join("tree")).unwrap();
        fs::rename(root.join("opaque"), root.join("renamed")).unwrap_err();
        symlink("x", root.join("symlink")).unwrap();
    });
}

#[test]
fn copies_of_attributes_alone() {
    let options = "redirect_dir=on,metacopy=on";
    both_spaces("copies_of_attributes_alone", Space::Mounts, Namespace::Trusted, options, |root| {
        fs::set_permissions(root.join("d/two"), PermissionsExt::from_mode(0o600)).unwrap();
        fs::rename(root.join("d/two"), root.join("d/near")).unwrap();
        fs::rename(root.join("d/sub/deep"), root.join("far")).unwrap();
        fs::rename(root.join("d"), root.join("moved")).unwrap();
        fs::hard_link(root.join("moved/near"), root.join("tree/link")).unwrap();
        fs::write(root.join("moved/one"), "with data").unwrap();
    });
}

#[test]
fn names_in_the_index() {
    let options = "redirect_dir=on,index=on";
    both_spaces("names_in_the_index", Space::Mounts, Namespace::Trusted, options, |root| {
        fs::write(root.join("d/link"), "by one name").unwrap();
        assert_eq!(fs::read_to_string(root.join("d/linked")).unwrap(), "by one name");
        fs::hard_link(root.join("d/linked"), root.join("tree/third")).unwrap();
        fs::remove_file(root.join("d/link")).unwrap();
    });
}

#[test]
fn user_attributes_of_a_mount_of_root() {
    let options = "userxattr,redirect_dir=nofollow,index=on";
    both_spaces("user_attributes_of_a_mount_of_root", Space::Mounts, Namespace::User, options, |root| {
        fs::remove_dir_all(root.join("tree")).unwrap();
        fs::create_dir(root.join("tree")).unwrap();
        fs::write(root.join("d/linked"), "changed").unwrap();
        fs::rename(root.join("d/two"), root.join("opaque/two")).unwrap();
    });
}
