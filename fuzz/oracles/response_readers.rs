//! One response, read by `crates/http1`, by the second reading of `response.rs`, and by hyper's
//! client over a connection in memory; [`compare`] asserts what must hold between them.

use std::cell::{RefCell, RefMut};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, Method, Request, StatusCode, Version};
use http1::{BodyLength, ChunkedDecoder, Decoded, HeadLimits, HeadScan, ResponseHead};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http1::{self as http1_client, SendRequest};
use hyper::rt::ReadBufCursor;

use super::oracle::{self, Framing, Reading, Refusal};

/// A response as any of the readers sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub version: Version,
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

/// What `crates/http1` makes of the beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response ends within the bytes, at `length`.
    Whole {
        response: Response,
        length: usize,
        is_persistent: bool,
    },
    /// The response ends when the connection does.
    UntilClose(Response),
    /// More bytes are needed, of the head if there is no response yet.
    Unfinished(Option<Response>),
    Refused,
}

/// An input of the fuzz target `response_head`: the method, the size of pieces, then the response.
pub fn from_head_input(input: &[u8]) -> Option<(Method, usize, Vec<u8>)> {
    let (&[method, step], response) = input.split_first_chunk()?;
    let method = match method {
        b'H' => Method::HEAD,
        b'P' => Method::POST,
        _ => Method::GET,
    };
    Some((method, usize::from(step).max(1), response.to_vec()))
}

/// An input of the fuzz target `response_body`: the framing, the size of pieces, then the body.
pub fn from_body_input(input: &[u8]) -> Option<(Method, usize, Vec<u8>)> {
    let (&[framing, step], body) = input.split_first_chunk()?;
    let framing = match framing {
        b'L' => "Content-Length: 5\r\n",
        b'U' => "",
        _ => "Transfer-Encoding: chunked\r\n",
    };
    let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n");
    Some((Method::GET, usize::from(step).max(1), [head.as_bytes(), body].concat()))
}

/// Asserts that all readers of `bytes` agree, however the bytes are cut into pieces of `step`.
pub fn compare(bytes: &[u8], method: &Method, step: usize) {
    let outcome = read(bytes, method, usize::MAX);
    assert_eq!(read(bytes, method, step), outcome, "pieces of {step} bytes make a difference");
    let refusal = second_reading(bytes, method, &outcome);
    let hyper = |end: usize, is_closed| read_with_hyper(&bytes[..end], is_closed, method, step);
    match outcome {
        Outcome::Whole { response, length, is_persistent } => {
            let read = hyper(length, false);
            let other = read.response.expect("hyper accepts the response and sees its end");
            assert_same(&response, &other);
            assert!(read.is_reusable || !is_persistent, "hyper reuses the connection");
            let before = hyper(length - 1, false);
            assert!(before.response.is_none(), "hyper does not see the end earlier");
        }
        Outcome::UntilClose(response) => {
            let other = hyper(bytes.len(), true).response.expect("hyper accepts the response");
            assert_same(&response, &other);
            assert!(hyper(bytes.len(), false).response.is_none(), "hyper waits for more");
        }
        Outcome::Unfinished(response) => {
            let read = hyper(bytes.len(), false);
            assert!(read.response.is_none(), "hyper sees no end either");
            if let (Some(ours), Some(theirs)) = (response, read.partial) {
                assert_eq!((ours.version, ours.status), (theirs.version, theirs.status));
                assert_eq!(ours.fields, theirs.fields);
                assert_eq!(ours.body, theirs.body);
            }
        }
        Outcome::Refused => {
            let refusal = refusal.expect("the second reading refuses it too");
            let is_accepted = [false, true]
                .iter()
                .any(|is_closed| hyper(bytes.len(), *is_closed).response.is_some());
            assert!(refusal.is_strictness() || !is_accepted, "hyper accepts despite {refusal:?}");
        }
    }
}

