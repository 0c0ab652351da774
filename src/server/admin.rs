//! The admin listener: health, metrics, statistics, and dropping what is stored. Not on the public port.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use serde_json::json;

use super::lifecycle::Lifecycle;
use super::setup::{Current, Reloader};
use crate::api::{CustomerId, EmployeeId};
use crate::cache::Scope;

/// What operators may ask.
pub struct Admin {
    pub current: Arc<Current>,
    pub lifecycle: Arc<Lifecycle>,
    pub reloader: Arc<Reloader>,
    /// The digest of the token that all but the health checks need.
    pub token: Option<blake3::Hash>,
    pub started: Instant,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";
/// The Prometheus text format's own type.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

const HELP: &str = "telecomx-gateway, admin listener\n\n\
    GET    /livez                  200 while the process works\n\
    GET    /readyz                 200 when serving, 503 while starting or draining\n\
    GET    /metrics                Prometheus text\n\
    GET    /stats                  JSON\n\
    DELETE /cache                  drops everything stored\n\
    DELETE /cache/customers/{id}   drops what is stored of a customer\n\
    DELETE /cache/employees/{id}   drops what is stored for an employee\n\
    POST   /reload                 reads the configuration anew, as HUP does\n";

type Answer = Response<Vec<u8>>;

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    let mut answer = Response::new(Vec::new());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, http::HeaderValue::from(body.len()));
    headers.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    *answer.body_mut() = body;
    answer
}

fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    let body = json!({"error": {"message": message, "code": code, "status": status.as_u16()}});
    answer(status, JSON, body.to_string())
}

impl Admin {
    fn respond(&self, method: &Method, path: &str, credential: Option<&[u8]>) -> Answer {
        let get = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/livez" if get => return answer(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" if get => {
                return if self.lifecycle.is_ready() {
                    answer(StatusCode::OK, TEXT, "ready\n")
                } else {
                    answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n")
                };
            }
            _ => {}
        }
        if !self.may(credential) {
            let mut refused = error(
                StatusCode::UNAUTHORIZED,
                "credentials_invalid",
                "Authorization: Bearer with the admin token required",
            );
            refused.headers_mut().insert(WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
            return refused;
        }
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let delete = *method == Method::DELETE;
        match segments.as_slice() {
            [""] if get => answer(StatusCode::OK, TEXT, HELP),
            ["metrics"] if get => self.metrics(),
            ["stats"] if get => answer(StatusCode::OK, JSON, self.stats().to_string()),
            ["cache"] if delete => self.purge(Ok(Scope::All), json!("all")),
            ["cache", "customers", id] if delete => {
                let scope = CustomerId::parse(id.as_bytes()).map(Scope::Customer);
                self.purge(scope.ok_or("A customer's id has 24 hexadecimal characters"), json!({"customer": id}))
            }
            ["cache", "employees", id] if delete => {
                let scope = EmployeeId::parse(id).map(Scope::Employee);
                self.purge(scope.ok_or("An employee's id has letters and digits only"), json!({"employee": id}))
            }
            ["reload"] if *method == Method::POST => self.reload(),
            ["reload"] => not_allowed("POST"),
            ["" | "metrics" | "stats"] => not_allowed("GET, HEAD"),
            ["cache"] | ["cache", "customers" | "employees", _] => not_allowed("DELETE"),
            _ => error(StatusCode::NOT_FOUND, "not_found", "No such page; GET / lists what there is"),
        }
    }

    /// Digests compare in constant time.
    fn may(&self, credential: Option<&[u8]>) -> bool {
        let Some(wanted) = self.token else { return true };
        let given = credential.and_then(|value| value.split_at_checked(7));
        given.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case(b"bearer ") && blake3::hash(token.trim_ascii()) == wanted
        })
    }

    fn metrics(&self) -> Answer {
        let gateway = &self.current.load().gateway;
        gateway.metrics.cache_usage(gateway.cache.usage());
        match gateway.metrics.text() {
            Ok(text) => answer(StatusCode::OK, METRICS, text),
            Err(failure) => {
                tracing::error!(%failure, "metrics cannot be written");
                error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Metrics cannot be written")
            }
        }
    }

    fn stats(&self) -> serde_json::Value {
        let gateway = &self.current.load().gateway;
        let (entries, bytes, capacity) = gateway.cache.usage();
        let (hits, misses) = gateway.metrics.hits_and_misses();
        let asked = hits + misses;
        let hit_ratio = if asked == 0 { 0.0 } else { hits as f64 / asked as f64 };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "config_generation": self.reloader.generation(),
            "cache": {
                "entries": entries, "bytes": bytes, "capacity_bytes": capacity,
                "hits": hits, "misses": misses, "hit_ratio": hit_ratio,
            },
            "identities": {"entries": gateway.identities.count()},
            "upstream": {"in_flight": gateway.metrics.in_flight(), "circuit": gateway.circuit().as_str()},
        })
    }

    fn purge(&self, scope: Result<Scope, &str>, named: serde_json::Value) -> Answer {
        let scope = match scope {
            Ok(scope) => scope,
            Err(wrong) => return error(StatusCode::BAD_REQUEST, "bad_request", wrong),
        };
        self.current.load().gateway.invalidate(&scope, "admin");
        answer(StatusCode::OK, JSON, json!({"scope": named}).to_string())
    }
}

impl Admin {
    fn reload(&self) -> Answer {
        match self.reloader.reload() {
            Ok(restart) => {
                answer(StatusCode::OK, JSON, json!({"reloaded": true, "restart_needed_for": restart}).to_string())
            }
            Err(problems) => {
                let problems: Vec<&str> = problems.lines().collect();
                let message = "The configuration was not taken up; the old one stays in force";
                let error = json!({"message": message, "code": "configuration", "status": 422, "problems": problems});
                answer(StatusCode::UNPROCESSABLE_ENTITY, JSON, json!({ "error": error }).to_string())
            }
        }
    }
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "bad_request", "The method is not allowed here");
    refused.headers_mut().insert(ALLOW, http::HeaderValue::from_static(allowed));
    refused
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Answer {
        let request = session.req_header();
        let credential = request.headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let mut answer = self.respond(&request.method, request.uri.path(), credential);
        if request.method == Method::HEAD {
            answer.body_mut().clear();
        }
        answer
    }
}
