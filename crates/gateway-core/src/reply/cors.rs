//! CORS fields of responses that the gateway makes itself (Fetch standard, "CORS protocol"), if the
//! configuration lists origins. Forwarded responses keep the API's fields.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue, ORIGIN,
};
use http::{HeaderMap, Method};

use super::{ALLOWED, ApiCors, ApiFields, VARY_ON_CREDENTIALS, VARY_WITH_ORIGIN, Value};
use config::AllowedOrigins;

/// Response fields that a page may read: all that the gateway sets itself, except those that the
/// Fetch standard safelists and those of the connection.
const EXPOSED: [&str; 9] = [
    "Age",
    "Allow",
    "Cache-Status",
    "Date",
    "ETag",
    "Retry-After",
    "Vary",
    "WWW-Authenticate",
    "X-Request-Id",
];

/// Request fields that every preflight permits, so that its cached result serves more requests.
const PERMITTED: [&str; 9] = [
    "Authorization",
    "X-API-Key",
    "If-None-Match",
    "Cache-Control",
    "Content-Type",
    "Pragma",
    "X-Request-Id",
    "Traceparent",
    "Tracestate",
];

/// [`PERMITTED`] as a list.
const PERMITTED_LIST: &str = "Authorization, X-API-Key, If-None-Match, Cache-Control, Content-Type, \
     Pragma, X-Request-Id, Traceparent, Tracestate";

/// Maximum number of further fields that a preflight permits. A page sends a handful.
const MAX_REQUESTED: usize = 64;

/// CORS configuration.
pub struct Cors {
    allowed: AllowedOrigins,
    exposed: HeaderValue,
    /// Seconds.
    max_age: u64,
    /// CORS fields of the API, which apply without allowed origins.
    api: Arc<ApiCors>,
}

/// Values of the `Access-Control-Request-Headers` fields of a preflight.
pub fn requested_fields(request: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    request.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter().map(HeaderValue::as_bytes)
}

/// Permissions that a preflight grants. `requested`: see [`requested_fields`].
pub struct Preflight {
    methods: &'static str,
    /// List of request fields.
    fields: HeaderValue,
}

impl Preflight {
    /// For the intercepted route. Its response depends on no unknown field, so any may be sent.
    pub fn for_name<'a>(requested: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Preflight { methods: "GET, HEAD", fields: permitted(requested) }
    }

    /// For a path on which the gateway rejects every request, so that a page can read the error.
    pub fn for_error<'a>(requested: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Preflight { methods: ALLOWED, fields: permitted(requested) }
    }
}

/// List of [`PERMITTED`] and of the valid names among `requested`, each once.
fn permitted<'a>(requested: impl IntoIterator<Item = &'a [u8]>) -> HeaderValue {
    let mut names = PERMITTED_LIST.to_owned();
    let mut added: Vec<HeaderName> = Vec::new();
    let requested = requested
        .into_iter()
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii);
    for name in requested {
        if added.len() == MAX_REQUESTED {
            break;
        }
        if PERMITTED.iter().any(|permitted| permitted.as_bytes().eq_ignore_ascii_case(name)) {
            continue;
        }
        let Ok(name) = HeaderName::from_bytes(name) else { continue };
        if !added.contains(&name) {
            names.push_str(", ");
            names.push_str(name.as_str());
            added.push(name);
        }
    }
    HeaderValue::try_from(names).unwrap_or(HeaderValue::from_static("Authorization"))
}

/// Whether a request is a CORS preflight.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The `Origin` of a request; `None` if it has none or several.
pub fn origin_of(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut origins = headers.get_all(ORIGIN).iter();
    origins.next().filter(|_| origins.next().is_none())
}

/// As [`origin_of`], from a head of HTTP/1.1 that need not be complete or valid. It only selects
/// the CORS fields of an error response.
pub fn origin_in(head: &[u8]) -> Option<HeaderValue> {
    let mut origins = head.split(|&byte| byte == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(ORIGIN.as_str().len() + 1)?;
        let named = name
            .strip_suffix(b":")
            .is_some_and(|name| name.eq_ignore_ascii_case(ORIGIN.as_str().as_bytes()));
        // An incomplete line may be the beginning of another origin.
        named.then_some(value.strip_suffix(b"\r")?.trim_ascii())
    });
    let origin = origins.next().filter(|_| origins.next().is_none());
    origin.and_then(|origin| HeaderValue::from_bytes(origin).ok())
}

impl Cors {
    /// `api_fields`: names of the API's fields that pass on the intercepted route.
    pub fn new(config: &config::Cors, api_fields: &[String], api: Arc<ApiCors>) -> Self {
        let names: Vec<&str> =
            EXPOSED.into_iter().chain(api_fields.iter().map(String::as_str)).collect();
        let exposed = HeaderValue::try_from(names.join(", "))
            .unwrap_or(HeaderValue::from_static("X-Request-Id"));
        Cors {
            allowed: config.allowed_origins.clone(),
            exposed,
            max_age: config.max_age.as_secs(),
            api,
        }
    }

