//! Rewrites the bytes of an HTTP/2 client for h2: judges each field section and replaces the ones
//! that must not pass.
//!
//! Sections pass unchanged until the first that must not; from then on all are written as literals.
//! Other frames pass unchanged. Connection errors are left to h2: it receives bytes that make it
//! fail in the same way.

use std::cell::RefCell;

use bytes::{BufMut, BytesMut};

use http1::HeadError;

use crate::hpack::{Decoder, Fields, encode};
use crate::verdict::{
    FieldKind, Verdict, has_refusal_field, judge_request, judge_trailers, replacement_request,
    without_refusal_field,
};

const FRAME_HEAD_BYTES: usize = 9;
const PREFACE_BYTES: usize = 24;
const MAX_FRAME: usize = 16 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Maximum length of a compressed field section: twice [`MAX_FIELDS_SIZE`].
const MAX_SECTION: usize = 128 << 10;

/// Maximum size of a field section without compression, as `SETTINGS_MAX_HEADER_LIST_SIZE`
/// announces it.
const MAX_FIELDS_SIZE: usize = 64 << 10;

/// Maximum number of streams whose requests have not ended. h2 permits 64, but it may have ended
/// streams that the client has not.
const MAX_OPEN: usize = 1024;

/// A field section longer than `MAX_SECTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 field section too long")]
pub struct SectionTooLong;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preface,
    FrameHead,
    /// In the payload of a frame that passes.
    Payload,
    /// In the payload of a frame with a part of a field section.
    Section,
    /// After a connection error: everything passes, and h2 ends the connection.
    Broken,
}

thread_local! {
    /// Fields of the current section. One buffer for each thread, so that an idle connection holds
    /// none.
    static FIELDS: RefCell<Fields> = RefCell::default();
}

/// Maximum capacity of the buffer that a thread keeps for the next section.
const RETAINED_FIELDS_SIZE: usize = 16 << 10;

/// The rewriter of one connection.
#[derive(Debug)]
pub struct Rewriter {
    state: State,
    /// Number of bytes until the next state.
    remaining: usize,
    /// The frame head so far.
    head: Vec<u8>,
    /// The payload of the frame so far.
    payload: Vec<u8>,
    /// The field section so far, and the stream, flags and priority of its HEADERS frame.
    section: Vec<u8>,
    stream: u32,
    flags: u8,
    priority: Vec<u8>,
    in_section: bool,
    /// The highest stream id that a client used.
    last_stream: u32,
    open_streams: OpenStreams,
    decoder: Decoder,
    /// A section was replaced, so that h2's dynamic table differs from the client's. All further
    /// sections are written as literals, which use no table.
    writes_literals: bool,
    /// Methods of malformed requests since the last report; empty for trailers.
    malformed: Vec<Vec<u8>>,
}

impl Default for Rewriter {
    fn default() -> Self {
        Rewriter {
            state: State::Preface,
            remaining: PREFACE_BYTES,
            head: Vec::new(),
            payload: Vec::new(),
            section: Vec::new(),
            stream: 0,
            flags: 0,
            priority: Vec::new(),
            in_section: false,
            last_stream: 0,
            open_streams: OpenStreams::default(),
            decoder: Decoder::default(),
            writes_literals: false,
            malformed: Vec::new(),
        }
    }
}

/// The streams on which a trailer section may arrive.
#[derive(Debug, Default)]
struct OpenStreams {
    streams: Vec<u32>,
    /// There were more than [`MAX_OPEN`], so that any stream may be open.
    is_incomplete: bool,
}

impl OpenStreams {
    fn insert(&mut self, stream: u32) {
        if self.streams.len() < MAX_OPEN {
            self.streams.push(stream);
        } else {
            self.is_incomplete = true;
        }
    }

    fn remove(&mut self, stream: u32) {
        if let Some(index) = self.streams.iter().position(|open| *open == stream) {
            self.streams.swap_remove(index);
        }
        if self.streams.is_empty() {
            self.streams = Vec::new();
        }
    }

    fn may_contain(&self, stream: u32) -> bool {
        self.is_incomplete || self.streams.contains(&stream)
    }
}

/// A complete field section.
#[derive(Clone, Copy)]
struct Section<'a> {
    stream: u32,
    flags: u8,
    /// Priority of the HEADERS frame: five bytes or empty.
    priority: &'a [u8],
    fields: &'a [u8],
}

