//! Developer commands: `cargo xtask help`.
//!
//! Each command is a module; this file only names them. Continuous integration (`.ci/run`) calls the
//! same `test` command that a person runs.

mod bench;
mod child;
mod differential;
mod e2e;
mod fuzz;
mod gate;
mod layering;
mod mix;
mod mounts;
mod policy;
mod posix;
mod power_cut;
mod real_trees;
mod setup;
mod size;
mod stress;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of plyfs", disable_version_flag = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up this machine and pass every check and test (what continuous integration runs)
    Test(gate::TestArgs),
    /// Every check but the tests
    Check,
    /// Check the length of functions and files
    Size,
    /// Check that crates depend only on what DESIGN allows, and that `unsafe` stays in crates/sys
    Layering,
    /// Check licences, banned crates and sources of all dependencies against deny.toml
    Deny,
    /// Measure plyfs beside the kernel's overlay, fuse-overlayfs and a plain directory
    Bench(bench::BenchArgs),
    /// Time what people do in a container on plyfs, the kernel's overlay and fuse-overlayfs (as root)
    BenchContainer(bench::container::Args),
    /// Apply the same random operations to plyfs and the kernel overlay, and compare (long run; as root)
    Differential(differential::Args),
    /// Change a mount from many threads while another walks it and a large file is copied up (as root)
    Stress(stress::Args),
    /// Cut the power of a file system beneath plyfs, and look for what was synced (as root)
    PowerCut(power_cut::Args),
    /// Work with fsx and threads under every combination of features, with remounts between (half an hour; as root)
    Mix(mix::Args),
    /// Drive real container engines on plyfs: podman, buildah, docker (as root; installs them)
    E2e(e2e::Args),
    /// Run the fuzz targets under libFuzzer (a nightly compiler)
    Fuzz(fuzz::Args),
    /// Run pjdfstest and fsx on plyfs and the kernel overlay, and compare (as root)
    Posix(posix::Args),
    /// Install packages, use git and compile in a Debian root on plyfs and the kernel overlay, and compare (as root)
    RealTrees(real_trees::Args),
    /// Install the system packages that the tests use (Debian, as root)
    Setup,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Test(args) => gate::test(&args),
        Command::Check => gate::check(),
        Command::Size => size::run(),
        Command::Layering => layering::run(),
        Command::Deny => policy::run(),
        Command::Bench(args) => bench::run(&args),
        Command::BenchContainer(args) => bench::container::run(&args),
        Command::Differential(args) => differential::run(&args),
        Command::Stress(args) => stress::run(&args),
        Command::PowerCut(args) => power_cut::run(&args),
        Command::Mix(args) => mix::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Posix(args) => posix::run(&args),
        Command::RealTrees(args) => real_trees::run(&args),
        Command::Setup => setup::run().map(|_| ()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
