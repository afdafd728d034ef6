//! A TCP proxy in front of a server, which does to the connections what networks do.

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// What happens to what goes through, from the moment that it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Each way takes half of this, however much is on it.
    Latency(Duration),
    /// Nothing arrives, in neither direction, and nobody is told; new connections are taken.
    BlackHole,
    /// Replies are passed on up to their middle, then the connection is reset.
    Reset,
    /// Replies are passed on up to their middle, then the connection ends.
    Truncate,
    /// Replies arrive with other bytes in their middle.
    Garble,
}

/// A running proxy; it ends, with its connections, when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of this machine, and passes on to `target`.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let (fault, faults) = watch::channel(Fault::None);
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, address) = std::sync::mpsc::channel();
        // A thread and a runtime of its own: the load of a test must not be what slows it down.
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let accept = async {
                    loop {
                        let Ok((client, _)) = listener.accept().await else { continue };
                        tokio::spawn(pass(client, target, faults.clone()));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        let address = address.recv().expect("the proxy listens");
        Self { address, fault, stop: Some(stop), thread: Some(thread) }
    }

    /// What happens from here on, also to connections that are open.
    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Passes one connection on, until one of its sides ends it.
async fn pass(client: TcpStream, target: SocketAddr, faults: watch::Receiver<Fault>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    _ = client.set_nodelay(true);
    _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = forward(from_client, to_server, faults.clone(), false) => {}
        () = forward(from_server, to_client, faults, true) => {}
    }
}

/// Passes one direction on; `replies` says whether it is the one that replies take.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    faults: watch::Receiver<Fault>,
    replies: bool,
) {
    // Read at once and written when it is time, so that latency does not narrow the way.
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(10_000);
    let mut delays = faults.clone();
    let reading = async move {
        loop {
            let mut chunk = vec![0; 64 << 10];
            let Ok(length @ 1..) = from.read(&mut chunk).await else { break };
            chunk.truncate(length);
            let delay = match *delays.borrow_and_update() {
                Fault::Latency(latency) => latency / 2,
                _ => Duration::ZERO,
            };
            #[allow(clippy::disallowed_methods, reason = "a network takes its time")]
            if sender.send((Instant::now() + delay, chunk)).await.is_err() {
                break;
            }
        }
    };
    let mut faults = faults;
    let writing = async move {
        while let Some((due, mut chunk)) = chunks.recv().await {
            tokio::time::sleep_until(due).await;
            let fault = *faults.borrow_and_update();
            let middle = chunk.len() / 2;
            match fault {
                Fault::BlackHole => {
                    // What was sent into it is lost, also when it ends: such a connection never recovers.
                    loop {
                        if chunks.recv().await.is_none() {
                            return;
                        }
                    }
                }
                Fault::Reset | Fault::Truncate if replies => {
                    _ = to.write_all(&chunk[..middle]).await;
                    if fault == Fault::Reset {
                        _ = rustix::net::sockopt::set_socket_linger(to.as_ref(), Some(Duration::ZERO));
                    }
                    return;
                }
                Fault::Garble if replies => chunk[middle..].iter_mut().for_each(|byte| *byte ^= 0x55),
                _ => {}
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(writing);
    tokio::select! {
        () = &mut writing => {}
        // What was read before the end is still passed on.
        () = reading => writing.await,
    }
}
