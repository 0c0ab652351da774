//! Any head of a request: as it is, and as fields behind the request line of the intercepted route.
//!
//! Invariants: no panic; a head of the fast path has the same parts as the same head in a map:
//! customer, credential, cache control, validators, origin, request id.

#![no_main]

use std::borrow::Cow;

use http::HeaderMap;
use http1::{FieldSlots, HeadScan, RequestHead, RequestHeadRef, find_request_end};
use libfuzzer_sys::fuzz_target;
use telecomx_api::{
    CustomerId, NameRequestHead, NameRequestMethod, NameRequestRules, NormalPath, Protected, Query,
    find_credential, holds_credential,
};

const COOKIE: Option<&str> = Some("token");
const RULES: NameRequestRules<'_> = NameRequestRules { cookie: COOKIE, answers_preflights: true };

fuzz_target!(|data: &[u8]| {
    compare(data);
    for line in [
        "GET /customer/73469a52f4fd7f77ec7b28cc/name",
        "HEAD /customer/73469a52f4fd7f77ec7b28cc/name?token=t",
    ] {
        compare(&[line.as_bytes(), b" HTTP/1.1\r\nHost: a\r\n", data, b"\r\n"].concat());
    }
});

fn compare(bytes: &[u8]) {
    let Ok(Some(end)) = find_request_end(&mut HeadScan::default(), bytes, 64 << 10) else { return };
    let mut slots = FieldSlots::new();
    let Ok(head) = RequestHeadRef::parse(&bytes[..end], &mut slots) else { return };
    let Some(read) = NameRequestHead::read(head.method, head.target, head.fields(), RULES) else {
        return;
    };
    let request = head.to_head().expect("the http crate accepts what the parser accepts");

    let path = NormalPath::parse(request.path(), Protected::default()).expect("no alias");
    let [customer, id, name] = path.exact() else { panic!("three segments: {}", request.target) };
    assert_eq!((&**customer, &**name), ("customer", "name"));
    assert_eq!(CustomerId::parse(id.as_bytes()), Some(read.customer));
    let method = match read.method {
        NameRequestMethod::Get => "GET",
        NameRequestMethod::Head => "HEAD",
        NameRequestMethod::Preflight => "OPTIONS",
    };
    assert_eq!(request.method.as_str(), method);
    if read.method == NameRequestMethod::Preflight {
        assert!(
            request.fields.contains_key("origin")
                && request.fields.contains_key("access-control-request-method")
        );
        return;
    }
    compare_fields(&request, &read);
}

fn compare_fields(request: &RequestHead, read: &NameRequestHead<'_>) {
    let fields = &request.fields;
    let query = Query::parse(request.query()).expect("a valid query");
    assert!(query.is_plain());
    let found = find_credential(fields, &query, COOKIE);
    match (&read.credential, &found) {
        (Ok(token), Ok(credential)) => assert_eq!(Cow::as_ref(token), credential.token.expose()),
        (Err(one), Err(other)) => assert_eq!(one, other),
        (one, other) => panic!("{one:?}, {other:?}"),
    }
    for (name, read) in [
        ("if-none-match", read.if_none_match),
        ("origin", read.origin),
        ("cache-control", read.cache_control),
        ("pragma", read.pragma),
    ] {
        assert_eq!(values(fields, name), read.into_iter().collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(values(fields, "x-forwarded-for"), read.forwarded_for());
    let list = || fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    for text in [read.request_id.map(str::as_bytes), read.trace].into_iter().flatten() {
        assert!(!holds_credential(text, list(), request.query(), COOKIE));
    }
}

fn values<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
}
