//! What the processes that share a Redis tell it of themselves: that they are there.
//!
//! They learn from it how many they are, and whether it still remembers what it was told: a name that it was given at
//! first, the *epoch*, is gone when its memory is.

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Pipeline, RedisError};

/// For how long an epoch is kept while no process is there.
const EPOCH_TTL: Duration = Duration::from_secs(7 * 86_400);

/// What a Redis says of those that share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pulse {
    /// Processes that have been heard of lately, this one among them.
    pub(super) processes: u32,
    /// The name of its memory.
    pub(super) epoch: String,
}

/// A process among those that share a Redis.
///
/// They are a sorted set, each with the moment when it was last heard of by Redis's clock, in milliseconds.
#[derive(Debug)]
pub(super) struct Heart {
    processes: String,
    epoch: String,
    process: String,
}

impl Heart {
    /// The process of this name. In a Cluster, `tag` is in the slot that is asked; otherwise there is none.
    pub(super) fn new(process: u64, tag: Option<&str>) -> Self {
        let tag = tag.map(|tag| format!("|{{{tag}}}")).unwrap_or_default();
        Self {
            processes: format!("weir:!processes{tag}"),
            epoch: format!("weir:!epoch{tag}"),
            process: format!("{process:016x}"),
        }
    }

    /// Says that the process is there, and will be gone when it has been silent for so long.
    ///
    /// # Errors
    /// When Redis does not say what is wanted.
    pub(super) async fn beat(
        &self,
        connection: &mut impl ConnectionLike,
        silence: Duration,
    ) -> Result<Pulse, RedisError> {
        let silence = millis(silence).max(1);
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(connection).await?;
        let now = seconds * 1_000 + micros / 1_000;
        // Where the memory is new, whoever comes first gives it its name.
        let proposed = format!("{:016x}", getrandom::u64().unwrap_or_default());
        // No transaction: what a connection that breaks leaves half done, the next beat mends.
        let mut commands = Pipeline::new();
        commands.cmd("ZREMRANGEBYSCORE").arg(&self.processes).arg("-inf").arg(now - silence - 1).ignore();
        // Of a clock that has stepped back: these would never be gone.
        commands.cmd("ZREMRANGEBYSCORE").arg(&self.processes).arg(now + silence + 1).arg("+inf").ignore();
        commands.cmd("ZADD").arg(&self.processes).arg(now).arg(&self.process).ignore();
        commands.cmd("PEXPIRE").arg(&self.processes).arg(silence).ignore();
        let ttl = millis(EPOCH_TTL);
        commands.cmd("SET").arg(&self.epoch).arg(proposed).arg("PX").arg(ttl).arg("NX").ignore();
        commands.cmd("PEXPIRE").arg(&self.epoch).arg(ttl).ignore();
        commands.cmd("ZCARD").arg(&self.processes);
        commands.cmd("GET").arg(&self.epoch);
        let (processes, epoch) = commands.query_async(connection).await?;
        Ok(Pulse { processes, epoch })
    }

    /// Says that the process goes.
    ///
    /// # Errors
    /// When Redis does not say what is wanted.
    pub(super) async fn leave(&self, connection: &mut impl ConnectionLike) -> Result<(), RedisError> {
        redis::cmd("ZREM").arg(&self.processes).arg(&self.process).query_async(connection).await
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::super::server::RedisServer;
    use super::*;

    const SILENCE: Duration = Duration::from_secs(3);

    async fn connection(server: &RedisServer) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(server.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    #[tokio::test]
    async fn those_who_are_there_are_counted_and_those_who_leave_or_fall_silent_are_not() {
        let server = RedisServer::start();
        let mut connection = connection(&server).await;
        let hearts: Vec<Heart> = (0..3).map(|process| Heart::new(process, None)).collect();
        for (count, heart) in (1..).zip(&hearts) {
            assert_eq!(heart.beat(&mut connection, SILENCE).await.unwrap().processes, count);
            assert_eq!(heart.beat(&mut connection, SILENCE).await.unwrap().processes, count);
        }
        hearts[1].leave(&mut connection).await.unwrap();
        assert_eq!(hearts[0].beat(&mut connection, SILENCE).await.unwrap().processes, 2);

        // The third was heard of four seconds ago, or in four seconds by a clock that has stepped back since.
        for ago in [4_000_i64, -4_000] {
            let (seconds, micros): (i64, i64) =
                redis::cmd("TIME").query_async(&mut connection).await.unwrap();
            let when = seconds * 1_000 + micros / 1_000 - ago;
            let mut add = redis::cmd("ZADD");
            add.arg("weir:!processes").arg(when).arg("0000000000000002");
            add.query_async::<()>(&mut connection).await.unwrap();
            assert_eq!(hearts[0].beat(&mut connection, SILENCE).await.unwrap().processes, 1);
        }
    }

    #[tokio::test]
    async fn all_are_told_the_same_epoch_until_the_memory_is_lost() {
        let server = RedisServer::start();
        let mut connection = connection(&server).await;
        let (one, other) = (Heart::new(1, None), Heart::new(2, None));
        let epoch = one.beat(&mut connection, SILENCE).await.unwrap().epoch;
        assert_eq!(epoch.len(), 16);
        assert_eq!(other.beat(&mut connection, SILENCE).await.unwrap().epoch, epoch);
        assert_eq!(one.beat(&mut connection, SILENCE).await.unwrap().epoch, epoch);
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
        let next = other.beat(&mut connection, SILENCE).await.unwrap().epoch;
        assert_ne!(next, epoch);
        assert_eq!(one.beat(&mut connection, SILENCE).await.unwrap().epoch, next);
    }

    #[tokio::test]
    async fn what_is_written_expires() {
        let server = RedisServer::start();
        let mut connection = connection(&server).await;
        Heart::new(1, Some("x")).beat(&mut connection, SILENCE).await.unwrap();
        for key in ["weir:!processes|{x}", "weir:!epoch|{x}"] {
            let ttl: i64 = redis::cmd("PTTL").arg(key).query_async(&mut connection).await.unwrap();
            assert!(ttl > 0, "{key}: {ttl}");
        }
    }
}
