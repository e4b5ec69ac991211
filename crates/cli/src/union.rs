//! From mount options to a mounted union: what `plyfs mount` and `plyfs try` have in common.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use plyfs_core::{Overlay, Settings};
use plyfs_format::StackSpec;
use plyfs_format::spec::{Atime, MountFlags, SecurityContexts};
use plyfs_fuse::{Flags, MountOptions, Session};

use crate::failure::{Failure, Outcome};
use crate::readahead;

/// Reads `-o` strings. What is accepted without effect goes to the log; a work directory without an upper is worth a line,
/// since somebody may wait for it to be written to.
pub fn parse(options: &[OsString]) -> Outcome<StackSpec> {
    let parsed = StackSpec::parse(options).map_err(|error| Failure::new(error.to_string()))?;
    for ignored in &parsed.ignored {
        tracing::info!("option without effect: {ignored}");
    }
    if let Some(work) = parsed.useless_work {
        let shown = work.display();
        if !work.is_dir() {
            return Err(Failure::new(format!("workdir {shown}: no such directory")));
        }
        eprintln!("plyfs: workdir {shown} is not used: without upperdir the mount is read-only");
    }
    Ok(parsed.spec)
}

/// The flags asked for, if `-o` strings ask for a remount.
pub fn remount_flags(options: &[OsString]) -> Outcome<Option<MountFlags>> {
    StackSpec::parse_remount(options).map_err(|error| Failure::new(error.to_string()))
}

/// Assembles the stack and mounts it on `target`. Relative paths are taken from the working directory. Nothing is left
/// mounted after a failure.
pub fn mount(
    spec: &StackSpec,
    settings: &Settings,
    target: &Path,
    source: Option<&OsStr>,
) -> Outcome<Session> {
    let overlay = Overlay::assemble(spec, settings).map_err(|error| Failure::new(error.to_string()))?;
    if spec.options.nfs_export == Some(true) && !overlay.handles_last() {
        eprintln!(
            "plyfs: nfs_export=on is off for this mount: it needs root (CAP_DAC_READ_SEARCH) and layers whose files have handles"
        );
    }
    let mut options = session_options(spec);
    if let Some(source) = source {
        options.source = source.to_string_lossy().into_owned();
    }
    // Paths are resolved before the mount is there: they may lead through it, and nobody serves it yet.
    let wanted = readahead::wanted(spec);
    let place = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let session =
        Session::mount(overlay, target, &options).map_err(|error| Failure::new(error.to_string()))?;
    readahead::raise(&place, wanted);
    Ok(session)
}

/// The options of the FUSE session.
fn session_options(spec: &StackSpec) -> MountOptions {
    let options = &spec.options;
    let defaults = MountOptions::default();
    MountOptions {
        source: options.fsname.as_ref().map_or(defaults.source, |name| name.to_string_lossy().into_owned()),
        subtype: defaults.subtype,
        // As the kernel's overlay: what root mounts is there for all.
        allow_other: options.allow_other || options.allow_root || rustix::process::geteuid().is_root(),
        flags: flags(&options.mount),
        labels: if selinux_is_there() { labels(&options.contexts) } else { Vec::new() },
        timeout: options.timeout,
        acl: !options.noacl,
        passthrough: defaults.passthrough,
        writeback: options.writeback.unwrap_or(defaults.writeback),
        fsync: options.fsync.unwrap_or(true) && !options.volatile,
        threads: match options.threaded {
            Some(false) => Some(1),
            _ => defaults.threads,
        },
        max_write: options.max_write.unwrap_or(defaults.max_write),
    }
}

/// Whether SELinux runs. Where it does not the kernel takes its options for unknown ones, and refuses the mount.
fn selinux_is_there() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn labels(contexts: &SecurityContexts) -> Vec<String> {
    let all = [
        ("context", &contexts.context),
        ("fscontext", &contexts.fscontext),
        ("defcontext", &contexts.defcontext),
        ("rootcontext", &contexts.rootcontext),
    ];
    let given = all.into_iter().filter_map(|(name, label)| Some((name, label.as_ref()?)));
    given.map(|(name, label)| format!("{name}={}", label.to_string_lossy())).collect()
}

fn flags(mount: &MountFlags) -> Flags {
    Flags {
        read_only: mount.read_only.unwrap_or(false),
        nosuid: mount.nosuid.unwrap_or(false),
        nodev: mount.nodev.unwrap_or(false),
        noexec: mount.noexec.unwrap_or(false),
        nosymfollow: mount.nosymfollow.unwrap_or(false),
        noatime: mount.atime == Some(Atime::NoAtime),
        nodiratime: mount.nodiratime.unwrap_or(false),
        relatime: mount.atime == Some(Atime::RelAtime),
        strictatime: mount.atime == Some(Atime::StrictAtime),
        sync: mount.sync.unwrap_or(false),
        dirsync: mount.dirsync,
        lazytime: mount.lazytime.unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_security_context_that_is_given_becomes_a_label_of_the_mount() {
        let options = "lowerdir=a,context=\"u:r:t:s0:c1,c2\"";
        let spec = StackSpec::parse(&[options]).unwrap().spec;
        assert_eq!(labels(&spec.options.contexts), ["context=u:r:t:s0:c1,c2"]);
        let spec = StackSpec::parse(&["lowerdir=a,fscontext=u:r:f,defcontext=u:r:d,rootcontext=u:r:r"]);
        let given = labels(&spec.unwrap().spec.options.contexts);
        assert_eq!(given, ["fscontext=u:r:f", "defcontext=u:r:d", "rootcontext=u:r:r"]);
    }
}
