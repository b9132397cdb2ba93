//! Group commit: one thread that writes what has come together as one frame, syncs it, and says so.
//!
//! While it waits for the disk, the next frame comes together; so the more clients there are, the more writes share a sync.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use handoff::{Error, Result};

use super::compact::Compacted;
use super::log::{self, Frame, Position, Writer};

/// What the committing thread has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every change up to this number is on disk.
    pub durable: u64,
    /// The revision of each shard on disk.
    pub revisions: Vec<u64>,
    /// The end of the log on disk.
    pub position: Position,
    /// How many compactions have finished.
    pub compactions: u64,
    /// How many frames have been synced.
    pub syncs: u64,
}

/// Why nothing more is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened, after "unable to".
    pub detail: String,
    /// Whether the log is as it was before, so that it can be opened again. After a failed sync nobody knows.
    pub log_is_intact: bool,
}

/// What to start a committer with.
pub struct Plan {
    /// The data directory.
    pub dir: PathBuf,
    /// The revisions that were read.
    pub revisions: Vec<u64>,
    /// Whether what was read may not be on disk yet, as whoever wrote it did not end properly. Then a sync comes first.
    pub sync_first: bool,
    /// The number of the last change that was read, at least one; those that are submitted have higher numbers.
    pub first_ticket: u64,
    /// The length from which the log is compacted, if less than half of it is live.
    pub compact_from: u64,
}

/// Called on the committing thread; must not block.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The committing thread's handle.
pub struct Committer {
    shared: Arc<Shared>,
    thread: JoinHandle<Writer>,
}

struct Shared {
    plan: Plan,
    queue: Mutex<Queue>,
    work: Condvar,
    /// Called when there is progress or a failure.
    wake: Wake,
    /// Set when a handoff begins: no compaction may be put into place any more.
    no_compaction: Arc<AtomicBool>,
}

struct Queue {
    frame: Frame,
    /// The number of the last change in `frame`, and the revisions after it.
    ticket: u64,
    revisions: Vec<u64>,
    live_bytes: u64,
    closing: bool,
    progress: Progress,
    failure: Option<Failure>,
    compaction: Compaction,
}

enum Compaction {
    /// None is being made, and none will be before the log has this length.
    None {
        from: u64,
    },
    Running,
    Ready(Compacted),
}

impl Committer {
    /// Starts committing to the log; `wake` is called when something has become durable.
    pub fn start(writer: Writer, plan: Plan, wake: Wake) -> Result<Self> {
        let durable = plan.first_ticket - u64::from(plan.sync_first);
        let progress = Progress {
            durable,
            revisions: plan.revisions.clone(),
            position: writer.position(),
            compactions: 0,
            syncs: 0,
        };
        let queue = Queue {
            frame: Frame::default(),
            ticket: plan.first_ticket,
            revisions: plan.revisions.clone(),
            live_bytes: u64::MAX,
            closing: false,
            progress,
            failure: None,
            compaction: Compaction::None { from: plan.compact_from },
        };
        let no_compaction = Arc::new(AtomicBool::new(false));
        let shared =
            Arc::new(Shared { plan, queue: queue.into(), work: Condvar::new(), wake, no_compaction });
        let theirs = Arc::clone(&shared);
        let spawn = std::thread::Builder::new().name("commit".into()).spawn(move || theirs.run(writer));
        Ok(Self { shared, thread: spawn.map_err(|e| Error::io("start the committing thread", e))? })
    }

    /// Hands over records, to be durable when the progress reaches `ticket`.
    pub fn submit(&self, frame: &Frame, ticket: u64, revisions: &[u64], live_bytes: u64) {
        let mut queue = self.shared.lock();
        queue.frame.extend(frame);
        queue.ticket = ticket;
        queue.revisions.copy_from_slice(revisions);
        queue.live_bytes = live_bytes;
        drop(queue);
        self.shared.work.notify_one();
    }

    /// Returns what has been reached, or why nothing more will be.
    pub fn progress(&self) -> Result<Progress, Failure> {
        let queue = self.shared.lock();
        queue.failure.clone().map_or_else(|| Ok(queue.progress.clone()), Err)
    }

    /// Returns how many bytes wait to be written.
    pub fn backlog(&self) -> usize {
        self.shared.lock().frame.len()
    }

    /// Stops a compaction that is being made; none is put into place from now on. Does not wait.
    pub fn stop_compacting(&self) {
        self.shared.no_compaction.store(true, Ordering::SeqCst);
    }

