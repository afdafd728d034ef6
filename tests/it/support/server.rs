//! A server in this process, on a free port, with rules of its own.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;

use clap::Parser as _;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use weir::app::{App, Error, Stop};
use weir::proto::{Entry, RateLimitDescriptor, RateLimitRequest, RateLimitServiceClient};
use weir::serve::Endpoint;
use weir::settings::Settings;
use weir::telemetry::Telemetry;

/// A command line.
#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

/// Settings as the command line has them without flags, but for these rules, a free port, and no time lost at the end.
pub(crate) fn settings(rules: &Path) -> Settings {
    let fixed = [
        "weir",
        "--grpc=127.0.0.1:0",
        "--http=127.0.0.1:0",
        "--drain-delay=0s",
        "--drain-timeout=5s",
        "--rules",
    ];
    Line::parse_from(fixed.map(OsStr::new).into_iter().chain([rules.as_os_str()])).settings
}

/// A directory with one rule file.
pub(crate) fn rules(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("rules.yaml"), text).unwrap();
    directory
}

fn address(endpoint: &Endpoint) -> Option<SocketAddr> {
    match endpoint {
        Endpoint::Tcp(address) => Some(*address),
        Endpoint::Unix(_) => None,
    }
}

/// Runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) telemetry: Telemetry,
    http: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), Error>>,
}

impl Server {
    pub(crate) async fn start(settings: Settings) -> Self {
        let app = App::bind(settings).await.unwrap();
        let telemetry = app.telemetry();
        let address = app.grpc().find_map(address).expect("it listens on TCP");
        let http = app.http().and_then(self::address);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async {
            _ = stopped.await;
            Stop::Gently
        }));
        Self { address, telemetry, http, stop: Some(stop), running }
    }

    /// Where it answers HTTP.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http.expect("it listens on TCP")
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
