//! Files that have metadata only: which they are, where their data lies, and whether it is the right data.
//!
//! The data of such a file lies in a layer below, under the same name or where a redirect says, or in a data-only layer,
//! which is asked when the data is first opened. Makes no such file (`copy_up` does). The kernel's counterparts are
//! `ovl_check_metacopy_xattr`, `ovl_lookup_data_layers` and `ovl_validate_verity`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use plyfs_format::spec::Verity;
use plyfs_format::{
    Metacopy, MetacopyDigest, Name, Private, Redirect, RelPath, VerityAlgorithm, VerityHasher,
};
use plyfs_sys::{Dir, Errno, File, FileKind, OFlags, Stat};

use crate::Result;
use crate::directory::DirBody;
use crate::layer::LayerDir;
use crate::merge::{Descent, Target};
use crate::node::{LowerLeaf, LowerPlace, SharedName};
use crate::overlay::Overlay;

/// Unit of reading for a digest, in bytes.
const PIECE: usize = 1 << 17;

/// Where the data of a metadata-only file lies. Lower layers do not change, so it is good for ever.
#[derive(Debug)]
pub(crate) struct LowerData {
    place: DataPlace,
    /// What the topmost metadata says that the data must be.
    digest: MetacopyDigest,
    verified: AtomicBool,
}

#[derive(Debug)]
enum DataPlace {
    /// In a merged layer.
    Merged { dir: Arc<LayerDir>, name: SharedName },
    /// At this path of the first data-only layer that has it; asked at the first open.
    DataOnly { path: RelPath, layer: OnceLock<usize> },
}

impl Overlay {
    /// What an upper file says about data below; `None` if it holds its data.
    ///
    /// # Errors
    /// `EPERM` where following is not allowed; `EIO` for a malformed mark.
    pub(crate) fn upper_mark(&self, fd: &Dir, name: Name<'_>) -> Result<Option<Metacopy>> {
        match self.read_mark(fd, name)? {
            Some(_) if !self.features.metacopy => Err(Errno::PERM),
            mark => Ok(mark),
        }
    }

    /// The same of a lower file. Where nothing of the kind is expected, only a file with holes is asked.
    pub(crate) fn lower_mark(&self, fd: &Dir, name: Name<'_>, stat: &Stat) -> Result<Option<Metacopy>> {
        let expected = self.features.metacopy || !self.data_layers.is_empty();
        if stat.kind() != FileKind::Regular || !(expected || is_hollow(stat)) {
            return Ok(None);
        }
        match self.read_mark(fd, name)? {
            Some(_) if !expected => Err(Errno::PERM),
            mark => Ok(mark),
        }
    }

    fn read_mark(&self, fd: &Dir, name: Name<'_>) -> Result<Option<Metacopy>> {
        let Some(value) = fd.get_xattr(name, self.namespace.name(Private::Metacopy))? else {
            return Ok(None);
        };
        Metacopy::parse(&value).map(Some).map_err(|error| {
            tracing::warn!(name = %name.as_os_str().display(), %error, "metadata-only file");
            Errno::IO
        })
    }

    /// The lower file whose metadata an upper metacopy was copied from, with the place of its data.
    pub(crate) fn below_upper(
        &self,
        parent: &DirBody,
        fd: &Dir,
        name: Name<'_>,
        mark: &Metacopy,
    ) -> Result<LowerLeaf> {
        let mut descent = Descent::child(name, 0);
        if let Some(redirect) = self.file_redirect(fd, name)? {
            if !self.features.follow_redirect_in_upper {
                return Err(Errno::PERM);
            }
            descent.redirect(redirect);
        }
        self.chase(parent, descent, None, mark)
    }

    /// Adds the place of its data to a lower file that has none itself.
    pub(crate) fn below_lower(
        &self,
        parent: &DirBody,
        name: Name<'_>,
        leaf: LowerLeaf,
        mark: &Metacopy,
    ) -> Result<LowerLeaf> {
        let LowerPlace::Named { dir, .. } = &leaf.at else { return Err(Errno::IO) };
        let mut descent = Descent::child(name, dir.layer + 1);
        let fd = dir.open(&self.lowers, &self.cache)?;
        self.follow_lower(&fd, name, &mut descent)?;
        self.chase(parent, descent, Some(leaf), mark)
    }

