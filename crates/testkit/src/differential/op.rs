//! The operations that are applied to both trees, as plain data, so that a sequence can be printed, cut down
//! and replayed. What an operation does lies in [`super::apply`].

use crate::identity::User;
use std::fmt::{Debug, Formatter};

/// How many descriptors a thread can hold open at once.
pub const SLOTS: u8 = 6;

/// A path relative to the thread's base directory.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct PathArg(pub Vec<u8>);

impl Debug for PathArg {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        // The long names only take part by their length.
        let text = self.0.escape_ascii().to_string();
        let mut short = String::new();
        let mut run = (char::MIN, 0);
        for next in text.chars().chain([char::MIN]) {
            if next == run.0 {
                run.1 += 1;
                continue;
            }
            match run.1 {
                0 => {}
                1..=9 => short.extend(std::iter::repeat_n(run.0, run.1)),
                count => short.push_str(&format!("{}*{count}", run.0)),
            }
            run = (next, 1);
        }
        write!(out, "\"{short}\"")
    }
}

/// What an operation on an inode is applied to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    /// A path whose last symbolic link is followed.
    Path(PathArg),
    /// A path whose last symbolic link is not followed.
    Link(PathArg),
    /// An open descriptor.
    Fd(u8),
}

impl On {
    /// The path, if it is one.
    pub fn path(&self) -> Option<&PathArg> {
        match self {
            On::Path(path) | On::Link(path) => Some(path),
            On::Fd(_) => None,
        }
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeArg {
    /// The current time.
    Now,
    /// Leave it.
    Omit,
    /// Seconds and nanoseconds since 1970.
    At(i64, i64),
}

/// Where a seek starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The start.
    Set,
    /// The current position.
    Current,
    /// The end.
    End,
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// A lock request; none of them waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockArg {
    /// flock(2), shared.
    FlockShared,
    /// flock(2), exclusive.
    FlockExclusive,
    /// flock(2), unlock.
    FlockUnlock,
    /// fcntl(2) on the whole file, shared.
    PosixShared,
    /// fcntl(2) on the whole file, exclusive.
    PosixExclusive,
    /// fcntl(2) on the whole file, unlock.
    PosixUnlock,
}

/// A change made to a directory while it is being listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Create a file of this name.
    Create(PathArg),
    /// Remove the file of this name.
    Unlink(PathArg),
    /// Rename within the directory.
    Rename(PathArg, PathArg),
}

/// One operation. Numbers are those of the system call; descriptors are slots of the thread.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the arguments of the system call that the variant names")]
pub enum Op {
    /// Sets the umask of the thread.
    Umask(u32),
    /// open(2), or openat(2) below the directory in slot `at`. Never blocks.
    Open { slot: u8, at: Option<u8>, path: PathArg, flags: u32, mode: u32 },
    /// Opens what another slot has open once more, by `/proc/self/fd`.
    Reopen { slot: u8, of: u8, flags: u32 },
    /// close(2)
    Close(u8),
    /// read(2), or pread(2) with an offset.
    Read { slot: u8, offset: Option<u64>, length: usize },
    /// write(2), or pwrite(2) with an offset.
    Write { slot: u8, offset: Option<u64>, length: usize, byte: u8 },
    /// lseek(2)
    Seek { slot: u8, whence: Whence, offset: i64 },
    /// truncate(2) or ftruncate(2)
    Truncate { on: On, length: u64 },
    /// fallocate(2)
    Fallocate { slot: u8, mode: u32, offset: u64, length: u64 },
    /// copy_file_range(2)
    CopyRange { from: u8, from_offset: u64, to: u8, to_offset: u64, length: usize },
    /// fsync(2) or fdatasync(2)
    Sync { slot: u8, data_only: bool },
    /// Writes through a shared mapping, then msync(2).
    MapWrite { slot: u8, page: u64, length: usize, byte: u8 },
    /// Reads through a shared mapping.
    MapRead { slot: u8, page: u64, length: usize },
    /// flock(2) or fcntl(2)
    Lock { slot: u8, lock: LockArg },
    /// mkdir(2)
    Mkdir { path: PathArg, mode: u32 },
    /// rmdir(2)
    Rmdir(PathArg),
    /// unlink(2)
    Unlink(PathArg),
    /// renameat2(2)
    Rename { from: PathArg, to: PathArg, flags: u32 },
    /// linkat(2)
    Link { from: PathArg, to: PathArg, follow: bool },
    /// Gives a descriptor's inode a name, as for O_TMPFILE.
    LinkFd { slot: u8, to: PathArg },
    /// symlink(2)
    Symlink { target: PathArg, path: PathArg },
    /// readlink(2)
    Readlink(PathArg),
    /// mknod(2); the mode holds the type.
    Mknod { path: PathArg, mode: u32, major: u32, minor: u32 },
    /// chmod(2) or fchmod(2)
    Chmod { on: On, mode: u32 },
    /// chown(2), lchown(2) or fchown(2)
    Chown { on: On, uid: Option<u32>, gid: Option<u32> },
    /// utimensat(2) or futimens(3)
    Utimens { on: On, atime: TimeArg, mtime: TimeArg },
    /// setxattr(2); 1 creates only, 2 replaces only.
    SetXattr { on: On, name: String, value: Vec<u8>, flags: u32 },
    /// getxattr(2)
    GetXattr { on: On, name: String, size: usize },
    /// listxattr(2)
    ListXattr { on: On, size: usize },
    /// removexattr(2)
    RemoveXattr { on: On, name: String },
    /// stat(2), lstat(2) or fstat(2)
    Stat(On),
    /// statfs(2)
    Statfs(PathArg),
    /// faccessat2(2)
    Access { path: PathArg, mode: u32, effective: bool },
    /// Lists a directory from its beginning.
    List(On),
    /// Lists a directory in small steps, changing it in between, and seeks back and to the beginning.
    ListChanging { path: PathArg, first: usize, changes: Vec<Change> },
}

