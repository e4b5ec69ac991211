//! Descriptors of layer directories, opened on demand and closed again when there are too many.
//!
//! Owns the slots and the clock that evicts from them. It never opens anything itself. The kernel holds dentries
//! instead.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Room for one descriptor.
#[derive(Debug)]
pub(crate) struct Slot<D> {
    inner: Arc<SlotInner<D>>,
}

#[derive(Debug)]
struct SlotInner<D> {
    fd: Mutex<Option<Arc<D>>>,
    used: AtomicBool,
}

/// What the clock needs of a slot, whatever it holds.
trait Evict: Send + Sync + std::fmt::Debug {
    /// Whether it was used since the last call; clears the mark.
    fn take_used(&self) -> bool;
    /// Closes the descriptor (once its present users are done).
    fn evict(&self);
}

/// Bounds the number of descriptors in slots.
#[derive(Debug)]
pub(crate) struct FdCache {
    ring: Mutex<VecDeque<Weak<dyn Evict>>>,
    capacity: usize,
}

impl<D: Send + Sync + std::fmt::Debug + 'static> Slot<D> {
    /// An empty slot.
    pub fn empty() -> Self {
        Self { inner: Arc::new(SlotInner { fd: Mutex::new(None), used: AtomicBool::new(false) }) }
    }

    /// The descriptor, opened by `open` if it is not there.
    pub fn get<E>(&self, cache: &FdCache, open: impl FnOnce() -> Result<D, E>) -> Result<Arc<D>, E> {
        if let Some(fd) = self.inner.fd.lock().as_ref() {
            self.inner.used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(fd));
        }
        let opened = Arc::new(open()?);
        self.put(cache, Arc::clone(&opened));
        Ok(opened)
    }

    /// Puts a descriptor in, whatever was there.
    pub fn put(&self, cache: &FdCache, fd: Arc<D>) {
        let had = self.inner.fd.lock().replace(fd).is_some();
        self.inner.used.store(true, Ordering::Relaxed);
        if !had {
            let evict: Arc<dyn Evict> = Arc::clone(&self.inner) as Arc<dyn Evict>;
            cache.add(Arc::downgrade(&evict));
        }
    }
}

impl<D: Send + Sync + std::fmt::Debug> Evict for SlotInner<D> {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn evict(&self) {
        let fd = self.fd.lock().take();
        drop(fd);
    }
}

impl FdCache {
    /// A cache of at most `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        Self { ring: Mutex::new(VecDeque::new()), capacity: capacity.max(16) }
    }

    /// Forgets slots that are gone: what little is kept of each would hold a page of memory.
    pub fn purge(&self) {
        let mut ring = self.ring.lock();
        ring.retain(|slot| slot.strong_count() > 0);
        ring.shrink_to_fit();
    }

    fn add(&self, slot: Weak<dyn Evict>) {
        let mut victims = Vec::new();
        {
            let mut ring = self.ring.lock();
            ring.push_back(slot);
            let mut looked_at = 0;
            while ring.len() > self.capacity && looked_at < 2 * self.capacity {
                looked_at += 1;
                let Some(oldest) = ring.pop_front() else { break };
                let Some(slot) = oldest.upgrade() else { continue };
                if slot.take_used() && looked_at <= self.capacity {
                    ring.push_back(oldest);
                } else {
                    victims.push(slot);
                }
            }
        }
        for victim in victims {
            victim.evict();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unused_descriptor_is_closed_and_opened_again_on_demand() {
        let cache = FdCache::new(16);
        let slots: Vec<Slot<u32>> = (0..40).map(|_| Slot::empty()).collect();
        for (number, slot) in slots.iter().enumerate() {
            let got = slot.get::<()>(&cache, || Ok(u32::try_from(number).unwrap())).unwrap();
            assert_eq!(*got, u32::try_from(number).unwrap());
        }
        let open = slots.iter().filter(|slot| slot.inner.fd.lock().is_some()).count();
        assert!(open <= 16, "{open} descriptors are open");
        let mut opened = false;
        slots[0]
            .get::<()>(&cache, || {
                opened = true;
                Ok(0)
            })
            .unwrap();
        assert!(opened, "the first descriptor had been evicted");
    }
}
