//! To whom an object belongs that the mounter's user namespace has no id for.
//!
//! The kernel reports such owners as the overflow ids, and its overlayfs answers EOVERFLOW to a copy-up. A view that a
//! user makes of the machine's files in a user namespace would be of no use that way: there [`Settings`] give those
//! objects to an id that exists, in what is shown and in what is copied up.
//!
//! [`Settings`]: crate::Settings

/// What the kernel reports where its `overflowuid` and `overflowgid` settings cannot be read (their default).
const OVERFLOW_ID: u32 = 65_534;

/// The owners as the union sees them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owners {
    replaced: Option<Replaced>,
}

#[derive(Clone, Copy, Debug)]
struct Replaced {
    unmapped: (u32, u32),
    by: (u32, u32),
}

impl Owners {
    /// Shows unmapped owners as `by`; with `None` as they are reported.
    pub fn new(by: Option<(u32, u32)>) -> Self {
        let unmapped = || (overflow_id("uid"), overflow_id("gid"));
        Self { replaced: by.map(|by| Replaced { unmapped: unmapped(), by }) }
    }

    /// Owner and group as the union sees them, of what is reported. Where they differ a copy must not act in that owner's
    /// name.
    pub fn replace(&self, uid: u32, gid: u32) -> (u32, u32) {
        let Some(replaced) = self.replaced else {
            return (uid, gid);
        };
        let uid = if uid == replaced.unmapped.0 { replaced.by.0 } else { uid };
        let gid = if gid == replaced.unmapped.1 { replaced.by.1 } else { gid };
        (uid, gid)
    }
}

fn overflow_id(which: &str) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{which}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unmapped_owners_are_replaced_and_only_where_that_is_wanted() {
        let unmapped = overflow_id("uid");
        assert_eq!(Owners::default().replace(unmapped, 7), (unmapped, 7));
        let owners = Owners::new(Some((0, 0)));
        assert_eq!(owners.replace(unmapped, 7), (0, 7));
        assert_eq!(owners.replace(5, 7), (5, 7));
    }
}
