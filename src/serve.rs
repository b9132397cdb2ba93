//! The incumbent's loop: one thread that answers everybody, and one that runs the hooks.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{Channel, Incoming};
use crate::data_dir::DataDirLock;
use crate::drainable::Drainable;
use crate::error::{Error, Result};
use crate::incumbent::{Incumbent, Served, Superseded};
use crate::proto::incumbent::{
    Action, Answer, Conn, End, Found, Input, Message as Word, Opened, Phase, Request, Row, Timer,
};
use crate::proto::party::{ProcessId, Tree};
use crate::proto::record::{OwnerRecord, Standing};
use crate::proto::wire::{
    self, Drained, ListenerList, ListenerStatus, Message, PhaseMark, Prepared, Progress, Report, Status,
};
use crate::proto::{Reason, Verdict, successor};
use crate::role::{check_hello, own_hello, pidfd};
use crate::sys::poll::{self, Waker, Want};
use crate::sys::process::{self, PidFd};
use crate::sys::{clock, queue, socket, tree, unix};

/// How many messages of one client, or new clients, are handled before the others have their turn.
const TURN: usize = 16;
/// How long new clients wait, and then an attempt to be reachable again, when there is no descriptor left for them.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a successor that gives up, or was told to, may take to say why on its standard error before it is killed.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Between two looks at whether the control path is still there.
const LOOK: Duration = Duration::from_secs(10);

/// The longest wait for a tree to be gone, before it is killed again.
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// Serves until the process may exit.
pub(crate) fn run<D: Drainable>(incumbent: Incumbent, hooks: &D) -> Result<Served> {
    let _hold = Hold(Arc::clone(&incumbent.lock));
    let (jobs, todo) = channel();
    let (done, finished) = channel();
    let bell = Arc::clone(&incumbent.bell);
    std::thread::scope(|scope| {
        let (lock, bell) = (Arc::clone(&incumbent.lock), &bell);
        std::thread::Builder::new()
            .name("handoff-hooks".to_owned())
            .spawn_scoped(scope, move || run_jobs(&todo, &done, bell, hooks, &lock))
            .map_err(|e| Error::io("start the thread that runs the hooks", e))?;
        Server::new(incumbent, hooks, jobs, finished, bell).run()
    })
}

/// Keeps a lock that was not let go, however serving ended, until the process ends: the program may still write.
struct Hold(Arc<DataDirLock>);

