//! Ends this process as another one ended, so that whoever watches it sees the same.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};

use super::start;

/// Dies of a signal, without a core: whose crash it was has left its own. Returns where the signal does not kill.
pub fn die_of(signal: Signal) {
    // Where it cannot be set there is a core too many, and no more.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // SIGKILL has no action, and needs none.
    start::replace_action(signal as libc::c_int, &start::action(libc::SIG_DFL));
    let mut one = SigSet::empty();
    one.add(signal);
    if raise(signal).is_ok() {
        // Unblocking a signal cannot fail: the arguments are valid by their types. It is delivered before that returns.
        let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&one), None);
    }
}

/// As [`die_of`], by the signal's number, which may be one without a name.
pub fn die_of_number(signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        die_of(signal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Plays the process that ends: the environment says of what.
    #[test]
    #[ignore = "a part for another test to play"]
    fn ended() {
        let signal = std::env::var("HANDOFF_TEST_SIGNAL").unwrap().parse().unwrap();
        die_of_number(signal);
    }

    #[test]
    fn a_process_dies_of_the_signal_that_another_one_died_of_and_leaves_no_core() {
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGABRT, libc::SIGPIPE, libc::SIGHUP] {
            let script = "trap '' HUP; exec \"$0\" --exact sys::end::tests::ended --ignored";
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
            let output = command.env("HANDOFF_TEST_SIGNAL", signal.to_string()).output().unwrap();
            assert_eq!(output.status.signal(), Some(signal));
            assert!(!output.status.core_dumped());
        }
    }

    #[test]
    fn a_signal_that_does_not_kill_is_survived() {
        die_of(Signal::SIGCHLD);
    }
}
