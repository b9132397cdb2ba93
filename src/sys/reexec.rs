//! Becomes another program of its own kind, with the same pid and some of its descriptors, and without a moment in which a signal ends it.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use super::file;
use super::program::Program;

/// They wait until the new program says that it can take them: a handler does not survive, and without one each of them ends the process.
const HELD: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

fn held() -> SigSet {
    HELD.into_iter().collect()
}

/// Becomes the program; the descriptors keep their numbers. The new program must call [`release_signals`] once it has handlers.
///
/// If that fails, the process is as it was before, and the error is returned.
pub fn become_program(
    program: &Program,
    args: &[OsString],
    env: &[(OsString, OsString)],
    kept: &[BorrowedFd<'_>],
) -> io::Error {
    let args = args.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<Vec<_>, _>>();
    let env = env
        .iter()
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<Vec<_>, _>>();
    let (Ok(args), Ok(env)) = (args, env) else { return io::ErrorKind::InvalidInput.into() };
    let mut before = SigSet::empty();
    if let Err(e) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held()), Some(&mut before)) {
        return e.into();
    }
    kept.iter().for_each(|fd| file::clear_cloexec(*fd));
    let failed = nix::unistd::fexecve(program, &args, &env);
    for fd in kept {
        // It was open a moment ago, and setting a flag needs nothing.
        let _ = file::set_cloexec(*fd);
    }
    // The arguments are valid by their types.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    match failed {
        Ok(never) => match never {},
        Err(e) => e.into(),
    }
}

/// Lets the signals come that waited while the process became this program.
pub fn release_signals() {
    // The arguments are valid by their types.
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&held()), None);
}
