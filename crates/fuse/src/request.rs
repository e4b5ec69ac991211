//! What the kernel asks: the bytes of one message, decoded into a [`Request`].
//!
//! Pure: no I/O, and no input makes it panic. The kernel's counterpart are the `fuse_*_in` structures.

use crate::abi::{
    self, GETATTR_FH, OPEN_KILL_SUIDGID, Opcode, SETXATTR_ACL_KILL_SGID, WRITE_CACHE, WRITE_KILL_SUIDGID,
};
pub use crate::arguments::{CopyFileRangeIn, Forgets, InitIn, IoctlIn, SetAttrIn};
use crate::wire::Input;

/// `fuse_in_header`: who asks, about which node, and under which number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Operation number; see [`Opcode`].
    pub opcode: u32,
    /// Number that the answer repeats.
    pub unique: u64,
    /// Node the request is about.
    pub node: u64,
    /// Filesystem user id of the caller.
    pub uid: u32,
    /// Filesystem group id of the caller.
    pub gid: u32,
    /// Thread id of the caller.
    pub pid: u32,
}

/// How the two sides agreed to speak, as far as it changes the layout of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dialect {
    /// SETXATTR carries `setxattr_flags`.
    pub setxattr_ext: bool,
}

/// Why a message could not be understood. The request gets EIO; the session goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Not even a header.
    #[error("a message of {0} bytes is shorter than a request header")]
    NoHeader(usize),
    /// The arguments end too early.
    #[error("the arguments of operation {opcode} are cut short")]
    Short {
        /// Operation number.
        opcode: u32,
    },
}

/// One request; names and data borrow from the message.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "members are named as in fuse.h, where they are documented")]
pub enum Request<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget(Forgets<'a>),
    GetAttr {
        handle: Option<u64>,
    },
    Statx {
        handle: Option<u64>,
        mask: u32,
    },
    SetAttr(SetAttrIn),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    MkDir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a [u8],
    },
    Open {
        flags: u32,
        kill_priv: bool,
    },
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
        umask: u32,
    },
    TmpFile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
        from_cache: bool,
        kill_priv: bool,
    },
    StatFs,
    Release {
        handle: u64,
        flags: u32,
    },
    Fsync {
        handle: u64,
        datasync: bool,
    },
    FsyncDir {
        datasync: bool,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        kill_sgid: bool,
    },
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    ReadDir {
        offset: u64,
        size: u32,
        plus: bool,
    },
    Ioctl(IoctlIn<'a>),
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyFileRangeIn),
    SyncFs,
    Interrupt {
        unique: u64,
    },
    Init(InitIn),
    Destroy,
    /// FLUSH, OPENDIR, RELEASEDIR, ACCESS and everything unknown: answered with ENOSYS, after which the kernel does
    /// not ask again.
    NotImplemented,
}

impl Header {
    /// Splits a message into its header and its arguments; extensions at the end (security contexts, groups) are cut
    /// off, since none is asked for.
    ///
    /// # Errors
    /// [`Malformed`] when the message is shorter than a header or than its extensions.
    pub fn decode(message: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut input = Input::new(message);
        let header = Self::fields(&mut input).ok_or(Malformed::NoHeader(message.len()))?;
        let (header, extension_words) = header;
        let arguments = input.rest();
        let extensions = usize::from(extension_words) * 8;
        let end =
            arguments.len().checked_sub(extensions).ok_or(Malformed::Short { opcode: header.opcode })?;
        let arguments = arguments.get(..end).ok_or(Malformed::Short { opcode: header.opcode })?;
        Ok((header, arguments))
    }

    /// The operation, if it is known.
    #[must_use]
    pub const fn operation(&self) -> Option<Opcode> {
        Opcode::from_number(self.opcode)
    }

    fn fields(input: &mut Input<'_>) -> Option<(Self, u16)> {
        // The length member repeats what read(2) returned.
        input.skip(4)?;
        let header = Self {
            opcode: input.u32()?,
            unique: input.u64()?,
            node: input.u64()?,
            uid: input.u32()?,
            gid: input.u32()?,
            pid: input.u32()?,
        };
        let extension_words = input.u16()?;
        input.skip(2)?;
        Some((header, extension_words))
    }
}

