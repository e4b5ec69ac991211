//! Modes, owners, times, extended attributes, ACLs, inode numbers.

use super::{Case, as_user, with_umask};
use anyhow::{Context, Result, ensure};
use plyfs_testkit::acl::{self, Entry};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::identity::User;
use plyfs_testkit::layer::{Namespace, TreeSpec};
use plyfs_testkit::snapshot::list;
use rustix::fs::{
    AtFlags, CWD, Timespec, Timestamps, XattrFlags, getxattr, lgetxattr, listxattr, removexattr, setxattr,
    utimensat,
};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

pub const CASES: &[Case] = &[
    Case::new("the umask is applied once", layers, umask),
    Case::new("a default ACL replaces the umask and is inherited", layers, default_acl),
    Case::new("an access ACL lets a user in, and survives copy-up", layers, access_acl),
    Case::new("times before 1970 and after 2038 are kept to the nanosecond", layers, times),
    Case::new("copy-up keeps mode, owner, times and attributes", layers, copy_up_keeps),
    Case::new("changing a file changes its times and not its parent's", layers, parent_times),
    Case::new("creating and removing change the parent's times", layers, parent_times_change),
    Case::new("writing clears set-id bits and capabilities", layers, set_id_write),
    Case::new("truncating clears set-id bits for a user without privilege", layers, set_id_truncate),
    Case::new("chown clears set-id bits", layers, set_id_chown),
    Case::new("a directory with set-gid passes on its group", layers, set_gid_directory),
    Case::new("only the owner removes from a sticky directory", layers, sticky),
    Case::new("a user is refused what the mode refuses", layers, refused),
    Case::new("a file belongs to who made it", layers, ownership),
    Case::new("an inode number is the same right after creation and later", layers, ino_after_create),
    Case::new("an inode number survives copy-up and remount", layers, ino_kept),
    // A symbolic link can hold no user attribute, and so no origin.
    Case::new("the inode number of a symbolic link survives both too", layers, link_ino_kept).needs_root(),
    Case::new("extended attributes can be set, listed, and removed", layers, xattrs),
    Case::new("the overlay's own attributes are hidden", layers, hidden_xattrs).needs_root(),
    Case::new("an attribute that is not there is ENODATA", layers, absent_xattr),
    Case::new("all entries have the device of the root", layers, one_device),
];

fn layers(_: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new()
            .dir("")
            .mode(0o777)
            .dir("d")
            .mode(0o777)
            .time(1_000_000_000, 7)
            .file("d/f", "lower")
            .mode(0o644)
            .owner(1000, 1000)
            .time(-1_000_000_000, 123_456_789)
            .xattr("user.a", "value")
            .file("d/suid", "program")
            .owner(1000, 1000)
            .mode(0o6755)
            .file("d/private", "secret")
            .mode(0o600)
            .symlink("d/s", "f"),
        TreeSpec::new().file("d/deep", "deep").dir("d/sub"),
    ]
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::symlink_metadata(path).with_context(|| path.display().to_string())?.mode() & 0o7777)
}

fn umask(union: &mut Union) -> Result<()> {
    let (file, dir) = (union.path("file"), union.path("dir"));
    with_umask(0o027, || -> Result<()> {
        File::options().write(true).create_new(true).mode(0o666).open(&file)?;
        DirBuilder::new().mode(0o777).create(&dir)?;
        Ok(())
    })??;
    ensure!(mode(&file)? == 0o640, "file {:o}", mode(&file)?);
    ensure!(mode(&dir)? == 0o750, "directory {:o}", mode(&dir)?);
    Ok(())
}

fn default_acl(union: &mut Union) -> Result<()> {
    let dir = union.path("d");
    let entries =
        [Entry::UserObj(7), Entry::User(1001, 6), Entry::GroupObj(5), Entry::Mask(7), Entry::Other(4)];
    setxattr(&dir, acl::DEFAULT, &acl::encode(&entries), XattrFlags::empty())?;
    let (file, sub) = (dir.join("file"), dir.join("inner"));
    with_umask(0o077, || -> Result<()> {
        File::options().write(true).create_new(true).mode(0o666).open(&file)?;
        DirBuilder::new().mode(0o777).create(&sub)?;
        Ok(())
    })??;
    ensure!(mode(&file)? == 0o664, "file {:o}", mode(&file)?);
    ensure!(mode(&sub)? == 0o774, "directory {:o}", mode(&sub)?);
    let mut value = [0; 256];
    let length = getxattr(&sub, acl::DEFAULT, &mut value)?;
    ensure!(value.get(..length) == Some(&acl::encode(&entries)), "the inherited default ACL differs");
    Ok(())
}

