//! The `handoff` command: replaces the binary of a running stateful daemon.
#![cfg_attr(not(test), no_main)]

mod abort;
mod ahead;
mod checks;
mod commit;
mod demo;
mod doctor;
mod drain;
mod duration;
mod examples;
mod exec_successor;
mod exit;
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
mod supervise;
mod swap;
mod trigger;
mod words;
mod wrap;

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::Exit;

/// Replace the binary of a running stateful daemon, with no connection dropped and no write lost
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = exit::after_help(EXAMPLES))]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Root {
    /// Say what goes on, on standard error; RUST_LOG chooses more finely
    #[arg(long, global = true, display_order = 100)]
    verbose: bool,
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
    Supervise(supervise::Args),
    Trigger(trigger::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Commit(commit::Args),
    Abort(abort::Args),
    HoldFds(hold_fds::Args),
    Lock(lock::Args),
    Drain(drain::Args),
    Seal(seal::Args),
    ExecSuccessor(exec_successor::Args),
    Journal(journal::Args),
    Wrap(wrap::Args),
    Kvd(kvd::Args),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Demo(_) => "demo",
            Self::Swap(_) => "swap",
            Self::Supervise(_) => "supervise",
            Self::Trigger(_) => "trigger",
            Self::Status(_) => "status",
            Self::Doctor(_) => "doctor",
            Self::Commit(_) => "commit",
            Self::Abort(_) => "abort",
            Self::HoldFds(_) => "hold-fds",
            Self::Lock(_) => "lock",
            Self::Drain(_) => "drain",
            Self::Seal(_) => "seal",
            Self::ExecSuccessor(_) => "exec-successor",
            Self::Journal(_) => "journal",
            Self::Wrap(_) => "wrap",
            Self::Kvd(_) => "kvd",
        }
    }

    fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Demo(args) => demo::run(args),
            Self::Swap(args) => swap::run(args),
            Self::Supervise(args) => supervise::run(args),
            Self::Trigger(args) => trigger::run(args),
            Self::Status(args) => status::run(&args),
            Self::Doctor(args) => doctor::run(&args),
            Self::Commit(args) => commit::run(&args),
            Self::Abort(args) => abort::run(&args),
            Self::HoldFds(args) => hold_fds::run(&args),
            Self::Lock(args) => lock::run(&args),
            Self::Drain(args) => drain::run(&args),
            Self::Seal(args) => seal::run(&args),
            Self::ExecSuccessor(args) => exec_successor::run(&args),
            Self::Journal(args) => journal::run(args),
            Self::Wrap(args) => wrap::run(args),
            Self::Kvd(args) => kvd::run(args),
        }
    }

    /// Defines one command alone.
    fn define(name: &OsStr) -> Option<clap::Command> {
        let (name, augment) = DEFINITIONS.iter().find(|(other, _)| name == *other)?;
        Some(augment(clap::Command::new(name)))
    }
}

/// Adds a command's arguments to its definition.
type Augment = fn(clap::Command) -> clap::Command;

const DEFINITIONS: [(&str, Augment); 16] = [
    ("demo", demo::Args::augment_args),
    ("swap", swap::Args::augment_args),
    ("supervise", supervise::Args::augment_args),
    ("trigger", trigger::Args::augment_args),
    ("status", status::Args::augment_args),
    ("doctor", doctor::Args::augment_args),
    ("commit", commit::Args::augment_args),
    ("abort", abort::Args::augment_args),
    ("hold-fds", hold_fds::Args::augment_args),
    ("lock", lock::Args::augment_args),
    ("drain", drain::Args::augment_args),
    ("seal", seal::Args::augment_args),
    ("exec-successor", exec_successor::Args::augment_args),
    ("journal", journal::Args::augment_args),
    ("wrap", wrap::Args::augment_args),
    ("kvd", kvd::Args::augment_args),
];

#[cfg(not(test))]
handoff::program!(|| main() as u8);

fn main() -> Exit {
    // First of all: what is not touched in a holder is not in its memory.
    if let Some(exit) = hold_fds::resume() {
        return exit;
    }
    let words = named(std::env::args_os().collect());
    if let Some(args) = lock::Args::plain(&words) {
        return lock::run(&args).unwrap_or_else(|e| exit::fatal("lock", &e));
    }
    let command = match parse(words) {
        Ok(command) => command,
        Err(e) => return explain_usage(&e),
    };
    let name = command.name();
    command.run().unwrap_or_else(|e| exit::fatal(name, &e))
}

/// Under the name that integrators know it by, this is one command.
fn named(mut words: Vec<OsString>) -> Vec<OsString> {
    let is_version = words.get(1).is_some_and(|word| word == "--version" || word == "-V");
    if words.first().is_some_and(|name| supervise::is_supervisor(name)) && !is_version {
        words.insert(1, "supervise".into());
    }
    words
}

/// Reads a command line, its first word being our own name.
fn parse(words: Vec<OsString>) -> Result<Command, clap::Error> {
    let mut definition = definition(words.get(1).map(OsString::as_os_str));
    let parsed = definition
        .try_get_matches_from_mut(words::end_options(&definition, words))
        .and_then(|matches| Ok((Root::from_arg_matches(&matches)?, Command::from_arg_matches(&matches)?)));
    let (root, command) = parsed.map_err(|e| e.format(&mut definition))?;
    if root.verbose {
        logging::be_verbose();
    }
    Ok(command)
}

/// Returns what the command line is parsed by. A link of a chain must start fast: if the first word names a command, the
/// others are not defined.
fn definition(first: Option<&OsStr>) -> clap::Command {
    match first.and_then(Command::define) {
        Some(command) => Root::command().subcommand(command),
        None => Command::augment_subcommands(Root::command()),
    }
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        definition(None).debug_assert();
    }

    #[test]
    fn a_command_that_is_defined_alone_is_the_same() {
        let mut whole = definition(None);
        whole.build();
        let names: Vec<String> =
            whole.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert!(names.iter().any(|name| name == "lock"));
        for name in names.iter().filter(|name| *name != "help") {
            assert!(Command::define(OsStr::new(name)).is_some(), "{name}");
            let mut alone = definition(Some(OsStr::new(name)));
            alone.build();
            let help =
                |of: &mut clap::Command| of.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            assert_eq!(help(&mut alone), help(&mut whole));
        }
    }
}
