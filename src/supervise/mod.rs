//! The supervisor: the one process that a service manager watches. It holds the sockets, starts the daemon, starts it again, swaps its program
//! when it is asked to, and stays.

pub mod client;
mod engine;
mod manager;
mod metrics;
mod reexec;
mod start;
mod swap;
mod trigger;
mod who;
pub mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::fds::{self, Role};
use crate::listen::Listen;
use crate::notify::Manager;
use crate::proto::supervisor::{Job, Machine};
use crate::sys::inherit;
use crate::sys::process::PidFd;
use crate::sys::spawn::Program;
use engine::{Engine, Task};
use manager::Managed;
use trigger::Clients;

/// How a supervisor says what happens: a level and a line.
pub type Say = fn(&str, &str);

/// What a supervisor knows of the program that it is.
pub struct Own {
    /// Its version, as a new one says it.
    pub version: String,
    /// Where its program is found when it becomes it anew.
    pub program: PathBuf,
    /// Reads the configuration anew.
    pub reload: Box<dyn Fn() -> Result<Settings>>,
    /// How it says what happens.
    pub say: Say,
    /// The program that it is about to become.
    rehearsed: Option<Program>,
}

impl Own {
    /// Returns what a supervisor knows of the program that it is: its version, its path, how it reads its configuration and how it says what happens.
    pub fn new(
        version: impl Into<String>,
        program: impl Into<PathBuf>,
        reload: impl Fn() -> Result<Settings> + 'static,
        say: Say,
    ) -> Self {
        let (version, program) = (version.into(), program.into());
        Self { version, program, reload: Box::new(reload), say, rehearsed: None }
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own")
            .field("version", &self.version)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

/// How a supervisor ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to, and so has the daemon.
    Stopped,
    /// As the daemon did, which died by itself; how, where that is known.
    Followed(Option<ExitStatus>),
    /// Somebody keeps the data directory's lock and does not serve: who, as a sentence.
    Blocked(String),
}

/// Supervises until it is asked to stop, or there is nothing more to be done.
///
/// It occupies the calling thread, and the process: it handles signals, and reaps every child that no code of this crate waits for. A process that was started
/// by a supervisor to be asked whether it could take its place answers that here, and is [`Stopped`](Ended::Stopped).
///
/// # Errors
///
/// Another supervisor listens at the trigger socket; the daemon cannot be started, and is not to be started again; a system call failed.
pub fn run(settings: Settings, own: Own) -> Result<Ended> {
    match reexec::find()? {
        reexec::Found::Rehearsal(understood) => {
            understood?;
            reexec::answer(&own.version)?;
            Ok(Ended::Stopped)
        }
        // Before there are threads, which read the environment.
        reexec::Found::Nothing => begin(settings, own, Manager::take()),
        reexec::Found::State(state) => go_on(settings, own, Manager::take(), *state),
    }
}

fn begin(settings: Settings, own: Own, manager: Manager) -> Result<Ended> {
    let listeners = fds::take()?.into_iter().filter_map(|(role, fd)| match role {
        Role::Listener(name) => Some((name, fd)),
        _ => None,
    });
    let listeners = manager::inherit(&settings, &manager, listeners.collect(), own.say);
    if let Some(number) = settings.ready_fd
        && !inherit::is_passed_on(number)
    {
        let detail = format!("descriptor {number}, on which to say that it is ready, is closed");
        return Err(Error::Invalid { detail });
    }
    let clients = Clients::new(settings.trigger.clone(), trigger::bind(&settings)?)?;
    let (machine, first) = Machine::start(false, VecDeque::new());
    let managed = Managed::new(manager, None);
    Engine::new(settings, own, listeners, clients, managed, machine)?.run(first)
}

/// After the exec: everything is there but what is in the memory.
fn go_on(mut settings: Settings, own: Own, manager: Manager, state: reexec::State) -> Result<Ended> {
    // It was said by the program of before.
    settings.ready_fd = None;
    let adopt =
        |number| inherit::adopt(number).map_err(|e| Error::io(format!("go on with descriptor {number}"), e));
    let listeners = fds::adopt_listeners(&state.listeners)?;
    let mut clients = Clients::new(settings.trigger.clone(), adopt(state.listening)?)?;
    let mut queue = VecDeque::new();
    for waiting in state.waiting {
        let client = waiting.client.map(adopt).transpose()?.and_then(|socket| clients.adopt(socket));
        let program = match waiting.program {
            Some((path, number)) => Some(Program::adopt(adopt(number)?, path)),
            None => None,
        };
        let job = if waiting.is_swap { Job::Swap } else { Job::Reexec };
        queue.push_back(Task {
            job,
            client,
            program,
            args: waiting.args,
            bake_ms: waiting.bake_ms,
            queue: true,
        });
    }
    if let Some(client) = state.asker.map(adopt).transpose()?.and_then(|socket| clients.adopt(socket)) {
        clients.end(client, &wire::Answer::Reexecuted { version: own.version.clone() });
    }
    (own.say)("info", &format!("goes on as version {}", own.version));
    let (machine, first) = Machine::start(true, queue.iter().map(|task| task.job).collect());
    let managed = Managed::new(manager, state.private.map(adopt).transpose()?);
    let mut engine = Engine::new(settings, own, listeners, clients, managed, machine)?;
    engine.queue = queue;
    engine.restarts_total = state.restarts;
    engine.swaps = state.swaps;
    let now = Instant::now();
    engine.restarts =
        state.restarted_ms.iter().filter_map(|ms| now.checked_sub(Duration::from_millis(*ms))).collect();
    for pid in state.leaders {
        if let Ok(pidfd) = PidFd::open(pid) {
            engine.lead(pid, pidfd);
        }
    }
    engine.run(first)
}

/// Another one may have come to the path: that one's socket stays.
fn remove_if_ours(path: &Path, inode: (u64, u64)) {
    use std::os::unix::fs::MetadataExt;
    if std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == inode) {
        // What cannot be removed is found dead by the next one.
        let _ = std::fs::remove_file(path);
    }
}

