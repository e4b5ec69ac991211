//! The rules of snapshots: which change is allowed, and what it does to the records.
//!
//! Owns create, commit, remove, update and the chain of parents, each on an open transaction. Touches no directory.
//! containerd's counterpart is its `snapshots/storage` package, whose answers these are.

use std::time::SystemTime;

use crate::db::{Lookup, Writer};
use crate::error::{Error, Result};
use crate::info::{Info, Kind, Labels, Record, Usage, check_key, clean_labels};

/// How long a chain of parents may be; a longer one is a loop in a damaged database.
const MAX_CHAIN: usize = 10_000;

/// What mounting needs to know: a snapshot's record, and the ids of all its parents, nearest first.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The snapshot itself.
    pub record: Record,
    /// Its parents' ids, nearest first.
    pub parents: Vec<u64>,
}

/// Adds an active snapshot or a view.
pub fn create(
    tx: &mut Writer<'_>,
    kind: Kind,
    key: &str,
    parent: Option<&str>,
    labels: Labels,
) -> Result<Chain> {
    check_key(key)?;
    let labels = clean_labels(labels)?;
    let parent_record = parent.map(|name| committed_parent(tx, name)).transpose()?;
    if tx.get(key)?.is_some() {
        return Err(Error::AlreadyExists(key.into()));
    }
    let id = tx.next_id()?;
    let now = SystemTime::now();
    let record = Record {
        id,
        kind,
        parent: parent.map(str::to_owned),
        created: now,
        updated: now,
        labels,
        usage: Usage::default(),
    };
    tx.put(key, &record)?;
    if let Some(parent_record) = parent_record {
        tx.link(parent_record.id, id)?;
    }
    let parents = parents(tx, &record)?;
    Ok(Chain { record, parents })
}

/// What [`commit`] makes of an active snapshot.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The committed snapshot's name.
    pub name: &'a str,
    /// The active snapshot's key.
    pub key: &'a str,
    /// The active snapshot's id: what was measured must be what is committed.
    pub id: u64,
    /// A parent for a snapshot that has none.
    pub parent: Option<&'a str>,
    /// The labels of the committed one; those of the active one go.
    pub labels: Labels,
    /// What it takes on disk.
    pub usage: Usage,
}

/// Turns an active snapshot into a committed one under a new name.
pub fn commit(tx: &mut Writer<'_>, commit: Commit<'_>) -> Result<()> {
    let Commit { name, key, id, parent, labels, usage } = commit;
    check_key(name)?;
    let labels = clean_labels(labels)?;
    if tx.get(name)?.is_some() {
        return Err(Error::AlreadyExists(name.into()));
    }
    let active = require_active(tx, key)?;
    if active.id != id {
        return Err(Error::FailedPrecondition(format!(
            "snapshot {key:?} was replaced while it was committed"
        )));
    }
    let parent = match (&active.parent, parent) {
        (None, Some(new)) => {
            let base = committed_parent(tx, new)?;
            tx.link(base.id, id)?;
            Some(new.to_owned())
        }
        (Some(old), Some(new)) if old != new => {
            return Err(Error::InvalidArgument(format!(
                "snapshot {key:?} stands on {old:?} and cannot be put on {new:?}"
            )));
        }
        (old, _) => old.clone(),
    };
    let now = SystemTime::now();
    let record = Record { id, kind: Kind::Committed, parent, created: now, updated: now, labels, usage };
    tx.remove(key)?;
    tx.put(name, &record)
}

/// Removes a snapshot that nothing stands on; its record tells which directory is garbage now.
pub fn remove(tx: &mut Writer<'_>, key: &str) -> Result<Record> {
    let record = tx.require(key)?;
    if tx.has_children(record.id)? {
        return Err(Error::FailedPrecondition(format!(
            "cannot remove snapshot {key:?}: other snapshots stand on it"
        )));
    }
    if let Some(parent) = &record.parent {
        let parent = tx.require(parent)?;
        tx.unlink(parent.id, record.id)?;
    }
    tx.remove(key)?;
    Ok(record)
}

/// Changes labels: all of them if `paths` is empty, or those that `labels` and `labels.NAME` name. Nothing else can be
/// changed.
pub fn update(tx: &mut Writer<'_>, name: &str, labels: &Labels, paths: &[String]) -> Result<Info> {
    let mut record = tx.require(name)?;
    if paths.is_empty() {
        record.labels = labels.clone();
    }
    for path in paths {
        if path == "labels" {
            record.labels = labels.clone();
        } else if let Some(label) = path.strip_prefix("labels.") {
            let value = labels.get(label).cloned().unwrap_or_default();
            record.labels.insert(label.to_owned(), value);
        } else {
            return Err(Error::InvalidArgument(format!(
                "cannot update field {path:?} of snapshot {name:?}: only labels can be changed"
            )));
        }
    }
    record.labels = clean_labels(record.labels)?;
    record.updated = SystemTime::now();
    tx.put(name, &record)?;
    Ok(Info { name: name.to_owned(), record })
}

/// The chain of an active snapshot or a view; a committed one cannot be mounted.
pub fn chain(tx: &impl Lookup, key: &str) -> Result<Chain> {
    let record = tx.require(key)?;
    if record.kind == Kind::Committed {
        return Err(Error::FailedPrecondition(format!(
            "snapshot {key:?} is committed: prepare or view it to mount it"
        )));
    }
    let parents = parents(tx, &record)?;
    Ok(Chain { record, parents })
}

/// The record of an active snapshot; `FailedPrecondition` for another kind.
pub fn require_active(tx: &impl Lookup, key: &str) -> Result<Record> {
    let record = tx.require(key)?;
    if record.kind != Kind::Active {
        return Err(Error::FailedPrecondition(format!("snapshot {key:?} is not active")));
    }
    Ok(record)
}

fn committed_parent(tx: &impl Lookup, name: &str) -> Result<Record> {
    let missing = || Error::NotFound { what: "parent snapshot", name: name.into() };
    let record = tx.get(name)?.ok_or_else(missing)?;
    if record.kind != Kind::Committed {
        return Err(Error::InvalidArgument(format!("parent {name:?} is not a committed snapshot")));
    }
    Ok(record)
}

fn parents(tx: &impl Lookup, record: &Record) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    let mut next = record.parent.clone();
    while let Some(name) = next {
        let parent =
            tx.get(&name)?.ok_or_else(|| Error::Damaged(format!("parent {name:?} has no record")))?;
        if ids.len() >= MAX_CHAIN {
            return Err(Error::Damaged(format!("the parents of snapshot {} form a loop", record.id)));
        }
        ids.push(parent.id);
        next = parent.parent;
    }
    Ok(ids)
}
