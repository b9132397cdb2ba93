//! Accepting from listening sockets that are shared with other processes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::sys::reactor;

/// Accepts connections from a listener, and stops and starts again without a trace on the listening socket.
///
/// It is for daemons with a blocking accept loop. Such a loop cannot be handed over: a thread that is blocked in accept(2)
/// takes one more connection, after the drain and away from the successor, and what would get it out of there (closing the
/// listener, shutdown(2), O_NONBLOCK) acts on the socket that the successor shares. This one waits with poll(2) and a
/// descriptor of its own to be woken by, and leaves the socket's flags as they are. Should another process be quicker between
/// the poll and the accept, so that the accept blocks, [`pause`](Self::pause) interrupts it with SIGURG, a signal that
/// is ignored by default; its handler does nothing.
///
/// Each run from a [`resume`](Self::resume) to a `pause` has a thread of its own, which also calls the handler: a handler that
/// takes long delays the next connection, so it should give the connection away. It is called with one connection at a time.
/// Errors of single connections are passed over; when descriptors or memory run out, connections are left in the queue and
/// accepted as soon as there are some again.
///
/// A daemon with an event loop of its own needs none of this: it stops watching the listener. Only, accept(2) there can
/// block too, unless the listener was non-blocking when it came.
pub struct Acceptor {
    listener: OwnedFd,
    handler: Arc<Mutex<dyn FnMut(TcpStream) + Send>>,
    running: Mutex<Option<reactor::Acceptor>>,
}

impl Acceptor {
    /// Returns an acceptor that is paused; `handler` gets every connection, in blocking mode.
    pub fn new(listener: TcpListener, handler: impl FnMut(TcpStream) + Send + 'static) -> Self {
        Self { listener: listener.into(), handler: Arc::new(Mutex::new(handler)), running: Mutex::new(None) }
    }

    /// Begins to accept. Does nothing if it does already.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if there is no descriptor or no thread left.
    pub fn resume(&self) -> Result<()> {
        let mut running = self.running();
        if running.is_some() {
            return Ok(());
        }
        let handler = Arc::clone(&self.handler);
        let start = |listener| reactor::Acceptor::start(listener, move |fd| deliver(&handler, fd));
        *running =
            Some(self.listener.try_clone().and_then(start).map_err(|e| Error::io("accept connections", e))?);
        Ok(())
    }

    /// Stops accepting. When it returns, the handler has returned for each connection that was accepted, and the others are in
    /// the kernel's queue, for whoever accepts next. Does nothing if it does not accept. Not to be called by the handler.
    pub fn pause(&self) {
        if let Some(acceptor) = self.running().take() {
            acceptor.stop();
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<reactor::Acceptor>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let accepts = self.running().is_some();
        f.debug_struct("Acceptor").field("listener", &self.listener).field("accepts", &accepts).finish()
    }
}

fn deliver(handler: &Mutex<dyn FnMut(TcpStream) + Send>, fd: OwnedFd) {
    let connection = TcpStream::from(fd);
    // Its flags are its own: it was made by accept4(2), and only the listener is shared.
    if let Err(error) = connection.set_nonblocking(false) {
        tracing::warn!(%error, "unable to make a connection blocking");
        return;
    }
    // A handler that panics, which the panic hook has told, loses this connection and gets the next one all the same.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
        handler(connection);
    }));
}

/// Listens on `address` with the longest accept queue that the kernel allows (`net.core.somaxconn`).
///
/// In the gap of a handoff clients wait in that queue, and the 128 places that [`TcpListener::bind`] asks for may be too few:
/// who finds it full is late by a second or more. Sets SO_REUSEADDR as `bind` does, and never SO_REUSEPORT: a second process
/// must fail to bind.
///
/// # Errors
///
/// What socket(2), setsockopt(2), bind(2) or listen(2) returns.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    reactor::listen(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;
    use std::sync::mpsc::{self, Receiver};
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn acceptor() -> (Acceptor, SocketAddr, Receiver<TcpStream>) {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sink, accepted) = mpsc::channel();
        (Acceptor::new(listener, move |connection| sink.send(connection).unwrap()), address, accepted)
    }

    #[test]
    fn what_comes_during_a_pause_is_accepted_after_it() {
        let (acceptor, address, accepted) = acceptor();
        for _ in 0..3 {
            let client = TcpStream::connect(address).unwrap();
            assert!(accepted.try_recv().is_err(), "it is paused");
            acceptor.resume().unwrap();
            let connection = accepted.recv_timeout(PATIENCE).unwrap();
            assert_eq!(connection.peer_addr().unwrap(), client.local_addr().unwrap());
            acceptor.pause();
        }
    }

    #[test]
    fn nothing_is_accepted_after_a_pause_has_returned() {
        let (acceptor, address, accepted) = acceptor();
        acceptor.resume().unwrap();
        let flood = std::thread::spawn(move || {
            (0..100).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>()
        });
        accepted.recv_timeout(PATIENCE).unwrap();
        acceptor.pause();
        let before = 1 + accepted.try_iter().count();
        let clients = flood.join().unwrap();
        assert_eq!(accepted.try_iter().count(), 0, "the rest is in the queue");
        acceptor.resume().unwrap();
        for _ in before..clients.len() {
            accepted.recv_timeout(PATIENCE).unwrap();
        }
    }

    #[test]
    fn a_successor_that_shares_the_listener_gets_every_connection_after_a_pause() {
        let (incumbent, address, _) = acceptor();
        incumbent.resume().unwrap();
        let successor = TcpListener::from(incumbent.listener.try_clone().unwrap());
        incumbent.pause();
        for _ in 0..10 {
            let client = TcpStream::connect(address).unwrap();
            assert_eq!(successor.accept().unwrap().1, client.local_addr().unwrap());
        }
    }

    #[test]
    fn connections_block_whether_or_not_the_listener_does() {
        for non_blocking in [false, true] {
            let (acceptor, address, accepted) = acceptor();
            TcpListener::from(acceptor.listener.try_clone().unwrap()).set_nonblocking(non_blocking).unwrap();
            acceptor.resume().unwrap();
            let client = TcpStream::connect(address).unwrap();
            let mut connection = accepted.recv_timeout(PATIENCE).unwrap();
            connection.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let begun = std::time::Instant::now();
            connection.read(&mut [0]).unwrap_err();
            assert!(begun.elapsed() >= Duration::from_millis(15), "it waited for the client");
            drop(client);
        }
    }

    #[test]
    fn resuming_and_pausing_twice_is_fine() {
        let (acceptor, address, accepted) = acceptor();
        acceptor.pause();
        acceptor.resume().unwrap();
        acceptor.resume().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        accepted.recv_timeout(PATIENCE).unwrap();
        acceptor.pause();
        acceptor.pause();
    }

    #[test]
    fn a_handler_that_panics_loses_its_connection_and_no_other() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sink, accepted) = mpsc::channel();
        let mut first = true;
        let acceptor = Acceptor::new(listener, move |connection| {
            assert!(!std::mem::take(&mut first), "the first connection panics, and this is it");
            sink.send(connection).unwrap();
        });
        acceptor.resume().unwrap();
        let mut lost = TcpStream::connect(address).unwrap();
        assert_eq!(lost.read(&mut [0]).unwrap(), 0, "it was closed");
        let _client = TcpStream::connect(address).unwrap();
        accepted.recv_timeout(PATIENCE).unwrap();
    }
}
