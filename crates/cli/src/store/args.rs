//! What can be typed. Each option is defined here once; help and completions come from it.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts: brackets mean what may be left out"
)]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use plyfs_store::{Backend, Compression, Format, Network, Volume};

/// Images and containers on overlay2-style layers.
#[derive(Debug, Parser)]
#[command(
    name = "plyfs",
    version,
    about = "Images and containers on overlay2-style layers",
    arg_required_else_help = true
)]
pub struct StoreCli {
    /// The store's directory [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs for a user]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Who shows the merged view: auto, kernel, fuse or copy
    #[arg(long, global = true, value_name = "BACKEND", default_value = "auto")]
    pub backend: Backend,
    /// Bounds on images.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: StoreCommand,
}

/// Bounds on what an image may do.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most entries of one layer
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    pub max_entries: Option<u64>,
    /// Most bytes of one layer, uncompressed (K, M, G, T may follow)
    #[arg(long, global = true, value_name = "SIZE", value_parser = size, hide_short_help = true)]
    pub max_bytes: Option<u64>,
    /// Most times that a layer may be larger than its blob
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    pub max_ratio: Option<u64>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Make an image from a root file system: a directory, a tar, or - for standard input
    Import(ImportArgs),
    /// Fetch images from a registry
    Pull(PullArgs),
    /// Send an image to a registry
    Push(PushArgs),
    /// Take in the images of an archive or layout directory (docker-archive or OCI)
    Load {
        /// The archive, or - for standard input
        #[arg(value_name = "ARCHIVE")]
        from: PathBuf,
    },
    /// Write images to an archive or a layout directory
    Save(SaveArgs),
    /// List images
    Images,
    /// Show all that is known of an image or a container, as JSON
    Inspect {
        /// Images or containers
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Give an image another name
    Tag {
        /// The image
        image: String,
        /// The new name
        name: String,
    },
    /// Remove images
    Rmi {
        /// All names of an image; by id
        #[arg(long, short)]
        force: bool,
        /// The images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show how an image was made
    History {
        /// The image
        image: String,
    },
    /// Make a container on an image; prints its name
    Create {
        /// Bytes that the container may write (K, M, G, T may follow); needs a file system mounted with prjquota
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
        /// The image
        image: String,
        /// The container's name
        name: Option<String>,
    },
    /// Mount a container; prints the merged path, alone
    Mount {
        /// The container
        container: String,
    },
    /// Unmount a container
    Umount {
        /// Whoever else has it mounted
        #[arg(long, short)]
        force: bool,
        /// The container
        container: String,
    },
    /// List containers
    Ps {
        /// All, also those that do not run (as they are without this option, too)
        #[arg(long, short)]
        all: bool,
    },
    /// Show what a container changed: A added, C changed, D deleted
    Diff {
        /// The container
        container: String,
    },
    /// Make an image of a container's changes
    Commit(CommitArgs),
    /// Write a container's or an image's whole file system as a tar
    Export {
        /// Where to [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The container or image
        name: String,
    },
    /// Run a command in a new container; exits as it does, with 127 if it is missing and 126 if it may not be executed
    Run(RunArgs),
    /// Run one more command in a running container
    Exec(ExecArgs),
    /// End running containers
    Stop {
        /// Seconds before they are killed
        #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
        time: u64,
        /// The containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Show what a detached container wrote
    Logs {
        /// Go on as it writes
        #[arg(long, short)]
        follow: bool,
        /// The container
        container: String,
    },
    /// Copy files between a container and here: one of the two paths is CONTAINER:PATH
    Cp {
        /// From
        from: String,
        /// To
        to: String,
    },
    /// Stays beside a detached container.
    #[command(name = "supervise", hide = true)]
    Supervise {
        /// The container
        container: String,
    },
    /// Show what this system can: backend, file system, attributes
    Info,
    /// Show what takes how much
    Df,
    /// Remove layers, blobs and leftovers that nothing uses
    #[command(visible_alias = "prune")]
    Gc,
    /// Look for damage: every layer against its digest, links, modes, orphans; exits 1 if there is any
    Check {
        /// Put right what can be
        #[arg(long)]
        repair: bool,
        /// Leave out the content of blobs and layers
        #[arg(long)]
        quick: bool,
    },
    /// Remove containers
    Rm {
        /// Unmount and stop them first
        #[arg(long, short)]
        force: bool,
        /// The containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
}

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What the image runs and how
    #[command(flatten)]
    pub changes: ChangeArgs,
    /// A directory, a tar, or - for standard input
    #[arg(value_name = "ROOTFS")]
    pub from: PathBuf,
    /// The image's name
    pub name: String,
}

/// `commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// What the image runs and how
    #[command(flatten)]
    pub changes: ChangeArgs,
    /// The container
    pub container: String,
    /// The image's name
    pub name: String,
}

/// Changes to an image's configuration.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// How the layer is compressed: none, gzip or zstd
    #[arg(long, value_name = "HOW", value_parser = compression)]
    pub compression: Option<Compression>,
    /// A message for the history
    #[arg(long, short, default_value = "", hide_default_value = true)]
    pub message: String,
    /// The command to run: words, or a JSON array
    #[arg(long, value_name = "CMD", value_parser = words)]
    pub cmd: Option<Words>,
    /// What the command is given to: words, or a JSON array
    #[arg(long, value_name = "CMD", value_parser = words)]
    pub entrypoint: Option<Words>,
    /// An environment variable, KEY=VALUE; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// The user
    #[arg(long, short)]
    pub user: Option<String>,
    /// The working directory
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Print the container's name and leave it running
    #[arg(long, short)]
    pub detach: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// The container's name
    #[arg(long)]
    pub name: Option<String>,
    /// Nothing in the root may be written
    #[arg(long)]
    pub read_only: bool,
    /// Show a directory or file of this machine: SOURCE:TARGET[:ro]; may be repeated
    #[arg(long, short, value_name = "VOLUME")]
    pub volume: Vec<Volume>,
    /// none or host
    #[arg(long, default_value = "none", value_name = "NETWORK")]
    pub network: Network,
    /// In place of the image's entrypoint: words, or a JSON array
    #[arg(long, value_name = "CMD", value_parser = words)]
    pub entrypoint: Option<Words>,
    /// crun or runc [default: what works here]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<PathBuf>,
    /// What the process has.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The image
    pub image: String,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub cmd: Vec<String>,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// What the process has.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The container
    pub container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub cmd: Vec<String>,
}

