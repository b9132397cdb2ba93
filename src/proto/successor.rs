//! The successor: waits, opens what was sealed, and writes nothing before it is granted.

use super::Reason;
use super::incumbent::{Found, Opened};
use crate::drainable::SealReport;

/// Where the successor is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Warm, without the lease: the incumbent serves, drains or seals.
    Waiting,
    /// It has the lease and said so; the lock is being tried.
    Locking(Title),
    /// It has the lock and reads the data.
    Opening(Title),
    /// It said that it is ready.
    Announced,
    /// It may write: the record is being made.
    Recording(Trial),
    /// The record is made: the program accepts, and has not said yet that it serves.
    Serving(Trial),
    /// The program serves: the control path is being made to lead here.
    Binding(Trial),
    /// It serves on trial.
    OnTrial,
    /// Its trial is over: the record is being made final.
    Finalizing,
    /// It was asked to stop serving on trial: the hooks run.
    SteppingDown(Reason),
    /// It is the incumbent now.
    Promoted,
    /// It must exit.
    Gone(Reason),
}

/// By what right the successor opens the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Title {
    /// A lease: the incumbent decides.
    Lease,
    /// The incumbent is dead: the lock alone decides.
    Crash,
}

/// Whether the incumbent may still take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trial {
    /// No: the first record is final.
    No,
    /// Yes: the first record says so.
    Yes,
}

/// The successor's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Where it is.
    pub phase: Phase,
    /// The generation of the record that the handoff began with.
    pub expected: u64,
    /// What the incumbent made final, once the lease came.
    pub sealed: Option<SealReport>,
    /// Why this successor must not serve what it has opened.
    pub unfit: Option<Reason>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The driver passed the lease, and what was sealed.
    Begin(SealReport),
    /// The driver called the handoff off.
    Dismissed(Reason),
    /// The driver's end of the channel closed.
    ChannelLost,
    /// The incumbent's pidfd became readable, and nothing from it is left unread.
    IncumbentLost,
    /// The lease's other end closed without a word.
    LeaseLost,
    /// The incumbent's word: write, serve, and on trial if it says so.
    Granted(Trial),
    /// The incumbent's word: the handoff is undone.
    Aborted(Reason),
    /// The incumbent's word: the trial is over.
    Finalize,
    /// The incumbent's word: the trial is undone.
    StepDown(Reason),
    /// The lock was taken and is still the file at the path; the record says this.
    Locked(Found),
    /// Somebody else has the lock.
    LockBusy,
    /// The data is open.
    Opened(Opened),
    /// The lock, the data or the control path cannot be used.
    Failed(String),
    /// The record is written, and durable where it was asked to be.
    Persisted,
    /// The control path leads here.
    Bound,
    /// The program serves.
    ServeCalled,
    /// The hooks that stop a trial have run, and the lock is free.
    SteppedDown,
    /// A timer ended.
    Expired(Timer),
}

/// A wait that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// The incumbent should have decided by now: its deadline and a margin, or the trial and a margin.
    Silence,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send over the lease.
    Send(Message),
    /// Tell the driver over the channel.
    Tell(News),
    /// Try once to take the lock, and read the record under it.
    TryLock,
    /// Give the lock back.
    Unlock,
    /// Open the data, without writing to it.
    Open,
    /// Write the record: durable unless it is for a trial.
    Persist(Trial),
    /// Make the control path lead here.
    BindControl,
    /// Start to accept.
    Serve,
    /// Run the drain and seal hooks, and release the lock.
    StopServing,
    /// Start a timer from now.
    Arm(Timer),
    /// Stop a timer.
    Disarm(Timer),
    /// Kill the incumbent, which says nothing.
    FenceIncumbent,
}

/// What the successor sends over the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Here is this process's pidfd.
    Attach,
    /// The data is open.
    Ready(Opened),
    /// It serves on trial.
    Serving,
    /// It serves for good.
    Done,
    /// It has stopped serving, sealed and unlocked.
    SteppedDown,
}

