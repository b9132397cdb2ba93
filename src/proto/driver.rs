//! The driver: asks for one phase after another, passes the lease on, and waits for the verdict.
//!
//! Between two phases it holds, until it is told to [go on](Input::Go): a driver may be several commands, each of which does one phase and
//! hands what it holds to the next, or wait for a person at a prompt.

use serde::{Deserialize, Serialize};

use super::{Reason, Verdict};

/// Where the driver is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It asked for the lease.
    Preparing,
    /// It has the lease; the successor starts and warms up.
    Warming,
    /// Held: the successor waits, and the incumbent serves.
    Warm,
    /// The clock of the handoff proper is being started.
    Rearming,
    /// Held: the lease is there, and no successor. Nothing has changed.
    Prepared,
    /// The incumbent drains.
    Draining,
    /// Held: everything in flight is finished.
    Drained,
    /// The incumbent seals.
    Sealing,
    /// Held: the data is final and the lock is free.
    Sealed,
    /// The data is sealed, and the successor starts only now.
    Starting,
    /// The incumbent was told that no successor comes.
    Retiring,
    /// Held: the incumbent is dead, and there is no successor yet.
    Widowed,
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
    /// This process is the successor now, by the same pid.
    Became,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// The successor: it warms up while the incumbent serves.
    Warm,
    /// The seal: the gap contains the successor's start. So it is where a chain of commands ends in the successor, or nobody succeeds.
    Cold,
}

/// What a driver that holds is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// The next phase.
    Phase,
    /// Start the successor.
    Spawn,
    /// Become the successor.
    Become,
    /// Let the incumbent end without a successor.
    Retire,
}

/// How a swap ended, as far as its driver can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "kebab-case")]
pub enum Outcome {
    /// The successor serves.
    Committed,
    /// The incumbent serves.
    RolledBack(Reason),
    /// The incumbent has sealed and ended, as it was asked to.
    Retired,
    /// Nothing was begun.
    Refused(Refusal),
    /// Nobody serves, and a person or a supervisor must act.
    NothingServing(String),
    /// It is not known who serves.
    Undecided(String),
}

impl Outcome {
    /// Returns the outcome's name, as reports show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack(_) => "rolled-back",
            Self::Retired => "retired",
            Self::Refused(_) => "refused",
            Self::NothingServing(_) => "nothing-serving",
            Self::Undecided(_) => "undecided",
        }
    }
}

