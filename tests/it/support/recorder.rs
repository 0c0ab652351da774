//! An API that keeps the raw bytes of each connection and reads them strictly: a message has
//! exactly one reading, or it counts as malformed. It answers a malformed message and keeps the
//! connection, so that one stray byte shifts every response behind it to another request.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::PATIENCE;
use super::origin::{employee_of, runtime};

/// The field by which a client marks a request and finds its response.
pub const TAG: &str = "x-tag";

/// The field by which a client asks for a response before the body: `early`, or `close` for one
/// that ends the connection.
pub const MANNER: &str = "x-manner";

/// Bytes of a connection that are kept.
const RAW: usize = 4 << 10;

/// One request as the API read it.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub connection: usize,
    pub method: String,
    pub target: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The end of the body arrived.
    pub complete: bool,
}

impl Message {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Log {
    messages: Vec<Message>,
    /// What is not a message, with its reason.
    malformed: Vec<String>,
    /// The last bytes of each connection, by its number.
    raw: HashMap<usize, Vec<u8>>,
    connections: usize,
    open: usize,
    /// The connections that have ended.
    ended: HashSet<usize>,
}

#[derive(Default)]
struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
}

/// The running API.
pub struct Recorder {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Recorder {
    pub fn start() -> Recorder {
        let listener =
            runtime().block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::<Shared>::default();
        let accepting = runtime().spawn(accept(listener, shared.clone()));
        Recorder { shared, address, accepting }
    }

    /// The configuration that puts the gateway in front of it.
    pub fn config(&self) -> String {
        format!("upstream = {{ url = \"http://{}\" }}\n", self.address)
    }

    pub fn malformed(&self) -> Vec<String> {
        self.shared.log.lock().malformed.clone()
    }

    /// The last bytes that a connection received.
    pub fn raw(&self, connection: usize) -> Vec<u8> {
        self.shared.log.lock().raw.get(&connection).cloned().unwrap_or_default()
    }

    /// Waits until the request with that tag is complete.
    pub fn wait_for(&self, tag: &str) -> Message {
        let found = |log: &mut Log| {
            log.messages.iter().find(|m| m.field(TAG) == Some(tag) && m.complete).cloned()
        };
        self.wait(&format!("the request {tag} is complete"), found)
    }

    /// Removes the messages to that target of which no more can arrive: complete, or on a
    /// connection that has ended.
    pub fn take(&self, target: &str) -> Vec<Message> {
        let mut log = self.shared.log.lock();
        let Log { messages, ended, .. } = &mut *log;
        let is_final =
            |m: &mut Message| m.target == target && (m.complete || ended.contains(&m.connection));
        messages.extract_if(.., is_final).collect()
    }

    /// Waits until each connection on which a message is not complete has ended.
    pub fn wait_until_settled(&self) {
        let settled = |log: &mut Log| {
            let Log { messages, ended, .. } = log;
            messages.iter().all(|m| m.complete || ended.contains(&m.connection)).then_some(())
        };
        self.wait("each connection with a truncated message has ended", settled);
    }

    /// All messages that were not taken.
    pub fn take_all(&self) -> Vec<Message> {
        std::mem::take(&mut self.shared.log.lock().messages)
    }

    /// Waits until no connection is open.
    pub fn wait_until_idle(&self) {
        self.wait("every connection has ended", |log| (log.open == 0).then_some(()));
    }

    fn wait<T>(&self, what: &str, mut found: impl FnMut(&mut Log) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut log = self.shared.log.lock();
        loop {
            if let Some(found) = found(&mut log) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain until {what}");
            self.shared.changed.wait_for(&mut log, left);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = {
            let mut log = shared.log.lock();
            log.connections += 1;
            log.open += 1;
            log.connections
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut reader = Reader {
                stream,
                buffer: Vec::new(),
                number,
                is_in_body: false,
                target: String::new(),
                shared: shared.clone(),
            };
            let _ = reader.serve().await;
            let mut log = shared.log.lock();
            log.ended.insert(number);
            // The rest of a truncated body is a part of its message.
            if !reader.buffer.is_empty() && !reader.is_in_body {
                log.malformed
                    .push(format!("at the end: {:?}", String::from_utf8_lossy(&reader.buffer)));
            }
            log.open -= 1;
            drop(log);
            shared.changed.notify_all();
        });
    }
}

/// Why a connection is not read further.
enum Fault {
    /// It ended.
    Ended,
    /// These bytes are not part of a message.
    Malformed(String),
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Fault {
        Fault::Ended
    }
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    number: usize,
    is_in_body: bool,
    /// The target of the last message.
    target: String,
    shared: Arc<Shared>,
}

impl Reader {
    async fn serve(&mut self) -> Result<(), Fault> {
        self.stream.set_nodelay(true)?;
        loop {
            match self.message().await {
                Ok(true) => {}
                Ok(false) | Err(Fault::Ended) => return Ok(()),
                Err(Fault::Malformed(why)) => {
                    self.shared
                        .log
                        .lock()
                        .malformed
                        .push(format!("{why}, after the head of {:?}", self.target));
                    (self.is_in_body, self.target) = (false, String::new());
                    self.respond(400, "malformed").await?;
                }
            }
        }
    }

