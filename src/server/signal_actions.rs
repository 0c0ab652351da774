//! The reactions of the gateway to signals: reload, shutdown, handover, upgrade.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::listener::Sockets;
use super::reload::Reloader;
use super::state::ActiveState;
use crate::clock;
use crate::process::{
    ChangeReports, Lifecycle, Predecessor, SignalActions, Stop, UpgradeSocket, systemd,
};

/// Longer than any process runs.
const FOREVER: Duration = Duration::from_hours(24 * 365 * 100);

/// The parts that signals act on.
pub struct GatewaySignals {
    pub active: Arc<ActiveState>,
    pub reloader: Arc<Reloader>,
    pub sockets: Arc<Sockets>,
    /// The meeting point with a successor; without one there is no upgrade.
    pub upgrade_socket: Option<Arc<UpgradeSocket>>,
    /// The process whose sockets these were, until this one serves.
    pub predecessor: Mutex<Option<Predecessor>>,
    /// The number of handover requests since the running handover began.
    pub handover_requests: Arc<AtomicUsize>,
    /// The channel to the successor for changes.
    pub reports: Arc<Mutex<Option<ChangeReports>>>,
    /// Whether a successor that this process started is running.
    pub has_successor: Arc<AtomicBool>,
    /// The status line of the process.
    pub status: String,
}

#[async_trait]
impl SignalActions for GatewaySignals {
    /// Announces to the service manager that the process serves, and lets a successor take over.
    async fn announce_serving(&self) {
        let lifecycle = self.active.process.lifecycle.clone();
        lifecycle.wait_until_serving().await;
        let predecessor = self.predecessor.lock().take();
        let (socket, status) = (self.upgrade_socket.clone(), self.status.clone());
        run_blocking(move || {
            tracing::info!("ready: {status}");
            if !lifecycle.is_draining() {
                systemd::ready(&status);
            }
            match (predecessor, socket) {
                // Dropping it releases the upgrade lock. This process has the serving lock.
                (Some(predecessor), _) => drop(predecessor),
                (None, Some(socket)) => acquire_serving_lock(&socket, &lifecycle),
                (None, None) => {}
            }
        });
    }

    fn reload(&self) {
        let (reloader, status) = (self.reloader.clone(), self.status.clone());
        run_blocking(move || {
            systemd::reloading();
            match reloader.reload() {
                Ok(restart) if restart.is_empty() => systemd::ready(&status),
                Ok(restart) => {
                    let keys = restart.join(", ");
                    systemd::ready(&format!("{status}; a restart is needed for {keys}"));
                }
                Err(problems) => {
                    let first = problems.lines().next().unwrap_or_default();
                    systemd::ready(&format!("the configuration was rejected: {first}"));
                }
            }
        });
    }

    fn terminate(&self) {
        let times = self.active.load().drain;
        let stop = Stop::Terminated { delay: times.delay, drain: times.max };
        self.active.process.lifecycle.stop(stop);
    }

    /// Hands over, one handover at a time. A request that arrives meanwhile is tried if the first
    /// one fails.
    fn hand_over(&self) {
        let Some(socket) = self.upgrade_socket.clone() else {
            tracing::error!("SIGQUIT ignored: no upgrade socket; set server.upgrade_socket");
            return;
        };
        if self.handover_requests.fetch_add(1, Ordering::AcqRel) > 0 {
            tracing::info!("SIGQUIT ignored: a handover is under way");
            return;
        }
        let handover = Handover {
            socket,
            sockets: self.sockets.clone(),
            active: self.active.clone(),
            reports: self.reports.clone(),
        };
        let requests = self.handover_requests.clone();
        run_blocking(move || {
            loop {
                let seen = requests.load(Ordering::Acquire);
                handover.run();
                let reset = requests.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
                if reset.is_ok() {
                    return;
                }
            }
        });
    }

