//! Properties of every document.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use redact::{Action, Kind, Policy, Reason, redact, redact_by_own_level};
use serde_json::{Map, Value, json};
use telecomx_api::AccessLevel;

use crate::oracle::Oracle;
use crate::policy::{ACTIONS, HIGHER, LOWER, log_policy, lower, policy, rules};
use crate::spelling::{Choices, spell};

const SECRET: &str = "s3cr3t-pl4nted";

const ROOTS: &[&str] = &[
    "integrations",
    "Integrations",
    "INTEGRATIONS",
    "integ\u{200b}rations",
    "inte\u{301}grations",
    "customerIntegrations",
    "customer_integrations",
    "integrations.billing",
    "integrations.token",
];

const SECRET_NAMES: &[&str] = &[
    "password",
    "oldPassword",
    "api_key",
    "Api-Key",
    "toke\u{200d}n",
    "clientSecret",
    "privateKey",
];

const PUBLIC_NAMES: &[&str] = &[
    "enabled",
    "economic",
    "accrual",
    "ms365",
    "tenantId",
    "calendarShowAsMappings",
    "busy",
    "criipto",
    "domain",
];

/// Neither the last name of a public selector nor a name before a final `*`.
const OTHER_NAMES: &[&str] = &[
    "",
    "a",
    "name",
    "billing",
    "username",
    "Enabled",
    "integration",
    "æ",
    "\u{1f511}",
    "\"\\\n",
    "pass",
    "economics",
];

const CHANGE_NAMES: &[&str] =
    &["oldValue", "newValue", "new_display_value", "path", "from", "value"];

const TEXTS: &[&str] = &[
    "",
    "text",
    "***",
    "integrations",
    "a.integrations[0]",
    "customer/integrations",
    "xintegrations",
    "\u{0}\"\\",
    "å😀",
];

fn any_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        2 => select(ROOTS),
        1 => select(SECRET_NAMES),
        4 => select(PUBLIC_NAMES),
        4 => select(OTHER_NAMES),
        2 => select(CHANGE_NAMES),
    ]
}

fn any_document() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i32>().prop_map(|number| json!(number)),
        select(TEXTS).prop_map(|text| json!(text)),
    ];
    scalar.prop_recursive(7, 60, 6, |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::Array),
            3 => vec((any_name(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())),
        ]
    })
}

/// A value with the secret and nothing public.
fn secret_value() -> impl Strategy<Value = Value> {
    Just(json!(SECRET)).prop_recursive(4, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|value| json!([value])),
            inner.clone().prop_map(|value| json!([{}, 1, value])),
            (select(OTHER_NAMES), inner)
                .prop_map(|(name, value)| json!({ "x": {}, (name): value })),
        ]
    })
}

/// Inserts `planted` into the document below the names of `path`; each object is a member of the
/// one before, the first alternately before and behind all other members.
fn plant(document: Value, path: &[&str], planted: Value, in_front: bool) -> Value {
    let value = path.iter().rev().fold(planted, |value, name| json!({ (*name): value }));
    let Value::Object(value) = value else { return value };
    let mut members = Map::new();
    if in_front {
        members.extend(value.clone());
    }
    members.insert("document".into(), document);
    if !in_front {
        members.extend(value);
    }
    Value::Object(members)
}

/// Whether `part` is `whole` with parts removed, nothing changed and in the same order.
fn is_part(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            let mut rest = whole.iter();
            part.iter().all(|(name, value)| {
                rest.any(|(other, whole)| other == name && is_part(value, whole))
            })
        }
        (Value::Array(part), Value::Array(whole)) => {
            let mut rest = whole.iter();
            part.iter().all(|value| rest.any(|whole| is_part(value, whole)))
        }
        _ => part == whole,
    }
}

/// Whether `shown` is `whole` with some values replaced.
fn is_covered(shown: &Value, whole: &Value) -> bool {
    match (shown, whole) {
        (Value::Null, _) => true,
        (Value::String(stars), Value::String(_)) if stars == "***" => true,
        (Value::Object(shown), Value::Object(whole)) => {
            shown.len() == whole.len()
                && shown
                    .iter()
                    .zip(whole)
                    .all(|(shown, whole)| shown.0 == whole.0 && is_covered(shown.1, whole.1))
        }
        (Value::Array(shown), Value::Array(whole)) => {
            shown.len() == whole.len()
                && shown.iter().zip(whole).all(|(shown, whole)| is_covered(shown, whole))
        }
        _ => shown == whole,
    }
}

