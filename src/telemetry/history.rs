//! The last minutes in numbers, for the status page. Every few seconds the counters are read, and what was added since is
//! kept in a ring of fixed length. Nothing of it is on a request's way.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::{Value, json};

/// Between two samples.
pub const EVERY: Duration = Duration::from_secs(5);

/// Samples that are kept: a quarter of an hour.
const KEPT: usize = 180;

/// Samples that the table of durations is made of: five minutes.
const RECENT: usize = 60;

/// How long requests took: a count for each bucket, not added up, the last for what was longer than every bound.
#[derive(Clone, Debug, Default, PartialEq)]
struct Durations(Vec<u64>);

impl Durations {
    fn add(&mut self, metric: &Metric) {
        let histogram = metric.get_histogram();
        let cumulative = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count());
        let mut below = 0;
        let counts = cumulative.chain([histogram.get_sample_count()]).map(|count| {
            let own = count.saturating_sub(below);
            below = count;
            own
        });
        self.join(&Durations(counts.collect()));
    }

    fn join(&mut self, other: &Durations) {
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

    /// As Prometheus' `histogram_quantile`: evenly spread within a bucket; beyond the last bound, that bound.
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

/// What was counted, since the start or between two samples.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    requests: u64,
    /// Answered with 500 and up.
    failed: u64,
    /// As in `/stats`: hits with stale ones, misses with collapsed ones.
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
    /// Of the series of `/metrics`, by the names of the contract.
    fn of(families: &[MetricFamily]) -> Self {
        let mut counts = Counts::default();
        for family in families {
            let metrics = family.get_metric();
            let sum = || metrics.iter().map(counted).sum();
            match family.name() {
                "telecomx_gateway_requests_total" => metrics.iter().for_each(|metric| counts.request(metric)),
                "telecomx_gateway_request_duration_seconds" => {
                    metrics.iter().for_each(|metric| counts.duration(metric));
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

    fn request(&mut self, metric: &Metric) {
        let count = counted(metric);
        self.requests += count;
        if label(metric, "status").starts_with('5') {
            self.failed += count;
        }
        match label(metric, "cache") {
            "hit" | "stale" => self.hits += count,
            "miss" | "collapsed" => self.misses += count,
            _ => {}
        }
    }

    fn duration(&mut self, metric: &Metric) {
        match (label(metric, "route"), label(metric, "cache")) {
            ("customer_name", "hit" | "stale") => self.hit.add(metric),
            ("customer_name", "miss" | "collapsed") => self.miss.add(metric),
            ("forward", _) => self.forwarded.add(metric),
            _ => {}
        }
    }

    fn since(&self, before: &Counts) -> Counts {
        Counts {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
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

fn counted(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

fn gauge(families: &[MetricFamily], name: &str) -> Option<u64> {
    let family = families.iter().find(|family| family.name() == name)?;
    Some(family.get_metric().first()?.get_gauge().get_value() as u64)
}

/// What came within a few seconds.
struct Sample {
    /// Seconds since the epoch, at its end.
    at: u64,
    lasted: Duration,
    counts: Counts,
}

#[derive(Default)]
struct Ring {
    /// When the counters were read last, and what they were.
    last: Option<(Instant, Counts)>,
    samples: VecDeque<Sample>,
    /// Upper bounds of the buckets, in seconds.
    bounds: Vec<f64>,
    resident_bytes: Option<u64>,
}

/// The ring of samples.
#[derive(Default)]
pub struct History(Mutex<Ring>);

impl History {
    /// Takes a sample of the counters as they stand at `now`, which is `at` by the calendar.
    pub fn take(&self, families: &[MetricFamily], now: Instant, at: SystemTime) {
        let counts = Counts::of(families);
        let mut ring = self.0.lock();
        if let Some((then, before)) = &ring.last {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let sample = Sample { at, lasted: now.saturating_duration_since(*then), counts: counts.since(before) };
            if ring.samples.len() == KEPT {
                ring.samples.pop_front();
            }
            ring.samples.push_back(sample);
        }
        ring.last = Some((now, counts));
        ring.bounds = bounds(families);
        ring.resident_bytes = gauge(families, "process_resident_memory_bytes");
    }

    /// Everything that is kept, the oldest first, and how long requests took in the last five minutes.
    pub fn json(&self) -> Value {
        let ring = self.0.lock();
        let samples: Vec<Value> = ring.samples.iter().map(|sample| sample.json(&ring.bounds)).collect();
        let mut recent = Counts::default();
        let mut lasted = Duration::ZERO;
        for Sample { lasted: longer, counts, .. } in ring.samples.iter().rev().take(RECENT) {
            lasted += *longer;
            recent.hit.join(&counts.hit);
            recent.miss.join(&counts.miss);
            recent.forwarded.join(&counts.forwarded);
            recent.upstream.join(&counts.upstream);
        }
        json!({
            "every_seconds": EVERY.as_secs(),
            "kept": KEPT,
            "resident_bytes": ring.resident_bytes,
            "recent": {
                "seconds": lasted.as_secs(),
                "hit": recent.hit.json(&ring.bounds),
                "miss": recent.miss.json(&ring.bounds),
                "forwarded": recent.forwarded.json(&ring.bounds),
                "upstream": recent.upstream.json(&ring.bounds),
            },
            "samples": samples,
        })
    }
}

impl Sample {
    fn json(&self, bounds: &[f64]) -> Value {
        let Counts { requests, failed, hits, misses, upstream_errors, redaction_failures, hit, miss, .. } =
            &self.counts;
        let mut answered = hit.clone();
        answered.join(miss);
        json!({
            "at": self.at,
            "seconds": self.lasted.as_secs_f64(),
            "requests": requests,
            "failed": failed,
            "hits": hits,
            "misses": misses,
            "upstream_errors": upstream_errors,
            "redaction_failures": redaction_failures,
            "p50_seconds": answered.quantile(bounds, 0.5),
            "p99_seconds": answered.quantile(bounds, 0.99),
        })
    }
}

fn bounds(families: &[MetricFamily]) -> Vec<f64> {
    let name = "telecomx_gateway_request_duration_seconds";
    let durations = families.iter().find(|family| family.name() == name).and_then(|family| family.get_metric().first());
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

    fn answered(metrics: &Metrics, route: Route, cache: Option<CacheStatus>, status: u16, took: Duration) {
        let mut record = Record::begin(Instant::now());
        (record.route, record.cache) = (route, cache);
        record.status = StatusCode::from_u16(status).unwrap();
        metrics.answered(&record, took);
    }

    const HIT: Option<CacheStatus> = Some(CacheStatus::Hit { ttl: 1 });

    #[test]
    fn a_sample_is_what_was_added_since_the_one_before() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let (start, calendar) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_000));
        answered(&metrics, Route::CustomerName, HIT, 200, Duration::from_micros(70));
        history.take(&metrics.families(), start, calendar);
        assert_eq!(history.json()["samples"], json!([]), "what was before the first look belongs to no time");
        for _ in 0..3 {
            answered(&metrics, Route::CustomerName, HIT, 200, Duration::from_micros(70));
        }
        answered(&metrics, Route::Forward, None, 502, Duration::from_millis(3));
        history.take(&metrics.families(), start + Duration::from_secs(4), calendar + Duration::from_secs(4));
        let json = history.json();
        let sample = &json["samples"][0];
        assert_eq!((&sample["requests"], &sample["failed"], &sample["hits"]), (&4.into(), &1.into(), &3.into()));
        assert_eq!((&sample["at"], &sample["seconds"]), (&1_004.into(), &4.0.into()));
        let median = sample["p50_seconds"].as_f64().unwrap();
        assert!(median > 0.000_05 && median <= 0.000_1, "{sample}");
        assert_eq!(json["recent"]["forwarded"]["count"], 1);
        assert_eq!(json["recent"]["miss"]["p99_seconds"], Value::Null, "nothing was missed");
    }

    #[test]
    fn the_ring_is_bounded_and_keeps_the_newest() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let start = Instant::now();
        for number in 0..2 * KEPT as u64 {
            let after = EVERY * u32::try_from(number).unwrap();
            history.take(&metrics.families(), start + after, UNIX_EPOCH + after);
        }
        let json = history.json();
        let samples = json["samples"].as_array().unwrap();
        assert_eq!(samples.len(), KEPT);
        assert_eq!(samples.last().unwrap()["at"], (2 * KEPT as u64 - 1) * EVERY.as_secs());
        assert_eq!(json["recent"]["seconds"], RECENT as u64 * EVERY.as_secs());
    }

    #[test]
    fn a_quantile_lies_within_its_bucket_and_beyond_the_last_it_is_the_last_bound() {
        let bounds = [1.0, 2.0, 4.0];
        let even = Durations(vec![2, 2, 0, 0]);
        assert_eq!(even.quantile(&bounds, 0.5), Some(1.0));
        assert_eq!(even.quantile(&bounds, 0.75), Some(1.5));
        assert_eq!(Durations(vec![0, 0, 0, 5]).quantile(&bounds, 0.5), Some(4.0));
        assert_eq!(Durations(vec![0, 0, 3, 0]).quantile(&bounds, 1.0), Some(4.0));
        assert_eq!(Durations::default().quantile(&bounds, 0.5), None);
    }
}
