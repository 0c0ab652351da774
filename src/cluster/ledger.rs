//! What a fleet knows of changes, as far as this gateway has heard: by it, an answer that another gateway fetched is judged.
//!
//! In memory a counter tells whether a change was seen since a fetch began ([`crate::cache::Generations`]). Counters are a
//! process's own. What all gateways have in common is the stream in which they tell each other of changes, and the ids that
//! the server gives its messages, which only grow. So a value in the shared tier notes a *position*: the id of the last message
//! that its gateway had obeyed when its fetch began. Here stands, for each slot of each kind of thing that changes, the id of
//! the last message about it. A value is void if that is beyond the value's position.
//!
//! - A change is told of when it is seen and again when it is answered. A fetch that the API answered before it obeyed the
//!   change began before the second message had an id, so its position is before it: void, wherever that message was heard.
//! - A change that this gateway saw itself has no id until it comes back in the stream. Until then everything that it
//!   concerns is void: the bound of "at once" holds for the one that saw it.
//! - Of what came before `floor` nothing is known; a value from before it is void.
//! - Ids of one server's life say nothing of another's: a server that comes back may have lost its last messages and kept
//!   older values. So a position holds the server's life too, the *epoch*.
//!
//! See `docs/adr/0014-judge-shared-entries-by-stream-position.md`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::api::{CustomerId, EmployeeId};
use crate::cache::{CallerId, Scope};

/// Slots of each table: 512 KiB a table. Two ids that share one cost a fetch, never a wrong answer.
const SLOTS: usize = 1 << 16;

/// Bits of an id that number the messages of one millisecond.
const SEQUENCE_BITS: u32 = 20;

/// The id of a message, in one number that grows as ids do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    /// Before every message.
    pub const ZERO: StreamId = StreamId(0);

    /// `None`: more messages in a millisecond, or a later one, than any server counts whose clock is right.
    pub const fn new(milliseconds: u64, sequence: u64) -> Option<Self> {
        if sequence >> SEQUENCE_BITS != 0 || milliseconds >> (u64::BITS - SEQUENCE_BITS) != 0 {
            return None;
        }
        Some(StreamId(milliseconds << SEQUENCE_BITS | sequence))
    }

    /// Reads `1732567890123-0`, as the server writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let (milliseconds, sequence) = text.split_once('-')?;
        Self::new(milliseconds.parse().ok()?, sequence.parse().ok()?)
    }

    /// When the server gave it, in milliseconds of the server's clock.
    pub const fn milliseconds(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }

    /// In one number.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// From such a number.
    pub const fn from_bits(bits: u64) -> Self {
        StreamId(bits)
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.milliseconds(), self.0 & ((1 << SEQUENCE_BITS) - 1))
    }
}

/// How much of the stream was obeyed, in one life of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    pub at: StreamId,
}

/// Whom a value is about; no customer, for an identity.
#[derive(Clone, Copy, Debug)]
pub struct Concerned<'a> {
    pub customer: Option<&'a CustomerId>,
    pub caller: &'a CallerId,
    pub employee: &'a EmployeeId,
}

/// Where a thing's last change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    All,
    Customer(u16),
    Employee(u16),
    Caller(u16),
}

/// The changes heard of.
pub struct Ledger {
    hasher: RandomState,
    known: Mutex<Known>,
}

struct Known {
    /// Epoch, floor and position; nothing while the stream is not read.
    reading: Option<(u64, StreamId, StreamId)>,
    all: StreamId,
    customers: Box<[StreamId]>,
    employees: Box<[StreamId]>,
    callers: Box<[StreamId]>,
    /// Own changes so far.
    noted: u64,
    /// The last own change of a place that did not come back yet.
    unheard: HashMap<Place, u64>,
}

impl Default for Ledger {
    fn default() -> Self {
        let table = || vec![StreamId::ZERO; SLOTS].into_boxed_slice();
        Ledger {
            hasher: RandomState::new(),
            known: Mutex::new(Known {
                reading: None,
                all: StreamId::ZERO,
                customers: table(),
                employees: table(),
                callers: table(),
                noted: 0,
                unheard: HashMap::new(),
            }),
        }
    }
}

impl Ledger {
    /// This gateway saw a change, which it will tell the others of. Gives the change's number, which comes back with it. To
    /// be called before the change is obeyed in memory.
    pub fn noted(&self, scope: &Scope) -> u64 {
        let place = self.place(scope);
        let mut known = self.known.lock();
        known.noted += 1;
        let number = known.noted;
        known.unheard.insert(place, number);
        number
    }

