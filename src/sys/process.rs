//! Which process, whether it lives, and how to end it: never by a bare pid, which can name a stranger.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::kill;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

pub use crate::proto::party::ProcessId;
pub use nix::sys::signal::Signal;

impl ProcessId {
    /// Returns the identity of this process.
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// Returns the identity of the process that has this pid now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id()? })
    }

    /// Returns whether this very process still runs: a zombie, a stranger with its pid or an earlier boot does not.
    ///
    /// A process that `/proc` hides from us (`hidepid`) counts as alive: the wrong answer there would break a lock.
    pub fn is_alive(&self) -> bool {
        if boot_id().is_ok_and(|id| id != self.boot_id) {
            return false;
        }
        match Stat::of(self.pid) {
            Ok(stat) => stat.start_ticks == self.start_ticks && !stat.is_gone(),
            Err(e) if is_no_process(&e) => exists_unseen(self.pid),
            Err(_) => true,
        }
    }
}

/// A descriptor for a process, see pidfd_open(2).
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has this pid now; ESRCH if there is none. Compare its [`ProcessId`] afterwards.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(Errno::ESRCH))?;
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(Errno::EBADF))?;
        // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Opens this process.
    pub fn current() -> io::Result<Self> {
        Self::open(std::process::id())
    }

    /// Adopts a descriptor that somebody sent, after checking that it is a pidfd.
    ///
    /// # Errors
    /// `InvalidInput` for anything else, such as a file that would never become readable; it is closed.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        match fdinfo_pid(fd.as_fd())? {
            Some(_) => Ok(Self(fd)),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not a pidfd")),
        }
    }

    /// Returns the pid, or nothing once the process was reaped or if it lives in another pid namespace.
    pub fn pid(&self) -> Option<u32> {
        let pid = fdinfo_pid(self.as_fd()).ok()??;
        u32::try_from(pid).ok().filter(|&pid| pid != 0)
    }

    /// Returns whether the process has ended, reaped or not.
    pub fn is_dead(&self) -> io::Result<bool> {
        self.wait_dead(Instant::now())
    }

    /// Waits until the process has ended with all its threads; false if it still runs at the deadline.
    pub fn wait_dead(&self, deadline: Instant) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match ppoll(&mut polled, Some(TimeSpec::from_duration(left)), None) {
                Ok(0) if Instant::now() < deadline => {}
                Ok(n) => return Ok(n > 0),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Returns how the process ended and reaps it, where it is a child of this process that has ended and was not reaped.
    ///
    /// # Errors
    /// ECHILD where it is no child of this process.
    pub fn try_reap(&self) -> io::Result<Option<ExitStatus>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        Ok(match waitid(Id::PIDFd(self.as_fd()), flags)? {
            WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw((code & 0xff) << 8)),
            WaitStatus::Signaled(_, signal, dumped) => {
                Some(ExitStatus::from_raw(signal as i32 | if dumped { 0x80 } else { 0 }))
            }
            _ => None,
        })
    }

    /// Sends a signal; to a process that has ended it does nothing.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo is allowed and means what kill(2) would send; nothing else points to memory.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as libc::c_int, info, 0)
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns whether this process may send it signals; nothing is sent.
    pub fn may_signal(&self) -> io::Result<bool> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: as above; 0 is no signal and only asks, see kill(2).
        let asked = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), 0, info, 0) };
        match Errno::result(asked) {
            Ok(_) | Err(Errno::ESRCH) => Ok(true),
            Err(Errno::EPERM) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns another descriptor for the same process.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> Self {
        pidfd.0
    }
}

/// Who connected a Unix socket, or made the pair: see SO_PEERCRED in unix(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// The process; it may have passed the socket on, or be gone.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Returns the credentials of the peer of a connected Unix socket.
pub fn peer_cred(fd: BorrowedFd<'_>) -> io::Result<PeerCred> {
    let cred = getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok(PeerCred { pid: u32::try_from(cred.pid()).unwrap_or(0), uid: cred.uid(), gid: cred.gid() })
}

