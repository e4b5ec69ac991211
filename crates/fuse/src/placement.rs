//! Who reads requests: the decisions, without the threads.
//!
//! On a machine with idle CPUs a request costs ten times its work if it crosses CPUs: the request moves the server to an
//! idle CPU and the answer moves the client to another one, each by an interrupt to a halted CPU (measured: 48 µs an
//! operation, 10 µs on one CPU). A CPU that runs nothing but `SCHED_IDLE` tasks counts as idle to the scheduler. So a
//! burst of requests from one client is served by one thread, the *follower*, in that class and pinned to the client's
//! CPU: the client stays, and preempts the server inside its answer. Everything else is served by normal *readers*: one
//! when little happens, one a CPU when several clients ask, and one more whenever all of them are stuck in slow requests.
//!
//! Owns the state of that choice and its rules ([`Watch::tick`]); the threads are in `crew`. The follower is starved
//! where others want its CPU, which the watch notices within a tick, and then leaves it alone for a while.

use std::time::Duration;

/// How often the watch looks, while requests come; less often in a long burst.
pub const TICK: Duration = Duration::from_millis(1);

/// How many readers may be stuck in slow requests at once before others wait.
pub const MOST_READERS: usize = 32;

/// Who may read requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The follower alone.
    Follow,
    /// The first so many readers; at least one.
    Readers(usize),
}

/// What a look at the threads showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sight {
    /// A request waits in the device.
    pub waiting: bool,
    /// Requests begun or ended since the last look.
    pub moved: bool,
    /// Threads that are in a request now.
    pub busy: usize,
    /// Threads that are in the same request as at the last look.
    pub stuck: usize,
    /// Requests with a known client since the last look.
    pub requests: u64,
    /// How many of them came from another client than the one before.
    pub switches: u64,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Who reads from now on.
    pub mode: Mode,
    /// Make the follower a normal thread where it is.
    pub free_follower: bool,
    /// Get the follower out of its waiting for a request.
    pub recall_follower: bool,
    /// When to look again; otherwise at the next request.
    pub again: Option<Duration>,
}

/// The choice and what it is based on. Times are counted in ticks.
#[derive(Debug)]
pub struct Watch {
    mode: Mode,
    cpus: usize,
    may_follow: bool,
    window: Window,
    /// Ticks that the present burst has lasted.
    burst: u32,
    /// Ticks between the last look and this one.
    pause: u32,
    /// Ticks until a burst may be followed again, and how many there will be after the next failure.
    patience: u32,
    backoff: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    ticks: u64,
    requests: u64,
    switches: u64,
}

impl Watch {
    /// A passing task of others costs a tick; to be without a follower costs two thirds of the speed.
    const BACKOFF_FIRST: u32 = 4;
    const BACKOFF_MOST: u32 = 2000;
    /// A burst that paid for its end.
    const LONG_BURST: u32 = 16;
    /// A look disturbs the follower and its client, and a starved client waits for the next one: both may cost this part
    /// of a burst.
    const PAUSE: u32 = 16;
    const PAUSE_MOST: u32 = 16;
    /// Requests that a decision is based on.
    const ENOUGH: u64 = 16;
    /// Ticks after which a window of fewer requests says nothing.
    const WINDOW_MOST: u64 = 50;
    /// Requests a tick that make a burst: more than one in 200 µs.
    const BURST_RATE: u64 = 5;

    /// One reader, for a machine with so many CPUs. Without `may_follow` the follower is never used.
    pub const fn new(cpus: usize, may_follow: bool) -> Self {
        Self {
            mode: Mode::Readers(1),
            cpus,
            may_follow,
            window: Window { ticks: 0, requests: 0, switches: 0 },
            burst: 0,
            pause: 1,
            patience: 0,
            backoff: Self::BACKOFF_FIRST,
        }
    }

    /// Who reads now.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Decides after a look.
    pub fn tick(&mut self, sight: &Sight) -> Verdict {
        self.patience = self.patience.saturating_sub(1);
        self.window.ticks += 1;
        self.window.requests += sight.requests;
        self.window.switches += sight.switches;
        match self.mode {
            Mode::Follow => self.tick_following(sight),
            Mode::Readers(readers) => self.tick_reading(sight, readers),
        }
    }

