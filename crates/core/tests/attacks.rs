//! Attacks that overlays fell to, performed on the engine. Permission to create is the front end's to check
//! (`default_permissions`); what is made, copied, followed or served is the engine's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test may fail by panicking"
)]

mod common;
#[path = "common/view.rs"]
mod view;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use common::{Stack, list, me, set_xattr, try_read, walk, xattr};
use plyfs_core::{Caller, Data, Errno, NodeId, Overlay, SetAttr, Settings, Time, TimeSet};
use plyfs_sys::OFlags;
use plyfs_testkit::need::{self, Need};

const O_RDWR: u32 = 2;
const USER: Caller = Caller { uid: 1000, gid: 1001, pid: 0, umask: 0 };
/// cap_setuid+ep, revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn root_here() -> bool {
    need::met(&[Need::Root])
}

fn touch(overlay: &Overlay, path: &str) -> Result<(), Errno> {
    let at = Some(TimeSet::At(Time { sec: 1, nsec: 0 }));
    let set = SetAttr { mtime: at, ..SetAttr::default() };
    overlay.setattr(&me(), walk(overlay, path)?, None, &set).map(drop)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A file system mounted on a path for the time of a test.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(path: std::path::PathBuf, options: &str) -> Self {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status();
        assert!(done.unwrap().success());
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "unmount {}", self.0.display());
    }
}

/// CVE-2015-1328: things were made in upper with the mounter's rights and owner.
#[test]
fn whatever_a_user_creates_belongs_to_the_user_however_it_is_made() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    for name in ["file", "dir", "link", "fifo", "node", "linked"] {
        stack.file(&format!("l0/d/{name}"), "");
    }
    let overlay = stack.open("");
    let parent = walk(&overlay, "d").unwrap();
    for over_whiteout in [false, true] {
        for name in ["file", "dir", "link", "fifo", "node", "linked"] {
            let name = if over_whiteout { name.to_owned() } else { format!("new-{name}") };
            if over_whiteout {
                overlay.unlink(parent, name.as_bytes()).unwrap();
            }
            make(&overlay, parent, &name);
            let meta = fs::symlink_metadata(stack.path(&format!("u/d/{name}"))).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (1000, 1001), "{name}");
        }
    }
}

fn make(overlay: &Overlay, parent: NodeId, name: &str) {
    let bytes = name.as_bytes();
    match name.trim_start_matches("new-") {
        "file" => {
            let (_, opened) = overlay.create(&USER, parent, bytes, 0o6777, O_RDWR).unwrap();
            overlay.release(opened.handle);
        }
        "dir" => assert!(overlay.mkdir(&USER, parent, bytes, 0o777).is_ok()),
        "link" => assert!(overlay.symlink(&USER, parent, bytes, b"/etc").is_ok()),
        "fifo" => assert!(overlay.mknod(&USER, parent, bytes, 0o010_666, (0, 0)).is_ok()),
        "node" => assert!(overlay.mknod(&USER, parent, bytes, 0o104_777, (0, 0)).is_ok()),
        _ => {
            let (entry, opened) = overlay.tmpfile(&USER, parent, 0o4777, O_RDWR).unwrap();
            overlay.link(entry.node, parent, bytes).unwrap();
            overlay.release(opened.handle);
        }
    }
}

