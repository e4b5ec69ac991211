//! Opening the layers and finding out what their file systems can do.
//!
//! Runs once, at assembly. The kernel's counterparts are `ovl_fill_super`, `ovl_make_workdir` and `ovl_check_rename_whiteout`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs_format::spec::{LayerTrust, RedirectMode, UuidMode, Xino};
use plyfs_format::{Name, Namespace, Private, RelPath, StackSpec, UpperSpec};
use plyfs_sys::{Dir, DirMut, Errno, OFlags, RenameFlags, Stat, XattrFlags, mount, mountinfo};

use crate::Result;
use crate::error::AssembleError;
use crate::ino::FsIndex;
use crate::layer::LowerLayer;
use crate::overlay::{Features, Settings, directory_error};
use crate::show::{Record, Show};
use crate::upper::{Abilities, Upper, WhiteoutForm};
use crate::work::names;

type Assembled<T> = core::result::Result<T, AssembleError>;

/// An upper or work directory is held by this mount while this lives.
#[derive(Debug)]
pub(crate) struct InUseLock(#[expect(dead_code, reason = "held for its lock")] plyfs_sys::DirLock);

/// The mount options as they are in force.
#[derive(Debug)]
pub(crate) struct Options {
    pub namespace: Namespace,
    pub features: Features,
    /// The next mount must know that a crash may have cost data.
    pub volatile: bool,
    /// Whether the overlay has a UUID of its own.
    pub uuid: UuidMode,
}

/// Resolves the options against each other and against the privileges of this process.
pub(crate) fn options(spec: &StackSpec, privileged: bool) -> Assembled<Options> {
    let mut spec = spec.clone();
    // Who may not use trusted.* attributes can only mean user.* ones.
    spec.options.userxattr |= !privileged;
    let effective = spec.effective(privileged).map_err(|error| AssembleError::Options(error.to_string()))?;
    for note in &effective.notes {
        tracing::info!("{note}");
    }
    let follows = effective.redirect_dir != RedirectMode::NoFollow;
    let creates = effective.redirect_dir == RedirectMode::On;
    let features = Features {
        redirect_dir: creates,
        follow_redirect_in_upper: follows,
        follow_redirect_in_lower: follows && effective.trust == LayerTrust::AllLayers,
        metacopy: effective.metacopy,
        index: effective.index,
        nfs_export: effective.nfs_export,
        follow_metacopy_in_lower: effective.metacopy && effective.trust == LayerTrust::AllLayers,
        verity: effective.verity,
        sync: !effective.volatile && spec.options.fsync != Some(false),
        allow_offline_changes: !effective.index
            && !effective.metacopy
            && !creates
            && effective.xino != Xino::On,
        uuid: effective.uuid != UuidMode::Off,
        lower_passthrough: spec.options.lower_passthrough,
    };
    Ok(Options {
        namespace: effective.namespace,
        features,
        volatile: effective.volatile,
        uuid: effective.uuid,
    })
}

/// What is shown otherwise than it lies on disk. An upper that is to record owners and modes is marked so at its root,
/// like every layer that does.
pub(crate) fn show(spec: &StackSpec, lowers: &[LowerLayer], upper: Option<&Upper>) -> Assembled<Show> {
    let mut options = spec.options.clone();
    if (options.uid_mapping.is_some() || options.gid_mapping.is_some()) && has_mapped_mounts(spec)? {
        tracing::info!("uidmapping and gidmapping are left to the idmapped mounts on which lower layers lie");
        (options.uid_mapping, options.gid_mapping) = (None, None);
    }
    let mut show = Show::new(&options);
    if let Some(upper) = upper {
        let fail = |errno| directory_error("upperdir", &upper.path, errno);
        let present = Record::of_layer(&upper.root).map_err(fail)?;
        match show.upper_record.or(present) {
            Some(record) if present.is_none() => {
                let stat = upper.root.stat().map_err(fail)?;
                record.mark_root(&upper.root, &stat).map_err(fail)?;
                show.upper_record = Some(record);
            }
            record => show.upper_record = record,
        }
    } else {
        show.upper_record = None;
    }
    show.any_record = show.upper_record.is_some() || lowers.iter().any(|layer| layer.record.is_some());
    Ok(show)
}

/// Whether a lower layer lies on an idmapped mount. podman, as root with a user namespace, makes such mounts for a kernel
/// overlay, with an upper that holds the host's ids, and asks a mount program for the same mapping once more.
fn has_mapped_mounts(spec: &StackSpec) -> Assembled<bool> {
    let table = mountinfo::read().map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        directory_error("mount table", Path::new("/proc/self/mountinfo"), errno)
    })?;
    let mut mapped = 0;
    for path in &spec.lowers {
        let id = Dir::open_root(path).and_then(|dir| dir.mount_id());
        let id = id.map_err(|errno| directory_error("lowerdir", path, errno))?;
        mapped += usize::from(table.iter().any(|mount| mount.id == id && mount.has_option("idmapped")));
    }
    if mapped > 0 && mapped < spec.lowers.len() {
        let lowers = spec.lowers.len();
        return Err(AssembleError::Options(format!(
            "uidmapping and gidmapping: {mapped} of {lowers} lower layers lie on idmapped mounts; all of them must, or none"
        )));
    }
    Ok(mapped > 0)
}

