//! POSIX ACLs in the form of the `system.posix_acl_*` attributes (Linux `posix_acl_xattr.h`): version 2 as
//! `u32`, then for each entry tag and permissions as `u16` and an id as `u32`, all little-endian.

/// The attribute that holds the access ACL.
pub const ACCESS: &str = "system.posix_acl_access";
/// The attribute that holds a directory's default ACL.
pub const DEFAULT: &str = "system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// One entry of an ACL, with its permissions as `rwx` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The owner.
    UserObj(u16),
    /// A named user.
    User(u32, u16),
    /// The owning group.
    GroupObj(u16),
    /// A named group.
    Group(u32, u16),
    /// The mask over named entries and the owning group.
    Mask(u16),
    /// Everybody else.
    Other(u16),
}

/// The attribute's value for `entries`, which must come in the order of [`Entry`]'s variants to be valid.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let (tag, perm, id) = match *entry {
            Entry::UserObj(perm) => (0x01u16, perm, NO_ID),
            Entry::User(id, perm) => (0x02, perm, id),
            Entry::GroupObj(perm) => (0x04, perm, NO_ID),
            Entry::Group(id, perm) => (0x08, perm, id),
            Entry::Mask(perm) => (0x10, perm, NO_ID),
            Entry::Other(perm) => (0x20, perm, NO_ID),
        };
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_accepts_an_encoded_acl() {
        let dir = tempfile::tempdir().unwrap();
        let acl = encode(&[
            Entry::UserObj(7),
            Entry::User(12345, 5),
            Entry::GroupObj(5),
            Entry::Mask(5),
            Entry::Other(0),
        ]);
        match rustix::fs::setxattr(dir.path(), ACCESS, &acl, rustix::fs::XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP) => eprintln!("skipped: no ACLs in the temporary directory"),
            result => result.unwrap(),
        }
    }
}
