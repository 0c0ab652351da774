//! A stand-in for the TelecomX API in the binary, with which a frontend can be developed without a
//! network.
//!
//! `telecomx-gateway sandbox` serves it alone, `telecomx-gateway demo` serves it behind the
//! gateway. It serves the endpoints that the gateway knows, in the API's shapes, from fictional
//! data that is the same at each start. Like the API it does not redact: every caller who may see a
//! customer receives its integration secrets. A sandbox that redacted would hide a gateway that
//! does not.
//!
//! State is in memory and bounded, and a restart restores the initial state, the tokens of the demo
//! callers included (a logout ends them, like every token of an employee). The sandbox trusts
//! `X-Forwarded-For` and its passwords are public, so it belongs on a loopback address.
//!
//! `data`: the initial data. `state`: requests to responses, without sockets, with the time as an
//! argument. `http`: hyper.

mod auth;
mod change_log;
mod changes;
mod cors;
mod customers;
mod data;
mod employees;
mod http;
mod request;
mod response;
mod session;
mod state;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use data::{DEMO_CUSTOMER, DemoCaller, FOREIGN_CUSTOMER, OTHER_CUSTOMER, demo_callers};

/// Options of the sandbox.
#[derive(Clone, Debug)]
pub struct Options {
    /// Delay of each response, to see how a frontend behaves with a slow API.
    pub latency: Duration,
    /// Lifetime of a session after its last protected request, if the login does not set another.
    /// Default: the API's 15 minutes. Shorten it to see how a frontend behaves when its session
    /// ends.
    pub session: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { latency: Duration::ZERO, session: Duration::from_mins(15) }
    }
}

/// The sandbox. One value may serve several listeners, which share its state.
pub struct Sandbox {
    latency: Duration,
    state: Mutex<state::State>,
}

impl Sandbox {
    /// Creates a sandbox in its initial state.
    pub fn new(options: Options) -> Arc<Self> {
        let Options { latency, session } = options;
        Arc::new(Sandbox {
            latency,
            state: Mutex::new(state::State::new(data::Dataset::initial(), session)),
        })
    }
}
