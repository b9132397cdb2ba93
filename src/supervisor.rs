//! Swaps, for supervisors and tools that run them from their own code.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::drive::Drive;
use crate::error::{Error, Result};
use crate::fds::{self, AsListener};
use crate::journal::{self, Journal};
pub use crate::proto::driver::{Outcome, Refusal};
use crate::proto::wire::PhaseMark;
use crate::recover;
pub use crate::recover::Recovered;
use crate::supervise::wire::Ended;
use crate::sys::spawn::Program;

/// Runs handoffs between the daemon at a control path and its successors.
///
/// It holds the listening sockets that it was given, and passes them on; if it was given none, it fetches them from the
/// incumbent.
#[derive(Debug)]
pub struct Supervisor {
    control: PathBuf,
    listeners: Vec<(String, std::io::Result<OwnedFd>)>,
    journal: Option<PathBuf>,
    patience: Duration,
}

/// What to start, and how long everything may take.
#[derive(Clone, Debug)]
pub struct SpawnSpec {
    /// The successor's program; a name without a slash is looked up in PATH.
    pub binary: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// Variables to set in its environment, which is otherwise this process's.
    pub env: Vec<(String, String)>,
    /// Variables of this process's environment that it does not get.
    pub unset: Vec<String>,
    /// How long the incumbent may take to finish what is in flight.
    pub drain_grace: Duration,
    /// From the moment the successor is warm to the latest moment of a grant.
    pub deadline: Duration,
    /// How long the successor may take to warm up, while the incumbent serves.
    pub warm_up: Duration,
    /// From the grant to the successor's word that it serves.
    pub stand_by: Duration,
    /// How long the successor serves on trial, while the incumbent stands by; none for no trial.
    pub bake: Option<Duration>,
    /// How much longer than one party's own wait the others wait before they take it to be hung, and kill it; at least
    /// 50 ms.
    pub margin: Duration,
    /// Whether a trial is undone when this process dies before it ends: it checks the successor's health, and nobody else
    /// does.
    pub guard: bool,
    /// The directory of a control group, made for the successor alone, to start it in.
    pub cgroup: Option<PathBuf>,
    /// Whether the driver holds between the phases (`warm`, `drained` and `sealed`) until its observer [wishes to go on](Wish::GoOn).
    pub step: bool,
    /// The directory to start it in; this process's unless given.
    pub directory: Option<PathBuf>,
    /// Where its standard output and error go.
    pub output: Output,
    /// The trigger socket of a supervisor that is to start it, as its own child: with the supervisor's sockets, environment, standard output and
    /// error. [`cgroup`](Self::cgroup) and [`output`](Self::output) are the supervisor's then.
    pub via: Option<PathBuf>,
}

/// Where a successor's standard output and error go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Where this process's go, for as long as the successor lives: right for a supervisor, which stays.
    #[default]
    Inherit,
    /// Where the incumbent's go, so that the successor logs there and a command that drives the swap can end. From an
    /// incumbent that does not give them it is as [`Inherit`](Self::Inherit).
    Incumbents,
}

impl Default for SpawnSpec {
    fn default() -> Self {
        Self {
            binary: PathBuf::new(),
            args: vec![],
            env: vec![],
            unset: vec![],
            drain_grace: Duration::from_secs(25),
            deadline: Duration::from_secs(60),
            warm_up: Duration::from_secs(600),
            stand_by: Duration::from_secs(10),
            bake: None,
            guard: false,
            step: false,
            margin: Duration::from_secs(2),
            cgroup: None,
            directory: None,
            output: Output::default(),
            via: None,
        }
    }
}

/// How a handoff ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct HandoffOutcome {
    /// Its id.
    pub handoff_id: String,
    /// Whether the successor serves.
    pub committed: bool,
    /// Why it does not.
    pub abort_reason: Option<AbortReason>,
    /// The successor's program, where one was started.
    pub binary: Option<PathBuf>,
    /// Its arguments.
    pub args: Vec<String>,
    /// The process that was started as the successor, where it serves.
    pub pid: Option<u32>,
    /// The same, where this process started it. It is the caller's from here on: to wait for when it ends, or to forget, and then
    /// init's. The incumbent's end is for whoever started that one to wait for.
    pub child: Option<Child>,
    /// The same in one word and its details.
    pub outcome: Outcome,
    /// What was measured.
    pub measured: Measured,
}

