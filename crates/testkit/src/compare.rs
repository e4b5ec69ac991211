//! How two trees differ.

use crate::snapshot::{Shot, Snapshot};
use std::fmt::{Debug, Display, Formatter};

/// The field of a [`Difference`] about a name that is listed, but cannot be found.
pub const GHOST: &str = "listed, but not there";

/// One respect in which two trees are not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path, relative to the root.
    pub path: Vec<u8>,
    /// What differs: a field of [`Shot`], or `presence`.
    pub field: &'static str,
    /// The value on the left.
    pub left: String,
    /// The value on the right.
    pub right: String,
}

impl Display for Difference {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "\"{}\": {}: {} / {}", self.path.escape_ascii(), self.field, self.left, self.right)
    }
}

/// All differences, in the order of the paths.
pub fn compare(left: &Snapshot, right: &Snapshot) -> Vec<Difference> {
    let mut found = Vec::new();
    for (path, shot) in &left.entries {
        match right.entries.get(path) {
            Some(other) => entry(path, shot, other, &mut found),
            None => found.push(presence(path, describe(shot), "absent".to_owned())),
        }
    }
    for (path, shot) in &right.entries {
        if !left.entries.contains_key(path) {
            found.push(presence(path, "absent".to_owned(), describe(shot)));
        }
    }
    let ghosts = left.ghosts.symmetric_difference(&right.ghosts);
    found.extend(ghosts.map(|path| {
        let seen = |snapshot: &Snapshot| snapshot.ghosts.contains(path);
        field(path, GHOST, &seen(left), &seen(right))
    }));
    found
}

/// The names whose inode number is not the same in both trees (of which one was remounted, say).
pub fn moved_inodes(before: &Snapshot, after: &Snapshot) -> Vec<Difference> {
    let common =
        before.entries.iter().filter_map(|(path, shot)| Some((path, shot, after.entries.get(path)?)));
    let moved = common.filter(|(_, before, after)| before.ino != after.ino);
    moved
        .map(|(path, before, after)| Difference {
            path: path.clone(),
            field: "ino",
            left: before.ino.to_string(),
            right: after.ino.to_string(),
        })
        .collect()
}

fn entry(path: &[u8], left: &Shot, right: &Shot, found: &mut Vec<Difference>) {
    if left.mode >> 12 != right.mode >> 12 {
        found.push(field(path, "type", &describe(left), &describe(right)));
        return;
    }
    let mut check = |name, left: &dyn Debug, right: &dyn Debug, same: bool| {
        if !same {
            found.push(field(path, name, left, right));
        }
    };
    let octal = |shot: &Shot| format!("{:06o}", shot.mode);
    check("mode", &octal(left), &octal(right), left.mode == right.mode);
    check("uid", &left.uid, &right.uid, left.uid == right.uid);
    check("gid", &left.gid, &right.gid, left.gid == right.gid);
    check("nlink", &left.nlink, &right.nlink, left.nlink == right.nlink);
    check("size", &left.size, &right.size, left.size == right.size);
    check("rdev", &left.rdev, &right.rdev, left.rdev == right.rdev);
    check("atime", &left.atime, &right.atime, left.atime == right.atime);
    check("mtime", &left.mtime, &right.mtime, left.mtime == right.mtime);
    check("ctime", &left.ctime, &right.ctime, left.ctime == right.ctime);
    check("content", &left.content, &right.content, left.content == right.content);
    check("listing", &left.listing, &right.listing, left.listing == right.listing);
    let shares = |shot: &Shot| shot.same_inode_as.escape_ascii().to_string();
    check("inode shared with", &shares(left), &shares(right), left.same_inode_as == right.same_inode_as);
    let names = left.xattrs.keys().chain(right.xattrs.keys().filter(|name| !left.xattrs.contains_key(*name)));
    for name in names {
        let value = |shot: &Shot| match shot.xattrs.get(name) {
            Some(value) => format!("{} = {}", name.escape_ascii(), value.escape_ascii()),
            None => format!("{} absent", name.escape_ascii()),
        };
        check("xattr", &value(left), &value(right), left.xattrs.get(name) == right.xattrs.get(name));
    }
}

fn field(path: &[u8], field: &'static str, left: &dyn Debug, right: &dyn Debug) -> Difference {
    Difference { path: path.to_vec(), field, left: format!("{left:?}"), right: format!("{right:?}") }
}

fn presence(path: &[u8], left: String, right: String) -> Difference {
    Difference { path: path.to_vec(), field: "presence", left, right }
}

fn describe(shot: &Shot) -> String {
    if shot.is_whiteout() {
        return "whiteout".to_owned();
    }
    format!("{:06o} size {} rdev {:#x}", shot.mode, shot.size, shot.rdev)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::TreeSpec;
    use crate::snapshot::{Clock, View};

    fn shoot(spec: &TreeSpec) -> Snapshot {
        let clock = Clock::start();
        let dir = tempfile::tempdir().unwrap();
        spec.build(dir.path()).unwrap();
        Snapshot::take(dir.path(), View::Merged, clock).unwrap()
    }

    #[test]
    fn equal_trees_have_no_difference() {
        let spec = TreeSpec::new().file("a/b", "x").symlink("s", "a");
        assert_eq!(compare(&shoot(&spec), &shoot(&spec)), []);
    }

    #[test]
    fn a_difference_names_path_field_and_both_values() {
        let left = TreeSpec::new().file("f", "x").mode(0o600).file("only", "");
        let right = TreeSpec::new().file("f", "y").mode(0o640);
        let found = compare(&shoot(&left), &shoot(&right));
        let fields: Vec<&str> = found.iter().map(|difference| difference.field).collect();
        assert_eq!(fields, ["mode", "content", "presence"]);
        assert_eq!(found[0].to_string(), "\"f\": mode: \"100600\" / \"100640\"");
    }
}
