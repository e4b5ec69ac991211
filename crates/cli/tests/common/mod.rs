//! What the tests of the command have in common: a place with layers, and the command itself.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "test helpers; each test file uses some")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use plyfs_testkit::need::{Need, met};
use plyfs_testkit::sandbox::{self, Space};

/// The command under test.
pub const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// Runs `body` as root in mount and PID namespaces of its own, so that nothing outlives it.
pub fn as_root(test: &str, body: impl FnOnce(&Place)) {
    if met(&[Need::Root, Need::Fuse]) {
        sandbox::test(test, Space::Mounts, || body(&Place::new()));
    }
}

/// A temporary directory, removed in the end.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty one, that every user may enter.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// The path of something in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes directories.
    pub fn dirs(&self, names: &[&str]) {
        for name in names {
            std::fs::create_dir_all(self.at(name)).unwrap();
        }
    }

    /// Writes a file, making the directories above it.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        std::fs::write(self.at(name), text).unwrap();
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap()
    }

    /// The command, in this directory.
    pub fn plyfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PLYFS);
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    /// Runs the command, which must succeed, and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        text(&succeed(&mut self.plyfs(arguments)).stdout)
    }

    /// Runs a shell script in this directory, which must succeed, and returns what it printed.
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command.arg("-ec").arg(script).current_dir(self.dir.path());
        text(&succeed(&mut command).stdout)
    }

    /// Mounts `lowers` under `upper` on `merged`, all of them made if they are missing.
    pub fn mount(&self, lowers: &[&str]) {
        self.dirs(lowers);
        self.dirs(&["upper", "work", "merged"]);
        let options = format!("lowerdir={},upperdir=upper,workdir=work", lowers.join(":"));
        self.run(&["mount", "-o", &options, "merged"]);
    }

    /// Unmounts `merged`.
    pub fn umount(&self) {
        self.run(&["umount", "merged"]);
    }

    /// The mounts below this directory, as the mount table has them.
    pub fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.dir.path().to_str().unwrap();
        table.lines().filter(|line| line.contains(here)).map(str::to_owned).collect()
    }
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    if !output.status.success() {
        panic!("{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    output
}

/// Runs a command that must fail with one line, and returns the line.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{command:?} succeeded: {}", text(&output.stdout));
    assert_eq!(said.lines().count(), 1, "{command:?} said: {said}");
    assert!(said.starts_with("plyfs: "), "{command:?} said: {said}");
    said.trim_end().to_owned()
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits, for at most ten seconds, until something is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("ten seconds passed without: {what}");
}

/// The names in a directory, sorted.
pub fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
