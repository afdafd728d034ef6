//! Buckets in Redis, shared by all who use the same one.
//!
//! A script decides whole batches of requests atomically (`decide.lua`), so that no two callers can both take the last
//! token, and a denied request takes none. Calls share round trips ([`queue`]). Two connections are kept open: a batch
//! whose connection breaks goes again over the other at once, under the same number, and is not applied twice.
//!
//! Connecting is done in the background, with growing pauses; no call waits for it. A call that Redis does not answer
//! before its deadline fails with a [`StoreError`], whether or not its charge has landed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use super::StoreError;
use crate::clock;
use crate::decision::{Charge, Decision};

mod address;
mod queue;
mod script;

pub use address::{Address, Files};

use queue::{Charges, Group, Lane, Queue};
use script::{Decided, How, NamedCharge};

/// Connections that are kept open to one Redis.
const CONNECTIONS: usize = 2;

/// Batches under way at a time. One that is being decided and one that is on its way keep Redis busy; more would only
/// leave fewer calls to each.
const BATCHES: usize = 2;

/// Distinct buckets of a batch, about: these are about a millisecond of Redis.
const BATCH_BUCKETS: usize = 256;

/// Calls that may wait for a batch.
const QUEUE: usize = 10_000;

/// Charges of a batch: many for one bucket take their time too.
const BATCH_CHARGES: usize = 1_000;

/// How often a connection is asked whether it is still there, and how long it may take to say so. One that was closed
/// while nobody used it, or that leads nowhere any more, is found by this, not by a call.
const PING: Duration = Duration::from_secs(1);

/// Longest time for one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Pauses between attempts to connect: the first, and the longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The oldest Redis that will do: from here on, scripts may read the time and then write.
const OLDEST: u32 = 6;

/// A Redis that buckets are kept in. Must be made within a tokio runtime.
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
    /// One for each connection; they end with the store.
    connecting: Vec<JoinHandle<()>>,
}

/// What calls, batches and connections share.
#[derive(Debug)]
struct Shared {
    queue: Queue,
    links: Vec<Arc<Link>>,
    /// Whose turn it is.
    next: AtomicUsize,
    /// Longest time from a call's arrival to its answer.
    deadline: Duration,
    /// The script's SHA-1, by which Redis knows it.
    hash: String,
    /// Requests that the script and the arithmetic here decided differently.
    parted: AtomicU64,
    /// Whether Redis answered the last batch with an error.
    refused: AtomicBool,
}

/// A connection that is kept open.
#[derive(Debug)]
struct Link {
    address: Address,
    /// The connection, while there is one that works as far as is known.
    current: ArcSwapOption<Live>,
    /// Rung when it has been found broken.
    broken: Notify,
}

