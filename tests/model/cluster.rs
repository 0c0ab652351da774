//! Several gateways with an invalidation stream and a store for the shared tier in memory, on the
//! simulated clock. The gateway's own encryption, encodings, change index and leases run on them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use telecomx_gateway::cache::{CallerIds, Scope};
use telecomx_gateway::clock;
use telecomx_gateway::cluster::aead::Cipher;
use telecomx_gateway::cluster::{
    ChangeIndex, KeyDeriver, ServerTime, Store, StoreError, StreamId, Tier, TierDeps,
};
use telecomx_gateway::config::Config;
use telecomx_gateway::gateway::{Gateway, GatewayDeps};
use telecomx_gateway::upstream::Client;
use tokio::sync::{Notify, watch};

use super::api_model::{ApiModel, Receipt, wait};
use super::runner::{METRICS, POLICY};
use super::steps::{ChangeDelay, ClusterShape};

const TIER_TIMEOUT: Duration = Duration::from_millis(100);

/// A gateway.
pub struct Node {
    pub id: usize,
    pub gateway: Gateway<ApiModel>,
    last_published: AtomicU64,
}

impl Node {
    /// The number of the last change that it published.
    pub fn last_published(&self) -> u64 {
        self.last_published.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Message {
    id: StreamId,
    sender: usize,
    number: u64,
    scope: Scope,
}

/// Changes of one gateway that are not in the stream yet.
#[derive(Default)]
struct Outbox {
    changes: Mutex<Vec<(u64, Scope)>>,
    is_filled: Notify,
}

pub struct Cluster {
    config: &'static Config,
    api: ApiModel,
    shape: ClusterShape,
    nodes: Mutex<Vec<Arc<Node>>>,
    started: AtomicUsize,
    stream: watch::Sender<Vec<Message>>,
    store: Arc<MemoryStore>,
}

impl Cluster {
    pub fn new(config: &'static Config, api: ApiModel, shape: ClusterShape) -> Arc<Cluster> {
        let cluster = Arc::new(Cluster {
            config,
            api,
            nodes: Mutex::default(),
            started: AtomicUsize::new(0),
            stream: watch::Sender::default(),
            store: Arc::new(MemoryStore::new(shape.tier_delays.clone())),
            shape,
        });
        for _ in 0..cluster.shape.gateways {
            let node = cluster.start_node();
            cluster.nodes.lock().push(node);
        }
        cluster
    }

    /// The gateway of the `nth` step.
    pub fn node_of_step(&self, nth: usize) -> Arc<Node> {
        let nodes = self.nodes.lock();
        nodes[self.shape.routes[nth % self.shape.routes.len()] % nodes.len()].clone()
    }

    /// Replaces a gateway. The old one completes its requests.
    pub fn restart(self: &Arc<Self>, node: &Node) {
        let new = self.start_node();
        for slot in self.nodes.lock().iter_mut().filter(|slot| slot.id == node.id) {
            *slot = new.clone();
        }
    }

    pub fn set_tier(&self, works: bool) {
        self.store.works.store(works, Ordering::SeqCst);
    }

    fn start_node(self: &Arc<Self>) -> Arc<Node> {
        let id = self.started.fetch_add(1, Ordering::SeqCst);
        let config = self.config;
        let api = self.api.for_gateway(id);
        let client = Arc::new(Client::new(api, &config.upstream, METRICS.clone()));
        let index = Arc::new(ChangeIndex::default());
        let is_cluster = self.shape.gateways > 1;
        let tier = is_cluster.then(|| {
            Arc::new(Tier::new(TierDeps {
                store: self.store.clone(),
                change_index: index.clone(),
                cipher: Arc::new(Cipher::new(("k", &[3; 32]), [])),
                keys: KeyDeriver::new([4; 32], "model:"),
                timeout: TIER_TIMEOUT,
                metrics: METRICS.clone(),
            }))
        });
        let callers = CallerIds::with_key([7; 32]);
        let parts =
            GatewayDeps { client, policy: POLICY.clone(), callers, metrics: METRICS.clone(), tier };
        let gateway = Gateway::new(config, parts);
        let node = Arc::new(Node { id, gateway, last_published: AtomicU64::new(0) });
        if is_cluster {
            self.publish_changes(&node, &index);
            self.read_changes(&node, index);
        }
        node
    }

    /// Appends a gateway's changes to the stream in their order, each after a delay.
    fn publish_changes(self: &Arc<Self>, node: &Arc<Node>, index: &Arc<ChangeIndex>) {
        let outbox = Arc::new(Outbox::default());
        let (filled, index, publisher) = (outbox.clone(), index.clone(), Arc::downgrade(node));
        node.gateway.generations().set_publisher(Box::new(move |scope| {
            let number = index.record_own(scope);
            if let Some(node) = publisher.upgrade() {
                node.last_published.store(number, Ordering::SeqCst);
            }
            filled.changes.lock().push((number, scope.clone()));
            filled.is_filled.notify_one();
        }));
        let (cluster, sender) = (self.clone(), node.id);
        tokio::spawn(async move {
            loop {
                outbox.is_filled.notified().await;
                let changes = std::mem::take(&mut *outbox.changes.lock());
                for (number, scope) in changes {
                    wait(cluster.publish_delay(number)).await;
                    cluster.stream.send_modify(|stream| {
                        let (millis, sequence) = (cluster.store.millis(), stream.len() as u64);
                        let id = StreamId::new(millis, sequence).expect("a small number");
                        stream.push(Message { id, sender, number, scope });
                    });
                }
            }
        });
    }

    /// Records the stream so far, then applies its messages in their order, each after a delay.
    fn read_changes(self: &Arc<Self>, node: &Arc<Node>, index: Arc<ChangeIndex>) {
        let (cluster, mut stream) = (self.clone(), self.stream.subscribe());
        let before = stream.borrow_and_update().clone();
        for message in &before {
            index.record_message(&message.scope, message.id, None);
        }
        self.record_receipts(node.id, &before);
        let last = before.last().map_or(StreamId::ZERO, |message| message.id);
        index.start(1, StreamId::ZERO, last, 0);
        let (node, mut next) = (node.clone(), before.len());
        tokio::spawn(async move {
            loop {
                let message = stream.borrow_and_update().get(next).cloned();
                let Some(message) = message else {
                    if stream.changed().await.is_err() {
                        return;
                    }
                    continue;
                };
                next += 1;
                wait(cluster.read_delay(message.number + node.id as u64)).await;
                let Message { id, sender, number, ref scope } = message;
                index.record_message(scope, id, (sender == node.id).then_some(number));
                if sender != node.id {
                    node.gateway.apply_remote_invalidation(scope, "fleet");
                }
                index.advance(id);
                cluster.record_receipts(node.id, &[message]);
            }
        });
    }

    fn record_receipts(&self, gateway: usize, messages: &[Message]) {
        self.api.with(|state| {
            let when = state.moment();
            let receipt = |&Message { sender, number, .. }: &Message| Receipt {
                gateway,
                sender,
                number,
                when,
            };
            state.receipts.extend(messages.iter().map(receipt));
        });
    }

    fn delay(&self, nth: u64) -> ChangeDelay {
        self.shape.delays[nth as usize % self.shape.delays.len()]
    }

    fn publish_delay(&self, nth: u64) -> Duration {
        Duration::from_millis(self.delay(nth).publish.into())
    }

    fn read_delay(&self, nth: u64) -> Duration {
        Duration::from_millis(self.delay(nth).read.into())
    }
}

struct StoredValue {
    bytes: Vec<u8>,
    expires_at: Instant,
}

/// The store of the shared tier.
struct MemoryStore {
    delays: Vec<u32>,
    operations: AtomicUsize,
    works: AtomicBool,
    started: Instant,
    values: Mutex<HashMap<String, StoredValue>>,
}

impl MemoryStore {
    fn new(delays: Vec<u32>) -> Self {
        MemoryStore {
            delays,
            operations: AtomicUsize::new(0),
            works: AtomicBool::new(true),
            started: clock::now(),
            values: Mutex::default(),
        }
    }

    /// The server's clock, which differs from that of gateways and API.
    fn millis(&self) -> u64 {
        1_700_000_000_000 + clock::now().duration_since(self.started).as_millis() as u64
    }

    /// Half of an operation's delay; an operation waits before and after it accesses the values.
    async fn take_time(&self) -> Result<(), StoreError> {
        let nth = self.operations.fetch_add(1, Ordering::SeqCst);
        let delay = Duration::from_millis(self.delays[nth % self.delays.len()].into());
        wait(delay / 2).await;
        if self.works.load(Ordering::SeqCst) { Ok(()) } else { Err(StoreError::Unavailable) }
    }

    fn read(&self, key: &str) -> Option<Vec<u8>> {
        let values = self.values.lock();
        let value = values.get(key).filter(|value| clock::now() < value.expires_at)?;
        Some(value.bytes.clone())
    }

    fn write(&self, key: &str, bytes: Vec<u8>, ttl: Duration) {
        let value = StoredValue { bytes, expires_at: clock::now() + ttl };
        self.values.lock().insert(key.to_owned(), value);
    }

    async fn slow_read(&self, key: &str) -> Result<(Option<Vec<u8>>, ServerTime), StoreError> {
        self.take_time().await?;
        let read = (self.read(key), ServerTime(self.millis()));
        self.take_time().await?;
        Ok(read)
    }

    async fn slow_lease(&self, key: &str, ttl: Duration) -> Result<bool, StoreError> {
        self.take_time().await?;
        let is_free = self.read(key).is_none();
        if is_free {
            self.write(key, Vec::new(), ttl);
        }
        self.take_time().await?;
        Ok(is_free)
    }
}

async fn within<V>(
    timeout: Duration,
    operation: impl Future<Output = Result<V, StoreError>> + Send,
) -> Result<V, StoreError> {
    tokio::time::timeout(timeout, operation).await.unwrap_or(Err(StoreError::Timeout))
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(
        &self,
        key: &str,
        timeout: Duration,
    ) -> Result<(Option<Vec<u8>>, ServerTime), StoreError> {
        within(timeout, self.slow_read(key)).await
    }

    async fn lease(&self, key: &str, ttl: Duration, timeout: Duration) -> Result<bool, StoreError> {
        within(timeout, self.slow_lease(key, ttl)).await
    }

    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        lease: Option<&str>,
    ) -> Result<(), StoreError> {
        self.take_time().await?;
        self.write(key, value, ttl);
        if let Some(lease) = lease {
            self.values.lock().remove(lease);
        }
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.take_time().await?;
        self.values.lock().remove(key);
        Ok(())
    }
}
