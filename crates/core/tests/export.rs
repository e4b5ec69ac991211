//! `nfs_export=on`: a node's id leads to its object after it was forgotten and after a remount; and the index that the
//! kernel keeps for that.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use common::{Stack, attr, kernel_can_be_asked, list, me, read, walk, write, xattr};
use plyfs_core::{Errno, NodeId, Overlay, SetAttr};
use plyfs_format::FileHandle;
use plyfs_sys::handle::open_by_handle;
use plyfs_sys::{Dir, OFlags};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::need::{self, Need};

const OPTIONS: &str = "nfs_export=on,redirect_dir=on";

fn root_here() -> bool {
    need::met(&[Need::Root])
}

/// The tree of most tests: `d/sub` merges from both lowers, `links/a` and `links/b` are one file.
fn stack() -> Stack {
    filled(Stack::new(2))
}

fn filled(stack: Stack) -> Stack {
    stack.file("l0/top", "top").file("l0/d/sub/one", "one").file("l1/d/sub/two", "two").file("l1/low/x", "x");
    stack.file("l1/links/a", "linked").file("l0/d/copied", "copied").file("l0/d/gone", "");
    fs::hard_link(stack.path("l1/links/a"), stack.path("l1/links/b")).unwrap();
    std::os::unix::fs::symlink("target", stack.path("l1/low/link")).unwrap();
    stack
}

/// The id with its generation, the inode number and the content (nothing for what is no regular file) of a path; nothing is
/// remembered after it.
type Known = (Handle, u64, Option<String>);

/// What a file handle of a FUSE mount consists of.
type Handle = (NodeId, u32);

fn know(overlay: &Overlay, path: &str) -> Known {
    let id = walk(overlay, path).unwrap();
    let generation = overlay.lookup(id, b".").unwrap().unwrap().generation;
    let known = look(overlay, (id, generation)).unwrap();
    forget_all(overlay, path);
    known
}

/// Gives back the lookups of a walk.
fn forget_all(overlay: &Overlay, path: &str) {
    let mut ids = Vec::new();
    let mut node = NodeId::ROOT;
    for name in path.split('/') {
        node = overlay.lookup(node, name.as_bytes()).unwrap().unwrap().node;
        ids.push(node);
    }
    for id in ids {
        overlay.forget(id, 1000);
    }
}

/// What the front end does with a handle whose inode it has no more.
fn look(overlay: &Overlay, (id, generation): Handle) -> Result<Known, Errno> {
    let entry = overlay.lookup(id, b".")?.ok_or(Errno::STALE)?;
    assert_eq!(entry.node, id);
    if entry.generation != generation {
        overlay.forget(id, 1);
        return Err(Errno::STALE);
    }
    let content = (entry.attr.mode & 0o170_000 == 0o100_000).then(|| read_node(overlay, id));
    overlay.forget(id, 1);
    Ok(((id, generation), entry.attr.ino, content))
}

fn read_node(overlay: &Overlay, id: NodeId) -> String {
    let opened = overlay.open(&me(), id, 0, false).unwrap();
    let mut data = vec![0; 100];
    let count = overlay.read(opened.handle, 0, &mut data).unwrap();
    overlay.release(opened.handle);
    data.truncate(count);
    String::from_utf8(data).unwrap()
}

fn write_node(overlay: &Overlay, id: NodeId, content: &str) {
    let opened = overlay.open(&me(), id, 1, false).unwrap();
    overlay.write(opened.handle, 0, content.as_bytes(), None).unwrap();
    overlay.release(opened.handle);
}

fn entries(stack: &Stack) -> Vec<fs::DirEntry> {
    let entries = fs::read_dir(stack.path("w/index")).unwrap().map(Result::unwrap);
    // Temporaries: the kernel keeps a whiteout there.
    entries.filter(|entry| !entry.file_name().as_bytes().starts_with(b"#")).collect()
}

fn whiteouts(stack: &Stack) -> usize {
    entries(stack).iter().filter(|entry| entry.file_type().unwrap().is_char_device()).count()
}

const EVERYTHING: [&str; 11] =
    ["top", "d", "d/sub", "d/sub/one", "d/sub/two", "low", "low/x", "low/link", "links/a", "new", "new/file"];

