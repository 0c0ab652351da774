//! Any head of a request over HTTP/1.1, and the same bytes as a list of fields over HTTP/2: lines
//! of a name, a tab and a value. The first byte says how the connection is cut into pieces.
//!
//! What must hold: no panic; a head of HTTP/1.1 that passes is one whose framing a second reading
//! agrees on; a head of HTTP/2 passes if and only if a second reading finds no fault in it, and
//! h2 receives what was sent; raw bytes as frames never panic, and pieces make no difference.

#![no_main]

use bytes::BytesMut;
use http1::{BodyLength, FieldSlots, HeadScan, RequestHeadRef, find_request_end};
use libfuzzer_sys::fuzz_target;

/// The imports of the modules below.
mod api {
    pub use telecomx_api::*;
}

#[path = "../../src/server/hpack.rs"]
mod hpack;
#[expect(dead_code, reason = "the refusal is read by the adapter")]
#[path = "../../src/server/http2_head.rs"]
mod http2_head;
#[allow(dead_code, reason = "the target uses a part of the module")]
#[path = "../../src/server/http2_rewrite.rs"]
mod http2_rewrite;
#[path = "../oracles/request_head.rs"]
mod oracle;

use http2_head::Verdict;
use http2_rewrite::Rewriter;
use oracle::Framing;

fuzz_target!(|data: &[u8]| {
    let Some((cut, rest)) = data.split_first() else { return };
    http1(rest);
    http2(rest);
    frames(usize::from(*cut).max(1), rest);
});

fn http1(mut bytes: &[u8]) {
    // Empty lines before a request are skipped before its head is checked.
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let Ok(Some(end)) = find_request_end(&mut HeadScan::default(), bytes, 64 << 10) else { return };
    if let Ok(head) = RequestHeadRef::parse(&bytes[..end], &mut FieldSlots::new()) {
        let framing = oracle::framing(&bytes[..end]).expect("no two readings of a head that passes");
        assert_eq!(head.body == BodyLength::Chunked, framing == Framing::Chunked);
    }
}

fn http2(bytes: &[u8]) {
    let pair = |line: &[u8]| {
        let tab = line.iter().position(|byte| *byte == b'\t').unwrap_or(line.len());
        (line[..tab].to_vec(), line.get(tab + 1..).unwrap_or_default().to_vec())
    };
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> = bytes.split(|byte| *byte == b'\n').map(pair).collect();
    compare(&fields);
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")];
    let head = head.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    fields.splice(0..0, head);
    compare(&fields);
}

fn compare(fields: &[(Vec<u8>, Vec<u8>)]) {
    let mut section = Vec::new();
    fields.iter().for_each(|(name, value)| hpack::encode(name, value, &mut section));
    let mut read = hpack::Fields::default();
    read.clear(usize::MAX);
    hpack::Decoder::default().decode(&section, &mut read).expect("what was written is read");
    let again: Vec<_> = read.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect();
    assert_eq!(again, fields);
    let verdict = http2_head::judge_request(read.iter());
    let fault = oracle::http2_fault(fields);
    assert_eq!(verdict == Verdict::Pass, fault.is_none(), "{verdict:?}, {fault:?}");
}

/// The bytes as frames behind a preface.
fn frames(cut: usize, bytes: &[u8]) {
    let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes].concat();
    let (mut whole, mut out) = (Rewriter::default(), BytesMut::new());
    let result = whole.read(&bytes, &mut out);
    let (mut pieces, mut pieced) = (Rewriter::default(), BytesMut::new());
    let in_pieces = bytes.chunks(cut).try_for_each(|piece| pieces.read(piece, &mut pieced));
    assert_eq!((result, &out), (in_pieces, &pieced));
}
