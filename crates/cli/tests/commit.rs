//! `plyfs commit`: afterwards the directory is what the union was, and nothing else was touched.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::{Place, as_root, fail, names};
use plyfs_testkit::compare::{Difference, compare};
use plyfs_testkit::snapshot::{Clock, Snapshot, View};

/// A tree with something of everything.
const TREE: &str = "
    mkdir -p a/etc a/dir/sub a/gone/deep a/opaque/old a/swap1 a/swap2
    echo a > a/etc/f; echo b > a/etc/mode; echo c > a/dir/one; echo d > a/dir/sub/two; echo e > a/gone/deep/x
    echo f > a/opaque/y; echo 1 > a/swap1/one; echo 2 > a/swap2/two; echo g > a/movable; echo h > a/file-to-dir
    mkdir a/dir-to-file; ln a/etc/f a/etc/hard; ln -s etc a/link; setfattr -n user.kept -v yes a/etc/f
    chmod 2775 a/dir; touch -d '2001-02-03 04:05:06.789' a/etc/f a/dir/sub";

/// Something of everything done to it.
const WORK: &str = "
    cd merged
    echo more >> etc/f; chmod 4711 etc/mode; chown 12:34 etc/mode; mv dir dir2; rm dir2/one; echo n > dir2/new
    mv dir2/sub sub; rm -r gone; rm -r opaque; mkdir opaque; echo o > opaque/new
    mv swap1 swap0; mv swap2 swap1; mv swap0 swap2; mv movable opaque/moved; rm file-to-dir; mkdir file-to-dir
    rmdir dir-to-file; echo t > dir-to-file; ln -sfn elsewhere link; mkfifo fifo; mknod null c 1 3
    echo l > l1; ln l1 l2; ln l1 opaque/l3; setfattr -n user.new -v 1 l1; truncate -s 1M sparse
    printf x | dd of=sparse bs=1 seek=500000 conv=notrunc status=none; touch -d '1969-07-20' l1
    setfattr -x user.kept etc/f; chmod 1777 sub";

/// The tree as it is seen, but for what a copy need not keep: inode numbers are classes already, times of reading and of
/// changing the inode are its own.
fn seen(path: &std::path::Path) -> Snapshot {
    Snapshot::take(path, View::Merged, Clock::never()).unwrap()
}

fn assert_same(union: &Snapshot, committed: &Snapshot) {
    let own = ["atime", "ctime"];
    let directories =
        |path: &[u8]| union.entries.get(path).is_some_and(|shot| shot.mode & 0o170_000 == 0o040_000);
    let all = compare(union, committed);
    // The union counts one link for a merged directory, the links of the layer for a file whose other name was copied up,
    // and the root's own times and owner are its mounter's.
    let counted =
        |one: &Difference| one.field == "nlink" && (directories(&one.path) || one.path == b"etc/hard");
    let real =
        all.into_iter().filter(|one| !own.contains(&one.field) && !one.path.is_empty() && !counted(one));
    let real: Vec<String> = real.map(|one| one.to_string()).collect();
    assert!(real.is_empty(), "{}", real.join("\n"));
}

#[test]
fn the_directory_becomes_what_the_union_was() {
    as_root("the_directory_becomes_what_the_union_was", |place| {
        place.sh(TREE);
        place.mount(&["a"]);
        place.sh(WORK);
        let union = seen(&place.at("merged"));
        place.umount();
        let said = place.run(&["commit", "upper", "--onto", "a", "--yes"]);
        assert!(said.contains("R /dir -> /dir2") && said.contains("changes made in a"), "{said}");
        assert_same(&union, &seen(&place.at("a")));
        assert!(!names(&place.at("a")).contains(&".plyfs-commit".to_owned()));
        let sparse = place.sh("stat -c %b a/sparse");
        assert!(sparse.trim().parse::<u64>().unwrap() < 100, "holes are kept: {sparse} blocks");
    });
}

