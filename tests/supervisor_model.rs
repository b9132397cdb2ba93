//! The shipped supervisor's machine, model-checked with daemons that die and hang, other drivers, and deaths of the supervisor at any action.
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::too_many_lines,
    reason = "a move, an action and an input are a line or two each, and belong side by side"
)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use handoff::proto::supervisor::{
    Action, Force, Found, How, Input, Job, Machine, Phase, Stop, Then, Timer, Word,
};
use stateright::{Checker, Model, Property};

/// How many daemons there may be in one run.
const DAEMONS: usize = 4;

/// What a daemon's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Daemon {
    /// It was started with the lock, and is not ready.
    Starting,
    /// It serves.
    Serving,
    /// It waits for what it is to succeed.
    Warm,
    /// It has let go of everything, and has still to end.
    Leaving,
    Dead,
}

/// A swap that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Swap {
    incumbent: usize,
    successor: usize,
    /// Whether the lease was passed: its driver has no part in it any more.
    passed: bool,
    /// Whether it is this supervisor's own.
    own: bool,
}

/// The supervisor's process: its machine, what it has still to do, and what its workers do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Supervisor {
    machine: Machine,
    actions: VecDeque<Action>,
    timers: BTreeSet<Timer>,
    daemon: Option<usize>,
    former: BTreeSet<usize>,
    asks: bool,
    answer: Option<(Found, Option<usize>)>,
    starts: bool,
    started: bool,
    swap_ended: bool,
    cancels: bool,
    retires: bool,
    rehearses: bool,
}

/// How many faults there may be, and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    kills: u8,
    deaths: u8,
    hangs: u8,
    rivals: u8,
    swaps: u8,
    reexecs: u8,
    stops: u8,
    failures: u8,
}

const NONE: Budget =
    Budget { kills: 0, deaths: 0, hangs: 0, rivals: 0, swaps: 0, reexecs: 0, stops: 0, failures: 0 };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    supervisor: Option<Supervisor>,
    daemons: [Daemon; DAEMONS],
    hung: BTreeSet<usize>,
    termed: BTreeSet<usize>,
    made: usize,
    swap: Option<Swap>,
    left: Budget,
    /// How it ended last.
    ended: Option<How>,
    /// Whether the supervisor that lives was asked to stop.
    stop: bool,
    readies: u8,
    /// What must not be.
    wrong: Option<&'static str>,
}

/// What has happened in any run: a model in which nothing happens keeps every promise.
static SEEN: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// Something that may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Move {
    Act,
    Feed(Input),
    Ask,
    Answer,
    Start(bool),
    Retire(bool),
    Serve(usize),
    Die(usize),
    Commit,
    Pass,
    Undo,
    Cancelled,
    // Faults and requests.
    Kill,
    Again,
    Crash(usize),
    Hang(usize),
    Rival,
    Request(Job, bool),
    StopIt,
}

/// A rule of the machine that may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    LooksBeforeItStarts,
    LooksBeforeItFollows,
    WaitsForWhoLingers,
    SaysReadyOnce,
    StopEndsTheDaemon,
    KillsWhatHangs,
    StopIsNotForgotten,
    OneSwapAtATime,
}

const RULES: [Rule; 8] = [
    Rule::LooksBeforeItStarts,
    Rule::LooksBeforeItFollows,
    Rule::WaitsForWhoLingers,
    Rule::SaysReadyOnce,
    Rule::StopEndsTheDaemon,
    Rule::KillsWhatHangs,
    Rule::StopIsNotForgotten,
    Rule::OneSwapAtATime,
];

struct System {
    budget: Budget,
    then: Then,
    without: Option<Rule>,
}