struct Live {
    connection: MultiplexedConnection,
    /// Whether it has been of use.
    served: AtomicBool,
    /// Whether it has been given up: what is under way on it goes over another one, also if nobody told it of an error.
    gone: watch::Sender<bool>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl RedisStore {
    /// Uses the Redis at `address`, and begins to connect to it. Calls have `deadline` from their arrival on.
    ///
    /// # Errors
    /// When the system has no randomness to give for this process's name.
    pub fn new(address: &Address, deadline: Duration) -> Result<Self, getrandom::Error> {
        let process = getrandom::u64()?;
        // No domain begins with a `!`: it would be written as `%21`.
        let note = |lane| format!("weir:!lane|{process:016x}|{lane}").into_bytes();
        let lanes = (0..BATCHES).map(|lane| Lane { note: note(lane), number: 0 }).collect();
        let link =
            || Link { address: address.clone(), current: ArcSwapOption::empty(), broken: Notify::new() };
        let shared = Arc::new(Shared {
            queue: Queue::new(lanes, QUEUE, BATCH_BUCKETS, BATCH_CHARGES),
            links: (0..CONNECTIONS).map(|_| Arc::new(link())).collect(),
            next: AtomicUsize::new(0),
            deadline,
            hash: redis::Script::new(script::DECIDE).get_hash().to_owned(),
            parted: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        });
        let connecting =
            shared.links.iter().map(|link| tokio::spawn(keep_connected(Arc::clone(link)))).collect();
        Ok(Self { shared, connecting })
    }

    /// Decides a request, whose charges are on the buckets of these names, in order.
    ///
    /// # Errors
    /// When Redis does not answer in time, or not as it should.
    pub async fn decide(
        &self,
        charges: &[Charge],
        names: impl IntoIterator<Item = Bytes>,
    ) -> Result<Decision, StoreError> {
        let deadline = clock::instant() + self.shared.deadline;
        let named = charges.iter().zip(names).map(|(charge, name)| NamedCharge { charge: *charge, name });
        let charges: Charges = named.collect();
        if charges.is_empty() {
            return Ok(Decision { denied: false, verdicts: crate::decision::Verdicts::new() });
        }
        if !self.is_connected() {
            return Err(StoreError::Disconnected);
        }
        let (answer, lane) = self.shared.queue.push(charges, deadline)?;
        if let Some(lane) = lane {
            tokio::spawn(run(Arc::clone(&self.shared), lane));
        }
        // Whoever runs the batch answers by the deadline. Should that end without an answer, nobody waits for ever.
        let answer =
            timeout_at(deadline + self.shared.deadline, answer).await.map_err(|_| StoreError::Late)?;
        match answer.unwrap_or(Err(StoreError::Disconnected))? {
            Decided::Decision(decision) => Ok(decision),
            Decided::Unreadable => Err(StoreError::Unreadable),
        }
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.links.iter().any(|link| link.current.load().is_some())
    }

    /// Requests that the script and the arithmetic here decided differently. Not 0 means an error in one of them.
    #[must_use]
    pub fn parted(&self) -> u64 {
        self.shared.parted.load(Ordering::Relaxed)
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.connecting.iter().for_each(JoinHandle::abort);
    }
}

/// Runs batches, one after the other, until nobody waits any more.
async fn run(shared: Arc<Shared>, mut lane: Lane) {
    while let Some((taken, group)) = shared.queue.next(lane, clock::instant()) {
        lane = taken;
        match shared.round_trip(&mut lane, &group).await {
            Ok(decided) => group.answer(decided),
            Err(error) => group.fail(&error),
        }
    }
}

impl Shared {
    /// Has a batch decided: by its hash, or whole if Redis has forgotten the script; over another connection if one breaks.
    async fn round_trip(&self, lane: &mut Lane, group: &Group) -> Result<Vec<Decided>, StoreError> {
        lane.number += 1;
        let mut how = How::Hash(&self.hash);
        loop {
            let (link, live) = self.link().ok_or(StoreError::Disconnected)?;
            let command = group.batch.command(how, &lane.note, lane.number);
            let mut connection = live.connection.clone();
            let mut gone = live.gone.subscribe();
            let reply = timeout_at(group.deadline, async {
                tokio::select! {
                    biased;
                    reply = command.query_async::<Value>(&mut connection) => Some(reply),
                    _ = gone.wait_for(|gone| *gone) => None,
                }
            });
            let Some(reply) = reply.await.map_err(|_| StoreError::Late)? else { continue };
            match reply {
                Ok(reply) => {
                    let reply = group
                        .batch
                        .read(reply)
                        .map_err(|error| StoreError::Refused(error.to_string().into()))?;
                    if reply.parted > 0 && self.parted.fetch_add(reply.parted, Ordering::Relaxed) == 0 {
                        tracing::error!(
                            "Redis and weir decided the same request differently: please report this"
                        );
                    }
                    if self.refused.load(Ordering::Relaxed) && self.refused.swap(false, Ordering::Relaxed) {
                        tracing::info!(redis = %link.address, "Redis decides again");
                    }
                    if !live.served.load(Ordering::Relaxed) {
                        live.served.store(true, Ordering::Relaxed);
                    }
                    return Ok(reply.decided);
                }
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    how = How::Source(script::DECIDE)
                }
                Err(error) if is_broken(&error) => link.found_broken(&live, &error),
                Err(error) => {
                    if !self.refused.swap(true, Ordering::Relaxed) {
                        tracing::warn!(redis = %link.address, %error, "Redis refuses to decide");
                    }
                    return Err(StoreError::Refused(error.to_string().into()));
                }
            }
        }
    }

    /// A connection, each in its turn.
    fn link(&self) -> Option<(&Arc<Link>, Arc<Live>)> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let turns = self.links.iter().cycle().skip(first % self.links.len()).take(self.links.len());
        turns.filter_map(|link| Some((link, link.current.load_full()?))).next()
    }
}

/// Whether an error ends the connection that it came over. One that is no longer logged in, or that leads to a server which
/// is no primary any more, is of no use either: the next one has the password that is valid by now, and asks anew where
/// the name leads to.
fn is_broken(error: &RedisError) -> bool {
    error.code().is_some_and(|code| matches!(code, "NOAUTH" | "WRONGPASS" | "READONLY" | "MASTERDOWN"))
        || error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
}

