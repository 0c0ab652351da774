//! The oracle: whether a response is permitted, by the contract's bounds and the API's log alone.
//! Each body contains the serial number of the exchange from which it was made, so that its caller,
//! its age and later invalidations are known exactly.

use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;
use telecomx_gateway::api::{AccessLevel, ApiError};
use telecomx_gateway::config::Config;
use telecomx_gateway::reply::{CacheStatus, Content, ForwardReason, Reply, Representation};

use super::api_model::{
    ApiModel, ApiReply, ApiRequest, EMPLOYEE_OF, Exchange, Invalidation, Moment, Outage, Receipt,
    SECRET, State, redacted_document,
};
use super::bounds::{Bounds, bounds};
use super::coverage::{Case, Coverage};
use super::steps::{Directive, NameRequest, Variant};

/// Pause after a failure, in which the gateway does not ask the API again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Interval in which a client's `no-cache` has an effect once.
const FORCE_INTERVAL: Duration = Duration::from_secs(1);
/// Tolerance for timers, which round up to milliseconds.
const TIMER_TOLERANCE: Duration = Duration::from_millis(5);
/// Longest lookup in the shared tier: a wait of a second for another fetch, and two more reads.
const TIER_LOOKUP_MAX: Duration = Duration::from_millis(1_200);
/// By how much the age of a value of the shared tier may be overestimated.
const TIER_AGE_TOLERANCE: Duration = Duration::from_millis(250);

/// A request and its response.
pub struct Observation<'a> {
    pub request: NameRequest,
    /// The gateway that responded.
    pub gateway: usize,
    pub began: Moment,
    pub ended: Moment,
    pub reply: &'a Reply,
    /// The access level that the gateway assigned to the caller.
    pub level: Option<AccessLevel>,
}

/// A response that the gateway stored, by its `Cache-Status`.
#[derive(Clone, Copy)]
struct StoredResponse {
    token: usize,
    customer: usize,
    level: AccessLevel,
    exchange: usize,
}

#[derive(Default)]
struct Findings {
    coverage: Coverage,
    stored: Vec<StoredResponse>,
    /// The first wrong response.
    problem: Option<String>,
}

pub struct Oracle {
    pub(super) config: Config,
    /// Whether there are several gateways, which share values.
    is_cluster: bool,
    api: ApiModel,
    findings: Mutex<Findings>,
}

pub(super) type CheckResult = Result<(), String>;

pub(super) fn ensure(condition: bool, problem: impl FnOnce() -> String) -> CheckResult {
    if condition { Ok(()) } else { Err(problem()) }
}

impl Oracle {
    pub fn new(config: &Config, is_cluster: bool, api: ApiModel) -> Oracle {
        Oracle { config: config.clone(), is_cluster, api, findings: Mutex::default() }
    }

    /// The coverage, or the first wrong response.
    pub fn result(&self) -> Result<Coverage, String> {
        let findings = self.findings.lock();
        findings.problem.clone().map_or(Ok(findings.coverage.clone()), Err)
    }

    /// Checks a response and records the result.
    pub fn observe(&self, observation: &Observation<'_>) {
        let result = self.api.with(|state| self.check(state, observation));
        if let Err(problem) = result {
            let Observation { request, gateway, began, ended, reply, level } = observation;
            let body = reply.body("");
            let log = self.api.with(|state| state.log());
            self.findings.lock().problem.get_or_insert(format!(
                "{problem}\n{request:?} of gateway {gateway} as {level:?} got {} {:?} {:?}\n\
                 from {began:?} to {ended:?}\n{log}",
                reply.status(),
                reply.cache_status,
                String::from_utf8_lossy(&body),
            ));
        }
    }

