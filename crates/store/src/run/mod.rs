//! Running containers through an installed OCI runtime (crun or runc).
//!
//! Owns starting, the process that stays beside a detached container, exec, stop and logs. What the container
//! sees is in `config.rs`; who it runs as, in `user.rs`; namespaces and cgroups are the runtime's.

mod command;
mod config;
mod user;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::beneath::{self, Root};
use crate::db::{Container, Image};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::mount::Backend;
use crate::store::Store;
use command::Start;

/// Which network a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Its own, with nothing but loopback.
    #[default]
    None,
    /// The machine's.
    Host,
}

impl std::str::FromStr for Network {
    type Err = Error;

    fn from_str(s: &str) -> Result<Network> {
        match s {
            "none" => Ok(Network::None),
            "host" => Ok(Network::Host),
            _ => Err(Error::invalid(format!("network \"{s}\""), "expected none or host")),
        }
    }
}

/// A directory or file of the machine that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Here.
    pub source: PathBuf,
    /// There.
    pub target: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

impl std::str::FromStr for Volume {
    type Err = Error;

    /// `SOURCE:TARGET[:ro|rw]`.
    fn from_str(s: &str) -> Result<Volume> {
        let parts: Vec<&str> = s.split(':').collect();
        let (source, target, read_only) = match parts[..] {
            [a, b] | [a, b, "rw"] => (a, b, false),
            [a, b, "ro"] => (a, b, true),
            _ => return Err(Error::invalid(format!("volume \"{s}\""), "expected SOURCE:TARGET[:ro]")),
        };
        if !source.starts_with('/')
            || !target.starts_with('/')
            || Path::new(target).components().any(|c| c.as_os_str() == "..")
        {
            return Err(Error::invalid(
                format!("volume \"{s}\""),
                "both paths must be absolute, the second without \"..\"",
            ));
        }
        Ok(Volume { source: source.into(), target: target.into(), read_only })
    }
}

/// How a container is run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// The container's name.
    pub name: Option<String>,
    /// In place of the image's command.
    pub cmd: Vec<String>,
    /// In place of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// More environment.
    pub env: Vec<String>,
    /// In place of the image's user.
    pub user: Option<String>,
    /// In place of the image's directory.
    pub workdir: Option<String>,
    /// The network.
    pub network: Network,
    /// Whether the root may only be read.
    pub read_only: bool,
    /// What else it sees.
    pub volumes: Vec<Volume>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it goes with its process.
    pub remove: bool,
    /// Who shows its root.
    pub backend: Backend,
    /// crun or runc; none for the one that works here.
    pub runtime: Option<PathBuf>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Never started, or stopped before this boot.
    Created,
    /// Its first process lives.
    Running(u32),
    /// Its first process ended with this code.
    Exited(i32),
}

impl Store {
    /// Runs a container in the foreground, on this process's standard streams; returns its exit code.
    pub fn run(&self, image: &str, o: &RunOptions) -> Result<i32> {
        let c = self.prepare(image, o)?;
        self.supervise(&c.id, None)
    }

    /// Makes a container ready to start: created, mounted, configured. [`Store::supervise`] starts it.
    pub fn prepare(&self, image: &str, o: &RunOptions) -> Result<Container> {
        let runtime = runtime(o.runtime.as_deref())?;
        let c = self.create(image, o.name.as_deref(), None)?;
        match self.configure(&c, o, &runtime) {
            Ok(()) => Ok(c),
            Err(e) => {
                // The error that is told is the first one.
                if let Err(also) = self.remove_container(&c.id, true) {
                    tracing::warn!("{also}");
                }
                Err(e)
            }
        }
    }

    fn configure(&self, c: &Container, o: &RunOptions, runtime: &Path) -> Result<()> {
        let merged = self.mount(&c.id, o.backend)?;
        refuse_symlinked_mountpoints(&merged)?;
        let image: Image = self.read(|tx| {
            tx.get(&c.image.hex())?
                .ok_or_else(|| Error::NotFound { what: "image", name: c.image_name.clone() })
        })?;
        let config = self.image_config(&image)?;
        let spec = config::spec(c, &config, o, &merged)?;
        require_command(&merged, &spec)?;
        let bundle = self.layout.container(&c.id);
        let text = serde_json::to_vec_pretty(&spec).at("encode", &bundle)?;
        durable::replace(&bundle.join("config.json"), &text, 0o600)?;
        let how = serde_json::json!({"runtime": runtime, "remove": o.remove});
        durable::replace(&bundle.join("run.json"), how.to_string().as_bytes(), 0o600)
    }

