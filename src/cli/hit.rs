//! `weir hit`: asks a running server, and prints its answer.

use std::error::Error as _;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::descriptor::DescriptorArg;
use crate::proto::{
    Code, DESCRIPTOR_SET, DescriptorStatus, Entry, RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
    RateLimitServiceClient, Unit,
};
use crate::rules::text as text_of;

/// Ask a running server about one request, and charge it
#[derive(Debug, clap::Args)]
pub(super) struct Hit {
    /// Server to ask, as host:port, URL, or unix:/path/to/socket
    #[arg(long, env = "WEIR_TARGET", value_name = "ADDR", default_value = "127.0.0.1:8081", value_parser = target)]
    target: Target,

    /// Domain, as the proxy names it
    #[arg(long)]
    domain: String,

    /// Hits to charge; 0 asks without charging
    #[arg(long, value_name = "COUNT")]
    hits: Option<u64>,

    /// Give the hits back instead of charging them
    #[arg(long)]
    give_back: bool,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    /// PEM file of the authorities that the server's certificate may be signed by, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// PEM file of a certificate to show
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// PEM file of its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Longest time to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Descriptors of the request
    #[arg(value_name = "KEY=VALUE[,KEY=VALUE]...", required = true)]
    descriptors: Vec<DescriptorArg>,
}

/// Where to ask, as it was written and as the client takes it.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    endpoint: Endpoint,
}

fn target(name: &str) -> Result<Target, String> {
    let is_url = name.contains("://") || name.starts_with("unix:");
    let url = if is_url { name.to_owned() } else { format!("http://{name}") };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|error| format!("{error}; write host:port, such as 127.0.0.1:8081"))?;
    Ok(Target { name: name.to_owned(), endpoint })
}

impl Hit {
    /// Asks, and returns the answer as text.
    pub(super) async fn run(self) -> Result<String, String> {
        let unreachable = |error: &dyn std::error::Error| {
            let mut reason = error;
            while let Some(source) = reason.source() {
                reason = source;
            }
            format!("cannot reach {}: {reason}; is weir serving there?", self.target.name)
        };
        let mut endpoint = self.target.endpoint.clone().connect_timeout(self.timeout).timeout(self.timeout);
        if self.target.name.starts_with("https://") {
            endpoint = endpoint.tls_config(self.tls()?).map_err(|error| unreachable(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| unreachable(&error))?;
        let answer = RateLimitServiceClient::new(channel).should_rate_limit(self.request()).await;
        let response = answer.map_err(|status| {
            let name = &self.target.name;
            let hint = match (is_broken(&status), name.starts_with("https://")) {
                (false, _) => "",
                (true, false) => "; if it speaks TLS, write https://",
                (true, true) => "; if it asks for a certificate, --cert and --key show one",
            };
            let verb = if hint.is_empty() { "answers" } else { "breaks off:" };
            format!("{name} {verb} {:?}: {}{hint}", status.code(), status.message())
        })?;
        let response = response.get_ref();
        if self.json {
            return json(response);
        }
        // A denial that waiting cures says how long; without that, something was asked that never fits.
        let never = !response.response_headers_to_add.iter().any(|header| header.key == "retry-after");
        Ok(text(&self.descriptors, response, never))
    }

    /// Whom to trust, and what to show.
    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let config = ClientTlsConfig::new();
        let config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(read(ca)?)),
            None => config.with_native_roots(),
        };
        Ok(match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => config.identity(Identity::from_pem(read(cert)?, read(key)?)),
            _ => config,
        })
    }

    fn request(&self) -> RateLimitRequest {
        request(&self.domain, &self.descriptors, self.hits, self.give_back)
    }
}

/// Whether this is no answer: the connection has ended before there was one, as those do that the other side refuses.
fn is_broken(status: &tonic::Status) -> bool {
    let mut reason = status.source();
    while let Some(error) = reason {
        if error.is::<tonic::TimeoutExpired>() {
            return false;
        }
        reason = error.source();
    }
    status.source().is_some()
}

/// The request that these arguments stand for.
pub(super) fn request(
    domain: &str,
    descriptors: &[DescriptorArg],
    hits: Option<u64>,
    give_back: bool,
) -> RateLimitRequest {
    let entry =
        |(key, value): &(Vec<u8>, Vec<u8>)| Entry { key: key.clone().into(), value: value.clone().into() };
    let descriptor = |descriptor: &DescriptorArg| RateLimitDescriptor {
        entries: descriptor.entries.iter().map(entry).collect(),
        hits_addend: hits,
        is_negative_hits: give_back,
        ..RateLimitDescriptor::default()
    };
    RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
        hits_addend: 0,
    }
}

/// An answer, for people. `never` says of a denial whether no waiting cures it.
pub(super) fn text(descriptors: &[DescriptorArg], response: &RateLimitResponse, never: bool) -> String {
    let mut text = format!("{}\n", code(response.overall_code));
    let overs = response.statuses.iter().filter(|status| status.code == i32::from(Code::OverLimit)).count();
    let never = match overs {
        _ if !never => None,
        1 => Some("never fits"),
        _ => Some("does not fit, or another descriptor never will"),
    };
    for (descriptor, status) in descriptors.iter().zip(&response.statuses) {
        // Writing to a String does not fail.
        _ = writeln!(text, "  {descriptor}: {}", describe(status, never));
    }
    for header in &response.response_headers_to_add {
        _ = writeln!(text, "  {}: {}", header.key, header.value);
    }
    if !response.raw_body.is_empty() {
        _ = writeln!(text, "  body: {}", text_of(&response.raw_body));
    }
    text
}

fn code(code: i32) -> &'static str {
    Code::try_from(code).unwrap_or_default().as_str_name()
}

fn describe(status: &DescriptorStatus, never: Option<&str>) -> String {
    let code = code(status.code);
    let Some(limit) = &status.current_limit else {
        let unlimited = status.limit_remaining == u32::MAX;
        return format!("{code}, {}", if unlimited { "unlimited" } else { "no limit applies" });
    };
    let unit = match Unit::try_from(limit.unit) {
        Ok(Unit::Unknown) | Err(_) => "other window".to_owned(),
        Ok(unit) => unit.as_str_name().to_lowercase(),
    };
    let name = if limit.name.is_empty() { String::new() } else { format!(" ({})", limit.name) };
    let wait = status.duration_until_reset.as_ref().map_or(0, |duration| duration.seconds);
    let reset = match Code::try_from(status.code) {
        Ok(Code::OverLimit) => never.map_or_else(|| format!("fits in {wait} s"), str::to_owned),
        _ => format!("full in {wait} s"),
    };
    format!("{code}, {} per {unit}{name}, {} left, {reset}", limit.requests_per_unit, status.limit_remaining)
}

/// The message as proto3 JSON, by the published descriptors.
fn json(response: &RateLimitResponse) -> Result<String, String> {
    let unexpected = |error: &dyn std::fmt::Display| format!("cannot write the answer as JSON: {error}");
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).map_err(|error| unexpected(&error))?;
    let descriptor = pool
        .get_message_by_name("envoy.service.ratelimit.v3.RateLimitResponse")
        .ok_or_else(|| unexpected(&"the message is not described"))?;
    let message = DynamicMessage::decode(descriptor, response.encode_to_vec().as_slice())
        .map_err(|error| unexpected(&error))?;
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::pretty(&mut json);
    message
        .serialize_with_options(&mut serializer, &SerializeOptions::new())
        .map_err(|error| unexpected(&error))?;
    json.push(b'\n');
    String::from_utf8(json).map_err(|error| unexpected(&error))
}