    fn check(&self, state: &State, observation: &Observation<'_>) -> CheckResult {
        let Observation { reply, level, .. } = observation;
        self.check_duration(state, observation)?;
        if let Some(level) = level {
            self.check_identity(state, observation, *level)?;
        }
        self.count_reuse(state, observation);
        let (representation, level) = match (&reply.content, level) {
            (Content::Error(error), _) => return self.check_error(state, observation, *error),
            (Content::Whole(representation), Some(level))
            | (Content::NotModified(representation), Some(level)) => (representation, *level),
            _ => return Err("a response without an identity".into()),
        };
        let serial = self.check_content(state, observation, representation, level)?;
        let origin = &state.exchanges[serial];
        // The API's replies for these bytes: the exchange that sent them, and any that confirmed
        // them.
        let mut problems = String::new();
        for (at, exchange) in state.exchanges.iter().enumerate() {
            let is_confirmation = exchange.request == origin.request
                && matches!((exchange.reply, origin.reply),
                    (ApiReply::Unchanged { version, .. }, ApiReply::Document { version: of, .. })
                        if version == of);
            if at != serial && !is_confirmation {
                continue;
            }
            match self.check_exchange(state, observation, exchange) {
                Ok(()) => {
                    self.count(observation, Some(at), level);
                    return Ok(());
                }
                Err(problem) => problems += &format!("exchange {at}: {problem}; "),
            }
        }
        Err(problems)
    }

    fn check_duration(&self, state: &State, observation: &Observation<'_>) -> CheckResult {
        let Observation { began, ended, .. } = observation;
        let timeout = self.config.upstream.timeout;
        // A validation and a fetch. A request that joined a validation which began before a change
        // of its employee waits for a second one. A change counts until its response is complete.
        let last_seen = |of: &Invalidation| of.completed.unwrap_or(of.seen).at;
        let is_changed = state
            .invalidations
            .iter()
            .any(|of| last_seen(of) + timeout >= began.at && of.seen.at <= ended.at);
        let exchanges = if is_changed { 3 } else { 2 };
        // A lookup in the shared tier precedes each of them.
        let lookups = if self.is_cluster { exchanges * TIER_LOOKUP_MAX } else { Duration::ZERO };
        let longest = exchanges * timeout + lookups + TIMER_TOLERANCE;
        ensure(ended.at.duration_since(began.at) <= longest, || "answered too late".into())
    }

    /// Checks bytes and status. Returns the serial number of the exchange that sent the bytes.
    fn check_content(
        &self,
        state: &State,
        observation: &Observation<'_>,
        representation: &Representation,
        level: AccessLevel,
    ) -> Result<usize, String> {
        let Observation { request, reply, .. } = observation;
        let body = String::from_utf8_lossy(representation.body()).into_owned();
        let (serial, exchange) = source_of(state, &body)?;
        let ApiRequest::Name { token, customer, is_storable } = exchange.request else {
            return Err("not made from a fetch".into());
        };
        let is_own = (token, customer) == (request.token, request.customer);
        ensure(is_own, || "a response for another request".into())?;
        let may_contain_secret = level >= AccessLevel::Reseller;
        ensure(may_contain_secret || !body.contains(SECRET), || "a secret".into())?;
        let expected = redacted_document(serial, exchange, level);
        ensure(body == expected, || "other bytes than the exchange's".into())?;
        let is_without_query = request.variant != Variant::OtherQuery;
        ensure(is_storable == is_without_query, || "a response for another query".into())?;
        let status = match exchange.reply {
            ApiReply::Document { .. } | ApiReply::Garbage => 200,
            ApiReply::Denied(status) | ApiReply::Failure(status) => status,
            _ => return Err("made from an exchange without a body".into()),
        };
        let is_not_modified = matches!(reply.content, Content::NotModified(_));
        let expected = if is_not_modified { 304 } else { status };
        ensure(reply.status().as_u16() == expected, || "the wrong status".into())?;
        let is_conditional = request.variant == Variant::Conditional && status == 200;
        ensure(!is_not_modified || is_conditional, || "304 was not requested".into())?;
        Ok(serial)
    }

