//! An index of the cluster's changes, by which responses and identities of the shared tier are
//! judged.
//!
//! In memory a counter shows whether a change was seen since a fetch began
//! ([`crate::cache::Generations`]). Counters belong to one process. All gateways share the
//! invalidation stream, whose message ids only grow. So a value in the shared tier records a
//! *position*: the id of the last message that its gateway had applied when its fetch began. The
//! index holds, for each slot of each kind of subject, the id of the last message about it. A value
//! is outdated if that id is beyond the value's position.
//!
//! - A change is published when it is seen and again when its response is complete. A fetch that
//!   the API answered before it executed the change began before the second message had an id, so
//!   the value's position precedes that message and the value is outdated on every gateway.
//! - A change that this gateway saw has no id until it is read back from the stream. Until then all
//!   that it covers is outdated, so that this gateway applies it at once.
//! - Changes before `floor` are unknown; a value from before it is outdated.
//! - Ids of one life of the server cannot be compared with those of another: a server that was
//!   restarted may have lost its last messages and kept older values. So a position includes the
//!   server's life, the *epoch*.
//!
//! See `docs/adr/0014-judge-shared-entries-by-stream-position.md`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use super::stream_id::StreamId;
use crate::api::{CustomerId, EmployeeId};
use crate::cache::{CallerId, Scope};

/// Slots of each table: 512 KiB a table. Two ids that share one cost a fetch, never an outdated
/// response.
const SLOTS: usize = 1 << 16;

/// How much of the stream a gateway had applied, in one life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    pub at: StreamId,
}

/// What a value of the shared tier is about; an identity has no customer.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub customer: Option<&'a CustomerId>,
    pub caller: &'a CallerId,
    pub employee: &'a EmployeeId,
}

/// Where the last change of a subject is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    All,
    Customer(u16),
    Employee(u16),
    Caller(u16),
}

/// The last change of each slot.
pub struct ChangeIndex {
    hasher: RandomState,
    state: Mutex<State>,
}

/// Which part of the stream the index covers.
#[derive(Clone, Copy)]
struct Coverage {
    epoch: u64,
    floor: StreamId,
    position: StreamId,
}

struct State {
    /// `None` while the stream is not read.
    coverage: Option<Coverage>,
    all: StreamId,
    customers: Box<[StreamId]>,
    employees: Box<[StreamId]>,
    callers: Box<[StreamId]>,
    /// Number of this gateway's last change.
    last_number: u64,
    /// This gateway's last change of each slot that was not read back yet.
    pending: HashMap<Slot, u64>,
}

impl Default for ChangeIndex {
    fn default() -> Self {
        let table = || vec![StreamId::ZERO; SLOTS].into_boxed_slice();
        ChangeIndex {
            hasher: RandomState::new(),
            state: Mutex::new(State {
                coverage: None,
                all: StreamId::ZERO,
                customers: table(),
                employees: table(),
                callers: table(),
                last_number: 0,
                pending: HashMap::new(),
            }),
        }
    }
}

impl ChangeIndex {
    /// Records a change that this gateway saw and will publish. Returns the change's number, which
    /// is read back with it. Call it before the change is applied in memory.
    pub fn record_own(&self, scope: &Scope) -> u64 {
        let slot = self.slot(scope);
        let mut state = self.state.lock();
        state.last_number += 1;
        let number = state.last_number;
        state.pending.insert(slot, number);
        number
    }

    /// Records a message of the stream. `own_number`: its number if this gateway sent it; a message
    /// of [`Scope::All`] covers all numbers up to its own. Call it before the change is applied in
    /// memory.
    pub fn record_message(&self, scope: &Scope, id: StreamId, own_number: Option<u64>) {
        let slot = self.slot(scope);
        let mut state = self.state.lock();
        let last = state.last_mut(slot);
        *last = id.max(*last);
        let Some(number) = own_number else { return };
        match slot {
            Slot::All => state.pending.retain(|_, pending| *pending > number),
            slot => {
                if state.pending.get(&slot).is_some_and(|pending| *pending <= number) {
                    state.pending.remove(&slot);
                }
            }
        }
    }

