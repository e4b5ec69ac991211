//! The changing capability: each verb does what it says, to the entry itself and never to what a link points to.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::unix::fs::{MetadataExt, symlink};

use common::{mode_of, name, rel, root_or_skip, scratch};
use plyfs_sys::{Errno, FileKind, OFlags, RenameFlags, TimeSet, Times, Timestamp, XattrFlags, creds};

#[test]
fn chmod_never_follows_a_symlink() {
    let (temp, dir) = scratch();
    let file = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    symlink("f", temp.path().join("l")).expect("symlink");
    assert_eq!(dir.chmod_at(name("l"), 0o777), Err(Errno::OPNOTSUPP));
    assert_eq!(dir.open_path_mut(name("l")).expect("open").chmod(0o777), Err(Errno::OPNOTSUPP));
    assert_eq!(mode_of(&temp.path().join("f")), 0o600);
    for (mode, by) in [(0o1755, "name"), (0o640, "descriptor"), (0o444, "path descriptor"), (0o000, "name")] {
        match by {
            "name" => dir.chmod_at(name("f"), mode).expect("chmod"),
            "descriptor" => file.chmod(mode).expect("chmod"),
            _ => dir.open_path_mut(name("f")).expect("open").chmod(mode).expect("chmod"),
        }
        assert_eq!(mode_of(&temp.path().join("f")), mode, "by {by}");
    }
}

#[test]
fn chown_and_times_of_a_symlink_leave_its_target() {
    let (temp, dir) = scratch();
    std::fs::write(temp.path().join("f"), b"").expect("write");
    symlink("f", temp.path().join("l")).expect("symlink");
    let before = dir.stat_at(name("f")).expect("stat");
    let early = Timestamp { sec: -1, nsec: 999_999_999 };
    let late = Timestamp { sec: 1 << 33, nsec: 1 };
    let times = Times { atime: TimeSet::At(late), mtime: TimeSet::At(early) };
    dir.utimens_at(name("l"), times).expect("utimens");
    let link = dir.stat_at(name("l")).expect("stat");
    assert_eq!((link.atime, link.mtime), (late, early));
    let only_atime = Times { atime: TimeSet::At(early), mtime: TimeSet::Omit };
    dir.open_path_mut(name("l")).expect("open").utimens(only_atime).expect("utimens");
    let link = dir.stat_at(name("l")).expect("stat");
    assert_eq!((link.atime, link.mtime), (early, early));
    if root_or_skip("change an owner") {
        dir.chown_at(name("l"), Some(1234), None).expect("chown");
        dir.open_path_mut(name("l")).expect("open").chown(None, Some(4321)).expect("chown");
        let link = dir.stat_at(name("l")).expect("stat");
        assert_eq!((link.uid, link.gid), (1234, 4321));
    }
    assert_eq!(dir.stat_at(name("f")), Ok(before));
}

#[test]
fn the_verbs_for_the_directory_itself_reach_it() {
    let (temp, dir) = scratch();
    dir.create_dir(name("d"), 0o700).expect("mkdir");
    let sub = dir.child_mut(name("d")).expect("open");
    sub.set_own_xattr(c"user.own", b"1", XattrFlags::empty()).expect("set");
    assert_eq!(dir.get_xattr(name("d"), c"user.own").expect("get").as_deref(), Some(&b"1"[..]));
    assert_eq!(sub.list_own_xattrs().as_deref(), Ok(&b"user.own\0"[..]));
    sub.remove_own_xattr(c"user.own").expect("remove");
    assert_eq!(sub.get_own_xattr(c"user.own"), Ok(None));
    let time = Timestamp { sec: 77, nsec: 5 };
    sub.utimens_self(Times { atime: TimeSet::At(time), mtime: TimeSet::At(time) }).expect("utimens");
    assert_eq!(dir.stat_at(name("d")).expect("stat").mtime, time);
    sub.sync().expect("fsync");
    sub.chmod_self(0).expect("chmod");
    assert_eq!(mode_of(&temp.path().join("d")), 0);
    // Without search permission `.` does not resolve for an ordinary user: this is the way over /proc.
    sub.chmod_self(0o2750).expect("chmod");
    assert_eq!(mode_of(&temp.path().join("d")) & 0o750, 0o750);
}