impl Drop for Hold {
    fn drop(&mut self) {
        if self.0.is_held() {
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// Work that may take long, for the thread that runs the hooks.
enum Job {
    Drain(Instant),
    Seal,
    Resume,
    Persist(OwnerRecord),
    Fence { quarry: Option<Quarry>, last_words: Duration, patience: Duration },
    Finalize(OwnerRecord),
    StopServing(Instant),
    Settle,
}

/// What came of it.
enum Finished {
    Incumbent(Input),
    Drained { input: Input, stopped_us: u64, conns: u32 },
    FenceFailed(Vec<u32>),
    Successor(successor::Input),
    Settled,
}

/// How the loop ended.
enum Ended {
    Committed(String),
    Retired(String),
    SteppedDown(Reason),
    Superseded(OwnerRecord),
    Stopped,
}

fn run_jobs<D: Drainable>(
    todo: &Receiver<Job>,
    done: &Sender<Finished>,
    bell: &Waker,
    hooks: &D,
    lock: &DataDirLock,
) {
    while let Ok(job) = todo.recv() {
        let finished = run_job(job, hooks, lock);
        // The loop has ended, and with it the process's part.
        let _ = done.send(finished);
        bell.ring();
    }
}

fn run_job<D: Drainable>(job: Job, hooks: &D, lock: &DataDirLock) -> Finished {
    match job {
        Job::Drain(deadline) => {
            let stopped_us = clock::monotonic_us();
            let conns = guarded(|| Ok(hooks.snapshot_state().open_conns)).unwrap_or_default();
            let input = Input::DrainReturned(guarded(|| hooks.drain(deadline)));
            Finished::Drained { input, stopped_us, conns }
        }
        Job::Seal => Finished::Incumbent(Input::SealReturned(guarded(|| hooks.seal()))),
        Job::Resume => Finished::Incumbent(Input::ResumeReturned(guarded(|| hooks.resume_after_abort()))),
        Job::Persist(record) => {
            let persisted = guarded(|| lock.write_record(&record, true));
            if persisted.is_ok() {
                settle(lock);
            }
            Finished::Incumbent(Input::Persisted(persisted))
        }
        Job::Fence { quarry, last_words, patience } => {
            if let Some(quarry) = &quarry {
                // It is killed either way.
                let _ = quarry.pidfd.wait_dead(Instant::now() + last_words);
            }
            fence(quarry.as_ref(), patience)
        }
        Job::Finalize(record) => Finished::Successor(match guarded(|| lock.write_record(&record, true)) {
            Ok(()) => successor::Input::Persisted,
            Err(detail) => successor::Input::Failed(detail),
        }),
        Job::StopServing(deadline) => {
            // What was acknowledged is on disk either way; the incumbent reads it from there.
            for (hook, ended) in
                [("drain", guarded(|| hooks.drain(deadline)).err()), ("seal", guarded(|| hooks.seal()).err())]
            {
                if let Some(detail) = ended {
                    tracing::warn!(hook, detail, "while stepping down");
                }
            }
            Finished::Successor(successor::Input::SteppedDown)
        }
        Job::Settle => {
            settle(lock);
            Finished::Settled
        }
    }
}

fn settle(lock: &DataDirLock) {
    if let Err(detail) = guarded(|| lock.settle()) {
        // The next record takes one sync more.
        tracing::warn!(detail, "unable to settle the owner record");
    }
}

fn guarded<T>(hook: impl FnOnce() -> Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(hook)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("it panicked; the message is on standard error".to_owned()),
    }
}

/// Kills a successor and what was made for it; where the tree cannot be found out, the process alone.
fn fence(quarry: Option<&Quarry>, patience: Duration) -> Finished {
    let Some(quarry) = quarry else { return Finished::Incumbent(Input::Fenced) };
    let deadline = poll::after(patience).unwrap_or_else(|| Instant::now() + PATIENCE_MAX);
    let left = match quarry.kill(deadline) {
        Ok(left) => left,
        Err(e) => {
            tracing::error!(error = %e, "unable to kill the successor's tree; killing its process alone");
            match tree::kill(Some(&quarry.pidfd), &Tree::Lone, deadline) {
                Ok(killed) => killed.left,
                Err(e) => {
                    tracing::error!(error = %e, "unable to kill the successor");
                    vec![quarry.process.pid]
                }
            }
        }
    };
    if left.is_empty() {
        return Finished::Incumbent(Input::Fenced);
    }
    // It is tried again at once, and what may not be killed answers at once.
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    Finished::FenceFailed(left)
}

/// Whom to kill. Its descriptors are open before they are needed: there may be none left then.
#[derive(Clone)]
struct Quarry {
    pidfd: Arc<PidFd>,
    process: ProcessId,
    /// Who leads the session, where a wrapper started the successor.
    leader: Option<Arc<PidFd>>,
    tree: Tree,
}

impl Quarry {
    fn new(pidfd: PidFd, process: ProcessId, tree: Tree) -> Self {
        let leader = match &tree {
            Tree::Session { sid } if *sid != process.pid => process::session_leader(process.pid, *sid),
            _ => None,
        };
        Self { pidfd: Arc::new(pidfd), process, leader: leader.map(Arc::new), tree }
    }

    fn kill(&self, deadline: Instant) -> std::io::Result<Vec<u32>> {
        let leader = self.leader.as_ref().unwrap_or(&self.pidfd);
        let mut left = tree::kill(Some(leader), &self.tree, deadline)?.left;
        if self.leader.is_some() {
            left.extend(tree::kill(Some(&self.pidfd), &Tree::Lone, deadline)?.left);
        }
        Ok(left)
    }
}

/// A control connection.
struct Client {
    channel: Channel,
    watches: bool,
    /// Whether a trial is not to go on without it.
    guards: bool,
    heard: Instant,
}

/// What belongs to one handoff and decides nothing.
struct Course {
    handoff: String,
    since: Instant,
    marks: Vec<PhaseMark>,
    grace: Duration,
    stopped_us: u64,
    conns: u32,
    served: Option<wire::Served>,
}

struct Server<'a, D> {
    incumbent: Incumbent,
    hooks: &'a D,
    jobs: Sender<Job>,
    finished: Receiver<Finished>,
    bell: &'a Waker,
    clients: BTreeMap<Conn, Client>,
    connections: Conn,
    timers: BTreeMap<Timer, Instant>,
    /// The successor, once it has said who it is.
    successor: Option<Quarry>,
    course: Option<Course>,
    inputs: VecDeque<Input>,
    since: Instant,
    /// When to accept again, and to make the control path lead here again, after there was no descriptor for it.
    accept_at: Option<Instant>,
    bind_at: Option<Instant>,
    /// When to see whether the control path is still there.
    look_at: Instant,
    /// Whether the holders of the lock that is to be taken back were named.
    named_holders: bool,
    /// The lease of the run that is being acted upon, also in the step that ends it.
    leased: Option<Conn>,
    /// The id of the handoff that ended last.
    ended: String,
    /// Whether the incumbent that stands by was told that this successor was asked to stop.
    stop_relayed: bool,
    end: Option<Result<Ended>>,
}

/// Something that can be waited for.
#[derive(Clone, Copy)]
enum Source {
    Control,
    Bell,
    Stop,
    Successor,
    Session,
    Client(Conn),
}

impl<'a, D: Drainable> Server<'a, D> {
    fn new(
        incumbent: Incumbent,
        hooks: &'a D,
        jobs: Sender<Job>,
        finished: Receiver<Finished>,
        bell: &'a Waker,
    ) -> Self {
        Self {
            incumbent,
            hooks,
            jobs,
            finished,
            bell,
            clients: BTreeMap::new(),
            connections: 0,
            timers: BTreeMap::new(),
            successor: None,
            course: None,
            inputs: VecDeque::new(),
            since: Instant::now(),
            accept_at: None,
            bind_at: None,
            look_at: Instant::now() + LOOK,
            named_holders: false,
            leased: None,
            ended: String::new(),
            stop_relayed: false,
            end: None,
        }
    }

    fn run(mut self) -> Result<Served> {
        if self.incumbent.session.is_some() {
            self.feed_session(successor::Input::ServeCalled);
        }
        while self.end.is_none() {
            for source in self.wait()? {
                self.attend(source);
            }
            self.attend_session();
            // Last: a process that was stopped for a while finds its answers before it finds that they are late.
            self.expire();
            self.stop_if_asked();
        }
        self.leave()
    }

