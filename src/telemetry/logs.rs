//! Logs: JSON or text, on standard error.
//!
//! The gateway's own messages follow `log.level`. Those of the libraries beneath are kept to errors whatever the level:
//! at lower ones they print request heads and answers, where tokens and secrets stand.

use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt as subscriber_fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// A subscriber was installed before, which is a fault of the program.
#[derive(Debug)]
pub struct LogSetupError(TryInitError);

impl fmt::Display for LogSetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "logs cannot be set up: {}", self.0)
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
/// It was called before.
pub fn install(config: &Log) -> Result<LogLevels, LogSetupError> {
    let (filter, handle) = reload::Layer::new(targets(config.level));
    let layer = subscriber_fmt::layer().with_writer(std::io::stderr);
    let layer = match config.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(LogSetupError)?;
    // Where it happened, and no word of what it choked on, which may be a caller's.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a fault of the program");
    }));
    Ok(LogLevels(handle))
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
