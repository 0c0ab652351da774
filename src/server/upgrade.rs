//! The upgrade without downtime: a new process takes the listening sockets over from the one that runs.
//!
//! The two meet at a socket in a folder that is the gateway's own. The running process holds a lock there, by which the new
//! one knows whom to send QUIT. The running one then hands its sockets over, goes on serving until the new one says that
//! it serves, and only then drains. Whatever fails before that changes nothing: the running process stays.
//!
//! A listening socket is shared, not closed and opened again: no connection is refused, and none that waits to be
//! accepted is lost.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
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

/// How long the running process waits for its successor to serve, and the successor for the last word.
const WAIT_FOR_WORD: Duration = Duration::from_secs(30);

/// Between two looks at what cannot wake us.
const LOOK: Duration = Duration::from_millis(10);

/// Sockets that are handed over at most; the kernel takes no more in one message.
const MAX_SOCKETS: usize = 250;

/// What goes with the sockets; another version of the protocol would say another number.
const HELLO: &[u8; 8] = b"tgw-up 1";
/// The successor serves.
const SERVES: &[u8; 6] = b"serves";
/// The running process drains.
const DRAINS: &[u8; 6] = b"drains";

/// Where two processes meet.
pub struct Seat {
    socket: PathBuf,
    lock_file: File,
}

/// The process before this one, which is owed a word.
pub struct Before(UnixStream);

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
        let mut lock = socket.clone().into_os_string();
        lock.push(".lock");
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(&lock);
        let lock_file = opened.map_err(|error| format!("{}: {error}", Path::new(&lock).display()))?;
        Ok(Seat { socket, lock_file })
    }

    /// The other process that holds the seat.
    fn holder(&self) -> Option<Pid> {
        fcntl_getlk(&self.lock_file, &Flock::from(FlockType::WriteLock)).ok().flatten()?.pid
    }

    /// Takes the seat: from now on QUIT is sent to this process.
    ///
    /// # Errors
    /// Another process has it, and keeps it.
    pub fn sit(&self) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(1);
        while let Err(error) = fcntl_lock(&self.lock_file, FlockOperation::NonBlockingLockExclusive) {
            if Instant::now() > end {
                let who = self.holder().map(|id| format!(": process {id} has it")).unwrap_or_default();
                return Err(format!("{}: {error}{who}", self.socket.display()));
            }
            pause();
        }
        Ok(())
    }

    /// Makes the running process hand its sockets over.
    ///
    /// # Errors
    /// Nobody runs, or it does not hand over.
    pub fn take_over(&self) -> Result<(Vec<TcpListener>, Before), String> {
        let Some(running) = self.holder() else {
            let socket = self.socket.display();
            return Err(format!(
                "nobody to take over from: no running process has {socket}; start without --upgrade, or with the \
                 configuration and environment of the one that runs"
            ));
        };
        let listener = self.listen()?;
        let taken = self.take_over_at(&listener, running);
        let _ = std::fs::remove_file(&self.socket);
        taken
    }

    fn listen(&self) -> Result<UnixListener, String> {
        let wrong = |error: io::Error| format!("{}: {error}", self.socket.display());
        if UnixStream::connect(&self.socket).is_ok() {
            return Err(format!("{}: another process waits there for the sockets already", self.socket.display()));
        }
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        Ok(listener)
    }

    fn take_over_at(&self, listener: &UnixListener, running: Pid) -> Result<(Vec<TcpListener>, Before), String> {
        tracing::info!(process = running.as_raw_nonzero().get(), "asking the running process for its sockets");
        if let Err(error) = kill_process(running, Signal::QUIT) {
            return Err(format!("process {running} cannot be sent QUIT: {error}; run as the same user"));
        }
        let end = Instant::now() + WAIT_FOR_SOCKETS;
        loop {
            match listener.accept() {
                Ok((from, _)) => match peer(&from) {
                    Ok(id) if id == running => {
                        return receive(from).map_err(|error| format!("process {running}: {error}"));
                    }
                    other => tracing::warn!(?other, "somebody else came to hand sockets over, and was sent away"),
                },
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.to_string()),
                Err(_) if self.holder() != Some(running) => {
                    return Err(format!("process {running} ended before it handed its sockets over"));
                }
                Err(_) if Instant::now() > end => {
                    return Err(format!(
                        "process {running} did not hand its sockets over within {} s; its log may say why",
                        WAIT_FOR_SOCKETS.as_secs()
                    ));
                }
                Err(_) => pause(),
            }
        }
    }

    /// Gives these sockets to a successor and waits until it serves. `last`: what is to be done before the successor may
    /// go on. Gives the successor's process id.
    ///
    /// # Errors
    /// Nobody came, or it failed: nothing has changed.
    pub fn hand_over(&self, sockets: &[TcpListener], last: impl FnOnce(u32)) -> Result<u32, String> {
        if sockets.len() > MAX_SOCKETS {
            return Err(format!("more than {MAX_SOCKETS} sockets cannot be handed over"));
        }
        let mut to = self.successor()?;
        let id = peer(&to)?;
        let word = |error: io::Error| format!("process {id} took the sockets and did not serve: {error}");
        send(&to, sockets).map_err(|error| format!("process {id} did not take the sockets: {error}"))?;
        to.set_read_timeout(Some(WAIT_FOR_WORD)).map_err(word)?;
        let mut said = [0; SERVES.len()];
        to.read_exact(&mut said).map_err(word)?;
        if said != *SERVES {
            return Err(format!("process {id} said something else than that it serves"));
        }
        let id = id.as_raw_nonzero().get().unsigned_abs();
        last(id);
        if let Err(error) = fcntl_lock(&self.lock_file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the seat cannot be given up; it goes with this process");
        }
        // It serves, whether it hears this or not.
        let _ = to.write_all(DRAINS);
        Ok(id)
    }

    fn successor(&self) -> Result<UnixStream, String> {
        let end = Instant::now() + WAIT_FOR_SUCCESSOR;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > end => {
                    return Err(format!("no successor waits at {}: {error}", self.socket.display()));
                }
                Err(_) => pause(),
            }
        }
    }
}

