//! Moving the bad parts of a damaged journal aside.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::{Actor, Event, Header, Record, Stamp};
use super::scan::{self, Bad, Scan};
use super::{beside, hold, io_error, parent, read, rotate};
use crate::error::Result;
use crate::sys::append as sys;

/// What [`repair`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// The bad parts, in the file's order; none if the journal was sound, and then it was not touched.
    pub moved: Vec<Moved>,
    /// How many records were sound; all of them are still there.
    pub records_kept: usize,
}

/// A bad part, and where it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where it was in the journal.
    pub offset: u64,
    /// Its length; 0 where something was missing.
    pub bytes: u64,
    /// The file that it was moved to: `NAME.damaged-OFFSET`, with a number behind it if there was one already.
    pub moved_to: Option<PathBuf>,
    /// What was wrong with it.
    pub detail: String,
}

/// Moves the bad parts of the journal at `path` into files beside it, a torn tail included, and keeps every sound record.
///
/// The journal then tells of it ([`Event::Repaired`]). Killed at any moment, it leaves the journal as it was or repaired.
///
/// # Errors
///
/// As [`Journal::open`](super::Journal::open), except that damage is none, and that there has to be a file.
pub fn repair(path: impl AsRef<Path>) -> Result<Repair> {
    let file = hold(path.as_ref(), false, Duration::ZERO)?;
    let path = fs::canonicalize(&path).map_err(|e| io_error("resolve", path.as_ref(), e))?;
    let bytes = read::bytes(&file).map_err(|e| io_error("read", &path, e))?;
    let scan = scan::scan(&bytes);
    scan.check_ours(&path, &bytes)?;
    let parts = bad_parts(&scan);
    let records_kept = scan.records.len();
    if parts.is_empty() {
        return Ok(Repair { moved: Vec::new(), records_kept });
    }
    let moved =
        parts.iter().map(|part| move_aside(part, &path, &file, &bytes)).collect::<Result<Vec<_>>>()?;
    replace(&path, &file, &repaired(&scan, &bytes, &moved))?;
    Ok(Repair { moved, records_kept })
}

fn bad_parts(scan: &Scan) -> Vec<Bad> {
    let tail =
        scan.tail.iter().map(|range| Bad { range: range.clone(), detail: "a torn last record".into() });
    scan.bad.iter().cloned().chain(tail).collect()
}

fn move_aside(part: &Bad, path: &Path, journal: &File, bytes: &[u8]) -> Result<Moved> {
    let offset = part.range.start as u64;
    let bytes = &bytes[part.range.clone()];
    let moved_to = match bytes {
        [] => None,
        bytes => Some(
            write_aside(path, journal, offset, bytes)
                .map_err(|e| io_error("move a bad part out of", path, e))?,
        ),
    };
    Ok(Moved { offset, bytes: bytes.len() as u64, moved_to, detail: part.detail.clone() })
}

fn write_aside(path: &Path, journal: &File, offset: u64, bytes: &[u8]) -> io::Result<PathBuf> {
    let (name, mut file) = unused(&beside(path, &format!(".damaged-{offset}")))?;
    sys::copy_owner_mode(journal, &file)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(name)
}

/// Creates the first of `NAME`, `NAME.1`, `NAME.2`, ... that does not exist: an earlier repair's find is never overwritten.
fn unused(name: &Path) -> io::Result<(PathBuf, File)> {
    let names = std::iter::once(name.to_owned()).chain((1..).map(|n| rotate::numbered(name, n)));
    for name in names {
        match sys::create_new(&name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|file| (name, file)),
        }
    }
    unreachable!("the numbers do not end")
}

/// Returns the text of the repaired journal.
fn repaired(scan: &Scan, bytes: &[u8], moved: &[Moved]) -> Vec<u8> {
    let header = scan.header.clone().unwrap_or_else(|| Header::new(None));
    let mut text = header.encode();
    for sound in &scan.records {
        text.extend_from_slice(&bytes[sound.range.clone()]);
        // A newline may have been what was bad.
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    let first = scan.records.last().map_or(1, |last| last.record.seq + 1);
    for (seq, moved) in (first..).zip(moved) {
        let (stamp, event) = (Stamp::now(), moved.as_event());
        let record = Record { seq, handoff: String::new(), stamp, actor: Actor::Operator, event };
        text.extend_from_slice(&record.encode());
    }
    text
}

impl Moved {
    fn as_event(&self) -> Event {
        let Self { offset, bytes, moved_to, detail } = self.clone();
        Event::Repaired { offset, bytes, moved_to, detail }
    }
}

fn replace(path: &Path, old: &File, text: &[u8]) -> Result<()> {
    // Held until the names are durable, so that nobody appends to a file that a power failure may take back.
    let _new = rotate::write_beside(path, old, text)?;
    let names = || {
        sys::sync_dir(parent(path))?;
        fs::rename(rotate::leftover(path), path)?;
        sys::sync_dir(parent(path))
    };
    names().map_err(|e| io_error("replace", path, e))
}
