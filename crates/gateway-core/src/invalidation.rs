//! Invalidation by generation counters, without searching for entries.
//!
//! There is a fixed table of counters for customers, callers and employees each. An entry stores
//! the counters of its customer, caller and employee when its fetch begins; a lookup compares them
//! with the current ones. An invalidation is one increment, however much is stored. Two ids that
//! share a slot cost a miss, never a wrong response.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::key::{CallerId, IdHasher};
use telecomx_api::{CustomerId, EmployeeId};

/// Slots of each table. 65,536 counters take 256 KiB. With 1,000 live ids, one change invalidates
/// 0.015 others on average.
const SLOTS: usize = 1 << 16;

/// What an invalidation covers.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All entries and identities.
    All,
    /// One customer, for every caller.
    Customer(CustomerId),
    /// One employee: its identities, and the entries of its callers.
    Employee(EmployeeId),
    /// One token: its identity and its entries.
    Caller(CallerId),
}

impl Scope {
    /// Label of metrics, and value in responses of the admin listener.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Customer(_) => "customer",
            Scope::Employee(_) => "employee",
            Scope::Caller(_) => "caller",
        }
    }
}

/// Slot of an employee's counter, stored in an identity so that a hit does not hash the id again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmployeeSlot(u16);

/// Counters that an entry depends on, when its fetch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryGenerations {
    all: u32,
    customer: u32,
    caller: u32,
    employee: u64,
}

/// Counters that a validation depends on before its employee is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerGenerations {
    all: u32,
    caller: u32,
}

/// Counters when a validation began. The employee is not known yet, so the number of the last
/// change of any employee is stored, and compared with that of the employee that the API names
/// ([`Generations::has_employee_changed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidationGenerations {
    pub caller: CallerGenerations,
    last_employee_change: u64,
}

impl ValidationGenerations {
    /// Whether the caller has not changed, employees aside.
    pub fn same_caller(&self, now: &ValidationGenerations) -> bool {
        self.caller == now.caller
    }

    /// Whether it covers every change that `other` covers.
    pub fn is_after(&self, other: &ValidationGenerations) -> bool {
        self.last_employee_change >= other.last_employee_change
    }
}

/// Counters that a cached identity depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityGenerations {
    all: u32,
    caller: u32,
    employee: u64,
}

struct Table(Box<[AtomicU32]>);

impl Table {
    fn new() -> Self {
        // As a constant: initialised one by one, they take most of the start-up time of a debug
        // build.
        Table(Box::new([const { AtomicU32::new(0) }; SLOTS]))
    }

    fn get(&self, slot: u16) -> u32 {
        self.0[usize::from(slot)].load(Ordering::Acquire)
    }

    fn bump(&self, slot: u16) {
        self.0[usize::from(slot)].fetch_add(1, Ordering::AcqRel);
    }
}

/// Number of the last change of each employee. 512 KiB; the numbers have 64 bits, since they are
/// compared by size and must not wrap.
struct EmployeeTable {
    /// Number of the last change of any employee.
    last: AtomicU64,
    slots: Box<[AtomicU64]>,
}

impl EmployeeTable {
    fn new() -> Self {
        EmployeeTable {
            last: AtomicU64::new(0),
            slots: Box::new([const { AtomicU64::new(0) }; SLOTS]),
        }
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

/// Slot that a write with unknown outcome may still change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unsettled {
    All,
    Customer(u16),
    Employee(EmployeeSlot),
    Caller(u16),
}

/// Publishes a change that this gateway saw to the cluster.
pub type PublishInvalidation = Box<dyn Fn(&Scope) + Send + Sync>;

/// Generation counters of everything that can change.
pub struct Generations {
    publish: OnceLock<PublishInvalidation>,
    /// Time of the first synchronization with the cluster; not set without a cluster.
    clustered_since: OnceLock<Instant>,
    /// Nanoseconds after `clustered_since` until which the changes of other gateways are known
    /// here.
    synced_for: AtomicU64,
    all: AtomicU32,
    customers: Table,
    callers: Table,
    employees: EmployeeTable,
    /// Slots of writes with unknown outcome, and the time until which they may be executed.
    unsettled: RwLock<HashMap<Unsettled, Instant>>,
    /// Length of `unsettled`, so that a lookup takes no lock while it is empty.
    unsettled_count: AtomicUsize,
    hasher: IdHasher,
    clock: fn() -> Instant,
}

impl Generations {
    /// `clock`: returns the current time.
    pub fn new(clock: fn() -> Instant) -> Self {
        Generations {
            clock,
            publish: OnceLock::new(),
            clustered_since: OnceLock::new(),
            synced_for: AtomicU64::new(0),
            all: AtomicU32::new(0),
            customers: Table::new(),
            callers: Table::new(),
            employees: EmployeeTable::new(),
            unsettled: RwLock::default(),
            unsettled_count: AtomicUsize::new(0),
            hasher: IdHasher::default(),
        }
    }

