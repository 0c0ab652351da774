//! Samples of the last 15 minutes for the status page. Every few seconds the counters are read, and
//! their increase is stored in a ring of fixed length. No request takes part in it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::{Value, json};

use super::record::is_hit;

/// Time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Samples in the ring: 15 minutes.
const SAMPLES_MAX: usize = 180;

/// Samples of the cards and the table of the last five minutes.
const RECENT_SAMPLES: usize = 60;

/// Samples of the last minute.
const MINUTE_SAMPLES: usize = 12;

/// A histogram of durations: one count per bucket, not cumulative; the last one counts durations
/// above every bound.
#[derive(Clone, Debug, Default, PartialEq)]
struct Durations(Vec<u64>);

impl Durations {
    fn add(&mut self, metric: &Metric) {
        let histogram = metric.get_histogram();
        let cumulative = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count());
        let mut previous = 0;
        let counts = cumulative.chain([histogram.get_sample_count()]).map(|count| {
            let in_bucket = count.saturating_sub(previous);
            previous = count;
            in_bucket
        });
        self.merge(&Durations(counts.collect()));
    }

    fn merge(&mut self, other: &Durations) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(all, more)| *all += more);
    }

    fn since(&self, before: &Durations) -> Durations {
        let before = before.0.iter().chain(std::iter::repeat(&0));
        Durations(self.0.iter().zip(before).map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Computes a quantile as `histogram_quantile` of Prometheus does: linear within a bucket, and
    /// the last bound for durations above it.
    fn quantile(&self, bounds: &[f64], quantile: f64) -> Option<f64> {
        let rank = quantile * self.count() as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (count, upper) in self.0.iter().zip(bounds) {
            let count = *count as f64;
            if count > 0.0 && below + count >= rank {
                return Some(lower + (upper - lower) * (rank - below) / count);
            }
            below += count;
            lower = *upper;
        }
        (self.count() > 0).then_some(lower)
    }

    fn json(&self, bounds: &[f64]) -> Value {
        let at = |quantile| self.quantile(bounds, quantile);
        json!({"count": self.count(), "p50_seconds": at(0.5), "p90_seconds": at(0.9), "p99_seconds": at(0.99)})
    }
}

/// Labels of failed requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Failure {
    status: String,
    route: String,
}

/// The outcomes of the requests of the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentOutcomes {
    pub requests: u64,
    /// Responses with a 5xx status.
    pub failed: u64,
}

/// Counts since the start of the process, or between two samples.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    requests: u64,
    /// Responses with a 5xx status.
    failed: u64,
    /// The same by route and status.
    failures: BTreeMap<Failure, u64>,
    /// As in `/stats`: hits include stale and shared responses, misses include collapsed requests.
    hits: u64,
    misses: u64,
    upstream_errors: u64,
    redaction_failures: u64,
    hit: Durations,
    miss: Durations,
    forwarded: Durations,
    upstream: Durations,
}

impl Counts {
    /// Reads the counts from the metric families of `/metrics`.
    fn from_families(families: &[MetricFamily]) -> Self {
        let mut counts = Counts::default();
        for family in families {
            let metrics = family.get_metric();
            let sum = || metrics.iter().map(counter_value).sum();
            match family.name() {
                "telecomx_gateway_requests_total" => {
                    metrics.iter().for_each(|metric| counts.add_requests(metric))
                }
                "telecomx_gateway_request_duration_seconds" => {
                    metrics.iter().for_each(|metric| counts.add_durations(metric));
                }
                "telecomx_gateway_upstream_request_duration_seconds" => {
                    metrics.iter().for_each(|metric| counts.upstream.add(metric));
                }
                "telecomx_gateway_upstream_errors_total" => counts.upstream_errors = sum(),
                "telecomx_gateway_redaction_failures_total" => counts.redaction_failures = sum(),
                _ => {}
            }
        }
        counts
    }

    fn add_requests(&mut self, metric: &Metric) {
        let count = counter_value(metric);
        if count == 0 {
            return;
        }
        self.requests += count;
        let status = label_value(metric, "status");
        if status.starts_with('5') {
            self.failed += count;
            let failure =
                Failure { status: status.into(), route: label_value(metric, "route").into() };
            *self.failures.entry(failure).or_default() += count;
        }
        match is_hit(label_value(metric, "cache")) {
            Some(true) => self.hits += count,
            Some(false) => self.misses += count,
            None => {}
        }
    }

