//! The listening sockets, and the way from an accepted connection to the edge.
//!
//! They are bound here and given to pingora, which accepts: an occupied port is an error of the start and no panic, a
//! successor can be given them, and what is left in their queues when they close is served and not reset.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::l4::stream::Stream as TcpStream;
use pingora_core::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use pingora_core::services::listening::Service as Accepting;
use tokio::task::JoinSet;

use super::certificate::Certificate;
use super::client_session::Application;
use super::edge::{Edge, Side};
use super::holder::holder;
use super::lifecycle::Lifecycle;
use super::notify;
use super::setup::Current;
use super::start::StartError;

/// That an address cannot be listened on, why, and who has it if it is taken and the system tells.
pub fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> String {
    let held = (error.kind() == std::io::ErrorKind::AddrInUse).then(|| holder(address)).flatten();
    let by = held.map(|holder| format!(": {holder}")).unwrap_or_default();
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
            if let Some(index) = inherited.iter().position(|(local, _)| local == address) {
                return Ok(inherited.swap_remove(index).1);
            }
            let wrong = |error| StartError::Environment(cannot_listen(*address, &error));
            let socket = TcpListener::bind(address).map_err(wrong)?;
            socket.set_nonblocking(true).map_err(wrong)?;
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
    current: Arc<Current>,
    side: Side,
    /// On a TLS listener.
    certificate: Option<Arc<Certificate>>,
}

impl<A> Clone for Door<A> {
    fn clone(&self) -> Self {
        let Door { edge, current, side, certificate } = self;
        Door { edge: edge.clone(), current: current.clone(), side: *side, certificate: certificate.clone() }
    }
}

impl<A> Door<A> {
    pub fn new(edge: Arc<Edge<A>>, current: Arc<Current>, side: Side, certificate: Option<Arc<Certificate>>) -> Self {
        Door { edge, current, side, certificate }
    }
}

#[async_trait]
impl<A: Application> ServerApp for Door<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, _accepting: &ShutdownWatch) -> Option<Stream> {
        let lifecycle = self.current.load().lifecycle.clone();
        let _connection = (self.side == Side::Public).then(|| lifecycle.connection());
        // Not when accepting stops, but when answers are to say that their connection ends.
        self.edge.serve(stream, self.certificate.as_deref(), &lifecycle.draining()).await
    }
}

/// Listeners of one kind: their addresses and what is behind them.
pub struct Entrance<A> {
    pub addresses: Vec<SocketAddr>,
    pub door: Door<A>,
}

/// A service of pingora's that accepts connections, from sockets that were bound before.
pub struct Listening<A> {
    name: &'static str,
    threads: Option<usize>,
    entrances: Vec<Entrance<A>>,
    sockets: Arc<Sockets>,
    lifecycle: Arc<Lifecycle>,
    side: Side,
}

impl<A: Application> Listening<A> {
    pub fn new(
        side: Side,
        threads: Option<usize>,
        entrances: Vec<Entrance<A>>,
        sockets: Arc<Sockets>,
        lifecycle: Arc<Lifecycle>,
    ) -> Self {
        let name = match side {
            Side::Public => "gateway",
            Side::Admin => "admin",
        };
        Listening { name, threads, entrances, sockets, lifecycle, side }
    }

    /// pingora's service on these sockets.
    fn accepting(&self, entrance: &Entrance<A>) -> std::io::Result<(Accepting<Door<A>>, ListenFds)> {
        let mut service = Accepting::new(self.name.into(), entrance.door.clone());
        let mut fds = Fds::new();
        for socket in self.sockets.share()? {
            let address = socket.local_addr()?;
            if entrance.addresses.contains(&address) {
                // The edge and TLS read into buffers of their own; pingora's, of 64 KiB, would be held by every idle
                // connection.
                let unbuffered = L4BufferSettings::default().read(0);
                service.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(unbuffered));
                fds.add(address.to_string(), socket.into_raw_fd());
            }
        }
        Ok((service, Arc::new(Mutex::new(fds))))
    }

    /// Serves what came before its listener closed and was not accepted yet: closing would reset it.
    fn serve_rest(socket: TcpListener, door: &Door<A>) {
        while let Ok((stream, peer)) = socket.accept() {
            let Ok(stream) = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) else {
                continue;
            };
            let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
            // It is new, so it holds none.
            let _ = digest.peer_addr.set(Some(peer.into()));
            let mut stream = TcpStream::from(stream);
            stream.set_socket_digest(digest);
            let _ = stream.set_nodelay();
            let door = Arc::new(door.clone());
            let never = tokio::sync::watch::channel(false).1;
            tokio::spawn(async move { door.process_new(Box::new(stream), &never).await });
        }
    }
}

#[async_trait]
impl<A: Application> Service for Listening<A> {
    async fn start_service(&mut self, _none: Option<ListenFds>, _shutdown: ShutdownWatch, listeners_per_fd: usize) {
        let stop = match self.side {
            Side::Public => self.lifecycle.public_stop(),
            Side::Admin => self.lifecycle.admin_stop(),
        };
        let mut accepting = JoinSet::new();
        let entrances = std::mem::take(&mut self.entrances);
        for entrance in &entrances {
            match self.accepting(entrance) {
                Ok((mut service, fds)) => {
                    let stop = stop.clone();
                    accepting.spawn(async move { service.start_service(Some(fds), stop, listeners_per_fd).await });
                }
                Err(error) => tracing::error!(%error, "a listener cannot be used"),
            }
        }
        self.lifecycle.service_started();
        if self.side == Side::Public {
            tokio::spawn(watchdog());
        }
        while accepting.join_next().await.is_some() {}
        for entrance in entrances {
            for socket in self.sockets.take(&entrance.addresses) {
                if !self.lifecycle.was_handed_over() {
                    Self::serve_rest(socket, &entrance.door);
                }
            }
        }
        if self.side == Side::Public {
            self.lifecycle.listeners_closed();
        }
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        self.threads
    }
}

/// Signs of life from the threads that serve, where the service manager waits for them.
async fn watchdog() {
    let Some(every) = notify::watchdog() else { return };
    loop {
        notify::alive();
        tokio::time::sleep((every / 2).max(Duration::from_millis(1))).await;
    }
}
