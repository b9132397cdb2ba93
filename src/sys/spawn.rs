//! Starts a program, or becomes it, with descriptors at exact numbers: without a race, from any number of threads.
//!
//! Everything that allocates or can be refused for its form is done before the fork; after it there are only system calls.

use std::ffi::{CString, OsStr, OsString, c_char};
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{fstat, makedev};
use nix::sys::statfs::{FsType, fstatfs};

use super::children;
use super::process::PidFd;
pub use super::program::Program;
use super::start;
use crate::error::{Error, Result};

/// The first number that is not a standard descriptor.
const FIRST_FREE: RawFd = start::STANDARD;
/// How often and how far apart a program that somebody still has open for writing is tried again: a second in all.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// How many signals there are, and bits in the kernel's set of them.
const SIGNALS: usize = 64;
/// How far close-on-exec is set one by one where the kernel cannot do it in one call.
const STRAYS_MAX: u64 = 1 << 16;
/// The number of /dev/null, see null(4).
const DEV_NULL: libc::dev_t = makedev(1, 3);
/// From linux/magic.h; the number of a pidfd's inode names a process only there (Linux 6.9).
const PIDFS_MAGIC: FsType = FsType(0x5049_4446);

/// What a process becomes.
///
/// What runs is the file that was opened, whatever has its path by then. A program that needs an interpreter is opened again by
/// it, as `/dev/fd/N`: there one descriptor, the program's own at a number above those that were asked for, stays open, and `$0` is
/// that path. Before Linux 6.14 `ps -o comm` shows the number instead of the program's name. [`Image::exec`] differs.
#[derive(Debug)]
pub struct Image<'a> {
    /// The program.
    pub program: &'a Program,
    /// What it sees as its own name.
    pub argv0: OsString,
    /// Its arguments, without the name.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The number that each descriptor has in it, 3 or more; the standard ones are not passed here.
    pub fds: Vec<(RawFd, BorrowedFd<'a>)>,
    /// Whether LISTEN_PID and LISTEN_PIDFDID name the new process, see sd_listen_fds(3).
    pub listen_pid: bool,
    /// Whether [`exec`](Self::exec) runs the very file that was opened, even if that is moved away in the last microsecond.
    pub exact: bool,
}

impl<'a> Image<'a> {
    /// Returns an image with this process's environment, no arguments and no descriptors.
    pub fn new(program: &'a Program) -> Self {
        Self {
            program,
            argv0: program.name().into(),
            args: Vec::new(),
            env: std::env::vars_os().collect(),
            fds: Vec::new(),
            listen_pid: false,
            exact: false,
        }
    }

    /// Becomes the program. If that fails, the process is as it was before.
    ///
    /// Descriptors that are not close-on-exec stay open, and signals are as this process was started with them: a link
    /// in a chain passes on what is not its own. So are standard descriptors that were closed and that the language's runtime
    /// opened on `/dev/null`, and entries of the environment without a name. Other threads end; while it fails, they may see
    /// the descriptors change.
    ///
    /// Unless it is to be [exact](Self::exact), and as long as the program's path names the file that was opened, it runs by that path, as it
    /// would have without us: its `$0` and its name in `ps` are the usual ones.
    ///
    /// # Errors
    /// Returns only then: [`Error::Invalid`] for what cannot be passed, [`Error::Io`] naming the program otherwise.
    pub fn exec(self) -> Error {
        match self.try_exec() {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    fn try_exec(&self) -> Result<std::convert::Infallible> {
        let mut launch = Launch::prepare(self, &start::recorded().nameless)?;
        let _undo =
            Undo::new(&launch).map_err(|e| Error::io("keep the descriptors that are to be replaced", e))?;
        if !self.exact && self.program.same_file(self.program.path()) {
            launch.path = Some(c_string(self.program.path().as_os_str().as_bytes().to_vec())?);
        }
        for _ in 1..BUSY_TRIES {
            match launch.run() {
                Failure { errno: Errno::ETXTBSY, .. } => thread::sleep(BUSY_PAUSE),
                failure => return Err(failure.into_error(self.program)),
            }
        }
        Err(launch.run().into_error(self.program))
    }
}

/// A program to start as another process, which shares nothing with this one but what is named here.
///
/// Its signals are all at their defaults and none is blocked.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program, with its arguments, environment and descriptors.
    pub image: Image<'a>,
    /// Whether it leads a session of its own, whose id is then its pid.
    pub new_session: bool,
    /// Whether it leads a process group of its own, in our session. A session of its own is more than that.
    pub new_group: bool,
    /// Whether it runs by its path, as long as that names the file that was opened: its `$0` and its name in `ps` are the usual ones.
    pub by_path: bool,
    /// Whether it is nobody's child but init's: the child that is returned only started it, and ends at once.
    pub orphan: bool,
    /// The directory of a control group that it is in from its first instruction.
    pub cgroup: Option<PathBuf>,
    /// Its working directory, or ours.
    pub directory: Option<PathBuf>,
    /// Its standard input, or `/dev/null`.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Its standard output, or ours.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Its standard error, or ours.
    pub stderr: Option<BorrowedFd<'a>>,
}

impl<'a> Spawn<'a> {
    /// Returns what starts the image in our session, with our standard output and error.
    pub fn new(image: Image<'a>) -> Self {
        Self {
            image,
            new_session: false,
            new_group: false,
            by_path: false,
            orphan: false,
            cgroup: None,
            directory: None,
            stdin: None,
            stdout: None,
            stderr: None,
        }
    }

