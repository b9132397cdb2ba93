//! How the world moves: one action of one process, one input, one fault at a time.

use handoff::proto::driver::{self, Action as DriverDo};
use handoff::proto::incumbent::{self, Action as IncumbentDo, Message, Request};
use handoff::proto::record;
use handoff::proto::recovery::{self, Conclusion, Facts};
use handoff::proto::successor::{self, Action as SuccessorDo, Message as Said, News, Trial};
use handoff::proto::{Reason, Verdict};

use crate::pack::{self, REASON};
use crate::rules::{self, Rule};
use crate::system::{Event, System};
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
const OPERATOR: u64 = 9;

fn incumbent_timer(timer: incumbent::Timer) -> u8 {
    match timer {
        incumbent::Timer::Deadline => DEADLINE,
        incumbent::Timer::StandBy => STAND_BY,
        incumbent::Timer::Bake => BAKE,
        incumbent::Timer::StepDown => STEP_DOWN,
        incumbent::Timer::Retry => RETRY,
    }
}

fn driver_timer(timer: driver::Timer) -> u8 {
    match timer {
        driver::Timer::Answer => ANSWER,
        driver::Timer::WarmUp => WARM_UP,
        driver::Timer::Silence => DRIVER_SILENCE,
        driver::Timer::Dismissal => DISMISSAL,
    }
}

const INCUMBENT_TIMERS: [incumbent::Timer; 5] = [
    incumbent::Timer::Deadline,
    incumbent::Timer::StandBy,
    incumbent::Timer::Bake,
    incumbent::Timer::StepDown,
    incumbent::Timer::Retry,
];

