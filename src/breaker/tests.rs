use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::*;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Opens after three failures in a row, or when half of ten failed.
fn thresholds() -> Thresholds {
    Thresholds {
        failures: NonZeroU32::new(3).unwrap(),
        least_asked: NonZeroU32::new(10).unwrap(),
        ..Thresholds::default()
    }
}

fn circuit() -> (Circuit, Instant) {
    let now = clock::instant();
    (Circuit::new(thresholds(), now), now)
}

fn fail(circuit: &mut Circuit, times: u32, now: Instant) {
    (0..times).for_each(|_| circuit.failed(now, 0.0));
}

/// An open circuit that is due at `now`, and `now`.
fn due() -> (Circuit, Instant) {
    let (mut circuit, now) = circuit();
    fail(&mut circuit, 3, now);
    (circuit, now + SECOND)
}

#[test]
fn it_starts_closed_and_probes_nothing() {
    let (mut circuit, now) = circuit();
    assert_eq!((circuit.state(), circuit.next_probe()), (State::Closed, None));
    assert!(!circuit.begin_probe(now + 1_000 * SECOND));
}

#[test]
fn failures_in_a_row_open_it_and_one_less_does_not() {
    let (mut circuit, now) = circuit();
    fail(&mut circuit, 2, now);
    assert_eq!(circuit.state(), State::Closed);
    fail(&mut circuit, 1, now);
    assert_eq!((circuit.state(), circuit.next_probe()), (State::Open, Some(now + SECOND)));
}

#[test]
fn a_success_in_between_begins_the_row_anew() {
    let (mut circuit, now) = circuit();
    for _ in 0..4 {
        fail(&mut circuit, 1, now);
        circuit.succeeded(now);
        circuit.succeeded(now);
    }
    assert_eq!(circuit.state(), State::Closed, "never three in a row, a third failed");
}

#[test]
fn half_of_what_was_asked_lately_opens_it() {
    let (mut circuit, now) = circuit();
    for _ in 0..5 {
        circuit.succeeded(now);
        assert_eq!(circuit.state(), State::Closed);
        fail(&mut circuit, 1, now);
    }
    assert_eq!(circuit.state(), State::Open, "five of ten");
}

#[test]
fn little_that_was_asked_says_nothing_of_the_rate() {
    let (mut circuit, now) = circuit();
    for _ in 0..3 {
        fail(&mut circuit, 2, now);
        circuit.succeeded(now);
    }
    assert_eq!(circuit.state(), State::Closed, "six of nine");
}

#[test]
fn what_is_older_than_the_window_is_forgotten_a_part_at_a_time() {
    let (mut circuit, start) = circuit();
    for _ in 0..4 {
        fail(&mut circuit, 1, start);
        circuit.succeeded(start);
    }
    // Eight, of which half failed; two more failures would open it.
    let later = start + 10 * SECOND;
    for _ in 0..8 {
        circuit.succeeded(later);
    }
    fail(&mut circuit, 2, later);
    assert_eq!(circuit.state(), State::Closed, "two of ten");

    let mut circuit = Circuit::new(thresholds(), start);
    for _ in 0..4 {
        fail(&mut circuit, 1, start);
        circuit.succeeded(start);
    }
    let sooner = start + 10 * SECOND - MILLI;
    circuit.succeeded(sooner);
    fail(&mut circuit, 1, sooner);
    assert_eq!(circuit.state(), State::Open, "five of ten");
}

#[test]
fn a_silence_longer_than_any_window_begins_the_count_anew() {
    let (mut circuit, start) = circuit();
    for _ in 0..4 {
        fail(&mut circuit, 1, start);
        circuit.succeeded(start);
    }
    let later = start + 3_600 * SECOND;
    circuit.succeeded(later);
    fail(&mut circuit, 2, later);
    assert_eq!(circuit.state(), State::Closed);
}

#[test]
fn it_stays_open_until_the_time_is_over_and_probes_at_that_moment() {
    let (mut circuit, due) = due();
    assert!(!circuit.begin_probe(due - MILLI));
    assert_eq!(circuit.state(), State::Open);
    assert!(circuit.begin_probe(due));
    assert_eq!(circuit.state(), State::Probing);
}

#[test]
fn what_is_answered_or_fails_while_it_is_open_says_nothing() {
    let (mut circuit, due) = due();
    circuit.succeeded(due);
    fail(&mut circuit, 10, due);
    assert_eq!((circuit.state(), circuit.next_probe()), (State::Open, Some(due)));
    circuit.probe_succeeded(due);
    circuit.probe_failed(due, 0.0);
    assert_eq!((circuit.state(), circuit.next_probe()), (State::Open, Some(due)), "nothing was probed");
}

