//! What time it is, for everything that decides by time. The runtime's clock, so that tests which pause it steer the
//! gateway with it; in a program without tokio's `test-util` it is the system's monotonic clock and nothing else.

use std::time::Instant;

/// Now.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
