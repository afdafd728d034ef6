//! A steady load, whose calls come when they are due and not when the last one has been answered: a stall cannot hide.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use weir::clock;
use weir::proto::{Code, RateLimitRequest, RateLimitServiceClient};

/// What the calls of a load came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) admitted: u64,
    pub(crate) denied: u64,
    /// What the calls said that were not answered.
    pub(crate) failed: Vec<String>,
    /// How long each call took from the moment that it was due, sorted.
    latencies: Vec<Duration>,
}

impl Outcome {
    pub(crate) fn calls(&self) -> u64 {
        self.admitted + self.denied + self.failed.len() as u64
    }

    /// What two loads came to together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.admitted += other.admitted;
        self.denied += other.denied;
        self.failed.extend(other.failed);
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable();
        self
    }

    /// The latency that so large a part of the calls did not exceed.
    pub(crate) fn per_mille(&self, part: usize) -> Duration {
        let index = (self.latencies.len() * part).div_ceil(1_000);
        self.latencies[index.clamp(1, self.latencies.len()) - 1]
    }
}

/// A load that runs until it is stopped.
pub(crate) struct Steady {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Outcome>,
}

impl Steady {
    /// Calls so many times a second; `request` makes the n-th.
    pub(crate) async fn start(
        target: SocketAddr,
        rate: u32,
        request: impl Fn(u64) -> RateLimitRequest + Send + 'static,
    ) -> Self {
        let client = RateLimitServiceClient::connect(format!("http://{target}")).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(run(client, rate, request, stopped));
        Self { stop, running }
    }

    /// Stops it, and waits for the calls that are under way.
    pub(crate) async fn stop(self) -> Outcome {
        drop(self.stop);
        self.running.await.unwrap()
    }
}

async fn run(
    client: RateLimitServiceClient<Channel>,
    rate: u32,
    request: impl Fn(u64) -> RateLimitRequest,
    mut stopped: oneshot::Receiver<()>,
) -> Outcome {
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let start = clock::instant();
    let mut calls = JoinSet::new();
    for n in 0.. {
        let due = start + Duration::from_secs(1) * u32::try_from(n).unwrap() / rate;
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            () = tokio::time::sleep_until(due) => {}
        }
        let (mut client, request, outcome) = (client.clone(), request(n), Arc::clone(&outcome));
        calls.spawn(async move {
            let answer = client.should_rate_limit(request).await;
            let latency = due.elapsed();
            let mut outcome = outcome.lock().await;
            outcome.latencies.push(latency);
            match answer {
                Ok(answer) if answer.get_ref().overall_code() == Code::Ok => outcome.admitted += 1,
                Ok(_) => outcome.denied += 1,
                Err(status) => outcome.failed.push(format!("{:?}: {}", status.code(), status.message())),
            }
        });
        while calls.try_join_next().is_some() {}
    }
    while calls.join_next().await.is_some() {}
    let mut outcome = outcome.lock().await.clone();
    outcome.latencies.sort_unstable();
    outcome
}
