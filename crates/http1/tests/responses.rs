//! Responses as this crate reads them, compared with a second reading and with hyper's client. The
//! fuzz targets `response_head` and `response_body` compare the same for longer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::path::Path;

use http::Method;
use proptest::prelude::*;

#[path = "../../../fuzz/oracles/response.rs"]
mod oracle;
#[path = "../../../fuzz/oracles/response_readers.rs"]
mod readers;

const METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::POST];

type Input = (Method, usize, Vec<u8>);

/// Reads the seeds of a fuzz target.
fn seeds(target: &str, from_input: fn(&[u8]) -> Option<Input>) -> Vec<Input> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        from_input(&std::fs::read(file.unwrap().path()).unwrap()).unwrap()
    };
    std::fs::read_dir(folder).unwrap().map(read).collect()
}

#[test]
fn seeds_are_read_alike_by_every_reader() {
    for (target, from_input) in [
        ("response_head", readers::from_head_input as fn(&[u8]) -> Option<Input>),
        ("response_body", readers::from_body_input),
    ] {
        let seeds = seeds(target, from_input);
        assert!(seeds.len() > 40, "{target}: {} seeds", seeds.len());
        for (_, _, response) in seeds {
            for method in METHODS {
                for step in [1, 7, usize::MAX] {
                    readers::compare(&response, &method, step);
                }
            }
            let whole = readers::read(&response, &Method::GET, usize::MAX);
            for step in 2..response.len() {
                assert_eq!(readers::read(&response, &Method::GET, step), whole);
            }
        }
    }
}

const HEAD_WORDS: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n",
    "HTTP/1.1 999 X\r\n",
    "HTTP/1.1 200\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: +5\r\n",
    "content-length:\t00005 \r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:CHUNKED\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: close\r\n",
    "Connection: x, keep-alive\r\n",
    "Connection: x y\r\n",
    "X: 1\r\n",
    "X : 1\r\n",
    " folded\r\n",
    "X: 1\n",
    "X: \0\r\n",
    ": 1\r\n",
    "\r\n",
    "\n",
    "\r",
    " ",
    "5\r\nhello\r\n0\r\n\r\n",
    "hello",
    "0\r\n\r\n",
];

const BODY_WORDS: &[&str] = &[
    "5\r\nhello\r\n",
    "0\r\n",
    "\r\n",
    "\n",
    "\r",
    "0",
    "5",
    "a",
    "1F",
    "hello",
    " ",
    "\t",
    ";",
    "=",
    "\"",
    "\\",
    "x",
    ";a=b",
    ";a=\"b;c\"",
    " ; a = \"\\\"\"",
    "X: 1\r\n",
    "X-Sum: a\tb\r\n",
    "x:\r\n",
    "Content-Length: 5\r\n",
    "Host: a\r\n",
    "X : 1\r\n",
    " X: 1\r\n",
    ":",
    "\0",
    "\u{e6}",
    "0\r\n\r\n",
];

fn words(words: &'static [&str], count: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(words), 0..count)
        .prop_map(|w| w.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn response_of_any_words_is_read_alike(
        response in words(HEAD_WORDS, 9),
        method in prop::sample::select(&METHODS[..]),
        step in 1_usize..40,
    ) {
        readers::compare(&response, &method, step);
    }

    #[test]
    fn response_with_a_status_line_is_read_alike(
        status in prop::sample::select(&HEAD_WORDS[..9]),
        fields in words(&HEAD_WORDS[9..], 5),
        rest in words(&["5\r\nhello\r\n0\r\n\r\n", "hello", "HTTP/1.1 200 OK\r\n\r\n"], 3),
        method in prop::sample::select(&METHODS[..]),
        step in 1_usize..40,
    ) {
        let response = [status.as_bytes(), &fields, b"\r\n", &rest].concat();
        readers::compare(&response, &method, step);
    }

    #[test]
    fn chunked_body_of_any_words_is_read_alike(body in words(BODY_WORDS, 14), step in 1_usize..20) {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        readers::compare(&[&head[..], &body].concat(), &Method::GET, step);
    }

    #[test]
    fn damaged_response_is_read_alike(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        remove in any::<bool>(),
        step in 1_usize..80,
    ) {
        let mut response = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nX-A: b\r\n\
            Transfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
            .to_vec();
        let at = at.index(response.len());
        if remove {
            response.remove(at);
        } else {
            response[at] = byte;
        }
        readers::compare(&response, &Method::GET, step);
    }
}
