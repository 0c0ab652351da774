//! The client's side of an exchange, over HTTP/1 and HTTP/2, and what it receives.

use std::future::{Future, poll_fn};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::api::{Content, SLOW_PAUSE};
use super::exchange::{Exchange, FROM_API, Framing, Leaving, Next, Protocol};
use super::reader::{Field, Reader, has_member, joined, malformed};
use crate::support::{PATIENCE, Random};

/// Time for which a client waits for `100 Continue` before it sends its body all the same (RFC 9110
/// section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Time in which a connection ends that is not kept.
const CLOSE_WAIT: Duration = Duration::from_secs(8);

/// How a response ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Complete,
    /// Within the body.
    Truncated,
    /// Before the head.
    NoResponse,
    /// The client left before.
    Left,
    Malformed(String),
}

/// What a client received.
#[derive(Clone, Debug)]
pub struct Received {
    pub interim: Vec<u16>,
    pub status: u16,
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub content: Content,
    pub end: End,
    /// The connection stays open for a next request.
    pub is_kept: bool,
    /// What came behind the response although the connection was to end.
    pub surplus: Vec<u8>,
    /// The status of the next response, and whether it is the right one.
    pub next: Option<(u16, bool)>,
}

impl Received {
    fn nothing(end: End) -> Received {
        Received {
            interim: Vec::new(),
            status: 0,
            fields: Vec::new(),
            framing: Framing::None,
            content: Content::Whole,
            end,
            is_kept: false,
            surplus: Vec::new(),
            next: None,
        }
    }

    /// The response was made by the API, not by the proxy.
    pub fn is_from_api(&self) -> bool {
        self.fields.iter().any(|field| field.name == FROM_API)
    }
}

/// Plays the client's side.
pub async fn play(exchange: &Exchange, address: SocketAddr) -> Received {
    let played = async {
        match exchange.protocol {
            Protocol::Http2 => play_http2(exchange, address).await,
            Protocol::Http10 | Protocol::Http11 => play_http1(exchange, address).await,
        }
    };
    match tokio::time::timeout(PATIENCE / 2, played).await {
        Ok(Ok(received)) => received,
        Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => {
            Received::nothing(End::Malformed(error.to_string()))
        }
        Ok(Err(_)) => Received::nothing(End::NoResponse),
        Err(_) => Received::nothing(End::Malformed("no end in time".to_owned())),
    }
}

/// What a client knows of the response while it sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    Continue,
    Final,
}

async fn play_http1(exchange: &Exchange, address: SocketAddr) -> Result<Received> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (seen, to_see) = watch::channel(Seen::Nothing);
    let (read, write) = stream.split();
    let mut reader = Reader::new(read);
    let sending = send_http1(exchange, write, to_see);
    let outcome = if exchange.is_read() {
        let (sent, received) = tokio::join!(sending, receive_http1(exchange, &mut reader, &seen));
        // The response decides if the proxy has closed the connection.
        let _ = sent;
        received
    } else {
        sending.await?;
        if exchange.leaving == Leaving::ResetsInResponse {
            let _ = tokio::time::timeout(PATIENCE, reader.fill()).await;
        }
        Ok(Received::nothing(End::Left))
    };
    let resets = matches!(
        exchange.leaving,
        Leaving::ResetsInBody | Leaving::ResetsAfterRequest | Leaving::ResetsInResponse
    );
    if resets {
        let linger = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        linger.expect("an option that every socket has");
    }
    let mut received = outcome?;
    if exchange.next == Next::AfterResponse && received.is_kept && received.end == End::Complete {
        stream.write_all(next_http1(exchange).as_bytes()).await?;
        let mut reader = Reader::new(&mut stream);
        received.next = Some(receive_next(exchange, &mut reader).await);
    }
    Ok(received)
}

fn next_http1(exchange: &Exchange) -> String {
    format!("GET {} HTTP/1.1\r\nHost: api.example\r\n\r\n", exchange.next_target())
}

