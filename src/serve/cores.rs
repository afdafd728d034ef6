//! Cores: threads that connections are served on, each with a runtime of its own.
//!
//! A connection stays on the thread that it was dealt to, with all of its calls. So nothing of a call is handed from one
//! thread to another: its tasks are woken without a system call, its buffers are in the cache of the core that filled them,
//! and no lock of the runtime is ever waited for. The price is that one connection has one core; a proxy opens one for
//! each of its own threads, and they are dealt out evenly.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads, each with a runtime of its own. They end when this is dropped, and all tasks that are left on them.
#[derive(Debug)]
pub struct Cores(Vec<Core>);

#[derive(Debug)]
struct Core {
    runtime: Handle,
    /// Connections that were dealt to it, and are open.
    connections: Arc<AtomicUsize>,
    #[expect(dead_code, reason = "is there to be dropped")]
    end: oneshot::Sender<()>,
}

/// A connection's place on a core, for as long as this is held.
#[derive(Debug)]
pub struct Place {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Cores {
    /// Starts so many threads.
    ///
    /// # Errors
    /// When the system has no more to give.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        (0..count.get()).map(Core::start).collect::<io::Result<_>>().map(Self)
    }

    /// Their runtimes.
    pub fn runtimes(&self) -> impl Iterator<Item = &Handle> {
        self.0.iter().map(|core| &core.runtime)
    }

    /// A place on the core that has the fewest connections; of several, the first.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let core = self.0.iter().min_by_key(|core| core.connections.load(Ordering::Relaxed))?;
        core.connections.fetch_add(1, Ordering::Relaxed);
        Some(Place { runtime: core.runtime.clone(), connections: Arc::clone(&core.connections) })
    }
}

impl Core {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        thread::Builder::new().name(format!("weir-core-{number}")).spawn(move || {
            // Ends when its other end is dropped.
            _ = runtime.block_on(ended);
        })?;
        Ok(Self { runtime: handle, connections: Arc::default(), end })
    }
}

impl Place {
    /// The core's runtime.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(count: usize) -> Cores {
        Cores::start(NonZeroUsize::new(count).unwrap()).unwrap()
    }

    #[test]
    fn connections_are_dealt_out_evenly_and_whoever_has_lost_some_gets_the_next() {
        let cores = cores(3);
        let counts =
            || cores.0.iter().map(|core| core.connections.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut places: Vec<_> = (0..7).map(|_| cores.place().unwrap()).collect();
        assert_eq!(counts(), [3, 2, 2]);
        let second = cores.0[1].runtime.id();
        places.retain(|place| place.runtime().id() != second);
        assert_eq!(counts(), [3, 0, 2]);
        let next = [cores.place().unwrap(), cores.place().unwrap()];
        assert!(next.iter().all(|place| place.runtime().id() == second));
        drop((places, next));
        assert_eq!(counts(), [0, 0, 0]);
    }

    #[tokio::test]
    async fn a_task_runs_on_the_thread_of_its_place_and_ends_with_the_cores() {
        let cores = cores(2);
        let places = [cores.place().unwrap(), cores.place().unwrap()];
        for (number, place) in places.iter().enumerate() {
            let name = place.runtime().spawn(async { thread::current().name().map(str::to_owned) });
            assert_eq!(name.await.unwrap(), Some(format!("weir-core-{number}")));
        }
        let endless = places[1].runtime().spawn(std::future::pending::<()>());
        drop(cores);
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
