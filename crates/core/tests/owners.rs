//! Owners, modes and link counts that are shown otherwise than they lie on disk: fuse-overlayfs's options.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use common::{Stack, attr, list, me, read, set_xattr, walk, write, xattr};
use plyfs_core::{Caller, Errno, NodeId, SetAttr};
use plyfs_format::{Acl, AclEntry, AclTag};
use plyfs_testkit::need::{self, Need};

const RECORD: &str = "user.containers.override_stat";
const RECORDS: [&str; 2] = [RECORD, "user.fuseoverlayfs.override_stat"];
/// Flags of `setxattr(2)`.
const CREATE: u32 = 1;
const REPLACE: u32 = 2;

fn root_here() -> bool {
    need::met(&[Need::Root])
}

fn someone(uid: u32) -> Caller {
    Caller { uid, gid: uid, pid: 0, umask: 0o022 }
}

#[test]
fn mapped_ids_are_translated_both_ways() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/f", "x").file("l0/g", "y");
    chown(stack.path("l0/f"), Some(5), Some(7)).unwrap();
    chown(stack.path("l0/g"), Some(50_000), Some(50_000)).unwrap();
    let overlay = stack.open("uidmapping=0:1000:10,gidmapping=0:2000:10");
    let shown = attr(&overlay, "f");
    assert_eq!((shown.uid, shown.gid), (1005, 2007));
    let unmapped = attr(&overlay, "g");
    assert_eq!((unmapped.uid, unmapped.gid), (65534, 65534));
    let caller = Caller { uid: 1003, gid: 2004, ..someone(0) };
    let made = overlay.mkdir(&caller, NodeId::ROOT, b"d", 0o755).unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (1003, 2004));
    let disk = fs::metadata(stack.path("u/d")).unwrap();
    assert_eq!((disk.uid(), disk.gid()), (3, 4));
    let by_unmapped = overlay.mkdir(&someone(5), NodeId::ROOT, b"e", 0o755).unwrap();
    assert_eq!((by_unmapped.attr.uid, by_unmapped.attr.gid), (65534, 65534));
    assert_eq!(fs::metadata(stack.path("u/e")).unwrap().uid(), 65534);
    let to_unmapped = SetAttr { uid: Some(5), ..SetAttr::default() };
    let refused = overlay.setattr(&me(), walk(&overlay, "d").unwrap(), None, &to_unmapped);
    assert_eq!(refused.unwrap_err(), Errno::OVERFLOW);
    let set = SetAttr { uid: Some(1001), ..SetAttr::default() };
    let changed = overlay.setattr(&me(), walk(&overlay, "f").unwrap(), None, &set).unwrap();
    assert_eq!((changed.uid, changed.gid), (1001, 2007));
    assert_eq!(fs::metadata(stack.path("u/f")).unwrap().uid(), 1);
}

#[test]
fn acls_are_translated_like_owners() {
    if !root_here() {
        return;
    }
    let acl = |uid| {
        let entry = |tag, perm| AclEntry { tag, perm };
        Acl::from_entries([
            entry(AclTag::UserObj, 6),
            entry(AclTag::User(uid), 4),
            entry(AclTag::GroupObj, 4),
            entry(AclTag::Mask, 4),
            entry(AclTag::Other, 0),
        ])
        .encode()
    };
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open("uidmapping=0:1000:10,gidmapping=0:1000:10");
    let node = walk(&overlay, "f").unwrap();
    let name = "system.posix_acl_access";
    overlay.set_xattr(node, name.as_bytes(), &acl(1005), 0, false).unwrap();
    assert_eq!(xattr(&stack.path("u/f"), name), Some(acl(5)));
    assert_eq!(overlay.get_xattr(node, name.as_bytes()), Ok(acl(1005)));
    assert_eq!(overlay.set_xattr(node, name.as_bytes(), &acl(5), 0, false), Err(Errno::OVERFLOW));
}

