//! The upgrade without downtime: a successor takes the listening sockets over from the running
//! process.
//!
//! Two locks in a private folder decide which process may do what. The *serving lock* belongs to
//! the process that serves: a process accepts connections on sockets that were handed over only
//! while it has the lock, so exactly one does. The *upgrade lock* belongs to the process that is
//! taking over, from before it requests the sockets until it serves: of several that start at once,
//! all others exit.
//!
//! The successor sends SIGQUIT and waits at a socket. The running process hands its listening
//! sockets over and serves until the successor is ready. Then it releases the serving lock, and the
//! successor acquires it and confirms that. Only then the running process drains, and only then
//! the successor accepts connections. If a step before that fails, the running process acquires the
//! lock again and continues to serve. In between, connections wait in the kernel. A listening
//! socket is shared, not closed and opened again, so no connection is refused.
//!
//! From the release of the serving lock on, the running process serves nothing from its cache,
//! since it does not see changes that pass through its successor; and it reports changes that pass
//! through its remaining connections, so that the successor drops what it stored. In a cluster the
//! invalidation stream does both.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk, geteuid, kill_process};
use thiserror::Error;

use crate::clock;
use crate::config::Config;

/// How long the successor waits for the sockets.
const SOCKETS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the running process waits for the connection of its successor after SIGQUIT.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the running process waits until its successor is ready, and the successor until the
/// serving lock is released.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a process tries to acquire the serving lock that the other process released.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the running process waits for the confirmation that its successor has the serving
/// lock: longer than the successor tries.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval between two attempts at what sends no notification.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Maximum number of sockets in a handover: the kernel takes no more in one message.
const MAX_SOCKETS: usize = 250;

/// The message that carries the sockets, with the version of the protocol.
const HELLO: &[u8; 8] = b"tgw-up 2";
/// The successor is ready to serve.
const READY: &[u8; 6] = b"ready.";
/// The running process released the serving lock.
const RELEASED: &[u8; 6] = b"yours.";
/// The successor acquired the serving lock.
const ACQUIRED: &[u8; 6] = b"mine..";
/// A change passed through a connection of the predecessor.
const CHANGED: &[u8; 1] = b"!";

/// A failed upgrade, or a socket or folder that cannot be used for one.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct HandoverError(String);

/// Variable that names the running process's socket to a successor that it starts. A changed
/// configuration may give the successor another socket.
const PREDECESSOR_VARIABLE: &str = "TELECOMX_UPGRADE_FROM";

/// The place where a running process and its successor meet.
pub struct UpgradeSocket {
    socket: PathBuf,
    serving_lock: File,
    upgrade_lock: File,
}

/// The running process, seen from its successor. Dropping it releases the upgrade lock.
pub struct Predecessor {
    stream: UnixStream,
    _upgrade_lock: UpgradeLock,
}

/// The changes that the predecessor reports while it has connections.
pub struct PredecessorChanges(UnixStream);

/// The acquired upgrade lock.
struct UpgradeLock(Arc<UpgradeSocket>);

impl Drop for UpgradeLock {
    fn drop(&mut self) {
        // The kernel releases it at exit at the latest.
        let _ = fcntl_lock(&self.0.upgrade_lock, FlockOperation::Unlock);
    }
}

impl UpgradeSocket {
    /// Opens the socket that the configuration names, or else one in a folder that the environment
    /// names; `None` without either.
    ///
    /// # Errors
    /// Other users can access the folder.
    pub fn find(config: &Config) -> Result<Option<Self>, HandoverError> {
        let folder =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // Several gateways may run on a machine, each with its own admin listener.
        let name = format!("{}.socket", config.admin.listen);
        let socket = match &config.server.upgrade_socket {
            Some(socket) => socket.clone(),
            None => match (folder("RUNTIME_DIRECTORY"), folder("XDG_RUNTIME_DIR")) {
                (Some(folder), _) => folder.join("upgrade").join(name),
                (None, Some(folder)) => folder.join("telecomx-gateway").join(name),
                (None, None) => return Ok(None),
            },
        };
        let opened = UpgradeSocket::open(socket);
        opened.map(Some).map_err(|error| HandoverError(format!("server.upgrade_socket: {error}")))
    }

