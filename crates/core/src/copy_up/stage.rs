//! Copy-up: the temporary in work, and its publication.
//!
//! Nothing replaces an existing name. The kernel's counterparts are `ovl_copy_up_tmpfile` and `ovl_copy_up_workdir`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use plyfs_format::{Metacopy, Name, NameBuf, Origin, Private};
use plyfs_sys::{DirMut, Errno, File, FileKind, RenameFlags, Times};

use super::Depth;
use super::meta::LowerObject;
use crate::Result;
use crate::directory::{DirBody, UpperDir};
use crate::lower::LowerAt;
use crate::node::{Leaf, LowerLeaf, Node, Place, UpperLeaf};
use crate::overlay::Overlay;
use crate::protect::{self, Protection};
use crate::upper::{New, Upper, UpperObject};

/// A finished copy that nobody can see yet.
struct Staged {
    /// Its name in work; `None` for an unnamed file.
    temporary: Option<NameBuf>,
    file: Arc<File>,
    ino: u64,
    metacopy: bool,
}

impl Overlay {
    pub(super) fn copy_up_directory(&self, node: &Arc<Node>, dir: &DirBody) -> Result<()> {
        let upper = self.require_upper()?;
        let lower = dir.lowers.first().ok_or(Errno::IO)?;
        let fd = self.lower_dir(lower)?;
        let from = LowerObject { stat: fd.stat()?, at: LowerAt::Dir(fd), layer: lower.layer };
        let temporary = upper.temporary_name()?;
        upper.create_as_mounter(&upper.work, temporary.as_name(), 0o700, New::Dir)?;
        let published = self.finish_directory(node, dir, &from, temporary.as_name());
        if published.is_err() {
            upper.discard(temporary.as_name());
        }
        published
    }

    fn finish_directory(
        &self,
        node: &Arc<Node>,
        dir: &DirBody,
        from: &LowerObject,
        temporary: Name<'_>,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        let staged = Arc::new(upper.work.child_mut(temporary)?);
        let object = UpperObject::Dir(Arc::clone(&staged));
        self.copy_inode_flags(from.at.inode_flags(), &object)?;
        self.copy_metadata(from, &object, true)?;
        let place = node.place().ok_or(Errno::NOENT)?;
        let parent = place.parent.as_dir().ok_or(Errno::IO)?;
        let _change = parent.change.lock();
        if !node.has_place(place.parent.id, &place.name) {
            return Err(Errno::NOENT);
        }
        self.publish(&place.parent, |to| {
            let name = Name::new(&place.name).map_err(|_| Errno::IO)?;
            upper.rename(&upper.work, temporary, to, name, RenameFlags::NOREPLACE)
        })?;
        let mut made = UpperDir::made(false, false);
        made.protection = Protection::new(protect::of_lower(&from.stat));
        made.slot.put(&self.cache, staged);
        if dir.upper.set(Box::new(made)).is_err() {
            return Err(Errno::IO);
        }
        self.mark_listed_upper(parent, &place.name);
        self.index_copy(from, node);
        Ok(())
    }

    /// Enters a directory that was just copied up in the index. What fails here is made up for when it is next looked up.
    fn index_copy(&self, from: &LowerObject, node: &Node) {
        if self.export.is_none() {
            return;
        }
        let enter = || -> Result<()> {
            let (Some(lower), Some(upper)) =
                (from.at.file_handle()?, self.upper_dir(node)?.own_file_handle()?)
            else {
                return Ok(());
            };
            self.index_directory(&Origin::new(self.recorded_uuid(from.layer), lower), upper)
        };
        if let Err(error) = enter() {
            tracing::warn!(%error, "a copied-up directory gets no index entry for now");
        }
    }

    pub(super) fn copy_up_leaf(&self, node: &Arc<Node>, leaf: &Leaf, depth: Depth) -> Result<()> {
        let upper = self.require_upper()?;
        let lower = leaf.lower.as_ref().ok_or(Errno::IO)?;
        let at = self.lower_at(lower)?;
        let stat = at.stat()?;
        let from = LowerObject { stat, at, layer: lower.at.layer() };
        let staged = match stat.kind() {
            FileKind::Regular => self.stage_file(upper, lower, &from, depth)?,
            _ => self.stage_special(upper, lower, &from)?,
        };
        let published = self.publish_leaf(node, leaf, &staged);
        if published.is_err()
            && let Some(temporary) = &staged.temporary
        {
            upper.discard(temporary.as_name());
        }
        published
    }

