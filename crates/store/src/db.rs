//! The metadata database: what exists, by name, digest and ChainID.
//!
//! Owns the tables and the records in them, and the transaction that makes several changes one. Touches
//! no other file. SQLite in WAL mode with `synchronous=FULL`: several processes read while one writes, a
//! killed process leaves nothing to repair, and a commit is on the medium when it returns
//! (docs/store.md says why not redb).

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Context, Error, Result};

/// How long a writer waits for another process's transaction. They are short; data is moved outside.
const BUSY: Duration = Duration::from_secs(60);
const VERSION: u32 = 1;

/// An image layer, unpacked under its ChainID.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Layer {
    /// The ChainID; its hexadecimal digits name the directory.
    pub chain: Digest,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The ChainID of the layer below.
    pub parent: Option<Digest>,
    /// The short name in `l/`.
    pub link: String,
    /// The blob it was unpacked from.
    pub blob: Digest,
    /// Bytes of file data.
    pub size: u64,
    /// Files, directories and everything else.
    pub entries: u64,
}

/// An image's manifest.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Image {
    /// Digest of the manifest's blob.
    pub manifest: Digest,
    /// Digest of the configuration's blob: what docker calls the image's id.
    pub config: Digest,
    /// The layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// Size of the manifest's blob in bytes.
    pub manifest_size: u64,
    /// Media type of the manifest.
    pub media_type: String,
    /// When it was made, RFC 3339; from the configuration.
    pub created: Option<String>,
    /// The registry reference it was pulled from, to fetch damaged blobs again.
    #[serde(default)]
    pub origin: Option<Origin>,
}

/// Where an image was pulled from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Origin {
    /// The reference, with its registry.
    pub reference: String,
    /// Whether the registry's certificate is checked (and TLS used).
    pub tls_verify: bool,
}

/// One layer of an image.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ImageLayer {
    /// The blob: the tar, as compressed.
    pub blob: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The ChainID up to here.
    pub chain: Digest,
}

/// A container: a writable layer on an image.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Container {
    /// 64 random hexadecimal digits; names the writable layer's directory too.
    pub id: String,
    /// The name, unique.
    pub name: String,
    /// The manifest of the image.
    pub image: Digest,
    /// The name by which the image was asked for.
    pub image_name: String,
    /// The topmost image layer; none for an image without layers.
    pub top: Option<Digest>,
    /// The short name in `l/` of the writable layer.
    pub link: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// How many callers hold it mounted.
    #[serde(default)]
    pub mounts: u32,
    /// The backend of the present mount.
    #[serde(default)]
    pub backend: Option<String>,
    /// Bytes that the writable layer may hold; none for no limit.
    #[serde(default)]
    pub size_limit: Option<u64>,
    /// The project of the file system that the limit is set for.
    #[serde(default)]
    pub project: Option<u32>,
}

/// A kind of record: its table, and its key.
pub trait Record: Serialize + DeserializeOwned {
    /// The table's name.
    const TABLE: &'static str;
    /// The primary key.
    fn key(&self) -> String;
}

impl Record for Layer {
    const TABLE: &'static str = "layers";
    fn key(&self) -> String {
        self.chain.hex()
    }
}

impl Record for Image {
    const TABLE: &'static str = "images";
    fn key(&self) -> String {
        self.manifest.hex()
    }
}

impl Record for Container {
    const TABLE: &'static str = "containers";
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// A name of an image.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Name {
    /// The name with its tag, as typed: `base:1`, `localhost:5000/x:1`.
    pub name: String,
    /// The manifest it stands for.
    pub manifest: Digest,
}

impl Record for Name {
    const TABLE: &'static str = "names";
    fn key(&self) -> String {
        self.name.clone()
    }
}

/// A blob that is complete and verified.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl Record for Blob {
    const TABLE: &'static str = "blobs";
    fn key(&self) -> String {
        self.digest.hex()
    }
}

/// The open database.
pub struct Db {
    conn: Connection,
}

impl Db {
    /// Opens the database at `path`, or makes an empty one.
    pub fn open(path: &Path) -> Result<Db> {
        if !path.exists() {
            make_private(path)?;
        }
        let conn = Connection::open(path)?;
        conn.busy_timeout(BUSY)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        let version: u32 = conn.pragma_query_value(None, "user_version", |r| r.get(0))?;
        if version > VERSION {
            return Err(Error::Unsupported(format!(
                "{} has format {version}, made by a newer plyfs; this one knows up to {VERSION}",
                path.display()
            )));
        }
        let mut db = Db { conn };
        if version < VERSION {
            db.write(|tx| tx.create_tables())?;
        }
        Ok(db)
    }

