//! A circuit breaker: an API that is known to be down is not asked by everyone, but by one every now and then. Pure.
//!
//! What counts is that the API cannot be reached, is silent, or says itself that it is unavailable, several times in a row.
//! An answer that is broken in some other way does not: a single odd document must not close the way for all.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row that open it.
const THRESHOLD: usize = 8;
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
        failures: Failures,
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

/// Failures in a row, each with its source, which counts once.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    sources: [Option<u64>; THRESHOLD],
    count: usize,
}

impl Failures {
    /// Counts a failure; whether that makes too many.
    fn add(&mut self, source: Option<u64>) -> bool {
        let is_known = source.is_some() && self.sources[..self.count].contains(&source);
        if !is_known {
            if let Some(place) = self.sources.get_mut(self.count) {
                *place = source;
            }
            self.count += 1;
        }
        self.count >= THRESHOLD
    }
}

/// The breaker.
pub struct Breaker {
    state: Mutex<State>,
    /// The longest that an exchange takes.
    probe: Duration,
}

impl Breaker {
    pub fn new(probe: Duration) -> Self {
        Breaker { state: Mutex::new(State::Closed { failures: Failures::default() }), probe }
    }

    /// Whether a request may go out now. Every one that does must be reported with [`Breaker::heard`].
    pub fn admits(&self, now: Instant) -> bool {
        self.admit(now).map(|mut admission| admission.probes = false).is_some()
    }

    /// Admits a request now, as the probe where the pause of an open circuit is over. `None`: it may not go out.
    pub fn admit(&self, now: Instant) -> Option<Admission<'_>> {
        let mut state = self.state.lock();
        let probes = match *state {
            State::Closed { .. } => false,
            State::Open { until, lasting } | State::HalfOpen { until, lasting } if now >= until => {
                *state = State::HalfOpen { until: now + self.probe, lasting };
                true
            }
            _ => return None,
        };
        Some(Admission { breaker: self, probes })
    }

    /// Whether [`Breaker::admits`] would say no; nothing comes of asking.
    pub fn refuses(&self, now: Instant) -> bool {
        match *self.state.lock() {
            State::Closed { .. } => false,
            State::Open { until, .. } | State::HalfOpen { until, .. } => now < until,
        }
    }

    /// Records how a request went.
    pub fn heard(&self, outcome: Outcome, now: Instant) {
        self.record(outcome, None, now);
    }

    /// Records how a request went. `source`: failures of the same source in a row count once, so that one caller cannot
    /// open the circuit for others.
    ///
    /// Returns the new state when the circuit opens or closes, each once.
    pub fn record(&self, outcome: Outcome, source: Option<u64>, now: Instant) -> Option<Circuit> {
        let mut state = self.state.lock();
        match (&mut *state, outcome) {
            (State::Closed { failures }, Outcome::Reached) => *failures = Failures::default(),
            (_, Outcome::Reached) => {
                *state = State::Closed { failures: Failures::default() };
                return Some(Circuit::Closed);
            }
            (State::Closed { failures }, Outcome::Unreachable) => {
                if failures.add(source) {
                    *state = State::Open { until: now + FIRST, lasting: FIRST };
                    return Some(Circuit::Open);
                }
            }
            // One that went out before it opened says nothing new.
            (State::Open { .. }, Outcome::Unreachable) => {}
            (State::HalfOpen { lasting, .. }, Outcome::Unreachable) => {
                let lasting = (*lasting * 2).min(LONGEST);
                *state = State::Open { until: now + lasting, lasting };
            }
        }
        None
    }

    /// The circuit as a request would find it: half open also before a probe, once the pause is over.
    pub fn circuit(&self, now: Instant) -> Circuit {
        match *self.state.lock() {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until, .. } if now < until => Circuit::Open,
            State::Open { .. } | State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }
}

/// Leave to send one request. A probe that ends without an outcome (its client left) lets the next request probe.
pub struct Admission<'a> {
    breaker: &'a Breaker,
    probes: bool,
}

impl Admission<'_> {
    /// Records how the request went.
    ///
    /// Returns what [`Breaker::record`] does.
    pub fn record(mut self, outcome: Outcome, source: Option<u64>, now: Instant) -> Option<Circuit> {
        self.probes = false;
        self.breaker.record(outcome, source, now)
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.probes {
            return;
        }
        let mut state = self.breaker.state.lock();
        if let State::HalfOpen { until, lasting } = *state {
            // The pause was over when the probe began.
            *state = State::Open { until: until.checked_sub(self.breaker.probe).unwrap_or(until), lasting };
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
        assert_eq!(breaker.circuit(start), Circuit::Open);
        assert_eq!(breaker.circuit(start + FIRST), Circuit::HalfOpen);
        assert!(!breaker.admits(start) && breaker.refuses(start));
        let later = start + FIRST;
        assert!(!breaker.refuses(later));
        let probe = breaker.admit(later).expect("a probe");
        assert!(breaker.admit(later).is_none());
        probe.record(Outcome::Unreachable, None, later);
        assert!(!breaker.admits(later + FIRST) && breaker.admits(later + 2 * FIRST));
        breaker.heard(Outcome::Reached, later + 2 * FIRST);
        assert_eq!(breaker.circuit(later), Circuit::Closed);
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

    #[test]
    fn failures_of_one_source_count_once_in_a_row() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let now = Instant::now();
        for _ in 0..100 {
            breaker.record(Outcome::Unreachable, Some(1), now);
        }
        for source in 2..8 {
            breaker.record(Outcome::Unreachable, Some(source), now);
            breaker.record(Outcome::Unreachable, Some(1), now);
        }
        assert_eq!(breaker.circuit(now), Circuit::Closed);
        breaker.record(Outcome::Unreachable, Some(8), now);
        assert_eq!(breaker.circuit(now), Circuit::Open);
    }

    #[test]
    fn probe_without_an_outcome_is_followed_by_another() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let mut now = Instant::now();
        for _ in 0..THRESHOLD {
            breaker.heard(Outcome::Unreachable, now);
        }
        now += FIRST;
        let probe = breaker.admit(now).expect("a probe");
        assert!(breaker.refuses(now));
        drop(probe);
        assert_eq!(breaker.circuit(now), Circuit::HalfOpen);
        assert!(!breaker.refuses(now) && breaker.admit(now).is_some());
    }
}
