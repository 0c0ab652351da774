//! Invalidation without looking for entries: counters that entries remember.
//!
//! A fixed table of counters for each kind of thing that changes. An entry notes the counters of its customer, caller and
//! employee when its fetch begins; a lookup compares them with those of now. Invalidating is one increment, however much is
//! stored. Two ids that share a slot cost a miss, never a wrong answer.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::key::{CallerId, IdHasher};
use crate::api::{CustomerId, EmployeeId};
use crate::clock;

/// Slots of each table. 65,536 counters are 256 KiB a table; of 1,000 live ids, one change misses 0.015 others on average.
const SLOTS: usize = 1 << 16;

/// What a change makes stale.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Everything, identities included.
    All,
    /// One customer, for every caller.
    Customer(CustomerId),
    /// One employee: identities and all that is stored for them.
    Employee(EmployeeId),
    /// One token: its identity and all that is stored for it.
    Caller(CallerId),
}

impl Scope {
    /// The name for metrics and answers.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Customer(_) => "customer",
            Scope::Employee(_) => "employee",
            Scope::Caller(_) => "caller",
        }
    }
}

/// Where an employee's counter stands; kept in an identity so that a hit does not hash the id again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmployeeSlot(u16);

/// Counters as they were when a fetch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryMarks {
    all: u32,
    customer: u32,
    caller: u32,
    employee: u64,
}

/// What concerns a caller whose employee is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerMarks {
    all: u32,
    caller: u32,
}

/// Counters as they were when a validation began. The employee is not known yet: the number of the
/// last change of any employee is noted, and compared with the number of the last change of the one
/// that the API names ([`Generations::has_employee_changed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidationMarks {
    pub caller: CallerMarks,
    last_employee_change: u64,
}

impl ValidationMarks {
    /// Whether nothing about this caller has changed, employees aside.
    pub fn same_caller(&self, now: &ValidationMarks) -> bool {
        self.caller == now.caller
    }

    /// Whether it knows every change that the other one does.
    pub fn is_after(&self, other: &ValidationMarks) -> bool {
        self.last_employee_change >= other.last_employee_change
    }
}

/// What a remembered identity compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityMarks {
    all: u32,
    caller: u32,
    employee: u64,
}

struct Table(Box<[AtomicU32]>);

impl Table {
    fn new() -> Self {
        // As a whole: one by one they take longer than everything else of a gateway that is set up in a debug build.
        Table(Box::new([const { AtomicU32::new(0) }; SLOTS]))
    }

    fn get(&self, slot: u16) -> u32 {
        self.0[usize::from(slot)].load(Ordering::Acquire)
    }

    fn bump(&self, slot: u16) {
        self.0[usize::from(slot)].fetch_add(1, Ordering::AcqRel);
    }
}

/// The number of the last change of each employee. 512 KiB; 64 bits, since the numbers are compared
/// by size and must not wrap.
struct EmployeeTable {
    /// Of any employee.
    last: AtomicU64,
    slots: Box<[AtomicU64]>,
}

impl EmployeeTable {
    fn new() -> Self {
        EmployeeTable { last: AtomicU64::new(0), slots: Box::new([const { AtomicU64::new(0) }; SLOTS]) }
    }

    fn get(&self, slot: EmployeeSlot) -> u64 {
        self.slots[usize::from(slot.0)].load(Ordering::Acquire)
    }

    fn bump(&self, slot: EmployeeSlot) {
        // A validation that begins between the two asks the API after this change.
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        self.slots[usize::from(slot.0)].fetch_max(number, Ordering::AcqRel);
    }
}

/// A scope of which a write may still be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unsettled {
    All,
    Customer(u16),
    Employee(EmployeeSlot),
    Caller(u16),
}

/// Told of a change that this gateway saw itself.
pub type Announce = Box<dyn Fn(&Scope) + Send + Sync>;

/// The counters of everything that can change.
pub struct Generations {
    announce: OnceLock<Announce>,
    /// When it began to depend on others; not set: this gateway sees all there is to see.
    depends_since: OnceLock<Instant>,
    /// From then on, in nanoseconds: for how long what others saw is known here.
    known_for: AtomicU64,
    all: AtomicU32,
    customers: Table,
    callers: Table,
    employees: EmployeeTable,
    /// Scopes of writes whose outcome is unknown, and until when they may be executed.
    unsettled: RwLock<HashMap<Unsettled, Instant>>,
    /// How many there are, so that a lookup takes no lock while there are none.
    unsettled_count: AtomicUsize,
    hasher: IdHasher,
}

