//! plyfs's own command line, each option defined once: parser, help, manual pages and completions come from here.
//!
//! What was typed, and nothing done with it: the modules of the commands turn it into what they need.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::snapshotter::SnapshotterArgs;
use crate::trial::StageArgs;

/// OverlayFS in userspace: a union of read-only directories under one writable directory.
#[derive(Debug, Parser)]
#[command(
    name = "plyfs",
    version,
    about = "OverlayFS in userspace: a union of read-only directories under a writable one",
    after_help = "Images and containers (plyfs [--root DIR] VERB --help): pull push load save import images inspect tag rmi\n\
                  history create mount umount ps diff commit export cp rm run exec stop logs info df gc check.\n\n\
                  It also answers to the command lines of fuse-overlayfs (plyfs -o OPTIONS TARGET) and of mount(8)\n\
                  (mount -t fuse.plyfs, by the name mount.fuse.plyfs).",
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command on a throwaway writable view of this machine's root, then say what it changed
    Try(TryArgs),
    /// Mount a union of directories; returns when it is usable
    Mount(MountArgs),
    /// Unmount, and wait until the file system's process is gone
    Umount(UmountArgs),
    /// List what plyfs has mounted
    List(ListArgs),
    /// Show how an upper directory differs from the lower ones under it
    Diff(DiffArgs),
    /// Apply what an upper directory changes to a directory
    Commit(CommitArgs),
    /// Show what this kernel and this user can have, and why not
    Features(FeaturesArgs),
    /// A tour of two minutes: layers, copy-up, whiteouts, renames
    Demo(DemoArgs),
    /// Serve containerd's snapshot API (a proxy plugin)
    Snapshotter(SnapshotterArgs),
    /// Show the version
    Version(VersionArgs),
    /// Print the completions of a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands to a directory
    Man {
        /// Write plyfs.1 and a page for each command here
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// A stage of `plyfs try`, started by plyfs itself.
    #[command(name = "try-stage", hide = true)]
    TryStage(StageArgs),
}

/// `plyfs mount`.
#[derive(Debug, Default, Clone, Args)]
pub struct MountArgs {
    /// Mount options, separated by commas: lowerdir=A:B:C (topmost first), upperdir=U, workdir=W, ro, allow_other, lower_passthrough, …
    #[arg(short, value_name = "OPTIONS")]
    pub options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Stay in the foreground and trace every request on standard error
    #[arg(short, long)]
    pub debug: bool,
    /// Append the daemon's messages to a file instead of sending them to syslog
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Check everything, but do not mount
    #[arg(long)]
    pub fake: bool,
    /// The directory to mount on; a word before it names the source in the mount table
    #[arg(required = true, num_args = 1..=2, value_names = ["[SOURCE] TARGET"])]
    pub operands: Vec<OsString>,
}

/// `plyfs umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Detach the mount now, and let it end with its last user
    #[arg(short, long)]
    pub lazy: bool,
    /// Where it is mounted
    #[arg(required = true)]
    pub targets: Vec<PathBuf>,
}

/// `plyfs list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `plyfs diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The upper directory
    pub upper: PathBuf,
    /// A lower directory, or several with colons between, topmost first; may be repeated
    #[arg(long = "lower", value_name = "DIR", required = true)]
    pub lowers: Vec<PathBuf>,
    /// Do not report a changed owner or group
    #[arg(long)]
    pub ignore_owner: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `plyfs commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// The upper directory
    pub upper: PathBuf,
    /// The directory to change: the lower that the upper was made over
    #[arg(long, value_name = "DIR")]
    pub onto: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Only show what would be done
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Leave owners and groups as they are; what is new becomes yours, and set-id bits are dropped from files. Needed for
    /// root to commit what was made without root
    #[arg(long)]
    pub ignore_owner: bool,
    /// Print JSON; implies that nobody is asked, so --yes or --dry-run must be given
    #[arg(long)]
    pub json: bool,
}

/// `plyfs features`.
#[derive(Debug, Args)]
pub struct FeaturesArgs {
    /// The directory whose file system is examined for use as upper
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub upper: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `plyfs demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Do not pause between the steps
    #[arg(long)]
    pub fast: bool,
}

/// `plyfs version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `plyfs try`.
#[derive(Debug, Args)]
pub struct TryArgs {
    /// Show DIR instead of the machine's root: as the root if it holds one (bin/sh), else in its own place
    #[arg(long, value_name = "DIR")]
    pub lower: Option<PathBuf>,
    /// Keep what was changed in UPPER, for a later try, mount or commit; what is there already is shown
    #[arg(long, value_name = "UPPER", conflicts_with = "discard")]
    pub keep: Option<PathBuf>,
    /// Throw away what was changed (the default)
    #[arg(long)]
    pub discard: bool,
    /// The network in the view: the machine's, or none but its own loopback
    #[arg(long, value_name = "host|none", value_enum, default_value_t = ViewNetwork::Host, hide_possible_values = true)]
    pub network: ViewNetwork,
    /// Print the changes as JSON, on standard error
    #[arg(long)]
    pub json: bool,
    /// Do not print the changes
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// The command and its arguments; without one, a shell
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Which network a view has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ViewNetwork {
    /// The machine's.
    #[default]
    Host,
    /// A loopback interface of its own.
    None,
}

/// Whether a word names a subcommand, so that a command line that begins with it is plyfs's own.
pub fn is_subcommand(word: &OsStr) -> bool {
    let command = Cli::command();
    word == "help" || command.get_subcommands().any(|known| word == known.get_name())
}
