//! The model of the API: customers, employees and tokens, faults and delays, and a log of every
//! exchange, so that each response of the gateway can be traced to its exchange.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use telecomx_gateway::api::AccessLevel;
use telecomx_gateway::clock;
use telecomx_gateway::upstream::{ApiResponse, Request, RequestKind, Transport, UpstreamError};

pub const CUSTOMERS: [&str; 3] = ["5f0000000000000000000001", "5f0000000000000000000002", "5f0000000000000000000003"];
pub const EMPLOYEES: [&str; 3] = ["ee0000000000000000000001", "ee0000000000000000000002", "ee0000000000000000000003"];
/// Similar tokens; two employees have two each.
pub const TOKENS: [&str; 5] = ["tok-a", "tok-a.", "tok-b", "tok-A", "tok-c"];
pub const EMPLOYEE_OF: [usize; 5] = [0, 0, 1, 1, 2];
pub const ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Part of the values that are hidden below RESELLER.
pub const SECRET: &str = "PLANTED";

/// Failures in a row that open the circuit breaker.
const OPENS_AFTER: u32 = 8;

/// A point in the sequence: numbered, because many events have the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub number: u64,
    pub at: Instant,
}

/// The API's `Cache-Control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Nothing,
    NoStore,
    MaxAge(u64),
    MustRevalidate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refuses,
    Hangs,
    /// A response with that status.
    Fails(u16),
    /// 200 without a document.
    Garbles,
}

/// The requests that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Struck {
    Validations,
    Fetches,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No address: valid from every one.
    Validation { token: usize, address: Option<usize> },
    /// `plain`: a fetch that may be stored.
    Name { token: usize, customer: usize, plain: bool },
}

/// The API's response, by its state at the time of `looked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// None yet, or it never arrived.
    Nothing,
    Valid(AccessLevel),
    Invalid,
    Document {
        version: u64,
        control: Control,
    },
    Unchanged {
        version: u64,
        control: Control,
    },
    /// 404 or 403.
    No(u16),
    Unauthorized,
    Trouble(u16),
    Garbage,
}

#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub asked: Asked,
    /// The gateway of the request.
    pub by: usize,
    pub began: Moment,
    /// When the API read its state.
    pub read: Option<Moment>,
    /// When the response arrived, or could not arrive any more.
    pub ended: Option<Moment>,
    pub said: Said,
}

impl Exchange {
    /// Whether it counts for the circuit breaker.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.said, Said::Nothing | Said::Trouble(502..=504))
    }

    /// Whether `validateToken` responded with 429 or 503.
    pub fn asks_for_a_pause(&self) -> bool {
        matches!((self.asked, self.said), (Asked::Validation { .. }, Said::Trouble(429 | 503)))
    }
}

/// The responses that an invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Everything,
    Customer(usize),
    Employee(usize),
    Token(usize),
}

impl About {
    /// Whether it covers responses for that token and customer.
    pub fn answers(self, token: usize, customer: usize) -> bool {
        self == About::Customer(customer) || self.identity(token)
    }

    /// Whether it covers the identity of that token.
    pub fn identity(self, token: usize) -> bool {
        match self {
            About::Everything => true,
            About::Employee(employee) => EMPLOYEE_OF[token] == employee,
            About::Token(other) => token == other,
            About::Customer(_) => false,
        }
    }
}

/// An invalidation: a change or purge that passed through a gateway.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub about: About,
    /// The gateway that saw it, and its published numbers: when it was seen, and when it was
    /// completed.
    pub by: usize,
    pub told: (u64, u64),
    /// The gateway has seen it.
    pub seen: Moment,
    /// The API executed it; the same as `seen` where the API has no part in it. None: it never did.
    pub obeyed: Option<Moment>,
    /// The gateway saw the response.
    pub answered: Option<Moment>,
}

#[derive(Clone, Copy, Debug)]
pub struct Customer {
    pub version: u64,
    pub exists: bool,
    pub control: Control,
}

#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub valid: bool,
    /// The customer that it may not see.
    pub barred: Option<usize>,
    /// The only address that it is valid from.
    pub home: Option<usize>,
}

pub struct State {
    pub customers: [Customer; 3],
    pub levels: [AccessLevel; 3],
    pub sessions: [Session; 5],
    pub fault: Option<(Fault, Struck)>,
    pub exchanges: Vec<Exchange>,
    pub ends: Vec<End>,
    /// Employees whose level was changed, through a gateway or elsewhere.
    pub level_changes: Vec<usize>,
    /// Times during which a gateway's breaker may be open; the last one of each may be unfinished.
    pub outages: Vec<(usize, Moment, Option<Moment>)>,
    /// The receiver, sender, number and time of each received change.
    pub heard: Vec<(usize, usize, u64, Moment)>,
    unreachable: HashMap<usize, u32>,
    number: u64,
    delays: Vec<(u32, u32)>,
    validators: bool,
}

/// The API and the log, shared by all parts; and the requesting gateway.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>, usize);

