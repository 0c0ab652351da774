//! The clock of the Redis server, by which gateways compare the ages of shared values.

use std::time::Duration;

/// Milliseconds of the server's clock since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerTime(pub u64);

impl ServerTime {
    /// The least time that has passed since `earlier`, rounded up: both are cut to milliseconds.
    /// `None` if `earlier` is in the future, since the clock was set back and the age is unknown.
    pub fn since(self, earlier: ServerTime) -> Option<Duration> {
        let millis = self.0.checked_sub(earlier.0)?;
        Some(Duration::from_millis(millis.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_the_future_has_no_age() {
        assert_eq!(ServerTime(5).since(ServerTime(5)), Some(Duration::from_millis(1)));
        assert_eq!(ServerTime(4).since(ServerTime(5)), None);
    }
}
