//! The listening sockets, and the way from an accepted connection to the edge.
//!
//! They are bound and accepted from here: an occupied port is an error of the start and no panic, a
//! successor can be given them, what is left in their queues when they close is served and not
//! reset, and a connection that cannot be accepted is counted.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::protocols::UniqueID;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::certificate::Certificate;
use super::client_session::Application;
use super::client_stream::ClientStream;
use super::descriptors::{AcceptFailures, Spares};
use super::edge::{Admitted, Edge};
use super::side::Side;
use super::start_error::StartError;
use super::state::ActiveState;
use crate::clock;
use crate::process::{Lifecycle, port_owner, systemd};

/// Connections that wait to be accepted, unless the system allows fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 65_535;

/// Pause after a connection could not be accepted, and between two attempts to hold spares again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// That an address cannot be listened on, why, and who has it if it is taken and the system tells.
pub fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> String {
    let owner = (error.kind() == std::io::ErrorKind::AddrInUse).then(|| port_owner(address)).flatten();
    let by = owner.map(|owner| format!(": {owner}")).unwrap_or_default();
    format!("cannot listen on {address}: {error}{by}")
}

/// Sockets that listen, as long as they do.
#[derive(Default)]
pub struct Sockets(Mutex<Vec<TcpListener>>);

impl Sockets {
    /// Listens on all of these addresses, with those of `inherited` that fit; the rest of them is closed.
    ///
    /// # Errors
    /// One is taken (then by whom, if that can be known), or is not this machine's.
    pub fn bind(addresses: &[SocketAddr], inherited: Vec<TcpListener>) -> Result<Self, StartError> {
        let mut inherited: Vec<_> =
            inherited.into_iter().filter_map(|socket| Some((socket.local_addr().ok()?, socket))).collect();
        let mut socket = |address: &SocketAddr| {
            let wrong = |error| StartError::Environment(cannot_listen(*address, &error));
            let socket = match inherited.iter().position(|(local, _)| local == address) {
                Some(index) => inherited.swap_remove(index).1,
                None => TcpListener::bind(address).map_err(wrong)?,
            };
            socket.set_nonblocking(true).map_err(wrong)?;
            // The standard library asks for a queue of 128 connections or so.
            rustix::net::listen(&socket, BACKLOG).map_err(|error| wrong(error.into()))?;
            Ok(socket)
        };
        addresses.iter().map(&mut socket).collect::<Result<Vec<_>, _>>().map(|sockets| Sockets(Mutex::new(sockets)))
    }

    /// Where they listen, in the order of what was asked for.
    ///
    /// # Errors
    /// A socket has none, which cannot be.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.0.lock().iter().map(TcpListener::local_addr).collect()
    }

    /// Second handles of all of them.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn share(&self) -> std::io::Result<Vec<TcpListener>> {
        self.0.lock().iter().map(TcpListener::try_clone).collect()
    }

    /// Gives away the ones of these addresses.
    fn take(&self, addresses: &[SocketAddr]) -> Vec<TcpListener> {
        let of_these = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|address| addresses.contains(&address));
        self.0.lock().extract_if(.., of_these).collect()
    }
}

/// Between accepting and the edge: counts connections for the drain, and knows whether they begin with TLS.
pub struct Door<A> {
    edge: Arc<Edge<A>>,
    active: Arc<ActiveState>,
    side: Side,
    /// On a TLS listener.
    certificate: Option<Arc<Certificate>>,
}

impl<A> Clone for Door<A> {
    fn clone(&self) -> Self {
        let Door { edge, active, side, certificate } = self;
        Door { edge: edge.clone(), active: active.clone(), side: *side, certificate: certificate.clone() }
    }
}

impl<A> Door<A> {
    pub fn new(
        edge: Arc<Edge<A>>,
        active: Arc<ActiveState>,
        side: Side,
        certificate: Option<Arc<Certificate>>,
    ) -> Self {
        Door { edge, active, side, certificate }
    }
}

impl<A: Application> Door<A> {
    /// Serves a connection to its end.
    async fn serve(&self, stream: ClientStream, admitted: Admitted) {
        let lifecycle = self.active.process.lifecycle.clone();
        let _connection = (self.side == Side::Public).then(|| lifecycle.begin_connection());
        // Not when accepting stops, but when answers are to say that their connection ends.
        self.edge.serve(Box::new(stream), admitted, self.certificate.as_deref(), &lifecycle.draining()).await;
    }
}

/// Listeners of one kind: their addresses and what is behind them.
pub struct Entrance<A> {
    pub addresses: Vec<SocketAddr>,
    pub door: Door<A>,
}

