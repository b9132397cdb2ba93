//! The driver's shell: runs the driver's machine against the control path and a successor that it starts.

mod state;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use crate::chain::{ID_VAR, JOURNAL_VAR};
use crate::channel::{Channel, Incoming};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::fds::{self, Plan};
use crate::journal::{Actor, Event as Entry, Journal, Measurements, Requester, Stamp};
use crate::proto::driver::{Action, Input, Machine, Next, Order, Outcome, Phase, Refusal, Timer};
use crate::proto::party::{ProcessId, Tree};
use crate::proto::wire::{Begin, Message, Offer, PhaseMark, Prepared, Report, Served};
use crate::proto::{Reason, Terms, Verdict};
use crate::recover::{self, Parties, SuccessorsProgram};
use crate::role::{check_hello, own_hello, pidfd};
use crate::session::MARGIN_MIN;
use crate::supervise;
use crate::supervisor::{AbortReason, Event, HandoffOutcome, Measured, Output, SpawnSpec, Wish, new_id};
use crate::sys::poll::{self, Want};
use crate::sys::process::{PidFd, Signal};
use crate::sys::spawn::{Image, Program, Spawn};
use crate::sys::{children, clock, queue, tree, unix};
pub(crate) use state::{Inheritance, State, Target};

/// How long an answer that needs no work may take.
const ANSWER: Duration = Duration::from_secs(5);
/// For how many margins the parties are asked in the end, before nobody knows.
const INQUIRY: u32 = 5;
/// For how many times its own wait an incumbent that answers, but does not decide, is left alone.
const PATIENCE: u32 = 10;
/// How long a successor that was told to go may take, and then how long it may take to die.
const DISMISSAL: Duration = Duration::from_secs(1);
/// How long the incumbent's account of a handoff that has ended is waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Between two looks at what moves while nothing is said: in the gap, and outside it.
const TICK_GAP: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(50);

/// One swap.
pub(crate) struct Drive<'a> {
    control: &'a Path,
    spec: SpawnSpec,
    /// What is to be started, until it is.
    program: Option<Program>,
    /// The same for those who are told of it, also by a driver that did not start it.
    target: Target,
    holds: Holds,
    /// Whether it returns when the successor serves on trial: a driver has no further role then.
    leaves_trial: bool,
    listeners: Vec<(String, OwnedFd)>,
    /// Standard output and error for the successor, where they are not ours.
    stdio: Option<[OwnedFd; 2]>,
    journal: Option<Journal>,
    /// What the journal is to be told as soon as nobody waits for this process.
    untold: Vec<(Stamp, Entry)>,
    observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
    handoff: String,
    machine: Machine,
    lease: Option<Channel>,
    watch: Option<Channel>,
    successor: Option<Successor>,
    prepared: Option<(Prepared, PidFd)>,
    sealed: Option<crate::drainable::SealReport>,
    timers: Vec<(Timer, Instant)>,
    /// What the silence of those that are left has come to.
    silence: Silence,
    /// When the incumbent's clock for the grant ends.
    deadline: Instant,
    began: Instant,
    /// When the trial ends, once it has begun.
    bake_until: Option<Instant>,
    stopped_us: Option<u64>,
    served: Option<Served>,
    /// Whether the incumbent said that the data is the successor's, which died.
    superseded: bool,
    open_conns: Option<u32>,
    /// When the observer was told last, and whether the incumbent owes it a status.
    ticked: Instant,
    asked_status: bool,
    overflows_before: Option<u64>,
    measured: Measured,
    inputs: std::collections::VecDeque<Input>,
    cancelled: bool,
    /// Whether the successor has said that it waits.
    warm: bool,
}

/// What a driver does when it holds between two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// It goes on at once.
    Never,
    /// It waits until its observer wishes to go on.
    Asking,
    /// It returns to its caller.
    Returning,
}

/// How often the end of a silence was put off.
struct Silence {
    /// Until when whoever answers is taken to live.
    until: Instant,
    /// Whether the incumbent was asked for a sign of life, and has not given it.
    asked: bool,
    /// Whether this process was late already.
    excused: bool,
}

/// The process that was started.
struct Successor {
    /// Where this process started it.
    child: Option<Child>,
    /// Of the process that was started: a wrapper, where there is one.
    leader: PidFd,
    tree: Tree,
    channel: Option<Channel>,
    /// Who spoke: the daemon itself.
    process: Option<(ProcessId, Option<PidFd>)>,
    build_id: String,
}

