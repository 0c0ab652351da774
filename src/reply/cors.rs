//! CORS for the intercepted request (the Fetch standard, "CORS protocol"), where the configuration lists origins.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderName, HeaderValue, ORIGIN,
};
use http::{HeaderMap, Method};

use super::Value;
use crate::config::AllowedOrigins;

/// Which pages may read intercepted answers.
pub struct Cors(AllowedOrigins);

/// Whether a request asks for permission, and nothing else.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    pub fn new(allowed: AllowedOrigins) -> Self {
        Cors(allowed)
    }

    /// No origin is allowed.
    pub const fn off() -> Self {
        Cors(AllowedOrigins::Listed(Vec::new()))
    }

    /// Whether any origin is allowed at all; if not, CORS is the API's own affair.
    pub fn is_on(&self) -> bool {
        self.0 != AllowedOrigins::Listed(Vec::new())
    }

    /// `Vary`: it names the origin where answers depend on it.
    pub(super) fn vary(&self) -> Value<'static> {
        Value::Text(if self.is_on() {
            "Authorization, X-API-Key, Cookie, Origin"
        } else {
            "Authorization, X-API-Key, Cookie"
        })
    }

    /// The fields that let the page at `origin` read an answer.
    pub(super) fn answer_fields(&self, origin: Option<&HeaderValue>, put: &mut impl FnMut(&HeaderName, Value<'_>)) {
        if self.allow(origin, put) {
            put(&ACCESS_CONTROL_EXPOSE_HEADERS, Value::Text("Age, Cache-Status, ETag, X-Request-Id"));
        }
    }

    /// The fields that let the page at `origin` ask; none for another origin.
    pub(super) fn preflight_fields(&self, origin: Option<&HeaderValue>, put: &mut impl FnMut(&HeaderName, Value<'_>)) {
        if self.allow(origin, put) {
            put(&ACCESS_CONTROL_ALLOW_METHODS, Value::Text("GET, HEAD"));
            let names =
                "Authorization, X-API-Key, If-None-Match, Cache-Control, Pragma, X-Request-Id, Traceparent, Tracestate";
            put(&ACCESS_CONTROL_ALLOW_HEADERS, Value::Text(names));
            put(&ACCESS_CONTROL_MAX_AGE, Value::Text("600"));
        }
    }

    /// With a list, the origin is named and cookies may come along; with `*`, neither.
    fn allow(&self, origin: Option<&HeaderValue>, put: &mut impl FnMut(&HeaderName, Value<'_>)) -> bool {
        let Some(origin) = origin else { return false };
        match &self.0 {
            AllowedOrigins::Any => put(&ACCESS_CONTROL_ALLOW_ORIGIN, Value::Text("*")),
            AllowedOrigins::Listed(listed) if listed.iter().any(|o| o.as_bytes() == origin.as_bytes()) => {
                put(&ACCESS_CONTROL_ALLOW_ORIGIN, Value::Ready(origin));
                put(&ACCESS_CONTROL_ALLOW_CREDENTIALS, Value::Text("true"));
            }
            AllowedOrigins::Listed(_) => return false,
        }
        true
    }
}
