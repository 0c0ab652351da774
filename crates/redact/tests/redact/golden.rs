//! The examples of the contract, and its statements about single cases.

use bytes::Bytes;
use redact::{Action, Kind, redact, redact_by_own_level};
use telecomx_api::AccessLevel;

use crate::policy::{HIGHER, LOWER, log_policy, lower, policy, removed};

const PAIRS: [(&str, &str); 2] = [
    (
        include_str!("../../../../tests/golden/upstream.json"),
        include_str!("../../../../tests/golden/below-reseller.json"),
    ),
    (
        include_str!("../../../../tests/golden/misplaced-upstream.json"),
        include_str!("../../../../tests/golden/misplaced-below-reseller.json"),
    ),
];

#[test]
fn lower_levels_get_the_golden_document() {
    for (upstream, below_reseller) in PAIRS {
        for level in LOWER {
            let document =
                redact(&policy(Action::Remove), level, Bytes::from_static(upstream.as_bytes()))
                    .unwrap();
            assert_eq!(document.kind(), Kind::Object);
            assert_eq!(document.bytes(), below_reseller.trim_end(), "{level}");
        }
    }
}

#[test]
fn higher_levels_get_the_bytes_of_the_api() {
    let policy = policy(Action::Remove);
    for level in HIGHER {
        for (document, kind) in [
            (PAIRS[0].0, Kind::Object),
            (" {\"integrations\" : 1}\n", Kind::Object),
            ("[1]", Kind::OtherJson),
            ("\"text\"", Kind::OtherJson),
            ("", Kind::NotJson),
            ("id;name\n1;x", Kind::NotJson),
            ("{\"a\":1,\"a\":2}", Kind::NotJson),
            ("{\"a\":1", Kind::NotJson),
            ("\u{feff}{}", Kind::NotJson),
        ] {
            let document = Bytes::from_static(document.as_bytes());
            let revealed = redact(&policy, level, document.clone()).unwrap();
            assert_eq!((revealed.bytes(), revealed.kind()), (&document, kind), "{level}");
        }
    }
}