impl Before {
    /// Says that this process serves, and waits until the other one drains.
    pub fn serve(mut self) {
        let mut said = [0; DRAINS.len()];
        let told = self.0.write_all(SERVES).and_then(|()| self.0.set_read_timeout(Some(WAIT_FOR_WORD)));
        if let Err(error) = told.and_then(|()| self.0.read_exact(&mut said)) {
            tracing::warn!(%error, "the process before this one left without a word");
        }
    }
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
            return Err(format!("the folder {shown} cannot be made: {error}"));
        }
        _ => {}
    }
    let data = std::fs::symlink_metadata(folder).map_err(|error| format!("the folder {shown}: {error}"))?;
    if !data.is_dir() {
        return Err(format!("{shown} is not a folder, or a link to one; name a folder of the gateway's own"));
    }
    let (owner, own) = (data.uid(), geteuid().as_raw());
    if owner != own {
        return Err(format!("the folder {shown} is the user's with id {owner}, not this process's ({own}); chown it"));
    }
    let mode = data.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("the folder {shown} has mode {mode:04o}, so others may come in; chmod it to 0700"));
    }
    Ok(())
}

/// The process at the other end, of this process's own user.
fn peer(stream: &UnixStream) -> Result<Pid, String> {
    let peer = socket_peercred(stream).map_err(|error| error.to_string())?;
    if peer.uid != geteuid() {
        return Err(format!("process {} is another user's ({})", peer.pid, peer.uid.as_raw()));
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

fn receive(from: UnixStream) -> io::Result<(Vec<TcpListener>, Before)> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(WAIT_FOR_WORD))?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut hello = [0; HELLO.len()];
    recvmsg(&from, &mut [IoSliceMut::new(&mut hello)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if hello != *HELLO {
        return Err(io::Error::other("it hands over in a way that this version does not know; stop it, then start"));
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
    Ok((listeners, Before(from)))
}
