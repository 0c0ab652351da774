//! The client of the API: addresses, connections, and the gateway's own requests, bounded in time,
//! size and number.
//!
//! It follows no redirect, never falls back from TLS to plain text, and closes a connection after
//! any protocol violation.

mod anchors;
mod client;
mod connector;
mod endpoint;
mod exchange;
mod fair_queue;
mod metrics;
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
pub use client::{Client, Request, RequestKind, Transport};
pub use connector::{AddressStatus, Connection, Connector};
pub use endpoint::{Endpoint, EndpointOutcome, EndpointState};
pub use exchange::{Event, Exchange};
pub use fair_queue::{QueueKey, network_of};
pub use gateway_core::breaker::{Breaker, Circuit, Outcome};
pub use metrics::AddressMetrics;
pub use tls::{TlsFailure, check_files, client_config};
pub use transport::{Connections, STALE_CONNECTIONS_MAX};

use crate::api::ApiError;
use crate::telemetry::{ApiExchange, UpstreamFailure};

/// Time for which a forwarded exchange may be silent in either direction. Long polls and websocket
/// pings are shorter.
pub const FORWARD_SILENCE: Duration = Duration::from_secs(75);

/// Maximum number of informational responses (1xx) before the final one.
pub const MAX_INFORMATIONAL: usize = 8;

/// A complete response of the API.
pub struct ApiResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Reason why the API gave no usable response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// The name has no address.
    Resolve,
    /// No connection could be opened.
    Connect,
    /// The TLS handshake failed, or took too long.
    Tls(TlsFailure),
    /// The process has no file descriptor left for a connection.
    Descriptors,
    /// The response head did not arrive in time.
    Timeout,
    /// The response body did not end in time.
    BodyTimeout,
    /// The response is not valid HTTP.
    Protocol,
    /// The connection ended before the response did.
    Truncated,
    /// The API accepted the connection and closed it without a response.
    NoResponse,
    /// The response exceeds `upstream.max_body`.
    TooLarge,
    /// Too many requests wait already, or no permit was free in time.
    QueueFull,
    /// The circuit breaker is open: the API is known to be down.
    CircuitOpen,
}

impl UpstreamError {
    pub const ALL: [UpstreamError; 18] = [
        UpstreamError::Resolve,
        UpstreamError::Connect,
        UpstreamError::Tls(TlsFailure::Expired),
        UpstreamError::Tls(TlsFailure::NotYetValid),
        UpstreamError::Tls(TlsFailure::UnknownAuthority),
        UpstreamError::Tls(TlsFailure::WrongName),
        UpstreamError::Tls(TlsFailure::NotTls),
        UpstreamError::Tls(TlsFailure::TimedOut),
        UpstreamError::Tls(TlsFailure::Other),
        UpstreamError::Descriptors,
        UpstreamError::Timeout,
        UpstreamError::BodyTimeout,
        UpstreamError::Protocol,
        UpstreamError::Truncated,
        UpstreamError::NoResponse,
        UpstreamError::TooLarge,
        UpstreamError::QueueFull,
        UpstreamError::CircuitOpen,
    ];

    /// Label of metrics and logs.
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

    /// Labels of metrics.
    pub const fn labels(self) -> UpstreamFailure {
        UpstreamFailure { kind: self.as_str(), cause: self.cause() }
    }

    /// Exact cause, for logs.
    pub const fn cause(self) -> &'static str {
        match self {
            UpstreamError::Tls(failure) => failure.as_str(),
            UpstreamError::BodyTimeout => "timeout_body",
            UpstreamError::NoResponse => "no_response",
            other => other.as_str(),
        }
    }
}

/// Whether a status is a failure of the API: a stale response is better, and asking again at once
/// would make it worse.
pub fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Labels of a complete response whose status is a failure.
pub const FAILURE_STATUS: UpstreamFailure = UpstreamFailure { kind: "status", cause: "status" };

/// Failure of a request for which the gateway asked the API: the error for the client, and what the
/// log says about it. All requests that wait for one exchange share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiFailure {
    pub error: ApiError,
    /// The exact cause; that of an exchange is counted in `upstream_error_causes_total`.
    pub cause: Option<&'static str>,
    pub exchange: Option<ApiExchange>,
}

impl ApiFailure {
    /// A failed exchange that took `duration`.
    pub fn from_exchange(error: UpstreamError, duration: Duration) -> Self {
        let exchange = ApiExchange { status: None, duration };
        ApiFailure { error: error.into(), cause: Some(error.cause()), exchange: Some(exchange) }
    }
}

impl From<ApiError> for ApiFailure {
    fn from(error: ApiError) -> Self {
        ApiFailure { error, cause: None, exchange: None }
    }
}

/// Whether an operation failed because the process or the system has no file descriptor left
/// (`EMFILE`, `ENFILE`).
fn is_descriptor_error(error: &std::io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// Whether a response has a content coding other than `identity`: names compare without letter
/// case, every field counts, and empty list members are ignored (RFC 9110 sections 8.4.1 and
/// 5.6.1).
pub fn has_content_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','));
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
            UpstreamError::Protocol | UpstreamError::Truncated | UpstreamError::TooLarge => {
                ApiError::InvalidResponse
            }
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
    fn content_codings_other_than_identity_are_recognized() {
        let coded = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            has_content_coding(&headers)
        };
        for no in [&[][..], &["identity"], &["Identity"], &[""], &["identity, "], &["", "IDENTITY"]]
        {
            assert!(!coded(no), "{no:?}");
        }
        for yes in [
            &["gzip"][..],
            &["GZip"],
            &["identity", "gzip"],
            &["gzip", "identity"],
            &["identity, br"],
            &["x"],
        ] {
            assert!(coded(yes), "{yes:?}");
        }
    }
}
