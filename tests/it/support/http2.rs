//! HTTP/2 spoken to the gateway: a client that keeps the rules, and frames written by hand for
//! those that do not.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream as AsyncTcpStream;
use tokio_rustls::TlsConnector;

use super::checks::{Kind, check};
use super::client::{Client, Response, is_intercepted};
use super::origin::runtime;
use super::wire::Stream;
use super::{Authority, PATIENCE};

/// One connection of a client that keeps the rules.
pub struct Http2 {
    client: Client,
    sender: SendRequest<Bytes>,
}

impl Http2 {
    /// Without TLS, by prior knowledge.
    pub fn connect(client: &Client) -> Http2 {
        Http2::connect_behind(client, b"")
    }

    /// Without TLS, after other bytes such as a PROXY header.
    pub fn connect_behind(client: &Client, prefix: &[u8]) -> Http2 {
        let stream = runtime().block_on(connect(client.address(), prefix)).expect("a connection");
        Http2::over(client, Box::new(stream))
    }

    /// Over TLS, agreed on by ALPN.
    pub fn connect_tls(client: &Client, address: SocketAddr, authority: &Authority) -> Http2 {
        Http2::connect_tls_behind(client, address, authority, b"")
    }

    /// Over TLS, after other bytes such as a PROXY header.
    pub fn connect_tls_behind(
        client: &Client,
        address: SocketAddr,
        authority: &Authority,
        prefix: &[u8],
    ) -> Http2 {
        let mut config = authority.trusting();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = runtime().block_on(async {
            let stream = connect(address, prefix).await?;
            TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await
        });
        let stream = stream.expect("a connection");
        assert_eq!(
            stream.get_ref().1.alpn_protocol(),
            Some(&b"h2"[..]),
            "HTTP/2 was not agreed on"
        );
        Http2::over(client, Box::new(stream))
    }

    fn over(client: &Client, stream: Box<dyn Stream>) -> Http2 {
        let sender = runtime().block_on(async {
            let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            sender
        });
        Http2 { client: client.clone(), sender }
    }

    /// One exchange, checked as all answers are. An error: the stream or the connection was ended
    /// instead.
    pub fn call(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, String> {
        let uri = format!("http://{}{target}", self.client.address());
        let mut request =
            http::Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let sender = self.sender.clone();
        let body = Bytes::copy_from_slice(body);
        let exchange = async move {
            let mut sender = sender.ready().await?;
            let (answer, mut stream) = sender.send_request(request, body.is_empty())?;
            if !body.is_empty() {
                // The response may have come already, with a reset of the rest; then it decides.
                let _ = stream.send_data(body, true);
            }
            let (head, mut rest) = answer.await?.into_parts();
            let mut body = Vec::new();
            while let Some(piece) = rest.data().await {
                let piece = piece?;
                rest.flow_control().release_capacity(piece.len())?;
                body.extend_from_slice(&piece);
            }
            Ok::<_, h2::Error>((head, body))
        };
        let done = runtime().block_on(async { tokio::time::timeout(PATIENCE, exchange).await });
        let (head, body) =
            done.map_err(|_| "nothing in time".to_owned())?.map_err(|error| error.to_string())?;
        // As HTTP/1.1 would have it, so that the same checks hold.
        let mut text = format!("HTTP/1.1 {}\r\n", head.status.as_u16()).into_bytes();
        for (name, value) in &head.headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        let mut response = Response::parse(text);
        response.body = body;
        let kind = if is_intercepted(method, target) { Kind::Intercepted } else { Kind::Forwarded };
        check(&response, kind, false, &self.client.origin_sent());
        Ok(response)
    }

    pub fn get(&self, target: &str, token: &str) -> Response {
        let bearer = format!("Bearer {token}");
        self.call("GET", target, &[("authorization", &bearer)], b"").expect("an answer")
    }
}

async fn connect(address: SocketAddr, prefix: &[u8]) -> io::Result<AsyncTcpStream> {
    let mut stream = AsyncTcpStream::connect(address).await?;
    stream.write_all(prefix).await?;
    Ok(stream)
}

/// One connection on which frames are written by hand (RFC 9113 section 4.1).
pub struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A frame as it came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frames {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    /// Sends the preface and these settings.
    pub fn open(client: &Client, settings: &[(u16, u32)]) -> Frames {
        let stream = TcpStream::connect_timeout(&client.address(), PATIENCE).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let mut frames = Frames { stream, buffer: Vec::new() };
        let _ = frames.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        let _ = frames.send(Frames::SETTINGS, 0, 0, &settings);
        frames
    }

    /// An error: the other side has closed.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame)
    }

    /// Sends bytes, whatever they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A request without a body.
    pub fn request(&mut self, stream: u32, list: &[(&str, &str)]) -> io::Result<()> {
        let list: Vec<(&[u8], &[u8])> =
            list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        self.send(Frames::HEADERS, Frames::END_HEADERS | Frames::END_STREAM, stream, &fields(&list))
    }

    /// The next frame; `None` when the connection ended.
    pub fn next(&mut self) -> Option<Frame> {
        self.fill(9)?;
        let length =
            u32::from_be_bytes([0, self.buffer[0], self.buffer[1], self.buffer[2]]) as usize;
        self.fill(9 + length)?;
        let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
        let stream = u32::from_be_bytes([bytes[5] & 0x7f, bytes[6], bytes[7], bytes[8]]);
        Some(Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() })
    }

    /// What became of a stream: the status byte of its head if it is one of the table (0x88: 200,
    /// 0x8c: 400), else why it ended.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.next() {
            match frame.kind {
                Frames::HEADERS if frame.stream == stream => {
                    return Outcome::Answered(frame.payload);
                }
                Frames::RST_STREAM if frame.stream == stream => return Outcome::Reset,
                Frames::GOAWAY => return Outcome::GoneAway,
                _ => {}
            }
        }
        Outcome::Closed
    }

    /// Reads until the other side closes; panics if it never does.
    pub fn until_closed(&mut self) {
        while self.next().is_some() {}
    }

    fn fill(&mut self, count: usize) -> Option<()> {
        let mut chunk = [0; 16 * 1024];
        while self.buffer.len() < count {
            match self.stream.read(&mut chunk) {
                Ok(read @ 1..) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    panic!("neither a frame nor an end in time")
                }
                _ => return None,
            }
        }
        Some(())
    }
}

/// What became of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this head, compressed.
    Answered(Vec<u8>),
    Reset,
    GoneAway,
    Closed,
}

impl Outcome {
    /// Whether it was answered with 200, whose place in the static table is 8 (RFC 7541 appendix
    /// A).
    pub fn is_ok(&self) -> bool {
        matches!(self, Outcome::Answered(head) if head.first() == Some(&0x88))
    }
}

/// A field section: literals without indexing and without Huffman coding (RFC 7541 section 6.2.2).
pub fn fields(list: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// A length in the seven bits of a prefix (RFC 7541 section 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let low = |bits: usize| u8::try_from(bits & 0x7f).expect("seven bits");
    if length < 127 {
        return block.push(low(length));
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(low(rest) | 0x80);
        rest >>= 7;
    }
    block.push(low(rest));
}
