//! The lifecycle from start to exit: readiness, requests in flight, and the drain.
//!
//! The drain has steps that other parts wait for: `/readyz` answers 503 and responses announce the
//! end of their connection; after `server.drain_delay` the listeners close; idle connections are
//! closed; requests in flight may finish. pingora sleeps through its whole grace period even if no
//! request is left, so the drain ends the process itself, with an exit code that says whether it
//! aborted requests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::systemd;
use crate::clock;
use crate::telemetry;

/// Interval at which the drain counts requests in flight. The count must be zero twice: a
/// connection that was just accepted is not counted yet.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long the drain waits for idle connections that do not close.
const IDLE_CLOSE_MAX: Duration = Duration::from_secs(1);

/// Exit code of a process that aborted requests.
const ABORTED: i32 = 1;

/// The lifecycle of the process.
pub struct Lifecycle {
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// Services that do not accept connections yet.
    starting_services: AtomicUsize,
    /// The public listeners are closed, and their queues are empty.
    are_listeners_closed: AtomicBool,
    is_stopping: AtomicBool,
    serving: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    public_stop: watch::Sender<bool>,
    admin_stop: watch::Sender<bool>,
    idle_closing: watch::Sender<bool>,
    before_exit: OnceLock<BeforeExit>,
    /// The value of `idle_closing` for the check on every request: reading a watch channel writes
    /// to memory that all threads share.
    closes_idle: AtomicBool,
}

/// An action before the process exits.
type BeforeExit = Box<dyn Fn() + Send + Sync>;

/// A request or a connection that the drain waits for, until it is dropped.
pub struct InFlight {
    lifecycle: Arc<Lifecycle>,
    counter: fn(&Lifecycle) -> &AtomicUsize,
}

impl InFlight {
    fn new(lifecycle: &Arc<Lifecycle>, counter: fn(&Lifecycle) -> &AtomicUsize) -> Self {
        counter(lifecycle).fetch_add(1, Ordering::AcqRel);
        InFlight { lifecycle: lifecycle.clone(), counter }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        (self.counter)(&self.lifecycle).fetch_sub(1, Ordering::AcqRel);
    }
}

/// The reason of a shutdown, with its times.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// SIGTERM. The listeners close after `delay`; requests may then run for `drain`.
    Terminated { delay: Duration, drain: Duration },
    /// A successor has the listening sockets and accepts all new connections.
    HandedOver { drain: Duration },
}

/// The deadlines of a drain.
struct Deadlines {
    close_listeners: Instant,
    close_idle: Instant,
    exit: Instant,
}

impl Lifecycle {
    /// Minimum time since the last response, or since a connection was accepted, before the drain
    /// closes the connection as idle: the client may just be sending a request.
    pub const IDLE_AGE_MIN: Duration = Duration::from_millis(500);

    /// `services`: the number of services that report that they accept connections.
    pub fn new(services: usize) -> Self {
        let flag = || watch::Sender::new(false);
        Lifecycle {
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            starting_services: AtomicUsize::new(services),
            are_listeners_closed: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            serving: flag(),
            draining: flag(),
            public_stop: flag(),
            admin_stop: flag(),
            idle_closing: flag(),
            before_exit: OnceLock::new(),
            closes_idle: AtomicBool::new(false),
        }
    }

    /// Sets the action for the end of a drain, before the process exits. Only the first call
    /// counts.
    pub fn before_exit(&self, action: BeforeExit) {
        let _ = self.before_exit.set(action);
    }

    fn exit(&self, code: i32) -> ! {
        if let Some(action) = self.before_exit.get() {
            action();
        }
        telemetry::exit(code)
    }

    /// Counts a request until the result is dropped.
    pub fn begin_request(self: &Arc<Self>) -> InFlight {
        InFlight::new(self, |lifecycle| &lifecycle.requests)
    }

    /// Counts a client's connection until the result is dropped.
    pub fn begin_connection(self: &Arc<Self>) -> InFlight {
        InFlight::new(self, |lifecycle| &lifecycle.connections)
    }