#[test]
fn attributes_of_a_directory_without_search_permission_are_reachable_by_its_owner() {
    let work = || {
        let (_temp, dir) = scratch();
        dir.create_dir(name("d"), 0o700).expect("mkdir");
        let sub = dir.child_mut(name("d")).expect("open");
        sub.set_own_xattr(c"user.own", b"1", XattrFlags::empty()).expect("set");
        sub.chmod_self(0o600).expect("chmod");
        assert_eq!(sub.get_own_xattr(c"user.own").expect("get").as_deref(), Some(&b"1"[..]));
        sub.chmod_self(0o700).expect("chmod");
    };
    if rustix::process::geteuid().is_root() {
        // A thread without capabilities, since root's would open the directory.
        std::thread::spawn(move || {
            rustix::thread::set_thread_res_uid(1000.into_uid(), 1000.into_uid(), 1000.into_uid())
                .expect("uid");
            work();
        })
        .join()
        .expect("thread");
    } else {
        work();
    }
}

trait IntoUid {
    fn into_uid(self) -> rustix::process::Uid;
}

impl IntoUid for u32 {
    fn into_uid(self) -> rustix::process::Uid {
        rustix::process::Uid::from_raw(self)
    }
}

#[test]
fn an_anonymous_file_gets_a_name_also_without_capabilities() {
    let work = || {
        let (temp, dir) = scratch();
        let file = match dir.tmpfile(0o640, OFlags::RDWR) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                eprintln!("skipped: this file system has no O_TMPFILE");
                return;
            }
            other => other.expect("tmpfile"),
        };
        assert_eq!(file.pwrite(b"content", 0), Ok(7));
        assert_eq!(file.stat().expect("stat").nlink, 0);
        dir.link_file(&file, name("published")).expect("link");
        assert_eq!(std::fs::read(temp.path().join("published")).expect("read"), b"content");
        assert_eq!(dir.link_file(&file, name("published")), Err(Errno::EXIST));
        dir.unlink(name("published")).expect("unlink");
        let excl = dir.tmpfile(0o600, OFlags::RDWR | OFlags::EXCL).expect("tmpfile");
        assert_eq!(dir.link_file(&excl, name("never")), Err(Errno::NOENT));
    };
    work();
    if root_or_skip("drop to a user") {
        std::thread::spawn(move || {
            rustix::thread::set_thread_res_uid(1000.into_uid(), 1000.into_uid(), 1000.into_uid())
                .expect("uid");
            work();
        })
        .join()
        .expect("thread");
    }
}