fn create(overlay: &Overlay) {
    let new = overlay.mkdir(&me(), NodeId::ROOT, b"new", 0o755).unwrap().node;
    let (entry, opened) = overlay.create(&me(), new, b"file", 0o644, 2).unwrap();
    overlay.write(opened.handle, 0, b"created", None).unwrap();
    overlay.release(opened.handle);
    overlay.forget(entry.node, 1);
    overlay.forget(new, 1);
}

#[test]
fn an_id_leads_to_its_object_once_nothing_is_remembered_and_after_a_remount() {
    if !root_here() {
        return;
    }
    for kind in [Kind::Tmpfs, Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        let mkfs = format!("mkfs.{}", kind.name());
        let needs = [Need::Filesystem(kind.name()), Need::Tool(&mkfs)];
        if !need::met(needs.get(..if kind == Kind::Tmpfs { 1 } else { 2 }).unwrap()) {
            continue;
        }
        let backing = Backing::sized(kind, 320 << 20).unwrap();
        let stack = filled(Stack::within(tempfile::tempdir_in(backing.path()).unwrap(), 2));
        let overlay = stack.open(OPTIONS);
        create(&overlay);
        let known: Vec<Known> = EVERYTHING.iter().map(|path| know(&overlay, path)).collect();
        assert_eq!(overlay.remembered(), 1, "{kind:?}: all but the root is forgotten");
        for (known, path) in known.iter().zip(EVERYTHING) {
            assert_eq!(look(&overlay, known.0).as_ref(), Ok(known), "{kind:?} {path}");
        }
        assert_eq!(overlay.remembered(), 1, "{kind:?}");
        drop(overlay);
        let overlay = stack.open(OPTIONS);
        for (known, path) in known.iter().zip(EVERYTHING) {
            assert_eq!(look(&overlay, known.0).as_ref(), Ok(known), "{kind:?} {path}");
        }
        for (known, path) in known.iter().zip(EVERYTHING) {
            assert_eq!(know(&overlay, path), *known, "{kind:?} {path}");
        }
    }
}

#[test]
fn an_id_stays_across_copy_up_renames_and_further_names() {
    if !root_here() {
        return;
    }
    let stack = stack();
    let overlay = stack.open(OPTIONS);
    let ids = ["d/copied", "d/sub", "d/sub/one", "links/a", "low"].map(|path| know(&overlay, path).0);
    let [copied, sub, one, linked, low] = ids;
    write(&overlay, "d/copied", 0, "COPIED");
    write(&overlay, "links/b", 0, "LINKED");
    let d = walk(&overlay, "d").unwrap();
    overlay.rename(NodeId::ROOT, b"low", d, b"lower", 0).unwrap();
    overlay.rename(d, b"sub", NodeId::ROOT, b"moved", 0).unwrap();
    overlay.rename(d, b"copied", NodeId::ROOT, b"away", 0).unwrap();
    overlay.rename(NodeId::ROOT, b"d", NodeId::ROOT, b"e", 0).unwrap();
    overlay.link(walk(&overlay, "away").unwrap(), NodeId::ROOT, b"further").unwrap();
    let check = |overlay: &Overlay| {
        assert_eq!(look(overlay, copied).unwrap().2.unwrap(), "COPIED");
        assert_eq!(look(overlay, linked).unwrap().2.unwrap(), "LINKED");
        assert_eq!(look(overlay, one).unwrap().2.unwrap(), "one");
        let paths =
            [(copied, "away"), (copied, "further"), (sub, "moved"), (one, "moved/one"), (linked, "links/b")];
        for (handle, path) in paths.into_iter().chain([(low, "e/lower")]) {
            look(overlay, handle).unwrap();
            assert_eq!(walk(overlay, path), Ok(handle.0), "{path}");
        }
    };
    check(&overlay);
    drop(overlay);
    check(&stack.open(OPTIONS));
    let overlay = stack.open(OPTIONS);
    for id in ids {
        look(&overlay, id).unwrap();
    }
    assert_eq!(overlay.remembered(), 1);
    // A directory that is found by its handle is where it is by name, with all it holds.
    let sub = sub.0;
    assert_eq!(overlay.lookup(sub, b".").unwrap().unwrap().node, sub);
    assert_eq!(overlay.lookup(sub, b"..").unwrap().unwrap().node, NodeId::ROOT);
    assert_eq!(
        overlay.lookup(sub, b"two").unwrap().map(|entry| read_node(&overlay, entry.node)).unwrap(),
        "two"
    );
    assert_eq!(list(&overlay, "moved"), ["one", "two"]);
}

