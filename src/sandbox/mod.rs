//! A stand-in for the TelecomX API inside the binary: good enough to develop a frontend against without a network.
//!
//! What it is for: `telecomx-gateway sandbox` serves it alone, `telecomx-gateway demo` serves it behind the gateway. It
//! answers the endpoints that the gateway knows about, in the API's own shapes, from made-up data that is the same at
//! every start. Like the API, it gives every caller who may see a customer that customer's integration secrets: taking
//! them out is the gateway's business, and a sandbox that did it too would hide a gateway that does not.
//!
//! What it refuses: to keep anything. All state is in memory and bounded; a restart brings back the first state, the
//! demo callers' tokens included (a logout ends them, as it ends every token of an employee). It takes the word of
//! `X-Forwarded-For` and has passwords that anybody can read here, so it belongs on a loopback address.
//!
//! Rooms: `data` (who and what there is), `state` (a request in, an answer out; no socket, the clock is an argument),
//! `http` (the glue to hyper).

mod answer;
mod auth;
mod changelog;
mod changes;
mod customers;
mod data;
mod employees;
mod http;
mod received;
mod session;
mod state;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use data::{DEMO_CUSTOMER, DemoCaller, FOREIGN_CUSTOMER, OTHER_CUSTOMER, demo_callers};

/// How the sandbox behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Added to every answer, to see what a slow API does to a frontend. Zero unless set.
    pub latency: Duration,
    /// How long a login lasts after its last protected call, when the login asks for no other time. The API's 15
    /// minutes unless set; shorter to see what a frontend does when its session ends.
    pub session: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { latency: Duration::ZERO, session: Duration::from_mins(15) }
    }
}

/// The sandbox and everything in it. One value may serve several listeners; they share its state.
pub struct Sandbox {
    latency: Duration,
    state: Mutex<state::State>,
}

impl Sandbox {
    /// A sandbox in its first state.
    pub fn new(options: Options) -> Arc<Self> {
        let Options { latency, session } = options;
        Arc::new(Sandbox { latency, state: Mutex::new(state::State::new(data::World::first(), session)) })
    }
}
