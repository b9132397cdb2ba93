//! The journal: how things came to be. What *is*, only the owner record says.
//!
//! An append-only file, held by one driver at a time: an exclusive flock(2) on the journal's own descriptor, which can be
//! passed on ([`Journal::adopt`]). A record is one write(2) of one line, and it is not synced unless
//! [`Journal::sync`] is called: never within the gap.
//!
//! # The file
//!
//! Every line is one JSON object followed by a newline, in UTF-8:
//!
//! ```text
//! {"crc":"6efa7239","seq":3,"handoff":"h1",...}
//!                  ^ the 18th byte, and from here to the one before the newline: the body
//! ```
//!
//! The first 17 bytes are `{"crc":"`, eight hexadecimal digits in lower case, and `"`. The digits are the CRC-32C (Castagnoli)
//! of the body, which begins with the comma. A reader checks the bytes as they stand and never has to write JSON in
//! the same manner.
//!
//! The first line is the header. Its body begins with `,"journal":"handoff","format":N`, in this format and all later
//! ones; `file` is the file's id and `rotated_from` that of the file it continues. The other lines are [`Record`]s:
//! `seq`, `handoff`, `wall_ms`, `mono_us`, `boot_id`, `pid`, `actor` and `event`, an object whose `kind` says what it is ([`Event`]).
//! Fields that a reader does not know are ignored, and kinds that it does not know are shown as they stand.
//!
//! # What can be wrong with it
//!
//! - A torn tail: the last line has no newline, or not its checksum. Whoever wrote it was never told that it is there.
//!   [`Journal::open`] cuts it, and says so ([`Journal::torn_tail`], and a [`Event::Repaired`] record).
//! - Damage anywhere else is [`Error::Damaged`] with the offset; [`repair`] moves the bad parts into files beside it.
//! - A stranger's file is [`Error::Foreign`], and a newer version's [`Error::NewerFormat`]; neither is touched.
//!
//! # Rotation
//!
//! A file that [`Event::Begun`] would make larger than [`Options::max_bytes`] is continued in a new one, which takes along what
//! must not be lost: the record of the current binary, and those of an unfinished handoff. The old one becomes `NAME.1`.

mod follow;
mod history;
mod id;
mod read;
mod record;
mod repair;
mod rotate;
mod scan;
mod story;
pub mod timeline;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

pub use follow::Follower;
pub use history::{History, history};
pub use id::new_handoff_id;
pub use read::{Contents, TornTail, read};
pub use record::{Actor, Event, FORMAT, Header, Measurements, Record, Requester, Stamp, micros, utc};
pub use repair::{Moved, Repair, repair};
pub use story::{
    Current, Evidence, HandoffSummary, Mark, Outcome, Unfinished, current, handoffs, unfinished,
};

pub use timeline::Timeline;

use crate::error::{Error, Result};
use crate::sys::{append as sys, clock, poll, process as caller};
use record::Line;

/// How long a lock that is held is always waited for: until it has called exec, a child that any thread forks has copies of all
/// descriptors, close-on-exec or not, and with them a lock that this process has just let go.
const FORK_GRACE: Duration = Duration::from_millis(100);
/// How long to sleep between two attempts at a lock that another process holds: flock(2) has no deadline of its own.
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// Where the search for the last line begins, in bytes from the end. Most records are shorter.
const LAST_LINE_GUESS: u64 = 2048;

/// How a journal is opened and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The size at which the beginning of a handoff continues in a new file, in bytes.
    pub max_bytes: u64,
    /// How many old files are kept, as `NAME.1` (the newest), `NAME.2`, ...
    pub keep: usize,
    /// How long to wait for a journal that another driver holds; [`Duration::MAX`] is for as long as it takes.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, keep: 3, wait: Duration::ZERO }
    }
}

