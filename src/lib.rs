//! telecomx-gateway: a caching, redacting reverse proxy in front of the TelecomX API.
//!
//! The modules, in the order of a request's way. Pure modules (`api`, `redact`, `reply`, `config`) know no socket, no
//! runtime and no clock; they build without the `server` feature, and CI builds them so.

pub mod api;
pub mod config;
pub mod redact;
pub mod reply;

#[cfg(feature = "server")]
pub mod cache;
#[cfg(feature = "server")]
pub mod change_log;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "server")]
pub mod cluster;
#[cfg(feature = "server")]
mod crypto;
#[cfg(feature = "server")]
pub mod fetch;
#[cfg(feature = "server")]
pub mod forward;
#[cfg(feature = "server")]
pub mod gateway;
#[cfg(feature = "server")]
pub mod identity;
#[cfg(feature = "server")]
mod memory;
#[cfg(feature = "server")]
pub mod near;
#[cfg(feature = "server")]
mod offload;
#[cfg(feature = "server")]
pub mod sandbox;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod upstream;