    /// Whether any origin is allowed. If not, the API's CORS fields pass.
    pub fn is_on(&self) -> bool {
        self.allowed != AllowedOrigins::Listed(Vec::new())
    }

    /// Whether pages of an origin may read responses.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        match &self.allowed {
            AllowedOrigins::Any => true,
            AllowedOrigins::Loopback => config::is_loopback_origin(origin.as_bytes()),
            AllowedOrigins::Listed(listed) => {
                listed.iter().any(|listed| listed.as_bytes() == origin.as_bytes())
            }
        }
    }

    /// CORS fields that the API last sent for an origin.
    pub(super) fn api_fields(&self, origin: &HeaderValue) -> ApiFields {
        self.api.fields(origin)
    }

    /// Value of `Vary`. It names `Origin` if responses depend on it.
    pub(super) fn vary(&self, is_preflight: bool) -> Value<'static> {
        match (is_preflight, self.is_on()) {
            (true, _) => Value::Text("Origin, Access-Control-Request-Headers"),
            (false, true) => Value::Ready(&VARY_WITH_ORIGIN),
            (false, false) => Value::Ready(&VARY_ON_CREDENTIALS),
        }
    }

    /// The fields that let the page at `origin` read a response.
    pub(super) fn response_fields(
        &self,
        origin: Option<&HeaderValue>,
        put: &mut impl FnMut(&HeaderName, Value<'_>),
    ) {
        if self.allow(origin, put) {
            put(&ACCESS_CONTROL_EXPOSE_HEADERS, Value::Ready(&self.exposed));
        }
    }

    /// The fields that let the page at `origin` send a request; none for another origin.
    pub(super) fn preflight_fields(
        &self,
        preflight: &Preflight,
        origin: Option<&HeaderValue>,
        put: &mut impl FnMut(&HeaderName, Value<'_>),
    ) {
        if self.allow(origin, put) {
            put(&ACCESS_CONTROL_ALLOW_METHODS, Value::Text(preflight.methods));
            put(&ACCESS_CONTROL_ALLOW_HEADERS, Value::Ready(&preflight.fields));
            put(&ACCESS_CONTROL_MAX_AGE, Value::Number(self.max_age));
        }
    }

    /// Allows an origin. With a list of origins it is named and cookies are allowed; with `*`,
    /// neither.
    fn allow(
        &self,
        origin: Option<&HeaderValue>,
        put: &mut impl FnMut(&HeaderName, Value<'_>),
    ) -> bool {
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else { return false };
        if self.allowed == AllowedOrigins::Any {
            put(&ACCESS_CONTROL_ALLOW_ORIGIN, Value::Text("*"));
        } else {
            put(&ACCESS_CONTROL_ALLOW_ORIGIN, Value::Ready(origin));
            put(&ACCESS_CONTROL_ALLOW_CREDENTIALS, Value::Text("true"));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preflight_permits_valid_fields_up_to_a_maximum() {
        let permitted_for = |requested: &str| {
            let value = HeaderValue::from_str(requested).unwrap();
            let headers = HeaderMap::from_iter([(ACCESS_CONTROL_REQUEST_HEADERS, value)]);
            permitted(requested_fields(&headers)).to_str().unwrap().to_owned()
        };
        let always = permitted([]).to_str().unwrap().to_owned();
        assert_eq!(always, PERMITTED.join(", "));
        assert_eq!(permitted_for("authorization, content-type,,"), always);
        assert_eq!(
            permitted_for("Sentry-Trace,baggage"),
            format!("{always}, sentry-trace, baggage")
        );
        assert_eq!(permitted_for("a b, c\"d, x@y, ok, OK"), format!("{always}, ok"));
        let many: Vec<String> = (0..1000).map(|number| format!("x-{number}")).collect();
        assert_eq!(
            permitted_for(&many.join(",")).split(", ").count(),
            PERMITTED.len() + MAX_REQUESTED
        );
    }

    #[test]
    fn origin_is_read_from_an_invalid_head() {
        let origin =
            |head: &str| origin_in(head.as_bytes()).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(
            origin("GET / HTTP/1.1\r\norigin:  https://a.example \r\nHost").as_deref(),
            Some("https://a.example")
        );
        assert_eq!(
            origin("\0\r\nOrigin: https://a.example\r\nX"),
            Some("https://a.example".to_owned())
        );
        for none in [
            "",
            "Origin: https://a.exam",
            "X-Origin: https://a.example\r\n",
            "Origin : https://a.example\r\n",
            "Origin: https://a.example\r\nOrigin: https://b.example\r\n",
        ] {
            assert_eq!(origin(none), None, "{none:?}");
        }
    }
}
