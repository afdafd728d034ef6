//! Wires the parts, binds, serves until it is told to stop, and drains.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::clock::{self, Clock};
use crate::http::guard::Guard;
use crate::http::{self, Http};
use crate::limiter::Limiter;
use crate::rules::{LoadError, Watch};
use crate::serve::grpc::Grpc;
use crate::serve::tls::{Tls, TlsFiles};
use crate::serve::{Cores, Course, Endpoint, Incoming, Listener, Overload, Phase, Tally, accept};
use crate::service::{Options, Service};
use crate::settings::{HttpEndpoint, HttpSettings, Serving, Settings};
use crate::store::{KeySeed, LocalStore, RedisStore, Threads};
use crate::telemetry::denials::DenialLog;
use crate::telemetry::export::Export;
use crate::telemetry::{Metrics, Recorder, Telemetry};

mod figures;
mod health;

/// How long HTTP may take to finish after all else has.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// How long it may take to tell every Redis that this process has gone.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Why serving could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rule files are wrong.
    #[error(transparent)]
    Rules(#[from] LoadError),
    /// Settings that make no sense together, or a file of theirs that cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The address cannot be had.
    #[error(
        "cannot listen on {address}: {source}; is another process there? --grpc and --http take other addresses"
    )]
    Bind {
        /// The address.
        address: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no randomness to give.
    #[error("no randomness for the bucket keys: {0}")]
    Random(#[from] getrandom::Error),
    /// A listener ended by itself.
    #[error("a listener ended by itself")]
    Ended,
    /// Signals cannot be waited for, or the reflection service cannot be made.
    #[error("{0}")]
    Start(String),
}

/// How a server is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// When everybody has had time to notice.
    Gently,
    /// When what is under way is finished: somebody waits for it.
    Soon,
}