#[test]
fn remaining_text_keeps_order_and_spelling() {
    let text =
        r#"{"z":1.50E+3,"a":-0,"n":12345678901234567890.10,"s":"\u00e6\/é","b":[{},[],"",0]}"#;
    assert_eq!(removed(text), text);
    assert_eq!(removed(" { \"a\" :\t[ 1 ,\r\n2 ] } "), r#"{"a":[1,2]}"#);
    assert_eq!(removed("[{\"name\":\"a\"},1]"), "[{\"name\":\"a\"},1]");
    assert_eq!(removed(" 7 "), "7");
}

#[test]
fn only_public_scalars_remain_below_a_root() {
    for (document, expected) in [
        // An object in place of a public scalar, arrays, and paths that are almost right.
        (r#"{"integrations":{"x":{"enabled":{"k":"s"}}}}"#, "{}"),
        (
            r#"{"integrations":{"x":{"enabled":[true,["s"],{"enabled":1,"k":2}]}}}"#,
            r#"{"integrations":{"x":{"enabled":[true,["s"],{"enabled":1}]}}}"#,
        ),
        (
            r#"{"integrations":{"criipto":{"domain":"d","Domain":"s","domain ":"s"}}}"#,
            r#"{"integrations":{"criipto":{"domain":"d"}}}"#,
        ),
        (r#"{"integrations":{"criipto":{"x":{"domain":"s"}}}}"#, "{}"),
        (
            r#"{"integrations":[{"criipto":[[{"domain":"d","y":1}]]}]}"#,
            r#"{"integrations":[{"criipto":[[{"domain":"d"}]]}]}"#,
        ),
        // Selectors compare decoded names, not their spelling.
        (r#"{"integrations":{"\u0065nabled":1}}"#, r#"{"integrations":{"\u0065nabled":1}}"#),
        // Name patterns do not apply there.
        (
            r#"{"integrations":{"ms365":{"tenantId":"t"},"token":{"enabled":true}}}"#,
            r#"{"integrations":{"ms365":{"tenantId":"t"},"token":{"enabled":true}}}"#,
        ),
        // A root that is not an object.
        (r#"{"integrations":"{\"password\":1}","a":1}"#, r#"{"a":1}"#),
        (r#"{"integrations":null,"a":1}"#, r#"{"a":1}"#),
        (r#"{"integrations":[1,"s",[2]],"a":1}"#, r#"{"a":1}"#),
        // A root within a root is an ordinary member.
        (
            r#"{"integrations":{"customerIntegrations":{"enabled":true,"k":1}}}"#,
            r#"{"integrations":{"customerIntegrations":{"enabled":true}}}"#,
        ),
    ] {
        assert_eq!(removed(document), expected, "{document}");
    }
}

#[test]
fn secret_members_are_removed_whole_outside_roots() {
    assert_eq!(
        removed(
            r#"{"Password":"s","private_key":{"enabled":true},"x":[{"Api-Key":[1]},{"a":1}],"b":2}"#
        ),
        r#"{"x":[{"a":1}],"b":2}"#
    );
    // A name that is both is a secret.
    assert_eq!(removed(r#"{"integrations.token":{"enabled":true},"b":2}"#), r#"{"b":2}"#);
    let forward = policy(Action::Remove).for_forward(&[], false).unwrap();
    assert_eq!(
        lower(&forward, r#"{"token":"own","integrations":{"a":1}}"#).unwrap(),
        r#"{"token":"own"}"#
    );
}

#[test]
fn emptied_containers_are_removed_and_empty_ones_remain() {
    assert_eq!(removed(r#"{"a":[[{"password":1}]],"b":{},"c":[]}"#), r#"{"b":{},"c":[]}"#);
    assert_eq!(
        removed(r#"{"integrations":{"a":{},"b":[],"c":{"k":1}}}"#),
        r#"{"integrations":{"a":{},"b":[]}}"#
    );
    assert_eq!(removed(r#"[{"integrations":{"k":1}}]"#), "[]");
    assert_eq!(removed(r#"{"password":1}"#), "{}");
}

#[test]
fn null_and_mask_keep_the_members() {
    let document = r#"{"integrations":{"k":"s","n":1,"e":{"enabled":true,"l":["s",1]}},"password":"p","token":{"a":1},"d":{}}"#;
    assert_eq!(
        lower(&policy(Action::Null), document).unwrap(),
        r#"{"integrations":{"k":null,"n":null,"e":{"enabled":true,"l":[null,null]}},"password":null,"token":null,"d":{}}"#
    );
    assert_eq!(
        lower(&policy(Action::Mask), document).unwrap(),
        r#"{"integrations":{"k":"***","n":null,"e":{"enabled":true,"l":["***",null]}},"password":"***","token":null,"d":{}}"#
    );
}

#[test]
fn unambiguous_own_level_of_a_response_decides() {
    let secret = r#""customerIntegrations":{"k":"s"}}"#;
    for (level, reveals) in [
        (r#""accessLevel":"ADMIN""#, true),
        (r#""access\u004cevel":"RESELLER""#, true),
        (r#""accessLevel":"OWNER""#, false),
        (r#""accessLevel":"admin""#, false),
        (r#""accessLevel":["ADMIN"]"#, false),
        (r#""accessLevel":{"accessLevel":"ADMIN"}"#, false),
        (r#""accessLevel":7"#, false),
        (r#""AccessLevel":"ADMIN""#, false),
        (r#""employee":{"accessLevel":"ADMIN"}"#, false),
    ] {
        let document = format!("{{{level},{secret}");
        let answer =
            redact_by_own_level(&policy(Action::Remove), Bytes::from(document.clone())).unwrap();
        let expected = if reveals { document.clone() } else { format!("{{{level}}}") };
        assert_eq!(answer.bytes(), &expected, "{document}");
    }
    for document in [
        r#"{"accessLevel":"ADMIN","accessLevel":"ADMIN","integrations":1}"#,
        r#"{"accessLevel":"OWNER","access\u004cevel":"ADMIN","integrations":1}"#,
        r#"{"accessLevel":"ADMIN"} {}"#,
        r#"{"accessLevel":"ADMIN""#,
        "accessLevel=ADMIN",
    ] {
        assert!(
            redact_by_own_level(&policy(Action::Remove), Bytes::from(document)).is_err(),
            "{document}"
        );
    }
}

#[test]
fn a_change_of_a_root_loses_both_sides() {
    for (document, expected) in [
        (
            r#"{"id":1,"path":"integrations.billing.economic.agreementGrantToken","oldValue":"s","newValue":"s"}"#,
            r#"{"id":1}"#,
        ),
        (
            r#"{"id":1,"old_value":"s","newDisplayValue":{"a":"s"},"path":"Integrations[0].x"}"#,
            r#"{"id":1}"#,
        ),
        (
            r#"{"id":1,"newValue":"s","path":["integrations","billing"]}"#,
            r#"{"id":1,"path":["billing"]}"#,
        ),
        (
            r#"{"id":1,"newValue":"s","path":[["a"],["customer_integrations"]]}"#,
            r#"{"id":1,"path":[["a"]]}"#,
        ),
        (r#"{"id":1,"newValue":"s","path":"\u0069ntegrations/x"}"#, r#"{"id":1}"#),
        // The path in the enclosing object, and in a nested one.
        (
            r#"{"field":"integrations","changes":[{"path":"x","newValue":"s"}]}"#,
            r#"{"changes":[{"path":"x"}]}"#,
        ),
        (r#"{"id":1,"field":{"path":"integrations.x"},"newValue":"s"}"#, r#"{"id":1}"#),
        (r#"{"id":1,"field":[{"a":{"path":"integrations.x"}}],"newValue":"s"}"#, r#"{"id":1}"#),
        (r#"["integrations",{"id":1,"newValue":"s"}]"#, r#"[{"id":1}]"#),
        // The path as a name: its value is below the root.
        (r#"{"integrations.criipto":{"newValue":"s"},"a":1,"from":"s"}"#, r#"{"a":1}"#),
        // Other changes remain, next to such ones too.
        (
            r#"[{"path":"name","oldValue":"a"},{"id":1,"path":"integrations.x","oldValue":"s"}]"#,
            r#"[{"path":"name","oldValue":"a"},{"id":1}]"#,
        ),
        (
            r#"{"when":"2026","changes":[{"path":"name","from":"a","to":"b"},{"path":"integrations.x","to":"s"}]}"#,
            r#"{"when":"2026","changes":[{"path":"name","from":"a","to":"b"}]}"#,
        ),
        (
            r#"{"path":"disintegrations","oldValue":"a"}"#,
            r#"{"path":"disintegrations","oldValue":"a"}"#,
        ),
        // A document in an entry is redacted like any other.
        (
            r#"{"data":{"name":"Duck","integrations":{"x":{"enabled":true,"key":"s"}}}}"#,
            r#"{"data":{"name":"Duck","integrations":{"x":{"enabled":true}}}}"#,
        ),
    ] {
        assert_eq!(lower(&log_policy(Action::Remove), document).unwrap(), expected, "{document}");
    }
    let document = r#"{"newValue":"s","oldValue":{"a":1},"path":"integrations","id":7}"#;
    assert_eq!(
        lower(&log_policy(Action::Mask), document).unwrap(),
        r#"{"newValue":"***","oldValue":null,"path":"***","id":7}"#
    );
    assert_eq!(removed(document), document, "only where the policy says so");
}

#[test]
fn log_entry_that_quotes_a_root_loses_the_quotation() {
    for (document, expected) in [
        // JSON in a string, and in a string of that.
        (
            r#"[{"where":"Customers","data":"{\"integrations\":{\"k\":\"s\"}}"}]"#,
            r#"[{"where":"Customers"}]"#,
        ),
        (r#"{"id":1,"data":"{\"\\u0069ntegrations\":{\"k\":\"s\"}}"}"#, r#"{"id":1}"#),
        (
            r#"{"id":1,"data":"\"{\\\"\\\\u0069ntegrations\\\":1,\\\"k\\\":\\\"s\\\"}\""}"#,
            r#"{"id":1}"#,
        ),
        (r#"{"id":1,"data":"[\"a\\nintegrations\",\"s\"]"}"#, r#"{"id":1}"#),
        // A path relative to the root.
        (
            r#"{"id":1,"path":"criipto.clientSecret","oldValue":"s","to":"s"}"#,
            r#"{"id":1,"path":"criipto.clientSecret"}"#,
        ),
        (
            r#"{"id":1,"path":"/uniconta/username","value":"s"}"#,
            r#"{"id":1,"path":"/uniconta/username"}"#,
        ),
        (r#"{"id":1,"field":"bearerToken","was":"s"}"#, r#"{"id":1,"field":"bearerToken"}"#),
        (
            r#"{"id":1,"path":["criipto","clientSecret"],"x":["s"]}"#,
            r#"{"id":1,"path":["criipto","clientSecret"]}"#,
        ),
        // A JSON patch, and other names for the two sides.
        (
            r#"[{"op":"replace","path":"/integrations/criipto/clientSecret","value":"s"}]"#,
            r#"[{"op":"replace"}]"#,
        ),
        (
            r#"{"op":"test","from":"s","to":{"a":["s"]},"path":"/integrations/x"}"#,
            r#"{"op":"test"}"#,
        ),
        (
            r#"{"id":1,"path":"integrations.x","whatever":"s","list":["s",1],"o":{"p":"s"}}"#,
            r#"{"id":1}"#,
        ),
        (r#"{"value":"s","field":{"path":"integrations.x"},"name":"a"}"#, r#"{"name":"a"}"#),
        // A sentence.
        (
            r#"{"id":1,"message":"integrations.criipto.clientSecret changed from s to t"}"#,
            r#"{"id":1}"#,
        ),
        // An entry about something else.
        (
            r#"{"where":"Customers","path":"name","oldValue":"C:\\token","newValue":"a \"b\"","text":"no root"}"#,
            r#"{"where":"Customers","path":"name","oldValue":"C:\\token","newValue":"a \"b\"","text":"no root"}"#,
        ),
    ] {
        assert_eq!(lower(&log_policy(Action::Remove), document).unwrap(), expected, "{document}");
    }
    let backslashes = format!(r#"{{"id":1,"data":"{}u0069ntegrations s"}}"#, "\\".repeat(1 << 12));
    assert!(!lower(&log_policy(Action::Remove), &backslashes).unwrap().contains('s'));
}

#[test]
fn debug_output_shows_no_content() {
    let document = Bytes::from_static(b"{\"integrations\":\"s3cret\" s3cret");
    let refusal =
        redact(&policy(Action::Remove), AccessLevel::Owner, document.clone()).unwrap_err();
    assert_eq!(
        (refusal.to_string().as_str(), refusal.as_str()),
        ("not JSON (byte 25)", "not_json")
    );
    let revealed = redact(&policy(Action::Remove), AccessLevel::Admin, document).unwrap();
    assert_eq!(format!("{revealed:?}"), "Redacted(NotJson, 31 bytes)");
}
