//! Fetching: one exchange with the API, redacted for the caller's access level, and stored if
//! permitted. A fetch runs in a separate task, which ends when no client waits for it any more.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::fetch_result::{FetchError, FetchSource, Fetched};
use super::state::SharedState;
use crate::api::{
    AccessLevel, ApiError, CustomerId, Token, error_body, holds_credential_or_secret,
};
use crate::cache::{
    Demand, Entry, EntryGenerations, FetchTime, Freshness, Key, Lifetime, NotStored, Scope,
    Validators, has_no_freshness_info, initial_age, lifetime,
};
use crate::clock;
use crate::cluster::{Lookup, ResponseLookup, WriteLease};
use crate::config;
use crate::forward::connection_options;
use crate::identity::Caller;
use crate::offload;
use crate::redact::{Kind as DocumentKind, Policy, Reason, Redacted, redact};
use crate::reply::{ApiFields, FieldFilter, Representation};
use crate::telemetry::ApiExchange;
use crate::upstream::{
    ApiFailure, ApiResponse, Connections, QueueKey, Request, RequestKind, Transport,
    has_content_coding, is_failure,
};

/// Time for which an entry is not fetched again after a failure. A stale response is used
/// meanwhile.
const FAILURE_BACKOFF: Duration = Duration::from_secs(1);

/// One entry to fetch.
#[derive(Clone)]
pub struct FetchJob {
    pub key: Key,
    pub caller: Caller,
    pub token: Token,
    /// `Origin` that the API receives; part of the key.
    pub origin: Option<HeaderValue>,
    /// Generations when the fetch began. If one changes, the response is not stored.
    pub generations: EntryGenerations,
    /// Cached entry that is stale and can be revalidated.
    pub stale: Option<Arc<Entry>>,
    /// Whether the API must be asked although a fresh entry may be cached.
    pub is_forced: bool,
    /// Whether the client limits the age of its response, which excludes entries of the shared
    /// tier.
    pub bypass_shared_tier: bool,
    /// Id of the request that started the fetch, for log lines; empty in the background.
    pub request_id: String,
}

/// Response of the API to a fetch.
pub enum UpstreamOutcome {
    /// 304: the cached representation is still valid.
    NotModified {
        lifetime: Result<Lifetime, NotStored>,
        /// Whether the lifetime of the cached entry applies, because the 304 states none.
        keeps_lifetime: bool,
        initial_age: Duration,
        fields: ApiFields,
        exchange_fields: ApiFields,
        exchange: ApiExchange,
    },
    Response {
        representation: Representation,
        /// Whether the body is an error of the gateway's that names the request.
        is_own_error: bool,
        validators: Option<Box<Validators>>,
        lifetime: Result<Lifetime, NotStored>,
        initial_age: Duration,
        fields: ApiFields,
        exchange_fields: ApiFields,
        exchange: ApiExchange,
    },
}

/// Fetches, redacts and stores responses.
pub struct Fetcher<T = Connections> {
    pub(super) shared: Arc<SharedState<T>>,
    pub(super) policy: Arc<Policy>,
    /// Policy component of keys for every origin.
    pub(super) policy_id: u64,
    pub(super) config: config::Cache,
    /// Which fields of the API pass.
    pub(super) fields: FieldFilter,
}

/// Path of a customer's name. The id is in lower case, whatever the client sent.
pub fn target(customer: &CustomerId) -> String {
    format!("/customer/{customer}/name")
}

impl<T: Transport> Fetcher<T> {
    /// Runs a fetch. `demand`: that of the requests which wait for it.
    ///
    /// # Errors
    /// There is no response of the API that may be served.
    pub async fn run(&self, job: FetchJob, demand: &Demand) -> Result<Fetched, FetchError> {
        if let Some(entry) = self.cached(&job) {
            return Ok(Fetched::from_entry(&entry, FetchSource::Cache));
        }
        let found = self.look_up_shared(&job).await;
        let may_store = || self.is_current(&job) && demand.allows_storing();
        if let Some(entry) = found.fresh {
            if may_store() {
                self.shared.cache.insert(job.key, entry.clone());
            }
            return Ok(Fetched::from_entry(&entry, FetchSource::SharedTier(entry.clone())));
        }
        // A stale entry of another gateway serves like one of this gateway: for revalidation, and
        // as a response if the API fails.
        let stale =
            job.stale.clone().into_iter().chain(found.stale).max_by_key(|entry| entry.fetched_at);
        if let Some(entry) = stale.iter().find(|_| job.stale.is_none() && may_store()) {
            self.shared.cache.insert(job.key, entry.clone());
        }
        let requested_at = clock::now();
        let request = Request {
            kind: RequestKind::Fetch,
            target: &target(&job.key.customer),
            token: Some(&job.token),
            validators: stale.as_ref().and_then(|entry| entry.validators.as_deref()),
            origin: job.origin.as_ref(),
            queue_key: QueueKey::Caller(job.key.caller),
        };
        let result = self.request(request, job.key.level, &job.token, &job.request_id).await;
        if let (Some(tier), Ok(_)) = (&self.shared.tier, &result) {
            tier.record_fetch_time(clock::now().saturating_duration_since(requested_at));
        }
        let completion = Completion {
            fetcher: self,
            job: &job,
            demand,
            stale,
            lease: found.write_lease,
            requested_at,
        };
        match result {
            Ok(outcome) => completion.finish(outcome),
            Err(failure) => {
                completion.fail(&failure);
                Err(failure)
            }
        }
    }

