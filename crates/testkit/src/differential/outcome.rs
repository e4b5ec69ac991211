//! What an operation came to, in a form in which two trees that are treated alike agree.

use crate::snapshot::{Content, Stamp};
use rustix::io::Errno;
use std::fmt::{Debug, Formatter};

/// The result of one operation on one side.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded, with nothing to return.
    Done,
    /// It failed.
    Failed(Errno),
    /// The slot it needs holds no descriptor; nothing was done.
    NoSlot,
    /// It returned a number.
    Number(u64),
    /// It returned data: the length and what is in it.
    Data(usize, Content),
    /// It returned short text or a value.
    Text(Vec<u8>),
    /// It returned a set of names.
    Names(Vec<String>),
    /// It returned attributes.
    Stat(Box<StatShot>),
    /// Several results, of an operation and of what was looked at after it.
    Several(Vec<Outcome>),
    /// The side contradicts itself, whatever the other does.
    Broken(String),
}

impl Outcome {
    /// Whether the operation itself succeeded.
    pub fn succeeded(&self) -> bool {
        match self {
            Outcome::Several(outcomes) => outcomes.first().is_some_and(Outcome::succeeded),
            Outcome::Failed(_) | Outcome::NoSlot | Outcome::Broken(_) => false,
            _ => true,
        }
    }
}

impl Debug for Outcome {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Done => out.write_str("ok"),
            Outcome::Failed(errno) => write!(out, "errno {} ({errno})", errno.raw_os_error()),
            Outcome::NoSlot => out.write_str("no descriptor"),
            Outcome::Number(number) => write!(out, "{number}"),
            Outcome::Data(length, content) => write!(out, "{length} bytes, {content:?}"),
            Outcome::Text(text) => write!(out, "\"{}\"", text.escape_ascii()),
            Outcome::Names(names) => write!(out, "{names:?}"),
            Outcome::Stat(stat) => write!(out, "{stat:?}"),
            Outcome::Several(outcomes) => out.debug_list().entries(outcomes).finish(),
            Outcome::Broken(why) => write!(out, "BROKEN: {why}"),
        }
    }
}

/// The attributes of stat(2) on which two sides must agree.
#[derive(Clone, PartialEq, Eq)]
pub struct StatShot {
    /// Type and mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count.
    pub nlink: u64,
    /// Length, of regular files and symbolic links.
    pub size: u64,
    /// Device of a device node.
    pub rdev: u64,
    /// Access, modification and change time.
    pub times: [Stamp; 3],
    /// Which inode it is, counted in the order in which they were first seen; where numbers are not reused.
    pub inode: Option<usize>,
    /// For a descriptor: whether the inode number is that of when it was opened.
    pub as_opened: Option<bool>,
    /// Whether the device is that of the root of the mount.
    pub same_device: bool,
}

impl Debug for StatShot {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let [atime, mtime, ctime] = self.times;
        write!(
            out,
            "{:06o} {}:{} links {} size {} rdev {:#x} atime {atime:?} mtime {mtime:?} ctime {ctime:?}",
            self.mode, self.uid, self.gid, self.nlink, self.size, self.rdev
        )?;
        match (self.inode, self.as_opened) {
            (Some(inode), _) => write!(out, " inode #{inode}")?,
            (None, Some(same)) => write!(out, " inode as opened: {same}")?,
            (None, None) => {}
        }
        if self.same_device { Ok(()) } else { out.write_str(" on another device") }
    }
}

impl<T> From<Result<T, Errno>> for Outcome {
    fn from(result: Result<T, Errno>) -> Self {
        match result {
            Ok(_) => Outcome::Done,
            Err(errno) => Outcome::Failed(errno),
        }
    }
}

/// Turns a result into an outcome, with what to do with success.
pub fn or_failed<T>(result: Result<T, Errno>, success: impl FnOnce(T) -> Outcome) -> Outcome {
    result.map_or_else(Outcome::Failed, success)
}
