//! What may happen next.

use handoff::proto::driver::{self, Next};
use handoff::proto::incumbent::{self};
use handoff::proto::successor::{self};

use crate::kernel::*;
use crate::pack::{self};
use crate::rules::Rule;
use crate::system::System;
use crate::world::*;

/// One step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// A process carries out the next of its actions.
    Carries(Who),
    /// An incumbent reads from a control connection.
    IncumbentReads(u8, u8),
    /// An incumbent sees the end of the lease.
    IncumbentSeesEnd(u8),
    /// An incumbent sees the successor's pidfd.
    SuccessorSeenDead(u8),
    /// A successor reads from the lease, or the channel.
    SuccessorReadsLease(u8),
    SuccessorReadsChannel(u8),
    SuccessorSeesChannelEnd(u8),
    /// A successor sees the incumbent's pidfd, with nothing left to read.
    IncumbentSeenDead(u8),
    DriverReadsLease(u8),
    DriverSeesEnd(u8),
    DriverReadsChannel(u8),
    DriverSeesChildDead(u8),
    DriverReadsVerdict(u8),
    DriverSeesWatchEnd(u8),
    IncumbentReadsCancel(u8),
    /// What a driver concludes from what is true; or it has asked for long enough.
    Concludes(u8),
    Returns(u8, Return),
    /// A driver that holds is told to go on.
    GoesOn(u8, Next),
    /// The program calls `serve`.
    CallsServe(u8),
    WarmsUp(u8),
    Expires(Who, u8),
    Acknowledges(u8),
    // From here on, nothing has to happen.
    Writes(u8),
    Kill(Who, Unread),
    Stop(Who),
    Continue(Who),
    Fork(Who),
    HelperEnds,
    DriverComes(u8),
    Restart,
    Fails(Who),
    Cancel(u8),
    OperatorAborts(u8),
    OperatorCommits(u8),
    /// A driver says over the lease what does not belong there.
    Babbles(u8, Msg),
}

/// What a hook came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Return {
    Fine,
    Error,
    Unhealthy,
    Stale,
}

/// Whether the last message of a process that is killed is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unread {
    Delivered,
    Lost,
}

impl Move {
    /// Whether the system does this by itself; the rest is faults, clients and people.
    pub fn is_protocol(self) -> bool {
        match self {
            Self::Writes(_)
            | Self::Kill(..)
            | Self::Stop(_)
            | Self::Continue(_)
            | Self::Fork(_)
            | Self::HelperEnds
            | Self::DriverComes(_)
            | Self::Restart
            | Self::Fails(_)
            | Self::Cancel(_)
            | Self::OperatorAborts(_)
            | Self::OperatorCommits(_)
            | Self::Babbles(..) => false,
            Self::Returns(_, result) => result == Return::Fine,
            _ => true,
        }
    }

    pub fn is_timer(self) -> bool {
        // The retry is not a deadline: it is how a lock that is free again is noticed.
        matches!(self, Self::Expires(who, timer) if !(matches!(who, Who::Daemon(_)) && timer == RETRY))
    }
}

// Timers by their bit. A daemon has those of an incumbent and the one of a successor.
pub const DEADLINE: u8 = 0;
pub const STAND_BY: u8 = 1;
pub const BAKE: u8 = 2;
pub const STEP_DOWN: u8 = 3;
pub const RETRY: u8 = 4;
pub const SUCCESSOR_SILENCE: u8 = 5;
pub const ANSWER: u8 = 0;
pub const WARM_UP: u8 = 1;
pub const DRIVER_SILENCE: u8 = 2;
pub const DISMISSAL: u8 = 3;

/// The control connection of a person.
pub const OPERATOR: u64 = 9;

pub fn incumbent_timer(timer: incumbent::Timer) -> u8 {
    match timer {
        incumbent::Timer::Deadline => DEADLINE,
        incumbent::Timer::StandBy => STAND_BY,
        incumbent::Timer::Bake => BAKE,
        incumbent::Timer::StepDown => STEP_DOWN,
        incumbent::Timer::Retry => RETRY,
    }
}

pub fn driver_timer(timer: driver::Timer) -> u8 {
    match timer {
        driver::Timer::Answer => ANSWER,
        driver::Timer::WarmUp => WARM_UP,
        driver::Timer::Silence => DRIVER_SILENCE,
        driver::Timer::Dismissal => DISMISSAL,
    }
}

pub const INCUMBENT_TIMERS: [incumbent::Timer; 5] = [
    incumbent::Timer::Deadline,
    incumbent::Timer::StandBy,
    incumbent::Timer::Bake,
    incumbent::Timer::StepDown,
    incumbent::Timer::Retry,
];