    /// A message of the stream. `own`: its number, where this gateway sent it; one about everything covers all numbers up to
    /// its own. To be called before the change is obeyed in memory.
    pub fn heard(&self, scope: &Scope, id: StreamId, own: Option<u64>) {
        let place = self.place(scope);
        let mut known = self.known.lock();
        let last = known.last(place);
        *last = id.max(*last);
        let Some(number) = own else { return };
        match place {
            Place::All => known.unheard.retain(|_, unheard| *unheard > number),
            place => {
                if known.unheard.get(&place).is_some_and(|unheard| *unheard <= number) {
                    known.unheard.remove(&place);
                }
            }
        }
    }

    /// Everything up to there has been obeyed.
    pub fn advanced(&self, id: StreamId) {
        if let Some((_, _, position)) = &mut self.known.lock().reading {
            *position = id.max(*position);
        }
    }

    /// The stream is read, from `position` on; of what came after `floor` and up to it everything was [`Ledger::heard`].
    /// `epoch`: another number in each life of the server. `sent`: the last own change of which the server said that it has
    /// it; those up to it do not come back any more if they did not yet.
    pub fn begun(&self, epoch: u64, floor: StreamId, position: StreamId, sent: u64) {
        let mut known = self.known.lock();
        known.unheard.retain(|_, unheard| *unheard > sent);
        known.reading = Some((epoch, floor, position));
    }

    /// Ids of the server's life before say nothing any more. To be called before what is heard in the new one.
    pub fn forget(&self) {
        let mut known = self.known.lock();
        known.reading = None;
        known.all = StreamId::ZERO;
        let Known { customers, employees, callers, .. } = &mut *known;
        [customers, employees, callers].into_iter().for_each(|table| table.fill(StreamId::ZERO));
    }

    /// What the others say is not heard for now.
    pub fn lost(&self) {
        self.known.lock().reading = None;
    }

    /// How much of the stream was obeyed; `None` while it is not read. To be noted before the API is asked.
    pub fn position(&self) -> Option<Position> {
        self.known.lock().reading.map(|(epoch, _, at)| Position { epoch, at })
    }

    /// Whether no change is known that a value of that position may be from before.
    pub fn holds(&self, position: Position, concerned: Concerned<'_>) -> bool {
        let places = [
            Some(Place::All),
            concerned.customer.map(|id| Place::Customer(self.slot(id))),
            Some(Place::Employee(self.slot(concerned.employee.as_str()))),
            Some(Place::Caller(concerned.caller.slot())),
        ];
        let mut known = self.known.lock();
        let Some((epoch, floor, _)) = known.reading else { return false };
        let mut places = places.into_iter().flatten();
        position.epoch == epoch
            && position.at >= floor
            && places.all(|place| *known.last(place) <= position.at && !known.unheard.contains_key(&place))
    }

    fn place(&self, scope: &Scope) -> Place {
        match scope {
            Scope::All => Place::All,
            Scope::Customer(id) => Place::Customer(self.slot(id)),
            Scope::Employee(id) => Place::Employee(self.slot(id.as_str())),
            Scope::Caller(id) => Place::Caller(id.slot()),
        }
    }

    fn slot(&self, id: impl std::hash::Hash) -> u16 {
        self.hasher.hash_one(id) as u16
    }
}

