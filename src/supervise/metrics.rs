//! The file of metrics: written when something has changed, and every now and then.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::wire::State;
use crate::control::Control;
use crate::data_dir::{DataDirLock, FILE_NAME};
use crate::error::Result;
use crate::journal::history;
use crate::metrics::{self, Sources};

/// Between two writes.
const PERIOD: Duration = Duration::from_secs(15);
/// How long the daemon may take to say how it does.
const ANSWER: Duration = Duration::from_secs(2);

/// When the file is written next. One write at a time.
#[derive(Debug)]
pub(super) struct Textfile {
    due: Instant,
    is_busy: bool,
    /// What was wrong last time: it is said once.
    wrong: Option<String>,
}

/// What is written, and where the rest of it is to be had.
#[derive(Debug)]
pub(super) struct Figures {
    pub path: PathBuf,
    pub control: PathBuf,
    pub data_dir: PathBuf,
    pub journal: PathBuf,
    pub state: State,
}

impl Textfile {
    pub fn new() -> Self {
        Self { due: Instant::now() + PERIOD, is_busy: false, wrong: None }
    }

    /// Something has changed.
    pub fn hurry(&mut self) {
        self.due = Instant::now();
    }

    /// Returns whether it is to be written now, by the caller.
    pub fn is_due(&mut self) -> bool {
        let is_due = !self.is_busy && self.due <= Instant::now();
        if is_due {
            (self.is_busy, self.due) = (true, Instant::now() + PERIOD);
        }
        is_due
    }

    pub fn wake_at(&self) -> Option<Instant> {
        (!self.is_busy).then_some(self.due)
    }

    pub fn written(&mut self, written: Result<()>, say: super::Say) {
        self.is_busy = false;
        let wrong = written.err().map(|e| e.to_string());
        if let Some(wrong) = wrong.as_ref().filter(|_| wrong != self.wrong) {
            say("warning", wrong);
        }
        self.wrong = wrong;
    }
}

impl Figures {
    /// Asks the daemon, reads the lock file and the journal, and writes. What cannot be had is left out.
    pub fn write(&self) -> Result<()> {
        let soon = Instant::now() + ANSWER;
        let status =
            Control::connect(&self.control, "handoff metrics", soon).and_then(|mut c| c.status(soon)).ok();
        let lock_file = status.as_ref().map_or(FILE_NAME, |status| &status.lock_file);
        let record = DataDirLock::read_record(self.data_dir.join(lock_file)).ok();
        let journal = history(&self.journal).ok();
        let text = metrics::text(&Sources {
            status: status.as_ref(),
            record: record.as_ref(),
            journal: journal.as_ref(),
            supervisor: Some(&self.state),
        });
        metrics::write_file(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_write_at_a_time_and_the_next_one_when_something_has_changed() {
        let mut file = Textfile::new();
        assert!(!file.is_due(), "not before the first start");
        file.hurry();
        assert!(file.is_due());
        file.hurry();
        assert!(!file.is_due() && file.wake_at().is_none(), "one is being written");
        file.written(Ok(()), |_, _| {});
        assert!(file.is_due(), "something has changed meanwhile");
        file.written(Ok(()), |_, _| {});
        assert!(!file.is_due() && file.wake_at().is_some());
    }
}
