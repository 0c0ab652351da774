//! Fetching: one exchange with the API, redacted for its caller's access level, and stored if it may be. It runs in a
//! separate task, which ends when no client waits for it any more.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::api::{AccessLevel, ApiError, CustomerId, Token, holds_credential_or_secret};
use crate::cache::{
    Cache, Demand, Entry, EntryMarks, Generations, Key, Lifetime, NotStored, Scope, Use, Validators, initial_age,
    is_silent, lifetime,
};
use crate::clock;
use crate::cluster::{Looked, Tier, Wanted, Writing};
use crate::config;
use crate::forward::nominated;
use crate::identity::Caller;
use crate::offload;
use crate::redact::{Kind as DocumentKind, Policy, redact};
use crate::reply::{ApiFields, PassedFields, Representation};
use crate::telemetry::Metrics;
use crate::upstream::{Answer, Client, Connections, Kind, Payer, Request, Transport, has_content_coding};

/// For how long the API is not asked again for an entry after it failed; the stale answer is given meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// What a fetch is for.
#[derive(Clone)]
pub struct Errand {
    pub key: Key,
    pub caller: Caller,
    pub token: Token,
    /// The generations when it began: what changed since is not stored.
    pub marks: EntryMarks,
    /// What is stored and stale, to be asked about rather than for.
    pub stale: Option<Arc<Entry>>,
    /// The caller wants the API's word, whatever is stored.
    pub forced: bool,
    /// The caller says how fresh it must be: another gateway's word may not do.
    pub particular: bool,
}

/// What a fetch brought.
#[derive(Clone)]
pub struct Fetched {
    pub representation: Representation,
    /// Fields of the API's that are sent with it, from memory too.
    pub fields: ApiFields,
    /// Fields of the API's that are sent with this exchange alone.
    pub exchange_fields: ApiFields,
    /// When the API was asked.
    pub at: Instant,
    /// How old it was by the API's own word, to which the time since then is added.
    pub initial_age: Duration,
    pub stored: bool,
    pub from: Source,
}

/// Where a fetch found its answer.
#[derive(Clone)]
pub enum Source {
    /// The API gave it.
    Api,
    /// The API said that what was stored still holds.
    Revalidated,
    /// Another fetch had stored it meanwhile.
    Memory,
    /// Another gateway of the fleet had it: the entry that was made of it.
    Fleet(Arc<Entry>),
}

impl Fetched {
    fn of(entry: &Entry, from: Source) -> Self {
        Fetched {
            representation: entry.representation.clone(),
            fields: entry.fields.clone(),
            exchange_fields: ApiFields::NONE,
            at: entry.fetched_at,
            initial_age: entry.initial_age(),
            stored: true,
            from,
        }
    }
}

/// A fetch that failed.
#[derive(Clone, Debug)]
pub struct FetchError {
    pub error: ApiError,
    /// Fields of the API's that are sent with the error, such as its `WWW-Authenticate`.
    pub fields: ApiFields,
}

impl From<ApiError> for FetchError {
    fn from(error: ApiError) -> Self {
        FetchError { error, fields: ApiFields::NONE }
    }
}

/// Fetches, redacts and stores.
pub struct Fetcher<T = Connections> {
    pub client: Arc<Client<T>>,
    pub policy: Arc<Policy>,
    pub cache: Arc<Cache>,
    pub generations: Arc<Generations>,
    pub metrics: Arc<Metrics>,
    pub config: config::Cache,
    /// Fields of the API's that pass.
    pub passed: PassedFields,
    /// What the fleet shares, if it does.
    pub tier: Option<Arc<Tier>>,
}

/// The path of a customer's name: ids in lower case, whichever way a caller spells them.
pub fn target(customer: &CustomerId) -> String {
    format!("/customer/{customer}/name")
}