impl Known {
    fn last(&mut self, place: Place) -> &mut StreamId {
        match place {
            Place::All => &mut self.all,
            Place::Customer(slot) => &mut self.customers[usize::from(slot)],
            Place::Employee(slot) => &mut self.employees[usize::from(slot)],
            Place::Caller(slot) => &mut self.callers[usize::from(slot)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CallerIds;

    struct Whom {
        customer: CustomerId,
        caller: CallerId,
        employee: EmployeeId,
    }

    impl Whom {
        fn new() -> Self {
            Whom {
                customer: CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap(),
                caller: CallerIds::with_key([7; 32]).id_of("a"),
                employee: EmployeeId::parse("5f00000000000000000000aa").unwrap(),
            }
        }

        fn concerned(&self) -> Concerned<'_> {
            Concerned { customer: Some(&self.customer), caller: &self.caller, employee: &self.employee }
        }

        fn scopes(&self) -> [Scope; 4] {
            let employee = Scope::Employee(self.employee.clone());
            [Scope::All, Scope::Customer(self.customer), employee, Scope::Caller(self.caller)]
        }
    }

    fn id(number: u64) -> StreamId {
        StreamId::new(number, 0).unwrap()
    }

    fn reading(floor: u64, position: u64) -> Ledger {
        let ledger = Ledger::default();
        ledger.begun(1, id(floor), id(position), 0);
        ledger
    }

    fn at(number: u64) -> Position {
        Position { epoch: 1, at: id(number) }
    }

    #[test]
    fn a_value_from_before_a_change_that_concerns_it_is_void() {
        let whom = Whom::new();
        for scope in whom.scopes() {
            let ledger = reading(1, 10);
            assert!(ledger.holds(at(5), whom.concerned()), "{scope:?}");
            ledger.heard(&scope, id(11), None);
            ledger.advanced(id(11));
            assert!(!ledger.holds(at(10), whom.concerned()), "{scope:?}");
            assert!(ledger.holds(at(11), whom.concerned()), "{scope:?}");
            // Messages may be heard twice, and late ones say nothing of what came after them.
            ledger.heard(&scope, id(3), None);
            assert!(!ledger.holds(at(10), whom.concerned()) && ledger.holds(at(11), whom.concerned()));
        }
        let ledger = reading(1, 10);
        ledger.heard(&Scope::Customer(CustomerId::parse(b"000000000000000000000001").unwrap()), id(11), None);
        assert!(ledger.holds(at(5), whom.concerned()));
        ledger.heard(&Scope::Customer(whom.customer), id(12), None);
        let identity = Concerned { customer: None, ..whom.concerned() };
        assert!(ledger.holds(at(5), identity), "a customer's change says nothing of who is calling");
    }

    #[test]
    fn what_this_gateway_saw_itself_is_void_until_it_comes_back() {
        let whom = Whom::new();
        for scope in whom.scopes() {
            let ledger = reading(1, 10);
            let (first, second) = (ledger.noted(&scope), ledger.noted(&scope));
            assert!(!ledger.holds(at(10), whom.concerned()), "{scope:?}");
            ledger.heard(&scope, id(11), Some(first));
            ledger.advanced(id(11));
            assert!(!ledger.holds(at(11), whom.concerned()), "the second is still on its way");
            ledger.heard(&scope, id(12), Some(second));
            assert!(!ledger.holds(at(11), whom.concerned()) && ledger.holds(at(12), whom.concerned()));
        }
    }

    #[test]
    fn one_word_about_everything_stands_for_those_that_were_given_up() {
        let whom = Whom::new();
        let ledger = reading(1, 10);
        let last = whom.scopes().iter().map(|scope| ledger.noted(scope)).max().unwrap();
        let after = ledger.noted(&Scope::Customer(whom.customer));
        ledger.heard(&Scope::All, id(11), Some(last));
        assert!(!ledger.holds(at(11), whom.concerned()));
        ledger.heard(&Scope::Customer(whom.customer), id(12), Some(after));
        assert!(ledger.holds(at(12), whom.concerned()));
    }

    #[test]
    fn nothing_holds_that_nothing_is_known_of() {
        let whom = Whom::new();
        let ledger = Ledger::default();
        assert!(ledger.position().is_none() && !ledger.holds(at(5), whom.concerned()));
        ledger.begun(1, id(4), id(10), 0);
        assert_eq!(ledger.position(), Some(at(10)));
        assert!(ledger.holds(at(4), whom.concerned()) && !ledger.holds(at(3), whom.concerned()));
        assert!(!ledger.holds(Position { epoch: 2, at: id(10) }, whom.concerned()));
        ledger.lost();
        assert!(ledger.position().is_none() && !ledger.holds(at(10), whom.concerned()));
        // In another life of the server, whose ids may begin before those of the one before.
        ledger.heard(&Scope::All, id(100), None);
        ledger.forget();
        ledger.begun(2, id(50), id(50), 0);
        assert!(ledger.holds(Position { epoch: 2, at: id(50) }, whom.concerned()));
        assert!(!ledger.holds(at(100), whom.concerned()));
    }

    #[test]
    fn a_change_that_the_server_has_is_not_waited_for_where_reading_begins_after_it() {
        let whom = Whom::new();
        let ledger = reading(1, 10);
        let sent = ledger.noted(&Scope::Customer(whom.customer));
        let unsent = ledger.noted(&Scope::Caller(whom.caller));
        ledger.begun(1, id(20), id(20), sent);
        assert!(!ledger.holds(at(20), whom.concerned()));
        ledger.heard(&Scope::Caller(whom.caller), id(21), Some(unsent));
        assert!(ledger.holds(at(21), whom.concerned()));
    }

    #[test]
    fn ids_are_read_as_the_server_writes_them_and_grow_as_it_counts() {
        let ids = ["0-0", "0-1", "1-0", "1732567890123-0", "1732567890123-1048575", "1732567890124-0"];
        let read = ids.map(|text| StreamId::parse(text).unwrap());
        assert!(read.is_sorted_by(|a, b| a < b));
        assert_eq!(read.map(|id| id.to_string()), ids.map(str::to_owned));
        assert_eq!(read.map(|id| StreamId::from_bits(id.to_bits())), read);
        for wrong in ["", "-", "1", "1-", "-1", "a-0", "1-1048576", "17592186044416-0", "1-0-0"] {
            assert_eq!(StreamId::parse(wrong), None, "{wrong}");
        }
    }
}
