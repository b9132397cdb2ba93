//! Waiting for SIGTERM, SIGINT and SIGHUP in a thread, and for all that a supervisor is sent in its loop.
//!
//! A handler and a pipe, not a blocked mask with signalfd(2): a mask survives exec(3), and a program that this process
//! becomes or starts would never see the signals; a handler is reset to the default.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, sigaction, sigprocmask};

pub use super::process::Signal;
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

/// What a supervisor is sent by others than its own kind: it passes them on to the daemon.
pub const PASSED_ON: [Signal; 4] = [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGWINCH, Signal::SIGALRM];
/// What a supervisor is sent as a request or as news.
pub(super) const HANDLED: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGCHLD];

/// All that a supervisor is sent, in one pipe: requests to stop (TERM, INT), to swap (HUP) and to become itself anew (USR2), the end of a
/// child (CHLD), and what is [`PASSED_ON`]. What is not listed does what it always does: SIGCONT nothing, to a process that runs.
#[derive(Debug)]
pub struct Signals(std::fs::File);

/// Signals that did not fit the pipe, a bit each.
static OVERFLOWED: AtomicU64 = AtomicU64::new(0);

impl Signals {
    /// Installs the handlers. Only the first call in a process, of this or of those of [`Terminations`], succeeds.
    ///
    /// Where this process became itself anew, [`release_signals`](super::reexec::release_signals) is to follow.
    ///
    /// # Errors
    ///
    /// AlreadyExists for a second call; what pipe2(2) or sigaction(2) returns.
    pub fn catch() -> io::Result<Self> {
        // Many children may end while this process does something else: a handler that waits for room would wait for itself.
        let (reading, writing) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        publish(writing)?;
        let signals = || HANDLED.into_iter().chain(PASSED_ON);
        signals().try_for_each(catch_one)?;
        // A process that its starter keeps from seeing them could not be stopped; what it starts is given them as they were.
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&signals().collect()), None)?;
        Ok(Self(reading.into()))
    }

    /// Returns the next signal, if one has come; never blocks.
    ///
    /// # Errors
    ///
    /// What read(2) returns.
    pub fn try_next(&mut self) -> io::Result<Option<Signal>> {
        let mut number = [0];
        match self.0.read(&mut number) {
            Ok(_) => Ok(Signal::try_from(i32::from(number[0])).ok()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(take_overflowed()),
            Err(e) if e.kind() == ErrorKind::Interrupted => self.try_next(),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn take_overflowed() -> Option<Signal> {
    let number = OVERFLOWED.load(Ordering::SeqCst).trailing_zeros();
    let signal = Signal::try_from(i32::try_from(number).ok()?).ok()?;
    OVERFLOWED.fetch_and(!(1 << number), Ordering::SeqCst);
    Some(signal)
}

fn catch_one(signal: Signal) -> io::Result<()> {
    // That a child was stopped is no news here.
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP;
    let action = SigAction::new(SigHandler::Handler(report), flags, SigSet::empty());
    // SAFETY: `report` only makes a write(2) and touches atomics, both async-signal-safe.
    let before = unsafe { sigaction(signal, &action) }?;
    if !matches!(before.handler(), SigHandler::SigIgn) {
        return Ok(());
    }
    match signal {
        // They are how a supervisor is asked; and of a child that nobody waits for nothing would be known.
        Signal::SIGHUP | Signal::SIGUSR2 | Signal::SIGCHLD => {}
        Signal::SIGTERM => start::handles_ignored(signal as libc::c_int),
        _ => {
            // A shell that put this into the background, or nohup(1): the daemon is not meant either.
            // SAFETY: this puts back what was there.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
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
    if unsafe { libc::write(fd, std::ptr::from_ref(&byte).cast(), 1) } < 0 {
        OVERFLOWED.fetch_or(1 << signal, Ordering::SeqCst);
    }
    nix::errno::Errno::set_raw(saved);
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

    /// Returns whether a signal is ignored, the default, or handled.
    fn disposition(signal: Signal) -> libc::sighandler_t {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null new action only reads, and the old one has room for the answer.
        unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: all zeros is a valid sigaction, and the kernel's answer is another one.
        unsafe { action.assume_init() }.sa_sigaction
    }

    /// Plays a supervisor: a process has only one pipe, and this one's belongs to another test.
    #[test]
    #[ignore = "a part for another test to play"]
    fn supervising() {
        let mut signals = Signals::catch().unwrap();
        assert_eq!(Terminations::catch().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(signals.try_next().unwrap(), None);
        let all: Vec<Signal> = HANDLED.into_iter().chain(PASSED_ON).collect();
        for signal in &all {
            raise(*signal).unwrap();
            assert_eq!(signals.try_next().unwrap(), Some(*signal), "blocked or not at the start");
        }
        raise(Signal::SIGCONT).unwrap();
        raise(Signal::SIGTERM).unwrap();
        raise(Signal::SIGTERM).unwrap();
        let came = std::iter::from_fn(|| signals.try_next().unwrap()).collect::<Vec<_>>();
        assert_eq!(came, [Signal::SIGTERM; 2], "each of them, and nothing of SIGCONT");

        let room = 1 << 16;
        for _ in 0..room {
            raise(Signal::SIGCHLD).unwrap();
        }
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTERM] {
            raise(signal).unwrap();
        }
        let came =
            std::iter::from_fn(|| signals.try_next().unwrap()).filter(|signal| *signal != Signal::SIGCHLD);
        assert_eq!(
            came.collect::<Vec<_>>(),
            [Signal::SIGHUP, Signal::SIGTERM],
            "what does not fit is kept, once"
        );
        assert_eq!(signals.try_next().unwrap(), None);
    }

    #[test]
    fn a_supervisor_gets_every_signal_in_order_whatever_its_starter_blocked_and_however_many_come() {
        let parts = ["", "trap '' HUP TERM USR2 CHLD;"];
        for part in parts {
            play("supervising", part);
        }
    }

    /// Plays a supervisor in a shell's background.
    #[test]
    #[ignore = "a part for another test to play"]
    fn supervising_in_the_background() {
        let _signals = Signals::catch().unwrap();
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1] {
            assert_eq!(disposition(signal), libc::SIG_IGN, "{signal}");
        }
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGWINCH] {
            assert!(![libc::SIG_IGN, libc::SIG_DFL].contains(&disposition(signal)), "{signal}");
        }
    }

    #[test]
    fn what_a_shell_lets_its_background_ignore_stays_ignored_but_for_requests_and_children() {
        play("supervising_in_the_background", "trap '' INT QUIT USR1 HUP TERM CHLD;");
    }

    fn play(part: &str, prepared: &str) {
        let script =
            format!("{prepared} exec \"$0\" --exact sys::signals::tests::{part} --ignored --test-threads=1");
        let mut command = std::process::Command::new("env");
        // A shell that runs the tests in the background lets them ignore it.
        command.args([
            "--default-signal=INT,QUIT",
            "--block-signal=TERM,CHLD,USR1",
            "/bin/sh",
            "-c",
            &script,
        ]);
        let output = command.arg(std::env::current_exe().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{part} {prepared}: {said}");
    }
}
