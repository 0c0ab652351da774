//! One timer for all waits of a connection.
//!
//! A timer for each wait would be registered and removed for each request, under a lock that all
//! threads share. This one does not change when a wait begins or ends: it fires at the deadline of
//! an earlier wait and is then set to the current deadline.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::task::coop::unconstrained;
use tokio::time::{Sleep, sleep_until};

use crate::clock;

/// A timer that is registered at the first wait, and again only when it fires or a deadline is
/// earlier.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// The task that the timer wakes; `None` before the first poll.
    waker: Option<Waker>,
}

impl Timer {
    /// Whether `deadline` has passed; otherwise the task is woken when it has, or earlier.
    pub fn poll(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
        let mut is_due = !self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if is_due {
            self.waker = Some(context.waker().clone());
        }
        if sleep.deadline().into_std() > deadline {
            sleep.as_mut().reset(deadline.into());
            is_due = true;
        }
        while is_due || sleep.is_elapsed() {
            if pin!(unconstrained(sleep.as_mut())).poll(context).is_pending() {
                break;
            }
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
            is_due = true;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    /// Timers have a resolution of a millisecond.
    const TICK: Duration = Duration::from_millis(2);

    async fn wait(timer: &mut Timer, longest: Duration) -> Duration {
        let began = clock::now();
        poll_fn(|context| timer.poll(context, began + longest)).await;
        clock::now() - began
    }

    #[tokio::test(start_paused = true)]
    async fn wait_after_other_waits_ends_at_its_deadline() {
        let mut timer = Timer::default();
        for seconds in [60, 5, 90, 1, 1, 60] {
            let longest = Duration::from_secs(seconds);
            let waited = wait(&mut timer, longest).await;
            assert!(waited >= longest && waited < longest + TICK, "{waited:?}, not {longest:?}");
            // A wait that is abandoned.
            let abandoned =
                poll_fn(|context| Poll::Ready(timer.poll(context, clock::now() + longest * 7)))
                    .await;
            assert!(abandoned.is_pending());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wait_that_another_task_continues_wakes_that_task() {
        let mut timer = Timer::default();
        let deadline = clock::now() + Duration::from_secs(9);
        assert!(poll_fn(|context| Poll::Ready(timer.poll(context, deadline))).await.is_pending());
        tokio::spawn(async move { poll_fn(|context| timer.poll(context, deadline)).await })
            .await
            .unwrap();
        assert!(clock::now() >= deadline && clock::now() < deadline + TICK);
    }
}
