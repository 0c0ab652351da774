//! What the gateway promises in its contract, stated from outside: the real binary, over real sockets, in front of a stand-in
//! for the API that misbehaves as told. One binary, so that the support is built once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed, helpers included")]

mod admin;
mod behind;
mod body_framing;
mod cache;
mod change_log;
mod changes;
mod commands;
mod concurrent_upgrades;
mod corpus;
mod cors;
mod environments;
mod errors;
mod every_change;
mod fleet;
mod forward;
mod forwarded_fields;
mod fresh;
mod hit;
mod hostile_callers;
mod hostile_framing;
mod hostile_http2;
mod hostile_limits;
mod hostile_load;
mod hostile_upstream;
mod http2_floods;
mod identity;
mod lane;
mod limits;
mod logs;
mod otlp;
mod outage;
mod path;
mod path_readings;
mod process;
mod properties;
mod race;
mod redaction;
mod refusals;
mod redis_faults;
mod scraped;
mod shipped_fleet;
mod smuggling;
mod standin;
mod status;
mod support;
mod targets;
mod tier;
mod tls;
mod trace;
mod trust;
mod under_load;
mod upgrade;
