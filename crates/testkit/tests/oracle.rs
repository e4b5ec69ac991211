//! The differential test tested: the kernel's overlayfs does not differ from itself, and does differ from
//! itself with an option changed.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use plyfs_testkit::differential::{Config, Plan, survives};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::need::{Need, met};
use plyfs_testkit::sandbox::Space;
use std::time::Duration;

fn run(test: &str, config: &str, right: Driver, operations: u64) -> Option<bool> {
    let config = Config::parse(config, right).unwrap();
    // Inside of a user namespace the needs were met outside.
    if Space::current().is_none() && !met(&[Need::Root, Need::Filesystem("overlay"), Need::Tool("unshare")]) {
        return None;
    }
    let plan = Plan { operations, shrink: Duration::from_secs(5), ..Plan::default() };
    let again = [test, "--exact", "--nocapture"].map(Into::into);
    Some(survives(&config, &plan, &again).unwrap())
}

#[test]
fn the_kernel_overlay_does_not_differ_from_itself() {
    let test = "the_kernel_overlay_does_not_differ_from_itself";
    assert_ne!(run(test, "3:tmpfs:root:1", Driver::Kernel, 10_000), Some(false));
}

#[test]
fn the_kernel_overlay_does_not_differ_from_itself_with_several_threads() {
    let test = "the_kernel_overlay_does_not_differ_from_itself_with_several_threads";
    assert_ne!(run(test, "40:tmpfs:root:4", Driver::Kernel, 4_000), Some(false));
}

#[test]
fn the_kernel_overlay_does_not_differ_from_itself_in_a_user_namespace() {
    let test = "the_kernel_overlay_does_not_differ_from_itself_in_a_user_namespace";
    assert_ne!(run(test, "3:tmpfs:user:1", Driver::Kernel, 10_000), Some(false));
}

#[test]
fn a_kernel_overlay_that_cannot_rename_directories_is_found_to_differ() {
    let test = "a_kernel_overlay_that_cannot_rename_directories_is_found_to_differ";
    let other = Driver::KernelWith("redirect_dir=off".to_owned());
    // Found by the process inside, which passes for that; so to the one outside all is well.
    let inside = Space::current().is_some();
    assert_ne!(run(test, "3:tmpfs:root:1", other, 20_000), Some(inside));
}