/// Opens the lower layers, topmost first. Where it is allowed each gets a read-only mount of its own, without what is
/// mounted below it: a lower that contains the mount point of this very stack is then harmless, and even a bug could
/// not write to it.
pub(crate) fn lowers(spec: &StackSpec, devices: &mut Vec<u64>) -> Assembled<Vec<LowerLayer>> {
    if spec.lowers.is_empty() {
        return Err(AssembleError::NoLower);
    }
    if spec.lowers.len() > 65_000 {
        return Err(AssembleError::TooManyLowers(spec.lowers.len()));
    }
    layers(&spec.lowers, devices)
}

/// Opens the data-only layers, topmost first.
pub(crate) fn data_layers(spec: &StackSpec, devices: &mut Vec<u64>) -> Assembled<Vec<LowerLayer>> {
    layers(&spec.data_lowers, devices)
}

fn layers<P: AsRef<Path>>(paths: &[P], devices: &mut Vec<u64>) -> Assembled<Vec<LowerLayer>> {
    let mut layers: Vec<LowerLayer> = Vec::with_capacity(paths.len());
    for path in paths {
        let layer = lower(path.as_ref(), devices, &layers)?;
        layers.push(layer);
    }
    Ok(layers)
}

/// `known`: layers that are open already; hundreds often lie on one file system.
fn lower(path: &Path, devices: &mut Vec<u64>, known: &[LowerLayer]) -> Assembled<LowerLayer> {
    let fail = |errno| directory_error("lowerdir", path, errno);
    let plain = Dir::open_root(path).map_err(fail)?;
    let nosuid = plain.is_nosuid_mount().map_err(fail)?;
    let root = private_mount(&plain).unwrap_or(plain);
    let stat = root.stat().map_err(fail)?;
    let fs = fs_index(devices, &stat);
    let uuid = match known.last().filter(|last| last.fs == fs) {
        Some(last) => last.uuid,
        None => root.filesystem_uuid().map_err(fail)?.unwrap_or_default(),
    };
    let record = Record::of_layer(&root).map_err(fail)?;
    Ok(LowerLayer { root, fs, uuid, path: path.to_owned(), nosuid, record, mount_id: stat.mount_id })
}

/// A read-only clone of the mount below a directory, without its submounts. `None` without the privilege.
fn private_mount(dir: &Dir) -> Option<Dir> {
    const ATTR_NOATIME: u64 = 0x10;
    const ATTR_ATIME_MASK: u64 = 0x70;
    let flags = mount::OpenTreeFlags::OPEN_TREE_CLONE
        | mount::OpenTreeFlags::OPEN_TREE_CLOEXEC
        | mount::OpenTreeFlags::AT_EMPTY_PATH;
    let clone = mount::open_tree(dir, Path::new(""), flags).ok()?;
    let attributes = mount::MountAttributes {
        set: mount::ATTR_RDONLY | ATTR_NOATIME,
        clear: ATTR_ATIME_MASK,
        idmap: None,
    };
    mount::set_attributes(&clone, &attributes, false).ok()?;
    Some(Dir::from_fd(clone))
}

fn fs_index(devices: &mut Vec<u64>, stat: &Stat) -> FsIndex {
    let position = devices.iter().position(|device| *device == stat.dev()).unwrap_or_else(|| {
        devices.push(stat.dev());
        devices.len() - 1
    });
    FsIndex(u16::try_from(position).unwrap_or(u16::MAX))
}

