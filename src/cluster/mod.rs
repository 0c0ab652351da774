//! Several gateways that behave as one, through a Redis that none of them depends on: what is kept there is sealed, and
//! what cannot be had in time is done without.

mod ledger;
pub mod seal;
pub mod wire;

pub use ledger::{Ledger, Position, StreamId};
