//! What programs expect of a file system, case by case, on the kernel's overlay and on plyfs.
//!
//! The cases are one list. Each gets a fresh mount of its own. A case that the kernel's overlay does not pass
//! says so, with the reason; all others must pass on both. `PLYFS_CASE=words` runs those whose name has the words.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, reason = "a failed test panics")]

mod attributes;
mod data;
mod layers;
mod listing;
mod names;
mod open_files;

use anyhow::{Result, bail};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::identity::{Identity, User};
use plyfs_testkit::layer::{Namespace, TreeSpec};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::need::{Need, met};
use plyfs_testkit::sandbox::{self, Space};
use std::path::Path;

/// One expectation.
pub struct Case {
    /// A sentence.
    pub name: &'static str,
    /// Why the kernel's overlay does not meet it, if so.
    pub kernel_fails: Option<&'static str>,
    /// Whether it needs what a user namespace does not give: devices, `trusted` attributes, redirects.
    pub needs_root: bool,
    /// The layers, topmost first.
    pub layers: fn(Namespace) -> Vec<TreeSpec>,
    /// Fails if the expectation is not met.
    pub run: fn(&mut Union) -> Result<()>,
}

impl Case {
    /// A case that must pass everywhere.
    pub const fn new(
        name: &'static str,
        layers: fn(Namespace) -> Vec<TreeSpec>,
        run: fn(&mut Union) -> Result<()>,
    ) -> Self {
        Self { name, kernel_fails: None, needs_root: false, layers, run }
    }

    /// The same, but the kernel's overlay is known to fail.
    pub const fn kernel_fails(mut self, why: &'static str) -> Self {
        self.kernel_fails = Some(why);
        self
    }

    /// The same, but only as root.
    pub const fn needs_root(mut self) -> Self {
        self.needs_root = true;
        self
    }
}

fn cases() -> Vec<&'static Case> {
    let lists =
        [attributes::CASES, data::CASES, layers::CASES, listing::CASES, names::CASES, open_files::CASES];
    let words = std::env::var("PLYFS_CASE").unwrap_or_default();
    lists.concat_refs().into_iter().filter(|case| case.name.contains(&words)).collect()
}

trait ConcatRefs {
    fn concat_refs(self) -> Vec<&'static Case>;
}

impl<const N: usize> ConcatRefs for [&'static [Case]; N] {
    fn concat_refs(self) -> Vec<&'static Case> {
        self.into_iter().flatten().collect()
    }
}

/// Runs `act` in a thread that is `user`.
pub fn as_user<T: Send>(user: User, act: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let mut identity = Identity::of_this_thread()?;
            identity.become_user(user)?;
            let result = act();
            identity.become_user(User::Root)?;
            Ok(result)
        });
        thread.join().unwrap()
    })
}

/// Runs `act` in a thread with that umask.
pub fn with_umask<T: Send>(mask: u32, act: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            Identity::of_this_thread()?.set_umask(mask);
            Ok(act())
        });
        thread.join().unwrap()
    })
}

fn plyfs() -> Driver {
    Driver::Plyfs(env!("CARGO_BIN_EXE_plyfs").into())
}

fn run_all(driver: &Driver, kind: Kind, namespace: Namespace) {
    let backing = Backing::new(kind).unwrap();
    let mut failed = Vec::new();
    for case in cases() {
        if case.needs_root && namespace == Namespace::User {
            continue;
        }
        let result = run(case, driver, backing.path(), namespace);
        let expected = case.kernel_fails.filter(|_| *driver == Driver::Kernel);
        match (result, expected) {
            (Ok(()), None) | (Err(_), Some(_)) => {}
            (Ok(()), Some(why)) => {
                failed.push(format!("{}: passes, though it is said that {why}", case.name))
            }
            (Err(cause), None) => failed.push(format!("{}: {cause:#}", case.name)),
        }
    }
    if !failed.is_empty() {
        panic!("{} of {} cases fail on {driver}:\n  {}", failed.len(), cases().len(), failed.join("\n  "));
    }
}

fn run(case: &Case, driver: &Driver, place: &Path, namespace: Namespace) -> Result<()> {
    let options = match namespace {
        Namespace::Trusted => ["redirect_dir=on"],
        Namespace::User => ["userxattr"],
    };
    let mut union = Union::new(driver, place, &(case.layers)(namespace), &options)?;
    let before = union.lowers()?;
    (case.run)(&mut union)?;
    if before != union.lowers()? {
        bail!("a lower layer was changed");
    }
    union.unmount()
}

fn root_needs() -> bool {
    Space::current().is_some() || met(&[Need::Root, Need::Filesystem("overlay"), Need::Tool("unshare")])
}

#[test]
fn every_case_passes_on_the_kernel_overlay() {
    if root_needs() {
        sandbox::test("every_case_passes_on_the_kernel_overlay", Space::Mounts, || {
            run_all(&Driver::Kernel, Kind::Tmpfs, Namespace::Trusted);
        });
    }
}

#[test]
fn every_case_passes_on_plyfs() {
    if root_needs() && met(&[Need::Fuse]) {
        sandbox::test("every_case_passes_on_plyfs", Space::Mounts, || {
            run_all(&plyfs(), Kind::Tmpfs, Namespace::Trusted);
        });
    }
}

#[test]
fn every_case_passes_on_plyfs_on_ext4() {
    if root_needs() && met(&[Need::Fuse, Need::Tool("mkfs.ext4")]) {
        sandbox::test("every_case_passes_on_plyfs_on_ext4", Space::Mounts, || {
            run_all(&plyfs(), Kind::Ext4, Namespace::Trusted);
        });
    }
}

#[test]
fn every_case_passes_on_plyfs_in_a_user_namespace() {
    if root_needs() {
        sandbox::test("every_case_passes_on_plyfs_in_a_user_namespace", Space::User, || {
            run_all(&plyfs(), Kind::Tmpfs, Namespace::User);
        });
    }
}
