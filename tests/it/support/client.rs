//! A client that writes and reads HTTP/1.1 by hand. Every answer that it reads passes the checks of
//! `checks`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use super::PATIENCE;
use super::checks::{Kind, check};
use super::gateway::wait_until;
use super::h2c;
use super::origin::Shared;

/// Knows where to connect to, and what the origin behind it has sent so far.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    origin: Option<Arc<Shared>>,
    admin: bool,
}

impl Client {
    pub(super) fn of_gateway(address: SocketAddr, origin: Arc<Shared>) -> Client {
        Client { address, origin: Some(origin), admin: false }
    }

    pub fn of_admin(address: SocketAddr) -> Client {
        Client { address, origin: None, admin: true }
    }

    /// A client of the stand-in itself.
    pub fn of_origin(origin: &super::Origin) -> Client {
        Client { address: origin.address(), origin: Some(origin.shared.clone()), admin: false }
    }

    pub fn get(&self, target: &str) -> Call {
        self.call("GET", target)
    }

    pub fn head(&self, target: &str) -> Call {
        self.call("HEAD", target)
    }

    pub fn post(&self, target: &str) -> Call {
        self.call("POST", target)
    }

    pub fn delete(&self, target: &str) -> Call {
        self.call("DELETE", target)
    }

    pub fn call(&self, method: &str, target: &str) -> Call {
        let kind = match (self.admin, is_intercepted(method, target)) {
            (true, _) => Kind::Admin,
            (false, true) => Kind::Intercepted,
            (false, false) => Kind::Forwarded,
        };
        Call {
            client: self.clone(),
            method: method.to_owned(),
            target: target.to_owned(),
            headers: vec![("Host".to_owned(), self.address.to_string())],
            body: Vec::new(),
            kind,
            revealed: false,
        }
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().expect("a connection")
    }

    pub fn try_connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::new(), client: self.clone() })
    }

    /// Over one connection of HTTP/2 with prior knowledge, all at the same time; the answers in the
    /// order of the calls.
    pub fn send_h2c(&self, calls: Vec<Call>) -> Vec<Response> {
        let requests = calls.iter().map(|call| call.h2_request(&self.address)).collect();
        let answers = h2c::exchange(self.address, requests);
        let responses = answers.into_iter().zip(&calls).map(|(response, call)| {
            check(&response, call.kind, call.revealed, &self.origin_sent());
            response
        });
        responses.collect()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn origin_sent(&self) -> BTreeSet<String> {
        self.origin.as_ref().map(|origin| origin.sent_fields()).unwrap_or_default()
    }
}

