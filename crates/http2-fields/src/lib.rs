//! Field sections of HTTP/2 requests, checked before an HTTP/2 library reads them.
//!
//! A [`Rewriter`] sits between a client's bytes and the library (here `h2`). It decodes each field
//! section ([`Decoder`]), judges it by RFC 9113 sections 8.1 to 8.3 ([`judge_request`],
//! [`judge_trailers`]), and passes it on. Libraries reset the stream of a request that they refuse
//! and show no pseudo-header fields of trailers; the rewriter replaces a refused request by one
//! that names the error ([`refusal`]), so that the server can respond to it. The crate performs no
//! input or output and knows no time.

mod hpack;
mod rewriter;
mod verdict;

pub use hpack::{Decoder, Fields, InvalidSection, encode};
pub use rewriter::{Rewriter, SectionTooLong};
pub use verdict::{Field, REFUSAL_FIELD, Verdict, judge_request, judge_trailers, refusal};
