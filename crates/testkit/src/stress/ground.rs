//! The layers that a run begins with, and the comparison of the tree with what the threads made of it.
//!
//! Two lowers: the upper one has half of the directories' entries, the lower one the rest and the large files.

use super::Plan;
use super::actor::{Item, Model};
use crate::features;
use crate::fixture::Union;
use crate::layer::TreeSpec;
use crate::mount::Driver;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Directories that all threads share.
pub const DIRS: usize = 12;
/// Groups of names of each directory that stay as they are: see [`staying`].
pub const STAYING: usize = 20;
/// Files, and so many directories, of each thread in the lowers.
const LOWER_ITEMS: usize = 120;
/// The file in each of the lowers' directories.
pub const INSIDE: &str = "inside";
/// The directory of the large files.
const LARGE: &str = "large";
const CHUNK: usize = 1 << 20;

/// A shared directory.
pub fn dir(number: usize) -> String {
    format!("d{number:02}")
}

/// Names of every shared directory that nobody touches: of the upper lower, of the lower one, of both, and of the upper.
pub fn staying(number: usize) -> [String; 4] {
    ["top", "bottom", "both", "upper"].map(|layer| format!("stays-{layer}-{number}"))
}

/// The path of a large file.
pub fn large(number: usize) -> String {
    format!("{LARGE}/{number}")
}

/// What a thread owns in the lowers.
pub fn lower_items(thread: usize) -> Model {
    let files = (0..LOWER_ITEMS).map(|number| {
        let path = format!("{}/l{thread}-{number}", dir(number % DIRS));
        (path.clone(), Item::File(path))
    });
    let dirs = (0..LOWER_ITEMS).map(|number| {
        let path = format!("{}/ld{thread}-{number}", dir(number % DIRS));
        (path.clone(), Item::Dir(Some(path)))
    });
    files.chain(dirs).collect()
}

/// A mounted union with those layers.
pub struct Ground {
    union: Union,
    plan: Plan,
}

impl Ground {
    /// Mounted with `options`; the `files`, with their content, are in the lower lower.
    pub fn new(
        driver: &Driver,
        place: &Path,
        plan: &Plan,
        options: &[&str],
        files: &[(&str, Vec<u8>)],
    ) -> Result<Self> {
        let mut layers = [TreeSpec::new(), TreeSpec::new().dir(LARGE)];
        for number in 0..DIRS {
            let [top, bottom] = layers;
            layers =
                [stay(top.dir(dir(number)), number, "top"), stay(bottom.dir(dir(number)), number, "bottom")];
        }
        for (number, (path, item)) in (0..plan.threads).flat_map(lower_items).enumerate() {
            let [top, bottom] = layers;
            layers =
                if number % 2 == 0 { [add(top, path, item), bottom] } else { [top, add(bottom, path, item)] };
        }
        for (path, content) in files {
            let [top, bottom] = layers;
            layers = [top, bottom.file(path, content)];
        }
        let mut union = Union::new(driver, place, &layers, options)?;
        // A lower must not change while it is mounted.
        union.unmount()?;
        for number in 0..plan.copies {
            write_large(&union.lower(1).join(large(number)), plan.size)?;
        }
        features::forgive(&union.work())?;
        union.remount()?;
        for path in staying_in_upper() {
            fs::write(union.path(&path), &path).with_context(|| path.clone())?;
        }
        Ok(Self { union, plan: plan.clone() })
    }

    pub fn merged(&self) -> &Path {
        self.union.merged()
    }

    pub fn union(&mut self) -> &mut Union {
        &mut self.union
    }

    pub fn remount(&mut self) -> Result<()> {
        self.union.remount()
    }

    /// Compares the whole tree with the models, and returns how many entries it has.
    pub fn check<'a>(&self, models: impl Iterator<Item = &'a Model>) -> Result<usize> {
        let mut expected: Model = models.flat_map(Clone::clone).collect();
        for number in 0..DIRS {
            for name in (0..STAYING).flat_map(staying) {
                let path = format!("{}/{name}", dir(number));
                expected.insert(path.clone(), Item::File(path));
            }
        }
        let mut found = BTreeMap::new();
        for number in 0..DIRS {
            read_dir(self.merged(), &dir(number), &mut found)?;
        }
        compare(&expected, &found)?;
        let copies = (0..self.plan.copies).map(|number| (self.union.path(&large(number)), number));
        for (path, number) in copies {
            same_content(&path, &self.union.lower(1).join(large(number)))?;
        }
        Ok(found.len() + DIRS)
    }
}

