//! Wait for the next request of a connection, at the cost of a read alone.
//!
//! A connection has one [`Timer`] and one future for the drain, instead of new ones for each wait.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::task::coop::unconstrained;

use super::timer::Timer;
use crate::process::Lifecycle;
use crate::read_buffer;

/// Timeouts of the waits of one connection.
pub struct KeepaliveTimer {
    lifecycle: Arc<Lifecycle>,
    timer: Timer,
    /// Created by the first wait.
    end: Option<WaitEnd>,
}

/// End of a wait by the drain.
struct WaitEnd {
    /// Completes when the drain begins to end idle connections.
    drain: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// The task that the drain wakes; `None` before the first poll.
    waker: Option<Waker>,
}

impl KeepaliveTimer {
    pub fn new(lifecycle: Arc<Lifecycle>) -> Self {
        KeepaliveTimer { lifecycle, timer: Timer::default(), end: None }
    }

    /// Reads the first bytes. Returns `false` if none arrive within `longest` after `since`, the
    /// client closes, or the drain ends idle connections. The wait holds no buffer.
    pub async fn read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        buffer: &mut BytesMut,
        since: Instant,
        longest: Duration,
    ) -> bool {
        poll_fn(|cx| match read_buffer::poll_read(stream, buffer, cx) {
            Poll::Ready(read) => Poll::Ready(matches!(read, Ok(1..))),
            Poll::Pending => self.poll_end(cx, since, longest).map(|()| false),
        })
        .await
    }

    /// Whether the wait is over; otherwise the task is woken when it is.
    fn poll_end(
        &mut self,
        context: &mut Context<'_>,
        since: Instant,
        longest: Duration,
    ) -> Poll<()> {
        let end = self.end.get_or_insert_with(|| WaitEnd::new(&self.lifecycle));
        let waker = context.waker();
        if !end.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            end.waker = Some(waker.clone());
            if let Some(drain) = &mut end.drain
                && pin!(unconstrained(drain.as_mut())).poll(context).is_ready()
            {
                end.drain = None;
            }
        }
        // After the poll of the drain, so that its beginning is not missed.
        let longest = if self.lifecycle.closes_idle() {
            longest.min(Lifecycle::IDLE_AGE_MIN)
        } else {
            longest
        };
        self.timer.poll(context, since + longest)
    }
}

impl WaitEnd {
    fn new(lifecycle: &Lifecycle) -> Self {
        WaitEnd { drain: Some(Box::pin(lifecycle.idle_closing())), waker: None }
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

    struct KeptConnection {
        keepalive: KeepaliveTimer,
        lifecycle: Arc<Lifecycle>,
        client: Option<DuplexStream>,
        stream: DuplexStream,
    }

    impl KeptConnection {
        fn new() -> Self {
            let (client, stream) = duplex(64);
            let lifecycle = Arc::new(Lifecycle::new(0));
            KeptConnection {
                keepalive: KeepaliveTimer::new(lifecycle.clone()),
                lifecycle,
                client: Some(client),
                stream,
            }
        }

        /// Whether something came, and after how long.
        async fn wait(&mut self, longest: Duration) -> (bool, Duration) {
            let (since, mut buffer) = (clock::now(), BytesMut::with_capacity(64));
            let came = self.keepalive.read(&mut self.stream, &mut buffer, since, longest).await;
            (came, clock::now() - since)
        }

        /// The same, of a wait in which nothing comes.
        async fn ends_after(&mut self, longest: Duration, end: Duration) {
            let (came, waited) = self.wait(longest).await;
            assert!(!came && waited >= end && waited < end + TICK, "{waited:?}, not {end:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wait_after_other_waits_ends_at_its_deadline() {
        let mut kept = KeptConnection::new();
        for _ in 0..3 {
            for pause in [0, 1, 59, 30] {
                let pause = Duration::from_secs(pause);
                let mut client = kept.client.take().unwrap();
                let sending = tokio::spawn(async move {
                    sleep(pause).await;
                    client.write_all(b"x").await.map(|()| client)
                });
                assert_eq!(kept.wait(LONGEST).await, (true, pause));
                kept.client = sending.await.unwrap().ok();
                // The response takes time.
                advance(Duration::from_secs(7)).await;
            }
            kept.ends_after(LONGEST, LONGEST).await;
        }
        // A reload changes the timeout.
        for longest in [5, 90, 1] {
            let longest = Duration::from_secs(longest);
            kept.ends_after(longest, longest).await;
        }
        drop(kept.client);
        let (mut keepalive, mut stream) = (kept.keepalive, kept.stream);
        assert!(
            !keepalive.read(&mut stream, &mut BytesMut::new(), clock::now(), LONGEST).await,
            "the client has closed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn drain_ends_current_and_later_waits() {
        let mut kept = KeptConnection::new();
        let lifecycle = kept.lifecycle.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(10)).await;
            lifecycle.close_idle();
        });
        // An idle connection.
        kept.ends_after(LONGEST, Duration::from_secs(10)).await;
        // The client may be sending a request.
        kept.ends_after(LONGEST, Lifecycle::IDLE_AGE_MIN).await;
        let mut kept = KeptConnection {
            lifecycle: kept.lifecycle.clone(),
            keepalive: KeepaliveTimer::new(kept.lifecycle),
            ..KeptConnection::new()
        };
        kept.ends_after(LONGEST, Lifecycle::IDLE_AGE_MIN).await;
    }

    #[tokio::test(start_paused = true)]
    async fn wait_that_another_task_continues_wakes_that_task() {
        let mut kept = KeptConnection::new();
        let began = clock::now();
        {
            // Abandoned by this task, whose waker is registered.
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
