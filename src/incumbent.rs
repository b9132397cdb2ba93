//! The daemon that serves.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::data_dir::DataDirLock;
use crate::drainable::Drainable;
use crate::error::{Error, Result};
use crate::fds::{self, AsListener};
use crate::proto::Reason;
use crate::proto::incumbent::Machine;
use crate::proto::record::{Owner, OwnerRecord, Program, Standing, boot_program};
use crate::serve;
use crate::session::Session;
use crate::sys::poll::Waker;
use crate::sys::process::ProcessId;
use crate::sys::unix::Bound;
use crate::sys::{clock, process, spawn};

/// How long a daemon that may already answer at the control path has to do so.
const ANSWER: Duration = Duration::from_secs(1);

/// The waits of an incumbent that are not set by the driver.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From asking a successor on trial to step down to killing it.
    pub step_down: Duration,
    /// Between two attempts to take back a lock that something still holds.
    pub retry: Duration,
    /// How long one attempt to kill a successor's tree waits for it to be gone.
    pub fence: Duration,
    /// How many control connections are kept; past it, the one that has been silent longest is closed.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            step_down: Duration::from_secs(10),
            retry: Duration::from_millis(20),
            fence: Duration::from_secs(1),
            connections: 64,
        }
    }
}

/// A daemon that holds its data directory's lock and answers on its control socket.
#[derive(Debug)]
pub struct Incumbent {
    pub(crate) control_path: PathBuf,
    pub(crate) bound: Bound,
    pub(crate) lock: Arc<DataDirLock>,
    pub(crate) machine: Machine,
    pub(crate) identity: Identity,
    pub(crate) listeners: Vec<(String, OwnedFd)>,
    pub(crate) limits: Limits,
    /// Where it has just taken over, or is on trial.
    pub(crate) session: Option<Session>,
    pub(crate) stop: Arc<Stop>,
    /// By which the thread that runs the hooks wakes the one that answers.
    pub(crate) bell: Arc<Waker>,
}

/// How [`Incumbent::serve`] ended. The process may exit after any of them.
#[derive(Debug)]
pub enum Served {
    /// A successor serves for good.
    Committed {
        /// The handoff's id.
        handoff: String,
    },
    /// A driver asked for a planned stop: the data is sealed, the lock is free, and no successor comes.
    Retired {
        /// The handoff's id.
        handoff: String,
    },
    /// This process has let go of the data: it served on trial and the one before it serves again, or another took over.
    SteppedDown {
        /// Why.
        reason: Reason,
    },
    /// A successor made the data its own and died: its program must be started, here or by a supervisor.
    Superseded(Box<Superseded>),
    /// [`Stopper::stop`] was called. The lock is held until the process ends, as the program may still have to write.
    Stopped,
}

impl Incumbent {
    /// Binds the control socket of a daemon that starts without a predecessor, and makes its owner record durable. The
    /// lock must be held by then, and the program may write from then on.
    ///
    /// # Errors
    ///
    /// The path is too long or its directory may be written by others, or the record cannot be written.
    pub fn bind_cold_start(control_path: impl AsRef<Path>, lock: DataDirLock) -> Result<Self> {
        let control_path = control_path.as_ref();
        refuse_taken(control_path, &lock)?;
        let mut bound = Bound::beside(control_path)?;
        let before = lock.record()?;
        let generation = before.as_ref().map_or(0, |record| record.generation) + 1;
        let own = Identity::of_this_process("")?;
        warn_of_trial(before.as_ref(), &own.owner);
        let identity = own.following(before);
        lock.write_record(&identity.record(generation, Standing::Final), true)?;
        lock.settle()?;
        bound.put_in_place(control_path)?;
        Ok(Self::new(control_path, bound, lock, identity, generation, Wakers::new()?))
    }

    /// Makes a successor that was granted the incumbent. Nothing here can fail: there is no way back.
    pub(crate) fn promoted(
        session: Session,
        control_path: &Path,
        bound: Bound,
        lock: DataDirLock,
        identity: Identity,
        generation: u64,
        wakers: Wakers,
    ) -> Self {
        let on_trial = session.is_for_trial();
        wakers.stop.on_trial.store(on_trial, Ordering::Release);
        Self { session: Some(session), ..Self::new(control_path, bound, lock, identity, generation, wakers) }
    }

    fn new(
        control_path: &Path,
        bound: Bound,
        lock: DataDirLock,
        identity: Identity,
        generation: u64,
        wakers: Wakers,
    ) -> Self {
        Self {
            control_path: control_path.to_owned(),
            bound,
            lock: Arc::new(lock),
            machine: Machine::new(generation),
            identity,
            listeners: vec![],
            limits: Limits::default(),
            session: None,
            stop: wakers.stop,
            bell: wakers.bell,
        }
    }

