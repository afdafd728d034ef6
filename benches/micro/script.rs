//! The script alone, in a real Redis: batches of one charge a bucket.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use tempfile::TempDir;

const SCRIPT: &str = include_str!("../../src/store/redis/decide.lua");

/// How many buckets there are besides those of a batch.
const BUCKETS: usize = 100_000;

struct Redis {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Redis {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null());
        let child = command.spawn().expect("redis-server is there; on Debian: apt-get install redis-server");
        Self { child, port, _directory: directory }
    }

    /// A connection, as soon as it answers.
    fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        for _ in 0..1_000 {
            if let Ok(connection) = client.get_connection() {
                return connection;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not answer");
    }
}

pub fn script(c: &mut Criterion) {
    let redis = Redis::start();
    let mut connection = redis.connection();
    let hash: String = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query(&mut connection).unwrap();
    // As the script says: a token bucket of 60 an hour that has been in force for ever, and takes of one hit.
    let double = |number: f64| number.to_le_bytes();
    let mut limit = vec![1];
    [60.0 / 3.6e9, 0.0, 1e9, 1e10].into_iter().for_each(|part| limit.extend(double(part)));
    let names: Vec<String> = (0..BUCKETS).map(|n| format!("weir:bench:user={n:06}:hour")).collect();
    let mut group = c.benchmark_group("script");
    for (name, distinct) in [("a bucket each", true), ("one bucket", false)] {
        for batch in [1_u16, 16, 64, 256] {
            let mut charges = Vec::new();
            for n in 0..batch {
                let bucket = if distinct { n } else { 0 };
                charges.extend(bucket.to_le_bytes());
                charges.extend([0, 0, 32]);
                charges.extend(double(1.0));
            }
            let buckets = if distinct { usize::from(batch) } else { 1 };
            let mut next = 0;
            group.throughput(Throughput::Elements(batch.into()));
            group.bench_function(BenchmarkId::new(name, batch), |b| {
                b.iter(|| {
                    let mut command = redis::cmd("EVALSHA");
                    command.arg(&hash).arg(buckets);
                    for _ in 0..buckets {
                        next = (next + 7_919) % names.len();
                        command.arg(&names[next]);
                    }
                    // Number 0 is a batch of which no note is kept.
                    command.arg(0).arg(60_000).arg(&limit[..]).arg(&charges[..]).arg("");
                    command.query::<Vec<Vec<u8>>>(&mut connection).unwrap()
                });
            });
        }
    }
    group.finish();
}
