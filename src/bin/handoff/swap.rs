use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueHint;
use clap::builder::NonEmptyStringValueParser;
use handoff::control::Control;
use handoff::health::{Check, Monitor};
use handoff::proto::driver::Refusal;
use handoff::proto::wire::Status;
use handoff::supervisor::{self, Event, SpawnSpec, Supervisor, Wish};
use handoff::sys::signals::Termination;
use handoff::sys::spawn::Program;

use crate::duration;
use crate::exit::{self, Exit};
use crate::progress::{Progress, When};
use crate::reuse::{self, Reused};
use crate::step::Pauses;
use crate::summary::Summary;
use crate::{checks, journal, link, logging, out, phase};

/// Replace the running daemon's binary by PROG, or leave everything as it was
///
/// PROG is started beside the daemon and warms up while that one serves. Then the daemon drains, makes its data final
/// and lets go of it, and PROG takes over the same sockets and the same data. If PROG dies, hangs, opens stale data or says that
/// it is not healthy before that is decided, the daemon goes on serving: nobody has to act. Interrupting this command
/// undoes the swap as long as it can be undone.
///
/// Without ARGS, PROG gets those that the daemon was started with, as its owner record has them, and its working directory.
/// Options stop at PROG: what follows is for PROG.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Ask the daemon at this Unix socket
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    control: PathBuf,

    /// Write what happens to this journal
    #[arg(long, value_name = "PATH", env = "HANDOFF_JOURNAL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    journal: Option<PathBuf>,

    /// Give the daemon so long to finish what is in flight
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = duration::parse)]
    drain_grace: Duration,

    /// Undo the swap if PROG is not ready so long after the drain began
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_some)]
    deadline: Duration,

    /// Undo the swap if PROG is not warm after so long; the daemon serves meanwhile
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse_some)]
    warm_up_limit: Duration,

    /// Take the service back if PROG does not serve so long after it was granted
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_some)]
    stand_by: Duration,

    /// Let PROG serve on trial for so long, while the daemon stands by to take over again
    #[arg(long, value_name = "TIME", value_parser = duration::parse_some)]
    bake: Option<Duration>,

    /// Run this through `sh -c` again and again during the bake, and undo the swap when it fails
    ///
    /// If this command dies during the bake, nobody checks any more, and the swap is undone too.
    #[arg(long, value_name = "CMD", requires = "bake", value_parser = NonEmptyStringValueParser::new(), value_hint = ValueHint::CommandString)]
    health: Option<String>,

    /// Wait so long between two health checks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse, requires = "health")]
    health_interval: Duration,

    /// Take a health check that runs longer than this for failed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_some)]
    health_timeout: Duration,

    /// Set a variable in PROG's environment, which is otherwise that of this command; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,

    /// Where PROG's standard output and error go
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = Output::Daemon)]
    output: Output,

    /// Start PROG in this control group, which must be for it alone
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    cgroup: Option<PathBuf>,

    /// Start PROG without arguments if none are given, instead of with the daemon's
    #[arg(long)]
    no_reuse_args: bool,

    /// Pause between the phases, and ask at the terminal: continue, status, shell or abort
    ///
    /// It pauses when PROG is warm, when the daemon has drained, and when it has sealed. In the last two, new clients wait; the
    /// deadline goes on, and undoes the swap when nobody answers. A closed terminal, Ctrl-C and the end of the input undo it too.
    #[arg(long)]
    step: bool,

    /// Check all that can be checked, change nothing, and say what would stand in the way
    ///
    /// One line a check: ok, warning or error, and what to do. It exits with 1 where a swap would be refused or fail. How many
    /// connections arrive is counted for a quarter of a second.
    #[arg(long, conflicts_with = "step")]
    dry_run: bool,

    /// Show on standard error how it goes: auto is only on a terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    progress: When,

    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,

    /// The program; a name without a slash is looked up in PATH
    #[arg(value_name = "PROG", value_hint = ValueHint::CommandName)]
    program: PathBuf,

    /// Its arguments [default: those of the running daemon]
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true, value_hint = ValueHint::AnyPath)]
    args: Vec<String>,
}

/// Where the successor writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Where the running daemon's go, so that this command can end and its terminal can be closed
    Daemon,
    /// Where this command's go
    Own,
}

impl From<Output> for supervisor::Output {
    fn from(output: Output) -> Self {
        match output {
            Output::Daemon => Self::Incumbents,
            Output::Own => Self::Inherit,
        }
    }
}

const EXAMPLES: &str = "
  handoff swap --control /run/kv/control ./kvd-v2
  handoff swap --control /run/kv/control kvd-v2 --listen 127.0.0.1:6379 --data-dir /var/lib/kv
  handoff swap --bake 2m --health 'redis-cli ping | grep -q PONG' ./kvd-v2
  handoff swap --dry-run ./kvd-v2                 # what would stand in the way
  handoff swap --step ./kvd-v2                    # asks before each phase
  handoff swap --json --journal /var/lib/kv/journal ./kvd-v2 | jq .gap_us";

pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// How long the daemon may take to say how it is doing.
const ANSWER: Duration = Duration::from_secs(5);

