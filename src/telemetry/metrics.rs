//! The metric families of the gateway. Callers report events; names and labels of series are
//! defined here only. The names are part of the contract.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::exemplars::{Exemplars, SampledSpan};
use super::labels::{
    BUCKETS, CHANGE_LOG_OUTCOMES, CLIENT_CERTIFICATE, CLIENT_CERTIFICATE_FAULTS, EVICTION_CAUSES,
    ExchangeKind, HANDSHAKE_FAILURES, HANDSHAKES, IdentityLookup, LIMITS, PREFIX,
    RESPONSE_REFUSALS, ROLE_OF_RESPONSE, SCOPES, STREAM_DIRECTIONS, STREAM_ERRORS, STREAM_GAPS,
    StaleReason, TIER_ERRORS, TIER_KINDS, TIER_OPERATIONS, TIER_RESULTS, TRIGGERS,
    ValidationOutcome,
};
use super::open_metrics;
use super::process_metrics::ProcessMetrics;
use super::record::{Record, is_hit};
use super::series_cache::{RequestCounters, RequestDurations, SeriesCache};
use super::thread_local_counters::{HitCounters, ThreadLocalCounters};
use crate::api::AccessLevel;
use crate::cache::NotStored;
use crate::redact::Reason;

/// Every metric of the gateway.
pub struct Metrics {
    registry: Registry,
    requests: RequestCounters,
    request_duration: RequestDurations,
    cache_entries: IntGauge,
    cache_bytes: IntGauge,
    cache_capacity: IntGauge,
    evictions: SeriesCache<IntCounter>,
    not_stored: SeriesCache<IntCounter>,
    /// A bit for each reason that occurred.
    not_stored_seen: AtomicU32,
    invalidations: SeriesCache<IntCounter, 2>,
    stale_served: SeriesCache<IntCounter>,
    coalesced: IntCounter,
    fast_path: IntCounter,
    validations: SeriesCache<IntCounter>,
    identity_lookups: SeriesCache<IntCounter>,
    redactions: SeriesCache<IntCounter>,
    redaction_failures: SeriesCache<IntCounter>,
    over_limit: SeriesCache<IntCounter>,
    accept_errors: SeriesCache<IntCounter, 2>,
    upstream_duration: SeriesCache<Histogram>,
    upstream_errors: SeriesCache<IntCounter>,
    upstream_error_causes: SeriesCache<IntCounter>,
    upstream_in_flight: IntGauge,
    circuit_open: IntGauge,
    tier_requests: SeriesCache<IntCounter, 2>,
    tier_lookup_duration: SeriesCache<Histogram>,
    tier_writes: SeriesCache<IntCounter, 3>,
    tier_errors: SeriesCache<IntCounter>,
    reload_successful: IntGauge,
    reload_timestamp: IntGauge,
    tls_handshake_failures: Arc<SeriesCache<IntCounter, 2>>,
    log_lines_dropped: IntCounter,
    admin_refused: IntCounter,
    hits: AtomicI64,
    misses: AtomicI64,
    /// Failed exchanges with the API since the last one that succeeded.
    consecutive_upstream_failures: AtomicU32,
    /// Fast path hits that are not added to a series yet.
    fast_path_hits: ThreadLocalCounters,
    exemplars: Exemplars,
}

/// Metrics of TLS listeners.
pub struct TlsMetrics {
    expiry: IntGauge,
    certificate_expiry: IntGaugeVec,
    load_successful: IntGauge,
    failures: Arc<SeriesCache<IntCounter, 2>>,
    handshakes: SeriesCache<IntCounter>,
}

impl TlsMetrics {
    /// Records the certificates in use, as label and expiry in seconds since the epoch, and whether
    /// all files were loaded when they last changed.
    pub fn set_loaded<'c>(
        &self,
        is_successful: bool,
        certificates: impl Iterator<Item = (&'c str, i64)>,
    ) {
        self.load_successful.set(is_successful.into());
        // Certificates with the same first name, such as one with an RSA and one with an ECDSA
        // key, share a label.
        let mut earliest: BTreeMap<&str, i64> = BTreeMap::new();
        for (label, expiry) in certificates {
            earliest.entry(label).and_modify(|time| *time = expiry.min(*time)).or_insert(expiry);
        }
        self.certificate_expiry.reset();
        for (label, expiry) in &earliest {
            self.certificate_expiry.with_label_values(&[label]).set(*expiry);
        }
        self.expiry.set(earliest.into_values().min().unwrap_or(i64::MAX));
    }

