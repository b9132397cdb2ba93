//! What the actions of the machines do.

use handoff::proto::Verdict;
use handoff::proto::driver::{self, Action as DriverDo};
use handoff::proto::incumbent::{self, Action as IncumbentDo, Message};
use handoff::proto::successor::{self, Action as SuccessorDo, Message as Said, News, Trial};

use crate::judge::*;
use crate::kernel::*;
use crate::moves::*;
use crate::pack::{self};
use crate::rules::Rule;
use crate::system::{Event, System};
use crate::world::*;

impl System {
    /// Carries out what nobody else can see, and ends a process that has nothing left to do.
    pub fn settle_daemon(&self, s: &mut State, i: usize) {
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

    pub fn carry_daemon(&self, s: &mut State, i: usize) {
        let Some(next) = s.daemons[i].todo.pop() else { return };
        match s.daemons[i].role {
            Role::Incumbent { .. } => self.carry_incumbent(s, i, next),
            _ => self.carry_successor(s, i, next),
        }
        self.settle_daemon(s, i);
    }

    pub fn carry_incumbent(&self, s: &mut State, i: usize, next: Do) {
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

    pub fn unlock(&self, s: &mut State, i: usize) {
        let leaked = s.helper.is_some_and(|h| h.lock == Some(i as u8));
        if !(leaked && self.is_without(Rule::UnlockNotClose)) {
            s.lock = None;
        }
        self.feed_incumbent(s, i, &incumbent::Input::Unlocked(Ok(())));
    }

    pub fn incumbent_tries(&self, s: &mut State, i: usize) {
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

    pub fn busy(&self, s: &State, i: usize) -> incumbent::Input {
        let Role::Incumbent { generation, .. } = s.daemons[i].role else { return incumbent::Input::LockBusy };
        let newest = s.newest();
        if newest.standing == Standing::Final && newest.generation > generation {
            incumbent::Input::Overtaken(newest.generation.into())
        } else {
            incumbent::Input::LockBusy
        }
    }

    pub fn fence_successor(&self, s: &mut State, i: usize, lease: Option<usize>) {
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

    pub fn carry_successor(&self, s: &mut State, i: usize, next: Do) {
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

    pub fn serve(&self, s: &mut State, i: usize) {
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

    pub fn hook_returns(&self, s: &mut State, i: usize, result: Return) {
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

    pub fn resumes(&self, s: &mut State, i: usize, result: Result<(), String>) {
        if result.is_ok() {
            s.daemons[i].serving = true;
            if !self.is_without(Rule::ReloadsFromDisk) {
                s.daemons[i].view = s.disk.written;
            }
        }
        self.feed_incumbent(s, i, &incumbent::Input::ResumeReturned(result));
    }

    pub fn opens(&self, s: &mut State, i: usize, result: Return) {
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

    pub fn sync_fails(&self, s: &mut State, i: usize) {
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

    pub fn acknowledge(&self, s: &mut State, i: usize) {
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

    pub fn settle_driver(&self, s: &mut State, d: usize) {
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

    pub fn carry_driver(&self, s: &mut State, d: usize) {
        let Some(next) = s.drivers[d].todo.pop() else { return };
        match next {
            Do::Connect => self.connect(s, d),
            Do::Send(msg) if s.drivers[d].lease.driver => send_to_server(s, d, msg),
            Do::Send(_) => {}
            Do::CloseLease => s.drivers[d].lease.driver = false,
            Do::Spawn => spawn(s, d, self.is_without(Rule::LockAfterSealed)),
            Do::Become => {
                if !s.drivers[d].lease.driver {
                    self.saw(Event::BecameWidowed);
                }
                become_successor(s, d);
            }
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

    pub fn connect(&self, s: &mut State, d: usize) {
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
    pub fn restart(&self, s: &mut State) {
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

pub fn queue_incumbent(s: &mut State, i: usize, lease: Option<u8>, action: &IncumbentDo) {
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

pub fn word(verdict: &Verdict) -> Word {
    match verdict {
        Verdict::Committed => Word::Committed,
        Verdict::RolledBack { .. } => Word::RolledBack,
        Verdict::Retired => Word::Retired,
        Verdict::Superseded => Word::Superseded,
        Verdict::NothingServing { .. } => Word::NothingServing,
        Verdict::Unknown => unreachable!("this version announces no outcome that it does not know"),
    }
}

pub fn incumbent_msg(message: &Message) -> Msg {
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

pub fn queue_successor(s: &mut State, i: usize, action: &SuccessorDo) {
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

pub fn queue_driver(s: &mut State, d: usize, action: &DriverDo) {
    let todo = &mut s.drivers[d].todo;
    match action {
        DriverDo::SendPrepare => todo.push(Do::Connect),
        DriverDo::SendTerms => todo.push(Do::Send(Msg::Prepare)),
        DriverDo::SendDrain => todo.push(Do::Send(Msg::Drain)),
        DriverDo::SendSeal => todo.push(Do::Send(Msg::Seal)),
        DriverDo::SendAbort(_) => todo.push(Do::Send(Msg::Abort)),
        DriverDo::SendCancel(_) => todo.push(Do::Cancel),
        DriverDo::SendRetire => todo.push(Do::Send(Msg::Retire)),
        DriverDo::Spawn => todo.push(Do::Spawn),
        DriverDo::Become => todo.push(Do::Become),
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
