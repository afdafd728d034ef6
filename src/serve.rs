//! Listeners and their connections: from an address to a stream of bytes that a protocol is spoken on, and its end.
//!
//! A listener accepts until it is told that the process is closing, within a cap on connections. Each connection is one
//! task, on the thread that it was dealt to ([`Cores`]), and belongs to its listener: dropping that ends it. What is
//! spoken on it is the business of [`grpc`] and of [`http`](crate::http); what is the same for both is here.
//!
//! A connection has to earn its place: one that does not say in time what it wants is closed, so that neither a client
//! that fell silent nor one that means harm holds anything for long, nor holds up the end of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::watch;

mod accept;
mod body;
mod cores;
mod endpoint;
pub mod files;
pub mod grpc;
mod overload;
pub mod tls;

pub use accept::{Arrival, Incoming, Socket, Source, accept};
pub use cores::{Cores, Place};
pub use endpoint::{Endpoint, Listener, Peer, Wire};
pub use overload::{Overload, Policy, Shed};

/// Where a serving process stands on its way from start to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It serves, and tells everybody that it will not for long.
    Draining,
    /// It accepts no more connections, and finishes what is under way on those that there are.
    Closing,
}

/// Tells a listener or a connection how far the process is.
#[derive(Clone, Debug)]
pub struct Course(watch::Receiver<Phase>);

impl Course {
    /// A course, and the means to set it.
    #[must_use]
    pub fn new() -> (watch::Sender<Phase>, Self) {
        let (sender, receiver) = watch::channel(Phase::Serving);
        (sender, Self(receiver))
    }

    /// Where the process stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns once the process closes, or whoever tells is gone.
    pub async fn closing(&mut self) {
        _ = self.0.wait_for(|phase| *phase == Phase::Closing).await;
    }
}

/// Connections of one kind, counted.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections closed at once so far, because there were as many as there may be.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections so far that never came to a request: their handshake failed, or took too long.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>) -> Open {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// Counts a connection that came to nothing.
    pub(crate) fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that counts as open until this is dropped.
#[derive(Debug)]
struct Open(Arc<Tally>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
