//! From start to stop: readiness, what is in flight, and the drain.
//!
//! A stop has steps, each of which others wait for: `/readyz` says 503 and answers say that their connection ends; after
//! `server.drain_delay` the listeners close; connections end that nobody uses; what is in flight may finish. pingora sleeps
//! out its grace period even when nothing is left to wait for, so the process is ended from here, with an exit code that
//! says whether anything was cut off.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::notify;
use crate::telemetry;

/// How often the drain looks at what is in flight, and for how long nothing must be: a connection that was just taken is
/// not counted yet.
const LOOK: Duration = Duration::from_millis(10);

/// How long the drain waits for connections that should end but have no request in flight.
const LEFT: Duration = Duration::from_secs(1);

/// Exit code of a process that cut requests off.
const CUT: i32 = 1;

/// Where the process stands.
pub struct Lifecycle {
    busy: AtomicUsize,
    connections: AtomicUsize,
    /// Services that do not accept connections yet.
    starting: AtomicUsize,
    /// The public listeners accept none any more, and none is left in their queues.
    closed: AtomicBool,
    stopping: AtomicBool,
    serving: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    public_stop: watch::Sender<bool>,
    admin_stop: watch::Sender<bool>,
    idle_ends: watch::Sender<bool>,
    last: OnceLock<Last>,
    /// The same, for those who ask at every request: a look at the other is a write to memory that all threads share.
    ends_idle: AtomicBool,
}

/// What is done before the process ends.
type Last = Box<dyn Fn() + Send + Sync>;

/// Something that the drain waits for, as long as it lives.
pub struct Counted(Arc<Lifecycle>, fn(&Lifecycle) -> &AtomicUsize);

