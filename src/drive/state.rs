//! A handoff in progress, in the form in which one driver leaves it to the next.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Drive, Successor};
use crate::channel::Channel;
use crate::control::Control;
use crate::drainable::SealReport;
use crate::error::{Error, Result};
use crate::proto::driver::{Order, Phase};
use crate::proto::party::{ProcessId, Tree};
use crate::proto::wire::{Begin, Message, Prepared};
use crate::role::own_hello;
use crate::supervisor::{Measured, Output, SpawnSpec};
use crate::sys::process::PidFd;
use crate::sys::spawn::Program;
use crate::sys::{clock, poll, unix};

/// What is to be started, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub binary: Option<PathBuf>,
    pub args: Vec<String>,
    pub build_id: Option<String>,
}

impl Target {
    pub(crate) fn of(program: &Program, args: &[String]) -> Self {
        Self {
            binary: Some(program.path().to_owned()),
            args: args.to_vec(),
            build_id: program.build_id().ok(),
        }
    }
}

/// What the links of a chain tell each other of the handoff in progress. The lease itself is a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub handoff: String,
    /// Where the driver holds, or how it ended.
    pub phase: String,
    cold: bool,
    pub prepared: Prepared,
    limits: Limits,
    /// The latest moment of a grant (CLOCK_MONOTONIC, microseconds).
    deadline_us: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<SealReport>,
    #[serde(default)]
    target: Target,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    successor: Option<Started>,
    /// When the driver took the lease, and when the incumbent stopped accepting (CLOCK_MONOTONIC, microseconds).
    began_us: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stopped_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overflows_before: Option<u64>,
    measured: Measured,
}

/// How long things may take, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Limits {
    drain_grace_ms: u64,
    deadline_ms: u64,
    warm_up_ms: u64,
    stand_by_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bake_ms: Option<u64>,
    margin_ms: u64,
}

/// A successor that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Started {
    /// The process that was started, which may be a wrapper.
    leader: ProcessId,
    tree: Tree,
    /// The one that spoke.
    process: Option<ProcessId>,
    build_id: String,
}

impl Limits {
    fn of(spec: &SpawnSpec) -> Self {
        Self {
            drain_grace_ms: super::millis(spec.drain_grace),
            deadline_ms: super::millis(spec.deadline),
            warm_up_ms: super::millis(spec.warm_up),
            stand_by_ms: super::millis(spec.stand_by),
            bake_ms: spec.bake.map(super::millis),
            margin_ms: super::millis(spec.margin),
        }
    }

    fn apply(&self, spec: &mut SpawnSpec) {
        spec.drain_grace = Duration::from_millis(self.drain_grace_ms);
        spec.deadline = Duration::from_millis(self.deadline_ms);
        spec.warm_up = Duration::from_millis(self.warm_up_ms);
        spec.stand_by = Duration::from_millis(self.stand_by_ms);
        spec.bake = self.bake_ms.map(Duration::from_millis);
        spec.margin = Duration::from_millis(self.margin_ms);
    }
}

impl State {
    /// Returns the limits that were agreed on, in a spec that names no program yet.
    pub(crate) fn spec(&self) -> SpawnSpec {
        let mut spec = SpawnSpec::default();
        self.limits.apply(&mut spec);
        spec.args.clone_from(&self.target.args);
        spec
    }

    pub(crate) fn order(&self) -> Order {
        if self.cold { Order::Cold } else { Order::Warm }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held().is_ok()
    }

    fn held(&self) -> Result<Phase> {
        Phase::HELD.into_iter().find(|phase| phase.name() == self.phase).ok_or_else(|| Error::Refused {
            reason: format!("handoff {} is over: {}", self.handoff, self.phase),
        })
    }
}

/// What else is inherited of a handoff in progress.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// None where the incumbent was dead already.
    pub lease: Option<Channel>,
    pub incumbent: PidFd,
    pub successor: Option<Channel>,
}

