//! The stand-in for the TelecomX API: it keeps a table of tokens and one of customers, echoes
//! everything else, records what it got, and misbehaves as configured. It listens on loopback, on a
//! port that survives `stop` and `start`.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::certificates::Certificate;
use super::documents::upstream_document;
use super::rules::{Act, Answer, Framing, Rule};
use super::wire::{Seen, Wire, encode};
use super::{MARKER, PATIENCE};

/// Between two pieces of an endless answer that drips.
const DRIP: Duration = Duration::from_millis(50);

/// One runtime for every stand-in of the test binary; the tests themselves are threads that may
/// block.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    })
}

#[derive(Clone)]
struct Employee {
    employee: String,
    customer: String,
    level: String,
}

#[derive(Default)]
struct State {
    employees: HashMap<String, Employee>,
    documents: HashMap<String, Answer>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    connections: usize,
    sent_fields: BTreeSet<String>,
}

#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// The names of all fields sent so far, in lower case.
    pub(super) fn sent_fields(&self) -> BTreeSet<String> {
        self.state().sent_fields.clone()
    }
}

/// Where the stand-in can be reached, and what of it is running.
pub struct Origin {
    pub(super) shared: Arc<Shared>,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    serving: Mutex<Serving>,
}

enum Serving {
    /// The task that accepts, and the signal that ends it.
    Listening(JoinHandle<()>, oneshot::Sender<()>),
    /// Bound but not listening: connections are refused and no other process gets the port.
    Refusing(TcpSocket),
    Changing,
}

impl Origin {
    /// Plain HTTP.
    pub fn start() -> Origin {
        Origin::with(None, Ipv4Addr::LOCALHOST.into())
    }

    /// Plain HTTP at another address of this machine.
    pub fn start_at(address: IpAddr) -> Origin {
        Origin::with(None, address)
    }

    /// HTTPS with that certificate.
    pub fn start_tls(certificate: &Certificate) -> Origin {
        Origin::with(Some(certificate.acceptor()), Ipv4Addr::LOCALHOST.into())
    }

    fn with(tls: Option<TlsAcceptor>, address: IpAddr) -> Origin {
        let _inside = runtime().enter();
        let socket = bound(SocketAddr::from((address, 0)));
        let address = socket.local_addr().expect("a bound socket has an address");
        let shared = Arc::default();
        let origin =
            Origin { shared, address, tls, serving: Mutex::new(Serving::Refusing(socket)) };
        origin.resume();
        origin
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As written in `upstream.url`.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Ends every connection and refuses new ones: once this returns, nothing more is answered.
    pub fn stop(&self) {
        let mut serving = self.serving.lock();
        if let Serving::Listening(task, end) = std::mem::replace(&mut *serving, Serving::Changing) {
            drop(end);
            let _ = runtime().block_on(task);
            let _inside = runtime().enter();
            *serving = Serving::Refusing(bound(self.address));
        }
    }

    /// Listens (again), on the same port.
    pub fn resume(&self) {
        let mut serving = self.serving.lock();
        let _inside = runtime().enter();
        if let Serving::Refusing(socket) = std::mem::replace(&mut *serving, Serving::Changing) {
            let listener = socket.listen(1024).expect("listening on a bound socket");
            let (end, ended) = oneshot::channel();
            let accepting = accept(listener, self.tls.clone(), self.shared.clone(), ended);
            *serving = Serving::Listening(runtime().spawn(accepting), end);
        }
    }

    // What it knows.

    /// From now on `token` is that of an employee of `customer` with that access level. The
    /// employee's id is made of the token.
    pub fn knows(&self, token: &str, level: &str, customer: &str) {
        let employee = employee_of(token);
        let entry = Employee { employee, customer: customer.to_owned(), level: level.to_owned() };
        self.shared.change(|state| state.employees.insert(token.to_owned(), entry));
    }

    /// The same, with the employee's id given.
    pub fn knows_employee(&self, token: &str, level: &str, customer: &str, employee: &str) {
        let entry = Employee {
            employee: employee.to_owned(),
            customer: customer.to_owned(),
            level: level.to_owned(),
        };
        self.shared.change(|state| state.employees.insert(token.to_owned(), entry));
    }

    /// From now on `token` is invalid.
    pub fn forgets(&self, token: &str) {
        self.shared.change(|state| state.employees.remove(token));
    }

    /// What `/customer/{id}/name` answers to every caller it knows; without it, the golden
    /// document.
    pub fn document(&self, id: &str, answer: Answer) {
        self.shared.change(|state| state.documents.insert(id.to_ascii_lowercase(), answer));
    }

    pub fn missing(&self, id: &str) {
        self.document(id, Answer::error(404, "customer"));
    }

    pub fn forbidden(&self, id: &str) {
        self.document(id, Answer::error(403, "access_denied"));
    }

    /// Adds a rule in front of the existing ones.
    pub fn when(&self, rule: Rule) {
        self.shared.change(|state| state.rules.push(rule));
    }

    /// Drops all rules.
    pub fn behave(&self) {
        self.shared.change(|state| state.rules.clear());
    }

    // What it saw.

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    pub fn count(&self, matches: impl Fn(&Seen) -> bool) -> usize {
        self.shared.state().seen.iter().filter(|seen| matches(seen)).count()
    }

    /// How many requests it got in all.
    pub fn requests(&self) -> usize {
        self.count(|_| true)
    }

    pub fn validations(&self) -> usize {
        self.count(is_validation)
    }

    pub fn validations_of(&self, token: &str) -> usize {
        self.count(|seen| is_validation(seen) && seen.query("token").as_deref() == Some(token))
    }

    /// How often the name of that customer was asked for.
    pub fn fetches(&self, id: &str) -> usize {
        self.count(|seen| is_fetch(seen, id))
    }

    /// The requests for the name of that customer.
    pub fn fetched(&self, id: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| is_fetch(seen, id)).collect()
    }