impl World {
    /// `delays`: milliseconds before and after the API reads its state, used in turn by exchanges
    /// about one entry. `validators`: whether it supports `ETag`.
    pub fn new(delays: Vec<(u32, u32)>, validators: bool) -> World {
        let levels = [AccessLevel::Owner, AccessLevel::Reseller, AccessLevel::Viewer];
        let state = Arc::new(Mutex::new(State {
            customers: [Customer { version: 1, exists: true, control: Control::Nothing }; 3],
            levels,
            sessions: [Session { valid: true, barred: None, home: None }; 5],
            fault: None,
            exchanges: Vec::new(),
            ends: Vec::new(),
            level_changes: Vec::new(),
            outages: Vec::new(),
            heard: Vec::new(),
            unreachable: HashMap::new(),
            number: 0,
            delays,
            validators,
        }));
        World(state, 0)
    }

    /// The same, for another gateway.
    pub fn seen_by(&self, gateway: usize) -> World {
        World(self.0.clone(), gateway)
    }

    pub fn with<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.0.lock())
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

    /// Delays of the `nth` exchange about the same entry, so that shrinking a sequence keeps other
    /// delays.
    pub fn delays(&self, nth: usize) -> (Duration, Duration) {
        let (before, after) = self.delays[nth % self.delays.len()];
        (Duration::from_millis(before.into()), Duration::from_millis(after.into()))
    }

    fn begin(&mut self, asked: Asked, by: usize) -> usize {
        let began = self.moment();
        self.exchanges.push(Exchange { asked, by, began, read: None, ended: None, said: Said::Nothing });
        self.exchanges.len() - 1
    }

    /// Returns the API's current response.
    fn look(&mut self, serial: usize, known: Option<u64>) -> Option<Fault> {
        let now = self.moment();
        let asked = self.exchanges[serial].asked;
        let fault = self.fault.filter(|(_, struck)| match asked {
            Asked::Validation { .. } => *struck != Struck::Fetches,
            Asked::Name { .. } => *struck != Struck::Validations,
        });
        let fault = fault.map(|(fault, _)| fault);
        let said = match (fault, asked) {
            (Some(Fault::Refuses | Fault::Hangs), _) => Said::Nothing,
            (Some(Fault::Fails(status)), _) => Said::Trouble(status),
            (Some(Fault::Garbles), _) => Said::Garbage,
            (None, Asked::Validation { token, address }) => {
                let session = self.sessions[token];
                let valid = session.valid && (address.is_none() || session.home.is_none() || session.home == address);
                if valid { Said::Valid(self.levels[EMPLOYEE_OF[token]]) } else { Said::Invalid }
            }
            (None, Asked::Name { token, customer, .. }) => {
                let (session, of) = (self.sessions[token], self.customers[customer]);
                match (session.valid, of.exists, session.barred == Some(customer)) {
                    (false, _, _) => Said::Unauthorized,
                    (_, false, _) => Said::No(404),
                    (_, _, true) => Said::No(403),
                    _ if known == Some(of.version) => Said::Unchanged { version: of.version, control: of.control },
                    _ => Said::Document { version: of.version, control: of.control },
                }
            }
        };
        let exchange = &mut self.exchanges[serial];
        (exchange.read, exchange.said) = (Some(now), said);
        fault
    }

    fn end(&mut self, serial: usize) {
        let now = self.moment();
        let exchange = &mut self.exchanges[serial];
        exchange.ended = Some(now);
        let (asked, said, by) = (exchange.asked, exchange.said, exchange.by);
        let unreachable = exchange.is_unreachable();
        let failures = self.unreachable.entry(by).or_default();
        if matches!(asked, Asked::Name { plain: false, .. }) {
            // A bypass does not count for the breaker.
        } else if unreachable {
            *failures += 1;
            if *failures == OPENS_AFTER {
                self.outages.push((by, now, None));
            }
        } else {
            *failures = 0;
            if let Some((_, _, end @ None)) = self.outages.iter_mut().rfind(|outage| outage.0 == by) {
                *end = Some(now);
            }
        }
        if let (Asked::Name { token, .. }, Said::Unauthorized) = (asked, said) {
            let about = About::Token(token);
            // Its published number is unknown here.
            let told = (u64::MAX, u64::MAX);
            self.ends.push(End { about, by, told, seen: now, obeyed: Some(now), answered: Some(now) });
        }
    }

    /// Returns when a gateway knew that an invalidation was seen, and that it was completed.
    pub fn known_to(&self, gateway: usize, end: &End) -> (Option<Moment>, Option<Moment>) {
        if end.by == gateway {
            return (Some(end.seen), end.answered);
        }
        let heard = |number| {
            let of =
                |heard: &&(usize, usize, u64, Moment)| (heard.0, heard.1) == (gateway, end.by) && heard.2 >= number;
            self.heard.iter().find(of).map(|heard| heard.3)
        };
        (heard(end.told.0), end.answered.and_then(|_| heard(end.told.1)))
    }
}