    fn tick_following(&mut self, sight: &Sight) -> Verdict {
        self.burst += self.pause;
        if sight.moved && sight.stuck == 0 {
            if !self.several_clients() {
                if self.window.requests >= 4 * Self::ENOUGH {
                    self.window = Window::default();
                }
                self.pause = (self.burst / Self::PAUSE).clamp(1, Self::PAUSE_MOST);
                return self.keep();
            }
            return self.stop_following(self.cpus.max(2), true, false);
        }
        if sight.waiting || sight.busy > 0 {
            // Starved, or in a slow request.
            if self.burst > Self::LONG_BURST {
                self.backoff = Self::BACKOFF_FIRST;
            }
            self.patience = self.backoff;
            self.backoff = (self.backoff * 2).min(Self::BACKOFF_MOST);
            return self.stop_following(1, true, true);
        }
        // The burst is over. Waiting readers are woken in the order they came: the follower must not stay the first.
        self.stop_following(1, true, true)
    }

    fn tick_reading(&mut self, sight: &Sight, readers: usize) -> Verdict {
        if !sight.moved && sight.waiting {
            return self.switch(Mode::Readers((readers + 1).min(MOST_READERS)));
        }
        // One reader beside those that are stuck.
        let least = (1 + sight.stuck).min(MOST_READERS);
        if self.window.requests >= Self::ENOUGH {
            let burst = self.window.requests >= Self::BURST_RATE * self.window.ticks;
            let mode = if burst && self.several_clients() {
                Mode::Readers((self.cpus.max(2) + sight.stuck).min(MOST_READERS))
            } else if burst && self.may_follow && sight.stuck == 0 && self.patience == 0 {
                self.burst = 0;
                Mode::Follow
            } else {
                Mode::Readers(least)
            };
            return self.switch(mode);
        }
        if self.window.ticks > Self::WINDOW_MOST {
            return self.switch(Mode::Readers(least));
        }
        let quiet = !sight.moved && sight.busy == 0;
        if quiet { Verdict { again: None, ..self.switch(Mode::Readers(1)) } } else { self.keep() }
    }

    const fn several_clients(&self) -> bool {
        self.window.requests >= Self::ENOUGH && self.window.switches * 4 > self.window.requests
    }

    fn stop_following(&mut self, readers: usize, free_follower: bool, recall_follower: bool) -> Verdict {
        Verdict { free_follower, recall_follower, ..self.switch(Mode::Readers(readers)) }
    }

    fn switch(&mut self, mode: Mode) -> Verdict {
        self.mode = mode;
        self.pause = 1;
        self.window = Window::default();
        self.keep()
    }

    fn keep(&self) -> Verdict {
        let again = Some(TICK * self.pause);
        Verdict { mode: self.mode, free_follower: false, recall_follower: false, again }
    }
}

/// When the follower looks where its client runs. Looking costs about 3 µs, and looking too often makes the two chase
/// each other.
#[derive(Debug, Default)]
pub struct Pace {
    /// Requests since the last look.
    since: u32,
    /// Slow ones among the last of them, a [`WINDOW`](Self::WINDOW) at most.
    slow: u32,
    due: bool,
}

impl Pace {
    /// A time without requests that suggests the client is on another CPU: a client on the same one takes half of it.
    const SLOW: Duration = Duration::from_micros(12);
    /// Requests that are judged together.
    const WINDOW: u32 = 16;
    /// Slow ones that make a look worth its cost. Not all are: of two requests that come together only the first is.
    const SUSPICIOUS: u32 = 4;
    /// Requests after which a look is due in any case.
    const LONGEST: u32 = 256;

    /// A burst begins: look at once.
    pub const fn begin(&mut self) {
        *self = Self { since: 0, slow: 0, due: true };
    }

    /// A request came after so much time without.
    pub fn received(&mut self, gap: Duration) {
        self.since += 1;
        self.slow += u32::from(gap > Self::SLOW);
        if self.since.is_multiple_of(Self::WINDOW) {
            self.due |= self.slow >= Self::SUSPICIOUS || self.since >= Self::LONGEST;
            self.slow = 0;
        }
    }

