//! The story of an intercepted request, one line a step, with no word of pingora in it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

use crate::api::{
    AccessLevel, ApiError, Change, Credential, CredentialError, CustomerId, Query, Token, find_credential,
};
use crate::cache::{
    Boarded, Cache, CacheControl, CallerId, CallerIds, Entry, EntryMarks, Flights, Generations, Joining, Key, Scope,
    Use, Waiter,
};
use crate::clock;
use crate::cluster::Tier;
use crate::config::Config;
use crate::fetch::{Asked, Errand, FetchError, Fetched, Fetcher, Source, is_failure, target};
use crate::identity::{Caller, Identities};
use crate::near::{Found, Near, Wanted};
use crate::redact::Policy;
use crate::reply::{
    ApiFields, CacheStatus, Content, Cors, Forwarded, PassedFields, Reply, Representation, if_none_match, names,
};
use crate::telemetry::{Metrics, Record};
use crate::upstream::{self, Circuit, Client, Connections, Payer, Transport, UpstreamError};

/// A caller's `no-cache` is obeyed once in this time for each entry: more would be load on the API that any caller could make.
const FORCED_EVERY: Duration = Duration::from_secs(1);

/// Fetches under way, by what they are for, the generations when they began, and whether another gateway's word will do: who
/// says how fresh it must be does not join those for whom it does.
type Flying = Flights<FlightKey, Result<Fetched, FetchError>>;
type FlightKey = (Key, EntryMarks, bool);

/// Everything that answers intercepted requests.
pub struct Gateway<T = Connections> {
    pub cache: Arc<Cache>,
    pub identities: Arc<Identities<T>>,
    pub metrics: Arc<Metrics>,
    pub cors: Cors,
    generations: Arc<Generations>,
    callers: Arc<CallerIds>,
    flights: Arc<Flying>,
    fetcher: Arc<Fetcher<T>>,
    near: Arc<Near>,
    policy_id: u64,
    cookie: Option<String>,
}

/// An intercepted request: `GET` or `HEAD` of a customer's name.
pub struct Ask<'a> {
    pub customer: CustomerId,
    pub query: &'a Query<'a>,
    pub headers: &'a HeaderMap,
    /// The caller's address, as far as trusted proxies tell.
    pub address: IpAddr,
    /// It announces a body, which this request has no use for.
    pub has_body: bool,
}

/// An intercepted request without a body and other query parameters than `token`, whose credential was found.
pub struct FastPathRequest<'a> {
    pub customer: CustomerId,
    /// The credential that decides.
    pub token: Cow<'a, str>,
    pub address: IpAddr,
    pub if_none_match: Option<&'a [u8]>,
    /// What the client's `Cache-Control` and `Pragma` require.
    pub wants: CacheControl,
}

/// What a request that may be answered from the cache says, beside who sends it.
struct Wish<'a> {
    customer: CustomerId,
    wants: CacheControl,
    held: Held<'a>,
}

/// Where it stands which answers a caller holds already.
#[derive(Clone, Copy)]
enum Held<'a> {
    Fields(&'a HeaderMap),
    Value(Option<&'a [u8]>),
}

impl Held<'_> {
    fn names(self, representation: &Representation) -> bool {
        match self {
            Held::Fields(headers) => if_none_match(headers, representation.etag()),
            Held::Value(value) => value.is_some_and(|value| names(value, representation.etag())),
        }
    }
}

/// What a gateway is made of, beside its configuration.
pub struct Parts<T = Connections> {
    pub client: Arc<Client<T>>,
    pub policy: Arc<Policy>,
    pub callers: CallerIds,
    pub metrics: Arc<Metrics>,
    /// What the fleet shares, if it does.
    pub tier: Option<Arc<Tier>>,
}

/// What outlives a change of configuration.
struct Kept<T> {
    cache: Arc<Cache>,
    identities: Arc<Identities<T>>,
    metrics: Arc<Metrics>,
    generations: Arc<Generations>,
    callers: Arc<CallerIds>,
    flights: Arc<Flying>,
    near: Arc<Near>,
    client: Arc<Client<T>>,
    tier: Option<Arc<Tier>>,
}

