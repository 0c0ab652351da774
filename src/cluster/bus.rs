//! What one gateway of a fleet sees reaches the others: changes are published in a stream, and each gateway reads all of it.
//!
//! - A change is queued when it is seen and published in that order, over failures too; nobody waits for it.
//! - Each gateway remembers how far it has read. After a cut it reads on from there; where it cannot know what it missed (the
//!   stream was cut off, the server began anew) it drops everything once, and says so.
//! - While the others are not heard, memory is used for `cluster.max_isolation` and no longer. That bound is a point in
//!   time that every lookup compares with, not something that has to happen: it holds for a process that was stopped, too.
//!
//! It runs in a thread of its own, so that a busy gateway hears of changes as quickly as an idle one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::connection::{Connector, Error};
use super::environment::Environment;
use super::keys::Keys;
use super::ledger::{Ledger, StreamId};
use super::message::{Context, Message, Word};
use super::queue::{Change, Queue};
use super::seal::Sealer;
use super::stream::{self, BATCH, Sealed, State, Stream};
use crate::cache::{Generations, Scope};
use crate::clock;
use crate::config;
use crate::telemetry::BusMetrics;

/// Changes published at once.
const PUBLISHED_AT_ONCE: usize = 128;

/// Between attempts after a failure, at first; doubled up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The longest that one read waits for a message; also how often a silent fleet is heard of.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Between two looks at whether it is cut off.
const LOOK: Duration = Duration::from_millis(200);

/// How long it may take to find out where to read on from, old messages included.
const JOINING: Duration = Duration::from_secs(10);

/// A policy message that is this much older than its place in the stream was copied there.
const POLICY_MAX_AGE_MILLIS: u64 = 60_000;

/// Senders of policies that are remembered; beyond that they are forgotten, and a copy counts once
/// more.
const MAX_POLICY_SENDERS: usize = 4096;

/// Old messages read at most by a gateway that begins: those about values that may still be in the shared tier.
const MAX_READ_BACK: usize = 200_000;

/// Why everything is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missed {
    /// The stream was cut off before it was read.
    Trimmed,
    /// Another server, or the same one in another life, which may have lost its last messages.
    Server,
}

impl Missed {
    const fn as_str(self) -> &'static str {
        match self {
            Missed::Trimmed => "trimmed",
            Missed::Server => "server",
        }
    }
}