/// Opens upper, locks it and work, and makes `work/work` anew.
pub(crate) fn upper(
    paths: &UpperSpec,
    options: &Options,
    settings: &Settings,
    devices: &mut Vec<u64>,
) -> Assembled<(Upper, Vec<InUseLock>)> {
    let fail_upper = |errno| directory_error("upperdir", &paths.upper, errno);
    let fail_work = |errno| directory_error("workdir", &paths.work, errno);
    let root = DirMut::open_root(&paths.upper).map_err(fail_upper)?;
    let workdir = DirMut::open_root(&paths.work).map_err(fail_work)?;
    let stat = root.stat().map_err(fail_upper)?;
    check_places(paths, &root, &workdir)?;
    if root.is_readonly_mount().map_err(fail_upper)? {
        return Err(fail_upper(Errno::ROFS));
    }
    let locks = vec![
        lock("upperdir", &paths.upper, &root, settings.wait_for_upper)?,
        lock("workdir", &paths.work, &workdir, settings.wait_for_upper)?,
    ];
    let work = fresh_work(&workdir, &paths.work)?;
    let mut abilities = abilities(&work, options.namespace).map_err(|errno| match errno {
        Errno::PERM => AssembleError::Unsuitable { path: paths.upper.clone(), what: NO_ATTRIBUTES },
        errno => fail_work(errno),
    })?;
    if abilities.whiteouts == WhiteoutForm::Named && !holds_named_whiteouts(&work).map_err(fail_work)? {
        return Err(AssembleError::Unsuitable { path: paths.upper.clone(), what: NO_DELETIONS });
    }
    if settings.named_whiteouts {
        abilities.whiteouts = WhiteoutForm::Named;
    }
    if options.volatile {
        mark_volatile(&work).map_err(fail_work)?;
    }
    fs_index(devices, &stat);
    let mut upper = Upper::new(root, work, paths.upper.clone(), abilities, settings.faults.clone());
    if options.features.index && abilities.xattr {
        upper.index = Some(open_index(&workdir).map_err(fail_work)?);
    }
    Ok((upper, locks))
}

/// `workdir/index`, made at the first mount with an index and kept.
fn open_index(workdir: &DirMut) -> Result<DirMut> {
    let name = Name::new(b"index").map_err(|_| Errno::INVAL)?;
    match workdir.create_dir(name, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let index = workdir.child_mut(name)?;
    make_usable(&index)?;
    Ok(index)
}

fn check_places(paths: &UpperSpec, root: &DirMut, workdir: &DirMut) -> Assembled<()> {
    let same_mount = root.mount_id().ok() == workdir.mount_id().ok();
    let same_device = root.stat().ok().map(|stat| stat.dev()) == workdir.stat().ok().map(|stat| stat.dev());
    if !same_mount || !same_device {
        return Err(AssembleError::WorkElsewhere { upper: paths.upper.clone(), work: paths.work.clone() });
    }
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (upper, work): (PathBuf, PathBuf) = (real(&paths.upper), real(&paths.work));
    if upper.starts_with(&work) || work.starts_with(&upper) {
        return Err(AssembleError::WorkOverlapsUpper {
            upper: paths.upper.clone(),
            work: paths.work.clone(),
        });
    }
    Ok(())
}

/// The daemon of a mount that was just taken down may need a moment to end, so a busy directory is asked again.
fn lock(role: &'static str, path: &Path, dir: &DirMut, patience: Duration) -> Assembled<InUseLock> {
    let deadline = Instant::now() + patience;
    loop {
        match dir.try_lock() {
            Ok(held) => return Ok(InUseLock(held)),
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::AGAIN) => return Err(AssembleError::InUse { role, path: path.to_owned() }),
            Err(errno) => return Err(directory_error(role, path, errno)),
        }
    }
}

/// `workdir/work`, empty. What an earlier mount left in it is removed, unless that mount was volatile.
fn fresh_work(workdir: &DirMut, path: &Path) -> Assembled<DirMut> {
    let fail = |errno| directory_error("workdir", path, errno);
    let name = Name::new(b"work").map_err(|_| fail(Errno::INVAL))?;
    match workdir.child_mut(name) {
        Ok(old) => {
            make_usable(&old).map_err(fail)?;
            if has_incompat(&old).map_err(fail)? {
                return Err(AssembleError::Volatile { path: path.to_owned() });
            }
            clear_tree(&old, DEEPEST).map_err(fail)?;
            workdir.rmdir(name).map_err(fail)?;
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(fail(errno)),
    }
    workdir.create_dir(name, 0).map_err(fail)?;
    let work = workdir.child_mut(name).map_err(fail)?;
    make_usable(&work).map_err(fail)?;
    Ok(work)
}

/// A directory of mode 0, as the kernel makes it, serves only who may pass over modes. An ordinary user needs more.
fn make_usable(dir: &DirMut) -> Result<()> {
    match dir.stat_at(Name::new(b"incompat").map_err(|_| Errno::INVAL)?) {
        Err(Errno::ACCESS) => dir.chmod_self(0o700),
        _ => Ok(()),
    }
}

/// Leaves `incompat/volatile/dirty` in work, where [`fresh_work`] and the kernel will look for it. It outlives the mount.
fn mark_volatile(work: &DirMut) -> Result<()> {
    let name = |text: &'static [u8]| Name::new(text).map_err(|_| Errno::INVAL);
    let (incompat, volatile) = (name(b"incompat")?, name(b"volatile")?);
    work.create_dir(incompat, 0)?;
    let incompat = work.child_mut(incompat)?;
    make_usable(&incompat)?;
    incompat.create_dir(volatile, 0)?;
    let volatile = incompat.child_mut(volatile)?;
    make_usable(&volatile)?;
    volatile.create_file(name(b"dirty")?, OFlags::WRONLY, 0).map(drop)
}

/// How many directories deep work is cleared.
const DEEPEST: usize = 16;

/// Removes everything in a directory of work.
fn clear_tree(dir: &DirMut, depth: usize) -> Result<()> {
    for name in names(dir)? {
        match dir.unlink(name.as_name()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                // Neither plyfs nor the kernel leaves a tree in work; one that somebody else made there stays.
                let depth = depth.checked_sub(1).ok_or(Errno::NOTEMPTY)?;
                clear_tree(&dir.child_mut(name.as_name())?, depth)?;
                dir.rmdir(name.as_name())?;
            }
            done => done?,
        }
    }
    Ok(())
}

