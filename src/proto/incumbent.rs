//! The incumbent: serves, lets go, decides once, and takes back what comes to nothing.

use super::record::Standing;
use super::{Reason, Terms, Verdict};
use crate::drainable::{DrainReport, ReadinessSnapshot, SealReport};

/// A control connection, as the shell numbers them.
pub type Conn = u64;

/// Where the incumbent is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No handoff is in progress.
    Serving,
    /// A lease is held; nothing has changed yet.
    Prepared,
    /// The drain hook runs.
    Draining,
    /// Intake is stopped and everything is on disk.
    Drained,
    /// The seal hook runs.
    Sealing,
    /// The data is final; the lock is being released.
    Unlocking,
    /// The lock is free. No successor has come yet.
    Sealed,
    /// The successor has sent its pidfd, and may hold the lock.
    Attached,
    /// Granted: the successor makes the record, and the incumbent could still take over.
    StandingBy,
    /// The successor serves on trial.
    Baking,
    /// The successor was told to make its trial final.
    Finalizing,
    /// The successor was asked to stop serving on trial.
    SteppingDown(Reason),
    /// The handoff is undone, but a hook still runs.
    Undoing(Reason),
    /// The successor's tree is being killed.
    Fencing(Reason),
    /// The lock is being taken back.
    Locking(Reason),
    /// The record of the rollback is being made durable.
    Recording(Reason),
    /// The resume hook runs.
    Resuming(Reason),
    /// The incumbent has nothing left to do.
    Gone(End),
}

/// How an incumbent ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The successor serves for good.
    Committed,
    /// It was asked to end without a successor.
    Retired,
    /// The successor made the data its own and died: its program must be started.
    Superseded,
    /// While the lock was being taken back, somebody else made the data its own, and lives.
    Overtaken {
        /// The generation of its record.
        found: u64,
    },
    /// There is no way back to serving.
    Failed(String),
}

/// One run of the protocol, as the incumbent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The connection that holds, or held, the lease.
    pub lease: Conn,
    /// What the driver asked for.
    pub terms: Terms,
    /// What was made final.
    pub sealed: Option<SealReport>,
    /// Whether a successor sent its pidfd: there is somebody to fence.
    pub attached: bool,
}

/// The incumbent's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Where it is.
    pub phase: Phase,
    /// The handoff in progress.
    pub run: Option<Run>,
    /// The generation of the owner record that this incumbent wrote.
    pub generation: u64,
}

/// What came over the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Stop accepting, and finish what is in flight.
    Drain,
    /// Make the data final and let go of the lock.
    Seal,
    /// Undo everything.
    Abort(Reason),
    /// The successor is here; its pidfd is attached.
    Attach,
    /// The successor has opened the data.
    Ready(Opened),
    /// The successor serves on trial.
    Serving,
    /// The successor serves for good.
    Done,
    /// The successor has stopped serving on trial, sealed and unlocked.
    SteppedDown,
    /// No successor comes: end.
    Retire,
    /// Something else that belongs on another connection, or nowhere.
    Foreign(String),
}

/// What a successor has opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Opened {
    /// What it says of itself.
    pub readiness: ReadinessSnapshot,
    /// The fingerprint of the data directory that it opened.
    pub fingerprint: [u8; 32],
}

impl Opened {
    /// Returns why this must not be served: the successor's own checks failed, or it is not what was sealed.
    pub fn mismatch(&self, sealed: Option<&SealReport>) -> Option<Reason> {
        if !self.readiness.healthz_ok {
            return Some(Reason::Unhealthy);
        }
        let sealed = sealed?;
        let opened = &self.readiness.advertised_revision_per_shard;
        if sealed.knows_revisions() && *opened != sealed.last_revision_per_shard {
            return Some(Reason::StaleRevision {
                sealed: sealed.last_revision_per_shard.clone(),
                opened: opened.clone(),
            });
        }
        let differs = sealed.knows_fingerprint() && self.fingerprint != sealed.data_dir_fingerprint;
        differs.then_some(Reason::Fingerprint)
    }
}

