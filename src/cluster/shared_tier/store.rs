//! The store of the shared tier, as a trait: Redis in the gateway, memory in the model test.

use std::time::Duration;

use async_trait::async_trait;

use crate::cluster::server_time::ServerTime;

/// A store of values that expire.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Returns the value of `key` and the server's time at which it was read, within `timeout`.
    async fn get(
        &self,
        key: &str,
        timeout: Duration,
    ) -> Result<(Option<Vec<u8>>, ServerTime), StoreError>;

    /// Acquires a lease unless another gateway holds it. Returns whether it was acquired.
    async fn lease(&self, key: &str, ttl: Duration, timeout: Duration) -> Result<bool, StoreError>;

    /// Stores a value and releases a lease. No request waits for it.
    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        lease: Option<&str>,
    ) -> Result<(), StoreError>;

    /// Removes a value or a lease.
    async fn remove(&self, key: &str) -> Result<(), StoreError>;
}

/// Why an operation of the store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    Timeout,
    /// There is no connection, or the circuit breaker is open.
    Unavailable,
    /// The server replied with an error: no memory, no permission, a value of another type.
    Refused,
}

impl StoreError {
    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            StoreError::Timeout => "timeout",
            StoreError::Unavailable => "unavailable",
            StoreError::Refused => "refused",
        }
    }
}
