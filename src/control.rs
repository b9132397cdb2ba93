//! A client of a daemon's control socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::proto::wire::{Hello, Message, Report, Status};
use crate::role::{check_hello, own_hello};
use crate::sys::{process, unix};

/// Between two attempts to connect to a socket whose queue is full, or whose process has just been replaced.
const PAUSE: Duration = Duration::from_millis(1);

/// Returns whether connecting failed because nobody listens at the path.
pub fn is_absent(e: &Error) -> bool {
    let absent = |kind| matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    matches!(e, Error::Io { source, .. } if absent(source.kind()))
}

/// A connection to a daemon's control socket, after both sides said hello.
#[derive(Debug)]
pub struct Control {
    channel: Channel,
    hello: Hello,
    /// Verdicts that came before the answer to a question: whoever watches is told unasked.
    told: VecDeque<Report>,
}

impl Control {
    /// Connects and says hello.
    ///
    /// # Errors
    ///
    /// Nothing listens there, it is another user's, speaks no common version or does not answer in time.
    pub fn connect(path: impl AsRef<Path>, actor: &str, deadline: Instant) -> Result<Self> {
        loop {
            match Self::try_connect(path.as_ref(), actor, deadline) {
                // It has just handed over: whoever the path leads to now will answer.
                Err(Error::PeerLost { .. }) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                connected => return connected,
            }
        }
    }

    fn try_connect(path: &Path, actor: &str, deadline: Instant) -> Result<Self> {
        let socket = unix::connect_to(path)?;
        let peer = process::peer_cred(socket.as_fd())
            .map_err(|e| Error::io(format!("learn who listens at {}", path.display()), e))?;
        let own = unix::effective_uid();
        if peer.uid != own && peer.uid != 0 && own != 0 {
            let reason = format!("{} belongs to user {}, this is user {own}", path.display(), peer.uid);
            return Err(Error::Refused { reason });
        }
        let mut channel = Channel::new(socket);
        let lost = |e| match e {
            // EPIPE and the like: it went away between accepting and answering.
            Error::Io { .. } => Error::PeerLost { waiting_for: "hello".to_owned() },
            e => e,
        };
        channel.deliver(&Message::Hello(own_hello(actor, "")?), &[], deadline).map_err(lost)?;
        let waiting_for = format!("the daemon at {} to say hello", path.display());
        let hello = match channel.wait(&waiting_for, deadline)? {
            (Message::Refused { reason }, _) => return Err(Error::Refused { reason }),
            (message, _) => check_hello(message)?,
        };
        Ok(Self { channel, hello, told: VecDeque::new() })
    }

    /// Returns what the daemon said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks how the daemon is doing.
    ///
    /// # Errors
    ///
    /// It is gone, says something else, or does not answer in time.
    pub fn status(&mut self, deadline: Instant) -> Result<Status> {
        match self.ask(&Message::Status {}, deadline)? {
            (Message::StatusReport(status), _) => Ok(*status),
            (other, _) => Err(unexpected("status-report", &other)),
        }
    }

    /// Fetches copies of the daemon's listening sockets, with their names.
    ///
    /// # Errors
    ///
    /// As [`status`](Self::status).
    pub fn listeners(&mut self, deadline: Instant) -> Result<Vec<(String, OwnedFd)>> {
        let mut answer = self.ask(&Message::Listeners {}, deadline)?;
        let mut listeners = vec![];
        loop {
            let (Message::ListenerList(list), fds) = answer else {
                return Err(unexpected("listener-list", &answer.0));
            };
            if list.names.len() != fds.len() {
                let expected = format!("{} descriptors", list.names.len());
                return Err(Error::Protocol { expected, got: fds.len().to_string() });
            }
            listeners.extend(list.names.into_iter().zip(fds));
            if list.more == 0 {
                return Ok(listeners);
            }
            answer = self.answer("the rest of the listeners", deadline)?;
        }
    }

