//! Version counters of cache slots, by which an L1 cache detects that an entry was replaced.
//!
//! Slots that share a counter cost a lookup, never a wrong response.

use std::sync::atomic::{AtomicU32, Ordering};

/// Number of counters. They take 16 KiB, so that they stay in a processor's L1 cache.
const COUNTERS: usize = 1 << 12;

/// Version counters by digest.
pub struct SlotVersions(Box<[AtomicU32]>);

impl Default for SlotVersions {
    fn default() -> Self {
        SlotVersions(Box::new([const { AtomicU32::new(0) }; COUNTERS]))
    }
}

impl SlotVersions {
    /// Returns the version of a slot. To be read before the slot itself.
    pub fn get(&self, digest: u64) -> u32 {
        self.counter(digest).load(Ordering::Acquire)
    }

    /// Notes that the slot has changed.
    pub fn bump(&self, digest: u64) {
        self.counter(digest).fetch_add(1, Ordering::AcqRel);
    }

    fn counter(&self, digest: u64) -> &AtomicU32 {
        &self.0[digest as usize % COUNTERS]
    }
}
