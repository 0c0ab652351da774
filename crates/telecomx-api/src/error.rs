//! Errors of the gateway, in the API's shape.
//!
//! Source: the table of errors in the API's wiki, and RFC 9110 section 15 for the statuses.

use http::StatusCode;

/// Reason why a request does not get a response of the API. One table maps it to status, code and
/// message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiError {
    /// No token in any of the places that can hold one.
    NoCredential,
    /// `Authorization` with another scheme than Bearer, or not with exactly one token.
    NotBearer,
    /// The API reports the token as invalid.
    InvalidToken,
    /// The path is blocked.
    Blocked,
    /// The request is malformed or ambiguous, or spells a protected path in another way.
    BadRequest(Refusal),
    /// The request head is larger than allowed.
    HeadTooLarge,
    /// The request head or body did not arrive in time.
    RequestTimeout,
    /// TRACE or CONNECT.
    MethodNotAllowed,
    /// A method longer than any known one.
    NotImplemented,
    /// More invalid tokens from one address than allowed.
    TooManyRequests,
    /// The queue for the API is full, or the circuit is open.
    Unavailable,
    /// A logout, or another change that concerns the caller, whose caller cannot be determined.
    Unattributed,
    /// The request has `only-if-cached`, and no stored response may be used.
    OnlyIfCached,
    /// The API asked for a pause: 429 or 503 of `validateToken`, with its `Retry-After`.
    Paused(RetryAfter),
    /// The API cannot be reached.
    BadGateway,
    /// The API sent an invalid response.
    InvalidResponse,
    /// The API sent a part (206), which cannot be redacted.
    PartialResponse,
    /// The API did not respond in time.
    GatewayTimeout,
    /// The API's response cannot be redacted safely.
    RedactionFailed,
    /// The API switched protocols on a route whose responses are redacted.
    NoUpgrade,
    /// A fault of the gateway.
    Internal,
}

/// The value of `Retry-After` (RFC 9110 section 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryAfter {
    Seconds(u32),
    /// A date, in seconds since the epoch.
    Date(u64),
}

impl RetryAfter {
    /// Parses a field value. `None`: neither seconds nor a date.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(RetryAfter::Seconds(text.parse().unwrap_or(u32::MAX)));
        }
        let date =
            httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(RetryAfter::Date(date.as_secs()))
    }
}

impl std::fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RetryAfter::Seconds(seconds) => seconds.fmt(f),
            RetryAfter::Date(seconds) => {
                let date = std::time::UNIX_EPOCH + std::time::Duration::from_secs(*seconds);
                httpdate::HttpDate::from(date).fmt(f)
            }
        }
    }
}

/// Reason for a 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    Malformed,
    AliasPath,
    BrokenEscape,
    ControlCharacter,
    Fragment,
    OtherAuthority,
    MissingHost,
    Framing,
    AmbiguousCredential,
    ConnectionNominates,
    MalformedCredential,
    PathTooLong,
    TargetTooLong,
    RequiresTls,
    MissingProxyHeader,
    UnexpectedProxyHeader,
}

