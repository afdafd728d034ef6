//! TLS on the listeners: certificates that are replaced, clients that must show one, and Envoy.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use weir::proto::{Code, RateLimitServiceClient};
use weir::serve::tls::San;
use weir::settings::{ClientAuth, Settings};

use crate::support::certificates::Authority;
use crate::support::envoy::{Envoy, get};
use crate::support::server::{Server, request, rules, settings};
use crate::support::weir::Weir;

const RULES: &str =
    "domain: api\ndescriptors: [ { key: user_id, rate_limit: { unit: day, requests_per_unit: 2 } } ]\n";

/// How long a test waits for what should come soon.
const PATIENCE: Duration = Duration::from_secs(30);

const ENVOY: &str = "spiffe://example.org/envoy";

/// A directory with an authority's certificate and one of weir's that it has signed.
fn certificates(authority: &Authority) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    authority.sign("weir.example.org").write(directory.path(), "weir");
    directory
}

/// A server that shows the certificate in the directory.
async fn server(certificates: &Path, change: impl FnOnce(&mut Settings)) -> (Server, TempDir) {
    let rules = rules(RULES);
    let mut settings = settings(rules.path());
    let file = |name: &str| Some(certificates.join(name));
    (settings.grpc_tls.grpc_tls_cert, settings.grpc_tls.grpc_tls_key) =
        (file("weir.pem"), file("weir-key.pem"));
    (settings.http_tls.http_tls_cert, settings.http_tls.http_tls_key) =
        (file("weir.pem"), file("weir-key.pem"));
    change(&mut settings);
    (Server::start(settings).await, rules)
}

/// A call over a connection of its own; an error if there is no connection, or no answer.
async fn call(address: SocketAddr, tls: ClientTlsConfig) -> Result<Code, String> {
    let channel = connect(address, tls).await.map_err(|error| format!("{error:?}"))?;
    ask(&mut RateLimitServiceClient::new(channel)).await
}

async fn connect(address: SocketAddr, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().timeout(PATIENCE);
    endpoint.tls_config(tls).unwrap().connect().await
}

async fn ask(client: &mut RateLimitServiceClient<Channel>) -> Result<Code, String> {
    // A descriptor without a rule: it never runs out.
    let answer = client.should_rate_limit(request("api", &[("open", b"")])).await;
    answer.map(|answer| answer.get_ref().overall_code()).map_err(|status| format!("{status:?}"))
}

