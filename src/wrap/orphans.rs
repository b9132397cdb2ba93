//! Daemons whose wrap was killed: they serve on, and keep the lock.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::sequence::{Course, Sequence};
use crate::data_dir::DataDirLock;
use crate::error::{Error, Result};
use crate::sys::lock::Holder;
use crate::sys::poll::{self, Want};
use crate::sys::process::{PidFd, ProcessId, Signal};

/// Between two looks at who has the lock.
const LOOK: Duration = Duration::from_millis(20);

/// Ends every process that has inherited the data directory's lock from one that is dead: by the sequence, and by force at the end of the grace.
///
/// # Errors
///
/// [`Error::Refused`] where the process that took the lock lives: it is to be swapped, or stopped. [`Error::Locked`] for what does not die.
pub fn end(dir: &Path, sequence: &Sequence, grace: Duration) -> Result<()> {
    refuse_owner(dir)?;
    let now = Instant::now();
    let deadline = poll::after(grace).unwrap_or(now);
    let mut course = Course::new(sequence, now, deadline, true);
    loop {
        let holders = others(dir)?;
        if holders.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Locked { path: dir.join(crate::data_dir::FILE_NAME), holders });
        }
        let opened: Vec<(u32, PidFd)> = holders.iter().filter_map(open).collect();
        while let Some(signal) = course.due(Instant::now()) {
            // The eldest is the main process: what it started came after it.
            let count = if signal == Signal::SIGKILL { opened.len() } else { 1 };
            for (pid, pidfd) in opened.iter().take(count) {
                tracing::warn!(pid, "ending a daemon whose wrap is gone: {signal}");
                pidfd.signal(signal).map_err(|e| Error::io(format!("send {signal} to pid {pid}"), e))?;
            }
        }
        let fds: Vec<_> = opened.iter().map(|(_, pidfd)| (pidfd.as_fd(), Want::Read)).collect();
        poll::wait(&fds, Some(Instant::now() + LOOK)).map_err(|e| Error::io("wait for their end", e))?;
    }
}

fn refuse_owner(dir: &Path) -> Result<()> {
    let Some(record) = DataDirLock::read_record(dir)?.record else { return Ok(()) };
    let owner = ProcessId {
        pid: record.owner.pid,
        start_ticks: record.owner.start_ticks,
        boot_id: record.owner.boot_id,
    };
    if owner.is_alive() {
        return Err(Error::Refused {
            reason: format!("pid {} serves {}: swap or stop it", owner.pid, dir.display()),
        });
    }
    Ok(())
}

/// The eldest first.
fn others(dir: &Path) -> Result<Vec<Holder>> {
    let mut holders = DataDirLock::who(dir)?;
    holders.retain(|holder| holder.pid != std::process::id());
    holders.sort_by_key(|holder| (holder.start_ticks, holder.pid));
    Ok(holders)
}

/// The pid may be another's by now: then it started later.
fn open(holder: &Holder) -> Option<(u32, PidFd)> {
    let pidfd = PidFd::open(holder.pid).ok()?;
    let is_it = ProcessId::of(holder.pid).is_ok_and(|found| found.start_ticks == holder.start_ticks);
    is_it.then_some((holder.pid, pidfd))
}
