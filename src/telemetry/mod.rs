//! Metrics, the record of each request, logs, and the samples behind the status page. None of them
//! holds an id, a token, a path or a secret.

mod exemplars;
mod history;
mod labels;
mod log_writer;
mod logs;
mod metrics;
mod open_metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod process_metrics;
mod record;
mod record_end;
mod series_cache;
mod thread_local_counters;
mod trace;

pub use exemplars::SampledSpan;
pub use history::{History, RecentOutcomes, SAMPLE_INTERVAL};
pub use labels::{ExchangeKind, IdentityLookup, PREFIX, StaleReason, ValidationOutcome};
pub use logs::{LogLevels, LogSetupError, exit, flush, install};
#[cfg(feature = "otlp")]
pub use metrics::ExportMetrics;
pub use metrics::{
    BusMetrics, ChangeLogMetrics, Metrics, MetricsError, TlsMetrics, UpstreamFailure,
};
#[cfg(feature = "otlp")]
pub use otlp::export;
pub use record::{ApiExchange, Record, Route};
pub use trace::{TRACEPARENT, TRACESTATE, Trace};