/// What the record said when the lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// The record's generation.
    pub generation: u64,
    /// The record's standing.
    pub standing: Standing,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Somebody asked for the lease, or its holder for a new deadline.
    Prepare(Conn, Terms),
    /// A request came over the lease.
    Lease(Request),
    /// The last copy of the lease's other end was closed.
    LeaseLost,
    /// The successor's pidfd became readable.
    SuccessorLost,
    /// Somebody asked on a control connection to end the trial early.
    OperatorCommit(Conn),
    /// Somebody asked on a control connection to undo the handoff.
    OperatorAbort(Conn, String),
    /// The drain hook returned.
    DrainReturned(Result<DrainReport, String>),
    /// The seal hook returned.
    SealReturned(Result<SealReport, String>),
    /// The lock was released, or could not be.
    Unlocked(Result<(), String>),
    /// The successor's tree is dead.
    Fenced,
    /// The lock was taken, and the record read.
    Locked(Found),
    /// The lock is held by somebody else.
    LockBusy,
    /// The lock is held by somebody else, and the record has gone on to this generation for good.
    Overtaken(u64),
    /// The lock or the record cannot be used.
    LockFailed(String),
    /// The record is durable, or could not be made so.
    Persisted(Result<(), String>),
    /// The resume hook returned.
    ResumeReturned(Result<(), String>),
    /// A timer ended.
    Expired(Timer),
}

/// A wait that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// From `prepare` to the latest moment of a grant.
    Deadline,
    /// From the grant, or from the end of a trial, to the successor's word.
    StandBy,
    /// The trial.
    Bake,
    /// From asking a successor to step down to killing it.
    StepDown,
    /// Between two attempts to take the lock.
    Retry,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Answer on a connection that does not hold the lease.
    Answer(Conn, Answer),
    /// Send over the lease.
    Send(Message),
    /// Close the incumbent's end of the lease.
    CloseLease,
    /// Start a timer from now; `Deadline`, `StandBy` and `Bake` take their length from the terms.
    Arm(Timer),
    /// Stop a timer.
    Disarm(Timer),
    /// Run the drain hook.
    CallDrain,
    /// Run the seal hook.
    CallSeal,
    /// Tell a running hook that its result is no longer wanted.
    Interrupt,
    /// Release the lock (`LOCK_UN`).
    Unlock,
    /// Kill the successor's whole tree and wait until it is gone.
    Fence,
    /// Try once to take the lock, and read the record.
    TryLock,
    /// Write a record of this incumbent with this generation, and make it durable.
    Persist(u64),
    /// Run the resume hook.
    CallResume,
    /// Make the control path lead to this incumbent, if it does not.
    BindControl,
    /// Tell everybody who watches.
    Announce(Verdict),
}

/// What the incumbent sends over the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// The lease is granted.
    Prepared(u64),
    /// Everything in flight is finished.
    Drained(DrainReport),
    /// The data is final and the lock is free.
    Sealed(SealReport),
    /// The successor may write.
    Granted,
    /// The successor's trial is over: make the record final.
    Finalize,
    /// The successor's trial is undone: stop, seal and unlock.
    StepDown(Reason),
    /// The handoff is undone.
    Aborted(Reason),
}

/// What the incumbent answers on other connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Another handoff is in progress.
    Busy,
    /// It will be done.
    Accepted,
    /// It will not be done.
    Refused(&'static str),
}

/// What a row of the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Go to this phase and do this.
    Go(Phase, Vec<Action>),
    /// A late or harmless input: stay.
    Ignore,
    /// Our own shell cannot produce this.
    Impossible,
}

use Action::*;
use Message as M;
use Phase as P;
use Row::{Go, Ignore, Impossible};

impl Machine {
    /// Returns an incumbent that serves with a record of this generation.
    pub fn new(generation: u64) -> Self {
        Self { phase: P::Serving, run: None, generation }
    }

    /// Takes one step.
    pub fn step(&mut self, input: Input) -> Result<Vec<Action>, Input> {
        let row = self.row(&input);
        self.apply(&input, row)
    }

    /// Carries a row out on the state. A model uses it to replace a row by a wrong one.
    pub fn apply(&mut self, input: &Input, row: Row) -> Result<Vec<Action>, Input> {
        match row {
            Go(phase, actions) => {
                self.learn(input, &phase);
                self.phase = phase;
                Ok(actions)
            }
            Ignore => Ok(vec![]),
            Impossible => Err(input.clone()),
        }
    }

