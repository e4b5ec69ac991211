//! What is compared with what: drivers, number of layers, file system, user namespace, threads.

use crate::backing;
use crate::mount::Driver;
use anyhow::{Context, Result, bail};
use std::fmt::{Display, Formatter};

/// One configuration of the differential test.
#[derive(Debug, Clone)]
pub struct Config {
    /// The reference.
    pub left: Driver,
    /// What is tested.
    pub right: Driver,
    /// How many lower layers.
    pub lowers: usize,
    /// What everything lies on.
    pub backing: backing::Kind,
    /// In a user namespace with `userxattr`, or as root with `trusted` attributes.
    pub user_space: bool,
    /// How many threads work at once, each in a directory of its own.
    pub threads: usize,
}

impl Config {
    /// Reads `LOWERS:BACKING:root|user:THREADS`, such as `3:xfs:root:1`; the kernel is compared with `right`.
    pub fn parse(text: &str, right: Driver) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [lowers, backing, who, threads] = parts.as_slice() else {
            bail!("{text:?} is not LOWERS:BACKING:root|user:THREADS");
        };
        let user_space = match *who {
            "root" => false,
            "user" => true,
            other => bail!("{other:?} is neither root nor user"),
        };
        Ok(Self {
            left: Driver::Kernel,
            right,
            lowers: lowers.parse().with_context(|| format!("layers {lowers:?}"))?,
            backing: backing.parse()?,
            user_space,
            threads: threads.parse().with_context(|| format!("threads {threads:?}"))?,
        })
    }

    /// Every configuration of the long run, in the form of [`Config::parse`].
    pub fn all() -> Vec<String> {
        let mut all = Vec::new();
        for lowers in [1, 3, 40] {
            for backing in ["tmpfs", "ext4", "xfs"] {
                for who in ["root", "user"] {
                    for threads in [1, 4] {
                        all.push(format!("{lowers}:{backing}:{who}:{threads}"));
                    }
                }
            }
        }
        all
    }
}

impl Display for Config {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let who = if self.user_space { "user" } else { "root" };
        write!(out, "{}:{}:{who}:{}", self.lowers, self.backing.name(), self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_printed_as_it_is_read() {
        for text in Config::all() {
            assert_eq!(Config::parse(&text, Driver::Kernel).unwrap().to_string(), text);
        }
        assert!(Config::parse("3:xfs:nobody:1", Driver::Kernel).is_err());
    }
}
