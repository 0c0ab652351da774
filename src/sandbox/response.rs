//! The sandbox's responses: success, or an error in the API's shape.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, SET_COOKIE};
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// A response with status 200.
pub struct Success {
    content_type: &'static str,
    body: Bytes,
    cookie: Option<HeaderValue>,
}

impl Success {
    pub fn json(value: Value) -> Success {
        Success {
            content_type: "application/json; charset=utf-8",
            body: value.to_string().into(),
            cookie: None,
        }
    }

    pub fn csv(text: String) -> Success {
        Success { content_type: "text/csv; charset=utf-8", body: text.into(), cookie: None }
    }

    pub fn text(text: String) -> Success {
        Success { content_type: "text/plain; charset=utf-8", body: text.into(), cookie: None }
    }

    /// Sets the session cookie. A value that a header field cannot hold sets none; the sandbox
    /// creates no such token.
    pub fn with_cookie(mut self, cookie: &str) -> Success {
        self.cookie = HeaderValue::from_str(cookie).ok();
        self
    }
}

impl From<Success> for Response<Bytes> {
    fn from(reply: Success) -> Self {
        let Success { content_type, body, cookie } = reply;
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(cookie) = cookie {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    }
}

/// An error response. 401, 403 and 404 `customer` are as the API documents them; the sandbox chose
/// the other codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorResponse {
    BadRequest(&'static str),
    CredentialsInvalid,
    FormatError,
    InvalidToken,
    Expired,
    AccessDenied,
    NotFound(Resource),
    BodyTimeout,
    /// The caller would delete itself or its own customer.
    Conflict(&'static str),
    TooLarge,
    /// A value that the named property cannot have.
    Unprocessable {
        property: &'static str,
        message: &'static str,
    },
    Internal(&'static str),
}

/// The kind of resource that was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Path,
    Customer,
    Reseller,
    Employee,
    Token,
}

impl ErrorResponse {
    /// Status, code and message.
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            ErrorResponse::BadRequest(message) => (StatusCode::BAD_REQUEST, "bad_request", message),
            ErrorResponse::CredentialsInvalid => (
                StatusCode::UNAUTHORIZED,
                "credentials_invalid",
                "Authorization required, please login",
            ),
            ErrorResponse::FormatError => {
                let message = "Authorization header format is Authorization: Bearer <token>";
                (StatusCode::UNAUTHORIZED, "format_error", message)
            }
            ErrorResponse::InvalidToken => {
                (StatusCode::UNAUTHORIZED, "invalid_token", "Invalid token")
            }
            ErrorResponse::Expired => {
                (StatusCode::UNAUTHORIZED, "expired", "Session has expired, please login")
            }
            ErrorResponse::AccessDenied => {
                (StatusCode::FORBIDDEN, "access_denied", "Insufficient access level")
            }
            ErrorResponse::NotFound(resource) => {
                let (code, message) = match resource {
                    Resource::Path => {
                        ("not_found", "No such endpoint in the sandbox; GET / lists them")
                    }
                    Resource::Customer => ("customer", "Customer not found"),
                    Resource::Reseller => ("reseller", "Reseller not found"),
                    Resource::Employee => ("employee", "Employee not found"),
                    Resource::Token => ("token", "Token not found"),
                };
                (StatusCode::NOT_FOUND, code, message)
            }
            ErrorResponse::BodyTimeout => {
                (StatusCode::REQUEST_TIMEOUT, "bad_request", "The request body took too long")
            }
            ErrorResponse::Conflict(message) => (StatusCode::CONFLICT, "conflict", message),
            ErrorResponse::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "bad_request", "The request body is too large")
            }
            ErrorResponse::Unprocessable { message, .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "validation", message)
            }
            ErrorResponse::Internal(message) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
            }
        }
    }
}

impl From<ErrorResponse> for Response<Bytes> {
    fn from(error: ErrorResponse) -> Self {
        let (status, code, message) = error.parts();
        let mut body = json!({"message": message, "code": code, "status": status.as_u16()});
        if let ErrorResponse::Unprocessable { property, .. } = error {
            body["check"] = json!(property);
        }
        let mut response: Response<Bytes> = Success::json(json!({"error": body})).into();
        *response.status_mut() = status;
        response
    }
}
