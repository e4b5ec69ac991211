//! What is compared with what: drivers, number of layers, file system, user namespace, threads, features.

use crate::backing;
use crate::features::Features;
use crate::mount::Driver;
use crate::sandbox::Space;
use anyhow::{Context, Result, bail};
use std::fmt::{Display, Formatter};
use std::path::Path;

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
    /// With which features.
    pub choice: Choice,
}

/// With which features both sides are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Those that a plain mount of plyfs has.
    Usual,
    /// These.
    These(Features),
    /// In each round another of all the combinations with these options that the kernel accepts.
    Each(Features),
}

impl Choice {
    fn parse(text: &str) -> Self {
        let (each, options) = match text.strip_prefix("each") {
            Some(options) => (true, options),
            None => (false, text),
        };
        let Ok(features) = options.parse();
        if each { Choice::Each(features) } else { Choice::These(features) }
    }
}

impl Config {
    /// Reads `LOWERS:BACKING:root|user:THREADS[:[each,]OPTION,…]`, such as `3:xfs:root:1` or `1:ext4:root:1:index=on`; the
    /// kernel is compared with `right`.
    pub fn parse(text: &str, right: Driver) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (lowers, backing, who, threads, choice) = match *parts.as_slice() {
            [lowers, backing, who, threads] => (lowers, backing, who, threads, Choice::Usual),
            [lowers, backing, who, threads, choice] => (lowers, backing, who, threads, Choice::parse(choice)),
            _ => bail!("{text:?} is not LOWERS:BACKING:root|user:THREADS[:[each,]OPTION,…]"),
        };
        let user_space = match who {
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
            choice,
        })
    }

    /// The features of the rounds, one after the other, and then from the start; never empty.
    ///
    /// # Errors
    /// If it cannot be found out what the kernel accepts on the file system at `place`.
    pub fn features(&self, place: &Path) -> Result<Vec<Features>> {
        let usual = if self.user_space { "userxattr" } else { "redirect_dir=on" };
        match &self.choice {
            Choice::Usual => {
                let Ok(features) = usual.parse();
                Ok(vec![features])
            }
            Choice::These(features) => Ok(vec![features.clone()]),
            Choice::Each(with) => {
                let mut all = Features::accepted_by_kernel(place)?;
                all.retain(|features| {
                    let possible = !self.user_space || features.has("userxattr");
                    possible && with.options().iter().all(|option| features.has(option))
                });
                if all.is_empty() { bail!("the kernel accepts nothing with {with}") } else { Ok(all) }
            }
        }
    }

    /// Where both are mounted.
    pub fn space(&self) -> Space {
        if self.user_space { Space::User } else { Space::Mounts }
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
        write!(out, "{}:{}:{who}:{}", self.lowers, self.backing.name(), self.threads)?;
        match &self.choice {
            Choice::Usual => Ok(()),
            Choice::These(features) => write!(out, ":{features}"),
            Choice::Each(with) if *with == Features::default() => out.write_str(":each"),
            Choice::Each(with) => write!(out, ":each,{with}"),
        }
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
        for text in
            ["3:xfs:root:1:each", "3:xfs:root:1:each,index=on,volatile", "1:tmpfs:user:4:userxattr,index=on"]
        {
            assert_eq!(Config::parse(text, Driver::Kernel).unwrap().to_string(), text);
        }
        assert!(Config::parse("3:xfs:nobody:1", Driver::Kernel).is_err());
    }
}
