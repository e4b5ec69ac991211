//! What a test needs of the machine, and what becomes of the test where that is missing.
//!
//! A missing need prints its reason and lets the test skip; with `PLYFS_TESTS_STRICT=1` in the environment
//! (as in CI on a machine that must have everything) it fails the test instead.

use std::path::Path;

/// Something of the machine that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need<'a> {
    /// Effective uid 0 in the initial user namespace.
    Root,
    /// `/dev/fuse` can be opened.
    Fuse,
    /// A command in `PATH`.
    Tool(&'a str),
    /// A file system the kernel knows, such as `overlay` or `xfs`.
    Filesystem(&'a str),
    /// User namespaces may be made.
    UserNamespace,
    /// A setting of the system, in sysfs or procfs, may be written.
    Writable(&'a Path),
}

impl Need<'_> {
    /// The reason why the need is not met, or `None` if it is.
    pub fn missing(&self) -> Option<String> {
        match self {
            Need::Root => (!is_initial_root()).then(|| "needs root".to_owned()),
            Need::Fuse => {
                let opened = std::fs::File::options().read(true).write(true).open("/dev/fuse");
                opened.err().map(|cause| format!("needs FUSE: /dev/fuse: {cause}"))
            }
            Need::Tool(name) => (!in_path(name)).then(|| format!("needs the command {name}")),
            Need::Filesystem(name) => (!kernel_knows(name)).then(|| format!("needs the file system {name}")),
            Need::UserNamespace => {
                let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
                (limit.trim().parse().unwrap_or(0) == 0).then(|| "needs user namespaces".to_owned())
            }
            Need::Writable(setting) => {
                let opened = std::fs::File::options().write(true).open(setting);
                opened.err().map(|cause| format!("needs to write {}: {cause}", setting.display()))
            }
        }
    }
}

/// True if every need is met. Otherwise says on standard error what is missing, and returns false.
///
/// # Panics
/// With `PLYFS_TESTS_STRICT=1`, if a need is not met: there a skipped test counts as a failed one.
#[must_use]
#[expect(clippy::panic, reason = "the strict mode turns a skip into a failure of the calling test")]
pub fn met(needs: &[Need<'_>]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(Need::missing).collect();
    if missing.is_empty() {
        return true;
    }
    let reasons = missing.join("; ");
    if std::env::var_os("PLYFS_TESTS_STRICT").is_some_and(|value| value == "1") {
        panic!("PLYFS_TESTS_STRICT=1, but this test cannot run: {reasons}");
    }
    eprintln!("skipped: {reasons}");
    false
}

fn is_initial_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && whole
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").to_owned()])
        .any(|dir| dir.join(name).is_file())
}

fn kernel_knows(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_in_the_reason() {
        let reason = Need::Tool("no-such-command-anywhere").missing().unwrap();
        assert!(reason.contains("no-such-command-anywhere"));
        assert_eq!(Need::Tool("sh").missing(), None);
    }

    #[test]
    fn a_setting_that_cannot_be_written_is_named_in_the_reason() {
        let reason = Need::Writable(Path::new("/proc/self/no-such-setting")).missing().unwrap();
        assert!(reason.contains("no-such-setting"), "{reason}");
        assert_eq!(Need::Writable(Path::new("/proc/self/oom_score_adj")).missing(), None);
    }

    #[test]
    fn tmpfs_is_known_to_every_kernel() {
        assert_eq!(Need::Filesystem("tmpfs").missing(), None);
        assert!(Need::Filesystem("nosuchfs").missing().is_some());
    }
}