    /// Whether a response may be based on that exchange.
    fn check_exchange(
        &self,
        state: &State,
        observation: &Observation<'_>,
        exchange: &Exchange,
    ) -> CheckResult {
        let Observation { request, gateway, began, ended, reply, .. } = observation;
        let (Some(executed), Some(end)) = (exchange.executed, exchange.ended) else {
            return Err("it never ended".into());
        };
        let Some(cache) = reply.cache_status else { return Err("no Cache-Status".into()) };

        // A forwarded change applies at once: to requests that begin later, and to those that are
        // served from memory.
        let is_from_memory = !matches!(
            cache,
            CacheStatus::Miss { .. }
                | CacheStatus::Collapsed
                | CacheStatus::Bypass
                | CacheStatus::Shared { .. }
        );
        let looked_up = if is_from_memory { ended } else { began };
        let covers = |of: &&Invalidation| of.scope.covers_response(request.token, request.customer);
        for invalidation in state.invalidations.iter().filter(covers) {
            // A change through another gateway counts from when this one read it.
            let (_, completed) = state.known_to(*gateway, invalidation);
            let (Some(done), Some(completed)) = (invalidation.executed, completed) else {
                continue;
            };
            if completed.number < looked_up.number {
                let since = if invalidation.seen == done { exchange.began } else { executed };
                ensure(since.number > done.number, || format!("ended by {invalidation:?}"))?;
            }
        }
        // A later reply of the API counts, if it is certain to be for the same access level, which
        // is part of an entry's key.
        let has_one_level = !state.level_changes.contains(&EMPLOYEE_OF[request.token]);
        for later in later_exchanges(state, exchange, end, *gateway).filter(|_| has_one_level) {
            let has_reply = !later.reply.is_failure() && later.reply != ApiReply::Unauthorized;
            let is_over = later.ended.is_some_and(|ended| ended.number < began.number);
            ensure(!(has_reply && is_over), || format!("outdated by {later:?}"))?;
        }

        let mut problem = String::new();
        for bounds in bounds(&self.config.cache, state, exchange) {
            match self.check_lifetime(state, observation, exchange, bounds) {
                Ok(()) => return Ok(()),
                Err(one) => problem = one,
            }
        }
        Err(problem)
    }

