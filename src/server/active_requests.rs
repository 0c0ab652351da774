//! The requests of one HTTP/2 connection that are under way in tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clock;

/// The number of requests under way, and when the last one ended.
#[derive(Debug)]
pub struct ActiveRequests {
    count: AtomicUsize,
    began: Instant,
    /// When the last one ended, in milliseconds after `began`.
    ended_millis: AtomicU64,
    /// The connection ends because the client accepts nothing.
    is_stalled: AtomicBool,
}

impl ActiveRequests {
    /// `began`: when the connection began.
    pub fn new(began: Instant) -> Self {
        ActiveRequests {
            count: AtomicUsize::new(0),
            began,
            ended_millis: AtomicU64::new(0),
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

/// One request that is under way in a task, as long as it lives.
#[derive(Debug)]
pub struct ActiveRequest(Arc<ActiveRequests>);

impl ActiveRequest {
    pub fn new(active: &Arc<ActiveRequests>) -> Self {
        active.count.fetch_add(1, Ordering::AcqRel);
        ActiveRequest(active.clone())
    }

    /// Whether its connection ends because the client accepts nothing.
    pub fn is_stalled(&self) -> bool {
        self.0.is_stalled.load(Ordering::Acquire)
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let elapsed = clock::now().saturating_duration_since(self.0.began).as_millis();
        self.0.ended_millis.fetch_max(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::AcqRel);
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}