impl Op {
    /// The paths that the operation names.
    pub fn paths(&self) -> Vec<&PathArg> {
        match self {
            Op::Open { at: None, path, .. }
            | Op::Mkdir { path, .. }
            | Op::Rmdir(path)
            | Op::Unlink(path)
            | Op::LinkFd { to: path, .. }
            | Op::Symlink { path, .. }
            | Op::Readlink(path)
            | Op::Mknod { path, .. }
            | Op::Statfs(path)
            | Op::Access { path, .. }
            | Op::ListChanging { path, .. } => vec![path],
            Op::Rename { from, to, .. } | Op::Link { from, to, .. } => vec![from, to],
            Op::Truncate { on, .. }
            | Op::Chmod { on, .. }
            | Op::Chown { on, .. }
            | Op::Utimens { on, .. }
            | Op::SetXattr { on, .. }
            | Op::GetXattr { on, .. }
            | Op::ListXattr { on, .. }
            | Op::RemoveXattr { on, .. }
            | Op::Stat(on)
            | Op::List(on) => on.path().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The descriptors that the operation uses or makes.
    pub fn slots(&self) -> Vec<u8> {
        match self {
            Op::Open { slot, .. }
            | Op::Read { slot, .. }
            | Op::Write { slot, .. }
            | Op::Seek { slot, .. }
            | Op::Fallocate { slot, .. }
            | Op::Sync { slot, .. }
            | Op::MapWrite { slot, .. }
            | Op::MapRead { slot, .. }
            | Op::Lock { slot, .. }
            | Op::LinkFd { slot, .. } => vec![*slot],
            Op::Reopen { slot, of, .. } => vec![*slot, *of],
            Op::CopyRange { from, to, .. } => vec![*from, *to],
            Op::Truncate { on: On::Fd(slot), .. }
            | Op::Chmod { on: On::Fd(slot), .. }
            | Op::Chown { on: On::Fd(slot), .. }
            | Op::Utimens { on: On::Fd(slot), .. }
            | Op::SetXattr { on: On::Fd(slot), .. }
            | Op::RemoveXattr { on: On::Fd(slot), .. } => vec![*slot],
            _ => Vec::new(),
        }
    }

    /// The name of the operation, to tell kinds of findings apart.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '(']).next().unwrap_or_default().to_owned()
    }
}

/// One operation, by whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    /// Who acts.
    pub user: User,
    /// What is done.
    pub op: Op,
    /// Whether the operation's paths, their parents and its descriptors are looked at afterwards.
    pub probe: bool,
}

impl Debug for Step {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let probe = if self.probe { ", then stat" } else { "" };
        write!(out, "{:?}: {:?}{probe}", self.user, self.op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_printed_short() {
        assert_eq!(format!("{:?}", PathArg(vec![b'n'; 255])), "\"n*255\"");
        assert_eq!(format!("{:?}", PathArg(b"a/\xff".to_vec())), "\"a/\\xff\"");
    }
}
