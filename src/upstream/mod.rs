//! The way to the API: where it is, and the gateway's own requests to it, bounded in time, size and number.
//!
//! Redirects are never followed, plain text is never tried instead of TLS, and a connection on which anything was odd is
//! not used again.

mod anchors;
mod breaker;
mod client;
mod peer;
mod places;
mod write_behind;

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::{Error, ErrorType};

pub use anchors::{AnchorFile, system_anchors};
pub use breaker::{Breaker, Circuit, Outcome};
pub use client::{Client, Connections, Kind, Request, Transport};
pub use peer::{Peers, TrustError};
pub use places::Payer;
pub use write_behind::{Backlog, write_behind};

use crate::api::ApiError;

/// How long a kept connection to the API may idle. Below the 5 s after which common servers close theirs, so that a
/// request seldom meets a connection that is just being closed.
pub const IDLE: Duration = Duration::from_secs(4);

/// Kept connections that may turn out closed one after the other before a request fails.
pub const MAX_STALE_CONNECTIONS: usize = 8;

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
    /// No TLS, or a certificate that does not hold.
    Tls,
    /// No answer in time.
    Timeout,
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
            UpstreamError::Tls => "tls",
            UpstreamError::Timeout => "timeout",
            UpstreamError::Protocol => "protocol",
            UpstreamError::Truncated | UpstreamError::NoResponse => "truncated",
            UpstreamError::TooLarge => "too_large",
            UpstreamError::QueueFull => "queue_full",
            UpstreamError::CircuitOpen => "circuit_open",
        }
    }

    /// What an error of pingora's is. Only its kind is looked at: its text may hold bytes of an answer.
    pub fn of(error: &Error) -> Self {
        match error.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::TLSHandshakeTimedout => UpstreamError::Timeout,
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => UpstreamError::Tls,
            ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::BindError
            | ErrorType::SocketError => UpstreamError::Connect,
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => UpstreamError::Truncated,
            _ => UpstreamError::Protocol,
        }
    }
}

/// Whether the length of an answer is told in a way that every reader reads alike: one length in digits, `chunked` alone,
/// or neither. pingora lets equal lengths pass, together or apart, and codings that it does not know.
pub fn is_framed_plainly(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let length = lengths.next().is_none_or(|length| length.as_bytes().iter().all(u8::is_ascii_digit));
    let coding = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    length && coding && lengths.next().is_none() && codings.next().is_none()
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

/// [`is_framed_plainly`] for an answer that was just read. pingora takes the length away where there is a coding as well, so that only
/// the bytes tell of both.
pub fn came_framed_plainly(session: &HttpSession) -> bool {
    let Some(head) = session.response_header() else { return false };
    let HttpSession::H1(h1) = session else { return is_framed_plainly(&head.headers) };
    let coded = head.headers.contains_key(TRANSFER_ENCODING);
    let told = |raw: &[u8]| {
        raw.split(|&b| b == b'\n')
            .any(|line| line.get(..14).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length")))
    };
    is_framed_plainly(&head.headers) && !(coded && told(&h1.get_headers_raw_bytes()))
}

/// Whether bytes may follow on the connection although the response has no body: a 204 or 304 that announces one. What comes
/// would be read as the response to the next request.
pub fn announces_absent_body(status: StatusCode, headers: &HeaderMap) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && (headers.contains_key(TRANSFER_ENCODING)
            || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0"))
}

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Timeout => ApiError::GatewayTimeout,
            UpstreamError::QueueFull | UpstreamError::CircuitOpen => ApiError::Unavailable,
            UpstreamError::Protocol | UpstreamError::Truncated | UpstreamError::TooLarge => ApiError::InvalidResponse,
            UpstreamError::Resolve | UpstreamError::Connect | UpstreamError::Tls | UpstreamError::NoResponse => {
                ApiError::BadGateway
            }
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
