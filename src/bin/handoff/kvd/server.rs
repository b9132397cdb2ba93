//! The event loop: one thread that owns every connection and the data.
//!
//! Listeners belong to other processes too, so their flags are never changed and they are never shut down: each has an
//! [`Acceptor`], which is simply stopped for a handoff. The connections that it accepted are ours alone.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use handoff::sys::reactor::{self, Acceptor, Event, Interest, Poller, Waker};
use handoff::{DrainReport, Error, Result, SealReport, StateSnapshot};

use super::commands::{self, Section, Session, Setting, Then};
use super::commit::{Failure, Progress};
use super::conn::{Arrived, Conn};
use super::data::{Data, Settings};
use super::resp::Reply as _;
use super::store::{Opened, State};

/// How long a drain waits for the first or the rest of a request on a connection that was accepted but is silent.
const QUIET: Duration = Duration::from_millis(50);
/// For how long after it was accepted a connection may take to make its first request, even if that delays a drain: a
/// client on a busy machine can lose the processor for that long between connecting and sending.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long a half-closed connection is read, so that closing it does not reset it and destroy its last answers.
const LINGER: Duration = Duration::from_secs(1);
/// All buffers together; over this, connections that buffer much are closed.
const MAX_BUFFERED: usize = 512 << 20;
const BUFFERS_MUCH: usize = 1 << 20;
/// Reads of one connection in a row, so that a busy client does not starve the others.
const READS_IN_A_ROW: usize = 4;
const EVENTS_AT_ONCE: usize = 1024;
const WAKER: u64 = 0;

/// What the daemon is, for INFO.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Names the build.
    pub build_id: String,
    /// How this process came to serve: `cold start` or `successor`.
    pub role: &'static str,
}

/// What to serve with.
pub struct Config {
    /// Of the data.
    pub settings: Settings,
    /// For INFO.
    pub identity: Identity,
    /// The most connections at a time.
    pub max_clients: usize,
    /// Whether the next SET is acknowledged and not made, so that tests can see such a loss found.
    pub loses_a_write: bool,
    /// Called when a client asks for a shutdown.
    pub on_shutdown: Box<dyn Fn() + Send>,
}

/// What other threads ask the loop to do.
enum Order {
    Adopt(OwnedFd),
    Accept(u64, Reply<SocketAddr>),
    Drain(Instant, Reply<DrainReport>),
    Seal(Reply<SealReport>),
    Resume(Reply<()>),
    /// Close everything, and say so when all clients are gone or at the instant.
    Finish(Instant, Sender<()>),
}

type Reply<T> = Sender<Result<T>>;

/// What both sides see.
struct Shared {
    orders: Mutex<Vec<Order>>,
    waker: Arc<Waker>,
    interrupted: AtomicBool,
    open_conns: AtomicU32,
    revisions: Mutex<Vec<u64>>,
}

impl Shared {
    fn order(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waker.ring();
    }
}

/// Speaks to the event loop from other threads.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Starts to accept, as the owner of this generation; before this, connections wait in the queue.
    ///
    /// Returns the first listener's address.
    pub fn accept(&self, generation: u64) -> Result<SocketAddr> {
        self.ask(|reply| Order::Accept(generation, reply))
    }

    /// Stops accepting, answers what has arrived, and closes connections after their last answer.
    pub fn drain(&self, deadline: Instant) -> Result<DrainReport> {
        self.ask(|reply| Order::Drain(deadline, reply))
    }

    /// Makes the data final.
    pub fn seal(&self) -> Result<SealReport> {
        self.ask(Order::Seal)
    }

    /// Opens the data again and serves.
    pub fn resume(&self) -> Result<()> {
        self.ask(Order::Resume)
    }

    /// Makes a running drain return early.
    pub fn interrupt(&self) {
        self.0.interrupted.store(true, Ordering::SeqCst);
        self.0.waker.ring();
    }

    /// Lets clients read their last answers before the process exits, at most until `deadline`.
    pub fn finish(&self, deadline: Instant) {
        let (done, finished) = mpsc::channel();
        self.0.order(Order::Finish(deadline, done));
        // An error means that the loop has ended, and with it every connection.
        let _ = finished.recv();
    }

    /// Returns how it is doing, without asking the loop.
    pub fn snapshot(&self) -> StateSnapshot {
        let revisions = self.0.revisions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        StateSnapshot {
            shard_count: u32::try_from(revisions.len()).unwrap_or(u32::MAX),
            open_conns: self.0.open_conns.load(Ordering::Relaxed),
            last_revision_per_shard: revisions,
        }
    }

    fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T> {
        let (reply, answer) = mpsc::channel();
        self.0.order(order(reply));
        answer.recv().map_err(|_| Error::hook("the event loop has ended"))?
    }
}

