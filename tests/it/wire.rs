//! The service as a gRPC client meets it: a real server, the generated client, and Python's.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tonic::transport::Endpoint;
use tonic::{Code as Grpc, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weir::proto::{
    Code, RateLimitDescriptor, RateLimitRequest, RateLimitResponse, RateLimitServiceClient, SERVICE_NAME,
};

use crate::support::frames::{self, DATA, GOAWAY, HELLO, cancel, read_frame};
use crate::support::python;
use crate::support::server::{Server, request, rules, settings};

const RULES: &str = "
domain: api
descriptors:
  - { key: user, rate_limit: { unit: hour, requests_per_unit: 3 } }
  - { key: wide, rate_limit: { unit: hour, requests_per_unit: 5000 } }
";

async fn health(server: &Server, name: &str) -> Result<ServingStatus, Grpc> {
    let request = HealthCheckRequest { service: name.into() };
    let response = HealthClient::new(server.channel().await).check(request).await;
    response.map(|response| response.into_inner().status()).map_err(|status| status.code())
}

#[tokio::test]
async fn a_limit_is_reached_over_the_wire() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let mut client = server.client().await;
    for left in [2, 1, 0] {
        let response =
            client.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap().into_inner();
        assert_eq!((response.overall_code(), response.statuses[0].limit_remaining), (Code::Ok, left));
    }
    let response = client.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap().into_inner();
    assert_eq!(response.overall_code(), Code::OverLimit);
    assert_eq!(response.response_headers_to_add[0].key, "retry-after");
    let response = client.should_rate_limit(request("api", &[("user", b"b")])).await.unwrap().into_inner();
    assert_eq!(response.overall_code(), Code::Ok);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn an_answer_has_no_headers_but_those_that_grpc_asks_for() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let answer = server.client().await.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap();
    let headers = answer.metadata().clone().into_headers();
    let names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
    // tonic adds the trailers to them.
    assert_eq!(names, ["content-type", "grpc-status"]);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_callers_on_many_connections_are_admitted_exactly_as_often_as_the_limit_says() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        let client = server.client().await;
        for _ in 0..8 {
            let mut client = client.clone();
            callers.push(tokio::spawn(async move {
                let mut admitted = 0;
                for _ in 0..100 {
                    let answer = client.should_rate_limit(request("api", &[("wide", b"x")])).await.unwrap();
                    admitted += u32::from(answer.into_inner().overall_code() == Code::Ok);
                }
                admitted
            }));
        }
    }
    let mut admitted = 0;
    for caller in callers {
        admitted += caller.await.unwrap();
    }
    // 6400 calls; one token comes back every 720 ms.
    assert!((5_000..5_060).contains(&admitted), "{admitted}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_no_text_and_values_up_to_the_message_limit_are_decided() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let mut client = server.client().await;
    let long = vec![b'x'; (4 << 20) - 100];
    for value in [&b"\xff\xfe"[..], b"\0", b"", &long] {
        for code in [Code::Ok, Code::Ok, Code::Ok, Code::OverLimit] {
            let answer = client.should_rate_limit(request("api", &[("user", value)])).await.unwrap();
            assert_eq!(answer.into_inner().overall_code(), code);
        }
    }
    let too_long = vec![b'x'; 4 << 20];
    let status = client.should_rate_limit(request("api", &[("user", &too_long)])).await.unwrap_err();
    assert_eq!(status.code(), Grpc::OutOfRange, "{status}");
    server.stop().await.unwrap();
}

/// A body in pieces, whose end comes after the last one.
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

/// What a call with this body is answered: the bytes, and the status with its message.
async fn answer<B>(server: &Server, encoding: Option<&str>, body: B) -> (Bytes, Grpc, String)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let encoding = encoding.map(|encoding| ("grpc-encoding", encoding));
    ask(server, &format!("{SERVICE_NAME}/ShouldRateLimit"), encoding, body).await
}

/// The same for a call of any method, with another header.
async fn ask<B>(server: &Server, method: &str, header: Option<(&str, &str)>, body: B) -> (Bytes, Grpc, String)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = TokioIo::new(tokio::net::TcpStream::connect(server.address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{}/{method}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/grpc".parse().unwrap())
    );
    let mut told = response.headers().clone();
    let body = response.into_body().collect().await.unwrap();
    told.extend(body.trailers().cloned().unwrap_or_default());
    let status = Status::from_header_map(&told).expect("it has a status");
    (body.to_bytes(), status.code(), status.message().to_owned())
}

