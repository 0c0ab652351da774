//! Runs a sequence: the gateway's core in front of the API model, on a clock that jumps to the next
//! event.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{AUTHORIZATION, CACHE_CONTROL, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method};
use parking_lot::Mutex;
use telecomx_gateway::api::{self, CustomerId, EmployeeId, NormalPath, Protected, Query};
use telecomx_gateway::cache::{CallerIds, Scope};
use telecomx_gateway::config::{self, Config};
use telecomx_gateway::gateway;
use telecomx_gateway::redact::Policy;
use telecomx_gateway::reply::{Content, ETag};
use telecomx_gateway::telemetry::{Metrics, Record};

use super::api_model::{
    ADDRESSES, ApiModel, CUSTOMERS, EMPLOYEE_OF, EMPLOYEES, Invalidation, ModelScope,
    PublishedNumbers, State, TOKENS, wait,
};
use super::cluster::{Cluster, Node};
use super::coverage::Coverage;
use super::oracle::{Observation, Oracle};
use super::steps::{Change, Directive, NameRequest, Outcome, Sequence, Step, Variant};

/// Indices of the configurations.
pub const DEFAULTS: usize = 0;
pub const OTHERS: usize = 1;
pub const WITHOUT_STALE: usize = 2;
pub const WITHOUT_CACHING: usize = 3;

/// The configurations; without jitter, so that a sequence has the same result each time.
const BOUNDS: [&str; 4] = [
    "[cache]\nttl_jitter = 0",
    // Each bound differs, and their order differs from that of the defaults.
    "[identity]\nttl = \"20s\"\nrefresh_after = \"15s\"\nstale_if_error = \"15s\"\n\
     negative_ttl = \"9s\"\n\
     [cache]\nttl_jitter = 0\nttl = \"45s\"\nnot_found_ttl = \"4s\"\nforbidden_ttl = \"0s\"\n\
     stale_while_revalidate = \"70s\"\nstale_if_error = \"30s\"",
    "[identity]\nttl = \"30s\"\nrefresh_after = \"30s\"\nstale_if_error = \"0s\"\n\
     negative_ttl = \"0s\"\n\
     [cache]\nttl_jitter = 0\nttl = \"30s\"\nstale_while_revalidate = \"0s\"\n\
     stale_if_error = \"0s\"\nforbidden_ttl = \"0s\"",
    "[identity]\nttl = \"0s\"\nrefresh_after = \"0s\"\n\
     [cache]\nttl_jitter = 0\nttl = \"0s\"\nnot_found_ttl = \"0s\"\nforbidden_ttl = \"0s\"",
];

static CONFIGS: LazyLock<Vec<Config>> = LazyLock::new(|| {
    let parse = |bounds: &&str| {
        let text = format!("{bounds}\n[upstream]\nurl = \"http://127.0.0.1:1\"");
        let config = config::parse("model", &text, []);
        let mut config = config.unwrap_or_else(|problems| panic!("{problems:?}"));
        // Counted in minutes of moka's clock, which does not advance here.
        config.identity.max_invalid_per_minute = u32::MAX;
        config
    };
    BOUNDS.iter().map(parse).collect()
});

pub static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let rules = CONFIGS[0].redaction.rules();
    Arc::new(Policy::compile(&rules).expect("the default rules are valid"))
});
pub static METRICS: LazyLock<Arc<Metrics>> =
    LazyLock::new(|| Arc::new(Metrics::new().expect("metric names are unique")));

/// Longer than any request takes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(100);

struct Run {
    cluster: Arc<Cluster>,
    api: ApiModel,
    oracle: Oracle,
    /// The last `ETag` of each token and customer.
    etags: Mutex<HashMap<(usize, usize), ETag>>,
}

/// Runs a sequence. Returns its coverage, or the first wrong response.
pub fn run_sequence(sequence: &Sequence) -> Result<Coverage, String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let config = &CONFIGS[sequence.bounds];
        let api = ApiModel::new(sequence.delays.clone(), sequence.validators);
        let is_cluster = sequence.cluster.gateways > 1;
        let run = Arc::new(Run {
            cluster: Cluster::new(config, api.clone(), sequence.cluster.clone()),
            oracle: Oracle::new(config, is_cluster, api.clone()),
            api,
            etags: Mutex::default(),
        });
        let mut tasks = Vec::new();
        for (nth, (step, gap)) in sequence.steps.iter().enumerate() {
            let (run, step) = (run.clone(), *step);
            let node = run.cluster.node_of_step(nth);
            tasks.push(tokio::spawn(async move { run.run_step(&node, step).await }));
            wait(Duration::from_millis((*gap).into())).await;
        }
        for task in tasks {
            match tokio::time::timeout(REQUEST_TIMEOUT, task).await {
                Ok(Ok(())) => {}
                Ok(Err(panic)) => return Err(format!("{panic}")),
                Err(_) => return Err("a request got no response".to_owned()),
            }
        }
        run.oracle.result()
    })
}

