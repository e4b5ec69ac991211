//! Which files are open to be executed. Owns one count a node; the engine knows nothing of it.
//!
//! The kernel refuses to write to a program that runs (`ETXTBSY`) before it asks for anything, with one exception: an open
//! with `O_RDONLY | O_TRUNC` reaches a file system that truncates with the open itself, and only after that is refused. So
//! plyfs must refuse it. The descriptor by which a program was started stays open for as long as it runs.

use std::collections::HashMap;

use parking_lot::Mutex;
use plyfs_core::NodeId;
use plyfs_sys::Errno;

use crate::abi::FMODE_EXEC;

const O_ACCMODE: u32 = 0o3;
const O_TRUNC: u32 = 0o1000;

/// How many descriptors of each node are open to be executed.
#[derive(Debug, Default)]
pub struct Executing(Mutex<HashMap<NodeId, u64>>);

impl Executing {
    /// `ETXTBSY` if an open with these flags would truncate a program that runs.
    pub fn check(&self, node: NodeId, flags: u32) -> Result<(), Errno> {
        let truncates = flags & O_TRUNC != 0 && flags & O_ACCMODE == 0;
        if truncates && self.0.lock().contains_key(&node) { Err(Errno::TXTBSY) } else { Ok(()) }
    }

    /// Counts an open with these flags.
    pub fn opened(&self, node: NodeId, flags: u32) {
        if flags & FMODE_EXEC != 0 {
            *self.0.lock().entry(node).or_default() += 1;
        }
    }

    /// Counts the end of an open; `executes` is whether it was counted.
    pub fn released(&self, node: NodeId, executes: bool) {
        if !executes {
            return;
        }
        let mut table = self.0.lock();
        if let Some(count) = table.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                table.remove(&node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_program_cannot_be_truncated_by_an_open_for_reading() {
        let executing = Executing::default();
        let node = NodeId(2);
        assert_eq!(executing.check(node, O_TRUNC), Ok(()));
        executing.opened(node, FMODE_EXEC);
        executing.opened(node, FMODE_EXEC);
        executing.opened(node, 0);
        executing.released(node, false);
        executing.released(node, true);
        assert_eq!(executing.check(node, O_TRUNC), Err(Errno::TXTBSY));
        // All others are refused by the kernel, or harm nothing.
        assert_eq!(executing.check(node, 0), Ok(()));
        assert_eq!(executing.check(NodeId(3), O_TRUNC), Ok(()));
        executing.released(node, true);
        assert_eq!(executing.check(node, O_TRUNC), Ok(()));
    }
}