    fn add_durations(&mut self, metric: &Metric) {
        match (label_value(metric, "route"), is_hit(label_value(metric, "cache"))) {
            ("customer_name", Some(true)) => self.hit.add(metric),
            ("customer_name", Some(false)) => self.miss.add(metric),
            ("forward", _) => self.forwarded.add(metric),
            _ => {}
        }
    }

    fn failures_since(&self, before: &Counts) -> BTreeMap<Failure, u64> {
        let increase = |(failure, count): (&Failure, &u64)| {
            let earlier = before.failures.get(failure).copied().unwrap_or_default();
            let count = count.saturating_sub(earlier);
            (count > 0).then(|| (failure.clone(), count))
        };
        self.failures.iter().filter_map(increase).collect()
    }

    fn merge(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.failed += other.failed;
        for (failure, count) in &other.failures {
            *self.failures.entry(failure.clone()).or_default() += count;
        }
        self.hits += other.hits;
        self.misses += other.misses;
        self.upstream_errors += other.upstream_errors;
        self.redaction_failures += other.redaction_failures;
        self.hit.merge(&other.hit);
        self.miss.merge(&other.miss);
        self.forwarded.merge(&other.forwarded);
        self.upstream.merge(&other.upstream);
    }

    /// The number of failed requests, their share, and the most frequent status and route.
    fn failures_json(&self) -> Value {
        let most_frequent = self.failures.iter().max_by_key(|(_, count)| **count);
        let top = most_frequent.map(|(Failure { status, route }, count)| {
            json!({"status": status.parse::<u16>().ok(), "route": route, "count": count})
        });
        let share = self.failed as f64 / self.requests.max(1) as f64;
        json!({"count": self.failed, "requests": self.requests, "share": share, "most_frequent": top})
    }

    fn since(&self, before: &Counts) -> Counts {
        Counts {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
            failures: self.failures_since(before),
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            upstream_errors: self.upstream_errors.saturating_sub(before.upstream_errors),
            redaction_failures: self.redaction_failures.saturating_sub(before.redaction_failures),
            hit: self.hit.since(&before.hit),
            miss: self.miss.since(&before.miss),
            forwarded: self.forwarded.since(&before.forwarded),
            upstream: self.upstream.since(&before.upstream),
        }
    }
}

