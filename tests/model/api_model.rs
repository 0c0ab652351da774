//! A model of the API: customers, employees, tokens, faults and delays, and a log of all exchanges,
//! so that each response of a gateway can be traced to the exchange from which it was made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use telecomx_gateway::api::AccessLevel;
use telecomx_gateway::clock;
use telecomx_gateway::upstream::{ApiResponse, Request, RequestKind, Transport, UpstreamError};

pub const CUSTOMERS: [&str; 3] =
    ["5f0000000000000000000001", "5f0000000000000000000002", "5f0000000000000000000003"];
pub const EMPLOYEES: [&str; 3] =
    ["ee0000000000000000000001", "ee0000000000000000000002", "ee0000000000000000000003"];
/// Tokens resemble each other; two employees have two each.
pub const TOKENS: [&str; 5] = ["tok-a", "tok-a.", "tok-b", "tok-A", "tok-c"];
pub const EMPLOYEE_OF: [usize; 5] = [0, 0, 1, 1, 2];
pub const ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Part of the values that callers below RESELLER must not see.
pub const SECRET: &str = "PLANTED";

/// Consecutive failures that open the circuit breaker.
const BREAKER_THRESHOLD: u32 = 8;

/// A point in the sequence, numbered because many events have the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub number: u64,
    pub at: Instant,
}

/// The API's `Cache-Control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDirective {
    Absent,
    NoStore,
    MaxAge(u64),
    MustRevalidate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refuses,
    Hangs,
    /// Responds with that status.
    Fails(u16),
    /// Responds with 200 and a body that is not JSON.
    Garbles,
}

/// The requests that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultTarget {
    Validations,
    Fetches,
    Both,
}

/// A request of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiRequest {
    /// Without an address it validates the token for any.
    Validation { token: usize, address: Option<usize> },
    /// `is_storable`: without a query.
    Name { token: usize, customer: usize, is_storable: bool },
}

/// The API's reply, as of when it executed the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiReply {
    /// The request was not executed yet, or the reply is lost.
    Nothing,
    Valid(AccessLevel),
    Invalid,
    Document {
        version: u64,
        directive: CacheDirective,
    },
    Unchanged {
        version: u64,
        directive: CacheDirective,
    },
    /// 404 or 403.
    Denied(u16),
    Unauthorized,
    Failure(u16),
    Garbage,
}

impl ApiReply {
    /// Whether the API failed to reply properly.
    pub fn is_failure(self) -> bool {
        matches!(self, ApiReply::Nothing | ApiReply::Failure(_) | ApiReply::Garbage)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub request: ApiRequest,
    /// The gateway that sent the request.
    pub gateway: usize,
    pub began: Moment,
    /// When the API executed it.
    pub executed: Option<Moment>,
    /// When the reply was complete, or known to be lost.
    pub ended: Option<Moment>,
    pub reply: ApiReply,
}

impl Exchange {
    /// Whether the circuit breaker counts it as a failure.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.reply, ApiReply::Nothing | ApiReply::Failure(502..=504))
    }

    /// Whether `validateToken` replied with 429 or 503.
    pub fn requests_pause(&self) -> bool {
        let is_validation = matches!(self.request, ApiRequest::Validation { .. });
        is_validation && matches!(self.reply, ApiReply::Failure(429 | 503))
    }
}

/// What an invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelScope {
    All,
    Customer(usize),
    Employee(usize),
    Token(usize),
}

impl ModelScope {
    /// Whether it covers responses for that token about that customer.
    pub fn covers_response(self, token: usize, customer: usize) -> bool {
        self == ModelScope::Customer(customer) || self.covers_identity(token)
    }

    /// Whether it covers the identity of that token.
    pub fn covers_identity(self, token: usize) -> bool {
        match self {
            ModelScope::All => true,
            ModelScope::Employee(employee) => EMPLOYEE_OF[token] == employee,
            ModelScope::Token(other) => token == other,
            ModelScope::Customer(_) => false,
        }
    }
}

/// The numbers of an invalidation in its gateway's part of the stream.
#[derive(Clone, Copy, Debug)]
pub struct PublishedNumbers {
    pub seen: u64,
    pub completed: u64,
}

impl PublishedNumbers {
    pub fn both(number: u64) -> Self {
        PublishedNumbers { seen: number, completed: number }
    }
}

/// A change through a gateway or a purge, which ends the use of what it covers.
#[derive(Clone, Copy, Debug)]
pub struct Invalidation {
    pub scope: ModelScope,
    /// The gateway that saw it.
    pub gateway: usize,
    pub numbers: PublishedNumbers,
    /// When the gateway saw the request.
    pub seen: Moment,
    /// When the API executed it; equal to `seen` without the API. `None`: it did not.
    pub executed: Option<Moment>,
    /// When the gateway saw the end of the response.
    pub completed: Option<Moment>,
}

