//! Whether a container has the program that it is to run, asked before the runtime is: so that a missing one is told in one
//! line and by docker's exit codes (127 missing, 126 not executable), whatever the runtime says and exits with.
//!
//! Owns the search along PATH inside a root. Its answer is a courtesy: where it cannot know (a volume covers the place, an
//! unusual root, a file that some may execute, by its mode or an ACL), it says nothing and the runtime decides.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde_json::Value;

use crate::beneath::{self, Root};
use crate::error::{Error, Result};

/// A process to be started in a root.
pub struct Start<'a> {
    /// The root that it will see.
    pub root: &'a Root,
    /// What is mounted over parts of that root.
    pub covered: &'a [PathBuf],
}

impl Start<'_> {
    /// Fails if `process` (a runtime-spec's) names a program that is not there or may not be executed.
    pub fn require(&self, process: &Value) -> Result<()> {
        let text = |key: &str| process.get(key).and_then(Value::as_str).unwrap_or("/");
        let Some(program) = process.pointer("/args/0").and_then(Value::as_str) else { return Ok(()) };
        let env = process.get("env").and_then(Value::as_array).into_iter().flatten();
        let path = env.filter_map(|e| e.as_str()?.strip_prefix("PATH=")).next_back().unwrap_or_default();
        let cwd = Path::new(text("cwd"));
        let absent =
            |why: &str| Error::Command { command: program.to_owned(), missing: true, why: why.into() };
        if program.is_empty() {
            return Err(absent("an empty name"));
        }
        if program.contains('/') {
            return match self.look(&cwd.join(program)) {
                Found::Program | Found::Unknown => Ok(()),
                Found::Nothing => Err(absent("no such file in the container")),
                Found::NotExecutable(why) => {
                    Err(Error::Command { command: program.to_owned(), missing: false, why: why.into() })
                }
            };
        }
        let found = |dir: &str| self.look(&cwd.join(dir).join(program));
        match path.split(':').any(|dir| matches!(found(dir), Found::Program | Found::Unknown)) {
            true => Ok(()),
            false => Err(absent("not found in any directory of the container's PATH")),
        }
    }

    fn look(&self, path: &Path) -> Found {
        // Links may lead below what is mounted over the root, or out of it again: then only the runtime knows.
        if self.covered.iter().any(|c| path.starts_with(c)) {
            return Found::Unknown;
        }
        let relative: PathBuf = path.components().filter(|c| !matches!(c, Component::RootDir)).collect();
        let inside = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
        let fd =
            rustix::fs::openat2(self.root, &relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside);
        match fd.and_then(rustix::fs::fstat) {
            Ok(st) if beneath::kind(&st) == rustix::fs::FileType::Directory => {
                Found::NotExecutable("is a directory")
            }
            Ok(st) if beneath::kind(&st) != rustix::fs::FileType::RegularFile => {
                Found::NotExecutable("is not a regular file")
            }
            // Nobody may execute it, and no ACL lets anybody: its mask would show here.
            Ok(st) if st.st_mode & 0o111 == 0 => Found::NotExecutable("permission denied"),
            Ok(_) => Found::Program,
            Err(Errno::NOENT | Errno::NOTDIR) if self.covered.is_empty() => Found::Nothing,
            Err(Errno::NOENT | Errno::NOTDIR) => self.nothing_unless_linked(&relative),
            Err(_) => Found::Unknown,
        }
    }

    /// With volumes, a dangling link in the root may well lead into one of them.
    fn nothing_unless_linked(&self, relative: &Path) -> Found {
        let linked = |p: &Path| {
            let st = rustix::fs::statat(self.root, p, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            st.is_ok_and(|st| beneath::kind(&st) == rustix::fs::FileType::Symlink)
        };
        match relative.ancestors().any(|p| !p.as_os_str().is_empty() && linked(p)) {
            true => Found::Unknown,
            false => Found::Nothing,
        }
    }
}

enum Found {
    Program,
    Nothing,
    NotExecutable(&'static str),
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root() -> tempfile::TempDir {
        let t = tempfile::tempdir().unwrap();
        fs::create_dir_all(t.path().join("usr/bin")).unwrap();
        symlink("/usr/bin", t.path().join("bin")).unwrap();
        for (name, mode) in [("sh", 0o755), ("plain", 0o644), ("mine", 0o700), ("listed", 0o610)] {
            fs::write(t.path().join("usr/bin").join(name), "").unwrap();
            fs::set_permissions(t.path().join("usr/bin").join(name), fs::Permissions::from_mode(mode))
                .unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(t.path().join("usr/bin/socket")).unwrap());
        symlink("/vol/tool", t.path().join("usr/bin/tool")).unwrap();
        t
    }

    fn code(program: &str, covered: &[PathBuf]) -> i32 {
        let t = root();
        let root = Root::open(t.path()).unwrap();
        let p = json!({"args": [program], "env": ["PATH=/sbin:/bin"], "cwd": "/"});
        match (Start { root: &root, covered }).require(&p) {
            Ok(()) => 0,
            Err(e) => i32::from(e.exit_code()),
        }
    }

    #[test]
    fn a_missing_program_is_127_and_one_that_may_not_be_executed_126() {
        for (program, want) in [
            ("sh", 0),
            ("/bin/sh", 0),
            ("usr/bin/sh", 0),
            ("nosuch", 127),
            ("/bin/nosuch", 127),
            ("/bin/sh/x", 127),
            ("plain", 127),
            ("/bin/plain", 126),
            ("/usr", 126),
            ("/bin/socket", 126),
            // Whether this user may, an ACL can say too.
            ("/bin/mine", 0),
            ("/bin/listed", 0),
            ("listed", 0),
            ("/bin/tool", 127),
            ("", 127),
        ] {
            assert_eq!(code(program, &[]), want, "{program}");
        }
    }

    #[test]
    fn what_a_volume_may_hold_is_left_to_the_runtime() {
        let vol = [PathBuf::from("/vol")];
        assert_eq!(code("/vol/x", &vol), 0);
        assert_eq!(code("/bin/tool", &vol), 0);
        assert_eq!(code("/usr/nosuch", &vol), 127);
    }
}
