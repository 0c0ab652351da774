//! Failures on the client's side of an exchange: the client disconnected, is too slow, or sent a
//! malformed body. The classes are the same for both protocols and every route.

use http::StatusCode;

use crate::api::{ApiError, Refusal};
use crate::telemetry::Record;

/// Reason why an exchange failed on the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFailure {
    /// The client closed or reset its stream or connection.
    Closed,
    /// A read or a write timed out, or the body was too slow.
    TimedOut,
    /// The body violates its protocol.
    Malformed,
}

impl ClientFailure {
    /// Returns the value of the log field `cause`.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClientFailure::Closed => "client_closed",
            ClientFailure::TimedOut => "client_timeout",
            ClientFailure::Malformed => "client_body",
        }
    }

    /// Records the failure. Returns the error of the response if the client can still receive one.
    pub fn record(self, record: &mut Record) -> Option<ApiError> {
        record.cause = Some(self.as_str());
        match self {
            ClientFailure::Closed => {
                record.client_closed = true;
                record.status = client_closed_request();
                record.error = None;
                None
            }
            ClientFailure::TimedOut => Some(ApiError::RequestTimeout),
            ClientFailure::Malformed => Some(ApiError::BadRequest(Refusal::Malformed)),
        }
    }
}

/// Returns the status of a request whose client disconnected before the end of its response: 499,
/// as in nginx.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).expect("three digits")
}
