//! A driver whose every phase can be made to fail: what the tests of failures run.
//!
//! `swapper CONTROL DATA_DIR PROGRAM [KEY=VALUE]... [-- ARG...]` swaps the daemon at CONTROL for PROGRAM, which gets the same two
//! paths and then the arguments. Keys: deadline, grace, warm-up, stand-by, margin and bake, in milliseconds; journal;
//! `at=PHASE:WHAT` and `at=PHASE+:WHAT`, where a phase is meant as it is entered, and with the plus when it has gone on for a
//! moment. Phases are written to standard error, the outcome in the end; it exits with 0 for a commit, with 1 for anything else.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use handoff::supervisor::{Event, HandoffOutcome, Outcome, SpawnSpec, Supervisor, Wish};

/// Writes a line in one piece: several processes share the pipe.
macro_rules! say {
    ($($part:tt)*) => {{
        let line = format!("{}\n", format_args!($($part)*));
        // Who reads it may be gone.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut path =
        || args.next().map(PathBuf::from).ok_or("usage: swapper CONTROL DATA_DIR PROGRAM [KEY=VALUE]...");
    let (control, data, binary) = (path()?, path()?, path()?);
    let mut supervisor = Supervisor::new(&control)?;
    let mut spec = SpawnSpec { binary, ..SpawnSpec::default() };
    let mut faults: Vec<(String, String)> = vec![];
    for arg in args.by_ref().take_while(|arg| arg != "--") {
        let (key, value) = arg.split_once('=').ok_or(format!("{arg}: expected KEY=VALUE"))?;
        let ms = || value.parse().map(Duration::from_millis);
        match key {
            "deadline" => spec.deadline = ms()?,
            "grace" => spec.drain_grace = ms()?,
            "warm-up" => spec.warm_up = ms()?,
            "stand-by" => spec.stand_by = ms()?,
            "margin" => spec.margin = ms()?,
            "bake" => spec.bake = Some(ms()?),
            "journal" => supervisor = supervisor.with_journal(value),
            "at" => {
                let (phase, what) = value.split_once(':').ok_or(format!("{value}: expected PHASE:WHAT"))?;
                faults.push((phase.to_owned(), what.to_owned()));
            }
            _ => return Err(format!("{arg}: unknown key").into()),
        }
    }
    let paths = [&control, &data].map(|path| path.display().to_string());
    spec.args = paths.into_iter().chain(args).collect();
    let recovered = supervisor.resume_from_journal()?;
    if let Some(recovered) = recovered {
        say!("driver recovered {:?}", recovered.outcome);
    }
    let outcome = supervisor.perform_observed(spec, &mut |event| {
        let reached = match event {
            Event::Phase(phase) => {
                say!("driver {} phase {phase}", std::process::id());
                (*phase).to_owned()
            }
            Event::Tick { phase, .. } => format!("{phase}+"),
        };
        suffer(&mut faults, &reached)
    })?;
    report(&outcome);
    Ok(if outcome.committed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Each fault strikes once.
fn suffer(faults: &mut Vec<(String, String)>, reached: &str) -> Wish {
    let Some(at) = faults.iter().position(|(phase, _)| phase == reached) else { return Wish::Continue };
    let (_, what) = faults.remove(at);
    say!("driver {} at {reached}", std::process::id());
    match what.as_str() {
        "kill" => signal("KILL"),
        "stop" => signal("STOP"),
        "cancel" => return Wish::Cancel("as asked".to_owned()),
        other => panic!("unknown fault {other}"),
    }
    Wish::Continue
}

fn signal(name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(std::process::id().to_string()).status();
    status.expect("there is a kill command");
}

fn report(outcome: &HandoffOutcome) {
    let word = match &outcome.outcome {
        Outcome::Committed => "committed",
        Outcome::RolledBack(reason) => reason.kind(),
        Outcome::Retired => "retired",
        Outcome::Refused(_) => "refused",
        Outcome::NothingServing(_) => "nothing-serving",
        Outcome::Undecided(_) => "undecided",
    };
    let detail = outcome.abort_reason.as_ref().map_or(String::new(), ToString::to_string);
    say!("driver {} outcome {word} {detail}", std::process::id());
}
