//! What an event loop needs from the kernel: readiness, a wake-up, listening, and accepting without touching what a
//! listener shares with other processes.
//!
//! A listening socket that is handed from process to process has one set of file status flags for all of them, so
//! nothing here sets or clears O_NONBLOCK on one. accept(2) obeys only that flag of the description: after poll(2) said
//! "readable" it still blocks if another process was quicker. [`Acceptor`] therefore accepts on a thread of its own,
//! which may block, and which is taken out of a blocked accept by a signal when it has to stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};

pub use super::poll::Waker;

/// What a descriptor is watched for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Report when a read would not block.
    pub read: bool,
    /// Report when a write would not block.
    pub write: bool,
}

/// What happened on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token that the descriptor was added with.
    pub token: u64,
    /// A read would not block.
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
    /// Both directions are closed, or the socket has an error.
    pub closed: bool,
}

/// A level-triggered epoll(7) instance.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    ready: Vec<EpollEvent>,
}

impl Poller {
    /// Creates an instance that watches nothing and reports up to `batch` events at a time.
    ///
    /// # Errors
    ///
    /// What epoll_create1(2) returns.
    pub fn new(batch: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, ready: vec![EpollEvent::empty(); batch.max(1)] })
    }

    /// Watches `fd`; its events carry `token`.
    ///
    /// # Errors
    ///
    /// What epoll_ctl(2) returns.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.epoll.add(fd, event(token, interest))?)
    }

    /// Changes what `fd` is watched for.
    ///
    /// # Errors
    ///
    /// What epoll_ctl(2) returns.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut event(token, interest))?)
    }

    /// Stops watching `fd`. To be called before it is closed: a registration lives as long as the description.
    ///
    /// # Errors
    ///
    /// What epoll_ctl(2) returns.
    pub fn delete(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits for events, at most for `timeout` (rounded up to milliseconds), and puts them into `events`.
    ///
    /// An interruption by a signal returns no events.
    ///
    /// # Errors
    ///
    /// What epoll_wait(2) returns.
    pub fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(length) => EpollTimeout::try_from(millis_up(length)).unwrap_or(EpollTimeout::MAX),
        };
        let count = match self.epoll.wait(&mut self.ready, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        events.extend(self.ready[..count].iter().map(report));
        Ok(())
    }
}

fn event(token: u64, interest: Interest) -> EpollEvent {
    let mut flags = EpollFlags::empty();
    flags.set(EpollFlags::EPOLLIN, interest.read);
    flags.set(EpollFlags::EPOLLOUT, interest.write);
    EpollEvent::new(flags, token)
}

fn report(event: &EpollEvent) -> Event {
    let flags = event.events();
    Event {
        token: event.data(),
        readable: flags.intersects(EpollFlags::EPOLLIN),
        writable: flags.intersects(EpollFlags::EPOLLOUT),
        closed: flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
    }
}

/// Rounds up, so that a wait never ends just before its deadline and spins.
fn millis_up(length: Duration) -> i32 {
    let millis = length.as_millis() + u128::from(!length.subsec_nanos().is_multiple_of(1_000_000));
    i32::try_from(millis).unwrap_or(i32::MAX)
}

/// Binds and listens on `addr` with the longest accept queue that the kernel allows (net.core.somaxconn).
///
/// A handoff parks clients in that queue, and std's 128 places are too few for it. Sets SO_REUSEADDR, and never
/// SO_REUSEPORT: a second process must fail to bind.
///
/// # Errors
///
/// What socket(2), setsockopt(2), bind(2) or listen(2) returns.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    socket::listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(fd))
}

/// Raises the soft limit of open files to `needed`, or as far as the hard limit allows; returns the limit then.
///
/// # Errors
///
/// What getrlimit(2) or setrlimit(2) returns.
pub fn allow_open_files(needed: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= needed {
        return Ok(soft);
    }
    let raised = needed.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
    Ok(raised)
}