impl Default for Generations {
    fn default() -> Self {
        Generations {
            announce: OnceLock::new(),
            depends_since: OnceLock::new(),
            known_for: AtomicU64::new(0),
            all: AtomicU32::new(0),
            customers: Table::new(),
            callers: Table::new(),
            employees: EmployeeTable::new(),
            unsettled: RwLock::default(),
            unsettled_count: AtomicUsize::new(0),
            hasher: IdHasher::default(),
        }
    }
}

impl Generations {
    /// Who tells the other gateways of a fleet; set once.
    pub fn announce_to(&self, announce: Announce) {
        let _ = self.announce.set(announce);
    }

    /// One change seen, which the others are told of. Whatever was noted before is stale from here on.
    pub fn invalidate(&self, scope: &Scope) {
        // Before it counts: what others put into the shared tier is void here from that moment on, so that nobody who finds
        // the new counters finds it.
        if let Some(announce) = self.announce.get() {
            announce(scope);
        }
        self.obey(scope);
    }

    /// Other gateways see changes too, and what they saw is known here until `until`; set anew whenever they are heard. Never
    /// goes back.
    pub fn known_until(&self, now: Instant, until: Instant) {
        let since = self.depends_since.get_or_init(|| now);
        self.known_for.fetch_max(nanoseconds(until.saturating_duration_since(*since)), Ordering::Relaxed);
    }

    /// Whether what is remembered may be used: all changes are known that count now.
    pub fn are_known(&self, now: Instant) -> bool {
        self.depends_since.get().is_none_or(|since| {
            nanoseconds(now.saturating_duration_since(*since)) < self.known_for.load(Ordering::Relaxed)
        })
    }

    /// One change that another gateway told of.
    pub fn obey(&self, scope: &Scope) {
        match scope {
            Scope::All => drop(self.all.fetch_add(1, Ordering::AcqRel)),
            Scope::Customer(id) => self.customers.bump(self.customer_slot(id)),
            Scope::Employee(id) => self.employees.bump(self.employee_slot(id)),
            Scope::Caller(id) => self.callers.bump(id.slot()),
        }
    }

    /// A write to this scope may be executed at any time until then: nothing is stored for it
    /// meanwhile, and no request waits for what another one began to fetch. Whether it was settled
    /// before.
    pub fn unsettle(&self, scope: &Scope, until: Instant) -> bool {
        let key = match scope {
            Scope::All => Unsettled::All,
            Scope::Customer(id) => Unsettled::Customer(self.customer_slot(id)),
            Scope::Employee(id) => Unsettled::Employee(self.employee_slot(id)),
            Scope::Caller(id) => Unsettled::Caller(id.slot()),
        };
        let mut unsettled = self.unsettled.write();
        let now = clock::now();
        unsettled.retain(|_, until| *until > now);
        let before = unsettled.insert(key, until);
        if let Some(before) = before.filter(|before| *before > until) {
            unsettled.insert(key, before);
        }
        self.unsettled_count.store(unsettled.len(), Ordering::Release);
        before.is_none()
    }

    /// Counts a change of each of these scopes that is unsettled: each look at its counter gives
    /// another number, so that nothing noted by it is ever found, stored or waited for.
    fn renew_unsettled(&self, scopes: &[Unsettled]) {
        if self.unsettled_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let now = clock::now();
        let unsettled = self.unsettled.read();
        for scope in scopes.iter().chain(&[Unsettled::All]) {
            if unsettled.get(scope).is_some_and(|until| *until > now) {
                match *scope {
                    Unsettled::All => drop(self.all.fetch_add(1, Ordering::AcqRel)),
                    Unsettled::Customer(slot) => self.customers.bump(slot),
                    Unsettled::Employee(slot) => self.employees.bump(slot),
                    Unsettled::Caller(slot) => self.callers.bump(slot),
                }
            }
        }
        let over = !unsettled.values().any(|until| *until > now);
        drop(unsettled);
        if over {
            let mut unsettled = self.unsettled.write();
            unsettled.retain(|_, until| *until > now);
            self.unsettled_count.store(unsettled.len(), Ordering::Release);
        }
    }

