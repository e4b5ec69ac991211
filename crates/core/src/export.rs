//! Node ids that last (`nfs_export=on`): a file handle of the mount leads to its object also after the front end forgot it,
//! and after a remount.
//!
//! FUSE makes file handles of the node's id and asks for what it no longer knows by that id alone. So an id *is* a handle
//! here: which file system, which inode there, and that inode's generation. Whose inode it is says a bit: that of the lower
//! object, as long as the object was not copied up or has an entry in the index, else that of the upper one; so that the
//! id stays the same across copy-up, by the same rule as the kernel's handles. What cannot be put so (an inode number that is
//! too large, a directory of a damaged stack) gets an id that does not last.
//!
//! A handle states a generation too, which the kernel compares with what it is told: a keyed hash of the id, so that who is
//! handed handles (an NFS client) cannot make others: to a file beside the layers, or to a lower file as if it were of upper.
//!
//! Owns ids and what they are made of; the way back is in `recover.rs`. The kernel's counterpart is `ovl_encode_fh`.

use plyfs_format::origin::Parsed;
use plyfs_format::{FileHandle, Name, NameBuf, Origin, Private};
use plyfs_sys::{Dir, Errno};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::index::IndexEntry;
use crate::ino::FsIndex;
use crate::layer::LowerLayer;
use crate::merge::Object;
use crate::node::Node;
use crate::object::NodeId;
use crate::overlay::Overlay;
use crate::table::FLEETING;
use crate::upper::{Upper, WhiteoutForm};

/// What lasting ids are made of in this stack.
#[derive(Debug)]
pub(crate) struct Export {
    /// How the handles of each file system look; the upper's is the first.
    forms: Vec<Form>,
    /// Bits of an id that say which file system.
    fs_bits: u32,
    /// What generations are made with.
    key: Key,
}

/// What only this stack knows, so that nobody can make a handle of his own that it believes: whoever exports the mount lets
/// others choose the bytes of handles.
#[derive(Debug)]
struct Key {
    /// The same at each mount.
    lasting: [u8; 32],
    /// Of this mount: an id that does not last may have been another object's before.
    fleeting: [u8; 16],
}

/// What an id names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Named {
    pub in_upper: bool,
    pub fs: FsIndex,
    pub handle: FileHandle,
}

/// The layout of a file system's handles that consist of an inode number and a generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// `FILEID_INO32_GEN`: ext4, f2fs, and xfs with 32-bit inode numbers.
    Ino32,
    /// `FILEID_INO64_GEN` of xfs.
    Ino64,
    /// tmpfs: the generation, then both halves of the number.
    Tmpfs,
    /// btrfs, in one subvolume.
    Btrfs { root: u64 },
}

impl Export {
    /// For a stack on `filesystems` file systems; `None`, with the reason logged, where ids cannot last.
    pub fn of(lowers: &[LowerLayer], upper: Option<&Upper>, filesystems: usize, uuid: bool) -> Option<Self> {
        match Self::try_of(lowers, upper, filesystems, uuid) {
            Ok(export) => Some(export),
            Err(reason) => {
                tracing::warn!("nfs_export=off: {reason}");
                None
            }
        }
    }

    fn try_of(
        lowers: &[LowerLayer],
        upper: Option<&Upper>,
        filesystems: usize,
        uuid: bool,
    ) -> core::result::Result<Self, String> {
        if upper
            .is_some_and(|upper| !upper.abilities.xattr || upper.abilities.whiteouts != WhiteoutForm::Device)
        {
            return Err("upperdir takes no whiteout devices or attributes".to_owned());
        }
        let mut found: Vec<Option<(Form, [u8; 16])>> = vec![None; filesystems];
        let upper_root = upper.map(|upper| (&*upper.root, FsIndex(0), &*upper.path));
        let roots = lowers.iter().map(|layer| (&layer.root, layer.fs, &*layer.path));
        for (root, fs, path) in upper_root.into_iter().chain(roots) {
            let fail = |errno: Errno| format!("{}: {errno}", path.display());
            let Some(place) = found.get_mut(usize::from(fs.0)) else { continue };
            let id = if uuid { root.filesystem_uuid().map_err(fail)?.unwrap_or_default() } else { [0; 16] };
            let form = Form::of(root).map_err(fail)?;
            let form = form.ok_or_else(|| format!("{}: no file handles of a known kind", path.display()))?;
            place.get_or_insert((form, id));
        }
        let known: Vec<_> = found.into_iter().flatten().collect();
        let forms: Vec<Form> = known.iter().map(|(form, _)| *form).collect();
        if forms.len() != filesystems {
            return Err("a data-only layer lies on a file system of its own".to_owned());
        }
        if known.iter().enumerate().any(|(at, one)| known.iter().skip(at + 1).any(|other| one == other)) {
            return Err("two of the layers' file systems have the same UUID".to_owned());
        }
        let fs_bits = if filesystems <= 1 { 0 } else { (filesystems - 1).ilog2() + 1 };
        let key = Key::of(lowers, upper).map_err(|errno| format!("the layers' roots: {errno}"))?;
        Ok(Self { forms, fs_bits, key })
    }

