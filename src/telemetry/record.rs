//! The one record of a request, from which its log line and its metrics are made.

use std::time::Instant;

use http::{Method, StatusCode};

use super::Trace;
use crate::api::{AccessLevel, ApiError};
use crate::reply::CacheStatus;

/// What kind of request it was; a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    CustomerName,
    Forward,
    /// A path that the gateway refuses: blocked, or a protected one in another spelling.
    Blocked,
    /// A request that the gateway refused before it read the path.
    None,
}

/// The values of the labels of requests; `Route`, [`Record::method_index`] and [`Record::cache_index`] are places in them.
pub(super) const ROUTES: [&str; 4] = ["customer_name", "forward", "blocked", "none"];
pub(super) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "OTHER"];
pub(super) const CACHES: [&str; 7] = ["none", "hit", "stale", "miss", "collapsed", "bypass", "tier"];

impl Route {
    pub const fn as_str(self) -> &'static str {
        ROUTES[self as usize]
    }
}

/// What happened to a request.
#[derive(Debug)]
pub struct Record {
    pub started: Instant,
    pub route: Route,
    pub method: Method,
    pub status: StatusCode,
    pub cache: Option<CacheStatus>,
    /// The caller's role, where it was asked for.
    pub level: Option<AccessLevel>,
    pub error: Option<ApiError>,
    /// What failed behind the error, by name.
    pub cause: Option<&'static str>,
    pub request_id: String,
    /// Where it stands in a trace of the caller's.
    pub trace: Option<Trace>,
    pub body_bytes: usize,
    /// It was a hit of the fast path, whose caller's validation was cached.
    pub on_fast_path: bool,
    /// The client left before the end of its response: the status is 499, whatever was written.
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
            trace: None,
            body_bytes: 0,
            on_fast_path: false,
            client_closed: false,
        }
    }

    /// The method, if it is one of HTTP's own: callers invent others, and a label must not grow with them.
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