/// hyper keeps trailer fields that `crates/http1` drops.
fn assert_same(ours: &Response, theirs: &Response) {
    assert_eq!((ours.version, ours.status), (theirs.version, theirs.status));
    assert_eq!(ours.fields, theirs.fields);
    assert_eq!(ours.body, theirs.body);
    let mut trailers = HeaderMap::new();
    for (name, value) in &theirs.trailers {
        if oracle::is_reported_trailer(name.as_str()) {
            trailers.append(name, value.clone());
        }
    }
    assert_eq!(ours.trailers, trailers);
}

/// Reads a response with `crates/http1` as its bytes arrive in pieces.
pub fn read(bytes: &[u8], method: &Method, step: usize) -> Outcome {
    let mut arrived: usize = 0;
    let mut at: usize = 0;
    let mut scan = HeadScan::default();
    let head = loop {
        arrived = bytes.len().min(arrived.saturating_add(step));
        let buffer = &bytes[at..arrived];
        match ResponseHead::resume(&mut scan, buffer, method, &HeadLimits::default()) {
            Err(_) => return Outcome::Refused,
            Ok(None) if arrived == bytes.len() => return Outcome::Unfinished(None),
            Ok(None) => {}
            Ok(Some((head, length))) => {
                at += length;
                scan = HeadScan::default();
                if !head.is_interim() {
                    break head;
                }
                // Another head may have arrived already.
                arrived = at;
            }
        }
    };
    let rest = &bytes[at..];
    let (fields, trailers) = (head.fields.to_map(), HeaderMap::new());
    let (version, status) = (head.version, head.status);
    let mut response = Response { version, status, fields, body: Vec::new(), trailers };
    let used = match head.body {
        BodyLength::None => Some(0),
        BodyLength::UntilClose => {
            response.body.extend_from_slice(rest);
            return Outcome::UntilClose(response);
        }
        BodyLength::Known(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            response.body.extend_from_slice(&rest[..length.min(rest.len())]);
            (length <= rest.len()).then_some(length)
        }
        BodyLength::Chunked => match read_chunked(rest, step, &mut response) {
            Ok(used) => used,
            Err(()) => return Outcome::Refused,
        },
    };
    match used {
        None => Outcome::Unfinished(Some(response)),
        Some(used) => {
            let is_persistent = head.is_persistent;
            Outcome::Whole { response, length: at + used, is_persistent }
        }
    }
}

/// The length of the body, if it ends within `bytes`.
fn read_chunked(bytes: &[u8], step: usize, response: &mut Response) -> Result<Option<usize>, ()> {
    let mut decoder = ChunkedDecoder::default();
    let mut at: usize = 0;
    while at < bytes.len() && !decoder.is_finished() {
        let piece = &bytes[at..bytes.len().min(at.saturating_add(step))];
        let Decoded { consumed, data } = decoder.decode(piece).map_err(drop)?;
        assert!(consumed > 0, "a decoder that is not finished reads");
        assert!(data.end <= consumed);
        response.body.extend_from_slice(&piece[data]);
        at += consumed;
    }
    response.trailers = decoder.take_trailers();
    Ok(decoder.is_finished().then_some(at))
}