    /// Starts the program and returns once it runs. Whoever gets the child must wait for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what cannot be passed, [`Error::Io`] naming the step and the program otherwise; then
    /// there is no child.
    pub fn spawn(self) -> Result<Child> {
        // Each try forks anew: a child that waited would keep copies of all our descriptors open meanwhile.
        for _ in 1..BUSY_TRIES {
            match self.try_spawn() {
                Err(Error::Io { source, .. }) if is_busy(&source) => thread::sleep(BUSY_PAUSE),
                done => return done,
            }
        }
        self.try_spawn()
    }

    fn try_spawn(&self) -> Result<Child> {
        let program = self.image.program;
        let (mut command, report) = self.prepare()?;
        let spawned = children::own(|| command.spawn(), Child::id);
        // With it goes our copy of the report's writing end, or its end would never come.
        drop(command);
        let mut child = spawned.map_err(|e| Error::io(format!("start {}", program.path().display()), e))?;
        match Failure::read(report) {
            Ok(None) => Ok(child),
            Ok(Some(failure)) => {
                // It is on its way out, and has said why; its exit code says less.
                let _ = child.wait();
                Err(failure.into_error(program))
            }
            Err(e) => {
                // Nothing else is known of it, and nobody will get the child.
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::io(format!("learn whether {} was started", program.path().display()), e))
            }
        }
    }

    fn prepare(&self) -> Result<(Command, PipeReader)> {
        let mut launch = Launch::prepare(&self.image, &[])?;
        let program = self.image.program;
        if self.by_path && program.same_file(program.path()) {
            launch.path = Some(c_string(program.path().as_os_str().as_bytes().to_vec())?);
        }
        let (reader, writer) = io::pipe().map_err(|e| Error::io("make a pipe", e))?;
        let writer = lift(writer.as_fd(), launch.floor).map_err(|e| Error::io("make a pipe", e))?;
        let mut newborn = Newborn {
            launch,
            report: writer,
            new_session: self.new_session,
            orphan: self.orphan,
            cgroup: self.cgroup.as_deref().map(open_cgroup).transpose()?,
            strays_max: strays_max(),
        };
        let mut command = Command::new(program.path());
        if self.new_group {
            command.process_group(0);
        }
        let stdin = if self.stdin.is_some() { stdio(self.stdin)? } else { Stdio::null() };
        command.stdin(stdin).stdout(stdio(self.stdout)?).stderr(stdio(self.stderr)?);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        // SAFETY: the closure makes system calls on what was prepared here, and nothing else: no allocation, no lock,
        // no panic. It does not return.
        unsafe { command.pre_exec(move || newborn.live()) };
        Ok((command, reader))
    }
}

fn stdio(fd: Option<BorrowedFd<'_>>) -> Result<Stdio> {
    let Some(fd) = fd else { return Ok(Stdio::inherit()) };
    Ok(Stdio::from(fd.try_clone_to_owned().map_err(|e| Error::io("duplicate a standard descriptor", e))?))
}

fn open_cgroup(path: &Path) -> Result<File> {
    let procs = path.join("cgroup.procs");
    let opened = OpenOptions::new().write(true).open(&procs);
    opened.map_err(|e| Error::io(format!("open {}", procs.display()), e))
}

fn strays_max() -> RawFd {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((STRAYS_MAX, STRAYS_MAX));
    RawFd::try_from(soft.min(STRAYS_MAX)).unwrap_or(RawFd::MAX)
}

/// Returns another close-on-exec descriptor for the same description, numbered `floor` or more.
fn lift(fd: BorrowedFd<'_>, floor: RawFd) -> io::Result<OwnedFd> {
    let copy = match fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(floor)) {
        // So the kernel says that even the first number is above RLIMIT_NOFILE.
        Err(Errno::EINVAL) => return Err(Errno::EMFILE.into()),
        copy => copy?,
    };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// An [`Image`] in the form that the kernel takes, with every source that moves at a number that no target has.
struct Launch {
    /// One above the highest target.
    floor: RawFd,
    binary: OwnedFd,
    /// Where the same file is, if it is to be run by its path.
    path: Option<CString>,
    /// Those that are at their numbers already.
    stay: Vec<RawFd>,
    /// From and to.
    moves: Vec<(RawFd, RawFd)>,
    /// Copies of the sources that were among the targets.
    _lifted: Vec<OwnedFd>,
    argv: Strings,
    env: Strings,
    listen: Option<Listen>,
}

/// The entries that name the process itself, written when it is known who that is.
struct Listen {
    has_pidfs: bool,
    pid: Entry,
    pidfd_id: Entry,
}

type Entry = [u8; 48];

impl Launch {
    /// The nameless entries have their places in the environment.
    fn prepare(image: &Image<'_>, nameless: &[(usize, CString)]) -> Result<Self> {
        let floor = floor_above(&image.fds)?;
        let make_room = |e: io::Error| Error::io("make room for the descriptors that are passed", e);
        let (mut stay, mut moves, mut lifted) = (Vec::new(), Vec::new(), Vec::new());
        for (target, source) in &image.fds {
            let mut from = source.as_raw_fd();
            if from == *target {
                stay.push(from);
                continue;
            }
            if from < floor {
                let copy = lift(*source, floor).map_err(make_room)?;
                from = copy.as_raw_fd();
                lifted.push(copy);
            }
            moves.push((from, *target));
        }
        Ok(Self {
            floor,
            binary: lift(image.program.as_fd(), floor).map_err(make_room)?,
            path: None,
            stay,
            moves,
            _lifted: lifted,
            argv: Strings::new(arguments(image)?),
            env: Strings::new(environment(image, nameless)?),
            listen: image.listen_pid.then(Listen::new),
        })
    }

