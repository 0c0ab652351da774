//! HTTP/2 clients that send far more control frames, resets or malformed streams than their
//! requests need: the connection ends within a second, and other clients are served as before.

use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;

/// ENHANCE_YOUR_CALM (RFC 9113 section 7).
const CALM: u32 = 11;

/// Sends what belongs to one stream.
type Send = fn(&mut Frames, u32) -> std::io::Result<()>;

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    (origin, gateway)
}

fn head(method: &'static str, path: &'static str) -> Vec<u8> {
    fields(&[
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":path", path.as_bytes()),
        (b":authority", b"x"),
        (b"authorization", b"Bearer tok-a"),
    ])
}

/// Reads to the end of the connection; the code of the last GOAWAY.
fn ended_with(frames: &mut Frames) -> Option<u32> {
    let mut code = None;
    while let Some(frame) = frames.next() {
        if frame.kind == Frames::GOAWAY {
            code = frame
                .payload
                .get(4..8)
                .map(|code| u32::from_be_bytes(code.try_into().expect("four bytes")));
        }
    }
    code
}

/// Sends frames until the gateway has closed. How many were accepted.
fn flood(
    frames: &mut Frames,
    mut send: impl FnMut(&mut Frames, u32) -> std::io::Result<()>,
) -> u32 {
    (0..200_000)
        .take_while(|number| send(frames, *number).is_ok())
        .count()
        .try_into()
        .expect("a number")
}

#[test]
fn control_frame_flood_ends_with_enhance_your_calm() {
    let (_origin, gateway) = scene();
    let memory = gateway.memory();
    let floods: [(&str, u8, u8, u32, &[u8]); 8] = [
        ("PING", Frames::PING, 0, 0, b"12345678"),
        ("acknowledged PING", Frames::PING, 1, 0, b"12345678"),
        ("SETTINGS", Frames::SETTINGS, 0, 0, &[]),
        ("SETTINGS of the window", Frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]),
        ("SETTINGS of the table", Frames::SETTINGS, 0, 0, &[0, 1, 0, 0, 1, 0]),
        ("WINDOW_UPDATE", WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ("PRIORITY", PRIORITY, 0, 5, &[0, 0, 0, 0, 16]),
        ("an unknown type", 0xfa, 0, 0, b"x"),
    ];
    for (name, kind, flags, stream, payload) in floods {
        for with_request in [false, true] {
            let mut frames = Frames::open(&gateway.client(), &[]);
            if with_request {
                frames.send(Frames::HEADERS, 5, 1, &head("GET", P)).expect("an open connection");
                assert!(frames.outcome(1).is_ok(), "{name}");
            }
            let began = Instant::now();
            let sent = flood(&mut frames, |frames, _| frames.send(kind, flags, stream, payload));
            let code = ended_with(&mut frames);
            let took = began.elapsed();
            assert_eq!(code, Some(CALM), "{name}, {sent} frames");
            assert!(took < Duration::from_secs(2), "{name}: {took:?}, {sent} frames");
        }
    }
    assert!(gateway.memory() < memory + (32 << 10), "{} KiB, {memory} before", gateway.memory());
    assert!(gateway.client().get(P).bearer("tok-a").send().assert_status(200).is_hit());
}

#[test]
fn empty_data_and_continuation_floods_end_with_calm() {
    let (_origin, gateway) = scene();
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames
        .send(Frames::HEADERS, Frames::END_HEADERS, 1, &head("POST", "/x"))
        .expect("an open connection");
    flood(&mut frames, |frames, _| frames.send(Frames::DATA, 0, 1, b""));
    assert_eq!(ended_with(&mut frames), Some(CALM), "empty DATA");
    // CONTINUATION frames of many heads, each within the limit of one head.
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames
        .send(Frames::HEADERS, Frames::END_STREAM, 1, &head("GET", "/x"))
        .expect("an open connection");
    flood(&mut frames, |frames, _| frames.send(Frames::CONTINUATION, 0, 1, b""));
    assert_eq!(ended_with(&mut frames), Some(CALM), "CONTINUATION");
}

#[test]
fn client_that_pings_once_a_second_stays_connected() {
    let (_origin, gateway) = scene();
    let mut frames = Frames::open(&gateway.client(), &[]);
    // A minute of pings within a few seconds.
    for number in 0..60_u64 {
        frames.send(Frames::PING, 0, 0, &number.to_be_bytes()).expect("an open connection");
        while let Some(frame) = frames.next() {
            assert_ne!(frame.kind, Frames::GOAWAY, "ping {number}");
            if frame.kind == Frames::PING {
                assert_eq!(frame.payload, number.to_be_bytes());
                break;
            }
        }
        pace(Duration::from_millis(50));
    }
    frames.send(Frames::HEADERS, 5, 1, &head("GET", P)).expect("an open connection");
    assert!(frames.outcome(1).is_ok());
}

#[test]
fn streams_that_must_be_reset_end_the_connection_early() {
    let (origin, gateway) = scene();
    let memory = gateway.memory();
    let malformed: [(&str, Send); 4] = [
        ("a window that overflows", |frames, stream| {
            frames.send(Frames::HEADERS, Frames::END_HEADERS, stream, &head("POST", "/x"))?;
            frames.send(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())
        }),
        ("a stream that depends on itself", |frames, stream| {
            frames.send(Frames::HEADERS, Frames::END_HEADERS, stream, &head("POST", "/x"))?;
            frames.send(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[16]].concat())
        }),
        ("DATA shorter than announced", |frames, stream| {
            let mut block = head("POST", "/x");
            block.extend(fields(&[(b"content-length", b"9")]));
            frames.send(Frames::HEADERS, Frames::END_HEADERS, stream, &block)?;
            frames.send(Frames::DATA, Frames::END_STREAM, stream, b"abc")
        }),
        ("a request that is reset at once", |frames, stream| {
            frames.send(Frames::HEADERS, 5, stream, &head("GET", "/x"))?;
            frames.send(Frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes())
        }),
    ];
    for (name, send) in malformed {
        for _ in 0..3 {
            let before = origin.requests();
            let mut frames = Frames::open(&gateway.client(), &[]);
            flood(&mut frames, |frames, number| send(frames, number * 2 + 1));
            assert_eq!(ended_with(&mut frames), Some(CALM), "{name}");
            let asked = origin.requests() - before;
            assert!(asked < 300, "{name}: {asked} requests reached the API");
        }
    }
    assert!(gateway.memory() < memory + (24 << 10), "{} KiB, {memory} before", gateway.memory());
    assert!(gateway.client().get(P).bearer("tok-a").send().assert_status(200).is_hit());
}
