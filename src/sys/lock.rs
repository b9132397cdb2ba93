//! `flock(2)` on the data directory's lock file, and who holds it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fs2::FileExt;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use crate::sys::clock;
use crate::sys::file::Identity;

/// A process that has the lock's open file description, or a lock of the other family on the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line, or the name of its program where that is all there is to see.
    pub command: String,
    /// When it started, in clock ticks after boot (field 22 of proc_pid_stat(5)); with the boot id this names it for good.
    pub start_ticks: u64,
    /// The process that took the lock, where this one inherited it.
    pub inherited_from: Option<u32>,
    /// Which kind of lock it is.
    #[serde(default)]
    pub kind: LockKind,
    /// The user whose process it is.
    #[serde(default)]
    pub uid: u32,
}

/// The two families of locks, which do not see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// flock(2): ours.
    #[default]
    Flock,
    /// A record lock of fcntl(2), as s6-setlock takes.
    Fcntl,
}

/// Whether a file is locked, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Whether it is locked, by anyone.
    pub locked: bool,
    /// Every process that was found to hold it. None, though it is locked: another user's or another container's process
    /// has it, or a copy is in flight in a socket.
    pub holders: Vec<Holder>,
    /// The processes that took the locks, whether they still have them or not.
    pub takers: Vec<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)?;
        if self.kind == LockKind::Fcntl {
            f.write_str(", by a lock of fcntl(2)")?;
        }
        match self.inherited_from {
            Some(pid) => write!(f, ", which inherited it from pid {pid}"),
            None => Ok(()),
        }
    }
}

/// Whether a process is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is, as far as anyone can tell.
    Alive,
    /// It is being killed or is exiting: its descriptors are about to be closed.
    Dying,
    /// It is gone.
    Gone,
}

/// Takes the lock for the file's open file description, without waiting; `false` if another description has it.
///
/// A description that has it already keeps it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    loop {
        match FileExt::try_lock_exclusive(file) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

/// Releases the lock of the file's open file description, whoever else has a copy of it.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    FileExt::unlock(file)
}

/// Returns whether a stranger has a record lock (fcntl(2), as s6-setlock takes) on the file, which flock does not see.
pub(crate) fn has_record_lock(file: &File) -> io::Result<bool> {
    let mut query = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_GETLK(&mut query))?;
    Ok(query.l_type != libc::F_UNLCK as libc::c_short)
}

/// Returns every process that has a lock on the file: a copy of the locked description, or a record lock of its own.
pub(crate) fn holders(locked: Identity) -> Vec<Holder> {
    holding(locked).holders
}

/// Returns the same, and whether the file is locked at all.
///
/// A process whose descriptors this one may not see is named by /proc/locks alone, if it took the lock itself. A copy in
/// flight in a socket is nowhere to be seen. Errors mean processes that ended or are not ours to look at: left out.
pub(crate) fn holding(locked: Identity) -> Holding {
    let mut holders: Vec<Holder> =
        pids().into_iter().flat_map(|pid| holders_by_descriptor(pid, locked)).collect();
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let taken: Vec<LockLine> = locks_on(&table, locked).collect();
    for lock in &taken {
        let is_known = holders.iter().any(|found| (found.pid, found.kind) == (lock.pid, lock.kind));
        if !is_known && has_hidden_descriptors(lock.pid) {
            holders.extend(holder(lock.pid, lock.pid, lock.kind));
        }
    }
    let mut takers: Vec<u32> = taken.iter().map(|lock| lock.pid).filter(|pid| *pid != 0).collect();
    takers.dedup();
    Holding { locked: !holders.is_empty() || !taken.is_empty(), holders, takers }
}

/// Returns whether the process that was recorded by its pid, its start and its boot is still there.
pub(crate) fn fate(pid: u32, start_ticks: u64, boot_id: &str) -> Fate {
    // Without a boot id to compare with, only the pid and the start time decide.
    if current_boot_id().is_some_and(|current| current != boot_id) {
        return Fate::Gone;
    }
    match stat(pid) {
        Some(now) if now.start_ticks == start_ticks => now.fate(pid),
        Some(_) | None => Fate::Gone,
    }
}

