//! Copying the data of one file to another: shared blocks where the file system can, else range by range, keeping holes.
//!
//! Only data is copied here; attributes, staging and the order of both are the engine's (`copy_up/` in `plyfs-core`).

use std::os::fd::AsFd;

use crate::{Errno, File, Result, Whence, raw};

/// Bytes that one copy_file_range(2) or sendfile-like step is asked for: large enough to be cheap, small enough that a
/// fatal signal is noticed soon.
const STEP_BYTES: u64 = 64 << 20;

/// Size of the buffer of a copy by reading and writing: a larger one leaves the processor's cache (measured: 512 MiB in
/// 0.16 s with it, in 0.2 to 0.7 s with 1 MiB).
const BUFFER_BYTES: usize = 256 << 10;

/// How the data of [`File::copy_data`] got to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyMethod {
    /// The blocks are shared (`FICLONE`).
    Clone,
    /// The kernel copied (copy_file_range(2)).
    Range,
    /// It was read and written.
    ReadWrite,
    /// There was no data to copy.
    Empty,
}

impl File {
    /// Makes this file share all blocks of `src` (`FICLONE` of ioctl_ficlone(2)). `EOPNOTSUPP`, `EXDEV` or `EINVAL` where
    /// the file systems cannot.
    pub fn clone_from(&self, src: &Self) -> Result<()> {
        self.require_write()?;
        raw::retry(|| rustix::fs::ioctl_ficlone(self.as_fd(), src.as_fd()))
    }

    /// Copies up to `len` bytes to `dst` within the kernel and returns how many (copy_file_range(2)); 0 at the end of this
    /// file.
    pub fn copy_range(&self, offset: u64, dst: &Self, dst_offset: u64, len: u64) -> Result<u64> {
        dst.require_write()?;
        let len = usize::try_from(len).unwrap_or(usize::MAX >> 1);
        let (mut from, mut to) = (offset, dst_offset);
        let count = raw::retry(|| {
            rustix::fs::copy_file_range(self.as_fd(), Some(&mut from), dst.as_fd(), Some(&mut to), len)
        })?;
        Ok(count as u64)
    }
}

impl File {
    /// Makes the first `len` bytes of `dst`, a new and empty file, those of `src`: by `FICLONE` if that is possible, else
    /// with the holes of `src` kept (lseek(2), copy_file_range(2)), else by reading and writing. `dst` is `len` bytes long
    /// afterwards, even if `src` was cut short meanwhile. The offsets of both descriptors are left anywhere.
    pub fn copy_data(src: &Self, dst: &Self, len: u64) -> Result<CopyMethod> {
        dst.require_write()?;
        if len == 0 {
            return Ok(CopyMethod::Empty);
        }
        if clone_whole(src, dst, len)? {
            return Ok(CopyMethod::Clone);
        }
        let mut copier = Copier { src, dst, method: CopyMethod::Empty, buffer: Vec::new() };
        copier.copy_all(len)?;
        dst.truncate(len)?;
        Ok(copier.method)
    }
}

/// Clones all of `src` and cuts `dst` to `len`; false where the file systems cannot.
fn clone_whole(src: &File, dst: &File, len: u64) -> Result<bool> {
    match dst.clone_from(src) {
        Ok(()) => {
            if dst.stat()?.size != len {
                dst.truncate(len)?;
            }
            Ok(true)
        }
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY
            | Errno::BADF
            | Errno::ISDIR
            | Errno::ACCESS,
        ) => Ok(false),
        Err(error) => Err(error),
    }
}

struct Copier<'a> {
    src: &'a File,
    dst: &'a File,
    method: CopyMethod,
    buffer: Vec<u8>,
}

impl Copier<'_> {
    /// Copies every range of data below `len`; what lies between stays a hole.
    fn copy_all(&mut self, len: u64) -> Result<()> {
        let mut offset = 0;
        while offset < len {
            let Some((start, end)) = next_data(self.src, offset, len)? else {
                break;
            };
            if !self.copy_extent(start, end)? {
                break;
            }
            offset = end;
        }
        Ok(())
    }

    /// Copies one range; false if the source ended within it.
    fn copy_extent(&mut self, mut offset: u64, end: u64) -> Result<bool> {
        while offset < end {
            let count = self.copy_some(offset, end - offset)?;
            if count == 0 {
                return Ok(false);
            }
            offset += count;
        }
        Ok(true)
    }

    fn copy_some(&mut self, offset: u64, wanted: u64) -> Result<u64> {
        if self.method == CopyMethod::ReadWrite {
            return self.read_and_write(offset, wanted);
        }
        match self.src.copy_range(offset, self.dst, offset, wanted.min(STEP_BYTES)) {
            // Some file systems (procfs and the like, FUSE servers) answer 0 although there is data.
            Ok(0) => self.read_and_write(offset, wanted),
            Ok(count) => {
                self.method = CopyMethod::Range;
                Ok(count)
            }
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::PERM
                | Errno::BADF
                | Errno::IO,
            ) => self.read_and_write(offset, wanted),
            Err(error) => Err(error),
        }
    }

    fn read_and_write(&mut self, offset: u64, wanted: u64) -> Result<u64> {
        self.method = CopyMethod::ReadWrite;
        let size = usize::try_from(wanted).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        let buffer = self.buffer.get_mut(..size).ok_or(Errno::IO)?;
        let count = self.src.pread(buffer, offset)?;
        let filled = buffer.get(..count).ok_or(Errno::IO)?;
        let mut written = 0;
        while let Some(rest) = filled.get(written..).filter(|rest| !rest.is_empty()) {
            match self.dst.pwrite(rest, offset + written as u64)? {
                0 => return Err(Errno::IO),
                count => written += count,
            }
        }
        Ok(count as u64)
    }
}

/// The next range of data in `[offset, len)`; `None` if only a hole is left. All of it where the file system cannot tell.
fn next_data(src: &File, offset: u64, len: u64) -> Result<Option<(u64, u64)>> {
    let start = match src.seek(offset, Whence::Data) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => return Ok(Some((offset, len))),
        Err(error) => return Err(error),
    };
    if start >= len {
        return Ok(None);
    }
    let end = match src.seek(start, Whence::Hole) {
        // A hole at its own start: the file changed between both calls.
        Ok(end) if end > start => end.min(len),
        Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => len,
        Err(error) => return Err(error),
    };
    Ok(Some((start, end)))
}
