//! The store's commands as they are typed: the list in the documentation works word for word.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{PLYFS, Place, as_root};
use plyfs_testkit::sandbox;

struct Shell {
    dir: tempfile::TempDir,
}

impl Shell {
    fn new() -> Shell {
        Shell { dir: tempfile::tempdir().unwrap() }
    }

    /// Runs `plyfs --root R WORDS…` in the directory.
    fn try_plyfs(&self, words: &[&str]) -> Output {
        let mut c = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        c.args(["--root", "R"]).args(words).current_dir(self.dir.path()).output().unwrap()
    }

    /// The same, which must succeed; its standard output.
    fn plyfs(&self, words: &[&str]) -> String {
        let out = self.try_plyfs(words);
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// A root file system with a shell, as a tar.
    fn rootfs(&self) {
        let root = self.dir.path().join("root");
        for d in ["bin", "etc", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(d)).unwrap();
        }
        for f in ["f", "g"] {
            fs::write(root.join("etc").join(f), f).unwrap();
        }
        if Path::new("/bin/busybox").exists() {
            fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
            for n in ["sh", "ls"] {
                std::os::unix::fs::symlink("busybox", root.join("bin").join(n)).unwrap();
            }
        }
        let tar = Command::new("tar")
            .args(["-C", "root", "--numeric-owner", "-cf", "rootfs.tar", "."])
            .current_dir(self.dir.path())
            .status()
            .unwrap();
        assert!(tar.success());
    }
}

#[test]
fn the_documented_commands_work_word_for_word() {
    let s = Shell::new();
    s.rootfs();
    s.plyfs(&["import", "rootfs.tar", "base:1"]);
    assert_eq!(s.plyfs(&["create", "base:1", "c1"]), "c1\n");
    let merged = s.plyfs(&["mount", "c1"]);
    let merged = Path::new(merged.strip_suffix('\n').unwrap());
    assert!(merged.is_absolute() && merged.join("etc/f").exists(), "the path, alone");
    fs::write(merged.join("etc/h"), "h").unwrap();
    fs::write(merged.join("etc/f"), "changed").unwrap();
    fs::remove_file(merged.join("etc/g")).unwrap();
    assert_eq!(s.plyfs(&["umount", "c1"]), "");
    let diff = s.plyfs(&["diff", "c1"]);
    for line in ["A /etc/h", "C /etc/f", "D /etc/g"] {
        assert!(diff.lines().any(|l| l == line), "{line} in {diff}");
    }
    s.plyfs(&["commit", "c1", "base:2"]);
    s.plyfs(&["save", "--format", "oci-archive", "-o", "out.tar", "base:2"]);
    s.plyfs(&["load", "out.tar"]);
    let can_run = rustix::process::geteuid().is_root()
        && Path::new("/bin/busybox").exists()
        && ["/usr/bin/crun", "/usr/sbin/runc"].iter().any(|p| Path::new(p).exists());
    if can_run {
        let out = s.plyfs(&["run", "--rm", "base:2", "/bin/sh", "-c", "ls /"]);
        assert!(out.lines().any(|l| l == "etc"), "{out}");
    } else {
        eprintln!("run is not tried: needs root, /bin/busybox, and crun or runc");
    }
    assert_eq!(s.plyfs(&["check"]), "no damage\n");
    assert_eq!(s.plyfs(&["rm", "c1"]), "c1\n");
}

