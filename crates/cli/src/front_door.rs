//! Which command line this is: plyfs's own, fuse-overlayfs's, or that of a helper of mount(8).
//!
//! It parses the two foreign command lines and nothing of plyfs's own (that is `args.rs`), and opens nothing. They are
//! those of getopt(3): short options may be joined (`-fd`, `-oro`), options and operands may come in any order.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::args::{self, MountArgs};
use crate::failure::{Failure, Outcome};

/// What is to be done.
#[derive(Debug)]
pub enum Invocation {
    /// plyfs's own command line, for `args.rs`.
    Own(Vec<OsString>),
    /// A mount asked for by a foreign command line.
    Mount(MountArgs),
    /// Answer as fuse-overlayfs does when it is asked for its version.
    FuseOverlayfsVersion,
    /// Explain the foreign command line.
    ForeignHelp,
}

/// Sorts a command line by the name the program was called by and by its first arguments.
pub fn sort(arguments: Vec<OsString>) -> Outcome<Invocation> {
    let called_as = arguments.first().map(|first| base_name(first).to_owned()).unwrap_or_default();
    let rest = arguments.get(1..).unwrap_or_default();
    match called_as.as_bytes() {
        b"mount.fuse.plyfs" | b"mount.fuse3.plyfs" | b"mount.plyfs" => mount_helper(rest),
        b"fuse-overlayfs" => fuse_overlayfs(rest),
        _ if is_foreign(rest) => fuse_overlayfs(rest),
        _ => Ok(Invocation::Own(arguments)),
    }
}

fn base_name(path: &OsStr) -> &OsStr {
    path.as_bytes().rsplit(|byte| *byte == b'/').next().map_or(path, OsStr::from_bytes)
}

/// Called as `plyfs`: fuse-overlayfs's command line has `-o` and begins with an option of its own or with an operand that
/// is no subcommand.
fn is_foreign(rest: &[OsString]) -> bool {
    let Some(first) = rest.first().map(|first| first.as_bytes()) else {
        return false;
    };
    match first {
        [b'-', b'-', ..] | b"-h" | b"-V" | b"-" => false,
        [b'-', ..] => true,
        _ => {
            !args::is_subcommand(OsStr::from_bytes(first))
                && rest.iter().any(|word| word.as_bytes().starts_with(b"-o"))
        }
    }
}

/// `[-f] [-d] -o OPTIONS TARGET`, also with a source before the target, as containerd puts it.
fn fuse_overlayfs(rest: &[OsString]) -> Outcome<Invocation> {
    let mut seen = Seen::default();
    let mut words = Words::new(rest);
    while let Some(word) = words.next() {
        match word {
            Word::Short(b'o') => seen.mount.options.push(words.value("-o")?),
            Word::Short(b'f') => seen.mount.foreground = true,
            Word::Short(b'd') => seen.mount.debug = true,
            // One thread: plyfs decides by itself how many serve.
            Word::Short(b's') => {}
            Word::Short(b'V') | Word::Long(b"version") => return Ok(Invocation::FuseOverlayfsVersion),
            Word::Short(b'h') | Word::Long(b"help") => return Ok(Invocation::ForeignHelp),
            Word::Long(b"debug") => seen.mount.debug = true,
            Word::Operand(operand) => seen.operands.push(operand.to_owned()),
            other => return Err(unknown(&other)),
        }
    }
    seen.finish()
}

/// `SOURCE TARGET [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, see mount(8), "External helpers". There `-f` means to
/// do everything but mount.
fn mount_helper(rest: &[OsString]) -> Outcome<Invocation> {
    let mut seen = Seen::default();
    let mut words = Words::new(rest);
    while let Some(word) = words.next() {
        match word {
            Word::Short(b'o') => seen.mount.options.push(words.value("-o")?),
            Word::Short(b'f') => seen.mount.fake = true,
            Word::Short(b'r') => seen.mount.options.push(OsString::from("ro")),
            Word::Short(b's' | b'n' | b'v' | b'w') => {}
            Word::Short(b't') => drop(words.value("-t")?),
            Word::Short(b'N') => {
                return Err(Failure::usage("mount -N: enter the namespace with nsenter instead"));
            }
            Word::Short(b'V') | Word::Long(b"version") => return Ok(Invocation::FuseOverlayfsVersion),
            Word::Short(b'h') | Word::Long(b"help") => return Ok(Invocation::ForeignHelp),
            Word::Operand(operand) => seen.operands.push(operand.to_owned()),
            other => return Err(unknown(&other)),
        }
    }
    seen.finish()
}

#[derive(Default)]
struct Seen {
    mount: MountArgs,
    operands: Vec<OsString>,
}

impl Seen {
    /// One operand is the target; of two the first is the source.
    fn finish(mut self) -> Outcome<Invocation> {
        let mut operands = std::mem::take(&mut self.operands).into_iter();
        self.mount.operands = match (operands.next(), operands.next(), operands.next()) {
            (None, _, _) => {
                return Err(Failure::usage(
                    "no mount point: give the directory to mount on as last argument",
                ));
            }
            (Some(target), None, _) => vec![target],
            (Some(source), Some(target), None) => vec![source, target],
            (_, _, Some(extra)) => {
                return Err(Failure::usage(format!(
                    "{}: one argument too many after SOURCE and TARGET; paths with spaces need quotes",
                    extra.display()
                )));
            }
        };
        Ok(Invocation::Mount(self.mount))
    }
}

