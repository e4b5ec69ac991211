//! Locks whose order is asserted in debug builds: the one that stands at the head of `lib.rs`.
//!
//! Owns the ranks. In release builds a lock here is parking_lot's and nothing more. The kernel's counterpart is lockdep.

use std::ops::{Deref, DerefMut};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Serialises copy-up of one inode (`Node::copy_up`).
pub(crate) const COPY_UP: u8 = 0;
/// Names of a directory are being changed (`DirBody::change`).
pub(crate) const CHANGE: u8 = 1;
/// Paths of upper directories (`Overlay::tree`).
pub(crate) const TREE: u8 = 2;
/// Children and listing of a directory (`DirBody::state`).
pub(crate) const STATE: u8 = 3;
/// The names of a node (`Node::places`).
pub(crate) const PLACES: u8 = 4;

/// A mutex with a rank: it is taken only while no lock of its own or a later rank is held.
#[derive(Debug, Default)]
pub(crate) struct Ordered<const RANK: u8, T>(Mutex<T>);

/// What [`Ordered::lock`] gives.
#[derive(Debug)]
pub(crate) struct Guard<'a, const RANK: u8, T> {
    inner: MutexGuard<'a, T>,
    _held: Held<RANK>,
}

/// A lock for readers and writers with a rank.
#[derive(Debug, Default)]
pub(crate) struct OrderedRw<const RANK: u8, T>(RwLock<T>);

/// What [`OrderedRw::read`] gives.
#[derive(Debug)]
pub(crate) struct ReadGuard<'a, const RANK: u8, T> {
    _inner: RwLockReadGuard<'a, T>,
    _held: Held<RANK>,
}

/// What [`OrderedRw::write`] gives.
#[derive(Debug)]
pub(crate) struct WriteGuard<'a, const RANK: u8, T> {
    _inner: RwLockWriteGuard<'a, T>,
    _held: Held<RANK>,
}

impl<const RANK: u8, T> Ordered<RANK, T> {
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub fn lock(&self) -> Guard<'_, RANK, T> {
        let held = Held::take(false);
        Guard { inner: self.0.lock(), _held: held }
    }

    /// Whether anybody holds it.
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }

    /// As [`lock`](Self::lock), if nobody holds it.
    pub fn try_lock(&self) -> Option<Guard<'_, RANK, T>> {
        let inner = self.0.try_lock()?;
        Some(Guard { inner, _held: Held::take(false) })
    }

    /// As [`lock`](Self::lock), beside locks of the same rank: the caller takes those in an order of its own.
    pub fn lock_beside(&self) -> Guard<'_, RANK, T> {
        let held = Held::take(true);
        Guard { inner: self.0.lock(), _held: held }
    }
}

impl<const RANK: u8, T> OrderedRw<RANK, T> {
    pub const fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    pub fn read(&self) -> ReadGuard<'_, RANK, T> {
        let held = Held::take(false);
        ReadGuard { _inner: self.0.read(), _held: held }
    }

    pub fn write(&self) -> WriteGuard<'_, RANK, T> {
        let held = Held::take(false);
        WriteGuard { _inner: self.0.write(), _held: held }
    }
}

impl<const RANK: u8, T> Deref for Guard<'_, RANK, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<const RANK: u8, T> DerefMut for Guard<'_, RANK, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// The record that this thread holds a lock of a rank.
#[derive(Debug)]
struct Held<const RANK: u8>;

/// Asserts that this thread holds no lock under which no system call may be made.
pub(crate) fn assert_may_block() {
    #[cfg(debug_assertions)]
    checked::assert_may_block();
}

#[cfg(not(debug_assertions))]
impl<const RANK: u8> Held<RANK> {
    fn take(_beside: bool) -> Self {
        Self
    }
}

#[cfg(debug_assertions)]
mod checked {
    use std::cell::Cell;

    use super::{Held, STATE};

    const RANKS: usize = 5;

    thread_local! {
        /// How many locks of each rank the thread holds.
        static HELD: Cell<[u8; RANKS]> = const { Cell::new([0; RANKS]) };
    }

    impl<const RANK: u8> Held<RANK> {
        pub(super) fn take(beside: bool) -> Self {
            let mut held = HELD.get();
            let first_forbidden = usize::from(RANK) + usize::from(beside);
            let in_order = held.iter().skip(first_forbidden).all(|count| *count == 0);
            assert!(in_order, "lock order: a lock of rank {RANK} is taken while the thread holds {held:?}");
            if let Some(count) = held.get_mut(usize::from(RANK)) {
                *count += 1;
            }
            HELD.set(held);
            Self
        }
    }

    impl<const RANK: u8> Drop for Held<RANK> {
        fn drop(&mut self) {
            let mut held = HELD.get();
            if let Some(count) = held.get_mut(usize::from(RANK)) {
                *count -= 1;
            }
            HELD.set(held);
        }
    }

    pub(super) fn assert_may_block() {
        let held = HELD.get();
        let blocked = held.iter().skip(usize::from(STATE)).any(|count| *count > 0);
        assert!(!blocked, "a system call is made while the thread holds locks {held:?}");
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    fn panics(f: impl FnOnce() + Send + 'static) -> bool {
        std::thread::spawn(f).join().is_err()
    }

    #[test]
    fn locks_taken_in_the_stated_order_pass() {
        let (change, tree, state) =
            (Ordered::<CHANGE, ()>::new(()), OrderedRw::<TREE, ()>::new(()), Ordered::<STATE, u8>::new(0));
        let other = Ordered::<CHANGE, ()>::new(());
        let _first = change.lock();
        let _second = other.lock_beside();
        drop(tree.read());
        let _tree = tree.write();
        *state.lock() += 1;
    }

    #[test]
    fn a_lock_taken_under_a_later_one_or_its_equal_panics() {
        assert!(panics(|| {
            let (state, change) = (Ordered::<STATE, ()>::new(()), Ordered::<CHANGE, ()>::new(()));
            let _state = state.lock();
            let _change = change.lock();
        }));
        assert!(panics(|| {
            let (one, other) = (Ordered::<CHANGE, ()>::new(()), Ordered::<CHANGE, ()>::new(()));
            let _one = one.lock();
            let _other = other.lock();
        }));
    }

    #[test]
    fn a_system_call_under_a_state_lock_panics() {
        assert!(panics(|| {
            let state = Ordered::<STATE, ()>::new(());
            let _state = state.lock();
            assert_may_block();
        }));
    }
}
