//! Fetching: one exchange with the API, redacted for its caller's role, and stored if it may be. It runs in a task of its
//! own and lives on when the caller that it began for has left.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::api::{AccessLevel, ApiError, CustomerId, Token};
use crate::cache::{
    Cache, Entry, EntryMarks, Generations, Key, Lifetime, Scope, Use, Validators, initial_age, is_silent, lifetime,
};
use crate::clock;
use crate::cluster::{Looked, Tier, Wanted, Writing};
use crate::config;
use crate::identity::Caller;
use crate::offload;
use crate::redact::{Kind as DocumentKind, Policy, redact};
use crate::reply::Representation;
use crate::telemetry::Metrics;
use crate::upstream::{Answer, Client, Connections, Kind, Request, Transport, has_content_coding};

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
        let (representation, at, initial_age) = (entry.representation.clone(), entry.fetched_at, entry.initial_age());
        Fetched { representation, at, initial_age, stored: true, from }
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
    /// What the fleet shares, if it does.
    pub tier: Option<Arc<Tier>>,
}

/// The path of a customer's name: ids in lower case, whichever way a caller spells them.
pub fn target(customer: &CustomerId) -> String {
    format!("/customer/{customer}/name")
}

impl<T: Transport> Fetcher<T> {
    /// Runs an errand.
    ///
    /// # Errors
    /// The API cannot be asked, or what it answers cannot be given.
    pub async fn run(&self, errand: Errand) -> Result<Fetched, ApiError> {
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
            if unchanged() {
                self.cache.put(*key, entry.clone());
            }
            return Ok(Fetched::of(&entry, Source::Fleet(entry.clone())));
        }
        // What another gateway asked for and is stale serves as one's own: to ask about, and for when the API fails.
        let stale = errand.stale.clone().into_iter().chain(looked.stale).max_by_key(|entry| entry.fetched_at);
        if let Some(entry) = stale.iter().find(|_| errand.stale.is_none() && unchanged()) {
            self.cache.put(*key, entry.clone());
        }
        let writing = looked.writing;
        let validators = stale.as_ref().and_then(|entry| entry.validators.as_deref());
        // What the API says is as old as the question (RFC 9111 section 4.2.3: the delay counts).
        let at = clock::now();
        let result = self.ask(&target(&key.customer), key.level, &errand.token, validators).await;
        if let (Some(tier), Ok(_)) = (&self.tier, &result) {
            tier.fetched_in(clock::now().saturating_duration_since(at));
        }
        match result {
            Ok(Asked::Still { lifetime, silent, initial_age }) => {
                // 304 is asked for with the validators of what is stored, and not otherwise.
                let Some(entry) = stale else { return Err(ApiError::BadGateway) };
                // What it does not say anew holds as it was said (RFC 9111 section 3.2).
                let lifetime = lifetime.map(|anew| if silent { entry.lifetime() } else { anew });
                let representation = entry.representation.clone();
                let (validators, came) = (entry.validators.clone(), (at, initial_age));
                let stored = lifetime
                    .filter(|_| unchanged())
                    .map(|lifetime| Entry::new(representation.clone(), validators, came, lifetime, *marks));
                // Otherwise it holds for this answer, and may not be kept for another.
                let stored = self.keep_or_drop(&errand, stored, true, writing);
                Ok(Fetched { representation, at, initial_age, stored, from: Source::Revalidated })
            }
            Ok(Asked::Anew { mut representation, validators, lifetime, initial_age }) => {
                let lost_access = matches!(representation.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
                let came = (at, initial_age);
                let stored = lifetime.filter(|_| unchanged()).map(|lifetime| {
                    representation = self.cache.one_of(representation.clone());
                    Entry::new(representation.clone(), validators, came, lifetime, *marks)
                });
                // What was stored may not be what the API says now.
                let outdated = representation.status() == StatusCode::OK || lost_access;
                let stored = self.keep_or_drop(&errand, stored, outdated, writing);
                if !stored {
                    // Also of what is no failure: a caller who insists makes no more load than one question a second.
                    pause(stale.as_deref());
                }
                Ok(Fetched { representation, at, initial_age, stored, from: Source::Api })
            }
            Err(error) if error.is_the_apis() => {
                pause(stale.as_deref());
                Err(error)
            }
            Err(error) => {
                // The API was asked, and what was stored is not what it says.
                self.keep_or_drop(&errand, None, true, writing);
                if error == ApiError::InvalidToken {
                    // The token is not what it was: neither is anything that was given for it.
                    self.generations.invalidate(&Scope::Caller(key.caller));
                    self.metrics.invalidated("caller", "unauthorized");
                }
                Err(error)
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
        let wanted =
            Wanted { key, employee, marks: *marks, policy: &self.policy, config: &self.config, cache: &self.cache };
        tier.look(&name, |value, seen| wanted.judge(tier, value, seen)).await
    }

    /// Stores an entry, here and for the fleet; or drops what is stored, if it is `outdated`. Tells which.
    fn keep_or_drop(&self, errand: &Errand, entry: Option<Entry>, outdated: bool, writing: Option<Writing>) -> bool {
        match entry.map(Arc::new) {
            Some(entry) => {
                self.cache.put(errand.key, entry.clone());
                if let Some(writing) = writing {
                    writing.put_answer(&entry);
                }
                true
            }
            None => {
                if outdated {
                    self.cache.drop_entry(&errand.key);
                    if let Some(writing) = writing {
                        writing.remove();
                    }
                }
                false
            }
        }
    }

    /// One exchange with the API, and what its caller may see of the answer.
    ///
    /// # Errors
    /// The API cannot be asked, or what it answers cannot be given.
    pub async fn ask(
        &self,
        target: &str,
        level: AccessLevel,
        token: &Token,
        validators: Option<&Validators>,
    ) -> Result<Asked, ApiError> {
        let request = Request { kind: Kind::Fetch, target, token: Some(token), validators };
        let answer = self.client.get(request).await.map_err(|error| {
            tracing::warn!(reason = error.as_str(), "a customer's name could not be fetched");
            ApiError::from(error)
        })?;
        match answer.status.as_u16() {
            401 => return Err(ApiError::InvalidToken),
            304 if validators.is_some() => {
                return Ok(Asked::Still {
                    lifetime: lifetime(StatusCode::OK, &answer.headers, &self.config, jitter()),
                    silent: is_silent(&answer.headers),
                    initial_age: initial_age(&answer.headers),
                });
            }
            200 | 400 | 402..=599 => {}
            // Redirects are not followed, and a part or nothing at all is not the answer.
            status => {
                tracing::warn!(status, "the API answered with a status that cannot be given");
                return Err(ApiError::BadGateway);
            }
        }
        let lifetime = lifetime(answer.status, &answer.headers, &self.config, jitter());
        let validators = Validators::of(&answer.headers).filter(|_| answer.status == StatusCode::OK);
        let initial_age = initial_age(&answer.headers);
        let (representation, kind) = self.represent(answer, level).await?;
        let storable = representation.status() != StatusCode::OK || kind == DocumentKind::Object;
        Ok(Asked::Anew { representation, validators, lifetime: lifetime.filter(|_| storable), initial_age })
    }

    async fn represent(&self, answer: Answer, level: AccessLevel) -> Result<(Representation, DocumentKind), ApiError> {
        let revealed = self.policy.reveals_to(level);
        let own_type = answer.headers.get(CONTENT_TYPE).filter(|_| revealed);
        let refuse = |reason: &'static str| {
            self.metrics.redaction_failed(reason);
            tracing::warn!(reason, status = answer.status.as_u16(), "an answer of the API cannot be redacted safely");
            match (revealed, is_failure(answer.status)) {
                (true, _) => ApiError::BadGateway,
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

/// What the API said.
pub enum Asked {
    /// What is stored still holds, for so long; or for as long as was said before, where it is `silent`.
    Still { lifetime: Option<Lifetime>, silent: bool, initial_age: Duration },
    Anew {
        representation: Representation,
        validators: Option<Box<Validators>>,
        lifetime: Option<Lifetime>,
        initial_age: Duration,
    },
}

/// 0 to 1, drawn anew each time: nothing is guarded by it, so that the kernel need not be asked.
fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish() as u32;
    f64::from(random) / f64::from(u32::MAX)
}