/// Starts the event loop on a thread of its own. It accepts nothing before [`Handle::accept`].
///
/// When the loop ends, which it does only after an error that it cannot go on from, `on_end` gets the error.
pub fn start(
    opened: Opened,
    sealed: bool,
    listeners: Vec<TcpListener>,
    config: Config,
    on_end: impl FnOnce(Error) + Send + 'static,
) -> Result<Handle> {
    let io = |e| Error::io("start the event loop", e);
    let waker = Arc::new(Waker::new().map_err(io)?);
    let poller = Poller::new(EVENTS_AT_ONCE).map_err(io)?;
    poller.add(&*waker, WAKER, Interest { read: true, write: false }).map_err(io)?;
    let shared = Arc::new(Shared {
        orders: Mutex::default(),
        waker: Arc::clone(&waker),
        interrupted: AtomicBool::new(false),
        open_conns: AtomicU32::new(0),
        revisions: Mutex::new(opened.state.revisions().to_vec()),
    });
    let core = Core {
        poller,
        data: Data::start(opened, sealed, config.settings.clone(), Arc::new(move || waker.ring()))?,
        shared: Arc::clone(&shared),
        mode: Mode::Serving,
        config,
        started: Instant::now(),
        scratch: vec![0; 64 * 1024],
        buffered: 0,
        counts: Counts::default(),
        waiting: VecDeque::new(),
        stalled: Vec::new(),
        lingering: VecDeque::new(),
        generation: 0,
    };
    let server =
        Server { core, conns: HashMap::new(), next_token: WAKER + 1, listeners, acceptors: Vec::new() };
    let spawn = std::thread::Builder::new().name("serve".into()).spawn(move || on_end(server.run()));
    spawn.map_err(io)?;
    Ok(Handle(shared))
}

struct Server {
    core: Core,
    conns: HashMap<u64, Conn>,
    next_token: u64,
    listeners: Vec<TcpListener>,
    acceptors: Vec<Acceptor>,
}

/// Everything but the connections, so that one of them can be worked on with it.
struct Core {
    poller: Poller,
    data: Data,
    shared: Arc<Shared>,
    mode: Mode,
    config: Config,
    started: Instant,
    scratch: Vec<u8>,
    buffered: usize,
    counts: Counts,
    /// Connections whose next answer waits for the disk.
    waiting: VecDeque<(u64, u64)>,
    /// Connections with requests that were not taken because too much is on its way to the disk.
    stalled: Vec<u64>,
    /// Half-closed connections, and until when they are read.
    lingering: VecDeque<(Instant, u64)>,
    /// Of the owner record, which names this process.
    generation: u64,
}

#[derive(Default)]
struct Counts {
    connections: u64,
    commands: u64,
}

enum Mode {
    /// Accepts and answers.
    Serving,
    /// Answers what has arrived and closes.
    Draining(Drain),
    /// Takes no request; what is open stays open, in case of a resume.
    Paused,
    /// Closes what is left, for the end of the process.
    Finishing(Instant, Sender<()>),
}