const DRIVER_TIMERS: [driver::Timer; 4] =
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

    fn daemon_moves(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
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

    fn returns(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
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

    fn incumbent_moves(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
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
    fn incumbent_timer_may_end(&self, s: &State, i: usize, timer: u8) -> bool {
        let successor = self.run_of(s, i).map(|run| &s.daemons[successor_of(run.lease as usize)]);
        let runs = successor.is_some_and(|successor| successor.life == Life::Running);
        match timer {
            STAND_BY | STEP_DOWN => !runs,
            // Trying a lock that is still held changes nothing.
            RETRY => s.lock.is_none() || matches!(self.busy(s, i), incumbent::Input::Overtaken(_)),
            _ => true,
        }
    }

    fn pidfd_readable(&self, s: &State, d: usize) -> bool {
        if self.is_without(Rule::PidfdIsDeath) {
            return false;
        }
        if self.is_without(Rule::OwnPidfd) {
            return matches!(s.drivers[d].life, Life::Gone(_));
        }
        matches!(s.daemons[successor_of(d)].life, Life::Gone(_))
    }

    fn successor_moves(&self, s: &State, i: usize, moves: &mut Vec<Move>) {
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

    fn driver_moves(&self, s: &State, d: usize, moves: &mut Vec<Move>) {
        let driver = &s.drivers[d];
        let me = d as u8;
        if driver.life != Life::Running {
            return;
        }
        if let Some(next) = driver.todo.front() {
            moves.push(Move::Carries(Who::Driver(me)));
            if next == Do::Spawn && s.budget.errors > 0 {
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
            && !s.helper.is_some_and(|h| h.servers & (1 << d) != 0)
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
        for timer in DRIVER_TIMERS {
            let code = driver_timer(timer);
            if driver.armed(code) && driver_timer_may_end(s, d, code) {
                moves.push(Move::Expires(Who::Driver(me), code));
            }
        }
    }

    fn faults(&self, s: &State, moves: &mut Vec<Move>) {
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

    fn faults_of(&self, s: &State, who: Who, life: Life, moves: &mut Vec<Move>) {
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

    /// Makes a move.
    pub fn make(&self, s: &mut State, step: Move) {
        match step {
            Move::Carries(Who::Daemon(i)) => self.carry_daemon(s, i as usize),
            Move::Carries(Who::Driver(d)) => self.carry_driver(s, d as usize),
            Move::IncumbentReads(i, d) => self.incumbent_reads(s, i as usize, d as usize),
            Move::IncumbentSeesEnd(i) => self.feed_incumbent(s, i as usize, &incumbent::Input::LeaseLost),
            Move::SuccessorSeenDead(i) => {
                self.feed_incumbent(s, i as usize, &incumbent::Input::SuccessorLost);
            }
            Move::IncumbentReadsCancel(d) => self.incumbent_reads_cancel(s, d as usize),
            Move::SuccessorReadsLease(d) => self.successor_reads_lease(s, d as usize),
            Move::SuccessorReadsChannel(d) => self.successor_reads_channel(s, d as usize),
            Move::SuccessorSeesChannelEnd(d) => {
                self.feed_successor(s, successor_of(d as usize), &successor::Input::ChannelLost);
            }
            Move::IncumbentSeenDead(d) => self.incumbent_seen_dead(s, d as usize),
            Move::DriverReadsLease(d) => self.driver_reads_lease(s, d as usize),
            Move::DriverSeesEnd(d) => self.feed_driver(s, d as usize, &driver::Input::LeaseLost),
            Move::DriverReadsChannel(d) => self.driver_reads_channel(s, d as usize),
            Move::DriverSeesChildDead(d) => self.feed_driver(s, d as usize, &driver::Input::SuccessorLost),
            Move::DriverReadsVerdict(d) => self.driver_reads_verdict(s, d as usize),
            Move::DriverSeesWatchEnd(d) => self.feed_driver(s, d as usize, &driver::Input::WatchLost),
            Move::Concludes(d) => self.concludes(s, d as usize),
            Move::Returns(i, result) => self.hook_returns(s, i as usize, result),
            Move::CallsServe(i) => {
                s.daemons[i as usize].serve_due = false;
                if matches!(s.daemons[i as usize].role, Role::Successor { .. }) {
                    self.feed_successor(s, i as usize, &successor::Input::ServeCalled);
                }
            }
            Move::WarmsUp(d) => warms_up(s, d as usize),
            Move::Expires(Who::Daemon(i), timer) => self.daemon_timer_ends(s, i as usize, timer),
            Move::Expires(Who::Driver(d), timer) => self.driver_timer_ends(s, d as usize, timer),
            Move::Acknowledges(i) => self.acknowledge(s, i as usize),
            fault => self.make_fault(s, fault),
        }
        tidy(s);
    }

    /// Carries out all that is begun.
    pub fn finish_steps(&self, s: &mut State) {
        loop {
            let daemon = s.daemons.iter().position(|d| d.life == Life::Running && !d.todo.is_empty());
            let driver = s.drivers.iter().position(|d| d.life == Life::Running && !d.todo.is_empty());
            match (daemon, driver) {
                (Some(i), _) => self.make(s, Move::Carries(Who::Daemon(i as u8))),
                (None, Some(d)) => self.make(s, Move::Carries(Who::Driver(d as u8))),
                (None, None) => return,
            }
        }
    }

    fn make_fault(&self, s: &mut State, fault: Move) {
        match fault {
            Move::Writes(i) => {
                s.budget.writes -= 1;
                s.daemons[i as usize].in_flight = true;
            }
            Move::Kill(who, unread) => {
                s.budget.kills -= 1;
                if unread == Unread::Lost {
                    lose_last(s, who);
                }
                end(s, who, End::Fault);
            }
            Move::Stop(who) => {
                s.budget.stops -= 1;
                match who {
                    Who::Daemon(i) => {
                        s.daemons[i as usize].life = Life::Stopped;
                        s.daemons[i as usize].faulty = true;
                    }
                    Who::Driver(d) => s.drivers[d as usize].life = Life::Stopped,
                }
            }
            Move::Continue(Who::Daemon(i)) => s.daemons[i as usize].life = Life::Running,
            Move::Continue(Who::Driver(d)) => s.drivers[d as usize].life = Life::Running,
            Move::Fork(who) => fork(s, who),
            Move::HelperEnds => end_helper(s),
            Move::DriverComes(d) => self.driver_comes(s, d as usize),
            Move::Restart => self.restart(s),
            Move::Fails(Who::Daemon(i)) => self.sync_fails(s, i as usize),
            Move::Fails(Who::Driver(d)) => {
                s.budget.errors -= 1;
                s.drivers[d as usize].todo.pop();
                self.feed_driver(s, d as usize, &driver::Input::SpawnFailed(String::new()));
            }
            Move::Cancel(d) => {
                s.budget.words -= 1;
                self.feed_driver(s, d as usize, &driver::Input::Cancel(String::new()));
            }
            Move::OperatorAborts(i) => self.operator_aborts(s, i as usize),
            Move::Babbles(d, msg) => {
                s.budget.bad -= 1;
                send_to_server(s, d as usize, msg);
            }
            Move::OperatorCommits(i) => {
                s.budget.words -= 1;
                self.feed_incumbent(s, i as usize, &incumbent::Input::OperatorCommit(OPERATOR));
            }
            other => unreachable!("{other:?} is a move of the protocol"),
        }
    }

    // ---- The incumbent.

    pub fn run_of(&self, s: &State, i: usize) -> Option<Run> {
        match s.daemons[i].role {
            Role::Incumbent { run, .. } => run,
            _ => None,
        }
    }

    fn incumbent_heeds(&self, s: &State, i: usize, input: &incumbent::Input) -> bool {
        let Role::Incumbent { phase, generation, run, .. } = s.daemons[i].role else { return false };
        let machine = pack::incumbent(phase, generation, run);
        rules::incumbent_row(self.without, &machine, input) != incumbent::Row::Ignore
    }

    fn feed_incumbent(&self, s: &mut State, i: usize, input: &incumbent::Input) {
        let Role::Incumbent { phase, generation, run, from } = s.daemons[i].role else { return };
        let mut machine = pack::incumbent(phase, generation, run);
        let row = rules::incumbent_row(self.without, &machine, input);
        if self.is_without(Rule::OneAtATime)
            && let (incumbent::Input::Prepare(conn, _), incumbent::Row::Go(incumbent::Phase::Prepared, _)) =
                (input, &row)
            && let Some(run) = &mut machine.run
        {
            run.lease = *conn;
        }
        let Ok(actions) = machine.apply(input, row) else {
            s.mark(Broken::ImpossibleRow);
            return;
        };
        let from = self.note_incumbent(s, i, phase, &machine, from);
        s.daemons[i].role = pack::pack_incumbent(&machine, from);
        // The last words of a handoff go to the connection that held its lease.
        let lease = machine.run.as_ref().map(|run| run.lease as u8).or(run.map(|run| run.lease));
        for action in actions {
            queue_incumbent(s, i, lease, &action);
        }
        self.settle_daemon(s, i);
    }

    /// Remembers from where a handoff is being undone, and tells when it has been.
    fn note_incumbent(
        &self,
        s: &mut State,
        i: usize,
        before: u8,
        machine: &incumbent::Machine,
        from: u8,
    ) -> u8 {
        use incumbent::Phase as P;
        let after = pack::incumbent_code(&machine.phase);
        let undoing = |code: u8| (12..=16).contains(&code);
        match &machine.phase {
            P::Undoing(_) | P::Fencing(_) | P::Locking(_) | P::Resuming(_) if !undoing(before) => before,
            P::Serving if before != 0 => {
                self.saw(Event::RolledBackFrom(if undoing(before) { from } else { before }));
                0
            }
            P::Resuming(_) => {
                // The lock was free: whoever was to take it is late now.
                if matches!(before, 6..=11 | 14 | 15) {
                    self.note_undone(s, i);
                }
                from
            }
            P::Gone(incumbent::End::Superseded) => {
                self.saw(Event::Superseded);
                from
            }
            P::Gone(incumbent::End::Committed) => {
                let baked = self.run_of(s, i).is_some_and(|run| run.bake);
                self.saw(if baked { Event::CommittedAfterBake } else { Event::Committed });
                0
            }
            _ if undoing(after) => from,
            _ => 0,
        }
    }

    fn note_undone(&self, s: &mut State, i: usize) {
        if let Some(run) = self.run_of(s, i) {
            s.drivers[run.lease as usize].undone = true;
        }
    }

    fn incumbent_reads(&self, s: &mut State, i: usize, d: usize) {
        let Some(msg) = s.drivers[d].lease.to_server.pop() else { return };
        let conn = d as u64;
        let leased = self.run_of(s, i).is_some_and(|run| run.lease as usize == d);
        let input = match msg {
            Msg::Prepare => incumbent::Input::Prepare(conn, pack::terms(s.drivers[d].bake)),
            // A connection that does not hold the lease has nothing more to say than `prepare`.
            _ if !leased => return,
            Msg::Drain => incumbent::Input::Lease(Request::Drain),
            Msg::Seal => incumbent::Input::Lease(Request::Seal),
            Msg::Abort => incumbent::Input::Lease(Request::Abort(REASON)),
            Msg::Attach => incumbent::Input::Lease(Request::Attach),
            Msg::Ready(opening) => incumbent::Input::Lease(Request::Ready(pack::opened(opening))),
            Msg::Serving => incumbent::Input::Lease(Request::Serving),
            Msg::Done => incumbent::Input::Lease(Request::Done),
            Msg::SteppedDown => incumbent::Input::Lease(Request::SteppedDown),
            other => unreachable!("{other:?} is not for an incumbent"),
        };
        self.feed_incumbent(s, i, &input);
    }

    fn incumbent_reads_cancel(&self, s: &mut State, d: usize) {
        s.drivers[d].cancel = false;
        let server = s.drivers[d].lease.server as usize;
        self.feed_incumbent(s, server, &incumbent::Input::OperatorAbort(OPERATOR, String::new()));
    }

    /// On whoever has the control path; a successor on trial relays it over the lease.
    fn operator_aborts(&self, s: &mut State, i: usize) {
        s.budget.words -= 1;
        match s.daemons[i].role {
            Role::Successor { .. } => send_to_server(s, driver_of(i), Msg::Abort),
            _ => self.feed_incumbent(s, i, &incumbent::Input::OperatorAbort(OPERATOR, String::new())),
        }
    }

    fn daemon_timer_ends(&self, s: &mut State, i: usize, timer: u8) {
        s.daemons[i].timers &= !(1 << timer);
        if timer == SUCCESSOR_SILENCE {
            self.feed_successor(s, i, &successor::Input::Expired(successor::Timer::Silence));
        } else {
            self.feed_incumbent(s, i, &incumbent::Input::Expired(INCUMBENT_TIMERS[timer as usize]));
        }
    }

    // ---- The successor.

    fn successor_heeds(&self, s: &State, i: usize, input: &successor::Input) -> bool {
        let Role::Successor { phase, expected, sealed, unfit, .. } = s.daemons[i].role else { return false };
        let machine = pack::successor(phase, expected, sealed, unfit);
        rules::successor_row(self.without, &machine, input) != successor::Row::Ignore
    }

    fn feed_successor(&self, s: &mut State, i: usize, input: &successor::Input) {
        let Role::Successor { phase, expected, warm, sealed, unfit } = s.daemons[i].role else { return };
        let mut machine = pack::successor(phase, expected, sealed, unfit);
        let row = rules::successor_row(self.without, &machine, input);
        let Ok(actions) = machine.apply(input, row) else {
            s.mark(Broken::ImpossibleRow);
            return;
        };
        note_departure(s, i, phase, &machine.phase);
        s.daemons[i].role = pack::pack_successor(&machine, warm);
        for action in actions {
            queue_successor(s, i, &action);
        }
        self.settle_daemon(s, i);
    }

    fn successor_reads_lease(&self, s: &mut State, d: usize) {
        let i = successor_of(d);
        let Some(msg) = s.drivers[d].lease.to_client.pop() else { return };
        let input = match msg {
            Msg::Granted => {
                s.daemons[i].granted = true;
                successor::Input::Granted(if s.drivers[d].bake { Trial::Yes } else { Trial::No })
            }
            Msg::Finalize => successor::Input::Finalize,
            Msg::StepDown => {
                s.daemons[i].told = true;
                successor::Input::StepDown(REASON)
            }
            Msg::Aborted => {
                s.daemons[i].told = true;
                successor::Input::Aborted(REASON)
            }
            other => unreachable!("{other:?} is not for a successor"),
        };
        self.feed_successor(s, i, &input);
    }

    fn successor_reads_channel(&self, s: &mut State, d: usize) {
        let Some(msg) = s.drivers[d].channel.to_successor.pop() else { return };
        let input = match msg {
            Msg::Begin(sealed) => {
                s.drivers[d].lease.successor = true;
                successor::Input::Begin(pack::report(sealed))
            }
            _ => successor::Input::Dismissed(REASON),
        };
        self.feed_successor(s, successor_of(d), &input);
    }

    fn incumbent_seen_dead(&self, s: &mut State, d: usize) {
        let i = successor_of(d);
        if let Role::Successor { phase, .. } = s.daemons[i].role {
            self.saw(Event::CarriedOnFrom(phase));
        }
        s.daemons[i].granted = true;
        self.feed_successor(s, i, &successor::Input::IncumbentLost);
    }

    // ---- The driver.

    fn driver_heeds(&self, s: &State, d: usize, input: &driver::Input) -> bool {
        let machine = driver::Machine { phase: pack::driver_phase(s.drivers[d].phase) };
        rules::driver_row(self.without, &machine, input) != driver::Row::Ignore
    }

    fn feed_driver(&self, s: &mut State, d: usize, input: &driver::Input) {
        let mut machine = driver::Machine { phase: pack::driver_phase(s.drivers[d].phase) };
        let row = rules::driver_row(self.without, &machine, input);
        let before = s.drivers[d].phase;
        let actions = machine.apply(row);
        s.drivers[d].phase = pack::driver_code(&machine.phase);
        judge_outcome(s, d, before);
        for action in actions {
            queue_driver(s, d, &action);
        }
        self.settle_driver(s, d);
    }

    fn driver_comes(&self, s: &mut State, d: usize) {
        if d > 0 {
            s.budget.drivers -= 1;
        }
        let (machine, actions) = driver::Machine::start();
        s.drivers[d].life = Life::Running;
        s.drivers[d].phase = pack::driver_code(&machine.phase);
        for action in actions {
            queue_driver(s, d, &action);
        }
        self.settle_driver(s, d);
    }

    fn driver_timer_ends(&self, s: &mut State, d: usize, timer: u8) {
        s.drivers[d].timers &= !(1 << timer);
        // Of two that are silent, one because a fault stopped it, the driver kills the other: a known limit.
        let server = &s.daemons[s.drivers[d].lease.server as usize];
        if s.drivers[d].phase == pack::ORPHANED && server.life == Life::Stopped {
            s.daemons[successor_of(d)].faulty = true;
        }
        self.feed_driver(s, d, &driver::Input::Expired(DRIVER_TIMERS[timer as usize]));
    }

    fn driver_reads_lease(&self, s: &mut State, d: usize) {
        let Some(msg) = s.drivers[d].lease.to_client.pop() else { return };
        let input = match msg {
            Msg::Prepared(generation) => {
                s.drivers[d].generation = generation;
                driver::Input::Prepared(generation.into())
            }
            Msg::Busy => driver::Input::Refused(driver::Refusal::Declined(String::new())),
            Msg::Drained => driver::Input::Drained,
            Msg::Sealed(revision) => {
                s.drivers[d].sealed = revision;
                driver::Input::Sealed
            }
            Msg::Aborted => driver::Input::Aborted(REASON),
            // What is for the successor is not read by a driver that has passed the lease on.
            _ => return,
        };
        self.feed_driver(s, d, &input);
    }

    fn driver_reads_channel(&self, s: &mut State, d: usize) {
        let Some(msg) = s.drivers[d].channel.to_driver.pop() else { return };
        let input = match msg {
            Msg::Waiting => driver::Input::Waiting,
            Msg::ToldServing => driver::Input::Serving,
            Msg::ToldDone => driver::Input::SuccessorDone,
            _ => driver::Input::SuccessorFailed(REASON),
        };
        self.feed_driver(s, d, &input);
    }

    fn driver_reads_verdict(&self, s: &mut State, d: usize) {
        let verdict = match s.drivers[d].verdict.take() {
            Some(Word::Committed) => Verdict::Committed,
            Some(Word::RolledBack) => Verdict::RolledBack { reason: REASON },
            Some(Word::Superseded) => Verdict::Superseded,
            Some(Word::NothingServing) => Verdict::NothingServing { detail: String::new() },
            None => return,
        };
        self.feed_driver(s, d, &driver::Input::Verdict(verdict));
    }

    fn concludes(&self, s: &mut State, d: usize) {
        s.drivers[d].inquiring = false;
        let outcome = match recovery::conclude(&facts(s, d)) {
            Conclusion::Ended(outcome) => outcome,
            // It is asked again until there is an answer, or for long enough.
            Conclusion::GoingOn => driver::Outcome::Undecided(String::new()),
            Conclusion::StartFrom(_) | Conclusion::StartAnything => {
                if s.daemons.iter().any(|daemon| daemon.life == Life::Running && daemon.serving) {
                    s.mark(Broken::FalseVerdict);
                }
                driver::Outcome::NothingServing(String::new())
            }
        };
        self.feed_driver(s, d, &driver::Input::Concluded(outcome));
    }

    // ---- Actions.

    /// Carries out what nobody else can see, and ends a process that has nothing left to do.
    fn settle_daemon(&self, s: &mut State, i: usize) {
        while let Some(next) = s.daemons[i].todo.front() {
            match next {
                Do::Arm(timer) => s.daemons[i].timers |= 1 << timer,
                Do::Disarm(timer) => s.daemons[i].timers &= !(1 << timer),
                Do::Call(hook) => {
                    s.daemons[i].hook = Some(hook);
                    if matches!(hook, Hook::Drain | Hook::Stop) {
                        s.daemons[i].serving = false;
                    }
                }
                _ => return,
            }
            s.daemons[i].todo.pop();
        }
        match s.daemons[i].role {
            Role::Incumbent { phase: 17.., .. } => {
                let why = incumbent_end(s, i);
                end(s, Who::Daemon(i as u8), why);
            }
            Role::Successor { phase: pack::LOCK_HELD.., .. } => {
                let why = successor_end(s, i);
                end(s, Who::Daemon(i as u8), why);
            }
            Role::Successor { phase: pack::PROMOTED, .. } => promote(s, i),
            _ => {}
        }
    }

    fn carry_daemon(&self, s: &mut State, i: usize) {
        let Some(next) = s.daemons[i].todo.pop() else { return };
        match s.daemons[i].role {
            Role::Incumbent { .. } => self.carry_incumbent(s, i, next),
            _ => self.carry_successor(s, i, next),
        }
        self.settle_daemon(s, i);
    }

    fn carry_incumbent(&self, s: &mut State, i: usize, next: Do) {
        let lease = self.run_of(s, i).map(|run| run.lease as usize);
        match next {
            Do::Reply(d, msg) => {
                judge_grant(s, d as usize, msg);
                send_to_client(s, d as usize, msg);
            }
            Do::HangUp(d) => s.drivers[d as usize].lease.server_open = false,
            Do::Unlock => self.unlock(s, i),
            Do::TryLock => self.incumbent_tries(s, i),
            Do::Write(standing) => write_record(s, i, standing),
            Do::Fence => self.fence_successor(s, i, lease),
            Do::BindControl => s.path = i as u8,
            Do::Announce(d, word) => announce(s, d as usize, word),
            other => unreachable!("{other:?} is not for an incumbent"),
        }
    }

    fn unlock(&self, s: &mut State, i: usize) {
        let leaked = s.helper.is_some_and(|h| h.lock == Some(i as u8));
        if !(leaked && self.is_without(Rule::UnlockNotClose)) {
            s.lock = None;
        }
        self.feed_incumbent(s, i, &incumbent::Input::Unlocked(Ok(())));
    }

    fn incumbent_tries(&self, s: &mut State, i: usize) {
        // Where the lock was only closed, its own description is another one now.
        let own = s.lock == Some(i as u8) && !self.is_without(Rule::UnlockNotClose);
        let input = if s.lock.is_none() || own {
            s.lock = Some(i as u8);
            incumbent::Input::Locked(found(s))
        } else {
            self.busy(s, i)
        };
        self.feed_incumbent(s, i, &input);
    }

    fn busy(&self, s: &State, i: usize) -> incumbent::Input {
        let Role::Incumbent { generation, .. } = s.daemons[i].role else { return incumbent::Input::LockBusy };
        let newest = s.newest();
        if newest.standing == Standing::Final && newest.generation > generation {
            incumbent::Input::Overtaken(newest.generation.into())
        } else {
            incumbent::Input::LockBusy
        }
    }

    fn fence_successor(&self, s: &mut State, i: usize, lease: Option<usize>) {
        if let Some(d) = lease
            && self.run_of(s, i).is_some_and(|run| run.attached)
        {
            judge_fence(s, d);
            let was_alive = s.daemons[successor_of(d)].alive();
            kill(s, successor_of(d));
            if !self.is_without(Rule::FencesTree) && (was_alive || !self.is_without(Rule::FencesDeadToo)) {
                kill_helper_of(s, successor_of(d));
            }
        }
        s.daemons[i].hook = Some(Hook::Fence);
    }

    fn carry_successor(&self, s: &mut State, i: usize, next: Do) {
        let d = driver_of(i);
        match next {
            Do::Send(msg) => send_to_server(s, d, msg),
            Do::Tell(msg) => tell_driver(s, d, msg),
            Do::TryLock => {
                let input = if s.lock.is_none() {
                    s.lock = Some(i as u8);
                    successor::Input::Locked(found(s))
                } else {
                    successor::Input::LockBusy
                };
                self.feed_successor(s, i, &input);
            }
            Do::Unlock => {
                if s.lock == Some(i as u8) {
                    s.lock = None;
                }
            }
            Do::Write(standing) => {
                write_record(s, i, standing);
                if standing == Standing::Trial || self.is_without(Rule::DurableBeforeWrite) {
                    s.daemons[i].todo.clear();
                    self.feed_successor(s, i, &successor::Input::Persisted);
                }
            }
            Do::BindControl => {
                s.path = i as u8;
                self.feed_successor(s, i, &successor::Input::Bound);
            }
            Do::Serve => self.serve(s, i),
            Do::FenceIncumbent => kill(s, s.drivers[d].lease.server as usize),
            other => unreachable!("{other:?} is not for a successor"),
        }
    }

    fn serve(&self, s: &mut State, i: usize) {
        let d = driver_of(i);
        let Role::Successor { expected, .. } = s.daemons[i].role else { return };
        if s.newest().generation != expected + 1 || s.drivers[d].undone || s.daemons[i].told {
            s.mark(Broken::LateServes);
        }
        if !s.daemons[i].granted {
            s.mark(Broken::Ungranted);
        }
        s.daemons[i].serving = true;
        s.daemons[i].serve_due = true;
    }

    fn hook_returns(&self, s: &mut State, i: usize, result: Return) {
        let Some(hook) = s.daemons[i].hook.take() else { return };
        match result {
            Return::Fine => {}
            Return::Error => {
                s.budget.errors -= 1;
                if matches!(hook, Hook::Open | Hook::Stop | Hook::Resume) {
                    s.daemons[i].faulty = true;
                }
            }
            Return::Unhealthy | Return::Stale => s.budget.bad -= 1,
        }
        let error = || String::from("error");
        let outcome = |fine: bool| if fine { Ok(()) } else { Err(error()) };
        let fine = result != Return::Error;
        match hook {
            Hook::Drain => {
                let report = outcome(fine).map(|()| Default::default());
                self.feed_incumbent(s, i, &incumbent::Input::DrainReturned(report));
            }
            Hook::Seal => {
                let view = s.daemons[i].view;
                if fine && !self.is_without(Rule::SealSyncs) {
                    s.disk.synced = s.disk.written;
                }
                let report = outcome(fine).map(|()| pack::report(view));
                self.feed_incumbent(s, i, &incumbent::Input::SealReturned(report));
            }
            Hook::Resume => self.resumes(s, i, outcome(fine)),
            Hook::Fence => self.feed_incumbent(s, i, &incumbent::Input::Fenced),
            Hook::Sync => {
                sync_record(s);
                match s.daemons[i].role {
                    Role::Incumbent { .. } => {
                        self.feed_incumbent(s, i, &incumbent::Input::Persisted(Ok(())));
                    }
                    _ => self.feed_successor(s, i, &successor::Input::Persisted),
                }
            }
            Hook::Open => self.opens(s, i, result),
            Hook::Stop if fine => {
                s.lock = None;
                self.feed_successor(s, i, &successor::Input::SteppedDown);
            }
            Hook::Stop => self.feed_successor(s, i, &successor::Input::Failed(error())),
        }
    }

    fn resumes(&self, s: &mut State, i: usize, result: Result<(), String>) {
        if result.is_ok() {
            s.daemons[i].serving = true;
            if !self.is_without(Rule::ReloadsFromDisk) {
                s.daemons[i].view = s.disk.written;
            }
        }
        self.feed_incumbent(s, i, &incumbent::Input::ResumeReturned(result));
    }

    fn opens(&self, s: &mut State, i: usize, result: Return) {
        if result == Return::Error {
            self.feed_successor(s, i, &successor::Input::Failed(String::new()));
            return;
        }
        let revision = s.disk.written - u8::from(result == Return::Stale);
        let healthy = result != Return::Unhealthy;
        s.daemons[i].view = revision;
        s.daemons[i].opened_all = result == Return::Fine;
        s.daemons[i].faulty |= result != Return::Fine;
        let opened = pack::opened(Opening { healthy, revision });
        self.feed_successor(s, i, &successor::Input::Opened(opened));
    }

    fn sync_fails(&self, s: &mut State, i: usize) {
        s.budget.errors -= 1;
        s.daemons[i].hook = None;
        s.daemons[i].faulty = true;
        match s.daemons[i].role {
            Role::Incumbent { .. } => {
                self.feed_incumbent(s, i, &incumbent::Input::Persisted(Err(String::new())));
            }
            _ => self.feed_successor(s, i, &successor::Input::Failed(String::new())),
        }
    }

    fn acknowledge(&self, s: &mut State, i: usize) {
        let daemon = &mut s.daemons[i];
        daemon.in_flight = false;
        daemon.view += 1;
        s.disk.written = daemon.view;
        s.disk.acknowledged += 1;
        // In the middle of a drain, a daemon may leave the sync to the end of it.
        if daemon.serving || !self.is_without(Rule::SealSyncs) {
            s.disk.synced = s.disk.written;
        }
        // Only an owner for good writes in a format of its own.
        if matches!(daemon.role, Role::Incumbent { .. } | Role::Successor { phase: 8 | 10, .. }) {
            s.disk.format = daemon.program;
        }
        if s.lock != Some(i as u8) {
            s.mark(Broken::WriteWithoutLock);
        }
        if s.disk.written < s.disk.acknowledged {
            s.mark(Broken::WriteLost);
        }
    }

    fn settle_driver(&self, s: &mut State, d: usize) {
        while let Some(next) = s.drivers[d].todo.front() {
            match next {
                Do::Arm(timer) => s.drivers[d].timers |= 1 << timer,
                Do::Disarm(timer) => s.drivers[d].timers &= !(1 << timer),
                Do::Inquire => s.drivers[d].inquiring = true,
                _ => return,
            }
            s.drivers[d].todo.pop();
        }
        if s.drivers[d].phase >= pack::DONE {
            end(s, Who::Driver(d as u8), End::Relieved);
        }
    }

    fn carry_driver(&self, s: &mut State, d: usize) {
        let Some(next) = s.drivers[d].todo.pop() else { return };
        match next {
            Do::Connect => self.connect(s, d),
            Do::Send(msg) if s.drivers[d].lease.driver => send_to_server(s, d, msg),
            Do::Send(_) => {}
            Do::CloseLease => s.drivers[d].lease.driver = false,
            Do::Spawn => spawn(s, d, self.is_without(Rule::LockAfterSealed)),
            Do::PassLease => tell_successor(s, d, Msg::Begin(s.drivers[d].sealed)),
            Do::TellDismissed => tell_successor(s, d, Msg::Dismissed),
            Do::KillSuccessor => {
                kill(s, successor_of(d));
                kill_helper_of(s, successor_of(d));
            }
            Do::FenceIncumbent => kill(s, s.drivers[d].lease.server as usize),
            Do::Cancel => s.drivers[d].cancel = s.daemons[s.drivers[d].lease.server as usize].alive(),
            other => unreachable!("{other:?} is not for a driver"),
        }
        self.settle_driver(s, d);
    }

    fn connect(&self, s: &mut State, d: usize) {
        let server = s.path as usize;
        if !s.daemons[server].alive() {
            self.feed_driver(s, d, &driver::Input::Refused(driver::Refusal::Lost));
            return;
        }
        // A successor that is not the incumbent yet says so.
        if matches!(s.daemons[server].role, Role::Successor { .. }) {
            self.feed_driver(s, d, &driver::Input::Refused(driver::Refusal::Lost));
            return;
        }
        let lease = &mut s.drivers[d].lease;
        lease.server = server as u8;
        lease.server_open = true;
        lease.driver = true;
        lease.to_server.push(Msg::Prepare);
    }

    /// A supervisor finds that the daemon has died, and that the lock is free.
    fn restart(&self, s: &mut State) {
        s.budget.restarts -= 1;
        let newest = s.newest();
        let starts_trial = self.is_without(Rule::TrialStartsPrevious);
        let program = if starts_trial { newest.program } else { newest.starts() };
        let daemon = &mut s.daemons[RESTARTED];
        let generation = newest.generation + 1;
        *daemon = Daemon::absent();
        daemon.life = Life::Running;
        daemon.program = program;
        daemon.role = Role::Incumbent { phase: 0, generation, run: None, from: 0 };
        daemon.serving = true;
        daemon.view = s.disk.written;
        s.lock = Some(RESTARTED as u8);
        s.path = RESTARTED as u8;
        s.disk.owner = program;
        s.records.push(Record { generation, program, previous: newest.program, standing: Standing::Final });
        sync_record(s);
    }
}

/// Whether a successor in this phase may write, but only in the format of its predecessor.
pub fn is_trial(phase: u8) -> bool {
    matches!(
        phase,
        pack::SERVING_ON_TRIAL
            | pack::BINDING_ON_TRIAL
            | pack::ON_TRIAL
            | pack::FINALIZING
            | pack::STEPPING_DOWN
    )
}

fn operator_moves(s: &State, i: usize, moves: &mut Vec<Move>) {
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
fn driver_timer_may_end(s: &State, d: usize, timer: u8) -> bool {
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
fn may_restart(s: &State) -> bool {
    let incumbents =
        s.daemons.iter().filter(|d| d.alive() && matches!(d.role, Role::Incumbent { .. })).count();
    incumbents == 0 && s.lock.is_none() && s.daemons[RESTARTED].life == Life::Absent
}

fn queue_incumbent(s: &mut State, i: usize, lease: Option<u8>, action: &IncumbentDo) {
    let todo = &mut s.daemons[i].todo;
    match action {
        IncumbentDo::Answer(conn, incumbent::Answer::Busy) if *conn != OPERATOR => {
            todo.push(Do::Reply(*conn as u8, Msg::Busy));
        }
        // A person reads it.
        IncumbentDo::Answer(..) | IncumbentDo::Interrupt => {}
        IncumbentDo::Send(message) => {
            let lease = lease.expect("an incumbent sends only in a run");
            todo.push(Do::Reply(lease, incumbent_msg(message)));
        }
        IncumbentDo::CloseLease => {
            todo.push(Do::HangUp(lease.expect("an incumbent hangs up only after a run")))
        }
        IncumbentDo::Arm(timer) => todo.push(Do::Arm(incumbent_timer(*timer))),
        IncumbentDo::Disarm(timer) => todo.push(Do::Disarm(incumbent_timer(*timer))),
        IncumbentDo::CallDrain => todo.push(Do::Call(Hook::Drain)),
        IncumbentDo::CallSeal => todo.push(Do::Call(Hook::Seal)),
        IncumbentDo::CallResume => todo.push(Do::Call(Hook::Resume)),
        IncumbentDo::Unlock => todo.push(Do::Unlock),
        IncumbentDo::Fence => todo.push(Do::Fence),
        IncumbentDo::TryLock => todo.push(Do::TryLock),
        IncumbentDo::Persist(_) => {
            todo.push(Do::Write(Standing::Final));
            todo.push(Do::Call(Hook::Sync));
        }
        IncumbentDo::BindControl => todo.push(Do::BindControl),
        IncumbentDo::Announce(verdict) => {
            let lease = lease.expect("a verdict is about a run");
            todo.push(Do::Announce(lease, word(verdict)));
        }
    }
}

fn word(verdict: &Verdict) -> Word {
    match verdict {
        Verdict::Committed => Word::Committed,
        Verdict::RolledBack { .. } => Word::RolledBack,
        Verdict::Superseded => Word::Superseded,
        Verdict::NothingServing { .. } => Word::NothingServing,
    }
}

fn incumbent_msg(message: &Message) -> Msg {
    match message {
        Message::Prepared(generation) => Msg::Prepared(*generation as u8),
        Message::Drained(_) => Msg::Drained,
        Message::Sealed(report) => Msg::Sealed(report.last_revision_per_shard[0] as u8),
        Message::Granted => Msg::Granted,
        Message::Finalize => Msg::Finalize,
        Message::StepDown(_) => Msg::StepDown,
        Message::Aborted(_) => Msg::Aborted,
    }
}

fn queue_successor(s: &mut State, i: usize, action: &SuccessorDo) {
    let todo = &mut s.daemons[i].todo;
    match action {
        SuccessorDo::Send(message) => todo.push(Do::Send(match message {
            Said::Attach => Msg::Attach,
            Said::Ready(opened) => Msg::Ready(pack::opening(opened)),
            Said::Serving => Msg::Serving,
            Said::Done => Msg::Done,
            Said::SteppedDown => Msg::SteppedDown,
        })),
        SuccessorDo::Tell(news) => todo.push(Do::Tell(match news {
            News::Serving => Msg::ToldServing,
            News::Done => Msg::ToldDone,
            News::Failed(_) => Msg::ToldFailed,
        })),
        SuccessorDo::TryLock => todo.push(Do::TryLock),
        SuccessorDo::Unlock => todo.push(Do::Unlock),
        SuccessorDo::Open => todo.push(Do::Call(Hook::Open)),
        SuccessorDo::Persist(Trial::Yes) => todo.push(Do::Write(Standing::Trial)),
        SuccessorDo::Persist(Trial::No) => {
            todo.push(Do::Write(Standing::Final));
            todo.push(Do::Call(Hook::Sync));
        }
        SuccessorDo::BindControl => todo.push(Do::BindControl),
        SuccessorDo::Serve => todo.push(Do::Serve),
        SuccessorDo::StopServing => todo.push(Do::Call(Hook::Stop)),
        SuccessorDo::Arm(_) => todo.push(Do::Arm(SUCCESSOR_SILENCE)),
        SuccessorDo::Disarm(_) => todo.push(Do::Disarm(SUCCESSOR_SILENCE)),
        SuccessorDo::FenceIncumbent => todo.push(Do::FenceIncumbent),
    }
}

fn queue_driver(s: &mut State, d: usize, action: &DriverDo) {
    let todo = &mut s.drivers[d].todo;
    match action {
        DriverDo::SendPrepare => todo.push(Do::Connect),
        DriverDo::SendTerms => todo.push(Do::Send(Msg::Prepare)),
        DriverDo::SendDrain => todo.push(Do::Send(Msg::Drain)),
        DriverDo::SendSeal => todo.push(Do::Send(Msg::Seal)),
        DriverDo::SendAbort(_) => todo.push(Do::Send(Msg::Abort)),
        DriverDo::SendCancel(_) => todo.push(Do::Cancel),
        DriverDo::Spawn => todo.push(Do::Spawn),
        DriverDo::PassLease => todo.push(Do::PassLease),
        DriverDo::CloseLease => todo.push(Do::CloseLease),
        DriverDo::Dismiss(_) => todo.push(Do::TellDismissed),
        DriverDo::KillSuccessor => todo.push(Do::KillSuccessor),
        DriverDo::FenceIncumbent => todo.push(Do::FenceIncumbent),
        DriverDo::Inquire => todo.push(Do::Inquire),
        DriverDo::Arm(timer) => todo.push(Do::Arm(driver_timer(*timer))),
        DriverDo::Disarm(timer) => todo.push(Do::Disarm(driver_timer(*timer))),
    }
}

// ---- The kernel's part.

fn send_to_client(s: &mut State, d: usize, msg: Msg) {
    if s.client_open(d) && s.drivers[d].lease.server_open {
        s.drivers[d].lease.to_client.push(msg);
    }
}

fn send_to_server(s: &mut State, d: usize, msg: Msg) {
    if s.drivers[d].lease.server_open {
        s.drivers[d].lease.to_server.push(msg);
    }
}

fn tell_driver(s: &mut State, d: usize, msg: Msg) {
    if matches!(s.drivers[d].life, Life::Running | Life::Stopped) {
        s.drivers[d].channel.to_driver.push(msg);
    }
}

fn tell_successor(s: &mut State, d: usize, msg: Msg) {
    let successor = &s.daemons[successor_of(d)];
    if successor.alive() && matches!(successor.role, Role::Successor { .. }) {
        s.drivers[d].channel.to_successor.push(msg);
    }
}

/// Everybody who watches is told; a driver heeds only what is said of its own handoff.
fn announce(s: &mut State, d: usize, word: Word) {
    let driver = &mut s.drivers[d];
    if matches!(driver.life, Life::Running | Life::Stopped) && driver.phase != 0 {
        driver.verdict = Some(word);
    }
}

fn found(s: &State) -> incumbent::Found {
    let newest = s.newest();
    let standing = match newest.standing {
        Standing::Trial => record::Standing::Trial,
        Standing::Final => record::Standing::Final,
    };
    incumbent::Found { generation: newest.generation.into(), standing }
}

/// Into the page cache. A daemon keeps its generation when its trial becomes final.
fn write_record(s: &mut State, i: usize, standing: Standing) {
    let newest = s.newest();
    let program = s.daemons[i].program;
    let record = match s.daemons[i].role {
        Role::Incumbent { generation, .. } => {
            Record { generation, program, previous: newest.program, standing }
        }
        _ if newest.program == program => Record { standing, ..newest },
        _ => Record { generation: newest.generation + 1, program, previous: newest.program, standing },
    };
    s.records.push(record);
    if standing == Standing::Final && matches!(s.daemons[i].role, Role::Successor { .. }) {
        if !s.daemons[i].opened_all {
            s.mark(Broken::GrantUnfounded);
        }
        s.disk.owner = program;
        s.disk.made_final |= 1 << driver_of(i);
    }
}

fn sync_record(s: &mut State) {
    let newest = s.newest();
    s.records.clear();
    s.records.push(newest);
}

fn promote(s: &mut State, i: usize) {
    let d = driver_of(i);
    let generation = s.newest().generation;
    let daemon = &mut s.daemons[i];
    daemon.role = Role::Incumbent { phase: 0, generation, run: None, from: 0 };
    daemon.timers = 0;
    s.drivers[d].lease.successor = false;
    s.drivers[d].channel.to_successor.clear();
}

fn spawn(s: &mut State, d: usize, early: bool) {
    let i = successor_of(d);
    let expected = s.drivers[d].generation;
    // A later program reads what an earlier one wrote.
    let started = (0..DRIVERS).filter(|other| s.daemons[successor_of(*other)].life != Life::Absent).count();
    s.daemons[i] = Daemon::absent();
    s.daemons[i].program = 1 + started as u8;
    s.daemons[i].life = Life::Running;
    s.daemons[i].role = Role::Successor { phase: 0, expected, warm: false, sealed: None, unfit: false };
    if early {
        s.daemons[i].role = Role::Successor { phase: 1, expected, warm: true, sealed: None, unfit: false };
        s.daemons[i].todo.push(Do::TryLock);
    }
}

fn warms_up(s: &mut State, d: usize) {
    if let Role::Successor { warm, .. } = &mut s.daemons[successor_of(d)].role {
        *warm = true;
    }
    s.daemons[successor_of(d)].timers |= 1 << SUCCESSOR_SILENCE;
    tell_driver(s, d, Msg::Waiting);
}

fn facts(s: &State, d: usize) -> Facts {
    use recovery::{Answer, Who as Party};
    let daemon = &s.daemons[s.path as usize];
    let who = match s.path as usize {
        path if path == s.drivers[d].lease.server as usize => Party::Incumbent,
        path if path == successor_of(d) => Party::Successor,
        _ => Party::Other,
    };
    let busy = match daemon.role {
        Role::Incumbent { phase, .. } => phase != 0,
        _ => true,
    };
    let answer = (daemon.life == Life::Running).then_some(Answer { who, busy });
    let standing = found(s).standing;
    Facts { answer, locked: s.lock.is_some(), record: Some(standing) }
}

fn fork(s: &mut State, who: Who) {
    s.budget.helpers -= 1;
    let bits = |held: &dyn Fn(&Driver, usize) -> bool| {
        (0..DRIVERS).filter(|d| held(&s.drivers[*d], *d)).fold(0, |bits, d| bits | 1 << d)
    };
    let helper = match who {
        Who::Driver(me) => {
            let clients = bits(&|driver, d| d == me as usize && driver.lease.driver);
            Helper { of: who, clients, servers: 0, lock: None }
        }
        Who::Daemon(me) => {
            let clients = bits(&|driver, d| successor_of(d) == me as usize && driver.lease.successor);
            let servers = bits(&|driver, _| driver.lease.server == me && driver.lease.server_open);
            let opened = s.lock == Some(me) || matches!(s.daemons[me as usize].role, Role::Incumbent { .. });
            Helper { of: who, clients, servers, lock: opened.then_some(me) }
        }
    };
    s.helper = Some(helper);
}

fn end_helper(s: &mut State) {
    let Some(helper) = s.helper.take() else { return };
    if helper.lock.is_some_and(|owner| s.lock == Some(owner) && !s.daemons[owner as usize].alive()) {
        s.lock = None;
    }
}

fn kill_helper_of(s: &mut State, i: usize) {
    if s.helper.is_some_and(|helper| helper.of == Who::Daemon(i as u8)) {
        end_helper(s);
    }
}

/// One of the parties kills another.
fn kill(s: &mut State, i: usize) {
    if !s.daemons[i].alive() {
        return;
    }
    let why = if s.daemons[i].faulty { End::Fault } else { heir(s, i) };
    end(s, Who::Daemon(i as u8), why);
}

/// Whether somebody is left who may serve when this daemon goes.
fn heir(s: &State, i: usize) -> End {
    let others = s.daemons.iter().enumerate().any(|(j, daemon)| j != i && daemon.alive());
    if others { End::Relieved } else { End::Deserted }
}

fn incumbent_end(s: &State, i: usize) -> End {
    let Role::Incumbent { phase, run, from, .. } = s.daemons[i].role else { return End::Deserted };
    let Some(run) = run else { return End::Deserted };
    let d = run.lease as usize;
    let made_final = s.disk.made_final & (1 << d) != 0;
    let expected = !run.bake || from == 10;
    let faulted = s.daemons[successor_of(d)].life == Life::Gone(End::Fault);
    match phase {
        17 if made_final => End::Relieved,
        // The successor died with the data its own; whoever starts what died finds its program in the record.
        18 if heir(s, i) == End::Relieved => End::Relieved,
        18 if made_final && expected && faulted => End::Relieved,
        // Somebody else has the lock; if that is a process that only inherited it, see the known limits.
        19 if s.lock_leaked() => End::Relieved,
        19 => heir(s, i),
        20 if s.daemons[i].faulty => End::Fault,
        _ => End::Deserted,
    }
}

fn successor_end(s: &State, i: usize) -> End {
    let Role::Successor { phase, .. } = s.daemons[i].role else { return End::Deserted };
    let daemon = &s.daemons[i];
    match phase {
        _ if daemon.faulty => End::Fault,
        _ if daemon.told => End::Relieved,
        // A process that only inherited the lock keeps it: named in the known limits.
        pack::LOCK_HELD if s.lock_leaked() => End::Relieved,
        // Somebody came later and owned the data.
        pack::TOO_LATE => End::Relieved,
        _ => heir(s, i),
    }
}

/// Ends a process: the kernel closes what it had open.
fn end(s: &mut State, who: Who, why: End) {
    match who {
        Who::Daemon(i) => end_daemon(s, i as usize, why),
        Who::Driver(d) => {
            let driver = &mut s.drivers[d as usize];
            driver.life = Life::Gone(why);
            driver.todo.clear();
            driver.timers = 0;
            driver.inquiring = false;
            driver.sealed = 0;
            driver.verdict = None;
            driver.lease.driver = false;
            driver.channel.to_driver.clear();
        }
    }
}

fn end_daemon(s: &mut State, i: usize, why: End) {
    let program = s.daemons[i].program;
    s.daemons[i] = Daemon { life: Life::Gone(why), program, ..Daemon::absent() };
    if s.lock == Some(i as u8) && !s.helper.is_some_and(|h| h.lock == Some(i as u8)) {
        s.lock = None;
    }
    for d in 0..DRIVERS {
        if s.drivers[d].lease.server == i as u8 {
            s.drivers[d].lease.server_open = false;
            s.drivers[d].cancel = false;
        }
    }
    if i != FIRST && i != RESTARTED {
        let driver = &mut s.drivers[driver_of(i)];
        driver.lease.successor = false;
        driver.channel.to_successor.clear();
    }
}

/// Takes back the last message that a process has sent and nobody has read.
fn lose_last(s: &mut State, who: Who) -> bool {
    let mut lost = false;
    match who {
        Who::Driver(d) => {
            let driver = &mut s.drivers[d as usize];
            if driver.lease.driver && driver.phase < pack::DECIDING {
                lost |= driver.lease.to_server.pop_last().is_some();
            }
            lost |= driver.channel.to_successor.pop_last().is_some();
        }
        Who::Daemon(i) => {
            for driver in s.drivers.iter_mut().filter(|driver| driver.lease.server == i) {
                lost |= driver.lease.to_client.pop_last().is_some() | driver.verdict.take().is_some();
            }
            let i = i as usize;
            if i != FIRST && i != RESTARTED {
                let driver = &mut s.drivers[driver_of(i)];
                if driver.lease.successor {
                    lost |= driver.lease.to_server.pop_last().is_some();
                }
                lost |= driver.channel.to_driver.pop_last().is_some();
            }
        }
    }
    lost
}

/// Forgets what nobody can read any more, so that states that behave alike are one.
fn tidy(s: &mut State) {
    for d in 0..DRIVERS {
        if !s.drivers[d].lease.server_open {
            s.drivers[d].lease.to_server.clear();
        }
        if !s.client_open(d) {
            s.drivers[d].lease.to_client.clear();
        }
    }
}

// ---- What must not happen, where it would.

fn judge_grant(s: &mut State, d: usize, msg: Msg) {
    if msg == Msg::Granted && !s.daemons[successor_of(d)].opened_all && s.daemons[successor_of(d)].alive() {
        s.mark(Broken::GrantUnfounded);
    }
}

/// The incumbent may kill a granted successor that is stopped, or that was told to go; not one that works.
fn judge_fence(s: &mut State, d: usize) {
    let granted_on_its_way = s.drivers[d].lease.to_client.iter().any(|msg| msg == Msg::Granted);
    let successor = &s.daemons[successor_of(d)];
    if successor.life == Life::Running
        && !successor.faulty
        && !successor.told
        && (successor.granted || granted_on_its_way)
    {
        s.mark(Broken::HealthyKilled);
    }
}

/// A successor that leaves by itself while the incumbent counts on it has to have a reason.
fn note_departure(s: &mut State, i: usize, before: u8, after: &successor::Phase) {
    let successor::Phase::Gone(reason) = after else { return };
    judge_departure(s, i, before, reason);
    // Whether it may go is decided here; what dies before it has gone is another matter.
    s.daemons[i].told |= heir(s, i) == End::Relieved || s.lock_leaked();
}

fn judge_departure(s: &mut State, i: usize, before: u8, reason: &Reason) {
    // A late successor of another handoff may have the lock for the moment in which it finds that it is late.
    let other = s.lock.is_some_and(|owner| {
        usize::from(owner) != i && matches!(s.daemons[usize::from(owner)].role, Role::Successor { .. })
    });
    let failed = matches!(reason, Reason::Failed { .. }) || s.daemons[i].faulty || other;
    if before == pack::WAITING || before >= pack::PROMOTED || s.daemons[i].told || failed {
        return;
    }
    let server = s.drivers[driver_of(i)].lease.server as usize;
    let Role::Incumbent { phase, run, .. } = s.daemons[server].role else { return };
    let counted_on = run.is_some_and(|run| run.lease as usize == driver_of(i)) && (1..=10).contains(&phase);
    if s.daemons[server].life == Life::Running && counted_on {
        s.mark(Broken::GaveUpUntold);
    }
}

/// What a driver concludes has to be true when it does.
///
/// What the incumbent said may be overtaken: if it dies after that, the successor may serve, and the driver hears of it
/// while it waits for the successor's end.
fn judge_outcome(s: &mut State, d: usize, before: u8) {
    let after = s.drivers[d].phase;
    let made_final = s.disk.made_final & (1 << d) != 0;
    let incumbent_runs = s.daemons[s.drivers[d].lease.server as usize].life == Life::Running;
    let wrong = match after {
        _ if after == before => false,
        pack::DONE_COMMITTED => !made_final,
        pack::DISMISSING => incumbent_runs && made_final,
        _ => false,
    };
    if wrong {
        s.mark(Broken::FalseVerdict);
    }
}
