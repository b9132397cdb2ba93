//! The supervisor: finds out who serves, starts the daemon where nobody does, runs one swap after another, and stops.
//!
//! It never believes what it remembers: after its own start, after every swap and whenever the daemon's process has ended, it asks the control
//! path, the lock and the record who serves now ([`Action::Inquire`]), and goes on from the answer. So it makes no difference whether it was this
//! process that was killed, the daemon, or both, or whether somebody else has swapped the daemon meanwhile.

use std::collections::VecDeque;

/// How many requests may wait.
pub const WAITING_MAX: usize = 16;

/// Where the supervisor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The control path, the lock and the record are being asked who serves.
    Inquiring,
    /// Somebody else is at work: a handoff that is not this supervisor's goes on, a process has the lock and does not answer yet, or the daemon has let
    /// go and has not ended. It is looked at again and again.
    Watching,
    /// The daemon was started, and is not ready yet.
    Starting,
    /// The daemon serves.
    Serving,
    /// A swap goes on.
    Swapping,
    /// The daemon died, and is to be started again after a while.
    Waiting,
    /// The supervisor's own program is being replaced.
    Reexecuting,
    /// The daemon was asked to drain, to seal and to end.
    Stopping,
    /// The daemon was sent a signal to end.
    Ending,
    /// The end.
    Done(How),
}

/// How the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// It was asked to.
    Stopped,
    /// As the daemon did, which died by itself.
    Follow,
    /// Somebody who does not serve keeps the lock.
    Blocked,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// To replace the daemon's program.
    Swap,
    /// To become this supervisor's own program anew.
    Reexec,
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// A daemon does, and no handoff goes on.
    Serving,
    /// A handoff goes on that is not this supervisor's.
    Busy,
    /// Nobody answers, and a process has the lock.
    LockHeld,
    /// Nobody answers, and the lock is free.
    Nobody,
}

/// What is to be done about a daemon that died by itself, where nobody else serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Then {
    /// To start it again.
    Restart,
    /// To end as it did.
    Follow,
}

/// Whether a stop was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stop {
    /// It was not.
    No,
    /// It was.
    Asked,
    /// It was, and the daemon was asked to drain, to seal and to end; or it was asked for twice. What is left are signals.
    Hurried,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Who serves, and whether the daemon's process, whoever it is, lives.
    Found(Found, bool),
    /// The daemon was started.
    Started,
    /// It could not be started.
    StartFailed(Then),
    /// Somebody else had the lock when it was to be started.
    Overtaken,
    /// The daemon that was started is ready.
    Ready,
    /// The daemon's process has ended.
    DaemonLost(Then),
    /// A swap was asked for, or a new program for this supervisor, by somebody who waits for his turn or does not.
    Asked(Job, bool),
    /// The swap has ended.
    SwapEnded,
    /// A daemon serves, and the process of one before it lives on.
    Lingers,
    /// The daemon of before has ended.
    LingererLost,
    /// The program that this supervisor is to become understands what this one holds.
    Rehearsed,
    /// This supervisor goes on as it was.
    ReexecFailed,
    /// It was asked to stop.
    StopAsked,
    /// The planned stop has ended, one way or the other.
    RetireEnded,
    /// A timer ended.
    Expired(Timer),
}

/// A wait that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// Until the next look at who serves.
    Look,
    /// How long somebody may keep the lock without serving.
    Patience,
    /// Until the daemon is started again.
    Backoff,
    /// How long a daemon that was started may take to be ready.
    Readiness,
    /// How long the planned stop may take.
    Stop,
    /// From one signal to the daemon to the next.
    Signal,
    /// How long a daemon of before may linger, and then from one signal to the next.
    Linger,
}

/// What the service manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// The first daemon is ready.
    Ready,
    /// The daemon's program, or this supervisor's own, is being replaced.
    Reloading,
    /// That is over.
    Reloaded,
    /// It stops.
    Stopping,
}

/// How hard a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Force {
    /// It may finish.
    Term,
    /// It may not.
    Kill,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask the control path, the lock and the record.
    Inquire,
    /// Start the daemon.
    Start,
    /// Run the swap that was asked for first.
    RunSwap,
    /// Undo the swap while that is possible.
    CancelSwap,
    /// Ask the program that this supervisor is to become whether it understands.
    Rehearse,
    /// Become it.
    Become,
    /// Say that it is not the time to become it.
    DeclineReexec,
    /// Ask the daemon to drain, to seal and to end; undo a handoff in progress first.
    Retire,
    /// Signal the daemon.
    Signal(Force),
    /// Signal the daemon of before.
    EndLingerer(Force),
    /// The request that came last waits.
    Queue,
    /// The request that came last is told that something else goes on.
    Refuse,
    /// Those who wait are told that nothing will come of it.
    RefuseWaiting,
    /// Tell the service manager.
    Tell(Word),
    /// Start a timer from now.
    Arm(Timer),
    /// Stop a timer.
    Disarm(Timer),
    /// End.
    Exit(How),
}

