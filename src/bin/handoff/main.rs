//! The `handoff` command: replaces the binary of a running stateful daemon.

mod demo;
mod exit;
mod kvd;
mod load;
mod logging;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use exit::Exit;

/// Replace the binary of a running stateful daemon, with no connection dropped and no write lost
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Kvd(kvd::Args),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Demo(_) => "demo",
            Self::Kvd(_) => "kvd",
        }
    }

    fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Demo(args) => demo::run(args),
            Self::Kvd(args) => kvd::run(args),
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return explain_usage(&e).into(),
    };
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