    /// Returns what the table says for this state and this input.
    pub fn row(&self, input: &Input) -> Row {
        match input {
            Input::Prepare(conn, terms) => self.on_prepare(*conn, terms),
            Input::Lease(request) => self.on_request(request),
            Input::LeaseLost => self.on_lease_lost(),
            Input::SuccessorLost => self.on_successor_lost(),
            Input::OperatorCommit(conn) => self.on_commit(*conn),
            Input::OperatorAbort(conn, detail) => self.on_abort(*conn, detail),
            Input::Expired(timer) => self.on_expired(*timer),
            result => self.on_result(result),
        }
    }

    fn on_prepare(&self, conn: Conn, _terms: &Terms) -> Row {
        match &self.phase {
            P::Serving => Go(P::Prepared, vec![Arm(Timer::Deadline), Send(M::Prepared(self.generation))]),
            // The successor is warm now: the holder of the lease starts the clock of the handoff proper.
            P::Prepared if self.leased_by(conn) => {
                Go(P::Prepared, vec![Arm(Timer::Deadline), Send(M::Prepared(self.generation))])
            }
            P::Gone(_) => Ignore,
            // It is being undone already; what the lease's holder still says changes nothing.
            P::Undoing(_) | P::Fencing(_) | P::Locking(_) | P::Recording(_) | P::Resuming(_)
                if self.leased_by(conn) =>
            {
                Ignore
            }
            _ if self.leased_by(conn) => self.foreign("prepare"),
            _ => Go(self.phase.clone(), vec![Answer(conn, self::Answer::Busy)]),
        }
    }

    fn on_request(&self, request: &Request) -> Row {
        match (&self.phase, request) {
            (P::Prepared, Request::Drain) => Go(P::Draining, vec![CallDrain]),
            (P::Drained, Request::Seal) => Go(P::Sealing, vec![CallSeal]),
            (P::Sealed, Request::Attach) => Go(P::Attached, vec![]),
            (P::Sealed, Request::Retire) => Go(
                P::Gone(End::Retired),
                vec![Disarm(Timer::Deadline), CloseLease, Announce(Verdict::Retired)],
            ),
            (P::Attached, Request::Ready(opened)) => match self.mismatch(opened) {
                None => {
                    Go(P::StandingBy, vec![Disarm(Timer::Deadline), Arm(Timer::StandBy), Send(M::Granted)])
                }
                Some(reason) => self.undo(reason),
            },
            (P::StandingBy, Request::Serving) if self.bakes() => {
                Go(P::Baking, vec![Disarm(Timer::StandBy), Arm(Timer::Bake)])
            }
            (P::StandingBy, Request::Done) if !self.bakes() => committed(),
            (P::Finalizing, Request::Done) => committed(),
            (P::SteppingDown(r), Request::SteppedDown) => fence(r.clone(), vec![Disarm(Timer::StepDown)]),
            // It made itself final before it was asked to step down; the record will tell.
            (P::SteppingDown(_), Request::Done) => Ignore,
            // A successor that came while the lock was being taken back: it is told, and now it can be fenced.
            (P::Locking(r), Request::Attach) => {
                fence(r.clone(), vec![Disarm(Timer::Retry), Send(M::Aborted(r.clone()))])
            }
            // The decision is taken, and the loser is told.
            (P::Recording(r) | P::Resuming(r), Request::Attach) => {
                Go(self.phase.clone(), vec![Send(M::Aborted(r.clone()))])
            }
            (P::Undoing(_) | P::Fencing(_) | P::Locking(_) | P::Recording(_) | P::Resuming(_), _) => Ignore,
            (P::Serving | P::Gone(_), _) => Ignore,
            // The trial is undone by its successor's operator: the successor relays what it was told.
            (P::Baking, Request::Abort(reason)) => step_down(reason.clone()),
            (P::StandingBy | P::Finalizing | P::SteppingDown(_), Request::Abort(_)) => Ignore,
            (_, Request::Abort(reason)) => self.undo(reason.clone()),
            (_, request) => self.foreign(request.name()),
        }
    }

    fn on_lease_lost(&self) -> Row {
        match &self.phase {
            P::Serving | P::Gone(_) => Ignore,
            P::Undoing(_) | P::Fencing(_) | P::Locking(_) | P::Recording(_) | P::Resuming(_) => Ignore,
            _ => self.undo(Reason::LeaseLost),
        }
    }

