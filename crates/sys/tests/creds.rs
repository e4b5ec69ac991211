//! Creating for somebody else: the ids and umask are theirs, the capabilities stay the mounter's, other threads see nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{mode_of, name, root_or_skip, scratch};
use plyfs_sys::creds::{self, Creds};
use plyfs_sys::{Errno, OFlags};

/// A field of the calling thread's status, for example `Uid` (real, effective, saved, file system).
fn status(field: &str) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let line = text.lines().find(|line| line.starts_with(&format!("{field}:"))).expect("the field");
    line.split_ascii_whitespace().skip(1).map(str::to_owned).collect()
}

/// Runs a test on a thread of its own: what it does to its credentials must not meet another test.
fn on_own_thread(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(test).join().expect("the test's thread");
}

#[test]
fn what_is_created_belongs_to_the_creator_and_capabilities_stay() {
    if !root_or_skip("change ids") {
        return;
    }
    on_own_thread(|| {
        let (temp, dir) = scratch();
        let prepared = creds::prepare_thread();
        assert!(prepared.private_umask && prepared.keeps_capabilities, "{prepared:?}");
        let capabilities = status("CapEff");
        creds::with_creator::<_, Errno>(1234, 4321, 0o027, || {
            assert_eq!(status("CapEff"), capabilities);
            assert_eq!((status("Uid")[3].as_str(), status("Gid")[3].as_str()), ("1234", "4321"));
            // The directory is root's and closed to others: only the capability lets this through.
            dir.chmod_self(0o700)?;
            dir.create_file(name("f"), OFlags::WRONLY, 0o666)?;
            dir.create_dir(name("d"), 0o777)
        })
        .expect("create");
        for (entry, mode) in [("f", 0o640), ("d", 0o750)] {
            let stat = dir.stat_at(name(entry)).expect("stat");
            assert_eq!((stat.uid, stat.gid, stat.permissions()), (1234, 4321, mode), "{entry}");
        }
        creds::assume_mounter().expect("restore");
        assert_eq!(status("Uid")[3], "0");
        dir.create_file(name("mine"), OFlags::WRONLY, 0o666).expect("create");
        assert_eq!(mode_of(&temp.path().join("mine")), 0o666);
        assert_eq!(dir.stat_at(name("mine")).expect("stat").uid, 0);
    });
}

#[test]
fn ids_stay_until_others_are_wanted_and_other_threads_keep_theirs() {
    if !root_or_skip("change ids") {
        return;
    }
    on_own_thread(|| {
        let others = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
                others.wait();
                others.wait();
                assert_eq!(status("Uid"), ["0", "0", "0", "0"]);
                assert_eq!(status("Umask"), ["0022"]);
            });
            creds::prepare_thread();
            others.wait();
            creds::with_creator::<_, Errno>(7, 8, 0o077, || Ok(())).expect("creator");
            assert_eq!(status("Uid")[3], "7", "restored lazily");
            assert_eq!(status("Umask"), ["0077"]);
            others.wait();
            creds::with_creator::<_, Errno>(9, 8, 0, || Ok(())).expect("creator");
            assert_eq!((status("Uid")[3].as_str(), status("Gid")[3].as_str()), ("9", "8"));
            assert_eq!(status("Umask"), ["0000"]);
            creds::assume_mounter().expect("restore");
            assert_eq!((status("Uid")[3].as_str(), status("Gid")[3].as_str()), ("0", "0"));
        });
    });
}

#[test]
fn nested_credentials_go_back_to_the_outer_ones() {
    if !root_or_skip("change ids") {
        return;
    }
    on_own_thread(|| {
        creds::with_creator::<_, Errno>(5, 6, 0o022, || {
            creds::with_mounter::<_, Errno>(|| {
                assert_eq!((status("Uid")[3].as_str(), status("Umask")[0].as_str()), ("0", "0000"));
                Ok(())
            })?;
            assert_eq!((status("Uid")[3].as_str(), status("Umask")[0].as_str()), ("5", "0022"));
            let inner = creds::with_creator::<(), _>(50, 60, 0, || Err(Errno::NOSPC));
            assert_eq!(inner, Err(Errno::NOSPC));
            assert_eq!((status("Uid")[3].as_str(), status("Gid")[3].as_str()), ("5", "6"));
            Ok(())
        })
        .expect("creator");
    });
}

