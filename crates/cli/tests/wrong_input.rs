//! What is wrong gets one line that says what to do, a non-zero exit code, and nothing mounted.

mod common;

use common::{Place, as_root, fail};
use plyfs_testkit::need::{Need, met};

/// Runs the command, checks that it said these words in one line, and that nothing was mounted.
fn refused(place: &Place, arguments: &[&str], words: &[&str]) {
    let said = fail(&mut place.plyfs(arguments));
    for word in words {
        assert!(said.contains(word), "{arguments:?} said: {said}");
    }
    assert_eq!(place.mounts(), [""; 0], "{arguments:?}");
}

#[test]
fn every_wrong_mount_gets_one_line_and_nothing_is_mounted() {
    as_root("every_wrong_mount_gets_one_line_and_nothing_is_mounted", |place| {
        place.dirs(&["a", "upper", "upper/inside", "work", "merged"]);
        place.write("file", "x");
        place.dirs(&["b"]);
        place.sh("ln -s a link");
        let mount =
            |options: &str, words: &[&str]| refused(place, &["mount", "-o", options, "merged"], words);
        mount("lowerdri=a", &["lowerdri", "lowerdir"]);
        mount("lowerdir=a,redirect_dir=maybe", &["redirect_dir", "maybe"]);
        mount("lowerdir=missing", &["missing", "no such directory"]);
        mount("lowerdir=file", &["file", "is not a directory"]);
        mount("upperdir=upper,workdir=work", &["lower"]);
        mount("lowerdir=a,upperdir=upper", &["workdir"]);
        mount("lowerdir=a,upperdir=upper,workdir=nowhere", &["nowhere", "no such directory"]);
        mount("lowerdir=a,upperdir=upper,workdir=upper/inside", &["inside each other"]);
        mount("lowerdir=a,upperdir=upper,workdir=upper", &["inside each other"]);
        mount("lowerdir=a,workdir=nowhere", &["nowhere", "no such directory"]);
        mount("lowerdir=a,upperdir=a,workdir=work", &["upperdir \"a\"", "the same directory"]);
        mount("lowerdir=a:upper:link", &["lowerdir \"link\"", "the same directory"]);
        mount("lowerdir=a:b::a", &["the same directory"]);
        mount("lowerdir=upper,upperdir=a,workdir=upper", &["workdir \"upper\"", "the same directory"]);
        mount("lowerdir=upper/inside:upper", &["lowerdir \"upper/inside\"", "lies inside lowerdir"]);
        mount("lowerdir=upper/inside,upperdir=upper,workdir=work", &["lies inside upperdir"]);
        mount("lowerdir=a,upperdir=upper,workdir=work,metacopy=on,nfs_export=on", &["nfs_export"]);
        let said = fail(&mut place.plyfs(&["mount", "-o", "lowerdir=a", "nowhere"]));
        assert_eq!(said.matches("nowhere").count(), 1, "{said}");
        refused(place, &["mount", "-o", "lowerdir=a", "file"], &["file"]);
        refused(place, &["mount", "merged"], &["lowerdir=DIR"]);
        refused(place, &["mount", "-o", "remount,ro", "merged"], &["no plyfs"]);
    });
}

