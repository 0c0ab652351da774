//! Who is calling: a token becomes an identity by the API's word alone, and the word is remembered for a stated time.
//!
//! What cannot be asked makes nobody anything: an API that is down, slow or not understood is an error, never a role.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::RETRY_AFTER;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::Notify;

use crate::api::{AccessLevel, ApiError, Identity, RetryAfter, Token, Validation, read_validation};
use crate::cache::{
    Boarded, CallerId, CallerMarks, EmployeeSlot, Flights, Generations, IdHasher, IdentityMarks, Joining, Renewals,
    Scope, ValidationMarks, Waiter,
};
use crate::clock;
use crate::cluster::{Looked, Tier, Trust, judge_identity};
use crate::config;
use crate::telemetry::Metrics;
use crate::upstream::{Circuit, Client, Connections, Kind, Payer, Request, Transport};

/// Identities remembered at most; about 300 bytes each. The one longest unused goes first.
const MAX_IDENTITIES: u64 = 200_000;

/// What a token may hold in a query: everything that is not unreserved (RFC 3986) is escaped.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A caller whom the API vouched for.
#[derive(Clone, Debug)]
pub struct Caller {
    pub id: CallerId,
    pub identity: Arc<Identity>,
    pub employee: EmployeeSlot,
}

/// Per token and, where the caller's address is sent, per address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct IdentityKey {
    caller: CallerId,
    address: Option<IpAddr>,
}

#[derive(Clone)]
enum Known {
    Valid(Arc<Vouched>),
    Invalid { asked_at: Instant, marks: ValidationMarks },
}

/// The API's word for a caller, and when it was given.
pub struct Vouched {
    caller: Caller,
    /// As in its identity, and at hand.
    level: AccessLevel,
    asked_at: Instant,
    marks: IdentityMarks,
    /// Milliseconds after `asked_at` before which the API is not asked again, since it just failed.
    pause: AtomicU64,
}

/// How far it holds.
enum Standing {
    /// And whether the API should be asked in the background.
    Holds {
        refresh: bool,
    },
    IfError {
        paused: bool,
    },
}

impl Vouched {
    fn new(caller: Caller, asked_at: Instant, marks: IdentityMarks) -> Self {
        Vouched { level: caller.identity.level, caller, asked_at, marks, pause: AtomicU64::new(0) }
    }

    pub fn level(&self) -> AccessLevel {
        self.level
    }

    pub fn employee(&self) -> EmployeeSlot {
        self.caller.employee
    }
}

/// What a validation found: `None` for an invalid token.
#[derive(Clone)]
struct Verdict {
    result: Result<Option<Caller>, ApiError>,
    /// The generations when it began.
    began: ValidationMarks,
}

/// For how long invalid tokens from an address count.
const INVALID_WINDOW: Duration = Duration::from_secs(60);

/// How many validations from one network may find invalid tokens in a window. A validation takes a
/// permit before the API is asked, so that those under way count as well.
#[derive(Default)]
struct InvalidLimit {
    count: Mutex<InvalidCount>,
    returned: Notify,
}

#[derive(Default)]
struct InvalidCount {
    /// Found so far in the window.
    invalid: u32,
    /// Validations under way.
    pending: u32,
}

/// Permission to validate a token that may be invalid. Returned when dropped, unless the token is
/// invalid.
pub struct InvalidPermit(Arc<InvalidLimit>);

impl InvalidPermit {
    /// Keeps the permit until the window ends: the token is invalid.
    pub fn keep(self) {
        self.0.count.lock().invalid += 1;
    }
}

impl Drop for InvalidPermit {
    fn drop(&mut self) {
        self.0.count.lock().pending -= 1;
        self.0.returned.notify_waiters();
    }
}

/// The network that counts as one address: one IPv6 client has a /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
    }
}

/// How long identities are kept at least, if there is room: a reload may change how long they are trusted.
const LONGEST: Duration = Duration::from_hours(1);

/// Addresses counted at most.
const MAX_ADDRESSES: u64 = 100_000;

