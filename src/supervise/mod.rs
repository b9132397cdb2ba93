//! The supervisor: the one process that a service manager watches. It holds the sockets, starts the daemon, starts it again, swaps its program
//! when it is asked to, and stays.

pub mod client;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

use crate::listen::Listen;

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
