//! Mounting a container: the kernel's overlay, plyfs's FUSE, or a plain copy.
//!
//! Owns the choice of the backend, the mount itself, and the count of those who hold it. The kernel is given
//! one `lowerdir+` a layer through the mount API of Linux 6.5, so that no page-size limit binds; an older one
//! gets short names relative to the store, as Docker does it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use plyfs_sys::mount::{self as sysmount, Parameter};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::copy;
use crate::db::Container;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::store::Store;

/// Who shows the merged view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// The kernel's overlayfs.
    Kernel,
    /// plyfs's own file system.
    Fuse,
    /// A copy of all files, sharing their data where the file system can.
    Copy,
}

impl Backend {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Kernel => "kernel",
            Backend::Fuse => "fuse",
            Backend::Copy => "copy",
        }
    }
}

impl std::str::FromStr for Backend {
    type Err = Error;

    fn from_str(s: &str) -> Result<Backend> {
        [Backend::Auto, Backend::Kernel, Backend::Fuse, Backend::Copy]
            .into_iter()
            .find(|b| b.name() == s)
            .ok_or_else(|| Error::invalid(format!("backend \"{s}\""), "expected auto, kernel, fuse or copy"))
    }
}

impl Store {
    /// Mounts a container, or finds it mounted; returns the merged path. Each call is to be matched by one of
    /// [`Store::unmount`].
    pub fn mount(&self, name: &str, backend: Backend) -> Result<PathBuf> {
        let _alone = self.mount_lock()?;
        let mut c = self.container(name)?;
        let merged = self.merged(&c);
        if self.is_mounted(&c)? {
            if let Some(b) = c.backend.as_deref().filter(|b| backend != Backend::Auto && *b != backend.name())
            {
                let by = format!("mounted by the backend {b}");
                return Err(Error::InUse { what: "container", name: c.name, by });
            }
        } else {
            c.mounts = 0;
            c.backend = Some(self.mount_with(&c, backend)?.name().to_owned());
        }
        c.mounts += 1;
        self.write(|tx| tx.put(&c))?;
        Ok(merged)
    }

    /// Gives up one mount; the last one unmounts. Says whether it did.
    pub fn unmount(&self, name: &str, force: bool) -> Result<bool> {
        let _alone = self.mount_lock()?;
        let mut c = self.container(name)?;
        if !self.is_mounted(&c)? {
            return Err(Error::NotFound { what: "mount of container", name: c.name });
        }
        c.mounts = if force { 0 } else { c.mounts.saturating_sub(1) };
        if c.mounts == 0 {
            self.take_down(&c)?;
            c.backend = None;
        }
        self.write(|tx| tx.put(&c))?;
        Ok(c.mounts == 0)
    }

    /// Unmounts, whoever holds it.
    pub(crate) fn unmount_all(&self, c: &Container) -> Result<()> {
        self.unmount(&c.id, true).map(drop)
    }

    /// Where the merged view is.
    pub fn merged(&self, c: &Container) -> PathBuf {
        self.layout.layer(&c.id).join("merged")
    }

    /// Whether the merged view is there, whatever the records say: mounts end with a reboot.
    pub fn is_mounted(&self, c: &Container) -> Result<bool> {
        let merged = self.merged(c);
        if c.backend.as_deref() == Some(Backend::Copy.name()) {
            return Ok(self.copy_marker(c).exists());
        }
        Ok(mounted_type(&merged)?.is_some())
    }

    /// Tries a backend, or the first that works; says which.
    fn mount_with(&self, c: &Container, backend: Backend) -> Result<Backend> {
        let order: &[Backend] = match backend {
            Backend::Auto => &[Backend::Kernel, Backend::Fuse, Backend::Copy],
            Backend::Kernel => &[Backend::Kernel],
            Backend::Fuse => &[Backend::Fuse],
            Backend::Copy => &[Backend::Copy],
        };
        let mut why = Vec::new();
        for b in order {
            let r = match b {
                Backend::Fuse => self.mount_fuse(c),
                Backend::Copy => self.mount_copy(c),
                _ => self.mount_kernel(c),
            };
            match r {
                Ok(()) => {
                    for w in &why {
                        tracing::info!("{w}");
                    }
                    return Ok(*b);
                }
                Err(e) if order.len() == 1 => return Err(e),
                Err(e) => why.push(format!("backend {}: {e}", b.name())),
            }
        }
        Err(Error::Unsupported(why.join("; ")))
    }