    /// Runs `f` on one consistent state.
    pub fn read<T>(&mut self, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let tx = Tx(self.conn.transaction()?);
        f(&tx)
    }

    /// Runs `f` alone among all writers of all processes; what it changed is kept only if it returns `Ok`.
    pub fn write<T>(&mut self, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let tx = Tx(self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?);
        let r = f(&tx)?;
        tx.0.commit()?;
        Ok(r)
    }

    /// Asks SQLite to check the file.
    pub fn integrity(&mut self) -> Result<Vec<String>> {
        let mut st = self.conn.prepare("PRAGMA quick_check")?;
        let rows: Vec<String> = st.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(rows.into_iter().filter(|r| r != "ok").collect())
    }
}

fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).at("create", path)?;
    Ok(())
}

/// A transaction.
pub struct Tx<'a>(Transaction<'a>);

impl Tx<'_> {
    fn create_tables(&self) -> Result<()> {
        for t in [Layer::TABLE, Image::TABLE, Container::TABLE, Name::TABLE, Blob::TABLE] {
            self.0.execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS {t} (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
            ))?;
        }
        Ok(self.0.pragma_update(None, "user_version", VERSION)?)
    }

    /// The record under `key`.
    pub fn get<R: Record>(&self, key: &str) -> Result<Option<R>> {
        let text: Option<String> = self
            .0
            .prepare(&format!("SELECT value FROM {} WHERE key = ?1", R::TABLE))?
            .query_row([key], |r| r.get(0))
            .optional()?;
        text.map(|t| decode::<R>(&t)).transpose()
    }

    /// Whether there is a record under `key`.
    pub fn has<R: Record>(&self, key: &str) -> Result<bool> {
        Ok(self.0.prepare(&format!("SELECT 1 FROM {} WHERE key = ?1", R::TABLE))?.exists([key])?)
    }

    /// All records of a kind, ordered by key.
    pub fn all<R: Record>(&self) -> Result<Vec<R>> {
        let mut st = self.0.prepare(&format!("SELECT value FROM {} ORDER BY key", R::TABLE))?;
        let texts: Vec<String> = st.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
        texts.iter().map(|t| decode::<R>(t)).collect()
    }

    /// Adds or replaces a record.
    pub fn put<R: Record>(&self, record: &R) -> Result<()> {
        let text = serde_json::to_string(record).map_err(|e| Error::invalid(R::TABLE, e.to_string()))?;
        self.0
            .prepare(&format!("INSERT OR REPLACE INTO {} VALUES (?1, ?2)", R::TABLE))?
            .execute(params![record.key(), text])?;
        Ok(())
    }

    /// Removes a record; says whether there was one.
    pub fn remove<R: Record>(&self, key: &str) -> Result<bool> {
        Ok(self.0.prepare(&format!("DELETE FROM {} WHERE key = ?1", R::TABLE))?.execute([key])? > 0)
    }
}

fn decode<R: Record>(text: &str) -> Result<R> {
    serde_json::from_str(text).map_err(|e| Error::Damaged(format!("a record in {}: {e}", R::TABLE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: &str) -> Name {
        Name { name: n.into(), manifest: Digest::of(n.as_bytes()) }
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let t = tempfile::tempdir().unwrap();
        let mut db = Db::open(&t.path().join("d")).unwrap();
        db.write(|tx| tx.put(&name("a"))).unwrap();
        let r: Result<()> = db.write(|tx| {
            tx.put(&name("b"))?;
            tx.remove::<Name>("a")?;
            Err(Error::Damaged("stop".into()))
        });
        assert!(r.is_err());
        assert_eq!(db.read(|tx| tx.all::<Name>()).unwrap(), [name("a")]);
    }

    #[test]
    fn two_handles_see_each_others_commits() {
        let t = tempfile::tempdir().unwrap();
        let mut a = Db::open(&t.path().join("d")).unwrap();
        let mut b = Db::open(&t.path().join("d")).unwrap();
        a.write(|tx| tx.put(&name("x"))).unwrap();
        assert_eq!(b.read(|tx| tx.get::<Name>("x")).unwrap(), Some(name("x")));
        assert!(b.write(|tx| tx.remove::<Name>("x")).unwrap());
        assert!(!a.read(|tx| tx.has::<Name>("x")).unwrap());
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let t = tempfile::tempdir().unwrap();
        let p = t.path().join("d");
        Db::open(&p).unwrap().conn.pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(Db::open(&p).err().unwrap().kind(), "unsupported");
    }
}