/// Everything that a supervisor is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon's control socket.
    pub control: PathBuf,
    /// Where the supervisor itself is asked.
    pub trigger: PathBuf,
    /// The daemon's data directory.
    pub data_dir: PathBuf,
    /// Where what happens is written down.
    pub journal: PathBuf,
    /// The daemon's program, resolved anew for every start and every swap; a name without a slash is looked up in PATH.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables to set in its environment.
    pub env: Vec<(String, String)>,
    /// The directory to start it in; the supervisor's own unless given.
    pub directory: Option<PathBuf>,
    /// The sockets to hold.
    pub listeners: Vec<Listen>,
    /// Whether a start of the daemon takes the program from here and not from the owner record.
    pub ignore_record: bool,
    /// How long a swap may take.
    pub limits: Limits,
    /// What is run again and again while a successor serves on trial.
    pub health: Option<Health>,
    /// When the daemon counts as started.
    pub readiness: Readiness,
    /// What is done when the daemon dies by itself.
    pub restart: Restart,
    /// Who else may ask for a swap.
    pub allowed_uids: Vec<u32>,
    /// Which programs a trigger may name beside the configured one; a path that ends in a slash allows every program in that directory. Empty:
    /// any, for root and this process's own user, and none for the others.
    pub allowed_binaries: Vec<PathBuf>,
    /// Where a newline is written once the first daemon is ready, as s6 expects.
    pub ready_fd: Option<i32>,
    /// Where metrics are written, by rename.
    pub metrics_file: Option<PathBuf>,
}

/// How long things may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the incumbent to finish what is in flight.
    pub drain_grace: Duration,
    /// From the moment the successor is warm to the latest moment of a grant.
    pub deadline: Duration,
    /// For the successor to warm up.
    pub warm_up: Duration,
    /// From the grant to the successor's word that it serves.
    pub stand_by: Duration,
    /// For the trial, if there is to be one.
    pub bake: Option<Duration>,
    /// For a planned stop, before the daemon is ended by signals.
    pub stop: Duration,
    /// For a predecessor to end after a swap, before it is ended by signals.
    pub linger: Duration,
}

/// A health check: a command that must end with 0 every time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// For `sh -c`.
    pub command: String,
    /// Between the end of one run and the next one.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
}

/// When a daemon that was started without a handoff counts as started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// What says so.
    pub by: ReadyBy,
    /// How long that may take.
    pub timeout: Duration,
}

/// What says that a daemon is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyBy {
    /// It answers on its control socket that it serves.
    Control,
    /// It also says `READY=1` on the socket that it finds in `NOTIFY_SOCKET`.
    Notify,
    /// It answers on its control socket, and this command for `sh -c` ends with 0.
    Command(String),
}

/// What is done when the daemon dies by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Whether it is started again.
    pub policy: Policy,
    /// The first wait before that; each further one is twice as long.
    pub delay: Duration,
    /// The longest wait.
    pub delay_max: Duration,
    /// How many restarts there may be within [`window`](Self::window); one more, and the supervisor ends as the daemon did.
    pub max: u32,
    /// See [`max`](Self::max).
    pub window: Duration,
}

/// Whether a daemon that died by itself is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// No: the supervisor ends as the daemon did, so that whoever watches it decides.
    Never,
    /// Where it did not exit with 0.
    OnFailure,
    /// Whatever it died of.
    Always,
}