impl Run {
    async fn run_step(&self, node: &Node, step: Step) {
        match step {
            Step::Request(request) => self.request(node, request).await,
            Step::Forward { change, by, address, outcome } => {
                self.forward(node, change, by, address, outcome).await;
            }
            Step::SetTier(works) => self.cluster.set_tier(works),
            Step::Restart => self.cluster.restart(node),
            Step::ChangeElsewhere(change) => self.api.with(|state| execute(state, change)),
            Step::Login(token, only_from) => self.api.with(|state| {
                state.sessions[token].is_valid = true;
                state.sessions[token].only_from = only_from;
            }),
            Step::SetCacheDirective(customer, directive) => {
                self.api.with(|state| state.customers[customer].directive = directive);
            }
            Step::SetFault(fault) => self.api.with(|state| state.fault = fault),
            Step::Purge(scope) => {
                node.gateway.invalidate(&to_scope(scope), "admin");
                self.record_immediate(node, scope);
            }
            Step::Wait => {}
        }
    }

    fn record_immediate(&self, node: &Node, scope: ModelScope) {
        let number = node.last_published();
        self.api.with(|state| {
            let now = state.moment();
            state.invalidations.push(Invalidation::immediate(scope, node.id, number, now));
        });
    }

    async fn request(&self, node: &Node, request: NameRequest) {
        let NameRequest { token, customer, variant, .. } = request;
        let headers = self.request_headers(&request);
        let query = Query::parse((variant == Variant::OtherQuery).then_some("x=1"));
        let query = query.expect("a query");
        let gateway_request = gateway::NameRequest {
            customer: CustomerId::parse(CUSTOMERS[customer].as_bytes()).expect("an id"),
            query: &query,
            headers: &headers,
            address: address(request.address),
            has_body: false,
        };
        let began = self.api.moment();
        let mut record = Record::begin(began.at);
        let reply = node.gateway.respond(&gateway_request, &mut record).await;
        let ended = self.api.moment();
        if let Content::Whole(representation) | Content::NotModified(representation) =
            &reply.content
        {
            self.etags.lock().insert((token, customer), *representation.etag());
        }
        let (gateway, level) = (node.id, record.level);
        let observation = Observation { request, gateway, began, ended, reply: &reply, level };
        self.oracle.observe(&observation);
    }

    fn request_headers(&self, request: &NameRequest) -> HeaderMap {
        let mut headers = bearer(request.token);
        let directive = match request.directive {
            Directive::Absent => None,
            Directive::NoCache => Some("no-cache".to_owned()),
            Directive::MaxAge(seconds) => Some(format!("max-age={seconds}")),
            Directive::MinFresh(seconds) => Some(format!("min-fresh={seconds}")),
            Directive::OnlyIfCached => Some("only-if-cached".to_owned()),
        };
        if let Some(directive) = directive {
            let value = HeaderValue::try_from(directive).expect("a field value");
            headers.insert(CACHE_CONTROL, value);
        }
        let etag = self.etags.lock().get(&(request.token, request.customer)).cloned();
        if let Some(etag) = etag.filter(|_| request.variant == Variant::Conditional) {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_bytes(&etag).expect("a field value"));
        }
        headers
    }

    /// Does what the proxy does with a request that changes something: invalidates when the request
    /// is seen, and again when its response is complete or lost; a 401 ends the token's identity.
    async fn forward(&self, node: &Node, change: Change, by: usize, from: usize, outcome: Outcome) {
        let by = match change {
            Change::Logout(token) | Change::Switch(token, _) => token,
            _ => by,
        };
        let (method, path, scope) = request_of(change);
        let path = NormalPath::parse(&path, Protected::default()).expect("a normal path");
        let changes = api::changes(&method, &bearer(by), &path);
        let token = api::Token::parse(TOKENS[by].as_bytes()).expect("a token");
        // Rejected if the change cannot be attributed; the API does not receive it.
        let tokens = std::slice::from_ref(&token);
        let Ok(scopes) = node.gateway.scopes(changes, tokens, address(from)).await else {
            return;
        };
        // The first scope is the widest and covers the change; others read it by its number.
        let invalidate = |trigger| {
            let mut first = None;
            for scope in &scopes {
                node.gateway.invalidate(scope, trigger);
                first = first.or(Some(node.last_published()));
            }
            first.unwrap_or_else(|| node.last_published())
        };
        let number = invalidate("request");
        let (at, (before, after)) = self.api.with(|state| {
            let seen = state.moment();
            // The one change with a narrower effect: the employee of a token that is valid again
            // while it is cached as invalid is unknown.
            let is_negative = self.oracle.may_be_cached_as_invalid(state, by, seen.at);
            let is_logout = matches!(change, Change::Logout(_));
            let scope = if is_logout && is_negative { ModelScope::Token(by) } else { scope };
            let nth = state.invalidations.iter().filter(|before| before.scope == scope).count();
            state.invalidations.push(Invalidation {
                scope,
                gateway: node.id,
                numbers: PublishedNumbers::both(number),
                seen,
                executed: None,
                completed: None,
            });
            (state.invalidations.len() - 1, state.delays(nth))
        });
        wait(before).await;
        let is_known = self.api.with(|state| {
            let is_known = state.sessions[by].is_valid;
            if is_known && outcome != Outcome::Refused {
                execute(state, change);
                state.invalidations[at].executed = Some(state.moment());
            }
            is_known
        });
        wait(after).await;
        let is_lost = outcome == Outcome::ResponseLost;
        let number = invalidate(if is_lost { "failed" } else { "answer" });
        self.api.with(|state| {
            let now = state.moment();
            state.invalidations[at].numbers.completed = number;
            state.invalidations[at].completed = Some(now);
        });
        if !is_known && outcome == Outcome::Executed {
            let caller = Scope::Caller(node.gateway.caller_of(&token));
            node.gateway.invalidate(&caller, "unauthorized");
            self.record_immediate(node, ModelScope::Token(by));
        }
    }
}