struct Drain {
    deadline: Instant,
    /// Until when silent connections are waited for.
    quiet_until: Instant,
    /// When silent connections were looked at last: those whose time was up by then are done with.
    looked: Instant,
    reply: Reply<DrainReport>,
}

impl Drain {
    /// Returns until when a connection that is silent is waited for.
    fn patience(&self, conn: &Conn) -> Instant {
        let first = if conn.fresh { conn.accepted + FIRST_REQUEST } else { self.quiet_until };
        first.max(self.quiet_until).min(self.deadline)
    }
}

impl Server {
    /// Runs until there is no way to go on.
    fn run(mut self) -> Error {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            match self.turn(&mut events) {
                Ok(()) => {}
                Err(e) => return e,
            }
        }
    }

    fn turn(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let wait = self.core.poller.wait(events, self.next_timeout());
        wait.map_err(|e| Error::io("wait for events", e))?;
        for event in &*events {
            match event.token {
                WAKER => self.core.shared.waker.clear(),
                token => self.on_event(token, event),
            }
        }
        self.take_orders()?;
        self.core.data.submit();
        self.look_at_the_disk()?;
        self.end_lingering();
        self.go_on_draining();
        self.go_on_finishing();
        Ok(())
    }

    fn next_timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let mode = match &self.core.mode {
            Mode::Draining(drain) => {
                let open = self.conns.values().filter(|conn| !conn.lingering);
                let next = open.map(|conn| drain.patience(conn)).filter(|until| *until > drain.looked).min();
                Some(next.unwrap_or(drain.deadline))
            }
            Mode::Finishing(deadline, _) => Some(*deadline),
            Mode::Serving | Mode::Paused => None,
        };
        let linger = self.core.lingering.front().map(|(until, _)| *until);
        let next = mode.into_iter().chain(linger).min()?;
        Some(next.saturating_duration_since(now))
    }

    fn on_event(&mut self, token: u64, event: &Event) {
        // Both directions closed or broken: nobody is there to read an answer.
        let gone = event.closed && !event.readable;
        self.serve(token, event.readable, gone);
    }

    /// Does what can be done for a connection now.
    fn serve(&mut self, token: u64, try_read: bool, gone: bool) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let before = conn.buffered();
        let alive = !gone && self.core.work(token, conn, try_read);
        self.core.buffered = self.core.buffered - before + conn.buffered();
        if !alive || self.core.must_shed(conn) {
            self.remove(token);
            return;
        }
        if let Err(e) = self.core.poller.modify(conn.stream(), token, self.core.interest(conn)) {
            tracing::warn!("unable to watch a connection: {e}");
            self.remove(token);
        }
    }

    fn serve_all(&mut self, tokens: impl IntoIterator<Item = u64>) {
        tokens.into_iter().for_each(|token| self.serve(token, true, false));
    }

    fn remove(&mut self, token: u64) {
        let Some(conn) = self.conns.remove(&token) else { return };
        // It is closed next, and nobody else has the socket.
        let _ = self.core.poller.delete(conn.stream());
        self.core.buffered -= conn.buffered();
        self.publish_open();
    }

    fn publish_open(&self) {
        let open = u32::try_from(self.conns.len()).unwrap_or(u32::MAX);
        self.core.shared.open_conns.store(open, Ordering::Relaxed);
    }

    fn take_orders(&mut self) -> Result<()> {
        let orders =
            std::mem::take(&mut *self.core.shared.orders.lock().unwrap_or_else(PoisonError::into_inner));
        // A reply that cannot be delivered is one that nobody waits for any more.
        for order in orders {
            match order {
                Order::Adopt(connection) => self.adopt(connection),
                Order::Accept(generation, reply) => {
                    self.core.generation = generation;
                    drop(reply.send(self.start_serving()));
                }
                Order::Drain(deadline, reply) => self.start_draining(deadline, reply)?,
                Order::Seal(reply) => drop(reply.send(self.core.data.seal())),
                Order::Resume(reply) => drop(reply.send(self.resume())),
                Order::Finish(deadline, done) => self.start_finishing(deadline, done),
            }
        }
        Ok(())
    }

    fn start_serving(&mut self) -> Result<SocketAddr> {
        self.accept()?;
        self.core.data.tidy();
        let first = self.listeners.first().ok_or_else(|| Error::hook("there is no listener"))?;
        first.local_addr().map_err(|e| Error::io("read the listener's address", e))
    }

    fn accept(&mut self) -> Result<()> {
        self.acceptors.clear();
        for listener in &self.listeners {
            let copy = listener.try_clone().map_err(|e| Error::io("duplicate a listener", e))?;
            let shared = Arc::clone(&self.core.shared);
            let acceptor =
                Acceptor::start(copy.into(), move |connection| shared.order(Order::Adopt(connection)));
            self.acceptors.push(acceptor.map_err(|e| Error::io("start accepting", e))?);
        }
        Ok(())
    }

    fn adopt(&mut self, connection: OwnedFd) {
        let mut conn = Conn::new(TcpStream::from(connection));
        let token = self.next_token;
        self.next_token += 1;
        self.core.counts.connections += 1;
        if self.conns.len() >= self.core.config.max_clients {
            conn.say_error("ERR max number of clients reached");
            conn.flush(u64::MAX);
            return;
        }
        if let Err(e) = self.core.poller.add(conn.stream(), token, Interest { read: true, write: false }) {
            tracing::warn!("unable to watch a connection: {e}");
            return;
        }
        self.conns.insert(token, conn);
        self.publish_open();
        // Often the first request has come with it, and saves a turn of the loop.
        self.serve(token, true, false);
    }

    /// Sees what has become durable, and sends the answers that waited for it.
    fn look_at_the_disk(&mut self) -> Result<()> {
        let progressed = match self.core.data.poll() {
            Ok(progressed) => progressed,
            Err(failure) => return self.on_failure(&failure),
        };
        if !progressed {
            return Ok(());
        }
        let progress = self.core.data.progress();
        let durable = progress.durable;
        self.core
            .shared
            .revisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&progress.revisions);
        let draining = matches!(self.core.mode, Mode::Draining(_));
        while let Some((_, token)) = self.core.waiting.pop_front_if(|(barrier, _)| *barrier <= durable) {
            self.serve(token, draining, false);
        }
        let stalled = std::mem::take(&mut self.core.stalled);
        self.serve_all(stalled);
        self.core.data.submit();
        Ok(())
    }

    fn on_failure(&mut self, failure: &Failure) -> Result<()> {
        if !failure.log_is_intact {
            // What is on disk now is known only after reading it again, which a new process does best.
            return Err(Error::io("go on committing", std::io::Error::other(failure.detail.clone())));
        }
        // Their answers tell of changes that did not happen; they learn it from the closed connection.
        let unanswerable: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.waits_for().is_some())
            .map(|(token, _)| *token)
            .collect();
        unanswerable.into_iter().for_each(|token| self.remove(token));
        self.core.waiting.clear();
        match std::mem::replace(&mut self.core.mode, Mode::Paused) {
            Mode::Draining(drain) => {
                self.core.data.abandon();
                // Nobody waits if this fails. The error makes the library undo the handoff and call for a resume.
                let _ = drain.reply.send(Err(Error::hook(format!("unable to {}", failure.detail))));
                Ok(())
            }
            Mode::Paused => {
                // The seal that comes next fails, and then a resume opens the data again.
                self.core.data.abandon();
                Ok(())
            }
            mode @ (Mode::Serving | Mode::Finishing(..)) => {
                self.core.mode = mode;
                self.core.data.recover(failure)?;
                let stalled = std::mem::take(&mut self.core.stalled);
                self.serve_all(stalled);
                Ok(())
            }
        }
    }

    /// Stops accepting; every connection that was accepted until now is served to its end.
    fn start_draining(&mut self, deadline: Instant, reply: Reply<DrainReport>) -> Result<()> {
        self.acceptors.drain(..).for_each(Acceptor::stop);
        self.core.data.stop_compacting();
        let now = Instant::now();
        let quiet_until = deadline.min(now + QUIET);
        self.core.mode = Mode::Draining(Drain { deadline, quiet_until, looked: now, reply });
        // The acceptors have put their last connections there.
        self.take_orders()?;
        self.conns.values_mut().for_each(|conn| conn.caught_up = false);
        let all: Vec<u64> = self.conns.keys().copied().collect();
        self.serve_all(all);
        Ok(())
    }

    fn go_on_draining(&mut self) {
        let Mode::Draining(drain) = &mut self.core.mode else { return };
        let now = Instant::now();
        drain.looked = now;
        let (deadline, quiet_until) = (drain.deadline, drain.quiet_until);
        let over = now >= deadline || self.core.shared.interrupted.load(Ordering::SeqCst);
        if now >= quiet_until && !over {
            let open: Vec<u64> = self.open_conns().collect();
            self.serve_all(open);
            self.core.data.submit();
        }
        let open = self.open_conns().count();
        let done = open == 0 && self.core.data.is_durable();
        if !over && !done {
            return;
        }
        if let Mode::Draining(drain) = std::mem::replace(&mut self.core.mode, Mode::Paused) {
            let open_conns_remaining = u32::try_from(open).unwrap_or(u32::MAX);
            // Nobody waits for it if this fails, and then a resume follows.
            let _ = drain.reply.send(Ok(DrainReport { open_conns_remaining, accept_closed: true }));
        }
        self.watch_all();
    }

    /// Connections that may still get an answer.
    fn open_conns(&self) -> impl Iterator<Item = u64> {
        self.conns.iter().filter(|(_, conn)| !conn.lingering).map(|(token, _)| *token)
    }

    /// Makes every connection's interest fit the mode.
    fn watch_all(&mut self) {
        for (token, conn) in &self.conns {
            // A socket that cannot be watched is closed when it is served next.
            let _ = self.core.poller.modify(conn.stream(), *token, self.core.interest(conn));
        }
    }

    fn resume(&mut self) -> Result<()> {
        self.core.shared.interrupted.store(false, Ordering::SeqCst);
        self.core.data.reopen()?;
        self.core.mode = Mode::Serving;
        self.accept()?;
        let all: Vec<u64> = self.conns.keys().copied().collect();
        self.serve_all(all);
        Ok(())
    }

    fn start_finishing(&mut self, deadline: Instant, done: Sender<()>) {
        self.acceptors.drain(..).for_each(Acceptor::stop);
        self.core.mode = Mode::Finishing(deadline, done);
        for conn in self.conns.values_mut().filter(|conn| !conn.lingering) {
            conn.forget_input();
            conn.closing = true;
        }
        let all: Vec<u64> = self.conns.keys().copied().collect();
        self.serve_all(all);
    }

    fn go_on_finishing(&mut self) {
        let Mode::Finishing(deadline, _) = &self.core.mode else { return };
        if !self.conns.is_empty() && Instant::now() < *deadline {
            return;
        }
        if let Mode::Finishing(_, done) = std::mem::replace(&mut self.core.mode, Mode::Paused) {
            // Whoever asked has stopped waiting if this fails.
            let _ = done.send(());
        }
    }

    fn end_lingering(&mut self) {
        let now = Instant::now();
        while let Some((_, token)) = self.core.lingering.pop_front_if(|(until, _)| *until <= now) {
            self.remove(token);
        }
    }
}