    fn leave(mut self) -> Result<Served> {
        for client in self.clients.values_mut() {
            // What does not fit into its socket's buffer now, it would not have read in time either.
            let _ = client.channel.flush();
        }
        let Incumbent { bound, control_path, lock, listeners, .. } = self.incumbent;
        bound.remove(&control_path);
        Ok(match self.end.unwrap_or(Ok(Ended::Stopped))? {
            Ended::Committed(handoff) => Served::Committed { handoff },
            Ended::Retired(handoff) => Served::Retired { handoff },
            Ended::SteppedDown(reason) => Served::SteppedDown { reason },
            Ended::Superseded(record) => Served::Superseded(Box::new(Superseded { record, lock, listeners })),
            Ended::Stopped => Served::Stopped,
        })
    }

    // ---- Waiting.

    fn wait(&self) -> Result<Vec<Source>> {
        let mut sources: Vec<(Source, BorrowedFd<'_>, Want)> = vec![
            (Source::Bell, self.bell.as_fd(), Want::Read),
            (Source::Stop, self.incumbent.stop.waker.as_fd(), Want::Read),
        ];
        if self.accept_at.is_none() {
            sources.push((Source::Control, self.incumbent.bound.as_fd(), Want::Read));
        }
        if let Some(successor) = self.successor.as_ref().filter(|_| self.minds_its_death()) {
            sources.push((Source::Successor, successor.pidfd.as_fd(), Want::Read));
        }
        let pauses = self.accept_at.into_iter().chain(self.bind_at).chain([self.look_at]);
        let mut deadline = self.timers.values().copied().chain(pauses).min();
        if let Some(session) = &self.incumbent.session {
            let (interests, silence) = session.interests();
            sources.extend(interests.into_iter().map(|(fd, want)| (Source::Session, fd, want)));
            deadline = deadline.into_iter().chain(silence).min();
        }
        for (conn, client) in &self.clients {
            let want = if client.channel.wants_write() { Want::Both } else { Want::Read };
            sources.push((Source::Client(*conn), client.channel.as_fd(), want));
        }
        // What a turn left over is in a buffer of ours, where poll does not see it.
        let waiting = |source: &Source| match source {
            Source::Client(conn) => self.clients.get(conn).is_some_and(|client| client.channel.has_line()),
            _ => false,
        };
        if sources.iter().any(|(source, ..)| waiting(source)) {
            deadline = Some(Instant::now());
        }
        let fds: Vec<(BorrowedFd<'_>, Want)> = sources.iter().map(|(_, fd, want)| (*fd, *want)).collect();
        let ready = poll::wait(&fds, deadline).map_err(|e| Error::io("wait for control connections", e))?;
        let ready = sources.iter().zip(ready).filter(|((source, ..), ready)| *ready || waiting(source));
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn minds_its_death(&self) -> bool {
        matches!(self.incumbent.machine.row(&Input::SuccessorLost), Row::Go(..))
    }

    fn expire(&mut self) {
        let now = Instant::now();
        self.accept_at = self.accept_at.filter(|at| *at > now);
        if self.bind_at.is_some_and(|at| at <= now) {
            self.bind_control();
        }
        if self.look_at <= now {
            self.look_for_control_path();
        }
        let due: Vec<Timer> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            self.let_it_speak(timer);
            // What it said may have stopped the timer.
            if self.timers.get(&timer).is_some_and(|at| *at <= now) {
                self.timers.remove(&timer);
                self.feed(Input::Expired(timer));
            }
        }
    }

    /// Something that tidies up may have removed it; what another process put there is left alone.
    fn look_for_control_path(&mut self) {
        self.look_at = Instant::now() + LOOK;
        let path = &self.incumbent.control_path;
        if self.incumbent.session.is_none() && self.holds_lock() && path.symlink_metadata().is_err() {
            tracing::warn!(path = %path.display(), "the control path was removed; making it anew");
            self.bind_control();
        }
    }

    /// A granted successor that has served for long must not be killed because this process was stopped for a while.
    /// The deadline is another matter: what is not read before it is too late.
    fn let_it_speak(&mut self, timer: Timer) {
        if let (Timer::StandBy | Timer::Bake | Timer::StepDown, Some(lease)) = (timer, self.lease()) {
            self.read(lease);
        }
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Control => self.accept(),
            Source::Bell => self.collect(),
            Source::Stop => self.incumbent.stop.waker.clear(),
            Source::Successor => self.successor_lost(),
            // Looked at in every round: one descriptor's news can be in another one's buffer.
            Source::Session => {}
            Source::Client(conn) => self.read(conn),
        }
    }

    fn collect(&mut self) {
        self.bell.clear();
        while let Ok(finished) = self.finished.try_recv() {
            match finished {
                Finished::Incumbent(input) => self.feed(input),
                Finished::Drained { input, stopped_us, conns } => {
                    if let Some(course) = &mut self.course {
                        (course.stopped_us, course.conns) = (stopped_us, conns);
                    }
                    self.feed(input);
                }
                Finished::FenceFailed(left) => {
                    tracing::error!(
                        ?left,
                        "the successor's tree does not die (stopped in the kernel, or a frozen control group?)"
                    );
                    self.fence();
                }
                Finished::Successor(successor::Input::SteppedDown) => self.let_go(),
                Finished::Successor(input) => self.feed_session(input),
                Finished::Settled => {}
            }
        }
    }

    /// What it sent before it died counts before its death.
    fn successor_lost(&mut self) {
        if let Some(conn) = self.lease() {
            self.read(conn);
        }
        if self.minds_its_death() {
            self.feed(Input::SuccessorLost);
        }
    }