    /// Records that a service accepts connections.
    pub fn service_started(&self) {
        if self.starting_services.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.serving.send_replace(true);
        }
    }

    /// Waits until every service accepts connections.
    pub async fn wait_until_serving(&self) {
        let _ = self.serving.subscribe().wait_for(|is_serving| *is_serving).await;
    }

    /// Records that the public listeners are closed.
    pub fn listeners_closed(&self) {
        self.are_listeners_closed.store(true, Ordering::Release);
    }

    /// Whether a successor has the listening sockets.
    pub fn was_handed_over(&self) -> bool {
        *self.admin_stop.borrow()
    }

    /// Whether all services accept connections and no shutdown began.
    pub fn is_ready(&self) -> bool {
        self.starting_services.load(Ordering::Acquire) == 0 && !self.is_draining()
    }

    /// Whether responses announce the end of their connection.
    pub fn is_draining(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// The beginning of the drain, as a channel. A receiver sees a change that was before it, too.
    pub fn draining(&self) -> watch::Receiver<bool> {
        subscribe(&self.draining)
    }

    /// The close of the public listeners, as a channel.
    pub fn public_stop(&self) -> watch::Receiver<bool> {
        subscribe(&self.public_stop)
    }

    /// The close of the admin listener, as a channel: only after a handover.
    pub fn admin_stop(&self) -> watch::Receiver<bool> {
        subscribe(&self.admin_stop)
    }

    /// Waits until the drain closes idle connections.
    pub fn idle_closing(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closing = self.idle_closing.subscribe();
        async move { drop(closing.wait_for(|is_closing| *is_closing).await) }
    }

    /// Closes idle connections from now on.
    pub fn close_idle(&self) {
        self.closes_idle.store(true, Ordering::Release);
        self.idle_closing.send_if_modified(set);
    }

    /// Whether the drain closes idle connections.
    pub fn closes_idle(&self) -> bool {
        self.closes_idle.load(Ordering::Acquire)
    }

    /// Drains and ends the process, in a thread. Only the first call counts.
    pub fn stop(self: &Arc<Self>, reason: Stop) {
        if self.is_stopping.swap(true, Ordering::AcqRel) {
            tracing::info!("it stops already");
            return;
        }
        self.draining.send_replace(true);
        let lifecycle = self.clone();
        std::thread::spawn(move || lifecycle.drain(&lifecycle.announce_drain(reason)));
    }

    fn announce_drain(&self, reason: Stop) -> Deadlines {
        let now = clock::now();
        match reason {
            Stop::Terminated { delay, drain } => {
                tracing::info!(
                    drain_delay_seconds = delay.as_secs_f64(),
                    drain_seconds = drain.as_secs_f64(),
                    "draining: finishing requests under way"
                );
                systemd::stopping(delay + drain);
                let close = now + delay;
                Deadlines { close_listeners: close, close_idle: close, exit: close + drain }
            }
            Stop::HandedOver { drain } => {
                tracing::info!(
                    drain_seconds = drain.as_secs_f64(),
                    "handed over to another process; finishing requests under way"
                );
                self.admin_stop.send_replace(true);
                // The service does not wait for this process, so an idle connection may serve one
                // more request, whose response then announces its end.
                Deadlines { close_listeners: now, close_idle: now + drain / 2, exit: now + drain }
            }
        }
    }

    fn drain(&self, deadlines: &Deadlines) -> ! {
        let mut empty_polls = 0;
        let mut time_without_requests = Duration::ZERO;
        loop {
            let now = clock::now();
            if now >= deadlines.close_listeners {
                self.public_stop.send_if_modified(set);
            }
            if now >= deadlines.close_idle {
                self.close_idle();
            }
            let requests = self.requests.load(Ordering::Acquire);
            let is_closed = self.are_listeners_closed.load(Ordering::Acquire);
            let is_empty = requests == 0 && self.connections.load(Ordering::Acquire) == 0;
            empty_polls = if is_empty && is_closed { empty_polls + 1 } else { 0 };
            time_without_requests = if requests > 0 || now < deadlines.close_idle {
                Duration::ZERO
            } else {
                time_without_requests + DRAIN_POLL_INTERVAL
            };
            let is_idle_overdue = time_without_requests > Self::IDLE_AGE_MIN + IDLE_CLOSE_MAX;
            if empty_polls > 1 || (is_closed && is_idle_overdue) {
                tracing::info!("stopped; all requests finished");
                self.exit(0);
            }
            if now >= deadlines.exit {
                if requests == 0 {
                    tracing::info!("stopped at the end of server.drain; all requests finished");
                    self.exit(0);
                }
                tracing::error!(requests, "stopped at the end of server.drain; aborted requests");
                self.exit(ABORTED);
            }
            #[expect(clippy::disallowed_methods, reason = "the drain has its own thread")]
            std::thread::sleep(DRAIN_POLL_INTERVAL);
        }
    }
}

/// Sets a flag; returns whether that changed it.
fn set(flag: &mut bool) -> bool {
    !std::mem::replace(flag, true)
}

fn subscribe(flag: &watch::Sender<bool>) -> watch::Receiver<bool> {
    let mut receiver = flag.subscribe();
    if *receiver.borrow() {
        receiver.mark_changed();
    }
    receiver
}
