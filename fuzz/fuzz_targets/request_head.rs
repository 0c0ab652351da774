//! Request heads: the input as a head of HTTP/1.1, as the fields of an HTTP/2 request (lines of
//! name, tab and value), and as HTTP/2 frames. The first byte is the length of the pieces.
//!
//! Invariants: no panic; the oracle agrees with the framing of a head of HTTP/1.1 that passes; a
//! head of HTTP/2 passes if and only if the oracle finds no fault in it, and is decoded as it was
//! encoded; the length of the pieces makes no difference.

#![no_main]

use bytes::BytesMut;
use http1::{BodyLength, FieldSlots, HeadScan, RequestHeadRef, find_request_end};
use http2_fields::{Decoder, Fields, Rewriter, Verdict, encode, judge_request};
use libfuzzer_sys::fuzz_target;

#[path = "../oracles/request_head.rs"]
mod oracle;

use oracle::Framing;

fuzz_target!(|data: &[u8]| {
    let Some((cut, rest)) = data.split_first() else { return };
    http1(rest);
    http2(rest);
    frames(usize::from(*cut).max(1), rest);
});

fn http1(mut bytes: &[u8]) {
    // The gateway skips empty lines before a request.
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let Ok(Some(end)) = find_request_end(&mut HeadScan::default(), bytes, 64 << 10) else { return };
    if let Ok(head) = RequestHeadRef::parse(&bytes[..end], &mut FieldSlots::new()) {
        let framing = oracle::framing(&bytes[..end]).expect("one reading of a head that passes");
        assert_eq!(head.body == BodyLength::Chunked, framing == Framing::Chunked);
    }
}

fn http2(bytes: &[u8]) {
    let pair = |line: &[u8]| {
        let tab = line.iter().position(|byte| *byte == b'\t').unwrap_or(line.len());
        (line[..tab].to_vec(), line.get(tab + 1..).unwrap_or_default().to_vec())
    };
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> =
        bytes.split(|byte| *byte == b'\n').map(pair).collect();
    compare(&fields);
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")];
    let head = head.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    fields.splice(0..0, head);
    compare(&fields);
}

fn compare(fields: &[(Vec<u8>, Vec<u8>)]) {
    let mut section = Vec::new();
    fields.iter().for_each(|(name, value)| encode(name, value, &mut section));
    let mut read = Fields::default();
    read.clear(usize::MAX);
    Decoder::default().decode(&section, &mut read).expect("an encoded section is valid");
    let again: Vec<_> =
        read.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect();
    assert_eq!(again, fields);
    let verdict = judge_request(read.iter());
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
