//! Any request: the first byte is the size of the pieces.
//!
//! What must hold: no panic; pieces make no difference; `http1` accepts what a second reading
//! accepts, and sees the same; hyper's server accepts it too, reads the same method, target,
//! fields, body and trailers, sees the same end, and reads the next request from the byte behind it
//! if `http1` keeps the connection; what hyper accepts and `http1` refuses is refused for a listed
//! reason; and `http1` is at least as strict as `src/server/head.rs`.

#![no_main]

use http1::{BodyLength, HeadLimits, RequestHead};
use libfuzzer_sys::fuzz_target;

/// What the module below asks of its crate.
mod api {
    pub use telecomx_gateway::api::*;
}

#[expect(dead_code, reason = "of the judge, only heads of HTTP/1.1 are looked at here")]
#[path = "../../src/server/head.rs"]
mod head;
#[expect(dead_code, reason = "what only responses have is not looked at here")]
#[rustfmt::skip]
#[path = "../oracles/response.rs"]
mod oracle;
#[rustfmt::skip]
#[path = "../oracles/request_readers.rs"]
mod readers;
#[rustfmt::skip]
#[path = "../oracles/request.rs"]
mod request_oracle;

fuzz_target!(|data: &[u8]| {
    if let Some((step, request)) = readers::from_input(data) {
        readers::compare(request, step);
        compare_with_judge(request);
    }
});

fn compare_with_judge(request: &[u8]) {
    let limits = HeadLimits { max_fields: head::MAX_FIELDS, ..HeadLimits::default() };
    if let Ok(Some((parsed, length))) = RequestHead::parse(request, &limits) {
        let passed = head::judge(&request[..length]).expect("the judge accepts what http1 accepts");
        let body = match parsed.body {
            BodyLength::None => head::BodyFraming::Length(0),
            BodyLength::Known(length) => head::BodyFraming::Length(length),
            BodyLength::Chunked => head::BodyFraming::Chunked,
            BodyLength::UntilClose => panic!("a request does not end with the connection"),
        };
        assert_eq!(passed.body, body);
        assert_eq!(passed.instead.is_some(), parsed.origin_form() != parsed.target);
    }
}
