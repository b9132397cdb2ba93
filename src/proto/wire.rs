//! The messages, one JSON object a line, tagged by `type`.
//!
//! The same set serves the control socket (a driver or anybody else to the incumbent), the lease (a driver, then the
//! successor, to the incumbent) and the channel between a driver and the successor that it spawned. Unknown fields are
//! ignored, unknown messages are refused. Descriptors travel with the line that mentions them.

use serde::{Deserialize, Serialize};

use super::party::{ProcessId, Tree};
use super::{Reason, Terms, Verdict, Versions};
use crate::drainable::{DrainReport, ReadinessSnapshot, SealReport, StateSnapshot};

/// The longest line, its newline included, in bytes.
pub const LINE_MAX: usize = 1 << 20;

/// The most descriptors that one message carries (`SCM_MAX_FD`, unix(7)).
pub const FDS_MAX: usize = 253;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// The first message of each side.
    Hello(Hello),

    // ---- Asked of the incumbent, on any control connection.
    /// Asks how the daemon is doing.
    Status {},
    /// Asks for the listening sockets.
    Listeners {},
    /// Asks for the daemon's standard output and error, for a successor to write to as well.
    Stdio {},
    /// Asks to be told the verdict of the handoff in progress, or of the next one.
    Watch {
        /// Whether a trial is undone when this connection closes: whoever checks the successor's health is gone then.
        #[serde(default)]
        guards: bool,
    },
    /// Asks to end a trial early, and keep the successor.
    Commit {},
    /// Asks to undo the handoff. On the lease it comes from the driver.
    Abort {
        /// Why.
        reason: String,
        /// The reason in a form for programs, where a driver has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Reason>,
    },
    /// Asks for the lease, or starts its clock anew.
    Prepare(Terms),

    // ---- Asked by the lease's holder.
    /// Stop accepting, finish what is in flight, within so many milliseconds.
    Drain {
        /// The grace, in milliseconds.
        grace_ms: u64,
    },
    /// Make the data final and release the lock.
    Seal {},
    /// The successor is here. Carries its pidfd.
    Attach(Attach),
    /// The successor has opened the data.
    Ready(Ready),
    /// The successor serves: on trial over the lease, either way over the channel.
    Serving(Served),
    /// The successor serves for good.
    Done(Served),
    /// The successor has stopped serving on trial, sealed and unlocked.
    SteppedDown {},
    /// No successor comes: the incumbent, which has sealed, may end.
    Retire {},

    // ---- Answered by the incumbent.
    /// How the daemon is doing.
    StatusReport(Box<Status>),
    /// Names of the listening sockets whose descriptors come with this message and those after it.
    ListenerList(ListenerList),
    /// Carries copies of the daemon's standard output and error, in this order.
    StdioCopies {},
    /// The lease is granted. Carries the incumbent's pidfd.
    Prepared(Prepared),
    /// Another handoff is in progress.
    Busy {
        /// Its id.
        handoff: String,
        /// Its phase.
        phase: String,
        /// How long it has been going on, in milliseconds.
        age_ms: u64,
    },
    /// It will be done.
    Accepted {},
    /// It will not be done, and nothing changed.
    Refused {
        /// Why: what was expected and what came.
        reason: String,
    },
    /// Everything in flight is finished.
    Drained(Drained),
    /// The data is final and the lock is free.
    Sealed(SealReport),
    /// The successor may write and serve; on trial if a time is given.
    Granted {
        /// The trial, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bake_ms: Option<u64>,
    },
    /// The trial is over: make the record final.
    Finalize {},
    /// The trial is undone: stop, seal, unlock, exit.
    StepDown {
        /// Why.
        reason: Reason,
    },
    /// The handoff is undone.
    Aborted {
        /// Why.
        reason: Reason,
    },
    /// How the handoff ended.
    Verdict(Report),

    // ---- On the channel between a driver and the successor that it spawned.
    /// What the successor is to take part in. Carries the incumbent's pidfd.
    Offer(Offer),
    /// The successor is warm.
    Waiting {},
    /// The data is sealed. Carries the lease.
    Begin(Begin),
    /// The handoff is called off.
    Dismissed {
        /// Why.
        reason: Reason,
    },
    /// The successor gives up.
    Failed {
        /// Why.
        reason: Reason,
    },
}

/// Who speaks, and which versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol versions that it speaks.
    pub versions: Versions,
    /// What it is, for people: `handoff swap`, `kvd`.
    pub actor: String,
    /// Its process.
    pub process: ProcessId,
    /// What its program was built from, in hexadecimal; empty where it has none.
    #[serde(default)]
    pub build_id: String,
}

/// The answer to [`Message::Prepare`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The generation of the owner record now.
    pub generation: u64,
    /// The incumbent.
    pub incumbent: ProcessId,
    /// The data directory.
    pub data_dir: String,
    /// The lock file's name in it.
    pub lock_file: String,
}

/// The answer to [`Message::Drain`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// What the hook reported.
    #[serde(flatten)]
    pub report: DrainReport,
    /// When the drain hook was called (CLOCK_MONOTONIC, microseconds): the gap's beginning.
    pub stopped_us: u64,
    /// Connections that were open when it was called.
    pub conns: u32,
}