    /// Goes down from mark to mark to the data. The topmost lower file is what the result names.
    fn chase(
        &self,
        parent: &DirBody,
        mut descent: Descent,
        mut top: Option<LowerLeaf>,
        mark: &Metacopy,
    ) -> Result<LowerLeaf> {
        let with_data = |leaf: LowerLeaf, place| {
            let data = LowerData { place, digest: mark.digest.clone(), verified: AtomicBool::new(false) };
            LowerLeaf { data: Some(Arc::new(data)), ..leaf }
        };
        while let Some((base, path)) = self.next_candidate(parent, &mut descent) {
            let Some((dir, stat)) = self.walk_to(&base, &path, &mut descent)? else { continue };
            let Some(name) = path.file_name() else { break };
            if stat.kind() != FileKind::Regular {
                break;
            }
            let fd = dir.open(&self.lowers, &self.cache)?;
            let shared: SharedName = name.as_bytes().into();
            let more = self.lower_mark(&fd, name, &stat)?.is_some();
            let place = DataPlace::Merged { dir: Arc::clone(&dir), name: Arc::clone(&shared) };
            let protection = crate::protect::of_lower(&stat);
            let at = LowerPlace::Named { dir, name: shared };
            let found = LowerLeaf { at, hard_linked: stat.nlink > 1, protection, data: None };
            let leaf = top.take().unwrap_or(found);
            if !more {
                return Ok(with_data(leaf, place));
            }
            top = Some(leaf);
            self.follow_lower(&fd, name, &mut descent)?;
        }
        match (top, descent.target) {
            (Some(leaf), Target::Path(path)) if !self.data_layers.is_empty() => {
                Ok(with_data(leaf, DataPlace::DataOnly { path, layer: OnceLock::new() }))
            }
            _ => {
                tracing::warn!("a metadata-only file has no data in any layer below");
                Err(Errno::IO)
            }
        }
    }

    /// Goes on where a lower metadata-only file says. Where marks in lower layers are not believed, only a data-only
    /// layer may be meant: what lies there cannot be reached otherwise.
    fn follow_lower(&self, fd: &Dir, name: Name<'_>, descent: &mut Descent) -> Result<()> {
        let redirect = self.file_redirect(fd, name)?;
        let absolute = matches!(redirect, Some(Redirect::Absolute(_)));
        if !self.features.follow_metacopy_in_lower {
            if !absolute || self.data_layers.is_empty() {
                return Err(Errno::PERM);
            }
            descent.stop = true;
        } else if redirect.is_some() && !self.features.follow_redirect_in_lower {
            return Err(Errno::PERM);
        }
        if let Some(redirect) = redirect {
            descent.redirect(redirect);
        }
        Ok(())
    }

    fn file_redirect(&self, fd: &Dir, name: Name<'_>) -> Result<Option<Redirect>> {
        let value = fd.get_xattr(name, self.namespace.name(Private::Redirect))?;
        value.map(|value| Redirect::parse(&value).map_err(|_| Errno::INVAL)).transpose()
    }

    /// The data of a metadata-only file, opened for reading and, at the first time, checked.
    pub(crate) fn open_data(&self, data: &LowerData) -> Result<File> {
        let file = match &data.place {
            DataPlace::Merged { dir, name } => {
                let name = Name::new(name).map_err(|_| Errno::IO)?;
                self.lower_dir(dir)?.open_file(name, OFlags::RDONLY)?
            }
            DataPlace::DataOnly { path, layer } => {
                let found = match layer.get() {
                    Some(found) => *found,
                    None => {
                        let found = self.find_data_layer(path)?.0;
                        *layer.get_or_init(|| found)
                    }
                };
                self.data_layers.get(found).ok_or(Errno::IO)?.root.open_file_at(path, OFlags::RDONLY)?
            }
        };
        if self.features.verity != Verity::Off && !data.verified.load(Ordering::Acquire) {
            self.check_digest(&data.digest, &file)?;
            data.verified.store(true, Ordering::Release);
        }
        Ok(file)
    }

