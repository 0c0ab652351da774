//! Reads the API's log of changes, one reading after the other, and obeys what it tells.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use super::setup::Current;
use crate::api::{Change, Token, read_change_log};
use crate::cache::Scope;
use crate::change_log::{Cursor, PollTime, Reading};
use crate::clock;
use crate::cluster::{Turn, Turns};
use crate::config;
use crate::telemetry::ChangeLogMetrics;
use crate::upstream::UpstreamError;

/// The longest pause after failures, unless the interval is longer.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What triggers an invalidation; a label.
const TRIGGER: &str = "change_log";

/// Why a reading brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The file holds none, or cannot be read.
    Token,
    /// 401: the API does not know the token, or not any more.
    Unauthorized,
    /// 403: the token's role may not read the log.
    Forbidden,
    /// Any other status but 200.
    Status(StatusCode),
    /// A 200 whose body is no log.
    Unreadable,
    Upstream(UpstreamError),
}

impl Failure {
    const fn as_str(self) -> &'static str {
        match self {
            Failure::Token => "token",
            Failure::Unauthorized => "unauthorized",
            Failure::Forbidden => "forbidden",
            Failure::Status(_) => "status",
            Failure::Unreadable => "unreadable",
            Failure::Upstream(error) => error.as_str(),
        }
    }

    /// What whoever reads the log of this process can do.
    const fn remedy(self) -> &'static str {
        match self {
            Failure::Token => "write only a token of the API to change_log.token_file, readable by this process's user",
            Failure::Unauthorized => {
                "write a valid token of the API to change_log.token_file; it is read before each poll"
            }
            Failure::Forbidden => "use a token whose access level may read GET /log/changeloglite",
            Failure::Status(_) | Failure::Unreadable => "check the response to GET /log/changeloglite with that token",
            Failure::Upstream(_) => "check that the API can be reached",
        }
    }
}

/// The reader.
pub struct ChangeLog {
    pub config: config::ChangeLog,
    pub current: Arc<Current>,
    pub metrics: ChangeLogMetrics,
    /// In a fleet one gateway reads, and tells the others.
    pub turns: Option<Turns>,
}

/// What a reading came to.
enum Read {
    /// The log was read up to now.
    Now,
    /// It is another gateway's turn, which read up to there.
    ByAnother(Option<SystemTime>),
}

#[async_trait]
impl BackgroundService for ChangeLog {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut cursor = Cursor::new(self.config.overlap, SystemTime::now());
        let mut failed: Option<(Failure, u32)> = None;
        let mut had_turn = false;
        loop {
            let interval = self.config.interval;
            let pause = match self.read(&mut cursor, &mut had_turn).await {
                Ok(read) => {
                    match read {
                        Read::Now => self.metrics.read(SystemTime::now()),
                        Read::ByAnother(done) => done.into_iter().for_each(|done| self.metrics.read(done)),
                    }
                    if let Some((_, times)) = failed.take() {
                        tracing::info!(failed = times, "polling of the change log resumed");
                    }
                    interval
                }
                Err(failure) => {
                    self.metrics.failed(failure.as_str());
                    let times = failed.map_or(1, |(_, times)| times.saturating_add(1));
                    // Told once for each kind of failure, not at each reading.
                    if failed.is_none_or(|(before, _)| before != failure) {
                        let (why, right) = (failure.as_str(), failure.remedy());
                        tracing::error!(
                            why,
                            right,
                            "failed to poll the change log; changes made elsewhere apply when responses expire"
                        );
                    }
                    failed = Some((failure, times));
                    interval.saturating_mul(1 << times.min(10)).min(LONGEST_PAUSE).max(interval)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = shutdown.changed() => return,
            }
        }
    }
}

impl ChangeLog {
    async fn read(&self, cursor: &mut Cursor, had_turn: &mut bool) -> Result<Read, Failure> {
        if let Some(turns) = &self.turns {
            match turns.take().await {
                Ok(Turn::Ours { done, overdue }) => {
                    if overdue {
                        self.metrics.failed("lease_overdue");
                        tracing::warn!(
                            "took over the change log lease: its holder did not poll for the duration of a lease; check that gateway, and which clients may write to Redis"
                        );
                    }
                    done.filter(|_| !*had_turn).into_iter().for_each(|done| cursor.resume_from(done));
                    *had_turn = true;
                }
                Ok(Turn::Anothers { done }) => {
                    *had_turn = false;
                    return Ok(Read::ByAnother(done));
                }
                // Each for itself, then: what is read twice does no harm.
                Err(error) => {
                    *had_turn = false;
                    tracing::debug!(why = error.as_str(), "failed to determine the leader for the change log");
                }
            }
        }
        self.read_on(cursor).await?;
        if let Some(turns) = &self.turns
            && let Err(error) = turns.done(cursor.read_up_to()).await
        {
            tracing::debug!(why = error.as_str(), "failed to store the position in the change log");
        }
        Ok(Read::Now)
    }

    async fn read_on(&self, cursor: &mut Cursor) -> Result<(), Failure> {
        let token = token(&self.config.token_file).ok_or(Failure::Token)?;
        let gateway = self.current.load().gateway.clone();
        let asked = PollTime::new(clock::now(), SystemTime::now());
        let obey = match gateway.change_log(&cursor.target(), &token).await {
            Ok(answer) => match answer.status {
                StatusCode::OK => {
                    let entries = read_change_log(&answer.body).ok_or(Failure::Unreadable)?;
                    cursor.advance(entries, asked.with_date(&answer.headers, clock::now()))
                }
                StatusCode::UNAUTHORIZED => return Err(Failure::Unauthorized),
                StatusCode::FORBIDDEN => return Err(Failure::Forbidden),
                status => return Err(Failure::Status(status)),
            },
            Err(UpstreamError::TooLarge) => cursor.advance_past_overflow(asked),
            Err(error) => return Err(Failure::Upstream(error)),
        };
        match obey {
            Reading::Changes { changes, unknown } => {
                self.metrics.entries(changes.len(), unknown);
                if unknown > 0 {
                    tracing::warn!(unknown, "skipped unknown entries of the change log");
                }
                for scope in changes.iter().filter_map(scope) {
                    gateway.invalidate(&scope, TRIGGER);
                }
            }
            Reading::Unknown(missed) => {
                let why = missed.as_str();
                tracing::warn!(why, "purged the whole cache: changes in the change log may have been missed");
                gateway.invalidate(&Scope::All, TRIGGER);
            }
        }
        Ok(())
    }
}

/// What an entry's change makes stale; entries name no tokens.
fn scope(change: &Change) -> Option<Scope> {
    match change {
        Change::Customer(id) => Some(Scope::Customer(*id)),
        Change::Employee(id) => Some(Scope::Employee(id.clone())),
        Change::Token(_) | Change::CallersToken | Change::CallersEmployee => None,
    }
}

/// The token in a file; white space around it does not count.
fn token(file: &Path) -> Option<Token> {
    let bytes = zeroize::Zeroizing::new(std::fs::read(file).ok()?);
    Token::parse(bytes.trim_ascii())
}
