//! The entries of the change log: the newest ones, in memory.

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
pub enum Change {
    Update,
    Delete,
}

impl Change {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Change::Update => "UPDATE",
            Change::Delete => "DELETE",
        }
    }
}

/// One change.
pub(super) struct Entry {
    pub number: u64,
    pub subject: Subject,
    pub id: Id,
    pub customer: Id,
    pub reseller: Id,
    pub change: Change,
    pub when: SystemTime,
}

/// The entries, oldest first.
#[derive(Default)]
pub struct ChangeLog {
    pub(super) entries: VecDeque<Entry>,
    last_number: u64,
}

impl ChangeLog {
    /// Adds an entry: `id` of this customer and reseller changed.
    pub fn note(&mut self, subject: Subject, id: Id, customer: Id, reseller: Id, change: Change, when: SystemTime) {
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.last_number += 1;
        let number = self.last_number;
        self.entries.push_back(Entry { number, subject, id, customer, reseller, change, when });
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
            log.note(Subject::Customer, id, id, id, Change::Update, SystemTime::UNIX_EPOCH);
        }
        assert_eq!(log.entries.len(), MAX_ENTRIES);
        assert_eq!(log.entries.front().unwrap().number, 2);
    }
}
