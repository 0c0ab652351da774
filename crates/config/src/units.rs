//! Durations and sizes as the operator writes them: a number and its unit, never a bare number, because a `60` that one
//! reader takes for seconds another takes for milliseconds.

use std::time::Duration;

/// The longest duration that is read: a year of 365 days. Longer ones are typing errors, and an instant plus this much
/// always exists.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a duration looks like, as a regular expression for the schema.
pub(super) const DURATION_PATTERN: &str = "^(?=.)([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
/// What a size looks like.
pub(super) const SIZE_PATTERN: &str = "^[0-9]+(B|KB|KiB|MB|MiB|GB|GiB)$";

/// In milliseconds, largest first: the order in which they are written.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// In bytes.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads `250ms`, `30s`, `2m`, `1h`, `1h30m`: whole numbers, each with its unit, the larger unit first, no unit twice.
/// `None` for everything else, for a bare number too.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    let mut milliseconds: u64 = 0;
    while !rest.is_empty() {
        let (number, unit);
        (number, rest) = split_number(rest)?;
        (unit, rest) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        // The iterator goes on from where it stopped, so a unit cannot come twice or after a smaller one.
        let (_, worth) = units.find(|(name, _)| *name == unit)?;
        milliseconds = milliseconds.checked_add(number.checked_mul(*worth)?)?;
    }
    if text.is_empty() { None } else { Some(Duration::from_millis(milliseconds)) }
}

/// Reads `512B`, `32KiB`, `1MB`: a whole number and its unit, in that spelling. `None` for everything else.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let (_, worth) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*worth)
}

/// The number at the start, and what follows it.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Writes a duration so that it reads back the same, milliseconds being the finest. Below two minutes it counts in
/// seconds, as people do (`60s`, not `1m`).
pub(super) fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    let units = if rest < 120_000 { &DURATION_UNITS[2..] } else { &DURATION_UNITS[..] };
    for (unit, worth) in units {
        if rest >= *worth {
            text.push_str(&format!("{}{unit}", rest / worth));
            rest %= worth;
        }
    }
    text
}

/// Writes a size in the largest unit that divides it.
pub(super) fn show_size(bytes: u64) -> String {
    let (unit, worth) =
        SIZE_UNITS.iter().find(|(_, worth)| bytes >= *worth && bytes.is_multiple_of(*worth)).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / worth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units_in_order() {
        let ms = Duration::from_millis;
        for (text, value) in [
            ("250ms", ms(250)),
            ("30s", ms(30_000)),
            ("2m", ms(120_000)),
            ("1h", ms(3_600_000)),
            ("1h30m", ms(5_400_000)),
            ("1m5ms", ms(60_005)),
            ("0s", ms(0)),
        ] {
            assert_eq!(parse_duration(text), Some(value), "{text}");
        }
        for text in
            ["", "60", "s", "1.5s", "-1s", "30m1h", "1s1s", "1 s", "1S", "1d", "1h30", "٣s", "18446744073709551615h"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_need_units() {
        for (text, value) in
            [("512B", 512), ("32KiB", 32 << 10), ("1MB", 1_000_000), ("256MiB", 256 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(parse_size(text), Some(value), "{text}");
        }
        for text in ["", "512", "1mb", "1 MB", "1.5MB", "-1B", "1K", "B", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for milliseconds in [0, 1, 999, 1_000, 60_000, 90_000, 120_000, 900_000, 5_400_001] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
        for bytes in [0, 1, 1_000, 1_024, 1_048_576, 268_435_456, 1_500_000] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
        assert_eq!(show_duration(Duration::from_secs(60)), "60s");
        assert_eq!(show_duration(Duration::from_secs(120)), "2m");
        assert_eq!(show_size(32 << 10), "32KiB");
    }
}