impl System {
    /// The machine's step, or one without a rule.
    fn step(&self, machine: &mut Machine, input: Input) -> Vec<Action> {
        let before = machine.phase;
        match (self.without, input) {
            (Some(Rule::LooksBeforeItStarts), Input::DaemonLost(Then::Restart))
                if before == Phase::Serving =>
            {
                machine.phase = Phase::Starting;
                return vec![Action::Start];
            }
            (Some(Rule::LooksBeforeItFollows), Input::DaemonLost(Then::Follow))
                if before == Phase::Serving =>
            {
                machine.phase = Phase::Done(How::Follow);
                return vec![Action::Exit(How::Follow)];
            }
            (Some(Rule::WaitsForWhoLingers), Input::Lingers) => return vec![],
            (Some(Rule::StopEndsTheDaemon), Input::StopAsked) if before == Phase::Serving => {
                machine.phase = Phase::Done(How::Stopped);
                return vec![Action::Exit(How::Stopped)];
            }
            (Some(Rule::KillsWhatHangs), Input::Expired(Timer::Signal)) => return vec![],
            (Some(Rule::StopIsNotForgotten), Input::Rehearsed) => return vec![Action::Become],
            (Some(Rule::OneSwapAtATime), Input::Asked(Job::Swap, _)) if before == Phase::Swapping => {
                return vec![Action::RunSwap];
            }
            _ => {}
        }
        let actions = machine.step(input);
        if self.without == Some(Rule::SaysReadyOnce) && machine.phase == Phase::Inquiring {
            machine.told_ready = false;
        }
        actions
    }

    fn begin(told_ready: bool, waiting: VecDeque<Job>) -> Supervisor {
        let (machine, first) = Machine::start(told_ready, waiting);
        Supervisor {
            machine,
            actions: first.into(),
            timers: BTreeSet::new(),
            daemon: None,
            former: BTreeSet::new(),
            asks: false,
            answer: None,
            starts: false,
            started: false,
            swap_ended: false,
            cancels: false,
            retires: false,
            rehearses: false,
        }
    }
}

impl World {
    fn is(&self, daemon: usize, what: Daemon) -> bool {
        self.daemons[daemon] == what
    }

    fn lives(&self, daemon: usize) -> bool {
        !self.is(daemon, Daemon::Dead)
    }

    fn make(&mut self, what: Daemon) -> Option<usize> {
        let number = self.made;
        *self.daemons.get_mut(number)? = what;
        self.made += 1;
        Some(number)
    }

    /// Who has the lock.
    fn holder(&self) -> Option<usize> {
        if let Some(swap) = self.swap.filter(|swap| swap.passed) {
            return Some(swap.successor);
        }
        (0..DAEMONS).find(|daemon| matches!(self.daemons[*daemon], Daemon::Starting | Daemon::Serving))
    }

    /// What a look at the control path, the lock and the record finds at this moment.
    fn look(&self) -> (Found, Option<usize>) {
        if let Some(swap) = self.swap {
            let answers =
                [swap.incumbent, swap.successor].into_iter().find(|daemon| self.is(*daemon, Daemon::Serving));
            return match answers {
                Some(daemon) => (Found::Busy, Some(daemon)),
                // Its driver is waited for.
                None => (Found::LockHeld, Some(swap.successor).filter(|_| swap.passed)),
            };
        }
        match self.holder() {
            Some(daemon) if self.is(daemon, Daemon::Serving) && !self.hung.contains(&daemon) => {
                (Found::Serving, Some(daemon))
            }
            Some(daemon) => (Found::LockHeld, Some(daemon)),
            None => (Found::Nobody, None),
        }
    }

    fn kill(&mut self, daemon: usize) {
        self.daemons[daemon] = Daemon::Dead;
        self.hung.remove(&daemon);
        self.termed.remove(&daemon);
        let Some(swap) = self.swap else { return };
        if daemon == swap.successor {
            self.undo();
        } else if daemon == swap.incumbent {
            // The successor takes the lock, as after a crash.
            self.swap = Some(Swap { passed: true, ..swap });
        }
    }

    fn undo(&mut self) {
        let Some(swap) = self.swap.take() else { return };
        self.daemons[swap.successor] = Daemon::Dead;
        self.hung.remove(&swap.successor);
        self.swap_is_over(swap);
    }

    fn commit(&mut self) {
        let Some(swap) = self.swap.take() else { return };
        self.daemons[swap.successor] = Daemon::Serving;
        if self.lives(swap.incumbent) {
            self.daemons[swap.incumbent] = Daemon::Leaving;
        }
        self.swap_is_over(swap);
    }

    fn swap_is_over(&mut self, swap: Swap) {
        if let Some(supervisor) = self.supervisor.as_mut().filter(|_| swap.own) {
            supervisor.swap_ended = true;
        }
    }

    fn end_supervisor(&mut self) {
        self.supervisor = None;
        self.stop = false;
        self.readies = 0;
        if let Some(swap) = &mut self.swap
            && swap.own
        {
            swap.own = false;
            let passed = swap.passed;
            if !passed {
                // The lease's last copy closes.
                self.undo();
            }
        }
    }

