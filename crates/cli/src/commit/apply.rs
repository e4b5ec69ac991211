//! Applying an upper to a directory.
//!
//! Everything is prepared beside its name and moved there by one rename, its data being on the medium, so that each name
//! has its old or its new content whenever the power fails; a commit that was interrupted is finished by running it
//! again (`stage.rs`). Only directory descriptors are used and no symbolic link is followed: nothing outside the target
//! is touched, whatever the upper and the target contain and whoever changes them meanwhile.

use std::collections::HashMap;
use std::path::Path;

use plyfs_format::{Name, NameBuf, RelPath};
use plyfs_sys::{Dir, DirMut, Errno, Faults, File, FileKind, OFlags, Stat};

use crate::changes::{Item, UpperDir, Visitor, applied, redirected};
use crate::commit::meta::Owners;
use crate::commit::stage::{self, Owner, Stage};
use crate::commit::{guard, meta};
use crate::failure::{Context, Failure, Outcome};

/// Applies the upper at `path` to the directory at `onto`, or finishes doing so. What it has renamed there before is not
/// renamed again.
pub fn apply(path: &Path, onto: &Path, ignore_owner: bool, faults: &Faults) -> Outcome<()> {
    let target = DirMut::open_root(onto).context(|| onto.display().to_string())?;
    let upper = UpperDir::open_over(path, &target)?;
    let identity = applied::identity(&upper.dir).context(|| path.display().to_string())?;
    let root = guard::inode(&target).context(|| onto.display().to_string())?;
    let renamed = renamed(&upper, &mut |directory| {
        let found = guard::inode(&directory.dir).context(|| format!("upper: /{}", directory.path))?;
        if found == root { Err(guard::overlap(path, onto)) } else { Ok(()) }
    })?;
    let stage = Stage::open(&target, Owner { identity: &identity, path }, faults)?;
    let moves = take_renamed(renamed, &target, &stage)?;
    let renamed: Vec<RelPath> = moves.keys().cloned().collect();
    let mut apply = Apply { stage, moves, links: HashMap::new(), ignore_owner };
    apply.directory(&upper, &target, false)?;
    let stage = apply.stage;
    target.sync_filesystem().context(|| "cannot write the target to the medium")?;
    if !renamed.is_empty() {
        stage.point("done").context(|| "cannot finish")?;
        applied::say(path, &upper, &renamed)?;
    }
    stage.finish(&target)?;
    target.sync().context(|| "cannot write the target to the medium")
}

/// The old and the new places of what was renamed.
type Renamed = Vec<(RelPath, RelPath)>;

/// What was renamed, in an order that depends on the upper alone. Each directory of the upper is shown to `visit`.
fn renamed(upper: &UpperDir, visit: &mut Visitor<'_>) -> Outcome<Renamed> {
    let mut renamed = redirected(upper, visit)?;
    // What lies deepest first: it may lie in something else that was renamed.
    renamed.sort_by(|(one, _), (other, _)| depth(other).cmp(&depth(one)).then_with(|| one.cmp(other)));
    Ok(renamed)
}

/// Takes what was renamed away from its old names, unless an interrupted commit has taken all: what is there now has got
/// its new name there. Returns the numbers by the new names.
fn take_renamed(renamed: Renamed, target: &DirMut, stage: &Stage) -> Outcome<HashMap<RelPath, usize>> {
    let describe = || "cannot prepare the commit";
    if !renamed.is_empty() && !stage.has_taken().context(describe)? {
        take_all(&renamed, target, stage)?;
        stage.mark_taken().context(describe)?;
    }
    Ok(renamed.into_iter().enumerate().map(|(number, (_, path))| (path, number)).collect())
}