pub const DRIVER_TIMERS: [driver::Timer; 4] =
    [driver::Timer::Answer, driver::Timer::WarmUp, driver::Timer::Silence, driver::Timer::Dismissal];

impl System {
    /// Lists what may happen next.
    pub fn moves(&self, s: &State, moves: &mut Vec<Move>) {
        for i in 0..DAEMONS {
            self.daemon_moves(s, i, moves);
        }
        for d in 0..DRIVERS {
            self.driver_moves(s, d, moves);
        }
        self.faults(s, moves);
    }

    pub fn daemon_moves(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
        let daemon = &s.daemons[i];
        let me = i as u8;
        if daemon.life != Life::Running {
            return;
        }
        if let Some(next) = daemon.todo.front() {
            let waits = next == Do::TryLock
                && matches!(daemon.role, Role::Successor { .. })
                && self.is_without(Rule::LockWithoutBlocking)
                && s.lock.is_some();
            if !waits {
                moves.push(Move::Carries(Who::Daemon(me)));
            }
        }
        if daemon.hook == Some(Hook::Sync) && s.budget.errors > 0 {
            moves.push(Move::Fails(Who::Daemon(me)));
        }
        if daemon.in_flight {
            moves.push(Move::Acknowledges(me));
        }
        if daemon.serve_due {
            moves.push(Move::CallsServe(me));
        }
        if daemon.serving && !daemon.in_flight && s.budget.writes > 0 {
            moves.push(Move::Writes(me));
        }
        self.returns(s, i, moves);
        if !daemon.todo.is_empty() {
            return;
        }
        match daemon.role {
            Role::Nobody => {}
            Role::Incumbent { .. } => self.incumbent_moves(s, i, moves),
            Role::Successor { .. } => self.successor_moves(s, i, moves),
        }
    }

    pub fn returns(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
        let daemon = &s.daemons[i];
        let Some(hook) = daemon.hook else { return };
        // The hook's thread ends at any time, but its result is taken only between two steps.
        if !daemon.todo.is_empty() {
            return;
        }
        let joins = matches!(hook, Hook::Drain | Hook::Seal | Hook::Stop);
        if joins && daemon.in_flight && !self.is_without(Rule::WritesAreJoined) {
            return;
        }
        moves.push(Move::Returns(i as u8, Return::Fine));
        if s.budget.errors > 0 && !matches!(hook, Hook::Fence | Hook::Sync) {
            moves.push(Move::Returns(i as u8, Return::Error));
        }
        if s.budget.bad > 0 && hook == Hook::Open {
            moves.push(Move::Returns(i as u8, Return::Unhealthy));
            // One that starts as after a crash has nothing to compare with: there it is trusted, as any program is.
            if matches!(daemon.role, Role::Successor { sealed: Some(_), .. }) {
                moves.push(Move::Returns(i as u8, Return::Stale));
            }
        }
    }

    pub fn incumbent_moves(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
        let me = i as u8;
        let readable = moves.len();
        for d in 0..DRIVERS {
            let driver = &s.drivers[d];
            if driver.lease.server == me && driver.lease.server_open && !driver.lease.to_server.is_empty() {
                moves.push(Move::IncumbentReads(me, d as u8));
            }
            if driver.cancel && driver.lease.server == me {
                moves.push(Move::IncumbentReadsCancel(d as u8));
            }
        }
        if let Some(run) = self.run_of(s, i) {
            let d = run.lease as usize;
            let lease = &s.drivers[d].lease;
            let ended = lease.server_open && lease.to_server.is_empty() && !s.client_open(d);
            let seen = !self.is_without(Rule::EndOfFileIsDeath);
            if ended && seen && self.incumbent_heeds(s, i, &incumbent::Input::LeaseLost) {
                moves.push(Move::IncumbentSeesEnd(me));
            }
            // What the successor said before it died is read before its death counts.
            if run.attached
                && lease.to_server.is_empty()
                && self.pidfd_readable(s, d)
                && self.incumbent_heeds(s, i, &incumbent::Input::SuccessorLost)
            {
                moves.push(Move::SuccessorSeenDead(me));
            }
        }
        for timer in INCUMBENT_TIMERS {
            let code = incumbent_timer(timer);
            let late = !matches!(code, DEADLINE | BAKE) && moves.len() > readable;
            if s.daemons[i].armed(code) && !late && self.incumbent_timer_may_end(s, i, code) {
                moves.push(Move::Expires(Who::Daemon(me), code));
            }
        }
    }