    fn note(&self, what: &'static str) {
        SEEN.lock().unwrap().insert(what);
    }

    fn act(&mut self) {
        let Some(action) = self.supervisor.as_mut().and_then(|supervisor| supervisor.actions.pop_front())
        else {
            return;
        };
        let (serves, swapping, looked) = (self.holder().is_some(), self.swap, self.look());
        let _ = looked;
        let Some(supervisor) = &mut self.supervisor else { return };
        let known = supervisor.daemon;
        match action {
            Action::Inquire => supervisor.asks = true,
            Action::Start => {
                supervisor.starts = true;
                if serves {
                    self.wrong = Some("a start while somebody has the lock");
                }
            }
            Action::RunSwap => {
                let former = supervisor.former.clone();
                if swapping.is_some_and(|swap| swap.own) {
                    self.wrong = Some("two swaps at once");
                } else if former.iter().any(|daemon| self.lives(*daemon)) {
                    self.wrong = Some("a swap while one lingers");
                }
                self.begin_swap(known);
            }
            Action::CancelSwap => supervisor.cancels = true,
            Action::Rehearse => supervisor.rehearses = true,
            Action::Become => {
                let waiting = supervisor.machine.waiting.clone();
                *supervisor = System::begin(true, waiting);
                self.note("reexec");
            }
            Action::Retire => supervisor.retires = true,
            Action::Signal(force) => {
                if let Some(daemon) = known {
                    self.signal(daemon, force);
                }
            }
            Action::EndLingerer(force) => {
                for daemon in supervisor.former.clone() {
                    self.signal(daemon, force);
                }
                self.note("a lingerer is ended");
            }
            Action::Tell(Word::Ready) => self.readies += 1,
            Action::Arm(timer) => drop(supervisor.timers.insert(timer)),
            Action::Disarm(timer) => drop(supervisor.timers.remove(&timer)),
            Action::Exit(how) => {
                // One that another driver has replaced just now, and that this supervisor never knew, ends by itself.
                let known: BTreeSet<usize> = supervisor.former.iter().copied().chain(known).collect();
                let counts = |daemon| !self.is(daemon, Daemon::Leaving) || known.contains(&daemon);
                let alive = (0..DAEMONS).any(|daemon| self.lives(daemon) && counts(daemon));
                match how {
                    How::Stopped if alive => self.wrong = Some("a stop that leaves a daemon"),
                    How::Follow if serves => self.wrong = Some("an end while somebody serves"),
                    _ => {}
                }
                self.note(match how {
                    How::Stopped => "stopped",
                    How::Follow => "followed",
                    How::Blocked => "blocked",
                });
                self.ended = Some(how);
                self.end_supervisor();
            }
            Action::DeclineReexec
            | Action::Queue
            | Action::Refuse
            | Action::RefuseWaiting
            | Action::Tell(_) => {}
        }
    }

    fn signal(&mut self, daemon: usize, force: Force) {
        match force {
            _ if !self.lives(daemon) => {}
            Force::Term => drop(self.termed.insert(daemon)),
            Force::Kill => self.kill(daemon),
        }
    }

    /// One that cannot be begun has ended.
    fn begin_swap(&mut self, known: Option<usize>) {
        let incumbent = known.filter(|daemon| self.is(*daemon, Daemon::Serving) && self.swap.is_none());
        let successor = incumbent.and_then(|_| self.make(Daemon::Warm));
        match (incumbent, successor) {
            (Some(incumbent), Some(successor)) => {
                self.swap = Some(Swap { incumbent, successor, passed: false, own: true });
            }
            _ => self.supervisor.as_mut().unwrap().swap_ended = true,
        }
    }

    /// What the shell takes in of an answer.
    fn answered(&mut self, then: Then) -> Vec<Input> {
        let daemons = self.daemons;
        let Some(supervisor) = &mut self.supervisor else { return vec![] };
        let Some((found, daemon)) = supervisor.answer.take() else { return vec![] };
        if supervisor.machine.phase != Phase::Inquiring {
            return vec![];
        }
        let lives = |daemon: usize| daemons[daemon] != Daemon::Dead;
        if daemon.is_some_and(|daemon| !lives(daemon)) {
            supervisor.asks = true;
            return vec![];
        }
        if let Some(daemon) = daemon {
            supervisor.former.remove(&daemon);
            let before = supervisor.daemon.replace(daemon);
            supervisor.former.extend(before.filter(|before| *before != daemon && lives(*before)));
        }
        let known = supervisor.daemon.is_some_and(lives);
        let lost = supervisor.daemon.take_if(|daemon| !lives(*daemon)).map(|_| Input::DaemonLost(then));
        let lingers = (matches!(found, Found::Serving | Found::Nobody) && !supervisor.former.is_empty())
            .then_some(Input::Lingers);
        let found = Input::Found(found, known || found == Found::Serving);
        lost.into_iter().chain(lingers).chain([found]).collect()
    }
}

