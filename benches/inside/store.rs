//! Memory of the whole cache, and the cost of a lookup in it.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use crate::operations::{Bench, customer, document, token};

/// Timed lookups in all threads together.
const LOOKUPS: usize = 4_000_000;

/// Returns the resident bytes of this process.
fn resident() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Rss:")).unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kibibytes| kibibytes.parse::<usize>().ok())
        .unwrap_or_default()
        * 1024
}

/// `alike`: callers with the same document.
pub fn memory(entries: usize, alike: usize) -> String {
    let bench = Bench::new(1 << 40);
    // Allocations of the first entry are not those of an entry.
    bench.store(bench.key("warm", &customer(0)), document(0));
    let before = resident();
    let mut bodies = 0;
    for number in 0..entries {
        let document = document(number / alike);
        let key = bench.key(&token(number), &customer(number / alike));
        bench.store(key, document);
        if number % alike == 0 {
            bodies += bench.look_up(&key).map_or(0, |entry| entry.representation.body().len());
        }
    }
    let (count, counted, _) = bench.cache.usage();
    let grown = resident().saturating_sub(before);
    json!({
        "entries": count, "bodies": bodies, "resident": grown, "counted": counted,
        "overhead": grown.saturating_sub(bodies) as f64 / entries as f64,
    })
    .to_string()
}

pub fn bare(entries: usize) -> String {
    let cache = moka::sync::Cache::<[u8; 32], Arc<Bytes>>::new(entries as u64 * 2);
    let before = resident();
    let mut bodies = 0;
    for number in 0..entries {
        let body = Bytes::from(vec![b'x'; 1024]);
        bodies += body.len();
        cache.insert(*blake3::hash(&number.to_le_bytes()).as_bytes(), Arc::new(body));
    }
    cache.run_pending_tasks();
    let grown = resident().saturating_sub(before);
    json!({ "overhead": grown.saturating_sub(bodies) as f64 / entries as f64, "resident": grown })
        .to_string()
}

pub fn bounded(mebibytes: usize) -> String {
    let most = mebibytes << 20;
    let bench = Bench::new(most as u64);
    bench.store(bench.key("warm", &customer(0)), document(0));
    let before = resident();
    // Four times as much as fits, by the least size of an entry.
    for number in 0..most / 1024 * 4 {
        bench.store(bench.key(&token(number), &customer(number)), document(number));
    }
    let (entries, counted, _) = bench.cache.usage();
    let grown = resident().saturating_sub(before);
    json!({ "max_bytes": most, "entries": entries, "counted": counted, "resident": grown,
            "ratio": grown as f64 / most as f64 })
    .to_string()
}

/// The lookup of an identity is of the same kind as that of an entry; here both use this cache, the
/// second with another key.
pub fn lookup(entries: usize, threads: usize) -> String {
    let bench = Bench::new(1 << 40);
    let keys: Vec<_> =
        (0..entries).map(|number| bench.key(&token(number), &customer(number))).collect();
    for (number, key) in keys.iter().enumerate() {
        bench.store(*key, document(number));
    }
    bench.cache.usage();
    let each = LOOKUPS / threads;
    let spent: f64 = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|which| {
                let (bench, keys) = (&bench, &keys);
                scope.spawn(move || {
                    // Xorshift: random keys, in an order that a processor cannot predict.
                    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(which as u64 + 1);
                    let mut hits = 0_u64;
                    let before = thread_cpu_seconds();
                    for _ in 0..each {
                        for _ in 0..2 {
                            state ^= state << 13;
                            state ^= state >> 7;
                            state ^= state << 17;
                            hits += u64::from(
                                bench.look_up(&keys[state as usize % keys.len()]).is_some(),
                            );
                        }
                    }
                    assert_eq!(black_box(hits), 2 * each as u64, "every key is there");
                    thread_cpu_seconds() - before
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    });
    json!({ "entries": entries, "threads": threads, "ns": spent / (each * threads) as f64 * 1e9 })
        .to_string()
}

/// Returns the CPU time of this thread in seconds.
fn thread_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or_default()
        / 1e9
}