#[test]
fn failures_are_one_line_and_an_object_with_json() {
    let s = Shell::new();
    let out = s.try_plyfs(&["create", "nothing:1", "c1"]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(String::from_utf8(out.stderr).unwrap(), "plyfs: no image \"nothing:1\"\n");
    let out = s.try_plyfs(&["--json", "rm", "nothing"]);
    let v: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!(v["error"], "not-found");
}

#[test]
fn every_listing_has_json() {
    let s = Shell::new();
    s.rootfs();
    s.plyfs(&["import", "rootfs.tar", "base:1"]);
    s.plyfs(&["create", "base:1", "c1"]);
    for words in [
        &["images"][..],
        &["ps"],
        &["inspect", "base:1"],
        &["inspect", "c1"],
        &["history", "base:1"],
        &["diff", "c1"],
        &["info"],
        &["df"],
        &["check"],
        &["gc"],
    ] {
        let text = s.plyfs(&[&["--json"], words].concat());
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{words:?}: {text}");
    }
    let v: serde_json::Value = serde_json::from_str(&s.plyfs(&["inspect", "c1"])).unwrap();
    for key in ["LowerDir", "UpperDir", "WorkDir", "MergedDir"] {
        assert!(v[0]["GraphDriver"]["Data"][key].as_str().is_some_and(|p| p.contains("overlay2")), "{key}");
    }
}

/// Runs a shell script as a user who is not root, with `$P` for `plyfs --root R --backend fuse`; its standard output.
fn as_user(place: &Place, script: &str) -> String {
    let out = Command::new("setpriv")
        // daemon, whom every machine has: fusermount3 serves nobody without a name.
        .args(["--reuid=1", "--regid=1", "--clear-groups", "sh", "-ec", script])
        .current_dir(place.at(""))
        .env("P", format!("{PLYFS} --root R --backend fuse"))
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn without_root_a_container_belongs_to_the_user_who_is_its_root() {
    as_root("without_root_a_container_belongs_to_the_user_who_is_its_root", |place| {
        place.dirs(&["scratch", "root/bin", "root/etc", "root/proc", "root/dev", "root/sys"]);
        sandbox::open_fuse_to_all(&place.at("scratch")).unwrap();
        place.sh("echo f > root/etc/f; chmod 777 .; tar -C root --numeric-owner -cf r.tar .");
        as_user(place, "$P import r.tar base:1; $P create base:1 c1");
        as_user(place, "M=$($P mount c1); echo changed > $M/etc/f; mkdir $M/new; $P umount c1");
        assert_eq!(as_user(place, "$P diff c1"), "C /etc\nC /etc/f\nA /new\n");

        let has = |paths: &[&str]| paths.iter().any(|path| Path::new(path).exists());
        if !has(&["/bin/busybox"]) || !has(&["/usr/bin/crun", "/usr/sbin/runc", "/usr/bin/runc"]) {
            eprintln!("run is not tried: needs /bin/busybox, and crun or runc");
            return;
        }
        place.sh("cp /bin/busybox root/bin; tar -C root --numeric-owner -cf box.tar .");
        as_user(place, "$P import box.tar box:1");
        let inside = "$B stat -c '%u:%g' /etc/f; echo changed > /etc/f; echo new > /new; $B cat /etc/f /new";
        let said = as_user(
            place,
            &format!("$P run --rm box:1 /bin/busybox sh -ec \"{}\"", inside.replace("$B", "/bin/busybox")),
        );
        assert_eq!(said, "0:0\nchanged\nnew\n");
    });
}

/// The same changes by root on the kernel's overlay and by a user on FUSE: what they commit is one image.
#[test]
fn what_a_user_commits_equals_what_root_commits() {
    let all = "$P import r.tar base:1 >&2; $P create base:1 c1 >&2; M=$($P mount c1)
        echo new > $M/etc/new; chmod 640 $M/etc/new; mkdir -m 1777 $M/made; ln -s x $M/made/link; mkfifo $M/made/fifo
        chmod 600 $M/etc/shadow; echo more >> $M/etc/mine; chmod 4755 $M/bin/su; mv $M/etc/moved $M/etc/away
        rm $M/etc/gone; rm -r $M/dir; mkdir $M/dir; echo x > $M/dir/x; mkdir -p $M/implied/a; echo y > $M/implied/a/y
        find $M -newer r.tar -exec touch -h -d 2020-01-01 {} +
        $P umount c1; $P commit c1 base:2; $P check >&2
        $P export c1 | tar tvf - --numeric-owner --full-time";
    as_root("what_a_user_commits_equals_what_root_commits", |place| {
        place.dirs(&["u", "r", "root/bin", "root/etc", "root/dir"]);
        sandbox::open_fuse_to_all(&place.at("u")).unwrap();
        place.sh(
            "cd root; for f in bin/su etc/shadow etc/mine etc/moved etc/gone dir/old; do echo $f > $f; done
             chown 0:42 etc/shadow; chmod 640 etc/shadow; chown 33:34 etc/mine etc/moved; chown 5:5 bin/su
             find . -exec touch -h -d 2019-01-01 {} +; cd ..
             tar -C root --numeric-owner -cf u/r.tar .; cp u/r.tar r; touch -d 2022-01-01 u/r.tar r/r.tar; chown 1:1 u",
        );
        let by_user = as_user(place, &format!("cd u; {all}"));
        let by_root = place.sh(&format!("cd r; P='{PLYFS} --root R --backend kernel'; {all}"));
        assert_eq!(by_user, by_root);
        assert!(by_user.starts_with("sha256:") && by_user.contains(" 33/34 "), "{by_user}");
        // And what the user saves is what root loads.
        as_user(place, "cd u; $P save -o ../u/saved.tar base:2");
        let loaded = place.sh(&format!("{PLYFS} --root r/R load u/saved.tar"));
        assert!(loaded.contains(by_user.lines().next().unwrap()), "{loaded}");
    });
}

/// Runs a command to its end; the most memory it had, in KiB.
fn peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        // Gone from the text once the process has ended, and never smaller before.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let high = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most =
            high.and_then(|v| v.trim().strip_suffix(" kB")?.parse().ok()).map_or(most, |n: u64| n.max(most));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    most
}

/// The layer is larger than all the memory that is allowed, and so is its blob. `PLYFS_LAYER_MIB` for another size.
#[test]
fn an_image_of_any_size_is_loaded_in_less_than_100_megabytes() {
    use std::io::Write;
    let s = Shell::new();
    let mib: u64 = std::env::var("PLYFS_LAYER_MIB").map_or(192, |n| n.parse().unwrap());
    let at = |name: &str| s.dir.path().join(name);
    fs::create_dir(at("root")).unwrap();
    let mut f = std::io::BufWriter::new(fs::File::create(at("root/big")).unwrap());
    let mut x = 1u64;
    for n in 0..mib << 17 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        // Five bytes of eight are noise.
        f.write_all(&(if n % 8 < 5 { x } else { 7 }).to_le_bytes()).unwrap();
    }
    f.into_inner().unwrap();
    let plyfs = |root: &str, words: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        c.args(["--root", root]).args(words).current_dir(s.dir.path());
        peak(&mut c)
    };
    let made = plyfs("A", &["import", "--compression", "zstd", "root", "big:1"]);
    fs::remove_dir_all(at("root")).unwrap();
    plyfs("A", &["save", "-o", "image.tar", "big:1"]);
    let loaded = plyfs("B", &["load", "image.tar"]);
    eprintln!("{mib} MiB: {made} KiB to import, {loaded} KiB to load");
    assert!(fs::metadata(at("image.tar")).unwrap().len() > 100_000_000 * mib / 192);
    assert!(made > 1000 && made < 100_000 && loaded > 1000 && loaded < 100_000, "{made} {loaded}");
}
