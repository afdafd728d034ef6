//! Which server is the primary, as sentinels say.
//!
//! All of them are asked at once, over connections that are kept; once more than half have answered, the rest have a
//! moment left. They may disagree: each failover has a higher number (its configuration epoch), and what is said under the
//! highest is the newest. So a sentinel that was cut off together with an old primary leads nobody back to it, while
//! another can be heard; and what one has said is not given up for something older as long as it may just be slow.
//!
//! A primary that is replaced may live on for a while, and what it is charged then is lost. So each sentinel is also
//! listened to: it tells when there is a new one.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use super::Address;
use super::trouble::Trouble;
use crate::clock;
use crate::store::Class;

/// Sentinels that watch one primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    service: String,
    sentinels: Vec<Address>,
    /// How to be let in by the primary, wherever it is.
    server: Address,
    /// How long all of them together may take.
    within: Duration,
    asked: Mutex<Asked>,
    /// Changes when one of them tells of a new primary.
    news: watch::Sender<()>,
    /// Listens to each; ends with this.
    _listening: JoinSet<()>,
}

/// How long the rest may take to answer when more than half have.
const REST: Duration = Duration::from_millis(100);

/// What came of asking.
#[derive(Default)]
struct Asked {
    /// To each sentinel.
    connections: Vec<Option<MultiplexedConnection>>,
    /// When they were asked last, and what they said.
    last: Option<(Instant, Result<Address, Trouble>)>,
    /// The newest that any of them has said, and when one did so last.
    newest: Option<(Instant, Said)>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("last", &self.last).finish_non_exhaustive()
    }
}

/// What a sentinel says of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    /// The number of the failover that made it the primary.
    epoch: u64,
    host: String,
    port: u16,
}

impl Sentinels {
    /// Begins to listen to them. Must be called within a tokio runtime.
    pub(super) fn new(service: String, sentinels: Vec<Address>, server: Address, within: Duration) -> Self {
        let asked = Mutex::new(Asked { connections: vec![None; sentinels.len()], last: None, newest: None });
        let news = watch::Sender::new(());
        let mut listening = JoinSet::new();
        for sentinel in &sentinels {
            listening.spawn(listen(sentinel.clone(), service.clone(), within, news.clone()));
        }
        Self { service, sentinels, server, within, asked, news, _listening: listening }
    }

    /// Tells when one of them says that there is a new primary.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Where the primary is by now.
    pub(super) async fn primary(&self) -> Result<Address, Trouble> {
        let now = clock::instant();
        let mut asked = self.asked.lock().await;
        match &asked.last {
            // Another connection has asked while this one waited for its turn.
            Some((at, answer)) if *at >= now => answer.clone(),
            _ => {
                let at = clock::instant();
                let answer = self.ask(&mut asked).await;
                asked.last = Some((at, answer.clone()));
                answer
            }
        }
    }

    async fn ask(&self, asked: &mut Asked) -> Result<Address, Trouble> {
        let Asked { connections, newest: known, .. } = asked;
        let mut asking = JoinSet::new();
        for (index, (sentinel, connection)) in self.sentinels.iter().zip(connections.iter_mut()).enumerate() {
            let (sentinel, service) = (sentinel.clone(), self.service.clone());
            // Taken out: one that does not answer in time is not asked again.
            let connection = connection.take();
            asking.spawn(async move { (index, ask(&sentinel, connection, &service).await) });
        }
        let mut heard = Vec::new();
        let mut troubles = vec![Trouble::new(Class::Late, "no answer"); self.sentinels.len()];
        let mut end = clock::instant() + self.within;
        while let Ok(Some(answer)) = tokio::time::timeout_at(end, asking.join_next()).await {
            let Ok((index, answer)) = answer else { continue };
            match answer {
                Ok((connection, said)) => {
                    heard.push(said);
                    if let Some(kept) = connections.get_mut(index) {
                        *kept = Some(connection);
                    }
                    if heard.len() > self.sentinels.len() / 2 {
                        end = end.min(clock::instant() + REST);
                    }
                }
                Err(trouble) => _ = troubles.get_mut(index).map(|place| *place = trouble),
            }
        }
        match newest(heard) {
            Some(said) => {
                let Said { host, port, .. } = not_older(known, said, clock::instant());
                Ok(self.server.at(&host, port))
            }
            None => Err(self.silence(&troubles)),
        }
    }

    /// What is wrong when none of them says who is primary.
    fn silence(&self, troubles: &[Trouble]) -> Trouble {
        let class = troubles.first().map_or(Class::Unreachable, |trouble| trouble.class);
        let each = self.sentinels.iter().zip(troubles);
        let said: Vec<String> =
            each.map(|(sentinel, trouble)| format!("{sentinel}: {}", trouble.said)).collect();
        Trouble::new(class, format!("no sentinel says who is primary: {}", said.join("; ")))
    }
}