    /// Commits what is waiting, closes the log, and returns what was reached.
    pub fn close(self) -> Result<Progress, Failure> {
        self.stop_compacting();
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        let writer = self.thread.join().map_err(|_| Failure {
            detail: "commit: the committing thread died".into(),
            log_is_intact: false,
        })?;
        drop(writer);
        let mut queue = self.shared.lock();
        if let Compaction::Ready(compacted) = std::mem::replace(&mut queue.compaction, Compaction::Running) {
            compacted.discard();
        }
        queue.failure.clone().map_or_else(|| Ok(queue.progress.clone()), Err)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: &Arc<Self>, mut writer: Writer) -> Writer {
        if self.plan.sync_first
            && let Err(failure) = self.sync(&writer)
        {
            self.fail(failure);
            return writer;
        }
        self.reached(self.plan.first_ticket, self.plan.revisions.clone(), writer.position());
        while let Some((mut frame, ticket, revisions)) = self.next_frame(&mut writer) {
            match self.commit(&mut writer, &mut frame) {
                Ok(()) => self.reached(ticket, revisions, writer.position()),
                Err(failure) => {
                    self.fail(failure);
                    break;
                }
            }
            self.consider_compaction();
        }
        writer
    }

    /// Waits for records; puts a finished compaction into place meanwhile. Returns `None` when closed and done.
    fn next_frame(&self, writer: &mut Writer) -> Option<(Frame, u64, Vec<u64>)> {
        let mut queue = self.lock();
        loop {
            if matches!(queue.compaction, Compaction::Ready(_)) && !self.no_compaction.load(Ordering::SeqCst)
            {
                queue = self.install_compaction(queue, writer)?;
            }
            if !queue.frame.is_empty() {
                return Some((std::mem::take(&mut queue.frame), queue.ticket, queue.revisions.clone()));
            }
            if queue.closing {
                return None;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn commit(&self, writer: &mut Writer, frame: &mut Frame) -> Result<(), Failure> {
        writer
            .append(frame)
            .map_err(|e| Failure { detail: format!("write {}: {e}", log::FILE), log_is_intact: true })?;
        self.sync(writer)
    }

    fn sync(&self, writer: &Writer) -> Result<(), Failure> {
        writer
            .sync()
            .map_err(|e| Failure { detail: format!("sync {}: {e}", log::FILE), log_is_intact: false })
    }

    fn reached(&self, durable: u64, revisions: Vec<u64>, position: Position) {
        let mut queue = self.lock();
        queue.progress.durable = durable;
        queue.progress.revisions = revisions;
        queue.progress.position = position;
        queue.progress.syncs += 1;
        drop(queue);
        (self.wake)();
    }

    fn fail(&self, failure: Failure) {
        self.lock().failure = Some(failure);
        (self.wake)();
    }

    /// Starts a compaction when more than half of a log that is worth it is garbage.
    fn consider_compaction(self: &Arc<Self>) {
        let mut queue = self.lock();
        let Compaction::None { from } = queue.compaction else { return };
        let len = queue.progress.position.len;
        if len < from || len / 2 < queue.live_bytes || self.no_compaction.load(Ordering::SeqCst) {
            return;
        }
        let theirs = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("compact".into()).spawn(move || theirs.compact());
        match spawned {
            Ok(_) => queue.compaction = Compaction::Running,
            Err(e) => {
                tracing::warn!("unable to start a compaction: {e}");
                queue.compaction = Compaction::None { from: len * 2 };
            }
        }
    }

    /// Runs on a thread of its own, which nobody waits for: its file has a name that no other process uses.
    fn compact(&self) {
        let upto = self.lock().progress.position;
        let made = Compacted::make(&self.plan.dir, upto, &self.no_compaction).and_then(|made| match made {
            Some(made) => self.catch_up(made).map(Some),
            None => Ok(None),
        });
        let mut queue = self.lock();
        match made {
            Ok(Some(compacted)) if self.no_compaction.load(Ordering::SeqCst) => compacted.discard(),
            Ok(Some(compacted)) => {
                queue.compaction = Compaction::Ready(compacted);
                self.work.notify_one();
            }
            Ok(None) => {}
            Err(e) => {
                tracing::warn!("unable to compact the log, trying again when it has doubled: {e}");
                queue.compaction = Compaction::None { from: upto.len * 2 };
            }
        }
    }

    /// Copies what was committed meanwhile, so that the committing thread has little left to copy.
    fn catch_up(&self, mut compacted: Compacted) -> Result<Compacted> {
        for _ in 0..10 {
            let upto = self.lock().progress.position;
            match compacted.catch_up(&self.plan.dir, upto) {
                Ok(copied) if copied < 1 << 20 => break,
                Ok(_) => {}
                Err(e) => {
                    compacted.discard();
                    return Err(e);
                }
            }
        }
        Ok(compacted)
    }

    /// Replaces the log between two frames. Returns `None` if committing cannot go on.
    fn install_compaction<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue>,
        writer: &mut Writer,
    ) -> Option<MutexGuard<'a, Queue>> {
        let Compaction::Ready(compacted) = std::mem::replace(&mut queue.compaction, Compaction::Running)
        else {
            return Some(queue);
        };
        drop(queue);
        let before = writer.position().len;
        let installed = install(&self.plan.dir, compacted, writer);
        let mut queue = self.lock();
        queue.progress.position = writer.position();
        let after = writer.position().len;
        match installed {
            Ok(()) => {
                tracing::info!("compacted the log from {before} to {after} bytes");
                queue.progress.compactions += 1;
                queue.compaction = Compaction::None { from: self.plan.compact_from.max(after * 2) };
            }
            Err(Error::Io { attempt, source }) if attempt == SYNC_DIR => {
                queue.failure =
                    Some(Failure { detail: format!("{attempt}: {source}"), log_is_intact: false });
                (self.wake)();
                return None;
            }
            Err(e) => {
                tracing::warn!("unable to put a compacted log into place: {e}");
                queue.compaction = Compaction::None { from: before * 2 };
            }
        }
        Some(queue)
    }
}

const SYNC_DIR: &str = "sync the data directory";

fn install(dir: &Path, mut compacted: Compacted, writer: &mut Writer) -> Result<()> {
    if let Err(e) = compacted.catch_up(dir, writer.position()) {
        compacted.discard();
        return Err(e);
    }
    *writer = compacted.into_place(dir).map_err(|e| Error::io("rename a compacted log", e))?;
    log::sync_dir(dir).map_err(|e| Error::io(SYNC_DIR, e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use super::super::store::{Record, State, Warm};
    use super::*;

    struct Rig {
        dir: tempfile::TempDir,
        committer: Committer,
        state: State,
        ticket: u64,
    }

    impl Rig {
        fn start(compact_from: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let writer = Writer::create(dir.path(), 1).unwrap();
            let plan = Plan {
                dir: dir.path().into(),
                revisions: vec![0],
                sync_first: true,
                first_ticket: 1,
                compact_from,
            };
            let committer = Committer::start(writer, plan, Arc::new(|| {})).unwrap();
            Self { dir, committer, state: State::new(1), ticket: 1 }
        }

        fn set(&mut self, key: u32, value: &[u8]) {
            let mut frame = Frame::default();
            let key = key.to_le_bytes();
            Record::Set(&key, value).encode(frame.payload());
            self.state.apply(Record::Set(&key, value)).unwrap();
            self.ticket += 1;
            self.committer.submit(&frame, self.ticket, self.state.revisions(), self.state.live_bytes());
        }

        fn wait(&self, what: &str, reached: impl Fn(&Progress) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !reached(&self.committer.progress().unwrap()) {
                assert!(Instant::now() < deadline, "waited in vain for {what}");
                std::thread::yield_now();
            }
        }

        fn on_disk(&self) -> State {
            Warm::open(self.dir.path(), None).unwrap().finish().unwrap().state
        }
    }

    #[test]
    fn what_is_durable_is_in_the_log() {
        let mut rig = Rig::start(u64::MAX);
        for i in 0..50 {
            rig.set(i, b"value");
        }
        rig.wait("all of it", |p| p.durable == rig.ticket);
        assert_eq!(rig.on_disk(), rig.state);
        let progress = rig.committer.close().unwrap();
        assert_eq!((progress.revisions, progress.durable), (vec![50], rig.ticket));
    }

    #[test]
    fn closing_commits_what_waits() {
        let mut rig = Rig::start(u64::MAX);
        rig.set(1, &[1; 1 << 20]);
        rig.set(2, b"last");
        let Rig { dir, committer, state, .. } = rig;
        let position = committer.close().unwrap().position;
        let opened = Warm::open(dir.path(), None).unwrap().finish().unwrap();
        assert_eq!((opened.state, opened.writer.position()), (state, position));
    }

    #[test]
    fn a_log_that_is_mostly_garbage_is_compacted_while_it_is_written() {
        let mut rig = Rig::start(64 << 10);
        let mut i = 0;
        let deadline = Instant::now() + Duration::from_secs(30);
        while rig.committer.progress().unwrap().compactions < 3 {
            assert!(Instant::now() < deadline, "it is never compacted");
            rig.set(i % 20, &[i as u8; 100]);
            rig.wait("a commit", |p| p.durable == rig.ticket);
            i += 1;
        }
        let progress = rig.committer.progress().unwrap();
        assert_eq!(progress.revisions, rig.state.revisions());
        assert_eq!(rig.on_disk(), rig.state);
    }

    #[test]
    fn no_compaction_is_put_into_place_after_it_was_stopped() {
        let mut rig = Rig::start(1 << 10);
        let id = rig.committer.progress().unwrap().position.id;
        rig.committer.stop_compacting();
        for i in 0..200 {
            rig.set(i % 3, &[0; 100]);
        }
        rig.wait("all of it", |p| p.durable == rig.ticket);
        let Rig { dir, committer, .. } = rig;
        assert_eq!(committer.close().unwrap().position.id, id);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
