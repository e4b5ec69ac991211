//! Applying an upper to a directory.
//!
//! Everything is prepared beside its name and moved there by one rename, its data being on the medium, so that each name
//! has its old or its new content whenever the power fails; a commit that was interrupted is finished by running it
//! again. Only directory descriptors are used and no symbolic link is followed: nothing outside the target is touched,
//! whatever the upper and the target contain and whoever changes them meanwhile.

use std::collections::HashMap;
use std::path::Path;

use plyfs_format::{Name, NameBuf, RelPath};
use plyfs_sys::{Dir, DirMut, Errno, File, FileKind, OFlags, Stat};

use crate::changes::{Item, UpperDir, redirected};
use crate::commit::meta;
use crate::commit::stage::{self, Stage};
use crate::failure::{Context, Failure, Outcome};

/// Applies the upper at `upper` to the directory at `onto`.
pub fn apply(upper: &Path, onto: &Path, ignore_owner: bool) -> Outcome<()> {
    let target = DirMut::open_root(onto).context(|| onto.display().to_string())?;
    let upper = UpperDir::open_root(upper)?;
    let stage = Stage::open(&target)?;
    let moves = take_renamed(&upper, &target, &stage)?;
    let mut apply = Apply { stage, moves, links: HashMap::new(), ignore_owner };
    apply.directory(&upper, &target, false)?;
    let stage = apply.stage;
    target.sync_filesystem().context(|| "cannot write the target to the medium")?;
    stage.finish(&target)?;
    target.sync().context(|| "cannot write the target to the medium")
}

/// Takes what was renamed away from its old names, what lies deepest first: it may lie in something else that was renamed.
/// Returns the numbers by the new names.
fn take_renamed(upper: &UpperDir, target: &DirMut, stage: &Stage) -> Outcome<HashMap<RelPath, usize>> {
    let mut renamed = redirected(upper)?;
    renamed.sort_by(|(one, _), (other, _)| depth(other).cmp(&depth(one)).then_with(|| one.cmp(other)));
    let mut moves = HashMap::new();
    for (number, (source, path)) in renamed.into_iter().enumerate() {
        let describe = || format!("/{source}: cannot rename it");
        let (Some(parent), Some(name)) = (source.parent(), source.file_name()) else {
            return Err(Failure::new("a redirect to the root itself; the upper is damaged"));
        };
        match target.open_dir_mut(&parent) {
            Ok(parent) => stage.take(number, &parent, name).context(describe)?,
            // Taken by the commit before, with the directory around it.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).context(describe),
        }
        moves.insert(path, number);
    }
    Ok(moves)
}

fn depth(path: &RelPath) -> usize {
    path.components().count()
}

struct Apply {
    stage: Stage,
    /// What was renamed: the new name, and its number in the stage.
    moves: HashMap<RelPath, usize>,
    /// The first name of each file of the upper with several, by device and inode number.
    links: HashMap<(u64, u64), NameBuf>,
    ignore_owner: bool,
}

impl Apply {
    /// `replaced`: what the target has here and the upper has not is to go.
    fn directory(&mut self, upper: &UpperDir, target: &DirMut, replaced: bool) -> Outcome<()> {
        let replaced = replaced || upper.is_opaque()?;
        let items = upper.items()?;
        if replaced {
            self.remove_hidden(&items, upper, target)?;
        }
        for item in &items {
            let name = item.name().as_name();
            let path = upper.path.join(name);
            match item {
                Item::Whiteout(_) => {
                    self.stage.take_away(target, name).context(|| cannot("remove", &path))?
                }
                Item::Plain(_, stat) if stat.is_dir() => {
                    self.subdirectory(upper, name, stat, target, replaced)?
                }
                Item::Plain(_, stat) => self.leaf(upper, name, stat, target)?,
            }
        }
        target.sync().context(|| cannot("write", &upper.path))
    }

