//! What the commands that do one phase of a handoff have in common.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;
use handoff::chain::{CONTROL_VAR, Chain};
use handoff::error::Error;
use handoff::fds::Role;
use handoff::steps::{HandedOver, Inherited, Steps, inherited};
use handoff::supervisor::{Event, Wish};
use handoff::sys::signals::{Termination, Terminations};
use serde::Serialize;

use crate::exit::{self, Exit};
use crate::link::Opened;
use crate::out;
use crate::progress::{Progress, When};
use crate::summary::Summary;

/// The options of every phase.
#[derive(clap::Args)]
#[group(skip)]
pub struct Common {
    /// Ask the daemon at this Unix socket
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = clap::ValueHint::FilePath)]
    pub control: PathBuf,

    /// Show on standard error how it goes: auto is only on a terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    pub progress: When,

    /// Print what came of it as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Shows how a phase goes, and undoes it when a person asks to stop.
pub struct Watcher {
    progress: Progress,
    signals: Receiver<Termination>,
    command: &'static str,
}

impl Watcher {
    /// # Errors
    ///
    /// Signals cannot be caught.
    pub fn new(command: &'static str, when: When) -> anyhow::Result<Self> {
        Ok(Self { progress: Progress::new(command, when), signals: signals()?, command })
    }

    pub fn observe(&mut self, event: &Event<'_>) -> Wish {
        self.progress.show(event);
        self.asked_to_stop().map_or(Wish::Continue, Wish::Cancel)
    }

    /// Returns who asked, in words for the record.
    pub fn asked_to_stop(&mut self) -> Option<String> {
        let signal = self.signals.try_recv().ok()?;
        Some(format!("handoff {} was asked to stop by {}", self.command, signal.name()))
    }
}

/// Catches what asks a command to stop.
///
/// # Errors
///
/// They cannot be caught.
pub fn signals() -> anyhow::Result<Receiver<Termination>> {
    let mut terminations = Terminations::catch_with_terminal().context("catch signals")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while let Ok(signal) = terminations.wait() {
            // The command is over, and so is the process.
            let _ = sender.send(signal);
        }
    });
    Ok(receiver)
}

/// What a phase that is no end says where no program follows.
#[derive(Serialize)]
pub struct Held<'a> {
    pub handoff: &'a str,
    pub phase: &'a str,
}

/// Inherits the chain, and tells the next link where the daemon answers.
///
/// # Errors
///
/// As [`Chain::inherit`].
pub fn chain(common: &Common) -> anyhow::Result<Chain> {
    let mut chain = Chain::inherit()?;
    let control = std::path::absolute(&common.control)
        .with_context(|| format!("find the full path of {}", common.control.display()))?;
    chain.set_var(CONTROL_VAR, control);
    Ok(chain)
}

/// Returns the handoff of the chain, if it has one.
///
/// # Errors
///
/// It is over, or what is known of it cannot be read.
pub fn held(chain: &Chain) -> anyhow::Result<Option<Inherited>> {
    let found = inherited(chain).map_err(|e| exit::attempt(e, "read the chain's state"))?;
    match &found {
        Some(found) if !found.is_held() => Err(is_over(found)),
        _ => Ok(found),
    }
}

/// Makes sure that there is something to settle: a chain's handoff that was left on trial is not over.
///
/// # Errors
///
/// The handoff of the chain is over.
pub fn not_over(found: Option<&Inherited>) -> anyhow::Result<()> {
    match found {
        Some(found) if !found.is_held() && found.phase != "baking" => Err(is_over(found)),
        _ => Ok(()),
    }
}

fn is_over(found: &Inherited) -> anyhow::Error {
    let reason = if found.is_claimed() {
        format!("handoff {} is with another command of this chain; `handoff abort` undoes it", found.handoff)
    } else {
        format!("handoff {} is over: {}", found.handoff, found.phase)
    };
    exit::attempt(Error::Refused { reason }, GO_ON)
}

const GO_ON: &str = "go on with the handoff";

/// Returns an error: this is not what comes next, and what does. Nothing has changed.
pub fn wrong_order(found: &Inherited) -> anyhow::Error {
    let next = match (found.phase.as_str(), found.has_successor) {
        ("warm" | "prepared", _) => "`handoff drain`",
        ("drained", _) => "`handoff seal`",
        ("sealed", true) => "`handoff commit`",
        _ => "`handoff exec-successor`, in place or with --wait",
    };
    let detail = format!(
        "handoff {} is {}: what comes next is {next}, or `handoff abort`",
        found.handoff, found.phase
    );
    exit::attempt(Error::Invalid { detail }, GO_ON)
}

/// Returns an error: there is no handoff to go on with, and how to begin one.
pub fn no_lease(begin: &str) -> anyhow::Error {
    let detail = format!("there is no lease in this chain: {begin}");
    exit::attempt(Error::Invalid { detail }, GO_ON)
}

/// After a phase: goes on with the next program or, where none follows, says how it stands. A handoff that is over is reported.
///
/// # Errors
///
/// The report cannot be written, or the handoff cannot be handed on.
pub fn go_on(
    command: &'static str,
    steps: Steps<'_>,
    mut chain: Chain,
    next: Option<Opened>,
    common: &Common,
) -> anyhow::Result<Exit> {
    if steps.has_ended() {
        return end(command, steps, &mut chain, next, common);
    }
    match steps.hand_over(&mut chain).map_err(|e| exit::attempt(e, "hand the lease on"))? {
        HandedOver::Ended(steps) => end(command, *steps, &mut chain, None, common),
        HandedOver::Yes if inherited(&chain)?.is_some_and(|found| found.phase == "widowed") => {
            out::say(command, "warning", "the daemon has died: the successor starts as after a crash");
            follow(command, &chain, next, common)
        }
        HandedOver::Yes => follow(command, &chain, next, common),
    }
}

fn follow(command: &str, chain: &Chain, next: Option<Opened>, common: &Common) -> anyhow::Result<Exit> {
    match next {
        Some(next) => Ok(next.exec(command, chain)),
        None => {
            stand(chain, common)?;
            Ok(Exit::Done)
        }
    }
}

fn stand(chain: &Chain, common: &Common) -> anyhow::Result<()> {
    let Some(found) = inherited(chain)? else { return Ok(()) };
    let (handoff, phase) = (found.handoff.as_str(), found.phase.as_str());
    let _ = if common.json {
        out::json(&Held { handoff, phase })?
    } else {
        out::line(&format!("{phase} {handoff}"))?
    };
    Ok(())
}

/// Closes what a chain has of a handoff in progress. How it ended stays, for the links that ask.
pub fn let_go(chain: &mut Chain) {
    chain.retain(|role| !matches!(role, Role::Lease | Role::Incumbent | Role::Successor));
}

/// Says how a handoff ended. The next program runs only where it ended well.
///
/// # Errors
///
/// The report cannot be written.
pub fn end(
    command: &'static str,
    steps: Steps<'_>,
    chain: &mut Chain,
    next: Option<Opened>,
    common: &Common,
) -> anyhow::Result<Exit> {
    let outcome = steps.finish(chain).map_err(|e| exit::attempt(e, "end the handoff"))?;
    let_go(chain);
    let summary = Summary::of(&outcome);
    match next {
        Some(next) if summary.exit == Exit::Done => Ok(next.exec(command, chain)),
        _ => summary.report(command, common.json),
    }
}