    /// Puts the descriptors in place and becomes the program; returns if that failed. Allocates nothing.
    fn run(&mut self) -> Failure {
        for &(from, to) in &self.moves {
            // SAFETY: two integers; the caller gave the target up to us, and takes it back if this fails.
            if let Err(errno) = Errno::result(unsafe { libc::dup2(from, to) }) {
                return Failure { step: Step::Descriptors, errno };
            }
        }
        self.stay.iter().for_each(|&fd| set_close_on_exec(fd, false));
        if let Some(listen) = &mut self.listen {
            listen.write(&mut self.env);
        }
        Failure { step: Step::Exec, errno: self.exec_or_by_interpreter() }
    }

    /// ENOENT means that an interpreter is to open the program again, and that close-on-exec would keep it from that;
    /// or that the interpreter or loader is missing, and then it comes again.
    fn exec_or_by_interpreter(&self) -> Errno {
        match self.exec() {
            Errno::ENOENT => {
                set_close_on_exec(self.binary.as_raw_fd(), false);
                self.exec()
            }
            errno => errno,
        }
    }

    /// A path that is gone in the meantime, or whose interpreter is, leaves the descriptor to try.
    fn exec(&self) -> Errno {
        let (argv, envp) = (self.argv.as_ptr(), self.env.as_ptr());
        if let Some(path) = &self.path {
            // SAFETY: both arrays are ended by a null, and their strings by a NUL; they live as long as `self`.
            unsafe { libc::execve(path.as_ptr(), argv, envp) };
            match Errno::last() {
                Errno::ENOENT => {}
                errno => return errno,
            }
        }
        let fd = self.binary.as_raw_fd();
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH) };
        Errno::last()
    }
}

fn is_busy(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ExecutableFileBusy
}

/// Close-on-exec is the only descriptor flag there is. A closed descriptor is none to worry about.
fn set_close_on_exec(fd: RawFd, on: bool) {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: three integers.
    unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
}

