//! What to mount: the layers and options of one overlay, read from and printed as mount option strings.
//!
//! Owns the whole grammar of `-o`: the kernel's overlayfs options, fuse-overlayfs's, and the generic ones that mount(8)
//! and libfuse pass along. Opens nothing: whether a directory exists is found out by whoever mounts. The kernel's
//! counterpart is `params.c`.
//!
//! - `keyword.rs`: the values that options choose from
//! - `options.rs`: every option as a typed field
//! - `table.rs`: every option's name, reader and printer; what is accepted and ignored
//! - `layers.rs`: splitting and escaping of option strings and of `lowerdir=`
//! - `conflict.rs`: which options exclude each other, and the settings that result
//! - `error.rs`: what can be wrong with an option

mod conflict;
mod error;
mod keyword;
mod layers;
mod options;
mod table;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

pub use conflict::{Conflict, Defaults, Effective, LayerTrust, Situation};
pub use error::{LayerListError, SpecError};
pub use keyword::{Atime, Keyword, RedirectDir, RedirectMode, UuidMode, Verity, XattrPermissions, Xino};
pub use options::{MountFlags, Options, SecurityContexts};
pub use table::known_names;

use layers::{join_options, join_path, split_lowerdir, split_options, unescape};

/// The layers and options of one overlay mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StackSpec {
    /// Read-only layers that merge, topmost first; at least one.
    pub lowers: Vec<PathBuf>,
    /// Layers below those, which hold data of metacopy files and never merge; topmost first.
    pub data_lowers: Vec<PathBuf>,
    /// The writable layer; without one the mount is read-only.
    pub upper: Option<UpperSpec>,
    /// Everything else.
    pub options: Options,
}

/// The writable layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpperSpec {
    /// Holds what was created and changed.
    pub upper: PathBuf,
    /// Holds what is being prepared; on the same mount as `upper`, and neither inside the other.
    pub work: PathBuf,
}

/// A parsed option string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What to mount.
    pub spec: StackSpec,
    /// Options that were accepted but mean nothing here, each with the reason; for a log line.
    pub ignored: Vec<String>,
    /// A work directory that has no use, for there is no upper.
    pub useless_work: Option<PathBuf>,
}

impl StackSpec {
    /// Reads a list of lower layers as in `lowerdir=`: `A:B`, topmost first. Without data-only layers (`::`), which have
    /// nothing to be listed, looked at or compared.
    pub fn parse_lowers(list: &OsStr) -> Result<Vec<PathBuf>, LayerListError> {
        let (lowers, data) = split_lowerdir(list.as_bytes())?;
        match (lowers.is_empty(), data.is_empty()) {
            (_, false) => Err(LayerListError::TooManyColons),
            (true, _) => Err(LayerListError::EmptyLayer),
            (false, true) => Ok(lowers),
        }
    }

    /// Reads one or more `-o` strings, later options winning over earlier ones.
    pub fn parse<S: AsRef<OsStr>>(strings: &[S]) -> Result<Parsed, SpecError> {
        Collector::collect(strings)?.finish()
    }

    /// The flags that a mount shall have from now on, where `remount` is among the options; `None` where it is not. No
    /// layers need be named: they are those of the mount.
    pub fn parse_remount<S: AsRef<OsStr>>(strings: &[S]) -> Result<Option<MountFlags>, SpecError> {
        let options = Collector::collect(strings)?.options;
        Ok(options.remount.then_some(options.mount))
    }

    /// Prints the option string that [`Self::parse`] reads as this specification.
    #[must_use]
    pub fn to_option_string(&self) -> OsString {
        let mut elements =
            vec![[b"lowerdir=", layers::join_lowerdir(&self.lowers, &self.data_lowers).as_slice()].concat()];
        if let Some(upper) = &self.upper {
            elements.push([b"upperdir=", join_path(&upper.upper).as_slice()].concat());
            elements.push([b"workdir=", join_path(&upper.work).as_slice()].concat());
        }
        elements.extend(table::print(&self.options));
        OsString::from_vec(join_options(&elements))
    }

