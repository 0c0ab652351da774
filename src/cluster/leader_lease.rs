//! The lease on work that one gateway of a cluster does for all, with its progress. Two gateways
//! may hold it for a moment; then both do the work, which is harmless.
//!
//! The lease expires in Redis unless its holder renews it. Observers do not rely on that: a gateway
//! that sees no progress for the duration of a lease, by its own clock, takes it over. This ends a
//! lease without an expiry (written by another client) and one whose holder renews it without
//! working.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redis::Pipeline;

use super::aead::Cipher;
use super::connection::{Connection, RedisError};
use crate::clock;

/// How long Redis keeps the progress. The API's log does not reach further back, so a gateway could
/// not continue from an older one.
const PROGRESS_TTL: Duration = Duration::from_hours(6 * 24);

/// Bytes that are read of a holder's name and of the progress: gateways write shorter values.
const VALUE_BYTES_MAX: usize = 256;

/// Whether this gateway does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// `done`: how far the previous holder got. `overdue`: the lease was taken from a holder that
    /// made no progress.
    Leader { done: Option<SystemTime>, overdue: bool },
    /// `done`: how far the holder got.
    Follower { done: Option<SystemTime> },
}

/// The lease on one task.
pub struct LeaderLease {
    connection: Arc<Connection>,
    cipher: Cipher,
    holder_key: String,
    progress_key: String,
    holder: String,
    duration: Duration,
    timeout: Duration,
    observed: Mutex<Option<Progress>>,
}

/// The farthest progress of another holder, and when it was first seen.
#[derive(Clone, Copy, Debug)]
struct Progress {
    done: Option<SystemTime>,
    since: Instant,
}

impl Progress {
    /// The progress after `done` was read at `now`.
    fn observe(before: Option<Progress>, done: Option<SystemTime>, now: Instant) -> Progress {
        match before {
            Some(before) if done <= before.done => before,
            _ => Progress { done, since: now },
        }
    }
}

impl LeaderLease {
    /// `task`: prefix of the keys in Redis. `duration`: how long a lease lasts without renewal.
    /// `timeout`: deadline of a reply of Redis.
    ///
    /// # Errors
    /// The operating system provides no randomness.
    pub fn new(
        connection: Arc<Connection>,
        cipher: Cipher,
        task: &str,
        duration: Duration,
        timeout: Duration,
    ) -> Result<Self, getrandom::Error> {
        Ok(LeaderLease {
            connection,
            cipher,
            // Written by all versions; the names are part of the documented Redis rights.
            holder_key: format!("{task}:turn"),
            progress_key: format!("{task}:done"),
            holder: format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?),
            duration,
            timeout,
            observed: Mutex::default(),
        })
    }

    /// Acquires or renews the lease, unless another gateway holds it and makes progress.
    ///
    /// # Errors
    /// Redis does not reply.
    pub async fn acquire(&self) -> Result<Leadership, RedisError> {
        let millis = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let (key, holder) = (&self.holder_key, &self.holder);
        let mut query = Pipeline::new();
        query.cmd("SET").arg(key).arg(holder).arg("NX").arg("PX").arg(millis).ignore();
        // Not GET, since another client may have written a value of any length.
        query.cmd("GETRANGE").arg(key).arg(0).arg(VALUE_BYTES_MAX);
        query.cmd("GETRANGE").arg(&self.progress_key).arg(0).arg(VALUE_BYTES_MAX);
        let (current, done): (Vec<u8>, Vec<u8>) =
            match self.connection.query(&query, self.timeout).await {
                Err(error) if error.is_wrong_type() => return self.replace(&error).await,
                reply => reply?,
            };
        let done = self.decrypt_progress(&done);
        let is_holder = current == holder.as_bytes();
        let mut update = Pipeline::new();
        if is_holder {
            update.cmd("PEXPIRE").arg(key).arg(millis).ignore();
        } else if self.is_overdue(done, clock::now()) {
            update.cmd("SET").arg(key).arg(holder).arg("PX").arg(millis).ignore();
        } else {
            return Ok(Leadership::Follower { done });
        }
        self.connection.query::<()>(&update, self.timeout).await?;
        *self.observed.lock() = None;
        Ok(Leadership::Leader { done, overdue: !is_holder })
    }

    /// Takes over a lease whose keys hold values of another type, which no gateway wrote.
    async fn replace(&self, error: &RedisError) -> Result<Leadership, RedisError> {
        let (key, progress_key) = (&self.holder_key, &self.progress_key);
        tracing::error!(%error, key, progress_key, "replaced the unusable lease of a task");
        let millis = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let mut update = Pipeline::new();
        update.cmd("SET").arg(key).arg(&self.holder).arg("PX").arg(millis).ignore();
        update.cmd("DEL").arg(progress_key).ignore();
        self.connection.query::<()>(&update, self.timeout).await?;
        *self.observed.lock() = None;
        Ok(Leadership::Leader { done: None, overdue: true })
    }

    /// Whether the other holder made no progress for the duration of a lease.
    fn is_overdue(&self, done: Option<SystemTime>, now: Instant) -> bool {
        let mut observed = self.observed.lock();
        let progress = Progress::observe(*observed, done, now);
        *observed = Some(progress);
        now.saturating_duration_since(progress.since) >= self.duration
    }

    /// Stores that the work is done up to `up_to`.
    ///
    /// # Errors
    /// Redis does not store it; the next holder repeats the work since the progress before.
    pub async fn store_progress(&self, up_to: SystemTime) -> Result<(), RedisError> {
        let since_epoch = up_to.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let encrypted = self.cipher.encrypt(self.progress_key.as_bytes(), &millis.to_be_bytes());
        // Without randomness nothing can be encrypted, and so nothing stored.
        let Ok(encrypted) = encrypted else { return Ok(()) };
        let ttl = PROGRESS_TTL.as_millis() as u64;
        let mut update = Pipeline::new();
        update.cmd("SET").arg(&self.progress_key).arg(encrypted).arg("PX").arg(ttl).ignore();
        self.connection.query::<()>(&update, self.timeout).await
    }

    fn decrypt_progress(&self, encrypted: &[u8]) -> Option<SystemTime> {
        let millis = self.cipher.decrypt(self.progress_key.as_bytes(), encrypted).ok()?;
        let millis = u64::from_be_bytes(millis.as_slice().try_into().ok()?);
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_only_when_it_is_farther() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let done = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let first = Progress::observe(None, done(5), at(0));
        let since = |done| Progress::observe(Some(first), done, at(3)).since;
        assert_eq!(since(done(5)), at(0), "the same");
        assert_eq!(since(done(4)), at(0), "an older value that was restored");
        assert_eq!(since(None), at(0), "a value that was removed");
        assert_eq!(since(done(6)), at(3));
        let nothing = Progress::observe(None, None, at(0));
        let later = Progress::observe(Some(nothing), None, at(3));
        assert_eq!(later.since, at(0), "a holder that never stores progress");
    }
}
