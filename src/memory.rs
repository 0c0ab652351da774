//! The allocator's memory, where it goes back to the system.

use mimalloc as _;

// Of mimalloc itself, which the crate of that name brings along and does not name.
#[expect(
    unsafe_code,
    reason = "a function of the allocator's that takes no memory of ours, callable by any thread at any time"
)]
unsafe extern "C" {
    safe fn mi_collect(force: bool);
}

/// Gives what is free back to the system, in this thread and now. Otherwise the first one that frees something a second later does
/// it, all at once: a thread that answers, for milliseconds.
pub fn give_back() {
    mi_collect(true);
}