    /// Whether a response is within those bounds and its `Age` and `Cache-Status` are right. Time
    /// counts from the request to the API.
    fn check_lifetime(
        &self,
        state: &State,
        observation: &Observation<'_>,
        exchange: &Exchange,
        bounds: Option<Bounds>,
    ) -> CheckResult {
        let Observation { request, gateway, began, ended, reply, .. } = observation;
        let (Some(end), Some(cache)) = (exchange.ended, reply.cache_status) else {
            return Err("it never ended".into());
        };
        let is_storable = bounds.is_some();
        let Bounds { fresh, while_revalidating, if_error } = bounds.unwrap_or_default();
        let age = ended.at.saturating_duration_since(exchange.began.at);
        // The age of a value of the shared tier is overestimated by the time of lookups.
        let is_own = exchange.gateway == *gateway && !self.is_cluster;
        let tolerance = if is_own { Duration::ZERO } else { TIER_AGE_TOLERANCE };
        let ages = age.as_secs()..=(age + tolerance).as_secs();
        ensure(reply.age.is_some_and(|age| ages.contains(&age)), || "a wrong Age".into())?;
        let check_ttl = |ttl: i64| {
            let left = fresh.as_secs_f64() - age.as_secs_f64();
            let least = (left - tolerance.as_secs_f64()).floor() as i64;
            let is_right = (least..=left.floor() as i64).contains(&ttl);
            ensure(is_right, || format!("ttl={ttl} where {left} s are left"))
        };
        let since = began.at.checked_sub(RETRY_PAUSE).unwrap_or(began.at);
        let is_failing = || fetch_failed(state, request, since, observation);
        match cache {
            CacheStatus::Hit { ttl } => {
                ensure(age < fresh, || "not fresh".into())?;
                let is_accepted = match request.directive {
                    Directive::Absent | Directive::OnlyIfCached => true,
                    Directive::NoCache => false,
                    Directive::MaxAge(seconds) => age.as_secs() <= seconds,
                    Directive::MinFresh(seconds) => ttl >= seconds as i64,
                };
                let is_excused = age < FORCE_INTERVAL || is_failing();
                ensure(is_accepted || is_excused, || "the request forbids it".into())?;
                check_ttl(ttl)
            }
            CacheStatus::Shared { ttl } => {
                ensure(self.is_cluster, || "there is no shared tier".into())?;
                ensure(age < fresh, || "not fresh".into())?;
                let is_accepted = request.directive == Directive::Absent;
                ensure(is_accepted, || "the request forbids it".into())?;
                check_ttl(ttl)
            }
            CacheStatus::Revalidating { ttl } => {
                ensure(age + tolerance >= fresh, || "marked stale while fresh".into())?;
                ensure(age < fresh + while_revalidating, || "out of bounds".into())?;
                check_ttl(ttl)
            }
            CacheStatus::StaleIfError { ttl } => {
                ensure(is_failing(), || "stale although the API works".into())?;
                ensure(age < fresh + if_error, || "out of bounds".into())?;
                check_ttl(ttl)
            }
            CacheStatus::Miss { why, stored } => {
                let is_new = end.at >= began.at && end.number < ended.number;
                ensure(is_new, || "a miss that was served from an old exchange".into())?;
                ensure(!stored || is_storable, || "stored although it must not be".into())?;
                let has_changed = has_changed_during(state, observation, exchange, end);
                ensure(!(stored && has_changed), || "stored although it changed".into())?;
                let is_unchanged = matches!(exchange.reply, ApiReply::Unchanged { .. });
                // A fetch that the request forces is named so, whatever the API replied.
                let is_forced = why == ForwardReason::Request;
                let is_named = is_forced || (why == ForwardReason::Revalidated) == is_unchanged;
                ensure(is_named, || "a wrong fwd".into())?;
                let directive = request.directive;
                let may_force = !matches!(directive, Directive::Absent | Directive::OnlyIfCached);
                ensure(!is_forced || may_force, || "no request forced it".into())
            }
            CacheStatus::Collapsed => {
                let is_new = end.at >= began.at && end.number < ended.number;
                ensure(is_new, || "collapsed with an old exchange".into())
            }
            CacheStatus::Bypass => {
                let is_new = exchange.began.number > began.number;
                let has_query = request.variant == Variant::OtherQuery;
                ensure(has_query && is_new, || "no own exchange".into())
            }
        }
    }

    /// Whether the gateway may assign that access level to the caller.
    fn check_identity(
        &self,
        state: &State,
        observation: &Observation<'_>,
        level: AccessLevel,
    ) -> CheckResult {
        let validation = validation_of(&observation.request);
        let mut problems = String::new();
        for (at, exchange) in state.exchanges.iter().enumerate().rev() {
            if exchange.request == validation && exchange.reply == ApiReply::Valid(level) {
                match self.check_validation(state, observation, exchange) {
                    Ok(()) => return Ok(()),
                    Err(problem) => problems += &format!("exchange {at}: {problem}; "),
                }
            }
        }
        Err(format!("no validation confirms {level}: {problems}"))
    }

