//! A swap and a planned stop, each in a thread of its own.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Limits, start};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::health::{Check, Monitor};
use crate::proto::driver::{Outcome, Refusal};
use crate::supervisor::{Event, HandoffOutcome, SpawnSpec, Supervisor, Wish};
use crate::sys::spawn::Program;

/// Between two attempts to have a handoff undone that is in the way of a planned stop.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the daemon may take for an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What the thread of a swap and the loop know of each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Link(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    phase: &'static str,
    cancelled: Option<String>,
}

impl Link {
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        // Both fields are whole at any moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how far it has come.
    pub fn phase(&self) -> &'static str {
        self.progress().phase
    }

    /// Asks for it to be undone, while that is possible.
    pub fn cancel(&self, reason: &str) {
        self.progress().cancelled = Some(reason.to_owned());
    }

    fn observe(&self, event: &Event<'_>) -> Wish {
        let mut progress = self.progress();
        if let Event::Phase(phase) = event {
            progress.phase = name_of(phase);
        }
        progress.cancelled.clone().map_or(Wish::Continue, Wish::Cancel)
    }
}

/// What a person is told of a driver's phase; most of them pass too quickly to matter.
fn name_of(phase: &str) -> &'static str {
    match phase {
        "warming" | "warm" => "warming up",
        "draining" | "drained" => "draining",
        "sealing" | "sealed" => "sealing",
        "baking" => "baking",
        _ => "handing over",
    }
}

/// A swap that is to be run.
#[derive(Debug)]
pub(super) struct Order {
    pub control: PathBuf,
    pub journal: PathBuf,
    pub listeners: Vec<(String, OwnedFd)>,
    pub program: Program,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub directory: Option<PathBuf>,
    pub limits: Limits,
    pub bake: Option<Duration>,
    pub health: Option<Check>,
}

impl Order {
    /// Runs the swap.
    ///
    /// # Errors
    ///
    /// Nothing was begun.
    pub fn run(self, link: &Link) -> Result<HandoffOutcome> {
        let mut supervisor = Supervisor::new(&self.control)?.with_journal(&self.journal);
        for (name, fd) in &self.listeners {
            supervisor = supervisor.with_listener(name, fd);
        }
        let mut health = self.health.filter(|_| self.bake.is_some());
        let spec = SpawnSpec {
            binary: self.program.path().to_owned(),
            args: self.args,
            env: self.env,
            unset: start::OWN_VARS.map(str::to_owned).to_vec(),
            bake: self.bake,
            guard: health.is_some(),
            directory: self.directory,
            ..spec(&self.limits)
        };
        let mut monitor: Option<Monitor> = None;
        supervisor.perform_opened(self.program, spec, &mut |event| {
            if matches!(event, Event::Phase("baking")) {
                monitor = health.take().map(Monitor::start);
            }
            match monitor.as_ref().and_then(Monitor::failure) {
                Some(failure) => Wish::Cancel(failure),
                None => link.observe(event),
            }
        })
    }
}

fn spec(limits: &Limits) -> SpawnSpec {
    SpawnSpec {
        drain_grace: limits.drain_grace,
        deadline: limits.deadline,
        warm_up: limits.warm_up,
        stand_by: limits.stand_by,
        ..SpawnSpec::default()
    }
}

/// Has the daemon drain, seal and end. A handoff that is in the way is undone first.
///
/// # Errors
///
/// The daemon does not answer, or the handoff goes on for longer than the stop may take.
pub(super) fn retire(control: &PathBuf, journal: &PathBuf, limits: &Limits) -> Result<HandoffOutcome> {
    let until = Instant::now() + limits.stop;
    let supervisor = Supervisor::new(control)?.with_journal(journal);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let spec = SpawnSpec { drain_grace: limits.drain_grace.min(left), deadline: left, ..spec(limits) };
        match supervisor.retire(spec, &mut |_| Wish::Continue) {
            Ok(outcome)
                if matches!(outcome.outcome, Outcome::Refused(Refusal::Busy { .. })) && !left.is_zero() =>
            {
                undo_handoff(control);
            }
            // Its driver has it; it lets go when the handoff is undone.
            Err(Error::Locked { .. }) if !left.is_zero() => undo_handoff(control),
            ended => return ended,
        }
        std::thread::sleep(PAUSE);
    }
}

fn undo_handoff(control: &PathBuf) {
    let deadline = Instant::now() + ANSWER;
    let asked = Control::connect(control, "handoff supervisor", deadline)
        .and_then(|mut control| control.abort("the supervisor was asked to stop", deadline));
    if let Err(e) = asked {
        tracing::debug!(error = %e, "unable to have the handoff undone");
    }
}
