//! Any bytes, as the API might send them, redacted for a VIEWER. The reference is serde_json and a
//! walk over its values, neither of which the redactor uses: what a client reads counts.
//!
//! What must hold: no panic; the output is JSON; under a root only `enabled` has a value; no name
//! contains `password`; redacting again changes nothing; a RESELLER receives the input.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use redact::{Action, Policy, Rules, redact};
use serde_json::Value;
use telecomx_api::AccessLevel;

const ACTIONS: [Action; 3] = [Action::Remove, Action::Null, Action::Mask];

static POLICIES: LazyLock<Vec<Policy>> = LazyLock::new(|| {
    let policy = |action| {
        let rules = Rules {
            reveal_to: AccessLevel::Reseller,
            roots: vec!["integrations".to_owned(), "customerIntegrations".to_owned()],
            public: vec!["**.enabled".to_owned()],
            secret_names: vec!["*password*".to_owned()],
            action,
        };
        Policy::compile(&rules).expect("the rules are right")
    };
    ACTIONS.into_iter().map(policy).collect()
});

fuzz_target!(|document: &[u8]| {
    // The length selects the action, so that a document of a corpus is used unchanged.
    let policy = &POLICIES[document.len() % ACTIONS.len()];
    let whole = redact(policy, AccessLevel::Reseller, document.to_vec().into())
        .expect("a RESELLER is not refused");
    assert_eq!(whole.bytes().as_ref(), document);

    let Ok(once) = redact(policy, AccessLevel::Viewer, document.to_vec().into()) else { return };
    let once = once.into_bytes();
    let read: Value = serde_json::from_slice(&once).expect("what is let through is JSON");
    inspect(&read, None, Place::Outside);
    let twice = redact(policy, AccessLevel::Viewer, once.clone())
        .expect("what is let through is let through again");
    assert_eq!(twice.into_bytes(), once);
});

/// The place of a value. The redactor recognises more spellings of a root than this:
/// `integrati[ons` is one.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Place {
    Outside,
    /// Under a name that may be another spelling of a root: one of the two rules must hold.
    Perhaps,
    Under,
}

/// Panics on a value that a VIEWER must not see. `name` is the nearest member's around `value`,
/// arrays being transparent.
fn inspect(value: &Value, name: Option<&str>, place: Place) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let lower = name.to_ascii_lowercase();
                if place != Place::Under && lower.contains("password") && !is_hidden(value) {
                    assert!(place == Place::Perhaps, "{name} outside a root");
                    inspect(value, Some(name), Place::Under);
                }
                let inside = match lower.as_str() {
                    "integrations" | "customerintegrations" => Place::Under,
                    _ if may_be_root(&lower) => Place::Perhaps,
                    _ => Place::Outside,
                };
                inspect(value, Some(name), if inside > place { inside } else { place });
            }
        }
        Value::Array(values) => values.iter().for_each(|value| inspect(value, name, place)),
        _ if place == Place::Under && !is_hidden(value) => {
            assert_eq!(name, Some("enabled"), "under a root")
        }
        _ => {}
    }
}

/// Whether it has the letters of a root in their order, or letters that may fold to them.
fn may_be_root(lower: &str) -> bool {
    let mut letters = lower.chars();
    !lower.is_ascii() || "integrations".chars().all(|letter| letters.any(|other| other == letter))
}

/// The replacement of a secret, if there is one.
fn is_hidden(value: &Value) -> bool {
    value.is_null() || value == "***"
}