fn access_acl(union: &mut Union) -> Result<()> {
    let path = union.path("d/private");
    ensure!(as_user(User::Alice, || fs::read(&path).is_err())?, "alice reads before");
    let entries =
        [Entry::UserObj(6), Entry::User(1000, 4), Entry::GroupObj(0), Entry::Mask(4), Entry::Other(0)];
    setxattr(&path, acl::ACCESS, &acl::encode(&entries), XattrFlags::empty())?;
    ensure!(as_user(User::Alice, || fs::read(&path).is_ok())?, "alice may not read");
    ensure!(as_user(User::Bob, || fs::read(&path).is_err())?, "bob may read");
    union.remount()?;
    ensure!(as_user(User::Alice, || fs::read(&path).is_ok())?, "alice may not read after a remount");
    ensure!(mode(&path)? == 0o640, "mode {:o}", mode(&path)?);
    Ok(())
}

fn times(union: &mut Union) -> Result<()> {
    let metadata = fs::metadata(union.path("d/f"))?;
    ensure!((metadata.mtime(), metadata.mtime_nsec()) == (-1_000_000_000, 123_456_789), "of a lower file");
    for (sec, nsec) in [(-1, 999_999_999), (0, 1), (2_147_483_648, 2), (9_000_000_000, 3)] {
        for (name, flags) in
            [("d/f", AtFlags::empty()), ("d", AtFlags::empty()), ("d/s", AtFlags::SYMLINK_NOFOLLOW)]
        {
            let time = Timespec { tv_sec: sec, tv_nsec: nsec };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, union.path(name), &times, flags).with_context(|| format!("{name} to {sec}"))?;
            let metadata = fs::symlink_metadata(union.path(name))?;
            let read = [(metadata.mtime(), metadata.mtime_nsec()), (metadata.atime(), metadata.atime_nsec())];
            ensure!(read == [(sec, nsec); 2], "{name}: {read:?} is not {sec}.{nsec}");
        }
    }
    Ok(())
}

fn copy_up_keeps(union: &mut Union) -> Result<()> {
    let path = union.path("d/f");
    let before = fs::metadata(&path)?;
    File::options().write(true).open(&path)?;
    let after = fs::metadata(&path)?;
    ensure!(union.upper().join("d/f").exists(), "not copied up by opening for writing");
    ensure!(before.mode() == after.mode() && before.uid() == after.uid() && before.gid() == after.gid());
    ensure!((before.mtime(), before.mtime_nsec()) == (after.mtime(), after.mtime_nsec()), "mtime");
    ensure!((before.atime(), before.atime_nsec()) == (after.atime(), after.atime_nsec()), "atime");
    let mut value = [0; 16];
    let length = getxattr(&path, "user.a", &mut value)?;
    ensure!(value.get(..length) == Some(b"value".as_slice()));
    Ok(())
}

fn parent_times(union: &mut Union) -> Result<()> {
    fs::write(union.path("d/f"), "changed")?;
    ensure!(fs::metadata(union.path("d/f"))?.mtime() > 1_700_000_000, "the file's time did not change");
    let parent = fs::metadata(union.path("d"))?;
    ensure!(
        (parent.mtime(), parent.mtime_nsec()) == (1_000_000_000, 7),
        "the parent's time: {}",
        parent.mtime()
    );
    Ok(())
}

