//! Durations and sizes: a number with a unit. A bare number is refused, because `60` could be
//! seconds or milliseconds.

use std::time::Duration;

/// Maximum duration: a year of 365 days. A longer one is a typing error, and an `Instant` plus this
/// much does not overflow.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Regular expression of a duration, for the schema.
pub(super) const DURATION_PATTERN: &str = "^(?=.)([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
/// Regular expression of a size, for the schema.
pub(super) const SIZE_PATTERN: &str = "^[0-9]+(B|KB|KiB|MB|MiB|GB|GiB)$";

/// Units in milliseconds, in the order in which they are written: largest first.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Units in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Parses `250ms`, `30s`, `2m`, `1h`, `1h30m`: whole numbers with units, larger units first, no
/// unit twice.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    let mut milliseconds: u64 = 0;
    while !rest.is_empty() {
        let (number, unit);
        (number, rest) = split_number(rest)?;
        (unit, rest) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        // The iterator continues after the previous unit, so a unit can neither repeat nor follow a
        // smaller one.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        milliseconds = milliseconds.checked_add(number.checked_mul(*factor)?)?;
    }
    if text.is_empty() { None } else { Some(Duration::from_millis(milliseconds)) }
}

/// Parses `512B`, `32KiB`, `1MB`: a whole number and a unit in this spelling.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

/// The number at the start and the rest.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Formats a duration in whole milliseconds such that `parse_duration` returns it. Below two
/// minutes it uses seconds (`60s`, not `1m`).
pub(super) fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    let units = if rest < 120_000 { &DURATION_UNITS[2..] } else { &DURATION_UNITS[..] };
    for (unit, factor) in units {
        if rest >= *factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    text
}

/// Formats a size in the largest unit that divides it.
pub(super) fn show_size(bytes: u64) -> String {
    let (unit, factor) = SIZE_UNITS
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_requires_units_in_order() {
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
        for text in [
            "",
            "60",
            "s",
            "1.5s",
            "-1s",
            "30m1h",
            "1s1s",
            "1 s",
            "1S",
            "1d",
            "1h30",
            "٣s",
            "18446744073709551615h",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn size_requires_unit() {
        for (text, value) in [
            ("512B", 512),
            ("32KiB", 32 << 10),
            ("1MB", 1_000_000),
            ("256MiB", 256 << 20),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Some(value), "{text}");
        }
        for text in ["", "512", "1mb", "1 MB", "1.5MB", "-1B", "1K", "B", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn shown_value_parses_back() {
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
