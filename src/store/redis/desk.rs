//! Desks: where calls wait for a server, one desk for each thread that serves calls.
//!
//! What the calls of a thread ask for goes over a connection that the same thread reads, and the answers are handed out on
//! it: nothing of a batch passes from one thread to another. That would cost a system call for each call that is woken over
//! there, and a change of threads on its way to Redis and back.

use std::sync::Arc;

use tokio::runtime::{Handle, Id};

use super::queue::{Lane, Queue};
use super::timers::Timers;
use super::tuning::Tuning;

/// Desks of a server, at most: as many threads keep Redis's only one busy, and with more of them fewer calls would share
/// a round trip.
const MOST: usize = 4;

/// Threads that serve calls, by their runtimes.
#[derive(Clone, Debug, Default)]
pub struct Threads(Arc<[Handle]>);

impl Threads {
    /// How many desks are theirs: one at least, which is for calls that come from anywhere.
    pub(super) fn desks(&self) -> usize {
        self.0.len().clamp(1, MOST)
    }

    /// How many lanes these desks have together, at most.
    pub(super) fn lanes(&self, tuning: &Tuning) -> usize {
        tuning.batches.next_multiple_of(self.desks())
    }

    /// Distinct buckets of a batch: where these threads have more batches under way than are set, smaller ones, so that no
    /// more buckets are before Redis at a time.
    fn batch_buckets(&self, tuning: &Tuning) -> usize {
        (tuning.batch_buckets.saturating_mul(tuning.batches) / self.lanes(tuning).max(1)).max(1)
    }
}

impl FromIterator<Handle> for Threads {
    fn from_iter<I: IntoIterator<Item = Handle>>(runtimes: I) -> Self {
        Self(runtimes.into_iter().collect())
    }
}

/// Where the calls of a thread wait.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) queue: Queue,
    pub(super) timers: Timers,
    /// What runs its batches and its connections.
    pub(super) runtime: Handle,
}

/// All desks of a server.
#[derive(Debug)]
pub(super) struct Desks {
    first: Arc<Desk>,
    others: Vec<Arc<Desk>>,
    /// Whose desk is which.
    threads: Vec<(Id, Arc<Desk>)>,
}

impl Desks {
    /// A desk for each of the threads, or some of them for several; without any, one on the runtime that this is called in.
    /// `note` names what lanes are noted under, by their numbers.
    pub(super) fn new(threads: &Threads, tuning: &Tuning, note: impl Fn(usize) -> Vec<u8>) -> Self {
        let count = threads.desks();
        let desk = |number: usize, runtime: &Handle| {
            let lane = |place: usize| {
                let number = number + place * count;
                // Its thread's own connection; where there is but one desk, each of its lanes has one.
                let link = if count > 1 { number % count } else { place };
                Lane { note: note(number), number: 0, link, taken: None }
            };
            let lanes = (0..tuning.batches.div_ceil(count)).map(lane).collect();
            let most = tuning.queue.div_ceil(count);
            let queue =
                Queue::new(lanes, most, threads.batch_buckets(tuning), tuning.batch_charges, tuning.timeout);
            Arc::new(Desk { queue, timers: Timers::default(), runtime: runtime.clone() })
        };
        let Some(first) = threads.0.first() else {
            let first = desk(0, &Handle::current());
            return Self { first, others: Vec::new(), threads: Vec::new() };
        };
        let first = desk(0, first);
        let others: Vec<_> =
            (1..count).zip(threads.0.iter().skip(1)).map(|(number, runtime)| desk(number, runtime)).collect();
        let all = std::iter::once(&first).chain(&others).cycle();
        let threads = threads.0.iter().zip(all).map(|(runtime, desk)| (runtime.id(), Arc::clone(desk)));
        Self { threads: threads.collect(), first, others }
    }