fn parent_times_change(union: &mut Union) -> Result<()> {
    let old = Timespec { tv_sec: 5, tv_nsec: 5 };
    let reset = |path: &Path| {
        utimensat(CWD, path, &Timestamps { last_access: old, last_modification: old }, AtFlags::empty())
    };
    let dir = union.path("d");
    type Change = (&'static str, fn(&Path) -> std::io::Result<()>);
    let changes: [Change; 5] = [
        ("create", |dir| fs::write(dir.join("new"), "")),
        ("mkdir", |dir| fs::create_dir(dir.join("newdir"))),
        ("rename", |dir| fs::rename(dir.join("new"), dir.join("newer"))),
        ("unlink of a lower file", |dir| fs::remove_file(dir.join("deep"))),
        ("rmdir of a lower directory", |dir| fs::remove_dir(dir.join("sub"))),
    ];
    for (what, change) in changes {
        reset(&dir)?;
        change(&dir).context(what)?;
        ensure!(fs::metadata(&dir)?.mtime() > 1_700_000_000, "{what}: the parent's mtime is unchanged");
    }
    Ok(())
}

fn set_id_write(union: &mut Union) -> Result<()> {
    let path = union.path("d/suid");
    fs::set_permissions(&path, Permissions::from_mode(0o6777))?;
    as_user(User::Bob, || -> Result<()> {
        use std::os::unix::fs::FileExt;
        File::options().write(true).open(&path)?.write_all_at(b"P", 0)?;
        Ok(())
    })??;
    ensure!(mode(&path)? == 0o777, "after a write by another user: {:o}", mode(&path)?);
    let capability = [[0, 0, 0, 2], [0, 4, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
    setxattr(&path, "security.capability", &capability, XattrFlags::empty())
        .context("setting a capability")?;
    as_user(User::Bob, || {
        fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| {
            use std::io::Write;
            file.write_all(b"more")
        })
    })??;
    let mut value = [0; 64];
    let read = getxattr(&path, "security.capability", &mut value);
    ensure!(read == Err(Errno::NODATA), "the capability is still there: {read:?}");
    Ok(())
}

fn set_id_truncate(union: &mut Union) -> Result<()> {
    let path = union.path("d/suid");
    fs::set_permissions(&path, Permissions::from_mode(0o6777))?;
    as_user(User::Bob, || File::options().write(true).open(&path).and_then(|file| file.set_len(1)))??;
    ensure!(mode(&path)? == 0o777, "after ftruncate: {:o}", mode(&path)?);
    fs::set_permissions(&path, Permissions::from_mode(0o6777))?;
    as_user(User::Bob, || File::options().write(true).truncate(true).open(&path))??;
    ensure!(mode(&path)? == 0o777, "after O_TRUNC: {:o}", mode(&path)?);
    Ok(())
}

fn set_id_chown(union: &mut Union) -> Result<()> {
    let path = union.path("d/suid");
    chown(&path, Some(1001), Some(1001))?;
    ensure!(mode(&path)? == 0o755, "after chown: {:o}", mode(&path)?);
    fs::set_permissions(&path, Permissions::from_mode(0o2745))?;
    chown(&path, None, Some(1000))?;
    ensure!(mode(&path)? == 0o2745, "set-gid without group execution is a lock: {:o}", mode(&path)?);
    Ok(())
}

fn set_gid_directory(union: &mut Union) -> Result<()> {
    let dir = union.path("d");
    chown(&dir, None, Some(2000))?;
    fs::set_permissions(&dir, Permissions::from_mode(0o2777))?;
    let (file, sub) = (dir.join("file"), dir.join("inner"));
    as_user(User::Alice, || fs::write(&file, "").and_then(|()| fs::create_dir(&sub)))??;
    ensure!(fs::metadata(&file)?.gid() == 2000, "the file's group is {}", fs::metadata(&file)?.gid());
    ensure!(fs::metadata(&sub)?.gid() == 2000, "the directory's group is {}", fs::metadata(&sub)?.gid());
    ensure!(mode(&sub)? & 0o2000 != 0, "the directory's mode is {:o}", mode(&sub)?);
    Ok(())
}

fn sticky(union: &mut Union) -> Result<()> {
    let dir = union.path("d");
    fs::set_permissions(&dir, Permissions::from_mode(0o1777))?;
    let path = dir.join("f");
    let removed = as_user(User::Bob, || fs::remove_file(&path))?;
    ensure!(removed.is_err_and(|cause| cause.raw_os_error() == Some(1)), "bob removes alice's file");
    as_user(User::Alice, || fs::remove_file(&path))?.context("alice cannot remove her file")?;
    Ok(())
}

fn refused(union: &mut Union) -> Result<()> {
    let denied = |result: std::io::Result<()>| {
        result.err().is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
    };
    fs::set_permissions(union.path("d"), Permissions::from_mode(0o755))?;
    let path = |name: &str| union.path(name);
    let all = as_user(User::Alice, || {
        [
            denied(fs::read(path("d/private")).map(drop)),
            denied(fs::write(path("d/new"), "")),
            denied(fs::remove_file(path("d/f"))),
            denied(fs::rename(path("d/f"), path("d/g"))),
            denied(fs::create_dir(path("d/newdir"))),
            denied(fs::set_permissions(path("d/private"), Permissions::from_mode(0o666))),
            denied(chown(path("d/f"), Some(1001), None)),
        ]
    })?;
    ensure!(all == [true; 7], "{all:?}");
    Ok(())
}

fn ownership(union: &mut Union) -> Result<()> {
    for (user, id) in [(User::Alice, 1000), (User::Bob, 1001)] {
        let path = union.path(&format!("d/of-{id}"));
        as_user(user, || fs::create_dir(&path).and_then(|()| fs::write(path.join("file"), "")))??;
        for path in [&path, &path.join("file")] {
            let metadata = fs::metadata(path)?;
            ensure!((metadata.uid(), metadata.gid()) == (id, id), "{}: {}", path.display(), metadata.uid());
        }
    }
    Ok(())
}

fn ino_after_create(union: &mut Union) -> Result<()> {
    let file = File::create(union.path("d/new"))?;
    fs::create_dir(union.path("d/newdir"))?;
    let (first, dir) = (file.metadata()?.ino(), fs::metadata(union.path("d/newdir"))?.ino());
    drop(file);
    let listed = list(File::open(union.path("d"))?)?;
    let of = |name: &str| listed.iter().find(|entry| entry.name == name.as_bytes()).map(|entry| entry.ino);
    ensure!(of("new") == Some(first) && of("newdir") == Some(dir), "the listing shows other numbers");
    union.remount()?;
    ensure!(fs::metadata(union.path("d/new"))?.ino() == first, "another number after a remount");
    ensure!(fs::metadata(union.path("d/newdir"))?.ino() == dir, "another number after a remount");
    Ok(())
}

fn ino_kept(union: &mut Union) -> Result<()> {
    let ino = |name: &str| fs::symlink_metadata(union.path(name)).map(|metadata| metadata.ino());
    let before = [ino("d")?, ino("d/f")?, ino("d/sub")?];
    fs::write(union.path("d/f"), "changed")?;
    fs::write(union.path("d/sub/new"), "")?;
    let after = [ino("d")?, ino("d/f")?, ino("d/sub")?];
    ensure!(before == after, "{before:?} became {after:?} by copy-up");
    union.remount()?;
    let ino = |name: &str| fs::symlink_metadata(union.path(name)).map(|metadata| metadata.ino());
    let later = [ino("d")?, ino("d/f")?, ino("d/sub")?];
    ensure!(before == later, "{before:?} became {later:?} by a remount");
    Ok(())
}

fn link_ino_kept(union: &mut Union) -> Result<()> {
    let ino = |union: &Union| fs::symlink_metadata(union.path("d/s")).map(|metadata| metadata.ino());
    let before = ino(union)?;
    std::os::unix::fs::lchown(union.path("d/s"), Some(1000), None)?;
    ensure!(ino(union)? == before, "another number after copy-up");
    union.remount()?;
    ensure!(ino(union)? == before, "another number after a remount");
    Ok(())
}

fn xattrs(union: &mut Union) -> Result<()> {
    let path = union.path("d/f");
    ensure!(setxattr(&path, "user.a", b"x", XattrFlags::CREATE) == Err(Errno::EXIST));
    ensure!(setxattr(&path, "user.none", b"x", XattrFlags::REPLACE) == Err(Errno::NODATA));
    setxattr(&path, "user.b", b"", XattrFlags::empty()).context("an empty value")?;
    setxattr(&path, "user.a", &[b'v'; 2000], XattrFlags::empty()).context("a long value")?;
    let mut value = [0; 4096];
    ensure!(getxattr(&path, "user.a", &mut value)? == 2000);
    ensure!(getxattr(&path, "user.a", &mut value[..10]) == Err(Errno::RANGE), "a short buffer");
    let length = listxattr(&path, &mut value)?;
    let names = value[..length].split(|byte| *byte == 0);
    ensure!(names.filter(|name| name.starts_with(b"user.")).count() == 2);
    removexattr(&path, "user.a")?;
    ensure!(getxattr(&path, "user.a", &mut value) == Err(Errno::NODATA));
    ensure!(removexattr(&path, "user.a") == Err(Errno::NODATA));
    union.remount()?;
    ensure!(getxattr(&path, "user.b", &mut value)? == 0);
    Ok(())
}

fn hidden_xattrs(union: &mut Union) -> Result<()> {
    fs::write(union.path("d/f"), "copied up")?;
    fs::rename(union.path("d"), union.path("moved"))?;
    let mut names = [0; 4096];
    for path in [union.merged(), &union.path("moved"), &union.path("moved/f")] {
        let length = listxattr(path, &mut names)?;
        let shown = names[..length].escape_ascii().to_string();
        ensure!(!shown.contains("trusted.overlay"), "{}: {shown}", path.display());
    }
    let mut value = [0; 64];
    let read = lgetxattr(union.path("moved"), "trusted.overlay.redirect", &mut value);
    ensure!(read == Err(Errno::NODATA), "{read:?}");
    Ok(())
}

fn absent_xattr(union: &mut Union) -> Result<()> {
    let mut value = [0; 64];
    for name in ["user.none", "security.capability"] {
        for path in ["d", "d/f", "d/sub", "d/deep"] {
            let read = lgetxattr(union.path(path), name, &mut value);
            ensure!(read == Err(Errno::NODATA), "{name} of {path}: {read:?}");
        }
    }
    Ok(())
}

fn one_device(union: &mut Union) -> Result<()> {
    fs::write(union.path("d/f"), "copied up")?;
    let device = fs::metadata(union.merged())?.dev();
    for path in ["d", "d/f", "d/suid", "d/deep", "d/sub", "d/s"] {
        ensure!(fs::symlink_metadata(union.path(path))?.dev() == device, "{path} is on another device");
    }
    Ok(())
}
