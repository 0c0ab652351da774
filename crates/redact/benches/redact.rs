//! Throughput of the redaction on one core: `cargo bench -p redact`.
//!
//! Prints megabytes of document per second of CPU time: median and best of several rounds. The
//! target is 300 MB/s for the golden document repeated to a mebibyte.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use nix::time::{ClockId, clock_gettime};
use redact::{Action, Policy, redact};
use telecomx_api::AccessLevel;

#[allow(dead_code, clippy::panic, reason = "the tests use the rest")]
#[path = "../tests/redact/policy.rs"]
mod policies;

const GOLDEN: &str = include_str!("../../../tests/golden/upstream.json");
const MEBIBYTE: usize = 1 << 20;
const ROUNDS: usize = 20;
const ROUND: Duration = Duration::from_millis(100);

fn main() {
    // Without `--bench` this runs as a test, which checks that it works, not how fast.
    let rounds = if std::env::args().any(|word| word == "--bench") { ROUNDS } else { 1 };
    let policy = policies::policy(Action::Remove);
    let log = policies::log_policy(Action::Remove);
    let one = GOLDEN.trim_end().to_owned();
    let many = repeated(&one);
    let outside = repeated(&one.replace("integrations", "connections"));
    let text = repeated(&format!("{{\"name\":\"{}\"}}", "Anders And & Co, ".repeat(1000)));
    for (what, policy, level, document) in [
        ("golden, 1 KB", &policy, AccessLevel::Owner, &one),
        ("golden, 1 MiB", &policy, AccessLevel::Owner, &many),
        ("golden, 1 MiB, revealed", &policy, AccessLevel::Admin, &many),
        ("golden, 1 MiB, as a log", &log, AccessLevel::Owner, &many),
        ("nothing under a root, 1 MiB", &policy, AccessLevel::Owner, &outside),
        ("long strings, 1 MiB", &policy, AccessLevel::Owner, &text),
    ] {
        let (median, best) = speed(policy, level, document, rounds);
        println!("{what:30} {median:7.0} MB/s, {best:7.0} at best");
    }
}

/// Repeats the document in an array of a mebibyte.
fn repeated(document: &str) -> String {
    format!("[{}]", vec![document; MEBIBYTE / document.len()].join(","))
}

/// CPU time of this thread, so that other load does not count.
fn spent() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of every Linux"))
}

/// Returns median and best of the rounds.
fn speed(policy: &Policy, level: AccessLevel, document: &str, rounds: usize) -> (f64, f64) {
    let document = Bytes::copy_from_slice(document.as_bytes());
    let mut speeds: Vec<_> = (0..rounds).map(|_| round(policy, level, &document)).collect();
    speeds.sort_by(f64::total_cmp);
    (speeds[rounds / 2], speeds[rounds - 1])
}

fn round(policy: &Policy, level: AccessLevel, document: &Bytes) -> f64 {
    let (began, mut bytes) = (spent(), 0);
    loop {
        black_box(redact(policy, level, black_box(document.clone())).expect("a sound document"));
        bytes += document.len();
        let took = spent() - began;
        if took >= ROUND {
            return bytes as f64 / took.as_secs_f64() / 1e6;
        }
    }
}