/// A pingora service that accepts connections, from sockets that were bound before.
pub struct Listening<A> {
    failures: Arc<AcceptFailures>,
    threads: Option<usize>,
    entrances: Vec<Entrance<A>>,
    sockets: Arc<Sockets>,
    lifecycle: Arc<Lifecycle>,
}

impl<A: Application> Listening<A> {
    pub fn new(
        failures: AcceptFailures,
        threads: Option<usize>,
        entrances: Vec<Entrance<A>>,
        sockets: Arc<Sockets>,
        lifecycle: Arc<Lifecycle>,
    ) -> Self {
        Listening { failures: Arc::new(failures), threads, entrances, sockets, lifecycle }
    }

    /// Begins to accept connections of an entrance, from each of its sockets until `stop`.
    fn start_accepting(
        &self,
        entrance: &Entrance<A>,
        stop: &ShutdownWatch,
        accepting: &mut JoinSet<()>,
    ) -> std::io::Result<()> {
        let door = Arc::new(entrance.door.clone());
        for socket in self.sockets.share()? {
            if entrance.addresses.contains(&socket.local_addr()?) {
                let listener = tokio::net::TcpListener::from_std(socket)?;
                accepting.spawn(Self::accept(listener, door.clone(), self.failures.clone(), stop.clone()));
            }
        }
        Ok(())
    }

    /// Accepts connections until `stop`. A failure is counted and does not end it.
    async fn accept(
        listener: tokio::net::TcpListener,
        door: Arc<Door<A>>,
        failures: Arc<AcceptFailures>,
        mut stop: ShutdownWatch,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep(RETRY_INTERVAL), if failures.lacks_spares() => {
                    failures.refill();
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => Self::serve(&door, stream, peer, failures.spares()),
                Err(error) if failures.may_retry(&error, clock::now()) => {}
                Err(_) => tokio::select! {
                    () = tokio::time::sleep(RETRY_INTERVAL) => {}
                    () = stopped(&mut stop) => return,
                },
            }
        }
    }

    /// Spawns the task that serves or refuses a connection, unless it is closed at once.
    fn serve(door: &Arc<Door<A>>, stream: TcpStream, peer: SocketAddr, spares: Option<&Arc<Spares>>) {
        let stream = ClientStream::new(stream, peer, spares.cloned());
        if let Some(admitted) = door.edge.admit(stream.id()) {
            let door = door.clone();
            tokio::spawn(async move { door.serve(stream, admitted).await });
        }
    }

    /// Serves what came before its listener closed and was not accepted yet: closing would reset it.
    fn serve_rest(&self, socket: TcpListener, door: &Door<A>) {
        let door = Arc::new(door.clone());
        while let Ok((stream, peer)) = socket.accept() {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                Self::serve(&door, stream, peer, self.failures.spares());
            }
        }
    }
}

/// Completes when accepting is to stop.
async fn stopped(stop: &mut ShutdownWatch) {
    // An error means that it can never be asked for again, which is the end of the process.
    drop(stop.wait_for(|stop| *stop).await);
}

#[async_trait]
impl<A: Application> Service for Listening<A> {
    async fn start_service(&mut self, _none: Option<ListenFds>, _shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let side = self.failures.side();
        let stop = match side {
            Side::Public => self.lifecycle.public_stop(),
            Side::Admin => self.lifecycle.admin_stop(),
        };
        let mut accepting = JoinSet::new();
        let entrances = std::mem::take(&mut self.entrances);
        for entrance in &entrances {
            if let Err(error) = self.start_accepting(entrance, &stop, &mut accepting) {
                tracing::error!(%error, "failed to use a listener");
            }
        }
        self.lifecycle.service_started();
        if side == Side::Public {
            tokio::spawn(watchdog());
        }
        while accepting.join_next().await.is_some() {}
        for entrance in entrances {
            for socket in self.sockets.take(&entrance.addresses) {
                if !self.lifecycle.was_handed_over() {
                    self.serve_rest(socket, &entrance.door);
                }
            }
        }
        if side == Side::Public {
            self.lifecycle.listeners_closed();
        }
    }

    fn name(&self) -> &str {
        match self.failures.side() {
            Side::Public => "gateway",
            Side::Admin => "admin",
        }
    }

    fn threads(&self) -> Option<usize> {
        self.threads
    }
}

/// Signs of life from the threads that serve, where the service manager waits for them.
async fn watchdog() {
    let Some(every) = systemd::watchdog() else { return };
    loop {
        systemd::alive();
        tokio::time::sleep((every / 2).max(Duration::from_millis(1))).await;
    }
}
