//! The responses that are correct, by the bounds of the contract and the log of the API alone. Each
//! response names its exchange by a serial number, so that its caller, its age and later
//! invalidations are known exactly.

use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;
use telecomx_gateway::api::{AccessLevel, ApiError};
use telecomx_gateway::config::Config;
use telecomx_gateway::reply::{CacheStatus, Content, ForwardReason, Reply};

use super::bounds::{Bounds, bounds};
use super::steps::{Ask, Wants, Way};
use super::tally::{Seen, Tally};
use super::world::{Asked, EMPLOYEE_OF, End, Exchange, Moment, SECRET, Said, State, World, document_seen};

/// After a failure the API is not asked again for this time.
const PAUSE: Duration = Duration::from_secs(1);
/// `no-cache` of a request is obeyed once in this time.
const FORCED_EVERY: Duration = Duration::from_secs(1);
/// Timers round up to milliseconds.
const TICK: Duration = Duration::from_millis(5);
/// Longest lookup in the tier: a second of waiting for another gateway's fetch, and two more
/// requests.
const LONGEST_LOOKUP: Duration = Duration::from_millis(1_200);
/// By this time a response from the tier may count as older than it is.
const SLACK: Duration = Duration::from_millis(250);

/// A request and its response.
pub struct Answered<'a> {
    pub ask: Ask,
    /// The gateway that responded.
    pub gateway: usize,
    pub began: Moment,
    pub ended: Moment,
    pub reply: &'a Reply,
    /// The caller's access level by the gateway.
    pub level: Option<AccessLevel>,
}

/// A stored response, as far as it is visible from outside.
#[derive(Clone, Copy)]
struct Stored {
    token: usize,
    customer: usize,
    level: AccessLevel,
    exchange: usize,
}

pub struct Judge {
    pub(super) config: Config,
    /// Whether there are several gateways in a cluster.
    fleet: bool,
    world: World,
    found: Mutex<(Tally, Vec<Stored>, Option<String>)>,
}

pub(super) type Verdict = Result<(), String>;

pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

impl Judge {
    pub fn new(config: &Config, fleet: bool, world: World) -> Judge {
        Judge { config: config.clone(), fleet, world, found: Mutex::default() }
    }

    /// Returns the counts, or the first wrong response.
    pub fn verdict(&self) -> Result<Tally, String> {
        let found = self.found.lock();
        found.2.clone().map_or(Ok(found.0.clone()), Err)
    }

    pub fn look_at(&self, answered: &Answered<'_>) {
        let verdict = self.world.with(|state| self.judge(state, answered));
        if let Err(wrong) = verdict {
            let seen = answered.reply.body();
            let log = self.world.with(|state| state.log());
            self.found.lock().2.get_or_insert(format!(
                "{wrong}\n{:?} of gateway {} as {:?} got {} {:?} {:?}\nfrom {:?} to {:?}\n{log}",
                answered.ask,
                answered.gateway,
                answered.level,
                answered.reply.status(),
                answered.reply.cache_status,
                String::from_utf8_lossy(&seen),
                answered.began,
                answered.ended,
            ));
        }
    }

