//! Whose turn it is at what one gateway of a fleet does for all, and how far it got: a short lease in Redis. Two may think
//! for a moment that it is theirs; then it is done twice, which does no harm.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::Pipeline;

use super::connection::{Connection, Error};
use super::seal::Sealer;

/// How long it is remembered how far the last one got. Beyond what the API keeps, nobody can go on from there.
const REMEMBERED: Duration = Duration::from_hours(6 * 24);

/// Who does it now, and how far it was done by whoever did it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Ours { done: Option<SystemTime> },
    Anothers { done: Option<SystemTime> },
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
        Ok(Turns { connection, sealer, turn, done, me, life, timeout })
    }

    /// Takes the turn, or keeps it, if nobody else has it.
    ///
    /// # Errors
    /// Redis does not say.
    pub async fn take(&self) -> Result<Turn, Error> {
        let life = u64::try_from(self.life.as_millis()).unwrap_or(u64::MAX);
        let mut ask = Pipeline::new();
        ask.cmd("SET").arg(&self.turn).arg(&self.me).arg("NX").arg("PX").arg(life).ignore();
        ask.cmd("GET").arg(&self.turn).cmd("GET").arg(&self.done);
        let (holder, done): (Option<Vec<u8>>, Option<Vec<u8>>) = self.connection.query(&ask, self.timeout).await?;
        let done = done.and_then(|sealed| self.open(&sealed));
        if holder.as_deref() != Some(self.me.as_bytes()) {
            return Ok(Turn::Anothers { done });
        }
        let mut keep = Pipeline::new();
        keep.cmd("PEXPIRE").arg(&self.turn).arg(life).ignore();
        self.connection.query::<()>(&keep, self.timeout).await?;
        Ok(Turn::Ours { done })
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
