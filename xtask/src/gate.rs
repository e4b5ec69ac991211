//! `cargo xtask test`: the one command that sets a machine up and passes every check and test, as a row
//! of stages, each with its time printed and its own limit. Continuous integration runs the same.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{child, layering, policy, setup, size, workspace};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct TestArgs {
    /// Tests, size and layering only: no formatting, lints or documentation
    #[arg(long)]
    quick: bool,
}

/// Compiling everything from nothing takes some minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(25 * 60);
const TEST_LIMIT: Duration = Duration::from_secs(25 * 60);
const RETRY_LIMIT: Duration = Duration::from_secs(8 * 60);

/// Sets up, checks and tests; closes with cargo's own summary lines.
pub fn test(args: &TestArgs) -> Result<()> {
    let mut stages = Stages::new();
    let mut machine = setup::Machine { complete: false };
    stages.run("setup", || {
        machine = setup::run()?;
        Ok(())
    });
    if !args.quick {
        lints(&mut stages);
    }
    rules(&mut stages);
    let mut summary = Vec::new();
    stages.run("tests", || run_tests(machine.complete, &mut summary));
    stages.conclude(&summary)
}

/// Every check but the tests.
pub fn check() -> Result<()> {
    let mut stages = Stages::new();
    lints(&mut stages);
    rules(&mut stages);
    stages.conclude(&[])
}

fn lints(stages: &mut Stages) {
    stages.run("fmt", || component("fmt", &["fmt", "--all", "--check"], &[]));
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    stages.run("clippy", || component("clippy", &clippy, &[]));
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"];
    stages.run("doc", || cargo(&doc, &[("RUSTDOCFLAGS", "-D warnings")]));
}

fn rules(stages: &mut Stages) {
    stages.run("size", size::run);
    stages.run("layering", layering::run);
    stages.run("deny", policy::run);
}

/// Runs a subcommand of cargo that comes as a component of its own, or says that it is not installed.
fn component(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let installed = Command::new("cargo").args([name, "--version"]).output();
    if installed.is_ok_and(|output| output.status.success()) {
        return cargo(arguments, environment);
    }
    println!("xtask: skipped, cargo {name} is not installed here (rustup component add)");
    Ok(())
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()?).args(arguments).envs(environment.iter().copied());
    if child::run(&mut command, BUILD_LIMIT)?.success() {
        return Ok(());
    }
    bail!("cargo {} failed", arguments.join(" "))
}

/// Builds and runs all tests. Targets that fail are run once more, so that a loaded machine is told from
/// a fault; a test that passed only then is named.
fn run_tests(strict: bool, summary: &mut Vec<String>) -> Result<()> {
    let mut build = tests(strict)?;
    build.args(["--workspace", "--no-run"]);
    if !child::run(&mut build, BUILD_LIMIT)?.success() {
        bail!("the tests do not compile");
    }
    let mut all = tests(strict)?;
    all.args(["--workspace", "--no-fail-fast"]);
    let outcome = child::run(&mut all, TEST_LIMIT)?;
    summary.extend(summary_lines(&outcome.lines));
    if outcome.success() {
        return Ok(());
    }
    let failed = failed_targets(&outcome.lines);
    if outcome.status.is_none() || failed.is_empty() {
        bail!("cargo test failed");
    }
    for target in failed {
        let mut again = tests(strict)?;
        again.args(target.split_whitespace());
        let outcome = child::run(&mut again, RETRY_LIMIT)?;
        summary.extend(summary_lines(&outcome.lines));
        if !outcome.success() {
            bail!("cargo test {target} failed twice");
        }
        summary.push(format!("UNSTEADY: cargo test {target} failed at first and passed the second time"));
    }
    Ok(())
}

fn tests(strict: bool) -> Result<Command> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()?).args(["test", "--locked"]);
    if strict {
        command.env("PLYFS_TESTS_STRICT", "1");
    }
    Ok(command)
}

/// The lines that say which target ran and what came out, empty targets left out.
fn summary_lines(lines: &[String]) -> Vec<String> {
    let mut summary = Vec::new();
    let mut target = None;
    for line in lines {
        if line.trim_start().starts_with("Running ") || line.trim_start().starts_with("Doc-tests ") {
            target = Some(line.clone());
        } else if line.starts_with("test result: ") && !line.contains(" 0 passed; 0 failed; 0 ignored;") {
            summary.extend(target.take());
            summary.push(line.clone());
        }
    }
    summary
}

/// The arguments that cargo names for each target with failures, such as `-p plyfs-core --lib`.
fn failed_targets(lines: &[String]) -> Vec<String> {
    let named = |line: &String| Some(line.trim().strip_prefix("`-p ")?.strip_suffix('`')?.to_owned());
    lines.iter().filter_map(named).map(|target| format!("-p {target}")).collect()
}

/// Runs stages in order, each whatever became of those before it, and remembers how they ended.
struct Stages {
    done: Vec<(String, Duration, bool)>,
}

impl Stages {
    fn new() -> Self {
        Self { done: Vec::new() }
    }

    fn run(&mut self, name: &str, stage: impl FnOnce() -> Result<()>) {
        println!("=== {name}");
        let start = Instant::now();
        let result = stage();
        let passed = result.is_ok();
        if let Err(error) = result {
            println!("=== {name}: FAILED: {error:#}");
        }
        let took = start.elapsed();
        println!("=== {name}: {:.1} s", took.as_secs_f64());
        self.done.push((name.to_owned(), took, passed));
    }

    /// Prints the table of stages, then `summary`.
    fn conclude(&self, summary: &[String]) -> Result<()> {
        println!("=== stages");
        for (name, took, passed) in &self.done {
            let mark = if *passed { "ok" } else { "FAILED" };
            println!("{name:<10} {:>7.1} s  {mark}", took.as_secs_f64());
        }
        for line in summary {
            println!("{line}");
        }
        let failed: Vec<_> =
            self.done.iter().filter(|stage| !stage.2).map(|stage| stage.0.as_str()).collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(anyhow::anyhow!("{}", failed.join(", "))).context("failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn summaries_keep_targets_that_have_tests() {
        let output = lines(
            "     Running unittests src/lib.rs (target/a)\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured\n\
             \x20    Running tests/b.rs (target/b)\n\
             test x ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured",
        );
        assert_eq!(
            summary_lines(&output),
            [
                "     Running tests/b.rs (target/b)",
                "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured"
            ]
        );
    }

    #[test]
    fn failed_targets_are_read_from_cargos_closing_lines() {
        let output = lines("error: 2 targets failed:\n    `-p plyfs-core --lib`\n    `-p plyfs --test cli`");
        assert_eq!(failed_targets(&output), ["-p plyfs-core --lib", "-p plyfs --test cli"]);
    }

    #[test]
    fn a_failed_stage_is_named_and_those_after_it_run() {
        let mut stages = Stages::new();
        let mut ran = false;
        stages.run("one", || bail!("no"));
        stages.run("two", || {
            ran = true;
            Ok(())
        });
        assert!(ran);
        assert_eq!(format!("{:#}", stages.conclude(&[]).unwrap_err()), "failed: one");
    }
}