    /// Fetches copies of the daemon's standard output and error.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where it has none, or is of a release that does not give them; otherwise as
    /// [`status`](Self::status).
    pub fn stdio(&mut self, deadline: Instant) -> Result<[OwnedFd; 2]> {
        match self.ask(&Message::Stdio {}, deadline)? {
            (Message::StdioCopies {}, fds) => fds.try_into().map_err(|fds: Vec<OwnedFd>| Error::Protocol {
                expected: "2 descriptors".to_owned(),
                got: fds.len().to_string(),
            }),
            (other, _) => Err(unexpected("stdio-copies", &other)),
        }
    }

    /// Asks to keep a successor that is on trial.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where none is; otherwise as [`status`](Self::status).
    pub fn commit(&mut self, deadline: Instant) -> Result<()> {
        self.accepted(&Message::Commit {}, deadline)
    }

    /// Asks to undo the handoff in progress, or the trial.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where there is none or it is too late; otherwise as [`status`](Self::status).
    pub fn abort(&mut self, reason: &str, deadline: Instant) -> Result<()> {
        self.accepted(&Message::Abort { reason: reason.to_owned(), cause: None }, deadline)
    }

    /// Asks to be told how the handoff in progress, or the next one, ends.
    ///
    /// # Errors
    ///
    /// As [`status`](Self::status).
    pub fn watch(&mut self, deadline: Instant) -> Result<()> {
        self.accepted(&Message::Watch { guards: false }, deadline)
    }

    /// As [`watch`](Self::watch), and a trial is undone when this connection closes before it ends.
    ///
    /// # Errors
    ///
    /// As [`status`](Self::status).
    pub fn watch_and_guard(&mut self, deadline: Instant) -> Result<()> {
        self.accepted(&Message::Watch { guards: true }, deadline)
    }

    /// Waits for the verdict after [`watch`](Self::watch).
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] when the daemon ends without one, or the deadline passed.
    pub fn verdict(&mut self, deadline: Instant) -> Result<Report> {
        loop {
            if let Some(report) = self.told.pop_front() {
                return Ok(report);
            }
            if let (Message::Verdict(report), _) = self.channel.wait("the verdict", deadline)? {
                self.told.push_back(report);
            }
        }
    }

    pub(crate) fn into_channel(self) -> Channel {
        self.channel
    }

    fn accepted(&mut self, message: &Message, deadline: Instant) -> Result<()> {
        match self.ask(message, deadline)? {
            (Message::Accepted {}, _) => Ok(()),
            (other, _) => Err(unexpected("accepted", &other)),
        }
    }

    fn ask(&mut self, message: &Message, deadline: Instant) -> Result<(Message, Vec<OwnedFd>)> {
        self.channel.deliver(message, &[], deadline)?;
        match self.answer(&format!("the answer to {}", message.name()), deadline)? {
            (Message::Refused { reason }, _) => Err(Error::Refused { reason }),
            answer => Ok(answer),
        }
    }

    fn answer(&mut self, waiting_for: &str, deadline: Instant) -> Result<(Message, Vec<OwnedFd>)> {
        loop {
            match self.channel.wait(waiting_for, deadline)? {
                (Message::Verdict(report), _) => self.told.push_back(report),
                answer => return Ok(answer),
            }
        }
    }
}

fn unexpected(expected: &str, got: &Message) -> Error {
    Error::Protocol { expected: expected.to_owned(), got: got.name().to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::Verdict;
    use crate::proto::wire::ListenerList;

    #[test]
    fn a_verdict_that_comes_before_an_answer_is_kept_for_who_waits_for_it() {
        let (ours, theirs) = unix::pair().unwrap();
        let mut daemon = Channel::new(theirs);
        let hello = own_hello("test", "").unwrap();
        let mut control = Control { channel: Channel::new(ours), hello, told: VecDeque::new() };
        let report =
            Report { handoff: "h1".to_owned(), verdict: Verdict::Committed, phases: vec![], served: None };
        daemon.send(&Message::Verdict(report.clone()), &[]).unwrap();
        daemon.send(&Message::ListenerList(ListenerList { names: vec![], more: 0 }), &[]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(control.listeners(deadline).unwrap().is_empty());
        assert_eq!(control.verdict(deadline).unwrap(), report);
    }
}