/// Obeys a change that others saw; with the word for it in metrics.
pub type Obey = Box<dyn Fn(&Scope, &'static str) + Send + Sync>;

/// Another gateway was told to redact by the policy of this fingerprint.
pub type Repolicy = Box<dyn Fn(u64) + Send + Sync>;

/// What the bus works on.
pub struct Parts {
    pub connector: Arc<Connector>,
    pub ledger: Arc<Ledger>,
    /// Messages of others say nothing here.
    pub environment: Environment,
    pub generations: Arc<Generations>,
    pub obey: Obey,
    pub repolicy: Repolicy,
    pub metrics: BusMetrics,
    /// For how long values of the shared tier may be of use: so far a new gateway reads back.
    pub read_back: Duration,
}

/// The bus of one gateway.
pub struct Bus {
    parts: Parts,
    queue: Queue,
    sealer: Sealer,
    context: Context,
    /// This process among the senders.
    sender: u64,
    key: String,
    place: Vec<u8>,
    max_isolation: Duration,
    ready_when_isolated: bool,
    timeout: Duration,
    connect_timeout: Duration,
    connected: AtomicBool,
    /// For [`Bus::stats`]: where it has read to, and when the others were last heard.
    position: AtomicU64,
    heard_at: Mutex<Instant>,
    /// The policy that the others are to hear of, and its number.
    policy: watch::Sender<Option<(u64, u64)>>,
    /// The highest number of a policy from each sender, so that a copied message does not count
    /// again.
    policy_numbers: Mutex<HashMap<u64, u64>>,
}

/// How far it has read, and in which life of the server.
#[derive(Clone, Copy)]
struct Progress {
    epoch: u64,
    floor: StreamId,
    position: StreamId,
}

impl Bus {
    /// How long a process that ends waits for the others to be told.
    pub const LAST: Duration = Duration::from_secs(1);

    /// Begins to work, in an own thread. From here on memory is used only as long as the stream is
    /// read. `keys`: those of the cluster, which seal messages, and those of the environment, by
    /// which tokens are digested.
    ///
    /// # Errors
    /// The operating system gives no randomness or no thread.
    pub fn start(
        config: &config::Cluster,
        (keys, bound_keys): (&Keys, &Keys),
        parts: Parts,
    ) -> std::io::Result<Arc<Self>> {
        let key = format!("{}:changes", config.name);
        let bus = Arc::new(Bus {
            queue: Queue::default(),
            sealer: keys.sealer(),
            context: Context { environment: parts.environment, tag: bound_keys.callers_tag() },
            sender: getrandom::u64().map_err(std::io::Error::other)?,
            place: format!("telecomx-gateway changes {key}").into_bytes(),
            key,
            max_isolation: config.max_isolation,
            ready_when_isolated: config.ready_when_isolated,
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            connected: AtomicBool::new(false),
            position: AtomicU64::new(0),
            heard_at: Mutex::new(clock::now()),
            policy: watch::Sender::new(None),
            policy_numbers: Mutex::default(),
            parts,
        });
        bus.parts.generations.set_synced_until(clock::now(), clock::now() + bus.max_isolation);
        let announcing = bus.clone();
        bus.parts.generations.set_publisher(Box::new(move |scope| announcing.announce(scope)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let running = bus.clone();
        let work = move || {
            runtime.block_on(async {
                tokio::join!(running.publish(), running.pass_on(), running.listen(), running.watch())
            });
        };
        std::thread::Builder::new().name("bus".into()).spawn(work)?;
        Ok(bus)
    }

    /// Tells the others that this gateway redacts by another policy from now on.
    pub fn tell_policy(&self, fingerprint: u64) {
        self.policy.send_modify(|last| *last = Some((fingerprint, last.map_or(1, |(_, number)| number + 1))));
    }

    /// Whether nothing is answered from memory, since the others were not heard for too long.
    pub fn is_isolated(&self) -> bool {
        !self.parts.generations.is_synced(clock::now())
    }

    /// Whether a load balancer may send requests here.
    pub fn is_ready(&self) -> bool {
        self.ready_when_isolated || !self.is_isolated()
    }

    /// How it stands, for people.
    pub fn stats(&self) -> serde_json::Value {
        json!({
            "connected": self.connected.load(Ordering::Relaxed),
            "isolated": self.is_isolated(),
            "silence_seconds": self.silence().as_secs_f64(),
            "position": StreamId::from_bits(self.position.load(Ordering::Acquire)).to_string(),
            "waiting_changes": self.queue.len(),
            "stream": self.key,
        })
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let connected = self.connected.load(Ordering::Relaxed);
        self.parts.metrics.stands(connected, self.is_isolated(), self.queue.len(), self.silence());
    }

    /// Waits until the others have been told of everything, but no longer than that. Not for a thread that serves.
    pub fn flush(&self, longest: Duration) {
        let until = Instant::now() + longest;
        while self.queue.len() > 0 && Instant::now() < until {
            #[expect(clippy::disallowed_methods, reason = "the process ends; its thread has nothing else to do")]
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = self.queue.len();
        if left > 0 {
            tracing::error!(changes = left, "stopped before all invalidations were published");
        }
    }

    fn silence(&self) -> Duration {
        clock::now().saturating_duration_since(*self.heard_at.lock())
    }

    fn announce(&self, scope: &Scope) {
        if self.queue.add(scope, &self.parts.ledger, clock::now()) {
            self.parts.metrics.dropped("overflow");
            tracing::warn!("invalidation queue is full; other gateways will purge their whole cache");
        }
    }

    fn failed(&self, error: &Error) {
        self.parts.metrics.failed(error.as_str());
    }

    /// Tells the others, for ever.
    async fn publish(&self) {
        let mut pause = FIRST_PAUSE;
        let mut link = None;
        let mut fails = false;
        loop {
            let changes = self.queue.first(PUBLISHED_AT_ONCE).await;
            match self.send(&mut link, &changes).await {
                Ok(()) => {
                    if std::mem::take(&mut fails) {
                        tracing::info!("invalidation publishing resumed");
                    }
                    pause = FIRST_PAUSE;
                    self.parts.metrics.messages("told", changes.len());
                    self.queue.told(changes.last().map_or(0, |change| change.number));
                }
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        tracing::error!(%error, "failed to publish invalidations; they are queued");
                    }
                    self.failed(&error);
                    link = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Whoever fails sends all of them again: to hear of a change twice costs a fetch.
    async fn send(
        &self,
        link: &mut Option<redis::aio::MultiplexedConnection>,
        changes: &[Change],
    ) -> Result<(), Error> {
        let link = match link {
            Some(link) => link,
            None => link.insert(self.parts.connector.connect().await?),
        };
        let mut commands = redis::pipe();
        for Change { number, scope, .. } in changes {
            let sealed = self.sealed(*number, Word::Change(scope.clone()))?;
            commands.add_command(stream::add(&self.key, &sealed)).ignore();
        }
        let sent = timeout(self.timeout, commands.query_async::<()>(link)).await;
        sent.map_err(|_| Error::Timeout)?.map_err(Error::from)
    }

    /// Tells the others of policies, for ever: the last one, until they have it.
    async fn pass_on(&self) {
        let mut policies = self.policy.subscribe();
        while policies.changed().await.is_ok() {
            let mut pause = FIRST_PAUSE;
            loop {
                let Some((fingerprint, number)) = *policies.borrow_and_update() else { break };
                let told = async {
                    let mut link = self.parts.connector.connect().await?;
                    let mut stream = Stream { link: &mut link, key: &self.key };
                    let since = stream.time().await?.0;
                    let sealed = self.sealed(number, Word::Policy { fingerprint, since })?;
                    stream.add(&sealed).await
                };
                let Err(error) = self.in_time(self.connect_timeout + self.timeout, told).await else { break };
                self.failed(&error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn sealed(&self, number: u64, word: Word) -> Result<Vec<u8>, Error> {
        let message = Message { sender: self.sender, number, word };
        let sealed = self.sealer.seal(&self.place, &message.to_bytes(&self.context));
        sealed.map_err(|error| Error::Unreachable(error.to_string()))
    }

    /// Hears of what the others see, for ever.
    async fn listen(&self) {
        let mut progress = None;
        let mut pause = FIRST_PAUSE;
        let mut said = None;
        loop {
            let Err(error) = self.read(&mut progress, &mut pause).await;
            if let Error::Unusable(_) = error
                && self.recreate(&error).await.is_ok()
            {
                progress = None;
            }
            let was_connected = self.connected.swap(false, Ordering::Relaxed);
            self.parts.ledger.lost();
            self.failed(&error);
            // Once for each thing that goes wrong, not for each attempt.
            if was_connected || said.as_deref() != Some(error.as_str()) {
                tracing::error!(%error, redis = self.key, "failed to read the invalidation stream");
                said = Some(error.as_str().to_owned());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Deletes what stands in the stream's place and can never be read, so that the next attempt
    /// begins a new stream: who may write there can make gateways drop what they store, and no
    /// more. Every gateway sees that its position is gone, and drops everything.
    async fn recreate(&self, error: &Error) -> Result<(), Error> {
        let recreated = async {
            let mut link = self.parts.connector.connect().await?;
            let mut stream = Stream { link: &mut link, key: &self.key };
            // Another gateway may have done it by now.
            match stream.state().await {
                Err(Error::Unusable(_)) => stream.delete().await,
                _ => Ok(()),
            }
        };
        let recreated = self.in_time(self.connect_timeout + self.timeout, recreated).await;
        self.parts.metrics.dropped("unusable");
        match &recreated {
            Ok(()) => {
                tracing::error!(%error, key = self.key, "recreated the unusable invalidation stream");
            }
            Err(failed) => {
                tracing::error!(%error, %failed, key = self.key, "the invalidation stream is unusable; delete the key");
            }
        }
        recreated
    }

    /// Reads as long as the connection lasts.
    async fn read(
        &self,
        progress: &mut Option<Progress>,
        pause: &mut Duration,
    ) -> Result<std::convert::Infallible, Error> {
        let mut link = self.parts.connector.connect().await?;
        let mut stream = Stream { link: &mut link, key: &self.key };
        let wait = LONGEST_WAIT.min(self.max_isolation / 4);
        let longest = wait + self.connect_timeout;
        let mut at = self.in_time(JOINING, self.begin(&mut stream, *progress)).await?;
        *progress = Some(at);
        let (mut caught_up, mut repaired) = (false, false);
        loop {
            // What is read now holds for this moment: messages that come while the answer is on its way are not in it.
            let (asked, sent) = (clock::now(), self.queue.sent());
            let waiting = caught_up.then(|| u64::try_from(wait.as_millis()).unwrap_or(1).max(1));
            let messages = self.in_time(longest, stream.read(at.position, waiting)).await?;
            let before = at.position;
            at.position = messages.last().map_or(before, |message| message.id);
            let whole = messages.len() < BATCH;
            self.apply(messages);
            let state = self.in_time(longest, stream.state()).await?;
            if !state.is_some_and(|state| state.continues(before)) {
                // A second time in a row, the repair repaired nothing: a failure, after which it
                // pauses.
                if std::mem::replace(&mut repaired, true) {
                    return Err(Error::Malformed("messages of the invalidation stream are missing again".into()));
                }
                at = self.in_time(JOINING, self.join(&mut stream, at.epoch, Some(Missed::Trimmed))).await?;
                *progress = Some(at);
                caught_up = false;
                continue;
            }
            repaired = false;
            *progress = Some(at);
            if caught_up {
                self.parts.ledger.advanced(at.position);
            } else if whole {
                caught_up = true;
                self.parts.ledger.begun(at.epoch, at.floor, at.position, sent);
                *pause = FIRST_PAUSE;
                if !self.connected.swap(true, Ordering::Relaxed) {
                    tracing::info!(position = %at.position, "reading the invalidation stream");
                }
            }
            // What is fetched by one who reads it here counts as from after it.
            self.position.store(at.position.to_bits(), Ordering::Release);
            if whole {
                *self.heard_at.lock() = asked;
                self.parts.generations.set_synced_until(asked, asked + self.max_isolation);
            }
        }
    }

    async fn in_time<T>(&self, longest: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        timeout(longest, work).await.unwrap_or(Err(Error::Timeout))
    }

    /// Where to read on from.
    async fn begin(&self, stream: &mut Stream<'_>, progress: Option<Progress>) -> Result<Progress, Error> {
        let epoch = stream.epoch().await?;
        let Some(before) = progress else { return self.join(stream, epoch, None).await };
        if before.epoch != epoch {
            return self.join(stream, epoch, Some(Missed::Server)).await;
        }
        let state = stream.state().await?;
        match state.is_some_and(|state| state.continues(before.position)) {
            true => Ok(before),
            false => self.join(stream, epoch, Some(Missed::Trimmed)).await,
        }
    }

    /// Begins at the end of the stream, with nothing stored from before. The end is the highest id
    /// that the server names, also where its message was taken out: by these ids is judged
    /// afterwards whether anything is missing.
    async fn join(&self, stream: &mut Stream<'_>, epoch: u64, missed: Option<Missed>) -> Result<Progress, Error> {
        self.parts.ledger.forget();
        let state = match stream.state().await? {
            Some(state @ State { first: Some(_), .. }) => state,
            // A message to begin behind: by it will be seen whether anything was cut off.
            _ => {
                let id = stream.add(&self.sealed(0, Word::Hello)?).await?;
                State { last: id, first: Some(id), ..State::default() }
            }
        };
        let (floor, position) = self.read_back(stream, state).await?;
        if let Some(missed) = missed {
            self.parts.metrics.dropped(missed.as_str());
            tracing::warn!(
                reason = missed.as_str(),
                "purged the whole cache: invalidations of other gateways may have been missed"
            );
        }
        // What was stored while nobody was heard may be from before any of these changes.
        (self.parts.obey)(&Scope::All, "missed");
        Ok(Progress { epoch, floor, position })
    }

    /// Learns of changes that values in the shared tier may be from before. Of what came before the
    /// last message that was taken out of the middle nothing is known, since it may have been that
    /// one.
    async fn read_back(&self, stream: &mut Stream<'_>, state: State) -> Result<(StreamId, StreamId), Error> {
        let now = stream.time().await?;
        let since = now.0.saturating_sub(u64::try_from(self.parts.read_back.as_millis()).unwrap_or(u64::MAX));
        let oldest = state.first.unwrap_or(state.last);
        let floor = stream.last_before(since).await?.unwrap_or(oldest).max(state.deleted);
        let mut position = floor;
        for _ in 0..MAX_READ_BACK / BATCH {
            let messages = stream.read(position, None).await?;
            let last = messages.last().map(|message| message.id);
            let end = messages.len() < BATCH;
            for sealed in messages {
                self.note(sealed.id, self.open(&sealed).as_ref());
            }
            position = last.unwrap_or(position);
            if end {
                // Whatever had an id up to there when the state was read was there to be read
                // since, or was taken out.
                return Ok((floor, position.max(state.end())));
            }
        }
        // Too many to read: what is older than its last one is not trusted.
        let last = stream.state().await?.map_or(position, |state| state.end());
        Ok((last, last))
    }

    /// Obeys what others saw.
    fn apply(&self, messages: Vec<Sealed>) {
        let (mut unreadable, mut heard) = (false, 0);
        for sealed in messages {
            let message = self.open(&sealed);
            unreadable |= message.is_none();
            self.note(sealed.id, message.as_ref());
            let Some(Message { sender, number, word }) = message else { continue };
            match word {
                Word::Change(scope) if sender != self.sender => {
                    heard += 1;
                    (self.parts.obey)(&scope, "fleet");
                }
                Word::Change(_) => {
                    if let Some(seen) = self.queue.came_back(number) {
                        self.parts.metrics.spread(clock::now().saturating_duration_since(seen));
                    }
                }
                Word::Policy { fingerprint, since } if sender != self.sender => {
                    if self.is_new_policy(sender, number, since, sealed.id) {
                        (self.parts.repolicy)(fingerprint);
                    }
                }
                Word::Policy { .. } | Word::Hello | Word::OtherEnvironment => {}
            }
        }
        self.parts.metrics.messages("heard", heard);
        if unreadable {
            self.parts.metrics.dropped("unreadable");
            tracing::warn!(
                "purged the whole cache: a message of the invalidation stream cannot be decoded; it was written with another key, by another version or by another program"
            );
            (self.parts.obey)(&Scope::All, "missed");
        }
    }

    /// Whether a policy message is its sender's own and not a copy of one: it has a number above
    /// those before it, and was made when the stream took it.
    fn is_new_policy(&self, sender: u64, number: u64, since: u64, id: StreamId) -> bool {
        if id.milliseconds().saturating_sub(since) > POLICY_MAX_AGE_MILLIS {
            return false;
        }
        let mut numbers = self.policy_numbers.lock();
        if numbers.len() >= MAX_POLICY_SENDERS && !numbers.contains_key(&sender) {
            numbers.clear();
        }
        let last = numbers.entry(sender).or_default();
        number > std::mem::replace(last, number.max(*last))
    }

    /// For the shared tier. What cannot be read may be about everything.
    fn note(&self, id: StreamId, message: Option<&Message>) {
        let ledger = &self.parts.ledger;
        match message {
            Some(Message { sender, number, word: Word::Change(scope) }) => {
                ledger.heard(scope, id, (*sender == self.sender).then_some(*number));
            }
            Some(Message { word: Word::Hello | Word::Policy { .. } | Word::OtherEnvironment, .. }) => {}
            None => ledger.heard(&Scope::All, id, None),
        }
    }

    fn open(&self, sealed: &Sealed) -> Option<Message> {
        let opened = sealed.bytes.as_deref().map(|bytes| self.sealer.open(&self.place, bytes))?;
        match opened {
            Ok(bytes) => Message::from_bytes(&bytes, &self.context),
            Err(why) => {
                self.parts.metrics.failed(why.as_str());
                None
            }
        }
    }

    /// Says when it is cut off, and when it is not any more.
    async fn watch(&self) {
        let mut was = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let is = self.is_isolated();
            if is && !was {
                tracing::error!(
                    silence_seconds = self.silence().as_secs_f64(),
                    "isolated from Redis for longer than cluster.max_isolation; every request is sent to the API"
                );
            } else if was && !is {
                tracing::info!("isolation ended; cached responses are served again");
            }
            was = is;
        }
    }
}
