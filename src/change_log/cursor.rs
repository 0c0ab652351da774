//! The position in the change log: the next request, and the changes of a response that are new.
//!
//! Times are those of the API's clock, from the `Date` of its responses, so that a wrong clock on
//! either side leaves no gap. Each poll overlaps the one before, for entries that the API writes
//! late; repeated entries are recognised by their ids.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::DATE;

use crate::api::{Change, Entry, MAX_ENTRIES, RETENTION_DAYS};
use crate::clock::timestamp;

/// Path of the change log in the API.
const PATH: &str = "/log/changeloglite";

/// Time since the last poll after which the API may have deleted entries: an hour less than it
/// keeps them.
const GAP_MIN: Duration = Duration::from_hours(RETENTION_DAYS * 24 - 1);

/// The result of a poll.
#[derive(Debug)]
pub enum NewChanges {
    /// The changes, and the number of new entries that are unknown.
    Known { changes: Vec<Change>, unknown: usize },
    /// Changes may be missing, so that everything must be invalidated.
    Incomplete(Incomplete),
}

/// The reason why changes may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// The response has as many entries as the API sends at most, or exceeds `upstream.max_body`.
    TooMany,
    /// The last poll is longer ago than the API keeps entries.
    Gap,
    /// The first poll used a clock that differs from the API's.
    ClockSkew,
}

impl Incomplete {
    pub const fn as_str(self) -> &'static str {
        match self {
            Incomplete::TooMany => "too_many",
            Incomplete::Gap => "gap",
            Incomplete::ClockSkew => "clock_skew",
        }
    }
}

/// The position in the change log.
pub struct Cursor {
    overlap: Duration,
    /// All entries before this time were read.
    position: SystemTime,
    clock: Clock,
    /// The API's time at an instant, from its last response.
    api_time: Option<(Instant, SystemTime)>,
    /// The digests of the ids in the last response.
    last_ids: HashSet<blake3::Hash>,
}

/// The clock that a time was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Own,
    Api,
}

impl Cursor {
    /// A cursor at `now`: older entries do not matter, since the cache is empty.
    pub fn new(overlap: Duration, now: SystemTime) -> Self {
        Cursor {
            overlap,
            position: now,
            clock: Clock::Own,
            api_time: None,
            last_ids: HashSet::new(),
        }
    }

    /// Moves to the position of another gateway, by the API's clock.
    pub fn move_to(&mut self, position: SystemTime) {
        self.position = position;
        self.clock = Clock::Api;
        self.last_ids.clear();
    }

    /// The time before which all entries were read, by the API's clock if it is known.
    pub fn position(&self) -> SystemTime {
        self.position
    }

    /// Path and query of the next poll.
    pub fn target(&self) -> String {
        let since = self.position.checked_sub(self.overlap).unwrap_or(SystemTime::UNIX_EPOCH);
        format!("{PATH}?date={}Z", timestamp(since))
    }

    /// Advances past a response to the request of `sent`.
    pub fn advance(&mut self, entries: Vec<Entry>, sent: RequestTime) -> NewChanges {
        let incomplete = if entries.len() >= MAX_ENTRIES {
            Some(Incomplete::TooMany)
        } else {
            self.gap_before(&sent)
        };
        let last_ids = std::mem::take(&mut self.last_ids);
        let mut changes = Vec::new();
        let mut unknown = 0;
        for entry in entries {
            let id = blake3::hash(entry.id.as_bytes());
            if self.last_ids.insert(id) && !last_ids.contains(&id) {
                match entry.change {
                    Some(change) => changes.push(change),
                    None => unknown += 1,
                }
            }
        }
        self.position = sent.by_api;
        self.clock = Clock::Api;
        self.api_time = Some((sent.at, sent.by_api));
        incomplete.map_or(NewChanges::Known { changes, unknown }, NewChanges::Incomplete)
    }

    /// Advances past a response that exceeded `upstream.max_body`. It counts as read, since
    /// everything is invalidated.
    pub fn skip_oversized(&mut self, sent: RequestTime) -> NewChanges {
        let elapsed = |since: Instant| sent.at.saturating_duration_since(since);
        let by_api = self.api_time.map(|(instant, time)| time + elapsed(instant));
        self.position = by_api.unwrap_or(sent.by_own);
        self.clock = by_api.map_or(Clock::Own, |_| Clock::Api);
        self.last_ids.clear();
        NewChanges::Incomplete(Incomplete::TooMany)
    }

    fn gap_before(&self, sent: &RequestTime) -> Option<Incomplete> {
        match self.clock {
            Clock::Own => (sent.skew() > self.overlap / 2).then_some(Incomplete::ClockSkew),
            Clock::Api => {
                let elapsed = sent.by_api.duration_since(self.position).unwrap_or_default();
                (elapsed > GAP_MIN).then_some(Incomplete::Gap)
            }
        }
    }
}

/// The time of a request, by each clock.
#[derive(Clone, Copy, Debug)]
pub struct RequestTime {
    at: Instant,
    by_own: SystemTime,
    by_api: SystemTime,
}

