//! The digest that a file system itself keeps of a file (fs-verity). Computing one is `plyfs_format`'s.

use std::os::fd::{AsFd, AsRawFd};

use plyfs_format::MetacopyDigest;

use crate::{Errno, File, Result, raw};

/// Room for the longest digest, that of SHA-512.
const DIGEST_MAX: usize = 64;

/// `struct fsverity_digest` (include/uapi/linux/fsverity.h) with room for the digest.
#[repr(C)]
struct FsVerityDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; DIGEST_MAX],
}

/// The header alone, whose size makes the ioctl's number.
#[repr(C)]
struct Header {
    algorithm: u16,
    size: u16,
}

/// `FS_IOC_MEASURE_VERITY`: `_IOWR('f', 134, struct fsverity_digest)`.
const MEASURE: libc::Ioctl = raw::iowr::<Header>(b'f', 134);

impl File {
    /// The fs-verity digest (`FS_IOC_MEASURE_VERITY`): the file cannot change, and each read is checked. `None` where the
    /// file or the file system has none.
    pub fn verity_digest(&self) -> Result<Option<MetacopyDigest>> {
        let mut answer = FsVerityDigest { algorithm: 0, size: DIGEST_MAX as u16, digest: [0; DIGEST_MAX] };
        // SAFETY: `answer` has the layout of `struct fsverity_digest`, followed by as many bytes as its size says, which
        // the call may write.
        match raw::check_int(unsafe { libc::ioctl(self.as_fd().as_raw_fd(), MEASURE, &raw mut answer) }) {
            Ok(_) => {}
            Err(Errno::NODATA | Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let bytes = answer.digest.get(..usize::from(answer.size)).ok_or(Errno::IO)?;
        Ok(Some(match (answer.algorithm, bytes.len()) {
            (1, _) => bytes.try_into().map_or(MetacopyDigest::None, MetacopyDigest::Sha256),
            (2, _) => bytes.try_into().map_or(MetacopyDigest::None, MetacopyDigest::Sha512),
            (algorithm, _) => MetacopyDigest::Unsupported {
                algorithm: u8::try_from(algorithm).map_err(|_| Errno::IO)?,
                bytes: bytes.to_vec(),
            },
        }))
    }
}
