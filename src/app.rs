//! Wires the parts, binds, serves until it is told to stop, and drains.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::proto::{DESCRIPTOR_SET, RateLimitServiceServer, SERVICE_NAME};
use crate::rules::{LoadError, Watch};
use crate::service::{Options, Service};
use crate::settings::Settings;
use crate::store::{KeySeed, LocalStore, RedisStore};
use crate::telemetry::metrics::{LOCAL_BUCKETS, LOCAL_BUCKETS_LIMIT, LOCAL_EVICTED, LOCAL_OVERFLOWED};
use crate::telemetry::{Metrics, Telemetry, collection};

/// Names under which health is asked for: the server as a whole, the service, and what the reference calls itself.
const HEALTH_NAMES: [&str; 3] = ["", SERVICE_NAME, "ratelimit"];

/// Why serving could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rule files are wrong.
    #[error(transparent)]
    Rules(#[from] LoadError),
    /// What was said of Redis makes no sense, or a file cannot be read.
    #[error("{0}")]
    Redis(String),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}; is another process there? --grpc takes another address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
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
    metrics: Arc<Metrics>,
    telemetry: Telemetry,
    /// Rings on SIGHUP.
    hangup: Signal,
}

impl App {
    /// Loads the rules and binds the address.
    ///
    /// A directory that is missing or empty may still fill: the app starts, not ready, and waits for it.
    ///
    /// # Errors
    /// When the rules are wrong, or the address is taken.
    pub async fn bind(settings: Settings) -> Result<Self, Error> {
        // First of all, or a SIGHUP that comes while the files are read would end the process.
        let hangup = signal(SignalKind::hangup())
            .map_err(|error| Error::Start(format!("cannot wait for SIGHUP: {error}")))?;
        let redis = settings.redis().map_err(Error::Redis)?;
        let tuning = settings.redis_tuning().map_err(Error::Redis)?;
        let clock = Clock::system();
        let watch = Arc::new(Watch::new(&settings.rules, clock.clone()));
        let loading = Arc::clone(&watch);
        match tokio::task::spawn_blocking(move || loading.start()).await {
            Ok(Ok(()) | Err(LoadError::Nothing { .. })) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(error) => return Err(Error::Start(format!("loading the rules ended: {error}"))),
        }
        let bind_error = |source| Error::Bind { address: settings.grpc, source };
        let listener = TcpListener::bind(settings.grpc).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let limiter = Arc::new(match redis {
            Some(redis) => {
                let store = RedisStore::new(&redis, tuning)?;
                let (timeout, remember) = (settings.redis_timeout, settings.remember_denials);
                Limiter::shared(store, KeySeed::random()?, timeout, remember, clock)
            }
            None => Limiter::in_memory(LocalStore::new(settings.max_buckets, clock), KeySeed::random()?),
        });
        let metrics = Arc::new(Metrics::new(settings.max_detailed_series));
        observe(&metrics, &limiter, &watch);
        let telemetry = Telemetry::new(Arc::clone(&metrics), watch.current());
        Ok(Self { settings, listener, address, watch, limiter, metrics, telemetry, hangup })
    }