/// What the primary is called, and who is asked.
impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of ", self.service)?;
        for (index, sentinel) in self.sentinels.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            sentinel.fmt(f)?;
        }
        Ok(())
    }
}

/// Asks one sentinel, over the connection that was kept if that still works, or else over a new one.
async fn ask(
    sentinel: &Address,
    kept: Option<MultiplexedConnection>,
    service: &str,
) -> Result<(MultiplexedConnection, Said), Trouble> {
    if let Some(mut connection) = kept
        && let Ok(said) = question(&mut connection, service).await
    {
        return Ok((connection, said));
    }
    let mut connection = sentinel.connect().await?;
    let said = question(&mut connection, service).await?;
    Ok((connection, said))
}

async fn question(connection: &mut MultiplexedConnection, service: &str) -> Result<Said, Trouble> {
    let mut question = redis::cmd("SENTINEL");
    question.arg("MASTER").arg(service);
    let fields: HashMap<String, String> = question.query_async(connection).await.map_err(|error| {
        if error.to_string().contains("No such master") {
            Trouble::new(Class::Other, format!("it knows no primary that is called `{service}`"))
        } else {
            error.into()
        }
    })?;
    let strange = || Trouble::new(Class::WrongShape, "what it says of the primary is not understood");
    Ok(Said {
        epoch: fields.get("config-epoch").and_then(|epoch| epoch.parse().ok()).ok_or_else(strange)?,
        host: fields.get("ip").filter(|host| !host.is_empty()).ok_or_else(strange)?.clone(),
        port: fields.get("port").and_then(|port| port.parse().ok()).ok_or_else(strange)?,
    })
}

/// Listens to a sentinel for ever, and passes on when it tells of a new primary. Who asks finds out by and by what was
/// missed, also when nobody can be listened to.
async fn listen(sentinel: Address, service: String, pause: Duration, news: watch::Sender<()>) {
    const CHANNEL: &str = "+switch-master";

    loop {
        if let Ok(Ok(mut listening)) = tokio::time::timeout(pause, sentinel.listen()).await
            && let Ok(Ok(())) = tokio::time::timeout(pause, listening.subscribe(CHANNEL)).await
        {
            let mut told = listening.into_on_message();
            while let Some(message) = told.next().await {
                // The name, and then where the old and the new one are.
                let message = message.get_payload::<String>().unwrap_or_default();
                if message.split(' ').next() == Some(&*service) {
                    news.send_replace(());
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// How long what was said under a higher number counts when nobody says it any more. Sentinels that were set up anew count
/// from the beginning.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What has just been said, or what is known if that is newer: whoever said it may only be slow to answer now.
fn not_older(known: &mut Option<(Instant, Said)>, said: Said, now: Instant) -> Said {
    match known {
        Some((at, known)) if known.epoch > said.epoch && now.duration_since(*at) < REMEMBERED => {
            known.clone()
        }
        _ => {
            *known = Some((now, said.clone()));
            said
        }
    }
}

/// What is said under the highest number; of those that say the same number, what most say.
fn newest(heard: Vec<Said>) -> Option<Said> {
    let count = |said: &Said| heard.iter().filter(|other| *other == said).count();
    heard.iter().max_by_key(|said| (said.epoch, count(said))).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(epoch: u64, host: &str) -> Said {
        Said { epoch, host: host.to_owned(), port: 6379 }
    }

    #[test]
    fn the_newest_failover_counts_and_then_what_most_say() {
        assert_eq!(newest(vec![said(1, "old"), said(1, "old"), said(2, "new")]), Some(said(2, "new")));
        assert_eq!(newest(vec![said(2, "new"), said(1, "old")]), Some(said(2, "new")));
        assert_eq!(newest(vec![said(0, "a"), said(0, "b"), said(0, "b")]), Some(said(0, "b")));
        assert_eq!(newest(vec![said(0, "b"), said(0, "b"), said(0, "a")]), Some(said(0, "b")));
        assert_eq!(newest(vec![]), None);
    }

    #[test]
    fn an_older_primary_is_not_gone_back_to_while_the_newer_one_may_only_be_unheard() {
        let (mut known, start) = (None, clock::instant());
        let mut tell = |said, after| not_older(&mut known, said, start + after);
        assert_eq!(tell(said(2, "new"), Duration::ZERO), said(2, "new"));
        assert_eq!(tell(said(1, "old"), REMEMBERED / 2), said(2, "new"));
        assert_eq!(tell(said(2, "new"), REMEMBERED), said(2, "new"));
        assert_eq!(tell(said(1, "old"), REMEMBERED + REMEMBERED / 2), said(2, "new"));
        assert_eq!(tell(said(3, "newer"), REMEMBERED + REMEMBERED / 2), said(3, "newer"));
        // Sentinels that were set up anew.
        assert_eq!(tell(said(0, "other"), REMEMBERED * 3), said(0, "other"));
    }
}
