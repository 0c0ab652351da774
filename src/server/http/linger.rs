//! The end of a connection whose client may still be sending.

use std::time::Duration;

use pingora_core::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Maximum time without a byte from a client whose remaining input is discarded.
pub const LINGER: Duration = Duration::from_secs(1);

/// Maximum time for which the remaining input of a client is discarded before its connection is
/// closed. Closing earlier could lose the response in a reset (RFC 9112 section 9.6).
const LINGER_MAX: Duration = Duration::from_secs(5);

/// Number of bytes discarded at once.
const DISCARD_BYTES: usize = 4096;

/// Closes a connection whose client may still be sending: shuts down the gateway's side and
/// discards input for a while, so that no reset overtakes the response.
pub async fn close_unread(mut stream: Stream) {
    let discarding = async {
        // The shutdown fails if the connection has ended already.
        let _ = AsyncWriteExt::shutdown(&mut stream).await;
        // On the heap: each connection has room for this future, and few need it.
        let mut sink = vec![0; DISCARD_BYTES];
        while let Ok(Ok(1..)) = timeout(LINGER, stream.read(&mut sink)).await {}
    };
    let _ = timeout(LINGER_MAX, discarding).await;
}
