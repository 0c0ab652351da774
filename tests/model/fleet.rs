//! Several gateways and their shared state: an invalidation stream and a store for the shared tier,
//! like those of a Redis, on the paused clock. The gateway's encryption, encoding, change index and
//! leases use them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use telecomx_gateway::cache::{CallerIds, Scope};
use telecomx_gateway::clock;
use telecomx_gateway::cluster::seal::Sealer;
use telecomx_gateway::cluster::{Ledger, Names, ServerTime, Store, StoreError, StreamId, Tier};
use telecomx_gateway::config::Config;
use telecomx_gateway::gateway::{Gateway, GatewayDeps};
use telecomx_gateway::upstream::Client;
use tokio::sync::{Notify, watch};

use super::play::{METRICS, POLICY};
use super::steps;
use super::world::{World, wait};

/// A gateway and the number of changes that it published.
pub struct Node {
    pub id: usize,
    pub gateway: Gateway<World>,
    told: AtomicU64,
}

impl Node {
    /// Returns the number of the last change that it published.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Message {
    id: StreamId,
    sender: usize,
    number: u64,
    scope: Scope,
}

pub struct Fleet {
    config: &'static Config,
    world: World,
    shape: steps::Fleet,
    nodes: Mutex<Vec<Arc<Node>>>,
    begun: AtomicUsize,
    stream: watch::Sender<Vec<Message>>,
    store: Arc<Shelf>,
}

impl Fleet {
    pub fn new(config: &'static Config, world: World, shape: steps::Fleet) -> Arc<Fleet> {
        let store = Shelf {
            delays: shape.tier.clone(),
            taken: AtomicUsize::new(0),
            works: AtomicBool::new(true),
            start: clock::now(),
            values: Mutex::default(),
        };
        let (nodes, begun) = (Mutex::default(), AtomicUsize::new(0));
        let fleet = Arc::new(Fleet {
            config,
            world,
            shape,
            nodes,
            begun,
            stream: watch::Sender::default(),
            store: Arc::new(store),
        });
        for _ in 0..fleet.shape.gateways {
            let node = fleet.begin();
            fleet.nodes.lock().push(node);
        }
        fleet
    }

    /// Returns the gateway of the `nth` step.
    pub fn of_step(&self, nth: usize) -> Arc<Node> {
        let nodes = self.nodes.lock();
        nodes[self.shape.routes[nth % self.shape.routes.len()] % nodes.len()].clone()
    }

    /// Replaces a gateway that ends. Its work under way runs to completion.
    pub fn restart(self: &Arc<Self>, node: &Node) {
        let anew = self.begin();
        self.nodes.lock().iter_mut().filter(|before| before.id == node.id).for_each(|before| *before = anew.clone());
    }

    pub fn tier_works(&self, works: bool) {
        self.store.works.store(works, Ordering::SeqCst);
    }

    fn begin(self: &Arc<Self>) -> Arc<Node> {
        let id = self.begun.fetch_add(1, Ordering::SeqCst);
        let config = self.config;
        let client = Arc::new(Client::new(self.world.seen_by(id), &config.upstream, METRICS.clone()));
        let ledger = Arc::new(Ledger::default());
        let tier = (self.shape.gateways > 1).then(|| {
            let (sealer, names) = (Arc::new(Sealer::new(("k", &[3; 32]), [])), Names::new([4; 32], "model:"));
            let parts = (ledger.clone(), sealer, names);
            Arc::new(Tier::new(self.store.clone(), parts, Duration::from_millis(100), METRICS.clone()))
        });
        let callers = CallerIds::with_key([7; 32]);
        let parts = GatewayDeps { client, policy: POLICY.clone(), callers, metrics: METRICS.clone(), tier };
        let node = Arc::new(Node { id, gateway: Gateway::new(config, parts), told: AtomicU64::new(0) });
        if self.shape.gateways > 1 {
            self.tell(&node, &ledger);
            self.listen(&node, ledger);
        }
        node
    }

    /// Publishes its own changes in their order, with a delay.
    fn tell(self: &Arc<Self>, node: &Arc<Node>, ledger: &Arc<Ledger>) {
        let queue = Arc::new((Mutex::new(Vec::new()), Notify::new()));
        let (announced, noting, teller) = (queue.clone(), ledger.clone(), Arc::downgrade(node));
        node.gateway.generations().set_publisher(Box::new(move |scope| {
            let number = noting.noted(scope);
            if let Some(node) = teller.upgrade() {
                node.told.store(number, Ordering::SeqCst);
            }
            announced.0.lock().push((number, scope.clone()));
            announced.1.notify_one();
        }));
        let (fleet, sender) = (self.clone(), node.id);
        tokio::spawn(async move {
            loop {
                queue.1.notified().await;
                let changes = std::mem::take(&mut *queue.0.lock());
                for (number, scope) in changes {
                    wait(fleet.spread(number).0).await;
                    fleet.stream.send_modify(|stream| {
                        let id = StreamId::new(fleet.store.milliseconds(), stream.len() as u64).expect("not that many");
                        stream.push(Message { id, sender, number, scope });
                    });
                }
            }
        });
    }

