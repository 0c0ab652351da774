//! Handles of series, found once: the library's own way to a series hashes its labels and takes a lock for every count.
//!
//! A series is made when it is first counted, as the library does, so that there are none for what never happened.

use std::array::from_fn;
use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::record::{CACHES, METHODS, ROUTES, Record};

/// The first number that a status can have, and how many there are (RFC 9110 section 15; `StatusCode` takes no others).
const FIRST_STATUS: u16 = 100;
const STATUSES: usize = 900;

/// Values of a family's labels that are found by comparing; those beyond are found in the library's way.
const VALUES: usize = 32;

/// What every series of a family counts on, and how the library finds it by the values of its labels.
type Series<H, const LABELS: usize> = Box<dyn Fn([&'static str; LABELS]) -> H + Send + Sync>;

/// A family whose labels have words of this program as values.
pub struct ByValue<H, const LABELS: usize = 1> {
    series: Series<H, LABELS>,
    known: [OnceLock<([&'static str; LABELS], H)>; VALUES],
}

impl<H, const LABELS: usize> ByValue<H, LABELS> {
    fn new(series: impl Fn([&'static str; LABELS]) -> H + Send + Sync + 'static) -> Self {
        ByValue { series: Box::new(series), known: from_fn(|_| OnceLock::new()) }
    }

    /// Counts on the series with these values.
    fn count(&self, values: [&'static str; LABELS], count: impl FnOnce(&H)) {
        for slot in &self.known {
            let (known, handle) = slot.get_or_init(|| (values, (self.series)(values)));
            if *known == values {
                return count(handle);
            }
        }
        count(&(self.series)(values));
    }
}

impl<const LABELS: usize> ByValue<IntCounter, LABELS> {
    pub fn counters(family: IntCounterVec) -> Self {
        ByValue::new(move |values| family.with_label_values(&values))
    }

    pub fn inc(&self, values: [&'static str; LABELS]) {
        self.count(values, IntCounter::inc);
    }

    pub fn inc_by(&self, values: [&'static str; LABELS], count: u64) {
        self.count(values, |counter| counter.inc_by(count));
    }
}

impl<const LABELS: usize> ByValue<Histogram, LABELS> {
    pub fn histograms(family: HistogramVec) -> Self {
        ByValue::new(move |values| family.with_label_values(&values))
    }

    pub fn observe(&self, values: [&'static str; LABELS], duration: Duration) {
        self.count(values, |histogram| histogram.observe(duration.as_secs_f64()));
    }
}

/// One status's counters: by route, method and cache.
type OfStatus = [[[OnceLock<IntCounter>; CACHES.len()]; METHODS.len()]; ROUTES.len()];

/// `requests_total`, a counter for each of its labels' values.
pub struct Requests {
    family: IntCounterVec,
    /// By status; a table is made when its status is first answered with.
    tables: Box<[OnceLock<Box<OfStatus>>; STATUSES]>,
}

impl Requests {
    pub fn new(family: IntCounterVec) -> Self {
        Requests { family, tables: Box::new(from_fn(|_| OnceLock::new())) }
    }

    pub fn of(&self, record: &Record) -> &IntCounter {
        let (route, method, cache) = (record.route as usize, record.method_index(), record.cache_index());
        let table = self.tables[Self::place(record.status)]
            .get_or_init(|| Box::new(from_fn(|_| from_fn(|_| from_fn(|_| OnceLock::new())))));
        table[route][method][cache].get_or_init(|| {
            self.family.with_label_values(&[ROUTES[route], METHODS[method], record.status.as_str(), CACHES[cache]])
        })
    }

    /// Within the table, whatever a later version of `http` takes for a status.
    fn place(status: StatusCode) -> usize {
        usize::from(status.as_u16().saturating_sub(FIRST_STATUS)).min(STATUSES - 1)
    }
}

/// `request_duration_seconds`, a histogram for each of its labels' values.
pub struct Durations {
    family: HistogramVec,
    known: [[OnceLock<Histogram>; CACHES.len()]; ROUTES.len()],
}

impl Durations {
    pub fn new(family: HistogramVec) -> Self {
        Durations { family, known: from_fn(|_| from_fn(|_| OnceLock::new())) }
    }

    pub fn of(&self, record: &Record) -> &Histogram {
        let (route, cache) = (record.route as usize, record.cache_index());
        self.known[route][cache].get_or_init(|| self.family.with_label_values(&[ROUTES[route], CACHES[cache]]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::Method;
    use prometheus::{Opts, Registry, TextEncoder};

    use super::super::metrics::Metrics;
    use super::super::record::Route;
    use super::*;
    use crate::reply::{CacheStatus, ForwardReason};

    /// What the library's own way counts, in its text.
    fn text_of(family: &IntCounterVec) -> String {
        let registry = Registry::new();
        registry.register(Box::new(family.clone())).unwrap();
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn every_request_is_counted_where_the_librarys_own_way_counts_it() {
        let metrics = Metrics::new().unwrap();
        let labels = ["route", "method", "status", "cache"];
        let options = Opts::new(
            "telecomx_gateway_requests_total",
            "Requests with a response, by route, method, status and cache result.",
        );
        let plainly = IntCounterVec::new(options, &labels).unwrap();
        let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "MADEUP"];
        let caches = [
            None,
            Some(CacheStatus::Hit { ttl: 1 }),
            Some(CacheStatus::Revalidating { ttl: -1 }),
            Some(CacheStatus::StaleIfError { ttl: -1 }),
            Some(CacheStatus::Miss { why: ForwardReason::UriMiss, stored: true }),
            Some(CacheStatus::Collapsed),
            Some(CacheStatus::Bypass),
        ];
        let mut record = Record::begin(Instant::now());
        for status in [100, 200, 204, 299, 304, 401, 404, 451, 502, 599, 600, 999] {
            for method in methods {
                for route in [Route::CustomerName, Route::Forward, Route::Blocked] {
                    for cache in caches {
                        record.status = StatusCode::from_u16(status).unwrap();
                        record.method = Method::from_bytes(method.as_bytes()).unwrap();
                        (record.route, record.cache) = (route, cache);
                        metrics.answered(&record, Duration::from_millis(1));
                        let method = if method == "MADEUP" { "OTHER" } else { method };
                        let cache = cache.map_or("none", CacheStatus::as_str);
                        let values = [route.as_str(), method, record.status.as_str(), cache];
                        plainly.with_label_values(&values).inc();
                    }
                }
            }
        }
        let text = metrics.text().unwrap();
        let counted: Vec<&str> =
            text.lines().filter(|line| line.starts_with("telecomx_gateway_requests_total{")).collect();
        let wanted = text_of(&plainly);
        let wanted: Vec<&str> = wanted.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(counted.len(), 12 * 10 * 3 * 6);
        assert_eq!(counted, wanted);
        let durations =
            text.lines().filter(|line| line.starts_with("telecomx_gateway_request_duration_seconds_count{"));
        assert_eq!(durations.count(), 3 * 6);
    }

    #[test]
    fn more_values_than_there_are_slots_are_counted_too() {
        const WORDS: [&str; 20] =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
        let family = IntCounterVec::new(Opts::new("words", "Words."), &["word", "way"]).unwrap();
        let words = ByValue::counters(family.clone());
        for round in 0..3 {
            for word in WORDS {
                for way in ["one", "other"] {
                    words.inc([word, way]);
                    assert_eq!(family.with_label_values(&[word, way]).get(), round + 1, "{word} {way}");
                }
            }
        }
    }
}