/// What the successor tells its driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum News {
    /// It serves on trial.
    Serving,
    /// It serves for good.
    Done,
    /// It gives up.
    Failed(Reason),
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
    /// Returns a successor that waits for a handoff which began with this generation.
    pub fn new(expected: u64) -> Self {
        Self { phase: P::Waiting, expected, sealed: None, unfit: None }
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
                self.learn(input);
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
            Input::Begin(_) | Input::Dismissed(_) | Input::ChannelLost => self.on_channel(input),
            Input::Granted(_) | Input::Aborted(_) | Input::Finalize | Input::StepDown(_) => {
                self.on_word(input)
            }
            Input::IncumbentLost => self.on_incumbent_lost(),
            // A dying process closes its descriptors before its pidfd tells; the pidfd or the silence decides.
            Input::LeaseLost => Ignore,
            Input::Expired(Timer::Silence) => self.on_silence(),
            result => self.on_result(result),
        }
    }

    fn on_channel(&self, input: &Input) -> Row {
        match (&self.phase, input) {
            (P::Waiting, Input::Begin(_)) => {
                Go(P::Locking(Title::Lease), vec![Arm(Timer::Silence), Send(M::Attach), TryLock])
            }
            (P::Waiting, Input::Dismissed(r)) => Go(P::Gone(r.clone()), vec![]),
            // The incumbent lives, or its death would have been fed in first: it has the lock, or takes it back.
            (P::Waiting, Input::ChannelLost) => Go(P::Gone(Reason::LeaseLost), vec![]),
            // The driver has no further role.
            _ => Ignore,
        }
    }

    fn on_word(&self, word: &Input) -> Row {
        match (&self.phase, word) {
            (P::Announced, Input::Granted(trial)) => {
                Go(P::Recording(*trial), vec![Disarm(Timer::Silence), Persist(*trial)])
            }
            (P::Locking(_) | P::Opening(_) | P::Announced, Input::Aborted(r)) => give_up(r.clone()),
            (P::OnTrial, Input::Finalize) => {
                Go(P::Finalizing, vec![Disarm(Timer::Silence), Persist(Trial::No)])
            }
            (P::OnTrial, Input::StepDown(r)) => {
                Go(P::SteppingDown(r.clone()), vec![Disarm(Timer::Silence), StopServing])
            }
            // It serves by the record now, whatever the incumbent still says.
            (P::Finalizing | P::Promoted | P::Gone(_), _) => Ignore,
            (P::SteppingDown(_), _) => Ignore,
            (P::Locking(_) | P::Opening(_) | P::Announced, word) => give_up(unexpected(word, &self.phase)),
            _ => Ignore,
        }
    }

    fn on_incumbent_lost(&self) -> Row {
        match &self.phase {
            P::Waiting => Go(P::Locking(Title::Crash), vec![TryLock]),
            P::Locking(Title::Lease) => Go(P::Locking(Title::Crash), vec![]),
            P::Opening(Title::Lease) => Go(P::Opening(Title::Crash), vec![]),
            // It is known. A pidfd stays readable: a row that led nowhere would be taken for ever.
            P::Locking(Title::Crash) | P::Opening(Title::Crash) => Ignore,
            // Nobody is left who could refuse: it refuses itself, and whoever starts next starts what was before.
            P::Announced => match &self.unfit {
                Some(reason) => give_up(reason.clone()),
                // The lock is in this hand.
                None => Go(P::Recording(Trial::No), vec![Disarm(Timer::Silence), Persist(Trial::No)]),
            },
            P::OnTrial => Go(P::Finalizing, vec![Disarm(Timer::Silence), Persist(Trial::No)]),
            // There is nobody left to take over: what was to be a trial becomes final when it serves.
            P::Recording(_)
            | P::Serving(_)
            | P::Binding(_)
            | P::Finalizing
            | P::SteppingDown(_)
            | P::Promoted
            | P::Gone(_) => Ignore,
        }
    }

    fn on_silence(&self) -> Row {
        match &self.phase {
            // A driver that is frozen, and an incumbent that has long gone on without it.
            P::Waiting => Go(P::Gone(Reason::Deadline), vec![Tell(News::Failed(Reason::Deadline))]),
            P::Locking(Title::Lease) | P::Opening(Title::Lease) | P::Announced | P::OnTrial => {
                Go(self.phase.clone(), vec![FenceIncumbent])
            }
            _ => Ignore,
        }
    }

    fn on_result(&self, result: &Input) -> Row {
        match (&self.phase, result) {
            (P::Locking(title), Input::Locked(found)) if found.generation == self.expected => {
                Go(P::Opening(*title), vec![Open])
            }
            (P::Locking(_), Input::Locked(found)) => {
                give_up(Reason::TooLate { expected: self.expected, found: found.generation })
            }
            (P::Locking(_), Input::LockBusy) => {
                Go(P::Gone(Reason::LockHeld), vec![Tell(News::Failed(Reason::LockHeld))])
            }
            (P::Opening(Title::Lease), Input::Opened(opened)) => {
                Go(P::Announced, vec![Send(M::Ready(opened.clone()))])
            }
            (P::Opening(Title::Crash), Input::Opened(opened)) => match self.mismatch(opened) {
                Some(reason) => give_up(reason),
                None => Go(P::Recording(Trial::No), vec![Disarm(Timer::Silence), Persist(Trial::No)]),
            },
            (P::Recording(trial), Input::Persisted) => Go(P::Serving(*trial), vec![Serve]),
            // Only now: the path is renamed into place after the gap, not inside it.
            (P::Serving(trial), Input::ServeCalled) => Go(P::Binding(*trial), vec![BindControl]),
            (P::Binding(Trial::No), Input::Bound) => Go(P::Promoted, vec![Send(M::Done), Tell(News::Done)]),
            (P::Binding(Trial::Yes), Input::Bound) => {
                Go(P::OnTrial, vec![Arm(Timer::Silence), Send(M::Serving), Tell(News::Serving)])
            }
            (P::Finalizing, Input::Persisted) => Go(P::Promoted, vec![Send(M::Done), Tell(News::Done)]),
            (P::SteppingDown(r), Input::SteppedDown) => Go(P::Gone(r.clone()), vec![Send(M::SteppedDown)]),
            (P::Gone(_), _) => Ignore,
            // It may still write: the lock goes with the process and not before it.
            (
                P::Serving(_) | P::Binding(_) | P::OnTrial | P::Finalizing | P::SteppingDown(_),
                Input::Failed(detail),
            ) => leave(Reason::Failed { detail: detail.clone() }),
            (_, Input::Failed(detail)) => give_up(Reason::Failed { detail: detail.clone() }),
            _ => Impossible,
        }
    }

    fn mismatch(&self, opened: &Opened) -> Option<Reason> {
        opened.mismatch(self.sealed.as_ref())
    }

    /// Keeps what an input told that later rows ask for.
    fn learn(&mut self, input: &Input) {
        match input {
            Input::Begin(sealed) => self.sealed = Some(sealed.clone()),
            Input::Opened(opened) => self.unfit = self.mismatch(opened),
            _ => {}
        }
    }
}

fn give_up(reason: Reason) -> Row {
    Go(P::Gone(reason.clone()), vec![Unlock, Tell(News::Failed(reason))])
}

fn leave(reason: Reason) -> Row {
    Go(P::Gone(reason.clone()), vec![Tell(News::Failed(reason))])
}

fn unexpected(word: &Input, phase: &Phase) -> Reason {
    Reason::Protocol { detail: format!("{word:?} is not expected in phase {}", phase.name()) }
}

impl Phase {
    /// Returns the phase's name.
    pub fn name(&self) -> &'static str {
        match self {
            P::Waiting => "waiting",
            P::Locking(_) => "locking",
            P::Opening(_) => "opening",
            P::Announced => "announced",
            P::Recording(_) => "recording",
            P::Binding(_) => "binding",
            P::Serving(_) => "serving",
            P::OnTrial => "on-trial",
            P::Finalizing => "finalizing",
            P::SteppingDown(_) => "stepping-down",
            P::Promoted => "promoted",
            P::Gone(_) => "gone",
        }
    }
}