    /// Which of an incumbent's timers can end now.
    ///
    /// `Deadline` and `Bake` are lengths that somebody chose, and end at any time. The others are longer than anything a
    /// process that runs takes, and they end only where the successor does not run, and after all that can be read.
    pub fn incumbent_timer_may_end(&self, s: &State, i: usize, timer: u8) -> bool {
        let successor = self.run_of(s, i).map(|run| &s.daemons[successor_of(run.lease as usize)]);
        let runs = successor.is_some_and(|successor| successor.life == Life::Running);
        match timer {
            STAND_BY | STEP_DOWN => !runs,
            // Trying a lock that is still held changes nothing.
            RETRY => s.lock.is_none() || matches!(self.busy(s, i), incumbent::Input::Overtaken(_)),
            _ => true,
        }
    }

    pub fn pidfd_readable(&self, s: &State, d: usize) -> bool {
        if self.is_without(Rule::PidfdIsDeath) {
            return false;
        }
        if self.is_without(Rule::OwnPidfd) {
            return matches!(s.drivers[d].life, Life::Gone(_));
        }
        matches!(s.daemons[successor_of(d)].life, Life::Gone(_))
    }

    pub fn successor_moves(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
        let d = driver_of(i);
        let (me, code) = (i as u8, d as u8);
        let driver = &s.drivers[d];
        let Role::Successor { phase, warm, .. } = s.daemons[i].role else { return };
        if !warm {
            moves.push(Move::WarmsUp(code));
            return;
        }
        let readable = moves.len();
        if driver.lease.successor && !driver.lease.to_client.is_empty() {
            moves.push(Move::SuccessorReadsLease(code));
        }
        let incumbent_dead = !s.daemons[driver.lease.server as usize].alive();
        if incumbent_dead
            && (!driver.lease.successor || driver.lease.to_client.is_empty())
            && self.successor_heeds(s, i, &successor::Input::IncumbentLost)
        {
            moves.push(Move::IncumbentSeenDead(code));
            // One that waits looks at the pidfd before the channel: whatever the driver says or does not say any more,
            // nobody else is there to serve.
            if phase == pack::WAITING {
                return;
            }
        }
        // Once it has the lease, or the lock, the channel is only for what it tells.
        if phase == pack::WAITING && !driver.channel.to_successor.is_empty() {
            moves.push(Move::SuccessorReadsChannel(code));
        }
        let channel_ended = matches!(driver.life, Life::Gone(_)) && driver.channel.to_successor.is_empty();
        if channel_ended && self.successor_heeds(s, i, &successor::Input::ChannelLost) {
            moves.push(Move::SuccessorSeesChannelEnd(code));
        }
        // Longer than the incumbent's deadline or trial: it ends only where the incumbent does not run. While waiting, it
        // is longer than all that a driver does, and ends only where the driver does not run.
        let silent = match phase {
            pack::WAITING => driver.life != Life::Running,
            _ => s.daemons[driver.lease.server as usize].life != Life::Running,
        };
        if s.daemons[i].armed(SUCCESSOR_SILENCE) && silent && moves.len() == readable {
            moves.push(Move::Expires(Who::Daemon(me), SUCCESSOR_SILENCE));
        }
    }

    pub fn driver_moves(&self, s: &State, d: usize, moves: &mut Vec<Move>) {
        let driver = &s.drivers[d];
        let me = d as u8;
        if driver.life != Life::Running {
            return;
        }
        if let Some(next) = driver.todo.front() {
            moves.push(Move::Carries(Who::Driver(me)));
            if matches!(next, Do::Spawn) && s.budget.errors > 0 {
                moves.push(Move::Fails(Who::Driver(me)));
            }
            return;
        }
        let readable = moves.len();
        if driver.lease.driver && driver.phase < pack::DECIDING {
            if !driver.lease.to_client.is_empty() {
                moves.push(Move::DriverReadsLease(me));
            } else if !s.server_open(d) && self.driver_heeds(s, d, &driver::Input::LeaseLost) {
                moves.push(Move::DriverSeesEnd(me));
            }
        }
        if !driver.channel.to_driver.is_empty() {
            moves.push(Move::DriverReadsChannel(me));
        } else if !s.daemons[successor_of(d)].alive()
            && self.driver_heeds(s, d, &driver::Input::SuccessorLost)
        {
            moves.push(Move::DriverSeesChildDead(me));
        }
        if driver.verdict.is_some() {
            moves.push(Move::DriverReadsVerdict(me));
        } else if !s.daemons[driver.lease.server as usize].alive()
            && s.helper.is_none_or(|h| h.servers & (1 << d) == 0)
            && self.driver_heeds(s, d, &driver::Input::WatchLost)
        {
            moves.push(Move::DriverSeesWatchEnd(me));
        }
        if driver.inquiring {
            moves.push(Move::Concludes(me));
        }
        // A shell looks at its timers after everything that it can read.
        if moves.len() > readable {
            return;
        }
        for next in [Next::Phase, Next::Spawn, Next::Become, Next::Retire] {
            if self.driver_heeds(s, d, &driver::Input::Go(next)) {
                moves.push(Move::GoesOn(me, next));
            }
        }
        for timer in DRIVER_TIMERS {
            let code = driver_timer(timer);
            if driver.armed(code) && driver_timer_may_end(s, d, code) {
                moves.push(Move::Expires(Who::Driver(me), code));
            }
        }
    }

