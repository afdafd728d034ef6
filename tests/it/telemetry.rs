//! What weir tells of itself: metrics and traces at a real receiver, text that others can read, logs.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use opentelemetry_proto::tonic::metrics::v1::metric;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::Request;
use weir::settings::Settings;
use weir::telemetry::otlp::{Extras, Sender};
use weir::telemetry::settings::{Protocol, Sampling, TelemetrySettings};

use crate::support::certificates::Authority;
use crate::support::collector::{Collector, attribute};
use crate::support::python;
use crate::support::redis::RedisServer;
use crate::support::server::{Server, request, rules, settings};

const RULES: &str = "
domain: api
descriptors:
  - { key: user, rate_limit: { unit: day, requests_per_unit: 3, name: few } }
  - { key: soft, shadow_mode: true, rate_limit: { unit: day, requests_per_unit: 1 } }
  - { key: told, detailed_metric: true, rate_limit: { unit: day, requests_per_unit: 3 } }
";

/// The trace and the span of a caller.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn telemetry(collector: &Collector, protocol: Protocol, traces: Sampling) -> TelemetrySettings {
    TelemetrySettings {
        otlp_endpoint: Some(collector.endpoint.clone()),
        otlp_protocol: protocol,
        otlp_interval: Duration::from_millis(100),
        traces,
        ..TelemetrySettings::default()
    }
}

/// Settings by which there are two connections to Redis, one for each thread.
fn on_two_threads(rules: &Path) -> Settings {
    let mut settings = settings(rules);
    settings.serving.threads = NonZeroUsize::new(2);
    settings
}

