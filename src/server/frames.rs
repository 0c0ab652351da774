//! The frames that an HTTP/2 client sends, counted by type before h2 reads them: a connection that
//! sends far more control frames than its requests need ends (RFC 9113 section 10.5). h2 answers
//! each of them, without a limit. Pure.
//!
//! Each type has a bucket. A frame takes a token; time, requests and written bytes put tokens back,
//! up to the size of the bucket.

use std::time::{Duration, Instant};

/// Bytes of a frame's head (RFC 9113 section 4.1).
const HEAD: usize = 9;

/// Bytes of the connection preface, which come before the first frame (section 3.4).
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// The connection sent more control frames than its requests need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood;

/// The limit on one type of frame. Tokens are counted in thousandths.
struct Limit {
    kind: u8,
    /// The size of the bucket.
    burst: u64,
    per_second: u64,
    per_request: u64,
    /// For each KiB that is written to the client.
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

/// Every limit. The last one is for all other types, the unknown ones included.
const LIMITS: [Limit; 7] = [
    // Clients measure the round trip with pings, some once per request.
    limit(PING, 100, 10, 1, 0),
    // A handful at the beginning; each is answered, and may resize tables.
    limit(SETTINGS, 20, 1, 0, 0),
    // One for the stream and one for the connection, for each DATA frame; those may hold single
    // events.
    limit(WINDOW_UPDATE, 1000, 200, 8, 64),
    // Firefox described a tree of six nodes, and moved each request within it.
    limit(PRIORITY, 200, 20, 4, 0),
    // A page that is left cancels what it had requested. A client that resets every request is an
    // attack (CVE-2023-44487): a quarter of all requests may be reset without end.
    Limit { kind: RST_STREAM, burst: 200_000, per_second: 20_000, per_request: 250, per_kib: 0 },
    // h2 limits those of one head.
    limit(CONTINUATION, 100, 10, 8, 0),
    limit(u8::MAX, 100, 10, 4, 0),
];

/// The frames of one connection.
#[derive(Debug)]
pub struct Frames {
    /// Bytes to skip: of the preface, or of the payload.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of the head so far.
    read: usize,
    /// Tokens, in the order of the limits.
    tokens: [u64; LIMITS.len()],
    refilled: Instant,
}

impl Frames {
    /// A connection of which nothing was read, not even the preface.
    pub fn new(now: Instant) -> Self {
        Frames { skip: PREFACE, head: [0; HEAD], read: 0, tokens: LIMITS.map(|limit| limit.burst), refilled: now }
    }

    /// Counts the frames that begin in the next bytes of the connection.
    ///
    /// # Errors
    /// There were too many of one type.
    pub fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.read).min(bytes.len());
            self.head[self.read..self.read + taken].copy_from_slice(&bytes[..taken]);
            self.read += taken;
            bytes = &bytes[taken..];
            if self.read == HEAD {
                self.read = 0;
                self.skip = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                self.count(self.head[3], now)?;
            }
        }
        Ok(())
    }

    /// Notes bytes that were written to the client, which it may acknowledge.
    pub fn wrote(&mut self, bytes: usize) {
        self.refill(|limit| limit.per_kib.saturating_mul(bytes as u64) / 1024);
    }

    fn count(&mut self, kind: u8, now: Instant) -> Result<(), Flood> {
        match kind {
            // h2 limits small and empty ones itself.
            DATA => return Ok(()),
            HEADERS => {
                self.refill(|limit| limit.per_request);
                return Ok(());
            }
            _ => {}
        }
        let place = LIMITS.iter().position(|limit| limit.kind == kind).unwrap_or(LIMITS.len() - 1);
        if self.tokens[place] < 1000 {
            let elapsed = now.saturating_duration_since(self.refilled).min(Duration::from_secs(3600));
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

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD + payload, 0xff);
        frame
    }

    fn opened(now: Instant) -> Frames {
        let mut frames = Frames::new(now);
        frames.read(&[b'P'; PREFACE], now).unwrap();
        frames
    }

    /// How many of these in a row are accepted, of 100,000.
    fn accepted(frames: &mut Frames, row: &[Vec<u8>], now: Instant) -> usize {
        (0..100_000).take_while(|_| row.iter().all(|frame| frames.read(frame, now).is_ok())).count()
    }

    #[test]
    fn flood_of_any_control_frame_ends() {
        let now = Instant::now();
        for kind in (2..=255).filter(|kind| *kind != 5) {
            let count = accepted(&mut opened(now), &[frame(kind, 8)], now);
            assert!((20..=1000).contains(&count), "{count} frames of type {kind}");
        }
        let resets = accepted(&mut opened(now), &[frame(HEADERS, 20), frame(RST_STREAM, 4)], now);
        assert!((200..300).contains(&resets), "{resets} requests that were reset");
    }

    #[test]
    fn steady_use_does_not_end() {
        let start = Instant::now();
        let mut frames = opened(start);
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            for kind in [PING, SETTINGS, PRIORITY, RST_STREAM] {
                assert_eq!(frames.read(&frame(kind, 8), now), Ok(()), "type {kind} in second {second}");
            }
        }
        // Requests at a great rate, with what browsers send along; each response of 100 events is
        // acknowledged twice each.
        let mut frames = opened(start);
        let row = [frame(HEADERS, 20), frame(PRIORITY, 5), frame(0x10, 5), frame(PING, 8)];
        for _ in 0..10_000 {
            assert!(row.iter().all(|frame| frames.read(frame, start).is_ok()));
            frames.wrote(4000);
            assert!((0..200).all(|_| frames.read(&frame(WINDOW_UPDATE, 4), start).is_ok()));
        }
    }

    #[test]
    fn frames_count_once_however_they_are_cut() {
        let now = Instant::now();
        let mut bytes = vec![b'P'; PREFACE];
        // What looks like a head within a payload does not count.
        bytes.extend(frame(DATA, 5000));
        for _ in 0..100 {
            bytes.extend(frame(PING, 8));
        }
        for cut in [1, 2, 8, 9, 10, 17, 100, 5000, bytes.len()] {
            let mut frames = Frames::new(now);
            assert!(bytes.chunks(cut).all(|piece| frames.read(piece, now).is_ok()), "{cut}");
            assert_eq!(frames.read(&frame(PING, 8), now), Err(Flood), "{cut}");
        }
    }
}
