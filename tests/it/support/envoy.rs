//! A real Envoy, run from a bootstrap of `envoy/` on ports of its own, and a client for it.
//!
//! Envoy asks the system to end it when the thread that started it ends, so none outlives a test run that is killed.
//! For the same reason an Envoy cannot be shared by tests: each has a thread of its own.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with, sockopt};
use tempfile::TempDir;

use crate::support::python;

/// How long Envoy may take to start, or to send a piece of a response, before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running Envoy. Dropping it ends the process, and prints its log if the test has failed.
pub(crate) struct Envoy {
    child: Child,
    front: SocketAddr,
    /// Where its bootstrap and its log are.
    directory: TempDir,
    /// Hold its ports for as long as it runs.
    _ports: [Port; 2],
}

impl Envoy {
    /// Runs `envoy/<bootstrap>` in front of the weir at `weir`, and gives weir as long as it needs to answer: a machine
    /// that is busy with other tests may stall either for more than 20 ms, and a call given up is a request not counted.
    pub(crate) fn start(bootstrap: &str, weir: SocketAddr) -> Self {
        Self::run(&replace(&read(bootstrap), "timeout: 0.02s", "timeout: 20s"), weir)
    }

    /// Runs `envoy/<bootstrap>` with nothing changed but the ports.
    pub(crate) fn start_as_shipped(bootstrap: &str, weir: SocketAddr) -> Self {
        Self::run(&read(bootstrap), weir)
    }

    /// Runs `envoy/<bootstrap>` with each of the `changes` made, as from and to; and otherwise as [`start`](Self::start) does.
    pub(crate) fn start_changed(bootstrap: &str, weir: SocketAddr, changes: &[(&str, &str)]) -> Self {
        let text = replace(&read(bootstrap), "timeout: 0.02s", "timeout: 20s");
        Self::run(&changes.iter().fold(text, |text, (from, to)| replace(&text, from, to)), weir)
    }

    fn run(bootstrap: &str, weir: SocketAddr) -> Self {
        let (front, upstream) = (Port::reserve(), Port::reserve());
        let mut bootstrap = bootstrap.to_owned();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        for (port, here) in [(10000, front.address), (10001, upstream.address), (8081, weir), (9901, any)] {
            let shipped = format!("address: 127.0.0.1, port_value: {port} ");
            let here = format!("address: {}, port_value: {} ", here.ip(), here.port());
            bootstrap = replace(&bootstrap, &shipped, &here);
        }
        let directory = tempfile::tempdir().unwrap();
        let [config, log, admin] = ["envoy.yaml", "log", "admin"].map(|name| directory.path().join(name));
        fs::write(&config, bootstrap).unwrap();
        let mut child = Command::new(binary())
            // One worker is enough for a test, and parallel Envoys need ids of their own.
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"])
            .args([Path::new("--config-path"), &config, Path::new("--admin-address-path"), &admin])
            .stdin(Stdio::null())
            .stdout(File::create(directory.path().join("access")).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        match wait_until_ready(&mut child, &admin) {
            Ok(()) => Self { child, front: front.address, directory, _ports: [front, upstream] },
            Err(reason) => {
                _ = child.kill();
                _ = child.wait();
                panic!(
                    "Envoy is not ready: {reason}; its log:\n{}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
        }
    }

    /// Waits until the cluster `weir` has this many healthy members.
    pub(crate) fn await_healthy(&self, members: usize) {
        const PAUSE: Duration = Duration::from_millis(20);
        let admin = fs::read_to_string(self.directory.path().join("admin")).unwrap().parse().unwrap();
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            let clusters = get("/clusters").send(admin).unwrap();
            let healthy = clusters
                .body
                .lines()
                .filter(|line| line.starts_with("weir::") && line.ends_with("::health_flags::healthy"));
            if healthy.count() == members {
                return;
            }
            thread::sleep(PAUSE);
        }
        panic!("there are not {members} healthy weirs");
    }

    /// Sends a request to the front door.
    pub(crate) fn send(&self, request: &Request<'_>) -> Response {
        request.send(self.front).expect("Envoy answers")
    }

    /// Its access log, for bootstraps that write one to standard output, once it is as `awaited`. Envoy writes it from time
    /// to time.
    pub(crate) fn accessed(&self, awaited: impl Fn(&str) -> bool) -> String {
        const PAUSE: Duration = Duration::from_millis(50);

        let mut log = String::new();
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            log = fs::read_to_string(self.directory.path().join("access")).unwrap();
            if awaited(&log) {
                return log;
            }
            thread::sleep(PAUSE);
        }
        panic!("not what was awaited of the access log:\n{log}");
    }

    /// Sends the same request `times` times, one after the other: the status of each answer.
    pub(crate) fn statuses(&self, request: &Request<'_>, times: usize) -> Vec<u16> {
        (0..times).map(|_| self.send(request).status).collect()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            eprintln!("the log of Envoy at {}:\n{log}", self.front);
        }
    }
}