    fn judge(&self, state: &State, answered: &Answered<'_>) -> Verdict {
        let Answered { ask, gateway: _, began, ended, reply, level } = answered;
        let timeout = self.config.upstream.timeout;
        // A validation and a fetch. A request that joined a validation from before a change of its
        // employee waits for a second one. A change counts until its response is complete.
        let last_seen = |end: &End| end.answered.unwrap_or(end.seen).at;
        let outdated = state.ends.iter().any(|end| last_seen(end) + timeout >= began.at && end.seen.at <= ended.at);
        let exchanges = if outdated { 3 } else { 2 };
        // A lookup in the tier comes before each of them.
        let lookups = if self.fleet { exchanges * LONGEST_LOOKUP } else { Duration::ZERO };
        let longest = exchanges * timeout + lookups + TICK;
        ensure(ended.at.duration_since(began.at) <= longest, || "answered too late".into())?;
        if let Some(level) = level {
            self.identity(state, answered, *level)?;
        }
        self.thrift(state, answered);
        let (representation, level) = match (&reply.content, level) {
            (Content::Error(error), _) => return self.error(state, answered, *error),
            (Content::Whole(representation) | Content::NotModified(representation), Some(level)) => {
                (representation, *level)
            }
            _ => return Err("a response without an identity".into()),
        };
        let body = String::from_utf8_lossy(representation.body()).into_owned();
        let (serial, exchange) = traced(state, &body)?;
        let Asked::Name { token, customer, plain } = exchange.asked else { return Err("of no fetch".into()) };
        ensure((token, customer) == (ask.token, ask.customer), || "another's answer".into())?;
        ensure(level >= AccessLevel::Reseller || !body.contains(SECRET), || "a secret".into())?;
        ensure(body == document_seen(serial, exchange, level), || "not the bytes of its exchange".into())?;
        ensure(plain == (ask.way != Way::OtherQuery), || "the response of another request".into())?;
        let status = match exchange.said {
            Said::Document { .. } | Said::Garbage => 200,
            Said::No(status) | Said::Trouble(status) => status,
            _ => return Err("the exchange had no response".into()),
        };
        let expected = if matches!(reply.content, Content::NotModified(_)) { 304 } else { status };
        ensure(reply.status().as_u16() == expected, || "the wrong status".into())?;
        ensure(expected != 304 || (ask.way == Way::Conditional && status == 200), || "304 unasked".into())?;

        // The exchange with these bytes, and every later one that confirmed them (304).
        let mut wrong = String::new();
        for (at, word) in state.exchanges.iter().enumerate() {
            let confirms = matches!((word.said, exchange.said),
                (Said::Unchanged { version, .. }, Said::Document { version: of, .. }) if version == of);
            if at != serial && !(confirms && word.asked == exchange.asked) {
                continue;
            }
            match self.word(state, answered, word) {
                Ok(()) => {
                    self.count(answered, Some(at), level);
                    return Ok(());
                }
                Err(why) => wrong += &format!("exchange {at}: {why}; "),
            }
        }
        Err(wrong)
    }

    /// Whether a response may be based on that exchange.
    fn word(&self, state: &State, answered: &Answered<'_>, word: &Exchange) -> Verdict {
        let Answered { ask, gateway, began, ended, reply, .. } = answered;
        let (Some(read), Some(there)) = (word.read, word.ended) else { return Err("it never ended".into()) };
        let Some(cache) = reply.cache_status else { return Err("no Cache-Status".into()) };

        // A change that passed through applies at once: to later requests, and to every use of the
        // cache.
        let from_cache = !matches!(
            cache,
            CacheStatus::Miss { .. } | CacheStatus::Collapsed | CacheStatus::Bypass | CacheStatus::Shared { .. }
        );
        let looked_up = if from_cache { ended } else { began };
        for end in state.ends.iter().filter(|end| end.about.answers(ask.token, ask.customer)) {
            // A change through another gateway counts from when this one received it.
            let (Some(obeyed), (_, Some(answered))) = (end.obeyed, state.known_to(*gateway, end)) else { continue };
            if answered.number < looked_up.number {
                let since = if end.seen == obeyed { word.began } else { read };
                ensure(since.number > obeyed.number, || format!("ended by {end:?}"))?;
            }
        }
        // A later exchange counts if it is certainly for the same access level, under which it is
        // stored.
        let one_level = !state.level_changes.contains(&EMPLOYEE_OF[ask.token]);
        for later in later_than(state, word, there, *gateway).filter(|_| one_level) {
            let said = !matches!(later.said, Said::Nothing | Said::Trouble(_) | Said::Garbage | Said::Unauthorized);
            let over = later.ended.is_some_and(|over| over.number < began.number);
            ensure(!(said && over), || format!("outdated by {later:?}"))?;
        }

        let mut wrong = String::new();
        for bounds in bounds(&self.config.cache, state, word) {
            match self.within(state, answered, word, bounds) {
                Ok(()) => return Ok(()),
                Err(why) => wrong = why,
            }
        }
        Err(wrong)
    }

