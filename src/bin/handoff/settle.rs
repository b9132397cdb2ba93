//! A word from an operator about a handoff in progress, and what came of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueHint;
use handoff::DataDirLock;
use handoff::chain::{Chain, JOURNAL_VAR};
use handoff::control::Control;
use handoff::error::{Error, Result};
use handoff::journal::{Actor, Event};
use handoff::proto::wire::{Progress, Status};
use handoff::steps::Inherited;
use serde::Serialize;

use crate::exit::{self, Exit};
use crate::phase::Common;
use crate::progress::When;
use crate::{duration, journal, out, status};

/// What `commit` and `abort` have in common.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Ask the daemon at this Unix socket
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub control: PathBuf,

    /// Wait so long for the verdict
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_some)]
    pub timeout: Duration,

    /// Print the verdict as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Returns the options that every phase has.
    pub fn as_common(&self, progress: When) -> Common {
        Common { control: self.control.clone(), progress, json: self.json }
    }
}

/// Between two questions for who serves.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How a handoff ended.
#[derive(Serialize)]
pub struct Settled {
    /// `committed`, `rolled-back` or `undecided`.
    pub outcome: &'static str,
    pub handoff: String,
    /// Who serves now.
    pub serving: Option<Serving>,
}

/// Who serves.
#[derive(Serialize)]
pub struct Serving {
    pid: u32,
    generation: u64,
    build_id: String,
    binary: String,
}

/// Says the word to the daemon, and waits until the handoff that was going on has ended.
pub fn say(
    args: &Args,
    actor: &str,
    word: impl FnOnce(&mut Control, Instant) -> Result<()>,
) -> anyhow::Result<Settled> {
    let deadline = Instant::now() + args.timeout;
    let answer = deadline.min(Instant::now() + ANSWER);
    let asking = |e| exit::attempt(e, format!("ask the daemon at {}", args.control.display()));
    let mut control = Control::connect(&args.control, actor, answer).map_err(asking)?;
    let before = control.status(answer).map_err(asking)?;
    let handoff = before.handoff.ok_or_else(nothing_to_settle)?;
    let settling = |e| exit::attempt(e, format!("settle handoff {}", handoff.handoff));
    word(&mut control, answer).map_err(settling)?;
    drop(control);
    Ok(wait(&args.control, actor, &handoff, deadline))
}

fn nothing_to_settle() -> anyhow::Error {
    exit::attempt(Error::Refused { reason: "no handoff is in progress".to_owned() }, "settle a handoff")
}

/// Those who were asked may be gone before they can answer: who answers then, tells.
fn wait(control: &Path, actor: &str, handoff: &Progress, deadline: Instant) -> Settled {
    while Instant::now() < deadline {
        match ask(control, actor, deadline) {
            Ok(now) if is_over(&now, handoff) => return Settled::by(&now, handoff),
            Ok(_) => {}
            Err(e) if status::is_absence(&e) => tracing::debug!("nobody answers: {e}"),
            Err(e) => tracing::warn!("{e}"),
        }
        std::thread::sleep(PAUSE);
    }
    Settled { outcome: "undecided", handoff: handoff.handoff.clone(), serving: None }
}

fn ask(control: &Path, actor: &str, deadline: Instant) -> Result<Status> {
    let answer = deadline.min(Instant::now() + ANSWER);
    Control::connect(control, actor, answer)?.status(answer)
}

fn is_over(now: &Status, before: &Progress) -> bool {
    now.handoff.as_ref().is_none_or(|handoff| handoff.handoff != before.handoff)
}

impl Settled {
    fn by(now: &Status, handoff: &Progress) -> Self {
        let outcome = if handoff.incumbent.as_ref() == Some(&now.process) {
            "rolled-back"
        } else if handoff.successor.as_ref() == Some(&now.process) {
            "committed"
        } else {
            "undecided"
        };
        let serving = Serving {
            pid: now.process.pid,
            generation: now.generation,
            build_id: now.build_id.clone(),
            binary: now.binary.clone(),
        };
        Self { outcome, handoff: handoff.handoff.clone(), serving: Some(serving) }
    }

    /// Says what came of it, and returns the exit code for somebody who wanted `wanted`.
    pub fn report(&self, json: bool, wanted: &str) -> anyhow::Result<Exit> {
        let _ = if json { out::json(self)? } else { out::line(&self.line())? };
        Ok(match self.outcome {
            outcome if outcome == wanted => Exit::Done,
            "rolled-back" => Exit::RolledBack,
            "committed" => Exit::Refused,
            _ => Exit::Undecided,
        })
    }

    /// Writes down how a trial ended whose driver is gone, where the chain holds the journal in which it was begun.
    pub fn note(&self, command: &str, chain: &Chain, trial: Option<&Inherited>, reason: &str) {
        let Some(trial) = trial.filter(|trial| trial.handoff == self.handoff) else { return };
        if let Err(e) = self.try_note(chain, trial, reason) {
            out::say(command, "warning", &format!("the journal misses a record: {e}"));
        }
    }

    fn try_note(&self, chain: &Chain, trial: &Inherited, reason: &str) -> Result<()> {
        let path = std::env::var_os(JOURNAL_VAR).map(PathBuf::from);
        let Some(mut journal) = path.map(|path| journal::inherited(chain, &path)).transpose()?.flatten()
        else {
            return Ok(());
        };
        let event = match self.outcome {
            "committed" => self.committed(&trial.lock_file)?,
            "rolled-back" => Some(Event::RolledBack { reason: reason.to_owned(), cause: None }),
            _ => None,
        };
        // What is not known here, the next driver finds out.
        let Some(event) = event else { return Ok(()) };
        journal.append(&self.handoff, Actor::Operator, event)?;
        journal.sync()
    }

    fn committed(&self, lock_file: &Path) -> Result<Option<Event>> {
        let record = DataDirLock::read_record(lock_file)?.record;
        let serves = |pid: u32| self.serving.as_ref().is_some_and(|serving| serving.pid == pid);
        Ok(record.filter(|record| serves(record.owner.pid)).map(|record| Event::Committed {
            generation: record.generation,
            binary: record.owner.binary,
            args: record.owner.args,
            build_id: record.owner.build_id,
            gap_us: None,
        }))
    }

    /// Whether this is how it ended.
    pub fn is(&self, outcome: &str) -> bool {
        self.outcome == outcome
    }

    fn line(&self) -> String {
        let ended = match self.outcome {
            "rolled-back" => "rolled back",
            outcome => outcome,
        };
        let handoff = &self.handoff;
        match &self.serving {
            Some(serving) => {
                let (pid, generation, build) =
                    (serving.pid, serving.generation, out::build(&serving.build_id));
                format!("{ended} {handoff}: pid {pid} ({build}) serves generation {generation}")
            }
            None => format!("{ended} {handoff}: nobody answers, or the handoff still goes on"),
        }
    }
}
