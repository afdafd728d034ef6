//! Connections and their bounds: who is served, who is sent away, and how the process ends.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code as Grpc, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weir::proto::{Code, RateLimitResponse, RateLimitServiceClient, SERVICE_NAME};
use weir::serve::Policy;
use weir::settings::Settings;

use crate::support::envoy::{Envoy, get};
use crate::support::frames::{
    self, ACK, DATA, HELLO, PING, SETTINGS, WINDOW_UPDATE, cancel, frame, read_frame,
};
use crate::support::redis::RedisServer;
use crate::support::server::{Server, request, rules, settings};
use crate::support::weir::Weir;

const RULES: &str =
    "domain: api\ndescriptors:\n  - { key: user, rate_limit: { unit: hour, requests_per_unit: 1000000 } }\n";

/// How long a test waits for what should come soon.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with these rules, and settings as `change` leaves them.
async fn server(change: impl FnOnce(&mut Settings)) -> (Server, tempfile::TempDir) {
    let rules = rules(RULES);
    let mut settings = settings(rules.path());
    change(&mut settings);
    (Server::start(settings).await, rules)
}

async fn call(client: &mut RateLimitServiceClient<Channel>) -> Result<Code, Grpc> {
    let answer = client.should_rate_limit(request("api", &[("user", b"a"), ("user", b"b")])).await;
    answer.map(|answer| answer.get_ref().overall_code()).map_err(|status| status.code())
}

/// Everything that comes until the other side ends the connection.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    // A reset is an end too.
    _ = read.expect("the connection is closed");
    all
}

/// A channel to `address`, and how many connections it has made.
async fn counted_channel(address: SocketAddr) -> (Channel, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let connector = Connector { address, made: Arc::clone(&made) };
    let endpoint = Endpoint::from_static("http://weir");
    (endpoint.connect_with_connector(connector).await.unwrap(), made)
}

#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    made: Arc<AtomicUsize>,
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        self.made.fetch_add(1, Ordering::SeqCst);
        let address = self.address;
        Box::pin(async move { Ok(TokioIo::new(TcpStream::connect(address).await?)) })
    }
}

#[tokio::test]
async fn a_connection_that_does_not_begin_to_speak_is_closed_in_time() {
    let (server, _rules) =
        server(|settings| settings.serving.request_timeout = Duration::from_millis(200)).await;
    for said in [&b""[..], b"PRI * HT"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        assert_eq!(until_closed(&mut stream).await, b"", "after {said:?}");
    }
    // One that has said it is kept, however quiet it is: nobody is asked more than to begin.
    let mut quiet = TcpStream::connect(server.address).await.unwrap();
    quiet.write_all(HELLO).await.unwrap();
    let mut channel = server.client().await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    until_closed(&mut silent).await;
    assert_eq!(call(&mut channel).await, Ok(Code::Ok));
    let mut some = [0; 9];
    quiet.read_exact(&mut some).await.unwrap();
    assert_eq!(some[3], 4, "settings");
    let told = server.telemetry.render(None).1;
    assert!(told.contains("weir_connections_failed_total{listener=\"grpc\"} 3\n"), "{told}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn who_speaks_http_1_to_the_grpc_port_is_told_where_to_go() {
    let (server, _rules) = server(|_| ()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /json HTTP/1.1\r\nhost: weir\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(until_closed(&mut stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("--http says where"), "{answer}");

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[0x16; 64]).await.unwrap();
    assert_eq!(until_closed(&mut stream).await, b"", "what is no text gets none");
    server.stop().await.unwrap();
}

/// A request that comes when it is let go: until then, its call is under way.
struct Held {
    message: Option<Bytes>,
    go: oneshot::Receiver<()>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.message.is_some() {
            std::task::ready!(Pin::new(&mut self.go).poll(context))
                .expect("it is let go before it is dropped");
        }
        Poll::Ready(self.message.take().map(|message| Ok(Frame::data(message))))
    }
}

/// Begins a call whose request comes when something is sent to what comes first; the other is its answer. Calls that are
/// made on the same channel afterwards come to the server after it.
async fn begin_call(channel: &Channel) -> (oneshot::Sender<()>, JoinHandle<http::Response<Body>>) {
    let message = request("api", &[("user", b"a")]).encode_to_vec();
    begin(channel, &format!("{SERVICE_NAME}/ShouldRateLimit"), message).await
}

/// The same for any call.
async fn begin(
    channel: &Channel,
    method: &str,
    message: Vec<u8>,
) -> (oneshot::Sender<()>, JoinHandle<http::Response<Body>>) {
    let (let_go, go) = oneshot::channel();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    let slow = http::Request::post(format!("http://weir/{method}"))
        .header("content-type", "application/grpc")
        .body(Body::new(Held { message: Some(frame.into()), go }))
        .unwrap();
    let mut channel = channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, channel.call(slow));
    (let_go, tokio::spawn(async move { answer.await.expect("it is answered").unwrap() }))
}