/// Reads a bootstrap of `envoy/`.
fn read(bootstrap: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy").join(bootstrap)).unwrap()
}

/// The text with every `from` replaced, and there must be one.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the bootstrap has no `{from}` that a test could replace");
    text.replace(from, to)
}

/// The Envoy that the environment names, or the one that `make test` installed.
fn binary() -> PathBuf {
    std::env::var_os("WEIR_TEST_ENVOY").map_or_else(|| python::program("envoy"), PathBuf::from)
}

/// Asks until Envoy says that it is ready. It writes the address to ask at to the file `admin`.
fn wait_until_ready(child: &mut Child, admin: &Path) -> Result<(), String> {
    const PAUSE: Duration = Duration::from_millis(20);

    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("it ended with {status}"));
        }
        // Not there at first, or not complete.
        let address = fs::read_to_string(admin).ok().and_then(|address| address.parse().ok());
        if let Some(address) = address
            && get("/ready").send(address).is_ok_and(|answer| answer.status == 200)
        {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    Err(format!("it took more than {PATIENCE:?}"))
}

/// A port that nobody else is given while this is held. Envoy can listen on it nevertheless, because it sets
/// SO_REUSEPORT on its listeners, as is done here.
struct Port {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl Port {
    fn reserve() -> Self {
        let socket = tcp_socket().unwrap();
        sockopt::set_socket_reuseport(&socket, true).unwrap();
        bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        Self { address: getsockname(&socket).unwrap().try_into().unwrap(), _socket: socket }
    }
}

fn tcp_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// A request, sent as HTTP/1.1 on a connection of its own. A header may hold any bytes, which the usual clients refuse.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
    from: Ipv4Addr,
}

/// A GET from 127.0.0.1.
pub(crate) fn get(path: &str) -> Request<'_> {
    Request { method: "GET", path, headers: Vec::new(), from: Ipv4Addr::LOCALHOST }
}

/// A POST without a body, from 127.0.0.1.
pub(crate) fn post(path: &str) -> Request<'_> {
    Request { method: "POST", ..get(path) }
}

impl<'a> Request<'a> {
    /// With one more header.
    pub(crate) fn header(mut self, name: &'a str, value: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.headers.push((name, value.as_ref()));
        self
    }

    /// From another address. All of 127.0.0.0/8 is this machine.
    pub(crate) fn from(self, from: [u8; 4]) -> Self {
        Self { from: from.into(), ..self }
    }

    fn send(&self, to: SocketAddr) -> io::Result<Response> {
        let socket = tcp_socket()?;
        bind(&socket, &SocketAddr::from((self.from, 0)))?;
        connect(&socket, &to)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;

        let Self { method, path, .. } = self;
        let mut message =
            format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n").into_bytes();
        if *method == "POST" {
            message.extend(b"content-length: 0\r\n");
        }
        for (name, value) in &self.headers {
            message.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        message.extend(b"\r\n");
        stream.write_all(&message)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Response::parse(&answer).ok_or_else(|| io::Error::other(format!("not an HTTP response: {answer:?}")))
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
    headers: Vec<(String, String)>,
}

impl Response {
    fn parse(answer: &str) -> Option<Self> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        Some(Self { status, body: body.to_owned(), headers: lines.map(header).collect::<Option<_>>()? })
    }

    /// The value of a header, which Envoy names in small letters.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value of a header that is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.header(name).map(|value| value.parse().unwrap())
    }
}