/// A user who can make a whiteout or a private attribute can make lower files vanish or appear elsewhere.
#[test]
fn neither_whiteouts_nor_private_attributes_can_be_made_through_the_mount() {
    let stack = Stack::new(1);
    stack.file("l0/d/f", "lower");
    let overlay = stack.open("");
    let made = overlay.mknod(&USER, NodeId::ROOT, b"new", 0o020_666, (0, 0));
    assert_eq!(made.unwrap_err(), Errno::PERM);
    for name in [&b".wh.d"[..], b".wh..wh..opq"] {
        let made = overlay.mknod(&me(), NodeId::ROOT, name, 0o100_666, (0, 0));
        assert_eq!(made.unwrap_err(), Errno::INVAL);
        assert_eq!(overlay.mkdir(&me(), NodeId::ROOT, name, 0o777).unwrap_err(), Errno::INVAL);
        assert_eq!(overlay.symlink(&me(), NodeId::ROOT, name, b"t").unwrap_err(), Errno::INVAL);
        let file = walk(&overlay, "d/f").unwrap();
        assert_eq!(overlay.link(file, NodeId::ROOT, name).unwrap_err(), Errno::INVAL);
        assert_eq!(overlay.rename(NodeId::ROOT, b"d", NodeId::ROOT, name, 0), Err(Errno::INVAL));
    }
    let prefix = if rustix::process::geteuid().is_root() { "trusted" } else { "user" };
    let dir = walk(&overlay, "d").unwrap();
    for (name, value) in [("opaque", &b"y"[..]), ("redirect", b"/elsewhere"), ("metacopy", b"")] {
        let name = format!("{prefix}.overlay.{name}");
        overlay.set_xattr(dir, name.as_bytes(), value, 0, false).unwrap();
        assert_eq!(xattr(&stack.path("u/d"), &name), None, "{name} is escaped on disk");
        assert_eq!(overlay.get_xattr(dir, name.as_bytes()).unwrap(), value);
    }
    drop(overlay);
    assert_eq!(list(&stack.open(""), "d"), ["f"]);
}

/// CVE-2021-3493 and kin: what a layer says about the overlay, or about privileges, is not copied up with a file.
#[test]
fn private_attributes_of_a_lower_file_do_not_get_into_upper() {
    let stack = Stack::new(1);
    stack.file("l0/d/f", "lower").file("l0/dir/f", "");
    let namespace = if rustix::process::geteuid().is_root() { "trusted" } else { "user" };
    for (name, value) in
        [("opaque", &b"y"[..]), ("origin", b"\0\xfb\x15"), ("impure", b"y"), ("nlink", b"U+9")]
    {
        set_xattr(&stack.path("l0/dir"), &format!("{namespace}.overlay.{name}"), value);
    }
    set_xattr(&stack.path("l0/d/f"), &format!("{namespace}.overlay.whiteout"), b"y");
    set_xattr(&stack.path("l0/d/f"), &format!("{namespace}.overlay.protattr"), b"i");
    let overlay = stack.open("");
    touch(&overlay, "dir").unwrap();
    touch(&overlay, "d/f").unwrap();
    for name in ["opaque", "impure", "nlink"] {
        assert_eq!(xattr(&stack.path("u/dir"), &format!("{namespace}.overlay.{name}")), None, "{name}");
    }
    for name in ["whiteout", "protattr"] {
        assert_eq!(xattr(&stack.path("u/d/f"), &format!("{namespace}.overlay.{name}")), None, "{name}");
    }
}

/// A program with set-id bits and a capability.
fn privileged_file(stack: &Stack, path: &str) {
    stack.file(path, "#!");
    fs::set_permissions(stack.path(path), fs::Permissions::from_mode(0o6755)).unwrap();
    set_xattr(&stack.path(path), "security.capability", &CAPABILITY);
}

/// CVE-2023-0386 and CVE-2021-3847: a set-user-id file, or one with a capability, that its mount makes harmless.
#[test]
fn a_file_of_a_nosuid_layer_is_copied_up_without_its_privileges() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    let _mounted = Mounted::tmpfs(stack.path("l0"), "nosuid,mode=755");
    for name in ["touched", "written", "renamed", "linked"] {
        privileged_file(&stack, &format!("l0/{name}"));
    }
    let overlay = stack.open("");
    touch(&overlay, "touched").unwrap();
    common::write(&overlay, "written", 0, "evil");
    overlay.rename(NodeId::ROOT, b"renamed", NodeId::ROOT, b"new-name", 0).unwrap();
    overlay.link(walk(&overlay, "linked").unwrap(), NodeId::ROOT, b"new-link").unwrap();
    for name in ["touched", "written", "new-name", "new-link"] {
        let path = stack.path(&format!("u/{name}"));
        assert_eq!(mode(&path) & 0o6000, 0, "{name}");
        assert_eq!(xattr(&path, "security.capability"), None, "{name}");
    }
}

