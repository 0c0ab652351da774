//! Random request bodies over HTTP/1.1 and HTTP/2, against an API that reads the raw bytes of its
//! connections strictly. Each request is one well-formed message at the API with the body that the
//! client sent, or none, or a truncated one on a connection that ends. Each response belongs to the
//! request of the client that receives it.
//!
//! `BODIES` sets the number of bodies and `SEED` the random numbers; a failure prints both the seed
//! and the request. The timing of the threads is not repeated.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::support::*;

/// Bodies of a run without `BODIES`.
const BODIES: usize = 400;

/// Clients that send bodies at the same time, each on kept connections.
const SENDERS: usize = 3;

/// Clients that compare responses meanwhile.
const READERS: usize = 2;

/// Requests on one connection of a client.
const MAX_REQUESTS: usize = 8;

/// Bytes of bodies on one connection of HTTP/2: its window, which the client does not watch.
const MAX_BYTES: usize = 60_000;

const TOKEN: (&str, &str) = ("authorization", "Bearer tok-viewer");

/// A body that the next request on a connection must not become.
const HIDDEN: &[u8] = b"GET /x/hidden HTTP/1.1\r\nHost: a\r\n\r\n";

/// A piece of a body.
fn piece(random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0 | 1 => Vec::new(),
        2 => HIDDEN.to_vec(),
        3 => b"0\r\n\r\n".to_vec(),
        4 => br#"{"name":"#.to_vec(),
        5 => (0..random.below(9_000)).map(|_| random.byte()).collect(),
        _ => (0..=random.below(40)).map(|_| random.byte()).collect(),
    }
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// With its last piece, or without a body.
    Whole,
    /// With an empty DATA frame, or with the last chunk in a separate write.
    Empty,
    Trailers,
    /// The announced length is smaller than the body.
    Short,
    /// The announced length is greater than the body.
    Long,
    /// The client resets the stream or the connection within the body.
    Reset,
    /// The client closes the connection within the body.
    Closed,
}

/// One request with its body.
struct Case {
    seed: u64,
    number: usize,
    is_http2: bool,
    method: &'static str,
    target: String,
    length: Option<usize>,
    is_json: bool,
    /// Whether and how the API responds before it reads the body.
    manner: &'static str,
    pieces: Vec<Vec<u8>>,
    ending: Ending,
}

impl Case {
    fn random(seed: u64, number: usize) -> Case {
        let mut random = Random::new(seed, number);
        let methods = ["POST", "POST", "PUT", "PATCH", "DELETE", "GET", "REPORT", "OPTIONS"];
        let endings = [
            (40, Ending::Whole),
            (60, Ending::Empty),
            (75, Ending::Trailers),
            (80, Ending::Short),
            (85, Ending::Long),
            (95, Ending::Reset),
            (100, Ending::Closed),
        ];
        let drawn = random.below(100);
        let ending = endings.iter().find(|(below, _)| drawn < *below).expect("a percentage").1;
        let pieces: Vec<Vec<u8>> = (0..random.below(6)).map(|_| piece(&mut random)).collect();
        let mut case = Case {
            seed,
            number,
            is_http2: random.happens(60),
            method: random.one_of(&methods),
            target: random
                .one_of(&["/x/b", "/x/b", "/employee/b", "/customer/b", "/log/b"])
                .to_owned(),
            length: None,
            is_json: random.happens(30),
            manner: random.one_of(&["", "", "", "", "", "", "early", "close"]),
            pieces,
            ending,
        };
        case.target += &number.to_string();
        if random.happens(25) {
            case.target = name_of(&customer(number));
        }
        let sent = case.content().len();
        case.length = match case.ending {
            Ending::Short => {
                // Over HTTP/1.1 the rest is a request, whatever the client meant.
                case.pieces.retain(|piece| piece != HIDDEN);
                case.pieces.push(b"rest".to_vec());
                Some(random.below(case.content().len()))
            }
            Ending::Long => Some(sent + 1 + random.below(50)),
            Ending::Trailers if !case.is_http2 => None,
            _ => random.happens(40).then_some(sent),
        };
        let is_endless = !case.is_http2 && case.length == Some(0);
        if is_endless && matches!(case.ending, Ending::Reset | Ending::Closed) {
            case.ending = Ending::Whole;
        }
        case
    }