    /// Starts a prepared container, waits for its end, and cleans up. Its output goes to `log`, or where this
    /// process's goes.
    pub fn supervise(&self, name: &str, log: Option<&Path>) -> Result<i32> {
        let c = self.container(name)?;
        let bundle = self.layout.container(&c.id);
        let how = self.how(&c)?;
        let mut cmd = self.runtime_command(&how)?;
        cmd.arg("run").arg("--bundle").arg(&bundle).arg("--pid-file").arg(bundle.join("pid")).arg(&c.id);
        if let Some(log) = log {
            let f = File::options().create(true).append(true).open(log).at("open", log)?;
            let again = f.try_clone().at("open", log)?;
            cmd.stdin(Stdio::null()).stdout(f).stderr(again);
        }
        let status = cmd
            .status()
            .map_err(|e| Error::Program { program: how.runtime.display().to_string(), why: e.to_string() })?;
        let code = exit_code(status);
        durable::remove_file(&bundle.join("pid"))?;
        durable::replace(&bundle.join("exit"), code.to_string().as_bytes(), 0o600)?;
        self.unmount(&c.id, false)?;
        if how.remove {
            self.remove_container(&c.id, true)?;
        }
        Ok(code)
    }

    /// What a container is doing.
    pub fn state(&self, c: &Container) -> Result<State> {
        let bundle = self.layout.container(&c.id);
        if let Some(pid) = number(&bundle.join("pid"))?
            && plyfs_sys::process::is_alive(pid)
        {
            return Ok(State::Running(pid));
        }
        Ok(number(&bundle.join("exit"))?.map_or(State::Created, |n: i32| State::Exited(n)))
    }

    /// Runs one more command in a running container; returns its exit code.
    pub fn exec(&self, name: &str, cmd: &[String], o: &RunOptions) -> Result<i32> {
        let c = self.running(name)?;
        let how = self.how(&c)?;
        let mut run = self.runtime_command(&how)?;
        run.arg("exec");
        if o.tty {
            run.arg("--tty");
        }
        let user = o.user.as_ref().map(|u| user::resolve(&Root::open(&self.merged(&c))?, u)).transpose()?;
        self.require_in_running(&c, cmd, o)?;
        if let Some(u) = user {
            run.arg("--user").arg(format!("{}:{}", u.uid, u.gid));
        }
        if let Some(d) = &o.workdir {
            run.arg("--cwd").arg(d);
        }
        for e in &o.env {
            run.arg("--env").arg(e);
        }
        run.arg(&c.id).args(cmd);
        let status = run
            .status()
            .map_err(|e| Error::Program { program: how.runtime.display().to_string(), why: e.to_string() })?;
        Ok(exit_code(status))
    }

    /// Fails if the running container has no such program: its root is looked at as its first process sees it.
    fn require_in_running(&self, c: &Container, cmd: &[String], o: &RunOptions) -> Result<()> {
        let State::Running(pid) = self.state(c)? else { return Ok(()) };
        // The dot: the link itself is not to be opened. Who may not look leaves it to the runtime.
        let Ok(root) = Root::open(&PathBuf::from(format!("/proc/{pid}/root/."))) else { return Ok(()) };
        let path = self.layout.container(&c.id).join("config.json");
        let spec: Value = serde_json::from_slice(&durable::read_small(&path, 4 << 20)?).at("read", &path)?;
        let first = spec.get("process").cloned().unwrap_or_default();
        let own = first.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
        let env: Vec<Value> = own.into_iter().chain(o.env.iter().cloned().map(Value::from)).collect();
        let cwd =
            o.workdir.clone().map_or_else(|| first.get("cwd").cloned().unwrap_or_default(), Value::from);
        let process = serde_json::json!({"args": cmd, "env": env, "cwd": cwd});
        Start { root: &root, covered: &[] }.require(&process)
    }

