//! Which files are open to be executed. Owns one count an inode; the engine knows nothing of it.
//!
//! The kernel refuses to write to a program that runs (`ETXTBSY`) before it asks for anything, with one exception: an open
//! with `O_RDONLY | O_TRUNC` reaches a file system that truncates with the open itself, and only after that is refused. So
//! plyfs must refuse it. The descriptor by which a program was started stays open for as long as it runs.
//!
//! Both kinds of open are counted before they are carried out, and an inode has one kind at a time: no program starts while
//! its file is being truncated (`ETXTBSY` as well, which the kernel's `deny_write_access` answers on other file systems).

use std::collections::HashMap;

use parking_lot::Mutex;
use plyfs_sys::Errno;

use crate::abi::FMODE_EXEC;
use crate::replaced::Inode;

const O_ACCMODE: u32 = 0o3;
const O_TRUNC: u32 = 0o1000;

/// What the files are in use for that must not be truncated while they are executed.
#[derive(Debug, Default)]
pub struct Executing(Mutex<HashMap<Inode, (Use, u64)>>);

/// How many opens of one kind an inode has; others are not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Open to be executed.
    Executed,
    /// Being opened by one that truncates it, without any right to write.
    Truncated,
}

/// An open that is being carried out.
#[derive(Debug)]
#[must_use]
pub struct Opening<'a> {
    table: &'a Executing,
    counted: Option<(Inode, Use)>,
}

impl Executing {
    /// Begins an open with these flags.
    ///
    /// # Errors
    /// `ETXTBSY` if it would truncate a program that runs, or start one that is being truncated.
    pub fn begin(&self, inode: Inode, flags: u32) -> Result<Opening<'_>, Errno> {
        let what = if flags & FMODE_EXEC != 0 {
            Use::Executed
        } else if flags & O_TRUNC != 0 && flags & O_ACCMODE == 0 {
            Use::Truncated
        } else {
            return Ok(Opening { table: self, counted: None });
        };
        let mut table = self.0.lock();
        let (present, count) = table.entry(inode).or_insert((what, 0));
        if *present != what {
            return Err(Errno::TXTBSY);
        }
        *count += 1;
        Ok(Opening { table: self, counted: Some((inode, what)) })
    }

    /// Counts the end of an open; `executes` is whether it was one to execute the file.
    pub fn released(&self, inode: Inode, executes: bool) {
        if executes {
            self.end(inode);
        }
    }

    fn end(&self, inode: Inode) {
        let mut table = self.0.lock();
        if let Some((_, count)) = table.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                table.remove(&inode);
            }
        }
    }
}

impl Opening<'_> {
    /// The open succeeded: to be executed, the file is open until it is released.
    pub fn done(mut self) {
        if matches!(self.counted, Some((_, Use::Executed))) {
            self.counted = None;
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some((inode, _)) = self.counted {
            self.table.end(inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Inode = Inode(2);

    fn open(executing: &Executing, inode: Inode, flags: u32) -> Result<(), Errno> {
        executing.begin(inode, flags).map(Opening::done)
    }

    #[test]
    fn a_running_program_cannot_be_truncated_by_an_open_for_reading() {
        let executing = Executing::default();
        assert_eq!(open(&executing, A, O_TRUNC), Ok(()));
        assert_eq!(open(&executing, A, FMODE_EXEC), Ok(()));
        assert_eq!(open(&executing, A, FMODE_EXEC), Ok(()));
        assert_eq!(open(&executing, A, 0), Ok(()));
        executing.released(A, false);
        executing.released(A, true);
        assert_eq!(open(&executing, A, O_TRUNC), Err(Errno::TXTBSY));
        // All others are refused by the kernel, or harm nothing.
        assert_eq!(open(&executing, A, 0), Ok(()));
        assert_eq!(open(&executing, Inode(3), O_TRUNC), Ok(()));
        executing.released(A, true);
        assert_eq!(open(&executing, A, O_TRUNC), Ok(()));
        assert!(executing.0.lock().is_empty());
    }

    #[test]
    fn a_program_cannot_be_started_while_its_file_is_being_truncated() {
        let executing = Executing::default();
        let (one, other) = (executing.begin(A, O_TRUNC).unwrap(), executing.begin(A, O_TRUNC).unwrap());
        assert_eq!(open(&executing, A, FMODE_EXEC), Err(Errno::TXTBSY));
        one.done();
        assert_eq!(open(&executing, A, FMODE_EXEC), Err(Errno::TXTBSY));
        drop(other);
        assert_eq!(open(&executing, A, FMODE_EXEC), Ok(()));
    }

    #[test]
    fn a_program_counts_as_running_from_before_its_file_is_opened_and_not_if_that_fails() {
        let executing = Executing::default();
        let opening = executing.begin(A, FMODE_EXEC).unwrap();
        assert_eq!(open(&executing, A, O_TRUNC), Err(Errno::TXTBSY));
        drop(opening);
        assert_eq!(open(&executing, A, O_TRUNC), Ok(()));
    }
}
