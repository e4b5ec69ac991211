//! The FUSE front end of plyfs: its own transport, and the session that serves a mounted [`plyfs_core::Overlay`].
//!
//! From the kernel inwards: `channel` moves messages, `request` decodes them, `ops` asks the engine, `reply` answers,
//! with `encode` writing the answers' bytes. Beside them: `init` (what the two sides agree on), `iomode` (where the
//! data of an open file comes from), `notify` (what the kernel is told unasked), `session` (mount, threads, signals,
//! unmount).
//!
//! What it never does: overlay policy, and system calls on layers. System calls on the FUSE device are in `plyfs-sys`;
//! there is no `unsafe` here.
//!
//! The kernel's counterparts are `fs/fuse/` for the protocol and `fs/overlayfs/super.c` for mounting.

#[expect(missing_docs, reason = "most names are those of fuse.h, where they are explained")]
pub mod abi;
mod arguments;
mod backing;
mod channel;
mod crew;
mod encode;
mod executing;
mod init;
mod ioctl;
mod iomode;
mod listing;
mod mounting;
mod notify;
mod ops;
mod options;
mod placement;
mod replaced;
mod reply;
pub mod request;
mod session;
mod shadow;
mod signals;
pub mod wire;
mod worker;

pub use options::{Flags, MountOptions};
pub use session::{MountError, Running, Session, SessionError, Unmounter};
pub use signals::Signals;