impl<T: Transport> Gateway<T> {
    pub fn new(config: &Config, parts: Parts<T>) -> Self {
        let Parts { client, policy, callers, metrics, tier } = parts;
        let generations = Arc::new(Generations::default());
        let evictions = metrics.clone();
        let evicted = move |cause, count| evictions.evicted(cause, count);
        let cache = Arc::new(Cache::new(config.cache.max_bytes, config.cache.longest(), evicted));
        let identities =
            Identities::new(&config.identity, client.clone(), generations.clone(), metrics.clone(), tier.clone());
        let (identities, callers) = (Arc::new(identities), Arc::new(callers));
        let (flights, near) = (Arc::default(), Arc::default());
        let kept = Kept { cache, identities, metrics, generations, callers, flights, near, client, tier };
        Self::of(kept, config, policy)
    }

    /// The same gateway by another configuration: what is stored, known and under way is kept. What was redacted by
    /// another policy is not found any more.
    pub fn reconfigured(&self, config: &Config, policy: Arc<Policy>) -> Self {
        self.identities.reconfigure(&config.identity);
        let kept = Kept {
            cache: self.cache.clone(),
            identities: self.identities.clone(),
            metrics: self.metrics.clone(),
            generations: self.generations.clone(),
            callers: self.callers.clone(),
            flights: self.flights.clone(),
            near: self.near.clone(),
            client: self.fetcher.client.clone(),
            tier: self.fetcher.tier.clone(),
        };
        Self::of(kept, config, policy)
    }

    fn of(kept: Kept<T>, config: &Config, policy: Arc<Policy>) -> Self {
        let Kept { cache, identities, metrics, generations, callers, flights, near, client, tier } = kept;
        let cors = Cors::new(&config.cors, &config.cache.keep_fields);
        let passed = PassedFields::new(&config.cache.keep_fields, !cors.is_on());
        // What is stored under other rules of what may be seen or passed is not found.
        let policy_id = policy.fingerprint() ^ passed.fingerprint();
        let fetcher = Fetcher {
            client,
            tier,
            policy,
            cache: cache.clone(),
            generations: generations.clone(),
            metrics: metrics.clone(),
            config: config.cache.clone(),
            passed,
        };
        Gateway {
            cache,
            identities,
            metrics,
            cors,
            generations,
            callers,
            flights,
            fetcher: Arc::new(fetcher),
            near,
            policy_id,
            cookie: config.identity.cookie.clone(),
        }
    }

    /// Answers an intercepted request; what went wrong is an answer too.
    pub async fn answer(&self, ask: &Ask<'_>, record: &mut Record) -> Reply {
        let told = self.tell(ask, record).await;
        settled(told, record)
    }

    /// Responds to a request for which [`Gateway::try_cached`] has no response.
    pub async fn answer_uncached(&self, request: &FastPathRequest<'_>, caller: CallerId, record: &mut Record) -> Reply {
        let result = self.serve_uncached(request, caller, record).await;
        settled(result, record)
    }

    /// Who is calling, what is asked, is it here, fetch it, may they see it, answer.
    async fn tell(&self, ask: &Ask<'_>, record: &mut Record) -> Result<Reply, ApiError> {
        let token = find_credential(ask.headers, ask.query, self.cookie.as_deref())?.token;
        let caller = self.identify(self.callers.of(token.expose()), &token, ask.address, record).await?;
        if ask.has_body || !ask.query.is_plain() {
            return self.bypass(ask, &caller, &token).await;
        }
        let (wants, held) = (CacheControl::of_request(ask.headers), Held::Fields(ask.headers));
        self.grant(&Wish { customer: ask.customer, wants, held }, caller, token).await
    }

    async fn serve_uncached(
        &self,
        request: &FastPathRequest<'_>,
        caller: CallerId,
        record: &mut Record,
    ) -> Result<Reply, ApiError> {
        let FastPathRequest { customer, ref token, address, if_none_match, wants } = *request;
        let token = Token::parse(token.as_bytes()).ok_or(CredentialError::Malformed)?;
        let caller = self.identify(caller, &token, address, record).await?;
        self.grant(&Wish { customer, wants, held: Held::Value(if_none_match) }, caller, token).await
    }

