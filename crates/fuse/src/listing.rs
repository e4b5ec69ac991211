//! The body of an answer to READDIR and READDIRPLUS, filled by the engine as a [`DirSink`].
//!
//! Owns the layout of `fuse_dirent` and `fuse_direntplus` and the limit the kernel set; which entries there are is the
//! engine's.

use plyfs_core::{DirEntry, DirSink, Entry};

use crate::abi::{DIRENT, ENTRY_OUT};
use crate::encode::{self, Timeouts};
use crate::replaced::Inode;
use crate::wire::{Input, Output};

/// A listing being filled.
pub struct Listing<'a> {
    out: &'a mut Output,
    limit: usize,
    plus: Option<&'a Told<'a>>,
    timeouts: Timeouts,
}

/// What the kernel is told of an entry.
pub type Told<'a> = dyn Fn(Entry) -> (Inode, Entry) + 'a;

impl<'a> Listing<'a> {
    /// A listing of at most `limit` bytes; with nodes and attributes if `plus` is given.
    pub const fn new(
        out: &'a mut Output,
        limit: usize,
        plus: Option<&'a Told<'a>>,
        timeouts: Timeouts,
    ) -> Self {
        Self { out, limit, plus, timeouts }
    }

    /// The inodes that a finished listing (`plus`) mentions, once for each mention: what must be forgotten again if the
    /// answer never reached the kernel.
    pub fn inodes(body: &[u8]) -> impl Iterator<Item = Inode> {
        let mut input = Input::new(body);
        std::iter::from_fn(move || {
            let inode = input.u64()?;
            input.skip(ENTRY_OUT - 8 + 16)?;
            let name_len = usize::try_from(input.u32()?).ok()?;
            input.skip(4 + name_len.next_multiple_of(8))?;
            Some(Inode(inode))
        })
        .filter(|inode| inode.0 != 0)
    }

    const fn record(&self, name_len: usize) -> usize {
        let head = if self.plus.is_some() { ENTRY_OUT + DIRENT } else { DIRENT };
        (head + name_len).next_multiple_of(8)
    }
}

impl DirSink for Listing<'_> {
    fn has_room(&self, name_len: usize) -> bool {
        self.out.len() + self.record(name_len) <= self.limit
    }

    fn push(&mut self, entry: &DirEntry<'_>) {
        if let Some(told) = self.plus {
            match entry.entry {
                Some(found) => {
                    let (inode, entry) = told(found);
                    encode::entry(self.out, inode, &entry, &self.timeouts);
                }
                // Node 0 means "not told" here, not "absent".
                None => drop(self.out.zeros(ENTRY_OUT)),
            }
        }
        // A name has at most 255 bytes.
        let name_len = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
        let kind = (entry.kind >> 12) & 0o17;
        self.out.u64(entry.ino).u64(entry.cookie).u32(name_len).u32(kind).bytes(entry.name).align8();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plyfs_core::{Attr, NodeId, Time};

    fn found(node: u64) -> Entry {
        let now = Time::default();
        let attr = Attr {
            ino: node,
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: (0, 0),
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime: now,
            mtime: now,
            ctime: now,
            btime: None,
            cacheable: true,
        };
        Entry { node: NodeId(node), generation: 0, attr }
    }

    #[test]
    fn a_listing_never_exceeds_its_limit_and_names_its_nodes() {
        let mut out = Output::default();
        let told = |entry: Entry| (entry.node.into(), entry);
        let mut listing = Listing::new(&mut out, 500, Some(&told), Timeouts::FOREVER);
        let names: [&[u8]; 4] = [b".", b"a", b"a longer name than that", b"b"];
        let mut pushed = 0;
        for (index, name) in (0_u64..).zip(names) {
            if !listing.has_room(name.len()) {
                break;
            }
            let entry = (index > 0).then(|| found(index + 1));
            listing.push(&DirEntry { cookie: index + 1, ino: index, kind: 0o100_000, name, entry });
            pushed += 1;
        }
        assert_eq!(pushed, 2 + 1, "160 bytes, 160 bytes and 176 bytes fit into 500, a fourth does not");
        assert!(out.len() <= 500 && out.len().is_multiple_of(8));
        assert_eq!(Listing::inodes(out.as_bytes()).collect::<Vec<_>>(), [Inode(2), Inode(3)]);
    }

    #[test]
    fn a_plain_entry_has_the_layout_of_fuse_dirent() {
        let mut out = Output::default();
        Listing::new(&mut out, 4096, None, Timeouts::FOREVER).push(&DirEntry {
            cookie: 5,
            ino: 9,
            kind: 0o040_000,
            name: b"dir",
            entry: None,
        });
        let mut input = Input::new(out.as_bytes());
        assert_eq!(
            (input.u64(), input.u64(), input.u32(), input.u32()),
            (Some(9), Some(5), Some(3), Some(4))
        );
        assert_eq!(input.rest(), b"dir\0\0\0\0\0");
    }
}