    /// An upload without a length that ends with an empty DATA frame.
    fn upload(seed: u64, number: usize) -> Case {
        let mut random = Random::new(seed, number);
        let pieces = (0..random.below(4)).map(|_| piece(&mut random)).collect();
        let route = random.one_of(&["/x/b", "/customer/b"]);
        Case {
            seed,
            number,
            is_http2: true,
            method: "POST",
            target: format!("{route}{number}"),
            length: None,
            is_json: false,
            manner: "",
            pieces,
            ending: Ending::Empty,
        }
    }

    fn content(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    /// The gateway asks the API itself, without the client's body and fields.
    fn is_intercepted(&self) -> bool {
        self.method == "GET" && self.target.ends_with("/name")
    }

    /// The response is the API's, and the message is complete when it arrives.
    fn is_certain(&self) -> bool {
        let ends = matches!(self.ending, Ending::Whole | Ending::Empty | Ending::Trailers);
        ends && (self.manner.is_empty() || self.is_intercepted())
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let (name, value) = TOKEN;
        let mut fields = vec![(name, value.to_owned())];
        fields.extend(self.length.map(|length| ("content-length", length.to_string())));
        fields.extend(self.is_json.then(|| ("content-type", "application/json".to_owned())));
        fields.extend((!self.manner.is_empty()).then(|| (MANNER, self.manner.to_owned())));
        fields
    }

    /// The bytes of HTTP/1.1: the head, the body, and what ends a chunked body.
    fn http1(&self, random: &mut Random) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: a\r\n", self.method, self.target);
        self.fields().iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if self.length.is_some() {
            return ((head + "\r\n").into_bytes(), self.content(), Vec::new());
        }
        head += "Transfer-Encoding: chunked\r\n\r\n";
        let mut body = Vec::new();
        for piece in self.pieces.iter().filter(|piece| !piece.is_empty()) {
            let extension = random.one_of(&["", "", ";a=b", ";a=\"b;c\""]);
            let size = piece.len();
            let line = match random.below(3) {
                0 => format!("{size:X}{extension}\r\n"),
                1 => format!("00{size:x}{extension}\r\n"),
                _ => format!("{size:x}{extension}\r\n"),
            };
            body.extend_from_slice(line.as_bytes());
            body.extend_from_slice(piece);
            body.extend_from_slice(b"\r\n");
        }
        let trailer = if self.ending == Ending::Trailers { "X-Trailer: 1\r\n" } else { "" };
        (head.into_bytes(), body, format!("0\r\n{trailer}\r\n").into_bytes())
    }

    /// The response, if there is one, belongs to this request.
    fn check_response(&self, response: Option<&(u16, Vec<u8>)>) {
        let shown = response.map(|(status, body)| (status, String::from_utf8_lossy(body)));
        let target = response.and_then(|(_, body)| target_of(body));
        let is_own = target.as_ref().is_none_or(|target| *target == self.target);
        assert!(is_own, "the response to another request: {shown:?}");
        if self.is_certain() {
            assert!(
                response.is_some_and(|(status, _)| *status == 200),
                "not its response: {shown:?}"
            );
            assert!(target.is_some(), "not its response: {shown:?}");
        }
    }

    /// What the API received for this request is one message, or a part of one.
    fn check_messages(&self, messages: &[Message]) {
        let most = if self.is_certain() { messages.len() == 1 } else { messages.len() <= 1 };
        assert!(most, "{} messages at the API: {messages:#?}", messages.len());
        let Some(message) = messages.first() else { return };
        assert_eq!(message.method, self.method);
        if self.is_intercepted() {
            assert_eq!((&*message.body, message.complete), (&b""[..], true));
            return;
        }
        let content = self.content();
        if !message.complete {
            assert!(!self.is_certain(), "a truncated message");
            assert!(content.starts_with(&message.body), "other bytes: {message:?}");
            return;
        }
        let announced = self.length.unwrap_or(content.len());
        let is_possible = match self.ending {
            Ending::Long => false,
            // HTTP/2 announced all of it before the reset.
            Ending::Reset | Ending::Closed => self.is_http2 && self.length == Some(content.len()),
            _ => true,
        };
        assert!(is_possible, "a complete message of a request that did not end: {message:?}");
        assert_eq!(message.body, &content[..announced.min(content.len())], "another body");
    }
}