fn take_all(renamed: &[(RelPath, RelPath)], target: &DirMut, stage: &Stage) -> Outcome<()> {
    for (number, (source, _)) in renamed.iter().enumerate() {
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
    }
    Ok(())
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
        self.stage
            .point("attributes")
            .and_then(|()| meta::give(target, name, upper, name, stat, self.owners(None, 0)))
            .context(|| cannot("set the attributes of", &path))
    }

    fn ensure_directory(&mut self, target: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        self.stage.point("directory")?;
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
            let set_id = target.stat_at(name).context(describe)?.permissions() & meta::SET_ID;
            return meta::give(target, name, upper, name, stat, self.owners(None, set_id)).context(describe);
        }
        let made = match self.links.get(&inode) {
            Some(first) if stat.nlink > 1 => self.stage.link_again(&first.clone())?,
            _ => {
                let before = target.stat_at(name).ok().filter(|before| before.kind() == stat.kind());
                let before = before.map(|before| (before.uid, before.gid));
                self.make(upper, name, stat, before).context(|| cannot("make", &path))?
            }
        };
        self.stage.publish(&made, target, name).context(|| cannot("make", &path))?;
        if stat.nlink > 1 && !self.links.contains_key(&inode) {
            self.links.insert(inode, self.stage.remember(target, name)?);
        }
        Ok(())
    }

    fn owners(&self, before: Option<(u32, u32)>, set_id: u32) -> Owners {
        if self.ignore_owner { Owners::OfTarget { before, set_id } } else { Owners::OfUpper }
    }

    /// Makes a copy of an entry of the upper in the stage, in place of what belonged to `before`.
    fn make(
        &mut self,
        upper: &UpperDir,
        name: Name<'_>,
        stat: &Stat,
        before: Option<(u32, u32)>,
    ) -> Outcome<NameBuf> {
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
        let owners = self.owners(before, 0);
        self.stage.with(&made, |dir, made| meta::give(dir, made, upper, name, stat, owners))?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::CStr;
    use std::path::PathBuf;

    use plyfs_sys::XattrFlags;
    use plyfs_sys::fault::Action;

    use super::*;

    /// A target and an upper over it, in memory where that can have the attributes.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let in_memory = tempfile::tempdir_in("/dev/shm").ok();
            let has_attributes = |place: &tempfile::TempDir| {
                let dir = DirMut::open_root(place.path()).unwrap();
                dir.set_own_xattr(c"user.test", b"y", XattrFlags::empty()).is_ok()
            };
            Self(in_memory.filter(has_attributes).unwrap_or_else(|| tempfile::tempdir().unwrap()))
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
            std::fs::write(self.at(name), text).unwrap();
        }

        fn attribute(&self, name: &str, attr: &CStr, value: &str) {
            let dir = DirMut::open_root(&self.at(name)).unwrap();
            dir.set_own_xattr(attr, value.as_bytes(), XattrFlags::empty()).unwrap();
        }

        fn make_target(&self) {
            match std::fs::remove_dir_all(self.at("target")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
            for (name, text) in [
                ("swap1/one", "1"),
                ("swap2/two", "2"),
                ("dir/one", "a"),
                ("dir/sub/two", "b"),
                ("chain1/f", "c1"),
                ("chain2/f", "c2"),
                ("chain2/more", "c2"),
                ("gone/deep/x", "x"),
                ("opaque/old", "o"),
                ("file", "old"),
            ] {
                self.write(&format!("target/{name}"), text);
            }
        }

        /// swap1 and swap2 exchanged; dir is dir2, without `one` and `sub`, which is at the root; chain1 in the place of
        /// chain2, which is deleted.
        fn make_upper(&self) {
            for (name, text) in [
                ("swap1/new", "n1"),
                ("swap2/.wh.one", ""),
                ("dir2/.wh.one", ""),
                ("dir2/.wh.sub", ""),
                ("dir2/new", "n"),
                (".wh.dir", ""),
                ("sub/two", "bb"),
                ("chain2/g", "g"),
                (".wh.chain1", ""),
                (".wh.gone", ""),
                ("opaque/new", "n"),
                ("file", "new"),
            ] {
                self.write(&format!("upper/{name}"), text);
            }
            std::fs::hard_link(self.at("upper/file"), self.at("upper/opaque/link")).unwrap();
            self.attribute("upper", c"user.overlay.impure", "y");
            self.attribute("upper/opaque", c"user.overlay.opaque", "y");
            for (name, redirect) in [
                ("swap1", "swap2"),
                ("swap2", "swap1"),
                ("dir2", "dir"),
                ("sub", "/dir/sub"),
                ("chain2", "chain1"),
            ] {
                self.attribute(&format!("upper/{name}"), c"user.overlay.redirect", redirect);
            }
        }

        /// The upper as it was before anything was applied.
        fn unmark(&self) {
            let upper = DirMut::open_root(&self.at("upper")).unwrap();
            for name in ["swap1", "swap2", "dir2", "sub", "chain2"] {
                let name = Name::new(name.as_bytes()).unwrap();
                match upper.remove_xattr(name, c"user.overlay.plyfs.committed") {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }

        fn apply(&self, faults: &Faults) -> Outcome<()> {
            apply(&self.at("upper"), &self.at("target"), true, faults)
        }

        fn target(&self) -> BTreeMap<PathBuf, String> {
            let mut found = BTreeMap::new();
            collect(&self.at("target"), &mut found);
            found
        }
    }

    fn collect(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
                found.insert(path, "directory".to_owned());
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
    }

    /// Applies until it crashes at the `nth` change; `false` if there are not so many.
    fn crash(place: &Place, nth: u64) -> bool {
        let faults = Faults::new();
        faults.arm(nth, Action::Crash);
        let applied = place.apply(&faults);
        assert_eq!(applied.is_err(), faults.has_crashed(), "{applied:?}");
        faults.has_crashed()
    }

    fn fresh() -> (Place, BTreeMap<PathBuf, String>) {
        let place = Place::new();
        place.make_upper();
        place.make_target();
        place.apply(&Faults::new()).unwrap();
        let applied = place.target();
        let read = |name: &str| applied.get(&place.at("target").join(name)).map(String::as_str);
        assert_eq!((read("swap1/two"), read("swap1/new"), read("swap2/one")), (Some("2"), Some("n1"), None));
        assert_eq!((read("dir2/one"), read("dir2/new"), read("sub/two")), (None, Some("n"), Some("bb")));
        assert_eq!((read("chain2/f"), read("chain2/more"), read("chain1")), (Some("c1"), None, None));
        assert_eq!((read("opaque/old"), read("opaque/link"), read("gone")), (None, Some("new"), None));
        assert_eq!(read(".plyfs-commit"), None);
        (place, applied)
    }

    #[test]
    fn a_commit_that_stops_at_any_change_is_finished_by_the_next() {
        let (place, applied) = fresh();
        let mut nth = 1;
        loop {
            place.make_target();
            place.unmark();
            if !crash(&place, nth) {
                break;
            }
            place.apply(&Faults::new()).unwrap();
            assert_eq!(place.target(), applied, "stopped at change {nth}");
            nth += 1;
        }
        assert!(nth > 40, "{nth} changes");
    }

    #[test]
    fn a_commit_that_stops_twice_is_finished_by_the_third() {
        let (place, applied) = fresh();
        for first in (1..).step_by(3) {
            for second in (1..).step_by(4) {
                place.make_target();
                place.unmark();
                if !crash(&place, first) {
                    return;
                }
                let crashed = crash(&place, second);
                place.apply(&Faults::new()).unwrap();
                assert_eq!(place.target(), applied, "stopped at changes {first} and {second}");
                if !crashed {
                    break;
                }
            }
        }
    }

    #[test]
    fn an_upper_is_applied_to_a_directory_once_and_to_another_as_well() {
        let (place, applied) = fresh();
        place.apply(&Faults::new()).unwrap();
        assert_eq!(place.target(), applied, "what was exchanged stays so");
        place.write("upper/swap1/later", "l");
        place.write("upper/.wh.opaque", "");
        std::fs::remove_dir_all(place.at("upper/opaque")).unwrap();
        place.apply(&Faults::new()).unwrap();
        let later = place.target();
        assert_eq!(later.get(&place.at("target/swap1/later")).map(String::as_str), Some("l"));
        assert_eq!(later.get(&place.at("target/swap1/two")).map(String::as_str), Some("2"));
        assert!(!later.contains_key(&place.at("target/opaque")), "what is done later is applied, too");
        let (place, applied) = fresh();
        std::fs::rename(place.at("target"), place.at("first")).unwrap();
        place.make_target();
        place.apply(&Faults::new()).unwrap();
        assert_eq!(place.target(), applied);
    }

    #[test]
    fn what_another_commit_has_left_is_not_mixed_up() {
        let (place, _) = fresh();
        place.make_target();
        place.unmark();
        assert!(crash(&place, 20));
        std::fs::create_dir(place.at("other")).unwrap();
        let refused = apply(&place.at("other"), &place.at("target"), true, &Faults::new()).unwrap_err();
        assert!(refused.to_string().contains("upper to this directory was interrupted"), "{refused}");
    }
}
