//! Workloads of names and attributes: stat, open, missing names, listing, creating, renaming, removing.

use std::ffi::CString;
use std::fs::File;

use anyhow::{Context, Result};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Mode, Uid, chownat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::fixture::{FLAT_ENTRIES, Fixture, GROUP_FILES, SMALL_FILES, dir_paths, file_name};
use super::ops;
use super::row::{Demand, Peer, Row, Site, Unit};

/// Operations on names that a round makes where nothing in the fixture limits them.
const OPERATIONS: usize = 2000;

/// The rows of this family.
pub fn rows() -> Result<Vec<Row>> {
    let mut rows = small_files()?;
    rows.extend(missing_names()?);
    rows.extend(listings()?);
    rows.extend(changes_of_upper()?);
    rows.extend(changes_of_lower()?);
    Ok(rows)
}

fn small_files() -> Result<Vec<Row>> {
    let all = ops::names(dir_paths(200, SMALL_FILES / 200))?;
    let warm = |name: &str, op: fn(&Site, &[CString]) -> Result<f64>| {
        let (first, again) = (all.clone(), all.clone());
        Row::new(name, Unit::Micros, Fixture::Small, move |site| op(site, &again))
            .prepare(move |site| op(site, &first).map(|_| ()))
    };
    let cold = |name: &str, op: fn(&Site, &[CString]) -> Result<f64>| {
        let names = all.clone();
        Row::new(name, Unit::Micros, Fixture::Small, move |site| op(site, &names)).cold()
    };
    let getxattr = |site: &Site, names: &[CString]| {
        let root = site.path("");
        let paths = ops::names(names.iter().map(|name| {
            let mut path = root.as_os_str().as_encoded_bytes().to_vec();
            path.extend(name.to_bytes());
            path
        }))?;
        let mut value = [0_u8; 64];
        ops::each(&paths, |path| match rustix::fs::getxattr(path, "user.plyfs.absent", &mut value) {
            Err(Errno::NODATA) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(Errno::EXIST),
        })
    };
    Ok(vec![
        warm("stat, warm", |site, names| on(site, names, ops::stat)),
        cold("stat, cold", |site, names| on(site, names, ops::stat)),
        warm("open+close, warm", |site, names| on(site, names, ops::open_close)).half(),
        cold("open+close, cold", |site, names| on(site, names, ops::open_close)).half(),
        warm("open+read+close, warm", |site, names| on(site, names, ops::open_read_close)),
        cold("open+read+close, cold", |site, names| on(site, names, ops::open_read_close)),
        warm("getxattr of an absent attribute", getxattr),
    ])
}

/// Calls `op` for each name in the merged root.
fn on(
    site: &Site,
    names: &[CString],
    op: fn(rustix::fd::BorrowedFd, &std::ffi::CStr) -> rustix::io::Result<()>,
) -> Result<f64> {
    let root = site.open_dir("")?;
    ops::each(names, |name| op(root.as_fd(), name))
}

fn missing_names() -> Result<Vec<Row>> {
    let repeated = ops::names(std::iter::repeat_n("d000/missing", 10 * OPERATIONS))?;
    let repeated = Row::new("missing name, repeated", Unit::Micros, Fixture::Small, move |site| {
        on(site, &repeated, ops::stat_missing)
    });
    let distinct = Row::new("missing names, distinct", Unit::Micros, Fixture::Small, |site| {
        let round = site.round;
        let names = ops::names((0..5 * OPERATIONS).map(|name| format!("d001/missing{round}.{name}")))?;
        on(site, &names, ops::stat_missing)
    });
    Ok(vec![repeated.half(), distinct.half()])
}

fn listings() -> Result<Vec<Row>> {
    // With the opening: some read the directory then, others at the first question.
    let list = |site: &Site| ops::millis(|| ops::expect(ops::list(&site.open_dir("flat")?)?, FLAT_ENTRIES));
    let list_and_stat =
        Row::new("list and stat 50,000 entries, first", Unit::Millis, Fixture::Flat, |site| {
            ops::millis(|| ops::expect(ops::walk(site.open_dir("flat")?.as_fd())?, FLAT_ENTRIES))
        });
    let first = Row::new("list 50,000 entries, first", Unit::Millis, Fixture::Flat, list);
    let again = Row::new("list 50,000 entries, again", Unit::Millis, Fixture::Flat, list);
    let after = Row::new("list 50,000 entries, after a create", Unit::Millis, Fixture::Flat, move |site| {
        ops::millis(|| ops::expect(ops::list(&site.open_dir("flat")?)?, FLAT_ENTRIES + site.round + 1))
    });
    Ok(vec![
        first.each_round().half(),
        list_and_stat.each_round().rounds(3).half(),
        again.prepare(move |site| list(site).map(|_| ())).half(),
        after
            .writes()
            .prepare(move |site| {
                let directory = site.open_dir("flat")?;
                ops::list(&directory)?;
                File::create(site.path(format!("flat/new{}", site.round))).map(drop).context("create")
            })
            .half(),
    ])
}

/// The names of files that [`make_files`] makes.
fn made_names(prefix: &str) -> Result<Vec<CString>> {
    ops::names((0..OPERATIONS).map(|name| format!("{prefix}{name:05}")))
}

