//! The handler of the intercepted route: `GET` and `HEAD /customer/{id}/name`.
//!
//! It identifies the caller, looks up the cached response, fetches and redacts it if needed, and
//! invalidates what a change makes stale. It depends on no framework: [`Transport`] is its only way
//! to the API, and `clock` its only clock.

mod fast_path;
mod fetch;
mod fetch_result;
mod invalidation;
mod l1;
mod serve;
mod state;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

pub use fast_path::FastPathRequest;
pub use serve::NameRequest;

use self::fetch::Fetcher;
use self::state::SharedState;
use crate::api::{Credential, CredentialError, Query, Token, find_credential, with_token};
use crate::cache::{Cache, CallerId, CallerIds, Generations};
use crate::clock;
use crate::cluster::Tier;
use crate::config::Config;
use crate::identity::{Identities, IdentityDeps};
use crate::redact::Policy;
use crate::reply::{ApiCors, Cors, FieldFilter, origin_of};
use crate::telemetry::Metrics;
use crate::upstream::{self, Circuit, Client, Connections, QueueKey, Transport, UpstreamError};

/// Longest `Origin` that has an effect: scheme, the longest host name and a port. A longer one is
/// neither sent to the API nor part of a key.
const ORIGIN_BYTES_MAX: usize = 272;

/// Handler of the intercepted route under one configuration.
pub struct Gateway<T = Connections> {
    pub cors: Cors,
    shared: Arc<SharedState<T>>,
    fetcher: Arc<Fetcher<T>>,
    policy_id: u64,
    /// Name of the cookie that may hold the credential.
    cookie: Option<String>,
}

/// What a gateway needs besides its configuration.
pub struct GatewayDeps<T = Connections> {
    pub client: Arc<Client<T>>,
    pub policy: Arc<Policy>,
    pub callers: CallerIds,
    pub metrics: Arc<Metrics>,
    /// Shared tier of the cluster, if one is configured.
    pub tier: Option<Arc<Tier>>,
}

impl<T: Transport> Gateway<T> {
    pub fn new(config: &Config, deps: GatewayDeps<T>) -> Self {
        let GatewayDeps { client, policy, callers, metrics, tier } = deps;
        let generations = Arc::new(Generations::new(clock::now));
        let eviction_metrics = metrics.clone();
        let on_eviction = move |cause, count| eviction_metrics.count_evictions(cause, count);
        let api_cors = Arc::<ApiCors>::default();
        let deps = IdentityDeps {
            client: client.clone(),
            generations: generations.clone(),
            metrics: metrics.clone(),
            tier: tier.clone(),
            api_cors: api_cors.clone(),
        };
        let identities = Identities::new(&config.identity, deps);
        let shared = SharedState {
            cache: Arc::new(Cache::new(
                config.cache.max_bytes,
                config.cache.max_lifetime(),
                on_eviction,
            )),
            identities: Arc::new(identities),
            metrics,
            generations,
            callers,
            fetches: Default::default(),
            l1: Default::default(),
            api_cors,
            client,
            tier,
        };
        Self::with_state(Arc::new(shared), config, policy)
    }

    /// Returns a gateway with another configuration and the same state. Entries that were redacted
    /// by another policy have other keys, so it does not find them.
    pub fn reconfigured(&self, config: &Config, policy: Arc<Policy>) -> Self {
        self.shared.identities.reconfigure(&config.identity);
        Self::with_state(self.shared.clone(), config, policy)
    }

    fn with_state(shared: Arc<SharedState<T>>, config: &Config, policy: Arc<Policy>) -> Self {
        let cors = Cors::new(&config.cors, &config.cache.keep_fields, shared.api_cors.clone());
        let fields = FieldFilter::new(&config.cache.keep_fields, !cors.is_on());
        // Both decide what an entry holds.
        let policy_id = policy.fingerprint() ^ fields.fingerprint();
        let fetcher = Fetcher {
            shared: shared.clone(),
            policy,
            policy_id,
            config: config.cache.clone(),
            fields,
        };
        Gateway {
            policy_id,
            cors,
            fetcher: Arc::new(fetcher),
            shared,
            cookie: config.identity.cookie.clone(),
        }
    }

