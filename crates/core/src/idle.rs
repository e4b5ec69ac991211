//! Files that were just closed, kept open for a moment: programs open the same files again and again.
//!
//! Owns a short queue of lower files only. An upper file is not kept here: it may be unlinked, and its space must come
//! back. The kernel keeps inodes instead.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use plyfs_sys::File;

/// How many closed files stay open.
const KEPT: usize = 256;

/// The files closed last.
#[derive(Debug, Default)]
pub(crate) struct IdleFiles {
    kept: Mutex<VecDeque<Arc<File>>>,
}

impl IdleFiles {
    /// Keeps a file that was closed, in the place of the one kept longest.
    pub fn keep(&self, file: Arc<File>) {
        if file.is_writable_grant() {
            return;
        }
        let mut kept = self.kept.lock();
        if kept.iter().rev().take(8).any(|recent| Arc::ptr_eq(recent, &file)) {
            return;
        }
        kept.push_back(file);
        let oldest = if kept.len() > KEPT { kept.pop_front() } else { None };
        drop(kept);
        drop(oldest);
    }
}
