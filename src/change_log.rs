//! Cursor over the API's change log: what to request next, and which entries of a response are new.
//!
//! Times are those of the API's clock, from the `Date` of its responses, so that a wrong clock on
//! either side leaves no gap. Each poll overlaps the previous one, for entries that are written
//! late; entries that were read before are recognized by their id.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::DATE;

use crate::api::{Change, Entry, MAX_ENTRIES, RETENTION_DAYS};
use crate::clock::timestamp;

/// Path of the API's change log.
const PATH: &str = "/log/changeloglite";

/// Time without a poll after which entries may have been deleted unread: an hour less than the API
/// keeps them.
const GAP_MAX: Duration = Duration::from_hours(RETENTION_DAYS * 24 - 1);

/// What a response of the change log invalidates.
#[derive(Debug)]
pub enum Reading {
    /// New changes, and the number of new entries that cannot be parsed.
    Changes { changes: Vec<Change>, unknown: usize },
    /// The changes cannot be determined: everything is invalidated.
    Unknown(GapReason),
}

/// Reason why changes cannot be determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The response has the API's maximum number of entries, or exceeds `upstream.max_body`.
    TooMany,
    /// The last poll was longer ago than the API keeps entries.
    Gap,
    /// The first poll used the gateway's clock, which differs from the API's.
    ClockSkew,
}

impl GapReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            GapReason::TooMany => "too_many",
            GapReason::Gap => "gap",
            GapReason::ClockSkew => "clock_skew",
        }
    }
}

/// Position in the change log.
pub struct Cursor {
    overlap: Duration,
    /// Time up to which the log was read.
    read_up_to: SystemTime,
    clock: Clock,
    /// Last known time of the API's clock, and when it was read.
    api: Option<(Instant, SystemTime)>,
    /// Digests of the entries' ids in the last response.
    seen: HashSet<blake3::Hash>,
}

/// Clock of a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Gateway,
    Api,
}

impl Cursor {
    /// Starts at `now`, by the gateway's clock: nothing older is cached.
    pub fn new(overlap: Duration, now: SystemTime) -> Self {
        Cursor { overlap, read_up_to: now, clock: Clock::Gateway, api: None, seen: HashSet::new() }
    }

    /// Continues at the position of another gateway, by the API's clock.
    pub fn resume_from(&mut self, read_up_to: SystemTime) {
        self.read_up_to = read_up_to;
        self.clock = Clock::Api;
        self.seen.clear();
    }

    /// Time up to which the log was read, by the API's clock if that is known.
    pub fn read_up_to(&self) -> SystemTime {
        self.read_up_to
    }

    /// Path and query of the next poll.
    pub fn target(&self) -> String {
        let since = self.read_up_to.checked_sub(self.overlap).unwrap_or(SystemTime::UNIX_EPOCH);
        format!("{PATH}?date={}Z", timestamp(since))
    }

    /// Moves past a response and returns what it invalidates.
    pub fn advance(&mut self, entries: Vec<Entry>, polled: PollTime) -> Reading {
        let gap = if entries.len() >= MAX_ENTRIES { Some(GapReason::TooMany) } else { self.gap(&polled) };
        let before = std::mem::take(&mut self.seen);
        let (mut changes, mut unknown) = (Vec::new(), 0);
        for entry in entries {
            let id = blake3::hash(entry.id.as_bytes());
            if self.seen.insert(id) && !before.contains(&id) {
                match entry.change {
                    Some(change) => changes.push(change),
                    None => unknown += 1,
                }
            }
        }
        self.read_up_to = polled.api_time;
        self.clock = Clock::Api;
        self.api = Some((polled.at, polled.api_time));
        gap.map_or(Reading::Changes { changes, unknown }, Reading::Unknown)
    }

    /// Moves past a response that exceeds `upstream.max_body`: it need not be read, since
    /// everything is invalidated.
    pub fn advance_past_overflow(&mut self, polled: PollTime) -> Reading {
        let api_time = self.api.map(|(at, api)| api + polled.at.saturating_duration_since(at));
        self.read_up_to = api_time.unwrap_or(polled.gateway_time);
        self.clock = api_time.map_or(Clock::Gateway, |_| Clock::Api);
        self.seen.clear();
        Reading::Unknown(GapReason::TooMany)
    }

    fn gap(&self, polled: &PollTime) -> Option<GapReason> {
        match self.clock {
            Clock::Gateway => (polled.skew() > self.overlap / 2).then_some(GapReason::ClockSkew),
            Clock::Api => {
                let since = polled.api_time.duration_since(self.read_up_to).unwrap_or_default();
                (since > GAP_MAX).then_some(GapReason::Gap)
            }
        }
    }
}

/// Time of a poll by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct PollTime {
    at: Instant,
    gateway_time: SystemTime,
    api_time: SystemTime,
}

impl PollTime {
    /// By the gateway's clocks, until a response states the API's.
    pub fn new(at: Instant, gateway_time: SystemTime) -> Self {
        PollTime { at, gateway_time, api_time: gateway_time }
    }

