//! Requests as this crate reads them, compared with a second reading and with hyper's server. The
//! fuzz target `http1_request` compares the same for longer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::path::Path;

use proptest::prelude::*;

#[expect(dead_code, reason = "what only responses have is not looked at here")]
#[path = "../../../fuzz/oracles/response.rs"]
mod oracle;
#[path = "../../../fuzz/oracles/request_readers.rs"]
mod readers;
#[path = "../../../fuzz/oracles/request.rs"]
mod request_oracle;

#[test]
fn request_seeds_are_read_alike_by_every_reader() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/http1_request");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let seed = std::fs::read(file.unwrap().path()).unwrap();
        let (_, request) = readers::from_input(&seed).unwrap();
        for step in [1, 2, 3, 7, 16, usize::MAX] {
            readers::compare(request, step);
        }
        count += 1;
    }
    assert!(count > 40, "{count} seeds");
}

const LINES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /x?y HTTP/1.1\r\n",
    "POST /x HTTP/1.0\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "GET http://a/x HTTP/1.1\r\n",
    "GET http://A:80?x HTTP/1.1\r\n",
    "GET https://a:443 HTTP/1.0\r\n",
    "GET http://b/ HTTP/1.1\r\n",
    "CONNECT a:80 HTTP/1.1\r\n",
    "G-T /#x HTTP/1.1\r\n",
    "GET /\u{e6} HTTP/1.1\r\n",
    "GET  / HTTP/1.1\r\n",
    "GET /<> HTTP/1.1\r\n",
    "GET /\"{}|\\^` HTTP/1.1\r\n",
    "GET / HTTP/1.2\r\n",
    "\r\nGET / HTTP/1.1\r\n",
];

const FIELDS: &[&str] = &[
    "Host: a\r\n",
    "host: a:80\r\n",
    "Host: [::1]:80\r\n",
    "Host: a:b\r\n",
    "Host: u@a\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: +5\r\n",
    "Content_Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:\tCHUNKED \r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Connection: close\r\n",
    "Connection: x, keep-alive\r\n",
    "Connection: Content-Length\r\n",
    "Connection: x y\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: websocket\r\nConnection: upgrade\r\n",
    "X: 1\r\n",
    "X : 1\r\n",
    " folded\r\n",
    "X: 1\n",
    "X: \0\r\n",
];

const BODIES: &[&str] = &[
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=\"b\"\r\nhello\r\n0\r\nX: 1\r\nHost: b\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : 1\r\n\r\n",
    "0\r\n\r\n",
    "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    "",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn request_of_any_words_is_read_alike(
        line in prop::sample::select(LINES),
        has_host in prop::bool::weighted(0.8),
        fields in prop::collection::vec(prop::sample::select(FIELDS), 0..4),
        bodies in prop::collection::vec(prop::sample::select(BODIES), 0..3),
        step in 1_usize..60,
    ) {
        let host = if has_host { "Host: a\r\n" } else { "" };
        let request = [line, host, &fields.concat(), "\r\n", &bodies.concat()].concat();
        readers::compare(request.as_bytes(), step);
    }

    #[test]
    fn damaged_request_is_read_alike(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        remove in any::<bool>(),
        step in 1_usize..80,
    ) {
        let mut request = b"POST http://a:80/x?y HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\
            Transfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
            .to_vec();
        let at = at.index(request.len());
        if remove {
            request.remove(at);
        } else {
            request[at] = byte;
        }
        readers::compare(&request, step);
    }
}
