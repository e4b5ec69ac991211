//! Reading and writing: copy-up of data, holes, mappings, direct I/O, allocation.

use super::Case;
use anyhow::{Context, Result, ensure};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::{Kind, Namespace, TreeSpec};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps, copy_file_range, fallocate, seek,
    utimensat,
};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

pub const CASES: &[Case] = &[
    Case::new("a lower file is copied up by a write, and the lower stays", layers, copy_up),
    Case::new(
        "opening with O_TRUNC leaves an empty file, with the lower's attributes",
        layers,
        truncating_open,
    ),
    Case::new("truncate makes longer and shorter, of lower files too", layers, truncate),
    Case::new("holes stay holes across copy-up", layers, holes)
        .kernel_fails("it looks for data once a MiB, and fills what lies between"),
    Case::new("SEEK_HOLE and SEEK_DATA find what is there", layers, seek_hole)
        .kernel_fails("its copy-up fills holes")
        .needs_root(),
    Case::new("fallocate reserves, punches and zeroes", layers, allocate),
    Case::new("copy_file_range copies from lower to upper", layers, copy_range),
    Case::new(
        "what is written to a shared mapping is in the file, and changes its time",
        layers,
        shared_mapping,
    ),
    Case::new("what is written to a private mapping is not in the file", layers, private_mapping),
    Case::new("a mapping sees what is written by write", layers, mapping_sees_write),
    Case::new("direct I/O reads and writes, before and after copy-up", layers, direct),
    Case::new("large data survives copy-up and remount", layers, large),
    Case::new("a FIFO connects a reader and a writer", layers, fifo),
    Case::new("reading a directory is EISDIR, and writing through a reader EBADF", layers, wrong_descriptors),
    Case::new("fsync of files and directories succeeds", layers, sync),
];

const MEBIBYTE: u64 = 1 << 20;

fn layers(_: Namespace) -> Vec<TreeSpec> {
    let sparse = Kind::File { extents: vec![(8 * MEBIBYTE, vec![b'x'; 4096])], size: 16 * MEBIBYTE };
    let large: Vec<u8> = (0..3_000_017u32).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
    vec![
        TreeSpec::new()
            .file("f", "lower data")
            .mode(0o640)
            .owner(1000, 1000)
            .time(1_000_000_000, 1)
            .entry("sparse", sparse)
            .file("page", [b'p'; 8192])
            .file("large", large)
            .entry("fifo", Kind::Fifo),
    ]
}

fn writable(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).with_context(|| path.display().to_string())
}

fn copy_up(union: &mut Union) -> Result<()> {
    writable(&union.path("f"))?.write_all_at(b"UPPER", 0)?;
    ensure!(fs::read_to_string(union.path("f"))? == "UPPER data");
    ensure!(fs::read_to_string(union.upper().join("f"))? == "UPPER data");
    ensure!(fs::read_to_string(union.lower(0).join("f"))? == "lower data");
    Ok(())
}

fn truncating_open(union: &mut Union) -> Result<()> {
    File::options().write(true).truncate(true).open(union.path("f"))?;
    let metadata = fs::metadata(union.path("f"))?;
    ensure!(metadata.len() == 0, "length {}", metadata.len());
    ensure!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()) == (0o640, 1000, 1000));
    ensure!(metadata.mtime() > 1_700_000_000, "the time is the lower's");
    Ok(())
}

fn truncate(union: &mut Union) -> Result<()> {
    let file = writable(&union.path("f"))?;
    file.set_len(5)?;
    ensure!(fs::read(union.path("f"))? == b"lower");
    file.set_len(10)?;
    ensure!(fs::read(union.path("f"))? == b"lower\0\0\0\0\0");
    file.set_len(5 * MEBIBYTE)?;
    ensure!(fs::metadata(union.path("f"))?.len() == 5 * MEBIBYTE);
    ensure!(fs::metadata(union.path("f"))?.blocks() < 100, "a hole was filled");
    Ok(())
}