impl Holder {
    /// Returns whether the process is still there.
    pub(crate) fn fate(&self) -> Fate {
        stat(self.pid)
            .filter(|now| now.start_ticks == self.start_ticks)
            .map_or(Fate::Gone, |now| now.fate(self.pid))
    }

    /// Returns when it started, in milliseconds of wall-clock time since 1970.
    pub fn started_ms(&self) -> u64 {
        clock::wall_ms_of_ticks(self.start_ticks)
    }
}

fn current_boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

fn pids() -> Vec<u32> {
    numbered_entries(Path::new("/proc"))
}

fn numbered_entries(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn holders_by_descriptor(pid: u32, locked: Identity) -> Vec<Holder> {
    let process = Path::new("/proc").join(pid.to_string());
    let mut found: Vec<LockLine> = Vec::new();
    for fd in numbered_entries(&process.join("fdinfo")) {
        // One process may have many copies of one description.
        for lock in locks_of(&process, fd, locked) {
            if found.iter().all(|known| known.kind != lock.kind) {
                found.push(lock);
            }
        }
    }
    found.into_iter().filter_map(|lock| holder(pid, lock.pid, lock.kind)).collect()
}

/// Returns the locks that this descriptor shares in. The kernel lists under a descriptor only the locks of its
/// own description. The file is looked at only then: a descriptor may be on a server that does not answer.
fn locks_of(process: &Path, fd: u32, locked: Identity) -> Vec<LockLine> {
    let info = fs::read_to_string(process.join("fdinfo").join(fd.to_string())).unwrap_or_default();
    let locks: Vec<LockLine> =
        info.lines().filter_map(|line| line.strip_prefix("lock:")).filter_map(parse_lock).collect();
    let is_wanted = || {
        let metadata = fs::metadata(process.join("fd").join(fd.to_string()));
        metadata.is_ok_and(|metadata| Identity::from(&metadata) == locked)
    };
    if locks.is_empty() || !is_wanted() { Vec::new() } else { locks }
}

/// Whether the process is there, and its descriptors are not for this user to see.
fn has_hidden_descriptors(pid: u32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    entries.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

fn holder(pid: u32, taker: u32, kind: LockKind) -> Option<Holder> {
    let start_ticks = stat(pid)?.start_ticks;
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    // In a pid namespace of its own, a taker that is dead or outside is shown as 0.
    let inherited_from = Some(taker).filter(|taker| *taker != pid && *taker != 0);
    Some(Holder { pid, command: command(pid), start_ticks, inherited_from, kind, uid })
}

/// A line of /proc/locks or of fdinfo (proc_locks(5)).
struct LockLine {
    kind: LockKind,
    pid: u32,
    dev: (u64, u64),
    ino: u64,
}

/// Parses `1: FLOCK  ADVISORY  WRITE 5505 fe:00:10010798 0 EOF`; `None` for leases, and for those that only wait.
fn parse_lock(line: &str) -> Option<LockLine> {
    let mut fields = line.split_whitespace().skip(1);
    let kind = match fields.next()? {
        "FLOCK" => LockKind::Flock,
        "POSIX" | "OFDLCK" => LockKind::Fcntl,
        _ => return None,
    };
    let mut fields = fields.skip(2);
    // OFDLCK has no pid: -1.
    let pid = fields.next()?.parse().unwrap_or(0);
    let mut file = fields.next()?.split(':');
    let major = u64::from_str_radix(file.next()?, 16).ok()?;
    let minor = u64::from_str_radix(file.next()?, 16).ok()?;
    Some(LockLine { kind, pid, dev: (major, minor), ino: file.next()?.parse().ok()? })
}

/// Returns the locks on the file. The pids are those that took them, some of which may be dead.
fn locks_on(table: &str, locked: Identity) -> impl Iterator<Item = LockLine> + '_ {
    table.lines().filter_map(parse_lock).filter(move |lock| locked.is(lock.dev, lock.ino))
}

/// Returns the command line on one line and without control characters, since it ends up in messages.
fn command(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = || fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let shown = if words.is_empty() { name() } else { words };
    let text = String::from_utf8_lossy(&shown).replace('\0', " ");
    text.trim().chars().filter(|c| !c.is_control()).take(COMMAND_CHARS_MAX).collect()
}

const COMMAND_CHARS_MAX: usize = 200;

/// What is needed of proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    flags: u64,
    start_ticks: u64,
}

