//! What a program hears of data that could not be made durable.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod common;

use common::{Stack, me, walk};
use plyfs_core::{Errno, Settings};
use plyfs_sys::fault::{Action, Faults};

const O_RDWR: u32 = 0o2;

#[test]
fn every_handle_hears_once_of_a_failure_and_a_later_one_hears_nothing_of_it() {
    let stack = Stack::new(1);
    stack.file("u/f", "x");
    let faults = Faults::new();
    let overlay = stack.open_with("", &Settings { faults: faults.clone(), ..Settings::default() });
    let open = || overlay.open(&me(), walk(&overlay, "f").unwrap(), O_RDWR, false).unwrap().handle;
    let (one, other) = (open(), open());
    assert_eq!(overlay.fsync(one, false), Ok(()));
    faults.arm(1, Action::Fail(Errno::NOSPC));
    assert_eq!(overlay.fsync(one, false), Err(Errno::NOSPC));
    let later = open();
    for handle in [later, one] {
        assert_eq!(overlay.fsync(handle, false), Ok(()));
    }
    assert_eq!(overlay.fsync(other, true), Err(Errno::NOSPC));
    assert_eq!(overlay.fsync(other, true), Ok(()));
}
