//! `cargo xtask stress`: many threads change a mount while another walks it and a large file is copied up; on
//! plyfs and, for comparison, on the kernel's overlay.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::stress::{Plan, Report, run as stress};

use crate::mounts;

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Creates, renames and deletes of all threads together
    #[arg(long, default_value_t = 100_000)]
    ops: u64,
    /// Threads that change the tree
    #[arg(long, default_value_t = 8)]
    threads: usize,
    /// MiB of each file that is copied up
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// How many of them
    #[arg(long, default_value_t = 2)]
    copies: usize,
    /// The file system beneath: tmpfs, ext4 or xfs
    #[arg(long, default_value = "ext4")]
    on: Kind,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The part of the threads' pace that must be left beside a copy-up; they share the processors and the disk with it
    #[arg(long, default_value_t = 0.15)]
    least: f64,
    /// Leave out the kernel's overlay
    #[arg(long)]
    alone: bool,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// Runs on both; an error if anything was wrong on plyfs.
pub fn run(args: &Args) -> Result<()> {
    mounts::need_root_and_fuse()?;
    let plyfs = Driver::Plyfs(mounts::plyfs(args.plyfs.as_deref())?);
    let plan = Plan {
        operations: args.ops,
        threads: args.threads,
        copies: args.copies,
        size: args.size << 20,
        seed: args.seed,
    };
    let mut reports = Vec::new();
    let drivers = [Driver::Kernel, plyfs].into_iter().skip(usize::from(args.alone));
    for driver in drivers {
        // Lower and upper, and room for the small files.
        let backing = Backing::sized(args.on, 2 * plan.size * plan.copies as u64 + (2 << 30))?;
        let report = stress(&driver, backing.path(), &plan).with_context(|| driver.to_string())?;
        print(&driver, &report);
        reports.push(report);
    }
    let Some(report) = reports.pop() else { bail!("nothing was run") };
    report.nobody_waited(args.least).context("plyfs")?;
    println!("stress: no error, no entry lost, nobody waited for a copy-up");
    Ok(())
}

fn print(driver: &Driver, report: &Report) {
    let (alone, beside) = report.rates();
    let (longest_alone, longest_beside) = report.longest();
    let copies: Vec<_> = report.copies.iter().map(|took| format!("{:.2} s", took.as_secs_f64())).collect();
    println!("stress: {driver}: {} operations in {:.1} s", report.operations, report.took.as_secs_f64());
    println!(
        "  {} entries as the threads left them, also after a remount; {} walks",
        report.entries, report.walks
    );
    println!("  copy-ups took {}", copies.join(", "));
    println!(
        "  operations a second: {alone:.0} without a copy-up, {beside:.0} beside one ({:.2})",
        beside / alone
    );
    println!("  longest operation: {longest_alone:.0?} without a copy-up, {longest_beside:.0?} beside one");
}
