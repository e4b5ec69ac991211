//! Workloads of file contents: reading, writing, mapping, syncing, copying up.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, anyhow};
use rustix::fs::Mode;
use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{FileOffset, MmapRegion};

use super::fixture::{Fixture, file_name};
use super::ops;
use super::row::{Demand, Peer, Row, Site, Unit};

const PAGE: usize = 4096;
const BLOCK: usize = 1 << 20;
/// The file for reading, in MiB.
const BIG: usize = 1024;
/// What a round writes, in MiB.
const WRITTEN: usize = 256;
const SMALL_OPERATIONS: usize = 10_000;

/// The rows of this family.
pub fn rows() -> Vec<Row> {
    let mut rows = reads();
    rows.extend(writes());
    rows.extend(copy_ups());
    rows
}

/// Large data within 1.1 of the kernel's overlay.
fn as_kernel(row: Row) -> Row {
    row.demand(Demand::Against(Peer::Kernel, 1.1))
}

/// Both ways in which plyfs reads lower files of a writable stack: coherent with copy-up, and by passthrough.
fn reads() -> Vec<Row> {
    ["", "lower_passthrough"].into_iter().flat_map(reads_with).collect()
}

fn reads_with(option: &'static str) -> Vec<Row> {
    let named = |row: Row| match option {
        "" => row,
        _ => Row { name: format!("{}, {option}", row.name), ..row }.option(Peer::Plyfs, option),
    };
    let big = Fixture::Big(BIG);
    let all = |site: &Site| ops::millis(|| read_all(site, "big"));
    let warm = move |site: &Site| all(site).map(|_| ());
    let random = |site: &Site| {
        let file = open(site, "big")?;
        let mut numbers = Numbers(7);
        let mut bytes = [0_u8; PAGE];
        ops::repeat(SMALL_OPERATIONS, |_| {
            let offset = (numbers.below((BIG * BLOCK / PAGE) as u64)) * PAGE as u64;
            rustix::io::pread(&file, &mut bytes, offset).map(|_| ())
        })
    };
    let rows = vec![
        as_kernel(Row::new("read 1 GiB in order, cached", Unit::Millis, big, all).prepare(warm)),
        as_kernel(Row::new("read 1 GiB in order, cold", Unit::Millis, big, all).cold()),
        as_kernel(Row::new("read 4 KiB at random, cached", Unit::Micros, big, random).prepare(warm)),
        as_kernel(Row::new("mmap of 1 GiB, a byte of each page", Unit::Millis, big, touch_map).prepare(warm)),
    ];
    rows.into_iter().map(named).collect()
}

fn writes() -> Vec<Row> {
    let row = |name: &str, unit, measure: fn(&Site) -> Result<f64>| {
        Row::new(name, unit, Fixture::Empty, measure).writes().prepare(|site| site.bench.sync())
    };
    let large = row("write 256 MiB in order", Unit::Millis, |site| {
        let file = create(site, "large")?;
        let block = vec![b'x'; BLOCK];
        ops::millis(|| (0..WRITTEN).try_for_each(|_| (&file).write_all(&block).context("write")))
    });
    let pages = row("write 4 KiB in order", Unit::Micros, |site| {
        let file = create(site, "pages")?;
        ops::repeat(SMALL_OPERATIONS, |_| rustix::io::write(&file, &[b'x'; PAGE]).map(|_| ()))
    });
    let random = row("write 4 KiB at random", Unit::Micros, |site| {
        let file = open_rw(site, "random")?;
        let mut numbers = Numbers(11);
        ops::repeat(SMALL_OPERATIONS, |_| {
            let offset = numbers.below(16_384) * PAGE as u64;
            rustix::io::pwrite(&file, &[b'y'; PAGE], offset).map(|_| ())
        })
    })
    .prepare(|site| {
        let file = create(site, "random")?;
        (0..64).try_for_each(|_| (&file).write_all(&vec![b'x'; BLOCK]).context("write"))
    });
    let append = row("append 100 bytes", Unit::Micros, |site| {
        let path = round_path(site, "append");
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(site.path(&path))
            .with_context(|| path.clone())?;
        ops::repeat(SMALL_OPERATIONS, |_| rustix::io::write(&file, &[b'x'; 100]).map(|_| ()))
    });
    let sync = row("write 4 KiB and fsync", Unit::Micros, |site| {
        let file = create(site, "sync")?;
        ops::repeat(100, |number| {
            rustix::io::pwrite(&file, &[b'x'; PAGE], (number * PAGE) as u64)?;
            rustix::fs::fsync(&file)
        })
    });
    vec![as_kernel(large), pages, random, append, sync]
}