/// For how long the API is not asked again about a caller after it failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Callers, remembered.
pub struct Identities<T = Connections> {
    known: moka::sync::Cache<IdentityKey, Known, IdHasher>,
    /// What is known of another one in its place, by caller.
    renewals: Renewals,
    flights: Flights<(IdentityKey, CallerMarks), Verdict>,
    /// By network, in the minute that began with the first validation.
    invalid: moka::sync::Cache<IpAddr, Arc<InvalidLimit>>,
    client: Arc<Client<T>>,
    generations: Arc<Generations>,
    metrics: Arc<Metrics>,
    /// What the fleet shares, if it does.
    tier: Option<Arc<Tier>>,
    config: ArcSwap<config::Identity>,
}

/// What is remembered of a caller, and whether the API should be asked in the background.
enum Remembered {
    Holds {
        vouched: Arc<Vouched>,
        refresh: bool,
    },
    /// Holds only if the API cannot be asked; whether that is known already.
    IfError {
        vouched: Arc<Vouched>,
        paused: bool,
    },
    Invalid,
}

impl<T: Transport> Identities<T> {
    pub fn new(
        config: &config::Identity,
        client: Arc<Client<T>>,
        generations: Arc<Generations>,
        metrics: Arc<Metrics>,
        tier: Option<Arc<Tier>>,
    ) -> Self {
        // A reload may allow for longer; what decides is the time in the identity itself.
        let longest = (config.ttl + config.stale_if_error).max(config.negative_ttl).max(LONGEST);
        let known = moka::sync::Cache::builder()
            .max_capacity(MAX_IDENTITIES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(longest)
            .build_with_hasher(IdHasher::default());
        let invalid = moka::sync::Cache::builder()
            .max_capacity(MAX_ADDRESSES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(INVALID_WINDOW)
            .build();
        let config = ArcSwap::from_pointee(config.clone());
        let (renewals, flights) = (Renewals::default(), Flights::default());
        Identities { known, renewals, flights, invalid, client, generations, metrics, tier, config }
    }

    /// Decides by another configuration from here on, also about what is remembered.
    pub fn reconfigure(&self, config: &config::Identity) {
        self.config.store(Arc::new(config.clone()));
    }

    /// Identities remembered.
    pub fn count(&self) -> u64 {
        self.known.run_pending_tasks();
        self.known.entry_count()
    }

    /// Who the caller with that token is. `address`: the caller's, part of the question where
    /// `identity.send_client_ip` says so.
    ///
    /// # Errors
    /// The token is invalid; too many were, from that address; the API cannot be asked, or not understood.
    pub async fn identify(
        self: &Arc<Self>,
        id: CallerId,
        token: &Token,
        address: IpAddr,
        now: Instant,
    ) -> Result<Caller, ApiError> {
        let key = IdentityKey { caller: id, address: self.config.load().send_client_ip.then_some(address) };
        self.look_up(key, token, address, now).await
    }

    /// The address that a caller's identity holds for, if it holds for one alone.
    pub fn address(&self, address: IpAddr) -> Option<IpAddr> {
        self.config.load().send_client_ip.then_some(address)
    }

    /// A caller who is known, and whom the API need not be asked about; and how often another one took its place before. `None`:
    /// [`Identities::identify`] has more to do.
    pub fn at_hand(&self, id: CallerId, address: Option<IpAddr>, now: Instant) -> Option<(Arc<Vouched>, u32)> {
        let count = self.renewals.count(id.slot().into());
        match self.remembered(&IdentityKey { caller: id, address }, now)? {
            Remembered::Holds { vouched, refresh: false } => Some((vouched, count)),
            Remembered::Holds { refresh: true, .. } | Remembered::IfError { .. } | Remembered::Invalid => None,
        }
    }

    /// Whether what [`Identities::at_hand`] gave is what it would give now.
    pub fn still_at_hand(&self, vouched: &Vouched, count: u32, now: Instant) -> bool {
        let caller = vouched.caller.id;
        self.renewals.count(caller.slot().into()) == count
            && self.generations.are_known(now)
            && matches!(self.holds(vouched, &caller, now), Some(Standing::Holds { refresh: false }))
    }

    /// Whose token that is, wherever it is used from: a session may hold for one address only, and is ended from any.
    ///
    /// # Errors
    /// As [`Identities::identify`].
    pub async fn owner(
        self: &Arc<Self>,
        id: CallerId,
        token: &Token,
        address: IpAddr,
        now: Instant,
    ) -> Result<Caller, ApiError> {
        match self.identify(id, token, address, now).await {
            Err(ApiError::InvalidToken) if self.config.load().send_client_ip => {
                self.look_up(IdentityKey { caller: id, address: None }, token, address, clock::now()).await
            }
            known => known,
        }
    }

    /// Whether a token is remembered as valid, for that address or for any.
    pub fn is_known(&self, id: CallerId, address: IpAddr, now: Instant) -> bool {
        [self.address(address), None].into_iter().any(|address| {
            let remembered = self.remembered(&IdentityKey { caller: id, address }, now);
            matches!(remembered, Some(Remembered::Holds { .. } | Remembered::IfError { .. }))
        })
    }

    /// Whether a token is remembered as invalid for that address.
    pub fn is_known_invalid(&self, id: CallerId, address: IpAddr, now: Instant) -> bool {
        let key = IdentityKey { caller: id, address: self.address(address) };
        matches!(self.remembered(&key, now), Some(Remembered::Invalid))
    }

    /// Takes a permit to let the API judge a token that is not known to be valid. Waits while
    /// validations under way could use up the limit; each of them ends within `upstream.timeout`.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: the limit is used up for the rest of the minute.
    pub async fn invalid_permit(&self, address: IpAddr) -> Result<InvalidPermit, ApiError> {
        loop {
            let limit = self.invalid.get_with(network_of(address), Arc::default);
            // Before the count is looked at: a permit that is returned after it wakes this.
            let returned = limit.returned.notified();
            {
                let max = self.config.load().max_invalid_per_minute;
                let mut count = limit.count.lock();
                if count.invalid >= max {
                    return Err(ApiError::TooManyRequests);
                }
                if count.invalid + count.pending < max {
                    count.pending += 1;
                    drop(count);
                    return Ok(InvalidPermit(limit.clone()));
                }
            }
            returned.await;
        }
    }

    /// The API refused a token that it was sent by a forward.
    pub fn count_invalid(&self, address: IpAddr) {
        self.invalid.get_with(network_of(address), Arc::default).count.lock().invalid += 1;
    }

    async fn look_up(
        self: &Arc<Self>,
        key: IdentityKey,
        token: &Token,
        address: IpAddr,
        now: Instant,
    ) -> Result<Caller, ApiError> {
        let before = self.remembered(&key, now);
        match &before {
            Some(Remembered::Holds { vouched, refresh }) => {
                self.metrics.identity_looked_up("hit");
                if *refresh {
                    // No client waits for it: the next request finds its result.
                    drop(self.send(key, token, None, address, Joining::BACKGROUND));
                }
                return Ok(vouched.caller.clone());
            }
            Some(Remembered::Invalid) => {
                self.metrics.identity_looked_up("negative");
                return Err(ApiError::InvalidToken);
            }
            Some(Remembered::IfError { vouched, paused: true }) => {
                self.metrics.identity_looked_up("stale");
                return Ok(vouched.caller.clone());
            }
            // The API is known to be down. Where this request finds out whether it is back, it does so in the background.
            Some(Remembered::IfError { vouched, paused: false }) if self.client.circuit() != Circuit::Closed => {
                drop(self.send(key, token, None, address, Joining::BACKGROUND));
                self.metrics.identity_looked_up("stale");
                return Ok(vouched.caller.clone());
            }
            Some(Remembered::IfError { paused: false, .. }) | None => {}
        }
        let result = self.validated(key, token, address, before.is_none()).await;
        match (result, before) {
            // Not if something ended the identity meanwhile: that is looked up again.
            (Err(error), Some(Remembered::IfError { vouched, .. })) if error.is_caused_by_api() => {
                let still = self.remembered(&key, clock::now());
                let holds = matches!(still, Some(Remembered::Holds { .. } | Remembered::IfError { .. }));
                if holds { Ok(vouched.caller.clone()) } else { Err(error) }
            }
            // What the fleet had, and the validation left for this.
            (Err(error), None) if error.is_caused_by_api() && self.tier.is_some() => {
                match self.remembered(&key, clock::now()) {
                    Some(Remembered::Holds { vouched, .. } | Remembered::IfError { vouched, .. }) => {
                        Ok(vouched.caller.clone())
                    }
                    Some(Remembered::Invalid) | None => Err(error),
                }
            }
            (Err(error), _) => Err(error),
            (Ok(caller), _) => caller.ok_or(ApiError::InvalidToken),
        }
    }

    /// Waits for a validation. One that began before a change of the employee does not count for a
    /// request that began after it.
    async fn validated(
        self: &Arc<Self>,
        key: IdentityKey,
        token: &Token,
        address: IpAddr,
        unknown: bool,
    ) -> Result<Option<Caller>, ApiError> {
        let began = self.generations.validation_marks(&key.caller);
        // A token that was valid once is no guess.
        let guessed = unknown && !matches!(self.known.get(&key), Some(Known::Valid(_)));
        loop {
            let permit = match guessed {
                true => Some(self.invalid_permit(address).await.inspect_err(|_| {
                    self.metrics.identity_looked_up("refused");
                })?),
                false => None,
            };
            let (boarded, waiter) = self.send(key, token, permit, address, Joining::WAITING);
            self.metrics.identity_looked_up(match boarded {
                Boarded::Led => "miss",
                Boarded::Joined => "collapsed",
            });
            let Some(verdict) = waiter.result().await else { return Err(ApiError::Internal) };
            let is_outdated = |caller: &Caller| {
                !verdict.began.is_after(&began)
                    && self.generations.has_employee_changed(caller.employee, &verdict.began)
            };
            let outdated = boarded == Boarded::Joined && verdict.result.iter().flatten().any(is_outdated);
            if !outdated {
                return verdict.result;
            }
        }
    }

    /// Asks the API in its own task, or joins the validation that is under way.
    fn send(
        self: &Arc<Self>,
        key: IdentityKey,
        token: &Token,
        permit: Option<InvalidPermit>,
        address: IpAddr,
        joining: Joining,
    ) -> (Boarded, Waiter<(IdentityKey, CallerMarks), Verdict>) {
        let marks = self.generations.validation_marks(&key.caller).caller;
        self.flights.board(&(key, marks), joining, |_| {
            let (identities, token) = (self.clone(), token.clone());
            async move { identities.validate(key, &token, permit, address).await }
        })
    }

    /// Whom a validation counts for: the caller, once the token was valid; until then the address that it comes from.
    fn payer(&self, key: &IdentityKey, address: IpAddr) -> Payer {
        match self.known.get(key) {
            Some(Known::Valid(_)) => Payer::Caller(key.caller),
            Some(Known::Invalid { .. }) | None => Payer::from_address(address),
        }
    }

    /// What is remembered and still holds. Nothing, while changes may be made that are not heard of here.
    fn remembered(&self, key: &IdentityKey, now: Instant) -> Option<Remembered> {
        if !self.generations.are_known(now) {
            return None;
        }
        match self.known.get(key)? {
            Known::Valid(vouched) => Some(match self.holds(&vouched, &key.caller, now)? {
                Standing::Holds { refresh } => Remembered::Holds { vouched, refresh },
                Standing::IfError { paused } => Remembered::IfError { vouched, paused },
            }),
            Known::Invalid { asked_at, marks } => {
                let holds = now.saturating_duration_since(asked_at) < self.config.load().negative_ttl
                    && marks.same_caller(&self.generations.validation_marks(&key.caller));
                holds.then_some(Remembered::Invalid)
            }
        }
    }

    /// How far a word of the API's still holds. `None`: not any more.
    fn holds(&self, vouched: &Vouched, caller: &CallerId, now: Instant) -> Option<Standing> {
        if vouched.marks != self.generations.identity_marks(caller, vouched.caller.employee) {
            return None;
        }
        let age = now.saturating_duration_since(vouched.asked_at);
        let paused = age.as_millis() < u128::from(vouched.pause.load(Ordering::Relaxed));
        let config = self.config.load();
        if age < config.ttl {
            return Some(Standing::Holds { refresh: age >= config.refresh_after && !paused });
        }
        (age < config.ttl + config.stale_if_error).then_some(Standing::IfError { paused })
    }

    /// Remembers what is known of a caller, in the place of what was.
    fn remember(&self, key: IdentityKey, known: Known) {
        self.known.insert(key, known);
        self.renewals.renewed(key.caller.slot().into());
    }

    /// Asks the API, and remembers what it says if nothing that it is about has changed meanwhile.
    async fn validate(
        &self,
        key: IdentityKey,
        token: &Token,
        permit: Option<InvalidPermit>,
        address: IpAddr,
    ) -> Verdict {
        let began = self.generations.validation_marks(&key.caller);
        let result = self.validate_since(&began, key, token, permit, address).await;
        Verdict { result, began }
    }

    async fn validate_since(
        &self,
        began: &ValidationMarks,
        key: IdentityKey,
        token: &Token,
        permit: Option<InvalidPermit>,
        address: IpAddr,
    ) -> Result<Option<Caller>, ApiError> {
        // A request that came just too late for the validation before this one finds its result.
        match self.remembered(&key, clock::now()) {
            Some(Remembered::Holds { vouched, refresh: false }) => return Ok(Some(vouched.caller.clone())),
            Some(Remembered::Invalid) => return Ok(None),
            _ => {}
        }
        let looked = self.look(&key, began).await;
        if let Some(caller) = looked.usable {
            return Ok(Some(caller));
        }
        let asked_at = clock::now();
        let answer = self.ask(key.address, token, self.payer(&key, address)).await;
        if let (Some(tier), Ok(_)) = (&self.tier, &answer) {
            tier.fetched_in(clock::now().saturating_duration_since(asked_at));
        }
        self.metrics.validated(match &answer {
            Ok(Validation::Valid(_)) => "valid",
            Ok(Validation::Invalid) => "invalid",
            Err(_) => "error",
        });
        match answer {
            Ok(Validation::Valid(identity)) => {
                let employee = self.generations.employee_slot(&identity.employee);
                let caller = Caller { id: key.caller, identity: Arc::new(identity), employee };
                // Taken before the comparison: a change after it is seen at the next lookup.
                let noted = self.generations.identity_marks(&key.caller, employee);
                let unchanged = self.generations.validation_marks(&key.caller).same_caller(began)
                    && !self.generations.has_employee_changed(employee, began);
                if !self.config.load().ttl.is_zero() && unchanged {
                    let vouched = Vouched::new(caller.clone(), asked_at, noted);
                    self.remember(key, Known::Valid(Arc::new(vouched)));
                    if let Some(writing) = looked.writing {
                        writing.put_identity(&caller.identity, self.trust());
                    }
                }
                Ok(Some(caller))
            }
            Ok(Validation::Invalid) => {
                if let Some(permit) = permit {
                    permit.keep();
                }
                if let Some(writing) = looked.writing {
                    writing.remove();
                }
                self.ended(&key, asked_at, *began);
                Ok(None)
            }
            Err(error) => {
                if let Some(Known::Valid(vouched)) = self.known.get(&key) {
                    let pause = clock::now().saturating_duration_since(vouched.asked_at) + PAUSE;
                    vouched.pause.store(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }

    /// Looks what the fleet knows of a caller, and remembers it where nothing of the caller's has changed since `marks`.
    async fn look(&self, key: &IdentityKey, marks: &ValidationMarks) -> Looked<Caller> {
        let Some(tier) = &self.tier else { return Looked::nothing() };
        let trust = self.trust();
        // Behind the answers, another gateway's newer word is wanted; in front of one, its word is as good as our own.
        let behind = matches!(self.remembered(key, clock::now()), Some(Remembered::Holds { .. }));
        let trust =
            if behind { Trust { fresh: self.config.load().refresh_after.min(trust.fresh), ..trust } } else { trust };
        if trust.fresh.is_zero() || !self.generations.are_known(clock::now()) {
            return Looked::nothing();
        }
        let name = tier.names.identity(&key.caller, key.address);
        let slot = |identity: &Identity| self.generations.employee_slot(&identity.employee);
        let noted = |identity: &Identity| self.generations.identity_marks(&key.caller, slot(identity));
        let looked = tier.look(&name, |value, seen| judge_identity(tier, &key.caller, trust, value, seen, noted)).await;
        let remember = |(identity, asked_at, noted): (Identity, Instant, IdentityMarks)| {
            let employee = slot(&identity);
            let caller = Caller { id: key.caller, identity: Arc::new(identity), employee };
            // Older than what this gateway knows: not to be put in its place.
            let outdated = match self.known.get(key) {
                Some(Known::Valid(before)) => before.asked_at >= asked_at && before.marks == noted,
                Some(Known::Invalid { asked_at: before, .. }) => before >= asked_at,
                None => false,
            };
            // A write that another gateway did not see may be executed since it asked.
            let outdated = outdated || self.generations.is_unsettled(None, &key.caller, employee);
            if !outdated && marks.same_caller(&self.generations.validation_marks(&key.caller)) {
                let vouched = Vouched::new(caller.clone(), asked_at, noted);
                self.remember(*key, Known::Valid(Arc::new(vouched)));
            }
            (!outdated).then_some(caller)
        };
        let usable = looked.usable.and_then(remember);
        if usable.is_none() {
            looked.stale.map(remember);
        }
        Looked { usable, stale: None, writing: looked.writing }
    }

    /// For how long the API's word counts.
    fn trust(&self) -> Trust {
        let config = self.config.load();
        Trust { fresh: config.ttl, longest: config.ttl + config.stale_if_error }
    }

    /// Remembers that a token is invalid; nothing stored for it is given again.
    fn ended(&self, key: &IdentityKey, asked_at: Instant, marks: ValidationMarks) {
        if let Some(Known::Valid(_)) = self.known.get(key) {
            self.generations.invalidate(&Scope::Caller(key.caller));
            self.metrics.invalidated("caller", "unauthorized");
        }
        let now = self.generations.validation_marks(&key.caller);
        // What changed meanwhile may have made it valid again.
        if marks.same_caller(&now) || matches!(self.known.get(key), Some(Known::Valid(_))) {
            self.remember(*key, Known::Invalid { asked_at, marks: now });
        }
    }

    async fn ask(&self, address: Option<IpAddr>, token: &Token, payer: Payer) -> Result<Validation, ApiError> {
        let escaped = utf8_percent_encode(token.expose(), QUERY_VALUE);
        let target = zeroize::Zeroizing::new(match address {
            Some(address) => format!("/auth/validateToken?token={escaped}&ip={address}"),
            None => format!("/auth/validateToken?token={escaped}"),
        });
        let request = Request { kind: Kind::Validate, target: &target, token: None, validators: None, payer };
        let answer = self.client.get(request).await.map_err(|error| {
            tracing::warn!(reason = error.as_str(), cause = error.cause(), "failed to validate a token");
            ApiError::from(error)
        })?;
        match answer.status.as_u16() {
            200 => read_validation(&answer.body).ok_or(ApiError::InvalidResponse),
            401 | 403 => Ok(Validation::Invalid),
            // The API is reachable and asks for a pause.
            429 | 503 => Err(answer
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| RetryAfter::parse(value.as_bytes()))
                .map_or(ApiError::Unavailable, ApiError::Paused)),
            _ => Err(ApiError::InvalidResponse),
        }
        .inspect_err(|_| {
            tracing::warn!(status = answer.status.as_u16(), "unexpected response to validateToken");
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_count_together() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_ne!(network("203.0.113.7"), network("203.0.113.8"));
        assert_eq!(network("::ffff:203.0.113.7"), network("203.0.113.7"));
    }
}