/// A journal that this process holds.
///
/// It lets go when the last copy of its descriptor closes: dropping it in a forked child releases nothing.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Without symbolic links, so that a rotation renames the file and not a link to it.
    path: PathBuf,
    tip: Tip,
    /// None for an adopted descriptor: others may append to this very file, so it has to stay where it is.
    rotation: Option<Options>,
    torn_tail: Option<TornTail>,
    /// The file's name may not be durable yet.
    unsynced_name: bool,
}

/// The end of the file, as it was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tip {
    len: u64,
    next_seq: u64,
}

impl Journal {
    /// Opens the journal at `path`, or begins one, and holds it.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] names who holds it; [`Error::Damaged`], [`Error::Foreign`] and [`Error::NewerFormat`] leave the file
    /// as it is; [`Error::Invalid`] for what is no regular file; [`Error::Io`] otherwise.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &Options::default())
    }

    /// Like [`open`](Self::open), with a size, a number of old files and a wait of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let file = hold(path.as_ref(), true, options.wait)?;
        let path = fs::canonicalize(&path).map_err(|e| io_error("resolve", path.as_ref(), e))?;
        rotate::discard_leftover(&path);
        let mut journal = Self::of(file, path, Some(options.clone()));
        journal.heal()?;
        Ok(journal)
    }

    /// Goes on with a journal that another link of the chain has opened, by the descriptor that it passed.
    ///
    /// It does not rotate: a shell up the chain may have the same descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::Descriptor`] if it is not a journal's; [`Error::LockReplaced`] if `path` names another file;
    /// [`Error::Locked`] if the lock was lost on the way and taken by another; else as [`open`](Self::open).
    pub fn adopt(fd: OwnedFd, path: impl AsRef<Path>) -> Result<Self> {
        let (file, path) = (File::from(fd), path.as_ref());
        check_descriptor(&file, path)?;
        if !sys::try_lock(&file).map_err(|e| io_error("lock", path, e))? {
            return Err(locked(&file, path));
        }
        if !sys::is_at(&file, path).map_err(|e| io_error("inspect", path, e))? {
            return Err(Error::LockReplaced { path: path.into() });
        }
        let path = fs::canonicalize(path).map_err(|e| io_error("resolve", path, e))?;
        let mut journal = Self::of(file, path, None);
        journal.catch_up()?;
        Ok(journal)
    }

    fn of(file: File, path: PathBuf, rotation: Option<Options>) -> Self {
        let tip = Tip { len: 0, next_seq: 1 };
        Self { file, path, tip, rotation, torn_tail: None, unsynced_name: false }
    }

    /// Appends what happened now, in this process, and returns it as it was written. Does not sync.
    ///
    /// [`Event::Begun`] may rotate the file first: pass the descriptor on only after it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], such as for a full disk; the journal is then as it was before, and can be appended to later.
    pub fn append(&mut self, handoff: &str, actor: Actor, event: Event) -> Result<Record> {
        self.append_stamped(handoff, actor, event, Stamp::now())
    }

    /// Like [`append`](Self::append) for what happened earlier or elsewhere, such as what the incumbent reported after the gap.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    pub fn append_stamped(
        &mut self,
        handoff: &str,
        actor: Actor,
        event: Event,
        stamp: Stamp,
    ) -> Result<Record> {
        self.catch_up()?;
        let record = Record { seq: self.tip.next_seq, handoff: handoff.to_owned(), stamp, actor, event };
        let line = record.encode();
        if matches!(record.event, Event::Begun { .. }) {
            self.rotate_if_due(line.len() as u64);
        }
        self.write_line(&line)?;
        self.tip.next_seq += 1;
        Ok(record)
    }

    /// Makes everything that was appended durable. Takes as long as the disk does: not within the gap.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; what was appended since the last sync may then be lost when the power fails.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| io_error("sync", &self.path, e))?;
        if self.unsynced_name {
            sys::sync_dir(parent(&self.path))
                .map_err(|e| io_error("sync the directory of", &self.path, e))?;
            self.unsynced_name = false;
        }
        Ok(())
    }

    /// Returns what stands in the journal.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn contents(&self) -> Result<Contents> {
        read::of(&self.file, &self.path)
    }

    /// Returns the torn last record that was cut when the journal was opened, or when another process had torn it since.
    #[must_use]
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn_tail.as_ref()
    }

    /// Returns where the journal is, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sees what other processes with the same descriptor have appended since.
    fn catch_up(&mut self) -> Result<()> {
        let len = file_len(&self.file, &self.path)?;
        if len == self.tip.len && len > 0 {
            return Ok(());
        }
        match last_seq(&self.file, len) {
            Ok(Some(seq)) => self.tip = Tip { len, next_seq: seq + 1 },
            // Something is wrong with the end, or all of it is new: only the whole file tells what.
            Ok(None) => self.heal()?,
            Err(e) => return Err(io_error("read", &self.path, e)),
        }
        Ok(())
    }

    /// Checks the whole file, cuts a torn tail, and writes the header that an empty file lacks.
    fn heal(&mut self) -> Result<()> {
        let bytes = read::bytes(&self.file).map_err(|e| io_error("read", &self.path, e))?;
        let scan = scan::scan(&bytes);
        scan.check_sound(&self.path, &bytes)?;
        let sound = scan.tail.as_ref().map_or(bytes.len(), |tail| tail.start);
        if sound < bytes.len() {
            self.file
                .set_len(sound as u64)
                .map_err(|e| io_error("cut the torn last record of", &self.path, e))?;
        }
        self.tip =
            Tip { len: sound as u64, next_seq: scan.records.last().map_or(1, |last| last.record.seq + 1) };
        if sound == 0 {
            self.write_line(&Header::new(None).encode())?;
            self.unsynced_name = true;
        }
        if sound < bytes.len() {
            self.tell_of_torn_tail(TornTail { offset: sound as u64, bytes: bytes[sound..].to_vec() });
        }
        Ok(())
    }

    fn tell_of_torn_tail(&mut self, tail: TornTail) {
        let path = self.path.display();
        tracing::warn!(%path, offset = tail.offset, bytes = tail.bytes.len(), "cut a torn last record off the journal");
        let event = tail.as_event();
        self.torn_tail = Some(tail);
        let record = Record {
            seq: self.tip.next_seq,
            handoff: String::new(),
            stamp: Stamp::now(),
            actor: Actor::Driver,
            event,
        };
        match self.write_line(&record.encode()) {
            Ok(()) => self.tip.next_seq += 1,
            // The caller was told, and a journal that cannot be written will say so when there is something to write.
            Err(error) => tracing::warn!(%error, "unable to record that a torn last record was cut"),
        }
    }

    /// Continues in a new file if this one would grow too large. A rotation that fails leaves the journal as it was, only larger.
    fn rotate_if_due(&mut self, line: u64) {
        let Some(options) = self.rotation.as_ref().filter(|options| self.tip.len + line > options.max_bytes)
        else {
            return;
        };
        match rotate::rotate(&self.file, &self.path, options.keep) {
            Ok(Some((file, len))) => {
                self.file = file;
                self.tip.len = len;
                self.unsynced_name = false;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "unable to rotate the journal"),
        }
    }

    /// Writes a whole line or nothing.
    fn write_line(&mut self, line: &[u8]) -> Result<()> {
        // One write(2), unless the disk is nearly full: then the second one says what is wrong.
        let Err(error) = (&self.file).write_all(line) else {
            self.tip.len += line.len() as u64;
            return Ok(());
        };
        if let Err(error) = self.file.set_len(self.tip.len) {
            // The next append sees another length than it expects, and heals the file or says why it cannot.
            tracing::warn!(path = %self.path.display(), %error, "unable to cut a partly written record");
        }
        Err(io_error("append to", &self.path, error))
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// For passing the journal on.
impl From<Journal> for OwnedFd {
    fn from(journal: Journal) -> Self {
        journal.file.into()
    }
}

impl Stamp {
    /// Returns this moment, in this process.
    #[must_use]
    pub fn now() -> Self {
        Self {
            wall_ms: clock::wall_ms(),
            mono_us: clock::monotonic_us(),
            boot_id: clock::boot_id().to_owned(),
            pid: process::id(),
        }
    }
}

impl Requester {
    /// Returns who started this process, and with which words.
    #[must_use]
    pub fn of_this_process() -> Self {
        let uid = caller::own_uid();
        Self {
            uid,
            user: caller::user_name(uid),
            sudo_user: std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty()),
            tty: caller::terminal().map(|path| path.display().to_string()),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        }
    }
}