#[tokio::test]
async fn a_call_is_answered_alike_however_it_comes_in_frames_and_what_is_none_as_grpc_says() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let message = request("api", &[("wide", b"x")]).encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let whole = Bytes::from([&[0][..], &length, &message].concat());
    let pieces = |at: &[usize]| {
        let mut rest = whole.clone();
        let mut pieces: VecDeque<Bytes> = at.iter().map(|at| rest.split_to(*at)).collect();
        pieces.push_back(rest);
        Pieces(pieces)
    };
    let (first, code, said) = answer(&server, None, Full::new(whole.clone())).await;
    assert_eq!((code, said.as_str(), first[0]), (Grpc::Ok, "", 0));
    assert_eq!(first.len(), 5 + u32::from_be_bytes(first[1..5].try_into().unwrap()) as usize);
    let left = |answer: &Bytes| RateLimitResponse::decode(&answer[5..]).unwrap().statuses[0].limit_remaining;
    for (before, cuts) in (1..).zip([&[][..], &[1], &[5], &[9], &[3, 4, 5], &[0, 7]]) {
        let (answered, code, said) = answer(&server, None, pieces(cuts)).await;
        assert_eq!((code, said.as_str()), (Grpc::Ok, ""), "{cuts:?}");
        assert_eq!((answered.len(), left(&answered)), (first.len(), left(&first) - before), "{cuts:?}");
    }
    let mut compressed = whole.to_vec();
    compressed[0] = 1;
    let garbage = [&[0, 0, 0, 0, 3][..], b"\xff\xff\xff"].concat();
    for (encoding, body, code, part) in [
        (None, Vec::new(), Grpc::Internal, "Missing request message"),
        (None, compressed, Grpc::Internal, "compressed-flag"),
        (None, garbage, Grpc::Internal, "varint"),
        (None, whole[..9].to_vec(), Grpc::Internal, "Unexpected EOF"),
        (Some("gzip"), whole.to_vec(), Grpc::Unimplemented, "gzip"),
    ] {
        let (answered, with, said) = answer(&server, encoding, Full::from(body)).await;
        assert_eq!((answered.len(), with), (0, code), "{said}");
        assert!(said.contains(part), "{said}");
    }
    let (_, code, _) = answer(&server, Some("identity"), Full::new(whole.clone())).await;
    assert_eq!(code, Grpc::Ok);
    let told = server.telemetry.render(None).1;
    for calls in ["{result=\"ok\"} 8", "{result=\"unreadable\"} 5", "{result=\"invalid_argument\"} 0"] {
        assert!(told.contains(&format!("weir_calls_total{calls}\n")), "{calls} is not in\n{told}");
    }
    server.stop().await.unwrap();
}

