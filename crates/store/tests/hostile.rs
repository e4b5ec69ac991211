//! Images made to hurt: each attack is performed, and must leave the store empty and the outside untouched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Home, Raw, dir, entry, file, gzip, hardlink, is_root, record, symlink, tar};
use plyfs_store::{Changes, Limits, Options, Store};

/// Imports what must be refused, for the reason given.
fn refused(entries: &[Raw], why: &str) {
    bytes_refused(&tar(entries), why);
}

fn bytes_refused(bytes: &[u8], why: &str) {
    let h = Home::new();
    let e = h.import(bytes, "evil:1").expect_err(why);
    assert!(e.to_string().contains(why), "{e}: expected {why}");
    assert!(matches!(e.kind(), "invalid"), "{e} is {}", e.kind());
    assert_eq!(h.leftovers(), [] as [&str; 0], "{why}");
    assert!(h.store.images().unwrap().is_empty());
}

/// Case 9, CVE-2021-29136.
#[test]
fn a_root_that_is_a_symlink_is_refused() {
    for name in [".", "/", "./", "//", "./."] {
        refused(&[symlink(name, "/tmp"), file("x", "")], "root is not a directory");
    }
}

/// Case 10, RUSTSEC-2018-0002 and the like.
#[test]
fn nothing_is_written_through_a_symlink() {
    let h = Home::new();
    let out = h.path("outside");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("f"), "untouched").unwrap();
    let o = out.to_str().unwrap();
    let attacks: &[&[Raw]] = &[
        &[symlink("l", o), file("l/f", "pwned")],
        &[symlink("l", o), file("l/new", "pwned")],
        &[symlink("l", o), dir("l/newdir")],
        &[symlink("l", o), dir("l/a/b/c")],
        &[symlink("l", o), symlink("l/s", "x")],
        &[symlink("l", o), file(".wh.x", ""), file("l/.wh.f", "")],
        &[symlink("l", o), file("l/.wh..wh..opq", "")],
        &[dir("d"), symlink("d/l", "../../../../../../../../tmp"), file("d/l/x", "")],
    ];
    for a in attacks {
        assert_eq!(h.import(&tar(a), "evil:1").unwrap_err().kind(), "invalid");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    assert_eq!(fs::read(out.join("f")).unwrap(), b"untouched");
    assert_eq!(h.leftovers(), [] as [&str; 0]);
}

/// Case 10, CVE-2026-33056: a directory entry of a symlink's name must not change the target's mode.
#[test]
fn a_directory_in_place_of_a_symlink_leaves_the_target_alone() {
    let h = Home::new();
    let out = h.path("outside");
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(out.join("f"), "untouched").unwrap();
    fs::set_permissions(out.join("f"), fs::Permissions::from_mode(0o640)).unwrap();
    let o = out.to_str().unwrap();
    let i = h
        .import(
            &tar(&[
                symlink("l", o),
                dir("l").mode(0o777).owner(1234, 1234),
                symlink("m", &format!("{o}/f")),
                file("m", "new").mode(0o4777),
            ]),
            "x:1",
        )
        .unwrap();
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::metadata(&out).unwrap().uid(), rustix::process::getuid().as_raw());
    assert_eq!(fs::metadata(out.join("f")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::read(out.join("f")).unwrap(), b"untouched");
    assert!(h.top(&i).join("l").symlink_metadata().unwrap().is_dir());
}