    /// What is stored, or what the API says.
    async fn grant(&self, wish: &Wish<'_>, caller: Caller, token: Token) -> Result<Reply, ApiError> {
        // Asking who it is may have taken as long as the API did, and what is stored has aged meanwhile.
        let now = clock::now();
        let Wish { customer, wants, held } = *wish;
        let key = Key { caller: caller.id, level: caller.identity.level, customer, policy: self.policy_id };
        let marks = self.generations.entry_marks(&key.customer, &key.caller, caller.employee);
        // Not while changes may be made that are not heard of here.
        let stored = self.generations.are_known(now).then(|| self.cache.get(&key, marks)).flatten();
        let plan = stored.as_deref().map_or(Plan::Fetch(Forwarded::UriMiss), |entry| plan(entry, &wants, now));
        let says_how_fresh = wants.no_cache || wants.max_age.is_some() || wants.min_fresh.is_some();
        let particular = self.fetcher.tier.is_some() && says_how_fresh;
        let mut errand = Errand { key, caller, token, marks, stale: stored.clone(), forced: false, particular };
        match (plan, stored) {
            (Plan::Hit, Some(entry)) => Ok(stored_reply(held, &entry, now, CacheStatus::Hit { ttl: entry.ttl(now) })),
            (Plan::Refresh, Some(entry)) => {
                if !entry.is_paused(now) {
                    // No client waits for it: the next request finds its response.
                    drop(self.send(errand, Joining { store: !wants.no_store, ..Joining::BACKGROUND }));
                }
                self.metrics.stale_served("revalidating");
                Ok(stored_reply(held, &entry, now, CacheStatus::Revalidating { ttl: entry.ttl(now) }))
            }
            (Plan::StaleIfError, Some(entry)) => Ok(self.stale_if_error(held, &entry, now)),
            (Plan::Fetch(_), _) if wants.only_if_cached => Err(ApiError::OnlyIfCached),
            (Plan::Fetch(why), stored) => {
                errand.forced = why == Forwarded::Request;
                let joining = Joining { store: !wants.no_store, ..Joining::WAITING };
                if let Some(entry) =
                    stored.filter(|entry| self.circuit() != Circuit::Closed && entry.usable_if_error(now))
                {
                    // The API is known to be down. Where this fetch finds out whether it is back, no client waits for it.
                    drop(self.send(errand, Joining { in_background: true, ..joining }));
                    return Ok(self.stale_if_error(held, &entry, now));
                }
                self.fetch(held, errand, why, joining).await
            }
            (_, None) => Err(ApiError::Internal),
        }
    }

    /// The cached response: fresh, for a caller whose validation is cached too, and with nothing to
    /// be fetched in the background. Nothing is counted.
    ///
    /// # Errors
    /// [`Gateway::answer_uncached`] must respond, for this caller.
    pub fn try_cached(&self, request: &FastPathRequest<'_>, now: Instant) -> Result<(AccessLevel, Reply), CallerId> {
        let FastPathRequest { customer, ref token, if_none_match, ref wants, .. } = *request;
        let caller = self.callers.of(token);
        let address = self.identities.address(request.address);
        let wanted = Wanted { caller, customer, address, policy: self.policy_id };
        let digest = self.cache.digest(&caller, &customer);
        let (level, entry) = self
            .near
            .find(&wanted, digest, now, |found| self.still_at_hand(&wanted, digest, found, now))
            .or_else(|| self.look_up(&wanted, digest, now))
            .ok_or(caller)?;
        let ttl = entry.ttl(now);
        if *wants != CacheControl::default() && !wants.accepts(entry.age(now).as_secs(), ttl) {
            return Err(caller);
        }
        Ok((level, stored_reply(Held::Value(if_none_match), &entry, now, CacheStatus::Hit { ttl })))
    }

    /// A fresh answer for a caller who is known.
    fn look_up(&self, wanted: &Wanted, digest: u64, now: Instant) -> Option<(AccessLevel, Arc<Entry>)> {
        let Wanted { caller, customer, address, policy } = *wanted;
        let (vouched, identity_count) = self.identities.at_hand(caller, address, now)?;
        let level = vouched.level();
        let marks = self.generations.entry_marks(&customer, &caller, vouched.employee());
        let entry_count = self.cache.renewals(digest);
        let entry = self.cache.get(&Key { caller, level, customer, policy }, marks);
        let entry = entry.filter(|entry| entry.usable(now) == Use::Fresh)?;
        self.near.keep(
            wanted,
            digest,
            now,
            Found { vouched, identity_count, entry: Arc::downgrade(&entry), entry_count },
        );
        Some((level, entry))
    }

