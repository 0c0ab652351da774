//! The upgrade without downtime: a new process takes the listening sockets over from the running
//! one.
//!
//! Two locks in a folder of the gateway's own decide who does what. The *seat* is held by the
//! process that serves: no process accepts connections on sockets that were handed over unless it
//! holds it, so exactly one does. The *turn* is held by the process that is taking over, from
//! before it asks until it serves: of several that start at once all others end.
//!
//! The successor asks with QUIT and waits at a socket. The running process hands its sockets over,
//! and goes on serving until the successor is ready. Then it gives the seat up, and the successor
//! takes it and says so; only then the running process drains, and only then the successor accepts.
//! If anything fails before that, the running process takes the seat back and goes on serving.
//! Connections wait in the kernel in between; a listening socket is shared, not closed and opened
//! again, so none is refused.
//!
//! From giving the seat up on, the running process answers nothing from memory, since it does not
//! see what changes through its successor; and it reports what changes through connections that it
//! still has, so that the successor drops what it stored. In a cluster the invalidation stream does
//! both.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk, geteuid, kill_process};

use crate::config::Config;

/// How long the successor waits for the sockets.
const WAIT_FOR_SOCKETS: Duration = Duration::from_secs(30);

/// How long the running process waits for a successor to come, after QUIT.
const WAIT_FOR_SUCCESSOR: Duration = Duration::from_secs(5);

/// How long the running process waits until its successor is ready, and the successor for the
/// message that the seat is free.
const WAIT_FOR_WORD: Duration = Duration::from_secs(30);

/// How long a process tries to take the seat that the other one gave up.
const WAIT_FOR_SEAT: Duration = Duration::from_secs(1);

/// How long the running process waits until its successor has the seat: longer than that one tries.
const WAIT_FOR_SITTING: Duration = Duration::from_secs(5);

/// Between two looks at what cannot wake us.
const LOOK: Duration = Duration::from_millis(10);

/// Sockets that are handed over at most; the kernel takes no more in one message.
const MAX_SOCKETS: usize = 250;

/// What goes with the sockets; another version of the protocol would say another number.
const HELLO: &[u8; 8] = b"tgw-up 2";
/// The successor has all it needs to serve.
const READY: &[u8; 6] = b"ready.";
/// The running process gave the seat up.
const YOURS: &[u8; 6] = b"yours.";
/// The successor has the seat.
const MINE: &[u8; 6] = b"mine..";
/// Something changed through a connection of the process before.
const CHANGED: &[u8; 1] = b"!";

/// Where two processes meet.
pub struct Seat {
    socket: PathBuf,
    lock_file: File,
    turn_file: File,
}

/// The process before this one. Dropped, it ends the turn of this one.
pub struct Before {
    stream: UnixStream,
    _turn: Turn,
}

/// What the process before this one reports as long as it has connections.
pub struct Changes(UnixStream);

/// The turn to take over, given back when it is dropped.
pub struct Turn(Arc<Seat>);

impl Drop for Turn {
    fn drop(&mut self) {
        // The kernel releases it at exit at the latest.
        let _ = fcntl_lock(&self.0.turn_file, FlockOperation::Unlock);
    }
}

