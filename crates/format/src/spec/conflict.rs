//! Which options exclude each other, and the settings that result.
//!
//! The rules are those of Linux 6.18, found by mounting every combination (`tests/data`): two explicit options that
//! exclude each other are refused; where one side is only a default, it gives way. plyfs allows three things more:
//! `redirect_dir=on`, `redirect_dir=off` and `metacopy=on` beside `userxattr`. The kernel's counterpart is
//! `ovl_fs_params_verify`.

use super::keyword::{Keyword, RedirectDir, RedirectMode, UuidMode, Verity, Xino};
use super::options::Options;
use crate::xattr::Namespace;

/// What the rules depend on beside the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// There is a writable layer.
    pub has_upper: bool,
    /// There are data-only layers.
    pub has_data_lowers: bool,
    /// The mounter has CAP_SYS_ADMIN in the initial user namespace and so may use `trusted.*`.
    pub privileged: bool,
}

/// What holds where an option is not given. Features that are not listed are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// `redirect_dir=`
    pub redirect_dir: RedirectMode,
    /// `xino=`
    pub xino: Xino,
}

/// The settings of a mount, with no option left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Where private attributes live.
    pub namespace: Namespace,
    /// What is done with redirects.
    pub redirect_dir: RedirectMode,
    /// In which layers redirects and metacopy are believed.
    pub trust: LayerTrust,
    /// Hard links survive copy-up.
    pub index: bool,
    /// Changes of metadata copy no data.
    pub metacopy: bool,
    /// File handles stay valid.
    pub nfs_export: bool,
    /// Layout of inode numbers.
    pub xino: Xino,
    /// The overlay's UUID.
    pub uuid: UuidMode,
    /// Checking of digests.
    pub verity: Verity,
    /// Nothing is synced.
    pub volatile: bool,
    /// Given options that had to give way, each with the reason; for a log line.
    pub notes: Vec<String>,
}

/// In which layers redirects and metacopy are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTrust {
    /// In all.
    AllLayers,
    /// In upper alone: with `userxattr` the owner of a lower file could forge them.
    UpperOnly,
}

/// Why options cannot be used together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two explicit options exclude each other (EINVAL).
    #[error("mount options {first} and {second} exclude each other: {reason}; give only one of them")]
    Excluded {
        /// One option, as it would be written.
        first: String,
        /// The other.
        second: String,
        /// The rule.
        reason: &'static str,
    },
    /// An option needs a privilege (EPERM).
    #[error(
        "{what} needs trusted.* attributes, which this user may not use: add userxattr, or mount as root"
    )]
    NotPermitted {
        /// The option as it would be written, or what else needs the privilege.
        what: String,
    },
}

impl Defaults {
    /// plyfs's own: a renamed directory leaves a redirect wherever that is safe.
    pub const PLYFS: Self = Self { redirect_dir: RedirectMode::On, xino: Xino::Auto };
    /// The kernel's, as configured unless its builder changed them.
    pub const KERNEL: Self = Self { redirect_dir: RedirectMode::Follow, xino: Xino::Off };
}

impl Conflict {
    /// Whether the kernel's answer is EPERM (else it is EINVAL).
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}

impl Options {
    /// Applies `defaults` and the rules. The order of the steps is the kernel's, and matters.
    pub fn resolve(&self, situation: Situation, defaults: Defaults) -> Result<Effective, Conflict> {
        let mut resolver = Resolver { given: self, situation, out: self.start(defaults) };
        resolver.drop_what_needs_an_upper();
        resolver.metacopy_needs_redirects()?;
        resolver.nfs_export_needs_an_index()?;
        resolver.nfs_export_excludes_metacopy()?;
        resolver.nfs_export_excludes_lower_passthrough()?;
        if self.userxattr {
            resolver.userxattr_limits_trust()?;
        } else if !situation.privileged {
            resolver.unprivileged_has_no_trusted_attributes()?;
        }
        Ok(resolver.out)
    }

    fn start(&self, defaults: Defaults) -> Effective {
        Effective {
            namespace: if self.userxattr { Namespace::User } else { Namespace::Trusted },
            redirect_dir: self.redirect_dir.map_or(defaults.redirect_dir, RedirectDir::mode),
            trust: if self.userxattr { LayerTrust::UpperOnly } else { LayerTrust::AllLayers },
            index: self.index.unwrap_or(false),
            metacopy: self.metacopy.unwrap_or(false),
            nfs_export: self.nfs_export.unwrap_or(false),
            xino: self.xino.unwrap_or(defaults.xino),
            uuid: self.uuid.unwrap_or(UuidMode::Auto),
            verity: self.verity.unwrap_or(Verity::Off),
            volatile: self.volatile,
            notes: Vec::new(),
        }
    }
}

