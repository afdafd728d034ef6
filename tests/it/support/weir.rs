//! A `weir serve` of its own process, on a port of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::http;

/// How long a start or a stop may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `weir serve`. Dropping it ends the process, and prints its log if the test has failed.
pub(crate) struct Weir {
    child: Child,
    grpc: SocketAddr,
    http: Option<SocketAddr>,
    /// What it has logged so far.
    log: Log,
    /// Reads standard error to its end.
    reader: Option<JoinHandle<()>>,
}

/// A log that is being written.
type Log = Arc<Mutex<String>>;

impl Weir {
    /// Serves the rules below `rules` on a free port.
    pub(crate) fn start(rules: &Path) -> Self {
        Self::start_at("127.0.0.1:0", rules)
    }

    /// Serves the rules below `rules` at `grpc`, for a replacement of one that was there before.
    pub(crate) fn start_at(grpc: impl ToString, rules: &Path) -> Self {
        let grpc = grpc.to_string();
        Self::start_with(["--grpc", &grpc, "--rules"].map(OsStr::new).into_iter().chain([rules.as_os_str()]))
    }

    /// Serves the rules below `rules` on a free port, with buckets in the Redis at `url`, and waits until that is connected.
    pub(crate) fn start_with_redis(rules: &Path, url: &str) -> Self {
        let arguments =
            ["--grpc", "127.0.0.1:0", "--redis", url, "--redis-timeout", "2s", "--rules"].map(OsStr::new);
        let weir = Self::start_with(arguments.into_iter().chain([rules.as_os_str()]));
        weir.await_log("connected", 2);
        weir
    }

    /// Runs `weir serve` with these arguments, and waits until it serves. It loses no time at its end, unless they say so.
    pub(crate) fn start_with<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let arguments: Vec<&OsStr> = arguments.into_iter().collect();
        command.arg("serve");
        if !arguments.contains(&OsStr::new("--drain-delay")) {
            command.args(["--drain-delay", "0s"]);
        }
        if !arguments.contains(&OsStr::new("--http")) {
            command.args(["--http", "127.0.0.1:0"]);
        }
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
        // Settings of whoever runs the tests are not those of the test.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WEIR_"))
        {
            command.env_remove(name);
        }
        let mut child = command.spawn().expect("weir starts");
        let lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
        let (serving, address) = mpsc::channel();
        let log = Log::default();
        let written = Arc::clone(&log);
        let reader = thread::spawn(move || read(lines, &written, &serving));
        match address.recv_timeout(PATIENCE) {
            Ok((grpc, http)) => Self { child, grpc, http, log, reader: Some(reader) },
            Err(_) => {
                end(&mut child);
                reader.join().unwrap();
                panic!("weir does not say that it is serving; its log:\n{}", log.lock().unwrap());
            }
        }
    }

    /// Where it serves gRPC.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where it serves HTTP.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http.expect("it listens on TCP")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to load its rules again.
    pub(crate) fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }

    /// How often its log has said `text`.
    pub(crate) fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().matches(text).count()
    }

    /// What it counts, by the name and labels that Prometheus reads.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let metrics = http::get(self.http(), "/metrics", "").await.body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{sample} is not in\n{metrics}")).parse().unwrap()
    }

    /// What its log has said.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until no circuit is open any more.
    pub(crate) fn await_closed(&self) {
        super::redis::await_that("the circuits close", || {
            let gone = self.logged("left: its circuit was open");
            self.logged("circuit closed") + gone >= self.logged("circuit opened")
        });
    }

    /// Waits until its log has said `text` so many times.
    pub(crate) fn await_log(&self, text: &str, times: usize) {
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            if self.logged(text) >= times {
                return;
            }
            thread::sleep(PAUSE);
        }
        panic!("weir does not log `{text}` {times} times");
    }

    /// Stops it as an operator does, with SIGTERM, which must end it with success.
    pub(crate) fn stop(mut self) {
        let status = end(&mut self.child).expect("weir ends after SIGTERM");
        assert!(status.success(), "weir ended with {status}");
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        end(&mut self.child);
        _ = self.reader.take().map(JoinHandle::join);
        if let (Ok(log), true) = (self.log.lock(), thread::panicking()) {
            eprintln!("the log of weir at {}:\n{log}", self.grpc);
        }
    }
}

/// Sends SIGTERM if the process still runs, and waits until it has ended. One that takes too long is killed, and has no
/// status.
fn end(child: &mut Child) -> Option<ExitStatus> {
    const PAUSE: Duration = Duration::from_millis(10);

    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    // Not waited for yet, so the pid is still this child's.
    _ = kill_process(Pid::from_child(child), Signal::TERM);
    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        match child.try_wait() {
            Ok(None) => thread::sleep(PAUSE),
            Ok(status) => return status,
            Err(_) => break,
        }
    }
    _ = child.kill();
    _ = child.wait();
    None
}

/// Reads the log to its end; sends the address from the line that says where weir is serving.
fn read(
    lines: Lines<BufReader<ChildStderr>>,
    log: &Log,
    serving: &mpsc::Sender<(SocketAddr, Option<SocketAddr>)>,
) {
    for line in lines.map_while(Result::ok) {
        let mut log = log.lock().unwrap();
        log.push_str(&line);
        log.push('\n');
        drop(log);
        if line.contains("serving") {
            // Of several, the first that is on TCP.
            let address = |name: &str| {
                let all = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
                all.split(',').find_map(|address| address.parse().ok())
            };
            // Nobody listens any more after the first.
            _ = address("grpc=").map(|grpc| serving.send((grpc, address("http="))));
        }
    }
}