/// What a proxy sends that had to wait for so long that it has given up on most of what it has asked.
#[tokio::test]
async fn calls_that_are_given_up_before_anybody_has_seen_them_cost_no_other_its_connection() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let one = request("api", &[("wide", b"x")]);
    let mut sent = HELLO.to_vec();
    for stream in (0..500).map(|call| 2 * call + 1) {
        sent.extend([frames::call(stream, &one), cancel(stream)].concat());
    }
    let kept = 1_001;
    sent.extend(frames::call(kept, &one));
    let mut connection = tokio::net::TcpStream::connect(server.address).await.unwrap();
    connection.write_all(&sent).await.unwrap();

    let answered = async {
        loop {
            let (kind, _, stream, payload) = read_frame(&mut connection).await;
            assert_ne!(kind, GOAWAY, "{}", String::from_utf8_lossy(&payload));
            if (kind, stream) == (DATA, kept) {
                return RateLimitResponse::decode(&payload[5..]).unwrap();
            }
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), answered).await.expect("it is answered");
    assert_eq!(answer.overall_code(), Code::Ok);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn methods_that_there_are_not_are_unimplemented_and_a_deadline_changes_no_answer() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let message = request("api", &[("wide", b"x")]).encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let whole = Bytes::from([&[0][..], &length, &message].concat());
    for method in [
        format!("{SERVICE_NAME}/ShouldNotRateLimit"),
        format!("{SERVICE_NAME}/"),
        "envoy.service.ratelimit.v2.RateLimitService/ShouldRateLimit".into(),
        "grpc.health.v1.Health/Cure".into(),
        String::new(),
    ] {
        let (answered, code, _) = ask(&server, &method, None, Full::new(whole.clone())).await;
        assert_eq!((answered.len(), code), (0, Grpc::Unimplemented), "{method}");
    }
    let method = format!("{SERVICE_NAME}/ShouldRateLimit");
    for timeout in ["20m", "1H", "1n", "0S", "soon", ""] {
        let header = Some(("grpc-timeout", timeout));
        let (_, code, said) = ask(&server, &method, header, Full::new(whole.clone())).await;
        assert_eq!((code, said.as_str()), (Grpc::Ok, ""), "{timeout}: the one who asks gives up by itself");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_message_limit_and_the_number_of_descriptors_are_settings() {
    let rules = rules(RULES);
    let mut settings = settings(rules.path());
    settings.max_message_bytes = 1_000.try_into().unwrap();
    settings.max_descriptors = 2.try_into().unwrap();
    let server = Server::start(settings).await;
    let mut client = server.client().await;
    let mut code = async |request| {
        client.should_rate_limit(request).await.map_or_else(|status| status.code(), |_| Grpc::Ok)
    };
    assert_eq!(code(request("api", &[("user", &[b'x'; 900])])).await, Grpc::Ok);
    assert_eq!(code(request("api", &[("user", &[b'x'; 1_000])])).await, Grpc::OutOfRange);
    assert_eq!(code(request("api", &[("user", b"a"), ("user", b"b")])).await, Grpc::Ok);
    assert_eq!(
        code(request("api", &[("user", b"a"), ("user", b"b"), ("user", b"c")])).await,
        Grpc::InvalidArgument
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn mistakes_of_the_proxy_are_invalid_arguments() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let mut client = server.client().await;
    for request in [request("", &[("user", b"a")]), request("api", &[]), request("api", &[("", b"a")])] {
        let status = client.should_rate_limit(request).await.unwrap_err();
        assert_eq!(status.code(), Grpc::InvalidArgument, "{status}");
    }
    // A descriptor without entries meets no limit.
    let empty = RateLimitRequest {
        domain: "api".into(),
        descriptors: vec![RateLimitDescriptor::default()],
        hits_addend: 0,
    };
    assert_eq!(client.should_rate_limit(empty).await.unwrap().into_inner().overall_code(), Code::Ok);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn health_is_told_under_three_names_and_no_other() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    for name in ["", SERVICE_NAME, "ratelimit"] {
        assert_eq!(health(&server, name).await, Ok(ServingStatus::Serving), "{name:?}");
    }
    assert_eq!(health(&server, "unknown").await, Err(Grpc::NotFound));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn without_rules_the_server_waits_unready_and_joins_in_when_they_come() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules");
    let server = Server::start(settings(&path)).await;
    let mut client = server.client().await;
    for name in ["", SERVICE_NAME, "ratelimit"] {
        assert_eq!(health(&server, name).await, Ok(ServingStatus::NotServing), "{name:?}");
    }
    let status = client.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap_err();
    assert_eq!(status.code(), Grpc::Unavailable);

    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("api.yaml"), RULES).unwrap();
    let ready = async {
        while health(&server, "").await != Ok(ServingStatus::Serving) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ready)
        .await
        .expect("the directory is looked at every second");
    client.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn draining_is_told_to_those_who_watch_and_bounded_by_the_setting() {
    let rules = rules(RULES);
    let mut settings = settings(rules.path());
    settings.serving.drain_timeout = Duration::from_millis(500);
    let server = Server::start(settings).await;
    let mut client = HealthClient::new(server.channel().await);
    // A stream that its caller never ends: it must not keep the server from stopping.
    let mut watch =
        client.watch(HealthCheckRequest { service: "ratelimit".into() }).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let stopping = tokio::spawn(server.stop());
    let second = watch.message().await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::NotServing);
    let stopped = tokio::time::timeout(Duration::from_secs(5), stopping).await.expect("bounded");
    stopped.unwrap().unwrap();
}

#[tokio::test]
async fn reflection_serves_the_api_as_it_is_published() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let mut ask = async |question: MessageRequest| -> MessageResponse {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
        let answer: ServerReflectionResponse = answers.into_inner().message().await.unwrap().unwrap();
        answer.message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(services) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list of services");
    };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&SERVICE_NAME) && names.contains(&"grpc.health.v1.Health"), "{names:?}");

    let symbol = "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor".to_owned();
    let MessageResponse::FileDescriptorResponse(file) =
        ask(MessageRequest::FileContainingSymbol(symbol)).await
    else {
        panic!("no file");
    };
    let file: prost_types::FileDescriptorProto =
        prost::Message::decode(file.file_descriptor_proto[0].as_slice()).unwrap();
    let descriptor =
        file.message_type.iter().find(|message| message.name() == "RateLimitDescriptor").unwrap();
    let entry = descriptor.nested_type.iter().find(|message| message.name() == "Entry").unwrap();
    assert!(
        entry.field.iter().all(|field| field.r#type() == prost_types::field_descriptor_proto::Type::String)
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_with_little_room_is_sent_whole_answers() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    // Sixteen bytes at a time, where an answer takes some dozens, and a description some thousands.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(16).connect().await.unwrap();
    let mut client = RateLimitServiceClient::new(channel.clone());
    for _ in 0..3 {
        let entries = [("user", &b"a"[..]), ("user", b"b"), ("user", b"c")];
        let answer = client.should_rate_limit(request("api", &entries)).await.unwrap();
        assert_eq!(answer.get_ref().statuses.len(), 3);
    }
    let question = MessageRequest::FileContainingSymbol(SERVICE_NAME.to_owned());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
        panic!("no file: {answer:?}");
    };
    for file in &files.file_descriptor_proto {
        prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap();
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_grpc_is_answered() {
    let rules = rules(RULES);
    let server = Server::start(settings(rules.path())).await;
    let address = server.address.to_string();
    let output = tokio::task::spawn_blocking(move || python::run("client.py", &[&address])).await.unwrap();
    assert_eq!(
        output,
        "health SERVING\n\
         user=a OK 2\n\
         user=a OK 1\n\
         user=a OK 0\n\
         user=a OVER_LIMIT 0 retry-after=1200\n\
         user=b,user=a OVER_LIMIT 3 0 retry-after=1200\n\
         peek user=b OK 3\n\
         give back user=a OK 1\n\
         empty domain INVALID_ARGUMENT\n"
    );
    server.stop().await.unwrap();
}