    /// Opens the socket of the process that started this one as its successor; `None` if it was not
    /// started in this way, or the socket is its own.
    ///
    /// # Errors
    /// Other users can access the folder.
    pub fn find_predecessors(&self) -> Result<Option<Self>, HandoverError> {
        match std::env::var_os(PREDECESSOR_VARIABLE).map(PathBuf::from) {
            Some(socket) if socket != self.socket => UpgradeSocket::open(socket).map(Some),
            _ => Ok(None),
        }
    }

    /// Names this socket to a successor.
    pub fn pass_to_successor(&self, command: &mut Command) {
        command.env(PREDECESSOR_VARIABLE, &self.socket);
    }

    fn open(socket: PathBuf) -> Result<Self, HandoverError> {
        let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
        prepare_private_folder(folder.unwrap_or(Path::new(".")))?;
        let serving_lock = open_lock_file(&socket, ".lock")?;
        let upgrade_lock = open_lock_file(&socket, ".turn")?;
        Ok(UpgradeSocket { socket, serving_lock, upgrade_lock })
    }

    /// The other process that has the serving lock.
    fn serving_process(&self) -> Option<Pid> {
        let lock = Flock::from(FlockType::WriteLock);
        fcntl_getlk(&self.serving_lock, &lock).ok().flatten()?.pid
    }

    /// Acquires the serving lock: from now on this process may serve, and successors send SIGQUIT
    /// to it.
    ///
    /// # Errors
    /// Another process keeps the lock.
    pub fn acquire_serving_lock(&self) -> Result<(), HandoverError> {
        let end = clock::now() + LOCK_TIMEOUT;
        let acquire = || fcntl_lock(&self.serving_lock, FlockOperation::NonBlockingLockExclusive);
        while let Err(error) = acquire() {
            if clock::now() > end {
                let owner = self.serving_process();
                let owner = owner.map(|id| format!(": process {id} has it")).unwrap_or_default();
                return Err(HandoverError(format!("{}: {error}{owner}", self.socket.display())));
            }
            wait_before_retry();
        }
        Ok(())
    }

    fn release_serving_lock(&self) -> Result<(), HandoverError> {
        fcntl_lock(&self.serving_lock, FlockOperation::Unlock).map_err(|error| {
            HandoverError(format!("{}: cannot release the lock: {error}", self.socket.display()))
        })
    }

    fn acquire_upgrade_lock(self: &Arc<Self>) -> Result<UpgradeLock, HandoverError> {
        match fcntl_lock(&self.upgrade_lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(UpgradeLock(self.clone())),
            Err(error) => Err(HandoverError(format!(
                "{}: another upgrade is under way: {error}; wait until it has finished",
                self.socket.display()
            ))),
        }
    }

    /// Takes the listening sockets over from the running process.
    ///
    /// # Errors
    /// No process runs, another process is taking over, or the running one does not hand over.
    pub fn take_over(self: &Arc<Self>) -> Result<(Vec<TcpListener>, Predecessor), HandoverError> {
        let upgrade_lock = self.acquire_upgrade_lock()?;
        let Some(running) = self.serving_process() else {
            return Err(HandoverError(format!(
                "no running process owns {}; start without --upgrade, or with the configuration and environment of \
                 the running process",
                self.socket.display()
            )));
        };
        let listener = self.listen()?;
        let received = self.receive_sockets(&listener, running);
        let _ = std::fs::remove_file(&self.socket);
        let received = received?;
        let predecessor = Predecessor { stream: received.stream, _upgrade_lock: upgrade_lock };
        Ok((received.listeners, predecessor))
    }

