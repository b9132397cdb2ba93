//! A daemon that knows nothing of handoff, and what speaks the protocol for it.
//!
//! A [`Keeper`] starts the daemon with its sockets and the data directory's lock, finds out when it serves ([`ready`]), asks it to end
//! ([`sequence`]), and knows when all of it is gone. To [`Incumbent::serve`](crate::Incumbent::serve) it is what the daemon itself would be: a
//! [`Drainable`]. Draining is ending it; sealing is to sync what it wrote; going back is to start it again.
//!
//! The lock's descriptor is passed to the daemon on purpose: the lock lives as long as any process that could write. The daemon is *gone* when
//! nothing is left below this process, which adopts whatever outlives its parent, and nobody else has the lock.

mod log;
pub mod orphans;
pub mod ready;
pub mod sequence;
pub mod sockets;
pub mod template;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::drainable::{DrainReport, Drainable, SealReport, StateSnapshot};
use crate::error::{Error, Result};
use crate::fds;
use crate::incumbent::Stopper;
use crate::notify::{self, Private};
use crate::sys::brood::{self, Descendant};
use crate::sys::poll::{self, Waker, Want};
use crate::sys::process::{self, PidFd, Signal};
use crate::sys::signals::Signals;
use crate::sys::spawn::{Image, Program, Spawn};
use crate::sys::{file, lock, memory};
use log::Log;
use ready::{Probes, Ready};
use sequence::{Course, Sequence};
use sockets::{Layout, Numbers, Sockets};

/// Between two looks at what cannot be waited for: holders of the lock that are nobody's children here, and paths that may be removed.
const LOOK: Duration = Duration::from_millis(10);
/// The longest wait between two looks at anything.
const LOOK_MAX: Duration = Duration::from_millis(100);
/// How long processes that are killed may take to die.
const DYING: Duration = Duration::from_secs(10);
/// How often a daemon that is started again may fail to become ready, and how long it is waited before the second time.
const TRIES: u32 = 5;
const BACK_OFF: Duration = Duration::from_millis(200);
/// How much is quoted of what a command says.
const QUOTE_MAX: usize = 400;

/// What to wrap, and how.
#[derive(Debug)]
pub struct Settings {
    /// The daemon's program: opened once, so that starting it again does not depend on a file that was replaced.
    pub program: Program,
    /// Its arguments, in which `{NAME}` stands for a socket.
    pub args: Vec<OsString>,
    /// Variables for it, likewise.
    pub env: Vec<(OsString, OsString)>,
    /// How it is told of its sockets.
    pub layout: Layout,
    /// How it is asked to end.
    pub drain: Drain,
    /// What must hold before it serves.
    pub ready: Vec<Ready>,
    /// How long that may take.
    pub ready_timeout: Duration,
    /// Whether it may run beside its predecessor: then it does not get the lock.
    pub overlap: bool,
    /// How long it has to end when the wrap is asked to stop.
    pub stop_grace: Duration,
    /// The data directory.
    pub data_dir: PathBuf,
}

/// How a daemon is asked to end.
#[derive(Clone, Debug)]
pub enum Drain {
    /// By signals.
    Sequence(Sequence),
    /// By a command of `sh -c`, which finds the main process in HANDOFF_PID.
    Command(String),
}

/// A process that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Which.
    pub pid: u32,
    /// Its command line.
    pub command: String,
}

/// What is to become of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It is being started, or is not started yet.
    Starting,
    /// It serves.
    Serving,
    /// It was asked to end.
    Ending,
    /// It has ended by itself, and whoever serves was told.
    Fallen,
    /// It was asked to end, and then the handoff was undone: when it ends it is started again.
    Condemned,
}

/// What changes.
#[derive(Debug)]
struct State {
    mode: Mode,
    main: Option<Main>,
    /// How the last main process ended; nothing where that cannot be known.
    ended: Option<ExitStatus>,
    notified: bool,
}

/// The process that signals are for.
#[derive(Clone, Debug)]
struct Main {
    pid: u32,
    pidfd: Arc<PidFd>,
}