impl Drive<'_> {
    /// Returns what the next driver has to know, or nothing before there is a lease.
    pub(crate) fn state(&self) -> Option<State> {
        let (prepared, _) = self.prepared.as_ref()?;
        let now_us = clock::monotonic_us();
        let until_us = micros(self.deadline.saturating_duration_since(Instant::now()));
        Some(State {
            handoff: self.handoff.clone(),
            phase: self.phase_or_end(),
            cold: self.machine.order == Order::Cold,
            prepared: prepared.clone(),
            limits: Limits::of(&self.spec),
            deadline_us: now_us.saturating_add(until_us),
            sealed: self.sealed.clone(),
            target: self.target.clone(),
            successor: self.successor.as_ref().and_then(Started::of),
            began_us: now_us.saturating_sub(micros(self.began.elapsed())),
            stopped_us: self.stopped_us,
            overflows_before: self.overflows_before,
            measured: self.measured.clone(),
        })
    }

    fn phase_or_end(&self) -> String {
        match &self.machine.phase {
            Phase::Done(outcome) => {
                crate::recover::reason_of(outcome).unwrap_or_else(|| outcome.name().to_owned())
            }
            phase => phase.name().to_owned(),
        }
    }

    /// Goes on where another driver stopped.
    ///
    /// # Errors
    ///
    /// The handoff is over, or the successor's processes cannot be looked at.
    pub(crate) fn take_up(&mut self, state: State, inherited: Inheritance) -> Result<()> {
        self.machine.phase = state.held()?;
        self.machine.order = state.order();
        self.handoff.clone_from(&state.handoff);
        self.deadline = after_us(state.deadline_us);
        self.began = Instant::now()
            .checked_sub(Duration::from_micros(clock::monotonic_us().saturating_sub(state.began_us)))
            .unwrap_or_else(Instant::now);
        self.successor = match (state.successor, inherited.successor) {
            (Some(started), Some(channel)) => Some(started.adopt(channel)?),
            _ => None,
        };
        self.warm = self.successor.is_some();
        self.target = state.target;
        self.sealed = state.sealed;
        self.stopped_us = state.stopped_us;
        self.overflows_before = state.overflows_before;
        self.measured = state.measured;
        self.prepared = Some((state.prepared, inherited.incumbent));
        self.lease = inherited.lease;
        if matches!(self.machine.phase, Phase::Drained | Phase::Sealed) {
            self.arm(super::Timer::Silence);
        }
        self.watch_again();
        Ok(())
    }

    /// Opens the connection that is told the verdict. A dead incumbent has none to tell; its lease and its pidfd say that.
    fn watch_again(&mut self) {
        let deadline = Instant::now() + super::ANSWER;
        match self.connect_watch(deadline) {
            Ok(watch) => self.watch = watch,
            Err(e) => tracing::debug!(error = %e, "nobody answers at the control path"),
        }
    }

    fn connect_watch(&self, deadline: Instant) -> Result<Option<Channel>> {
        let mut watch = Control::connect(self.control, "handoff driver", deadline)?;
        let expected = self.prepared.as_ref().map(|(prepared, _)| &prepared.incumbent);
        if Some(&watch.hello().process) != expected {
            return Ok(None);
        }
        watch.watch(deadline)?;
        Ok(Some(watch.into_channel()))
    }

    /// Returns what the next driver gets, once nothing of it is half read or half written here; nothing where the handoff ended
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// A peer that does not finish its line in time.
    pub(crate) fn leave(&mut self) -> Result<Option<(State, Inheritance)>> {
        let until = Instant::now() + super::ANSWER;
        loop {
            self.ask_observer();
            self.look()?;
            let to_successor = self.successor.as_ref().and_then(|successor| successor.channel.as_ref());
            let is_clean = self.lease.iter().chain(to_successor).all(Channel::is_clean);
            if is_clean {
                break;
            }
            if Instant::now() >= until {
                return Err(Error::TimedOut { waiting_for: "the rest of a message".to_owned() });
            }
            self.listen_until(until)?;
        }
        self.tell_journal();
        let Some(state) = self.state().filter(|_| !self.has_ended()) else { return Ok(None) };
        let Some((_, incumbent)) = self.prepared.take() else { return Ok(None) };
        let successor = self.successor.take().and_then(|successor| successor.channel);
        Ok(Some((state, Inheritance { lease: self.lease.take(), incumbent, successor })))
    }

    /// Goes by the id that an earlier link of the chain has written down.
    pub(crate) fn name_as(&mut self, handoff: String) {
        self.handoff = handoff;
    }

    /// Writes down what this process is about to become.
    ///
    /// # Errors
    ///
    /// The journal cannot be written.
    pub(crate) fn note_target(&mut self, program: &Program, args: &[OsString]) -> Result<()> {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        self.target = Target::of(program, &args);
        self.note_begun()
    }

    pub(crate) fn phase_name(&self) -> &'static str {
        self.machine.phase.name()
    }

    /// Returns copies of the listening sockets that the successor is to have.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub(crate) fn copy_listeners(&self) -> Result<Vec<(String, OwnedFd)>> {
        let copies: std::io::Result<_> =
            self.listeners.iter().map(|(name, fd)| Ok((name.clone(), fd.try_clone()?))).collect();
        copies.map_err(|e| Error::io("copy the listening sockets", e))
    }

    /// Fetches the standard output and error of an incumbent whose successor is to be started now. One that is dead has none to
    /// give, and then the successor writes where this process does.
    pub(crate) fn fetch_output(&mut self) {
        let deadline = Instant::now() + super::ANSWER;
        let dead = self.machine.phase == Phase::Widowed;
        if dead || self.spec.output != Output::Incumbents {
            return;
        }
        let fetched = Control::connect(self.control, "handoff driver", deadline)
            .and_then(|mut control| super::fetch_stdio(&mut control, deadline));
        match fetched {
            Ok(stdio) => self.stdio = stdio,
            Err(e) => {
                tracing::warn!(error = %e, "the successor writes where this process does, not where the incumbent does");
            }
        }
    }

    /// Returns the successor's end of a channel in which everything that a driver says is said already, and whose other end is
    /// closed: for the program that this process becomes.
    ///
    /// # Errors
    ///
    /// What was sealed does not fit into a socket's buffer; an incumbent that was killed does not die.
    pub(crate) fn fill_channel(&mut self) -> Result<OwnedFd> {
        let Some((prepared, incumbent)) = &self.prepared else {
            return Err(Error::Invalid { detail: "there is no lease to pass on".to_owned() });
        };
        let (ours, theirs) =
            unix::roomy_pair().map_err(|e| Error::io("make a channel to the successor", e))?;
        let mut channel = Channel::new(ours);
        channel.send(&Message::Hello(own_hello("handoff driver", "")?), &[])?;
        let offer = self.offer_of(prepared, Tree::Lone);
        channel.send(&Message::Offer(offer), &[incumbent.as_fd()])?;
        match (&self.lease, &self.sealed) {
            (Some(lease), Some(sealed)) => {
                let deadline_ms = super::millis(self.deadline.saturating_duration_since(Instant::now()));
                let begin = Message::Begin(Begin { sealed: sealed.clone(), deadline_ms });
                channel.send(&begin, &[lease.as_fd()])?;
            }
            // It takes the lock as after a crash, and a crash is what the pidfd has to say before the channel's end does.
            _ => {
                if !incumbent.wait_dead(Instant::now() + super::ANSWER).unwrap_or(false) {
                    let waiting_for = format!("the incumbent, pid {}, to die", prepared.incumbent.pid);
                    return Err(Error::TimedOut { waiting_for });
                }
            }
        }
        if channel.wants_write() {
            let detail =
                "what was sealed is too long for the channel of a successor in place: start it with --wait";
            return Err(Error::Invalid { detail: detail.to_owned() });
        }
        Ok(theirs)
    }
}

