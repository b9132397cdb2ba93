//! The exit codes of every command, and how a failure is said.

use handoff::Error;
use handoff::proto::Reason;
use handoff::supervisor::Outcome;

use crate::{examples, out};

/// What a message about a failure begins with.
const UNABLE: &str = "unable to ";

/// How wide an example in a help text may be, in columns: as wide as the help, less the indentation.
const EXAMPLE_WIDTH: usize = 98;

/// What a command's exit code means. The same for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The answer was no, and nothing changed: refused, busy, or the lock is held.
    Refused = 1,
    /// It was tried out, and a promise was not kept.
    CheckFailed = 2,
    /// The handoff was rolled back, and the incumbent serves.
    RolledBack = 3,
    /// It took too long and was rolled back.
    TimedOut = 4,
    /// It is not known how it ended.
    Undecided = 5,
    /// Nothing serves, and a person has to look.
    NothingServing = 6,
    /// The command line is wrong.
    Usage = 100,
    /// A system call failed.
    System = 111,
    /// The program is there and cannot be run.
    NotExecutable = 126,
    /// The program was not found.
    NotFound = 127,
}

impl Exit {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Done,
        Self::Refused,
        Self::CheckFailed,
        Self::RolledBack,
        Self::TimedOut,
        Self::Undecided,
        Self::NothingServing,
        Self::Usage,
        Self::System,
        Self::NotExecutable,
        Self::NotFound,
    ];
}

/// As an error it is one of which everything has been said already.
impl std::error::Error for Exit {}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.meaning())
    }
}

impl Exit {
    /// Returns what the table says.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => {
                "the answer was no and nothing changed: refused, busy, lock held; status: nobody serves"
            }
            Self::CheckFailed => "the demonstration ran, and a promise was not kept",
            Self::RolledBack => "rolled back: the incumbent serves",
            Self::TimedOut => "it took too long and was rolled back: the incumbent serves",
            Self::Undecided => "it is not known how it ended: see handoff status",
            Self::NothingServing => "nothing serves: a person has to look",
            Self::Usage => "the command line is wrong",
            Self::System => "a system call failed",
            Self::NotExecutable => "the program was found and cannot be run",
            Self::NotFound => "the program was not found",
        }
    }

    /// Returns the code for how a handoff ended.
    pub fn for_outcome(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Committed | Outcome::Retired => Self::Done,
            Outcome::Refused(_) => Self::Refused,
            Outcome::RolledBack(Reason::Deadline | Reason::NotWarm | Reason::SuccessorHung) => Self::TimedOut,
            Outcome::RolledBack(_) => Self::RolledBack,
            Outcome::NothingServing(_) => Self::NothingServing,
            Outcome::Undecided(_) => Self::Undecided,
        }
    }

    /// Returns the code for what stopped a command.
    pub fn for_error(e: &anyhow::Error) -> Self {
        let Some(e) = e.downcast_ref::<Error>() else { return Self::System };
        match e {
            Error::Locked { .. }
            | Error::LockReplaced { .. }
            | Error::NetworkFileSystem { .. }
            | Error::NewerFormat { .. }
            | Error::Foreign { .. }
            | Error::Busy { .. }
            | Error::Refused { .. }
            | Error::Aborted { .. }
            // How a handoff ended is an outcome: this is a peer that did not answer.
            | Error::PeerLost { .. }
            | Error::TimedOut { .. } => Self::Refused,
            Error::Damaged { .. } => Self::NothingServing,
            Error::Invalid { .. } => Self::Usage,
            _ => Self::System,
        }
    }
}

/// Says on standard error what stopped a command, in one write of one line, and returns the exit code.
pub fn fatal(command: &str, e: &anyhow::Error) -> Exit {
    if let Some(exit) = e.downcast_ref::<Exit>() {
        return *exit;
    }
    fatal_as(command, e, Exit::for_error(e))
}

/// As [`fatal`], where the command knows better what the error means.
pub fn fatal_as(command: &str, e: &anyhow::Error, exit: Exit) -> Exit {
    out::say(command, "fatal", &message(e));
    exit
}

/// Gives an error the verb phrase that its own text lacks.
pub fn attempt(e: Error, phrase: impl Into<String>) -> anyhow::Error {
    if e.to_string().starts_with(UNABLE) { e.into() } else { anyhow::Error::from(e).context(phrase.into()) }
}

/// Returns the end of a command's help: its examples, and the one table of exit codes.
pub fn after_help(examples: &str) -> String {
    let table: Vec<String> =
        Exit::ALL.iter().map(|exit| format!("  {:>3}  {}", *exit as u8, exit.meaning())).collect();
    let examples: Vec<String> =
        examples::shown(examples, EXAMPLE_WIDTH).iter().map(|line| format!("  {line}")).collect();
    format!("EXAMPLES\n{}\n\nEXIT CODES\n{}", examples.join("\n"), table.join("\n"))
}

/// The library's errors say their own cause, so what is below them is not repeated.
fn message(e: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in e.chain() {
        parts.push(cause.to_string());
        if cause.is::<Error>() {
            break;
        }
    }
    let line = parts.join(": ");
    match e.is::<Error>() && parts.len() == 1 {
        _ if line.starts_with(UNABLE) => line,
        // Without a context nobody said what was attempted.
        true => format!("{UNABLE}go on: {line}"),
        false => format!("{UNABLE}{line}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;

    use anyhow::Context;

    use super::*;

    #[test]
    fn a_failure_is_one_line_that_says_each_cause_once() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let e = Err::<(), _>(Error::io("read kv.log", source)).context("open the data").unwrap_err();
        assert_eq!(message(&e), "unable to open the data: unable to read kv.log: entity not found");
        let e = anyhow::Error::from(Error::io("bind", io::Error::from(io::ErrorKind::AddrInUse)));
        assert_eq!(message(&e), "unable to bind: address in use");
    }

    #[test]
    fn the_table_has_every_code_once_in_order() {
        let codes = Exit::ALL.map(|exit| exit as u8);
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 100, 111, 126, 127]);
    }

    #[test]
    fn an_error_keeps_its_code_under_a_context() {
        let locked = Error::Locked { path: "x".into(), holders: Vec::new() };
        assert_eq!(Exit::for_error(&anyhow::Error::from(locked).context("take the lock")), Exit::Refused);
        assert_eq!(Exit::for_error(&anyhow::anyhow!("anything")), Exit::System);
    }
}
