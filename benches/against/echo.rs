//! The stock server: tonic, and an answer that is always the same.

use std::str::FromStr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use weir::proto::{
    Code, DescriptorStatus, RateLimit, RateLimitRequest, RateLimitResponse, RateLimitService,
    RateLimitServiceServer, Unit,
};

/// The first argument of a process that is to be an echo.
pub const ROLE: &str = "echo";

/// On which runtime it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The one that tokio makes when nothing is said: threads that take work from one another.
    Stock,
    /// A runtime of one thread for each core, among which connections are dealt out.
    PerCore,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stock" => Ok(Self::Stock),
            "per-core" => Ok(Self::PerCore),
            _ => Err(format!("no shape of an echo: {text}")),
        }
    }
}

impl Shape {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::PerCore => "per-core",
        }
    }
}

struct Echo(RateLimitResponse);

#[tonic::async_trait]
impl RateLimitService for Echo {
    async fn should_rate_limit(
        &self,
        _: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }
}

/// What weir answers to a request that is let through, in length and shape.
fn answer(descriptors: usize) -> RateLimitResponse {
    let limit = RateLimit { requests_per_unit: 1_000_000, unit: Unit::Year.into(), ..RateLimit::default() };
    let status = DescriptorStatus {
        code: Code::Ok.into(),
        current_limit: Some(limit),
        limit_remaining: 999_999,
        duration_until_reset: Some(prost_types::Duration { seconds: 32, nanos: 0 }),
        ..DescriptorStatus::default()
    };
    RateLimitResponse {
        overall_code: Code::Ok.into(),
        statuses: vec![status; descriptors],
        ..RateLimitResponse::default()
    }
}

/// Serves until the process is ended, and says on standard output where.
pub fn serve(shape: Shape, descriptors: usize) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    println!("{}", listener.local_addr().unwrap());
    match shape {
        Shape::Stock => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                serve_on(TcpIncoming::from(listener).with_nodelay(Some(true)), descriptors).await;
            });
        }
        Shape::PerCore => per_core(listener, descriptors),
    }
}

async fn serve_on(incoming: impl Stream<Item = std::io::Result<TcpStream>>, descriptors: usize) {
    let service = RateLimitServiceServer::new(Echo(answer(descriptors)));
    Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
}

fn per_core(listener: std::net::TcpListener, descriptors: usize) {
    let cores = std::thread::available_parallelism().unwrap().get();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut dealt = Vec::new();
    for _ in 0..cores {
        let (sender, mut accepted) = mpsc::unbounded_channel::<std::net::TcpStream>();
        dealt.push(sender);
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let (sender, here) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(stream) = accepted.recv().await {
                        _ = sender.send(TcpStream::from_std(stream).unwrap());
                    }
                });
                serve_on(UnboundedReceiverStream::new(here).map(Ok), descriptors).await;
            });
        });
    }
    runtime().block_on(async {
        let listener = TcpListener::from_std(listener).unwrap();
        for core in dealt.iter().cycle() {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            _ = core.send(stream.into_std().unwrap());
        }
    });
}
