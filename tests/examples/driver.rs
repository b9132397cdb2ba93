//! One swap from the command line of a test or a benchmark: the least that a driver must do.
//!
//! `driver CONTROL JOURNAL BAKE_MS PROGRAM [ARG...]` prints what was measured as one line of JSON. A journal of `-` is none, a
//! bake time of 0 too. It exits with 1 unless the swap was committed, and leaves the successor running.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use handoff::supervisor::{SpawnSpec, Supervisor};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [control, journal, bake_ms, binary, args @ ..] = &args[..] else {
        return Err("usage: driver CONTROL JOURNAL BAKE_MS PROGRAM [ARG...]".into());
    };
    let supervisor = Supervisor::new(control)?;
    let supervisor = if journal == "-" { supervisor } else { supervisor.with_journal(journal) };
    let bake = Some(Duration::from_millis(bake_ms.parse()?)).filter(|bake| !bake.is_zero());
    let spec = SpawnSpec { binary: binary.into(), args: args.to_vec(), bake, ..SpawnSpec::default() };
    let outcome = supervisor.perform_handoff(spec)?;
    if let Some(reason) = &outcome.abort_reason {
        eprintln!("rolled back: {reason}");
    }
    println!("{}", serde_json::to_string(&outcome.measured)?);
    Ok(if outcome.committed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