/// The same file on an ordinary layer keeps what it has: the copy grants what the original did.
#[test]
fn a_file_of_an_ordinary_layer_keeps_its_privileges_in_its_copy_until_it_is_written() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    privileged_file(&stack, "l0/f");
    let overlay = stack.open("");
    touch(&overlay, "f").unwrap();
    assert_eq!(mode(&stack.path("u/f")), 0o6755);
    assert_eq!(xattr(&stack.path("u/f"), "security.capability").as_deref(), Some(&CAPABILITY[..]));
    let opened = overlay.open(&USER, walk(&overlay, "f").unwrap(), O_RDWR, true).unwrap();
    overlay.write(opened.handle, 0, b"evil", Some(&me())).unwrap();
    assert_eq!(mode(&stack.path("u/f")), 0o755);
    assert_eq!(xattr(&stack.path("u/f"), "security.capability"), None);
}

/// A mapping settles no privileges, and the page cache writes for nobody.
#[test]
fn what_the_page_cache_writes_back_takes_no_privileges() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    privileged_file(&stack, "l0/f");
    let overlay = stack.open("");
    let opened = overlay.open(&me(), walk(&overlay, "f").unwrap(), O_RDWR, false).unwrap();
    overlay.write_back(opened.handle, 0, b"mapped").unwrap();
    assert_eq!(fs::read(stack.path("u/f")).unwrap(), b"mapped");
    assert_eq!(mode(&stack.path("u/f")), 0o6755);
    assert_eq!(xattr(&stack.path("u/f"), "security.capability").as_deref(), Some(&CAPABILITY[..]));
}

/// That a file has none is remembered from one write to the next, until it may get some.
#[test]
fn privileges_that_came_after_data_was_written_back_are_kept_by_the_next() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/f", "x");
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    let opened = overlay.open(&me(), node, O_RDWR, false).unwrap();
    for data in [b"one", b"two"] {
        overlay.write_back(opened.handle, 0, data).unwrap();
    }
    overlay.set_xattr(node, b"security.capability", &CAPABILITY, 0, false).unwrap();
    let set = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    overlay.setattr(&me(), node, None, &set).unwrap();
    for data in [b"six", b"ten"] {
        overlay.write_back(opened.handle, 0, data).unwrap();
        assert_eq!(fs::read(stack.path("u/f")).unwrap(), data);
        assert_eq!(mode(&stack.path("u/f")), 0o6755);
        let capability = xattr(&stack.path("u/f"), "security.capability");
        assert_eq!(capability.as_deref(), Some(&CAPABILITY[..]));
    }
}

#[test]
fn set_group_id_goes_where_one_who_is_not_of_the_group_removes_an_acl_that_is_not_there() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("l0/f", "#!");
    fs::set_permissions(stack.path("l0/f"), fs::Permissions::from_mode(0o2640)).unwrap();
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    assert_eq!(overlay.remove_xattr(&me(), node, b"system.posix_acl_access"), Err(Errno::NODATA));
    assert!(!stack.path("u/f").exists(), "nothing was copied up for nothing");
    overlay.remove_xattr(&USER, node, b"system.posix_acl_access").unwrap();
    assert_eq!(mode(&stack.path("u/f")), 0o640);
}

#[test]
fn a_chown_of_a_special_file_takes_its_set_group_id() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(1);
    fs::create_dir_all(stack.path("l0")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, stack.path("l0/f"), 0o600.into()).unwrap();
    fs::set_permissions(stack.path("l0/f"), fs::Permissions::from_mode(0o2640)).unwrap();
    let overlay = stack.open("");
    let set = SetAttr { uid: Some(1000), kill_priv: true, ..SetAttr::default() };
    let attr = overlay.setattr(&USER, walk(&overlay, "f").unwrap(), None, &set).unwrap();
    assert_eq!(attr.mode & 0o7777, 0o640);
}