impl<'a> Request<'a> {
    /// Decodes the arguments that follow a header.
    ///
    /// # Errors
    /// [`Malformed::Short`] when they end too early. An operation that is not known is no error but
    /// [`Request::NotImplemented`].
    pub fn decode(header: &Header, arguments: &'a [u8], dialect: Dialect) -> Result<Self, Malformed> {
        let Some(operation) = header.operation() else { return Ok(Self::NotImplemented) };
        let mut input = Input::new(arguments);
        let input = &mut input;
        match operation {
            Opcode::Open
            | Opcode::Create
            | Opcode::TmpFile
            | Opcode::Read
            | Opcode::Write
            | Opcode::Release
            | Opcode::Fsync
            | Opcode::Fallocate
            | Opcode::Lseek
            | Opcode::CopyFileRange
            | Opcode::CopyFileRange64
            | Opcode::Ioctl => Self::file(operation, input),
            Opcode::SetXattr | Opcode::GetXattr | Opcode::ListXattr | Opcode::RemoveXattr => {
                Self::xattr(operation, input, dialect)
            }
            Opcode::Lookup
            | Opcode::Symlink
            | Opcode::MkNod
            | Opcode::MkDir
            | Opcode::Unlink
            | Opcode::RmDir
            | Opcode::Rename
            | Opcode::Rename2
            | Opcode::Link => Self::name(operation, input),
            _ => Self::other(operation, input),
        }
        .ok_or(Malformed::Short { opcode: header.opcode })
    }

    fn name(operation: Opcode, input: &mut Input<'a>) -> Option<Self> {
        Some(match operation {
            Opcode::Lookup => Self::Lookup { name: input.name()? },
            Opcode::Symlink => Self::Symlink { name: input.name()?, target: input.name()? },
            Opcode::MkNod => {
                let (mode, rdev, umask) = (input.u32()?, input.u32()?, input.u32()?);
                input.skip(4)?;
                Self::MkNod { name: input.name()?, mode, rdev, umask }
            }
            Opcode::MkDir => {
                let (mode, umask) = (input.u32()?, input.u32()?);
                Self::MkDir { name: input.name()?, mode, umask }
            }
            Opcode::Unlink => Self::Unlink { name: input.name()? },
            Opcode::RmDir => Self::RmDir { name: input.name()? },
            Opcode::Rename => {
                let new_parent = input.u64()?;
                Self::Rename { name: input.name()?, new_parent, new_name: input.name()?, flags: 0 }
            }
            Opcode::Rename2 => {
                let (new_parent, flags) = (input.u64()?, input.u32()?);
                input.skip(4)?;
                Self::Rename { name: input.name()?, new_parent, new_name: input.name()?, flags }
            }
            _ => Self::Link { node: input.u64()?, name: input.name()? },
        })
    }