    /// What this server tells of itself.
    #[must_use]
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
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
        let Self { settings, listener, address, watch, limiter, metrics, mut hangup, .. } = self;
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
                max_debt: settings.max_debt,
                dynamic_metadata: settings.dynamic_metadata,
                near_limit: settings.near_limit,
            },
            metrics,
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
            .serve_with_incoming_shutdown(incoming(TcpListenerStream::new(listener)), async move {
                drain.notified().await;
            });
        tracing::info!(grpc = %address, "serving");

        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            never = Arc::clone(&watch).follow(settings.following()) => match never {},
            never = obey(&watch, &mut hangup) => match never {},
            never = keep_health(&watch, &health) => match never {},
            () = shutdown => {}
        }
        tracing::info!(longest = ?settings.drain_timeout, "draining");
        set_health(&health, false).await;
        draining.notify_one();
        match tokio::time::timeout(settings.drain_timeout, server).await {
            Ok(ended) => ended?,
            Err(_) => tracing::warn!("connections were still open when the time to drain was over"),
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// What metrics call the store that buckets are in where nothing else is said.
const DEFAULT_STORE: &str = "default";

/// Has figures asked for that their owners keep.
#[allow(clippy::cast_precision_loss, reason = "so many buckets there are not")]
fn observe(metrics: &Metrics, limiter: &Arc<Limiter>, watch: &Arc<Watch>) {
    let (limiter, watch) = (Arc::clone(limiter), Arc::clone(watch));
    metrics.observe(move |to| {
        collection::collect_status(&watch.status(), to);
        if let Some(redis) = limiter.redis() {
            redis.nodes().iter().for_each(|node| node.collect(DEFAULT_STORE, to));
        }
        if let Some(store) = limiter.memory() {
            let usage = store.usage();
            to.number(&LOCAL_BUCKETS, &[], usage.buckets as f64);
            to.number(&LOCAL_BUCKETS_LIMIT, &[], usage.capacity as f64);
            to.count(&LOCAL_EVICTED, &[], usage.evicted);
            to.count(&LOCAL_OVERFLOWED, &[], usage.overflowed);
        }
    });
}

/// How long no connection is accepted after one could not be: the system is out of something, most likely of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections, each without delay: a decision is one small message, and must not wait for another to travel with.
///
/// When none can be accepted it says so, once until it goes well again, and waits: trying on at once would take a core.
fn incoming<C: Accepted>(
    connections: impl Stream<Item = io::Result<C>>,
) -> impl Stream<Item = io::Result<C>> {
    let troubled = Arc::new(AtomicBool::new(false));
    connections.then(move |connection| {
        let troubled = Arc::clone(&troubled);
        async move {
            match &connection {
                Ok(connection) => {
                    troubled.store(false, Ordering::Relaxed);
                    if let Err(error) = connection.send_at_once() {
                        tracing::debug!(%error, "a connection is gone already");
                    }
                }
                Err(error) => {
                    if !troubled.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "connections cannot be accepted; trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            connection
        }
    })
}

/// A connection that has been accepted.
trait Accepted {
    /// Sends small messages without waiting for more.
    fn send_at_once(&self) -> io::Result<()>;
}

impl Accepted for TcpStream {
    fn send_at_once(&self) -> io::Result<()> {
        self.set_nodelay(true)
    }
}

/// Has the rules looked at on each SIGHUP, for ever.
async fn obey(watch: &Watch, hangup: &mut Signal) -> Infallible {
    loop {
        hangup.recv().await;
        watch.look();
    }
}

/// Says that it is serving as soon as rules are in force.
async fn keep_health(watch: &Watch, health: &HealthReporter) -> Infallible {
    let mut changes = watch.changes();
    loop {
        set_health(health, watch.is_loaded()).await;
        if changes.changed().await.is_err() {
            // Cannot be: the watch is there.
            std::future::pending::<()>().await;
        }
    }
}

async fn set_health(health: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Accepted for u8 {
        fn send_at_once(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_cannot_be_accepted_are_tried_for_ten_times_a_second_not_in_a_loop() {
        let out_of_files = || Err(io::Error::from_raw_os_error(24));
        let mut attempts: Vec<io::Result<u8>> = (0..10).map(|_| out_of_files()).collect();
        attempts.push(Ok(1));
        #[allow(clippy::disallowed_methods, reason = "the runtime's paused clock")]
        let start = tokio::time::Instant::now();
        let connections: Vec<io::Result<u8>> = incoming(tokio_stream::iter(attempts)).collect().await;
        assert_eq!(connections.last().unwrap().as_ref().unwrap(), &1);
        assert_eq!(start.elapsed(), ACCEPT_PAUSE * 10);
    }
}
