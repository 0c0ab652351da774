//! Changes that were not published yet, in the order in which they were seen. If too many wait, one
//! change of everything replaces them.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::Scope;
use crate::cluster::change_index::ChangeIndex;

/// Most changes that wait: some minutes of a busy site, about 1 MiB.
const CHANGES_MAX: usize = 8192;

/// A change to be published.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its number in the [`ChangeIndex`].
    pub number: u64,
    pub scope: Scope,
    pub seen: Instant,
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    is_filled: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Change>,
    /// Number of the last change that the server confirmed.
    acknowledged: u64,
    acknowledged_at: Option<Instant>,
    /// Changes that were not read back yet; not all, if they are many.
    unread: VecDeque<Unread>,
}

/// A change that was not read back yet.
#[derive(Clone, Copy)]
struct Unread {
    number: u64,
    seen: Instant,
}

impl Queue {
    /// Appends a change and records it in the index. Returns whether it replaced all others.
    pub fn push(&self, scope: &Scope, index: &ChangeIndex, now: Instant) -> bool {
        // Recorded under the lock, so that numbers are in the queue's order.
        let mut state = self.state.lock();
        let number = index.record_own(scope);
        let is_full = state.waiting.len() >= CHANGES_MAX;
        // The replacement has waited as long as the first of the changes.
        let seen = state.waiting.front().filter(|_| is_full).map_or(now, |first| first.seen);
        let scope = if is_full { Scope::All } else { scope.clone() };
        if is_full {
            state.waiting.clear();
        }
        if state.unread.len() < CHANGES_MAX {
            state.unread.push_back(Unread { number, seen });
        }
        state.waiting.push_back(Change { number, scope, seen });
        drop(state);
        self.is_filled.notify_one();
        is_full
    }

    /// Returns the first changes without removing them; waits until there is one.
    pub async fn peek(&self, max: usize) -> Vec<Change> {
        loop {
            let first: Vec<Change> = self.state.lock().waiting.iter().take(max).cloned().collect();
            if !first.is_empty() {
                return first;
            }
            self.is_filled.notified().await;
        }
    }

    /// Removes the changes up to `number`, which the server confirmed.
    pub fn acknowledge(&self, number: u64, now: Instant) {
        let mut state = self.state.lock();
        state.acknowledged_at = Some(now);
        state.acknowledged = number.max(state.acknowledged);
        while state.waiting.front().is_some_and(|change| change.number <= number) {
            state.waiting.pop_front();
        }
    }

    /// A change was read from the stream. Returns when it was seen, the first time it is read.
    pub fn read_back(&self, number: u64) -> Option<Instant> {
        let unread = &mut self.state.lock().unread;
        let mut seen = None;
        while let Some(first) = unread.front().filter(|first| first.number <= number) {
            seen = (first.number == number).then_some(first.seen);
            unread.pop_front();
        }
        seen
    }

    /// Number of the last change that the server confirmed.
    pub fn acknowledged(&self) -> u64 {
        self.state.lock().acknowledged
    }

    /// Whether the server confirmed changes since then.
    pub fn has_acknowledged_since(&self, since: Instant) -> bool {
        self.state.lock().acknowledged_at.is_some_and(|at| at >= since)
    }

    /// Number of changes that wait.
    pub fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CustomerId;
    use crate::clock;

    fn customer() -> Scope {
        Scope::Customer(CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap())
    }

    fn numbers(changes: &[Change]) -> Vec<u64> {
        changes.iter().map(|change| change.number).collect()
    }

    #[tokio::test]
    async fn changes_wait_in_order_until_acknowledged() {
        let (queue, index) = (Queue::default(), ChangeIndex::default());
        let now = clock::now();
        for _ in 0..3 {
            assert!(!queue.push(&customer(), &index, now));
        }
        assert_eq!(numbers(&queue.peek(2).await), [1, 2]);
        assert_eq!(numbers(&queue.peek(2).await), [1, 2], "not acknowledged yet");
        assert_eq!(queue.read_back(2), Some(now));
        assert_eq!((queue.read_back(1), queue.read_back(2)), (None, None));
        queue.acknowledge(2, now);
        assert_eq!((numbers(&queue.peek(2).await), queue.acknowledged()), (vec![3], 2));
    }

    #[tokio::test]
    async fn change_of_everything_replaces_too_many() {
        let (queue, index) = (Queue::default(), ChangeIndex::default());
        let now = clock::now();
        let push = |_: &usize| queue.push(&customer(), &index, now);
        let replaced = (0..=CHANGES_MAX).filter(push).count();
        assert_eq!((replaced, queue.len()), (1, 1));
        let first = queue.peek(9).await;
        assert!(matches!(first[0].scope, Scope::All));
        assert_eq!(first[0].number, CHANGES_MAX as u64 + 1, "it covers all of them");
        assert!(!queue.push(&customer(), &index, now));
        assert_eq!(queue.len(), 2);
        // Earlier changes were being sent when the queue was full: their confirmation does not
        // remove the replacement.
        queue.acknowledge(5, now);
        assert_eq!(queue.len(), 2);
    }
}
