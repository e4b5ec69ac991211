//! The layer store: overlay2-style layers on disk, OCI images, and containers on them.
//!
//! Start at [`Store`]. Everything becomes visible by one rename after its data is synced (`publish`); what a
//! dead command left is removed by the next (`journal`). docs/store.md describes the design.

mod apply;
mod archive;
mod beneath;
mod blob;
mod db;
mod digest;
mod durable;
mod error;
mod ingest;
mod journal;
mod layout;
mod manifest;
mod owner;
mod progress;
mod publish;
mod reference;
mod store;
mod tar;
mod time;
mod unpack;

pub use blob::Compression;
pub use db::{Container, Image, ImageLayer, Layer};
pub use digest::Digest;
pub use error::{Context, Error, Result};
pub use layout::{Layout, MAX_DEPTH, default_root};
pub use progress::{Progress, Silent, Task};
pub use store::{Options, Store};
pub use tar::Limits;
