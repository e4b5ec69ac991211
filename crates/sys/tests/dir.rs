//! The reading capability: it resolves beneath itself only, follows nothing, and changes nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use common::{name, rel, scratch};
use plyfs_format::RelPath;
use plyfs_sys::{Dir, Errno, File, FileKind, OFlags, TimeSet, Times, XattrFlags, readlink_self};

#[test]
fn a_path_with_dot_dot_cannot_even_be_written_down() {
    for path in ["..", "a/../b", "a/..", "/etc", "a//b", "."] {
        assert!(RelPath::parse(path.as_bytes()).is_err(), "{path}");
    }
}

#[test]
fn resolution_refuses_a_symlink_anywhere_on_the_way() {
    let (temp, dir) = scratch();
    std::fs::create_dir_all(temp.path().join("real/sub")).expect("mkdir");
    std::fs::write(temp.path().join("real/sub/file"), b"x").expect("write");
    symlink("real", temp.path().join("inside")).expect("symlink");
    symlink("/", temp.path().join("outside")).expect("symlink");
    symlink("../..", temp.path().join("real/up")).expect("symlink");
    assert!(dir.open_dir(&rel("real/sub")).is_ok());
    for path in ["inside/sub", "outside/etc", "real/up", "inside", "outside"] {
        let answer = dir.open_dir(&rel(path)).map(drop);
        // At the last step, with O_PATH | O_NOFOLLOW, the link itself is found, which is no directory.
        assert!(matches!(answer, Err(Errno::LOOP | Errno::NOTDIR)), "{path}: {answer:?}");
    }
    for path in ["inside/sub/file", "outside/etc/passwd", "real/up/x"] {
        assert_eq!(dir.stat_path(&rel(path)).map(drop), Err(Errno::LOOP), "{path}");
        assert_eq!(dir.open_file_at(&rel(path), OFlags::RDONLY).map(drop), Err(Errno::LOOP), "{path}");
        assert_eq!(dir.open_writable_at(&rel(path), OFlags::RDWR).map(drop), Err(Errno::LOOP), "{path}");
    }
    assert_eq!(dir.child_dir(name("inside")).map(drop), Err(Errno::NOTDIR));
    assert_eq!(dir.open_file(name("inside"), OFlags::RDONLY).map(drop), Err(Errno::LOOP));
}

#[test]
fn resolution_stays_beneath_while_directories_are_swapped() {
    let (temp, dir) = scratch();
    std::fs::create_dir_all(temp.path().join("a/b/c")).expect("mkdir");
    symlink("/", temp.path().join("evil")).expect("symlink");
    let outside = Dir::open_root("/".as_ref()).expect("open /").stat().expect("stat");
    let swap = plyfs_sys::DirMut::open_root(temp.path()).expect("open");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                swap.rename(name("a"), &swap, name("evil"), plyfs_sys::RenameFlags::EXCHANGE).expect("swap");
            }
        });
        // However the threads come to run: often enough for the race, and until a resolution got through.
        let (mut tries, mut resolved) = (0, 0);
        while tries < 5_000 || (resolved == 0 && tries < 5_000_000) {
            tries += 1;
            match dir.open_dir(&rel("a/b")) {
                Ok(found) => {
                    assert!(!found.stat().expect("stat").same_inode(&outside));
                    assert!(found.stat_at(name("c")).is_ok());
                    resolved += 1;
                }
                Err(error) => assert!(matches!(error, Errno::LOOP | Errno::NOTDIR | Errno::AGAIN), "{error}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(resolved > 0, "the race never let a resolution through");
    });
}

#[test]
fn a_file_of_a_lower_layer_refuses_every_change() {
    let (temp, upper) = scratch();
    let path = temp.path().join("file");
    std::fs::write(&path, b"before").expect("write");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("chmod");
    let lower = Dir::open_root(temp.path()).expect("open");
    for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::TRUNC, OFlags::CREATE, OFlags::TMPFILE | OFlags::RDWR]
    {
        assert_eq!(lower.open_file(name("file"), flags).map(drop), Err(Errno::ROFS), "{flags:?}");
        assert_eq!(lower.open_file_at(&rel("file"), flags).map(drop), Err(Errno::ROFS), "{flags:?}");
    }
    let opened = lower.open_file(name("file"), OFlags::RDONLY).expect("open");
    let named = File::from_fd(lower.open_path(name("file")).expect("open")).expect("file");
    let times = Times { atime: TimeSet::Now, mtime: TimeSet::Now };
    for file in [&opened, &named] {
        assert_eq!(file.pwrite(b"after", 0), Err(Errno::ROFS));
        assert_eq!(file.truncate(0), Err(Errno::ROFS));
        assert_eq!(file.chmod(0o777), Err(Errno::ROFS));
        assert_eq!(file.chown(Some(1), Some(1)), Err(Errno::ROFS));
        assert_eq!(file.utimens(times), Err(Errno::ROFS));
        assert_eq!(file.set_xattr(c"user.a", b"", XattrFlags::empty()), Err(Errno::ROFS));
        assert_eq!(file.remove_xattr(c"user.a"), Err(Errno::ROFS));
        assert_eq!(file.reopen(OFlags::RDWR).map(drop), Err(Errno::ROFS));
        assert_eq!(file.reopen(OFlags::TRUNC).map(drop), Err(Errno::ROFS));
        assert_eq!(upper.link_file(file, name("another")), Err(Errno::ROFS));
        assert_eq!(file.reopen(OFlags::RDONLY).expect("reopen").truncate(0), Err(Errno::ROFS));
        assert_eq!(file.try_clone().expect("clone").truncate(0), Err(Errno::ROFS));
    }
    assert_eq!(std::fs::read(&path).expect("read"), b"before");
    assert_eq!(common::mode_of(&path), 0o640);
}