impl Model for System {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            supervisor: Some(Self::begin(false, VecDeque::new())),
            daemons: [Daemon::Dead; DAEMONS],
            hung: BTreeSet::new(),
            termed: BTreeSet::new(),
            made: 0,
            swap: None,
            left: self.budget,
            ended: None,
            stop: false,
            readies: 0,
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        if world.wrong.is_some() {
            return;
        }
        moves.extend(own_moves(self, world));
        let left = world.left;
        match &world.supervisor {
            Some(supervisor) => {
                if left.kills > 0 {
                    moves.push(Move::Kill);
                }
                if supervisor.actions.is_empty() {
                    for (job, count) in [(Job::Swap, left.swaps), (Job::Reexec, left.reexecs)] {
                        if count > 0 {
                            moves.extend([Move::Request(job, false), Move::Request(job, true)]);
                        }
                    }
                    if left.stops > 0 {
                        moves.push(Move::StopIt);
                    }
                }
            }
            None if world.ended != Some(How::Stopped) => moves.push(Move::Again),
            None => {}
        }
        for daemon in 0..DAEMONS {
            if left.deaths > 0 && world.lives(daemon) {
                moves.push(Move::Crash(daemon));
            }
            if left.hangs > 0 && matches!(world.daemons[daemon], Daemon::Serving | Daemon::Leaving) {
                moves.push(Move::Hang(daemon));
            }
        }
        if left.rivals > 0 && world.swap.is_none() && world.look().0 == Found::Serving && world.made < DAEMONS
        {
            moves.push(Move::Rival);
        }
    }

    fn next_state(&self, last: &World, action: Move) -> Option<World> {
        let mut world = last.clone();
        let mut inputs = vec![];
        match action {
            Move::Act => world.act(),
            Move::Feed(input) => {
                let supervisor = world.supervisor.as_mut()?;
                match input {
                    Input::Expired(timer) => drop(supervisor.timers.remove(&timer)),
                    Input::DaemonLost(_) => supervisor.daemon = None,
                    Input::LingererLost => supervisor.former.clear(),
                    Input::SwapEnded => (supervisor.swap_ended, supervisor.cancels) = (false, false),
                    Input::Started => supervisor.started = false,
                    Input::Rehearsed | Input::ReexecFailed => supervisor.rehearses = false,
                    _ => {}
                }
                inputs.push(input);
            }
            Move::Ask => {
                let found = world.look();
                let supervisor = world.supervisor.as_mut()?;
                (supervisor.asks, supervisor.answer) = (false, Some(found));
            }
            Move::Answer => inputs = world.answered(self.then),
            Move::Start(works) => {
                world.supervisor.as_mut()?.starts = false;
                if !works {
                    world.left.failures -= 1;
                    inputs.push(Input::StartFailed(self.then));
                } else if world.holder().is_some() {
                    inputs.push(Input::Overtaken);
                } else {
                    let daemon = world.make(Daemon::Starting)?;
                    let supervisor = world.supervisor.as_mut()?;
                    (supervisor.daemon, supervisor.started) = (Some(daemon), true);
                }
            }
            Move::Retire(works) => {
                let daemon = world.holder().filter(|daemon| works && world.is(*daemon, Daemon::Serving));
                if world.swap.is_some() {
                    world.undo();
                } else if let Some(daemon) = daemon {
                    world.daemons[daemon] = Daemon::Leaving;
                }
                if world.swap.is_none() {
                    world.supervisor.as_mut()?.retires = false;
                    inputs.push(Input::RetireEnded);
                }
            }
            Move::Serve(daemon) => {
                world.daemons[daemon] = Daemon::Serving;
                if world.supervisor.as_ref().is_some_and(|supervisor| {
                    supervisor.machine.phase == Phase::Starting && supervisor.daemon == Some(daemon)
                }) {
                    world.note("started");
                }
            }
            Move::Die(daemon) => world.kill(daemon),
            Move::Pass => world.swap.as_mut()?.passed = true,
            Move::Commit => {
                world.commit();
                world.note("committed");
            }
            Move::Undo => {
                world.undo();
                world.note("rolled back");
            }
            Move::Cancelled => world.undo(),
            Move::Kill => {
                world.left.kills -= 1;
                world.ended = None;
                if world.swap.is_some() {
                    world.note("killed in a swap");
                }
                world.end_supervisor();
            }
            Move::Again => {
                world.supervisor = Some(Self::begin(false, VecDeque::new()));
                if world.look().0 == Found::Serving {
                    world.note("adopted");
                }
            }
            Move::Crash(daemon) => {
                world.left.deaths -= 1;
                world.kill(daemon);
            }
            Move::Hang(daemon) => {
                world.left.hangs -= 1;
                world.hung.insert(daemon);
            }
            Move::Rival => {
                world.left.rivals -= 1;
                let incumbent = world.look().1?;
                let successor = world.make(Daemon::Warm)?;
                world.swap = Some(Swap { incumbent, successor, passed: false, own: false });
            }
            Move::Request(job, waits) => {
                match job {
                    Job::Swap => world.left.swaps -= 1,
                    Job::Reexec => world.left.reexecs -= 1,
                }
                inputs.push(Input::Asked(job, waits));
            }
            Move::StopIt => {
                world.left.stops -= 1;
                world.stop = true;
                inputs.push(Input::StopAsked);
            }
        }
        for input in inputs {
            let supervisor = world.supervisor.as_mut()?;
            let actions = self.step(&mut supervisor.machine, input);
            supervisor.actions.extend(actions);
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is done that must not be", |_, world: &World| world.wrong.is_none()),
            Property::always("that it is ready is said once", |_, world: &World| world.readies <= 1),
            Property::always("at rest a daemon serves, or a stop has ended", |system, world: &World| {
                world.wrong.is_some() || !own_moves(system, world).is_empty() || is_good(world)
            }),
        ]
    }
}

