//! The first process of the view: enters it, gives up power over its mounts, starts the command, and reaps.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use plyfs_sys::mount::{self, MountPropagationFlags, Namespaces};
use plyfs_sys::{confine, process};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions};

use crate::args::ViewNetwork;
use crate::failure::{Context, Failure, Outcome};
use crate::trial::idmap::{Helper, Map};
use crate::trial::signals::{Caught, Then};
use crate::trial::{NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, StageArgs, own, view};

/// The stage `inside`: returns the command's exit code. It is the first process of a PID namespace, so that all that the
/// command left running ends with it.
pub fn run(args: &StageArgs) -> Outcome<u8> {
    let view = args.view.as_deref().ok_or_else(|| Failure::usage("inside: no view named"))?;
    let helper = Helper::start(Map::Identity).map_err(own)?;
    enter(view).map_err(own)?;
    seal(helper, args.trial.network).map_err(own)?;
    restore_limit(args.nofile).map_err(own)?;
    let forwarding = Caught::new().and_then(|caught| caught.forward(Then::TellAll)).map_err(own)?;
    let child = start(args)?;
    forwarding.to(child).map_err(own)?;
    reap_until(child).map_err(own)
}

/// Makes the view the root, and lets go of the machine's.
fn enter(view: &Path) -> Outcome<()> {
    mount::unshare(Namespaces { mount: true, ..Namespaces::default() })
        .context(|| "cannot make a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::set_propagation(Path::new("/"), private).context(|| "cannot make the mounts private")?;
    view::make_proc(view)?;
    std::env::set_current_dir(view).context(|| "cannot enter the view")?;
    let here = Path::new(".");
    mount::pivot_root(here, here).context(|| "cannot make the view the root")?;
    // The old root lies over the new one at this path now.
    mount::unmount_detached(here).context(|| "cannot let go of the machine's root")?;
    std::env::set_current_dir("/").context(|| "cannot enter the view")
}

/// Moves to a user and mount namespace below those that made the view: its mounts are locked from here on, and no
/// capability reaches beyond it. With it System V IPC and, if so asked, the network become the view's own, and nothing can
/// be typed into the terminal.
fn seal(helper: Helper, network: ViewNetwork) -> Outcome<()> {
    let alone = network == ViewNetwork::None;
    helper.enter(Namespaces { mount: true, ipc: true, network: alone, ..Namespaces::default() })?;
    if alone {
        confine::start_loopback().context(|| "cannot start the loopback interface in the view")?;
        view::renew_sys()?;
    }
    if confine::refuse_terminal_input().is_err() {
        // A kernel without seccomp: in a session without a terminal there is nothing to type into, and no job control.
        process::new_session().context(|| "cannot leave the terminal")?;
    }
    // In this order: both are reset by the change of credentials above.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "cannot tie to the parent")?;
    process::set_dumpable(false).context(|| "cannot hide from the command")
}

/// The file systems' process needs many descriptors; programs that use select(2) must not get the same limit.
fn restore_limit(soft: Option<u64>) -> Outcome<()> {
    let Some(soft) = soft else {
        return Ok(());
    };
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(soft), maximum };
    rustix::process::setrlimit(Resource::Nofile, limit).context(|| "cannot set the limit of open files")
}

fn start(args: &StageArgs) -> Outcome<u32> {
    let (program, rest) =
        args.trial.command.split_first().ok_or_else(|| Failure::usage("inside: no command"))?;
    let start = args.start.as_deref().filter(|start| start.is_dir()).unwrap_or(Path::new("/"));
    // Through a directory that the caller has open the command could write to the machine.
    process::close_on_exec_from(3).context(|| "cannot keep descriptors from the command")?;
    let mut command = Command::new(program);
    command.args(rest).current_dir(start).env("PWD", start);
    let arg0 = program.clone();
    command.arg0(arg0);
    match command.spawn() {
        Ok(child) => Ok(child.id()),
        Err(error) => {
            let missing = error.kind() == std::io::ErrorKind::NotFound || !can_be_found(program);
            let failure = Failure::new(format!("{}: cannot run it in the view: {error}", program.display()));
            Err(failure.with_code(if missing { NOT_FOUND } else { NOT_EXECUTABLE }))
        }
    }
}

/// Whether a program is there at all: a directory of PATH that may not be searched makes a missing one look forbidden.
fn can_be_found(program: &OsStr) -> bool {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Reaps every process that ends, the command's orphans too, until the command itself ends.
fn reap_until(command: u32) -> Outcome<u8> {
    let command = i32::try_from(command).ok().and_then(Pid::from_raw);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == command => {
                let code =
                    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
                return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(OWN_FAILURE));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::new(format!("cannot wait for the command: {error}"))),
        }
    }
}