/// As a supervisor tells it of a swap that it has run: the process is not this one's child.
impl From<Ended> for HandoffOutcome {
    fn from(ended: Ended) -> Self {
        Self {
            handoff_id: ended.handoff,
            committed: ended.outcome == Outcome::Committed,
            abort_reason: ended.reason.map(AbortReason),
            binary: ended.binary,
            args: ended.args,
            pid: ended.pid,
            child: None,
            outcome: ended.outcome,
            measured: ended.measured,
        }
    }
}

impl From<&HandoffOutcome> for Ended {
    fn from(outcome: &HandoffOutcome) -> Self {
        Self {
            handoff: outcome.handoff_id.clone(),
            outcome: outcome.outcome.clone(),
            reason: outcome.abort_reason.as_ref().map(ToString::to_string),
            binary: outcome.binary.clone(),
            args: outcome.args.clone(),
            pid: outcome.pid,
            measured: outcome.measured.clone(),
        }
    }
}

/// Why a successor does not serve; prints as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortReason(pub(crate) String);

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was measured in a handoff.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// From the moment the incumbent stopped accepting to the moment the successor could accept, in microseconds.
    pub gap_us: Option<u64>,
    /// The whole, in milliseconds.
    pub total_ms: u64,
    /// Client connections that were open when the drain began.
    pub conns_at_drain: u32,
    /// Of those, how many were still open when it ended.
    pub conns_remaining: u32,
    /// The most connections that were seen in the accept queues of the listening TCP sockets.
    pub queue_peak: Option<u32>,
    /// How many fit into the smallest of those queues.
    pub queue_limit: Option<u32>,
    /// Connections that found a queue full, on the whole machine (or network namespace), from beginning to end.
    pub overflows: Option<u64>,
    /// When the incumbent's drain hook was called: the gap's beginning (CLOCK_MONOTONIC, microseconds).
    pub stopped_us: Option<u64>,
    /// When the successor could accept: the gap's end (CLOCK_MONOTONIC, microseconds).
    pub serving_us: Option<u64>,
    /// The phases as the driver saw them.
    pub phases: Vec<PhaseMark>,
    /// The phases as the incumbent saw them, where it lived to tell.
    pub incumbent_phases: Vec<PhaseMark>,
}

/// What a swap's observer is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// A phase was entered.
    Phase(&'a str),
    /// Nothing new, but time passed.
    Tick {
        /// The phase.
        phase: &'a str,
        /// Client connections that are still open, where the incumbent says.
        open_conns: Option<u32>,
        /// Connections in the accept queues, and how many fit into the smallest, where the kernel says.
        queue: Option<(u32, u32)>,
        /// Until the phase's limit.
        left: Option<Duration>,
    },
}

/// What a swap's observer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To go on.
    Continue,
    /// To undo the handoff, while that is possible.
    Cancel(String),
    /// To go on with the next phase, where the driver [holds](SpawnSpec::step).
    GoOn,
}

impl Supervisor {
    /// Returns a supervisor for the daemon that answers, or will answer, at this control path.
    ///
    /// # Errors
    ///
    /// The path cannot be one of a socket.
    pub fn new(control: impl AsRef<Path>) -> Result<Self> {
        let control = control.as_ref().to_owned();
        if control.file_name().is_none() {
            return Err(Error::Invalid {
                detail: format!("{} has no file name: expected a socket's path", control.display()),
            });
        }
        Ok(Self { control, listeners: vec![], journal: None, patience: recover::INQUIRY })
    }

    /// Adds a listening socket to pass to successors. A copy is kept; what is wrong with it is said by the handoff.
    #[must_use]
    pub fn with_listener(mut self, name: impl Into<String>, fd: impl AsListener) -> Self {
        self.listeners.push((name.into(), fd.copy()));
        self
    }

