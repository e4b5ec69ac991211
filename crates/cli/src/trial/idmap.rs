//! User namespaces: who the command is inside the view.
//!
//! The maps of a user namespace must be written from outside it, so a helper process (the stage `map`) is started before
//! the namespace is made, and told through its standard input when it is there.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use plyfs_sys::mount::{self, Namespaces};

use crate::failure::{Context, Failure, Outcome};
use crate::trial::stage_command;

/// Which map the helper writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Map {
    /// The user becomes root, and has the further ids of /etc/subuid if newuidmap gives them.
    BecomeRoot,
    /// Every id stays what it is.
    Identity,
}

/// The helper process, waiting for the user namespace. What it needs of the file system it has: it can be started before
/// another root is entered.
#[derive(Debug)]
pub struct Helper {
    child: Child,
}

impl Helper {
    /// Starts it. It works in this process's directory below /proc, which stays the right one whatever is mounted or made
    /// root meanwhile, and whatever the process is called in another PID namespace.
    pub fn start(map: Map) -> Outcome<Self> {
        let own = PathBuf::from("/proc").join(std::fs::read_link("/proc/self").context(|| "/proc/self")?);
        let name = match map {
            Map::BecomeRoot => "become-root",
            Map::Identity => "identity",
        };
        let mut command = stage_command("map");
        command.arg("--map").arg(name).current_dir(own).stdin(Stdio::piped());
        let child = command.spawn().context(|| "cannot start the id map helper")?;
        Ok(Self { child })
    }

    /// Moves this process, which must have one thread, to a new user namespace with the helper's map, and to the other
    /// namespaces given.
    pub fn enter(mut self, namespaces: Namespaces) -> Outcome<()> {
        new_user_namespace(namespaces)?;
        // Closing its standard input is the sign.
        drop(self.child.stdin.take());
        let status = self.child.wait().context(|| "cannot wait for the id map helper")?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new("cannot map user and group ids into the user namespace"))
    }
}

fn new_user_namespace(namespaces: Namespaces) -> Outcome<()> {
    mount::unshare(Namespaces { user: true, ..namespaces }).map_err(|error| {
        Failure::new(format!(
            "cannot make a user namespace: {error}; allow it (sysctl user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns) or become root"
        ))
    })
}

/// The stage `map`: waits until standard input ends, then writes the maps of the process in whose /proc directory it is.
pub fn write_maps(map: Map) -> Outcome<()> {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).context(|| "cannot wait for the user namespace")?;
    match map {
        Map::Identity => write_identity(),
        Map::BecomeRoot => {
            if with_subordinate_ids().is_some() {
                return Ok(());
            }
            write_single()
        }
    }
}

fn write_identity() -> Outcome<()> {
    for file in ["uid_map", "gid_map"] {
        let own = std::fs::read_to_string(format!("/proc/self/{file}")).context(|| file)?;
        std::fs::write(file, identity(&own)).context(|| file)?;
    }
    Ok(())
}

/// The map that gives each id of a map's inside itself.
fn identity(map: &str) -> String {
    let ranges = map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (inside, count) = (fields.next()?, fields.nth(1)?);
        Some(format!("{inside} {inside} {count}\n"))
    });
    ranges.collect()
}

fn write_single() -> Outcome<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    std::fs::write("setgroups", "deny").context(|| "setgroups")?;
    std::fs::write("uid_map", format!("0 {uid} 1\n")).context(|| "uid_map")?;
    std::fs::write("gid_map", format!("0 {gid} 1\n")).context(|| "gid_map")
}

/// `None` if the user has no subordinate ids, or there is no newuidmap: then one id must do.
fn with_subordinate_ids() -> Option<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let name = user_name(uid);
    let (uid_first, uid_count) = subordinate("/etc/subuid", &name, uid)?;
    let (gid_first, gid_count) = subordinate("/etc/subgid", &name, uid)?;
    let process = rustix::process::getppid()?.as_raw_nonzero().to_string();
    // gid first: newgidmap may run with setgroups allowed only where it maps subordinate ids, as it does here.
    run_map_program("newgidmap", &process, gid, &gid_first, &gid_count)?;
    run_map_program("newuidmap", &process, uid, &uid_first, &uid_count)
}

fn run_map_program(program: &str, process: &str, own: u32, first: &str, count: &str) -> Option<()> {
    let own = own.to_string();
    let status = Command::new(program)
        .args([process, "0", &own, "1", "1", first, count])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success()).then_some(())
}

fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = entries.find(|fields| fields.get(2).is_some_and(|field| *field == uid.to_string()));
    found.and_then(|fields| fields.first().map(|name| (*name).to_owned())).unwrap_or_default()
}

/// The first range of a user in /etc/subuid or /etc/subgid (subuid(5)), whose lines begin with the name or the number.
fn subordinate(path: &str, name: &str, uid: u32) -> Option<(String, String)> {
    let text = std::fs::read_to_string(path).ok()?;
    range(&text, name, uid)
}

fn range(text: &str, name: &str, uid: u32) -> Option<(String, String)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = (!name.is_empty() && owner == name) || owner == uid.to_string();
        ours.then(|| (first.to_owned(), count.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_map_repeats_the_inside_of_the_map_around_it() {
        assert_eq!(
            identity("         0       1000          1\n         1     100000      65536\n"),
            "0 0 1\n1 1 65536\n"
        );
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let text = "bob:100000:65536\n1001:200000:65536\n";
        assert_eq!(range(text, "bob", 1000), Some(("100000".to_owned(), "65536".to_owned())));
        assert_eq!(range(text, "", 1001), Some(("200000".to_owned(), "65536".to_owned())));
        assert_eq!(range(text, "eve", 1002), None);
    }
}