pub(super) fn is_intercepted(method: &str, target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let id = path.strip_prefix("/customer/").and_then(|rest| rest.strip_suffix("/name"));
    let is_id =
        id.is_some_and(|id| id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    matches!(method, "GET" | "HEAD") && is_id
}

/// A request to be sent.
pub struct Call {
    client: Client,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    kind: Kind,
    revealed: bool,
}

impl Call {
    pub fn bearer(self, token: &str) -> Call {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// In place of the client's own.
    pub fn host(mut self, host: &str) -> Call {
        self.headers[0].1 = host.to_owned();
        self
    }

    /// A body with `Content-Length`.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Call {
        self.body = body.as_ref().to_vec();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// A body for `send_h2c`, which needs no length.
    pub fn h2_body(mut self, body: impl AsRef<[u8]>) -> Call {
        self.body = body.as_ref().to_vec();
        self
    }

    /// A body in chunks.
    pub fn chunked(mut self, chunks: &[&[u8]]) -> Call {
        for chunk in chunks {
            self.body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            self.body.extend_from_slice(chunk);
            self.body.extend_from_slice(b"\r\n");
        }
        self.body.extend_from_slice(b"0\r\n\r\n");
        self.header("Transfer-Encoding", "chunked")
    }

    /// The caller's role may see secrets, so the answer may hold them.
    pub fn revealed(mut self) -> Call {
        self.revealed = true;
        self
    }

    pub fn kind(mut self, kind: Kind) -> Call {
        self.kind = kind;
        self
    }

    /// The request as it travels.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The same for HTTP/2, which frames bodies itself and has no `Host`.
    fn h2_request(&self, address: &SocketAddr) -> (http::Request<()>, Vec<u8>) {
        let mut request = http::Request::builder()
            .method(self.method.as_str())
            .uri(format!("http://{address}{}", self.target));
        for (name, value) in self.headers.iter().filter(|(name, _)| name != "Host") {
            request = request.header(name.as_str(), value.as_str());
        }
        (request.body(()).expect("a request that HTTP/2 can carry"), self.body.clone())
    }

    /// Sends on a new connection and reads the response.
    pub fn send(self) -> Response {
        self.start().finish()
    }

    /// Sends on a new connection; `None` if it is closed without a response.
    pub fn try_send(self) -> Option<Response> {
        self.start().try_finish()
    }

    /// Sends on a connection that is used again.
    pub fn send_on(self, connection: &mut Connection) -> Response {
        connection.send_raw(self.bytes());
        connection
            .read_checked(&self.method, self.kind, self.revealed)
            .expect("an answer on a kept connection")
    }

    /// Sends on a new connection. The response is read later or never.
    pub fn start(self) -> Pending {
        let mut connection = self.client.connect();
        connection.send_raw(self.bytes());
        Pending { connection, method: self.method, kind: self.kind, revealed: self.revealed }
    }
}

/// A request that was sent and whose answer was not read yet. Dropping it leaves as a caller would
/// who hangs up.
pub struct Pending {
    pub connection: Connection,
    method: String,
    kind: Kind,
    revealed: bool,
}

impl Pending {
    pub fn finish(self) -> Response {
        self.try_finish().expect("an answer, and not a closed connection")
    }

    pub fn try_finish(mut self) -> Option<Response> {
        self.connection.read_checked(&self.method, self.kind, self.revealed).ok()
    }
}

/// One connection, used for as many requests as the other side allows.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    client: Client,
}

impl Connection {
    /// Sends raw bytes. A peer that closes early does not fail the test; its response is checked.
    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// The same for one who wants to know whether the other side has answered or closed; then it is
    /// an error.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let answered = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_nonblocking(false)?;
        if answered { Err(io::ErrorKind::BrokenPipe.into()) } else { self.stream.write_all(bytes) }
    }

    /// The answer to a request sent with `send_raw`.
    pub fn read(&mut self, method: &str, kind: Kind) -> Option<Response> {
        self.read_checked(method, kind, false).ok()
    }

    /// Waits until these bytes have come, and takes nothing away.
    pub fn wait_for(&mut self, needle: &[u8]) {
        while !self.buffer.windows(needle.len()).any(|window| window == needle) {
            let waiting = String::from_utf8_lossy(needle);
            self.fill().unwrap_or_else(|error| {
                panic!("{error} while waiting for {waiting:?}, after {:?}", self.text())
            });
        }
    }

    /// Takes exactly so many bytes, after a switch of protocols.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            self.fill().unwrap_or_else(|error| panic!("{error} after {:?}", self.text()));
        }
        self.buffer.drain(..count).collect()
    }

    /// Waits until the other side has read all that was sent.
    pub fn wait_until_read(&self) {
        let port = |address: io::Result<SocketAddr>| {
            format!(":{:04X}", address.expect("connected").port())
        };
        let (own, other) = (port(self.stream.local_addr()), port(self.stream.peer_addr()));
        wait_until("the other side has read", || {
            let table = fs::read_to_string("/proc/net/tcp").expect("the table of connections");
            let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
            let row = rows.find(|row| row[1].ends_with(&other) && row[2].ends_with(&own));
            row.is_some_and(|row| row[4].ends_with(":00000000"))
        });
    }

    /// Everything until the other side closes; panics if it never does.
    pub fn rest(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    panic!("not closed in time, after {:?}", self.text())
                }
                Err(_) => return std::mem::take(&mut self.buffer),
            }
        }
    }

    /// Whether the other side has closed by now; takes nothing away.
    pub fn is_closed(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a mode every socket has");
        let closed = loop {
            match self.fill() {
                Ok(()) => {}
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).expect("a mode every socket has");
        closed
    }

    /// So many bytes at most, as soon as any are there; none at the end.
    pub fn read_some(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.buffer);
        if bytes.is_empty() {
            bytes.resize(most, 0);
            let read = self.stream.read(&mut bytes).unwrap_or(0);
            bytes.truncate(read);
        }
        bytes
    }

    /// Says that nothing more will come, and still reads.
    pub fn end_of_sending(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The same connection, for a thread that writes while this one reads.
    pub fn try_clone(&self) -> Connection {
        let stream = self.stream.try_clone().expect("a second handle");
        Connection { stream, buffer: Vec::new(), client: self.client.clone() }
    }

    /// Makes the close of this connection a reset.
    pub fn reset(&mut self) {
        let linger =
            rustix::net::sockopt::set_socket_linger(&self.stream, Some(std::time::Duration::ZERO));
        linger.expect("an option that every socket has");
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
        }
    }

    /// Reads an answer and checks it. An error means that no answer came; an answer that breaks off
    /// or breaks the rules of HTTP panics.
    fn read_checked(&mut self, method: &str, kind: Kind, revealed: bool) -> io::Result<Response> {
        let head = loop {
            let head = self.head()?;
            if !head.starts_with(b"HTTP/1.1 1") || head.starts_with(b"HTTP/1.1 101") {
                break head;
            }
        };
        let mut response = Response::parse(head);
        if method != "HEAD"
            && response.status != 304
            && response.status != 204
            && response.status != 101
        {
            match self.body(&response) {
                Ok(body) => response.body = body,
                Err((error, body)) => {
                    response.body = body;
                    response.broken_off = Some(error.kind());
                }
            }
        }
        check(&response, kind, revealed, &self.client.origin_sent());
        Ok(response)
    }

    fn head(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(self.buffer.drain(..end + 4).collect());
            }
            if let Err(error) = self.fill() {
                assert!(self.buffer.is_empty(), "a head broke off: {:?}", self.text());
                return Err(error);
            }
        }
    }

    fn body(&mut self, response: &Response) -> Result<Vec<u8>, (io::Error, Vec<u8>)> {
        let chunked = response
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = response.header("content-length");
        if !chunked && length.is_none() {
            return Ok(self.rest());
        }
        let mut body = Vec::new();
        if let Some(length) = length {
            let length = length.parse().unwrap_or_else(|_| panic!("not a length: {response:#?}"));
            return self
                .piece(length, &mut body)
                .map(|()| body.clone())
                .map_err(|error| (error, body));
        }
        loop {
            let size = match self.line() {
                Ok(line) => usize::from_str_radix(&line, 16)
                    .unwrap_or_else(|_| panic!("not a chunk size: {line:?}")),
                Err(error) => return Err((error, body)),
            };
            let done = self.piece(size, &mut body).and_then(|()| self.line());
            match done {
                Ok(line) => assert!(
                    line.is_empty(),
                    "a chunk is longer than it says, or has trailers: {line:?}"
                ),
                Err(error) => return Err((error, body)),
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn piece(&mut self, count: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill()?;
            }
            let now = left.min(self.buffer.len());
            body.extend(self.buffer.drain(..now));
            left -= now;
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill()?;
        }
    }
}

