//! The exit codes of every command, and how a failure is said.

use std::process::ExitCode;

use handoff::Error;

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

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Returns the code for what stopped a command.
    pub fn for_error(e: &anyhow::Error) -> Self {
        let Some(e) = e.downcast_ref::<Error>() else { return Self::System };
        match e {
            Error::Locked { .. }
            | Error::LockReplaced { .. }
            | Error::NetworkFileSystem { .. }
            | Error::Busy { .. }
            | Error::Refused { .. }
            | Error::Aborted { .. } => Self::Refused,
            Error::TimedOut { .. } => Self::TimedOut,
            Error::Damaged { .. } => Self::NothingServing,
            Error::Invalid { .. } => Self::Usage,
            _ => Self::System,
        }
    }
}

/// Says on standard error what stopped a command, in one write of one line, and returns the exit code.
pub fn fatal(command: &str, e: &anyhow::Error) -> Exit {
    eprint!("{}", message(command, e));
    Exit::for_error(e)
}

/// The library's errors say their own cause, so what is below them is not repeated.
fn message(command: &str, e: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in e.chain() {
        parts.push(cause.to_string());
        if cause.is::<Error>() {
            break;
        }
    }
    let line = parts.join(": ").replace('\n', " ");
    let verb = if line.starts_with("unable to ") { "" } else { "unable to " };
    format!("handoff {command}: fatal: {verb}{line}\n")
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
        assert_eq!(
            message("kvd", &e),
            "handoff kvd: fatal: unable to open the data: unable to read kv.log: entity not found\n"
        );
        let e = anyhow::Error::from(Error::io("bind", io::Error::from(io::ErrorKind::AddrInUse)));
        assert_eq!(message("kvd", &e), "handoff kvd: fatal: unable to bind: address in use\n");
    }

    #[test]
    fn an_error_keeps_its_code_under_a_context() {
        let locked = Error::Locked { path: "x".into(), holders: Vec::new() };
        assert_eq!(Exit::for_error(&anyhow::Error::from(locked).context("take the lock")), Exit::Refused);
        assert_eq!(Exit::for_error(&anyhow::anyhow!("anything")), Exit::System);
    }
}
