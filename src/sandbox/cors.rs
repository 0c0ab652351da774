//! CORS (the Fetch standard): pages of this machine may use the sandbox, with credentials. Other
//! origins get no permission: their preflights are refused, and browsers do not show them a
//! response.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};

use crate::config::is_loopback_origin;

/// The methods of the endpoints.
const METHODS: &str = "GET, HEAD, POST, DELETE";
/// Seconds for which a browser may cache a preflight: short, because a restart may change the
/// sandbox.
const MAX_AGE: &str = "600";

/// The origin of the page that sent a request, if it is of this machine.
pub fn allowed_origin(request: &HeaderMap) -> Option<HeaderValue> {
    let mut origins = request.get_all(ORIGIN).iter();
    let origin = origins.next().filter(|_| origins.next().is_none())?;
    is_loopback_origin(origin.as_bytes()).then(|| origin.clone())
}

/// Adds the fields with which a page may read a response.
pub fn permit_reading<B>(response: &mut Response<B>, origin: Option<HeaderValue>) {
    let fields = response.headers_mut();
    fields.append(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        fields.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// Whether a request is a preflight.
pub fn is_preflight<B>(request: &Request<B>) -> bool {
    let fields = request.headers();
    request.method() == Method::OPTIONS
        && fields.contains_key(ORIGIN)
        && fields.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The response to a preflight: permission for all methods and for the requested fields, or 403.
pub fn preflight_response(request: &HeaderMap) -> Response<Bytes> {
    let origin = allowed_origin(request);
    let mut response = Response::new(Bytes::new());
    *response.status_mut() =
        if origin.is_some() { StatusCode::NO_CONTENT } else { StatusCode::FORBIDDEN };
    if origin.is_some() {
        let fields = response.headers_mut();
        fields.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        fields.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        for requested in request.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
            fields.append(ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
        }
    }
    permit_reading(&mut response, origin);
    response
}