#[test]
fn a_metadata_only_upper_is_committed_without_its_data() {
    as_root("a_metadata_only_upper_is_committed_without_its_data", |place| {
        place.sh("mkdir -p a/d upper work merged; echo data > a/d/f; echo more > a/d/g");
        place.run(&["mount", "-o", "lowerdir=a,upperdir=upper,workdir=work,metacopy=on", "merged"]);
        place.sh("cd merged; chmod 600 d/f; mv d/g renamed; chown 5 renamed");
        let union = seen(&place.at("merged"));
        place.umount();
        place.run(&["commit", "upper", "--onto", "a", "--yes"]);
        assert_same(&union, &seen(&place.at("a")));
        assert_eq!(place.read("a/d/f"), "data\n");
        assert_eq!(place.read("a/renamed"), "more\n");
    });
}

#[test]
fn a_dry_run_changes_nothing() {
    as_root("a_dry_run_changes_nothing", |place| {
        place.sh(TREE);
        place.mount(&["a"]);
        place.sh(WORK);
        place.umount();
        let before = seen(&place.at("a"));
        assert!(place.run(&["commit", "upper", "--onto", "a", "--dry-run"]).contains("would be made in a"));
        assert_eq!(
            compare(&before, &seen(&place.at("a"))).into_iter().filter(|one| one.field != "atime").count(),
            0
        );
    });
}

#[test]
fn a_commit_that_was_killed_is_finished_by_running_it_again() {
    as_root("a_commit_that_was_killed_is_finished_by_running_it_again", |place| {
        place.sh(TREE);
        place.mount(&["a"]);
        place.sh(WORK);
        let union = seen(&place.at("merged"));
        place.umount();
        place.sh("cp -a a pristine");
        for delay in [5, 20, 60, 120, 200, 300] {
            place.sh("rm -rf a; cp -a pristine a");
            let mut command = place.plyfs(&["commit", "upper", "--onto", "a", "--yes"]);
            let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_micros(delay * 50));
            // It may have ended already: then there is nothing to kill, and the commit must be whole.
            drop(child.kill());
            child.wait().unwrap();
            place.run(&["commit", "upper", "--onto", "a", "--yes"]);
            assert_same(&union, &seen(&place.at("a")));
        }
    });
}

