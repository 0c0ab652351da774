//! The record of a request, from which its metrics, its access log line and its span are made.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::Trace;
use crate::api::{AccessLevel, ApiError, CustomerId};
use crate::reply::CacheStatus;

/// The route of a request; a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    CustomerName,
    Forward,
    /// A refused path: blocked, or an alias of a protected one.
    Blocked,
    /// A request that was refused before its path was read.
    None,
}

/// Values of the labels of requests. `Route`, [`Record::method_index`] and [`Record::cache_index`]
/// are indexes into them.
pub(super) const ROUTES: [&str; 4] = ["customer_name", "forward", "blocked", "none"];
pub(super) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "OTHER"];
pub(super) const CACHES: [&str; 7] =
    ["none", "hit", "stale", "miss", "collapsed", "bypass", "tier"];

/// Whether a response with this cache label is a hit or a miss; `None` if it is neither.
pub(super) fn is_hit(cache: &str) -> Option<bool> {
    match cache {
        "hit" | "stale" | "tier" => Some(true),
        "miss" | "collapsed" => Some(false),
        _ => None,
    }
}

impl Route {
    pub const fn as_str(self) -> &'static str {
        ROUTES[self as usize]
    }
}

/// An exchange with the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiExchange {
    /// `None` if there was no response.
    pub status: Option<StatusCode>,
    /// From the start of the exchange, the wait for a permit included, to the end of its response,
    /// or to the head of a forwarded one.
    pub duration: Duration,
}

/// Who caused a failed response; a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorSource {
    /// The response is not a failure of the server side.
    None,
    /// The gateway made the response, also because the API could not be reached.
    Gateway,
    /// The API sent it.
    Api,
}

pub(super) const ERROR_SOURCES: [&str; 3] = ["none", "gateway", "api"];

/// A request and its outcome.
#[derive(Debug)]
pub struct Record {
    pub started: Instant,
    pub route: Route,
    pub method: Method,
    pub status: StatusCode,
    pub cache: Option<CacheStatus>,
    /// The caller's access level, where the request needed it.
    pub level: Option<AccessLevel>,
    pub error: Option<ApiError>,
    /// The exact cause of the error, if it is not that of every `error` of its kind.
    pub cause: Option<&'static str>,
    pub request_id: String,
    /// The customer that its path names.
    pub customer: Option<CustomerId>,
    /// The exchange with the API on which its response is based, if it waited for one.
    pub api: Option<ApiExchange>,
    /// The client's trace context, with the gateway's span.
    pub trace: Option<Trace>,
    pub body_bytes: usize,
    /// Whether it was a fast path hit with a cached validation.
    pub on_fast_path: bool,
    /// Whether the client left before the end of its response. The status is then 499, even if
    /// another one was written.
    pub client_closed: bool,
}

impl Record {
    pub fn begin(started: Instant) -> Self {
        Record {
            started,
            route: Route::None,
            method: Method::GET,
            status: StatusCode::INTERNAL_SERVER_ERROR,
            cache: None,
            level: None,
            error: None,
            cause: None,
            request_id: String::new(),
            customer: None,
            api: None,
            trace: None,
            body_bytes: 0,
            on_fast_path: false,
            client_closed: false,
        }
    }

    /// The method as a label. Methods that HTTP does not define become `OTHER`, since clients could
    /// create any number of series.
    pub fn method_label(&self) -> &'static str {
        METHODS[self.method_index()]
    }

    pub(super) fn method_index(&self) -> usize {
        match self.method {
            Method::GET => 0,
            Method::HEAD => 1,
            Method::POST => 2,
            Method::PUT => 3,
            Method::PATCH => 4,
            Method::DELETE => 5,
            Method::OPTIONS => 6,
            Method::TRACE => 7,
            Method::CONNECT => 8,
            _ => 9,
        }
    }

    /// Who caused a 5xx response.
    pub const fn error_source(&self) -> ErrorSource {
        match (self.status.as_u16(), self.error) {
            (..500, _) => ErrorSource::None,
            (_, Some(_)) => ErrorSource::Gateway,
            (_, None) => ErrorSource::Api,
        }
    }

    /// The exact cause of the error.
    pub fn exact_cause(&self) -> Option<&'static str> {
        self.cause.or_else(|| self.error?.cause())
    }

    pub fn cache_label(&self) -> &'static str {
        CACHES[self.cache_index()]
    }

    pub(super) const fn cache_index(&self) -> usize {
        match self.cache {
            None => 0,
            Some(CacheStatus::Hit { .. }) => 1,
            Some(CacheStatus::Revalidating { .. } | CacheStatus::StaleIfError { .. }) => 2,
            Some(CacheStatus::Miss { .. }) => 3,
            Some(CacheStatus::Collapsed) => 4,
            Some(CacheStatus::Bypass) => 5,
            Some(CacheStatus::Shared { .. }) => 6,
        }
    }
}
