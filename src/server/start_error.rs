//! The reason why the gateway did not start.

use thiserror::Error;

/// Reason why the gateway did not start. The text names each fault on a line.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is invalid, or a file that it names is.
    #[error("{0}")]
    Configuration(String),
    /// The environment prevents it, such as an occupied port.
    #[error("{0}")]
    Environment(String),
}
