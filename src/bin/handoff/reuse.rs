//! The running daemon's own arguments and directory, for a new binary that is to be started like it.

use std::path::{Path, PathBuf};

use handoff::DataDirLock;
use handoff::error::Error;
use handoff::proto::wire::Status;
use handoff::sys::process;

use crate::exit;

/// How the running daemon was started.
#[derive(Clone, Debug, Default)]
pub struct Reused {
    pub args: Vec<String>,
    /// Its arguments may hold paths that are relative to it.
    pub directory: Option<PathBuf>,
}

/// Learns it from a daemon that answered.
pub fn of_status(running: &Status) -> anyhow::Result<Reused> {
    of_lock_file(&Path::new(&running.data_dir).join(&running.lock_file), running.process.pid)
}

/// Learns it from the owner record of the daemon with this pid.
pub fn of_lock_file(lock_file: &Path, pid: u32) -> anyhow::Result<Reused> {
    let reading = DataDirLock::read_record(lock_file).map_err(|e| unknown(e.to_string()))?;
    match reading.record {
        Some(_) if reading.args_dropped => Err(unknown("they do not fit into its owner record".to_owned())),
        Some(record) if record.owner.pid == pid => {
            let directory = record.owner.directory.or_else(|| directory_of(pid));
            Ok(Reused { args: record.owner.args, directory })
        }
        Some(record) => {
            let owner = record.owner.pid;
            Err(unknown(format!("the owner record is of pid {owner}, and pid {pid} answers")))
        }
        None => Err(unknown("there is no owner record".to_owned())),
    }
}

fn unknown(why: String) -> anyhow::Error {
    let detail = format!("{why}; give PROG's arguments after it, or --no-reuse-args for none");
    exit::attempt(Error::Invalid { detail }, "learn the daemon's arguments")
}

/// Where the record does not say it: a daemon of an earlier release, or a long path. It may have moved since.
fn directory_of(pid: u32) -> Option<PathBuf> {
    match process::working_directory(pid) {
        Ok(directory) => Some(directory),
        Err(e) => {
            tracing::warn!("unable to learn the daemon's working directory: {e}");
            None
        }
    }
}
