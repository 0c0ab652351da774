//! The tier's values in a Redis: each under its own name, with the time at which it may go.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Pipeline, Value};

use super::connection::{Connection, Connector, Error};
use super::keys::Keys;
use super::ledger::Ledger;
use super::tier::{MAX_SEALED, Names, Store, StoreError, Tier};
use super::wire::ServerTime;
use crate::config;
use crate::telemetry::Metrics;

/// Names are digests by a key of their own, made from the fleet's first.
const NAMES: &str = "telecomx-gateway 2026-11-26 names of values that a fleet shares";

/// Values in a Redis.
struct RedisStore {
    connection: Arc<Connection>,
    /// For what nobody waits for.
    timeout: Duration,
}

impl RedisStore {
    /// `timeout`: for what is written behind the answers.
    fn new(connection: Arc<Connection>, timeout: Duration) -> Self {
        RedisStore { connection, timeout }
    }
}

impl Tier {
    /// The tier of a fleet that shares a Redis. It has a connection of its own, so that a tier that is slow holds up no word of
    /// a change. `keys` and `prefix`, with which its names begin, are those of the environment.
    pub fn over(
        (config, prefix): (&config::Cluster, &str),
        connector: Arc<Connector>,
        keys: &Keys,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let store = RedisStore::new(Arc::new(Connection::new(connector)), config.timeout);
        let names = Names::new(*keys.derive(NAMES), &format!("{prefix}:"));
        let parts = (ledger, Arc::new(keys.sealer()), names);
        Tier::new(Arc::new(store), parts, config.tier_timeout, metrics)
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Timeout => StoreError::Timeout,
            Error::NotAsked | Error::Unreachable(_) => StoreError::Unavailable,
            Error::Denied(_) | Error::Refused(_) | Error::Malformed(_) | Error::Unusable(_) | Error::TooLarge(_) => {
                StoreError::Refused
            }
        }
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn get(&self, name: &str, within: Duration) -> Result<(Option<Vec<u8>>, ServerTime), StoreError> {
        // Not GET: whoever writes there may have left something that is larger than memory should take. And the time after
        // the value, so that it is taken to be older than it is, if anything.
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("GETRANGE").arg(name).arg(0).arg(MAX_SEALED).cmd("TIME");
        let (value, (seconds, micros)): (Vec<u8>, (u64, u64)) = self.connection.query(&commands, within).await?;
        let time = seconds.checked_mul(1000).and_then(|millis| millis.checked_add(micros / 1000));
        // One that is not there is empty; a sealed one never is.
        let value = (!value.is_empty()).then_some(value);
        Ok((value, ServerTime(time.ok_or(StoreError::Refused)?)))
    }

    async fn lease(&self, name: &str, life: Duration, within: Duration) -> Result<bool, StoreError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("SET").arg(name).arg(1).arg("NX").arg("PX").arg(millis(life));
        let (taken,): (Value,) = self.connection.query(&commands, within).await?;
        Ok(taken == Value::Okay)
    }

    async fn put(&self, name: &str, value: Vec<u8>, life: Duration, lease: Option<&str>) -> Result<(), StoreError> {
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("SET").arg(name).arg(value).arg("PX").arg(millis(life)).ignore();
        if let Some(lease) = lease {
            commands.cmd("DEL").arg(lease).ignore();
        }
        Ok(self.connection.query(&commands, self.timeout).await?)
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("DEL").arg(name).ignore();
        Ok(self.connection.query(&commands, self.timeout).await?)
    }
}

/// A life of 0 is none that Redis takes.
fn millis(life: Duration) -> u64 {
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX >> 16).max(1)
}
