//! `flock(2)` on the data directory's lock file, and who holds it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process that has the lock's open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line, or the name of its program where that is all there is to see.
    pub command: String,
    /// When it started, in clock ticks after boot (field 22 of proc_pid_stat(5)); with the boot id this names it for good.
    pub start_ticks: u64,
    /// The process that took the lock, where this one inherited it.
    pub inherited_from: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)?;
        match self.inherited_from {
            Some(pid) => write!(f, ", which inherited it from pid {pid}"),
            None => Ok(()),
        }
    }
}
