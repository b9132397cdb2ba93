//! Waiting for SIGTERM, SIGINT and SIGHUP in a thread.
//!
//! A handler and a pipe, not a blocked mask with signalfd(2): a mask survives exec(3), and a program that this process
//! becomes or starts would never see the signals; a handler is reset to the default.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::start;

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// SIGTERM: a service manager or kill(1).
    Term,
    /// SIGINT: a person at a terminal.
    Int,
    /// SIGHUP: the terminal is gone, or a request.
    Hup,
}

impl Termination {
    /// Returns the signal's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Hup => "SIGHUP",
        }
    }
}

/// The reading end of the pipe that the handler writes to.
#[derive(Debug)]
pub struct Terminations(std::fs::File);

static WRITING_END: AtomicI32 = AtomicI32::new(-1);

impl Terminations {
    /// Installs the handlers for SIGTERM and SIGINT. Only the first call in a process succeeds.
    ///
    /// # Errors
    ///
    /// AlreadyExists for a second call; what pipe2(2) or sigaction(2) returns.
    pub fn catch() -> io::Result<Self> {
        Self::catch_all(&[Signal::SIGTERM, Signal::SIGINT])
    }

    /// As [`catch`](Self::catch), and for SIGHUP too: what a closing terminal sends to a command in it.
    ///
    /// # Errors
    ///
    /// As [`catch`](Self::catch).
    pub fn catch_with_terminal() -> io::Result<Self> {
        Self::catch_all(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
    }

    /// As [`catch`](Self::catch), and for SIGHUP as a request, whether or not it was ignored so far.
    ///
    /// # Errors
    ///
    /// As [`catch`](Self::catch).
    pub fn catch_with_request() -> io::Result<Self> {
        let caught = Self::catch()?;
        let action = SigAction::new(SigHandler::Handler(report), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: as below.
        unsafe { sigaction(Signal::SIGHUP, &action) }?;
        Ok(caught)
    }

    fn catch_all(signals: &[Signal]) -> io::Result<Self> {
        let (reading, writing) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        publish(writing)?;
        let action = SigAction::new(SigHandler::Handler(report), SaFlags::SA_RESTART, SigSet::empty());
        for &signal in signals {
            // SAFETY: `report` only makes a write(2) and touches an atomic, both async-signal-safe.
            let before = unsafe { sigaction(signal, &action) }?;
            if !matches!(before.handler(), SigHandler::SigIgn) {
                continue;
            }
            if signal == Signal::SIGTERM {
                start::handles_ignored(signal as libc::c_int);
            } else {
                // nohup(1), or a shell that put this into the background: it is to go on without the terminal.
                // SAFETY: this puts back what was there.
                unsafe { sigaction(signal, &before) }?;
            }
        }
        Ok(Self(reading.into()))
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    ///
    /// What read(2) returns.
    pub fn wait(&mut self) -> io::Result<Termination> {
        let mut signal = [0];
        self.0.read_exact(&mut signal)?;
        Ok(match i32::from(signal[0]) {
            number if number == Signal::SIGINT as i32 => Termination::Int,
            number if number == Signal::SIGHUP as i32 => Termination::Hup,
            _ => Termination::Term,
        })
    }
}

impl AsFd for Terminations {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes the writing end known to the handler, for the life of the process.
fn publish(writing: OwnedFd) -> io::Result<()> {
    WRITING_END
        .compare_exchange(-1, writing.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
        .map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
    // The handler needs it until the process ends.
    let _ = writing.into_raw_fd();
    Ok(())
}

extern "C" fn report(signal: i32) {
    let byte = signal as u8;
    let fd = WRITING_END.load(Ordering::SeqCst);
    let saved = nix::errno::Errno::last_raw();
    // SAFETY: one byte from the stack to a descriptor that is never closed; write(2) is async-signal-safe.
    unsafe { libc::write(fd, std::ptr::from_ref(&byte).cast(), 1) };
    nix::errno::Errno::set_raw(saved);
}

/// The signals that a long-lived program handles in its loop: each is remembered once until it is taken, so that none is lost in a storm of others and
/// the handler never waits.
#[derive(Debug)]
pub struct Signals(std::fs::File);

/// A bit for each signal that has come.
static PENDING: AtomicU64 = AtomicU64::new(0);

impl Signals {
    /// Handles these signals, whether or not they were ignored so far. Only the first call in a process succeeds.
    ///
    /// # Errors
    ///
    /// AlreadyExists for a second call; what pipe2(2) or sigaction(2) returns.
    pub fn catch(signals: &[Signal]) -> io::Result<Self> {
        let (reading, writing) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        publish(writing)?;
        let action = SigAction::new(SigHandler::Handler(remember), SaFlags::SA_RESTART, SigSet::empty());
        for &signal in signals {
            // SAFETY: `remember` only makes a write(2) and touches atomics, all async-signal-safe.
            unsafe { sigaction(signal, &action) }?;
        }
        Ok(Self(reading.into()))
    }

    /// Returns those that have come since the last call.
    pub fn take(&mut self) -> Vec<Signal> {
        let mut bytes = [0; 64];
        // Emptied before they are looked at: one that comes in between is found now, and the descriptor is readable once too often.
        while let Ok(1..) = self.0.read(&mut bytes) {}
        let pending = PENDING.swap(0, Ordering::SeqCst);
        Signal::iterator().filter(|signal| pending & (1 << (*signal as u32)) != 0).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

extern "C" fn remember(signal: i32) {
    PENDING.fetch_or(1 << signal, Ordering::SeqCst);
    // A pipe that is full is readable, which is all that it is for.
    report(signal);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn both_signals_are_reported_in_order_and_the_pipe_has_one_owner() {
        // A shell that runs the tests in the background lets them ignore it.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: nobody in this process counts on the disposition of this signal.
        unsafe { sigaction(Signal::SIGINT, &default) }.unwrap();
        let mut terminations = Terminations::catch().unwrap();
        assert_eq!(Terminations::catch().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        raise(Signal::SIGINT).unwrap();
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(terminations.wait().unwrap(), Termination::Int);
        assert_eq!(terminations.wait().unwrap(), Termination::Term);
    }
}
