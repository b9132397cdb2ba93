//! Who serves, when a driver died or its peers fell silent: the control path, the lock and the record are asked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::data_dir::{self, DataDirLock};
use crate::error;
use crate::journal::{self, Actor, Event, HandoffSummary, Journal};
use crate::proto::driver::{Outcome, Refusal};
use crate::proto::party::{ProcessId, Tree};
use crate::proto::record::{OwnerRecord, Standing, boot_program};
use crate::proto::recovery::{Answer, Conclusion, Facts, Who, conclude};
use crate::proto::wire::Status;
use crate::sys::process::PidFd;
use crate::sys::{poll, tree};

/// How long one daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the parties are asked after a restart, before nobody knows.
pub(crate) const INQUIRY: Duration = Duration::from_secs(10);
/// How long a process that was killed may take to die.
const DYING: Duration = Duration::from_secs(1);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(50);

/// What a recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The handoff that was left open.
    pub handoff_id: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// The parties to a handoff, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parties {
    pub lock_file: Option<PathBuf>,
    pub incumbent: Option<ProcessId>,
    pub successor: Option<ProcessId>,
    /// What the handoff began with.
    pub generation: Option<u64>,
    /// What the successor was to be started from.
    pub program: SuccessorsProgram,
    /// Whether the incumbent said that it becomes the successor's program, as the same process.
    pub superseded: bool,
}

/// A program, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct SuccessorsProgram {
    pub binary: Option<PathBuf>,
    pub build_id: Option<String>,
}

impl SuccessorsProgram {
    /// Where nothing is known, any daemon may run it. A daemon may say another build id than the one that its linker left.
    fn is_run_by(&self, status: &Status) -> bool {
        let is_binary = |path: &PathBuf| {
            let running = Path::new(&status.binary);
            // The kernel names what the links lead to.
            path == running || path.canonicalize().is_ok_and(|path| path == running)
        };
        let same_binary = self.binary.as_ref().map(is_binary);
        let same_build = self.build_id.as_ref().map(|id| !id.is_empty() && *id == status.build_id);
        match (same_binary, same_build) {
            (None, None) => true,
            (same_binary, same_build) => same_binary == Some(true) || same_build == Some(true),
        }
    }
}

/// Finds out how the handoff that was left open in the journal ended, and records it.
pub(crate) fn recover(
    journal: &Path,
    control: &Path,
    patience: Duration,
) -> error::Result<Option<Recovered>> {
    recover_in(&mut Journal::open(journal)?, control, patience)
}

/// The same, in a journal that this process holds.
pub(crate) fn recover_in(
    journal: &mut Journal,
    control: &Path,
    patience: Duration,
) -> error::Result<Option<Recovered>> {
    let Some(open) = journal::unfinished(&journal.contents()?.records) else { return Ok(None) };
    let parties = Parties::of(&open.handoff);
    let left = left_behind(&open.handoff);
    let handoff_id = open.handoff.id;
    let (outcome, events) = match inquire_for(control, &parties, patience) {
        Ok(outcome) => {
            if let Some(left) = left.filter(|_| is_undone(&outcome)) {
                end_left_behind(&left, &parties);
            }
            (outcome.clone(), found(&parties, &outcome))
        }
        // It stays open, for the next one to ask again.
        Err(detail) => (Outcome::Undecided(detail.clone()), vec![Event::Undecided { detail }]),
    };
    for event in events {
        journal.append(&handoff_id, Actor::Driver, event)?;
    }
    journal.sync()?;
    Ok(Some(Recovered { handoff_id, outcome }))
}

/// Returns the successor, where its driver started it and the journal says so.
fn left_behind(handoff: &HandoffSummary) -> Option<ProcessId> {
    let Some(Event::Begun { successor, .. }) = &handoff.begun else { return None };
    successor.clone()
}

fn is_undone(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::RolledBack(_) | Outcome::NothingServing(_))
}

/// Kills the successor of a handoff that is undone, as its driver would have done: one that hangs does not notice that nobody waits for it, and has the
/// listening sockets.
///
/// One that has the lock is left alone: it has just taken over, as after a crash.
fn end_left_behind(process: &ProcessId, parties: &Parties) {
    let Ok(leader) = PidFd::open(process.pid) else { return };
    let is_it = ProcessId::of(process.pid).is_ok_and(|found| found == *process);
    let holds = || {
        let path = parties.lock_file.as_ref()?;
        let holders = DataDirLock::who(path).ok()?;
        Some(holders.iter().any(|holder| holder.pid == process.pid))
    };
    if !is_it || leader.is_dead().unwrap_or(true) || holds() != Some(false) {
        return;
    }
    tracing::warn!(%process, "the successor of a handoff that is undone is still there: killing it");
    let until = || Instant::now() + DYING;
    // A driver starts it in a session of its own.
    let killed = tree::kill(Some(&leader), &Tree::Session { sid: process.pid }, until())
        .or_else(|_| tree::kill(Some(&leader), &Tree::Lone, until()));
    if let Err(e) = killed {
        tracing::warn!(error = %e, %process, "unable to kill it");
    }
}