    fn file(operation: Opcode, input: &mut Input<'a>) -> Option<Self> {
        Some(match operation {
            Opcode::Open => {
                Self::Open { flags: input.u32()?, kill_priv: input.u32()? & OPEN_KILL_SUIDGID != 0 }
            }
            Opcode::Create | Opcode::TmpFile => {
                let (flags, mode, umask) = (input.u32()?, input.u32()?, input.u32()?);
                input.skip(4)?;
                // A TMPFILE carries a name that means nothing.
                let name = input.name()?;
                match operation {
                    Opcode::Create => Self::Create { name, flags, mode, umask },
                    _ => Self::TmpFile { flags, mode, umask },
                }
            }
            Opcode::Read => {
                let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()?);
                Self::Read { handle, offset, size }
            }
            Opcode::Write => return Self::write(input),
            Opcode::Release => Self::Release { handle: input.u64()?, flags: input.u32()? },
            Opcode::Fsync => Self::Fsync { handle: input.u64()?, datasync: datasync(input.u32()?) },
            Opcode::Fallocate => {
                let (handle, offset, length) = (input.u64()?, input.u64()?, input.u64()?);
                Self::Fallocate { handle, offset, length, mode: input.u32()? }
            }
            Opcode::Lseek => Self::Lseek { handle: input.u64()?, offset: input.u64()?, whence: input.u32()? },
            Opcode::Ioctl => Self::Ioctl(IoctlIn::decode(input)?),
            _ => Self::CopyFileRange(CopyFileRangeIn::decode(
                input,
                matches!(operation, Opcode::CopyFileRange64),
            )?),
        })
    }

    fn write(input: &mut Input<'a>) -> Option<Self> {
        let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()?);
        let flags = input.u32()?;
        let (from_cache, kill_priv) = (flags & WRITE_CACHE != 0, flags & WRITE_KILL_SUIDGID != 0);
        // lock_owner, flags, padding
        input.skip(16)?;
        let data = input.bytes(usize::try_from(size).ok()?)?;
        Some(Self::Write { handle, offset, data, from_cache, kill_priv })
    }

    fn xattr(operation: Opcode, input: &mut Input<'a>, dialect: Dialect) -> Option<Self> {
        if matches!(operation, Opcode::RemoveXattr) {
            return Some(Self::RemoveXattr { name: input.name()? });
        }
        let size = input.u32()?;
        if !matches!(operation, Opcode::SetXattr) {
            input.skip(4)?;
            return Some(match operation {
                Opcode::GetXattr => Self::GetXattr { name: input.name()?, size },
                _ => Self::ListXattr { size },
            });
        }
        let flags = input.u32()?;
        let mut extended = 0;
        if dialect.setxattr_ext {
            extended = input.u32()?;
            input.skip(4)?;
        }
        let name = input.name()?;
        let value = input.bytes(usize::try_from(size).ok()?)?;
        Some(Self::SetXattr { name, value, flags, kill_sgid: extended & SETXATTR_ACL_KILL_SGID != 0 })
    }

    fn other(operation: Opcode, input: &mut Input<'a>) -> Option<Self> {
        Some(match operation {
            Opcode::Forget => Self::Forget { count: input.u64()? },
            Opcode::BatchForget => Self::BatchForget(Forgets::decode(input)?),
            Opcode::GetAttr => Self::GetAttr { handle: optional_handle(input)? },
            Opcode::Statx => {
                let handle = optional_handle(input)?;
                // sx_flags
                input.skip(4)?;
                Self::Statx { handle, mask: input.u32()? }
            }
            Opcode::SetAttr => Self::SetAttr(SetAttrIn::decode(input)?),
            Opcode::ReadLink => Self::ReadLink,
            Opcode::StatFs => Self::StatFs,
            Opcode::ReadDir | Opcode::ReadDirPlus => {
                input.skip(8)?;
                let (offset, size) = (input.u64()?, input.u32()?);
                Self::ReadDir { offset, size, plus: matches!(operation, Opcode::ReadDirPlus) }
            }
            Opcode::FsyncDir => {
                input.skip(8)?;
                Self::FsyncDir { datasync: datasync(input.u32()?) }
            }
            Opcode::SyncFs => Self::SyncFs,
            Opcode::Interrupt => Self::Interrupt { unique: input.u64()? },
            Opcode::Init => Self::Init(InitIn::decode(input)?),
            Opcode::Destroy => Self::Destroy,
            _ => Self::NotImplemented,
        })
    }
}

fn optional_handle(input: &mut Input<'_>) -> Option<Option<u64>> {
    let flags = input.u32()?;
    input.skip(4)?;
    let handle = input.u64()?;
    Some((flags & GETATTR_FH != 0).then_some(handle))
}

