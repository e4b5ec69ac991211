//! The `plyfs` command: main, run, and one match on what is to be done.
//!
//! `front_door.rs` tells plyfs's own command line from those of fuse-overlayfs and mount(8); `args.rs` defines plyfs's
//! own; each command is a module. What they have in common is in the libraries: here is no overlay policy.

mod args;
mod changes;
mod commit;
mod demo;
mod failure;
mod features;
mod front_door;
mod list;
mod manual;
mod mount;
mod paint;
mod parse;
mod readahead;
mod registry;
mod snapshotter;
mod store;
mod trial;
mod umount;
mod union;
mod version;

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::failure::Outcome;
use crate::front_door::Invocation;

fn main() -> ExitCode {
    let line = store::straighten(std::env::args_os().collect());
    if store::claims(&line) {
        return store::main(&line);
    }
    match run(line) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

fn run(line: Vec<OsString>) -> Outcome<u8> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let code = match front_door::sort(line)? {
        Invocation::Mount(args) => done(mount::mount(&args)),
        Invocation::FuseOverlayfsVersion => done(version::as_fuse_overlayfs(&mut out)),
        Invocation::ForeignHelp => done(version::foreign_help(&mut out)),
        Invocation::Own(arguments) => run_own(parse::parse::<Cli>(&arguments)?.command, &mut out),
    }?;
    out.flush()?;
    Ok(code)
}

fn run_own(command: Command, out: &mut dyn Write) -> Outcome<u8> {
    match command {
        Command::Try(args) => trial::run(&args),
        Command::TryStage(args) => trial::stage(&args),
        Command::Mount(args) => done(mount::mount(&args)),
        Command::Umount(args) => done(umount::umount(&args)),
        Command::List(args) => done(list::list(args.json, out)),
        Command::Diff(args) => done(changes::diff(&args, out)),
        Command::Commit(args) => done(commit::run(&args, out)),
        Command::Features(args) => done(features::show(&args, out)),
        Command::Demo(args) => done(demo::run(&args, out)),
        Command::Snapshotter(args) => done(snapshotter::run(&args)),
        Command::Version(args) => done(version::show(args.json, out)),
        Command::Completions { shell } => done(manual::completions(shell, out)),
        Command::Man { directory } => done(manual::man(directory.as_deref(), out)),
    }
}

fn done(outcome: Outcome<()>) -> Outcome<u8> {
    outcome.map(|()| 0)
}