/// Asserts that the second reading agrees with the first; returns why it refuses the response.
fn second_reading(bytes: &[u8], method: &Method, outcome: &Outcome) -> Option<Refusal> {
    let mut at: usize = 0;
    let head = loop {
        match oracle::head(&bytes[at..], method.as_str()) {
            Reading::Whole(head) => {
                at += head.length;
                let is_interim = head.status < 200 && head.status != 101;
                if !is_interim {
                    break head;
                }
            }
            Reading::Refused(refusal) => {
                assert_eq!(*outcome, Outcome::Refused, "{refusal:?}");
                return Some(refusal);
            }
            Reading::Unfinished => {
                assert_eq!(*outcome, Outcome::Unfinished(None));
                return None;
            }
        }
    };
    let rest = &bytes[at..];
    let mut expected = oracle::ChunkedBody::default();
    let is_whole = match head.framing {
        Framing::None => true,
        Framing::UntilClose => {
            expected.data = rest.to_vec();
            false
        }
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            expected.length = length;
            expected.data = rest[..length.min(rest.len())].to_vec();
            length <= rest.len()
        }
        Framing::Chunked => match oracle::chunked(rest) {
            Reading::Whole(body) => {
                expected = body;
                true
            }
            Reading::Refused(refusal) => {
                assert_eq!(*outcome, Outcome::Refused, "{refusal:?}");
                return Some(refusal);
            }
            // What no later byte can repair may be refused before its line is complete.
            Reading::Unfinished if *outcome == Outcome::Refused => {
                return Some(unfinished_fault(rest));
            }
            Reading::Unfinished => {
                assert!(matches!(outcome, Outcome::Unfinished(Some(_))));
                return None;
            }
        },
    };
    let response = match outcome {
        Outcome::Whole { response, length, is_persistent } => {
            assert!(is_whole);
            assert_eq!((*length, *is_persistent), (at + expected.length, head.is_persistent));
            response
        }
        Outcome::UntilClose(response) => {
            assert_eq!(head.framing, Framing::UntilClose);
            response
        }
        Outcome::Unfinished(Some(response)) => {
            assert!(!is_whole && head.framing != Framing::UntilClose);
            response
        }
        Outcome::Unfinished(None) | Outcome::Refused => panic!("{outcome:?}, but not the second"),
    };
    assert_eq!(response.status.as_u16(), head.status);
    assert_eq!(response.version == Version::HTTP_10, head.is_old);
    assert_eq!(sorted(&response.fields), sorted_again(head.fields, |_| true));
    assert_eq!(response.body, expected.data);
    assert_eq!(
        sorted(&response.trailers),
        sorted_again(expected.trailers, oracle::is_reported_trailer)
    );
    None
}

/// In the last line, which is not complete: another end of it can only be refused as well.
fn unfinished_fault(body: &[u8]) -> Refusal {
    let mut repaired = body.to_vec();
    if repaired.last() == Some(&b'\r') {
        repaired.pop();
    }
    repaired.extend_from_slice(b"\r\n");
    match oracle::chunked(&repaired) {
        Reading::Refused(refusal) => refusal,
        // `\r` at the end was the fault, or the line has another beginning than it may have.
        _ => Refusal::BareCr,
    }
}

/// Fields by name; equal names in their order.
fn sorted(fields: &HeaderMap) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), text(value.as_bytes()))
    };
    sorted_again(fields.iter().map(pair).collect(), |_| true)
}

fn sorted_again(mut fields: Vec<oracle::Field>, keeps: fn(&str) -> bool) -> Vec<oracle::Field> {
    fields.retain(|(name, _)| keeps(name));
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

/// What hyper makes of the bytes.
#[derive(Debug, Default)]
pub struct HyperReading {
    /// The response, if hyper saw its end.
    pub response: Option<Response>,
    /// The response so far, if hyper waits for more of its body.
    pub partial: Option<Response>,
    /// The next request was answered on the same connection, from the byte behind the response.
    pub is_reusable: bool,
}

/// Reads a response with hyper's client, which receives `bytes` in pieces of `step` once it sent
/// its request, and then the end of the connection or nothing.
pub fn read_with_hyper(
    bytes: &[u8],
    is_closed: bool,
    method: &Method,
    step: usize,
) -> HyperReading {
    let mut client =
        HyperClient::connect(Wire { step, is_closed, response: bytes.to_vec(), ..Wire::default() });
    let mut reading = client.exchange(method);
    if reading.response.is_some() {
        let next = client.exchange(&Method::GET).response;
        reading.is_reusable = next.is_some_and(|response| response.body == b"next");
    }
    reading
}

/// The bytes of a connection, each way.
#[derive(Default)]
struct Wire {
    step: usize,
    is_closed: bool,
    response: Vec<u8>,
    sent: usize,
    requests: Vec<u8>,
    /// Grows with everything that happens.
    activity: usize,
}

const NEXT_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext";

impl Wire {
    /// The next piece that the server sends; none while it waits for a request.
    fn next_piece(&mut self, room: usize) -> Option<Vec<u8>> {
        let requests = self.requests.windows(4).filter(|window| *window == b"\r\n\r\n").count();
        if requests == 0 {
            return None;
        }
        if requests > 1 && self.sent == self.response.len() && !self.is_closed {
            self.response.extend_from_slice(NEXT_RESPONSE);
        }
        let rest = &self.response[self.sent..];
        let piece = rest[..rest.len().min(self.step.max(1)).min(room)].to_vec();
        self.sent += piece.len();
        self.activity += piece.len();
        (!piece.is_empty() || self.is_closed).then_some(piece)
    }
}

#[derive(Clone)]
struct Connection(Rc<RefCell<Wire>>);

impl Connection {
    fn wire(&self) -> RefMut<'_, Wire> {
        self.0.borrow_mut()
    }
}