    pub fn cache(&self) -> &Cache {
        &self.shared.cache
    }

    pub fn identities(&self) -> &Arc<Identities<T>> {
        &self.shared.identities
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    pub fn generations(&self) -> &Arc<Generations> {
        &self.shared.generations
    }

    /// Fingerprint of everything in the configuration that decides what an entry holds.
    pub fn policy_id(&self) -> u64 {
        self.policy_id
    }

    /// Policy component of the key of a fetch. Without `[cors]` the API's response may depend on
    /// the `Origin`, which is then part of the key.
    fn key_policy(&self, origin: Option<&[u8]>) -> u64 {
        match origin {
            Some(origin) if !self.cors.is_on() && origin.len() <= ORIGIN_BYTES_MAX => {
                let digest = blake3::hash(origin);
                self.policy_id
                    ^ digest.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
            }
            _ => self.policy_id,
        }
    }

    /// As [`Gateway::key_policy`], to look up a hit: without the digest while every response serves
    /// every origin.
    fn lookup_policy(&self, origin: Option<&[u8]>) -> u64 {
        let is_dependent = origin.is_some() && self.shared.api_cors.is_origin_dependent();
        if is_dependent { self.key_policy(origin) } else { self.policy_id }
    }

    /// The `Origin` of a request that the API is to receive: without `[cors]`, the API's CORS
    /// fields pass.
    pub fn forwarded_origin<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        origin_of(headers).filter(|origin| !self.cors.is_on() && origin.len() <= ORIGIN_BYTES_MAX)
    }

    /// Learns the API's CORS fields from its response to a request with this `Origin`.
    pub fn learn_cors(&self, origin: &HeaderValue, headers: &HeaderMap) {
        self.shared.api_cors.learn(Some(origin), headers);
    }

    pub fn caller_of(&self, token: &Token) -> CallerId {
        self.shared.callers.id_of(token.expose())
    }

    /// Returns the caller of a request by the credential that decides; `None` without one.
    pub fn requesting_caller(&self, headers: &HeaderMap, query: &Query<'_>) -> Option<CallerId> {
        let id_of = |token: &str| self.shared.callers.id_of(token);
        with_token(headers, query, self.cookie.as_deref(), id_of).ok()
    }

    /// Returns the credential of a request that decides.
    ///
    /// # Errors
    /// See [`CredentialError`].
    pub fn credential(
        &self,
        headers: &HeaderMap,
        query: &Query<'_>,
    ) -> Result<Credential, CredentialError> {
        find_credential(headers, query, self.cookie.as_deref())
    }

    /// Requests the API's change log with a token of the gateway's own.
    ///
    /// # Errors
    /// There is no usable response.
    pub async fn change_log(
        &self,
        target: &str,
        token: &Token,
    ) -> Result<upstream::ApiResponse, UpstreamError> {
        let (kind, queue_key) = (upstream::RequestKind::ChangeLog, QueueKey::Gateway);
        let request = upstream::Request {
            kind,
            target,
            token: Some(token),
            validators: None,
            origin: None,
            queue_key,
        };
        self.shared.client.get(request).await
    }

    /// State of the circuit breaker as a request would find it now.
    pub fn circuit(&self) -> Circuit {
        self.shared.client.circuit()
    }

    /// Whether the circuit breaker would reject a request now.
    pub fn is_circuit_open(&self) -> bool {
        self.shared.client.is_circuit_open()
    }
}

impl Gateway {
    /// Connections to the API, for forwarded requests.
    pub fn connections(&self) -> &Connections {
        self.shared.client.transport()
    }
}
