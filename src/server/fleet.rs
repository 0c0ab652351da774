//! What a gateway has in common with others, where it is one of a fleet.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::setup::{Current, Reloader, Setup};
use super::start_error::StartError;
use crate::cache::CallerIds;
use crate::cluster::{Bus, BusParts, Connection, Connector, Environment, Keys, Ledger, Repolicy, Tier, Turns};
use crate::config::{self, Config};
use crate::telemetry::Metrics;

/// Whether the files that the configuration names hold what they should; all that is wrong.
pub fn problems(cluster: &config::Cluster) -> impl Iterator<Item = String> + use<> {
    Keys::load(&cluster.key_file).err().into_iter().chain(Connector::new(cluster).err())
}

/// Keys and connections, before anything is done with them.
pub struct Fleet {
    keys: Keys,
    /// The same for what counts in front of this API alone.
    bound_keys: Keys,
    environment: Environment,
    connector: Arc<Connector>,
    ledger: Arc<Ledger>,
}

impl Fleet {
    /// `None`: a gateway by itself.
    ///
    /// # Errors
    /// A file that the configuration names cannot be used.
    pub fn new(config: &Config) -> Result<Option<Self>, StartError> {
        let Some(cluster) = &config.cluster else { return Ok(None) };
        let keys = Keys::load(&cluster.key_file).map_err(StartError::Configuration)?;
        let connector = Arc::new(Connector::new(cluster).map_err(StartError::Configuration)?);
        let environment = Environment::of(&config.upstream);
        let bound_keys = keys.bound_to(&environment);
        Ok(Some(Fleet { keys, bound_keys, environment, connector, ledger: Arc::default() }))
    }

    /// The same caller of the same token, on each gateway.
    pub fn callers(&self) -> CallerIds {
        self.bound_keys.callers()
    }

    /// Whose turn it is to read the API's log of changes: a turn outlasts two readings.
    ///
    /// # Errors
    /// The operating system does not give what is needed.
    pub fn turns(&self, config: &Config) -> Result<Option<Turns>, StartError> {
        let (Some(cluster), Some(change_log)) = (&config.cluster, &config.change_log) else { return Ok(None) };
        let life = (change_log.interval + config.upstream.timeout) * 2;
        let connection = Arc::new(Connection::new(self.connector.clone()));
        let task = format!("{}:change-log", self.environment.prefix(&cluster.name));
        let turns = Turns::new(connection, self.bound_keys.sealer(), &task, life, cluster.timeout);
        turns.map(Some).map_err(|error| StartError::Environment(error.to_string()))
    }

    /// What it shares with the others beside changes, where it does.
    pub fn tier(&self, config: &Config, metrics: &Arc<Metrics>) -> Option<Arc<Tier>> {
        let cluster = config.cluster.as_ref().filter(|cluster| cluster.tier)?;
        let (connector, ledger) = (self.connector.clone(), self.ledger.clone());
        let prefix = self.environment.prefix(&cluster.name);
        Some(Arc::new(Tier::over((cluster, &prefix), connector, &self.bound_keys, ledger, metrics.clone())))
    }

    /// Begins to tell the others, and to hear them.
    ///
    /// # Errors
    /// The operating system does not give what is needed.
    pub fn start(self, config: &Config, current: &Arc<Current>, reloader: &Arc<Reloader>) -> Result<(), StartError> {
        let Some(cluster) = &config.cluster else { return Ok(()) };
        let environment = |error: &dyn std::fmt::Display| StartError::Environment(error.to_string());
        let setup: Arc<Setup> = current.load();
        let obeying = current.clone();
        let cache = &config.cache;
        let parts = BusParts {
            connector: self.connector,
            ledger: self.ledger,
            environment: self.environment,
            generations: setup.gateway.generations().clone(),
            obey: Box::new(move |scope, trigger| obeying.load().gateway.apply_remote_invalidation(scope, trigger)),
            repolicy: repolicy(current.clone(), reloader.clone()).map_err(|error| environment(&error))?,
            metrics: setup.metrics.bus().map_err(|error| environment(&error))?,
            read_back: cache.ttl + cache.stale_while_revalidate.max(cache.stale_if_error),
        };
        let bus = Bus::start(cluster, (&self.keys, &self.bound_keys), parts).map_err(|error| environment(&error))?;
        let telling = bus.clone();
        setup.lifecycle.at_last(Box::new(move || telling.flush(Bus::LAST)));
        let _ = setup.bus.set(bus);
        Ok(())
    }
}

/// Between the beginnings of two reloads that other gateways ask for.
const REPOLICY_INTERVAL: Duration = Duration::from_secs(1);

/// The policy that another gateway redacts by, until the worker takes it: the last one counts.
#[derive(Default)]
struct Slot {
    fingerprint: Mutex<Option<u64>>,
    filled: Condvar,
}

impl Slot {
    fn put(&self, fingerprint: u64) {
        *self.fingerprint.lock() = Some(fingerprint);
        self.filled.notify_one();
    }

    fn wait(&self) -> u64 {
        let mut fingerprint = self.fingerprint.lock();
        loop {
            match fingerprint.take() {
                Some(fingerprint) => return fingerprint,
                None => self.filled.wait(&mut fingerprint),
            }
        }
    }
}

/// Where another gateway redacts by another policy, this one reads its configuration again, as at
/// HUP: what is to be hidden from now on should not depend on which gateway is asked. One thread
/// does it, since it reads files: one reload at a time, one waits at most, and they begin a second
/// apart, however many messages come.
fn repolicy(current: Arc<Current>, reloader: Arc<Reloader>) -> std::io::Result<Repolicy> {
    let slot = Arc::new(Slot::default());
    let (waiting, seen) = (slot.clone(), current.clone());
    let work = move || {
        loop {
            let fingerprint = waiting.wait();
            // An earlier reload may have brought it.
            if seen.load().gateway.policy_id() == fingerprint {
                continue;
            }
            tracing::info!("reloading the configuration: another gateway uses a different redaction policy");
            let _ = reloader.reload();
            if seen.load().gateway.policy_id() != fingerprint {
                tracing::warn!(
                    "another gateway of the cluster uses a different redaction policy; compare the configurations"
                );
            }
            #[expect(clippy::disallowed_methods, reason = "a thread that serves no request")]
            std::thread::sleep(REPOLICY_INTERVAL);
        }
    };
    std::thread::Builder::new().name("repolicy".into()).spawn(work)?;
    Ok(Box::new(move |fingerprint| {
        if current.load().gateway.policy_id() != fingerprint {
            slot.put(fingerprint);
        }
    }))
}
