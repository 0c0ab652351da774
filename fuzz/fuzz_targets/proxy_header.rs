//! PROXY headers: the input as the beginning of a connection, and behind each signature.
//!
//! Invariants: no panic; a header is within the input and has a signature; the same header is found
//! when the input arrives byte by byte; bytes behind the header make no difference.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_protocol::{V1_SIGNATURE, V2_SIGNATURE, has_signature, parse};

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&[V1_SIGNATURE, b"TCP4 ", data].concat());
    check(&[V2_SIGNATURE, data].concat());
});

fn check(bytes: &[u8]) {
    let whole = parse(bytes);
    let mut parts = (0..bytes.len()).map(|end| parse(&bytes[..end]));
    let first = parts.find(|part| *part != Ok(None)).unwrap_or(whole);
    assert_eq!(first, whole);
    if let Ok(Some(header)) = whole {
        assert!(header.length <= bytes.len() && has_signature(bytes));
    }
}