/// Prints a request if its check panics.
struct Shown<'c>(&'c Case);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Case {
            seed,
            number,
            is_http2,
            method,
            target,
            length,
            is_json,
            manner,
            pieces,
            ending,
        } = self.0;
        let protocol = if *is_http2 { "HTTP/2" } else { "HTTP/1.1" };
        let pieces: Vec<String> =
            pieces.iter().map(|piece| piece.escape_ascii().to_string()).collect();
        eprintln!(
            "SEED={seed}, request {number}: {protocol} {method} {target}, length {length:?}, JSON {is_json}, \
             manner {manner:?}, ending {ending:?}, pieces {pieces:?}"
        );
    }
}

/// The target of the request that the API responded to; `None` in a response of the gateway's own.
fn target_of(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    json["target"].as_str().map(str::to_owned)
}

/// A client that sends bodies on kept connections.
struct Sender {
    client: Client,
    http1: Option<(Connection, usize)>,
    http2: Option<Streams>,
}

struct Streams {
    frames: Frames,
    next: u32,
    requests: usize,
    bytes: usize,
}

impl Sender {
    fn new(client: Client) -> Sender {
        Sender { client, http1: None, http2: None }
    }

    /// Sends a request and reads its response: its status and body.
    fn send(&mut self, case: &Case) -> Option<(u16, Vec<u8>)> {
        let mut random = Random::new(!case.seed, case.number);
        if case.is_http2 {
            self.send_http2(case, &mut random)
        } else {
            self.send_http1(case, &mut random)
        }
    }

    fn send_http1(&mut self, case: &Case, random: &mut Random) -> Option<(u16, Vec<u8>)> {
        let (head, body, end) = case.http1(random);
        let breaks = matches!(case.ending, Ending::Reset | Ending::Closed);
        let mut bytes = [head.clone(), body].concat();
        if breaks {
            // Of a body with a length, at least one byte is missing.
            let most = bytes.len() - head.len() - usize::from(end.is_empty());
            bytes.truncate(head.len() + random.below(most + 1));
        }
        let kept = self.http1.take().filter(|(_, requests)| *requests < MAX_REQUESTS);
        let (mut connection, requests) = kept.unwrap_or_else(|| (self.client.connect(), 0));
        if !breaks && case.ending != Ending::Empty {
            bytes.extend_from_slice(&end);
        }
        for piece in cut(&bytes, random) {
            connection.send_raw(piece);
            pause(random);
        }
        if case.ending == Ending::Empty {
            connection.send_raw(&end);
        }
        match case.ending {
            Ending::Reset => {
                connection.reset();
                return None;
            }
            Ending::Closed if random.happens(50) => return None,
            Ending::Closed | Ending::Long => connection.end_of_sending(),
            _ => {}
        }
        let kind = if case.is_intercepted() { Kind::Intercepted } else { Kind::Forwarded };
        let response = connection.read(case.method, kind)?;
        let is_kept = case.is_certain() && response.header("connection") != Some("close");
        self.http1 = is_kept.then_some((connection, requests + 1));
        response.broken_off.is_none().then_some((response.status, response.body))
    }

    fn send_http2(&mut self, case: &Case, random: &mut Random) -> Option<(u16, Vec<u8>)> {
        let size = case.content().len() + 256 * case.pieces.len();
        let has_room = |s: &Streams| s.requests < MAX_REQUESTS && s.bytes + size <= MAX_BYTES;
        let mut streams = self.http2.take().filter(has_room).unwrap_or_else(|| Streams {
            frames: Frames::open(&self.client, &[]),
            next: 1,
            requests: 0,
            bytes: 0,
        });
        let stream = streams.next;
        (streams.next, streams.requests, streams.bytes) =
            (stream + 2, streams.requests + 1, streams.bytes + size);
        for (kind, flags, payload) in frames_of(case, random) {
            // The response decides if the gateway has closed the connection.
            let _ = streams.frames.send(kind, flags, stream, &payload);
            pause(random);
        }
        if case.ending == Ending::Closed {
            return None;
        }
        if case.ending == Ending::Reset {
            self.http2 = Some(streams);
            return None;
        }
        let response = response_on(&mut streams.frames, stream);
        self.http2 = case.is_certain().then_some(streams);
        response
    }
}

