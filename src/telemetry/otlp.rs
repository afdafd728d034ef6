//! Sends metrics and traces to an OpenTelemetry collector, over gRPC or HTTP.
//!
//! <https://opentelemetry.io/docs/specs/otlp/>. What cannot be delivered is not tried again: metrics are cumulative, so
//! the next report says it too; spans are lost, and that is said in the log, once until it goes well again.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::settings::Protocol;
use trust::Trust;

pub(super) mod encode;
mod trust;

/// Longest time to deliver a report, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends to one collector. Copies share what is said of its troubles.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    transport: Transport,
    timeout: Duration,
    /// Where to, for the log.
    endpoint: Uri,
    troubled: AtomicBool,
}

enum Transport {
    Grpc(Channel, MetadataMap),
    /// What is sent with each report, and TLS if the URL wants it.
    Http(Vec<(HeaderName, HeaderValue)>, Option<TlsConnector>),
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender({})", self.0.endpoint)
    }
}

/// What is sent beside the data, from the environment.
#[derive(Clone, Default)]
pub struct Extras {
    headers: Vec<(String, String)>,
    timeout: Option<Duration>,
    /// File of the authorities that the collector's certificate may be signed by, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Files of this process's own certificate and its key.
    identity: Option<(PathBuf, PathBuf)>,
}

impl std::fmt::Debug for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers are where tokens are.
        f.debug_struct("Extras").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Extras {
    /// From `OTEL_EXPORTER_OTLP_HEADERS` (`name=value,name=value`, percent-encoded), `OTEL_EXPORTER_OTLP_TIMEOUT`
    /// (milliseconds), and for TLS `OTEL_EXPORTER_OTLP_CERTIFICATE`, `…_CLIENT_CERTIFICATE` and `…_CLIENT_KEY` (files), as
    /// `variable` tells them.
    ///
    /// # Errors
    /// When one of them makes no sense. The message does not show a header's value.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
        const MILLIS: &str = "OTEL_EXPORTER_OTLP_TIMEOUT";
        let mut headers = Vec::new();
        let text = variable(HEADERS).unwrap_or_default();
        for (index, pair) in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).enumerate() {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                format!("{HEADERS}: pair {} has no `=`; write name=value,name=value", index + 1)
            })?;
            let name = name.trim().to_ascii_lowercase();
            let value = decoded(value.trim());
            let is_good = HeaderName::from_str(&name).is_ok() && HeaderValue::from_str(&value).is_ok();
            if !is_good {
                return Err(format!("{HEADERS}: pair {} is no header", index + 1));
            }
            headers.push((name, value));
        }
        let timeout = variable(MILLIS).filter(|text| !text.is_empty()).map(|text| {
            text.parse()
                .map(Duration::from_millis)
                .map_err(|_| format!("{MILLIS}: `{text}` are no milliseconds"))
        });
        let file = |name: &str| variable(&format!("OTEL_EXPORTER_OTLP_{name}")).map(PathBuf::from);
        let identity = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and …_CLIENT_KEY: set both or none".into());
            }
        };
        Ok(Self { headers, timeout: timeout.transpose()?, ca: file("CERTIFICATE"), identity })
    }
}

