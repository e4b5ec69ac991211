//! Containers with a process, through crun or runc where one is installed; and what hostile images try there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::{Home, Raw, dir, file, is_root, symlink, tar};
use plyfs_store::{Backend, Network, Options, RunOptions, State, Store, Volume};

/// Whether containers can run here: root, a runtime, and a static busybox to run.
fn can_run() -> bool {
    let has = |ps: &[&str]| ps.iter().any(|p| Path::new(p).exists());
    let ok = has(&["/usr/bin/crun", "/usr/sbin/runc", "/usr/bin/runc"]) && has(&["/bin/busybox"]);
    if !ok {
        eprintln!("skipped: needs crun or runc, and /bin/busybox (Debian's busybox-static)");
    }
    is_root() && ok
}

fn busybox() -> Vec<Raw> {
    let mut v = vec![dir("bin"), dir("etc"), dir("proc"), dir("dev"), dir("sys"), dir("tmp").mode(0o1777)];
    v.push(Raw { data: fs::read("/bin/busybox").unwrap(), ..file("bin/busybox", "") }.mode(0o755));
    v.extend(
        ["sh", "id", "cat", "ls", "sleep", "touch", "env", "pwd"]
            .iter()
            .map(|n| symlink(&format!("bin/{n}"), "busybox")),
    );
    v.push(file("etc/passwd", "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/tmp:/bin/sh\n"));
    v.push(file("etc/group", "root:x:0:\nwww:x:34:\nmore:x:50:www\n"));
    v
}

fn home() -> Home {
    let h = Home::new();
    h.import(&tar(&busybox()), "box:1").unwrap();
    h
}

/// Runs a shell command and returns exit code and output.
fn sh(h: &Home, script: &str, o: RunOptions) -> (i32, String) {
    let o = RunOptions { cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..o };
    let c = h.store.prepare("box:1", &o).unwrap();
    let log = h.path("log");
    fs::write(&log, "").unwrap();
    let code = h.store.supervise(&c.id, Some(&log)).unwrap();
    (code, fs::read_to_string(&log).unwrap())
}

#[test]
fn a_container_runs_as_its_image_and_options_say() {
    if !can_run() {
        return;
    }
    let h = home();
    let o = |f: fn(&mut RunOptions)| {
        let mut o = RunOptions { remove: true, ..RunOptions::default() };
        f(&mut o);
        o
    };
    assert_eq!(sh(&h, "exit 7", o(|_| ())).0, 7);
    assert_eq!(
        sh(&h, "id -u; id -g; id -G", o(|o| o.user = Some("www".into()))),
        (0, "33\n34\n34 50\n".into())
    );
    assert_eq!(
        sh(
            &h,
            "pwd; echo $A",
            o(|o| {
                o.workdir = Some("/tmp".into());
                o.env = vec!["A=b c".into()]
            })
        ),
        (0, "/tmp\nb c\n".into())
    );
    assert_ne!(sh(&h, "touch /x", o(|o| o.read_only = true)).0, 0);
    let (code, text) = sh(&h, "ls /sys/class/net", o(|_| ()));
    assert_eq!((code, text.trim()), (0, "lo"), "the network is its own");
    assert!(sh(&h, "cat /proc/net/dev", o(|o| o.network = Network::Host)).0 == 0);
    assert!(h.store.containers().unwrap().is_empty(), "--rm");
    let v = h.path("vol");
    fs::create_dir(&v).unwrap();
    fs::write(v.join("f"), "shared").unwrap();
    let ro = Volume { source: v.clone(), target: "/vol".into(), read_only: true };
    let (code, text) = sh(
        &h,
        "cat /vol/f; touch /vol/g",
        RunOptions { volumes: vec![ro], remove: true, ..RunOptions::default() },
    );
    assert!(code != 0 && text.starts_with("shared"), "{text}");
}

#[test]
fn what_a_container_wrote_stays_until_it_is_removed() {
    if !can_run() {
        return;
    }
    let h = home();
    assert_eq!(sh(&h, "echo x > /new", RunOptions { name: Some("c".into()), ..RunOptions::default() }).0, 0);
    let c = h.store.container("c").unwrap();
    assert_eq!(h.store.state(&c).unwrap(), State::Exited(0));
    assert!(!h.store.is_mounted(&c).unwrap());
    assert!(h.store.diff("c").unwrap().iter().any(|c| c.path == b"/new"));
    h.store.remove_container("c", false).unwrap();
}

