//! A drill: a weir before a Redis, a steady load, a fault, and what has to be true meanwhile and after.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use weir::clock;
use weir::proto::{RateLimitRequest, RateLimitServiceClient};

use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, await_that};
use crate::support::server::{request, rules};
use crate::support::steady::{Outcome, Steady};
use crate::support::weir::Weir;

/// How long Envoy waits for an answer.
pub(super) const IN_TIME: Duration = Duration::from_millis(20);

/// What the machine may take on top of that, besides twice the worst that it does to a weir that needs no Redis.
const OF_THE_MACHINE: Duration = Duration::from_millis(10);

/// Calls a second, of all kinds.
const RATE: u32 = 200;

/// Tokens of the limited bucket, a second and at once.
pub(super) const LIMITED: f64 = 10.0;
pub(super) const BURST: f64 = 20.0;

/// Tokens of the bucket that is counted, which has next to none back while a drill lasts.
pub(super) const COUNTED: u32 = 1_000_000;

pub(super) const RULES: &str = "
domain: api
descriptors:
  - { key: limited, rate_limit: { unit: second, requests_per_unit: 10, burst: 20 } }
  - { key: counted, rate_limit: { unit: year, requests_per_unit: 1000000 } }
  - { key: user, rate_limit: { unit: second, requests_per_unit: 1000 } }
";

/// How long a fault lasts: two seconds, or what `WEIR_SOAK_SECONDS` says.
pub(super) fn outage() -> Duration {
    let seconds = std::env::var("WEIR_SOAK_SECONDS").ok();
    Duration::from_secs(seconds.map_or(2, |seconds| seconds.parse().expect("WEIR_SOAK_SECONDS is a number")))
}

/// Whether there is more time than for other tests.
pub(super) fn is_soak() -> bool {
    std::env::var_os("WEIR_SOAK_SECONDS").is_some()
}

/// How long a soak lasts: twelve seconds, or ten times as long as a fault.
pub(super) fn soak() -> Duration {
    if is_soak() { 10 * outage() } else { Duration::from_secs(12) }
}

/// What 99.9 of a hundred calls may take, with what the machine has meanwhile done to a load on a weir without Redis.
pub(super) fn may_take(beside: &Outcome) -> Duration {
    IN_TIME + 2 * beside.per_mille(1_000) + OF_THE_MACHINE
}

/// Waits for as long as a fault lasts.
pub(super) fn last() {
    std::thread::sleep(outage());
}

/// A weir with the deadline that it has unless told otherwise, connected to the Redis at `url` by each of two threads.
pub(super) fn with_redis(rules: &Path, url: &str, more: &[&str]) -> Weir {
    let arguments = ["--grpc", "127.0.0.1:0", "--threads", "2", "--redis", url, "--rules"].map(OsStr::new);
    let more = more.iter().map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([rules.as_os_str()]).chain(more));
    weir.await_log("connected", 2);
    weir
}

/// One call for a bucket.
pub(super) fn of(key: &'static str, value: &str) -> RateLimitRequest {
    request("api", &[(key, value.as_bytes())])
}

/// What a bucket has left.
pub(super) async fn left(weir: SocketAddr, key: &'static str, value: &str) -> u32 {
    let mut client = RateLimitServiceClient::connect(format!("http://{weir}")).await.unwrap();
    let mut peek = of(key, value);
    peek.descriptors[0].hits_addend = Some(0);
    client.should_rate_limit(peek).await.unwrap().into_inner().statuses[0].limit_remaining
}

/// What a process holds of the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) files: usize,
    pub(super) kilobytes: u64,
}

