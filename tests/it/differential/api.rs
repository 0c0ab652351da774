//! The recording API: it plays the script of each exchange, and keeps what arrives.

use std::fmt;
use std::io::{ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::exchange::{Exchange, FROM_API, Fault, Framing, Timing, chunks};
use super::reader::{Field, Reader, has_member, joined, malformed, printed};
use crate::support::{Random, runtime, wait_until};

/// Time between two parts of what a slow side sends.
pub const SLOW_PAUSE: Duration = Duration::from_millis(3);

/// Time for which the API reads on after it ended a connection, or its response would be lost.
const LINGER: Duration = Duration::from_secs(1);

/// A body, compared with the one that was sent.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    Whole,
    /// So many of its first bytes.
    Prefix(usize),
    Other(Vec<u8>),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Whole => write!(f, "whole"),
            Content::Prefix(length) => write!(f, "{length} bytes"),
            Content::Other(bytes) => write!(f, "other: {}", printed(bytes)),
        }
    }
}

impl Content {
    pub fn of(received: &[u8], sent: &[u8]) -> Content {
        match received {
            _ if received == sent => Content::Whole,
            _ if sent.starts_with(received) => Content::Prefix(received.len()),
            _ => Content::Other(received.to_vec()),
        }
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub number: usize,
    /// It is the request that follows on the client's connection.
    pub is_next: bool,
    /// Its version is HTTP/1.0.
    pub is_http10: bool,
    pub method: String,
    pub target: String,
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub content: Content,
    pub has_trailers: bool,
    /// All of it arrived.
    pub is_complete: bool,
}

struct Shared {
    seed: u64,
    address: SocketAddr,
    arrivals: Mutex<Vec<Arrival>>,
    malformed: Mutex<Vec<String>>,
    /// Connections that have not ended.
    open: AtomicUsize,
}

/// The running API.
pub struct Api {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Api {
    pub fn start(seed: u64) -> Api {
        let listener =
            runtime().block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared {
            seed,
            address,
            arrivals: Mutex::default(),
            malformed: Mutex::default(),
            open: AtomicUsize::new(0),
        });
        let accepting = runtime().spawn(accept(listener, shared.clone()));
        Api { shared, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Everything that arrived, when no connection is open any more.
    pub fn into_arrivals(self) -> (Vec<Arrival>, Vec<String>) {
        wait_until("every connection to the API has ended", || {
            self.shared.open.load(Ordering::SeqCst) == 0
        });
        self.accepting.abort();
        (
            std::mem::take(&mut *self.shared.arrivals.lock()),
            std::mem::take(&mut *self.shared.malformed.lock()),
        )
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.open.fetch_add(1, Ordering::SeqCst);
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let mut side = Side { reader: Reader::new(stream), shared: &shared };
            loop {
                match side.serve().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        if error.kind() == ErrorKind::InvalidData {
                            shared.malformed.lock().push(error.to_string());
                        }
                        break;
                    }
                }
            }
            drop(side);
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// One connection.
struct Side<'s> {
    reader: Reader<TcpStream>,
    shared: &'s Shared,
}

impl Side<'_> {
    /// Reads one request and plays its script; whether the connection is kept.
    async fn serve(&mut self) -> Result<bool> {
        let mut arrival = self.head().await?;
        let mut exchange = Exchange::random(self.shared.seed, arrival.number);
        if arrival.is_http10 {
            exchange.script.suit_http10();
        }
        let closes = has_member(&arrival.fields, "connection", "close")
            || arrival.is_http10 && !has_member(&arrival.fields, "connection", "keep-alive");
        if arrival.is_next {
            self.record(arrival, &[], true);
            let body = exchange.next_content();
            let head = format!(
                "HTTP/1.1 200 OK\r\n{FROM_API}: next\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            self.write(format!("{head}{body}").as_bytes()).await?;
            return Ok(!closes);
        }
        let script = &exchange.script;
        if script.timing != Timing::AfterRequest {
            // If the proxy has left, the request body ends, and what arrived is recorded.
            let _ = self.respond(&exchange).await;
        } else if has_member(&arrival.fields, "expect", "100-continue") {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if script.timing == Timing::EarlyClose {
            let _ = self.reader.stream.shutdown().await;
            let mut body = Vec::new();
            let read = tokio::time::timeout(LINGER, self.body(&mut arrival, &mut body)).await;
            self.record(arrival, &body, matches!(read, Ok(Ok(()))));
            return Ok(false);
        }
        let mut body = Vec::new();
        let read = self.body(&mut arrival, &mut body).await;
        self.record(arrival, &body, read.is_ok());
        read?;
        if script.timing == Timing::AfterRequest {
            self.respond(&exchange).await?;
        }
        let is_kept = script.fault == Fault::None && !script.closes() && !closes;
        if matches!(script.fault, Fault::ResetBeforeHead | Fault::ResetInBody) {
            let linger =
                rustix::net::sockopt::set_socket_linger(&self.reader.stream, Some(Duration::ZERO));
            linger.expect("an option that every socket has");
        } else if !is_kept {
            self.reader.stream.shutdown().await?;
            let _ = tokio::time::timeout(LINGER, self.reader.rest(&mut Vec::new())).await;
        }
        Ok(is_kept)
    }

    async fn head(&mut self) -> Result<Arrival> {
        let line = self.reader.line().await?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let mut parts = text.split(' ');
        let (method, target, version) = (parts.next(), parts.next(), parts.next());
        let (Some(method), Some(target), Some(version), None) =
            (method, target, version, parts.next())
        else {
            return Err(malformed("not a request line", &line));
        };
        if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
            return Err(malformed("not a version", &line));
        }
        let mut fields = self.reader.fields().await?;
        for host in fields.iter_mut().filter(|field| field.name == "host") {
            if host.value == self.shared.address.to_string().as_bytes() {
                host.value = b"the address of the API".to_vec();
            }
        }
        let number = target.split(['/', '?']).nth(2).and_then(|number| number.parse().ok());
        let length = joined(&fields, "content-length");
        let framing = match (length, joined(&fields, "transfer-encoding").as_deref()) {
            (None, None) => Framing::None,
            (Some(length), None) if length.parse::<usize>().is_ok() => Framing::Length,
            (None, Some("chunked")) => Framing::Chunked,
            _ => return Err(malformed("framed in two ways", format!("{fields:?}").as_bytes())),
        };
        Ok(Arrival {
            number: number.ok_or_else(|| malformed("a target that no client sent", &line))?,
            is_http10: version == "HTTP/1.0",
            is_next: target.ends_with("/next-request"),
            method: method.to_owned(),
            target: target.to_owned(),
            fields,
            framing,
            content: Content::Whole,
            has_trailers: false,
            is_complete: false,
        })
    }

    async fn body(&mut self, arrival: &mut Arrival, body: &mut Vec<u8>) -> Result<()> {
        match arrival.framing {
            Framing::Length => {
                let length = joined(&arrival.fields, "content-length").unwrap_or_default();
                self.reader.take(length.parse().expect("a length"), body).await
            }
            Framing::Chunked => {
                let trailers = self.reader.chunked(body).await?;
                arrival.has_trailers = !trailers.is_empty();
                Ok(())
            }
            Framing::None | Framing::UntilClose => Ok(()),
        }
    }

    fn record(&self, arrival: Arrival, body: &[u8], is_complete: bool) {
        let sent = Exchange::random(self.shared.seed, arrival.number).content.0;
        let content = Content::of(body, if arrival.is_next { &[] } else { &sent });
        self.shared.arrivals.lock().push(Arrival { content, is_complete, ..arrival });
    }

    /// Writes the response of the script, as far as its fault lets it.
    async fn respond(&mut self, exchange: &Exchange) -> Result<()> {
        let script = &exchange.script;
        if matches!(script.fault, Fault::CloseBeforeHead | Fault::ResetBeforeHead) {
            return Ok(());
        }
        for status in &script.interim {
            self.write(format!("HTTP/1.1 {status} Interim\r\nLink: </a>\r\n\r\n").as_bytes())
                .await?;
        }
        let (head, mut body) = response_of(exchange);
        if matches!(script.fault, Fault::Truncated | Fault::ResetInBody) {
            // At least one byte is missing.
            let random = &mut Random::new(exchange.seed ^ 1, exchange.number);
            body.truncate(random.below(body.len()));
        }
        if !script.is_slow {
            return self.write(&[head, body].concat()).await;
        }
        let (first, second) = head.split_at(head.len() / 2);
        let (third, fourth) = body.split_at(body.len() / 2);
        for part in [first, second, third, fourth] {
            self.write(part).await?;
            tokio::time::sleep(SLOW_PAUSE).await;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.reader.stream.write_all(bytes).await
    }
}

/// The bytes of the API's response: its head and its body.
fn response_of(exchange: &Exchange) -> (Vec<u8>, Vec<u8>) {
    let script = &exchange.script;
    let version = if script.is_http10 { "1.0" } else { "1.1" };
    let mut head = format!(
        "HTTP/{version} {} {}\r\n{FROM_API}: {}\r\n",
        script.status, script.reason, exchange.number
    )
    .into_bytes();
    for field in &script.fields {
        head.extend_from_slice(field.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(&field.value);
        head.extend_from_slice(b"\r\n");
    }
    let is_announced = has_member(&script.fields, "connection", "close");
    let is_silent = script.framing == Framing::UntilClose && !script.has_body(exchange.method);
    if !is_announced && (is_silent || script.timing == Timing::EarlyClose) {
        head.extend_from_slice(b"Connection: close\r\n");
    }
    match script.framing {
        Framing::Length => head.extend_from_slice(
            format!("Content-Length: {}\r\n", script.content.0.len()).as_bytes(),
        ),
        Framing::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
    head.extend_from_slice(b"\r\n");
    if !script.has_body(exchange.method) {
        return (head, Vec::new());
    }
    let random = &mut Random::new(!exchange.seed, exchange.number);
    let trailer: &[u8] = if random.happens(15) { b"X-Trailer: 1\r\n" } else { b"" };
    match script.framing {
        Framing::Chunked => (head, chunks(random, &script.content.0, trailer)),
        _ => (head, script.content.0.clone()),
    }
}
