//! A client of a supervisor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::wire::{Answer, Request, Spawn, State, Swap};
use crate::channel::{Limits, Lines};
use crate::error::{Error, Result};
use crate::proto::party::{ProcessId, Tree};
use crate::supervisor::HandoffOutcome;
use crate::sys::poll::{self, Want};
use crate::sys::process::PidFd;
use crate::sys::unix;

/// What a client bears with.
const LIMITS: Limits = Limits { line: 1 << 20, fds: 1, backlog: 1 << 20 };

/// A connection to a supervisor's trigger socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    lines: Lines,
}

/// What comes before the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The request waits for what goes on, behind so many others.
    Queued(usize),
    /// The swap has begun.
    Started,
}

impl Client {
    /// Connects to the supervisor at a path.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or this user may not connect.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let socket =
            unix::connect_asking(path, "is the supervisor running, and is this its trigger socket?")?;
        Ok(Self { path: path.to_owned(), lines: Lines::new(socket, LIMITS) })
    }

    /// Asks for a swap, and waits until it has ended, or for the deadline: the swap goes on without its client.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] and [`Error::Refused`] where nothing was begun; [`Error::PeerLost`] where the supervisor is gone, and
    /// [`Error::TimedOut`].
    pub fn swap(
        &mut self,
        swap: Swap,
        deadline: Option<Instant>,
        told: &mut dyn FnMut(News),
    ) -> Result<HandoffOutcome> {
        self.send(&Request::Swap(swap), &[])?;
        loop {
            match self.answer("the verdict", deadline)?.0 {
                Answer::Queued { ahead } => told(News::Queued(ahead)),
                Answer::Started {} => told(News::Started),
                Answer::Verdict(ended) => return Ok(HandoffOutcome::from(*ended)),
                other => return Err(unexpected("a verdict", other)),
            }
        }
    }

    /// Asks the supervisor to become its program anew, and returns the new one's version.
    ///
    /// # Errors
    ///
    /// As [`swap`](Self::swap): what refuses goes on as it was.
    pub fn reexec(
        &mut self,
        queue: bool,
        deadline: Option<Instant>,
        told: &mut dyn FnMut(News),
    ) -> Result<String> {
        self.send(&Request::Reexec { queue }, &[])?;
        loop {
            match self.answer("the new program to answer", deadline)?.0 {
                Answer::Queued { ahead } => told(News::Queued(ahead)),
                Answer::Reexecuted { version } => return Ok(version),
                other => return Err(unexpected("that it is another program", other)),
            }
        }
    }

    /// Asks how things stand.
    ///
    /// # Errors
    ///
    /// As [`swap`](Self::swap).
    pub fn status(&mut self, deadline: Instant) -> Result<State> {
        self.send(&Request::Status {}, &[])?;
        match self.answer("the supervisor's state", Some(deadline))?.0 {
            Answer::Supervising(state) => Ok(*state),
            other => Err(unexpected("a state", other)),
        }
    }

    /// Has a successor started that speaks over this channel.
    ///
    /// # Errors
    ///
    /// As [`swap`](Self::swap): there is no successor then.
    pub fn spawn(
        &mut self,
        spawn: Spawn,
        channel: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<(ProcessId, Tree, PidFd)> {
        self.send(&Request::Spawn(spawn), &[channel])?;
        match self.answer("the successor to be started", Some(deadline))? {
            (Answer::Spawned { process, tree }, fds) => {
                let [pidfd] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| Error::Protocol {
                    expected: "the successor's pidfd".to_owned(),
                    got: format!("{} descriptors", fds.len()),
                })?;
                let pidfd = PidFd::from_fd(pidfd).map_err(|e| Error::io("use the successor's pidfd", e))?;
                Ok((process, tree, pidfd))
            }
            (other, _) => Err(unexpected("a successor", other)),
        }
    }

    fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut line =
            serde_json::to_vec(request).map_err(|e| Error::io("write a request", std::io::Error::from(e)))?;
        line.push(b'\n');
        self.lines.send(line, fds)
    }

    fn answer(&mut self, waiting_for: &str, deadline: Option<Instant>) -> Result<(Answer, Vec<OwnedFd>)> {
        loop {
            self.lines.flush()?;
            if let Some((line, fds)) = self.lines.receive()? {
                let answer = serde_json::from_slice(&line).map_err(|e| Error::Protocol {
                    expected: "a supervisor's answer".to_owned(),
                    got: e.to_string(),
                })?;
                return Ok((answer, fds));
            }
            let want = if self.lines.wants_write() { Want::Both } else { Want::Read };
            if !poll::wait_one(self.lines.as_fd(), want, deadline)? {
                let waiting_for = format!("{waiting_for} (the supervisor at {})", self.path.display());
                return Err(Error::TimedOut { waiting_for });
            }
        }
    }
}

fn unexpected(expected: &str, got: Answer) -> Error {
    match got {
        Answer::Refused { reason } => Error::Refused { reason },
        Answer::Busy { doing, handoff, age_ms } => {
            Error::Busy { handoff: handoff.unwrap_or_default(), phase: doing, age_ms }
        }
        got => Error::Protocol { expected: expected.to_owned(), got: format!("{got:?}") },
    }
}
