//! Several gateways that behave as one, through a Redis that none of them depends on: what is kept there is sealed, and
//! what cannot be had in time is done without.

mod answers;
mod bounded;
mod bus;
mod callers;
mod connection;
mod environment;
mod keys;
mod ledger;
mod message;
mod queue;
mod redis_store;
pub mod seal;
mod stream;
mod tier;
mod turns;
pub mod wire;

pub use answers::Wanted;
pub use bus::{Bus, Parts as BusParts, Repolicy};
pub use callers::{Trust, judge as judge_identity};
pub use connection::{Connection, Connector, Error};
pub use environment::Environment;
pub use keys::Keys;
pub use ledger::{Concerned, Ledger, Position, StreamId};
pub use tier::{Judged, Kind, Looked, Name, Names, Seen, Store, StoreError, Tier, Void, Writing};
pub use turns::{Turn, Turns};
pub use wire::ServerTime;
