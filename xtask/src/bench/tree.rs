//! Workloads on whole trees, and the same by the number of layers.

use anyhow::{Context, Result};
use rustix::fd::AsFd;

use super::fixture::{DEEP_FILES, Fixture, HUGE_FILES, dir_paths, file_name};
use super::ops;
use super::row::{Demand, Row, Site, Step, Unit};

/// Numbers of lower layers that are compared.
pub const DEPTHS: [usize; 5] = [1, 8, 32, 128, 500];
/// Entries of the tree `t/` of [`Fixture::Deep`], itself left out.
const DEEP_TREE: usize = 50 + 50 * 20;

/// The rows of this family.
pub fn rows() -> Vec<Row> {
    let entries = HUGE_FILES + 20 + 20 * 100;
    let walk = move |site: &Site| walk_millis(site, "", entries);
    let first = Row::new("walk of 200,000 files, first", Unit::Millis, Fixture::Huge, walk);
    let again = Row::new("walk of 200,000 files, again", Unit::Millis, Fixture::Huge, walk);
    let mut rows =
        vec![first.each_round().rounds(3), again.rounds(3).prepare(move |site| walk(site).map(|_| ()))];
    for depth in DEPTHS {
        rows.extend(by_depth(depth));
    }
    rows
}

fn walk_millis(site: &Site, path: &str, entries: usize) -> Result<f64> {
    let root = site.open_dir(path)?;
    ops::millis(|| ops::expect(ops::walk(root.as_fd()).context("walk")?, entries))
}

/// Each on a new mount whose lower directories are cached: what a container pays at its start.
fn by_depth(depth: usize) -> Vec<Row> {
    let row = |name: &str, measure: Step<f64>| {
        let title = move |depth| format!("{name}, {depth} lower{}", if depth == 1 { "" } else { "s" });
        let row = Row::new(title(depth), Unit::Micros, Fixture::Deep(depth), measure)
            .each_round()
            .prepare(warm_lowers);
        if depth == 500 { row.demand(Demand::AgainstRow(title(1), 2.0)) } else { row }
    };
    let files = || ops::names((0..DEEP_FILES).map(file_name));
    let missing = || ops::names((0..DEEP_FILES).map(|name| format!("missing{name}")));
    vec![
        row(
            "stat of bottom files",
            Box::new(move |site| {
                let directory = site.open_dir("d")?;
                ops::each(&files()?, |name| ops::stat(directory.as_fd(), name))
            }),
        ),
        row(
            "open+close of bottom files",
            Box::new(move |site| {
                let directory = site.open_dir("d")?;
                ops::each(&files()?, |name| ops::open_close(directory.as_fd(), name))
            }),
        ),
        row(
            "missing names",
            Box::new(move |site| {
                let directory = site.open_dir("d")?;
                ops::each(&missing()?, |name| ops::stat_missing(directory.as_fd(), name))
            }),
        ),
        row(
            "list a merged directory, an entry",
            Box::new(move |site| {
                let entries = DEEP_FILES + depth;
                // Opening counts: who reads the layers then would not show it otherwise.
                let took = ops::millis(|| ops::expect(ops::list(&site.open_dir("d")?)?, entries))?;
                Ok(took * 1e3 / entries as f64)
            }),
        ),
        row(
            "walk of a bottom tree, an entry",
            Box::new(|site| Ok(walk_millis(site, "t", DEEP_TREE)? * 1e3 / DEEP_TREE as f64)),
        ),
    ]
}

/// Stats the bottom layer's files below the mount, and asks each layer for a name it has not.
fn warm_lowers(site: &Site) -> Result<()> {
    let Some(mount) = site.mount else { return Ok(()) };
    let lowers = &mount.lowers;
    for lower in lowers {
        ops::list(rustix::fs::open(lower.join("d"), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?)?;
    }
    let bottom = lowers.last().context("no layers")?;
    for path in (0..DEEP_FILES).map(|file| format!("d/{}", file_name(file))) {
        rustix::fs::lstat(bottom.join(&path)).context(path)?;
    }
    for path in dir_paths(50, 20) {
        rustix::fs::lstat(bottom.join("t").join(&path)).context(path)?;
    }
    Ok(())
}