fn make_dir(site: &Site) -> Result<()> {
    let name = round_name(site);
    std::fs::create_dir(site.path(&name)).with_context(|| name.clone())
}

fn make_files(site: &Site) -> Result<()> {
    make_dir(site)?;
    let directory = site.open_dir(round_name(site))?;
    ops::each(&made_names("a")?, |name| ops::create_close(directory.as_fd(), name)).map(|_| ())
}

/// The directory of this round.
fn round_name(site: &Site) -> String {
    format!("r{}", site.round)
}

fn changes_of_upper() -> Result<Vec<Row>> {
    let row = |name: &str, measure: fn(&Site) -> Result<f64>| {
        Row::new(name, Unit::Micros, Fixture::Empty, measure).writes().half()
    };
    let create = row("create", |site| {
        let directory = site.open_dir(round_name(site))?;
        ops::each(&made_names("a")?, |name| ops::create_close(directory.as_fd(), name))
    });
    let mkdir = row("mkdir", |site| {
        let directory = site.open_dir(round_name(site))?;
        ops::each(&made_names("a")?, |name| mkdirat(&directory, name, Mode::from_raw_mode(0o755)))
    });
    let rename = row("rename of an upper file", |site| {
        let directory = site.open_dir(round_name(site))?;
        let (from, to) = (made_names("a")?, made_names("b")?);
        let mut to = to.iter();
        ops::each(&from, |name| match to.next() {
            Some(to) => renameat(&directory, name, &directory, to),
            None => Err(Errno::INVAL),
        })
    });
    let unlink = row("unlink of an upper file", |site| {
        let directory = site.open_dir(round_name(site))?;
        ops::each(&made_names("a")?, |name| unlinkat(&directory, name, AtFlags::empty()))
    });
    Ok(vec![
        create.prepare(make_dir),
        mkdir.prepare(make_dir),
        rename.prepare(make_files),
        unlink.prepare(make_files),
    ])
}

fn group_names() -> Result<Vec<CString>> {
    ops::names((0..GROUP_FILES).map(file_name))
}

/// Looks every file of the round's group up, so that a change finds it cached.
fn look_up_group(site: &Site) -> Result<()> {
    let directory = site.open_dir(round_name(site))?;
    ops::each(&group_names()?, |name| ops::stat(directory.as_fd(), name)).map(|_| ())
}

fn changes_of_lower() -> Result<Vec<Row>> {
    let row = |name: &str, measure: fn(&Site) -> Result<f64>| {
        Row::new(name, Unit::Micros, Fixture::Groups, measure).writes().prepare(look_up_group)
    };
    let unlink = row("unlink of a lower file", |site| {
        let directory = site.open_dir(round_name(site))?;
        ops::each(&group_names()?, |name| unlinkat(&directory, name, AtFlags::empty()))
    });
    let chown = row("chown of a lower file", |site| {
        let directory = site.open_dir(round_name(site))?;
        let owner = Some(Uid::from_raw(1000));
        ops::each(&group_names()?, |name| chownat(&directory, name, owner, None, AtFlags::SYMLINK_NOFOLLOW))
    });
    let rename = row("rename of a lower file", |site| {
        let directory = site.open_dir(round_name(site))?;
        let to = made_names("b")?;
        let mut to = to.iter();
        ops::each(&group_names()?, |name| match to.next() {
            Some(to) => renameat(&directory, name, &directory, to),
            None => Err(Errno::INVAL),
        })
    });
    let remove = Row::new("rm -rf of a lower tree, an entry", Unit::Micros, Fixture::Trees, |site| {
        let root = site.open_dir("")?;
        let name = CString::new(round_name(site))?;
        let mut entries = 0;
        let took = ops::millis(|| {
            entries = ops::remove_tree(root.as_fd(), &name)?;
            Ok(())
        })?;
        Ok(took * 1e3 / entries.max(1) as f64)
    });
    let large = |name: &str, measure: fn(&Site) -> Result<f64>| {
        Row::new(name, Unit::Millis, Fixture::Big(300), measure)
            .each_round()
            .overlays_only()
            .half()
            .demand(Demand::AtMost(10.0))
    };
    let unlink_large = large("unlink of a lower file of 300 MiB", |site| {
        ops::millis(|| unlinkat(site.open_dir("")?, "big", AtFlags::empty()).context("unlink"))
    });
    let rename_large = |name| {
        large(name, |site| {
            ops::millis(|| {
                let root = site.open_dir("")?;
                renameat(&root, "big", &root, "renamed").context("rename")?;
                openat(&root, "renamed", rustix::fs::OFlags::RDONLY, Mode::empty()).map(drop).context("open")
            })
        })
    };
    let metacopy = rename_large("rename of a lower file of 300 MiB, metacopy=on")
        .option(Peer::Plyfs, "metacopy=on")
        .option(Peer::Kernel, "metacopy=on");
    // A copy-up of the kernel is synced before it is published, one of fuse-overlayfs is not.
    let durable = |row: Row| row.no_demand().demand(Demand::Against(Peer::Kernel, 1.0));
    Ok(vec![
        unlink.half(),
        remove.writes().half(),
        durable(chown),
        durable(rename),
        unlink_large,
        rename_large("rename of a lower file of 300 MiB"),
        metacopy,
    ])
}
