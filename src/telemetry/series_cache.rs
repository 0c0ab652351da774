//! Cached handles of metric series. The library hashes the labels and takes a lock for every count.

use std::array::from_fn;
use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::record::{CACHES, ERROR_SOURCES, ErrorSource, METHODS, ROUTES, Record, Route};

/// The lowest status, and the number of statuses that [`StatusCode`] accepts (RFC 9110 section 15).
const STATUS_MIN: u16 = 100;
const STATUS_COUNT: usize = 900;

/// Series of a family whose handles are cached; the library looks up the others.
const CACHED_MAX: usize = 32;

/// The library's lookup of a series by the values of its labels.
type Lookup<H, const LABELS: usize> = Box<dyn Fn([&'static str; LABELS]) -> H + Send + Sync>;

/// A metric family whose label values are constants of this program.
pub struct SeriesCache<H, const LABELS: usize = 1> {
    lookup: Lookup<H, LABELS>,
    cached: [OnceLock<([&'static str; LABELS], H)>; CACHED_MAX],
}

impl<H, const LABELS: usize> SeriesCache<H, LABELS> {
    fn new(lookup: impl Fn([&'static str; LABELS]) -> H + Send + Sync + 'static) -> Self {
        SeriesCache { lookup: Box::new(lookup), cached: from_fn(|_| OnceLock::new()) }
    }

    /// Creates series at 0.
    pub fn create(&self, series: impl IntoIterator<Item = [&'static str; LABELS]>) {
        for values in series {
            self.with_series(values, |_| ());
        }
    }

    /// Calls `count` with the handle of the series with these label values.
    fn with_series(&self, values: [&'static str; LABELS], count: impl FnOnce(&H)) {
        for slot in &self.cached {
            let (cached, handle) = slot.get_or_init(|| (values, (self.lookup)(values)));
            if *cached == values {
                return count(handle);
            }
        }
        count(&(self.lookup)(values));
    }
}

impl<const LABELS: usize> SeriesCache<IntCounter, LABELS> {
    pub fn counters(family: IntCounterVec) -> Self {
        SeriesCache::new(move |values| family.with_label_values(&values))
    }

    pub fn inc(&self, values: [&'static str; LABELS]) {
        self.with_series(values, IntCounter::inc);
    }

    pub fn inc_by(&self, values: [&'static str; LABELS], count: u64) {
        self.with_series(values, |counter| counter.inc_by(count));
    }
}

impl<const LABELS: usize> SeriesCache<Histogram, LABELS> {
    pub fn histograms(family: HistogramVec) -> Self {
        SeriesCache::new(move |values| family.with_label_values(&values))
    }

    pub fn observe(&self, values: [&'static str; LABELS], duration: Duration) {
        self.with_series(values, |histogram| histogram.observe(duration.as_secs_f64()));
    }
}

/// The counters of one route and method, by cache result and source of the error.
type CacheTable = [[OnceLock<IntCounter>; ERROR_SOURCES.len()]; CACHES.len()];

/// The counters of one status, by route and method.
type StatusTable = [[CacheTable; METHODS.len()]; ROUTES.len()];

/// `requests_total`.
pub struct RequestCounters {
    family: IntCounterVec,
    /// By status. A table is allocated at the first response with its status.
    tables: Box<[OnceLock<Box<StatusTable>>; STATUS_COUNT]>,
}

impl RequestCounters {
    pub fn new(family: IntCounterVec) -> Self {
        RequestCounters { family, tables: Box::new(from_fn(|_| OnceLock::new())) }
    }

    pub fn for_record(&self, record: &Record) -> &IntCounter {
        let (route, method, cache) =
            (record.route as usize, record.method_index(), record.cache_index());
        let source = record.error_source() as usize;
        let table = self.tables[Self::table_index(record.status)].get_or_init(|| {
            Box::new(from_fn(|_| from_fn(|_| from_fn(|_| from_fn(|_| OnceLock::new())))))
        });
        table[route][method][cache][source].get_or_init(|| {
            self.family.with_label_values(&[
                ROUTES[route],
                METHODS[method],
                record.status.as_str(),
                CACHES[cache],
                ERROR_SOURCES[source],
            ])
        })
    }

    /// Creates the usual series at 0, so that ratios have a value and `increase` sees the first
    /// event.
    pub fn create_usual_series(&self) {
        let create = |route: Route,
                      methods: &[&str],
                      statuses: &[&str],
                      cache: &str,
                      source: ErrorSource| {
            let source = ERROR_SOURCES[source as usize];
            for method in methods {
                for status in statuses {
                    self.family.with_label_values(&[route.as_str(), method, status, cache, source]);
                }
            }
        };
        let failures = ["500", "502", "503", "504"];
        let names = ["GET", "HEAD"];
        for cache in ["hit", "stale"] {
            create(Route::CustomerName, &names, &["200", "304"], cache, ErrorSource::None);
        }
        for cache in ["miss", "collapsed", "tier", "bypass"] {
            create(Route::CustomerName, &names, &["200"], cache, ErrorSource::None);
        }
        let refused = ["400", "401", "403", "404", "429", "499"];
        create(Route::CustomerName, &names, &refused, "none", ErrorSource::None);
        create(Route::CustomerName, &names, &failures, "none", ErrorSource::Gateway);
        create(Route::CustomerName, &names, &failures, "miss", ErrorSource::Api);
        let forwarded = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        let statuses = ["200", "201", "204", "400", "401", "403", "404", "429"];
        create(Route::Forward, &forwarded, &statuses, "bypass", ErrorSource::None);
        create(Route::Forward, &forwarded, &failures, "bypass", ErrorSource::Api);
        create(Route::Forward, &forwarded, &failures, "none", ErrorSource::Gateway);
        create(Route::Forward, &forwarded, &["499"], "none", ErrorSource::None);
        create(Route::Blocked, &["GET"], &["400", "403"], "none", ErrorSource::None);
        create(Route::None, &["GET"], &["400", "408", "431"], "none", ErrorSource::None);
        create(Route::None, &["GET"], &["503"], "none", ErrorSource::Gateway);
    }

    /// In bounds even if a later version of `http` accepts other statuses.
    fn table_index(status: StatusCode) -> usize {
        usize::from(status.as_u16().saturating_sub(STATUS_MIN)).min(STATUS_COUNT - 1)
    }
}

/// `request_duration_seconds`.
pub struct RequestDurations {
    family: HistogramVec,
    cached: [[OnceLock<Histogram>; CACHES.len()]; ROUTES.len()],
}

impl RequestDurations {
    pub fn new(family: HistogramVec) -> Self {
        RequestDurations { family, cached: from_fn(|_| from_fn(|_| OnceLock::new())) }
    }

    pub fn for_record(&self, record: &Record) -> &Histogram {
        let (route, cache) = (record.route as usize, record.cache_index());
        self.cached[route][cache]
            .get_or_init(|| self.family.with_label_values(&[ROUTES[route], CACHES[cache]]))
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

    /// The text exposition of a family that is counted by the library alone.
    fn text_of(family: &IntCounterVec) -> String {
        let registry = Registry::new();
        registry.register(Box::new(family.clone())).unwrap();
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn request_counters_equal_the_librarys_lookup() {
        let metrics = Metrics::new().unwrap();
        let labels = ["route", "method", "status", "cache", "error_source"];
        let options = Opts::new(
            "telecomx_gateway_requests_total",
            "Requests with a response, by route, method, status, cache result and source of a 5xx response.",
        );
        let expected = IntCounterVec::new(options, &labels).unwrap();
        let methods = [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT",
            "MADEUP",
        ];
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
                        metrics.record_request(&record, Duration::from_millis(1));
                        let method = if method == "MADEUP" { "OTHER" } else { method };
                        let cache = cache.map_or("none", CacheStatus::as_str);
                        let source = if status >= 500 { "api" } else { "none" };
                        let values =
                            [route.as_str(), method, record.status.as_str(), cache, source];
                        expected.with_label_values(&values).inc();
                    }
                }
            }
        }
        let text = metrics.text().unwrap();
        let is_counted = |line: &&str| {
            !line.ends_with(" 0") && line.starts_with("telecomx_gateway_requests_total{")
        };
        let counted: Vec<&str> = text.lines().filter(is_counted).collect();
        let expected = text_of(&expected);
        let expected: Vec<&str> = expected.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(counted.len(), 12 * 10 * 3 * 6);
        assert_eq!(counted, expected);
        let durations = text
            .lines()
            .filter(|line| line.starts_with("telecomx_gateway_request_duration_seconds_count{"));
        assert_eq!(durations.filter(|line| !line.ends_with(" 0")).count(), 3 * 6);
    }

    #[test]
    fn more_series_than_cached_are_counted() {
        const WORDS: [&str; 20] = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
            "r", "s", "t",
        ];
        let family = IntCounterVec::new(Opts::new("words", "Words."), &["word", "kind"]).unwrap();
        let words = SeriesCache::counters(family.clone());
        for round in 0..3 {
            for word in WORDS {
                for kind in ["one", "other"] {
                    words.inc([word, kind]);
                    assert_eq!(
                        family.with_label_values(&[word, kind]).get(),
                        round + 1,
                        "{word} {kind}"
                    );
                }
            }
        }
    }
}