    /// Whether it is served within those bounds with correct fields. Time counts from the request
    /// to the API.
    fn within(&self, state: &State, answered: &Answered<'_>, word: &Exchange, bounds: Option<Bounds>) -> Verdict {
        let Answered { ask, gateway, began, ended, reply, .. } = answered;
        let (Some(there), Some(cache)) = (word.ended, reply.cache_status) else { return Err("it never ended".into()) };
        let storable = bounds.is_some();
        let Bounds { fresh, while_revalidating, if_error } = bounds.unwrap_or_default();
        let age = ended.at.saturating_duration_since(word.began.at);
        // A response from the tier counts as older than it is, by the time of lookups.
        let slack = if word.by == *gateway && !self.fleet { Duration::ZERO } else { SLACK };
        let told = age.as_secs()..=(age + slack).as_secs();
        ensure(reply.age.is_some_and(|age| told.contains(&age)), || "a wrong Age".into())?;
        let told_rightly = |ttl: i64| {
            let left = fresh.as_secs_f64() - age.as_secs_f64();
            let least = (left - slack.as_secs_f64()).floor() as i64;
            ensure((least..=left.floor() as i64).contains(&ttl), || format!("ttl={ttl} where {left} s are left"))
        };
        let failing = || self.fetch_failed(state, ask, began.at.checked_sub(PAUSE).unwrap_or(began.at), answered);
        match cache {
            CacheStatus::Hit { ttl } => {
                ensure(age < fresh, || "not fresh".into())?;
                let accepts = match ask.wants {
                    Wants::Anything | Wants::OnlyIfCached => true,
                    Wants::NoCache => false,
                    Wants::MaxAge(seconds) => age.as_secs() <= seconds,
                    Wants::MinFresh(seconds) => ttl >= seconds as i64,
                };
                ensure(accepts || age < FORCED_EVERY || failing(), || "not what it wants".into())?;
                told_rightly(ttl)
            }
            CacheStatus::Shared { ttl } => {
                ensure(self.fleet, || "from the tier of a single gateway".into())?;
                ensure(age < fresh, || "not fresh".into())?;
                ensure(matches!(ask.wants, Wants::Anything), || "not what it wants".into())?;
                told_rightly(ttl)
            }
            CacheStatus::Revalidating { ttl } => {
                let age = age + slack;
                ensure(age >= fresh, || "marked stale while fresh".into())?;
                ensure(age - slack < fresh + while_revalidating, || "out of bounds".into())?;
                told_rightly(ttl)
            }
            CacheStatus::StaleIfError { ttl } => {
                ensure(failing(), || "stale although the API worked".into())?;
                ensure(age < fresh + if_error, || "out of bounds".into())?;
                told_rightly(ttl)
            }
            CacheStatus::Miss { why, stored } => {
                ensure(there.at >= began.at && there.number < ended.number, || "a miss although it was stored".into())?;
                ensure(!stored || storable, || "stored although it is forbidden".into())?;
                let ended_meanwhile = state.ends.iter().any(|end| {
                    let within = |moment: Moment| moment.number > word.began.number && moment.number < there.number;
                    let (seen, answered) = state.known_to(*gateway, end);
                    end.about.answers(ask.token, ask.customer)
                        && (seen.is_some_and(within) || answered.is_some_and(within))
                });
                ensure(!(stored && ended_meanwhile), || "stored although a change passed meanwhile".into())?;
                let unchanged = matches!(word.said, Said::Unchanged { .. });
                // A forced fetch has its own reason, whatever the API responded.
                let named = why == ForwardReason::Request || (why == ForwardReason::Revalidated) == unchanged;
                ensure(named, || "wrong reason of the forward".into())?;
                let demands = !matches!(ask.wants, Wants::Anything | Wants::OnlyIfCached);
                ensure(why != ForwardReason::Request || demands, || "the request did not demand it".into())
            }
            CacheStatus::Collapsed => {
                ensure(there.at >= began.at && there.number < ended.number, || "collapsed with an earlier fetch".into())
            }
            CacheStatus::Bypass => {
                ensure(ask.way == Way::OtherQuery && word.began.number > began.number, || "not fetched again".into())
            }
        }
    }

    /// Whether a validation supports the caller's access level.
    fn identity(&self, state: &State, answered: &Answered<'_>, level: AccessLevel) -> Verdict {
        let mut wrong = String::new();
        for (at, word) in state.exchanges.iter().enumerate().rev() {
            if word.asked == asked_who(&answered.ask) && word.said == Said::Valid(level) {
                match self.vouches(state, answered, word) {
                    Ok(()) => return Ok(()),
                    Err(why) => wrong += &format!("exchange {at}: {why}; "),
                }
            }
        }
        Err(format!("no validation supports {level}: {wrong}"))
    }