    /// What a handle states beside an id.
    pub fn generation(&self, id: NodeId) -> u32 {
        // Of the root it is fixed.
        if id == NodeId::ROOT { 0 } else { self.key.sign(id) }
    }

    /// `0`, in upper, file system, generation, inode number, from the top bit down. The bit below "in upper" is zero.
    fn id(&self, in_upper: bool, fs: FsIndex, handle: &FileHandle) -> Option<NodeId> {
        let (ino, generation) = self.forms.get(usize::from(fs.0))?.parse(handle)?;
        let ino_bits = self.ino_bits();
        if ino >> ino_bits != 0 {
            return None;
        }
        let upper_bit = u64::from(in_upper) << 62;
        let fs = u64::from(fs.0) << (ino_bits + 32);
        let id = upper_bit | fs | u64::from(generation) << ino_bits | ino;
        (id > NodeId::ROOT.0).then_some(NodeId(id))
    }

    /// The reverse of [`id`](Self::id); `None` for what it never gives.
    pub fn parse(&self, id: NodeId) -> Option<Named> {
        if id.0 & FLEETING != 0 || id.0 <= NodeId::ROOT.0 {
            return None;
        }
        let ino_bits = self.ino_bits();
        let ino = id.0 & ((1 << ino_bits) - 1);
        let generation = (id.0 >> ino_bits) as u32;
        let in_upper = id.0 >> 62 & 1 != 0;
        let fs = FsIndex(u16::try_from(id.0 >> (ino_bits + 32) & ((1 << (self.fs_bits + 1)) - 1)).ok()?);
        let handle = self.forms.get(usize::from(fs.0))?.build(ino, generation)?;
        Some(Named { in_upper, fs, handle })
    }

    const fn ino_bits(&self) -> u32 {
        61 - 32 - self.fs_bits
    }
}

impl Key {
    /// Made of what no exported object tells: handles, with their random generations, and times of the directories that
    /// nobody sees.
    fn of(lowers: &[LowerLayer], upper: Option<&Upper>) -> Result<Self> {
        let mut hash = Sha256::new();
        let hidden = upper.map(|upper| [Some(&*upper.root), upper.index.as_deref()]);
        let shown = lowers.first().map(|layer| [Some(&layer.root), None]);
        for dir in hidden.or(shown).into_iter().flatten().flatten() {
            if let Some(handle) = dir.own_file_handle()? {
                hash.update(handle.bytes());
            }
            if let Some(born) = dir.stat()?.btime {
                hash.update(born.sec.to_ne_bytes());
                hash.update(born.nsec.to_ne_bytes());
            }
        }
        Ok(Self { lasting: hash.finalize().into(), fleeting: plyfs_sys::random::uuid()? })
    }

    fn sign(&self, id: NodeId) -> u32 {
        let mut hash = Sha256::new().chain_update(self.lasting);
        if id.0 & FLEETING != 0 {
            hash.update(self.fleeting);
        }
        let [a, b, c, d, ..]: [u8; 32] = hash.chain_update(id.0.to_ne_bytes()).finalize().into();
        u32::from_ne_bytes([a, b, c, d])
    }
}