    /// Whether a write to one of these may still be executed: what others put into the shared tier
    /// may be from before it.
    pub fn is_unsettled(&self, customer: Option<&CustomerId>, caller: &CallerId, employee: EmployeeSlot) -> bool {
        if self.unsettled_count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let customer = customer.map(|id| Unsettled::Customer(self.customer_slot(id)));
        let others = [Unsettled::All, Unsettled::Caller(caller.slot()), Unsettled::Employee(employee)];
        let (now, unsettled) = (clock::now(), self.unsettled.read());
        others.into_iter().chain(customer).any(|scope| unsettled.get(&scope).is_some_and(|until| *until > now))
    }

    /// The slot of an employee.
    pub fn employee_slot(&self, id: &EmployeeId) -> EmployeeSlot {
        EmployeeSlot(self.hasher.hash_one(id.as_str()) as u16)
    }

    fn customer_slot(&self, id: &CustomerId) -> u16 {
        self.hasher.hash_one(id) as u16
    }

    /// What an entry notes when its fetch begins, and compares when it is looked up.
    pub fn entry_marks(&self, customer: &CustomerId, caller: &CallerId, employee: EmployeeSlot) -> EntryMarks {
        let customer = self.customer_slot(customer);
        self.renew_unsettled(&[
            Unsettled::Customer(customer),
            Unsettled::Caller(caller.slot()),
            Unsettled::Employee(employee),
        ]);
        EntryMarks {
            all: self.all.load(Ordering::Acquire),
            customer: self.customers.get(customer),
            caller: self.callers.get(caller.slot()),
            employee: self.employees.get(employee),
        }
    }

    /// What a validation notes when it begins, and compares before its answer is remembered.
    pub fn validation_marks(&self, caller: &CallerId) -> ValidationMarks {
        self.renew_unsettled(&[Unsettled::Caller(caller.slot())]);
        if self.unsettled_count.load(Ordering::Acquire) > 0
            && self.unsettled.read().keys().any(|scope| matches!(scope, Unsettled::Employee(_)))
        {
            // A request that begins now must not take what a validation before it found.
            self.employees.last.fetch_add(1, Ordering::AcqRel);
        }
        let last_employee_change = self.employees.last.load(Ordering::Acquire);
        let (all, caller) = (self.all.load(Ordering::Acquire), self.callers.get(caller.slot()));
        ValidationMarks { caller: CallerMarks { all, caller }, last_employee_change }
    }

    /// Whether an employee has changed since a validation began.
    pub fn has_employee_changed(&self, employee: EmployeeSlot, since: &ValidationMarks) -> bool {
        self.renew_unsettled(&[Unsettled::Employee(employee)]);
        self.employees.get(employee) > since.last_employee_change
    }

