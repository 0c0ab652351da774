//! The signals that end the process, or ask something of it, and what is said once it serves.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::lifecycle::{Lifecycle, Stop};
use super::listening::Sockets;
use super::notify;
use super::setup::{Current, Reloader};
use super::upgrade::{Before, Reports, Seat};
use crate::clock;

/// Longer than any process lives.
const EVER: Duration = Duration::from_hours(24 * 365 * 100);

/// What the signals act on.
pub struct Signals {
    pub lifecycle: Arc<Lifecycle>,
    pub current: Arc<Current>,
    pub reloader: Arc<Reloader>,
    pub sockets: Arc<Sockets>,
    /// Where a successor is met; without one there is no upgrade.
    pub seat: Option<Arc<Seat>>,
    /// The process whose sockets these were, as long as this one does not serve.
    pub before: Mutex<Option<Before>>,
    /// How often a handover was asked for since one is under way.
    pub handing_over: Arc<AtomicUsize>,
    /// Where changes are reported to the successor.
    pub reports: Arc<Mutex<Option<Reports>>>,
    /// A successor that this process started has not ended.
    pub has_successor: Arc<AtomicBool>,
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
    signal(kind).map_err(|error| tracing::error!(%error, "failed to install a signal handler")).ok()
}

/// Makes HUP, QUIT and USR2 do nothing from now on, until `Signals` obeys them: by default each
/// of them would end a process that is still starting. tokio keeps the handlers that it installs
/// here.
///
/// # Errors
/// The operating system does not give what is needed.
pub fn ignore_until_serving() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    [SignalKind::hangup(), SignalKind::quit(), SignalKind::user_defined2()]
        .into_iter()
        .try_for_each(|kind| signal(kind).map(drop))
}

impl Signals {
    /// Says that it serves, to the service manager; and lets the next one take over.
    async fn announce(&self) {
        self.lifecycle.serves().await;
        let (before, seat, status) = (self.before.lock().take(), self.seat.clone(), self.status.clone());
        let lifecycle = self.lifecycle.clone();
        blocking(move || {
            tracing::info!("ready: {status}");
            if !lifecycle.is_draining() {
                notify::ready(&status);
            }
            match (before, seat) {
                // It took the seat before it served.
                (Some(before), _) => drop(before),
                (None, Some(seat)) => take_own_seat(&seat, &lifecycle),
                (None, None) => {}
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
                    notify::ready(&format!("the configuration was rejected: {first}"));
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
            tracing::error!("SIGUSR2 ignored: no upgrade socket; set server.upgrade_socket");
            return;
        }
        if self.lifecycle.is_draining() {
            tracing::info!("SIGUSR2 ignored: shutdown is under way");
            return;
        }
        if self.has_successor.swap(true, Ordering::AcqRel) {
            tracing::info!("SIGUSR2 ignored: a successor is starting");
            return;
        }
        let has_successor = self.has_successor.clone();
        blocking(move || {
            start_successor();
            has_successor.store(false, Ordering::Release);
        });
    }

    /// One handover at a time. One that is asked for meanwhile begins where the first fails.
    fn hand_over(&self) {
        let Some(seat) = self.seat.clone() else {
            tracing::error!("SIGQUIT ignored: no upgrade socket; set server.upgrade_socket");
            return;
        };
        if self.handing_over.fetch_add(1, Ordering::AcqRel) > 0 {
            tracing::info!("SIGQUIT ignored: a handover is under way");
            return;
        }
        let handover = Handover {
            seat,
            lifecycle: self.lifecycle.clone(),
            sockets: self.sockets.clone(),
            current: self.current.clone(),
            reports: self.reports.clone(),
        };
        let asked = self.handing_over.clone();
        blocking(move || {
            loop {
                let so_far = asked.load(Ordering::Acquire);
                handover.run();
                if asked.compare_exchange(so_far, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return;
                }
            }
        });
    }
}

/// What a handover needs.
struct Handover {
    seat: Arc<Seat>,
    lifecycle: Arc<Lifecycle>,
    sockets: Arc<Sockets>,
    current: Arc<Current>,
    reports: Arc<Mutex<Option<Reports>>>,
}

impl Handover {
    fn run(&self) {
        if self.lifecycle.is_draining() {
            tracing::info!("SIGQUIT ignored: shutdown is under way");
            return;
        }
        let setup = self.current.load();
        let handed = self.sockets.share().map_err(|error| error.to_string()).and_then(|sockets| {
            self.seat.hand_over(
                &sockets,
                |process, reports| {
                    notify::main_process(process);
                    self.rely_on_the_api(reports);
                },
                || {
                    self.rely_on_memory();
                    notify::main_process(std::process::id());
                },
            )
        });
        match handed {
            Ok(process) => {
                tracing::info!(process, "handed over");
                self.lifecycle.stop(Stop::HandedOver { drain: setup.drain.longest });
            }
            Err(error) => tracing::error!(error, "handover failed; this process continues to serve"),
        }
    }

    /// Nothing is answered from memory any more, and changes are reported. Not in a cluster, where
    /// the successor's changes come through the stream, and its own reach the successor.
    fn rely_on_the_api(&self, reports: Reports) {
        let setup = self.current.load();
        if setup.bus.get().is_some() {
            return;
        }
        *self.reports.lock() = Some(reports);
        let reports = self.reports.clone();
        setup.gateway.generations().set_publisher(Box::new(move |_| {
            if let Some(reports) = &*reports.lock() {
                reports.changed();
            }
        }));
        setup.gateway.generations().set_synced_until(clock::now(), clock::now());
    }

    fn rely_on_memory(&self) {
        let setup = self.current.load();
        if setup.bus.get().is_none() {
            *self.reports.lock() = None;
            setup.gateway.generations().set_synced_until(clock::now(), clock::now() + EVER);
        }
    }
}

/// Starts a successor in this process's place; comes back only if it fails, since otherwise this
/// process ends first.
fn start_successor() {
    let mut arguments = std::env::args_os();
    let Some(program) = arguments.next() else { return };
    let kept = arguments.filter(|argument| argument != "--upgrade");
    let mut command = Command::new(program);
    command.args(kept).arg("--upgrade");
    // They name this process: with them the successor would take the watchdog
    // (sd_watchdog_enabled(3)) and passed sockets for another's.
    for variable in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(variable);
    }
    match command.spawn() {
        Ok(mut successor) => {
            tracing::info!(process = successor.id(), "started a successor after SIGUSR2");
            if let Ok(status) = successor.wait() {
                tracing::error!(%status, "successor exited; this process continues to serve");
            }
        }
        Err(error) => tracing::error!(%error, "failed to start a successor after SIGUSR2"),
    }
}

/// Takes the seat for a process with own sockets; one that still drains may have it for a while.
fn take_own_seat(seat: &Seat, lifecycle: &Lifecycle) {
    let mut said = false;
    while let Err(error) = seat.sit() {
        if !std::mem::replace(&mut said, true) {
            tracing::warn!(error, "upgrades without downtime are unavailable until the other process exits");
        }
        if lifecycle.is_draining() {
            return;
        }
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
                    tracing::info!("stopped at once after SIGINT");
                    return ShutdownSignal::FastShutdown;
                }
            }
        }
    }
}
