//! The rule sets of `config/examples`, each asked what its comments promise.

use std::path::Path;

use tonic::transport::Channel;
use weir::clock::Clock;
use weir::decision::OnRedisFailure;
use weir::proto::{
    Code, Entry, RateLimitDescriptor, RateLimitRequest, RateLimitResponse, RateLimitServiceClient,
};
use weir::rules::{RuleSet, load};
use weir::settings::{RedisUrl, Settings};

use crate::support::server::{Server, settings};

const QUARTER: i64 = 15 * 60;

fn path(example: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples").join(example)
}

/// A server with the rules of one example, and a caller.
struct Example {
    domain: &'static str,
    client: RateLimitServiceClient<Channel>,
    _server: Server,
}

impl Example {
    async fn start(domain: &'static str, file: &str) -> Self {
        Self::start_with(domain, settings(&path(file))).await
    }

    async fn start_with(domain: &'static str, settings: Settings) -> Self {
        let server = Server::start(settings).await;
        Self { domain, client: server.client().await, _server: server }
    }

    /// Asks with descriptors such as `action=create,remote_address=x`; one that ends in `*3` has so many hits.
    async fn ask(&mut self, descriptors: &[&str]) -> RateLimitResponse {
        let descriptor = |text: &&str| {
            let (entries, hits) = text.split_once('*').unwrap_or((text, ""));
            let entry = |pair: &str| {
                let (key, value) = pair.split_once('=').unwrap();
                Entry { key: key.to_owned().into(), value: value.to_owned().into() }
            };
            RateLimitDescriptor {
                entries: entries.split(',').map(entry).collect(),
                hits_addend: hits.parse().ok(),
                ..RateLimitDescriptor::default()
            }
        };
        let request = RateLimitRequest {
            domain: self.domain.into(),
            descriptors: descriptors.iter().map(descriptor).collect(),
            hits_addend: 0,
        };
        self.client.should_rate_limit(request).await.unwrap().into_inner()
    }

    async fn passes(&mut self, descriptors: &[&str]) -> bool {
        self.ask(descriptors).await.overall_code() == Code::Ok
    }

    /// How many such requests pass in a row, of `most`.
    async fn admitted(&mut self, most: usize, descriptors: &[&str]) -> usize {
        for passed in 0..most {
            if !self.passes(descriptors).await {
                return passed;
            }
        }
        most
    }

    async fn left(&mut self, descriptor: &str) -> u32 {
        self.ask(&[&format!("{descriptor}*0")]).await.statuses[0].limit_remaining
    }
}

/// How long the denied are told to wait, in seconds.
fn wait(answer: &RateLimitResponse) -> i64 {
    assert_eq!(answer.overall_code(), Code::OverLimit);
    header(answer, "retry-after").expect("a denial says when to come back").parse().unwrap()
}

/// What the denied get, and as what.
fn body(answer: &RateLimitResponse) -> (String, Option<&str>) {
    (String::from_utf8(answer.raw_body.clone()).unwrap(), header(answer, "content-type"))
}

fn header<'a>(answer: &'a RateLimitResponse, name: &str) -> Option<&'a str> {
    let found = answer.response_headers_to_add.iter().find(|header| header.key == name);
    found.map(|header| header.value.as_str())
}

fn without_redis(set: &RuleSet, domain: &str, descriptor: &[(&str, &str)]) -> Option<OnRedisFailure> {
    let entries: Vec<_> = descriptor
        .iter()
        .map(|(key, value)| weir::rules::Entry { key: key.as_bytes(), value: value.as_bytes() })
        .collect();
    set.domain(domain).unwrap().find(&entries).unwrap().on_redis_failure
}