    fn stage_file(
        &self,
        upper: &Upper,
        lower: &LowerLeaf,
        from: &LowerObject,
        depth: Depth,
    ) -> Result<Staged> {
        let wanted = depth == Depth::Metadata && self.features.metacopy && from.stat.size > 0;
        let mark = if wanted { self.mark_for_copy(lower)? } else { None };
        let metacopy = mark.is_some();
        let (temporary, file) = if upper.abilities.tmpfile {
            (None, upper.stage_unnamed()?)
        } else {
            let name = upper.temporary_name()?;
            let file =
                upper.create_as_mounter(&upper.work, name.as_name(), 0o600, New::File)?.ok_or(Errno::IO)?;
            (Some(name), file)
        };
        let file = Arc::new(file);
        let filled = self.fill_file(upper, lower, from, depth, &file, mark);
        let ino = filled.and_then(|()| file.stat().map(|stat| stat.ino));
        match ino {
            Ok(ino) => Ok(Staged { temporary, file, ino, metacopy }),
            Err(error) => {
                if let Some(name) = temporary {
                    upper.discard(name.as_name());
                }
                Err(error)
            }
        }
    }

    fn fill_file(
        &self,
        upper: &Upper,
        lower: &LowerLeaf,
        from: &LowerObject,
        depth: Depth,
        file: &Arc<File>,
        mark: Option<Metacopy>,
    ) -> Result<()> {
        let object = UpperObject::Leaf(Arc::clone(file));
        let metacopy = mark.is_some();
        let data = if let Some(mark) = mark {
            upper.truncate(file, from.stat.size)?;
            self.set_private(&object, Private::Metacopy, &mark.encode())?;
            None
        } else {
            let keep = match depth {
                Depth::Metadata => u64::MAX,
                Depth::Data { keep } => keep,
            };
            self.fill(lower, from.stat.size, file, keep)?
        };
        // Of the file itself, which need not be the one that has the data, and is open already if it is.
        let flags = match data.filter(|_| lower.data.is_none()) {
            Some(data) => data.inode_flags(),
            None => from.at.inode_flags(),
        };
        self.copy_inode_flags(flags, &object)?;
        self.copy_metadata(from, &object, !lower.hard_linked || self.is_indexed(lower))?;
        if self.features.sync && !metacopy {
            upper.sync(file, false)?;
        }
        Ok(())
    }

    fn stage_special(&self, upper: &Upper, lower: &LowerLeaf, from: &LowerObject) -> Result<Staged> {
        let temporary = upper.temporary_name()?;
        let name = temporary.as_name();
        let target;
        let new = if from.stat.kind() == FileKind::Symlink {
            target = from.at.readlink()?;
            New::Symlink(&target)
        } else {
            New::Node { rdev: (from.stat.rdev_major, from.stat.rdev_minor) }
        };
        upper.create_as_mounter(&upper.work, name, (from.stat.mode & S_IFMT) | 0o600, new)?;
        let finish = || {
            let file = Arc::new(upper.work.open_path_mut(name)?);
            let with_origin = !lower.hard_linked || self.is_indexed(lower);
            self.copy_metadata(from, &UpperObject::Leaf(Arc::clone(&file)), with_origin)?;
            let ino = file.stat()?.ino;
            Ok((file, ino))
        };
        match finish() {
            Ok((file, ino)) => Ok(Staged { temporary: Some(temporary), file, ino, metacopy: false }),
            Err(error) => {
                upper.discard(name);
                Err(error)
            }
        }
    }

