//! From start to stop: readiness, what is in flight, signals, and the drain.
//!
//! pingora sleeps out its grace period even when nothing is left to wait for, so the drain is watched here: the process
//! ends as soon as the last request has, or when `server.drain` is over, with an exit code that says which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::setup::Reloader;

/// How often the drain looks at what is in flight, and for how long nothing must be: a request whose head was just read
/// is not counted yet.
const LOOK: Duration = Duration::from_millis(10);

/// Exit code of a process that cut requests off.
const CUT: i32 = 1;

/// Where the process stands.
#[derive(Default)]
pub struct Lifecycle {
    busy: AtomicUsize,
    serving: AtomicBool,
    draining: AtomicBool,
}

/// A request in flight, as long as it lives.
pub struct Busy(Arc<Lifecycle>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Lifecycle {
    /// A request began.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    /// The listeners answer.
    pub fn now_serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// Listeners answer, and no stop was asked for.
    pub fn is_ready(&self) -> bool {
        self.serving.load(Ordering::Acquire) && !self.draining.load(Ordering::Acquire)
    }

    /// Ends the process once nothing is in flight, at the latest after `longest`.
    fn drain(self: Arc<Self>, longest: Duration) {
        let end = Instant::now() + longest;
        let mut idle = 0;
        loop {
            let busy = self.busy.load(Ordering::Acquire);
            idle = if busy == 0 { idle + 1 } else { 0 };
            if idle > 1 {
                tracing::info!("stopped; nothing was cut off");
                std::process::exit(0);
            }
            if Instant::now() >= end {
                tracing::error!(requests = busy, "stopped; requests were cut off at the end of server.drain");
                std::process::exit(CUT);
            }
            #[expect(clippy::disallowed_methods, reason = "the drain has a thread of its own")]
            std::thread::sleep(LOOK);
        }
    }
}

/// The signals that end the process, or ask something of it.
pub struct Signals {
    lifecycle: Arc<Lifecycle>,
    reloader: Arc<Reloader>,
    drain: Duration,
}

impl Signals {
    pub fn new(lifecycle: Arc<Lifecycle>, reloader: Arc<Reloader>, drain: Duration) -> Self {
        Signals { lifecycle, reloader, drain }
    }
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

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut hangup = listen(SignalKind::hangup());
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        loop {
            tokio::select! {
                () = next(&mut hangup) => {
                    let reloader = self.reloader.clone();
                    // It reads files; the log tells how it went.
                    drop(tokio::task::spawn_blocking(move || reloader.reload()));
                    continue;
                }
                () = next(&mut terminate) => {}
                () = next(&mut quit) => {}
                () = next(&mut interrupt) => {
                    tracing::info!("INT: stopping now");
                    return ShutdownSignal::FastShutdown;
                }
            }
            tracing::info!(drain_seconds = self.drain.as_secs_f64(), "stopping; requests in flight may finish");
            self.lifecycle.draining.store(true, Ordering::Release);
            let (lifecycle, drain) = (self.lifecycle.clone(), self.drain);
            std::thread::spawn(move || lifecycle.drain(drain));
            return ShutdownSignal::GracefulTerminate;
        }
    }
}
