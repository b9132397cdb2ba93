//! How kvd takes part in a handoff: everything that a daemon has to write for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use handoff::{DrainReport, Drainable, Error, Result, SealReport, StateSnapshot};

use super::fault::Fault;
use super::server::Handle;

/// How long a stop lets clients finish.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long clients get to read their last answers before the process exits.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The daemon as the library sees it.
pub struct Daemon {
    server: Handle,
    faults: Vec<Fault>,
    phase: Mutex<Phase>,
    /// Whether the hook that runs is to return early.
    interrupted: Mutex<bool>,
    interruption: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Drained,
    Sealed,
}

impl Drainable for Daemon {
    /// The listeners are only left alone: whoever accepts from them next finds in their queue what comes meanwhile.
    fn drain(&self, deadline: Instant) -> Result<DrainReport> {
        *self.phase() = Phase::Drained;
        self.fail_if(Fault::FailDrain)?;
        let report = self.server.drain(deadline);
        self.linger(|fault| if let Fault::SlowDrain(length) = fault { Some(*length) } else { None });
        report
    }

    fn seal(&self) -> Result<SealReport> {
        self.fail_if(Fault::FailSeal)?;
        let report = self.server.seal()?;
        *self.phase() = Phase::Sealed;
        self.linger(|fault| if let Fault::SlowSeal(length) = fault { Some(*length) } else { None });
        Ok(report)
    }

    fn resume_after_abort(&self) -> Result<()> {
        self.server.resume()?;
        *self.interrupted() = false;
        *self.phase() = Phase::Serving;
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        self.server.snapshot()
    }

    fn interrupt(&self) {
        self.server.interrupt();
        *self.interrupted() = true;
        self.interruption.notify_all();
    }
}

impl Daemon {
    /// Wraps a running server.
    pub fn new(server: Handle, faults: Vec<Fault>) -> Self {
        Self {
            server,
            faults,
            phase: Mutex::new(Phase::Serving),
            interrupted: Mutex::new(false),
            interruption: Condvar::new(),
        }
    }

    /// Stops for good: answers what has arrived, makes the data final, and lets clients read their last answers.
    ///
    /// In the middle of a handoff nothing more is written: the data is final already, or the lock is still held.
    pub fn stop(&self) -> Result<()> {
        let phase = *self.phase();
        if phase == Phase::Serving {
            let report = self.server.drain(Instant::now() + STOP_GRACE)?;
            if report.open_conns_remaining > 0 {
                tracing::warn!("{} connections were still open after the grace", report.open_conns_remaining);
            }
        }
        if phase != Phase::Sealed {
            self.server.seal()?;
        }
        self.say_goodbye();
        Ok(())
    }

    /// Lets clients read their last answers; for the end of the process.
    pub fn say_goodbye(&self) {
        self.server.finish(Instant::now() + LAST_ANSWERS);
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self) -> MutexGuard<'_, bool> {
        self.interrupted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a slow hook take its time, unless it is interrupted.
    fn linger(&self, length_of: impl Fn(&Fault) -> Option<Duration>) {
        let Some(length) = self.faults.iter().find_map(length_of) else { return };
        let _until_then = self.interruption.wait_timeout_while(self.interrupted(), length, |yes| !*yes);
    }

    fn fail_if(&self, fault: Fault) -> Result<()> {
        match self.faults.contains(&fault) {
            true => Err(Error::hook(format!("asked to by --fail {fault}"))),
            false => Ok(()),
        }
    }
}
