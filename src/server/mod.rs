//! The server: listeners, connections, sessions, forwarding, the admin listener, signals and drain.

mod active_requests;
mod admin;
mod admission;
mod api_request;
mod certificate;
mod client_session;
mod client_stream;
mod cluster_member;
mod credentials;
mod descriptors;
mod disconnect;
mod edge;
mod exchange;
mod fast_path;
mod fast_path_head;
mod forwarded_head;
mod frames;
mod head;
mod hpack;
mod http1_session;
mod http2;
mod http2_fast_path;
mod http2_head;
mod http2_rewrite;
mod http2_session;
mod http2_stream;
mod idle;
mod listening;
mod pace;
mod proxy;
mod random_ids;
mod redacted;
mod reload;
mod request_context;
mod response_budget;
mod response_writer;
mod secrets;
mod sessions;
mod side;
mod signal_actions;
mod start;
mod start_error;
mod state;
mod timer;
mod veil;
mod wrapped;

#[cfg(test)]
#[path = "../../fuzz/oracles/request_head.rs"]
mod request_head_oracle;

pub use listening::cannot_listen;
pub use reload::Source;
pub use secrets::warnings;
pub use start::{Start, Telemetry, check, run};
pub use start_error::StartError;