    /// Whether to look now; asking begins a new count if so.
    pub fn due(&mut self) -> bool {
        let due = self.due;
        if due {
            *self = Self::default();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Sight = Sight { waiting: true, moved: true, busy: 1, stuck: 0, requests: 20, switches: 0 };
    const QUIET: Sight = Sight { waiting: false, moved: false, busy: 0, stuck: 0, requests: 0, switches: 0 };
    const STUCK: Sight = Sight { waiting: true, moved: false, busy: 1, stuck: 1, requests: 0, switches: 0 };

    #[test]
    fn a_burst_of_one_client_is_followed_until_it_ends() {
        let mut watch = Watch::new(2, true);
        assert_eq!(watch.tick(&BUSY).mode, Mode::Follow);
        assert_eq!(watch.tick(&BUSY).mode, Mode::Follow);
        let verdict = watch.tick(&QUIET);
        assert_eq!(verdict.mode, Mode::Readers(1));
        assert!(verdict.recall_follower && verdict.free_follower && verdict.again.is_some());
        assert!(watch.tick(&QUIET).again.is_none(), "an idle mount has no timers");
    }

    #[test]
    fn the_longer_a_burst_the_rarer_the_looks() {
        let mut watch = Watch::new(2, true);
        let mut pauses = (0..1000).filter_map(|_| watch.tick(&BUSY).again).collect::<Vec<_>>();
        assert_eq!(watch.mode(), Mode::Follow);
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!((pauses[8], pauses.pop()), (TICK, Some(16 * TICK)));
        assert_eq!(watch.tick(&STUCK).again, Some(TICK));
    }

    #[test]
    fn a_starved_follower_is_left_alone_for_a_while_that_doubles() {
        let mut watch = Watch::new(2, true);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let mut ticks = 0;
            while watch.tick(&BUSY).mode != Mode::Follow {
                ticks += 1;
            }
            waits.push(ticks);
            let verdict = watch.tick(&STUCK);
            assert_eq!(verdict.mode, Mode::Readers(1));
            assert!(verdict.free_follower);
        }
        assert_eq!(waits[0], 0);
        assert!(waits.is_sorted() && waits[1] < 10 && waits[11] > 1000, "{waits:?}");
    }

    #[test]
    fn several_clients_get_a_reader_for_each_cpu_and_one_client_does_not() {
        let mut watch = Watch::new(4, false);
        let several = Sight { switches: 10, ..BUSY };
        assert_eq!(watch.tick(&several).mode, Mode::Readers(4));
        assert_eq!(watch.tick(&BUSY).mode, Mode::Readers(1));
        let mut watch = Watch::new(1, true);
        assert_eq!(watch.tick(&BUSY).mode, Mode::Follow);
        let verdict = watch.tick(&several);
        assert_eq!(verdict.mode, Mode::Readers(2));
        assert!(verdict.free_follower);
    }

    #[test]
    fn one_reader_is_free_whatever_number_is_stuck() {
        let mut watch = Watch::new(2, true);
        for stuck in 1..10 {
            let sight = Sight { busy: stuck, stuck, ..STUCK };
            let Mode::Readers(readers) = watch.tick(&sight).mode else { panic!("followed while stuck") };
            assert!(readers > stuck);
            let working = Sight { busy: stuck, stuck, ..BUSY };
            let Mode::Readers(readers) = watch.tick(&working).mode else { panic!("followed while stuck") };
            assert!(readers > stuck, "{readers} readers with {stuck} stuck");
        }
        for _ in 0..100 {
            watch.tick(&Sight { waiting: true, ..STUCK });
        }
        assert_eq!(watch.mode(), Mode::Readers(MOST_READERS));
        watch.tick(&QUIET);
        assert_eq!(watch.mode(), Mode::Readers(1));
    }

    #[test]
    fn the_follower_looks_at_once_then_rarely_and_sooner_when_requests_come_slowly() {
        let looks = |pace: &mut Pace, gaps: [u64; 2]| {
            let gaps = gaps.into_iter().cycle().take(1024).map(Duration::from_micros);
            gaps.filter(|gap| {
                pace.received(*gap);
                pace.due()
            })
            .count()
        };
        let mut pace = Pace::default();
        pace.begin();
        assert!(pace.due());
        assert_eq!(looks(&mut pace, [5, 5]), 4);
        assert_eq!(looks(&mut pace, [50, 50]), 64);
        assert_eq!(looks(&mut pace, [20, 0]), 64, "two requests that come together");
    }
}