/// Keeps one daemon.
pub struct Keeper {
    settings: Settings,
    sockets: Sockets,
    numbers: Numbers,
    /// The lock's description, which the daemon inherits and a look at its holders needs.
    lock: OnceLock<OwnedFd>,
    notify: Option<Private>,
    log: Option<Arc<Log>>,
    state: Mutex<State>,
    /// Processes of this program's own, which are not the daemon.
    helpers: Mutex<HashSet<u32>>,
    /// Whether an incumbent's daemon may accept from the same sockets.
    beside: AtomicBool,
    stopper: OnceLock<Stopper>,
    /// Whether this process was asked to end, and whether at once.
    asked: AtomicBool,
    hurried: AtomicBool,
    interrupted: AtomicBool,
    expendable: AtomicBool,
    /// Wakes whoever waits for the daemon's end, and whoever watches it.
    waiter: Waker,
    watcher: Waker,
}

impl Keeper {
    /// Prepares everything, and starts nothing. From now on, this process adopts what outlives its parent below it.
    ///
    /// # Errors
    ///
    /// A name that no socket has, two descriptors at one number, no descriptors left.
    pub fn new(settings: Settings, sockets: Sockets) -> Result<Arc<Self>> {
        brood::adopt_orphans().map_err(|e| Error::io("adopt processes that outlive their parents", e))?;
        let pipe = settings.ready.iter().find_map(|ready| match ready {
            Ready::Fd(number) => Some(*number),
            _ => None,
        });
        let numbers = Numbers::plan(&sockets, &settings.layout, pipe)?;
        let is_notify = |ready: &Ready| matches!(ready, Ready::Notify);
        let notify = settings.ready.iter().any(is_notify).then(Private::new).transpose()?;
        let log = Log::new(&settings.ready).map(Arc::new);
        let waker = || Waker::new().map_err(|e| Error::io("make an eventfd", e));
        Ok(Arc::new(Self {
            numbers,
            notify,
            log,
            state: Mutex::new(State { mode: Mode::Starting, main: None, ended: None, notified: false }),
            helpers: Mutex::new(HashSet::new()),
            lock: OnceLock::new(),
            beside: AtomicBool::new(false),
            stopper: OnceLock::new(),
            asked: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            expendable: AtomicBool::new(false),
            waiter: waker()?,
            watcher: waker()?,
            settings,
            sockets,
        }))
    }

    /// Has the daemon inherit the lock, by a copy of its descriptor.
    pub fn pass_lock(&self, copy: OwnedFd) {
        // A second one is the same lock.
        let _ = self.lock.set(copy);
    }

    /// Says how [`Incumbent::serve`](crate::Incumbent::serve) is told of the daemon's end.
    ///
    /// What happened before is told now.
    pub fn reports_to(&self, stopper: Stopper) {
        let stopper = self.stopper.get_or_init(|| stopper);
        if self.has_fallen() {
            stopper.stop_because(format!("the daemon ended: {}", self.how_it_ended()));
        } else if self.was_asked_to_end() {
            stopper.stop();
        }
    }

    /// Returns whether the daemon has ended by itself while it served.
    pub fn has_fallen(&self) -> bool {
        self.state().mode == Mode::Fallen
    }

    /// Says whether nobody would miss this process: then it ends when it is asked to, with its daemon.
    pub fn is_expendable(&self, expendable: bool) {
        self.expendable.store(expendable, Ordering::Release);
    }

    /// Makes a probe once; whether it holds, or why it does not.
    ///
    /// # Errors
    ///
    /// Why it does not hold.
    pub fn probe(self: &Arc<Self>, what: &Ready, limit: Duration) -> io::Result<()> {
        let over = Arc::new(AtomicBool::new(false));
        let (own, theirs, what) = (Arc::clone(self), Arc::clone(&over), what.clone());
        let (sender, answer) = std::sync::mpsc::channel();
        // A receiver that waits no more is no reason to complain.
        std::thread::spawn(move || drop(sender.send(ready::once(&own, &what, &theirs))));
        let answer = answer.recv_timeout(limit);
        over.store(true, Ordering::Relaxed);
        match answer {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(io::Error::other("it does not hold")),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        }
    }

    /// Says whether an incumbent's daemon may accept from the same sockets.
    pub fn is_beside_another(&self, beside: bool) {
        self.beside.store(beside, Ordering::Relaxed);
    }

