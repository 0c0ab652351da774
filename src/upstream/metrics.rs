//! Metrics of the addresses of the API, read when they are scraped.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounter, IntGaugeVec, Opts};

use super::connector::Connector;
use super::endpoint::EndpointState;
use crate::telemetry::{MetricsError, PREFIX};

const STATES: [EndpointState; 3] =
    [EndpointState::Healthy, EndpointState::Suspect, EndpointState::Ejected];

/// Collector over a [`Connector`].
pub struct AddressMetrics {
    connector: Arc<Connector>,
    state: IntGaugeVec,
    connections: IntGaugeVec,
    in_flight: IntGaugeVec,
    opened: IntCounter,
    reused: IntCounter,
    resolution_age: Gauge,
    /// Held while the values are collected: two scrapes at once would count connections twice.
    collecting: Mutex<()>,
}

impl AddressMetrics {
    /// # Errors
    ///
    /// A name is not valid: internal error.
    pub fn new(connector: Arc<Connector>) -> Result<Self, MetricsError> {
        let options = |name: &str, help: &str| Opts::new(format!("{PREFIX}{name}"), help);
        let gauges = |name, help, labels: &[&str]| IntGaugeVec::new(options(name, help), labels);
        let counter = |name, help| IntCounter::with_opts(options(name, help));
        Ok(AddressMetrics {
            connector,
            state: gauges(
                "upstream_address_state",
                "1 for the state of each address of the API. The label is a short digest; /stats lists addresses.",
                &["address", "state"],
            )?,
            connections: gauges(
                "upstream_address_connections",
                "Open connections to each address of the API.",
                &["address", "state"],
            )?,
            in_flight: gauges(
                "upstream_address_in_flight",
                "Requests under way at each address of the API, forwarded ones included.",
                &["address"],
            )?,
            opened: counter("upstream_connections_opened_total", "Connections opened to the API.")?,
            reused: counter(
                "upstream_connections_reused_total",
                "Requests sent on a kept connection to the API.",
            )?,
            resolution_age: Gauge::with_opts(options(
                "upstream_resolution_age_seconds",
                "Time since every host name in upstream.url was last resolved.",
            ))?,
            collecting: Mutex::new(()),
        })
    }
}

impl Collector for AddressMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let vectors =
            [&self.state, &self.connections, &self.in_flight].into_iter().flat_map(Collector::desc);
        let single = self
            .opened
            .desc()
            .into_iter()
            .chain(self.reused.desc())
            .chain(self.resolution_age.desc());
        vectors.chain(single).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _collecting = self.collecting.lock();
        // Addresses that are gone must not stay.
        [&self.state, &self.connections, &self.in_flight].into_iter().for_each(IntGaugeVec::reset);
        for address in self.connector.addresses() {
            let name = address.name.as_str();
            for state in STATES {
                let is_current = i64::from(state == address.state);
                self.state.with_label_values(&[name, state.as_str()]).set(is_current);
            }
            let set = |state, count: usize| {
                self.connections
                    .with_label_values(&[name, state])
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            };
            set("idle", address.idle);
            set("active", address.open.saturating_sub(address.idle));
            self.in_flight
                .with_label_values(&[name])
                .set(i64::try_from(address.in_flight).unwrap_or(i64::MAX));
        }
        let (opened, reused) = self.connector.connection_counts();
        self.opened.inc_by(opened.saturating_sub(self.opened.get()));
        self.reused.inc_by(reused.saturating_sub(self.reused.get()));
        let vectors = [&self.state, &self.connections, &self.in_flight]
            .into_iter()
            .flat_map(Collector::collect);
        let mut families: Vec<_> =
            vectors.chain(self.opened.collect()).chain(self.reused.collect()).collect();
        if let Some(age) = self.connector.resolution_age() {
            self.resolution_age.set(age.as_secs_f64());
            families.extend(self.resolution_age.collect());
        }
        families
    }
}
