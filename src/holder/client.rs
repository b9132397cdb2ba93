//! A client of a holder.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Answer, CLIENT, GIVE_MAX, Held, LINE_MAX, Request};
use crate::channel::Lines;
use crate::error::{Error, Result};
use crate::sys::poll::{self, Want};
use crate::sys::{process, unix};

/// Between two attempts to reach a holder that is just becoming itself anew, or whose queue is full.
const PAUSE: Duration = Duration::from_millis(1);

/// A connection to a holder.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    lines: Lines,
}

impl Client {
    /// Connects to the holder at a path.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or another user who is not root does.
    pub fn connect(path: impl AsRef<Path>, deadline: Instant) -> Result<Self> {
        let path = path.as_ref();
        loop {
            match unix::connect_to(path) {
                Ok(socket) => return Self::greet(path, socket),
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn greet(path: &Path, socket: OwnedFd) -> Result<Self> {
        let peer = process::peer_cred(socket.as_fd())
            .map_err(|e| Error::io(format!("learn who listens at {}", path.display()), e))?;
        let own = unix::effective_uid();
        if peer.uid != own && peer.uid != 0 && own != 0 {
            let reason =
                format!("the holder at {} belongs to user {}, this is user {own}", path.display(), peer.uid);
            return Err(Error::Refused { reason });
        }
        Ok(Self { path: path.to_owned(), lines: Lines::new(socket, CLIENT) })
    }

    /// Returns what the holder has.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where this user may not ask; it does not answer in time.
    pub fn list(&mut self, deadline: Instant) -> Result<Vec<Held>> {
        let (mut held, mut from) = (vec![], 0);
        loop {
            let (answer, _) = self.ask(&Request::List { from }, &[], deadline)?;
            let Answer::Held { sockets, next } = answer else { return Err(unexpected("held", &answer)) };
            held.extend(sockets);
            match next {
                Some(next) if next > from => from = next,
                _ => return Ok(held),
            }
        }
    }

    /// Returns copies of sockets, in the order of these names.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where there is none of a name, or this user may not have it; it does not answer in time.
    pub fn give(&mut self, names: &[String], deadline: Instant) -> Result<Vec<(String, OwnedFd)>> {
        let mut given: Vec<(String, OwnedFd)> = vec![];
        while given.len() < names.len() {
            let wanted = batch(&names[given.len()..]);
            let (answer, fds) = self.ask(&Request::Give { names: wanted.to_vec() }, &[], deadline)?;
            let Answer::Given { names: got } = answer else { return Err(unexpected("given", &answer)) };
            if got.is_empty() || got.len() != fds.len() || !wanted.starts_with(&got) {
                let expected = format!("a descriptor for each of {}", wanted.join(", "));
                let got = format!("{} for {}", fds.len(), got.join(", "));
                return Err(Error::Protocol { expected, got });
            }
            given.extend(got.into_iter().zip(fds));
        }
        Ok(given)
    }

    /// Stores a copy of a socket; returns whether another one of this name was replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where there is another one of this name and it is not to be replaced, or this user may not; it does not
    /// answer in time.
    pub fn store(
        &mut self,
        name: &str,
        fd: BorrowedFd<'_>,
        replace: bool,
        deadline: Instant,
    ) -> Result<bool> {
        let request = Request::Store { name: name.to_owned(), replace };
        match self.ask(&request, &[fd], deadline)?.0 {
            Answer::Stored { replaced } => Ok(replaced),
            answer => Err(unexpected("stored", &answer)),
        }
    }

    /// Makes the holder close a socket.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where there is none of this name, or this user may not; it does not answer in time.
    pub fn forget(&mut self, name: &str, deadline: Instant) -> Result<()> {
        match self.ask(&Request::Forget { name: name.to_owned() }, &[], deadline)?.0 {
            Answer::Forgotten {} => Ok(()),
            answer => Err(unexpected("forgotten", &answer)),
        }
    }

    /// Asks again where the holder became itself anew meanwhile: what was done once is the same when it is done twice.
    fn ask(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(Answer, Vec<OwnedFd>)> {
        loop {
            match self.try_ask(request, fds, deadline) {
                Err(e) if is_gone(&e) && Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                    *self = Self::connect(&self.path, deadline)?;
                }
                Ok((Answer::Refused { reason }, _)) => return Err(Error::Refused { reason }),
                done => return done,
            }
        }
    }

    fn try_ask(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(Answer, Vec<OwnedFd>)> {
        self.lines.send(super::line(request)?, fds)?;
        self.lines.deliver("a request", deadline)?;
        loop {
            if let Some((line, fds)) = self.lines.receive()? {
                let answer = serde_json::from_slice(&line).map_err(|e| Error::Protocol {
                    expected: "a holder's answer".to_owned(),
                    got: e.to_string(),
                })?;
                return Ok((answer, fds));
            }
            if !poll::wait_one(self.lines.as_fd(), Want::Read, Some(deadline))? {
                let waiting_for = format!("the holder at {} to answer", self.path.display());
                return Err(Error::TimedOut { waiting_for });
            }
        }
    }
}

/// Returns as many of the names as fit a request, at least one.
fn batch(names: &[String]) -> &[String] {
    let mut bytes = 0;
    let fits = |name: &&String| {
        // With quotes and a comma, and a backslash before each character at worst.
        bytes += 2 * name.len() + 3;
        bytes <= LINE_MAX / 2
    };
    let count = names.iter().take(GIVE_MAX).take_while(fits).count();
    &names[..count.max(1)]
}

fn is_gone(e: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    match e {
        Error::PeerLost { .. } => true,
        Error::Io { source, .. } => matches!(source.kind(), BrokenPipe | ConnectionReset),
        _ => false,
    }
}

fn unexpected(expected: &str, got: &Answer) -> Error {
    Error::Protocol { expected: expected.to_owned(), got: format!("{got:?}") }
}
