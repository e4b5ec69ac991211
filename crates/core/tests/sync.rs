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

#[test]
fn of_many_that_sync_at_once_every_handle_hears_of_the_one_failure() {
    let stack = Stack::new(1);
    stack.file("u/f", "x");
    for round in 1..=40 {
        let faults = Faults::new();
        let overlay = stack.open_with("", &Settings { faults: faults.clone(), ..Settings::default() });
        let node = walk(&overlay, "f").unwrap();
        let handles: Vec<_> =
            (0..4).map(|_| overlay.open(&me(), node, O_RDWR, false).unwrap().handle).collect();
        faults.arm(1 + round % 4, Action::Fail(Errno::IO));
        let heard = std::thread::scope(|scope| {
            let threads: Vec<_> =
                handles.iter().map(|handle| scope.spawn(|| overlay.fsync(*handle, false).is_err())).collect();
            threads.into_iter().map(|thread| u32::from(thread.join().unwrap())).sum::<u32>()
        });
        // Who had ended before the failure hears of it at the next sync.
        let later = handles.iter().filter(|handle| overlay.fsync(**handle, false).is_err()).count();
        assert_eq!(heard as usize + later, handles.len(), "round {round}");
    }
}