    /// The same, if it is what looking it up would give.
    fn still_at_hand(
        &self,
        wanted: &Wanted,
        digest: u64,
        found: &Found,
        now: Instant,
    ) -> Option<(AccessLevel, Arc<Entry>)> {
        let Found { vouched, identity_count, entry, entry_count } = found;
        if !self.identities.still_at_hand(vouched, *identity_count, now) || self.cache.renewals(digest) != *entry_count
        {
            return None;
        }
        let entry = entry.upgrade()?;
        let marks = self.generations.entry_marks(&wanted.customer, &wanted.caller, vouched.employee());
        (entry.marks == marks && entry.usable(now) == Use::Fresh).then(|| (vouched.level(), entry))
    }

    /// Waits for the API's answer; a stale one may serve once more where the API gives none.
    async fn fetch(&self, held: Held<'_>, errand: Errand, why: Forwarded, joining: Joining) -> Result<Reply, ApiError> {
        let (key, employee, stale) = (errand.key, errand.caller.employee, errand.stale.clone());
        let (boarded, fetching) = self.send(errand, joining);
        let fetched = fetching.result().await.unwrap_or(Err(ApiError::Internal.into()));
        let now = clock::now();
        let failed = match &fetched {
            Err(failed) => failed.error.is_caused_by_api(),
            Ok(fetched) => is_failure(fetched.representation.status()),
        };
        // Not if a change has been seen meanwhile: then it is not stale but wrong.
        let holds = |entry: &Entry| {
            entry.usable_if_error(now)
                && entry.marks == self.generations.entry_marks(&key.customer, &key.caller, employee)
        };
        if failed {
            // Or one that the fleet had, and that the fetch left for this.
            let left = || {
                let marks = self.generations.entry_marks(&key.customer, &key.caller, employee);
                self.fetcher.tier.as_ref().filter(|_| self.generations.are_known(now))?;
                self.cache.get(&key, marks).filter(|entry| entry.usable(now) != Use::Fresh)
            };
            if let Some(entry) = stale.or_else(left).filter(|entry| holds(entry)) {
                return Ok(self.stale_if_error(held, &entry, now));
            }
        }
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(failed) => return Ok(failed_reply(failed)),
        };
        let cache_status = match (boarded, &fetched.from) {
            (_, Source::Fleet(entry)) => {
                return Ok(stored_reply(held, entry, now, CacheStatus::Shared { ttl: entry.ttl(now) }));
            }
            (Boarded::Joined, _) | (_, Source::Memory) => CacheStatus::Collapsed,
            (Boarded::Led, Source::Revalidated) if why != Forwarded::Request => {
                CacheStatus::Miss { why: Forwarded::Revalidated, stored: fetched.stored }
            }
            (Boarded::Led, _) => CacheStatus::Miss { why, stored: fetched.stored },
        };
        let age = fetched.initial_age + now.saturating_duration_since(fetched.at);
        let Fetched { representation, fields, exchange_fields, .. } = fetched;
        let reply = reply(held.names(&representation), representation, fields, age, cache_status);
        Ok(Reply { exchange_fields, ..reply })
    }

    async fn identify(
        &self,
        id: CallerId,
        token: &Token,
        address: IpAddr,
        record: &mut Record,
    ) -> Result<Caller, ApiError> {
        let caller = self.identities.identify(id, token, address, record.started).await?;
        record.level = Some(caller.identity.level);
        Ok(caller)
    }

    /// Starts a fetch, or joins one that runs.
    fn send(&self, errand: Errand, joining: Joining) -> (Boarded, Waiter<FlightKey, Result<Fetched, FetchError>>) {
        let fetcher = self.fetcher.clone();
        let key = (errand.key, errand.marks, errand.particular);
        self.flights.board(&key, joining, |demand| async move { fetcher.run(errand, &demand).await })
    }

    fn stale_if_error(&self, held: Held<'_>, entry: &Entry, now: Instant) -> Reply {
        self.metrics.stale_served("error");
        stored_reply(held, entry, now, CacheStatus::StaleIfError { ttl: entry.ttl(now) })
    }

    /// A request that is answered by the API each time: identified and redacted, never stored.
    async fn bypass(&self, ask: &Ask<'_>, caller: &Caller, token: &Token) -> Result<Reply, ApiError> {
        let rest = ask.query.without_tokens(false);
        let target = if rest.is_empty() { target(&ask.customer) } else { format!("{}?{rest}", target(&ask.customer)) };
        let asked = clock::now();
        let payer = Payer::Caller(caller.id);
        let kind = upstream::Kind::Bypass;
        let request = upstream::Request { kind, target: &target, token: Some(token), validators: None, payer };
        match self.fetcher.ask(request, caller.identity.level, token).await {
            Ok(Asked::Anew { representation, initial_age, fields, exchange_fields, .. }) => {
                let age = initial_age + clock::now().saturating_duration_since(asked);
                let held = Held::Fields(ask.headers).names(&representation);
                let reply = reply(held, representation, fields, age, CacheStatus::Bypass);
                Ok(Reply { exchange_fields, ..reply })
            }
            Ok(Asked::Still { .. }) => Err(ApiError::InvalidResponse),
            Err(failed) => {
                if failed.error == ApiError::InvalidToken {
                    self.invalidate(&Scope::Caller(caller.id), "unauthorized");
                }
                Ok(failed_reply(failed))
            }
        }
    }

    /// A change was seen: what was made from the thing it changes is not given any more.
    pub fn invalidate(&self, scope: &Scope, trigger: &'static str) {
        self.generations.invalidate(scope);
        self.dropped(scope, trigger);
    }

    /// Another gateway of the fleet saw a change.
    pub fn heard(&self, scope: &Scope, trigger: &'static str) {
        self.generations.obey(scope);
        self.dropped(scope, trigger);
    }

    fn dropped(&self, scope: &Scope, trigger: &'static str) {
        if matches!(scope, Scope::All) {
            self.cache.clear();
        }
        self.metrics.invalidated(scope.as_str(), trigger);
        tracing::debug!(scope = scope.as_str(), trigger, "invalidated");
    }

    /// The fingerprint of the policy that it redacts by.
    pub fn policy_id(&self) -> u64 {
        self.policy_id
    }

    /// The counters of what changes.
    pub fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    /// The caller that a token is of.
    pub fn caller_of(&self, token: &Token) -> CallerId {
        self.callers.of(token.expose())
    }

    /// The credential of a request that decides.
    ///
    /// # Errors
    /// See [`CredentialError`].
    pub fn credential(&self, headers: &HeaderMap, query: &Query<'_>) -> Result<Credential, CredentialError> {
        find_credential(headers, query, self.cookie.as_deref())
    }

    /// What a request's changes make stale. `tokens`: every token of the request. A change of the
    /// caller's own concerns all of them; one that is not known yet is validated first, so that the
    /// change is obeyed although its token was never seen.
    ///
    /// # Errors
    /// [`ApiError::Unattributed`]: it cannot be determined whom a change of the caller's own
    /// concerns.
    pub async fn scopes(
        &self,
        changes: Vec<Change>,
        tokens: &[Token],
        address: IpAddr,
    ) -> Result<Vec<Scope>, ApiError> {
        let mut scopes = Vec::with_capacity(changes.len());
        for change in changes {
            if change.is_callers_own() && tokens.is_empty() {
                return Err(ApiError::Unattributed);
            }
            match change {
                Change::Customer(id) => scopes.push(Scope::Customer(id)),
                Change::Employee(id) => scopes.push(Scope::Employee(id)),
                Change::Token(token) => scopes.push(Scope::Caller(self.caller_of(&token))),
                Change::CallersToken => {
                    scopes.extend(tokens.iter().map(|token| Scope::Caller(self.caller_of(token))));
                }
                Change::CallersEmployee => {
                    for token in tokens {
                        match self.identities.owner(self.caller_of(token), token, address, clock::now()).await {
                            Ok(caller) => scopes.push(Scope::Employee(caller.identity.employee.clone())),
                            // It has no employee: only what is stored for the token itself ends.
                            Err(ApiError::InvalidToken) => {}
                            Err(_) => return Err(ApiError::Unattributed),
                        }
                    }
                }
            }
        }
        Ok(scopes)
    }

    /// Whether one of these tokens is remembered as valid.
    pub fn is_any_known(&self, tokens: &[Token], address: IpAddr) -> bool {
        let now = clock::now();
        tokens.iter().any(|token| self.identities.is_known(self.caller_of(token), address, now))
    }

    /// A write to these scopes may still be executed, at any time until `until`: nothing is stored
    /// for them meanwhile. Gives those of which this was not known yet.
    pub fn unsettle(&self, scopes: &[Scope], until: Instant) -> Vec<Scope> {
        let unsettled = scopes.iter().filter(|scope| self.generations.unsettle(scope, until));
        unsettled.cloned().collect()
    }

    /// The API's log of changes, asked with a token of the gateway's own.
    ///
    /// # Errors
    /// No usable answer.
    pub async fn change_log(&self, target: &str, token: &Token) -> Result<upstream::Answer, UpstreamError> {
        let (kind, payer) = (upstream::Kind::ChangeLog, Payer::Gateway);
        let request = upstream::Request { kind, target, token: Some(token), validators: None, payer };
        self.fetcher.client.get(request).await
    }

    /// The circuit as a request would find it now.
    pub fn circuit(&self) -> Circuit {
        self.fetcher.client.circuit()
    }

    /// Whether a request to the API would be refused now.
    pub fn is_circuit_open(&self) -> bool {
        self.fetcher.client.is_circuit_open()
    }
}

