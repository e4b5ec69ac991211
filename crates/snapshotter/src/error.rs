//! What can go wrong, in the classes that containerd tells apart.
//!
//! Owns the error type and its gRPC codes. containerd maps the code back to its own error and prints the text; the
//! classes are those of its errdefs package.

use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

/// The result of a snapshotter operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key or name is taken.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// No such snapshot, or no such parent.
    #[error("{what} {name:?} does not exist")]
    NotFound {
        /// `snapshot` or `parent snapshot`.
        what: &'static str,
        /// Its key or name.
        name: String,
    },
    /// The snapshot's state forbids the operation.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request itself makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: `open`, `rename`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The metadata database failed.
    #[error("metadata: {0}")]
    Database(#[from] Box<redb::Error>),
    /// Another process serves this root.
    #[error("{} is in use by another snapshotter", .0.display())]
    InUse(PathBuf),
    /// What is on disk contradicts itself.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Serving the socket failed.
    #[error("serving {address}: {message}")]
    Serve {
        /// The socket or network address.
        address: String,
        /// What happened.
        message: String,
    },
}

impl Error {
    /// An absent snapshot.
    pub fn no_snapshot(name: &str) -> Self {
        Self::NotFound { what: "snapshot", name: name.to_owned() }
    }

    /// A failure of the database library.
    pub fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }

    /// The gRPC code for containerd's class of error.
    pub fn code(&self) -> Code {
        match self {
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::NotFound { .. } => Code::NotFound,
            Self::FailedPrecondition(_) => Code::FailedPrecondition,
            Self::InvalidArgument(_) => Code::InvalidArgument,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Code::ResourceExhausted,
            Self::Database(e) if matches!(&**e, redb::Error::Io(io) if io.kind() == io::ErrorKind::StorageFull) => {
                Code::ResourceExhausted
            }
            Self::InUse(_) => Code::Unavailable,
            Self::Io { .. } | Self::Database(_) | Self::Serve { .. } => Code::Internal,
            Self::Damaged(_) => Code::DataLoss,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Adds what was attempted to the error of a system call.
pub trait Context<T> {
    /// `cannot ACTION PATH: …`
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source: source.into() })
    }
}