/// What a successor is to take part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The handoff's id.
    pub handoff: String,
    /// The generation that the handoff begins with.
    pub generation: u64,
    /// The incumbent.
    pub incumbent: ProcessId,
    /// What was made for the successor, and may be killed whole.
    pub tree: Tree,
    /// How long after it is warm a successor waits for `begin` at most, in milliseconds.
    pub patience_ms: u64,
    /// How much longer than the incumbent's own wait it waits before it takes the incumbent to be hung, in milliseconds.
    #[serde(default = "Offer::margin_ms")]
    pub margin_ms: u64,
}

impl Offer {
    /// What a driver that does not say means.
    fn margin_ms() -> u64 {
        2000
    }
}

/// What a successor needs to know when its turn has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// What was made final.
    pub sealed: SealReport,
    /// How long the incumbent has left to decide, in milliseconds.
    pub deadline_ms: u64,
}

/// The successor's first message on the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The successor.
    pub process: ProcessId,
    /// What may be killed whole.
    pub tree: Tree,
    /// What its program was built from, in hexadecimal.
    pub build_id: String,
}

/// What a successor has opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What it says of itself.
    #[serde(flatten)]
    pub readiness: ReadinessSnapshot,
    /// The fingerprint of the data directory that it opened.
    #[serde(with = "crate::drainable::hex32")]
    pub data_dir_fingerprint: [u8; 32],
}

/// When a successor began to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// When it could accept (CLOCK_MONOTONIC, microseconds): the gap's end.
    pub serving_us: u64,
    /// The generation that it wrote.
    pub generation: u64,
    /// Whether it is on trial.
    pub on_trial: bool,
}

/// Listening sockets, a batch of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerList {
    /// The names, one for each descriptor that comes with this message.
    pub names: Vec<String>,
    /// How many are still to come in further messages.
    pub more: usize,
}

/// How a handoff ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The handoff's id.
    pub handoff: String,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What happened and when, as the incumbent saw it.
    #[serde(default)]
    pub phases: Vec<PhaseMark>,
    /// When the successor began to serve, as it said itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Served>,
}

/// A phase that was entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseMark {
    /// The phase.
    pub phase: String,
    /// When (CLOCK_MONOTONIC, microseconds).
    pub at_us: u64,
}

/// How a daemon is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `incumbent`, or `successor` while it serves on trial.
    pub role: String,
    /// The incumbent's phase.
    pub phase: String,
    /// The process.
    pub process: ProcessId,
    /// What its program was built from.
    pub build_id: String,
    /// Its program.
    pub binary: String,
    /// The generation of the record that it wrote.
    pub generation: u64,
    /// The data directory.
    pub data_dir: String,
    /// The lock file's name in it.
    pub lock_file: String,
    /// The handoff in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handoff: Option<Progress>,
    /// What the daemon says.
    pub state: StateSnapshot,
    /// Its listening sockets.
    pub listeners: Vec<ListenerStatus>,
    /// Whether it holds the lock.
    pub locked: bool,
    /// How long it has served, in milliseconds.
    pub uptime_ms: u64,
}

/// A handoff in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its id.
    pub handoff: String,
    /// How long it has been going on, in milliseconds.
    pub age_ms: u64,
    /// How long until its deadline or the end of its trial, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
    /// The successor, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<ProcessId>,
    /// The incumbent that stands by, where this is the successor on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incumbent: Option<ProcessId>,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Connections in its accept queue, and how many fit, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<(u32, u32)>,
}

impl Message {
    /// Every word in a `type` field that this version knows.
    pub const NAMES: &[&str] = &[
        "hello",
        "status",
        "listeners",
        "stdio",
        "watch",
        "commit",
        "abort",
        "prepare",
        "drain",
        "seal",
        "attach",
        "ready",
        "serving",
        "done",
        "stepped-down",
        "retire",
        "status-report",
        "listener-list",
        "stdio-copies",
        "prepared",
        "busy",
        "accepted",
        "refused",
        "drained",
        "sealed",
        "granted",
        "finalize",
        "step-down",
        "aborted",
        "verdict",
        "offer",
        "waiting",
        "begin",
        "dismissed",
        "failed",
    ];

    /// Returns the word in its `type` field.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Status {} => "status",
            Self::Listeners {} => "listeners",
            Self::Stdio {} => "stdio",
            Self::Watch { .. } => "watch",
            Self::Commit {} => "commit",
            Self::Abort { .. } => "abort",
            Self::Prepare(_) => "prepare",
            Self::Drain { .. } => "drain",
            Self::Seal {} => "seal",
            Self::Attach(_) => "attach",
            Self::Ready(_) => "ready",
            Self::Serving(_) => "serving",
            Self::Done(_) => "done",
            Self::SteppedDown {} => "stepped-down",
            Self::Retire {} => "retire",
            Self::StatusReport(_) => "status-report",
            Self::ListenerList(_) => "listener-list",
            Self::StdioCopies {} => "stdio-copies",
            Self::Prepared(_) => "prepared",
            Self::Busy { .. } => "busy",
            Self::Accepted {} => "accepted",
            Self::Refused { .. } => "refused",
            Self::Drained(_) => "drained",
            Self::Sealed(_) => "sealed",
            Self::Granted { .. } => "granted",
            Self::Finalize {} => "finalize",
            Self::StepDown { .. } => "step-down",
            Self::Aborted { .. } => "aborted",
            Self::Verdict(_) => "verdict",
            Self::Offer(_) => "offer",
            Self::Waiting {} => "waiting",
            Self::Begin(_) => "begin",
            Self::Dismissed { .. } => "dismissed",
            Self::Failed { .. } => "failed",
        }
    }
}
