//! Expensive documents: bounded time and memory. The time bounds are wide, for builds without
//! optimization; quadratic or exponential cost is far beyond them.

#![expect(clippy::disallowed_methods, reason = "the tests measure time")]

use std::fmt::Write;
use std::time::{Duration, Instant};

use redact::{Action, MAX_DEPTH, MAX_NESTING, Reason};

use crate::policy::{log_policy, lower, policy, removed};

const SOON: Duration = Duration::from_secs(60);

/// Returns the reason for which both kinds of policy refuse the document.
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
    assert_eq!(refusal(&nested(MAX_NESTING + 1)), Reason::TooDeep);
    assert_eq!(refusal(&nested(128)), Reason::TooDeep);
    assert_eq!(refusal(&"[".repeat(100_000)), Reason::TooDeep);
    assert_eq!(refusal(&r#"{"a":"#.repeat(100_000)), Reason::TooDeep);
    // Under a root, and in what is removed.
    assert_eq!(refusal(&format!(r#"{{"integrations":{}}}"#, nested(MAX_NESTING))), Reason::TooDeep);
    assert_eq!(refusal(&format!(r#"{{"password":{}}}"#, nested(MAX_NESTING))), Reason::TooDeep);
    // Containers next to one another are not nested.
    let siblings = format!("[{}{{}}]", "[],{},".repeat(1000));
    assert_eq!(removed(&siblings), siblings);
    assert_eq!(removed(&format!("[{siblings}]")), format!("[{siblings}]"));
}

#[test]
fn value_that_is_too_deep_is_removed_and_the_rest_stays() {
    let nested =
        |depth: usize| [r#"{"a":["#.repeat(depth / 2), "1".into(), "]}".repeat(depth / 2)].concat();
    for depth in [MAX_DEPTH, MAX_DEPTH + 2, MAX_NESTING - 3] {
        let document =
            format!(r#"[{{"id":1,"x":{}}},{{"id":2,"y":[[]],"password":"s"}}]"#, nested(depth));
        assert_eq!(removed(&document), r#"[{"id":1},{"id":2,"y":[[]]}]"#);
        let out = lower(&policy(Action::Null), &document).unwrap();
        assert!(
            out.contains("null") && out.ends_with(r#"{"id":2,"y":[[]],"password":null}]"#),
            "{out}"
        );
        assert_eq!(
            lower(&log_policy(Action::Remove), &document).unwrap().len(),
            document.len() - nested(depth).len() - 5
        );
    }
    // Removed values must be well-formed too.
    for wrong in ["1,", "1}", "\"a", "{\"a\":1,\"a\":2}", "tru"] {
        let document = nested(MAX_DEPTH + 2).replace('1', wrong);
        assert!(lower(&policy(Action::Remove), &document).is_err(), "{wrong}");
    }
}

#[test]
fn million_members_are_compared_in_bounded_time() {
    let mut document = String::from("{");
    for number in 0..1_000_000 {
        write!(document, "\"k{number}\":{number},").unwrap();
    }
    let began = Instant::now();
    assert!(removed(&format!("{document}\"integrations\":1}}")).ends_with("\"k999999\":999999}"));
    assert!(began.elapsed() < SOON, "took {:?}", began.elapsed());
    assert_eq!(refusal(&format!("{document}\"\\u006b500000\":1}}")), Reason::DuplicateName);
    assert_eq!(
        refusal(&format!("{{\"integrations\":{document}\"k7\":1}}}}")),
        Reason::DuplicateName
    );
}

#[test]
fn long_strings_take_time_linear_in_length() {
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
        let siblings = format!("{{\"a\":\"{long}\",\"integrations\":\"{long}\"}}");
        assert_eq!(removed(&siblings).len(), long.len() + 8);
        // As a name too, which may be a secret or a root.
        assert!(removed(&format!("{{\"{long}\":1}}")).len() <= long.len() + 6);
        assert!(began.elapsed() < SOON, "{piece} took {:?}", began.elapsed());
    }
    let unescaped = format!("[\"{}\"]", "integrations ".repeat(100_000));
    assert_eq!(lower(&log_policy(Action::Remove), &unescaped).unwrap(), "[]");
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
fn nested_changes_are_not_read_again_at_every_level() {
    let levels = MAX_DEPTH - 1;
    let document = [
        r#"{"id":1,"path":"integrations","oldValue":"#.repeat(levels),
        "1".into(),
        "}".repeat(levels),
    ]
    .concat();
    assert_eq!(lower(&log_policy(Action::Remove), &document).unwrap(), r#"{"id":1}"#);
}

/// Returns the shortest of several runs, to reduce the effect of other load.
fn shortest(mut run: impl FnMut()) -> Duration {
    let time = |()| {
        let began = Instant::now();
        run();
        began.elapsed()
    };
    [(); 7].map(time).into_iter().min().expect("some runs")
}

#[test]
fn every_character_costs_about_as_much_as_ascii() {
    const BYTES: usize = 60_000;
    // Without optimization a call costs more than the work in it, and other characters take more
    // calls.
    let most = if cfg!(debug_assertions) { 20 } else { 4 };
    let text = |character: char| character.to_string().repeat(BYTES / character.len_utf8());
    let time = |text: &str| {
        let name = format!(r#"{{"{text}":1}}"#);
        let string = format!(r#"{{"id":"{text}"}}"#);
        let (policy, log) = (policy(Action::Remove), log_policy(Action::Remove));
        shortest(|| {
            assert!(lower(&policy, &name).is_ok());
            assert!(lower(&log, &string).is_ok());
        })
    };
    let ascii =
        ['x', 'i', '7'].map(|character| time(&text(character))).into_iter().max().expect("three");
    // One character of each page of 256, and those with the longest decompositions.
    let pages = (1..=0x10FF)
        .filter_map(|page| char::from_u32(page << 8 | 0x5A))
        .filter(|c| (*c as u32).is_multiple_of(7));
    for character in pages.chain([
        '\u{FDFA}',
        '㎯',
        '\u{1D160}',
        'ﬃ',
        '\u{33FF}',
        '\u{AC01}',
        '\u{345}',
        '⒇',
        '한',
        '½',
    ]) {
        let time = time(&text(character));
        assert!(time <= most * ascii, "U+{:04X}: {time:?}, ASCII {ascii:?}", character as u32);
    }
}
