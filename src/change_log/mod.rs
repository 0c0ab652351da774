//! The API's change log: changes made without this gateway, polled and applied to the cache.

mod cursor;
mod poller;

pub use poller::{ChangeLogPoller, GatewaySource, failure_reasons, read_token};
