//! Runs long computations on threads that serve no client, so that one large response does not
//! delay other clients.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Longest document that is redacted in place. That takes less than 1 ms; a thread switch takes
/// about 20 µs.
pub const MAX_IN_PLACE: usize = 64 << 10;

/// Permits of concurrent computations: half of the cores, so that the others always serve requests.
fn permits() -> &'static Semaphore {
    static PERMITS: OnceLock<Semaphore> = OnceLock::new();
    PERMITS.get_or_init(|| {
        Semaphore::new((available_parallelism().map_or(1, NonZero::get) / 2).max(1))
    })
}

/// Runs `work` over a document of that length: in place if it is short, otherwise on another
/// thread, in order of arrival.
pub async fn run<T: Send + 'static>(length: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if length <= MAX_IN_PLACE {
        return work();
    }
    // The semaphore is never closed.
    let permit = permits().acquire().await;
    let result = spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    match result.await {
        Ok(result) => result,
        // The task is not aborted, so the error is a panic.
        Err(error) => resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn long_work_runs_on_another_thread() {
        let here = current().id();
        assert_eq!(run(MAX_IN_PLACE, || current().id()).await, here);
        assert_ne!(run(MAX_IN_PLACE + 1, || current().id()).await, here);
    }
}