#[test]
fn opening_a_fifo_does_not_wait() {
    let (_temp, dir) = scratch();
    dir.mknod(name("fifo"), libc::S_IFIFO | 0o600, 0).expect("mkfifo");
    dir.open_file(name("fifo"), OFlags::RDONLY).expect("a reader does not wait for a writer");
    assert_eq!(dir.open_writable(name("fifo"), OFlags::WRONLY).map(drop), Err(Errno::NXIO));
}

#[test]
fn one_stat_tells_what_the_standard_library_tells() {
    let (temp, dir) = scratch();
    std::fs::write(temp.path().join("f"), vec![0; 5000]).expect("write");
    symlink("f", temp.path().join("l")).expect("symlink");
    dir.mknod(name("p"), libc::S_IFIFO | 0o600, 0).expect("mkfifo");
    for (entry, kind) in [("f", FileKind::Regular), ("l", FileKind::Symlink), ("p", FileKind::Fifo)] {
        let (stat, meta) = (
            dir.stat_at(name(entry)).expect("stat"),
            temp.path().join(entry).symlink_metadata().expect("stat"),
        );
        assert_eq!(stat.kind(), kind);
        assert_eq!((stat.ino, stat.mode, stat.size), (meta.ino(), meta.mode(), meta.size()));
        assert_eq!((stat.uid, stat.gid, u64::from(stat.nlink)), (meta.uid(), meta.gid(), meta.nlink()));
        assert_eq!((stat.mtime.sec, i64::from(stat.mtime.nsec)), (meta.mtime(), meta.mtime_nsec()));
        assert_eq!((stat.dev(), stat.rdev(), stat.blocks), (meta.dev(), meta.rdev(), meta.blocks()));
        assert_eq!(stat.mount_id, dir.mount_id().expect("mount id"));
        assert!(!stat.is_whiteout());
        assert_eq!(dir.stat_path(&rel(entry)), Ok(stat));
    }
    let own = dir.stat().expect("stat");
    assert!(own.is_dir() && own.ino == temp.path().metadata().expect("stat").ino());
    assert_eq!(dir.stat_at(name("absent")), Err(Errno::NOENT));
}

#[test]
fn a_character_device_0_0_is_a_whiteout() {
    if !common::root_or_skip("make device nodes on kernels before 5.8, and other devices on any") {
        return;
    }
    let (_temp, dir) = scratch();
    for (entry, kind, rdev, expected) in [
        ("whiteout", libc::S_IFCHR, 0, true),
        ("null", libc::S_IFCHR, libc::makedev(1, 3), false),
        ("block", libc::S_IFBLK, 0, false),
    ] {
        dir.mknod(name(entry), kind, rdev).expect("mknod");
        assert_eq!(dir.stat_at(name(entry)).expect("stat").is_whiteout(), expected, "{entry}");
    }
}

#[test]
fn a_symlink_is_read_by_name_and_by_descriptor() {
    let (temp, dir) = scratch();
    let long = "t/".repeat(1500);
    symlink(&long, temp.path().join("long")).expect("symlink");
    assert_eq!(dir.readlink(name("long")).as_deref(), Ok(long.as_bytes()));
    let link = dir.open_path(name("long")).expect("open");
    assert_eq!(readlink_self(link.as_fd()).as_deref(), Ok(long.as_bytes()));
    std::fs::write(temp.path().join("f"), b"").expect("write");
    assert_eq!(dir.readlink(name("f")), Err(Errno::INVAL));
}

#[test]
fn attributes_of_symlinks_and_of_path_descriptors_are_reachable() {
    if !common::root_or_skip("set trusted attributes, the only ones a symlink can have beside security ones")
    {
        return;
    }
    let (temp, dir) = scratch();
    std::fs::write(temp.path().join("f"), b"").expect("write");
    symlink("f", temp.path().join("l")).expect("symlink");
    for entry in ["f", "l"] {
        let file = dir.open_path_mut(name(entry)).expect("open");
        file.set_xattr(c"trusted.by_fd", entry.as_bytes(), XattrFlags::CREATE).expect("set");
        let by_name = dir.get_xattr(name(entry), c"trusted.by_fd").expect("get");
        assert_eq!(by_name.as_deref(), Some(entry.as_bytes()));
        dir.set_xattr(name(entry), c"trusted.by_fd", b"new", XattrFlags::REPLACE).expect("replace");
        assert_eq!(file.get_xattr(c"trusted.by_fd").expect("get").as_deref(), Some(&b"new"[..]));
        assert_eq!(file.list_xattrs().as_deref(), Ok(&b"trusted.by_fd\0"[..]));
        file.remove_xattr(c"trusted.by_fd").expect("remove");
        assert_eq!(dir.get_xattr(name(entry), c"trusted.by_fd"), Ok(None));
        assert_eq!(dir.list_xattrs(name(entry)).as_deref(), Ok(&b""[..]));
    }
}