impl<'a> Drive<'a> {
    /// A driver that starts the successor first, and holds nowhere unless it is asked to.
    pub(crate) fn new(
        control: &'a Path,
        program: Program,
        spec: SpawnSpec,
        listeners: Vec<(String, OwnedFd)>,
        journal: Option<Journal>,
        observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<Self> {
        let holds = if spec.step { Holds::Asking } else { Holds::Never };
        let mut drive = Self::without_program(control, spec, Order::Warm, listeners, journal, observer)?;
        drive.holds = holds;
        drive.set_program(program);
        Ok(drive)
    }

    /// A driver that returns wherever it holds, and has no program to start yet.
    pub(crate) fn without_program(
        control: &'a Path,
        mut spec: SpawnSpec,
        order: Order,
        listeners: Vec<(String, OwnedFd)>,
        journal: Option<Journal>,
        observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<Self> {
        spec.margin = spec.margin.max(MARGIN_MIN);
        if spec.via.is_some() {
            // They are the supervisor's, who is its parent.
            (spec.output, spec.cgroup) = (Output::Inherit, None);
        }
        // It is also the incumbent's to find, who may run elsewhere.
        spec.cgroup = spec
            .cgroup
            .map(std::path::absolute)
            .transpose()
            .map_err(|e| Error::io("find the control group's directory", e))?;
        let now = Instant::now();
        let (machine, _) = Machine::start(order);
        Ok(Self {
            control,
            spec,
            program: None,
            target: Target::default(),
            holds: Holds::Returning,
            leaves_trial: false,
            listeners,
            stdio: None,
            journal,
            untold: vec![],
            observer,
            handoff: new_id(),
            machine,
            lease: None,
            watch: None,
            successor: None,
            prepared: None,
            sealed: None,
            timers: vec![],
            silence: Silence { until: now, asked: false, excused: false },
            deadline: now,
            began: now,
            bake_until: None,
            stopped_us: None,
            served: None,
            superseded: false,
            open_conns: None,
            ticked: now,
            asked_status: false,
            overflows_before: overflows(),
            measured: Measured::default(),
            inputs: std::collections::VecDeque::new(),
            cancelled: false,
            warm: false,
        })
    }

    /// A driver of a planned stop.
    pub(crate) fn retiring(
        control: &'a Path,
        spec: SpawnSpec,
        journal: Option<Journal>,
        observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<Self> {
        Self::without_program(control, spec, Order::Cold, vec![], journal, observer)
    }

    /// Has the incumbent drain, seal and end.
    pub(crate) fn retire(mut self) -> Result<HandoffOutcome> {
        self.take_lease()?;
        if self.is_held() {
            self.note_begun()?;
        }
        let rest = [Phase::Prepared, Phase::Drained, Phase::Sealed, Phase::Widowed];
        for phase in rest {
            let next = match phase {
                Phase::Prepared | Phase::Drained => Next::Phase,
                _ => Next::Retire,
            };
            if self.machine.phase == phase {
                self.go(next)?;
            }
        }
        self.finish()
    }

    /// Says what is to be started.
    pub(crate) fn set_program(&mut self, program: Program) {
        self.target = Target::of(&program, &self.spec.args);
        self.program = Some(program);
    }

    /// Makes it return when the successor serves on trial.
    pub(crate) fn leave_trial(&mut self) {
        self.leaves_trial = true;
    }

    pub(crate) fn run(mut self) -> Result<HandoffOutcome> {
        match self.take_lease() {
            Ok(()) => self.finish(),
            Err(e) => {
                // Closing the lease undoes the handoff, and the successor is this driver's to end. One that may serve by now
                // is not: its incumbent decides, or is dead.
                self.lease = None;
                let may_serve = matches!(
                    self.machine.phase,
                    Phase::Deciding | Phase::Baking | Phase::Orphaned | Phase::Inquiring
                );
                self.successor.take().map(|successor| successor.end(may_serve));
                Err(e)
            }
        }
    }

    /// Asks for the lease, and goes on until it holds or has ended.
    pub(crate) fn take_lease(&mut self) -> Result<()> {
        self.connect()?;
        let (machine, actions) = Machine::start(self.machine.order);
        self.machine = machine;
        self.enter()?;
        for action in actions {
            self.perform(action)?;
        }
        self.advance()
    }

    /// Does the next thing, and goes on until it holds again or has ended.
    pub(crate) fn go(&mut self, next: Next) -> Result<()> {
        self.ask_observer();
        self.look()?;
        // What was heard may have ended it, or the incumbent: then this is not what is to be done any more.
        self.inputs.push_back(Input::Go(next));
        self.advance()
    }

    /// Undoes the handoff.
    pub(crate) fn cancel_for(&mut self, detail: &str) -> Result<()> {
        self.look()?;
        self.inputs.push_back(Input::Cancel(detail.to_owned()));
        self.advance()
    }

    fn advance(&mut self) -> Result<()> {
        while !self.has_ended() {
            match self.inputs.pop_front() {
                Some(input) => self.feed(&input)?,
                None if self.is_held() && self.holds == Holds::Returning => return Ok(()),
                None if self.leaves_trial && self.machine.phase == Phase::Baking => {
                    self.tell_journal();
                    self.measure();
                    self.note_serving();
                    self.note_measured();
                    return Ok(());
                }
                None => self.wait()?,
            }
        }
        Ok(())
    }

    /// Takes in what has arrived while nobody listened.
    fn look(&mut self) -> Result<()> {
        self.listen_until(Instant::now())?;
        while let Some(input) = self.inputs.pop_front() {
            self.feed(&input)?;
        }
        Ok(())
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.machine.phase, Phase::Done(_) | Phase::Became)
    }

    /// Whether this process is the successor from here on.
    pub(crate) fn has_become(&self) -> bool {
        self.machine.phase == Phase::Became
    }

    /// Whether it goes on only when it is told to.
    fn is_held(&self) -> bool {
        Phase::HELD.contains(&self.machine.phase)
    }

    /// Whether it waits for its observer's word.
    fn asks(&self) -> bool {
        self.is_held() && self.holds == Holds::Asking
    }

    /// Two connections: the lease, which the successor gets, and one that is told the verdict.
    ///
    /// Both to the same process: one that has just handed over may still answer the first of them.
    fn connect(&mut self) -> Result<()> {
        let deadline = Instant::now() + ANSWER;
        loop {
            match self.try_connect(deadline) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(Error::PeerLost { .. }) if Instant::now() < deadline => {}
                Ok(_) => {
                    return Err(Error::TimedOut { waiting_for: "one daemon to answer twice".to_owned() });
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn try_connect(&mut self, deadline: Instant) -> Result<bool> {
        let mut watch = Control::connect(self.control, "handoff driver", deadline)?;
        let watched = if self.spec.guard { watch.watch_and_guard(deadline) } else { watch.watch(deadline) };
        watched.map_err(gone)?;
        if self.listeners.is_empty() {
            self.listeners = watch.listeners(deadline).map_err(gone)?;
        }
        let lease = Control::connect(self.control, "handoff driver", deadline)?;
        let is_same = lease.hello().process == watch.hello().process;
        if self.spec.output == Output::Incumbents {
            self.stdio = fetch_stdio(&mut watch, deadline).map_err(gone)?;
        }
        self.watch = Some(watch.into_channel());
        self.lease = Some(lease.into_channel());
        Ok(is_same)
    }

    fn feed(&mut self, input: &Input) -> Result<()> {
        let was = self.machine.phase.name();
        let actions = self.machine.step(input);
        if was != self.machine.phase.name() {
            self.enter()?;
        }
        for action in actions {
            self.perform(action)?;
        }
        if self.is_held() && self.holds == Holds::Never {
            self.inputs.push_back(Input::Go(Next::Phase));
        }
        Ok(())
    }

    /// Notes a phase that was entered.
    fn enter(&mut self) -> Result<()> {
        let phase = self.machine.phase.name();
        self.measured.phases.push(PhaseMark { phase: phase.to_owned(), at_us: clock::monotonic_us() });
        self.note_later(Entry::Phase { name: phase.to_owned() });
        if self.asks() {
            // What it was before says nothing of how it is now.
            self.open_conns = None;
        }
        tracing::debug!(handoff = self.handoff, phase, "driver");
        let wish = (self.observer)(&Event::Phase(phase));
        self.heed(wish);
        Ok(())
    }

    /// The journal tells what happened; it does not decide, so a full disk does not undo a handoff.
    fn note(&mut self, entry: Entry) {
        self.note_later(entry);
        self.tell_journal();
    }

    /// Notes with this moment what is written down when the others are at work: no client waits for the journal.
    fn note_later(&mut self, entry: Entry) {
        if self.journal.is_some() {
            self.untold.push((Stamp::now(), entry));
        }
    }

    /// Writes down what waits for that.
    pub(crate) fn tell_journal(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        for (stamp, entry) in self.untold.drain(..) {
            if let Err(e) = journal.append_stamped(&self.handoff, Actor::Driver, entry, stamp) {
                tracing::warn!(error = %e, "the journal misses a record");
            }
        }
    }

    fn heed(&mut self, wish: Wish) {
        match wish {
            Wish::Cancel(detail) if !self.cancelled => {
                self.cancelled = true;
                self.inputs.push_back(Input::Cancel(detail));
            }
            Wish::GoOn if self.asks() => {
                self.inputs.push_back(Input::Go(Next::Phase));
            }
            Wish::Continue | Wish::Cancel(_) | Wish::GoOn => {}
        }
    }

    // ---- Waiting.

    fn wait(&mut self) -> Result<()> {
        // Now the others are at work, and nobody waits for this process.
        self.tell_journal();
        self.tick();
        if !self.inputs.is_empty() {
            return Ok(());
        }
        self.listen_until(self.wake_at())?;
        // Last: a driver that was stopped for a while finds its answers before it finds that they are late.
        if self.inputs.is_empty() {
            self.expire();
        }
        Ok(())
    }

    fn listen_until(&mut self, until: Instant) -> Result<()> {
        let mut sources: Vec<(Source, BorrowedFd<'_>, Want)> = vec![];
        let channels = [(Source::Lease, self.lease.as_ref()), (Source::Watch, self.watch.as_ref())];
        let to_successor = self.successor.as_ref().and_then(|successor| successor.channel.as_ref());
        for (source, channel) in channels.into_iter().chain([(Source::Successor, to_successor)]) {
            if let Some(channel) = channel {
                sources.push((
                    source,
                    channel.as_fd(),
                    if channel.wants_write() { Want::Both } else { Want::Read },
                ));
            }
        }
        if let Some(pidfd) = self.successor.as_ref().and_then(Successor::watched) {
            sources.push((Source::SuccessorDeath, pidfd.as_fd(), Want::Read));
        }
        if let Some((_, pidfd)) =
            self.prepared.as_ref().filter(|_| self.lease.is_some() || self.watch.is_some())
        {
            sources.push((Source::IncumbentDeath, pidfd.as_fd(), Want::Read));
        }
        let fds: Vec<(BorrowedFd<'_>, Want)> = sources.iter().map(|(_, fd, want)| (*fd, *want)).collect();
        let ready = poll::wait(&fds, Some(until)).map_err(|e| Error::io("wait for the handoff", e))?;
        let ready: Vec<Source> =
            sources.iter().zip(ready).filter(|(_, ready)| *ready).map(|((source, ..), _)| *source).collect();
        for source in ready {
            self.attend(source);
        }
        Ok(())
    }

    fn wake_at(&self) -> Instant {
        // A person who thinks is no reason to spin: nothing is accepted meanwhile, so that the queues do not get shorter unseen.
        let is_short = self.in_gap() && !self.asks();
        let tick = Instant::now() + if is_short { TICK_GAP } else { TICK };
        self.timers.iter().map(|(_, at)| *at).chain([tick]).min().unwrap_or(tick)
    }

    fn in_gap(&self) -> bool {
        let is_gap = matches!(
            self.machine.phase,
            Phase::Draining
                | Phase::Drained
                | Phase::Sealing
                | Phase::Sealed
                | Phase::Starting
                | Phase::Deciding
                | Phase::Orphaned
        );
        is_gap && self.served.is_none()
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let Some(at) = self.timers.iter().position(|(_, at)| *at <= now) else { return };
        let (timer, due) = self.timers.remove(at);
        if timer != Timer::Silence {
            return self.inputs.push_back(Input::Expired(timer));
        }
        let late = now.duration_since(due) > self.spec.margin / 2;
        if late && !std::mem::replace(&mut self.silence.excused, true) {
            // This process was stopped, and perhaps the whole machine: nobody had the time to answer.
            self.push_timer(timer, self.spec.margin);
        } else if self.asks_for_sign_of_life() {
            self.push_timer(timer, self.spec.margin.min(ANSWER));
        } else {
            self.inputs.push_back(Input::Expired(timer));
        }
    }

    /// An incumbent without a verdict is not a silent one: it may be going back, and its hook may take long. It is asked once
    /// before it is killed; one that hangs, or was stopped, does not answer.
    fn asks_for_sign_of_life(&mut self) -> bool {
        let is_at_stake = matches!(
            self.machine.phase,
            Phase::Sealing
                | Phase::Sealed
                | Phase::Starting
                | Phase::Retiring
                | Phase::Deciding
                | Phase::Baking
        );
        if !is_at_stake || self.silence.asked || Instant::now() >= self.silence.until {
            return false;
        }
        let Some(watch) = &mut self.watch else { return false };
        self.silence.asked = watch.send(&Message::Status {}, &[]).is_ok();
        self.silence.asked
    }

    /// Puts the end of the silence off, where the incumbent was asked for this.
    fn sign_of_life(&mut self, phase: &str) {
        // There its own wait has ended as well, and what it still waits for is a hook that hangs.
        let hangs = matches!(phase, "sealing" | "undoing");
        if self.silence.asked && !hangs {
            self.silence.asked = false;
            self.silence.excused = false;
            self.push_timer(Timer::Silence, self.spec.margin);
        }
    }

    fn push_timer(&mut self, timer: Timer, length: Duration) {
        self.timers.retain(|(other, _)| *other != timer);
        self.timers.push((timer, poll::after(length).unwrap_or_else(far_away)));
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Lease => self.read_lease(),
            Source::Watch => self.read_watch(),
            Source::Successor => self.read_successor(),
            Source::SuccessorDeath => {
                self.read_successor();
                self.successor_lost();
            }
            Source::IncumbentDeath => self.incumbent_lost(),
        }
    }

    fn tick(&mut self) {
        self.sample_queues();
        if self.ticked.elapsed() < TICK {
            return;
        }
        self.ask_observer();
    }

    /// Tells the observer how it stands, and heeds what it wishes.
    fn ask_observer(&mut self) {
        self.ticked = Instant::now();
        self.ask_status();
        let queue =
            self.measured.queue_limit.map(|limit| (queues(&self.listeners).map_or(0, |(len, _)| len), limit));
        let left = self.left();
        let event =
            Event::Tick { phase: self.machine.phase.name(), open_conns: self.open_conns, queue, left };
        let wish = (self.observer)(&event);
        self.heed(wish);
    }

    /// What is left of the time that was asked for; the timers run longer.
    fn left(&self) -> Option<Duration> {
        let until = match self.machine.phase {
            Phase::Warm
            | Phase::Prepared
            | Phase::Draining
            | Phase::Drained
            | Phase::Sealing
            | Phase::Sealed
            | Phase::Starting
            | Phase::Retiring
            | Phase::Deciding => Some(self.deadline),
            Phase::Baking => self.bake_until,
            _ => self.timers.iter().map(|(_, at)| *at).min(),
        };
        until.map(|at| at.saturating_duration_since(self.ticked))
    }

    fn sample_queues(&mut self) {
        let Some((len, limit)) = queues(&self.listeners) else { return };
        self.measured.queue_limit = Some(limit);
        self.measured.queue_peak = self.measured.queue_peak.max(Some(len));
    }

    /// The connection that watches also says how a long drain goes, and how things stand in a pause; one question at a time.
    fn ask_status(&mut self) {
        let is_of_use = self.machine.phase == Phase::Draining || self.asks();
        if !is_of_use || self.asked_status {
            return;
        }
        if let Some(watch) = &mut self.watch {
            self.asked_status = watch.send(&Message::Status {}, &[]).is_ok();
        }
    }

    // ---- What the others say.

    fn read_lease(&mut self) {
        // One message at a time: what comes after `sealed` is for the successor, who gets this connection.
        let Some(lease) = &mut self.lease else { return };
        // A peer that is gone takes nothing more, but what it sent before is still there to be read.
        let _ = lease.flush();
        let input = match lease.receive() {
            Ok(None) => return,
            Ok(Some(Incoming::Message(Message::Sealed(report), _))) => Some(self.sealed(report)),
            Ok(Some(Incoming::Message(message, fds))) => self.lease_word(message, fds),
            Ok(Some(Incoming::Unknown(name))) => Some(broken(format!("the incumbent sent {name}"))),
            Err(Error::PeerLost { .. } | Error::Io { .. }) => {
                self.lease = None;
                Some(Input::LeaseLost)
            }
            Err(e) => Some(broken(e.to_string())),
        };
        self.inputs.extend(input);
    }

    /// What was taken in together with `sealed` can no longer be read by a successor: it sealed and changed its mind.
    fn sealed(&mut self, report: crate::drainable::SealReport) -> Input {
        self.sealed = Some(report);
        match self.lease.as_mut().map(Channel::next) {
            Some(Ok(Some(Incoming::Message(Message::Aborted { reason }, _)))) => Input::Aborted(reason),
            _ => Input::Sealed,
        }
    }

    /// Counts also where a helper that the incumbent forked keeps its ends of the connections open.
    fn incumbent_lost(&mut self) {
        self.read_lease();
        self.read_watch();
        if !self.inputs.is_empty() {
            return;
        }
        let lease = self.lease.take().map(|_| Input::LeaseLost);
        let watch = self.watch.take().map(|_| Input::WatchLost);
        self.inputs.extend(lease.into_iter().chain(watch));
    }

    fn lease_word(&mut self, message: Message, fds: Vec<OwnedFd>) -> Option<Input> {
        match message {
            Message::Prepared(prepared) => match pidfd(fds) {
                Ok(pidfd) => {
                    let generation = prepared.generation;
                    self.prepared = Some((prepared, pidfd));
                    Some(Input::Prepared(generation))
                }
                Err(e) => Some(broken(e.to_string())),
            },
            Message::Busy { handoff, phase, age_ms } => {
                Some(Input::Refused(Refusal::Busy { handoff, phase, age_ms }))
            }
            Message::Refused { reason } => Some(Input::Refused(Refusal::Declined(reason))),
            Message::Drained(drained) => {
                self.stopped_us = Some(drained.stopped_us);
                self.measured.conns_at_drain = drained.conns;
                self.measured.conns_remaining = drained.report.open_conns_remaining;
                Some(Input::Drained)
            }
            Message::Aborted { reason } => Some(Input::Aborted(reason)),
            other => Some(broken(format!("the incumbent sent {}", other.name()))),
        }
    }

    fn read_watch(&mut self) {
        while let Some(watch) = &mut self.watch {
            let _ = watch.flush();
            match watch.receive() {
                Ok(None) => return,
                Ok(Some(Incoming::Message(Message::Verdict(report), _))) => self.verdict(report),
                Ok(Some(Incoming::Message(Message::StatusReport(status), _))) => {
                    self.open_conns = Some(status.state.open_conns);
                    self.asked_status = false;
                    self.sign_of_life(&status.phase);
                }
                Ok(Some(_)) => {}
                Err(_) => {
                    self.watch = None;
                    self.inputs.push_back(Input::WatchLost);
                }
            }
        }
    }

    fn verdict(&mut self, report: Report) {
        if report.handoff != self.handoff {
            return;
        }
        self.journal_incumbents_phases(&report.phases);
        self.measured.incumbent_phases = report.phases;
        self.served = self.served.or(report.served);
        self.superseded |= report.verdict == Verdict::Superseded;
        self.inputs.push_back(Input::Verdict(report.verdict));
    }

    fn journal_incumbents_phases(&mut self, phases: &[PhaseMark]) {
        self.tell_journal();
        let (Some(journal), Some((prepared, _))) = (&mut self.journal, &self.prepared) else { return };
        let (wall_ms, mono_us) = (clock::wall_ms(), clock::monotonic_us());
        for mark in phases {
            let stamp = Stamp {
                wall_ms: wall_ms.saturating_sub(mono_us.saturating_sub(mark.at_us) / 1000),
                mono_us: mark.at_us,
                boot_id: prepared.incumbent.boot_id.clone(),
                pid: prepared.incumbent.pid,
            };
            let entry = Entry::Phase { name: mark.phase.clone() };
            if let Err(e) = journal.append_stamped(&self.handoff, Actor::Incumbent, entry, stamp) {
                tracing::warn!(error = %e, "the journal misses a record");
            }
        }
    }

    fn read_successor(&mut self) {
        loop {
            let Some(successor) = &mut self.successor else { return };
            let Some(channel) = &mut successor.channel else { return };
            let _ = channel.flush();
            match channel.receive() {
                Ok(None) => return,
                Ok(Some(Incoming::Message(message, _))) => self.successor_word(message),
                Ok(Some(Incoming::Unknown(name))) => {
                    tracing::warn!(name, "unknown message from the successor")
                }
                Err(_) => {
                    successor.channel = None;
                    self.inputs.push_back(Input::SuccessorLost);
                }
            }
        }
    }

    fn successor_word(&mut self, message: Message) {
        let input = match message {
            Message::Hello(hello) => return self.meet(Message::Hello(hello)),
            Message::Waiting {} => {
                self.warm = true;
                Input::Waiting
            }
            Message::Serving(served) => {
                self.served = Some(served);
                self.bake_until = self.spec.bake.and_then(poll::after);
                self.sample_queues();
                Input::Serving
            }
            Message::Done(served) => {
                self.served.get_or_insert(served);
                Input::SuccessorDone
            }
            Message::Failed { reason } => Input::SuccessorFailed(reason),
            other => Input::SuccessorFailed(protocol(format!("the successor sent {}", other.name()))),
        };
        self.inputs.push_back(input);
    }

    fn meet(&mut self, hello: Message) {
        match (check_hello(hello), &mut self.successor) {
            (Ok(hello), Some(successor)) => {
                // Where it is in another pid namespace, its number means somebody else here: then the channel tells.
                let pidfd = PidFd::open(hello.process.pid).ok().filter(|_| {
                    ProcessId::of(hello.process.pid).is_ok_and(|process| process == hello.process)
                });
                successor.build_id.clone_from(&hello.build_id);
                successor.process = Some((hello.process, pidfd));
            }
            (Err(e), _) => self.inputs.push_back(Input::SuccessorFailed(protocol(e.to_string()))),
            (Ok(_), None) => {}
        }
    }

    fn successor_lost(&mut self) {
        if let Some(successor) = &mut self.successor
            && successor.channel.take().is_some()
        {
            self.inputs.push_back(Input::SuccessorLost);
        }
    }

    // ---- Actions.

    fn perform(&mut self, action: Action) -> Result<()> {
        match action {
            Action::SendPrepare => self.prepare(match self.machine.order {
                Order::Warm => self.spec.warm_up,
                Order::Cold => self.spec.deadline,
            }),
            Action::SendTerms => self.prepare(self.spec.deadline),
            Action::SendDrain => {
                let grace_ms = millis(self.spec.drain_grace);
                self.say(&Message::Drain { grace_ms });
            }
            Action::SendSeal => self.say(&Message::Seal {}),
            Action::SendRetire => self.say(&Message::Retire {}),
            // The caller does it, by executing the program.
            Action::Become => {}
            Action::SendAbort(reason) => {
                self.say(&Message::Abort { reason: reason.to_string(), cause: Some(reason) })
            }
            Action::SendCancel(reason) => self.cancel(reason),
            Action::Spawn => self.begin_and_spawn()?,
            Action::PassLease => self.pass_lease(),
            Action::CloseLease => self.lease = None,
            Action::Dismiss(reason) => self.dismiss(reason),
            Action::KillSuccessor => self.kill_successor(),
            Action::FenceIncumbent => self.fence_incumbent(),
            Action::Inquire => {
                let outcome =
                    recover::inquire(self.control, &self.parties(), self.spec.margin.saturating_mul(INQUIRY));
                self.inputs.push_back(Input::Concluded(outcome));
            }
            Action::Arm(timer) => self.arm(timer),
            Action::Disarm(timer) => self.timers.retain(|(other, _)| *other != timer),
        }
        Ok(())
    }

    fn say(&mut self, message: &Message) {
        if let Some(lease) = &mut self.lease
            && let Err(e) = lease.send(message, &[])
        {
            // Its end of file is the next input.
            tracing::debug!(error = %e, message = message.name(), "unable to send over the lease");
        }
    }

    fn cancel(&mut self, reason: String) {
        if let Some(watch) = &mut self.watch
            && let Err(e) = watch.send(&Message::Abort { reason, cause: None }, &[])
        {
            tracing::debug!(error = %e, "unable to ask the incumbent to undo the handoff");
        }
    }

    fn prepare(&mut self, deadline: Duration) {
        self.deadline = poll::after(deadline).unwrap_or_else(far_away);
        let terms = Terms {
            handoff: self.handoff.clone(),
            deadline_ms: millis(deadline),
            bake_ms: self.spec.bake.map(millis),
            stand_by_ms: millis(self.spec.stand_by),
        };
        self.say(&Message::Prepare(terms));
    }

    fn arm(&mut self, timer: Timer) {
        let length = match (timer, &self.machine.phase) {
            (Timer::Answer, _) => ANSWER,
            (Timer::WarmUp, _) => self.spec.warm_up,
            (Timer::Dismissal, _) => DISMISSAL,
            (Timer::Silence, phase) => self.silence(phase).saturating_add(self.spec.margin),
        };
        if self.machine.phase == Phase::Orphaned
            && self.successor.as_ref().is_none_or(|successor| successor.channel.is_none())
        {
            // It was lost when the incumbent still decided, and that was the incumbent's to see.
            self.inputs.push_back(Input::SuccessorLost);
        }
        if timer == Timer::Silence {
            let until = poll::after(length.saturating_mul(PATIENCE)).unwrap_or_else(far_away);
            self.silence = Silence { until, asked: false, excused: false };
        }
        self.push_timer(timer, length);
    }

    /// How long those that are left can be silent in this phase.
    fn silence(&self, phase: &Phase) -> Duration {
        let until_decided = self.deadline.saturating_duration_since(Instant::now());
        match phase {
            Phase::Baking => self.spec.bake.unwrap_or_default().saturating_add(self.spec.stand_by),
            // After the incumbent: the successor has to open the data, as after a crash, and to be warm first.
            Phase::Orphaned if self.warm && self.machine.order == Order::Warm => self.spec.deadline,
            Phase::Orphaned => self.spec.deadline.saturating_add(self.spec.warm_up),
            Phase::Deciding => until_decided.saturating_add(self.spec.stand_by),
            _ => until_decided,
        }
    }

    /// The journal names the successor from the first record on: whoever settles the handoff of a driver that died can end one that hangs, and
    /// does not notice that its driver is gone.
    fn begin_and_spawn(&mut self) -> Result<()> {
        let spawned = self.spawn();
        let process = spawned.as_ref().ok().and_then(|successor| ProcessId::of(successor.leader.pid()?).ok());
        if let Err(e) = self.note_begun_with(process) {
            if let Ok(successor) = spawned {
                successor.put_down();
            }
            return Err(e);
        }
        match spawned {
            Ok(successor) => self.successor = Some(successor),
            Err(e) => self.inputs.push_back(Input::SpawnFailed(e.to_string())),
        }
        Ok(())
    }

    /// A journal that cannot be begun refuses the swap: nothing has changed yet.
    pub(crate) fn note_begun(&mut self) -> Result<()> {
        self.note_begun_with(None)
    }

    fn note_begun_with(&mut self, successor: Option<ProcessId>) -> Result<()> {
        self.tell_journal();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let prepared = self.prepared.as_ref().map(|(prepared, _)| prepared);
        let entry = Entry::Begun {
            binary: self.target.binary.clone(),
            args: self.target.args.clone(),
            build_id: self.target.build_id.clone(),
            control: self.control.to_owned(),
            data_dir: prepared.map(|prepared| prepared.data_dir.clone().into()),
            incumbent: prepared.map(|prepared| prepared.incumbent.clone()),
            lock_file: prepared.map(|prepared| prepared.lock_file.clone()),
            generation: prepared.map(|prepared| prepared.generation),
            by: Some(Box::new(Requester::of_this_process())),
            successor,
        };
        journal.append(&self.handoff, Actor::Driver, entry)?;
        // Only while the incumbent serves; it is not synced again before the end.
        if self.machine.order == Order::Warm { journal.sync() } else { Ok(()) }
    }

    fn spawn(&mut self) -> Result<Successor> {
        let Some(program) = &self.program else {
            return Err(Error::Invalid { detail: "there is no program to start".to_owned() });
        };
        let (ours, theirs) = unix::pair().map_err(|e| Error::io("make a channel to the successor", e))?;
        let mut successor = match &self.spec.via {
            Some(trigger) => self.spawn_via(trigger, program, ours, theirs)?,
            None => self.spawn_here(program, ours, theirs)?,
        };
        match self.offer(&mut successor) {
            Ok(()) => Ok(successor),
            Err(e) => {
                successor.put_down();
                Err(e)
            }
        }
    }

    /// Has a supervisor start it. One whose driver does not hear of it finds its channel closed, and goes.
    fn spawn_via(
        &self,
        trigger: &Path,
        program: &Program,
        ours: OwnedFd,
        theirs: OwnedFd,
    ) -> Result<Successor> {
        let binary = std::path::absolute(program.path()).map_err(|e| Error::io("find the program", e))?;
        let asked = supervise::wire::Spawn {
            handoff: self.handoff.clone(),
            binary,
            args: self.spec.args.clone(),
            env: self.spec.env.clone(),
            directory: self.spec.directory.clone(),
        };
        let deadline = Instant::now() + ANSWER;
        let (process, tree, leader) = supervise::client::Client::connect(trigger)
            .and_then(|mut supervisor| supervisor.spawn(asked, theirs.as_fd(), deadline))
            .map_err(|e| Error::Refused {
                reason: format!("by the supervisor at {}: {e}", trigger.display()),
            })?;
        tracing::debug!(%process, "the supervisor has started the successor");
        let channel = Some(Channel::new(ours));
        Ok(Successor { child: None, leader, tree, channel, process: None, build_id: String::new() })
    }

    fn spawn_here(&self, program: &Program, ours: OwnedFd, theirs: OwnedFd) -> Result<Successor> {
        let plan = Plan::new(&self.listeners).with(fds::Role::Channel, theirs);
        let mut image = Image::new(program);
        image.args = self.spec.args.iter().map(OsString::from).collect();
        // They are a driver's: a daemon, and what it starts one day, would write to another's handoff.
        image.env.retain(|(name, _)| name != ID_VAR && name != JOURNAL_VAR);
        image.env.retain(|(name, _)| !self.spec.unset.iter().any(|unset| name.as_os_str() == unset.as_str()));
        for (name, value) in &self.spec.env {
            image.env.retain(|(other, _)| other.as_os_str() != name.as_str());
            image.env.push((name.into(), value.into()));
        }
        plan.install(&mut image)?;
        let mut spawn = Spawn::new(image);
        // A session of its own: a closing terminal does not take it along, and it can be killed whole.
        spawn.new_session = true;
        spawn.cgroup.clone_from(&self.spec.cgroup);
        spawn.directory.clone_from(&self.spec.directory);
        if let Some([stdout, stderr]) = &self.stdio {
            (spawn.stdout, spawn.stderr) = (Some(stdout.as_fd()), Some(stderr.as_fd()));
        }
        let child = spawn.spawn()?;
        let pid = child.id();
        let leader = match PidFd::open(pid) {
            Ok(leader) => leader,
            Err(e) => {
                let what = format!("open a pidfd of pid {pid}");
                put_down(child);
                return Err(Error::io(what, e));
            }
        };
        let tree = match &self.spec.cgroup {
            Some(path) => Tree::Cgroup { path: path.clone() },
            None => Tree::Session { sid: pid },
        };
        let channel = Some(Channel::new(ours));
        Ok(Successor { child: Some(child), leader, tree, channel, process: None, build_id: String::new() })
    }

    fn offer(&self, successor: &mut Successor) -> Result<()> {
        let (Some((prepared, incumbent)), Some(channel)) = (&self.prepared, &mut successor.channel) else {
            return Err(Error::Invalid { detail: "there is no lease to offer".to_owned() });
        };
        let offer = self.offer_of(prepared, successor.tree.clone());
        let hello = Message::Hello(own_hello("handoff driver", "")?);
        let sent = channel
            .send(&hello, &[])
            .and_then(|()| channel.send(&Message::Offer(offer), &[incumbent.as_fd()]));
        match sent {
            // It has died already: the end of its channel says so, and its parent knows how.
            Err(Error::Io { source, .. }) if is_gone(source.kind()) => Ok(()),
            sent => sent,
        }
    }

    fn offer_of(&self, prepared: &Prepared, tree: Tree) -> Offer {
        Offer {
            handoff: self.handoff.clone(),
            generation: prepared.generation,
            incumbent: prepared.incumbent.clone(),
            tree,
            patience_ms: millis(self.patience()),
            margin_ms: millis(self.spec.margin),
        }
    }

    /// How long a successor that is warm may have to wait for `begin`: a driver that holds may hold as long as it has the lease for.
    fn patience(&self) -> Duration {
        match self.holds {
            Holds::Never => self.spec.deadline,
            Holds::Asking | Holds::Returning => self.spec.deadline.saturating_add(self.spec.warm_up),
        }
    }

    fn pass_lease(&mut self) {
        let channel = self.successor.as_mut().and_then(|successor| successor.channel.as_mut());
        let (Some(lease), Some(channel), Some(sealed)) = (&self.lease, channel, &self.sealed) else { return };
        let deadline_ms = millis(self.deadline.saturating_duration_since(Instant::now()));
        let begin = Message::Begin(Begin { sealed: sealed.clone(), deadline_ms });
        if let Err(e) = channel.send(&begin, &[lease.as_fd()]) {
            // Closing the lease, which comes next, undoes the handoff.
            tracing::debug!(error = %e, "unable to pass the lease on");
        }
        // From here on there is the grant to wait for, and the word that it serves.
        self.arm(Timer::Silence);
        if self.watch.is_none() {
            // It was lost when that decided nothing yet.
            self.inputs.push_back(Input::WatchLost);
        }
    }

    fn fence_incumbent(&self) {
        let Some((prepared, pidfd)) = &self.prepared else { return };
        tracing::warn!(incumbent = %prepared.incumbent, "the incumbent has sealed, or should have, and says nothing: killing it");
        if let Err(e) = pidfd.signal(Signal::SIGKILL) {
            tracing::error!(incumbent = %prepared.incumbent, error = %e, "unable to kill the incumbent");
        }
    }

    /// Tells the successor to go; where there is none, or none any more, that is the next input.
    fn dismiss(&mut self, reason: Reason) {
        match self.successor.as_mut().and_then(|successor| successor.channel.as_mut()) {
            // One that does not listen is killed when its time is up.
            Some(channel) => drop(channel.send(&Message::Dismissed { reason }, &[])),
            None => self.inputs.push_back(Input::SuccessorLost),
        }
    }

    fn kill_successor(&mut self) {
        if let Some(successor) = &self.successor {
            tracing::warn!(pid = successor.leader.pid(), "the successor does not go: killing it");
            successor.kill();
        }
        self.successor_lost();
    }

    fn parties(&self) -> Parties {
        let Some((prepared, _)) = &self.prepared else { return Parties::default() };
        let process = self.successor.as_ref().and_then(|successor| successor.process.as_ref());
        Parties {
            lock_file: Some(Path::new(&prepared.data_dir).join(&prepared.lock_file)),
            incumbent: Some(prepared.incumbent.clone()),
            successor: process.map(|(process, _)| process.clone()),
            generation: Some(prepared.generation),
            program: SuccessorsProgram {
                binary: self.target.binary.clone(),
                build_id: self.target.build_id.clone(),
            },
            superseded: self.superseded,
        }
    }

    // ---- The end.

    /// Says how it ended.
    ///
    /// # Errors
    ///
    /// It has not: the lease is closed, and with it the handoff undone.
    pub(crate) fn finish(mut self) -> Result<HandoffOutcome> {
        let Phase::Done(outcome) = self.machine.phase.clone() else {
            let detail = format!("the handoff is not over: it is {}", self.machine.phase.name());
            return Err(Error::Invalid { detail });
        };
        self.hear_incumbent_out();
        self.measure();
        self.note_serving();
        let why = self.why(&outcome);
        self.note_end(&outcome, why.clone());
        let committed = outcome == Outcome::Committed;
        // Superseded: the data is the successor's, and its program serves, but as the incumbent's process.
        let is_successor = committed && !self.superseded;
        let successor = self.successor.take();
        let pid = successor.as_ref().and_then(|successor| successor.leader.pid()).filter(|_| is_successor);
        let child = successor.and_then(|successor| successor.end(is_successor));
        Ok(HandoffOutcome {
            handoff_id: self.handoff,
            committed,
            binary: self.target.binary,
            args: self.target.args,
            pid,
            abort_reason: why.map(AbortReason),
            child,
            outcome,
            measured: self.measured,
        })
    }

    /// How it ended is known; what is still on its way from the incumbent says when things happened, for the journal.
    fn hear_incumbent_out(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        while self.measured.incumbent_phases.is_empty() && self.stopped_us.is_some() {
            let Some(watch) = &self.watch else { return };
            if !poll::wait_one(watch.as_fd(), Want::Read, Some(until)).unwrap_or(false) {
                return;
            }
            self.read_watch();
        }
    }

    /// The gap's end, as the successor said itself.
    fn note_serving(&mut self) {
        let successor = self.successor.as_ref().and_then(|successor| successor.process.as_ref());
        let (Some(journal), Some(served), Some((process, _))) = (&mut self.journal, self.served, successor)
        else {
            return;
        };
        let ago_ms = clock::monotonic_us().saturating_sub(served.serving_us) / 1000;
        let stamp = Stamp {
            wall_ms: clock::wall_ms().saturating_sub(ago_ms),
            mono_us: served.serving_us,
            boot_id: process.boot_id.clone(),
            pid: process.pid,
        };
        let entry = Entry::Phase { name: "serving".to_owned() };
        if let Err(e) = journal.append_stamped(&self.handoff, Actor::Successor, entry, stamp) {
            tracing::warn!(error = %e, "the journal misses a record");
        }
    }

    fn measure(&mut self) {
        self.sample_queues();
        self.measured.total_ms = millis(self.began.elapsed());
        let gap = |(stopped, served): (u64, Served)| served.serving_us.saturating_sub(stopped);
        self.measured.stopped_us = self.stopped_us;
        self.measured.serving_us = self.served.map(|served| served.serving_us);
        self.measured.gap_us = self.stopped_us.zip(self.served).map(gap);
        self.measured.overflows =
            self.overflows_before.zip(overflows()).map(|(before, after)| after.saturating_sub(before));
    }

    /// Nobody waits for the journal any more: how it ended is known.
    fn note_measured(&mut self) {
        let measured = &self.measured;
        let drained = self.stopped_us.is_some();
        self.note(Entry::Measured(Measurements {
            total_ms: Some(measured.total_ms),
            conns_at_drain: drained.then_some(measured.conns_at_drain),
            conns_remaining: drained.then_some(measured.conns_remaining),
            queue_peak: measured.queue_peak,
            queue_limit: measured.queue_limit,
            overflows: measured.overflows,
        }));
    }

    /// Why it was undone; of a successor that died, the driver alone knows how: it is its parent.
    fn why(&mut self, outcome: &Outcome) -> Option<String> {
        if let Outcome::RolledBack(Reason::SuccessorLost | Reason::LeaseLost) = outcome
            && let Some(successor) = &mut self.successor
            && successor.leader.wait_dead(Instant::now() + LAST_WORDS).unwrap_or(false)
            && let Some(status) = successor.reap()
        {
            return Some(format!("the successor died ({status})"));
        }
        recover::reason_of(outcome)
    }

    fn note_end(&mut self, outcome: &Outcome, why: Option<String>) {
        self.tell_journal();
        if !matches!(outcome, Outcome::Refused(_)) {
            self.note_measured();
        }
        let entry = match outcome {
            Outcome::Committed => Entry::Committed {
                generation: match self.served {
                    Some(served) if !self.superseded => served.generation,
                    _ => self.parties().record().map_or(0, |record| record.generation),
                },
                binary: self.target.binary.clone().unwrap_or_default(),
                args: self.target.args.clone(),
                build_id: self
                    .successor
                    .as_ref()
                    .map_or(String::new(), |successor| successor.build_id.clone()),
                gap_us: self.measured.gap_us,
            },
            Outcome::RolledBack(reason) => {
                let cause = Some(reason.kind().to_owned());
                Entry::RolledBack { reason: why.unwrap_or_else(|| reason.to_string()), cause }
            }
            Outcome::Retired => Entry::Retired,
            Outcome::Refused(_) => return,
            Outcome::NothingServing(detail) | Outcome::Undecided(detail) => {
                Entry::Undecided { detail: detail.clone() }
            }
        };
        self.note(entry);
        if let Some(Err(e)) = self.journal.as_mut().map(Journal::sync) {
            tracing::warn!(error = %e, "the end of the handoff may not be on disk");
        }
    }
}

/// Something that can be waited for.
#[derive(Clone, Copy)]
enum Source {
    Lease,
    Watch,
    Successor,
    SuccessorDeath,
    IncumbentDeath,
}

impl Successor {
    /// Whose death counts: the daemon's own, once it is known, or that of whoever was started.
    fn watched(&self) -> Option<&PidFd> {
        self.channel.as_ref()?;
        match &self.process {
            Some((_, pidfd)) => pidfd.as_ref(),
            None => Some(&self.leader),
        }
    }

    /// Kills and reaps it, of which nobody else knows yet.
    fn put_down(self) {
        self.kill();
        if let Some(child) = self.child {
            put_down(child);
        }
    }

    /// Hands the child over if it serves. Otherwise it has ended, and what it has started ends too.
    fn end(mut self, serves: bool) -> Option<Child> {
        if serves {
            return self.child;
        }
        if !self.leader.wait_dead(Instant::now() + DISMISSAL).unwrap_or(false) {
            tracing::warn!(pid = self.leader.pid(), "the successor does not go: killing it");
        }
        self.kill();
        // If it still lives, somebody else has to reap it.
        if self.reap().is_none()
            && let Some(child) = &self.child
        {
            children::disown(child.id());
        }
        None
    }

    /// Returns how it ended, where it is this process's child and has ended.
    fn reap(&mut self) -> Option<ExitStatus> {
        match &mut self.child {
            Some(child) => child.try_wait().ok().flatten(),
            None => self.leader.try_reap().ok().flatten(),
        }
    }

    fn kill(&self) {
        match tree::kill(Some(&self.leader), &self.tree, Instant::now() + DISMISSAL) {
            Ok(killed) if killed.left.is_empty() => {}
            Ok(killed) => tracing::error!(left = ?killed.left, "processes of the successor are left over"),
            Err(e) => tracing::error!(error = %e, "unable to kill the successor's tree"),
        }
    }
}

/// Kills and reaps a process that nobody knows of yet.
fn put_down(mut child: Child) {
    // It fails only where it has ended and was reaped.
    let _ = child.kill();
    let until = Instant::now() + DISMISSAL;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(TICK_GAP);
    }
    children::disown(child.id());
}

fn fetch_stdio(incumbent: &mut Control, deadline: Instant) -> Result<Option<[OwnedFd; 2]>> {
    match incumbent.stdio(deadline) {
        Ok(stdio) => Ok(Some(stdio)),
        Err(Error::Refused { reason }) => {
            tracing::warn!(
                reason,
                "the successor writes where this process does, not where the incumbent does"
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// EPIPE and the like from a daemon that said hello: it has just handed over, and whoever follows will answer.
fn gone(e: Error) -> Error {
    match e {
        Error::Io { source, .. } if is_gone(source.kind()) => {
            Error::PeerLost { waiting_for: "an answer".to_owned() }
        }
        e => e,
    }
}

fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn broken(detail: String) -> Input {
    Input::Aborted(protocol(detail))
}

fn protocol(detail: String) -> Reason {
    Reason::Protocol { detail }
}

fn queues(listeners: &[(String, OwnedFd)]) -> Option<(u32, u32)> {
    let queues = listeners.iter().filter_map(|(_, fd)| queue::accept_queue(fd.as_fd()).ok().flatten());
    queues.map(|queue| (queue.len, queue.limit)).reduce(|a, b| (a.0.max(b.0), a.1.min(b.1)))
}

fn overflows() -> Option<u64> {
    queue::listen_overflows().ok().map(|(overflows, _)| overflows)
}

/// So far in the future that nobody waits for it.
fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one connection: with its hello, and with a word to the question that follows.
    fn incumbent_that_says(answer: Message) -> (tempfile::TempDir, std::thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control")).unwrap();
        let answering = std::thread::spawn(move || {
            let mut channel = Channel::new(listener.accept().unwrap().0.into());
            let deadline = Instant::now() + Duration::from_secs(60);
            for word in [Message::Hello(own_hello("incumbent", "").unwrap()), answer] {
                channel.wait("a question", deadline).unwrap();
                channel.deliver(&word, &[], deadline).unwrap();
            }
        });
        (dir, answering)
    }

    fn stdio_from(answer: Message) -> Result<Option<[OwnedFd; 2]>> {
        let (dir, answering) = incumbent_that_says(answer);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut control = Control::connect(dir.path().join("control"), "test", deadline).unwrap();
        let stdio = fetch_stdio(&mut control, deadline);
        answering.join().unwrap();
        stdio
    }

    #[test]
    fn an_incumbent_that_does_not_give_its_output_is_no_reason_to_stop() {
        let reason = "expected a message of this protocol version, got stdio".to_owned();
        assert!(stdio_from(Message::Refused { reason }).unwrap().is_none());
        assert!(matches!(stdio_from(Message::StdioCopies {}), Err(Error::Protocol { .. })), "without copies");
    }
}
