//! Forwarded requests: which credentials travel, the exchange with the API, and the redaction of
//! the response.

pub mod api_request;
pub mod credentials;
pub mod exchange;
pub mod redact_for;
pub mod redacted_response;
pub mod request_context;