const fn datasync(flags: u32) -> bool {
    flags & abi::FSYNC_FDATASYNC != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Output;
    use proptest::prelude::*;

    fn message(opcode: Opcode, arguments: &[u8], extension: &[u8]) -> Vec<u8> {
        let mut out = Output::default();
        let length = abi::IN_HEADER + arguments.len() + extension.len();
        out.u32(u32::try_from(length).unwrap()).u32(opcode as u32).u64(7).u64(1).u32(1000).u32(1001).u32(42);
        out.u16(u16::try_from(extension.len() / 8).unwrap()).u16(0);
        out.bytes(arguments).bytes(extension);
        out.as_bytes().to_vec()
    }

    fn decode(message: &[u8]) -> Result<(Header, Request<'_>), Malformed> {
        let (header, arguments) = Header::decode(message)?;
        let request = Request::decode(&header, arguments, Dialect { setxattr_ext: true })?;
        Ok((header, request))
    }

    #[test]
    fn a_lookup_yields_the_caller_and_the_name() {
        let message = message(Opcode::Lookup, b"na\xffme\0", &[]);
        let (header, request) = decode(&message).unwrap();
        assert_eq!((header.uid, header.gid, header.pid, header.unique), (1000, 1001, 42, 7));
        assert!(matches!(request, Request::Lookup { name: b"na\xffme" }), "{request:?}");
    }

    #[test]
    fn extensions_at_the_end_are_not_taken_for_arguments() {
        let mut arguments = Output::default();
        arguments.u32(3).u32(5).bytes(b"user.a\0v");
        let with_extension = message(Opcode::MkDir, b"\0\0\0\0\0\0\0\0d\0", &[1; 16]);
        let (_, request) = decode(&with_extension).unwrap();
        assert!(matches!(request, Request::MkDir { name: b"d", .. }), "{request:?}");
    }

    #[test]
    fn a_write_borrows_its_data_and_no_more() {
        let mut arguments = Output::default();
        arguments.u64(9).u64(4096).u32(3).u32(WRITE_KILL_SUIDGID).zeros(16).bytes(b"abcdef");
        let message = message(Opcode::Write, arguments.as_bytes(), &[]);
        let (_, request) = decode(&message).unwrap();
        assert!(
            matches!(
                request,
                Request::Write { handle: 9, offset: 4096, data: b"abc", from_cache: false, kill_priv: true }
            ),
            "{request:?}"
        );
    }

    #[test]
    fn a_setxattr_is_read_in_both_of_its_layouts() {
        for (extended, expected) in [(false, false), (true, true)] {
            let mut arguments = Output::default();
            arguments.u32(2).u32(1);
            if extended {
                arguments.u32(SETXATTR_ACL_KILL_SGID).u32(0);
            }
            arguments.bytes(b"user.x\0vw");
            let message = message(Opcode::SetXattr, arguments.as_bytes(), &[]);
            let (header, body) = Header::decode(&message).unwrap();
            let request = Request::decode(&header, body, Dialect { setxattr_ext: extended }).unwrap();
            assert!(
                matches!(request, Request::SetXattr { name: b"user.x", value: b"vw", flags: 1, kill_sgid } if kill_sgid == expected),
                "{request:?}"
            );
        }
    }

    #[test]
    fn a_batch_of_forgets_ends_with_its_count_or_with_the_message() {
        let mut arguments = Output::default();
        arguments.u32(3).u32(0).u64(10).u64(1).u64(11).u64(2);
        let message = message(Opcode::BatchForget, arguments.as_bytes(), &[]);
        let (_, request) = decode(&message).unwrap();
        let Request::BatchForget(forgets) = request else { panic!("{request:?}") };
        assert_eq!(forgets.collect::<Vec<_>>(), [(10, 1), (11, 2)]);
    }

    #[test]
    fn an_unknown_operation_is_not_implemented_rather_than_malformed() {
        let mut bytes = message(Opcode::Lookup, b"x\0", &[]);
        bytes[4..8].copy_from_slice(&4000_u32.to_ne_bytes());
        let (_, request) = decode(&bytes).unwrap();
        assert!(matches!(request, Request::NotImplemented));
    }

    #[test]
    fn arguments_that_end_early_are_malformed() {
        let bytes = message(Opcode::Read, &[0; 8], &[]);
        assert_eq!(decode(&bytes).map(|_| ()), Err(Malformed::Short { opcode: 15 }));
        assert_eq!(decode(&bytes[..20]).map(|_| ()), Err(Malformed::NoHeader(20)));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_decoder_panic(
            opcode in 0_u32..60,
            extension in 0_u16..4,
            arguments in proptest::collection::vec(any::<u8>(), 0..200),
            ext in any::<bool>(),
        ) {
            let mut out = Output::default();
            out.u32(0).u32(opcode).u64(1).u64(1).u32(0).u32(0).u32(0).u16(extension).u16(0).bytes(&arguments);
            if let Ok((header, body)) = Header::decode(out.as_bytes())
                && let Ok(Request::BatchForget(forgets)) = Request::decode(&header, body, Dialect { setxattr_ext: ext })
            {
                prop_assert!(forgets.count() <= arguments.len() / 16);
            }
        }

        #[test]
        fn no_bytes_at_all_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok((header, body)) = Header::decode(&bytes) {
                let decoded = Request::decode(&header, body, Dialect::default());
                prop_assert!(decoded.is_ok() || header.operation().is_some());
            }
        }
    }
}
