//! Any response to a request: the first two bytes are the method and the size of the pieces.
//!
//! What must hold: no panic; pieces make no difference; `http1` accepts what a second reading
//! accepts, and sees the same; hyper accepts it too, reads the same status, fields, body and
//! trailers, sees the same end, and answers the next request from the byte behind it if `http1`
//! reuses the connection; what hyper accepts and `http1` refuses is refused for a listed reason.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[rustfmt::skip]
#[path = "../oracles/response.rs"]
mod oracle;
#[expect(dead_code, reason = "the other target has inputs of another form")]
#[rustfmt::skip]
#[path = "../oracles/response_readers.rs"]
mod readers;

fuzz_target!(|data: &[u8]| {
    if let Some((method, step, response)) = readers::from_head_input(data) {
        readers::compare(&response, &method, step);
    }
});
