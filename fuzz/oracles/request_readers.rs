//! One request, read by `crates/http1`, by the second reading of `request.rs`, and by hyper's
//! server over a connection in memory; [`compare`] asserts what must hold between them.

use std::cell::{RefCell, RefMut};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http1::{
    BodyLength, ChunkedDecoder, Expectation, FieldSlots, HeadScan, RequestHeadRef, find_request_end,
};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::rt::ReadBufCursor;
use hyper::service::service_fn;

use super::oracle::{self, Framing, Reading, Refusal};
use super::request_oracle::{self, RequestRefusal};

/// A head as `crates/http1` reads it.
#[derive(Clone, Debug)]
pub struct ReadHead {
    pub method: Method,
    pub target: String,
    pub origin_form: String,
    pub version: Version,
    pub fields: HeaderMap,
    pub body: BodyLength,
    pub is_persistent: bool,
    pub expectation: Expectation,
}

/// What `crates/http1` makes of the beginning of some bytes.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The request ends within the bytes, at `length`.
    Whole {
        head: Box<ReadHead>,
        body: Vec<u8>,
        trailers: HeaderMap,
        length: usize,
    },
    /// More bytes are needed, of the head or of the body.
    Unfinished,
    Refused,
}

/// An input of the fuzz target `http1_request`: the size of pieces, then the request.
pub fn from_input(input: &[u8]) -> Option<(usize, &[u8])> {
    let (step, request) = input.split_first()?;
    Some((usize::from(*step).max(1), request))
}

/// Asserts that all readers of `bytes` agree, however the bytes are cut into pieces of `step`.
pub fn compare(bytes: &[u8], step: usize) {
    let outcome = read(bytes, usize::MAX);
    let in_pieces = read(bytes, step);
    // The head has no equality; its parts are compared below.
    assert_eq!(format!("{outcome:?}"), format!("{in_pieces:?}"), "pieces make a difference");
    let refusal = second_reading(bytes, &outcome);
    match outcome {
        Outcome::Whole { head, body, trailers, length } => {
            let requests = read_with_hyper(&bytes[..length], NEXT_REQUEST, step);
            // hyper's URI has other rules for the host of an absolute target.
            let is_odd_host =
                !head.target.starts_with('/') && head.target.contains(['%', '[', '_', '~']);
            let Some(first) = requests.first() else {
                assert!(is_odd_host, "hyper accepts the request and sees its end");
                return;
            };
            assert_eq!((&first.method, first.version), (&head.method, head.version));
            assert_eq!(first.fields, head.fields);
            assert_eq!(first.body, body);
            let origin_form = &*head.origin_form;
            let (path, query) =
                origin_form.split_once('?').map_or((origin_form, None), |(p, q)| (p, Some(q)));
            assert_eq!((first.uri.path(), first.uri.query()), (path, query));
            let mut kept = first.trailers.clone();
            let names: Vec<_> = kept.keys().cloned().collect();
            for name in names.iter().filter(|name| !oracle::is_reported_trailer(name.as_str())) {
                kept.remove(name);
            }
            assert_eq!(kept, trailers);
            let next = requests.get(1).map(|request| request.uri.path());
            if head.is_persistent {
                assert_eq!(next, Some("/next"), "hyper reads the next request from the next byte");
            }
            assert!(matches!(next, None | Some("/next")));
            let before = read_with_hyper(&bytes[..length - 1], b"", step);
            assert!(before.is_empty(), "hyper does not see the end earlier");
        }
        Outcome::Unfinished => {
            assert!(read_with_hyper(bytes, b"", step).is_empty(), "hyper sees no end either");
        }
        Outcome::Refused => {
            let refusal = refusal.expect("the second reading refuses it too");
            let is_accepted = !read_with_hyper(bytes, b"", step).is_empty();
            assert!(refusal.is_strictness() || !is_accepted, "hyper accepts despite {refusal:?}");
        }
    }
}

/// Reads a request with `crates/http1` as its bytes arrive in pieces.
pub fn read(bytes: &[u8], step: usize) -> Outcome {
    let mut arrived: usize = 0;
    let mut scan = HeadScan::default();
    let (head, at) = loop {
        arrived = bytes.len().min(arrived.saturating_add(step));
        match find_request_end(&mut scan, &bytes[..arrived], 64 << 10) {
            Err(_) => return Outcome::Refused,
            Ok(Some(end)) => match read_head(&bytes[..end]) {
                Some(head) => break (head, end),
                None => return Outcome::Refused,
            },
            Ok(None) if arrived == bytes.len() => return Outcome::Unfinished,
            Ok(None) => {}
        }
    };
    let rest = &bytes[at..];
    let (mut body, mut trailers, mut used) = (Vec::new(), HeaderMap::new(), 0);
    match head.body {
        BodyLength::None => {}
        BodyLength::UntilClose => panic!("a request does not end with the connection"),
        BodyLength::Known(length) => {
            used = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(data) = rest.get(..used) else { return Outcome::Unfinished };
            body.extend_from_slice(data);
        }
        BodyLength::Chunked => {
            let mut decoder = ChunkedDecoder::default();
            while used < rest.len() && !decoder.is_finished() {
                let piece = &rest[used..rest.len().min(used.saturating_add(step))];
                let Ok(decoded) = decoder.decode(piece) else { return Outcome::Refused };
                body.extend_from_slice(&piece[decoded.data]);
                used += decoded.consumed;
            }
            if !decoder.is_finished() {
                return Outcome::Unfinished;
            }
            trailers = decoder.take_trailers();
        }
    }
    Outcome::Whole { head: Box::new(head), body, trailers, length: at + used }
}