    fn vouches(&self, state: &State, answered: &Answered<'_>, word: &Exchange) -> Verdict {
        let Answered { ask, gateway, began, .. } = answered;
        let (Some(read), Some(there)) = (word.read, word.ended) else { return Err("it never ended".into()) };
        for end in state.ends.iter().filter(|end| end.about.identity(ask.token)) {
            let (Some(obeyed), (_, Some(answered))) = (end.obeyed, state.known_to(*gateway, end)) else { continue };
            if answered.number < began.number {
                let since = if end.seen == obeyed { word.began } else { read };
                ensure(since.number > obeyed.number, || format!("ended by {end:?}"))?;
            }
        }
        for later in later_than(state, word, there, *gateway) {
            let Some(over) = later.ended.filter(|over| over.number < began.number) else { continue };
            // The employee is unknown before: a change of any employee meanwhile may concern it,
            // and then it is not cached. It was requested at the time at which it began, if not at
            // that moment.
            let within = |moment: Moment| moment.at >= later.began.at && moment.number < over.number;
            let disturbed = state.ends.iter().any(|end| {
                let (seen, answered) = state.known_to(*gateway, end);
                seen.is_some_and(within) || answered.is_some_and(within)
            });
            let counts = later.said == Said::Invalid || (matches!(later.said, Said::Valid(_)) && !disturbed);
            ensure(!counts, || format!("outdated by {later:?}"))?;
        }
        let identity = &self.config.identity;
        let age = began.at.saturating_duration_since(word.began.at);
        if age < identity.ttl || there.number > began.number {
            return Ok(());
        }
        if there.at == began.at && age.is_zero() {
            // The validation of another request that ended at this time.
            return Ok(());
        }
        ensure(!identity.ttl.is_zero(), || "cached although it is forbidden".into())?;
        ensure(age < identity.ttl + identity.stale_if_error, || "out of bounds".into())?;
        let since = began.at.checked_sub(PAUSE).unwrap_or(began.at);
        let failed = state.exchanges.iter().any(|later| {
            let failed = matches!(later.said, Said::Nothing | Said::Trouble(_) | Said::Garbage);
            later.asked == word.asked && failed && later.ended.is_some_and(|over| over.at >= since)
        });
        ensure(failed || state.outage(since, answered.ended), || "expired although the API worked".into())?;
        self.found.lock().0.count(Seen::OldIdentity);
        Ok(())
    }

    /// Whether a token may be cached as invalid.
    pub fn called_invalid(&self, state: &State, token: usize, at: Instant) -> bool {
        state.exchanges.iter().any(|exchange| {
            let about = matches!(exchange.asked, Asked::Validation { token: of, address: None } if of == token);
            let recent = exchange.ended.is_none_or(|over| over.at + self.config.identity.negative_ttl >= at);
            about && recent && exchange.said == Said::Invalid
        })
    }

    /// Whether a fetch for that caller and customer failed since then, or the circuit was open.
    fn fetch_failed(&self, state: &State, ask: &Ask, since: Instant, answered: &Answered<'_>) -> bool {
        let failed = state.exchanges.iter().any(|exchange| {
            let same = matches!(exchange.asked,
                Asked::Name { token, customer, .. } if (token, customer) == (ask.token, ask.customer));
            let failed = matches!(exchange.said, Said::Nothing | Said::Trouble(_) | Said::Garbage);
            same && failed && exchange.ended.is_some_and(|over| over.at >= since)
        });
        failed || state.outage(since, answered.ended)
    }

    pub(super) fn count(&self, answered: &Answered<'_>, from: Option<usize>, level: AccessLevel) {
        let Answered { ask, reply, .. } = answered;
        let (tally, stored, _) = &mut *self.found.lock();
        let seen = match (&reply.content, reply.cache_status) {
            (Content::Error(ApiError::InvalidToken), _) => Some(Seen::InvalidToken),
            (Content::Error(ApiError::OnlyIfCached), _) => Some(Seen::NotStored),
            (Content::Error(_), _) => Some(Seen::Failed),
            (_, Some(CacheStatus::Hit { .. })) => Some(Seen::Hit),
            (_, Some(CacheStatus::Shared { .. })) => Some(Seen::Shared),
            (_, Some(CacheStatus::Revalidating { .. })) => Some(Seen::Revalidating),
            (_, Some(CacheStatus::StaleIfError { .. })) => Some(Seen::StaleIfError),
            (_, Some(CacheStatus::Miss { why: ForwardReason::Revalidated, .. })) => Some(Seen::Revalidated),
            (_, Some(CacheStatus::Miss { why: ForwardReason::Request, .. })) => Some(Seen::Forced),
            (_, Some(CacheStatus::Miss { .. })) => Some(Seen::Miss),
            (_, Some(CacheStatus::Collapsed)) => Some(Seen::Collapsed),
            (_, Some(CacheStatus::Bypass)) => Some(Seen::Bypassed),
            (_, None) => None,
        };
        let held = matches!(reply.content, Content::NotModified(_)).then_some(Seen::NotModified);
        let refused = matches!(reply.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND).then_some(Seen::Refused);
        [seen, held, refused].into_iter().flatten().for_each(|seen| tally.count(seen));
        if let (Some(exchange), Some(CacheStatus::Miss { stored: true, .. })) = (from, reply.cache_status) {
            stored.push(Stored { token: ask.token, customer: ask.customer, level, exchange });
        }
    }

