//! The path of an intercepted request: identify the caller, look up the entry, fetch if needed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};

use super::Gateway;
use super::fetch::{FetchJob, UpstreamOutcome, own_error, target};
use super::fetch_result::{FetchError, FetchSource, Fetched};
use super::state::FlightKey;
use crate::api::{ApiError, CustomerId, Query, Token, find_credential};
use crate::cache::{
    CacheControl, CallerId, Entry, Freshness, JoinOptions, Key, Role, Scope, Waiter,
};
use crate::clock;
use crate::identity::Caller;
use crate::reply::{
    ApiFields, CacheStatus, Content, ForwardReason, Reply, Representation, if_none_match,
    matches_etag,
};
use crate::telemetry::{ApiExchange, Record, StaleReason};
use crate::upstream::{self, ApiFailure, Circuit, FAILURE_STATUS, QueueKey, Transport, is_failure};

/// Shortest time between two fetches of an entry that clients' `Cache-Control` causes. Without it,
/// any client could put load on the API.
const FORCED_FETCH_INTERVAL: Duration = Duration::from_secs(1);

/// An intercepted request.
pub struct NameRequest<'a> {
    pub customer: CustomerId,
    pub query: &'a Query<'a>,
    pub headers: &'a HeaderMap,
    /// The client's address, as trusted proxies report it.
    pub address: IpAddr,
    /// Whether it announces a body, which has no meaning on this route.
    pub has_body: bool,
}

/// The parts of a request that a cached response depends on, except its credential.
pub(super) struct LookupParams<'a> {
    pub customer: CustomerId,
    /// The client's `Cache-Control` and `Pragma`.
    pub wants: CacheControl,
    pub validators: ClientValidators<'a>,
    /// `Origin` that the API receives.
    pub origin: Option<HeaderValue>,
}

/// The client's `If-None-Match`.
#[derive(Clone, Copy)]
pub(super) enum ClientValidators<'a> {
    Fields(&'a HeaderMap),
    Value(Option<&'a [u8]>),
}

impl ClientValidators<'_> {
    fn matches(self, representation: &Representation) -> bool {
        match self {
            ClientValidators::Fields(headers) => if_none_match(headers, representation.etag()),
            ClientValidators::Value(value) => {
                value.is_some_and(|value| matches_etag(value, representation.etag()))
            }
        }
    }
}

impl<T: Transport> Gateway<T> {
    /// Responds to an intercepted request. Failures are responses too.
    pub async fn respond(&self, request: &NameRequest<'_>, record: &mut Record) -> Reply {
        let result = self.handle(request, record).await;
        finish(result, record)
    }

    async fn handle(
        &self,
        request: &NameRequest<'_>,
        record: &mut Record,
    ) -> Result<Reply, ApiFailure> {
        let credential = find_credential(request.headers, request.query, self.cookie.as_deref());
        let token = credential.map_err(ApiError::from)?.token;
        let origin = self.forwarded_origin(request.headers);
        let caller =
            self.identify(self.caller_of(&token), &token, request.address, origin, record).await?;
        if request.has_body || !request.query.is_plain() {
            return self.bypass(request, &caller, &token, record).await;
        }
        let params = LookupParams {
            customer: request.customer,
            wants: CacheControl::from_request(request.headers),
            validators: ClientValidators::Fields(request.headers),
            origin: origin.cloned(),
        };
        self.serve(&params, caller, token, record).await
    }

    pub(super) async fn identify(
        &self,
        id: CallerId,
        token: &Token,
        address: IpAddr,
        origin: Option<&HeaderValue>,
        record: &mut Record,
    ) -> Result<Caller, ApiFailure> {
        let caller =
            self.shared.identities.identify(id, token, address, origin, record.started).await?;
        record.level = Some(caller.identity.level);
        Ok(caller)
    }

