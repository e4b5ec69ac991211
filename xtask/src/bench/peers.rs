//! Mounting each peer by its own front door, and taking everything down again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, statfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::fixture::Fixture;
use super::row::Peer;
use crate::child;

/// How long a mount command may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// How long an unmounted daemon may take to end.
const EXIT_LIMIT: Duration = Duration::from_secs(120);

/// The directory in which everything happens; unmounted and deleted when dropped.
pub struct Bench {
    directory: PathBuf,
    binaries: HashMap<Peer, PathBuf>,
    mounts: AtomicUsize,
}

impl Bench {
    /// Takes `directory`, which is emptied; `binaries` are the programs of the peers that have one.
    pub fn new(directory: &Path, binaries: HashMap<Peer, PathBuf>) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
        let bench = Self { directory, binaries, mounts: AtomicUsize::new(0) };
        bench.clear()?;
        Ok(bench)
    }

    /// Whether this peer can be measured here.
    pub fn has(&self, peer: Peer) -> bool {
        matches!(peer, Peer::Kernel | Peer::Native) || self.binaries.contains_key(&peer)
    }

    /// A path in the bench's directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// The layers of a fixture, the top one first; built at first use.
    pub fn lowers(&self, fixture: Fixture) -> Result<Vec<PathBuf>> {
        let home = self.path("l").join(fixture.name());
        let paths: Vec<_> = (0..fixture.layers()).map(|layer| home.join(layer.to_string())).collect();
        if !home.exists() {
            for (layer, path) in paths.iter().enumerate() {
                fs::create_dir_all(path).with_context(|| path.display().to_string())?;
                fixture.fill(path, layer)?;
            }
            self.sync()?;
        }
        Ok(paths.into_iter().rev().collect())
    }

    /// All layers of a fixture in one plain directory named `name`; built at first use.
    pub fn native(&self, fixture: Fixture, name: &str) -> Result<PathBuf> {
        let path = self.path("n").join(name);
        if !path.exists() {
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
            (0..fixture.layers()).try_for_each(|layer| fixture.fill(&path, layer))?;
            self.sync()?;
        }
        Ok(path)
    }

    /// Mounts a peer over a fixture with an empty upper; `options` are added to the layers'.
    pub fn mount(&self, peer: Peer, fixture: Fixture, options: &[&str]) -> Result<Mount> {
        self.mount_over(peer, self.lowers(fixture)?, options)
    }

    /// Mounts a peer over these layers, the top one first, with an empty upper.
    pub fn mount_over(&self, peer: Peer, lowers: Vec<PathBuf>, options: &[&str]) -> Result<Mount> {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        let home = self.path("m").join(format!("{}{number}", peer.name()));
        let home = Home { upper: home.join("u"), work: home.join("w"), target: home.join("t"), home };
        for path in [&home.upper, &home.work, &home.target] {
            fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        }
        let start = Instant::now();
        match self.binaries.get(&peer) {
            Some(binary) => mount_fuse(peer, binary, &lowers, &home, options)?,
            None => mount_kernel(&lowers, &home, options)?,
        }
        statfs(&home.target).with_context(|| format!("{} is not usable", peer.name()))?;
        let took = start.elapsed();
        Ok(Mount { root: home.target.clone(), home, binary: self.binaries.get(&peer).cloned(), took, lowers })
    }

    /// Writes what is dirty in the file system of the directory to its disk, so that no later row pays for it.
    pub fn sync(&self) -> Result<()> {
        let path = &self.directory;
        let directory = File::open(path).with_context(|| path.display().to_string())?;
        rustix::fs::syncfs(directory).with_context(|| path.display().to_string())
    }

    /// Empties the caches of the kernel: 2 for dentries and inodes, 3 for pages too.
    pub fn drop_caches(&self, level: u8) -> Result<()> {
        self.sync()?;
        let path = "/proc/sys/vm/drop_caches";
        let mut file = File::options().write(true).open(path).context(path)?;
        file.write_all(level.to_string().as_bytes()).context(path)
    }

    /// Unmounts all below the directory and deletes what is in it.
    fn clear(&self) -> Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        for target in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(target).starts_with(&self.directory) {
                unmount(target, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {target}"))?;
            }
        }
        remove_dir_all(&self.directory)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("bench: cannot clean up {}: {error:#}", self.directory.display());
        }
    }
}

