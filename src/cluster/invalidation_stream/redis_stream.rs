//! The commands of the Redis stream, and whether messages of it were missed.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamRangeReply, StreamReadReply};
use redis::{Cmd, FromRedisValue, Value, cmd, from_redis_value};

use crate::cluster::connection::RedisError;
use crate::cluster::server_time::ServerTime;
use crate::cluster::stream_id::StreamId;

/// Approximate length to which the stream is trimmed; a message takes 180 bytes. A gateway that was
/// disconnected for more changes cannot know what it missed.
const MESSAGES_MAX: usize = 100_000;

/// Most messages of one read.
pub const BATCH_MESSAGES_MAX: usize = 1000;

/// Name of a message's only field.
const FIELD: &str = "m";

/// A message as it is stored.
pub struct EncryptedMessage {
    pub id: StreamId,
    /// `None` if another program wrote the message.
    pub bytes: Option<Vec<u8>>,
}

/// The reply of XINFO STREAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// The last id that the server assigned.
    pub last: StreamId,
    /// The id of the oldest stored message.
    pub first: Option<StreamId>,
    /// The highest id of a message that was removed from the middle.
    pub deleted: StreamId,
}

impl StreamInfo {
    /// Whether no message after `position` was removed. `position` is the id of a message that was
    /// stored, or a former [`StreamInfo::end`]. Trimming removes the oldest messages, so while one
    /// as old as `position` is stored, no newer one was trimmed.
    pub fn continues(&self, position: StreamId) -> bool {
        let is_complete =
            self.first.is_some_and(|first| first <= position) && self.deleted <= position;
        self.last == position || (self.last > position && is_complete)
    }

    /// The highest id that the server names. A reader that begins there misses nothing.
    pub fn end(&self) -> StreamId {
        self.last.max(self.deleted)
    }
}

/// One stream on a connection.
pub struct RedisStream<'a> {
    pub connection: &'a mut MultiplexedConnection,
    pub key: &'a str,
}

impl RedisStream<'_> {
    async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        command.query_async(self.connection).await.map_err(RedisError::from)
    }

    /// Identifies the server, which must be a primary: a replica takes no messages, and one that
    /// lost its primary receives none. The number differs in each life of each server.
    pub async fn epoch(&mut self) -> Result<u64, RedisError> {
        let replication: String = self.query(cmd("INFO").arg("replication")).await?;
        if replication.lines().any(|line| line.trim() == "role:slave") {
            let problem = "the server is a replica; cluster.url must lead to the primary";
            return Err(RedisError::Refused(problem.into()));
        }
        let info: String = self.query(cmd("INFO").arg("server")).await?;
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim);
        let run_id =
            run_id.ok_or_else(|| RedisError::Malformed("INFO server without a run_id".into()))?;
        let digest = blake3::hash(run_id.as_bytes());
        Ok(digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    /// `None` if there is no stream.
    pub async fn info(&mut self) -> Result<Option<StreamInfo>, RedisError> {
        let reply = self.query(cmd("XINFO").arg("STREAM").arg(self.key)).await;
        let fields: HashMap<String, Value> = match reply {
            // "ERR no such key" has no error code of its kind.
            Err(RedisError::Refused(why)) if why.contains("no such key") => return Ok(None),
            Err(RedisError::Refused(why)) if why.contains("WRONGTYPE") => {
                return Err(RedisError::Unusable(why));
            }
            fields => fields?,
        };
        let id = |name: &str| from_redis_value::<String>(fields.get(name)?.clone()).ok();
        let last = id("last-generated-id");
        let missing = || RedisError::Malformed("XINFO STREAM without a last-generated-id".into());
        let last = StreamId::parse(&last.ok_or_else(missing)?).ok_or_else(id_too_large)?;
        // Servers before 7.0 do not report removed messages, and gateways remove none.
        let deleted =
            id("max-deleted-entry-id").and_then(|text| StreamId::parse(&text)).unwrap_or_default();
        let first = match fields.get("first-entry") {
            Some(Value::Array(entry)) => {
                let text = entry.first().and_then(|id| from_redis_value::<String>(id.clone()).ok());
                Some(text.and_then(|text| StreamId::parse(&text)).ok_or_else(id_too_large)?)
            }
            _ => None,
        };
        Ok(Some(StreamInfo { last, first, deleted }))
    }

    /// Deletes the key, of whatever type.
    pub async fn delete(&mut self) -> Result<(), RedisError> {
        self.query(cmd("DEL").arg(self.key)).await
    }

    /// Appends a message and returns its id.
    pub async fn add(&mut self, encrypted: &[u8]) -> Result<StreamId, RedisError> {
        let id: String = self.query(&xadd(self.key, encrypted)).await?;
        StreamId::parse(&id).ok_or_else(id_too_large)
    }

    /// Returns messages after `position`; waits for the first one for `block_millis`.
    pub async fn read(
        &mut self,
        position: StreamId,
        block_millis: Option<u64>,
    ) -> Result<Vec<EncryptedMessage>, RedisError> {
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(BATCH_MESSAGES_MAX);
        if let Some(millis) = block_millis {
            command.arg("BLOCK").arg(millis);
        }
        command.arg("STREAMS").arg(self.key).arg(position.to_string());
        let read: Option<StreamReadReply> = self.query(&command).await?;
        let entries = read.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        entries.map(to_message).collect()
    }

    /// The id of the last message at that time of the server's clock or before.
    pub async fn last_before(&mut self, milliseconds: u64) -> Result<Option<StreamId>, RedisError> {
        let mut command = cmd("XREVRANGE");
        command.arg(self.key).arg(milliseconds).arg("-").arg("COUNT").arg(1);
        let read: StreamRangeReply = self.query(&command).await?;
        read.ids
            .into_iter()
            .next()
            .map(|entry| StreamId::parse(&entry.id).ok_or_else(id_too_large))
            .transpose()
    }

    /// The time of the server's clock.
    pub async fn time(&mut self) -> Result<ServerTime, RedisError> {
        let (seconds, microseconds): (u64, u64) = self.query(&cmd("TIME")).await?;
        Ok(ServerTime(seconds.saturating_mul(1000) + microseconds / 1000))
    }
}

