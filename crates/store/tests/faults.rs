//! kill -9 and a full disk at any moment: the store opens, holds nothing half there, passes `check`, and the
//! repeat succeeds.
//!
//! The victim is this test binary again, started with a job in its environment.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Home, dir, file, is_root, open, tar};
use plyfs_store::{Changes, CheckOptions, Compression, Format, Options, Store};

const JOB: &str = "PLYFS_TEST_VICTIM";

/// Not a test of its own: what the killed processes do. Runs only when it is told a job.
#[test]
fn victim() {
    let Ok(job) = std::env::var(JOB) else { return };
    let (verb, rest) = job.split_once(' ').unwrap();
    let (root, archive) = rest.split_once(' ').unwrap();
    let store = open(Path::new(root));
    match verb {
        "load" => drop(store.load(Path::new(archive)).unwrap()),
        "commit" => drop(store.commit("c1", "made:1", &Changes::default()).unwrap()),
        "rm" => drop(store.remove_container("c1", true).unwrap()),
        "rmi" => drop(store.remove_image("kept:1", true).unwrap()),
        "gc" => drop(store.gc().unwrap()),
        other => panic!("{other}"),
    }
}

/// An archive of an image with a few hundred files, and a store with an image and a container that changed.
fn prepare() -> (Home, PathBuf) {
    let many: Vec<_> = (0..300).map(|n| file(&format!("f{n}"), &"x".repeat(n * 7))).collect();
    let maker = Home::new();
    maker.import(&tar(&many), "loaded:1").unwrap();
    let h = Home::new();
    let archive = h.path("a.tar");
    maker.store.save(&["loaded:1".into()], Format::OciArchive, Compression::None, &archive).unwrap();
    h.import(&tar(&[dir("d"), file("d/f", "1")]), "base:1").unwrap();
    h.import(&tar(&[dir("k"), file("k/f", "2")]), "kept:1").unwrap();
    let c = h.store.create("base:1", Some("c1"), None).unwrap();
    let diff = h.store.layout().layer(&c.id).join("diff");
    for n in 0..200 {
        std::fs::write(diff.join(format!("new{n}")), "y".repeat(n * 11)).unwrap();
    }
    (h, archive)
}

/// Runs a job and kills it after a while; says whether it had ended by itself.
fn killed(job: &str, h: &Home, archive: &Path, after: Duration) -> bool {
    let job = format!("{job} {} {}", h.root().display(), archive.display());
    let exe = std::env::current_exe().unwrap();
    let mut victim = Command::new(exe);
    victim.args(["--exact", "victim", "--test-threads=1"]).env(JOB, job);
    let mut child = victim.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    ended
}

/// What must hold after any crash: the next command opens the store and finds nothing of the dead one.
fn sound(h: &Home, what: &str) {
    let s = open(&h.root());
    let found = s.check(CheckOptions::default()).unwrap();
    assert!(found.is_empty(), "{what}: {found:?}");
    assert!(h.leftovers().iter().all(|l| !l.starts_with("staging")), "{what}: {:?}", h.leftovers());
    for e in std::fs::read_dir(h.root().join("overlay2")).unwrap() {
        let p = e.unwrap().path();
        if p.file_name().unwrap() != "l" {
            assert_eq!(std::fs::read(p.join("link")).unwrap().len(), 26, "{what}: {}", p.display());
            assert!(std::fs::metadata(p.join("lower")).map_or(true, |m| m.len() > 0), "{what}");
        }
    }
}

/// How many times each job is killed; `PLYFS_KILLS` for the long run.
fn rounds() -> u32 {
    std::env::var("PLYFS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(50) / 5
}

#[test]
fn kill_minus_nine_at_any_moment_leaves_a_sound_store() {
    // Not random but spread: each run is killed a little later than the one before.
    for job in ["load", "commit", "rm", "rmi", "gc"] {
        let (mut h, mut archive) = prepare();
        let mut cut = 0;
        let n = rounds();
        for i in 0..n {
            let after = Duration::from_micros(u64::from(3000 + i * 90_000 / n));
            if killed(job, &h, &archive, after) {
                // It was through: the same again on a fresh store for the rest of the rounds.
                sound(&h, job);
                (h, archive) = prepare();
            } else {
                cut += 1;
                sound(&h, &format!("{job} killed after {after:?}"));
            }
        }
        eprintln!("{job}: {cut} of {n} were cut off");
        // The repeat succeeds, if what it works on is still there.
        let s = open(&h.root());
        match job {
            "load" => drop(s.load(&archive).unwrap()),
            "commit" => drop(s.commit("c1", "made:1", &Changes::default()).unwrap()),
            "rm" if s.container("c1").is_ok() => drop(s.remove_container("c1", true).unwrap()),
            "rmi" if s.image("kept:1").is_ok() => drop(s.remove_image("kept:1", true).unwrap()),
            _ => drop(s.gc().unwrap()),
        }
        sound(&h, job);
    }
}

/// A small ext4 in a file, mounted as a loop device.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn new(mebibytes: u64) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("fs"), dir.path().join("mnt"));
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        for (p, args) in [("mkfs.ext4", vec!["-qF"]), ("mount", vec!["-o", "loop"])] {
            let mut c = Command::new(p);
            c.args(args).arg(&image);
            if p == "mount" {
                c.arg(&at);
            }
            assert!(c.status().unwrap().success(), "{p}");
        }
        Small { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("mnt/store")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.dir.path().join("mnt")).status().unwrap().success());
    }
}

/// Bytes that no compression makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 1u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

#[test]
fn a_full_disk_is_said_to_be_full_and_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let small = Small::new(24);
    let big = small.dir.path().join("big.tar");
    let fits = small.dir.path().join("fits.tar");
    std::fs::write(&big, tar(&[file("f", &"0123456789abcdef".repeat(1 << 20))])).unwrap();
    std::fs::write(&fits, tar(&[file("f", "small")])).unwrap();
    let store = Store::open(&small.root(), Options::default()).unwrap();
    for _ in 0..3 {
        let e = store.import(&big, "big:1", &Changes::default()).unwrap_err();
        assert_eq!(e.kind(), "no-space", "{e}");
        assert!(store.images().unwrap().is_empty());
        assert!(store.check(CheckOptions::default()).unwrap().is_empty());
    }
    // The same from a directory: what is said is what was being written, and where.
    let tree = small.dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("f"), noise(32 << 20)).unwrap();
    let e = store.import(&tree, "big:1", &Changes::default()).unwrap_err();
    let text = e.to_string();
    assert!(
        e.kind() == "no-space" && text.starts_with("write ") && text.contains("/store/staging/"),
        "{text}"
    );
    // Nothing of the failures takes room: what fits still does.
    store.import(&fits, "fits:1", &Changes::default()).unwrap();
    store.create("fits:1", Some("c"), None).unwrap();
    assert!(store.check(CheckOptions::default()).unwrap().is_empty());
    // Full to the last block: metadata fails, cleanly.
    let filler = small.dir.path().join("mnt/filler");
    let filled = std::fs::write(&filler, vec![1u8; 32 << 20]);
    assert!(filled.is_err(), "the disk is full");
    let e = store.create("fits:1", Some("d"), None);
    std::fs::remove_file(&filler).unwrap();
    if let Err(e) = e {
        assert!(matches!(e.kind(), "no-space" | "database"), "{e}");
    }
    drop(store);
    let store = Store::open(&small.root(), Options::default()).unwrap();
    assert!(store.check(CheckOptions::default()).unwrap().is_empty());
    store.create("fits:1", Some("e"), None).unwrap();
}