/// CVE-2023-0386: an owner that the user namespace does not know must not become one that it does.
#[test]
fn a_file_whose_owner_is_not_mapped_is_not_copied_up() {
    const INSIDE: &str = "PLYFS_ATTACK_STACK";
    if let Some(dir) = std::env::var_os(INSIDE) {
        return copy_up_unmapped(Path::new(&dir));
    }
    if !need::met(&[Need::Root, Need::UserNamespace, Need::Tool("unshare")]) {
        return;
    }
    let stack = Stack::new(1);
    fs::set_permissions(stack.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["owned", "grouped"] {
        stack.file(&format!("l0/{name}"), "#!");
    }
    chown(stack.path("l0/owned"), Some(1000), None).unwrap();
    chown(stack.path("l0/grouped"), None, Some(1000)).unwrap();
    for name in ["owned", "grouped"] {
        fs::set_permissions(stack.path(&format!("l0/{name}")), fs::Permissions::from_mode(0o6755)).unwrap();
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_file_whose_owner_is_not_mapped_is_not_copied_up"])
        .env(INSIDE, stack.path(""))
        .status();
    assert!(status.unwrap().success());
    assert_eq!(fs::read_dir(stack.path("u")).unwrap().count(), 0, "nothing got into upper");
    assert_eq!(fs::read_dir(stack.path("w/work")).unwrap().count(), 0, "nothing is left in work");
}

fn copy_up_unmapped(dir: &Path) {
    let root = dir.display();
    let text = format!("lowerdir={root}/l0,upperdir={root}/u,workdir={root}/w,userxattr");
    let spec = plyfs_format::StackSpec::parse(&[text]).unwrap().spec;
    let overlay = Overlay::assemble(&spec, &Settings::default()).unwrap();
    for name in ["owned", "grouped"] {
        let node = walk(&overlay, name).unwrap();
        assert_eq!(touch(&overlay, name), Err(Errno::OVERFLOW), "{name}");
        assert_eq!(overlay.open(&me(), node, O_RDWR, false).unwrap_err(), Errno::OVERFLOW, "{name}");
        assert_eq!(
            overlay.rename(NodeId::ROOT, name.as_bytes(), NodeId::ROOT, b"new", 0),
            Err(Errno::OVERFLOW)
        );
    }
}

/// A crafted redirect shows files that the layer's reader may not see.
#[test]
fn a_redirect_of_a_layer_that_users_could_write_is_not_followed() {
    let stack = Stack::new(2);
    stack.file("l1/secret/key", "secret").file("l0/d/x", "").file("u/e/x", "");
    set_xattr(&stack.path("l0/d"), "user.overlay.redirect", b"/secret");
    set_xattr(&stack.path("u/e"), "user.overlay.redirect", b"/secret");
    let overlay = stack.open("userxattr");
    for path in ["d/key", "e/key"] {
        let found = try_read(&overlay, path);
        assert!(matches!(found, Err(Errno::PERM | Errno::NOENT)), "{path}: {found:?}");
    }
    // trusted.* layers do not follow what any user can set.
    if rustix::process::geteuid().is_root() {
        drop(overlay);
        let overlay = stack.open("redirect_dir=on");
        for path in ["d/key", "e/key"] {
            assert_eq!(try_read(&overlay, path), Err(Errno::NOENT), "{path}");
        }
    }
}

#[test]
fn a_metacopy_of_a_layer_that_users_could_write_shows_no_other_file() {
    let stack = Stack::new(2);
    stack.file("l1/secret", "secret").file("l0/f", "").file("u/g", "");
    fs::File::options().write(true).open(stack.path("l0/f")).unwrap().set_len(6).unwrap();
    fs::File::options().write(true).open(stack.path("u/g")).unwrap().set_len(6).unwrap();
    for path in ["l0/f", "u/g"] {
        set_xattr(&stack.path(path), "user.overlay.metacopy", b"");
        set_xattr(&stack.path(path), "user.overlay.redirect", b"/secret");
    }
    set_xattr(&stack.path("u"), "user.overlay.impure", b"y");
    let overlay = stack.open("userxattr");
    for path in ["f", "g"] {
        let found = try_read(&overlay, path);
        assert!(found.as_deref() != Ok("secret"), "{path}: {found:?}");
    }
}

#[test]
fn a_redirect_leads_neither_out_of_the_layer_nor_through_symlinks_nor_to_other_mounts() {
    if !root_here() {
        return;
    }
    let stack = Stack::new(2);
    stack.file("outside/key", "secret").file("l1/inside/key", "inside");
    fs::create_dir(stack.path("l1/mounted")).unwrap();
    let _mounted = Mounted::tmpfs(stack.path("l1/mounted"), "mode=755");
    stack.file("l1/mounted/key", "secret").file("l1/mounted/below/key", "secret");
    symlink("../outside", stack.path("l1/link")).unwrap();
    symlink(stack.path("outside"), stack.path("l1/absolute")).unwrap();
    let targets = [
        "/../outside",
        "../outside",
        "/link",
        "link",
        "/absolute",
        "/link/../outside",
        "/mounted",
        "/mounted/below",
    ];
    for (number, target) in targets.iter().enumerate() {
        fs::create_dir(stack.path(&format!("l0/d{number}"))).unwrap();
        set_xattr(&stack.path(&format!("l0/d{number}")), "trusted.overlay.redirect", target.as_bytes());
    }
    fs::create_dir(stack.path("l0/good")).unwrap();
    set_xattr(&stack.path("l0/good"), "trusted.overlay.redirect", b"/inside");
    let overlay = stack.open("redirect_dir=on");
    for (number, target) in targets.iter().enumerate() {
        let found = try_read(&overlay, &format!("d{number}/key"));
        assert!(matches!(found, Err(Errno::INVAL | Errno::NOENT | Errno::IO)), "{target}: {found:?}");
    }
    assert_eq!(try_read(&overlay, "good/key").as_deref(), Ok("inside"), "an honest redirect is followed");
}

/// Whoever can write a lower layer swaps a directory for a symbolic link while the engine has its path only.
#[test]
fn a_directory_that_becomes_a_symlink_is_not_followed() {
    let stack = Stack::new(1);
    stack.file("l0/d/e/key", "lower").file("outside/e/key", "secret");
    for number in 0..40 {
        stack.file(&format!("l0/other{number}/f"), "");
    }
    let overlay = stack.open_with("", &Settings { open_directories: 1, ..Settings::default() });
    let dir = walk(&overlay, "d/e").unwrap();
    for number in 0..40 {
        walk(&overlay, &format!("other{number}/f")).unwrap();
    }
    fs::rename(stack.path("l0/d"), stack.path("l0/away")).unwrap();
    symlink(stack.path("outside"), stack.path("l0/d")).unwrap();
    let found = overlay.lookup(dir, b"key");
    assert!(matches!(found, Err(Errno::LOOP | Errno::NOTDIR)), "{found:?}");
}

/// The bug of a peer: hold a lower file open for reading, open it for writing, and the kernel writes into the layer.
#[test]
fn what_the_kernel_writes_to_the_file_it_was_given_never_reaches_a_lower_layer() {
    let stack = Stack::new(1);
    stack.file("l0/f", "lower");
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    let reader = overlay.open(&me(), node, 0, false).unwrap();
    assert!(matches!(reader.data, Data::LowerOfWritable), "a reader of a lower file gets no file to share");
    let writer = overlay.open(&me(), node, O_RDWR, false).unwrap();
    let late = overlay.open(&me(), node, 0, false).unwrap();
    for opened in [&writer, &late] {
        let Data::Shareable(shared) = &opened.data else { panic!("an upper file") };
        // The kernel opens the backing path again, with the flags of whoever opens.
        let kernel = shared.file().reopen(OFlags::RDWR).unwrap();
        kernel.pwrite(b"UPPER", 0).unwrap();
    }
    assert_eq!(fs::read(stack.path("l0/f")).unwrap(), b"lower");
    assert_eq!(fs::read(stack.path("u/f")).unwrap(), b"UPPER");
    assert_eq!(try_read(&overlay, "f").as_deref(), Ok("UPPER"));
}

/// Without an upper a file is shared from the layer, and then nothing can be opened for writing.
#[test]
fn a_file_that_is_shared_from_a_lower_layer_cannot_be_opened_for_writing() {
    let stack = Stack::new(1);
    stack.file("l0/f", "lower");
    let text = format!("lowerdir={}", stack.path("l0").display());
    let spec = plyfs_format::StackSpec::parse(&[text]).unwrap().spec;
    let overlay = Overlay::assemble(&spec, &Settings::default()).unwrap();
    let node = walk(&overlay, "f").unwrap();
    let reader = overlay.open(&me(), node, 0, false).unwrap();
    let Data::Shareable(shared) = &reader.data else { panic!("there is no upper") };
    assert_eq!(shared.file().reopen(OFlags::RDWR).map(drop), Err(Errno::ROFS));
    assert_eq!(shared.file().pwrite(b"evil", 0), Err(Errno::ROFS));
    for flags in [1, O_RDWR, 0o1000, 1 | 0o2000] {
        assert_eq!(overlay.open(&me(), node, flags, false).unwrap_err(), Errno::ROFS);
    }
}