    /// Returns the daemon's sockets.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Returns whether this process was asked to end.
    pub fn was_asked_to_end(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Returns how the daemon ended; nothing where it lives or that cannot be known.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.state().ended
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn helpers(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits: a probe has found something.
    pub(self) fn wake(&self) {
        self.waiter.ring();
    }

    pub(self) fn is_alone(&self) -> bool {
        !self.beside.load(Ordering::Relaxed)
    }

    pub(self) fn was_notified(&self) -> bool {
        self.state().notified
    }

    pub(self) fn has_logged(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.has_matched())
    }

    // ---- Starting.

    /// Starts the daemon and waits until it serves. `go_on` is asked again and again whether that is still wanted.
    ///
    /// # Errors
    ///
    /// It cannot be started, ends or does not become ready in time; or what `go_on` says. Then nothing of it is left.
    pub fn start(self: &Arc<Self>, go_on: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let started = self.launch().and_then(|probes| self.wait_ready(&probes, go_on));
        match &started {
            Ok(()) => {
                self.state().mode = Mode::Serving;
                // It may have ended in between, and whoever watches found it starting.
                self.watcher.ring();
            }
            Err(_) => self.kill(),
        }
        started
    }

    fn launch(self: &Arc<Self>) -> Result<Probes> {
        self.sockets.repair();
        if self.is_alone() {
            self.sockets.make_blocking();
        }
        let pipe = self.settings.ready.iter().any(|ready| matches!(ready, Ready::Fd(_)));
        let pipe = pipe.then(io::pipe).transpose().map_err(|e| Error::io("make a pipe", e))?;
        let (reading, writing) =
            pipe.map(|(reading, writing)| (OwnedFd::from(reading), OwnedFd::from(writing))).unzip();
        let outputs = self.log.as_ref().map(Log::attach).transpose()?;
        let mut spawn =
            Spawn::new(self.image(&self.settings.program, writing.as_ref().map(AsFd::as_fd), true));
        spawn.image.args = self.fill(&self.settings.args);
        spawn.image.listen_pid = self.settings.layout.listen_fds && self.sockets.iter().next().is_some();
        spawn.new_group = true;
        spawn.by_path = true;
        spawn.stdin = self.stdin();
        if let Some((stdout, stderr)) = &outputs {
            (spawn.stdout, spawn.stderr) = (Some(stdout.as_fd()), Some(stderr.as_fd()));
        }
        let mut state = self.state();
        *state = State { mode: Mode::Starting, main: None, ended: None, notified: false };
        let pid = spawn.spawn()?.id();
        state.main = Some(Main::open(pid)?);
        drop(state);
        self.watcher.ring();
        tracing::debug!(pid, program = %self.settings.program.path().display(), "the daemon is started");
        Probes::start(self, &self.settings.ready, reading)
    }

    fn stdin(&self) -> Option<BorrowedFd<'_>> {
        let name = self.settings.layout.stdin.as_deref()?;
        self.sockets.get(name).map(AsFd::as_fd)
    }

