use crate::exit::{self, Exit};
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
    #[arg(value_name = "REASON", default_value = "handoff abort was run")]
    reason: String,
}

const EXAMPLES: &str = "
  handoff abort --control /run/kv/control 'the error rate went up'";

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("abort");
    settle::say(&args.settle, "handoff abort", |control, deadline| control.abort(&args.reason, deadline))?
        .report(args.settle.json, "rolled-back")
}
