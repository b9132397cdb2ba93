//! The successor's side of a handoff: its machine, and the connections that feed it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::channel::{Channel, Incoming};
use crate::error::{Error, Result};
use crate::incumbent::Identity;
use crate::proto::Reason;
use crate::proto::incumbent::Opened;
use crate::proto::successor::{Action, Input, Machine, Message as Word, News, Phase, Timer, Trial};
use crate::proto::wire::{Attach, Begin, Message, Offer, Ready, Served};
use crate::sys::poll::{self, Want};
use crate::sys::process::{PidFd, Signal};

/// The least margin: with less, a watchdog takes what is merely slow for what is hung.
pub(crate) const MARGIN_MIN: Duration = Duration::from_millis(50);

/// A successor in a handoff, from its handshake until it is the incumbent.
#[derive(Debug)]
pub(crate) struct Session {
    machine: Machine,
    /// To the driver; gone when the driver is.
    channel: Option<Channel>,
    /// To the incumbent, from `begin` on.
    lease: Option<Channel>,
    incumbent: PidFd,
    pub(crate) offer: Offer,
    pub(crate) begin: Option<Begin>,
    pub(crate) identity: Identity,
    /// This process's own, to be sent with its first word.
    own_pidfd: PidFd,
    pub(crate) bake: Option<Duration>,
    silence: Option<Instant>,
    /// Whether this process was late already when the silence ended.
    excused: bool,
    /// What was served, for `serving` and `done`.
    pub(crate) served: Option<Served>,
}

impl Session {
    /// # Errors
    ///
    /// EMFILE and the like.
    pub(crate) fn new(channel: Channel, incumbent: PidFd, offer: Offer, identity: Identity) -> Result<Self> {
        let own_pidfd = PidFd::current().map_err(|e| Error::io("open a pidfd of this process", e))?;
        let machine = Machine::new(offer.generation);
        Ok(Self {
            machine,
            channel: Some(channel),
            lease: None,
            incumbent,
            offer,
            begin: None,
            identity,
            own_pidfd,
            bake: None,
            silence: None,
            excused: false,
            served: None,
        })
    }

    /// Whether it was granted for a trial.
    pub(crate) fn is_for_trial(&self) -> bool {
        self.bake.is_some()
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.machine.phase
    }

    /// Takes one step, carries out what concerns the connections, and returns what is left for the caller.
    pub(crate) fn step(&mut self, input: Input) -> Vec<Action> {
        let before = self.machine.phase.name();
        let actions = match self.machine.step(input) {
            Ok(actions) => actions,
            Err(input) => {
                tracing::error!(phase = before, ?input, "the successor's table has no row for this");
                return vec![];
            }
        };
        tracing::debug!(from = before, to = self.machine.phase.name(), "successor");
        actions.into_iter().filter_map(|action| self.perform(action)).collect()
    }

    fn perform(&mut self, action: Action) -> Option<Action> {
        match action {
            Action::Send(word) => self.send(&word),
            Action::Tell(news) => self.tell(news),
            Action::Arm(Timer::Silence) => self.arm_silence(),
            Action::Disarm(Timer::Silence) => self.silence = None,
            Action::FenceIncumbent => self.fence_incumbent(),
            Action::TryLock
            | Action::Unlock
            | Action::Open
            | Action::Persist(_)
            | Action::BindControl
            | Action::Serve
            | Action::StopServing => return Some(action),
        }
        None
    }

    fn arm_silence(&mut self) {
        self.silence = poll::after(self.patience());
        self.excused = false;
    }

    /// How long a healthy incumbent can be silent in this phase.
    fn patience(&self) -> Duration {
        let until_decided = self.begin.as_ref().map_or(0, |begin| begin.deadline_ms);
        let base = match self.machine.phase {
            // The driver has the same patience with an incumbent that seals, and then needs this successor.
            Phase::Waiting => Duration::from_millis(self.offer.patience_ms).saturating_add(2 * self.margin()),
            Phase::OnTrial => self.bake.unwrap_or_default(),
            _ => Duration::from_millis(until_decided),
        };
        base.saturating_add(self.margin())
    }

    fn margin(&self) -> Duration {
        Duration::from_millis(self.offer.margin_ms).max(MARGIN_MIN)
    }

