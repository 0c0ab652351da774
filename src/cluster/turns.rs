//! The lease on what one gateway of a cluster does for all, and how far it got. Two gateways may
//! hold it for a moment; then the work is done twice, which does no harm.
//!
//! The lease ends with its time in Redis, which only its holder renews. Whether it still counts is
//! not left to the holder: a gateway that sees no progress for as long as the lease lasts, by its
//! own clock, takes it. A lease without an expiry (from another client) and a holder that renews it
//! and does nothing end like this.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redis::Pipeline;

use super::connection::{Connection, Error};
use super::seal::Sealer;
use crate::clock;

/// How long it is remembered how far the last one got. Beyond what the API keeps, nobody can go on from there.
const REMEMBERED: Duration = Duration::from_hours(6 * 24);

/// Bytes read of a holder's name and of a sealed time: longer ones are not a gateway's.
const MAX_VALUE: usize = 256;

/// Who does it now, and how far it was done by the last holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// `overdue`: it was taken from a holder that made no progress.
    Ours {
        done: Option<SystemTime>,
        overdue: bool,
    },
    Anothers {
        done: Option<SystemTime>,
    },
}

/// The turns at one task.
pub struct Turns {
    connection: Arc<Connection>,
    sealer: Sealer,
    turn: String,
    done: String,
    me: String,
    life: Duration,
    timeout: Duration,
    seen: Mutex<Option<Progress>>,
}

/// The farthest that another holder got, and since when it got no farther.
#[derive(Clone, Copy, Debug)]
struct Progress {
    done: Option<SystemTime>,
    since: Instant,
}

impl Progress {
    /// What is known now: this `done` was read at `now`.
    fn next(before: Option<Progress>, done: Option<SystemTime>, now: Instant) -> Progress {
        match before {
            Some(before) if done <= before.done => before,
            _ => Progress { done, since: now },
        }
    }
}

impl Turns {
    /// `task`: the name in Redis. `life`: how long a turn lasts unless it is taken again; `timeout`: how long Redis is
    /// waited for.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn new(
        connection: Arc<Connection>,
        sealer: Sealer,
        task: &str,
        life: Duration,
        timeout: Duration,
    ) -> Result<Self, getrandom::Error> {
        let me = format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?);
        let (turn, done) = (format!("{task}:turn"), format!("{task}:done"));
        Ok(Turns { connection, sealer, turn, done, me, life, timeout, seen: Mutex::default() })
    }

    /// Takes the turn, or keeps it, if no other gateway has it and gets on.
    ///
    /// # Errors
    /// Redis does not say.
    pub async fn take(&self) -> Result<Turn, Error> {
        let life = u64::try_from(self.life.as_millis()).unwrap_or(u64::MAX);
        let mut ask = Pipeline::new();
        ask.cmd("SET").arg(&self.turn).arg(&self.me).arg("NX").arg("PX").arg(life).ignore();
        // Not GET, since another client may have left a value of any length there.
        ask.cmd("GETRANGE").arg(&self.turn).arg(0).arg(MAX_VALUE);
        ask.cmd("GETRANGE").arg(&self.done).arg(0).arg(MAX_VALUE);
        let (holder, done): (Vec<u8>, Vec<u8>) = self.connection.query(&ask, self.timeout).await?;
        let done = self.open(&done);
        let mut take = Pipeline::new();
        let overdue = holder != self.me.as_bytes();
        if !overdue {
            take.cmd("PEXPIRE").arg(&self.turn).arg(life).ignore();
        } else if self.is_overdue(done, clock::now()) {
            take.cmd("SET").arg(&self.turn).arg(&self.me).arg("PX").arg(life).ignore();
        } else {
            return Ok(Turn::Anothers { done });
        }
        self.connection.query::<()>(&take, self.timeout).await?;
        *self.seen.lock() = None;
        Ok(Turn::Ours { done, overdue })
    }

    /// Whether the other holder got no farther for as long as a lease lasts.
    fn is_overdue(&self, done: Option<SystemTime>, now: Instant) -> bool {
        let mut seen = self.seen.lock();
        let progress = Progress::next(*seen, done, now);
        *seen = Some(progress);
        now.saturating_duration_since(progress.since) >= self.life
    }

    /// It is done up to there.
    ///
    /// # Errors
    /// Redis does not take it; the next one does it from where it was before.
    pub async fn done(&self, up_to: SystemTime) -> Result<(), Error> {
        let millis =
            u64::try_from(up_to.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        // Without randomness nothing is sealed, and so nothing noted.
        let Ok(sealed) = self.sealer.seal(self.done.as_bytes(), &millis.to_be_bytes()) else { return Ok(()) };
        let mut note = Pipeline::new();
        note.cmd("SET").arg(&self.done).arg(sealed).arg("PX").arg(REMEMBERED.as_millis() as u64).ignore();
        self.connection.query::<()>(&note, self.timeout).await
    }

    fn open(&self, sealed: &[u8]) -> Option<SystemTime> {
        let millis = self.sealer.open(self.done.as_bytes(), sealed).ok()?;
        let millis = u64::from_be_bytes(millis.as_slice().try_into().ok()?);
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_only_where_the_holder_gets_farther() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let done = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let first = Progress::next(None, done(5), at(0));
        assert_eq!(Progress::next(Some(first), done(5), at(3)).since, at(0), "the same");
        assert_eq!(Progress::next(Some(first), done(4), at(3)).since, at(0), "an older one that was put back");
        assert_eq!(Progress::next(Some(first), None, at(3)).since, at(0), "one that was removed");
        assert_eq!(Progress::next(Some(first), done(6), at(3)).since, at(3));
        let nothing = Progress::next(None, None, at(0));
        assert_eq!(Progress::next(Some(nothing), None, at(3)).since, at(0), "a holder that never notes anything");
    }
}
