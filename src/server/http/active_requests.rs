//! Requests of one HTTP/2 connection that run in tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clock;

/// Number of requests under way, and the time at which the last one ended.
#[derive(Debug)]
pub struct ActiveRequests {
    count: AtomicUsize,
    began: Instant,
    /// Time of the last end, in milliseconds after `began`.
    ended_millis: AtomicU64,
    /// Count of the streams of all connections.
    streams: Arc<AtomicUsize>,
    /// The connection ends because the client accepts no byte.
    is_stalled: AtomicBool,
}

impl ActiveRequests {
    /// `began`: the time at which the connection began.
    pub fn new(began: Instant, streams: Arc<AtomicUsize>) -> Self {
        ActiveRequests {
            count: AtomicUsize::new(0),
            began,
            ended_millis: AtomicU64::new(0),
            streams,
            is_stalled: AtomicBool::new(false),
        }
    }

    pub fn is_none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub fn last_end(&self) -> Instant {
        self.began + Duration::from_millis(self.ended_millis.load(Ordering::Acquire))
    }

    pub fn set_stalled(&self, is_stalled: bool) {
        self.is_stalled.store(is_stalled, Ordering::Release);
    }
}

/// A request that runs in a task.
#[derive(Debug)]
pub struct ActiveRequest(Arc<ActiveRequests>);

impl ActiveRequest {
    pub fn new(active: &Arc<ActiveRequests>) -> Self {
        active.count.fetch_add(1, Ordering::AcqRel);
        active.streams.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(active.clone())
    }

    /// Whether the connection ends because the client accepts no byte.
    pub fn is_stalled(&self) -> bool {
        self.0.is_stalled.load(Ordering::Acquire)
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let elapsed = clock::now().saturating_duration_since(self.0.began).as_millis();
        self.0.ended_millis.fetch_max(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::AcqRel);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}