#[test]
fn hard_links_reach_only_files_of_their_own_layer() {
    let h = Home::new();
    let secret = h.path("secret");
    fs::write(&secret, "s").unwrap();
    let s = secret.to_str().unwrap();
    let attacks: &[&[Raw]] = &[
        &[hardlink("x", s)],
        &[hardlink("x", "../../../secret")],
        &[symlink("l", h.dir.path().to_str().unwrap()), hardlink("x", "l/secret")],
        &[dir("d"), hardlink("x", "d")],
        &[file(".wh.gone", ""), hardlink("x", "gone")],
        &[hardlink("x", ".wh.y")],
        &[file("f", "data"), hardlink("x", "f").size(4)],
    ];
    for a in attacks {
        assert_eq!(h.import(&tar(a), "evil:1").unwrap_err().kind(), "invalid");
    }
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
    // A hard link to a symbolic link is one to the link, not to its target.
    let i = h.import(&tar(&[symlink("l", s), hardlink("x", "l")]), "ok:1").unwrap();
    assert!(h.top(&i).join("x").symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
}

#[test]
fn names_that_climb_or_are_nothing_are_refused() {
    for n in ["../x", "a/../../x", "a/..", "..", "/../x"] {
        refused(&[file(n, "")], "\"..\"");
    }
    let long = "x".repeat(256);
    refused(&[file("short", "").pax("path", long.as_bytes())], "component longer");
    refused(&[file("short", "").pax("path", "a/".repeat(2500).as_bytes())], "name of");
    refused(&[file("short", "").pax("path", "a/".repeat(1500).as_bytes())], "deeper");
    refused(&[file("short", "").pax("path", b"a\0b")], "NUL");
    refused(&[file("short", "").pax("path", b"")], "empty name");
}

/// Case 11, CVE-2025-62518 and CVE-2026-33055: one archive, two readings.
#[test]
fn ambiguous_headers_are_refused() {
    let hidden = tar(&[file("hidden", "")]);
    let mut smuggled =
        Raw { data: hidden[..512].to_vec(), ..entry(b'0', "a") }.size(0).pax("size", b"512").bytes();
    smuggled.extend([0; 1024]);
    bytes_refused(&smuggled, "two lengths");
    let mut other = Raw { data: hidden[..512].to_vec(), ..entry(b'0', "a") }.pax("size", b"0").bytes();
    other.extend([0; 1024]);
    bytes_refused(&other, "two lengths");
    refused(&[file("a", "x").pax("path", b"b").pax("path", b"c")], "twice");
    let x = |v: &[u8]| Raw { data: record("path", v), ..entry(b'x', "pax") };
    refused(&[x(b"one"), x(b"two"), file("a", "")], "twice");
    let l = Raw { data: b"other\0".to_vec(), ..entry(b'L', "././@LongLink") };
    refused(&[x(b"one"), l.clone(), file("a", "")], "two different names");
    refused(&[l.clone(), l, file("a", "")], "twice");
    refused(&[Raw { data: record("path", b"evil"), ..entry(b'g', "pax") }, file("a", "")], "global header");
    refused(&[dir("d").size(512)], "data behind something that is no file");
    refused(&[symlink("s", "t").size(512)], "data behind something that is no file");
    refused(&[entry(b'Z', "z")], "unknown type");
    let mut two = tar(&[file("a", "")]);
    two.extend(tar(&[file("b", "")]));
    bytes_refused(&two, "behind the end");
    let mut lone = file("a", "").bytes();
    lone.extend([0; 512]);
    lone.extend(tar(&[file("b", "")]));
    bytes_refused(&lone, "behind the end");
    let mut sum = tar(&[file("a", "")]);
    sum[0] = b'b';
    bytes_refused(&sum, "checksum");
    let mut digits = file("a", "");
    digits.data = Vec::new();
    let mut h = digits.header();
    h[124..136].copy_from_slice(b"1 2 3 4 5 6 ");
    h[148..156].copy_from_slice(b"        ");
    let s: u32 = h.iter().map(|x| u32::from(*x)).sum();
    h[148..156].copy_from_slice(format!("{s:06o}\0 ").as_bytes());
    h.extend([0; 1024]);
    bytes_refused(&h, "size is not a number");
}

#[test]
fn truncated_archives_are_refused_wherever_they_end() {
    let whole = tar(&[dir("d"), file("d/f", &"x".repeat(3000)), file("last", "y")]);
    for cut in (0..whole.len() - 512).step_by(256) {
        let h = Home::new();
        assert!(h.import(&whole[..cut], "x:1").is_err(), "{cut} of {} bytes", whole.len());
        assert_eq!(h.leftovers(), [] as [&str; 0]);
    }
}

/// Case 12, CVE-2025-58183.
#[test]
fn allocation_bombs_are_refused_before_they_are_allocated() {
    refused(&[entry(b'x', "pax").size(8 << 30)], "extended header has");
    refused(&[entry(b'L', "long").size(1 << 40 >> 8)], "extended header has");
    let sparse = |map: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        let r = Raw { data, ..entry(b'0', "GNUSparseFile.0/f") };
        r.pax("GNU.sparse.major", b"1")
            .pax("GNU.sparse.minor", b"0")
            .pax("GNU.sparse.name", b"f")
            .pax("GNU.sparse.realsize", b"100")
    };
    refused(&[sparse("1152921504606846976\n0\n1\n")], "segments");
    refused(&[sparse("99999999999999999999999999\n")], "too long");
    refused(&[sparse("1\n0\n512\n")], "beyond the end");
    refused(&[sparse("2\n50\n10\n0\n10\n")], "overlap");
    refused(&[sparse("1\n18446744073709551615\n2\n")], "overflow");
    refused(&[sparse("5\n0\n1\n")], "too long");
    refused(&[sparse(&("200\n".to_owned() + &"7\n".repeat(254)))], "longer than its entry");
    refused(&[file("f", "x").pax("GNU.sparse.map", b"0,1,2").pax("GNU.sparse.size", b"9")], "half a segment");
    refused(
        &[file("f", "").pax("GNU.sparse.map", b"").pax("GNU.sparse.size", b"9000000000000000000")],
        "more than",
    );
}