#[test]
fn layers_overlap_where_the_kernel_says_so_also_through_bind_mounts() {
    let name = "layers_overlap_where_the_kernel_says_so_also_through_bind_mounts";
    if !met(&[Need::Filesystem("overlay")]) {
        return;
    }
    as_root(name, |place| {
        place.dirs(&["fs", "other", "part", "whole", "merged"]);
        place.sh("mount -t tmpfs none fs; mkdir -p fs/a/b/c/up fs/a/b/w fs/a/over/y fs/x/y fs/w fs/ab
             mount -t tmpfs none other; mkdir -p other/a/b/c
             mount --bind fs/a/b part; mount --bind fs whole; mount --bind fs/x fs/a/over");
        for (overlaps, options) in [
            (true, "lowerdir=part:fs/a"),
            (true, "lowerdir=fs/a:part/c"),
            (true, "lowerdir=fs/w:whole/a/b:fs/a"),
            (true, "lowerdir=part/c,upperdir=fs/a,workdir=fs/w"),
            (true, "lowerdir=fs/a/b/c,upperdir=whole/x,workdir=whole/a"),
            (true, "lowerdir=fs/a/over/y:fs/x"),
            (true, "lowerdir=part:whole"),
            (false, "lowerdir=fs/a/over:fs/a"),
            (false, "lowerdir=fs/a:fs/x/y"),
            (false, "lowerdir=part:other/a"),
            (false, "lowerdir=whole/ab:fs/a"),
            (false, "lowerdir=fs/a,upperdir=part/c/up,workdir=part/w"),
        ] {
            let script = format!(
                "if mount -t overlay -o {options} none merged 2>/dev/null; then umount merged; else echo no; fi"
            );
            assert_eq!(place.sh(&script) == "no\n", overlaps, "{options}: the kernel");
            let argument = ["mount", "-o", options, "merged"];
            if overlaps {
                let said = fail(&mut place.plyfs(&argument));
                assert!(said.contains("lies inside"), "{options}: {said}");
            } else {
                place.run(&argument);
                place.umount();
            }
        }
        place.sh("umount fs/a/over part whole other fs");
    });
}

#[test]
fn a_work_directory_on_another_file_system_is_refused() {
    as_root("a_work_directory_on_another_file_system_is_refused", |place| {
        place.dirs(&["a", "upper", "elsewhere", "merged"]);
        place.sh("mount -t tmpfs none elsewhere && mkdir elsewhere/work");
        let options = "lowerdir=a,upperdir=upper,workdir=elsewhere/work";
        let said = fail(&mut place.plyfs(&["mount", "-o", options, "merged"]));
        assert!(said.contains("same mount"), "{said}");
        assert!(!place.mounts().iter().any(|line| line.contains("plyfs ")), "{:?}", place.mounts());
        place.sh("umount elsewhere");
    });
}

#[test]
fn an_upper_in_use_is_refused() {
    as_root("an_upper_in_use_is_refused", |place| {
        place.mount(&["a"]);
        place.dirs(&["work2", "merged2"]);
        let options = "lowerdir=a,upperdir=upper,workdir=work2";
        let said = fail(&mut place.plyfs(&["mount", "-o", options, "merged2"]));
        assert!(said.contains("in use by another mount"), "{said}");
        assert_eq!(place.mounts().len(), 1);
        place.umount();
    });
}

#[test]
fn other_commands_say_what_is_wrong_as_well() {
    let place = Place::new();
    place.dirs(&["a", "upper"]);
    refused(&place, &["umount", "a"], &["no plyfs is mounted here"]);
    refused(&place, &["umount", "missing"], &["missing", "no such directory", "no container"]);
    refused(&place, &["diff", "missing"], &["missing", "no such directory", "no container"]);
    refused(&place, &["diff", "upper", "--lower", "a:missing"], &["missing", "no such directory"]);
    refused(&place, &["diff", "upper", "--lower", "a:"], &["--lower a:", "colon"]);
    refused(&place, &["--root", "store", "create", "missing"], &["no image \"missing\""]);
    refused(&place, &["--root", "store", "umount", "missing"], &["no container \"missing\""]);
    assert!(!place.at("store").exists(), "a command that fails makes no store");
    refused(&place, &["umount", "missing/x"], &["missing/x", "cannot find it"]);
    refused(&place, &["diff", "missing", "--lower", "a"], &["missing"]);
    refused(&place, &["diff", "upper", "--lower", "missing"], &["missing", "no such directory"]);
    refused(&place, &["commit", "upper", "--onto", "missing"], &["missing"]);
    refused(&place, &["commit", "upper", "--onto", "a", "--json"], &["--yes or --dry-run"]);
    refused(&place, &["moutn"], &["moutn", "mount"]);
    refused(&place, &["diff", "upper"], &["--lower"]);
    refused(&place, &["umount", "--lasy", "a"], &["--lasy", "--lazy"]);
    refused(&place, &["completions", "tcsh"], &["tcsh", "bash"]);
    // The store's verbs are read elsewhere, and say it likewise.
    refused(&place, &["--root", "store", "create"], &["<IMAGE>", "plyfs create --help"]);
    refused(&place, &["import"], &["<ROOTFS> <NAME>", "plyfs import --help"]);
    refused(&place, &["--root", "store", "gc", "--foo"], &["--foo", "plyfs gc --help"]);
    refused(&place, &["--root", "store", "runn"], &["runn", "'run'", "plyfs --help"]);
    refused(&place, &["--root"], &["--root <DIR>"]);
    refused(&place, &["pull", "--backend", "none", "x"], &["none", "--backend"]);
    refused(&place, &["features", "--upper", "missing"], &["missing", "--upper"]);
}

#[test]
fn a_commit_that_nobody_can_be_asked_about_changes_nothing() {
    let place = Place::new();
    place.write("a/f", "old");
    place.write("upper/f", "newer");
    let mut command = place.plyfs(&["commit", "upper", "--onto", "a"]);
    let said = fail(command.stdin(std::process::Stdio::null()));
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(place.read("a/f"), "old");
}

#[test]
fn what_the_kernel_allows_is_allowed_an_upper_in_a_lower_and_a_work_directory_without_use() {
    as_root(
        "what_the_kernel_allows_is_allowed_an_upper_in_a_lower_and_a_work_directory_without_use",
        |place| {
            place.dirs(&["a/up", "a/work", "b", "merged"]);
            place.run(&["mount", "-o", "lowerdir=a,upperdir=a/up,workdir=a/work", "merged"]);
            place.umount();
            let mut command = place.plyfs(&["mount", "-o", "lowerdir=a:b,workdir=a/work", "merged"]);
            let said = common::text(&common::succeed(&mut command).stderr);
            assert!(said.contains("workdir a/work is not used"), "{said}");
            place.umount();
        },
    );
}