/// What a recovery writes down of an answer that is final.
fn found(parties: &Parties, outcome: &Outcome) -> Vec<Event> {
    let plain = if *outcome == Outcome::Retired { "retired" } else { "committed" };
    let conclusion = reason_of(outcome).unwrap_or_else(|| plain.to_owned());
    let ended = match outcome {
        Outcome::Committed => parties.record().map(|record| committed(&record)),
        Outcome::RolledBack(reason) => {
            Some(Event::RolledBack { reason: reason.to_string(), cause: Some(reason.kind().to_owned()) })
        }
        Outcome::Retired => Some(Event::Retired),
        Outcome::Refused(_) | Outcome::NothingServing(_) | Outcome::Undecided(_) => None,
    };
    ended.into_iter().chain([Event::Recovered { conclusion }]).collect()
}

fn committed(record: &OwnerRecord) -> Event {
    Event::Committed {
        generation: record.generation,
        binary: record.owner.binary.clone(),
        args: record.owner.args.clone(),
        build_id: record.owner.build_id.clone(),
        gap_us: None,
    }
}

/// Asks until an answer is final, or for so long that nobody knows.
pub(crate) fn inquire(control: &Path, parties: &Parties, patience: Duration) -> Outcome {
    inquire_for(control, parties, patience).unwrap_or_else(Outcome::Undecided)
}

/// The same; what is still going on when its time is up is the error.
fn inquire_for(control: &Path, parties: &Parties, patience: Duration) -> Result<Outcome, String> {
    let until = poll::after(patience);
    loop {
        let facts = parties.facts(control);
        match conclude(&facts) {
            Conclusion::Ended(outcome) => return Ok(outcome),
            Conclusion::GoingOn if until.is_none_or(|until| Instant::now() < until) => {
                std::thread::sleep(PAUSE);
            }
            Conclusion::GoingOn => return Err(going_on(&facts).to_owned()),
            Conclusion::StartFrom(_) | Conclusion::StartAnything => {
                return Ok(Outcome::NothingServing(parties.what_to_start()));
            }
        }
    }
}

fn going_on(facts: &Facts) -> &'static str {
    match facts.answer {
        Some(_) => "a handoff is still going on: see handoff status",
        None => {
            "a process holds the data directory's lock but does not answer on the control path: see handoff status"
        }
    }
}

/// Returns why a successor does not serve, as a sentence.
pub(crate) fn reason_of(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Committed | Outcome::Retired => None,
        Outcome::RolledBack(reason) => Some(reason.to_string()),
        Outcome::Refused(Refusal::Busy { handoff, phase, age_ms }) => {
            Some(format!("busy: handoff {handoff} has been going on for {age_ms} ms and is in phase {phase}"))
        }
        Outcome::Refused(Refusal::Declined(reason)) => Some(reason.clone()),
        Outcome::Refused(Refusal::Lost) => Some("the incumbent went away before it answered".to_owned()),
        Outcome::NothingServing(detail) | Outcome::Undecided(detail) => Some(detail.clone()),
    }
}

impl Parties {
    fn of(handoff: &HandoffSummary) -> Self {
        let Some(Event::Begun { binary, build_id, data_dir, lock_file, generation, incumbent, .. }) =
            &handoff.begun
        else {
            return Self::default();
        };
        Self {
            lock_file: data_dir
                .as_ref()
                .map(|dir| dir.join(lock_file.as_deref().unwrap_or(data_dir::FILE_NAME))),
            incumbent: incumbent.clone(),
            successor: None,
            generation: *generation,
            program: SuccessorsProgram { binary: binary.clone(), build_id: build_id.clone() },
            superseded: false,
        }
    }

    fn facts(&self, control: &Path) -> Facts {
        let deadline = Instant::now() + ANSWER;
        let status =
            Control::connect(control, "handoff recovery", deadline).and_then(|mut c| c.status(deadline)).ok();
        let answer = status.map(|status| Answer { who: self.who(&status), busy: status.handoff.is_some() });
        let locked = self
            .lock_file
            .as_ref()
            .is_some_and(|path| DataDirLock::holding(path).is_ok_and(|holding| holding.locked));
        Facts { answer, locked, record: self.record().map(|record| record.standing) }
    }

    /// The incumbent keeps its process, whatever generation it serves as after a rollback. Where nobody knows the
    /// successor's process, its program and its first generation tell: the next one. The generation alone is also that of an old
    /// daemon that was started again.
    fn who(&self, status: &Status) -> Who {
        if self.superseded {
            // The data is the successor's: whoever answers now, started from it.
            return Who::Successor;
        }
        let is_next = || {
            let next = self.generation.and_then(|generation| generation.checked_add(1));
            next == Some(status.generation) && self.program.is_run_by(status)
        };
        if self.incumbent.as_ref() == Some(&status.process) {
            Who::Incumbent
        } else if self.successor.as_ref().map_or_else(is_next, |process| *process == status.process) {
            Who::Successor
        } else {
            Who::Other
        }
    }

