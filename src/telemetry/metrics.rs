//! Metrics are verbs: what happened is said here, what series that is stands here alone. Names are the contract's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::handles::{ByValue, Durations, Requests};
use super::record::Record;
use super::tally::{Tallies, Tally};
use crate::cache::NotStored;

pub const PREFIX: &str = "telecomx_gateway_";

/// Upper bounds in seconds. The low ones tell hits apart, the high ones the API's moods.
const BUCKETS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Every series of the gateway.
pub struct Metrics {
    registry: Registry,
    requests: Requests,
    request_duration: Durations,
    cache_entries: IntGauge,
    cache_bytes: IntGauge,
    cache_capacity: IntGauge,
    evictions: ByValue<IntCounter>,
    not_stored: ByValue<IntCounter>,
    /// A bit for each reason that occurred.
    not_stored_seen: AtomicU32,
    invalidations: ByValue<IntCounter, 2>,
    stale_served: ByValue<IntCounter>,
    coalesced: IntCounter,
    fast_path: IntCounter,
    validations: ByValue<IntCounter>,
    identity_lookups: ByValue<IntCounter>,
    redactions: ByValue<IntCounter>,
    redaction_failures: ByValue<IntCounter>,
    over_limit: ByValue<IntCounter>,
    accept_errors: ByValue<IntCounter, 2>,
    upstream_duration: ByValue<Histogram>,
    upstream_errors: ByValue<IntCounter>,
    upstream_error_causes: ByValue<IntCounter>,
    upstream_in_flight: IntGauge,
    circuit_open: IntGauge,
    tier_requests: ByValue<IntCounter, 2>,
    tier_lookup_duration: ByValue<Histogram>,
    tier_writes: ByValue<IntCounter, 3>,
    tier_errors: ByValue<IntCounter>,
    reload_successful: IntGauge,
    reload_timestamp: IntGauge,
    tls_handshake_failures: Arc<ByValue<IntCounter, 2>>,
    log_lines_dropped: IntCounter,
    admin_refused: IntCounter,
    hits: AtomicI64,
    misses: AtomicI64,
    /// Hits of the fast path that are in no series yet.
    tallies: Tallies,
}

/// What a TLS listener counts.
pub struct TlsMetrics {
    expiry: IntGauge,
    load_successful: IntGauge,
    failures: Arc<ByValue<IntCounter, 2>>,
    handshakes: ByValue<IntCounter>,
}

impl TlsMetrics {
    /// The files were taken up; `expires`: in seconds since the epoch.
    pub fn loaded(&self, expires: i64) {
        self.expiry.set(expires);
        self.load_successful.set(1);
    }

    /// The files changed and cannot be used.
    pub fn not_loaded(&self) {
        self.load_successful.set(0);
    }

    /// `cause`: what is wrong with a client's certificate; empty for other reasons.
    pub fn handshake_failed(&self, reason: &'static str, cause: &'static str) {
        self.failures.inc([reason, cause]);
    }

    /// A handshake succeeded; `kind`: `full` or `resumed`.
    pub fn handshake_done(&self, kind: &'static str) {
        self.handshakes.inc([kind]);
    }
}

/// What a reader of the API's log of changes counts.
pub struct ChangeLogMetrics {
    last_read: IntGauge,
    failures: IntCounterVec,
    entries: IntCounterVec,
}

impl ChangeLogMetrics {
    /// The log was read.
    pub fn read(&self, now: SystemTime) {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_read.set(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
    }

    pub fn failed(&self, reason: &str) {
        self.failures.with_label_values(&[reason]).inc();
    }

    /// New entries: how many were obeyed, and how many say nothing known.
    pub fn entries(&self, obeyed: usize, unknown: usize) {
        for (outcome, count) in [("obeyed", obeyed), ("unknown", unknown)] {
            self.entries.with_label_values(&[outcome]).inc_by(count as u64);
        }
    }
}

/// What the bus of a fleet counts.
pub struct BusMetrics {
    connected: IntGauge,
    isolated: IntGauge,
    waiting: IntGauge,
    silence: Gauge,
    messages: IntCounterVec,
    drops: IntCounterVec,
    errors: IntCounterVec,
    spread: Histogram,
}

impl BusMetrics {
    /// How it stands now; `silence`: since the others were heard.
    pub fn stands(&self, connected: bool, isolated: bool, waiting: usize, silence: Duration) {
        self.connected.set(i64::from(connected));
        self.isolated.set(i64::from(isolated));
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.silence.set(silence.as_secs_f64());
    }