#[test]
fn squashed_ids_show_one_owner_and_ignore_changes() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let before = fs::metadata(stack.path("l0/f")).unwrap();
    for (options, expected) in [
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=1234", (1234, before.gid())),
        ("squash_to_root,squash_to_gid=99", (0, 99)),
    ] {
        let overlay = stack.open(options);
        let shown = attr(&overlay, "f");
        assert_eq!((shown.uid, shown.gid), expected, "{options}");
        let set = SetAttr { uid: Some(expected.0), ..SetAttr::default() };
        let changed = overlay.setattr(&me(), walk(&overlay, "f").unwrap(), None, &set).unwrap();
        assert_eq!((changed.uid, changed.gid), expected, "{options}");
    }
    assert_eq!(fs::metadata(stack.path("u/f")).unwrap().uid(), before.uid());
}

#[test]
fn a_layer_whose_root_bears_a_record_shows_its_files_as_recorded() {
    for name in RECORDS {
        let stack = Stack::new(2);
        stack.file("l0/d/f", "x").file("l1/plain", "y");
        set_xattr(&stack.path("l0"), name, b"0:0:0755");
        set_xattr(&stack.path("l0/d"), name, b"3:4:0700");
        set_xattr(&stack.path("l0/d/f"), name, b"10:20:04711");
        set_xattr(&stack.path("l1/plain"), name, b"10:20:04711");
        let overlay = stack.open("");
        let shown = attr(&overlay, "d/f");
        assert_eq!((shown.uid, shown.gid, shown.mode), (10, 20, 0o104_711), "{name}");
        let dir = attr(&overlay, "d");
        assert_eq!((dir.uid, dir.gid, dir.mode), (3, 4, 0o040_700), "{name}");
        let plain = attr(&overlay, "plain");
        assert_ne!(
            (plain.uid, plain.mode & 0o7777),
            (10, 0o4711),
            "a layer without a marked root is as on disk"
        );
        assert_eq!(overlay.get_xattr(walk(&overlay, "d/f").unwrap(), name.as_bytes()), Err(Errno::NODATA));
    }
}

#[test]
fn with_records_in_upper_no_real_owner_or_set_id_bit_changes() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    fs::set_permissions(stack.path("l0/f"), fs::Permissions::from_mode(0o444)).unwrap();
    let own = fs::metadata(stack.path("l0/f")).unwrap();
    let overlay = stack.open("xattr_permissions=2");
    let node = walk(&overlay, "f").unwrap();
    let set = SetAttr { uid: Some(7), mode: Some(0o4555), ..SetAttr::default() };
    let shown = overlay.setattr(&me(), node, None, &set).unwrap();
    assert_eq!((shown.uid, shown.mode), (7, 0o104_555));
    let disk = fs::metadata(stack.path("u/f")).unwrap();
    assert_eq!((disk.uid(), disk.mode() & 0o7777), (own.uid(), 0o755));
    assert_eq!(xattr(&stack.path("u/f"), RECORD), Some(format!("7:{}:4555", own.gid()).into_bytes()));
    assert!(xattr(&stack.path("u"), RECORD).is_some(), "the root tells that the layer bears records");
    let caller = Caller { uid: 55, gid: 66, pid: 0, umask: 0o027 };
    let (entry, opened) = overlay.create(&caller, NodeId::ROOT, b"new", 0o640, 2).unwrap();
    overlay.release(opened.handle);
    assert_eq!((entry.attr.uid, entry.attr.gid, entry.attr.mode), (55, 66, 0o100_640));
    let made = overlay.mkdir(&caller, NodeId::ROOT, b"dir", 0o2770).unwrap();
    assert_eq!((made.attr.uid, made.attr.mode), (55, 0o042_750));
    let below = overlay.mkdir(&someone(9), made.node, b"below", 0o777).unwrap();
    assert_eq!((below.attr.uid, below.attr.gid, below.attr.mode), (9, 66, 0o042_755), "set-gid is inherited");
    let (file, opened) = overlay.tmpfile(&caller, NodeId::ROOT, 0o600, 2).unwrap();
    overlay.release(opened.handle);
    assert_eq!((file.attr.uid, file.attr.mode), (55, 0o100_600));
    overlay.set_xattr(node, RECORD.as_bytes(), b"0:0:4755", 0, false).unwrap();
    assert_eq!(attr(&overlay, "f").mode, 0o104_555, "a record cannot be forged through the mount");
    write(&overlay, "f", 0, "y");
    drop(overlay);
    let again = stack.open("");
    assert_eq!(attr(&again, "f").mode, 0o104_555, "the record is read without the option, too");
    assert_eq!(read(&again, "f"), "y");
    assert_eq!(list(&again, ""), ["dir", "f", "new"]);
}

