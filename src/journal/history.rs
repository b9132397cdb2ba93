//! All that is left of a journal: the file and the old ones that it continues.

use std::path::Path;

use super::read::{Contents, read};
use super::record::Record;
use super::rotate;
use crate::error::{Error, Result};

/// What the files of a journal say together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The records, oldest first, each of them once.
    pub records: Vec<Record>,
    /// When the oldest of the files was begun, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// How many files they come from.
    pub files: usize,
    /// Whether the last record is torn, or being written at this moment.
    pub torn: bool,
    /// What is wrong with a file that could not be read for damage: what is older than it is not here.
    pub damage: Option<String>,
}

/// Reads the journal at `path` and the files `NAME.1`, `NAME.2`, ... that it continues, without holding it.
///
/// # Errors
///
/// As [`read`](super::read), for the journal itself, except that damage is a part of what is found.
pub fn history(path: impl AsRef<Path>) -> Result<History> {
    let path = path.as_ref();
    let mut history = History::default();
    let newest = match read(path) {
        Ok(contents) => contents,
        Err(Error::Damaged { path, offset, detail }) => {
            history.damage = Some(Error::Damaged { path, offset, detail }.to_string());
            return Ok(history);
        }
        Err(e) => return Err(e),
    };
    history.torn = newest.torn_tail.is_some();
    let mut files = vec![newest];
    history.damage = add_older(path, &mut files);
    history.files = files.len();
    history.since_ms = files.last().and_then(|file| file.header.as_ref()).map(|header| header.wall_ms);
    for file in files.into_iter().rev() {
        history.take(file);
    }
    Ok(history)
}

/// Adds the files that these continue, newest first, and returns what is wrong with the one that cannot be read.
fn add_older(path: &Path, files: &mut Vec<Contents>) -> Option<String> {
    for n in 1.. {
        let wanted = files.last()?.header.as_ref()?.rotated_from.clone()?;
        let file = match read(rotate::numbered(path, n)) {
            Ok(file) => file,
            Err(Error::Damaged { path, offset, detail }) => {
                return Some(Error::Damaged { path, offset, detail }.to_string());
            }
            // The oldest that was kept has been read.
            Err(_) => return None,
        };
        let id = file.header.as_ref().map(|header| header.file.clone());
        if id.as_ref() == Some(&wanted) {
            files.push(file);
        } else if !files.iter().any(|known| known.header.as_ref().map(|header| &header.file) == id.as_ref()) {
            // It belongs to a journal that was here before. (One that is known was rotated away while it was read.)
            return None;
        }
    }
    None
}

impl History {
    /// What a rotation has carried over stands in the older file too.
    fn take(&mut self, file: Contents) {
        let last = self.records.last().map_or(0, |record| record.seq);
        self.records.extend(file.records.into_iter().filter(|record| record.seq > last));
    }
}
