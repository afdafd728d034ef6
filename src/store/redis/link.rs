//! A connection that is kept open.
//!
//! It is made in the background, with pauses that grow and differ, and asked now and then whether it is still there. No
//! call waits for it: there is one, or there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Address;
use super::absence::Absence;
use super::eviction::{Eviction, told};
use super::memory::Memory;
use super::resolver::{News, Resolver};
use super::trouble::{Trouble, class};
use super::tuning::Tuning;
use crate::clock;
use crate::store::Class;

/// The oldest Redis that will do: from here on, scripts may read the time and then write.
const OLDEST: u32 = 6;

/// A connection that is kept open for as long as this is there.
#[derive(Debug)]
pub(super) struct Link {
    kept: Arc<Kept>,
    keeping: JoinHandle<()>,
}

/// What its keeper and its users share.
#[derive(Debug)]
struct Kept {
    resolver: Resolver,
    tuning: Tuning,
    memory: Arc<Memory>,
    eviction: Arc<Eviction>,
    /// Whether the server is missed: told by all connections to it.
    absence: Arc<Absence>,
    /// The connection, while there is one that works as far as is known.
    current: ArcSwapOption<Live>,
    /// Rung when it has been found broken.
    broken: Notify,
    /// What was wrong when there last was none: the place in [`Class::ALL`].
    trouble: AtomicU8,
}

