//! A `redis-server` of its own process, on a free port, which forgets everything when it is dropped.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long it may take to start before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running Redis.
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl RedisServer {
    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// When there is no `redis-server`: a test that needs it fails, it is not skipped.
    pub(crate) fn start() -> Self {
        // Another process may take the port in between: then Redis ends, and the next one is tried.
        let ports = (0..10)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port());
        ports.into_iter().find_map(Self::start_at).expect("redis-server starts")
    }

    /// Starts one with more arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Self::run(port, arguments).expect("redis-server starts")
    }

    /// Starts one on a port, and waits until it answers; `None` when it ends instead.
    pub(crate) fn start_at(port: u16) -> Option<Self> {
        Self::run(port, &[])
    }

    fn run(port: u16, arguments: &[&str]) -> Option<Self> {
        const PAUSE: Duration = Duration::from_millis(10);

        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--enable-debug-command", "local"])
            .args(arguments)
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is there; on Debian: apt-get install redis-server");
        let mut server = Self { child, port, _directory: directory };
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            if server.connect().is_some() {
                return Some(server);
            }
            thread::sleep(PAUSE);
        }
        panic!("redis-server does not answer");
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

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection for the test's own questions.
    pub(crate) fn connection(&self) -> redis::Connection {
        self.connect().expect("Redis answers")
    }

    fn connect(&self) -> Option<redis::Connection> {
        let mut connection = redis::Client::open(self.url()).ok()?.get_connection().ok()?;
        redis::cmd("PING").query::<String>(&mut connection).ok()?;
        Some(connection)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