fn is_close_on_exec(fd: RawFd) -> bool {
    // SAFETY: two integers; a closed descriptor is an error, which has every bit set, and is none that stays open.
    unsafe { libc::fcntl(fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
}

fn floor_above(fds: &[(RawFd, BorrowedFd<'_>)]) -> Result<RawFd> {
    let mut targets: Vec<RawFd> = fds.iter().map(|(target, _)| *target).collect();
    targets.sort_unstable();
    if let Some(target) = targets.first().filter(|target| **target < FIRST_FREE) {
        return Err(Error::Invalid {
            detail: format!("descriptor {target} is a standard one; pass it at 3 or more"),
        });
    }
    if let Some([target, _]) = targets.array_windows().find(|[a, b]| a == b) {
        return Err(Error::Invalid {
            detail: format!("two descriptors are to be passed at number {target}"),
        });
    }
    let highest = targets.last().copied().unwrap_or(FIRST_FREE - 1);
    highest
        .checked_add(1)
        .ok_or_else(|| Error::Invalid { detail: format!("there is no descriptor {highest}") })
}

fn arguments(image: &Image<'_>) -> Result<Vec<CString>> {
    std::iter::once(&image.argv0).chain(&image.args).map(|arg| c_string(arg.as_bytes().to_vec())).collect()
}

fn environment(image: &Image<'_>, nameless: &[(usize, CString)]) -> Result<Vec<CString>> {
    let ours = |key: &OsStr| image.listen_pid && (key == "LISTEN_PID" || key == "LISTEN_PIDFDID");
    let mut entries = Vec::with_capacity(image.env.len());
    for (key, value) in image.env.iter().filter(|(key, _)| !ours(key)) {
        // The standard library takes an entry that begins with the sign for a variable whose name does.
        if key.is_empty() || key.as_bytes().iter().skip(1).any(|&byte| byte == b'=') {
            return Err(Error::Invalid {
                detail: format!("{} cannot be the name of a variable", key.display()),
            });
        }
        entries.push(c_string([key.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    for (at, entry) in nameless {
        entries.insert((*at).min(entries.len()), entry.clone());
    }
    Ok(entries)
}

fn c_string(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(|e| Error::Invalid {
        detail: format!(
            "a NUL byte cannot be passed on: {}",
            String::from_utf8_lossy(&e.into_vec()).escape_default()
        ),
    })
}

/// Strings as an array of pointers that a null ends, with room for [`Listen`]'s.
struct Strings {
    pointers: Vec<*const c_char>,
    count: usize,
    _owned: Vec<CString>,
}

// SAFETY: the pointers are to strings that this value owns and nobody changes, and to those of `Listen`, which moves
// with it and sets them again each time before they are used.
unsafe impl Send for Strings {}
// SAFETY: as above; through a shared reference they are only read.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(owned: Vec<CString>) -> Self {
        let count = owned.len();
        let nulls = [std::ptr::null(); 3];
        Self { pointers: owned.iter().map(|s| s.as_ptr()).chain(nulls).collect(), count, _owned: owned }
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// Replaces what was added before. The entries must outlive the array's use and end in a NUL.
    fn add(&mut self, added: [Option<&Entry>; 2]) {
        let entries = added
            .into_iter()
            .flatten()
            .map(|entry| entry.as_ptr().cast())
            .chain(std::iter::repeat(std::ptr::null()));
        for (slot, entry) in self.pointers.iter_mut().skip(self.count).zip(entries) {
            *slot = entry;
        }
    }
}

impl Listen {
    fn new() -> Self {
        let is_pidfs = |pidfd: PidFd| fstatfs(&pidfd).is_ok_and(|fs| fs.filesystem_type() == PIDFS_MAGIC);
        Self { has_pidfs: PidFd::current().is_ok_and(is_pidfs), pid: [0; 48], pidfd_id: [0; 48] }
    }

    /// Adds the variables for the process that calls this. Allocates nothing.
    fn write(&mut self, env: &mut Strings) {
        self.pid = entry(b"LISTEN_PID=", u64::from(std::process::id()));
        let id = if self.has_pidfs { own_pidfd_id() } else { None };
        self.pidfd_id = entry(b"LISTEN_PIDFDID=", id.unwrap_or(0));
        env.add([Some(&self.pid), id.is_some().then_some(&self.pidfd_id)]);
    }
}

fn own_pidfd_id() -> Option<u64> {
    let pidfd = PidFd::current().ok()?;
    fstat(&pidfd).ok().map(|stat| stat.st_ino)
}

/// Returns `NAME=value` with a NUL behind it: the longest name here and the longest number leave room for that.
fn entry(name: &[u8], value: u64) -> Entry {
    let mut digits = [0; 20];
    let (mut rest, mut length) = (value, 0);
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    let mut entry = [0; 48];
    let text = name.iter().chain(digits.iter().skip(20 - length));
    for (slot, byte) in entry.iter_mut().zip(text) {
        *slot = *byte;
    }
    entry
}

/// The new process between fork and exec. It may only make system calls.
struct Newborn {
    launch: Launch,
    report: OwnedFd,
    new_session: bool,
    orphan: bool,
    cgroup: Option<File>,
    strays_max: RawFd,
}

impl Newborn {
    /// Does not return: the standard library would report a failure to a number that may be one of our targets by then.
    fn live(&mut self) -> io::Result<()> {
        if self.orphan {
            leave_to_init();
        }
        let failure = match self.settle() {
            Ok(()) => self.launch.run(),
            Err(failure) => failure,
        };
        let text = failure.to_bytes();
        // SAFETY: the buffer is as long as said. If nobody reads any more, nobody needs to know.
        unsafe { libc::write(self.report.as_raw_fd(), text.as_ptr().cast(), text.len()) };
        // SAFETY: ends this process at once, without the parent's exit handlers.
        unsafe { libc::_exit(127) }
    }

    fn settle(&self) -> Result<(), Failure> {
        reset_signals();
        if let Some(cgroup) = &self.cgroup {
            // A zero stands for whoever writes it, see cgroups(7).
            nix::unistd::write(cgroup, b"0").map_err(|errno| Failure { step: Step::Cgroup, errno })?;
        }
        if self.new_session {
            nix::unistd::setsid().map_err(|errno| Failure { step: Step::Session, errno })?;
        }
        for fd in 0..FIRST_FREE {
            start::open_standard(fd).map_err(|errno| Failure { step: Step::Descriptors, errno })?;
        }
        self.close_strays_on_exec();
        Ok(())
    }

    fn close_strays_on_exec(&self) {
        let (first, last) = (FIRST_FREE as libc::c_uint, libc::c_uint::MAX);
        // SAFETY: three integers.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        if done != 0 {
            // Before Linux 5.11.
            (FIRST_FREE..self.strays_max).for_each(|fd| set_close_on_exec(fd, true));
        }
    }
}

/// Goes on as a child of this process, which ends: whoever waits for that one is done, and init takes the other.
///
/// The C library's fork would run handlers of others that may wait for locks; the kernel's copies and nothing else. If there can
/// be no further process, this one goes on, as a child like any other.
fn leave_to_init() {
    // SAFETY: without flags but the signal at its end it is fork(2), and needs no stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid > 0 {
        // SAFETY: ends this process at once, without the parent's exit handlers.
        unsafe { libc::_exit(0) }
    }
}

/// Handlers go by themselves at exec, but what is ignored stays so. The C library refuses to change the two signals
/// that it keeps for itself, and they can have been inherited as ignored: so the kernel is asked.
fn reset_signals() {
    // As much as the kernel's sigaction is anywhere: the default handler, no flags, an empty mask.
    let default = [0u64; 8];
    for signal in 1..=SIGNALS {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: the new action is zeros for at least as long as the kernel reads, and the old one is not asked for.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, SIGNALS / 8) };
    }
    // The arguments are valid by their types.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Puts the process back as it was when exec fails: a supervisor that cannot become its new self goes on as the old one.
struct Undo {
    replaced: Vec<Replaced>,
    /// What is close-on-exec, and will not be.
    stay: Vec<RawFd>,
    /// What is not close-on-exec, and is made so.
    standard: Vec<RawFd>,
    mask: SigSet,
    signals: Vec<(libc::c_int, libc::sigaction)>,
}

struct Replaced {
    number: RawFd,
    /// What was there, and whether it was close-on-exec.
    was: Option<(OwnedFd, bool)>,
}

impl Undo {
    /// Remembers what the launch will replace, and gives the signals back as they were at the start.
    fn new(launch: &Launch) -> io::Result<Self> {
        let replaced = launch
            .moves
            .iter()
            .map(|&(_, to)| Replaced::keep(to, launch.floor))
            .collect::<io::Result<_>>()?;
        let stay = launch.stay.iter().copied().filter(|&fd| is_close_on_exec(fd)).collect();
        let start = start::recorded();
        let standard: Vec<RawFd> = start.closed.iter().copied().filter(|&fd| is_the_runtimes(fd)).collect();
        standard.iter().for_each(|&fd| set_close_on_exec(fd, true));
        let replace = |(signal, action): (libc::c_int, _)| (signal, start::replace_action(signal, &action));
        let signals = start::actions().into_iter().map(replace).collect();
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&start.mask), Some(&mut mask))?;
        Ok(Self { replaced, stay, standard, mask, signals })
    }
}

/// Whether a standard descriptor that was closed at the start is still what the runtime opened there.
fn is_the_runtimes(fd: RawFd) -> bool {
    // SAFETY: it is used only here, where nothing closes it; if it is closed, the answer is an error.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let is_null = || fstat(fd).is_ok_and(|stat| stat.st_rdev == DEV_NULL);
    fcntl(fd, FcntlArg::F_GETFD).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0) && is_null()
}

impl Replaced {
    fn keep(number: RawFd, floor: RawFd) -> io::Result<Self> {
        // SAFETY: it is used only here, where nothing closes it; if it is closed already, fcntl says so.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = match fcntl(fd, FcntlArg::F_GETFD) {
            Ok(flags) => FdFlag::from_bits_retain(flags),
            Err(_) => return Ok(Self { number, was: None }),
        };
        Ok(Self { number, was: Some((lift(fd, floor)?, flags.contains(FdFlag::FD_CLOEXEC))) })
    }

    fn put_back(&self) {
        let Some((was, close_on_exec)) = &self.was else {
            // SAFETY: the number was free before we put our own copy there.
            unsafe { libc::close(self.number) };
            return;
        };
        let flags = if *close_on_exec { libc::O_CLOEXEC } else { 0 };
        // SAFETY: integers; the number gets back what its owner had there.
        unsafe { libc::dup3(was.as_raw_fd(), self.number, flags) };
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.replaced.iter().for_each(Replaced::put_back);
        self.stay.iter().for_each(|&fd| set_close_on_exec(fd, true));
        self.standard.iter().for_each(|&fd| set_close_on_exec(fd, false));
        for (signal, action) in &self.signals {
            start::replace_action(*signal, action);
        }
        // The arguments are valid by their types.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None);
    }
}

