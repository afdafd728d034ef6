//! Servers asked in turn, round after round.

use super::asked::{Ask, Asked};
use super::process::{Redis, Server};
use super::results::{Row, Spread};

/// A server, asked in one way.
pub struct Case<'a> {
    pub name: &'static str,
    pub server: &'a Server,
    pub redis: Option<&'a Redis>,
    pub keys: u64,
    pub denied: bool,
    pub descriptors: u64,
}

/// What one round of a case came to.
#[derive(Clone, Copy, Debug)]
struct Sample {
    asked: Asked,
    /// Microseconds a call.
    cpu: f64,
    redis_cpu: f64,
    /// Commands that it ran for a call, those of scripts too.
    commands: f64,
    /// Runs of scripts for a call.
    runs: f64,
    /// The part of the charges that Redis did not decide in time.
    local: f64,
}

impl Case<'_> {
    fn ask(&self, seconds: f64) -> Ask {
        let key = match (self.denied, self.keys) {
            (true, _) => "shut",
            (false, 1) => "hot",
            (false, _) => "wide",
        };
        Ask { descriptors: self.descriptors, ..Ask::closed(key, self.keys, seconds) }
    }

    /// Gets it going; what is to be denied has to be.
    fn prepare(&self, seconds: f64) {
        let asked = self.ask(seconds).of(self.server);
        let denied = asked.over / asked.calls;
        assert!(
            !self.denied || denied > 0.999,
            "{}, {} keys: only {denied} are denied",
            self.name,
            self.keys
        );
    }

    /// Uses up all buckets of the rule that denies. Nobody may have used one before: since requests are charged whole or
    /// not at all, a bucket that is used up would spare those that are asked for with it.
    fn use_up(&self, seconds: f64) {
        const ATTEMPTS: usize = 10;

        for _ in 0..ATTEMPTS {
            // Each of the buckets is in one of these requests.
            let ask = Ask { in_turn: true, descriptors: 10, ..self.ask(2.0 * seconds) };
            let asked = ask.of(self.server);
            if asked.over == asked.calls && asked.calls > self.keys as f64 / 10.0 {
                return;
            }
        }
        panic!("{}: not all of {} keys are used up", self.name, self.keys);
    }

    fn sample(&self, seconds: f64) -> Sample {
        let before =
            (self.server.cpu(), self.redis.map(|redis| (redis.done(), self.server.decided_locally())));
        let asked = self.ask(seconds).of(self.server);
        let cpu = (self.server.cpu() - before.0).as_secs_f64() * 1e6 / asked.calls;
        let (redis_cpu, commands, runs, local) = match (self.redis, before.1) {
            (Some(redis), Some((before, local))) => {
                let now = redis.done();
                let cpu = (now.cpu - before.cpu).as_secs_f64() * 1e6 / asked.calls;
                let charges = asked.calls * self.descriptors as f64;
                let local = (self.server.decided_locally() - local) / charges;
                let a_call = |now: u64, before: u64| (now - before) as f64 / asked.calls;
                (cpu, a_call(now.commands, before.commands), a_call(now.runs, before.runs), local)
            }
            _ => (0.0, 0.0, 0.0, 0.0),
        };
        Sample { asked, cpu, redis_cpu, commands, runs, local }
    }
}

/// Measures all cases in each round; the first one of as many descriptors is what the others are held against.
pub fn run(cases: &[Case<'_>], rounds: usize, seconds: f64) -> Vec<Row> {
    let mut used_up = Vec::new();
    for case in cases.iter().filter(|case| case.denied) {
        let what = (case.server.address, case.keys);
        if !used_up.contains(&what) {
            used_up.push(what);
            case.use_up(seconds);
        }
    }
    for case in cases {
        case.prepare(seconds.min(0.5));
    }
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        // There and back, so that none always comes after the same other one.
        let forth = 0..cases.len();
        let order: Vec<usize> = if round % 2 == 0 { forth.collect() } else { forth.rev().collect() };
        for index in order {
            samples[index].push(cases[index].sample(seconds));
        }
    }
    cases
        .iter()
        .zip(&samples)
        .map(|(case, own)| {
            let base = cases.iter().position(|base| base.descriptors == case.descriptors).unwrap();
            row(case, own, &samples[base])
        })
        .collect()
}

fn row(case: &Case<'_>, own: &[Sample], base: &[Sample]) -> Row {
    let spread = |figure: &dyn Fn(&Sample) -> f64| Spread::of(own.iter().map(figure));
    let against = |figure: &dyn Fn(&Sample) -> f64| {
        Spread::of(own.iter().zip(base).map(|(own, base)| figure(own) / figure(base)))
    };
    Row {
        server: case.name.to_owned(),
        // A request has a value for each of its descriptors.
        keys: case.keys.max(case.descriptors),
        denied: case.denied,
        descriptors: case.descriptors,
        per_second: spread(&|sample| sample.asked.per_second),
        per_second_ratio: against(&|sample| sample.asked.per_second),
        cpu: spread(&|sample| sample.cpu),
        cpu_ratio: against(&|sample| sample.cpu),
        redis_cpu: case.redis.map(|_| spread(&|sample| sample.redis_cpu)),
        commands: case.redis.map(|_| spread(&|sample| sample.commands)),
        runs: case.redis.map(|_| spread(&|sample| sample.runs)),
        local: case.redis.map(|_| spread(&|sample| sample.local)),
        own_cpu: spread(&|sample| sample.asked.own_cpu),
    }
}
