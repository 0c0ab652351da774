//! Any chunked body, in pieces of any size: the first byte is the size of the pieces.
//!
//! What must hold: no panic; the watch over the body and a second reading of it agree on which
//! bodies end, and on which whole lines are wrong; pieces make no difference.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/server/chunks.rs"]
mod chunks;
#[path = "../oracles/chunked.rs"]
mod oracle;

use chunks::Chunks;
use oracle::Reading;

fuzz_target!(|data: &[u8]| {
    let Some((cut, body)) = data.split_first() else { return };
    let mut whole = Chunks::default();
    let judged = whole.read(body).map(drop);
    match oracle::read(body) {
        Reading::Whole => assert!(judged.is_ok() && whole.is_over()),
        Reading::Wrong => assert!(judged.is_err()),
        Reading::Unfinished => assert!(judged.is_err() || !whole.is_over()),
    }
    let mut pieces = Chunks::default();
    let in_pieces = body.chunks(usize::from(*cut).max(1)).try_for_each(|piece| pieces.read(piece).map(drop));
    assert_eq!((in_pieces, in_pieces.is_ok() && pieces.is_over()), (judged, judged.is_ok() && whole.is_over()));
});