    fn check_validation(
        &self,
        state: &State,
        observation: &Observation<'_>,
        exchange: &Exchange,
    ) -> CheckResult {
        let Observation { request, gateway, began, .. } = observation;
        let (Some(executed), Some(end)) = (exchange.executed, exchange.ended) else {
            return Err("it never ended".into());
        };
        let covers = |of: &&Invalidation| of.scope.covers_identity(request.token);
        for invalidation in state.invalidations.iter().filter(covers) {
            let (_, completed) = state.known_to(*gateway, invalidation);
            let (Some(done), Some(completed)) = (invalidation.executed, completed) else {
                continue;
            };
            if completed.number < began.number {
                let since = if invalidation.seen == done { exchange.began } else { executed };
                ensure(since.number > done.number, || format!("ended by {invalidation:?}"))?;
            }
        }
        for later in later_exchanges(state, exchange, end, *gateway) {
            let Some(over) = later.ended.filter(|ended| ended.number < began.number) else {
                continue;
            };
            // The employee is not known before: a change of any employee meanwhile may concern it,
            // and then it is not cached. It was sent at the time at which it began, if not at that
            // moment.
            let is_within =
                |moment: Moment| moment.at >= later.began.at && moment.number < over.number;
            let is_disturbed = state.invalidations.iter().any(|invalidation| {
                let (seen, completed) = state.known_to(*gateway, invalidation);
                seen.is_some_and(is_within) || completed.is_some_and(is_within)
            });
            let counts = match later.reply {
                ApiReply::Invalid => true,
                ApiReply::Valid(_) => !is_disturbed,
                _ => false,
            };
            ensure(!counts, || format!("outdated by {later:?}"))?;
        }
        self.check_validation_age(state, observation, exchange, end)
    }

    fn check_validation_age(
        &self,
        state: &State,
        observation: &Observation<'_>,
        exchange: &Exchange,
        end: Moment,
    ) -> CheckResult {
        let began = observation.began;
        let identity = &self.config.identity;
        let age = began.at.saturating_duration_since(exchange.began.at);
        let ended_during = end.number > began.number;
        // The validation of another request, which ended at this very time.
        let ended_now = end.at == began.at && age.is_zero();
        if age < identity.ttl || ended_during || ended_now {
            return Ok(());
        }
        ensure(!identity.ttl.is_zero(), || "cached although it must not be".into())?;
        let limit = identity.ttl + identity.stale_if_error;
        ensure(age < limit, || "out of bounds".into())?;
        let since = began.at.checked_sub(RETRY_PAUSE).unwrap_or(began.at);
        let has_failed = state.exchanges.iter().any(|later| {
            later.request == exchange.request
                && later.reply.is_failure()
                && later.ended.is_some_and(|ended| ended.at >= since)
        });
        let is_excused = has_failed || state.had_outage(since, observation.ended);
        ensure(is_excused, || "expired although the API works".into())?;
        self.findings.lock().coverage.count(Case::OldIdentity);
        Ok(())
    }

    /// Whether a token may be cached as invalid.
    pub fn may_be_cached_as_invalid(&self, state: &State, token: usize, at: Instant) -> bool {
        state.exchanges.iter().any(|exchange| {
            let validation = ApiRequest::Validation { token, address: None };
            let ttl = self.config.identity.negative_ttl;
            exchange.request == validation
                && exchange.reply == ApiReply::Invalid
                && exchange.ended.is_none_or(|ended| ended.at + ttl >= at)
        })
    }

    /// Counts the cases of a response. `exchange`: the one on which it is based.
    pub(super) fn count(
        &self,
        observation: &Observation<'_>,
        exchange: Option<usize>,
        level: AccessLevel,
    ) {
        let Observation { request, reply, .. } = observation;
        let Findings { coverage, stored, .. } = &mut *self.findings.lock();
        case_of(reply).into_iter().for_each(|case| coverage.count(case));
        if matches!(reply.content, Content::NotModified(_)) {
            coverage.count(Case::NotModified);
        }
        if matches!(reply.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
            coverage.count(Case::Refused);
        }
        let is_stored = matches!(reply.cache_status, Some(CacheStatus::Miss { stored: true, .. }));
        if let Some(exchange) = exchange.filter(|_| is_stored) {
            let NameRequest { token, customer, .. } = *request;
            stored.push(StoredResponse { token, customer, level, exchange });
        }
    }

