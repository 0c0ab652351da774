//! Documents made to cost much: judged in bounded time and memory. The bounds on time are wide, for builds without
//! optimisation; what is quadratic or exponential is far beyond them.

use std::fmt::Write;
use std::time::{Duration, Instant};

use telecomx_gateway::redact::{Action, MAX_DEPTH, Reason};

use crate::policy::{log_policy, lower, policy, removed};

const SOON: Duration = Duration::from_secs(60);

/// The reason for which the document is refused, by both kinds of policy.
#[track_caller]
fn refusal(document: &str) -> Reason {
    let began = Instant::now();
    let reason = lower(&policy(Action::Remove), document).unwrap_err().reason;
    assert_eq!(lower(&log_policy(Action::Remove), document).unwrap_err().reason, reason);
    assert!(began.elapsed() < SOON, "took {:?}", began.elapsed());
    reason
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| ["[".repeat(depth), "1".into(), "]".repeat(depth)].concat();
    assert_eq!(removed(&nested(MAX_DEPTH)), nested(MAX_DEPTH));
    assert_eq!(refusal(&nested(MAX_DEPTH + 1)), Reason::TooDeep);
    assert_eq!(refusal(&nested(128)), Reason::TooDeep);
    assert_eq!(refusal(&"[".repeat(100_000)), Reason::TooDeep);
    assert_eq!(refusal(&r#"{"a":"#.repeat(100_000)), Reason::TooDeep);
    // Under a root, and in what is removed.
    assert_eq!(refusal(&format!(r#"{{"integrations":{}}}"#, nested(MAX_DEPTH))), Reason::TooDeep);
    assert_eq!(refusal(&format!(r#"{{"password":{}}}"#, nested(MAX_DEPTH))), Reason::TooDeep);
    // Containers beside one another are not nested.
    let beside = format!("[{}{{}}]", "[],{},".repeat(1000));
    assert_eq!(removed(&beside), beside);
    assert_eq!(removed(&format!("[{beside}]")), format!("[{beside}]"));
}

#[test]
fn a_million_members_are_compared_soon() {
    let mut document = String::from("{");
    for number in 0..1_000_000 {
        write!(document, "\"k{number}\":{number},").unwrap();
    }
    let began = Instant::now();
    assert!(removed(&format!("{document}\"integrations\":1}}")).ends_with("\"k999999\":999999}"));
    assert!(began.elapsed() < SOON, "took {:?}", began.elapsed());
    assert_eq!(refusal(&format!("{document}\"\\u006b500000\":1}}")), Reason::DuplicateName);
    assert_eq!(refusal(&format!("{{\"integrations\":{document}\"k7\":1}}}}")), Reason::DuplicateName);
}

#[test]
fn long_strings_cost_their_length() {
    let megabytes = 1_000_000;
    for (piece, length) in [
        ("x", 10 * megabytes),
        ("\\u0061", 10 * megabytes),
        ("\u{e9}", megabytes),
        ("\u{300}", megabytes),
        ("\u{fdfa}", megabytes), // eighteen characters when decomposed
        ("integrations.", megabytes),
        ("password", megabytes),
    ] {
        let long = piece.repeat(length / piece.len());
        let began = Instant::now();
        let beside = format!("{{\"a\":\"{long}\",\"integrations\":\"{long}\"}}");
        assert_eq!(removed(&beside).len(), long.len() + 8);
        // As a name too, which may mean a secret or a root.
        assert!(removed(&format!("{{\"{long}\":1}}")).len() <= long.len() + 6);
        assert!(began.elapsed() < SOON, "{piece} took {:?}", began.elapsed());
    }
    let unescaped = format!("[\"{}\"]", "integrations ".repeat(100_000));
    assert_eq!(lower(&log_policy(Action::Remove), &unescaped).unwrap(), unescaped);
}

#[test]
fn output_is_at_most_three_times_as_long() {
    for (action, element) in [(Action::Null, "1,"), (Action::Mask, "\"\","), (Action::Mask, "1,")] {
        let document = format!("{{\"integrations\":[{}1]}}", element.repeat(100_000));
        let out = lower(&policy(action), &document).unwrap();
        assert!(out.len() > document.len() && out.len() < 3 * document.len());
    }
}

#[test]
fn changes_in_changes_are_not_read_again_at_every_level() {
    let levels = MAX_DEPTH - 1;
    let document = [r#"{"path":"integrations","oldValue":"#.repeat(levels), "1".into(), "}".repeat(levels)].concat();
    assert_eq!(lower(&log_policy(Action::Remove), &document).unwrap(), r#"{"path":"integrations"}"#);
}
