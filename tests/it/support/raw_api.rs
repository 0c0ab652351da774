//! A second stand-in for the API whose answers are written by hand on the socket, at any moment:
//! before a request's body is read, in parts, or never. It validates tokens by itself: `tok-LEVEL`
//! has that access level.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{DUCK, PATIENCE};

/// A request's head, and the connection behind it.
pub struct RawExchange {
    /// Method and target.
    pub line: String,
    /// The whole head.
    pub head: String,
    pub stream: TcpStream,
    /// What came behind the head.
    pub rest: Vec<u8>,
}

impl RawExchange {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.line.split([' ', '?']).nth(1).unwrap_or_default()
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Whether a field of the head has that value, letter case aside.
    pub fn has_field(&self, field: &str) -> bool {
        let field = field.to_ascii_lowercase();
        self.head.to_ascii_lowercase().lines().any(|line| line.starts_with(&field))
    }

    /// Waits until the gateway closes the connection; how long that took.
    pub fn until_closed(&mut self) -> Duration {
        let began = Instant::now();
        while let Ok(1..) = self.stream.read(&mut [0; 4096]) {}
        began.elapsed()
    }

    /// Reads so many bytes of the body.
    pub fn read_body(&mut self, count: usize) -> usize {
        let mut read = self.rest.len();
        let mut buffer = [0; 16 << 10];
        while read < count {
            match self.stream.read(&mut buffer) {
                Ok(more @ 1..) => read += more,
                _ => break,
            }
        }
        read
    }
}

type Handler = dyn Fn(RawExchange) -> Option<TcpStream> + Send + Sync;

/// The stand-in; its threads end with their connections.
pub struct RawApi {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl RawApi {
    /// `handler` answers everything except validations; what it gives back is read for another
    /// request.
    pub fn start(
        handler: impl Fn(RawExchange) -> Option<TcpStream> + Send + Sync + 'static,
    ) -> RawApi {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let (handler, seen): (Arc<Handler>, _) = (Arc::new(handler), heads.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (handler, seen) = (handler.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &*handler, &seen));
            }
        });
        RawApi { address, heads }
    }

    /// What the gateway's configuration needs.
    pub fn config(&self) -> String {
        format!("upstream.url = \"http://{}\"", self.address)
    }

    /// The heads of all requests so far, except validations.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

fn serve(stream: TcpStream, handler: &Handler, seen: &Mutex<Vec<String>>) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(PATIENCE * 2));
    let mut next = Some(stream);
    while let Some(stream) = next {
        let Some(mut exchange) = read_head(stream) else { return };
        next = if exchange.path() == "/auth/validateToken" {
            exchange.write(validation(&exchange.line));
            Some(exchange.stream)
        } else {
            seen.lock().push(exchange.head.clone());
            handler(exchange)
        };
    }
}

fn read_head(mut stream: TcpStream) -> Option<RawExchange> {
    let mut buffer = Vec::new();
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        buffer.extend_from_slice(&chunk[..read]);
    };
    let rest = buffer.split_off(end);
    let head = String::from_utf8(buffer).ok()?;
    let line = head.lines().next().unwrap_or_default().to_owned();
    Some(RawExchange { line, head, stream, rest })
}

fn validation(line: &str) -> String {
    let token = line.split("token=tok-").nth(1).unwrap_or_default();
    let level = token.split(['&', ' ', '-']).next().unwrap_or_default();
    let body = format!(
        r#"{{"success":true,"employee":"ee00000000000000000000{:02x}","customer":"{DUCK}","accessLevel":"{level}"}}"#,
        token.len()
    );
    response("200 OK", &["Content-Type: application/json"], &body)
}

/// A response with these fields and the length of its body.
pub fn response(status: &str, fields: &[&str], body: &str) -> String {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}
