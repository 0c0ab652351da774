//! The stream as the server holds it, and whether anything of it was missed.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamRangeReply, StreamReadReply};
use redis::{Cmd, FromRedisValue, Value, cmd, from_redis_value};

use super::connection::Error;
use super::ledger::StreamId;
use super::wire::ServerTime;

/// The stream's length at most, about: of 180 bytes each. A gateway that was cut off for more than
/// so many changes cannot know
/// what it missed.
pub const MAX_LENGTH: usize = 100_000;

/// Messages asked for at once.
pub const BATCH: usize = 1000;

/// The one field of a message.
pub const FIELD: &str = "m";

/// A message as it stands there.
pub struct Sealed {
    pub id: StreamId,
    /// Nothing, where somebody else wrote it.
    pub bytes: Option<Vec<u8>>,
}

/// What the server says of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The last id that it gave.
    pub last: StreamId,
    /// The oldest message that is still there.
    pub first: Option<StreamId>,
    /// The latest that was taken out of the middle.
    pub deleted: StreamId,
}

impl State {
    /// Whether everything after `position` was there to be read. It must be the id of a message
    /// that was there, or [`State::end`] at some time. What is cut off is the oldest, so where
    /// something as old is still there, nothing newer was cut off.
    pub fn continues(&self, position: StreamId) -> bool {
        let whole = self.first.is_some_and(|first| first <= position) && self.deleted <= position;
        self.last == position || (self.last > position && whole)
    }

    /// The highest id that the server names: to a reader that begins there, nothing is missing.
    pub fn end(&self) -> StreamId {
        self.last.max(self.deleted)
    }
}

/// A connection that reads one stream.
pub struct Stream<'a> {
    pub link: &'a mut MultiplexedConnection,
    pub key: &'a str,
}

impl Stream<'_> {
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Error> {
        command.query_async(self.link).await.map_err(Error::from)
    }

    /// Another number in each life of the server.
    pub async fn epoch(&mut self) -> Result<u64, Error> {
        let info: String = self.ask(cmd("INFO").arg("server")).await?;
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim);
        let run_id = run_id.ok_or_else(|| Error::Malformed("INFO server without a run_id".into()))?;
        let digest = blake3::hash(run_id.as_bytes());
        Ok(digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    /// `None`: there is no such stream.
    pub async fn state(&mut self) -> Result<Option<State>, Error> {
        let told: HashMap<String, Value> = match self.ask(cmd("XINFO").arg("STREAM").arg(self.key)).await {
            // "ERR no such key" is of a kind with every other refusal; what is meant is told by whether it is there.
            Err(Error::Refused(why)) if why.contains("no such key") => return Ok(None),
            Err(Error::Refused(why)) if why.contains("WRONGTYPE") => return Err(Error::Unusable(why)),
            told => told?,
        };
        let id = |name: &str| told.get(name).and_then(|value| from_redis_value::<String>(value.clone()).ok());
        let last = id("last-generated-id");
        let last = last.ok_or_else(|| Error::Malformed("XINFO STREAM without a last-generated-id".into()))?;
        let last = StreamId::parse(&last).ok_or_else(odd_id)?;
        // Servers before 7.0 do not say what was taken out of the middle, which nothing of ours ever does.
        let deleted = id("max-deleted-entry-id").and_then(|text| StreamId::parse(&text)).unwrap_or_default();
        let first = match told.get("first-entry") {
            Some(Value::Array(entry)) => {
                let text = entry.first().and_then(|id| from_redis_value::<String>(id.clone()).ok());
                Some(text.and_then(|text| StreamId::parse(&text)).ok_or_else(odd_id)?)
            }
            _ => None,
        };
        Ok(Some(State { last, first, deleted }))
    }

    /// Deletes the stream, or what is in its place.
    pub async fn delete(&mut self) -> Result<(), Error> {
        self.ask(cmd("DEL").arg(self.key)).await
    }

    /// Adds a message; gives its id.
    pub async fn add(&mut self, sealed: &[u8]) -> Result<StreamId, Error> {
        let id: String = self.ask(&add(self.key, sealed)).await?;
        StreamId::parse(&id).ok_or_else(odd_id)
    }

    /// What comes after `position`; waits for it so many milliseconds.
    pub async fn read(&mut self, position: StreamId, wait: Option<u64>) -> Result<Vec<Sealed>, Error> {
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(BATCH);
        if let Some(milliseconds) = wait {
            command.arg("BLOCK").arg(milliseconds);
        }
        command.arg("STREAMS").arg(self.key).arg(position.to_string());
        let read: Option<StreamReadReply> = self.ask(&command).await?;
        let entries = read.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        entries.map(sealed).collect()
    }

    /// The last message at that time or before.
    pub async fn last_before(&mut self, milliseconds: u64) -> Result<Option<StreamId>, Error> {
        let mut command = cmd("XREVRANGE");
        command.arg(self.key).arg(milliseconds).arg("-").arg("COUNT").arg(1);
        let read: StreamRangeReply = self.ask(&command).await?;
        read.ids.into_iter().next().map(|entry| StreamId::parse(&entry.id).ok_or_else(odd_id)).transpose()
    }

    /// The server's clock.
    pub async fn time(&mut self) -> Result<ServerTime, Error> {
        let (seconds, microseconds): (u64, u64) = self.ask(&cmd("TIME")).await?;
        Ok(ServerTime(seconds.saturating_mul(1000) + microseconds / 1000))
    }
}

