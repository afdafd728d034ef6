//! A primary and a replica under three sentinels.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;

use super::{RedisServer, await_that, free_port};

/// Who may speak with the servers and with the sentinels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Logins<'a> {
    /// The password of the servers' default user.
    pub(crate) password: Option<&'a str>,
    /// A user of the sentinels and its password; nobody else may speak with them.
    pub(crate) sentinel: Option<(&'a str, &'a str)>,
}

/// Two servers and three sentinels that watch them, under the name `mymaster`.
pub(crate) struct RedisSentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// What the sentinels call the primary.
    pub(crate) const NAME: &str = "mymaster";

    /// Starts them, and waits until the sentinels know each other and the replica.
    pub(crate) fn start() -> Self {
        Self::start_with(Logins::default(), &[])
    }

    /// Starts them with logins, and the servers with more arguments.
    pub(crate) fn start_with(logins: Logins<'_>, arguments: &[&str]) -> Self {
        // Should another process take one of the ports in between, all of them are given up.
        (0..5).find_map(|_| Self::run(logins, arguments)).expect("sentinels start")
    }

    fn run(logins: Logins<'_>, arguments: &[&str]) -> Option<Self> {
        let ports = [free_port(), free_port()];
        let primary = format!("127.0.0.1 {}", ports[0]);
        let server = |index: usize| {
            let mut all = super::IN_STEP.to_vec();
            if let Some(password) = logins.password {
                all.extend(["--requirepass", password, "--masterauth", password]);
            }
            if index > 0 {
                all.extend(["--replicaof", &primary]);
            }
            all.extend(arguments);
            let login = logins.password.map(|password| format!(":{password}@")).unwrap_or_default();
            RedisServer::spawn(ports[index], &login, &all)
        };
        let mut servers: Vec<RedisServer> = (0..2).map(server).collect();
        let mut sentinels: Vec<RedisServer> = (0..3).map(|_| sentinel(&primary, logins)).collect();
        if !servers.iter_mut().chain(&mut sentinels).all(RedisServer::is_ready) {
            return None;
        }
        let started = Self { servers, sentinels };
        for sentinel in &started.sentinels {
            hurry(&mut sentinel.connection());
        }
        started.await_whole();
        Some(started)
    }

    /// All sentinels, as `host:port,host:port…`.
    pub(crate) fn hosts(&self) -> String {
        self.sentinels.iter().map(RedisServer::host).collect::<Vec<_>>().join(",")
    }

    /// The servers; the first is the primary at the start.
    pub(crate) fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// A server, to end it or to start it again.
    pub(crate) fn server(&mut self, index: usize) -> &mut RedisServer {
        &mut self.servers[index]
    }

    /// A sentinel, to end it or to start it again.
    pub(crate) fn sentinel(&mut self, index: usize) -> &mut RedisServer {
        &mut self.sentinels[index]
    }

    /// Which server most of the sentinels say is the primary, and itself too; `None` while they do not agree.
    pub(crate) fn primary(&self) -> Option<usize> {
        let says = |sentinel: &RedisServer| -> Option<u16> {
            let mut question = redis::cmd("SENTINEL");
            question.arg("get-master-addr-by-name").arg(Self::NAME);
            let (_, port): (String, u16) = question.query(&mut sentinel.connect()?).ok()?;
            Some(port)
        };
        let said: Vec<u16> = self.sentinels.iter().filter_map(says).collect();
        self.servers.iter().position(|server| {
            said.iter().filter(|port| **port == server.port()).count() >= 2
                && server.info("role").as_deref() == Some("master")
        })
    }

    /// Has the sentinels make the other server the primary, and waits until it is.
    pub(crate) fn fail_over(&self) -> usize {
        let before = self.primary().expect("there is a primary");
        let mut sentinel = self.sentinels[0].connection();
        // Refused while it has not just heard of the replica.
        await_that("a sentinel begins a failover", || {
            redis::cmd("SENTINEL").arg("FAILOVER").arg(Self::NAME).query::<()>(&mut sentinel).is_ok()
        });
        self.await_other_than(before)
    }

    /// Waits until another server is the primary; says which.
    pub(crate) fn await_other_than(&self, before: usize) -> usize {
        let mut now = before;
        await_that("another server is the primary", || {
            now = self.primary().unwrap_or(before);
            now != before
        });
        now
    }

    /// Waits until all sentinels agree on the primary, see it, its replica and each other.
    pub(crate) fn await_whole(&self) {
        await_that("the sentinels see the servers and each other", || {
            self.primary().is_some() && self.sentinels.iter().all(|sentinel| sees_all(sentinel).is_some())
        });
        await_that("the replica is in step", || {
            self.servers.iter().any(|server| server.info("master_link_status").as_deref() == Some("up"))
        });
    }
}

fn sees_all(sentinel: &RedisServer) -> Option<()> {
    let mut connection = sentinel.connect()?;
    let mut ask = |what: &str| {
        let mut question = redis::cmd("SENTINEL");
        question.arg(what).arg(RedisSentinels::NAME);
        question.query::<redis::Value>(&mut connection).ok()
    };
    let primary: HashMap<String, String> = redis::from_redis_value(ask("MASTER")?).ok()?;
    let replicas: Vec<HashMap<String, String>> = redis::from_redis_value(ask("REPLICAS")?).ok()?;
    let is = |of: &HashMap<String, String>, field: &str, value: &str| {
        of.get(field).is_some_and(|told| told == value)
    };
    let whole = is(&primary, "num-other-sentinels", "2")
        && is(&primary, "flags", "master")
        && replicas.len() == 1
        && replicas
            .iter()
            .all(|replica| is(replica, "flags", "slave") && is(replica, "master-link-status", "ok"));
    whole.then_some(())
}

/// A sentinel of the primary at `host port`.
fn sentinel(primary: &str, logins: Logins<'_>) -> RedisServer {
    let name = RedisSentinels::NAME;
    let mut config = format!(
        "sentinel monitor {name} {primary} 2\n\
         sentinel down-after-milliseconds {name} 1500\n\
         sentinel failover-timeout {name} 5000\n"
    );
    if let Some(password) = logins.password {
        writeln!(config, "sentinel auth-pass {name} {password}").unwrap();
    }
    let mut login = String::new();
    if let Some((user, password)) = logins.sentinel {
        writeln!(config, "user default off\nuser {user} on >{password} allchannels +@all").unwrap();
        writeln!(config, "sentinel sentinel-user {user}\nsentinel sentinel-pass {password}").unwrap();
        login = format!("{user}:{password}@");
    }
    RedisServer::spawn_sentinel(free_port(), &login, &config)
}

impl RedisServer {
    /// Starts a sentinel and does not wait.
    fn spawn_sentinel(port: u16, login: &str, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // It writes what it learns into this file.
        let file = directory.path().join("sentinel.conf");
        fs::write(&file, format!("port {port}\nbind 127.0.0.1\n{config}")).unwrap();
        let arguments = vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        let child = super::launch(&directory, &arguments);
        Self { child, port, login: login.to_owned(), arguments, directory }
    }
}

/// Has a sentinel look around often, and not lose trust in its clock when the machine is busy.
fn hurry(sentinel: &mut redis::Connection) {
    let mut command = redis::cmd("SENTINEL");
    command.arg("DEBUG");
    for (period, millis) in [
        ("info-period", 500),
        ("ping-period", 500),
        ("ask-period", 200),
        ("publish-period", 200),
        ("election-timeout", 2_000),
        ("tilt-trigger", 60_000),
    ] {
        command.arg(period).arg(millis);
    }
    command.query::<()>(sentinel).unwrap();
}
