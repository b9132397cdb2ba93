//! The driver: asks for one phase after another, passes the lease on, and waits for the verdict.

use super::{Reason, Verdict};

/// Where the driver is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It asked for the lease.
    Preparing,
    /// It has the lease; the successor starts and warms up.
    Warming,
    /// The successor waits; the clock of the handoff proper is being started.
    Rearming,
    /// The incumbent drains.
    Draining,
    /// The incumbent seals.
    Sealing,
    /// The incumbent was told to undo; its word that it serves is awaited.
    Aborting(Reason),
    /// The lease is passed on: the incumbent decides.
    Deciding,
    /// The successor serves on trial.
    Baking,
    /// The incumbent died: the successor may serve.
    Orphaned,
    /// Both are silent or gone: the lock, the record and the control path are being asked.
    Inquiring,
    /// The outcome is known; the successor was told to go, and its end is awaited.
    Dismissing(Outcome),
    /// The end.
    Done(Outcome),
}

/// How a swap ended, as far as its driver can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The successor serves.
    Committed,
    /// The incumbent serves.
    RolledBack(Reason),
    /// Nothing was begun.
    Refused(Refusal),
    /// Nobody serves, and a person or a supervisor must act.
    NothingServing(String),
    /// It is not known who serves.
    Undecided(String),
}

/// Why nothing was begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another handoff is in progress.
    Busy {
        /// Its id.
        handoff: String,
        /// Its phase.
        phase: String,
        /// How long it has been going on, in milliseconds.
        age_ms: u64,
    },
    /// The incumbent will not.
    Declined(String),
    /// The incumbent went away before it answered.
    Lost,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The incumbent's word: the lease is granted, and the record has this generation.
    Prepared(u64),
    /// The incumbent's word, or none: nothing was begun.
    Refused(Refusal),
    /// The incumbent's word: everything in flight is finished.
    Drained,
    /// The incumbent's word: the data is final and the lock is free.
    Sealed,
    /// The incumbent's word: it serves again.
    Aborted(Reason),
    /// The lease's other end closed.
    LeaseLost,
    /// What those who watch are told.
    Verdict(Verdict),
    /// The connection that watches closed without a verdict.
    WatchLost,
    /// The successor could not be started.
    SpawnFailed(String),
    /// The successor's word: it is warm.
    Waiting,
    /// The successor's word: it serves on trial.
    Serving,
    /// The successor's word: it serves for good.
    SuccessorDone,
    /// The successor's word: it gives up.
    SuccessorFailed(Reason),
    /// The successor's process ended and everything that it said has been read, or there never was one.
    SuccessorLost,
    /// The person at the terminal, or the health check, asked to undo.
    Cancel(String),
    /// What the lock, the record and the control path say.
    Concluded(Outcome),
    /// A timer ended.
    Expired(Timer),
}

/// A wait that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// An answer that needs no work.
    Answer,
    /// The successor's warm-up.
    WarmUp,
    /// The incumbent's deadline and a margin: by then a verdict, or the incumbent is silent.
    Silence,
    /// From telling a successor to go to killing it.
    Dismissal,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask for the lease, for as long as a warm-up may take.
    SendPrepare,
    /// Ask for the deadline of the handoff proper.
    SendTerms,
    /// Ask the incumbent to drain.
    SendDrain,
    /// Ask the incumbent to seal.
    SendSeal,
    /// Ask the incumbent, over the lease, to undo.
    SendAbort(Reason),
    /// Ask the incumbent, over the watching connection, to undo the trial.
    SendCancel(String),
    /// Start the successor.
    Spawn,
    /// Send `begin` and the lease to the successor.
    PassLease,
    /// Close this copy of the lease.
    CloseLease,
    /// Tell the successor, if it runs, that the handoff is undone.
    Dismiss(Reason),
    /// Kill the successor's whole tree.
    KillSuccessor,
    /// Kill the incumbent, which says nothing.
    FenceIncumbent,
    /// Ask the lock, the record and the control path.
    Inquire,
    /// Start a timer from now.
    Arm(Timer),
    /// Stop a timer.
    Disarm(Timer),
}

/// The driver's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Where it is.
    pub phase: Phase,
}

/// What a row of the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Go to this phase and do this.
    Go(Phase, Vec<Action>),
    /// A late or harmless input: stay.
    Ignore,
}

use Action::*;
use Phase as P;
use Row::{Go, Ignore};

impl Machine {
    /// Returns a driver that asks for the lease, and its first actions.
    pub fn start() -> (Self, Vec<Action>) {
        (Self { phase: P::Preparing }, vec![Arm(Timer::Answer), SendPrepare])
    }

    /// Takes one step.
    pub fn step(&mut self, input: &Input) -> Vec<Action> {
        let row = self.row(input);
        self.apply(row)
    }

