//! The metadata database: what exists.
//!
//! Owns the tables in `snapshots.redb` and the transactions on them. Knows no rule about snapshots (see `ledger`) and
//! touches no other file. redb keeps the old state until a commit is on the medium, so a killed process or a power cut
//! leaves the one or the other; its lock on the file lets one process only serve a root.

use std::path::{Path, PathBuf};

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use crate::error::{Error, Result};
use crate::info::{Info, Record};

/// Snapshots by key or name, each a [`Record`] as JSON.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// Who stands on whom: (parent's id, child's id).
const CHILDREN: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("children");
/// Counters: the format's version and the last id given.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

const VERSION_KEY: &str = "version";
const LAST_ID_KEY: &str = "last-id";
const VERSION: u64 = 1;

/// The database. After an I/O error, a full disk for one, redb wants its file opened again: that is done before the next
/// transaction, so that the service goes on once there is space.
#[derive(Debug)]
pub struct Db {
    path: PathBuf,
    open: RwLock<Option<Database>>,
}

impl Db {
    /// Opens the database at `path`, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self> {
        let db = Self { path: path.to_owned(), open: RwLock::new(Some(open(path)?)) };
        db.write(|tx| tx.check_version(path))?;
        Ok(db)
    }

    /// Runs `f` on one consistent state.
    pub fn read<T>(&self, f: impl FnOnce(&Reader) -> Result<T>) -> Result<T> {
        self.with(|database| {
            let tx = database.begin_read().map_err(Error::database)?;
            f(&Reader { snapshots: tx.open_table(SNAPSHOTS).map_err(Error::database)? })
        })
    }

    /// Runs `f` alone among writers; what it changed is kept, and on the medium, only if it returns `Ok`.
    pub fn write<T>(&self, f: impl FnOnce(&mut Writer<'_>) -> Result<T>) -> Result<T> {
        self.with(|database| {
            let tx = database.begin_write().map_err(Error::database)?;
            let value = Writer::open(&tx).and_then(|mut writer| f(&mut writer));
            match value {
                Ok(value) => tx.commit().map_err(Error::database).map(|()| value),
                Err(error) => {
                    if let Err(second) = tx.abort() {
                        tracing::warn!("metadata: taking back a change: {second}");
                    }
                    Err(error)
                }
            }
        })
    }

    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        let result = f(&*self.opened()?);
        if result.as_ref().is_err_and(is_io_error) {
            *self.open.write() = None;
        }
        result
    }

    fn opened(&self) -> Result<MappedRwLockReadGuard<'_, Database>> {
        loop {
            if let Ok(database) = RwLockReadGuard::try_map(self.open.read(), Option::as_ref) {
                return Ok(database);
            }
            let mut slot = self.open.write();
            if slot.is_none() {
                *slot = Some(open(&self.path)?);
                tracing::info!("metadata: opened again after an I/O error");
            }
        }
    }
}

fn open(path: &Path) -> Result<Database> {
    Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse(path.to_owned()),
        other => Error::database(other),
    })
}

fn is_io_error(error: &Error) -> bool {
    matches!(error, Error::Database(e) if matches!(**e, redb::Error::Io(_) | redb::Error::PreviousIo))
}

/// Looking up, in a read or a write transaction.
pub trait Lookup {
    /// The record under a key or name.
    fn get(&self, name: &str) -> Result<Option<Record>>;

    /// The record under a key or name, or `NotFound`.
    fn require(&self, name: &str) -> Result<Record> {
        self.get(name)?.ok_or_else(|| Error::no_snapshot(name))
    }
}

/// One consistent state.
pub struct Reader {
    snapshots: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl Reader {
    /// Visits every snapshot, ordered by name.
    pub fn each(&self, visit: impl FnMut(Info) -> Result<()>) -> Result<()> {
        each(&self.snapshots, visit)
    }
}

impl Lookup for Reader {
    fn get(&self, name: &str) -> Result<Option<Record>> {
        get(&self.snapshots, name)
    }
}

/// A change in progress.
pub struct Writer<'t> {
    snapshots: Table<'t, &'static str, &'static [u8]>,
    children: Table<'t, (u64, u64), ()>,
    counters: Table<'t, &'static str, u64>,
}

impl Lookup for Writer<'_> {
    fn get(&self, name: &str) -> Result<Option<Record>> {
        get(&self.snapshots, name)
    }
}