    /// Tells the driver that the successor is warm, and starts the clock of the wait for `begin`.
    pub(crate) fn say_waiting(&mut self) {
        self.arm_silence();
        if let Some(channel) = &mut self.channel
            && let Err(e) = channel.send(&Message::Waiting {}, &[])
        {
            // Its end of file is the next input, and the incumbent's death goes before it.
            tracing::debug!(error = %e, "unable to tell the driver");
        }
    }

    fn fence_incumbent(&self) {
        tracing::warn!(incumbent = %self.offer.incumbent, "the incumbent has sealed and says nothing: killing it");
        if let Err(e) = self.incumbent.signal(Signal::SIGKILL) {
            tracing::error!(incumbent = %self.offer.incumbent, error = %e, "unable to kill the incumbent");
        }
    }

    fn send(&mut self, word: &Word) {
        let Some(lease) = &mut self.lease else { return };
        let sent = match word {
            Word::Attach => send_attach(lease, &self.offer, &self.identity, &self.own_pidfd),
            Word::Ready(opened) => lease.send(&ready(opened), &[]),
            Word::Serving => self.served.map_or(Ok(()), |served| lease.send(&Message::Serving(served), &[])),
            Word::Done => self.served.map_or(Ok(()), |served| lease.send(&Message::Done(served), &[])),
            Word::SteppedDown => lease.send(&Message::SteppedDown {}, &[]),
        };
        if let Err(e) = sent {
            // Its pidfd tells for certain whether it is dead.
            tracing::debug!(error = %e, "unable to send to the incumbent");
        }
    }

    fn tell(&mut self, news: News) {
        let Some(channel) = &mut self.channel else { return };
        let message = match (news, self.served) {
            (News::Serving, Some(served)) => Message::Serving(served),
            (News::Done, Some(served)) => Message::Done(served),
            (News::Failed(reason), _) => Message::Failed { reason },
            (News::Serving | News::Done, None) => return,
        };
        if channel.send(&message, &[]).is_err() {
            // The driver has gone, and has no further role.
            self.channel = None;
        }
    }

    /// Asks the incumbent for something on behalf of somebody who asked here.
    pub(crate) fn relay(&mut self, message: &Message) -> Result<()> {
        match &mut self.lease {
            Some(lease) => lease.send(message, &[]),
            None => Err(Error::PeerLost { waiting_for: "the incumbent that stands by".to_owned() }),
        }
    }

