//! Names: create, link, rename, remove; lengths and bytes.

use super::Case;
use anyhow::{Context, Result, ensure};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::{Namespace, TreeSpec};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

pub const CASES: &[Case] = &[
    Case::new("names of 255 bytes can be made, renamed, removed and made again", layers, long_names),
    Case::new("names that are not UTF-8 work", layers, odd_names),
    Case::new("a name over 255 bytes is too long", layers, too_long),
    Case::new("a name like .wh.NAME cannot be made, and in a layer is a whiteout", marks, wh_names)
        .kernel_fails("to it these are names like any other"),
    Case::new("hard links share data, attributes and inode number", layers, hard_links),
    Case::new("removing one of two links leaves the other", layers, one_of_two_links),
    Case::new("rename replaces a file, a link and an empty directory", layers, rename_replaces),
    Case::new("rename does not replace with NOREPLACE, and exchanges with EXCHANGE", layers, rename_flags),
    Case::new("rename refuses what makes no sense", layers, rename_refused),
    Case::new("renaming a file onto its own link does nothing", layers, rename_onto_link),
    Case::new("a lower directory can be renamed, with what is in it", layers, rename_lower_directory)
        .needs_root(),
    Case::new("a directory that is not empty cannot be removed", layers, not_empty),
    Case::new("a file can become a directory and the reverse", layers, change_of_type),
    Case::new("symbolic links of any kind can be read", layers, symlinks),
    Case::new("a socket can be bound and reached", layers, sockets),
    Case::new("a program can be run, also after it was copied up", programs, run_programs),
    Case::new("trailing slashes mean directories", layers, trailing_slashes),
];

fn layers(_: Namespace) -> Vec<TreeSpec> {
    let long = "l".repeat(255);
    vec![
        TreeSpec::new().dir("d").mode(0o755).file("d/f", "lower").file("d/g", "other").symlink("d/s", "f"),
        TreeSpec::new()
            .file("d/low", "deep")
            .file("d/sub/x", "x")
            .dir("empty")
            .file(format!("long/{long}"), "long")
            .file(b"odd/\xff\xfe", "odd")
            .file("d/h1", "linked")
            .hard_link("d/h2", "d/h1"),
    ]
}

fn programs(_: Namespace) -> Vec<TreeSpec> {
    let program = fs::read("/bin/true").unwrap_or_default();
    vec![TreeSpec::new().file("true", program).mode(0o755).file("script", "#!/bin/sh\nexit 7\n").mode(0o755)]
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|cause| Errno::from_io_error(&cause))
}

fn long_names(union: &mut Union) -> Result<()> {
    let long = "l".repeat(255);
    let lower = union.path("long").join(&long);
    ensure!(fs::read_to_string(&lower)? == "long");
    fs::write(&lower, "changed").context("copy-up")?;
    let other = union.path("long").join("m".repeat(255));
    fs::rename(&lower, &other).context("rename")?;
    fs::remove_file(&other).context("unlink")?;
    ensure!(!lower.exists() && !other.exists());
    fs::write(&lower, "new").context("create over a whiteout")?;
    fs::remove_file(&lower)?;
    fs::create_dir(&lower).context("mkdir")?;
    fs::write(lower.join(&long), "")?;
    ensure!(fs::read_dir(union.path("long"))?.count() == 1);
    fs::remove_dir_all(&lower)?;
    union.remount()?;
    ensure!(fs::read_dir(union.path("long"))?.count() == 0);
    Ok(())
}

fn odd_names(union: &mut Union) -> Result<()> {
    let lower = union.path("odd").join(OsStr::from_bytes(b"\xff\xfe"));
    ensure!(fs::read_to_string(&lower)? == "odd");
    let new = union.path("odd").join(OsStr::from_bytes(b"new\n\x01\xc3("));
    fs::rename(&lower, &new)?;
    let names: Vec<_> =
        fs::read_dir(union.path("odd"))?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(names == [OsStr::from_bytes(b"new\n\x01\xc3(")], "{names:?}");
    Ok(())
}

fn too_long(union: &mut Union) -> Result<()> {
    let path = union.path(&"l".repeat(256));
    ensure!(errno(fs::metadata(&path)) == Some(Errno::NAMETOOLONG), "stat");
    ensure!(errno(fs::write(&path, "")) == Some(Errno::NAMETOOLONG), "create");
    ensure!(errno(fs::create_dir(&path)) == Some(Errno::NAMETOOLONG), "mkdir");
    ensure!(errno(fs::rename(union.path("d/f"), &path)) == Some(Errno::NAMETOOLONG), "rename");
    Ok(())
}

fn marks(_: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new().file("d/.wh.f", "").file("opaque/.wh..wh..opq", "").file("opaque/new", ""),
        TreeSpec::new().file("d/f", "lower").file("d/g", "").file("opaque/old", ""),
    ]
}