    /// Ends a running container: asked first, killed after `patience`.
    pub fn stop(&self, name: &str, patience: Duration) -> Result<()> {
        let c = self.running(name)?;
        let how = self.how(&c)?;
        for (signal, wait) in [("TERM", patience), ("KILL", Duration::from_secs(10))] {
            let mut kill = self.runtime_command(&how)?;
            if let Err(e) = crate::mount::run(kill.arg("kill").arg(&c.id).arg(signal)) {
                // It may have ended by itself a moment ago.
                tracing::debug!("{e}");
            }
            let until = Instant::now() + wait;
            while Instant::now() < until {
                match self.read(|tx| tx.get::<Container>(&c.id))? {
                    // Removed by its supervisor, as `--rm` asks.
                    None => return Ok(()),
                    Some(c) if !matches!(self.state(&c)?, State::Running(_)) && c.mounts == 0 => {
                        return Ok(());
                    }
                    Some(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        Err(Error::InUse { what: "container", name: c.name, by: "it survives SIGKILL".into() })
    }

    /// The file that a detached container's output goes to.
    pub fn log_path(&self, name: &str) -> Result<PathBuf> {
        Ok(self.layout.container(&self.container(name)?.id).join("log"))
    }

    fn running(&self, name: &str) -> Result<Container> {
        let c = self.container(name)?;
        match self.state(&c)? {
            State::Running(_) => Ok(c),
            _ => Err(Error::NotFound { what: "running container", name: c.name }),
        }
    }

    fn how(&self, c: &Container) -> Result<How> {
        let p = self.layout.container(&c.id).join("run.json");
        if !p.exists() {
            return Err(Error::NotFound { what: "configuration to run container", name: c.name.clone() });
        }
        let v: Value = serde_json::from_slice(&durable::read_small(&p, 1 << 20)?).at("read", &p)?;
        let runtime = v.get("runtime").and_then(Value::as_str).unwrap_or("runc").into();
        Ok(How { runtime, remove: v.get("remove").and_then(Value::as_bool).unwrap_or(false) })
    }

    /// The runtime with its own directory of states, which is to vanish with a reboot.
    fn runtime_command(&self, how: &How) -> Result<Command> {
        let root = rustix::process::geteuid().is_root();
        let base = match (root, std::env::var_os("XDG_RUNTIME_DIR")) {
            (true, _) => PathBuf::from("/run/plyfs"),
            (false, Some(d)) => PathBuf::from(d).join("plyfs"),
            (false, None) => self.layout.containers().join(".run"),
        };
        fs::create_dir_all(&base).at("create", &base)?;
        durable::ensure_dir(&base, 0o700)?;
        let mut cmd = Command::new(&how.runtime);
        cmd.arg("--root").arg(base.join("runtime"));
        if !root && how.runtime.ends_with("crun") {
            cmd.arg("--cgroup-manager=disabled");
        }
        Ok(cmd)
    }
}

/// Fails if the root at `merged` lacks the program that `spec` names.
fn require_command(merged: &Path, spec: &Value) -> Result<()> {
    let root = Root::open(merged)?;
    let mounts = spec.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let covered: Vec<PathBuf> =
        mounts.filter_map(|m| m.get("destination")?.as_str()).map(PathBuf::from).collect();
    let process = spec.get("process").cloned().unwrap_or_default();
    Start { root: &root, covered: &covered }.require(&process)
}

struct How {
    runtime: PathBuf,
    remove: bool,
}

/// The runtime asked for, or one that works here: crun, but runc where the cgroups are of the mixed kind that
/// crun refuses.
fn runtime(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(p) = asked {
        return find_program(p)
            .ok_or_else(|| Error::NotFound { what: "runtime", name: p.display().to_string() });
    }
    let mixed = Path::new("/sys/fs/cgroup/unified").exists();
    let order = if mixed { ["runc", "crun"] } else { ["crun", "runc"] };
    order.iter().find_map(|n| find_program(Path::new(n))).ok_or_else(|| {
        Error::Unsupported(
            "no OCI runtime is installed: install crun or runc (Debian's packages of these names)".into(),
        )
    })
}

fn find_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.exists().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH often lacks the directories of administration, where Debian puts runc.
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|d| d.join(name)).find(|p| p.is_file())
}

/// An image whose /proc is a symbolic link makes a runtime mount elsewhere (CVE-2025-31133 and its like).
/// Current runtimes defend themselves; this does not rely on it.
fn refuse_symlinked_mountpoints(merged: &Path) -> Result<()> {
    let root = Root::open(merged)?;
    for d in ["proc", "dev", "sys", "dev/pts", "dev/shm", "dev/mqueue", "sys/fs", "sys/fs/cgroup"] {
        let found = match root.open_at(d.as_bytes(), rustix::fs::OFlags::PATH) {
            Ok(fd) => rustix::fs::fstat(&fd).at("stat", root.show(d.as_bytes()))?,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(_) => {
                return Err(Error::invalid("image", format!("/{d} is reached through a symbolic link")));
            }
        };
        if beneath::kind(&found) != rustix::fs::FileType::Directory {
            return Err(Error::invalid("image", format!("/{d} is not a directory")));
        }
    }
    Ok(())
}

/// A number in a file of the bundle; none if the file is missing or still empty.
fn number<T: std::str::FromStr>(path: &Path) -> Result<Option<T>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(f) => f.take(32).read_to_string(&mut text).at("read", path)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("open", path),
    };
    Ok(text.trim().parse().ok())
}

/// As a shell gives it: 128 and the signal for one that was killed.
fn exit_code(s: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0))
}