    /// Counts whether stored entries are used. Two ids may share a generation, so a single miss is
    /// no fault.
    fn count_reuse(&self, state: &State, observation: &Observation<'_>) {
        let Observation { request, began, ended, reply, .. } = observation;
        let Findings { coverage, stored, .. } = &mut *self.findings.lock();
        let is_overtaken = state.invalidations.iter().any(|invalidation| {
            let is_within =
                |moment: Moment| moment.number > began.number && moment.number < ended.number;
            invalidation.scope.covers_response(request.token, request.customer)
                && invalidation.completed.is_some_and(is_within)
        });
        if is_overtaken {
            coverage.count(Case::Overtaken);
        }
        // In a cluster a change is read later, and an unnecessary one costs a fetch.
        let is_ordinary =
            (request.directive, request.variant) == (Directive::Absent, Variant::Ordinary);
        if self.is_cluster || !is_ordinary {
            return;
        }
        if stored.iter().any(|stored| self.is_due(state, observation, stored)) {
            coverage.count(Case::Due);
            if matches!(reply.cache_status, Some(CacheStatus::Hit { .. })) {
                coverage.count(Case::Served);
            }
        }
    }

    /// Whether a stored response should serve the request.
    fn is_due(
        &self,
        state: &State,
        observation: &Observation<'_>,
        stored: &StoredResponse,
    ) -> bool {
        let Observation { request, began, ended, level, .. } = observation;
        let exchange = &state.exchanges[stored.exchange];
        let Some(end) = exchange.ended else { return false };
        let bounds = bounds(&self.config.cache, state, exchange);
        let fresh = bounds.into_iter().map(|bounds| bounds.unwrap_or_default().fresh).min();
        let age = ended.at.saturating_duration_since(exchange.began.at);
        let is_same = (stored.token, stored.customer, Some(stored.level))
            == (request.token, request.customer, *level);
        let is_later = |moment: Moment| moment.number > exchange.began.number;
        let is_invalidated = state.invalidations.iter().any(|of| {
            of.scope.covers_response(request.token, request.customer)
                && (is_later(of.seen) || of.completed.is_some_and(is_later))
        });
        let is_replaced = state.exchanges.iter().any(|other| {
            let concerns = match other.request {
                ApiRequest::Validation { token, .. } => {
                    token == request.token && other.reply == ApiReply::Invalid
                }
                ApiRequest::Name { .. } => {
                    other.request == exchange.request && other.began != exchange.began
                }
            };
            concerns && other.ended.is_none_or(is_later)
        });
        is_same
            && age < fresh.unwrap_or_default()
            && end.number < began.number
            && !is_invalidated
            && !is_replaced
    }
}

/// Whether a change that covers the response was seen or completed during its exchange.
fn has_changed_during(
    state: &State,
    observation: &Observation<'_>,
    exchange: &Exchange,
    end: Moment,
) -> bool {
    let Observation { request, gateway, .. } = observation;
    state.invalidations.iter().any(|invalidation| {
        let is_within =
            |moment: Moment| moment.number > exchange.began.number && moment.number < end.number;
        let (seen, completed) = state.known_to(*gateway, invalidation);
        invalidation.scope.covers_response(request.token, request.customer)
            && (seen.is_some_and(is_within) || completed.is_some_and(is_within))
    })
}

/// Whether a fetch for that caller and customer failed since then, or was not tried in an outage.
fn fetch_failed(
    state: &State,
    request: &NameRequest,
    since: Instant,
    observation: &Observation<'_>,
) -> bool {
    let has_failed = state.exchanges.iter().any(|exchange| {
        let is_same = matches!(exchange.request, ApiRequest::Name { token, customer, .. }
            if (token, customer) == (request.token, request.customer));
        is_same
            && exchange.reply.is_failure()
            && exchange.ended.is_some_and(|ended| ended.at >= since)
    });
    has_failed || state.had_outage(since, observation.ended)
}