impl Section<'_> {
    /// Whether the stream depends on itself. h2 resets it without decoding its fields.
    fn depends_on_itself(&self) -> bool {
        let depends_on =
            self.priority.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff);
        depends_on == Some(self.stream)
    }
}

impl Rewriter {
    /// Reads the next bytes of the client and appends the bytes for h2 to `out`.
    ///
    /// # Errors
    ///
    /// A field section is too long.
    pub fn read(&mut self, mut bytes: &[u8], out: &mut BytesMut) -> Result<(), SectionTooLong> {
        while !bytes.is_empty() {
            match self.state {
                State::Broken => {
                    out.put_slice(bytes);
                    return Ok(());
                }
                State::Preface | State::Payload => {
                    let (piece, rest) = bytes.split_at(self.remaining.min(bytes.len()));
                    out.put_slice(piece);
                    self.remaining -= piece.len();
                    bytes = rest;
                    if self.remaining == 0 {
                        self.state = State::FrameHead;
                    }
                }
                State::FrameHead => {
                    if self.head.is_empty()
                        && !self.in_section
                        && let Some((section, rest)) = complete_section(bytes)
                    {
                        bytes = rest;
                        self.end_section(section, out);
                        continue;
                    }
                    let (piece, rest) =
                        bytes.split_at((FRAME_HEAD_BYTES - self.head.len()).min(bytes.len()));
                    self.head.extend_from_slice(piece);
                    bytes = rest;
                    if self.head.len() == FRAME_HEAD_BYTES {
                        self.begin_frame(out)?;
                    }
                }
                State::Section => {
                    let (piece, rest) = bytes.split_at(self.remaining.min(bytes.len()));
                    self.payload.extend_from_slice(piece);
                    self.remaining -= piece.len();
                    bytes = rest;
                    if self.remaining == 0 {
                        self.end_section_frame(out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the methods of malformed requests since the last call; empty for trailers.
    pub fn take_malformed(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.malformed)
    }

    fn begin_frame(&mut self, out: &mut BytesMut) -> Result<(), SectionTooLong> {
        let FrameHead { length, kind, flags, stream } = FrameHead::parse(&self.head);
        self.remaining = length;
        if kind == RST_STREAM || (kind == DATA && flags & END_STREAM != 0) {
            self.open_streams.remove(stream);
        }
        let continues = kind == CONTINUATION && self.in_section && stream == self.stream;
        let begins = kind == HEADERS && !self.in_section && stream % 2 == 1;
        if (continues || begins) && length <= MAX_FRAME {
            self.state = State::Section;
            return if length == 0 { self.end_section_frame(out) } else { Ok(()) };
        }
        if self.in_section || kind == HEADERS {
            // A connection error: another frame within a field section, a frame that is too large,
            // or a stream of the server.
            if self.in_section {
                write_frame(out, 0, HEADERS, self.flags & END_STREAM, self.stream);
            }
            self.state = State::Broken;
        } else {
            self.state = if length == 0 { State::FrameHead } else { State::Payload };
        }
        out.put_slice(&self.head);
        self.head.clear();
        Ok(())
    }

    fn end_section_frame(&mut self, out: &mut BytesMut) -> Result<(), SectionTooLong> {
        let FrameHead { kind, flags, stream, .. } = FrameHead::parse(&self.head);
        self.state = State::FrameHead;
        let payload = std::mem::take(&mut self.payload);
        if kind == HEADERS {
            let Some((priority, fragment)) = split_headers_payload(&payload, flags) else {
                out.put_slice(&self.head);
                out.put_slice(&payload);
                self.state = State::Broken;
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
            return Err(SectionTooLong);
        }
        if flags & END_HEADERS != 0 {
            self.in_section = false;
            let (fields, priority) =
                (std::mem::take(&mut self.section), std::mem::take(&mut self.priority));
            let section = Section {
                stream: self.stream,
                flags: self.flags,
                priority: &priority,
                fields: &fields,
            };
            self.end_section(section, out);
        }
        Ok(())
    }

    fn end_section(&mut self, section: Section<'_>, out: &mut BytesMut) {
        FIELDS.with_borrow_mut(|fields| {
            self.judge(section, fields, out);
            if fields.capacity() > RETAINED_FIELDS_SIZE {
                *fields = Fields::default();
            }
        });
    }

    fn judge(&mut self, section: Section<'_>, fields: &mut Fields, out: &mut BytesMut) {
        fields.clear(MAX_FIELDS_SIZE);
        if self.decoder.decode(section.fields, fields).is_err() {
            // Index 0 is invalid for h2 too.
            write_frame(out, 1, HEADERS, END_HEADERS, section.stream);
            out.put_u8(0x80);
            self.state = State::Broken;
            return;
        }
        let is_request = section.stream > self.last_stream;
        self.last_stream = self.last_stream.max(section.stream);
        let verdict = match (is_request, fields.is_too_large()) {
            (true, true) => Verdict::Refused(HeadError::TooLong.into()),
            (true, false) => judge_request(fields.iter()),
            // On a closed stream: h2 ends the stream or the connection.
            (false, _) if !self.open_streams.may_contain(section.stream) => Verdict::Pass,
            (false, true) => Verdict::Malformed,
            (false, false) => judge_trailers(fields.iter()),
        };
        match section.flags & END_STREAM != 0 {
            true if !is_request => self.open_streams.remove(section.stream),
            false if is_request => self.open_streams.insert(section.stream),
            _ => {}
        }
        self.writes_literals |= verdict != Verdict::Pass
            || has_refusal_field(fields.iter())
            || section.depends_on_itself();
        if !self.writes_literals {
            return write_section(section, out);
        }
        let mut literals = Vec::new();
        match verdict {
            Verdict::Pass => without_refusal_field(fields.iter())
                .for_each(|(name, value)| encode(name, value, &mut literals)),
            Verdict::Refused(error) => replacement_request(error, fields.iter())
                .into_iter()
                .for_each(|(name, value)| encode(name, value, &mut literals)),
            Verdict::Malformed => {
                self.malformed.push(if is_request { method_of(fields) } else { Vec::new() });
                // A field for which h2 resets the stream with PROTOCOL_ERROR.
                encode(b"connection", b"close", &mut literals);
            }
        }
        write_section(Section { fields: &literals, ..section }, out);
    }
}

/// The head of a frame (RFC 9113 section 4.1).
struct FrameHead {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    /// Parses nine bytes.
    fn parse(head: &[u8]) -> Self {
        FrameHead {
            length: u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize,
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
        }
    }
}

/// Returns the section at the beginning of `bytes` and the bytes behind it, if one complete frame
/// holds the section.
fn complete_section(bytes: &[u8]) -> Option<(Section<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD_BYTES)?;
    let FrameHead { length, kind, flags, stream } = FrameHead::parse(head);
    if kind != HEADERS || flags & END_HEADERS == 0 || stream % 2 == 0 || length > MAX_FRAME {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(length)?;
    let (priority, fields) = split_headers_payload(payload, flags)?;
    Some((Section { stream, flags, priority, fields }, rest))
}

/// Writes a section in as few frames as possible.
fn write_section(section: Section<'_>, out: &mut BytesMut) {
    let Section { stream, flags, priority, fields } = section;
    let first_flags = flags & (END_STREAM | PRIORITY);
    let (first, mut rest) = fields.split_at(fields.len().min(MAX_FRAME - priority.len()));
    let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
    write_frame(out, priority.len() + first.len(), HEADERS, first_flags | end(rest), stream);
    out.put_slice(priority);
    out.put_slice(first);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(MAX_FRAME));
        rest = behind;
        write_frame(out, piece.len(), CONTINUATION, end(rest), stream);
        out.put_slice(piece);
    }
}

fn write_frame(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap_or_default().to_be_bytes();
    out.put_slice(&[length[1], length[2], length[3], kind, flags]);
    out.put_u32(stream);
}

/// Returns priority and fragment of a HEADERS payload; `None` if padding or priority does not fit.
fn split_headers_payload(payload: &[u8], flags: u8) -> Option<(&[u8], &[u8])> {
    let (padding, rest) = if flags & PADDED != 0 { payload.split_first()? } else { (&0, payload) };
    let (priority, rest) = rest.split_at_checked(if flags & PRIORITY != 0 { 5 } else { 0 })?;
    Some((priority, rest.get(..rest.len().checked_sub(usize::from(*padding))?)?))
}

fn method_of(fields: &Fields) -> Vec<u8> {
    fields
        .iter()
        .find(|field| field.kind == FieldKind::Method)
        .map(|field| field.value.to_vec())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use proptest::prelude::*;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;
    use crate::verdict::{Field, REFUSAL_FIELD};

    /// A client's encoder with its own dynamic table.
    #[derive(Default)]
    struct Encoder {
        /// The newest first.
        table: Vec<(String, String)>,
        max_size: usize,
    }

    impl Encoder {
        fn size(&self) -> usize {
            self.table.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        }

        fn resize(&mut self, size: usize, section: &mut Vec<u8>) {
            integer(size, 5, 0x20, section);
            self.max_size = size;
            while self.size() > size {
                self.table.pop();
            }
        }

        fn field(&mut self, field: (&str, &str), is_indexed: bool, section: &mut Vec<u8>) {
            let (name, value) = field;
            if let Some(index) = self.table.iter().position(|(n, v)| n == name && v == value) {
                return integer(62 + index, 7, 0x80, section);
            }
            let index =
                self.table.iter().position(|(n, _)| n == name).map_or(0, |index| 62 + index);
            integer(
                index,
                if is_indexed { 6 } else { 4 },
                if is_indexed { 0x40 } else { 0x10 },
                section,
            );
            for text in [name, value].into_iter().skip(usize::from(index != 0)) {
                integer(text.len(), 7, 0, section);
                section.extend_from_slice(text.as_bytes());
            }
            if is_indexed {
                self.table.insert(0, (name.to_owned(), value.to_owned()));
                while self.size() > self.max_size {
                    self.table.pop();
                }
            }
        }
    }

    fn integer(value: usize, prefix: u32, flags: u8, into: &mut Vec<u8>) {
        let mask = (1 << prefix) - 1;
        if value < mask {
            return into.push(flags | u8::try_from(value).unwrap());
        }
        into.push(flags | u8::try_from(mask).unwrap());
        let mut rest = value - mask;
        while rest >= 128 {
            into.push((rest % 128) as u8 | 0x80);
            rest /= 128;
        }
        into.push(u8::try_from(rest).unwrap());
    }

    /// Bytes for h2 to read. Its writes are discarded.
    struct Wire(BytesMut);

    impl AsyncRead for Wire {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let count = self.0.len().min(into.remaining());
            if count == 0 {
                return Poll::Pending;
            }
            into.put_slice(&self.0.split_to(count));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Returns path and fields of the requests that h2 reads.
    fn requests_of_h2(bytes: BytesMut) -> Vec<(String, Vec<(String, String)>)> {
        let mut context = Context::from_waker(Waker::noop());
        let mut handshake = Box::pin(h2::server::Builder::new().handshake::<_, Bytes>(Wire(bytes)));
        let Poll::Ready(Ok(mut connection)) = handshake.as_mut().poll(&mut context) else {
            return Vec::new();
        };
        let mut requests = Vec::new();
        while let Poll::Ready(Some(Ok((request, _)))) = connection.poll_accept(&mut context) {
            let text =
                |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let fields = request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect();
            requests.push((request.uri().path().to_owned(), fields));
        }
        requests
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], into: &mut Vec<u8>) {
        let mut out = BytesMut::new();
        write_frame(&mut out, payload.len(), kind, flags, stream);
        into.extend_from_slice(&out);
        into.extend_from_slice(payload);
    }

    /// The frames and fields of a request.
    #[derive(Clone, Copy, Debug)]
    enum Shape {
        /// One HEADERS frame.
        Single,
        /// One HEADERS frame with padding.
        Padded,
        /// HEADERS and CONTINUATION.
        Split,
        /// With a priority, on itself or on another stream.
        Depends(bool),
        /// With a malformed field.
        Malformed,
        /// With [`REFUSAL_FIELD`].
        WithRefusalField,
        /// With an update of the table's size in front.
        Resized(usize),
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        prop_oneof![
            8 => Just(Shape::Single),
            1 => Just(Shape::Padded),
            1 => Just(Shape::Split),
            1 => any::<bool>().prop_map(Shape::Depends),
            1 => Just(Shape::Malformed),
            1 => Just(Shape::WithRefusalField),
            1 => (0_usize..4097).prop_map(Shape::Resized),
        ]
    }

    fn write(shape: Shape, stream: u32, section: &[u8], into: &mut Vec<u8>) {
        let flags = END_STREAM | END_HEADERS;
        match shape {
            Shape::Padded => {
                frame(HEADERS, flags | PADDED, stream, &[&[3], section, &[0; 3]].concat(), into);
            }
            Shape::Split => {
                let (first, rest) = section.split_at(section.len() / 2);
                frame(HEADERS, END_STREAM, stream, first, into);
                frame(CONTINUATION, END_HEADERS, stream, rest, into);
            }
            Shape::Depends(on_itself) => {
                let on = if on_itself { stream } else { 0 };
                let payload = [&on.to_be_bytes()[..], &[9], section].concat();
                frame(HEADERS, flags | PRIORITY, stream, &payload, into);
            }
            _ => frame(HEADERS, flags, stream, section, into),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// h2 reads the requests that were judged, for every use of tables and frames, before and
        /// after the first section that must not pass.
        #[test]
        fn h2_reads_the_judged_requests(
            requests in prop::collection::vec(
                (shapes(), prop::collection::vec((0_usize..6, 0_usize..4, any::<bool>()), 0..6)),
                1..12,
            ),
            cut in 1_usize..400,
        ) {
            let mut encoder = Encoder { max_size: 4096, ..Encoder::default() };
            let mut sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 0, 0, 4, 0, 0, 0, 0, 0][..]].concat();
            let mut expected = Vec::new();
            for ((shape, fields), stream) in requests.iter().zip((1..).step_by(2)) {
                let mut section = Vec::new();
                if let Shape::Resized(size) = shape {
                    encoder.resize(*size, &mut section);
                }
                let path = format!("/{stream}");
                let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", &*path)];
                for (name, value) in pseudo {
                    encoder.field((name, value), name != ":path", &mut section);
                }
                let mut list = Vec::new();
                for (name, length, is_indexed) in fields {
                    let value = "v".repeat(length * 400);
                    list.push((format!("x-{name}"), value));
                    encoder.field((&format!("x-{name}"), &"v".repeat(length * 400)), *is_indexed, &mut section);
                }
                match shape {
                    Shape::Malformed => encoder.field(("x-bad", " blank"), true, &mut section),
                    Shape::WithRefusalField => encoder.field((REFUSAL_FIELD, "0"), true, &mut section),
                    _ => {}
                }
                write(*shape, stream, &section, &mut sent);
                if !matches!(shape, Shape::Malformed | Shape::Depends(true)) {
                    // h2 groups fields of one name.
                    let mut map = http::HeaderMap::new();
                    for (name, value) in &list {
                        map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
                    }
                    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
                    expected.push((path, map.iter().map(|(name, value)| (name.to_string(), text(value))).collect()));
                }
            }
            let (mut rewriter, mut out) = (Rewriter::default(), BytesMut::new());
            for piece in sent.chunks(cut) {
                prop_assert_eq!(rewriter.read(piece, &mut out), Ok(()));
            }
            prop_assert_eq!(requests_of_h2(out), expected);
        }
    }

    #[test]
    fn section_passes_unchanged_until_one_is_replaced() {
        let request = |stream: u32, name: &str, value: &str| {
            let mut section = b"\x82\x86\x84\x41\x01x".to_vec();
            let at = section.len();
            encode(name.as_bytes(), value.as_bytes(), &mut section);
            section[at] = 0x40;
            let mut bytes = Vec::new();
            frame(HEADERS, END_STREAM | END_HEADERS, stream, &section, &mut bytes);
            bytes
        };
        let passes = |rewriter: &mut Rewriter, bytes: &[u8]| {
            let mut out = BytesMut::new();
            rewriter.read(bytes, &mut out).unwrap();
            out == bytes
        };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for (name, value) in
            [("x-a", " blank"), (":path", "/"), (REFUSAL_FIELD, "0"), ("te", "gzip")]
        {
            let mut rewriter = Rewriter::default();
            assert!(passes(&mut rewriter, preface));
            for stream in [1, 3] {
                assert!(passes(&mut rewriter, &request(stream, "x-a", "b")));
            }
            assert!(!passes(&mut rewriter, &request(5, name, value)), "{name}");
            assert!(!passes(&mut rewriter, &request(7, "x-a", "b")), "literals from then on");
        }
        assert!(Field::new(b"x-a", b"b").kind == FieldKind::Other);
    }
}
