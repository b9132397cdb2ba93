//! The `handoff` command: replaces the binary of a running stateful daemon.

mod abort;
mod checks;
mod commit;
mod demo;
mod drain;
mod duration;
mod exec_successor;
mod exit;
mod health;
mod hold_fds;
mod journal;
mod kvd;
mod link;
mod load;
mod lock;
mod logging;
mod out;
#[cfg(test)]
mod pages;
mod phase;
mod progress;
mod reuse;
mod seal;
mod settle;
mod status;
mod step;
mod summary;
mod swap;
mod words;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use exit::Exit;

/// Replace the binary of a running stateful daemon, with no connection dropped and no write lost
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = exit::after_help(EXAMPLES))]
struct Cli {
    /// Say what goes on, on standard error; RUST_LOG chooses more finely
    #[arg(long, global = true, display_order = 100)]
    verbose: bool,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "
  handoff kvd --data-dir data &                   # a daemon to try it on
  export HANDOFF_CONTROL=data/control
  handoff swap ./handoff-next                     # replace its binary, with the same arguments
  handoff swap --bake 5m ./handoff-next           # and keep the way back open for five minutes
  handoff status                                  # what is running now";

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Swap(swap::Args),
    Status(status::Args),
    Commit(commit::Args),
    Abort(abort::Args),
    HoldFds(hold_fds::Args),
    Lock(lock::Args),
    Drain(drain::Args),
    Seal(seal::Args),
    ExecSuccessor(exec_successor::Args),
    Journal(journal::Args),
    Kvd(kvd::Args),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Demo(_) => "demo",
            Self::Swap(_) => "swap",
            Self::Status(_) => "status",
            Self::Commit(_) => "commit",
            Self::Abort(_) => "abort",
            Self::HoldFds(_) => "hold-fds",
            Self::Lock(_) => "lock",
            Self::Drain(_) => "drain",
            Self::Seal(_) => "seal",
            Self::ExecSuccessor(_) => "exec-successor",
            Self::Journal(_) => "journal",
            Self::Kvd(_) => "kvd",
        }
    }

    fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Demo(args) => demo::run(args),
            Self::Swap(args) => swap::run(args),
            Self::Status(args) => status::run(&args),
            Self::Commit(args) => commit::run(&args),
            Self::Abort(args) => abort::run(&args),
            Self::HoldFds(args) => hold_fds::run(&args),
            Self::Lock(args) => lock::run(&args),
            Self::Drain(args) => drain::run(&args),
            Self::Seal(args) => seal::run(&args),
            Self::ExecSuccessor(args) => exec_successor::run(&args),
            Self::Journal(args) => journal::run(args),
            Self::Kvd(args) => kvd::run(args),
        }
    }
}

fn main() -> ExitCode {
    let words = words::end_options(&Cli::command(), std::env::args_os().collect());
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(e) => return explain_usage(&e).into(),
    };
    if cli.verbose {
        logging::be_verbose();
    }
    let name = cli.command.name();
    cli.command.run().unwrap_or_else(|e| exit::fatal(name, &e)).into()
}

/// Prints help, or what is wrong with the command line.
fn explain_usage(e: &clap::Error) -> Exit {
    // There is nowhere to say that standard error is closed.
    let _ = e.print();
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
