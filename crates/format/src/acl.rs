//! POSIX access control lists as their extended attributes hold them.
//!
//! Owns the byte format (version 2, little-endian) and the rules that tie a list to a mode. Needed because a file made
//! through a temporary name does not inherit from the directory that it ends up in. The kernel's counterparts are
//! `posix_acl.c`; the rules are those of POSIX 1003.1e draft 17, section 23.1.

use smallvec::SmallVec;

const VERSION: u32 = 2;
const UNDEFINED_ID: u32 = u32::MAX;
const RWX: u16 = 7;

/// Whom an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AclTag {
    /// The file's owner.
    UserObj,
    /// The user of this id.
    User(u32),
    /// The file's group.
    GroupObj,
    /// The group of this id.
    Group(u32),
    /// The most that [`Self::User`], [`Self::GroupObj`] and [`Self::Group`] can have.
    Mask,
    /// Everybody else.
    Other,
}

/// One entry: whom, and which of read (4), write (2), execute (1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AclEntry {
    /// Whom the entry is about.
    pub tag: AclTag,
    /// Bits of 4, 2 and 1.
    pub perm: u16,
}

/// An access control list. It may be empty (which means: none) and need not be valid until [`Acl::validate`] says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Acl {
    entries: SmallVec<[AclEntry; 8]>,
}

/// Why bytes are no access control list, or a list is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// Not a header and whole entries. The kernel answers EINVAL.
    #[error("the access control list has {0} bytes; expected 4 and 8 for each entry")]
    Size(usize),
    /// Another version than 2. The kernel answers EOPNOTSUPP.
    #[error("the access control list has version {0}; expected 2")]
    Version(u32),
    /// An entry of unknown kind. The kernel answers EINVAL.
    #[error("the access control list has an entry of unknown kind {0:#x}")]
    Tag(u16),
    /// Permission bits other than 7. The kernel answers EINVAL.
    #[error("the access control list has unknown permission bits {0:#o}")]
    Perm(u16),
    /// Entries missing, doubled or out of order. The kernel answers EINVAL.
    #[error(
        "the access control list needs owner, group and other once each and in order, and a mask beside named entries"
    )]
    Structure,
}

