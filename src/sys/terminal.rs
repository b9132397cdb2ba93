//! What is known of a terminal.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// Returns how many columns the terminal behind a descriptor has; `None` if it is not one, or does not know.
pub fn columns(fd: BorrowedFd<'_>) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open for the length of the borrow, and TIOCGWINSZ (ioctl_tty(2)) writes one winsize.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_has_no_columns() {
        assert_eq!(columns(File::open("/dev/null").unwrap().as_fd()), None);
    }
}
