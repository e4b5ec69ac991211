//! Listings: complete, without doubles, stable while the directory changes.

use super::Case;
use anyhow::{Context, Result, ensure};
use plyfs_testkit::differential::{listing, op::Change, op::PathArg, outcome::Outcome};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::{Namespace, TreeSpec};
use plyfs_testkit::snapshot::{Clock, list};
use rustix::fs::{SeekFrom, seek};
use std::collections::BTreeSet;
use std::fs::{self, File};

pub const CASES: &[Case] = &[
    Case::new("every d_ino is the st_ino, and every d_type the type", layers, inode_numbers),
    Case::new("a large merged directory is listed completely, each name once", large, complete),
    Case::new("a listing goes on where it was after seekdir", large, seekdir),
    Case::new("a directory that changes is listed without losing or doubling a name", large, changing),
    Case::new("emptying a directory while listing it removes everything", large, remove_while_listing),
    Case::new("rewinding shows what was made meanwhile", layers, rewinding),
    Case::new("dot and dot-dot are listed", layers, dots),
];

fn layers(_: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new().file("d/a", "").symlink("d/s", "a").dir("d/sub").whiteout("d/w"),
        TreeSpec::new().file("d/b", "").file("d/w", "").file("d/sub/x", "").hard_link("d/h", "d/b"),
    ]
}

fn large(_: Namespace) -> Vec<TreeSpec> {
    let some = |from: usize| {
        (from..from + 700)
            .fold(TreeSpec::new(), |spec, n| spec.file(format!("d/a-long-enough-name-{n:05}"), ""))
    };
    vec![some(0), some(500), some(1000)]
}

fn inode_numbers(union: &mut Union) -> Result<()> {
    fs::write(union.path("d/b"), "copied up")?;
    fs::write(union.path("d/new"), "")?;
    fs::hard_link(union.path("d/a"), union.path("d/linked"))?;
    let snapshot = union.snapshot(Clock::never())?;
    for (path, shot) in &snapshot.entries {
        ensure!(shot.listing.is_empty(), "{}: {:?}", path.escape_ascii(), shot.listing);
    }
    ensure!(snapshot.ghosts.is_empty());
    Ok(())
}

fn complete(union: &mut Union) -> Result<()> {
    let listed = list(File::open(union.path("d"))?)?;
    let names: BTreeSet<_> = listed.iter().map(|entry| &entry.name).collect();
    ensure!(names.len() == listed.len(), "{} of {} names are different", names.len(), listed.len());
    ensure!(listed.len() == 1702, "{} entries", listed.len());
    Ok(())
}

fn seekdir(union: &mut Union) -> Result<()> {
    let dir = File::open(union.path("d"))?;
    let listed = list(&dir)?;
    for number in [0, 1, 500, 1700] {
        let entry = listed.get(number).context("an entry")?;
        seek(&dir, SeekFrom::Start(entry.next))?;
        let rest: Vec<_> = list(&dir)?.into_iter().map(|entry| entry.name).collect();
        let expected: Vec<_> = listed.iter().skip(number + 1).map(|entry| entry.name.clone()).collect();
        ensure!(rest == expected, "after entry {number}: {} entries, not {}", rest.len(), expected.len());
    }
    Ok(())
}

fn changing(union: &mut Union) -> Result<()> {
    let name = |n: usize| PathArg(format!("a-long-enough-name-{n:05}").into_bytes());
    let changes: Vec<Change> = (0..300)
        .flat_map(|n| {
            let new = PathArg(format!("new-{n}").into_bytes());
            [Change::Unlink(name(n * 4)), Change::Rename(name(n * 4 + 1), new)]
        })
        .collect();
    for first in [0, 3, 600] {
        let outcome = listing::changing(&union.path("d"), first, &changes);
        ensure!(!matches!(outcome, Outcome::Broken(_) | Outcome::Failed(_)), "after {first}: {outcome:?}");
    }
    Ok(())
}

fn remove_while_listing(union: &mut Union) -> Result<()> {
    for entry in fs::read_dir(union.path("d"))? {
        fs::remove_file(entry?.path())?;
    }
    let left = fs::read_dir(union.path("d"))?.count();
    ensure!(left == 0, "{left} entries are left");
    fs::remove_dir(union.path("d"))?;
    Ok(())
}

fn rewinding(union: &mut Union) -> Result<()> {
    let dir = File::open(union.path("d"))?;
    let before = list(&dir)?.len();
    fs::write(union.path("d/new"), "")?;
    fs::remove_file(union.path("d/a"))?;
    fs::write(union.path("d/newer"), "")?;
    seek(&dir, SeekFrom::Start(0))?;
    let after: BTreeSet<_> = list(&dir)?.into_iter().map(|entry| entry.name).collect();
    ensure!(
        after.len() == before + 1 && after.contains(b"new".as_slice()) && !after.contains(b"a".as_slice())
    );
    Ok(())
}

fn dots(union: &mut Union) -> Result<()> {
    for path in ["", "d", "d/sub"] {
        let listed = list(File::open(union.path(path))?)?;
        for dot in [".", ".."] {
            let count = listed.iter().filter(|entry| entry.name == dot.as_bytes()).count();
            ensure!(count == 1, "{dot} is listed {count} times in {path:?}");
        }
    }
    Ok(())
}
