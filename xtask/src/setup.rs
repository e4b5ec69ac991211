//! What the tests need of the machine: the tools of Debian packages, /dev/fuse, mount namespaces.
//!
//! Missing packages are installed by apt-get where that is possible. What cannot be had is named and is
//! not an error here: without [`Machine::complete`] the tests skip, with a reason, what they cannot do.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child;

/// A tool that some test calls, and the package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("fusermount3", "fuse3"),
    ("mkfs.ext4", "e2fsprogs"),
    ("chattr", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("setfacl", "acl"),
    ("setfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("newuidmap", "uidmap"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("git", "git"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("python3", "python3"),
];
const APT_LIMIT: Duration = Duration::from_secs(240);
const APT_ATTEMPTS: usize = 3;
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// What was found.
pub struct Machine {
    /// Everything is here: a test that skips would be a fault.
    pub complete: bool,
}

/// Installs what is missing, as far as this user can, and tells what still is.
pub fn run() -> Result<Machine> {
    if !missing_packages(TOOLS).is_empty() && rustix::process::geteuid().is_root() && is_tool("apt-get") {
        install(&missing_packages(TOOLS))?;
    }
    let mut lacks: Vec<String> =
        missing_packages(TOOLS).iter().map(|package| format!("package {package}")).collect();
    if !rustix::process::geteuid().is_root() {
        lacks.push("root".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        lacks.push(format!("/dev/fuse ({error})"));
    }
    if !can_mount()? {
        lacks.push("overlay mounts in a mount namespace".to_owned());
    }
    for lack in &lacks {
        println!("setup: this machine lacks {lack}: tests that need it are skipped");
    }
    Ok(Machine { complete: lacks.is_empty() })
}

/// Installs the packages of those `tools` that are missing, without starting what they bring as services.
pub fn install_tools(tools: &[(&str, &'static str)]) -> Result<()> {
    let missing = missing_packages(tools);
    if missing.is_empty() {
        return Ok(());
    }
    // What invoke-rc.d asks before it starts a service; 101 is "no".
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        fs::write(policy, "#!/bin/sh\nexit 101\n").context("policy-rc.d")?;
        fs::set_permissions(policy, PermissionsExt::from_mode(0o755)).context("policy-rc.d")?;
    }
    let installed = install(&missing);
    if ours {
        fs::remove_file(policy).context("policy-rc.d")?;
    }
    installed?;
    match missing_packages(tools) {
        missing if missing.is_empty() => Ok(()),
        missing => bail!("cannot install {}", missing.join(" ")),
    }
}

fn missing_packages(tools: &[(&str, &'static str)]) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        tools.iter().filter(|(tool, _)| !is_tool(tool)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Whether a program of this name can be called, administrators' directories included.
pub fn is_tool(name: &str) -> bool {
    tool_path(name).is_some()
}

/// Where [`is_tool`] finds the program.
pub fn tool_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).to_path_buf()));
    let mut candidates = directories.iter().map(|directory| directory.join(name));
    candidates.find(|path| fs::metadata(path).is_ok_and(|found| found.is_file()))
}

/// Installs packages, with a second and third attempt after a refreshed package list.
fn install(packages: &[&str]) -> Result<()> {
    println!("setup: installing {}", packages.join(" "));
    for _ in 0..APT_ATTEMPTS {
        let mut update = apt();
        update.args(["update", "-qq"]);
        let mut install = apt();
        install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
        // A package list that could not be refreshed may still serve.
        let updated = child::run(&mut update, APT_LIMIT)?.success();
        if child::run(&mut install, APT_LIMIT)?.success() {
            return Ok(());
        }
        println!("setup: apt-get failed (package list refreshed: {updated})");
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-o",
        "Acquire::Retries=3",
        "-o",
        "DPkg::Lock::Timeout=120",
    ]);
    command
}

/// Whether a process may make a mount namespace and mount an overlay in it.
fn can_mount() -> Result<bool> {
    let script = "mount -t tmpfs none /tmp && mkdir /tmp/l /tmp/u /tmp/w /tmp/m && \
                  mount -t overlay none -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /tmp/m";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script]);
    Ok(is_tool("unshare") && child::run(&mut command, PROBE_LIMIT)?.success())
}
