//! `plyfs mount`, `umount` and `list`, and the daemon behind them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod common;

use std::path::Path;
use std::process::Stdio;

use common::{Place, as_root, fail, names, wait_until};
use plyfs_testkit::need::{Need, met};

/// What `plyfs list` says of the mount; others may be there on the machine.
fn listed(place: &Place) -> Option<serde_json::Value> {
    let listed: serde_json::Value = serde_json::from_str(&place.run(&["list", "--json"])).unwrap();
    let target = place.at("merged");
    listed.as_array().unwrap().iter().find(|one| one["target"] == target.to_str().unwrap()).cloned()
}

fn daemon_of(place: &Place) -> u32 {
    u32::try_from(listed(place).unwrap()["pid"].as_u64().unwrap()).unwrap()
}

/// Whether a process runs. One that has ended may still wait for its parent to hear of it.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn a_mount_is_usable_when_the_command_returns_and_its_daemon_gone_when_umount_returns() {
    as_root("a_mount_is_usable_when_the_command_returns_and_its_daemon_gone_when_umount_returns", |place| {
        place.write("a/f", "from a");
        place.write("b/g", "from b");
        place.mount(&["a", "b"]);
        assert_eq!(place.read("merged/f"), "from a");
        assert_eq!(names(&place.at("merged")), ["f", "g"]);
        assert!(place.mounts().iter().any(|line| line.contains(" - fuse.plyfs ")), "{:?}", place.mounts());
        place.write("merged/new", "x");
        let daemon = daemon_of(place);
        assert!(lives(daemon));
        place.umount();
        assert!(!lives(daemon));
        assert_eq!(place.mounts(), [""; 0]);
        assert_eq!(place.read("upper/new"), "x");
    });
}

#[test]
fn paths_that_lead_through_the_mount_point_do_not_hang_the_mount() {
    as_root("paths_that_lead_through_the_mount_point_do_not_hang_the_mount", |place| {
        place.write("a/f", "text");
        place.dirs(&["a/merged", "upper", "work"]);
        place.run(&["mount", "-o", "lowerdir=a/merged/..,upperdir=upper,workdir=work", "a/merged/../merged"]);
        assert_eq!(names(&place.at("a/merged")), ["f", "merged"]);
        place.run(&["umount", "a/merged"]);
    });
}

#[test]
fn the_mount_is_listed_with_its_layers_also_by_relative_paths() {
    as_root("the_mount_is_listed_with_its_layers_also_by_relative_paths", |place| {
        place.mount(&["a", "b"]);
        let one = listed(place).unwrap();
        assert_eq!(one["dead"], false);
        assert_eq!(one["upper"], place.at("upper").to_str().unwrap());
        assert_eq!(one["work"], place.at("work").to_str().unwrap());
        assert_eq!(one["lowers"][1], place.at("b").to_str().unwrap());
        assert!(place.run(&["list"]).contains(place.at("a").to_str().unwrap()));
        place.umount();
        assert_eq!(listed(place), None);
    });
}

#[test]
fn layers_and_mount_point_may_be_named_by_symbolic_links() {
    as_root("layers_and_mount_point_may_be_named_by_symbolic_links", |place| {
        place.write("real/a/f", "x");
        place.dirs(&["real/upper", "real/work", "merged"]);
        place.sh("ln -s real link; ln -s real/upper up; ln -s merged point");
        place.run(&["mount", "-o", "lowerdir=link/a,upperdir=up,workdir=link/work", "point"]);
        assert_eq!(place.read("merged/f"), "x");
        assert_eq!(listed(place).unwrap()["upper"], place.at("up").to_str().unwrap());
        let daemon = daemon_of(place);
        place.run(&["umount", "point"]);
        assert!(!lives(daemon));
    });
}

