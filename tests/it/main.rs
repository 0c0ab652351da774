//! What the gateway promises in its contract, stated from outside: the real binary, over real
//! sockets, in front of a stand-in for the API that misbehaves on request. One binary, so that the
//! support is built once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that panics has failed, helpers included"
)]

mod admin;
mod api_response;
mod behind;
mod body_differential;
mod body_framing;
mod both_directions;
mod breaker;
mod cache;
mod change_log;
mod changes;
mod check;
mod cluster;
mod commands;
mod concurrent_upgrades;
mod connection_metrics;
mod corpus;
mod cors;
mod demo;
mod descriptors;
mod differential;
mod disconnect;
mod environments;
mod errors;
mod every_change;
mod fast_path;
mod fast_path_clients;
mod fetch_shares;
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
mod http2_heads;
mod http2_responses;
mod identity;
mod invalidation;
mod limits;
mod logs;
mod one_credential;
mod open_metrics;
mod otlp;
mod outage;
mod path;
mod path_readings;
mod pipelining;
mod process;
mod properties;
mod proxy_protocol;
mod race;
mod redacted_exchange;
mod redacted_types;
mod redaction;
mod redis_failover;
mod redis_faults;
mod refusals;
mod reload;
mod request_limits;
mod response_fields;
mod scraped;
mod secret_files;
mod shipped_cluster;
mod smuggling;
mod sni;
mod standin;
mod status;
mod support;
mod targets;
mod tier;
mod tls;
mod tls_sessions;
mod trace;
mod trust;
mod under_load;
mod upgrade;
mod upstream_addresses;
mod upstream_connections;
mod upstream_errors;
mod upstream_tls;
mod upstream_tunnels;
mod validations;