impl Refusal {
    /// Message for the client, without any part of the request.
    pub const fn message(self) -> &'static str {
        match self {
            Refusal::Malformed => "The request is malformed",
            Refusal::AliasPath => "The path must be in normal form",
            Refusal::BrokenEscape => "The request target contains an invalid percent-escape",
            Refusal::ControlCharacter => {
                "The request target contains a character that must be percent-encoded"
            }
            Refusal::Fragment => "The request target must not contain a fragment",
            Refusal::OtherAuthority => "The request target names another authority",
            Refusal::MissingHost => "The request must have exactly one valid Host",
            Refusal::Framing => "The length of the request is ambiguous",
            Refusal::AmbiguousCredential => {
                "The request contains two different credentials of the same kind"
            }
            Refusal::ConnectionNominates => "Connection names a field that must not be removed",
            Refusal::PathTooLong => "The path is too long; at most 4096 bytes are accepted",
            Refusal::TargetTooLong => "The request target is too long",
            Refusal::MalformedCredential => "The token must be visible ASCII without spaces",
            Refusal::RequiresTls => "This port requires TLS: use https",
            Refusal::MissingProxyHeader => "A valid PROXY header is required from this peer",
            Refusal::UnexpectedProxyHeader => {
                "A PROXY header is accepted from the peers in server.proxy_protocol only"
            }
        }
    }

    /// Name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::AliasPath => "alias_path",
            Refusal::BrokenEscape => "broken_escape",
            Refusal::ControlCharacter => "control_character",
            Refusal::Fragment => "fragment",
            Refusal::OtherAuthority => "other_authority",
            Refusal::MissingHost => "missing_host",
            Refusal::Framing => "framing",
            Refusal::AmbiguousCredential => "ambiguous_credential",
            Refusal::ConnectionNominates => "connection_nominates",
            Refusal::MalformedCredential => "malformed_credential",
            Refusal::PathTooLong => "path_too_long",
            Refusal::TargetTooLong => "target_too_long",
            Refusal::RequiresTls => "requires_tls",
            Refusal::MissingProxyHeader => "missing_proxy_header",
            Refusal::UnexpectedProxyHeader => "unexpected_proxy_header",
        }
    }
}

impl ApiError {
    /// Returns the cause of an error that has only one, as the log states it. `None`: status and
    /// code suffice, or the exchange with the API has the cause.
    pub const fn cause(self) -> Option<&'static str> {
        match self {
            ApiError::BadRequest(refusal) => Some(refusal.as_str()),
            ApiError::TooManyRequests => Some("invalid_tokens"),
            ApiError::Unattributed => Some("unattributed"),
            ApiError::OnlyIfCached => Some("only_if_cached"),
            ApiError::NoUpgrade => Some("upgrade"),
            ApiError::Internal => Some("internal"),
            _ => None,
        }
    }

    /// Returns status, code and message.
    pub const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            ApiError::NoCredential => (
                StatusCode::UNAUTHORIZED,
                "credentials_invalid",
                "Authorization required, please login",
            ),
            ApiError::NotBearer => (
                StatusCode::UNAUTHORIZED,
                "format_error",
                "Authorization header format is Authorization: Bearer <token>",
            ),
            ApiError::InvalidToken => {
                (StatusCode::UNAUTHORIZED, "invalid_token", "The token is not valid, please login")
            }
            ApiError::Blocked => {
                (StatusCode::FORBIDDEN, "access_denied", "Insufficient access level")
            }
            ApiError::BadRequest(refusal @ (Refusal::PathTooLong | Refusal::TargetTooLong)) => {
                (StatusCode::URI_TOO_LONG, "bad_request", refusal.message())
            }
            ApiError::BadRequest(refusal) => {
                (StatusCode::BAD_REQUEST, "bad_request", refusal.message())
            }
            ApiError::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "bad_request",
                "The request head is too large or has too many fields",
            ),
            ApiError::RequestTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "The request did not arrive in time",
            ),
            ApiError::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "bad_request",
                "The method is not allowed for this path",
            ),
            ApiError::NotImplemented => {
                (StatusCode::NOT_IMPLEMENTED, "bad_request", "Unknown method")
            }
            ApiError::TooManyRequests => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "Too many invalid tokens from this address",
            ),
            ApiError::Unavailable | ApiError::Paused(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The API is not available, try again later",
            ),
            ApiError::Unattributed => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "It cannot be determined whose session this request changes, try again later",
            ),
            ApiError::OnlyIfCached => (
                StatusCode::GATEWAY_TIMEOUT,
                "gateway_timeout",
                "No cached response is available for only-if-cached",
            ),
            ApiError::BadGateway => {
                (StatusCode::BAD_GATEWAY, "bad_gateway", "The API could not be reached")
            }
            ApiError::InvalidResponse => {
                (StatusCode::BAD_GATEWAY, "bad_gateway", "The API sent an invalid response")
            }
            ApiError::PartialResponse => (
                StatusCode::BAD_GATEWAY,
                "bad_gateway",
                "The API sent a partial response (206), which cannot be redacted",
            ),
            ApiError::GatewayTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "gateway_timeout", "The API did not respond in time")
            }
            ApiError::RedactionFailed => (
                StatusCode::BAD_GATEWAY,
                "redaction_failed",
                "The response of the API could not be redacted safely",
            ),
            ApiError::NoUpgrade => (
                StatusCode::BAD_GATEWAY,
                "bad_gateway",
                "This route is redacted and does not support protocol upgrades",
            ),
            ApiError::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal error")
            }
        }
    }

    /// Whether the cause is the API: it could not be reached or did not send a usable response.
    pub const fn is_caused_by_api(self) -> bool {
        matches!(
            self,
            ApiError::BadGateway
                | ApiError::InvalidResponse
                | ApiError::PartialResponse
                | ApiError::GatewayTimeout
                | ApiError::Unavailable
                | ApiError::Paused(_)
        )
    }

    /// Returns the status of the response.
    pub const fn status(self) -> StatusCode {
        self.parts().0
    }

    /// Returns `Retry-After` for errors after which the client may retry.
    pub const fn retry_after(self) -> Option<RetryAfter> {
        match self {
            ApiError::TooManyRequests => Some(RetryAfter::Seconds(60)),
            ApiError::Unavailable | ApiError::Unattributed => Some(RetryAfter::Seconds(1)),
            ApiError::Paused(retry_after) => Some(retry_after),
            _ => None,
        }
    }

    /// The body: `{"error": {"message", "code", "status", "requestId"}}`. The first three members
    /// are those of the API's errors.
    pub fn body(self, request_id: &str) -> String {
        let (status, code, message) = self.parts();
        json_body(status, code, message, request_id)
    }
}

