//! The processes below this one: those that it started, those that they started, and those that outlived who started them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, raise, sigaction, sigprocmask,
};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::process::{PidFd, Stat};

/// Between two looks at processes whose end cannot be waited for.
const PAUSE: Duration = Duration::from_millis(2);

/// Makes every process whose parent ends, anywhere below this process, a child of this one (PR_SET_CHILD_SUBREAPER).
///
/// Threads share it, a child does not have it, and it survives exec(3).
///
/// # Errors
///
/// Kernels before 3.4 do not know it.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// A process below this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descendant {
    /// Its pid, good for as long as it was not reaped.
    pub pid: u32,
    /// Whether it is a child of this process, by birth or by adoption.
    pub is_child: bool,
    /// Whether it has ended, and is only to be reaped.
    pub has_ended: bool,
    /// When it started, in clock ticks after boot.
    pub start_ticks: u64,
}

/// Lists what is below this process, without `others` and what is below them. That nobody lives is certain, if nobody reaps meanwhile.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn descendants(others: &HashSet<u32>) -> io::Result<Vec<Descendant>> {
    let mut found = list(others)?;
    // The pids are read first and then what they are: who was forked in between is missed, also where it was the last thing that its
    // parent did, which is seen to have ended. But where anybody lives, a child of this process does, and the next list has that one,
    // as it was there before: so two lists in which the same have ended are the truth.
    while found.iter().all(|one| one.has_ended) {
        let again = list(others)?;
        if again == found {
            break;
        }
        found = again;
    }
    Ok(found)
}

fn list(others: &HashSet<u32>) -> io::Result<Vec<Descendant>> {
    let mut children: HashMap<u32, Vec<(u32, Stat)>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ended meanwhile is below nobody.
        if let Ok(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push((pid, stat));
        }
    }
    let me = std::process::id();
    let (mut found, mut parents) = (vec![], vec![me]);
    while let Some(parent) = parents.pop() {
        for (pid, stat) in children.remove(&parent).unwrap_or_default() {
            if !others.contains(&pid) {
                parents.push(pid);
                let (is_child, has_ended) = (parent == me, stat.is_gone());
                found.push(Descendant { pid, is_child, has_ended, start_ticks: stat.start_ticks });
            }
        }
    }
    Ok(found)
}

/// Takes note of the end of a child, so that its pid is free. One that lives, or is somebody else's, is left alone.
pub fn reap(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // It is nobody's business how a process ended that only became a child.
    let _ = waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

/// Kills everything below this process but `others`, and waits until it has ended; returns what still lives at the deadline.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn kill_all(others: &HashSet<u32>, deadline: Instant) -> io::Result<Vec<u32>> {
    loop {
        let listed = living(others)?;
        if listed.is_empty() {
            return Ok(listed);
        }
        let opened: Vec<(u32, PidFd)> =
            listed.iter().filter_map(|pid| Some((*pid, PidFd::open(*pid).ok()?))).collect();
        // Listed again with the pidfds open: whoever is in both lists is below this process, and the pidfd is his.
        let again: HashSet<u32> = living(others)?.into_iter().collect();
        for (_, pidfd) in opened.iter().filter(|(pid, _)| again.contains(pid)) {
            // One that may not be signalled is left, and returned.
            let _ = pidfd.signal(Signal::SIGKILL);
        }
        let soon = deadline.min(Instant::now() + Duration::from_millis(100));
        for (_, pidfd) in &opened {
            pidfd.wait_dead(soon)?;
        }
        if Instant::now() >= deadline {
            return living(others);
        }
        std::thread::sleep(PAUSE);
    }
}

fn living(others: &HashSet<u32>) -> io::Result<Vec<u32>> {
    let all = descendants(others)?.into_iter();
    Ok(all.filter(|descendant| !descendant.has_ended).map(|descendant| descendant.pid).collect())
}

/// Ends this process as another one ended: with its code, or by the same signal, without a core of its own.
pub fn end_as(status: ExitStatus) -> ! {
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    if let Some(signal) = signal {
        // What can be done is done; the code below says the rest.
        let _ = die_of(signal);
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    std::process::exit(code)
}

/// Ends this process as the signal would have.
pub fn end_by(signal: Signal) -> ! {
    end_as(ExitStatus::from_raw(signal as i32))
}

fn die_of(signal: Signal) -> Result<(), Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the process is about to end of it.
        unsafe { sigaction(signal, &default) }?;
    }
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::from(signal)), None)?;
    raise(signal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_below_a_child_is_listed_and_what_is_below_others_is_not() {
        let mut shell =
            Command::new("sh").args(["-c", "sleep 600 & wait"]).stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let below = |others: &HashSet<u32>| -> Vec<u32> {
            let all = descendants(others).unwrap();
            all.into_iter().filter(|one| !one.has_ended).map(|one| one.pid).collect()
        };
        let is_sleeper = |pid: &u32| {
            let line = super::super::process::command_line(*pid).unwrap_or_default();
            line == "sleep 600" && Stat::of(*pid).is_ok_and(|stat| stat.parent == shell.id())
        };
        let sleeper = loop {
            if let Some(sleeper) = below(&HashSet::new()).into_iter().find(is_sleeper) {
                break sleeper;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(PAUSE);
        };
        let without = below(&HashSet::from([shell.id()]));
        assert!(!without.contains(&shell.id()) && !without.contains(&sleeper));
        PidFd::open(sleeper).unwrap().signal(Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
    }
}