impl Form {
    /// Finds out, and tries, how a root's file system makes its handles. `EPERM` without the privilege to open one.
    fn of(root: &Dir) -> Result<Option<Self>> {
        const EXT4: u64 = 0xef53;
        const F2FS: u64 = 0xf2f5_2010;
        const XFS: u64 = 0x5846_5342;
        const TMPFS: u64 = 0x0102_1994;
        const BTRFS: u64 = 0x9123_683e;
        let Some(handle) = root.own_file_handle()? else { return Ok(None) };
        let bytes = handle.bytes();
        let form = match (root.fs_magic()?, handle.kind(), bytes.len()) {
            (EXT4 | F2FS | XFS, 1, 8) => Self::Ino32,
            (XFS, 0x81, 12) => Self::Ino64,
            (TMPFS, 1, 12) => Self::Tmpfs,
            (BTRFS, 0x4d, 20) => match bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()) {
                Some(root) => Self::Btrfs { root: u64::from_ne_bytes(root) },
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let rebuilt = form.parse(&handle).and_then(|(ino, generation)| form.build(ino, generation));
        root.open_dir_handle(&handle)?;
        Ok((rebuilt.as_ref() == Some(&handle)).then_some(form))
    }

    /// Inode number and generation.
    fn parse(self, handle: &FileHandle) -> Option<(u64, u32)> {
        let bytes = handle.bytes();
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        match (self, handle.kind(), bytes.len()) {
            (Self::Ino32, 1, 8) => Some((word(0)?.into(), word(4)?)),
            (Self::Ino64, 0x81, 12) => Some((long(0)?, word(8)?)),
            (Self::Tmpfs, 1, 12) => Some((u64::from(word(4)?) | u64::from(word(8)?) << 32, word(0)?)),
            (Self::Btrfs { root }, 0x4d, 20) if long(8)? == root => Some((long(0)?, word(16)?)),
            _ => None,
        }
    }

    fn build(self, ino: u64, generation: u32) -> Option<FileHandle> {
        let generation = generation.to_ne_bytes();
        let short = |ino: u64| u32::try_from(ino).ok().map(u32::to_ne_bytes);
        let (low, high) = (ino as u32, (ino >> 32) as u32);
        let handle = match self {
            Self::Ino32 => FileHandle::new(1, &[short(ino)?, generation].concat()),
            Self::Ino64 => FileHandle::new(0x81, &[&ino.to_ne_bytes()[..], &generation].concat()),
            Self::Tmpfs => FileHandle::new(1, &[generation, low.to_ne_bytes(), high.to_ne_bytes()].concat()),
            Self::Btrfs { root } => {
                FileHandle::new(0x4d, &[&ino.to_ne_bytes()[..], &root.to_ne_bytes(), &generation].concat())
            }
        };
        handle.ok()
    }
}

/// From an object to its id.
impl Overlay {
    /// The id of what was found under a name, where ids last.
    pub(crate) fn lasting_id(&self, parent: &Node, name: &[u8], object: &Object) -> Result<Option<NodeId>> {
        let Some(export) = &self.export else { return Ok(None) };
        let of_upper = || -> Result<Option<NodeId>> {
            let name = Name::new(name).map_err(|_| Errno::INVAL)?;
            let handle = self.upper_dir(parent)?.file_handle(name)?;
            Ok(handle.and_then(|handle| export.id(true, FsIndex(0), &handle)))
        };
        match object {
            Object::LowerLeaf(lower) => {
                let handle = self.lower_at(lower)?.file_handle()?;
                Ok(handle.and_then(|handle| export.id(false, self.fs_of(lower.at.layer()), &handle)))
            }
            Object::UpperLeaf { upper, .. } => match &upper.index {
                Some(entry) => Ok(self.id_of_entry(export, entry)),
                None => of_upper(),
            },
            Object::Dir { lowers, upper } => {
                let Some(top) = lowers.first() else { return of_upper() };
                let Some(handle) = self.lower_dir(top)?.own_file_handle()? else { return Ok(None) };
                if upper.is_some() && !self.is_indexed_dir(parent, name, top.layer, &handle)? {
                    return of_upper();
                }
                Ok(export.id(false, self.fs_of(top.layer), &handle))
            }
        }
    }

    /// The id of an upper object by a descriptor of it: one that this mount makes.
    pub(crate) fn lasting_id_of_new(
        &self,
        handle: impl FnOnce() -> Result<Option<FileHandle>>,
    ) -> Option<NodeId> {
        let export = self.export.as_ref()?;
        // It exists by now, so a failure must not fail the creation: its id does not last.
        export.id(true, FsIndex(0), &handle().ok().flatten()?)
    }