impl Header {
    fn new(rotated_from: Option<String>) -> Self {
        Self { format: FORMAT, file: new_handoff_id(), rotated_from, wall_ms: clock::wall_ms() }
    }
}

/// Opens and locks the file that `path` names once it is locked: while it was waited for, it may have been rotated away.
fn hold(path: &Path, create: bool, wait: Duration) -> Result<File> {
    let deadline = poll::after(wait.max(FORK_GRACE));
    loop {
        let file = sys::open_append(path, create).map_err(|e| match e.kind() {
            io::ErrorKind::IsADirectory => not_regular(path),
            _ => io_error("open", path, e),
        })?;
        check_regular(&file, path)?;
        let held = sys::try_lock(&file).map_err(|e| io_error("lock", path, e))?;
        if held && sys::is_at(&file, path).map_err(|e| io_error("inspect", path, e))? {
            return Ok(file);
        }
        if !held && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(locked(&file, path));
        }
        if !held {
            thread::sleep(LOCK_RETRY);
        }
    }
}

fn check_regular(file: &File, path: &Path) -> Result<()> {
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(not_regular(path)),
        Err(e) => Err(io_error("inspect", path, e)),
    }
}

fn not_regular(path: &Path) -> Error {
    Error::Invalid { detail: format!("{} is not a regular file, as a journal must be", path.display()) }
}

