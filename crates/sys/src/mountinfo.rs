//! `/proc/self/mountinfo`: the mounts of this mount namespace (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// The mount's number, as in [`crate::Stat::mount_id`].
    pub id: u64,
    /// The number of the mount it is mounted on.
    pub parent: u64,
    /// Major number of the file system's device.
    pub major: u32,
    /// Minor number of the file system's device.
    pub minor: u32,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted, seen from the process's root.
    pub target: PathBuf,
    /// The mount's own options.
    pub options: String,
    /// The propagation fields (`shared:N`, `master:N`, `propagate_from:N`, `unbindable`), separated by spaces.
    pub propagation: String,
    /// The file system's type, with its subtype (`fuse.plyfs`).
    pub fstype: String,
    /// The file system's own name for its source.
    pub source: OsString,
    /// The file system's options, unescaped.
    pub super_options: OsString,
}

impl MountInfo {
    /// Whether a word is among the mount's or the file system's options.
    #[must_use]
    pub fn has_option(&self, word: &str) -> bool {
        let super_options = self.super_options.as_encoded_bytes().split(|&byte| byte == b',');
        self.options.split(',').any(|option| option == word)
            || super_options.into_iter().any(|option| option == word.as_bytes())
    }
}

/// Reads and parses `/proc/self/mountinfo`. Lines that are not understood are left out.
pub fn read() -> std::io::Result<Vec<MountInfo>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses the text of a mountinfo file; lines that are not understood are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let root = unescape(fields.next()?).into();
    let target = unescape(fields.next()?).into();
    let options = text(fields.next()?);
    let optional: Vec<String> = fields.by_ref().take_while(|field| *field != b"-").map(text).collect();
    Some(MountInfo {
        id,
        parent,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        root,
        target,
        options,
        propagation: optional.join(" "),
        fstype: text(unescape(fields.next()?).as_encoded_bytes()),
        source: unescape(fields.next()?),
        super_options: unescape(fields.next().unwrap_or_default()),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Turns `\ooo` back into a byte; a backslash with anything else behind it stays.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, left) = match (first, octal(tail)) {
            (b'\\', Some(byte)) => (byte, tail.get(3..).unwrap_or_default()),
            _ => (first, tail),
        };
        bytes.push(byte);
        rest = left;
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let value = digits.get(..3)?.iter().try_fold(0_u32, |value, digit| match digit {
        b'0'..=b'7' => Some(value * 8 + u32::from(digit - b'0')),
        _ => None,
    })?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_field_of_a_line_is_read() {
        let line = b"36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 shared:2 - fuse.plyfs my\\011src rw,user_id=0\n";
        let parsed = parse(line);
        let [mount] = parsed.as_slice() else { panic!("one mount, not {parsed:?}") };
        assert_eq!((mount.id, mount.parent, mount.major, mount.minor), (36, 35, 98, 0));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.target, Path::new("/a b\\c"));
        assert_eq!(mount.options, "rw,noatime");
        assert_eq!(mount.propagation, "master:1 shared:2");
        assert_eq!(mount.fstype, "fuse.plyfs");
        assert_eq!(mount.source, "my\tsrc");
        assert_eq!(mount.super_options, "rw,user_id=0");
        assert!(mount.has_option("noatime") && mount.has_option("user_id=0") && !mount.has_option("ro"));
    }

    #[test]
    fn lines_that_make_no_sense_are_left_out() {
        assert_eq!(parse(b"\n1 2\nx 1 8:1 / / rw - ext4 a rw\n1 2 8 / / rw - ext4 a rw\n"), []);
        let odd = parse(b"1 2 8:1 / /a\\04 rw - tmpfs  rw\n");
        assert_eq!(odd.first().map(|mount| mount.target.clone()), Some(PathBuf::from("/a\\04")));
    }

    #[test]
    fn the_running_system_has_a_root_whose_number_statx_reports_too() {
        let mounts = read().expect("mountinfo");
        let root = crate::Dir::open_root(Path::new("/")).expect("open /");
        let id = root.mount_id().expect("mount id");
        assert!(mounts.iter().any(|mount| mount.id == id && mount.target == Path::new("/")));
    }
}
