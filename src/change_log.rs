//! Changes made elsewhere, as far as the API's log tells of them: what to ask for next, and what an answer says.
//!
//! Times are those of the API's clock, from the `Date` of its answers, so that a clock that is wrong here or there makes no
//! gap. Each reading goes back by an overlap beyond the one before, for entries that are written late; what an answer
//! brings again is known by its id.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::DATE;

use crate::api::{Change, Entry, MAX_ENTRIES, RETENTION_DAYS};
use crate::clock::timestamp;

/// The API's own.
const PATH: &str = "/log/changeloglite";

/// Once nothing was read for so long, entries may be gone unread. An hour before they are.
const GAP: Duration = Duration::from_hours(RETENTION_DAYS * 24 - 1);

/// What is to be obeyed.
#[derive(Debug)]
pub enum Obey {
    /// These, of an answer with that many entries which could not be understood.
    Changes { changes: Vec<Change>, unknown: usize },
    /// It cannot be known what changed.
    Everything(Missed),
}

/// Why it cannot be known what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// As many entries as the API gives at most, or more than `upstream.max_body`.
    TooMany,
    /// Nothing was read for longer than the API keeps entries.
    Gap,
    /// The first reading asked by a clock that differs from the API's.
    ClockSkew,
}

impl Missed {
    pub const fn as_str(self) -> &'static str {
        match self {
            Missed::TooMany => "too_many",
            Missed::Gap => "gap",
            Missed::ClockSkew => "clock_skew",
        }
    }
}

/// How far the log was read.
pub struct Progress {
    overlap: Duration,
    /// Everything up to here.
    read_up_to: SystemTime,
    by: Clock,
    /// What the API's clock said last, and when.
    api: Option<(Instant, SystemTime)>,
    /// Ids of the last answer, by their digests.
    seen: HashSet<blake3::Hash>,
}

/// Whose clock a time was told by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Ours,
    TheApis,
}

impl Progress {
    /// Nothing older than `now` is stored.
    pub fn new(overlap: Duration, now: SystemTime) -> Self {
        Progress { overlap, read_up_to: now, by: Clock::Ours, api: None, seen: HashSet::new() }
    }

    /// Goes on from where another one read up to, by the API's clock.
    pub fn go_on_from(&mut self, read_up_to: SystemTime) {
        (self.read_up_to, self.by) = (read_up_to, Clock::TheApis);
        self.seen.clear();
    }

    /// Everything up to here was read, by the API's clock if that is known.
    pub fn read_up_to(&self) -> SystemTime {
        self.read_up_to
    }

    /// Path and query of the next reading.
    pub fn target(&self) -> String {
        let since = self.read_up_to.checked_sub(self.overlap).unwrap_or(SystemTime::UNIX_EPOCH);
        format!("{PATH}?date={}Z", timestamp(since))
    }

    /// An answer came to a question that was asked at `asked`, by the API's clock and by ours.
    pub fn heard(&mut self, entries: Vec<Entry>, asked: Asked) -> Obey {
        let missed = if entries.len() >= MAX_ENTRIES { Some(Missed::TooMany) } else { self.missed(&asked) };
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
        (self.read_up_to, self.by) = (asked.by_the_api, Clock::TheApis);
        self.api = Some((asked.at, asked.by_the_api));
        missed.map_or(Obey::Changes { changes, unknown }, Obey::Everything)
    }

    /// An answer was larger than is taken: it is as if it had been read, for everything is dropped.
    pub fn overflowed(&mut self, asked: Asked) -> Obey {
        let by_the_api = self.api.map(|(at, api)| api + asked.at.saturating_duration_since(at));
        self.read_up_to = by_the_api.unwrap_or(asked.by_us);
        self.by = by_the_api.map_or(Clock::Ours, |_| Clock::TheApis);
        self.seen.clear();
        Obey::Everything(Missed::TooMany)
    }

    fn missed(&self, asked: &Asked) -> Option<Missed> {
        match self.by {
            Clock::Ours => (asked.skew() > self.overlap / 2).then_some(Missed::ClockSkew),
            Clock::TheApis => {
                let since = asked.by_the_api.duration_since(self.read_up_to).unwrap_or_default();
                (since > GAP).then_some(Missed::Gap)
            }
        }
    }
}

/// When a question was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    at: Instant,
    by_us: SystemTime,
    by_the_api: SystemTime,
}

impl Asked {
    /// By our clocks alone, until an answer tells more.
    pub fn at(at: Instant, by_us: SystemTime) -> Self {
        Asked { at, by_us, by_the_api: by_us }
    }