fn has_incompat(work: &DirMut) -> Result<bool> {
    let path = RelPath::parse(b"incompat").map_err(|_| Errno::INVAL)?;
    match work.open_dir(&path) {
        Ok(incompat) => Ok(!incompat.list()?.is_empty()?),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

const NO_ATTRIBUTES: &str = "hold trusted.* attributes for this user (without root, mount with -o userxattr)";

fn abilities(work: &DirMut, namespace: Namespace) -> Result<Abilities> {
    let name = |text: &'static [u8]| Name::new(text).map_err(|_| Errno::INVAL);
    let (first, second) = (name(b"#probe1")?, name(b"#probe2")?);
    let tmpfile = match work.tmpfile(0o600, OFlags::RDWR) {
        Ok(file) => match work.link_file(&file, first) {
            Ok(()) => work.unlink(first).map(|()| true)?,
            Err(_) => false,
        },
        Err(_) => false,
    };
    drop(work.create_file(first, OFlags::RDWR, 0o600)?);
    let rename_whiteout = work.rename(first, work, second, RenameFlags::WHITEOUT).is_ok();
    if rename_whiteout {
        work.unlink(second)?;
    }
    work.unlink(first)?;
    let xattr = match work.set_own_xattr(namespace.name(Private::Opaque), b"0", XattrFlags::empty()) {
        Ok(()) => true,
        Err(Errno::OPNOTSUPP) => false,
        Err(error) => return Err(error),
    };
    let whiteouts = match work.mknod(first, 0o020_000, 0) {
        Ok(()) => work.unlink(first).map(|()| WhiteoutForm::Device)?,
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            tracing::warn!(
                "upperdir takes no whiteout devices: deletions are .wh. files, which the kernel does not know"
            );
            WhiteoutForm::Named
        }
        Err(error) => return Err(error),
    };
    Ok(Abilities { tmpfile, rename_whiteout, xattr, whiteouts })
}

const NO_DELETIONS: &str = "record that something is deleted, for it is a union itself";

/// Whether a file can have the name of a whiteout: in another union it cannot.
fn holds_named_whiteouts(work: &DirMut) -> Result<bool> {
    let name = Name::new(b".wh.#probe").map_err(|_| Errno::INVAL)?;
    match work.create_file(name, OFlags::RDWR, 0o600) {
        Ok(file) => {
            drop(file);
            work.unlink(name).map(|()| true)
        }
        Err(Errno::INVAL | Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The inode number in a file handle, for the kinds that the common file systems make (`FILEID_*` of the kernel's
/// `exportfs.h`): with it no privilege is needed to know which inode an `origin` means.
pub(crate) fn ino_of_handle(handle: &plyfs_format::FileHandle) -> Option<u64> {
    const INO32_GEN: u8 = 1;
    const INO32_GEN_PARENT: u8 = 2;
    const BTRFS: u8 = 0x4d;
    const INO64_GEN: u8 = 0x81;
    const INO64_GEN_PARENT: u8 = 0x82;
    let bytes = handle.bytes();
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    match handle.kind() {
        // tmpfs: generation, then both halves of the number.
        INO32_GEN if bytes.len() == 12 => Some(u64::from(word(4)?) | u64::from(word(8)?) << 32),
        INO32_GEN | INO32_GEN_PARENT => word(0).map(u64::from),
        BTRFS | INO64_GEN | INO64_GEN_PARENT => long(0),
        _ => None,
    }
}
