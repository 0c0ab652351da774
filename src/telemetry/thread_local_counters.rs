//! Counters of fast path hits, kept per thread and added to the series when metrics are read.
//! Counters shared by all threads would be cache lines that the threads take turns to write.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::local::{LocalHistogram, LocalIntCounter};

use super::Record;

/// Fast path hits of one thread since they were last added to the series.
pub struct HitCounters {
    /// By method and status; there are few pairs.
    pub requests: Vec<(Method, StatusCode, LocalIntCounter)>,
    pub durations: LocalHistogram,
    pub hits: u64,
}

impl HitCounters {
    /// Counts one hit. `new_counter` makes the counter of a method and status that are new.
    pub fn count(
        &mut self,
        record: &Record,
        duration: Duration,
        new_counter: impl FnOnce() -> LocalIntCounter,
    ) {
        let matches_record = |(method, status, _): &&(Method, StatusCode, LocalIntCounter)| {
            *status == record.status && *method == record.method
        };
        match self.requests.iter().find(matches_record) {
            Some((_, _, counter)) => counter.inc(),
            None => {
                let counter = new_counter();
                counter.inc();
                self.requests.push((record.method.clone(), record.status, counter));
            }
        }
        self.durations.observe(duration.as_secs_f64());
        self.hits += 1;
    }

    /// Adds the counts to the series and starts again from 0. Returns the number of hits.
    fn flush(&mut self) -> u64 {
        for (_, _, counter) in &self.requests {
            counter.flush();
        }
        self.durations.flush();
        std::mem::take(&mut self.hits)
    }
}

type SharedCounters = Arc<Mutex<HitCounters>>;

thread_local! {
    /// The counters of this thread, by the id of their [`ThreadLocalCounters`].
    static CURRENT: RefCell<Vec<(u64, SharedCounters)>> = const { RefCell::new(Vec::new()) };
}

/// The counters of all threads.
pub struct ThreadLocalCounters {
    /// A thread may count for several instances, as tests do.
    id: u64,
    threads: Mutex<Vec<SharedCounters>>,
}

impl Default for ThreadLocalCounters {
    fn default() -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        ThreadLocalCounters {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            threads: Mutex::default(),
        }
    }
}

impl ThreadLocalCounters {
    /// Calls `count` with the counters of the current thread, which only `flush` locks from other
    /// threads. `new` makes empty ones, once per thread.
    pub fn with_current<R>(
        &self,
        new: impl FnOnce() -> HitCounters,
        count: impl FnOnce(&mut HitCounters) -> R,
    ) -> R {
        CURRENT.with_borrow_mut(|current| {
            let index = current.iter().position(|(id, _)| *id == self.id).unwrap_or_else(|| {
                let counters = Arc::new(Mutex::new(new()));
                self.threads.lock().push(counters.clone());
                current.push((self.id, counters));
                current.len() - 1
            });
            let mut counters = current[index].1.lock();
            count(&mut counters)
        })
    }

    /// Adds the counts of all threads to the series. Returns the number of hits since the last
    /// call.
    pub fn flush(&self) -> u64 {
        self.threads.lock().iter().map(|counters| counters.lock().flush()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Metrics;
    use super::*;

    #[test]
    fn counts_of_all_threads_are_complete_in_every_scrape() {
        let metrics = Metrics::new().unwrap();
        let record_hits = |status, times: usize| {
            let mut record = Record::begin(Instant::now());
            (record.on_fast_path, record.status) = (true, status);
            (0..times).for_each(|_| metrics.record_request(&record, Duration::from_millis(3)));
        };
        let total = |name: &str| {
            let text = metrics.text().unwrap();
            let count = |line: &str| Some(line.rsplit_once(' ')?.1.parse::<usize>().unwrap());
            text.lines().filter(|line| line.starts_with(name)).filter_map(count).sum::<usize>()
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| record_hits(StatusCode::OK, 10)));
            }
            scope.spawn(|| record_hits(StatusCode::NOT_MODIFIED, 70));
            // Metrics are read at the same time.
            (0..50).for_each(|_| drop(metrics.text().unwrap()));
        });
        assert_eq!(metrics.hits_and_misses(), (4070, 0));
        let status_count = |status| {
            let text = metrics.text().unwrap();
            let line = text.lines().find(|line| {
                line.contains(&format!("status=\"{status}\""))
                    && line.contains("requests_total")
                    && !line.ends_with(" 0")
            });
            line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
        };
        assert_eq!((status_count(200), status_count(304)), ("4000".into(), "70".into()));
        for name in
            ["request_duration_seconds_count", "identity_lookups_total", "fast_path_hits_total"]
        {
            assert_eq!(total(&format!("telecomx_gateway_{name}")), 4070, "{name}");
        }
        record_hits(StatusCode::OK, 1);
        assert_eq!(metrics.hits_and_misses(), (4071, 0));
    }
}
