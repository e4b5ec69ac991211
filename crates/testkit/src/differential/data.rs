//! Operations on the data of open files: read, write, seek, allocate, copy, sync, map.

use super::apply::Side;
use super::op::{Op, Whence};
use super::outcome::{Outcome, or_failed};
use crate::snapshot::{Content, digest};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fd::BorrowedFd;
use rustix::fs::{self, FallocateFlags, FileType, SeekFrom};
use rustix::io::{self, Errno};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// What direct I/O is aligned to: no file system here needs more.
pub(super) const ALIGNMENT: usize = 4096;

/// The process's own memory: a mapping is read and written through it, so that an access beyond the end of
/// the file is an error and not a signal, and no unsafe code is needed. The fault is the same as any other.
static MEMORY: OnceLock<Option<File>> = OnceLock::new();

/// Opens the process's memory; to be called before the first change of identity.
pub fn prepare() {
    MEMORY.get_or_init(|| File::options().read(true).write(true).open("/proc/self/mem").ok());
}

impl Side {
    pub(super) fn on_data(&self, op: &Op) -> Outcome {
        match op {
            Op::Read { slot, offset, length } => self.read(*slot, *offset, *length),
            Op::Write { slot, offset, length, byte } => self.write(*slot, *offset, *length, *byte),
            Op::Seek { slot, whence, offset } => self.with_slot(*slot, |fd| seek(fd, *whence, *offset)),
            Op::Fallocate { slot, mode, offset, length } => self.with_slot(*slot, |fd| {
                fs::fallocate(fd, FallocateFlags::from_bits_retain(*mode), *offset, *length).into()
            }),
            Op::CopyRange { from, from_offset, to, to_offset, length } => {
                let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
                // With direct I/O it depends on the file system whether odd ranges are copied.
                let (Some((from, false)), Some((to, false))) = (self.slot(*from), self.slot(*to)) else {
                    return Outcome::NoSlot;
                };
                let copied =
                    fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), *length);
                or_failed(copied, |copied| Outcome::Number(copied as u64))
            }
            Op::Sync { slot, data_only: true } => self.with_slot(*slot, |fd| fs::fdatasync(fd).into()),
            Op::Sync { slot, .. } => self.with_slot(*slot, |fd| fs::fsync(fd).into()),
            Op::MapWrite { slot, page, length, byte } => {
                self.with_slot(*slot, |fd| map_write(fd, *page, *length, *byte))
            }
            Op::MapRead { slot, page, length } => self.with_slot(*slot, |fd| map_read(fd, *page, *length)),
            _ => Outcome::Broken("not an operation on data".to_owned()),
        }
    }

    fn read(&self, slot: u8, offset: Option<u64>, length: usize) -> Outcome {
        let Some((fd, direct)) = self.slot(slot) else { return Outcome::NoSlot };
        let (offset, length) = aligned(direct, offset, length);
        let mut space = vec![0; length + ALIGNMENT];
        let from = start(&space);
        let buffer = space.get_mut(from..).and_then(|rest| rest.get_mut(..length));
        let Some(buffer) = buffer else { return Outcome::Broken("no buffer".to_owned()) };
        let read = match offset {
            Some(offset) => io::pread(fd, &mut *buffer, offset),
            None => io::read(fd, &mut *buffer),
        };
        or_failed(read, |count| {
            Outcome::Data(count, Content::Digest(digest(buffer.get(..count).unwrap_or_default())))
        })
    }

    fn write(&self, slot: u8, offset: Option<u64>, length: usize, byte: u8) -> Outcome {
        let Some((fd, direct)) = self.slot(slot) else { return Outcome::NoSlot };
        let (offset, length) = aligned(direct, offset, length);
        let space = vec![byte; length + ALIGNMENT];
        let buffer = space.get(start(&space)..).and_then(|rest| rest.get(..length)).unwrap_or_default();
        let written = match offset {
            Some(offset) => io::pwrite(fd, buffer, offset),
            None => io::write(fd, buffer),
        };
        or_failed(written, |count| Outcome::Number(count as u64))
    }
}

/// Rounds to what direct I/O takes.
fn aligned(direct: bool, offset: Option<u64>, length: usize) -> (Option<u64>, usize) {
    if !direct {
        return (offset, length);
    }
    let unit = ALIGNMENT as u64;
    (offset.map(|offset| offset / unit * unit), length.next_multiple_of(ALIGNMENT))
}

/// The first aligned position in `space`.
fn start(space: &[u8]) -> usize {
    let address = space.as_ptr() as usize;
    address.next_multiple_of(ALIGNMENT) - address
}

