//! Connections of clients: protocols, request heads, sessions and the fast path.

pub mod active_requests;
pub mod client_failure;
pub mod client_session;
pub mod client_stream;
pub mod connection;
mod connection_refusal;
pub mod fast_path;
pub mod forwarded_head;
pub mod head_writer;
pub mod http1_session;
pub mod http2_connection;
pub mod http2_fast_path;
pub mod http2_frame_limits;
pub mod http2_session;
pub mod http2_stream;
pub mod keepalive_timer;
mod linger;
pub mod min_body_rate;
pub mod proxy_header;
pub mod request_head;
pub mod timer;
