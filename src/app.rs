//! Wires the parts, binds, serves until it is told to stop, and drains.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::proto::{DESCRIPTOR_SET, RateLimitServiceServer, SERVICE_NAME};
use crate::rules::{LoadError, Watch};
use crate::service::{Options, Service};
use crate::settings::Settings;
use crate::store::{KeySeed, LocalStore};

/// Names under which health is asked for: the server as a whole, the service, and what the reference calls itself.
const HEALTH_NAMES: [&str; 3] = ["", SERVICE_NAME, "ratelimit"];

/// Why serving could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rule files are wrong.
    #[error(transparent)]
    Rules(#[from] LoadError),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}; is another process there? --grpc takes another address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system has no randomness to give.
    #[error("no randomness for the bucket keys: {0}")]
    Random(#[from] getrandom::Error),
    /// The server ended by itself.
    #[error("the gRPC server ended: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// Signals cannot be waited for, or the reflection service cannot be made.
    #[error("{0}")]
    Start(String),
}

/// A server that is bound and ready to run.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    listener: TcpListener,
    address: SocketAddr,
    watch: Arc<Watch>,
    limiter: Arc<Limiter>,
}

impl App {
    /// Loads the rules and binds the address.
    ///
    /// A directory that is missing or empty may still fill: the app starts, not ready, and waits for it.
    ///
    /// # Errors
    /// When the rules are wrong, or the address is taken.
    pub async fn bind(settings: Settings) -> Result<Self, Error> {
        let clock = Clock::system();
        let watch = Arc::new(Watch::new(&settings.rules, clock.clone()));
        match watch.reload() {
            Ok(()) | Err(LoadError::Nothing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let bind_error = |source| Error::Bind { address: settings.grpc, source };
        let listener = TcpListener::bind(settings.grpc).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let store = LocalStore::new(settings.max_buckets, clock);
        let limiter = Arc::new(Limiter::new(store, KeySeed::random()?));
        Ok(Self { settings, listener, address, watch, limiter })
    }

    /// The address that gRPC is answered on.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` comes, then finishes the calls that are under way, for as long as the settings allow.
    ///
    /// # Errors
    /// When the server ends by itself.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let Self { settings, listener, address, watch, limiter } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, watch.is_loaded()).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let start_error =
            |error: tonic_reflection::server::Error| Error::Start(format!("reflection: {error}"));
        let service = Service::new(
            watch.current(),
            limiter,
            Options {
                max_descriptors: settings.max_descriptors.get(),
                shadow_mode: settings.shadow_mode,
                quota_mode: settings.quota_mode,
                dynamic_metadata: settings.dynamic_metadata,
            },
        );
        let service = RateLimitServiceServer::new(service)
            .max_decoding_message_size(settings.max_message_bytes.get())
            // A response repeats what was asked: it may be as long, and must not be what fails.
            .max_encoding_message_size(usize::MAX);
        let draining = Arc::new(Notify::new());
        let drain = Arc::clone(&draining);
        let server = Server::builder()
            .add_service(service)
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(start_error)?)
            .add_service(reflection().build_v1alpha().map_err(start_error)?)
            .serve_with_incoming_shutdown(incoming(listener), async move { drain.notified().await });
        tracing::info!(grpc = %address, "serving");

        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            error = keep_rules(&watch, &health) => return Err(error),
            () = shutdown => {}
        }
        tracing::info!(longest = ?settings.drain_timeout, "draining");
        set_health(&health, false).await;
        draining.notify_one();
        match tokio::time::timeout(settings.drain_timeout, server).await {
            Ok(ended) => ended?,
            Err(_) => tracing::warn!("calls were still under way when the time to drain was over"),
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Connections, each without delay: a decision is one small message, and must not wait for another to travel with.
fn incoming(
    listener: TcpListener,
) -> impl tokio_stream::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt as _;
    TcpListenerStream::new(listener).map(|connection| {
        connection.inspect(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "a connection is gone already");
            }
        })
    })
}

/// Waits for rules if there are none, and loads them again on SIGHUP. Returns only what keeps it from that.
async fn keep_rules(watch: &Arc<Watch>, health: &HealthReporter) -> Error {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return Error::Start(format!("cannot wait for SIGHUP: {error}")),
    };
    loop {
        tokio::select! {
            () = Arc::clone(watch).loaded(), if !watch.is_loaded() => {}
            _ = hangup.recv() => {
                let watch = Arc::clone(watch);
                // Its failures are told of in the log, and the last good rules stay.
                _ = tokio::task::spawn_blocking(move || watch.reload()).await;
            }
        }
        set_health(health, watch.is_loaded()).await;
    }
}

async fn set_health(health: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}
