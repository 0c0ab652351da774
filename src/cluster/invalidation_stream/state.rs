//! What publisher and reader of the invalidation stream share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::message::{Context, Message, Payload};
use super::queue::Queue;
use crate::cache::{Generations, Scope};
use crate::clock;
use crate::cluster::aead::Cipher;
use crate::cluster::change_index::ChangeIndex;
use crate::cluster::connection::{Connector, RedisError};
use crate::cluster::environment::Environment;
use crate::config;
use crate::telemetry::BusMetrics;

/// Interval at which isolation is checked for the log.
const ISOLATION_LOG_INTERVAL: Duration = Duration::from_millis(200);

/// Applies a change of another gateway. The string is the trigger's label of metrics.
pub type ApplyInvalidation = Box<dyn Fn(&Scope, &'static str) + Send + Sync>;

/// Called with the fingerprint of the policy by which another gateway redacts from now on.
pub type OnPolicyChange = Box<dyn Fn(u64) + Send + Sync>;

/// What the stream is made of.
pub struct StreamDeps {
    pub connector: Arc<Connector>,
    pub change_index: Arc<ChangeIndex>,
    /// Messages of other environments are ignored.
    pub environment: Environment,
    /// Encrypts messages.
    pub cipher: Cipher,
    /// Tag of the key by which this gateway digests tokens.
    pub caller_key_tag: [u8; 8],
    pub generations: Arc<Generations>,
    pub apply: ApplyInvalidation,
    pub on_policy_change: OnPolicyChange,
    pub metrics: BusMetrics,
    /// How long values of the shared tier may be used, which is how far back a starting gateway
    /// reads.
    pub read_back: Duration,
}

/// This gateway's redaction policy, with a number that grows with each change.
#[derive(Clone, Copy, Debug)]
pub struct OwnPolicy {
    pub fingerprint: u64,
    pub number: u64,
}

/// The server to which a new connection led.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedServer {
    pub epoch: u64,
    /// Before the connection was opened.
    pub at: Instant,
}

/// State and configuration of the stream.
pub struct SharedState {
    pub connector: Arc<Connector>,
    pub change_index: Arc<ChangeIndex>,
    pub generations: Arc<Generations>,
    pub apply: ApplyInvalidation,
    pub on_policy_change: OnPolicyChange,
    pub metrics: BusMetrics,
    pub read_back: Duration,
    pub queue: Queue,
    /// The Redis key of the stream.
    pub key: String,
    /// Identifies this process among the senders.
    pub sender: u64,
    pub max_isolation: Duration,
    pub ready_when_isolated: bool,
    pub timeout: Duration,
    pub connect_timeout: Duration,
    pub is_connected: AtomicBool,
    /// Bits of the [`super::StreamId`] of the last applied message.
    pub position: AtomicU64,
    /// When the stream was last known to be read to its end, on the server to which
    /// `cluster.url` leads.
    pub synced_at: Mutex<Instant>,
    /// The server to which a new connection led last.
    pub verified: watch::Sender<Option<VerifiedServer>>,
    /// The policy to be announced.
    pub policy: watch::Sender<Option<OwnPolicy>>,
    cipher: Cipher,
    /// The context in which messages are encrypted.
    aead_context: Vec<u8>,
    context: Context,
}

impl SharedState {
    /// # Errors
    /// The operating system provides no randomness.
    pub fn new(config: &config::Cluster, deps: StreamDeps) -> io::Result<Self> {
        let StreamDeps {
            connector,
            change_index,
            environment,
            cipher,
            caller_key_tag,
            generations,
            apply,
            on_policy_change,
            metrics,
            read_back,
        } = deps;
        let key = format!("{}:changes", config.name);
        Ok(SharedState {
            connector,
            change_index,
            generations,
            apply,
            on_policy_change,
            metrics,
            read_back,
            queue: Queue::default(),
            aead_context: format!("telecomx-gateway changes {key}").into_bytes(),
            key,
            sender: getrandom::u64().map_err(io::Error::other)?,
            max_isolation: config.max_isolation,
            ready_when_isolated: config.ready_when_isolated,
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            is_connected: AtomicBool::new(false),
            position: AtomicU64::new(0),
            synced_at: Mutex::new(clock::now()),
            verified: watch::Sender::new(None),
            policy: watch::Sender::new(None),
            cipher,
            context: Context { environment, caller_key_tag },
        })
    }

    pub fn set_policy(&self, fingerprint: u64) {
        self.policy.send_modify(|policy| {
            let number = policy.map_or(1, |before| before.number + 1);
            *policy = Some(OwnPolicy { fingerprint, number });
        });
    }

    pub fn is_isolated(&self) -> bool {
        !self.generations.is_synced(clock::now())
    }

    /// Time since the stream was last known to be read to its end.
    pub fn silence(&self) -> Duration {
        clock::now().saturating_duration_since(*self.synced_at.lock())
    }

    pub fn record_error(&self, error: &RedisError) {
        self.metrics.count_error(error.as_str());
    }

    /// The encrypted message of this gateway.
    pub fn encrypt(&self, number: u64, payload: Payload) -> Result<Vec<u8>, RedisError> {
        let message = Message { sender: self.sender, number, payload };
        let encrypted = self.cipher.encrypt(&self.aead_context, &message.to_bytes(&self.context));
        encrypted.map_err(|error| RedisError::Unreachable(error.to_string()))
    }

    /// Decrypts and decodes a message; `None` if it is unreadable.
    pub fn decrypt(&self, encrypted: &[u8]) -> Option<Message> {
        match self.cipher.decrypt(&self.aead_context, encrypted) {
            Ok(bytes) => Message::from_bytes(&bytes, &self.context),
            Err(error) => {
                self.metrics.count_error(error.as_str());
                None
            }
        }
    }

    /// Logs when isolation begins and ends, forever.
    pub async fn log_isolation(&self) {
        let mut was_isolated = false;
        loop {
            tokio::time::sleep(ISOLATION_LOG_INTERVAL).await;
            let is_isolated = self.is_isolated();
            if is_isolated && !was_isolated {
                tracing::error!(
                    silence_seconds = self.silence().as_secs_f64(),
                    "isolated from Redis for longer than cluster.max_isolation; every request is sent to the API"
                );
            } else if was_isolated && !is_isolated {
                tracing::info!("isolation ended; cached responses are served again");
            }
            was_isolated = is_isolated;
        }
    }
}

/// Limits the time of an operation of Redis.
pub async fn within<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    timeout(limit, operation).await.unwrap_or(Err(RedisError::Timeout))
}

/// Pauses between attempts after failures, doubled each time.
pub struct Backoff(Duration);

impl Backoff {
    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(1);

    pub const fn new() -> Self {
        Backoff(Self::MIN)
    }

    pub const fn reset(&mut self) {
        self.0 = Self::MIN;
    }

    pub async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::MAX);
    }
}
