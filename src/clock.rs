//! The clock of everything that depends on time. It is the runtime's clock, so that a test can
//! pause it; without tokio's `test-util`, that is the system's monotonic clock.

use std::time::{Instant, SystemTime};

pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Formats a time in UTC as `2026-01-31T12:00:00.000`, without the `Z`.
pub fn timestamp(when: SystemTime) -> String {
    let since_epoch = when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since_epoch.as_secs(), since_epoch.subsec_millis());
    let (mut year, mut day) = (1970, seconds / 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}", day + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_in_utc() {
        // Seconds since 1970 and the output of `date -u -d @SECONDS`.
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00.000"),
            (951_782_399, "2000-02-28T23:59:59.000"),
            (951_782_400, "2000-02-29T00:00:00.000"),
            (951_868_800, "2000-03-01T00:00:00.000"),
            (1_735_689_599, "2024-12-31T23:59:59.000"),
            (1_764_000_000, "2025-11-24T16:00:00.000"),
        ] {
            assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), written);
        }
    }
}
