//! Reads the invalidation stream and applies the changes of other gateways.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::message::{Message, Payload};
use super::redis_stream::{BATCH_MESSAGES_MAX, EncryptedMessage, RedisStream, StreamInfo};
use super::state::{Backoff, SharedState, within};
use crate::cache::Scope;
use crate::clock;
use crate::cluster::connection::RedisError;
use crate::cluster::stream_id::StreamId;

/// Longest wait of one read for a message, and so how often a quiet stream is found to be complete.
const READ_WAIT_MAX: Duration = Duration::from_secs(1);

/// Limit for finding the position to read from, old messages included.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A policy message that is this much older than its stream id was copied.
const POLICY_AGE_MAX_MILLIS: u64 = 60_000;

/// Most senders whose policy numbers are remembered. Beyond, all are forgotten, and a copied
/// message counts once more.
const POLICY_SENDERS_MAX: usize = 4096;

/// Most old messages that a joining gateway reads, for values that may still be in the shared tier.
const READ_BACK_MESSAGES_MAX: usize = 200_000;

/// Label of invalidations by changes of other gateways.
const TRIGGER_REMOTE: &str = "fleet";
/// Label of invalidations because changes may have been missed.
const TRIGGER_MISSED: &str = "missed";

/// Why everything is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    /// Messages were removed before they were read.
    Trimmed,
    /// Another server, or a restarted one, which may have lost its last messages.
    Server,
}

impl Gap {
    /// The label of metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Gap::Trimmed => "trimmed",
            Gap::Server => "server",
        }
    }
}

/// How far the stream was read, and in which life of the server.
#[derive(Clone, Copy)]
struct Progress {
    epoch: u64,
    floor: StreamId,
    position: StreamId,
}

/// The reader of one gateway.
pub struct Reader {
    shared: Arc<SharedState>,
    /// `None` until the stream was joined.
    progress: Option<Progress>,
    backoff: Backoff,
    /// The highest policy number of each sender, so that a copied message is ignored.
    policy_numbers: HashMap<u64, u64>,
}

impl Reader {
    pub fn new(shared: Arc<SharedState>) -> Self {
        let policy_numbers = HashMap::new();
        Reader { shared, progress: None, backoff: Backoff::new(), policy_numbers }
    }

    /// Reads the stream, forever.
    pub async fn run(&mut self) {
        let mut logged_error = None;
        loop {
            let Err(error) = self.read().await;
            if let RedisError::Unusable(_) = error
                && self.recreate(&error).await.is_ok()
            {
                self.progress = None;
            }
            let was_connected = self.shared.is_connected.swap(false, Ordering::Relaxed);
            self.shared.change_index.suspend();
            self.shared.record_error(&error);
            // One line for each kind of failure, not for each attempt.
            if was_connected || logged_error != Some(error.as_str()) {
                let redis = &self.shared.key;
                tracing::error!(%error, redis, "failed to read the invalidation stream");
                logged_error = Some(error.as_str());
            }
            self.backoff.pause().await;
        }
    }

    /// Deletes a value in the stream's place that can never be read, so that the next attempt
    /// creates a new stream: a client that may write there can only make gateways invalidate what
    /// they store. Every gateway finds its position missing and invalidates everything.
    async fn recreate(&self, error: &RedisError) -> Result<(), RedisError> {
        let key = &self.shared.key;
        let recreating = async {
            let mut connection = self.shared.connector.connect().await?;
            let mut stream = RedisStream { connection: &mut connection, key };
            // Another gateway may have deleted it already.
            match stream.info().await {
                Err(RedisError::Unusable(_)) => stream.delete().await,
                _ => Ok(()),
            }
        };
        let limit = self.shared.connect_timeout + self.shared.timeout;
        let result = within(limit, recreating).await;
        self.shared.metrics.count_drop("unusable");
        match &result {
            Ok(()) => tracing::error!(%error, key, "recreated the unusable invalidation stream"),
            Err(failed) => tracing::error!(
                %error,
                %failed,
                key,
                "the invalidation stream is unusable; delete the key"
            ),
        }
        result
    }