#[test]
fn an_object_without_a_known_name_can_be_changed() {
    if !root_here() {
        return;
    }
    let stack = stack();
    let overlay = stack.open(OPTIONS);
    create(&overlay);
    let ids = ["top", "new/file", "low/link", "links/a"].map(|path| know(&overlay, path).0.0);
    drop(overlay);
    let overlay = stack.open(OPTIONS);
    let [top, file, link, linked] = ids;
    for id in ids {
        overlay.lookup(id, b".").unwrap().unwrap();
    }
    assert_eq!(overlay.readlink(link).unwrap(), b"target");
    assert_eq!(overlay.get_xattr(top, b"user.none"), Err(Errno::NODATA));
    write_node(&overlay, top, "TOP");
    write_node(&overlay, file, "CREATED");
    write_node(&overlay, linked, "LINKED");
    for id in ids {
        let set = SetAttr { uid: Some(7), ..SetAttr::default() };
        overlay.setattr(&me(), id, None, &set).unwrap();
    }
    overlay.set_xattr(file, b"user.a", b"1", 0, false).unwrap();
    let seen = |overlay: &Overlay| {
        let contents = ["top", "new/file", "links/a", "links/b"].map(|path| read(overlay, path));
        assert_eq!(contents, ["TOP", "CREATED", "LINKED", "LINKED"]);
        for path in ["top", "new/file", "low/link", "links/b"] {
            assert_eq!(attr(overlay, path).uid, 7, "{path}");
        }
        assert_eq!(overlay.get_xattr(walk(overlay, "new/file").unwrap(), b"user.a").unwrap(), b"1");
    };
    seen(&overlay);
    let paths = ["top", "new/file", "low/link", "links/a"];
    assert_eq!(paths.map(|path| walk(&overlay, path).unwrap()), ids, "the names lead to the same nodes");
    assert_eq!(attr(&overlay, "top").nlink, 1);
    assert_eq!(attr(&overlay, "links/a").nlink, 2);
    overlay.link(file, NodeId::ROOT, b"hard").unwrap();
    drop(overlay);
    seen(&stack.open(OPTIONS));
}

#[test]
fn what_was_removed_is_stale_and_nothing_is_copied_up_for_it() {
    if !root_here() {
        return;
    }
    let stack = stack();
    let overlay = stack.open(OPTIONS);
    create(&overlay);
    write(&overlay, "d/copied", 0, "COPIED");
    overlay.rename(NodeId::ROOT, b"top", NodeId::ROOT, b"was-top", 0).unwrap();
    let paths = ["d/gone", "d/copied", "low/x", "low/link", "low", "new/file", "new", "was-top", "links/a"];
    let ids = paths.map(|path| know(&overlay, path).0);
    let low = walk(&overlay, "low").unwrap();
    let d = walk(&overlay, "d").unwrap();
    for (parent, name) in [(d, &b"gone"[..]), (d, b"copied"), (low, b"x"), (low, b"link")] {
        overlay.unlink(parent, name).unwrap();
    }
    overlay.rmdir(NodeId::ROOT, b"low").unwrap();
    overlay.unlink(walk(&overlay, "new").unwrap(), b"file").unwrap();
    overlay.rmdir(NodeId::ROOT, b"new").unwrap();
    let links = walk(&overlay, "links").unwrap();
    overlay.unlink(links, b"a").unwrap();
    assert_eq!(look(&overlay, ids[8]).unwrap().2.unwrap(), "linked", "it has another name");
    overlay.unlink(links, b"b").unwrap();
    overlay.rename(walk(&overlay, "d/sub").unwrap(), b"one", NodeId::ROOT, b"was-top", 0).unwrap();
    // The front end gives everything back.
    for id in [low, d, links] {
        overlay.forget(id, 1000);
    }
    let gone = |overlay: &Overlay| {
        for (id, path) in ids.iter().zip(paths) {
            assert_eq!(overlay.lookup(id.0, b"."), Err(Errno::STALE), "{path}");
        }
    };
    drop(overlay);
    let overlay = stack.open(OPTIONS);
    gone(&overlay);
    assert!(!stack.path("u/d/gone").metadata().unwrap().is_file(), "a whiteout");
    // gone, copied, x, link, low, was-top, links
    assert_eq!(whiteouts(&stack), 7);
    drop(overlay);
    if kernel_can_be_asked() {
        stack.kernel(OPTIONS).unmount().unwrap();
        gone(&stack.open(OPTIONS));
    }
}

