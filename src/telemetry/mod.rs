//! What is told of the gateway's work: metrics, one record of each request, logs. Never an id, a token, a path or a secret.

mod handles;
mod history;
mod lines;
mod logs;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod record;
mod record_end;
mod tally;
mod trace;

pub use history::{EVERY as SAMPLED_EVERY, History};
pub use logs::{LogLevels, LogSetupError, exit, flush, install};
#[cfg(feature = "otlp")]
pub use metrics::ExportMetrics;
pub use metrics::{BusMetrics, ChangeLogMetrics, Metrics, MetricsError, PREFIX, TlsMetrics, UpstreamFailure};
#[cfg(feature = "otlp")]
pub use otlp::export;
pub use record::{Record, Route};
pub use trace::{TRACEPARENT, TRACESTATE, Trace};