fn both(action: Action) -> [(Policy, bool); 2] {
    [(policy(action), false), (log_policy(action), true)]
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_naive_reading_of_the_rules_does(document in any_document(), seed in any::<u64>()) {
        for action in ACTIONS {
            for (policy, changes) in both(action) {
                let mut rules = rules(action);
                if changes {
                    rules.secret_names.clear();
                }
                let expected = Oracle { rules: &rules, changes }.redact(&document).to_string();
                let plain = document.to_string();
                prop_assert_eq!(&lower(&policy, &plain).unwrap(), &expected, "{:?} {} {}", action, changes, plain);
                let spelled = spell(&document, &mut Choices::new(seed));
                let out = lower(&policy, &spelled).unwrap();
                prop_assert_eq!(parse(&out).to_string(), expected, "{:?} {} {}", action, changes, spelled);
            }
        }
    }

    #[test]
    fn redacting_twice_changes_nothing_more(document in any_document(), seed in any::<u64>()) {
        let document = spell(&document, &mut Choices::new(seed));
        for action in ACTIONS {
            for (policy, _) in both(action) {
                let once = lower(&policy, &document).unwrap();
                prop_assert_eq!(&lower(&policy, &once).unwrap(), &once);
            }
        }
    }

    #[test]
    fn nothing_is_added_or_moved(document in any_document(), seed in any::<u64>()) {
        let spelled = spell(&document, &mut Choices::new(seed));
        for (policy, _) in both(Action::Remove) {
            let out = parse(&lower(&policy, &spelled).unwrap());
            // A document that is one removed string becomes null.
            prop_assert!(is_part(&out, &document) || (out.is_null() && document.is_string()));
        }
        for (policy, _) in both(Action::Null).into_iter().chain(both(Action::Mask)) {
            prop_assert!(is_covered(&parse(&lower(&policy, &spelled).unwrap()), &document));
        }
    }

    #[test]
    fn no_planted_secret_reaches_a_lower_role(
        document in any_document(),
        above in vec(prop_oneof![select(OTHER_NAMES), select(PUBLIC_NAMES)], 0..4),
        (door, below) in prop_oneof![
            (select(ROOTS), vec(select(OTHER_NAMES), 0..4)),
            (select(SECRET_NAMES), vec(any_name(), 0..4)),
        ],
        planted in secret_value(),
        in_front in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let path: Vec<&str> = above.into_iter().chain([door]).chain(below).collect();
        let planted = plant(document, &path, planted, in_front);
        prop_assert!(planted.to_string().contains(SECRET));
        let spelled = spell(&planted, &mut Choices::new(seed));
        for action in ACTIONS {
            for level in LOWER {
                let out = redact(&policy(action), level, Bytes::from(spelled.clone())).unwrap();
                let out = String::from_utf8(out.into_bytes().to_vec()).unwrap();
                prop_assert!(!out.contains(SECRET) && !parse(&out).to_string().contains(SECRET), "{}", out);
            }
            let by_answer = redact_by_own_level(&policy(action), Bytes::from(spelled.clone())).unwrap();
            prop_assert!(!parse(std::str::from_utf8(by_answer.bytes()).unwrap()).to_string().contains(SECRET));
        }
    }

    #[test]
    fn no_planted_change_reaches_a_lower_role(
        document in any_document(),
        above in vec(select(OTHER_NAMES), 0..3),
        mention in select(&[r#""integrations.x""#, r#"["Integrations","x"]"#, r#"[[["customer-integrations"]]]"#][..]),
        change in select(&["oldValue", "newvalue", "old_display_value", "NEW DISPLAY VALUE"][..]),
        planted in secret_value(),
        mention_first in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mention = parse(mention);
        let entry = if mention_first {
            json!({ "path": mention, (change): planted })
        } else {
            json!({ (change): planted, "path": mention })
        };
        let path: Vec<&str> = above.into_iter().chain(["entry"]).collect();
        let spelled = spell(&plant(document, &path, entry, mention_first), &mut Choices::new(seed));
        for action in ACTIONS {
            let out = lower(&log_policy(action), &spelled).unwrap();
            prop_assert!(!parse(&out).to_string().contains(SECRET), "{}", out);
        }
    }

    #[test]
    fn higher_roles_get_every_byte(document in vec(any::<u8>(), 0..200)) {
        for level in HIGHER {
            let out = redact(&policy(Action::Remove), level, Bytes::from(document.clone())).unwrap();
            prop_assert_eq!(out.bytes(), &document);
        }
    }

    #[test]
    fn what_is_accepted_is_what_others_accept(
        document in any_document(),
        seed in any::<u64>(),
        edits in vec((any::<prop::sample::Index>(), select(&b"{}[]\",:\\u0123456789eE.+-dDcC8 \n\t\0tfn\xff\xc3\xa9"[..]), 0..3u8), 0..4),
    ) {
        let mut text = spell(&document, &mut Choices::new(seed)).into_bytes();
        for (index, byte, edit) in edits {
            let at = index.index(text.len());
            match edit {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
            if text.is_empty() {
                text.push(byte);
            }
        }
        let elsewhere = serde_json::from_slice::<Value>(&text);
        match lower(&policy(Action::Remove), &text) {
            Ok(out) => {
                prop_assert!(elsewhere.is_ok(), "{}", text.escape_ascii());
                parse(&out);
            }
            Err(refusal) if matches!(refusal.reason, Reason::DuplicateName | Reason::TooDeep) => {}
            Err(refusal) => prop_assert!(elsewhere.is_err(), "{}: {}", text.escape_ascii(), refusal),
        }
        let kind = redact(&policy(Action::Remove), AccessLevel::Admin, Bytes::from(text.clone())).unwrap().kind();
        let below = redact(&policy(Action::Remove), AccessLevel::Owner, Bytes::from(text));
        prop_assert_eq!(kind, below.map_or(Kind::NotJson, |below| below.kind()));
    }
}
