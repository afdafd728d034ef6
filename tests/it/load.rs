//! `weir load` against a real weir: what it counts is what happened, and a stall cannot hide.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::server::rules;
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: user, rate_limit: { unit: year, requests_per_unit: 50 } }
  - { key: open, rate_limit: { unit: second, requests_per_unit: 1000000000 } }
";

/// A load that runs.
struct Load {
    child: Child,
    progress: BufReader<ChildStderr>,
}

/// What a load that has ended came to.
struct Ended {
    code: i32,
    printed: String,
    error: String,
}

impl Load {
    fn start(target: impl ToString, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["load", "--target", &target.to_string(), "--domain", "api"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let progress = BufReader::new(child.stderr.take().unwrap());
        Self { child, progress }
    }

    /// Waits until it has run for a second, and returns what it says of that.
    fn a_second(&mut self) -> String {
        let mut line = String::new();
        self.progress.read_line(&mut line).unwrap();
        assert!(line.contains(" answered, "), "{line}");
        line
    }

    fn end(mut self) -> Ended {
        let mut error = String::new();
        self.progress.read_to_string(&mut error).unwrap();
        let output = self.child.wait_with_output().unwrap();
        Ended {
            code: output.status.code().unwrap(),
            printed: String::from_utf8(output.stdout).unwrap(),
            error,
        }
    }
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.printed).unwrap_or_else(|_| panic!("{}{}", self.printed, self.error))
    }
}

fn load(target: impl ToString, arguments: &[&str]) -> Ended {
    Load::start(target, arguments).end()
}

fn number(result: &Value, field: &str) -> u64 {
    result[field].as_u64().unwrap_or_else(|| panic!("{field} in {result}"))
}

fn percentile(result: &Value, name: &str) -> Duration {
    Duration::from_secs_f64(result["latency_micros"][name].as_f64().unwrap() / 1e6)
}

fn weir() -> (Weir, TempDir) {
    let rules = rules(RULES);
    (Weir::start(rules.path()), rules)
}

#[test]
fn what_a_load_counts_is_what_the_limit_admits() {
    let (weir, _rules) = weir();
    // Values have one length: those of 10 keys are others than those of 20, of which two a request charge each twice a round.
    for (keys, descriptors, admitted) in [("10", "1", 500), ("1", "1", 0), ("20", "2", 500), ("3", "3", 0)] {
        let arguments = ["--json", "--seconds", "2", "--connections", "2", "--streams", "8", "--in-turn"];
        let more = ["--keys", keys, "--descriptors", descriptors];
        let result = load(weir.grpc(), &[&arguments[..], &more].concat()).json();
        assert_eq!((number(&result, "ok"), number(&result, "errors")), (admitted, 0), "{result}");
        assert!(number(&result, "over") > 0, "{result}");
        assert_eq!(number(&result, "calls"), number(&result, "ok") + number(&result, "over"));
        assert_eq!(number(&result, "unlimited"), 0, "{result}");
    }
    let hits = |hits, keys| {
        load(weir.grpc(), &["--json", "--seconds", "2", "--in-turn", "--hits", hits, "--keys", keys]).json()
    };
    assert_eq!(number(&hits("25", "200"), "ok"), 400);
    let result = hits("0", "10000");
    assert_eq!((number(&result, "over"), number(&result, "errors")), (0, 0), "{result}");
}

#[test]
fn calls_that_no_limit_was_applied_to_are_told_apart() {
    let (weir, _rules) = weir();
    let other = load(weir.grpc(), &["--key", "usr", "--rate", "50", "--seconds", "1"]);
    assert!(other.printed.contains("; 50 ok, 0 over"), "{}", other.printed);
    assert!(other.printed.contains("  50 of the ok met no limit: see `weir explain`\n"), "{}", other.printed);
    let result = load(weir.grpc(), &["--key", "usr", "--rate", "50", "--seconds", "1", "--json"]).json();
    assert_eq!((number(&result, "ok"), number(&result, "unlimited")), (50, 50), "{result}");
}