    pub fn faults(&self, s: &State, moves: &mut Vec<Move>) {
        for i in 0..DAEMONS {
            self.faults_of(s, Who::Daemon(i as u8), s.daemons[i].life, moves);
            if s.daemons[i].life == Life::Running && s.budget.words > 0 && s.path == i as u8 {
                operator_moves(s, i, moves);
            }
        }
        for d in 0..DRIVERS {
            self.faults_of(s, Who::Driver(d as u8), s.drivers[d].life, moves);
            if s.drivers[d].idle() && s.budget.words > 0 {
                moves.push(Move::Cancel(d as u8));
            }
            if s.drivers[d].idle() && s.drivers[d].lease.driver && s.budget.bad > 0 {
                moves.extend([Msg::Prepare, Msg::Drain, Msg::Seal].map(|msg| Move::Babbles(d as u8, msg)));
            }
        }
        if s.helper.is_some() {
            moves.push(Move::HelperEnds);
        }
        if s.drivers[0].life == Life::Absent {
            moves.push(Move::DriverComes(0));
        } else if s.drivers[1].life == Life::Absent && s.budget.drivers > 0 {
            moves.push(Move::DriverComes(1));
        }
        if s.budget.restarts > 0 && may_restart(s) {
            moves.push(Move::Restart);
        }
    }

    pub fn faults_of(&self, s: &State, who: Who, life: Life, moves: &mut Vec<Move>) {
        if matches!(life, Life::Absent | Life::Gone(_)) {
            return;
        }
        if s.budget.kills > 0 {
            moves.push(Move::Kill(who, Unread::Delivered));
            let mut lost = *s;
            if lose_last(&mut lost, who) {
                moves.push(Move::Kill(who, Unread::Lost));
            }
        }
        if life == Life::Stopped {
            moves.push(Move::Continue(who));
            return;
        }
        if s.budget.stops > 0 {
            moves.push(Move::Stop(who));
        }
        if s.budget.helpers > 0 {
            moves.push(Move::Fork(who));
        }
    }
}

pub fn operator_moves(s: &State, i: usize, moves: &mut Vec<Move>) {
    match s.daemons[i].role {
        Role::Incumbent { phase: 1.., .. } if s.daemons[i].idle() => {
            moves.push(Move::OperatorAborts(i as u8));
        }
        Role::Successor { phase: pack::ON_TRIAL, .. } if s.daemons[i].idle() => {
            moves.push(Move::OperatorAborts(i as u8));
        }
        _ => {}
    }
    // The commit of a trial is relayed too: it reaches the incumbent that stands by.
    for (standing_by, daemon) in s.daemons.iter().enumerate() {
        if matches!(daemon.role, Role::Incumbent { phase: 8..=10, .. }) && daemon.idle() {
            moves.push(Move::OperatorCommits(standing_by as u8));
        }
    }
}

/// Which of a driver's timers can end now.
///
/// The warm-up's length is somebody's choice, and ends at any time. The others are longer than what a peer that runs
/// needs: they end only where the incumbent, or for an orphan the successor, does not run.
pub fn driver_timer_may_end(s: &State, d: usize, timer: u8) -> bool {
    let driver = &s.drivers[d];
    let incumbent_runs = s.daemons[driver.lease.server as usize].life == Life::Running;
    let incumbent_stopped = s.daemons[driver.lease.server as usize].life == Life::Stopped;
    let successor_runs = s.daemons[successor_of(d)].life == Life::Running;
    match timer {
        WARM_UP => true,
        DRIVER_SILENCE if driver.phase == pack::ORPHANED => !successor_runs || incumbent_stopped,
        DISMISSAL => !successor_runs,
        _ => !incumbent_runs,
    }
}

/// A supervisor restarts what died: no incumbent is there, and nobody has the lock.
pub fn may_restart(s: &State) -> bool {
    let incumbents =
        s.daemons.iter().filter(|d| d.alive() && matches!(d.role, Role::Incumbent { .. })).count();
    incumbents == 0 && s.lock.is_none() && s.daemons[RESTARTED].life == Life::Absent
}