fn counter_value(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

fn label_value<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

fn gauge_value(families: &[MetricFamily], name: &str) -> Option<u64> {
    let family = families.iter().find(|family| family.name() == name)?;
    Some(family.get_metric().first()?.get_gauge().get_value() as u64)
}

/// The counts of one interval.
struct Sample {
    /// Its end, in seconds since the epoch.
    at: u64,
    duration: Duration,
    counts: Counts,
}

#[derive(Default)]
struct Ring {
    /// The latest reading of the counters.
    last: Option<(Instant, Counts)>,
    samples: VecDeque<Sample>,
    /// Upper bounds of the histogram buckets, in seconds.
    bounds: Vec<f64>,
    resident_bytes: Option<u64>,
}

/// The ring of samples.
#[derive(Default)]
pub struct History(Mutex<Ring>);

impl History {
    /// Adds a sample of the counters at `now`, which is `at` in calendar time.
    pub fn add_sample(&self, families: &[MetricFamily], now: Instant, at: SystemTime) {
        let counts = Counts::from_families(families);
        let mut ring = self.0.lock();
        if let Some((then, before)) = &ring.last {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let sample = Sample {
                at,
                duration: now.saturating_duration_since(*then),
                counts: counts.since(before),
            };
            if ring.samples.len() == SAMPLES_MAX {
                ring.samples.pop_front();
            }
            ring.samples.push_back(sample);
        }
        ring.last = Some((now, counts));
        ring.bounds = bucket_bounds(families);
        ring.resident_bytes = gauge_value(families, "process_resident_memory_bytes");
    }

    /// All samples, the oldest first, and the totals of the last five minutes up to `now`, at which
    /// the counters have the values in `families`.
    pub fn json(&self, families: &[MetricFamily], now: Instant) -> Value {
        let ring = self.0.lock();
        let samples: Vec<Value> =
            ring.samples.iter().map(|sample| sample.json(&ring.bounds)).collect();
        let mut recent = Counts::default();
        let mut recent_duration = Duration::ZERO;
        if let Some((then, before)) = &ring.last {
            recent.merge(&Counts::from_families(families).since(before));
            recent_duration += now.saturating_duration_since(*then);
        }
        for Sample { duration, counts, .. } in ring.samples.iter().rev().take(RECENT_SAMPLES) {
            recent_duration += *duration;
            recent.merge(counts);
        }
        json!({
            "every_seconds": SAMPLE_INTERVAL.as_secs(),
            "kept": SAMPLES_MAX,
            "resident_bytes": ring.resident_bytes,
            "recent": {
                "seconds": recent_duration.as_secs(),
                "failures": recent.failures_json(),
                "hit": recent.hit.json(&ring.bounds),
                "miss": recent.miss.json(&ring.bounds),
                "forwarded": recent.forwarded.json(&ring.bounds),
                "upstream": recent.upstream.json(&ring.bounds),
            },
            "samples": samples,
        })
    }
}

impl History {
    /// The outcomes of the last minute, until the time at which the counters had the values in
    /// `families`.
    pub fn recent_outcomes(&self, families: &[MetricFamily]) -> RecentOutcomes {
        let ring = self.0.lock();
        let since_last =
            ring.last.as_ref().map(|(_, before)| Counts::from_families(families).since(before));
        let samples = ring.samples.iter().rev().take(MINUTE_SAMPLES).map(|sample| &sample.counts);
        let mut outcomes = RecentOutcomes::default();
        for counts in since_last.iter().chain(samples) {
            outcomes.requests += counts.requests;
            outcomes.failed += counts.failed;
        }
        outcomes
    }
}

impl Sample {
    fn json(&self, bounds: &[f64]) -> Value {
        let Counts {
            requests,
            failed,
            hits,
            misses,
            upstream_errors,
            redaction_failures,
            hit,
            miss,
            ..
        } = &self.counts;
        let mut name_requests = hit.clone();
        name_requests.merge(miss);
        json!({
            "at": self.at,
            "seconds": self.duration.as_secs_f64(),
            "requests": requests,
            "failed": failed,
            "hits": hits,
            "misses": misses,
            "upstream_errors": upstream_errors,
            "redaction_failures": redaction_failures,
            "p50_seconds": name_requests.quantile(bounds, 0.5),
            "p99_seconds": name_requests.quantile(bounds, 0.99),
        })
    }
}

fn bucket_bounds(families: &[MetricFamily]) -> Vec<f64> {
    let name = "telecomx_gateway_request_duration_seconds";
    let durations = families
        .iter()
        .find(|family| family.name() == name)
        .and_then(|family| family.get_metric().first());
    durations.map_or(Vec::new(), |metric| {
        metric.get_histogram().get_bucket().iter().map(|bucket| bucket.upper_bound()).collect()
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::reply::CacheStatus;
    use crate::telemetry::{Metrics, Record, Route};

    fn record(
        metrics: &Metrics,
        route: Route,
        cache: Option<CacheStatus>,
        status: u16,
        took: Duration,
    ) {
        let mut record = Record::begin(Instant::now());
        (record.route, record.cache) = (route, cache);
        record.status = StatusCode::from_u16(status).unwrap();
        metrics.record_request(&record, took);
    }

    const HIT: Option<CacheStatus> = Some(CacheStatus::Hit { ttl: 1 });

    #[test]
    fn sample_holds_the_increase_since_the_previous_one() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let (start, calendar) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_000));
        record(&metrics, Route::CustomerName, HIT, 200, Duration::from_micros(70));
        history.add_sample(&metrics.families(), start, calendar);
        let json = |now| history.json(&metrics.families(), now);
        assert_eq!(
            json(start)["samples"],
            json!([]),
            "counts before the first reading belong to no interval"
        );
        for _ in 0..3 {
            record(&metrics, Route::CustomerName, HIT, 200, Duration::from_micros(70));
        }
        record(&metrics, Route::Forward, None, 502, Duration::from_millis(3));
        history.add_sample(
            &metrics.families(),
            start + Duration::from_secs(4),
            calendar + Duration::from_secs(4),
        );
        let json = json(start + Duration::from_secs(4));
        let sample = &json["samples"][0];
        assert_eq!(
            (&sample["requests"], &sample["failed"], &sample["hits"]),
            (&4.into(), &1.into(), &3.into())
        );
        assert_eq!((&sample["at"], &sample["seconds"]), (&1_004.into(), &4.0.into()));
        let median = sample["p50_seconds"].as_f64().unwrap();
        assert!(median > 0.000_05 && median <= 0.000_1, "{sample}");
        assert_eq!(json["recent"]["forwarded"]["count"], 1);
        assert_eq!(json["recent"]["miss"]["p99_seconds"], Value::Null, "there was no miss");
    }

    #[test]
    fn response_of_the_shared_tier_is_a_hit() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let start = Instant::now();
        history.add_sample(&metrics.families(), start, UNIX_EPOCH);
        let cache = Some(CacheStatus::Shared { ttl: 1 });
        record(&metrics, Route::CustomerName, cache, 200, Duration::from_micros(70));
        let end = start + SAMPLE_INTERVAL;
        history.add_sample(&metrics.families(), end, UNIX_EPOCH + SAMPLE_INTERVAL);
        let json = history.json(&metrics.families(), end);
        let sample = &json["samples"][0];
        assert_eq!((&sample["hits"], &sample["misses"]), (&1.into(), &0.into()));
        assert!(sample["p50_seconds"].is_f64(), "{sample}");
        assert_eq!(json["recent"]["hit"]["count"], 1);
        assert_eq!(metrics.hits_and_misses(), (1, 0), "those of /stats");
    }

    #[test]
    fn recent_failures_name_the_most_frequent_and_include_the_newest() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let start = Instant::now();
        history.add_sample(&metrics.families(), start, UNIX_EPOCH);
        record(&metrics, Route::CustomerName, HIT, 200, Duration::from_micros(70));
        record(&metrics, Route::Forward, None, 504, Duration::from_millis(3));
        history.add_sample(
            &metrics.families(),
            start + SAMPLE_INTERVAL,
            UNIX_EPOCH + SAMPLE_INTERVAL,
        );
        for _ in 0..2 {
            record(&metrics, Route::CustomerName, None, 502, Duration::from_millis(3));
        }
        let json = history.json(&metrics.families(), start + SAMPLE_INTERVAL);
        let most_frequent = json!({"status": 502, "route": "customer_name", "count": 2});
        let expected =
            json!({"count": 3, "requests": 4, "share": 0.75, "most_frequent": most_frequent});
        assert_eq!(json["recent"]["failures"], expected);
        let outcomes = |metrics: &Metrics| history.recent_outcomes(&metrics.families());
        assert_eq!(outcomes(&metrics), RecentOutcomes { requests: 4, failed: 3 });
    }

    #[test]
    fn ring_is_bounded_and_keeps_the_newest_samples() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let start = Instant::now();
        for number in 0..2 * SAMPLES_MAX as u64 {
            let after = SAMPLE_INTERVAL * u32::try_from(number).unwrap();
            history.add_sample(&metrics.families(), start + after, UNIX_EPOCH + after);
        }
        let end = start + SAMPLE_INTERVAL * (2 * SAMPLES_MAX as u32 - 1);
        let json = history.json(&metrics.families(), end);
        let samples = json["samples"].as_array().unwrap();
        assert_eq!(samples.len(), SAMPLES_MAX);
        assert_eq!(
            samples.last().unwrap()["at"],
            (2 * SAMPLES_MAX as u64 - 1) * SAMPLE_INTERVAL.as_secs()
        );
        assert_eq!(json["recent"]["seconds"], RECENT_SAMPLES as u64 * SAMPLE_INTERVAL.as_secs());
    }

    #[test]
    fn quantile_is_linear_in_its_bucket_and_capped_at_the_last_bound() {
        let bounds = [1.0, 2.0, 4.0];
        let even = Durations(vec![2, 2, 0, 0]);
        assert_eq!(even.quantile(&bounds, 0.5), Some(1.0));
        assert_eq!(even.quantile(&bounds, 0.75), Some(1.5));
        assert_eq!(Durations(vec![0, 0, 0, 5]).quantile(&bounds, 0.5), Some(4.0));
        assert_eq!(Durations(vec![0, 0, 3, 0]).quantile(&bounds, 1.0), Some(4.0));
        assert_eq!(Durations::default().quantile(&bounds, 0.5), None);
    }
}
