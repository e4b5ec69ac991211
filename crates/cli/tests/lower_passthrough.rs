//! `lower_passthrough`: the kernel reads lower files by itself, and copy-up gives what is opened later another inode.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use common::{Place, as_root, wait_until};

const LAYERS: &str = "lower_passthrough,lowerdir=a,upperdir=upper,workdir=work";

fn mounted(place: &Place) {
    place.dirs(&["a", "upper", "work", "merged"]);
    place.run(&["mount", "-o", LAYERS, "merged"]);
}

fn all_of(file: &File) -> String {
    let mut bytes = vec![0; 100];
    let count = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(count);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn who_has_a_lower_file_open_keeps_it_and_all_others_see_what_is_written() {
    as_root("who_has_a_lower_file_open_keeps_it_and_all_others_see_what_is_written", |place| {
        place.write("a/f", "lower");
        mounted(place);
        let path = place.at("merged/f");
        let early = File::open(&path).unwrap();
        assert_eq!(all_of(&early), "lower");
        let mut writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        writer.write_all(b"written").unwrap();
        let late = File::open(&path).unwrap();
        assert_eq!(
            (all_of(&early), all_of(&writer), all_of(&late)),
            ("lower".into(), "written".into(), "written".into())
        );
        assert_eq!(early.metadata().unwrap().ino(), late.metadata().unwrap().ino(), "it is one file");
        assert_eq!(late.metadata().unwrap().len(), 7);
        assert_eq!(early.metadata().unwrap().len(), 5, "what is read and what is said agree");
        let copy = File::create(place.at("copy")).unwrap();
        std::io::copy(&mut &early, &mut &copy).unwrap();
        assert_eq!(place.read("copy"), "lower");
        assert_eq!(place.read("a/f"), "lower", "no lower layer ever changes");

        early.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "changed through the old inode");
        drop((early, writer, late));
        assert_eq!(place.read("merged/f"), "written");
        place.umount();
        assert_eq!(place.read("upper/f"), "written");
    });
}

#[test]
fn truncating_and_patching_reach_the_copy_and_never_the_lower_file() {
    as_root("truncating_and_patching_reach_the_copy_and_never_the_lower_file", |place| {
        for name in ["patched", "cut", "emptied"] {
            place.write(&format!("a/{name}"), "lower");
        }
        mounted(place);
        let open = |name: &str| File::open(place.at(&format!("merged/{name}"))).unwrap();
        let early = ["patched", "cut", "emptied"].map(open);
        place.sh("perl -e 'open(F, \"+<\", \"merged/patched\") or die; print F \"M\"'
             truncate -s 2 merged/cut
             : > merged/emptied");
        assert_eq!(place.read("merged/patched"), "Mower");
        assert_eq!(place.read("merged/cut"), "lo");
        assert_eq!(place.read("merged/emptied"), "");
        place.sh("echo more >> merged/emptied");
        assert_eq!(place.read("merged/emptied"), "more\n");
        for (early, name) in early.iter().zip(["patched", "cut", "emptied"]) {
            assert_eq!(place.read(&format!("a/{name}")), "lower");
            assert_eq!(all_of(early), "lower", "{name}");
        }
        drop(early);
        place.umount();
    });
}

#[test]
fn hard_links_kept_together_are_one_file_also_after_its_inode_was_replaced() {
    as_root("hard_links_kept_together_are_one_file_also_after_its_inode_was_replaced", |place| {
        place.write("a/one", "lower");
        place.sh("ln a/one a/two");
        place.dirs(&["upper", "work", "merged"]);
        place.run(&["mount", "-o", &format!("index=on,{LAYERS}"), "merged"]);
        let early =
            (File::open(place.at("merged/one")).unwrap(), File::open(place.at("merged/two")).unwrap());
        place.sh("echo written > merged/one");
        assert_eq!(place.read("merged/two"), "written\n");
        place.sh("echo again > merged/two");
        assert_eq!(place.read("merged/one"), "again\n");
        let numbers = ["one", "two"].map(|name| fs::metadata(place.at(&format!("merged/{name}"))).unwrap());
        let [one, two] = numbers;
        assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
        drop(early);
        assert_eq!(place.read("merged/one"), "again\n");
        place.umount();
    });
}

#[test]
fn a_file_known_without_its_name_is_read_again_once_nobody_reads_the_lower_file() {
    as_root("a_file_known_without_its_name_is_read_again_once_nobody_reads_the_lower_file", |place| {
        place.write("a/f", "lower");
        place.write("bound", "");
        mounted(place);
        place.sh("mount --bind merged/f bound");
        let early = File::open(place.at("bound")).unwrap();
        place.write("merged/f", "written");
        let refused = fs::read(place.at("bound")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(116), "ESTALE while the lower file is read through it");
        assert_eq!(all_of(&early), "lower");
        drop(early);
        // The kernel tells of a close a moment later.
        wait_until("the past inode serves readers", || {
            fs::read(place.at("bound")).is_ok_and(|read| read == b"written")
        });
        place.write("merged/f", "again");
        assert_eq!(place.read("bound"), "again");
        assert_eq!(fs::metadata(place.at("bound")).unwrap().len(), 5);
        assert!(OpenOptions::new().write(true).open(place.at("bound")).is_err());
        place.sh("umount bound");
        place.umount();
    });
}