impl Gateway {
    /// The connections to the API, for those who exchange more than a GET with it.
    pub fn connections(&self) -> &Connections {
        self.fetcher.client.transport()
    }
}

/// Ends a story: what became of it is in the record too.
fn settled(told: Result<Reply, ApiError>, record: &mut Record) -> Reply {
    let reply = told.unwrap_or_else(Reply::from);
    record.cache = reply.cache_status;
    record.error = reply.error();
    reply
}

/// What to do with what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Hit,
    /// Give it, and ask in the background.
    Refresh,
    /// Give it: the API was asked just now, and failed.
    StaleIfError,
    Fetch(Forwarded),
}

fn plan(entry: &Entry, wants: &CacheControl, now: Instant) -> Plan {
    let usable = entry.usable(now);
    let may_force = now.saturating_duration_since(entry.fetched_at) >= FORCED_EVERY
        && !entry.is_paused(now)
        && !wants.only_if_cached;
    if usable != Use::Dead && may_force && !wants.accepts(entry.age(now).as_secs(), entry.ttl(now)) {
        return Plan::Fetch(Forwarded::Request);
    }
    match usable {
        Use::Fresh => Plan::Hit,
        Use::WhileRevalidating => Plan::Refresh,
        Use::IfError if entry.is_paused(now) => Plan::StaleIfError,
        Use::IfError | Use::Dead => Plan::Fetch(Forwarded::Stale),
    }
}