fn case_of(reply: &Reply) -> Option<Case> {
    Some(match (&reply.content, reply.cache_status) {
        (Content::Error(ApiError::InvalidToken), _) => Case::InvalidToken,
        (Content::Error(ApiError::OnlyIfCached), _) => Case::NotStored,
        (Content::Error(_), _) => Case::Failed,
        (_, Some(CacheStatus::Hit { .. })) => Case::Hit,
        (_, Some(CacheStatus::Shared { .. })) => Case::Shared,
        (_, Some(CacheStatus::Revalidating { .. })) => Case::Revalidating,
        (_, Some(CacheStatus::StaleIfError { .. })) => Case::StaleIfError,
        (_, Some(CacheStatus::Miss { why: ForwardReason::Revalidated, .. })) => Case::Revalidated,
        (_, Some(CacheStatus::Miss { why: ForwardReason::Request, .. })) => Case::Forced,
        (_, Some(CacheStatus::Miss { .. })) => Case::Miss,
        (_, Some(CacheStatus::Collapsed)) => Case::Collapsed,
        (_, Some(CacheStatus::Bypass)) => Case::Bypassed,
        (_, None) => return None,
    })
}

/// The validation of a request's caller.
pub(super) fn validation_of(request: &NameRequest) -> ApiRequest {
    ApiRequest::Validation { token: request.token, address: Some(request.address) }
}

/// Exchanges for the same request that began after the end of `exchange`. Only a gateway's own: it
/// need not know of those of others.
fn later_exchanges<'a>(
    state: &'a State,
    exchange: &'a Exchange,
    end: Moment,
    gateway: usize,
) -> impl Iterator<Item = &'a Exchange> {
    let is_own = move |of: &Exchange| of.gateway == gateway;
    state.exchanges.iter().filter(move |later| {
        later.request == exchange.request
            && is_own(later)
            && is_own(exchange)
            && later.began.number > end.number
    })
}

/// The exchange from which a body was made.
fn source_of<'a>(state: &'a State, body: &str) -> Result<(usize, &'a Exchange), String> {
    let (_, rest) = body.split_once("\"serial\":").ok_or("a body without a serial number")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let serial: usize = digits.parse().map_err(|_| "not a serial number")?;
    Ok((serial, state.exchanges.get(serial).ok_or("an unknown serial number")?))
}

impl State {
    /// Whether a circuit breaker may have been open in that time.
    pub(super) fn had_outage(&self, from: Instant, to: Moment) -> bool {
        let overlaps = |outage: &Outage| {
            outage.began.number < to.number && outage.ended.is_none_or(|ended| ended.at >= from)
        };
        self.outages.iter().any(overlaps)
    }

    /// The events of the sequence, for a failure's report.
    fn log(&self) -> String {
        let Some(first) = self.exchanges.first() else { return String::new() };
        let start = first.began.at;
        let show = |moment: Moment| {
            format!("#{} {:?}", moment.number, moment.at.saturating_duration_since(start))
        };
        let show_maybe = |moment: Option<Moment>| moment.map_or("never".to_owned(), show);
        let mut log = String::new();
        for (serial, exchange) in self.exchanges.iter().enumerate() {
            let Exchange { request, gateway, began, executed, ended, reply } = exchange;
            log += &format!(
                "  exchange {serial} of gateway {gateway}: {request:?} -> {reply:?}, \
                 began {}, executed {}, ended {}\n",
                show(*began),
                show_maybe(*executed),
                show_maybe(*ended)
            );
        }
        for invalidation in &self.invalidations {
            let Invalidation { scope, gateway, numbers, seen, executed, completed } = invalidation;
            log += &format!(
                "  {scope:?} invalidated at {gateway} ({numbers:?}): seen {}, executed {}, \
                 completed {}\n",
                show(*seen),
                show_maybe(*executed),
                show_maybe(*completed)
            );
        }
        for Receipt { gateway, sender, number, when } in &self.receipts {
            let when = show(*when);
            log += &format!("  gateway {gateway} read {number} of {sender}: {when}\n");
        }
        log
    }
}