/// Half-closes: tells the peer that nothing more will come, and still reads what it sends.
///
/// Only for connections that this process accepted; on a shared listener shutdown(2) would act for every process.
///
/// # Errors
///
/// What shutdown(2) returns.
pub fn finish_sending(connection: &std::net::TcpStream) -> io::Result<()> {
    connection.shutdown(std::net::Shutdown::Write)
}

/// A thread that accepts connections from one listener until it is stopped.
///
/// The accepted sockets are non-blocking and close-on-exec; the listener's own flags are never changed.
#[derive(Debug)]
pub struct Acceptor {
    stop: Arc<Stop>,
    tid: i32,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    waker: Waker,
}

/// How long to leave connections in the queue when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(10);
/// How long to wait for a stopping thread before interrupting it (again).
const INTERRUPT_PERIOD: Duration = Duration::from_millis(1);

impl Acceptor {
    /// Starts accepting; `sink` is called on the acceptor's thread with each connection.
    ///
    /// # Errors
    ///
    /// When the thread or its descriptors cannot be made.
    pub fn start(listener: OwnedFd, sink: impl FnMut(OwnedFd) + Send + 'static) -> io::Result<Self> {
        handle_interrupts()?;
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), waker: Waker::new()? });
        let (ready, started) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("accept".into()).spawn(move || {
            // A receiver that went away means that `start` failed, and then nobody waits.
            let _ = ready.send(nix::unistd::gettid().as_raw());
            accept_until_stopped(&listener, &theirs, sink, end);
        })?;
        let tid = started.recv().map_err(|_| io::Error::other("the accepting thread died at its start"))?;
        Ok(Self { stop, tid, ended, thread: Some(thread) })
    }

    /// Stops accepting. When it returns, the sink has got every connection that was accepted, and gets no more.
    pub fn stop(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.asked.store(true, Ordering::SeqCst);
        self.stop.waker.ring();
        while self.ended.recv_timeout(INTERRUPT_PERIOD) == Err(RecvTimeoutError::Timeout) {
            // It is between poll and accept, or blocked in accept: a signal that comes before the
            // system call has no effect, hence the loop.
            interrupt(self.tid);
        }
        // A panic of the sink was reported by the panic hook; the thread has ended, which is all that is claimed here.
        let _ = thread.join();
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

fn accept_until_stopped(listener: &OwnedFd, stop: &Stop, mut sink: impl FnMut(OwnedFd), _end: Sender<()>) {
    let mut exhausted = false;
    while !stop.asked.load(Ordering::SeqCst) {
        if !wait_for_connection(listener, stop, exhausted) {
            continue;
        }
        match accept(listener.as_fd()) {
            Ok(connection) => {
                exhausted = false;
                sink(connection);
            }
            Err(e) if is_of_one_connection(e) => {}
            Err(e) => {
                if !exhausted {
                    tracing::warn!("unable to accept, leaving connections in the queue: {e}");
                }
                exhausted = true;
            }
        }
    }
}

/// Returns whether the listener is readable and nobody asked to stop.
fn wait_for_connection(listener: &OwnedFd, stop: &Stop, exhausted: bool) -> bool {
    if exhausted {
        let mut waiting = [PollFd::new(stop.waker.as_fd(), PollFlags::POLLIN)];
        let pause = PollTimeout::try_from(EXHAUSTED_PAUSE).unwrap_or(PollTimeout::ZERO);
        // Whatever it returns, the listener is looked at next.
        let _ = poll(&mut waiting, pause);
    }
    let mut waiting = [
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.waker.as_fd(), PollFlags::POLLIN),
    ];
    let ready = poll(&mut waiting, PollTimeout::NONE).is_ok();
    ready && waiting[0].any() == Some(true) && waiting[1].any() != Some(true)
}

fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let fd = socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this descriptor, and nothing else in the process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether an error is of the connection at the head of the queue, or of the moment (accept(2), "Error handling").
fn is_of_one_connection(e: Errno) -> bool {
    use Errno::*;
    matches!(
        e,
        EINTR
            | EAGAIN
            | ECONNABORTED
            | ENETDOWN
            | EPROTO
            | ENOPROTOOPT
            | EHOSTDOWN
            | ENONET
            | EHOSTUNREACH
            | EOPNOTSUPP
            | ENETUNREACH
            | EPERM
            | ETIMEDOUT
    )
}

