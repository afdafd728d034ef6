//! A server in this process, on a free port, with rules of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use weir::app::{App, Error};
use weir::proto::{Entry, RateLimitDescriptor, RateLimitRequest, RateLimitServiceClient};
use weir::settings::{RedisFiles, RedisTuning, Settings};

/// Settings as the command line has them without flags, but for a free port and these rules.
pub(crate) fn settings(rules: &Path) -> Settings {
    Settings {
        rules: rules.to_owned(),
        rules_poll: Duration::from_secs(10),
        rules_events: true,
        grpc: SocketAddr::from(([127, 0, 0, 1], 0)),
        redis: None,
        redis_files: RedisFiles::default(),
        redis_tuning: RedisTuning::default(),
        redis_timeout: Duration::from_millis(10),
        remember_denials: Duration::from_secs(1),
        max_buckets: 1_000_000.try_into().unwrap(),
        max_message_bytes: (4 << 20).try_into().unwrap(),
        max_descriptors: 64.try_into().unwrap(),
        shadow_mode: false,
        quota_mode: false,
        max_debt: 10.0,
        dynamic_metadata: false,
        near_limit: 0.8,
        max_detailed_series: 1_000,
        drain_timeout: Duration::from_secs(5),
        log: "info".into(),
    }
}

/// A directory with one rule file.
pub(crate) fn rules(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("rules.yaml"), text).unwrap();
    directory
}

/// Runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), Error>>,
}

impl Server {
    pub(crate) async fn start(settings: Settings) -> Self {
        let app = App::bind(settings).await.unwrap();
        let address = app.grpc_address();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async {
            _ = stopped.await;
        }));
        Self { address, stop: Some(stop), running }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> RateLimitServiceClient<Channel> {
        RateLimitServiceClient::new(self.channel().await).max_encoding_message_size(usize::MAX)
    }

    /// Tells it to stop; returns what it ended with.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        self.running.await.unwrap()
    }
}

/// A request of one entry each, as `(key, value)`.
pub(crate) fn request(domain: &str, entries: &[(&str, &[u8])]) -> RateLimitRequest {
    let descriptor = |(key, value): &(&str, &[u8])| RateLimitDescriptor {
        entries: vec![Entry { key: key.as_bytes().to_vec().into(), value: value.to_vec().into() }],
        ..RateLimitDescriptor::default()
    };
    RateLimitRequest {
        domain: domain.into(),
        descriptors: entries.iter().map(descriptor).collect(),
        hits_addend: 0,
    }
}