impl Invalidation {
    /// One that is complete at once.
    pub fn immediate(scope: ModelScope, gateway: usize, number: u64, now: Moment) -> Self {
        Invalidation {
            scope,
            gateway,
            numbers: PublishedNumbers::both(number),
            seen: now,
            executed: Some(now),
            completed: Some(now),
        }
    }
}

/// When a gateway read a change of another one.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    pub gateway: usize,
    pub sender: usize,
    pub number: u64,
    pub when: Moment,
}

/// A time in which a gateway's breaker may be open; without an end it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    pub gateway: usize,
    pub began: Moment,
    pub ended: Option<Moment>,
}

#[derive(Clone, Copy, Debug)]
pub struct Customer {
    pub version: u64,
    pub exists: bool,
    pub directive: CacheDirective,
}

#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub is_valid: bool,
    /// The customer that it may not see.
    pub denied: Option<usize>,
    /// The only address from which it is valid.
    pub only_from: Option<usize>,
}

pub struct State {
    pub customers: [Customer; 3],
    pub levels: [AccessLevel; 3],
    pub sessions: [Session; 5],
    pub fault: Option<(Fault, FaultTarget)>,
    pub exchanges: Vec<Exchange>,
    pub invalidations: Vec<Invalidation>,
    /// Employees whose level changed, by any means.
    pub level_changes: Vec<usize>,
    pub outages: Vec<Outage>,
    pub receipts: Vec<Receipt>,
    /// Consecutive failures of each gateway.
    failures: HashMap<usize, u32>,
    number: u64,
    delays: Vec<(u32, u32)>,
    validators: bool,
}

/// The API as one gateway sees it; all share the state.
#[derive(Clone)]
pub struct ApiModel {
    state: Arc<Mutex<State>>,
    gateway: usize,
}

impl ApiModel {
    /// `delays`: milliseconds before and after a request is executed, in turn for exchanges about
    /// one subject. `validators`: the API sends an `ETag` and evaluates `If-None-Match`.
    pub fn new(delays: Vec<(u32, u32)>, validators: bool) -> ApiModel {
        let customer = Customer { version: 1, exists: true, directive: CacheDirective::Absent };
        let session = Session { is_valid: true, denied: None, only_from: None };
        let state = Arc::new(Mutex::new(State {
            customers: [customer; 3],
            levels: [AccessLevel::Owner, AccessLevel::Reseller, AccessLevel::Viewer],
            sessions: [session; 5],
            fault: None,
            exchanges: Vec::new(),
            invalidations: Vec::new(),
            level_changes: Vec::new(),
            outages: Vec::new(),
            receipts: Vec::new(),
            failures: HashMap::new(),
            number: 0,
            delays,
            validators,
        }));
        ApiModel { state, gateway: 0 }
    }

    /// The same API for another gateway.
    pub fn for_gateway(&self, gateway: usize) -> ApiModel {
        ApiModel { state: self.state.clone(), gateway }
    }

    pub fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.state.lock())
    }

    pub fn moment(&self) -> Moment {
        self.with(State::moment)
    }
}

impl State {
    pub fn moment(&mut self) -> Moment {
        self.number += 1;
        Moment { number: self.number, at: clock::now() }
    }

    pub fn set_level(&mut self, employee: usize, level: AccessLevel) {
        self.levels[employee] = level;
        self.level_changes.push(employee);
    }

    /// Delays of the `nth` exchange about one subject, so that a shorter sequence keeps its delays.
    pub fn delays(&self, nth: usize) -> (Duration, Duration) {
        let (before, after) = self.delays[nth % self.delays.len()];
        (Duration::from_millis(before.into()), Duration::from_millis(after.into()))
    }

    fn begin(&mut self, request: ApiRequest, gateway: usize) -> usize {
        let began = self.moment();
        let reply = ApiReply::Nothing;
        self.exchanges.push(Exchange {
            request,
            gateway,
            began,
            executed: None,
            ended: None,
            reply,
        });
        self.exchanges.len() - 1
    }

    /// Executes a request. `known_version`: of the request's `If-None-Match`.
    fn execute(&mut self, serial: usize, known_version: Option<u64>) -> Option<Fault> {
        let now = self.moment();
        let request = self.exchanges[serial].request;
        let fault = self.fault.filter(|(_, target)| match request {
            ApiRequest::Validation { .. } => *target != FaultTarget::Fetches,
            ApiRequest::Name { .. } => *target != FaultTarget::Validations,
        });
        let fault = fault.map(|(fault, _)| fault);
        let reply = match fault {
            Some(Fault::Refuses | Fault::Hangs) => ApiReply::Nothing,
            Some(Fault::Fails(status)) => ApiReply::Failure(status),
            Some(Fault::Garbles) => ApiReply::Garbage,
            None => self.reply_to(request, known_version),
        };
        let exchange = &mut self.exchanges[serial];
        (exchange.executed, exchange.reply) = (Some(now), reply);
        fault
    }

