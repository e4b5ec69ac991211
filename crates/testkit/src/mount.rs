//! Unions mounted: by the kernel (the oracle), or by a command that understands overlay mount options.
//!
//! Owns mounting and unmounting. A [`Mounted`] is unmounted when dropped, so that a failing test leaves nothing.

use anyhow::{Context, Result, bail};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to mount.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    /// The lower layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper directory and its work directory; none for a read-only union.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Further options, such as `redirect_dir=on` or `userxattr`.
    pub options: Vec<String>,
}

/// Who mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's overlayfs.
    Kernel,
    /// The `plyfs` binary at this path: `plyfs mount -o … TARGET`, `plyfs umount TARGET`.
    Plyfs(PathBuf),
    /// The same, with the daemon's log appended to a file.
    LoggingPlyfs {
        /// The binary.
        binary: PathBuf,
        /// The log.
        log: PathBuf,
    },
    /// A fuse-overlayfs binary: `fuse-overlayfs -o … TARGET`, unmounted with umount(2).
    FuseOverlayfs(PathBuf),
    /// The kernel's overlayfs with an option changed, so that it behaves differently: what a comparison that
    /// works must notice. The option replaces the stack's options of the same key.
    KernelWith(String),
}

impl Driver {
    /// Mounts `stack` on `target`, which must be a directory.
    pub fn mount(&self, stack: &Stack, target: &Path) -> Result<Mounted> {
        match self {
            Driver::Kernel => kernel(stack, target),
            Driver::KernelWith(option) => kernel(&stack.with_option(option), target),
            Driver::Plyfs(binary) => command(Command::new(binary).arg("mount"), stack, target),
            Driver::LoggingPlyfs { binary, log } => {
                command(Command::new(binary).args(["mount", "--log"]).arg(log), stack, target)
            }
            // It refuses redirects in so many words.
            Driver::FuseOverlayfs(binary) => {
                command(&mut Command::new(binary), &stack.with_option("redirect_dir=off"), target)
            }
        }
        .with_context(|| format!("{self} could not mount {}", target.display()))?;
        Ok(Mounted { driver: self.clone(), target: target.to_owned(), gone: false })
    }
}

impl std::fmt::Display for Driver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Driver::Kernel => out.write_str("kernel overlay"),
            Driver::KernelWith(option) => write!(out, "kernel overlay with {option}"),
            Driver::Plyfs(_) | Driver::LoggingPlyfs { .. } => out.write_str("plyfs"),
            Driver::FuseOverlayfs(_) => out.write_str("fuse-overlayfs"),
        }
    }
}

impl Stack {
    fn with_option(&self, option: &str) -> Self {
        let mut stack = self.clone();
        let key = option.split('=').next().unwrap_or(option);
        stack.options.retain(|other| other.split('=').next() != Some(key));
        stack.options.push(option.to_owned());
        stack
    }

    /// The options as one string for `-o`, with `\`, `:` and `,` escaped in paths.
    pub fn to_option_string(&self) -> OsString {
        let lowers: Vec<Vec<u8>> = self.lowers.iter().map(|path| escape(path)).collect();
        let mut parts = vec![[b"lowerdir=".as_slice(), &lowers.join(&b':')].concat()];
        if let Some((upper, work)) = &self.upper {
            parts.push([b"upperdir=".as_slice(), &escape(upper)].concat());
            parts.push([b"workdir=".as_slice(), &escape(work)].concat());
        }
        parts.extend(self.options.iter().map(|option| option.clone().into_bytes()));
        OsString::from_vec(parts.join(&b','))
    }
}

/// A mounted union; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    driver: Driver,
    target: PathBuf,
    gone: bool,
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts, and waits until the file system is gone, so that its upper can be used by another.
    pub fn unmount(mut self) -> Result<()> {
        self.gone = true;
        match &self.driver {
            Driver::Plyfs(binary) | Driver::LoggingPlyfs { binary, .. } => {
                run(Command::new(binary).arg("umount").arg(&self.target))
            }
            _ => unmount(&self.target, UnmountFlags::NOFOLLOW)
                .with_context(|| format!("umount {}", self.target.display())),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Reached only when a test gives up: lazily, for descriptors may still be open.
        if !self.gone
            && let Err(cause) = unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            eprintln!("{} was left mounted: {cause}", self.target.display());
        }
    }
}

/// By the new mount API: one call a layer, so that no page limits how many there are.
fn kernel(stack: &Stack, target: &Path) -> Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen overlay")?;
    let set = |key: &str, value: &Path| {
        fsconfig_set_string(&context, key, value).with_context(|| format!("{key}={}", value.display()))
    };
    fsconfig_set_string(&context, "source", "overlay")?;
    for lower in &stack.lowers {
        set("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = &stack.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
    }
    for option in &stack.options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        }
        .with_context(|| option.clone())?;
    }
    fsconfig_create(&context).context("creating the overlay")?;
    // The kernel overlay keeps access times by its own mount's flags, whatever those of the layers are.
    let noatime = MountAttrFlags::MOUNT_ATTR_NOATIME;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, noatime).context("fsmount")?;
    move_mount(&mount, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move_mount")
}

fn command(command: &mut Command, stack: &Stack, target: &Path) -> Result<()> {
    run(command.arg("-o").arg(stack.to_option_string()).arg(target))
}

fn run(command: &mut Command) -> Result<()> {
    let status =
        command.stdin(std::process::Stdio::null()).status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in OsStr::as_bytes(path.as_os_str()) {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{self, Need};

    #[test]
    fn paths_are_escaped_in_the_option_string() {
        let stack = Stack {
            lowers: vec!["/a:b".into(), "/c,d".into()],
            upper: Some(("/u".into(), "/w".into())),
            options: vec!["userxattr".into()],
        };
        let expected = r"lowerdir=/a\:b:/c\,d,upperdir=/u,workdir=/w,userxattr";
        assert_eq!(stack.to_option_string(), expected);
    }

    #[test]
    fn the_kernel_mounts_a_hundred_layers() {
        if !need::met(&[Need::Root, Need::Filesystem("overlay")]) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = (0..100).map(|n| dir.path().join(format!("lower-{n}"))).collect();
        for (n, lower) in lowers.iter().enumerate() {
            std::fs::create_dir(lower).unwrap();
            std::fs::write(lower.join(format!("file-{n}")), "").unwrap();
        }
        let target = dir.path().join("merged");
        std::fs::create_dir(&target).unwrap();
        let mounted = Driver::Kernel.mount(&Stack { lowers, ..Stack::default() }, &target).unwrap();
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 100);
        mounted.unmount().unwrap();
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
}
