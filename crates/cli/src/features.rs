//! `plyfs features`: what this kernel and this user can have, found by trying, and why not.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use plyfs_format::{Name, Namespace, Private};
use plyfs_sys::{DirMut, Errno, OFlags, RenameFlags, XattrFlags, creds};
use serde_json::{Map, Value, json};

use crate::args::FeaturesArgs;
use crate::failure::{Context, Failure, Outcome};
use crate::paint::Paint;

/// One thing to have or not to have.
struct Feature {
    /// A word for scripts.
    key: &'static str,
    /// What it is for.
    title: &'static str,
    /// What is found, or why it is missing.
    found: Result<String, String>,
}

/// `plyfs features`.
pub fn show(args: &FeaturesArgs, out: &mut dyn Write) -> Outcome<()> {
    let mut features = of_the_kernel();
    features.extend(of_the_user());
    features.extend(of_a_directory(&args.upper)?);
    if args.json {
        let object: Map<String, Value> = features.iter().map(to_json).collect();
        writeln!(out, "{}", Value::Object(object))?;
        return Ok(());
    }
    let paint = Paint::for_stream(&std::io::stdout());
    let width = features.iter().map(|feature| feature.title.len()).max().unwrap_or(0);
    for feature in &features {
        let title = feature.title;
        match &feature.found {
            Ok(found) => writeln!(out, "{} {title:width$}  {found}", paint.added("yes"))?,
            Err(reason) => writeln!(out, "{} {title:width$}  {reason}", paint.deleted("no "))?,
        }
    }
    Ok(())
}

fn to_json(feature: &Feature) -> (String, Value) {
    let value = match &feature.found {
        Ok(found) => json!({"available": true, "detail": found}),
        Err(reason) => json!({"available": false, "reason": reason}),
    };
    (feature.key.to_owned(), value)
}

fn of_the_kernel() -> Vec<Feature> {
    vec![
        Feature { key: "fuse", title: "FUSE", found: fuse() },
        Feature { key: "passthrough", title: "data by passthrough", found: passthrough() },
        Feature {
            key: "kernel_overlay",
            title: "the kernel's own overlayfs",
            found: known_filesystem("overlay"),
        },
        Feature { key: "user_namespaces", title: "user namespaces", found: user_namespaces() },
        Feature { key: "io_uring", title: "FUSE over io_uring", found: fuse_uring() },
    ]
}

fn of_the_user() -> Vec<Feature> {
    let namespace = if creds::has_cap_sys_admin_init() {
        Ok("trusted.overlay.*".to_owned())
    } else {
        Err("user.overlay.* (option userxattr): trusted.* needs CAP_SYS_ADMIN on the machine itself"
            .to_owned())
    };
    vec![
        Feature { key: "mount", title: "mounting", found: mounting() },
        Feature { key: "trusted_xattrs", title: "trusted private attributes", found: namespace },
        Feature { key: "subordinate_ids", title: "more ids in user namespaces", found: subordinate_ids() },
    ]
}

fn fuse() -> Result<String, String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(format!("/dev/fuse, Linux {release}")),
        Err(error) => Err(format!("/dev/fuse: {error}; load the module (modprobe fuse) or allow the user")),
    }
}

/// Linux 6.9, built in, and CAP_SYS_ADMIN on the machine itself.
fn passthrough() -> Result<String, String> {
    let (major, minor) = kernel_version();
    if (major, minor) < (6, 9) {
        return Err(format!(
            "needs Linux 6.9, this is {major}.{minor}; the page cache makes up for much of it"
        ));
    }
    if kernel_config("CONFIG_FUSE_PASSTHROUGH") == Some(false) {
        return Err("this kernel was built without CONFIG_FUSE_PASSTHROUGH".to_owned());
    }
    if !creds::has_cap_sys_admin_init() {
        return Err("needs root on the machine itself; the page cache and writeback make up for much of it"
            .to_owned());
    }
    Ok("reads, writes and mmap of real files without asking plyfs".to_owned())
}

fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|other: char| !other.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether the kernel was built with an option, where it tells: a file in /boot.
fn kernel_config(option: &str) -> Option<bool> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let text = fs::read_to_string(format!("/boot/config-{release}")).ok()?;
    Some(text.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| rest == "=y" || rest == "=m")))
}

fn known_filesystem(name: &str) -> Result<String, String> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        Ok("available for comparison".to_owned())
    } else {
        Err(format!("not loaded (modprobe {name}); plyfs does not need it"))
    }
}

fn user_namespaces() -> Result<String, String> {
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if !Path::new("/proc/self/ns/user").exists() {
        return Err("this kernel was built without them".to_owned());
    }
    if read("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Err("forbidden by sysctl user.max_user_namespaces=0".to_owned());
    }
    if creds::has_cap_sys_admin() {
        return Ok("plyfs try needs one".to_owned());
    }
    if read("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Err("forbidden to users by sysctl kernel.unprivileged_userns_clone=0".to_owned());
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Err("restricted to users by sysctl kernel.apparmor_restrict_unprivileged_userns=1".to_owned());
    }
    Ok("mounts and plyfs try work without root".to_owned())
}

fn fuse_uring() -> Result<String, String> {
    match fs::read_to_string("/sys/module/fuse/parameters/enable_uring") {
        Ok(text) if text.trim() == "Y" => Ok("enabled in the kernel; plyfs does not use it yet".to_owned()),
        Ok(_) => {
            Err("switched off (module parameter fuse.enable_uring); plyfs does not use it yet".to_owned())
        }
        Err(_) => Err("needs Linux 6.14; plyfs does not use it yet".to_owned()),
    }
}

