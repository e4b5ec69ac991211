//! Eight threads change a mount while another walks it and files are copied up. `cargo xtask stress` is the long run, which
//! measures, too, that nobody waits; here are sizes that fit into the 64 MiB that a container has in memory.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use common::{PLYFS, as_root};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::need::{Need, met};
use plyfs_testkit::stress::{Plan, run};

#[test]
fn nothing_is_lost_while_files_are_copied_up() {
    if !met(&[Need::Tool("mkfs.ext4"), Need::Filesystem("ext4")]) {
        return;
    }
    as_root("nothing_is_lost_while_files_are_copied_up", |_| {
        let backing = Backing::new(Kind::Ext4).unwrap();
        let plan = Plan { operations: 8000, threads: 8, copies: 2, size: 8 << 20, seed: 1 };
        let report = run(&Driver::Plyfs(PLYFS.into()), backing.path(), &plan).unwrap();
        assert!(report.walks > 0);
    });
}