/// Why a program did not start, in a form that crosses a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    step: Step,
    errno: Errno,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Cgroup,
    Session,
    Descriptors,
    Exec,
}

impl Failure {
    fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = (self.errno as i32).to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// Returns nothing at the end of file: the program runs, and its start has closed the pipe.
    fn read(mut report: impl Read) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        report.read_to_end(&mut bytes)?;
        let Some((&step, errno)) = bytes.split_first() else { return Ok(None) };
        let step = [Step::Cgroup, Step::Session, Step::Descriptors, Step::Exec]
            .into_iter()
            .find(|&s| s as u8 == step);
        let errno = errno.first_chunk().map(|bytes| Errno::from_raw(i32::from_ne_bytes(*bytes)));
        match (step, errno) {
            (Some(step), Some(errno)) => Ok(Some(Self { step, errno })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn into_error(self, program: &Program) -> Error {
        let path = program.path().display();
        let attempt = match self.step {
            Step::Cgroup => format!("move {path} to its control group"),
            Step::Session => format!("make a session for {path}"),
            Step::Descriptors => format!("pass descriptors to {path}"),
            Step::Exec if self.errno == Errno::ENOENT => format!("run the interpreter or loader of {path}"),
            Step::Exec => format!("run {path}"),
        };
        Error::io(attempt, self.errno)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use crate::sys::process::Stat;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell() -> Program {
        Program::open(Path::new("/bin/sh")).unwrap()
    }

    fn image<'a>(program: &'a Program, args: &[&str]) -> Image<'a> {
        Image { args: args.iter().map(OsString::from).collect(), ..Image::new(program) }
    }

    /// Starts it with a pipe as its output.
    fn start(spawn: Spawn<'_>) -> (Child, BufReader<PipeReader>) {
        let (reader, writer) = io::pipe().unwrap();
        let child = Spawn { stdout: Some(writer.as_fd()), ..spawn }.spawn().unwrap();
        (child, BufReader::new(reader))
    }

    fn output(image: Image<'_>) -> String {
        let (mut child, mut reader) = start(Spawn::new(image));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        text
    }

    fn what_is_at(pid: u32, fd: RawFd) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()
    }

    fn what_is_ours(fd: RawFd) -> Option<PathBuf> {
        what_is_at(std::process::id(), fd)
    }