#[test]
fn an_absent_attribute_is_none_and_a_short_buffer_an_error() {
    let (temp, dir) = scratch();
    std::fs::write(temp.path().join("f"), b"").expect("write");
    assert_eq!(dir.get_xattr(name("f"), c"user.a"), Ok(None));
    assert_eq!(dir.get_own_xattr(c"user.a"), Ok(None));
    dir.set_xattr(name("f"), c"user.a", b"12345", XattrFlags::empty()).expect("set");
    assert_eq!(dir.get_xattr_raw(name("f"), c"user.a", &mut []), Ok(5));
    assert_eq!(dir.get_xattr_raw(name("f"), c"user.a", &mut [0; 4]), Err(Errno::RANGE));
    assert_eq!(dir.get_xattr_raw(name("f"), c"user.b", &mut [0; 4]), Err(Errno::NODATA));
    assert_eq!(dir.get_xattr(name("absent"), c"user.a"), Err(Errno::NOENT));
    let long = vec![b'x'; 3000];
    dir.set_xattr(name("f"), c"user.a", &long, XattrFlags::empty()).expect("set");
    let file = dir.open_file(name("f"), OFlags::RDONLY).expect("open");
    let named = dir.open_path_mut(name("f")).expect("open");
    for long_value in
        [dir.get_xattr(name("f"), c"user.a"), file.get_xattr(c"user.a"), named.get_xattr(c"user.a")]
    {
        assert!(long_value.expect("get").as_ref() == Some(&long), "a value longer than the first buffer");
    }
    assert_eq!(file.get_xattr_raw(c"user.a", &mut []), Ok(3000));
    // A name space that no file system has: no attribute, not an error.
    assert_eq!(dir.get_xattr(name("f"), c"nonsense.a"), Ok(None));
}

#[test]
fn the_file_system_is_described() {
    let (temp, dir) = scratch();
    let state = dir.statfs().expect("statfs");
    assert!(state.blocks >= state.bfree && state.bfree >= state.bavail && state.bsize > 0);
    assert_eq!(state.namemax, 255);
    let std = rustix::fs::statfs(temp.path()).expect("statfs");
    assert_eq!(dir.fs_magic().expect("magic"), std.f_type as u64);
    assert_eq!(dir.is_readonly_mount(), Ok(false));
    let proc = Dir::open_root("/proc".as_ref()).expect("open /proc");
    assert_ne!(proc.mount_id(), dir.mount_id());
    assert_eq!(proc.fs_magic(), Ok(0x9fa0));
}

#[test]
fn every_descriptor_is_closed_on_exec() {
    let (temp, dir) = scratch();
    std::fs::write(temp.path().join("f"), b"").expect("write");
    let file = dir.open_file(name("f"), OFlags::RDONLY).expect("open");
    let dup = dir.try_clone().expect("clone");
    let path = dir.open_path(name("f")).expect("open");
    let resolved = dir.open_path_at(&rel("f")).expect("open");
    let reopened = file.reopen(OFlags::RDONLY).expect("reopen");
    let anonymous = dir.tmpfile(0o600, OFlags::RDWR).expect("tmpfile");
    for fd in [
        dir.as_fd(),
        dup.as_fd(),
        file.as_fd(),
        path.as_fd(),
        resolved.as_fd(),
        reopened.as_fd(),
        anonymous.as_fd(),
        dir.reopen().expect("reopen").as_fd(),
        plyfs_sys::process::memfd("test").expect("memfd").as_fd(),
    ] {
        assert!(rustix::io::fcntl_getfd(fd).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn a_path_longer_than_one_system_call_takes_is_walked_in_pieces() {
    const LEVELS: usize = 120;
    let (temp, _) = scratch();
    let long = "d".repeat(50);
    let mut dir = plyfs_sys::DirMut::open_root(temp.path()).expect("the root");
    for _ in 0..LEVELS {
        dir.create_dir(name(&long), 0o755).expect("a level");
        dir = dir.child_mut(name(&long)).expect("the level");
    }
    dir.create_dir(name("bottom"), 0o755).expect("the bottom");
    let path = format!("{}/bottom", vec![long.as_str(); LEVELS].join("/"));
    assert!(path.len() > 4096);
    let root = Dir::open_root(temp.path()).expect("the root");
    let bottom = root.open_dir(&rel(&path)).expect("the bottom by its path");
    let inode = dir.stat_at(name("bottom")).expect("the bottom by its name").ino;
    assert_eq!(bottom.stat().expect("attributes").ino, inode);
}