fn check_descriptor(file: &File, path: &Path) -> Result<()> {
    check_regular(file, path)?;
    match sys::appends(file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Descriptor {
            name: "journal".into(),
            fd: file.as_raw_fd(),
            detail: "expected the descriptor of a journal, found one that was not opened for appending"
                .into(),
        }),
        Err(e) => Err(io_error("inspect", path, e)),
    }
}

fn locked(file: &File, path: &Path) -> Error {
    Error::Locked { path: path.into(), holders: sys::holders(file) }
}

/// Returns the number of the last record, 0 for a header, and nothing if the file does not end with a sound line.
fn last_seq(file: &File, len: u64) -> io::Result<Option<u64>> {
    let mut guess = LAST_LINE_GUESS;
    loop {
        let start = len.saturating_sub(guess);
        let mut end = vec![0; usize::try_from(len - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut end, start)?;
        let Some(lines) = end.strip_suffix(b"\n") else { return Ok(None) };
        match lines.iter().rposition(|b| *b == b'\n') {
            Some(newline) => return Ok(seq(&lines[newline + 1..])),
            None if start == 0 => return Ok(seq(lines)),
            None => guess *= 2,
        }
    }
}

fn seq(line: &[u8]) -> Option<u64> {
    match record::decode(line).ok()? {
        Line::Record(record) => Some(record.seq),
        // A header that is not ours to understand is for the whole scan to refuse.
        Line::Header(header) => (header.format == FORMAT).then_some(0),
    }
}

fn file_len(file: &File, path: &Path) -> Result<u64> {
    file.metadata().map(|metadata| metadata.len()).map_err(|e| io_error("inspect", path, e))
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("a canonical path of a file has a directory")
}

/// Returns `path` with something behind its last component.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_error(verb: &str, path: &Path, source: io::Error) -> Error {
    Error::io(format!("{verb} the journal {}", path.display()), source)
}
