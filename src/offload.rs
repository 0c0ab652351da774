//! Runs long computations on threads that serve no client, so that one large response does not delay other clients.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Documents up to this length are redacted in place: that takes less than 1 ms, and a hand-over about 20 µs.
pub const MAX_IN_PLACE: usize = 64 << 10;

/// How many computations run at once: half of the cores, so that the others always serve.
fn places() -> &'static Semaphore {
    static PLACES: OnceLock<Semaphore> = OnceLock::new();
    PLACES.get_or_init(|| Semaphore::new((available_parallelism().map_or(1, NonZero::get) / 2).max(1)))
}

/// Runs `work` over a document of that length: in place if it is short, else on another thread, first come, first served.
pub async fn run<T: Send + 'static>(length: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if length <= MAX_IN_PLACE {
        return work();
    }
    // The semaphore is never closed.
    let place = places().acquire().await;
    let result = spawn_blocking(move || {
        let _place = place;
        work()
    });
    match result.await {
        Ok(result) => result,
        // Only a panic ends it early: it is not aborted.
        Err(error) => resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn long_work_leaves_the_thread_and_short_work_stays() {
        let here = current().id();
        assert_eq!(run(MAX_IN_PLACE, || current().id()).await, here);
        assert_ne!(run(MAX_IN_PLACE + 1, || current().id()).await, here);
    }
}
