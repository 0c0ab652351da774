//! Changes that the others must still be told of, in the order in which they were seen. Bounded: if Redis is away for long,
//! one word about everything takes the place of all that wait.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ledger::Ledger;
use crate::cache::Scope;

/// Changes that wait at most: some minutes of a busy site, about 1 MiB.
const MAX_WAITING: usize = 8192;

/// A change to be told of.
#[derive(Clone, Debug)]
pub struct Change {
    /// The ledger's number.
    pub number: u64,
    pub scope: Scope,
    pub seen: Instant,
}

/// Those that wait, and how far they were told.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Change>,
    /// The last one that the server has.
    sent: u64,
    /// Those that did not come back yet, and when they were seen; not all, if they are many.
    away: VecDeque<(u64, Instant)>,
}

impl Queue {
    /// One more, which the ledger notes. Gives whether it took the place of all that waited.
    pub fn add(&self, scope: &Scope, ledger: &Ledger, now: Instant) -> bool {
        // Noted within, so that numbers stand in their order.
        let mut state = self.state.lock();
        let number = ledger.noted(scope);
        let full = state.waiting.len() >= MAX_WAITING;
        // What the first of them was seen at stays: it has waited since then.
        let seen = state.waiting.front().filter(|_| full).map_or(now, |first| first.seen);
        let scope = if full { Scope::All } else { scope.clone() };
        if full {
            state.waiting.clear();
        }
        if state.away.len() < MAX_WAITING {
            state.away.push_back((number, seen));
        }
        state.waiting.push_back(Change { number, scope, seen });
        drop(state);
        self.more.notify_one();
        full
    }

    /// The first ones; waits until there are any.
    pub async fn first(&self, at_most: usize) -> Vec<Change> {
        loop {
            let first: Vec<Change> = self.state.lock().waiting.iter().take(at_most).cloned().collect();
            if !first.is_empty() {
                return first;
            }
            self.more.notified().await;
        }
    }

    /// The server has all of them up to that number.
    pub fn told(&self, number: u64) {
        let mut state = self.state.lock();
        state.sent = number.max(state.sent);
        while state.waiting.front().is_some_and(|change| change.number <= number) {
            state.waiting.pop_front();
        }
    }

    /// That one came back in the stream; gives when it was seen, the first time it does.
    pub fn came_back(&self, number: u64) -> Option<Instant> {
        let away = &mut self.state.lock().away;
        let mut seen = None;
        while let Some((other, at)) = away.front().copied().filter(|(other, _)| *other <= number) {
            seen = (other == number).then_some(at);
            away.pop_front();
        }
        seen
    }

    /// The last one that the server has.
    pub fn sent(&self) -> u64 {
        self.state.lock().sent
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CustomerId;

    fn customer() -> Scope {
        Scope::Customer(CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap())
    }

    #[tokio::test]
    async fn changes_are_told_in_their_order_and_stay_until_the_server_has_them() {
        let (queue, ledger) = (Queue::default(), Ledger::default());
        let now = Instant::now();
        for _ in 0..3 {
            assert!(!queue.add(&customer(), &ledger, now));
        }
        let numbers = |changes: Vec<Change>| changes.iter().map(|change| change.number).collect::<Vec<_>>();
        assert_eq!(numbers(queue.first(2).await), [1, 2]);
        assert_eq!(numbers(queue.first(2).await), [1, 2], "not told yet");
        assert_eq!(queue.came_back(2), Some(now));
        assert_eq!((queue.came_back(1), queue.came_back(2)), (None, None));
        queue.told(2);
        assert_eq!((numbers(queue.first(2).await), queue.sent()), (vec![3], 2));
    }

    #[tokio::test]
    async fn one_word_about_everything_stands_for_too_many() {
        let (queue, ledger) = (Queue::default(), Ledger::default());
        let now = Instant::now();
        let full = (0..=MAX_WAITING).filter(|_| queue.add(&customer(), &ledger, now)).count();
        assert_eq!((full, queue.len()), (1, 1));
        let first = queue.first(9).await;
        assert!(matches!(first[0].scope, Scope::All));
        assert_eq!(first[0].number, MAX_WAITING as u64 + 1, "it covers all of them");
        assert!(!queue.add(&customer(), &ledger, now));
        assert_eq!(queue.len(), 2);
        // Those of before were on their way when it was full: their answer takes nothing away that they do not cover.
        queue.told(5);
        assert_eq!(queue.len(), 2);
    }
}