    /// Counts a failed handshake. `cause` says why a client certificate was rejected; it is empty
    /// for other reasons.
    pub fn count_failure(&self, reason: &'static str, cause: &'static str) {
        self.failures.inc([reason, cause]);
    }

    /// Counts a successful handshake. `kind` is `full` or `resumed`.
    pub fn count_handshake(&self, kind: &'static str) {
        self.handshakes.inc([kind]);
    }
}

/// Metrics of the change log poller.
pub struct ChangeLogMetrics {
    last_read: IntGauge,
    failures: IntCounterVec,
    entries: IntCounterVec,
}

impl ChangeLogMetrics {
    /// Records a successful poll.
    pub fn set_last_read(&self, now: SystemTime) {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_read.set(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
    }

    /// Counts a failed poll.
    pub fn count_failure(&self, reason: &str) {
        self.failures.with_label_values(&[reason]).inc();
    }

    /// Counts new entries: those that invalidated something, and those of unknown content.
    pub fn count_entries(&self, obeyed: usize, unknown: usize) {
        for (outcome, count) in [("obeyed", obeyed), ("unknown", unknown)] {
            self.entries.with_label_values(&[outcome]).inc_by(count as u64);
        }
    }
}

/// Metrics of the invalidation stream.
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
    /// Sets the gauges. `silence` is the time since the stream was last read to its end.
    pub fn set_state(&self, connected: bool, isolated: bool, waiting: usize, silence: Duration) {
        self.connected.set(i64::from(connected));
        self.isolated.set(i64::from(isolated));
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.silence.set(silence.as_secs_f64());
    }

    /// Counts published or received invalidations.
    pub fn count_messages(&self, direction: &str, count: usize) {
        self.messages.with_label_values(&[direction]).inc_by(count as u64);
    }

    /// Counts a purge of the whole cache because invalidations may have been missed.
    pub fn count_drop(&self, reason: &str) {
        self.drops.with_label_values(&[reason]).inc();
    }

    /// Counts a failed operation of Redis or an invalid message.
    pub fn count_error(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    /// Observes the time after which an invalidation of this gateway was read back.
    pub fn observe_spread(&self, time: Duration) {
        self.spread.observe(time.as_secs_f64());
    }
}

/// Labels of a failed exchange with the API.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamFailure {
    pub kind: &'static str,
    /// More exact than `kind`.
    pub cause: &'static str,
}

/// Metrics of the export of spans.
#[cfg(feature = "otlp")]
#[derive(Debug)]
pub struct ExportMetrics {
    spans: IntCounterVec,
}

#[cfg(feature = "otlp")]
impl ExportMetrics {
    /// Counts the spans of a batch.
    pub fn count_spans(&self, spans: usize, is_sent: bool) {
        self.spans
            .with_label_values(&[if is_sent { "sent" } else { "failed" }])
            .inc_by(spans as u64);
    }
}

/// A metric could not be registered: its name is in use, an internal error.
pub type MetricsError = prometheus::Error;

/// Registers metrics under [`PREFIX`].
struct Registrar(Registry);

