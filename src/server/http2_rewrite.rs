//! The bytes of an HTTP/2 connection on their way to h2: every field section is read, judged and
//! written again as literals. All other frames pass as they are. Pure.
//!
//! An error of the connection is left to h2: it gets what makes it fail in the same way.

use bytes::{BufMut, BytesMut};

use super::hpack::{Decoder, Fields, encode};
use super::http2_head::{Verdict, judge_request, judge_trailers, passed, replaced};
use crate::api::ApiError;

const HEAD: usize = 9;
const PREFACE: usize = 24;
const MAX_FRAME: usize = 16 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Bytes of a compressed field section: twice what `MAX_FIELDS_SIZE` permits without compression.
const MAX_SECTION: usize = 128 << 10;

/// Bytes of a field section without compression, what `SETTINGS_MAX_HEADER_LIST_SIZE` announces.
const MAX_FIELDS_SIZE: usize = 64 << 10;

/// A field section does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Preface,
    FrameHead,
    /// The payload of a frame that passes.
    Payload,
    /// The payload of a frame with a part of a field section.
    Section,
    /// Everything passes: h2 ends the connection.
    Broken,
}

/// One connection.
#[derive(Debug)]
pub struct Rewriter {
    at: At,
    /// Bytes until the next state.
    left: usize,
    head: Vec<u8>,
    /// The payload of the frame so far.
    payload: Vec<u8>,
    /// The field section so far, of the stream with these flags and this priority.
    section: Vec<u8>,
    stream: u32,
    flags: u8,
    priority: Vec<u8>,
    in_section: bool,
    /// The highest stream that was opened.
    last_stream: u32,
    decoder: Decoder,
    /// Methods of malformed requests that were not reported yet; empty for trailers.
    malformed: Vec<Vec<u8>>,
}

impl Default for Rewriter {
    fn default() -> Self {
        Rewriter {
            at: At::Preface,
            left: PREFACE,
            head: Vec::with_capacity(HEAD),
            payload: Vec::new(),
            section: Vec::new(),
            stream: 0,
            flags: 0,
            priority: Vec::new(),
            in_section: false,
            last_stream: 0,
            decoder: Decoder::default(),
            malformed: Vec::new(),
        }
    }
}