/// The frames of a request: their kinds, flags and payloads.
fn frames_of(case: &Case, random: &mut Random) -> Vec<(u8, u8, Vec<u8>)> {
    let list = [
        (":method", case.method),
        (":scheme", "http"),
        (":path", &case.target),
        (":authority", "a"),
    ];
    let more = case.fields();
    let more = more.iter().map(|(name, value)| (*name, value.as_str()));
    let list: Vec<(&[u8], &[u8])> = list
        .into_iter()
        .chain(more)
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let mut frames = vec![(Frames::HEADERS, Frames::END_HEADERS, fields(&list))];
    for piece in &case.pieces {
        frames.push(data(piece, random));
    }
    match case.ending {
        Ending::Reset => {
            // CANCEL (RFC 9113 section 7).
            frames.truncate(1 + random.below(frames.len()));
            frames.push((Frames::RST_STREAM, 0, 8_u32.to_be_bytes().to_vec()));
        }
        Ending::Closed => frames.truncate(1 + random.below(frames.len())),
        Ending::Empty => {
            let (kind, flags, payload) = data(b"", random);
            frames.push((kind, flags | Frames::END_STREAM, payload));
        }
        Ending::Trailers => {
            frames.push((
                Frames::HEADERS,
                Frames::END_HEADERS | Frames::END_STREAM,
                fields(&[(b"x-trailer", b"1")]),
            ));
        }
        Ending::Whole | Ending::Short | Ending::Long => {
            frames.last_mut().expect("a head").1 |= Frames::END_STREAM;
        }
    }
    frames
}

/// A DATA frame, some of them padded.
fn data(piece: &[u8], random: &mut Random) -> (u8, u8, Vec<u8>) {
    const PADDED: u8 = 8;
    if random.happens(80) {
        return (Frames::DATA, 0, piece.to_vec());
    }
    let padding = random.byte();
    (Frames::DATA, PADDED, [&[padding], piece, &vec![0; padding.into()]].concat())
}

/// The status and the body of a response that ends; 0 is a status that the static table does not
/// have (RFC 7541 appendix A).
fn response_on(frames: &mut Frames, stream: u32) -> Option<(u16, Vec<u8>)> {
    let (mut status, mut body) = (0, Vec::new());
    loop {
        let frame = frames.next()?;
        if frame.stream != stream {
            continue;
        }
        match frame.kind {
            Frames::HEADERS => status = if frame.payload.first() == Some(&0x88) { 200 } else { 0 },
            Frames::DATA => body.extend_from_slice(&frame.payload),
            Frames::RST_STREAM => return None,
            _ => continue,
        }
        if frame.flags & Frames::END_STREAM != 0 {
            return Some((status, body));
        }
    }
}

/// Cuts bytes at up to four random places.
fn cut<'b>(bytes: &'b [u8], random: &mut Random) -> Vec<&'b [u8]> {
    let mut cuts: Vec<usize> = (0..random.below(5)).map(|_| random.below(bytes.len())).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Separates some writes in time, so that the gateway reads them one by one.
fn pause(random: &mut Random) {
    if random.happens(40) {
        pace(std::time::Duration::from_micros(random.next() % 1_500));
    }
}

