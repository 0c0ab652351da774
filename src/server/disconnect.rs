//! Failed reads and writes on the client's side of an exchange: whether the client has left, is too slow, or sent a body
//! that cannot be read. One function classifies them for HTTP/1.1 and HTTP/2 and for every kind of route.

use std::future::pending;

use http::{StatusCode, Version};
use pingora_core::{Error, ErrorSource, ErrorType};
use pingora_proxy::Session;

use super::wrapped::is_doubtful;
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
    /// Classifies an error of a read from the client or a write to it.
    pub fn from_error(error: &Error) -> Self {
        if is_doubtful(error) {
            return ClientFailure::Malformed;
        }
        match error.etype() {
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => ClientFailure::TimedOut,
            ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error
            | ErrorType::ConnectError => match error.root_cause().downcast_ref::<h2::Error>() {
                // Detected by the library: the body is longer or shorter than announced.
                Some(h2) if h2.is_reset() && !h2.is_remote() => ClientFailure::Malformed,
                _ => ClientFailure::Closed,
            },
            _ => ClientFailure::Malformed,
        }
    }

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

/// Whether an error arose on the client's side. pingora marks the errors of the API's side, and of the others only those
/// of HTTP/1.1.
pub fn is_clients(error: &Error) -> bool {
    match error.esource() {
        ErrorSource::Downstream => true,
        ErrorSource::Upstream => false,
        ErrorSource::Internal | ErrorSource::Unset => matches!(
            error.etype(),
            ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::ReadTimedout
                | ErrorType::WriteTimedout
                | ErrorType::ConnectionClosed
                | ErrorType::H2Error
        ),
    }
}

/// Completes with the error when the client leaves. The end of its sending alone is not a disconnect
/// (`set_abort_on_close`). Reads nothing of a body, so that HTTP/1.1 requests with one are not watched.
pub async fn client_left(session: &mut Session, has_body: bool, version: Version) -> Box<Error> {
    let watched = !has_body || version == Version::HTTP_2;
    if watched && let Err(error) = session.as_downstream_mut().read_body_or_idle(true).await {
        return error;
    }
    pending().await
}

/// Status of a request whose client left before the end of its response, as nginx has it.
pub fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).expect("three digits")
}