fn read_head(bytes: &[u8]) -> Option<ReadHead> {
    let mut slots = FieldSlots::new();
    let read = RequestHeadRef::parse(bytes, &mut slots).ok()?;
    let owned = read.to_head().expect("the http crate accepts what the parser accepts");
    assert_eq!(owned.target, read.origin_form());
    Some(ReadHead {
        method: owned.method,
        target: read.target.to_owned(),
        origin_form: owned.target,
        version: owned.version,
        fields: owned.fields,
        body: read.body,
        is_persistent: read.is_persistent,
        expectation: read.expectation,
    })
}

/// Asserts that the second reading agrees with the first; returns why it refuses the request.
fn second_reading(bytes: &[u8], outcome: &Outcome) -> Option<RequestRefusal> {
    let expected = match request_oracle::head(bytes) {
        Ok(Reading::Whole(head)) => head,
        Ok(_) => {
            assert!(matches!(outcome, Outcome::Unfinished), "{outcome:?}");
            return None;
        }
        Err(refusal) => {
            assert!(matches!(outcome, Outcome::Refused), "{refusal:?}, {outcome:?}");
            return Some(refusal);
        }
    };
    let rest = &bytes[expected.length..];
    let body = match expected.framing {
        Framing::None => Some((0, Vec::new())),
        Framing::UntilClose => panic!("a request does not end with the connection"),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            rest.get(..length).map(|data| (length, data.to_vec()))
        }
        Framing::Chunked => match oracle::chunked(rest) {
            Reading::Whole(body) => Some((body.length, body.data)),
            Reading::Refused(refusal) => {
                assert!(matches!(outcome, Outcome::Refused), "{refusal:?}, {outcome:?}");
                return Some(RequestRefusal::Head(refusal));
            }
            Reading::Unfinished if matches!(outcome, Outcome::Refused) => {
                // What no later byte can repair; hyper waits for the end as well.
                return Some(RequestRefusal::Head(Refusal::Syntax));
            }
            Reading::Unfinished => None,
        },
    };
    match (outcome, body) {
        (Outcome::Unfinished, None) => {}
        (Outcome::Whole { head, body, length, .. }, Some((used, data))) => {
            assert_eq!(*length, expected.length + used);
            assert_eq!(*body, data);
            assert_eq!((head.method.as_str(), &head.target), (&*expected.method, &expected.target));
            assert_eq!(head.origin_form, expected.origin_form);
            assert_eq!(head.version == Version::HTTP_10, expected.is_old);
            assert_eq!(head.is_persistent, expected.is_persistent);
            let expects = head.expectation == Expectation::Continue;
            assert_eq!(expects, expected.expects_continue);
            let text = |bytes: &[u8]| -> String { oracle::latin1(bytes) };
            let fields = head.fields.iter();
            let mut fields: Vec<_> = fields
                .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
                .collect();
            let mut theirs = expected.fields;
            fields.sort_by(|(one, _), (other, _)| one.cmp(other));
            theirs.sort_by(|(one, _), (other, _)| one.cmp(other));
            assert_eq!(fields, theirs);
        }
        (outcome, body) => panic!("{outcome:?}, but {body:?}"),
    }
    None
}

/// A request as hyper's server sees it.
struct Received {
    method: Method,
    uri: Uri,
    version: Version,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

const NEXT_REQUEST: &[u8] = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

/// The requests that hyper's server reads whole from `bytes` and `next`, in pieces of `step`.
fn read_with_hyper(bytes: &[u8], next: &[u8], step: usize) -> Vec<Received> {
    let wire = Wire { step, incoming: [bytes, next].concat(), read: 0, activity: 0 };
    let connection = Connection(Rc::new(RefCell::new(wire)));
    let received: Rc<RefCell<Vec<Received>>> = Rc::default();
    let service = service_fn(|request: Request<Incoming>| {
        let received = Rc::clone(&received);
        async move {
            if let Some(request) = receive(request).await {
                received.borrow_mut().push(request);
            }
            Ok::<_, Infallible>(Response::new(NoBody))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.max_headers(request_oracle::MAX_REQUEST_FIELDS);
    let mut server = pin!(builder.serve_connection(connection.clone(), service));
    let mut context = Context::from_waker(Waker::noop());
    let mut idle_turns = 0;
    while idle_turns < 3 {
        let before = connection.wire().activity;
        if server.as_mut().poll(&mut context).is_ready() {
            break;
        }
        idle_turns = if connection.wire().activity == before { idle_turns + 1 } else { 0 };
    }
    std::mem::take(&mut *received.borrow_mut())
}

/// Reads a request to its end; `None` if its body is refused.
async fn receive(request: Request<Incoming>) -> Option<Received> {
    let (parts, mut incoming) = request.into_parts();
    let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await {
        match frame.ok()?.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok()?,
        }
    }
    let (method, uri, version) = (parts.method, parts.uri, parts.version);
    Some(Received { method, uri, version, fields: parts.headers, body, trailers })
}

/// What a client sends.
struct Wire {
    step: usize,
    incoming: Vec<u8>,
    read: usize,
    activity: usize,
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
        let mut wire = self.wire();
        let rest = &wire.incoming[wire.read..];
        let length = rest.len().min(wire.step).min(room.remaining());
        if length == 0 {
            return Poll::Pending;
        }
        room.put_slice(&rest[..length]);
        wire.read += length;
        wire.activity += length;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.wire().activity += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The body of a response without one.
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