#[test]
fn a_late_answer_from_before_neither_closes_nor_opens_what_is_probing() {
    let (mut circuit, due) = due();
    assert!(circuit.begin_probe(due));
    circuit.succeeded(due);
    circuit.succeeded(due);
    fail(&mut circuit, 10, due);
    assert_eq!(circuit.state(), State::Probing);
}

#[test]
fn as_many_probes_as_wanted_close_it_with_a_pause_between_them() {
    let (mut circuit, due) = due();
    assert!(circuit.begin_probe(due));
    circuit.probe_succeeded(due);
    assert_eq!(circuit.state(), State::Probing);
    assert!(!circuit.begin_probe(due));
    let next = circuit.next_probe().unwrap();
    assert_eq!(next, due + 100 * MILLI);
    assert!(circuit.begin_probe(next));
    circuit.probe_succeeded(next);
    assert_eq!((circuit.state(), circuit.next_probe()), (State::Closed, None));
}

#[test]
fn a_probe_that_fails_opens_it_again_for_twice_as_long() {
    let (mut circuit, due) = due();
    assert!(circuit.begin_probe(due));
    circuit.probe_failed(due, 0.0);
    assert_eq!((circuit.state(), circuit.next_probe()), (State::Open, Some(due + 2 * SECOND)));
}

#[test]
fn a_probe_that_fails_after_one_that_was_answered_opens_it_again() {
    let (mut circuit, due) = due();
    assert!(circuit.begin_probe(due));
    circuit.probe_succeeded(due);
    circuit.probe_failed(due + 100 * MILLI, 0.0);
    assert_eq!(circuit.state(), State::Open);
    let again = circuit.next_probe().unwrap();
    assert!(circuit.begin_probe(again));
    circuit.probe_succeeded(again);
    assert_eq!(circuit.state(), State::Probing, "the count begins anew");
}

#[test]
fn the_time_it_stays_open_grows_to_the_longest_and_no_further() {
    for lot in [0.0, 0.5, 1.0] {
        let (mut circuit, mut now) = circuit();
        (0..3).for_each(|_| circuit.failed(now, lot));
        let mut lengths = Vec::new();
        for _ in 0..40 {
            let next = circuit.next_probe().unwrap();
            lengths.push(next - now);
            now = next;
            assert!(circuit.begin_probe(now));
            circuit.probe_failed(now, lot);
        }
        assert!(lengths.is_sorted(), "{lengths:?}");
        assert!(lengths.iter().all(|length| *length >= SECOND && *length <= 10 * SECOND), "{lengths:?}");
        assert_eq!(lengths[0], SECOND.mul_f64(1.0 + 0.25 * lot));
        assert!(lengths[39] >= 8 * SECOND);
    }
}

#[test]
fn the_lot_spreads_processes_at_every_length() {
    for failures in 0..10 {
        let until = |lot| {
            let (mut circuit, mut now) = circuit();
            (0..3).for_each(|_| circuit.failed(now, lot));
            for _ in 0..failures {
                now = circuit.next_probe().unwrap();
                assert!(circuit.begin_probe(now));
                circuit.probe_failed(now, lot);
            }
            circuit.next_probe().unwrap() - now
        };
        assert!(until(1.0) >= until(0.0) + SECOND / 4, "{:?} {:?}", until(0.0), until(1.0));
    }
}

#[test]
fn a_store_that_comes_and_goes_is_left_alone_for_longer_each_time() {
    let (mut circuit, mut now) = circuit();
    let mut lengths = Vec::new();
    for _ in 0..6 {
        fail(&mut circuit, 3, now);
        let next = circuit.next_probe().unwrap();
        lengths.push((next - now).as_secs());
        now = next;
        for _ in 0..2 {
            assert!(circuit.begin_probe(now));
            circuit.probe_succeeded(now);
            now = circuit.next_probe().unwrap_or(now);
        }
        assert_eq!(circuit.state(), State::Closed);
        // It is up for a second.
        now += SECOND;
        circuit.succeeded(now);
    }
    assert_eq!(lengths, [1, 2, 4, 8, 8, 8]);
}