/// Does something beside a running container "c", and stops it.
fn while_sleeping(h: &Home, body: impl FnOnce()) {
    let o = RunOptions {
        name: Some("c".into()),
        cmd: ["sleep", "100"].map(str::to_owned).to_vec(),
        ..RunOptions::default()
    };
    let c = h.store.prepare("box:1", &o).unwrap();
    let log = h.path("log");
    std::thread::scope(|s| {
        s.spawn(|| h.store.supervise(&c.id, Some(&log)).unwrap());
        for _ in 0..500 {
            if matches!(h.store.state(&c).unwrap(), State::Running(_)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        body();
        h.store.stop("c", Duration::from_millis(200)).unwrap();
    });
}

#[test]
fn a_running_container_takes_commands_and_is_stopped() {
    if !can_run() {
        return;
    }
    let h = home();
    while_sleeping(&h, || {
        let exec = ["/bin/sh", "-c", "exit 9"].map(str::to_owned);
        assert_eq!(h.store.exec("c", &exec, &RunOptions::default()).unwrap(), 9);
        assert_eq!(h.store.remove_container("c", false).unwrap_err().kind(), "in-use");
    });
    assert!(matches!(h.store.state(&h.store.container("c").unwrap()).unwrap(), State::Exited(_)));
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_may_not_be_executed_126() {
    if !can_run() {
        return;
    }
    let h = home();
    let words = |w: &str| RunOptions { cmd: vec![w.into()], ..RunOptions::default() };
    for (cmd, code) in [("nosuch", 127), ("/bin/nosuch", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let e = h.store.prepare("box:1", &words(cmd)).unwrap_err();
        assert_eq!((e.kind(), e.exit_code()), ("command", code), "{e}");
        assert!(e.to_string().contains(cmd) && !e.to_string().contains('\n'), "{e}");
        assert!(h.store.containers().unwrap().is_empty(), "nothing is left of it");
    }
    while_sleeping(&h, || {
        for (cmd, code) in [("nosuch", 127), ("/etc/passwd", 126)] {
            let e = h.store.exec("c", &[cmd.into()], &RunOptions::default()).unwrap_err();
            assert_eq!(e.exit_code(), code, "{e}");
        }
        let o = RunOptions { env: vec!["PATH=/etc:/bin".into()], ..RunOptions::default() };
        assert_eq!(h.store.exec("c", &["pwd".into()], &o).unwrap(), 0);
    });
}

/// Case 15: the runtime would mount /proc where the link points.
#[test]
fn mountpoints_that_are_symlinks_are_refused() {
    if !can_run() {
        return;
    }
    for d in ["proc", "dev", "sys"] {
        let h = Home::new();
        let mut entries = busybox();
        entries.retain(|e| e.name != d.as_bytes());
        entries.push(symlink(d, "/etc"));
        h.import(&tar(&entries), "evil:1").unwrap();
        let o = RunOptions { cmd: vec!["/bin/id".into()], ..RunOptions::default() };
        let e = h.store.prepare("evil:1", &o).unwrap_err();
        assert!(e.kind() == "invalid" && e.to_string().contains(d), "{e}");
        assert!(h.store.containers().unwrap().is_empty(), "nothing is left of it");
    }
}

/// Case 14: a helper starts with its three standard descriptors and no other.
#[test]
fn helpers_inherit_no_descriptors() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    h.import(&tar(&[dir("d")]), "x:1").unwrap();
    h.store.create("x:1", Some("c"), None).unwrap();
    let (helper, seen) = (h.path("helper"), h.path("seen"));
    fs::write(&helper, format!("#!/bin/sh\nls /proc/$$/fd > {}\nexit 3\n", seen.display())).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let store = Store::open(&h.root(), Options { fuse_program: Some(helper), ..Options::default() }).unwrap();
    assert_eq!(store.mount("c", Backend::Fuse).unwrap_err().kind(), "program");
    let fds: Vec<u32> = fs::read_to_string(&seen).unwrap().lines().map(|l| l.parse().unwrap()).collect();
    // 10 and above are the shell's own, for the script and the redirection.
    assert!(fds.iter().all(|n| *n < 3 || *n >= 10 || *n == 255), "{fds:?}");
}

/// Case 8: a directory in the container is swapped for a link to the outside, over and over, while files are
/// copied in and out.
#[test]
fn copying_in_and_out_never_follows_a_link_out_of_the_container() {
    if !is_root() {
        return;
    }
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    let h = Home::new();
    h.import(&tar(&[dir("etc")]), "x:1").unwrap();
    h.store.create("x:1", Some("c"), None).unwrap();
    let m = h.store.mount("c", Backend::Kernel).unwrap();
    // Made here: the kernel does not rename a lower layer's directory.
    fs::create_dir_all(m.join("d/sub")).unwrap();
    fs::write(m.join("d/sub/f"), "inside").unwrap();
    let outside = h.path("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("sub/f"), "secret").unwrap();
    std::os::unix::fs::symlink(&outside, m.join("link")).unwrap();
    let mine = h.path("mine");
    fs::write(&mine, "pwned").unwrap();
    let stop = AtomicBool::new(false);
    let mut copied = 0;
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, m.join("d"), CWD, m.join("link"), RenameFlags::EXCHANGE).unwrap();
            }
        });
        for n in 0..100 {
            let out = h.path(&format!("out{n}"));
            if h.store.copy("c:/d/sub/f", out.to_str().unwrap()).is_ok() {
                assert_eq!(fs::read_to_string(&out).unwrap(), "inside");
                copied += 1;
            }
            let r = h.store.copy(mine.to_str().unwrap(), "c:/d/sub/g");
            assert!(r.is_ok() || matches!(r.unwrap_err().kind(), "invalid" | "io"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(copied > 0, "some were made between two swaps");
    assert_eq!(fs::read_dir(outside.join("sub")).unwrap().count(), 1, "nothing was written outside");
    h.store.unmount("c", true).unwrap();
}
