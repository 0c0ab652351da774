//! Logs: JSON or text, on standard error, written by a thread of their own ([`Lines`]).
//!
//! The gateway's own messages follow `log.level`. Those of the libraries beneath are kept to errors whatever the level:
//! at lower ones they print request heads and answers, where tokens and secrets stand.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt as subscriber_fmt, reload};

use super::Metrics;
use super::lines::Lines;
use crate::config::{Log, LogFormat, LogLevel};

/// How long the end of the process waits for lines to be written: so long for one of them, and so long in all.
const QUIET: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(5);

/// The same for a panic, which need not be the end, and which happens where requests are answered.
const QUIET_AT_A_PANIC: Duration = Duration::from_millis(100);

/// The process's lines, as there is one subscriber for the process.
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Why there is no log.
#[derive(Debug)]
pub enum LogSetupError {
    /// A subscriber was installed before, which is internal error.
    Twice(TryInitError),
    /// There can be no thread that writes.
    Thread(io::Error),
}

impl fmt::Display for LogSetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("logs cannot be set up: ")?;
        match self {
            LogSetupError::Twice(error) => error.fmt(f),
            LogSetupError::Thread(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LogSetupError {}

/// The level of what is logged, which a reload may change.
pub struct LogLevels(reload::Handle<Targets, Registry>);

impl LogLevels {
    pub fn set(&self, level: LogLevel) {
        // It fails only when nothing logs any more.
        let _ = self.0.reload(targets(level));
    }
}

/// Begins to log, once for the process.
///
/// # Errors
/// It was called before, or there can be no thread that writes.
pub fn install(config: &Log, metrics: &Metrics) -> Result<LogLevels, LogSetupError> {
    let (filter, handle) = reload::Layer::new(targets(config.level));
    let lines = Arc::new(Lines::new(config.buffer, metrics.log_lines_dropped()));
    let layer = subscriber_fmt::layer().with_writer(lines.clone());
    let layer = match config.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(LogSetupError::Twice)?;
    LINES.get_or_init(|| lines.clone()).write_to(io::stderr()).map_err(LogSetupError::Thread)?;
    // Where it happened, and no word of what it choked on, which may be a caller's.
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "internal error");
        lines.flush(QUIET_AT_A_PANIC, QUIET_AT_A_PANIC);
    }));
    Ok(LogLevels(handle))
}

/// Waits until what was logged is written, unless nobody takes it.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(QUIET, LONGEST);
    }
}

/// Ends the process once what was logged is written.
#[expect(clippy::disallowed_methods, reason = "the one place where it is right")]
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
    // The errors of pingora's server are about listeners; what its others say repeats ours, with bytes of what failed.
    Targets::new()
        .with_target("telecomx_gateway", own)
        .with_target("pingora_core::server", LevelFilter::ERROR)
        .with_default(LevelFilter::OFF)
}
