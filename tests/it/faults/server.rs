//! Redis itself is the fault.

use std::fs;
use std::thread;
use std::time::Duration;

use super::drill::{Drill, last, outage};
use crate::support::redis::{RedisServer, free_port};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_and_promoted() {
    let nobody = free_port().to_string();
    drill("READONLY", &["REPLICAOF", "127.0.0.1", &nobody], &["REPLICAOF", "NO", "ONE"]).await;
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