    fn mount_kernel(&self, c: &Container) -> Result<()> {
        let home = self.layout.overlay2();
        let dir = rustix::fs::open(
            &home,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .at("open", &home)?;
        let text = |rel: &str| parameter(&home, dir.as_fd().as_raw_fd(), rel);
        let lowers = self.lower_links(c)?.iter().map(|l| text(l)).collect::<Result<Vec<_>>>()?;
        let (upper, work) = (text(&format!("{}/diff", c.id))?, text(&format!("{}/work", c.id))?);
        let mut p: Vec<Parameter<'_>> = vec![Parameter::Text(c"source", c"plyfs")];
        p.extend(lowers.iter().map(|l| Parameter::Text(c"lowerdir+", l)));
        p.push(Parameter::Text(c"upperdir", &upper));
        p.push(Parameter::Text(c"workdir", &work));
        // The index would tie the layers to this file system's handles; a store's layers may be copied.
        p.push(Parameter::Text(c"index", c"off"));
        if self.ownership == crate::owner::Ownership::Recorded {
            p.push(Parameter::Flag(c"userxattr"));
        }
        let merged = self.merged(c);
        match sysmount::new_filesystem(c"overlay", &p, 0) {
            Ok(m) => {
                let at = rustix::fs::open(
                    &merged,
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                )
                .at("open", &merged)?;
                sysmount::attach_over(&m, &at).at("mount", &merged)
            }
            Err(Errno::INVAL | Errno::NOSYS) => self.mount_kernel_old(c, &merged),
            Err(e) => Err(e).at("mount the kernel's overlay on", &merged),
        }
    }

    /// Before Linux 6.5: all options in one page, so the names are short and relative to the store.
    fn mount_kernel_old(&self, c: &Container, merged: &Path) -> Result<()> {
        let options = format!("{},index=off", self.overlay_options(c)?);
        let mut cmd = Command::new("mount");
        cmd.args(["-t", "overlay", "-o", &options, "overlay"])
            .arg(merged)
            .current_dir(self.layout.overlay2());
        run(&mut cmd)
    }

    fn mount_fuse(&self, c: &Container) -> Result<()> {
        let program = self.fuse_program()?;
        let mut cmd = Command::new(&program);
        let options = format!("{}{}", self.overlay_options(c)?, self.one_owner(c)?);
        cmd.arg("-o").arg(options).arg(self.merged(c)).current_dir(self.layout.overlay2());
        run(&mut cmd)?;
        match mounted_type(&self.merged(c))? {
            Some(_) => Ok(()),
            None => Err(Error::Program {
                program: program.display().to_string(),
                why: "exited without mounting".into(),
            }),
        }
    }

    /// To a user everything is shown as the user's own, who is the container's root: the recorded owners would be strangers
    /// whose files the kernel keeps from being written. Where the upper bears records, what is made is recorded as root's.
    fn one_owner(&self, c: &Container) -> Result<String> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if self.ownership == crate::owner::Ownership::Real || uid.is_root() {
            return Ok(String::new());
        }
        let upper = self.layout.layer(&c.id).join("diff");
        let records =
            crate::beneath::xattr(&upper, crate::owner::OVERRIDE).at("read the owner of", &upper)?;
        let map = records.map_or(String::new(), |_| format!(",uidmapping=0:{uid}:1,gidmapping=0:{gid}:1"));
        Ok(format!(",squash_to_uid={uid},squash_to_gid={gid}{map}"))
    }

    fn fuse_program(&self) -> Result<PathBuf> {
        match &self.options.fuse_program {
            Some(p) => Ok(p.clone()),
            None => std::env::current_exe().at("find", "this program"),
        }
    }

    fn mount_copy(&self, c: &Container) -> Result<()> {
        if c.size_limit.is_some() {
            return Err(Error::Unsupported("a copy of the whole image cannot keep a size limit".into()));
        }
        let merged = self.merged(c);
        let stack = self.container_stack(c)?;
        let task = self.options.progress.task("copying", None);
        let staged = merged.with_file_name("merged.new");
        durable::remove_tree(&staged)?;
        copy::tree(&stack, &staged, &*task)?;
        std::fs::remove_dir(&merged).at("remove", &merged)?;
        std::fs::rename(&staged, &merged).at("rename", &merged)?;
        durable::create(&self.copy_marker(c), b"", 0o600)
    }