    /// Starts a successor with the same environment and arguments, from the program file that is
    /// installed now.
    fn start_successor(&self) {
        let Some(socket) = self.upgrade_socket.clone() else {
            tracing::error!("SIGUSR2 ignored: no upgrade socket; set server.upgrade_socket");
            return;
        };
        if self.active.process.lifecycle.is_draining() {
            tracing::info!("SIGUSR2 ignored: shutdown is under way");
            return;
        }
        if self.has_successor.swap(true, Ordering::AcqRel) {
            tracing::info!("SIGUSR2 ignored: a successor is starting");
            return;
        }
        let has_successor = self.has_successor.clone();
        run_blocking(move || {
            run_successor(&socket);
            has_successor.store(false, Ordering::Release);
        });
    }
}

/// The parts that a handover needs.
struct Handover {
    socket: Arc<UpgradeSocket>,
    sockets: Arc<Sockets>,
    active: Arc<ActiveState>,
    reports: Arc<Mutex<Option<ChangeReports>>>,
}

impl Handover {
    fn run(&self) {
        let lifecycle = &self.active.process.lifecycle;
        if lifecycle.is_draining() {
            tracing::info!("SIGQUIT ignored: shutdown is under way");
            return;
        }
        let state = self.active.load();
        let shared = self.sockets.share().map_err(|error| error.to_string());
        let handed_over = shared.and_then(|sockets| {
            let release = |process, reports| {
                systemd::main_process(process);
                self.stop_caching(reports);
            };
            let resume = || {
                self.resume_caching();
                systemd::main_process(std::process::id());
            };
            let handed_over = self.socket.hand_over(&sockets, release, resume);
            handed_over.map_err(|error| error.to_string())
        });
        match handed_over {
            Ok(process) => {
                tracing::info!(target: "audit", process, "handed over");
                lifecycle.stop(Stop::HandedOver { drain: state.drain.max });
            }
            Err(error) => {
                tracing::error!(target: "audit", error, "handover failed; this process continues to serve");
            }
        }
    }

    /// Serves nothing from the cache any more, and reports changes to the successor. In a cluster
    /// the invalidation stream carries the changes of both processes, so neither is needed.
    fn stop_caching(&self, reports: ChangeReports) {
        if self.active.process.invalidation_stream.get().is_some() {
            return;
        }
        *self.reports.lock() = Some(reports);
        let reports = self.reports.clone();
        let state = self.active.load();
        state.gateway.generations().set_publisher(Box::new(move |_| {
            if let Some(reports) = &*reports.lock() {
                reports.send();
            }
        }));
        state.gateway.generations().set_synced_until(clock::now(), clock::now());
    }

    fn resume_caching(&self) {
        if self.active.process.invalidation_stream.get().is_none() {
            *self.reports.lock() = None;
            let now = clock::now();
            self.active.load().gateway.generations().set_synced_until(now, now + FOREVER);
        }
    }
}

/// Starts a successor and waits for it. It returns only if the upgrade fails, since otherwise this
/// process exits first.
fn run_successor(socket: &UpgradeSocket) {
    let mut arguments = std::env::args_os();
    let Some(program) = arguments.next() else { return };
    let kept = arguments.filter(|argument| argument != "--upgrade");
    let mut command = Command::new(program);
    command.args(kept).arg("--upgrade");
    // They name this process: with them the successor would not use the watchdog
    // (sd_watchdog_enabled(3)) and would ignore passed sockets.
    for variable in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(variable);
    }
    socket.pass_to_successor(&mut command);
    match command.spawn() {
        Ok(mut successor) => {
            let process = successor.id();
            tracing::info!(target: "audit", process, "started a successor after SIGUSR2");
            if let Ok(status) = successor.wait() {
                tracing::error!(target: "audit", %status, "successor exited; this process continues to serve");
            }
        }
        Err(error) => tracing::error!(%error, "failed to start a successor after SIGUSR2"),
    }
}

/// Acquires the serving lock of a process that bound its own sockets. A process that still drains
/// may have it for some time.
fn acquire_serving_lock(socket: &UpgradeSocket, lifecycle: &Lifecycle) {
    let mut is_logged = false;
    while let Err(error) = socket.acquire_serving_lock() {
        if !std::mem::replace(&mut is_logged, true) {
            let error = error.to_string();
            tracing::warn!(
                error,
                "upgrades without downtime are unavailable until the other process exits"
            );
        }
        if lifecycle.is_draining() {
            return;
        }
    }
}

/// Runs blocking work on another thread, so that the next signal is handled meanwhile.
fn run_blocking(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}
