//! The differential test's part of continuous integration: a few configurations with fixed seeds.
//!
//! `PLYFS_SEED` starts elsewhere; `cargo xtask differential` is the long run, over all configurations.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use plyfs_testkit::differential::{Config, Plan, survives};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::need::{Need, met};
use plyfs_testkit::sandbox::Space;

fn run(test: &str, config: &str, operations: u64) {
    let needs = [Need::Root, Need::Fuse, Need::Filesystem("overlay"), Need::Tool("unshare")];
    // Inside of a user namespace the needs were met outside.
    if Space::current().is_none() && !met(&needs) {
        return;
    }
    let config = Config::parse(config, Driver::Plyfs(env!("CARGO_BIN_EXE_plyfs").into())).unwrap();
    let seed = std::env::var("PLYFS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let plan = Plan { seed, operations, ..Plan::default() };
    let again = [test, "--exact", "--nocapture"].map(Into::into);
    assert!(survives(&config, &plan, &again).unwrap(), "plyfs differs from the kernel overlay");
}

#[test]
fn plyfs_does_not_differ_from_the_kernel_overlay() {
    run("plyfs_does_not_differ_from_the_kernel_overlay", "3:tmpfs:root:1", 10_000);
}

#[test]
fn plyfs_does_not_differ_with_the_optional_features() {
    run("plyfs_does_not_differ_with_the_optional_features", "2:tmpfs:root:1:each,nfs_export=off", 8_000);
}

#[test]
fn plyfs_does_not_differ_on_one_lower_layer_of_ext4() {
    run("plyfs_does_not_differ_on_one_lower_layer_of_ext4", "1:ext4:root:1", 5_000);
}

#[test]
fn plyfs_does_not_differ_on_forty_layers_of_xfs() {
    run("plyfs_does_not_differ_on_forty_layers_of_xfs", "40:xfs:root:1", 5_000);
}

#[test]
fn plyfs_does_not_differ_with_several_threads() {
    run("plyfs_does_not_differ_with_several_threads", "3:tmpfs:root:4", 5_000);
}

#[test]
fn plyfs_does_not_differ_in_a_user_namespace() {
    run("plyfs_does_not_differ_in_a_user_namespace", "3:tmpfs:user:1", 5_000);
}

#[test]
fn plyfs_does_not_differ_with_several_threads_in_a_user_namespace() {
    run("plyfs_does_not_differ_with_several_threads_in_a_user_namespace", "1:ext4:user:4", 5_000);
}