    fn id_of_entry(&self, export: &Export, entry: &NameBuf) -> Option<NodeId> {
        let Ok(Parsed::Known(origin)) = Origin::parse_index_name(entry.as_bytes()) else { return None };
        let on = |layer: &&LowerLayer| !self.features.uuid || layer.uuid == origin.uuid;
        self.lowers.iter().filter(on).find_map(|layer| export.id(false, layer.fs, &origin.handle))
    }

    fn fs_of(&self, layer: u16) -> FsIndex {
        self.lowers.get(usize::from(layer)).map_or(FsIndex(0), |layer| layer.fs)
    }

    /// Whether an upper directory is reached from its lower one by the index. The entry is made here if it is missing: a crash
    /// came between copy-up and it, or the directory was copied up by a mount without `nfs_export`.
    fn is_indexed_dir(&self, parent: &Node, name: &[u8], layer: u16, lower: &FileHandle) -> Result<bool> {
        let name = Name::new(name).map_err(|_| Errno::INVAL)?;
        let dir = self.upper_dir(parent)?;
        let Some(handle) = dir.file_handle(name)? else { return Ok(false) };
        let origin = Origin::new(self.recorded_uuid(layer), lower.clone());
        match self.upper_of_entry(&origin)? {
            IndexEntry::Upper(known) => return Ok(known == handle),
            IndexEntry::Retired | IndexEntry::Leaf(..) => return Ok(false),
            IndexEntry::None => {}
        }
        let recorded = dir.get_xattr(name, self.namespace.name(Private::Origin))?;
        let same = matches!(recorded.as_deref().map(Origin::parse), Some(Ok(Parsed::Known(known))) if known == origin);
        if !same {
            return Ok(false);
        }
        match self.index_directory(&origin, handle) {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!(%error, "a copied-up directory gets no index entry");
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(filesystems: usize, form: Form) -> Export {
        let fs_bits = if filesystems <= 1 { 0 } else { (filesystems - 1).ilog2() + 1 };
        Export { forms: vec![form; filesystems], fs_bits, key: Key { lasting: [7; 32], fleeting: [1; 16] } }
    }

    #[test]
    fn a_generation_goes_with_its_id_and_a_fleeting_one_with_its_mount() {
        let (one, mut other) = (export(1, Form::Ino32), export(1, Form::Ino32));
        other.key.fleeting = [2; 16];
        let ids = [NodeId(5), NodeId(5 | 1 << 62), NodeId(6)];
        let [first, upper, second] = ids.map(|id| one.generation(id));
        assert!(first != upper && first != second && upper != second);
        assert_eq!(ids.map(|id| other.generation(id)), [first, upper, second]);
        assert_ne!(one.generation(NodeId(5 | FLEETING)), other.generation(NodeId(5 | FLEETING)));
        assert_eq!(one.generation(NodeId::ROOT), 0);
    }

    #[test]
    fn an_id_gives_back_what_it_was_made_of() {
        for form in [Form::Ino32, Form::Ino64, Form::Tmpfs, Form::Btrfs { root: 256 }] {
            for filesystems in [1, 2, 3, 9] {
                let export = export(filesystems, form);
                let fs = FsIndex(u16::try_from(filesystems - 1).unwrap());
                for (in_upper, ino, generation) in [(true, 2, 0), (false, 0xfff_fff, u32::MAX), (false, 3, 1)]
                {
                    let handle = form.build(ino, generation).unwrap();
                    let id = export.id(in_upper, fs, &handle).unwrap();
                    assert_eq!(id.0 & FLEETING, 0);
                    assert_eq!(export.parse(id), Some(Named { in_upper, fs, handle }));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_gets_no_id() {
        let export = export(2, Form::Ino64);
        let handle = Form::Ino64.build(1 << 40, 1).unwrap();
        assert_eq!(export.id(false, FsIndex(1), &handle), None);
        let root = Form::Ino64.build(1, 0).unwrap();
        assert_eq!(export.id(false, FsIndex(0), &root), None, "the root's id is the root's");
        for id in [0, 1, FLEETING, FLEETING | 77, u64::MAX] {
            assert_eq!(export.parse(NodeId(id)), None);
        }
    }

    #[test]
    fn a_handle_of_another_subvolume_is_not_taken_for_one_of_this() {
        let handle = Form::Btrfs { root: 257 }.build(300, 9).unwrap();
        assert_eq!(Form::Btrfs { root: 256 }.parse(&handle), None);
    }
}