/// What a call has been answered with.
async fn code(answer: http::Response<Body>) -> Code {
    let message = answer.into_body().collect().await.unwrap().to_bytes();
    RateLimitResponse::decode(&message[5..]).unwrap().overall_code()
}

#[tokio::test]
async fn a_call_whose_request_does_not_come_is_ended_in_time() {
    let (server, _rules) =
        server(|settings| settings.serving.request_timeout = Duration::from_millis(200)).await;
    let (_held, answer) = begin_call(&server.channel().await).await;
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED: {:?}", answer.headers());
    assert_eq!(answer.headers()["grpc-message"], "the%20request%20was%20not%20there%20within%20200ms");
    assert_eq!(call(&mut server.client().await).await, Ok(Code::Ok));
    let told = server.telemetry.render(None).1;
    assert!(told.contains("weir_calls_total{result=\"unreadable\"} 1\n"), "{told}");
    // Who asks for health is not waited for any longer.
    let check = HealthCheckRequest::default().encode_to_vec();
    let (_held, answer) = begin(&server.channel().await, "grpc.health.v1.Health/Check", check).await;
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "4");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_answer_a_ping_is_given_up() {
    let (server, _rules) = server(|settings| {
        settings.serving.keepalive = Duration::from_millis(100);
        settings.serving.keepalive_timeout = Duration::from_secs(1);
    })
    .await;
    let (channel, made) = counted_channel(server.address).await;
    let mut client = RateLimitServiceClient::new(channel);
    let mut gone = TcpStream::connect(server.address).await.unwrap();
    gone.write_all(HELLO).await.unwrap();
    let said = until_closed(&mut gone).await;
    // A PING is eight bytes long and of type 6.
    assert!(said.windows(5).any(|frame| frame == [0, 0, 8, 6, 0]), "{said:?}");
    // One that answers them is not.
    assert_eq!(call(&mut client).await, Ok(Code::Ok));
    assert_eq!(made.load(Ordering::SeqCst), 1);
    server.stop().await.unwrap();
}

/// A client that sends and takes nothing cannot be told that it is asked: its connection is full. It is given up for that.
#[tokio::test]
async fn a_client_that_takes_no_answer_is_given_up() {
    let (server, _rules) = server(|settings| {
        // Nor for having paused before it was full: it answers no ping.
        settings.serving.keepalive = Duration::from_secs(2);
        settings.serving.keepalive_timeout = Duration::from_millis(100);
        // Nor for having too many under way.
        settings.serving.max_streams = 1_000_000.try_into().unwrap();
    })
    .await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut full = socket.connect(server.address).await.unwrap();
    // It has room for any answer (SETTINGS_INITIAL_WINDOW_SIZE is 4), and takes none.
    full.write_all(HELLO).await.unwrap();
    full.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0x7F, 0xFF, 0xFF, 0xFF])).await.unwrap();
    full.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0x7F, 0, 0, 0])).await.unwrap();
    let one = request("api", &[("user", b"a")]);
    let mut streams = (0..).map(|call| 2 * call + 1);
    let fill = async {
        loop {
            let calls: Vec<u8> =
                streams.by_ref().take(100).flat_map(|stream| frames::call(stream, &one)).collect();
            // Answers have nowhere to go any more when it is not read either, until it is cut.
            if let Err(error) = full.write_all(&calls).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, fill).await.expect("it is cut");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    assert_eq!(call(&mut server.client().await).await, Ok(Code::Ok));
    server.stop().await.unwrap();
}