    /// The settings that result from the options, plyfs's defaults and the caller's privilege (CAP_SYS_ADMIN in the
    /// initial user namespace), or why options exclude each other.
    pub fn effective(&self, privileged: bool) -> Result<Effective, Conflict> {
        let situation = Situation {
            has_upper: self.upper.is_some(),
            has_data_lowers: !self.data_lowers.is_empty(),
            privileged,
        };
        self.options.resolve(situation, Defaults::PLYFS)
    }
}

/// The options read so far.
#[derive(Default)]
struct Collector {
    lowers: Vec<PathBuf>,
    data_lowers: Vec<PathBuf>,
    /// `lowerdir=` was given, after which the kernel takes no `lowerdir+=`.
    whole_list: bool,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    options: Options,
    ignored: Vec<String>,
}

impl Collector {
    fn collect<S: AsRef<OsStr>>(strings: &[S]) -> Result<Self, SpecError> {
        let mut collector = Self::default();
        for string in strings {
            for element in split_options(string.as_ref().as_bytes()) {
                collector.element(element)?;
            }
        }
        Ok(collector)
    }

    fn element(&mut self, element: &[u8]) -> Result<(), SpecError> {
        let (name, value) = match element.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, value) = element.split_at(at);
                (name, value.get(1..))
            }
            None => (element, None),
        };
        match name {
            b"lowerdir" => self.lowerdir(value),
            b"lowerdir+" => self.add_lower(value),
            b"datadir+" => self.add_data(value),
            b"upperdir" => {
                self.upper = Some(directory("upperdir", value)?);
                Ok(())
            }
            b"workdir" => {
                self.work = Some(directory("workdir", value)?);
                Ok(())
            }
            _ => table::read(&mut self.options, &mut self.ignored, name, value),
        }
    }

    /// The whole list at once: replaces what was given before; an empty one only forgets that.
    fn lowerdir(&mut self, value: Option<&[u8]>) -> Result<(), SpecError> {
        let value = required("lowerdir", value)?;
        let (lowers, data) = split_lowerdir(value)
            .map_err(|reason| SpecError::Layers { value: String::from_utf8_lossy(value).into(), reason })?;
        self.lowers = lowers;
        self.data_lowers = data;
        self.whole_list = !value.is_empty();
        Ok(())
    }

    fn add_lower(&mut self, value: Option<&[u8]>) -> Result<(), SpecError> {
        let path = self.added("lowerdir+", value)?;
        if !self.data_lowers.is_empty() {
            return Err(SpecError::LowerAfterData { path });
        }
        self.lowers.push(path);
        Ok(())
    }

    fn add_data(&mut self, value: Option<&[u8]>) -> Result<(), SpecError> {
        let path = self.added("datadir+", value)?;
        self.data_lowers.push(path);
        Ok(())
    }

    /// One added layer: the kernel takes its path as it stands, without escapes.
    fn added(&self, name: &'static str, value: Option<&[u8]>) -> Result<PathBuf, SpecError> {
        let path = required(name, value)?;
        if self.whole_list {
            return Err(SpecError::AddAfterWhole { name });
        }
        if path.is_empty() {
            return Err(SpecError::EmptyPath { name });
        }
        Ok(PathBuf::from(OsStr::from_bytes(path)))
    }

    fn finish(self) -> Result<Parsed, SpecError> {
        if self.lowers.is_empty() {
            return Err(if self.data_lowers.is_empty() { SpecError::NoLower } else { SpecError::OnlyData });
        }
        let (upper, useless_work) = match (self.upper, self.work) {
            (Some(upper), Some(work)) => (Some(UpperSpec { upper, work }), None),
            (Some(upper), None) => return Err(SpecError::NoWork { upper }),
            (None, work) => (None, work),
        };
        let spec =
            StackSpec { lowers: self.lowers, data_lowers: self.data_lowers, upper, options: self.options };
        Ok(Parsed { spec, ignored: self.ignored, useless_work })
    }
}

fn required<'v>(name: &'static str, value: Option<&'v [u8]>) -> Result<&'v [u8], SpecError> {
    value.ok_or(SpecError::MissingValue { name, accepted: "a directory" })
}

/// The path of an upper or work directory, with `\` escapes as in `lowerdir=`.
fn directory(name: &'static str, value: Option<&[u8]>) -> Result<PathBuf, SpecError> {
    let path = unescape(required(name, value)?);
    if path.is_empty() {
        return Err(SpecError::EmptyPath { name });
    }
    Ok(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests;
