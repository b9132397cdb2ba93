//! What is known of a terminal, and how it is put back as it was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::termios::{FlushArg, SetArg, Termios, tcflush, tcgetattr, tcsetattr};
use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};

/// Returns how many columns the terminal behind a descriptor has; `None` if it is not one, or does not know.
pub fn columns(fd: BorrowedFd<'_>) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open for the length of the borrow, and TIOCGWINSZ (ioctl_tty(2)) writes one winsize.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Returns whether writing failed because the terminal behind the descriptor has been closed.
pub fn is_gone(e: &io::Error, fd: BorrowedFd<'_>) -> bool {
    let is_device = || {
        fstat(fd).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR)
    };
    e.raw_os_error() == Some(libc::EIO) && is_device()
}

/// Throws away what was typed and not read.
///
/// # Errors
///
/// ENOTTY.
pub fn discard_input(fd: BorrowedFd<'_>) -> io::Result<()> {
    undisturbed(|| tcflush(fd, FlushArg::TCIFLUSH))
}

/// How a terminal was set, and whose it was, before another program had it.
#[derive(Debug)]
pub struct Saved {
    terminal: OwnedFd,
    attributes: Termios,
    /// The process group in the foreground, where it is this process's controlling terminal.
    foreground: Option<Pid>,
}

impl Saved {
    /// Looks at a terminal.
    ///
    /// # Errors
    ///
    /// ENOTTY, EMFILE.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let terminal = fd.try_clone_to_owned()?;
        let attributes = tcgetattr(&terminal)?;
        let foreground = tcgetpgrp(&terminal).ok();
        Ok(Self { terminal, attributes, foreground })
    }

    /// Puts it back, also where another process group has it now.
    ///
    /// # Errors
    ///
    /// EIO where the terminal is gone.
    pub fn restore(&self) -> io::Result<()> {
        undisturbed(|| {
            if let Some(group) = self.foreground {
                tcsetpgrp(&self.terminal, group)?;
            }
            tcsetattr(self.terminal.as_fd(), SetArg::TCSANOW, &self.attributes)
        })
    }
}

/// Does something that stops a process whose group is not in the foreground (SIGTTOU), unless the thread that does it blocks that.
fn undisturbed<T>(act: impl FnOnce() -> nix::Result<T>) -> io::Result<T> {
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGTTOU);
    let before = stops.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let done = act();
    before.thread_set_mask()?;
    Ok(done?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_terminal_is_put_back_as_it_was() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let saved = Saved::of(pair.slave.as_fd()).unwrap();
        let mut raw = tcgetattr(&pair.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw).unwrap();
        assert_ne!(tcgetattr(&pair.slave).unwrap(), saved.attributes);
        saved.restore().unwrap();
        assert_eq!(tcgetattr(&pair.slave).unwrap(), saved.attributes);
        assert!(Saved::of(File::open("/dev/null").unwrap().as_fd()).is_err());
    }

    #[test]
    fn what_was_typed_before_is_not_read() {
        use std::io::{Read, Write};
        let pair = nix::pty::openpty(None, None).unwrap();
        let (mut person, mut terminal) = (File::from(pair.master), File::from(pair.slave));
        person.write_all(b"early\n").unwrap();
        // The line is there when its echo is.
        person.read_exact(&mut [0; 7]).unwrap();
        discard_input(terminal.as_fd()).unwrap();
        person.write_all(b"late\n").unwrap();
        let mut read = [0; 5];
        terminal.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"late\n");
    }

    #[test]
    fn a_file_has_no_columns() {
        assert_eq!(columns(File::open("/dev/null").unwrap().as_fd()), None);
    }
}