fn wh_names(union: &mut Union) -> Result<()> {
    ensure!(errno(fs::write(union.path("d/.wh.g"), "")) == Some(Errno::INVAL), "made");
    ensure!(errno(fs::create_dir(union.path("d/.wh..wh..opq"))) == Some(Errno::INVAL), "made");
    for _ in 0..2 {
        ensure!(!union.path("d/f").exists() && union.path("d/g").exists());
        ensure!(union.path("opaque/new").exists() && !union.path("opaque/old").exists());
        ensure!(
            fs::read_dir(union.path("d"))?.count() == 1 && fs::read_dir(union.path("opaque"))?.count() == 1
        );
        union.remount()?;
    }
    Ok(())
}

fn hard_links(union: &mut Union) -> Result<()> {
    fs::hard_link(union.path("d/f"), union.path("link"))?;
    let (one, two) = (fs::metadata(union.path("d/f"))?, fs::metadata(union.path("link"))?);
    ensure!(one.ino() == two.ino(), "inode numbers {} and {}", one.ino(), two.ino());
    ensure!((one.nlink(), two.nlink()) == (2, 2), "links {} and {}", one.nlink(), two.nlink());
    fs::write(union.path("link"), "by the link")?;
    ensure!(fs::read_to_string(union.path("d/f"))? == "by the link");
    union.remount()?;
    let (one, two) = (fs::metadata(union.path("d/f"))?, fs::metadata(union.path("link"))?);
    ensure!(one.ino() == two.ino() && one.nlink() == 2, "after a remount");
    Ok(())
}

fn one_of_two_links(union: &mut Union) -> Result<()> {
    fs::hard_link(union.path("d/f"), union.path("link"))?;
    fs::remove_file(union.path("d/f"))?;
    ensure!(fs::metadata(union.path("link"))?.nlink() == 1);
    fs::remove_file(union.path("d/h1"))?;
    ensure!(fs::read_to_string(union.path("d/h2"))? == "linked");
    union.remount()?;
    ensure!(fs::read_to_string(union.path("link"))? == "lower");
    ensure!(!union.path("d/h1").exists() && union.path("d/h2").exists());
    Ok(())
}

fn rename_replaces(union: &mut Union) -> Result<()> {
    fs::rename(union.path("d/f"), union.path("d/g")).context("onto a lower file")?;
    ensure!(fs::read_to_string(union.path("d/g"))? == "lower" && !union.path("d/f").exists());
    fs::rename(union.path("d/g"), union.path("d/s")).context("onto a symbolic link")?;
    ensure!(fs::symlink_metadata(union.path("d/s"))?.is_file());
    fs::create_dir(union.path("new"))?;
    fs::write(union.path("new/inside"), "")?;
    fs::rename(union.path("new"), union.path("empty")).context("onto an empty lower directory")?;
    ensure!(union.path("empty/inside").exists() && !union.path("new").exists());
    union.remount()?;
    ensure!(fs::read_to_string(union.path("d/s"))? == "lower");
    ensure!(
        union.path("empty/inside").exists() && !union.path("d/f").exists() && !union.path("d/g").exists()
    );
    Ok(())
}

fn rename_flags(union: &mut Union) -> Result<()> {
    let rename =
        |from: &str, to: &str, flags| renameat_with(CWD, union.path(from), CWD, union.path(to), flags);
    ensure!(rename("d/f", "d/g", RenameFlags::NOREPLACE) == Err(Errno::EXIST));
    rename("d/f", "d/g", RenameFlags::EXCHANGE).context("exchanging lower files")?;
    ensure!(fs::read_to_string(union.path("d/f"))? == "other");
    ensure!(fs::read_to_string(union.path("d/g"))? == "lower");
    ensure!(rename("d/f", "absent", RenameFlags::EXCHANGE) == Err(Errno::NOENT));
    fs::create_dir(union.path("new"))?;
    rename("d/f", "new", RenameFlags::EXCHANGE).context("exchanging a file and a directory")?;
    ensure!(union.path("d/f").is_dir() && union.path("new").is_file());
    rename("d/g", "free", RenameFlags::NOREPLACE).context("to a free name")?;
    ensure!(rename("new", "other", RenameFlags::from_bits_retain(8)) == Err(Errno::INVAL), "an unknown flag");
    Ok(())
}

fn rename_refused(union: &mut Union) -> Result<()> {
    let rename = |from: &str, to: &str| errno(fs::rename(union.path(from), union.path(to)));
    fs::create_dir(union.path("new"))?;
    ensure!(rename("d/f", "new") == Some(Errno::ISDIR), "a file onto a directory");
    ensure!(rename("new", "d/f") == Some(Errno::NOTDIR), "a directory onto a file");
    ensure!(rename("new", "new/below") == Some(Errno::INVAL), "a directory into itself");
    ensure!(rename("new", "d") == Some(Errno::NOTEMPTY), "onto a directory with entries");
    ensure!(rename("absent", "x") == Some(Errno::NOENT), "nothing");
    Ok(())
}

