//! Invalidation without looking for entries: counters that entries remember.
//!
//! A fixed table of counters for each kind of thing that changes. An entry notes the counters of its customer, caller and
//! employee when its fetch begins; a lookup compares them with those of now. Invalidating is one increment, however much is
//! stored. Two ids that share a slot cost a miss, never a wrong answer.

use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::key::{CallerId, IdHasher};
use crate::api::{CustomerId, EmployeeId};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmployeeSlot(u16);

/// Counters as they were when a fetch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryMarks {
    all: u32,
    customer: u32,
    caller: u32,
    employee: u32,
}

/// Counters as they were when a validation began: the employee is not known yet, so any employee's change counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValidationMarks {
    all: u32,
    caller: u32,
    employees: u32,
}

impl ValidationMarks {
    /// Whether nothing about this caller has changed, other employees aside.
    pub fn same_caller(&self, now: &ValidationMarks) -> bool {
        (self.all, self.caller) == (now.all, now.caller)
    }
}

/// What a remembered identity compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityMarks {
    all: u32,
    caller: u32,
    employee: u32,
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
    /// Every employee's changes together, for validations under way.
    employees_total: AtomicU32,
    customers: Table,
    callers: Table,
    employees: Table,
    hasher: IdHasher,
}

impl Default for Generations {
    fn default() -> Self {
        Generations {
            announce: OnceLock::new(),
            depends_since: OnceLock::new(),
            known_for: AtomicU64::new(0),
            all: AtomicU32::new(0),
            employees_total: AtomicU32::new(0),
            customers: Table::new(),
            callers: Table::new(),
            employees: Table::new(),
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
            Scope::Employee(id) => {
                self.employees.bump(self.employee_slot(id).0);
                self.employees_total.fetch_add(1, Ordering::AcqRel);
            }
            Scope::Caller(id) => self.callers.bump(id.slot()),
        }
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
        EntryMarks {
            all: self.all.load(Ordering::Acquire),
            customer: self.customers.get(self.customer_slot(customer)),
            caller: self.callers.get(caller.slot()),
            employee: self.employees.get(employee.0),
        }
    }

    /// What a validation notes when it begins, and compares before its answer is remembered.
    pub fn validation_marks(&self, caller: &CallerId) -> ValidationMarks {
        ValidationMarks {
            all: self.all.load(Ordering::Acquire),
            caller: self.callers.get(caller.slot()),
            employees: self.employees_total.load(Ordering::Acquire),
        }
    }

    /// What a remembered identity notes, and compares when it is looked up.
    pub fn identity_marks(&self, caller: &CallerId, employee: EmployeeSlot) -> IdentityMarks {
        IdentityMarks {
            all: self.all.load(Ordering::Acquire),
            caller: self.callers.get(caller.slot()),
            employee: self.employees.get(employee.0),
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
        let before = (generations.validation_marks(&caller), generations.identity_marks(&caller, slot));
        generations.invalidate(&Scope::Employee(employee));
        assert_ne!(before, (generations.validation_marks(&caller), generations.identity_marks(&caller, slot)));
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
