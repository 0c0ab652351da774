//! The invalidation stream: a Redis stream through which the gateways of a cluster share changes.
//! Each gateway publishes what it sees and reads the whole stream.
//!
//! - A change is queued when it is seen and published in that order, also across failures; no
//!   request waits for it.
//! - Each gateway remembers its position. After a disconnection it continues from there; if it
//!   cannot know what it missed (the stream was trimmed, the server was restarted), it invalidates
//!   everything once and logs it.
//! - A connection counts only while a new one leads to the same server: after a failover by name
//!   the old server may continue to run.
//! - While the stream is not read, the cache is used for `cluster.max_isolation` and no longer. The
//!   bound is a point in time that every lookup compares with, so it also holds for a process that
//!   was stopped.
//!
//! The stream has its own thread, so that a busy gateway applies changes as quickly as an idle one.

mod message;
mod publisher;
mod queue;
mod reader;
mod redis_stream;
mod server_check;
mod state;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use self::publisher::Publisher;
use self::reader::Reader;
use self::server_check::ServerCheck;
use self::state::SharedState;
pub use self::state::{OnPolicyChange, StreamDeps};
use super::stream_id::StreamId;
use crate::cache::Scope;
use crate::clock;
use crate::config;

/// Interval at which a stopping process checks whether the queue is empty.
const FLUSH_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The invalidation stream of one gateway.
pub struct InvalidationStream {
    shared: Arc<SharedState>,
}

impl InvalidationStream {
    /// How long a stopping process waits until its changes are published.
    pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

    /// Starts the thread. From now on the cache is used only as long as the stream is read.
    ///
    /// # Errors
    /// The operating system provides no randomness or no thread.
    pub fn start(config: &config::Cluster, deps: StreamDeps) -> io::Result<Arc<Self>> {
        let shared = Arc::new(SharedState::new(config, deps)?);
        let now = clock::now();
        shared.generations.set_synced_until(now, now + shared.max_isolation);
        let stream = Arc::new(InvalidationStream { shared: shared.clone() });
        let publishing = stream.clone();
        shared.generations.set_publisher(Box::new(move |scope| publishing.publish(scope)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = move || {
            let publisher = Publisher::new(shared.clone());
            let mut reader = Reader::new(shared.clone());
            let server_check = ServerCheck::new(shared.clone());
            runtime.block_on(async {
                tokio::join!(
                    publisher.publish_changes(),
                    publisher.publish_policies(),
                    reader.run(),
                    server_check.run(),
                    shared.log_isolation(),
                )
            });
        };
        std::thread::Builder::new().name("invalidation".into()).spawn(work)?;
        Ok(stream)
    }

    /// Announces that this gateway redacts by another policy from now on.
    pub fn publish_policy(&self, fingerprint: u64) {
        self.shared.set_policy(fingerprint);
    }

    /// Whether the cache is not used, because the stream was not read for too long.
    pub fn is_isolated(&self) -> bool {
        self.shared.is_isolated()
    }

    /// Whether a load balancer may send requests to this gateway.
    pub fn is_ready(&self) -> bool {
        self.shared.ready_when_isolated || !self.is_isolated()
    }

    /// The `cluster` object of `/stats`.
    pub fn stats(&self) -> serde_json::Value {
        let position = StreamId::from_bits(self.shared.position.load(Ordering::Acquire));
        json!({
            "connected": self.shared.is_connected.load(Ordering::Relaxed),
            "isolated": self.is_isolated(),
            "silence_seconds": self.shared.silence().as_secs_f64(),
            "position": position.to_string(),
            "waiting_changes": self.shared.queue.len(),
            "stream": self.shared.key,
        })
    }

    /// Updates the gauges.
    pub fn update_gauges(&self) {
        let is_connected = self.shared.is_connected.load(Ordering::Relaxed);
        let waiting = self.shared.queue.len();
        let silence = self.shared.silence();
        self.shared.metrics.set_state(is_connected, self.is_isolated(), waiting, silence);
    }

    /// Waits until all changes are published, at most for `timeout`. Blocks the thread.
    pub fn flush(&self, timeout: Duration) {
        let deadline = clock::now() + timeout;
        while self.shared.queue.len() > 0 && clock::now() < deadline {
            #[expect(
                clippy::disallowed_methods,
                reason = "the process ends; its thread has nothing else to do"
            )]
            std::thread::sleep(FLUSH_POLL_INTERVAL);
        }
        let changes = self.shared.queue.len();
        if changes > 0 {
            tracing::error!(changes, "stopped before all invalidations were published");
        }
    }

    fn publish(&self, scope: &Scope) {
        if self.shared.queue.push(scope, &self.shared.change_index, clock::now()) {
            self.shared.metrics.count_drop("overflow");
            tracing::warn!(
                "invalidation queue is full; other gateways will purge their whole cache"
            );
        }
    }
}
