//! The change log: the newest changes, in memory.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::data::Id;

/// Maximum number of entries, as the API has it.
const MAX_ENTRIES: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Customer,
    Employee,
}

impl Subject {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Subject::Customer => "Customers",
            Subject::Employee => "Employees",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Update,
    Delete,
}

impl ChangeKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Update => "UPDATE",
            ChangeKind::Delete => "DELETE",
        }
    }
}

/// A change of a customer or an employee.
pub(super) struct ChangeEntry {
    pub sequence: u64,
    pub subject: Subject,
    pub id: Id,
    pub customer: Id,
    pub reseller: Id,
    pub change: ChangeKind,
    pub when: SystemTime,
}

/// The entries, oldest first.
#[derive(Default)]
pub struct ChangeLog {
    pub(super) entries: VecDeque<ChangeEntry>,
    last_sequence: u64,
}

impl ChangeLog {
    /// Appends an entry: `id`, of this customer and reseller, changed. The oldest entry makes room.
    pub fn record(
        &mut self,
        subject: Subject,
        id: Id,
        customer: Id,
        reseller: Id,
        change: ChangeKind,
        when: SystemTime,
    ) {
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        self.entries.push_back(ChangeEntry {
            sequence,
            subject,
            id,
            customer,
            reseller,
            change,
            when,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_log_drops_its_oldest_entry() {
        let mut log = ChangeLog::default();
        let id = Id::parse(&[b'0'; 24]).unwrap();
        for _ in 0..=MAX_ENTRIES {
            log.record(Subject::Customer, id, id, id, ChangeKind::Update, SystemTime::UNIX_EPOCH);
        }
        assert_eq!(log.entries.len(), MAX_ENTRIES);
        assert_eq!(log.entries.front().unwrap().sequence, 2);
    }
}
