//! Namespaces of a test's own: mounts and processes that vanish with it, or a user namespace without root.
//!
//! A thread of a test harness cannot enter a user namespace, so the program is run again inside: the same
//! binary with the same arguments, and [`SPACE`] in its environment to say where it is.

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The environment variable that tells a program in which [`Space`] it is.
pub const SPACE: &str = "PLYFS_SANDBOX";

/// The first id outside of a user namespace that is used inside, where it is 0.
const FIRST_ID: u32 = 100_000;
const ID_COUNT: u32 = 65_536;

/// Keeps a shell as process 1, which reaps the daemons that outlive their parents.
const INIT: &str = r#""$@"; exit $?"#;
/// Waits until the ids are mapped, then makes the other namespaces, which belong to the user namespace.
const WAIT_FOR_IDS: &str = r#"read -r ready && exec unshare --mount --pid --fork --kill-child --mount-proc --setgid 0 --setuid 0 \
    sh -c '"$@"; exit $?' sh "$@""#;

/// Which namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Mounts and processes; the ids stay. Needs root.
    Mounts,
    /// Users too: root inside is nobody special outside. Made by root it has 65,536 ids, else only one.
    User,
}

impl Space {
    /// The space that this program was started in by [`run_again`].
    pub fn current() -> Option<Self> {
        match std::env::var(SPACE).ok()?.as_str() {
            "mounts" => Some(Space::Mounts),
            "user" => Some(Space::User),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Space::Mounts => "mounts",
            Space::User => "user",
        }
    }
}

/// Runs this program again in `space`, with `args`, and waits for it.
pub fn run_again(space: Space, args: &[OsString], env: &[(&str, &OsStr)]) -> Result<ExitStatus> {
    let program = std::env::current_exe().context("the path of this program")?;
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new("unshare");
    match (space, root) {
        (Space::Mounts, _) => command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]),
        (Space::User, true) => command.args(["--user", "--keep-caps", "--"]),
        (Space::User, false) => command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]),
    };
    let wait_for_ids = space == Space::User && root;
    command.args(["sh", "-c", if wait_for_ids { WAIT_FOR_IDS } else { INIT }, "sh"]);
    command.arg(program).args(args).envs(env.iter().copied()).env(SPACE, space.name());
    if !wait_for_ids {
        return command.status().with_context(|| format!("{command:?}"));
    }
    let child = command.stdin(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
    map_ids_and_wait(child)
}

/// Runs `body` in `space`: called by a test named `test` in the harness's process, it runs the same test
/// alone inside; called there, it runs `body`.
///
/// # Panics
/// If the test fails inside, or the space cannot be made.
#[expect(clippy::panic, reason = "this is how a test fails")]
pub fn test(test: &str, space: Space, body: impl FnOnce()) {
    if Space::current() == Some(space) {
        return body();
    }
    let args = [test, "--exact", "--nocapture", "--include-ignored"].map(OsString::from);
    match run_test_again(space, &args) {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{test} in {space:?}: {status}"),
        Err(cause) => panic!("{test} in {space:?}: {cause:#}"),
    }
}

/// Lets every user open `/dev/fuse`, as on most systems, in this mount namespace only: binds a node of mode
/// 0666 over one that is root's alone. Needs root and a mount namespace of one's own; does nothing otherwise.
pub fn open_fuse_to_all(scratch: &Path) -> Result<()> {
    let device = Path::new("/dev/fuse");
    let Ok(metadata) = std::fs::metadata(device) else { return Ok(()) };
    if metadata.mode() & 0o006 == 0o006 || Space::current() != Some(Space::Mounts) {
        return Ok(());
    }
    let node = scratch.join("fuse");
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(10, 229))?;
    std::fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    rustix::mount::mount_bind(&node, device).context("binding over /dev/fuse")
}

/// Root goes into a user space by way of a mount space, where `/dev/fuse` can be opened to all.
fn run_test_again(space: Space, args: &[OsString]) -> Result<ExitStatus> {
    let by_way_of_mounts = space == Space::User && rustix::process::geteuid().is_root();
    if !by_way_of_mounts {
        return run_again(space, args, &[]);
    }
    if Space::current() != Some(Space::Mounts) {
        return run_again(Space::Mounts, args, &[]);
    }
    let scratch = tempfile::tempdir()?;
    open_fuse_to_all(scratch.path())?;
    run_again(space, args, &[])
}

fn map_ids_and_wait(mut child: Child) -> Result<ExitStatus> {
    let result = map_ids(&mut child);
    if result.is_err() {
        child.kill().context("ending a process whose ids could not be mapped")?;
    }
    let status = child.wait().context("waiting for the user namespace")?;
    result.map(|()| status)
}

fn map_ids(child: &mut Child) -> Result<()> {
    let process = Path::new("/proc").join(child.id().to_string());
    let own = std::fs::read_link("/proc/self/ns/user")?;
    let started = Instant::now();
    while std::fs::read_link(process.join("ns/user")).context("the new user namespace")? == own {
        if started.elapsed() > Duration::from_secs(10) {
            bail!("no user namespace after ten seconds");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for map in ["uid_map", "gid_map"] {
        std::fs::write(process.join(map), format!("0 {FIRST_ID} {ID_COUNT}")).context(map)?;
    }
    let mut stdin = child.stdin.take().context("no pipe to the new process")?;
    stdin.write_all(b"ready\n").context("telling the new process to go on")
}

/// The id that root of a user namespace made here has outside of it.
pub fn root_of_user_space() -> u32 {
    FIRST_ID
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{self, Need};

    #[test]
    fn in_a_user_space_root_is_somebody_else_outside() {
        if Space::current().is_none() && !need::met(&[Need::UserNamespace, Need::Tool("unshare")]) {
            return;
        }
        test("sandbox::tests::in_a_user_space_root_is_somebody_else_outside", Space::User, || {
            assert!(rustix::process::geteuid().is_root());
            let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
            assert!(!map.contains("4294967295"), "{map}");
        });
    }
}
