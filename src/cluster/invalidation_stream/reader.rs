//! Reads the invalidation stream and applies the changes of other gateways.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::message::{Message, Payload};
use super::redis_stream::{BATCH_MESSAGES_MAX, EncryptedMessage, RedisStream, StreamInfo};
use super::state::{Backoff, SharedState, VerifiedServer, within};
use crate::cache::Scope;
use crate::clock;
use crate::cluster::connection::RedisError;
use crate::cluster::server_time::ServerTime;
use crate::cluster::stream_id::StreamId;

/// Longest wait of one read for a message, and so how often a quiet stream is found to be complete.
const READ_WAIT_MAX: Duration = Duration::from_secs(1);

/// Limit for finding the position to read from, old messages included.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A policy message that is this much older than its stream id was copied.
const POLICY_AGE_MAX_MILLIS: u64 = 60_000;

/// How much later than the server's clock an id may be: as much as the clock may be set back.
const ID_LEAD_MAX_MILLIS: u64 = 60_000;

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

/// The server's clock when it was last read, and the local clock then.
#[derive(Clone, Copy)]
struct ServerClock {
    server: ServerTime,
    local: Instant,
}

/// Why reading ended without an error.
enum ReadEnd {
    /// A new connection leads to another server.
    ServerChanged,
}

/// The reader of one gateway.
pub struct Reader {
    shared: Arc<SharedState>,
    /// `None` until the stream was joined.
    progress: Option<Progress>,
    /// The server of the last connection.
    epoch: Option<u64>,
    /// When a new connection last led to that server.
    verified_at: Instant,
    clock: Option<ServerClock>,
    backoff: Backoff,
    /// The highest policy number of each sender, so that a copied message is ignored.
    policy_numbers: HashMap<u64, u64>,
}

impl Reader {
    pub fn new(shared: Arc<SharedState>) -> Self {
        Reader {
            shared,
            progress: None,
            epoch: None,
            verified_at: clock::now(),
            clock: None,
            backoff: Backoff::new(),
            policy_numbers: HashMap::new(),
        }
    }

    /// Reads the stream, forever.
    pub async fn run(&mut self) {
        let mut logged_error = None;
        loop {
            let error = match self.read().await {
                Ok(ReadEnd::ServerChanged) => {
                    // Connects again at once; `resume` finds the other server.
                    tracing::warn!("cluster.url leads to another Redis server; reconnecting");
                    self.shared.is_connected.store(false, Ordering::Relaxed);
                    self.shared.change_index.suspend();
                    continue;
                }
                Err(error) => error,
            };
            if let RedisError::Unusable(_) = error
                && self.recreate(&error).await.is_ok()
            {
                self.progress = None;
            }
            let was_connected = self.shared.is_connected.swap(false, Ordering::Relaxed);
            self.shared.change_index.suspend();
            self.shared.record_error(&error);
            // One line for each kind of failure or error reply, not for each attempt.
            let failure = match &error {
                RedisError::Refused(reply) => reply.clone(),
                _ => error.as_str().to_owned(),
            };
            if was_connected || logged_error.as_ref() != Some(&failure) {
                let redis = &self.shared.key;
                tracing::error!(%error, redis, "failed to read the invalidation stream");
                logged_error = Some(failure);
            }
            self.backoff.pause().await;
        }
    }

