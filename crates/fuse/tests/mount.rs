//! A real mount, served by this crate: what a program sees, and how a session begins and ends.
//!
//! Needs `/dev/fuse`, and CAP_SYS_ADMIN or fusermount3. Where they are missing each test says so and passes, unless
//! `PLYFS_TESTS_STRICT=1`. Run by root, the tests run a second time in a user namespace and a third time as an ordinary
//! user, by this program calling itself.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs_core::{Overlay, Settings};
use plyfs_format::StackSpec;
use plyfs_fuse::{MountOptions, Running, Session};
use tempfile::TempDir;

/// Set where the tests run as somebody else than who started them.
const AGAIN: &str = "PLYFS_TESTS_AGAIN";

/// A mount of one lower and one upper, and the directories it is made of.
struct Fixture {
    running: Option<Running>,
    root: TempDir,
}

impl Fixture {
    /// `None` where mounting is not possible.
    fn new(prepare: impl FnOnce(&Path), options: &MountOptions) -> Option<Self> {
        let root = tempfile::tempdir().expect("temporary directory");
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(root.path().join(name)).expect("mkdir");
        }
        prepare(&root.path().join("lower"));
        let mut fixture = Self { running: None, root };
        fixture.mount(options)?;
        Some(fixture)
    }

    fn mount(&mut self, options: &MountOptions) -> Option<()> {
        self.running = Some(self.session(options)?.spawn().expect("threads"));
        Some(())
    }

    fn session(&self, options: &MountOptions) -> Option<Session> {
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.path("lower").display(),
            self.path("upper").display(),
            self.path("work").display()
        );
        let parsed = StackSpec::parse(&[layers]).expect("options");
        let overlay = Overlay::assemble(&parsed.spec, &Settings::default()).expect("assemble");
        let options = MountOptions { allow_other: is_root(), ..options.clone() };
        match Session::mount(overlay, &self.path("merged"), &options) {
            Ok(session) => Some(session),
            Err(error) => {
                assert!(std::env::var_os("PLYFS_TESTS_STRICT").is_none(), "cannot mount: {error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn merged(&self, name: &str) -> PathBuf {
        self.path("merged").join(name)
    }

    fn unmount(&mut self) {
        let running = self.running.take().expect("mounted");
        running.unmounter().unmount_or_detach();
        running.join().expect("served to the end");
    }
}

fn each_way(test: impl Fn(&MountOptions)) {
    let passthrough = MountOptions::default();
    let through_daemon = MountOptions { passthrough: false, writeback: false, ..MountOptions::default() };
    let writeback = MountOptions { passthrough: false, ..MountOptions::default() };
    let plain_threads = MountOptions { threads: Some(3), ..MountOptions::default() };
    for options in [passthrough, through_daemon, writeback, plain_threads] {
        eprintln!("with {options:?}");
        test(&options);
    }
}

#[test]
fn what_is_written_is_read_back_and_the_lower_stays() {
    each_way(|options| {
        let Some(mut fixture) =
            Fixture::new(|lower| fs::write(lower.join("file"), "lower").expect("write"), options)
        else {
            return;
        };
        let file = fixture.merged("file");
        assert_eq!(fs::read(&file).expect("read"), b"lower");
        OpenOptions::new().append(true).open(&file).expect("open").write_all(b" and upper").expect("append");
        assert_eq!(fs::read(&file).expect("read"), b"lower and upper");
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        fs::write(fixture.merged("large"), &data).expect("write");
        assert!(fs::read(fixture.merged("large")).expect("read") == data);
        fixture.unmount();
        assert_eq!(fs::read(fixture.path("lower/file")).expect("read"), b"lower");
        assert_eq!(fs::read(fixture.path("upper/file")).expect("read"), b"lower and upper");
        assert!(fs::read(fixture.path("upper/large")).expect("read") == data);
    });
}

#[test]
fn a_descriptor_open_on_a_lower_file_sees_what_another_writes_and_the_lower_does_not() {
    each_way(|options| {
        let Some(mut fixture) =
            Fixture::new(|lower| fs::write(lower.join("file"), "lower data").expect("write"), options)
        else {
            return;
        };
        let reader = File::open(fixture.merged("file")).expect("open");
        let mut buffer = [0; 5];
        reader.read_exact_at(&mut buffer, 0).expect("read");
        let writer = OpenOptions::new().read(true).write(true).open(fixture.merged("file")).expect("open");
        writer.write_all_at(b"UPPER", 0).expect("write");
        reader.read_exact_at(&mut buffer, 0).expect("read");
        assert_eq!(&buffer, b"UPPER");
        drop(reader);
        // Passthrough now, if it is allowed at all.
        drop(writer);
        let writer = OpenOptions::new().read(true).write(true).open(fixture.merged("file")).expect("open");
        let reader = File::open(fixture.merged("file")).expect("open");
        writer.write_all_at(b"again", 0).expect("write");
        reader.read_exact_at(&mut buffer, 0).expect("read");
        assert_eq!(&buffer, b"again");
        drop((reader, writer));
        fixture.unmount();
        assert_eq!(fs::read(fixture.path("lower/file")).expect("read"), b"lower data");
        assert_eq!(fs::read(fixture.path("upper/file")).expect("read"), b"again data");
    });
}

#[test]
fn names_come_and_go_as_in_any_directory() {
    each_way(|options| {
        let prepare = |lower: &Path| {
            fs::create_dir(lower.join("dir")).expect("mkdir");
            fs::write(lower.join("dir/inner"), "x").expect("write");
            fs::write(lower.join("gone"), "x").expect("write");
            std::os::unix::fs::symlink("dir/inner", lower.join("link")).expect("symlink");
        };
        let Some(fixture) = Fixture::new(prepare, options) else { return };
        let list = |name: &str| {
            let mut names: Vec<_> = fs::read_dir(fixture.merged(name))
                .expect("list")
                .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(list(""), ["dir", "gone", "link"]);
        assert_eq!(
            fs::metadata(fixture.merged("missing")).map_err(|e| e.kind()).err(),
            Some(io::ErrorKind::NotFound)
        );
        fs::write(fixture.merged("missing"), "now").expect("create over a remembered absence");
        fs::remove_file(fixture.merged("gone")).expect("unlink");
        assert!(!fixture.merged("gone").exists());
        fs::rename(fixture.merged("missing"), fixture.merged("dir/moved")).expect("rename");
        fs::create_dir(fixture.merged("new")).expect("mkdir");
        fs::hard_link(fixture.merged("dir/moved"), fixture.merged("hard")).expect("link");
        assert_eq!(fs::metadata(fixture.merged("hard")).expect("stat").nlink(), 2);
        assert_eq!(list(""), ["dir", "hard", "link", "new"]);
        assert_eq!(list("dir"), ["inner", "moved"]);
        assert_eq!(fs::read(fixture.merged("link")).expect("through the link"), b"x");
        fs::remove_dir(fixture.merged("new")).expect("rmdir");
        assert_eq!(fs::remove_dir(fixture.merged("dir")).map_err(|e| e.raw_os_error()), Err(Some(39)));
        fs::remove_dir_all(fixture.merged("dir")).expect("rm -r");
        assert_eq!(list(""), ["hard", "link"]);
    });
}

#[test]
fn a_large_directory_is_listed_whole_and_again_from_memory() {
    each_way(|options| {
        let prepare = |lower: &Path| {
            for number in 0..3000 {
                fs::write(lower.join(format!("file {number:05} with a name of some length")), "")
                    .expect("write");
            }
        };
        let Some(fixture) = Fixture::new(prepare, options) else { return };
        for _ in 0..2 {
            let count = fs::read_dir(fixture.merged("")).expect("list").filter(|entry| entry.is_ok()).count();
            assert_eq!(count, 3000);
        }
        fs::write(fixture.merged("one more"), "").expect("create");
        fs::remove_file(fixture.merged("file 00000 with a name of some length")).expect("unlink");
        let names: Vec<_> =
            fs::read_dir(fixture.merged("")).expect("list").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(names.len(), 3000);
        assert!(names.iter().any(|name| name == "one more"));
    });
}

#[test]
fn attributes_are_right_after_every_kind_of_change() {
    each_way(|options| {
        let Some(fixture) =
            Fixture::new(|lower| fs::write(lower.join("file"), "12345").expect("write"), options)
        else {
            return;
        };
        let file = fixture.merged("file");
        let before = fs::metadata(&file).expect("stat");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
        let open = OpenOptions::new().read(true).write(true).open(&file).expect("open");
        open.set_len(3).expect("truncate");
        assert_eq!(fs::metadata(&file).expect("stat").len(), 3);
        open.write_all_at(b"abc", 100).expect("write");
        let after = fs::metadata(&file).expect("stat");
        assert_eq!((after.len(), after.mode() & 0o7777, after.ino()), (103, 0o640, before.ino()));
        let time = std::time::UNIX_EPOCH - Duration::from_nanos(1_500_000_000);
        open.set_modified(time).expect("utimes");
        drop(open);
        let after = fs::metadata(&file).expect("stat");
        assert_eq!((after.mtime(), after.mtime_nsec()), (-2, 500_000_000));
        fs::remove_file(&file).expect("unlink");
        assert!(fs::metadata(&file).is_err());
    });
}

#[test]
fn an_unlinked_open_file_goes_on_living() {
    each_way(|options| {
        let Some(fixture) =
            Fixture::new(|lower| fs::write(lower.join("file"), "lower").expect("write"), options)
        else {
            return;
        };
        for name in ["file", "fresh"] {
            let mut open = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(fixture.merged(name))
                .expect("open");
            fs::remove_file(fixture.merged(name)).expect("unlink");
            open.set_len(2).expect("ftruncate");
            open.set_permissions(fs::Permissions::from_mode(0o600)).expect("fchmod");
            open.seek(SeekFrom::End(0)).expect("seek");
            open.write_all(b"more").expect("write");
            let stat = open.metadata().expect("fstat");
            assert_eq!((stat.len(), stat.nlink(), stat.mode() & 0o777), (6, 0, 0o600), "{name}");
            open.rewind().expect("seek");
            let mut text = Vec::new();
            open.read_to_end(&mut text).expect("read");
            assert_eq!(&text[2..], b"more");
        }
    });
}

#[test]
fn a_session_ends_with_its_mount_and_the_upper_can_be_mounted_again_at_once() {
    each_way(|options| {
        let Some(mut fixture) = Fixture::new(|_| (), options) else { return };
        for round in 0..5 {
            fs::write(fixture.merged("file"), round.to_string()).expect("write");
            let start = Instant::now();
            fixture.unmount();
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            assert!(!fixture.merged("file").exists());
            fixture.mount(options).expect("mounted before");
            assert_eq!(fs::read_to_string(fixture.merged("file")).expect("read"), round.to_string());
        }
    });
}

#[test]
fn an_ending_session_leaves_alone_what_was_mounted_over_it() {
    if !is_root() {
        eprintln!("skipped: an ordinary user cannot mount over a mount");
        return;
    }
    let Some(mut fixture) = Fixture::new(|_| (), &MountOptions::default()) else { return };
    let other =
        Fixture::new(|lower| fs::write(lower.join("other"), "").expect("write"), &MountOptions::default())
            .expect("mounted before");
    let target = fixture.path("merged");
    plyfs_sys::mount::bind(&other.path("merged"), &target, false).expect("bind");
    let running = fixture.running.take().expect("mounted");
    running.unmounter().unmount_or_detach();
    assert!(fixture.merged("other").exists(), "the mount on top is still there");
    plyfs_sys::mount::unmount(&target).expect("unmount");
    drop(running);
    assert!(!fixture.merged("other").exists());
    assert!(plyfs_sys::mount::unmount(&target).is_err(), "nothing is left");
}

#[test]
fn a_session_that_is_never_served_leaves_no_mount() {
    let Some(mut fixture) = Fixture::new(|_| (), &MountOptions::default()) else { return };
    fixture.unmount();
    drop(fixture.session(&MountOptions::default()).expect("mounted before"));
    assert!(fs::read_dir(fixture.path("merged")).expect("list").next().is_none(), "the bare directory");
    assert!(plyfs_sys::mount::unmount(&fixture.path("merged")).is_err(), "nothing is left");
}

#[test]
fn a_slow_request_delays_nobody() {
    each_way(|options| {
        let prepare = |lower: &Path| {
            let file = File::create(lower.join("large")).expect("create");
            let block = vec![7_u8; 1 << 20];
            for _ in 0..96 {
                (&file).write_all(&block).expect("write");
            }
        };
        let Some(fixture) = Fixture::new(prepare, options) else { return };
        let large = fixture.merged("large");
        let copying = std::thread::spawn(move || {
            let start = Instant::now();
            drop(OpenOptions::new().append(true).open(large).expect("open"));
            start.elapsed()
        });
        let mut slowest = Duration::ZERO;
        let mut number = 0;
        while !copying.is_finished() {
            let start = Instant::now();
            assert!(!fixture.merged(&format!("missing {number}")).exists());
            slowest = slowest.max(start.elapsed());
            number += 1;
        }
        let whole = copying.join().expect("thread");
        eprintln!("copied in {whole:?}; {number} look-ups meanwhile, the slowest took {slowest:?}");
        // Had the copy held everything up, one look-up would have taken as long. A busy machine makes others slow too.
        assert!(whole < Duration::from_millis(50) || slowest * 10 < whole * 9, "{slowest:?} of {whole:?}");
    });
}

#[test]
fn a_mapping_that_is_written_shows_in_the_times_and_in_later_reads() {
    each_way(|options| {
        let Some(fixture) =
            Fixture::new(|lower| fs::write(lower.join("file"), [b'.'; 8192]).expect("write"), options)
        else {
            return;
        };
        let file = fixture.merged("file");
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        // Copied up, and its attributes remembered.
        File::options().append(true).open(&file).expect("open").set_modified(old).expect("utimes");
        assert_eq!(fs::metadata(&file).expect("stat").mtime(), 1);
        let script = "import mmap, os, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 8192); \
                      os.stat(sys.argv[1]); \
                      m[4096:4099] = b'new'; m.flush()";
        let Some(done) = command("python3", &["-c", script, file.to_str().expect("path")]) else { return };
        assert!(done);
        std::thread::sleep(Duration::from_millis(20));
        assert_ne!(fs::metadata(&file).expect("stat").mtime(), 1, "with {options:?}");
        assert_eq!(&fs::read(&file).expect("read")[4095..4100], b".new.");
    });
}

#[test]
fn trusted_attributes_are_listed_to_the_privileged_alone() {
    if !is_root() || std::env::var_os(AGAIN).is_some() {
        eprintln!("skipped: only root may set trusted attributes");
        return;
    }
    let Some(fixture) =
        Fixture::new(|lower| fs::write(lower.join("file"), "").expect("write"), &MountOptions::default())
    else {
        return;
    };
    fs::set_permissions(fixture.root.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let file = fixture.merged("file");
    let script = "import os, sys; f = sys.argv[1]; os.setxattr(f, 'user.seen', b'1'); \
                  os.setxattr(f, 'trusted.seen', b'1'); all = os.listxattr(f); \
                  assert 'trusted.seen' in all and 'user.seen' in all, all; os.chmod(f, 0o644); os.setuid(65534); \
                  all = os.listxattr(f); assert all == ['user.seen'], all";
    let Some(done) = command("python3", &["-c", script, file.to_str().expect("path")]) else { return };
    assert!(done);
}

#[test]
fn a_mount_can_be_idmapped() {
    if !is_root() || std::env::var_os(AGAIN).is_some() {
        eprintln!("skipped: only root may map ids");
        return;
    }
    let Some(fixture) = Fixture::new(
        |lower| {
            fs::write(lower.join("mine"), "").expect("write");
            std::os::unix::fs::chown(lower.join("mine"), Some(1000), Some(1000)).expect("chown");
        },
        &MountOptions::default(),
    ) else {
        return;
    };
    std::os::unix::fs::chown(fixture.path("merged"), Some(1000), Some(1000)).expect("chown");
    // What user 1000 owns below is root's here.
    let mut child = std::process::Command::new("unshare")
        .args(["--user", "sh", "-c", "read line"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("unshare");
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let own = fs::read_link("/proc/self/ns/user").expect("namespace");
    while fs::read_link(proc.join("ns/user")).expect("namespace") == own {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::write(proc.join("uid_map"), "1000 0 1").expect("map");
    fs::write(proc.join("gid_map"), "1000 0 1").expect("map");
    let namespace = File::open(proc.join("ns/user")).expect("namespace");
    let target = fixture.path("mapped");
    fs::create_dir(&target).expect("mkdir");
    let dir = File::open("/").expect("open");
    let tree = plyfs_sys::mount::open_tree(
        &dir,
        &fixture.path("merged"),
        plyfs_sys::mount::OpenTreeFlags::OPEN_TREE_CLONE,
    )
    .expect("open_tree");
    let attributes = plyfs_sys::mount::MountAttributes {
        idmap: Some(std::os::fd::AsFd::as_fd(&namespace)),
        ..Default::default()
    };
    plyfs_sys::mount::set_attributes(&tree, &attributes, false).expect("mount_setattr");
    plyfs_sys::mount::attach(&tree, &dir, &target).expect("move_mount");
    let mapped = Unmount(target.clone());
    let seen = fs::metadata(target.join("mine")).expect("stat");
    assert_eq!((seen.uid(), seen.gid()), (0, 0));
    fs::write(target.join("new"), "").expect("create");
    std::os::unix::fs::chown(target.join("mine"), Some(0), Some(0)).expect("chown");
    assert_eq!(fs::metadata(target.join("new")).expect("stat").uid(), 0);
    drop(mapped);
    let below = fs::metadata(fixture.path("upper/new")).expect("stat");
    assert_eq!((below.uid(), below.gid()), (1000, 1000));
    drop(child.stdin.take());
    child.wait().expect("wait");
}

#[test]
fn everything_holds_in_a_user_namespace_and_for_an_ordinary_user() {
    if std::env::var_os(AGAIN).is_some() {
        return;
    }
    if !is_root() {
        eprintln!("skipped: only root runs the tests as others");
        return;
    }
    let this = std::env::current_exe().expect("this program");
    // An ordinary user may not reach where it was built.
    let reachable = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(reachable.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = reachable.path().join("tests");
    fs::copy(&this, &copy).expect("copy");
    let copy = copy.to_str().expect("path");
    // Its device may be closed to ordinary users on this machine; that is not what is tested.
    let node = reachable.path().join("fuse");
    let script = "mknod -m 666 \"$1\" c 10 229 && mount --bind \"$1\" /dev/fuse && \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all \"$2\"";
    let namespace = ["--user", "--map-root-user", "--mount", copy];
    let user = ["--mount", "sh", "-c", script, "sh", node.to_str().expect("path"), copy];
    for arguments in [&namespace[..], &user[..]] {
        let program = "unshare";
        let mut command = std::process::Command::new(program);
        command.args(arguments).env(AGAIN, "1");
        match command.output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{program} {arguments:?}:\n{text}");
            }
            Err(error) => {
                assert!(std::env::var_os("PLYFS_TESTS_STRICT").is_none(), "cannot run {program}: {error}");
                eprintln!("skipped: cannot run {program}: {error}");
            }
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("proc").uid() == 0
}

/// A mount that a test made: left over, it would keep the session from ending.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        plyfs_sys::mount::unmount_detached(&self.0).expect("unmount");
    }
}

/// Whether a program succeeded; `None` where it is missing.
fn command(program: &str, arguments: &[&str]) -> Option<bool> {
    match std::process::Command::new(program).args(arguments).status() {
        Ok(status) => Some(status.success()),
        Err(error) => {
            assert!(std::env::var_os("PLYFS_TESTS_STRICT").is_none(), "cannot run {program}: {error}");
            eprintln!("skipped: cannot run {program}: {error}");
            None
        }
    }
}