fn stored_reply(held: Held<'_>, entry: &Entry, now: Instant, status: CacheStatus) -> Reply {
    let (representation, fields) = (entry.representation.clone(), entry.fields.clone());
    reply(held.names(&entry.representation), representation, fields, entry.age(now), status)
}

/// `held`: the client has it already.
fn reply(
    held: bool,
    representation: Representation,
    api_fields: ApiFields,
    age: Duration,
    cache_status: CacheStatus,
) -> Reply {
    let held = held && representation.status() == StatusCode::OK;
    let content = if held { Content::NotModified(representation) } else { Content::Whole(representation) };
    let (cache_status, age) = (Some(cache_status), Some(age.as_secs()));
    Reply { content, cache_status, age, api_fields, exchange_fields: ApiFields::NONE }
}

/// The gateway's error, with the fields of the API's that belong to it.
fn failed_reply(failed: FetchError) -> Reply {
    let FetchError { error, fields } = failed;
    Reply { exchange_fields: fields, ..Reply::from(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Answer, Request, UpstreamError};

    struct Nobody;

    impl Transport for Nobody {
        async fn exchange(&self, _request: &Request<'_>, _deadline: Instant) -> Result<Answer, UpstreamError> {
            Err(UpstreamError::Connect)
        }
    }

    #[test]
    fn what_another_gateway_saw_is_obeyed_and_not_told_on() {
        let config = crate::config::parse("test", "[upstream]\nurl = \"http://127.0.0.1:1\"", []).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let client = Arc::new(Client::over(Nobody, &config.upstream, metrics.clone()));
        let policy = Arc::new(Policy::compile(&config.redaction.rules()).unwrap());
        let callers = CallerIds::with_key([7; 32]);
        let caller = callers.of("a");
        let gateway = Gateway::new(&config, Parts { client, policy, callers, metrics, tier: None });
        let (told, seen) = std::sync::mpsc::sync_channel(8);
        gateway.generations().announce_to(Box::new(move |scope| {
            let _ = told.send(scope.as_str());
        }));
        let marks = || gateway.generations().validation_marks(&caller);
        for scope in [Scope::Caller(caller), Scope::All] {
            let before = marks();
            gateway.heard(&scope, "fleet");
            assert_ne!(before, marks(), "{}", scope.as_str());
        }
        assert!(seen.try_recv().is_err());
        gateway.invalidate(&Scope::All, "request");
        assert_eq!(seen.try_recv(), Ok("all"));
    }
}
