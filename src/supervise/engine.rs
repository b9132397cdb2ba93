//! The supervisor's loop: one thread, which waits for signals, clients, the ends of processes and for what its workers report.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::manager::Managed;
use super::metrics::{Figures, Textfile};
use super::start::{self, Kept, Started};
use super::swap::{self, Link, Order};
use super::trigger::{self, Asked, ClientId, Clients};
use super::who::{self, Daemon, Question};
use super::wire::{Answer, Request, State, Swap};
use super::{Ended, Own, Policy, Settings, reexec};
use crate::error::{Error, Result};
use crate::health::Check;
use crate::notify;
use crate::proto::driver::{Outcome, Refusal};
use crate::proto::party::Tree;
use crate::proto::supervisor::{Action, Force, Found, How, Input, Job, Machine, Phase, Then, Timer, Word};
use crate::supervisor::HandoffOutcome;
use crate::sys::poll::{self, Waker, Want};
use crate::sys::process::{PidFd, ProcessId, Signal};
use crate::sys::signals::Signals;
use crate::sys::spawn::Program;
use crate::sys::{children, tree};

/// Between two looks at a handoff that somebody else drives, and at a process that is in the way.
const LOOK: Duration = Duration::from_millis(100);
/// How long a process that was sent SIGTERM has before SIGKILL, and then from one attempt to the next.
const GRACE: Duration = Duration::from_secs(5);
/// How long the processes of a tree may take to die.
const DYING: Duration = Duration::from_secs(1);
/// How often the service manager is told that it takes longer, and how much longer.
const EXTEND: Duration = Duration::from_secs(2);
/// How many children's ends are remembered.
const ENDS_MAX: usize = 32;
/// How many programs are kept opened: the one that serves, and the one before it.
const KEPT_MAX: usize = 2;
/// How long clients may take for the last answer.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a worker reports.
pub(super) enum News {
    Answer(Box<who::Answer>),
    Started(Result<Started>),
    Ready(Result<Option<crate::proto::wire::Status>>),
    Swapped(Result<HandoffOutcome>),
    Retired(Result<HandoffOutcome>),
    Rehearsed(Result<Program>),
    Metrics(Result<()>),
}

/// Something that was asked for, and is to be done in its turn.
#[derive(Debug)]
pub(super) struct Task {
    pub job: Job,
    pub client: Option<ClientId>,
    /// For a swap: what is to run, opened when it was asked for.
    pub program: Option<Program>,
    pub args: Option<Vec<String>>,
    pub bake_ms: Option<u64>,
    pub queue: bool,
}

/// A swap that goes on.
struct Running {
    task: Task,
    link: Link,
}

/// A child that was started here.
#[derive(Debug)]
pub(super) struct Leader {
    pub pid: u32,
    pub pidfd: PidFd,
}

pub(super) struct Engine {
    pub(super) settings: Settings,
    pub(super) own: Own,
    pub(super) machine: Machine,
    since: Instant,
    pub(super) listeners: Vec<(String, OwnedFd)>,
    signals: Signals,
    pub(super) clients: Clients,
    pub(super) managed: Managed,
    waker: Arc<Waker>,
    sender: Sender<News>,
    news: Receiver<News>,
    timers: Vec<(Timer, Instant)>,
    daemon: Option<Daemon>,
    former: Vec<Daemon>,
    pub(super) leaders: Vec<Leader>,
    ends: VecDeque<(u32, ExitStatus)>,
    /// How the daemon ended that died last, where that is known.
    lost: Option<ExitStatus>,
    /// The daemon that died last, where it led a session that was made for it: what it left there is nobody else's.
    left: Option<Daemon>,
    kept: Vec<Kept>,
    /// What the request that came last is, until it is known whether it may wait.
    asked: Option<Task>,
    pub(super) queue: VecDeque<Task>,
    running: Option<Running>,
    pub(super) reexec: Option<Task>,
    /// What clients are told once it is known who serves: whoever asks next finds that.
    verdicts: Vec<(ClientId, Answer)>,
    /// Stops waiting for readiness.
    awaits: Option<Arc<AtomicBool>>,
    failure: Option<Error>,
    pub(super) restarts: Vec<Instant>,
    pub(super) restarts_total: u32,
    pub(super) swaps: Vec<(String, u64)>,
    detail: String,
    /// How the last swap ended, for the service manager.
    last_swap: String,
    extended: Instant,
    metrics: Textfile,
    exit: Option<How>,
}