/// Writes the request, or the part of it that is sent before the client leaves.
async fn send_http1(
    exchange: &Exchange,
    mut write: impl AsyncWrite + Unpin,
    mut seen: watch::Receiver<Seen>,
) -> Result<()> {
    let head = exchange.http1_head();
    let mut body = exchange.http1_body();
    let random = &mut Random::new(exchange.seed ^ 2, exchange.number);
    if !exchange.is_sent() {
        body.truncate(random.below(body.len()));
    }
    if exchange.expects {
        write.write_all(&head).await?;
        let is_final = async {
            seen.wait_for(|seen| *seen != Seen::Nothing)
                .await
                .is_ok_and(|seen| *seen == Seen::Final)
        };
        if tokio::time::timeout(CONTINUE_WAIT, is_final).await.unwrap_or(false) {
            return Ok(());
        }
        write.write_all(&body).await?;
    } else {
        let mut bytes = [head, body].concat();
        if exchange.next == Next::AtOnce {
            bytes.extend_from_slice(next_http1(exchange).as_bytes());
        }
        for piece in cut(&bytes, random) {
            write.write_all(piece).await?;
            if exchange.is_slow {
                tokio::time::sleep(SLOW_PAUSE).await;
            }
        }
    }
    if exchange.leaving == Leaving::HalfCloses {
        write.shutdown().await?;
    }
    Ok(())
}

/// Cuts bytes at up to four random places.
fn cut<'b>(bytes: &'b [u8], random: &mut Random) -> Vec<&'b [u8]> {
    let mut cuts: Vec<usize> =
        (0..random.below(5)).map(|_| random.below(bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Reads the response, and the next one if that was pipelined.
async fn receive_http1<R: AsyncRead + Unpin>(
    exchange: &Exchange,
    reader: &mut Reader<R>,
    seen: &watch::Sender<Seen>,
) -> Result<Received> {
    let mut received = Received::nothing(End::Complete);
    let is_http11 = read_head(reader, &mut received, seen).await?;
    let mut body = Vec::new();
    if exchange.is_slow {
        tokio::time::sleep(SLOW_PAUSE).await;
    }
    if let Err(error) = read_body(exchange, reader, &mut received, &mut body).await {
        received.end = match error.kind() {
            ErrorKind::InvalidData => End::Malformed(error.to_string()),
            _ => End::Truncated,
        };
    }
    received.content =
        Content::of(&body, if received.is_from_api() { &exchange.script.content.0 } else { b"" });
    let is_open = has_member(&received.fields, "connection", "keep-alive")
        || is_http11 && !has_member(&received.fields, "connection", "close");
    let asks_for_close = has_member(&exchange.fields, "connection", "close");
    received.is_kept =
        is_open && received.end == End::Complete && received.framing != Framing::UntilClose;
    if received.end != End::Complete {
        return Ok(received);
    }
    if received.is_kept && exchange.next == Next::AtOnce && !asks_for_close {
        received.next = Some(receive_next(exchange, reader).await);
    } else if !received.is_kept && received.framing != Framing::UntilClose {
        let rest = tokio::time::timeout(CLOSE_WAIT, reader.rest(&mut received.surplus)).await;
        if rest.is_err() {
            received.end = End::Malformed("the connection does not end".to_owned());
        }
    }
    Ok(received)
}

/// Reads interim heads and the final one; whether that is of HTTP/1.1.
async fn read_head<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    received: &mut Received,
    seen: &watch::Sender<Seen>,
) -> Result<bool> {
    loop {
        let line = reader.line().await?;
        let fields = reader.fields().await?;
        let is_http11 = line.starts_with(b"HTTP/1.1 ");
        let status =
            line.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let status: u16 = status.ok_or_else(|| malformed("not a status line", &line))?;
        if !is_http11 && !line.starts_with(b"HTTP/1.0 ") {
            return Err(malformed("not a status line", &line));
        }
        if (100..200).contains(&status) {
            received.interim.push(status);
            seen.send_replace(Seen::Continue);
            continue;
        }
        seen.send_replace(Seen::Final);
        (received.status, received.fields) = (status, fields);
        return Ok(is_http11);
    }
}

async fn read_body<R: AsyncRead + Unpin>(
    exchange: &Exchange,
    reader: &mut Reader<R>,
    received: &mut Received,
    body: &mut Vec<u8>,
) -> Result<()> {
    let length = joined(&received.fields, "content-length");
    let coding = joined(&received.fields, "transfer-encoding");
    let has_body = exchange.method != "HEAD" && !matches!(received.status, 204 | 304);
    if !has_body {
        return Ok(());
    }
    match (length, coding.as_deref()) {
        (None, Some("chunked")) => {
            received.framing = Framing::Chunked;
            reader.chunked(body).await.map(|_| ())
        }
        (Some(length), None) => {
            received.framing = Framing::Length;
            let length =
                length.parse().map_err(|_| malformed("not a length", length.as_bytes()))?;
            reader.take(length, body).await
        }
        (None, None) => {
            received.framing = Framing::UntilClose;
            reader.rest(body).await
        }
        _ => Err(malformed("framed in two ways", format!("{:?}", received.fields).as_bytes())),
    }
}

/// Reads the response to the next request: its status, and whether it is the right one.
async fn receive_next<R: AsyncRead + Unpin>(
    exchange: &Exchange,
    reader: &mut Reader<R>,
) -> (u16, bool) {
    read_next(exchange, reader).await.unwrap_or((0, false))
}

async fn read_next<R: AsyncRead + Unpin>(
    exchange: &Exchange,
    reader: &mut Reader<R>,
) -> Result<(u16, bool)> {
    let mut next = Received::nothing(End::Complete);
    read_head(reader, &mut next, &watch::channel(Seen::Nothing).0).await?;
    let mut body = Vec::new();
    let request = Exchange { method: "GET", ..exchange.clone() };
    read_body(&request, reader, &mut next, &mut body).await?;
    Ok((next.status, body == exchange.next_content().as_bytes()))
}

async fn play_http2(exchange: &Exchange, address: SocketAddr) -> Result<Received> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(Error::other)?;
    let connection = tokio::spawn(connection);
    let outcome = exchange_http2(exchange, sender).await;
    if exchange.leaving == Leaving::ClosesInBody || outcome.is_err() {
        connection.abort();
    }
    outcome
        .map_err(|error| if error.is_io() { Error::other("closed") } else { Error::other(error) })
}

