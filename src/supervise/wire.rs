//! What is said on a supervisor's trigger socket: one JSON object a line, its `type` a word. Fields that are not known are ignored, a request that is not
//! known is refused.
//!
//! | request | fields | answers | descriptors |
//! | --- | --- | --- | --- |
//! | `swap` | `binary`, `args`, `bake_ms` (each may be missing: as configured), `queue` (whether to wait for what goes on) | `queued` at most once, `started`, then `verdict`; or `busy`, or `refused` | |
//! | `reexec` | `queue` | `queued` at most once, then `reexecuted` by the new program; or `busy`, or `refused` | |
//! | `status` | | `supervising` | |
//! | `spawn` | `handoff`, `binary`, `args`, `env`, `directory` | `spawned`, or `refused` | with the request the successor's end of its channel; with the answer the successor's pidfd |

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::proto::driver::Outcome;
use crate::proto::party::{ProcessId, Tree};
use crate::supervisor::Measured;

/// What is asked of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// To replace the daemon's program.
    Swap(Swap),
    /// To become the supervisor's own program anew.
    Reexec {
        /// Whether to wait for what goes on.
        #[serde(default)]
        queue: bool,
    },
    /// How things stand.
    Status {},
    /// To start a successor for a driver elsewhere, as this supervisor's child.
    Spawn(Spawn),
}

/// A swap that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The successor's program, by its full path; the configured one unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// Its arguments; the configured ones unless given. Only root and the supervisor's own user may give any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// How long it serves on trial, in milliseconds; as configured unless given, and 0 for no trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake_ms: Option<u64>,
    /// Whether to wait for what goes on, instead of being told that the supervisor is busy.
    #[serde(default)]
    pub queue: bool,
}

/// A successor that is to be started for a driver elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The handoff that it is for.
    pub handoff: String,
    /// Its program, by its full path.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables to set in its environment, which is otherwise the supervisor's.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The directory to start it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

/// What a supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Answer {
    /// It waits for what goes on.
    Queued {
        /// How many others wait before it.
        ahead: usize,
    },
    /// The swap has begun; closing the connection does not end it.
    Started {},
    /// How the swap ended.
    Verdict(Box<Ended>),
    /// Something else goes on, and the request did not ask to wait.
    Busy {
        /// What: `swapping`, `starting`, `stopping`, ...
        doing: String,
        /// The handoff, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        handoff: Option<String>,
        /// For how long it has gone on, in milliseconds.
        age_ms: u64,
    },
    /// The answer is no, and nothing has changed.
    Refused {
        /// Why.
        reason: String,
    },
    /// The supervisor is its new program.
    Reexecuted {
        /// The new program's version.
        version: String,
    },
    /// How things stand.
    Supervising(Box<State>),
    /// The successor runs.
    Spawned {
        /// Its process.
        process: ProcessId,
        /// What may be killed whole.
        tree: Tree,
    },
}

/// How a swap ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The handoff's id.
    pub handoff: String,
    /// How.
    pub outcome: Outcome,
    /// Why the successor does not serve, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The successor's program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// The successor's pid, where it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What was measured.
    pub measured: Measured,
}

/// How a supervisor is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The supervisor's pid.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// What it does: `starting`, `serving`, `swapping`, `waiting` (before it starts the daemon again), `stopping`.
    pub doing: String,
    /// For how long, in milliseconds.
    pub age_ms: u64,
    /// The daemon's process, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon: Option<ProcessId>,
    /// Whether the daemon is this supervisor's child.
    pub is_child: bool,
    /// The names of the sockets that are held.
    pub listeners: Vec<String>,
    /// How often the daemon was started again since the supervisor started.
    pub restarts: u32,
    /// How many swaps have ended, by their outcome.
    pub swaps: Vec<(String, u64)>,
    /// How many requests wait.
    pub queued: usize,
}
