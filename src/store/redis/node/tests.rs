//! A node with a real Redis that stalls, and with none.

use super::super::server::RedisServer;
use super::super::{Files, Target};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn tuning() -> Tuning {
    // A stall is to end neither the connection nor the questions in these tests, however slow the machine.
    Tuning { ping: PATIENCE, timeout: PATIENCE, ..Tuning::default() }
}

/// What leads to the one server of a URL.
fn at(url: &str) -> Resolver {
    match Target::parse(url, &Files::default()) {
        Ok(Target::Server(address)) => Resolver::Fixed(Arc::new(address)),
        other => panic!("{other:?}"),
    }
}

async fn connected(server: &RedisServer) -> Arc<Node> {
    let node = Node::new(at(&server.url()), tuning(), &Threads::default(), 7, &Arc::default());
    let until = clock::instant() + PATIENCE;
    while !node.links.iter().all(Link::is_connected) {
        assert!(clock::instant() < until, "it does not connect");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node
}

fn take(hits: u64) -> Charge {
    let limit = Limit::new(1_000.try_into().unwrap(), 86_400_000_000.try_into().unwrap());
    Charge { bucket: BucketKey(1), hits: Hits::Take(hits), mode: Mode::Enforced, limit, ..probe() }
}

async fn ask(node: &Arc<Node>, within: Duration) -> Result<Decision, Failure> {
    node.decide(Part::ONLY, &[take(1)], [Bytes::from_static(b"weir:one")], clock::instant() + within)
        .await
        .map(|answered| answered.decision)
}

fn left(decision: &Decision) -> u32 {
    decision.verdicts[0].remaining
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_redis_is_sent_no_more_than_two_batches_and_what_became_of_late_calls_can_be_learned() {
    let server = RedisServer::start();
    let node = connected(&server).await;
    assert_eq!(left(&ask(&node, PATIENCE).await.unwrap()), 999);

    server.pause();
    let mut late = Vec::new();
    for _ in 0..6 {
        let failure = ask(&node, Duration::from_millis(20)).await.unwrap_err();
        assert!(failure.error.may_have_landed(), "{failure}");
        late.push(failure.pending.expect("it is still to come"));
    }
    let fresh = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { ask(&node, PATIENCE).await })
    };
    while node.waiting() < 5 {
        tokio::task::yield_now().await;
    }
    server.resume();
    let fresh = fresh.await.unwrap().expect("those that are late do not make it late");
    let mut outcomes = vec![Ok(left(&fresh))];
    for pending in late {
        outcomes.push(pending.outcome().await.map(|answered| left(&answered.decision)));
    }
    // In some order, because there are two connections: the two batches that were under way, and no more of the late.
    outcomes[..3].sort_by_key(|outcome| outcome.clone().ok());
    let unsent = || Err(StoreError::Unsent);
    assert_eq!(outcomes, [Ok(996), Ok(997), Ok(998), unsent(), unsent(), unsent(), unsent()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_ends_by_an_error_of_ours_gives_its_lane_back_and_those_that_wait_are_served() {
    let server = RedisServer::start();
    let node = connected(&server).await;
    let push = |hits| {
        let named = NamedCharge { charge: take(hits), name: Bytes::from_static(b"weir:one") };
        node.desks
            .own()
            .queue
            .push(Part::ONLY, [named].into_iter().collect(), clock::instant() + PATIENCE, clock::instant())
            .unwrap()
    };
    let (first, lane) = push(1);
    let (second, other) = push(2);
    let (third, none) = push(3);
    assert!(none.is_none(), "both lanes are taken");
    for lane in [lane, other] {
        let held = (Arc::clone(&node), lane);
        let panicking = tokio::spawn(async move {
            let (node, lane) = held;
            let _held = Held { node: &node, desk: node.desks.own(), lane };
            panic!("an error of ours");
        });
        assert!(panicking.await.is_err());
    }
    for answer in [first, second, third] {
        assert!(Pending(answer).outcome().await.is_ok());
    }
    let end = clock::instant() + PATIENCE;
    assert!(ask(&node, PATIENCE).await.is_ok() && clock::instant() < end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_has_another_ones_timer_is_not_sent_after_that_is_due() {
    let server = RedisServer::start();
    let node = connected(&server).await;
    let queue = &node.desks.own().queue;
    let named = || NamedCharge { charge: take(1), name: Bytes::from_static(b"weir:one") };
    let charges = || [named()].into_iter().collect::<super::super::queue::Charges>();
    let now = clock::instant();
    let push = || queue.push(Part::ONLY, charges(), now, now).unwrap();
    let (_one, lane) = push();
    let (_other, _taken) = push();
    let (first, timer) = node.ask(Part::ONLY, charges(), now + PATIENCE).unwrap();
    let (second, shared) = node.ask(Part::ONLY, charges(), now + PATIENCE + PATIENCE / 20).unwrap();
    assert_eq!(shared.due, timer.due);
    assert!(queue.next(&mut lane.into_iter().next(), shared.due).is_empty());
    for late in [first, second] {
        assert_eq!(late.outcome().await, Err(StoreError::Unsent));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_writes_leaves_nothing_behind_and_fails_where_calls_would() {
    let server = RedisServer::start();
    let node = connected(&server).await;
    node.probe(PATIENCE).await.unwrap();
    let mut connection = server.connection();
    let until = clock::instant() + PATIENCE;
    while redis::cmd("EXISTS").arg(&node.probe_name(None)[..]).query::<bool>(&mut connection).unwrap() {
        assert!(clock::instant() < until, "it stays");
    }
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query::<()>(&mut connection).unwrap();
    assert_eq!(node.probe(PATIENCE).await.unwrap_err().class(), Class::OutOfMemory);
    server.pause();
    let error = node.probe(Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(error, StoreError::Late | StoreError::Stalled), "{error:?}");
    server.resume();
}

#[tokio::test]
async fn without_a_connection_calls_fail_at_once_and_say_what_was_wrong() {
    let node = Node::new(at("redis://127.0.0.1:1"), tuning(), &Threads::default(), 7, &Arc::default());
    let failure = ask(&node, PATIENCE).await.unwrap_err();
    assert_eq!(failure.error, StoreError::Disconnected(Class::Unreachable));
    assert!(failure.pending.is_none() && !failure.error.may_have_landed());
}

#[tokio::test]
async fn calls_that_find_no_connection_open_the_circuit_by_attempts_that_fail_not_by_how_many_they_are() {
    let (first, longest) = (Duration::from_secs(1), Duration::from_millis(20));
    let tuning = Tuning { reconnect_first: first, reconnect_longest: longest, ..tuning() };
    let node = Node::new(at("redis://127.0.0.1:1"), tuning, &Threads::default(), 7, &Arc::default());
    for _ in 0..1_000 {
        assert!(ask(&node, PATIENCE).await.is_err());
    }
    assert!(node.breaker().is_closed());
    let until = clock::instant() + PATIENCE;
    while node.breaker().is_closed() {
        assert!(clock::instant() < until, "it never opens");
        _ = ask(&node, PATIENCE).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_policy_that_changes_while_connected_is_seen() {
    let server = RedisServer::start();
    let often = Duration::from_millis(200);
    let node = Node::new(
        at(&server.url()),
        Tuning { ping: often, policy: often, ..tuning() },
        &Threads::default(),
        7,
        &Arc::default(),
    );
    let mut connection = server.connection();
    let until = clock::instant() + PATIENCE;
    for policy in ["noeviction", "allkeys-lru", "noeviction"] {
        redis::cmd("CONFIG")
            .arg("SET")
            .arg("maxmemory-policy")
            .arg(policy)
            .query::<()>(&mut connection)
            .unwrap();
        while node.eviction_policy().is_none_or(|seen| *seen != policy) {
            assert!(clock::instant() < until, "{policy} is not seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut told = Collection::default();
        node.collect("default", &mut told);
        let evicts = if policy == "noeviction" { 0.0 } else { 1.0 };
        assert_eq!(told.find(&REDIS_EVICTS, &["default", node.name()]), Some(evicts), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_may_not_be_counted_decides_all_the_same_and_tells_so() {
    let server = RedisServer::start();
    for command in ["zadd", "zcard"] {
        let user = ["limiter", "reset", "on", ">word", "~weir:*", "+@all", &format!("-{command}")];
        redis::cmd("ACL").arg("SETUSER").arg(&user).query::<()>(&mut server.connection()).unwrap();
        let url = format!("redis://limiter:word@{}", server.host());
        let often = Duration::from_millis(50);
        let node = Node::new(
            at(&url),
            Tuning { heartbeat: often, ..tuning() },
            &Threads::default(),
            7,
            &Arc::default(),
        );
        let until = clock::instant() + PATIENCE;
        while node.replicas.failed() < 3 {
            assert!(clock::instant() < until, "{command}: nothing fails");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(ask(&node, PATIENCE).await.is_ok(), "{command}");
        let (mut connection, _) = node.connection().unwrap();
        let refused = node.heart().beat(&mut connection, often).await.unwrap_err();
        assert_eq!(class(&refused), Class::Forbidden, "{command}: {refused}");

        redis::cmd("ACL")
            .arg("SETUSER")
            .arg("limiter")
            .arg("+@all")
            .query::<()>(&mut server.connection())
            .unwrap();
        while node.heart().beat(&mut connection, often).await.is_err() {
            assert!(clock::instant() < until, "{command}: still not counted");
        }
        node.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_reply_was_lost_with_all_connections_is_learned_of_and_counts_once() {
    let server = RedisServer::start();
    let node = connected(&server).await;
    // It knows the script from now on: what it is sent next it decides.
    assert_eq!(left(&ask(&node, PATIENCE).await.unwrap()), 999);
    server.pause();
    // Long enough to be on its way, however busy the machine.
    let failure = ask(&node, Duration::from_millis(500)).await.unwrap_err();
    let pending = failure.pending.expect("it is still to come");
    assert_eq!(node.waiting(), 0);
    // What was sent lies before Redis, which will decide it; nobody is there to read the reply.
    let reset = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
    for link in &node.links {
        link.found_broken(&link.live().unwrap(), &reset);
    }
    assert!(!node.is_connected());
    server.resume();
    let learned = pending.outcome().await.expect("it was noted");
    assert_eq!(left(&learned.decision), 998);
    while !node.is_connected() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(left(&ask(&node, PATIENCE).await.unwrap()), 997, "it has been charged twice, or not at all");
}
