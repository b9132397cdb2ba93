use handoff::control::Control;

use crate::exit::{self, Exit};
use crate::{logging, settle};

/// End a bake early and keep the successor
///
/// It returns when the successor serves for good and the incumbent has ended.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    #[command(flatten)]
    settle: settle::Args,
}

const EXAMPLES: &str = "
  handoff swap --bake 1h ./kvd-v2 &
  handoff commit --control /run/kv/control        # convinced after ten minutes";

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("commit");
    settle::say(&args.settle, "handoff commit", Control::commit)?.report(args.settle.json, "committed")
}
