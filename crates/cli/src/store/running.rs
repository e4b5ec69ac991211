//! `run`, `exec`, `stop`, `logs`: containers with a process. A detached one has this program beside it, in a
//! session of its own, which waits for its end and cleans up.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plyfs_store::{Context, Error, RunOptions, State};
use serde_json::json;

use super::args::{ExecArgs, ProcessArgs, RunArgs};
use super::commands::{Ctx, Done, done};

/// How long a detached container may take to start.
const START: Duration = Duration::from_secs(60);

/// `run`.
pub fn run(ctx: &Ctx, a: &RunArgs) -> Done {
    let options = RunOptions {
        name: a.name.clone(),
        cmd: a.cmd.clone(),
        entrypoint: a.entrypoint.as_ref().map(|w| w.0.clone()),
        network: a.network,
        read_only: a.read_only,
        volumes: a.volume.clone(),
        remove: a.rm,
        backend: ctx.backend,
        runtime: a.runtime.clone(),
        ..process(&a.process)
    };
    if a.detach {
        return detached(ctx, &a.image, &RunOptions { tty: false, ..options });
    }
    Ok(code(ctx.store.run(&a.image, &options)?))
}

fn detached(ctx: &Ctx, image: &str, o: &RunOptions) -> Done {
    let c = ctx.store.prepare(image, o)?;
    let exe = std::env::current_exe().at("find", "this program")?;
    let mut child = Command::new(&exe)
        .arg("--root")
        .arg(ctx.store.layout().root())
        .args(["supervise", &c.id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .at("start", &exe)?;
    let until = Instant::now() + START;
    while Instant::now() < until {
        if child.try_wait().at("wait for", &exe)?.is_some() {
            break;
        }
        if let State::Running(_) = ctx.store.state(&c)? {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    match ctx.store.container(&c.id) {
        // It ended at once; what it wrote is in the log, unless it was to be removed.
        Ok(now) if matches!(ctx.store.state(&now)?, State::Created) => {
            let mut log = String::new();
            if let Ok(f) = File::open(ctx.store.log_path(&c.id)?) {
                f.take(4096).read_to_string(&mut log).at("read", "the log")?;
            }
            Err(Error::Program {
                program: "the container".into(),
                why: format!("did not start: {}", log.trim()),
            }
            .into())
        }
        _ => ctx.say(&json!({"id": c.id, "name": c.name}), &c.name),
    }
}

/// The process beside a detached container.
pub fn supervise(ctx: &Ctx, container: &str) -> Done {
    if let Err(e) = plyfs_sys::process::new_session() {
        tracing::debug!("{e}");
    }
    let log = ctx.store.log_path(container)?;
    Ok(code(ctx.store.supervise(container, Some(&log))?))
}

/// `exec`.
pub fn exec(ctx: &Ctx, a: &ExecArgs) -> Done {
    Ok(code(ctx.store.exec(&a.container, &a.cmd, &process(&a.process))?))
}

/// `stop`.
pub fn stop(ctx: &Ctx, containers: &[String], seconds: u64) -> Done {
    for c in containers {
        done(ctx.store.stop(c, Duration::from_secs(seconds)))?;
    }
    Ok(0)
}

/// `logs`.
pub fn logs(ctx: &Ctx, container: &str, follow: bool) -> Done {
    let path = ctx.store.log_path(container)?;
    let mut f = match File::open(&path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound { what: "log of container", name: container.into() }.into());
        }
        Err(e) => return Err(e).at("open", &path).map_err(Into::into),
    };
    let mut out = io::stdout().lock();
    loop {
        let running = match ctx.store.container(container) {
            Ok(c) => matches!(ctx.store.state(&c)?, State::Running(_)),
            Err(Error::NotFound { .. }) => false,
            Err(e) => return Err(e.into()),
        };
        io::copy(&mut f, &mut out)?;
        out.flush()?;
        if !follow || !running {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn process(a: &ProcessArgs) -> RunOptions {
    RunOptions {
        env: a.env.clone(),
        user: a.user.clone(),
        workdir: a.workdir.clone(),
        tty: a.tty && io::stdin().is_terminal(),
        ..RunOptions::default()
    }
}

/// Exit codes have eight bits.
fn code(n: i32) -> u8 {
    u8::try_from(n & 0xff).unwrap_or(1)
}