    /// Deletes a value in the stream's place that can never be read, so that the next attempt
    /// creates a new stream: a client that may write there can only make gateways invalidate what
    /// they store. Every gateway finds its position missing and invalidates everything.
    async fn recreate(&mut self, error: &RedisError) -> Result<(), RedisError> {
        let shared = self.shared.clone();
        let key = &shared.key;
        let recreating = async {
            let mut connection = shared.connector.connect().await?;
            let mut stream = RedisStream { connection: &mut connection, key };
            // Another gateway may have deleted it already.
            let end = match stream.info().await {
                Ok(info) => info.map_or(StreamId::ZERO, |info| info.end()),
                Err(RedisError::Unusable(_)) => return stream.delete().await,
                Err(error) => return Err(error),
            };
            match self.check_clock(&mut stream, end).await {
                Err(RedisError::Unusable(_)) => stream.delete().await,
                result => result,
            }
        };
        let limit = shared.connect_timeout + shared.timeout;
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

    /// Reads until the connection fails or another server replaces this one.
    async fn read(&mut self) -> Result<ReadEnd, RedisError> {
        let shared = self.shared.clone();
        let connected_at = clock::now();
        let mut connection = shared.connector.connect().await?;
        let mut stream = RedisStream { connection: &mut connection, key: &shared.key };
        let wait = READ_WAIT_MAX.min(shared.max_isolation / 4);
        let limit = wait + shared.connect_timeout;
        let mut progress = within(JOIN_TIMEOUT, self.resume(&mut stream)).await?;
        self.progress = Some(progress);
        self.verified_at = connected_at;
        let epoch = progress.epoch;
        let server = VerifiedServer { epoch, at: connected_at };
        shared.verified.send_replace(Some(server));
        let (mut is_caught_up, mut has_repaired) = (false, false);
        loop {
            // A read is complete up to the moment before it: later messages may not be in it.
            let started = clock::now();
            let acknowledged = shared.queue.acknowledged();
            let block_millis = is_caught_up.then(|| to_block_millis(wait));
            let reading = stream.read(progress.position, block_millis);
            let messages = within(limit, reading).await?;
            match *shared.verified.borrow() {
                Some(server) if server.epoch != epoch => return Ok(ReadEnd::ServerChanged),
                server => self.verified_at = server.map_or(connected_at, |server| server.at),
            }
            let before = progress.position;
            progress.position = messages.last().map_or(before, |message| message.id);
            let is_at_end = messages.len() < BATCH_MESSAGES_MAX;
            self.apply(messages);
            let info = within(limit, stream.info()).await?;
            let end = info.map_or(StreamId::ZERO, |info| info.end());
            within(limit, self.check_clock(&mut stream, end)).await?;
            if !info.is_some_and(|info| info.continues(before)) {
                // A second time in a row the repair had no effect: a failure, followed by a pause.
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
                let synced_at = started.min(self.verified_at);
                *shared.synced_at.lock() = synced_at;
                shared.generations.set_synced_until(synced_at, synced_at + shared.max_isolation);
            }
        }
    }

    /// Checks that an id is not later than the server's clock. Ids only grow, so that all later
    /// messages would be as late, and the age of a policy message could not be determined.
    async fn check_clock(
        &mut self,
        stream: &mut RedisStream<'_>,
        id: StreamId,
    ) -> Result<(), RedisError> {
        if !self.is_ahead(id) {
            return Ok(());
        }
        // Asks again, since the server's clock may have been set.
        self.clock = Some(ServerClock { server: stream.time().await?, local: clock::now() });
        if !self.is_ahead(id) {
            return Ok(());
        }
        Err(RedisError::Unusable(format!("its id {id} is later than the server's clock")))
    }

    fn is_ahead(&self, id: StreamId) -> bool {
        let Some(ServerClock { server, local }) = self.clock else { return true };
        let since = clock::now().saturating_duration_since(local);
        let now = server.0.saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        id.milliseconds() > now.saturating_add(ID_LEAD_MAX_MILLIS)
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
    async fn resume(&mut self, stream: &mut RedisStream<'_>) -> Result<Progress, RedisError> {
        let epoch = stream.epoch().await?;
        if self.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            self.leave_server();
        }
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

    /// Another server replaced the one before. Changes that the old one confirmed after the last
    /// check may have been added to a stream that no other gateway reads any more, so that they are
    /// replaced by a change of everything.
    fn leave_server(&self) {
        self.shared.connector.record_server_change();
        if self.shared.queue.has_acknowledged_since(self.verified_at) {
            self.shared.queue.push(&Scope::All, &self.shared.change_index, clock::now());
        }
    }

    /// Begins at the end of the stream and invalidates everything from before. The end is the
    /// highest id that the server names, even if its message was removed: later checks for missing
    /// messages compare with these ids.
    async fn join(
        &mut self,
        stream: &mut RedisStream<'_>,
        epoch: u64,
        gap: Option<Gap>,
    ) -> Result<Progress, RedisError> {
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
            tracing::warn!(
                reason,
                "purged the whole cache: invalidations of other gateways may have been missed"
            );
        }
        // Entries stored while the stream was not read may precede any of these changes.
        (self.shared.apply)(&Scope::All, TRIGGER_MISSED);
        Ok(progress)
    }

    /// Records the changes that values in the shared tier may precede. Nothing is known of the
    /// time before the last message that was removed from the middle, since it may have been that
    /// message.
    async fn read_back(
        &mut self,
        stream: &mut RedisStream<'_>,
        info: StreamInfo,
        epoch: u64,
    ) -> Result<Progress, RedisError> {
        let now = stream.time().await?;
        self.clock = Some(ServerClock { server: now, local: clock::now() });
        self.check_clock(stream, info.end()).await?;
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
                "purged the whole cache: a message of the invalidation stream cannot be decoded; it was \
                 written with another key, by another version or by another program"
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
            Some(Message {
                payload: Payload::Hello | Payload::Policy { .. } | Payload::OtherEnvironment,
                ..
            }) => {}
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
