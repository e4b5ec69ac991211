//! What mounts cost: memory of the daemon, page cache, the time to mount.

use std::fs::{self, File};
use std::io::Read;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fd::AsFd;

use super::fixture::Fixture;
use super::ops;
use super::row::{Demand, Peer, Row, Site, Unit};
use super::tree::DEPTHS;

const MIB: f64 = (1_u64 << 20) as f64;
/// Mounts that read the same file, and its size in MiB.
const SHARERS: usize = 10;
const SHARED: usize = 500;
/// How long a daemon may take to act on what the kernel forgot.
const SETTLE: Duration = Duration::from_secs(3);

/// The rows of this family.
pub fn rows() -> Vec<Row> {
    let walked = Row::new("memory after a walk of 200,000 files", Unit::Mebibytes, Fixture::Huge, |site| {
        walk(site)?;
        daemon_memory(site)
    });
    let forgotten = Row::new("memory after the kernel forgot them", Unit::Mebibytes, Fixture::Huge, |site| {
        walk(site)?;
        site.bench.drop_caches(2)?;
        thread::sleep(SETTLE);
        daemon_memory(site)
    });
    let shared = |name: &str, option: &'static [&'static str]| {
        let name = format!("page cache after ten mounts read 500 MiB{name}");
        let row = Row::new(name, Unit::Mebibytes, Fixture::Big(SHARED), move |site| share(site, option));
        row.overlays_only().rounds(1).no_demand().demand(Demand::Against(Peer::Kernel, 1.1))
    };
    let mut rows = vec![
        walked.daemons_only().each_round().rounds(1).demand(Demand::AtMost(60.0)),
        forgotten.daemons_only().each_round().rounds(1).demand(Demand::AtMost(15.0)),
        shared("", &[]),
        shared(", lower_passthrough", &["lower_passthrough"]),
    ];
    for depth in DEPTHS {
        let name = format!("mount, {depth} lower{}", if depth == 1 { "" } else { "s" });
        let mount = move |site: &Site| {
            let mount = site.bench.mount(site.peer, Fixture::Deep(depth), &[])?;
            Ok(mount.took.as_secs_f64() * 1e3)
        };
        rows.push(Row::new(name, Unit::Millis, Fixture::Empty, mount).overlays_only().rounds(7));
    }
    rows
}

fn walk(site: &Site) -> Result<()> {
    ops::walk(site.open_dir("")?.as_fd()).map(|_| ()).context("walk")
}

fn daemon_memory(site: &Site) -> Result<f64> {
    Ok(site.mount.context("no mount")?.daemon_memory()? as f64 / MIB)
}

/// How much the page cache grows by ten mounts of one layer, each of which reads the same file.
fn share(site: &Site, option: &[&str]) -> Result<f64> {
    let option = if site.peer == Peer::Plyfs { option } else { &[] };
    site.bench.drop_caches(3)?;
    let before = page_cache()?;
    let mut mounts = Vec::new();
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..SHARERS {
        let mount = site.bench.mount(site.peer, Fixture::Big(SHARED), option)?;
        let path = mount.root.join("big");
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        while file.read(&mut block).with_context(|| path.display().to_string())? > 0 {}
        mounts.push(mount);
    }
    Ok((page_cache()? - before).max(0.0))
}

/// `Cached` of /proc/meminfo, in MiB.
fn page_cache() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Cached:")).context("no Cached in /proc/meminfo")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("/proc/meminfo")?;
    Ok(kib / 1024.0)
}