    /// A process that does nothing, not even open the files of its language, and what it has open.
    fn idle_with(fds: Vec<(RawFd, BorrowedFd<'_>)>) -> (Child, Vec<(RawFd, PathBuf)>) {
        let shell = shell();
        let (child, mut reader) =
            start(Spawn::new(Image { fds, ..image(&shell, &["-c", "echo up; kill -STOP $$"]) }));
        reader.read_line(&mut String::new()).unwrap();
        let entries = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        let numbers = entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let mut open: Vec<_> = numbers.map(|fd| (fd, what_is_at(child.id(), fd).unwrap())).collect();
        open.sort();
        (child, open)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn listeners<const N: usize>() -> [TcpListener; N] {
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn assert_passed(passed: Vec<(RawFd, BorrowedFd<'_>)>) {
        let mut expected: Vec<_> =
            passed.iter().map(|(to, from)| (*to, what_is_ours(from.as_raw_fd()).unwrap())).collect();
        expected.sort();
        let (child, open) = idle_with(passed);
        end(child);
        assert_eq!(open[3..], expected[..], "what was passed and, beside the standard ones, nothing else");
    }

    #[test]
    fn sockets_arrive_at_three_four_and_five() {
        let [a, b, c] = listeners();
        assert_passed(vec![(3, c.as_fd()), (4, a.as_fd()), (5, b.as_fd())]);
    }

    #[test]
    fn sources_and_targets_may_be_each_others_numbers_or_the_same() {
        let [a, b, c, d] = listeners();
        assert_passed(vec![
            (a.as_raw_fd(), b.as_fd()),
            (b.as_raw_fd(), c.as_fd()),
            (c.as_raw_fd(), a.as_fd()),
            (d.as_raw_fd(), d.as_fd()),
        ]);
    }

    #[test]
    fn nothing_else_is_inherited_of_five_hundred_open_descriptors() {
        let [first, second] = listeners();
        let strays: Vec<_> = (0..500).map(|_| File::open("/dev/null").unwrap()).collect();
        // Some that a careless library left inheritable.
        strays.iter().step_by(50).for_each(|stray| set_close_on_exec(stray.as_raw_fd(), false));
        assert_passed(vec![
            (strays[7].as_raw_fd(), first.as_fd()),
            (strays[250].as_raw_fd(), second.as_fd()),
        ]);
    }

    #[test]
    fn a_number_that_is_taken_twice_or_standard_is_refused() {
        let ([a], shell) = (listeners(), shell());
        for fds in [vec![(2, a.as_fd())], vec![(-1, a.as_fd())], vec![(3, a.as_fd()), (3, a.as_fd())]] {
            let refused = Spawn::new(Image { fds, ..Image::new(&shell) }).spawn().unwrap_err();
            assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
        }
    }

    #[test]
    fn a_number_beyond_the_limit_is_an_error() {
        let ([a], shell) = (listeners(), shell());
        for (far, is_invalid) in [(RawFd::MAX - 1, false), (RawFd::MAX, true)] {
            let image = Image { fds: vec![(far, a.as_fd())], ..Image::new(&shell) };
            let failed = Spawn::new(image).spawn().unwrap_err();
            assert_eq!(matches!(failed, Error::Invalid { .. }), is_invalid, "{failed}");
        }
    }

    #[test]
    fn the_child_finds_its_own_pid_in_the_environment() {
        let shell = shell();
        let mut image = image(&shell, &["-c", "echo $$ $LISTEN_PID $LISTEN_FDS"]);
        image.env = vec![("LISTEN_FDS".into(), "2".into()), ("LISTEN_PID".into(), "1".into())];
        image.listen_pid = true;
        let text = output(image);
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words[0], words[1]);
        assert_eq!(words[2..], ["2"]);
    }

    #[test]
    fn the_pidfd_id_is_the_inode_of_the_childs_pidfd() {
        let shell = shell();
        let script = "echo $LISTEN_PIDFDID; exec sleep 600";
        let (child, mut reader) =
            start(Spawn::new(Image { listen_pid: true, ..image(&shell, &["-c", script]) }));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        let id = Listen::new().has_pidfs.then(|| fstat(&pidfd).unwrap().st_ino);
        end(child);
        assert_eq!(line.trim().parse().ok(), id);
    }

    #[test]
    fn the_environment_and_the_name_are_exactly_what_was_given() {
        let env = Program::open(Path::new("env")).unwrap();
        let given = vec![("A".into(), "1".into()), ("B".into(), "x=y".into())];
        assert_eq!(output(Image { env: given, ..Image::new(&env) }), "A=1\nB=x=y\n");
        let shell = shell();
        let script = "tr '\\0' ' ' </proc/$$/cmdline";
        let named = output(Image { argv0: "kvd".into(), ..image(&shell, &["-c", script]) });
        assert!(named.starts_with("kvd -c "), "{named}");
    }

    #[test]
    fn what_cannot_be_a_string_or_a_name_is_refused() {
        let shell = shell();
        let with_env = |key: &str| Image { env: vec![(key.into(), "".into())], ..Image::new(&shell) };
        for image in [image(&shell, &["a\0b"]), with_env("a=b"), with_env(""), with_env("a\0b")] {
            assert!(matches!(Spawn::new(image).spawn().unwrap_err(), Error::Invalid { .. }));
        }
    }

    #[test]
    fn a_new_session_is_led_by_the_child_and_otherwise_it_is_in_ours() {
        let shell = shell();
        for new_session in [true, false] {
            let script = image(&shell, &["-c", "echo up; exec sleep 600"]);
            let (child, mut reader) = start(Spawn { new_session, ..Spawn::new(script) });
            reader.read_line(&mut String::new()).unwrap();
            let (pid, session) = (child.id(), Stat::of(child.id()).unwrap().session);
            end(child);
            assert_eq!(session == pid, new_session);
        }
    }

    #[test]
    fn an_orphan_is_not_this_processs_child_and_runs_on() {
        let shell = shell();
        let script = image(&shell, &["-c", "echo $PPID $$; exec sleep 600"]);
        let (mut child, mut reader) = start(Spawn { orphan: true, new_session: true, ..Spawn::new(script) });
        assert!(child.wait().unwrap().success(), "it has only started the other");
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let ids: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let orphan = PidFd::open(ids[1]).unwrap();
        assert!(ids[0] != std::process::id() && ids[1] != child.id(), "{line}");
        assert!(!orphan.is_dead().unwrap());
        orphan.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn the_standard_descriptors_are_open_and_input_is_empty() {
        let (child, open) = idle_with(Vec::new());
        end(child);
        assert_eq!(open.iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(open[0].1, Path::new("/dev/null"));
    }

    #[test]
    fn no_signal_is_blocked_or_ignored_in_the_child() {
        let shell = shell();
        let (mut before, mut blocked) = (SigSet::empty(), SigSet::empty());
        blocked.add(nix::sys::signal::Signal::SIGTERM);
        // This thread's mask only; the runtime has SIGPIPE ignored for all.
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before)).unwrap();
        let (child, mut reader) = start(Spawn::new(image(&shell, &["-c", "echo up; exec sleep 600"])));
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).unwrap();
        reader.read_line(&mut String::new()).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        end(child);
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!((field("SigBlk:"), field("SigIgn:")), ("0".repeat(16), "0".repeat(16)));
    }

    fn copy_of(program: &str, dir: &Path) -> PathBuf {
        let path = dir.join("program");
        fs::copy(Program::open(Path::new(program)).unwrap().path(), &path).unwrap();
        path
    }

    fn make_script(path: &Path, content: &str) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_program_that_is_replaced_after_it_was_opened_runs_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy_of("sh", dir.path());
        let program = Program::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        make_script(&path, "#!/bin/sh\nexit 1\n");
        let exit = Spawn::new(image(&program, &["-c", "exit 7"])).spawn().unwrap().wait().unwrap();
        assert_eq!(exit.code(), Some(7));
    }

    #[test]
    fn a_script_runs_with_its_arguments_and_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        make_script(&path, "#!/bin/sh\necho \"$1\"; readlink /proc/$$/fd/3\n");
        let program = Program::open(&path).unwrap();
        let [a] = listeners();
        let socket = what_is_ours(a.as_raw_fd()).unwrap();
        let text = output(Image { fds: vec![(3, a.as_fd())], ..image(&program, &["one two"]) });
        assert_eq!(text, format!("one two\n{}\n", socket.display()));
    }

