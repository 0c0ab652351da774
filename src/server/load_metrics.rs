//! Metrics of connections, requests under way and streams, next to their limits. They are read from
//! [`Admission`] at each scrape, so that counting them costs no lock.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::admission::{Admission, Limit};
use super::listener_kind::ListenerKind;
use super::state::ActiveState;
use crate::telemetry::PREFIX;

/// The families of one scrape.
struct Families {
    connections: IntGaugeVec,
    connections_limit: IntGauge,
    accepted: IntCounterVec,
    refused: IntCounterVec,
    requests: IntGauge,
    requests_limit: IntGauge,
    streams: IntGauge,
}

impl Families {
    fn new() -> prometheus::Result<Self> {
        let options = |name: &str, help: &str| Opts::new(format!("{PREFIX}{name}"), help);
        Ok(Families {
            connections: IntGaugeVec::new(
                options("connections", "Open connections of clients that are served, by listener."),
                &["listener"],
            )?,
            connections_limit: IntGauge::with_opts(options(
                "connections_limit",
                "Maximum number of open connections on the public listener.",
            ))?,
            accepted: IntCounterVec::new(
                options("connections_accepted_total", "Connections that were served, by listener."),
                &["listener"],
            )?,
            refused: IntCounterVec::new(
                options(
                    "connections_refused_total",
                    "Connections on the public listener that were refused, with or without a \
                     response, by reason.",
                ),
                &["reason"],
            )?,
            requests: IntGauge::with_opts(options(
                "requests_in_flight",
                "Requests under way, except cache hits that are written at once.",
            ))?,
            requests_limit: IntGauge::with_opts(options(
                "requests_in_flight_limit",
                "Maximum number of requests under way.",
            ))?,
            streams: IntGauge::with_opts(options(
                "http2_streams",
                "HTTP/2 requests under way, except cache hits that are written at once.",
            ))?,
        })
    }

    fn collectors(&self) -> [&dyn Collector; 7] {
        [
            &self.connections,
            &self.connections_limit,
            &self.accepted,
            &self.refused,
            &self.requests,
            &self.requests_limit,
            &self.streams,
        ]
    }

    fn fill(&self, admission: &Admission, max_connections: usize, max_requests: usize) {
        for kind in [ListenerKind::Public, ListenerKind::Admin] {
            let counts = admission.connections_of(kind);
            let label = [kind.as_str()];
            self.connections.with_label_values(&label).set(gauge(counts.open()));
            self.accepted.with_label_values(&label).inc_by(counts.accepted());
        }
        for reason in Limit::OF_CONNECTIONS {
            let count = admission.refused_connections(reason);
            self.refused.with_label_values(&[reason.as_str()]).inc_by(count);
        }
        self.connections_limit.set(gauge(max_connections));
        self.requests.set(gauge(admission.requests_in_flight()));
        self.requests_limit.set(gauge(max_requests));
        self.streams.set(gauge(admission.open_streams()));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Collector of the load of the process.
pub struct LoadMetrics {
    active: Arc<ActiveState>,
    /// Descriptions of the families, whose values stay 0.
    described: Families,
}

impl LoadMetrics {
    /// # Errors
    ///
    /// A name or help text is invalid.
    pub fn new(active: Arc<ActiveState>) -> prometheus::Result<Self> {
        Ok(LoadMetrics { active, described: Families::new()? })
    }
}

impl Collector for LoadMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.described.collectors().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // New values for each scrape, because counters cannot be set.
        let Ok(families) = Families::new() else { return Vec::new() };
        let state = self.active.load();
        let limits = state.limits;
        families.fill(&state.process.admission, limits.max_connections, limits.requests.all);
        families.collectors().into_iter().flat_map(Collector::collect).collect()
    }
}
