//! Whether a server still remembers what it was told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers the epochs of a server's memory, as far as this process has seen them.
///
/// A server that has been restarted, and another one that has taken its place, may have forgotten or never have heard
/// some of what was told. It is told by its `run_id`, before the first call goes to it; the epoch's name that the
/// heartbeat reads tells of a memory that was lost while the server ran.
#[derive(Debug)]
pub(super) struct Memory {
    seen: Mutex<Seen>,
    epoch: AtomicU64,
    /// The last epoch of all servers of a store: each has a number of its own, for a bucket may move from one to another.
    all: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Seen {
    run_id: String,
    epoch: String,
}

impl Memory {
    /// The memory of a server that nobody has met yet, among those of a store.
    pub(super) fn new(all: &Arc<AtomicU64>) -> Self {
        let memory = Self { seen: Mutex::default(), epoch: AtomicU64::new(0), all: Arc::clone(all) };
        memory.begin();
        memory
    }

    /// Which epoch it is.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// There is a connection to the server of this `run_id`.
    pub(super) fn is_of(&self, run_id: &str) {
        self.note(run_id, |seen| &mut seen.run_id);
    }

    /// The server calls its epoch by this name.
    pub(super) fn is_called(&self, epoch: &str) {
        self.note(epoch, |seen| &mut seen.epoch);
    }

    fn note(&self, name: &str, of: impl FnOnce(&mut Seen) -> &mut String) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = of(&mut seen);
        if last == name || name.is_empty() {
            return;
        }
        // The first one that is heard of is the one that there was.
        if !last.is_empty() {
            self.begin();
        }
        name.clone_into(last);
    }

    fn begin(&self) {
        self.epoch.store(self.all.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_and_another_name_begin_another_epoch_and_the_first_does_not() {
        let all = Arc::default();
        let memory = Memory::new(&all);
        let mut epochs = Vec::new();
        for (run_id, name) in
            [("a", ""), ("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("", "y"), ("a", "x")]
        {
            memory.is_of(run_id);
            memory.is_called(name);
            epochs.push(memory.epoch());
        }
        assert_eq!(epochs, [1, 1, 1, 2, 3, 3, 5]);
        assert_eq!((Memory::new(&all).epoch(), memory.epoch()), (6, 5), "no two have the same");
    }
}