async fn next_frame(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    tokio::time::timeout(PATIENCE, read_frame(stream)).await.expect("it says something")
}

/// A connection on which all of this comes in one piece, when the server is done with it; and what it has said.
async fn sent_at_once(server: &Server, sent: &[u8]) -> (TcpStream, Vec<(u8, u32, Vec<u8>)>) {
    let ping = frame(PING, 0, 0, &[7; 8]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[HELLO, sent, &ping].concat()).await.unwrap();
    let (mut pongs, mut said) = (0, Vec::new());
    // The second answer tells that the server is done with what came before the first.
    while pongs < 2 {
        let (kind, flags, of, payload) = next_frame(&mut stream).await;
        if (kind, flags) == (PING, ACK) {
            pongs += 1;
            stream.write_all(&ping).await.unwrap();
        }
        said.push((kind, of, payload));
    }
    (stream, said)
}

#[tokio::test]
async fn calls_that_come_together_count_together() {
    let (server, _rules) = server(|settings| {
        settings.serving.max_calls = 3.try_into().unwrap();
        settings.serving.overload = Policy::Deny;
    })
    .await;
    let calls = 40;
    let one = request("api", &[("user", b"a")]);
    let sent: Vec<u8> = (0..calls).flat_map(|call| frames::call(2 * call + 1, &one)).collect();
    let (mut stream, mut said) = sent_at_once(&server, &sent).await;
    let answers = |said: &[(u8, u32, Vec<u8>)]| -> Vec<Code> {
        let data = said.iter().filter(|(kind, ..)| *kind == DATA);
        data.map(|(.., payload)| RateLimitResponse::decode(&payload[5..]).unwrap().overall_code()).collect()
    };
    while answers(&said).len() < calls as usize {
        let (kind, _, of, payload) = next_frame(&mut stream).await;
        said.push((kind, of, payload));
    }
    let admitted = answers(&said).iter().filter(|code| **code == Code::Ok).count();
    assert_eq!(admitted, 3, "none of them is answered before the last has come");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_call_that_was_given_up_before_its_turn_charges_nothing() {
    let (server, _rules) = server(|_| {}).await;
    let one = request("api", &[("user", b"a")]);
    let streams = (0..20).map(|call| 2 * call + 1);
    let sent: Vec<u8> =
        streams.flat_map(|stream| [frames::call(stream, &one), cancel(stream)].concat()).collect();
    sent_at_once(&server, &sent).await;
    let answer = server.client().await.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap();
    assert_eq!(answer.get_ref().statuses[0].limit_remaining, 999_999);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_is_told_how_many_calls_may_be_under_way_on_a_connection() {
    let (server, _rules) = server(|settings| settings.serving.max_streams = 77.try_into().unwrap()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let mut settings = vec![0; usize::from(head[2])];
    stream.read_exact(&mut settings).await.unwrap();
    // SETTINGS_MAX_CONCURRENT_STREAMS is 3.
    assert!(settings.chunks(6).any(|setting| setting == [0, 3, 0, 0, 0, 77]), "{settings:?}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_cap_are_closed_at_once_and_taken_again_when_others_have_ended() {
    let (server, _rules) = server(|settings| settings.serving.max_connections = 2.try_into().unwrap()).await;
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(HELLO).await.unwrap();
        // It has been accepted when it is answered.
        stream.read_exact(&mut [0; 9]).await.unwrap();
        taken.push(stream);
    }
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(until_closed(&mut third).await, b"");
    let told = server.telemetry.render(None).1;
    for series in ["connections", "connections_accepted_total"] {
        assert!(told.contains(&format!("weir_{series}{{listener=\"grpc\"}} 2")), "{series}: {told}");
    }
    assert!(told.contains("weir_connections_refused_total{listener=\"grpc\"} 1\n"), "{told}");
    drop(taken);
    let served = async {
        loop {
            if let Ok(mut client) =
                RateLimitServiceClient::connect(format!("http://{}", server.address)).await
                && call(&mut client).await == Ok(Code::Ok)
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("there is room again");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_has_grown_old_is_replaced_without_a_failed_call() {
    let (server, _rules) = server(|settings| {
        settings.serving.max_connection_age = Duration::from_millis(200);
        settings.serving.max_connection_age_grace = Duration::from_secs(20);
    })
    .await;
    let (channel, made) = counted_channel(server.address).await;
    let callers = (0..8).map(|_| {
        let mut client = RateLimitServiceClient::new(channel.clone());
        let made = Arc::clone(&made);
        tokio::spawn(async move {
            while made.load(Ordering::SeqCst) < 5 {
                assert_eq!(call(&mut client).await, Ok(Code::Ok));
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    for caller in callers {
        tokio::time::timeout(PATIENCE, caller).await.expect("connections are replaced").unwrap();
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_call_on_an_old_connection_may_take_the_grace_and_no_longer() {
    for (grace, is_answered) in [(Duration::from_secs(60), true), (Duration::from_millis(100), false)] {
        let (server, _rules) = server(|settings| {
            settings.serving.max_connection_age = Duration::from_millis(100);
            settings.serving.max_connection_age_grace = grace;
        })
        .await;
        let mut told = TcpStream::connect(server.address).await.unwrap();
        told.write_all(HELLO).await.unwrap();
        let (let_go, answer) = begin_call(&server.channel().await).await;
        if is_answered {
            // Made before the other, this one has been told to end: GOAWAY is of type 7.
            let mut said = Vec::new();
            while !said.windows(5).any(|frame| frame == [0, 0, 8, 7, 0]) {
                let mut byte = [0];
                let read = tokio::time::timeout(PATIENCE, told.read_exact(&mut byte)).await;
                read.expect("it is told").unwrap();
                said.extend(byte);
            }
            let_go.send(()).unwrap();
            assert_eq!(code(answer.await.unwrap()).await, Code::Ok);
        } else {
            until_closed(&mut told).await;
            assert!(answer.await.is_err(), "it has no answer");
        }
        server.stop().await.unwrap();
    }
}

/// Threads of a weir that serve connections.
fn threads(weir: &Weir) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", weir.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    names.filter(|name| name.starts_with("weir-core-")).count()
}

#[test]
fn as_many_threads_serve_connections_as_the_setting_says() {
    let directory = rules(RULES);
    let arguments = ["--grpc", "127.0.0.1:0", "--threads", "3", "--rules"].map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([directory.path().as_os_str()]));
    assert_eq!(threads(&weir), 3);
    weir.stop();
}

#[test]
fn unless_it_says_there_is_one_for_each_core_and_one_more_for_redis_where_cores_are_few() {
    let (redis, directory) = (RedisServer::start(), rules(RULES));
    let cores = std::thread::available_parallelism().unwrap().get();
    let arguments = ["--grpc", "127.0.0.1:0", "--rules"].map(OsStr::new);
    let in_memory = Weir::start_with(arguments.into_iter().chain([directory.path().as_os_str()]));
    let with_redis = Weir::start_with_redis(directory.path(), &redis.url());
    assert_eq!(threads(&in_memory), cores);
    assert_eq!(threads(&with_redis), cores.max((cores + 1).min(4)));
}

#[tokio::test]
async fn a_redis_that_hangs_does_not_hold_up_the_end() {
    let redis = RedisServer::start();
    let (server, _rules) = server(|settings| {
        settings.redis = Some(redis.url().into());
        settings.redis_timeout = Duration::from_secs(5);
        // Each has a connection.
        settings.serving.threads = NonZeroUsize::new(2);
        // Nothing but the end itself finds out that it hangs.
        settings.redis_tuning.redis_ping_interval = Duration::from_secs(60);
        settings.failure.heartbeat = Duration::from_secs(60);
    })
    .await;
    let is_connected = |line: &str| line.starts_with("weir_redis_connections{") && line.ends_with(" 2.0");
    let connected = async {
        while !server.telemetry.render(None).1.lines().any(is_connected) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("Redis is connected");
    redis.pause();
    let stopped = tokio::time::timeout(PATIENCE, server.stop()).await;
    redis.resume();
    stopped.expect("within two seconds, not sixty").unwrap();
}

#[tokio::test]
async fn grpc_is_answered_on_several_addresses_unix_sockets_among_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weir.sock");
    let target = format!("unix:{}", path.display());
    let (server, _rules) = server(|settings| settings.grpc.push(target.parse().unwrap())).await;
    let channel = Endpoint::from_shared(target).unwrap().connect().await.unwrap();
    assert_eq!(call(&mut RateLimitServiceClient::new(channel)).await, Ok(Code::Ok));
    assert_eq!(call(&mut server.client().await).await, Ok(Code::Ok));
    server.stop().await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_waiting_at_the_end() {
    let (server, _rules) = server(|settings| {
        settings.serving.request_timeout = Duration::from_secs(600);
        settings.serving.drain_timeout = Duration::from_secs(600);
    })
    .await;
    let mut silent = Vec::new();
    for said in [&b""[..], b"PRI * HT", HELLO] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        silent.push(stream);
    }
    // Whoever comes after them is accepted after them.
    assert_eq!(call(&mut server.client().await).await, Ok(Code::Ok));
    tokio::time::timeout(PATIENCE, server.stop()).await.expect("long before the time is over").unwrap();
}

async fn channel(weir: &Weir) -> Channel {
    Endpoint::from_shared(format!("http://{}", weir.grpc())).unwrap().connect().await.unwrap()
}

async fn client(weir: &Weir) -> RateLimitServiceClient<Channel> {
    RateLimitServiceClient::new(channel(weir).await)
}

#[tokio::test]
async fn a_call_that_is_one_too_many_is_answered_at_once_by_the_policy() {
    // The user has nothing, so that an answer which is not the policy's can be told from it.
    for (policy, requests, otherwise, shed) in [
        (Policy::Allow, 0, Code::OverLimit, Ok(Code::Ok)),
        (Policy::Deny, 1_000, Code::Ok, Ok(Code::OverLimit)),
        (Policy::Unavailable, 1_000, Code::Ok, Err(Grpc::Unavailable)),
    ] {
        let rules = rules(&RULES.replace("1000000", &requests.to_string()));
        let mut settings = settings(rules.path());
        settings.serving.max_calls = 3.try_into().unwrap();
        settings.serving.overload = policy;
        let server = Server::start(settings).await;
        let channel = server.channel().await;
        let mut client = RateLimitServiceClient::new(channel.clone());
        assert_eq!(call(&mut client).await, Ok(otherwise));
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(begin_call(&channel).await);
        }
        for _ in 0..10 {
            assert_eq!(call(&mut client).await, shed);
        }
        if let Ok(code) = shed {
            let two = request("api", &[("user", b"a"), ("user", b"b")]);
            let response = client.should_rate_limit(two).await.unwrap();
            let statuses: Vec<_> = response.get_ref().statuses.iter().map(|status| status.code()).collect();
            assert_eq!(statuses, [code; 2], "one status for each descriptor");
        }
        HealthClient::new(channel.clone())
            .check(HealthCheckRequest::default())
            .await
            .expect("always answered");
        for (let_go, answer) in held {
            let_go.send(()).unwrap();
            assert_eq!(code(answer.await.unwrap()).await, otherwise, "it was under way before");
        }
        assert_eq!(call(&mut client).await, Ok(otherwise), "there is room again");
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_call_that_is_under_way_is_answered_before_the_process_ends() {
    let directory = rules(RULES);
    let arguments = ["--grpc", "127.0.0.1:0", "--max-calls", "1", "--overload", "deny", "--rules"];
    let weir = Weir::start_with(arguments.map(OsStr::new).into_iter().chain([directory.path().as_os_str()]));
    let channel = channel(&weir).await;
    let (let_go, under_way) = begin_call(&channel).await;
    assert_eq!(call(&mut RateLimitServiceClient::new(channel)).await, Ok(Code::OverLimit), "it is under way");
    weir.signal(Signal::TERM);
    weir.await_log("draining", 1);
    let refused = async { while TcpStream::connect(weir.grpc()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("nobody new is let in");
    // Longer than somebody is waited for who has no call.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(weir.logged("stopped"), 0);
    let_go.send(()).unwrap();
    assert_eq!(code(under_way.await.unwrap()).await, Code::Ok);
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_when_the_time_to_drain_is_over() {
    let (server, _rules) = server(|settings| {
        settings.serving.drain_timeout = Duration::from_millis(300);
        settings.serving.max_calls = 1.try_into().unwrap();
        settings.serving.overload = Policy::Deny;
    })
    .await;
    let channel = server.channel().await;
    let (_held, under_way) = begin_call(&channel).await;
    assert_eq!(call(&mut RateLimitServiceClient::new(channel)).await, Ok(Code::OverLimit), "it is under way");
    tokio::time::timeout(PATIENCE, server.stop()).await.expect("bounded").unwrap();
    assert!(under_way.await.is_err(), "it has no answer");
}

#[tokio::test]
async fn calls_are_taken_during_the_delay_while_health_says_that_they_should_go_elsewhere() {
    let directory = rules(RULES);
    let arguments = ["--grpc", "127.0.0.1:0", "--drain-delay", "60s", "--drain-timeout", "120s", "--rules"];
    let weir = Weir::start_with(arguments.map(OsStr::new).into_iter().chain([directory.path().as_os_str()]));
    let mut before = client(&weir).await;
    weir.signal(Signal::TERM);
    weir.await_log("draining", 1);
    let mut health = HealthClient::new(channel(&weir).await);
    let unready = async {
        let check = async |health: &mut HealthClient<Channel>| {
            health.check(HealthCheckRequest::default()).await.unwrap().get_ref().status()
        };
        while check(&mut health).await != ServingStatus::NotServing {}
    };
    tokio::time::timeout(PATIENCE, unready).await.expect("told");
    assert_eq!(call(&mut before).await, Ok(Code::Ok));
    assert_eq!(call(&mut client(&weir).await).await, Ok(Code::Ok), "also on a new connection");
    // Somebody has seen enough.
    weir.signal(Signal::INT);
    weir.await_log("a second signal", 1);
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}

#[tokio::test]
async fn sigint_does_not_wait_for_the_delay() {
    let directory = rules(RULES);
    let arguments = ["--grpc", "127.0.0.1:0", "--drain-delay", "60s", "--drain-timeout", "120s", "--rules"];
    let weir = Weir::start_with(arguments.map(OsStr::new).into_iter().chain([directory.path().as_os_str()]));
    weir.signal(Signal::INT);
    weir.await_log("stopped", 1);
    assert_eq!(weir.logged("a second signal"), 0);
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}

/// Bytes of memory that a process holds.
fn resident(weir: &Weir) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", weir.pid())).unwrap();
    let told = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    told.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}

/// Lets this process have so many files open.
fn need_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|maximum| maximum >= count), "this machine allows {limit:?} open files");
    if limit.current.is_some_and(|current| current < count) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), ..limit }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_hinder_neither_calls_nor_the_end() {
    const IDLE: usize = 10_000;
    need_files(12_000);
    let directory = rules(RULES);
    let weir = Weir::start(directory.path());
    let (address, before) = (weir.grpc(), resident(&weir));
    // A few at a time, or the system's queue of those not yet accepted runs over, which costs a second each.
    let mut idle = Vec::with_capacity(IDLE);
    for _ in 0..IDLE / 100 {
        let some = (0..100).map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(HELLO).await.unwrap();
                stream.read_exact(&mut [0; 9]).await.unwrap();
                stream
            })
        });
        for stream in some.collect::<Vec<_>>() {
            idle.push(tokio::time::timeout(PATIENCE, stream).await.expect("it is accepted").unwrap());
        }
    }
    // What RUNNING.md says of a connection's memory, and a little.
    let memory = resident(&weir) - before;
    assert!(memory / IDLE < 45_000, "{} bytes for each connection", memory / IDLE);
    let mut client = client(&weir).await;
    for _ in 0..1_000 {
        let one = Request::new(request("api", &[("user", b"a")]));
        tokio::time::timeout(Duration::from_secs(5), client.should_rate_limit(one))
            .await
            .expect("soon")
            .unwrap();
    }
    #[allow(clippy::disallowed_methods, reason = "how long a real process takes")]
    let start = std::time::Instant::now();
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
    // They do not answer, so each is given the two seconds that one message may take; all of them the same two.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?} of the thirty seconds", start.elapsed());
    assert_eq!(idle.len(), IDLE);
}

/// A weir at an address of its own, which Envoy can see leave.
fn replica(address: SocketAddr, redis: &RedisServer, rules: &Path) -> Weir {
    let (address, url) = (address.to_string(), redis.url());
    let fixed =
        ["--grpc", &address, "--redis", &url, "--redis-timeout", "2s", "--drain-delay", "4s", "--rules"];
    let weir = Weir::start_with(fixed.map(OsStr::new).into_iter().chain([rules.as_os_str()]));
    weir.await_log("connected", 2);
    weir
}

#[test]
fn two_weirs_behind_a_real_envoy_are_restarted_in_turn_under_load_without_a_failed_request() {
    const USERS: u64 = 3;
    let redis = RedisServer::start();
    let rules = rules(
        "domain: api\ndescriptors:\n  - { key: user_id, rate_limit: { unit: year, requests_per_unit: 1000000 } }\n",
    );
    // Addresses that nobody else uses, so that nobody takes a port while its weir is away.
    let start = |address: &str| replica(address.parse().unwrap(), &redis, rules.path());
    let mut weirs = [start("127.0.0.4:0"), start("127.0.0.5:0")];
    let [first, second] = [weirs[0].grpc(), weirs[1].grpc()];
    let second_shipped = "address: 127.0.0.1, port_value: 8082 ";
    let second_here = format!("address: {}, port_value: {} ", second.ip(), second.port());
    let envoy = Envoy::start_changed(
        "replicas.yaml",
        first,
        // A request that no weir decides is to fail, and not to pass.
        &[(second_shipped, &second_here), ("failure_mode_deny: false", "failure_mode_deny: true")],
    );
    envoy.await_healthy(2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let envoy = &envoy;
        let stop = &stop;
        let users: Vec<_> = (0..USERS)
            .map(|user| {
                scope.spawn(move || {
                    let name = format!("user-{user}");
                    let request = get("/").header("x-user-id", &name);
                    let mut sent = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let answer = envoy.send(&request);
                        sent += 1;
                        assert_eq!(answer.status, 200, "request {sent} of {name}: {answer:?}");
                        let left = answer.number("x-ratelimit-remaining").expect("decided by weir");
                        assert_eq!(left, 1_000_000 - sent, "counted by whichever weir, and once");
                    }
                    sent
                })
            })
            .collect();
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for weir in &mut weirs {
                let address = weir.grpc();
                weir.signal(Signal::TERM);
                weir.await_log("stopped", 1);
                // By then it has long been known, so that it is known again only when it is back.
                envoy.await_healthy(1);
                *weir = replica(address, &redis, rules.path());
                envoy.await_healthy(2);
            }
        }));
        stop.store(true, Ordering::SeqCst);
        let sent: u64 = users.into_iter().map(|user| user.join().expect("no request failed")).sum();
        restarted.expect("each was restarted");
        assert!(sent > 50, "{sent} requests");
    });
}
