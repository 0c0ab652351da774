//! File descriptors: the limit of the process, its division, and accepting when none is left.
//!
//! Linux gives a new descriptor the lowest free number. A connection with number N was therefore
//! accepted while N descriptors were open. Comparing this number with a bound counts every
//! connection, file and socket of the process and costs no system call.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{DupFlags, Errno, dup3};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::listener_kind::ListenerKind;
use crate::config::Server;
use crate::telemetry::Metrics;

/// Part of the limit that is reserved for the rest of the process: connections to the API, Redis,
/// files.
const RESERVE_DIVISOR: usize = 4;

/// Maximum reserve: the default of `server.max_requests`, each of which may need a connection to
/// the API.
const RESERVE_MAX: usize = 2048;

/// Part of the reserve for connections that are being refused with 503, so that a flood of them
/// leaves descriptors for the requests of connected clients.
const REFUSALS_DIVISOR: usize = 4;

/// Maximum number of [`Spares`]: probes, a scraper and a few operators at a time.
const SPARES_MAX: usize = 16;

/// Part of the limit that [`Spares`] use at most.
const SPARES_DIVISOR: usize = 16;

/// Minimum time between two warnings of one [`BurstLog`].
const WARNING_INTERVAL: Duration = Duration::from_secs(5);

/// Raises the soft limit to the hard limit, as Go programs and HAProxy do, and logs it. A successor
/// that this process starts inherits it.
pub fn raise_limit() {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "failed to raise the file descriptor limit");
        }
    }
    let (before, limit, clients) =
        (to_number(before.current), limit(), Division::current().clients);
    if limit == before {
        tracing::info!(limit, clients, "the file descriptor limit is at its maximum");
    } else {
        tracing::info!(limit, before, clients, "raised the file descriptor limit");
    }
}

/// Warns if the limit is too low for the configuration.
pub fn warn_if_low(server: &Server) {
    let (limit, needed) = (limit(), server.descriptors_needed());
    if limit < needed {
        tracing::warn!(
            limit,
            needed,
            "the file descriptor limit is below twice server.max_connections plus server.max_requests; raise \
             LimitNOFILE (systemd), ulimits (containers) or ulimit -Hn, or lower server.max_connections"
        );
    }
}

/// The soft limit of the process.
fn limit() -> usize {
    to_number(getrlimit(Resource::Nofile).current)
}

/// `None` is "unlimited", which Linux does not apply to descriptors (`fs.nr_open`).
fn to_number(limit: Option<u64>) -> usize {
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Division of the limit of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// Connections of clients have numbers below it. A connection with a higher number is refused.
    pub clients: usize,
    /// Maximum number of connections that are being refused, unless the gateway's own maximum is
    /// lower.
    pub refusals: usize,
    /// Descriptors held ready for the admin listener.
    spares: usize,
}

impl Division {
    /// The division of the limit that is in force.
    pub fn current() -> Self {
        Self::of_limit(limit())
    }

    fn of_limit(limit: usize) -> Self {
        let reserve = (limit / RESERVE_DIVISOR).min(RESERVE_MAX);
        Division {
            clients: limit - reserve,
            refusals: reserve / REFUSALS_DIVISOR,
            spares: (limit / SPARES_DIVISOR).min(SPARES_MAX),
        }
    }
}

/// Descriptors held open, so that a listener can accept connections when no other is left: it
/// closes a spare and accepts with its number.
#[derive(Debug)]
pub struct Spares {
    /// Descriptor that the spares duplicate. It is never read.
    source: OwnedFd,
    held: Mutex<Vec<OwnedFd>>,
    size: usize,
}

impl Spares {
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn new(division: Division) -> io::Result<Self> {
        let source = eventfd(0, EventfdFlags::CLOEXEC)?;
        let spares = Spares { source, held: Mutex::default(), size: division.spares };
        spares.refill();
        Ok(spares)
    }

    fn is_full(&self) -> bool {
        self.held.lock().len() >= self.size
    }

    /// Opens spares up to the size, as far as descriptors are free.
    fn refill(&self) {
        let mut held = self.held.lock();
        while held.len() < self.size
            && let Ok(spare) = self.source.try_clone()
        {
            held.push(spare);
        }
    }

    /// Closes a spare. Returns whether there was one.
    fn release(&self) -> bool {
        self.held.lock().pop().is_some()
    }

    /// Closes a connection. If a spare is missing, the descriptor becomes one in the same step, so
    /// that no other thread can take its number.
    pub fn close(&self, mut connection: OwnedFd) {
        let mut held = self.held.lock();
        if held.len() < self.size && dup3(&self.source, &mut connection, DupFlags::CLOEXEC).is_ok()
        {
            held.push(connection);
        }
    }
}

/// Reason why a connection could not be accepted; a label of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptError {
    /// The process or the system has no descriptor left.
    Descriptors,
    Other,
}

impl AcceptError {
    fn from_io(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE) => AcceptError::Descriptors,
            _ => AcceptError::Other,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            AcceptError::Descriptors => "descriptors",
            AcceptError::Other => "other",
        }
    }
}