/// Undoes percent-encoding; what is none stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let encoded = (*first == b'%').then(|| others.split_at_checked(2)).flatten();
        let byte =
            encoded.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = match (byte, encoded) {
            (Some(_), Some((_, rest))) => rest,
            _ => others,
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Sender {
    /// Sends to the collector at `endpoint`; connects when there is something to send. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the endpoint makes no sense, or TLS to it cannot be had with these files.
    pub fn new(endpoint: &str, protocol: Protocol, extras: &Extras) -> Result<Self, String> {
        // What stands before an `@` may be a password.
        let told = endpoint.rsplit_once('@').map_or(endpoint.to_owned(), |(_, host)| format!("…@{host}"));
        let odd = |reason: &str| format!("--otlp-endpoint {told}: {reason}; write http://host:4317");
        let uri = Uri::from_str(endpoint).map_err(|error| odd(&error.to_string()))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(odd("no http or https URL")),
        };
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(odd("a host is needed, and no user in front of it"));
        }
        let timeout = extras.timeout.unwrap_or(TIMEOUT);
        let identity = extras.identity.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        let trust = is_https.then(|| Trust::read(extras.ca.as_deref(), identity)).transpose();
        let bad_files = |error: String| format!("TLS to the collector: {error}");
        let trust = trust.map_err(bad_files)?;
        let transport = match protocol {
            Protocol::Grpc => {
                let mut endpoint = Endpoint::from(uri.clone()).timeout(timeout).connect_timeout(timeout);
                if let Some(trust) = trust {
                    let tls = trust.of_channel().map_err(bad_files)?;
                    endpoint = endpoint.tls_config(tls).map_err(|error| odd(&error.to_string()))?;
                }
                let mut metadata = MetadataMap::new();
                for (name, value) in &extras.headers {
                    if let (Ok(name), Ok(value)) =
                        (MetadataKey::<Ascii>::from_str(name), MetadataValue::try_from(value))
                    {
                        metadata.insert(name, value);
                    }
                }
                Transport::Grpc(endpoint.connect_lazy(), metadata)
            }
            Protocol::Http => {
                let header = |(name, value): &(String, String)| {
                    Some((HeaderName::from_str(name).ok()?, HeaderValue::from_str(value).ok()?))
                };
                let tls = trust.map(|trust| trust.connector().map_err(bad_files)).transpose()?;
                Transport::Http(extras.headers.iter().filter_map(header).collect(), tls)
            }
        };
        Ok(Self(Arc::new(Inner { transport, timeout, endpoint: uri, troubled: AtomicBool::new(false) })))
    }

    /// Delivers metrics; whether it went well.
    pub async fn metrics(&self, report: ExportMetricsServiceRequest) -> bool {
        self.deliver("metrics", async {
            match &self.0.transport {
                Transport::Grpc(channel, metadata) => {
                    let request = tonic::Request::from_parts(metadata.clone(), Default::default(), report);
                    let sent = MetricsServiceClient::new(channel.clone()).export(request).await;
                    sent.map(|_| ()).map_err(|status| said(&status))
                }
                Transport::Http(headers, tls) => {
                    self.0.post("/v1/metrics", headers, tls.as_ref(), report.encode_to_vec()).await
                }
            }
        })
        .await
    }

    /// Delivers spans; whether it went well.
    pub async fn traces(&self, report: ExportTraceServiceRequest) -> bool {
        self.deliver("traces", async {
            match &self.0.transport {
                Transport::Grpc(channel, metadata) => {
                    let request = tonic::Request::from_parts(metadata.clone(), Default::default(), report);
                    let sent = TraceServiceClient::new(channel.clone()).export(request).await;
                    sent.map(|_| ()).map_err(|status| said(&status))
                }
                Transport::Http(headers, tls) => {
                    self.0.post("/v1/traces", headers, tls.as_ref(), report.encode_to_vec()).await
                }
            }
        })
        .await
    }

    async fn deliver(&self, what: &str, sending: impl Future<Output = Result<(), String>>) -> bool {
        let sent = tokio::time::timeout(self.0.timeout, sending).await;
        let sent = sent.unwrap_or_else(|_| Err("no answer in time".into()));
        match &sent {
            Ok(()) if self.0.troubled.swap(false, Ordering::Relaxed) => {
                tracing::info!(endpoint = %self.0.endpoint, "the collector takes reports again");
            }
            Err(error) if !self.0.troubled.swap(true, Ordering::Relaxed) => {
                tracing::warn!(endpoint = %self.0.endpoint, error, "the collector does not take {what}; trying on");
            }
            Ok(()) | Err(_) => {}
        }
        sent.is_ok()
    }
}

fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

