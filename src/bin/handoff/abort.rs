use handoff::steps::{Inherited, Steps};
use handoff::supervisor::Event;

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::phase::{self, Watcher};
use crate::progress::When;
use crate::{logging, settle};

/// Undo the handoff in progress, or a bake: the incumbent serves again
///
/// It returns when the incumbent serves.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    #[command(flatten)]
    settle: settle::Args,

    /// Have this written down as the reason
    #[arg(long, value_name = "TEXT", default_value = "handoff abort was run")]
    reason: String,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  handoff abort --control /run/kv/control --reason 'the error rate went up'";

/// Aborts.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("abort");
    let next = args.next.open("abort")?;
    let common = args.settle.as_common(When::Never);
    let mut chain = phase::chain(&common)?;
    let known = handoff::steps::inherited(&chain)?;
    // What another command has in its hands is undone by way of the control socket.
    phase::not_over(known.as_ref().filter(|found| !found.is_claimed()))?;
    if let Some(found) = known.clone().filter(Inherited::is_held) {
        let mut watcher = Watcher::new("abort", When::Never)?;
        let mut observer = |event: &Event<'_>| watcher.observe(event);
        let unable = |e| exit::attempt(e, "undo the handoff");
        let mut steps =
            Steps::resume_or_begin(&common.control, found.spec, &chain, &mut observer).map_err(unable)?;
        steps.cancel(&args.reason).map_err(unable)?;
        let exit = phase::end("abort", steps, &mut chain, None, &common)?;
        return wanted(exit, next, &chain);
    }
    let settled = settle::say(&args.settle, "handoff abort", |control, deadline| {
        control.abort(&args.reason, deadline)
    })?;
    settled.note("abort", &chain, known.as_ref(), &args.reason);
    let exit = settled.report(args.settle.json, "rolled-back")?;
    wanted(exit, next, &chain)
}

/// A rollback is what was asked for.
fn wanted(
    exit: Exit,
    next: Option<crate::link::Opened>,
    chain: &handoff::chain::Chain,
) -> anyhow::Result<Exit> {
    match (exit, next) {
        (Exit::Done | Exit::RolledBack, Some(next)) => Ok(next.exec("abort", chain)),
        (Exit::RolledBack, None) => Ok(Exit::Done),
        (exit, _) => Ok(exit),
    }
}
