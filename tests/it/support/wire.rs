//! HTTP/1.1 as the stand-in reads and writes it: by hand, so that nothing is put right on the way.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::rules::{Answer, Framing};

/// A head longer than this is a fault of the test or of the gateway.
const LONGEST_HEAD: usize = 4 << 20;

/// One request as the stand-in got it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The connection's number, from 0 in the order of accepting.
    pub connection: usize,
    pub method: String,
    /// The request target, exactly as sent.
    pub target: String,
    /// In the order and the spelling they came in.
    pub headers: Vec<(String, String)>,
    /// What has come of the body so far, framing taken off.
    pub body: Vec<u8>,
    /// The whole body has come.
    pub complete: bool,
}

impl Seen {
    pub fn path(&self) -> &str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    /// The first value of a query parameter, decoded as servers do: `+` is a space.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| decode(&value.replace('+', " ")))
    }

    /// The first field of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn header_names(&self) -> Vec<String> {
        self.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect()
    }

    /// The token it carries, wherever the API would look for it.
    pub fn token(&self) -> Option<String> {
        let bearer = self.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let cookie = self
            .header("cookie")
            .and_then(|all| all.split("; ").find_map(|one| one.strip_prefix("token=")));
        let given = bearer.or_else(|| self.header("x-api-key")).map(str::to_owned);
        given.or_else(|| self.query("token")).or_else(|| cookie.map(str::to_owned))
    }
}

/// Percent-decoding; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection and what was read from it but not yet used.
pub(super) struct Wire {
    pub(super) stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Wire {
        Wire { stream, buffer: Vec::new() }
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
        }
    }

    /// A line without its line end.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line)
                    .trim_end_matches(['\r', '\n'])
                    .to_owned());
            }
            if self.buffer.len() > LONGEST_HEAD {
                return Err(io::Error::other("a line without an end"));
            }
            self.fill().await?;
        }
    }

    /// The next request's head; `None` when the connection ended between requests.
    pub(super) async fn head(&mut self, connection: usize) -> io::Result<Option<Seen>> {
        if self.buffer.is_empty() && self.fill().await.is_err() {
            return Ok(None);
        }
        let line = self.line().await?;
        let mut parts = line.splitn(3, ' ');
        let method = parts.next().unwrap_or_default().to_owned();
        let target = parts.next().unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Some(Seen { connection, method, target, headers, ..Seen::default() }))
    }

    /// Reads the body of `request`, giving each piece to `take` as it comes.
    pub(super) async fn body(
        &mut self,
        request: &Seen,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let chunked = request.header("transfer-encoding").is_some();
        let length = request
            .header("content-length")
            .and_then(|value| value.parse::<usize>().ok())
            .unwrap_or(0);
        if (chunked || length > 0) && request.header("expect").is_some() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if !chunked {
            return self.piece(length, &mut take).await;
        }
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| io::Error::other("not a chunk size"))?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(());
            }
            self.piece(size, &mut take).await?;
            self.line().await?;
        }
    }

    async fn piece(&mut self, mut left: usize, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let now = left.min(self.buffer.len());
            take(&self.buffer[..now]);
            self.buffer.drain(..now);
            left -= now;
        }
        Ok(())
    }

    /// Writes, byte by byte if asked to.
    pub(super) async fn write(&mut self, bytes: &[u8], drip: bool) -> io::Result<()> {
        if !drip {
            self.stream.write_all(bytes).await?;
            return self.stream.flush().await;
        }
        for byte in bytes {
            self.stream.write_all(&[*byte]).await?;
            self.stream.flush().await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Sends back what comes, until the other side has said all.
    pub(super) async fn echo(&mut self) -> io::Result<()> {
        loop {
            let bytes = std::mem::take(&mut self.buffer);
            self.write(&bytes, false).await?;
            if self.fill().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The head and the body of an answer as they travel.
pub(super) fn encode(answer: &Answer, method: &str) -> (Vec<u8>, Vec<u8>) {
    let mut head = format!("HTTP/1.1 {} Stand-In\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let bodyless = answer.status == 204 || answer.status == 304 || answer.status < 200;
    match answer.framing {
        _ if bodyless => {}
        Framing::Length => head.push_str(&format!("Content-Length: {}\r\n", answer.body.len())),
        Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Framing::UntilClose => head.push_str("Connection: close\r\n"),
        Framing::AsGiven => {}
    }
    head.push_str("\r\n");
    let body = match answer.framing {
        _ if bodyless || method == "HEAD" => Vec::new(),
        Framing::Chunked => chunks(&answer.body),
        _ => answer.body.clone(),
    };
    (head.into_bytes(), body)
}

/// In a few chunks, so that none is the whole.
fn chunks(body: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for chunk in body.chunks(body.len().div_ceil(3).max(1)) {
        encoded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    encoded
}