    /// Reads until the connection fails.
    async fn read(&mut self) -> Result<Infallible, RedisError> {
        let shared = self.shared.clone();
        let mut connection = shared.connector.connect().await?;
        let mut stream = RedisStream { connection: &mut connection, key: &shared.key };
        let wait = READ_WAIT_MAX.min(shared.max_isolation / 4);
        let limit = wait + shared.connect_timeout;
        let mut progress = within(JOIN_TIMEOUT, self.resume(&mut stream)).await?;
        self.progress = Some(progress);
        let (mut is_caught_up, mut has_repaired) = (false, false);
        loop {
            // A read is complete up to the moment before it: later messages may not be in it.
            let started = clock::now();
            let acknowledged = shared.queue.acknowledged();
            let block_millis = is_caught_up.then(|| to_block_millis(wait));
            let reading = stream.read(progress.position, block_millis);
            let messages = within(limit, reading).await?;
            let before = progress.position;
            progress.position = messages.last().map_or(before, |message| message.id);
            let is_at_end = messages.len() < BATCH_MESSAGES_MAX;
            self.apply(messages);
            let info = within(limit, stream.info()).await?;
            if !info.is_some_and(|info| info.continues(before)) {
                // A second time in a row the repair had no effect: a failure, after which it pauses.
                if std::mem::replace(&mut has_repaired, true) {
                    let problem = "messages of the invalidation stream are missing again";
                    return Err(RedisError::Malformed(problem.into()));
                }
                let joining = self.join(&mut stream, progress.epoch, Some(Gap::Trimmed));
                progress = within(JOIN_TIMEOUT, joining).await?;
                self.progress = Some(progress);
                is_caught_up = false;
                continue;
            }
            has_repaired = false;
            self.progress = Some(progress);
            if is_caught_up {
                shared.change_index.advance(progress.position);
            } else if is_at_end {
                is_caught_up = true;
                self.start_index(progress, acknowledged);
            }
            // Published after the index advanced: a fetch of a client that reads this position
            // counts as later.
            shared.position.store(progress.position.to_bits(), Ordering::Release);
            if is_at_end {
                *shared.synced_at.lock() = started;
                shared.generations.set_synced_until(started, started + shared.max_isolation);
            }
        }
    }

    /// The stream was read to its end for the first time on this connection.
    fn start_index(&mut self, progress: Progress, acknowledged: u64) {
        let Progress { epoch, floor, position } = progress;
        self.shared.change_index.start(epoch, floor, position, acknowledged);
        self.backoff.reset();
        if !self.shared.is_connected.swap(true, Ordering::Relaxed) {
            tracing::info!(%position, "reading the invalidation stream");
        }
    }

    /// Continues from the position before, if no message after it can have been missed.
    async fn resume(&self, stream: &mut RedisStream<'_>) -> Result<Progress, RedisError> {
        let epoch = stream.epoch().await?;
        let Some(before) = self.progress else { return self.join(stream, epoch, None).await };
        if before.epoch != epoch {
            return self.join(stream, epoch, Some(Gap::Server)).await;
        }
        let info = stream.info().await?;
        if info.is_some_and(|info| info.continues(before.position)) {
            Ok(before)
        } else {
            self.join(stream, epoch, Some(Gap::Trimmed)).await
        }
    }

    /// Begins at the end of the stream and invalidates everything from before. The end is the
    /// highest id that the server names, even if its message was removed: later checks for missing
    /// messages compare with these ids.
    async fn join(&self, stream: &mut RedisStream<'_>, epoch: u64, gap: Option<Gap>) -> Result<Progress, RedisError> {
        self.shared.change_index.clear();
        let info = match stream.info().await? {
            Some(info @ StreamInfo { first: Some(_), .. }) => info,
            // A message to begin behind, by which trimming can be detected.
            _ => {
                let id = stream.add(&self.shared.encrypt(0, Payload::Hello)?).await?;
                StreamInfo { last: id, first: Some(id), ..StreamInfo::default() }
            }
        };
        let progress = self.read_back(stream, info, epoch).await?;
        if let Some(gap) = gap {
            let reason = gap.as_str();
            self.shared.metrics.count_drop(reason);
            tracing::warn!(reason, "purged the whole cache: invalidations of other gateways may have been missed");
        }
        // Entries stored while the stream was not read may precede any of these changes.
        (self.shared.apply)(&Scope::All, TRIGGER_MISSED);
        Ok(progress)
    }