impl Seat {
    /// Where the configuration, or else the environment, says; `None` where neither does.
    ///
    /// # Errors
    /// The folder is not the gateway's own.
    pub fn find(config: &Config) -> Result<Option<Self>, String> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // By the admin listener's address, since several gateways may run on a machine.
        let name = format!("{}.socket", config.admin.listen);
        let socket = match &config.server.upgrade_socket {
            Some(socket) => socket.clone(),
            None => match (variable("RUNTIME_DIRECTORY"), variable("XDG_RUNTIME_DIR")) {
                (Some(folder), _) => folder.join("upgrade").join(name),
                (None, Some(folder)) => folder.join("telecomx-gateway").join(name),
                (None, None) => return Ok(None),
            },
        };
        Seat::at(socket).map(Some).map_err(|wrong| format!("server.upgrade_socket: {wrong}"))
    }

    fn at(socket: PathBuf) -> Result<Self, String> {
        let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        private_folder(folder)?;
        let (lock_file, turn_file) = (lock_file(&socket, ".lock")?, lock_file(&socket, ".turn")?);
        Ok(Seat { socket, lock_file, turn_file })
    }

    /// The other process that holds the seat.
    fn holder(&self) -> Option<Pid> {
        fcntl_getlk(&self.lock_file, &Flock::from(FlockType::WriteLock)).ok().flatten()?.pid
    }

    /// Takes the seat: from now on this process may serve, and QUIT is sent to it.
    ///
    /// # Errors
    /// Another process has it, and keeps it.
    pub fn sit(&self) -> Result<(), String> {
        let end = Instant::now() + WAIT_FOR_SEAT;
        while let Err(error) = fcntl_lock(&self.lock_file, FlockOperation::NonBlockingLockExclusive) {
            if Instant::now() > end {
                let who = self.holder().map(|id| format!(": process {id} has it")).unwrap_or_default();
                return Err(format!("{}: {error}{who}", self.socket.display()));
            }
            pause();
        }
        Ok(())
    }

    fn give_up(&self) -> Result<(), String> {
        fcntl_lock(&self.lock_file, FlockOperation::Unlock)
            .map_err(|error| format!("{}: cannot release the lock: {error}", self.socket.display()))
    }

    fn turn(self: &Arc<Self>) -> Result<Turn, String> {
        match fcntl_lock(&self.turn_file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Turn(self.clone())),
            Err(error) => {
                let socket = self.socket.display();
                Err(format!("{socket}: another upgrade is under way: {error}; wait until it has finished"))
            }
        }
    }

    /// Makes the running process hand its sockets over.
    ///
    /// # Errors
    /// No process runs, another one takes over already, or the running one does not hand over.
    pub fn take_over(self: &Arc<Self>) -> Result<(Vec<TcpListener>, Before), String> {
        let turn = self.turn()?;
        let Some(running) = self.holder() else {
            let socket = self.socket.display();
            return Err(format!(
                "no running process owns {socket}; start without --upgrade, or with the configuration and environment of the running process"
            ));
        };
        let listener = self.listen()?;
        let taken = self.take_over_at(&listener, running);
        let _ = std::fs::remove_file(&self.socket);
        let (sockets, stream) = taken?;
        Ok((sockets, Before { stream, _turn: turn }))
    }

    fn listen(&self) -> Result<UnixListener, String> {
        let wrong = |error: io::Error| format!("{}: {error}", self.socket.display());
        // Of a process that ended while it waited: the process that has the turn is the only one
        // that waits.
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        Ok(listener)
    }

    fn take_over_at(&self, listener: &UnixListener, running: Pid) -> Result<(Vec<TcpListener>, UnixStream), String> {
        tracing::info!(
            process = running.as_raw_nonzero().get(),
            "requested the listening sockets of the running process"
        );
        if let Err(error) = kill_process(running, Signal::QUIT) {
            return Err(format!("cannot send SIGQUIT to process {running}: {error}; run as the same user"));
        }
        let end = Instant::now() + WAIT_FOR_SOCKETS;
        loop {
            match listener.accept() {
                Ok((from, _)) => match peer(&from) {
                    Ok(id) if id == running => {
                        return receive(from).map_err(|error| format!("process {running}: {error}"));
                    }
                    other => tracing::warn!(?other, "refused sockets from an unexpected process"),
                },
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.to_string()),
                Err(_) if self.holder() != Some(running) => {
                    return Err(format!("process {running} exited before it handed over its sockets"));
                }
                Err(_) if Instant::now() > end => {
                    return Err(format!(
                        "process {running} did not hand over its sockets within {} s; see its log",
                        WAIT_FOR_SOCKETS.as_secs()
                    ));
                }
                Err(_) => pause(),
            }
        }
    }

    /// Gives these sockets to a successor and comes back when that one has the seat. `give_up`:
    /// what is to be done before the successor may serve, with its process id and where changes are
    /// reported to it; `go_on`: what undoes it. Gives the process id.
    ///
    /// # Errors
    /// No successor came, or it failed: this process has the seat, and nothing has changed.
    pub fn hand_over(
        &self,
        sockets: &[TcpListener],
        give_up: impl FnOnce(u32, Reports),
        go_on: impl FnOnce(),
    ) -> Result<u32, String> {
        if sockets.len() > MAX_SOCKETS {
            return Err(format!("cannot hand over more than {MAX_SOCKETS} sockets"));
        }
        let mut to = self.successor()?;
        let id = peer(&to)?;
        let failed = |error: io::Error| format!("process {id} took the sockets but did not serve: {error}");
        send(&to, sockets).map_err(|error| format!("process {id} did not take the sockets: {error}"))?;
        expect(&mut to, READY, WAIT_FOR_WORD).map_err(failed)?;
        let number = id.as_raw_nonzero().get().unsigned_abs();
        give_up(number, Reports(to.try_clone().map_err(failed)?));
        let given = self.give_up().and_then(|()| {
            let sat = to.write_all(YOURS).and_then(|()| expect(&mut to, MINE, WAIT_FOR_SITTING));
            sat.map_err(failed)
        });
        match given {
            Err(error) if self.sit().is_ok() => {
                go_on();
                Err(error)
            }
            // The successor has the seat, whatever became of its message.
            Ok(()) | Err(_) => Ok(number),
        }
    }

    fn successor(&self) -> Result<UnixStream, String> {
        let end = Instant::now() + WAIT_FOR_SUCCESSOR;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > end => {
                    return Err(format!("no successor at {}: {error}", self.socket.display()));
                }
                Err(_) => pause(),
            }
        }
    }
}