#[test]
fn unions_can_lie_on_each_other_but_not_as_an_upper_in_a_plyfs() {
    as_root("unions_can_lie_on_each_other_but_not_as_an_upper_in_a_plyfs", |place| {
        place.write("a/f", "x");
        place.write("a/d/g", "y");
        place.mount(&["a"]);
        place.dirs(&["upper2", "work2", "over", "merged/upper", "merged/work"]);
        let change = "cd over; echo more >> f; rm -r d; mkdir d; cat f; ls d; ls";
        place.run(&["mount", "-o", "lowerdir=merged,upperdir=upper2,workdir=work2", "over"]);
        assert_eq!(place.sh(change), "xmore\nd\nf\nupper\nwork\n");
        place.run(&["umount", "over"]);
        place.sh("rm -r upper2 work2; mkdir upper2 work2
                  mount -t overlay o -o lowerdir=merged,upperdir=upper2,workdir=work2 over");
        assert_eq!(place.sh(change), "xmore\nd\nf\nupper\nwork\n");
        let said = fail(&mut place.plyfs(&[
            "mount",
            "-o",
            "lowerdir=a,upperdir=merged/upper,workdir=merged/work",
            "upper2",
        ]));
        assert!(said.contains("is a union itself"), "{said}");
        // A kernel overlay below, as lower and as upper.
        place.dirs(&["third", "third-upper", "third-work", "over/upper2", "over/work2"]);
        place.run(&["mount", "-o", "lowerdir=over,upperdir=third-upper,workdir=third-work", "third"]);
        assert_eq!(
            place.sh("cd third; rm f; echo z > d/z; mv d e; ls; ls e"),
            "e\nupper\nupper2\nwork\nwork2\nz\n"
        );
        place.run(&["umount", "third"]);
        place.run(&["mount", "-o", "lowerdir=a,upperdir=over/upper2,workdir=over/work2", "third"]);
        assert_eq!(place.sh("cd third; rm f; echo z > d/z; rm d/g; ls; ls d"), "d\nz\n");
        place.run(&["umount", "third"]);
        place.sh("umount over");
        place.umount();
    });
}

#[test]
fn the_whole_machine_and_hundreds_of_layers_can_be_lowers() {
    as_root("the_whole_machine_and_hundreds_of_layers_can_be_lowers", |place| {
        place.dirs(&["upper", "work", "merged"]);
        place.run(&["mount", "-o", "lowerdir=/,upperdir=upper,workdir=work", "merged"]);
        place.sh(
            "test -d merged/etc; echo x > merged/etc/plyfs-test; test ! -e /etc/plyfs-test; ls merged/proc",
        );
        place.umount();
        assert_eq!(place.read("upper/etc/plyfs-test"), "x\n");
        place.sh("rm -r upper work");
        let layers: Vec<String> = (0..300).map(|number| format!("l/{number}")).collect();
        for layer in &layers {
            place.write(&format!("{layer}/{}", layer.replace('/', "-")), layer);
        }
        place.mount(&layers.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(names(&place.at("merged")).len(), 300);
        place.sh("cd merged; rm l-0; mv l-150 l-0; echo more >> l-299; test $(ls | wc -l) = 299");
        place.umount();
    });
}

#[test]
fn the_daemon_keeps_nothing_of_its_caller() {
    as_root("the_daemon_keeps_nothing_of_its_caller", |place| {
        // `run` returns only when nobody holds the pipes it reads any more.
        place.mount(&["a"]);
        let proc = Path::new("/proc").join(daemon_of(place).to_string());
        for number in 0..=2 {
            let to = std::fs::read_link(proc.join("fd").join(number.to_string())).unwrap();
            assert_eq!(to, Path::new("/dev/null"), "descriptor {number}");
        }
        assert_eq!(std::fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
        let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        assert_eq!(fields[3], daemon_of(place).to_string(), "it leads a session");
        assert_eq!(fields[4], "0", "it has no terminal");
        place.umount();
    });
}

#[test]
fn without_an_upper_the_mount_is_read_only_also_with_a_single_lower() {
    as_root("without_an_upper_the_mount_is_read_only_also_with_a_single_lower", |place| {
        place.write("a/f", "x");
        place.dirs(&["merged"]);
        place.run(&["mount", "-o", "lowerdir=a", "merged"]);
        assert_eq!(place.read("merged/f"), "x");
        let refused = std::fs::write(place.at("merged/g"), "y").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        place.umount();
    });
}

#[test]
fn the_same_upper_can_be_mounted_again_at_once() {
    as_root("the_same_upper_can_be_mounted_again_at_once", |place| {
        for round in 0..10 {
            place.mount(&["a"]);
            place.write(&format!("merged/{round}"), "x");
            if round % 2 == 0 {
                place.umount();
            } else {
                place.sh("umount --lazy merged");
            }
        }
        assert_eq!(names(&place.at("upper")).len(), 10);
    });
}

#[test]
fn a_mount_in_the_foreground_ends_with_a_signal_and_leaves_nothing_mounted() {
    as_root("a_mount_in_the_foreground_ends_with_a_signal_and_leaves_nothing_mounted", |place| {
        place.dirs(&["a", "merged"]);
        let mut command = place.plyfs(&["mount", "-f", "-o", "lowerdir=a", "merged"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        wait_until("the mount is there", || !place.mounts().is_empty());
        place.sh(&format!("kill -TERM {}", child.id()));
        assert!(child.wait().unwrap().success());
        assert_eq!(place.mounts(), [""; 0]);
    });
}

#[test]
fn unmounting_what_is_in_use_says_so_and_can_be_done_lazily() {
    as_root("unmounting_what_is_in_use_says_so_and_can_be_done_lazily", |place| {
        place.write("a/f", "x");
        place.mount(&["a"]);
        let held = std::fs::File::open(place.at("merged/f")).unwrap();
        assert!(fail(&mut place.plyfs(&["umount", "merged"])).contains("in use"));
        place.run(&["umount", "--lazy", "merged"]);
        assert_eq!(std::io::read_to_string(&held).unwrap(), "x", "who has a file open is served to the end");
        assert_eq!(place.mounts(), [""; 0]);
    });
}

#[test]
fn what_somebody_mounted_over_it_is_not_unmounted_in_its_place() {
    as_root("what_somebody_mounted_over_it_is_not_unmounted_in_its_place", |place| {
        place.mount(&["a"]);
        place.sh("mount -t tmpfs over merged");
        let said = fail(&mut place.plyfs(&["umount", "merged"]));
        assert!(said.contains("tmpfs"), "{said}");
        place.sh("umount merged");
        place.umount();
        assert_eq!(place.mounts(), [""; 0]);
    });
}

#[test]
fn a_mount_whose_daemon_was_killed_is_called_dead_and_can_be_unmounted() {
    as_root("a_mount_whose_daemon_was_killed_is_called_dead_and_can_be_unmounted", |place| {
        place.mount(&["a"]);
        let daemon = daemon_of(place);
        place.sh(&format!("kill -KILL {daemon}"));
        wait_until("the daemon is gone", || std::fs::read_dir(place.at("merged")).is_err());
        // The process ends a moment after its descriptors are closed.
        wait_until("the mount is called dead", || listed(place).unwrap()["dead"] == true);
        let target = place.at("merged");
        let advice = format!("dead; plyfs umount {}\n", target.display());
        assert!(place.run(&["list"]).contains(&advice), "{}", place.run(&["list"]));
        assert_eq!(
            fail(&mut place.plyfs(&["mount", "-o", "lowerdir=a", "merged"])),
            "plyfs: merged: a dead mount lies here; plyfs umount merged first"
        );
        place.umount();
        assert_eq!(place.mounts(), [""; 0]);
        place.mount(&["a"]);
        place.umount();
    });
}

#[test]
fn who_may_set_it_reads_further_ahead_than_a_fuse_file_system_does_of_itself() {
    as_root("who_may_set_it_reads_further_ahead_than_a_fuse_file_system_does_of_itself", |place| {
        place.mount(&["a"]);
        let device = rustix::fs::stat(place.at("merged")).unwrap().st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let setting = std::path::PathBuf::from(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
        if !met(&[Need::Writable(&setting)]) {
            return;
        }
        let kib: u64 = std::fs::read_to_string(&setting).unwrap().trim().parse().unwrap();
        assert!((256..=1024).contains(&kib), "{kib}");
    });
}

#[test]
fn what_was_moved_over_a_mount_is_not_taken_for_it() {
    as_root("what_was_moved_over_a_mount_is_not_taken_for_it", |place| {
        place.sh(
            "mkdir other; mount -t tmpfs none other; echo x > other/precious; mount --make-private other",
        );
        place.mount(&["a"]);
        place.sh("mount --move other merged");
        let said = fail(&mut place.plyfs(&["umount", "merged"]));
        assert!(said.contains("tmpfs"), "{said}");
        assert_eq!(place.read("merged/precious"), "x\n");
        place.sh("umount merged");
        place.umount();
    });
}