    /// Records the changes that values in the shared tier may precede. Nothing is known of the
    /// time before the last message that was removed from the middle, since it may have been that
    /// message.
    async fn read_back(
        &self,
        stream: &mut RedisStream<'_>,
        info: StreamInfo,
        epoch: u64,
    ) -> Result<Progress, RedisError> {
        let now = stream.time().await?;
        let millis = u64::try_from(self.shared.read_back.as_millis()).unwrap_or(u64::MAX);
        let oldest = info.first.unwrap_or(info.last);
        let before = stream.last_before(now.0.saturating_sub(millis)).await?;
        let floor = before.unwrap_or(oldest).max(info.deleted);
        let mut position = floor;
        for _ in 0..READ_BACK_MESSAGES_MAX / BATCH_MESSAGES_MAX {
            let messages = stream.read(position, None).await?;
            let is_at_end = messages.len() < BATCH_MESSAGES_MAX;
            for message in &messages {
                self.record(message.id, self.decrypt(message).as_ref());
            }
            position = messages.last().map_or(position, |message| message.id);
            if is_at_end {
                // Every message up to the end at the time of `info` was read or removed.
                return Ok(Progress { epoch, floor, position: position.max(info.end()) });
            }
        }
        // Too many messages: values from before the end are not trusted.
        let end = stream.info().await?.map_or(position, |info| info.end());
        Ok(Progress { epoch, floor: end, position: end })
    }

    /// Applies messages of other gateways, and records the return of own ones.
    fn apply(&mut self, messages: Vec<EncryptedMessage>) {
        let metrics = &self.shared.metrics;
        let (mut has_unreadable, mut received) = (false, 0);
        for encrypted in messages {
            let message = self.decrypt(&encrypted);
            has_unreadable |= message.is_none();
            self.record(encrypted.id, message.as_ref());
            let Some(Message { sender, number, payload }) = message else { continue };
            let is_own = sender == self.shared.sender;
            match payload {
                Payload::Change(_) if is_own => {
                    if let Some(seen) = self.shared.queue.read_back(number) {
                        metrics.observe_spread(clock::now().saturating_duration_since(seen));
                    }
                }
                Payload::Change(scope) => {
                    received += 1;
                    (self.shared.apply)(&scope, TRIGGER_REMOTE);
                }
                Payload::Policy { fingerprint, since } if !is_own => {
                    let age = encrypted.id.milliseconds().saturating_sub(since);
                    let numbers = &mut self.policy_numbers;
                    if age <= POLICY_AGE_MAX_MILLIS && is_new_policy(numbers, sender, number) {
                        (self.shared.on_policy_change)(fingerprint);
                    }
                }
                Payload::Policy { .. } | Payload::Hello | Payload::OtherEnvironment => {}
            }
        }
        metrics.count_messages("heard", received);
        if has_unreadable {
            metrics.count_drop("unreadable");
            tracing::warn!(
                "purged the whole cache: a message of the invalidation stream cannot be decoded; it was written with another key, by another version or by another program"
            );
            (self.shared.apply)(&Scope::All, TRIGGER_MISSED);
        }
    }

    /// Records a message for the shared tier. An unreadable one may concern everything.
    fn record(&self, id: StreamId, message: Option<&Message>) {
        let index = &self.shared.change_index;
        match message {
            Some(Message { sender, number, payload: Payload::Change(scope) }) => {
                let own_number = (*sender == self.shared.sender).then_some(*number);
                index.record_message(scope, id, own_number);
            }
            Some(Message { payload: Payload::Hello | Payload::Policy { .. } | Payload::OtherEnvironment, .. }) => {}
            None => index.record_message(&Scope::All, id, None),
        }
    }

    fn decrypt(&self, message: &EncryptedMessage) -> Option<Message> {
        self.shared.decrypt(message.bytes.as_deref()?)
    }
}

/// Whether a policy message is its sender's and not a copy: its number exceeds earlier ones.
fn is_new_policy(numbers: &mut HashMap<u64, u64>, sender: u64, number: u64) -> bool {
    if numbers.len() >= POLICY_SENDERS_MAX && !numbers.contains_key(&sender) {
        numbers.clear();
    }
    let last = numbers.entry(sender).or_default();
    number > std::mem::replace(last, number.max(*last))
}

/// Redis waits forever for a time of 0.
fn to_block_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(1).max(1)
}