impl Before {
    /// Says that this process can serve, and takes the seat from the one before.
    ///
    /// # Errors
    /// That one keeps the seat, and goes on serving: this process must not serve.
    pub fn sit(&mut self, seat: &Seat) -> Result<Changes, String> {
        let failed = |error: io::Error| format!("the running process did not release the handover lock: {error}");
        self.stream.write_all(READY).map_err(failed)?;
        expect(&mut self.stream, YOURS, WAIT_FOR_WORD).map_err(failed)?;
        seat.sit()?;
        // Where this fails the other one finds the seat taken, and drains.
        let _ = self.stream.write_all(MINE);
        self.stream.set_read_timeout(None).and_then(|()| self.stream.try_clone()).map(Changes).map_err(failed)
    }
}

impl Changes {
    /// Waits for the next change through a connection of the process before; `false`: that one has
    /// ended.
    pub fn next(&mut self) -> bool {
        // Several at once are one: everything is dropped.
        let mut some = [0; 256];
        loop {
            match self.0.read(&mut some) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.is_ok_and(|length| length > 0),
            }
        }
    }
}

/// Where a process that has handed over reports what changes through its last connections.
pub struct Reports(UnixStream);

impl Reports {
    /// Something changed. Where the buffer is full it holds a report already.
    pub fn changed(&self) {
        let _ = rustix::net::send(&self.0, CHANGED, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Reads one message of the other process. Reports of changes before it are passed over: nothing is
/// stored yet.
fn expect(stream: &mut UnixStream, message: &[u8; 6], longest: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(longest))?;
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

/// A file next to the socket, to be locked.
fn lock_file(socket: &Path, suffix: &str) -> Result<File, String> {
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
    opened.map_err(|error| format!("{}: {error}", Path::new(&path).display()))
}

#[expect(clippy::disallowed_methods, reason = "called in threads that serve nobody")]
fn pause() {
    std::thread::sleep(LOOK);
}

/// Makes the folder if it is missing, and says what is wrong if others may look into it.
fn private_folder(folder: &Path) -> Result<(), String> {
    let shown = folder.display();
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("cannot create the directory {shown}: {error}"));
        }
        _ => {}
    }
    let data = std::fs::symlink_metadata(folder).map_err(|error| format!("directory {shown}: {error}"))?;
    if !data.is_dir() {
        return Err(format!("{shown} is not a directory or is a link; use a directory that only the gateway uses"));
    }
    let (owner, own) = (data.uid(), geteuid().as_raw());
    if owner != own {
        return Err(format!(
            "directory {shown} belongs to user id {owner}, not to the user of this process ({own}); change its owner"
        ));
    }
    let mode = data.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("directory {shown} has mode {mode:04o} and is accessible by other users; use mode 0700"));
    }
    Ok(())
}

/// The process at the other end, of this process's own user.
fn peer(stream: &UnixStream) -> Result<Pid, String> {
    let peer = socket_peercred(stream).map_err(|error| error.to_string())?;
    if peer.uid != geteuid() {
        return Err(format!("process {} belongs to another user ({})", peer.pid, peer.uid.as_raw()));
    }
    Ok(peer.pid)
}

fn send(to: &UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("too many"));
    }
    sendmsg(to, &[IoSlice::new(HELLO)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: UnixStream) -> io::Result<(Vec<TcpListener>, UnixStream)> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(WAIT_FOR_WORD))?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut hello = [0; HELLO.len()];
    recvmsg(&from, &mut [IoSliceMut::new(&mut hello)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
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
        return Err(io::Error::other("it handed no socket over"));
    }
    Ok((listeners, from))
}