impl Inner {
    /// Posts a report over a connection of its own: there is one every few seconds.
    async fn post(
        &self,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        tls: Option<&TlsConnector>,
        report: Vec<u8>,
    ) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let host = self.endpoint.host().unwrap_or_default();
        let port = self.endpoint.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare_host, port)).await.map_err(|error| text(&error))?;
        let authority = self.endpoint.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let path = self.endpoint.path().trim_end_matches('/').to_owned() + path;
        let mut request = Request::post(path)
            .header(http::header::HOST, authority)
            .header(http::header::CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(report))).map_err(|error| text(&error))?;
        if let Some(tls) = tls {
            let name = ServerName::try_from(bare_host.to_owned()).map_err(|error| text(&error))?;
            let stream = tls.connect(name, stream).await.map_err(|error| text(&error))?;
            exchange(TokioIo::new(stream), request).await
        } else {
            exchange(TokioIo::new(stream), request).await
        }
    }
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> Result<(), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string());
    let status = response.as_ref().map(http::Response::status);
    let outcome = match status {
        Ok(status) if status.is_success() => Ok(()),
        Ok(status) => Err(format!("it answered {status}")),
        Err(error) => Err(error.clone()),
    };
    if let Ok(response) = response {
        // Read to its end, so that the collector is not cut off in mid-sentence.
        _ = response.into_body().collect().await;
    }
    connection.abort();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_taken_from_the_environment_decoded_and_never_shown() {
        let variable = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_HEADERS" => Some("Authorization=Bearer%20s3cret, x-tenant=a=b".into()),
            "OTEL_EXPORTER_OTLP_TIMEOUT" => Some("250".into()),
            _ => None,
        };
        let extras = Extras::from_env(variable).unwrap();
        assert_eq!(extras.headers[0], ("authorization".into(), "Bearer s3cret".into()));
        assert_eq!(extras.headers[1], ("x-tenant".into(), "a=b".into()));
        assert_eq!(extras.timeout, Some(Duration::from_millis(250)));
        assert!(!format!("{extras:?}").contains("s3cret"));
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%41"), "%zzA");
        let error = Extras::from_env(|name| name.ends_with("HEADERS").then(|| "s3cret".into())).unwrap_err();
        assert!(error.contains("pair 1") && !error.contains("s3cret"), "{error}");
        let error =
            Extras::from_env(|name| name.ends_with("HEADERS").then(|| "a=x,b c=s3cret".into())).unwrap_err();
        assert!(error.contains("pair 2") && !error.contains("s3cret"), "{error}");
        assert!(Extras::from_env(|name| name.ends_with("TIMEOUT").then(|| "10s".into())).is_err());
        let error = Extras::from_env(|name| name.ends_with("CLIENT_KEY").then(|| "key.pem".into()));
        assert!(error.unwrap_err().contains("set both or none"));
    }

    #[tokio::test]
    async fn files_for_tls_that_cannot_be_used_are_said_at_the_start_and_only_matter_with_https() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let extras = Extras { ca: Some(file.clone()), ..Extras::default() };
        for protocol in [Protocol::Grpc, Protocol::Http] {
            let refused = || Sender::new("https://127.0.0.1:4317", protocol, &extras).unwrap_err();
            _ = std::fs::remove_file(&file);
            assert!(refused().contains("ca.pem: No such file"), "{}", refused());
            std::fs::write(&file, "x").unwrap();
            assert!(refused().ends_with("ca.pem: no certificate in PEM format"), "{}", refused());
            Sender::new("http://127.0.0.1:4317", protocol, &extras).unwrap();
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_makes_no_sense_is_refused_in_a_line_that_says_how_to_write_one() {
        for endpoint in
            ["collector:4317", "ftp://collector", "", "http://user:s3cret@collector:4317", "http://"]
        {
            for protocol in [Protocol::Grpc, Protocol::Http] {
                let error = Sender::new(endpoint, protocol, &Extras::default()).unwrap_err();
                assert!(error.contains("http://host:4317") && !error.contains('\n'), "{error}");
                assert!(!error.contains("s3cret"), "{error}");
            }
        }
        Sender::new("http://127.0.0.1:4317", Protocol::Grpc, &Extras::default()).unwrap();
    }
}