    /// Returns the owner record, where it can be found and read.
    pub(crate) fn record(&self) -> Option<OwnerRecord> {
        DataDirLock::read_record(self.lock_file.as_ref()?).ok()?.record
    }

    fn what_to_start(&self) -> String {
        let Some(record) = self.record() else {
            return "nobody serves, and no owner record says what to start".to_owned();
        };
        let program = boot_program(&record);
        let standing = match record.standing {
            Standing::Trial => "the program before the one that was on trial",
            Standing::Final => "the program of the last owner",
        };
        let command: Vec<String> = std::iter::once(program.binary.display().to_string())
            .chain(program.args.iter().cloned())
            .collect();
        let place = program.directory.map_or(String::new(), |dir| format!(", in {}", dir.display()));
        format!("nobody serves; start {standing}{place}: {}", command.join(" "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn begun(data_dir: &Path) -> Event {
        Event::Begun {
            binary: Some("/bin/kvd-v2".into()),
            args: vec![],
            build_id: None,
            control: "/run/kv/control".into(),
            data_dir: Some(data_dir.to_owned()),
            lock_file: None,
            generation: Some(1),
            incumbent: None,
            by: None,
            successor: None,
        }
    }

    fn status_of(binary: &str, build_id: &str) -> Status {
        Status {
            role: "incumbent".into(),
            phase: "serving".into(),
            process: ProcessId { pid: 7, start_ticks: 7, boot_id: "b".into() },
            build_id: build_id.into(),
            binary: binary.into(),
            generation: 2,
            data_dir: "/data".into(),
            lock_file: data_dir::FILE_NAME.into(),
            handoff: None,
            state: crate::drainable::StateSnapshot::default(),
            listeners: vec![],
            locked: true,
            uptime_ms: 1,
        }
    }

    #[test]
    fn an_old_daemon_that_was_started_again_is_not_taken_for_the_successor() {
        let program = SuccessorsProgram { binary: Some("/bin/kvd-v2".into()), build_id: Some("v2".into()) };
        let parties = Parties { generation: Some(1), program, ..Parties::default() };
        assert_eq!(parties.who(&status_of("/bin/kvd-v1", "v1")), Who::Other);
        assert_eq!(parties.who(&status_of("/bin/kvd-v2", "its own")), Who::Successor);
        assert_eq!(parties.who(&status_of("/moved", "v2")), Who::Successor);
        let unknown = Parties { generation: Some(1), ..Parties::default() };
        assert_eq!(unknown.who(&status_of("/bin/kvd-v1", "v1")), Who::Successor);
    }

    #[test]
    fn a_successor_that_its_driver_left_behind_is_ended_and_no_stranger() {
        let dir = tempfile::tempdir().unwrap();
        let (path, control) = (dir.path().join("journal"), dir.path().join("control"));
        let mut left = std::process::Command::new("setsid").args(["sleep", "600"]).spawn().unwrap();
        let with_successor = |id: &str, process: ProcessId| {
            let Event::Begun { binary, args, build_id, control, data_dir, lock_file, generation, .. } =
                begun(dir.path())
            else {
                unreachable!()
            };
            let (incumbent, by, successor) = (None, None, Some(process));
            let entry = Event::Begun {
                binary,
                args,
                build_id,
                control,
                data_dir,
                lock_file,
                generation,
                incumbent,
                by,
                successor,
            };
            Journal::open(&path).unwrap().append(id, Actor::Driver, entry).unwrap();
        };
        let process = ProcessId::of(left.id()).unwrap();
        // Somebody else's pid by now: another start time.
        with_successor("h1", ProcessId { start_ticks: 1, ..process.clone() });
        drop(DataDirLock::acquire(dir.path()).unwrap());
        recover(&path, &control, Duration::ZERO).unwrap().unwrap();
        assert!(left.try_wait().unwrap().is_none());
        with_successor("h2", process);
        let recovered = recover(&path, &control, Duration::ZERO).unwrap().unwrap();
        assert!(matches!(recovered.outcome, Outcome::NothingServing(_)), "{recovered:?}");
        assert!(!left.wait().unwrap().success());
    }

    #[test]
    fn what_cannot_be_decided_yet_is_asked_again_by_the_next_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let (path, control) = (dir.path().join("journal"), dir.path().join("control"));
        let mut journal = Journal::open(&path).unwrap();
        journal.append("h1", Actor::Driver, begun(dir.path())).unwrap();
        // Somebody holds it and does not answer.
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        let recovered = recover_in(&mut journal, &control, Duration::ZERO).unwrap().unwrap();
        assert!(matches!(recovered.outcome, Outcome::Undecided(_)), "{recovered:?}");
        drop(lock);
        let recovered = recover_in(&mut journal, &control, Duration::ZERO).unwrap().unwrap();
        assert!(matches!(recovered.outcome, Outcome::NothingServing(_)), "{recovered:?}");
        assert_eq!(recover_in(&mut journal, &control, Duration::ZERO).unwrap(), None, "that was final");
    }
}