impl Acl {
    /// Reads an attribute's value; checks the encoding, not the structure.
    pub fn parse(value: &[u8]) -> Result<Self, AclError> {
        let (version, body) = value.split_first_chunk::<4>().ok_or(AclError::Size(value.len()))?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(AclError::Version(version));
        }
        let (chunks, rest) = body.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(AclError::Size(value.len()));
        }
        let entries = chunks.iter().map(AclEntry::parse).collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// The value to write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (tag, id) = entry.tag.parts();
            value.extend(tag.to_le_bytes());
            value.extend(entry.perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// A list of these entries, in this order.
    pub fn from_entries(entries: impl IntoIterator<Item = AclEntry>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// The list that says the same as a mode's nine permission bits.
    #[must_use]
    pub fn from_mode(mode: u32) -> Self {
        let entry = |tag, shift: u32| AclEntry { tag, perm: triad(mode, shift) };
        Self::from_entries([entry(AclTag::UserObj, 6), entry(AclTag::GroupObj, 3), entry(AclTag::Other, 0)])
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// Whether there are no entries: setting such a list removes the attribute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Checks that the entries are complete, in order and without doubles (`posix_acl_valid`).
    pub fn validate(&self) -> Result<(), AclError> {
        let rank = |tag: AclTag| tag.parts().0;
        let count = |wanted: AclTag| self.entries.iter().filter(|entry| entry.tag == wanted).count();
        if let Some(entry) = self.entries.iter().find(|entry| entry.perm & !RWX != 0) {
            return Err(AclError::Perm(entry.perm));
        }
        let ordered = self.entries.is_sorted_by_key(|entry| rank(entry.tag));
        let required =
            [AclTag::UserObj, AclTag::GroupObj, AclTag::Other].into_iter().all(|tag| count(tag) == 1);
        let mask_fits = match count(AclTag::Mask) {
            0 => !self.entries.iter().any(|entry| entry.tag.is_named()),
            masks => masks == 1,
        };
        let ids_valid =
            !self.entries.iter().any(|entry| entry.tag.is_named() && entry.tag.parts().1 == UNDEFINED_ID);
        if ordered && required && mask_fits && ids_valid { Ok(()) } else { Err(AclError::Structure) }
    }

    /// The nine permission bits that a file with this access list shows: the mask, if any, stands for the group.
    #[must_use]
    pub fn to_mode(&self) -> u32 {
        let perm = |wanted: AclTag| self.perm_of(wanted).unwrap_or(0);
        let group = self.perm_of(AclTag::Mask).unwrap_or_else(|| perm(AclTag::GroupObj));
        u32::from(perm(AclTag::UserObj)) << 6 | u32::from(group) << 3 | u32::from(perm(AclTag::Other))
    }

    /// The mode, if the list says nothing that a mode cannot say; such a list is stored as the mode alone.
    #[must_use]
    pub fn equiv_mode(&self) -> Option<u32> {
        let extended = self.entries.iter().any(|entry| entry.tag.is_named() || entry.tag == AclTag::Mask);
        (!extended).then(|| self.to_mode())
    }

    /// The access list after a chmod to `mode`: the group's bits go to the mask, if there is one.
    #[must_use]
    pub fn chmod(&self, mode: u32) -> Self {
        let group = self.group_class();
        Self::from_entries(self.entries.iter().map(|entry| match entry.tag {
            AclTag::UserObj => AclEntry { perm: triad(mode, 6), ..*entry },
            AclTag::Other => AclEntry { perm: triad(mode, 0), ..*entry },
            tag if tag == group => AclEntry { perm: triad(mode, 3), ..*entry },
            _ => *entry,
        }))
    }

    /// What a new file gets from its directory's default list (`posix_acl_create`): its access list, if it needs one
    /// beside the mode, and its mode. The umask does not apply where there is a default list. A new directory also gets
    /// the default list itself.
    #[must_use]
    pub fn inherit(&self, create_mode: u32) -> (Option<Self>, u32) {
        let group = self.group_class();
        let access = Self::from_entries(self.entries.iter().map(|entry| {
            let kept = match entry.tag {
                AclTag::UserObj => triad(create_mode, 6),
                AclTag::Other => triad(create_mode, 0),
                tag if tag == group => triad(create_mode, 3),
                _ => RWX,
            };
            AclEntry { perm: entry.perm & kept, ..*entry }
        }));
        let mode = (create_mode & !0o777) | access.to_mode();
        let needed = access.equiv_mode().is_none();
        (needed.then_some(access), mode)
    }

    fn perm_of(&self, wanted: AclTag) -> Option<u16> {
        self.entries.iter().find(|entry| entry.tag == wanted).map(|entry| entry.perm)
    }

    /// The entry that the group bits of a mode stand for.
    fn group_class(&self) -> AclTag {
        if self.perm_of(AclTag::Mask).is_some() { AclTag::Mask } else { AclTag::GroupObj }
    }
}

/// Three permission bits of a mode.
fn triad(mode: u32, shift: u32) -> u16 {
    u16::try_from(mode >> shift & 7).unwrap_or(0)
}

impl AclEntry {
    fn parse(bytes: &[u8; 8]) -> Result<Self, AclError> {
        let [tag0, tag1, perm0, perm1, id @ ..] = *bytes;
        let id = u32::from_le_bytes(id);
        let tag = match u16::from_le_bytes([tag0, tag1]) {
            0x01 => AclTag::UserObj,
            0x02 => AclTag::User(id),
            0x04 => AclTag::GroupObj,
            0x08 => AclTag::Group(id),
            0x10 => AclTag::Mask,
            0x20 => AclTag::Other,
            other => return Err(AclError::Tag(other)),
        };
        Ok(Self { tag, perm: u16::from_le_bytes([perm0, perm1]) })
    }
}

impl AclTag {
    /// Whether the entry names a user or group by id.
    #[must_use]
    pub fn is_named(self) -> bool {
        matches!(self, Self::User(_) | Self::Group(_))
    }

    fn parts(self) -> (u16, u32) {
        match self {
            Self::UserObj => (0x01, UNDEFINED_ID),
            Self::User(id) => (0x02, id),
            Self::GroupObj => (0x04, UNDEFINED_ID),
            Self::Group(id) => (0x08, id),
            Self::Mask => (0x10, UNDEFINED_ID),
            Self::Other => (0x20, UNDEFINED_ID),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(AclTag, u16)]) -> Acl {
        Acl::from_entries(entries.iter().map(|(tag, perm)| AclEntry { tag: *tag, perm: *perm }))
    }

    fn extended() -> Acl {
        acl(&[
            (AclTag::UserObj, 7),
            (AclTag::User(1000), 6),
            (AclTag::GroupObj, 5),
            (AclTag::Mask, 7),
            (AclTag::Other, 5),
        ])
    }

    #[test]
    fn a_list_survives_being_written_and_read() {
        let value = extended().encode();
        assert_eq!(value.get(..12), Some(&[2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255][..]));
        assert_eq!(Acl::parse(&value), Ok(extended()));
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(Acl::default()));
    }

    #[test]
    fn malformed_values_are_refused_with_their_reason() {
        assert_eq!(Acl::parse(&[2, 0, 0]), Err(AclError::Size(3)));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(AclError::Version(1)));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 1]), Err(AclError::Size(5)));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]), Err(AclError::Tag(3)));
    }

    #[test]
    fn validity_follows_posix() {
        assert_eq!(extended().validate(), Ok(()));
        assert_eq!(Acl::from_mode(0o750).validate(), Ok(()));
        let invalid = [
            acl(&[]),
            acl(&[(AclTag::UserObj, 7), (AclTag::Other, 5)]),
            acl(&[(AclTag::GroupObj, 7), (AclTag::UserObj, 5), (AclTag::Other, 5)]),
            acl(&[(AclTag::UserObj, 7), (AclTag::User(1), 6), (AclTag::GroupObj, 5), (AclTag::Other, 5)]),
            acl(&[(AclTag::UserObj, 7), (AclTag::UserObj, 7), (AclTag::GroupObj, 5), (AclTag::Other, 5)]),
            acl(&[
                (AclTag::UserObj, 7),
                (AclTag::GroupObj, 5),
                (AclTag::Mask, 7),
                (AclTag::Mask, 7),
                (AclTag::Other, 5),
            ]),
            acl(&[
                (AclTag::UserObj, 7),
                (AclTag::User(u32::MAX), 6),
                (AclTag::GroupObj, 5),
                (AclTag::Mask, 7),
                (AclTag::Other, 5),
            ]),
        ];
        for list in invalid {
            assert_eq!(list.validate(), Err(AclError::Structure), "{list:?}");
        }
        let perm = acl(&[(AclTag::UserObj, 8), (AclTag::GroupObj, 5), (AclTag::Other, 5)]);
        assert_eq!(perm.validate(), Err(AclError::Perm(8)));
    }

    #[test]
    fn the_mask_stands_for_the_group_in_the_mode() {
        assert_eq!(extended().to_mode(), 0o775);
        assert_eq!(extended().equiv_mode(), None);
        assert_eq!(Acl::from_mode(0o640).equiv_mode(), Some(0o640));
    }

    #[test]
    fn chmod_changes_the_mask_and_leaves_group_and_named_entries() {
        let changed = extended().chmod(0o100_640);
        assert_eq!(changed.to_mode(), 0o640);
        assert_eq!(changed.perm_of(AclTag::GroupObj), Some(5));
        assert_eq!(changed.perm_of(AclTag::User(1000)), Some(6));
        assert_eq!(Acl::from_mode(0o777).chmod(0o421).to_mode(), 0o421);
    }

    #[test]
    fn a_new_file_inherits_the_default_list_cut_by_its_create_mode() {
        let (access, mode) = extended().inherit(0o100_640);
        let access = access.unwrap();
        assert_eq!(mode, 0o100_640);
        assert_eq!(access.perm_of(AclTag::UserObj), Some(6));
        assert_eq!(access.perm_of(AclTag::User(1000)), Some(6));
        assert_eq!(access.perm_of(AclTag::GroupObj), Some(5));
        assert_eq!(access.perm_of(AclTag::Mask), Some(4));
        assert_eq!(access.perm_of(AclTag::Other), Some(0));
        assert_eq!(Acl::from_mode(0o750).inherit(0o4666), (None, 0o4640));
    }
}