fn unknown(word: &Word<'_>) -> Failure {
    let shown = match word {
        Word::Short(letter) => format!("-{}", char::from(*letter)),
        Word::Long(name) => format!("--{}", String::from_utf8_lossy(name)),
        Word::Operand(operand) => operand.display().to_string(),
    };
    Failure::usage(format!("{shown}: unknown option; mount options go behind -o, see plyfs mount --help"))
}

/// One option letter, one long option, or one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word<'a> {
    Short(u8),
    Long(&'a [u8]),
    Operand(&'a OsStr),
}

/// Splits arguments as getopt(3) does.
struct Words<'a> {
    arguments: std::slice::Iter<'a, OsString>,
    /// What is left of the argument of joined short options.
    cluster: &'a [u8],
    only_operands: bool,
}

impl<'a> Words<'a> {
    fn new(arguments: &'a [OsString]) -> Self {
        Self { arguments: arguments.iter(), cluster: b"", only_operands: false }
    }

    fn next(&mut self) -> Option<Word<'a>> {
        if let Some((letter, rest)) = self.cluster.split_first() {
            self.cluster = rest;
            return Some(Word::Short(*letter));
        }
        let argument = self.arguments.next()?;
        if self.only_operands {
            return Some(Word::Operand(argument));
        }
        match argument.as_bytes() {
            b"--" => {
                self.only_operands = true;
                self.next()
            }
            [b'-', b'-', name @ ..] => Some(Word::Long(name)),
            [b'-', cluster @ ..] if !cluster.is_empty() => {
                self.cluster = cluster;
                self.next()
            }
            _ => Some(Word::Operand(argument)),
        }
    }

    /// The value of the option just seen: the rest of its argument, else the next argument.
    fn value(&mut self, option: &str) -> Outcome<OsString> {
        if !self.cluster.is_empty() {
            return Ok(OsString::from_vec(std::mem::take(&mut self.cluster).to_vec()));
        }
        self.arguments.next().cloned().ok_or_else(|| Failure::usage(format!("{option}: a value must follow")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(line: &[&str]) -> Invocation {
        sort(line.iter().map(OsString::from).collect()).unwrap()
    }

    fn mount(line: &[&str]) -> MountArgs {
        match sorted(line) {
            Invocation::Mount(mount) => mount,
            other => panic!("{line:?} is no mount but {other:?}"),
        }
    }

    #[test]
    fn podmans_command_line_is_a_mount() {
        let args = mount(&["/usr/bin/plyfs", "-o", "lowerdir=l/A:l/B,,volatile", "/merged"]);
        assert_eq!(args.options, ["lowerdir=l/A:l/B,,volatile"]);
        assert_eq!(args.operands, ["/merged"]);
        assert!(!args.foreground);
    }

    #[test]
    fn containerds_command_line_has_a_source_before_the_target_and_options_behind() {
        let args = mount(&["plyfs", "overlay", "/m", "-o", "workdir=w,upperdir=u,lowerdir=l,dev,suid"]);
        assert_eq!(args.operands, ["overlay", "/m"]);
        assert_eq!(args.options, ["workdir=w,upperdir=u,lowerdir=l,dev,suid"]);
    }

    #[test]
    fn short_options_may_be_joined_and_may_carry_their_value() {
        let args = mount(&["fuse-overlayfs", "-fdolowerdir=a", "-o", "ro", "m"]);
        assert!(args.foreground && args.debug);
        assert_eq!(args.options, ["lowerdir=a", "ro"]);
    }

    #[test]
    fn a_double_dash_ends_the_options() {
        assert_eq!(mount(&["fuse-overlayfs", "-o", "lowerdir=a", "--", "-m"]).operands, ["-m"]);
    }

    #[test]
    fn the_mount_helper_takes_f_for_fake_and_ignores_the_type() {
        let args =
            mount(&["/sbin/mount.fuse.plyfs", "none", "/m", "-f", "-o", "lowerdir=a", "-t", "fuse.plyfs"]);
        assert!(args.fake && !args.foreground);
        assert_eq!(args.operands, ["none", "/m"]);
        assert_eq!(mount(&["mount.fuse3.plyfs", "none", "/m", "-r"]).options, ["ro"]);
    }

    #[test]
    fn subcommands_and_their_options_are_plyfs_own() {
        for line in
            [&["plyfs", "mount", "-o", "lowerdir=a", "m"] as &[&str], &["plyfs"], &["plyfs", "--version"]]
        {
            assert!(matches!(sorted(line), Invocation::Own(_)), "{line:?}");
        }
        assert!(matches!(sorted(&["plyfs", "--root", "r", "mount", "c"]), Invocation::Own(_)));
        assert!(matches!(sorted(&["plyfs", "moutn"]), Invocation::Own(_)));
    }

    #[test]
    fn fuse_overlayfs_is_asked_for_its_version() {
        for flag in ["--version", "-V"] {
            assert!(matches!(sorted(&["fuse-overlayfs", flag]), Invocation::FuseOverlayfsVersion));
        }
    }

    #[test]
    fn a_wrong_foreign_line_says_what_is_wrong() {
        let message =
            |line: &[&str]| sort(line.iter().map(OsString::from).collect()).unwrap_err().to_string();
        assert!(message(&["fuse-overlayfs", "-o", "lowerdir=a"]).contains("no mount point"));
        assert!(message(&["fuse-overlayfs", "-x", "m"]).contains("-x: unknown option"));
        assert!(message(&["fuse-overlayfs", "a", "b", "c"]).contains("c: one argument too many"));
        assert!(message(&["fuse-overlayfs", "m", "-o"]).contains("-o: a value must follow"));
    }
}
