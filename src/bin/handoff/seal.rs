use handoff::steps::{Next as Phase, Steps};
use handoff::supervisor::Event;

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::logging;
use crate::phase::{self, Common, Watcher};

/// Seal a daemon that is drained, on an inherited lease: its data is final, and its lock free
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    #[command(flatten)]
    common: Common,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  handoff drain --no-seal -- handoff seal -- handoff exec-successor kvd-v2";

/// Seals.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("seal");
    let next = args.next.open_ahead("seal")?;
    let chain = phase::chain(&args.common)?;
    let found = match phase::held(&chain)? {
        // Of one that has died there is nothing left to seal, and the chain goes on.
        Some(found) if found.phase == "drained" || found.phase == "widowed" => found,
        Some(found) => return Err(phase::wrong_order(&found)),
        None => return Err(phase::no_lease("`handoff drain --no-seal` comes before it")),
    };
    let mut watcher = Watcher::new("seal", args.common.progress)?;
    let mut observer = |event: &Event<'_>| watcher.observe(event);
    let unable = |e| exit::attempt(e, "seal the daemon");
    let mut steps =
        Steps::resume_or_begin(&args.common.control, found.spec, &chain, &mut observer).map_err(unable)?;
    if !steps.has_ended() {
        steps.go(Phase::Phase).map_err(unable)?;
    }
    phase::go_on("seal", steps, chain, next, &args.common)
}
