//! The command lines of others: fuse-overlayfs's as podman, buildah and containerd write it, and mount(8)'s.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{PLYFS, Place, as_root, fail, succeed, text};

/// The command, called by another name.
fn called(place: &Place, name: &str, arguments: &[&str]) -> Command {
    let mut command = place.plyfs(arguments);
    command.arg0(name);
    command
}

#[test]
fn podmans_command_line_mounts() {
    as_root("podmans_command_line_mounts", |place| {
        place.write("l1/f", "x");
        place.dirs(&["l", "u", "w", "merged", "l2"]);
        place.sh("ln -s ../l1 l/AAAA; ln -s ../l2 l/BBBB");
        let options = "lowerdir=l/AAAA:l/BBBB,upperdir=u,workdir=w,,volatile,";
        succeed(&mut called(place, "plyfs", &["-o", options, place.at("merged").to_str().unwrap()]));
        assert_eq!(place.read("merged/f"), "x");
        place.write("merged/g", "y");
        place.umount();
        assert_eq!(place.read("u/g"), "y");
    });
}

#[test]
fn the_options_that_container_engines_pass_are_accepted() {
    as_root("the_options_that_container_engines_pass_are_accepted", |place| {
        place.dirs(&["a", "u", "w", "merged"]);
        for option in ["nodev", "fsync=0", "metacopy=on", "noacl", "timeout=5", "xino=off", "squash_to_root"]
        {
            let options = format!("lowerdir=a,upperdir=u,workdir=w,{option}");
            succeed(&mut called(place, "fuse-overlayfs", &["-o", &options, "merged"]));
            place.umount();
        }
    });
}

#[test]
fn containerds_command_line_mounts() {
    as_root("containerds_command_line_mounts", |place| {
        place.write("a/f", "x");
        place.dirs(&["u", "w", "merged"]);
        let options = "workdir=w,upperdir=u,lowerdir=a,dev,suid";
        succeed(&mut called(place, "fuse3.plyfs", &["overlay", "merged", "-o", options]));
        assert_eq!(place.read("merged/f"), "x");
        assert!(place.mounts()[0].contains("fuse.plyfs overlay "), "{:?}", place.mounts());
        place.umount();
    });
}

#[test]
fn the_mount_helper_mounts_and_fakes() {
    as_root("the_mount_helper_mounts_and_fakes", |place| {
        place.write("a/f", "x");
        place.dirs(&["merged"]);
        let merged = place.at("merged");
        let helper = |more: &[&str]| {
            let mut all = vec!["none", merged.to_str().unwrap()];
            all.extend(more);
            succeed(&mut called(place, "/sbin/mount.fuse.plyfs", &all));
        };
        helper(&["-f", "-o", "rw,lowerdir=a", "-t", "fuse.plyfs"]);
        assert_eq!(place.mounts(), [""; 0]);
        helper(&["-n", "-v", "-o", "ro,noatime,lowerdir=a", "-t", "fuse.plyfs"]);
        assert_eq!(place.read("merged/f"), "x");
        assert!(place.mounts()[0].contains("noatime"), "{:?}", place.mounts());
        place.umount();
    });
}

#[test]
fn a_mount_can_be_made_read_only_and_writable_again() {
    as_root("a_mount_can_be_made_read_only_and_writable_again", |place| {
        place.write("a/f", "x");
        place.mount(&["a"]);
        let options = |line: &str| line.split(' ').nth(5).map(str::to_owned);
        let before = options(&place.mounts()[0]);
        // As mount(8) calls its helper for `mount -o remount,ro merged`.
        let read_only = "ro,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other,dev,suid";
        let merged = place.at("merged");
        succeed(&mut called(place, "plyfs", &["plyfs", merged.to_str().unwrap(), "-o", read_only]));
        place.sh("! touch merged/g && ! rm merged/f && cat merged/f");
        place.run(&["mount", "-o", "remount,rw,nosuid", "merged"]);
        place.sh("touch merged/g && rm merged/f");
        assert!(place.mounts()[0].contains("nosuid"), "{:?}", place.mounts());
        place.run(&["mount", "-o", "remount,suid", "merged"]);
        assert_eq!(options(&place.mounts()[0]), before);
        place.umount();

        place.run(&["mount", "-o", "lowerdir=a", "merged"]);
        let said = fail(&mut place.plyfs(&["mount", "-o", "remount,rw", "merged"]));
        assert!(said.contains("no upperdir"), "{said}");
        place.umount();
    });
}