impl Core {
    /// Reads, answers and closes as far as possible. Returns false when the connection is to be removed.
    fn work(&mut self, token: u64, conn: &mut Conn, try_read: bool) -> bool {
        if !self.answer_and_flush(token, conn) {
            return false;
        }
        let mut reads = if try_read { READS_IN_A_ROW } else { 0 };
        while reads > 0 && self.may_read(conn) {
            reads -= 1;
            match conn.read(&mut self.scratch) {
                Arrived::Some if conn.lingering => {}
                Arrived::Some => {
                    if !self.answer_and_flush(token, conn) {
                        return false;
                    }
                }
                Arrived::Nothing => {
                    conn.caught_up = true;
                    reads = 0;
                }
                Arrived::End => {
                    conn.ended = true;
                    conn.caught_up = true;
                }
                Arrived::Lost => return false,
            }
        }
        self.settle(token, conn)
    }

    fn may_read(&self, conn: &Conn) -> bool {
        if conn.ended {
            return false;
        }
        if conn.lingering {
            return true;
        }
        let mode = match &self.mode {
            Mode::Serving => true,
            // Later, only what had arrived before or continues a request; else a busy client would never end.
            Mode::Draining(drain) => {
                !conn.caught_up || conn.is_midway() || Instant::now() < drain.patience(conn)
            }
            Mode::Paused | Mode::Finishing(..) => false,
        };
        mode && !conn.closing && !conn.unfinished && !conn.is_full()
    }