/// The supervisor's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Where it is.
    pub phase: Phase,
    /// Whether the daemon's process, as far as it is known, lives.
    pub daemon: bool,
    /// What is to be done where nobody serves; nothing was lost so far where it is not said.
    pub then: Option<Then>,
    /// Whether it was asked to stop.
    pub stop: Stop,
    /// Whether a daemon of before lives, and how hard it was asked to end.
    pub lingers: Option<Option<Force>>,
    /// How hard the daemon was asked to end.
    pub force: Force,
    /// Whether the service manager was told that the first daemon is ready.
    pub told_ready: bool,
    /// Whether it was told that something is being replaced.
    pub told_reloading: bool,
    /// Whether somebody else is at work, and how long that is borne with.
    pub watch: Watch,
    /// Who waits.
    pub waiting: VecDeque<Job>,
}

/// Whether somebody else is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Watch {
    /// Nobody is.
    Off,
    /// Somebody is, for as long as it takes.
    On,
    /// Somebody is who does not serve, and that is borne with for a while.
    Patient,
    /// That was too long.
    Over,
}

use Action::*;
use Phase as P;

impl Machine {
    /// Returns a supervisor that has just been started, or has just become another program, and its first actions.
    pub fn start(told_ready: bool, waiting: VecDeque<Job>) -> (Self, Vec<Action>) {
        let machine = Self {
            phase: P::Inquiring,
            daemon: false,
            then: None,
            stop: Stop::No,
            lingers: None,
            force: Force::Term,
            told_ready,
            told_reloading: told_ready,
            watch: Watch::Off,
            waiting,
        };
        (machine, vec![Inquire])
    }

    /// Takes one step.
    pub fn step(&mut self, input: Input) -> Vec<Action> {
        match input {
            Input::Found(found, lives) => self.on_found(found, lives),
            Input::Started => self.on_started(),
            Input::Ready if self.phase == P::Starting => self.look(vec![Disarm(Timer::Readiness)]),
            Input::Overtaken if self.phase == P::Starting => self.look(vec![]),
            // The end of one before the one that is being started.
            Input::DaemonLost(_) if self.phase == P::Starting && !self.daemon => vec![],
            Input::StartFailed(then) | Input::DaemonLost(then) => self.on_lost(then),
            Input::Asked(job, waits) => self.on_asked(job, waits),
            Input::SwapEnded if self.phase == P::Swapping => self.look(vec![]),
            Input::Lingers => self.on_lingers(),
            Input::LingererLost => self.on_lingerer_lost(),
            Input::Rehearsed if self.phase == P::Reexecuting => self.on_rehearsed(),
            Input::ReexecFailed if self.phase == P::Reexecuting => self.look(vec![]),
            Input::StopAsked => self.on_stop(),
            Input::RetireEnded if self.phase == P::Stopping => self.look(vec![Disarm(Timer::Stop)]),
            Input::Expired(timer) => self.on_expired(timer),
            // Too late: what it would have led to is done already, or is being undone.
            Input::Ready
            | Input::Overtaken
            | Input::SwapEnded
            | Input::Rehearsed
            | Input::ReexecFailed
            | Input::RetireEnded => vec![],
        }
    }

    /// Asks again who serves.
    fn look(&mut self, mut first: Vec<Action>) -> Vec<Action> {
        self.phase = P::Inquiring;
        first.push(Inquire);
        first
    }

    fn go(&mut self, phase: Phase, actions: Vec<Action>) -> Vec<Action> {
        self.phase = phase;
        actions
    }

    fn on_found(&mut self, found: Found, lives: bool) -> Vec<Action> {
        if self.phase != P::Inquiring {
            return vec![];
        }
        self.daemon = lives;
        match (found, self.stop) {
            (Found::Serving, _) => {
                self.then = None;
                let first = self.stop_watching();
                self.serve(first)
            }
            // The one who serves undoes the handoff before it ends.
            (Found::Busy, Stop::Asked) => self.retire(),
            (Found::LockHeld, Stop::Asked | Stop::Hurried) | (Found::Busy, Stop::Hurried) if lives => {
                self.end()
            }
            (Found::Nobody | Found::LockHeld, Stop::Asked | Stop::Hurried) if !lives => {
                self.exit(How::Stopped)
            }
            (Found::Nobody, Stop::No) if !lives => self.begin(),
            (Found::Busy, _) => {
                let mut actions = self.stop_watching();
                self.watch = Watch::On;
                // There is a daemon, and one of the two serves when that is over, which may be the end of a long trial.
                actions.extend(self.first_ready());
                actions.push(Arm(Timer::Look));
                self.go(P::Watching, actions)
            }
            // One that has let go of everything, and has still to end, counts as well.
            (Found::LockHeld | Found::Nobody, _) => self.bear(),
        }
    }

