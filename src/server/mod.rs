//! The server: listeners, connections, sessions, forwarding, the admin listener, signals and drain.

mod active_requests;
mod admin;
mod admission;
mod api_request;
mod certificate;
mod change_log;
mod client_session;
mod client_stream;
mod credentials;
mod descriptors;
mod disconnect;
mod edge;
mod exchange;
mod fast_path;
mod fast_path_head;
mod fleet;
mod forwarded_head;
mod frames;
mod head;
mod holder;
mod hpack;
mod http1_session;
mod http2;
mod http2_fast_path;
mod http2_head;
mod http2_rewrite;
mod http2_session;
mod http2_stream;
mod idle;
mod lifecycle;
mod listening;
mod notify;
mod pace;
mod proxy;
mod random_ids;
mod redacted;
mod request_context;
mod response_budget;
mod response_writer;
mod secrets;
mod sessions;
mod setup;
mod side;
mod signals;
mod start;
mod start_error;
mod timer;
mod upgrade;
mod veil;
mod wrapped;

#[cfg(test)]
#[path = "../../fuzz/oracles/request_head.rs"]
mod request_head_oracle;

pub use listening::cannot_listen;
pub use secrets::warnings;
pub use setup::Source;
pub use signals::ignore_until_serving as ignore_signals_until_serving;
pub use start::{Start, check, run};
pub use start_error::StartError;