#[tokio::test]
async fn login_is_strict_for_each_address_and_each_account() {
    let mut login = Example::start("login", "login.yaml").await;
    let mallory =
        |account: &str| [String::from("login_address=192.0.2.66"), format!("login_account={account}")];
    // One address, one account: five tries.
    let ann = mallory("ann");
    let ann: Vec<&str> = ann.iter().map(String::as_str).collect();
    assert_eq!(login.admitted(10, &ann).await, 5);
    let denied = login.ask(&ann).await;
    assert!((1..=QUARTER * 9 / 8).contains(&wait(&denied)), "{denied:?}");
    let text = Some("text/plain; charset=utf-8");
    let said = "Too many attempts for this account. Try again in a few minutes, or set a new password.";
    assert_eq!(body(&denied), (said.into(), text));
    // The account is shut from other addresses too, and its owner's address has paid nothing for that.
    assert!(!login.passes(&["login_address=192.0.2.1", "login_account=ann"]).await);
    assert_eq!(login.left("login_address=192.0.2.1").await, 20);
    // One address, many accounts: what is left of twenty, and the others' accounts have lost nothing by what was denied.
    let mut tries = 0;
    for n in 0..40 {
        let other = mallory(&n.to_string());
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        tries += usize::from(login.passes(&other).await);
    }
    assert_eq!(tries, 15);
    let denied = login.ask(&["login_address=192.0.2.66"]).await;
    assert!(body(&denied).0.starts_with("Too many attempts from your network."), "{denied:?}");
    assert_eq!((login.left("login_account=0").await, login.left("login_account=39").await), (4, 5));
    // The office shares its own, larger limit.
    for address in ["198.51.100.3", "198.51.100.9"] {
        assert_eq!(login.admitted(100, &[&format!("login_address={address}")]).await, 100);
    }
    assert!(!login.passes(&["login_address=198.51.100.4"]).await);
    assert_eq!(login.admitted(9, &["reset_address=192.0.2.5", "reset_account=bob"]).await, 2);
    assert_eq!(login.admitted(9, &["code_account=bob"]).await, 5);
}