/// Everything that happens without faults and requests.
fn own_moves(system: &System, world: &World) -> Vec<Move> {
    let mut moves = vec![];
    for daemon in 0..DAEMONS {
        let hangs = world.hung.contains(&daemon);
        if world.is(daemon, Daemon::Starting) {
            moves.push(Move::Serve(daemon));
        }
        if !hangs && (world.is(daemon, Daemon::Leaving) || world.termed.contains(&daemon)) {
            moves.push(Move::Die(daemon));
        }
    }
    if let Some(swap) = world.swap {
        match swap.passed {
            true => moves.push(Move::Commit),
            false if world.hung.contains(&swap.incumbent) => moves.push(Move::Undo),
            false => moves.push(Move::Pass),
        }
        if world.lives(swap.incumbent) {
            moves.push(Move::Undo);
        }
    }
    let Some(supervisor) = &world.supervisor else { return moves };
    if !supervisor.actions.is_empty() {
        // Nothing is fed in between the actions of one step.
        moves.push(Move::Act);
        return moves;
    }
    let dead = |daemon: &usize| !world.lives(*daemon);
    if supervisor.asks {
        moves.push(Move::Ask);
    }
    if supervisor.answer.is_some() {
        moves.push(Move::Answer);
    }
    if supervisor.starts {
        if world.made < DAEMONS || world.holder().is_some() {
            moves.push(Move::Start(true));
        }
        if world.left.failures > 0 {
            moves.push(Move::Start(false));
        }
    }
    if supervisor.started {
        moves.push(Move::Feed(Input::Started));
    }
    let is_ready = supervisor.daemon.is_some_and(|daemon| world.is(daemon, Daemon::Serving));
    if supervisor.machine.phase == Phase::Starting && is_ready && !supervisor.started {
        moves.push(Move::Feed(Input::Ready));
    }
    if supervisor.swap_ended {
        moves.push(Move::Feed(Input::SwapEnded));
    }
    if supervisor.cancels && world.swap.is_some_and(|swap| swap.own && !swap.passed) {
        moves.push(Move::Cancelled);
    }
    if supervisor.retires {
        moves.extend([Move::Retire(true), Move::Retire(false)]);
    }
    if supervisor.rehearses {
        moves.extend([Move::Feed(Input::Rehearsed), Move::Feed(Input::ReexecFailed)]);
    }
    if supervisor.daemon.as_ref().is_some_and(dead) && !supervisor.started {
        moves.push(Move::Feed(Input::DaemonLost(system.then)));
    }
    if !supervisor.former.is_empty() && supervisor.former.iter().all(dead) {
        moves.push(Move::Feed(Input::LingererLost));
    }
    moves.extend(supervisor.timers.iter().map(|timer| Move::Feed(Input::Expired(*timer))));
    moves
}