impl<'t> Writer<'t> {
    fn open(tx: &'t WriteTransaction) -> Result<Self> {
        Ok(Self {
            snapshots: tx.open_table(SNAPSHOTS).map_err(Error::database)?,
            children: tx.open_table(CHILDREN).map_err(Error::database)?,
            counters: tx.open_table(COUNTERS).map_err(Error::database)?,
        })
    }

    /// Visits every snapshot, ordered by name.
    pub fn each(&self, visit: impl FnMut(Info) -> Result<()>) -> Result<()> {
        each(&self.snapshots, visit)
    }

    /// A number never given before.
    pub fn next_id(&mut self) -> Result<u64> {
        let last = self.counter(LAST_ID_KEY)?.unwrap_or(0);
        let next = last.checked_add(1).ok_or_else(|| Error::Damaged("all ids are used up".into()))?;
        self.counters.insert(LAST_ID_KEY, next).map_err(Error::database)?;
        Ok(next)
    }

    /// Adds or replaces a record.
    pub fn put(&mut self, name: &str, record: &Record) -> Result<()> {
        let text =
            serde_json::to_vec(record).map_err(|e| Error::Damaged(format!("snapshot {name:?}: {e}")))?;
        self.snapshots.insert(name, text.as_slice()).map_err(Error::database)?;
        Ok(())
    }

    /// Removes a record.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.snapshots.remove(name).map_err(Error::database)?;
        Ok(())
    }

    /// Notes that `child` stands on `parent`.
    pub fn link(&mut self, parent: u64, child: u64) -> Result<()> {
        self.children.insert((parent, child), ()).map_err(Error::database)?;
        Ok(())
    }

    /// Forgets that `child` stands on `parent`.
    pub fn unlink(&mut self, parent: u64, child: u64) -> Result<()> {
        self.children.remove((parent, child)).map_err(Error::database)?;
        Ok(())
    }

    /// Whether any snapshot stands on `parent`.
    pub fn has_children(&self, parent: u64) -> Result<bool> {
        let mut range = self.children.range((parent, 0)..=(parent, u64::MAX)).map_err(Error::database)?;
        Ok(range.next().transpose().map_err(Error::database)?.is_some())
    }

    fn check_version(&mut self, path: &Path) -> Result<()> {
        match self.counter(VERSION_KEY)? {
            None => {
                self.counters.insert(VERSION_KEY, VERSION).map_err(Error::database)?;
                Ok(())
            }
            Some(VERSION) => Ok(()),
            Some(other) => Err(Error::InvalidArgument(format!(
                "{} has format {other}; this plyfs knows format {VERSION}",
                path.display()
            ))),
        }
    }

    fn counter(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.counters.get(key).map_err(Error::database)?.map(|value| value.value()))
    }
}

fn get(table: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Option<Record>> {
    let found = table.get(name).map_err(Error::database)?;
    found.map(|value| decode(name, value.value())).transpose()
}

fn each(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    mut visit: impl FnMut(Info) -> Result<()>,
) -> Result<()> {
    for entry in table.iter().map_err(Error::database)? {
        let (name, value) = entry.map_err(Error::database)?;
        let record = decode(name.value(), value.value())?;
        visit(Info { name: name.value().to_owned(), record })?;
    }
    Ok(())
}

fn decode(name: &str, text: &[u8]) -> Result<Record> {
    serde_json::from_slice(text).map_err(|e| Error::Damaged(format!("the record of snapshot {name:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_serves_a_root_and_a_foreign_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let db = Db::open(&path).unwrap();
        assert!(matches!(Db::open(&path), Err(Error::InUse(_))));
        db.write(|tx| tx.counters.insert(VERSION_KEY, 99).map(drop).map_err(Error::database)).unwrap();
        drop(db);
        assert!(matches!(Db::open(&path), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn a_failed_transaction_gives_its_id_back_and_a_kept_one_never_does() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db")).unwrap();
        assert_eq!(db.write(|tx| tx.next_id()).unwrap(), 1);
        let failed: Result<()> = db.write(|tx| {
            assert_eq!(tx.next_id()?, 2);
            Err(Error::Damaged("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(db.write(|tx| tx.next_id()).unwrap(), 2);
        assert_eq!(db.write(|tx| tx.next_id()).unwrap(), 3);
    }
}