    /// Returns what to wait for, and until when.
    pub(crate) fn interests(&self) -> (Vec<(BorrowedFd<'_>, Want)>, Option<Instant>) {
        let mut interests = vec![];
        // After `begin` the driver has nothing more to say.
        let listens = *self.phase() == Phase::Waiting;
        let channels =
            self.channel.iter().filter(|channel| listens || channel.wants_write()).chain(&self.lease);
        for channel in channels {
            interests.push((channel.as_fd(), if channel.wants_write() { Want::Both } else { Want::Read }));
        }
        if self.minds(&Input::IncumbentLost) {
            interests.push((self.incumbent.as_fd(), Want::Read));
        }
        (interests, self.silence)
    }

    fn minds(&self, input: &Input) -> bool {
        self.machine.row(input) != crate::proto::successor::Row::Ignore
    }

    /// Returns the next thing that happened, if anything has.
    pub(crate) fn next_input(&mut self) -> Option<Input> {
        // Looked at first: what it sent before it died is read before its death counts.
        let dead = self.incumbent.is_dead().unwrap_or(false);
        if let Some(input) = self.lease_input() {
            return Some(input);
        }
        // Before the channel: whatever the driver still says, nobody else is there to serve.
        if dead && self.minds(&Input::IncumbentLost) {
            return Some(Input::IncumbentLost);
        }
        if let Some(input) = self.channel_input() {
            return Some(input);
        }
        // Last: a process that was stopped for a while finds its answers before it finds that they are late.
        self.expired()
    }

    fn expired(&mut self) -> Option<Input> {
        let late = Instant::now().checked_duration_since(self.silence?)?;
        if late > self.margin() / 2 && !std::mem::replace(&mut self.excused, true) {
            // This process was stopped or busy, and perhaps the whole machine: nobody had the time to answer.
            self.silence = poll::after(self.margin());
            return None;
        }
        self.silence = None;
        Some(Input::Expired(Timer::Silence))
    }

    fn lease_input(&mut self) -> Option<Input> {
        loop {
            let lease = self.lease.as_mut()?;
            // What does not go now goes when it can be written.
            let _ = lease.flush();
            match lease.receive() {
                Ok(None) => return None,
                Ok(Some(Incoming::Message(message, _))) => {
                    if let Some(input) = self.word(message) {
                        return Some(input);
                    }
                }
                Ok(Some(Incoming::Unknown(name))) => {
                    tracing::warn!(name, "unknown message from the incumbent")
                }
                Err(e) => {
                    tracing::debug!(error = %e, "the lease is lost");
                    self.lease = None;
                    return Some(Input::LeaseLost);
                }
            }
        }
    }

    fn word(&mut self, message: Message) -> Option<Input> {
        match message {
            Message::Granted { bake_ms } => {
                self.bake = bake_ms.map(Duration::from_millis);
                Some(Input::Granted(if bake_ms.is_some() { Trial::Yes } else { Trial::No }))
            }
            Message::Aborted { reason } => Some(Input::Aborted(reason)),
            Message::Finalize {} => Some(Input::Finalize),
            Message::StepDown { reason } => Some(Input::StepDown(reason)),
            // Answers to what was asked on somebody's behalf, and what the driver asked before the lease was passed on.
            other => {
                tracing::debug!(message = other.name(), "not for the successor");
                None
            }
        }
    }

    fn channel_input(&mut self) -> Option<Input> {
        if *self.phase() != Phase::Waiting {
            if self.channel.as_mut().is_some_and(|channel| channel.flush().is_err()) {
                self.channel = None;
            }
            return None;
        }
        match self.channel.as_mut()?.receive() {
            Ok(None) => None,
            Ok(Some(Incoming::Message(Message::Begin(begin), fds))) => Some(self.begin(begin, fds)),
            Ok(Some(Incoming::Message(Message::Dismissed { reason }, _))) => Some(Input::Dismissed(reason)),
            Ok(Some(incoming)) => Some(Input::Dismissed(unexpected("begin", &incoming))),
            Err(e) => {
                tracing::debug!(error = %e, "the driver is lost");
                self.channel = None;
                Some(Input::ChannelLost)
            }
        }
    }

    fn begin(&mut self, begin: Begin, mut fds: Vec<std::os::fd::OwnedFd>) -> Input {
        match (fds.pop(), fds.is_empty()) {
            (Some(lease), true) => {
                self.lease = Some(Channel::new(lease));
                let sealed = begin.sealed.clone();
                self.begin = Some(begin);
                Input::Begin(sealed)
            }
            _ => Input::Dismissed(Reason::Protocol {
                detail: "begin must carry one descriptor, the lease".to_owned(),
            }),
        }
    }

    /// Waits until something happened, and returns it.
    pub(crate) fn wait_input(&mut self) -> Result<Input> {
        loop {
            if let Some(input) = self.next_input() {
                return Ok(input);
            }
            let (interests, deadline) = self.interests();
            poll::wait(&interests, deadline).map_err(|e| Error::io("wait for the handoff", e))?;
        }
    }
}

impl Drop for Session {
    /// A successor that gives up says so; its death would say it too, but not why.
    fn drop(&mut self) {
        if !matches!(self.machine.phase, Phase::Promoted | Phase::Gone(_)) {
            let detail = "the successor gave up; its own messages say why".to_owned();
            self.tell(News::Failed(Reason::Failed { detail }));
        }
    }
}

fn send_attach(lease: &mut Channel, offer: &Offer, identity: &Identity, pidfd: &PidFd) -> Result<()> {
    let attach = Attach {
        process: identity.process(),
        tree: offer.tree.clone(),
        build_id: identity.owner.build_id.clone(),
    };
    lease.send(&Message::Attach(attach), &[pidfd.as_fd()])
}

fn ready(opened: &Opened) -> Message {
    Message::Ready(Ready { readiness: opened.readiness.clone(), data_dir_fingerprint: opened.fingerprint })
}

pub(crate) fn unexpected(expected: &str, incoming: &Incoming) -> Reason {
    let got = match incoming {
        Incoming::Message(message, _) => message.name(),
        Incoming::Unknown(name) => name,
    };
    Reason::Protocol { detail: format!("expected {expected}, got {got}") }
}
