//! The one record of a request, from which its log line and its metrics are made.

use std::time::Instant;

use http::{Method, StatusCode};

use super::Metrics;
use crate::api::{AccessLevel, ApiError};
use crate::config::AccessLog;
use crate::reply::CacheStatus;

/// What kind of request it was; a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    CustomerName,
    Forward,
    /// A blocked path, or a request refused before it had a route.
    Blocked,
}

impl Route {
    pub const fn as_str(self) -> &'static str {
        match self {
            Route::CustomerName => "customer_name",
            Route::Forward => "forward",
            Route::Blocked => "blocked",
        }
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
    pub body_bytes: usize,
}

impl Record {
    pub fn begin(started: Instant) -> Self {
        Record {
            started,
            route: Route::Blocked,
            method: Method::GET,
            status: StatusCode::INTERNAL_SERVER_ERROR,
            cache: None,
            level: None,
            error: None,
            cause: None,
            request_id: String::new(),
            body_bytes: 0,
        }
    }

    /// The method, if it is one of HTTP's own: callers invent others, and a label must not grow with them.
    pub fn method_label(&self) -> &'static str {
        match self.method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            Method::OPTIONS => "OPTIONS",
            Method::TRACE => "TRACE",
            Method::CONNECT => "CONNECT",
            _ => "OTHER",
        }
    }

    pub fn cache_label(&self) -> &'static str {
        self.cache.map_or("none", CacheStatus::as_str)
    }

    /// The request is over: counts it, and writes its line.
    pub fn end(&self, metrics: &Metrics, access: AccessLog) {
        let duration = self.started.elapsed();
        metrics.answered(self, duration);
        let wanted = match access {
            AccessLog::All => true,
            AccessLog::Errors => self.status.is_server_error(),
            AccessLog::Off => false,
        };
        if !wanted {
            return;
        }
        tracing::info!(
            target: "telecomx_gateway::access",
            { http.request.method = self.method_label(),
            http.route = self.route.as_str(),
            http.response.status_code = self.status.as_u16(),
            http.response.body.size = self.body_bytes,
            http.request.id = self.request_id,
            cache = self.cache_label(),
            role = self.level.map(AccessLevel::as_str),
            error.code = self.error.map(|error| error.parts().1),
            cause = self.cause,
            duration_us = duration.as_micros() as u64 },
            "request"
        );
    }
}