fn holes(union: &mut Union) -> Result<()> {
    let path = union.path("sparse");
    writable(&path)?.write_all_at(b"start", 0)?;
    let metadata = fs::metadata(&path)?;
    ensure!(metadata.len() == 16 * MEBIBYTE);
    ensure!(metadata.blocks() * 512 < MEBIBYTE, "{} blocks", metadata.blocks());
    let mut byte = [0];
    File::open(&path)?.read_exact_at(&mut byte, 8 * MEBIBYTE)?;
    ensure!(&byte == b"x");
    Ok(())
}

fn seek_hole(union: &mut Union) -> Result<()> {
    let expect = |file: &File, what: &str| -> Result<()> {
        ensure!(seek(file, SeekFrom::Data(0))? == 8 * MEBIBYTE, "{what}: data");
        ensure!(seek(file, SeekFrom::Hole(8 * MEBIBYTE))? == 8 * MEBIBYTE + 4096, "{what}: hole");
        ensure!(seek(file, SeekFrom::Data(9 * MEBIBYTE)) == Err(Errno::NXIO), "{what}: no more data");
        Ok(())
    };
    expect(&File::open(union.path("sparse"))?, "lower")?;
    expect(&writable(&union.path("sparse"))?, "upper")
}

fn allocate(union: &mut Union) -> Result<()> {
    let file = writable(&union.path("page"))?;
    fallocate(&file, FallocateFlags::empty(), 0, 65_536).context("reserving")?;
    ensure!(file.metadata()?.len() == 65_536, "length {}", file.metadata()?.len());
    fallocate(&file, FallocateFlags::KEEP_SIZE, 65_536, 65_536).context("keeping the size")?;
    ensure!(file.metadata()?.len() == 65_536, "the size was not kept");
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).context("punching")?;
    let data = fs::read(union.path("page"))?;
    ensure!(data.iter().take(4096).all(|byte| *byte == 0), "the hole is not zero");
    ensure!(data.iter().skip(4096).take(4096).all(|byte| *byte == b'p'), "too much was punched");
    Ok(())
}

fn copy_range(union: &mut Union) -> Result<()> {
    let from = File::open(union.path("f"))?;
    let to = File::create(union.path("copy"))?;
    let (mut from_offset, mut to_offset) = (6, 0);
    let count = copy_file_range(&from, Some(&mut from_offset), &to, Some(&mut to_offset), 100)?;
    ensure!(count == 4 && fs::read(union.path("copy"))? == b"data", "{count} bytes copied");
    ensure!(fs::copy(union.path("large"), union.path("copy"))? == 3_000_017);
    ensure!(fs::read(union.path("copy"))? == fs::read(union.lower(0).join("large"))?);
    Ok(())
}

/// Reads or writes a mapping without dereferencing it: see plyfs_testkit's differential test.
fn memory() -> Result<File> {
    File::options().read(true).write(true).open("/proc/self/mem").context("the process's memory")
}

fn shared_mapping(union: &mut Union) -> Result<()> {
    let path = union.path("page");
    let old = Timespec { tv_sec: 5, tv_nsec: 5 };
    let file = writable(&path)?;
    utimensat(CWD, &path, &Timestamps { last_access: old, last_modification: old }, AtFlags::empty())?;
    let map = memmap2::MmapOptions::new().len(8192).map_raw(file.as_raw_fd())?;
    memory()?.write_all_at(b"mapped", map.as_mut_ptr() as u64 + 4096)?;
    map.flush()?;
    let metadata = fs::metadata(&path)?;
    ensure!(metadata.mtime() > 1_700_000_000, "mtime {}", metadata.mtime());
    ensure!(metadata.ctime() > 1_700_000_000, "ctime {}", metadata.ctime());
    let mut data = [0; 6];
    File::open(&path)?.read_exact_at(&mut data, 4096)?;
    ensure!(&data == b"mapped", "read gives {}", data.escape_ascii());
    ensure!(fs::read(union.upper().join("page"))?.get(4096..4102) == Some(b"mapped"), "not in the upper");
    Ok(())
}

fn private_mapping(union: &mut Union) -> Result<()> {
    let file = File::open(union.path("page"))?;
    // A raw mapping is shared, and a shared one of a read-only descriptor cannot be written.
    ensure!(memmap2::MmapOptions::new().len(8192).map_raw(file.as_raw_fd()).is_err(), "mapped for writing");
    let map = memmap2::MmapOptions::new().len(8192).map_raw_read_only(file.as_raw_fd())?;
    ensure!(memory()?.write_at(b"x", map.as_ptr() as u64).is_err(), "written");
    ensure!(fs::read(union.path("page"))? == [b'p'; 8192]);
    Ok(())
}