    /// Sets the publisher to the cluster. The first call counts.
    pub fn set_publisher(&self, publish: PublishInvalidation) {
        let _ = self.publish.set(publish);
    }

    /// Applies and publishes a change that this gateway saw.
    pub fn invalidate(&self, scope: &Scope) {
        // Published first: that also invalidates entries of the shared tier here, so that no
        // request finds the new counters and an outdated entry.
        if let Some(publish) = self.publish.get() {
            publish(scope);
        }
        self.apply(scope);
    }

    /// Notes that every change which counts before `until` is known, those of other gateways
    /// included. Called at each synchronization with the cluster; never moves back.
    pub fn set_synced_until(&self, now: Instant, until: Instant) {
        let since = self.clustered_since.get_or_init(|| now);
        self.synced_for
            .fetch_max(nanoseconds(until.saturating_duration_since(*since)), Ordering::Relaxed);
    }

    /// Whether every change that counts now is known, so that caches may be used.
    pub fn is_synced(&self, now: Instant) -> bool {
        self.clustered_since.get().is_none_or(|since| {
            nanoseconds(now.saturating_duration_since(*since))
                < self.synced_for.load(Ordering::Relaxed)
        })
    }

    /// Invalidates a scope. Everything that was made from it before is stale from here on.
    pub fn apply(&self, scope: &Scope) {
        match scope {
            Scope::All => drop(self.all.fetch_add(1, Ordering::AcqRel)),
            Scope::Customer(id) => self.customers.bump(self.customer_slot(id)),
            Scope::Employee(id) => self.employees.bump(self.employee_slot(id)),
            Scope::Caller(id) => self.callers.bump(id.slot()),
        }
    }

    /// Marks a scope as subject to a write that the API may execute at any time until `until`.
    /// Until then nothing is stored for it, and no request joins the fetch of another one. Returns
    /// whether it was not marked before.
    pub fn unsettle(&self, scope: &Scope, until: Instant) -> bool {
        let key = match scope {
            Scope::All => Unsettled::All,
            Scope::Customer(id) => Unsettled::Customer(self.customer_slot(id)),
            Scope::Employee(id) => Unsettled::Employee(self.employee_slot(id)),
            Scope::Caller(id) => Unsettled::Caller(id.slot()),
        };
        let mut unsettled = self.unsettled.write();
        let now = (self.clock)();
        unsettled.retain(|_, until| *until > now);
        let before = unsettled.insert(key, until);
        if let Some(before) = before.filter(|before| *before > until) {
            unsettled.insert(key, before);
        }
        self.unsettled_count.store(unsettled.len(), Ordering::Release);
        before.is_none()
    }

