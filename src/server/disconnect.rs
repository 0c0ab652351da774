//! Failed reads and writes on the client's side of an exchange: whether the client has left, is too slow, or sent a body
//! that cannot be read. One function classifies them for HTTP/1.1 and HTTP/2 and for every kind of route.

use http::StatusCode;

use crate::api::{ApiError, Refusal};
use crate::telemetry::Record;

/// Why an exchange failed on the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFailure {
    /// The client closed or reset its stream or connection.
    Closed,
    /// A read or a write took too long, or the body came too slowly.
    TimedOut,
    /// The body breaks the rules of its protocol.
    Malformed,
}

impl ClientFailure {
    /// Value of the log field `cause`.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClientFailure::Closed => "client_closed",
            ClientFailure::TimedOut => "client_timeout",
            ClientFailure::Malformed => "client_body",
        }
    }

    /// Notes the failure in the record of the request. Returns the error to answer with, if the client can still
    /// receive one.
    pub fn record(self, record: &mut Record) -> Option<ApiError> {
        record.cause = Some(self.as_str());
        if self == ClientFailure::Closed {
            record.client_closed = true;
            record.error = None;
            return None;
        }
        let error = match self {
            ClientFailure::TimedOut => ApiError::RequestTimeout,
            _ => ApiError::BadRequest(Refusal::Malformed),
        };
        record.error = Some(error);
        record.status = error.status();
        Some(error)
    }
}

/// Status of a request whose client left before the end of its response, as nginx has it.
pub fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).expect("three digits")
}