    fn reply_to(&self, request: ApiRequest, known_version: Option<u64>) -> ApiReply {
        match request {
            ApiRequest::Validation { token, address } => {
                let Session { is_valid, only_from, .. } = self.sessions[token];
                if is_valid && (address.is_none() || only_from.is_none() || only_from == address) {
                    ApiReply::Valid(self.levels[EMPLOYEE_OF[token]])
                } else {
                    ApiReply::Invalid
                }
            }
            ApiRequest::Name { token, customer, .. } => {
                let session = self.sessions[token];
                let Customer { version, exists, directive } = self.customers[customer];
                match (session.is_valid, exists, session.denied == Some(customer)) {
                    (false, _, _) => ApiReply::Unauthorized,
                    (_, false, _) => ApiReply::Denied(404),
                    (_, _, true) => ApiReply::Denied(403),
                    _ if known_version == Some(version) => {
                        ApiReply::Unchanged { version, directive }
                    }
                    _ => ApiReply::Document { version, directive },
                }
            }
        }
    }

    fn end(&mut self, serial: usize) {
        let now = self.moment();
        self.exchanges[serial].ended = Some(now);
        let exchange = self.exchanges[serial];
        let gateway = exchange.gateway;
        let failures = self.failures.entry(gateway).or_default();
        if matches!(exchange.request, ApiRequest::Name { is_storable: false, .. }) {
            // The circuit breaker ignores bypassing requests.
        } else if exchange.is_unreachable() {
            *failures += 1;
            if *failures == BREAKER_THRESHOLD {
                self.outages.push(Outage { gateway, began: now, ended: None });
            }
        } else {
            *failures = 0;
            let last = self.outages.iter_mut().rfind(|outage| outage.gateway == gateway);
            if let Some(Outage { ended: ended @ None, .. }) = last {
                *ended = Some(now);
            }
        }
        if let (ApiRequest::Name { token, .. }, ApiReply::Unauthorized) =
            (exchange.request, exchange.reply)
        {
            // Published later, with a number that is not known here.
            let scope = ModelScope::Token(token);
            self.invalidations.push(Invalidation::immediate(scope, gateway, u64::MAX, now));
        }
    }

    /// When a gateway knew of an invalidation: that it was seen, and that it was completed.
    pub fn known_to(
        &self,
        gateway: usize,
        invalidation: &Invalidation,
    ) -> (Option<Moment>, Option<Moment>) {
        let Invalidation { gateway: sender, numbers, seen, completed, .. } = *invalidation;
        if sender == gateway {
            return (Some(seen), completed);
        }
        let received = |number| {
            let of = |receipt: &&Receipt| {
                (receipt.gateway, receipt.sender) == (gateway, sender) && receipt.number >= number
            };
            self.receipts.iter().find(of).map(|receipt| receipt.when)
        };
        (received(numbers.seen), completed.and_then(|_| received(numbers.completed)))
    }

    fn response(&self, serial: usize) -> ApiResponse {
        let exchange = &self.exchanges[serial];
        let status = match exchange.reply {
            ApiReply::Denied(status) | ApiReply::Failure(status) => status,
            ApiReply::Unauthorized => 401,
            ApiReply::Unchanged { .. } => 304,
            _ => 200,
        };
        let mut headers = HeaderMap::new();
        if let ApiReply::Document { version, directive }
        | ApiReply::Unchanged { version, directive } = exchange.reply
        {
            let directive = match directive {
                CacheDirective::Absent => None,
                CacheDirective::NoStore => Some("no-store".to_owned()),
                CacheDirective::MaxAge(seconds) => Some(format!("max-age={seconds}")),
                CacheDirective::MustRevalidate => Some("must-revalidate".to_owned()),
            };
            let mut insert = |name: &'static str, value: String| {
                headers.insert(name, HeaderValue::try_from(value).expect("a field value"));
            };
            directive.into_iter().for_each(|directive| insert("cache-control", directive));
            if self.validators {
                insert("etag", format!("\"v{version}\""));
            }
        }
        let body = Bytes::from(document(serial, exchange));
        ApiResponse { status: StatusCode::from_u16(status).expect("a status"), headers, body }
    }
}