    fn listen(&self) -> Result<UnixListener, HandoverError> {
        let failed =
            |error: io::Error| HandoverError(format!("{}: {error}", self.socket.display()));
        // The file of a process that ended while it waited: only the process with the upgrade lock
        // waits here.
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    fn receive_sockets(
        &self,
        listener: &UnixListener,
        running: Pid,
    ) -> Result<ReceivedSockets, HandoverError> {
        let process = running.as_raw_nonzero().get();
        tracing::info!(process, "requested the listening sockets of the running process");
        if let Err(error) = kill_process(running, Signal::QUIT) {
            return Err(HandoverError(format!(
                "cannot send SIGQUIT to process {running}: {error}; run as the same user"
            )));
        }
        let end = clock::now() + SOCKETS_TIMEOUT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => match peer_process(&stream) {
                    Ok(id) if id == running => {
                        let received = receive(stream);
                        return received
                            .map_err(|error| HandoverError(format!("process {running}: {error}")));
                    }
                    other => {
                        tracing::warn!(?other, "refused sockets from an unexpected process");
                    }
                },
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(HandoverError(error.to_string()));
                }
                Err(_) if self.serving_process() != Some(running) => {
                    return Err(HandoverError(format!(
                        "process {running} exited before it handed over its sockets"
                    )));
                }
                Err(_) if clock::now() > end => {
                    return Err(HandoverError(format!(
                        "process {running} did not hand over its sockets within {} s; see its log",
                        SOCKETS_TIMEOUT.as_secs()
                    )));
                }
                Err(_) => wait_before_retry(),
            }
        }
    }

    /// Hands these sockets to a successor; returns its process id once it has the serving lock.
    /// `release` prepares this process before the successor may serve: its arguments are the
    /// successor's process id and the channel for reports of changes. `resume` undoes that.
    ///
    /// # Errors
    /// No successor came, or it failed: this process has the serving lock, and nothing has changed.
    pub fn hand_over(
        &self,
        sockets: &[TcpListener],
        release: impl FnOnce(u32, ChangeReports),
        resume: impl FnOnce(),
    ) -> Result<u32, HandoverError> {
        if sockets.len() > MAX_SOCKETS {
            return Err(HandoverError(format!("cannot hand over more than {MAX_SOCKETS} sockets")));
        }
        let mut stream = self.connect_to_successor()?;
        let id = peer_process(&stream)?;
        let failed = |error: io::Error| {
            HandoverError(format!("process {id} took the sockets but did not serve: {error}"))
        };
        send(&stream, sockets).map_err(|error| {
            HandoverError(format!("process {id} did not take the sockets: {error}"))
        })?;
        expect_message(&mut stream, READY, MESSAGE_TIMEOUT).map_err(failed)?;
        let process = id.as_raw_nonzero().get().unsigned_abs();
        release(process, ChangeReports(stream.try_clone().map_err(failed)?));
        let handed_over = self.release_serving_lock().and_then(|()| {
            let sent = stream.write_all(RELEASED);
            sent.and_then(|()| expect_message(&mut stream, ACQUIRED, CONFIRMATION_TIMEOUT))
                .map_err(failed)
        });
        match handed_over {
            Err(error) if self.acquire_serving_lock().is_ok() => {
                resume();
                Err(error)
            }
            // The successor has the lock, even if its confirmation was lost.
            Ok(()) | Err(_) => Ok(process),
        }
    }

    fn connect_to_successor(&self) -> Result<UnixStream, HandoverError> {
        let end = clock::now() + SUCCESSOR_TIMEOUT;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if clock::now() > end => {
                    return Err(HandoverError(format!(
                        "no successor at {}: {error}",
                        self.socket.display()
                    )));
                }
                Err(_) => wait_before_retry(),
            }
        }
    }
}

impl Predecessor {
    /// Reports that this process is ready, and takes the serving lock from the predecessor.
    ///
    /// # Errors
    /// The predecessor keeps the lock and continues to serve: this process must not serve.
    pub fn take_serving_lock(
        &mut self,
        socket: &UpgradeSocket,
    ) -> Result<PredecessorChanges, HandoverError> {
        let failed = |error: io::Error| {
            HandoverError(format!("the running process did not release the handover lock: {error}"))
        };
        self.stream.write_all(READY).map_err(failed)?;
        expect_message(&mut self.stream, RELEASED, MESSAGE_TIMEOUT).map_err(failed)?;
        socket.acquire_serving_lock()?;
        // If this fails, the predecessor finds the lock taken, and drains.
        let _ = self.stream.write_all(ACQUIRED);
        self.stream.set_read_timeout(None).map_err(failed)?;
        self.stream.try_clone().map(PredecessorChanges).map_err(failed)
    }
}

