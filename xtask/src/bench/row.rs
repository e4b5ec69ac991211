//! What a row of the benchmark is: a workload, what it needs, and what is demanded of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::fixture::Fixture;
use super::peers::{Bench, Mount};

/// A file system under test.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Peer {
    /// `plyfs mount`.
    Plyfs,
    /// The kernel's overlayfs.
    Kernel,
    /// fuse-overlayfs 2.0.
    FuseOverlayfs,
    /// The same files in a plain directory.
    Native,
}

impl Peer {
    /// All of them, in the order of the table's columns.
    pub const ALL: [Self; 4] = [Self::Plyfs, Self::Kernel, Self::FuseOverlayfs, Self::Native];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plyfs => "plyfs",
            Self::Kernel => "kernel",
            Self::FuseOverlayfs => "fuse-overlayfs",
            Self::Native => "native",
        }
    }
}

/// What a measured figure counts; always the less the better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds an operation.
    Micros,
    /// Milliseconds for the whole.
    Millis,
    /// Mebibytes.
    Mebibytes,
}

impl Unit {
    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Mebibytes => "MiB",
        }
    }
}

/// How long a mount serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mounted {
    /// Through all rounds of the row; each round works on files of its own.
    Once,
    /// For one round, with an empty upper: the lower's caches are warm, the overlay's are not.
    EachRound,
}

/// A condition that plyfs has to fulfil in a row.
#[derive(Clone)]
pub enum Demand {
    /// At most this many times the figure of a peer.
    Against(Peer, f64),
    /// At most this figure, in the row's unit.
    AtMost(f64),
    /// At most this many times plyfs's own figure in the row of that name.
    AgainstRow(String, f64),
}

/// A file system under test, mounted, in one round.
pub struct Site<'a> {
    /// The merged tree.
    pub root: &'a Path,
    /// 0, 1, 2, …
    pub round: usize,
    /// Which one it is.
    pub peer: Peer,
    /// The mount, unless this is the native directory.
    pub mount: Option<&'a Mount>,
    /// For workloads that mount by themselves.
    pub bench: &'a Bench,
}

impl Site<'_> {
    /// Opens a directory of the merged tree, so that names in it are looked up without a walk.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> Result<OwnedFd> {
        let path = self.path(path);
        openat(CWD, &path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| path.display().to_string())
    }

    /// A path in the merged tree.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }
}

/// A step of a workload; a measuring one returns the figure in the row's unit.
pub type Step<T> = Box<dyn Fn(&Site) -> Result<T>>;

/// One workload.
pub struct Row {
    pub name: String,
    pub unit: Unit,
    pub fixture: Fixture,
    pub mounted: Mounted,
    /// The page, dentry and inode caches are dropped before each round.
    pub cold: bool,
    /// The workload changes the tree: the native directory is then the row's own.
    pub writes: bool,
    pub peers: Vec<Peer>,
    /// Mount options beyond the layers.
    pub options: Vec<(Peer, &'static str)>,
    pub rounds: usize,
    pub prepare: Step<()>,
    pub measure: Step<f64>,
    pub demands: Vec<Demand>,
}

impl Row {
    /// A row measured warm, on all peers, in five rounds of one mount, with nothing to prepare; plyfs has
    /// to be no slower than fuse-overlayfs.
    pub fn new(
        name: impl Into<String>,
        unit: Unit,
        fixture: Fixture,
        measure: impl Fn(&Site) -> Result<f64> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            unit,
            fixture,
            mounted: Mounted::Once,
            cold: false,
            writes: false,
            peers: Peer::ALL.to_vec(),
            options: Vec::new(),
            rounds: 5,
            prepare: Box::new(|_| Ok(())),
            measure: Box::new(measure),
            demands: vec![Demand::Against(Peer::FuseOverlayfs, 1.0)],
        }
    }

    /// Runs this before each round, not measured.
    pub fn prepare(mut self, prepare: impl Fn(&Site) -> Result<()> + 'static) -> Self {
        self.prepare = Box::new(prepare);
        self
    }

    pub fn each_round(mut self) -> Self {
        self.mounted = Mounted::EachRound;
        self
    }

    pub fn cold(mut self) -> Self {
        self.cold = true;
        self.rounds = 3;
        self
    }

    pub fn writes(mut self) -> Self {
        self.writes = true;
        self
    }

    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Leaves the native directory out, where there is nothing to compare.
    pub fn overlays_only(mut self) -> Self {
        self.peers.retain(|peer| *peer != Peer::Native);
        self
    }

    /// Leaves out what has no daemon.
    pub fn daemons_only(mut self) -> Self {
        self.peers.retain(|peer| matches!(peer, Peer::Plyfs | Peer::FuseOverlayfs));
        self
    }

    pub fn option(mut self, peer: Peer, option: &'static str) -> Self {
        self.options.push((peer, option));
        self
    }

    /// Half of fuse-overlayfs's time or less.
    pub fn half(mut self) -> Self {
        self.demands = vec![Demand::Against(Peer::FuseOverlayfs, 0.5)];
        self
    }

    pub fn demand(mut self, demand: Demand) -> Self {
        self.demands.push(demand);
        self
    }

    /// Only what is named after this is demanded.
    pub fn no_demand(mut self) -> Self {
        self.demands.clear();
        self
    }
}
