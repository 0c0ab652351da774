//! Any text as the configuration file. The files that it names are not read.
//!
//! What must hold: no panic; an accepted configuration can be explained, its rules and patterns can
//! be used, and the URL of its API is parsed to the same value when it is written again; a problem
//! has a line and column that exist.

#![no_main]

use config::{Config, Location, Problems, explain, parse};
use libfuzzer_sys::fuzz_target;
use redact::Policy;
use telecomx_api::PathPattern;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse("f", text, []) {
        Ok(config) => use_all(&config),
        Err(problems) => inspect(text, &problems),
    }
});

fn use_all(config: &Config) {
    assert!(!explain(config, &[]).is_empty());
    let Ok(policy) = Policy::compile(&config.redaction.rules()) else {
        panic!("its rules cannot be used")
    };
    for rule in &config.forward.redact {
        assert!(policy.for_forward(&rule.secret_names, true).is_ok());
    }
    let rules = config.forward.redact.iter().map(|rule| &rule.path);
    for pattern in config.forward.blocked.iter().chain(rules) {
        let again = PathPattern::parse(&pattern.to_string()).expect("a pattern that was accepted");
        assert_eq!(again, *pattern);
    }
    for url in &config.upstream.urls {
        let scheme = if url.tls { "https" } else { "http" };
        let again = format!("[upstream]\nurl = \"{scheme}://{}\"", url.authority());
        let mut again = parse("f", &again, []).expect("an address that was accepted").upstream.urls;
        // The authority has no trailing dot.
        again.iter_mut().for_each(|again| again.is_absolute = url.is_absolute);
        assert_eq!(again, std::slice::from_ref(url));
    }
}

fn inspect(text: &str, problems: &Problems) {
    assert!(problems.iter().len() > 0);
    let lines: Vec<&str> = text.split('\n').collect();
    for problem in problems.iter() {
        assert!(!problem.cause.is_empty() && problem.to_string().starts_with('f'));
        match &problem.location {
            Location::File { file } => assert_eq!(file, "f"),
            Location::Line { file, line, column } => {
                assert_eq!(file, "f");
                let characters =
                    lines[line.checked_sub(1).expect("lines count from 1")].chars().count();
                assert!(
                    (1..=characters + 1).contains(column),
                    "line {line} has no column {column}"
                );
            }
            Location::Variable { name } => panic!("there is no variable {name}"),
        }
    }
}
