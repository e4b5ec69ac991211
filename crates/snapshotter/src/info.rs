//! What is known of one snapshot.
//!
//! Owns the record, the three kinds and the rules for keys and labels. Does no I/O. containerd's counterparts are
//! `snapshots.Info`, `snapshots.Kind` and its labels package.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest name and value of one label together, in bytes (containerd's API).
pub const MAX_LABEL: usize = 4096;

/// Labels by name; an empty value is the same as no label.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A read-only view of a committed snapshot.
    View,
    /// A writable one, not yet committed.
    Active,
    /// Immutable; can be a parent.
    Committed,
}

impl Kind {
    /// All kinds, for counting.
    pub const ALL: [Self; 3] = [Self::View, Self::Active, Self::Committed];

    /// The word that filters and metrics use.
    pub fn word(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What a snapshot takes on disk without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Allocated bytes.
    pub size: u64,
    /// Files, directories and everything else, hard links counted once.
    pub inodes: u64,
}

/// One snapshot, without its name, which is the record's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the directory; never used twice.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// The committed snapshot below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// When it was prepared, or committed.
    pub created: SystemTime,
    /// When its labels were last changed.
    pub updated: SystemTime,
    /// What containerd wants to remember with it.
    #[serde(default)]
    pub labels: Labels,
    /// What a committed one takes on disk.
    #[serde(default)]
    pub usage: Usage,
}

/// A snapshot with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The key of an active one or a view, the name of a committed one.
    pub name: String,
    /// The rest.
    pub record: Record,
}

/// Refuses an empty key or name.
pub fn check_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::InvalidArgument("a snapshot's key must not be empty".into()));
    }
    Ok(())
}

/// Drops labels without a value and refuses too long ones.
pub fn clean_labels(labels: Labels) -> Result<Labels> {
    for (name, value) in &labels {
        let length = name.len() + value.len();
        if length > MAX_LABEL {
            let start: String = name.chars().take(64).collect();
            return Err(Error::InvalidArgument(format!(
                "label {start:?} has {length} bytes with its value; at most {MAX_LABEL} are allowed"
            )));
        }
    }
    Ok(labels.into_iter().filter(|(name, value)| !name.is_empty() && !value.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_without_a_value_are_dropped_and_long_ones_refused() {
        let labels = Labels::from([("a".into(), "1".into()), ("b".into(), String::new())]);
        assert_eq!(clean_labels(labels).unwrap(), Labels::from([("a".into(), "1".into())]));
        let fits = Labels::from([("a".repeat(96), "b".repeat(4000))]);
        assert_eq!(clean_labels(fits.clone()).unwrap(), fits);
        let long = Labels::from([("a".repeat(97), "b".repeat(4000))]);
        assert!(matches!(clean_labels(long), Err(Error::InvalidArgument(_))));
    }
}
