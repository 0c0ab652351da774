//! JSONTestSuite through the running gateway: each document is a response of the API to a caller
//! below `reveal_to`. Documents that must not parse are rejected, those that must parse pass
//! unchanged, and none carries a secret past the redaction or keeps the gateway busy.
//! crates/redact/tests/redact/corpus.rs tests the redaction by itself.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;

/// Longest time of a document: far more than any needs, unless its cost is not linear in its
/// length.
const SLOW: Duration = Duration::from_secs(1);

/// Retries of a document that took longer: a loaded machine is not loaded each time.
const TRIES: usize = 3;

/// Returns the documents of one folder of the suite by name.
fn documents(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/json-test-suite").join(folder);
    let mut documents: Vec<_> = fs::read_dir(&folder)
        .expect("a folder of JSONTestSuite")
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    documents.sort();
    assert!(documents.len() > 20, "the suite is incomplete");
    documents
}

/// A gateway that stores nothing, so that every document is fetched.
struct Scene {
    origin: Origin,
    gateway: Gateway,
    asked: usize,
    refused: usize,
    slowest: (Duration, String),
}

impl Scene {
    fn new() -> Scene {
        let origin = Origin::start();
        origin.knows("tok-viewer", "VIEWER", DUCK);
        let gateway = Gateway::with(&origin, r#"cache.ttl = "0s""#);
        Scene { origin, gateway, asked: 0, refused: 0, slowest: (Duration::ZERO, String::new()) }
    }

    /// Returns what a viewer receives for a document: the JSON of a 200, or `None` for a 502
    /// `redaction_failed`. The client checks framing and secrets.
    fn ask(&mut self, name: &str, document: &[u8]) -> Option<Value> {
        self.origin.document(DUCK, Answer::json(document));
        let mut tried = (0..TRIES).map(|_| {
            let began = Instant::now();
            let response = self.gateway.client().get(&name_of(DUCK)).bearer("tok-viewer").send();
            self.asked += 1;
            (began.elapsed(), response)
        });
        let (took, response) =
            tried.find(|(took, _)| *took < SLOW).unwrap_or_else(|| panic!("{name} takes {SLOW:?}"));
        if took > self.slowest.0 {
            self.slowest = (took, name.to_owned());
        }
        assert_eq!(response.broken_off, None, "{name}");
        if response.status == 200 {
            return Some(response.json());
        }
        response.assert_error(502, "redaction_failed");
        self.refused += 1;
        None
    }

    /// Asserts that every document was fetched, none is stored, and the next valid one passes.
    fn end(&mut self, what: &str) {
        assert_eq!(self.origin.fetches(DUCK), self.asked, "one fetch for each document");
        println!(
            "{what}: {} documents, {} refused; the slowest took {:?} ({})",
            self.asked, self.refused, self.slowest.0, self.slowest.1
        );
        let good = self.ask("the golden document", upstream_document(DUCK).as_bytes()).unwrap();
        assert_eq!(good, serde_json::from_str::<Value>(&redacted_document(DUCK)).unwrap());
    }
}

#[test]
fn corpus_document_is_502_or_unchanged_as_it_must_parse() {
    let documents = documents("test_parsing");
    if documents.is_empty() {
        return;
    }
    let mut scene = Scene::new();
    for (name, document) in documents {
        let answer = scene.ask(&name, &document);
        match &name[..2] {
            "n_" => assert_eq!(answer, None, "{name} passed"),
            // RFC 8259 section 4 leaves open which of two members of one name counts.
            "y_" if name.starts_with("y_object_duplicated_key") => {
                assert_eq!(answer, None, "{name} passed")
            }
            "y_" => assert_eq!(answer, serde_json::from_slice(&document).ok(), "{name}"),
            _ => {}
        }
    }
    scene.end("test_parsing");
}

#[test]
fn ambiguous_corpus_document_is_502_or_unchanged() {
    let documents = documents("test_transform");
    if documents.is_empty() {
        return;
    }
    let mut scene = Scene::new();
    for (name, document) in documents {
        if let Some(answer) = scene.ask(&name, &document) {
            assert_eq!(Some(answer), serde_json::from_slice(&document).ok(), "{name}");
        }
    }
    scene.end("test_transform");
}

#[test]
fn no_corpus_document_reveals_a_secret_next_to_it() {
    let documents: Vec<_> =
        ["test_parsing", "test_transform"].into_iter().flat_map(documents).collect();
    if documents.is_empty() {
        return;
    }
    let mut scene = Scene::new();
    for (name, document) in documents {
        let before =
            [br#"{"name":"kept","integrations":{"unheard-of":"#, document.as_slice()].concat();
        let planted = [before.as_slice(), br#","password":"PLANTED"}}"#].concat();
        let answer = scene.ask(&format!("{name}, under a root"), &planted);
        // A document that parses by itself parses as a member.
        let parses = name.starts_with("y_") && !name.starts_with("y_object_duplicated_key");
        assert!(answer.is_some() || !parses, "{name} was refused under a root");
        if let Some(answer) = answer {
            assert_eq!(answer["name"], "kept", "{name}");
            // None of it is public; containers that arrived empty stay.
            assert!(answer.get("integrations").is_none_or(holds_no_scalar), "{name}: {answer}");
        }
    }
    scene.end("under a root");
}

fn holds_no_scalar(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.values().all(holds_no_scalar),
        Value::Array(elements) => elements.iter().all(holds_no_scalar),
        _ => false,
    }
}