    fn stop_if_asked(&mut self) {
        if self.end.is_some() {
            return;
        }
        let asked = self.incumbent.stop.asked.load(Ordering::Acquire);
        let reason = self.incumbent.stop.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !asked && reason.is_none() {
            return;
        }
        if let Some(session) = &mut self.incumbent.session {
            if *session.phase() == successor::Phase::OnTrial && !self.stop_relayed {
                let reason = reason.unwrap_or_else(|| "the successor was asked to stop".to_owned());
                // Where its incumbent is gone, it is about to be final, and stops then.
                let _ = session.relay(&Message::Abort { reason, cause: None });
                self.stop_relayed = true;
            }
        } else if asked && self.incumbent.machine.phase == Phase::Serving {
            self.end = Some(Ok(Ended::Stopped));
        }
    }

    // ---- Control connections.

    fn accept(&mut self) {
        for _ in 0..TURN {
            let fd = match self.incumbent.bound.accept() {
                Ok(fd) => fd,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    // The socket stays readable: without a pause this loop would do nothing else.
                    tracing::warn!(error = %e, "unable to accept a control connection");
                    self.accept_at = poll::after(PAUSE);
                    return;
                }
            };
            match process::peer_cred(fd.as_fd()) {
                Ok(peer) if peer.uid == 0 || peer.uid == unix::effective_uid() => self.admit(fd),
                Ok(peer) => tracing::warn!(
                    pid = peer.pid,
                    uid = peer.uid,
                    "a control connection of another user is refused"
                ),
                Err(e) => tracing::warn!(error = %e, "a control connection without credentials is refused"),
            }
        }
    }

    fn admit(&mut self, fd: OwnedFd) {
        if self.clients.len() >= self.incumbent.limits.connections {
            self.evict();
        }
        self.connections += 1;
        let client =
            Client { channel: Channel::new(fd), watches: false, guards: false, heard: Instant::now() };
        self.clients.insert(self.connections, client);
    }

    /// Closes the connection that has been silent longest; never the lease, and one that watches only at last.
    fn evict(&mut self) {
        let lease = self.lease();
        let others = self.clients.iter().filter(|(conn, _)| Some(**conn) != lease);
        let victim = others.min_by_key(|(_, client)| (client.watches, client.heard)).map(|(conn, _)| *conn);
        if let Some(conn) = victim {
            tracing::warn!("too many control connections: closing the one that has been silent longest");
            self.clients.remove(&conn);
        }
    }

    fn read(&mut self, conn: Conn) {
        for _ in 0..TURN {
            let Some(client) = self.clients.get_mut(&conn) else { return };
            // A peer that is gone takes nothing more, but what it sent before is still there to be read.
            let _ = client.channel.flush();
            match client.channel.receive() {
                Ok(None) => return,
                Ok(Some(incoming)) => {
                    client.heard = Instant::now();
                    self.handle(conn, incoming);
                }
                Err(Error::PeerLost { .. } | Error::Io { .. }) => return self.lost(conn),
                Err(e) => return self.reject(conn, &e),
            }
        }
    }

    fn lost(&mut self, conn: Conn) {
        let guarded = self.clients.remove(&conn).is_some_and(|client| client.guards);
        if guarded && self.incumbent.machine.phase == Phase::Baking {
            let detail = "whoever checked the successor's health is gone".to_owned();
            self.feed(Input::OperatorAbort(conn, detail));
        }
        if self.lease() == Some(conn) {
            self.feed(Input::LeaseLost);
        }
    }

    fn reject(&mut self, conn: Conn, error: &Error) {
        tracing::warn!(%error, "a control connection is closed");
        self.answer(conn, &Message::Refused { reason: error.to_string() });
        if self.lease() == Some(conn) {
            self.feed(Input::Lease(Request::Foreign(error.to_string())));
        }
        self.lost(conn);
    }

    fn lease(&self) -> Option<Conn> {
        self.incumbent.machine.run.as_ref().map(|run| run.lease)
    }

    fn answer(&mut self, conn: Conn, message: &Message) {
        self.answer_with(conn, message, &[]);
    }