impl Link {
    /// Returns once the connection is broken; asks it whether it is still there when nobody else finds out.
    async fn watch(&self, live: &Arc<Live>, say: bool) {
        let reason = loop {
            let broken = tokio::time::timeout(PING, self.broken.notified()).await;
            if broken.is_ok() {
                return;
            }
            let mut connection = live.connection.clone();
            let ping = redis::cmd("PING");
            match tokio::time::timeout(PING, ping.query_async::<Value>(&mut connection)).await {
                Err(_) => break "no answer to PING".to_owned(),
                Ok(Err(error)) if error.is_io_error() || error.is_unrecoverable_error() => {
                    break error.to_string();
                }
                // Whatever it answers, it is there.
                Ok(_) => {}
            }
        };
        if self.drop_connection(live) && say {
            tracing::warn!(redis = %self.address, error = reason, "a connection broke");
        }
        // Rung for the same connection meanwhile, perhaps: it is not the next one's.
        _ = tokio::time::timeout(Duration::ZERO, self.broken.notified()).await;
    }

    /// Gives up a connection that is broken; false if somebody else has.
    fn drop_connection(&self, live: &Arc<Live>) -> bool {
        let before = self.current.compare_and_swap(live, None);
        live.gone.send_replace(true);
        before.as_ref().is_some_and(|before| Arc::ptr_eq(before, live))
    }

    /// Gives up a connection that a call has found broken.
    fn found_broken(&self, live: &Arc<Live>, error: &RedisError) {
        if self.drop_connection(live) {
            tracing::warn!(redis = %self.address, %error, "a connection broke");
            self.broken.notify_one();
        }
    }
}

/// Connects, and again when the connection breaks, for ever. Says what is wrong when that changes, not each time.
async fn keep_connected(link: Arc<Link>) {
    let (first, longest) = RECONNECT;
    let mut pause = first;
    let mut said = String::new();
    // Whether the last connection was: of one that comes after it, nothing is said either.
    let mut useless = false;
    loop {
        match connect(&link.address).await {
            Ok((connection, info)) => {
                if !useless {
                    tracing::info!(redis = %link.address, "connected");
                    warn_of_eviction(&link.address, &info);
                }
                said.clear();
                let since = clock::instant();
                let live = Arc::new(Live {
                    connection,
                    served: AtomicBool::new(false),
                    gone: watch::Sender::new(false),
                });
                link.current.store(Some(Arc::clone(&live)));
                link.watch(&live, !useless).await;
                useless = !live.served.load(Ordering::Relaxed) && since.elapsed() < longest;
                if !useless {
                    pause = first;
                    continue;
                }
            }
            Err(error) if error == said => {}
            Err(error) => {
                tracing::warn!(redis = %link.address, error, "cannot connect; trying on");
                said = error;
            }
        }
        // Also after a connection that was of no use: a server that drops each would be asked for new ones without end.
        tokio::time::sleep(jitter(pause)).await;
        pause = (pause * 2).min(longest);
    }
}

/// A connection, and what the server says of itself.
async fn connect(address: &Address) -> Result<(MultiplexedConnection, String), String> {
    let client = address.client()?;
    // Deadlines are the calls', not the connection's.
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
    let connecting = async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
        Ok((connection, info))
    };
    let connected = tokio::time::timeout(2 * CONNECT_TIMEOUT, connecting).await;
    let (connection, info) =
        connected.map_err(|_| "no answer")?.map_err(|error: RedisError| error.to_string())?;
    let version = told(&info, "redis_version").unwrap_or_default();
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major < OLDEST => {
            Err(format!("Redis {version} is too old: weir needs {OLDEST}.0 or newer"))
        }
        _ => Ok((connection, info)),
    }
}

/// A field of what `INFO` says.
fn told<'i>(info: &'i str, field: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
}

/// Warns of a Redis that may forget what was used while it runs.
fn warn_of_eviction(address: &Address, info: &str) {
    if let Some(policy) = told(info, "maxmemory_policy").filter(|policy| *policy != "noeviction") {
        tracing::warn!(
            redis = %address,
            policy,
            "this Redis forgets keys when its memory is full, and with them what callers have used: set \
             maxmemory-policy to noeviction"
        );
    }
}

/// From half of a pause to all of it, so that many processes do not come back in step.
fn jitter(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or_default();
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod parity;
#[cfg(test)]
#[allow(dead_code, reason = "the integration tests, whose harness this is, use more of it")]
#[path = "../../tests/it/support/redis.rs"]
mod server;