#[test]
fn entries_are_made_renamed_and_removed() {
    let (temp, dir) = scratch();
    creds::prepare_thread();
    dir.create_dir(name("a"), 0o1777).expect("mkdir");
    dir.create_dir(name("b"), 0o700).expect("mkdir");
    assert_eq!(mode_of(&temp.path().join("a")), 0o1777, "a prepared thread has no umask");
    let (a, b) = (dir.child_mut(name("a")).expect("open"), dir.open_dir_mut(&rel("b")).expect("open"));
    a.create_file(name("f"), OFlags::WRONLY, 0o666).expect("create");
    assert_eq!(a.create_file(name("f"), OFlags::WRONLY, 0o666).map(drop), Err(Errno::EXIST));
    a.symlink(b"any\xfftarget", name("l")).expect("symlink");
    b.hard_link(&a, name("l"), name("same")).expect("link");
    assert_eq!(b.stat_at(name("same")).expect("stat").kind(), FileKind::Symlink);
    assert_eq!(b.readlink(name("same")).as_deref(), Ok(&b"any\xfftarget"[..]));
    assert_eq!(b.stat_at(name("same")).expect("stat").nlink, 2);
    assert_eq!(a.rename(name("f"), &b, name("same"), RenameFlags::NOREPLACE), Err(Errno::EXIST));
    a.rename(name("f"), &b, name("same"), RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!(b.stat_at(name("same")).expect("stat").kind(), FileKind::Regular);
    a.rename(name("f"), &b, name("moved"), RenameFlags::empty()).expect("rename");
    assert_eq!(dir.rmdir(name("b")), Err(Errno::NOTEMPTY));
    b.unlink(name("same")).expect("unlink");
    b.unlink(name("moved")).expect("unlink");
    assert_eq!(
        dir.unlink(name("b")).map_err(|error| error == Errno::ISDIR || error == Errno::PERM),
        Err(true)
    );
    dir.rmdir(name("b")).expect("rmdir");
    assert!(!temp.path().join("b").exists());
}

#[test]
fn a_rename_can_leave_a_whiteout() {
    let (_temp, dir) = scratch();
    dir.create_file(name("f"), OFlags::WRONLY, 0o600).expect("create");
    match dir.rename(name("f"), &dir, name("g"), RenameFlags::WHITEOUT) {
        Err(Errno::INVAL) => eprintln!("skipped: this file system has no RENAME_WHITEOUT"),
        other => {
            other.expect("rename");
            assert!(dir.stat_at(name("f")).expect("stat").is_whiteout());
        }
    }
}

#[test]
fn inode_flags_come_back_as_set() {
    if !root_or_skip("set the append-only and immutable flags") {
        return;
    }
    use plyfs_sys::InodeFlags;
    let (_temp, dir) = scratch();
    let file = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    let plain = match file.inode_flags() {
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => {
            eprintln!("skipped: this file system has no inode flags");
            return;
        }
        other => other.expect("flags"),
    };
    file.set_inode_flags(plain.with(InodeFlags::IMMUTABLE)).expect("chattr +i");
    assert_eq!(file.pwrite(b"x", 0), Err(Errno::PERM));
    assert_eq!(file.inode_flags(), Ok(plain.with(InodeFlags::IMMUTABLE)));
    let fsx = file.fsx_attr().expect("fsx");
    assert_eq!(fsx.xflags & 0x8, 0x8, "FS_XFLAG_IMMUTABLE");
    let append = plyfs_sys::FsxAttr { xflags: fsx.xflags & !0x8 | 0x10, ..fsx };
    file.set_fsx_attr(&append).expect("chattr +a");
    assert_eq!(file.inode_flags(), Ok(plain.with(InodeFlags::APPEND)));
    file.set_inode_flags(plain).expect("chattr -a");
    assert_eq!(file.pwrite(b"x", 0), Ok(1));
    let own = dir.own_inode_flags().expect("flags");
    dir.set_own_inode_flags(own.with(InodeFlags::NOATIME)).expect("chattr +A");
    assert!(dir.own_inode_flags().expect("flags").contains(InodeFlags::NOATIME));
}

#[test]
fn open_writable_creates_nothing() {
    let (temp, dir) = scratch();
    assert_eq!(dir.open_writable(name("f"), OFlags::RDWR | OFlags::CREATE).map(drop), Err(Errno::NOENT));
    assert_eq!(temp.path().read_dir().expect("read").count(), 0);
    dir.create_file(name("f"), OFlags::WRONLY, 0o600).expect("create").pwrite(b"12345", 0).expect("write");
    dir.open_writable(name("f"), OFlags::RDWR | OFlags::TRUNC).expect("open");
    assert_eq!(temp.path().join("f").metadata().expect("stat").size(), 0);
}

#[test]
fn a_directory_is_locked_by_one_at_a_time_under_any_name() {
    let (_temp, dir) = scratch();
    for entry in ["a", "b"] {
        dir.create_dir(name(entry), 0o700).expect("mkdir");
    }
    let first = dir.child_mut(name("a")).expect("open");
    let lock = first.try_lock().expect("lock");
    assert_eq!(first.try_lock().map(drop), Err(Errno::AGAIN));
    dir.rename(name("a"), &dir, name("c"), RenameFlags::empty()).expect("rename");
    let renamed = dir.child_mut(name("c")).expect("open");
    assert_eq!(renamed.try_lock().map(drop), Err(Errno::AGAIN));
    assert!(dir.child_mut(name("b")).expect("open").try_lock().is_ok(), "another directory is free");
    drop(lock);
    assert!(renamed.try_lock().is_ok());
}