impl hyper::rt::Read for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(piece) = self.wire().next_piece(room.remaining()) else { return Poll::Pending };
        room.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.wire();
        wire.requests.extend_from_slice(bytes);
        wire.activity += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The body of a request without one.
struct NoBody;

impl Body for NoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

/// hyper's client, polled by hand until nothing happens any more: no runtime, no clock.
struct HyperClient {
    wire: Connection,
    sender: SendRequest<NoBody>,
    connection: Option<Pin<Box<http1_client::Connection<Connection, NoBody>>>>,
}

impl HyperClient {
    fn connect(wire: Wire) -> Self {
        let wire = Connection(Rc::new(RefCell::new(wire)));
        let mut builder = http1_client::Builder::new();
        builder.max_headers(oracle::MAX_HEAD_FIELDS);
        let handshake = pin!(builder.handshake(wire.clone()));
        match handshake.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok((sender, connection))) => {
                HyperClient { wire, sender, connection: Some(Box::pin(connection)) }
            }
            _ => panic!("hyper's handshake does nothing"),
        }
    }

    fn exchange(&mut self, method: &Method) -> HyperReading {
        let mut context = Context::from_waker(Waker::noop());
        let request = Request::builder().method(method).uri("/").header("host", "a").body(NoBody);
        let mut head = pin!(self.sender.send_request(request.expect("a request")));
        let mut body: Option<Incoming> = None;
        let mut reading = HyperReading::default();
        let mut idle_turns = 0;
        while idle_turns < 3 {
            let before = self.wire.wire().activity;
            if let Some(connection) = &mut self.connection
                && connection.as_mut().poll(&mut context).is_ready()
            {
                self.connection = None;
            }
            let is_idle = self.wire.wire().activity == before;
            idle_turns = if is_idle { idle_turns + 1 } else { 0 };
            if body.is_none() {
                match head.as_mut().poll(&mut context) {
                    Poll::Pending => continue,
                    Poll::Ready(Err(_)) => return HyperReading::default(),
                    Poll::Ready(Ok(response)) => {
                        let (parts, incoming) = response.into_parts();
                        body = Some(incoming);
                        reading.partial = Some(Response {
                            version: parts.version,
                            status: parts.status,
                            fields: parts.headers,
                            body: Vec::new(),
                            trailers: HeaderMap::new(),
                        });
                    }
                }
            }
            let (Some(incoming), Some(partial)) = (&mut body, &mut reading.partial) else {
                continue;
            };
            while let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(&mut context) {
                idle_turns = 0;
                match frame {
                    None => {
                        reading.response = reading.partial.take();
                        return reading;
                    }
                    Some(Err(_)) => return HyperReading::default(),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => partial.body.extend_from_slice(&data),
                        Err(frame) => {
                            partial.trailers = frame.into_trailers().expect("data or trailers");
                        }
                    },
                }
            }
        }
        reading
    }
}