/// A state that may last.
fn is_good(world: &World) -> bool {
    let serving: Vec<usize> = (0..DAEMONS).filter(|daemon| world.lives(*daemon)).collect();
    match &world.supervisor {
        // It is to be started again, which is a move of its own, or was stopped and has left nobody.
        None => world.ended != Some(How::Stopped) || serving.is_empty(),
        // This run has no daemons left.
        Some(supervisor) if supervisor.starts => world.made == DAEMONS,
        Some(supervisor) => {
            let hangs = serving.iter().any(|daemon| world.hung.contains(daemon));
            let machine = &supervisor.machine;
            let serves = serving.len() == 1 && supervisor.daemon == Some(serving[0]);
            !world.stop && machine.stop == Stop::No && machine.phase == Phase::Serving && (serves || hangs)
        }
    }
}

fn check(budget: Budget, then: Then, without: Option<Rule>) -> (usize, Vec<String>) {
    let checker = System { budget, then, without }.checker().threads(2).spawn_bfs().join();
    let found = checker.discoveries().into_iter().map(|(name, path)| {
        let steps: Vec<String> =
            path.clone().into_actions().iter().map(|step| format!("  {step:?}")).collect();
        format!("{name}: {:?}\n{}", path.last_state().wrong, steps.join("\n"))
    });
    (checker.unique_state_count(), found.collect())
}

#[test]
fn the_supervisor_keeps_its_promises() {
    let budgets = [
        ("a kill, a death and two swaps", Budget { kills: 1, deaths: 1, swaps: 2, ..NONE }),
        ("a kill, a rival, a death and a stop", Budget { kills: 1, rivals: 1, deaths: 1, stops: 1, ..NONE }),
        ("two kills, a swap and a stop", Budget { kills: 2, swaps: 1, stops: 1, ..NONE }),
        ("a swap, a hang and two stops", Budget { swaps: 1, hangs: 1, stops: 2, ..NONE }),
        ("a swap, a rival and a hang", Budget { swaps: 1, rivals: 1, hangs: 1, ..NONE }),
        (
            "an upgrade, a swap, a death and a stop",
            Budget { reexecs: 1, swaps: 1, deaths: 1, stops: 1, ..NONE },
        ),
        ("a failure, a death and a stop", Budget { failures: 1, deaths: 1, stops: 1, ..NONE }),
    ];
    for (name, budget) in budgets {
        for then in [Then::Restart, Then::Follow] {
            let (states, found) = check(budget, then, None);
            println!("{name}, {then:?}: {states} states");
            assert!(found.is_empty(), "{name}, {then:?}: {}", found.join("\n"));
        }
    }
    let all = SEEN.lock().unwrap();
    for what in [
        "started",
        "committed",
        "rolled back",
        "adopted",
        "killed in a swap",
        "reexec",
        "stopped",
        "followed",
        "a lingerer is ended",
    ] {
        assert!(all.contains(what), "{what} never happened: {all:?}");
    }
}

#[test]
fn every_rule_is_needed() {
    let budget = |rule| match rule {
        Rule::LooksBeforeItStarts | Rule::LooksBeforeItFollows => Budget { rivals: 1, ..NONE },
        Rule::WaitsForWhoLingers | Rule::OneSwapAtATime => Budget { swaps: 2, ..NONE },
        Rule::SaysReadyOnce => Budget { swaps: 1, ..NONE },
        Rule::StopEndsTheDaemon => Budget { stops: 1, ..NONE },
        Rule::KillsWhatHangs => Budget { stops: 1, hangs: 1, ..NONE },
        Rule::StopIsNotForgotten => Budget { stops: 1, reexecs: 1, ..NONE },
    };
    for rule in RULES {
        let then = if rule == Rule::LooksBeforeItFollows { Then::Follow } else { Then::Restart };
        let (_, found) = check(budget(rule), then, Some(rule));
        assert!(!found.is_empty(), "nothing fails without {rule:?}");
        println!("without {rule:?}: {}", found[0]);
    }
}