    /// What is passed to the daemon, and to commands that look at it: those do not get the lock.
    fn image<'a>(
        &'a self,
        program: &'a Program,
        ready: Option<BorrowedFd<'a>>,
        is_daemon: bool,
    ) -> Image<'a> {
        let mut image = Image::new(program);
        let is_internal = |name: &OsStr| {
            let name = name.to_string_lossy();
            INTERNAL.contains(&name.as_ref()) || notify::VARS.contains(&name.as_ref())
        };
        image.env.retain(|(name, _)| !is_internal(name));
        let mut set = |name: OsString, value: OsString| {
            image.env.retain(|(other, _)| *other != name);
            image.env.push((name, value));
        };
        if self.settings.layout.listen_fds && self.sockets.iter().next().is_some() {
            let names: Vec<&str> = self.sockets.iter().map(|socket| socket.name.as_str()).collect();
            set("LISTEN_FDS".into(), names.len().to_string().into());
            set("LISTEN_FDNAMES".into(), names.join(":").into());
        }
        if is_daemon && let Some(notify) = &self.notify {
            let (name, value) = notify.var();
            set(name, value);
        }
        let values = self.numbers.values(&self.sockets);
        for (name, value) in &self.settings.env {
            set(name.clone(), values.fill(value));
        }
        let lock = self.lock.get().filter(|_| is_daemon && !self.settings.overlap);
        image.fds = self.numbers.fds(&self.sockets, ready, lock.map(AsFd::as_fd));
        image
    }

    fn fill(&self, words: &[OsString]) -> Vec<OsString> {
        let values = self.numbers.values(&self.sockets);
        words.iter().map(|word| values.fill(word)).collect()
    }

    fn wait_ready(&self, probes: &Probes, go_on: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let deadline = poll::after(self.settings.ready_timeout);
        let (mut living, mut looked) = (self.look()?, Instant::now());
        while !probes.hold() {
            go_on()?;
            if self.was_asked_to_end() {
                return Err(Error::Refused {
                    reason: "this process was asked to end before the daemon was ready".to_owned(),
                });
            }
            if living.is_empty() || self.has_failed() {
                return Err(Error::Refused {
                    reason: format!("the daemon ended before it was ready: {}", self.how_it_ended()),
                });
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let length = self.settings.ready_timeout.as_secs_f32();
                return Err(Error::TimedOut {
                    waiting_for: format!("the daemon to be ready within {length} s ({})", probes.missing()),
                });
            }
            // All processes are gone through only where one has ended, or could have come: it takes time, and this is the gap.
            if self.wait_for(&living, Instant::now() + LOOK)? || looked.elapsed() > LOOK_MAX {
                (living, looked) = (self.look()?, Instant::now());
            }
        }
        Ok(())
    }

    /// Whether the main process ended with an error.
    fn has_failed(&self) -> bool {
        let state = self.state();
        state.main.is_none() && state.ended.is_some_and(|status| !status.success())
    }

    fn how_it_ended(&self) -> String {
        self.state().ended.map_or_else(|| "nobody can tell how".to_owned(), |status| status.to_string())
    }

    // ---- Who it is.

    /// Takes note of who has ended, and returns who lives. A main process that has ended well and left others has gone into the background.
    fn look(&self) -> Result<Vec<u32>> {
        // Held throughout: a process that is being started is listed only when it is known what it is.
        let mut state = self.state();
        let helpers = self.helpers();
        loop {
            // First: whom it leaves is in the list that comes after its end.
            state.note_end();
            let all =
                brood::descendants(&helpers).map_err(|e| Error::io("look at the daemon's processes", e))?;
            if state.main.as_ref().is_some_and(Main::is_dead) {
                continue;
            }
            if let Some(living) = self.take_note(&mut state, all) {
                return Ok(living);
            }
        }
    }

    /// Returns who of these lives; nothing where the main process was to be one that has ended meanwhile.
    fn take_note(&self, state: &mut State, all: Vec<Descendant>) -> Option<Vec<u32>> {
        let main = state.main.as_ref().map(|main| main.pid);
        all.iter()
            .filter(|one| one.has_ended && one.is_child && Some(one.pid) != main)
            .for_each(|one| brood::reap(one.pid));
        let mut living: Vec<_> = all.into_iter().filter(|one| !one.has_ended).collect();
        living.sort_by_key(|one| (one.start_ticks, one.pid));
        if state.main.is_none()
            && matches!(state.mode, Mode::Starting | Mode::Serving)
            && state.ended.is_none_or(|status| status.success())
            && let Some(eldest) = living.first()
        {
            state.main = Some(Main::open(eldest.pid).ok()?);
            tracing::info!(pid = eldest.pid, "the daemon has gone into the background");
            self.watcher.ring();
        }
        Some(living.into_iter().map(|one| one.pid).collect())
    }

    pub(self) fn pids(&self) -> io::Result<Vec<u32>> {
        // Held so that nobody is reaped meanwhile.
        let _state = self.state();
        let living = brood::descendants(&self.helpers())?;
        Ok(living.into_iter().filter(|one| !one.has_ended).map(|one| one.pid).collect())
    }

    /// Waits until one of these processes has ended, or something was asked for, or the moment has come.
    /// Returns whether it was not only the moment.
    fn wait_for(&self, pids: &[u32], until: Instant) -> Result<bool> {
        let pidfds: Vec<PidFd> = pids.iter().filter_map(|pid| PidFd::open(*pid).ok()).collect();
        let waker = [(self.waiter.as_fd(), Want::Read)].into_iter();
        let fds: Vec<_> = waker.chain(pidfds.iter().map(|pidfd| (pidfd.as_fd(), Want::Read))).collect();
        let ready =
            poll::wait(&fds, Some(until)).map_err(|e| Error::io("wait for the daemon's processes", e))?;
        self.waiter.clear();
        Ok(ready.contains(&true) || pidfds.len() < pids.len())
    }

    /// Returns every process that is left, and every other one that has the lock.
    fn left(&self, living: &[u32]) -> Result<Vec<Left>> {
        let mut left: Vec<Left> = living
            .iter()
            .map(|pid| Left { pid: *pid, command: process::command_line(*pid).unwrap_or_default() })
            .collect();
        if let Some(lock) = self.lock.get().filter(|_| !self.settings.overlap) {
            let identity = file::identity(lock).map_err(|e| Error::io("look at the lock", e))?;
            let others =
                lock::holders(identity).into_iter().filter(|holder| holder.pid != std::process::id());
            for holder in others {
                if !living.contains(&holder.pid) {
                    left.push(Left { pid: holder.pid, command: holder.command });
                }
            }
        }
        Ok(left)
    }

    // ---- Ending.

    /// Asks the daemon to end, and waits until all of it is gone. With force, what is left at the end is killed.
    ///
    /// # Errors
    ///
    /// [`Error::Hook`] names what is left; what the command of [`Drain::Command`] says.
    fn end(&self, deadline: Instant, force: bool) -> Result<()> {
        let default = Sequence(vec![]);
        let (sequence, command) = match &self.settings.drain {
            Drain::Sequence(sequence) => (sequence, None),
            Drain::Command(command) => (&default, Some(command)),
        };
        let mut course = Course::new(sequence, Instant::now(), deadline, force);
        let mut helper = None;
        if let Some(command) = command.filter(|_| self.state().main.is_some()) {
            helper = Some(self.help(command)?);
        }
        loop {
            if self.hurried.load(Ordering::Relaxed) {
                course.hurry(Instant::now());
            }
            while let Some(signal) = course.due(Instant::now()) {
                self.signal(signal)?;
            }
            let living = self.look()?;
            self.sockets.repair();
            let left = if living.is_empty() { self.left(&[])? } else { vec![] };
            if living.is_empty() && left.is_empty() {
                return Ok(());
            }
            if let Some(failed) = helper.as_mut().and_then(Helper::failure) {
                return Err(failed_drain(failed));
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(failed_drain("the handoff was undone meanwhile".to_owned()));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(failed_drain(format!(
                    "left at the end of the grace: {}",
                    list(&self.left(&living)?)
                )));
            }
            let look = if living.is_empty() || self.sockets.have_paths() { LOOK } else { LOOK_MAX };
            let until = [Some(now + look), Some(deadline), course.next()].into_iter().flatten().min();
            self.wait_for(&living, until.unwrap_or(deadline))?;
        }
    }

    /// A signal is for the main process; where that has ended, for whatever is left.
    fn signal(&self, signal: Signal) -> Result<()> {
        if signal == Signal::SIGKILL {
            self.kill();
            return Ok(());
        }
        let main = self.state().main.clone();
        let about = |e| Error::io(format!("send {signal} to the daemon"), e);
        match main {
            Some(main) => main.pidfd.signal(signal).map_err(about),
            None => {
                let living = self.pids().map_err(about)?;
                let pidfds = living.into_iter().filter_map(|pid| PidFd::open(pid).ok());
                // Those that may not be signalled are named when they are left.
                pidfds.for_each(|pidfd| drop(pidfd.signal(signal)));
                Ok(())
            }
        }
    }

    /// Kills all of the daemon, and waits until it has ended.
    pub fn kill(&self) {
        let helpers = self.helpers().clone();
        match brood::kill_all(&helpers, Instant::now() + DYING) {
            Ok(left) if left.is_empty() => {}
            Ok(left) => tracing::error!(?left, "processes of the daemon do not die"),
            Err(error) => tracing::error!(%error, "unable to kill the daemon"),
        }
        // Whatever it says, it was looked at as well as can be.
        let _ = self.look();
    }

    /// Gives up before it serves: nothing of the daemon is left, and the sockets are as they came.
    pub fn give_up(&self) {
        self.kill();
        self.sockets.repair();
        self.restore_flags();
    }

    /// Puts the listeners' flags back that they came with, unless another daemon accepts from them: one that expects never to wait in
    /// accept would wait there for ever.
    fn restore_flags(&self) {
        if !self.settings.overlap {
            self.sockets.restore_flags();
        }
    }

    fn is_ending(&self) {
        let mut state = self.state();
        if state.mode != Mode::Fallen {
            state.mode = Mode::Ending;
        }
    }

    /// Ends the daemon in order, by force at the end of the grace for stopping.
    pub fn stop(&self) {
        self.interrupted.store(false, Ordering::Relaxed);
        self.is_ending();
        let deadline = poll::after(self.settings.stop_grace).unwrap_or_else(|| Instant::now() + DYING);
        if let Err(error) = self.end(deadline, true) {
            tracing::warn!(%error, "the daemon did not end in order");
            self.kill();
        }
        self.sockets.forget_paths();
    }

    /// Starts the daemon again, with pauses where it fails.
    fn start_again(self: &Arc<Self>) -> Result<()> {
        let mut pause = BACK_OFF;
        for _ in 1..TRIES {
            match self.start(&mut || Ok(())) {
                Ok(()) => return Ok(()),
                Err(error) if self.was_asked_to_end() => return Err(error),
                Err(error) => tracing::error!(%error, "unable to start the daemon again; trying once more"),
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        self.start(&mut || Ok(()))
    }

    // ---- Watching.

    /// Passes signals on, listens to the daemon and tells of its end, for as long as this process lives; on a thread of its own.
    pub fn watch(self: &Arc<Self>, signals: Signals) -> Result<()> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name("handoff-watch".to_owned());
        let started = thread.spawn(move || {
            if let Err(error) = own.keep_watching(signals) {
                tracing::error!(%error, "unable to watch the daemon");
            }
        });
        started.map(drop).map_err(|e| Error::io("start the thread that watches the daemon", e))
    }

    fn keep_watching(self: &Arc<Self>, mut signals: Signals) -> Result<()> {
        loop {
            self.await_news(&signals)?;
            self.watcher.clear();
            while let Some(signal) = signals.try_next().map_err(|e| Error::io("read signals", e))? {
                self.handle(signal);
            }
            self.hear()?;
            let living = self.look()?;
            self.notice(&living);
        }
    }

    fn await_news(&self, signals: &Signals) -> Result<()> {
        let main = self.state().main.clone();
        let mut fds = vec![(signals.as_fd(), Want::Read), (self.watcher.as_fd(), Want::Read)];
        fds.extend(self.notify.iter().map(|notify| (notify.as_fd(), Want::Read)));
        fds.extend(main.iter().map(|main| (main.pidfd.as_fd(), Want::Read)));
        poll::wait(&fds, None).map(drop).map_err(|e| Error::io("watch the daemon", e))
    }

    fn handle(&self, signal: Signal) {
        match signal {
            Signal::SIGTERM | Signal::SIGINT => {
                let again = self.asked.swap(true, Ordering::AcqRel);
                tracing::info!("asked to stop: {signal}{}", if again { " again: at once" } else { "" });
                self.hurried.fetch_or(again, Ordering::AcqRel);
                if self.expendable.load(Ordering::Acquire) {
                    self.give_up();
                    brood::end_by(signal);
                }
                self.waiter.ring();
                self.stopper.get().into_iter().for_each(Stopper::stop);
            }
            Signal::SIGCHLD => {}
            signal => {
                if let Some(main) = self.state().main.clone()
                    && let Err(error) = main.pidfd.signal(signal)
                {
                    tracing::warn!(%error, "unable to pass {signal} on to the daemon");
                }
            }
        }
    }

    /// Listens to what the daemon says of itself.
    fn hear(&self) -> Result<()> {
        let Some(socket) = &self.notify else { return Ok(()) };
        while let Some(notice) = socket.receive()? {
            let pids = self.pids().map_err(|e| Error::io("look at the daemon's processes", e))?;
            if !pids.contains(&notice.pid) {
                tracing::warn!(pid = notice.pid, "a notification that is not the daemon's is ignored");
                continue;
            }
            let mut state = self.state();
            if let Some(pid) = notice.main_pid.filter(|pid| pids.contains(pid)) {
                match Main::open(pid) {
                    Ok(main) => state.main = Some(main),
                    Err(error) => tracing::warn!(pid, %error, "unable to follow the main process"),
                }
            }
            state.notified |= notice.ready;
            if let Some(status) = notice.status {
                notify::tell(&format!("STATUS={status}"));
            }
        }
        Ok(())
    }

    /// What the daemon's end means depends on what it was about to do.
    fn notice(self: &Arc<Self>, living: &[u32]) {
        let mut state = self.state();
        if state.main.is_some() {
            return;
        }
        match state.mode {
            // Whoever asked for it waits for it.
            Mode::Starting | Mode::Ending | Mode::Fallen => {}
            Mode::Serving => {
                state.mode = Mode::Fallen;
                drop(state);
                let reason = format!("the daemon ended: {}", self.how_it_ended());
                tracing::error!("{reason}");
                if !living.is_empty() {
                    tracing::warn!(
                        "the daemon left processes behind, which are killed: {}",
                        list(&named(living))
                    );
                    let ended = self.ended();
                    self.kill();
                    self.state().ended = ended;
                }
                if let Some(stopper) = self.stopper.get() {
                    stopper.stop_because(reason);
                }
            }
            Mode::Condemned if living.is_empty() => {
                state.mode = Mode::Starting;
                drop(state);
                let own = Arc::clone(self);
                // This thread has signals to pass on meanwhile.
                std::thread::spawn(move || own.resurrect());
            }
            Mode::Condemned => {}
        }
    }

    fn resurrect(self: &Arc<Self>) {
        tracing::info!(
            "the daemon has ended, as a handoff had asked it to that was undone: starting it again"
        );
        if let Err(error) = self.start_again() {
            tracing::error!(%error, "unable to start the daemon again");
            self.stopper.get().into_iter().for_each(|stopper| stopper.stop_because(error.to_string()));
        }
    }

    // ---- Commands.

    /// Runs a check with the daemon's sockets and variables, before there is a daemon.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] quotes what it said.
    pub fn check(&self, command: &str) -> Result<()> {
        let filled = self.numbers.values(&self.sockets).fill(OsStr::new(command));
        let output =
            memory::create("handoff-check", b"").map_err(|e| Error::io("make a file in memory", e))?;
        let status = self.help_with(&filled, Some(output.as_fd()))?.wait()?;
        if status.success() {
            return Ok(());
        }
        let said = quote(&output);
        Err(Error::Refused { reason: format!("the check failed: {status}: {said}") })
    }

    /// Runs a command about the daemon, and returns whether it succeeds.
    pub(self) fn succeeds(&self, command: &str, over: &AtomicBool) -> io::Result<bool> {
        let mut helper = self.help(command).map_err(io::Error::other)?;
        while !over.load(Ordering::Relaxed) {
            if helper.pidfd.wait_dead(Instant::now() + LOOK)? {
                let status = helper.wait().map_err(io::Error::other)?;
                return if status.success() { Ok(true) } else { Err(io::Error::other(status.to_string())) };
            }
        }
        Ok(false)
    }

    fn help(&self, command: &str) -> Result<Helper<'_>> {
        self.help_with(OsStr::new(command), None)
    }

    fn help_with(&self, command: &OsStr, output: Option<BorrowedFd<'_>>) -> Result<Helper<'_>> {
        let shell = Program::open(Path::new("sh"))?;
        let mut image = self.image(&shell, None, false);
        image.args = vec!["-c".into(), command.into()];
        image.listen_pid = self.settings.layout.listen_fds && self.sockets.iter().next().is_some();
        if let Some(main) = &self.state().main {
            image.env.push(("HANDOFF_PID".into(), main.pid.to_string().into()));
        }
        let mut spawn = Spawn::new(image);
        spawn.new_group = true;
        (spawn.stdout, spawn.stderr) = (output, output);
        // Held until it is known: otherwise it would be taken for the daemon's.
        let mut helpers = self.helpers();
        let pid = spawn.spawn()?.id();
        helpers.insert(pid);
        drop(helpers);
        let pidfd = PidFd::open(pid).map_err(|e| Error::io("open a pidfd of a command", e))?;
        Ok(Helper { keeper: self, pid, pidfd, status: None })
    }
}

