//! The admin listener: health, metrics, statistics, a page for people, and dropping what is stored. Not on the public port.

mod foreign;
mod page;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::json;

use super::forward::exchange::Failure;
use super::http::client_session::{Application, ClientSession};
use super::reload::{Reload, Reloader};
use super::state::ActiveState;
use crate::api::{CustomerId, EmployeeId};
use crate::cache::Scope;
use crate::config;
use crate::process::Lifecycle;
use crate::telemetry::{History, SAMPLED_EVERY};

/// What operators may ask.
pub struct Admin {
    pub active: Arc<ActiveState>,
    pub lifecycle: Arc<Lifecycle>,
    reloader: Arc<Reloader>,
    /// The digest of the token that all but the health checks need.
    token: Option<blake3::Hash>,
    started: Instant,
    history: Arc<History>,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";
/// The Prometheus text format's own type.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer = Response<Vec<u8>>;

/// What a path names.
#[derive(PartialEq, Eq)]
enum Resource<'a> {
    Live,
    Ready,
    Page,
    Metrics,
    Stats,
    History,
    Config,
    Cache,
    Customer(&'a str),
    Employee(&'a str),
    Reload,
}

impl<'a> Resource<'a> {
    fn find(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        Some(match *segments.as_slice() {
            ["livez"] => Resource::Live,
            ["readyz"] => Resource::Ready,
            [""] => Resource::Page,
            ["metrics"] => Resource::Metrics,
            ["stats"] => Resource::Stats,
            ["stats", "history"] => Resource::History,
            ["config"] => Resource::Config,
            ["cache"] => Resource::Cache,
            ["cache", "customers", id] => Resource::Customer(id),
            ["cache", "employees", id] => Resource::Employee(id),
            ["reload"] => Resource::Reload,
            _ => return None,
        })
    }

    /// The methods that it supports, as `Allow` lists them (RFC 9110 section 10.2.1).
    const fn methods(&self) -> &'static str {
        match self {
            Resource::Cache | Resource::Customer(_) | Resource::Employee(_) => "DELETE",
            Resource::Reload => "POST",
            _ => "GET, HEAD",
        }
    }

    fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    let mut answer = Response::new(Vec::new());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, http::HeaderValue::from(body.len()));
    headers.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    *answer.body_mut() = body;
    answer
}

fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    let body = json!({"error": {"message": message, "code": code, "status": status.as_u16()}});
    answer(status, JSON, body.to_string())
}

impl Admin {
    /// Begins to take samples for the page, too.
    pub fn new(
        active: Arc<ActiveState>,
        lifecycle: Arc<Lifecycle>,
        reloader: Arc<Reloader>,
        token: Option<blake3::Hash>,
        started: Instant,
    ) -> Self {
        let history = Arc::new(History::default());
        take_samples(active.clone(), history.clone());
        Admin { active, lifecycle, reloader, token, started, history }
    }

