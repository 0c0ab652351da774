//! Polls the API's change log and invalidates what changed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use super::cursor::{Cursor, NewChanges, RequestTime};
use crate::api::{Change, Token, read_change_log};
use crate::cache::Scope;
use crate::clock;
use crate::cluster::{LeaderLease, Leadership};
use crate::config;
use crate::gateway::Gateway;
use crate::secret_file::SecretText;
use crate::telemetry::ChangeLogMetrics;
use crate::upstream::UpstreamError;

/// Maximum pause after failures, unless the interval is longer.
const RETRY_INTERVAL_MAX: Duration = Duration::from_mins(1);

/// The label of invalidations from the change log.
const TRIGGER: &str = "change_log";

/// The reason why a poll failed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PollError {
    /// The file contains no usable token, or cannot be read.
    Token(String),
    /// 401: the API does not accept the token.
    Unauthorized,
    /// 403: the access level of the token is too low for the change log.
    Forbidden,
    /// Any other status except 200.
    Status(StatusCode),
    /// A 200 whose body is not a change log.
    Unreadable,
    Upstream(UpstreamError),
}

/// Reason of a failure to poll although another gateway's lease has ended.
const LEASE_OVERDUE: &str = "lease_overdue";

/// The reasons of failed polls, as labels.
pub fn failure_reasons() -> Vec<&'static str> {
    let own = [
        PollError::Token(String::new()),
        PollError::Unauthorized,
        PollError::Forbidden,
        PollError::Status(StatusCode::OK),
        PollError::Unreadable,
    ];
    let upstream = UpstreamError::ALL.map(UpstreamError::as_str);
    own.iter().map(PollError::as_str).chain(upstream).chain([LEASE_OVERDUE]).collect()
}

impl PollError {
    const fn as_str(&self) -> &'static str {
        match self {
            PollError::Token(_) => "token",
            PollError::Unauthorized => "unauthorized",
            PollError::Forbidden => "forbidden",
            PollError::Status(_) => "status",
            PollError::Unreadable => "unreadable",
            PollError::Upstream(error) => error.as_str(),
        }
    }

    /// The fault of the token file.
    fn problem(&self) -> Option<&str> {
        match self {
            PollError::Token(problem) => Some(problem),
            _ => None,
        }
    }

    /// What the operator can do.
    const fn remedy(&self) -> &'static str {
        match self {
            PollError::Token(_) => {
                "write only a token of the API to change_log.token_file, readable by this process's user"
            }
            PollError::Unauthorized => {
                "write a valid token of the API to change_log.token_file; it is read before each poll"
            }
            PollError::Forbidden => {
                "use a token whose access level may read GET /log/changeloglite"
            }
            PollError::Status(_) | PollError::Unreadable => {
                "check the response to GET /log/changeloglite with that token"
            }
            PollError::Upstream(_) => "check that the API can be reached",
        }
    }
}

/// Returns the gateway of the active configuration.
pub type GatewaySource = Box<dyn Fn() -> Arc<Gateway> + Send + Sync>;

/// The background service that polls the change log.
pub struct ChangeLogPoller {
    pub config: config::ChangeLog,
    pub gateway: GatewaySource,
    pub metrics: ChangeLogMetrics,
    /// The lease of the cluster: one gateway polls, and publishes the changes to the others.
    pub lease: Option<LeaderLease>,
}

/// The result of a poll that did not fail.
enum Poll {
    /// The change log was read.
    Done,
    /// Another gateway has the lease and polled at this time.
    ByAnother(Option<SystemTime>),
}

#[async_trait]
impl BackgroundService for ChangeLogPoller {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut cursor = Cursor::new(self.config.overlap, SystemTime::now());
        let mut failed: Option<(PollError, u32)> = None;
        let mut had_lease = false;
        loop {
            let interval = self.config.interval;
            let pause = match self.poll(&mut cursor, &mut had_lease).await {
                Ok(poll) => {
                    match poll {
                        Poll::Done => self.metrics.set_last_read(SystemTime::now()),
                        Poll::ByAnother(at) => {
                            at.into_iter().for_each(|at| self.metrics.set_last_read(at))
                        }
                    }
                    if let Some((_, times)) = failed.take() {
                        tracing::info!(failed = times, "polling of the change log resumed");
                    }
                    interval
                }
                Err(error) => {
                    self.metrics.count_failure(error.as_str());
                    let times = failed.as_ref().map_or(1, |(_, times)| times.saturating_add(1));
                    // Logged once for each reason, not at each poll.
                    if failed.as_ref().is_none_or(|(before, _)| *before != error) {
                        tracing::error!(
                            why = error.as_str(),
                            problem = error.problem(),
                            right = error.remedy(),
                            "failed to poll the change log; changes made elsewhere apply when responses expire"
                        );
                    }
                    failed = Some((error, times));
                    let pause = interval.saturating_mul(1 << times.min(10));
                    pause.min(RETRY_INTERVAL_MAX).max(interval)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = shutdown.changed() => return,
            }
        }
    }
}