fn rename_onto_link(union: &mut Union) -> Result<()> {
    fs::hard_link(union.path("d/f"), union.path("link"))?;
    fs::rename(union.path("d/f"), union.path("link"))?;
    ensure!(union.path("d/f").exists() && union.path("link").exists());
    Ok(())
}

fn rename_lower_directory(union: &mut Union) -> Result<()> {
    fs::rename(union.path("d"), union.path("moved"))?;
    fs::rename(union.path("moved/sub"), union.path("sub2"))?;
    for _ in 0..2 {
        ensure!(fs::read_to_string(union.path("moved/f"))? == "lower");
        ensure!(fs::read_to_string(union.path("moved/low"))? == "deep", "the deeper layer is lost");
        ensure!(fs::read_to_string(union.path("sub2/x"))? == "x");
        ensure!(!union.path("d").exists() && !union.path("moved/sub").exists());
        union.remount()?;
    }
    fs::create_dir(union.path("d"))?;
    ensure!(fs::read_dir(union.path("d"))?.count() == 0, "the old name shows old entries");
    Ok(())
}

fn not_empty(union: &mut Union) -> Result<()> {
    ensure!(errno(fs::remove_dir(union.path("d"))) == Some(Errno::NOTEMPTY));
    for entry in ["f", "g", "s", "low", "h1", "h2"] {
        fs::remove_file(union.path("d").join(entry)).with_context(|| entry.to_owned())?;
    }
    ensure!(errno(fs::remove_dir(union.path("d"))) == Some(Errno::NOTEMPTY), "with a lower directory left");
    fs::remove_dir_all(union.path("d/sub"))?;
    fs::remove_dir(union.path("d")).context("a directory of whiteouts")?;
    ensure!(errno(fs::remove_dir(union.path("d"))) == Some(Errno::NOENT));
    ensure!(errno(fs::remove_file(union.path("empty"))) == Some(Errno::ISDIR), "unlink of a directory");
    Ok(())
}

fn change_of_type(union: &mut Union) -> Result<()> {
    fs::remove_file(union.path("d/f"))?;
    fs::create_dir(union.path("d/f"))?;
    fs::write(union.path("d/f/inside"), "")?;
    fs::remove_dir(union.path("empty"))?;
    fs::write(union.path("empty"), "file")?;
    fs::remove_dir_all(union.path("d/sub"))?;
    symlink("f", union.path("d/sub"))?;
    union.remount()?;
    ensure!(union.path("d/f/inside").exists());
    ensure!(fs::read_to_string(union.path("empty"))? == "file");
    ensure!(fs::read_link(union.path("d/sub"))?.as_os_str() == "f");
    Ok(())
}

fn symlinks(union: &mut Union) -> Result<()> {
    ensure!(fs::read_link(union.path("d/s"))?.as_os_str() == "f");
    ensure!(fs::read_to_string(union.path("d/s"))? == "lower");
    let target = "t/".repeat(2000);
    symlink(&target, union.path("long-target"))?;
    ensure!(fs::read_link(union.path("long-target"))?.as_os_str() == target.as_str());
    ensure!(fs::symlink_metadata(union.path("long-target"))?.len() == 4000);
    symlink("loop", union.path("loop"))?;
    ensure!(errno(fs::metadata(union.path("loop"))) == Some(Errno::LOOP));
    Ok(())
}

fn sockets(union: &mut Union) -> Result<()> {
    // A path to a socket is limited to 108 bytes.
    let dir = fs::File::open(union.path("d"))?;
    let short = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let listener = UnixListener::bind(&short).context("bind")?;
    let _client = UnixStream::connect(&short).context("connect")?;
    listener.accept().context("accept")?;
    fs::rename(union.path("d/socket"), union.path("d/renamed"))?;
    UnixStream::connect(short.replace("socket", "renamed")).context("connect after rename")?;
    Ok(())
}

fn run_programs(union: &mut Union) -> Result<()> {
    let run = |name: &str| std::process::Command::new(union.path(name)).status();
    for round in ["lower", "copied up"] {
        ensure!(run("true").with_context(|| round)?.success(), "{round}");
        ensure!(run("script").with_context(|| round)?.code() == Some(7), "{round}");
        fs::OpenOptions::new().append(true).open(union.path("script"))?.set_len(17)?;
        fs::set_permissions(union.path("true"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    }
    Ok(())
}

fn trailing_slashes(union: &mut Union) -> Result<()> {
    ensure!(errno(fs::metadata(union.path("d/f/"))) == Some(Errno::NOTDIR));
    ensure!(fs::metadata(union.path("d/")).is_ok());
    fs::create_dir(union.path("new/"))?;
    fs::rename(union.path("new/"), union.path("newer/"))?;
    fs::remove_dir(union.path("newer/"))?;
    Ok(())
}