/// Returns the supplementary groups of the peer of a connected Unix socket (SO_PEERGROUPS); none where they are more than a thousand.
pub fn peer_groups(fd: BorrowedFd<'_>) -> Vec<u32> {
    let Ok((groups, length)) = super::socket::option(fd, libc::SOL_SOCKET, SO_PEERGROUPS, [0u8; 4096]) else {
        return vec![];
    };
    let (words, _) = groups[..length].as_chunks();
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

/// From asm-generic/socket.h.
const SO_PEERGROUPS: libc::c_int = 59;

/// Returns the id of this boot, a UUID: see `/proc/sys/kernel/random/boot_id` in random(4).
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Returns when the process started, in clock ticks after boot.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    Stat::of(pid).map(|stat| stat.start_ticks)
}

/// Returns the leader of a session, where it lives, if the process is in that session.
pub fn session_leader(pid: u32, sid: u32) -> Option<PidFd> {
    let leader = PidFd::open(sid).ok()?;
    let is_in_session = || Stat::of(pid).is_ok_and(|stat| stat.session == sid);
    // Opened first: while somebody is in the session, its id is nobody else's.
    (is_in_session() && Stat::of(sid).is_ok_and(|stat| stat.session == sid)).then_some(leader)
}

/// Returns the command line with spaces between the words, or the name in brackets where there is none.
pub fn command_line(pid: u32) -> io::Result<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline"))?;
    let line = String::from_utf8_lossy(&raw).trim_end_matches('\0').replace('\0', " ");
    if line.is_empty() { Stat::of(pid).map(|stat| format!("[{}]", stat.name)) } else { Ok(line) }
}

/// Returns the user who runs this process, and not whose rights it has.
pub fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// Returns the name of a user, where the machine's own list has it (passwd(5)): without name services, which a static program
/// may not be able to load.
pub fn user_name(uid: u32) -> Option<String> {
    name_of(uid, &fs::read_to_string("/etc/passwd").ok()?)
}

fn name_of(uid: u32, list: &str) -> Option<String> {
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Returns the terminal that a standard descriptor of this process leads to, such as `/dev/pts/3`.
pub fn terminal() -> Option<PathBuf> {
    let is_terminal = [io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()];
    let number = is_terminal.iter().position(|is_terminal| *is_terminal)?;
    fs::read_link(format!("/proc/self/fd/{number}")).ok()
}

pub use super::start::directory as starting_directory;

/// Returns a process's working directory.
pub fn working_directory(pid: u32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd"))
}

/// Returns the path that the program was started from; the file there may have been replaced since.
pub fn executable(pid: u32) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        // A file may really be called so; the link then names what exists.
        Some(stem) if !path.exists() => Ok(PathBuf::from(std::ffi::OsString::from_vec(stem.to_vec()))),
        _ => Ok(path),
    }
}

/// What `/proc/PID/stat` says of a process that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// The name of its program, at most 15 bytes.
    pub name: String,
    /// One letter.
    pub state: char,
    /// Its parent.
    pub parent: u32,
    /// Its session.
    pub session: u32,
    /// How many threads it has.
    pub threads: u32,
    /// When it started.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads the state of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let raw = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&raw)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood"))
        })
    }

    /// The name may contain spaces and parentheses, so the fields are counted from the last closing one.
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // Field 3 of proc_pid_stat(5), the state, is the first one here.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            name: name.to_owned(),
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            start_ticks: field(22)?.parse().ok()?,
        })
    }

    /// A main thread that ended alone shows as a zombie too, while its other threads go on writing.
    pub fn is_gone(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') && self.threads <= 1
    }
}

/// Returns whether reading from `/proc/PID` failed because there is no such process: ESRCH if it ended between open and read.
pub(super) fn is_no_process(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH)
}

fn exists_unseen(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    pid > 0 && matches!(kill(Pid::from_raw(pid), None), Err(Errno::EPERM))
}

