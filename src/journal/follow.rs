//! Watching a journal that others write.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::read::{Contents, read};
use super::{io_error, rotate};
use crate::error::Result;

/// Gives out the records of a journal as they come, across rotations, each of them once.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// The file that was read last, and what it was like then.
    file: Option<String>,
    seen: Option<Seen>,
    last_seq: u64,
}

/// What changes with every change of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    len: u64,
}

impl Follower {
    /// Returns one that begins with the oldest record in the file; there need not be a file yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None, seen: None, last_seq: 0 }
    }

    /// Returns what has come since the last call, as records and their lines. Does not wait: the caller chooses when to look.
    ///
    /// # Errors
    ///
    /// As [`read`], except that no file is an empty journal.
    pub fn poll(&mut self) -> Result<Contents> {
        let seen = look(&self.path)?;
        if seen == self.seen {
            return Ok(Contents::default());
        }
        let mut news = Contents::default();
        let files = if seen.is_some() { self.unread_files()? } else { VecDeque::new() };
        for file in files {
            self.take(file, &mut news);
        }
        self.seen = seen;
        Ok(news)
    }

    /// Reads the journal, and the files that were rotated away since the last look, oldest first.
    fn unread_files(&self) -> Result<VecDeque<Contents>> {
        let mut files = VecDeque::from([read(&self.path)?]);
        for n in 1.. {
            let name = rotate::numbered(&self.path, n);
            let newest = files[0].header.as_ref();
            let continued = newest.is_some_and(|header| header.rotated_from.is_some());
            let known = self.file.is_none() || newest.map(|header| &header.file) == self.file.as_ref();
            if known || !continued || look(&name)?.is_none() {
                break;
            }
            files.push_front(read(&name)?);
        }
        Ok(files)
    }

    fn take(&mut self, file: Contents, news: &mut Contents) {
        let last = file.records.last().map_or(self.last_seq, |record| record.seq);
        if id(&file) != self.file && last < self.last_seq {
            // Somebody removed the journal, and the numbers begin anew.
            self.last_seq = 0;
        }
        self.file = id(&file);
        for (record, line) in file.records.into_iter().zip(file.lines) {
            if record.seq > self.last_seq {
                self.last_seq = record.seq;
                news.records.push(record);
                news.lines.push(line);
            }
        }
        (news.header, news.torn_tail) = (file.header, file.torn_tail);
    }
}

fn id(file: &Contents) -> Option<String> {
    file.header.as_ref().map(|header| header.file.clone())
}

fn look(path: &Path) -> Result<Option<Seen>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Seen { device: metadata.dev(), inode: metadata.ino(), len: metadata.len() })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("inspect", path, e)),
    }
}
