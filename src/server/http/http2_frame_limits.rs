//! Limits on the frames of an HTTP/2 client, by type, before h2 reads them: a connection that sends
//! far more control frames than its requests need is ended (RFC 9113 section 10.5). h2 responds to
//! each of them without a limit.
//!
//! Each type has a token bucket. A frame takes a token; time, requests and written bytes refill it.
//! Performs no input or output.

use std::time::{Duration, Instant};

/// Length of a frame head (RFC 9113 section 4.1).
const FRAME_HEAD_BYTES: usize = 9;

/// Length of the connection preface in front of the first frame (section 3.4).
const PREFACE_BYTES: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// More control frames than the requests of the connection need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood;

/// Token bucket of one type of frame, in thousandths of tokens.
struct Limit {
    kind: u8,
    /// The size of the bucket.
    burst: u64,
    per_second: u64,
    per_request: u64,
    /// Tokens for each KiB that is written to the client.
    per_kib: u64,
}

const fn limit(kind: u8, burst: u64, per_second: u64, per_request: u64, per_kib: u64) -> Limit {
    Limit {
        kind,
        burst: burst * 1000,
        per_second: per_second * 1000,
        per_request: per_request * 1000,
        per_kib: per_kib * 1000,
    }
}

/// Every bucket. The last is for all other types, including unknown ones.
const LIMITS: [Limit; 7] = [
    // Clients measure the round trip with PING, some once per request.
    limit(PING, 100, 10, 1, 0),
    // A few at the beginning. Each is acknowledged and may resize tables.
    limit(SETTINGS, 20, 1, 0, 0),
    // One for the stream and one for the connection per DATA frame, which may hold a single event.
    limit(WINDOW_UPDATE, 1000, 200, 8, 64),
    // Firefox declared a tree of six nodes and moved each request within it.
    limit(PRIORITY, 200, 20, 4, 0),
    // A browser that leaves a page cancels its requests. A client that resets every request attacks
    // (CVE-2023-44487): a quarter of all requests may be reset indefinitely.
    Limit { kind: RST_STREAM, burst: 200_000, per_second: 20_000, per_request: 250, per_kib: 0 },
    // h2 limits the frames of one head.
    limit(CONTINUATION, 100, 10, 8, 0),
    limit(u8::MAX, 100, 10, 4, 0),
];

/// The frame counts of one connection.
#[derive(Debug)]
pub struct FrameLimiter {
    /// Number of bytes of preface or payload to skip.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    /// Number of bytes of the head so far.
    read: usize,
    /// Tokens, in the order of the limits.
    tokens: [u64; LIMITS.len()],
    refilled: Instant,
}

impl FrameLimiter {
    /// Creates the limiter of a connection of which no byte was read.
    pub fn new(now: Instant) -> Self {
        FrameLimiter {
            skip: PREFACE_BYTES,
            head: [0; FRAME_HEAD_BYTES],
            read: 0,
            tokens: LIMITS.map(|limit| limit.burst),
            refilled: now,
        }
    }

    /// Counts the frames that begin in the next bytes of the connection.
    ///
    /// # Errors
    ///
    /// A bucket is empty.
    pub fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (FRAME_HEAD_BYTES - self.read).min(bytes.len());
            self.head[self.read..self.read + taken].copy_from_slice(&bytes[..taken]);
            self.read += taken;
            bytes = &bytes[taken..];
            if self.read == FRAME_HEAD_BYTES {
                self.read = 0;
                self.skip =
                    u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                self.count(self.head[3], now)?;
            }
        }
        Ok(())
    }

    /// Credits bytes that were written to the client, which it may acknowledge.
    pub fn credit_written(&mut self, bytes: usize) {
        self.refill(|limit| limit.per_kib.saturating_mul(bytes as u64) / 1024);
    }

    fn count(&mut self, kind: u8, now: Instant) -> Result<(), Flood> {
        match kind {
            // h2 limits small and empty DATA frames itself.
            DATA => return Ok(()),
            HEADERS => {
                self.refill(|limit| limit.per_request);
                return Ok(());
            }
            _ => {}
        }
        let place = LIMITS.iter().position(|limit| limit.kind == kind).unwrap_or(LIMITS.len() - 1);
        if self.tokens[place] < 1000 {
            let elapsed =
                now.saturating_duration_since(self.refilled).min(Duration::from_secs(3600));
            self.refilled = now;
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            self.refill(|limit| limit.per_second.saturating_mul(millis) / 1000);
        }
        self.tokens[place] = self.tokens[place].checked_sub(1000).ok_or(Flood)?;
        Ok(())
    }

    fn refill(&mut self, tokens: impl Fn(&Limit) -> u64) {
        for (left, limit) in self.tokens.iter_mut().zip(&LIMITS) {
            *left = left.saturating_add(tokens(limit)).min(limit.burst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD_BYTES + payload, 0xff);
        frame
    }

    fn opened(now: Instant) -> FrameLimiter {
        let mut frames = FrameLimiter::new(now);
        frames.read(&[b'P'; PREFACE_BYTES], now).unwrap();
        frames
    }

    /// Returns how often the row is accepted, at most 100,000 times.
    fn accepted(frames: &mut FrameLimiter, row: &[Vec<u8>], now: Instant) -> usize {
        (0..100_000).take_while(|_| row.iter().all(|frame| frames.read(frame, now).is_ok())).count()
    }

    #[test]
    fn flood_of_any_control_frame_is_detected() {
        let now = clock::now();
        for kind in (2..=255).filter(|kind| *kind != 5) {
            let count = accepted(&mut opened(now), &[frame(kind, 8)], now);
            assert!((20..=1000).contains(&count), "{count} frames of type {kind}");
        }
        let resets = accepted(&mut opened(now), &[frame(HEADERS, 20), frame(RST_STREAM, 4)], now);
        assert!((200..300).contains(&resets), "{resets} requests that were reset");
    }

    #[test]
    fn steady_use_is_not_a_flood() {
        let start = clock::now();
        let mut frames = opened(start);
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            for kind in [PING, SETTINGS, PRIORITY, RST_STREAM] {
                assert_eq!(
                    frames.read(&frame(kind, 8), now),
                    Ok(()),
                    "type {kind} in second {second}"
                );
            }
        }
        // Requests at a high rate with the other frames of browsers. Each of the 100 events of a
        // response is acknowledged twice.
        let mut frames = opened(start);
        let row = [frame(HEADERS, 20), frame(PRIORITY, 5), frame(0x10, 5), frame(PING, 8)];
        for _ in 0..10_000 {
            assert!(row.iter().all(|frame| frames.read(frame, start).is_ok()));
            frames.credit_written(4000);
            assert!((0..200).all(|_| frames.read(&frame(WINDOW_UPDATE, 4), start).is_ok()));
        }
    }

    #[test]
    fn frame_in_pieces_counts_once() {
        let now = clock::now();
        let mut bytes = vec![b'P'; PREFACE_BYTES];
        // A payload that looks like a frame head does not count.
        bytes.extend(frame(DATA, 5000));
        for _ in 0..100 {
            bytes.extend(frame(PING, 8));
        }
        for cut in [1, 2, 8, 9, 10, 17, 100, 5000, bytes.len()] {
            let mut frames = FrameLimiter::new(now);
            assert!(bytes.chunks(cut).all(|piece| frames.read(piece, now).is_ok()), "{cut}");
            assert_eq!(frames.read(&frame(PING, 8), now), Err(Flood), "{cut}");
        }
    }
}