    fn on_successor_lost(&self) -> Row {
        match &self.phase {
            P::Attached | P::StandingBy | P::Baking | P::Finalizing => self.undo(Reason::SuccessorLost),
            P::SteppingDown(r) => fence(r.clone(), vec![Disarm(Timer::StepDown)]),
            P::Serving | P::Fencing(_) | P::Locking(_) | P::Recording(_) | P::Resuming(_) | P::Gone(_) => {
                Ignore
            }
            // There is no pidfd before `attach`.
            _ => Impossible,
        }
    }

    fn on_commit(&self, conn: Conn) -> Row {
        match &self.phase {
            P::Baking => Go(
                P::Finalizing,
                vec![
                    Disarm(Timer::Bake),
                    Arm(Timer::StandBy),
                    Send(M::Finalize),
                    Answer(conn, self::Answer::Accepted),
                ],
            ),
            P::Finalizing => Go(P::Finalizing, vec![Answer(conn, self::Answer::Accepted)]),
            P::Gone(_) => Ignore,
            phase => refuse(phase, conn, "no successor is on trial here"),
        }
    }

    fn on_abort(&self, conn: Conn, detail: &str) -> Row {
        let reason = Reason::Operator { detail: detail.to_owned() };
        let accepted = Answer(conn, self::Answer::Accepted);
        match &self.phase {
            P::Prepared | P::Draining | P::Drained | P::Sealing | P::Sealed | P::Attached => {
                also(self.undo(reason), accepted)
            }
            P::Baking => also(step_down(reason), accepted),
            P::StandingBy | P::Finalizing => {
                refuse(&self.phase, conn, "too late: the successor has been granted")
            }
            P::SteppingDown(_)
            | P::Undoing(_)
            | P::Fencing(_)
            | P::Locking(_)
            | P::Recording(_)
            | P::Resuming(_) => Go(self.phase.clone(), vec![accepted]),
            P::Serving | P::Unlocking => refuse(&self.phase, conn, "no handoff is in progress"),
            P::Gone(_) => Ignore,
        }
    }

    fn on_expired(&self, timer: Timer) -> Row {
        match (&self.phase, timer) {
            (
                P::Prepared | P::Draining | P::Drained | P::Sealing | P::Sealed | P::Attached,
                Timer::Deadline,
            ) => self.undo(Reason::Deadline),
            (P::StandingBy | P::Finalizing, Timer::StandBy) => self.undo(Reason::SuccessorHung),
            (P::Baking, Timer::Bake) => Go(P::Finalizing, vec![Arm(Timer::StandBy), Send(M::Finalize)]),
            (P::SteppingDown(r), Timer::StepDown) => fence(r.clone(), vec![]),
            (P::Locking(r), Timer::Retry) => Go(P::Locking(r.clone()), vec![TryLock]),
            // Disarmed in the same step as something else was already under way.
            _ => Ignore,
        }
    }

    fn on_result(&self, result: &Input) -> Row {
        match (&self.phase, result) {
            (P::Draining, Input::DrainReturned(Ok(report))) => {
                Go(P::Drained, vec![Send(M::Drained(report.clone()))])
            }
            (P::Draining, Input::DrainReturned(Err(e))) => {
                self.resume(Reason::DrainFailed { detail: e.clone() })
            }
            (P::Sealing, Input::SealReturned(Ok(_))) => Go(P::Unlocking, vec![Unlock]),
            (P::Sealing, Input::SealReturned(Err(e))) => {
                self.resume(Reason::SealFailed { detail: e.clone() })
            }
            (P::Unlocking, Input::Unlocked(Ok(()))) => {
                match self.run.as_ref().and_then(|run| run.sealed.clone()) {
                    Some(report) => Go(P::Sealed, vec![Send(M::Sealed(report))]),
                    None => Impossible,
                }
            }
            (P::Unlocking, Input::Unlocked(Err(e))) => self.resume(Reason::SealFailed { detail: e.clone() }),
            (P::Undoing(r), Input::DrainReturned(_) | Input::SealReturned(_)) => self.resume(r.clone()),
            (P::Fencing(r), Input::Fenced) => Go(P::Locking(r.clone()), vec![TryLock]),
            (P::Locking(r), Input::Locked(found)) => self.took_back(r, *found),
            (P::Locking(r), Input::LockBusy) => Go(P::Locking(r.clone()), vec![Arm(Timer::Retry)]),
            // What is final is never given back: there is nothing to wait for.
            (P::Locking(_), Input::Overtaken(found)) => {
                let end = End::Overtaken { found: *found };
                Go(P::Gone(end), vec![CloseLease, Announce(Verdict::Superseded)])
            }
            (P::Locking(r), Input::LockFailed(e)) => failed(r, e),
            (P::Recording(r), Input::Persisted(Ok(()))) => Go(P::Resuming(r.clone()), vec![CallResume]),
            (P::Recording(r), Input::Persisted(Err(e))) => failed(r, e),
            (P::Resuming(r), Input::ResumeReturned(Ok(()))) => {
                let verdict = Verdict::RolledBack { reason: r.clone() };
                Go(P::Serving, vec![BindControl, Send(M::Aborted(r.clone())), CloseLease, Announce(verdict)])
            }
            (P::Resuming(r), Input::ResumeReturned(Err(e))) => failed(r, e),
            _ => Impossible,
        }
    }