    /// Answers requests and sends answers until one of both has nothing to do.
    fn answer_and_flush(&mut self, token: u64, conn: &mut Conn) -> bool {
        loop {
            self.answer(token, conn);
            let was_full = conn.is_full();
            if !conn.flush(self.data.progress().durable) {
                return false;
            }
            if !(was_full && !conn.is_full() && conn.unfinished) {
                break;
            }
        }
        if let Some(barrier) = conn.waits_for() {
            self.waiting_for(barrier, token);
        }
        true
    }

    /// Remembers whom to serve when the disk has reached `barrier`; barriers come in ascending order but for leftovers.
    fn waiting_for(&mut self, barrier: u64, token: u64) {
        if self.waiting.back() != Some(&(barrier, token)) {
            let at = self.waiting.partition_point(|(other, _)| *other <= barrier);
            self.waiting.insert(at, (barrier, token));
        }
    }

    /// Takes requests from a connection's input and answers them.
    fn answer(&mut self, token: u64, conn: &mut Conn) {
        conn.unfinished = false;
        let takes_requests = matches!(self.mode, Mode::Serving | Mode::Draining(_));
        while !conn.closing && !conn.lingering {
            let congested = self.data.is_congested();
            if !takes_requests || conn.is_full() || congested {
                conn.unfinished = conn.has_input();
                if congested {
                    self.stalled.push(token);
                }
                return;
            }
            match conn.next_request() {
                Ok(Some(request)) => match conn.answer(&request, |args, out| self.execute(args, out)) {
                    Then::Continue => {}
                    Then::Close => conn.closing = true,
                    Then::Shutdown => {
                        conn.closing = true;
                        (self.config.on_shutdown)();
                    }
                },
                Ok(None) => return,
                Err(detail) => {
                    conn.say_error(&format!("ERR {detail}"));
                    conn.closing = true;
                }
            }
        }
    }

