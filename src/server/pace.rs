//! The minimum rate of a request body, so that a client that sends single bytes does not hold a
//! connection to the API for ever: a limit on the pause between two pieces alone permits one byte
//! every half minute for days.
//!
//! `ClientSession::poll_body` applies it, the only place that reads a body, of HTTP/1.1 and of HTTP/2.
//! What a client sends in a tunnel is not a body. Pure.

use std::time::{Duration, Instant};

/// Time that a body may fall behind before it ends: links falter, and most bodies are complete by
/// then.
const GRACE: Duration = Duration::from_secs(60);

/// Bytes per second that a body must deliver; a modem delivers more.
const MIN_RATE: u64 = 256;

/// A bucket of time that elapsed time drains and received bytes refill. It never holds more than
/// [`GRACE`], so that a burst at the beginning pays for no more than the next minute.
#[derive(Debug, Default)]
pub struct Pace {
    /// The last piece, and the time that was left behind it.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// Records a piece of the body and returns whether the body is still fast enough. The first
    /// piece starts the clock.
    pub fn keeps_up(&mut self, piece: usize, now: Instant) -> bool {
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

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn body_of_single_bytes_ends_after_the_grace() {
        let start = Instant::now();
        let mut body = Pace::default();
        assert!((0..60).all(|second| body.keeps_up(1, start + seconds(second))));
        assert!(!body.keeps_up(1, start + seconds(61)));
    }

    #[test]
    fn burst_does_not_pay_for_single_bytes_after_it() {
        let start = Instant::now();
        for burst in [1, 1 << 20, 1 << 30] {
            let mut body = Pace::default();
            assert!(body.keeps_up(burst, start), "{burst}");
            assert!(body.keeps_up(1, start + seconds(29)) && body.keeps_up(1, start + seconds(58)), "{burst}");
            assert!(!body.keeps_up(1, start + seconds(87)), "{burst}");
        }
    }

    #[test]
    fn slow_steady_body_does_not_end() {
        let start = Instant::now();
        let mut body = Pace::default();
        assert!((0..6000).all(|second| body.keeps_up(257, start + seconds(second))));
    }

    #[test]
    fn body_that_falters_for_less_than_the_grace_goes_on() {
        let start = Instant::now();
        let mut body = Pace::default();
        assert!((0..100).all(|minute| body.keeps_up(16 << 10, start + seconds(59 * minute))));
    }
}
