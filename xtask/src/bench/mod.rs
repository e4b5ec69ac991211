//! `cargo xtask bench`: plyfs beside the kernel's overlay, fuse-overlayfs 2.0 and a plain directory.
//!
//! In each round of a row every peer is measured once, in turn, so that a disturbed moment of the machine
//! meets all of them; the figure is the median of the rounds. Everything happens in one directory, which
//! is unmounted and deleted at the end, also after an error. Needs root.

pub mod container;
mod data;
mod fixture;
mod interrupted;
mod memory;
mod metadata;
mod ops;
mod peers;
mod programs;
mod report;
mod row;
mod tree;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::peers::{Bench, Mount};
use self::report::{Figure, Report};
use self::row::{Mounted, Peer, Row, Site};
use crate::{child, workspace};

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Where to work; deleted at the end
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Only rows whose name contains this; may be repeated
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Two rounds a row instead of three to seven
    #[arg(long)]
    quick: bool,
    /// Print the names of the rows
    #[arg(long)]
    list: bool,
    /// Print what is demanded of each row, and whether it is met
    #[arg(long)]
    demands: bool,
    /// Where the figures go as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// The plyfs to measure, instead of building this workspace's
    #[arg(long, value_name = "PROGRAM")]
    plyfs: Option<PathBuf>,
    /// Mount options for every mount of plyfs, such as index=on
    #[arg(long, value_name = "OPTIONS")]
    plyfs_options: Option<String>,
    /// Leave plyfs out
    #[arg(long, conflicts_with = "plyfs")]
    without_plyfs: bool,
}

const INSTALL_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Measures, prints the table, and writes the figures as JSON.
pub fn run(args: &BenchArgs) -> Result<()> {
    let rows = selected(args)?;
    if args.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark mounts and drops caches: it needs root");
    }
    interrupted::watch()?;
    let bench = Bench::new(&args.dir, binaries(args.plyfs.as_deref(), args.without_plyfs)?)?;
    let mut report = Report::new(&rows);
    for row in &rows {
        interrupted::check()?;
        for (peer, figure) in measure_row(&bench, row, args) {
            report.add(row, peer, figure);
        }
        report.print_row(row);
    }
    drop(bench);
    report.write_json(&args.json)?;
    println!("figures: {}", args.json.display());
    if args.demands { report.print_demands(&rows) } else { Ok(()) }
}

fn selected(args: &BenchArgs) -> Result<Vec<Row>> {
    let mut rows = metadata::rows()?;
    rows.extend(tree::rows());
    rows.extend(data::rows());
    rows.extend(programs::rows());
    rows.extend(memory::rows());
    rows.retain(|row| args.only.is_empty() || args.only.iter().any(|part| row.name.contains(part)));
    if rows.is_empty() {
        bail!("no row is called that; see --list");
    }
    Ok(rows)
}

/// The programs to measure: plyfs is built, fuse-overlayfs installed where it is missing.
fn binaries(given: Option<&Path>, without_plyfs: bool) -> Result<HashMap<Peer, PathBuf>> {
    let root = workspace::root()?;
    let mut binaries = HashMap::new();
    let rival = root.join("target/tools/bin/fuse-overlayfs");
    if !rival.exists() {
        let mut install = Command::new("cargo");
        install.args(["install", "--locked", "--version", "^2", "fuse-overlayfs", "--root"]);
        if !child::run(install.arg(root.join("target/tools")), INSTALL_LIMIT)?.success() {
            bail!("cannot install fuse-overlayfs");
        }
    }
    binaries.insert(Peer::FuseOverlayfs, rival);
    if let Some(plyfs) = given {
        binaries.insert(Peer::Plyfs, plyfs.to_owned());
    } else if !without_plyfs {
        let mut build = Command::new("cargo");
        build.current_dir(&root).args(["build", "--release", "--locked", "--package", "plyfs"]);
        if !child::run(&mut build, INSTALL_LIMIT)?.success() {
            bail!("plyfs does not build");
        }
        binaries.insert(Peer::Plyfs, root.join("target/release/plyfs"));
    }
    Ok(binaries)
}

/// The figure of each peer in one row. A peer that fails has its error instead.
fn measure_row(bench: &Bench, row: &Row, args: &BenchArgs) -> Vec<(Peer, Figure)> {
    let rounds = if args.quick { row.rounds.min(2) } else { row.rounds };
    let peers = Peer::ALL.into_iter().filter(|peer| row.peers.contains(peer) && bench.has(*peer));
    let mut stands: Vec<_> =
        peers.map(|peer| Stand { peer, mounted: None, result: Ok(Vec::new()) }).collect();
    for round in 0..rounds {
        let count = stands.len();
        for turn in 0..count {
            // Each round begins with another peer.
            if let Some(stand) = stands.get_mut((turn + round) % count) {
                stand.sample(bench, row, round, args);
            }
        }
    }
    let figure = |stand: Stand| (stand.peer, Figure::new(stand.result.map_err(|error| format!("{error:#}"))));
    let figures = stands.into_iter().map(figure).collect();
    if row.writes {
        // The native tree of the row is not needed any more.
        if let Err(error) = peers::remove_dir_all(&bench.path("n").join(native_name(row))) {
            eprintln!("bench: {error:#}");
        }
    }
    figures
}

/// One peer in the rounds of a row.
struct Stand {
    peer: Peer,
    mounted: Option<Mount>,
    result: Result<Vec<f64>>,
}

impl Stand {
    /// Measures one round, unless an earlier one failed.
    fn sample(&mut self, bench: &Bench, row: &Row, round: usize, args: &BenchArgs) {
        let Ok(samples) = &mut self.result else { return };
        match sample(bench, row, round, self.peer, &mut self.mounted, args) {
            Ok(sample) => samples.push(sample),
            Err(error) => {
                eprintln!("bench: {} in {:?}: {error:#}", self.peer.name(), row.name);
                self.result = Err(error);
            }
        }
    }
}

fn sample(
    bench: &Bench,
    row: &Row,
    round: usize,
    peer: Peer,
    mounted: &mut Option<Mount>,
    args: &BenchArgs,
) -> Result<f64> {
    interrupted::check()?;
    if row.mounted == Mounted::EachRound {
        *mounted = None;
    }
    if mounted.is_none() && peer != Peer::Native {
        let mut options: Vec<&str> =
            row.options.iter().filter(|option| option.0 == peer).map(|option| option.1).collect();
        options.extend(args.plyfs_options.as_deref().filter(|_| peer == Peer::Plyfs));
        *mounted = Some(bench.mount(peer, row.fixture, &options).context("mount")?);
    }
    let native;
    let mount = mounted.as_ref();
    let root: &Path = match mount {
        Some(mount) => &mount.root,
        None => {
            native = bench.native(row.fixture, &native_name(row))?;
            &native
        }
    };
    let site = Site { root, round, peer, mount, bench };
    (row.prepare)(&site).context("preparation")?;
    if row.cold {
        bench.drop_caches(3)?;
    }
    let figure = (row.measure)(&site)?;
    if row.mounted == Mounted::EachRound {
        *mounted = None;
    }
    Ok(figure)
}

/// A row that changes the tree has a native directory of its own.
fn native_name(row: &Row) -> String {
    if row.writes { format!("row-{}", row.name.replace(['/', ' '], "-")) } else { row.fixture.name() }
}