    fn execute(&mut self, args: &[&[u8]], out: &mut Vec<u8>) -> (Then, u64) {
        self.counts.commands += 1;
        if self.config.loses_a_write && args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"set")) {
            self.config.loses_a_write = false;
            out.simple("OK");
            return (Then::Continue, 0);
        }
        let refusal = self.data.refusal();
        let facts = Facts {
            config: &self.config,
            counts: &self.counts,
            shared: &self.shared,
            started: self.started,
            generation: self.generation,
        };
        let (state, frame, ticket, progress) = self.data.parts();
        let pending = *ticket - progress.durable;
        let info = |state: &State| facts.info(progress, pending, state.live_bytes());
        let settings = || facts.settings();
        let refusal = refusal.as_deref();
        let mut session = Session { state, frame, ticket, refusal, info: &info, config: &settings };
        let (then, tells_of_data) = commands::execute(&mut session, args, out);
        (then, if tells_of_data { self.data.ticket } else { 0 })
    }

    /// Closes what is done. Returns false when the connection is to be removed.
    fn settle(&mut self, token: u64, conn: &mut Conn) -> bool {
        if conn.lingering {
            return !conn.ended;
        }
        if conn.unfinished || !conn.is_flushed() {
            return true;
        }
        if conn.ended {
            return false;
        }
        if conn.closing || self.is_drained(conn) {
            return self.half_close(token, conn);
        }
        true
    }

    fn is_drained(&self, conn: &Conn) -> bool {
        let Mode::Draining(drain) = &self.mode else { return false };
        let silent = conn.fresh || conn.is_midway();
        conn.caught_up && (!silent || Instant::now() >= drain.patience(conn))
    }

    /// Says that nothing more comes, and goes on reading until the client has closed as well.
    fn half_close(&mut self, token: u64, conn: &mut Conn) -> bool {
        conn.lingering = true;
        conn.forget_input();
        self.lingering.push_back((Instant::now() + LINGER, token));
        reactor::finish_sending(conn.stream()).is_ok()
    }

    fn interest(&self, conn: &Conn) -> Interest {
        Interest { read: self.may_read(conn), write: conn.is_blocked_by_client() }
    }

    fn must_shed(&self, conn: &Conn) -> bool {
        self.buffered > MAX_BUFFERED && conn.buffered() > BUFFERS_MUCH
    }
}

