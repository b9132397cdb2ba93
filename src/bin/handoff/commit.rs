use handoff::chain::Chain;
use handoff::control::Control;
use handoff::steps::{Inherited, Next as Phase, Steps};
use handoff::supervisor::Event;

use crate::exit::{self, Exit};
use crate::link::{Next, Opened};
use crate::phase::{self, Watcher};
use crate::progress::When;
use crate::{logging, out, settle};

/// Pass a sealed lease on to the successor that waits, or end a bake early and keep the successor
///
/// On an inherited lease it says how the handoff ended. Without one, it returns when the successor on trial serves for good and
/// the incumbent has ended.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    #[command(flatten)]
    settle: settle::Args,

    /// On an inherited lease with a bake time, return as soon as the successor serves on trial
    #[arg(long)]
    until_serving: bool,

    /// Show on standard error how it goes: auto is only on a terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    progress: When,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit
  handoff swap --bake 1h ./kvd-v2 &
  handoff commit --control /run/kv/control        # convinced after ten minutes";

/// Commits.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("commit");
    let next = args.next.open("commit")?;
    let common = args.settle.as_common(args.progress);
    let mut chain = phase::chain(&common)?;
    let known = handoff::steps::inherited(&chain)?;
    if let Some(over) = known.as_ref().filter(|known| known.phase == "committed") {
        return committed_before(args, over, next, &chain);
    }
    phase::not_over(known.as_ref())?;
    let Some(found) = known.clone().filter(Inherited::is_held) else {
        let settled = settle::say(&args.settle, "handoff commit", Control::commit)?;
        settled.note("commit", &chain, known.as_ref(), "the trial was undone");
        return match next {
            Some(next) if settled.is("committed") => Ok(next.exec("commit", &chain)),
            _ => settled.report(args.settle.json, "committed"),
        };
    };
    if !(found.phase == "sealed" && found.has_successor) {
        return Err(phase::wrong_order(&found));
    }
    let mut watcher = Watcher::new("commit", args.progress)?;
    let mut observer = |event: &Event<'_>| watcher.observe(event);
    let unable = |e| exit::attempt(e, "commit the handoff");
    let mut steps =
        Steps::resume_or_begin(&common.control, found.spec, &chain, &mut observer).map_err(unable)?;
    if args.until_serving {
        steps.leave_trial();
    }
    if !steps.has_ended() {
        // The successor's is the only copy from here on: that it ends must show.
        phase::let_go(&mut chain);
        steps.claim(&chain).map_err(unable)?;
        steps.go(Phase::Phase).map_err(unable)?;
    }
    if steps.has_ended() {
        return phase::end("commit", steps, &mut chain, next, &common);
    }
    steps.tell(&chain)?;
    let handoff = &found.handoff;
    let _ = match next {
        Some(next) => return Ok(next.exec("commit", &chain)),
        None if args.settle.json => out::json(&phase::Held { handoff, phase: "baking" })?,
        None => {
            out::line(&format!("baking {handoff}: `handoff commit` keeps it, `handoff abort` undoes it"))?
        }
    };
    Ok(Exit::Done)
}

/// The daemon died while an earlier command had the lease, and the successor that waited serves: there is nothing left to do.
fn committed_before(
    args: &Args,
    over: &Inherited,
    next: Option<Opened>,
    chain: &Chain,
) -> anyhow::Result<Exit> {
    let handoff = &over.handoff;
    let _ = match next {
        Some(next) => return Ok(next.exec("commit", chain)),
        None if args.settle.json => out::json(&phase::Held { handoff, phase: "committed" })?,
        None => out::line(&format!("committed {handoff} before: the successor serves"))?,
    };
    Ok(Exit::Done)
}