    /// Reads and answers one request; whether the connection is kept.
    async fn message(&mut self) -> Result<bool, Fault> {
        let mut message = Message { connection: self.number, ..Message::default() };
        let line = self.line().await?;
        let parts: Vec<&str> = line.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else {
            return Err(Fault::Malformed(format!("not a request line: {line:?}")));
        };
        (message.method, message.target) = (method.to_owned(), target.to_owned());
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let field = line
                .split_once(": ")
                .ok_or_else(|| Fault::Malformed(format!("not a field: {line:?}")))?;
            message.fields.push((field.0.to_ascii_lowercase(), field.1.to_owned()));
        }
        self.target.clone_from(&message.target);
        if message.target.starts_with("/auth/validateToken") {
            return self.validate(&message.target).await.map(|()| true);
        }
        let tag = message.field(TAG).unwrap_or_default().to_owned();
        self.record(|log| log.messages.push(message.clone()));
        let manner = message.field(MANNER).unwrap_or_default().to_owned();
        if !manner.is_empty() {
            self.respond(200, &tag).await?;
        }
        if manner == "close" {
            // What is unread is taken for a second, or the response would be lost in a reset.
            self.stream.shutdown().await?;
            let rest = async { while self.fill().await.is_ok() {} };
            let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
            self.buffer.clear();
            return Ok(false);
        }
        self.is_in_body = true;
        self.body(&message).await?;
        self.is_in_body = false;
        self.record(|log| {
            let last = log.messages.iter_mut().rev().find(|m| m.connection == message.connection);
            last.into_iter().for_each(|m| m.complete = true);
        });
        if manner.is_empty() {
            self.respond(200, &tag).await?;
        }
        Ok(true)
    }

    fn record(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.shared.log.lock());
        self.shared.changed.notify_all();
    }

    async fn body(&mut self, message: &Message) -> Result<(), Fault> {
        let all = |name: &str| message.fields.iter().filter(|(field, _)| field == name).count();
        match (all("content-length"), all("transfer-encoding"), message.field("transfer-encoding"))
        {
            (0, 0, _) => Ok(()),
            (1, 0, _) => {
                let length = message.field("content-length").unwrap_or_default();
                let length = length
                    .parse()
                    .map_err(|_| Fault::Malformed(format!("not a length: {length:?}")))?;
                self.piece(length).await
            }
            (0, 1, Some("chunked")) => loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(&line, 16);
                let size =
                    size.map_err(|_| Fault::Malformed(format!("not a chunk size: {line:?}")))?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    return Ok(());
                }
                self.piece(size).await?;
                let end = self.line().await?;
                if !end.is_empty() {
                    return Err(Fault::Malformed(format!("behind a chunk: {end:?}")));
                }
            },
            _ => Err(Fault::Malformed(format!("framed twice: {:?}", message.fields))),
        }
    }

    async fn validate(&mut self, target: &str) -> Result<(), Fault> {
        let token = target.split_once("token=").map_or("", |(_, token)| token);
        let (employee, customer) = (employee_of(token), super::DUCK);
        let body = format!(
            r#"{{"success":true,"employee":"{employee}","customer":"{customer}","accessLevel":"VIEWER"}}"#
        );
        self.write(200, &body).await
    }

    async fn respond(&mut self, status: u16, tag: &str) -> Result<(), Fault> {
        let target = &self.target;
        self.write(status, &format!(r#"{{"tag":"{tag}","target":"{target}"}}"#)).await
    }

    async fn write(&mut self, status: u16, body: &str) -> Result<(), Fault> {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        );
        self.stream
            .write_all(format!("{head}Cache-Control: no-store\r\n\r\n{body}").as_bytes())
            .await?;
        Ok(())
    }

    /// A line that ends with CRLF, without it.
    async fn line(&mut self) -> Result<String, Fault> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn piece(&mut self, mut left: usize) -> Result<(), Fault> {
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let now = left.min(self.buffer.len());
            let piece: Vec<u8> = self.buffer.drain(..now).collect();
            let mut log = self.shared.log.lock();
            let open = log.messages.iter_mut().rev().find(|m| m.connection == self.number);
            open.into_iter().for_each(|m| m.body.extend_from_slice(&piece));
            left -= now;
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<(), Fault> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await? {
            0 => Err(Fault::Ended),
            read => {
                self.buffer.extend_from_slice(&chunk[..read]);
                let mut log = self.shared.log.lock();
                let raw = log.raw.entry(self.number).or_default();
                raw.extend_from_slice(&chunk[..read]);
                raw.drain(..raw.len().saturating_sub(RAW));
                Ok(())
            }
        }
    }
}