#[test]
fn an_acl_changes_the_recorded_mode_as_chmod_does() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open("xattr_permissions=2");
    let made = overlay.mkdir(&me(), NodeId::ROOT, b"d", 0o700).unwrap();
    let acl = |mode| Acl::from_mode(mode).encode();
    let set = |node, mode| overlay.set_xattr(node, b"system.posix_acl_access", &acl(mode), 0, false);
    set(made.node, 0o755).unwrap();
    assert_eq!(attr(&overlay, "d").mode & 0o7777, 0o755, "as cp -a does");
    let file = walk(&overlay, "f").unwrap();
    let set_id = SetAttr { mode: Some(0o4666), ..SetAttr::default() };
    overlay.setattr(&me(), file, None, &set_id).unwrap();
    set(file, 0o600).unwrap();
    assert_eq!(attr(&overlay, "f").mode & 0o7777, 0o4600, "others must not read it");
}

#[test]
fn a_write_clears_recorded_set_id_bits() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open("xattr_permissions=2");
    let node = walk(&overlay, "f").unwrap();
    let set = SetAttr { mode: Some(0o4755), ..SetAttr::default() };
    overlay.setattr(&me(), node, None, &set).unwrap();
    let opened = overlay.open(&me(), node, 1, false).unwrap();
    overlay.write(opened.handle, 0, b"y", Some(&me())).unwrap();
    assert_eq!(attr(&overlay, "f").mode, 0o100_755);
}

#[test]
fn directories_show_one_link_where_that_is_asked_for() {
    let stack = Stack::new(1);
    stack.file("l0/d/e/f", "x");
    let real = fs::metadata(stack.path("l0/d")).unwrap().nlink();
    assert_eq!(u64::from(attr(&stack.open(""), "d").nlink), real);
    assert_eq!(attr(&stack.open("static_nlink"), "d").nlink, 1);
}

#[test]
fn attributes_that_are_switched_off_are_not_supported() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    set_xattr(&stack.path("l0/f"), "user.a", b"1");
    let noxattrs = stack.open("noxattrs");
    let node = walk(&noxattrs, "f").unwrap();
    assert_eq!(noxattrs.get_xattr(node, b"user.a"), Err(Errno::OPNOTSUPP));
    assert_eq!(noxattrs.set_xattr(node, b"user.b", b"", 0, false), Err(Errno::OPNOTSUPP));
    assert_eq!(noxattrs.list_xattr(&me(), node), Err(Errno::OPNOTSUPP));
    drop(noxattrs);
    let noacl = stack.open("noacl");
    let node = walk(&noacl, "f").unwrap();
    assert_eq!(noacl.get_xattr(node, b"system.posix_acl_access"), Err(Errno::OPNOTSUPP));
    assert_eq!(noacl.get_xattr(node, b"user.a"), Ok(b"1".to_vec()));
}

#[test]
fn inode_numbers_fit_32_bits_where_that_is_asked_for() {
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open("ino32_t");
    let before = attr(&overlay, "f").ino;
    assert!(before <= u64::from(u32::MAX));
    write(&overlay, "f", 0, "y");
    assert_eq!(attr(&overlay, "f").ino, before);
    list(&overlay, "");
}

#[test]
fn what_a_program_sets_as_a_record_is_never_believed() {
    for name in RECORDS {
        let stack = Stack::new(1);
        stack.file("l0/f", "x");
        let overlay = stack.open("");
        let node = walk(&overlay, "f").unwrap();
        for node in [NodeId::ROOT, node] {
            overlay.set_xattr(node, name.as_bytes(), b"0:0:4755", 0, false).unwrap();
            assert_eq!(overlay.get_xattr(node, name.as_bytes()), Ok(b"0:0:4755".to_vec()), "{name}");
        }
        drop(overlay);
        for options in ["", "xattr_permissions=2", ""] {
            let overlay = stack.open(options);
            assert_eq!(attr(&overlay, "f").mode & 0o7777, 0o644, "{name}: {options}");
            let node = walk(&overlay, "f").unwrap();
            assert_eq!(overlay.get_xattr(node, name.as_bytes()), Ok(b"0:0:4755".to_vec()), "{name}");
        }
    }
}

