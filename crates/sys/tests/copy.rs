//! Copying data: the bytes are the same, holes stay holes, and it works between any two file systems.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};

use common::{name, scratch};
use plyfs_sys::{CopyMethod, DirMut, Errno, File, OFlags, Whence};

const MIB: u64 = 1 << 20;

/// Two MiB of data at 1 MiB and at 9 MiB, and a hole at the start, in between and up to 20 MiB.
fn sparse(dir: &DirMut) -> File {
    let file = dir.create_file(name("sparse"), OFlags::RDWR, 0o600).expect("create");
    let data: Vec<u8> = (0..2 * MIB).map(|at| (at * 31 % 251) as u8 | 1).collect();
    for start in [MIB, 9 * MIB] {
        assert_eq!(file.pwrite(&data, start), Ok(data.len()));
    }
    file.truncate(20 * MIB).expect("truncate");
    file.sync(false).expect("fsync");
    file
}

fn content(file: &File, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("size")];
    let count = file.pread(&mut bytes, 0).expect("read");
    bytes.truncate(count);
    bytes
}

/// Every `(start, end)` of data in a file.
fn extents(file: &File, len: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match file.seek(at, Whence::Data) {
            Err(Errno::NXIO) => break,
            other => other.expect("seek"),
        };
        at = file.seek(start, Whence::Hole).expect("seek");
        found.push((start, at));
    }
    found
}

#[test]
fn holes_and_content_survive() {
    let (_temp, dir) = scratch();
    let src = sparse(&dir);
    let dst = dir.tmpfile(0o600, OFlags::RDWR).expect("tmpfile");
    let method = File::copy_data(&src, &dst, 20 * MIB).expect("copy");
    assert!(matches!(method, CopyMethod::Clone | CopyMethod::Range), "{method:?}");
    assert_eq!(dst.stat().expect("stat").size, 20 * MIB);
    assert!(content(&src, 20 * MIB) == content(&dst, 20 * MIB), "content differs");
    dst.sync(false).expect("fsync");
    assert_eq!(extents(&dst, 20 * MIB), extents(&src, 20 * MIB));
    assert!(dst.stat().expect("stat").blocks * 512 < 5 * MIB, "holes were filled");
}

#[test]
fn holes_and_content_survive_between_file_systems() {
    let (_temp, dir) = scratch();
    let src = sparse(&dir);
    let memory = plyfs_sys::process::memfd("copy").expect("memfd");
    let memory = File::from_fd_writable(memory).expect("file");
    let method = File::copy_data(&src, &memory, 20 * MIB).expect("copy");
    assert_ne!(method, CopyMethod::Clone);
    assert!(content(&src, 20 * MIB) == content(&memory, 20 * MIB), "content differs");
    assert_eq!(memory.stat().expect("stat").blocks * 512, 4 * MIB);
    // And back, from a file system with other ideas of what a hole is.
    let back = dir.tmpfile(0o600, OFlags::RDWR).expect("tmpfile");
    File::copy_data(&memory, &back, 20 * MIB).expect("copy");
    assert!(content(&src, 20 * MIB) == content(&back, 20 * MIB), "content differs");
    assert!(back.stat().expect("stat").blocks * 512 < 5 * MIB, "holes were filled");
}

#[test]
fn a_source_that_cannot_tell_its_size_or_holes_is_read() {
    let (_temp, dir) = scratch();
    let src = std::fs::File::open("/proc/version").expect("open");
    let src = File::from_fd(src.into()).expect("file");
    let text = std::fs::read("/proc/version").expect("read");
    let dst = dir.tmpfile(0o600, OFlags::RDWR).expect("tmpfile");
    let len = text.len() as u64;
    assert_eq!(File::copy_data(&src, &dst, len), Ok(CopyMethod::ReadWrite));
    assert_eq!(content(&dst, len + 1), text);
}

#[test]
fn a_prefix_can_be_copied_and_a_source_may_be_shorter_than_promised() {
    let (_temp, dir) = scratch();
    let src = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    src.pwrite(b"0123456789", 0).expect("write");
    for (len, expected) in [(4, &b"0123"[..]), (10, b"0123456789"), (13, b"0123456789\0\0\0"), (0, b"")] {
        let dst = dir.tmpfile(0o600, OFlags::RDWR).expect("tmpfile");
        File::copy_data(&src, &dst, len).expect("copy");
        assert_eq!(dst.stat().expect("stat").size, len);
        assert_eq!(content(&dst, 100), expected);
    }
}

#[test]
fn a_full_destination_is_an_error_and_not_a_short_copy() {
    let (_temp, dir) = scratch();
    let src = sparse(&dir);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("open");
    let full = File::from_fd_writable(full.into()).expect("file");
    assert_eq!(File::copy_data(&src, &full, 20 * MIB), Err(Errno::NOSPC));
}

#[test]
fn a_lower_file_is_no_destination() {
    let (_temp, dir) = scratch();
    let src = sparse(&dir);
    let lower = dir.open_file(name("sparse"), OFlags::RDONLY).expect("open");
    assert_eq!(File::copy_data(&src, &lower, 1), Err(Errno::ROFS));
    assert_eq!(src.copy_range(0, &lower, 0, 1), Err(Errno::ROFS));
    assert_eq!(lower.clone_from(&src), Err(Errno::ROFS));
}

#[test]
fn reads_and_writes_are_whole() {
    let (temp, dir) = scratch();
    let file = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    let data = vec![b'x'; 3_000_000];
    assert_eq!(file.pwrite(&data, 10), Ok(data.len()));
    let mut back = vec![0; data.len() + 10];
    assert_eq!(file.pread(&mut back, 10), Ok(data.len()));
    assert_eq!(back.get(..data.len()), Some(&data[..]));
    assert_eq!(file.pread(&mut back, 4_000_000), Ok(0));
    let std = std::fs::File::open(temp.path().join("f")).expect("open");
    let mut head = [1; 11];
    std.read_exact_at(&mut head, 0).expect("read");
    assert_eq!(&head, b"\0\0\0\0\0\0\0\0\0\0x");
    assert_eq!(std.metadata().expect("stat").size(), 3_000_010);
    let reopened = file.reopen(OFlags::RDONLY).expect("reopen");
    assert_eq!(reopened.pread(&mut head, 9), Ok(11));
    assert_eq!(reopened.pwrite(b"x", 0), Err(Errno::BADF));
    file.fallocate(plyfs_sys::FallocateFlags::PUNCH_HOLE | plyfs_sys::FallocateFlags::KEEP_SIZE, 0, 2 * MIB)
        .expect("punch");
    assert_eq!(reopened.pread(&mut head, 10), Ok(11));
    assert_eq!(head, [0; 11]);
}