#[test]
fn a_remount_keeps_each_flag_that_it_does_not_name() {
    as_root("a_remount_keeps_each_flag_that_it_does_not_name", |place| {
        place.write("a/f", "x");
        place.dirs(&["upper", "work", "merged"]);
        let flags = || {
            let line = place.mounts().pop().unwrap();
            let words: Vec<_> = line.split(' ').collect();
            let mut flags: Vec<_> =
                [words[5], words[words.len() - 1]].iter().flat_map(|all| all.split(',')).collect();
            flags.sort_unstable();
            flags.dedup();
            flags.join(",")
        };
        for chosen in [
            "nosuid,nodev,noexec,nosymfollow,noatime,nodiratime,sync,dirsync,lazytime",
            "nosymfollow,lazytime,relatime",
            "nosymfollow,strictatime,nodiratime",
        ] {
            let options = format!("lowerdir=a,upperdir=upper,workdir=work,{chosen}");
            place.run(&["mount", "-o", &options, "merged"]);
            let before = flags();
            for flag in chosen.split(',').filter(|flag| *flag != "strictatime") {
                assert!(before.split(',').any(|one| one == flag), "{flag}: {before}");
            }
            assert_eq!(before.contains("relatime"), chosen.contains("relatime"), "{before}");
            place.run(&["mount", "-o", "remount,ro", "merged"]);
            assert_ne!(flags(), before);
            place.run(&["mount", "-o", "remount,rw", "merged"]);
            assert_eq!(flags(), before);
            place.run(&["mount", "-o", "remount,symfollow,nolazytime", "merged"]);
            assert!(!flags().contains("symfollow") && !flags().contains("lazytime"), "{}", flags());
            place.umount();
        }
    });
}

#[test]
fn mount_8_and_fstab_find_the_helper() {
    as_root("mount_8_and_fstab_find_the_helper", |place| {
        place.write("a/f", "x");
        place.dirs(&["helpers", "merged"]);
        place.sh(&format!("cp {PLYFS} helpers/mount.fuse.plyfs"));
        // Helpers are looked for in /sbin only, so plyfs puts its own there, in this mount namespace.
        let sbin = place.sh("readlink -f /sbin");
        let sbin = sbin.trim();
        place.run(&["mount", "-o", &format!("lowerdir=helpers:{sbin}"), sbin]);
        let (lower, merged) = (place.at("a"), place.at("merged"));
        let (lower, merged) = (lower.display(), merged.display());
        place.sh(&format!("mount -t fuse.plyfs plyfs {merged} -o lowerdir={lower}"));
        assert_eq!(place.read("merged/f"), "x");
        place.sh("umount merged");
        place.write(
            "fstab",
            &format!("plyfs {merged} fuse.plyfs noauto,ro,x-systemd.automount,lowerdir={lower} 0 0\n"),
        );
        place.sh(&format!("mount --fstab fstab {merged}"));
        assert_eq!(place.read("merged/f"), "x");
        place.sh("umount merged");
        // The last daemon was started from there, and may be ending still.
        place.sh(&format!("umount --lazy {sbin}"));
    });
}

#[test]
fn by_the_name_fuse_overlayfs_it_says_the_version_as_that_program_does() {
    let place = Place::new();
    for flag in ["--version", "-V"] {
        let said = text(&succeed(&mut called(&place, "/usr/bin/fuse-overlayfs", &[flag])).stdout);
        assert!(said.starts_with("fuse-overlayfs: version "), "{said}");
        assert!(said.contains("plyfs"), "{said}");
    }
    assert!(place.run(&["--version"]).starts_with("plyfs "));
}

#[test]
fn a_wrong_foreign_command_line_gets_one_line() {
    let place = Place::new();
    place.dirs(&["a", "merged"]);
    let said = fail(&mut called(&place, "fuse-overlayfs", &["-o", "lowerdir=a"]));
    assert!(said.contains("no mount point"), "{said}");
    let said = fail(&mut called(&place, "fuse-overlayfs", &["-o", "lowerdir=a,nonsense", "merged"]));
    assert!(said.contains("nonsense"), "{said}");
}

#[test]
fn completions_and_manual_pages_come_for_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.run(&["completions", shell]).contains("umount"));
    }
    place.run(&["man", place.at("").to_str().unwrap()]);
    for page in ["plyfs.1", "plyfs-try.1", "plyfs-mount.1", "plyfs-commit.1"] {
        assert!(place.read(page).contains(".TH"), "{page}");
    }
    assert!(!place.at("plyfs-try-stage.1").exists());
}