impl Registrar {
    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, MetricsError> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricsError> {
        self.register(IntGaugeVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, MetricsError> {
        self.register(IntCounterVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.register(IntGauge::new(format!("{PREFIX}{name}"), help)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, MetricsError> {
        let options = HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(BUCKETS.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }
}

/// Creates series at 0, by the values of the family's only label.
fn create(family: &IntCounterVec, values: &[&str]) {
    for value in values {
        family.with_label_values(&[value]);
    }
}

impl Metrics {
    /// # Errors
    ///
    /// A name was registered twice.
    pub fn new() -> Result<Self, MetricsError> {
        let make = Registrar(Registry::new());
        let metrics = Metrics {
            requests: RequestCounters::new(make.counters(
                "requests_total",
                "Requests with a response, by route, method, status, cache result and source of a 5xx response.",
                &["route", "method", "status", "cache", "error_source"],
            )?),
            request_duration: RequestDurations::new(make.histograms(
                "request_duration_seconds",
                "Time from the request head to the end of the response, in seconds.",
                &["route", "cache"],
            )?),
            cache_entries: make.gauge("cache_entries", "Cached responses.")?,
            cache_bytes: make.gauge("cache_bytes", "Memory of cached responses, bookkeeping included.")?,
            cache_capacity: make.gauge("cache_capacity_bytes", "Maximum memory of cached responses.")?,
            evictions: SeriesCache::counters(make.counters(
                "cache_evictions_total",
                "Cached responses that were removed, by cause.",
                &["cause"],
            )?),
            not_stored: SeriesCache::counters(make.counters(
                "cache_not_stored_total",
                "Responses of the API to fetches that were not stored, by reason.",
                &["reason"],
            )?),
            invalidations: SeriesCache::counters(make.counters(
                "cache_invalidations_total",
                "Invalidations, by scope and trigger.",
                &["scope", "trigger"],
            )?),
            stale_served: SeriesCache::counters(make.counters(
                "cache_stale_served_total",
                "Stale responses served, by reason.",
                &["reason"],
            )?),
            coalesced: make.register(IntCounter::new(
                format!("{PREFIX}coalesced_requests_total"),
                "Requests served by the fetch of another request.",
            )?)?,
            fast_path: make.register(IntCounter::new(
                format!("{PREFIX}fast_path_hits_total"),
                "Cache hits served on the fast path; other hits took the ordinary path.",
            )?)?,
            validations: SeriesCache::counters(make.counters(
                "identity_validations_total",
                "Validations of tokens by the API, by result.",
                &["result"],
            )?),
            identity_lookups: SeriesCache::counters(make.counters(
                "identity_lookups_total",
                "Lookups of cached validations, by result.",
                &["result"],
            )?),
            redactions: SeriesCache::counters(make.counters(
                "redactions_total",
                "Redacted documents, by access level of the caller.",
                &["role"],
            )?),
            redaction_failures: SeriesCache::counters(make.counters(
                "redaction_failures_total",
                "Responses of the API that could not be redacted safely, by reason.",
                &["reason"],
            )?),
            over_limit: SeriesCache::counters(make.counters(
                "over_limit_total",
                "Connections and requests refused (with or without a response), and HTTP/2 connections \
                 ended, because a limit was reached.",
                &["limit"],
            )?),
            accept_errors: SeriesCache::counters(make.counters(
                "accept_errors_total",
                "Attempts to accept a connection that failed, by listener and reason.",
                &["listener", "reason"],
            )?),
            upstream_duration: SeriesCache::histograms(make.histograms(
                "upstream_request_duration_seconds",
                "Time of exchanges with the API, queueing included, in seconds.",
                &["kind"],
            )?),
            upstream_errors: SeriesCache::counters(make.counters(
                "upstream_errors_total",
                "Failed exchanges with the API, by kind.",
                &["kind"],
            )?),
            upstream_error_causes: SeriesCache::counters(make.counters(
                "upstream_error_causes_total",
                "Failed exchanges with the API, by exact cause such as a certificate error or the phase of a timeout.",
                &["cause"],
            )?),
            upstream_in_flight: make
                .gauge("upstream_in_flight", "Requests of the gateway's own to the API that are under way.")?,
            circuit_open: make.gauge("circuit_open", "1 while the circuit breaker is open, 0 otherwise.")?,
            tier_requests: SeriesCache::counters(make.counters(
                "tier_requests_total",
                "Lookups in the shared tier, by kind of value and result.",
                &["what", "result"],
            )?),
            tier_lookup_duration: SeriesCache::histograms(make.histograms(
                "tier_request_duration_seconds",
                "Time of lookups in the shared tier, including the wait for another gateway's fetch, in seconds.",
                &["what"],
            )?),
            tier_writes: SeriesCache::counters(make.counters(
                "tier_writes_total",
                "Writes to the shared tier, by kind of value, operation and result.",
                &["what", "operation", "result"],
            )?),
            tier_errors: SeriesCache::counters(make.counters(
                "tier_errors_total",
                "Failed operations of the shared tier and unusable values, by kind.",
                &["kind"],
            )?),
            reload_successful: make.gauge(
                "config_last_reload_successful",
                "1 if the last configuration was applied, 0 if it was rejected.",
            )?,
            reload_timestamp: make.gauge(
                "config_last_reload_success_timestamp_seconds",
                "Time of the last applied configuration, in seconds since the epoch.",
            )?,
            tls_handshake_failures: Arc::new(SeriesCache::counters(make.counters(
                "tls_handshake_failures_total",
                "Failed TLS handshakes, by reason, and by cause where a client certificate was rejected.",
                &["reason", "cause"],
            )?)),
            admin_refused: make.register(IntCounter::new(
                format!("{PREFIX}admin_credentials_refused_total"),
                "Requests to the admin listener without a valid token.",
            )?)?,
            log_lines_dropped: make.register(IntCounter::new(
                format!("{PREFIX}log_lines_dropped_total"),
                "Dropped log lines: the buffer was full, or writing failed.",
            )?)?,
            not_stored_seen: AtomicU32::new(0),
            hits: AtomicI64::new(0),
            misses: AtomicI64::new(0),
            consecutive_upstream_failures: AtomicU32::new(0),
            fast_path_hits: ThreadLocalCounters::default(),
            exemplars: Exemplars::default(),
            registry: make.0.clone(),
        };
        let build = make.register(IntGaugeVec::new(
            Opts::new(format!("{PREFIX}build_info"), "Version of the running gateway; always 1."),
            &["version", "revision"],
        )?)?;
        let revision = env!("TELECOMX_GATEWAY_REVISION");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        metrics.register(ProcessMetrics::new()?)?;
        metrics.set_reload_applied();
        metrics.create_series();
        Ok(metrics)
    }

    /// Creates the series whose label values are known.
    fn create_series(&self) {
        self.requests.create_usual_series();
        self.evictions.create(EVICTION_CAUSES.map(|cause| [cause]));
        self.not_stored.create(NotStored::ALL.map(|reason| [reason.as_str()]));
        for scope in SCOPES {
            self.invalidations.create(TRIGGERS.map(|trigger| [scope, trigger]));
        }
        self.stale_served.create(StaleReason::ALL.iter().map(|reason| [reason.as_str()]));
        self.validations.create(ValidationOutcome::ALL.iter().map(|outcome| [outcome.as_str()]));
        self.identity_lookups.create(IdentityLookup::ALL.iter().map(|result| [result.as_str()]));
        self.redactions.create(AccessLevel::ALL.map(|level| [level.as_str()]));
        self.redactions.create([[ROLE_OF_RESPONSE]]);
        self.redaction_failures.create(Reason::ALL.map(|reason| [reason.as_str()]));
        self.redaction_failures.create(RESPONSE_REFUSALS.map(|reason| [reason]));
        self.over_limit.create(LIMITS.map(|limit| [limit]));
        for listener in ["public", "admin"] {
            self.accept_errors.create(["descriptors", "other"].map(|reason| [listener, reason]));
        }
        self.upstream_duration.create(ExchangeKind::ALL.iter().map(|kind| [kind.as_str()]));
    }

    /// Creates the series of the failures of exchanges with the API.
    pub fn create_upstream_errors(&self, failures: impl IntoIterator<Item = UpstreamFailure>) {
        for UpstreamFailure { kind, cause } in failures {
            self.upstream_errors.create([[kind]]);
            self.upstream_error_causes.create([[cause]]);
        }
    }

    /// Creates the series of a shared tier.
    pub fn create_tier_series(&self) {
        for kind in TIER_KINDS {
            self.tier_requests.create(TIER_RESULTS.map(|result| [kind, result]));
            self.tier_lookup_duration.create([[kind]]);
            for operation in TIER_OPERATIONS {
                self.tier_writes.create(["ok", "error"].map(|result| [kind, operation, result]));
            }
        }
        self.tier_errors.create(TIER_ERRORS.map(|kind| [kind]));
    }

    /// Counts a request.
    pub fn record_request(&self, record: &Record, duration: Duration) {
        if record.on_fast_path {
            return self.record_fast_path_hit(record, duration);
        }
        self.requests.for_record(record).inc();
        self.request_duration.for_record(record).observe(duration.as_secs_f64());
        let cache = record.cache_label();
        match is_hit(cache) {
            Some(true) => self.hits.fetch_add(1, Ordering::Relaxed),
            Some(false) => self.misses.fetch_add(1, Ordering::Relaxed),
            None => 0,
        };
        if cache == "collapsed" {
            self.coalesced.inc();
        }
    }

    /// Keeps the span of a counted request as the exemplar of its bucket.
    pub fn add_exemplar(&self, record: &Record, span: SampledSpan, duration: Duration) {
        self.exemplars.add_request(record, span, duration);
    }

    /// Keeps the span of a forwarded request as the exemplar of its exchange with the API.
    pub fn add_forward_exemplar(&self, span: SampledSpan, duration: Duration) {
        self.exemplars.add_forward(span, duration);
    }

    /// Counts a fast path hit with a cached validation.
    fn record_fast_path_hit(&self, record: &Record, duration: Duration) {
        let new = || HitCounters {
            requests: Vec::new(),
            durations: self.request_duration.for_record(record).local(),
            hits: 0,
        };
        let new_counter = || self.requests.for_record(record).local();
        self.fast_path_hits
            .with_current(new, |counters| counters.count(record, duration, new_counter));
    }

    /// Adds the per-thread counts of fast path hits to the series.
    fn flush_threads(&self) {
        let hits = self.fast_path_hits.flush();
        if hits > 0 {
            self.fast_path.inc_by(hits);
            self.identity_lookups.inc_by(["hit"], hits);
            self.hits.fetch_add(hits as i64, Ordering::Relaxed);
        }
    }

    /// Hits and misses since the start. Hits include stale and shared responses, misses include
    /// collapsed requests.
    pub fn hits_and_misses(&self) -> (i64, i64) {
        self.flush_threads();
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    pub fn set_cache_usage(&self, entries: u64, bytes: u64, capacity: u64) {
        self.cache_entries.set(entries as i64);
        self.cache_bytes.set(bytes as i64);
        self.cache_capacity.set(capacity as i64);
    }

    pub fn count_evictions(&self, cause: &'static str, count: u64) {
        self.evictions.inc_by([cause], count);
    }

    /// Counts a fetched response that was not stored. Returns whether it is the first one for this
    /// reason.
    pub fn count_not_stored(&self, reason: NotStored) -> bool {
        self.not_stored.inc([reason.as_str()]);
        let bit = 1 << reason as u32;
        self.not_stored_seen.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    pub fn count_invalidation(&self, scope: &'static str, trigger: &'static str) {
        self.invalidations.inc([scope, trigger]);
    }

    pub fn count_stale_response(&self, reason: StaleReason) {
        self.stale_served.inc([reason.as_str()]);
    }

    pub fn count_validation(&self, outcome: ValidationOutcome) {
        self.validations.inc([outcome.as_str()]);
    }

    pub fn count_identity_lookup(&self, result: IdentityLookup) {
        self.identity_lookups.inc([result.as_str()]);
    }

    /// Counts a redacted document. `role` is the caller's access level, or `answer` if the response
    /// itself states the level.
    pub fn count_redaction(&self, role: &'static str) {
        self.redactions.inc([role]);
    }

    pub fn count_redaction_failure(&self, reason: &'static str) {
        self.redaction_failures.inc([reason]);
    }

    /// Counts a refusal because a limit was reached.
    pub fn count_over_limit(&self, limit: &'static str) {
        self.over_limit.inc([limit]);
    }

    /// Counts a failed attempt to accept a connection.
    pub fn count_accept_error(&self, listener: &'static str, reason: &'static str) {
        self.accept_errors.inc([listener, reason]);
    }

    /// Counts an exchange with the API. `kind` is its purpose.
    pub fn record_upstream_exchange(
        &self,
        kind: &'static str,
        duration: Duration,
        failure: Option<UpstreamFailure>,
    ) {
        self.upstream_duration.observe([kind], duration);
        let Some(UpstreamFailure { kind, cause }) = failure else {
            // Read first: a store would take the cache line from the other threads.
            if self.consecutive_upstream_failures.load(Ordering::Relaxed) > 0 {
                self.consecutive_upstream_failures.store(0, Ordering::Relaxed);
            }
            return;
        };
        self.upstream_errors.inc([kind]);
        self.upstream_error_causes.inc([cause]);
        // The others say nothing about the API.
        if !matches!(kind, "queue_full" | "descriptors" | "too_large") {
            self.consecutive_upstream_failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Failed exchanges with the API since the last one that succeeded.
    pub fn consecutive_upstream_failures(&self) -> u32 {
        self.consecutive_upstream_failures.load(Ordering::Relaxed)
    }

    /// Counts a lookup in the shared tier.
    pub fn count_tier_lookup(&self, what: &'static str, result: &'static str) {
        self.tier_requests.inc([what, result]);
    }

    pub fn observe_tier_lookup(&self, what: &'static str, duration: Duration) {
        self.tier_lookup_duration.observe([what], duration);
    }

    /// Counts a write to the shared tier.
    pub fn count_tier_write(
        &self,
        what: &'static str,
        operation: &'static str,
        result: &'static str,
    ) {
        self.tier_writes.inc([what, operation, result]);
    }

    /// Counts a failed operation of the shared tier or an unusable value in it.
    pub fn count_tier_error(&self, kind: &'static str) {
        self.tier_errors.inc([kind]);
    }

    /// Counts one of the gateway's own requests as in flight until the guard is dropped.
    pub fn track_fetch(&self) -> impl Drop + use<> {
        struct InFlight(IntGauge);
        impl Drop for InFlight {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.upstream_in_flight.inc();
        InFlight(self.upstream_in_flight.clone())
    }

    pub fn fetches_in_flight(&self) -> i64 {
        self.upstream_in_flight.get()
    }

    pub fn set_circuit_open(&self, open: bool) {
        self.circuit_open.set(i64::from(open));
    }

    pub fn set_reload_applied(&self) {
        self.reload_successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.reload_timestamp.set(now.as_secs() as i64);
    }

    pub fn set_reload_rejected(&self) {
        self.reload_successful.set(0);
    }

    /// Counts a request to the admin listener without a valid token.
    pub fn count_admin_refusal(&self) {
        self.admin_refused.inc();
    }

    /// The counter of dropped log lines.
    pub fn log_lines_dropped(&self) -> IntCounter {
        self.log_lines_dropped.clone()
    }

    /// Registers a collector.
    ///
    /// # Errors
    ///
    /// One of its names is registered already.
    pub fn register(&self, collector: impl Collector + 'static) -> Result<(), MetricsError> {
        self.registry.register(Box::new(collector))
    }

    /// Registers the metrics of TLS listeners.
    ///
    /// # Errors
    ///
    /// They are registered already.
    pub fn register_tls(&self) -> Result<TlsMetrics, MetricsError> {
        let make = Registrar(self.registry.clone());
        self.tls_handshake_failures.create(HANDSHAKE_FAILURES.map(|reason| [reason, ""]));
        let faults = CLIENT_CERTIFICATE_FAULTS.map(|cause| [CLIENT_CERTIFICATE, cause]);
        self.tls_handshake_failures.create(faults);
        let handshakes = SeriesCache::counters(make.counters(
            "tls_handshakes_total",
            "Successful TLS handshakes, by whether the session was resumed.",
            &["kind"],
        )?);
        handshakes.create(HANDSHAKES.map(|kind| [kind]));
        Ok(TlsMetrics {
            expiry: make.gauge(
                "tls_certificate_expiry_timestamp_seconds",
                "Earliest expiry in the certificate chains, in seconds since the epoch.",
            )?,
            certificate_expiry: make.gauges(
                "tls_server_certificate_expiry_timestamp_seconds",
                "Earliest expiry in the chains with this first name, in seconds since the epoch.",
                &["certificate"],
            )?,
            load_successful: make.gauge(
                "tls_last_load_successful",
                "1 if certificate, key and authority files were loaded when they last changed, 0 otherwise.",
            )?,
            failures: self.tls_handshake_failures.clone(),
            handshakes,
        })
    }

    /// Registers the metrics of the export of spans.
    ///
    /// # Errors
    ///
    /// They are registered already.
    #[cfg(feature = "otlp")]
    pub fn register_export(&self) -> Result<ExportMetrics, MetricsError> {
        let make = Registrar(self.registry.clone());
        let spans = make.counters(
            "otlp_spans_total",
            "Spans exported to the collector, by result.",
            &["result"],
        )?;
        create(&spans, &["sent", "failed"]);
        Ok(ExportMetrics { spans })
    }

    /// Registers the metrics of the change log poller. `reasons` are those of failed
    /// polls.
    ///
    /// # Errors
    ///
    /// They are registered already.
    pub fn register_change_log(&self, reasons: &[&str]) -> Result<ChangeLogMetrics, MetricsError> {
        let make = Registrar(self.registry.clone());
        let failures = make.counters(
            "change_log_failures_total",
            "Failed polls of the change log, by reason.",
            &["reason"],
        )?;
        create(&failures, reasons);
        let entries = make.counters(
            "change_log_entries_total",
            "New entries of the change log, by outcome.",
            &["outcome"],
        )?;
        create(&entries, &CHANGE_LOG_OUTCOMES);
        Ok(ChangeLogMetrics {
            last_read: make.gauge(
                "change_log_last_read_timestamp_seconds",
                "Time of the last successful poll of the change log, in seconds since the epoch; 0 \
                 before the first one.",
            )?,
            failures,
            entries,
        })
    }

    /// The current value of every metric.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.flush_threads();
        self.registry.gather()
    }

    /// Registers the metrics of the invalidation stream.
    ///
    /// # Errors
    ///
    /// They are registered already.
    pub fn register_bus(&self) -> Result<BusMetrics, MetricsError> {
        let make = Registrar(self.registry.clone());
        let spread = make.histograms(
            "cluster_spread_seconds",
            "Time from an invalidation until it was read back from the invalidation stream, in seconds.",
            &[],
        )?;
        let silence = Opts::new(
            format!("{PREFIX}cluster_silence_seconds"),
            "Time since the invalidation stream was last read to its end, in seconds.",
        );
        let messages = make.counters(
            "cluster_messages_total",
            "Invalidations published and received, by direction.",
            &["direction"],
        )?;
        create(&messages, &STREAM_DIRECTIONS);
        let drops = make.counters(
            "cluster_drops_total",
            "Purges of the whole cache because invalidations may have been missed, by reason.",
            &["reason"],
        )?;
        create(&drops, &STREAM_GAPS);
        let errors = make.counters(
            "cluster_errors_total",
            "Failed operations of Redis and invalid messages, by kind.",
            &["kind"],
        )?;
        create(&errors, &STREAM_ERRORS);
        Ok(BusMetrics {
            connected: make
                .gauge("cluster_connected", "1 while the invalidation stream is read.")?,
            isolated: make.gauge(
                "cluster_isolated",
                "1 while the cache is not used because the invalidation stream cannot be read.",
            )?,
            waiting: make
                .gauge("cluster_waiting_changes", "Invalidations that are not published yet.")?,
            silence: make.register(Gauge::with_opts(silence)?)?,
            messages,
            drops,
            errors,
            spread: spread.with_label_values(&[] as &[&str]),
        })
    }

    /// Encodes every metric in the Prometheus text format.
    ///
    /// # Errors
    ///
    /// A metric cannot be encoded: an internal error.
    pub fn text(&self) -> Result<String, MetricsError> {
        TextEncoder::new().encode_to_string(&self.families())
    }

    /// Encodes every metric in the OpenMetrics text format, with exemplars.
    pub fn open_metrics(&self) -> String {
        open_metrics::encode(&self.families(), &self.exemplars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_with_one_label_show_their_earliest_expiry() {
        let metrics = Metrics::new().unwrap();
        let tls = metrics.register_tls().unwrap();
        let series = |label: &str| {
            let text = metrics.text().unwrap();
            let name = format!("{PREFIX}tls_server_certificate_expiry_timestamp_seconds");
            let prefix = format!("{name}{{certificate=\"{label}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
        };
        for expiries in [[30, 20], [20, 30]] {
            let certificates = [("default", 10), ("a.example", expiries[0])];
            let certificates = certificates.into_iter().chain([("a.example", expiries[1])]);
            tls.set_loaded(true, certificates);
            assert_eq!(series("a.example").as_deref(), Some("20"), "{expiries:?}");
            assert_eq!(series("default").as_deref(), Some("10"));
        }
        tls.set_loaded(true, [("default", 10)].into_iter());
        assert_eq!(series("a.example"), None, "a removed certificate");
    }
}
