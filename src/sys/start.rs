//! What this process was started with: the signals, before the language's runtime changed them, and the directory, before the
//! program did.
//!
//! A chain link must be transparent: what follows must see the mask and the ignored signals that the link itself was
//! given, and the runtime sets SIGPIPE to ignored before `main`.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// What was found at the start.
#[derive(Clone, Copy)]
pub(super) struct Start {
    /// The signals that were blocked.
    pub mask: SigSet,
    /// Whether SIGPIPE was ignored.
    pub pipe_ignored: bool,
}

static START: OnceLock<Start> = OnceLock::new();

const PATH_LEN: usize = libc::PATH_MAX as usize;
/// The path of the directory, ended by a NUL; empty where it has none.
static DIRECTORY: OnceLock<[u8; PATH_LEN]> = OnceLock::new();

/// The dynamic linker, or the C library in a static program, calls this before the runtime and `main`.
#[used]
// SAFETY: the section holds pointers to functions of this type, and this one needs nothing that is not there yet:
// no allocation, no thread, no standard descriptor.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = {
    extern "C" fn record() {
        let _ = START.set(observe());
        let _ = DIRECTORY.set(observe_directory());
    }
    record
};

/// Returns the record; in a program whose loader calls no constructors, the state now.
pub(super) fn recorded() -> Start {
    *START.get_or_init(observe)
}

/// Returns the working directory that this process was started in; `None` if it had no path, as one that was removed.
pub fn directory() -> Option<PathBuf> {
    let path = DIRECTORY.get_or_init(observe_directory).split(|byte| *byte == 0).next()?;
    Some(PathBuf::from(OsStr::from_bytes(path))).filter(|path| path.is_absolute())
}

/// Without the C library, which may allocate.
fn observe_directory() -> [u8; PATH_LEN] {
    let mut path = [0; PATH_LEN];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    if unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) } < 0 {
        path[0] = 0;
    }
    path
}

fn observe() -> Start {
    let mut mask = SigSet::empty();
    // Reading the mask cannot fail: the arguments are valid by their types.
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut mask));
    Start { mask, pipe_ignored: is_ignored(libc::SIGPIPE) }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only reads, and the old one has room for the answer.
    unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid sigaction, and the kernel's answer is another one.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
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

    /// The same, for a process that has changed its directory since.
    #[test]
    #[ignore = "a part for another test to play"]
    fn moved() {
        std::env::set_current_dir("/").unwrap();
        let expected = std::env::var_os("HANDOFF_TEST_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        assert_eq!(directory(), expected);
    }

    #[test]
    fn the_directory_is_the_one_at_the_start_and_none_if_that_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        for (script, expected) in [("", path.as_path()), ("rmdir \"$PWD\";", "".as_ref())] {
            let script = format!("{script} exec \"$0\" --exact sys::start::tests::moved --ignored");
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
            let output = command.env("HANDOFF_TEST_DIR", expected).current_dir(&path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
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
