//! Brings the differential test into the namespaces that its configuration asks for.

use super::{Config, Plan, on_own_backing, rounds};
use crate::backing::Backing;
use crate::sandbox::{Space, open_fuse_to_all, root_of_user_space, run_again};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::Path;

/// Where the outer process has mounted the backing for the one in the user namespace.
const PLACE: &str = "PLYFS_DIFFERENTIAL_PLACE";

/// Runs `plan` with `config` in namespaces of its own; true if nothing was found.
///
/// This program is run again inside with `again` as its arguments, which must lead to the same call.
pub fn survives(config: &Config, plan: &Plan, again: &[OsString]) -> Result<bool> {
    let root = rustix::process::geteuid().is_root();
    match (Space::current(), config.user_space) {
        (None, false) if !root => bail!("{config} needs root"),
        (None, true) if !root => Ok(run_again(Space::User, again, &[])?.success()),
        (None, _) => Ok(run_again(Space::Mounts, again, &[])?.success()),
        (Some(Space::Mounts), true) => by_way_of_a_user_space(config, again),
        (Some(Space::Mounts), false) => report(config, plan, None),
        (Some(Space::User), _) => report(config, plan, std::env::var_os(PLACE)),
    }
}

fn report(config: &Config, plan: &Plan, place: Option<OsString>) -> Result<bool> {
    let report = match place {
        Some(place) => rounds(config, plan, Path::new(&place))?,
        None => on_own_backing(config, plan)?,
    };
    eprintln!("{config} against {}, from seed {}: {report}", config.right, plan.seed);
    Ok(report.failures.is_empty())
}

/// A loop file can only be mounted outside of the user namespace.
fn by_way_of_a_user_space(config: &Config, again: &[OsString]) -> Result<bool> {
    let backing = Backing::new(config.backing)?;
    let id = root_of_user_space();
    std::os::unix::fs::chown(backing.path(), Some(id), Some(id)).context("giving away the backing")?;
    let scratch = tempfile::tempdir()?;
    open_fuse_to_all(scratch.path())?;
    let status = run_again(Space::User, again, &[(PLACE, backing.path().as_os_str())])?;
    Ok(status.success())
}