    /// The entry that another fetch stored since this one was requested.
    fn cached(&self, job: &FetchJob) -> Option<Arc<Entry>> {
        // An entry that another fetch stored may come from the shared tier.
        if job.is_forced
            || job.bypass_shared_tier
            || !self.shared.generations.is_synced(clock::now())
        {
            return None;
        }
        let entry = self.shared.find_entry(&job.key, self.policy_id, job.generations);
        entry.filter(|entry| entry.freshness(clock::now()) == Freshness::Fresh)
    }

    /// Whether nothing that the response depends on has changed since the fetch began.
    fn is_current(&self, job: &FetchJob) -> bool {
        let FetchJob { key, caller, generations, .. } = job;
        self.shared.generations.entry_generations(&key.customer, &key.caller, caller.employee)
            == *generations
    }

    /// Looks up the shared tier, unless the client's request excludes it. Without a usable entry it
    /// takes the lease to write what the API responds.
    async fn look_up_shared(&self, job: &FetchJob) -> Lookup<Arc<Entry>> {
        let FetchJob { key, caller, generations, .. } = job;
        let is_enabled =
            !self.config.ttl.is_zero() && self.shared.generations.is_synced(clock::now());
        let Some(tier) = self.shared.tier.as_ref().filter(|_| is_enabled) else {
            return Lookup::skipped();
        };
        if self.shared.generations.is_unsettled(Some(&key.customer), &key.caller, caller.employee) {
            // Another gateway may have stored its entry before a write that it did not see.
            return Lookup::skipped();
        }
        let name = tier.keys.response(key);
        if job.is_forced || job.bypass_shared_tier {
            return Lookup { write_lease: tier.begin_write(&name).await, ..Lookup::skipped() };
        }
        let lookup = ResponseLookup {
            key,
            employee: &caller.identity.employee,
            generations: *generations,
            policy: &self.policy,
            config: &self.config,
            cache: &self.shared.cache,
            passed: &self.fields,
        };
        tier.get_or_lease(&name, |value, read| lookup.evaluate(tier, value, read)).await
    }