    /// The lock is back: whose data is it?
    fn took_back(&self, reason: &Reason, found: Found) -> Row {
        if found.generation != self.generation && found.standing == Standing::Final {
            return Go(P::Gone(End::Superseded), vec![CloseLease, Announce(Verdict::Superseded)]);
        }
        Go(P::Recording(reason.clone()), vec![Persist(found.generation.max(self.generation) + 1)])
    }

    fn undo(&self, reason: Reason) -> Row {
        match &self.phase {
            P::Prepared => {
                let verdict = Verdict::RolledBack { reason: reason.clone() };
                Go(
                    P::Serving,
                    vec![Disarm(Timer::Deadline), Send(M::Aborted(reason)), CloseLease, Announce(verdict)],
                )
            }
            P::Draining | P::Sealing => Go(P::Undoing(reason), vec![Disarm(Timer::Deadline), Interrupt]),
            P::Drained => self.resume(reason),
            P::Sealed => Go(
                P::Locking(reason.clone()),
                vec![Disarm(Timer::Deadline), Send(M::Aborted(reason)), TryLock],
            ),
            P::Attached => fence(reason.clone(), vec![Disarm(Timer::Deadline), Send(M::Aborted(reason))]),
            P::StandingBy | P::Finalizing => fence(reason, vec![Disarm(Timer::StandBy)]),
            P::Baking => fence(reason, vec![Disarm(Timer::Bake)]),
            P::SteppingDown(_) => fence(reason, vec![Disarm(Timer::StepDown)]),
            _ => Impossible,
        }
    }

    fn resume(&self, reason: Reason) -> Row {
        Go(P::Resuming(reason), vec![Disarm(Timer::Deadline), CallResume])
    }

    fn foreign(&self, got: &str) -> Row {
        let detail = format!("{got} is not expected in phase {}", self.phase.name());
        self.undo(Reason::Protocol { detail })
    }

    fn mismatch(&self, opened: &Opened) -> Option<Reason> {
        opened.mismatch(self.run.as_ref().and_then(|run| run.sealed.as_ref()))
    }

    fn leased_by(&self, conn: Conn) -> bool {
        self.run.as_ref().is_some_and(|run| run.lease == conn)
    }

    fn bakes(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.terms.bake_ms.is_some())
    }

    /// Keeps what an input told that later rows ask for.
    fn learn(&mut self, input: &Input, next: &Phase) {
        match input {
            // A second driver that is told `busy` in this phase changes nothing.
            Input::Prepare(conn, terms)
                if *next == P::Prepared && (self.phase == P::Serving || self.leased_by(*conn)) =>
            {
                self.run = Some(Run { lease: *conn, terms: terms.clone(), sealed: None, attached: false });
            }
            Input::SealReturned(Ok(report)) => {
                if let Some(run) = &mut self.run {
                    run.sealed = Some(report.clone());
                }
            }
            Input::Lease(Request::Attach) => {
                if let Some(run) = &mut self.run {
                    run.attached = true;
                }
            }
            Input::Locked(found) if matches!(next, P::Recording(_)) => {
                self.generation = found.generation.max(self.generation) + 1;
            }
            _ => {}
        }
        if *next == P::Serving {
            self.run = None;
        }
    }
}

