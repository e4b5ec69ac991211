//! The layer store: overlay2-style layers on disk, OCI images, and containers on them.
//!
//! Start at [`Store`]. Everything becomes visible by one rename after its data is synced (`publish`); what a
//! dead command left is removed by the next (`journal`). docs/store.md describes the design.

mod ahead;
mod apply;
mod archive;
mod beneath;
mod blob;
mod check;
mod container;
mod copy;
mod cp;
mod db;
mod diff;
mod digest;
mod durable;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gc;
mod image;
mod import;
mod indexed;
mod info;
mod ingest;
mod journal;
mod layout;
mod manifest;
mod mount;
mod owner;
mod progress;
mod publish;
mod quota;
mod reference;
mod registry;
mod run;
mod save;
mod stack;
mod store;
mod tar;
mod time;
mod tree;
mod unpack;
mod usage;

pub use blob::Compression;
pub use check::{CheckOptions, Problem};
pub use db::{Container, Image, ImageLayer, Layer};
pub use diff::{Change, ChangeKind};
pub use digest::Digest;
pub use error::{Context, Error, Result};
pub use gc::Collected;
pub use image::{Listed, Removed, Step};
pub use import::Changes;
pub use info::{ContainerUsage, ImageUsage, Info, Usage};
pub use layout::{Layout, MAX_DEPTH, default_root};
pub use mount::Backend;
pub use progress::{Progress, Silent, Task};
pub use registry::RegistryOptions;
pub use run::{Network, RunOptions, State, Volume};
pub use save::Format;
pub use store::{Options, Store};
pub use tar::Limits;
