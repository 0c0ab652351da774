//! A circuit breaker: an API that is known to be down is not asked by everyone, but by one every now and then. Pure.
//!
//! What counts is that the API cannot be reached, is silent, or says itself that it is unavailable, several times in a row.
//! An answer that is broken in some other way does not: a single odd document must not close the way for all.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row that open it.
const THRESHOLD: u32 = 8;
/// How long it stays open at first; doubled after each probe that failed.
const FIRST: Duration = Duration::from_secs(1);
/// How long it stays open at most: an API that is back is found within this time.
const LONGEST: Duration = Duration::from_secs(5);

/// How an exchange went, as far as the breaker cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Reached,
    Unreachable,
}

/// Whether the API is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    Closed,
    /// Not asked.
    Open,
    /// One request finds out.
    HalfOpen,
}

impl Circuit {
    pub const fn as_str(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::Open => "open",
            Circuit::HalfOpen => "half_open",
        }
    }
}

#[derive(Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        lasting: Duration,
    },
    /// A probe is under way; if nothing is heard of it by then, another may try.
    HalfOpen {
        until: Instant,
        lasting: Duration,
    },
}

/// The breaker.
pub struct Breaker {
    state: Mutex<State>,
    /// The longest that an exchange takes.
    probe: Duration,
}

impl Breaker {
    pub fn new(probe: Duration) -> Self {
        Breaker { state: Mutex::new(State::Closed { failures: 0 }), probe }
    }

    /// Whether a request may go out now. Every one that does must be told of with [`Breaker::heard`].
    pub fn admits(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Closed { .. } => true,
            State::Open { until, lasting } | State::HalfOpen { until, lasting } if now >= until => {
                *state = State::HalfOpen { until: now + self.probe, lasting };
                true
            }
            _ => false,
        }
    }

    /// Whether [`Breaker::admits`] would say no; nothing comes of asking.
    pub fn refuses(&self, now: Instant) -> bool {
        match *self.state.lock() {
            State::Closed { .. } => false,
            State::Open { until, .. } | State::HalfOpen { until, .. } => now < until,
        }
    }

    /// How a request went.
    pub fn heard(&self, outcome: Outcome, now: Instant) {
        let mut state = self.state.lock();
        *state = match (&*state, outcome) {
            (_, Outcome::Reached) => State::Closed { failures: 0 },
            (State::Closed { failures }, Outcome::Unreachable) if failures + 1 < THRESHOLD => {
                State::Closed { failures: failures + 1 }
            }
            (State::Closed { .. }, Outcome::Unreachable) => State::Open { until: now + FIRST, lasting: FIRST },
            // One that went out before it opened says nothing new.
            (State::Open { until, lasting }, Outcome::Unreachable) => State::Open { until: *until, lasting: *lasting },
            (State::HalfOpen { lasting, .. }, Outcome::Unreachable) => {
                let lasting = (*lasting * 2).min(LONGEST);
                State::Open { until: now + lasting, lasting }
            }
        };
    }

    /// As it stands.
    pub fn circuit(&self) -> Circuit {
        match *self.state.lock() {
            State::Closed { .. } => Circuit::Closed,
            State::Open { .. } => Circuit::Open,
            State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_lets_one_find_out() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let start = Instant::now();
        for _ in 0..THRESHOLD - 1 {
            breaker.heard(Outcome::Unreachable, start);
        }
        breaker.heard(Outcome::Reached, start);
        for _ in 0..THRESHOLD - 1 {
            breaker.heard(Outcome::Unreachable, start);
        }
        assert!(breaker.admits(start));
        breaker.heard(Outcome::Unreachable, start);
        assert_eq!(breaker.circuit(), Circuit::Open);
        assert!(!breaker.admits(start) && breaker.refuses(start));
        let later = start + FIRST;
        assert!(!breaker.refuses(later) && breaker.admits(later) && !breaker.admits(later));
        breaker.heard(Outcome::Unreachable, later);
        assert!(!breaker.admits(later + FIRST) && breaker.admits(later + 2 * FIRST));
        breaker.heard(Outcome::Reached, later + 2 * FIRST);
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    #[test]
    fn a_probe_of_which_nothing_is_heard_is_followed_by_another_and_the_pause_is_bounded() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let mut now = Instant::now();
        for _ in 0..THRESHOLD {
            breaker.heard(Outcome::Unreachable, now);
        }
        now += FIRST;
        assert!(breaker.admits(now));
        assert!(!breaker.admits(now + Duration::from_secs(9)) && breaker.admits(now + Duration::from_secs(10)));
        for _ in 0..10 {
            breaker.heard(Outcome::Unreachable, now);
            now += LONGEST;
            assert!(breaker.admits(now));
        }
    }
}
