//! Circuit breaker: while the API is known to be down, one request at a time probes it, and the
//! others are rejected at once. Time is an argument.
//!
//! It opens after several consecutive failures: the API cannot be reached, does not respond, or
//! reports that it is unavailable. An invalid response does not count, so that one odd document
//! cannot block all requests.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Consecutive failures that open the circuit.
const THRESHOLD: usize = 8;
/// Time that the circuit stays open at first. Each failed probe doubles it.
const OPEN_TIME_MIN: Duration = Duration::from_secs(1);
/// Longest time that the circuit stays open. An API that recovered is found within it.
const OPEN_TIME_MAX: Duration = Duration::from_secs(5);

/// Result of an exchange, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Reached,
    Unreachable,
}

/// State of the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    Closed,
    /// Requests are rejected.
    Open,
    /// One request probes the API.
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

/// Change of the circuit, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitChange {
    Opened {
        /// Consecutive failures, those of one source counted once.
        failures: usize,
    },
    Closed {
        /// Time since it opened.
        duration: Duration,
    },
}

#[derive(Debug)]
enum State {
    Closed {
        failures: Failures,
    },
    Open {
        until: Instant,
        open_time: Duration,
        /// When the circuit was closed last.
        since: Instant,
    },
    /// A probe is under way. If it has no result at `until`, another request may probe.
    HalfOpen {
        until: Instant,
        open_time: Duration,
        since: Instant,
    },
}

/// Consecutive failures. Those of one source count once.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    sources: [Option<u64>; THRESHOLD],
    count: usize,
}

impl Failures {
    /// Counts a failure. Returns whether the threshold is reached.
    fn add(&mut self, source: Option<u64>) -> bool {
        let is_known = source.is_some() && self.sources[..self.count].contains(&source);
        if !is_known {
            if let Some(slot) = self.sources.get_mut(self.count) {
                *slot = source;
            }
            self.count += 1;
        }
        self.count >= THRESHOLD
    }
}

/// Circuit breaker.
pub struct Breaker {
    state: Mutex<State>,
    /// Longest duration of an exchange.
    probe_timeout: Duration,
}

impl Breaker {
    pub fn new(probe_timeout: Duration) -> Self {
        Breaker {
            state: Mutex::new(State::Closed { failures: Failures::default() }),
            probe_timeout,
        }
    }

    /// Permits a request, as a probe if the circuit has been open long enough. `None`: it is
    /// rejected.
    pub fn try_acquire(&self, now: Instant) -> Option<BreakerPermit<'_>> {
        let mut state = self.state.lock();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { until, open_time, since }
            | State::HalfOpen { until, open_time, since }
                if now >= until =>
            {
                *state = State::HalfOpen { until: now + self.probe_timeout, open_time, since };
                true
            }
            _ => return None,
        };
        Some(BreakerPermit { breaker: self, is_probe })
    }

    /// Whether [`Breaker::try_acquire`] would reject a request.
    pub fn is_open(&self, now: Instant) -> bool {
        match *self.state.lock() {
            State::Closed { .. } => false,
            State::Open { until, .. } | State::HalfOpen { until, .. } => now < until,
        }
    }

    /// Records the outcome of a request. `source`: consecutive failures of one source count once,
    /// so that one caller cannot open the circuit for others.
    ///
    /// Returns the change when the circuit opens or closes.
    pub fn record(
        &self,
        outcome: Outcome,
        source: Option<u64>,
        now: Instant,
    ) -> Option<CircuitChange> {
        let mut state = self.state.lock();
        match (&mut *state, outcome) {
            (State::Closed { failures }, Outcome::Reached) => *failures = Failures::default(),
            (State::Open { since, .. } | State::HalfOpen { since, .. }, Outcome::Reached) => {
                let duration = now.saturating_duration_since(*since);
                *state = State::Closed { failures: Failures::default() };
                return Some(CircuitChange::Closed { duration });
            }
            (State::Closed { failures }, Outcome::Unreachable) => {
                if failures.add(source) {
                    let failures = failures.count;
                    *state = State::Open {
                        until: now + OPEN_TIME_MIN,
                        open_time: OPEN_TIME_MIN,
                        since: now,
                    };
                    return Some(CircuitChange::Opened { failures });
                }
            }
            // The request was sent before the circuit opened.
            (State::Open { .. }, Outcome::Unreachable) => {}
            (State::HalfOpen { open_time, since, .. }, Outcome::Unreachable) => {
                let (open_time, since) = ((*open_time * 2).min(OPEN_TIME_MAX), *since);
                *state = State::Open { until: now + open_time, open_time, since };
            }
        }
        None
    }

    /// State as a request would find it: half open as soon as a probe is permitted.
    pub fn circuit(&self, now: Instant) -> Circuit {
        match *self.state.lock() {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until, .. } if now < until => Circuit::Open,
            State::Open { .. } | State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }
}