/// JSON with a newline at its end, for terminals.
fn json_body(status: StatusCode, code: &str, message: &str, request_id: &str) -> String {
    let mut error =
        serde_json::json!({"message": message, "code": code, "status": status.as_u16()});
    if !request_id.is_empty() {
        error["requestId"] = request_id.into();
    }
    format!("{}\n", serde_json::json!({ "error": error }))
}

/// Returns a body with the given status, in place of an error body of the API that may not be
/// shown. Without a request id for a body that several requests share.
pub fn error_body(status: StatusCode, request_id: &str) -> String {
    let code = match status.as_u16() {
        401 => "credentials_invalid",
        403 => "access_denied",
        404 => "not_found",
        408 => "request_timeout",
        429 => "too_many_requests",
        502 => "bad_gateway",
        503 => "unavailable",
        504 => "gateway_timeout",
        500.. => "internal_error",
        _ => "bad_request",
    };
    let message = "The API sent an error without a readable description";
    json_body(status, code, message, request_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_the_shape_of_the_api() {
        let text = ApiError::NotBearer.body("r-1");
        assert!(text.ends_with("}\n"), "{text:?}");
        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["error"]["requestId"], "r-1");
        assert_eq!(body["error"]["code"], "format_error");
        assert_eq!(body["error"]["status"], 401);
        assert_eq!(
            body["error"]["message"],
            "Authorization header format is Authorization: Bearer <token>"
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_is_written_as_read() {
        for text in ["0", "30", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert_eq!(RetryAfter::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        // The obsolete form is read (RFC 9110 section 5.6.7) and not written.
        let obsolete = RetryAfter::parse(b"Sunday, 06-Nov-94 08:49:37 GMT").unwrap();
        assert_eq!(obsolete.to_string(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(RetryAfter::parse(b"99999999999"), Some(RetryAfter::Seconds(u32::MAX)));
        for wrong in ["", "soon", "-1", "1.5", "30s"] {
            assert_eq!(RetryAfter::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