/// Sends GETs with different targets until all bodies are sent, and compares each response with
/// its request; how many were compared, and how many received no response of the API.
fn compare(
    client: &Client,
    recorder: &Recorder,
    reader: usize,
    done: &AtomicBool,
) -> (usize, usize) {
    let (mut compared, mut failed) = (0, 0);
    let mut kept: Option<Connection> = None;
    while !done.load(Ordering::Relaxed) {
        let route = ["/x/get", "/customer/get"][compared % 2];
        let target = format!("{route}-{reader}-{compared}");
        compared += 1;
        let mut connection = kept.take().unwrap_or_else(|| client.connect());
        connection.send_raw(client.get(&target).bearer("tok-viewer").bytes());
        let Some(response) = connection.read("GET", Kind::Forwarded) else {
            failed += 1;
            continue;
        };
        match target_of(&response.body) {
            Some(answered) => {
                assert_eq!(answered, target, "a response to another request: {response:#?}")
            }
            None => {
                failed += 1;
                eprintln!("no response of the API to {target}: {response:#?}");
            }
        }
        assert!(recorder.take(&target).len() <= 1, "{target} arrived twice");
        kept = (response.header("connection") != Some("close")).then_some(connection);
    }
    (compared, failed)
}

/// Checks what arrived at the API after its response was read; how many requests arrived whole, in
/// part and not at all.
fn judge(recorder: &Recorder, cases: HashMap<String, Case>) -> [usize; 3] {
    let mut messages = HashMap::<String, Vec<Message>>::new();
    recorder
        .take_all()
        .into_iter()
        .for_each(|m| messages.entry(m.target.clone()).or_default().push(m));
    let (mut whole, mut truncated, mut absent) = (0, 0, 0);
    for (target, case) in cases {
        let rest = messages.remove(&target).unwrap_or_default();
        let _shown = Shown(&case);
        if case.is_certain() {
            assert!(rest.is_empty(), "arrived again: {rest:#?}");
            whole += 1;
            continue;
        }
        case.check_messages(&rest);
        match rest.first() {
            Some(message) if message.complete => whole += 1,
            Some(_) => truncated += 1,
            None => absent += 1,
        }
    }
    assert!(messages.is_empty(), "messages that no client sent: {messages:#?}");
    [whole, truncated, absent]
}

/// Sends the bodies and checks everything.
fn run(bodies: usize, case_of: fn(u64, usize) -> Case) {
    let given = std::env::var("SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
    let origin = Origin::start();
    let recorder = Recorder::start();
    let gateway = Gateway::with(&origin, &recorder.config());
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let later = Mutex::new(HashMap::new());
    let send = || {
        let mut sender = Sender::new(gateway.client());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= bodies {
                return;
            }
            let case = case_of(seed, number);
            let shown = Shown(&case);
            let response = sender.send(&case);
            assert_eq!(recorder.malformed(), [""; 0]);
            case.check_response(response.as_ref());
            if case.is_certain() {
                case.check_messages(&recorder.take(&case.target));
            }
            drop(shown);
            later.lock().insert(case.target.clone(), case);
        }
    };
    let (compared, failed) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (client, recorder, done) = (gateway.client(), &recorder, &done);
                scope.spawn(move || compare(&client, recorder, reader, done))
            })
            .collect();
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
        let sent: Vec<_> = senders.into_iter().map(|sender| sender.join().is_ok()).collect();
        done.store(true, Ordering::Relaxed);
        let compared: Vec<_> = readers.into_iter().map(|reader| reader.join().ok()).collect();
        assert!(sent.into_iter().all(|is_ok| is_ok), "SEED={seed}: a body failed");
        let counts = compared
            .iter()
            .map(|counts| counts.unwrap_or_else(|| panic!("SEED={seed}: a GET failed")));
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    });
    recorder.wait_until_settled();
    drop(gateway);
    recorder.wait_until_idle();
    assert_eq!(recorder.malformed(), [""; 0], "SEED={seed}");
    assert_eq!(failed, 0, "SEED={seed}: GETs without a response");
    let cases = later.into_inner();
    let http2 = cases.values().filter(|case| case.is_http2).count();
    let [whole, truncated, absent] = judge(&recorder, cases);
    println!(
        "SEED={seed}: {bodies} bodies ({http2} over HTTP/2), at the API {whole} whole, {truncated} \
         truncated, {absent} absent; {compared} GETs compared, 0 mixed up"
    );
}

#[test]
fn random_bodies_each_arrive_as_one_message() {
    run(
        std::env::var("BODIES").map_or(BODIES, |bodies| bodies.parse().expect("a number")),
        Case::random,
    );
}

#[test]
fn thousand_uploads_with_empty_ends_get_their_own_responses() {
    run(1_000, Case::upload);
}