    /// Sends one request to the API and redacts the response for `level`.
    ///
    /// # Errors
    /// There is no response of the API that may be served.
    pub async fn request(
        &self,
        request: Request<'_>,
        level: AccessLevel,
        token: &Token,
        request_id: &str,
    ) -> Result<UpstreamOutcome, FetchError> {
        let (is_conditional, origin) = (request.validators.is_some(), request.origin);
        let started = clock::now();
        let response = self.shared.client.get(request).await;
        let duration = clock::now().saturating_duration_since(started);
        let response = response.map_err(|error| ApiFailure::from_exchange(error, duration))?;
        let exchange = ApiExchange { status: Some(response.status), duration };
        let failed = |error, cause| ApiFailure { error, cause, exchange: Some(exchange) };
        let unusable = |error| {
            let status = exchange.status.map(|status| status.as_u16());
            tracing::warn!(
                http.request.id = request_id,
                status,
                "the API sent a status that cannot be forwarded"
            );
            Err(failed(error, Some("status")).into())
        };
        self.shared.api_cors.learn(origin, &response.headers);
        let (status, options) = (response.status, connection_options(&response.headers));
        let fields = self.fields.stored(&response.headers, &options);
        let exchange_fields = self.fields.of_exchange(&response.headers, &options);
        let initial_age = initial_age(&response.headers);
        match status.as_u16() {
            401 => {
                let failure = failed(ApiError::InvalidToken, None);
                return Err(FetchError { failure, fields: exchange_fields });
            }
            304 if is_conditional => {
                return Ok(UpstreamOutcome::NotModified {
                    lifetime: lifetime(StatusCode::OK, &response.headers, &self.config, jitter()),
                    keeps_lifetime: has_no_freshness_info(&response.headers),
                    initial_age,
                    fields,
                    exchange_fields,
                    exchange,
                });
            }
            206 => return unusable(ApiError::PartialResponse),
            // A 304 that was not requested, or not a final status.
            ..200 | 304 | 600.. => return unusable(ApiError::InvalidResponse),
            _ => {}
        }
        let lifetime = lifetime(status, &response.headers, &self.config, jitter());
        let validators =
            Validators::from_headers(&response.headers).filter(|_| status == StatusCode::OK);
        let exchange_fields =
            match self.location(status, &response.headers, level, token, request_id) {
                Some(location) => exchange_fields.iter().cloned().chain([location]).collect(),
                None => exchange_fields,
            };
        let represented = self.represent(response, level, request_id).await;
        let Represented { representation, kind, is_own_error } = represented
            .map_err(|UnredactableBody { error, reason }| failed(error, Some(reason)))?;
        let is_storable = status != StatusCode::OK || kind == DocumentKind::Object;
        let lifetime =
            if is_storable { lifetime } else { lifetime.and(Err(NotStored::NotAnObject)) };
        Ok(UpstreamOutcome::Response {
            representation,
            is_own_error,
            validators,
            lifetime,
            initial_age,
            fields,
            exchange_fields,
            exchange,
        })
    }

    /// The `Location` of a redirect, unless it holds a credential, or a secret that this access
    /// level must not see.
    fn location(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        level: AccessLevel,
        token: &Token,
        request_id: &str,
    ) -> Option<(HeaderName, HeaderValue)> {
        let location = headers.get(LOCATION).filter(|_| status.is_redirection())?;
        let is_revealed = self.policy.reveals_to(level);
        let is_secret = |name: &str| !is_revealed && self.policy.is_secret_name(name.as_bytes());
        if holds_credential_or_secret(location.as_bytes(), token, is_secret) {
            let status = status.as_u16();
            tracing::warn!(
                http.request.id = request_id,
                status,
                "removed a Location of the API that holds a credential or secret"
            );
            return None;
        }
        Some((LOCATION, HeaderValue::from_bytes(location.as_bytes()).ok()?))
    }

    /// Redacts a response for `level`. An error status is kept although its body cannot be shown:
    /// the status says what happened, and most error pages are not JSON.
    async fn represent(
        &self,
        mut response: ApiResponse,
        level: AccessLevel,
        request_id: &str,
    ) -> Result<Represented, UnredactableBody> {
        let is_revealed = self.policy.reveals_to(level);
        let status = response.status;
        // Statuses without content, and the text of a redirect, which names its target and is not a
        // document.
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
            || (status.is_redirection() && !is_revealed)
        {
            response.body = Bytes::new();
        }
        if response.body.is_empty()
            && (status.is_redirection() || (status.is_success() && status != StatusCode::OK))
        {
            let representation = Representation::empty(status);
            return Ok(Represented {
                representation,
                kind: DocumentKind::NotJson,
                is_own_error: false,
            });
        }
        let own_type = response.headers.get(CONTENT_TYPE).filter(|_| is_revealed).cloned();
        match self.redact(response, level).await {
            Ok(redacted) => {
                let kind = redacted.kind();
                let representation = Representation::new(status, own_type.as_ref(), redacted);
                Ok(Represented { representation, kind, is_own_error: false })
            }
            Err(reason) => self.replace_unredactable(status, is_revealed, reason, request_id),
        }
    }

