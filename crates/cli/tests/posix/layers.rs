//! Layers: merging, whiteouts and opaque directories, in the upper and in lowers.

use super::Case;
use anyhow::{Result, ensure};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::{Namespace, TreeSpec};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

pub const CASES: &[Case] = &[
    Case::new("directories are merged, and upper names hide lower ones", merging, merged),
    Case::new(
        "a whiteout in a middle layer ends the merging of a directory",
        middle_whiteout,
        middle_whiteout_hides,
    ),
    Case::new("a file in a middle layer ends the merging of a directory", middle_file, middle_file_hides),
    Case::new("an opaque directory in a middle layer ends the merging", middle_opaque, middle_opaque_hides),
    Case::new("a whiteout hides a name of the layers below it", merging, whiteout_hides),
    Case::new("a directory made again is empty", merging, made_again),
    Case::new("a file made again is new", merging, file_made_again),
    Case::new("a removed tree stays removed after a remount", merging, removed_tree),
    Case::new("nothing is copied up by looking", merging, looking),
    Case::new("forty layers are merged in order", forty, forty_merged),
    Case::new("a copy-up makes the parents, with their attributes", merging, parents),
];

fn names(path: &Path) -> Result<Vec<String>> {
    let names: BTreeSet<String> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    Ok(names.into_iter().collect())
}

fn merging(_: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new().file("d/both", "upper one").file("d/first", "1").whiteout("d/gone"),
        TreeSpec::new()
            .dir("d")
            .mode(0o700)
            .file("d/both", "lower one")
            .file("d/second", "2")
            .file("d/gone", "")
            .dir("d/sub/sub")
            .mode(0o750)
            .time(1_000_000_000, 3)
            .file("d/sub/sub/x", "deep"),
    ]
}

fn merged(union: &mut Union) -> Result<()> {
    ensure!(names(&union.path("d"))? == ["both", "first", "second", "sub"]);
    ensure!(fs::read_to_string(union.path("d/both"))? == "upper one");
    ensure!(fs::read_to_string(union.path("d/sub/sub/x"))? == "deep");
    Ok(())
}

fn middle_whiteout(_: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new().file("d/top", ""),
        TreeSpec::new().whiteout("d"),
        TreeSpec::new().file("d/bottom", ""),
    ]
}

fn middle_whiteout_hides(union: &mut Union) -> Result<()> {
    ensure!(names(&union.path("d"))? == ["top"], "{:?}", names(&union.path("d"))?);
    ensure!(!union.path("d/bottom").exists());
    fs::remove_file(union.path("d/top"))?;
    fs::remove_dir(union.path("d"))?;
    ensure!(!union.path("d").exists());
    Ok(())
}

fn middle_file(_: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new().file("d/top", ""),
        TreeSpec::new().file("d", ""),
        TreeSpec::new().file("d/bottom", ""),
    ]
}

fn middle_file_hides(union: &mut Union) -> Result<()> {
    ensure!(names(&union.path("d"))? == ["top"], "{:?}", names(&union.path("d"))?);
    ensure!(!union.path("d/bottom").exists());
    Ok(())
}

fn middle_opaque(namespace: Namespace) -> Vec<TreeSpec> {
    vec![
        TreeSpec::new().file("d/top", ""),
        TreeSpec::new().dir("d").opaque(namespace).file("d/middle", ""),
        TreeSpec::new().file("d/bottom", ""),
    ]
}

fn middle_opaque_hides(union: &mut Union) -> Result<()> {
    ensure!(names(&union.path("d"))? == ["middle", "top"], "{:?}", names(&union.path("d"))?);
    ensure!(!union.path("d/bottom").exists());
    Ok(())
}

fn whiteout_hides(union: &mut Union) -> Result<()> {
    ensure!(!union.path("d/gone").exists());
    fs::write(union.path("d/gone"), "back")?;
    ensure!(names(&union.path("d"))?.contains(&"gone".to_owned()));
    fs::remove_file(union.path("d/gone"))?;
    ensure!(!union.path("d/gone").exists());
    Ok(())
}

fn made_again(union: &mut Union) -> Result<()> {
    fs::remove_dir_all(union.path("d"))?;
    fs::create_dir(union.path("d"))?;
    for _ in 0..2 {
        ensure!(names(&union.path("d"))?.is_empty(), "{:?}", names(&union.path("d"))?);
        ensure!(!union.path("d/second").exists());
        union.remount()?;
    }
    fs::create_dir(union.path("d/sub"))?;
    ensure!(names(&union.path("d/sub"))?.is_empty(), "a directory in an opaque one shows lower entries");
    Ok(())
}

fn file_made_again(union: &mut Union) -> Result<()> {
    fs::remove_file(union.path("d/second"))?;
    fs::write(union.path("d/second"), "")?;
    union.remount()?;
    ensure!(fs::read(union.path("d/second"))?.is_empty());
    Ok(())
}

fn removed_tree(union: &mut Union) -> Result<()> {
    fs::remove_dir_all(union.path("d/sub"))?;
    union.remount()?;
    ensure!(names(&union.path("d"))? == ["both", "first", "second"]);
    fs::remove_dir_all(union.path("d"))?;
    union.remount()?;
    ensure!(names(union.merged())?.is_empty());
    Ok(())
}

fn looking(union: &mut Union) -> Result<()> {
    union.snapshot(plyfs_testkit::snapshot::Clock::never())?;
    ensure!(names(union.upper())?.is_empty(), "{:?}", names(union.upper())?);
    Ok(())
}

fn forty(_: Namespace) -> Vec<TreeSpec> {
    (0..40).map(|n| TreeSpec::new().file("d/same", format!("{n}")).file(format!("d/only-{n}"), "")).collect()
}

fn forty_merged(union: &mut Union) -> Result<()> {
    ensure!(names(&union.path("d"))?.len() == 41);
    ensure!(fs::read_to_string(union.path("d/same"))? == "0");
    fs::remove_file(union.path("d/same"))?;
    ensure!(!union.path("d/same").exists(), "a lower one shows");
    Ok(())
}

fn parents(union: &mut Union) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    fs::write(union.path("d/sub/sub/x"), "changed")?;
    let upper = fs::metadata(union.upper().join("d/sub/sub"))?;
    ensure!(upper.mode() & 0o777 == 0o750, "mode {:o}", upper.mode());
    ensure!((upper.mtime(), upper.mtime_nsec()) == (1_000_000_000, 3), "mtime {}", upper.mtime());
    Ok(())
}