    /// Sets what this program was built from, in any form, and records it durably; by default it is the build id that the
    /// linker left in the program.
    ///
    /// # Errors
    ///
    /// The record cannot be written.
    pub fn with_build_id(mut self, build_id: impl Into<Vec<u8>>) -> Result<Self> {
        self.identity.owner.build_id = build_id_text(&build_id.into());
        let record = self.identity.record(self.machine.generation, Standing::Final);
        // A successor said it in its handshake, and may be on trial.
        if self.session.is_none() {
            self.lock.write_record(&record, true)?;
        }
        Ok(self)
    }

    /// Registers a listening socket, so that a driver that holds none can fetch it for the successor. A copy is kept.
    ///
    /// A successor's sockets, those that it was passed, are registered already.
    ///
    /// # Errors
    ///
    /// The name is not usable, or the descriptor cannot be copied.
    pub fn with_listener(mut self, name: &str, listener: impl AsListener) -> Result<Self> {
        fds::check_name(name)?;
        let copy = listener.copy().map_err(|e| Error::io(format!("copy listener {name}"), e))?;
        self.listeners.retain(|(other, _)| other != name);
        self.listeners.push((name.to_owned(), copy));
        Ok(self)
    }

    /// Sets the waits that are not set by the driver.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Returns what makes [`serve`](Self::serve) return, for a signal handler's thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// Returns the generation of the owner record that this process wrote.
    pub fn generation(&self) -> u64 {
        self.machine.generation
    }

    /// Answers on the control socket and takes part in handoffs, until one is committed. Rollbacks it handles itself.
    ///
    /// It occupies the calling thread, and runs the hooks on one other thread, so that `status` is answered while a drain
    /// takes its time.
    ///
    /// # Errors
    ///
    /// After a handoff was undone there was no way back to serving (a hook or the record failed), or the control socket
    /// cannot be served. The process should exit; a lock that it holds is held until then.
    pub fn serve<D: Drainable>(self, drainable: D) -> Result<Served> {
        serve::run(self, &drainable)
    }
}

/// Refuses a control path where the daemon of another data directory answers: it could not be reached any more.
///
/// One of this data directory does not serve, as its lock is held here.
fn refuse_taken(path: &Path, lock: &DataDirLock) -> Result<()> {
    let deadline = Instant::now() + ANSWER;
    let Ok(status) =
        Control::connect(path, "a cold start", deadline).and_then(|mut control| control.status(deadline))
    else {
        return Ok(());
    };
    let same = |dir: &Path| std::fs::canonicalize(dir).ok();
    if same(Path::new(&status.data_dir)) == same(lock.dir()) {
        return Ok(());
    }
    let reason = format!(
        "{} leads to pid {}, which serves {}; choose another control path",
        path.display(),
        status.process.pid,
        status.data_dir
    );
    Err(Error::Refused { reason })
}

/// Says that the last owner was on trial, where another program than the one before it starts now. Which one starts is for
/// whoever starts it to decide; the data is in a form that both read.
fn warn_of_trial(before: Option<&OwnerRecord>, own: &Owner) {
    let Some(before) = before.filter(|record| record.standing == Standing::Trial) else { return };
    let expected = boot_program(before).binary;
    if expected != own.binary {
        tracing::warn!(
            expected = %expected.display(),
            started = %own.binary.display(),
            "the last owner was on trial and its trial was not ended: the program before it was to start"
        );
    }
}

/// Makes an incumbent's [`serve`](Incumbent::serve) return.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Stop>);

impl Stopper {
    /// Asks `serve` to return: at once, or when the handoff in progress is settled. A successor on trial asks to be undone.
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::Release);
        self.0.waker.ring();
    }

    /// As [`stop`](Self::stop), and gives the reason, in the words of which a trial is undone.
    pub fn stop_because(&self, reason: impl Into<String>) {
        self.give_reason(reason.into());
        self.stop();
    }

    /// Asks the incumbent that stands by to undo this successor's trial; does nothing where it is not on trial, or not any more.
    pub fn undo_trial(&self, reason: impl Into<String>) {
        self.give_reason(reason.into());
        self.0.waker.ring();
    }

    /// Returns whether this process serves on trial.
    pub fn is_on_trial(&self) -> bool {
        self.0.on_trial.load(Ordering::Acquire)
    }

    /// The first one counts: what follows from it is no reason of its own.
    fn give_reason(&self, reason: String) {
        let mut known = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_or_insert(reason);
    }
}

