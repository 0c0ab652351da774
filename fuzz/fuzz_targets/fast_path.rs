//! Any head of a request: as it is, and as fields behind the request line of the intercepted route.
//!
//! What must hold: no panic; what the fast path reads of a head is what the ordinary path reads of
//! the same head in a map: customer, credential, freshness, validators, origin, request id.

#![no_main]

use std::borrow::Cow;

use http::HeaderMap;
use http1::{FieldSlots, HeadScan, RequestHead, RequestHeadRef, find_request_end};
use libfuzzer_sys::fuzz_target;
use telecomx_api::{CustomerId, NormalPath, Protected, Query, find_credential, holds_credential};

/// The imports of the modules below.
mod api {
    pub use telecomx_api::*;
}
mod config {
    pub use config::Cache;
}
mod cache {
    pub use crate::freshness::CacheControl;
}

// Pure, among modules that are not.
#[path = "../../src/server/fast_path_head.rs"]
mod fast_path_head;
#[allow(dead_code, reason = "the target uses a part of the module")]
#[path = "../../src/cache/freshness.rs"]
mod freshness;

use cache::CacheControl;
use fast_path_head::{FastPathHead, Rules, Wanted};

const COOKIE: Option<&str> = Some("token");
const RULES: Rules<'_> = Rules { cookie: COOKIE, answers_preflights: true };

fuzz_target!(|data: &[u8]| {
    compare(data);
    for line in ["GET /customer/73469a52f4fd7f77ec7b28cc/name", "HEAD /customer/73469a52f4fd7f77ec7b28cc/name?token=t"]
    {
        compare(&[line.as_bytes(), b" HTTP/1.1\r\nHost: a\r\n", data, b"\r\n"].concat());
    }
});

fn compare(bytes: &[u8]) {
    let Ok(Some(end)) = find_request_end(&mut HeadScan::default(), bytes, 64 << 10) else { return };
    let mut slots = FieldSlots::new();
    let Ok(head) = RequestHeadRef::parse(&bytes[..end], &mut slots) else { return };
    let Some(read) = FastPathHead::read(head.method, head.target, head.fields(), RULES) else { return };
    let request = head.to_head().expect("the http crate accepts what the parser accepts");

    let path = NormalPath::parse(request.path(), Protected::default()).expect("no alias");
    let [customer, id, name] = path.exact() else { panic!("three segments: {}", request.target) };
    assert_eq!((customer.as_str(), name.as_str()), ("customer", "name"));
    assert_eq!(CustomerId::parse(id.as_bytes()), Some(read.customer));
    let method = match read.wanted {
        Wanted::Get => "GET",
        Wanted::Head => "HEAD",
        Wanted::Preflight => "OPTIONS",
    };
    assert_eq!(request.method.as_str(), method);
    if read.wanted == Wanted::Preflight {
        assert!(request.fields.contains_key("origin") && request.fields.contains_key("access-control-request-method"));
        return;
    }
    compare_fields(&request, &read);
}

fn compare_fields(request: &RequestHead, read: &FastPathHead<'_>) {
    let fields = &request.fields;
    let query = Query::parse(request.query()).expect("a valid query");
    assert!(query.is_plain());
    let found = find_credential(fields, &query, COOKIE);
    match (&read.credential, &found) {
        (Ok(token), Ok(credential)) => assert_eq!(Cow::as_ref(token), credential.token.expose()),
        (Err(one), Err(other)) => assert_eq!(one, other),
        (one, other) => panic!("{one:?}, {other:?}"),
    }
    assert_eq!(read.wants, CacheControl::from_request(fields));
    for (name, read) in [("if-none-match", read.if_none_match), ("origin", read.origin)] {
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
