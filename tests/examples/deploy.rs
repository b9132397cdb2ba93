//! `deploy CONTROL JOURNAL PROGRAM [ARG...]`: replaces the daemon that answers at CONTROL by a new program.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use handoff::supervisor::{Outcome, SpawnSpec, Supervisor};

fn main() -> ExitCode {
    run().unwrap_or_else(|e| {
        eprintln!("deploy: fatal: {e}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [control, journal, program, args @ ..] = args.as_slice() else {
        return Err("usage: deploy CONTROL JOURNAL PROGRAM [ARG...]".into());
    };
    // It was given no listeners, so it asks the incumbent for copies of its own.
    let supervisor = Supervisor::new(control)?.with_journal(journal);
    // Had an earlier driver died in the middle of a swap, this finds out how that ended, and writes it down.
    supervisor.resume_from_journal()?;
    let outcome = supervisor.perform_handoff(SpawnSpec {
        binary: program.into(),
        args: args.to_vec(),
        drain_grace: Duration::from_secs(5),
        deadline: Duration::from_secs(30),
        ..Default::default()
    })?;
    let gap = outcome.measured.gap_us.unwrap_or_default();
    match (outcome.outcome, outcome.child) {
        // It is this process's child, to wait for; when this process ends first, it goes on as init's.
        (Outcome::Committed, Some(child)) => println!("pid {} serves, after a gap of {gap} us", child.id()),
        (Outcome::RolledBack(reason), _) => {
            println!("rolled back, the incumbent serves: {reason}");
            return Ok(ExitCode::from(3));
        }
        (other, _) => return Err(format!("{other:?}").into()),
    }
    Ok(ExitCode::SUCCESS)
}