impl Engine {
    pub(super) fn new(
        settings: Settings,
        own: Own,
        listeners: Vec<(String, OwnedFd)>,
        clients: Clients,
        managed: Managed,
        machine: Machine,
    ) -> Result<Self> {
        let io = |what: &'static str| move |e| Error::io(what, e);
        let signals = Signals::catch().map_err(io("catch signals"))?;
        crate::sys::reexec::release_signals();
        children::adopt_orphans().map_err(io("become the parent of orphans"))?;
        let (sender, news) = channel();
        let now = Instant::now();
        Ok(Self {
            settings,
            own,
            machine,
            since: now,
            listeners,
            signals,
            clients,
            managed,
            waker: Arc::new(Waker::new().map_err(io("make an eventfd"))?),
            sender,
            news,
            timers: vec![],
            daemon: None,
            former: vec![],
            leaders: vec![],
            ends: VecDeque::new(),
            lost: None,
            left: None,
            kept: vec![],
            asked: None,
            queue: VecDeque::new(),
            running: None,
            reexec: None,
            verdicts: vec![],
            awaits: None,
            failure: None,
            restarts: vec![],
            restarts_total: 0,
            swaps: vec![],
            detail: String::new(),
            last_swap: String::new(),
            extended: now,
            metrics: Textfile::new(),
            exit: None,
        })
    }

    pub(super) fn run(mut self, first: Vec<Action>) -> Result<Ended> {
        self.reap();
        self.perform_all(first);
        while self.exit.is_none() {
            self.wait()?;
            self.take_signals();
            self.take_news();
            self.hear_daemon();
            self.look_at_processes();
            self.take_requests();
            self.expire();
            self.extend();
            self.managed.tick();
            self.write_metrics();
        }
        self.end()
    }

    fn say(&self, level: &str, text: &str) {
        (self.own.say)(level, text);
    }

    fn wait(&self) -> Result<()> {
        let mut wanted: Vec<(BorrowedFd<'_>, Want)> =
            vec![(self.signals.as_fd(), Want::Read), (self.waker.as_fd(), Want::Read)];
        wanted.extend(self.daemons().map(|daemon| (daemon.pidfd.as_fd(), Want::Read)));
        // What it says before it is known waits.
        wanted.extend(self.daemon.as_ref().and(self.managed.private()).map(|fd| (fd, Want::Read)));
        wanted.extend(self.clients.wanted());
        let extend = self.is_slow().then_some(self.extended + EXTEND);
        let timers = self.timers.iter().map(|(_, at)| *at);
        let metrics = self.settings.metrics_file.as_ref().and_then(|_| self.metrics.wake_at());
        let own = [self.clients.wake_at(), self.managed.wake_at(), extend, metrics];
        let deadline = timers.chain(own.into_iter().flatten()).min();
        poll::wait(&wanted, deadline).map(drop).map_err(|e| Error::io("wait for signals and clients", e))
    }

    fn hear_daemon(&mut self) {
        if let Some(daemon) = &self.daemon {
            self.managed.hear(daemon.process.pid);
        }
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.daemon.iter().chain(&self.former)
    }

    // ---- The machine.

    pub(super) fn feed(&mut self, input: Input) {
        let was = self.machine.phase;
        let actions = self.machine.step(input);
        if was != self.machine.phase {
            tracing::debug!(from = was.name(), to = self.machine.phase.name(), ?input, "supervisor");
            self.since = Instant::now();
        }
        if was != self.machine.phase && self.machine.phase == Phase::Serving {
            // It was started, or a swap has ended.
            self.metrics.hurry();
        }
        self.perform_all(actions);
    }

    fn perform_all(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Inquire => self.inquire(),
            Action::Start => self.start(),
            Action::RunSwap => self.run_swap(),
            Action::CancelSwap => {
                if let Some(running) = &self.running {
                    running.link.cancel("the supervisor was asked to stop");
                }
            }
            Action::Rehearse => self.rehearse(),
            Action::Become => self.become_anew(),
            Action::DeclineReexec => {
                self.decline_reexec("the daemon died meanwhile, or a stop was asked for")
            }
            Action::Retire => self.retire(),
            Action::Signal(force) => self.signal_daemon(force),
            Action::EndLingerer(force) => self.end_former(force),
            Action::Queue => self.enqueue(),
            Action::Refuse => self.refuse_busy(),
            Action::RefuseWaiting => self.refuse_waiting(),
            Action::Tell(word) => self.tell(word),
            Action::Arm(timer) => self.arm(timer),
            Action::Disarm(timer) => self.timers.retain(|(other, _)| *other != timer),
            Action::Exit(how) => self.exit = Some(how),
        }
    }

    fn arm(&mut self, timer: Timer) {
        let limits = &self.settings.limits;
        let length = match timer {
            Timer::Look => LOOK,
            Timer::Patience => self.settings.readiness.timeout,
            Timer::Backoff => self.backoff(),
            // The worker says that it was too long.
            Timer::Readiness => self.settings.readiness.timeout + GRACE,
            // The worker's own limit comes first.
            Timer::Stop => limits.stop + GRACE,
            Timer::Signal => GRACE,
            Timer::Linger if self.machine.lingers == Some(None) => limits.linger,
            Timer::Linger => GRACE,
        };
        self.timers.retain(|(other, _)| *other != timer);
        self.timers.extend(poll::after(length).map(|at| (timer, at)));
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(due) = self.timers.iter().position(|(_, at)| *at <= now) {
            let (timer, _) = self.timers.remove(due);
            self.tell_of(timer);
            self.feed(Input::Expired(timer));
        }
    }