    /// The last request to that path, if any.
    pub fn last(&self, path: &str) -> Option<Seen> {
        self.shared.state().seen.iter().rev().find(|seen| seen.path() == path).cloned()
    }

    /// Waits until what it saw fulfils the condition.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&[Seen]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state();
        while !condition(&state.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain until {what}; seen: {:#?}", state.seen);
            self.shared.changed.wait_for(&mut state, left);
        }
    }

    pub fn wait_for_fetches(&self, id: &str, count: usize) {
        self.wait_until(&format!("{count} fetches of {id}"), |seen| {
            seen.iter().filter(|seen| is_fetch(seen, id)).count() >= count
        });
    }

    pub fn wait_for_validations(&self, count: usize) {
        self.wait_until(&format!("{count} validations"), |seen| {
            seen.iter().filter(|seen| is_validation(seen)).count() >= count
        });
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Serving::Listening(task, _) = self.serving.get_mut() {
            task.abort();
        }
    }
}

/// The employee's id that belongs to a token: 24 hexadecimal characters, the same each time.
pub fn employee_of(token: &str) -> String {
    let sum = token.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("ee000000{sum:016x}")
}

fn is_validation(seen: &Seen) -> bool {
    seen.path() == "/auth/validateToken"
}

fn is_fetch(seen: &Seen, id: &str) -> bool {
    customer_of_name(seen.path()).is_some_and(|customer| customer.eq_ignore_ascii_case(id))
}

fn customer_of_name(path: &str) -> Option<&str> {
    path.strip_prefix("/customer/")?.strip_suffix("/name").filter(|id| id.len() == 24)
}

/// A socket on that address that does not listen yet. Another process may hold the port for a
/// moment, so it is tried again.
fn bound(address: SocketAddr) -> TcpSocket {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.expect("a socket");
        socket.set_reuseaddr(true).expect("an option every socket has");
        match socket.bind(address) {
            Ok(()) => return socket,
            Err(error) => assert!(Instant::now() < deadline, "cannot bind {address}: {error}"),
        }
        std::thread::yield_now();
    }
}

