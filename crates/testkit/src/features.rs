//! Combinations of the overlay's optional features, as mount options, and which of them the kernel accepts here.
//!
//! Every option is given in so many words, so that no default of the kernel or of plyfs decides. `redirect_dir=on` and
//! `metacopy=on` beside `userxattr`, which plyfs takes and the kernel does not, are therefore not among what is compared.

use crate::layer::Namespace;
use crate::mount::{Driver, Stack};
use anyhow::{Context, Result, bail};
use std::fmt::{Display, Formatter};
use std::path::Path;
use std::str::FromStr;

/// The features and their values; an empty one leaves the option out.
const DIMENSIONS: &[&[&str]] = &[
    &["", "userxattr"],
    &["redirect_dir=on", "redirect_dir=off", "redirect_dir=follow", "redirect_dir=nofollow"],
    &["metacopy=off", "metacopy=on"],
    &["index=off", "index=on"],
    &["nfs_export=off", "nfs_export=on"],
    &["xino=off", "xino=auto", "xino=on"],
    &["uuid=off", "uuid=null", "uuid=auto", "uuid=on"],
    &["verity=off", "verity=on", "verity=require"],
    &["", "volatile"],
];

/// What stops the next mount after a volatile one, below the work directory.
const GUARD: &str = "work/incompat";

/// Some options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features(Vec<String>);

impl Features {
    /// The mount options.
    pub fn options(&self) -> &[String] {
        &self.0
    }

    /// Whether this option is among them.
    pub fn has(&self, option: &str) -> bool {
        self.0.iter().any(|other| other == option)
    }

    /// The prefix of the private attributes.
    pub fn namespace(&self) -> Namespace {
        if self.has("userxattr") { Namespace::User } else { Namespace::Trusted }
    }

    /// Whether an upper that was written with these can be used with the others: what says how it is to be read must be the
    /// same, what only concerns a mount need not.
    pub fn fits(&self, other: &Self) -> bool {
        let binding = |features: &Self| -> Vec<String> {
            let free = |option: &&String| option.starts_with("xino=") || *option == "volatile";
            features.0.iter().filter(|option| !free(option)).cloned().collect()
        };
        binding(self) == binding(other)
    }

    /// Every combination, whoever accepts it.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::default()];
        for values in DIMENSIONS {
            let with = |features: &Self, value: &str| {
                let mut features = features.clone();
                features.0.extend((!value.is_empty()).then(|| value.to_owned()));
                features
            };
            all = all.iter().flat_map(|one| values.iter().map(move |value| with(one, value))).collect();
        }
        all
    }

    /// Those that mean something and that the kernel mounts with an upper, in the namespaces of this process and on the file system at `place`;
    /// in an order in which neighbours have little in common, the same each time.
    ///
    /// # Errors
    /// If the kernel accepts none.
    pub fn accepted_by_kernel(place: &Path) -> Result<Vec<Self>> {
        let mut accepted: Vec<Self> = Vec::new();
        for features in Self::all() {
            // Without metacopy there is no digest to verify.
            let idle = !features.has("verity=off") && !features.has("metacopy=on");
            if !idle && features.is_mounted_by(&Driver::Kernel, place)? {
                accepted.push(features);
            }
        }
        if accepted.is_empty() {
            bail!("the kernel accepts no combination of features on {}", place.display());
        }
        fastrand::Rng::with_seed(1).shuffle(&mut accepted);
        Ok(accepted)
    }

    /// Whether `driver` mounts a plain stack below `place` with these options, and does not say that it has left one out.
    ///
    /// # Errors
    /// If there is no room to try.
    pub fn is_mounted_by(&self, driver: &Driver, place: &Path) -> Result<bool> {
        let scratch = tempfile::tempdir_in(place).context("a directory to try a mount in")?;
        let [lower, upper, work, target] =
            ["lower", "upper", "work", "merged"].map(|name| scratch.path().join(name));
        for dir in [&lower, &upper, &work, &target] {
            std::fs::create_dir(dir).with_context(|| dir.display().to_string())?;
        }
        let stack =
            Stack { lowers: vec![lower], upper: Some((upper, work)), options: self.options().to_vec() };
        match driver.mount(&stack, &target) {
            Ok(mounted) => {
                let fell_back = *driver == Driver::Kernel && self.fell_back(mounted.path())?;
                mounted.unmount().map(|()| !fell_back)
            }
            Err(_) => Ok(false),
        }
    }

    /// Whether the kernel goes without one of them: what is not as it was built to be by default is in the mount table.
    fn fell_back(&self, target: &Path) -> Result<bool> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").context("the mount table")?;
        let target = format!(" {} ", target.display());
        let line =
            table.lines().find(|line| line.contains(&target)).context("a mount that is not in the table")?;
        let shown: Vec<&str> = line.rsplit(' ').next().unwrap_or_default().split(',').collect();
        let wanted = ["index=on", "nfs_export=on", "metacopy=on", "redirect_dir=on"];
        Ok(wanted.iter().any(|option| self.has(option) && !shown.contains(option)))
    }
}

/// Takes away what stops the next mount after a volatile one, as one does who knows that no power was lost.
pub fn forgive(work: &Path) -> Result<()> {
    let guard = work.join(GUARD);
    match std::fs::remove_dir_all(&guard) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(cause).with_context(|| guard.display().to_string())
        }
        _ => Ok(()),
    }
}

impl Display for Features {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0.join(","))
    }
}

impl FromStr for Features {
    type Err = std::convert::Infallible;

    /// Reads options with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Backing, Kind};
    use crate::need::{self, Need};

    #[test]
    fn features_are_printed_as_they_are_read() {
        for features in Features::all() {
            assert_eq!(features.to_string().parse::<Features>(), Ok(features));
        }
    }

    #[test]
    fn the_kernel_accepts_some_combinations_and_refuses_those_that_conflict() {
        if !need::met(&[Need::Root, Need::Filesystem("overlay")]) {
            return;
        }
        let backing = Backing::new(Kind::Tmpfs).unwrap();
        let accepts = |text: &str| {
            let features: Features = text.parse().unwrap();
            features.is_mounted_by(&Driver::Kernel, backing.path()).unwrap()
        };
        assert!(accepts("redirect_dir=on,metacopy=on,index=on,xino=on,volatile"));
        assert!(accepts("userxattr,redirect_dir=nofollow,metacopy=off,index=on"));
        assert!(!accepts("redirect_dir=off,metacopy=on"));
        assert!(!accepts("userxattr,redirect_dir=on"));
    }
}