    fn stop_watching(&mut self) -> Vec<Action> {
        match std::mem::replace(&mut self.watch, Watch::Off) {
            Watch::Patient => vec![Disarm(Timer::Patience)],
            Watch::Off | Watch::On | Watch::Over => vec![],
        }
    }

    /// Somebody does not serve, and is in the way.
    fn bear(&mut self) -> Vec<Action> {
        match self.watch {
            Watch::Off | Watch::On => {
                self.watch = Watch::Patient;
                self.go(P::Watching, vec![Arm(Timer::Patience), Arm(Timer::Look)])
            }
            Watch::Patient => self.go(P::Watching, vec![Arm(Timer::Look)]),
            // One that is known is ended; of another it is only known that it has the lock.
            Watch::Over if self.daemon => self.end(),
            Watch::Over => self.exit(How::Blocked),
        }
    }

    /// Nobody serves.
    fn begin(&mut self) -> Vec<Action> {
        let mut actions = self.stop_watching();
        match self.then {
            None => {
                actions.push(Start);
                self.go(P::Starting, actions)
            }
            Some(Then::Restart) => {
                actions.push(Arm(Timer::Backoff));
                self.go(P::Waiting, actions)
            }
            Some(Then::Follow) => self.exit(How::Follow),
        }
    }

    fn on_started(&mut self) -> Vec<Action> {
        self.daemon = true;
        match self.phase {
            P::Starting if self.stop > Stop::No => self.end(),
            P::Starting => vec![Arm(Timer::Readiness)],
            _ => vec![],
        }
    }

    /// Somebody serves: what was asked for is next.
    fn serve(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        actions.extend(self.first_ready());
        if std::mem::take(&mut self.told_reloading) {
            actions.push(Tell(Word::Reloaded));
        }
        self.phase = P::Serving;
        actions.extend(self.next());
        actions
    }

    fn first_ready(&mut self) -> Option<Action> {
        let is_first = !std::mem::replace(&mut self.told_ready, true);
        is_first.then_some(Tell(Word::Ready))
    }

    fn next(&mut self) -> Vec<Action> {
        match self.stop {
            Stop::No => {}
            Stop::Asked => return self.retire(),
            Stop::Hurried => return self.end(),
        }
        if self.phase != P::Serving || self.lingers.is_some() {
            return vec![];
        }
        match self.waiting.pop_front() {
            Some(job) => self.start_job(job),
            None => vec![],
        }
    }

    fn start_job(&mut self, job: Job) -> Vec<Action> {
        self.told_reloading = true;
        match job {
            Job::Swap => self.go(P::Swapping, vec![Tell(Word::Reloading), RunSwap]),
            Job::Reexec => self.go(P::Reexecuting, vec![Tell(Word::Reloading), Rehearse]),
        }
    }

    /// What happened meanwhile comes first: it would be forgotten.
    fn on_rehearsed(&mut self) -> Vec<Action> {
        if self.daemon && self.stop == Stop::No { vec![Become] } else { self.look(vec![DeclineReexec]) }
    }

    /// A daemon of before that has not ended yet, and a look at who serves, take a moment: whoever asks first waits for that, whether he is willing
    /// to wait or not.
    fn on_asked(&mut self, job: Job, waits: bool) -> Vec<Action> {
        let is_brief = self.phase == P::Serving
            || (self.phase == P::Inquiring && self.told_ready && self.watch == Watch::Off);
        if self.stop > Stop::No || matches!(self.phase, P::Done(_)) || self.waiting.len() >= WAITING_MAX {
            return vec![Refuse];
        }
        if !(waits || is_brief && self.waiting.is_empty()) {
            return vec![Refuse];
        }
        self.waiting.push_back(job);
        let mut actions = vec![Queue];
        if self.phase == P::Serving {
            actions.extend(self.next());
        }
        actions
    }

    fn on_lingers(&mut self) -> Vec<Action> {
        if self.lingers.is_some() {
            return vec![];
        }
        self.lingers = Some(None);
        vec![Arm(Timer::Linger)]
    }

    fn on_lingerer_lost(&mut self) -> Vec<Action> {
        if self.lingers.take().is_none() {
            return vec![];
        }
        let mut actions = vec![Disarm(Timer::Linger)];
        if self.phase == P::Serving {
            actions.extend(self.next());
        }
        actions
    }