/// What a process in a container has.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// A terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Standard input (it always has it; for docker's command lines)
    #[arg(long, short)]
    pub interactive: bool,
    /// An environment variable, KEY=VALUE; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// The user, USER[:GROUP]
    #[arg(long, short)]
    pub user: Option<String>,
    /// The working directory
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
}

/// `save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// oci-archive, oci-dir, docker-archive or docker-dir
    #[arg(long, default_value = "oci-archive")]
    pub format: Format,
    /// How the whole archive is compressed: none, gzip or zstd
    #[arg(long, value_name = "HOW", value_parser = compression, default_value = "none")]
    pub compression: Compression,
    /// Where to; - is standard output
    #[arg(long, short, value_name = "PATH", default_value = "-")]
    pub output: PathBuf,
    /// The images
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// How a registry is talked to.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Insist on TLS and a known certificate
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub tls_verify: bool,
    /// The file with credentials, or with the names of credential helpers [default: podman's and docker's]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// How many layers move at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub jobs: usize,
    /// Seconds without a byte after which a connection is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub stall_timeout: u64,
}

/// `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// How the registry is talked to
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// The images, HOST[:PORT]/NAME[:TAG]
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// How the registry is talked to
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// The image
    pub image: String,
    /// The name there, HOST[:PORT]/NAME[:TAG] [default: the image's own]
    pub to: Option<String>,
}

/// A command line in one argument.
#[derive(Debug, Clone)]
pub struct Words(pub Vec<String>);

fn words(text: &str) -> Result<Words, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .map(Words)
            .map_err(|e| format!("not a JSON array of strings: {e}"));
    }
    Ok(Words(text.split_whitespace().map(str::to_owned).collect()))
}

fn compression(text: &str) -> Result<Compression, String> {
    match text {
        "none" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("expected none, gzip or zstd".into()),
    }
}

/// A size with an optional unit of powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let bad = || "expected a number, and perhaps K, M, G or T".to_owned();
    let upper = text.to_ascii_uppercase();
    let t = upper.trim_end_matches('B').trim_end_matches('I');
    let split = t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len());
    let (digits, unit) = t.split_at(split);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        StoreCli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(size("10"), Ok(10));
        assert_eq!(size("2k"), Ok(2048));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        for bad in ["", "K", "1X", "-1", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