/// A size of file that is copied up: how it is called, its fixture, and the unit of its figures.
fn copy_up_sizes() -> [(&'static str, usize, usize, Unit); 5] {
    [
        ("4 KiB", 200, 4, Unit::Micros),
        ("1 MiB", 40, 1024, Unit::Micros),
        ("100 MiB", 1, 100 << 10, Unit::Millis),
        ("1 GiB", 1, 1 << 20, Unit::Millis),
        ("5,000 of 1 KiB", 5000, 1, Unit::Micros),
    ]
}

fn copy_ups() -> Vec<Row> {
    let mut rows = Vec::new();
    for (size, count, kib, unit) in copy_up_sizes() {
        for (how, op) in [("write", write_byte as fn(&Site, &str) -> Result<()>), ("chmod", change_mode)] {
            for durable in [true, false] {
                rows.push(copy_up(size, how, Fixture::Sized { count, kib }, unit, op, durable));
            }
        }
    }
    rows
}

/// Synced before it is published: compared with the kernel. Not synced: compared with fuse-overlayfs.
fn copy_up(
    size: &str,
    how: &str,
    fixture: Fixture,
    unit: Unit,
    op: fn(&Site, &str) -> Result<()>,
    durable: bool,
) -> Row {
    let Fixture::Sized { count, .. } = fixture else { unreachable!("copy-up is measured on sized files") };
    let name = format!("copy-up of {size} by {how}{}", if durable { "" } else { ", fsync=0" });
    let row = Row::new(name, unit, fixture, move |site| {
        let names: Vec<_> = (0..count).map(file_name).collect();
        let took = ops::millis(|| names.iter().try_for_each(|name| op(site, name)))?;
        Ok(if site_counts_each(count) { took * 1e3 / count as f64 } else { took })
    });
    let row = row.each_round().overlays_only().rounds(3).prepare(|site| {
        read_all(site, &file_name(0))?;
        site.bench.sync()
    });
    if durable {
        row.no_demand().demand(Demand::Against(Peer::Kernel, 1.0))
    } else {
        row.option(Peer::Plyfs, "fsync=0").option(Peer::Kernel, "volatile")
    }
}

/// Many files are reckoned in microseconds each, a large one in milliseconds.
fn site_counts_each(count: usize) -> bool {
    count > 1
}

fn write_byte(site: &Site, name: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).open(site.path(name)).with_context(|| name.to_owned())?;
    file.write_at(b"z", 0).map(|_| ()).with_context(|| name.to_owned())
}

fn change_mode(site: &Site, name: &str) -> Result<()> {
    rustix::fs::chmod(site.path(name), Mode::from_raw_mode(0o600)).with_context(|| name.to_owned())
}

fn round_path(site: &Site, name: &str) -> String {
    format!("{name}{}", site.round)
}

fn create(site: &Site, name: &str) -> Result<File> {
    let path = round_path(site, name);
    File::create(site.path(&path)).context(path)
}

fn open(site: &Site, name: &str) -> Result<File> {
    File::open(site.path(name)).with_context(|| name.to_owned())
}

fn open_rw(site: &Site, name: &str) -> Result<File> {
    let path = round_path(site, name);
    OpenOptions::new().read(true).write(true).mode(0o644).open(site.path(&path)).context(path)
}

fn read_all(site: &Site, name: &str) -> Result<()> {
    let file = open(site, name)?;
    let mut block = vec![0_u8; BLOCK];
    while rustix::io::read(&file, &mut block[..]).with_context(|| name.to_owned())? > 0 {}
    Ok(())
}

/// Maps the file and reads one byte of each page, as a program does that is started or searched.
fn touch_map(site: &Site) -> Result<f64> {
    let file = open(site, "big")?;
    let size = BIG * BLOCK;
    let mut sum = 0_u64;
    let took = ops::millis(|| {
        let map = MmapRegion::<()>::build(Some(FileOffset::new(file, 0)), size, PROT_READ, MAP_SHARED)
            .map_err(|error| anyhow!("mmap: {error}"))?;
        for page in 0..size / PAGE {
            let byte = map.get_slice(page * PAGE, 1).map_err(|error| anyhow!("mmap: {error}"))?;
            let mut value = [0_u8];
            byte.copy_to(&mut value);
            sum += u64::from(value[0]);
        }
        Ok(())
    })?;
    if sum == 0 {
        return Err(anyhow!("the mapped file has no contents"));
    }
    Ok(took)
}

/// `PROT_READ` and `MAP_SHARED` of mmap(2) on Linux.
const PROT_READ: i32 = 1;
const MAP_SHARED: i32 = 1;

/// The same random numbers at every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
