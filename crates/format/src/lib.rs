//! The text and byte formats of plyfs: names, mount options, overlay attributes, whiteouts, layer chains.
//!
//! This crate parses and prints, and decides nothing about a file system: it opens nothing, reads nothing, writes
//! nothing. Every parser takes bytes from a place that an attacker may control, never panics on them, and is fuzzed.
//! `docs/on-disk.md` describes the formats as a whole.

pub mod acl;
pub mod chain;
pub mod idmap;
pub mod metacopy;
pub mod name;
pub mod nlink;
pub mod opaque;
pub mod origin;
pub mod override_stat;
pub mod protattr;
pub mod redirect;
pub mod spec;
pub mod verity;
pub mod whiteout;
pub mod xattr;

pub use acl::{Acl, AclEntry, AclTag};
pub use chain::{ChainId, DiffId, Digest, LinkId, LowerChain};
pub use idmap::IdMap;
pub use metacopy::{Metacopy, MetacopyDigest};
pub use name::{Name, NameBuf, NameError, RelPath};
pub use nlink::{Nlink, NlinkBase};
pub use opaque::Opaque;
pub use origin::{FileHandle, Origin};
pub use override_stat::{OverrideKind, OverrideStat};
pub use protattr::Protattr;
pub use redirect::Redirect;
pub use spec::{Conflict, Effective, Options, Parsed, SpecError, StackSpec, UpperSpec};
pub use verity::{VerityAlgorithm, VerityHasher};
pub use whiteout::{OciName, whiteout_name};
pub use xattr::{Namespace, Private};
