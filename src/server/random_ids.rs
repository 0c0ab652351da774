//! Random numbers for request ids and span ids. Clients see request ids, so an id must reveal
//! neither the number nor the ids of other requests.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of bytes of an id.
const ID_BYTES: usize = 16;

/// Number of bytes that a thread generates at once: 64 ids. BLAKE3 computes them in parallel, and a
/// hit of the fast path costs a copy.
const POOL_BYTES: usize = 64 * ID_BYTES;

/// A generator of 128-bit numbers that are unpredictable without its key. Each thread has its own
/// stream, so that threads share no memory.
pub struct RandomIds {
    key: [u8; 32],
}

/// The stream of one thread: BLAKE3 as an extendable-output function, keyed by the process and the
/// thread.
struct Stream {
    output: blake3::OutputReader,
    pool: [u8; POOL_BYTES],
    next: usize,
}

impl RandomIds {
    /// # Errors
    ///
    /// The operating system provides no random bytes.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(RandomIds { key })
    }

    pub fn next(&self) -> u128 {
        thread_local!(static STREAM: RefCell<Option<Stream>> = const { RefCell::new(None) });
        STREAM.with_borrow_mut(|stream| stream.get_or_insert_with(|| Stream::new(&self.key)).next())
    }
}

impl Stream {
    fn new(key: &[u8; 32]) -> Self {
        static THREADS: AtomicU64 = AtomicU64::new(0);
        let thread = THREADS.fetch_add(1, Ordering::Relaxed);
        let output = blake3::Hasher::new_keyed(key).update(&thread.to_le_bytes()).finalize_xof();
        Stream { output, pool: [0; POOL_BYTES], next: POOL_BYTES }
    }

    fn next(&mut self) -> u128 {
        if self.next == POOL_BYTES {
            self.output.fill(&mut self.pool);
            self.next = 0;
        }
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&self.pool[self.next..self.next + ID_BYTES]);
        self.next += ID_BYTES;
        u128::from_le_bytes(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_across_threads() {
        let ids = std::sync::Arc::new(RandomIds::new().unwrap());
        let draw = |ids: &RandomIds| (0..1000).map(|_| ids.next()).collect::<Vec<u128>>();
        let other = ids.clone();
        let other = std::thread::spawn(move || draw(&other)).join().unwrap();
        let own = draw(&ids);
        for drawn in [&own, &other] {
            let differences: std::collections::HashSet<u128> =
                drawn.windows(2).map(|pair| pair[0].abs_diff(pair[1])).collect();
            assert_eq!(differences.len(), 999);
            // The chance that one of 2,000 random differences is smaller is 2,000 in 2^64.
            assert!(differences.iter().all(|&difference| difference > 1 << 64));
        }
        let all: std::collections::HashSet<&u128> = own.iter().chain(&other).collect();
        assert_eq!(all.len(), 2000);
    }
}