    /// All messages up to `id` have been applied.
    pub fn advance(&self, id: StreamId) {
        if let Some(Coverage { position, .. }) = &mut self.state.lock().coverage {
            *position = id.max(*position);
        }
    }

    /// The stream is read from `position` on, and every message between `floor` and `position` was
    /// passed to [`ChangeIndex::record_message`]. `epoch` differs in each life of the server.
    /// `acknowledged`: number of the last own change that the server confirmed; numbers up to it
    /// that were not read back by now are not in the stream behind `position`.
    pub fn start(&self, epoch: u64, floor: StreamId, position: StreamId, acknowledged: u64) {
        let mut state = self.state.lock();
        state.pending.retain(|_, pending| *pending > acknowledged);
        state.coverage = Some(Coverage { epoch, floor, position });
    }

    /// Discards the ids of an earlier life of the server. Call it before messages of the new one
    /// are recorded.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.coverage = None;
        state.all = StreamId::ZERO;
        let State { customers, employees, callers, .. } = &mut *state;
        [customers, employees, callers].into_iter().for_each(|table| table.fill(StreamId::ZERO));
    }

    /// The stream is no longer read.
    pub fn suspend(&self) {
        self.state.lock().coverage = None;
    }

    /// How much of the stream was applied; `None` while it is not read. Take it before a request is
    /// sent to the API.
    pub fn position(&self) -> Option<Position> {
        let Coverage { epoch, position, .. } = self.state.lock().coverage?;
        Some(Position { epoch, at: position })
    }

    /// Whether no change is known that a value from `position` may precede.
    pub fn is_current(&self, position: Position, subject: Subject<'_>) -> bool {
        let slots = [
            Some(Slot::All),
            subject.customer.map(|id| Slot::Customer(self.index(id))),
            Some(Slot::Employee(self.index(subject.employee.as_str()))),
            Some(Slot::Caller(subject.caller.slot())),
        ];
        let mut state = self.state.lock();
        let Some(Coverage { epoch, floor, .. }) = state.coverage else { return false };
        let mut slots = slots.into_iter().flatten();
        position.epoch == epoch
            && position.at >= floor
            && slots.all(|slot| {
                *state.last_mut(slot) <= position.at && !state.pending.contains_key(&slot)
            })
    }

    fn slot(&self, scope: &Scope) -> Slot {
        match scope {
            Scope::All => Slot::All,
            Scope::Customer(id) => Slot::Customer(self.index(id)),
            Scope::Employee(id) => Slot::Employee(self.index(id.as_str())),
            Scope::Caller(id) => Slot::Caller(id.slot()),
        }
    }

    fn index(&self, id: impl std::hash::Hash) -> u16 {
        self.hasher.hash_one(id) as u16
    }
}

