//! Listening sockets, and the tasks that accept connections from them.
//!
//! The gateway binds and accepts itself, not pingora: an occupied port is an error of the start
//! instead of a panic, a successor process can inherit the sockets, connections that wait in the
//! queue of a closing socket are served instead of reset, and accept failures are counted.

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

use super::descriptors::{AcceptFailures, Spares};
use super::http::client_session::Application;
use super::http::client_stream::ClientStream;
use super::http::connection::{AdmitDecision, ConnectionHandler};
use super::listener_kind::ListenerKind;
use super::start_error::StartError;
use super::state::ActiveState;
use super::tls::ListenerTls;
use crate::clock;
use crate::process::{Lifecycle, port_owner, systemd};

/// Maximum number of connections that wait to be accepted, unless the system allows fewer
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 65_535;

/// Pause after an accept failure, and between two attempts to open missing spares.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Returns the error message of an address that cannot be listened on, with the process that uses
/// the port if the system reveals it.
pub fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> String {
    let owner =
        (error.kind() == std::io::ErrorKind::AddrInUse).then(|| port_owner(address)).flatten();
    let by = owner.map(|owner| format!(": {owner}")).unwrap_or_default();
    format!("cannot listen on {address}: {error}{by}")
}

/// The listening sockets of the process.
#[derive(Default)]
pub struct Sockets(Mutex<Vec<TcpListener>>);

impl Sockets {
    /// Listens on all of these addresses, with matching sockets of `inherited`. The other inherited
    /// sockets are closed.
    ///
    /// # Errors
    ///
    /// An address is in use or is not an address of this machine.
    pub fn bind(addresses: &[SocketAddr], inherited: Vec<TcpListener>) -> Result<Self, StartError> {
        let mut inherited: Vec<_> = inherited
            .into_iter()
            .filter_map(|socket| Some((socket.local_addr().ok()?, socket)))
            .collect();
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
        addresses
            .iter()
            .map(&mut socket)
            .collect::<Result<Vec<_>, _>>()
            .map(|sockets| Sockets(Mutex::new(sockets)))
    }

    /// Returns the addresses of the sockets, in the requested order.
    ///
    /// # Errors
    ///
    /// The system reports no address, which does not happen for a bound socket.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.0.lock().iter().map(TcpListener::local_addr).collect()
    }

    /// Returns duplicates of all sockets.
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn share(&self) -> std::io::Result<Vec<TcpListener>> {
        self.0.lock().iter().map(TcpListener::try_clone).collect()
    }

    /// Removes and returns the sockets of these addresses.
    fn take(&self, addresses: &[SocketAddr]) -> Vec<TcpListener> {
        let of_these = |socket: &mut TcpListener| {
            socket.local_addr().is_ok_and(|address| addresses.contains(&address))
        };
        self.0.lock().extract_if(.., of_these).collect()
    }
}

/// Passes accepted connections to their handler, in cleartext or TLS, and counts them for the
/// drain.
pub struct Acceptor<A> {
    handler: Arc<ConnectionHandler<A>>,
    active: Arc<ActiveState>,
    kind: ListenerKind,
    /// On a TLS listener.
    tls: Option<Arc<ListenerTls>>,
}

impl<A> Clone for Acceptor<A> {
    fn clone(&self) -> Self {
        let Acceptor { handler, active, kind, tls } = self;
        Acceptor { handler: handler.clone(), active: active.clone(), kind: *kind, tls: tls.clone() }
    }
}

impl<A> Acceptor<A> {
    pub fn new(
        handler: Arc<ConnectionHandler<A>>,
        active: Arc<ActiveState>,
        kind: ListenerKind,
        tls: Option<Arc<ListenerTls>>,
    ) -> Self {
        Acceptor { handler, active, kind, tls }
    }
}

impl<A: Application> Acceptor<A> {
    /// Serves a connection to its end.
    async fn serve(&self, stream: ClientStream, admitted: AdmitDecision) {
        let lifecycle = self.active.process.lifecycle.clone();
        let _connection = (self.kind == ListenerKind::Public).then(|| lifecycle.begin_connection());
        // Signals the time from which responses announce the end of their connection, which is
        // later than the end of accepting.
        self.handler
            .serve(Box::new(stream), admitted, self.tls.as_deref(), &lifecycle.draining())
            .await;
    }
}

/// The listeners of one protocol, with the acceptor of their connections.
pub struct ListenerGroup<A> {
    pub addresses: Vec<SocketAddr>,
    pub acceptor: Acceptor<A>,
}