impl Counted {
    fn new(lifecycle: &Arc<Lifecycle>, which: fn(&Lifecycle) -> &AtomicUsize) -> Self {
        which(lifecycle).fetch_add(1, Ordering::AcqRel);
        Counted(lifecycle.clone(), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why the process stops, and how long that may take.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// TERM. `delay`: how long connections are still taken; `drain`: how long requests have from then on.
    Terminated { delay: Duration, drain: Duration },
    /// Another process has the listening sockets now, and takes all new connections.
    HandedOver { drain: Duration },
}

impl Lifecycle {
    /// A connection is idle, and may be ended by a drain, when its last answer (or its beginning) is this old. Before, its
    /// caller may just be sending a request.
    pub const IDLE: Duration = Duration::from_millis(500);

    /// `services`: how many must say that they accept connections.
    pub fn new(services: usize) -> Self {
        let flag = || watch::Sender::new(false);
        Lifecycle {
            busy: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            starting: AtomicUsize::new(services),
            closed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            serving: flag(),
            draining: flag(),
            public_stop: flag(),
            admin_stop: flag(),
            idle_ends: flag(),
            last: OnceLock::new(),
            ends_idle: AtomicBool::new(false),
        }
    }

    /// What is to be done before the process ends, when nothing is in flight any more; set once.
    pub fn at_last(&self, last: Last) {
        let _ = self.last.set(last);
    }

    fn exit(&self, code: i32) -> ! {
        if let Some(last) = self.last.get() {
            last();
        }
        telemetry::exit(code)
    }

    /// A request began.
    pub fn busy(self: &Arc<Self>) -> Counted {
        Counted::new(self, |lifecycle| &lifecycle.busy)
    }

    /// A caller's connection was taken.
    pub fn connection(self: &Arc<Self>) -> Counted {
        Counted::new(self, |lifecycle| &lifecycle.connections)
    }

    /// A service accepts connections from now on.
    pub fn service_started(&self) {
        if self.starting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.serving.send_replace(true);
        }
    }

    /// Comes back once every service accepts connections.
    pub async fn serves(&self) {
        let _ = self.serving.subscribe().wait_for(|serving| *serving).await;
    }

    /// The public listeners are closed.
    pub fn listeners_closed(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Another process has the listening sockets.
    pub fn was_handed_over(&self) -> bool {
        *self.admin_stop.borrow()
    }

    /// Listeners answer, and no stop was asked for.
    pub fn is_ready(&self) -> bool {
        self.starting.load(Ordering::Acquire) == 0 && !self.is_draining()
    }

    /// Answers say that their connection ends.
    pub fn is_draining(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether answers say that their connection ends; whoever waits for a change hears of one that was before.
    pub fn draining(&self) -> watch::Receiver<bool> {
        subscribed(&self.draining)
    }

    /// When the public listeners accept no more.
    pub fn public_stop(&self) -> watch::Receiver<bool> {
        subscribed(&self.public_stop)
    }

    /// When the admin listener accepts no more: only when another process has its socket.
    pub fn admin_stop(&self) -> watch::Receiver<bool> {
        subscribed(&self.admin_stop)
    }

    /// Comes back when the drain begins to end connections that nothing comes on.
    pub fn idle_ending(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ends = self.idle_ends.subscribe();
        async move { drop(ends.wait_for(|ends| *ends).await) }
    }

    /// The drain begins to.
    pub(super) fn end_idle(&self) {
        self.ends_idle.store(true, Ordering::Release);
        self.idle_ends.send_if_modified(|ends| !std::mem::replace(ends, true));
    }

    /// Whether it has begun to.
    pub fn ends_idle(&self) -> bool {
        self.ends_idle.load(Ordering::Acquire)
    }

    /// Ends the process, in a thread of its own; only the first call counts.
    pub fn stop(self: &Arc<Self>, why: Stop) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            tracing::info!("it stops already");
            return;
        }
        self.draining.send_replace(true);
        let lifecycle = self.clone();
        std::thread::spawn(move || lifecycle.drain(why));
    }

    fn drain(&self, why: Stop) {
        let began = Instant::now();
        let (close, idle, end) = match why {
            Stop::Terminated { delay, drain } => {
                tracing::info!(
                    drain_delay_seconds = delay.as_secs_f64(),
                    drain_seconds = drain.as_secs_f64(),
                    "draining: finishing requests under way"
                );
                notify::stopping();
                (began + delay, began + delay, began + delay + drain)
            }
            Stop::HandedOver { drain } => {
                tracing::info!(
                    drain_seconds = drain.as_secs_f64(),
                    "handed over to another process; finishing requests under way"
                );
                self.admin_stop.send_replace(true);
                // Nothing waits for this process: a kept connection may be used once more, and is told then.
                (began, began + drain / 2, began + drain)
            }
        };
        let mut none = 0;
        let mut without_request = Duration::ZERO;
        loop {
            let now = Instant::now();
            if now >= close {
                self.public_stop.send_if_modified(|stop| !std::mem::replace(stop, true));
            }
            if now >= idle {
                self.end_idle();
            }
            let busy = self.busy.load(Ordering::Acquire);
            let closed = self.closed.load(Ordering::Acquire);
            let connected = busy > 0 || self.connections.load(Ordering::Acquire) > 0;
            none = if connected || !closed { 0 } else { none + 1 };
            without_request = if busy > 0 || now < idle { Duration::ZERO } else { without_request + LOOK };
            if none > 1 || (closed && without_request > Self::IDLE + LEFT) {
                tracing::info!("stopped; all requests finished");
                self.exit(0);
            }
            if now >= end {
                if busy == 0 {
                    tracing::info!("stopped at the end of server.drain; all requests finished");
                    self.exit(0);
                }
                tracing::error!(requests = busy, "stopped at the end of server.drain; aborted requests");
                self.exit(CUT);
            }
            #[expect(clippy::disallowed_methods, reason = "the drain has a thread of its own")]
            std::thread::sleep(LOOK);
        }
    }
}

fn subscribed(flag: &watch::Sender<bool>) -> watch::Receiver<bool> {
    let mut receiver = flag.subscribe();
    if *receiver.borrow() {
        receiver.mark_changed();
    }
    receiver
}
