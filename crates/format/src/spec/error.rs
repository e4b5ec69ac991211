//! What can be wrong with a mount option: each error says what, where and what to do, in one line.

use std::path::PathBuf;

use crate::idmap::IdMapError;

/// Why an option string cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// An option that neither the kernel's overlayfs nor fuse-overlayfs nor mount(8) has.
    #[error("unknown mount option '{name}'{}", hint(*.nearest))]
    Unknown {
        /// As it was written, without its value.
        name: String,
        /// A known option that is spelt nearly the same.
        nearest: Option<&'static str>,
    },
    /// A value that the option does not take.
    #[error("mount option {name}={value}: the value must be {accepted}")]
    Value {
        /// The option.
        name: &'static str,
        /// As it was written.
        value: String,
        /// What it takes.
        accepted: &'static str,
    },
    /// An option that needs a value and has none.
    #[error("mount option {name} needs a value: write {name}= and {accepted}")]
    MissingValue {
        /// The option.
        name: &'static str,
        /// What it takes.
        accepted: &'static str,
    },
    /// An option that takes no value and has one.
    #[error("mount option {name} takes no value: write {name} instead of {name}={value}")]
    UnexpectedValue {
        /// The option.
        name: &'static str,
        /// As it was written.
        value: String,
    },
    /// A malformed `uidmapping=` or `gidmapping=`.
    #[error("mount option {name}={value}: {reason}")]
    IdMap {
        /// The option.
        name: &'static str,
        /// As it was written.
        value: String,
        /// What is wrong with it.
        #[source]
        reason: IdMapError,
    },
    /// A malformed list of layers.
    #[error("mount option lowerdir={value}: {reason}")]
    Layers {
        /// As it was written.
        value: String,
        /// What is wrong with it.
        #[source]
        reason: LayerListError,
    },
    /// An empty path.
    #[error("mount option {name} has an empty path: name a directory")]
    EmptyPath {
        /// The option.
        name: &'static str,
    },
    /// `lowerdir+=` or `datadir+=` after `lowerdir=`.
    #[error("mount option {name} cannot follow lowerdir: give all layers one by one, or all in lowerdir")]
    AddAfterWhole {
        /// The option.
        name: &'static str,
    },
    /// A merging layer below a data-only layer.
    #[error("layer {} would lie below a data-only layer: give every lowerdir+ before the first datadir+", .path.display())]
    LowerAfterData {
        /// The layer.
        path: PathBuf,
    },
    /// No layer at all.
    #[error("no lower layer is given: add lowerdir=DIR")]
    NoLower,
    /// Data-only layers, and nothing that they could hold the data of.
    #[error("only data-only layers are given: add a lowerdir above them")]
    OnlyData,
    /// An upper layer without its work directory.
    #[error("upperdir={} is given without workdir: add workdir=DIR on the same file system", .upper.display())]
    NoWork {
        /// The upper layer.
        upper: PathBuf,
    },
}

/// What is wrong with the list of layers of `lowerdir=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayerListError {
    /// A colon before the first layer.
    #[error("it starts with a colon; write \\: for a colon in a path")]
    LeadingColon,
    /// A colon after the last layer.
    #[error("it ends in a colon; write \\: for a colon in a path")]
    TrailingColon,
    /// Three colons or more in a row.
    #[error("it has three or more colons in a row; a data-only layer is separated by two")]
    TooManyColons,
    /// A backslash that stands alone, as a layer's whole path.
    #[error("it has a layer with an empty path; write \\\\ for a backslash in a path")]
    EmptyLayer,
    /// A merging layer after a data-only layer.
    #[error(
        "a layer after one colon follows a data-only layer; below the first :: every layer is separated by ::"
    )]
    LowerAfterData,
}

fn hint(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean '{name}'?"),
        None => "; see the manual for the options that plyfs takes".to_owned(),
    }
}
