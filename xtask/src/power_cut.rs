//! `cargo xtask power-cut`: what fsync acknowledged is there after the power went.
//!
//! The layers lie on a file system in an image. While threads change files through a mount of plyfs and sync them, the image
//! is cloned at random moments (a reflink is one moment of it), and the clone is what a cut would have left: its journal is
//! replayed, the layers are mounted by plyfs and by the kernel, and every file must be as it was last acknowledged, or as a
//! change that was under way would have it. What it cannot show: writes that a disk's own cache loses, since the clone has
//! all that was sent to the device.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plyfs_testkit::backing::{Backing, Kind, make_image, mount_image};
use plyfs_testkit::mount::{Driver, Stack};
use plyfs_testkit::need::Need;
use rustix::mount::{UnmountFlags, unmount};

use crate::mounts;

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// How many times the power is cut
    #[arg(long, default_value_t = 100)]
    cuts: u32,
    /// Threads that change and sync files
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Files of each
    #[arg(long, default_value_t = 12)]
    files: usize,
    /// The file system of the layers: ext4, xfs or btrfs
    #[arg(long, default_value = "ext4")]
    on: Kind,
    /// Further mount options of plyfs, such as metacopy=on
    #[arg(long, default_value = "")]
    options: String,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// Bytes behind the line that changes; copied up with it.
const BODY: usize = 10_000;

/// A file and how far it is known to have come. Its version says what it is: see [`State::of`].
#[derive(Default)]
struct Tracked {
    issued: AtomicU64,
    acknowledged: AtomicU64,
}

/// What a file is at a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent,
    Present(u64),
}

/// Cuts the power as often as asked; an error names what was lost.
pub fn run(args: &Args) -> Result<()> {
    mounts::need_root_and_fuse()?;
    ensure!(
        args.on != Kind::Tmpfs,
        "--on tmpfs: nothing of it is left when the power goes; choose ext4, xfs or btrfs"
    );
    mounts::need(&[Need::Tool("mkfs.xfs"), Need::Tool(&format!("mkfs.{}", args.on.name()))])?;
    let plyfs = Driver::Plyfs(mounts::plyfs(args.plyfs.as_deref())?);
    let outer = Backing::sized(Kind::Xfs, 4 << 30)?;
    let disk = Disk::make(outer.path(), args)?;
    let mounted = plyfs.mount(&disk.stack(args), &disk.merged)?;
    let files: Vec<Vec<Tracked>> =
        (0..args.threads).map(|_| (0..args.files).map(|_| Tracked::default()).collect()).collect();
    let over = AtomicBool::new(false);
    let cuts = std::thread::scope(|scope| {
        let workers: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(number, files)| {
                let place = disk.merged.join(format!("w{number}"));
                let (over, seed) = (&over, args.seed + number as u64);
                scope.spawn(move || {
                    let changed = change(&place, files, seed, over);
                    // Also where it failed: then there is nothing more to cut.
                    over.store(true, Ordering::SeqCst);
                    changed
                })
            })
            .collect();
        let cuts = cut_often(&disk, outer.path(), &plyfs, args, &files, &over);
        over.store(true, Ordering::SeqCst);
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a thread that changes files panicked"))??;
        }
        cuts
    });
    mounted.unmount()?;
    let changes: u64 = files.iter().flatten().map(|file| file.acknowledged.load(Ordering::SeqCst)).sum();
    cuts?;
    println!("power-cut: {} cuts on {}, {changes} synced changes, nothing lost", args.cuts, args.on.name());
    Ok(())
}

/// The layers' file system in its image.
struct Disk {
    image: PathBuf,
    root: PathBuf,
    merged: PathBuf,
}

impl Disk {
    fn make(place: &Path, args: &Args) -> Result<Self> {
        let (image, root, merged) = (place.join("image"), place.join("disk"), place.join("merged"));
        make_image(args.on, 512 << 20, &image)?;
        for dir in [&root, &merged] {
            fs::create_dir(dir)?;
        }
        mount_image(args.on, &image, &root)?;
        let disk = Self { image, root, merged };
        for thread in 0..args.threads {
            let dir = disk.root.join(format!("lower/w{thread}"));
            fs::create_dir_all(&dir)?;
            for file in 0..args.files {
                fs::write(dir.join(name(file)), content(file, 0))?;
            }
        }
        for dir in ["upper", "work"] {
            fs::create_dir(disk.root.join(dir))?;
        }
        rustix::fs::sync();
        Ok(disk)
    }

    fn stack(&self, args: &Args) -> Stack {
        stack(&self.root, &args.options)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(cause) = unmount(&self.root, UnmountFlags::DETACH) {
            eprintln!("{} was left mounted: {cause}", self.root.display());
        }
    }
}

fn stack(root: &Path, options: &str) -> Stack {
    Stack {
        lowers: vec![root.join("lower")],
        upper: Some((root.join("upper"), root.join("work"))),
        options: options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect(),
    }
}