/// The body of an exchange's response.
pub fn document(serial: usize, exchange: &Exchange) -> String {
    match (exchange.reply, exchange.request) {
        (ApiReply::Document { version, .. }, ApiRequest::Name { customer, .. }) => format!(
            "{{\"_id\":\"{}\",\"serial\":{serial},\"version\":{version},\
             \"integrations\":{{\"x\":{{\"enabled\":true,\"key\":\"{SECRET} {serial}\"}}}}}}",
            CUSTOMERS[customer]
        ),
        (ApiReply::Denied(status) | ApiReply::Failure(status), _) => format!(
            "{{\"error\":{{\"message\":\"no\",\"code\":\"no\",\
             \"status\":{status},\"serial\":{serial}}}}}"
        ),
        (ApiReply::Garbage, _) => format!("garbage, \"serial\":{serial}"),
        (ApiReply::Valid(level), ApiRequest::Validation { token, .. }) => format!(
            "{{\"success\":true,\"employee\":\"{}\",\"customer\":\"{}\",\
             \"accessLevel\":\"{level}\"}}",
            EMPLOYEES[EMPLOYEE_OF[token]], CUSTOMERS[0]
        ),
        (ApiReply::Invalid, _) => r#"{"success":false}"#.to_owned(),
        (ApiReply::Unauthorized, _) => {
            r#"{"error":{"message":"no","code":"expired","status":401}}"#.to_owned()
        }
        _ => String::new(),
    }
}

/// The body that a client may see: composed of what it may see, where the gateway removes the rest.
pub fn redacted_document(serial: usize, exchange: &Exchange, level: AccessLevel) -> String {
    match (exchange.reply, exchange.request) {
        (ApiReply::Document { version, .. }, ApiRequest::Name { customer, .. })
            if level < AccessLevel::Reseller =>
        {
            format!(
                "{{\"_id\":\"{}\",\"serial\":{serial},\"version\":{version},\
                 \"integrations\":{{\"x\":{{\"enabled\":true}}}}}}",
                CUSTOMERS[customer]
            )
        }
        _ => document(serial, exchange),
    }
}

/// Ends an exchange that the gateway abandons.
struct EndOnDrop<'a> {
    api: &'a ApiModel,
    serial: usize,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.api.with(|state| {
            let exchange = &mut state.exchanges[self.serial];
            if exchange.ended.is_none() {
                exchange.reply = ApiReply::Nothing;
                state.end(self.serial);
            }
        });
    }
}

impl Transport for ApiModel {
    async fn exchange(
        &self,
        request: &Request<'_>,
        _deadline: Instant,
    ) -> Result<ApiResponse, UpstreamError> {
        let parsed = parse(request);
        let (serial, (before, after)) = self.with(|state| {
            let same = |before: &&Exchange| before.request == parsed;
            let nth = state.exchanges.iter().filter(same).count();
            (state.begin(parsed, self.gateway), state.delays(nth))
        });
        let _end_on_drop = EndOnDrop { api: self, serial };
        wait(before).await;
        let fault = self.with(|state| state.execute(serial, known_version(request)));
        if fault == Some(Fault::Hangs) {
            std::future::pending::<()>().await;
        }
        wait(after).await;
        self.with(|state| {
            state.end(serial);
            if fault == Some(Fault::Refuses) {
                return Err(UpstreamError::Connect);
            }
            Ok(state.response(serial))
        })
    }
}

pub async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// The version in the request's `If-None-Match`.
fn known_version(request: &Request<'_>) -> Option<u64> {
    let etag = request.validators?.etag.as_ref()?.to_str().ok()?;
    etag.get(2..)?.strip_suffix('"')?.parse().ok()
}

fn parse(request: &Request<'_>) -> ApiRequest {
    let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
    let find = |all: &[&str], one: &str| {
        all.iter().position(|known| *known == one).expect("a name of the model")
    };
    match request.kind {
        RequestKind::ChangeLog => panic!("the model does not poll the change log"),
        RequestKind::Validate => {
            assert!(path == "/auth/validateToken" && request.token.is_none(), "{path}");
            let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
            let token = find(&TOKENS, of("token=").expect("a token"));
            let address = of("ip=").map(|address| find(&ADDRESSES, address));
            ApiRequest::Validation { token, address }
        }
        RequestKind::Fetch | RequestKind::Bypass => {
            let id = path.strip_prefix("/customer/").and_then(|rest| rest.strip_suffix("/name"));
            let token = request.token.expect("a fetch has a token").expose();
            ApiRequest::Name {
                token: find(&TOKENS, token),
                customer: find(&CUSTOMERS, id.expect("a path of a name")),
                is_storable: query.is_empty(),
            }
        }
    }
}
