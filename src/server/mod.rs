//! The server: listeners, connections, sessions, forwarding, the admin listener, signals and drain.

mod admin;
mod admin_token;
mod admission;
mod cluster_member;
mod descriptors;
mod file_digests;
mod file_watch;
mod forward;
mod http;
mod listener;
mod listener_kind;
mod load_metrics;
mod proxy;
mod random_ids;
mod reload;
mod response_budget;
mod routing;
mod secrets;
mod signal_actions;
mod start;
mod start_error;
mod state;
mod tls;

#[cfg(test)]
#[expect(dead_code, reason = "the oracle reads heads of HTTP/2 too")]
#[path = "../../fuzz/oracles/request_head.rs"]
mod request_head_oracle;

pub use listener::cannot_listen;
pub use reload::Source;
pub use secrets::warnings;
pub use start::{Addresses, ListeningHook, Start, Telemetry, check, run};
pub use start_error::StartError;
