//! `handoff demo`: the whole thing on this machine, with an embedded store and a load.

mod driver;
mod janitor;
mod premises;
mod report;
mod scenario;
mod show;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueHint;
use handoff::sys::signals::Terminations;

use crate::exit::Exit;
use janitor::Janitor;
use premises::Premises;
use report::{Report, Row};
use scenario::{SCENARIOS, SWAP, Scenario};
use show::Show;
use stage::Stage;

/// Swap a store under load, with good and bad releases and kills in the middle, and count what clients see
///
/// Starts a small store on a free port, with clients that remember each acknowledged write; swaps it again and
/// again, lets successors crash, hang and lie, kills drivers and incumbents in the middle of swaps; and reads every
/// acknowledged write back. Exits with 0 only if each swap ended as it should and nothing was lost, refused or reset.
#[derive(clap::Args)]
pub struct Args {
    /// Take about so long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,

    /// Make requests from so many clients, each with a connection for each request
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Keep the data in this directory, which must be new or empty [default: one in the temporary directory]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// Leave the data, the journal and the processes' messages there
    #[arg(long)]
    keep: bool,

    /// Let the first successor fail like this, to see that this is found out
    #[arg(long, value_name = "FAULT", hide = true)]
    sabotage: Option<String>,

    /// Be the driver of one swap, for the demonstration at this socket
    #[arg(long, value_name = "SOCKET", hide = true)]
    driver: Option<PathBuf>,

    /// Be the janitor of the demonstration at the other end of standard input
    #[arg(long, hide = true)]
    janitor: bool,
}

/// Runs the demonstration, or is its driver.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some(socket) = &args.driver {
        return driver::run(socket);
    }
    if args.janitor {
        return janitor::run();
    }
    let premises = Arc::new(Premises::open(args.data_dir.as_deref(), args.keep)?);
    let janitor = Janitor::start(&premises)?;
    clear_on_signals_and_panics(&premises)?;
    let report = perform(&args, &premises);
    premises.mind_the_end();
    premises.clear();
    drop(janitor);
    let (show, report) = report?;
    show.end(&report, &hint(&args, &premises)).context("show the result")?;
    Ok(if report.ok { Exit::Done } else { Exit::CheckFailed })
}

/// Clears up before the process ends, so that whoever waits for it finds nothing left. A panic of a release runs no
/// destructors, and a SIGKILL is for the janitor.
fn clear_on_signals_and_panics(premises: &Arc<Premises>) -> anyhow::Result<()> {
    let theirs = Arc::clone(premises);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        theirs.clear();
        // In any thread, as in a release.
        std::process::abort();
    }));
    let mut terminations = Terminations::catch().context("catch signals")?;
    let theirs = Arc::clone(premises);
    std::thread::spawn(move || {
        if let Ok(signal) = terminations.wait() {
            theirs.clear();
            // A spinner may be in this line.
            eprintln!("\nhandoff demo: stopped by {}; nothing was left running", signal.name());
            std::process::exit(Exit::Undecided as i32);
        }
    });
    Ok(())
}

/// How much of the time goes into plain swaps before the other scenarios.
const FIRST_SWAPS: f64 = 0.25;

fn perform(args: &Args, premises: &Premises) -> anyhow::Result<(Show, Report)> {
    let began = Instant::now();
    let end = began + Duration::from_secs(args.seconds);
    let show = Show::new(args.json, SCENARIOS.len() + 3);
    show.doing("starting a store and its clients");
    let mut stage = Stage::set(premises, args.clients.into(), args.sabotage.clone())?;
    show.say(&format!(
        "a store serves on {}, with {} clients that write and read",
        stage.addr(),
        args.clients
    ));
    let first_swaps = began + Duration::from_secs(args.seconds).mul_f64(FIRST_SWAPS);
    let mut rows = Vec::new();
    let mut complete =
        play(&show, &mut rows, &Scenario { name: "a swap", ..SWAP }, |scenario| stage.play(scenario))
            && play(&show, &mut rows, &Scenario { name: "swaps, again and again", ..SWAP }, |scenario| {
                stage.swap_until(first_swaps, scenario)
            });
    for scenario in SCENARIOS {
        complete = complete && play(&show, &mut rows, scenario, |scenario| stage.play(scenario));
    }
    complete = complete
        && play(&show, &mut rows, &Scenario { name: "and after all this, swaps", ..SWAP }, |scenario| {
            stage.swap_until(end, scenario)
        });
    show.doing("reading back every acknowledged write");
    let report = Report::new(rows, stage.close(), complete, began.elapsed().as_secs_f64());
    Ok((show, report))
}

/// Plays a scenario; returns whether there is a daemon for the next one.
fn play(show: &Show, rows: &mut Vec<Row>, scenario: &Scenario, run: impl FnOnce(&Scenario) -> Row) -> bool {
    show.doing(scenario.name);
    let mut row = run(scenario);
    row.conclude();
    show.outcome(&row);
    let serves = row.pid != 0;
    rows.push(row);
    serves
}

fn hint(args: &Args, premises: &Premises) -> String {
    let dir = premises.dir().display();
    let kept = if args.keep {
        format!(
            "Kept in {dir}: the data, the journal (handoff journal timeline --journal {dir}/journal) and the log.\n"
        )
    } else {
        String::new()
    };
    format!(
        "{kept}Next: handoff kvd and, from another terminal, handoff swap: see README.md for both, and for your own daemon."
    )
}