    fn tell_of(&self, timer: Timer) {
        let text = match (timer, self.machine.phase) {
            (Timer::Readiness, Phase::Starting) => "the daemon is not ready in time",
            (Timer::Stop, Phase::Stopping) => "the planned stop takes too long",
            (Timer::Patience, _) => "what is in the way does not go",
            _ => return,
        };
        self.say("warning", text);
    }

    // ---- Workers.

    /// Runs something that takes long in a thread of its own, which reports when it is done.
    fn work(&self, job: impl FnOnce() -> News + Send + 'static) {
        let (sender, waker) = (self.sender.clone(), Arc::clone(&self.waker));
        std::thread::spawn(move || {
            // Nobody listens any more where the supervisor has ended.
            let _ = sender.send(job());
            waker.ring();
        });
    }

    fn take_news(&mut self) {
        self.waker.clear();
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Answer(answer) => self.answered(*answer),
                News::Started(started) => self.started(started),
                News::Ready(ready) => self.ready(ready),
                News::Swapped(swapped) => self.swapped(swapped),
                News::Retired(retired) => self.retired(retired),
                News::Rehearsed(rehearsed) => self.rehearsed(rehearsed),
                News::Metrics(written) => self.metrics.written(written, self.own.say),
            }
        }
    }

    fn inquire(&self) {
        let question = Question {
            control: self.settings.control.clone(),
            data_dir: self.settings.data_dir.clone(),
            journal: self.settings.journal.clone(),
            held: self.listeners.iter().map(|(name, _)| name.clone()).collect(),
        };
        self.work(move || News::Answer(Box::new(question.ask())));
    }

    fn answered(&mut self, answer: who::Answer) {
        if self.machine.phase != Phase::Inquiring {
            return;
        }
        if answer.daemon.as_ref().is_some_and(Daemon::is_dead) {
            // It was true when it was asked.
            return self.inquire();
        }
        match answer.found {
            Found::LockHeld => self.sweep(),
            // It was followed by another one.
            Found::Serving => self.left = None,
            Found::Busy | Found::Nobody => {}
        }
        if let Some(recovered) = &answer.recovered {
            let ended = crate::recover::reason_of(&recovered.outcome)
                .unwrap_or_else(|| recovered.outcome.name().to_owned());
            self.say(
                "warning",
                &format!("handoff {} was left open by a driver that died: {ended}", recovered.handoff_id),
            );
        }
        let detail = answer.detail.unwrap_or_default();
        if !detail.is_empty() && detail != self.detail {
            self.say("warning", &detail);
        }
        self.detail = detail;
        self.listeners.extend(answer.listeners);
        let adopted = answer.daemon.map(|daemon| self.adopt(daemon));
        // That one has ended comes before that nobody serves: it says what is to be done about it.
        if self.daemon.as_ref().is_some_and(Daemon::is_dead) {
            self.daemon_lost();
        }
        let lives = self.daemon.as_ref().is_some_and(|daemon| !daemon.is_dead());
        if let (Found::Serving, Some(true), Some(daemon)) = (answer.found, adopted, &self.daemon) {
            let binary =
                daemon.program.as_ref().map_or(String::new(), |(path, _)| path.display().to_string());
            self.say("info", &format!("{} serves: {binary}", daemon.process));
        }
        // While a handoff goes on, the one of before may have to take over again.
        if matches!(answer.found, Found::Serving | Found::Nobody) && !self.former.is_empty() {
            self.feed(Input::Lingers);
        }
        self.tell_verdicts();
        self.feed(Input::Found(answer.found, lives));
    }

    fn tell_verdicts(&mut self) {
        for (client, verdict) in std::mem::take(&mut self.verdicts) {
            self.clients.end(client, &verdict);
        }
    }

    /// Watches this daemon from now on; returns whether it is another one than before.
    fn adopt(&mut self, daemon: Daemon) -> bool {
        let is_known = self.daemon.as_ref().is_some_and(|known| known.process == daemon.process);
        if is_known && self.daemon.as_ref().is_some_and(|known| known.program.is_some()) {
            return false;
        }
        self.former.retain(|former| former.process != daemon.process);
        if let Some(kept) = Kept::of(&daemon) {
            self.kept.retain(|other| other.named != kept.named);
            self.kept.insert(0, kept);
            self.kept.truncate(KEPT_MAX);
        }
        let before = self.daemon.replace(daemon);
        if is_known {
            return true;
        }
        // One that was never known to serve is a wrapper of this one.
        self.former.extend(before.filter(|before| before.program.is_some() && !before.is_dead()));
        true
    }

    // ---- Starting.

    fn start(&mut self) {
        self.sweep();
        self.managed.expect_ready();
        let settings = self.managed.for_daemon(&self.settings);
        let copies: Result<Vec<_>> = self.listeners.iter().map(start::copy).collect();
        let kept = std::mem::take(&mut self.kept);
        let listeners = match copies {
            Ok(listeners) => listeners,
            Err(e) => return self.started(Err(e)),
        };
        self.work(move || News::Started(start::start(&settings, &listeners, &kept)));
    }

    fn started(&mut self, started: Result<Started>) {
        let started = match started {
            Ok(started) => started,
            Err(Error::Locked { .. }) => return self.feed(Input::Overtaken),
            Err(e) => {
                self.say("warning", &format!("unable to start the daemon: {e}"));
                self.failure = Some(e);
                let then = self.decide(None);
                return self.feed(Input::StartFailed(then));
            }
        };
        if let Some(remark) = &started.remark {
            self.say("warning", remark);
        }
        self.failure = None;
        self.listeners.extend(started.bound);
        let pid = started.child.id();
        self.say("info", &format!("started {} as pid {pid}", started.program.display()));
        // Before it can be reaped: one that has died already is still somebody, whose end is to be looked at.
        let (process, copy) = (ProcessId::of(pid), started.leader.try_clone());
        self.lead(pid, started.leader);
        if let (Ok(process), Ok(pidfd)) = (process, copy) {
            self.adopt(Daemon { process, pidfd, program: None });
        }
        self.feed(Input::Started);
        if self.machine.phase == Phase::Starting {
            self.await_ready();
        }
    }

    /// A child that is this loop's to reap.
    pub(super) fn lead(&mut self, pid: u32, pidfd: PidFd) {
        self.leaders.push(Leader { pid, pidfd });
        children::disown(pid);
        // It may have ended while it was another's.
        self.reap();
    }

    fn await_ready(&mut self) {
        let (settings, over) = (self.settings.clone(), Arc::new(AtomicBool::new(false)));
        self.awaits = Some(Arc::clone(&over));
        let said_ready = self.managed.said_ready();
        self.work(move || News::Ready(start::await_ready(&settings, &said_ready, &over)));
    }

    fn ready(&mut self, ready: Result<Option<crate::proto::wire::Status>>) {
        if self.machine.phase != Phase::Starting {
            return;
        }
        match ready {
            Ok(Some(status)) => {
                self.say("info", &format!("{} is ready", status.process));
                if let Err(e) = start::note_started(&self.settings, &status) {
                    self.say("warning", &format!("the journal misses a start: {e}"));
                }
                self.feed(Input::Ready);
            }
            Ok(None) => {}
            Err(e) => {
                self.say("warning", &e.to_string());
                self.feed(Input::Expired(Timer::Readiness));
            }
        }
    }

    // ---- Processes.

    fn look_at_processes(&mut self) {
        let had = self.former.len();
        self.former.retain(|former| !former.is_dead());
        if had > 0 && self.former.is_empty() {
            self.feed(Input::LingererLost);
        }
        if self.daemon.as_ref().is_some_and(Daemon::is_dead) {
            self.daemon_lost();
        }
        // Their ends were looked at, and nobody waits for them any more.
        self.reap();
    }

    fn daemon_lost(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        let pid = daemon.process.pid;
        let is_ours = self.leaders.iter().any(|leader| leader.pid == pid)
            || self.ends.iter().any(|(other, _)| *other == pid);
        self.reap_leaders();
        let ended = daemon.pidfd.try_reap().ok().flatten();
        self.lost =
            ended.or_else(|| self.ends.iter().rev().find(|(other, _)| *other == pid).map(|(_, end)| *end));
        if let Some(over) = self.awaits.take() {
            over.store(true, Ordering::Relaxed);
        }
        let how = self.lost.map_or("it is not known how".to_owned(), |status| status.to_string());
        let expected = matches!(self.machine.phase, Phase::Swapping | Phase::Stopping | Phase::Ending);
        self.say(if expected { "info" } else { "warning" }, &format!("pid {pid} has ended: {how}"));
        self.left = is_ours.then_some(daemon);
        let then = self.decide(self.lost);
        self.feed(Input::DaemonLost(then));
    }

    /// Ends what a daemon that died has left behind, where the session was made for it and nobody serves: it would answer beside the next one, or
    /// keep the data locked.
    fn sweep(&mut self) {
        let Some(left) = self.left.take() else { return };
        let tree = Tree::Session { sid: left.process.pid };
        let members = tree::members(Some(&left.pidfd), &tree).unwrap_or_default();
        if members.is_empty() {
            return;
        }
        self.say(
            "warning",
            &format!("{} has left processes behind, which are ended: {members:?}", left.process),
        );
        match tree::kill(Some(&left.pidfd), &tree, Instant::now() + DYING) {
            Ok(killed) if killed.left.is_empty() => {}
            Ok(killed) => {
                self.say("warning", &format!("these do not end: {:?}", killed.left));
                self.left = Some(left);
            }
            Err(e) => self.say("warning", &format!("unable to end them: {e}")),
        }
    }

    /// What is to be done where a daemon has died by itself and nobody else serves.
    fn decide(&mut self, ended: Option<ExitStatus>) -> Then {
        let restart = &self.settings.restart;
        let again = match restart.policy {
            Policy::Never => false,
            Policy::OnFailure => ended.is_none_or(|status| !status.success()),
            Policy::Always => true,
        };
        let window = restart.window;
        self.restarts.retain(|at| at.elapsed() < window);
        if again && self.restarts.len() >= restart.max as usize {
            return Then::Follow;
        }
        if again { Then::Restart } else { Then::Follow }
    }

    fn backoff(&mut self) -> Duration {
        let restart = &self.settings.restart;
        let doubled = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX).min(30);
        let length = restart.delay.saturating_mul(1 << doubled).min(restart.delay_max);
        self.restarts.push(Instant::now());
        self.restarts_total += 1;
        self.say("warning", &format!("starting the daemon again in {length:?}"));
        length
    }

    fn reap_leaders(&mut self) {
        let ends = &mut self.ends;
        self.leaders.retain(|leader| match leader.pidfd.try_reap() {
            Ok(None) => true,
            Ok(Some(status)) => {
                ends.push_back((leader.pid, status));
                ends.drain(..ends.len().saturating_sub(ENDS_MAX));
                false
            }
            Err(_) => false,
        });
    }

    /// Reaps all who have ended, and for whom nobody else here waits. A daemon's end is kept for the one who looks at it.
    fn reap(&mut self) {
        self.reap_leaders();
        let kept: Vec<u32> = self.daemon.iter().map(|daemon| daemon.process.pid).collect();
        let reaped = children::reap_orphans(|pid| kept.contains(&pid));
        if reaped > 0 {
            tracing::debug!(reaped, "orphans");
        }
    }

    fn signal_daemon(&mut self, force: Force) {
        if let Some(daemon) = &self.daemon {
            self.say("warning", &format!("ending {} by {}", daemon.process, name_of(force)));
            self.press(daemon, force);
        }
    }

    fn end_former(&mut self, force: Force) {
        for daemon in &self.former {
            let text = format!("{} lingers after a handoff: ending it by {}", daemon.process, name_of(force));
            self.say("warning", &text);
            self.press(daemon, force);
        }
    }

    fn press(&self, daemon: &Daemon, force: Force) {
        let pressed = match force {
            Force::Term => daemon.pidfd.signal(Signal::SIGTERM),
            Force::Kill => kill(daemon),
        };
        if let Err(e) = pressed {
            self.say("warning", &format!("unable to signal {}: {e}", daemon.process));
        }
    }

    // ---- Signals.

    fn take_signals(&mut self) {
        let mut come: Vec<Signal> = vec![];
        while let Ok(Some(signal)) = self.signals.try_next() {
            // Of one kind they are one request, if they come at once.
            if !come.contains(&signal) {
                come.push(signal);
            }
        }
        for signal in come {
            match signal {
                Signal::SIGTERM | Signal::SIGINT => {
                    self.say("info", &format!("asked to stop by {signal}"));
                    self.feed(Input::StopAsked);
                }
                Signal::SIGHUP => self.reload(),
                Signal::SIGUSR2 => self.ask(Task::reexec(None, true)),
                Signal::SIGCHLD => {}
                other => self.pass_on(other),
            }
        }
    }

    fn pass_on(&self, signal: Signal) {
        if let Some(daemon) = &self.daemon
            && let Err(e) = daemon.pidfd.signal(signal)
        {
            self.say("warning", &format!("unable to pass {signal} on to {}: {e}", daemon.process));
        }
    }

    fn reload(&mut self) {
        match (self.own.reload)() {
            Ok(settings) => {
                let fixed = [
                    (&settings.control, &self.settings.control, "control_socket"),
                    (&settings.trigger, &self.settings.trigger, "trigger_socket"),
                    (&settings.data_dir, &self.settings.data_dir, "data_dir"),
                ];
                if let Some((_, _, key)) = fixed.iter().find(|(new, old, _)| new != old) {
                    return self.say(
                        "error",
                        &format!("{key} cannot be changed while the supervisor runs: nothing was changed"),
                    );
                }
                let program = match trigger::open_program(&settings, None, 0) {
                    Ok(program) => program,
                    Err(e) => {
                        return self.say("error", &format!("unable to swap to the configured program: {e}"));
                    }
                };
                self.settings = settings;
                self.say("info", &format!("swapping to the configured program {}", program.path().display()));
                self.ask(Task::swap(None, program, Swap { queue: true, ..Swap::default() }));
            }
            Err(e) => {
                self.say("error", &format!("the configuration cannot be used, and nothing was changed: {e}"))
            }
        }
    }

    // ---- Requests.

    fn take_requests(&mut self) {
        for asked in self.clients.serve(self.own.say) {
            self.request(asked);
        }
    }

    fn request(&mut self, asked: Asked) {
        let Asked { client, cred, request, fds } = asked;
        let request = match request {
            Ok(request) => request,
            Err(e) => {
                return self.refuse(client, format!("this is no request that this supervisor knows: {e}"));
            }
        };
        let refused = match trigger::check_user(&self.settings, cred.uid) {
            Err(reason) => Err(reason),
            Ok(()) => match &request {
                Request::Status {} => {
                    let state = Answer::Supervising(Box::new(self.state()));
                    self.clients.tell(client, &state, &[]);
                    Ok(())
                }
                Request::Swap(swap) => self.ask_swap(client, cred.uid, swap.clone()),
                Request::Reexec { .. } | Request::Spawn(_) if !trigger::is_ours(cred.uid) => {
                    Err(format!("user {} may ask for swaps alone", cred.uid))
                }
                Request::Reexec { queue } => {
                    self.ask(Task::reexec(Some(client), *queue));
                    Ok(())
                }
                Request::Spawn(spawn) => self.spawn_for(client, spawn, fds),
            },
        };
        if let Err(reason) = refused {
            let text =
                format!("refused to pid {} of user {}: {}: {reason}", cred.pid, cred.uid, describe(&request));
            self.say("warning", &text);
            if let Err(e) = start::note(&self.settings.journal, text) {
                tracing::debug!(error = %e, "the journal misses a refusal");
            }
            self.refuse(client, reason);
        }
    }

    fn refuse(&mut self, client: ClientId, reason: String) {
        self.clients.end(client, &Answer::Refused { reason });
    }

    fn ask_swap(&mut self, client: ClientId, uid: u32, swap: Swap) -> Result<(), String> {
        if swap.args.is_some() && !trigger::is_ours(uid) {
            return Err(format!("user {uid} may not give arguments"));
        }
        let program = trigger::open_program(&self.settings, swap.binary.as_deref(), uid)?;
        self.ask(Task::swap(Some(client), program, swap));
        Ok(())
    }

    pub(super) fn ask(&mut self, task: Task) {
        let (job, queue) = (task.job, task.queue);
        self.asked = Some(task);
        self.feed(Input::Asked(job, queue));
    }

    fn enqueue(&mut self) {
        let Some(task) = self.asked.take() else { return };
        if let Some(client) = task.client {
            self.clients.hold(client);
            let is_idle = self.machine.phase == Phase::Serving && self.machine.lingers.is_none();
            if !is_idle && task.queue {
                self.clients.tell(client, &Answer::Queued { ahead: self.queue.len() }, &[]);
            }
        }
        self.queue.push_back(task);
    }

    fn refuse_busy(&mut self) {
        let Some(task) = self.asked.take() else { return };
        let doing = self.doing();
        match task.client {
            Some(client) => {
                let age_ms = millis(self.since.elapsed());
                self.clients.end(client, &Answer::Busy { doing, handoff: None, age_ms });
            }
            None => self.say(
                "warning",
                &format!("what was asked for by a signal is not done: the supervisor is {doing}"),
            ),
        }
    }

    fn doing(&self) -> String {
        match &self.running {
            Some(running) if self.machine.phase == Phase::Swapping && !running.link.phase().is_empty() => {
                format!("swapping, {}", running.link.phase())
            }
            _ => self.machine.phase.name().to_owned(),
        }
    }

    fn refuse_waiting(&mut self) {
        for task in std::mem::take(&mut self.queue) {
            if let Some(client) = task.client {
                self.refuse(client, "the supervisor stops".to_owned());
            }
        }
    }

    fn write_metrics(&mut self) {
        let Some(path) = self.settings.metrics_file.clone().filter(|_| self.metrics.is_due()) else { return };
        let figures = Figures {
            path,
            control: self.settings.control.clone(),
            data_dir: self.settings.data_dir.clone(),
            journal: self.settings.journal.clone(),
            state: self.state(),
        };
        self.work(move || News::Metrics(figures.write()));
    }

    fn state(&self) -> State {
        State {
            pid: std::process::id(),
            version: self.own.version.clone(),
            doing: self.machine.phase.name().to_owned(),
            age_ms: millis(self.since.elapsed()),
            daemon: self.daemon.as_ref().map(|daemon| daemon.process.clone()),
            is_child: self.daemon.as_ref().is_some_and(|daemon| children::is_child(daemon.process.pid)),
            listeners: self.listeners.iter().map(|(name, _)| name.clone()).collect(),
            restarts: self.restarts_total,
            swaps: self.swaps.clone(),
            queued: self.queue.len(),
        }
    }

    // ---- Swaps.

    fn run_swap(&mut self) {
        let Some(mut task) = self.queue.pop_front() else { return };
        if let Some(client) = task.client {
            self.clients.tell(client, &Answer::Started {}, &[]);
        }
        let link = Link::default();
        // Another turn may be needed, where somebody else has the lease.
        let copy = task.program.as_ref().and_then(|program| program.try_clone().ok());
        let order = std::mem::replace(&mut task.program, copy).map(|program| self.order(program, &task));
        self.running = Some(Running { task, link: link.clone() });
        match order {
            Some(Ok(order)) => self.work(move || News::Swapped(order.run(&link))),
            Some(Err(e)) => self.swapped(Err(e)),
            None => self.swapped(Err(Error::Invalid { detail: "there is no program to swap to".to_owned() })),
        }
    }

    fn order(&mut self, program: Program, task: &Task) -> Result<Order> {
        self.bind_missing();
        let settings = &self.settings;
        let bake = match task.bake_ms {
            Some(0) => None,
            Some(ms) => Some(Duration::from_millis(ms)),
            None => settings.limits.bake,
        };
        Ok(Order {
            control: settings.control.clone(),
            journal: settings.journal.clone(),
            listeners: self.listeners.iter().map(start::copy).collect::<Result<_>>()?,
            program,
            args: task.args.clone().unwrap_or_else(|| settings.args.clone()),
            env: start::variables(&self.managed.for_daemon(settings)),
            directory: settings.directory.clone(),
            limits: settings.limits.clone(),
            bake,
            health: settings.health.as_ref().map(|health| Check {
                command: health.command.clone(),
                interval: health.interval,
                timeout: health.timeout,
                control: settings.control.clone(),
            }),
        })
    }

    /// A socket that was configured since is nobody's yet: the daemon was asked for all that it has.
    fn bind_missing(&mut self) {
        let bound = crate::listen::bind_missing(&self.settings.listeners, |name| {
            self.listeners.iter().any(|(other, _)| other == name)
        });
        match bound {
            Ok(bound) => self.listeners.extend(bound),
            Err(e) => self.say("warning", &format!("a configured socket is not passed on: {e}")),
        }
    }

    fn swapped(&mut self, swapped: Result<HandoffOutcome>) {
        let Some(Running { task, .. }) = self.running.take() else { return };
        let mut again = None;
        match swapped {
            Ok(mut outcome) => {
                self.count(&outcome);
                if let Some(child) = outcome.child.take()
                    && let Ok(pidfd) = PidFd::open(child.id())
                {
                    self.lead(child.id(), pidfd);
                }
                again = self.report(&outcome, task);
            }
            Err(e) => {
                self.say("warning", &format!("the swap was not begun: {e}"));
                if let Some(client) = task.client {
                    self.refuse(client, e.to_string());
                }
            }
        }
        self.feed(Input::SwapEnded);
        if let Some(task) = again {
            self.ask(task);
        }
    }

    fn count(&mut self, outcome: &HandoffOutcome) {
        let name = outcome.outcome.name();
        match self.swaps.iter_mut().find(|(other, _)| other == name) {
            Some((_, count)) => *count += 1,
            None => self.swaps.push((name.to_owned(), 1)),
        }
    }

    /// Returns a task that is to wait for somebody else's handoff.
    fn report(&mut self, outcome: &HandoffOutcome, task: Task) -> Option<Task> {
        let why = outcome.abort_reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let pid = outcome.pid.map_or(String::new(), |pid| format!(", pid {pid} serves"));
        let level = if outcome.committed { "info" } else { "warning" };
        self.say(level, &format!("swap {}: {}{pid}{why}", outcome.handoff_id, outcome.outcome.name()));
        self.last_swap = format!("; the last swap: {}{why}", outcome.outcome.name());
        let busy = match &outcome.outcome {
            Outcome::Refused(Refusal::Busy { handoff, phase, age_ms }) => {
                Some((handoff.clone(), phase.clone(), *age_ms))
            }
            _ => None,
        };
        match (busy, task.client) {
            (Some(_), _) if task.queue && task.program.is_some() => return Some(task),
            (Some((handoff, phase, age_ms)), Some(client)) => {
                let answer = Answer::Busy { doing: phase, handoff: Some(handoff), age_ms };
                self.clients.end(client, &answer);
            }
            (None, Some(client)) => self.verdicts.push((client, Answer::Verdict(Box::new(outcome.into())))),
            (_, None) => {}
        }
        None
    }

    // ---- A successor for somebody else.

    fn spawn_for(
        &mut self,
        client: ClientId,
        spawn: &super::wire::Spawn,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let [channel] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| "the successor's end of its channel must come with it".to_owned())?;
        if self.machine.stop > crate::proto::supervisor::Stop::No {
            return Err("the supervisor stops".to_owned());
        }
        let program =
            trigger::open_program(&self.settings, Some(&spawn.binary), crate::sys::unix::effective_uid())?;
        let settings = self.managed.for_daemon(&self.settings);
        let (pid, leader) = start::start_successor(&settings, &self.listeners, program, spawn, channel)
            .map_err(|e| e.to_string())?;
        self.say(
            "info",
            &format!("started {} as pid {pid} for handoff {}", spawn.binary.display(), spawn.handoff),
        );
        let process = ProcessId::of(pid).map_err(|e| e.to_string())?;
        let answer = Answer::Spawned { process, tree: Tree::Session { sid: pid } };
        self.clients.tell(client, &answer, &[leader.as_fd()]);
        self.lead(pid, leader);
        Ok(())
    }

    // ---- Its own program.

    fn rehearse(&mut self) {
        let Some(task) = self.queue.pop_front() else { return };
        self.reexec = Some(task);
        match reexec::Rehearsal::prepare(self) {
            Ok(rehearsal) => self.work(move || News::Rehearsed(rehearsal.run())),
            Err(e) => self.stay(&e.to_string()),
        }
    }

    fn rehearsed(&mut self, rehearsed: Result<Program>) {
        match rehearsed {
            Ok(program) => {
                self.own.rehearsed = Some(program);
                self.feed(Input::Rehearsed);
            }
            Err(e) => self.stay(&e.to_string()),
        }
    }

    fn become_anew(&mut self) {
        let Some(program) = self.own.rehearsed.take() else { return };
        let failed = reexec::become_anew(self, &program);
        self.stay(&failed.to_string());
    }

    fn decline_reexec(&mut self, why: &str) {
        self.own.rehearsed = None;
        self.say("warning", &format!("going on as before: {why}"));
        if let Some(Task { client: Some(client), .. }) = self.reexec.take() {
            self.refuse(client, why.to_owned());
        }
    }

    fn stay(&mut self, why: &str) {
        self.decline_reexec(&format!("unable to become {} anew: {why}", self.own.program.display()));
        self.feed(Input::ReexecFailed);
    }

    // ---- The end.

    fn retire(&mut self) {
        let settings = self.settings.clone();
        self.say("info", "stopping: the daemon drains, makes its data final and ends");
        self.work(move || {
            News::Retired(swap::retire(&settings.control, &settings.journal, &settings.limits))
        });
    }

    fn retired(&mut self, retired: Result<HandoffOutcome>) {
        match retired {
            Ok(outcome) if outcome.outcome == Outcome::Retired => {}
            Ok(outcome) => {
                let why =
                    outcome.abort_reason.map_or(outcome.outcome.name().to_owned(), |why| why.to_string());
                self.say("warning", &format!("the planned stop did not come about: {why}"));
            }
            Err(e) => self.say("warning", &format!("the planned stop did not come about: {e}")),
        }
        self.feed(Input::RetireEnded);
    }

    fn tell(&mut self, word: Word) {
        let status = self
            .daemon
            .as_ref()
            .map_or("nobody serves".to_owned(), |daemon| format!("{} serves", daemon.process));
        let status = status + &self.last_swap;
        match word {
            Word::Ready => {
                self.managed.ready(&self.listeners, &status);
                if let Some(number) = self.settings.ready_fd.take()
                    && let Err(e) = notify::say_ready(number)
                {
                    self.say(
                        "warning",
                        &format!("unable to say on descriptor {number} that it is ready: {e}"),
                    );
                }
            }
            Word::Reloading => self.managed.reloading(&status),
            Word::Reloaded => self.managed.ready(&self.listeners, &status),
            Word::Stopping => self.managed.stopping("the daemon drains"),
        }
    }

    fn is_slow(&self) -> bool {
        let is_at_work =
            matches!(self.machine.phase, Phase::Stopping | Phase::Ending | Phase::Swapping | Phase::Starting);
        is_at_work || !self.machine.told_ready
    }

    /// A service manager that waits for a stop or a start would lose patience.
    fn extend(&mut self) {
        if self.is_slow() && self.extended.elapsed() >= EXTEND {
            self.extended = Instant::now();
            self.managed.manager().extend_timeout(EXTEND * 5);
        }
    }

    fn end(mut self) -> Result<Ended> {
        let how = self.exit.unwrap_or(How::Stopped);
        self.sweep();
        self.reap();
        self.tell_verdicts();
        self.clients.close(Instant::now() + FAREWELL);
        match how {
            How::Stopped => Ok(Ended::Stopped),
            How::Blocked => Ok(Ended::Blocked(self.detail)),
            How::Follow => match self.failure {
                Some(e) => Err(e),
                None => Ok(Ended::Followed(self.lost)),
            },
        }
    }
}

