//! The signals that end the process, or ask something of it, and what is said once it serves.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::lifecycle::{Lifecycle, Stop};
use super::listening::Sockets;
use super::notify;
use super::setup::{Current, Reloader};
use super::upgrade::{Before, Seat};

/// What the signals act on.
pub struct Signals {
    pub lifecycle: Arc<Lifecycle>,
    pub current: Arc<Current>,
    pub reloader: Arc<Reloader>,
    pub sockets: Arc<Sockets>,
    /// Where a successor is met; without one there is no upgrade.
    pub seat: Option<Arc<Seat>>,
    /// The process whose sockets these were.
    pub before: Mutex<Option<Before>>,
    /// What it does, in a few words.
    pub status: String,
}

/// A signal that cannot be listened for never comes.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind).map_err(|error| tracing::error!(%error, "a signal cannot be listened for")).ok()
}

impl Signals {
    /// Says that it serves: to the process before this one, which then drains, and to the service manager.
    async fn announce(&self) {
        self.lifecycle.serves().await;
        let (before, seat, status) = (self.before.lock().take(), self.seat.clone(), self.status.clone());
        let lifecycle = self.lifecycle.clone();
        blocking(move || {
            if let Some(before) = before {
                before.serve();
            }
            if let Some(Err(error)) = seat.map(|seat| seat.sit()) {
                tracing::warn!(error, "this process cannot be upgraded without downtime");
            }
            tracing::info!("ready: {status}");
            if !lifecycle.is_draining() {
                notify::ready(&status);
            }
        });
    }

    fn reload(&self) {
        let (reloader, status) = (self.reloader.clone(), self.status.clone());
        // It reads files; the log tells how it went.
        blocking(move || {
            notify::reloading();
            match reloader.reload() {
                Ok(restart) if restart.is_empty() => notify::ready(&status),
                Ok(restart) => notify::ready(&format!("{status}; a restart is needed for {}", restart.join(", "))),
                Err(problems) => {
                    let first = problems.lines().next().unwrap_or_default();
                    notify::ready(&format!("the configuration was not taken up: {first}"));
                }
            }
        });
    }

    fn terminate(&self) {
        let times = self.current.load().drain;
        self.lifecycle.stop(Stop::Terminated { delay: times.delay, drain: times.longest });
    }

    /// Starts a successor in this process's place: within the same service, with the same environment and arguments, from
    /// the file that stands there now.
    fn succeed(&self) {
        if self.seat.is_none() {
            tracing::error!("USR2: there is nowhere to meet a successor; set server.upgrade_socket");
            return;
        }
        if self.lifecycle.is_draining() {
            tracing::info!("USR2: it stops already");
            return;
        }
        blocking(|| {
            let mut arguments = std::env::args_os();
            let Some(program) = arguments.next() else { return };
            let kept = arguments.filter(|argument| argument != "--upgrade");
            match Command::new(program).args(kept).arg("--upgrade").spawn() {
                Ok(mut successor) => {
                    tracing::info!(process = successor.id(), "USR2: a successor starts");
                    // Comes back only if it fails: otherwise this process ends first.
                    if let Ok(status) = successor.wait() {
                        tracing::error!(%status, "the successor ended; this process goes on serving");
                    }
                }
                Err(error) => tracing::error!(%error, "USR2: no successor can be started"),
            }
        });
    }

    fn hand_over(&self) {
        let Some(seat) = self.seat.clone() else {
            tracing::error!(
                "QUIT: there is nowhere to meet a successor; set server.upgrade_socket. It goes on serving"
            );
            return;
        };
        let (lifecycle, sockets) = (self.lifecycle.clone(), self.sockets.clone());
        let drain: Duration = self.current.load().drain.longest;
        blocking(move || {
            if lifecycle.is_draining() {
                tracing::info!("QUIT: it stops already");
                return;
            }
            let handed = sockets
                .share()
                .map_err(|error| error.to_string())
                .and_then(|sockets| seat.hand_over(&sockets, notify::handed_over));
            match handed {
                Ok(process) => {
                    tracing::info!(process, "handed over");
                    lifecycle.stop(Stop::HandedOver { drain });
                }
                Err(error) => tracing::error!(error, "QUIT: not handed over; it goes on serving"),
            }
        });
    }
}

/// Elsewhere, since it waits.
fn blocking(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut hangup = listen(SignalKind::hangup());
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        let mut second = listen(SignalKind::user_defined2());
        let announced = self.announce();
        tokio::pin!(announced);
        let mut serves = false;
        loop {
            tokio::select! {
                () = &mut announced, if !serves => serves = true,
                () = next(&mut hangup) => self.reload(),
                () = next(&mut terminate) => self.terminate(),
                () = next(&mut quit) => self.hand_over(),
                () = next(&mut second) => self.succeed(),
                () = next(&mut interrupt) => {
                    tracing::info!("INT: stopping now");
                    return ShutdownSignal::FastShutdown;
                }
            }
        }
    }
}