    /// Adds the API's time by the `Date` of the response, which arrived at `now`. The poll was sent
    /// before that `Date`, by the duration of the exchange at most. `Date` has whole seconds only.
    #[must_use]
    pub fn with_date(self, headers: &HeaderMap, now: Instant) -> Self {
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let took = now.saturating_duration_since(self.at);
        let api_time = date.and_then(|date| date.checked_sub(took)).unwrap_or(self.gateway_time);
        PollTime { api_time, ..self }
    }

    fn skew(&self) -> Duration {
        let ahead = self.api_time.duration_since(self.gateway_time);
        ahead.unwrap_or_else(|behind| behind.duration())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CustomerId;

    const OVERLAP: Duration = Duration::from_mins(1);

    /// 2025-11-24, 16:00.
    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000)
    }

    fn entry(id: &str) -> Entry {
        let change = CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").map(Change::Customer);
        Entry { id: id.to_owned(), change }
    }

    fn polled(at: Instant, after: u64) -> PollTime {
        let after = Duration::from_secs(after);
        PollTime::new(at + after, noon() + after)
    }

    fn counts(reading: &Reading) -> (usize, usize) {
        match reading {
            Reading::Changes { changes, unknown } => (changes.len(), *unknown),
            Reading::Unknown(reason) => panic!("{reason:?}"),
        }
    }

    #[test]
    fn poll_overlaps_the_previous_one_and_returns_new_entries() {
        let at = Instant::now();
        let mut cursor = Cursor::new(OVERLAP, noon());
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:00.000Z");
        assert_eq!(counts(&cursor.advance(vec![entry("1"), entry("2"), entry("2")], polled(at, 5))), (2, 0));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:05.000Z");
        let odd = Entry { id: "4".into(), change: None };
        assert_eq!(counts(&cursor.advance(vec![entry("2"), entry("3"), odd], polled(at, 10))), (1, 1));
        assert_eq!(counts(&cursor.advance(vec![entry("3")], polled(at, 15))), (0, 0));
        // After hours without a response, the poll covers all of them.
        assert_eq!(counts(&cursor.advance(vec![entry("5")], polled(at, 4 * 24 * 3600))), (1, 0));
    }

    #[test]
    fn gap_invalidates_everything_once() {
        let at = Instant::now();
        let many = || (0..MAX_ENTRIES).map(|n| entry(&n.to_string())).collect();
        let mut cursor = Cursor::new(OVERLAP, noon());
        assert!(matches!(cursor.advance(many(), polled(at, 5)), Reading::Unknown(GapReason::TooMany)));
        assert_eq!(counts(&cursor.advance(vec![entry("77"), entry("new")], polled(at, 10))), (1, 0));
        assert!(matches!(cursor.advance_past_overflow(polled(at, 15)), Reading::Unknown(GapReason::TooMany)));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:15.000Z");
        let late = 15 + 5 * 24 * 3600;
        assert!(matches!(cursor.advance(Vec::new(), polled(at, late)), Reading::Unknown(GapReason::Gap)));
        assert_eq!(counts(&cursor.advance(Vec::new(), polled(at, late + 5))), (0, 0));
    }

    #[test]
    fn cursor_resumes_from_another_gateways_position() {
        let at = Instant::now();
        let mut cursor = Cursor::new(OVERLAP, noon());
        cursor.resume_from(noon() + Duration::from_secs(3600));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T16:59:00.000Z");
        assert_eq!(counts(&cursor.advance(vec![entry("1")], polled(at, 3605))), (1, 0));
        assert_eq!(cursor.read_up_to(), noon() + Duration::from_secs(3605));
        cursor.resume_from(noon());
        assert!(matches!(cursor.advance(Vec::new(), polled(at, 5 * 24 * 3600)), Reading::Unknown(GapReason::Gap)));
    }

    #[test]
    fn clock_of_the_api_counts() {
        let at = Instant::now();
        let mut headers = HeaderMap::new();
        let response =
            |headers: &HeaderMap, after: u64| polled(at, after).with_date(headers, at + Duration::from_secs(after + 2));
        headers.insert(DATE, httpdate::fmt_http_date(noon() + Duration::from_secs(3607)).parse().unwrap());
        let mut cursor = Cursor::new(OVERLAP, noon());
        // An hour ahead of the gateway's clock: the first poll requested the wrong time.
        assert!(matches!(cursor.advance(Vec::new(), response(&headers, 5)), Reading::Unknown(GapReason::ClockSkew)));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T16:59:05.000Z");
        assert_eq!(counts(&cursor.advance(vec![entry("1")], response(&headers, 5))), (1, 0));
        // Without a valid date, the gateway's clock counts.
        headers.insert(DATE, "yesterday".parse().unwrap());
        cursor.advance(Vec::new(), response(&headers, 20));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:20.000Z");
    }
}
