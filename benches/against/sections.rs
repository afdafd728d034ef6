//! What is measured, section by section.

use super::asked::{Ask, PERCENTILES};
use super::echo::Shape;
use super::machine;
use super::process::{Redis, Server};
use super::results::{Curve, Latency, Row, Script, Spread};
use super::rounds::{self, Case};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    rounds: usize,
    /// Of one measurement.
    seconds: f64,
    keys: u64,
    descriptors: &'static [u64],
    callers: &'static [u64],
}

impl Effort {
    pub const FULL: Self = Self {
        rounds: 5,
        seconds: 1.5,
        keys: 100_000,
        descriptors: &[1, 3, 10],
        callers: &[1, 4, 16, 64, 256, 1_024],
    };

    /// To see that it works.
    pub const QUICK: Self =
        Self { rounds: 1, seconds: 0.2, keys: 1_000, descriptors: &[1, 3], callers: &[1, 16] };
}

/// weir with buckets in memory, against echo.
pub fn memory(effort: &Effort) -> Vec<Row> {
    let weir = Server::weir(None);
    against_echo("weir, memory", &weir, None, effort)
}

/// weir with buckets in Redis, against echo.
pub fn redis(effort: &Effort) -> Vec<Row> {
    let redis = Redis::start();
    let weir = Server::weir(Some(&redis));
    against_echo("weir, Redis", &weir, Some(&redis), effort)
}

/// A weir, against echo as it comes and against one of weir's shape.
fn against_echo(name: &'static str, weir: &Server, redis: Option<&Redis>, effort: &Effort) -> Vec<Row> {
    let echoes = |shape| effort.descriptors.iter().map(move |count| Server::echo(shape, *count));
    let (stock, per_core): (Vec<_>, Vec<_>) =
        (echoes(Shape::Stock).collect(), echoes(Shape::PerCore).collect());
    let mut cases = Vec::new();
    for ((descriptors, stock), per_core) in effort.descriptors.iter().zip(&stock).zip(&per_core) {
        cases.push(echo("echo", stock, effort.keys, *descriptors));
        cases.push(echo("echo, a runtime a core", per_core, effort.keys, *descriptors));
        cases.extend(weirs(name, weir, redis, effort.keys, *descriptors));
    }
    rounds::run(&cases, effort.rounds, effort.seconds)
}

fn echo<'a>(name: &'static str, server: &'a Server, keys: u64, descriptors: u64) -> Case<'a> {
    Case { name, server, redis: None, keys, denied: false, descriptors }
}

fn weirs<'a>(
    name: &'static str,
    server: &'a Server,
    redis: Option<&'a Redis>,
    keys: u64,
    descriptors: u64,
) -> impl Iterator<Item = Case<'a>> {
    [(1, false), (keys, false), (1, true), (keys, true)].into_iter().map(move |(keys, denied)| Case {
        name,
        server,
        redis,
        keys,
        denied,
        descriptors,
    })
}

/// What is no server: how long calls would take that are answered whenever a core is there.
pub const MACHINE: &str = "none: the machine's stalls";

/// Rounds of latencies for one of anything else: a stall of the machine spoils the percentiles of the whole round that it is
/// in, so the median is of many short ones.
const LATENCY_ROUNDS: usize = 3;

/// How long calls take when there are half as many as the server can do.
pub fn latency(effort: &Effort) -> Vec<Latency> {
    let redis = Redis::start();
    let servers = [
        ("echo", Server::echo(Shape::Stock, 1)),
        ("weir, memory", Server::weir(None)),
        ("weir, Redis", Server::weir(Some(&redis))),
    ];
    let closed = Ask::closed("wide", effort.keys, effort.seconds);
    let mut rates: [Vec<f64>; 3] = Default::default();
    // The first time is for getting going.
    for round in 0..=effort.rounds {
        for ((_, server), rates) in servers.iter().zip(&mut rates) {
            let rate = closed.of(server).per_second;
            rates.extend((round > 0).then_some(rate));
        }
    }
    let highest = rates.map(|rates| Spread::of(rates).median);
    let mut all: [Vec<[f64; 6]>; 3] = Default::default();
    let mut stalls = Vec::new();
    for _ in 0..LATENCY_ROUNDS * effort.rounds {
        stalls.push(machine::stalls(effort.seconds));
        for ((server, highest), all) in servers.iter().zip(highest).zip(&mut all) {
            let ask = Ask { rate: Some((highest / 2.0).round()), ..closed };
            all.push(ask.of(&server.1).latencies);
        }
    }
    let percentile = |rounds: &[[f64; 6]], index: usize| Spread::of(rounds.iter().map(|round| round[index]));
    let latency = |server: &str, rate: f64, rounds: &[[f64; 6]]| Latency {
        server: server.to_owned(),
        rate,
        latencies: (0..PERCENTILES.len()).map(|index| percentile(rounds, index)).collect(),
    };
    let servers = servers.iter().zip(highest).zip(&all);
    let served = servers.map(|(((name, _), highest), rounds)| latency(name, (highest / 2.0).round(), rounds));
    std::iter::once(latency(MACHINE, 0.0, &stalls)).chain(served).collect()
}