    /// Changes were told, or heard of.
    pub fn messages(&self, direction: &str, count: usize) {
        self.messages.with_label_values(&[direction]).inc_by(count as u64);
    }

    /// Everything was dropped, since something may have been missed.
    pub fn dropped(&self, reason: &str) {
        self.drops.with_label_values(&[reason]).inc();
    }

    pub fn failed(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    /// An own change came back, this long after it was seen.
    pub fn spread(&self, time: Duration) {
        self.spread.observe(time.as_secs_f64());
    }
}

/// Labels of a failed exchange with the API.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamFailure {
    pub kind: &'static str,
    /// More exact than the kind.
    pub cause: &'static str,
}

/// What became of spans that were to be exported.
#[cfg(feature = "otlp")]
#[derive(Debug)]
pub struct ExportMetrics {
    spans: IntCounterVec,
}

#[cfg(feature = "otlp")]
impl ExportMetrics {
    /// A batch was sent, or could not be.
    pub fn sent(&self, spans: usize, taken: bool) {
        self.spans.with_label_values(&[if taken { "sent" } else { "failed" }]).inc_by(spans as u64);
    }
}

/// A series could not be made: a name twice, which is internal error.
pub type MetricsError = prometheus::Error;

struct Maker(Registry);

impl Maker {
    fn keep<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, MetricsError> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, MetricsError> {
        self.keep(IntCounterVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.keep(IntGauge::new(format!("{PREFIX}{name}"), help)?)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, MetricsError> {
        let options = HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(BUCKETS.to_vec());
        self.keep(HistogramVec::new(options, labels)?)
    }
}

impl Metrics {
    /// # Errors
    /// A name was registered twice.
    pub fn new() -> Result<Self, MetricsError> {
        let make = Maker(Registry::new());
        let metrics = Metrics {
            requests: Requests::new(make.counters(
                "requests_total",
                "Requests with a response, by route, method, status and cache result.",
                &["route", "method", "status", "cache"],
            )?),
            request_duration: Durations::new(make.histograms(
                "request_duration_seconds",
                "Time from the request head to the end of the response, in seconds.",
                &["route", "cache"],
            )?),
            cache_entries: make.gauge("cache_entries", "Cached responses.")?,
            cache_bytes: make.gauge("cache_bytes", "Memory of cached responses, bookkeeping included.")?,
            cache_capacity: make.gauge("cache_capacity_bytes", "Maximum memory of cached responses.")?,
            evictions: ByValue::counters(make.counters(
                "cache_evictions_total",
                "Cached responses that were removed, by cause.",
                &["cause"],
            )?),
            not_stored: ByValue::counters(make.counters(
                "cache_not_stored_total",
                "Responses of the API to fetches that were not stored, by reason.",
                &["reason"],
            )?),
            invalidations: ByValue::counters(make.counters(
                "cache_invalidations_total",
                "Invalidations, by scope and trigger.",
                &["scope", "trigger"],
            )?),
            stale_served: ByValue::counters(make.counters(
                "cache_stale_served_total",
                "Stale responses served, by reason.",
                &["reason"],
            )?),
            coalesced: make.keep(IntCounter::new(
                format!("{PREFIX}coalesced_requests_total"),
                "Requests served by the fetch of another request.",
            )?)?,
            fast_path: make.keep(IntCounter::new(
                format!("{PREFIX}fast_path_hits_total"),
                "Cache hits served on the fast path; other hits took the ordinary path.",
            )?)?,
            validations: ByValue::counters(make.counters(
                "identity_validations_total",
                "Validations of tokens by the API, by result.",
                &["result"],
            )?),
            identity_lookups: ByValue::counters(make.counters(
                "identity_lookups_total",
                "Lookups of cached validations, by result.",
                &["result"],
            )?),
            redactions: ByValue::counters(make.counters(
                "redactions_total",
                "Redacted documents, by access level of the caller.",
                &["role"],
            )?),
            redaction_failures: ByValue::counters(make.counters(
                "redaction_failures_total",
                "Responses of the API that could not be redacted safely, by reason.",
                &["reason"],
            )?),
            over_limit: ByValue::counters(make.counters(
                "over_limit_total",
                "Connections and requests refused (with or without a response), and HTTP/2 connections ended, because a limit was reached.",
                &["limit"],
            )?),
            accept_errors: ByValue::counters(make.counters(
                "accept_errors_total",
                "Attempts to accept a connection that failed, by listener and reason.",
                &["listener", "reason"],
            )?),
            upstream_duration: ByValue::histograms(make.histograms(
                "upstream_request_duration_seconds",
                "Time of exchanges with the API, queueing included, in seconds.",
                &["kind"],
            )?),
            upstream_errors: ByValue::counters(make.counters(
                "upstream_errors_total",
                "Failed exchanges with the API, by kind.",
                &["kind"],
            )?),
            upstream_error_causes: ByValue::counters(make.counters(
                "upstream_error_causes_total",
                "Failed exchanges with the API, by exact cause such as a certificate error or the phase of a timeout.",
                &["cause"],
            )?),
            upstream_in_flight: make.gauge("upstream_in_flight", "Requests of the gateway's own to the API that are under way.")?,
            circuit_open: make.gauge("circuit_open", "1 while the circuit breaker is open, 0 otherwise.")?,
            tier_requests: ByValue::counters(make.counters(
                "tier_requests_total",
                "Lookups in the shared tier, by kind of value and result.",
                &["what", "result"],
            )?),
            tier_lookup_duration: ByValue::histograms(make.histograms(
                "tier_request_duration_seconds",
                "Time of lookups in the shared tier, including the wait for another gateway's fetch, in seconds.",
                &["what"],
            )?),
            tier_writes: ByValue::counters(make.counters(
                "tier_writes_total",
                "Writes to the shared tier, by kind of value, operation and result.",
                &["what", "operation", "result"],
            )?),
            tier_errors: ByValue::counters(make.counters(
                "tier_errors_total",
                "Failed operations of the shared tier and unusable values, by kind.",
                &["kind"],
            )?),
            reload_successful: make.gauge("config_last_reload_successful", "1 if the last configuration was applied, 0 if it was rejected.")?,
            reload_timestamp: make.gauge(
                "config_last_reload_success_timestamp_seconds",
                "Time of the last applied configuration, in seconds since the epoch.",
            )?,
            tls_handshake_failures: Arc::new(ByValue::counters(make.counters(
                "tls_handshake_failures_total",
                "Failed TLS handshakes, by reason, and by cause where a client certificate was rejected.",
                &["reason", "cause"],
            )?)),
            admin_refused: make.keep(IntCounter::new(
                format!("{PREFIX}admin_credentials_refused_total"),
                "Requests to the admin listener without a valid token.",
            )?)?,
            log_lines_dropped: make.keep(IntCounter::new(
                format!("{PREFIX}log_lines_dropped_total"),
                "Dropped log lines: the buffer was full, or writing failed.",
            )?)?,
            not_stored_seen: AtomicU32::new(0),
            hits: AtomicI64::new(0),
            misses: AtomicI64::new(0),
            tallies: Tallies::default(),
            registry: make.0.clone(),
        };
        let build = make.keep(IntGaugeVec::new(
            Opts::new(format!("{PREFIX}build_info"), "Version of the running gateway; always 1."),
            &["version", "revision"],
        )?)?;
        let revision = option_env!("TELECOMX_GATEWAY_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.configuration_taken();
        // An alert needs the increase from 0 to 1 as well.
        metrics.over_limit.inc_by(["descriptors"], 0);
        for listener in ["public", "admin"] {
            for reason in ["descriptors", "other"] {
                metrics.accept_errors.inc_by([listener, reason], 0);
            }
        }
        Ok(metrics)
    }

    /// A request was answered, as its record says.
    pub fn answered(&self, record: &Record, duration: Duration) {
        if record.on_fast_path {
            return self.fast_path_hit(record, duration);
        }
        self.requests.of(record).inc();
        self.request_duration.of(record).observe(duration.as_secs_f64());
        let cache = record.cache_label();
        match cache {
            "hit" | "stale" | "tier" => self.hits.fetch_add(1, Ordering::Relaxed),
            "miss" | "collapsed" => self.misses.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        if cache == "collapsed" {
            self.coalesced.inc();
        }
    }

    /// Counts a hit of the fast path, whose caller's validation was cached.
    fn fast_path_hit(&self, record: &Record, duration: Duration) {
        let new = || Tally { requests: Vec::new(), durations: self.request_duration.of(record).local(), hits: 0 };
        let requests = || self.requests.of(record).local();
        self.tallies.own(new, |tally| tally.count(record, duration, requests));
    }

    /// What threads counted apart is in the series from here on.
    fn settle(&self) {
        let hits = self.tallies.settle();
        if hits > 0 {
            self.fast_path.inc_by(hits);
            self.identity_lookups.inc_by(["hit"], hits);
            self.hits.fetch_add(hits as i64, Ordering::Relaxed);
        }
    }

    /// Hits (stale ones included) and misses (collapsed ones included) since the start.
    pub fn hits_and_misses(&self) -> (i64, i64) {
        self.settle();
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    pub fn cache_usage(&self, (entries, bytes, capacity): (u64, u64, u64)) {
        self.cache_entries.set(entries as i64);
        self.cache_bytes.set(bytes as i64);
        self.cache_capacity.set(capacity as i64);
    }

    pub fn evicted(&self, cause: &'static str, count: u64) {
        self.evictions.inc_by([cause], count);
    }

    /// A fetched response was not stored. Whether that is the first one for this reason.
    pub fn not_stored(&self, reason: NotStored) -> bool {
        self.not_stored.inc([reason.as_str()]);
        let bit = 1 << reason as u32;
        self.not_stored_seen.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    pub fn invalidated(&self, scope: &'static str, trigger: &'static str) {
        self.invalidations.inc([scope, trigger]);
    }

    pub fn stale_served(&self, reason: &'static str) {
        self.stale_served.inc([reason]);
    }

    pub fn validated(&self, result: &'static str) {
        self.validations.inc([result]);
    }

    pub fn identity_looked_up(&self, result: &'static str) {
        self.identity_lookups.inc([result]);
    }

    /// `role`: the caller's level, or `answer` where the answer stated it.
    pub fn redacted(&self, role: &'static str) {
        self.redactions.inc([role]);
    }

    pub fn redaction_failed(&self, reason: &'static str) {
        self.redaction_failures.inc([reason]);
    }

    /// A limit on what clients may have under way was reached.
    pub fn over_limit(&self, limit: &'static str) {
        self.over_limit.inc([limit]);
    }

    /// A listener could not accept a connection.
    pub fn accept_failed(&self, listener: &'static str, reason: &'static str) {
        self.accept_errors.inc([listener, reason]);
    }

    /// Counts an exchange with the API. `kind`: its purpose.
    pub fn upstream_exchange(&self, kind: &'static str, duration: Duration, failure: Option<UpstreamFailure>) {
        self.upstream_duration.observe([kind], duration);
        if let Some(UpstreamFailure { kind, cause }) = failure {
            self.upstream_errors.inc([kind]);
            self.upstream_error_causes.inc([cause]);
        }
    }

    /// A lookup in the shared tier ended.
    pub fn tier_asked(&self, what: &'static str, result: &'static str) {
        self.tier_requests.inc([what, result]);
    }

    pub fn tier_lookup_took(&self, what: &'static str, duration: Duration) {
        self.tier_lookup_duration.observe([what], duration);
    }

    /// Something was put into the shared tier, or taken away.
    pub fn tier_wrote(&self, what: &'static str, operation: &'static str, result: &'static str) {
        self.tier_writes.inc([what, operation, result]);
    }

    /// The shared tier did not do as it was told, or holds what it must not.
    pub fn tier_failed(&self, kind: &'static str) {
        self.tier_errors.inc([kind]);
    }

    /// Counts one of the gateway's own requests as long as the guard lives.
    pub fn fetch_in_flight(&self) -> impl Drop + use<> {
        struct InFlight(IntGauge);
        impl Drop for InFlight {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.upstream_in_flight.inc();
        InFlight(self.upstream_in_flight.clone())
    }

    pub fn in_flight(&self) -> i64 {
        self.upstream_in_flight.get()
    }

    pub fn circuit(&self, open: bool) {
        self.circuit_open.set(i64::from(open));
    }

    pub fn configuration_taken(&self) {
        self.reload_successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.reload_timestamp.set(now.as_secs() as i64);
    }

    pub fn configuration_refused(&self) {
        self.reload_successful.set(0);
    }

    /// A request to the admin listener had no token, or another one.
    pub fn admin_refused(&self) {
        self.admin_refused.inc();
    }

    /// Counts lines of the log that nobody will read.
    pub fn log_lines_dropped(&self) -> IntCounter {
        self.log_lines_dropped.clone()
    }

    /// The series of a TLS listener, which there are only where there is one.
    ///
    /// # Errors
    /// It was asked for twice.
    /// Adds a collector to the registry.
    ///
    /// # Errors
    ///
    /// One of its names is registered already.
    pub fn register(&self, collector: impl Collector + 'static) -> Result<(), MetricsError> {
        self.registry.register(Box::new(collector))
    }

    pub fn tls(&self) -> Result<TlsMetrics, MetricsError> {
        let make = Maker(self.registry.clone());
        Ok(TlsMetrics {
            expiry: make.gauge(
                "tls_certificate_expiry_timestamp_seconds",
                "Earliest expiry in the certificate chain, in seconds since the epoch.",
            )?,
            load_successful: make.gauge(
                "tls_last_load_successful",
                "1 if certificate, key and authority files were loaded when they last changed, 0 otherwise.",
            )?,
            failures: self.tls_handshake_failures.clone(),
            handshakes: ByValue::counters(make.counters(
                "tls_handshakes_total",
                "Successful TLS handshakes, by whether the session was resumed.",
                &["kind"],
            )?),
        })
    }

    /// The series of the export of spans.
    ///
    /// # Errors
    /// It was asked for twice.
    #[cfg(feature = "otlp")]
    pub fn export(&self) -> Result<ExportMetrics, MetricsError> {
        let make = Maker(self.registry.clone());
        Ok(ExportMetrics {
            spans: make.counters("otlp_spans_total", "Spans exported to the collector, by result.", &["result"])?,
        })
    }

    /// The series of whoever reads the API's log of changes; there are none without a reader.
    ///
    /// # Errors
    /// It was asked for twice.
    pub fn change_log(&self) -> Result<ChangeLogMetrics, MetricsError> {
        let make = Maker(self.registry.clone());
        Ok(ChangeLogMetrics {
            last_read: make.gauge(
                "change_log_last_read_timestamp_seconds",
                "Time of the last successful poll of the change log, in seconds since the epoch; 0 before the first one.",
            )?,
            failures: make.counters(
                "change_log_failures_total",
                "Failed polls of the change log, by reason.",
                &["reason"],
            )?,
            entries: make.counters("change_log_entries_total", "New entries, by what became of them.", &["outcome"])?,
        })
    }

    /// Every series as it stands.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.settle();
        self.registry.gather()
    }

    /// The series of a fleet's bus, which there are only where there is one.
    ///
    /// # Errors
    /// It was asked for twice.
    pub fn bus(&self) -> Result<BusMetrics, MetricsError> {
        let make = Maker(self.registry.clone());
        let spread = make.histograms(
            "cluster_spread_seconds",
            "Time from an invalidation until it was read back from the invalidation stream, in seconds.",
            &[],
        )?;
        let silence = Opts::new(
            format!("{PREFIX}cluster_silence_seconds"),
            "Time since the invalidation stream was last read to its end, in seconds.",
        );
        Ok(BusMetrics {
            connected: make.gauge("cluster_connected", "1 while the stream of changes is read.")?,
            isolated: make
                .gauge("cluster_isolated", "1 while nothing is answered from memory, since others are not heard.")?,
            waiting: make.gauge("cluster_waiting_changes", "Changes that the others are not told of yet.")?,
            silence: make.keep(Gauge::with_opts(silence)?)?,
            messages: make.counters(
                "cluster_messages_total",
                "Invalidations published and received, by direction.",
                &["direction"],
            )?,
            drops: make.counters(
                "cluster_drops_total",
                "Purges of the whole cache because invalidations may have been missed, by reason.",
                &["reason"],
            )?,
            errors: make.counters(
                "cluster_errors_total",
                "Failed operations of Redis and invalid messages, by kind.",
                &["kind"],
            )?,
            spread: spread.with_label_values(&[] as &[&str]),
        })
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// A series cannot be written, which is internal error.
    pub fn text(&self) -> Result<String, MetricsError> {
        TextEncoder::new().encode_to_string(&self.families())
    }
}