#[tokio::test]
async fn users_of_the_public_api_have_what_their_tier_says() {
    let mut api = Example::start("public-api", "public-api.yaml").await;
    // All see what they have; of four fifths of it they are told.
    let answer = api.ask(&["user_id=ivy*47"]).await;
    let told = ["x-ratelimit-limit", "x-ratelimit-remaining"].map(|name| header(&answer, name));
    assert_eq!((told, header(&answer, "x-ratelimit-warning")), ([Some("60"), Some("13")], None));
    let answer = api.ask(&["user_id=ivy*5"]).await;
    let warning = header(&answer, "x-ratelimit-warning").unwrap_or_default();
    assert!(warning.starts_with("\"requests\";r="), "{answer:?}");
    let json = Some("application/json");
    let denied = api.ask(&["user_id=ivy*50"]).await;
    assert_eq!(body(&denied), (r#"{"error":"rate_limited","message":"Too many requests."}"#.into(), json));
    let denied = api.ask(&["remote_address=192.0.2.8*11"]).await;
    assert_eq!(body(&denied), (r#"{"error":"rate_limited","message":"Log in for more."}"#.into(), json));

    // Some come back meanwhile.
    for (user, burst, most) in [("ann", 60, 120), ("zen", 100, 1_000)] {
        let passed = api.admitted(most, &[&format!("user_id={user}")]).await;
        assert!((burst..most).contains(&passed), "{user}: {passed}");
    }
    assert_eq!(api.admitted(500, &["user_id=acme"]).await, 500);
    // The tightest of a user's limits is what is shown: of the day's, for somebody who has used up much of it.
    let answer = api.ask(&["user_id=bob"]).await;
    assert_eq!(answer.statuses[0].limit_remaining, 59);
    // Writing has a limit beside the other, and what it denies costs nothing of that.
    let write = ["user_id=eve", "write=1,user_id=eve"];
    let written = api.admitted(30, &write).await;
    assert!((10..20).contains(&written), "{written}");
    assert!(wait(&api.ask(&write).await) <= 6);
    let left = api.left("user_id=eve").await as usize;
    assert!((60 - written..60).contains(&left), "{left} left after {written}");

    // By the proxy's word, with the same bucket for whoever is moved.
    let claim = |tier: &str| format!("tier={tier},user_id=kim");
    assert_eq!(api.ask(&[&claim("pro")]).await.statuses[0].limit_remaining, 99);
    let left = api.ask(&[&claim("gold")]).await.statuses[0].limit_remaining;
    assert!((58..60).contains(&left), "no such tier, and so free: {left}");

    assert!((10..30).contains(&api.admitted(30, &["remote_address=192.0.2.7", "anonymous=1"]).await));
    assert!(api.left("anonymous=1").await > 100);
}

#[test]
fn login_and_guesses_are_denied_while_redis_is_gone() {
    let login = load(&path("login.yaml"), Clock::system().now()).unwrap();
    for key in ["login_address", "login_account", "reset_address", "reset_account", "code_account"] {
        assert_eq!(without_redis(&login, "login", &[(key, "x")]), Some(OnRedisFailure::Deny), "{key}");
    }
    let secrets = load(&path("secrets.yaml"), Clock::system().now()).unwrap();
    let kind = |kind| without_redis(&secrets, "secrets", &[("action", kind), ("remote_address", "x")]);
    assert_eq!((kind("submit"), kind("create")), (Some(OnRedisFailure::Deny), None));
}

#[tokio::test]
async fn without_redis_a_login_is_denied_and_making_a_secret_is_not() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone =
        |file| Settings { redis: Some(RedisUrl(format!("redis://{nobody}"))), ..settings(&path(file)) };
    let mut login = Example::start_with("login", gone("login.yaml")).await;
    for descriptors in [&["login_address=192.0.2.7", "login_account=ann"][..], &["code_account=ann"]] {
        assert!(!login.passes(descriptors).await, "{descriptors:?}");
    }
    let mut secrets = Example::start_with("secrets", gone("secrets.yaml")).await;
    let kind = |kind: &str| format!("action={kind},remote_address=192.0.2.7");
    assert!(secrets.passes(&["remote_address=192.0.2.7", &kind("create")]).await);
    assert!(!secrets.passes(&["remote_address=192.0.2.7", &kind("submit")]).await);
}

#[tokio::test]
async fn secrets_have_a_limit_for_all_and_one_for_each_kind_in_15_minutes_for_each_address() {
    let mut secrets = Example::start("secrets", "secrets.yaml").await;
    let mut general = 0;
    for (kind, limit) in [("create", 10), ("submit", 5), ("retrieve", 10)] {
        let request = ["remote_address=192.0.2.7", &format!("action={kind},remote_address=192.0.2.7")];
        assert_eq!(secrets.admitted(50, &request).await, limit, "{kind}");
        let answer = secrets.ask(&request).await;
        assert!((1..=QUARTER * 9 / 8).contains(&wait(&answer)), "{kind}: {answer:?}");
        assert_eq!(body(&answer).0.starts_with("Too many wrong passphrases."), kind == "submit");
        general += limit;
    }
    // What was denied cost nothing of the hundred.
    assert_eq!(secrets.admitted(200, &["remote_address=192.0.2.7"]).await, 100 - general);
    // Another address has all of it.
    let request = ["remote_address=192.0.2.8", "action=submit,remote_address=192.0.2.8"];
    assert_eq!(secrets.admitted(50, &request).await, 5);
    assert_eq!(secrets.left("remote_address=192.0.2.8").await, 95);
}

#[tokio::test]
async fn a_users_requests_tokens_and_credits_are_limited_at_the_llm_gateway() {
    let mut llm = Example::start("llm", "llm.yaml").await;
    // Ten at once; the eleventh comes back a second later.
    let passed = llm.admitted(40, &["user_id=ann"]).await;
    assert!((10..30).contains(&passed), "{passed}");
    assert!((1..=3).contains(&wait(&llm.ask(&["user_id=ann*3"]).await)));

    // Asked beforehand, charged afterwards, into debt: paid off at 20000 a minute.
    let before = ["tokens=large,user_id=ann*0", "credits=spend,user_id=ann*10"];
    assert!(llm.passes(&before).await);
    assert!(llm.passes(&["tokens=large,user_id=ann*15000"]).await);
    assert!(llm.passes(&before).await, "5000 are left");
    llm.ask(&["tokens=large,user_id=ann*25000"]).await;
    let denied = llm.ask(&before).await;
    let pays_off = wait(&denied);
    assert!((50..=61).contains(&pays_off), "{pays_off}");
    // Its credits were not touched by what was denied, and small models have tokens of their own.
    assert_eq!(llm.left("credits=spend,user_id=ann").await, 980);
    assert!(llm.passes(&["tokens=small,user_id=ann*0"]).await);
    assert!(llm.passes(&["tokens=large,user_id=bob*0"]).await);

    let spent = llm.ask(&["credits=spend,user_id=eve*890"]).await;
    assert_eq!(header(&spent, "x-ratelimit-warning"), None);
    let spent = llm.ask(&["credits=spend,user_id=eve*10"]).await;
    assert!(
        header(&spent, "x-ratelimit-warning")
            .is_some_and(|warning| warning.starts_with("\"credits\";r=100;t="))
    );

    assert_eq!(llm.admitted(200, &["credits=spend,user_id=ann*10"]).await, 98);
    let denied = llm.ask(&["credits=spend,user_id=ann*10"]).await;
    assert_eq!(body(&denied).0, "Today's credits are spent. New ones come at midnight UTC.");
    let midnight = wait(&denied);
    assert!((1..=86_400).contains(&midnight), "{midnight}");
}

/// They stand below `config`, which is what `weir serve` reads when nothing else is said.
#[test]
fn examples_have_domains_of_their_own_so_that_all_may_be_served_at_once() {
    let all = load(path("..").as_path(), 0).unwrap();
    let mut domains: Vec<&str> = all.domains().map(|(name, _)| name).collect();
    domains.retain(|domain| *domain != "api");
    let files = std::fs::read_dir(path("")).unwrap().count();
    assert_eq!((domains.len(), all.files()), (files, files + 1), "{domains:?}");
}