impl<T: Transport> Fetcher<T> {
    /// Runs an errand. `demand`: of the requests that wait for it.
    ///
    /// # Errors
    /// The API cannot be asked, or what it answers cannot be given.
    pub async fn run(&self, errand: Errand, demand: &Demand) -> Result<Fetched, FetchError> {
        let Errand { key, caller, marks, forced, particular, .. } = &errand;
        // Who came just too late for the fetch before this one finds its answer here; who says how fresh it must be might
        // find another gateway's.
        let is_fresh = |entry: &Arc<Entry>| !forced && !particular && entry.usable(clock::now()) == Use::Fresh;
        let stored = || self.cache.get(key, *marks).filter(is_fresh);
        if let Some(entry) = self.generations.are_known(clock::now()).then(stored).flatten() {
            return Ok(Fetched::of(&entry, Source::Memory));
        }
        let unchanged = || self.generations.entry_marks(&key.customer, &key.caller, caller.employee) == *marks;
        let looked = self.look(&errand).await;
        if let Some(entry) = looked.usable {
            if unchanged() && demand.allows_storing() {
                self.cache.put(*key, entry.clone());
            }
            return Ok(Fetched::of(&entry, Source::Fleet(entry.clone())));
        }
        // What another gateway asked for and is stale serves as one's own: to ask about, and for when the API fails.
        let stale = errand.stale.clone().into_iter().chain(looked.stale).max_by_key(|entry| entry.fetched_at);
        if let Some(entry) = stale.iter().find(|_| errand.stale.is_none() && unchanged() && demand.allows_storing()) {
            self.cache.put(*key, entry.clone());
        }
        let writing = looked.writing;
        let validators = stale.as_ref().and_then(|entry| entry.validators.as_deref());
        // What the API says is as old as the question (RFC 9111 section 4.2.3: the delay counts).
        let at = clock::now();
        let target = target(&key.customer);
        let payer = Payer::Caller(key.caller);
        let request = Request { kind: Kind::Fetch, target: &target, token: Some(&errand.token), validators, payer };
        let result = self.ask(request, key.level, &errand.token).await;
        if let (Some(tier), Ok(_)) = (&self.tier, &result) {
            tier.fetched_in(clock::now().saturating_duration_since(at));
        }
        // A change that was seen meanwhile may be missing from the response. A client's `no-store` counts where no other
        // request waits.
        let storable = |lifetime: Result<Lifetime, NotStored>| {
            let lifetime = lifetime?;
            match (unchanged(), demand.allows_storing()) {
                (false, _) => Err(NotStored::Changed),
                (true, false) => Err(NotStored::RequestNoStore),
                (true, true) => Ok(lifetime),
            }
        };
        match result {
            Ok(Asked::Still { lifetime, silent, initial_age, fields, exchange_fields }) => {
                // 304 is asked for with the validators of what is stored, and not otherwise.
                let Some(entry) = stale else { return Err(ApiError::InvalidResponse.into()) };
                // What it does not repeat holds as it was said (RFC 9111 section 3.2).
                let lifetime = lifetime.map(|new| if silent { entry.lifetime() } else { new });
                let (representation, fields) = (entry.representation.clone(), entry.fields.updated(&fields));
                let (validators, came) = (entry.validators.clone(), (at, initial_age));
                let renewed = storable(lifetime).map(|lifetime| {
                    Entry::new(representation.clone(), validators, fields.clone(), came, lifetime, *marks)
                });
                // Otherwise it holds for this response, and may not be kept for another. A request's `no-store` leaves
                // what is stored as it is.
                let outdated = !matches!(renewed, Err(NotStored::RequestNoStore));
                let stored = self.keep_or_drop(&errand, renewed, outdated, writing);
                if !stored {
                    pause(Some(&entry));
                }
                Ok(Fetched {
                    representation,
                    fields,
                    exchange_fields,
                    at,
                    initial_age,
                    stored,
                    from: Source::Revalidated,
                })
            }
            Ok(Asked::Anew { mut representation, validators, lifetime, initial_age, fields, exchange_fields }) => {
                let came = (at, initial_age);
                let entry = storable(lifetime).map(|lifetime| {
                    representation = self.cache.one_of(representation.clone());
                    Entry::new(representation.clone(), validators, fields.clone(), came, lifetime, *marks)
                });
                // What was stored may not be what the API says now; a request's `no-store` leaves it where it is.
                let status = representation.status();
                let lost_access = matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
                let is_same = stale.as_ref().is_some_and(|stale| stale.representation == representation);
                let outdated = (status.is_success() || status.is_redirection() || lost_access)
                    && !(is_same && matches!(entry, Err(NotStored::RequestNoStore)));
                let stored = self.keep_or_drop(&errand, entry, outdated, writing);
                if !stored {
                    // Also of what is no failure: a caller that insists causes at most one request a second.
                    pause(stale.as_deref());
                }
                Ok(Fetched { representation, fields, exchange_fields, at, initial_age, stored, from: Source::Api })
            }
            Err(failed) if failed.error.is_caused_by_api() => {
                pause(stale.as_deref());
                Err(failed)
            }
            Err(failed) => {
                // The API was asked, and what was stored is not what it says.
                self.drop_outdated(&errand, writing);
                if failed.error == ApiError::InvalidToken {
                    // The token is not what it was: neither is anything that was given for it.
                    self.generations.invalidate(&Scope::Caller(key.caller));
                    self.metrics.invalidated("caller", "unauthorized");
                }
                Err(failed)
            }
        }
    }

