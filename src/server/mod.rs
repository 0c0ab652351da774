//! pingora: listeners, the reading of request heads, the adapter to the gateway, the admin listener, signals and drain.

mod admin;
mod certificate;
mod chunks;
mod edge;
mod head;
mod lifecycle;
mod listening;
mod pace;
mod proxy;
mod redacted;
mod setup;
mod start;
mod wrapped;

pub use setup::Source;
pub use start::{StartError, check, run};
