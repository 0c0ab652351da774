//! Identification of callers: the API validates a token, and the result is cached for a limited
//! time.
//!
//! If the API cannot be reached, identification fails; there is no default access level.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::{HeaderValue, RETRY_AFTER};
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::Notify;

use crate::api::{AccessLevel, ApiError, Identity, RetryAfter, Token, Validation, read_validation};
use crate::cache::{
    CallerGenerations, CallerId, EmployeeSlot, Generations, IdHasher, IdentityGenerations,
    JoinOptions, Role, Scope, SingleFlight, SlotVersions, ValidationGenerations, Waiter,
};
use crate::clock;
use crate::cluster::{IdentityTtl, Lookup, Tier, evaluate_identity};
use crate::config;
use crate::reply::ApiCors;
use crate::telemetry::{ApiExchange, IdentityLookup, Metrics, ValidationOutcome};
use crate::upstream::{
    ApiFailure, Circuit, Client, Connections, QueueKey, Request, RequestKind, Transport, network_of,
};

/// Maximum number of cached validations; about 300 bytes each. The least recently used is evicted.
const MAX_IDENTITIES: u64 = 200_000;

/// Characters of a token that are escaped in a query: all except the unreserved ones (RFC 3986).
const QUERY_VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Time for which invalid tokens from a network count.
const INVALID_WINDOW: Duration = Duration::from_secs(60);

/// Shortest time after which the cache may drop a validation: a reload may lengthen `identity.ttl`.
const RETENTION_MIN: Duration = Duration::from_hours(1);

/// Maximum number of networks whose invalid tokens are counted.
const MAX_ADDRESSES: u64 = 100_000;

/// Time for which a caller is not validated again after a failure of the API.
const FAILURE_BACKOFF: Duration = Duration::from_secs(1);

/// A caller with a valid token.
#[derive(Clone, Debug)]
pub struct Caller {
    pub id: CallerId,
    pub identity: Arc<Identity>,
    pub employee: EmployeeSlot,
}

/// Key of a cached validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct IdentityKey {
    caller: CallerId,
    /// The client's address, if the API receives it (`identity.send_client_ip`).
    address: Option<IpAddr>,
}

/// Cached result of a validation.
#[derive(Clone)]
enum CachedValidation {
    Valid(Arc<ValidatedIdentity>),
    Invalid { requested_at: Instant, generations: ValidationGenerations },
}

/// Identity of a valid token, and the time of its validation.
pub struct ValidatedIdentity {
    caller: Caller,
    /// Copy of the identity's level, for a hit to read without another cache miss.
    level: AccessLevel,
    requested_at: Instant,
    generations: IdentityGenerations,
    /// Milliseconds after `requested_at` until which the API is not asked again, because it failed.
    backoff: AtomicU64,
}

impl ValidatedIdentity {
    fn new(caller: Caller, requested_at: Instant, generations: IdentityGenerations) -> Self {
        ValidatedIdentity {
            level: caller.identity.level,
            caller,
            requested_at,
            generations,
            backoff: AtomicU64::new(0),
        }
    }

    pub fn level(&self) -> AccessLevel {
        self.level
    }

    pub fn employee(&self) -> EmployeeSlot {
        self.caller.employee
    }
}

/// Whether a cached validation may still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Valid,
    /// Valid; to be refreshed in the background.
    RefreshDue,
    /// Usable only if the API fails.
    IfError,
    /// As `IfError`; the API failed just now, so that it is not asked.
    BackingOff,
}

/// A cached validation that may be used.
enum Cached {
    Valid(Arc<ValidatedIdentity>, Validity),
    Invalid,
}

/// Result of a validation; `None` for an invalid token.
#[derive(Clone)]
struct ValidationResult {
    result: Result<Option<Caller>, ApiFailure>,
    /// Generations when it began.
    began: ValidationGenerations,
}

/// A token to validate, and the client that sent it.
#[derive(Clone)]
struct ValidationRequest {
    key: IdentityKey,
    token: Token,
    address: IpAddr,
    /// `Origin` that the API receives.
    origin: Option<HeaderValue>,
}

/// Key of a validation under way.
type FlightKey = (IdentityKey, CallerGenerations);

/// Limit of validations from one network that find invalid tokens in a window. A validation takes a
/// permit before the API is asked, so that those under way count as well.
#[derive(Default)]
struct InvalidLimit {
    count: Mutex<InvalidCount>,
    returned: Notify,
}