fn mapping_sees_write(union: &mut Union) -> Result<()> {
    let file = writable(&union.path("page"))?;
    let map = memmap2::MmapOptions::new().len(8192).map_raw(file.as_raw_fd())?;
    let mut data = [0; 1];
    memory()?.read_exact_at(&mut data, map.as_ptr() as u64)?;
    file.write_all_at(b"written", 10)?;
    let mut data = [0; 7];
    memory()?.read_exact_at(&mut data, map.as_ptr() as u64 + 10)?;
    ensure!(&data == b"written", "the mapping shows {}", data.escape_ascii());
    Ok(())
}

fn direct(union: &mut Union) -> Result<()> {
    let path = union.path("page");
    let open = |write: bool| {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        File::options().read(true).write(write).custom_flags(flags).open(&path)
    };
    let space = vec![b'd'; 3 * 4096];
    let start = (space.as_ptr() as usize).next_multiple_of(4096) - space.as_ptr() as usize;
    let aligned = space.get(start..start + 4096).context("an aligned buffer")?;
    let mut room = vec![0; 3 * 4096];
    let start = (room.as_ptr() as usize).next_multiple_of(4096) - room.as_ptr() as usize;
    let buffer = room.get_mut(start..start + 4096).context("an aligned buffer")?;
    open(false)?.read_exact_at(buffer, 4096).context("reading the lower")?;
    ensure!(buffer.iter().all(|byte| *byte == b'p'));
    let file = open(true)?;
    file.write_all_at(aligned, 4096).context("writing")?;
    file.read_exact_at(buffer, 4096).context("reading back")?;
    ensure!(buffer.iter().all(|byte| *byte == b'd'));
    ensure!(fs::read(&path)?.get(4096) == Some(&b'd'), "buffered reading shows old data");
    Ok(())
}

fn large(union: &mut Union) -> Result<()> {
    let original = fs::read(union.lower(0).join("large"))?;
    ensure!(fs::read(union.path("large"))? == original, "before");
    let file = writable(&union.path("large"))?;
    file.write_all_at(b"!", 2_000_000)?;
    let mut expected = original;
    expected[2_000_000] = b'!';
    ensure!(fs::read(union.path("large"))? == expected, "after copy-up");
    drop(file);
    union.remount()?;
    ensure!(fs::read(union.path("large"))? == expected, "after a remount");
    Ok(())
}

fn fifo(union: &mut Union) -> Result<()> {
    let path = union.path("fifo");
    let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
    let mut reader = File::options().read(true).custom_flags(flags).open(&path)?;
    let mut writer = File::options().write(true).open(&path)?;
    std::io::Write::write_all(&mut writer, b"through")?;
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text)?;
    ensure!(text == "through");
    ensure!(!union.upper().join("fifo").exists(), "a FIFO was copied up by being used");
    Ok(())
}

fn wrong_descriptors(union: &mut Union) -> Result<()> {
    let mut byte = [0];
    let dir = File::open(union.merged())?.read_at(&mut byte, 0);
    ensure!(dir.is_err_and(|cause| cause.raw_os_error() == Some(21)), "reading a directory");
    let written = File::open(union.path("f"))?.write_at(b"x", 0);
    ensure!(written.is_err_and(|cause| cause.raw_os_error() == Some(9)), "writing through a reader");
    let opened = File::options().write(true).open(union.merged());
    ensure!(opened.is_err_and(|cause| cause.raw_os_error() == Some(21)), "opening a directory for writing");
    Ok(())
}

fn sync(union: &mut Union) -> Result<()> {
    let file = writable(&union.path("f"))?;
    file.write_all_at(b"x", 0)?;
    file.sync_data()?;
    file.sync_all()?;
    File::open(union.path("f"))?.sync_all().context("through a reader")?;
    File::open(union.merged())?.sync_all().context("of a directory")?;
    rustix::fs::syncfs(&file).context("syncfs")?;
    Ok(())
}