impl ChangeLogPoller {
    async fn poll(&self, cursor: &mut Cursor, had_lease: &mut bool) -> Result<Poll, PollError> {
        if let Some(lease) = &self.lease {
            match lease.acquire().await {
                Ok(Leadership::Leader { done, overdue }) => {
                    if overdue {
                        self.metrics.count_failure(LEASE_OVERDUE);
                        tracing::warn!(
                            "took over the change log lease: its holder did not poll for the duration of a lease; \
                             check that gateway, and which clients may write to Redis"
                        );
                    }
                    if let Some(position) = done.filter(|_| !*had_lease) {
                        cursor.move_to(position);
                    }
                    *had_lease = true;
                }
                Ok(Leadership::Follower { done }) => {
                    *had_lease = false;
                    return Ok(Poll::ByAnother(done));
                }
                // Without Redis each gateway polls: applying a change twice does no harm.
                Err(error) => {
                    *had_lease = false;
                    let why = error.as_str();
                    tracing::debug!(why, "failed to determine the leader for the change log");
                }
            }
        }
        self.fetch(cursor).await?;
        if let Some(lease) = &self.lease
            && let Err(error) = lease.store_progress(cursor.position()).await
        {
            tracing::debug!(why = error.as_str(), "failed to store the position in the change log");
        }
        Ok(Poll::Done)
    }

    async fn fetch(&self, cursor: &mut Cursor) -> Result<(), PollError> {
        let token = read_token(&self.config).map_err(PollError::Token)?;
        let gateway = (self.gateway)();
        let sent = RequestTime::new(clock::now(), SystemTime::now());
        let new = match gateway.change_log(&cursor.target(), &token).await {
            Ok(response) => match response.status {
                StatusCode::OK => {
                    let entries = read_change_log(&response.body).ok_or(PollError::Unreadable)?;
                    cursor.advance(entries, sent.with_response(&response.headers, clock::now()))
                }
                StatusCode::UNAUTHORIZED => return Err(PollError::Unauthorized),
                StatusCode::FORBIDDEN => return Err(PollError::Forbidden),
                status => return Err(PollError::Status(status)),
            },
            Err(UpstreamError::TooLarge) => cursor.skip_oversized(sent),
            Err(error) => return Err(PollError::Upstream(error)),
        };
        self.invalidate(&gateway, &new);
        Ok(())
    }

    fn invalidate(&self, gateway: &Gateway, new: &NewChanges) {
        match new {
            NewChanges::Known { changes, unknown } => {
                self.metrics.count_entries(changes.len(), *unknown);
                if *unknown > 0 {
                    tracing::warn!(unknown, "skipped unknown entries of the change log");
                }
                for scope in changes.iter().filter_map(scope) {
                    gateway.invalidate(&scope, TRIGGER);
                }
            }
            NewChanges::Incomplete(reason) => {
                let why = reason.as_str();
                tracing::warn!(
                    why,
                    "purged the whole cache: changes in the change log may have been missed"
                );
                gateway.invalidate(&Scope::All, TRIGGER);
            }
        }
    }
}

/// The scope of a change; entries of the change log name no tokens.
fn scope(change: &Change) -> Option<Scope> {
    match change {
        Change::Customer(id) => Some(Scope::Customer(*id)),
        Change::Employee(id) => Some(Scope::Employee(id.clone())),
        Change::Token(_) | Change::CallersToken | Change::CallersEmployee => None,
    }
}

/// Reads the token in `change_log.token_file`.
///
/// # Errors
/// The file contains no usable token.
pub fn read_token(config: &config::ChangeLog) -> Result<Token, String> {
    let problem = |text: &dyn std::fmt::Display| {
        format!("change_log.token_file: {}: {text}", config.token_file.display())
    };
    let text = SecretText::read(&config.token_file).map_err(|error| problem(&error))?;
    let line = text.line().map_err(|error| problem(&error))?;
    Token::parse(line.as_bytes())
        .ok_or_else(|| problem(&"contains no token of the API: visible ASCII, at most 4096 bytes"))
}