    /// Responds from the cache or with a fetch.
    pub(super) async fn serve(
        &self,
        params: &LookupParams<'_>,
        caller: Caller,
        token: Token,
        record: &mut Record,
    ) -> Result<Reply, ApiFailure> {
        // Identification may have taken as long as the API did, during which the entry aged.
        let now = clock::now();
        let LookupParams { customer, wants, validators, ref origin } = *params;
        let policy = self.key_policy(origin.as_ref().map(HeaderValue::as_bytes));
        let key = Key { caller: caller.id, level: caller.identity.level, customer, policy };
        let generations =
            self.shared.generations.entry_generations(&customer, &key.caller, caller.employee);
        // The cache is unusable while invalidations of other gateways may be missing.
        let is_synced = self.shared.generations.is_synced(now);
        let cached =
            is_synced.then(|| self.shared.find_entry(&key, self.policy_id, generations)).flatten();
        let plan = cached
            .as_deref()
            .map_or(Plan::Fetch(ForwardReason::UriMiss), |entry| Plan::new(entry, &wants, now));
        let limits_age = wants.no_cache || wants.max_age.is_some() || wants.min_fresh.is_some();
        let bypass_shared_tier = self.shared.tier.is_some() && limits_age;
        let stale = cached.clone();
        let mut job = FetchJob {
            key,
            caller,
            token,
            origin: origin.clone(),
            generations,
            stale,
            is_forced: false,
            bypass_shared_tier,
            request_id: String::new(),
        };
        match (plan, cached) {
            (Plan::Hit, Some(entry)) => {
                Ok(cached_reply(validators, &entry, now, CacheStatus::Hit { ttl: entry.ttl(now) }))
            }
            (Plan::Refresh, Some(entry)) => {
                if !entry.is_backing_off(now) {
                    // No client waits for it: the next request finds its response.
                    drop(self.start_fetch(
                        job,
                        JoinOptions { store: !wants.no_store, ..JoinOptions::BACKGROUND },
                    ));
                }
                self.shared.metrics.count_stale_response(StaleReason::Revalidating);
                Ok(cached_reply(
                    validators,
                    &entry,
                    now,
                    CacheStatus::Revalidating { ttl: entry.ttl(now) },
                ))
            }
            (Plan::StaleIfError, Some(entry)) => Ok(self.stale_reply(validators, &entry, now)),
            (Plan::Fetch(_), _) if wants.only_if_cached => Err(ApiError::OnlyIfCached.into()),
            (Plan::Fetch(reason), cached) => {
                job.is_forced = reason == ForwardReason::Request;
                let options = JoinOptions { store: !wants.no_store, ..JoinOptions::FOREGROUND };
                let is_usable = |entry: &Arc<Entry>| {
                    self.circuit() != Circuit::Closed && entry.may_serve_on_error(now)
                };
                if let Some(entry) = cached.filter(is_usable) {
                    // The API is known to be down. If this fetch is the probe, no client waits for
                    // it.
                    drop(self.start_fetch(job, JoinOptions { in_background: true, ..options }));
                    return Ok(self.stale_reply(validators, &entry, now));
                }
                job.request_id.clone_from(&record.request_id);
                self.fetch(validators, job, reason, options, record).await
            }
            (_, None) => Err(ApiError::Internal.into()),
        }
    }

