use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueHint;
use handoff::chain::CONTROL_VAR;
use handoff::error::Error;
use handoff::proto::driver::Refusal;
use handoff::supervise::client::{Client, News};
use handoff::supervise::wire::{State, Swap};
use handoff::supervisor::HandoffOutcome;
use handoff::sys::poll;
use handoff::sys::signals::Termination;
use handoff::sys::spawn::Program;
use serde::Serialize;

use crate::duration::{self, show_ms};
use crate::exit::{self, Exit};
use crate::progress::{Progress, When};
use crate::summary::Summary;
use crate::{link, logging, out, phase};

/// Ask a supervisor for a swap, and wait for the verdict
///
/// Without PROG it is the program of the supervisor's configuration, resolved anew. The supervisor runs the swap: interrupting this command
/// does not, and neither does its death; `handoff abort` does. Who may ask, and for which programs, the supervisor decides.
///
/// Without ARGS, PROG gets those of the configuration. Options stop at PROG: what follows is for PROG.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Ask the supervisor at this Unix socket [default: trigger beside the socket that HANDOFF_CONTROL names]
    #[arg(long, value_name = "PATH", env = "HANDOFF_TRIGGER", hide_env_values = true, value_hint = ValueHint::FilePath)]
    trigger: Option<PathBuf>,

    /// Wait for what goes on, instead of being told that the supervisor is busy
    #[arg(long, conflicts_with = "status")]
    queue: bool,

    /// Let PROG serve on trial for so long, 0 for no trial [default: as configured]
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with_all = ["reexec", "status"])]
    bake: Option<Duration>,

    /// Wait no longer than this for the verdict [default: for ever]; for --status 5s
    #[arg(long, value_name = "TIME", value_parser = duration::parse_some)]
    timeout: Option<Duration>,

    /// Have the supervisor become its own program anew, with the same pid, sockets and daemon
    #[arg(long, conflicts_with_all = ["status", "program"])]
    reexec: bool,

    /// Show what the supervisor does
    #[arg(long, conflicts_with = "program")]
    status: bool,

    /// Show on standard error how it goes: auto is only on a terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    progress: When,

    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,

    /// The program; a name without a slash is looked up in PATH [default: that of the configuration]
    #[arg(value_name = "PROG", value_hint = ValueHint::CommandName)]
    program: Option<PathBuf>,

    /// Its arguments [default: those of the configuration]
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true, value_hint = ValueHint::AnyPath)]
    args: Vec<String>,
}

const EXAMPLES: &str = "
  handoff trigger --trigger /run/kv/trigger       # the configured program, as it is now
  handoff trigger --trigger /run/kv/trigger /opt/kv/kvd-v2
  handoff trigger --queue --bake 5m               # HANDOFF_TRIGGER names the socket
  handoff trigger --json | jq '{outcome, gap_us}'
  handoff trigger --status
  handoff trigger --reexec                        # after handoff itself was replaced";

/// How long the supervisor may take to say how it does.
const ANSWER: Duration = Duration::from_secs(5);

/// Asks, waits and tells.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    logging::quietly("trigger");
    let path = trigger_path(&args)?;
    let asking = || format!("ask the supervisor at {}", path.display());
    if args.status {
        let deadline = Instant::now() + args.timeout.unwrap_or(ANSWER);
        let state = Client::connect(&path).and_then(|mut client| client.status(deadline));
        return tell_state(&state.map_err(|e| exit::attempt(e, asking()))?, args.json);
    }
    let swap = match wanted(&args) {
        Ok(swap) => swap,
        Err(e) => return Ok(link::unusable("trigger", e)),
    };
    let client = Client::connect(&path).map_err(|e| exit::attempt(e, asking()))?;
    let deadline = args.timeout.and_then(poll::after);
    let wait = Wait::begin(args.progress)?;
    if args.reexec {
        let answer = wait.for_answer(move |client, told| client.reexec(args.queue, deadline, told), client);
        return reexecuted(answer, args.json);
    }
    let answer = wait.for_answer(move |client, told| client.swap(swap, deadline, told), client);
    swapped(answer, args.json)
}