#[test]
fn ids_that_nobody_gave_are_stale() {
    if !root_here() {
        return;
    }
    let stack = stack();
    let overlay = stack.open(OPTIONS);
    create(&overlay);
    let known = ["top", "d", "new", "new/file"].map(|path| know(&overlay, path).0);
    for (id, generation) in known {
        for bit in 0..64 {
            let forged = NodeId(id.0 ^ 1 << bit);
            assert_eq!(
                look(&overlay, (forged, generation)),
                Err(Errno::STALE),
                "{id:?} with bit {bit} changed"
            );
            assert_eq!(overlay.lookup(forged, b".."), Err(Errno::STALE));
        }
        assert_eq!(overlay.lookup(NodeId(id.0 & 0x1fff_ffff), b"."), Err(Errno::STALE), "no generation");
        assert_eq!(look(&overlay, (id, generation ^ 1)), Err(Errno::STALE));
    }
    for id in [0, 2, 3, 1 << 61, 1 << 62, 1 << 63, u64::MAX, (1 << 62) | 2, (1 << 62) - 1] {
        assert_eq!(overlay.lookup(NodeId(id), b"."), Err(Errno::STALE), "{id:x}");
    }
    assert_eq!(overlay.remembered(), 1);
}

#[test]
fn a_directory_outside_of_the_layers_is_not_to_be_had() {
    if !root_here() {
        return;
    }
    // Beside each other under one directory, the second stack's directories are on the file system of the first.
    let stack = stack();
    let other = Stack::within(tempfile::tempdir_in(stack.path("")).unwrap(), 1);
    other.file("l0/theirs/x", "");
    let theirs = know(&other.open(OPTIONS), "theirs").0.0;
    assert_eq!(stack.open(OPTIONS).lookup(theirs, b"."), Err(Errno::STALE));
    // An upper directory that was moved out of upper behind the engine's back.
    let overlay = stack.open(OPTIONS);
    create(&overlay);
    let new = know(&overlay, "new").0.0;
    drop(overlay);
    fs::rename(stack.path("u/new"), stack.path("outside")).unwrap();
    assert_eq!(stack.open(OPTIONS).lookup(new, b"."), Err(Errno::STALE));
}

#[test]
fn without_an_upper_ids_last_too() {
    if !root_here() {
        return;
    }
    let stack = stack();
    let root = stack.path("");
    let open = || {
        let text = format!("lowerdir={0}/l0:{0}/l1,nfs_export=on,redirect_dir=nofollow", root.display());
        let spec = plyfs_format::StackSpec::parse(&[text]).unwrap().spec;
        Overlay::assemble(&spec, &plyfs_core::Settings::default()).unwrap()
    };
    let overlay = open();
    let known = ["top", "d/sub", "d/sub/two", "links/a"].map(|path| know(&overlay, path));
    drop(overlay);
    let overlay = open();
    for known in known {
        assert_eq!(look(&overlay, known.0), Ok(known));
    }
}

#[test]
fn without_the_option_ids_are_as_short_lived_as_before() {
    let stack = stack();
    let overlay = stack.open("");
    let top = know(&overlay, "top").0.0;
    assert_eq!(overlay.lookup(top, b"."), Err(Errno::STALE));
    let top = walk(&overlay, "d").unwrap();
    assert_eq!(overlay.lookup(top, b".").unwrap().unwrap().node, top);
    assert_eq!(overlay.lookup(top, b"..").unwrap().unwrap().node, NodeId::ROOT);
}

/// What there is in the index, without the names: how many files, directories and whiteouts.
fn census(stack: &Stack) -> [usize; 3] {
    let kind = |entry: &fs::DirEntry| entry.file_type().unwrap();
    let (mut files, mut dirs) = (0, 0);
    for entry in entries(stack) {
        files += usize::from(kind(&entry).is_file());
        dirs += usize::from(kind(&entry).is_dir());
    }
    [files, dirs, whiteouts(stack)]
}