    /// What a remembered identity notes, and compares when it is looked up.
    pub fn identity_marks(&self, caller: &CallerId, employee: EmployeeSlot) -> IdentityMarks {
        self.renew_unsettled(&[Unsettled::Caller(caller.slot()), Unsettled::Employee(employee)]);
        IdentityMarks {
            all: self.all.load(Ordering::Acquire),
            caller: self.callers.get(caller.slot()),
            employee: self.employees.get(employee),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::key::CallerIds;

    #[test]
    fn a_change_is_seen_by_what_it_concerns() {
        let generations = Generations::default();
        let callers = CallerIds::with_key([7; 32]);
        let caller = callers.of("a");
        let customer = CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap();
        let employee = EmployeeId::parse("5f00000000000000000000aa").unwrap();
        let slot = generations.employee_slot(&employee);
        let marks = || generations.entry_marks(&customer, &caller, slot);
        for scope in [Scope::All, Scope::Customer(customer), Scope::Employee(employee.clone()), Scope::Caller(caller)] {
            let before = marks();
            assert_eq!(before, marks());
            generations.invalidate(&scope);
            assert_ne!(before, marks(), "{}", scope.as_str());
        }
        let before = generations.identity_marks(&caller, slot);
        generations.invalidate(&Scope::Employee(employee));
        assert_ne!(before, generations.identity_marks(&caller, slot));
    }

    #[test]
    fn employee_change_concerns_validations_of_that_employee() {
        let generations = Generations::default();
        let caller = CallerIds::with_key([7; 32]).of("a");
        let [one, other] =
            ["5f00000000000000000000aa", "5f00000000000000000000ab"].map(|id| EmployeeId::parse(id).unwrap());
        let (slot, other_slot) = (generations.employee_slot(&one), generations.employee_slot(&other));
        assert_ne!(slot, other_slot, "of two ids, one time in 65,536 they are the same");
        let before = generations.validation_marks(&caller);
        for _ in 0..100 {
            generations.invalidate(&Scope::Employee(other.clone()));
        }
        assert!(!generations.has_employee_changed(slot, &before));
        assert!(generations.has_employee_changed(other_slot, &before));
        assert_eq!(before.caller, generations.validation_marks(&caller).caller, "a validation of the caller is joined");
        let during = generations.validation_marks(&caller);
        assert!(!generations.has_employee_changed(other_slot, &during), "what begins after the change knows it");
        generations.invalidate(&Scope::Employee(one));
        assert!(generations.has_employee_changed(slot, &during));
    }

    #[test]
    fn unsettled_scope_never_gives_the_same_marks_twice() {
        let generations = Generations::default();
        let callers = CallerIds::with_key([7; 32]);
        let (caller, other) = (callers.of("a"), callers.of("b"));
        let customer = CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap();
        let employee = EmployeeId::parse("5f00000000000000000000aa").unwrap();
        let slot = generations.employee_slot(&employee);
        let until = clock::now() + Duration::from_secs(600);
        let entry = |caller| generations.entry_marks(&customer, caller, slot);
        let identity = |caller| generations.identity_marks(caller, slot);
        assert!(generations.unsettle(&Scope::Caller(caller), until));
        assert!(!generations.unsettle(&Scope::Caller(caller), until), "it was unsettled before");
        assert!(entry(&caller) != entry(&caller) && identity(&caller) != identity(&caller));
        assert!(entry(&other) == entry(&other) && identity(&other) == identity(&other));
        assert!(generations.is_unsettled(None, &caller, slot) && !generations.is_unsettled(None, &other, slot));
        generations.unsettle(&Scope::Customer(customer), until);
        assert!(entry(&other) != entry(&other) && identity(&other) == identity(&other));
        assert!(generations.is_unsettled(Some(&customer), &other, slot));
        let began = generations.validation_marks(&other);
        generations.unsettle(&Scope::Employee(employee), until);
        assert!(identity(&other) != identity(&other) && generations.has_employee_changed(slot, &began));
        let settled = Generations::default();
        settled.unsettle(&Scope::All, clock::now());
        assert_eq!(settled.identity_marks(&caller, slot), settled.identity_marks(&caller, slot));
        assert_eq!(settled.unsettled_count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_others_see_is_known_as_long_as_they_are_heard() {
        let generations = Generations::default();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert!(generations.are_known(start + 1000 * second), "by itself, for ever");
        generations.known_until(start, start + second);
        assert!(generations.are_known(start) && !generations.are_known(start + second));
        generations.known_until(start + 5 * second, start + 6 * second);
        assert!(generations.are_known(start + 5 * second) && !generations.are_known(start + 6 * second));
        generations.known_until(start + 6 * second, start + 2 * second);
        assert!(generations.are_known(start + 5 * second), "it never goes back");
    }

    #[test]
    fn an_own_change_is_told_of_before_it_counts_and_one_that_was_heard_is_not_told_again() {
        let generations = std::sync::Arc::new(Generations::default());
        let caller = CallerIds::with_key([7; 32]).of("a");
        let (told, seen) = std::sync::mpsc::sync_channel(8);
        let counters = std::sync::Arc::downgrade(&generations);
        generations.announce_to(Box::new(move |scope| {
            let counters = counters.upgrade().map(|counters| counters.validation_marks(&caller));
            let _ = told.send((scope.as_str(), counters));
        }));
        let before = generations.validation_marks(&caller);
        generations.invalidate(&Scope::Caller(caller));
        assert_eq!(seen.try_recv(), Ok(("caller", Some(before))));
        let after = generations.validation_marks(&caller);
        assert_ne!(before, after);
        generations.obey(&Scope::Caller(caller));
        assert_ne!(after, generations.validation_marks(&caller));
        assert!(seen.try_recv().is_err());
    }
}