/// The directories of one mount.
struct Home {
    home: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
}

/// A mounted peer; unmounted, its upper deleted, when dropped.
pub struct Mount {
    /// The merged tree.
    pub root: PathBuf,
    /// From the call of the front door to a usable mount.
    pub took: Duration,
    /// What it was mounted over, the top layer first.
    pub lowers: Vec<PathBuf>,
    home: Home,
    binary: Option<PathBuf>,
}

impl Mount {
    /// Resident memory of the daemon, in bytes.
    pub fn daemon_memory(&self) -> Result<u64> {
        let mut kib = 0;
        for process in self.daemons() {
            let status =
                fs::read_to_string(process.join("status")).with_context(|| format!("{process:?}"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
            kib += line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        if kib == 0 {
            bail!("no daemon found for {}", self.root.display());
        }
        Ok(kib << 10)
    }

    /// The /proc directories of the processes of the peer's program that name the mount's target.
    fn daemons(&self) -> Vec<PathBuf> {
        let Some(binary) = self.binary.as_ref().and_then(|binary| binary.canonicalize().ok()) else {
            return Vec::new();
        };
        let target = self.root.to_string_lossy().into_owned();
        let ours = |process: &PathBuf| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            fs::read_link(process.join("exe")).is_ok_and(|exe| exe == binary)
                && String::from_utf8_lossy(&command).contains(&target)
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        processes.filter(ours).collect()
    }

    fn take_down(&self) -> Result<()> {
        let mut result = unmount(&self.root, UnmountFlags::empty());
        for _ in 0..20 {
            if result != Err(rustix::io::Errno::BUSY) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
            result = unmount(&self.root, UnmountFlags::empty());
        }
        if result.is_err() {
            result = unmount(&self.root, UnmountFlags::DETACH);
        }
        result.with_context(|| format!("cannot unmount {}", self.root.display()))?;
        let start = Instant::now();
        while !self.daemons().is_empty() {
            if start.elapsed() > EXIT_LIMIT {
                bail!("the daemon of {} lives on", self.root.display());
            }
            thread::sleep(Duration::from_millis(5));
        }
        remove_dir_all(&self.home.home)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("bench: {error:#}");
        }
    }
}

/// `PROGRAM -o lowerdir=…,upperdir=…,workdir=… TARGET`, for plyfs after its word `mount`.
fn mount_fuse(peer: Peer, binary: &Path, lowers: &[PathBuf], home: &Home, options: &[&str]) -> Result<()> {
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.to_string_lossy()).collect();
    let mut all = format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        home.upper.display(),
        home.work.display()
    );
    for option in options {
        all.push(',');
        all.push_str(option);
    }
    let mut command = Command::new(binary);
    if peer == Peer::Plyfs {
        command.arg("mount");
    }
    command.arg("-o").arg(all).arg(&home.target);
    let shown = format!("{} for {}", binary.display(), home.target.display());
    if !child::run_silent(&mut command, MOUNT_LIMIT)?.success() {
        bail!("{shown} failed");
    }
    Ok(())
}

/// The new mount interface: the string of mount(2) cannot hold 500 layers.
fn mount_kernel(lowers: &[PathBuf], home: &Home, options: &[&str]) -> Result<()> {
    let context = || anyhow!("kernel overlay on {}", home.target.display());
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).with_context(context)?;
    for lower in lowers {
        fsconfig_set_string(&overlay, "lowerdir+", lower).with_context(context)?;
    }
    fsconfig_set_string(&overlay, "upperdir", &home.upper).with_context(context)?;
    fsconfig_set_string(&overlay, "workdir", &home.work).with_context(context)?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&overlay, key, value),
            None => fsconfig_set_flag(&overlay, *option),
        }
        .with_context(context)?;
    }
    fsconfig_create(&overlay).with_context(context)?;
    let mount =
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).with_context(context)?;
    move_mount(&mount, "", CWD, &home.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).with_context(context)
}

/// Deletes a directory and all in it; there may be none.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}