    /// Looks what the fleet has, unless the caller wants otherwise; where it has nothing, it is told what the API says now.
    async fn look(&self, errand: &Errand) -> Looked<Arc<Entry>> {
        let wanted = !self.config.ttl.is_zero() && self.generations.are_known(clock::now());
        let Some(tier) = self.tier.as_ref().filter(|_| wanted) else { return Looked::nothing() };
        let Errand { key, caller, marks, .. } = errand;
        if self.generations.is_unsettled(Some(&key.customer), &key.caller, caller.employee) {
            // What another gateway stored may be from before a write that it did not see.
            return Looked::nothing();
        }
        let name = tier.names.answer(key);
        if errand.forced || errand.particular {
            return Looked { writing: tier.begin(&name).await, ..Looked::nothing() };
        }
        let employee = &caller.identity.employee;
        let wanted = Wanted {
            key,
            employee,
            marks: *marks,
            policy: &self.policy,
            config: &self.config,
            cache: &self.cache,
            passed: &self.passed,
        };
        tier.look(&name, |value, seen| wanted.judge(tier, value, seen)).await
    }

    /// Stores an entry, in memory and in the shared tier; or drops what is stored, if it is `outdated`. Whether it stored.
    fn keep_or_drop(
        &self,
        errand: &Errand,
        entry: Result<Entry, NotStored>,
        outdated: bool,
        writing: Option<Writing>,
    ) -> bool {
        match entry.map(Arc::new) {
            Ok(entry) => {
                self.cache.put(errand.key, entry.clone());
                if let Some(writing) = writing {
                    writing.put_answer(&entry);
                }
                true
            }
            Err(reason) => {
                if self.metrics.not_stored(reason) {
                    tracing::warn!(
                        reason = reason.as_str(),
                        "did not store a response of the API; further ones are counted in cache_not_stored_total"
                    );
                }
                if outdated {
                    self.drop_outdated(errand, writing);
                }
                false
            }
        }
    }

    fn drop_outdated(&self, errand: &Errand, writing: Option<Writing>) {
        self.cache.drop_entry(&errand.key);
        if let Some(writing) = writing {
            writing.remove();
        }
    }

    /// One exchange with the API, and what its caller may see of the response.
    ///
    /// # Errors
    /// The API cannot be asked, or what it answers cannot be given.
    pub async fn ask(&self, request: Request<'_>, level: AccessLevel, token: &Token) -> Result<Asked, FetchError> {
        let asks_whether_changed = request.validators.is_some();
        let answer = self.client.get(request).await.map_err(|error| {
            tracing::warn!(reason = error.as_str(), cause = error.cause(), "failed to fetch a customer's name");
            ApiError::from(error)
        })?;
        let (status, nominated) = (answer.status, nominated(&answer.headers));
        let fields = self.passed.stored(&answer.headers, &nominated);
        let exchange_fields = self.passed.of_exchange(&answer.headers, &nominated);
        let initial_age = initial_age(&answer.headers);
        match status.as_u16() {
            401 => return Err(FetchError { error: ApiError::InvalidToken, fields: exchange_fields }),
            304 if asks_whether_changed => {
                return Ok(Asked::Still {
                    lifetime: lifetime(StatusCode::OK, &answer.headers, &self.config, jitter()),
                    silent: is_silent(&answer.headers),
                    initial_age,
                    fields,
                    exchange_fields,
                });
            }
            206 => return Err(refused(status, ApiError::PartialResponse)),
            // Unasked, or no final status.
            ..200 | 304 | 600.. => return Err(refused(status, ApiError::InvalidResponse)),
            _ => {}
        }
        let lifetime = lifetime(status, &answer.headers, &self.config, jitter());
        let validators = Validators::of(&answer.headers).filter(|_| status == StatusCode::OK);
        let exchange_fields = match self.location(status, &answer.headers, level, token) {
            Some(location) => exchange_fields.iter().cloned().chain([location]).collect(),
            None => exchange_fields,
        };
        let (representation, kind) = self.represent(answer, level).await?;
        let storable = status != StatusCode::OK || kind == DocumentKind::Object;
        let lifetime = if storable { lifetime } else { lifetime.and(Err(NotStored::NotAnObject)) };
        Ok(Asked::Anew { representation, validators, lifetime, initial_age, fields, exchange_fields })
    }