    /// Carries a row out on the state. A model uses it to replace a row by a wrong one.
    pub fn apply(&mut self, row: Row) -> Vec<Action> {
        match row {
            Go(phase, actions) => {
                self.phase = phase;
                actions
            }
            Ignore => vec![],
        }
    }

    /// Returns what the table says for this state and this input.
    pub fn row(&self, input: &Input) -> Row {
        match input {
            Input::Waiting | Input::Serving | Input::SuccessorDone | Input::SpawnFailed(_) => {
                self.on_successor(input)
            }
            Input::SuccessorFailed(reason) => self.on_successor_gone(reason.clone()),
            Input::SuccessorLost => match &self.phase {
                P::Dismissing(outcome) => Go(P::Done(outcome.clone()), vec![Disarm(Timer::Dismissal)]),
                _ => self.on_successor_gone(Reason::SuccessorLost),
            },
            Input::Verdict(verdict) => self.on_verdict(verdict),
            Input::LeaseLost => self.on_lease_lost(),
            Input::WatchLost => self.on_watch_lost(),
            Input::Cancel(detail) => self.on_cancel(detail),
            Input::Expired(timer) => self.on_expired(*timer),
            Input::Concluded(outcome) => match &self.phase {
                P::Inquiring => self.end(outcome.clone()),
                _ => Ignore,
            },
            word => self.on_word(word),
        }
    }

    fn on_word(&self, word: &Input) -> Row {
        match (&self.phase, word) {
            (P::Preparing, Input::Prepared(_)) => {
                Go(P::Warming, vec![Disarm(Timer::Answer), Arm(Timer::WarmUp), Spawn])
            }
            (P::Preparing, Input::Refused(refusal)) => self.end(Outcome::Refused(refusal.clone())),
            (P::Rearming, Input::Prepared(_)) => {
                Go(P::Draining, vec![Disarm(Timer::Answer), Arm(Timer::Silence), SendDrain])
            }
            (P::Draining, Input::Drained) => Go(P::Sealing, vec![SendSeal]),
            (P::Sealing, Input::Sealed) => Go(P::Deciding, vec![PassLease, CloseLease]),
            // The incumbent undid it, by itself or as it was asked: it serves.
            (
                P::Preparing | P::Warming | P::Rearming | P::Draining | P::Sealing | P::Aborting(_),
                Input::Aborted(reason),
            ) => self.end(Outcome::RolledBack(reason.clone())),
            // What is still on its way when the lease is passed on is for the successor to read.
            _ => Ignore,
        }
    }

    fn on_successor(&self, news: &Input) -> Row {
        match (&self.phase, news) {
            (P::Warming, Input::Waiting) => {
                Go(P::Rearming, vec![Disarm(Timer::WarmUp), Arm(Timer::Answer), SendTerms])
            }
            (P::Warming, Input::SpawnFailed(detail)) => abort(Reason::SpawnFailed { detail: detail.clone() }),
            (P::Deciding, Input::Serving) => Go(P::Baking, vec![Arm(Timer::Silence)]),
            // Whether it was granted or the incumbent died: it has the lock, and its record is final.
            (P::Done(_), Input::SuccessorDone) => Ignore,
            (_, Input::SuccessorDone) => self.end(Outcome::Committed),
            _ => Ignore,
        }
    }

    fn on_successor_gone(&self, reason: Reason) -> Row {
        match &self.phase {
            P::Warming | P::Rearming | P::Draining | P::Sealing => abort(reason),
            P::Orphaned => inquire(reason),
            // It says that it goes, and its end follows.
            P::Dismissing(_) => Ignore,
            // The incumbent sees it too, and decides.
            P::Deciding | P::Baking => Ignore,
            P::Preparing | P::Aborting(_) | P::Inquiring | P::Done(_) => Ignore,
        }
    }

    fn on_verdict(&self, verdict: &Verdict) -> Row {
        match (&self.phase, verdict) {
            (P::Dismissing(_) | P::Done(_), _) => Ignore,
            (_, Verdict::Committed) => self.end(Outcome::Committed),
            (_, Verdict::RolledBack { reason }) => self.end(Outcome::RolledBack(reason.clone())),
            // It cannot go back and is on its way out, and a successor that waits takes the lock then.
            (
                P::Warming | P::Rearming | P::Draining | P::Sealing | P::Deciding | P::Baking,
                Verdict::NothingServing { .. },
            ) => Go(P::Orphaned, vec![CloseLease, Arm(Timer::Silence)]),
            (P::Orphaned, Verdict::NothingServing { .. }) => Ignore,
            (_, Verdict::NothingServing { detail }) => self.end(Outcome::NothingServing(detail.clone())),
            (_, Verdict::Superseded) => inquire(Reason::SuccessorLost),
            (_, Verdict::Unknown) => inquire(Reason::Protocol {
                detail: "the handoff ended in a way that this driver has no word for".to_owned(),
            }),
        }
    }