/// The same changes by the engine and by the kernel.
fn change(stack: &Stack, by_kernel: bool) {
    if by_kernel {
        let mounted = stack.kernel(OPTIONS);
        let at = |path: &str| mounted.path().join(path);
        fs::write(at("d/copied"), "COPIED").unwrap();
        fs::remove_file(at("d/gone")).unwrap();
        fs::rename(at("d/sub"), at("moved")).unwrap();
        fs::remove_file(at("low/x")).unwrap();
        fs::remove_file(at("low/link")).unwrap();
        fs::remove_dir(at("low")).unwrap();
        fs::rename(at("links/a"), at("top")).unwrap();
        fs::create_dir(at("new")).unwrap();
        mounted.unmount().unwrap();
        return;
    }
    let overlay = stack.open(OPTIONS);
    write(&overlay, "d/copied", 0, "COPIED");
    let (d, low) = (walk(&overlay, "d").unwrap(), walk(&overlay, "low").unwrap());
    overlay.unlink(d, b"gone").unwrap();
    overlay.rename(d, b"sub", NodeId::ROOT, b"moved", 0).unwrap();
    overlay.unlink(low, b"x").unwrap();
    overlay.unlink(low, b"link").unwrap();
    overlay.rmdir(NodeId::ROOT, b"low").unwrap();
    overlay.rename(walk(&overlay, "links").unwrap(), b"a", NodeId::ROOT, b"top", 0).unwrap();
    overlay.mkdir(&me(), NodeId::ROOT, b"new", 0o755).unwrap();
}

#[test]
fn the_index_holds_what_the_kernel_would_have_put_in_it() {
    if !kernel_can_be_asked() {
        return;
    }
    let names = |stack: &Stack| {
        let mut names: Vec<_> =
            entries(stack).iter().map(|entry| (entry.file_name(), entry.file_type().unwrap())).collect();
        names.sort_by(|one, other| one.0.cmp(&other.0));
        names
    };
    let stack = stack();
    change(&stack, true);
    let (by_kernel, counted) = (names(&stack), census(&stack));
    // The same once more, from the same lowers: the names are made of their handles.
    for dir in ["u", "w"] {
        fs::remove_dir_all(stack.path(dir)).unwrap();
        fs::create_dir(stack.path(dir)).unwrap();
    }
    change(&stack, false);
    assert_eq!(census(&stack), counted);
    assert_eq!(names(&stack), by_kernel);
    for entry in entries(&stack).iter().filter(|entry| entry.file_type().unwrap().is_dir()) {
        assert!(xattr(&entry.path(), "trusted.overlay.upper").unwrap().len() > 21);
    }
    // The kernel would remove or replace an entry that does not lead to what it says.
    stack.kernel(OPTIONS).unmount().unwrap();
    assert_eq!(names(&stack), by_kernel);
    drop(stack.open(OPTIONS));
    assert_eq!(names(&stack), by_kernel);
}

#[test]
fn ids_and_content_survive_the_kernels_turn() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = stack();
    let overlay = stack.open(OPTIONS);
    let [copied, sub, one, linked] =
        ["d/copied", "d/sub", "d/sub/one", "links/b"].map(|path| know(&overlay, path).0);
    drop(overlay);
    change(&stack, true);
    let overlay = stack.open(OPTIONS);
    assert_eq!(look(&overlay, copied).unwrap().2.unwrap(), "COPIED");
    assert_eq!(look(&overlay, one).unwrap().2.unwrap(), "one");
    assert_eq!(look(&overlay, linked).unwrap().2.unwrap(), "linked");
    look(&overlay, sub).unwrap();
    for (id, path) in
        [(copied, "d/copied"), (sub, "moved"), (one, "moved/one"), (linked, "top"), (linked, "links/b")]
    {
        assert_eq!(walk(&overlay, path), Ok(id.0), "{path}");
    }
}

