//! Logs: JSON or text on standard error, written by a separate thread ([`LogWriter`]).
//!
//! The gateway's own messages follow `log.level`. Access lines follow `log.access` alone, and audit
//! lines are always written. Libraries log errors only, whatever the level: at
//! lower levels they print request heads and responses, which contain tokens and secrets.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt as subscriber_fmt, reload};

use super::Metrics;
use super::log_writer::{AUDIT_TARGET, LogOutput, LogWriter};
use crate::config::{Log, LogFormat, LogLevel};

/// Target of access log lines.
pub const ACCESS_TARGET: &str = "telecomx_gateway::access";

/// How long the end of the process waits for queued lines: without progress, and in total.
const FLUSH_STALL_MAX: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a panic. It is short: the process may go on, and the panic happens on a thread that
/// serves requests.
const PANIC_FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// The writer of the process, which has one subscriber.
static WRITER: OnceLock<Arc<LogWriter>> = OnceLock::new();

/// Why logging could not be set up.
#[derive(Debug)]
pub enum LogSetupError {
    /// A subscriber is installed already: an internal error.
    AlreadyInstalled(TryInitError),
    /// The writer's thread could not be started.
    Thread(io::Error),
}

impl fmt::Display for LogSetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot set up logging: ")?;
        match self {
            LogSetupError::AlreadyInstalled(error) => error.fmt(f),
            LogSetupError::Thread(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LogSetupError {}

/// Handle by which a reload changes the log level.
pub struct LogLevels(reload::Handle<Targets, Registry>);

impl LogLevels {
    pub fn set(&self, level: LogLevel) {
        // It fails only after the subscriber is gone.
        let _ = self.0.reload(targets(level));
    }
}

/// Starts logging. Called once per process.
///
/// # Errors
///
/// It was called before, or the writer's thread could not be started.
pub fn install(config: &Log, metrics: &Metrics) -> Result<LogLevels, LogSetupError> {
    let (filter, handle) = reload::Layer::new(targets(config.level));
    let writer = Arc::new(LogWriter::new(config.buffer, metrics.log_lines_dropped()));
    let layer = subscriber_fmt::layer().with_writer(LogOutput(writer.clone()));
    let layer = match config.format {
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
        LogFormat::Text => layer.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(LogSetupError::AlreadyInstalled)?;
    WRITER.get_or_init(|| writer.clone()).spawn(io::stderr()).map_err(LogSetupError::Thread)?;
    // The location alone: the message may contain bytes of a request.
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "internal error");
        writer.flush(PANIC_FLUSH_TIMEOUT, PANIC_FLUSH_TIMEOUT);
    }));
    Ok(LogLevels(handle))
}

/// Waits until all queued lines are written, or until the output has stalled for too long.
pub fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush(FLUSH_STALL_MAX, FLUSH_TIMEOUT);
    }
}

/// Exits once all queued lines are written.
#[expect(clippy::disallowed_methods, reason = "the only exit: it flushes the log first")]
pub fn exit(code: i32) -> ! {
    #[cfg(feature = "otlp")]
    super::otlp::flush();
    flush();
    std::process::exit(code);
}

fn targets(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Errors of pingora's server concern listeners. Its other messages repeat ours and contain
    // bytes of the request that failed.
    Targets::new()
        .with_target("telecomx_gateway", own)
        .with_target(ACCESS_TARGET, LevelFilter::INFO)
        .with_target(AUDIT_TARGET, LevelFilter::INFO)
        .with_target("pingora_core::server", LevelFilter::ERROR)
        .with_default(LevelFilter::OFF)
}