/// Handling of accept failures of one listener.
pub struct AcceptFailures {
    kind: ListenerKind,
    metrics: Arc<Metrics>,
    log: BurstLog,
    spares: Option<Arc<Spares>>,
}

impl AcceptFailures {
    pub fn new(kind: ListenerKind, metrics: Arc<Metrics>, spares: Option<Arc<Spares>>) -> Self {
        AcceptFailures { kind, metrics, log: BurstLog::default(), spares }
    }

    /// Counts and logs a failure. Returns whether the listener may retry at once; otherwise it
    /// would fail in a busy loop.
    pub fn may_retry(&self, error: &io::Error, now: Instant) -> bool {
        let (listener, reason) = (self.kind.as_str(), AcceptError::from_io(error));
        self.metrics.count_accept_error(listener, reason.as_str());
        if let Some(failed) = self.log.record(now) {
            tracing::warn!(%error, listener, reason = reason.as_str(), failed, "failed to accept connections");
        }
        match (reason, error.kind()) {
            // Errors of one connection, which is closed.
            (
                _,
                ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionRefused,
            ) => true,
            (AcceptError::Descriptors, _) => {
                self.spares.as_ref().is_some_and(|spares| spares.release())
            }
            (AcceptError::Other, _) => false,
        }
    }

    pub const fn kind(&self) -> ListenerKind {
        self.kind
    }

    /// Returns the spares of the listener.
    pub fn spares(&self) -> Option<&Arc<Spares>> {
        self.spares.as_ref()
    }

    /// Whether [`AcceptFailures::refill`] is needed.
    pub fn lacks_spares(&self) -> bool {
        self.spares.as_ref().is_some_and(|spares| !spares.is_full())
    }

    pub fn refill(&self) {
        if let Some(spares) = &self.spares {
            spares.refill();
        }
    }
}

/// Limits warnings about failures that occur in bursts: one at the first failure, and at most one
/// each [`WARNING_INTERVAL`] with the number of failures since the last.
#[derive(Debug, Default)]
pub struct BurstLog(Mutex<Option<Burst>>);

#[derive(Clone, Copy, Debug)]
struct Burst {
    warned: Instant,
    failed_since: u64,
}

impl BurstLog {
    /// Counts a failure. Returns the number of failures to report if a warning is due.
    pub fn record(&self, now: Instant) -> Option<u64> {
        let mut burst = self.0.lock();
        let before = burst.map_or(0, |burst| burst.failed_since);
        match &mut *burst {
            Some(burst) if now.saturating_duration_since(burst.warned) < WARNING_INTERVAL => {
                burst.failed_since += 1;
                None
            }
            _ => {
                *burst = Some(Burst { warned: now, failed_since: 0 });
                Some(before + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::clock;

    #[test]
    fn limit_is_divided_between_clients_and_the_rest() {
        let division = |limit| {
            let Division { clients, refusals, spares } = Division::of_limit(limit);
            (clients, refusals, spares)
        };
        assert_eq!(division(64), (48, 4, 4));
        assert_eq!(division(1024), (768, 64, 16));
        assert_eq!(division(20_000), (17_952, 512, 16));
        assert_eq!(division(usize::MAX), (usize::MAX - 2048, 512, 16));
        assert_eq!(division(0), (0, 0, 0));
    }

    #[test]
    fn burst_of_failures_is_one_warning_each_interval() {
        let (log, now) = (BurstLog::default(), clock::now());
        assert_eq!(log.record(now), Some(1));
        for millisecond in 1..100 {
            assert_eq!(log.record(now + Duration::from_millis(millisecond)), None);
        }
        assert_eq!(log.record(now + WARNING_INTERVAL), Some(100));
        assert_eq!(log.record(now + WARNING_INTERVAL * 2), Some(1));
    }

    #[test]
    fn closed_connection_becomes_the_spare_that_is_missing() {
        let spares = Spares::new(Division { clients: 0, refusals: 0, spares: 1 }).unwrap();
        assert!(spares.is_full() && spares.release() && !spares.release());
        let (connection, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = connection.as_raw_fd();
        spares.close(connection.into());
        assert_eq!(spares.held.lock().iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), [number]);
        // The connection itself is closed.
        assert_eq!(io::Read::read(&mut &peer, &mut [0]).unwrap(), 0);
        // If no spare is missing, the connection is only closed.
        let (connection, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        spares.close(connection.into());
        assert_eq!(io::Read::read(&mut &peer, &mut [0]).unwrap(), 0);
        assert_eq!(spares.held.lock().len(), 1);
    }

    #[test]
    fn accept_errors_have_a_reason() {
        let reason = |error: Errno| AcceptError::from_io(&error.into()).as_str();
        assert_eq!([reason(Errno::MFILE), reason(Errno::NFILE)], ["descriptors"; 2]);
        assert_eq!([reason(Errno::NOBUFS), reason(Errno::CONNABORTED)], ["other"; 2]);
    }
}