/// Accepts until `ended`, and returns when the last connection's task has: an aborted task may yet
/// finish what it is at.
async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => break,
            },
            _ = &mut ended => break,
        };
        let number = shared.change(|state| {
            state.connections += 1;
            state.connections - 1
        });
        connections.spawn(serve(stream, number, tls.clone(), shared.clone()));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(
    stream: TcpStream,
    number: usize,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = match tls {
        Some(acceptor) => Wire::new(Box::new(acceptor.accept(stream).await?)),
        None => Wire::new(Box::new(stream)),
    };
    while let Some(head) = wire.head(number).await? {
        let rule = shared.change(|state| take_rule(state, &head));
        let index = shared.change(|state| {
            state.seen.push(head.clone());
            state.seen.len() - 1
        });
        if matches!(rule, Some(Rule { act: Act::CloseAtHead, .. })) {
            return Ok(());
        }
        wire.body(&head, |piece| {
            shared.change(|state| state.seen[index].body.extend_from_slice(piece))
        })
        .await?;
        let request = shared.change(|state| {
            state.seen[index].complete = true;
            state.seen[index].clone()
        });
        if !answer(&mut wire, &shared, rule, &request).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// The rule for this request, if any; one that has been used often enough is taken away.
fn take_rule(state: &mut State, head: &Seen) -> Option<Rule> {
    let at = state.rules.iter().rposition(|rule| rule.matches(head))?;
    let Some(times) = &mut state.rules[at].times else { return Some(state.rules[at].clone()) };
    *times -= 1;
    if *times == 0 { Some(state.rules.remove(at)) } else { Some(state.rules[at].clone()) }
}

/// Answers; whether the connection may be used again.
async fn answer(
    wire: &mut Wire,
    shared: &Shared,
    rule: Option<Rule>,
    request: &Seen,
) -> io::Result<bool> {
    let rule = rule.unwrap_or_else(|| Rule::on(""));
    if let Some(gate) = &rule.gate {
        gate.passed().await;
    }
    let answer = match rule.act {
        Act::Usual => usual(&shared.state(), request),
        Act::Answer(answer) => answer,
        Act::Made(make) => make(request),
        Act::MadeSlowly(make) => make(request.clone()).await,
        Act::Close | Act::CloseAtHead => return Ok(false),
        Act::Raw { bytes, keep, later } => {
            wire.write(&bytes, rule.drip).await?;
            if let Some((gate, unasked)) = later {
                gate.passed().await;
                wire.write(&unasked, false).await?;
            }
            return Ok(keep);
        }
        Act::Forever { head, piece } => {
            wire.write(&head, false).await?;
            loop {
                wire.write(&piece, false).await?;
                if rule.drip {
                    tokio::time::sleep(DRIP).await;
                }
                tokio::task::yield_now().await;
            }
        }
        Act::Upgrade => {
            // The answer to the sample key of RFC 6455, section 1.3, which proxies that know
            // websockets look for.
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            shared.change(|state| state.sent_fields.extend(["sec-websocket-accept".to_string()]));
            wire.write(switch, false).await?;
            wire.echo().await?;
            return Ok(false);
        }
    };
    shared.change(|state| {
        state.sent_fields.extend(answer.headers.iter().map(|(name, _)| name.to_ascii_lowercase()));
    });
    let (head, body) = encode(&answer, &request.method);
    wire.write(&head, rule.drip).await?;
    if let Some(bytes) = rule.cut_after {
        wire.write(&body[..bytes.min(body.len())], rule.drip).await?;
        return Ok(false);
    }
    let (now, later) =
        body.split_at(if rule.body_gate.is_some() { body.len() / 2 } else { body.len() });
    wire.write(now, rule.drip).await?;
    if let Some(gate) = &rule.body_gate {
        gate.passed().await;
        wire.write(later, rule.drip).await?;
    }
    let close_asked = request
        .header("connection")
        .is_some_and(|value| value.to_ascii_lowercase().contains("close"));
    Ok(answer.framing != Framing::UntilClose && !close_asked)
}

/// What the API would say.
fn usual(state: &State, request: &Seen) -> Answer {
    let reads = request.method == "GET" || request.method == "HEAD";
    if is_validation(request) {
        let token = request.query("token").unwrap_or_default();
        return match state.employees.get(&token) {
            Some(Employee { employee, customer, level }) => Answer::json(
                json!({"success": true, "employee": employee, "customer": customer, "accessLevel": level}).to_string(),
            ),
            None => Answer::json(r#"{"success":false}"#),
        };
    }
    match customer_of_name(request.path()) {
        Some(id) if reads => {
            let known = request.token().is_some_and(|token| state.employees.contains_key(&token));
            if !known {
                return Answer::error(401, "invalid_token");
            }
            let golden = || named(Answer::json(upstream_document(id)));
            state.documents.get(&id.to_ascii_lowercase()).cloned().unwrap_or_else(golden)
        }
        _ => echo(request),
    }
}

/// Fields that the API may send and that no intercepted answer may carry on.
fn named(answer: Answer) -> Answer {
    let note = format!("{MARKER} in a field");
    answer.header("Server", "stand-in").header("X-Powered-By", "stand-in").header("X-Note", &note)
}

/// What it got, as JSON.
fn echo(request: &Seen) -> Answer {
    let body = json!({
        "method": request.method,
        "target": request.target,
        "headers": request.headers,
        "body": String::from_utf8_lossy(&request.body),
    });
    Answer::json(body.to_string()).header("Server", "stand-in").header("X-Stand-In", "echo")
}