#[test]
fn an_overlay_inside_this_one_keeps_its_records_as_it_writes_them() {
    for (options, name) in RECORDS.into_iter().flat_map(|name| [("", name), ("xattr_permissions=2", name)]) {
        let stack = Stack::new(1);
        stack.file("l0/f", "x").file("l0/g", "y");
        set_xattr(&stack.path("l0/g"), name, b"1:1:0600");
        let overlay = stack.open(options);
        let (f, g) = (walk(&overlay, "f").unwrap(), walk(&overlay, "g").unwrap());
        let listed = |node| {
            let names = overlay.list_xattr(&me(), node).unwrap();
            names.split(|byte| *byte == 0).filter(|one| *one == name.as_bytes()).count()
        };
        let get = |node| overlay.get_xattr(node, name.as_bytes());
        assert_eq!((get(f), listed(f)), (Err(Errno::NODATA), 0), "{name}");
        assert_eq!((get(g), listed(g)), (Ok(b"1:1:0600".to_vec()), 1), "{name}: a lower's, before copy-up");
        write(&overlay, "g", 0, "z");
        assert_eq!((get(g), listed(g)), (Ok(b"1:1:0600".to_vec()), 1), "{name}: a lower's, after copy-up");
        assert_ne!(xattr(&stack.path("u/g"), name), Some(b"1:1:0600".to_vec()), "{name}: not as a record");
        let set = |node, value: &[u8], flags| overlay.set_xattr(node, name.as_bytes(), value, flags, false);
        assert_eq!(set(f, b"0:0:4755", REPLACE), Err(Errno::NODATA));
        assert_eq!(set(f, b"0:0:4755", CREATE), Ok(()));
        assert_eq!(set(g, b"0:0:4755", CREATE), Err(Errno::EXIST));
        assert_eq!(set(g, b"0:0:4755", REPLACE), Ok(()));
        for node in [f, g] {
            assert_eq!((get(node), listed(node)), (Ok(b"0:0:4755".to_vec()), 1), "{name}");
            assert_eq!(overlay.remove_xattr(&me(), node, name.as_bytes()), Ok(()));
            assert_eq!((get(node), listed(node)), (Err(Errno::NODATA), 0), "{name}");
            assert_eq!(overlay.remove_xattr(&me(), node, name.as_bytes()), Err(Errno::NODATA));
        }
    }
}

#[test]
fn a_record_that_another_overlay_let_a_program_set_in_upper_stays_an_attribute() {
    let stack = Stack::new(1);
    stack.file("u/f", "x").file("u/g", "x").file("l0/h", "x");
    for file in ["u/f", "u/g", "l0/h"] {
        set_xattr(&stack.path(file), RECORD, b"0:0:4755");
    }
    let overlay = stack.open("");
    let [f, g, h] = ["f", "g", "h"].map(|name| walk(&overlay, name).unwrap());
    assert_eq!(overlay.get_xattr(f, RECORD.as_bytes()), Ok(b"0:0:4755".to_vec()));
    assert_eq!(overlay.set_xattr(f, RECORD.as_bytes(), b"1", CREATE, false), Err(Errno::EXIST));
    assert_eq!(overlay.set_xattr(f, RECORD.as_bytes(), b"1", REPLACE, false), Ok(()));
    assert_eq!(overlay.get_xattr(f, RECORD.as_bytes()), Ok(b"1".to_vec()));
    assert_eq!(xattr(&stack.path("u/f"), RECORD), None);
    for node in [g, h] {
        assert_eq!(overlay.remove_xattr(&me(), node, RECORD.as_bytes()), Ok(()));
        assert_eq!(overlay.get_xattr(node, RECORD.as_bytes()), Err(Errno::NODATA));
    }
}