/// The signal that interrupts a blocked accept: ignored by default, and used by nothing else here.
const INTERRUPT: Signal = Signal::SIGURG;

extern "C" fn nothing(_: i32) {}

/// Gives [`INTERRUPT`] a handler that does nothing, without SA_RESTART: system calls then return EINTR.
fn handle_interrupts() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing at all, so it is async-signal-safe.
    unsafe { sigaction(INTERRUPT, &action) }?;
    Ok(())
}

/// Sends [`INTERRUPT`] to one thread of this process; a thread that has ended is left alone.
fn interrupt(tid: i32) {
    // SAFETY: tgkill takes three integers; a thread of this process that is not ours survives a signal without effect.
    unsafe { libc::syscall(libc::SYS_tgkill, nix::unistd::getpid().as_raw(), tid, INTERRUPT as i32) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpStream;

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

    use super::*;

    fn local_listener() -> TcpListener {
        listen("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    fn flags(fd: impl AsFd) -> OFlag {
        OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap())
    }

    fn accept_into_channel(listener: &TcpListener) -> (Acceptor, Receiver<OwnedFd>) {
        let (sink, accepted) = mpsc::channel();
        let copy = listener.try_clone().unwrap().into();
        (Acceptor::start(copy, move |fd| sink.send(fd).unwrap()).unwrap(), accepted)
    }

    #[test]
    fn accepted_sockets_are_non_blocking_and_close_on_exec_and_the_listener_is_unchanged() {
        for non_blocking in [false, true] {
            let listener = local_listener();
            listener.set_nonblocking(non_blocking).unwrap();
            let before = flags(&listener);
            let (acceptor, accepted) = accept_into_channel(&listener);
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let connection = accepted.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(flags(&connection).contains(OFlag::O_NONBLOCK));
            let fd_flags = FdFlag::from_bits_retain(fcntl(&connection, FcntlArg::F_GETFD).unwrap());
            assert!(fd_flags.contains(FdFlag::FD_CLOEXEC));
            acceptor.stop();
            assert_eq!(flags(&listener), before);
        }
    }

    #[test]
    fn a_stopped_acceptor_leaves_connections_in_the_queue() {
        let listener = local_listener();
        let (acceptor, accepted) = accept_into_channel(&listener);
        acceptor.stop();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(accepted.recv().is_err(), "the sink is gone and got nothing");
        listener.set_nonblocking(true).unwrap();
        listener.accept().expect("the connection waits for whoever accepts next");
    }

    #[test]
    fn a_thread_that_is_blocked_in_accept_is_stopped() {
        let listener = local_listener();
        let blocked: OwnedFd = listener.try_clone().unwrap().into();
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), waker: Waker::new().unwrap() });
        handle_interrupts().unwrap();
        let (tell, tid) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            // What happens when another process takes the connection between poll and accept.
            assert_eq!(accept(blocked.as_fd()).unwrap_err(), Errno::EINTR);
            drop(end);
        });
        let tid = tid.recv().unwrap();
        Acceptor { stop, tid, ended, thread: Some(thread) }.stop();
    }

    #[test]
    fn a_wake_is_seen_until_it_is_cleared() {
        let mut poller = Poller::new(8).unwrap();
        let waker = Waker::new().unwrap();
        poller.add(&waker, 7, Interest { read: true, write: false }).unwrap();
        let mut events = Vec::new();
        waker.ring();
        for _ in 0..2 {
            poller.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert_eq!(events, [Event { token: 7, readable: true, writable: false, closed: false }]);
        }
        waker.clear();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn a_timeout_is_rounded_up_to_milliseconds() {
        assert_eq!(millis_up(Duration::ZERO), 0);
        assert_eq!(millis_up(Duration::from_nanos(1)), 1);
        assert_eq!(millis_up(Duration::from_millis(5)), 5);
        assert_eq!(millis_up(Duration::MAX), i32::MAX);
    }
}
