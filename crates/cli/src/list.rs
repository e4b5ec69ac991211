//! `plyfs list`: the plyfs mounts of the mount table, with what their daemons noted about them.

use std::io::Write;
use std::path::Path;

use plyfs_sys::Errno;
use plyfs_sys::mountinfo::{self, MountInfo};
use serde_json::{Value, json};

use crate::failure::{Context, Outcome};
use crate::paint::Paint;
use crate::registry::{self, Note};

/// The type that plyfs has in the mount table.
pub const FSTYPE: &str = "fuse.plyfs";

/// A plyfs mount, with its daemon's note where there is one.
#[derive(Debug)]
pub struct Mounted {
    /// The entry in the mount table.
    pub mount: MountInfo,
    /// What its daemon noted.
    pub note: Option<Note>,
}

impl Mounted {
    /// Only a mount without a living daemon's note is asked: a living daemon may be slow to answer.
    fn is_dead(&self) -> bool {
        self.note.is_none() && is_dead(&self.mount.target)
    }
}

/// All plyfs mounts in this mount namespace, in the mount table's order.
pub fn mounted() -> Outcome<Vec<Mounted>> {
    let mounts = mountinfo::read().context(|| "/proc/self/mountinfo")?;
    let notes = registry::notes();
    let ours = mounts.into_iter().filter(|mount| mount.fstype == FSTYPE);
    Ok(ours.map(|mount| Mounted { note: note_of(&mount, &notes), mount }).collect())
}

/// A mount, with its daemon's note.
pub fn with_note(mount: MountInfo) -> Mounted {
    Mounted { note: note_of(&mount, &registry::notes()), mount }
}

/// The mount that a path leads to. The last in the table need not be it: one that was mounted elsewhere first may have been
/// moved there since.
pub fn top(table: Vec<MountInfo>, path: &Path) -> Option<MountInfo> {
    let mut there: Vec<_> = table.into_iter().filter(|mount| mount.target == path).collect();
    let seen = plyfs_sys::mount::device_at(path);
    let seen =
        seen.ok().and_then(|device| there.iter().rposition(|mount| (mount.major, mount.minor) == device));
    match seen {
        Some(place) => Some(there.swap_remove(place)),
        // A dead daemon's cannot be looked at everywhere.
        None => there.pop(),
    }
}

/// Whether what is mounted at `target` has lost the process that served it.
pub fn is_dead(target: &Path) -> bool {
    rustix::fs::statfs(target).is_err_and(|errno| errno == Errno::NOTCONN)
}

/// `plyfs list`.
pub fn list(as_json: bool, out: &mut dyn Write) -> Outcome<()> {
    let mounted = mounted()?;
    if as_json {
        let all: Vec<Value> = mounted.iter().map(to_json).collect();
        writeln!(out, "{}", Value::from(all))?;
        return Ok(());
    }
    if mounted.is_empty() {
        eprintln!("plyfs: nothing is mounted");
    }
    let paint = Paint::for_stream(&std::io::stdout());
    for one in &mounted {
        print(one, paint, out)?;
    }
    Ok(())
}

fn note_of(mount: &MountInfo, notes: &[Note]) -> Option<Note> {
    let device = device(mount);
    notes.iter().find(|note| note.device == device).cloned()
}

/// The mount's device as [`Note::device`] spells it.
pub fn device(mount: &MountInfo) -> String {
    format!("{}:{}", mount.major, mount.minor)
}

fn print(one: &Mounted, paint: Paint, out: &mut dyn Write) -> Outcome<()> {
    let mode = if one.mount.has_option("ro") { "read-only" } else { "writable" };
    let target = escaped(&one.mount.target.to_string_lossy());
    writeln!(out, "{}", paint.bold(&target))?;
    if one.is_dead() {
        writeln!(out, "  dead; plyfs umount {target}")?;
        return Ok(());
    }
    let Some(note) = &one.note else {
        writeln!(out, "  {mode}; its daemon belongs to another user or namespace")?;
        return Ok(());
    };
    writeln!(out, "  {mode}, daemon {}", note.pid)?;
    if let Some(upper) = &note.upper {
        writeln!(out, "  upper  {}", escaped(upper))?;
    }
    for (number, lower) in note.lowers.iter().enumerate() {
        let lower = escaped(lower);
        writeln!(out, "  {}  {lower}", if number == 0 { "lower" } else { "     " })?;
    }
    Ok(())
}

/// A path as /proc/mounts has it (proc_pid_mounts(5)): it stays one word on one line.
fn escaped(path: &str) -> String {
    let mut word = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter.is_control() || matches!(letter, ' ' | '\\') {
            let mut bytes = [0; 4];
            for byte in letter.encode_utf8(&mut bytes).bytes() {
                word.push_str(&format!("\\{byte:03o}"));
            }
        } else {
            word.push(letter);
        }
    }
    word
}

fn to_json(one: &Mounted) -> Value {
    let mut value = json!({
        "target": one.mount.target.to_string_lossy(),
        "source": one.mount.source.to_string_lossy(),
        "device": device(&one.mount),
        "read_only": one.mount.has_option("ro"),
        "dead": one.is_dead(),
    });
    if let (Some(object), Some(note)) = (value.as_object_mut(), &one.note) {
        object.insert("pid".to_owned(), json!(note.pid));
        object.insert("lowers".to_owned(), json!(note.lowers));
        object.insert("upper".to_owned(), json!(note.upper));
        object.insert("work".to_owned(), json!(note.work));
        object.insert("options".to_owned(), json!(note.options));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_as_in_the_mount_table() {
        assert_eq!(escaped("/srv/höhle:a,b"), "/srv/höhle:a,b");
        assert_eq!(escaped("/a b\tc\nd\\e\x1b"), "/a\\040b\\011c\\012d\\134e\\033");
    }
}
