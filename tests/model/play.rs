//! Plays a sequence: the gateway's core in front of the model's API, on a clock that jumps to the
//! next event.

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

use super::fleet::{Fleet, Node};
use super::judge::{Answered, Judge};
use super::steps::{Ask, Change, Fate, Sequence, Step, Wants, Way};
use super::tally::Tally;
use super::world::{ADDRESSES, About, CUSTOMERS, EMPLOYEE_OF, EMPLOYEES, End, State, TOKENS, World, wait};

/// The index of the configuration.
pub const DEFAULTS: usize = 0;
pub const OTHERS: usize = 1;
pub const NOTHING_STALE: usize = 2;
pub const NOTHING_REMEMBERED: usize = 3;

/// The configurations; without jitter, so that a sequence plays the same way each time.
const BOUNDS: [&str; 4] = [
    "[cache]\nttl_jitter = 0",
    // Every bound differs, in another order than the defaults.
    "[identity]\nttl = \"20s\"\nrefresh_after = \"15s\"\nstale_if_error = \"15s\"\nnegative_ttl = \"9s\"\n\
     [cache]\nttl_jitter = 0\nttl = \"45s\"\nnot_found_ttl = \"4s\"\nforbidden_ttl = \"0s\"\n\
     stale_while_revalidate = \"70s\"\nstale_if_error = \"30s\"",
    // Nothing stale.
    "[identity]\nttl = \"30s\"\nrefresh_after = \"30s\"\nstale_if_error = \"0s\"\nnegative_ttl = \"0s\"\n\
     [cache]\nttl_jitter = 0\nttl = \"30s\"\nstale_while_revalidate = \"0s\"\nstale_if_error = \"0s\"\nforbidden_ttl = \"0s\"",
    // Nothing is cached.
    "[identity]\nttl = \"0s\"\nrefresh_after = \"0s\"\n\
     [cache]\nttl_jitter = 0\nttl = \"0s\"\nnot_found_ttl = \"0s\"\nforbidden_ttl = \"0s\"",
];

static CONFIGS: LazyLock<Vec<Config>> = LazyLock::new(|| {
    let parse = |bounds: &&str| {
        let text = format!("{bounds}\n[upstream]\nurl = \"http://127.0.0.1:1\"");
        let mut config = config::parse("model", &text, []).unwrap_or_else(|problems| panic!("{problems:?}"));
        // Expiry after minutes is moka's, whose clock does not advance.
        config.identity.max_invalid_per_minute = u32::MAX;
        config
    };
    BOUNDS.iter().map(parse).collect()
});

pub static POLICY: LazyLock<Arc<Policy>> =
    LazyLock::new(|| Arc::new(Policy::compile(&CONFIGS[0].redaction.rules()).expect("the default rules compile")));
pub static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(|| Arc::new(Metrics::new().expect("no name twice")));

/// Longer than anything under way may take.
const LONG: Duration = Duration::from_secs(100);

struct Stage {
    fleet: Arc<Fleet>,
    world: World,
    judge: Judge,
    /// The last `ETag` of a token and customer.
    etags: Mutex<HashMap<(usize, usize), ETag>>,
}

/// Plays the sequence; returns the counts, or the first wrong response.
pub fn play(sequence: &Sequence) -> Result<Tally, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let config = &CONFIGS[sequence.bounds];
        let world = World::new(sequence.delays.clone(), sequence.validators);
        let judge = Judge::new(config, sequence.fleet.gateways > 1, world.clone());
        let fleet = Fleet::new(config, world.clone(), sequence.fleet.clone());
        let stage = Arc::new(Stage { fleet, world, judge, etags: Mutex::default() });
        let mut under_way = Vec::new();
        for (nth, (step, gap)) in sequence.steps.iter().enumerate() {
            let (stage, step) = (stage.clone(), *step);
            let node = stage.fleet.of_step(nth);
            under_way.push(tokio::spawn(async move { stage.take(&node, step).await }));
            wait(Duration::from_millis((*gap).into())).await;
        }
        for task in under_way {
            match tokio::time::timeout(LONG, task).await {
                Ok(Ok(())) => {}
                Ok(Err(panicked)) => return Err(format!("{panicked}")),
                Err(_) => return Err("a request received no response".to_owned()),
            }
        }
        stage.judge.verdict()
    })
}

