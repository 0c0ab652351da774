//! Any request: the first byte is the size of the pieces.
//!
//! What must hold: no panic; pieces make no difference; `http1` accepts what a second reading
//! accepts, and sees the same; hyper's server accepts it too, reads the same method, target,
//! fields, body and trailers, sees the same end, and reads the next request from the byte behind it
//! if `http1` keeps the connection; what hyper accepts and `http1` refuses is refused for a listed
//! reason.

#![no_main]

use libfuzzer_sys::fuzz_target;

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
    }
});