    /// Counts whether stored responses are used. Two ids may share a counter, so a single miss is
    /// no fault.
    fn thrift(&self, state: &State, answered: &Answered<'_>) {
        let Answered { ask, gateway: _, began, ended, level, reply } = answered;
        let (tally, stored, _) = &mut *self.found.lock();
        let overtaken = state.ends.iter().any(|end| {
            let within = |moment: Moment| moment.number > began.number && moment.number < ended.number;
            end.about.answers(ask.token, ask.customer) && end.answered.is_some_and(within)
        });
        if overtaken {
            tally.count(Seen::Overtaken);
        }
        // In a cluster the others receive a change later, and a needless invalidation costs a
        // fetch.
        if self.fleet || (ask.wants, ask.way) != (Wants::Anything, Way::Plain) {
            return;
        }
        let due = stored.iter().any(|stored| {
            let word = &state.exchanges[stored.exchange];
            let Some(there) = word.ended else { return false };
            let least =
                bounds(&self.config.cache, state, word).into_iter().map(|bounds| bounds.unwrap_or_default().fresh);
            let same = (stored.token, stored.customer, Some(stored.level)) == (ask.token, ask.customer, *level);
            let fresh = ended.at.saturating_duration_since(word.began.at) < least.min().unwrap_or_default();
            let since = |moment: Moment| moment.number > word.began.number;
            let ended = state.ends.iter().any(|end| {
                end.about.answers(ask.token, ask.customer) && (since(end.seen) || end.answered.is_some_and(since))
            });
            let others = state.exchanges.iter().any(|other| {
                let spoils = match other.asked {
                    Asked::Validation { token, .. } => token == ask.token && other.said == Said::Invalid,
                    asked @ Asked::Name { .. } => asked == word.asked && other.began != word.began,
                };
                spoils && other.ended.is_none_or(since)
            });
            same && fresh && there.number < began.number && !ended && !others
        });
        if due {
            tally.count(Seen::Due);
        }
        if due && matches!(reply.cache_status, Some(CacheStatus::Hit { .. })) {
            tally.count(Seen::Served);
        }
    }
}

pub(super) fn asked_who(ask: &Ask) -> Asked {
    Asked::Validation { token: ask.token, address: Some(ask.address) }
}

/// Returns later exchanges about the same entry as `word`, of the same gateway: it need not know of
/// those of others.
fn later_than<'a>(
    state: &'a State,
    word: &'a Exchange,
    there: Moment,
    gateway: usize,
) -> impl Iterator<Item = &'a Exchange> {
    let own = move |exchange: &Exchange| exchange.by == gateway;
    let same = move |later: &&Exchange| later.asked == word.asked && own(later) && own(word);
    state.exchanges.iter().filter(same).filter(move |later| later.began.number > there.number)
}

/// Returns the exchange of a body.
fn traced<'a>(state: &'a State, body: &str) -> Result<(usize, &'a Exchange), String> {
    let (_, rest) = body.split_once("\"serial\":").ok_or("a body without a serial number")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let serial: usize = digits.parse().map_err(|_| "not a serial number")?;
    Ok((serial, state.exchanges.get(serial).ok_or("an unknown serial number")?))
}

impl State {
    /// Whether the circuit breaker may have been open in that time.
    pub(super) fn outage(&self, from: Instant, to: Moment) -> bool {
        let overlaps = |(_, began, over): &(usize, Moment, Option<Moment>)| {
            began.number < to.number && over.is_none_or(|over| over.at >= from)
        };
        self.outages.iter().any(overlaps)
    }

    /// Returns the log as text.
    fn log(&self) -> String {
        let Some(start) = self.exchanges.first().map(|exchange| exchange.began.at) else { return String::new() };
        let show = |moment: Moment| format!("#{} {:?}", moment.number, moment.at.saturating_duration_since(start));
        let maybe = |moment: Option<Moment>| moment.map_or("never".to_owned(), show);
        let mut log = String::new();
        for (serial, Exchange { asked, by, began, read, ended, said }) in self.exchanges.iter().enumerate() {
            log += &format!(
                "  exchange {serial} of gateway {by}: {asked:?} -> {said:?}, began {}, read {}, ended {}\n",
                show(*began),
                maybe(*read),
                maybe(*ended)
            );
        }
        for end in &self.ends {
            let times = (show(end.seen), maybe(end.obeyed), maybe(end.answered));
            let End { about, by, told: numbers, .. } = end;
            log += &format!(
                "  {about:?} ended at {by} ({numbers:?}): seen {}, applied {}, completed {}\n",
                times.0, times.1, times.2
            );
        }
        for (listener, sender, number, when) in &self.heard {
            log += &format!("  gateway {listener} received {number} of {sender}: {}\n", show(*when));
        }
        log
    }
}
