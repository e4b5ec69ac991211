//! `plyfs snapshotter`: containerd's snapshot API on a socket, see docs/containerd.md.
//!
//! Owns the command's options and where its messages go (standard error, which systemd collects). All else is in the
//! snapshotter's crate.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use plyfs_snapshotter::{Config, MetricsAddress, Options};
use tracing_subscriber::EnvFilter;

use crate::failure::{Failure, Outcome};

/// The environment variable with a filter such as `debug` or `plyfs_snapshotter=trace`.
const FILTER: &str = "PLYFS_LOG";
/// Set by systemd for services whose standard error goes to its journal, which has its own times.
const JOURNAL: &str = "JOURNAL_STREAM";

/// `plyfs snapshotter`.
#[derive(Debug, Args)]
pub struct SnapshotterArgs {
    /// The Unix socket to listen on: `address` of the proxy plugin in containerd's configuration
    #[arg(long, value_name = "SOCKET", default_value = "/run/plyfs-snapshotter/snapshotter.sock")]
    address: PathBuf,
    /// The directory of the snapshots, made if it is missing
    #[arg(long, value_name = "DIR", default_value = "/var/lib/plyfs-snapshotter")]
    root: PathBuf,
    /// How overlays are mounted
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// Serve metrics for Prometheus at ADDRESS:PORT, on the loopback network only, or at unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<MetricsAddress>,
    /// Do not sync a layer's data before it is committed: faster, but a power cut can leave empty files in layers
    #[arg(long)]
    no_sync: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Backend {
    /// The kernel's overlay where it mounts, FUSE for what it cannot mount
    #[default]
    Auto,
    /// The kernel's overlay
    Kernel,
    /// plyfs over FUSE
    Fuse,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &SnapshotterArgs) -> Outcome<()> {
    start_logging()?;
    let backend = match args.backend {
        Backend::Auto => plyfs_snapshotter::Backend::Auto,
        Backend::Kernel => plyfs_snapshotter::Backend::Kernel,
        Backend::Fuse => plyfs_snapshotter::Backend::Fuse,
    };
    let config = Config {
        address: args.address.clone(),
        root: args.root.clone(),
        options: Options { backend, sync: !args.no_sync },
        metrics: args.metrics_address.clone(),
    };
    plyfs_snapshotter::serve(&config).map_err(|error| Failure::new(error.to_string()))
}

fn start_logging() -> Outcome<()> {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr);
    let started = if std::env::var_os(JOURNAL).is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    started.map_err(|error| Failure::new(format!("cannot start logging: {error}")))
}