/// The command that appends a message and trims the oldest ones.
pub fn xadd(key: &str, encrypted: &[u8]) -> Cmd {
    let mut command = cmd("XADD");
    command.arg(key).arg("MAXLEN").arg("~").arg(MESSAGES_MAX).arg("*").arg(FIELD).arg(encrypted);
    command
}

fn id_too_large() -> RedisError {
    RedisError::Unusable("its last id is too large to append a message".into())
}

fn to_message(mut entry: redis::streams::StreamId) -> Result<EncryptedMessage, RedisError> {
    let id = StreamId::parse(&entry.id).ok_or_else(id_too_large)?;
    let bytes = entry.map.remove(FIELD).and_then(|value| from_redis_value(value).ok());
    Ok(EncryptedMessage { id, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> StreamId {
        StreamId::new(number, 0).unwrap()
    }

    #[test]
    fn missing_messages_are_detected_by_stored_ids() {
        let state = |first: Option<u64>, last, deleted| StreamInfo {
            first: first.map(id),
            last: id(last),
            deleted: id(deleted),
        };
        for (state, continues, why) in [
            (state(Some(1), 5, 0), true, "all messages are stored"),
            (state(Some(5), 5, 0), true, "the last one is stored"),
            (state(Some(5), 9, 0), true, "no message after it was trimmed"),
            (state(None, 5, 0), true, "no message came after it"),
            (state(Some(6), 9, 0), false, "one before 6 may have been trimmed"),
            (state(None, 9, 0), false, "all were trimmed"),
            (state(Some(1), 9, 7), false, "one was removed"),
            (state(Some(1), 9, 4), true, "the removed one was read"),
            (state(Some(1), 4, 0), false, "the server lost messages"),
        ] {
            assert_eq!(state.continues(id(5)), continues, "{state:?}: {why}");
        }
    }

    #[test]
    fn stream_continues_from_the_end_of_a_repair() {
        for (first, last, deleted) in
            [(Some(1), 9, 9), (Some(1), 9, 7), (None, 9, 9), (Some(3), 9, 0)]
        {
            let state = StreamInfo { first: first.map(id), last: id(last), deleted: id(deleted) };
            assert!(state.continues(state.end()), "{state:?}");
            let later = StreamInfo { last: id(12), ..state };
            assert_eq!(
                later.continues(state.end()),
                first.is_some(),
                "{state:?}, and one message more"
            );
        }
    }
}