fn stay(mut layer: TreeSpec, directory: usize, which: &str) -> TreeSpec {
    for [top, bottom, both, _] in (0..STAYING).map(staying) {
        for name in [if which == "top" { top } else { bottom }, both] {
            let path = format!("{}/{name}", dir(directory));
            layer = layer.file(&path, &path);
        }
    }
    layer
}

fn staying_in_upper() -> impl Iterator<Item = String> {
    let names = |directory| (0..STAYING).map(move |number| (directory, staying(number)));
    (0..DIRS).flat_map(names).map(|(directory, [.., upper])| format!("{}/{upper}", dir(directory)))
}

fn add(layer: TreeSpec, path: String, item: Item) -> TreeSpec {
    match item {
        Item::File(text) => layer.file(path, text),
        Item::Link(target) => layer.symlink(path, target),
        Item::Dir(None) => layer.dir(path),
        Item::Dir(Some(text)) => layer.dir(&path).file(format!("{path}/{INSIDE}"), text),
    }
}

/// Writes data without a hole, in which no two blocks are the same.
fn write_large(path: &Path, size: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let mut rng = fastrand::Rng::with_seed(size);
    let mut chunk = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        rng.fill(&mut chunk);
        let part = chunk.get(..usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)).unwrap_or_default();
        file.write_all(part).with_context(|| path.display().to_string())?;
        left -= part.len() as u64;
    }
    Ok(())
}

fn same_content(one: &Path, other: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let (mut first, mut second) = (open(one)?, open(other)?);
    let (mut left, mut right) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    loop {
        left.clear();
        right.clear();
        (&mut first).take(CHUNK as u64).read_to_end(&mut left).with_context(|| one.display().to_string())?;
        (&mut second)
            .take(CHUNK as u64)
            .read_to_end(&mut right)
            .with_context(|| other.display().to_string())?;
        if left != right {
            bail!("{} is not what {} is", one.display(), other.display());
        }
        if left.is_empty() {
            return Ok(());
        }
    }
}

/// Reads what is in a shared directory.
fn read_dir(root: &Path, directory: &str, found: &mut Model) -> Result<()> {
    let path = root.join(directory);
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let name = entry.with_context(|| path.display().to_string())?.file_name();
        let name = format!("{directory}/{}", name.to_string_lossy());
        let item = read_item(&root.join(&name)).with_context(|| name.clone())?;
        if found.insert(name.clone(), item).is_some() {
            bail!("{name} is listed twice");
        }
    }
    Ok(())
}

fn read_item(path: &PathBuf) -> Result<Item> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_file() {
        return Ok(Item::File(fs::read_to_string(path)?));
    }
    if kind.is_symlink() {
        return Ok(Item::Link(fs::read_link(path)?.to_string_lossy().into_owned()));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name());
    }
    match names.as_slice() {
        [] => Ok(Item::Dir(None)),
        [name] if name == INSIDE => Ok(Item::Dir(Some(fs::read_to_string(path.join(INSIDE))?))),
        _ => bail!("holds {names:?}"),
    }
}

fn compare(expected: &Model, found: &Model) -> Result<()> {
    for (path, item) in expected {
        match found.get(path) {
            None => bail!("{path} ({item:?}) is lost"),
            Some(other) if other != item => bail!("{path} is {other:?} instead of {item:?}"),
            Some(_) => {}
        }
    }
    match found.iter().find(|(path, _)| !expected.contains_key(*path)) {
        Some((path, item)) => bail!("{path} ({item:?}) ought not to be there"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(items: &[(&str, Item)]) -> Model {
        items.iter().map(|(path, item)| ((*path).to_owned(), item.clone())).collect()
    }

    #[test]
    fn what_is_lost_or_left_over_or_changed_is_named() {
        let file = |text: &str| Item::File(text.to_owned());
        let expected = model(&[("a", file("1")), ("b", Item::Dir(None))]);
        let differs = |found: &Model| compare(&expected, found).map_err(|cause| cause.to_string());
        assert_eq!(differs(&expected), Ok(()));
        let fault = |found: &[(&str, Item)]| differs(&model(found)).unwrap_err();
        assert_eq!(fault(&[("a", file("1"))]), "b (Dir(None)) is lost");
        assert_eq!(fault(&[("a", file("2"))]), "a is File(\"2\") instead of File(\"1\")");
        let over = [("a", file("1")), ("b", Item::Dir(None)), ("c", file(""))];
        assert_eq!(fault(&over), "c (File(\"\")) ought not to be there");
    }

    #[test]
    fn a_byte_that_differs_in_a_large_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        write_large(&one, 3 << 20).unwrap();
        write_large(&other, 3 << 20).unwrap();
        same_content(&one, &other).unwrap();
        let file = File::options().write(true).open(&other).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"changed!", (2 << 20) + 5).unwrap();
        same_content(&one, &other).unwrap_err();
    }
}
