//! The names by which processes know each other.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A process, named for good: a process id is used again, but not with the same start time in the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id, in the pid namespace of whoever wrote this.
    pub pid: u32,
    /// When it started, in clock ticks after boot (field 22 of proc_pid_stat(5)).
    pub start_ticks: u64,
    /// The kernel's random id of this boot.
    pub boot_id: String,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

/// What was made for a successor alone, and may be killed whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tree {
    /// Nothing: only the process itself may be killed.
    #[default]
    Lone,
    /// A session that the process leads.
    Session {
        /// The session's id.
        sid: u32,
    },
    /// A control group.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
}
