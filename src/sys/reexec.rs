//! Becomes another program of its own kind, with the same pid and some of its descriptors, and without a moment in which a signal ends it.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::file;
use super::program::Program;
use super::signals::{HANDLED, PASSED_ON};

/// They wait until the new program says that it can take them: most would end it before it has handlers.
fn held() -> SigSet {
    HANDLED.into_iter().chain(PASSED_ON).collect()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;
    use std::process::Command;

    use nix::sys::signal::raise;

    use super::super::signals::Signals;
    use super::*;

    fn blocked() -> SigSet {
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut mask)).unwrap();
        mask
    }

    fn part(name: &str) -> Vec<OsString> {
        let name = format!("sys::reexec::tests::{name}");
        ["test", "--exact", &name, "--ignored", "--nocapture", "--test-threads=1"].map(OsString::from).into()
    }

    /// Plays a process that becomes another program.
    #[test]
    #[ignore = "a part for another test to play"]
    fn becomes() {
        let before = blocked();
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        std::fs::write(&none, "no program").unwrap();
        std::fs::set_permissions(&none, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let failed = become_program(&Program::open(&none).unwrap(), &[], &[], &[]);
        assert_eq!(failed.raw_os_error(), Some(libc::ENOEXEC));
        assert_eq!(blocked(), before, "a failure changes nothing");
        let program = Program::open(Path::new("/proc/self/exe")).unwrap();
        panic!("{}", become_program(&program, &part("became"), &[], &[]));
    }

    /// Plays what it became.
    #[test]
    #[ignore = "a part for another test to play"]
    fn became() {
        let all: Vec<_> = HANDLED.into_iter().chain(PASSED_ON).collect();
        // Each of them would end this process, or be lost.
        all.iter().for_each(|signal| raise(*signal).unwrap());
        let mut signals = Signals::catch().unwrap();
        release_signals();
        let mut came: Vec<_> = std::iter::from_fn(|| signals.try_next().unwrap()).collect();
        came.sort_unstable();
        let mut all = all;
        all.sort_unstable();
        assert_eq!(came, all);
        assert_eq!(blocked(), SigSet::empty());
        println!("all came");
    }

    #[test]
    fn no_signal_that_comes_between_two_programs_is_lost_or_ends_the_process() {
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT,QUIT"])
            .arg(std::env::current_exe().unwrap())
            .args(&part("becomes")[1..]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("all came"), "{said}");
    }
}