/// Returns the API's document in that exchange.
pub fn document(serial: usize, exchange: &Exchange) -> String {
    match (exchange.said, exchange.asked) {
        (Said::Document { version, .. }, Asked::Name { customer, .. }) => format!(
            r#"{{"_id":"{}","serial":{serial},"version":{version},"integrations":{{"x":{{"enabled":true,"key":"{SECRET} {serial}"}}}}}}"#,
            CUSTOMERS[customer]
        ),
        (Said::No(status) | Said::Trouble(status), _) => {
            format!(r#"{{"error":{{"message":"no","code":"no","status":{status},"serial":{serial}}}}}"#)
        }
        (Said::Garbage, _) => format!("garbage, \"serial\":{serial}"),
        (Said::Valid(level), Asked::Validation { token, .. }) => format!(
            r#"{{"success":true,"employee":"{}","customer":"{}","accessLevel":"{level}"}}"#,
            EMPLOYEES[EMPLOYEE_OF[token]], CUSTOMERS[0]
        ),
        (Said::Invalid, _) => r#"{"success":false}"#.to_owned(),
        (Said::Unauthorized, _) => r#"{"error":{"message":"no","code":"expired","status":401}}"#.to_owned(),
        _ => String::new(),
    }
}

/// Returns the document as a caller sees it, composed instead of redacted.
pub fn document_seen(serial: usize, exchange: &Exchange, level: AccessLevel) -> String {
    let whole = document(serial, exchange);
    if level >= AccessLevel::Reseller {
        return whole;
    }
    match (exchange.said, exchange.asked) {
        (Said::Document { version, .. }, Asked::Name { customer, .. }) => format!(
            r#"{{"_id":"{}","serial":{serial},"version":{version},"integrations":{{"x":{{"enabled":true}}}}}}"#,
            CUSTOMERS[customer]
        ),
        _ => whole,
    }
}

/// Ends an exchange for which no client waits any more.
struct Hangup<'a>(&'a World, usize);

impl Drop for Hangup<'_> {
    fn drop(&mut self) {
        self.0.with(|state| {
            if state.exchanges[self.1].ended.is_none() {
                state.exchanges[self.1].said = Said::Nothing;
                state.end(self.1);
            }
        });
    }
}

impl Transport for World {
    async fn exchange(&self, request: &Request<'_>, _deadline: Instant) -> Result<ApiResponse, UpstreamError> {
        let asked = read(request);
        let (serial, (before, after)) = self.with(|state| {
            let nth = state.exchanges.iter().filter(|before| before.asked == asked).count();
            (state.begin(asked, self.1), state.delays(nth))
        });
        let _hangup = Hangup(self, serial);
        wait(before).await;
        let known = request
            .validators
            .and_then(|validators| validators.etag.as_ref()?.to_str().ok()?.get(2..)?.strip_suffix('"'));
        let known = known.and_then(|version| version.parse().ok());
        let fault = self.with(|state| state.look(serial, known));
        if fault == Some(Fault::Hangs) {
            std::future::pending::<()>().await;
        }
        wait(after).await;
        self.with(|state| {
            state.end(serial);
            if fault == Some(Fault::Refuses) {
                return Err(UpstreamError::Connect);
            }
            Ok(state.answer(serial))
        })
    }
}

pub async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn read(request: &Request<'_>) -> Asked {
    let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
    let find = |all: &[&str], one: &str| all.iter().position(|known| *known == one).expect("a value of the model");
    match request.kind {
        RequestKind::ChangeLog => panic!("the model has no change log"),
        RequestKind::Validate => {
            assert!(path == "/auth/validateToken" && request.token.is_none(), "{path}");
            let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
            let token = find(&TOKENS, of("token=").expect("a token"));
            Asked::Validation { token, address: of("ip=").map(|address| find(&ADDRESSES, address)) }
        }
        RequestKind::Fetch | RequestKind::Bypass => {
            let id = path.strip_prefix("/customer/").and_then(|rest| rest.strip_suffix("/name")).expect("the path");
            let token = request.token.expect("a fetch has a token").expose();
            Asked::Name { token: find(&TOKENS, token), customer: find(&CUSTOMERS, id), plain: query.is_empty() }
        }
    }
}

impl State {
    fn answer(&self, serial: usize) -> ApiResponse {
        let exchange = &self.exchanges[serial];
        let mut headers = HeaderMap::new();
        let status = match exchange.said {
            Said::No(status) | Said::Trouble(status) => status,
            Said::Unauthorized => 401,
            Said::Unchanged { .. } => 304,
            _ => 200,
        };
        if let Said::Document { version, control } | Said::Unchanged { version, control } = exchange.said {
            let control = match control {
                Control::Nothing => None,
                Control::NoStore => Some("no-store".to_owned()),
                Control::MaxAge(seconds) => Some(format!("max-age={seconds}")),
                Control::MustRevalidate => Some("must-revalidate".to_owned()),
            };
            let mut put = |name: &'static str, value: String| {
                headers.insert(name, HeaderValue::try_from(value).expect("a field value"));
            };
            control.into_iter().for_each(|control| put("cache-control", control));
            if self.validators {
                put("etag", format!("\"v{version}\""));
            }
        }
        let body = Bytes::from(document(serial, exchange));
        ApiResponse { status: StatusCode::from_u16(status).expect("a status"), headers, body }
    }
}
