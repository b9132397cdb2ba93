use std::path::PathBuf;
use std::time::Duration;

use handoff::DataDirLock;
use handoff::chain::{Chain, DATA_DIR_VAR};
use handoff::fds::Role;

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::{duration, logging};

/// Take a data directory's lock and become the next program, which has it
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Wait so long while another process has the lock, instead of failing at once
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration::parse)]
    wait: Duration,

    /// The data directory
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,

    #[command(flatten)]
    next: Next,
}

const EXAMPLES: &str = "
  exec handoff hold-fds --listen redis=127.0.0.1:6379 -- handoff lock /var/lib/kv -- kvd";

/// Takes the lock and hands it on.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("lock");
    let next = match args.next.require("lock", "the lock lives as long as it is open") {
        Ok(next) => next,
        Err(exit) => return Ok(exit),
    };
    let mut chain = Chain::inherit()?;
    let lock = DataDirLock::options().wait(args.wait).acquire(&args.dir)?;
    chain.set_var(DATA_DIR_VAR, lock.dir());
    chain.add(Role::Lock, lock.try_clone_fd()?);
    Ok(next.exec("lock", &chain))
}
