//! How fast a caller's body must come, so that one that drips does not hold a connection to the API for ever: the limit
//! of silence between two pieces alone would let one byte every half a minute go on for days. Pure.

use std::time::{Duration, Instant};

/// A body has this long before its pace counts: most are through by then, and links falter.
const GRACE: Duration = Duration::from_secs(60);

/// Bytes a second on average, from the beginning; a modem does better.
const SLOWEST: u64 = 256;

/// The pace of one body.
#[derive(Debug, Default)]
pub struct Pace {
    began: Option<Instant>,
    bytes: u64,
}

impl Pace {
    /// A piece came: whether the whole is still fast enough. It begins with the first piece.
    pub fn keeps_up(&mut self, piece: usize, now: Instant) -> bool {
        let began = *self.began.get_or_insert(now);
        self.bytes = self.bytes.saturating_add(piece as u64);
        let took = now.saturating_duration_since(began);
        took < GRACE || self.bytes / SLOWEST >= took.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_given_up_after_the_grace_and_a_slow_link_is_not() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut drip = Pace::default();
        assert!((0..60).all(|second| drip.keeps_up(1, after(second))));
        assert!(!drip.keeps_up(1, after(60)));
        let mut slow = Pace::default();
        assert!((0..6000).all(|second| slow.keeps_up(300, after(second))));
        let mut faltering = Pace::default();
        assert!(faltering.keeps_up(100_000, after(0)) && faltering.keeps_up(1, after(300)));
        assert!(!faltering.keeps_up(1, after(500)));
    }
}
