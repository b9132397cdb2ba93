//! Who serves: the control path, the lock and the record are asked, in a thread of its own.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::{self, Control};
use crate::data_dir::DataDirLock;
use crate::error::Error;
use crate::journal::Journal;
use crate::proto::party::ProcessId;
use crate::proto::supervisor::Found;
use crate::proto::wire::Status;
use crate::supervisor::{Recovered, Supervisor};
use crate::sys::process::PidFd;

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a handoff that nobody drives any more is asked about.
const SETTLING: Duration = Duration::from_secs(1);
/// How long a driver elsewhere, who has the journal, is waited for where nobody serves.
const DRIVER: Duration = Duration::from_secs(2);
/// Between two looks at that.
const PAUSE: Duration = Duration::from_millis(20);

/// What is to be found out.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub control: PathBuf,
    pub data_dir: PathBuf,
    pub journal: PathBuf,
    /// The sockets that are held already, by name.
    pub held: Vec<String>,
}

/// What was found out.
#[derive(Debug)]
pub(super) struct Answer {
    pub found: Found,
    pub daemon: Option<Daemon>,
    /// Sockets that the daemon has and this supervisor had not.
    pub listeners: Vec<(String, OwnedFd)>,
    /// A handoff that was left open, and what became of it.
    pub recovered: Option<Recovered>,
    /// What there is to say of it.
    pub detail: Option<String>,
}

/// A daemon's process.
#[derive(Debug)]
pub(super) struct Daemon {
    pub process: ProcessId,
    pub pidfd: PidFd,
    /// What the daemon says of its program: where it is, and its build.
    pub program: Option<(PathBuf, String)>,
}

impl Daemon {
    /// Returns whether its process has ended.
    pub fn is_dead(&self) -> bool {
        self.pidfd.is_dead().unwrap_or(true)
    }

    /// Opens a process, and makes sure that it is the one that is meant.
    pub fn open(process: &ProcessId) -> Option<Self> {
        let pidfd = PidFd::open(process.pid).ok()?;
        let is_it = ProcessId::of(process.pid).is_ok_and(|found| found == *process);
        is_it.then(|| Self { process: process.clone(), pidfd, program: None })
    }
}

impl Question {
    pub fn ask(&self) -> Answer {
        let deadline = Instant::now() + ANSWER;
        let asked = Control::connect(&self.control, "handoff supervisor", deadline)
            .and_then(|mut control| Ok((control.status(deadline)?, control)));
        match asked {
            Ok((status, control)) => self.answered(&status, control, deadline),
            Err(e) => self.unanswered(&e),
        }
    }

    fn answered(&self, status: &Status, mut control: Control, deadline: Instant) -> Answer {
        let Some(mut daemon) = Daemon::open(&status.process) else {
            // It has ended since, or is in another pid namespace, where nobody here can watch it.
            let detail =
                format!("{} answers at {}, and cannot be found", status.process, self.control.display());
            return Answer { detail: Some(detail), ..Answer::of(Found::LockHeld) };
        };
        daemon.program = Some((PathBuf::from(&status.binary), status.build_id.clone()));
        let serves = status.handoff.is_none() && status.phase == "serving";
        let lacks = status.listeners.iter().any(|listener| !self.held.contains(&listener.name));
        let mut answer = Answer::of(if serves { Found::Serving } else { Found::Busy });
        if lacks {
            match control.listeners(deadline) {
                Ok(given) => answer.listeners = given,
                Err(e) => answer.detail = Some(format!("{} does not give its sockets: {e}", status.process)),
            }
            answer.listeners.retain(|(name, _)| !self.held.contains(name));
        }
        answer.daemon = Some(daemon);
        if serves {
            self.settle(&mut answer);
        } else {
            answer.detail = Some(format!(
                "a handoff that is not this supervisor's goes on ({}, {})",
                status.process, status.phase
            ));
        }
        answer
    }

    fn unanswered(&self, e: &Error) -> Answer {
        let holding = match DataDirLock::holding(&self.data_dir) {
            Ok(holding) => holding,
            Err(e) => return Answer { detail: Some(e.to_string()), ..Answer::of(Found::LockHeld) },
        };
        if holding.locked {
            let holders: Vec<String> = holding.holders.iter().map(ToString::to_string).collect();
            let who = if holders.is_empty() {
                "a process that cannot be seen".to_owned()
            } else {
                holders.join(", ")
            };
            let detail =
                format!("{who} has the lock of {} and does not answer: {e}", self.data_dir.display());
            let owner = self.owner().filter(|owner| {
                holding.holders.iter().any(|holder| {
                    (holder.pid, holder.start_ticks) == (owner.process.pid, owner.process.start_ticks)
                })
            });
            return Answer { daemon: owner, detail: Some(detail), ..Answer::of(Found::LockHeld) };
        }
        if !control::is_absent(e) {
            return Answer { detail: Some(e.to_string()), ..Answer::of(Found::LockHeld) };
        }
        let mut answer = Answer::of(Found::Nobody);
        self.await_driver();
        self.settle(&mut answer);
        answer
    }

    /// Who has the data, as the record says, where that process lives.
    fn owner(&self) -> Option<Daemon> {
        let owner = DataDirLock::read_record(&self.data_dir).ok()?.record?.owner;
        Daemon::open(&ProcessId { pid: owner.pid, start_ticks: owner.start_ticks, boot_id: owner.boot_id })
    }

    /// Another driver may have a successor that is about to take over.
    fn await_driver(&self) {
        let until = Instant::now() + DRIVER;
        while is_held(&self.journal) && Instant::now() < until {
            std::thread::sleep(PAUSE);
        }
    }

    /// Finds out how the handoff ended in whose middle an earlier driver died.
    fn settle(&self, answer: &mut Answer) {
        let settled = Supervisor::new(&self.control)
            .map(|supervisor| supervisor.with_journal(&self.journal).with_patience(SETTLING))
            .and_then(|supervisor| supervisor.resume_from_journal());
        match settled {
            Ok(recovered) => answer.recovered = recovered,
            // Somebody drives, or has not let go of it yet.
            Err(Error::Locked { .. }) => {}
            Err(e) => answer.detail = Some(format!("the journal cannot be used: {e}")),
        }
    }
}

/// Nothing is created where there is none yet.
fn is_held(journal: &Path) -> bool {
    journal.exists() && matches!(Journal::open(journal), Err(Error::Locked { .. }))
}

impl Answer {
    fn of(found: Found) -> Self {
        Self { found, daemon: None, listeners: vec![], recovered: None, detail: None }
    }
}
