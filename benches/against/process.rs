//! Servers as processes of their own, and what they take of the machine. They end when they are dropped.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::echo::{ROLE, Shape};

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

const RULES: &str = "
domain: bench
descriptors:
  - { key: wide, rate_limit: { unit: year, requests_per_unit: 1000000 } }
  - { key: hot, rate_limit: { unit: year, requests_per_unit: 1000000000 } }
  - { key: shut, rate_limit: { unit: year, requests_per_unit: 1 } }
";

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Process {
    /// Starts it without the settings of whoever runs the bench.
    fn start(command: &mut Command) -> Self {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WEIR_"))
        {
            command.env_remove(name);
        }
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Bytes that it holds of memory.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

/// A server that is asked.
pub struct Server {
    process: Process,
    pub address: SocketAddr,
    http: Option<SocketAddr>,
    _rules: Option<TempDir>,
}

impl Server {
    pub fn echo(shape: Shape, descriptors: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([ROLE, shape.name(), &descriptors.to_string()]).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, address: line.trim().parse().unwrap(), http: None, _rules: None }
    }

    /// weir as it comes, with buckets in memory, or in a Redis.
    pub fn weir(redis: Option<&Redis>) -> Self {
        let rules = tempfile::tempdir().unwrap();
        fs::write(rules.path().join("rules.yaml"), RULES).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--max-buckets", "5000000"])
            .arg("--rules")
            .arg(rules.path())
            .stderr(Stdio::piped());
        if let Some(redis) = redis {
            command.args(["--redis", &redis.url()]);
            // A build that nobody measures is slower than the deadline that weir keeps.
            if cfg!(debug_assertions) {
                command.args(["--redis-timeout", "5s"]);
            }
        }
        let mut process = Process::start(&mut command);
        let (grpc, http) = said(process.0.stderr.take().unwrap(), redis.is_some());
        Self { process, address: grpc, http: Some(http), _rules: Some(rules) }
    }

    pub fn cpu(&self) -> Duration {
        self.process.cpu()
    }

    /// Waits until it has nothing more to do: what it does behind its answers, such as telling Redis of what was decided
    /// without it, would take the processor from whoever is asked next.
    pub fn rest(&self) {
        const LOOK: Duration = Duration::from_millis(200);
        /// What is there at rest too: a heartbeat, and ticks being coarse.
        const LITTLE: Duration = Duration::from_millis(10);

        let mut before = self.cpu();
        for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
            thread::sleep(LOOK);
            let now = self.cpu();
            if now - before <= LITTLE {
                return;
            }
            before = now;
        }
        panic!("a server that nobody asks is still busy after {PATIENCE:?}");
    }

    pub fn memory(&self) -> u64 {
        self.process.memory()
    }

    /// What the series of a metric that have this label come to, or the one without labels.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let address = self.http.expect("an echo has no metrics");
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let series = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let is_it = labels.is_empty() || (labels.starts_with('{') && labels.contains(label));
            is_it.then(|| value.parse::<f64>().unwrap())
        };
        text.lines().filter_map(series).sum()
    }

    /// Charges that were decided so far by buckets of this process.
    pub fn decided_locally(&self) -> f64 {
        self.metric("weir_decisions_total", "source=\"local\"")
    }
}

/// Waits until weir says where it serves, and that it has connected to Redis, if it is to.
fn said(log: impl Read + Send + 'static, with_redis: bool) -> (SocketAddr, SocketAddr) {
    let (sender, lines) = mpsc::channel();
    // Reads to the end, so that weir never waits for somebody to read.
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            _ = sender.send(line);
        }
    });
    let (mut serving, mut connections) = (None, 0);
    let mut log = String::new();
    while serving.is_none() || (with_redis && connections < 2) {
        let line = lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("weir does not serve:\n{log}"));
        let address =
            |name: &str| line.split(name).nth(1)?.split([' ', ',']).next()?.parse::<SocketAddr>().ok();
        serving = serving.or_else(|| Some((address(" grpc=")?, address(" http=")?)));
        connections += usize::from(line.contains("connected"));
        log.push_str(&line);
        log.push('\n');
    }
    serving.unwrap()
}

/// A Redis that keeps nothing on disk.
pub struct Redis {
    process: Process,
    port: u16,
    _directory: TempDir,
}

/// What a Redis has done so far.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub cpu: Duration,
    /// Commands that it ran, those of scripts and the scripts themselves too.
    pub commands: u64,
    /// Runs of scripts.
    pub runs: u64,
}

impl Redis {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let process = Self::run(directory.path(), port);
        let redis = Self { process, port, _directory: directory };
        for _ in 0..PATIENCE.as_millis() / 10 {
            if let Ok(mut connection) = redis.client().get_connection()
                && redis::cmd("PING").query::<String>(&mut connection).is_ok()
            {
                return redis;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not answer");
    }

    fn run(directory: &Path, port: u16) -> Process {
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory)
            .stdout(Stdio::null());
        Process::start(&mut command)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }

    pub fn connection(&self) -> redis::Connection {
        self.client().get_connection().unwrap()
    }

    pub fn done(&self) -> Done {
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut self.connection()).unwrap();
        let count = |is_meant: &dyn Fn(&str) -> bool| -> u64 {
            let calls = |line: &str| {
                let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
                is_meant(name).then(|| figures.split(',').next()?.parse::<u64>().ok())?
            };
            stats.lines().filter_map(calls).sum()
        };
        // What is asked here is none of it.
        let commands = count(&|name| name != "info" && !name.starts_with("client"));
        let runs = count(&|name| matches!(name, "eval" | "evalsha"));
        Done { cpu: self.process.cpu(), commands, runs }
    }
}