/// Returns the `Pid:` line that only a pidfd has: -1 once the process was reaped, 0 in another namespace.
fn fdinfo_pid(fd: BorrowedFd<'_>) -> io::Result<Option<i64>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    Ok(info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    #[test]
    fn this_process_is_alive_and_the_same_one() {
        let me = ProcessId::current().unwrap();
        assert!(me.is_alive());
        assert_eq!(me, ProcessId::of(std::process::id()).unwrap());
        assert_eq!(serde_json::from_str::<ProcessId>(&serde_json::to_string(&me).unwrap()).unwrap(), me);
    }

    #[test]
    fn a_reused_pid_is_not_the_process_that_had_it() {
        let me = ProcessId::current().unwrap();
        assert!(!ProcessId { start_ticks: me.start_ticks - 1, ..me.clone() }.is_alive());
        assert!(!ProcessId { boot_id: "another boot".into(), ..me }.is_alive());
    }

    #[test]
    fn a_zombie_is_dead_to_both_identities_and_a_reaped_one_has_no_pid() {
        let mut child = sleeper();
        let id = ProcessId::of(child.id()).unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(id.is_alive());
        assert!(!pidfd.is_dead().unwrap());
        assert_eq!(pidfd.pid(), Some(child.id()));

        pidfd.signal(Signal::SIGKILL).unwrap();
        assert!(pidfd.wait_dead(soon()).unwrap());
        assert!(!id.is_alive(), "a zombie");
        assert!(pidfd.is_dead().unwrap());

        child.wait().unwrap();
        assert_eq!(pidfd.pid(), None);
        assert!(pidfd.is_dead().unwrap());
        assert!(!id.is_alive());
        pidfd.signal(Signal::SIGTERM).unwrap();
        assert_eq!(PidFd::open(child.id()).map(drop).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn waiting_for_a_living_process_ends_at_the_deadline_and_not_before() {
        let pidfd = PidFd::current().unwrap();
        let deadline = Instant::now() + Duration::from_micros(1500);
        assert!(!pidfd.wait_dead(deadline).unwrap());
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn only_a_pidfd_is_adopted_as_one() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(PidFd::from_fd(file.into()).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert_eq!(PidFd::from_fd(socket.into()).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let mine = PidFd::from_fd(PidFd::current().unwrap().into()).unwrap();
        assert_eq!(mine.pid(), Some(std::process::id()));
    }

    #[test]
    fn the_peer_of_a_pair_is_the_process_that_made_it() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert_eq!(peer_cred(socket.as_fd()).unwrap().pid, std::process::id());
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "77 (a) b (c) S 1 77 70 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 987654 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.name, "a) b (c");
        assert_eq!((stat.state, stat.session, stat.threads, stat.start_ticks), ('S', 70, 3, 987_654));
        assert_eq!(Stat::parse("77 (cut) S 1 77"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_main_thread_that_ended_alone_does_not_make_its_process_gone() {
        let with = |state: &str, threads: u32| {
            Stat::parse(&format!("7 (x) {state} 1 7 7 0 -1 0 1 0 0 0 0 0 0 0 20 0 {threads} 0 5 0 0"))
                .unwrap()
        };
        assert!(with("Z", 1).is_gone());
        assert!(with("X", 0).is_gone());
        assert!(!with("Z", 2).is_gone());
        assert!(!with("D", 1).is_gone());
    }

    #[test]
    fn a_program_that_was_replaced_keeps_the_path_it_was_started_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sleeper");
        fs::copy(executable(std::process::id()).unwrap(), &path).unwrap();
        let mut child = spawn_when_not_busy(&path);
        // The parent goes on before the kernel has finished the exec; what the child prints comes after it.
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_until(b'\n', &mut Vec::new()).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(executable(child.id()).unwrap(), path.canonicalize().unwrap_or(path.clone()));
        let line = command_line(child.id()).unwrap();
        assert!(line.ends_with("sleeps_for_the_tests --exact --ignored"), "{line}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A fork of another test may hold the copy open for writing for a moment.
    fn spawn_when_not_busy(path: &std::path::Path) -> Child {
        let deadline = soon();
        loop {
            let mut command = Command::new(path);
            command
                .args(["sys::process::tests::sleeps_for_the_tests", "--exact", "--ignored"])
                .stdout(Stdio::piped());
            match command.spawn() {
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                spawned => return spawned.unwrap(),
            }
        }
    }

    #[test]
    #[ignore = "a part for another test to play"]
    fn sleeps_for_the_tests() {
        std::thread::sleep(PATIENCE);
    }
}