#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) asked: AtomicBool,
    /// Why a trial is to be undone, once that was asked for.
    pub(crate) reason: Mutex<Option<String>>,
    pub(crate) on_trial: AtomicBool,
    pub(crate) waker: Waker,
}

/// What [`Incumbent::serve`] needs descriptors for, opened while their lack can still undo a handoff.
#[derive(Debug)]
pub(crate) struct Wakers {
    stop: Arc<Stop>,
    bell: Arc<Waker>,
}

impl Wakers {
    pub(crate) fn new() -> Result<Self> {
        let waker = || Waker::new().map_err(|e| Error::io("make an eventfd", e));
        Ok(Self {
            stop: Arc::new(Stop {
                asked: AtomicBool::new(false),
                reason: Mutex::new(None),
                on_trial: AtomicBool::new(false),
                waker: waker()?,
            }),
            bell: Arc::new(waker()?),
        })
    }
}

/// Who this process is in an owner record.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) owner: Owner,
    previous: Option<Program>,
}

impl Identity {
    /// Returns the identity of this process. It reads half a dozen files in /proc: not within the gap.
    pub(crate) fn of_this_process(build_id: &str) -> Result<Self> {
        let me = ProcessId::current().map_err(|e| Error::io("read this process's start time", e))?;
        let binary = process::executable(me.pid).map_err(|e| Error::io("find this process's program", e))?;
        let build_id = if build_id.is_empty() { build_id_text(&[]) } else { build_id.to_owned() };
        let owner = Owner {
            pid: me.pid,
            start_ticks: me.start_ticks,
            boot_id: me.boot_id,
            binary,
            args: std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect(),
            build_id,
            directory: process::starting_directory(),
        };
        Ok(Self { owner, previous: None })
    }

    /// Returns the same for a process that follows this record's owner.
    pub(crate) fn following(self, before: Option<OwnerRecord>) -> Self {
        Self { previous: before.map(|record| record.owner.program()), ..self }
    }

    pub(crate) fn record(&self, generation: u64, standing: Standing) -> OwnerRecord {
        OwnerRecord {
            generation,
            standing,
            owner: self.owner.clone(),
            previous: self.previous.clone(),
            written_ms: clock::wall_ms(),
        }
    }

    pub(crate) fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.owner.pid,
            start_ticks: self.owner.start_ticks,
            boot_id: self.owner.boot_id.clone(),
        }
    }
}

/// Returns a build id in hexadecimal; for an empty one, the linker's, or nothing.
pub(crate) fn build_id_text(build_id: &[u8]) -> String {
    if build_id.is_empty() {
        let own = spawn::Program::open(Path::new("/proc/self/exe")).ok();
        return own.and_then(|program| program.build_id().ok()).unwrap_or_default();
    }
    build_id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is left when a successor made the data its own and then died.
#[derive(Debug)]
pub struct Superseded {
    pub(crate) record: OwnerRecord,
    pub(crate) lock: Arc<DataDirLock>,
    pub(crate) listeners: Vec<(String, OwnedFd)>,
}

impl Superseded {
    /// Returns the successor's record.
    pub fn record(&self) -> &OwnerRecord {
        &self.record
    }

    /// Becomes the successor's program, in the directory that it was started in, with its arguments, the listening sockets and
    /// the lock: a cold start that inherits them.
    ///
    /// # Errors
    ///
    /// Returns only if the program cannot be executed.
    pub fn exec(self) -> Error {
        match self.try_exec() {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    fn try_exec(&self) -> Result<std::convert::Infallible> {
        let program = spawn::Program::open(&self.record.owner.binary)?;
        let lock = self.lock.try_clone_fd()?;
        let plan = fds::Plan::new(&self.listeners).with(fds::Role::Lock, lock);
        let mut image = spawn::Image::new(&program);
        image.args = self.record.owner.args.iter().map(Into::into).collect();
        plan.install(&mut image)?;
        let before = std::env::current_dir();
        self.enter_directory();
        let failure = image.exec();
        if let Ok(before) = before {
            // It was there a moment ago, and what follows is the caller's to decide.
            let _ = std::env::set_current_dir(before);
        }
        Err(failure)
    }

    /// A directory that is gone keeps nobody from serving.
    fn enter_directory(&self) {
        let Some(directory) = &self.record.owner.directory else { return };
        if let Err(error) = std::env::set_current_dir(directory) {
            tracing::warn!(directory = %directory.display(), %error, "unable to start where the successor was started");
        }
    }
}