/// Bytes of memory for each bucket, when there are many: of weir in memory, and of what it knows of Redis.
pub fn buckets(effort: &Effort) -> (Spread, Spread) {
    let redis = Redis::start();
    let round = |_| {
        // Of calls for ten buckets each, Redis would not decide all.
        (bytes(effort, &Server::weir(None), 10), bytes(effort, &Server::weir(Some(&redis)), 1))
    };
    let (memory, with_redis): (Vec<f64>, Vec<f64>) = (0..effort.rounds.min(3)).map(round).unzip();
    (Spread::of(memory), Spread::of(with_redis))
}

fn bytes(effort: &Effort, weir: &Server, descriptors: u64) -> f64 {
    // What connections and threads need is there before.
    Ask { descriptors, ..Ask::closed("hot", 10, effort.seconds) }.of(weir);
    let (before, none) = (weir.memory(), weir.metric("weir_local_buckets", ""));
    let many = Ask::closed("wide", 20 * effort.keys, 3.0 * effort.seconds);
    Ask { descriptors, in_turn: true, ..many }.of(weir);
    let (after, there) = (weir.memory(), weir.metric("weir_local_buckets", ""));
    assert!(there > none, "no bucket is there");
    (after as f64 - before as f64) / (there - none)
}

/// What the script costs Redis, and how often it is run.
pub fn script(effort: &Effort) -> Script {
    let redis = Redis::start();
    let weir = Server::weir(Some(&redis));
    let counted = |ask: Ask| {
        let before = redis.done();
        let calls = ask.of(&weir).calls;
        let now = redis.done();
        let runs = (now.runs - before.runs) as f64;
        ((now.cpu - before.cpu).as_secs_f64() * 1e6 / calls, runs / calls, runs)
    };
    let wide = Ask::closed("wide", effort.keys, effort.seconds);
    wide.of(&weir);
    let (mut decided, mut plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut uniform, mut hot) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let (cpu, per_call, _) = counted(wide);
        let batch = (1.0 / per_call).round().max(1.0);
        let reads_and_writes = read_and_write(&redis, batch as usize, effort.seconds);
        decided.push(cpu);
        plain.push(reads_and_writes);
        ratios.push(cpu / reads_and_writes);
        uniform.push(per_call);
        let (_, per_call, _) = counted(Ask { key: "hot", keys: 1, ..wide });
        hot.push(per_call);
    }
    // All at one time: a run at its beginning and at its end would be many of a short one.
    let denied = Ask { key: "shut", keys: 1, seconds: 2.0 * effort.rounds as f64 * effort.seconds, ..wide };
    Ask { seconds: effort.seconds, ..denied }.of(&weir);
    let (_, _, runs) = counted(denied);
    let uniform = Spread::of(uniform);
    Script {
        decided: Spread::of(decided),
        plain: Spread::of(plain),
        ratio: Spread::of(ratios),
        batch: 1.0 / uniform.median,
        uniform,
        hot: Spread::of(hot),
        denied: (runs, denied.seconds),
    }
}

/// Microseconds of Redis's processor for each key that a script reads and writes, in batches of so many, with the keys and
/// values that weir has left there.
fn read_and_write(redis: &Redis, batch: usize, seconds: f64) -> f64 {
    const SCRIPT: &str = "redis.call('MGET', unpack(KEYS)) \
        for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end \
        return ARGV[1]";

    let mut connection = redis.connection();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*wide*").query(&mut connection).unwrap();
    let first = keys.first().expect("weir has written buckets");
    let value: Vec<u8> = redis::cmd("GET").arg(first).query(&mut connection).unwrap();
    let hash: String = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query(&mut connection).unwrap();
    let (before, begun) = (redis.done().cpu, weir::clock::stopwatch());
    let mut touched = 0;
    // Not in the order of the table that Redis keeps them in.
    let mut next = 0;
    while begun.elapsed().as_secs_f64() < seconds {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&hash).arg(batch);
        for _ in 0..batch {
            next = (next + 7_919) % keys.len();
            command.arg(&keys[next]);
        }
        command.arg(&value).arg(100_000_000).exec(&mut connection).unwrap();
        touched += batch;
    }
    (redis.done().cpu - before).as_secs_f64() * 1e6 / touched as f64
}

/// Calls a second of ever more callers.
pub fn curve(effort: &Effort) -> Vec<Curve> {
    let redis = Redis::start();
    let servers = [
        ("echo", Server::echo(Shape::Stock, 1)),
        ("echo, a runtime a core", Server::echo(Shape::PerCore, 1)),
        ("weir, memory", Server::weir(None)),
        ("weir, Redis", Server::weir(Some(&redis))),
    ];
    let mut figures = vec![vec![Vec::new(); effort.callers.len()]; servers.len()];
    for _ in 0..effort.rounds.min(3) {
        for (place, callers) in effort.callers.iter().enumerate() {
            let connections = (*callers).min(4);
            let streams = callers / connections;
            for ((_, server), figures) in servers.iter().zip(&mut figures) {
                let ask = Ask { connections, streams, ..Ask::closed("wide", effort.keys, effort.seconds) };
                figures[place].push(ask.of(server).per_second);
            }
        }
    }
    let median = |(callers, figures): (&u64, Vec<f64>)| (*callers, Spread::of(figures).median);
    let curve = |((name, _), figures): (&(&str, Server), Vec<Vec<f64>>)| Curve {
        server: (*name).to_owned(),
        points: effort.callers.iter().zip(figures).map(median).collect(),
    };
    servers.iter().zip(figures).map(curve).collect()
}
