//! The process as it was started, before the language's runtime changed it.
//!
//! A chain link must be transparent: what follows must see what the link itself was given. The runtime sets SIGPIPE to ignored and
//! opens standard descriptors that are closed before `main`, and the library's view of the environment leaves out what has no name.

use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// How many standard descriptors there are: 0, 1 and 2.
pub(super) const STANDARD: RawFd = 3;

/// What was found at the start.
pub(super) struct Start {
    /// The signals that were blocked.
    pub mask: SigSet,
    /// Whether SIGPIPE was ignored.
    pub pipe_ignored: bool,
    /// The standard descriptors that were closed.
    pub closed: Vec<RawFd>,
    /// The entries of the environment that are no variables, and where each stood.
    pub nameless: Vec<(usize, CString)>,
}

static START: OnceLock<Start> = OnceLock::new();

/// The dynamic linker, or the C library in a static program, calls this before the runtime and `main`.
#[used]
// SAFETY: the section holds pointers to functions of this type, and this one needs nothing that is not there yet:
// the C library is set up, also its allocator, and nothing of the language's runtime is asked.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = {
    extern "C" fn record() {
        let _ = START.set(Start { closed: closed(), nameless: nameless(), ..observe() });
    }
    record
};

/// Returns the record; in a program whose loader calls no constructors, what can be told now.
pub(super) fn recorded() -> &'static Start {
    START.get_or_init(observe)
}

fn observe() -> Start {
    let mut mask = SigSet::empty();
    // Reading the mask cannot fail: the arguments are valid by their types.
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut mask));
    Start { mask, pipe_ignored: is_ignored(libc::SIGPIPE), closed: Vec::new(), nameless: Vec::new() }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only reads, and the old one has room for the answer.
    unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid sigaction, and the kernel's answer is another one.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn closed() -> Vec<RawFd> {
    // SAFETY: two integers; the only error is that the descriptor is not open.
    let is_closed = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } < 0;
    (0..STANDARD).filter(is_closed).collect()
}

/// Only for the constructor: later, another thread may be changing the environment.
fn nameless() -> Vec<(usize, CString)> {
    let entries = (0..).map_while(entry).enumerate();
    entries.filter(|(_, entry)| !is_variable(entry)).map(|(at, entry)| (at, entry.to_owned())).collect()
}

/// As the standard library sees it, for which `=a=b` is the variable `=a`.
fn is_variable(entry: &CStr) -> bool {
    entry.to_bytes().iter().skip(1).any(|&byte| byte == b'=')
}

/// Returns an entry of the environment by its place.
fn entry(at: usize) -> Option<&'static CStr> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library sets it before it calls constructors, and there is only one thread yet.
    let entries = unsafe { environ };
    if entries.is_null() {
        return None;
    }
    // SAFETY: a null ends the array, and callers stop there.
    let entry = unsafe { entries.add(at) };
    // SAFETY: as above.
    let entry = unsafe { *entry };
    if entry.is_null() {
        return None;
    }
    // SAFETY: the kernel put a string with a NUL there, which stays for as long as the process.
    Some(unsafe { CStr::from_ptr(entry) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::process::Command;

    /// Plays the process that was started: the environment says how.
    #[test]
    #[ignore = "a part for another test to play"]
    fn started() {
        let ignored = std::env::var("HANDOFF_TEST_PIPE").is_ok_and(|how| how == "ignored");
        assert!(START.get().is_some(), "the constructor ran");
        assert!(is_ignored(libc::SIGPIPE), "the runtime ignores it now");
        assert_eq!(recorded().pipe_ignored, ignored);
        assert_eq!(recorded().mask, SigSet::empty());
    }

    #[test]
    fn the_record_is_from_before_the_runtime_ignored_the_broken_pipe() {
        for (how, trap) in [("default", ""), ("ignored", "trap '' PIPE;")] {
            let script = format!("{trap} exec \"$0\" --exact sys::start::tests::started --ignored");
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(script).arg(std::env::current_exe().unwrap()).env("HANDOFF_TEST_PIPE", how);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{how}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