    /// Allocated blocks of the data that a lower file shows, which has `size` bytes. Data that was never opened is not
    /// looked for: it counts as if it had no holes.
    pub(crate) fn data_blocks(&self, lower: &LowerLeaf, size: u64) -> Result<u64> {
        let whole = size.div_ceil(512);
        let (dir, name) = match lower.data.as_deref().map(|data| &data.place) {
            None => return self.lower_at(lower)?.stat().map(|stat| stat.blocks),
            Some(DataPlace::Merged { dir, name }) => (dir, name),
            Some(DataPlace::DataOnly { path, layer }) => {
                let layer = layer.get().and_then(|layer| self.data_layers.get(*layer));
                return layer.map_or(Ok(whole), |layer| layer.root.stat_path(path).map(|stat| stat.blocks));
            }
        };
        Ok(self.lower_dir(dir)?.stat_at(Name::new(name).map_err(|_| Errno::IO)?)?.blocks)
    }

    /// The mark for a copy of a lower file's metadata; `None` if the copy must have its data, because its digest would
    /// have to be recorded and is not kept by the file system.
    pub(crate) fn mark_for_copy(&self, lower: &LowerLeaf) -> Result<Option<Metacopy>> {
        let digest = match (self.features.verity, lower.data.as_deref()) {
            (Verity::Off, _) => return Ok(Some(Metacopy::default())),
            (_, Some(data)) if data.digest != MetacopyDigest::None => Some(data.digest.clone()),
            _ => self.open_lower(lower)?.verity_digest()?,
        };
        match digest {
            None if self.features.verity == Verity::Require => Ok(None),
            digest => Ok(Some(Metacopy { flags: 0, digest: digest.unwrap_or_default() })),
        }
    }

    fn find_data_layer(&self, path: &RelPath) -> Result<(usize, Stat)> {
        for (position, layer) in self.data_layers.iter().enumerate() {
            match layer.root.stat_path(path) {
                Ok(stat) if stat.kind() == FileKind::Regular && stat.mount_id == layer.mount_id => {
                    return Ok((position, stat));
                }
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                Err(error) => return Err(error),
            }
        }
        tracing::warn!(path = %path.as_os_str().display(), "no data-only layer has the data of a file");
        Err(Errno::IO)
    }

    fn check_digest(&self, wanted: &MetacopyDigest, file: &File) -> Result<()> {
        if *wanted == MetacopyDigest::None {
            return match self.features.verity {
                Verity::Require => {
                    tracing::warn!("verity=require: a metadata-only file has no digest");
                    Err(Errno::IO)
                }
                _ => Ok(()),
            };
        }
        let actual = match file.verity_digest()? {
            Some(kept) => kept,
            None => compute_digest(wanted, file)?,
        };
        if actual == *wanted {
            return Ok(());
        }
        tracing::warn!("the data of a metadata-only file has another digest than is recorded");
        Err(Errno::IO)
    }
}

/// The digest by the algorithm that `wanted` names.
fn compute_digest(wanted: &MetacopyDigest, file: &File) -> Result<MetacopyDigest> {
    let algorithm = match wanted {
        MetacopyDigest::Sha256(_) => VerityAlgorithm::Sha256,
        MetacopyDigest::Sha512(_) => VerityAlgorithm::Sha512,
        _ => return Ok(MetacopyDigest::None),
    };
    let mut hasher = VerityHasher::new(algorithm);
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let count = file.pread(&mut piece, offset)?;
        hasher.update(piece.get(..count).ok_or(Errno::IO)?);
        offset += count as u64;
        if count < PIECE {
            return Ok(hasher.finish());
        }
    }
}

/// Whether a file has fewer blocks than its size needs, as one without data does. (One attribute block may hide that for a
/// small file.)
fn is_hollow(stat: &Stat) -> bool {
    stat.size > 0 && stat.blocks < stat.size.div_ceil(512)
}