#[test]
fn results_are_told_as_text_and_as_json_and_progress_beside_them() {
    let (weir, _rules) = weir();
    let arguments =
        ["--key", "open", "--seconds", "2.2", "--threads", "2", "--connections", "3", "--zipf", "1.1"];
    let ended = load(weir.grpc(), &arguments);
    assert_eq!(ended.code, 0, "{}", ended.error);
    for part in [" calls/s: ", " ok, 0 over, 0 errors", "latency  p50 ", "  p99.99 ", "  max ", "own CPU "] {
        assert!(ended.printed.contains(part), "{part} in {}", ended.printed);
    }
    assert!(!ended.printed.contains("no limit"), "{}", ended.printed);
    assert_eq!(ended.error.lines().count(), 2, "{}", ended.error);

    let ended = load(weir.grpc(), &[&arguments[..], &["--json", "--quiet"]].concat());
    assert_eq!((ended.code, ended.error.as_str()), (0, ""));
    let result = ended.json();
    let latencies = ["p50", "p90", "p99", "p99.9", "p99.99", "max"].map(|name| percentile(&result, name));
    assert!(latencies.is_sorted() && latencies[0] > Duration::ZERO, "{result}");
    let (rate, seconds) = (result["calls_per_second"].as_f64().unwrap(), result["seconds"].as_f64().unwrap());
    assert!(seconds >= 2.2, "{result}");
    let calls = number(&result, "calls") as f64;
    assert!((rate * seconds / calls - 1.0).abs() < 0.001, "{result}");
    assert!(result["own_cpu_micros_per_call"].as_f64().unwrap() > 0.1, "{result}");
    assert!((0.001..=1.1).contains(&result["own_cpu_share"].as_f64().unwrap()), "{result}");
}

#[test]
fn at_a_rate_every_call_is_made_and_a_stall_shows_in_all_that_came_due_meanwhile() {
    const STALL: Duration = Duration::from_millis(800);

    let (weir, _rules) = weir();
    // Fewer may be under way than come due in the stall: those that wait for their turn count, too.
    let mut load = Load::start(
        weir.grpc(),
        &[
            "--json",
            "--key",
            "open",
            "--seconds",
            "3",
            "--rate",
            "500",
            "--connections",
            "2",
            "--streams",
            "2",
        ],
    );
    load.a_second();
    weir.signal(Signal::STOP);
    std::thread::sleep(STALL);
    weir.signal(Signal::CONT);
    let result = load.end().json();
    assert_eq!((number(&result, "ok"), number(&result, "errors")), (1_500, 0), "{result}");
    // Of three seconds eight tenths were a stall: a tenth of all calls waited for half of one or more.
    assert!(percentile(&result, "max") >= STALL - Duration::from_millis(20), "{result}");
    assert!(percentile(&result, "p90") >= STALL / 2, "{result}");
}