#[test]
fn after_a_long_time_closed_a_failure_is_a_first_one_again() {
    let (mut circuit, mut now) = due();
    for _ in 0..4 {
        assert!(circuit.begin_probe(now));
        circuit.probe_failed(now, 0.0);
        now = circuit.next_probe().unwrap();
    }
    for _ in 0..2 {
        assert!(circuit.begin_probe(now));
        circuit.probe_succeeded(now);
        now = circuit.next_probe().unwrap_or(now);
    }
    let closed = now;
    now = closed + 10 * SECOND;
    let mut soon = Circuit { thresholds: thresholds(), phase: Circuit::closed(closed), openings: 5 };
    fail(&mut soon, 3, now);
    assert_eq!(soon.next_probe(), Some(now + 8 * SECOND), "not for longer than it may be open");
    now += MILLI;
    fail(&mut circuit, 3, now);
    assert_eq!(circuit.next_probe(), Some(now + SECOND));
}

#[test]
fn a_shortest_time_above_the_longest_is_the_time() {
    let now = clock::instant();
    let thresholds = Thresholds { open: 20 * SECOND, longest_open: 10 * SECOND, ..thresholds() };
    let mut circuit = Circuit::new(thresholds, now);
    fail(&mut circuit, 3, now);
    assert_eq!(circuit.next_probe(), Some(now + 20 * SECOND));
}

#[test]
fn one_failure_opens_it_if_one_is_enough() {
    let now = clock::instant();
    let mut circuit = Circuit::new(Thresholds { failures: NonZeroU32::MIN, ..thresholds() }, now);
    fail(&mut circuit, 1, now);
    assert_eq!(circuit.state(), State::Open);
}

/// A breaker whose probes answer what `answer` holds, and the moments of the probes.
fn tended(answer: &Rc<Cell<bool>>) -> (Rc<Breaker>, Rc<RefCell<Vec<Instant>>>, tokio::task::JoinHandle<()>) {
    let breaker = Rc::new(Breaker::new("test", thresholds()));
    let probes = Rc::new(RefCell::new(Vec::new()));
    let tending = {
        let (breaker, probes, answer) = (Rc::clone(&breaker), Rc::clone(&probes), Rc::clone(answer));
        tokio::task::spawn_local(async move {
            breaker
                .keep_probing(
                    || async {
                        probes.borrow_mut().push(clock::instant());
                        tokio::time::sleep(10 * MILLI).await;
                        if answer.get() { Ok(()) } else { Err("still gone") }
                    },
                    |_| "gone",
                )
                .await;
        })
    };
    (breaker, probes, tending)
}

#[tokio::test(start_paused = true)]
async fn probes_are_made_in_the_background_one_at_a_time_until_the_store_is_back() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let answer = Rc::new(Cell::new(false));
            let (breaker, probes, tending) = tended(&answer);
            tokio::time::sleep(60 * SECOND).await;
            assert!(probes.borrow().is_empty(), "nothing is probed while it is closed");

            (0..3).for_each(|_| breaker.failed("test"));
            assert!(!breaker.is_closed());
            assert!(breaker.next_probe_in().is_some_and(|wait| wait >= SECOND));
            tokio::time::sleep(60 * SECOND).await;
            assert!(!breaker.is_closed());
            let count = probes.borrow().len();
            assert!((7..=12).contains(&count), "{count} probes in a minute");
            let apart = probes.borrow().windows(2).all(|pair| pair[1] - pair[0] >= SECOND);
            assert!(apart, "{:?}", probes.borrow());
            assert_eq!(breaker.openings(), 1 + count as u64);

            answer.set(true);
            tokio::time::sleep(12 * SECOND).await;
            assert!(breaker.is_closed());
            assert_eq!((breaker.state(), breaker.next_probe_in()), (State::Closed, None));
            let count = probes.borrow().len();
            tokio::time::sleep(60 * SECOND).await;
            assert_eq!(probes.borrow().len(), count, "nothing is probed any more");

            (0..3).for_each(|_| breaker.failed("test"));
            tokio::time::sleep(2 * SECOND).await;
            assert!(breaker.is_closed(), "it opened and closed again");
            assert_eq!(probes.borrow().len(), count + 2);
            tending.abort();
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn many_that_fail_at_once_open_it_once() {
    let breaker = Breaker::new("test", thresholds());
    (0..100).for_each(|_| breaker.failed("test"));
    assert_eq!((breaker.openings(), breaker.state()), (1, State::Open));
    (0..100).for_each(|_| breaker.succeeded());
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn successes_and_failures_below_the_thresholds_leave_it_closed() {
    let breaker = Breaker::new("test", thresholds());
    for _ in 0..1_000 {
        breaker.failed("test");
        (0..3).for_each(|_| breaker.succeeded());
        tokio::time::sleep(10 * MILLI).await;
    }
    assert!(breaker.is_closed());
}