impl PredecessorChanges {
    /// Waits for the next change that passed through the predecessor; `false` once it has exited.
    pub fn wait(&mut self) -> bool {
        // Several reports are read as one, since each drops the whole cache.
        let mut buffer = [0; 256];
        loop {
            match self.0.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.is_ok_and(|length| length > 0),
            }
        }
    }
}

/// The channel to the successor for changes that pass through the remaining connections.
pub struct ChangeReports(UnixStream);

impl ChangeReports {
    /// Reports a change. A full buffer contains a report already, so this never waits.
    pub fn send(&self) {
        let _ = rustix::net::send(&self.0, CHANGED, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Reads one message of the other process. Reports of changes before it are skipped: nothing is
/// cached yet.
fn expect_message(stream: &mut UnixStream, message: &[u8; 6], timeout: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(timeout))?;
    for byte in message {
        let mut read = *CHANGED;
        while read == *CHANGED {
            stream.read_exact(&mut read)?;
        }
        if read != [*byte] {
            return Err(io::Error::other("unexpected message"));
        }
    }
    Ok(())
}

/// Opens a lock file next to the socket.
fn open_lock_file(socket: &Path, suffix: &str) -> Result<File, HandoverError> {
    let mut path = socket.to_owned().into_os_string();
    path.push(suffix);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(&path);
    opened.map_err(|error| HandoverError(format!("{}: {error}", Path::new(&path).display())))
}

#[expect(clippy::disallowed_methods, reason = "called in threads that serve no request")]
fn wait_before_retry() {
    std::thread::sleep(RETRY_INTERVAL);
}

/// Creates the folder if it is missing, and checks that only this user can access it.
fn prepare_private_folder(folder: &Path) -> Result<(), HandoverError> {
    let shown = folder.display();
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(HandoverError(format!("cannot create the directory {shown}: {error}")));
        }
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(folder);
    let metadata =
        metadata.map_err(|error| HandoverError(format!("directory {shown}: {error}")))?;
    if !metadata.is_dir() {
        return Err(HandoverError(format!(
            "{shown} is not a directory or is a link; use a directory that only the gateway uses"
        )));
    }
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != user {
        return Err(HandoverError(format!(
            "directory {shown} belongs to user id {owner}, not to the user of this process ({user}); change its owner"
        )));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(HandoverError(format!(
            "directory {shown} has mode {mode:04o} and is accessible by other users; use mode 0700"
        )));
    }
    Ok(())
}

/// The process at the other end, if it belongs to the same user.
fn peer_process(stream: &UnixStream) -> Result<Pid, HandoverError> {
    let peer = socket_peercred(stream).map_err(|error| HandoverError(error.to_string()))?;
    if peer.uid != geteuid() {
        let (process, user) = (peer.pid, peer.uid.as_raw());
        return Err(HandoverError(format!("process {process} belongs to another user ({user})")));
    }
    Ok(peer.pid)
}

fn send(stream: &UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("too many sockets"));
    }
    sendmsg(stream, &[IoSlice::new(HELLO)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The listening sockets of the running process, and the connection to it.
struct ReceivedSockets {
    listeners: Vec<TcpListener>,
    stream: UnixStream,
}

fn receive(stream: UnixStream) -> io::Result<ReceivedSockets> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut hello = [0; HELLO.len()];
    recvmsg(&stream, &mut [IoSliceMut::new(&mut hello)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if hello != *HELLO {
        return Err(io::Error::other(
            "the running process uses an unknown handover protocol; stop it, then start this one",
        ));
    }
    let mut listeners = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            listeners.extend(sockets.map(|socket: OwnedFd| TcpListener::from(socket)));
        }
    }
    if listeners.is_empty() {
        return Err(io::Error::other("it handed over no socket"));
    }
    Ok(ReceivedSockets { listeners, stream })
}
