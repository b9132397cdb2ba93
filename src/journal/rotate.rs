//! Continuing in a new file: what it takes along, and in which order the files change.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::record::{Header, Record};
use super::scan::{self, Scan};
use super::{beside, io_error, parent, read, story};
use crate::error::Result;
use crate::sys::append as sys;

/// What is done to the files, in this order. After any of them the power may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes the old file durable before it becomes history.
    SyncOld,
    /// Moves `NAME.n` to `NAME.n+1`, over the oldest.
    Age(usize),
    /// Gives the old file its second name. It keeps the first, so that there is a journal at every moment.
    Link,
    /// Makes that second name durable before the first one goes.
    SyncNames,
    /// Puts the new file in the old one's place.
    Replace,
}

/// Returns the steps that rotate the journal at `path` with so many old files.
pub(super) fn steps(old: &File, path: &Path, keep: usize) -> io::Result<Vec<Step>> {
    let mut steps = vec![Step::SyncOld];
    // A rotation that was killed after `Link` has done all of this.
    if keep > 0 && !sys::is_at(old, &numbered(path, 1))? {
        // Up to the first free name only: another rotation may have been killed after it had freed one.
        let aging = (1..keep).take_while(|n| numbered(path, *n).exists()).count();
        steps.extend((1..=aging).rev().map(Step::Age));
        steps.push(Step::Link);
    }
    steps.extend([Step::SyncNames, Step::Replace, Step::SyncNames]);
    Ok(steps)
}

/// Rotates, and returns the new file and its length, or nothing if a new file would not be much smaller.
pub(super) fn rotate(old: &File, path: &Path, keep: usize) -> Result<Option<(File, u64)>> {
    let bytes = read::bytes(old).map_err(|e| io_error("read", path, e))?;
    let successor = successor(&scan::scan(&bytes), &bytes);
    if successor.len() > bytes.len() / 2 {
        return Ok(None);
    }
    let new = write_beside(path, old, &successor)?;
    let take_steps = || steps(old, path, keep)?.into_iter().try_for_each(|step| take(step, old, path));
    take_steps().map_err(|e| io_error("rotate", path, e)).inspect_err(|_| discard_leftover(path))?;
    Ok(Some((new, successor.len() as u64)))
}

/// Returns the text of the file that continues this one.
fn successor(scan: &Scan, bytes: &[u8]) -> Vec<u8> {
    let records: Vec<Record> = scan.records.iter().map(|sound| sound.record.clone()).collect();
    let mut text = Header::new(scan.header.as_ref().map(|header| header.file.clone())).encode();
    for at in story::carried(&records) {
        // As it stands, with fields that only a newer version knows.
        text.extend_from_slice(&bytes[scan.records[at].range.clone()]);
    }
    text
}

pub(super) fn take(step: Step, old: &File, path: &Path) -> io::Result<()> {
    match step {
        Step::SyncOld => old.sync_data(),
        Step::Age(n) => fs::rename(numbered(path, n), numbered(path, n + 1)),
        Step::Link => link(path, &numbered(path, 1)),
        Step::SyncNames => sys::sync_dir(parent(path)),
        Step::Replace => fs::rename(leftover(path), path),
    }
}

fn link(path: &Path, name: &Path) -> io::Result<()> {
    match fs::remove_file(name) {
        // Only where one old file is kept is there one in the way.
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => fs::hard_link(path, name),
    }
}

/// Writes the file that is to take the journal's place: locked before anybody can find it, and durable.
pub(super) fn write_beside(path: &Path, old: &File, text: &[u8]) -> Result<File> {
    discard_leftover(path);
    let name = leftover(path);
    let write = || {
        let mut new = sys::create_new(&name)?;
        sys::copy_owner_mode(old, &new)?;
        if !sys::try_lock(&new)? {
            return Err(io::Error::other("another process has locked it"));
        }
        new.write_all(text)?;
        new.sync_all()?;
        Ok(new)
    };
    write().map_err(|e| io_error("write the new file for", path, e)).inspect_err(|_| discard_leftover(path))
}

/// Removes what a rotation that was killed has left behind. Only who holds the journal may call this.
pub(super) fn discard_leftover(path: &Path) {
    match fs::remove_file(leftover(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %leftover(path).display(), %error, "unable to remove the rest of a rotation");
        }
        _ => {}
    }
}

pub(super) fn leftover(path: &Path) -> PathBuf {
    beside(path, ".rotating")
}

pub(super) fn numbered(path: &Path, n: usize) -> PathBuf {
    beside(path, &format!(".{n}"))
}