impl Started {
    fn of(successor: &Successor) -> Option<Self> {
        let leader = ProcessId::of(successor.leader.pid()?).ok()?;
        Some(Self {
            leader,
            tree: successor.tree.clone(),
            process: successor.process.as_ref().map(|(process, _)| process.clone()),
            build_id: successor.build_id.clone(),
        })
    }

    fn adopt(self, channel: Channel) -> Result<Successor> {
        let leader = open_same(&self.leader)?;
        let process = self.process.map(|process| {
            let pidfd = open_same(&process).ok();
            (process, pidfd)
        });
        Ok(Successor {
            child: None,
            leader,
            tree: self.tree,
            channel: Some(channel),
            process,
            build_id: self.build_id,
        })
    }
}

/// Opens a process by its pid, and makes sure that it is not another one that has this pid now.
fn open_same(process: &ProcessId) -> Result<PidFd> {
    let gone = |e| Error::io(format!("find the successor, pid {}", process.pid), e);
    let pidfd = PidFd::open(process.pid).map_err(gone)?;
    let found = ProcessId::of(process.pid).map_err(gone)?;
    if found != *process {
        return Err(Error::PeerLost { waiting_for: format!("the successor, pid {}", process.pid) });
    }
    Ok(pidfd)
}

fn after_us(at_us: u64) -> Instant {
    let left = Duration::from_micros(at_us.saturating_sub(clock::monotonic_us()));
    poll::after(left).unwrap_or_else(super::far_away)
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}
