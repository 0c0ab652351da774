//! The gateway as a member of a cluster: keys, connections, the invalidation stream, and the
//! redaction policy that all members should use.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::reload::Reloader;
use super::start_error::StartError;
use super::state::ActiveState;
use super::tls::TicketKeys;
use crate::cache::CallerIds;
use crate::cluster::{
    ChangeIndex, Connection, Connector, Environment, InvalidationStream, Keys, LeaderLease,
    OnPolicyChange, StreamDeps, Tier, redis_tier,
};
use crate::config::{self, Config};
use crate::telemetry::Metrics;

/// The purpose of the ticket keys, which no other use of the cluster's keys has.
const TICKETS: &str = "telecomx-gateway 2026-11-29 TLS session tickets of a cluster";

/// The problems of the files that the configuration names.
pub fn problems(cluster: &config::Cluster) -> impl Iterator<Item = String> + use<> {
    let keys = Keys::load(&cluster.key_file).err().map(|error| error.to_string());
    let connector = Connector::new(cluster).err().map(|error| error.to_string());
    keys.into_iter().chain(connector)
}

/// The keys and connections of a member.
pub struct ClusterMember {
    keys: Keys,
    /// The keys for data of this API only.
    bound_keys: Keys,
    environment: Environment,
    connector: Arc<Connector>,
    change_index: Arc<ChangeIndex>,
}

impl ClusterMember {
    /// Loads the keys; `None` without a cluster.
    ///
    /// # Errors
    /// A file that the configuration names cannot be used.
    pub fn new(config: &Config) -> Result<Option<Self>, StartError> {
        let Some(cluster) = &config.cluster else { return Ok(None) };
        let keys = Keys::load(&cluster.key_file).map_err(configuration)?;
        let connector = Arc::new(Connector::new(cluster).map_err(configuration)?);
        let environment = Environment::from_upstream(&config.upstream);
        let bound_keys = keys.for_environment(&environment);
        Ok(Some(ClusterMember {
            keys,
            bound_keys,
            environment,
            connector,
            change_index: Arc::default(),
        }))
    }

    /// The derivation of caller ids: equal on all members.
    pub fn callers(&self) -> CallerIds {
        self.bound_keys.caller_ids()
    }

    /// The keys of TLS session tickets: equal on all members.
    pub fn ticket_keys(&self) -> TicketKeys {
        TicketKeys::new(self.keys.derive_all(TICKETS))
    }

    /// The lease for polling the API's change log. It outlasts two polls.
    ///
    /// # Errors
    /// The operating system provides no randomness.
    pub fn leader_lease(&self, config: &Config) -> Result<Option<LeaderLease>, StartError> {
        let (Some(cluster), Some(change_log)) = (&config.cluster, &config.change_log) else {
            return Ok(None);
        };
        let duration = (change_log.interval + config.upstream.timeout) * 2;
        let connection = Arc::new(Connection::new(self.connector.clone()));
        let task = format!("{}:change-log", self.environment.prefix(&cluster.name));
        let lease = LeaderLease::new(
            connection,
            self.bound_keys.cipher(),
            &task,
            duration,
            cluster.timeout,
        );
        lease.map(Some).map_err(|error| StartError::Environment(error.to_string()))
    }

    /// The shared tier, if it is configured.
    pub fn tier(&self, config: &Config, metrics: &Arc<Metrics>) -> Option<Arc<Tier>> {
        let cluster = config.cluster.as_ref().filter(|cluster| cluster.tier)?;
        let prefix = self.environment.prefix(&cluster.name);
        let (connector, change_index) = (self.connector.clone(), self.change_index.clone());
        let tier = redis_tier(
            cluster,
            &prefix,
            connector,
            &self.bound_keys,
            change_index,
            metrics.clone(),
        );
        Some(Arc::new(tier))
    }

    /// Connects the active state to the invalidation stream.
    ///
    /// # Errors
    /// A thread or a metric cannot be created.
    pub fn start(
        self,
        config: &Config,
        active: &Arc<ActiveState>,
        reloader: &Arc<Reloader>,
    ) -> Result<(), StartError> {
        let Some(cluster) = &config.cluster else { return Ok(()) };
        let process = &active.process;
        let cache = &config.cache;
        let receiver = active.clone();
        let deps = StreamDeps {
            connector: self.connector,
            change_index: self.change_index,
            environment: self.environment,
            cipher: self.keys.cipher(),
            caller_key_tag: self.bound_keys.caller_key_tag(),
            generations: active.load().gateway.generations().clone(),
            apply: Box::new(move |scope, trigger| {
                receiver.load().gateway.apply_remote_invalidation(scope, trigger)
            }),
            on_policy_change: follow_policy(active.clone(), reloader.clone())
                .map_err(environment)?,
            metrics: process.metrics.register_bus().map_err(environment)?,
            read_back: cache.ttl + cache.stale_while_revalidate.max(cache.stale_if_error),
        };
        let stream = InvalidationStream::start(cluster, deps).map_err(environment)?;
        let flushed = stream.clone();
        process
            .lifecycle
            .before_exit(Box::new(move || flushed.flush(InvalidationStream::FLUSH_TIMEOUT)));
        let _ = process.invalidation_stream.set(stream);
        Ok(())
    }
}

fn configuration(error: impl std::fmt::Display) -> StartError {
    StartError::Configuration(error.to_string())
}

fn environment(error: impl std::fmt::Display) -> StartError {
    StartError::Environment(error.to_string())
}

/// Minimum time between two reloads that other members cause.
const POLICY_RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The policy fingerprint of another member that waits for a reload; a newer one replaces it.
#[derive(Default)]
struct PendingPolicy {
    fingerprint: Mutex<Option<u64>>,
    is_set: Condvar,
}

impl PendingPolicy {
    fn set(&self, fingerprint: u64) {
        *self.fingerprint.lock() = Some(fingerprint);
        self.is_set.notify_one();
    }

    fn wait(&self) -> u64 {
        let mut fingerprint = self.fingerprint.lock();
        loop {
            match fingerprint.take() {
                Some(fingerprint) => return fingerprint,
                None => self.is_set.wait(&mut fingerprint),
            }
        }
    }
}

/// Reloads the configuration when another member redacts by another policy: a newly hidden value
/// should be hidden by every member. One thread does it, since a reload reads files. However many
/// messages arrive, at most one reload waits, and reloads begin a second apart.
fn follow_policy(
    active: Arc<ActiveState>,
    reloader: Arc<Reloader>,
) -> std::io::Result<OnPolicyChange> {
    let pending = Arc::new(PendingPolicy::default());
    let (waiting, reloaded) = (pending.clone(), active.clone());
    let work = move || {
        loop {
            let fingerprint = waiting.wait();
            // An earlier reload may have applied it.
            if reloaded.load().gateway.policy_id() == fingerprint {
                continue;
            }
            tracing::info!(
                "reloading the configuration: another gateway uses a different redaction policy"
            );
            let _ = reloader.reload();
            if reloaded.load().gateway.policy_id() != fingerprint {
                tracing::warn!(
                    "another gateway of the cluster uses a different redaction policy; compare the configurations"
                );
            }
            #[expect(clippy::disallowed_methods, reason = "a thread that serves no request")]
            std::thread::sleep(POLICY_RELOAD_INTERVAL);
        }
    };
    std::thread::Builder::new().name("repolicy".into()).spawn(work)?;
    Ok(Box::new(move |fingerprint| {
        if active.load().gateway.policy_id() != fingerprint {
            pending.set(fingerprint);
        }
    }))
}
