//! Release of the allocator's unused memory to the system.

use mimalloc as _;

// A function of mimalloc that its crate links and does not declare.
#[expect(
    unsafe_code,
    reason = "a function of the allocator's that takes no memory of ours, callable by any thread at any time"
)]
unsafe extern "C" {
    safe fn mi_collect(force: bool);
}

/// Releases unused memory now, on this thread. Otherwise the first thread that frees something a
/// second later does so: one that serves requests, for milliseconds.
pub fn release_unused() {
    mi_collect(true);
}
