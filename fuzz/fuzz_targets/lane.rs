//! Any head of a request: as it is, and as the fields behind a request line and the two fields that the lane wants. What
//! the lane declines is not its affair; what it reads is read again by the judge of heads and by pingora itself.
//!
//! What must hold: no panic; a head that the lane reads is one that the judge passes on as it came, without a body; pingora
//! takes all of it and nothing more, reads the same path, token and fields, and keeps the connection; by the ordinary rules
//! the same credential decides.

#![no_main]

use std::io::Cursor;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, Method, Version};
use libfuzzer_sys::fuzz_target;
use pingora_core::protocols::http::v1::server::HttpSession;
use telecomx_gateway::api::{CustomerId, NormalPath, Protected, Query, credentials_agree, find_credential};

/// What the modules below ask of their crate.
mod api {
    pub use telecomx_gateway::api::*;
}

// Pure, among modules that are not.
#[expect(dead_code, reason = "of the judge, HTTP/2 and the limits are not looked at here")]
#[path = "../../src/server/head.rs"]
mod head;
#[path = "../../src/server/plain.rs"]
mod plain;

use plain::Plain;

const BEGINNING: &[u8] =
    b"GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer token\r\n";

fuzz_target!(|data: &[u8]| {
    compare(data);
    compare(&[BEGINNING, data, b"\r\n"].concat());
});

fn compare(bytes: &[u8]) {
    let Some(plain) = Plain::read(bytes) else { return };
    assert_eq!(head::end(bytes), Some(bytes.len()), "the head ends where the bytes do");
    let passed = head::judge(bytes).expect("the judge passes what the lane reads");
    assert_eq!(passed, head::Passed::default());

    let mut session = HttpSession::new(Box::new(Cursor::new(Vec::new())));
    session.set_pipelined_prefix(bytes.into());
    let read = pin!(session.read_request()).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Ok(Some(length))) = read else { panic!("pingora reads it at once: {read:?}") };
    assert_eq!(length, bytes.len());
    assert!(session.will_keepalive() && session.is_body_done() && !session.is_upgrade_req());

    let request = session.req_header();
    let headers = &request.headers;
    assert_eq!((&request.method, request.version), (&Method::GET, Version::HTTP_11));
    let path = std::str::from_utf8(request.raw_path()).expect("a path in ASCII");
    let normal = NormalPath::parse(path, Protected::default()).expect("no alias");
    let [customer, id, name] = normal.exact() else { panic!("three segments: {path}") };
    assert_eq!((customer.as_str(), name.as_str()), ("customer", "name"));
    assert_eq!(CustomerId::parse(id.as_bytes()), Some(plain.customer));

    let query = Query::parse(request.uri.query()).expect("no query");
    assert!(request.uri.query().is_none() && credentials_agree(headers).is_ok());
    let token = find_credential(headers, &query, Some("token")).expect("a credential").token;
    assert_eq!(token.expose(), plain.token);
    assert_eq!(values(headers, "host").len(), 1);
    for (name, read) in
        [("x-forwarded-for", plain.forwarded_for), ("if-none-match", plain.if_none_match), ("origin", plain.origin)]
    {
        assert_eq!(values(headers, name), read.into_iter().collect::<Vec<_>>(), "{name}");
    }
    let ids = values(headers, "x-request-id");
    assert!(plain.request_id.is_none_or(|id| ids == [id.as_bytes()] && !id.contains(plain.token)));
    for name in [
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "range",
        "if-range",
        "cache-control",
        "pragma",
        "traceparent",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

fn values<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
}
