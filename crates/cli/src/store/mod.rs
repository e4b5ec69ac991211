//! The layer store on the command line: images and containers.
//!
//! Owns telling the store's command lines from the union mount's (four verbs are in both), parsing, and
//! printing. What the commands do is in the library.

mod absent;
mod args;
mod bars;
mod commands;
mod running;
mod show;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;

use args::StoreCli;

/// Verbs that only the store has.
const OWN: &[&str] = &[
    "pull",
    "push",
    "load",
    "save",
    "import",
    "images",
    "inspect",
    "tag",
    "rmi",
    "history",
    "create",
    "ps",
    "export",
    "cp",
    "rm",
    "run",
    "exec",
    "stop",
    "logs",
    "info",
    "df",
    "gc",
    "prune",
    "check",
    "supervise",
];

/// Verbs of both, and the options that make them the union mount's.
const SHARED: &[(&str, &[&str])] = &[
    ("mount", &["-o", "--options", "-f", "--foreground", "-d", "--debug", "--fake"]),
    ("umount", &["-l", "--lazy"]),
    ("diff", &["--lower", "-l"]),
    ("commit", &["--onto"]),
];

/// Whether a command line is for the store.
///
/// It is with `--root` before the verb, with a verb that only the store has, and with a shared verb whose
/// operand can only be a container's name.
pub fn claims(line: &[OsString]) -> bool {
    // By other names it is someone else's program: fuse-overlayfs, or a helper of mount(8).
    let called = line.first().map(|w| std::path::Path::new(w).file_name().unwrap_or_default().to_owned());
    if called.is_some_and(|n| n == "fuse-overlayfs" || n.to_string_lossy().starts_with("mount.")) {
        return false;
    }
    let words: Vec<&str> = line.iter().skip(1).map(|w| w.to_str().unwrap_or("/")).collect();
    let is_root = |w: &str| w == "--root" || w.starts_with("--root=");
    match words.first() {
        Some(w) if is_root(w) || OWN.contains(w) => true,
        Some(w) if ["--json", "--backend", "--quiet"].iter().any(|o| w.starts_with(o)) => true,
        Some(w) => SHARED.iter().find(|(verb, _)| verb == w).is_some_and(|(_, others)| {
            let rest = words.get(1..).unwrap_or_default();
            let foreign =
                rest.iter().any(|w| others.iter().any(|o| w == o || w.starts_with(&format!("{o}="))));
            let operand = rest.iter().find(|w| !w.starts_with('-'));
            rest.iter().any(|w| is_root(w)) || !foreign && operand.is_some_and(|o| is_container_name(o))
        }),
        None => false,
    }
}

/// No path: it has no slash, and there is nothing of that name here. A mount whose daemon died is something, though it cannot
/// be looked at.
fn is_container_name(word: &str) -> bool {
    let absent = |path: &std::path::Path| {
        path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    !word.contains('/') && absent(std::path::Path::new(word))
}

/// The line with a `--json` before the verb behind it, where every command takes it, and `help VERB` of a verb that only the
/// store has as `VERB --help`.
pub fn straighten(mut line: Vec<OsString>) -> Vec<OsString> {
    let word = |place: usize| line.get(place).and_then(|word| word.to_str()).unwrap_or_default();
    match (word(1), word(2)) {
        ("--json", verb) if !verb.is_empty() && !verb.starts_with('-') => line.swap(1, 2),
        ("help", verb) if line.len() == 3 && OWN.contains(&verb) => {
            line.swap(1, 2);
            if let Some(last) = line.last_mut() {
                *last = "--help".into();
            }
        }
        _ => {}
    }
    line
}

/// Runs a store command; the last word on failures is here.
pub fn main(line: &[OsString]) -> ExitCode {
    let cli = match crate::parse::parse::<StoreCli>(line) {
        Ok(cli) => cli,
        Err(failure) => {
            failure.print();
            return ExitCode::from(failure.code());
        }
    };
    let json = cli.json;
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(commands::Failure::Quiet) => ExitCode::SUCCESS,
        Err(commands::Failure::Store(e)) => {
            let message = neither(line, &e).unwrap_or_else(|| e.to_string());
            let line = match json {
                true => serde_json::json!({"error": e.kind(), "message": message}).to_string(),
                false => format!("plyfs: {message}"),
            };
            // Nobody to tell if standard error is gone.
            match writeln!(std::io::stderr(), "{line}") {
                Ok(()) | Err(_) => ExitCode::from(e.exit_code()),
            }
        }
    }
}

/// What is said when the word of a shared verb is no container, where it may have been meant as a path.
fn neither(line: &[OsString], error: &plyfs_store::Error) -> Option<String> {
    let plyfs_store::Error::NotFound { what: "container", name } = error else { return None };
    let verb = line.get(1)?;
    let shared = SHARED.iter().any(|(shared, _)| verb == shared);
    let rooted = line.iter().any(|word| word.to_string_lossy().starts_with("--root"));
    (shared && !rooted).then(|| format!("{name}: there is no such directory, and no container of that name"))
}

/// The union mount's commands with the store's beside them, for completions and manual pages.
pub fn beside(mut root: clap::Command) -> clap::Command {
    let store = StoreCli::command();
    let globals: Vec<clap::Arg> = store.get_arguments().filter(|a| a.is_global_set()).cloned().collect();
    let taken: Vec<String> = root.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for c in store.get_subcommands().filter(|c| !c.is_hide_set() && !taken.iter().any(|t| t == c.get_name()))
    {
        let own: Vec<String> = c.get_arguments().map(|a| a.get_id().to_string()).collect();
        let fits = globals.iter().filter(|g| !own.iter().any(|o| g.get_id() == o.as_str())).cloned();
        root = root.subcommand(c.clone().args(fits));
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(line: &str) -> bool {
        claims(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_stores_verbs_and_every_line_with_a_root_are_the_stores() {
        for l in [
            "plyfs --root R mount c1",
            "plyfs mount --root R c1",
            "plyfs import a.tar b:1",
            "plyfs mount c1",
            "plyfs umount c1",
            "plyfs diff c1",
            "plyfs commit c1 base:2",
            "plyfs --json images",
        ] {
            assert!(claimed(l), "{l}");
        }
    }

    #[test]
    fn json_may_stand_before_the_verb_and_help_knows_the_stores_verbs() {
        let straight = |line: &str| {
            let line = straighten(line.split(' ').map(OsString::from).collect());
            line.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(straight("plyfs --json list"), "plyfs list --json");
        assert_eq!(straight("plyfs --json --root R ps"), "plyfs --json --root R ps");
        assert_eq!(straight("plyfs help import"), "plyfs import --help");
        assert_eq!(straight("plyfs help list"), "plyfs help list");
    }

    #[test]
    fn the_union_mounts_lines_are_left_to_it() {
        for l in [
            "plyfs",
            "plyfs mount -o lowerdir=a t",
            "plyfs umount /mnt",
            "plyfs diff u --lower l",
            "plyfs diff --lower=l u",
            "plyfs commit up --onto d",
            "plyfs list",
            "plyfs try -- sh",
            "plyfs -o lowerdir=a t",
            "fuse-overlayfs import x",
            "/sbin/mount.fuse.plyfs import /mnt",
        ] {
            assert!(!claimed(l), "{l}");
        }
    }
}
