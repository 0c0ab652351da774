//! Fetching: one exchange with the API, redacted for its caller's role, and stored if it may be. It runs in a task of its
//! own and lives on when the caller that it began for has left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use crate::api::{AccessLevel, ApiError, CustomerId, Token};
use crate::cache::{
    Cache, Entry, EntryMarks, Generations, Key, Lifetime, Scope, Use, Validators, initial_age, is_silent, lifetime,
};
use crate::clock;
use crate::config;
use crate::identity::Caller;
use crate::redact::{Kind as DocumentKind, Policy, redact};
use crate::reply::Representation;
use crate::telemetry::Metrics;
use crate::upstream::{Answer, Client, Connections, Kind, Request, Transport};

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
}

/// What a fetch brought.
#[derive(Clone)]
pub struct Fetched {
    pub representation: Arc<Representation>,
    /// When the API was asked.
    pub at: Instant,
    /// How old it was by the API's own word, to which the time since then is added.
    pub initial_age: Duration,
    pub stored: bool,
    /// The API said that what was stored still holds.
    pub revalidated: bool,
}

/// Fetches, redacts and stores.
pub struct Fetcher<T = Connections> {
    pub client: Arc<Client<T>>,
    pub policy: Arc<Policy>,
    pub cache: Arc<Cache>,
    pub generations: Arc<Generations>,
    pub metrics: Arc<Metrics>,
    pub config: config::Cache,
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
        let Errand { key, caller, marks, stale, forced, .. } = &errand;
        // Who came just too late for the fetch before this one finds its answer here.
        if let Some(entry) =
            self.cache.get(key, *marks).filter(|entry| !forced && entry.usable(clock::now()) == Use::Fresh)
        {
            let (representation, initial_age) = (entry.representation.clone(), entry.initial_age);
            return Ok(Fetched { representation, at: entry.fetched_at, initial_age, stored: true, revalidated: false });
        }
        let validators = stale.as_ref().and_then(|entry| entry.validators.as_deref());
        // What the API says is as old as the question (RFC 9111 section 4.2.3: the delay counts).
        let at = clock::now();
        let result = self.ask(&target(&key.customer), key.level, &errand.token, validators).await;
        let unchanged = || self.generations.entry_marks(&key.customer, &key.caller, caller.employee) == *marks;
        match result {
            Ok(Asked::Still { lifetime, silent, initial_age }) => {
                // 304 is asked for with the validators of what is stored, and not otherwise.
                let Some(entry) = stale else { return Err(ApiError::BadGateway) };
                // What it does not say anew holds as it was said (RFC 9111 section 3.2).
                let lifetime = lifetime.map(|anew| if silent { entry.lifetime } else { anew });
                let representation = entry.representation.clone();
                let (validators, came) = (entry.validators.clone(), (at, initial_age));
                let stored = self.store(&errand, representation.clone(), validators, came, lifetime, unchanged());
                if !stored {
                    // It holds for this answer, and may not be kept for another.
                    self.cache.drop_entry(key);
                }
                Ok(Fetched { representation, at, initial_age, stored, revalidated: true })
            }
            Ok(Asked::Anew { representation, validators, lifetime, initial_age }) => {
                let representation = Arc::new(representation);
                let lost_access = matches!(representation.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
                let came = (at, initial_age);
                let stored = self.store(&errand, representation.clone(), validators, came, lifetime, unchanged());
                if !stored && (representation.status() == StatusCode::OK || lost_access) {
                    // What was stored is not what the API says now.
                    self.cache.drop_entry(key);
                }
                if !stored {
                    // Also of what is no failure: a caller who insists makes no more load than one question a second.
                    pause(stale.as_deref());
                }
                Ok(Fetched { representation, at, initial_age, stored, revalidated: false })
            }
            Err(error) if error.is_the_apis() => {
                pause(stale.as_deref());
                Err(error)
            }
            Err(error) => {
                // The API was asked, and what was stored is not what it says.
                self.cache.drop_entry(key);
                if error == ApiError::InvalidToken {
                    // The token is not what it was: neither is anything that was given for it.
                    self.generations.invalidate(&Scope::Caller(key.caller));
                    self.metrics.invalidated("caller", "unauthorized");
                }
                Err(error)
            }
        }
    }

    fn store(
        &self,
        errand: &Errand,
        representation: Arc<Representation>,
        validators: Option<Box<Validators>>,
        came: (Instant, Duration),
        lifetime: Option<Lifetime>,
        unchanged: bool,
    ) -> bool {
        let Some(lifetime) = lifetime.filter(|_| unchanged) else { return false };
        let entry = Entry::new(representation, validators, came, lifetime, errand.marks);
        self.cache.put(errand.key, Arc::new(entry));
        true
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
        let (representation, kind) = self.represent(answer, level)?;
        let storable = representation.status() != StatusCode::OK || kind == DocumentKind::Object;
        Ok(Asked::Anew { representation, validators, lifetime: lifetime.filter(|_| storable), initial_age })
    }

    fn represent(&self, answer: Answer, level: AccessLevel) -> Result<(Representation, DocumentKind), ApiError> {
        let revealed = self.policy.reveals_to(level);
        let own_type = answer.headers.get(CONTENT_TYPE).filter(|_| revealed).cloned();
        let refuse = |reason: &'static str| {
            self.metrics.redaction_failed(reason);
            tracing::warn!(reason, status = answer.status.as_u16(), "an answer of the API cannot be redacted safely");
            match (revealed, is_failure(answer.status)) {
                (true, _) => ApiError::BadGateway,
                (false, true) => ApiError::UnredactableFailure,
                (false, false) => ApiError::RedactionFailed,
            }
        };
        let mut codings = answer.headers.get_all(CONTENT_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(refuse("content_coding"));
        }
        let redacted = redact(&self.policy, level, answer.body).map_err(|refusal| refuse(refusal.as_str()))?;
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

/// 0 to 1, drawn anew each time.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.0, |random| f64::from(random) / f64::from(u32::MAX))
}
