//! Docker's engine with its fuse-overlayfs storage driver, which finds plyfs by that name on its PATH.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::images;
use super::podman::{BUILT, CHANGED, CHANGES, build_context, says};
use super::{Scene, Verdict};
use crate::{child, setup};

const LIMIT: Duration = Duration::from_secs(300);
const START_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(300);
/// Debian's client; one of another version that comes first on the PATH may not speak to this daemon.
const CLIENT: &str = "/usr/bin/docker";
/// What dockerd makes outside of the directories that it is given.
const PLUGINS: [&str; 2] = ["/run/docker/plugins", "/run/docker"];

/// Import, run, exec, diff, commit, a ten-step build, ten containers at once, removal.
pub fn engine(scene: &Scene) -> Result<Verdict> {
    if setup::tool_path("dockerd").is_none() || !Path::new(CLIENT).exists() {
        return Ok(Verdict::Impossible("dockerd is not installed (Debian's docker.io)".to_owned()));
    }
    let present = PLUGINS.map(|path| Path::new(path).exists());
    let mut docker = Docker::start(scene)?;
    let result = use_engine(&docker, scene);
    let stopped = docker.stop();
    for (path, present) in PLUGINS.iter().zip(present) {
        if !present && Path::new(path).exists() {
            fs::remove_dir(path).with_context(|| (*path).to_owned())?;
        }
    }
    result?;
    stopped?;
    fs::remove_dir_all(&docker.base).with_context(|| docker.base.display().to_string())?;
    Ok(Verdict::Passed)
}

fn use_engine(docker: &Docker, scene: &Scene) -> Result<()> {
    let info = docker.call(&["info"])?;
    says(&info, "Storage Driver: fuse-overlayfs")?;
    let archive = images::busybox_archive(scene)?.display().to_string();
    docker.call(&["import", &archive, images::BUSYBOX])?;
    let table = docker.run(images::BUSYBOX, "grep ' / ' /proc/self/mountinfo")?;
    ensure!(table.iter().any(|line| line.contains(" - fuse.plyfs ")), "not on plyfs: {}", table.join("\n"));
    let sleep = ["run", "-d", "--network=host", "--name", "one", images::BUSYBOX, "/bin/sleep", "3600"];
    docker.call(&sleep)?;
    docker.call(&["exec", "one", "/bin/sh", "-c", CHANGES])?;
    says(&docker.call(&["exec", "one", "/bin/sh", "-c", CHANGED])?, "all-as-changed")?;
    let diff = docker.call(&["diff", "one"])?;
    for line in ["D /bin/vi", "C /etc/passwd", "A /usr/share/doc/only", "D /var/lib/data", "A /new/link"] {
        says(&diff, line).context("docker diff")?;
    }
    docker.call(&["commit", "one", "changed:1"])?;
    says(&docker.run("changed:1", CHANGED)?, "all-as-changed")?;
    docker.call(&["stop", "--time", "1", "one"])?;
    docker.call(&["start", "one"])?;
    says(&docker.call(&["exec", "one", "/bin/sh", "-c", CHANGED])?, "all-as-changed")?;
    docker.call(&["rm", "--force", "one"])?;
    let context = build_context(scene)?.display().to_string();
    docker.call(&["build", "--network=host", "-t", "built:1", &context])?;
    says(&docker.run("built:1", BUILT)?, "all-as-built")?;
    docker.call(&["rmi", "--force", "built:1", "changed:1", images::BUSYBOX])?;
    docker.call(&["system", "prune", "--all", "--force", "--volumes"])?;
    docker.store_is_empty()
}

struct Docker {
    daemon: Child,
    base: PathBuf,
}

impl Docker {
    fn start(scene: &Scene) -> Result<Self> {
        let base = scene.directory("docker", 0, 0o711)?;
        let inside = |name: &str| base.join(name).display().to_string();
        let configuration = format!("{{\"deprecated-key-path\": \"{}\"}}\n", inside("key.json"));
        fs::write(base.join("daemon.json"), configuration).context("daemon.json")?;
        let replacement = scene.fuse_overlayfs.parent().context("no parent")?;
        let mut path = OsString::from(replacement);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let log = File::create(base.join("log")).context("dockerd's log")?;
        let daemon = Command::new("dockerd")
            .args([
                "--storage-driver=fuse-overlayfs",
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
            ])
            .args(["--data-root", &inside("data"), "--exec-root", &inside("exec")])
            .args(["--pidfile", &inside("pid"), "--config-file", &inside("daemon.json")])
            .args(["--host", &format!("unix://{}", inside("socket"))])
            .env("PATH", path)
            .env("HOME", &base)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("dockerd")?;
        let mut docker = Self { daemon, base };
        docker.wait_for_answer().or_else(|error| docker.stop().and(Err(error)))?;
        Ok(docker)
    }

    fn wait_for_answer(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !child::run_quiet(&mut self.command(&["version"]), LIMIT)?.success() {
            if self.daemon.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.base.join("log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(10).collect();
                bail!("dockerd does not answer; its log, last line first:\n{}", tail.join("\n"));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(CLIENT);
        command
            .args(args)
            .env("HOME", &self.base)
            .env("DOCKER_HOST", format!("unix://{}", self.base.join("socket").display()))
            // The builder that is part of the daemon.
            .env("DOCKER_BUILDKIT", "0");
        command
    }

    fn call(&self, args: &[&str]) -> Result<Vec<String>> {
        let outcome = child::run_quiet(&mut self.command(args), LIMIT)?;
        ensure!(outcome.success(), "docker {}:\n{}", args.join(" "), outcome.lines.join("\n"));
        Ok(outcome.lines)
    }

    fn run(&self, image: &str, script: &str) -> Result<Vec<String>> {
        self.call(&["run", "--rm", "--network=host", image, "/bin/sh", "-c", script])
    }

    fn store_is_empty(&self) -> Result<()> {
        let store = self.base.join("data/fuse-overlayfs");
        let mut left = Vec::new();
        for entry in fs::read_dir(&store).with_context(|| store.display().to_string())? {
            left.push(entry?.file_name().to_string_lossy().into_owned());
        }
        left.retain(|name| name != "l");
        ensure!(left.is_empty(), "left in the store: {}", left.join(", "));
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw).context("dockerd's id")?;
        if self.daemon.try_wait()?.is_none() {
            kill_process(pid, Signal::TERM)?;
            self.daemon.wait()?;
        }
        // Kept by the daemon for its next start.
        let network = self.base.join("exec/netns/default");
        match rustix::mount::unmount(&network, UnmountFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(()),
            Err(error) => Err(error).with_context(|| network.display().to_string()),
        }
    }
}
