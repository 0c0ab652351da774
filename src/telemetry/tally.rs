//! What a hit is counted on, apart for each thread and added to the series when somebody looks: counters that every hit of every
//! thread writes to would be memory that the threads take turns at.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::local::{LocalHistogram, LocalIntCounter};

use super::Record;

/// Hits that one thread answered on the fast path since they were last added to the series.
pub struct Tally {
    /// By method and status; there are few.
    pub requests: Vec<(Method, StatusCode, LocalIntCounter)>,
    pub durations: LocalHistogram,
    pub hits: u64,
}

impl Tally {
    /// Counts one hit. `requests`: makes the counter of its method and status, when they are new.
    pub fn count(&mut self, record: &Record, duration: Duration, requests: impl FnOnce() -> LocalIntCounter) {
        let is_of_record = |(method, status, _): &&(Method, StatusCode, LocalIntCounter)| {
            *status == record.status && *method == record.method
        };
        match self.requests.iter().find(is_of_record) {
            Some((_, _, counter)) => counter.inc(),
            None => {
                let counter = requests();
                counter.inc();
                self.requests.push((record.method.clone(), record.status, counter));
            }
        }
        self.durations.observe(duration.as_secs_f64());
        self.hits += 1;
    }

    /// Adds the counts to the series, and starts again from 0. Returns the number of hits.
    fn settle(&mut self) -> u64 {
        for (_, _, counter) in &self.requests {
            counter.flush();
        }
        self.durations.flush();
        std::mem::take(&mut self.hits)
    }
}

type Shared = Arc<Mutex<Tally>>;

thread_local!(static OWN: RefCell<Vec<(u64, Shared)>> = const { RefCell::new(Vec::new()) });

/// The tallies of all threads.
pub struct Tallies {
    /// A thread may count for several gateways, as tests do.
    home: u64,
    all: Mutex<Vec<Shared>>,
}

impl Default for Tallies {
    fn default() -> Self {
        static HOMES: AtomicU64 = AtomicU64::new(0);
        Tallies { home: HOMES.fetch_add(1, Ordering::Relaxed), all: Mutex::default() }
    }
}

impl Tallies {
    /// This thread's, which no other one locks but to add it up. `new`: an empty one, wanted once for each thread.
    pub fn own<R>(&self, new: impl FnOnce() -> Tally, count: impl FnOnce(&mut Tally) -> R) -> R {
        OWN.with_borrow_mut(|own| {
            let place = own.iter().position(|(home, _)| *home == self.home).unwrap_or_else(|| {
                let tally = Arc::new(Mutex::new(new()));
                self.all.lock().push(tally.clone());
                own.push((self.home, tally));
                own.len() - 1
            });
            let mut tally = own[place].1.lock();
            count(&mut tally)
        })
    }

    /// Adds all of them to the series. How many hits there were since the last time.
    pub fn settle(&self) -> u64 {
        self.all.lock().iter().map(|tally| tally.lock().settle()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Metrics;
    use super::*;

    #[test]
    fn what_threads_count_apart_is_whole_whenever_somebody_looks() {
        let metrics = Metrics::new().unwrap();
        let answer = |status, times: usize| {
            let mut record = Record::begin(Instant::now());
            (record.on_fast_path, record.status) = (true, status);
            (0..times).for_each(|_| metrics.answered(&record, Duration::from_millis(3)));
        };
        let line = |name: &str| {
            let text = metrics.text().unwrap();
            let count = |line: &str| Some(line.rsplit_once(' ')?.1.parse::<usize>().unwrap());
            text.lines().filter(|line| line.starts_with(name)).filter_map(count).sum::<usize>()
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| answer(StatusCode::OK, 10)));
            }
            scope.spawn(|| answer(StatusCode::NOT_MODIFIED, 70));
            // Somebody looks all the while.
            (0..50).for_each(|_| drop(metrics.text().unwrap()));
        });
        assert_eq!(metrics.hits_and_misses(), (4070, 0));
        let status = |status| {
            let text = metrics.text().unwrap();
            let line = text
                .lines()
                .find(|line| line.contains(&format!("status=\"{status}\"")) && line.contains("requests_total"));
            line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
        };
        assert_eq!((status(200), status(304)), ("4000".into(), "70".into()));
        for name in ["request_duration_seconds_count", "identity_lookups_total", "fast_path_hits_total"] {
            assert_eq!(line(&format!("telecomx_gateway_{name}")), 4070, "{name}");
        }
        answer(StatusCode::OK, 1);
        assert_eq!(metrics.hits_and_misses(), (4071, 0));
    }
}