    /// Knows the stream from its beginning; receives new messages in their order, with a delay.
    fn listen(self: &Arc<Self>, node: &Arc<Node>, ledger: Arc<Ledger>) {
        let (fleet, mut stream) = (self.clone(), self.stream.subscribe());
        let before = stream.borrow_and_update().clone();
        before.iter().for_each(|message| ledger.heard(&message.scope, message.id, None));
        self.world.with(|state| {
            let now = state.moment();
            state.heard.extend(before.iter().map(|message| (node.id, message.sender, message.number, now)));
        });
        let last = before.last().map_or(StreamId::ZERO, |message| message.id);
        ledger.begun(1, StreamId::ZERO, last, 0);
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
                wait(fleet.spread(message.number + node.id as u64).1).await;
                let Message { id, sender, number, scope } = message;
                ledger.heard(&scope, id, (sender == node.id).then_some(number));
                if sender != node.id {
                    node.gateway.apply_remote_invalidation(&scope, "fleet");
                }
                ledger.advanced(id);
                fleet.world.with(|state| {
                    let now = state.moment();
                    state.heard.push((node.id, sender, number, now));
                });
            }
        });
    }

    fn spread(&self, nth: u64) -> (Duration, Duration) {
        let (until_told, until_heard) = self.shape.spread[nth as usize % self.shape.spread.len()];
        (Duration::from_millis(until_told.into()), Duration::from_millis(until_heard.into()))
    }
}

/// The store of the tier.
struct Shelf {
    delays: Vec<u32>,
    taken: AtomicUsize,
    works: AtomicBool,
    start: Instant,
    values: Mutex<HashMap<String, (Vec<u8>, Instant)>>,
}

impl Shelf {
    /// A clock that differs from that of every gateway.
    fn milliseconds(&self) -> u64 {
        1_700_000_000_000 + clock::now().duration_since(self.start).as_millis() as u64
    }

    async fn takes_time(&self) -> Result<(), StoreError> {
        let nth = self.taken.fetch_add(1, Ordering::SeqCst);
        let delay = Duration::from_millis(self.delays[nth % self.delays.len()].into());
        wait(delay / 2).await;
        if self.works.load(Ordering::SeqCst) { Ok(()) } else { Err(StoreError::Unavailable) }
    }

    fn there(&self, name: &str) -> Option<Vec<u8>> {
        let values = self.values.lock();
        values.get(name).filter(|(_, until)| clock::now() < *until).map(|(value, _)| value.clone())
    }

    async fn look(&self, name: &str) -> Result<(Option<Vec<u8>>, ServerTime), StoreError> {
        self.takes_time().await?;
        let found = (self.there(name), ServerTime(self.milliseconds()));
        self.takes_time().await?;
        Ok(found)
    }

    async fn take(&self, name: &str, life: Duration) -> Result<bool, StoreError> {
        self.takes_time().await?;
        let free = self.there(name).is_none();
        if free {
            self.values.lock().insert(name.to_owned(), (Vec::new(), clock::now() + life));
        }
        self.takes_time().await?;
        Ok(free)
    }
}

async fn in_time<V>(
    within: Duration,
    what: impl Future<Output = Result<V, StoreError>> + Send,
) -> Result<V, StoreError> {
    tokio::time::timeout(within, what).await.unwrap_or(Err(StoreError::Timeout))
}

#[async_trait]
impl Store for Shelf {
    async fn get(&self, name: &str, within: Duration) -> Result<(Option<Vec<u8>>, ServerTime), StoreError> {
        in_time(within, self.look(name)).await
    }

    async fn lease(&self, name: &str, life: Duration, within: Duration) -> Result<bool, StoreError> {
        in_time(within, self.take(name, life)).await
    }

    async fn put(&self, name: &str, value: Vec<u8>, life: Duration, lease: Option<&str>) -> Result<(), StoreError> {
        self.takes_time().await?;
        self.values.lock().insert(name.to_owned(), (value, clock::now() + life));
        if let Some(lease) = lease {
            self.values.lock().remove(lease);
        }
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.takes_time().await?;
        self.values.lock().remove(name);
        Ok(())
    }
}