/// Variables that are this program's own, or were meant for it.
const INTERNAL: [&str; 7] = [
    fds::HANDOFF_FDS,
    "HANDOFF_LAYOUT",
    crate::chain::CONTROL_VAR,
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
];

impl State {
    /// Takes note of the main process's end.
    fn note_end(&mut self) {
        let Some(main) = self.main.take_if(|main| main.is_dead()) else { return };
        // Of one that is not a child nobody here learns how it ended.
        self.ended = main.pidfd.try_reap().ok().flatten();
        tracing::debug!(pid = main.pid, ended = ?self.ended, "the main process has ended");
    }
}

impl Main {
    fn is_dead(&self) -> bool {
        self.pidfd.is_dead().unwrap_or(false)
    }

    fn open(pid: u32) -> Result<Self> {
        let pidfd = PidFd::open(pid).map_err(|e| Error::io("open a pidfd of the daemon", e))?;
        Ok(Self { pid, pidfd: Arc::new(pidfd) })
    }
}

/// A command that runs beside the daemon; it does not outlive this value.
struct Helper<'a> {
    keeper: &'a Keeper,
    pid: u32,
    pidfd: PidFd,
    status: Option<ExitStatus>,
}

impl Helper<'_> {
    fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            self.pidfd
                .wait_dead(Instant::now() + LOOK_MAX)
                .map_err(|e| Error::io("wait for a command", e))?;
        }
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.pidfd.try_reap().map_err(|e| Error::io("wait for a command", e))?;
        }
        Ok(self.status)
    }

    /// Says how it failed, where it did.
    fn failure(&mut self) -> Option<String> {
        match self.poll() {
            Ok(status) => status
                .filter(|status| !status.success())
                .map(|status| format!("the command failed: {status}")),
            Err(error) => Some(error.to_string()),
        }
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It is in a group of its own, and not reaped: the pid is nobody else's.
            let _ = self.pidfd.signal(Signal::SIGKILL);
            let _ = self.pidfd.wait_dead(Instant::now() + DYING);
            let _ = self.pidfd.try_reap();
        }
        self.keeper.helpers().remove(&self.pid);
    }
}