impl Stage {
    async fn take(&self, node: &Node, step: Step) {
        match step {
            Step::Ask(ask) => self.ask(node, ask).await,
            Step::Pass { change, by, address, fate } => self.pass(node, change, by, address, fate).await,
            Step::Tier(works) => self.fleet.tier_works(works),
            Step::Restart => self.fleet.restart(node),
            Step::Elsewhere(change) => self.world.with(|state| apply(state, change)),
            Step::Login(token, home) => self.world.with(|state| {
                (state.sessions[token].valid, state.sessions[token].home) = (true, home);
            }),
            Step::Control(customer, control) => self.world.with(|state| state.customers[customer].control = control),
            Step::Fault(fault) => self.world.with(|state| state.fault = fault),
            Step::Purge(about) => {
                node.gateway.invalidate(&scope(about), "admin");
                let (by, told) = (node.id, (node.told(), node.told()));
                self.world.with(|state| {
                    let now = state.moment();
                    state.ends.push(End { about, by, told, seen: now, obeyed: Some(now), answered: Some(now) });
                });
            }
            Step::Nothing => {}
        }
    }

    async fn ask(&self, node: &Node, ask: Ask) {
        let mut headers = bearer(ask.token);
        let directive = match ask.wants {
            Wants::Anything => None,
            Wants::NoCache => Some("no-cache".to_owned()),
            Wants::MaxAge(seconds) => Some(format!("max-age={seconds}")),
            Wants::MinFresh(seconds) => Some(format!("min-fresh={seconds}")),
            Wants::OnlyIfCached => Some("only-if-cached".to_owned()),
        };
        if let Some(directive) = directive {
            headers.insert(CACHE_CONTROL, HeaderValue::try_from(directive).expect("a field value"));
        }
        let held = self.etags.lock().get(&(ask.token, ask.customer)).cloned();
        if let Some(held) = held.filter(|_| ask.way == Way::Conditional) {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_bytes(&held).expect("a field value"));
        }
        let query = Query::parse((ask.way == Way::OtherQuery).then_some("x=1")).expect("a query");
        let question = gateway::NameRequest {
            customer: CustomerId::parse(CUSTOMERS[ask.customer].as_bytes()).expect("an id"),
            query: &query,
            headers: &headers,
            address: address(ask.address),
            has_body: false,
        };
        let began = self.world.moment();
        let mut record = Record::begin(began.at);
        let reply = node.gateway.respond(&question, &mut record).await;
        let ended = self.world.moment();
        if let Content::Whole(representation) | Content::NotModified(representation) = &reply.content {
            self.etags.lock().insert((ask.token, ask.customer), *representation.etag());
        }
        self.judge.look_at(&Answered { ask, gateway: node.id, began, ended, reply: &reply, level: record.level });
    }

    /// The steps of the proxy for a request that changes something: it invalidates when it receives
    /// the request, and again when the response is complete or cannot come; a 401 ends the identity
    /// of its token.
    async fn pass(&self, node: &Node, change: Change, by: usize, from: usize, fate: Fate) {
        let (method, path, about) = request(change);
        let by = match change {
            Change::Logout(token) | Change::Switch(token, _) => token,
            _ => by,
        };
        let headers = bearer(by);
        let changes =
            api::changes(&method, &headers, &NormalPath::parse(&path, Protected::default()).expect("a plain path"));
        let token = api::Token::parse(TOKENS[by].as_bytes()).expect("a token");
        // Refused if it cannot be attributed: the API does not receive it.
        let Ok(scopes) = node.gateway.scopes(changes, std::slice::from_ref(&token), address(from)).await else {
            return;
        };
        // The first scope is the widest and covers the change; others receive it by its published
        // number.
        let obey = |trigger| {
            let mut told = scopes.iter().map(|scope| {
                node.gateway.invalidate(scope, trigger);
                node.told()
            });
            let first = told.next();
            told.for_each(drop);
            first.unwrap_or_else(|| node.told())
        };
        let told = obey("request");
        let (at, (before, after)) = self.world.with(|state| {
            let seen = state.moment();
            let negative = self.judge.called_invalid(state, by, seen.at);
            // The one change that is not applied in full: the employee of a token that became valid
            // while it is cached as invalid is unknown.
            let about = if matches!(change, Change::Logout(_)) && negative { About::Token(by) } else { about };
            let nth = state.ends.iter().filter(|before| before.about == about).count();
            let (by, told) = (node.id, (told, told));
            state.ends.push(End { about, by, told, seen, obeyed: None, answered: None });
            (state.ends.len() - 1, state.delays(nth))
        });
        wait(before).await;
        let known = self.world.with(|state| {
            let known = state.sessions[by].valid;
            if known && fate != Fate::Refused {
                apply(state, change);
                let now = state.moment();
                state.ends[at].obeyed = Some(now);
            }
            known
        });
        wait(after).await;
        let told = obey(if fate == Fate::Lost { "failed" } else { "answer" });
        self.world.with(|state| {
            let now = state.moment();
            state.ends[at].told.1 = told;
            state.ends[at].answered = Some(now);
        });
        if !known && fate == Fate::Obeyed {
            node.gateway.invalidate(&Scope::Caller(node.gateway.caller_of(&token)), "unauthorized");
            let (about, told) = (About::Token(by), (node.told(), node.told()));
            self.world.with(|state| {
                let now = state.moment();
                let by = node.id;
                state.ends.push(End { about, by, told, seen: now, obeyed: Some(now), answered: Some(now) });
            });
        }
    }
}

