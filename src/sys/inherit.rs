//! What a process finds when it starts: descriptors that were left open for it, and variables that name them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Takes a variable out of the environment.
///
/// A variable that names descriptors must not reach a child, which would adopt whatever has that number there. To be called
/// before the process starts threads that read the environment through libc.
pub fn take_var(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    // SAFETY: std's own readers are excluded by its lock; the contract above excludes the others.
    unsafe { std::env::remove_var(name) };
    Some(value)
}

/// Adopts an inherited descriptor by its number, and makes it close-on-exec.
///
/// # Errors
///
/// EBADF where nothing is open at that number, or only what this process opened itself: that is close-on-exec, which nothing inherited is.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if !is_passed_on(number) {
        return Err(nix::errno::Errno::EBADF.into());
    }
    // SAFETY: the borrow ends with this function, which only sets a flag.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, it was named for this process by whoever started it, and the variable that names it is taken out
    // of the environment, so that it is adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Returns whether something is open at this number that the next program would inherit there.
pub fn is_passed_on(number: RawFd) -> bool {
    if number < 0 {
        return false;
    }
    // SAFETY: the borrow ends with this function, which only asks for a flag; a closed number answers EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_GETFD)
        .is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC))
}

/// Copies a descriptor that its owner knows by number, close-on-exec.
///
/// # Errors
///
/// EBADF where nothing is open at that number, EMFILE.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(nix::errno::Errno::EBADF.into());
    }
    // SAFETY: the borrow ends with this function; a closed number answers EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned()
}

/// The standard input that was replaced; puts it back when it is dropped.
#[derive(Debug)]
pub struct Replaced(Option<OwnedFd>);

/// Makes a descriptor the standard input of this process and of the program that it becomes.
///
/// # Errors
///
/// EMFILE.
pub fn replace_stdin(fd: BorrowedFd<'_>) -> io::Result<Replaced> {
    use std::os::fd::AsFd;
    // It may be closed, and is then to be closed again.
    let was = io::stdin().as_fd().try_clone_to_owned().ok();
    // SAFETY: two integers; what was there is kept.
    nix::errno::Errno::result(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&fd), 0) })?;
    Ok(Replaced(was))
}

impl Drop for Replaced {
    fn drop(&mut self) {
        match &self.0 {
            // SAFETY: two integers; the number gets back what it had.
            Some(was) => unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(was), 0) },
            // SAFETY: an integer; the number was free before.
            None => unsafe { libc::close(0) },
        };
    }
}