    fn on_lease_lost(&self) -> Row {
        match &self.phase {
            P::Preparing => self.end(Outcome::Refused(Refusal::Lost)),
            // The successor watches the incumbent's pidfd, and takes the lock if it is dead.
            P::Warming | P::Rearming | P::Draining | P::Sealing => {
                Go(P::Orphaned, vec![CloseLease, Arm(Timer::Silence)])
            }
            P::Aborting(reason) => {
                Go(P::Orphaned, vec![CloseLease, Arm(Timer::Silence), Dismiss(reason.clone())])
            }
            P::Deciding | P::Baking | P::Orphaned | P::Inquiring | P::Dismissing(_) | P::Done(_) => Ignore,
        }
    }

    fn on_watch_lost(&self) -> Row {
        match &self.phase {
            P::Deciding | P::Baking => Go(P::Orphaned, vec![Arm(Timer::Silence)]),
            _ => Ignore,
        }
    }

    fn on_cancel(&self, detail: &str) -> Row {
        let reason = Reason::Operator { detail: detail.to_owned() };
        match &self.phase {
            P::Preparing => self.end(Outcome::RolledBack(reason)),
            P::Warming | P::Rearming | P::Draining | P::Sealing => abort(reason),
            P::Deciding | P::Baking => Go(self.phase.clone(), vec![SendCancel(detail.to_owned())]),
            P::Aborting(_) | P::Orphaned | P::Inquiring | P::Dismissing(_) | P::Done(_) => Ignore,
        }
    }

    fn on_expired(&self, timer: Timer) -> Row {
        match (&self.phase, timer) {
            (P::Preparing, Timer::Answer) => {
                self.end(Outcome::Refused(Refusal::Declined("no answer in time".to_owned())))
            }
            (P::Warming, Timer::WarmUp) => abort(Reason::NotWarm),
            (P::Rearming, Timer::Answer) => abort(Reason::IncumbentSilent),
            (P::Draining | P::Aborting(_), Timer::Silence) => inquire(Reason::IncumbentSilent),
            // It may have sealed, and then nobody serves until it is out of the way.
            (P::Sealing | P::Deciding | P::Baking, Timer::Silence) => {
                Go(P::Orphaned, vec![FenceIncumbent, CloseLease, Arm(Timer::Silence)])
            }
            // Whoever is left kills a successor that hangs.
            (P::Orphaned, Timer::Silence) => Go(P::Inquiring, vec![CloseLease, KillSuccessor, Inquire]),
            (P::Dismissing(outcome), Timer::Dismissal) => {
                Go(P::Dismissing(outcome.clone()), vec![KillSuccessor])
            }
            _ => Ignore,
        }
    }

    /// Ends with this outcome, but not before a successor that is not needed any more has ended.
    ///
    /// It is told first and killed last: if the incumbent dies now, the successor may take the lock and serve, and then
    /// it says so and the outcome is another one.
    fn end(&self, outcome: Outcome) -> Row {
        let reason = match &outcome {
            Outcome::RolledBack(reason) => reason.clone(),
            Outcome::NothingServing(detail) | Outcome::Undecided(detail) => {
                Reason::Failed { detail: detail.clone() }
            }
            Outcome::Committed | Outcome::Refused(_) => return Go(P::Done(outcome), closing(None)),
        };
        match &self.phase {
            P::Preparing => Go(P::Done(outcome), closing(None)),
            _ => Go(P::Dismissing(outcome), closing(Some(reason))),
        }
    }
}

fn closing(dismissed: Option<Reason>) -> Vec<Action> {
    let mut actions = vec![
        Disarm(Timer::Answer),
        Disarm(Timer::WarmUp),
        Disarm(Timer::Silence),
        Disarm(Timer::Dismissal),
        CloseLease,
    ];
    if let Some(reason) = dismissed {
        actions.extend([Arm(Timer::Dismissal), Dismiss(reason)]);
    }
    actions
}

fn abort(reason: Reason) -> Row {
    Go(P::Aborting(reason.clone()), vec![Disarm(Timer::WarmUp), Arm(Timer::Silence), SendAbort(reason)])
}

fn inquire(reason: Reason) -> Row {
    Go(P::Inquiring, vec![CloseLease, Dismiss(reason), Inquire])
}

impl Phase {
    /// Returns the phase's name, as the journal and the progress line show it.
    pub fn name(&self) -> &'static str {
        match self {
            P::Preparing => "preparing",
            P::Warming => "warming",
            P::Rearming => "rearming",
            P::Draining => "draining",
            P::Sealing => "sealing",
            P::Aborting(_) => "aborting",
            P::Deciding => "deciding",
            P::Baking => "baking",
            P::Orphaned => "orphaned",
            P::Inquiring => "inquiring",
            P::Dismissing(_) => "dismissing",
            P::Done(_) => "done",
        }
    }
}