fn request_http2(exchange: &Exchange) -> http::Request<()> {
    let uri = format!("http://api.example{}", exchange.target);
    let mut request =
        http::Request::builder().method(exchange.method).uri(uri).version(http::Version::HTTP_2);
    for field in &exchange.fields {
        request = request.header(&field.name, &field.value[..]);
    }
    if exchange.framing == Framing::Length {
        request = request.header("content-length", exchange.content.0.len());
    }
    request.body(()).expect("a request that HTTP/2 can carry")
}

async fn exchange_http2(
    exchange: &Exchange,
    sender: SendRequest<Bytes>,
) -> std::result::Result<Received, h2::Error> {
    let mut sender = sender.ready().await?;
    let ends_at_once = exchange.framing == Framing::None;
    let (mut response, mut stream) = sender.send_request(request_http2(exchange), ends_at_once)?;
    let more = sender.clone();
    let at_once = async {
        match exchange.next {
            Next::AtOnce => next_http2(exchange, more).await.map(Some),
            Next::No | Next::AfterResponse => Ok(None),
        }
    };
    let sending = async {
        if !ends_at_once {
            // The response decides if the proxy has reset the stream.
            let _ = send_http2(exchange, &mut stream).await;
        }
        if matches!(exchange.leaving, Leaving::ResetsInBody | Leaving::ResetsAfterRequest) {
            stream.send_reset(h2::Reason::CANCEL);
        }
    };
    if !exchange.is_sent() || exchange.leaving == Leaving::ResetsAfterRequest {
        sending.await;
        return Ok(Received::nothing(End::Left));
    }
    let mut received = Received::nothing(End::Complete);
    let receiving = async {
        let head = head_http2(&mut response, &mut received.interim).await?;
        if exchange.leaving != Leaving::ResetsInResponse {
            receive_http2(exchange, head, &mut received).await;
        }
        Ok::<_, h2::Error>(())
    };
    let ((), outcome, next) = tokio::join!(sending, receiving, at_once);
    if exchange.leaving == Leaving::ResetsInResponse {
        stream.send_reset(h2::Reason::CANCEL);
        return Ok(Received::nothing(End::Left));
    }
    outcome?;
    received.next = next?;
    if exchange.next == Next::AfterResponse && received.end == End::Complete {
        received.next = Some(next_http2(exchange, sender).await?);
    }
    Ok(received)
}