fn with_limits(limits: Limits) -> (tempfile::TempDir, Store) {
    let t = tempfile::tempdir().unwrap();
    let s = Store::open(&t.path().join("s"), Options { limits, ..Options::default() }).unwrap();
    (t, s)
}

#[test]
fn limits_on_entries_bytes_and_ratio_hold() {
    let many: Vec<Raw> = (0..20).map(|n| file(&format!("f{n}"), "x")).collect();
    let (t, s) = with_limits(Limits { entries: 19, ..Limits::default() });
    fs::write(t.path().join("t"), tar(&many)).unwrap();
    assert!(
        s.import(&t.path().join("t"), "x:1", &Changes::default())
            .unwrap_err()
            .to_string()
            .contains("19 entries")
    );

    let (t, s) = with_limits(Limits { bytes: 10_000, ..Limits::default() });
    fs::write(t.path().join("t"), gzip(&tar(&[file("f", &"x".repeat(20_000))]))).unwrap();
    assert!(
        s.import(&t.path().join("t"), "x:1", &Changes::default())
            .unwrap_err()
            .to_string()
            .contains("10000 bytes")
    );
}

/// A gigabyte of zeros in a megabyte: stopped when it is clear, not when the disk is full.
#[test]
fn a_compression_bomb_is_stopped_by_its_ratio() {
    let t = tempfile::tempdir().unwrap();
    let p = t.path().join("bomb.gz");
    // A gzip file may have many members: the same mebibyte of zeros, over and over.
    let mut bomb = gzip(&file("zeros", "").size(1200 << 20).header());
    let zeros = gzip(&vec![0u8; 1 << 20]);
    for _ in 0..1200 {
        bomb.extend(&zeros);
    }
    bomb.extend(gzip(&[0; 1024]));
    fs::write(&p, bomb).unwrap();
    let h = Home::new();
    let limits = Limits { ratio: 100, ..Limits::default() };
    let store = Store::open(&h.root(), Options { limits, ..Options::default() }).unwrap();
    let e = store.import(&p, "bomb:1", &Changes::default()).unwrap_err();
    assert!(e.to_string().contains("times larger"), "{e}");
    assert_eq!(h.leftovers(), [] as [&str; 0]);
}

/// Case 13.
#[test]
fn whiteouts_of_no_name_or_in_no_place_are_refused() {
    refused(&[file(".wh.", "")], "whiteout of no name");
    refused(&[file(".wh..", "")], "whiteout of no name");
    refused(&[file(".wh...", "")], "whiteout of no name");
    refused(&[file("d/.wh...", "")], "whiteout of no name");
    refused(&[file(".wh.a/../b", "")], "\"..\"");
    refused(&[file(".wh.a/b", "")], "whiteout is not a directory");
    refused(&[dir(".wh..wh..opq")], "empty file and nothing else");
    refused(&[symlink(".wh.x", "/etc/passwd")], "empty file and nothing else");
    refused(&[dir(".wh.x")], "empty file and nothing else");
    refused(&[dir("d"), symlink("l", "d"), file("l/.wh.x", "")], "not a directory");
    refused(&[file("f", ""), file("f/.wh.x", "")], "not a directory");
    refused(&[entry(b'3', "raw")], "device 0:0");
}

