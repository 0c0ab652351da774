//! What the sandbox answers: a reply, or a refusal in the API's error shape.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, SET_COOKIE};
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// An answer of status 200.
pub struct Reply {
    content_type: &'static str,
    body: Bytes,
    cookie: Option<HeaderValue>,
}

impl Reply {
    pub fn json(value: Value) -> Reply {
        Reply { content_type: "application/json; charset=utf-8", body: value.to_string().into(), cookie: None }
    }

    pub fn csv(text: String) -> Reply {
        Reply { content_type: "text/csv; charset=utf-8", body: text.into(), cookie: None }
    }

    pub fn text(text: String) -> Reply {
        Reply { content_type: "text/plain; charset=utf-8", body: text.into(), cookie: None }
    }

    /// Sets the session cookie. A token that cannot stand in a cookie sets none; the sandbox makes no such token.
    pub fn with_cookie(mut self, cookie: &str) -> Reply {
        self.cookie = HeaderValue::from_str(cookie).ok();
        self
    }
}

impl From<Reply> for Response<Bytes> {
    fn from(reply: Reply) -> Self {
        let Reply { content_type, body, cookie } = reply;
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(cookie) = cookie {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    }
}

/// Why a request is refused. The 401, 403 and 404 `customer` are the API's own; the other codes are ours, in its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    BadRequest(&'static str),
    CredentialsInvalid,
    FormatError,
    InvalidToken,
    Expired,
    AccessDenied,
    NoSuch(Thing),
    TooSlow,
    /// It would saw off the branch that the caller sits on.
    Conflict(&'static str),
    TooLarge,
    /// A value that the named property cannot have.
    Unprocessable {
        property: &'static str,
        message: &'static str,
    },
    Internal(&'static str),
}

/// What was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    Path,
    Customer,
    Reseller,
    Employee,
    Token,
}

impl Refusal {
    /// Status, code and message.
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Refusal::BadRequest(message) => (StatusCode::BAD_REQUEST, "bad_request", message),
            Refusal::CredentialsInvalid => {
                (StatusCode::UNAUTHORIZED, "credentials_invalid", "Authorization required, please login")
            }
            Refusal::FormatError => {
                let message = "Authorization header format is Authorization: Bearer <token>";
                (StatusCode::UNAUTHORIZED, "format_error", message)
            }
            Refusal::InvalidToken => (StatusCode::UNAUTHORIZED, "invalid_token", "Invalid token"),
            Refusal::Expired => (StatusCode::UNAUTHORIZED, "expired", "Session has expired, please login"),
            Refusal::AccessDenied => (StatusCode::FORBIDDEN, "access_denied", "Insufficient access level"),
            Refusal::NoSuch(thing) => {
                let (code, message) = match thing {
                    Thing::Path => ("not_found", "No such endpoint in the sandbox; GET / lists them"),
                    Thing::Customer => ("customer", "Customer not found"),
                    Thing::Reseller => ("reseller", "Reseller not found"),
                    Thing::Employee => ("employee", "Employee not found"),
                    Thing::Token => ("token", "Token not found"),
                };
                (StatusCode::NOT_FOUND, code, message)
            }
            Refusal::TooSlow => (StatusCode::REQUEST_TIMEOUT, "bad_request", "The request body took too long"),
            Refusal::Conflict(message) => (StatusCode::CONFLICT, "conflict", message),
            Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "bad_request", "The request body is too large"),
            Refusal::Unprocessable { message, .. } => (StatusCode::UNPROCESSABLE_ENTITY, "validation", message),
            Refusal::Internal(message) => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message),
        }
    }
}

impl From<Refusal> for Response<Bytes> {
    fn from(refusal: Refusal) -> Self {
        let (status, code, message) = refusal.parts();
        let mut error = json!({"message": message, "code": code, "status": status.as_u16()});
        if let Refusal::Unprocessable { property, .. } = refusal {
            error["check"] = json!(property);
        }
        let mut response: Response<Bytes> = Reply::json(json!({"error": error})).into();
        *response.status_mut() = status;
        response
    }
}