    /// Gives the staged copy the node's name. A node that was unlinked meanwhile keeps its copy by descriptor only.
    fn publish_leaf(&self, node: &Arc<Node>, leaf: &Leaf, staged: &Staged) -> Result<()> {
        let upper = self.require_upper()?;
        let seen = node.place();
        let guard = seen.as_ref().and_then(|place| place.parent.as_dir()).map(|dir| dir.change.lock());
        let place = seen.as_ref().filter(|place| node.has_place(place.parent.id, &place.name));
        if let Some(lower) = leaf.lower.as_ref().filter(|lower| self.is_indexed(lower))
            && (place.is_some() || !self.is_retired(lower)?)
        {
            return self.publish_indexed(node, leaf, staged, place);
        }
        match place {
            Some(place) => self.publish(&place.parent, |to| {
                let name = Name::new(&place.name).map_err(|_| Errno::IO)?;
                match &staged.temporary {
                    None => upper.link_file(&staged.file, to, name),
                    Some(temporary) => {
                        upper.rename(&upper.work, temporary.as_name(), to, name, RenameFlags::NOREPLACE)
                    }
                }
            })?,
            None if guard.is_some() && node.place().is_some() => return Err(Errno::AGAIN),
            None => self.keep_unnamed(upper, leaf, staged)?,
        }
        let protection =
            Protection::new(leaf.lower.as_ref().map(|lower| lower.protection).unwrap_or_default());
        let state = UpperLeaf {
            ino: staged.ino,
            metacopy: AtomicBool::new(staged.metacopy),
            index: None,
            protection,
        };
        leaf.upper.set(Box::new(state)).map_err(|_| Errno::IO)?;
        if leaf.lower.as_ref().is_some_and(|lower| lower.hard_linked) {
            node.set_ino(self.upper_ino(staged.ino));
        }
        if let Some((dir, name)) = place.and_then(|place| place.parent.as_dir().zip(Some(&place.name))) {
            self.mark_listed_upper(dir, name);
        }
        Ok(())
    }

    /// Publishes a copy for all its names: in the index first, then under the name that is known.
    fn publish_indexed(
        &self,
        node: &Arc<Node>,
        leaf: &Leaf,
        staged: &Staged,
        place: Option<&Place>,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        let object = UpperObject::Leaf(Arc::clone(&staged.file));
        let _index = upper.index_changes.lock();
        let entry = self.publish_in_index(leaf, &object, staged.temporary.as_ref().map(NameBuf::as_name))?;
        let protection =
            Protection::new(leaf.lower.as_ref().map(|lower| lower.protection).unwrap_or_default());
        let state =
            UpperLeaf { ino: staged.ino, metacopy: staged.metacopy.into(), index: Some(entry), protection };
        leaf.upper.set(Box::new(state)).map_err(|_| Errno::IO)?;
        match place {
            Some(place) => self.own_alias(&place.parent, &place.name, node),
            None => Ok(()),
        }
    }

    fn keep_unnamed(&self, upper: &Upper, leaf: &Leaf, staged: &Staged) -> Result<()> {
        leaf.usage().orphan.set(Arc::clone(&staged.file)).map_err(|_| Errno::IO)?;
        if let Some(temporary) = &staged.temporary {
            upper.discard(temporary.as_name());
        }
        Ok(())
    }

    /// Publishes a copy in its parent: the parent is marked impure before, and keeps its times where that can be. Once
    /// this returns an error, nothing was published.
    pub(crate) fn publish(
        &self,
        parent: &Arc<Node>,
        publish: impl FnOnce(&DirMut) -> Result<()>,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        let dir = self.upper_dir(parent)?;
        self.mark_impure(parent)?;
        let before = dir.stat()?;
        publish(&dir)?;
        if let Err(error) = upper.utimens(&UpperObject::Dir(dir), Times::of(&before)) {
            tracing::warn!(%error, "a directory has new times after copy-up in it");
        }
        Ok(())
    }

    /// Records on disk that a directory may hold copies of lower objects.
    pub(crate) fn mark_impure(&self, node: &Arc<Node>) -> Result<()> {
        let Some(state) = node.as_dir().and_then(|dir| dir.upper.get()) else { return Err(Errno::IO) };
        if state.impure.load(Ordering::Acquire) {
            return Ok(());
        }
        let object = UpperObject::Dir(self.upper_dir(node)?);
        self.set_private(&object, Private::Impure, b"y")?;
        state.impure.store(true, Ordering::Release);
        Ok(())
    }
}

const S_IFMT: u32 = 0o170_000;
