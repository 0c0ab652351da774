//! What the tests stand on: a stand-in for the API that can misbehave byte for byte, the real
//! gateway as a child process, and a client that distrusts every answer. Nothing here uses the
//! gateway's own code, or it would share its faults.
//!
//! The tests are plain blocking functions; the stand-in has a separate runtime. Conditions are
//! awaited with gates and counts, never by sleeping; `PATIENCE` only bounds how long a fault may
//! take to show.

mod certificates;
mod checks;
mod client;
mod documents;
mod gateway;
mod h2c;
mod http2;
mod origin;
mod ports;
mod random;
mod raw_api;
mod recorder;
mod redis;
pub mod routing;
mod rules;
mod tls_api;
mod wire;

use std::time::Duration;

pub use certificates::{Authority, Certificate, SessionClient, Sessions, TlsConnection};
pub use checks::Kind;
pub use client::{Call, Client, Connection, Pending, Response, without_request_id};
pub use documents::*;
pub use gateway::{
    FAULT, Gateway, Run, Setup, TempDir, look_again, pace, run_binary, run_binary_with, wait_until,
};
pub use http2::{Frames, Http2, Outcome, fields};
pub use origin::{Origin, employee_of, runtime};
pub use ports::unused_port;
pub use random::Random;
pub use raw_api::{RawApi, response};
pub use recorder::{MANNER, Message, Recorder, TAG};
pub use redis::Redis;
pub use rules::{Answer, Framing, Gate, Rule};
pub use tls_api::TlsApi;
pub use wire::Seen;

/// How long anything may take before a test calls it broken. Long, since machines are slow and
/// noisy.
pub const PATIENCE: Duration = Duration::from_secs(60);
