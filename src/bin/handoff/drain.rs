use std::time::Duration;

use handoff::steps::{Next as Phase, Steps};
use handoff::supervisor::{Event, SpawnSpec};

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::phase::{self, Common, Watcher};
use crate::{duration, logging};

/// Take the lease, drain and seal the daemon, and become the next program, which holds the lease
///
/// When the last process that has the lease ends, the daemon goes back to serving. So does it at the deadline.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    #[command(flatten)]
    common: Common,

    #[command(flatten)]
    limits: Limits,

    /// Stop between the drain and the seal
    #[arg(long, conflicts_with = "exit")]
    no_seal: bool,

    /// Let the daemon end without a successor: a planned stop
    #[arg(long)]
    exit: bool,

    #[command(flatten)]
    pub next: Next,
}

/// How long things may take.
#[derive(clap::Args)]
#[group(skip)]
pub struct Limits {
    /// Give the daemon so long to finish what is in flight [default: 25s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    grace: Option<Duration>,

    /// Undo the handoff if no successor is ready so long after the drain began [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse_some)]
    deadline: Option<Duration>,

    /// Take the service back if the successor does not serve so long after it was granted [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse_some)]
    stand_by: Option<Duration>,

    /// Let the successor serve on trial for so long, while the daemon stands by to take over again
    #[arg(long, value_name = "TIME", value_parser = duration::parse_some)]
    bake: Option<Duration>,
}

const EXAMPLES: &str = "
  handoff drain --grace 25s -- handoff exec-successor kvd-v2     # this process becomes the new daemon
  handoff drain --deadline 10m -- sh                             # a shell that holds the lease
  handoff drain --exit                                           # a planned stop";

impl Limits {
    /// Changes what was agreed on so far.
    pub fn apply(&self, spec: SpawnSpec) -> SpawnSpec {
        SpawnSpec {
            drain_grace: self.grace.unwrap_or(spec.drain_grace),
            deadline: self.deadline.unwrap_or(spec.deadline),
            stand_by: self.stand_by.unwrap_or(spec.stand_by),
            bake: self.bake.or(spec.bake),
            ..spec
        }
    }
}

/// Drains, and seals unless it is asked not to.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("drain");
    let next = args.next.open_ahead("drain")?;
    let chain = phase::chain(&args.common)?;
    let found = phase::held(&chain)?;
    match &found {
        Some(found) if !may_follow(args, &found.phase, found.has_successor) => {
            return Err(phase::wrong_order(found));
        }
        None if next.is_none() && !args.exit => {
            return Err(phase::no_lease(
                "a program must follow to hold it, as in `handoff drain -- sh`, or everything would be undone at once; for a \
                 planned stop there is --exit",
            ));
        }
        _ => {}
    }
    let spec = args.limits.apply(found.map_or_else(SpawnSpec::default, |found| found.spec));
    let mut watcher = Watcher::new("drain", args.common.progress)?;
    let mut observer = |event: &Event<'_>| watcher.observe(event);
    let mut steps = Steps::resume_or_begin(&args.common.control, spec, &chain, &mut observer)
        .map_err(|e| exit::attempt(e, format!("drain the daemon at {}", args.common.control.display())))?;
    for (phases, next) in plan(args) {
        if phases.contains(&steps.phase()) {
            steps.go(*next).map_err(|e| exit::attempt(e, "drain the daemon"))?;
        }
    }
    phase::go_on("drain", steps, chain, next, &args.common)
}

fn may_follow(args: &Args, phase: &str, has_successor: bool) -> bool {
    match phase {
        "prepared" | "warm" => !(args.exit && has_successor),
        "drained" | "sealed" => args.exit && !has_successor,
        _ => false,
    }
}

/// What is to be done, in this order, where the handoff holds in one of these phases.
fn plan(args: &Args) -> &'static [(&'static [&'static str], Phase)] {
    const ALL: [(&[&str], Phase); 3] = [
        (&["prepared", "warm"], Phase::Phase),
        (&["drained"], Phase::Phase),
        (&["sealed", "widowed"], Phase::Retire),
    ];
    match (args.no_seal, args.exit) {
        (true, _) => &ALL[..1],
        (false, false) => &ALL[..2],
        (false, true) => &ALL,
    }
}
