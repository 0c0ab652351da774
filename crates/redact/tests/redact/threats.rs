//! One test for each attack: the document is redacted or refused, and the secret never passes.

use redact::{Action, Reason};

use crate::policy::{ACTIONS, lower, policy, removed};

/// A secret that must not reach a lower level.
const SECRET: &str = "s3cr3t";

/// Checks that the document passes or is refused with every action, and that the secret does not
/// pass.
#[track_caller]
fn holds_back(document: &str) {
    assert!(document.contains(SECRET), "nothing to hold back in {document}");
    for action in ACTIONS {
        if let Ok(out) = lower(&policy(action), document) {
            assert!(!out.contains(SECRET), "{action:?}: {document} became {out}");
        }
    }
}

#[track_caller]
fn refused(document: impl AsRef<[u8]>, reason: Reason) {
    for action in ACTIONS {
        let judged = lower(&policy(action), document.as_ref());
        assert_eq!(
            judged.map_err(|refusal| refusal.reason),
            Err(reason),
            "{}",
            document.as_ref().escape_ascii()
        );
    }
}

#[test]
fn duplicate_names() {
    for document in [
        r#"{"integrations":{},"integrations":{"k":"s3cr3t"}}"#,
        r#"{"integrations":{"k":"s3cr3t"},"integrations":{}}"#,
        r#"{"integrations":{"enabled":1,"enabled":"s3cr3t"}}"#,
        r#"{"a":"s3cr3t","\u0061":1}"#,
        r#"{"password":{"x":{"a":1,"a":1}}}"#,
        r#"[{"\"":1,"\u0022":2}]"#,
        r#"{"é":1,"\u00e9":2}"#,
        r#"{"😀":1,"\ud83d\uDE00":2}"#,
    ] {
        refused(document, Reason::DuplicateName);
    }
    // Different names are two names, however similar they look.
    assert_eq!(removed(r#"{"a":1,"A":2,"é":3,"e\u0301":4}"#), r#"{"a":1,"A":2,"é":3,"e\u0301":4}"#);
}

#[test]
fn names_in_other_spellings() {
    let root = [
        r"int\u0065grations",
        r"\u0069\u006e\u0074\u0065\u0067\u0072\u0061\u0074\u0069\u006F\u006e\u0073",
        "Integrations",
        "INTEGRATIONS",
        "integ\u{200b}rations",
        r"integ\u200Brations",
        "integrations\u{feff}",
        "i\u{308}ntegrations",
        "int\u{e9}grations",
        "ｉｎｔｅｇｒａｔｉｏｎｓ",
        "𝐢𝐧𝐭𝐞𝐠𝐫𝐚𝐭𝐢𝐨𝐧𝐬",
        r"integ\u00adrations",
        r"integrations\u0000",
        " integrations ",
        "integ-rations",
        "customer_Integrations",
        "integrations.billing.uniconta",
        r"integrations\/billing",
    ];
    for name in root {
        holds_back(&format!(r#"{{"a":[{{"{name}":{{"username":"s3cr3t"}}}}]}}"#));
    }
    for name in [
        "pass\u{200b}word",
        "PassWord",
        r"p\u0061ssword",
        "pa\u{301}ssword",
        "pass_word",
        "oldPassword2",
        "ｐassword",
    ] {
        holds_back(&format!(r#"{{"a":[{{"{name}":{{"enabled":"s3cr3t"}}}}]}}"#));
    }
    // A public name in another spelling is a different name.
    for name in ["Enabled", "enabled\u{200b}", " enabled", "e\u{301}nabled", "enablе\u{64}"] {
        holds_back(&format!(r#"{{"integrations":{{"x":{{"{name}":"s3cr3t"}}}}}}"#));
    }
}

#[test]
fn secrets_that_are_not_strings() {
    for value in [
        r#"["s3cr3t"]"#,
        r#"[[["s3cr3t"]],1]"#,
        r#"{"k":"s3cr3t"}"#,
        r#"{"k":[{"l":{"m":"s3cr3t"}}]}"#,
        r#"[{"enabled":{"k":"s3cr3t"}}]"#,
        r#""{\"enabled\":\"s3cr3t\"}""#,
    ] {
        for name in ["integrations", "customerIntegrations"] {
            holds_back(&format!(r#"{{"{name}":{value}}}"#));
            holds_back(&format!(r#"{{"x":[{{"{name}":{{"billing":{value}}}}}]}}"#));
        }
        holds_back(&format!(r#"{{"clientSecret":{value}}}"#));
    }
    let number = r#"{"integrations":{"pin":8086,"enabled":1},"token":8086}"#;
    for action in ACTIONS {
        assert!(!lower(&policy(action), number).unwrap().contains("8086"));
    }
}

#[test]
fn secrets_in_error_bodies() {
    holds_back(
        r#"{"error":{"message":"m","code":"c","status":500,"path":{"integrations":{"k":"s3cr3t"}}}}"#,
    );
    holds_back(r#"{"error":{"check":[{"agreementGrantToken":"s3cr3t"}]}}"#);
}

#[test]
fn other_encodings() {
    refused(b"\xEF\xBB\xBF{}", Reason::ByteOrderMark);
    let utf16 = |order: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
        mark.encode_utf16().chain("{\"a\":1}".encode_utf16()).flat_map(order).collect()
    };
    refused(utf16(u16::to_le_bytes, "\u{feff}"), Reason::ByteOrderMark);
    refused(utf16(u16::to_be_bytes, "\u{feff}"), Reason::ByteOrderMark);
    refused(utf16(u16::to_le_bytes, ""), Reason::NotJson);
    refused(utf16(u16::to_be_bytes, ""), Reason::NotJson);
    for bad in
        [&b"\xFF"[..], b"\xC0\xAF", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"\xE2\x82", b"\x80"]
    {
        refused([b"{\"a\":\"", bad, b"\"}"].concat(), Reason::BadUtf8);
        refused([b"{\"integrations\":\"", bad, b"\"}"].concat(), Reason::BadUtf8);
    }
}

#[test]
fn halves_of_surrogate_pairs() {
    for text in [
        r"\uD800",
        r"\uDC00",
        r"\uD800\uD800",
        r"\uD800x",
        r"\uD800\n",
        r"\uDC00\uD800",
        r"\ud83d\u0041",
    ] {
        refused(format!(r#"{{"a":"{text}"}}"#), Reason::LoneSurrogate);
        refused(format!(r#"{{"{text}":1}}"#), Reason::LoneSurrogate);
        refused(format!(r#"{{"integrations":{{"k":"{text}"}}}}"#), Reason::LoneSurrogate);
    }
    assert_eq!(removed(r#"["\ud83d\ude00"]"#), r#"["\ud83d\ude00"]"#);
}

#[test]
fn more_than_one_document() {
    for after in ["{}", "[", "1", "x", ",", "}", "//", "\0", "\u{a0}"] {
        refused(format!("{{}} {after}"), Reason::TrailingData);
    }
}

#[test]
fn documents_that_only_lenient_parsers_read() {
    for document in [
        "// c\n{}",
        "{/* c */}",
        "{a:1}",
        "{'a':1}",
        r#"{"a":1,}"#,
        r#"{,"a":1}"#,
        r#"{"a":1 "b":2}"#,
        r#"{"a":1"b":2}"#,
        r#"{"a":1,,"b":2}"#,
        "[1,]",
        "[,1]",
        "[1 2]",
        "[NaN]",
        "[Infinity]",
        "[-Infinity]",
        "[+1]",
        "[.5]",
        "[1.]",
        "[1.e1]",
        "[01]",
        "[0x1]",
        "[1_000]",
        "[True]",
        "[nul]",
        "\u{c}[]",
        "[\"a\tb\"]",
        "[\"a\0b\"]",
        "[\"\\x41\"]",
        "[\"\\u00g0\"]",
        "[\"\\u+041\"]",
        "id;name",
        "<html></html>",
    ] {
        refused(document, Reason::NotJson);
    }
}

#[test]
fn numbers_beyond_a_double() {
    let long = "9".repeat(400);
    for number in [
        "1e400",
        "-1E+400",
        "1.5e309",
        "1e99999999999999999999",
        long.as_str(),
        &format!("{long}.5"),
    ] {
        refused(format!("[{number}]"), Reason::NumberNotFinite);
        refused(format!(r#"{{"integrations":{{"k":{number}}}}}"#), Reason::NumberNotFinite);
    }
    let text = format!("[1e308,1e-400,0e999999,0.{long},{}]", "1".repeat(308));
    assert_eq!(removed(&text), text);
}

#[test]
fn documents_cut_short() {
    let document = include_str!("../../../../tests/golden/upstream.json").trim_end();
    for length in 0..document.len() {
        let judged =
            lower(&policy(Action::Remove), &document[..length]).map_err(|refusal| refusal.reason);
        assert_eq!(
            judged,
            Err(if length == 0 { Reason::Empty } else { Reason::CutShort }),
            "{length} bytes"
        );
    }
    refused("", Reason::Empty);
    refused(" \n\t\r", Reason::Empty);
}