#[test]
fn calls_to_a_server_that_is_gone_are_errors_each_of_them() {
    let (weir, _rules) = weir();
    let mut load = Load::start(weir.grpc(), &["--json", "--key", "open", "--seconds", "3", "--rate", "300"]);
    assert!(load.a_second().contains(" 0 errors"));
    weir.signal(Signal::KILL);
    let ended = load.end();
    assert_eq!(ended.code, 0, "{}", ended.error);
    let result = ended.json();
    assert_eq!(number(&result, "calls"), 900, "{result}");
    assert!(number(&result, "errors") >= 300, "{result}");
    assert!(number(&result, "ok") >= 200, "{result}");
    assert!(number(&result["errors_by_kind"], "no connection") > 0, "{result}");
    let kinds: u64 =
        result["errors_by_kind"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(kinds, number(&result, "errors"));
}

#[test]
fn a_load_goes_on_when_a_server_has_come_back() {
    let rules = rules(RULES);
    let weir = Weir::start(rules.path());
    let address = weir.grpc();
    let mut load = Load::start(address, &["--key", "open", "--seconds", "60", "--streams", "4"]);
    load.a_second();
    drop(weir);
    let _weir = Weir::start_at(address, rules.path());
    // A second without an error, after some with.
    while !load.a_second().contains(" 0 over, 0 errors") {}
    load.child.kill().unwrap();
    load.child.wait().unwrap();
}

#[test]
fn a_connection_that_the_server_ends_in_peace_costs_no_call() {
    let rules = rules(RULES);
    let weir = Weir::start_with(
        ["--grpc", "127.0.0.1:0", "--max-connection-age", "300ms", "--rules"]
            .map(OsStr::new)
            .into_iter()
            .chain([rules.path().as_os_str()]),
    );
    let result = load(weir.grpc(), &["--json", "--key", "open", "--seconds", "2", "--streams", "8"]).json();
    assert_eq!(number(&result, "errors"), 0, "{result}");
    assert!(number(&result, "ok") > 0, "{result}");
}

#[test]
fn calls_without_an_answer_at_the_end_are_given_up_and_counted() {
    let (weir, _rules) = weir();
    let mut load = Load::start(
        weir.grpc(),
        &[
            "--json",
            "--key",
            "open",
            "--seconds",
            "2",
            "--rate",
            "400",
            "--streams",
            "3",
            "--timeout",
            "500ms",
        ],
    );
    load.a_second();
    weir.signal(Signal::STOP);
    let result = load.end().json();
    weir.signal(Signal::CONT);
    assert_eq!(number(&result, "calls"), 800, "{result}");
    assert_eq!(
        number(&result, "errors"),
        number(&result["errors_by_kind"], "no answer before the end"),
        "{result}"
    );
    assert!(number(&result, "errors") >= 200, "{result}");
    assert!(percentile(&result, "max") >= Duration::from_millis(500), "{result}");
}

#[test]
fn a_load_that_gets_no_answer_at_all_fails_and_says_why() {
    // Without rules, weir answers that it has none.
    let empty = tempfile::tempdir().unwrap();
    let weir = Weir::start(empty.path());
    let ended = load(weir.grpc(), &["--seconds", "0.5", "--rate", "100"]);
    assert_eq!(ended.code, 1, "{}", ended.printed);
    assert!(ended.printed.contains("50 of the errors: gRPC status 14: "), "{}", ended.printed);
    assert!(ended.error.contains("answered no call"), "{}", ended.error);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere: SocketAddr = nobody.local_addr().unwrap();
    // It accepts, and says nothing.
    let ended = load(nowhere, &["--timeout", "200ms"]);
    assert_eq!(ended.code, 1);
    assert!(ended.error.contains("no answer within 200ms"), "{}", ended.error);
    drop(nobody);
    for (target, said) in [
        (nowhere.to_string(), "Connection refused"),
        (weir.http().to_string(), "cannot reach "),
        ("unix:/nowhere.sock".to_owned(), "No such file"),
    ] {
        let ended = load(&target, &["--threads", "2"]);
        assert_eq!((ended.code, ended.printed.as_str()), (1, ""), "{target}");
        assert!(
            ended.error.contains(said) && ended.error.contains("is weir serving there?"),
            "{}",
            ended.error
        );
    }
}

#[test]
fn a_thread_that_cannot_connect_ends_the_others_too() {
    let rules = rules(RULES);
    let weir = Weir::start_with(
        ["--grpc", "127.0.0.1:0", "--max-connections", "1", "--rules"]
            .map(OsStr::new)
            .into_iter()
            .chain([rules.path().as_os_str()]),
    );
    let ended = load(weir.grpc(), &["--threads", "2", "--connections", "2"]);
    assert_eq!(ended.code, 1, "{}", ended.printed);
    assert!(ended.error.contains("cannot reach "), "{}", ended.error);
}

#[test]
fn a_load_speaks_on_a_unix_socket_too() {
    let (directory, rules) = (tempfile::tempdir().unwrap(), rules(RULES));
    let socket = format!("unix:{}", directory.path().join("weir.sock").display());
    let addresses = format!("127.0.0.1:0,{socket}");
    let _weir = Weir::start_with(
        ["--grpc", &addresses, "--rules"].map(OsStr::new).into_iter().chain([rules.path().as_os_str()]),
    );
    let result = load(&socket, &["--json", "--key", "open", "--seconds", "0.3"]).json();
    assert!(number(&result, "ok") > 0 && number(&result, "errors") == 0, "{result}");
}

#[test]
fn a_load_that_makes_no_sense_is_refused() {
    for (arguments, said) in [
        (&["--target", "weir"][..], "write host:port"),
        (&["--target", "https://weir:8081"], "without TLS"),
        (&["--keys", "0"], "--keys"),
        (&["--descriptors", "2000"], "--descriptors"),
        (&["--zipf=-1"], "--zipf"),
        (&["--zipf", "1", "--in-turn"], "--in-turn"),
        (&["--rate", "0"], "number of calls a second"),
        (&["--rate", "1", "--seconds", "0.5"], "makes no call"),
        (&["--seconds", "soon"], "number of seconds"),
        (&["--seconds", "NaN"], "number of seconds"),
        (&["--connections", "0"], "--connections"),
        (&["--threads", "5", "--connections", "4"], "each thread needs a connection"),
        (&["--key", ""], "--key is empty"),
        (&["--timeout", "soon"], "--timeout"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["load", "--domain", "api"])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {error}");
        assert!(error.contains(said) && output.stdout.is_empty(), "{arguments:?}: {error}");
    }
}