    /// The `Location` of a redirect, unless it holds a credential, or a secret that this access level must not see.
    fn location(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        level: AccessLevel,
        token: &Token,
    ) -> Option<(HeaderName, HeaderValue)> {
        let location = headers.get(LOCATION).filter(|_| status.is_redirection())?;
        let revealed = self.policy.reveals_to(level);
        let is_secret = |name: &str| !revealed && self.policy.is_secret_name(name.as_bytes());
        if holds_credential_or_secret(location.as_bytes(), token, is_secret) {
            tracing::warn!(status = status.as_u16(), "removed a Location of the API that holds a credential or secret");
            return None;
        }
        Some((LOCATION, HeaderValue::from_bytes(location.as_bytes()).ok()?))
    }

    async fn represent(
        &self,
        mut answer: Answer,
        level: AccessLevel,
    ) -> Result<(Representation, DocumentKind), ApiError> {
        let revealed = self.policy.reveals_to(level);
        let status = answer.status;
        // What has no content by its status, and the text of a redirect, which names its target and is no document.
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
            || (status.is_redirection() && !revealed)
        {
            answer.body = Bytes::new();
        }
        if answer.body.is_empty() && (status.is_redirection() || (status.is_success() && status != StatusCode::OK)) {
            return Ok((Representation::empty(status), DocumentKind::NotJson));
        }
        let own_type = answer.headers.get(CONTENT_TYPE).filter(|_| revealed);
        let refuse = |reason: &'static str| {
            self.metrics.redaction_failed(reason);
            tracing::warn!(reason, status = answer.status.as_u16(), "failed to redact a response of the API");
            match (revealed, is_failure(answer.status)) {
                (true, _) => ApiError::InvalidResponse,
                (false, true) => ApiError::UnredactableFailure,
                (false, false) => ApiError::RedactionFailed,
            }
        };
        if has_content_coding(&answer.headers) {
            return Err(refuse("content_coding"));
        }
        let (policy, body) = (self.policy.clone(), answer.body);
        let redacted = offload::run(body.len(), move || redact(&policy, level, body)).await;
        let redacted = redacted.map_err(|refusal| refuse(refusal.as_str()))?;
        if !revealed {
            self.metrics.redacted(level.as_str());
        }
        let kind = redacted.kind();
        Ok((Representation::new(answer.status, own_type, redacted), kind))
    }
}

/// A failure of the API's that a stale answer is better than, and that asking again at once would make worse.
pub fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The API failed just now.
fn pause(stale: Option<&Entry>) {
    if let Some(entry) = stale {
        entry.pause(clock::now(), PAUSE);
    }
}

fn refused(status: StatusCode, error: ApiError) -> FetchError {
    tracing::warn!(status = status.as_u16(), "the API sent a status that cannot be forwarded");
    error.into()
}

/// What the API said.
pub enum Asked {
    /// What is stored still holds, for so long; or for as long as was said before, where it is `silent`.
    Still {
        lifetime: Result<Lifetime, NotStored>,
        silent: bool,
        initial_age: Duration,
        fields: ApiFields,
        exchange_fields: ApiFields,
    },
    Anew {
        representation: Representation,
        validators: Option<Box<Validators>>,
        lifetime: Result<Lifetime, NotStored>,
        initial_age: Duration,
        fields: ApiFields,
        exchange_fields: ApiFields,
    },
}

/// 0 to 1, drawn anew each time: nothing is guarded by it, so that the kernel need not be asked.
fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish() as u32;
    f64::from(random) / f64::from(u32::MAX)
}