fn committed() -> Row {
    Go(P::Gone(End::Committed), vec![Disarm(Timer::StandBy), CloseLease, Announce(Verdict::Committed)])
}

fn fence(reason: Reason, mut first: Vec<Action>) -> Row {
    first.push(Fence);
    Go(P::Fencing(reason), first)
}

fn step_down(reason: Reason) -> Row {
    Go(
        P::SteppingDown(reason.clone()),
        vec![Disarm(Timer::Bake), Arm(Timer::StepDown), Send(M::StepDown(reason))],
    )
}

fn failed(reason: &Reason, error: &str) -> Row {
    let detail = format!("{reason}; then {error}");
    Go(P::Gone(End::Failed(detail.clone())), vec![CloseLease, Announce(Verdict::NothingServing { detail })])
}

fn refuse(phase: &Phase, conn: Conn, why: &'static str) -> Row {
    Go(phase.clone(), vec![Answer(conn, self::Answer::Refused(why))])
}

fn also(row: Row, action: Action) -> Row {
    match row {
        // First: what comes last may be an action whose result is the next input.
        Go(phase, mut actions) => {
            actions.insert(0, action);
            Go(phase, actions)
        }
        other => other,
    }
}

impl Phase {
    /// Returns the phase's name, as `status` shows it.
    pub fn name(&self) -> &'static str {
        match self {
            P::Serving => "serving",
            P::Prepared => "prepared",
            P::Draining => "draining",
            P::Drained => "drained",
            P::Sealing => "sealing",
            P::Unlocking => "unlocking",
            P::Sealed => "sealed",
            P::Attached => "attached",
            P::StandingBy => "standing-by",
            P::Baking => "baking",
            P::Finalizing => "finalizing",
            P::SteppingDown(_) => "stepping-down",
            P::Undoing(_) => "undoing",
            P::Fencing(_) => "fencing",
            P::Locking(_) => "locking",
            P::Recording(_) => "recording",
            P::Resuming(_) => "resuming",
            P::Gone(_) => "gone",
        }
    }
}

impl Request {
    fn name(&self) -> &str {
        match self {
            Self::Drain => "drain",
            Self::Seal => "seal",
            Self::Abort(_) => "abort",
            Self::Attach => "attach",
            Self::Ready(_) => "ready",
            Self::Serving => "serving",
            Self::Done => "done",
            Self::SteppedDown => "stepped-down",
            Self::Retire => "retire",
            Self::Foreign(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(revisions: &[u64], fingerprint: u8) -> Opened {
        let readiness = ReadinessSnapshot {
            listening_on: vec![],
            healthz_ok: true,
            advertised_revision_per_shard: revisions.to_vec(),
        };
        Opened { readiness, fingerprint: [fingerprint; 32] }
    }

    fn sealed(revisions: &[u64], fingerprint: u8) -> SealReport {
        SealReport { last_revision_per_shard: revisions.to_vec(), data_dir_fingerprint: [fingerprint; 32] }
    }

    #[test]
    fn what_was_not_known_when_it_was_sealed_is_not_compared() {
        assert_eq!(opened(&[7], 5).mismatch(Some(&sealed(&[], 0))), None);
        assert_eq!(opened(&[7], 5).mismatch(Some(&sealed(&[7], 0))), None);
        assert_eq!(opened(&[7], 5).mismatch(Some(&sealed(&[], 5))), None);
        assert_eq!(opened(&[], 0).mismatch(Some(&sealed(&[], 0))), None);
    }

    #[test]
    fn what_was_known_must_be_found_also_by_who_does_not_know_it() {
        let stale = Reason::StaleRevision { sealed: vec![7], opened: vec![] };
        assert_eq!(opened(&[], 5).mismatch(Some(&sealed(&[7], 5))), Some(stale));
        assert_eq!(opened(&[7], 0).mismatch(Some(&sealed(&[7], 5))), Some(Reason::Fingerprint));
        assert_eq!(opened(&[7], 5).mismatch(Some(&sealed(&[], 4))), Some(Reason::Fingerprint));
    }

    #[test]
    fn an_unhealthy_successor_is_refused_whatever_is_known() {
        let mut opened = opened(&[], 0);
        opened.readiness.healthz_ok = false;
        assert_eq!(opened.mismatch(Some(&sealed(&[], 0))), Some(Reason::Unhealthy));
    }
}
