//! The store's one error type: what was being done, to which path, and why it failed.
//!
//! Owns the list of kinds that a caller may tell apart ([`Error::kind`]). Never prints.

use std::io;
use std::path::{Path, PathBuf};

/// The store's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a path of the store, of an archive or of a container failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb ("open", "rename").
        op: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Nothing of that name is in the store.
    #[error("no {what} \"{name}\"")]
    NotFound {
        /// "image", "container", "layer" or "blob".
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// The name is taken.
    #[error("{what} \"{name}\" exists already")]
    Exists {
        /// "image" or "container".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// It cannot be done while something else uses it.
    #[error("{what} \"{name}\" is in use: {by}")]
    InUse {
        /// "image", "container" or "layer".
        what: &'static str,
        /// The name.
        name: String,
        /// Who uses it.
        by: String,
    },
    /// An archive, manifest or configuration is malformed, ambiguous, hostile or over a limit.
    #[error("{what}: {why}")]
    Invalid {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Bytes do not have the digest that their description promises.
    #[error("{what}: digest is {found}, expected {expected}")]
    Digest {
        /// What was read.
        what: String,
        /// The digest promised.
        expected: String,
        /// The digest of the bytes.
        found: String,
    },
    /// What the store keeps on disk contradicts itself; `check --repair` may help.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The metadata database failed.
    #[error("metadata database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The registry could not be reached, refused, or misbehaved.
    #[error("registry {registry}: {why}")]
    Registry {
        /// Host and port.
        registry: String,
        /// What went wrong.
        why: String,
    },
    /// A program that the store runs (an OCI runtime, a FUSE daemon) failed.
    #[error("{program}: {why}")]
    Program {
        /// The program.
        program: String,
        /// Its message or exit status.
        why: String,
    },
    /// A container does not have the program that it is to run.
    #[error("cannot run \"{command}\": {why}")]
    Command {
        /// The program's name, as given.
        command: String,
        /// Whether there is none, or one that may not be executed.
        missing: bool,
        /// Where it was looked for, or what it is.
        why: String,
    },
    /// This system, or this user, cannot do it.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// One lower-case word for scripts and JSON: which kind of failure this is.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Io { source, .. } if source.raw_os_error() == Some(28) => "no-space",
            Error::Io { .. } => "io",
            Error::NotFound { .. } => "not-found",
            Error::Exists { .. } => "exists",
            Error::InUse { .. } => "in-use",
            Error::Invalid { .. } => "invalid",
            Error::Digest { .. } => "digest",
            Error::Damaged(_) => "damaged",
            Error::Database(_) => "database",
            Error::Registry { .. } => "registry",
            Error::Program { .. } => "program",
            Error::Command { .. } => "command",
            Error::Unsupported(_) => "unsupported",
        }
    }

    /// What a program that fails with this exits with: a container's missing command has the shell's codes, as in docker.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Command { missing: true, .. } => 127,
            Error::Command { missing: false, .. } => 126,
            _ => 1,
        }
    }

    /// An [`Error::Invalid`] about `what`.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), why: why.into() }
    }
}

/// Adds the operation and the path to a failure.
pub trait Context<T> {
    /// Says what was being done to which path.
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { op, path: path.as_ref().to_owned(), source })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io { op, path: path.as_ref().to_owned(), source: e.into() })
    }
}

impl<T> Context<T> for serde_json::Result<T> {
    fn at(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Invalid {
            what: format!("{op} {}", path.as_ref().display()),
            why: e.to_string(),
        })
    }
}
