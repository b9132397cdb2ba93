//! A look at the links that follow: what is wrong with them is found before the daemon is asked for anything.

use std::ffi::OsString;
use std::iter::once;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::exit::Exit;
use crate::link::Next;
use crate::{Command, exec_successor, out};

/// Checks the command line of a link that follows, and of those behind it: their programs are there and can be run, their options
/// are known.
///
/// # Errors
///
/// The exit code, after it was said what is wrong with which link.
pub fn check(command: &str, args: &[OsString]) -> Result<(), Exit> {
    let words = once("handoff".into()).chain(args.iter().cloned()).collect();
    match crate::parse(words) {
        Ok(link) => check_command(command, &link),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(e) if is_said_on_the_way(&e) => Ok(()),
        Err(e) => {
            let text = e.to_string();
            let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let link = args.first().map_or("handoff".into(), |name| format!("handoff {}", name.display()));
            out::say(
                command,
                "fatal",
                &format!("unable to go on with the chain: `{link}`, which follows: {why}"),
            );
            Err(Exit::Usage)
        }
    }
}

/// Options that a link before theirs gives them, in variables: `lock` the data directory, for one.
const IN_VARIABLES: [&str; 3] = ["--control ", "--data-dir ", "--journal "];

/// Whether nothing is missing but what may come with the chain.
fn is_said_on_the_way(e: &clap::Error) -> bool {
    let Some(ContextValue::Strings(missing)) = e.get(ContextKind::InvalidArg) else { return false };
    let is_variable = |option: &String| IN_VARIABLES.iter().any(|name| option.starts_with(name));
    e.kind() == ErrorKind::MissingRequiredArgument && missing.iter().all(is_variable)
}

fn check_command(command: &str, link: &Command) -> Result<(), Exit> {
    match link {
        Command::ExecSuccessor(args) => exec_successor::check(command, args),
        link => link.next().map_or(Ok(()), |next| next.open_ahead(command).map(drop)),
    }
}

impl Command {
    /// Returns what follows, where something may.
    fn next(&self) -> Option<&Next> {
        match self {
            Self::Status(args) => Some(&args.next),
            Self::Commit(args) => Some(&args.next),
            Self::Abort(args) => Some(&args.next),
            Self::HoldFds(args) => Some(&args.next),
            Self::Lock(args) => Some(&args.next),
            Self::Drain(args) => Some(&args.next),
            Self::Seal(args) => Some(&args.next),
            Self::Journal(args) => args.next(),
            Self::Demo(_)
            | Self::Swap(_)
            | Self::Supervise(_)
            | Self::Trigger(_)
            | Self::Doctor(_)
            | Self::ExecSuccessor(_)
            | Self::Wrap(_)
            | Self::Kvd(_) => None,
        }
    }
}