/// The kernel's own handle of a path in its mount.
fn kernels_handle(mounted: &Path, path: &str) -> FileHandle {
    let path = mounted.join(path);
    let parent = Dir::open_root(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().as_bytes();
    parent.file_handle(plyfs_format::Name::new(name).unwrap()).unwrap().unwrap()
}

#[test]
fn the_kernels_handles_survive_the_engines_turn() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = stack();
    let mounted = stack.kernel(OPTIONS);
    let paths = ["d/copied", "d/sub", "d/sub/one", "links/b", "d/gone", "low", "low/x"];
    let handles = paths.map(|path| kernels_handle(mounted.path(), path));
    mounted.unmount().unwrap();
    change(&stack, false);
    let mounted = stack.kernel(OPTIONS);
    let root = fs::File::open(mounted.path()).unwrap();
    let open = |handle| open_by_handle(root.as_fd(), handle, OFlags::RDONLY).map(fs::File::from);
    let [copied, sub, one, linked, gone @ ..] = &handles;
    for (handle, content) in [(copied, "COPIED"), (one, "one"), (linked, "linked")] {
        assert_eq!(std::io::read_to_string(open(handle).unwrap()).unwrap(), content);
    }
    let sub = open(sub).unwrap();
    let place = fs::read_link(format!("/proc/self/fd/{}", sub.as_raw_fd())).unwrap();
    assert_eq!(place, mounted.path().join("moved"), "the index tells the kernel where the directory is now");
    for (handle, path) in gone.iter().zip(paths.iter().skip(4)) {
        assert_eq!(open(handle).map(drop), Err(Errno::STALE), "{path}");
    }
    drop((root, sub));
    mounted.unmount().unwrap();
}

#[test]
fn entries_that_lead_nowhere_are_cleaned_as_the_kernel_cleans_them() {
    if !kernel_can_be_asked() {
        return;
    }
    for by_kernel in [false, true] {
        let stack = stack();
        let overlay = stack.open(OPTIONS);
        for dir in ["d/sub", "low"] {
            let set = SetAttr { uid: Some(7), ..SetAttr::default() };
            overlay.setattr(&me(), walk(&overlay, dir).unwrap(), None, &set).unwrap();
        }
        let low = know(&overlay, "low").0.0;
        drop(overlay);
        // d, d/sub, low
        assert_eq!(census(&stack), [0, 3, 0]);
        // One whose directory was removed and hidden, one that says nothing, and one of a kernel that crashed.
        fs::remove_dir(stack.path("u/low")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            stack.path("u/low"),
            rustix::fs::FileType::CharacterDevice,
            0o0.into(),
            0,
        )
        .unwrap();
        let sub = xattr(&stack.path("u/d/sub"), "trusted.overlay.origin").unwrap();
        let name: String = sub.iter().map(|byte| format!("{byte:02x}")).collect();
        rustix::fs::lremovexattr(stack.path("w/index").join(&name), "trusted.overlay.upper").unwrap();
        fs::create_dir(stack.path("w/index/#7")).unwrap();
        if by_kernel {
            stack.kernel(OPTIONS).unmount().unwrap();
        } else {
            drop(stack.open(OPTIONS));
        }
        assert_eq!(census(&stack), [0, 1, 1], "by kernel: {by_kernel}");
        let overlay = stack.open(OPTIONS);
        assert_eq!(overlay.lookup(low, b"."), Err(Errno::STALE));
        // What is missing is made when the directory is seen.
        walk(&overlay, "d/sub").unwrap();
        assert_eq!(census(&stack), [0, 2, 1]);
    }
}

#[test]
fn a_directory_merges_with_none_but_its_origin_as_in_the_kernel() {
    if !kernel_can_be_asked() {
        return;
    }
    let stack = stack();
    let overlay = stack.open(OPTIONS);
    let set = SetAttr { uid: Some(7), ..SetAttr::default() };
    overlay.setattr(&me(), walk(&overlay, "d").unwrap(), None, &set).unwrap();
    drop(overlay);
    fs::rename(stack.path("l0/d"), stack.path("l0/was-d")).unwrap();
    stack.file("l0/d/another", "");
    let mounted = stack.kernel(OPTIONS);
    let mut by_kernel: Vec<_> =
        fs::read_dir(mounted.path().join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    by_kernel.sort();
    mounted.unmount().unwrap();
    assert_eq!(
        list(&stack.open(OPTIONS), "d"),
        by_kernel.iter().map(|name| name.to_str().unwrap()).collect::<Vec<_>>()
    );
}