fn trigger_path(args: &Args) -> anyhow::Result<PathBuf> {
    let beside = || std::env::var_os(CONTROL_VAR).map(|path| PathBuf::from(path).with_file_name("trigger"));
    args.trigger.clone().or_else(beside).ok_or_else(|| {
        let detail = "it is not known where: give --trigger PATH, or set HANDOFF_TRIGGER".to_owned();
        exit::attempt(Error::Invalid { detail }, "ask a supervisor")
    })
}

/// The supervisor has another PATH and another working directory.
fn wanted(args: &Args) -> handoff::Result<Swap> {
    let found = |name: &PathBuf| match name.as_os_str().as_encoded_bytes().contains(&b'/') {
        true => Ok(name.clone()),
        false => Program::open(name).map(|program| program.path().to_owned()),
    };
    let full = |path: PathBuf| {
        std::path::absolute(&path).map_err(|e| Error::Io {
            attempt: format!("find the full path of {}", path.display()),
            source: e,
        })
    };
    let binary = args.program.as_ref().map(found).transpose()?.map(full).transpose()?;
    let given = binary.is_some() && !args.args.is_empty();
    let bake_ms = args.bake.map(|bake| u64::try_from(bake.as_millis()).unwrap_or(u64::MAX));
    Ok(Swap { binary, args: given.then(|| args.args.clone()), bake_ms, queue: args.queue })
}

// ---- The wait.

/// What happens while the supervisor is waited for.
enum Heard<T> {
    News(News),
    Answer(handoff::Result<T>),
    Signal(Termination),
}

/// How it ended, or that nobody waits for it any more.
enum Came<T> {
    Answer(handoff::Result<T>, Begun),
    Interrupted(Termination, Begun),
}

/// What is known of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    No,
    Queued,
    Yes,
}

struct Wait {
    progress: Progress,
    signals: std::sync::mpsc::Receiver<Termination>,
}

impl Wait {
    fn begin(when: When) -> anyhow::Result<Self> {
        Ok(Self { progress: Progress::new("trigger", when), signals: phase::signals()? })
    }

    /// Asks in a thread of its own, so that a signal is not waited for the supervisor.
    fn for_answer<T: Send + 'static>(
        self,
        ask: impl FnOnce(&mut Client, &mut dyn FnMut(News)) -> handoff::Result<T> + Send + 'static,
        mut client: Client,
    ) -> Came<T> {
        let (sender, heard) = channel();
        forward(self.signals, sender.clone());
        thread::spawn(move || {
            // Whoever does not listen any more has ended.
            let answer = ask(&mut client, &mut |news| _ = sender.send(Heard::News(news)));
            let _ = sender.send(Heard::Answer(answer));
        });
        let mut begun = Begun::No;
        loop {
            match heard.recv().expect("the thread that waits for signals has a sender") {
                Heard::News(news) => {
                    begun = if news == News::Started { Begun::Yes } else { Begun::Queued };
                    self.progress.tell(&said(news));
                }
                Heard::Answer(answer) => return Came::Answer(answer, begun),
                Heard::Signal(signal) => return Came::Interrupted(signal, begun),
            }
        }
    }
}

fn forward<T: Send + 'static>(signals: std::sync::mpsc::Receiver<Termination>, heard: Sender<Heard<T>>) {
    thread::spawn(move || {
        for signal in signals {
            if heard.send(Heard::Signal(signal)).is_err() {
                return;
            }
        }
    });
}

fn said(news: News) -> String {
    match news {
        News::Queued(0) => "queued, behind what goes on".to_owned(),
        News::Queued(ahead) => format!("queued, behind what goes on and {ahead} more"),
        News::Started => "started".to_owned(),
    }
}

/// Says that nobody waits for the verdict any more.
fn leave(why: &str, begun: Begun) -> Exit {
    let what = match begun {
        Begun::Yes => "the swap goes on",
        Begun::Queued => "the request was queued, and may be carried out yet",
        Begun::No => "it is not known whether the supervisor has begun",
    };
    out::say(
        "trigger",
        "warning",
        &format!("{why}: {what}; see handoff trigger --status and handoff journal show"),
    );
    Exit::Undecided
}

