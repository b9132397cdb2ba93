//! Reading a journal that another process may be writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::record::{Event, Header, Record};
use super::scan::{self, Scan};
use super::{check_regular, io_error};
use crate::error::{Error, Result};
use crate::sys::append as sys;

/// How often a file that changes while it is read is read again before it is believed.
const READS_MAX: u32 = 20;
/// How much of a torn record is quoted, in bytes.
const QUOTE_MAX: usize = 200;

/// What stands in a journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// The file's header; none in an empty file.
    pub header: Option<Header>,
    /// The records, in the file's order.
    pub records: Vec<Record>,
    /// The line of each record as it stands in the file, without its newline.
    pub lines: Vec<String>,
    /// A last line that is not whole: torn, or being written at this moment.
    pub torn_tail: Option<TornTail>,
}

/// The rest of a record that was never written to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Where it begins.
    pub offset: u64,
    /// What is there of it.
    pub bytes: Vec<u8>,
}

/// Reads the journal at `path` without holding it.
///
/// A driver may append, cut, rotate or repair at the same time.
///
/// # Errors
///
/// [`Error::Damaged`], [`Error::Foreign`], [`Error::NewerFormat`], [`Error::Invalid`] for what is no regular file, and
/// [`Error::Io`], among others where there is no file.
pub fn read(path: impl AsRef<Path>) -> Result<Contents> {
    let path = path.as_ref();
    let file = sys::open_read(path).map_err(|e| io_error("open", path, e))?;
    check_regular(&file, path)?;
    of(&file, path)
}

/// Reads an open journal.
pub(super) fn of(file: &File, path: &Path) -> Result<Contents> {
    let mut before = None;
    for _ in 0..READS_MAX {
        let bytes = bytes(file).map_err(|e| io_error("read", path, e))?;
        let scan = scan::scan(&bytes);
        match scan.check_sound(path, &bytes) {
            Ok(()) => return Ok(contents(scan, &bytes)),
            // A record that was cut and written over while it was read looks like damage, but only once.
            Err(Error::Damaged { .. }) if before.as_ref() != Some(&bytes) => before = Some(bytes),
            Err(error) => return Err(error),
        }
    }
    Err(Error::TimedOut {
        waiting_for: format!("the journal {} to stay the same for a moment", path.display()),
    })
}

/// Reads the whole file without moving the offset, which other processes may share.
pub(super) fn bytes(file: &File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    let mut read = 0;
    while read < len {
        match file.read_at(&mut bytes[read..], read as u64) {
            // Somebody cut a torn record since.
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

fn contents(scan: Scan, bytes: &[u8]) -> Contents {
    let line = |range: std::ops::Range<usize>| {
        String::from_utf8_lossy(&bytes[range.start..range.end - 1]).into_owned()
    };
    let lines = scan.records.iter().map(|sound| line(sound.range.clone())).collect();
    let records = scan.records.into_iter().map(|sound| sound.record).collect();
    let torn_tail = scan.tail.map(|tail| TornTail { offset: tail.start as u64, bytes: bytes[tail].to_vec() });
    Contents { header: scan.header, records, lines, torn_tail }
}

impl TornTail {
    pub(super) fn as_event(&self) -> Event {
        let quote = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(QUOTE_MAX)]);
        Event::Repaired {
            offset: self.offset,
            bytes: self.bytes.len() as u64,
            moved_to: None,
            detail: format!("cut a torn last record: {quote}"),
        }
    }
}