#[test]
fn nothing_outside_the_directory_is_touched_through_a_symbolic_link() {
    let place = Place::new();
    place.sh("mkdir -p a outside/inner upper/way/inner upper/also; echo precious > outside/inner/f
              ln -s ../outside a/way; ln -s /etc a/also; echo overwritten > upper/way/inner/f; echo x > upper/also/hostname");
    place.run(&["commit", "upper", "--onto", "a", "--yes", "--ignore-owner"]);
    assert_eq!(place.read("outside/inner/f"), "precious\n");
    assert_eq!(place.read("a/way/inner/f"), "overwritten\n");
    assert!(!place.at("a/way").is_symlink());
}

#[test]
fn two_commits_at_once_are_refused() {
    let place = Place::new();
    place.write("upper/f", "x");
    place.dirs(&["a/.plyfs-commit"]);
    let held = std::fs::File::open(place.at("a/.plyfs-commit")).unwrap();
    held.lock().unwrap();
    let said = common::fail(
        place
            .plyfs(&["commit", "upper", "--onto", "a", "--yes", "--ignore-owner"])
            .stdout(std::process::Stdio::null()),
    );
    assert!(said.contains("another plyfs commit"), "{said}");
}

#[test]
fn a_target_that_is_the_upper_or_lies_in_it_is_refused() {
    let place = Place::new();
    place.dirs(&["upper/d/target"]);
    place.write("upper/f", "x");
    for onto in ["upper", "upper/d", "upper/d/target", "upper/d/../d/target"] {
        let said =
            common::fail(&mut place.plyfs(&["commit", "upper", "--onto", onto, "--yes", "--ignore-owner"]));
        assert!(said.contains("lies in the upper"), "{onto}: {said}");
    }
    assert_eq!(place.sh("find upper").lines().count(), 4);
}

#[test]
fn a_target_in_the_upper_is_refused_through_a_bind_mount_too() {
    as_root("a_target_in_the_upper_is_refused_through_a_bind_mount_too", |place| {
        place.dirs(&["upper/d/target", "whole", "part"]);
        place.sh("echo x > upper/f; mount --bind upper whole; mount --bind upper/d/target part");
        for (upper, onto) in [("upper", "whole/d"), ("whole", "upper/d/target"), ("upper", "part")] {
            let said = common::fail(
                place
                    .plyfs(&["commit", upper, "--onto", onto, "--yes", "--ignore-owner"])
                    .stdout(std::process::Stdio::null()),
            );
            assert!(said.contains("lies in the upper"), "{onto}: {said}");
        }
        assert_eq!(place.sh("find upper").lines().count(), 4, "nothing was written");
        place.sh("umount whole part");
    });
}

/// A commit that must be refused with these words, and leave the target empty.
fn refused(place: &Place, words: &str) {
    let arguments = ["commit", "upper", "--onto", "target", "--yes", "--ignore-owner"];
    let said = common::fail(place.plyfs(&arguments).stdout(std::process::Stdio::null()));
    assert!(said.contains(words), "{said}");
    assert_eq!(common::names(&place.at("target")), [""; 0]);
}

#[test]
fn an_upper_that_uses_the_name_under_which_a_commit_prepares_is_refused() {
    let place = Place::new();
    place.dirs(&["target"]);
    place.write("upper/d/.plyfs-commit", "deeper it is a name like any other");
    for make in ["mkdir upper/.plyfs-commit", "touch upper/.plyfs-commit"] {
        place.sh(make);
        refused(&place, "/.plyfs-commit, the name under which a commit prepares");
        place.sh("rm -r upper/.plyfs-commit");
    }
    place.run(&["commit", "upper", "--onto", "target", "--yes", "--ignore-owner"]);
    assert!(place.at("target/d/.plyfs-commit").exists());
}

#[test]
fn what_is_mounted_in_an_upper_is_neither_committed_nor_compared() {
    as_root("what_is_mounted_in_an_upper_is_neither_committed_nor_compared", |place| {
        place.dirs(&["target", "upper/d/m"]);
        place.write("upper/d/f", "x");
        for (mount, at) in [
            ("mount -t tmpfs none", "upper/d/m"),
            ("mount --bind target", "upper/d/m"),
            ("mount --bind upper/d/f", "upper/d/f"),
        ] {
            place.sh(&format!("{mount} {at}"));
            let path = at.strip_prefix("upper").unwrap();
            refused(place, &format!("{path}: something is mounted here"));
            let diff = ["diff", "upper", "--lower", "target"];
            let said = common::fail(place.plyfs(&diff).stdout(std::process::Stdio::null()));
            assert!(said.contains("something is mounted here"), "{said}");
            place.sh(&format!("umount {at}"));
        }
        place.run(&["commit", "upper", "--onto", "target", "--yes", "--ignore-owner"]);
    });
}

#[test]
fn an_upper_that_is_mounted_is_refused_until_it_is_unmounted() {
    as_root("an_upper_that_is_mounted_is_refused_until_it_is_unmounted", |place| {
        place.mount(&["a"]);
        place.sh("echo x > merged/f");
        let arguments = ["commit", "upper", "--onto", "a", "--yes"];
        let said = common::fail(&mut place.plyfs(&arguments));
        assert!(said.contains("upper: in use by a mount"), "{said}");
        assert!(place.run(&["commit", "upper", "--onto", "a", "--dry-run"]).contains("A /f"));
        place.umount();
        place.run(&arguments);
        assert_eq!(place.read("a/f"), "x\n");
    });
}

#[test]
fn what_was_made_without_root_gives_no_file_of_the_machine_to_its_maker() {
    as_root("what_was_made_without_root_gives_no_file_of_the_machine_to_its_maker", |place| {
        place.sh(
            "mkdir -p a/etc upper/etc; echo old > a/etc/passwd; echo his > a/etc/his; chown 77:78 a/etc/his
                  echo new > upper/etc/passwd; chmod 6755 upper/etc/passwd; echo more > upper/etc/his
                  echo x > upper/etc/new; chown -R 4321:4321 upper; setfattr -n user.overlay.uuid -v x upper",
        );
        for extra in ["--yes", "--dry-run"] {
            let said = common::fail(&mut place.plyfs(&["commit", "upper", "--onto", "a", extra]));
            assert!(said.contains("--ignore-owner") && said.contains("by user 4321"), "{said}");
        }
        place.run(&["commit", "upper", "--onto", "a", "--yes", "--ignore-owner"]);
        let owners = place.sh("cd a; stat -c '%n %u:%g %a' etc etc/*");
        assert_eq!(owners, "etc 0:0 755\netc/his 77:78 644\netc/new 0:0 644\netc/passwd 0:0 755\n");
        assert_eq!(place.read("a/etc/passwd"), "new\n");
    });
}

#[test]
fn what_root_made_over_a_users_directory_is_committed_with_its_owners() {
    as_root("what_root_made_over_a_users_directory_is_committed_with_its_owners", |place| {
        place.sh("mkdir a; chown 77 a");
        place.mount(&["a"]);
        place.sh("echo x > merged/f; chown 77 merged merged/f");
        place.umount();
        place.run(&["commit", "upper", "--onto", "a", "--yes"]);
        assert_eq!(place.sh("stat -c %u a/f"), "77\n");
    });
}

#[test]
fn a_name_of_the_users_own_where_a_commit_prepares_is_refused_and_kept() {
    let place = Place::new();
    place.write("upper/f", "x");
    place.dirs(&["elsewhere", "a"]);
    let arguments = ["commit", "upper", "--onto", "a", "--yes", "--ignore-owner"];
    let refused = || {
        let mut command = place.plyfs(&arguments);
        common::fail(command.stdout(std::process::Stdio::null()))
    };
    for own in [
        "mkdir -p a/.plyfs-commit/mine; echo x > a/.plyfs-commit/mine/f",
        "mkdir a/.plyfs-commit; echo x > a/.plyfs-commit/upper",
        "mkdir a/.plyfs-commit; ln -s elsewhere a/.plyfs-commit/upper; echo x > a/.plyfs-commit/mine",
        "ln -s ../elsewhere a/.plyfs-commit",
        "echo x > a/.plyfs-commit",
    ] {
        place.sh(own);
        let before = place.sh("find a elsewhere");
        let said = refused();
        assert!(said.contains(".plyfs-commit in the target is") && said.contains("rename it"), "{said}");
        assert_eq!(place.sh("find a elsewhere"), before, "{own}");
        place.sh("rm -r a/.plyfs-commit");
    }
    place.sh("mkdir a/.plyfs-commit");
    place.run(&arguments);
    assert_eq!(place.read("a/f"), "x");
}

#[test]
fn a_commit_that_cannot_be_finished_because_its_upper_is_gone_says_so() {
    let place = Place::new();
    place.write("upper/f", "x");
    place.sh("mkdir -p a/.plyfs-commit; ln -s '1:2:3 /no/such/upper' a/.plyfs-commit/upper");
    let arguments = ["commit", "upper", "--onto", "a", "--yes", "--ignore-owner"];
    let said = common::fail(place.plyfs(&arguments).stdout(std::process::Stdio::null()));
    assert!(
        said.contains("/no/such/upper to this directory was interrupted, and that upper is gone"),
        "{said}"
    );
    place.sh("rm -r a/.plyfs-commit");
    place.run(&arguments);
}

#[test]
fn what_is_mounted_below_a_deleted_directory_is_not_deleted_with_it() {
    as_root("what_is_mounted_below_a_deleted_directory_is_not_deleted_with_it", |place| {
        place.sh("mkdir -p t/dir/mnt u; touch u/.wh.dir; mount -t tmpfs none t/dir/mnt; echo x > t/dir/mnt/precious");
        for _ in 0..2 {
            let said = fail(&mut place.plyfs(&["commit", "u", "--onto", "t", "--yes"]));
            assert!(said.contains("/dir: ") && said.contains("busy"), "{said}");
            assert_eq!(place.read("t/dir/mnt/precious"), "x\n");
        }
        place.sh("umount t/dir/mnt");
        place.run(&["commit", "u", "--onto", "t", "--yes"]);
        assert!(names(&place.at("t")).is_empty());
    });
}

#[test]
fn what_another_user_has_put_in_the_place_of_a_commit_is_not_believed() {
    as_root("what_another_user_has_put_in_the_place_of_a_commit_is_not_believed", |place| {
        place.sh("mkdir -p t/.plyfs-commit u; echo x > u/f; chown 1234 t/.plyfs-commit");
        let said = fail(&mut place.plyfs(&["commit", "u", "--onto", "t", "--yes"]));
        assert!(said.contains(".plyfs-commit") && said.contains("another user"), "{said}");
        assert_eq!(names(&place.at("t")), [".plyfs-commit"]);
    });
}