/// Returns the request for a change, and the responses that it invalidates.
fn request(change: Change) -> (Method, String, About) {
    match change {
        Change::Write(customer) => {
            (Method::POST, format!("/customer/{}", CUSTOMERS[customer]), About::Customer(customer))
        }
        Change::Exists(customer) => {
            (Method::DELETE, format!("/customer/{}", CUSTOMERS[customer]), About::Customer(customer))
        }
        Change::Logout(token) => (Method::GET, "/auth/logout".into(), About::Employee(EMPLOYEE_OF[token])),
        Change::DeleteToken(token) => {
            let employee = EMPLOYEES[EMPLOYEE_OF[token]];
            (Method::DELETE, format!("/employee/{employee}/token/{}", TOKENS[token]), About::Token(token))
        }
        Change::Level(employee, _) => {
            (Method::POST, format!("/employee/{}", EMPLOYEES[employee]), About::Employee(employee))
        }
        Change::Switch(token, _) => (Method::POST, "/auth/organizationreseller".into(), About::Token(token)),
    }
}

/// Applies the change in the API.
fn apply(state: &mut State, change: Change) {
    match change {
        Change::Write(customer) => state.customers[customer].version += 1,
        Change::Exists(customer) => {
            state.customers[customer].version += 1;
            state.customers[customer].exists ^= true;
        }
        Change::Logout(token) => {
            let employee = EMPLOYEE_OF[token];
            let of_employee = |other: &usize| EMPLOYEE_OF[*other] == employee;
            (0..TOKENS.len()).filter(of_employee).for_each(|other| state.sessions[other].valid = false);
        }
        Change::DeleteToken(token) => state.sessions[token].valid = false,
        Change::Level(employee, level) => state.set_level(employee, level),
        Change::Switch(token, barred) => state.sessions[token].barred = barred,
    }
}

fn scope(about: About) -> Scope {
    match about {
        About::Everything => Scope::All,
        About::Customer(customer) => Scope::Customer(CustomerId::parse(CUSTOMERS[customer].as_bytes()).expect("an id")),
        About::Employee(employee) => Scope::Employee(EmployeeId::parse(EMPLOYEES[employee]).expect("an id")),
        About::Token(token) => Scope::Caller(CallerIds::with_key([7; 32]).id_of(TOKENS[token])),
    }
}

fn bearer(token: usize) -> HeaderMap {
    let value = HeaderValue::try_from(format!("Bearer {}", TOKENS[token])).expect("a field value");
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

fn address(address: usize) -> IpAddr {
    ADDRESSES[address].parse().expect("an address")
}
