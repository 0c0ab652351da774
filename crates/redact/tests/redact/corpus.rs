//! JSONTestSuite: what must parse, what must not, and what may either way.

use std::fs;
use std::path::Path;

use redact::{Action, Reason};

use crate::policy::{lower, policy};

/// Returns the documents of one folder of the suite by name.
fn documents(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/json-test-suite").join(folder);
    let documents: Vec<_> = fs::read_dir(&folder)
        .expect("a folder of JSONTestSuite")
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    assert!(documents.len() > 20, "the suite is incomplete");
    documents
}

#[test]
fn suite_is_accepted_and_refused_as_specified() {
    for (name, document) in documents("test_parsing") {
        let judged = lower(&policy(Action::Remove), &document);
        match (&name[..2], judged) {
            ("y_", Ok(out)) => {
                assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{name}")
            }
            ("y_", Err(refusal)) => {
                assert_eq!(refusal.reason, Reason::DuplicateName, "{name}");
                assert!(name.starts_with("y_object_duplicated_key"), "{name}");
            }
            ("n_", judged) => assert!(judged.is_err(), "{name} passed"),
            (_, judged) => assert_eq!(judged.is_ok(), accepted_elsewhere(&document), "{name}"),
        }
    }
}

#[test]
fn ambiguous_documents_are_refused_or_pass_unchanged() {
    for (name, document) in documents("test_transform") {
        match lower(&policy(Action::Remove), &document) {
            Ok(out) => assert_eq!(out.as_bytes(), document.trim_ascii(), "{name}"),
            Err(refusal) => assert!(
                matches!(
                    refusal.reason,
                    Reason::DuplicateName | Reason::LoneSurrogate | Reason::BadUtf8
                ),
                "{name}: {refusal}"
            ),
        }
    }
}

#[test]
fn no_document_of_the_suite_leaks_a_secret() {
    const SECRET: &str = "pl4nted";
    for (name, document) in documents("test_parsing").into_iter().chain(documents("test_transform"))
    {
        for (before, after) in [
            ("{\"integrations\":{\"k\":\"pl4nted\"},\"x\":", "}"),
            ("{\"x\":", ",\"integrations\":{\"k\":\"pl4nted\"}}"),
            ("{\"integrations\":{\"x\":", ",\"k\":[\"pl4nted\"]}}"),
            ("{\"password\":[\"pl4nted\",", "]}"),
            ("[", ",{\"customerIntegrations\":\"pl4nted\"}]"),
            ("", "{\"password\":\"pl4nted\"}"),
        ] {
            let planted = [before.as_bytes(), &document, after.as_bytes()].concat();
            if let Ok(out) = lower(&policy(Action::Remove), &planted) {
                assert!(!out.contains(SECRET), "{name}: {out}");
            }
        }
    }
}

/// Whether a widely used parser accepts the document under our rules: no duplicate name, no deep
/// nesting.
fn accepted_elsewhere(document: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(document).is_ok()
}
