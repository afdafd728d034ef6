//! Accepts connections, and keeps those that are open.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::{Cores, Course, Listener, Peer, Tally, Wire};

/// How long no connection is accepted after one could not be: the system is out of something, most likely of files.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that has just come, and that no runtime looks after yet.
#[derive(Debug)]
pub struct Arrival {
    /// What it is spoken on.
    pub socket: Socket,
    /// Whom it comes from.
    pub peer: Peer,
}

/// A stream of bytes as the system has it.
#[derive(Debug)]
pub enum Socket {
    /// Of TCP.
    Tcp(std::net::TcpStream),
    /// Of a unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Arrival {
    /// Has the runtime that this is called on look after it.
    fn open(self) -> io::Result<Incoming> {
        let wire: Box<dyn Wire> = match self.socket {
            Socket::Tcp(stream) => Box::new(tokio::net::TcpStream::from_std(stream)?),
            Socket::Unix(stream) => Box::new(tokio::net::UnixStream::from_std(stream)?),
        };
        Ok(Incoming { wire, peer: self.peer, is_certified: false })
    }
}

/// A connection that is to be served.
pub struct Incoming {
    /// What it is spoken on.
    pub wire: Box<dyn Wire>,
    /// Whom it comes from.
    pub peer: Peer,
    /// Whether the client has shown a certificate, which is then one that is accepted.
    pub is_certified: bool,
}

/// Where connections come from.
pub trait Source {
    /// The next one. Nothing may be lost when the future is dropped.
    fn next(&self) -> impl Future<Output = io::Result<Arrival>> + Send;
}

impl Source for Listener {
    async fn next(&self) -> io::Result<Arrival> {
        self.connection().await
    }
}

/// Accepts connections until the process closes, has `serve` serve them, each on one of the `cores` if there are any, and
/// returns when the last one has ended.
///
/// There are at most `cap` of them: further ones are closed at once, so that whoever wants to connect knows and can try
/// elsewhere, where one that is not accepted would wait. Dropping the future ends all of them.
pub async fn accept<F: Future<Output = ()> + Send + 'static>(
    source: impl Source,
    cap: usize,
    tally: Arc<Tally>,
    mut course: Course,
    cores: Option<Arc<Cores>>,
    serve: impl Fn(Incoming) -> F + Send + Sync + 'static,
) {
    let serve = Arc::new(serve);
    let mut connections = JoinSet::new();
    let mut troubled = false;
    let mut full = false;
    loop {
        let next = tokio::select! {
            () = course.closing() => break,
            Some(_) = connections.join_next() => continue,
            next = source.next() => next,
        };
        match next {
            Ok(_) if tally.open() >= cap => {
                tally.refused.fetch_add(1, Ordering::Relaxed);
                if !full {
                    tracing::warn!(
                        connections = cap,
                        "as many connections as there may be; further ones are closed"
                    );
                }
                full = true;
            }
            Ok(arrival) => {
                troubled = false;
                // Told again only after it has been much better.
                full &= tally.open() >= cap - cap / 10;
                let open = tally.enter();
                let place = cores.as_ref().and_then(|cores| cores.place());
                let runtime = place.as_ref().map_or_else(Handle::current, |place| place.runtime().clone());
                let serve = Arc::clone(&serve);
                let serving = async move {
                    match arrival.open() {
                        Ok(incoming) => serve(incoming).await,
                        Err(error) => tracing::warn!(%error, "a connection cannot be looked after"),
                    }
                    drop((open, place));
                };
                connections.spawn_on(serving, &runtime);
            }
            // The client's doing, before its turn came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !troubled {
                    tracing::warn!(%error, "connections cannot be accepted; trying on");
                }
                troubled = true;
                // Trying on at once would take a core.
                tokio::select! {
                    () = course.closing() => break,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }
    // Whoever comes now is refused by the system, and can go elsewhere at once.
    drop(source);
    while connections.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock;
    use crate::serve::Phase;

    /// Connections, and errors in their place; when there are no more, none comes.
    struct Script(Mutex<Vec<io::Result<()>>>);

    impl Script {
        fn new(script: impl IntoIterator<Item = io::Result<()>>) -> Self {
            let mut script: Vec<_> = script.into_iter().collect();
            script.reverse();
            Self(Mutex::new(script))
        }
    }

    impl Source for Arc<Script> {
        async fn next(&self) -> io::Result<Arrival> {
            let next = self.0.lock().unwrap().pop();
            match next {
                Some(next) => next.map(|()| {
                    let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
                    stream.set_nonblocking(true).unwrap();
                    Arrival { socket: Socket::Unix(stream), peer: Peer::Local }
                }),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_cannot_be_accepted_are_tried_for_ten_times_a_second_not_in_a_loop() {
        let out_of_files = || Err(io::Error::from_raw_os_error(24));
        let script = (0..10).map(|_| out_of_files()).chain([Ok(())]);
        let (close, course) = Course::new();
        let start = clock::instant();
        let (come, came) = tokio::sync::oneshot::channel();
        let come = Mutex::new(Some(come));
        let accepting = accept(Arc::new(Script::new(script)), 10, Arc::default(), course, None, move |_| {
            _ = come.lock().unwrap().take().map(|come| come.send(clock::instant()));
            std::future::ready(())
        });
        let accepting = tokio::spawn(accepting);
        assert_eq!(came.await.unwrap() - start, PAUSE * 10);
        close.send(Phase::Closing).unwrap();
        accepting.await.unwrap();
    }

    #[tokio::test]
    async fn connections_beyond_the_cap_are_closed_and_counted_and_the_end_waits_for_the_others() {
        let script = Arc::new(Script::new((0..5).map(|_| Ok(()))));
        let tally = Arc::new(Tally::default());
        let (close, course) = Course::new();
        let (finish, finished) = tokio::sync::watch::channel(false);
        let ended = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ended);
        let accepting = tokio::spawn(accept(script, 3, Arc::clone(&tally), course, None, move |_| {
            let (mut finished, ended) = (finished.clone(), Arc::clone(&counted));
            async move {
                _ = finished.wait_for(|finished| *finished).await;
                ended.fetch_add(1, Ordering::Relaxed);
            }
        }));
        while tally.refused() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!((tally.open(), tally.accepted(), tally.refused()), (3, 3, 2));
        close.send(Phase::Closing).unwrap();
        tokio::task::yield_now().await;
        assert!(!accepting.is_finished());
        finish.send(true).unwrap();
        accepting.await.unwrap();
        assert_eq!((ended.load(Ordering::Relaxed), tally.open()), (3, 0));
    }
}
