//! Counters of what took another's place: who remembers where something was found learns by them that it may not be there any
//! more. Two things that share a counter cost a look, never a wrong answer.

use std::sync::atomic::{AtomicU32, Ordering};

/// Counters; 16 KiB, so that they stay in a processor's nearest cache.
const COUNTERS: usize = 1 << 12;

/// How often something was put somewhere, by a digest of where.
pub struct Renewals(Box<[AtomicU32]>);

impl Default for Renewals {
    fn default() -> Self {
        Renewals(Box::new([const { AtomicU32::new(0) }; COUNTERS]))
    }
}

impl Renewals {
    /// The count. Read before one looks for what is there.
    pub fn count(&self, digest: u64) -> u32 {
        self.at(digest).load(Ordering::Acquire)
    }

    /// Something else is there now.
    pub fn renewed(&self, digest: u64) {
        self.at(digest).fetch_add(1, Ordering::AcqRel);
    }

    fn at(&self, digest: u64) -> &AtomicU32 {
        &self.0[digest as usize % COUNTERS]
    }
}