impl Held {
    pub(super) fn by(weir: &Weir) -> Self {
        let process = Path::new("/proc").join(weir.pid().to_string());
        let status = fs::read_to_string(process.join("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            files: fs::read_dir(process.join("fd")).unwrap().count(),
            kilobytes: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

/// Connections to a Redis besides the one that asks.
fn connections(redis: &RedisServer) -> usize {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap_or_default();
    list.lines().filter(|line| !line.contains("cmd=client")).count()
}

/// A Redis, and the weir before it.
pub(super) struct Drill {
    /// What it is called in what is printed.
    name: &'static str,
    pub(super) redis: RedisServer,
    /// In between, where the network is the fault.
    pub(super) proxy: Option<Proxy>,
    weir: Weir,
    rules: TempDir,
    /// Calls whose outcome may be unknown: what was under way when the fault came or went.
    unknown: f64,
}

impl Drill {
    /// For a fault of Redis itself.
    pub(super) fn of_server(name: &'static str, redis: RedisServer) -> Self {
        let url = redis.url();
        Self::of_url(name, redis, &url, None)
    }

    /// For a fault of the network.
    pub(super) fn of_network(name: &'static str) -> Self {
        let redis = RedisServer::start();
        let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port())));
        let url = format!("redis://{}", proxy.address());
        Self::of_url(name, redis, &url, Some(proxy))
    }

    pub(super) fn of_url(name: &'static str, redis: RedisServer, url: &str, proxy: Option<Proxy>) -> Self {
        let rules = rules(RULES);
        let weir = with_redis(rules.path(), url, &[]);
        Self { name, redis, proxy, weir, rules, unknown: 10.0 }
    }

    /// Where weir serves.
    pub(super) fn grpc(&self) -> SocketAddr {
        self.weir.grpc()
    }

    /// How often weir's log has said `text`.
    pub(super) fn logged(&self, text: &str) -> usize {
        self.weir.logged(text)
    }

    /// What weir's log has said.
    pub(super) fn log(&self) -> String {
        self.weir.log()
    }

    /// For a fault that comes and goes so many times.
    pub(super) fn times(mut self, times: u32) -> Self {
        self.unknown *= f64::from(times);
        self
    }

    /// Loads weir, lets the fault come, last and go, and asserts that nobody but the log noticed.
    pub(super) async fn run(mut self, fault: impl FnOnce(&mut Self)) {
        let control = Weir::start(self.rules.path());
        for weir in [&self.weir, &control] {
            // What is paid once only: pages of the program, connections.
            let warm = Steady::start(weir.grpc(), RATE, user).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let outcome = warm.stop().await;
            assert_eq!(outcome.failed, [""; 0]);
        }
        self.weir.await_closed();

        let begun = clock::instant();
        let users = Steady::start(self.weir.grpc(), RATE / 2, user).await;
        let limited = Steady::start(self.weir.grpc(), RATE / 4, |_| of("limited", "x")).await;
        let counted = Steady::start(self.weir.grpc(), RATE / 4, |_| of("counted", "x")).await;
        let beside = Steady::start(control.grpc(), RATE, user).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = Held::by(&self.weir);
        self.weir.await_closed();
        let opened = self.weir.logged("circuit opened");
        fault(&mut self);
        self.weir.await_log("circuit opened", opened + 1);
        self.weir.await_closed();
        tokio::time::sleep(Duration::from_secs(1)).await;

        // Nothing is left behind, while the load goes on.
        let mut after = Held::by(&self.weir);
        await_that("all files are closed that the fault has left open", || {
            after = Held::by(&self.weir);
            after.files <= before.files + 1
        });
        let name = self.name;
        assert!(after.kilobytes < before.kilobytes + (16 << 10), "{name}: {before:?}, then {after:?}");
        await_that("there are two connections to Redis again", || connections(&self.redis) == 2);

        let [users, limited, counted, beside] =
            [users.stop().await, limited.stop().await, counted.stop().await, beside.stop().await];
        let seconds = begun.elapsed().as_secs_f64();
        let (admitted, used) = (limited.admitted, counted.admitted);
        let all = users.and(limited).and(counted);
        self.assert_in_time(&all, &beside);
        assert_eq!(beside.failed, [""; 0], "{name}, beside it");

        let most = BURST + LIMITED * seconds;
        println!("{name}: admitted {admitted} of {most:.1} in {seconds:.1} s");
        // A token for the clocks, one for each side of what was under way.
        assert!(admitted as f64 <= most + 3.0, "{name}: admitted {admitted}, limit {most:.1}");
        assert!(
            admitted as f64 >= 0.5 * most,
            "{name}: nobody is locked out; admitted {admitted} of {most:.1}"
        );
        self.assert_told(used).await;

        assert_eq!(self.weir.logged("panicked"), 0, "{name}");
        let warnings = self.weir.logged("WARN");
        assert!(warnings < 60, "{name}: nothing is logged for each call, and there are {warnings} warnings");
        self.weir.stop();
        control.stop();
    }

    /// Every call was answered, and soon.
    fn assert_in_time(&self, all: &Outcome, beside: &Outcome) {
        let (name, calls, opened) = (self.name, all.calls(), self.weir.logged("circuit opened"));
        let (most, usual) = (all.per_mille(999), beside.per_mille(999));
        println!(
            "{name}: {calls} calls, p99 {:.1?}, p99.9 {most:.1?}; without Redis {:.1?}, {usual:.1?}; opened {opened} times",
            all.per_mille(990),
            beside.per_mille(990),
        );
        assert_eq!(all.failed, [""; 0], "{name}");
        let bound = may_take(beside);
        assert!(most <= bound, "{name}: p99.9 is {most:?}, and may be {bound:?}; without Redis {usual:?}");
    }

    /// Redis has been told what was used without it: a process says so that knows it from nowhere else.
    async fn assert_told(&self, used: u64) {
        let name = self.name;
        let witness = Weir::start_with_redis(self.rules.path(), &self.redis.url());
        let mut told = 0;
        let (mut difference, mut settled) = (f64::INFINITY, 0);
        // It is told four times a second, unless the machine stalls: what is right for a second stays so.
        for _ in 0..300 {
            let before = told;
            told = COUNTED - left(witness.grpc(), "counted", "x").await;
            difference = f64::from(told) - used as f64;
            settled = if told == before && difference.abs() <= self.unknown { settled + 1 } else { 0 };
            if settled == 10 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{name}: {used} were used, and Redis holds {told}");
        assert!(difference.abs() <= self.unknown, "{name}: {used} were used, and Redis holds {told}");
        witness.stop();
    }
}

/// A call of one of many users, none of whom is limited.
fn user(n: u64) -> RateLimitRequest {
    of("user", &(n % 50).to_string())
}