impl RequestTime {
    /// The time by the own clocks, until a response shows the API's.
    pub fn new(at: Instant, by_own: SystemTime) -> Self {
        RequestTime { at, by_own, by_api: by_own }
    }

    /// Adds the API's time from the `Date` of a response that arrived at `now`. The latest time
    /// that it allows: the request was sent before the response was made, and `Date` has whole
    /// seconds.
    #[must_use]
    pub fn with_response(self, headers: &HeaderMap, now: Instant) -> Self {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let elapsed = now.saturating_duration_since(self.at);
        let by_api = date.and_then(|date| date.checked_sub(elapsed)).unwrap_or(self.by_own);
        RequestTime { by_api, ..self }
    }

    fn skew(&self) -> Duration {
        let ahead = self.by_api.duration_since(self.by_own);
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

    fn sent(at: Instant, after: u64) -> RequestTime {
        let after = Duration::from_secs(after);
        RequestTime::new(at + after, noon() + after)
    }

    fn counts(new: &NewChanges) -> (usize, usize) {
        match new {
            NewChanges::Known { changes, unknown } => (changes.len(), *unknown),
            NewChanges::Incomplete(incomplete) => panic!("{incomplete:?}"),
        }
    }

    #[test]
    fn polls_overlap_and_only_new_entries_count() {
        let at = Instant::now();
        let mut cursor = Cursor::new(OVERLAP, noon());
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:00.000Z");
        assert_eq!(
            counts(&cursor.advance(vec![entry("1"), entry("2"), entry("2")], sent(at, 5))),
            (2, 0)
        );
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:05.000Z");
        let unknown = Entry { id: "4".into(), change: None };
        assert_eq!(
            counts(&cursor.advance(vec![entry("2"), entry("3"), unknown], sent(at, 10))),
            (1, 1)
        );
        assert_eq!(counts(&cursor.advance(vec![entry("3")], sent(at, 15))), (0, 0));
        // After days without a response, the poll still covers all of them.
        assert_eq!(counts(&cursor.advance(vec![entry("5")], sent(at, 4 * 24 * 3600))), (1, 0));
    }

    #[test]
    fn missing_entries_invalidate_everything_once() {
        let at = Instant::now();
        let many = || (0..MAX_ENTRIES).map(|n| entry(&n.to_string())).collect();
        let mut cursor = Cursor::new(OVERLAP, noon());
        assert!(matches!(
            cursor.advance(many(), sent(at, 5)),
            NewChanges::Incomplete(Incomplete::TooMany)
        ));
        assert_eq!(counts(&cursor.advance(vec![entry("77"), entry("new")], sent(at, 10))), (1, 0));
        assert!(matches!(
            cursor.skip_oversized(sent(at, 15)),
            NewChanges::Incomplete(Incomplete::TooMany)
        ));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:15.000Z");
        let late = 15 + 5 * 24 * 3600;
        assert!(matches!(
            cursor.advance(Vec::new(), sent(at, late)),
            NewChanges::Incomplete(Incomplete::Gap)
        ));
        assert_eq!(counts(&cursor.advance(Vec::new(), sent(at, late + 5))), (0, 0));
    }

    #[test]
    fn cursor_continues_from_another_gateways_position() {
        let at = Instant::now();
        let mut cursor = Cursor::new(OVERLAP, noon());
        cursor.move_to(noon() + Duration::from_secs(3600));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T16:59:00.000Z");
        assert_eq!(counts(&cursor.advance(vec![entry("1")], sent(at, 3605))), (1, 0));
        assert_eq!(cursor.position(), noon() + Duration::from_secs(3605));
        cursor.move_to(noon());
        assert!(matches!(
            cursor.advance(Vec::new(), sent(at, 5 * 24 * 3600)),
            NewChanges::Incomplete(Incomplete::Gap)
        ));
    }

    #[test]
    fn api_clock_decides_the_position() {
        let at = Instant::now();
        let mut headers = HeaderMap::new();
        let response = |headers: &HeaderMap, after: u64| {
            sent(at, after).with_response(headers, at + Duration::from_secs(after + 2))
        };
        headers.insert(
            DATE,
            httpdate::fmt_http_date(noon() + Duration::from_secs(3607)).parse().unwrap(),
        );
        let mut cursor = Cursor::new(OVERLAP, noon());
        // The API is an hour ahead: the first poll requested the wrong time.
        assert!(matches!(
            cursor.advance(Vec::new(), response(&headers, 5)),
            NewChanges::Incomplete(Incomplete::ClockSkew)
        ));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T16:59:05.000Z");
        assert_eq!(counts(&cursor.advance(vec![entry("1")], response(&headers, 5))), (1, 0));
        // Without a valid date, the own clock decides.
        headers.insert(DATE, "yesterday".parse().unwrap());
        cursor.advance(Vec::new(), response(&headers, 20));
        assert_eq!(cursor.target(), "/log/changeloglite?date=2025-11-24T15:59:20.000Z");
    }
}
