//! HTTP/1.1 messages for a proxy that must not be desynchronized: bytes in, typed values out.
//!
//! The crate reads heads ([`ResponseHead`], [`RequestHeadRef`]) and chunked bodies
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
pub use field::is_token_byte;
pub use head::{HeadError, HeadLimits, HeadScan, RawFields};
pub use request::{
    FieldLines, LAST_CHUNK, RequestFraming, push_title_case, write_chunk_head, write_request_head,
};
pub use request_head::{
    Expectation, FieldSlots, MAX_METHOD_BYTES, MAX_REQUEST_FIELDS, MAX_TARGET_BYTES, RequestHead,
    RequestHeadError, RequestHeadRef, check_origin_form, empty_lines_before_request,
    find_request_end, is_disguised_field, names_protected_field,
};
pub use response::{BodyLength, ResponseHead};
