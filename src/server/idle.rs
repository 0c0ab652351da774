//! Waiting for the next request of a kept connection, at the cost of a read alone.
//!
//! A connection has one [`Timer`], and one future for the drain, for as long as it lives.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pingora_core::protocols::Stream;
use tokio::io::AsyncReadExt;
use tokio::task::coop::unconstrained;

use super::timer::Timer;
use crate::process::Lifecycle;

/// What ends the waits of one connection.
pub struct Idle {
    lifecycle: Arc<Lifecycle>,
    timer: Timer,
    /// Once there was something to wait for.
    ends: Option<Ends>,
}

struct Ends {
    /// Comes back when the drain begins to end idle connections.
    drain: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// The task that the drain wakes. `None`: it was not polled yet.
    waker: Option<Waker>,
}

impl Idle {
    pub fn new(lifecycle: Arc<Lifecycle>) -> Self {
        Idle { lifecycle, timer: Timer::default(), ends: None }
    }

    /// Reads what comes first. False: nothing came within `longest` after `since`, the caller left, or the drain ends connections
    /// that nobody uses.
    pub async fn read(
        &mut self,
        stream: &mut Stream,
        buffer: &mut BytesMut,
        since: Instant,
        longest: Duration,
    ) -> bool {
        poll_fn(|cx| match pin!(stream.read_buf(buffer)).poll(cx) {
            Poll::Ready(read) => Poll::Ready(matches!(read, Ok(1..))),
            Poll::Pending => self.poll_end(cx, since, longest).map(|()| false),
        })
        .await
    }

    /// Whether the wait is over; otherwise the task is woken when it is.
    fn poll_end(&mut self, context: &mut Context<'_>, since: Instant, longest: Duration) -> Poll<()> {
        let ends = self.ends.get_or_insert_with(|| Ends::new(&self.lifecycle));
        let waker = context.waker();
        if !ends.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            ends.waker = Some(waker.clone());
            if let Some(drain) = &mut ends.drain
                && pin!(unconstrained(drain.as_mut())).poll(context).is_ready()
            {
                ends.drain = None;
            }
        }
        // After polling the drain, so that its beginning is not missed.
        let longest = if self.lifecycle.closes_idle() { longest.min(Lifecycle::IDLE_AGE_MIN) } else { longest };
        self.timer.poll(context, since + longest)
    }
}

impl Ends {
    fn new(lifecycle: &Lifecycle) -> Self {
        Ends { drain: Some(Box::pin(lifecycle.idle_closing())), waker: None }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::clock;

    const LONGEST: Duration = Duration::from_secs(60);
    /// Timers have a resolution of a millisecond.
    const TICK: Duration = Duration::from_millis(2);

    struct Kept {
        idle: Idle,
        lifecycle: Arc<Lifecycle>,
        caller: Option<DuplexStream>,
        stream: Stream,
    }

    impl Kept {
        fn new() -> Self {
            let (caller, stream) = duplex(64);
            let lifecycle = Arc::new(Lifecycle::new(0));
            Kept { idle: Idle::new(lifecycle.clone()), lifecycle, caller: Some(caller), stream: Box::new(stream) }
        }

        /// Whether something came, and after how long.
        async fn wait(&mut self, longest: Duration) -> (bool, Duration) {
            let (since, mut buffer) = (clock::now(), BytesMut::with_capacity(64));
            let came = self.idle.read(&mut self.stream, &mut buffer, since, longest).await;
            (came, clock::now() - since)
        }

        /// The same, of a wait in which nothing comes.
        async fn ends_after(&mut self, longest: Duration, end: Duration) {
            let (came, waited) = self.wait(longest).await;
            assert!(!came && waited >= end && waited < end + TICK, "{waited:?}, not {end:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_it_must_whatever_the_waits_before_it_were() {
        let mut kept = Kept::new();
        for _ in 0..3 {
            for pause in [0, 1, 59, 30] {
                let pause = Duration::from_secs(pause);
                let mut caller = kept.caller.take().unwrap();
                let sending = tokio::spawn(async move {
                    sleep(pause).await;
                    caller.write_all(b"x").await.map(|()| caller)
                });
                assert_eq!(kept.wait(LONGEST).await, (true, pause));
                kept.caller = sending.await.unwrap().ok();
                // The answer takes its time.
                advance(Duration::from_secs(7)).await;
            }
            kept.ends_after(LONGEST, LONGEST).await;
        }
        // A reload has made it shorter, and longer.
        for longest in [5, 90, 1] {
            let longest = Duration::from_secs(longest);
            kept.ends_after(longest, longest).await;
        }
        drop(kept.caller);
        let (mut idle, mut stream) = (kept.idle, kept.stream);
        assert!(
            !idle.read(&mut stream, &mut BytesMut::with_capacity(8), clock::now(), LONGEST).await,
            "who left is gone"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_waits_that_go_on_and_those_that_begin_after_it() {
        let mut kept = Kept::new();
        let lifecycle = kept.lifecycle.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(10)).await;
            lifecycle.close_idle();
        });
        // It has been idle for long.
        kept.ends_after(LONGEST, Duration::from_secs(10)).await;
        // Its caller may just be sending a request.
        kept.ends_after(LONGEST, Lifecycle::IDLE_AGE_MIN).await;
        let mut kept = Kept { lifecycle: kept.lifecycle.clone(), idle: Idle::new(kept.lifecycle), ..Kept::new() };
        kept.ends_after(LONGEST, Lifecycle::IDLE_AGE_MIN).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_another_task_goes_on_with_wakes_that_one() {
        let mut kept = Kept::new();
        let began = clock::now();
        {
            // Given up here, with this task told.
            let mut wait = pin!(kept.wait(LONGEST));
            let polled = poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await;
            assert!(polled);
        }
        let elsewhere = tokio::spawn(async move {
            kept.ends_after(LONGEST, LONGEST).await;
        });
        elsewhere.await.unwrap();
        assert!(clock::now() - began < LONGEST + TICK);
    }
}
