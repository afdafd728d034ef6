//! A `redis-server` of its own process, on a free port, which forgets everything when it is dropped; and several of them
//! together, under sentinels or as a Cluster.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

// Paths, because this file is also a module of the library's own tests.
#[allow(dead_code, reason = "not every test binary uses all of it")]
#[path = "redis/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "not every test binary uses all of it")]
#[path = "redis/sentinel.rs"]
mod sentinel;

#[allow(unused_imports, reason = "not every test binary starts a Cluster")]
pub(crate) use cluster::RedisCluster;
#[allow(unused_imports, reason = "not every test binary starts sentinels")]
pub(crate) use sentinel::{Logins, RedisSentinels};

/// How long it may take to start, or to come to what a test waits for, before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica that says its link is up is sent all that is written from then on. After a sync without a disk, a primary would
/// wait for the replica's next word first, up to a second, and a test that ends it meanwhile would see everything lost.
const IN_STEP: [&str; 2] = ["--repl-diskless-sync", "no"];

/// A running Redis.
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    /// `user:password@`, or nothing.
    login: String,
    /// What it was started with, for another start.
    arguments: Vec<String>,
    directory: TempDir,
}

#[allow(dead_code, reason = "not every test binary uses all of it")]
impl RedisServer {
    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// When there is no `redis-server`: a test that needs it fails, it is not skipped.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        // Another process may take the port in between: then Redis ends, and the next one is tried.
        (0..10).find_map(|_| Self::run(free_port(), arguments)).expect("redis-server starts")
    }

    /// Starts one on a port, and waits until it answers; `None` when it ends instead.
    pub(crate) fn start_at(port: u16) -> Option<Self> {
        Self::run(port, &[])
    }

    fn run(port: u16, arguments: &[&str]) -> Option<Self> {
        let mut server = Self::spawn(port, "", arguments);
        server.is_ready().then_some(server)
    }

    /// Starts one and does not wait. `login` (`user:password@`, or nothing) is what the test's own connections say.
    fn spawn(port: u16, login: &str, arguments: &[&str]) -> Self {
        let port_argument = port.to_string();
        let fixed =
            ["--port", &port_argument, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"].into_iter();
        let arguments: Vec<String> = fixed
            .chain(["--enable-debug-command", "local"])
            .chain(arguments.iter().copied())
            .map(str::to_owned)
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let child = launch(&directory, &arguments);
        Self { child, port, login: login.to_owned(), arguments, directory }
    }

    /// Waits until it answers; false when it ends instead.
    fn is_ready(&mut self) -> bool {
        let mut ended = false;
        await_that("redis-server answers", || {
            ended = self.child.try_wait().unwrap().is_some();
            // Whoever answers there might be somebody else's.
            ended || self.process_id() == Some(self.child.id())
        });
        !ended
    }

    fn process_id(&self) -> Option<u32> {
        let info: String = redis::cmd("INFO").arg("server").query(&mut self.connect()?).ok()?;
        info.lines().find_map(|line| line.strip_prefix("process_id:"))?.trim().parse().ok()
    }

    /// Stops it in mid-air: it keeps its connections, and answers nothing.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }

    /// Ends it without a word to anybody, as a crash does.
    pub(crate) fn kill(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }

    /// Starts it again after [`RedisServer::kill`]: the same port, arguments and directory, without its data.
    pub(crate) fn start_again(&mut self) {
        self.child = launch(&self.directory, &self.arguments);
        assert!(self.is_ready(), "redis-server starts again");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}{}", self.login, self.host())
    }

    /// A connection for the test's own questions.
    pub(crate) fn connection(&self) -> redis::Connection {
        self.connect().expect("Redis answers")
    }

    fn connect(&self) -> Option<redis::Connection> {
        // One that is paused would let the test wait for ever.
        let timeout = Duration::from_secs(10);
        let mut connection =
            redis::Client::open(self.url()).ok()?.get_connection_with_timeout(timeout).ok()?;
        redis::cmd("PING").query::<String>(&mut connection).ok()?;
        Some(connection)
    }

    /// A field of what `INFO` says now; `None` also while nobody answers.
    pub(crate) fn info(&self, field: &str) -> Option<String> {
        let info: String = redis::cmd("INFO").arg("everything").query(&mut self.connect()?).ok()?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(directory: &TempDir, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(arguments)
        .arg("--dir")
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is there; on Debian: apt-get install redis-server")
}

/// A port that nobody listens on, below those that the system hands out: also a server that is started again on the same
/// one finds it free.
pub(crate) fn free_port() -> u16 {
    const PORTS: (u32, u32) = (12_000, 32_000);
    static NEXT: AtomicU32 = AtomicU32::new(0);

    // Other processes of tests begin somewhere else.
    let begin = getrandom::u32().unwrap() % (PORTS.1 - PORTS.0);
    _ = NEXT.compare_exchange(0, begin + 1, Ordering::Relaxed, Ordering::Relaxed);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(PORTS.0 + next % (PORTS.1 - PORTS.0)).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Cuts the newest of the connections that calls use, if there is another one; whether it did.
///
/// One that is cut while it is being made is made anew after pauses that grow.
pub(crate) fn cut_one_in_use(redis: &mut redis::Connection) -> bool {
    let list: String = redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal").query(redis).unwrap();
    let in_use = list.lines().filter(|line| line.contains(" cmd=eval"));
    let id = |line: &str| line.split_once(' ')?.0.strip_prefix("id=")?.parse::<u64>().ok();
    let Some(id) = in_use.filter_map(id).skip(1).last() else { return false };
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query::<i64>(redis).unwrap() == 1
}

/// Asks until it is so.
///
/// # Panics
/// When it takes too long.
pub(crate) fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    const PAUSE: Duration = Duration::from_millis(10);

    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        if is_so() {
            return;
        }
        thread::sleep(PAUSE);
    }
    panic!("not so after {PATIENCE:?}: {what}");
}
