//! The overlay engine: a union of read-only lower layers and one writable upper, with the semantics and the on-disk
//! format of the kernel's overlayfs. Synchronous; knows no FUSE, no async runtime, and has no global state.
//!
//! # The object model
//!
//! An [`Overlay`] owns a stack of layers, a table of nodes and a table of handles. A *node* is an inode of the merged
//! view: it says where its object lies in each layer, and becomes *upper* once, by copy-up, for ever. A *directory*
//! node holds its lower directories (topmost first), its upper directory if it has one, the nodes known below it, and
//! for a while its merged listing. A *leaf* node (file, symlink, special file) lies in at most one lower layer.
//! Nodes live as long as the front end remembers them (lookups less forgets); their number never follows the size of
//! the tree.
//!
//! # Invariants
//!
//! They are numbered in ARCHITECTURE.md. The ones this crate keeps by type: a lower layer has no mutating verb (a
//! [`plyfs_sys::Dir`] cannot write); every change of upper is a method of `upper::Upper`; only an upper file, or any
//! file of a stack without upper, becomes a [`Shareable`]; a published upper never un-publishes (`OnceLock`).
//!
//! # Lock order
//!
//! A lock is taken only while holding locks above it; `lock.rs` asserts that in debug builds. No lock is held over a
//! reply, and none that another inode needs is held while data is copied.
//!
//! ```text
//! Node::copy_up           one copy-up of this inode at a time; ancestors before descendants; may be held for long
//!   DirBody::change       a directory's names are being changed; several of them in the order of their addresses
//!     Upper::index_changes  a name of an indexed file is made or taken away (index=on only)
//!     Overlay::tree       readers rebuild paths of upper directories, a writer moves a directory
//!       DirBody::state    children and listing of a directory; never held over a system call
//!         Node::places    the names of a node
//!           NodeTable, Handles, FdCache, Slot, Leaf::shared, OpenFile::file, ListingBudget, UpperDir::redirect
//!                         leaves: nothing is locked below them
//!     Usage::privileged         of one file; held over a write to it, and over a change that may give it privileges
//!     Temporaries::shared_whiteout, below it leftovers      held over the system calls that make a whiteout
//! ```
//!
//! # Where things are
//!
//! `overlay.rs` assembles; `lookup.rs`, `readdir.rs`, `attr.rs`, `xattr.rs` read; `create.rs`, `link.rs`, `remove.rs`,
//! `rename.rs` change names; `file.rs` and `handle.rs` open, read and write; `copy_up/` moves things to upper.
//! `metacopy.rs`, `index.rs`, `export.rs` with `recover.rs`, and `protect.rs` are the kernel's optional features, `show.rs`
//! is fuse-overlayfs's options.

mod attr;
mod copy_up;
mod create;
mod directory;
mod error;
mod export;
mod fd_cache;
mod file;
mod handle;
mod idle;
mod index;
mod ino;
mod layer;
mod link;
mod listing;
mod lock;
mod lookup;
mod lower;
mod merge;
mod metacopy;
mod node;
mod object;
mod overlap;
mod overlay;
mod owner;
mod probe;
mod protect;
mod readdir;
mod recover;
mod redirect;
mod remove;
mod rename;
mod show;
mod table;
mod upper;
mod uuid;
mod whiteout;
mod work;
mod xattr;

pub use error::AssembleError;
pub use object::{
    Attr, Caller, Data, DirEntry, DirSink, Entry, HandleId, NodeId, Opened, SetAttr, Shareable, StatFs, Time,
    TimeSet,
};
pub use overlay::{Overlay, Settings, Stale};
pub use plyfs_sys::Errno;

/// Result of an operation: the error is the errno that the kernel's overlayfs would answer.
pub type Result<T> = core::result::Result<T, Errno>;