/// A server that is bound and ready to run.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    grpc: Vec<Listener>,
    http: Option<Listener>,
    guard: Guard,
    grpc_tls: Option<Arc<Tls>>,
    http_tls: Option<Arc<Tls>>,
    watch: Arc<Watch>,
    cores: Arc<Cores>,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    telemetry: Telemetry,
    export: Option<Export>,
    clock: Clock,
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
        let redis = settings.redis().map_err(Error::Settings)?;
        let named = settings.redis_stores().map_err(Error::Settings)?;
        let tuning = settings.redis_tuning().map_err(Error::Settings)?;
        let HttpSettings { http_allow, http_token_file, .. } = settings.http.clone();
        let guard = Guard::new(http_allow, http_token_file).map_err(Error::Settings)?;
        let tls = |files: Option<TlsFiles>, protocol| {
            files.map(|files| Tls::new(files, protocol).map(Arc::new)).transpose().map_err(Error::Settings)
        };
        let (grpc_tls, http_tls) =
            (tls(settings.grpc_tls.files(), b"h2")?, tls(settings.http_tls.files(), b"http/1.1")?);
        let clock = Clock::system();
        let export = Export::new(&settings.telemetry, clock.clone()).map_err(Error::Settings)?;
        let watch =
            Arc::new(Watch::new(&settings.rules, clock.clone()).with_stores(settings.redis_store_names()));
        let loading = Arc::clone(&watch);
        match tokio::task::spawn_blocking(move || loading.start()).await {
            Ok(Ok(()) | Err(LoadError::Nothing { .. })) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(error) => return Err(Error::Start(format!("loading the rules ended: {error}"))),
        }
        let mut grpc = Vec::new();
        for address in &settings.grpc {
            grpc.push(listen(address).await?);
        }
        let http = match &settings.http.http {
            HttpEndpoint(Some(address)) => Some(listen(address).await?),
            HttpEndpoint(None) => None,
        };
        let cores = Cores::start(settings.serving.threads(redis.is_some()))
            .map_err(|error| Error::Start(format!("cannot start threads: {error}; --threads takes fewer")))?;
        let limiter = Arc::new(match redis {
            Some(redis) => {
                let threads: Threads = cores.runtimes().cloned().collect();
                let mut store = RedisStore::on(threads, &redis, tuning)?;
                for (name, target) in &named {
                    store = store.with_store(name, target, tuning)?;
                }
                let failing = settings.failing();
                Limiter::shared(store, KeySeed::random()?, clock.clone(), settings.max_buckets, failing)
            }
            None => {
                Limiter::in_memory(LocalStore::new(settings.max_buckets, clock.clone()), KeySeed::random()?)
            }
        });
        let metrics = Arc::new(Metrics::new(settings.telemetry.max_detailed_series));
        figures::observe(&metrics, &limiter, &watch);
        let telemetry = Telemetry::new(Arc::clone(&metrics), watch.current());
        Ok(Self {
            settings,
            grpc,
            http,
            guard,
            grpc_tls,
            http_tls,
            watch,
            cores: Arc::new(cores),
            limiter,
            metrics,
            telemetry,
            export,
            clock,
            hangup,
        })
    }

    /// What this server tells of itself.
    #[must_use]
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
    }

    /// Where gRPC is answered.
    pub fn grpc(&self) -> impl Iterator<Item = &Endpoint> {
        self.grpc.iter().map(Listener::endpoint)
    }

    /// Where HTTP is answered, if anywhere.
    #[must_use]
    pub fn http(&self) -> Option<&Endpoint> {
        self.http.as_ref().map(Listener::endpoint)
    }

    /// Serves until `stop` comes, then finishes the calls that are under way, for as long as the settings allow.
    ///
    /// # Errors
    /// When the server ends by itself.
    pub async fn run(self, stop: impl Future<Output = Stop> + Send) -> Result<(), Error> {
        let Self { settings, watch, cores, limiter, metrics, telemetry, export, clock, mut hangup, .. } =
            self;
        let (grpc_tls, http_tls) = (self.grpc_tls, self.http_tls);
        let bounds = settings.serving.bounds();
        let Serving {
            max_connections, max_calls, overload, request_timeout, drain_delay, drain_timeout, ..
        } = settings.serving;
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let is_loaded = watch.is_loaded();
        health::set(&reporter, is_loaded).await;
        let mut recorder = Recorder::new(Arc::clone(&metrics), clock);
        recorder.denials =
            DenialLog { of_each: settings.telemetry.log_denials, with_keys: settings.telemetry.log_keys };
        recorder.traces = export.as_ref().and_then(Export::traces);
        let exporting = export.map(|export| export.start(telemetry.clone()));
        let leaving = Arc::clone(&limiter);
        let service = Service::new(
            watch.current(),
            Arc::clone(&limiter),
            Options {
                max_descriptors: settings.max_descriptors.get(),
                shadow_mode: settings.shadow_mode,
                quota_mode: settings.quota_mode,
                max_debt: settings.max_debt,
                dynamic_metadata: settings.dynamic_metadata,
                near_limit: settings.telemetry.near_limit,
                headers: settings.headers.clone(),
            },
            recorder,
        );
        let service = Arc::new(service.with_per_second(settings.redis_named.redis_per_second.clone()));
        let others = health::reflection(Routes::new(health_service))?;
        let overload = Arc::new(Overload::new(max_calls.get(), overload));
        let (tally, http_tally) = (Arc::<Tally>::default(), Arc::<Tally>::default());
        figures::observe_calls(&metrics, &overload);
        figures::observe_listener(&metrics, "grpc", &tally, grpc_tls.as_ref());
        figures::observe_listener(&metrics, "http", &http_tally, http_tls.as_ref());
        let answers = Arc::new(Grpc::new(
            Arc::clone(&service),
            settings.max_message_bytes.get(),
            others,
            Arc::clone(&overload),
            Arc::clone(&tally),
            grpc_tls.clone(),
            bounds,
        ));

        let (phase, course) = Course::new();
        let mut listeners = JoinSet::new();
        let mut addresses = Vec::new();
        for listener in self.grpc {
            addresses.push(listener.endpoint().to_string());
            let (answers, course) = (Arc::clone(&answers), course.clone());
            let connected = course.clone();
            let serve = move |incoming: Incoming| Arc::clone(&answers).serve(incoming, connected.clone());
            let (tally, cores) = (Arc::clone(&tally), Some(Arc::clone(&cores)));
            listeners.spawn(accept(listener, max_connections.get(), tally, course, cores, serve));
        }
        // Told when all calls are answered, so that probes and metrics are there until then.
        let (end_http, http_course) = Course::new();
        let mut http_listener = JoinSet::new();
        match self.http {
            Some(listener) => {
                tracing::info!(grpc = %addresses.join(","), http = %listener.endpoint(), "serving");
                let answers = Arc::new(Http {
                    guard: self.guard,
                    watch: Arc::clone(&watch),
                    limiter,
                    service,
                    overload,
                    telemetry,
                    tls: http_tls.clone(),
                    tally: Arc::clone(&http_tally),
                    course,
                    max_body: settings.max_message_bytes.get(),
                    request_timeout,
                });
                let connected = http_course.clone();
                let serve = move |incoming: Incoming| Arc::clone(&answers).serve(incoming, connected.clone());
                http_listener.spawn(accept(
                    listener,
                    http::MAX_CONNECTIONS,
                    http_tally,
                    http_course,
                    None,
                    serve,
                ));
            }
            None => tracing::info!(grpc = %addresses.join(","), "serving"),
        }

        let stop = tokio::select! {
            _ = listeners.join_next() => return Err(Error::Ended),
            Some(_) = http_listener.join_next() => return Err(Error::Ended),
            never = Arc::clone(&watch).follow(settings.following()) => match never {},
            never = obey(&watch, &mut hangup) => match never {},
            never = leaving.watch_caps() => match never {},
            never = follow(grpc_tls) => match never {},
            never = follow(http_tls) => match never {},
            never = health::keep(&watch, &reporter, is_loaded) => match never {},
            stop = stop => stop,
        };
        let deadline = clock::instant() + drain_timeout;
        let delay = if stop == Stop::Gently { drain_delay } else { Duration::ZERO };
        tracing::info!(?delay, longest = ?drain_timeout, "draining");
        health::set(&reporter, false).await;
        _ = phase.send(Phase::Draining);
        // Proxies learn by and by that no more calls should come, and send them until then.
        tokio::time::sleep_until(deadline.min(clock::instant() + delay)).await;
        _ = phase.send(Phase::Closing);
        let finished = async { while listeners.join_next().await.is_some() {} };
        if tokio::time::timeout_at(deadline, finished).await.is_err() {
            tracing::warn!(
                connections = tally.open(),
                "calls were still under way when the time to drain was over; their connections are cut"
            );
        }
        _ = end_http.send(Phase::Closing);
        let finished = async { while http_listener.join_next().await.is_some() {} };
        // Whoever asked last is to have his answer, also when the time is over.
        _ = tokio::time::timeout_at(deadline.max(clock::instant() + LAST_ANSWER), finished).await;
        // Who is not told by then finds out by itself.
        _ = tokio::time::timeout(LAST_WORD, leaving.leave()).await;
        if let Some(exporting) = exporting {
            exporting.finish().await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn listen(address: &Endpoint) -> Result<Listener, Error> {
    address.bind().await.map_err(|source| Error::Bind { address: address.clone(), source })
}

/// Follows the files of TLS, where there is any.
async fn follow(tls: Option<Arc<Tls>>) -> Infallible {
    match tls {
        Some(tls) => tls.follow().await,
        None => std::future::pending().await,
    }
}

/// Has the rules looked at on each SIGHUP, for ever.
async fn obey(watch: &Watch, hangup: &mut Signal) -> Infallible {
    loop {
        hangup.recv().await;
        watch.look();
    }
}