async fn send_http2(
    exchange: &Exchange,
    stream: &mut SendStream<Bytes>,
) -> std::result::Result<(), h2::Error> {
    let random = &mut Random::new(exchange.seed ^ 2, exchange.number);
    let whole = &exchange.content.0;
    let part = if exchange.is_sent() { whole.len() } else { random.below(whole.len()) };
    for piece in cut(&whole[..part], random) {
        let mut rest = Bytes::copy_from_slice(piece);
        while !rest.is_empty() {
            stream.reserve_capacity(rest.len());
            let capacity = poll_fn(|context| stream.poll_capacity(context)).await;
            let Some(capacity) = capacity.transpose()? else { return Ok(()) };
            stream.send_data(rest.split_to(capacity.min(rest.len())), false)?;
        }
        if exchange.is_slow {
            tokio::time::sleep(SLOW_PAUSE).await;
        }
    }
    match exchange.is_sent() {
        true if exchange.has_trailers => stream.send_trailers(http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x-trailer"),
            http::HeaderValue::from_static("1"),
        )])),
        true => stream.send_data(Bytes::new(), true),
        false => Ok(()),
    }
}

/// Reads interim heads and the final one.
async fn head_http2(
    response: &mut ResponseFuture,
    interim: &mut Vec<u16>,
) -> std::result::Result<http::Response<RecvStream>, h2::Error> {
    poll_fn(|context| {
        loop {
            match response.poll_informational(context) {
                Poll::Ready(Some(Ok(head))) => interim.push(head.status().as_u16()),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Pin::new(&mut *response).poll(context),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

async fn receive_http2(
    exchange: &Exchange,
    head: http::Response<RecvStream>,
    received: &mut Received,
) {
    let (head, mut body) = head.into_parts();
    received.status = head.status.as_u16();
    let fields =
        head.headers.iter().map(|(name, value)| Field::new(name.as_str(), value.as_bytes()));
    received.fields = fields.collect();
    received.is_kept = true;
    let mut content = Vec::new();
    if exchange.is_slow {
        tokio::time::sleep(SLOW_PAUSE).await;
    }
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else {
            received.end = End::Truncated;
            break;
        };
        let _ = body.flow_control().release_capacity(piece.len());
        content.extend_from_slice(&piece);
    }
    received.content = Content::of(
        &content,
        if received.is_from_api() { &exchange.script.content.0 } else { b"" },
    );
}

async fn next_http2(
    exchange: &Exchange,
    sender: SendRequest<Bytes>,
) -> std::result::Result<(u16, bool), h2::Error> {
    let request = http::Request::get(format!("http://api.example{}", exchange.next_target()));
    let request = request.version(http::Version::HTTP_2).body(()).expect("a request");
    let (mut response, _) = sender.ready().await?.send_request(request, true)?;
    let head = head_http2(&mut response, &mut Vec::new()).await?;
    let (head, mut body) = head.into_parts();
    let mut content = Vec::new();
    while let Some(piece) = body.data().await {
        content.extend_from_slice(&piece?);
    }
    Ok((head.status.as_u16(), content == exchange.next_content().as_bytes()))
}