#[test]
fn supplementary_groups_are_of_the_thread_and_go_back() {
    if !root_or_skip("change groups") {
        return;
    }
    on_own_thread(|| {
        let before = status("Groups");
        let creds = Creds { uid: 1, gid: 2, umask: 0 };
        creds::with_creds::<_, Errno>(creds, Some(&[10, 20]), || {
            assert_eq!(status("Groups"), ["10", "20"]);
            Ok(())
        })
        .expect("creds");
        assert_eq!(std::thread::spawn(|| status("Uid")).join().expect("thread")[1], "0");
        creds::with_creator::<_, Errno>(1, 2, 0, || {
            assert_eq!(status("Groups"), before, "not given means the mounter's");
            Ok(())
        })
        .expect("creator");
        let main = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = main.lines().find(|line| line.starts_with("Groups:")).expect("groups");
        assert_eq!(line.split_ascii_whitespace().skip(1).collect::<Vec<_>>(), before);
    });
}

#[test]
fn an_id_that_cannot_be_taken_is_an_error_and_nothing_runs() {
    on_own_thread(|| {
        let own = rustix::process::getegid().as_raw();
        let ran = creds::with_creator::<(), Errno>(u32::MAX, own, 0, || panic!("must not run"));
        assert_eq!(ran, Err(Errno::OVERFLOW));
    });
    if root_or_skip("become a user without the capability") {
        on_own_thread(|| {
            let user = rustix::process::Uid::from_raw(1000);
            rustix::thread::set_thread_res_uid(user, user, user).expect("uid");
            let ran = creds::with_creator::<(), Errno>(0, 0, 0, || panic!("must not run"));
            assert_eq!(ran, Err(Errno::PERM));
            assert_eq!(creds::with_creator::<_, Errno>(1000, 0, 0o022, || Ok(5)), Ok(5));
        });
    }
}

/// Runs by itself only inside the user namespace that the next test makes.
#[test]
fn inside_a_user_namespace_with_one_id() {
    if std::env::var_os("PLYFS_TEST_IN_USERNS").is_none() {
        eprintln!("skipped: runs as a part of `an_unmapped_id_is_eoverflow`");
        return;
    }
    assert!(!creds::in_initial_userns());
    assert!(!creds::has_cap_sys_admin_init());
    assert!(creds::has_cap_sys_admin());
    let prepared = creds::prepare_thread();
    assert!(prepared.keeps_capabilities, "a user namespace gives all capabilities in it");
    for (uid, gid) in [(1234, 0), (0, 1234)] {
        let ran = creds::with_creator::<(), Errno>(uid, gid, 0, || panic!("must not run"));
        assert_eq!(ran, Err(Errno::OVERFLOW), "{uid}:{gid}");
    }
    let (_temp, dir) = scratch();
    creds::with_creator::<_, Errno>(0, 0, 0o077, || dir.create_dir(name("d"), 0o777)).expect("create");
    assert_eq!(dir.stat_at(name("d")).expect("stat").permissions(), 0o700);
}

#[test]
fn an_unmapped_id_is_eoverflow() {
    let test = std::env::current_exe().expect("this program");
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(test)
        .args(["--exact", "inside_a_user_namespace_with_one_id", "--nocapture"])
        .env("PLYFS_TEST_IN_USERNS", "1")
        .output();
    match child {
        Err(error) => eprintln!("skipped: unshare(1) cannot be run: {error}"),
        Ok(output) if output.status.code() == Some(1) && output.stdout.is_empty() => {
            eprintln!("skipped: no user namespace: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

#[test]
fn a_panic_inside_leaves_the_thread_usable() {
    on_own_thread(|| {
        let caught = std::panic::catch_unwind(|| {
            creds::with_creator::<(), Errno>(rustix::process::geteuid().as_raw(), 0, 0o777, || {
                std::panic::resume_unwind(Box::new("on purpose"))
            })
        });
        if !creds::prepare_thread().private_umask || rustix::process::getegid().as_raw() != 0 {
            eprintln!("the closure did not run: another group is not permitted here");
        } else {
            assert!(caught.is_err());
        }
        creds::assume_mounter().expect("restore");
        assert_eq!(status("Umask"), ["0000"]);
        let temp = tempfile::tempdir().expect("tempdir");
        assert_eq!(temp.path().metadata().expect("stat").uid(), rustix::process::geteuid().as_raw());
    });
}
