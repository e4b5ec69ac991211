//! Workloads of real programs: tar, cp, git, a C compiler, Python. A program that is not installed has no
//! row.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::fixture::Fixture;
use super::ops;
use super::row::{Row, Unit};
use crate::child;
use crate::setup::is_tool;

const PROGRAM_LIMIT: Duration = Duration::from_secs(300);
/// C sources to compile, Python modules to import.
const C_SOURCES: usize = 40;
const MODULES: usize = 500;

/// The rows of this family.
pub fn rows() -> Vec<Row> {
    let row = |name: &str, script: &'static str| {
        Row::new(name, Unit::Millis, Fixture::Programs, move |site| {
            ops::millis(|| shell(site.root, script, site.round))
        })
        .writes()
        .rounds(3)
        .prepare(|site| site.bench.sync())
    };
    let mut rows = vec![
        row("tar: extract 4,000 files", "mkdir out$ROUND && tar -xf tree.tar -C out$ROUND"),
        row("cp -a of 4,000 lower files", "cp -a tree copy$ROUND"),
    ];
    if is_tool("git") {
        rows.push(row("git status of 4,000 files, first", GIT_STATUS).each_round());
        rows.push(
            row("git status of 4,000 files, again", GIT_STATUS)
                .prepare(|site| shell(site.root, GIT_STATUS, 0)),
        );
    }
    if is_tool("cc") {
        rows.push(row("compile 40 C files", "mkdir obj$ROUND && cd obj$ROUND && cc -c -I../c ../c/*.c"));
    }
    if is_tool("python3") {
        rows.push(row("python imports 500 modules, first", PYTHON).each_round());
        rows.push(
            row("python imports 500 modules, again", PYTHON).prepare(|site| shell(site.root, PYTHON, 0)),
        );
    }
    rows
}

const GIT_STATUS: &str = "cd tree && git -c core.fsmonitor=false -c safe.directory='*' status --short";
const PYTHON: &str = "PYTHONPATH=py python3 -S -c 'import everything'";

/// Runs a script in the merged tree.
fn shell(root: &Path, script: &str, round: usize) -> Result<()> {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(script).current_dir(root).env("ROUND", round.to_string());
    if child::run_silent(&mut command, PROGRAM_LIMIT)?.success() {
        return Ok(());
    }
    bail!("failed in {}: {script}", root.display())
}

/// Makes what the programs work on.
pub fn fill(directory: &Path) -> Result<()> {
    let text = "The quick brown fox jumps over the lazy dog, and nothing else happens here.\n".repeat(60);
    for dir in 0..80 {
        let parent = directory.join(format!("tree/src{dir:02}"));
        fs::create_dir_all(&parent).with_context(|| parent.display().to_string())?;
        for file in 0..50 {
            let path = parent.join(format!("file{file:02}.txt"));
            fs::write(&path, format!("{dir} {file}\n{text}")).with_context(|| path.display().to_string())?;
        }
    }
    shell(directory, "tar -cf tree.tar tree", 0)?;
    if is_tool("git") {
        let commit =
            "git init -q . && git add . && git -c user.name=b -c user.email=b@localhost commit -q -m b";
        shell(&directory.join("tree"), commit, 0)?;
    }
    fill_c(&directory.join("c"))?;
    fill_python(&directory.join("py"))
}

/// Sources that include headers of their own and of the system.
fn fill_c(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for number in 0..C_SOURCES {
        let header = format!("int f{number}(int x);\n");
        let mut source = String::from("#include <stdio.h>\n");
        for other in 0..C_SOURCES {
            writeln!(source, "#include \"h{other}.h\"")?;
        }
        writeln!(source, "int f{number}(int x) {{ return printf(\"%d\", x); }}")?;
        for (name, text) in [(format!("h{number}.h"), header), (format!("s{number}.c"), source)] {
            fs::write(directory.join(&name), text).context(name)?;
        }
    }
    Ok(())
}

fn fill_python(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut everything = String::new();
    for number in 0..MODULES {
        let name = format!("module{number:03}.py");
        fs::write(directory.join(&name), format!("VALUE = {number}\ndef get():\n    return VALUE\n"))
            .context(name)?;
        writeln!(everything, "import module{number:03}")?;
    }
    fs::write(directory.join("everything.py"), everything).context("everything.py")?;
    if is_tool("python3") {
        shell(directory, "python3 -m compileall -q .", 0)?;
    }
    Ok(())
}