impl Stat {
    fn fate(&self, pid: u32) -> Fate {
        const PF_EXITING: u64 = 0x4;
        match self.state {
            'Z' | 'X' => Fate::Gone,
            _ if self.flags & PF_EXITING != 0 || is_being_killed(pid) => Fate::Dying,
            _ => Fate::Alive,
        }
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in parentheses, and may itself contain any of them.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        flags: fields.get(6)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Whether SIGKILL has been sent and not yet been acted on.
fn is_being_killed(pid: u32) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let masks =
        status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & SIGKILL_BIT != 0)
}

/// Takes a record lock that belongs to the description, so that it is a stranger's even in the same process.
#[cfg(test)]
pub(crate) fn take_record_lock(file: &File) {
    let lock = libc::flock { l_type: libc::F_WRLCK as _, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else has a record lock on the test's file");
}

/// Runs `f` in a forked child and returns its answer.
#[cfg(test)]
pub(crate) fn in_forked_child(f: impl FnOnce() -> bool) -> bool {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    // SAFETY: the child runs `f`, which the tests keep to closing descriptors and freeing memory (glibc's allocator
    // works in the child of a threaded process), and ends with _exit: it never returns into the test harness.
    match unsafe { fork() }.expect("the machine can start one more process") {
        ForkResult::Parent { child } => {
            waitpid(child, None).expect("it is our child") == WaitStatus::Exited(child, 0)
        }
        ForkResult::Child => {
            let code = i32::from(!f());
            // SAFETY: ends the process, without running the handlers that belong to the parent's copy.
            unsafe { libc::_exit(code) }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sys::file::identity;

    #[test]
    fn lines_of_the_lock_table_are_read_by_field() {
        let lock = parse_lock("1: FLOCK  ADVISORY  WRITE 5505 fe:00:10010798 0 EOF").unwrap();
        assert_eq!((lock.pid, lock.dev, lock.ino), (5505, (0xfe, 0), 10_010_798));
        assert_eq!(lock.kind, LockKind::Flock);
        let lock = parse_lock("\t7: OFDLCK ADVISORY  READ -1 00:1f:77 0 EOF").unwrap();
        assert_eq!((lock.pid, lock.dev, lock.ino), (0, (0, 0x1f), 77));
        assert_eq!(lock.kind, LockKind::Fcntl);
        assert!(parse_lock("2: LEASE  ACTIVE    READ 1 00:1f:77 0 EOF").is_none(), "a lease excludes nobody");
        assert!(parse_lock("1: -> FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF").is_none(), "it only waits");
        assert!(parse_lock("").is_none());
    }

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) R (b)) S 1 42 42 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', flags: 4_194_304, start_ticks: 987_654 }));
    }

    #[test]
    fn the_lock_table_names_the_taker_where_descriptors_cannot_be_seen() {
        let file = tempfile::tempfile().unwrap();
        assert!(try_lock(&file).unwrap());
        let table = fs::read_to_string("/proc/locks").unwrap();
        let takers: Vec<u32> = locks_on(&table, identity(&file).unwrap()).map(|lock| lock.pid).collect();
        assert_eq!(takers, [std::process::id()]);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let (pid, boot) = (std::process::id(), current_boot_id().unwrap());
        let start = stat(pid).unwrap().start_ticks;
        assert_eq!(fate(pid, start, &boot), Fate::Alive);
        assert_eq!(fate(pid, start + 1, &boot), Fate::Gone);
        assert_eq!(fate(pid, start, "another boot"), Fate::Gone);
    }

    #[test]
    fn an_unreaped_process_counts_as_gone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let start = stat(child.id()).unwrap().start_ticks;
        let boot = current_boot_id().unwrap();
        assert_eq!(fate(child.id(), start, &boot), Fate::Alive);
        child.kill().unwrap();
        while fate(child.id(), start, &boot) != Fate::Gone {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_record_lock_of_a_stranger_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!has_record_lock(file.as_file()).unwrap());
        let stranger = File::options().write(true).open(file.path()).unwrap();
        take_record_lock(&stranger);
        assert!(has_record_lock(file.as_file()).unwrap());
    }
}