    /// Lower layers as `l/LINK`, topmost first; an empty directory stands for an image without layers.
    fn lower_links(&self, c: &Container) -> Result<Vec<String>> {
        let path = self.layout.layer(&c.id).join("lower");
        match durable::read_small(&path, 1 << 20) {
            Ok(b) => Ok(String::from_utf8_lossy(&b).split(':').map(str::to_owned).collect()),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                durable::ensure_dir(&self.layout.layer(&c.id).join("empty"), 0o755)?;
                Ok(vec![format!("{}/empty", c.id)])
            }
            Err(e) => Err(e),
        }
    }

    /// The classic option string, names relative to `overlay2`.
    fn overlay_options(&self, c: &Container) -> Result<String> {
        let lowers = self.lower_links(c)?.join(":");
        Ok(format!("lowerdir={lowers},upperdir={id}/diff,workdir={id}/work", id = c.id))
    }

    fn take_down(&self, c: &Container) -> Result<()> {
        let merged = self.merged(c);
        if c.backend.as_deref() == Some(Backend::Copy.name()) {
            return self.take_down_copy(c, &merged);
        }
        let r = match mounted_type(&merged)?.as_deref() {
            Some(t) if t.starts_with("fuse") && !rustix::process::geteuid().is_root() => {
                run(Command::new("fusermount3").arg("-u").arg(&merged))
            }
            _ => {
                rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::NOFOLLOW).at("unmount", &merged)
            }
        };
        match r {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                Err(Error::InUse {
                    what: "container",
                    name: c.name.clone(),
                    by: "a process has files open or its working directory there".into(),
                })
            }
            r => r,
        }
    }

    /// What was changed in the copy becomes the upper: only then is the copy given up.
    fn take_down_copy(&self, c: &Container, merged: &Path) -> Result<()> {
        copy::write_back(&self.container_dirs(c)?, merged, self.ownership)?;
        durable::remove_file(&self.copy_marker(c))?;
        let old = merged.with_file_name("merged.old");
        durable::remove_tree(&old)?;
        std::fs::rename(merged, &old).at("rename", merged)?;
        durable::new_dir(merged, 0o700)?;
        durable::remove_tree(&old)
    }

    fn copy_marker(&self, c: &Container) -> PathBuf {
        self.layout.layer(&c.id).join("copied")
    }

    /// Mounting and counting is one step among all processes.
    fn mount_lock(&self) -> Result<std::fs::File> {
        let p = self.layout.containers().join(".mounts");
        let f =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&p).at("open", &p)?;
        rustix::fs::flock(&f, rustix::fs::FlockOperation::LockExclusive).at("lock", &p)?;
        Ok(f)
    }
}

/// A path as a mount parameter: at most 255 bytes, through a descriptor where the store lies deep.
fn parameter(home: &Path, dir: i32, rel: &str) -> Result<CString> {
    let full = home.join(rel);
    let bytes = full.as_os_str().as_bytes();
    let short = bytes.len() < 256 && !bytes.contains(&b',');
    let text = if short { bytes.to_vec() } else { format!("/proc/self/fd/{dir}/{rel}").into_bytes() };
    CString::new(text).map_err(|_| Error::invalid("mount option", "contains a NUL"))
}

/// The type of what is mounted exactly on `path`, the topmost if several are.
pub(crate) fn mounted_type(path: &Path) -> Result<Option<String>> {
    let all = plyfs_sys::mountinfo::read().at("read", "/proc/self/mountinfo")?;
    Ok(all.into_iter().rfind(|m| m.target == path).map(|m| m.fstype))
}

/// Runs a helper; its message is the error's.
pub(crate) fn run(cmd: &mut Command) -> Result<()> {
    let program = cmd.get_program().to_string_lossy().into_owned();
    let out = cmd
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::Program { program: program.clone(), why: e.to_string() })?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    let why = if text.is_empty() { out.status.to_string() } else { text };
    Err(Error::Program { program, why })
}
