//! The data that is being served: the map, the changes that are on their way to the disk, and the thread that takes them there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff::{Error, Result, SealReport};

use super::commit::{Committer, Failure, Plan, Progress, Wake};
use super::log::{self, Frame};
use super::store::{Opened, State, Warm};

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory.
    pub dir: PathBuf,
    /// The length from which the log is compacted.
    pub compact_from: u64,
    /// Changes are refused when the data takes more bytes than this.
    pub max_memory: u64,
}

/// The data, and its way to the disk.
///
/// Changes are made in the map at once, so that commands see those before them; what makes it safe is that
/// **no answer that tells of the data leaves before every change that was made by then is on disk**. A reader waits
/// for the writes that it may have seen, and no more than one group commit.
pub struct Data {
    /// The map, with all changes so far.
    pub state: State,
    /// The changes that the committer does not have yet.
    pub frame: Frame,
    /// The number of the last change.
    pub ticket: u64,
    settings: Settings,
    wake: Wake,
    committer: Option<Committer>,
    progress: Progress,
    /// Whether the map is what is on disk up to `progress.position`: false after a failure.
    trusted: bool,
    refusal: Option<(Instant, String)>,
}

/// How long changes are refused after one could not be written.
const REFUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// No requests are read while this much waits to be written.
const CONGESTED: usize = 32 << 20;

impl Data {
    /// Starts serving what was opened. `sealed` says that another process has synced all of it.
    pub fn start(opened: Opened, sealed: bool, settings: Settings, wake: Wake) -> Result<Self> {
        let revisions = opened.state.revisions().to_vec();
        let position = opened.writer.position();
        let progress = Progress { durable: 0, revisions, position, compactions: 0, syncs: 0 };
        let mut data = Self {
            state: State::default(),
            frame: Frame::default(),
            ticket: 0,
            settings,
            wake,
            committer: None,
            progress,
            trusted: true,
            refusal: None,
        };
        data.adopt(opened, sealed)?;
        Ok(data)
    }

    fn adopt(&mut self, opened: Opened, sealed: bool) -> Result<()> {
        if opened.torn > 0 {
            tracing::warn!(
                "cut an incomplete last record of {} bytes, which was never acknowledged",
                opened.torn
            );
        }
        self.frame = Frame::default();
        self.ticket += 1;
        self.progress.durable = self.ticket - 1;
        let plan = Plan {
            dir: self.settings.dir.clone(),
            revisions: opened.state.revisions().to_vec(),
            sync_first: !sealed || opened.torn > 0,
            first_ticket: self.ticket,
            compact_from: self.settings.compact_from,
        };
        self.committer = Some(Committer::start(opened.writer, plan, self.wake.clone())?);
        self.state = opened.state;
        self.trusted = true;
        Ok(())
    }

    /// Hands the changes so far to the committer.
    pub fn submit(&mut self) {
        if let Some(committer) = self.committer.as_ref().filter(|_| !self.frame.is_empty()) {
            committer.submit(&self.frame, self.ticket, self.state.revisions(), self.state.live_bytes());
            self.frame = Frame::default();
        }
    }

    /// Looks at what the committer has reached; returns whether that is more than before.
    pub fn poll(&mut self) -> Result<bool, Failure> {
        let Some(committer) = &self.committer else { return Ok(false) };
        let before = self.progress.durable;
        self.progress = committer.progress().inspect_err(|_| self.trusted = false)?;
        Ok(self.progress.durable > before)
    }

    /// Returns what a command works on: the map, the changes to commit, their number, and what is on disk.
    pub fn parts(&mut self) -> (&mut State, &mut Frame, &mut u64, &Progress) {
        (&mut self.state, &mut self.frame, &mut self.ticket, &self.progress)
    }

    /// Removes what a crash left beside the log. Not in the gap: for when clients are being served.
    pub fn tidy(&self) {
        if let Err(e) = log::remove_leftovers(&self.settings.dir) {
            tracing::warn!("{e}");
        }
    }

    /// Returns what is on disk.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Returns whether nothing is on its way to the disk.
    pub fn is_durable(&self) -> bool {
        self.progress.durable == self.ticket
    }

    /// Returns whether so much is on its way to the disk that no more should be taken on.
    pub fn is_congested(&self) -> bool {
        self.frame.len() + self.committer.as_ref().map_or(0, Committer::backlog) > CONGESTED
    }

    /// Returns why changes are refused now, as the text of an error reply.
    pub fn refusal(&mut self) -> Option<String> {
        self.refusal.take_if(|(until, _)| *until <= Instant::now());
        if self.state.live_bytes() > self.settings.max_memory {
            return Some("OOM command not allowed when used memory > 'maxmemory'.".into());
        }
        self.refusal.as_ref().map(|(_, detail)| format!("MISCONF unable to {detail}"))
    }

    /// No compaction is put into place from now on, until the data is opened again.
    pub fn stop_compacting(&self) {
        self.committer.iter().for_each(Committer::stop_compacting);
    }

    /// Commits what is left and closes the log: no byte of it changes after this.
    pub fn seal(&mut self) -> Result<SealReport> {
        self.submit();
        if let Some(committer) = self.committer.take() {
            let closed = committer.close().inspect_err(|_| self.trusted = false);
            self.progress = closed.map_err(|failure| Error::hook(format!("unable to {}", failure.detail)))?;
        }
        if !self.trusted {
            return Err(Error::hook("the log could not be written, and was not opened again since"));
        }
        Ok(SealReport {
            last_revision_per_shard: self.progress.revisions.clone(),
            data_dir_fingerprint: self.progress.position.fingerprint(),
        })
    }

    /// Gives up the log after a failure; a `seal` fails then, until the data is opened again.
    pub fn abandon(&mut self) {
        self.trusted = false;
        // What it would report is known already.
        self.committer.take().map(Committer::close);
    }

    /// Opens the data again: another process may have changed it since it was sealed.
    ///
    /// Reads only what was added, if that is all that happened.
    pub fn reopen(&mut self) -> Result<()> {
        let sealed = self.seal().is_ok();
        let warm = match sealed {
            true => Warm::keep(&self.settings.dir, std::mem::take(&mut self.state), self.progress.position)?,
            false => Warm::open(&self.settings.dir, Some(self.progress.position.shards))?,
        };
        let opened = warm.finish()?;
        let unchanged = sealed && opened.tail == 0;
        self.adopt(opened, unchanged)
    }

    /// Opens the data again after changes could not be written, and refuses more of them for a while.
    pub fn recover(&mut self, failure: &Failure) -> Result<()> {
        tracing::warn!("unable to {}; what was not acknowledged is undone", failure.detail);
        self.reopen()?;
        self.refusal = Some((Instant::now() + REFUSE_AFTER_FAILURE, failure.detail.clone()));
        Ok(())
    }
}
