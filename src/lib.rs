//! telecomx-gateway: a caching, redacting reverse proxy in front of the TelecomX API.
//!
//! Pure parts are crates of the workspace (`telecomx-api`, `redact`, `config`, `gateway-core`,
//! `http1`): they know no socket, runtime or clock, and their dependencies prove it.

pub use config;
pub use gateway_core::reply;
pub use redact;
pub use telecomx_api as api;

mod allocator;
pub mod cache;
pub mod change_log;
pub mod cli;
pub mod clock;
pub mod cluster;
mod crypto;
pub mod forward;
pub mod gateway;
pub mod identity;
mod offload;
mod process;
mod read_buffer;
pub mod sandbox;
mod secret_file;
pub mod server;
pub mod telemetry;
pub mod upstream;
