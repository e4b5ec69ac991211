//! pjdfstest: what POSIX says of system calls on names, modes, owners and times. Owns its configuration and its output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::TreeSpec;
use plyfs_testkit::mount::Driver;

use super::{Outcome, Outcomes};
use crate::child;

const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Every feature that Linux has, two users that every Debian has, and remounting for the tests of read-only mounts.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.02
allow_remount = true

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// These remount read-only, which is refused while other tests have left a file open for writing.
const ALONE: &str = "erofs";

/// Who runs the tests, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root.
    Root,
    /// Root of a user namespace, on a mount made there.
    RootOfNamespace,
    /// Another user in it; the tests that need root are left out.
    User,
}

/// The user that is not root.
const USER: &str = "1000";

/// Runs those tests whose name holds `only`, or all, on a new union below `place`.
pub fn run(program: &Path, driver: &Driver, place: &Path, only: Option<&str>, who: Who) -> Result<Outcomes> {
    let options: &[&str] = if who == Who::Root { &[] } else { &["userxattr"] };
    let union = Union::new(driver, place, &[TreeSpec::new()], options)?;
    let scratch = tempfile::tempdir_in(place).context("a temporary directory")?;
    for open_to_all in [union.merged(), scratch.path()].iter().filter(|_| who == Who::User) {
        fs::set_permissions(open_to_all, PermissionsExt::from_mode(0o777)).context("chmod")?;
    }
    let configuration = scratch.path().join("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).context("the configuration of pjdfstest")?;
    let pass = |only: Option<&str>| {
        let mut command = match who {
            Who::User => Command::new("setpriv"),
            _ => Command::new(program),
        };
        if who == Who::User {
            let ids = ["--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all"];
            command.args(ids).arg(program);
        }
        command.arg("-c").arg(&configuration).arg("-p").arg(union.merged()).arg("-s").arg(scratch.path());
        command.args(only).env("NO_COLOR", "1").env_remove("RUST_BACKTRACE");
        one_pass(&mut command)
    };
    let mut outcomes = pass(only)?;
    if only.is_none() && who != Who::User {
        outcomes.extend(pass(Some(ALONE))?);
    }
    Ok(outcomes)
}

fn one_pass(command: &mut Command) -> Result<Outcomes> {
    let outcome = child::run_quiet(command, LIMIT)?;
    if outcome.status.is_none() {
        bail!("pjdfstest did not end");
    }
    let outcomes = parse(&outcome.lines);
    if outcomes.is_empty() {
        bail!("pjdfstest ran nothing: {}", outcome.lines.join(" / "));
    }
    Ok(outcomes)
}

/// Its lines are a name and `ok`, `FAILED` or `skipped`; the line after a failure tells the reason.
fn parse(lines: &[String]) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for (number, line) in lines.iter().enumerate() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(verdict), None) = (words.next(), words.next(), words.next()) else { continue };
        let outcome: Outcome = match verdict {
            "ok" => None,
            "FAILED" => Some(lines.get(number + 1).map(|why| why.trim().to_owned()).unwrap_or_default()),
            _ => continue,
        };
        outcomes.insert(name.to_owned(), outcome);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_and_everything_else_is_passed_over() {
        let output = "a::b   ok\nc   FAILED\n\twhy it is so\nd  skipped\nBacktrace:\n   0: x\nSummary: 1 failed, 1 passed";
        let lines: Vec<_> = output.lines().map(str::to_owned).collect();
        let expected = [("a::b".to_owned(), None), ("c".to_owned(), Some("why it is so".to_owned()))];
        assert_eq!(parse(&lines), Outcomes::from(expected));
    }
}