/// A connection that works as far as is known.
pub(super) struct Live {
    pub(super) connection: MultiplexedConnection,
    /// Where it leads to.
    pub(super) address: Address,
    /// Whether it has been used, and been of use.
    tried: AtomicBool,
    served: AtomicBool,
    /// Whether it has been given up: what is under way on it goes over another one, also if nobody told it of an error.
    gone: watch::Sender<bool>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl Live {
    /// Notes that it is used.
    pub(super) fn is_tried(&self) {
        if !self.tried.load(Ordering::Relaxed) {
            self.tried.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that it has been of use.
    pub(super) fn has_served(&self) {
        if !self.served.load(Ordering::Relaxed) {
            self.served.store(true, Ordering::Relaxed);
        }
    }

    /// Tells when it is given up.
    pub(super) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }
}

impl Link {
    /// Begins to connect. Must be called within a tokio runtime.
    pub(super) fn open(
        resolver: Resolver,
        tuning: Tuning,
        eviction: Arc<Eviction>,
        memory: Arc<Memory>,
        absence: Arc<Absence>,
    ) -> Self {
        let kept = Arc::new(Kept {
            resolver,
            tuning,
            eviction,
            memory,
            absence,
            current: ArcSwapOption::empty(),
            broken: Notify::new(),
            trouble: AtomicU8::new(0),
        });
        kept.note(Class::Unreachable);
        let keeping = tokio::spawn(keep_connected(Arc::clone(&kept)));
        Self { kept, keeping }
    }

    /// The connection, if there is one.
    pub(super) fn live(&self) -> Option<Arc<Live>> {
        self.kept.current.load_full()
    }

    /// Whether there is one.
    pub(super) fn is_connected(&self) -> bool {
        self.kept.current.load().is_some()
    }

    /// What was wrong when there last was none.
    pub(super) fn trouble(&self) -> Class {
        let place = usize::from(self.kept.trouble.load(Ordering::Relaxed));
        Class::ALL.get(place).copied().unwrap_or(Class::Other)
    }

    /// Gives up a connection that a call has found broken.
    pub(super) fn found_broken(&self, live: &Arc<Live>, error: &RedisError) {
        // First: who finds no connection says why there is none.
        self.kept.note(class(error));
        if self.kept.give_up(live) {
            if self.kept.absence.broke(class(error), clock::instant()) {
                tracing::warn!(redis = %live.address, %error, "a connection broke");
            } else {
                tracing::debug!(redis = %live.address, %error, "another connection broke");
            }
            self.kept.broken.notify_one();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeping.abort();
        // Whoever is still waiting for an answer over it learns that none will come.
        if let Some(live) = self.kept.current.swap(None) {
            live.gone.send_replace(true);
        }
    }
}

impl Kept {
    fn note(&self, class: Class) {
        let place = Class::ALL.iter().position(|other| *other == class);
        self.trouble
            .store(place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX), Ordering::Relaxed);
    }

    /// Returns once the connection is broken; asks it whether it is still there when nobody else finds out.
    async fn watch(&self, live: &Arc<Live>, say: bool) {
        let mut news = self.resolver.news();
        // It has just been asked.
        let mut asked = clock::instant();
        let reason = loop {
            tokio::select! {
                () = self.broken.notified() => return,
                reason = self.look(live, &mut news, &mut asked) => if let Some(reason) = reason { break reason },
            }
        };
        self.note(reason.class);
        if self.give_up(live) && say {
            tracing::warn!(redis = %live.address, error = reason.said, "a connection broke");
        }
        // Rung for the same connection meanwhile, perhaps: it is not the next one's.
        _ = tokio::time::timeout(Duration::ZERO, self.broken.notified()).await;
    }

    /// Waits a while, and then says what is wrong with a connection: it is not there any more, or leads to the wrong server.
    /// Now and then, it also asks what the server does when its memory is full; `asked` is when it did so last.
    async fn look(&self, live: &Live, news: &mut News, asked: &mut Instant) -> Option<Trouble> {
        let within = self.tuning.ping;
        // Not before the time, or there is news of where it should lead to.
        _ = tokio::time::timeout(within, news.heard()).await;
        let mut connection = live.connection.clone();
        let ping = redis::cmd("PING");
        let (pong, moved) = tokio::join!(
            tokio::time::timeout(within, ping.query_async::<Value>(&mut connection)),
            self.resolver.moved_from(&live.address),
        );
        match pong {
            Err(_) => Some(Trouble::new(Class::Late, "no answer to PING")),
            Ok(Err(error)) if error.is_io_error() || error.is_unrecoverable_error() => Some(error.into()),
            // Whatever it answers, it is there.
            Ok(_) => {
                if moved.is_none() && asked.elapsed() >= self.tuning.policy {
                    *asked = clock::instant();
                    let mut info = redis::cmd("INFO");
                    let info = info.arg("memory").query_async::<String>(&mut connection);
                    // One that does not answer is found by the next PING.
                    if let Ok(Ok(info)) = tokio::time::timeout(within, info).await {
                        self.eviction.learn(&live.address, &info);
                    }
                }
                moved
            }
        }
    }

    /// Gives up a connection that is broken; false if somebody else has.
    fn give_up(&self, live: &Arc<Live>) -> bool {
        let before = self.current.compare_and_swap(live, None);
        live.gone.send_replace(true);
        before.as_ref().is_some_and(|before| Arc::ptr_eq(before, live))
    }
}

/// Connects, and again when the connection breaks, for ever. Says what is wrong when that changes, not each time.
async fn keep_connected(link: Arc<Kept>) {
    let Tuning { reconnect_first, reconnect_longest, .. } = link.tuning;
    let mut pause = reconnect_first;
    let mut said = None;
    // Whether the last connection was: of one that comes after it, nothing is said either. One that nobody has used may have
    // ended for another reason, unless that happens again.
    let (mut useless, mut unused) = (false, false);
    loop {
        match connect(&link.resolver, &link.tuning).await {
            Ok((connection, address, info)) => {
                if !useless {
                    tracing::info!(redis = %address, "connected");
                    link.eviction.learn(&address, &info);
                }
                said = None;
                // Before anybody can ask it.
                link.memory.is_of(told(&info, "run_id").unwrap_or_default());
                let since = clock::instant();
                let live = Arc::new(Live {
                    connection,
                    address,
                    tried: AtomicBool::new(false),
                    served: AtomicBool::new(false),
                    gone: watch::Sender::new(false),
                });
                link.current.store(Some(Arc::clone(&live)));
                link.absence.ends();
                link.watch(&live, !useless).await;
                let in_vain = !live.served.load(Ordering::Relaxed) && since.elapsed() < reconnect_longest;
                useless = in_vain && (unused || live.tried.load(Ordering::Relaxed));
                unused = in_vain;
                if !useless {
                    pause = reconnect_first;
                    continue;
                }
            }
            Err(trouble) => {
                link.note(trouble.class);
                link.absence.attempt_failed();
                if said.as_ref() != Some(&trouble) {
                    tracing::warn!(redis = %link.resolver, error = trouble.said, "cannot connect; trying on");
                    said = Some(trouble);
                }
            }
        }
        // Also after a connection that was of no use: a server that drops each would be asked for new ones without end.
        tokio::time::sleep(jitter(pause)).await;
        pause = (pause * 2).min(reconnect_longest);
    }
}

/// A connection, where it leads to, and what the server says of itself.
async fn connect(
    resolver: &Resolver,
    tuning: &Tuning,
) -> Result<(MultiplexedConnection, Address, String), Trouble> {
    // To find out where to, to connect, and to ask who is there.
    let within = 3 * tuning.connect_timeout;
    let connecting = async {
        let address = resolver.resolve().await?;
        let (connection, info) = connect_to(&address, tuning).await.map_err(|mut trouble| {
            if resolver.wants_primary() {
                trouble.said = format!("{address}, which is said to be the primary: {}", trouble.said);
            }
            trouble
        })?;
        if resolver.wants_primary() && told(&info, "role") != Some("master") {
            let said = format!("{address} is said to be the primary, and is none");
            return Err(Trouble::new(Class::ReadOnly, said));
        }
        Ok((connection, address, info))
    };
    tokio::time::timeout(within, connecting)
        .await
        .unwrap_or_else(|_| Err(Trouble::new(Class::Late, "no answer")))
}

pub(super) async fn connect_to(
    address: &Address,
    tuning: &Tuning,
) -> Result<(MultiplexedConnection, String), Trouble> {
    let connecting = tokio::time::timeout(tuning.connect_timeout, address.connect());
    let mut connection =
        connecting.await.map_err(|_| Trouble::new(Class::Late, "no answer to an attempt to connect"))??;
    let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
    let version = told(&info, "redis_version").unwrap_or_default();
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major < OLDEST => Err(Trouble::new(
            Class::TooOld,
            format!("Redis {version} is too old: weir needs {OLDEST}.0 or newer"),
        )),
        _ => Ok((connection, info)),
    }
}

/// From half of a pause to all of it, so that many processes do not come back in step.
pub(super) fn jitter(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or_default();
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