    #[test]
    fn a_missing_interpreter_is_named_although_targets_cover_every_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        make_script(&path, "#!/no/such/interpreter\n");
        let program = Program::open(&path).unwrap();
        // Where the standard library has put its own pipe: the failure must come through all the same.
        let [a] = listeners();
        let fds = (3..200).map(|to| (to, a.as_fd())).collect();
        let failed = Spawn::new(Image { fds, ..Image::new(&program) }).spawn().unwrap_err();
        assert!(failed.to_string().starts_with("unable to run the interpreter or loader of"), "{failed}");
        assert!(failed.to_string().contains("/script"), "{failed}");
        let Error::Io { source, .. } = failed else { panic!("it is an error of the system") };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_program_without_a_known_format_is_an_error_not_a_shell_script() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        make_script(&path, "exit 0\n");
        let failed = Spawn::new(Image::new(&Program::open(&path).unwrap())).spawn().unwrap_err();
        assert!(matches!(failed, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOEXEC)));
    }

    /// Returns the children that this thread has forked: one that waits to become its program is among them.
    fn children_of(thread: nix::unistd::Pid) -> String {
        fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default()
    }

    #[test]
    fn a_program_that_is_still_being_written_runs_when_its_writer_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy_of("sh", dir.path());
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        let program = Program::open(&path).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let exit = thread::scope(|scope| {
            let spawner = scope.spawn(|| {
                tell.send(nix::unistd::gettid()).unwrap();
                Spawn::new(image(&program, &["-c", "exit 7"])).spawn().unwrap().wait().unwrap()
            });
            let thread = told.recv().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while children_of(thread).is_empty() && !spawner.is_finished() && Instant::now() < deadline {
                thread::yield_now();
            }
            drop(writer);
            spawner.join().unwrap()
        });
        assert_eq!(exit.code(), Some(7));
    }

    #[test]
    fn a_program_that_stays_open_for_writing_is_busy_in_bounded_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = copy_of("sh", dir.path());
        let _writer = OpenOptions::new().append(true).open(&path).unwrap();
        let program = Program::open(&path).unwrap();
        let started = Instant::now();
        let failed = Spawn::new(Image::new(&program)).spawn().unwrap_err();
        assert!(matches!(failed, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ETXTBSY)));
        assert!(started.elapsed() < PATIENCE);
    }

    #[test]
    fn a_control_group_that_is_not_there_is_an_error() {
        let shell = shell();
        let spawn =
            Spawn { cgroup: Some("/sys/fs/cgroup/no-such-group".into()), ..Spawn::new(Image::new(&shell)) };
        assert!(spawn.spawn().unwrap_err().to_string().contains("no-such-group/cgroup.procs"));
    }

    /// Makes a group for one test, where the machine lets us.
    fn make_group() -> Option<PathBuf> {
        let name = format!("handoff-test-{}-spawn", std::process::id());
        let parents = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let usable = |parent: &&Path| {
            parent.join("cgroup.procs").exists() && fs::create_dir(parent.join(&name)).is_ok()
        };
        parents.into_iter().find(usable).map(|parent| parent.join(&name))
    }

    #[test]
    fn the_child_is_in_its_control_group_from_the_start() {
        let Some(group) = make_group() else {
            return eprintln!("skipped: no control group can be made here");
        };
        let shell = shell();
        let script = image(&shell, &["-c", "echo up; exec sleep 600"]);
        let (child, mut reader) = start(Spawn { cgroup: Some(group.clone()), ..Spawn::new(script) });
        reader.read_line(&mut String::new()).unwrap();
        let (pid, members) = (child.id(), fs::read_to_string(group.join("cgroup.procs")).unwrap());
        end(child);
        fs::remove_dir(&group).unwrap();
        assert!(members.lines().any(|member| member == pid.to_string()), "{pid} is not in {members}");
    }

    #[test]
    fn a_failure_crosses_the_pipe_and_its_end_means_success() {
        for step in [Step::Cgroup, Step::Session, Step::Descriptors, Step::Exec] {
            let failure = Failure { step, errno: Errno::EBUSY };
            assert_eq!(Failure::read(&failure.to_bytes()[..]).unwrap(), Some(failure));
        }
        assert_eq!(Failure::read(&b""[..]).unwrap(), None);
        assert!(Failure::read(&b"\x09\0\0\0\0"[..]).is_err());
        assert!(Failure::read(&b"\0\0"[..]).is_err());
    }

    #[test]
    fn the_longest_number_fits_its_entry() {
        let text =
            |entry: Entry| String::from_utf8(entry.split(|&b| b == 0).next().unwrap().to_vec()).unwrap();
        assert_eq!(text(entry(b"LISTEN_PIDFDID=", u64::MAX)), format!("LISTEN_PIDFDID={}", u64::MAX));
        assert_eq!(text(entry(b"LISTEN_PID=", 0)), "LISTEN_PID=0");
    }

    fn pipe_disposition() -> libc::sighandler_t {
        let mut old = start::action(libc::SIG_DFL);
        // SAFETY: a null new action only reads.
        unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut old) };
        old.sa_sigaction
    }

    /// Plays a link in a chain: becomes the shell with a socket at each of three numbers, two of which were taken.
    #[test]
    #[ignore = "a part for another test to play"]
    fn becomes_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let (taken, [a, b], free) = (File::open(dir.path()).unwrap(), listeners(), 77);
        let now = || [taken.as_raw_fd(), free, a.as_raw_fd()].map(what_is_ours);
        let before = now();
        let fds = vec![(taken.as_raw_fd(), b.as_fd()), (free, a.as_fd()), (a.as_raw_fd(), a.as_fd())];

        let broken = dir.path().join("broken");
        make_script(&broken, "#!/no/such/interpreter\n");
        let program = Program::open(&broken).unwrap();
        let failed = Image { fds: fds.clone(), listen_pid: true, ..Image::new(&program) }.exec();
        assert!(failed.to_string().contains("interpreter"), "{failed}");
        assert_eq!(now(), before, "a failed exec changes nothing");
        assert!(is_close_on_exec(taken.as_raw_fd()) && is_close_on_exec(a.as_raw_fd()));
        assert_eq!(pipe_disposition(), libc::SIG_IGN);
        drop(dir);

        let is_at = |fd: RawFd, what: &TcpListener| {
            format!(
                "test \"$(readlink /proc/$$/fd/{fd})\" = '{}'",
                what_is_ours(what.as_raw_fd()).unwrap().display()
            )
        };
        let checks = [
            "test $$ = $LISTEN_PID".to_owned(),
            is_at(taken.as_raw_fd(), &b),
            is_at(free, &a),
            is_at(a.as_raw_fd(), &a),
            // What was inherited without close-on-exec belongs to somebody further down the chain.
            is_at(78, &a),
            // SIGPIPE, the thirteenth bit, is not ignored.
            "grep -q '^SigIgn:.*[02468ace][0-9a-f][0-9a-f][0-9a-f]$' /proc/$$/status".to_owned(),
            "exit 42".to_owned(),
        ];
        // SAFETY: the number is free, and stays open until exec.
        unsafe { libc::dup2(a.as_raw_fd(), 78) };
        let shell = shell();
        let failed = Image { fds, listen_pid: true, ..image(&shell, &["-xc", &checks.join(" && ")]) }.exec();
        panic!("{failed}");
    }

    /// Plays a link that was started with standard descriptors closed, and whose program loses its path.
    #[test]
    #[ignore = "a part for another test to play"]
    fn becomes_a_shell_without_input() {
        assert_eq!(start::recorded().closed, [0, 2]);
        let dir = tempfile::tempdir().unwrap();
        let broken = dir.path().join("broken");
        make_script(&broken, "#!/no/such/interpreter\n");
        let failed = Image::new(&Program::open(&broken).unwrap()).exec();
        assert!(failed.to_string().contains("interpreter"), "{failed}");
        assert!(is_the_runtimes(0) && is_the_runtimes(2), "a failed exec changes nothing");

        let program = Program::open(&copy_of("sh", dir.path())).unwrap();
        drop(dir);
        let checks =
            "test -e /proc/$$/fd/1 && for fd in 0 2; do test ! -e /proc/$$/fd/$fd || exit 1; done; exit 42";
        panic!("{}", image(&program, &["-c", checks]).exec());
    }

    #[test]
    fn exec_closes_again_what_was_closed_and_finds_a_program_without_its_path() {
        let part = "exec \"$0\" --exact sys::spawn::tests::becomes_a_shell_without_input --ignored 0<&- 2>&-";
        let mut command = Command::new("/bin/sh");
        let output = command.arg("-c").arg(part).arg(std::env::current_exe().unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    fn exec_installs_what_was_asked_keeps_what_is_inherited_and_undoes_itself_when_it_fails() {
        let me = Program::open(&std::env::current_exe().unwrap()).unwrap();
        let part = ["sys::spawn::tests::becomes_a_shell", "--exact", "--ignored", "--nocapture"];
        let (reader, writer) = io::pipe().unwrap();
        let output = Some(writer.as_fd());
        let mut child =
            Spawn { stdout: output, stderr: output, ..Spawn::new(image(&me, &part)) }.spawn().unwrap();
        drop(writer);
        let text = io::read_to_string(reader).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42), "{text}");
    }
}