/// The command that adds a message, and takes the oldest ones away.
pub fn add(key: &str, sealed: &[u8]) -> Cmd {
    let mut command = cmd("XADD");
    command.arg(key).arg("MAXLEN").arg("~").arg(MAX_LENGTH).arg("*").arg(FIELD).arg(sealed);
    command
}

fn odd_id() -> Error {
    Error::Unusable("its last id is too large to append a message".into())
}

fn sealed(mut entry: redis::streams::StreamId) -> Result<Sealed, Error> {
    let id = StreamId::parse(&entry.id).ok_or_else(odd_id)?;
    let bytes = entry.map.remove(FIELD).and_then(|value| from_redis_value(value).ok());
    Ok(Sealed { id, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> StreamId {
        StreamId::new(number, 0).unwrap()
    }

    #[test]
    fn what_may_have_been_missed_is_known_by_what_is_left() {
        let state =
            |first: Option<u64>, last, deleted| State { first: first.map(id), last: id(last), deleted: id(deleted) };
        for (state, continues, why) in [
            (state(Some(1), 5, 0), true, "all of it is there"),
            (state(Some(5), 5, 0), true, "the last one is"),
            (state(Some(5), 9, 0), true, "nothing after it was cut off"),
            (state(None, 5, 0), true, "nothing came after it"),
            (state(Some(6), 9, 0), false, "one before 6 may have been cut off"),
            (state(None, 9, 0), false, "all was cut off"),
            (state(Some(1), 9, 7), false, "one was taken out"),
            (state(Some(1), 9, 4), true, "it had that one"),
            (state(Some(1), 4, 0), false, "the server lost what it had"),
        ] {
            assert_eq!(state.continues(id(5)), continues, "{state:?}: {why}");
        }
    }

    #[test]
    fn stream_continues_from_the_end_that_a_repair_begins_at() {
        for (first, last, deleted) in [(Some(1), 9, 9), (Some(1), 9, 7), (None, 9, 9), (Some(3), 9, 0)] {
            let state = State { first: first.map(id), last: id(last), deleted: id(deleted) };
            assert!(state.continues(state.end()), "{state:?}");
            let later = State { last: id(12), ..state };
            assert_eq!(later.continues(state.end()), first.is_some(), "{state:?}, and one message more");
        }
    }
}
