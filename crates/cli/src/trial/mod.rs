//! `plyfs try`: runs a command on a throwaway writable view of the machine's root.
//!
//! Four processes take part, each this program again:
//!
//! ```text
//! front       what the user started; waits, passes signals on, returns the exit code
//!  supervise  in a mount namespace of its own (and without root in a user namespace): serves the view's file
//!  |          systems, waits for the stage, says what changed, removes everything
//!  +- inside  first process of a PID namespace: enters the view, gives up the namespaces it was made with, reaps
//!     +- the command
//! ```
//!
//! `supervise` keeps the machine's own root, so what it shows as lower is never the view; only `inside` makes the view
//! its root. The command runs in a user namespace below that of the view's mounts: it cannot undo a read-only mount,
//! cannot mount a disk, and cannot see or signal the machine's processes, be it started by root or not. If `front` dies,
//! `supervise` ends the command and cleans up; if `supervise` dies, the kernel ends everything in the view.

mod frame;
mod idmap;
mod inside;
mod keep;
mod report;
mod scenery;
mod session;
mod signals;
mod supervise;
mod view;

pub use session::remove_tree;

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use clap::{Args, ValueEnum};

use crate::args::{TryArgs, ViewNetwork};
use crate::failure::{Context, Failure, Outcome};
use crate::trial::signals::{Caught, Then};

/// What `plyfs try` itself exits with when it fails before the command runs, as env(1) and docker do.
const OWN_FAILURE: u8 = 125;
/// The command exists but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The command does not exist.
const NOT_FOUND: u8 = 127;

/// Arguments of the stages that plyfs starts itself.
#[derive(Debug, Args)]
pub struct StageArgs {
    /// Which one.
    pub stage: Stage,
    /// What the user asked for.
    #[command(flatten)]
    pub trial: TryArgs,
    /// Stage supervise: the process that asked for it, with which it ends.
    #[arg(long)]
    pub parent: Option<i32>,
    /// Stage map: which map to write.
    #[arg(long)]
    pub map: Option<idmap::Map>,
    /// Stage inside: where the view is mounted.
    #[arg(long)]
    pub view: Option<PathBuf>,
    /// Stage inside: where the command starts.
    #[arg(long)]
    pub start: Option<PathBuf>,
    /// Stage inside: the soft limit of open files that the command gets.
    #[arg(long)]
    pub nofile: Option<u64>,
}

/// The stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Serves the view.
    Supervise,
    /// Writes the maps of a user namespace.
    Map,
    /// The first process in the view.
    Inside,
}

/// `plyfs try`: returns the command's exit code, 128 and the signal's number if a signal ended it.
pub fn run(args: &TryArgs) -> Outcome<u8> {
    let mut command = stage_command("supervise");
    command.arg("--parent").arg(std::process::id().to_string());
    pass_on(args, &mut command);
    let forwarding = Caught::new().and_then(|caught| caught.forward(Then::Wait)).map_err(own)?;
    let mut child = command.spawn().context(|| "cannot start").map_err(own)?;
    forwarding.to(child.id()).map_err(own)?;
    let status = child.wait().context(|| "cannot wait for the view").map_err(own)?;
    Ok(code_of(status))
}

/// A stage, started by plyfs itself.
pub fn stage(args: &StageArgs) -> Outcome<u8> {
    match args.stage {
        Stage::Supervise => supervise::run(&args.trial, args.parent),
        Stage::Inside => inside::run(args),
        Stage::Map => {
            let map = args.map.ok_or_else(|| Failure::usage("map: no map named"))?;
            idmap::write_maps(map).map(|()| 0)
        }
    }
}

/// This program again, for a stage. By `/proc/self/exe`, so that it works when the file was replaced meanwhile.
fn stage_command(stage: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("plyfs").args(["try-stage", stage]);
    command
}

fn pass_on(args: &TryArgs, command: &mut Command) {
    for (name, value) in [("--lower", &args.lower), ("--keep", &args.keep)] {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
    if args.network == ViewNetwork::None {
        command.args(["--network", "none"]);
    }
    for (name, given) in [("--json", args.json), ("--quiet", args.quiet)] {
        if given {
            command.arg(name);
        }
    }
    command.arg("--").args(wanted(args));
}

/// The command, or a shell.
fn wanted(args: &TryArgs) -> Vec<OsString> {
    if args.command.is_empty() {
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        return vec![shell.unwrap_or_else(|| OsString::from("/bin/sh"))];
    }
    args.command.clone()
}

fn own(failure: Failure) -> Failure {
    failure.with_code(OWN_FAILURE)
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(OWN_FAILURE)
}
