//! The way to the API: where it is, and the gateway's own requests to it, bounded in time, size and number.
//!
//! Redirects are never followed, plain text is never tried instead of TLS, and a connection on which anything was odd is
//! not used again.

mod anchors;
mod breaker;
mod client;
mod connector;
mod endpoint;
mod exchange;
mod metrics;
mod places;
mod pool;
mod resolver;
mod stream;
mod tls;
mod transport;

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, StatusCode};

pub use anchors::TrustError;
pub use breaker::{Breaker, Circuit, Outcome};
pub use client::{Client, Kind, Request, Transport};
pub use connector::{AddressStatus, Connection, Connector};
pub use endpoint::{Endpoint, EndpointOutcome, EndpointState};
pub use exchange::{Event, Exchange};
pub use metrics::AddressMetrics;
pub use places::Payer;
pub use tls::{TlsFailure, check_files};
pub use transport::{Connections, STALE_CONNECTIONS_MAX};

use crate::api::ApiError;
use crate::telemetry::UpstreamFailure;

/// Time for which a forwarded exchange may be silent in either direction. Long polls and websocket
/// pings are shorter.
pub const FORWARD_SILENCE: Duration = Duration::from_secs(75);

/// Informational answers (1xx) before the real one.
pub const MAX_INFORMATIONAL: usize = 8;

/// An answer of the API, whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why the API gave no answer that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// No address for its name.
    Resolve,
    /// No connection.
    Connect,
    /// The TLS handshake failed, or took too long.
    Tls(TlsFailure),
    /// The process has no file descriptor left for a connection.
    Descriptors,
    /// No response head in time.
    Timeout,
    /// No end of the response body in time.
    BodyTimeout,
    /// Not HTTP as it should be.
    Protocol,
    /// The connection ended before the answer did.
    Truncated,
    /// The API accepted the connection and ended it before any of an answer.
    NoResponse,
    /// Larger than `upstream.max_body`.
    TooLarge,
    /// Too many requests wait already.
    QueueFull,
    /// It is known to be down, and was not asked.
    CircuitOpen,
}

impl UpstreamError {
    /// The name for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            UpstreamError::Resolve => "resolve",
            UpstreamError::Connect => "connect",
            UpstreamError::Tls(_) => "tls",
            UpstreamError::Descriptors => "descriptors",
            UpstreamError::Timeout | UpstreamError::BodyTimeout => "timeout",
            UpstreamError::Protocol => "protocol",
            UpstreamError::Truncated | UpstreamError::NoResponse => "truncated",
            UpstreamError::TooLarge => "too_large",
            UpstreamError::QueueFull => "queue_full",
            UpstreamError::CircuitOpen => "circuit_open",
        }
    }

    /// The labels of metrics.
    pub const fn labels(self) -> UpstreamFailure {
        UpstreamFailure { kind: self.as_str(), cause: self.cause() }
    }

    /// The exact cause, for logs: the kind, or more than it.
    pub const fn cause(self) -> &'static str {
        match self {
            UpstreamError::Tls(failure) => failure.as_str(),
            UpstreamError::BodyTimeout => "timeout_body",
            UpstreamError::NoResponse => "no_response",
            other => other.as_str(),
        }
    }
}

/// Whether an operation failed because the process or the system has no file descriptor left
/// (`EMFILE`, `ENFILE`).
fn is_descriptor_error(error: &std::io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// Whether a response has a content coding other than `identity`: names compare without letter case, every field counts,
/// and empty list members are ignored (RFC 9110 sections 8.4.1 and 5.6.1).
pub fn has_content_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
    codings.any(|coding| {
        let coding = coding.trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Timeout | UpstreamError::BodyTimeout => ApiError::GatewayTimeout,
            UpstreamError::QueueFull | UpstreamError::CircuitOpen => ApiError::Unavailable,
            UpstreamError::Protocol | UpstreamError::Truncated | UpstreamError::TooLarge => ApiError::InvalidResponse,
            UpstreamError::Resolve
            | UpstreamError::Connect
            | UpstreamError::Tls(_)
            | UpstreamError::Descriptors
            | UpstreamError::NoResponse => ApiError::BadGateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn every_content_coding_but_identity_counts() {
        let coded = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            has_content_coding(&headers)
        };
        for no in [&[][..], &["identity"], &["Identity"], &[""], &["identity, "], &["", "IDENTITY"]] {
            assert!(!coded(no), "{no:?}");
        }
        for yes in [&["gzip"][..], &["GZip"], &["identity", "gzip"], &["gzip", "identity"], &["identity, br"], &["x"]] {
            assert!(coded(yes), "{yes:?}");
        }
    }
}