/// Permission to send one request. If a probe is dropped without an outcome, because its client
/// left, the next request probes.
pub struct BreakerPermit<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl BreakerPermit<'_> {
    /// Records the outcome of the request.
    ///
    /// Returns what [`Breaker::record`] does.
    pub fn record(
        mut self,
        outcome: Outcome,
        source: Option<u64>,
        now: Instant,
    ) -> Option<CircuitChange> {
        self.is_probe = false;
        self.breaker.record(outcome, source, now)
    }
}

impl Drop for BreakerPermit<'_> {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        let mut state = self.breaker.state.lock();
        if let State::HalfOpen { until, open_time, since } = *state {
            // The open time had ended when the probe began.
            let until = until.checked_sub(self.breaker.probe_timeout).unwrap_or(until);
            *state = State::Open { until, open_time, since };
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests need a time to begin with")]
mod tests {
    use super::*;

    /// Whether a request is permitted; its outcome is recorded separately.
    fn admits(breaker: &Breaker, now: Instant) -> bool {
        breaker.try_acquire(now).map(|mut permit| permit.is_probe = false).is_some()
    }

    #[test]
    fn circuit_opens_after_failures_and_permits_one_probe() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let start = Instant::now();
        for _ in 0..THRESHOLD - 1 {
            breaker.record(Outcome::Unreachable, None, start);
        }
        breaker.record(Outcome::Reached, None, start);
        for _ in 0..THRESHOLD - 1 {
            breaker.record(Outcome::Unreachable, None, start);
        }
        assert!(admits(&breaker, start));
        breaker.record(Outcome::Unreachable, None, start);
        assert_eq!(breaker.circuit(start), Circuit::Open);
        assert_eq!(breaker.circuit(start + OPEN_TIME_MIN), Circuit::HalfOpen);
        assert!(!admits(&breaker, start) && breaker.is_open(start));
        let later = start + OPEN_TIME_MIN;
        assert!(!breaker.is_open(later));
        let probe = breaker.try_acquire(later).expect("a probe");
        assert!(breaker.try_acquire(later).is_none());
        probe.record(Outcome::Unreachable, None, later);
        assert!(
            !admits(&breaker, later + OPEN_TIME_MIN) && admits(&breaker, later + 2 * OPEN_TIME_MIN)
        );
        let change = breaker.record(Outcome::Reached, None, later + 2 * OPEN_TIME_MIN);
        assert_eq!(change, Some(CircuitChange::Closed { duration: 3 * OPEN_TIME_MIN }));
        assert_eq!(breaker.circuit(later), Circuit::Closed);
    }

    #[test]
    fn probe_without_a_result_times_out_and_open_time_is_bounded() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let mut now = Instant::now();
        for _ in 0..THRESHOLD {
            breaker.record(Outcome::Unreachable, None, now);
        }
        now += OPEN_TIME_MIN;
        assert!(admits(&breaker, now));
        assert!(
            !admits(&breaker, now + Duration::from_secs(9))
                && admits(&breaker, now + Duration::from_secs(10))
        );
        for _ in 0..10 {
            breaker.record(Outcome::Unreachable, None, now);
            now += OPEN_TIME_MAX;
            assert!(admits(&breaker, now));
        }
    }

    #[test]
    fn consecutive_failures_of_one_source_count_once() {
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
    fn dropped_probe_is_followed_by_another() {
        let breaker = Breaker::new(Duration::from_secs(10));
        let mut now = Instant::now();
        for _ in 0..THRESHOLD {
            breaker.record(Outcome::Unreachable, None, now);
        }
        now += OPEN_TIME_MIN;
        let probe = breaker.try_acquire(now).expect("a probe");
        assert!(breaker.is_open(now));
        drop(probe);
        assert_eq!(breaker.circuit(now), Circuit::HalfOpen);
        assert!(!breaker.is_open(now) && breaker.try_acquire(now).is_some());
    }
}