/// Case 6: attributes by which a tar would speak to the overlay.
#[test]
fn overlay_attributes_in_a_tar_are_dropped_and_others_kept() {
    let h = Home::new();
    let mut e = dir("d").pax("SCHILY.xattr.user.mine", b"kept");
    let mut f = file("f", "x").pax("SCHILY.xattr.user.mine", b"kept");
    for ns in ["trusted", "user"] {
        for a in ["opaque", "redirect", "metacopy", "origin", "whiteout", "overlay.opaque"] {
            e = e.pax(&format!("SCHILY.xattr.{ns}.overlay.{a}"), b"y");
            f = f.pax(&format!("SCHILY.xattr.{ns}.overlay.{a}"), b"/etc");
        }
    }
    f = f.pax("SCHILY.xattr.user.containers.override_stat", b"0:0:4755");
    f = f.pax("SCHILY.xattr.user.fuseoverlayfs.override_stat", b"0:0:4755");
    let i = h.import(&tar(&[e, f]), "x:1").unwrap();
    for n in ["d", "f"] {
        let mut list = vec![0u8; 4096];
        let len = rustix::fs::llistxattr(h.top(&i).join(n), &mut list[..]).unwrap();
        let names: Vec<&[u8]> = list[..len]
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty() && !n.starts_with(b"security."))
            .collect();
        let expected: &[&[u8]] = if rustix::process::geteuid().is_root() {
            &[b"user.mine"]
        } else {
            &[b"user.containers.override_stat", b"user.mine"]
        };
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, expected, "{n}");
    }
}

#[test]
fn whiteouts_act_on_lower_layers_only_in_whichever_order() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    let opaque = |p: &std::path::Path| {
        let mut v = [0u8; 8];
        rustix::fs::lgetxattr(p, "trusted.overlay.opaque", &mut v[..]).is_ok_and(|n| &v[..n] == b"y")
    };
    let is_whiteout = |p: &std::path::Path| {
        fs::symlink_metadata(p).is_ok_and(|m| m.rdev() == 0 && m.mode() & 0o170_000 == 0o020_000)
    };
    let i = h
        .import(
            &tar(&[
                file(".wh.gone", ""),
                file(".wh.d1", ""),
                dir("d1"),
                file("d1/new", "1"),
                dir("d2"),
                file("d2/new", "2"),
                file(".wh.d2", ""),
                file("f", "3"),
                file(".wh.f", ""),
                file(".wh.g", ""),
                file("g", "4"),
                file(".wh.h", ""),
                file("h/implied", "5"),
                dir("o"),
                file("o/x", "6"),
                file("o/.wh..wh..opq", ""),
                file(".wh..wh.plnk", ""),
                file(".wh..wh.aufs", ""),
            ]),
            "x:1",
        )
        .unwrap();
    let top = h.top(&i);
    assert!(is_whiteout(&top.join("gone")));
    for d in ["d1", "d2", "h", "o"] {
        assert!(opaque(&top.join(d)), "{d} is opaque");
    }
    for (f, text) in
        [("d1/new", "1"), ("d2/new", "2"), ("f", "3"), ("g", "4"), ("h/implied", "5"), ("o/x", "6")]
    {
        assert_eq!(fs::read_to_string(top.join(f)).unwrap(), text);
    }
    assert_eq!(fs::read_dir(&top).unwrap().count(), 7);
}

#[test]
fn owners_that_mean_unchanged_to_chown_are_refused() {
    refused(&[file("f", "").pax("uid", b"4294967295")], "out of range");
    refused(&[file("f", "").pax("gid", b"99999999999")], "out of range");
}
