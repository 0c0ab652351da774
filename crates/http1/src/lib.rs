//! HTTP/1.1 messages for a proxy that must not be desynchronized: bytes in, typed values out.
//!
//! The crate reads heads ([`ResponseHead`], [`RequestHead`]) and chunked bodies
//! ([`ChunkedDecoder`]), and writes request heads ([`write_request_head`]) and chunks
//! ([`write_chunk_head`]). It refuses every message that two readers could frame differently
//! (RFC 9112 sections 6.1 to 6.3), even where the RFC permits a recipient to repair it. It performs
//! no input or output, knows no time and keeps no state between messages.

mod chunked;
mod field;
mod head;
mod request;
mod request_head;
mod response;

pub use chunked::{
    ChunkError, ChunkedDecoder, Decoded, MAX_EXTENSION_BYTES, MAX_LINE_BYTES, MAX_TRAILER_BYTES,
    MAX_TRAILER_FIELDS,
};
pub use head::{HeadError, HeadLimits, HeadScan};
pub use request::{
    LAST_CHUNK, RequestFraming, push_title_case, write_chunk_head, write_request_head,
};
pub use request_head::{
    Expectation, MAX_METHOD_BYTES, MAX_TARGET_BYTES, RequestHead, RequestHeadError,
    empty_lines_before_request,
};
pub use response::{BodyLength, ResponseHead};