    fn answer_with(&mut self, conn: Conn, message: &Message, fds: &[OwnedFd]) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(e) = client.channel.send(message, &fds) {
            tracing::debug!(error = %e, message = message.name(), "unable to answer a control connection");
            // The lease is lost when its end is read; what the holder said before counts until then.
            if self.lease() != Some(conn) && self.leased != Some(conn) {
                self.clients.remove(&conn);
            }
        }
    }

    fn handle(&mut self, conn: Conn, incoming: Incoming) {
        let (message, fds) = match incoming {
            Incoming::Message(message, fds) => (message, fds),
            Incoming::Unknown(name) => return self.refuse(conn, &name, "a message of this protocol version"),
        };
        if !fds.is_empty() && !matches!(message, Message::Attach(_)) {
            let got = format!("{} with {} descriptors", message.name(), fds.len());
            return self.reject(conn, &Error::Protocol { expected: "none".to_owned(), got });
        }
        match message {
            Message::Hello(hello) => self.greet(conn, hello),
            Message::Status {} => {
                let report = Message::StatusReport(Box::new(self.status()));
                self.answer(conn, &report);
            }
            Message::Listeners {} => self.give_listeners(conn),
            Message::Stdio {} => self.give_stdio(conn),
            Message::Watch { guards } => self.watch(conn, guards),
            Message::Prepare(terms) => match self.trial() {
                Some(busy) => self.answer(conn, &busy),
                None => self.feed(Input::Prepare(conn, terms)),
            },
            Message::Commit {} => self.operator(conn, Message::Commit {}, Input::OperatorCommit),
            Message::Abort { reason, cause } => self.abort(conn, reason, cause),
            Message::Attach(attach) => self.attach(conn, attach, fds),
            Message::Drain { grace_ms } => {
                let holds_lease = self.lease() == Some(conn);
                if let Some(course) = self.course.as_mut().filter(|_| holds_lease) {
                    course.grace = Duration::from_millis(grace_ms);
                }
                self.request(conn, Request::Drain, "drain");
            }
            Message::Seal {} => self.request(conn, Request::Seal, "seal"),
            Message::Ready(ready) => {
                let opened = Opened { readiness: ready.readiness, fingerprint: ready.data_dir_fingerprint };
                self.request(conn, Request::Ready(opened), "ready");
            }
            Message::Serving(served) => self.served(conn, served, Request::Serving, "serving"),
            Message::Done(served) => self.served(conn, served, Request::Done, "done"),
            Message::SteppedDown {} => self.request(conn, Request::SteppedDown, "stepped-down"),
            Message::Retire {} => self.request(conn, Request::Retire, "retire"),
            other => self.refuse(conn, other.name(), "a request"),
        }
    }

    fn refuse(&mut self, conn: Conn, got: &str, expected: &str) {
        let reason = format!("expected {expected}, got {got}");
        self.answer(conn, &Message::Refused { reason });
        if self.lease() == Some(conn) {
            self.feed(Input::Lease(Request::Foreign(got.to_owned())));
        }
    }

    fn greet(&mut self, conn: Conn, hello: wire::Hello) {
        let ours = own_hello("incumbent", &self.incumbent.identity.owner.build_id);
        match check_hello(Message::Hello(hello)).and(ours) {
            Ok(ours) => self.answer(conn, &Message::Hello(ours)),
            Err(e) => self.reject(conn, &e),
        }
    }

    /// A request that only the lease's holder may make.
    fn request(&mut self, conn: Conn, request: Request, name: &str) {
        if self.lease() == Some(conn) {
            self.feed(Input::Lease(request));
        } else {
            self.refuse(conn, name, "prepare first: this connection does not hold the lease");
        }
    }

    fn served(&mut self, conn: Conn, served: wire::Served, request: Request, name: &str) {
        if let Some(course) = self
            .course
            .as_mut()
            .filter(|_| self.incumbent.machine.run.as_ref().is_some_and(|run| run.lease == conn))
        {
            course.served.get_or_insert(served);
        }
        self.request(conn, request, name);
    }

    fn attach(&mut self, conn: Conn, attach: wire::Attach, fds: Vec<OwnedFd>) {
        if self.lease() != Some(conn) {
            return self.refuse(conn, "attach", "prepare first: this connection does not hold the lease");
        }
        let pidfd = match pidfd(fds) {
            Ok(pidfd) => pidfd,
            Err(e) => return self.refuse(conn, &e.to_string(), "the successor's own pidfd"),
        };
        // Elsewhere it is a second one, and whom to kill must not change under a handoff.
        if matches!(self.incumbent.machine.phase, Phase::Sealed | Phase::Locking(_)) {
            self.successor = Some(Quarry::new(pidfd, attach.process, attach.tree));
        }
        self.feed(Input::Lease(Request::Attach));
    }

    fn abort(&mut self, conn: Conn, reason: String, cause: Option<Reason>) {
        if self.lease() == Some(conn) {
            let reason = cause.unwrap_or(Reason::Driver { detail: reason });
            self.feed(Input::Lease(Request::Abort(reason)));
        } else {
            let relayed = Message::Abort {
                reason: reason.clone(),
                cause: Some(Reason::Operator { detail: reason.clone() }),
            };
            self.operator(conn, relayed, |conn| Input::OperatorAbort(conn, reason));
        }
    }

    /// A successor on trial passes on what an operator asks of it: the incumbent that stands by decides.
    fn operator(&mut self, conn: Conn, relayed: Message, input: impl FnOnce(Conn) -> Input) {
        let Some(session) = self.incumbent.session.as_mut() else { return self.feed(input(conn)) };
        let phase = session.phase().name();
        let relayed = match session.phase() {
            successor::Phase::OnTrial => session.relay(&relayed).map_err(|e| e.to_string()),
            _ => Err(format!("too late: the successor is {phase}")),
        };
        let answer = relayed.map_or_else(|reason| Message::Refused { reason }, |()| Message::Accepted {});
        self.answer(conn, &answer);
    }

    fn watch(&mut self, conn: Conn, guards: bool) {
        if let Some(client) = self.clients.get_mut(&conn) {
            (client.watches, client.guards) = (true, guards);
        }
        self.answer(conn, &Message::Accepted {});
    }

    fn give_listeners(&mut self, conn: Conn) {
        let copies: std::io::Result<Vec<(String, OwnedFd)>> =
            self.incumbent.listeners.iter().map(|(name, fd)| Ok((name.clone(), fd.try_clone()?))).collect();
        let copies = match copies {
            Ok(copies) => copies,
            Err(e) => {
                return self.answer(
                    conn,
                    &Message::Refused { reason: format!("unable to copy the listeners: {e}") },
                );
            }
        };
        let mut left = copies.len();
        let mut copies = copies.into_iter();
        loop {
            let (names, fds): (Vec<String>, Vec<OwnedFd>) = copies.by_ref().take(wire::FDS_MAX).unzip();
            left -= names.len();
            self.answer_with(conn, &Message::ListenerList(ListenerList { names, more: left }), &fds);
            if left == 0 {
                return;
            }
        }
    }

    fn give_stdio(&mut self, conn: Conn) {
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        let copies: std::io::Result<Vec<OwnedFd>> =
            [stdout.as_fd(), stderr.as_fd()].iter().map(BorrowedFd::try_clone_to_owned).collect();
        match copies {
            Ok(copies) => self.answer_with(conn, &Message::StdioCopies {}, &copies),
            Err(e) => {
                let reason = format!("unable to copy standard output and error: {e}");
                self.answer(conn, &Message::Refused { reason });
            }
        }
    }

    // ---- Status.

    fn status(&self) -> Status {
        let on_trial = self.incumbent.session.as_ref();
        let record = &self.incumbent.identity.owner;
        let phase = match on_trial {
            Some(session) => session.phase().name(),
            None => self.incumbent.machine.phase.name(),
        };
        Status {
            role: if on_trial.is_some() { "successor" } else { "incumbent" }.to_owned(),
            phase: phase.to_owned(),
            process: self.incumbent.identity.process(),
            build_id: record.build_id.clone(),
            binary: record.binary.display().to_string(),
            generation: self.incumbent.machine.generation,
            data_dir: self.incumbent.lock.dir().display().to_string(),
            lock_file: self.lock_file(),
            handoff: self.progress(),
            state: guarded(|| Ok(self.hooks.snapshot_state())).unwrap_or_default(),
            listeners: self.incumbent.listeners.iter().map(listener_status).collect(),
            locked: self.holds_lock(),
            uptime_ms: millis(self.since.elapsed()),
        }
    }

    fn holds_lock(&self) -> bool {
        use Phase::{Attached, Baking, Fencing, Finalizing, Gone, Locking, Sealed, StandingBy, SteppingDown};
        !matches!(
            self.incumbent.machine.phase,
            Sealed
                | Attached
                | StandingBy
                | Baking
                | Finalizing
                | SteppingDown(_)
                | Fencing(_)
                | Locking(_)
                | Gone(_)
        )
    }

    fn progress(&self) -> Option<Progress> {
        if let Some(session) = &self.incumbent.session {
            return Some(Progress {
                handoff: session.offer.handoff.clone(),
                age_ms: millis(self.since.elapsed()),
                left_ms: session.bake.map(|bake| millis(bake.saturating_sub(self.since.elapsed()))),
                successor: Some(self.incumbent.identity.process()),
                incumbent: Some(session.offer.incumbent.clone()),
            });
        }
        let course = self.course.as_ref()?;
        let due = self.timers.get(&Timer::Deadline).or_else(|| self.timers.get(&Timer::Bake));
        Some(Progress {
            handoff: course.handoff.clone(),
            age_ms: millis(course.since.elapsed()),
            left_ms: due.map(|at| millis(at.saturating_duration_since(Instant::now()))),
            successor: self.successor.as_ref().map(|successor| successor.process.clone()),
            incumbent: Some(self.incumbent.identity.process()),
        })
    }

    fn busy(&self) -> Message {
        let course = self.course.as_ref();
        Message::Busy {
            handoff: course.map_or(String::new(), |course| course.handoff.clone()),
            phase: self.incumbent.machine.phase.name().to_owned(),
            age_ms: course.map_or(0, |course| millis(course.since.elapsed())),
        }
    }

    /// What a driver is told while this process itself is on trial, or about to be final.
    fn trial(&self) -> Option<Message> {
        let session = self.incumbent.session.as_ref()?;
        Some(Message::Busy {
            handoff: session.offer.handoff.clone(),
            phase: session.phase().name().to_owned(),
            age_ms: millis(self.since.elapsed()),
        })
    }

    // ---- The machine.

    fn feed(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            self.before(&input);
            let was = self.incumbent.machine.phase.name();
            self.leased = self.lease().or(self.leased);
            match self.incumbent.machine.step(input) {
                Ok(actions) => {
                    self.leased = self.lease().or(self.leased);
                    self.mark(was);
                    for action in actions {
                        self.perform(action);
                    }
                }
                Err(input) => {
                    tracing::error!(phase = was, ?input, "the incumbent's table has no row for this")
                }
            }
            self.settle_end();
        }
    }

    fn before(&mut self, input: &Input) {
        let Input::Prepare(_, terms) = input else { return };
        if self.incumbent.machine.phase == Phase::Serving {
            // Outside the gap, so that the record in it takes one sync.
            self.job(Job::Settle);
            self.successor = None;
            self.course = Some(Course {
                handoff: terms.handoff.clone(),
                since: Instant::now(),
                marks: vec![],
                grace: Duration::ZERO,
                stopped_us: 0,
                conns: 0,
                served: None,
            });
        }
    }

    fn mark(&mut self, was: &str) {
        let phase = self.incumbent.machine.phase.name();
        if was == phase {
            return;
        }
        tracing::debug!(from = was, to = phase, "incumbent");
        if let Some(course) = &mut self.course {
            course.marks.push(PhaseMark { phase: phase.to_owned(), at_us: clock::monotonic_us() });
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Answer(conn, answer) => self.answer_operator(conn, answer),
            Action::Send(word) => self.send(word),
            Action::CloseLease => self.close_lease(),
            Action::Arm(timer) => self.arm(timer),
            Action::Disarm(timer) => {
                self.timers.remove(&timer);
            }
            Action::CallDrain => self.job(Job::Drain(self.drain_deadline())),
            Action::CallSeal => self.job(Job::Seal),
            Action::CallResume => self.job(Job::Resume),
            Action::Interrupt => {
                if let Err(detail) = guarded(|| {
                    self.hooks.interrupt();
                    Ok(())
                }) {
                    tracing::warn!(detail, "interrupt");
                }
            }
            Action::Unlock => {
                let unlocked = self.incumbent.lock.unlock().map_err(|e| e.to_string());
                self.inputs.push_front(Input::Unlocked(unlocked));
            }
            Action::Fence => self.fence(),
            Action::TryLock => {
                let input = self.try_lock();
                self.inputs.push_front(input);
            }
            Action::Persist(generation) => {
                self.job(Job::Persist(self.incumbent.identity.record(generation, Standing::Final)));
            }
            Action::BindControl => self.bind_control(),
            Action::Announce(verdict) => self.announce(verdict),
        }
    }

    fn job(&self, job: Job) {
        self.jobs.send(job).expect("the thread that runs the hooks ends only after this loop");
    }

    fn answer_operator(&mut self, conn: Conn, answer: Answer) {
        let message = match answer {
            Answer::Busy => self.busy(),
            Answer::Accepted => Message::Accepted {},
            Answer::Refused(reason) => Message::Refused { reason: reason.to_owned() },
        };
        self.answer(conn, &message);
    }

    fn lock_file(&self) -> String {
        self.incumbent
            .lock
            .path()
            .file_name()
            .map_or(String::new(), |name| name.to_string_lossy().into_owned())
    }

    fn send(&mut self, word: Word) {
        let Some(conn) = self.leased else { return };
        let message = match word {
            Word::Prepared(generation) => return self.send_prepared(conn, generation),
            Word::Drained(report) => {
                let (stopped_us, conns) =
                    self.course.as_ref().map_or((0, 0), |course| (course.stopped_us, course.conns));
                Message::Drained(Drained { report, stopped_us, conns })
            }
            Word::Sealed(report) => Message::Sealed(report),
            Word::Granted => Message::Granted {
                bake_ms: self.incumbent.machine.run.as_ref().and_then(|run| run.terms.bake_ms),
            },
            Word::Finalize => Message::Finalize {},
            Word::StepDown(reason) => Message::StepDown { reason },
            Word::Aborted(reason) => Message::Aborted { reason },
        };
        self.answer(conn, &message);
    }

    fn send_prepared(&mut self, conn: Conn, generation: u64) {
        let prepared = Message::Prepared(Prepared {
            generation,
            incumbent: self.incumbent.identity.process(),
            data_dir: self.incumbent.lock.dir().display().to_string(),
            lock_file: self.lock_file(),
        });
        match PidFd::current() {
            Ok(pidfd) => self.answer_with(conn, &prepared, &[pidfd.into()]),
            Err(e) => self.answer(conn, &Message::Refused { reason: format!("unable to open a pidfd: {e}") }),
        }
    }

    fn close_lease(&mut self) {
        let Some(mut client) = self.leased.take().and_then(|conn| self.clients.remove(&conn)) else { return };
        // What does not fit into the socket's buffer is not worth keeping a lease open for.
        let _ = client.channel.flush();
    }

    fn arm(&mut self, timer: Timer) {
        let terms = self.incumbent.machine.run.as_ref().map(|run| &run.terms);
        let length = match timer {
            Timer::Deadline => terms.map(|terms| terms.deadline_ms),
            Timer::StandBy => terms.map(|terms| terms.stand_by_ms),
            Timer::Bake => terms.and_then(|terms| terms.bake_ms),
            Timer::StepDown => Some(millis(self.incumbent.limits.step_down)),
            Timer::Retry => Some(millis(self.incumbent.limits.retry)),
        };
        let at = poll::after(Duration::from_millis(length.unwrap_or(0)));
        // A deadline past the end of time is none.
        match at {
            Some(at) => self.timers.insert(timer, at),
            None => self.timers.remove(&timer),
        };
    }

    fn drain_deadline(&self) -> Instant {
        let grace = self.course.as_ref().and_then(|course| poll::after(course.grace));
        let deadline = self.timers.get(&Timer::Deadline).copied();
        grace.into_iter().chain(deadline).min().unwrap_or_else(Instant::now)
    }

    fn fence(&mut self) {
        let (quarry, patience) = (self.successor.clone(), self.incumbent.limits.fence);
        let last_words = match &self.incumbent.machine.phase {
            Phase::Fencing(Reason::Deadline | Reason::SuccessorHung) => Duration::ZERO,
            _ => LAST_WORDS,
        };
        self.job(Job::Fence { quarry, last_words, patience });
    }

    fn try_lock(&mut self) -> Input {
        match self.incumbent.lock.relock() {
            Ok(true) => self.named_holders = false,
            Ok(false) => {
                self.name_holders();
                return self.overtaken().unwrap_or(Input::LockBusy);
            }
            Err(e) => return Input::LockFailed(e.to_string()),
        }
        match self.incumbent.lock.record() {
            Ok(Some(record)) => {
                Input::Locked(Found { generation: record.generation, standing: record.standing })
            }
            Ok(None) => Input::LockFailed("the owner record is gone".to_owned()),
            Err(e) => Input::LockFailed(e.to_string()),
        }
    }

    /// Looks at the record without the lock: what is final stays so, whoever holds the lock now.
    fn overtaken(&self) -> Option<Input> {
        let record = self.incumbent.lock.record().ok()??;
        let is_over =
            record.standing == Standing::Final && record.generation > self.incumbent.machine.generation;
        is_over.then_some(Input::Overtaken(record.generation))
    }

    /// Once: to find them takes a look at every process there is, and the lock is tried many times a second.
    fn name_holders(&mut self) {
        if !std::mem::replace(&mut self.named_holders, true) {
            let holders = self.incumbent.lock.holders().unwrap_or_default();
            let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
            tracing::warn!(?holders, "the lock is still held; it is tried until it is free");
        }
    }

    fn bind_control(&mut self) {
        self.bind_at = None;
        let path = &self.incumbent.control_path;
        if self.incumbent.machine.phase == Phase::Gone(End::Committed) || self.incumbent.bound.is_at(path) {
            return;
        }
        let bound = unix::Bound::beside(path).and_then(|mut bound| bound.put_in_place(path).map(|()| bound));
        match bound {
            Ok(bound) => self.incumbent.bound = bound,
            Err(error) => {
                tracing::error!(%error, "this daemon serves, but cannot be reached at its control path; trying again");
                self.bind_at = poll::after(PAUSE);
            }
        }
    }

    fn announce(&mut self, verdict: Verdict) {
        tracing::info!(?verdict, "handoff ended");
        let (handoff, phases, served) = match self.course.take() {
            Some(course) => (course.handoff, course.marks, course.served),
            None => (String::new(), vec![], None),
        };
        self.ended.clone_from(&handoff);
        let message = Message::Verdict(Report { handoff, verdict, phases, served });
        let watching: Vec<Conn> =
            self.clients.iter().filter(|(_, client)| client.watches).map(|(conn, _)| *conn).collect();
        for conn in watching {
            self.answer(conn, &message);
        }
    }

    fn settle_end(&mut self) {
        let Phase::Gone(end) = &self.incumbent.machine.phase else { return };
        if self.end.is_some() {
            return;
        }
        self.end = Some(match end {
            End::Committed => Ok(Ended::Committed(self.ended.clone())),
            End::Retired => Ok(Ended::Retired(self.ended.clone())),
            End::Failed(detail) => {
                Err(Error::Aborted { reason: format!("there is no way back to serving: {detail}") })
            }
            End::Superseded => self.superseded(),
            End::Overtaken { found } => {
                let expected = self.incumbent.machine.generation;
                Ok(Ended::SteppedDown(Reason::TooLate { expected, found: *found }))
            }
        });
    }

    fn superseded(&self) -> Result<Ended> {
        let gone = || Error::Aborted { reason: "the successor's owner record is gone".to_owned() };
        self.incumbent.lock.record()?.map(Ended::Superseded).ok_or_else(gone)
    }

    // ---- The successor's machine, while this process is on trial.

    fn attend_session(&mut self) {
        while let Some(input) = self.incumbent.session.as_mut().and_then(|session| session.next_input()) {
            self.feed_session(input);
        }
    }

    fn feed_session(&mut self, input: successor::Input) {
        let Some(session) = self.incumbent.session.as_mut() else { return };
        for action in session.step(input) {
            self.perform_session(action);
        }
        match self.incumbent.session.as_ref().map(|session| session.phase()) {
            Some(successor::Phase::Promoted) => {
                self.incumbent.stop.on_trial.store(false, Ordering::Release);
                self.incumbent.session = None;
                self.job(Job::Settle);
            }
            // It failed while it served: nobody else may have the lock before this process has ended.
            Some(successor::Phase::Gone(reason)) if self.incumbent.lock.is_held() => {
                self.end = Some(Err(Error::Aborted { reason: reason.to_string() }));
            }
            Some(successor::Phase::Gone(reason)) => self.end = Some(Ok(Ended::SteppedDown(reason.clone()))),
            _ => {}
        }
    }

    fn perform_session(&mut self, action: successor::Action) {
        use successor::{Action, Trial};
        match action {
            Action::BindControl => {
                let bound = self.incumbent.bound.put_in_place(&self.incumbent.control_path);
                self.feed_session(match bound {
                    Ok(()) => successor::Input::Bound,
                    Err(e) => successor::Input::Failed(e.to_string()),
                });
            }
            Action::Persist(Trial::No) => {
                let record =
                    self.incumbent.identity.record(self.incumbent.machine.generation, Standing::Final);
                self.job(Job::Finalize(record));
            }
            Action::StopServing => {
                // The incumbent kills what has not stopped by the end of its own wait, which is as long by default.
                self.job(Job::StopServing(Instant::now() + self.incumbent.limits.step_down / 2));
            }
            Action::Unlock => self.let_lock_go(),
            other => tracing::error!(?other, "not after the grant"),
        }
    }

    /// The hooks have run: the data is as final as it gets.
    fn let_go(&mut self) {
        self.let_lock_go();
        self.feed_session(successor::Input::SteppedDown);
    }

    fn let_lock_go(&self) {
        if let Err(error) = self.incumbent.lock.unlock() {
            tracing::error!(%error, "unable to unlock; the end of this process does it");
        }
    }
}

fn listener_status((name, fd): &(String, OwnedFd)) -> ListenerStatus {
    let queue = queue::accept_queue(fd.as_fd()).ok().flatten();
    ListenerStatus {
        name: name.clone(),
        address: socket::local_address(fd.as_fd()).unwrap_or_default(),
        queue: queue.map(|queue| (queue.len, queue.limit)),
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
