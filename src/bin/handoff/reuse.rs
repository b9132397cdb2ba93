//! The running daemon's own arguments and directory, for a new binary that is to be started like it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::error::Error;
use handoff::proto::wire::Status;
use handoff::sys::process;

use crate::{exit, swap};

/// How the running daemon was started.
#[derive(Clone, Debug, Default)]
pub struct Reused {
    pub args: Vec<String>,
    /// Its arguments may hold paths that are relative to it.
    pub directory: Option<PathBuf>,
}

/// For how long a daemon is asked again whose successor has the owner record by now.
const TURNOVER: Duration = Duration::from_secs(2);
/// Between two attempts at that.
const PAUSE: Duration = Duration::from_millis(5);

/// Why it is not known.
enum Unknown {
    /// Another process than the one that answered is the owner.
    Owner(u32),
    Other(String),
}

/// Learns it from a daemon that answered.
pub fn of_status(running: &Status) -> anyhow::Result<Reused> {
    of_lock_file(&lock_file(running), running.process.pid)
}

/// As [`of_status`]. One that has handed over since it answered is no reason to stop: whoever serves now is asked.
pub fn of_running(control: &Path, running: &Status) -> anyhow::Result<Reused> {
    let until = Instant::now() + TURNOVER;
    let mut running = running.clone();
    loop {
        match read(&lock_file(&running), running.process.pid) {
            Err(Unknown::Owner(_)) if Instant::now() < until => std::thread::sleep(PAUSE),
            learned => return learned.map_err(|why| unknown(running.process.pid, why)),
        }
        // One that does not answer in between is asked again, too.
        if let Ok(now) = swap::ask(control) {
            running = now;
        }
    }
}

/// Learns it from the owner record of the daemon with this pid.
pub fn of_lock_file(lock_file: &Path, pid: u32) -> anyhow::Result<Reused> {
    read(lock_file, pid).map_err(|why| unknown(pid, why))
}

fn lock_file(running: &Status) -> PathBuf {
    Path::new(&running.data_dir).join(&running.lock_file)
}

fn read(lock_file: &Path, pid: u32) -> Result<Reused, Unknown> {
    let reading = DataDirLock::read_record(lock_file).map_err(|e| Unknown::Other(e.to_string()))?;
    match reading.record {
        Some(record) if record.owner.pid != pid => Err(Unknown::Owner(record.owner.pid)),
        Some(_) if reading.args_dropped => {
            Err(Unknown::Other("they do not fit into its owner record".to_owned()))
        }
        Some(record) => {
            let directory = record.owner.directory.or_else(|| directory_of(pid));
            Ok(Reused { args: record.owner.args, directory })
        }
        None => Err(Unknown::Other("there is no owner record".to_owned())),
    }
}

fn unknown(pid: u32, why: Unknown) -> anyhow::Error {
    let why = match why {
        Unknown::Owner(owner) => format!("the owner record is of pid {owner}, and pid {pid} answers"),
        Unknown::Other(why) => why,
    };
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