fn seek(fd: BorrowedFd<'_>, whence: Whence, offset: i64) -> Outcome {
    match fs::fstat(fd) {
        // See known.rs.
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => return Outcome::Done,
        Ok(_) => {}
        Err(errno) => return Outcome::Failed(errno),
    }
    let forward = u64::try_from(offset).unwrap_or(0);
    let from = match whence {
        Whence::Set => SeekFrom::Start(forward),
        Whence::Current => SeekFrom::Current(offset),
        Whence::End => SeekFrom::End(offset),
        Whence::Data => SeekFrom::Data(forward),
        Whence::Hole => SeekFrom::Hole(forward),
    };
    let found = fs::seek(fd, from);
    if let Some(lost) = lost_by(fd, whence, forward, found) {
        return Outcome::Broken(lost);
    }
    or_failed(found, Outcome::Number)
}

/// Where a search for holes and data may end is the file system's choice (see known.rs), but what it passes over as a hole must
/// be zero: whoever copies by it would lose the rest.
fn lost_by(fd: BorrowedFd<'_>, whence: Whence, offset: u64, found: Result<u64, Errno>) -> Option<String> {
    let size = u64::try_from(fs::fstat(fd).ok()?.st_size).ok()?;
    let (from, to) = match (whence, found) {
        (Whence::Data, Ok(data)) => (offset, data),
        (Whence::Data, Err(Errno::NXIO)) => (offset, size),
        (Whence::Hole, Ok(hole)) => {
            let next = fs::seek(fd, SeekFrom::Data(hole)).unwrap_or(size);
            fs::seek(fd, SeekFrom::Start(hole)).ok()?;
            (hole, next)
        }
        _ => return None,
    };
    let mut skipped = vec![0; usize::try_from(to.checked_sub(from)?).ok()?];
    // A descriptor that cannot read (for writing only, or direct) cannot be checked.
    let count = io::pread(fd, skipped.as_mut_slice(), from).ok()?;
    let at = skipped.iter().take(count).position(|byte| *byte != 0)?;
    Some(format!("byte {} is data, and was passed over as a hole", from + at as u64))
}

fn map(fd: BorrowedFd<'_>, page: u64, length: usize, writable: bool) -> Result<MmapRaw, Errno> {
    let mut options = MmapOptions::new();
    options.offset(page * ALIGNMENT as u64).len(length.max(1));
    let mapped =
        if writable { options.map_raw(fd.as_raw_fd()) } else { options.map_raw_read_only(fd.as_raw_fd()) };
    mapped.map_err(|cause| errno(&cause))
}

fn map_write(fd: BorrowedFd<'_>, page: u64, length: usize, byte: u8) -> Outcome {
    or_failed(map(fd, page, length, true), |map| {
        let Some(memory) = memory() else { return Outcome::NoSlot };
        let written = memory.write_at(&vec![byte; length.max(1)], map.as_mut_ptr() as u64);
        let synced = map.flush();
        let results = [written.map(|count| count as u64), synced.map(|()| 0)];
        Outcome::Several(results.map(|result| number(&result)).to_vec())
    })
}

fn map_read(fd: BorrowedFd<'_>, page: u64, length: usize) -> Outcome {
    or_failed(map(fd, page, length, false), |map| {
        let Some(memory) = memory() else { return Outcome::NoSlot };
        let mut data = vec![0; length.max(1)];
        let mapped = memory.read_at(&mut data, map.as_ptr() as u64);
        let mut expected = vec![0; data.len()];
        let read = io::pread(fd, expected.as_mut_slice(), page * ALIGNMENT as u64).unwrap_or(0);
        match mapped {
            // Beyond the end of the file, but within its last page, there are zeros, as in what was not read.
            Ok(count) if data.get(..count) != expected.get(..count) => {
                Outcome::Broken("a mapping shows other data than a read".to_owned())
            }
            Ok(count) => {
                data.truncate(count);
                Outcome::Data(count, Content::Digest(digest(&data)))
            }
            Err(_) if read > 0 => Outcome::Broken("what can be read cannot be seen in a mapping".to_owned()),
            Err(cause) => Outcome::Failed(errno(&cause)),
        }
    })
}

fn memory() -> Option<&'static File> {
    MEMORY.get().and_then(Option::as_ref)
}

fn number(result: &std::io::Result<u64>) -> Outcome {
    match result {
        Ok(number) => Outcome::Number(*number),
        Err(cause) => Outcome::Failed(errno(cause)),
    }
}

fn errno(cause: &std::io::Error) -> Errno {
    Errno::from_io_error(cause).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn data_that_is_passed_over_as_a_hole_is_a_finding() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0, 0, 7, 0]).unwrap();
        let lost = |whence, offset, found| lost_by(file.as_fd(), whence, offset, found);
        assert!(lost(Whence::Data, 0, Ok(3)).is_some(), "the seven was skipped");
        assert!(lost(Whence::Data, 0, Err(Errno::NXIO)).is_some(), "all was skipped");
        assert_eq!(lost(Whence::Data, 0, Ok(2)), None, "only zeros were");
        assert_eq!(lost(Whence::Data, 3, Err(Errno::NXIO)), None);
        assert_eq!(lost(Whence::Hole, 0, Ok(4)), None, "the end counts as a hole");
    }
}
