//! How the world moves: what is read, what is fed to the machines.

use handoff::proto::Verdict;
use handoff::proto::driver::{self};
use handoff::proto::incumbent::{self, Request};
use handoff::proto::recovery::{self, Conclusion};
use handoff::proto::successor::{self, Trial};

use crate::act::*;
use crate::judge::*;
use crate::kernel::*;
use crate::moves::*;
use crate::pack::{self, REASON};
use crate::rules::{self, Rule};
use crate::system::{Event, System};
use crate::world::*;

impl System {
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
            Move::GoesOn(d, next) => self.feed_driver(s, d as usize, &driver::Input::Go(next)),
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

    pub fn make_fault(&self, s: &mut State, fault: Move) {
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

    pub fn incumbent_heeds(&self, s: &State, i: usize, input: &incumbent::Input) -> bool {
        let Role::Incumbent { phase, generation, run, .. } = s.daemons[i].role else { return false };
        let machine = pack::incumbent(phase, generation, run);
        rules::incumbent_row(self.without, &machine, input) != incumbent::Row::Ignore
    }

    pub fn feed_incumbent(&self, s: &mut State, i: usize, input: &incumbent::Input) {
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
    pub fn note_incumbent(
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
            P::Gone(incumbent::End::Retired) => {
                self.saw(Event::Retired);
                0
            }
            P::Gone(incumbent::End::Committed) => {
                let run = self.run_of(s, i);
                if run.is_some_and(|run| s.drivers[run.lease as usize].phase == pack::BECAME) {
                    self.saw(Event::CommittedInPlace);
                }
                let baked = run.is_some_and(|run| run.bake);
                self.saw(if baked { Event::CommittedAfterBake } else { Event::Committed });
                0
            }
            _ if undoing(after) => from,
            _ => 0,
        }
    }

    pub fn note_undone(&self, s: &mut State, i: usize) {
        if let Some(run) = self.run_of(s, i) {
            s.drivers[run.lease as usize].undone = true;
        }
    }

    pub fn incumbent_reads(&self, s: &mut State, i: usize, d: usize) {
        let Some(msg) = s.drivers[d].lease.to_server.pop() else { return };
        let conn = d as u64;
        let leased = self.run_of(s, i).is_some_and(|run| run.lease as usize == d);
        let input = match msg {
            Msg::Prepare => incumbent::Input::Prepare(conn, pack::terms(s.drivers[d].bake)),
            // A connection that does not hold the lease has nothing more to say than `prepare`.
            _ if !leased => return,
            Msg::Drain => incumbent::Input::Lease(Request::Drain),
            Msg::Seal => incumbent::Input::Lease(Request::Seal),
            Msg::Retire => incumbent::Input::Lease(Request::Retire),
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

    pub fn incumbent_reads_cancel(&self, s: &mut State, d: usize) {
        s.drivers[d].cancel = false;
        let server = s.drivers[d].lease.server as usize;
        self.feed_incumbent(s, server, &incumbent::Input::OperatorAbort(OPERATOR, String::new()));
    }

    /// On whoever has the control path; a successor on trial relays it over the lease.
    pub fn operator_aborts(&self, s: &mut State, i: usize) {
        s.budget.words -= 1;
        match s.daemons[i].role {
            Role::Successor { .. } => send_to_server(s, driver_of(i), Msg::Abort),
            _ => self.feed_incumbent(s, i, &incumbent::Input::OperatorAbort(OPERATOR, String::new())),
        }
    }

    pub fn daemon_timer_ends(&self, s: &mut State, i: usize, timer: u8) {
        s.daemons[i].timers &= !(1 << timer);
        if timer == SUCCESSOR_SILENCE {
            self.feed_successor(s, i, &successor::Input::Expired(successor::Timer::Silence));
        } else {
            self.feed_incumbent(s, i, &incumbent::Input::Expired(INCUMBENT_TIMERS[timer as usize]));
        }
    }

    // ---- The successor.

    pub fn successor_heeds(&self, s: &State, i: usize, input: &successor::Input) -> bool {
        let Role::Successor { phase, expected, sealed, unfit, .. } = s.daemons[i].role else { return false };
        let machine = pack::successor(phase, expected, sealed, unfit);
        rules::successor_row(self.without, &machine, input) != successor::Row::Ignore
    }

    pub fn feed_successor(&self, s: &mut State, i: usize, input: &successor::Input) {
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

    pub fn successor_reads_lease(&self, s: &mut State, d: usize) {
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

    pub fn successor_reads_channel(&self, s: &mut State, d: usize) {
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

    pub fn incumbent_seen_dead(&self, s: &mut State, d: usize) {
        let i = successor_of(d);
        if let Role::Successor { phase, .. } = s.daemons[i].role {
            self.saw(Event::CarriedOnFrom(phase));
        }
        s.daemons[i].granted = true;
        self.feed_successor(s, i, &successor::Input::IncumbentLost);
    }

    // ---- The driver.

    pub fn driver_heeds(&self, s: &State, d: usize, input: &driver::Input) -> bool {
        let machine = pack::driver(s.drivers[d].phase, s.drivers[d].order);
        rules::driver_row(self.without, &machine, input) != driver::Row::Ignore
    }

    pub fn feed_driver(&self, s: &mut State, d: usize, input: &driver::Input) {
        let mut machine = pack::driver(s.drivers[d].phase, s.drivers[d].order);
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

    pub fn driver_comes(&self, s: &mut State, d: usize) {
        if d > 0 {
            s.budget.drivers -= 1;
        }
        let (machine, actions) = driver::Machine::start(s.drivers[d].order);
        s.drivers[d].life = Life::Running;
        s.drivers[d].phase = pack::driver_code(&machine.phase);
        for action in actions {
            queue_driver(s, d, &action);
        }
        self.settle_driver(s, d);
    }

    pub fn driver_timer_ends(&self, s: &mut State, d: usize, timer: u8) {
        s.drivers[d].timers &= !(1 << timer);
        // Of two that are silent, one because a fault stopped it, the driver kills the other: a known limit.
        let server = &s.daemons[s.drivers[d].lease.server as usize];
        if s.drivers[d].phase == pack::ORPHANED && server.life == Life::Stopped {
            s.daemons[successor_of(d)].faulty = true;
        }
        self.feed_driver(s, d, &driver::Input::Expired(DRIVER_TIMERS[timer as usize]));
    }

    pub fn driver_reads_lease(&self, s: &mut State, d: usize) {
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

    pub fn driver_reads_channel(&self, s: &mut State, d: usize) {
        let Some(msg) = s.drivers[d].channel.to_driver.pop() else { return };
        let input = match msg {
            Msg::Waiting => driver::Input::Waiting,
            Msg::ToldServing => driver::Input::Serving,
            Msg::ToldDone => driver::Input::SuccessorDone,
            _ => driver::Input::SuccessorFailed(REASON),
        };
        self.feed_driver(s, d, &input);
    }

    pub fn driver_reads_verdict(&self, s: &mut State, d: usize) {
        let verdict = match s.drivers[d].verdict.take() {
            Some(Word::Committed) => Verdict::Committed,
            Some(Word::RolledBack) => Verdict::RolledBack { reason: REASON },
            Some(Word::Retired) => Verdict::Retired,
            Some(Word::Superseded) => Verdict::Superseded,
            Some(Word::NothingServing) => Verdict::NothingServing { detail: String::new() },
            None => return,
        };
        self.feed_driver(s, d, &driver::Input::Verdict(verdict));
    }

    pub fn concludes(&self, s: &mut State, d: usize) {
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
}
