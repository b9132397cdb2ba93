//! The process as it was started, before the language's runtime and the program changed it; and a start without that runtime.
//!
//! A chain link must be transparent: what follows must see what the link itself was given. The runtime sets SIGPIPE to ignored and
//! opens standard descriptors that are closed before `main`, and the library's view of the environment leaves out what has no name.
//!
//! A link must also start fast, and the runtime looks for the main thread's stack in `/proc/self/maps` to explain an overflow, which takes
//! as long as a link's own work. [`program!`](crate::program) does without it: an overflow ends in SIGSEGV as in any other language.

use std::ffi::{CStr, CString, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
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

const PATH_LEN: usize = libc::PATH_MAX as usize;
/// The path of the directory, ended by a NUL; empty where it has none.
static DIRECTORY: OnceLock<[u8; PATH_LEN]> = OnceLock::new();

/// The dynamic linker, or the C library in a static program, calls this before the runtime and `main`.
#[used]
// SAFETY: the section holds pointers to functions of this type, and this one needs nothing that is not there yet:
// the C library is set up, also its allocator, and nothing of the language's runtime is asked.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = {
    extern "C" fn record() {
        let _ = START.set(Start { closed: closed(), nameless: nameless(), ..observe() });
        let _ = DIRECTORY.set(observe_directory());
    }
    record
};

/// Returns the record; in a program whose loader calls no constructors, what can be told now.
pub(super) fn recorded() -> &'static Start {
    START.get_or_init(observe)
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
    Start { mask, pipe_ignored: is_ignored(libc::SIGPIPE), closed: Vec::new(), nameless: Vec::new() }
}

/// Makes a function that returns an exit code of a process, a `u8`, the whole program, in a crate that says `no_main`.
///
/// It is run as a `main` of the language is: SIGPIPE is ignored, 0 to 2 are open, a panic is reported and its exit code is 101, and what was
/// written to standard output is flushed at the end.
#[doc(hidden)]
#[macro_export]
macro_rules! program {
    ($main:expr) => {
        // SAFETY: the name is the C library's for this function, and nothing else in a crate that says `no_main` has it.
        #[unsafe(export_name = "main")]
        extern "C" fn start_of_program() -> ::std::ffi::c_int {
            $crate::sys::start::run($main)
        }
    };
}

/// For [`program!`](crate::program).
pub fn run(main: fn() -> u8) -> ! {
    for fd in &recorded().closed {
        // Without /dev/null there is nothing better to do than the runtime does: not to start.
        if open_standard(*fd).is_err() {
            std::process::abort();
        }
    }
    replace_action(libc::SIGPIPE, &action(libc::SIG_IGN));
    let code = std::panic::catch_unwind(main).unwrap_or(CODE_OF_A_PANIC);
    std::process::exit(i32::from(code))
}

/// As the language's own.
const CODE_OF_A_PANIC: u8 = 101;

/// Opens a standard descriptor on `/dev/null` if it is closed, and makes it stay open at exec: the next file that the program opens
/// must not become its standard error. Makes system calls only. The standard descriptors below must be open.
pub(super) fn open_standard(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: two integers.
    match Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) }) {
        Ok(flags) if flags & libc::FD_CLOEXEC == 0 => Ok(()),
        Ok(_) => {
            // SAFETY: three integers; no flag is left.
            Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
        }
        // The lowest free number is taken, and that is this one.
        // SAFETY: the path is a static string with a NUL.
        Err(_) => Errno::result(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) }).map(drop),
    }
}

/// Returns the action that is the default or ignores.
pub(super) fn action(disposition: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all zeros is a valid sigaction: no flags, an empty mask, the default.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = disposition;
    action
}

/// Sets a signal's action, which must not be a new handler, and returns the one before.
pub(super) fn replace_action(signal: libc::c_int, new: &libc::sigaction) -> libc::sigaction {
    let mut old = action(libc::SIG_DFL);
    // SAFETY: both are valid for the call, and no code of ours becomes a handler by it.
    unsafe { libc::sigaction(signal, new, &raw mut old) };
    old
}

/// The signals that were ignored and that this process handles now, a bit each.
static NO_LONGER_IGNORED: AtomicU64 = AtomicU64::new(0);

/// Says that a signal is handled that was ignored before: what this process becomes must find it ignored.
pub(super) fn handles_ignored(signal: libc::c_int) {
    NO_LONGER_IGNORED.fetch_or(1 << signal, Ordering::Relaxed);
}

/// Returns what the next program must find where this process has another action.
pub(super) fn actions() -> Vec<(libc::c_int, libc::sigaction)> {
    let pipe = if recorded().pipe_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    let handled = NO_LONGER_IGNORED.load(Ordering::Relaxed);
    let ignored = (0..64).filter(|signal| handled & (1 << signal) != 0);
    std::iter::once((libc::SIGPIPE, action(pipe)))
        .chain(ignored.map(|signal| (signal, action(libc::SIG_IGN))))
        .collect()
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
