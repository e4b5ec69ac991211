//! Whether an object of the upper differs from the one under it, and in what.

use plyfs_core::Time;
use plyfs_format::{Name, Namespace, xattr};
use plyfs_sys::{FileKind, OFlags, Stat, Timestamp};

use crate::changes::Aspect;
use crate::changes::lower::{Found, Lower};
use crate::changes::upper::UpperDir;
use crate::failure::{Context, Outcome};

/// How much is read at once.
const CHUNK: usize = 256 * 1024;

/// Two objects of the same type, one of the upper, one of the lower.
pub struct Pair<'a> {
    /// The upper's directory that holds it.
    pub upper: &'a UpperDir,
    /// Its name there.
    pub name: Name<'a>,
    /// Its attributes.
    pub stat: &'a Stat,
    /// The union of the lowers.
    pub lower: &'a Lower,
    /// The object there.
    pub found: &'a Found,
}

impl Pair<'_> {
    /// In what they differ. A directory's times are not compared: they change with its entries.
    pub fn aspects(&self, ignore_owner: bool) -> Outcome<Vec<Aspect>> {
        let (stat, attr) = (self.stat, &self.found.attr);
        let content = self.content_differs()?;
        let times = stat.kind() != FileKind::Directory && !content && !same_time(stat.mtime, attr.mtime);
        let owner = !ignore_owner && (stat.uid, stat.gid) != (attr.uid, attr.gid);
        let mode = stat.kind() != FileKind::Symlink && stat.permissions() != attr.mode & 0o7777;
        let all = [
            (content, Aspect::Content),
            (mode, Aspect::Mode),
            (owner, Aspect::Owner),
            (times, Aspect::Times),
            (self.xattrs_differ()?, Aspect::Xattrs),
        ];
        Ok(all.into_iter().filter(|(differs, _)| *differs).map(|(_, aspect)| aspect).collect())
    }

    fn content_differs(&self) -> Outcome<bool> {
        let (stat, attr) = (self.stat, &self.found.attr);
        match stat.kind() {
            FileKind::Directory | FileKind::Fifo | FileKind::Socket => Ok(false),
            FileKind::Char | FileKind::Block => Ok((stat.rdev_major, stat.rdev_minor) != attr.rdev),
            FileKind::Symlink => {
                let target = self.upper.dir.readlink(self.name).context(|| self.describe())?;
                Ok(target != self.lower.link_target(self.found)?)
            }
            FileKind::Regular if self.upper.is_metacopy(self.name, stat)? => Ok(false),
            FileKind::Regular if stat.size != attr.size => Ok(true),
            FileKind::Regular => self.data_differs(),
        }
    }

    fn data_differs(&self) -> Outcome<bool> {
        let describe = || self.describe();
        let upper = self.upper.dir.open_file(self.name, OFlags::RDONLY).context(describe)?;
        let lower = self.lower.open_file(self.found)?;
        let (mut one, mut other) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut offset = 0;
        loop {
            let count = upper.pread(&mut one, offset).context(describe)?;
            let others = lower.read(offset, &mut other).context(describe)?;
            if one.get(..count) != other.get(..others) {
                return Ok(true);
            }
            if count == 0 {
                return Ok(false);
            }
            offset += count as u64;
        }
    }

    fn xattrs_differ(&self) -> Outcome<bool> {
        let upper = shown_xattrs(self.upper, self.name).context(|| self.describe())?;
        Ok(upper != self.lower.xattrs(self.found)?)
    }

    fn describe(&self) -> String {
        format!("upper: /{}", self.upper.path.join(self.name))
    }
}

/// The attributes that the union shows for an entry of the upper, sorted by name. A record of owner and mode that another
/// overlay let a program set is among them, as it lies.
pub fn shown_xattrs(upper: &UpperDir, name: Name<'_>) -> plyfs_sys::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let list = upper.dir.list_xattrs(name)?;
    let mut all = Vec::new();
    for attr in list.split_inclusive(|byte| *byte == 0) {
        let Ok(attr) = std::ffi::CStr::from_bytes_with_nul(attr) else { continue };
        let bare = || xattr::is_record(attr.to_bytes()).then(|| attr.to_bytes().to_vec());
        let Some(shown) = shown_as(upper.namespace, attr.to_bytes()).or_else(bare) else { continue };
        if all.iter().any(|(known, _)| *known == shown) {
            continue;
        }
        if let Some(value) = upper.dir.get_xattr(name, attr)? {
            all.push((shown, value));
        }
    }
    all.sort();
    Ok(all)
}

/// The name under which the union shows an attribute; `None` if it hides it.
pub fn shown_as(namespace: Namespace, attr: &[u8]) -> Option<Vec<u8>> {
    xattr::unescape(namespace, attr).map(std::borrow::Cow::into_owned)
}

fn same_time(one: Timestamp, other: Time) -> bool {
    (one.sec, one.nsec) == (other.sec, other.nsec)
}