/// What INFO and CONFIG GET tell.
struct Facts<'a> {
    config: &'a Config,
    counts: &'a Counts,
    shared: &'a Shared,
    started: Instant,
    generation: u64,
}

impl Facts<'_> {
    fn settings(&self) -> Vec<Setting> {
        vec![
            ("appendfsync", "always".into()),
            ("appendonly", "yes".into()),
            ("dir", self.config.settings.dir.display().to_string()),
            ("maxclients", self.config.max_clients.to_string()),
            ("maxmemory", self.config.settings.max_memory.to_string()),
            ("save", String::new()),
        ]
    }

    fn info(&self, progress: &Progress, pending: u64, live: u64) -> Vec<Section> {
        let identity = &self.config.identity;
        let revisions = progress.revisions.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        vec![
            (
                "Server",
                vec![
                    ("server_name", "kvd".into()),
                    ("redis_version", env!("CARGO_PKG_VERSION").into()),
                    ("process_id", std::process::id().to_string()),
                    ("uptime_in_seconds", self.started.elapsed().as_secs().to_string()),
                ],
            ),
            (
                "Clients",
                vec![
                    ("connected_clients", self.shared.open_conns.load(Ordering::Relaxed).to_string()),
                    ("maxclients", self.config.max_clients.to_string()),
                ],
            ),
            ("Memory", vec![("used_memory_dataset", live.to_string())]),
            (
                "Persistence",
                vec![
                    ("aof_enabled", "1".into()),
                    ("aof_current_size", progress.position.len.to_string()),
                    ("aof_pending_changes", pending.to_string()),
                    ("log_syncs", progress.syncs.to_string()),
                    ("log_compactions", progress.compactions.to_string()),
                ],
            ),
            (
                "Stats",
                vec![
                    ("total_connections_received", self.counts.connections.to_string()),
                    ("total_commands_processed", self.counts.commands.to_string()),
                ],
            ),
            (
                "Handoff",
                vec![
                    ("build_id", identity.build_id.clone()),
                    ("pid", std::process::id().to_string()),
                    ("role", identity.role.into()),
                    ("generation", self.generation.to_string()),
                    ("revision", revisions),
                ],
            ),
        ]
    }
}
