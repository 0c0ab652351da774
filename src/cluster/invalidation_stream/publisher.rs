//! Publishes this gateway's changes and policies in the invalidation stream.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;

use super::message::Payload;
use super::queue::Change;
use super::redis_stream::{self, RedisStream};
use super::state::{Backoff, OwnPolicy, SharedState, within};
use crate::clock;
use crate::cluster::connection::RedisError;

/// Most changes that are published at once.
const BATCH_CHANGES_MAX: usize = 128;

/// The publisher of one gateway.
pub struct Publisher {
    shared: Arc<SharedState>,
}

impl Publisher {
    pub const fn new(shared: Arc<SharedState>) -> Self {
        Publisher { shared }
    }

    /// Publishes the changes of the queue, forever.
    pub async fn publish_changes(&self) {
        let queue = &self.shared.queue;
        let mut backoff = Backoff::new();
        let mut connection = None;
        let mut server_changes = self.shared.connector.server_changes();
        let mut is_failing = false;
        loop {
            let changes = queue.peek(BATCH_CHANGES_MAX).await;
            // Also checked before changes are acknowledged: the server of the connection that took
            // them may have been replaced meanwhile, and then they are sent again.
            let current = self.shared.connector.server_changes();
            if std::mem::replace(&mut server_changes, current) != current {
                connection = None;
            }
            match self.send(&mut connection, &changes).await {
                Ok(()) if self.shared.connector.server_changes() != server_changes => {}
                Ok(()) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("invalidation publishing resumed");
                    }
                    backoff.reset();
                    self.shared.metrics.count_messages("told", changes.len());
                    let last = changes.last().map_or(0, |change| change.number);
                    queue.acknowledge(last, clock::now());
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "failed to publish invalidations; they are queued");
                    }
                    self.shared.record_error(&error);
                    connection = None;
                    backoff.pause().await;
                }
            }
        }
    }

    /// Sends changes. After a failure all of them are sent again: reading a change twice costs a
    /// fetch.
    async fn send(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        changes: &[Change],
    ) -> Result<(), RedisError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.shared.connector.connect().await?),
        };
        let mut commands = redis::pipe();
        for Change { number, scope, .. } in changes {
            let encrypted = self.shared.encrypt(*number, Payload::Change(scope.clone()))?;
            commands.add_command(redis_stream::xadd(&self.shared.key, &encrypted)).ignore();
        }
        let sending =
            async { commands.query_async::<()>(connection).await.map_err(RedisError::from) };
        within(self.shared.timeout, sending).await
    }

    /// Publishes the last policy each time it changes, forever.
    pub async fn publish_policies(&self) {
        let mut policies = self.shared.policy.subscribe();
        while policies.changed().await.is_ok() {
            let mut backoff = Backoff::new();
            loop {
                let Some(policy) = *policies.borrow_and_update() else { break };
                let limit = self.shared.connect_timeout + self.shared.timeout;
                let Err(error) = within(limit, self.send_policy(policy)).await else { break };
                self.shared.record_error(&error);
                backoff.pause().await;
            }
        }
    }

    async fn send_policy(&self, policy: OwnPolicy) -> Result<(), RedisError> {
        let OwnPolicy { fingerprint, number } = policy;
        let mut connection = self.shared.connector.connect().await?;
        let mut stream = RedisStream { connection: &mut connection, key: &self.shared.key };
        let since = stream.time().await?.0;
        let encrypted = self.shared.encrypt(number, Payload::Policy { fingerprint, since })?;
        stream.add(&encrypted).await.map(drop)
    }
}
