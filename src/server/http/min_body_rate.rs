//! Minimum rate of a request body, so that a client that sends single bytes cannot hold a
//! connection to the API for long: a limit on the pause between two pieces alone would permit one
//! byte every half minute for days.
//!
//! `ClientSession::poll_body` applies it to both protocols. The data of a tunnel is not a body.
//! Performs no input or output.

use std::time::{Duration, Instant};

/// Maximum time that a body may fall behind: links stall briefly, and most bodies are complete by
/// then.
const GRACE: Duration = Duration::from_secs(60);

/// Minimum number of bytes per second. A modem is faster.
const MIN_RATE: u64 = 256;

/// A bucket of time that elapsed time drains and received bytes refill. It holds at most [`GRACE`],
/// so that a burst at the beginning covers no more than the next minute.
#[derive(Debug, Default)]
pub struct MinBodyRate {
    /// Time of the last piece, and the content of the bucket after it.
    last: Option<(Instant, Duration)>,
}

impl MinBodyRate {
    /// Records a piece of the body. Returns whether the body is fast enough. The first piece starts
    /// the clock.
    pub fn record(&mut self, piece: usize, now: Instant) -> bool {
        let left = match self.last {
            None => Some(GRACE),
            Some((at, left)) => left.checked_sub(now.saturating_duration_since(at)),
        };
        let Some(left) = left else { return false };
        let earned = Duration::from_micros((piece as u64).saturating_mul(1_000_000 / MIN_RATE));
        self.last = Some((now, left.saturating_add(earned).min(GRACE)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn body_of_single_bytes_ends_after_the_grace() {
        let start = clock::now();
        let mut body = MinBodyRate::default();
        assert!((0..60).all(|second| body.record(1, start + seconds(second))));
        assert!(!body.record(1, start + seconds(61)));
    }

    #[test]
    fn burst_covers_at_most_the_grace() {
        let start = clock::now();
        for burst in [1, 1 << 20, 1 << 30] {
            let mut body = MinBodyRate::default();
            assert!(body.record(burst, start), "{burst}");
            assert!(
                body.record(1, start + seconds(29)) && body.record(1, start + seconds(58)),
                "{burst}"
            );
            assert!(!body.record(1, start + seconds(87)), "{burst}");
        }
    }

    #[test]
    fn slow_steady_body_does_not_end() {
        let start = clock::now();
        let mut body = MinBodyRate::default();
        assert!((0..6000).all(|second| body.record(257, start + seconds(second))));
    }

    #[test]
    fn body_that_stalls_for_less_than_the_grace_continues() {
        let start = clock::now();
        let mut body = MinBodyRate::default();
        assert!((0..100).all(|minute| body.record(16 << 10, start + seconds(59 * minute))));
    }
}
