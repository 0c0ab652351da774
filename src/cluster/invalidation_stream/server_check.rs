//! Checks that the reader is connected to the server to which `cluster.url` leads. After a failover
//! by name, address or proxy the old server may continue to run, and a connection to it to work,
//! while other gateways use the new one. So a new connection is opened at intervals, and its server
//! is compared with the reader's. As long as that fails, the stream does not count as read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::redis_stream::RedisStream;
use super::state::{SharedState, VerifiedServer, within};
use crate::clock;
use crate::cluster::connection::RedisError;

/// Longest interval between two checks. It is shorter with a small `cluster.max_isolation`, since a
/// check later than that isolates the gateway.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// The check of one gateway.
pub struct ServerCheck {
    shared: Arc<SharedState>,
}

impl ServerCheck {
    pub const fn new(shared: Arc<SharedState>) -> Self {
        ServerCheck { shared }
    }

    /// Checks at intervals, forever.
    pub async fn run(&self) {
        let interval = CHECK_INTERVAL_MAX.min(self.shared.max_isolation / 4);
        let limit = self.shared.connect_timeout + self.shared.timeout;
        let mut is_failing = false;
        loop {
            tokio::time::sleep(interval).await;
            // Otherwise the reader reports the failure, and checks when it connects.
            if !self.shared.is_connected.load(Ordering::Relaxed) {
                continue;
            }
            let at = clock::now();
            match within(limit, self.epoch()).await {
                Ok(epoch) => {
                    is_failing = false;
                    self.shared.verified.send_replace(Some(VerifiedServer { epoch, at }));
                }
                Err(error) => {
                    self.shared.record_error(&error);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(
                            %error,
                            "failed to open a new connection to Redis; the cache is used for cluster.max_isolation"
                        );
                    }
                }
            }
        }
    }

    async fn epoch(&self) -> Result<u64, RedisError> {
        let mut connection = self.shared.connector.connect().await?;
        RedisStream { connection: &mut connection, key: &self.shared.key }.epoch().await
    }
}