/// The request that causes a change, and what the change invalidates.
fn request_of(change: Change) -> (Method, String, ModelScope) {
    match change {
        Change::Write(customer) | Change::Exists(customer) => {
            let is_write = matches!(change, Change::Write(_));
            let method = if is_write { Method::POST } else { Method::DELETE };
            let path = format!("/customer/{}", CUSTOMERS[customer]);
            (method, path, ModelScope::Customer(customer))
        }
        Change::Logout(token) => {
            let scope = ModelScope::Employee(EMPLOYEE_OF[token]);
            (Method::GET, "/auth/logout".into(), scope)
        }
        Change::DeleteToken(token) => {
            let employee = EMPLOYEES[EMPLOYEE_OF[token]];
            let path = format!("/employee/{employee}/token/{}", TOKENS[token]);
            (Method::DELETE, path, ModelScope::Token(token))
        }
        Change::Level(employee, _) => {
            let path = format!("/employee/{}", EMPLOYEES[employee]);
            (Method::POST, path, ModelScope::Employee(employee))
        }
        Change::Switch(token, _) => {
            (Method::POST, "/auth/organizationreseller".into(), ModelScope::Token(token))
        }
    }
}

/// The API executes a change.
fn execute(state: &mut State, change: Change) {
    match change {
        Change::Write(customer) => state.customers[customer].version += 1,
        Change::Exists(customer) => {
            state.customers[customer].version += 1;
            state.customers[customer].exists ^= true;
        }
        Change::Logout(token) => {
            let employee = EMPLOYEE_OF[token];
            for (other, session) in state.sessions.iter_mut().enumerate() {
                session.is_valid &= EMPLOYEE_OF[other] != employee;
            }
        }
        Change::DeleteToken(token) => state.sessions[token].is_valid = false,
        Change::Level(employee, level) => state.set_level(employee, level),
        Change::Switch(token, denied) => state.sessions[token].denied = denied,
    }
}

fn to_scope(scope: ModelScope) -> Scope {
    match scope {
        ModelScope::All => Scope::All,
        ModelScope::Customer(customer) => {
            Scope::Customer(CustomerId::parse(CUSTOMERS[customer].as_bytes()).expect("an id"))
        }
        ModelScope::Employee(employee) => {
            Scope::Employee(EmployeeId::parse(EMPLOYEES[employee]).expect("an id"))
        }
        ModelScope::Token(token) => {
            Scope::Caller(CallerIds::with_key([7; 32]).id_of(TOKENS[token]))
        }
    }
}

fn bearer(token: usize) -> HeaderMap {
    let value = HeaderValue::try_from(format!("Bearer {}", TOKENS[token]));
    HeaderMap::from_iter([(AUTHORIZATION, value.expect("a field value"))])
}

fn address(address: usize) -> IpAddr {
    ADDRESSES[address].parse().expect("an address")
}