#[derive(Default)]
struct InvalidCount {
    /// Invalid tokens found in the window.
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

/// Cache of validations.
pub struct Identities<T = Connections> {
    validations: moka::sync::Cache<IdentityKey, CachedValidation, IdHasher>,
    /// Versions of cached validations, by caller.
    versions: SlotVersions,
    flights: SingleFlight<FlightKey, ValidationResult>,
    /// By network, in the minute that began with its first validation.
    invalid: moka::sync::Cache<IpAddr, Arc<InvalidLimit>>,
    client: Arc<Client<T>>,
    generations: Arc<Generations>,
    metrics: Arc<Metrics>,
    /// Shared tier of the cluster, if one is configured.
    tier: Option<Arc<Tier>>,
    api_cors: Arc<ApiCors>,
    config: ArcSwap<config::Identity>,
}

/// What [`Identities`] need besides their configuration.
pub struct IdentityDeps<T> {
    pub client: Arc<Client<T>>,
    pub generations: Arc<Generations>,
    pub metrics: Arc<Metrics>,
    /// Shared tier of the cluster, if one is configured.
    pub tier: Option<Arc<Tier>>,
    /// Learns CORS fields from the API's responses.
    pub api_cors: Arc<ApiCors>,
}

impl<T: Transport> Identities<T> {
    pub fn new(config: &config::Identity, deps: IdentityDeps<T>) -> Self {
        let IdentityDeps { client, generations, metrics, tier, api_cors } = deps;
        // A lookup checks the age; this only bounds the memory.
        let retention =
            (config.ttl + config.stale_if_error).max(config.negative_ttl).max(RETENTION_MIN);
        let validations = moka::sync::Cache::builder()
            .max_capacity(MAX_IDENTITIES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(retention)
            .build_with_hasher(IdHasher::default());
        let invalid = moka::sync::Cache::builder()
            .max_capacity(MAX_ADDRESSES)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(INVALID_WINDOW)
            .build();
        Identities {
            validations,
            versions: SlotVersions::default(),
            flights: SingleFlight::default(),
            invalid,
            client,
            generations,
            metrics,
            tier,
            api_cors,
            config: ArcSwap::from_pointee(config.clone()),
        }
    }

    /// Applies another configuration, also to cached validations.
    pub fn reconfigure(&self, config: &config::Identity) {
        self.config.store(Arc::new(config.clone()));
    }

    /// Number of cached validations.
    pub fn count(&self) -> u64 {
        self.validations.run_pending_tasks();
        self.validations.entry_count()
    }

    /// Identifies the caller with a token. `address`: the client's, which the API receives with
    /// `identity.send_client_ip`. `origin`: the `Origin` that the API receives.
    ///
    /// # Errors
    /// The token is invalid, too many tokens from that network were, or the API gave no usable
    /// response.
    pub async fn identify(
        self: &Arc<Self>,
        id: CallerId,
        token: &Token,
        address: IpAddr,
        origin: Option<&HeaderValue>,
        now: Instant,
    ) -> Result<Caller, ApiFailure> {
        let key = IdentityKey { caller: id, address: self.bound_address(address) };
        self.identify_by_key(key, token, address, origin, now).await
    }

    /// The address that a caller's identity is bound to; `None` if identities are valid for every
    /// address.
    pub fn bound_address(&self, address: IpAddr) -> Option<IpAddr> {
        self.config.load().send_client_ip.then_some(address)
    }

    /// Returns a cached identity that needs no refresh, with the version of its slot. Without one,
    /// [`Identities::identify`] has to be called.
    pub fn try_cached(
        &self,
        id: CallerId,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Option<(Arc<ValidatedIdentity>, u32)> {
        let version = self.versions.get(id.slot().into());
        match self.lookup(&IdentityKey { caller: id, address }, now)? {
            Cached::Valid(identity, Validity::Valid) => Some((identity, version)),
            Cached::Valid(..) | Cached::Invalid => None,
        }
    }

    /// Whether [`Identities::try_cached`] would return this identity with this version now.
    pub fn is_still_valid(&self, identity: &ValidatedIdentity, version: u32, now: Instant) -> bool {
        let caller = identity.caller.id;
        self.versions.get(caller.slot().into()) == version
            && self.generations.is_synced(now)
            && self.validity(identity, &caller, now) == Some(Validity::Valid)
    }

    /// Identifies the owner of a token, from any address: a session that is bound to one address
    /// can be ended from another.
    ///
    /// # Errors
    /// As [`Identities::identify`].
    pub async fn owner(
        self: &Arc<Self>,
        id: CallerId,
        token: &Token,
        address: IpAddr,
        now: Instant,
    ) -> Result<Caller, ApiFailure> {
        match self.identify(id, token, address, None, now).await {
            Err(failure)
                if failure.error == ApiError::InvalidToken && self.config.load().send_client_ip =>
            {
                let key = IdentityKey { caller: id, address: None };
                self.identify_by_key(key, token, address, None, clock::now()).await
            }
            result => result,
        }
    }

    /// Whether a token has a cached valid identity, for that address or for every address.
    pub fn is_known(&self, id: CallerId, address: IpAddr, now: Instant) -> bool {
        [self.bound_address(address), None].into_iter().any(|address| {
            let cached = self.lookup(&IdentityKey { caller: id, address }, now);
            matches!(cached, Some(Cached::Valid(..)))
        })
    }

    /// Whether a token is cached as invalid for that address.
    pub fn is_known_invalid(&self, id: CallerId, address: IpAddr, now: Instant) -> bool {
        let key = IdentityKey { caller: id, address: self.bound_address(address) };
        matches!(self.lookup(&key, now), Some(Cached::Invalid))
    }

    /// Takes a permit to let the API judge a token that is not known to be valid. Waits while
    /// validations under way could use up the limit; each of them ends within `upstream.timeout`.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: the limit is used up for the rest of the minute.
    pub async fn invalid_permit(&self, address: IpAddr) -> Result<InvalidPermit, ApiError> {
        loop {
            let limit = self.invalid.get_with(network_of(address), Arc::default);
            // Created before the count is read, so that a permit returned after it wakes this task.
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

    /// Counts a token that the API rejected on a forwarded request.
    pub fn count_invalid(&self, address: IpAddr) {
        self.invalid.get_with(network_of(address), Arc::default).count.lock().invalid += 1;
    }

    async fn identify_by_key(
        self: &Arc<Self>,
        key: IdentityKey,
        token: &Token,
        address: IpAddr,
        origin: Option<&HeaderValue>,
        now: Instant,
    ) -> Result<Caller, ApiFailure> {
        let cached = self.lookup(&key, now);
        let request =
            || ValidationRequest { key, token: token.clone(), address, origin: origin.cloned() };
        match &cached {
            Some(Cached::Valid(identity, validity)) => {
                let lookup_result = match validity {
                    Validity::Valid => IdentityLookup::Hit,
                    Validity::RefreshDue => {
                        // No client waits for it: the next request finds its result.
                        drop(self.start_validation(&request(), None, JoinOptions::BACKGROUND));
                        IdentityLookup::Hit
                    }
                    Validity::BackingOff => IdentityLookup::Stale,
                    // The API is known to be down. If this validation is the probe, no client waits
                    // for it.
                    Validity::IfError if self.client.circuit() != Circuit::Closed => {
                        drop(self.start_validation(&request(), None, JoinOptions::BACKGROUND));
                        IdentityLookup::Stale
                    }
                    Validity::IfError => return self.revalidate(&request()).await,
                };
                self.metrics.count_identity_lookup(lookup_result);
                Ok(identity.caller.clone())
            }
            Some(Cached::Invalid) => {
                self.metrics.count_identity_lookup(IdentityLookup::Negative);
                Err(ApiError::InvalidToken.into())
            }
            None => match self.validated(&request(), true).await {
                // The validation may have stored an identity of the shared tier.
                Err(failure) if failure.error.is_caused_by_api() && self.tier.is_some() => {
                    self.cached_caller(&key).ok_or(failure)
                }
                result => result?.ok_or(ApiError::InvalidToken.into()),
            },
        }
    }

    /// Validates a token whose cached identity is usable only if the API fails.
    async fn revalidate(
        self: &Arc<Self>,
        request: &ValidationRequest,
    ) -> Result<Caller, ApiFailure> {
        match self.validated(request, false).await {
            // Looked up again: the identity may have been invalidated meanwhile.
            Err(failure) if failure.error.is_caused_by_api() => {
                self.cached_caller(&request.key).ok_or(failure)
            }
            result => result?.ok_or(ApiError::InvalidToken.into()),
        }
    }

    /// The caller of a cached identity that is usable if the API fails.
    fn cached_caller(&self, key: &IdentityKey) -> Option<Caller> {
        match self.lookup(key, clock::now())? {
            Cached::Valid(identity, _) => Some(identity.caller.clone()),
            Cached::Invalid => None,
        }
    }

    /// Waits for a validation. One that began before a change of the employee does not count for a
    /// request that began after it.
    async fn validated(
        self: &Arc<Self>,
        request: &ValidationRequest,
        is_unknown: bool,
    ) -> Result<Option<Caller>, ApiFailure> {
        let (key, address) = (request.key, request.address);
        let began = self.generations.validation_generations(&key.caller);
        // A token that was valid once is not a guess.
        let may_be_guessed =
            is_unknown && !matches!(self.validations.get(&key), Some(CachedValidation::Valid(_)));
        loop {
            let permit = match may_be_guessed {
                true => Some(self.invalid_permit(address).await.inspect_err(|_| {
                    self.metrics.count_identity_lookup(IdentityLookup::Refused);
                })?),
                false => None,
            };
            let (role, waiter) = self.start_validation(request, permit, JoinOptions::FOREGROUND);
            self.metrics.count_identity_lookup(match role {
                Role::Leader => IdentityLookup::Miss,
                Role::Follower => IdentityLookup::Collapsed,
            });
            let Some(validation) = waiter.result().await else {
                return Err(ApiError::Internal.into());
            };
            let has_changed = |caller: &Caller| {
                !validation.began.is_after(&began)
                    && self.generations.has_employee_changed(caller.employee, &validation.began)
            };
            let is_outdated =
                role == Role::Follower && validation.result.iter().flatten().any(has_changed);
            if !is_outdated {
                return validation.result;
            }
        }
    }

    /// Starts a validation in a separate task, or joins one that is under way.
    fn start_validation(
        self: &Arc<Self>,
        request: &ValidationRequest,
        permit: Option<InvalidPermit>,
        options: JoinOptions,
    ) -> (Role, Waiter<FlightKey, ValidationResult>) {
        let generations = self.generations.validation_generations(&request.key.caller).caller;
        self.flights.join_or_spawn(&(request.key, generations), options, |_| {
            let (identities, request) = (self.clone(), request.clone());
            async move { identities.validate(&request, permit).await }
        })
    }

    /// The key under which a validation is queued: the caller if the token was valid before, until
    /// then the client's address.
    fn queue_key(&self, key: &IdentityKey, address: IpAddr) -> QueueKey {
        match self.validations.get(key) {
            Some(CachedValidation::Valid(_)) => QueueKey::Caller(key.caller),
            Some(CachedValidation::Invalid { .. }) | None => QueueKey::from_address(address),
        }
    }

    /// Returns a cached validation that may be used. None may be while invalidations of other
    /// gateways may be missing.
    fn lookup(&self, key: &IdentityKey, now: Instant) -> Option<Cached> {
        if !self.generations.is_synced(now) {
            return None;
        }
        match self.validations.get(key)? {
            CachedValidation::Valid(identity) => {
                let validity = self.validity(&identity, &key.caller, now)?;
                Some(Cached::Valid(identity, validity))
            }
            CachedValidation::Invalid { requested_at, generations } => {
                let is_current = now.saturating_duration_since(requested_at)
                    < self.config.load().negative_ttl
                    && generations
                        .same_caller(&self.generations.validation_generations(&key.caller));
                is_current.then_some(Cached::Invalid)
            }
        }
    }

    /// Whether an identity may still be used. `None`: it may not.
    fn validity(
        &self,
        identity: &ValidatedIdentity,
        caller: &CallerId,
        now: Instant,
    ) -> Option<Validity> {
        if identity.generations
            != self.generations.identity_generations(caller, identity.caller.employee)
        {
            return None;
        }
        let age = now.saturating_duration_since(identity.requested_at);
        let is_backing_off = age.as_millis() < u128::from(identity.backoff.load(Ordering::Relaxed));
        let config = self.config.load();
        if age < config.ttl {
            let is_due = age >= config.refresh_after && !is_backing_off;
            return Some(if is_due { Validity::RefreshDue } else { Validity::Valid });
        }
        let validity = if is_backing_off { Validity::BackingOff } else { Validity::IfError };
        (age < config.ttl + config.stale_if_error).then_some(validity)
    }

    fn insert(&self, key: IdentityKey, validation: CachedValidation) {
        self.validations.insert(key, validation);
        self.versions.bump(key.caller.slot().into());
    }

    async fn validate(
        &self,
        request: &ValidationRequest,
        permit: Option<InvalidPermit>,
    ) -> ValidationResult {
        let began = self.generations.validation_generations(&request.key.caller);
        let result = self.validate_since(&began, request, permit).await;
        ValidationResult { result, began }
    }

    /// Asks the API, and caches its response unless something that it depends on has changed since
    /// `began`.
    async fn validate_since(
        &self,
        began: &ValidationGenerations,
        request: &ValidationRequest,
        permit: Option<InvalidPermit>,
    ) -> Result<Option<Caller>, ApiFailure> {
        let key = request.key;
        // A request that arrived just after the previous validation ended finds its result.
        match self.lookup(&key, clock::now()) {
            Some(Cached::Valid(identity, Validity::Valid)) => {
                return Ok(Some(identity.caller.clone()));
            }
            Some(Cached::Invalid) => return Ok(None),
            _ => {}
        }
        let found = self.look_up_shared(&key, began).await;
        if let Some(caller) = found.fresh {
            return Ok(Some(caller));
        }
        let requested_at = clock::now();
        let response = self.request_validation(request).await;
        if let (Some(tier), Ok(_)) = (&self.tier, &response) {
            tier.record_fetch_time(clock::now().saturating_duration_since(requested_at));
        }
        self.metrics.count_validation(match &response {
            Ok(Validation::Valid(_)) => ValidationOutcome::Valid,
            Ok(Validation::Invalid) => ValidationOutcome::Invalid,
            Err(_) => ValidationOutcome::Error,
        });
        match response {
            Ok(Validation::Valid(identity)) => {
                let employee = self.generations.employee_slot(&identity.employee);
                let caller = Caller { id: key.caller, identity: Arc::new(identity), employee };
                // Read before the comparison: the next lookup detects a change after it.
                let generations = self.generations.identity_generations(&key.caller, employee);
                let is_unchanged =
                    self.generations.validation_generations(&key.caller).same_caller(began)
                        && !self.generations.has_employee_changed(employee, began);
                if !self.config.load().ttl.is_zero() && is_unchanged {
                    let identity =
                        ValidatedIdentity::new(caller.clone(), requested_at, generations);
                    self.insert(key, CachedValidation::Valid(Arc::new(identity)));
                    if let Some(lease) = found.write_lease {
                        lease.put_identity(&caller.identity, self.ttl());
                    }
                }
                Ok(Some(caller))
            }
            Ok(Validation::Invalid) => {
                if let Some(permit) = permit {
                    permit.keep();
                }
                if let Some(lease) = found.write_lease {
                    lease.remove();
                }
                self.insert_invalid(&key, requested_at, *began);
                Ok(None)
            }
            Err(error) => {
                if let Some(CachedValidation::Valid(identity)) = self.validations.get(&key) {
                    let backoff = clock::now().saturating_duration_since(identity.requested_at)
                        + FAILURE_BACKOFF;
                    identity.backoff.store(
                        u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX),
                        Ordering::Relaxed,
                    );
                }
                Err(error)
            }
        }
    }

    /// Looks up the shared tier, and caches its identity if nothing of the caller's has changed
    /// since `began`.
    async fn look_up_shared(
        &self,
        key: &IdentityKey,
        began: &ValidationGenerations,
    ) -> Lookup<Caller> {
        let Some(tier) = &self.tier else { return Lookup::skipped() };
        let ttl = self.ttl();
        // A refresh in the background needs a newer validation; a client that waits may use any
        // that this gateway would use.
        let is_refresh = matches!(
            self.lookup(key, clock::now()),
            Some(Cached::Valid(_, Validity::Valid | Validity::RefreshDue))
        );
        let ttl = if is_refresh {
            IdentityTtl { fresh: self.config.load().refresh_after.min(ttl.fresh), ..ttl }
        } else {
            ttl
        };
        if ttl.fresh.is_zero() || !self.generations.is_synced(clock::now()) {
            return Lookup::skipped();
        }
        let name = tier.keys.identity(&key.caller, key.address);
        let slot = |identity: &Identity| self.generations.employee_slot(&identity.employee);
        let current = |identity: &Identity| {
            self.generations.identity_generations(&key.caller, slot(identity))
        };
        let found = tier
            .get_or_lease(&name, |value, read| {
                evaluate_identity(tier, &key.caller, ttl, value, read, current)
            })
            .await;
        let insert =
            |(identity, requested_at, generations): (Identity, Instant, IdentityGenerations)| {
                let employee = slot(&identity);
                let caller = Caller { id: key.caller, identity: Arc::new(identity), employee };
                // A newer validation is cached here already.
                let is_older = match self.validations.get(key) {
                    Some(CachedValidation::Valid(own)) => {
                        own.requested_at >= requested_at && own.generations == generations
                    }
                    Some(CachedValidation::Invalid { requested_at: own, .. }) => {
                        own >= requested_at
                    }
                    None => false,
                };
                // Another gateway may have validated before a write that it did not see.
                let is_outdated =
                    is_older || self.generations.is_unsettled(None, &key.caller, employee);
                if !is_outdated
                    && began.same_caller(&self.generations.validation_generations(&key.caller))
                {
                    let identity =
                        ValidatedIdentity::new(caller.clone(), requested_at, generations);
                    self.insert(*key, CachedValidation::Valid(Arc::new(identity)));
                }
                (!is_outdated).then_some(caller)
            };
        let usable = found.fresh.and_then(insert);
        if usable.is_none() {
            found.stale.map(insert);
        }
        Lookup { fresh: usable, stale: None, write_lease: found.write_lease }
    }

    /// How long a validation is valid.
    fn ttl(&self) -> IdentityTtl {
        let config = self.config.load();
        IdentityTtl { fresh: config.ttl, max: config.ttl + config.stale_if_error }
    }

    /// Caches that a token is invalid, and invalidates what is cached for it.
    fn insert_invalid(
        &self,
        key: &IdentityKey,
        requested_at: Instant,
        began: ValidationGenerations,
    ) {
        if let Some(CachedValidation::Valid(_)) = self.validations.get(key) {
            self.generations.invalidate(&Scope::Caller(key.caller));
            self.metrics.count_invalidation("caller", "unauthorized");
        }
        let generations = self.generations.validation_generations(&key.caller);
        // A change since the validation began may have made the token valid again.
        let was_valid = matches!(self.validations.get(key), Some(CachedValidation::Valid(_)));
        if began.same_caller(&generations) || was_valid {
            self.insert(*key, CachedValidation::Invalid { requested_at, generations });
        }
    }

    /// Calls `validateToken`.
    async fn request_validation(
        &self,
        request: &ValidationRequest,
    ) -> Result<Validation, ApiFailure> {
        let ValidationRequest { key, token, address, origin } = request;
        let escaped = utf8_percent_encode(token.expose(), QUERY_VALUE);
        let target = zeroize::Zeroizing::new(match key.address {
            Some(address) => format!("/auth/validateToken?token={escaped}&ip={address}"),
            None => format!("/auth/validateToken?token={escaped}"),
        });
        let request = Request {
            kind: RequestKind::Validate,
            target: &target,
            token: None,
            validators: None,
            origin: origin.as_ref(),
            queue_key: self.queue_key(key, *address),
        };
        let started = clock::now();
        let response = self.client.get(request).await;
        let duration = clock::now().saturating_duration_since(started);
        let response = response.map_err(|error| ApiFailure::from_exchange(error, duration))?;
        self.api_cors.learn(origin.as_ref(), &response.headers);
        let (error, cause) = match response.status.as_u16() {
            200 => match read_validation(&response.body) {
                Some(validation) => return Ok(validation),
                None => (ApiError::InvalidResponse, "validation_body"),
            },
            401 | 403 => return Ok(Validation::Invalid),
            // The API is reachable and asks for a pause.
            429 | 503 => {
                let retry_after = response.headers.get(RETRY_AFTER);
                let retry_after = retry_after.and_then(|value| RetryAfter::parse(value.as_bytes()));
                (retry_after.map_or(ApiError::Unavailable, ApiError::Paused), "status")
            }
            _ => (ApiError::InvalidResponse, "status"),
        };
        let exchange = ApiExchange { status: Some(response.status), duration };
        Err(ApiFailure { error, cause: Some(cause), exchange: Some(exchange) })
    }
}
