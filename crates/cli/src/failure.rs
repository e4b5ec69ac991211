//! Why a command failed, as the one line that a person reads, and the exit code that a script reads.

use std::fmt::{self, Display};
use std::io;

/// The result of a command.
pub type Outcome<T> = Result<T, Failure>;

/// The exit code of a command line that cannot be understood, as for most programs.
const USAGE: u8 = 2;

/// A failure: a line to print, unless everything has been said already, and an exit code.
#[derive(Debug)]
pub struct Failure {
    message: Option<String>,
    code: u8,
}

impl Failure {
    /// A failure with exit code 1. The message says what failed and what to do; it gets no full stop and no prefix.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), code: 1 }
    }

    /// A command line that is wrong: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), code: USAGE }
    }

    /// Nothing to say beside the exit code.
    pub fn silent(code: u8) -> Self {
        Self { message: None, code }
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Prints the line to standard error.
    pub fn print(&self) {
        if let Some(message) = &self.message {
            eprintln!("plyfs: {message}");
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.message.as_deref().unwrap_or("failed"))
    }
}

/// Only for writing to standard output: a reader that went away (`plyfs diff … | head`) is no failure worth a line.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(0);
        }
        Self::new(format!("cannot write the output: {error}"))
    }
}

/// Adds what was being done to an error.
pub trait Context<T> {
    /// `what` is put before the error's own text, as in `WHAT: ERROR`.
    fn context<W: Into<String>>(self, what: impl FnOnce() -> W) -> Outcome<T>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context<W: Into<String>>(self, what: impl FnOnce() -> W) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{}: {error}", what().into())))
    }
}