    /// Redacts a body. On failure, returns the reason as a label.
    async fn redact(
        &self,
        response: ApiResponse,
        level: AccessLevel,
    ) -> Result<Redacted, &'static str> {
        if has_content_coding(&response.headers) {
            return Err("content_coding");
        }
        let (policy, body) = (self.policy.clone(), response.body);
        let redacted = offload::run(body.len(), move || redact(&policy, level, body)).await;
        let redacted = redacted.map_err(|refusal| refusal.as_str())?;
        if !self.policy.reveals_to(level) {
            self.shared.metrics.count_redaction(level.as_str());
        }
        Ok(redacted)
    }

    /// The response in place of a body that cannot be redacted: an error in the API's shape with
    /// the API's error status, otherwise 502. A failure of the API is not a failure of the
    /// redaction.
    fn replace_unredactable(
        &self,
        status: StatusCode,
        is_revealed: bool,
        reason: &'static str,
        request_id: &str,
    ) -> Result<Represented, UnredactableBody> {
        let is_failure = is_failure(status);
        let code = status.as_u16();
        let has_nothing_to_redact = code >= 400 && reason == Reason::Empty.as_str();
        if is_failure || has_nothing_to_redact {
            // Not a warning: an outage would log one for each request.
            tracing::debug!(
                http.request.id = request_id,
                reason,
                status = code,
                "replaced the body of an error of the API"
            );
        } else {
            self.shared.metrics.count_redaction_failure(reason);
            tracing::warn!(
                http.request.id = request_id,
                reason,
                status = code,
                "failed to redact a response of the API"
            );
        }
        // Other error statuses may be stored.
        let request_id = if is_failure { request_id } else { "" };
        match code {
            400.. => Ok(Represented {
                representation: own_error(status, request_id),
                kind: DocumentKind::NotJson,
                is_own_error: is_failure,
            }),
            _ if is_revealed => Err(UnredactableBody { error: ApiError::InvalidResponse, reason }),
            _ => Err(UnredactableBody { error: ApiError::RedactionFailed, reason }),
        }
    }
}

/// The error in the API's shape that replaces a body of the API.
pub(super) fn own_error(status: StatusCode, request_id: &str) -> Representation {
    Representation::error(status, &error_body(status, request_id))
}

/// A response of the API that may be served.
struct Represented {
    representation: Representation,
    kind: DocumentKind,
    /// Whether the body is an error of the gateway's that names the request.
    is_own_error: bool,
}

/// A body that cannot be redacted.
struct UnredactableBody {
    error: ApiError,
    /// Label of metrics, and cause in the log.
    reason: &'static str,
}

/// The end of a fetch: stores the response or evicts what it makes outdated.
struct Completion<'a, T> {
    fetcher: &'a Fetcher<T>,
    job: &'a FetchJob,
    demand: &'a Demand,
    stale: Option<Arc<Entry>>,
    /// Lease to write the response to the shared tier.
    lease: Option<WriteLease>,
    /// Counts as the time of the response: the delay is part of its age (RFC 9111 section 4.2.3).
    requested_at: Instant,
}

