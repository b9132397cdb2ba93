//! Every child of this process, also those that only became it: a subreaper, or the first process of a container, has to reap them all, and must take no
//! status that a thread of its own waits for.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::process::Stat;

/// The children that some code here waits for by itself, each with its start time; nothing where nobody reaps the others.
static OWNED: Mutex<Option<HashMap<u32, u64>>> = Mutex::new(None);

fn owned() -> MutexGuard<'static, Option<HashMap<u32, u64>>> {
    // The map is whole whenever the lock is let go.
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this process the one that orphans below it become children of (PR_SET_CHILD_SUBREAPER), and begins to keep account of the others. It survives
/// exec(3), and so does nothing that was counted: what this process's program of before has started is reaped like an orphan.
///
/// # Errors
///
/// What prctl(2) says.
pub fn adopt_orphans() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    owned().get_or_insert_default();
    Ok(())
}

/// Starts a child by a function that forks, and counts it as one that is waited for, so that there is no moment in which it is neither.
pub(super) fn own<C>(start: impl FnOnce() -> io::Result<C>, pid: impl FnOnce(&C) -> u32) -> io::Result<C> {
    let mut owned = owned();
    let Some(owned) = owned.as_mut() else {
        return start();
    };
    let child = start()?;
    let pid = pid(&child);
    // It is there, a zombie at least, until it is waited for.
    owned.insert(pid, Stat::of(pid).map_or(0, |stat| stat.start_ticks));
    Ok(child)
}

/// Says that nobody waits for this child any more.
pub fn disown(pid: u32) {
    if let Some(owned) = owned().as_mut() {
        owned.remove(&pid);
    }
}

/// Reaps every child that has ended, but for those that somebody here waits for and those that the caller keeps. Returns how many.
pub fn reap_orphans(keeps: impl Fn(u32) -> bool) -> usize {
    let mut owned = owned();
    let Some(owned) = owned.as_mut() else { return 0 };
    let children: Vec<(u32, Stat)> =
        list().into_iter().filter_map(|pid| Some((pid, Stat::of(pid).ok()?))).collect();
    // What is not there any more was waited for, and its number may be another's by now.
    owned.retain(|pid, started| {
        children.iter().any(|(other, stat)| other == pid && (*started == 0 || stat.start_ticks == *started))
    });
    let orphans =
        children.iter().filter(|(pid, stat)| stat.is_gone() && !owned.contains_key(pid) && !keeps(*pid));
    orphans.filter(|(pid, _)| reap(*pid)).count()
}

fn reap(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).is_ok()
}

/// Returns whether a process is a child of this one that was not reaped yet; it is not reaped by the question.
pub fn is_child(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(Pid::from_raw(pid)), flags), Err(Errno::ECHILD))
}

/// Returns all children. Not every kernel has the list of them; there all processes are asked.
fn list() -> Vec<u32> {
    by_thread().unwrap_or_else(by_parent)
}

fn by_thread() -> Option<Vec<u32>> {
    let mut children = vec![];
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => {
                children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()))
            }
            // That thread has ended, and its children are another's.
            Err(_) if !task.path().exists() => {}
            Err(_) => return None,
        }
    }
    Some(children)
}

fn by_parent() -> Vec<u32> {
    let me = std::process::id();
    let Ok(processes) = fs::read_dir("/proc") else { return vec![] };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| Stat::of(*pid).is_ok_and(|stat| stat.parent == me)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn both_lists_have_a_child_that_ended_until_it_is_reaped() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        assert!(is_child(pid));
        while !Stat::of(pid).unwrap().is_gone() {
            std::thread::yield_now();
        }
        assert!(by_parent().contains(&pid));
        assert!(by_thread().is_none_or(|children| children.contains(&pid)));
        child.wait().unwrap();
        assert!(!is_child(pid) && !by_parent().contains(&pid));
    }
}
