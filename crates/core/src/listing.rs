//! The merged listing of a directory: its visible names in the order of their cookies.
//!
//! Owns the table only; `readdir.rs` fills it. A cookie is a keyed hash of the name, so that a position in a listing
//! means the same however often the listing was dropped and made again, and whatever came or went meanwhile. The
//! kernel's counterpart is `struct ovl_dir_cache`, a snapshot for each open.

use std::collections::BTreeMap;

use plyfs_sys::FileKind;

use crate::node::SharedName;

/// Cookies below are the start (0), `.` and `..`; names come after them.
pub(crate) const FIRST_COOKIE: u64 = 16;

/// A visible name.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub name: SharedName,
    /// Inode number on the layer's own file system, as the layer's directory told it.
    pub ino: u64,
    pub kind: FileKind,
    /// 0 is the upper; above it one more than the position among the directory's lowers.
    pub source: u16,
    /// A lower layer has the name too (it will need a whiteout when it is removed); `None` where it is not known.
    pub in_lower: Option<bool>,
    /// For a directory: positions of further lowers that have a directory of that name.
    #[expect(
        clippy::box_collection,
        reason = "a pointer, not three words: one of these is held for every listed name"
    )]
    pub below: Option<Box<Vec<u16>>>,
}

/// All visible names of a directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    entries: BTreeMap<u64, Listed>,
    /// Tells it from every other listing of the mount.
    pub serial: u64,
    /// Two names met on one cookie; then a name may stand behind its cookie.
    collided: bool,
}

impl Listing {
    /// The cookie that a name wants, from its keyed hash. Positive as a signed offset.
    pub fn cookie(hash: u64) -> u64 {
        (hash >> 1).clamp(FIRST_COOKIE, i64::MAX as u64 - 1024)
    }

    /// A listing of names that are all different, made at once: several times faster than one by one.
    pub fn of(mut names: Vec<(u64, Listed)>) -> Self {
        names.sort_unstable_by_key(|(cookie, _)| *cookie);
        let meet = names.windows(2).any(|pair| matches!(pair, [one, other] if one.0 == other.0));
        let mut listing = Self::default();
        if meet {
            names.into_iter().for_each(|(cookie, listed)| listing.insert(cookie, listed));
        } else {
            listing.entries = names.into_iter().collect();
        }
        listing
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get(&self, cookie: u64, name: &[u8]) -> Option<&Listed> {
        self.key_of(cookie, name).and_then(|key| self.entries.get(&key))
    }

    pub fn get_mut(&mut self, cookie: u64, name: &[u8]) -> Option<&mut Listed> {
        self.key_of(cookie, name).and_then(|key| self.entries.get_mut(&key))
    }

    /// Adds a name or replaces what is known of it.
    pub fn insert(&mut self, cookie: u64, listed: Listed) {
        let mut key = cookie;
        while self.entries.get(&key).is_some_and(|other| other.name != listed.name) {
            self.collided = true;
            key += 1;
        }
        self.entries.insert(key, listed);
    }

    pub fn remove(&mut self, cookie: u64, name: &[u8]) -> Option<Listed> {
        self.key_of(cookie, name).and_then(|key| self.entries.remove(&key))
    }

    /// The entries after a cookie.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &Listed)> {
        let from = cookie.saturating_add(1).max(FIRST_COOKIE);
        self.entries.range(from..).map(|(key, listed)| (*key, listed))
    }

    fn key_of(&self, cookie: u64, name: &[u8]) -> Option<u64> {
        match self.entries.get(&cookie) {
            Some(listed) if *listed.name == *name => Some(cookie),
            _ if self.collided => self
                .entries
                .range(cookie..)
                .take(1024)
                .find(|(_, listed)| *listed.name == *name)
                .map(|(key, _)| *key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str) -> Listed {
        Listed {
            name: name.as_bytes().into(),
            ino: 1,
            kind: FileKind::Regular,
            source: 0,
            in_lower: Some(false),
            below: None,
        }
    }

    #[test]
    fn names_with_one_cookie_are_all_found_also_after_the_first_is_removed() {
        let mut listing = Listing::default();
        for name in ["a", "b", "c"] {
            listing.insert(100, listed(name));
        }
        assert!(listing.remove(100, b"a").is_some());
        assert!(listing.get(100, b"b").is_some());
        assert!(listing.get(100, b"c").is_some());
        assert!(listing.get(100, b"a").is_none());
        assert_eq!(listing.after(0).count(), 2);
    }

    #[test]
    fn a_listing_continues_after_a_cookie_whose_entry_is_gone() {
        let mut listing = Listing::default();
        for (cookie, name) in [(100, "a"), (200, "b"), (300, "c")] {
            listing.insert(cookie, listed(name));
        }
        listing.remove(200, b"b");
        let rest: Vec<u64> = listing.after(200).map(|(cookie, _)| cookie).collect();
        assert_eq!(rest, [300]);
    }
}
