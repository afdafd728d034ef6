//! Redis itself is the fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::drill::{Drill, last, outage};
use crate::support::certificates::Authority;
use crate::support::redis::{RedisServer, await_that, free_port};

/// Has a server do something.
fn tell(redis: &RedisServer, command: &[&str]) {
    let [name, arguments @ ..] = command else { return };
    redis::cmd(name).arg(arguments).query::<()>(&mut redis.connection()).unwrap();
}

/// Has a server do this for a while, and then that.
async fn drill(name: &'static str, fault: &[&str], healing: &[&str]) {
    Drill::of_server(name, RedisServer::start())
        .run(|drill| {
            tell(&drill.redis, fault);
            last();
            tell(&drill.redis, healing);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_empty() {
    Drill::of_server("SIGKILL, restarted empty", RedisServer::start())
        .run(|drill| {
            drill.redis.kill();
            last();
            drill.redis.start_again();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_continued() {
    Drill::of_server("SIGSTOP, SIGCONT", RedisServer::start())
        .run(|drill| {
            drill.redis.pause();
            last();
            drill.redis.resume();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flapping() {
    let rounds = u32::try_from(outage().as_secs()).unwrap().div_ceil(2).max(3);
    Drill::of_server("flapping", RedisServer::start())
        .times(rounds)
        .run(|drill| {
            for _ in 0..rounds {
                drill.redis.kill();
                thread::sleep(Duration::from_secs(1));
                drill.redis.start_again();
                thread::sleep(Duration::from_secs(1));
            }
        })
        .await;
}

/// What its last dump has is two seconds old by then, and it says LOADING while it reads a thousand keys a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_loading_an_older_dump() {
    let slowly = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    Drill::of_server("LOADING an older dump", RedisServer::start_with(&slowly))
        .run(|drill| {
            tell(&drill.redis, &["DEBUG", "POPULATE", "2000", "key", "100"]);
            tell(&drill.redis, &["SAVE"]);
            thread::sleep(Duration::from_millis(500));
            drill.redis.kill();
            drill.redis.start_again();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory() {
    drill("OOM", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]).await;
}

/// Its replica takes its place and has it as a replica, until that is turned round again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_and_promoted() {
    let redis = RedisServer::start_with(&["--repl-diskless-sync", "no"]);
    let replica = RedisServer::start();
    let follow = |one: &RedisServer, other: &RedisServer| {
        tell(one, &["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    };
    let is_in_step = |one: &RedisServer| {
        await_that("the replica is in step", || one.info("master_link_status").as_deref() == Some("up"));
    };
    follow(&replica, &redis);
    is_in_step(&replica);
    Drill::of_server("READONLY", redis)
        .run(|drill| {
            follow(&drill.redis, &replica);
            tell(&replica, &["REPLICAOF", "NO", "ONE"]);
            is_in_step(&drill.redis);
            last();
            assert!(drill.logged("reason=\"readonly\"") > 0, "it was a replica; the log:\n{}", drill.log());
            tell(&drill.redis, &["REPLICAOF", "NO", "ONE"]);
            drop(replica);
        })
        .await;
}

/// A directory is in the place of its dump, so it cannot save, and writes no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unable_to_save() {
    Drill::of_server("MISCONF", RedisServer::start())
        .run(|drill| {
            // PING is refused, too, so all is said over a connection that is there before.
            let mut connection = drill.redis.connection();
            let mut save = |status: &str| {
                redis::cmd("BGSAVE").query::<()>(&mut connection).unwrap();
                await_that("it has saved, or failed to", || {
                    let mut info = redis::cmd("INFO");
                    let info: String = info.arg("persistence").query(&mut connection).unwrap();
                    info.contains("rdb_bgsave_in_progress:0")
                        && info.contains(&format!("rdb_last_bgsave_status:{status}"))
                });
            };
            tell(&drill.redis, &["CONFIG", "SET", "save", "3600 1000000"]);
            let (_, directory): (String, String) =
                redis::cmd("CONFIG").arg("GET").arg("dir").query(&mut drill.redis.connection()).unwrap();
            let dump = Path::new(&directory).join("dump.rdb");
            fs::create_dir(&dump).unwrap();
            save("err");
            last();
            assert!(drill.logged("reason=\"misconf\"") > 0, "it cannot write");
            fs::remove_dir(&dump).unwrap();
            save("ok");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let ca = text(directory.path().join("ca.pem"));
    fs::write(&ca, ours.pem()).unwrap();
    let pair = |authority: &Authority, name: &str| {
        let (certificate, key) = authority.sign("localhost").write(directory.path(), name);
        (text(certificate), text(key))
    };
    let ((cert, key), (other_cert, other_key)) = (pair(&ours, "ours"), pair(&theirs, "theirs"));
    let port = free_port().to_string();
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let redis =
        RedisServer::start_with(&[&["--tls-port", &port, "--tls-auth-clients", "no"], &files[..]].concat());
    let url = format!("rediss://localhost:{port}?ca={ca}");
    let show = |redis: &RedisServer, cert: &str, key: &str| {
        tell(redis, &["CONFIG", "SET", "tls-cert-file", cert, "tls-key-file", key]);
    };
    Drill::of_url("another CA", redis, &url, None)
        .run(|drill| {
            show(&drill.redis, &other_cert, &other_key);
            tell(&drill.redis, &["CLIENT", "KILL", "TYPE", "normal"]);
            last();
            assert!(drill.logged("invalid peer certificate") > 0, "it is not trusted");
            show(&drill.redis, &cert, &key);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asleep() {
    Drill::of_server("DEBUG SLEEP", RedisServer::start())
        .run(|drill| tell(&drill.redis, &["DEBUG", "SLEEP", &outage().as_secs().to_string()]))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_with_a_script() {
    Drill::of_server("BUSY", RedisServer::start_with(&["--lua-time-limit", "50"]))
        .run(|drill| {
            let mut connection = drill.redis.connection();
            let script = thread::spawn(move || {
                redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut connection)
            });
            last();
            // Only PING is refused by one that is busy, so the connection was made before it was.
            let client = redis::Client::open(drill.redis.url()).unwrap();
            let mut killer = client.get_connection().unwrap();
            redis::cmd("SCRIPT").arg("KILL").query::<()>(&mut killer).unwrap();
            assert!(script.join().unwrap().is_err(), "it was killed");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_replaced() {
    let redis = RedisServer::start();
    let password = tempfile::NamedTempFile::new().unwrap();
    fs::write(password.path(), "old").unwrap();
    tell(&redis, &["ACL", "SETUSER", "limiter", "on", ">old", "~weir:*", "+@all"]);
    let url = format!("redis://limiter@{}?password_file={}", redis.host(), password.path().display());
    Drill::of_url("WRONGPASS", redis, &url, None)
        .run(|drill| {
            tell(&drill.redis, &["ACL", "SETUSER", "limiter", "resetpass", ">new"]);
            tell(&drill.redis, &["CLIENT", "KILL", "USER", "limiter"]);
            last();
            fs::write(password.path(), "new").unwrap();
        })
        .await;
}
