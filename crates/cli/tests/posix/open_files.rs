//! Open files: unlinked, replaced, copied up while open; locks.

use super::Case;
use anyhow::{Context, Result, ensure};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::{Namespace, TreeSpec};
use rustix::fs::{FlockOperation, Mode, Timespec, Timestamps, fchmod, flock, futimens};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

pub const CASES: &[Case] = &[
    Case::new("an unlinked open lower file can be read and has no links", layers, unlinked_lower)
        .kernel_fails("it shows the links of the lower file"),
    Case::new("an unlinked open file can be written, cut, and given attributes", layers, unlinked_written),
    Case::new("a file opened for reading and unlinked can be given attributes", layers, unlinked_read_only)
        .kernel_fails("its copy-up finds the whiteout in its way"),
    Case::new("an open file that was replaced keeps its data", layers, replaced)
        .kernel_fails("it shows the links of the lower file"),
    Case::new("a descriptor for reading sees what another writes after copy-up", layers, reader_sees_writer),
    Case::new("a descriptor for reading keeps its position across copy-up", layers, position_kept),
    Case::new(
        "fstat of a descriptor opened before copy-up shows the file as it is",
        layers,
        fstat_after_copy_up,
    ),
    Case::new("an open file follows a rename of its directory", layers, renamed_directory).needs_root(),
    Case::new("a lock taken before copy-up excludes after it", layers, lock_across_copy_up),
    Case::new("exclusive locks exclude each other", layers, locks),
    Case::new("many descriptors append without overwriting", layers, appends),
    Case::new(
        "an unlinked file can be linked again by its descriptor only if it was never linked",
        layers,
        relink,
    ),
    Case::new("a temporary file without a name can be given one", layers, tmpfile),
    Case::new("a file deleted in a removed directory stays open", layers, deleted_with_directory),
];

fn layers(_: Namespace) -> Vec<TreeSpec> {
    vec![TreeSpec::new().file("d/f", "lower data").mode(0o644).time(1_000_000_000, 5).file("d/g", "other")]
}

fn unlinked_lower(union: &mut Union) -> Result<()> {
    let path = union.path("d/f");
    let mut file = File::open(&path)?;
    fs::remove_file(&path)?;
    let metadata = file.metadata().context("fstat")?;
    ensure!(metadata.nlink() == 0, "links {}", metadata.nlink());
    let mut text = String::new();
    file.read_to_string(&mut text).context("read")?;
    ensure!(text == "lower data", "{text}");
    ensure!(!path.exists());
    Ok(())
}

fn unlinked_written(union: &mut Union) -> Result<()> {
    for name in ["d/f", "new"] {
        let path = union.path(name);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        fs::remove_file(&path)?;
        file.set_len(3).context("ftruncate")?;
        ensure!(file.metadata()?.len() == 3, "length after ftruncate");
        file.seek(SeekFrom::End(0))?;
        file.write_all(b"more").context("write")?;
        fchmod(&file, Mode::from_raw_mode(0o600)).context("fchmod")?;
        let time = Timespec { tv_sec: -7, tv_nsec: 9 };
        futimens(&file, &Timestamps { last_access: time, last_modification: time }).context("futimens")?;
        file.sync_all().context("fsync")?;
        let metadata = file.metadata()?;
        ensure!(metadata.nlink() == 0, "{name}: links {}", metadata.nlink());
        ensure!(metadata.len() == 7, "{name}: length {}", metadata.len());
        ensure!(metadata.mode() & 0o777 == 0o600, "{name}: mode {:o}", metadata.mode());
        ensure!((metadata.mtime(), metadata.mtime_nsec()) == (-7, 9), "{name}: time {}", metadata.mtime());
        ensure!(!union.upper().join(name).is_file(), "{name} lies in the upper");
    }
    Ok(())
}

fn unlinked_read_only(union: &mut Union) -> Result<()> {
    let path = union.path("d/f");
    let file = File::open(&path)?;
    fs::remove_file(&path)?;
    fchmod(&file, Mode::from_raw_mode(0o600)).context("fchmod")?;
    let metadata = file.metadata()?;
    ensure!(metadata.mode() & 0o777 == 0o600, "mode {:o}", metadata.mode());
    ensure!(metadata.nlink() == 0, "links {}", metadata.nlink());
    let mut text = String::new();
    (&file).read_to_string(&mut text).context("read")?;
    ensure!(text == "lower data", "{text}");
    Ok(())
}

fn replaced(union: &mut Union) -> Result<()> {
    let mut old = File::open(union.path("d/f"))?;
    fs::write(union.path("n"), "new data")?;
    fs::rename(union.path("n"), union.path("d/f"))?;
    let mut text = String::new();
    old.read_to_string(&mut text)?;
    ensure!(text == "lower data", "the old descriptor reads {text}");
    ensure!(old.metadata()?.nlink() == 0, "links {}", old.metadata()?.nlink());
    ensure!(fs::read_to_string(union.path("d/f"))? == "new data");
    ensure!(old.metadata()?.ino() != fs::metadata(union.path("d/f"))?.ino(), "the same inode number");
    Ok(())
}

