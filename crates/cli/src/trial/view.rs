//! What the view has beside files: /dev and /sys of its own, and the machine's other mounts.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use plyfs_sys::Errno;
use plyfs_sys::mount::{self, MountAttributes, MountFlags, OpenTreeFlags};
use plyfs_sys::mountinfo;
use rustix::fs::CWD;

use crate::failure::{Context, Failure, Outcome};

/// Devices that hold nothing of the machine. Disks, memory and terminals of others are not among them.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty", "fuse"];

/// Mounts a copy of `source` at `target`, read-only with everything below it.
pub fn show_read_only(source: &Path, target: &Path) -> Outcome<()> {
    let describe = || format!("{}: cannot show it in the view", source.display());
    let recursive = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
    let copy = mount::open_tree(CWD, source, recursive).context(describe)?;
    let read_only = MountAttributes { set: mount::ATTR_RDONLY, ..MountAttributes::default() };
    mount::set_attributes(&copy, &read_only, true).context(describe)?;
    mount::attach(&copy, CWD, target).context(describe)
}

/// Makes /sys: the machine's, read-only.
pub fn make_sys(view: &Path) -> Outcome<()> {
    show_read_only(Path::new("/sys"), &view.join("sys"))
}

/// Makes /sys anew for a network of the view's own, or it would go on to show the machine's interfaces. What is mounted below
/// comes with it. Where a new one is forbidden (in a container whose own /sys is masked) the machine's stays.
pub fn renew_sys() -> Outcome<()> {
    let sys = Path::new("/sys");
    let mut below: Vec<PathBuf> = Vec::new();
    let mut table = mountinfo::read().context(|| "/proc/self/mountinfo")?;
    table.sort_by(|one, other| one.target.cmp(&other.target));
    for mount in table.into_iter().filter(|mount| mount.target != sys && mount.target.starts_with(sys)) {
        if !below.iter().any(|above| mount.target.starts_with(above)) {
            below.push(mount.target);
        }
    }
    replace_sys(sys, &below)
}

/// A mask over a part of /sys must not be lost: either all that is in `below` comes with the new one, or the old one stays.
fn replace_sys(sys: &Path, below: &[PathBuf]) -> Outcome<()> {
    let recursive = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
    let mut copies = Vec::new();
    for path in below {
        match mount::open_tree(CWD, path, recursive) {
            Ok(copy) => copies.push((copy, path)),
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "cannot be copied: the view's /sys shows the machine's network");
                return Ok(());
            }
        }
    }
    let safe = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(error) = mount::mount(c"sysfs", sys, c"sysfs", safe, b"") {
        tracing::debug!(%error, "no new /sys for the view's network: it shows the machine's");
        return Ok(());
    }
    for (copy, path) in copies {
        match mount::attach(&copy, CWD, path) {
            // What the new one lacks shows nothing either.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "not in a new /sys: the view's shows the machine's network");
                return mount::unmount_detached(sys).context(|| "cannot take the new /sys away".to_owned());
            }
        }
    }
    Ok(())
}

/// Makes /dev: a new one with a few devices, terminals of its own and shared memory of its own.
pub fn make_dev(view: &Path) -> Outcome<()> {
    let dev = view.join("dev");
    let describe = || "cannot make /dev in the view";
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount::mount(c"plyfs", &dev, c"tmpfs", safe, b"mode=755,size=1m").context(describe)?;
    for name in DEVICES {
        show_device(&PathBuf::from("/dev").join(name), &dev.join(name))?;
    }
    for name in ["pts", "shm"] {
        std::fs::create_dir(dev.join(name)).context(describe)?;
    }
    make_terminals(&dev.join("pts"))?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    mount::mount(c"plyfs", &dev.join("shm"), c"tmpfs", safe, b"mode=1777").context(describe)?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlink(target, dev.join(name)).context(describe)?;
    }
    Ok(())
}

/// A device that the machine lacks, or that the user may not reach, is left out.
fn show_device(device: &Path, place: &Path) -> Outcome<()> {
    if !device.exists() {
        return Ok(());
    }
    std::fs::write(place, "").context(|| place.display().to_string())?;
    match mount::bind(device, place, false) {
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM) => {
            std::fs::remove_file(place).context(|| place.display().to_string())
        }
        other => other.context(|| format!("{}: cannot show it in the view", device.display())),
    }
}

/// Terminals owned by the group tty (5 everywhere) where that group exists in the user namespace.
fn make_terminals(place: &Path) -> Outcome<()> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    let options: [&[u8]; 2] =
        [b"newinstance,ptmxmode=0666,mode=620,gid=5", b"newinstance,ptmxmode=0666,mode=620"];
    let mut last = None;
    for option in options {
        match mount::mount(c"devpts", place, c"devpts", safe, option) {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    let reason = last.map(|error| error.to_string()).unwrap_or_default();
    Err(Failure::new(format!("cannot make /dev/pts in the view: {reason}")))
}

/// Mounts a new /proc for the PID namespace that this process is in; where that is forbidden (in a container whose own
/// /proc is masked), the machine's, read-only.
pub fn make_proc(view: &Path) -> Outcome<()> {
    let proc = view.join("proc");
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount::mount(c"proc", &proc, c"proc", safe, b"").is_err() {
        return show_read_only(Path::new("/proc"), &proc);
    }
    // Settings of the running kernel: root could change the machine by writing them.
    for name in
        ["acpi", "bus", "fs", "irq", "latency_stats", "mtrr", "scsi", "sys", "sysrq-trigger", "timer_list"]
    {
        let path = proc.join(name);
        if path.exists() {
            show_read_only(&path, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plyfs_sys::mount::{MountPropagationFlags, Namespaces};

    /// In a thread with mounts of its own.
    #[test]
    fn a_mask_over_a_part_of_sys_is_never_lost() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root, for mounts");
            return;
        }
        let test = || {
            mount::unshare(Namespaces { mount: true, ..Namespaces::default() }).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount::set_propagation(Path::new("/"), private).unwrap();
            let place = tempfile::tempdir().unwrap();
            let (sys, masked) = (place.path(), place.path().join("kernel"));
            let none = MountFlags::empty();
            mount::mount(c"sysfs", sys, c"sysfs", none, b"").unwrap();
            mount::mount(c"mask", &masked, c"tmpfs", none, b"").unwrap();
            // As in a view: a sysfs of the same network is not mounted over itself.
            mount::unshare(Namespaces { network: true, ..Namespaces::default() }).unwrap();
            let shown = || (mount::mount_id(sys).unwrap(), std::fs::read_dir(&masked).unwrap().count());
            let old = shown();
            assert_eq!(old.1, 0, "the mask is empty");
            replace_sys(sys, std::slice::from_ref(&masked)).unwrap();
            let new = shown();
            assert!(new.0 != old.0 && new.1 == 0, "the mask comes with the new one");
            // Of such a mount there are no copies.
            mount::set_propagation(&masked, MountPropagationFlags::UNBINDABLE).unwrap();
            mount::unshare(Namespaces { network: true, ..Namespaces::default() }).unwrap();
            replace_sys(sys, std::slice::from_ref(&masked)).unwrap();
            assert_eq!(shown(), new, "the old one stays");
            for _ in 0..2 {
                mount::unmount_detached(sys).unwrap();
            }
        };
        std::thread::spawn(test).join().unwrap();
    }
}