    /// By the `Date` of the answer, which came at `now`: at the latest, it was made then and the question asked before it; and
    /// it tells whole seconds only.
    #[must_use]
    pub fn answered(self, headers: &HeaderMap, now: Instant) -> Self {
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let took = now.saturating_duration_since(self.at);
        let by_the_api = date.and_then(|date| date.checked_sub(took)).unwrap_or(self.by_us);
        Asked { by_the_api, ..self }
    }

    fn skew(&self) -> Duration {
        let ahead = self.by_the_api.duration_since(self.by_us);
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

    fn asked(at: Instant, after: u64) -> Asked {
        let after = Duration::from_secs(after);
        Asked::at(at + after, noon() + after)
    }

    fn obeyed(obey: &Obey) -> (usize, usize) {
        match obey {
            Obey::Changes { changes, unknown } => (changes.len(), *unknown),
            Obey::Everything(missed) => panic!("{missed:?}"),
        }
    }

    #[test]
    fn each_reading_goes_back_by_the_overlap_and_obeys_what_is_new() {
        let at = Instant::now();
        let mut progress = Progress::new(OVERLAP, noon());
        assert_eq!(progress.target(), "/log/changeloglite?date=2025-11-24T15:59:00.000Z");
        assert_eq!(obeyed(&progress.heard(vec![entry("1"), entry("2"), entry("2")], asked(at, 5))), (2, 0));
        assert_eq!(progress.target(), "/log/changeloglite?date=2025-11-24T15:59:05.000Z");
        let odd = Entry { id: "4".into(), change: None };
        assert_eq!(obeyed(&progress.heard(vec![entry("2"), entry("3"), odd], asked(at, 10))), (1, 1));
        assert_eq!(obeyed(&progress.heard(vec![entry("3")], asked(at, 15))), (0, 0));
        // After hours without an answer, all of them are asked for.
        assert_eq!(obeyed(&progress.heard(vec![entry("5")], asked(at, 4 * 24 * 3600))), (1, 0));
    }

    #[test]
    fn what_cannot_be_known_drops_everything_once() {
        let at = Instant::now();
        let many = || (0..MAX_ENTRIES).map(|n| entry(&n.to_string())).collect();
        let mut progress = Progress::new(OVERLAP, noon());
        assert!(matches!(progress.heard(many(), asked(at, 5)), Obey::Everything(Missed::TooMany)));
        assert_eq!(obeyed(&progress.heard(vec![entry("77"), entry("new")], asked(at, 10))), (1, 0));
        assert!(matches!(progress.overflowed(asked(at, 15)), Obey::Everything(Missed::TooMany)));
        assert_eq!(progress.target(), "/log/changeloglite?date=2025-11-24T15:59:15.000Z");
        let late = 15 + 5 * 24 * 3600;
        assert!(matches!(progress.heard(Vec::new(), asked(at, late)), Obey::Everything(Missed::Gap)));
        assert_eq!(obeyed(&progress.heard(Vec::new(), asked(at, late + 5))), (0, 0));
    }

    #[test]
    fn another_ones_reading_is_gone_on_from() {
        let at = Instant::now();
        let mut progress = Progress::new(OVERLAP, noon());
        progress.go_on_from(noon() + Duration::from_secs(3600));
        assert_eq!(progress.target(), "/log/changeloglite?date=2025-11-24T16:59:00.000Z");
        assert_eq!(obeyed(&progress.heard(vec![entry("1")], asked(at, 3605))), (1, 0));
        assert_eq!(progress.read_up_to(), noon() + Duration::from_secs(3605));
        progress.go_on_from(noon());
        assert!(matches!(progress.heard(Vec::new(), asked(at, 5 * 24 * 3600)), Obey::Everything(Missed::Gap)));
    }

    #[test]
    fn the_apis_clock_counts() {
        let at = Instant::now();
        let mut headers = HeaderMap::new();
        let answer =
            |headers: &HeaderMap, after: u64| asked(at, after).answered(headers, at + Duration::from_secs(after + 2));
        headers.insert(DATE, httpdate::fmt_http_date(noon() + Duration::from_secs(3607)).parse().unwrap());
        let mut progress = Progress::new(OVERLAP, noon());
        // An hour ahead of ours: what the first reading asked for was not what it meant.
        assert!(matches!(progress.heard(Vec::new(), answer(&headers, 5)), Obey::Everything(Missed::ClockSkew)));
        assert_eq!(progress.target(), "/log/changeloglite?date=2025-11-24T16:59:05.000Z");
        assert_eq!(obeyed(&progress.heard(vec![entry("1")], answer(&headers, 5))), (1, 0));
        // Without a date, or with one that is none, ours has to do.
        headers.insert(DATE, "yesterday".parse().unwrap());
        progress.heard(Vec::new(), answer(&headers, 20));
        assert_eq!(progress.target(), "/log/changeloglite?date=2025-11-24T15:59:20.000Z");
    }
}