#[tokio::test]
async fn a_listener_with_a_certificate_speaks_tls_and_nothing_else() {
    let authority = Authority::new();
    let certificates = certificates(&authority);
    let (server, _rules) = server(certificates.path(), |_| ()).await;
    assert_eq!(call(server.address, authority.client()).await, Ok(Code::Ok));
    let stranger = Authority::new();
    call(server.address, stranger.client()).await.unwrap_err();
    let plain = Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect().await;
    if let Ok(channel) = plain {
        ask(&mut RateLimitServiceClient::new(channel)).await.unwrap_err();
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_replaced_in_mid_load_is_shown_to_new_connections_and_fails_no_call() {
    let (old, new) = (Authority::new(), Authority::new());
    let certificates = certificates(&old);
    let (server, _rules) = server(certificates.path(), |_| ()).await;
    let stop = Arc::new(AtomicBool::new(false));
    // Some stay connected, others connect anew for each call, and trust either authority.
    let mut callers = Vec::new();
    for _ in 0..4 {
        let mut client = RateLimitServiceClient::new(connect(server.address, old.client()).await.unwrap());
        let stop = Arc::clone(&stop);
        callers.push(tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(ask(&mut client).await, Ok(Code::Ok));
                calls += 1;
            }
            calls
        }));
    }
    for _ in 0..2 {
        let stop = Arc::clone(&stop);
        let both = old.client().ca_certificate(tonic::transport::Certificate::from_pem(new.pem()));
        let address = server.address;
        callers.push(tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(call(address, both.clone()).await, Ok(Code::Ok));
                calls += 1;
            }
            calls
        }));
    }
    call(server.address, new.client()).await.expect_err("not yet");
    let calls_before = old.sign("weir.example.org");
    // First one file and then the other, as tools do; and before that, one that makes no sense.
    fs::write(certificates.path().join("weir.pem"), "half a certif").unwrap();
    calls_before.write(certificates.path(), "weir");
    new.sign("weir.example.org").write(certificates.path(), "weir");
    let shown = async { while call(server.address, new.client()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, shown).await.expect("the new one is shown");
    call(server.address, old.client()).await.expect_err("the old one is shown no more");
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_without_the_right_certificate_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let certificates = certificates(&authority);
    let require = |auth: ClientAuth, names: &[&str]| {
        let names: Vec<San> = names.iter().map(|name| name.parse().unwrap()).collect();
        let authorities = certificates.path().join("ca.pem");
        move |settings: &mut Settings| {
            settings.grpc_tls.grpc_tls_client_ca = Some(authorities);
            settings.grpc_tls.grpc_tls_client_auth = auth;
            settings.grpc_tls.grpc_tls_client_san = names;
        }
    };
    let envoy = authority.client().identity(authority.sign(ENVOY).identity());
    let host = authority.client().identity(authority.sign("proxy.example.org").identity());
    let foreign = authority.client().identity(stranger.sign(ENVOY).identity());
    let none = authority.client();

    for (auth, names, accepted) in [
        (ClientAuth::Required, &[][..], [true, true, false, false]),
        (ClientAuth::Required, &[ENVOY], [true, false, false, false]),
        (ClientAuth::Required, &["proxy.example.org"], [false, true, false, false]),
        (ClientAuth::Required, &["x.example.org", ENVOY], [true, false, false, false]),
        (ClientAuth::Optional, &[ENVOY], [true, false, false, true]),
    ] {
        let (server, _rules) = server(certificates.path(), require(auth, names)).await;
        for (client, is_accepted) in [&envoy, &host, &foreign, &none].into_iter().zip(accepted) {
            let answer = call(server.address, client.clone()).await;
            assert_eq!(answer.is_ok(), is_accepted, "{auth:?} {names:?}: {client:?}: {answer:?}");
        }
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn authorities_that_are_replaced_decide_who_is_let_in_from_then_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let certificates = certificates(&old);
    let (server, _rules) = server(certificates.path(), |settings| {
        settings.grpc_tls.grpc_tls_client_ca = Some(certificates.path().join("ca.pem"));
    })
    .await;
    let [of_old, of_new] =
        [&old, &new].map(|authority| old.client().identity(authority.sign(ENVOY).identity()));
    assert_eq!(call(server.address, of_old.clone()).await, Ok(Code::Ok));
    call(server.address, of_new.clone()).await.expect_err("not yet");
    fs::write(certificates.path().join("ca.pem"), new.pem()).unwrap();
    let let_in = async { while call(server.address, of_new.clone()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, let_in).await.expect("the new one is known");
    call(server.address, of_old).await.expect_err("the old one is known no more");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_ended_in_time_and_counted() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let authority = Authority::new();
    let certificates = certificates(&authority);
    let (server, _rules) = server(certificates.path(), |settings| {
        settings.serving.request_timeout = Duration::from_millis(300);
    })
    .await;
    for listener in [server.address, server.http()] {
        // Nothing, and a record of a handshake that is longer than what comes of it.
        for said in [&b""[..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]] {
            let mut stream = tokio::net::TcpStream::connect(listener).await.unwrap();
            stream.write_all(said).await.unwrap();
            let mut answer = Vec::new();
            _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        }
    }
    let told = server.telemetry.render(None).1;
    for listener in ["grpc", "http"] {
        let series = format!("weir_connections_failed_total{{listener=\"{listener}\"}} 2\n");
        assert!(told.contains(&series), "{told}");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn http_is_answered_over_tls_and_a_certificate_stands_for_the_token() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    let authority = Authority::new();
    let certificates = certificates(&authority);
    let token = certificates.path().join("token");
    fs::write(&token, "s3cret").unwrap();
    let (server, _rules) = server(certificates.path(), |settings| {
        settings.http.http_token_file = Some(token);
        settings.http_tls.http_tls_client_ca = Some(certificates.path().join("ca.pem"));
    })
    .await;
    let get = async |http: SocketAddr, path: &str, with_certificate: bool, more: &str| -> String {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = if with_certificate {
            let pair = authority.sign("prometheus.example.org");
            let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        } else {
            config.with_no_client_auth()
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = tokio::net::TcpStream::connect(http).await.unwrap();
        let name = ServerName::try_from("weir.example.org").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        let message = format!("GET {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n{more}\r\n");
        // Who is not let in learns that when he asks.
        _ = stream.write_all(message.as_bytes()).await;
        let mut answer = Vec::new();
        _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap().strip_prefix("HTTP/1.1 ").unwrap_or("none ").to_owned()
    };
    let status = async |path: &str, with_certificate, more: &str| {
        get(server.http(), path, with_certificate, more).await.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(status("/livez", false, "").await, "200");
    assert_eq!(status("/metrics", false, "").await, "401");
    assert_eq!(status("/metrics", false, "authorization: Bearer s3cret\r\n").await, "200");
    let metrics = get(server.http(), "/metrics", true, "").await;
    assert!(metrics.starts_with("200 "), "{metrics}");
    for listener in ["grpc", "http"] {
        let end = format!("weir_tls_certificate_expires_at_seconds{{listener=\"{listener}\"}} 67090118400");
        let refused = format!("weir_tls_certificate_refused{{listener=\"{listener}\"}} 0");
        assert!(metrics.contains(&end) && metrics.contains(&refused), "{metrics}");
    }
    server.stop().await.unwrap();

    let (server, _rules) = self::server(certificates.path(), |settings| {
        settings.http_tls.http_tls_client_ca = Some(certificates.path().join("ca.pem"));
        settings.http_tls.http_tls_client_auth = ClientAuth::Required;
        settings.http_tls.http_tls_client_san = vec!["prometheus.example.org".parse().unwrap()];
    })
    .await;
    assert!(get(server.http(), "/livez", true, "").await.starts_with("200 "));
    assert_eq!(get(server.http(), "/livez", false, "").await, "none ", "not even probes");
    server.stop().await.unwrap();
}

/// A weir that answers those of TLS only who can show a certificate with this name.
fn strict_weir(certificates: &Path, name: &str, rules: &Path) -> Weir {
    let [certificate, key, authorities] =
        ["weir.pem", "weir-key.pem", "ca.pem"].map(|file| certificates.join(file));
    let mut arguments =
        ["--grpc", "127.0.0.1:0", "--grpc-tls-client-san", name, "--rules"].map(OsStr::new).to_vec();
    arguments.push(rules.as_os_str());
    for (flag, file) in
        [("--grpc-tls-cert", &certificate), ("--grpc-tls-key", &key), ("--grpc-tls-client-ca", &authorities)]
    {
        arguments.extend([OsStr::new(flag), file.as_os_str()]);
    }
    Weir::start_with(arguments)
}

#[test]
fn a_real_envoy_asks_over_tls_and_shows_its_certificate() {
    let authority = Authority::new();
    let certificates = certificates(&authority);
    authority.sign(ENVOY).write(certificates.path(), "envoy");
    let here = format!("{}/", certificates.path().display());
    let rules = rules(RULES);
    let weir = strict_weir(certificates.path(), ENVOY, rules.path());
    let envoy = Envoy::start_changed("tls.yaml", weir.grpc(), &[("certs/", &here)]);
    let zoe = get("/").header("x-user-id", "zoe");
    assert_eq!(envoy.statuses(&zoe, 3), [200, 200, 429]);
    assert_eq!(envoy.send(&zoe).header("x-ratelimit-limit"), Some("2, 2;w=86400"));

    // Another weir wants to see another name, and lets this Envoy know nothing.
    let other = strict_weir(certificates.path(), "spiffe://example.org/other", rules.path());
    let refused = Envoy::start_changed("tls.yaml", other.grpc(), &[("certs/", &here)]);
    for _ in 0..4 {
        let answer = refused.send(&zoe);
        assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, None), "as if weir were away");
    }
}

#[test]
fn hit_asks_over_tls_and_shows_a_certificate() {
    let authority = Authority::new();
    let certificates = certificates(&authority);
    // What the command line expects is the name in the URL.
    authority.sign("localhost").write(certificates.path(), "weir");
    let (certificate, key) = authority.sign(ENVOY).write(certificates.path(), "envoy");
    let rules = rules(RULES);
    let weir = strict_weir(certificates.path(), ENVOY, rules.path());
    let hit = |more: &[&OsStr]| {
        let target = format!("https://localhost:{}", weir.grpc().port());
        std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["hit", "--target", &target, "--domain", "api", "user_id=zoe"])
            .args(more)
            .output()
            .unwrap()
    };
    let ca = certificates.path().join("ca.pem");
    let with_ca = [OsStr::new("--ca"), ca.as_os_str()];
    let with_all =
        [&with_ca[..], &["--cert".as_ref(), certificate.as_ref(), "--key".as_ref(), key.as_ref()]].concat();
    let answer = hit(&with_all);
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    assert!(String::from_utf8_lossy(&answer.stdout).starts_with("OK\n"));
    let refused = hit(&with_ca);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && error.contains("--cert and --key"), "{error}");
    assert_eq!(hit(&[]).status.code(), Some(1), "without trust");
    for target in ["http://localhost:", "127.0.0.1:"] {
        let target = format!("{target}{}", weir.grpc().port());
        let plain = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["hit", "--target", &target, "--domain", "api", "user_id=zoe"])
            .output()
            .unwrap();
        let error = String::from_utf8(plain.stderr).unwrap();
        assert!(plain.status.code() == Some(1) && error.contains("write https://"), "{error}");
    }
}

#[test]
fn settings_of_tls_are_checked_together() {
    let rules = rules(RULES);
    for (arguments, said) in [
        (&["--grpc-tls-cert", "x"][..], "--grpc-tls-key"),
        (&["--grpc-tls-client-ca", "x"], "--grpc-tls-cert"),
        (&["--grpc-tls-cert", "/nowhere", "--grpc-tls-key", "/nowhere"], "/nowhere: No such file"),
        (&["--http-tls-cert", "/nowhere", "--http-tls-key", "/nowhere"], "/nowhere: No such file"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("serve")
            .args(arguments)
            .arg("--rules")
            .arg(rules.path())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}