/// Makes and syncs one change after the other.
fn change(place: &Path, files: &[Tracked], seed: u64, over: &AtomicBool) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = File::open(place)?;
    while !over.load(Ordering::SeqCst) {
        let number = random.usize(..files.len());
        let Some(file) = files.get(number) else { bail!("no file {number}") };
        let version = file.acknowledged.load(Ordering::SeqCst) + 1;
        file.issued.store(version, Ordering::SeqCst);
        make(place, &directory, number, version)
            .with_context(|| format!("{}: version {version}", place.join(name(number)).display()))?;
        file.acknowledged.store(version, Ordering::SeqCst);
    }
    Ok(())
}

/// Brings a file to a version, each way of changing it in turn, and syncs that.
fn make(place: &Path, directory: &File, number: usize, version: u64) -> Result<()> {
    let path = place.join(name(number));
    if State::of(version) == State::Absent {
        fs::remove_file(&path)?;
        return Ok(directory.sync_all()?);
    }
    if !version.is_multiple_of(3) && State::of(version - 1) != State::Absent {
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(header(number, version).as_bytes(), 0)?;
        return Ok(file.sync_all()?);
    }
    let temporary = place.join(format!("{}.new", name(number)));
    let mut file = File::create(&temporary)?;
    file.write_all(&content(number, version))?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    Ok(directory.sync_all()?)
}

fn cut_often(
    disk: &Disk,
    place: &Path,
    plyfs: &Driver,
    args: &Args,
    files: &[Vec<Tracked>],
    over: &AtomicBool,
) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(args.seed ^ 0xc07);
    let load = |of: fn(&Tracked) -> &AtomicU64| -> Vec<Vec<u64>> {
        let one = |files: &Vec<Tracked>| files.iter().map(|file| of(file).load(Ordering::SeqCst)).collect();
        files.iter().map(one).collect()
    };
    for cut in (0..args.cuts).take_while(|_| !over.load(Ordering::SeqCst)) {
        std::thread::sleep(Duration::from_millis(random.u64(..150)));
        let acknowledged = load(|file| &file.acknowledged);
        let clone = place.join("clone");
        rustix::fs::ioctl_ficlone(File::create(&clone)?, File::open(&disk.image)?).context("FICLONE")?;
        let issued = load(|file| &file.issued);
        let found = look(place, &clone, plyfs, args, &(acknowledged, issued));
        fs::remove_file(&clone)?;
        found.with_context(|| format!("cut {cut} of seed {}", args.seed))?;
    }
    Ok(())
}

/// What was acknowledged before the cut and issued after it, by thread and file.
type Bounds = (Vec<Vec<u64>>, Vec<Vec<u64>>);

/// Mounts what a cut left, and compares.
fn look(place: &Path, clone: &Path, plyfs: &Driver, args: &Args, bounds: &Bounds) -> Result<()> {
    let (root, merged) = (place.join("after"), place.join("merged-after"));
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&merged)?;
    mount_image(args.on, clone, &root)?;
    let looked = [plyfs, &Driver::Kernel].into_iter().try_for_each(|driver| {
        let mounted = driver.mount(&stack(&root, &args.options), &merged)?;
        let looked = compare(&merged, bounds);
        mounted.unmount()?;
        looked.with_context(|| format!("seen by {driver}"))
    });
    unmount(&root, UnmountFlags::empty()).context("the file system of the clone")?;
    looked
}

fn compare(merged: &Path, (acknowledged, issued): &Bounds) -> Result<()> {
    for (thread, (acknowledged, issued)) in acknowledged.iter().zip(issued).enumerate() {
        for (number, (from, to)) in acknowledged.iter().zip(issued).enumerate() {
            let path = merged.join(format!("w{thread}")).join(name(number));
            let found = State::read(&path, number)?;
            ensure!(
                (*from..=*to).any(|version| State::of(version) == found),
                "{}: {found:?}, acknowledged was version {from} ({:?}), issued {to}",
                path.display(),
                State::of(*from)
            );
        }
    }
    Ok(())
}

impl State {
    fn of(version: u64) -> Self {
        if version % 7 == 6 { Self::Absent } else { Self::Present(version) }
    }

    fn read(path: &Path, number: usize) -> Result<Self> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::Absent),
            bytes => bytes.with_context(|| path.display().to_string())?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let version = text.lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok());
        let version =
            version.with_context(|| format!("{}: no version in {} bytes", path.display(), bytes.len()))?;
        ensure!(bytes == content(number, version), "{}: torn at version {version}", path.display());
        Ok(Self::Present(version))
    }
}

fn name(number: usize) -> String {
    format!("f{number:02}")
}

fn header(number: usize, version: u64) -> String {
    format!("file {number:04} version {version:020}\n")
}

fn content(number: usize, version: u64) -> Vec<u8> {
    let mut content = header(number, version).into_bytes();
    content.extend((0..BODY).map(|at| b'a' + ((at + number) % 26) as u8));
    content
}