    fn remove_hidden(&mut self, items: &[Item], upper: &UpperDir, target: &DirMut) -> Outcome<()> {
        let there = stage::names(target).context(|| cannot("list", &upper.path))?;
        let kept = |name: &NameBuf| items.binary_search_by(|item| item.name().cmp(name)).is_ok();
        for name in there.iter().filter(|name| !kept(name) && name.as_bytes() != stage::NAME) {
            self.stage
                .take_away(target, name.as_name())
                .context(|| cannot("remove", &upper.path.join(name.as_name())))?;
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        upper: &UpperDir,
        name: Name<'_>,
        stat: &Stat,
        target: &DirMut,
        replaced: bool,
    ) -> Outcome<()> {
        let path = upper.path.join(name);
        let moved = self.moves.get(&path).copied();
        if let Some(number) = moved {
            self.stage.give(number, target, name).context(|| cannot("rename", &path))?;
        }
        self.ensure_directory(target, name).context(|| cannot("make", &path))?;
        let child = target.child_mut(name).context(|| cannot("open", &path))?;
        self.directory(&upper.child(name)?, &child, replaced && moved.is_none())?;
        meta::give(target, name, upper, name, stat, self.ignore_owner)
            .context(|| cannot("set the attributes of", &path))
    }

    fn ensure_directory(&mut self, target: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        match target.stat_at(name) {
            Ok(stat) if stat.is_dir() => Ok(()),
            Ok(_) => {
                self.stage.take_away(target, name)?;
                target.create_dir(name, 0o700)
            }
            Err(Errno::NOENT) => target.create_dir(name, 0o700),
            Err(error) => Err(error),
        }
    }

    fn leaf(&mut self, upper: &UpperDir, name: Name<'_>, stat: &Stat, target: &DirMut) -> Outcome<()> {
        let path = upper.path.join(name);
        let inode = (stat.dev(), stat.ino);
        if let Some(number) = self.moves.get(&path) {
            self.stage.give(*number, target, name).context(|| cannot("rename", &path))?;
        }
        if upper.is_metacopy(name, stat)? {
            let describe = || cannot("set the attributes of", &path);
            return meta::give(target, name, upper, name, stat, self.ignore_owner).context(describe);
        }
        let made = match self.links.get(&inode) {
            Some(first) if stat.nlink > 1 => self.stage.link_again(&first.clone())?,
            _ => self.make(upper, name, stat).context(|| cannot("make", &path))?,
        };
        self.stage.publish(&made, target, name).context(|| cannot("make", &path))?;
        if stat.nlink > 1 && !self.links.contains_key(&inode) {
            self.links.insert(inode, self.stage.remember(target, name)?);
        }
        Ok(())
    }

    /// Makes a copy of an entry of the upper in the stage.
    fn make(&mut self, upper: &UpperDir, name: Name<'_>, stat: &Stat) -> Outcome<NameBuf> {
        let made = match stat.kind() {
            FileKind::Regular => {
                let (made, file) = self.stage.make_file()?;
                copy_data(&upper.dir, name, stat, &file).context(|| "cannot copy its data")?;
                made
            }
            FileKind::Symlink => {
                let link = upper.dir.readlink(name).context(|| "cannot read it")?;
                self.stage.make(|dir, made| dir.symlink(&link, made))?
            }
            _ => self.stage.make(|dir, made| dir.mknod(made, stat.mode & !0o7000, stat.rdev()))?,
        };
        let ignore_owner = self.ignore_owner;
        self.stage.with(&made, |dir, made| meta::give(dir, made, upper, name, stat, ignore_owner))?;
        if stat.kind() == FileKind::Regular {
            self.stage.sync_file(&made)?;
        }
        Ok(made)
    }
}

fn copy_data(upper: &Dir, name: Name<'_>, stat: &Stat, to: &File) -> plyfs_sys::Result<()> {
    let from = upper.open_file(name, OFlags::RDONLY)?;
    File::copy_data(&from, to, stat.size).map(drop)
}

fn cannot(what: &str, path: &RelPath) -> String {
    format!("cannot {what} /{path}")
}
