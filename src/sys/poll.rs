//! Waiting for descriptors, with a deadline that is kept to the microsecond.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// That it can be read, or is closed.
    Read,
    /// That it can be written, or is closed.
    Write,
    /// Either.
    Both,
}

impl Want {
    fn flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::POLLIN,
            Self::Write => PollFlags::POLLOUT,
            Self::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
        }
    }
}

/// Waits until one of the descriptors is ready, and returns for each whether it is; all `false` at the deadline.
///
/// `ppoll(2)` takes nanoseconds; the millisecond rounding of `poll(2)` would end a wait early or late.
///
/// # Errors
///
/// What the kernel says, but for EINTR, which is waited through.
pub fn wait(fds: &[(BorrowedFd<'_>, Want)], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(fd, want)| PollFd::new(*fd, want.flags())).collect();
    loop {
        let left = deadline.map(|at| TimeSpec::from(at.saturating_duration_since(Instant::now())));
        match nix::poll::ppoll(&mut polled, left, None) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(polled.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect())
}

/// Waits for one descriptor; returns whether it became ready before the deadline.
///
/// # Errors
///
/// As [`wait`].
pub fn wait_one(fd: BorrowedFd<'_>, want: Want, deadline: Option<Instant>) -> io::Result<bool> {
    Ok(wait(&[(fd, want)], deadline)?[0])
}

/// Returns the instant so far from now, or none where that is further than an instant can tell.
pub fn after(length: Duration) -> Option<Instant> {
    Instant::now().checked_add(length)
}

/// A descriptor by which one thread wakes another out of [`wait`] (eventfd(2)).
#[derive(Debug)]
pub struct Waker(EventFd);

impl Waker {
    /// Returns a waker that has not been rung.
    ///
    /// # Errors
    ///
    /// EMFILE and the like.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Rings it: the descriptor is readable until [`clear`](Self::clear).
    pub fn ring(&self) {
        // The counter would have to be full to refuse, and then the descriptor is readable anyway.
        let _ = self.0.write(1);
    }

    /// Makes it unreadable again.
    pub fn clear(&self) {
        // EAGAIN says that it was not rung.
        let _ = self.0.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_before() {
        let waker = Waker::new().expect("eventfd");
        let start = Instant::now();
        let length = Duration::from_micros(1500);
        assert!(!wait_one(waker.as_fd(), Want::Read, Some(start + length)).expect("ppoll"));
        assert!(start.elapsed() >= length);
    }

    #[test]
    fn a_rung_waker_is_readable_until_it_is_cleared() {
        let waker = Waker::new().expect("eventfd");
        waker.ring();
        waker.ring();
        assert!(wait_one(waker.as_fd(), Want::Read, Some(Instant::now())).expect("ppoll"));
        waker.clear();
        assert!(!wait_one(waker.as_fd(), Want::Read, Some(Instant::now())).expect("ppoll"));
    }
}