    /// Increments the counter of each of these slots that is unsettled. Each read of such a counter
    /// returns another number, so that no entry or fetch with it is ever found, stored or joined.
    fn bump_unsettled(&self, scopes: &[Unsettled]) {
        if self.unsettled_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let now = (self.clock)();
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

    /// Whether a write to one of these may still be executed. Entries in the shared tier may be
    /// from before it.
    pub fn is_unsettled(
        &self,
        customer: Option<&CustomerId>,
        caller: &CallerId,
        employee: EmployeeSlot,
    ) -> bool {
        if self.unsettled_count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let customer = customer.map(|id| Unsettled::Customer(self.customer_slot(id)));
        let others =
            [Unsettled::All, Unsettled::Caller(caller.slot()), Unsettled::Employee(employee)];
        let (now, unsettled) = ((self.clock)(), self.unsettled.read());
        others
            .into_iter()
            .chain(customer)
            .any(|scope| unsettled.get(&scope).is_some_and(|until| *until > now))
    }

    pub fn employee_slot(&self, id: &EmployeeId) -> EmployeeSlot {
        EmployeeSlot(self.hasher.hash_one(id.as_str()) as u16)
    }

    fn customer_slot(&self, id: &CustomerId) -> u16 {
        self.hasher.hash_one(id) as u16
    }

    /// Counters that an entry depends on.
    pub fn entry_generations(
        &self,
        customer: &CustomerId,
        caller: &CallerId,
        employee: EmployeeSlot,
    ) -> EntryGenerations {
        let customer = self.customer_slot(customer);
        self.bump_unsettled(&[
            Unsettled::Customer(customer),
            Unsettled::Caller(caller.slot()),
            Unsettled::Employee(employee),
        ]);
        EntryGenerations {
            all: self.all.load(Ordering::Acquire),
            customer: self.customers.get(customer),
            caller: self.callers.get(caller.slot()),
            employee: self.employees.get(employee),
        }
    }

    /// Counters that a validation depends on.
    pub fn validation_generations(&self, caller: &CallerId) -> ValidationGenerations {
        self.bump_unsettled(&[Unsettled::Caller(caller.slot())]);
        if self.unsettled_count.load(Ordering::Acquire) > 0
            && self.unsettled.read().keys().any(|scope| matches!(scope, Unsettled::Employee(_)))
        {
            // A request that begins now must not use the result of an earlier validation.
            self.employees.last.fetch_add(1, Ordering::AcqRel);
        }
        let last_employee_change = self.employees.last.load(Ordering::Acquire);
        let (all, caller) = (self.all.load(Ordering::Acquire), self.callers.get(caller.slot()));
        ValidationGenerations { caller: CallerGenerations { all, caller }, last_employee_change }
    }

    /// Whether an employee has changed since a validation began.
    pub fn has_employee_changed(
        &self,
        employee: EmployeeSlot,
        since: &ValidationGenerations,
    ) -> bool {
        self.bump_unsettled(&[Unsettled::Employee(employee)]);
        self.employees.get(employee) > since.last_employee_change
    }

    /// Counters that a cached identity depends on.
    pub fn identity_generations(
        &self,
        caller: &CallerId,
        employee: EmployeeSlot,
    ) -> IdentityGenerations {
        self.bump_unsettled(&[Unsettled::Caller(caller.slot()), Unsettled::Employee(employee)]);
        IdentityGenerations {
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
#[expect(clippy::disallowed_methods, reason = "tests need a time to begin with")]
mod tests {
    use super::*;
    use crate::key::CallerIds;

    #[test]
    fn change_invalidates_what_depends_on_it() {
        let generations = Generations::new(Instant::now);
        let callers = CallerIds::with_key([7; 32]);
        let caller = callers.id_of("a");
        let customer = CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap();
        let employee = EmployeeId::parse("5f00000000000000000000aa").unwrap();
        let slot = generations.employee_slot(&employee);
        let current = || generations.entry_generations(&customer, &caller, slot);
        for scope in [
            Scope::All,
            Scope::Customer(customer),
            Scope::Employee(employee.clone()),
            Scope::Caller(caller),
        ] {
            let before = current();
            assert_eq!(before, current());
            generations.invalidate(&scope);
            assert_ne!(before, current(), "{}", scope.as_str());
        }
        let before = generations.identity_generations(&caller, slot);
        generations.invalidate(&Scope::Employee(employee));
        assert_ne!(before, generations.identity_generations(&caller, slot));
    }

    #[test]
    fn employee_change_outdates_its_validations_only() {
        let generations = Generations::new(Instant::now);
        let caller = CallerIds::with_key([7; 32]).id_of("a");
        let [one, other] = ["5f00000000000000000000aa", "5f00000000000000000000ab"]
            .map(|id| EmployeeId::parse(id).unwrap());
        let (slot, other_slot) =
            (generations.employee_slot(&one), generations.employee_slot(&other));
        assert_ne!(
            slot, other_slot,
            "of two ids, they are equal with a probability of 1 in 65,536"
        );
        let before = generations.validation_generations(&caller);
        for _ in 0..100 {
            generations.invalidate(&Scope::Employee(other.clone()));
        }
        assert!(!generations.has_employee_changed(slot, &before));
        assert!(generations.has_employee_changed(other_slot, &before));
        assert_eq!(
            before.caller,
            generations.validation_generations(&caller).caller,
            "a validation of the caller is joined"
        );
        let during = generations.validation_generations(&caller);
        assert!(
            !generations.has_employee_changed(other_slot, &during),
            "it began after the change"
        );
        generations.invalidate(&Scope::Employee(one));
        assert!(generations.has_employee_changed(slot, &during));
    }

    #[test]
    fn unsettled_scope_has_new_generations_at_each_read() {
        let generations = Generations::new(Instant::now);
        let callers = CallerIds::with_key([7; 32]);
        let (caller, other) = (callers.id_of("a"), callers.id_of("b"));
        let customer = CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap();
        let employee = EmployeeId::parse("5f00000000000000000000aa").unwrap();
        let slot = generations.employee_slot(&employee);
        let until = Instant::now() + Duration::from_secs(600);
        let entry = |caller| generations.entry_generations(&customer, caller, slot);
        let identity = |caller| generations.identity_generations(caller, slot);
        assert!(generations.unsettle(&Scope::Caller(caller), until));
        assert!(!generations.unsettle(&Scope::Caller(caller), until), "it was unsettled before");
        assert!(entry(&caller) != entry(&caller) && identity(&caller) != identity(&caller));
        assert!(entry(&other) == entry(&other) && identity(&other) == identity(&other));
        assert!(
            generations.is_unsettled(None, &caller, slot)
                && !generations.is_unsettled(None, &other, slot)
        );
        generations.unsettle(&Scope::Customer(customer), until);
        assert!(entry(&other) != entry(&other) && identity(&other) == identity(&other));
        assert!(generations.is_unsettled(Some(&customer), &other, slot));
        let began = generations.validation_generations(&other);
        generations.unsettle(&Scope::Employee(employee), until);
        assert!(
            identity(&other) != identity(&other) && generations.has_employee_changed(slot, &began)
        );
        let settled = Generations::new(Instant::now);
        settled.unsettle(&Scope::All, Instant::now());
        assert_eq!(
            settled.identity_generations(&caller, slot),
            settled.identity_generations(&caller, slot)
        );
        assert_eq!(settled.unsettled_count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn generations_are_synced_until_the_stated_time() {
        let generations = Generations::new(Instant::now);
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert!(generations.is_synced(start + 1000 * second), "always without a cluster");
        generations.set_synced_until(start, start + second);
        assert!(generations.is_synced(start) && !generations.is_synced(start + second));
        generations.set_synced_until(start + 5 * second, start + 6 * second);
        assert!(
            generations.is_synced(start + 5 * second) && !generations.is_synced(start + 6 * second)
        );
        generations.set_synced_until(start + 6 * second, start + 2 * second);
        assert!(generations.is_synced(start + 5 * second), "it never moves back");
    }

    #[test]
    fn own_change_is_published_first_and_a_remote_one_is_not() {
        let generations = std::sync::Arc::new(Generations::new(Instant::now));
        let caller = CallerIds::with_key([7; 32]).id_of("a");
        let (sender, published) = std::sync::mpsc::sync_channel(8);
        let counters = std::sync::Arc::downgrade(&generations);
        generations.set_publisher(Box::new(move |scope| {
            let counters =
                counters.upgrade().map(|counters| counters.validation_generations(&caller));
            let _ = sender.send((scope.as_str(), counters));
        }));
        let before = generations.validation_generations(&caller);
        generations.invalidate(&Scope::Caller(caller));
        assert_eq!(published.try_recv(), Ok(("caller", Some(before))));
        let after = generations.validation_generations(&caller);
        assert_ne!(before, after);
        generations.apply(&Scope::Caller(caller));
        assert_ne!(after, generations.validation_generations(&caller));
        assert!(published.try_recv().is_err());
    }
}
