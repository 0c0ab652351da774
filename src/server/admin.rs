//! The admin listener: health checks, metrics, statistics, a status page, purges and reloads.

mod access;
mod audit;
mod metrics_format;
mod page;
mod request;
mod service_state;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};

use access::{AccessRules, Denial};
use metrics_format::MetricsFormat;
use request::{AdminRequest, Requester, Resource};
use service_state::{Observations, ProcessState, ServiceState};

use super::admin_token::AdminTokens;
use super::forward::exchange::Failure;
use super::http::client_session::{Application, ClientSession};
use super::listener_kind::ListenerKind;
use super::reload::{Reload, Reloader};
use super::state::ActiveState;
use crate::api::{CustomerId, EmployeeId, request_id_text};
use crate::cache::Scope;
use crate::config;
use crate::process::Lifecycle;
use crate::telemetry::{History, SAMPLE_INTERVAL};
use crate::upstream::Circuit;

/// Serves the admin listener.
pub struct Admin {
    pub active: Arc<ActiveState>,
    pub lifecycle: Arc<Lifecycle>,
    reloader: Arc<Reloader>,
    access: AccessRules,
    host_name: String,
    started: Instant,
    history: Arc<History>,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The challenges of a 401: programs send the token as a bearer token, browsers as the password of
/// Basic authentication.
const CHALLENGES: [&str; 2] = [
    "Bearer",
    r#"Basic realm="telecomx-gateway: the admin token is the password", charset="UTF-8""#,
];

type AdminResponse = Response<Vec<u8>>;

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Vec<u8>>,
) -> AdminResponse {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// JSON with a newline at its end, for terminals.
fn json_response(status: StatusCode, body: &Value) -> AdminResponse {
    response(status, JSON, format!("{body}\n"))
}

fn error(status: StatusCode, code: &str, message: &str, requester: Requester<'_>) -> AdminResponse {
    error_with(status, json!({"message": message, "code": code}), requester)
}

/// An error with further members.
fn error_with(status: StatusCode, mut error: Value, requester: Requester<'_>) -> AdminResponse {
    error["status"] = status.as_u16().into();
    error["requestId"] = requester.request_id.into();
    json_response(status, &json!({ "error": error }))
}

fn method_not_allowed(allowed: &'static str, requester: Requester<'_>) -> AdminResponse {
    let message = "The method is not allowed for this path";
    let mut refusal = error(StatusCode::METHOD_NOT_ALLOWED, "bad_request", message, requester);
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}

impl Admin {
    /// Also starts to take samples for the status page.
    pub fn new(
        active: Arc<ActiveState>,
        lifecycle: Arc<Lifecycle>,
        reloader: Arc<Reloader>,
        tokens: Option<Arc<AdminTokens>>,
        started: Instant,
    ) -> Self {
        let history = Arc::new(History::default());
        spawn_sampler(active.clone(), history.clone());
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let access = AccessRules::new(tokens, host_name.clone());
        Admin { active, lifecycle, reloader, access, host_name, started, history }
    }

    /// Responds to a request, and writes the audit line of one that changes something.
    fn respond(&self, request: &AdminRequest<'_>) -> AdminResponse {
        let resource = Resource::find(request.path);
        let response = self.decide(request, resource.as_ref());
        if let Some(resource) = resource.filter(|resource| resource.allows(request.method)) {
            audit::write(&resource, request.requester, response.status());
        }
        response
    }

    fn decide(&self, request: &AdminRequest<'_>, resource: Option<&Resource<'_>>) -> AdminResponse {
        let AdminRequest { method, host, fields, requester, .. } = *request;
        if let Some(health @ (Resource::Live | Resource::Ready)) = resource {
            let is_allowed = health.allows(method);
            return if is_allowed {
                self.health(health)
            } else {
                method_not_allowed(health.methods(), requester)
            };
        }
        if let Err(denial) = self.access.check(method, host, fields) {
            return self.deny(denial, requester);
        }
        match resource {
            None => error(
                StatusCode::NOT_FOUND,
                "not_found",
                "Not found; GET / lists all paths",
                requester,
            ),
            Some(resource) if !resource.allows(method) => {
                method_not_allowed(resource.methods(), requester)
            }
            Some(resource) => self.serve(resource, fields, requester),
        }
    }

    fn deny(&self, denial: Denial, requester: Requester<'_>) -> AdminResponse {
        match denial {
            Denial::MisdirectedHost => {
                let message = "The Host of a request must be an IP address, localhost or the name of this machine, \
                               unless Authorization: Bearer has the admin token";
                error(StatusCode::MISDIRECTED_REQUEST, "bad_request", message, requester)
            }
            Denial::CrossOrigin => {
                let message = "Requests from web pages of other origins are refused";
                error(StatusCode::FORBIDDEN, "access_denied", message, requester)
            }
            Denial::Unauthorized => {
                self.active.process.metrics.count_admin_refusal();
                let message = "Authorization with the admin token is required: Bearer, or Basic with it as password";
                let mut refusal =
                    error(StatusCode::UNAUTHORIZED, "credentials_invalid", message, requester);
                for challenge in CHALLENGES {
                    refusal
                        .headers_mut()
                        .append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
                }
                refusal
            }
        }
    }

    fn health(&self, resource: &Resource<'_>) -> AdminResponse {
        if *resource == Resource::Live {
            return response(StatusCode::OK, TEXT, "ok\n");
        }
        let stream = self.active.process.invalidation_stream.get();
        let is_cluster_ready = stream.is_none_or(|stream| stream.is_ready());
        if self.lifecycle.is_ready() && is_cluster_ready {
            response(StatusCode::OK, TEXT, "ready\n")
        } else {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n")
        }
    }

    fn serve(
        &self,
        resource: &Resource<'_>,
        fields: &HeaderMap,
        requester: Requester<'_>,
    ) -> AdminResponse {
        match *resource {
            Resource::Live | Resource::Ready => self.health(resource),
            Resource::Page => page::page(requester),
            Resource::Metrics => self.metrics(MetricsFormat::from_fields(fields), requester),
            Resource::Stats => json_response(StatusCode::OK, &self.stats()),
            Resource::History => json_response(StatusCode::OK, &self.history()),
            Resource::Config => {
                response(StatusCode::OK, TEXT, config::explain(&self.active.load().config, &[]))
            }
            Resource::Cache => self.purge(Ok(Scope::All), json!("all"), requester),
            Resource::Customer(id) => {
                let scope = CustomerId::parse(id.as_bytes()).map(Scope::Customer);
                let scope = scope.ok_or("A customer id has 24 hexadecimal digits");
                self.purge(scope, json!({"customer": id}), requester)
            }
            Resource::Employee(id) => {
                let scope = EmployeeId::parse_strict(id).map(Scope::Employee);
                let scope = scope.ok_or("An employee id has 24 hexadecimal digits");
                self.purge(scope, json!({"employee": id}), requester)
            }
            Resource::Reload => self.reload(requester),
        }
    }

    fn metrics(&self, format: MetricsFormat, requester: Requester<'_>) -> AdminResponse {
        self.update_gauges();
        let metrics = &self.active.process.metrics;
        let text = match format {
            MetricsFormat::Text => metrics.text(),
            MetricsFormat::OpenMetrics => Ok(metrics.open_metrics()),
        };
        match text {
            Ok(text) => response(StatusCode::OK, format.media_type(), text),
            Err(failure) => {
                tracing::error!(http.request.id = requester.request_id, %failure, "failed to encode metrics");
                let message = "Failed to encode metrics";
                error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message, requester)
            }
        }
    }

    fn update_gauges(&self) {
        let gateway = &self.active.load().gateway;
        let (entries, bytes, capacity) = gateway.cache().usage();
        gateway.metrics().set_cache_usage(entries, bytes, capacity);
        gateway.metrics().set_circuit_open(gateway.is_circuit_open());
        if let Some(stream) = self.active.process.invalidation_stream.get() {
            stream.update_gauges();
        }
    }

    fn stats(&self) -> Value {
        let state = self.active.load();
        let gateway = &state.gateway;
        let (entries, bytes, capacity) = gateway.cache().usage();
        let admission = &self.active.process.admission;
        let (hits, misses) = gateway.metrics().hits_and_misses();
        let lookups = hits + misses;
        let hit_ratio = if lookups == 0 { 0.0 } else { hits as f64 / lookups as f64 };
        let mut stats = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "host": self.host_name,
            "state": self.process_state().as_str(),
            "service": self.service_state().json(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "config_generation": self.reloader.generation(),
            "last_reload": self.reloader.last().as_ref().map(reload_json),
            "cache": {
                "entries": entries, "bytes": bytes, "capacity_bytes": capacity,
                "hits": hits, "misses": misses, "hit_ratio": hit_ratio,
            },
            "identities": {"entries": gateway.identities().count()},
            "connections": {
                "open": admission.connections_of(ListenerKind::Public).open(),
                "limit": state.limits.max_connections,
            },
            "requests": {"in_flight": admission.requests_in_flight(), "limit": state.limits.requests.all},
            "upstream": {
                "url": state.config.upstream.display_urls(),
                "in_flight": gateway.metrics().fetches_in_flight(),
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

    fn history(&self) -> Value {
        self.history.json(&self.active.process.metrics.families(), Instant::now())
    }

    /// The addresses of the API and their health.
    fn addresses(&self) -> Vec<Value> {
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

    fn process_state(&self) -> ProcessState {
        if self.lifecycle.is_draining() {
            ProcessState::Draining
        } else if self.lifecycle.is_ready() {
            ProcessState::Serving
        } else {
            ProcessState::Starting
        }
    }

    fn service_state(&self) -> ServiceState {
        let state = self.active.load();
        ServiceState::from_observations(&Observations {
            process: self.process_state(),
            is_circuit_closed: state.gateway.circuit() == Circuit::Closed,
            api_failures: self.active.process.metrics.consecutive_upstream_failures(),
            is_configuration_old: self.reloader.last().is_some_and(|reload| reload.result.is_err()),
            is_isolated: self
                .active
                .process
                .invalidation_stream
                .get()
                .is_some_and(|stream| stream.is_isolated()),
            recent: self.history.recent_outcomes(&self.active.process.metrics.families()),
        })
    }

    fn purge(
        &self,
        scope: Result<Scope, &str>,
        named: Value,
        requester: Requester<'_>,
    ) -> AdminResponse {
        let scope = match scope {
            Ok(scope) => scope,
            Err(problem) => {
                return error(StatusCode::BAD_REQUEST, "bad_request", problem, requester);
            }
        };
        self.active.load().gateway.invalidate(&scope, "admin");
        json_response(StatusCode::OK, &json!({ "scope": named }))
    }

    fn reload(&self, requester: Requester<'_>) -> AdminResponse {
        match self.reloader.reload() {
            Ok(restart) => json_response(
                StatusCode::OK,
                &json!({"reloaded": true, "restart_needed_for": restart}),
            ),
            Err(problems) => {
                let message = "The configuration was rejected; the current one stays in force";
                let problems: Vec<&str> = problems.lines().collect();
                let error =
                    json!({"message": message, "code": "configuration", "problems": problems});
                error_with(StatusCode::UNPROCESSABLE_ENTITY, error, requester)
            }
        }
    }

    /// The client's request id if it is valid and contains no credential, otherwise a new one.
    fn request_id(&self, fields: &HeaderMap) -> String {
        let sent = fields.get(X_REQUEST_ID).and_then(|value| request_id_text(value.as_bytes()));
        let safe = sent.filter(|id| !self.access.is_credential(id.as_bytes(), fields));
        safe.map_or_else(|| self.active.load().new_request_id(), str::to_owned)
    }
}

/// A reload as JSON.
fn reload_json(reload: &Reload) -> Value {
    let at = reload.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match &reload.result {
        Ok(restart) => json!({"at": at, "successful": true, "restart_needed_for": restart}),
        Err(problems) => {
            json!({"at": at, "successful": false, "problems": problems.lines().collect::<Vec<_>>()})
        }
    }
}

/// Starts the thread that takes samples until the process ends.
#[expect(clippy::disallowed_methods, reason = "on a separate thread, which serves no client")]
fn spawn_sampler(active: Arc<ActiveState>, history: Arc<History>) {
    std::thread::spawn(move || {
        loop {
            let families = active.process.metrics.families();
            history.add_sample(&families, Instant::now(), SystemTime::now());
            std::thread::sleep(SAMPLE_INTERVAL);
        }
    });
}

impl Application for Admin {
    async fn serve(&self, session: &mut ClientSession) {
        let address: IpAddr = session.peer();
        let head = session.request();
        let request_id = self.request_id(&head.fields);
        let requester = Requester { address, request_id: &request_id };
        let host = head.fields.get(HOST).map(|host| host.to_str().unwrap_or_default());
        let request = AdminRequest {
            method: &head.method,
            path: head.path(),
            host,
            fields: &head.fields,
            requester,
        };
        let mut response = self.respond(&request);
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
        let is_head = head.method == Method::HEAD;
        if session.has_body() || self.lifecycle.is_draining() {
            session.close_after();
        }
        if write(session, response, is_head).await.is_err() {
            session.abort();
        }
    }
}

async fn write(
    session: &mut ClientSession,
    response: AdminResponse,
    is_head: bool,
) -> Result<(), Failure> {
    let (parts, body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    head.headers_mut().insert(CONTENT_LENGTH, body.len().into());
    let has_no_body = is_head || body.is_empty();
    session.write_head(head, has_no_body).await?;
    if !has_no_body {
        session.write_body(body.into(), true).await?;
    }
    Ok(())
}