fn reader_sees_writer(union: &mut Union) -> Result<()> {
    let reader = File::open(union.path("d/f"))?;
    let mut before = [0; 5];
    reader.read_exact_at(&mut before, 0)?;
    let writer = File::options().write(true).open(union.path("d/f"))?;
    writer.write_all_at(b"UPPER", 0)?;
    let mut after = [0; 10];
    reader.read_exact_at(&mut after, 0)?;
    ensure!(&after == b"UPPER data", "the reader sees {}", after.escape_ascii());
    writer.write_all_at(b"more", 10)?;
    let mut end = [0; 4];
    reader.read_exact_at(&mut end, 10).context("reading what was added")?;
    ensure!(&end == b"more");
    ensure!(fs::read(union.lower(0).join("d/f"))? == b"lower data", "the lower was written");
    Ok(())
}

fn position_kept(union: &mut Union) -> Result<()> {
    let mut reader = File::open(union.path("d/f"))?;
    let mut part = [0; 6];
    reader.read_exact(&mut part)?;
    File::options().write(true).open(union.path("d/f"))?.write_all_at(b"DATA", 6)?;
    let mut rest = String::new();
    reader.read_to_string(&mut rest)?;
    ensure!(rest == "DATA", "reads {rest}");
    Ok(())
}

fn fstat_after_copy_up(union: &mut Union) -> Result<()> {
    let reader = File::open(union.path("d/f"))?;
    let ino = reader.metadata()?.ino();
    fs::OpenOptions::new().append(true).open(union.path("d/f"))?.write_all(b"!")?;
    let metadata = reader.metadata()?;
    ensure!(metadata.len() == 11, "length {}", metadata.len());
    ensure!(metadata.ino() == ino, "inode number {} was {ino}", metadata.ino());
    Ok(())
}

fn renamed_directory(union: &mut Union) -> Result<()> {
    let mut file = File::options().read(true).append(true).open(union.path("d/f"))?;
    fs::rename(union.path("d"), union.path("e"))?;
    file.write_all(b"!")?;
    ensure!(fs::read_to_string(union.path("e/f"))? == "lower data!");
    fs::remove_file(union.path("e/f"))?;
    ensure!(file.metadata()?.nlink() == 0);
    Ok(())
}

fn lock_across_copy_up(union: &mut Union) -> Result<()> {
    let first = File::open(union.path("d/f"))?;
    flock(&first, FlockOperation::NonBlockingLockExclusive)?;
    fs::OpenOptions::new().append(true).open(union.path("d/f"))?.write_all(b"!")?;
    let second = File::open(union.path("d/f"))?;
    let result = flock(&second, FlockOperation::NonBlockingLockShared);
    ensure!(result == Err(Errno::WOULDBLOCK), "{result:?}");
    flock(&first, FlockOperation::Unlock)?;
    flock(&second, FlockOperation::NonBlockingLockExclusive)?;
    Ok(())
}

fn locks(union: &mut Union) -> Result<()> {
    let files = [File::open(union.path("d/f"))?, File::open(union.path("d/f"))?];
    let [first, second] = &files;
    flock(first, FlockOperation::NonBlockingLockShared)?;
    flock(second, FlockOperation::NonBlockingLockShared)?;
    ensure!(flock(first, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK));
    flock(second, FlockOperation::Unlock)?;
    flock(first, FlockOperation::NonBlockingLockExclusive)?;
    Ok(())
}

fn appends(union: &mut Union) -> Result<()> {
    let path = union.path("d/f");
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let path = &path;
                scope.spawn(move || -> Result<()> {
                    let mut file = File::options().append(true).open(path)?;
                    for _ in 0..100 {
                        file.write_all(format!("line of {number}\n").as_bytes())?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panicked"))?)
    })?;
    let text = fs::read_to_string(&path)?;
    ensure!(text.starts_with("lower data"));
    for number in 0..4 {
        let count = text.matches(&format!("line of {number}\n")).count();
        ensure!(count == 100, "{count} lines of {number}");
    }
    Ok(())
}

fn link_by_descriptor(file: &File, to: &std::path::Path) -> rustix::io::Result<()> {
    let by_proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    rustix::fs::linkat(rustix::fs::CWD, by_proc, rustix::fs::CWD, to, rustix::fs::AtFlags::SYMLINK_FOLLOW)
}

fn relink(union: &mut Union) -> Result<()> {
    let file = File::options().read(true).write(true).open(union.path("d/f"))?;
    fs::remove_file(union.path("d/f"))?;
    let result = link_by_descriptor(&file, &union.path("again"));
    ensure!(result == Err(Errno::NOENT), "{result:?}");
    Ok(())
}

fn tmpfile(union: &mut Union) -> Result<()> {
    let flags = rustix::fs::OFlags::TMPFILE.bits();
    let mut file = File::options()
        .read(true)
        .write(true)
        .mode(0o640)
        .custom_flags(i32::try_from(flags)?)
        .open(union.path("d"))
        .context("O_TMPFILE")?;
    file.write_all(b"temporary")?;
    ensure!(file.metadata()?.nlink() == 0);
    link_by_descriptor(&file, &union.path("d/named")).context("link")?;
    ensure!(fs::read_to_string(union.path("d/named"))? == "temporary");
    ensure!(fs::metadata(union.path("d/named"))?.nlink() == 1);
    Ok(())
}

fn deleted_with_directory(union: &mut Union) -> Result<()> {
    let mut file = File::open(union.path("d/f"))?;
    let dir = File::open(union.path("d"))?;
    fs::remove_dir_all(union.path("d"))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text == "lower data");
    dir.metadata().context("fstat of the directory")?;
    fs::create_dir(union.path("d"))?;
    ensure!(fs::read_dir(union.path("d"))?.count() == 0, "the new directory is not empty");
    Ok(())
}