/// Swaps, and says how it ended.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    logging::quietly("swap");
    if args.dry_run {
        return dry_run(&args);
    }
    // Before anything is asked of anybody.
    if let Err(e) = Program::open(&args.program) {
        return Ok(link::unusable("swap", e));
    }
    let pauses = args.step.then(|| Pauses::new(&args.control)).transpose()?;
    let running = ask(&args.control).map_err(|e| exit::attempt(e, asking(&args.control)))?;
    if let Some(refusal) = busy(&running) {
        return Summary::refused(&refusal).report("swap", args.json);
    }
    let supervisor = supervisor(&args)?;
    if let Err(e) = supervisor.resume_from_journal().map(|recovered| recovered.iter().for_each(tell_of)) {
        return Ok(journal::unreadable("swap", supervisor.journal(), e));
    }
    let spec = spec(&args, &running)?;
    let mut observer = Observer::new(&args, pauses)?;
    let outcome = supervisor.perform_observed(spec, &mut |event| observer.observe(event));
    match outcome {
        Ok(outcome) => {
            let summary = Summary::of(&outcome);
            observer.end(&summary.line());
            summary.report("swap", args.json)
        }
        Err(e) => {
            observer.end("the swap failed");
            Err(exit::attempt(e, "swap the daemon"))
        }
    }
}

fn dry_run(args: &Args) -> anyhow::Result<Exit> {
    let own = !args.args.is_empty() || args.no_reuse_args;
    let subject = checks::Subject {
        control: &args.control,
        journal: args.journal.as_deref(),
        program: Some(&args.program),
        args: own.then_some(&args.args),
        cgroup: args.cgroup.as_deref(),
    };
    subject.check().say(args.json)
}

pub fn ask(control: &Path) -> handoff::Result<Status> {
    let deadline = Instant::now() + ANSWER;
    Control::connect(control, "handoff swap", deadline)?.status(deadline)
}

fn asking(control: &Path) -> String {
    format!("ask the daemon at {}", control.display())
}

/// Asked before the journal is opened, which the other driver holds.
fn busy(running: &Status) -> Option<Refusal> {
    let handoff = running.handoff.as_ref()?;
    Some(Refusal::Busy {
        handoff: handoff.handoff.clone(),
        phase: running.phase.clone(),
        age_ms: handoff.age_ms,
    })
}

fn supervisor(args: &Args) -> anyhow::Result<Supervisor> {
    let supervisor = Supervisor::new(&args.control)?;
    Ok(match &args.journal {
        Some(path) => supervisor.with_journal(path),
        None => supervisor,
    })
}

fn tell_of(recovered: &handoff::supervisor::Recovered) {
    let ended = journal::phrase(&recovered.outcome);
    let text = format!("handoff {} was left open by a driver that died: {ended}", recovered.handoff_id);
    out::say("swap", "warning", &text);
}

// ---- What to start.

fn spec(args: &Args, running: &Status) -> anyhow::Result<SpawnSpec> {
    let reused = if args.args.is_empty() && !args.no_reuse_args {
        reuse::of_running(&args.control, running)?
    } else {
        Reused { args: args.args.clone(), directory: None }
    };
    Ok(SpawnSpec {
        binary: full_path(&args.program)?,
        args: reused.args,
        directory: reused.directory,
        env: args.env.clone(),
        drain_grace: args.drain_grace,
        deadline: args.deadline,
        warm_up: args.warm_up_limit,
        stand_by: args.stand_by,
        bake: args.bake,
        guard: args.health.is_some(),
        step: args.step,
        cgroup: args.cgroup.clone(),
        output: args.output.into(),
        ..SpawnSpec::default()
    })
}

/// A path in the journal has to mean the same to those who read it elsewhere.
fn full_path(program: &Path) -> anyhow::Result<PathBuf> {
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return std::path::absolute(program)
            .with_context(|| format!("find the full path of {}", program.display()));
    }
    Ok(program.to_owned())
}

// ---- While it goes on.

/// Shows how it goes, and cancels it when a person or a health check says so.
struct Observer {
    progress: Progress,
    signals: Receiver<Termination>,
    health: Option<Check>,
    monitor: Option<Monitor>,
    pauses: Option<Pauses>,
}

impl Observer {
    fn new(args: &Args, pauses: Option<Pauses>) -> anyhow::Result<Self> {
        let health = args.health.as_ref().map(|command| Check {
            command: command.clone(),
            interval: args.health_interval,
            timeout: args.health_timeout,
            control: args.control.clone(),
        });
        Ok(Self {
            progress: Progress::new("swap", args.progress),
            signals: phase::signals()?,
            health,
            monitor: None,
            pauses,
        })
    }

    /// Nothing is shown any more, nothing is checked, and nobody is asked.
    fn end(self, ended: &str) {
        drop(self.monitor);
        drop(self.progress);
        if let Some(pauses) = self.pauses {
            pauses.end(ended, &self.signals);
        }
    }

    fn observe(&mut self, event: &Event<'_>) -> Wish {
        self.progress.show(event);
        if matches!(event, Event::Phase("baking")) {
            self.monitor = self.health.take().map(Monitor::start);
        }
        let is_ours = |signal: &Termination| {
            !self.pauses.as_ref().is_some_and(|pauses| pauses.is_for_the_shell(*signal))
        };
        if let Some(signal) = self.signals.try_recv().ok().filter(is_ours) {
            return Wish::Cancel(format!("handoff swap was asked to stop by {}", signal.name()));
        }
        if let Some(failure) = self.monitor.as_ref().and_then(Monitor::failure) {
            return Wish::Cancel(failure);
        }
        match &mut self.pauses {
            Some(pauses) => pauses.observe(event, &mut self.progress),
            None => Wish::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_may_have_an_empty_value() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(variable("A="), Ok(("A".to_owned(), String::new())));
        assert!(variable("=b").is_err() && variable("A").is_err());
    }
}