/// A pingora service that accepts connections from bound sockets.
pub struct ListenerService<A> {
    failures: Arc<AcceptFailures>,
    threads: Option<usize>,
    groups: Vec<ListenerGroup<A>>,
    sockets: Arc<Sockets>,
    lifecycle: Arc<Lifecycle>,
}

impl<A: Application> ListenerService<A> {
    pub fn new(
        failures: AcceptFailures,
        threads: Option<usize>,
        groups: Vec<ListenerGroup<A>>,
        sockets: Arc<Sockets>,
        lifecycle: Arc<Lifecycle>,
    ) -> Self {
        ListenerService { failures: Arc::new(failures), threads, groups, sockets, lifecycle }
    }

    /// Starts accepting from each socket of a group, until `stop`.
    fn start_accepting(
        &self,
        group: &ListenerGroup<A>,
        stop: &ShutdownWatch,
        accepting: &mut JoinSet<()>,
    ) -> std::io::Result<()> {
        let acceptor = Arc::new(group.acceptor.clone());
        for socket in self.sockets.share()? {
            if group.addresses.contains(&socket.local_addr()?) {
                let listener = tokio::net::TcpListener::from_std(socket)?;
                accepting.spawn(Self::accept(
                    listener,
                    acceptor.clone(),
                    self.failures.clone(),
                    stop.clone(),
                ));
            }
        }
        Ok(())
    }

    /// Accepts connections until `stop`. Failures are counted.
    async fn accept(
        listener: tokio::net::TcpListener,
        acceptor: Arc<Acceptor<A>>,
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
                Ok((stream, peer)) => Self::serve(&acceptor, stream, peer, failures.spares()),
                Err(error) if failures.may_retry(&error, clock::now()) => {}
                Err(_) => tokio::select! {
                    () = tokio::time::sleep(RETRY_INTERVAL) => {}
                    () = stopped(&mut stop) => return,
                },
            }
        }
    }

    /// Spawns the task that serves or refuses a connection, unless it is closed at once.
    fn serve(
        acceptor: &Arc<Acceptor<A>>,
        stream: TcpStream,
        peer: SocketAddr,
        spares: Option<&Arc<Spares>>,
    ) {
        let stream = ClientStream::new(stream, peer, spares.cloned());
        if let Some(admitted) = acceptor.handler.admit(stream.id()) {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.serve(stream, admitted).await });
        }
    }

    /// Serves the connections in the queue of a closing socket, which closing would reset.
    fn serve_rest(&self, socket: TcpListener, acceptor: &Acceptor<A>) {
        let acceptor = Arc::new(acceptor.clone());
        while let Ok((stream, peer)) = socket.accept() {
            if let Ok(stream) =
                stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream))
            {
                Self::serve(&acceptor, stream, peer, self.failures.spares());
            }
        }
    }
}

/// Waits for the signal to stop accepting.
async fn stopped(stop: &mut ShutdownWatch) {
    // An error means that the sender is dropped: the process ends.
    drop(stop.wait_for(|stop| *stop).await);
}

#[async_trait]
impl<A: Application> Service for ListenerService<A> {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let kind = self.failures.kind();
        let stop = match kind {
            ListenerKind::Public => self.lifecycle.public_stop(),
            ListenerKind::Admin => self.lifecycle.admin_stop(),
        };
        let mut accepting = JoinSet::new();
        let groups = std::mem::take(&mut self.groups);
        for group in &groups {
            if let Err(error) = self.start_accepting(group, &stop, &mut accepting) {
                tracing::error!(%error, "failed to use a listener");
            }
        }
        self.lifecycle.service_started();
        if kind == ListenerKind::Public {
            tokio::spawn(watchdog());
        }
        while accepting.join_next().await.is_some() {}
        for group in groups {
            for socket in self.sockets.take(&group.addresses) {
                if !self.lifecycle.was_handed_over() {
                    self.serve_rest(socket, &group.acceptor);
                }
            }
        }
        if kind == ListenerKind::Public {
            self.lifecycle.listeners_closed();
        }
    }

    fn name(&self) -> &str {
        match self.failures.kind() {
            ListenerKind::Public => "gateway",
            ListenerKind::Admin => "admin",
        }
    }

    fn threads(&self) -> Option<usize> {
        self.threads
    }
}

/// Sends watchdog notifications from the serving threads, if the service manager expects them.
async fn watchdog() {
    let Some(every) = systemd::watchdog() else { return };
    loop {
        systemd::alive();
        tokio::time::sleep((every / 2).max(Duration::from_millis(1))).await;
    }
}