/// An answer, whole and checked.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    /// In the order and the spelling they came in.
    pub headers: Vec<(String, String)>,
    /// Framing taken off.
    pub body: Vec<u8>,
    /// The body ended before its end.
    pub broken_off: Option<io::ErrorKind>,
    pub(super) head: Vec<u8>,
}

impl Response {
    pub(super) fn of_parts(status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> Response {
        let fields: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/2 {status}\r\n{fields}\r\n").into_bytes();
        Response { status, headers, body, broken_off: None, head }
    }

    pub(super) fn parse(head: Vec<u8>) -> Response {
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {text:?}"));
        let field = |line: &str| match line.split_once(':') {
            Some((name, value))
                if !name.is_empty()
                    && !name.contains(char::is_whitespace)
                    && !line.contains('\n') =>
            {
                (name.to_owned(), value.trim().to_owned())
            }
            _ => panic!("not a field: {line:?} in {text:?}"),
        };
        let headers = lines.map(field).collect();
        Response { status, headers, body: Vec::new(), broken_off: None, head }
    }

    /// The first field of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:#?}"))
    }

    /// The value of `Cache-Status`; empty for an error of the gateway's own that has none.
    #[track_caller]
    pub fn cache_status(&self) -> &str {
        let all = self.all("cache-status");
        let expected = if self.status < 400 { 1..=1 } else { 0..=1 };
        assert!(expected.contains(&all.len()), "one Cache-Status is expected: {self:#?}");
        all.first().copied().unwrap_or_default()
    }

    /// The status is that one and the body whole.
    #[track_caller]
    pub fn assert_status(&self, status: u16) -> &Response {
        assert_eq!(self.status, status, "{self:#?}");
        assert_eq!(self.broken_off, None, "{self:#?}");
        self
    }

    /// An error in the API's own shape, with that status and that code.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) -> &Response {
        self.assert_status(status);
        let content_type = self.header("content-type").unwrap_or_default();
        assert!(content_type.starts_with("application/json"), "{self:#?}");
        let json = self.json();
        assert_eq!(json["error"]["code"], code, "{self:#?}");
        assert_eq!(json["error"]["status"], status, "{self:#?}");
        assert!(
            json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{self:#?}"
        );
        // An error of the API itself has none.
        if let Some(id) = json["error"]["requestId"].as_str() {
            assert_eq!(Some(id), self.header("x-request-id"), "{self:#?}");
        }
        self
    }

    /// Whether it was answered from the cache, and fresh.
    #[track_caller]
    pub fn is_hit(&self) -> bool {
        let ttl = self.cache_status().strip_prefix("telecomx-gateway; hit; ttl=");
        ttl.is_some_and(|ttl| ttl.parse::<u32>().is_ok())
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().take(2000).collect();
        write!(f, "\n{}{body}\n", String::from_utf8_lossy(&self.head))?;
        match self.broken_off {
            Some(kind) => write!(f, "[broken off: {kind}]"),
            None => Ok(()),
        }
    }
}

/// A response without the request id that the gateway made for its error body.
pub fn without_request_id(response: &str) -> String {
    let name = "\"requestId\":\"";
    match response.split_once(name) {
        Some((before, rest)) if rest.find('"') == Some(32) => {
            format!("{before}{name}{}", &rest[32..])
        }
        _ => response.to_owned(),
    }
}