fn mounting() -> Result<String, String> {
    if creds::has_cap_sys_admin() {
        return Ok("by mount(2)".to_owned());
    }
    for program in ["fusermount3", "fusermount"] {
        if Command::new(program).arg("--version").output().is_ok() {
            return Ok(format!("by {program}"));
        }
    }
    Err("this user may not, and there is no fusermount3 (install fuse3); plyfs try works all the same"
        .to_owned())
}

fn subordinate_ids() -> Result<String, String> {
    if creds::has_cap_sys_admin_init() {
        return Ok("root has all".to_owned());
    }
    if Command::new("newuidmap").output().is_err() {
        return Err("there is no newuidmap (install uidmap); one id must do".to_owned());
    }
    let given = fs::read_to_string("/etc/subuid").unwrap_or_default();
    if given.trim().is_empty() {
        return Err("/etc/subuid gives none; one id must do".to_owned());
    }
    Ok("newuidmap and /etc/subuid".to_owned())
}

/// What the file system of a directory can do for an upper: tried in a directory made for it, which is removed.
fn of_a_directory(path: &Path) -> Outcome<Vec<Feature>> {
    let place = Probe::new(path)?;
    let dir = &place.dir;
    let features = vec![
        Feature { key: "d_type", title: "file types in listings", found: place.d_type() },
        Feature { key: "whiteouts", title: "whiteout devices", found: place.whiteout() },
        Feature {
            key: "rename_whiteout",
            title: "rename leaving a whiteout",
            found: place.rename_whiteout(),
        },
        Feature { key: "xattrs", title: "private attributes", found: place.xattrs() },
        Feature {
            key: "tmpfile",
            title: "files without a name",
            found: told(dir.tmpfile(0o600, OFlags::RDWR)),
        },
        Feature { key: "reflink", title: "copy-up by reflink", found: place.reflink() },
        Feature { key: "file_handles", title: "file handles", found: place.handles() },
    ];
    place.remove()?;
    Ok(features)
}

fn told<T>(result: plyfs_sys::Result<T>) -> Result<String, String> {
    result.map(|_| String::new()).map_err(|error| error.to_string())
}

struct Probe {
    path: PathBuf,
    dir: DirMut,
}

impl Probe {
    fn new(parent: &Path) -> Outcome<Self> {
        let path = parent.join(format!(".plyfs-features-{}", std::process::id()));
        let hint = "choose a directory that can be written with --upper";
        fs::create_dir(&path)
            .map_err(|error| Failure::new(format!("{}: {error}; {hint}", parent.display())))?;
        let dir = DirMut::open_root(&path).context(|| path.display().to_string())?;
        Ok(Self { path, dir })
    }

    fn remove(self) -> Outcome<()> {
        fs::remove_dir_all(&self.path).context(|| format!("{}: cannot remove it", self.path.display()))
    }

    /// Makes a file of some bytes.
    fn file(&self, name: &'static [u8]) -> Result<Name<'static>, String> {
        let path = self.path.join(OsStr::from_bytes(name));
        fs::write(&path, [b'x'; 4096]).map_err(|error| error.to_string())?;
        constant(name)
    }

    fn d_type(&self) -> Result<String, String> {
        self.file(b"one")?;
        let mut typed = false;
        let listing = self.dir.list().and_then(|mut list| {
            list.for_each(|entry| {
                typed |= entry.dtype.is_some();
                std::ops::ControlFlow::Continue(())
            })
        });
        listing.map_err(|error| error.to_string())?;
        if typed {
            Ok(String::new())
        } else {
            Err("listings do not say (xfs: make it with ftype=1)".to_owned())
        }
    }

    fn whiteout(&self) -> Result<String, String> {
        told(self.dir.mknod(constant(b"whiteout")?, 0o020_000, 0))
    }

    fn rename_whiteout(&self) -> Result<String, String> {
        let name = self.file(b"two")?;
        told(self.dir.rename(name, &self.dir, constant(b"moved")?, RenameFlags::WHITEOUT))
    }

    fn xattrs(&self) -> Result<String, String> {
        let name = self.file(b"one")?;
        let works = |namespace: Namespace| {
            self.dir.set_xattr(name, namespace.name(Private::Opaque), b"0", XattrFlags::empty()).is_ok()
        };
        match (works(Namespace::Trusted), works(Namespace::User)) {
            (true, true) => Ok("trusted.* and user.*".to_owned()),
            (true, false) => Ok("trusted.*".to_owned()),
            (false, true) => Ok("user.*".to_owned()),
            (false, false) => Err("the file system has neither trusted.* nor user.*".to_owned()),
        }
    }

    fn reflink(&self) -> Result<String, String> {
        let name = self.file(b"one")?;
        let clone = || {
            let from = self.dir.open_file(name, OFlags::RDONLY)?;
            let to =
                self.dir.create_file(Name::new(b"clone").map_err(|_| Errno::INVAL)?, OFlags::RDWR, 0o600)?;
            to.clone_from(&from)
        };
        match clone() {
            Ok(()) => Ok("data is shared until it is written".to_owned()),
            Err(_) => Err("data is copied (btrfs and xfs could share it)".to_owned()),
        }
    }

    fn handles(&self) -> Result<String, String> {
        let name = self.file(b"three")?;
        match self.dir.file_handle(name) {
            Ok(Some(_)) => Ok("inode numbers stay the same across remounts".to_owned()),
            Ok(None) => Err("inode numbers of copied-up files change at remount".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn constant(bytes: &'static [u8]) -> Result<Name<'static>, String> {
    Name::new(bytes).map_err(|error| error.to_string())
}