    fn on_lost(&mut self, then: Then) -> Vec<Action> {
        self.daemon = false;
        self.then = Some(then);
        match self.phase {
            P::Starting => self.look(vec![Disarm(Timer::Readiness)]),
            P::Serving => self.look(vec![]),
            P::Watching => self.look(vec![Disarm(Timer::Look)]),
            P::Ending => self.look(vec![Disarm(Timer::Signal)]),
            // The answer, or the end, comes, and says who serves then.
            P::Inquiring | P::Swapping | P::Reexecuting | P::Stopping | P::Waiting | P::Done(_) => vec![],
        }
    }

    fn on_stop(&mut self) -> Vec<Action> {
        if let P::Done(_) = self.phase {
            return vec![];
        }
        if self.stop > Stop::No {
            return self.on_hurry();
        }
        self.stop = Stop::Asked;
        let mut actions = vec![Tell(Word::Stopping)];
        if !self.waiting.is_empty() {
            self.waiting.clear();
            actions.push(RefuseWaiting);
        }
        actions.extend(match self.phase {
            P::Serving => self.retire(),
            P::Watching => self.look(vec![Disarm(Timer::Look)]),
            P::Starting if self.daemon => self.end(),
            P::Waiting => self.exit(How::Stopped),
            P::Swapping => vec![CancelSwap],
            // It goes on when that is known; a program that is to be started is ended then.
            P::Starting | P::Inquiring | P::Reexecuting | P::Ending | P::Stopping | P::Done(_) => vec![],
        });
        actions
    }

    fn on_hurry(&mut self) -> Vec<Action> {
        self.stop = Stop::Hurried;
        match self.phase {
            P::Stopping | P::Serving => self.end(),
            P::Ending => self.kill(),
            P::Watching => self.look(vec![Disarm(Timer::Look)]),
            _ => vec![],
        }
    }

    /// The daemon is asked once to end by itself.
    fn retire(&mut self) -> Vec<Action> {
        self.stop = Stop::Hurried;
        self.go(P::Stopping, vec![Arm(Timer::Stop), Retire])
    }

    /// The daemon is ended by signals; where it has ended already, that is for the next look to find.
    fn end(&mut self) -> Vec<Action> {
        let mut actions = self.stop_watching();
        actions.extend([Disarm(Timer::Stop), Disarm(Timer::Readiness)]);
        if !self.daemon {
            return self.look(actions);
        }
        self.force = Force::Term;
        actions.extend([Arm(Timer::Signal), Signal(Force::Term)]);
        self.go(P::Ending, actions)
    }

    fn kill(&mut self) -> Vec<Action> {
        self.force = Force::Kill;
        vec![Arm(Timer::Signal), Signal(Force::Kill)]
    }

    fn exit(&mut self, how: How) -> Vec<Action> {
        let mut actions = vec![];
        if !self.waiting.is_empty() {
            self.waiting.clear();
            actions.push(RefuseWaiting);
        }
        if self.lingers.is_some() {
            actions.push(EndLingerer(Force::Kill));
        }
        actions.push(Exit(how));
        self.go(P::Done(how), actions)
    }

    fn on_expired(&mut self, timer: Timer) -> Vec<Action> {
        match (timer, self.phase) {
            (Timer::Look, P::Watching) => self.look(vec![]),
            (Timer::Patience, _) if self.watch == Watch::Patient => {
                self.watch = Watch::Over;
                vec![]
            }
            (Timer::Backoff, P::Waiting) => {
                self.then = None;
                self.look(vec![])
            }
            (Timer::Readiness, P::Starting) | (Timer::Stop, P::Stopping) => self.end(),
            (Timer::Signal, P::Ending) => self.kill(),
            (Timer::Linger, _) => self.press_lingerer(),
            _ => vec![],
        }
    }

    fn press_lingerer(&mut self) -> Vec<Action> {
        let Some(force) = self.lingers else { return vec![] };
        let harder = if force.is_none() { Force::Term } else { Force::Kill };
        self.lingers = Some(Some(harder));
        vec![Arm(Timer::Linger), EndLingerer(harder)]
    }
}

impl Phase {
    /// Returns the phase's name, as the supervisor's state shows it.
    pub fn name(self) -> &'static str {
        match self {
            P::Inquiring => "inquiring",
            P::Watching => "watching",
            P::Starting => "starting",
            P::Serving => "serving",
            P::Swapping => "swapping",
            P::Waiting => "waiting",
            P::Reexecuting => "reexecuting",
            P::Stopping => "stopping",
            P::Ending => "ending",
            P::Done(_) => "done",
        }
    }
}
