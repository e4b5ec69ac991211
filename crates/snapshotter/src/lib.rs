//! The containerd snapshotter: containerd's snapshot API as a proxy plugin on a Unix socket.
//!
//! From the outside in: [`serve`] is the process (socket, signals, systemd, metrics); `service` translates messages;
//! [`Snapshotter`] orders the steps between `ledger` (the rules) on `db` (what exists) and `home` (directories) with
//! `reaper` (deletion); `mounts` and `backend` say how a snapshot is mounted, which containerd and its shims do, never
//! this process. docs/containerd.md is the user's page.
//!
//! One process serves a root, so its metadata is a redb file of its own beside the layer directories, not the layer
//! store's database, which many short-lived commands share.

mod backend;
mod db;
mod error;
mod filter;
mod home;
mod idmap;
mod info;
mod ledger;
mod metrics;
mod mounts;
pub mod proto;
mod reaper;
mod server;
mod service;
mod snapshotter;
mod tree;

pub use backend::{Backend, Backends};
pub use error::{Error, Result};
pub use filter::Filters;
pub use info::{Info, Kind, Labels, Record, Usage};
pub use metrics::MetricsAddress;
pub use mounts::Mount;
pub use server::{Config, Server, serve};
pub use snapshotter::{Options, Snapshotter};
