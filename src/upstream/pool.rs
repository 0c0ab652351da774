//! Kept connections to the API.
//!
//! Each thread has its own shard, so that a connection stays on the thread that opened it and
//! its lock is never contended; only the sweeper visits other threads' shards. A kept connection
//! costs no task, no timer and no system call: [`Stream::is_idle`] reads a flag that the runtime
//! maintains. The newest connection is taken first, so that surplus ones grow old and are closed.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::stream::Stream;
use crate::clock;

/// Number of shards; threads beyond it share them.
const SHARDS: usize = 64;

/// Time between two visits of the sweeper, which closes connections that idled for too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Bounds of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Time after which an idle connection is closed.
    pub keepalive_timeout: Duration,
    /// Maximum number of idle connections of all threads.
    pub max_idle: usize,
}

struct Idle {
    endpoint: u64,
    stream: Stream,
    since: Instant,
}

/// Kept connections of all threads.
pub struct Pool {
    shards: Vec<Mutex<Vec<Idle>>>,
    idle: AtomicUsize,
    limits: PoolLimits,
    has_sweeper: AtomicBool,
}

impl Pool {
    pub fn new(limits: PoolLimits) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Pool {
            shards,
            idle: AtomicUsize::new(0),
            limits,
            has_sweeper: AtomicBool::new(false),
        })
    }

    /// Number of idle connections.
    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// Number of idle connections to each address.
    pub fn idle_by_endpoint(&self) -> HashMap<u64, usize> {
        let mut counts = HashMap::new();
        for shard in &self.shards {
            for idle in shard.lock().iter() {
                *counts.entry(idle.endpoint).or_default() += 1;
            }
        }
        counts
    }

    /// Takes the newest connection to an address that this thread keeps and that is still open.
    pub fn take(&self, endpoint: u64, now: Instant) -> Option<Stream> {
        let mut shard = self.shards[shard_index()].lock();
        while let Some(at) = shard.iter().rposition(|idle| idle.endpoint == endpoint) {
            let mut idle = shard.remove(at);
            self.idle.fetch_sub(1, Ordering::Relaxed);
            let is_young =
                now.saturating_duration_since(idle.since) < self.limits.keepalive_timeout;
            if is_young && idle.stream.is_idle() {
                return Some(idle.stream);
            }
        }
        None
    }

    /// Keeps a connection after an exchange that left nothing unread. Closes it if there is no
    /// room.
    pub fn put(self: &Arc<Self>, endpoint: u64, stream: Stream, now: Instant) {
        if self.idle.fetch_add(1, Ordering::Relaxed) >= self.limits.max_idle {
            self.idle.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.shards[shard_index()].lock().push(Idle { endpoint, stream, since: now });
        if !self.has_sweeper.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes connections that idled for too long or that the API has closed.
    fn close_expired(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain_mut(|idle| {
                now.saturating_duration_since(idle.since) < self.limits.keepalive_timeout
                    && idle.stream.is_idle()
            });
            self.idle.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }
}

/// Visits the pool until it is empty or dropped.
async fn sweep(pool: Weak<Pool>) {
    // Also when the runtime ends this task: the next connection starts another sweeper.
    struct Running(Weak<Pool>);
    impl Drop for Running {
        fn drop(&mut self) {
            if let Some(pool) = self.0.upgrade() {
                pool.has_sweeper.store(false, Ordering::Relaxed);
            }
        }
    }
    let running = Running(pool);
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(pool) = running.0.upgrade() else { return };
        pool.close_expired(clock::now());
        if pool.idle() == 0 {
            return;
        }
    }
}

/// Shard of the current thread.
fn shard_index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static INDEX: Cell<Option<usize>> = const { Cell::new(None) });
    INDEX.get().unwrap_or_else(|| {
        let index = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        INDEX.set(Some(index));
        index
    })
}