    /// Waits for a fetch. If the API fails, a stale entry is used if one may be.
    async fn fetch(
        &self,
        validators: ClientValidators<'_>,
        job: FetchJob,
        reason: ForwardReason,
        options: JoinOptions,
        record: &mut Record,
    ) -> Result<Reply, ApiFailure> {
        let (key, employee, stale) = (job.key, job.caller.employee, job.stale.clone());
        let (role, waiter) = self.start_fetch(job, options);
        let result = waiter.result().await.unwrap_or(Err(ApiError::Internal.into()));
        match &result {
            Ok(fetched) => note_exchange(fetched.exchange, record),
            Err(failed) => note_failure(&failed.failure, record),
        }
        let now = clock::now();
        let has_failed = match &result {
            Err(failure) => failure.failure.error.is_caused_by_api(),
            Ok(fetched) => is_failure(fetched.representation.status()),
        };
        if has_failed {
            let current =
                || self.shared.generations.entry_generations(&key.customer, &key.caller, employee);
            // A change during the fetch makes the entry wrong instead of stale.
            let is_usable =
                |entry: &Entry| entry.may_serve_on_error(now) && entry.generations == current();
            // The fetch may have stored a stale entry of the shared tier.
            let from_tier = || {
                self.shared.tier.as_ref().filter(|_| self.shared.generations.is_synced(now))?;
                let entry = self.shared.find_entry(&key, self.policy_id, current());
                entry.filter(|entry| entry.freshness(now) != Freshness::Fresh)
            };
            if let Some(entry) = stale.or_else(from_tier).filter(|entry| is_usable(entry)) {
                return Ok(self.stale_reply(validators, &entry, now));
            }
        }
        let mut fetched = match result {
            Ok(fetched) => fetched,
            Err(failure) => return Ok(error_reply(failure)),
        };
        if fetched.is_own_error && role == Role::Follower {
            let status = fetched.representation.status();
            fetched.representation = own_error(status, &record.request_id);
        }
        Ok(fetched_reply(validators, fetched, role, reason, now))
    }

    /// Starts a fetch, or joins one that is under way.
    fn start_fetch(
        &self,
        job: FetchJob,
        options: JoinOptions,
    ) -> (Role, Waiter<FlightKey, Result<Fetched, FetchError>>) {
        let fetcher = self.fetcher.clone();
        let key = (job.key, job.generations, job.bypass_shared_tier);
        self.shared
            .fetches
            .join_or_spawn(&key, options, |demand| async move { fetcher.run(job, &demand).await })
    }

    fn stale_reply(&self, validators: ClientValidators<'_>, entry: &Entry, now: Instant) -> Reply {
        self.shared.metrics.count_stale_response(StaleReason::Error);
        cached_reply(validators, entry, now, CacheStatus::StaleIfError { ttl: entry.ttl(now) })
    }

    /// Responds to a request with a body or with other query parameters: the API is asked each
    /// time, and nothing is stored.
    async fn bypass(
        &self,
        request: &NameRequest<'_>,
        caller: &Caller,
        token: &Token,
        record: &mut Record,
    ) -> Result<Reply, ApiFailure> {
        let path = target(&request.customer);
        let query = request.query.without_tokens(false);
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let requested_at = clock::now();
        let queue_key = QueueKey::Caller(caller.id);
        let kind = upstream::RequestKind::Bypass;
        let upstream_request = upstream::Request {
            kind,
            target: &target,
            token: Some(token),
            validators: None,
            origin: self.forwarded_origin(request.headers),
            queue_key,
        };
        match self
            .fetcher
            .request(upstream_request, caller.identity.level, token, &record.request_id)
            .await
        {
            Ok(UpstreamOutcome::Response {
                representation,
                initial_age,
                fields,
                exchange_fields,
                exchange,
                ..
            }) => {
                note_exchange(Some(exchange), record);
                let age = initial_age + clock::now().saturating_duration_since(requested_at);
                let is_match = ClientValidators::Fields(request.headers).matches(&representation);
                let reply = reply(is_match, representation, fields, age, CacheStatus::Bypass);
                Ok(Reply { exchange_fields, ..reply })
            }
            Ok(UpstreamOutcome::NotModified { .. }) => Err(ApiError::InvalidResponse.into()),
            Err(failure) => {
                note_failure(&failure.failure, record);
                if failure.failure.error == ApiError::InvalidToken {
                    self.invalidate(&Scope::Caller(caller.id), "unauthorized");
                }
                Ok(error_reply(failure))
            }
        }
    }
}

/// Turns a result into a reply and records it.
pub(super) fn finish(result: Result<Reply, ApiFailure>, record: &mut Record) -> Reply {
    let reply = result.unwrap_or_else(|failure| {
        note_failure(&failure, record);
        Reply::from(failure.error)
    });
    record.cache = reply.cache_status;
    record.error = reply.error();
    reply
}

/// Records an exchange with a complete response. An error status of the API is a cause, as in
/// metrics.
fn note_exchange(exchange: Option<ApiExchange>, record: &mut Record) {
    record.api = exchange;
    if exchange.and_then(|exchange| exchange.status).is_some_and(is_failure) {
        record.cause = Some(FAILURE_STATUS.cause);
    }
}