    /// Writes what happens to the journal at this path.
    #[must_use]
    pub fn with_journal(mut self, path: impl Into<PathBuf>) -> Self {
        self.journal = Some(path.into());
        self
    }

    /// Sets for how long a handoff that is still going on is asked about, before nobody knows how it ended: 10 seconds by default.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Finds out how the handoff ended in whose middle an earlier driver died, and records it. Without a journal, or with
    /// nothing left open in it, there is nothing to do.
    ///
    /// # Errors
    ///
    /// The journal cannot be read or written.
    pub fn resume_from_journal(&self) -> Result<Option<Recovered>> {
        match &self.journal {
            Some(path) => recover::recover(path, &self.control, self.patience),
            None => Ok(None),
        }
    }

    /// As [`resume_from_journal`](Self::resume_from_journal), in a journal that this process holds and goes on with.
    ///
    /// # Errors
    ///
    /// The journal cannot be read or written.
    pub fn resume_in(&self, journal: &mut Journal) -> Result<Option<Recovered>> {
        recover::recover_in(journal, &self.control, self.patience)
    }

    /// Replaces the daemon at the control path.
    ///
    /// # Errors
    ///
    /// The binary cannot be run, the control path does not answer, a listener or the journal cannot be used. Nothing was begun
    /// then. How a handoff that was begun ended is an outcome, also when it was rolled back.
    pub fn perform_handoff(&self, spec: SpawnSpec) -> Result<HandoffOutcome> {
        self.perform_observed(spec, &mut |_| Wish::Continue)
    }

    /// As [`perform_handoff`](Self::perform_handoff), and tells an observer what goes on, at least ten times a second. It
    /// should return soon.
    ///
    /// # Errors
    ///
    /// As [`perform_handoff`](Self::perform_handoff).
    pub fn perform_observed(
        &self,
        spec: SpawnSpec,
        observer: &mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<HandoffOutcome> {
        let program = Program::open(&spec.binary)?;
        self.perform_opened(program, spec, observer)
    }

    /// As [`perform_observed`](Self::perform_observed), with a program that was opened and looked at before: what runs is that file, whatever has its
    /// path by now.
    ///
    /// # Errors
    ///
    /// As [`perform_handoff`](Self::perform_handoff).
    pub fn perform_opened(
        &self,
        program: Program,
        spec: SpawnSpec,
        observer: &mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<HandoffOutcome> {
        let listeners = self.listeners()?;
        Drive::new(&self.control, program, spec, listeners, self.open_journal()?, observer)?.run()
    }

    /// Ends the daemon at the control path without a successor, a planned stop: it drains, makes its data final and ends.
    ///
    /// # Errors
    ///
    /// As [`perform_handoff`](Self::perform_handoff).
    pub fn retire(
        &self,
        spec: SpawnSpec,
        observer: &mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<HandoffOutcome> {
        Drive::retiring(&self.control, spec, self.open_journal()?, observer)?.retire()
    }

    fn open_journal(&self) -> Result<Option<Journal>> {
        self.journal.as_ref().map(Journal::open).transpose()
    }

    fn listeners(&self) -> Result<Vec<(String, OwnedFd)>> {
        let copy = |(name, fd): &(String, std::io::Result<OwnedFd>)| {
            fds::check_name(name)?;
            let unusable = |e: &std::io::Error| {
                Error::io(format!("copy listener {name}"), std::io::Error::from(e.kind()))
            };
            let fd = fd.as_ref().map_err(unusable)?;
            Ok((name.clone(), fd.try_clone().map_err(|e| unusable(&e))?))
        };
        self.listeners.iter().map(copy).collect()
    }

    /// Returns the journal's path.
    pub fn journal(&self) -> Option<&Path> {
        self.journal.as_deref()
    }
}

/// A new handoff's id.
pub(crate) fn new_id() -> String {
    journal::new_handoff_id()
}
