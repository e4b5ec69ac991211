//! podman and buildah with a store of their own, as root or as an unprivileged user.
//!
//! Owns command lines, environment and configuration; what is asked of the engines is the steps' affair.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::leftovers;
use super::scene::{Scene, USERS, User};
use crate::child;
use plyfs_sys::mountinfo;

/// For one command of an engine, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(900);
const SHOWN_LINES: usize = 25;

/// Who calls the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Root,
    /// The first of [`USERS`].
    User,
}

/// What mounts the containers' root file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Plyfs,
    /// The engine's own use of the kernel's overlayfs, the measure of what is right.
    Kernel,
}

/// One store and how to call engines on it.
pub struct Client<'s> {
    pub scene: &'s Scene,
    user: Option<&'static User>,
    backend: Backend,
    base: PathBuf,
}

/// Gives `body` a client with an empty store, and checks afterwards that removing all leaves nothing.
pub fn with<T>(
    scene: &Scene,
    owner: Owner,
    backend: Backend,
    body: impl FnOnce(&Client<'_>) -> Result<T>,
) -> Result<T> {
    let client = Client::new(scene, owner, backend)?;
    let result = body(&client);
    let cleaned = client.remove_all();
    let value = result?;
    cleaned.context("cleaning up")?;
    Ok(value)
}

impl<'s> Client<'s> {
    fn new(scene: &'s Scene, owner: Owner, backend: Backend) -> Result<Self> {
        let user = USERS.first().filter(|_| owner == Owner::User);
        let name = format!("store-{owner:?}-{backend:?}");
        let base = scene.directory(&name, user.map_or(0, |user| user.id), 0o711)?;
        let client = Self { scene, user, backend, base };
        fs::write(client.storage_conf(), client.storage_text())
            .with_context(|| client.storage_conf().display().to_string())?;
        Ok(client)
    }

    /// Calls podman; its output, both kinds, line by line. Fails if podman does.
    pub fn podman(&self, args: &[&str]) -> Result<Vec<String>> {
        self.engine("podman", args)
    }

    /// Calls buildah, likewise.
    pub fn buildah(&self, args: &[&str]) -> Result<Vec<String>> {
        self.engine("buildah", args)
    }

    /// A command line that is not run yet.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => as_user(user, self.scene, program),
        };
        if self.user.is_none() {
            command.env("HOME", self.scene.path("home")).args(self.global_options(program));
        }
        command
            .args(args)
            .current_dir("/")
            .env("CONTAINERS_CONF", self.scene.containers_conf())
            .env("CONTAINERS_STORAGE_CONF", self.storage_conf())
            .env("TMPDIR", self.scene.path("tmp"));
        command
    }

    /// Where images and layers lie.
    pub fn graph_root(&self) -> PathBuf {
        self.base.join("graph")
    }

    /// Whose file systems are mounted: plyfs, or the kernel.
    pub fn expected_type(&self) -> &'static str {
        match self.backend {
            Backend::Plyfs => "fuse.plyfs",
            Backend::Kernel => "overlay",
        }
    }

    fn engine(&self, program: &str, args: &[&str]) -> Result<Vec<String>> {
        let outcome = child::run_quiet(&mut self.command(program, args), LIMIT)?;
        if !outcome.success() {
            let from = outcome.lines.len().saturating_sub(SHOWN_LINES);
            let tail = outcome.lines.get(from..).unwrap_or_default().join("\n");
            let status = outcome.status.map_or("time limit".to_owned(), |status| status.to_string());
            bail!("{program} {}: {status}\n{tail}", args.join(" "));
        }
        Ok(outcome.lines)
    }

    /// Root's client is told all by options, the user's by `storage.conf`: both ways are in use.
    fn global_options(&self, program: &str) -> Vec<OsString> {
        let mut options: Vec<OsString> = vec![
            "--root".into(),
            self.graph_root().into(),
            "--runroot".into(),
            self.base.join("run").into(),
            "--storage-driver".into(),
            "overlay".into(),
        ];
        if self.backend == Backend::Plyfs {
            let program = format!("overlay.mount_program={}", self.scene.plyfs.display());
            options.extend(["--storage-opt".into(), program.into()]);
        }
        if program == "podman" {
            options.extend(["--tmpdir".into(), self.base.join("libpod").into()]);
        }
        options
    }

    fn storage_conf(&self) -> PathBuf {
        self.base.join("storage.conf")
    }

    fn storage_text(&self) -> String {
        let graph = self.graph_root();
        let run = self.base.join("run");
        let mut text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}\"\nrootless_storage_path = \"{0}\"\nrunroot = \"{1}\"\n",
            graph.display(),
            run.display()
        );
        if self.user.is_some() && self.backend == Backend::Plyfs {
            let program = self.scene.fuse_overlayfs.display();
            text.push_str(&format!("[storage.options.overlay]\nmount_program = \"{program}\"\n"));
        }
        text
    }

    fn remove_all(&self) -> Result<()> {
        self.podman(&["rm", "--all", "--force", "--time", "0"])?;
        self.podman(&["rmi", "--all", "--force"])?;
        leftovers::check_store(&self.graph_root())?;
        self.end_pause_process()?;
        self.podman_unmounts()?;
        fs::remove_dir_all(&self.base).with_context(|| format!("removing {}", self.base.display()))
    }

    /// The process that keeps a user's namespace open until the user logs out.
    fn end_pause_process(&self) -> Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        let file = user.runtime_dir(self.scene).join("libpod/tmp/pause.pid");
        let Ok(text) = fs::read_to_string(&file) else { return Ok(()) };
        let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw).context(text)?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        fs::remove_file(&file).with_context(|| file.display().to_string())
    }

    /// The driver binds its own directory on itself, for as long as the machine runs.
    fn podman_unmounts(&self) -> Result<()> {
        let own = self.graph_root().join("overlay");
        let table = mountinfo::read().context("/proc/self/mountinfo")?;
        if table.iter().any(|mount| mount.target == own) {
            rustix::mount::unmount(&own, rustix::mount::UnmountFlags::empty())
                .with_context(|| format!("unmounting {}", own.display()))?;
        }
        Ok(())
    }
}

/// `program` as a user who has nothing of root.
pub fn as_user(user: &User, scene: &Scene, program: &str) -> Command {
    let id = user.id.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--"])
        .arg(program)
        .env("HOME", user.home(scene))
        .env("USER", user.name)
        .env("XDG_RUNTIME_DIR", user.runtime_dir(scene))
        .current_dir("/");
    command
}