impl State {
    fn last_mut(&mut self, slot: Slot) -> &mut StreamId {
        match slot {
            Slot::All => &mut self.all,
            Slot::Customer(index) => &mut self.customers[usize::from(index)],
            Slot::Employee(index) => &mut self.employees[usize::from(index)],
            Slot::Caller(index) => &mut self.callers[usize::from(index)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CallerIds;

    struct Ids {
        customer: CustomerId,
        caller: CallerId,
        employee: EmployeeId,
    }

    impl Ids {
        fn new() -> Self {
            Ids {
                customer: CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap(),
                caller: CallerIds::with_key([7; 32]).id_of("a"),
                employee: EmployeeId::parse("5f00000000000000000000aa").unwrap(),
            }
        }

        fn subject(&self) -> Subject<'_> {
            Subject {
                customer: Some(&self.customer),
                caller: &self.caller,
                employee: &self.employee,
            }
        }

        fn scopes(&self) -> [Scope; 4] {
            let employee = Scope::Employee(self.employee.clone());
            [Scope::All, Scope::Customer(self.customer), employee, Scope::Caller(self.caller)]
        }
    }

    fn id(number: u64) -> StreamId {
        StreamId::new(number, 0).unwrap()
    }

    fn started(floor: u64, position: u64) -> ChangeIndex {
        let index = ChangeIndex::default();
        index.start(1, id(floor), id(position), 0);
        index
    }

    fn at(number: u64) -> Position {
        Position { epoch: 1, at: id(number) }
    }

    #[test]
    fn value_from_before_a_change_of_its_subject_is_outdated() {
        let ids = Ids::new();
        for scope in ids.scopes() {
            let index = started(1, 10);
            assert!(index.is_current(at(5), ids.subject()), "{scope:?}");
            index.record_message(&scope, id(11), None);
            index.advance(id(11));
            assert!(!index.is_current(at(10), ids.subject()), "{scope:?}");
            assert!(index.is_current(at(11), ids.subject()), "{scope:?}");
            // A message may be read twice; an older one does not replace a newer one.
            index.record_message(&scope, id(3), None);
            assert!(!index.is_current(at(10), ids.subject()));
            assert!(index.is_current(at(11), ids.subject()));
        }
        let index = started(1, 10);
        let other = CustomerId::parse(b"000000000000000000000001").unwrap();
        index.record_message(&Scope::Customer(other), id(11), None);
        assert!(index.is_current(at(5), ids.subject()));
        index.record_message(&Scope::Customer(ids.customer), id(12), None);
        let identity = Subject { customer: None, ..ids.subject() };
        assert!(
            index.is_current(at(5), identity),
            "a customer's change does not concern identities"
        );
    }

    #[test]
    fn own_change_outdates_until_it_is_read_back() {
        let ids = Ids::new();
        for scope in ids.scopes() {
            let index = started(1, 10);
            let [first, second] = [index.record_own(&scope), index.record_own(&scope)];
            assert!(!index.is_current(at(10), ids.subject()), "{scope:?}");
            index.record_message(&scope, id(11), Some(first));
            index.advance(id(11));
            assert!(!index.is_current(at(11), ids.subject()), "the second was not read back yet");
            index.record_message(&scope, id(12), Some(second));
            assert!(!index.is_current(at(11), ids.subject()));
            assert!(index.is_current(at(12), ids.subject()));
        }
    }

    #[test]
    fn message_about_everything_covers_earlier_numbers() {
        let ids = Ids::new();
        let index = started(1, 10);
        let last = ids.scopes().iter().map(|scope| index.record_own(scope)).max().unwrap();
        let after = index.record_own(&Scope::Customer(ids.customer));
        index.record_message(&Scope::All, id(11), Some(last));
        assert!(!index.is_current(at(11), ids.subject()));
        index.record_message(&Scope::Customer(ids.customer), id(12), Some(after));
        assert!(index.is_current(at(12), ids.subject()));
    }

    #[test]
    fn value_outside_the_covered_part_is_outdated() {
        let ids = Ids::new();
        let index = ChangeIndex::default();
        assert!(index.position().is_none() && !index.is_current(at(5), ids.subject()));
        index.start(1, id(4), id(10), 0);
        assert_eq!(index.position(), Some(at(10)));
        assert!(index.is_current(at(4), ids.subject()) && !index.is_current(at(3), ids.subject()));
        assert!(!index.is_current(Position { epoch: 2, at: id(10) }, ids.subject()));
        index.suspend();
        assert!(index.position().is_none() && !index.is_current(at(10), ids.subject()));
        // Another life of the server, whose ids may be lower than earlier ones.
        index.record_message(&Scope::All, id(100), None);
        index.clear();
        index.start(2, id(50), id(50), 0);
        assert!(index.is_current(Position { epoch: 2, at: id(50) }, ids.subject()));
        assert!(!index.is_current(at(100), ids.subject()));
    }

    #[test]
    fn acknowledged_change_before_the_start_is_not_awaited() {
        let ids = Ids::new();
        let index = started(1, 10);
        let sent = index.record_own(&Scope::Customer(ids.customer));
        let unsent = index.record_own(&Scope::Caller(ids.caller));
        index.start(1, id(20), id(20), sent);
        assert!(!index.is_current(at(20), ids.subject()));
        index.record_message(&Scope::Caller(ids.caller), id(21), Some(unsent));
        assert!(index.is_current(at(21), ids.subject()));
    }
}