impl Rewriter {
    /// Takes the next bytes of the client and appends what h2 gets of them.
    ///
    /// # Errors
    /// A field section does not end.
    pub fn read(&mut self, mut bytes: &[u8], out: &mut BytesMut) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            match self.at {
                At::Broken => {
                    out.put_slice(bytes);
                    return Ok(());
                }
                At::Preface | At::Payload => {
                    let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
                    out.put_slice(piece);
                    self.left -= piece.len();
                    bytes = rest;
                    if self.left == 0 {
                        self.at = At::FrameHead;
                    }
                }
                At::FrameHead => {
                    let (piece, rest) = bytes.split_at((HEAD - self.head.len()).min(bytes.len()));
                    self.head.extend_from_slice(piece);
                    bytes = rest;
                    if self.head.len() == HEAD {
                        self.begin_frame(out)?;
                    }
                }
                At::Section => {
                    let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
                    self.payload.extend_from_slice(piece);
                    self.left -= piece.len();
                    bytes = rest;
                    if self.left == 0 {
                        self.end_section_frame(out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The methods of requests that were malformed since the last call.
    pub fn take_malformed(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.malformed)
    }

    fn frame(&self) -> (usize, u8, u8, u32) {
        let head = &self.head;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        (length, head[3], head[4], u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]))
    }

    fn begin_frame(&mut self, out: &mut BytesMut) -> Result<(), TooLong> {
        let (length, kind, _, stream) = self.frame();
        self.left = length;
        let continues = kind == CONTINUATION && self.in_section && stream == self.stream;
        let begins = kind == HEADERS && !self.in_section && stream % 2 == 1;
        if (continues || begins) && length <= MAX_FRAME {
            self.at = At::Section;
            return if length == 0 { self.end_section_frame(out) } else { Ok(()) };
        }
        if self.in_section || kind == HEADERS {
            // Another frame within a field section, a frame that is too large, or a stream of the
            // server.
            if self.in_section {
                write_frame(out, 0, HEADERS, self.flags & END_STREAM, self.stream);
            }
            self.at = At::Broken;
        } else {
            self.at = if length == 0 { At::FrameHead } else { At::Payload };
        }
        out.put_slice(&self.head);
        self.head.clear();
        Ok(())
    }

    fn end_section_frame(&mut self, out: &mut BytesMut) -> Result<(), TooLong> {
        let (_, kind, flags, stream) = self.frame();
        self.at = At::FrameHead;
        let payload = std::mem::take(&mut self.payload);
        if kind == HEADERS {
            let Some((priority, fragment)) = parts(&payload, flags) else {
                out.put_slice(&self.head);
                out.put_slice(&payload);
                self.at = At::Broken;
                return Ok(());
            };
            (self.stream, self.flags, self.in_section) = (stream, flags, true);
            self.priority = priority.to_vec();
            self.section.extend_from_slice(fragment);
        } else {
            self.section.extend_from_slice(&payload);
        }
        self.head.clear();
        if self.section.len() > MAX_SECTION {
            return Err(TooLong);
        }
        if flags & END_HEADERS != 0 {
            self.in_section = false;
            let section = std::mem::take(&mut self.section);
            self.end_section(&section, out);
        }
        Ok(())
    }

    fn end_section(&mut self, section: &[u8], out: &mut BytesMut) {
        let Ok(fields) = self.decoder.decode(section, MAX_FIELDS_SIZE) else {
            // Index 0, which is invalid for h2 as well.
            write_frame(out, 1, HEADERS, END_HEADERS, self.stream);
            out.put_u8(0x80);
            self.at = At::Broken;
            return;
        };
        let is_request = self.stream > self.last_stream;
        self.last_stream = self.last_stream.max(self.stream);
        let verdict = match (is_request, fields.is_too_large()) {
            (true, true) => Verdict::Refused(ApiError::HeadTooLarge),
            (true, false) => judge_request(fields.iter()),
            (false, true) => Verdict::Malformed,
            (false, false) => judge_trailers(fields.iter()),
        };
        let mut block = std::mem::take(&mut self.priority);
        match verdict {
            Verdict::Pass => passed(fields.iter()).for_each(|(name, value)| encode(name, value, &mut block)),
            Verdict::Refused(error) => {
                replaced(error, fields.iter()).into_iter().for_each(|(name, value)| encode(name, value, &mut block));
            }
            Verdict::Malformed => {
                self.malformed.push(if is_request { method(&fields) } else { Vec::new() });
                // What h2 resets the stream for, with PROTOCOL_ERROR.
                encode(b"connection", b"close", &mut block);
            }
        }
        self.write_section(&block, out);
    }

    fn write_section(&self, block: &[u8], out: &mut BytesMut) {
        let kept = self.flags & (END_STREAM | PRIORITY);
        let mut pieces = block.chunks(MAX_FRAME).peekable();
        let (mut kind, mut flags) = (HEADERS, kept);
        loop {
            let piece = pieces.next().unwrap_or_default();
            let is_last = pieces.peek().is_none();
            if is_last {
                flags |= END_HEADERS;
            }
            write_frame(out, piece.len(), kind, flags, self.stream);
            out.put_slice(piece);
            if is_last {
                return;
            }
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

fn write_frame(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap_or_default().to_be_bytes();
    out.put_slice(&[length[1], length[2], length[3], kind, flags]);
    out.put_u32(stream);
}

/// The priority and the fragment of a HEADERS frame; `None` if its padding or priority does not
/// fit.
fn parts(payload: &[u8], flags: u8) -> Option<(&[u8], &[u8])> {
    let (padding, rest) = if flags & PADDED != 0 { payload.split_first()? } else { (&0, payload) };
    let (priority, rest) = rest.split_at_checked(if flags & PRIORITY != 0 { 5 } else { 0 })?;
    Some((priority, rest.get(..rest.len().checked_sub(usize::from(*padding))?)?))
}

fn method(fields: &Fields) -> Vec<u8> {
    fields.iter().find(|(name, _)| *name == b":method").map(|(_, value)| value.to_vec()).unwrap_or_default()
}