impl RedirectDir {
    /// What the written value stands for.
    #[must_use]
    pub fn mode(self) -> RedirectMode {
        match self {
            Self::On => RedirectMode::On,
            Self::Off | Self::Follow => RedirectMode::Follow,
            Self::NoFollow => RedirectMode::NoFollow,
        }
    }
}

struct Resolver<'o> {
    given: &'o Options,
    situation: Situation,
    out: Effective,
}

impl Resolver<'_> {
    fn drop_what_needs_an_upper(&mut self) {
        if self.situation.has_upper {
            return;
        }
        if self.out.index {
            self.out.index = false;
            self.note("index=on has no use without an upper layer");
        }
        if self.out.volatile {
            self.out.volatile = false;
            self.note("volatile has no use without an upper layer");
        }
        if self.out.uuid == UuidMode::On {
            self.out.uuid = UuidMode::Null;
            self.note("uuid=on cannot be stored without an upper layer; uuid=null is used");
        }
        // Nothing is renamed, so following is all that "on" could mean.
        if self.out.redirect_dir == RedirectMode::Follow {
            self.out.redirect_dir = RedirectMode::On;
        }
    }

    fn metacopy_needs_redirects(&mut self) -> Result<(), Conflict> {
        if !self.out.metacopy || self.out.redirect_dir == RedirectMode::On {
            return Ok(());
        }
        if self.given.redirect_dir.is_some() {
            let reason = "a renamed metadata-only file finds its data through a redirect";
            return Err(self.excluded("metacopy=on".into(), self.redirect_text(), reason));
        }
        self.out.redirect_dir = RedirectMode::On;
        Ok(())
    }

    fn nfs_export_needs_an_index(&mut self) -> Result<(), Conflict> {
        if !self.out.nfs_export || self.out.index {
            return Ok(());
        }
        if !self.situation.has_upper && self.out.redirect_dir != RedirectMode::NoFollow {
            self.out.nfs_export = false;
            self.note("nfs_export=on needs redirect_dir=nofollow where there is no upper layer; nfs_export=off is used");
            return Ok(());
        }
        if self.given.index == Some(false) {
            let reason = "handles of changed files are found through the index";
            return Err(self.excluded("nfs_export=on".into(), "index=off".into(), reason));
        }
        self.out.index = self.situation.has_upper;
        Ok(())
    }

    fn nfs_export_excludes_metacopy(&mut self) -> Result<(), Conflict> {
        if self.out.nfs_export && self.out.metacopy {
            let reason = "a metadata-only file has no handle of its own";
            return Err(self.excluded("nfs_export=on".into(), "metacopy=on".into(), reason));
        }
        Ok(())
    }

    fn nfs_export_excludes_lower_passthrough(&mut self) -> Result<(), Conflict> {
        if self.out.nfs_export && self.given.lower_passthrough {
            let reason = "a file that is copied up gets another inode, of which a handle knows nothing";
            return Err(self.excluded("nfs_export=on".into(), "lower_passthrough".into(), reason));
        }
        Ok(())
    }

    /// Only what was asked for is used beside `userxattr`, and it is believed in upper alone. Following without making
    /// would only ever read what somebody else wrote, and is refused as in the kernel.
    fn userxattr_limits_trust(&mut self) -> Result<(), Conflict> {
        self.out.redirect_dir = match self.given.redirect_dir {
            Some(RedirectDir::Follow) => {
                let reason = "a redirect in user.* attributes can be forged by a file's owner";
                return Err(self.excluded("userxattr".into(), "redirect_dir=follow".into(), reason));
            }
            Some(RedirectDir::On) => RedirectMode::On,
            None if self.out.metacopy => RedirectMode::On,
            Some(RedirectDir::Off | RedirectDir::NoFollow) | None => RedirectMode::NoFollow,
        };
        Ok(())
    }

    fn unprivileged_has_no_trusted_attributes(&mut self) -> Result<(), Conflict> {
        let not_permitted = |what: String| Err(Conflict::NotPermitted { what });
        if self.given.redirect_dir.is_some() && self.out.redirect_dir != RedirectMode::NoFollow {
            return not_permitted(self.redirect_text());
        }
        if self.out.metacopy {
            return not_permitted("metacopy=on".into());
        }
        if self.out.verity != Verity::Off {
            return not_permitted(format!("verity={}", self.out.verity.as_str()));
        }
        if self.situation.has_data_lowers {
            return not_permitted("a data-only layer".into());
        }
        self.out.redirect_dir = RedirectMode::NoFollow;
        Ok(())
    }

    fn redirect_text(&self) -> String {
        format!("redirect_dir={}", self.given.redirect_dir.map_or("", Keyword::as_str))
    }

    fn excluded(&self, first: String, second: String, reason: &'static str) -> Conflict {
        Conflict::Excluded { first, second, reason }
    }

    fn note(&mut self, text: &str) {
        self.out.notes.push(text.to_owned());
    }
}
