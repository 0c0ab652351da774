//! The decisions of the gateway, without I/O and without a clock: whether a response may be stored
//! and how long it is fresh, what a change invalidates, whether the circuit breaker permits a
//! request, and the fields of a response. Time is an argument.

pub mod breaker;
pub mod entry;
pub mod freshness;
pub mod intern;
pub mod invalidation;
pub mod key;
pub mod reply;
pub mod versions;