impl<T: Transport> Completion<'_, T> {
    fn finish(self, outcome: UpstreamOutcome) -> Result<Fetched, FetchError> {
        match outcome {
            UpstreamOutcome::NotModified {
                lifetime,
                keeps_lifetime,
                initial_age,
                fields,
                exchange_fields,
                exchange,
            } => {
                // Only a request with the validators of a stale entry is answered with 304.
                let Some(entry) = self.stale.clone() else {
                    return Err(ApiError::InvalidResponse.into());
                };
                // A 304 changes only what it states (RFC 9111 section 3.2).
                let lifetime =
                    lifetime.map(|new| if keeps_lifetime { entry.lifetime() } else { new });
                let fields = entry.fields.updated(&fields);
                let representation = entry.representation.clone();
                let renewed = self.may_store(lifetime).map(|lifetime| {
                    let fetched = self.fetch_time(initial_age);
                    let validators = entry.validators.clone();
                    Entry::new(
                        representation.clone(),
                        validators,
                        fields.clone(),
                        fetched,
                        lifetime,
                        self.job.generations,
                    )
                });
                // The response serves this request, but not another one. A request's `no-store`
                // leaves the cached entry as it is.
                let is_outdated = !matches!(renewed, Err(NotStored::RequestNoStore));
                let (requested_at, source) = (self.requested_at, FetchSource::Revalidated);
                let is_stored = self.store_or_evict(renewed, is_outdated);
                if !is_stored {
                    back_off(Some(&entry));
                }
                Ok(Fetched {
                    representation,
                    is_own_error: false,
                    fields,
                    exchange_fields,
                    requested_at,
                    initial_age,
                    is_stored,
                    source,
                    exchange: Some(exchange),
                })
            }
            UpstreamOutcome::Response {
                mut representation,
                is_own_error,
                validators,
                lifetime,
                initial_age,
                fields,
                exchange_fields,
                exchange,
            } => {
                let entry = self.may_store(lifetime).map(|lifetime| {
                    representation = self.fetcher.shared.cache.intern(representation.clone());
                    let fetched = self.fetch_time(initial_age);
                    Entry::new(
                        representation.clone(),
                        validators,
                        fields.clone(),
                        fetched,
                        lifetime,
                        self.job.generations,
                    )
                });
                let is_outdated = self.is_outdated_by(&representation, &entry);
                let (requested_at, source, stale) =
                    (self.requested_at, FetchSource::Api, self.stale.clone());
                let is_stored = self.store_or_evict(entry, is_outdated);
                if !is_stored {
                    // Also after a success, so that a client's `no-cache` causes at most one
                    // request per second and entry.
                    back_off(stale.as_deref());
                }
                Ok(Fetched {
                    representation,
                    is_own_error,
                    fields,
                    exchange_fields,
                    requested_at,
                    initial_age,
                    is_stored,
                    source,
                    exchange: Some(exchange),
                })
            }
        }
    }

    /// Whether the cached entry may differ from what the API responds now. A request's `no-store`
    /// leaves an equal entry cached.
    fn is_outdated_by(
        &self,
        representation: &Representation,
        entry: &Result<Entry, NotStored>,
    ) -> bool {
        let status = representation.status();
        let lost_access = matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
        let is_same =
            self.stale.as_ref().is_some_and(|stale| stale.representation == *representation);
        (status.is_success() || status.is_redirection() || lost_access)
            && !(is_same && matches!(entry, Err(NotStored::RequestNoStore)))
    }

    fn fail(self, failure: &FetchError) {
        if failure.failure.error.is_caused_by_api() {
            back_off(self.stale.as_deref());
            return;
        }
        let (fetcher, caller) = (self.fetcher, self.job.key.caller);
        // The API responded, so the cached entry is outdated.
        self.evict();
        if failure.failure.error == ApiError::InvalidToken {
            // Nothing that was served for the token is valid any more.
            fetcher.shared.generations.invalidate(&Scope::Caller(caller));
            fetcher.shared.metrics.count_invalidation("caller", "unauthorized");
        }
    }

    fn fetch_time(&self, initial_age: Duration) -> FetchTime {
        FetchTime { at: self.requested_at, initial_age }
    }

    /// The lifetime, unless the response must not be stored: a change during the fetch may be
    /// missing from it, or every client that waits for it sent `no-store`.
    fn may_store(&self, lifetime: Result<Lifetime, NotStored>) -> Result<Lifetime, NotStored> {
        let lifetime = lifetime?;
        match (self.fetcher.is_current(self.job), self.demand.allows_storing()) {
            (false, _) => Err(NotStored::Changed),
            (true, false) => Err(NotStored::RequestNoStore),
            (true, true) => Ok(lifetime),
        }
    }

    /// Stores an entry in the cache and in the shared tier. Without one, evicts the cached entry if
    /// it is outdated. Returns whether it stored the entry.
    fn store_or_evict(self, entry: Result<Entry, NotStored>, is_outdated: bool) -> bool {
        match entry.map(Arc::new) {
            Ok(entry) => {
                let (cache, key) = (&self.fetcher.shared.cache, self.job.key);
                let shared = &self.fetcher.shared;
                if self.job.origin.is_some() && shared.api_cors.serves_every_origin(&entry.fields) {
                    // It serves every origin, and an entry for this one would be found first.
                    cache.remove(&key);
                    cache.insert(Key { policy: self.fetcher.policy_id, ..key }, entry.clone());
                } else {
                    cache.insert(key, entry.clone());
                }
                if let Some(lease) = self.lease {
                    lease.put_response(&entry);
                }
                true
            }
            Err(reason) => {
                if self.fetcher.shared.metrics.count_not_stored(reason) {
                    tracing::warn!(
                        http.request.id = self.job.request_id,
                        reason = reason.as_str(),
                        "did not store a response of the API; further ones are counted in cache_not_stored_total"
                    );
                }
                if is_outdated {
                    self.evict();
                }
                false
            }
        }
    }

    /// Removes the entry from the cache and from the shared tier.
    fn evict(self) {
        let (cache, key) = (&self.fetcher.shared.cache, self.job.key);
        cache.remove(&key);
        if self.job.origin.is_some() {
            cache.remove(&Key { policy: self.fetcher.policy_id, ..key });
        }
        if let Some(lease) = self.lease {
            lease.remove();
        }
    }
}

fn back_off(stale: Option<&Entry>) {
    if let Some(entry) = stale {
        entry.back_off(clock::now(), FAILURE_BACKOFF);
    }
}

/// A random number from 0 to 1. It protects nothing, so that the kernel need not be asked.
fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish() as u32;
    f64::from(random) / f64::from(u32::MAX)
}
