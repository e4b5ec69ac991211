//! Fault points: places where a test can make a system call fail, or stop the world.
//!
//! The engine owns one [`Faults`] and asks [`Faults::point`] before each change of the upper tree. Compiled always, so that
//! what is tested is what runs; while nothing is armed a point costs one relaxed load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Errno, Result};

/// The fault points of one engine; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether `plan` is looked at. Relaxed: a test arms it before the operation it means, on the same thread or with a
    /// happens-before of its own.
    armed: AtomicBool,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    hits: BTreeMap<&'static str, u64>,
    total: u64,
    rule: Option<Rule>,
    crashed: bool,
}

#[derive(Debug)]
struct Rule {
    /// The point that counts; every point if `None`.
    point: Option<String>,
    /// How many more hits pass before the rule acts.
    remaining: u64,
    action: Action,
}

/// What happens at a fault point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This one hit fails with the errno.
    Fail(Errno),
    /// This hit and every later one, of any point, fails with `EIO`: what was done so far is all that reaches the medium.
    Crash,
}

impl Faults {
    /// Points that never fail until something is armed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Passes the point `name`, or fails as armed.
    #[inline]
    pub fn point(&self, name: &'static str) -> Result<()> {
        if self.0.armed.load(Ordering::Relaxed) { self.hit(name) } else { Ok(()) }
    }

    /// Starts counting hits, from zero, with no rule.
    pub fn count(&self) {
        self.reset(None);
    }

    /// Acts at the `nth` hit (from 1) of any point. Counting restarts.
    pub fn arm(&self, nth: u64, action: Action) {
        self.reset(Some(Rule { point: None, remaining: nth.saturating_sub(1), action }));
    }

    /// Acts at the `nth` hit (from 1) of the point `name`. Counting restarts.
    pub fn arm_at(&self, name: &str, nth: u64, action: Action) {
        let remaining = nth.saturating_sub(1);
        self.reset(Some(Rule { point: Some(name.to_owned()), remaining, action }));
    }

    /// Lets every point pass again; the counts stay readable.
    pub fn disarm(&self) {
        self.0.armed.store(false, Ordering::Relaxed);
        let mut plan = self.plan();
        plan.rule = None;
        plan.crashed = false;
    }

    /// Hits of all points since counting started.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.plan().total
    }

    /// Hits of each point since counting started.
    #[must_use]
    pub fn hits_by_point(&self) -> BTreeMap<&'static str, u64> {
        self.plan().hits.clone()
    }

    /// Whether the armed crash has happened.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.plan().crashed
    }

    #[cold]
    fn hit(&self, name: &'static str) -> Result<()> {
        let mut plan = self.plan();
        if plan.crashed {
            return Err(Errno::IO);
        }
        plan.total += 1;
        *plan.hits.entry(name).or_default() += 1;
        let action = match &mut plan.rule {
            Some(rule) if rule.point.as_deref().is_none_or(|point| point == name) => match rule.remaining {
                0 => rule.action,
                _ => {
                    rule.remaining -= 1;
                    return Ok(());
                }
            },
            _ => return Ok(()),
        };
        plan.rule = None;
        match action {
            Action::Fail(errno) => Err(errno),
            Action::Crash => {
                plan.crashed = true;
                Err(Errno::IO)
            }
        }
    }

    fn reset(&self, rule: Option<Rule>) {
        *self.plan() = Plan { rule, ..Plan::default() };
        self.0.armed.store(true, Ordering::Relaxed);
    }

    /// A panic elsewhere while the plan was locked leaves it consistent: every change of it is one assignment.
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_fails_and_nothing_is_counted_until_armed() {
        let faults = Faults::new();
        assert_eq!(faults.point("a"), Ok(()));
        assert_eq!(faults.hits(), 0);
        faults.count();
        assert_eq!(faults.point("a"), Ok(()));
        assert_eq!(faults.hits(), 1);
    }

    #[test]
    fn the_nth_hit_fails_once() {
        let faults = Faults::new();
        faults.arm(2, Action::Fail(Errno::NOSPC));
        assert_eq!(faults.point("a"), Ok(()));
        assert_eq!(faults.clone().point("b"), Err(Errno::NOSPC));
        assert_eq!(faults.point("b"), Ok(()));
        assert_eq!(faults.hits_by_point(), BTreeMap::from([("a", 1), ("b", 2)]));
    }

    #[test]
    fn a_named_rule_ignores_other_points() {
        let faults = Faults::new();
        faults.arm_at("b", 2, Action::Fail(Errno::IO));
        for (point, expected) in [("a", Ok(())), ("b", Ok(())), ("a", Ok(())), ("b", Err(Errno::IO))] {
            assert_eq!(faults.point(point), expected, "{point}");
        }
    }

    #[test]
    fn after_a_crash_every_point_fails_until_disarmed() {
        let faults = Faults::new();
        faults.arm(1, Action::Crash);
        for point in ["a", "b", "a"] {
            assert_eq!(faults.point(point), Err(Errno::IO));
        }
        assert!(faults.has_crashed());
        faults.disarm();
        assert_eq!(faults.point("a"), Ok(()));
    }
}
