//! Reading what is in memory, without bringing anything there.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::fs::File as Plain;

use common::{name, scratch};
use plyfs_sys::OFlags;
use rustix::fs::Advice;

#[test]
fn what_is_in_memory_is_read_and_what_is_not_stays_out_of_it() {
    let (root, dir) = scratch();
    let file = dir.create_file(name("f"), OFlags::RDWR, 0o600).expect("create");
    file.pwrite(b"what was written", 0).expect("write");
    file.sync(false).expect("fsync");
    let mut buf = [0; 16];
    assert_eq!(file.pread_cached(&mut buf, 0), Ok(16));
    assert_eq!(&buf, b"what was written");

    let plain = Plain::open(root.path().join("f")).expect("open");
    rustix::fs::fadvise(&plain, 0, None, Advice::DontNeed).expect("fadvise");
    if file.pread_cached(&mut buf, 0) == Ok(16) {
        eprintln!("skipped: this file system keeps its files in memory");
        return;
    }
    // What a read without waiting had begun to fetch would have come by now.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(file.pread_cached(&mut buf, 0), Ok(0));
}
