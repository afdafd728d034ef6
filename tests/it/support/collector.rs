//! An OpenTelemetry collector in this process, on a free port, that keeps what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::certificates::{Authority, tls};

/// How long something may take to arrive before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A collector that runs until it is dropped.
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    received: Received,
    running: Vec<JoinHandle<()>>,
}

/// What has been received.
#[derive(Clone)]
pub(crate) struct Received {
    inner: Arc<Mutex<Inner>>,
    more: Arc<watch::Sender<()>>,
}

#[derive(Default)]
pub(crate) struct Inner {
    /// The last report.
    pub(crate) metrics: ExportMetricsServiceRequest,
    pub(crate) traces: Vec<ExportTraceServiceRequest>,
    /// Values of the header `x-token`, one a report.
    pub(crate) tokens: Vec<String>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.running.iter().for_each(JoinHandle::abort);
    }
}

impl Collector {
    /// One that speaks gRPC.
    pub(crate) async fn grpc() -> Self {
        let (listener, address) = bind().await;
        let received = Received::new();
        let server = tonic::transport::Server::builder()
            .add_service(MetricsServiceServer::new(received.clone()))
            .add_service(TraceServiceServer::new(received.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let running = tokio::spawn(async move { server.await.unwrap() });
        Self { endpoint: format!("http://{address}"), received, running: vec![running] }
    }

    /// One that speaks HTTP, below a path.
    pub(crate) async fn http() -> Self {
        let (listener, address) = bind().await;
        let received = Received::new();
        let keeping = received.clone();
        let running = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, keeping.clone()));
            }
        });
        Self { endpoint: format!("http://{address}/otlp"), received, running: vec![running] }
    }

    /// The same over TLS, as `localhost`, for clients who can show a certificate of this authority.
    pub(crate) async fn behind_tls(mut self, authority: &Authority) -> Self {
        let (listener, address) = bind().await;
        let acceptor = tls::acceptor(authority, "localhost");
        let behind = self.endpoint.trim_start_matches("http://");
        let (behind, path) = behind.split_once('/').map_or((behind, ""), |(host, path)| (host, path));
        let (behind, path) = (behind.to_owned(), path.to_owned());
        self.running.push(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, behind) = (acceptor.clone(), behind.clone());
                tokio::spawn(async move {
                    // One who shows nothing is sent away, which is what some tests are about.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut behind = TcpStream::connect(behind).await.unwrap();
                    _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        }));
        self.endpoint = format!("https://localhost:{}/{path}", address.port());
        self
    }

    /// Waits until what has been received answers a question.
    pub(crate) async fn wait_for<T>(&self, what: &str, mut answer: impl FnMut(&Inner) -> Option<T>) -> T {
        let mut more = self.received.more.subscribe();
        let waiting = async {
            loop {
                if let Some(answer) = answer(&self.received.inner.lock().unwrap()) {
                    return answer;
                }
                more.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no {what} in time"))
    }

    /// What has been received so far.
    pub(crate) fn now<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.received.inner.lock().unwrap())
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl Received {
    fn new() -> Self {
        Self { inner: Arc::default(), more: Arc::new(watch::Sender::new(())) }
    }

    fn keep(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap());
        self.more.send_replace(());
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let token = request.metadata().get("x-token").map(|token| token.to_str().unwrap().to_owned());
        self.keep(|inner| {
            inner.tokens.extend(token);
            inner.metrics = request.into_inner();
        });
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(|inner| inner.traces.push(request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Takes one report over HTTP.
async fn answer(stream: TcpStream, received: Received) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut length, mut token, mut is_protobuf) = (String::new(), 0, None, false);
    stream.read_line(&mut line).await.unwrap();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    assert!(line.starts_with("POST "), "{line}");
    loop {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ").unwrap();
        match name {
            "content-length" => length = value.parse().unwrap(),
            "content-type" => is_protobuf = value == "application/x-protobuf",
            "x-token" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    assert!(is_protobuf);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    received.keep(|inner| {
        inner.tokens.extend(token);
        match path.as_str() {
            "/otlp/v1/metrics" => {
                inner.metrics = ExportMetricsServiceRequest::decode(&*body).unwrap();
            }
            "/otlp/v1/traces" => {
                inner.traces.push(ExportTraceServiceRequest::decode(&*body).unwrap());
            }
            path => panic!("nothing is expected at {path}"),
        }
    });
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
}

impl Inner {
    /// An attribute of the process that reports metrics.
    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        let resource = self.metrics.resource_metrics.first()?.resource.as_ref()?;
        attribute(&resource.attributes, key)
    }

    /// A metric of the last report.
    pub(crate) fn metric(&self, name: &str) -> Option<&Metric> {
        let scopes = self.metrics.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).find(|metric| metric.name == name)
    }

    /// A count of the last report, of the series with these attributes.
    pub(crate) fn count(&self, name: &str, attributes: &[(&str, &str)]) -> Option<i64> {
        let Some(metric::Data::Sum(sum)) = &self.metric(name)?.data else { panic!("{name} is no sum") };
        let is_it = |of: &[KeyValue]| {
            attributes.iter().all(|(key, value)| attribute(of, key).as_deref() == Some(*value))
        };
        match sum.data_points.iter().find(|point| is_it(&point.attributes))?.value? {
            number_data_point::Value::AsInt(count) => Some(count),
            number_data_point::Value::AsDouble(_) => None,
        }
    }

    /// All spans.
    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        let resources = self.traces.iter().flat_map(|report| &report.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
    }
}

/// An attribute as a text.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}