// ---- The answers.

fn swapped(came: Came<HandoffOutcome>, json: bool) -> anyhow::Result<Exit> {
    match came {
        Came::Interrupted(signal, begun) => Ok(leave(&format!("interrupted by {}", signal.name()), begun)),
        Came::Answer(Ok(outcome), _) => Summary::of(&outcome).report("trigger", json),
        Came::Answer(Err(e), begun) => match refusal(&e) {
            Some(refusal) => Summary::refused(&refusal).report("trigger", json),
            None => no_answer(e, begun),
        },
    }
}

#[derive(Serialize)]
struct Reexecuted {
    reexecuted: bool,
    version: Option<String>,
    reason: Option<String>,
}

fn reexecuted(came: Came<String>, json: bool) -> anyhow::Result<Exit> {
    match came {
        Came::Interrupted(signal, begun) => Ok(leave(&format!("interrupted by {}", signal.name()), begun)),
        Came::Answer(Ok(version), _) => {
            let _ = match json {
                true => out::json(&Reexecuted { reexecuted: true, version: Some(version), reason: None })?,
                false => out::line(&format!("the supervisor is version {version} now"))?,
            };
            Ok(Exit::Done)
        }
        Came::Answer(Err(e), _) if refusal(&e).is_some() => {
            if json {
                let reason = Some(e.to_string());
                let _ = out::json(&Reexecuted { reexecuted: false, version: None, reason })?;
            }
            Err(exit::attempt(e, "have the supervisor become its program anew"))
        }
        Came::Answer(Err(e), begun) => no_answer(e, begun),
    }
}

/// Returns the supervisor's answer where it was no.
fn refusal(e: &Error) -> Option<Refusal> {
    match e {
        Error::Busy { handoff, phase, age_ms } if handoff.is_empty() => {
            Some(Refusal::Declined(format!("the supervisor is busy: {phase} for {}", show_ms(*age_ms))))
        }
        Error::Busy { handoff, phase, age_ms } => {
            Some(Refusal::Busy { handoff: handoff.clone(), phase: phase.clone(), age_ms: *age_ms })
        }
        Error::Refused { reason } => Some(Refusal::Declined(reason.clone())),
        _ => None,
    }
}

/// The request was made, and what became of it is not known.
fn no_answer(e: Error, begun: Begun) -> anyhow::Result<Exit> {
    match e {
        e @ (Error::TimedOut { .. } | Error::PeerLost { .. }) => Ok(leave(&e.to_string(), begun)),
        e => Err(exit::attempt(e, "learn the supervisor's verdict")),
    }
}

fn tell_state(state: &State, json: bool) -> anyhow::Result<Exit> {
    let _ = if json { out::json(state)? } else { out::text(&described(state)).context("tell the state")? };
    Ok(Exit::Done)
}

fn described(state: &State) -> String {
    let mut lines = vec![
        format!(
            "supervisor {} for {}: pid {}, version {}",
            state.doing,
            show_ms(state.age_ms),
            state.pid,
            state.version
        ),
        row(
            "daemon",
            &match (&state.daemon, state.is_child) {
                (Some(daemon), true) => daemon.to_string(),
                (Some(daemon), false) => format!("{daemon}, which was adopted"),
                (None, _) => "none".to_owned(),
            },
        ),
        row(
            "listeners",
            &if state.listeners.is_empty() { "none".to_owned() } else { state.listeners.join(" ") },
        ),
        row("restarts", &state.restarts.to_string()),
    ];
    let swaps: Vec<String> = state.swaps.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
    lines.push(row("swaps", &if swaps.is_empty() { "none".to_owned() } else { swaps.join(", ") }));
    lines.push(row("queued", &state.queued.to_string()));
    lines.iter().map(|line| out::one_line(line) + "\n").collect()
}

fn row(name: &str, text: &str) -> String {
    format!("{name:<9} {text}")
}
