//! Compaction: a new log with only what is live, made beside the old one while that is still being written.
//!
//! The new log is complete and synced before it gets the name, so a crash at any point leaves a whole log under it: the
//! old one or the new one, which hold the same data. What is left under a temporary name is removed at the next start.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use handoff::{Error, Result};

use super::log::{self, Frame, Position, Reader, Writer};
use super::store::State;

/// A new log, not yet under its name.
#[derive(Debug)]
pub struct Compacted {
    writer: Writer,
    /// How far in the old log it has everything.
    upto: Position,
}

/// Syncs in steps, so that a drain which comes meanwhile does not wait behind one big sync.
const SYNC_EVERY: u64 = 4 << 20;

impl Compacted {
    /// Writes what is live in the log up to `upto` into a new log; returns `None` if `cancel` was set meanwhile.
    pub fn make(dir: &Path, upto: Position, cancel: &AtomicBool) -> Result<Option<Self>> {
        let Some(state) = replay(dir, upto, cancel)? else { return Ok(None) };
        let mut writer = Writer::create_beside(dir, upto.shards)?;
        match dump(&state, &mut writer, cancel) {
            Ok(true) => Ok(Some(Self { writer, upto })),
            Ok(false) => {
                writer.discard();
                Ok(None)
            }
            Err(e) => {
                writer.discard();
                Err(Error::io("write a compacted log", e))
            }
        }
    }

    /// Copies what was committed to the old log since, up to `upto`, and syncs it. Returns the bytes copied.
    pub fn catch_up(&mut self, dir: &Path, upto: Position) -> Result<u64> {
        let copied = upto.len - self.upto.len;
        let mut old = open_at(dir, self.upto)?;
        let mut write = Ok(());
        let writer = &mut self.writer;
        old.read(Some(upto.len), |payload| {
            let mut frame = Frame::default();
            frame.payload().extend_from_slice(payload);
            write = writer.append(&mut frame);
            if write.is_ok() { Ok(()) } else { Err("not copied".into()) }
        })
        .or_else(|e| if write.is_err() { Ok(log::End::Clean) } else { Err(e) })?;
        write.and_then(|()| self.writer.sync()).map_err(|e| Error::io("write a compacted log", e))?;
        self.upto = upto;
        Ok(copied)
    }

    /// Gives it the log's name; the caller then syncs the directory before it appends.
    pub fn into_place(mut self, dir: &Path) -> std::io::Result<Writer> {
        match self.writer.rename_into_place(dir) {
            Ok(()) => Ok(self.writer),
            Err(e) => {
                self.discard();
                Err(e)
            }
        }
    }

    /// Removes it.
    pub fn discard(self) {
        self.writer.discard();
    }
}

fn open_at(dir: &Path, at: Position) -> Result<Reader> {
    let mut reader = Reader::open(dir)?.ok_or_else(|| gone(dir))?;
    match reader.skip_to(at)? {
        true => Ok(reader),
        false => Err(gone(dir)),
    }
}

fn gone(dir: &Path) -> Error {
    Error::Invalid { detail: format!("{} was replaced by somebody else", log::path_in(dir).display()) }
}

fn replay(dir: &Path, upto: Position, cancel: &AtomicBool) -> Result<Option<State>> {
    let mut reader =
        Reader::open(dir)?.filter(|reader| reader.position().id == upto.id).ok_or_else(|| gone(dir))?;
    let mut state = State::new(upto.shards);
    let read = reader.read(Some(upto.len), |payload| match cancel.load(Ordering::Relaxed) {
        true => Err("cancelled".into()),
        false => state.apply_payload(payload),
    });
    match read {
        Err(_) if cancel.load(Ordering::Relaxed) => Ok(None),
        Err(e) => Err(e),
        Ok(_) => Ok(Some(state)),
    }
}

/// Returns false when it was cancelled.
fn dump(state: &State, writer: &mut Writer, cancel: &AtomicBool) -> std::io::Result<bool> {
    let mut synced = 0;
    let written = state.dump(|frame| {
        if cancel.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        writer.append(frame)?;
        if writer.position().len - synced > SYNC_EVERY {
            synced = writer.position().len;
            writer.sync()?;
        }
        Ok(())
    });
    match written.and_then(|()| writer.sync()) {
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::super::store::{Record, Warm};
    use super::*;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    /// A log with a lot of garbage; returns its writer and the number of the last change.
    fn wasteful(dir: &Path) -> (Writer, u32) {
        let mut writer = Writer::create(dir, 2).unwrap();
        (0..300).for_each(|i| set(&mut writer, i));
        (writer, 300)
    }

    fn set(writer: &mut Writer, i: u32) {
        let mut frame = Frame::default();
        Record::Set(&(i % 10).to_le_bytes(), &i.to_le_bytes()).encode(frame.payload());
        writer.append(&mut frame).unwrap();
    }

    /// What a start after a crash makes of the directory.
    fn recovered(dir: &Path) -> State {
        let state = Warm::open(dir, None).unwrap().finish().unwrap().state;
        log::remove_leftovers(dir).unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing is left over");
        state
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_same_data() {
        for crash_after in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let (mut writer, mut next) = wasteful(dir.path());
            let before = fs::metadata(log::path_in(dir.path())).unwrap().len();
            let mut compacted = Compacted::make(dir.path(), writer.position(), &GO_ON).unwrap().unwrap();
            if crash_after > 0 {
                set(&mut writer, next);
                next += 1;
            }
            if crash_after > 1 {
                assert!(compacted.catch_up(dir.path(), writer.position()).unwrap() > 0);
            }
            if crash_after > 2 {
                writer = compacted.into_place(dir.path()).unwrap();
                assert!(writer.position().len < before / 4);
            }
            if crash_after > 3 {
                log::sync_dir(dir.path()).unwrap();
                set(&mut writer, next);
                next += 1;
            }
            let mut expected = State::new(2);
            for i in 0..next {
                expected.apply(Record::Set(&(i % 10).to_le_bytes(), &i.to_le_bytes())).unwrap();
            }
            assert_eq!(recovered(dir.path()), expected, "after {crash_after} steps");
        }
    }

    #[test]
    fn a_half_written_compaction_is_removed_and_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _) = wasteful(dir.path());
        let expected = recovered(dir.path());
        let compacted = Compacted::make(dir.path(), writer.position(), &GO_ON).unwrap().unwrap();
        let beside = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| *p != log::path_in(dir.path()));
        let (beside, whole) = (beside.clone().unwrap(), fs::read(beside.unwrap()).unwrap());
        for cut in (0..whole.len()).step_by(7) {
            fs::write(&beside, &whole[..cut]).unwrap();
            assert_eq!(recovered(dir.path()), expected, "cut at {cut}");
        }
        drop(compacted);
    }

    #[test]
    fn a_cancelled_compaction_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _) = wasteful(dir.path());
        assert!(Compacted::make(dir.path(), writer.position(), &AtomicBool::new(true)).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(recovered(dir.path()).len(), 10);
    }

    #[test]
    fn a_log_that_was_replaced_is_not_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _) = wasteful(dir.path());
        fs::remove_file(log::path_in(dir.path())).unwrap();
        Writer::create(dir.path(), 2).unwrap();
        assert!(matches!(Compacted::make(dir.path(), writer.position(), &GO_ON), Err(Error::Invalid { .. })));
    }
}
