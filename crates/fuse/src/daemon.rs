//! Going into the background, in the way that callers of a mount program expect: the command returns when the mount is
//! usable or has failed, with the reason; the daemon holds none of the caller's descriptors.
//!
//! The fork comes first, before any thread and any mount: the child does everything, and tells its parent over a pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use plyfs_sys::{Errno, process};

/// Which side of the fork this is.
#[must_use]
#[derive(Debug)]
pub enum Side {
    /// The command that was called: it has nothing left to do but to end with this.
    Caller(Result<(), String>),
    /// The daemon to be.
    Daemon(Report),
}

/// The daemon's duty to tell its caller. Dropped without, it tells of a failure.
#[derive(Debug)]
pub struct Report {
    pipe: Option<File>,
}

/// What the daemon writes when the mount is usable; everything else is the text of a failure.
const USABLE: &[u8] = b"\0";

/// Forks. The caller's side waits until the daemon's has reported.
///
/// # Errors
/// Why a pipe or process cannot be made; `EDEADLK` if there are threads already.
pub fn detach() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    match process::fork()? {
        Some(_child) => {
            drop(writer);
            let mut told = Vec::new();
            File::from(std::os::fd::OwnedFd::from(reader)).read_to_end(&mut told)?;
            Ok(Side::Caller(verdict(&told)))
        }
        None => {
            drop(reader);
            let pipe = Some(File::from(std::os::fd::OwnedFd::from(writer)));
            match process::new_session() {
                Ok(()) | Err(Errno::PERM) => Ok(Side::Daemon(Report { pipe })),
                Err(errno) => Err(errno.into()),
            }
        }
    }
}

impl Side {
    /// For a command's `main`: `None` on the daemon's side, with the report; on the caller's the exit code, after the
    /// failure was printed with `name` in front.
    pub fn or_exit_code(self, name: &str) -> Result<Report, ExitCode> {
        match self {
            Self::Daemon(report) => Ok(report),
            Self::Caller(Ok(())) => Err(ExitCode::SUCCESS),
            Self::Caller(Err(message)) => {
                eprintln!("{name}: {message}");
                Err(ExitCode::FAILURE)
            }
        }
    }
}

impl Report {
    /// The mount is usable: leaves the caller's directory and standard descriptors, and lets the caller go on.
    ///
    /// # Errors
    /// Why that is not possible; the caller is told of a failure then.
    pub fn usable(mut self) -> io::Result<()> {
        let detached = std::env::set_current_dir("/")
            .and_then(|()| process::detach_standard_descriptors().map_err(io::Error::from));
        match detached {
            Ok(()) => self.tell(USABLE),
            Err(error) => {
                self.tell(error.to_string().as_bytes())?;
                Err(error)
            }
        }
    }

    /// The mount failed, for this reason.
    ///
    /// # Errors
    /// The caller is gone.
    pub fn failed(mut self, reason: &str) -> io::Result<()> {
        self.tell(reason.as_bytes())
    }

    fn tell(&mut self, text: &[u8]) -> io::Result<()> {
        self.pipe.take().map_or(Ok(()), |mut pipe| pipe.write_all(text))
    }
}

fn verdict(told: &[u8]) -> Result<(), String> {
    match told {
        USABLE => Ok(()),
        b"" => Err("the daemon ended before the mount was usable".to_owned()),
        reason => Err(String::from_utf8_lossy(reason).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_says_nothing_has_failed() {
        assert_eq!(verdict(b"\0"), Ok(()));
        assert!(verdict(b"").is_err());
        assert_eq!(verdict(b"no such layer"), Err("no such layer".to_owned()));
    }
}