    fn respond(&self, method: &Method, path: &str, host: Option<&str>, headers: &HeaderMap) -> Answer {
        let resource = Resource::find(path);
        if let Some(health @ (Resource::Live | Resource::Ready)) = &resource {
            return if health.allows(method) { self.health(health) } else { not_allowed(health.methods()) };
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if let Some(refused) = self.foreign(reads, host, headers) {
            return refused;
        }
        if !self.may(headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes)) {
            let mut refused = error(
                StatusCode::UNAUTHORIZED,
                "credentials_invalid",
                "Authorization: Bearer with the admin token is required",
            );
            self.active.process.metrics.admin_refused();
            refused.headers_mut().insert(WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
            return refused;
        }
        match resource {
            None => error(StatusCode::NOT_FOUND, "not_found", "Not found; GET / lists all paths"),
            Some(resource) if !resource.allows(method) => not_allowed(resource.methods()),
            Some(resource) => self.serve(&resource),
        }
    }

    fn health(&self, resource: &Resource<'_>) -> Answer {
        if *resource == Resource::Live {
            return answer(StatusCode::OK, TEXT, "ok\n");
        }
        let stream = self.active.process.invalidation_stream.get();
        let cluster_is_ready = stream.is_none_or(|stream| stream.is_ready());
        if self.lifecycle.is_ready() && cluster_is_ready {
            answer(StatusCode::OK, TEXT, "ready\n")
        } else {
            answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n")
        }
    }

    fn serve(&self, resource: &Resource<'_>) -> Answer {
        match *resource {
            Resource::Live | Resource::Ready => self.health(resource),
            Resource::Page => page::page(),
            Resource::Metrics => self.metrics(),
            Resource::Stats => answer(StatusCode::OK, JSON, self.stats().to_string()),
            Resource::History => answer(StatusCode::OK, JSON, self.history.json().to_string()),
            Resource::Config => answer(StatusCode::OK, TEXT, config::explain(&self.active.load().config)),
            Resource::Cache => self.purge(Ok(Scope::All), json!("all")),
            Resource::Customer(id) => {
                let scope = CustomerId::parse(id.as_bytes()).map(Scope::Customer);
                self.purge(scope.ok_or("A customer id has 24 hexadecimal digits"), json!({"customer": id}))
            }
            Resource::Employee(id) => {
                let scope = EmployeeId::parse_strict(id).map(Scope::Employee);
                self.purge(scope.ok_or("An employee id has 24 hexadecimal digits"), json!({"employee": id}))
            }
            Resource::Reload => self.reload(),
        }
    }

    /// Why a request is not for us, or not the operator's own. Health checks are for everyone.
    fn foreign(&self, get: bool, host: Option<&str>, headers: &HeaderMap) -> Option<Answer> {
        // With a token, a page that poses as ours has none to send.
        if self.token.is_none() && !foreign::is_own_host(host) {
            let message = "Without admin.token_file the Host of a request must be an IP address or localhost";
            return Some(error(StatusCode::MISDIRECTED_REQUEST, "bad_request", message));
        }
        let refused = !get && foreign::is_from_another_page(headers, host);
        refused.then(|| {
            error(StatusCode::FORBIDDEN, "access_denied", "Requests from web pages of other origins are refused")
        })
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
        let gateway = &self.active.load().gateway;
        gateway.metrics().cache_usage(gateway.cache().usage());
        gateway.metrics().circuit(gateway.is_circuit_open());
        if let Some(stream) = self.active.process.invalidation_stream.get() {
            stream.update_gauges();
        }
        match gateway.metrics().text() {
            Ok(text) => answer(StatusCode::OK, METRICS, text),
            Err(failure) => {
                tracing::error!(%failure, "failed to encode metrics");
                error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Failed to encode metrics")
            }
        }
    }

    fn stats(&self) -> serde_json::Value {
        let gateway = &self.active.load().gateway;
        let (entries, bytes, capacity) = gateway.cache().usage();
        let (hits, misses) = gateway.metrics().hits_and_misses();
        let asked = hits + misses;
        let hit_ratio = if asked == 0 { 0.0 } else { hits as f64 / asked as f64 };
        let mut stats = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": self.state(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "config_generation": self.reloader.generation(),
            "last_reload": self.reloader.last().as_ref().map(told),
            "cache": {
                "entries": entries, "bytes": bytes, "capacity_bytes": capacity,
                "hits": hits, "misses": misses, "hit_ratio": hit_ratio,
            },
            "identities": {"entries": gateway.identities().count()},
            "upstream": {
                "in_flight": gateway.metrics().in_flight(),
                "circuit": gateway.circuit().as_str(),
                "addresses": self.addresses(),
                "resolution_age_seconds": self.active.process.connector.resolution_age().map(|age| age.as_secs()),
            },
        });
        if let Some(stream) = self.active.process.invalidation_stream.get() {
            stats["cluster"] = stream.stats();
        }
        stats
    }

    /// The addresses of the API and their health.
    fn addresses(&self) -> Vec<serde_json::Value> {
        let addresses = self.active.process.connector.addresses();
        let shown = addresses.iter().map(|address| {
            json!({
                "name": address.name,
                "address": address.address.to_string(),
                "host": address.host,
                "state": address.state.as_str(),
                "in_flight": address.in_flight,
                "connections": {"open": address.open, "idle": address.idle},
            })
        });
        shown.collect()
    }

    fn state(&self) -> &'static str {
        if self.lifecycle.is_draining() {
            "draining"
        } else if self.lifecycle.is_ready() {
            "serving"
        } else {
            "starting"
        }
    }

    fn purge(&self, scope: Result<Scope, &str>, named: serde_json::Value) -> Answer {
        let scope = match scope {
            Ok(scope) => scope,
            Err(wrong) => return error(StatusCode::BAD_REQUEST, "bad_request", wrong),
        };
        self.active.load().gateway.invalidate(&scope, "admin");
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
                let message = "The configuration was rejected; the current one stays in force";
                let error = json!({"message": message, "code": "configuration", "status": 422, "problems": problems});
                answer(StatusCode::UNPROCESSABLE_ENTITY, JSON, json!({ "error": error }).to_string())
            }
        }
    }
}

/// A reload, in JSON.
fn told(reload: &Reload) -> serde_json::Value {
    let at = reload.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match &reload.result {
        Ok(restart) => json!({"at": at, "successful": true, "restart_needed_for": restart}),
        Err(problems) => json!({"at": at, "successful": false, "problems": problems.lines().collect::<Vec<_>>()}),
    }
}

/// From now on, as long as the process lives.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which serves nobody")]
fn take_samples(active: Arc<ActiveState>, history: Arc<History>) {
    std::thread::spawn(move || {
        loop {
            let families = active.load().gateway.metrics().families();
            history.take(&families, Instant::now(), SystemTime::now());
            std::thread::sleep(SAMPLED_EVERY);
        }
    });
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "bad_request", "The method is not allowed for this path");
    refused.headers_mut().insert(ALLOW, http::HeaderValue::from_static(allowed));
    refused
}

#[async_trait]
impl Application for Admin {
    async fn serve(&self, session: &mut ClientSession) {
        let request = session.request();
        let host = request.fields.get(HOST).map(|host| host.to_str().unwrap_or_default());
        let answer = self.respond(&request.method, request.path(), host, &request.fields);
        let is_head = request.method == Method::HEAD;
        if session.has_body() || self.lifecycle.is_draining() {
            session.close_after();
        }
        if write(session, answer, is_head).await.is_err() {
            session.abort();
        }
    }
}

async fn write(session: &mut ClientSession, answer: Answer, is_head: bool) -> Result<(), Failure> {
    let (parts, body) = answer.into_parts();
    let mut head = Response::from_parts(parts, ());
    head.headers_mut().insert(CONTENT_LENGTH, body.len().into());
    let is_empty = is_head || body.is_empty();
    session.write_head(head, is_empty).await?;
    if !is_empty {
        session.write_body(body.into(), true).await?;
    }
    Ok(())
}