/// Why nothing was begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// What holds is to go on.
    Go(Next),
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
    /// Tell the incumbent that no successor comes, and that it may end.
    SendRetire,
    /// Start the successor.
    Spawn,
    /// Become the successor, which finds `begin` and the lease waiting, or an incumbent that is dead.
    Become,
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
    /// What comes first.
    pub order: Order,
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
    pub fn start(order: Order) -> (Self, Vec<Action>) {
        (Self { phase: P::Preparing, order }, vec![Arm(Timer::Answer), SendPrepare])
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
            Input::Go(next) => self.on_go(*next),
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
            (P::Preparing, Input::Prepared(_)) => match self.order {
                Order::Warm => Go(P::Warming, vec![Disarm(Timer::Answer), Arm(Timer::WarmUp), Spawn]),
                Order::Cold => Go(P::Prepared, vec![Disarm(Timer::Answer)]),
            },
            (P::Preparing, Input::Refused(refusal)) => self.end(Outcome::Refused(refusal.clone())),
            (P::Rearming, Input::Prepared(_)) => {
                Go(P::Draining, vec![Disarm(Timer::Answer), Arm(Timer::Silence), SendDrain])
            }
            (P::Draining, Input::Drained) => Go(P::Drained, vec![]),
            (P::Sealing, Input::Sealed) => Go(P::Sealed, vec![]),
            // The incumbent undid it, by itself or as it was asked: it serves.
            (phase, Input::Aborted(reason))
                if phase.has_lease() || matches!(phase, P::Preparing | P::Retiring | P::Aborting(_)) =>
            {
                self.end(Outcome::RolledBack(reason.clone()))
            }
            // What is still on its way when the lease is passed on is for the successor to read.
            _ => Ignore,
        }
    }

    fn on_go(&self, next: Next) -> Row {
        match (&self.phase, next, self.order) {
            (P::Warm, Next::Phase, _) => Go(P::Rearming, vec![Arm(Timer::Answer), SendTerms]),
            (P::Prepared, Next::Phase, _) => Go(P::Draining, vec![Arm(Timer::Silence), SendDrain]),
            (P::Drained, Next::Phase, _) => Go(P::Sealing, vec![SendSeal]),
            (P::Sealed, Next::Phase, Order::Warm) => Go(P::Deciding, vec![PassLease, CloseLease]),
            (P::Sealed, Next::Spawn, Order::Cold) => Go(P::Starting, vec![Spawn]),
            (P::Sealed | P::Widowed, Next::Become, Order::Cold) => Go(P::Became, vec![Become]),
            (P::Sealed, Next::Retire, Order::Cold) => Go(P::Retiring, vec![SendRetire]),
            // It takes the lock as after a crash.
            (P::Widowed, Next::Spawn, _) => Go(P::Orphaned, vec![Spawn, Arm(Timer::Silence)]),
            (P::Widowed, Next::Retire, _) => inquire(Reason::LeaseLost),
            _ => Ignore,
        }
    }

    fn on_successor(&self, news: &Input) -> Row {
        match (&self.phase, news) {
            (P::Warming, Input::Waiting) => Go(P::Warm, vec![Disarm(Timer::WarmUp)]),
            (P::Starting, Input::Waiting) => Go(P::Deciding, vec![PassLease, CloseLease]),
            (P::Warming | P::Starting, Input::SpawnFailed(detail)) => {
                abort(Reason::SpawnFailed { detail: detail.clone() })
            }
            (P::Orphaned, Input::SpawnFailed(detail)) => {
                inquire(Reason::SpawnFailed { detail: detail.clone() })
            }
            (P::Deciding, Input::Serving) => Go(P::Baking, vec![Arm(Timer::Silence)]),
            // Whether it was granted or the incumbent died: it has the lock, and its record is final.
            (P::Done(_), Input::SuccessorDone) => Ignore,
            (_, Input::SuccessorDone) => self.end(Outcome::Committed),
            _ => Ignore,
        }
    }

    fn on_successor_gone(&self, reason: Reason) -> Row {
        match &self.phase {
            // Otherwise there was none.
            phase if phase.has_lease() && self.has_successor() => abort(reason),
            P::Orphaned => inquire(reason),
            // While it decides, the incumbent sees it too; one that was dismissed says that it goes, and its end follows.
            _ => Ignore,
        }
    }

    fn on_verdict(&self, verdict: &Verdict) -> Row {
        match (&self.phase, verdict) {
            (P::Dismissing(_) | P::Done(_) | P::Became, _) => Ignore,
            (_, Verdict::Retired) => self.end(Outcome::Retired),
            (_, Verdict::Committed) => self.end(Outcome::Committed),
            (_, Verdict::RolledBack { reason }) => self.end(Outcome::RolledBack(reason.clone())),
            // It cannot go back and is on its way out, and a successor that waits takes the lock then.
            (phase, Verdict::NothingServing { .. })
                if self.has_successor()
                    && (phase.has_lease() || matches!(phase, P::Deciding | P::Baking)) =>
            {
                Go(P::Orphaned, vec![CloseLease, Arm(Timer::Silence)])
            }
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
            phase if phase.has_lease() => self.bereave(vec![]),
            // It closes the lease before it announces that it ends.
            P::Retiring => Ignore,
            P::Aborting(reason) => {
                Go(P::Orphaned, vec![CloseLease, Arm(Timer::Silence), Dismiss(reason.clone())])
            }
            _ => Ignore,
        }
    }

    fn on_watch_lost(&self) -> Row {
        match &self.phase {
            P::Deciding | P::Baking => Go(P::Orphaned, vec![Arm(Timer::Silence)]),
            // It had sealed, and has ended one way or the other.
            P::Retiring => self.end(Outcome::Retired),
            _ => Ignore,
        }
    }

    fn on_cancel(&self, detail: &str) -> Row {
        let reason = Reason::Operator { detail: detail.to_owned() };
        match &self.phase {
            P::Preparing => self.end(Outcome::RolledBack(reason)),
            phase if phase.has_lease() => abort(reason),
            P::Deciding | P::Baking => Go(self.phase.clone(), vec![SendCancel(detail.to_owned())]),
            P::Widowed => inquire(reason),
            _ => Ignore,
        }
    }

    fn on_expired(&self, timer: Timer) -> Row {
        match (&self.phase, timer) {
            (P::Preparing, Timer::Answer) => {
                self.end(Outcome::Refused(Refusal::Declined("no answer in time".to_owned())))
            }
            (P::Warming, Timer::WarmUp) => abort(Reason::NotWarm),
            (P::Rearming, Timer::Answer) => abort(Reason::IncumbentSilent),
            (P::Draining | P::Drained | P::Aborting(_), Timer::Silence) => inquire(Reason::IncumbentSilent),
            // It may have sealed, and then nobody serves until it is out of the way.
            (P::Sealing | P::Sealed | P::Starting | P::Deciding | P::Baking, Timer::Silence) => {
                self.bereave(vec![FenceIncumbent])
            }
            (P::Retiring, Timer::Silence) => Go(P::Inquiring, vec![FenceIncumbent, CloseLease, Inquire]),
            // Whoever is left kills a successor that hangs.
            (P::Orphaned, Timer::Silence) => Go(P::Inquiring, vec![CloseLease, KillSuccessor, Inquire]),
            (P::Dismissing(outcome), Timer::Dismissal) => {
                Go(P::Dismissing(outcome.clone()), vec![KillSuccessor])
            }
            _ => Ignore,
        }
    }

    /// Whether a successor was started.
    fn has_successor(&self) -> bool {
        self.order == Order::Warm || matches!(self.phase, P::Starting | P::Deciding | P::Baking | P::Orphaned)
    }

    /// The incumbent is dead, or about to be: whoever was started may serve, or is still to be started.
    fn bereave(&self, mut first: Vec<Action>) -> Row {
        first.push(CloseLease);
        if self.has_successor() {
            first.push(Arm(Timer::Silence));
            return Go(P::Orphaned, first);
        }
        first.push(Disarm(Timer::Silence));
        Go(P::Widowed, first)
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
            Outcome::Committed | Outcome::Refused(_) | Outcome::Retired => {
                return Go(P::Done(outcome), closing(None));
            }
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
    /// The phases in which a driver goes on only when it is [told to](Input::Go).
    pub const HELD: [Self; 5] = [P::Warm, P::Prepared, P::Drained, P::Sealed, P::Widowed];

    /// Whether the lease is this driver's to give up: from the incumbent's word that it is granted until it is passed on, or the incumbent
    /// was told to undo or to end.
    fn has_lease(&self) -> bool {
        matches!(
            self,
            P::Warming
                | P::Warm
                | P::Rearming
                | P::Prepared
                | P::Draining
                | P::Drained
                | P::Sealing
                | P::Sealed
                | P::Starting
        )
    }

    /// Returns the phase's name, as the journal and the progress line show it.
    pub fn name(&self) -> &'static str {
        match self {
            P::Preparing => "preparing",
            P::Warming => "warming",
            P::Warm => "warm",
            P::Rearming => "rearming",
            P::Prepared => "prepared",
            P::Draining => "draining",
            P::Drained => "drained",
            P::Sealing => "sealing",
            P::Sealed => "sealed",
            P::Starting => "starting",
            P::Retiring => "retiring",
            P::Widowed => "widowed",
            P::Aborting(_) => "aborting",
            P::Deciding => "deciding",
            P::Baking => "baking",
            P::Orphaned => "orphaned",
            P::Inquiring => "inquiring",
            P::Dismissing(_) => "dismissing",
            P::Done(_) => "done",
            P::Became => "became",
        }
    }
}