fn failed_drain(detail: String) -> Error {
    Error::Hook { hook: "drain", detail }
}

fn named(pids: &[u32]) -> Vec<Left> {
    let name = |pid: &u32| Left { pid: *pid, command: process::command_line(*pid).unwrap_or_default() };
    pids.iter().map(name).collect()
}

fn list(left: &[Left]) -> String {
    left.iter().map(|left| format!("pid {} ({})", left.pid, left.command)).collect::<Vec<_>>().join(", ")
}

/// The end of what was said is where errors are.
fn quote(output: &OwnedFd) -> String {
    // Without it, the exit status is what is said.
    let said = memory::read(output.as_fd()).unwrap_or_default();
    let end = &said[said.len().saturating_sub(QUOTE_MAX)..];
    let text = String::from_utf8_lossy(end).trim().replace('\n', "; ");
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}

impl Drainable for Arc<Keeper> {
    fn drain(&self, deadline: Instant) -> Result<DrainReport> {
        self.interrupted.store(false, Ordering::Relaxed);
        self.is_ending();
        // Stepping down: the incumbent that stands by may not find anybody who writes.
        let force = self.stopper.get().is_some_and(Stopper::is_on_trial);
        match self.end(deadline, force) {
            Err(error) if force => {
                tracing::warn!(%error, "the daemon did not end in order");
                self.kill();
            }
            ended => ended?,
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> Result<SealReport> {
        self.restore_flags();
        let dir = &self.settings.data_dir;
        let attempt = || format!("sync the file system of {}", dir.display());
        file::sync_file_system(dir).map_err(|e| Error::io(attempt(), e))?;
        // What the daemon wrote it does not say.
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self) -> Result<()> {
        self.interrupted.store(false, Ordering::Relaxed);
        self.is_beside_another(false);
        let living = self.look()?;
        let mut state = self.state();
        if state.mode == Mode::Fallen || self.was_asked_to_end() {
            // The process is about to end.
            return Ok(());
        }
        if let Some(main) = &state.main {
            tracing::warn!(
                pid = main.pid,
                "the daemon was asked to end and has not: it goes on, and is started again when it ends after all"
            );
            state.mode = Mode::Condemned;
            self.watcher.ring();
            return Ok(());
        }
        drop(state);
        if !living.is_empty() {
            tracing::warn!("the daemon left processes behind, which are killed: {}", list(&named(&living)));
            self.kill();
        }
        self.start_again()
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
        self.waiter.ring();
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("settings", &self.settings)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
