//! What is told of the gateway's work: metrics, one record of each request, logs. Never an id, a token, a path or a secret.

mod handles;
mod history;
mod lines;
mod logs;
mod metrics;
mod record;
mod trace;

pub use history::{EVERY as SAMPLED_EVERY, History};
pub use logs::{LogLevels, LogSetupError, exit, flush, install};
pub use metrics::{BusMetrics, ChangeLogMetrics, Metrics, TlsMetrics};
pub use record::{Record, Route};
pub use trace::{TRACEPARENT, TRACESTATE, Trace};
