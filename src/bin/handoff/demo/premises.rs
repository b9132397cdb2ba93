//! Where a demonstration takes place: a data directory, and the processes that were started in it.
//!
//! Every process that it starts, and every process that those start, has a mark in its environment. So they are found
//! whoever is their parent by then, and no other process is ever taken for one of them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use handoff::Error;
use handoff::sys::process::{PidFd, Signal};
use handoff::sys::random;
use serde::{Deserialize, Serialize};

/// The variable that marks a demonstration's processes.
const MARK: &str = "HANDOFF_DEMO";
/// How long processes that were killed may take to be gone.
const DYING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// What a demonstration owns, until it is [`clear`](Self::clear)ed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Premises {
    dir: PathBuf,
    /// Whether the directory itself was made here.
    made: bool,
    keep: bool,
    token: String,
    /// Whether nothing is started any more. Held while something is being started.
    #[serde(skip)]
    closed: Mutex<bool>,
}

impl Premises {
    /// Makes the data directory, which may be there already if it is empty.
    ///
    /// # Errors
    ///
    /// There is something in it, or it cannot be made.
    pub fn open(dir: Option<&Path>, keep: bool) -> anyhow::Result<Self> {
        let token = token().context("get random bits")?;
        let default = || std::env::temp_dir().join(format!("handoff-demo-{token}"));
        let dir = dir.map_or_else(default, Path::to_owned);
        let made = make(&dir)?;
        let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
        Ok(Self { dir, made, keep, token, closed: Mutex::new(false) })
    }

    /// Returns the data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the file that takes the messages of all processes.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn log(&self) -> anyhow::Result<File> {
        let path = self.dir.join("log");
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Starts a process that is ended with the demonstration, whatever happens.
    ///
    /// # Errors
    ///
    /// What fork(2) or execve(2) returns, or `Interrupted` when everything is being ended already.
    pub fn start(&self, command: &mut Command) -> io::Result<Child> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // What a service manager or an outer handoff passed to this process is not for those that it starts.
        for name in ["HANDOFF_FDS", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"] {
            command.env_remove(name);
        }
        command.env(MARK, &self.token).spawn()
    }

    /// Returns the processes that were started and have not ended.
    pub fn processes(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| self.started(*pid)).collect()
    }

    /// Waits until no processes but these are left; returns those that are by the deadline.
    pub fn wait_for_others(&self, expected: &[u32], deadline: Instant) -> Vec<u32> {
        loop {
            let mut others = self.processes();
            others.retain(|pid| !expected.contains(pid));
            if others.is_empty() || Instant::now() >= deadline {
                return others;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends every process that was started, starts none from now on, and removes the directory unless it is to be kept.
    pub fn clear(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end_processes();
        if !self.keep {
            self.remove();
        }
    }

    /// Does not return if everything is being ended after a signal or a panic: what fails then is no news, and the thread that does it
    /// ends this process. For the main thread, before it tells of anything.
    pub fn mind_the_end(&self) {
        let is_closed = || *self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        while is_closed() {
            std::thread::park();
        }
    }

    /// A process that is being killed may be starting another one: until none is found.
    fn end_processes(&self) {
        let deadline = Instant::now() + DYING;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() >= deadline {
                return;
            }
            for pid in left {
                self.end(pid, deadline);
            }
        }
    }

    fn end(&self, pid: u32, deadline: Instant) {
        let Ok(process) = PidFd::open(pid) else { return };
        // Its number may be another process's by now; what the descriptor names stays the same.
        if self.started(pid) && process.signal(Signal::SIGKILL).is_ok() {
            // The next look finds it if it is still there.
            let _ = process.wait_dead(deadline);
        }
    }

    fn started(&self, pid: u32) -> bool {
        let mark = format!("{MARK}={}", self.token);
        // Other users' processes cannot be read, and those that have ended have no environment.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    }

    fn remove(&self) {
        // What cannot be removed is where it was said to be.
        if self.made {
            let _ = fs::remove_dir_all(&self.dir);
            return;
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        }
    }
}

impl Drop for Premises {
    fn drop(&mut self) {
        self.clear();
    }
}

fn token() -> io::Result<String> {
    let mut bits = [0; 8];
    random::fill(&mut bits)?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a directory for this user alone, unless there is an empty one; returns whether it was made.
fn make(dir: &Path) -> anyhow::Result<bool> {
    match fs::DirBuilder::new().recursive(false).mode(0o700).create(dir) {
        Ok(()) => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(|| format!("make {}", dir.display())),
    }
    let mut entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    match entries.next() {
        None => Ok(false),
        Some(_) => {
            let detail = format!("{} is not empty: expected a new or an empty directory", dir.display());
            Err(Error::Invalid { detail }).context("use the data directory")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Stdio;

    use super::*;

    #[test]
    fn what_a_started_process_has_started_is_ended_too_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let premises = Premises::open(Some(&dir.path().join("data")), false).unwrap();
        let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 600 & echo started; exit 0"]).stdout(Stdio::piped());
        let mut shell = premises.start(&mut shell).unwrap();
        shell.wait().unwrap();
        let orphans = premises.processes();
        assert_eq!(orphans.len(), 1, "{orphans:?}");
        let orphan = PidFd::open(orphans[0]).unwrap();
        premises.clear();
        assert!(orphan.is_dead().unwrap());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(!premises.dir().exists());
        assert_eq!(premises.start(&mut Command::new("true")).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "1").unwrap();
        assert!(Premises::open(Some(dir.path()), false).is_err());
        assert!(dir.path().join("precious").exists());
    }

    #[test]
    fn an_empty_directory_is_used_and_emptied_again_and_a_kept_one_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for (keep, left) in [(false, 0), (true, 2)] {
            let premises = Premises::open(Some(dir.path()), keep).unwrap();
            fs::write(dir.path().join("kv.log"), "1").unwrap();
            fs::create_dir(dir.path().join("more")).unwrap();
            drop(premises);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), left);
        }
    }
}
