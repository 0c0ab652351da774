//! A reload: what it applies, what it reports, and what it logs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::*;

/// The preface of HTTP/2 with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// The time until the gateway closes an idle connection that sent these bytes.
fn idle_time(gateway: &Gateway, sent: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(gateway.public_address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let begun = Instant::now();
    stream.write_all(sent).expect("an open connection");
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).is_ok_and(|length| length > 0) {}
    begun.elapsed()
}

fn reload_with(gateway: &Gateway, old: &str, new: &str) -> serde_json::Value {
    let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    assert!(config.contains(old), "{config}");
    gateway.rewrite("gateway.toml", &config.replace(old, new));
    let reload = gateway.admin().post("/reload").send();
    assert_eq!(reload.status, 200, "{reload:?}");
    reload.json()
}

/// The log lines with this message, as JSON.
fn lines(gateway: &Gateway, message: &str) -> Vec<serde_json::Value> {
    let log = gateway.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

#[test]
fn keepalive_timeout_applies_to_both_protocols() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "server.keepalive_timeout = \"1s\"");
    let request = b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n";
    for sent in [PREFACE, request] {
        let time = idle_time(&gateway, sent);
        assert!(time >= Duration::from_millis(900), "{time:?}");
        assert!(time < Duration::from_millis(3500), "{time:?}");
    }
    let reload = reload_with(&gateway, "\"1s\"", "\"4s\"");
    assert_eq!(reload["restart_needed_for"], serde_json::json!([]));
    for sent in [PREFACE, request] {
        let time = idle_time(&gateway, sent);
        assert!(time >= Duration::from_millis(3900), "{time:?}");
    }
}

#[test]
fn warnings_are_logged_at_the_start_and_at_a_reload() {
    let origin = Origin::start();
    let gateway =
        Gateway::with(&origin, "server.trusted_proxies = [\"0.0.0.0/0\"]\ncache.ttl = \"7s\"");
    let warnings = || {
        let lines = lines(&gateway, "dangerous setting");
        lines
            .iter()
            .filter(|line| line["key"] == "server.trusted_proxies" && line["level"] == "WARN")
            .count()
    };
    wait_until("the start warns", || warnings() == 1);
    reload_with(&gateway, "\"7s\"", "\"8s\"");
    wait_until("the reload warns", || warnings() == 2);
}

#[test]
fn reload_logs_the_changed_keys() {
    let origin = Origin::start();
    let gateway =
        Gateway::with(&origin, "cache.ttl = \"7s\"\nserver.threads = 2\nlog.level = \"error\"");
    reload_with(&gateway, "\"7s\"", "\"8s\"");
    gateway.wait_for_log("applied the configuration");
    let line =
        lines(&gateway, "applied the configuration").pop().expect("an audit line at any log level");
    assert_eq!(line["changed"], "cache.ttl");
    assert_eq!(line["restart_needed_for"], "");
    let reload = reload_with(&gateway, "threads = 2", "threads = 3");
    assert_eq!(reload["restart_needed_for"], serde_json::json!(["server.threads"]));
    wait_until("the second reload is logged", || {
        lines(&gateway, "applied the configuration").len() == 2
    });
    let line = lines(&gateway, "applied the configuration").pop().expect("a line");
    assert_eq!(line["restart_needed_for"], "server.threads");
}