fn traced(flags: &str, key: &str) -> Request<weir::proto::RateLimitRequest> {
    let mut request = Request::new(request("api", &[(key, b"ann")]));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{SPAN}-{flags}").parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_reach_a_collector_over_grpc_and_http() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = match protocol {
            Protocol::Grpc => Collector::grpc().await,
            Protocol::Http => Collector::http().await,
        };
        let rules = rules(RULES);
        let server = Server::start(Settings {
            telemetry: telemetry(&collector, protocol, Sampling::Off),
            ..settings(rules.path())
        })
        .await;
        let mut client = server.client().await;
        for _ in 0..5 {
            client.should_rate_limit(request("api", &[("user", b"ann")])).await.unwrap();
        }
        let series =
            |outcome| [("domain", "api"), ("rule", "few"), ("outcome", outcome), ("source", "local")];
        collector
            .wait_for("count of denials", |got| {
                (got.count("weir.decisions", &series("over_limit")) == Some(2)).then_some(())
            })
            .await;
        collector.now(|got| {
            assert_eq!(got.count("weir.decisions", &series("ok")), Some(2));
            assert_eq!(got.count("weir.decisions", &series("near_limit")), Some(1));
            assert_eq!(got.count("weir.calls", &[("result", "over_limit")]), Some(2));
            assert_eq!(got.resource("service.name").as_deref(), Some("weir"));
            assert!(got.resource("service.instance.id").is_some());
            let duration = got.metric("weir.call.duration").unwrap();
            let Some(metric::Data::Histogram(told)) = &duration.data else { panic!("{duration:?}") };
            assert_eq!((told.data_points[0].count, &*duration.unit), (5, "s"));
            assert_eq!(told.data_points[0].bucket_counts.iter().sum::<u64>(), 5);
        });
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_last_is_sent_before_the_end() {
    let collector = Collector::grpc().await;
    let rules = rules(RULES);
    let mut telemetry = telemetry(&collector, Protocol::Grpc, Sampling::Ratio(1.0));
    telemetry.otlp_interval = Duration::from_secs(3_600);
    let server = Server::start(Settings { telemetry, ..settings(rules.path()) }).await;
    let mut client = server.client().await;
    client.should_rate_limit(request("api", &[("user", b"ann")])).await.unwrap();
    drop(client);
    server.stop().await.unwrap();
    collector.now(|got| {
        assert_eq!(got.count("weir.calls", &[("result", "ok")]), Some(1));
        assert_eq!(got.spans().count(), 1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_continues_its_callers_trace_and_its_batch_to_redis_is_linked() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = match protocol {
            Protocol::Grpc => Collector::grpc().await,
            Protocol::Http => Collector::http().await,
        };
        let (redis, rules) = (RedisServer::start(), rules(RULES));
        let server = Server::start(Settings {
            redis: Some(redis.url().into()),
            redis_timeout: Duration::from_secs(5),
            telemetry: telemetry(&collector, protocol, Sampling::Parent),
            ..on_two_threads(rules.path())
        })
        .await;
        let mut client = server.client().await;
        // Until Redis is connected, calls are answered without it.
        let is_connected = |line: &str| line.starts_with("weir_redis_connections{") && line.ends_with(" 2.0");
        let connected = async {
            while !server.telemetry.render(None).1.lines().any(is_connected) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let connected = tokio::time::timeout(Duration::from_secs(20), connected).await;
        assert!(connected.is_ok(), "Redis is not connected: {}", server.telemetry.render(None).1);
        client.should_rate_limit(traced("00", "told")).await.unwrap();
        client.should_rate_limit(traced("01", "user")).await.unwrap();
        let text = server.telemetry.render(Some("application/openmetrics-text")).1;
        assert!(
            text.lines()
                .any(|line| line.starts_with("weir_call_duration_seconds_bucket") && line.contains(TRACE)),
            "{text}"
        );
        drop(client);
        server.stop().await.unwrap();
        collector.now(|got| {
            let spans: Vec<_> = got.spans().collect();
            assert_eq!(spans.len(), 2, "only those of the call that is sampled: {spans:?}");
            let call = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
            assert_eq!(call.name, "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
            assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.into(), SPAN.into()));
            assert_eq!(attribute(&call.attributes, "weir.domain").as_deref(), Some("api"));
            assert_eq!(attribute(&call.attributes, "weir.result").as_deref(), Some("ok"));
            assert_eq!(attribute(&call.attributes, "rpc.grpc.status_code").as_deref(), Some("0"));
            let batch = spans.iter().find(|span| span.kind() == SpanKind::Client).unwrap();
            assert_eq!((&batch.trace_id, &batch.parent_span_id), (&call.trace_id, &call.span_id));
            assert_eq!(batch.links.len(), 1);
            assert_eq!((&batch.links[0].trace_id, &batch.links[0].span_id), (&call.trace_id, &call.span_id));
            assert_eq!(attribute(&batch.attributes, "weir.batch.calls").as_deref(), Some("1"));
            assert!(call.start_time_unix_nano <= batch.start_time_unix_nano);
            assert!(batch.end_time_unix_nano <= call.end_time_unix_nano);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_callers_word_are_traced_by_lot() {
    for (share, least, most) in [(1.0, 200, 200), (0.5, 60, 140), (0.0, 0, 0)] {
        let collector = Collector::grpc().await;
        let rules = rules(RULES);
        let server = Server::start(Settings {
            telemetry: telemetry(&collector, Protocol::Grpc, Sampling::Ratio(share)),
            ..settings(rules.path())
        })
        .await;
        let mut client = server.client().await;
        for _ in 0..200 {
            client.should_rate_limit(request("api", &[("user", b"ann")])).await.unwrap();
        }
        drop(client);
        server.stop().await.unwrap();
        let spans = collector.now(|got| got.spans().count());
        assert!((least..=most).contains(&spans), "{spans} of 200 at {share}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_the_environment_go_with_each_report() {
    let variable =
        |name: &str| (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| "x-token=one%20two".to_owned());
    let extras = Extras::from_env(variable).unwrap();
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = match protocol {
            Protocol::Grpc => Collector::grpc().await,
            Protocol::Http => Collector::http().await,
        };
        let sender = Sender::new(&collector.endpoint, protocol, &extras).unwrap();
        assert!(sender.metrics(Default::default()).await);
        collector.now(|got| assert_eq!(got.tokens, ["one two"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_disturbs_no_call_and_no_end() {
    let rules = rules(RULES);
    let telemetry = TelemetrySettings {
        otlp_endpoint: Some("http://127.0.0.1:1".into()),
        otlp_interval: Duration::from_millis(100),
        traces: Sampling::Ratio(1.0),
        ..TelemetrySettings::default()
    };
    let server = Server::start(Settings { telemetry, ..settings(rules.path()) }).await;
    let mut client = server.client().await;
    for _ in 0..100 {
        client.should_rate_limit(request("api", &[("user", b"ann")])).await.unwrap();
    }
    drop(client);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_holds_up_no_call_and_the_end_for_some_seconds_at_most() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        // Connections come into the system's queue, and nobody takes them out.
        let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rules = rules(RULES);
        let telemetry = TelemetrySettings {
            otlp_endpoint: Some(format!("http://{}", deaf.local_addr().unwrap())),
            otlp_protocol: protocol,
            otlp_interval: Duration::from_millis(100),
            traces: Sampling::Ratio(1.0),
            ..TelemetrySettings::default()
        };
        let server = Server::start(Settings { telemetry, ..settings(rules.path()) }).await;
        let mut client = server.client().await;
        let calls = async {
            for _ in 0..100 {
                client.should_rate_limit(request("api", &[("user", b"ann")])).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), calls).await.expect("nobody waits for the collector");
        drop(client);
        tokio::time::timeout(Duration::from_secs(30), server.stop()).await.expect("bounded").unwrap();
    }
}

/// Python's own parsers of both formats, which are strict, read every series.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_read_both_text_formats() {
    let collector = Collector::grpc().await;
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let server = Server::start(Settings {
        redis: Some(redis.url().into()),
        telemetry: telemetry(&collector, Protocol::Grpc, Sampling::Ratio(1.0)),
        ..settings(rules.path())
    })
    .await;
    let mut client = server.client().await;
    for value in [&b"ann"[..], b"\xff\"\n\\{}", b""] {
        for key in ["user", "told", "unknown"] {
            // Also what is answered UNAVAILABLE, before Redis is connected, is counted.
            _ = client.should_rate_limit(request("api", &[(key, value)])).await;
        }
    }
    _ = client.should_rate_limit(request("elsewhere", &[("user", b"ann")])).await;
    for (name, accept) in [("text", None), ("openmetrics", Some("application/openmetrics-text"))] {
        let (content_type, text) = server.telemetry.render(accept);
        assert!(content_type.contains(if accept.is_some() { "openmetrics" } else { "text/plain" }));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let read = python::run("metrics.py", &[name, file.path().to_str().unwrap()]);
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(read.trim(), samples.to_string(), "{text}");
        if accept.is_none() {
            // Prometheus's own opinion of names, units and types.
            let lint = std::process::Command::new("promtool")
                .args(["check", "metrics"])
                .stdin(std::fs::File::open(file.path()).unwrap())
                .output()
                .expect("promtool is there; .ci/run says how to get it");
            assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stderr));
        }
    }
    drop(client);
    server.stop().await.unwrap();
}

/// Waits until what is told to Prometheus has a line with this beginning whose figure is so.
async fn until(server: &Server, series: &str, is_so: impl Fn(f64) -> bool) {
    let told = async {
        loop {
            let text = server.telemetry.render(None).1;
            let figure = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
            if figure.is_some_and(&is_so) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), told).await;
    assert!(told.is_ok(), "{series} does not come to it:\n{}", server.telemetry.render(None).1);
}

/// Every figure about Redis, while it is there and when it has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_does_and_what_is_done_without_it_is_told_in_figures() {
    let collector = Collector::grpc().await;
    let (mut redis, rules) = (RedisServer::start(), rules(RULES));
    let server = Server::start(Settings {
        redis: Some(redis.url().into()),
        redis_timeout: Duration::from_secs(5),
        telemetry: telemetry(&collector, Protocol::Grpc, Sampling::Parent),
        ..on_two_threads(rules.path())
    })
    .await;
    let mut client = server.client().await;
    let of = format!("store=\"default\",node=\"{}\"", redis.host());
    until(&server, &format!("weir_redis_connections{{{of}}}"), |count| count == 2.0).await;
    until(&server, &format!("weir_redis_replicas{{{of}}}"), |count| count == 1.0).await;
    for (key, times) in [("user", 5), ("soft", 2)] {
        for _ in 0..times {
            client.should_rate_limit(traced("01", key)).await.unwrap();
        }
    }
    let few = |outcome: &str, source: &str| {
        format!(
            "weir_decisions_total{{domain=\"api\",rule=\"few\",outcome=\"{outcome}\",source=\"{source}\"}}"
        )
    };
    let batches = format!("weir_redis_batch_duration_seconds_count{{{of}}}");
    for (series, figure) in [
        (few("ok", "redis"), 2.0),
        (few("near_limit", "redis"), 1.0),
        (few("over_limit", "redis"), 1.0),
        (few("over_limit", "remembered"), 1.0),
        (
            "weir_decisions_total{domain=\"api\",rule=\"soft\",outcome=\"shadowed\",source=\"redis\"}".into(),
            1.0,
        ),
        ("weir_hits_total{domain=\"api\",rule=\"few\",outcome=\"over_limit\"}".into(), 2.0),
        (format!("weir_redis_queue_length{{{of}}}"), 0.0),
        (format!("weir_redis_evicts{{{of}}}"), 0.0),
        (format!("weir_redis_disagreements_total{{{of}}}"), 0.0),
        (format!("weir_redis_heartbeats_failed_total{{{of}}}"), 0.0),
        (format!("weir_breaker_state{{{of},state=\"closed\"}}"), 1.0),
        (format!("weir_breaker_openings_total{{{of}}}"), 0.0),
        ("weir_local_owed".into(), 0.0),
    ] {
        until(&server, &series, |told| told == figure).await;
    }
    // Probes have none.
    until(&server, &batches, |count| count >= 6.0).await;
    until(&server, &format!("weir_redis_batch_calls_sum{{{of}}}"), |calls| calls >= 6.0).await;
    let text = server.telemetry.render(Some("application/openmetrics-text")).1;
    let example =
        |line: &str| line.starts_with("weir_redis_batch_duration_seconds_bucket") && line.contains(TRACE);
    assert!(text.lines().any(example), "{text}");

    redis.kill();
    until(&server, &format!("weir_redis_connections{{{of}}}"), |count| count == 0.0).await;
    // Calls that Redis does not decide are decided here, and open the circuit.
    while server.telemetry.render(None).1.contains(&format!("weir_breaker_state{{{of},state=\"open\"}} 0")) {
        client.should_rate_limit(request("api", &[("told", b"ann")])).await.unwrap();
    }
    until(&server, &format!("weir_breaker_openings_total{{{of}}}"), |count| count >= 1.0).await;
    until(&server, &format!("weir_redis_errors_total{{{of},reason=\"unreachable\"}}"), |count| count >= 1.0)
        .await;
    until(&server, "weir_local_buckets", |count| count >= 1.0).await;
    until(&server, "weir_local_buckets_limit", |count| count >= 1e6).await;
    until(&server, "weir_local_owed", |count| count >= 1.0).await;
    let local = "weir_decisions_total{domain=\"api\",rule=\"told\",outcome=\"ok\",source=\"local\"}";
    until(&server, local, |count| count >= 1.0).await;
    drop(client);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_behind_tls_is_trusted_by_its_authority_and_shown_a_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.sign("weir.example.org").write(directory.path(), "weir");
    let [ca, foreign] = ["ca.pem", "foreign.pem"].map(|name| directory.path().join(name));
    std::fs::write(&ca, authority.pem()).unwrap();
    std::fs::write(&foreign, stranger.pem()).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = match protocol {
            Protocol::Grpc => Collector::grpc().await,
            Protocol::Http => Collector::http().await,
        };
        let collector = collector.behind_tls(&authority).await;
        for (trusted, shows, is_taken) in [
            (Some(&ca), true, true),
            (Some(&ca), false, false),
            (Some(&foreign), true, false),
            (None, true, false),
        ] {
            let variable = |name: &str| match name {
                "OTEL_EXPORTER_OTLP_CERTIFICATE" => trusted.map(|ca| path(ca)),
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" => shows.then(|| path(&certificate)),
                "OTEL_EXPORTER_OTLP_CLIENT_KEY" => shows.then(|| path(&key)),
                "OTEL_EXPORTER_OTLP_HEADERS" => Some("x-token=tls".into()),
                _ => None,
            };
            let sender =
                Sender::new(&collector.endpoint, protocol, &Extras::from_env(variable).unwrap()).unwrap();
            assert_eq!(
                sender.metrics(Default::default()).await,
                is_taken,
                "{protocol:?} {trusted:?} {shows}"
            );
            assert_eq!(sender.traces(Default::default()).await, is_taken, "{protocol:?} {trusted:?} {shows}");
        }
        collector.now(|got| {
            assert_eq!(
                (got.tokens.len(), got.traces.len()),
                (if protocol == Protocol::Grpc { 1 } else { 2 }, 1)
            )
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_traces_are_off_no_caller_can_have_a_span_made() {
    let collector = Collector::grpc().await;
    let rules = rules(RULES);
    let server = Server::start(Settings {
        telemetry: telemetry(&collector, Protocol::Grpc, Sampling::Off),
        ..settings(rules.path())
    })
    .await;
    let mut client = server.client().await;
    for _ in 0..3 {
        client.should_rate_limit(traced("01", "user")).await.unwrap();
    }
    drop(client);
    server.stop().await.unwrap();
    collector.now(|got| {
        assert_eq!(got.count("weir.calls", &[("result", "ok")]), Some(3), "metrics are sent");
        assert_eq!(got.spans().count(), 0);
    });
}
