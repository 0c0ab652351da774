//! The store of the shared tier in Redis: each value under its own key, with a time to live.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Pipeline, Value};

use super::store::{Store, StoreError};
use super::tier::{ENCRYPTED_BYTES_MAX, KeyDeriver, Tier, TierDeps};
use crate::cluster::change_index::ChangeIndex;
use crate::cluster::connection::{Connection, Connector, RedisError};
use crate::cluster::keys::Keys;
use crate::cluster::server_time::ServerTime;
use crate::config;
use crate::telemetry::Metrics;

/// Separates the key that derives Redis keys from other uses of the cluster's first key. Part of
/// the key, so the text never changes.
const KEY_CONTEXT: &str = "telecomx-gateway 2026-11-26 names of values that a fleet shares";

struct RedisStore {
    connection: Arc<Connection>,
    /// Deadline of writes, for which no request waits.
    write_timeout: Duration,
}

/// The shared tier in Redis. It has a separate connection, so that slow values do not delay
/// invalidations. `keys` and `prefix`, with which its Redis keys begin, are those of the
/// environment.
pub fn redis_tier(
    config: &config::Cluster,
    prefix: &str,
    connector: Arc<Connector>,
    keys: &Keys,
    change_index: Arc<ChangeIndex>,
    metrics: Arc<Metrics>,
) -> Tier {
    let connection = Arc::new(Connection::new(connector));
    Tier::new(TierDeps {
        store: Arc::new(RedisStore { connection, write_timeout: config.timeout }),
        change_index,
        cipher: Arc::new(keys.cipher()),
        keys: KeyDeriver::new(*keys.derive(KEY_CONTEXT), &format!("{prefix}:")),
        timeout: config.tier_timeout,
        metrics,
    })
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match error {
            RedisError::Timeout => StoreError::Timeout,
            RedisError::CircuitOpen | RedisError::Unreachable(_) => StoreError::Unavailable,
            RedisError::Denied(_)
            | RedisError::Refused(_)
            | RedisError::Malformed(_)
            | RedisError::Unusable(_)
            | RedisError::TooLarge(_) => StoreError::Refused,
        }
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn get(
        &self,
        key: &str,
        timeout: Duration,
    ) -> Result<(Option<Vec<u8>>, ServerTime), StoreError> {
        // Not GET, since another client may have written a value of any length. TIME after the
        // value, so that its age is rather over- than underestimated.
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("GETRANGE").arg(key).arg(0).arg(ENCRYPTED_BYTES_MAX).cmd("TIME");
        let (value, (seconds, micros)): (Vec<u8>, (u64, u64)) =
            match self.connection.query(&commands, timeout).await {
                // A value that no gateway wrote, and that would remain forever.
                Err(error) if error.is_wrong_type() => {
                    tracing::warn!(%error, key, "deleted a value of the shared tier");
                    let mut commands = Pipeline::with_capacity(2);
                    commands.cmd("DEL").arg(key).ignore().cmd("TIME");
                    let (time,) = self.connection.query(&commands, timeout).await?;
                    (Vec::new(), time)
                }
                reply => reply?,
            };
        let time = seconds.checked_mul(1000).and_then(|time| time.checked_add(micros / 1000));
        // GETRANGE returns an empty value for a missing key; an encrypted value is never empty.
        let value = (!value.is_empty()).then_some(value);
        Ok((value, ServerTime(time.ok_or(StoreError::Refused)?)))
    }

    async fn lease(&self, key: &str, ttl: Duration, timeout: Duration) -> Result<bool, StoreError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("SET").arg(key).arg(1).arg("NX").arg("PX").arg(to_millis(ttl));
        let (reply,): (Value,) = self.connection.query(&commands, timeout).await?;
        Ok(reply == Value::Okay)
    }

    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        lease: Option<&str>,
    ) -> Result<(), StoreError> {
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("SET").arg(key).arg(value).arg("PX").arg(to_millis(ttl)).ignore();
        if let Some(lease) = lease {
            commands.cmd("DEL").arg(lease).ignore();
        }
        Ok(self.connection.query(&commands, self.write_timeout).await?)
    }

    async fn remove(&self, key: &str) -> Result<(), StoreError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("DEL").arg(key).ignore();
        Ok(self.connection.query(&commands, self.write_timeout).await?)
    }
}

/// Redis rejects a time to live of 0.
fn to_millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX >> 16).max(1)
}