/// Records what failed. The access line has the cause, so that an outage writes no further line for
/// each request.
fn note_failure(failure: &ApiFailure, record: &mut Record) {
    let ApiFailure { error: _, cause, exchange } = *failure;
    record.cause = cause.or(record.cause);
    record.api = exchange.or(record.api);
    if let Some(cause) = cause {
        tracing::debug!(http.request.id = record.request_id, cause, "a request to the API failed");
    }
}

/// How a request uses a cached entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Hit,
    /// Serve it stale and fetch in the background.
    Refresh,
    /// Serve it stale: the API failed just now.
    StaleIfError,
    Fetch(ForwardReason),
}

impl Plan {
    fn new(entry: &Entry, wants: &CacheControl, now: Instant) -> Self {
        let freshness = entry.freshness(now);
        let may_force = now.saturating_duration_since(entry.fetched_at) >= FORCED_FETCH_INTERVAL
            && !entry.is_backing_off(now)
            && !wants.only_if_cached;
        if freshness != Freshness::Expired
            && may_force
            && !wants.accepts(entry.age(now).as_secs(), entry.ttl(now))
        {
            return Plan::Fetch(ForwardReason::Request);
        }
        match freshness {
            Freshness::Fresh => Plan::Hit,
            Freshness::StaleWhileRevalidate => Plan::Refresh,
            Freshness::StaleIfError if entry.is_backing_off(now) => Plan::StaleIfError,
            Freshness::StaleIfError | Freshness::Expired => Plan::Fetch(ForwardReason::Stale),
        }
    }
}

/// The reply with a cached entry.
pub(super) fn cached_reply(
    validators: ClientValidators<'_>,
    entry: &Entry,
    now: Instant,
    status: CacheStatus,
) -> Reply {
    let is_match = validators.matches(&entry.representation);
    reply(is_match, entry.representation.clone(), entry.fields.clone(), entry.age(now), status)
}

/// The reply with the result of a fetch.
fn fetched_reply(
    validators: ClientValidators<'_>,
    fetched: Fetched,
    role: Role,
    reason: ForwardReason,
    now: Instant,
) -> Reply {
    let status = match (role, &fetched.source) {
        (_, FetchSource::SharedTier(entry)) => {
            return cached_reply(
                validators,
                entry,
                now,
                CacheStatus::Shared { ttl: entry.ttl(now) },
            );
        }
        (Role::Follower, _) | (_, FetchSource::Cache) => CacheStatus::Collapsed,
        (Role::Leader, FetchSource::Revalidated) if reason != ForwardReason::Request => {
            CacheStatus::Miss { why: ForwardReason::Revalidated, stored: fetched.is_stored }
        }
        (Role::Leader, _) => CacheStatus::Miss { why: reason, stored: fetched.is_stored },
    };
    let age = fetched.initial_age + now.saturating_duration_since(fetched.requested_at);
    let Fetched { representation, fields, exchange_fields, .. } = fetched;
    let reply = reply(validators.matches(&representation), representation, fields, age, status);
    Reply { exchange_fields, ..reply }
}

/// `is_match`: the client's `If-None-Match` names the representation.
fn reply(
    is_match: bool,
    representation: Representation,
    api_fields: ApiFields,
    age: Duration,
    cache_status: CacheStatus,
) -> Reply {
    let is_not_modified = is_match && representation.status() == StatusCode::OK;
    let content = if is_not_modified {
        Content::NotModified(representation)
    } else {
        Content::Whole(representation)
    };
    let (cache_status, age) = (Some(cache_status), Some(age.as_secs()));
    Reply { content, cache_status, age, api_fields, exchange_fields: ApiFields::NONE }
}

/// The gateway's error, with the API's fields that belong to it.
fn error_reply(failure: FetchError) -> Reply {
    let FetchError { failure, fields } = failure;
    Reply { exchange_fields: fields, ..Reply::from(failure.error) }
}