impl Task {
    fn swap(client: Option<ClientId>, program: Program, swap: Swap) -> Self {
        Self {
            job: Job::Swap,
            client,
            program: Some(program),
            args: swap.args,
            bake_ms: swap.bake_ms,
            queue: swap.queue,
        }
    }

    fn reexec(client: Option<ClientId>, queue: bool) -> Self {
        Self { job: Job::Reexec, client, program: None, args: None, bake_ms: None, queue }
    }
}

/// A daemon leads a session of its own where a supervisor or a driver started it; only then is that killed whole.
fn kill(daemon: &Daemon) -> std::io::Result<()> {
    let sid = daemon.process.pid;
    let tree = match tree::kill(Some(&daemon.pidfd), &Tree::Session { sid }, Instant::now() + DYING) {
        Ok(_) => return Ok(()),
        Err(_) => Tree::Lone,
    };
    tree::kill(Some(&daemon.pidfd), &tree, Instant::now() + DYING).map(drop)
}

fn name_of(force: Force) -> &'static str {
    match force {
        Force::Term => "SIGTERM",
        Force::Kill => "SIGKILL",
    }
}

fn describe(request: &Request) -> String {
    match request {
        Request::Swap(Swap { binary: Some(binary), .. }) => format!("a swap to {}", binary.display()),
        Request::Swap(_) => "a swap".to_owned(),
        Request::Reexec { .. } => "a new program for the supervisor".to_owned(),
        Request::Status {} => "its state".to_owned(),
        Request::Spawn(spawn) => format!("to start {}", spawn.binary.display()),
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