    /// The desk of the thread that this is called on, or the first one's for those who have none.
    pub(super) fn own(&self) -> &Arc<Desk> {
        if self.threads.is_empty() {
            return &self.first;
        }
        let own = Handle::try_current().map(|runtime| runtime.id()).ok();
        let found = self.threads.iter().find(|(thread, _)| Some(*thread) == own);
        found.map_or(&self.first, |(_, desk)| desk)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Desk>> + Clone {
        std::iter::once(&self.first).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::clock;
    use crate::store::redis::Part;

    fn runtimes(count: usize) -> Vec<Runtime> {
        (0..count).map(|_| Builder::new_current_thread().build().unwrap()).collect()
    }

    fn desks(runtimes: &[Runtime], tuning: &Tuning) -> (Desks, Threads) {
        let threads: Threads = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
        let note = |lane: usize| lane.to_string().into_bytes();
        (Desks::new(&threads, tuning, note), threads)
    }

    /// The lanes of a desk, as they are handed out: the number in their note, and their connection.
    fn lanes(desk: &Desk) -> Vec<(String, usize)> {
        let deadline = clock::instant() + Duration::from_secs(1);
        let now = clock::instant();
        let push =
            || desk.queue.push(Part::ONLY, super::super::queue::Charges::new(), deadline, now).unwrap();
        let lanes = std::iter::from_fn(|| push().1);
        lanes.map(|lane| (String::from_utf8(lane.note).unwrap(), lane.link)).collect()
    }

    #[test]
    fn each_thread_has_a_desk_and_a_connection_of_its_own() {
        let runtimes = runtimes(3);
        let (desks, threads) = desks(&runtimes, &Tuning { batches: 5, ..Tuning::default() });
        assert_eq!((threads.desks(), threads.lanes(&Tuning { batches: 5, ..Tuning::default() })), (3, 6));
        let mut notes = BTreeSet::new();
        for (number, runtime) in runtimes.iter().enumerate() {
            let desk = runtime.block_on(async { Arc::clone(desks.own()) });
            assert_eq!(desk.runtime.id(), runtime.handle().id());
            let lanes = lanes(&desk);
            assert_eq!(lanes.len(), 2);
            assert!(lanes.iter().all(|(_, link)| *link == number), "{lanes:?}");
            notes.extend(lanes.into_iter().map(|(note, _)| note));
        }
        let six: BTreeSet<String> = (0..6).map(|lane: usize| lane.to_string()).collect();
        assert_eq!(notes, six, "no two lanes are noted under one name");
    }

    #[test]
    fn however_many_threads_have_batches_under_way_no_more_buckets_are_before_redis() {
        let buckets = |threads: usize, batches| {
            let runtimes = runtimes(threads);
            let (desks, threads) =
                desks(&runtimes, &Tuning { batches, batch_buckets: 256, ..Tuning::default() });
            let all: usize = desks.iter().map(|desk| lanes(desk).len() * desk.queue.max_buckets()).sum();
            (threads.desks(), all)
        };
        assert_eq!(
            [1, 2, 4, 10].map(|threads| buckets(threads, 2)),
            [(1, 512), (2, 512), (4, 512), (4, 512)]
        );
        assert_eq!(buckets(4, 4), (4, 1024));
        assert_eq!(buckets(4, 1), (4, 256));
    }

    #[test]
    fn more_threads_than_desks_share_them_evenly() {
        let runtimes = runtimes(10);
        let (desks, _) = desks(&runtimes, &Tuning::default());
        let own: Vec<_> =
            runtimes.iter().map(|runtime| runtime.block_on(async { Arc::as_ptr(desks.own()) })).collect();
        assert_eq!(desks.iter().count(), MOST);
        for desk in desks.iter() {
            let served = own.iter().filter(|own| **own == Arc::as_ptr(desk)).count();
            assert!((2..=3).contains(&served), "{served}");
        }
    }

    #[test]
    fn who_calls_from_elsewhere_is_served_at_the_first_desk() {
        let runtimes = runtimes(2);
        let (desks, _) = desks(&runtimes, &Tuning::default());
        assert!(Arc::ptr_eq(desks.own(), &desks.first));
        let elsewhere = Builder::new_current_thread().build().unwrap();
        assert!(elsewhere.block_on(async { Arc::ptr_eq(desks.own(), &desks.first) }));
    }

    #[test]
    fn where_calls_come_from_anywhere_there_is_one_desk_and_each_lane_has_a_connection() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let _within = runtime.enter();
        let (desks, threads) = desks(&[], &Tuning::default());
        assert_eq!((threads.desks(), desks.iter().count()), (1, 1));
        let links: BTreeSet<usize> = lanes(desks.own()).into_iter().map(|(_, link)| link).collect();
        assert_eq!(links, BTreeSet::from([0, 1]));
    }

    #[test]
    fn all_desks_together_let_as_many_wait_as_may() {
        let runtimes = runtimes(4);
        let (desks, _) = desks(&runtimes, &Tuning { queue: 10_001, ..Tuning::default() });
        let most: usize = desks.iter().map(|desk| desk.queue.max_waiting()).sum();
        assert!((10_001..10_005).contains(&most), "{most}");
    }
}
