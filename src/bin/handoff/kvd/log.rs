//! The log: one file that holds every committed write, in order.
//!
//! ```text
//! header  magic (8) | version u32 | shards u32 | id (16) | crc32c of these u32
//! frame   length u32 | chain u32 | crc32c of the previous chain, length and chain u32 | payload
//! payload records, each a kind u8 and its fields, each of these a length u32 and bytes
//! record  1 set (key, value) | 2 delete (key) | 3 delete everything () | 4 revisions (u64 a shard), which ends a compacted log
//! ```
//!
//! Integers are little-endian. The first chain is the crc32c of the header. A frame is one group commit: one write, one fdatasync, all or nothing. Its `chain` is the
//! crc32c of the payload continued from the frame before, so a frame is valid only in its place, and the last chain stands
//! for all that the file contains.
//!
//! A frame is written after the one before it is on disk, so a crash can leave only the last one incomplete: that one was never
//! acknowledged and is cut. The frame header has a checksum of its own: a damaged length cannot pass for an
//! incomplete frame. Everything else that is wrong is damage, and is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use handoff::{Error, Result};

/// The log's name in the data directory.
pub const FILE: &str = "kv.log";
/// What an unfinished new log is called; anything with this prefix is left over from a crash.
pub const TEMPORARY_PREFIX: &str = "kv.log.new-";

const MAGIC: &[u8; 8] = b"HKVDLOG\n";
const VERSION: u32 = 1;
/// The length of the file's header.
pub const HEADER: usize = 36;
/// The length of a frame's header.
pub const FRAME_HEADER: usize = 12;

/// How far a log goes. Two processes that read the same file get the same position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Names the file: random, and new after a compaction.
    pub id: [u8; 16],
    /// The number of shards that revisions are counted in.
    pub shards: u32,
    /// The length of the valid part in bytes.
    pub len: u64,
    /// The chain of the last frame.
    pub chain: u32,
    /// Where the last frame begins, or zero before the first.
    pub last_frame: u64,
}

impl Position {
    /// Returns 32 bytes that stand for the file's identity and contents.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.id);
        bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.chain.to_le_bytes());
        bytes[28..].copy_from_slice(&VERSION.to_le_bytes());
        bytes
    }

    fn at_start(id: [u8; 16], shards: u32) -> Self {
        let chain = crc32c::crc32c(&header(id, shards));
        Self { id, shards, len: HEADER as u64, chain, last_frame: 0 }
    }
}

/// Returns the log's path in a data directory.
pub fn path_in(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn header(id: [u8; 16], shards: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&shards.to_le_bytes());
    bytes[16..32].copy_from_slice(&id);
    let crc = crc32c::crc32c(&bytes[..32]);
    bytes[32..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the range is four bytes long"))
}

/// What ended a read.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The file ends after a whole frame.
    Clean,
    /// The last frame is incomplete; so many bytes of it are there.
    Torn(u64),
}

/// A log that is being read.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    at: Position,
    payload: Vec<u8>,
}

impl Reader {
    /// Opens the log of a data directory, or returns `None` if there is none.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = path_in(dir);
        match File::open(&path) {
            Ok(file) => Self::of(path, file).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("open {}", path.display()), e)),
        }
    }

    fn of(path: PathBuf, file: File) -> Result<Self> {
        let mut file = BufReader::with_capacity(256 * 1024, file);
        let mut bytes = [0; HEADER];
        let got = read_up_to(&mut file, &mut bytes).map_err(|e| reading(&path, e))?;
        let at = check_header(&path, &bytes[..got])?;
        Ok(Self { path, file, at, payload: Vec::new() })
    }

    /// Returns how far it has read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Returns whether this file is the one that was read to `at`, and goes on from there.
    pub fn continues(&self, at: Position) -> bool {
        let ends_there = || match at.last_frame {
            0 => at.len == HEADER as u64,
            start => self.ends_of_frame(start) == Some((at.len, at.chain)),
        };
        self.at.id == at.id && self.size().is_ok_and(|size| size >= at.len) && ends_there()
    }

    /// Returns where the frame at `start` says that it ends, and its chain.
    fn ends_of_frame(&self, start: u64) -> Option<(u64, u32)> {
        let mut head = [0; FRAME_HEADER];
        self.file.get_ref().read_exact_at(&mut head, start).ok()?;
        Some((start + FRAME_HEADER as u64 + u64::from(u32_at(&head, 0)), u32_at(&head, 4)))
    }

    /// Goes to `at` without reading what is before; returns false if that is not a place in this file.
    pub fn skip_to(&mut self, at: Position) -> Result<bool> {
        if !self.continues(at) {
            return Ok(false);
        }
        self.at = at;
        Ok(true)
    }

    /// Reads the whole frames up to the end of the file, or up to `limit` bytes of it, and calls `apply` with each payload.
    ///
    /// Can be called again when the file has grown.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] with the offset of the frame that is wrong; the position is then that of the frame before.
    pub fn read(
        &mut self,
        limit: Option<u64>,
        mut apply: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<End> {
        self.rewind()?;
        loop {
            let size = self.size()?.min(limit.unwrap_or(u64::MAX));
            if self.at.len >= size {
                return Ok(End::Clean);
            }
            if let Some(torn) = self.next_frame(size)? {
                return Ok(torn);
            }
            apply(&self.payload).map_err(|detail| self.damaged(detail))?;
            self.advance();
        }
    }

    /// Reads one frame into `payload` without going past it; returns how the file ends if it is not whole.
    fn next_frame(&mut self, size: u64) -> Result<Option<End>> {
        let remaining = size - self.at.len;
        let mut head = [0; FRAME_HEADER];
        let wanted = FRAME_HEADER.min(usize::try_from(remaining).unwrap_or(FRAME_HEADER));
        self.fill(&mut head[..wanted])?;
        if wanted < FRAME_HEADER {
            return Ok(Some(End::Torn(remaining)));
        }
        if u32_at(&head, 8) != head_crc(self.at.chain, &head) {
            return self.zeros_or_damage(&head, remaining).map(Some);
        }
        let length = u32_at(&head, 0) as usize;
        if remaining < (FRAME_HEADER + length) as u64 {
            return Ok(Some(End::Torn(remaining)));
        }
        self.read_payload(length)?;
        if crc32c::crc32c_append(self.at.chain, &self.payload) != u32_at(&head, 4) {
            return Err(self.damaged(format!("the checksum of a record of {length} bytes is wrong")));
        }
        Ok(None)
    }

    fn read_payload(&mut self, length: usize) -> Result<()> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(length, 0);
        let read = self.fill(&mut payload);
        self.payload = payload;
        read
    }

    /// A power failure can leave a file longer without the bytes: nothing but zeros to the end is an incomplete frame.
    fn zeros_or_damage(&mut self, head: &[u8], remaining: u64) -> Result<End> {
        let mut all_zero = head.iter().all(|b| *b == 0);
        let mut left = remaining - FRAME_HEADER as u64;
        let mut block = [0; 4096];
        while all_zero && left > 0 {
            let wanted = block.len().min(usize::try_from(left).unwrap_or(block.len()));
            self.fill(&mut block[..wanted])?;
            all_zero = block[..wanted].iter().all(|b| *b == 0);
            left -= wanted as u64;
        }
        if all_zero {
            Ok(End::Torn(remaining))
        } else {
            Err(self.damaged("the checksum of a record's header is wrong"))
        }
    }

    fn advance(&mut self) {
        self.at.last_frame = self.at.len;
        self.at.len += (FRAME_HEADER + self.payload.len()) as u64;
        self.at.chain = crc32c::crc32c_append(self.at.chain, &self.payload);
    }

    /// Forgets what was read ahead of the position: an unfinished frame may be different by now.
    fn rewind(&mut self) -> Result<()> {
        use std::io::Seek;
        self.file.seek(io::SeekFrom::Start(self.at.len)).map_err(|e| reading(&self.path, e))?;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact(buffer).map_err(|e| reading(&self.path, e))
    }

    fn size(&self) -> Result<u64> {
        Ok(self.file.get_ref().metadata().map_err(|e| reading(&self.path, e))?.len())
    }

    fn damaged(&self, detail: impl Into<String>) -> Error {
        Error::Damaged { path: self.path.clone(), offset: self.at.len, detail: detail.into() }
    }
}

fn head_crc(previous_chain: u32, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&previous_chain.to_le_bytes()), &head[..8])
}

fn reading(path: &Path, e: io::Error) -> Error {
    Error::io(format!("read {}", path.display()), e)
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

/// A log is renamed into place when its header is on disk, so a header that is not whole is damage.
fn check_header(path: &Path, bytes: &[u8]) -> Result<Position> {
    let damaged = |offset, detail: String| Error::Damaged { path: path.to_owned(), offset, detail };
    if bytes.len() < HEADER {
        return Err(damaged(0, format!("its header needs {HEADER} bytes and it has {}", bytes.len())));
    }
    if bytes[..8] != *MAGIC {
        return Err(damaged(0, "it does not begin as a log of kvd does".into()));
    }
    if u32_at(bytes, 32) != crc32c::crc32c(&bytes[..32]) {
        return Err(damaged(0, "the checksum of its header is wrong".into()));
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        let detail =
            format!("{} has format version {version}, and this program reads {VERSION}", path.display());
        return Err(Error::Invalid { detail });
    }
    let id = bytes[16..32].try_into().expect("the range is sixteen bytes long");
    Ok(Position::at_start(id, u32_at(bytes, 12)))
}

/// A frame under construction: the payload, with room for the header in front.
#[derive(Debug)]
pub struct Frame(Vec<u8>);

impl Default for Frame {
    fn default() -> Self {
        Self(vec![0; FRAME_HEADER])
    }
}

impl Frame {
    /// Returns the payload's buffer, to append records to. What is in it must not be removed.
    pub fn payload(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// Returns the length of the payload.
    pub fn len(&self) -> usize {
        self.0.len() - FRAME_HEADER
    }

    /// Returns whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the records of another frame, to be committed together.
    pub fn extend(&mut self, other: &Frame) {
        self.0.extend_from_slice(&other.0[FRAME_HEADER..]);
    }

    /// Fills in the header and returns the frame's bytes and the position after it.
    fn sealed(&mut self, at: Position) -> (&[u8], Position) {
        let length = u32::try_from(self.len()).expect("the server bounds what is waiting to be committed");
        let chain = crc32c::crc32c_append(at.chain, &self.0[FRAME_HEADER..]);
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0[4..8].copy_from_slice(&chain.to_le_bytes());
        let crc = head_crc(at.chain, &self.0);
        self.0[8..12].copy_from_slice(&crc.to_le_bytes());
        (&self.0, Position { len: at.len + self.0.len() as u64, chain, last_frame: at.len, ..at })
    }
}

/// A log that is being written. Only the holder of the data directory's lock may have one.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    at: Position,
}

impl Writer {
    /// Opens the log for appending after `at`, which a [`Reader`] has reached, and cuts what is behind.
    pub fn open(dir: &Path, at: Position) -> Result<Self> {
        let path = path_in(dir);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let writer =
            Self { file: file.map_err(|e| Error::io(format!("open {}", path.display()), e))?, path, at };
        writer.cut().map_err(|e| Error::io(format!("cut the torn end of {}", writer.path.display()), e))?;
        Ok(writer)
    }

    /// Creates the log of an empty data directory; it is on disk, under its name, when this returns.
    pub fn create(dir: &Path, shards: u32) -> Result<Self> {
        let mut writer = Self::create_beside(dir, shards)?;
        let mut place = || -> io::Result<()> {
            writer.sync()?;
            writer.rename_into_place(dir)?;
            sync_dir(dir)
        };
        place().map_err(|e| creating(&path_in(dir), e))?;
        Ok(writer)
    }

    /// Creates a log under a temporary name, which no other process uses.
    pub fn create_beside(dir: &Path, shards: u32) -> Result<Self> {
        let id = random_id().map_err(|e| Error::io("read /dev/urandom", e))?;
        let path = dir.join(format!(
            "{TEMPORARY_PREFIX}{}",
            u64::from_le_bytes(id[..8].try_into().expect("eight of sixteen"))
        ));
        let open = || OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = open().map_err(|e| creating(&path, e))?;
        file.write_all_at(&header(id, shards), 0).map_err(|e| creating(&path, e))?;
        Ok(Self { path, file, at: Position::at_start(id, shards) })
    }

    /// Replaces the data directory's log by this one, which must have been synced. [`sync_dir`] makes that last.
    ///
    /// # Errors
    ///
    /// What rename(2) returns; nothing has changed then.
    pub fn rename_into_place(&mut self, dir: &Path) -> io::Result<()> {
        let path = path_in(dir);
        std::fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }

    /// Removes a log that was created beside and is not wanted.
    pub fn discard(self) {
        // It is removed at the next start if it cannot be removed now.
        let _ = std::fs::remove_file(&self.path);
    }

    /// Returns where the next frame goes.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Appends a frame. It is durable after [`sync`](Self::sync).
    ///
    /// # Errors
    ///
    /// When it cannot be written whole, such as on a full disk; the log is then as it was before.
    pub fn append(&mut self, frame: &mut Frame) -> io::Result<()> {
        let (bytes, next) = frame.sealed(self.at);
        if let Err(e) = self.file.write_all_at(bytes, self.at.len) {
            // If this fails too, the incomplete frame is cut at the next start.
            let _ = self.cut();
            return Err(e);
        }
        self.at = next;
        Ok(())
    }

    /// Makes everything that was appended durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn cut(&self) -> io::Result<()> {
        match self.file.metadata()?.len() > self.at.len {
            true => self.file.set_len(self.at.len),
            false => Ok(()),
        }
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn creating(path: &Path, e: io::Error) -> Error {
    Error::io(format!("create {}", path.display()), e)
}

fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

/// Removes what a crash left of logs that never got their name. For the holder of the data directory's lock.
pub fn remove_leftovers(dir: &Path) -> Result<()> {
    let list = |e| Error::io(format!("list {}", dir.display()), e);
    for entry in std::fs::read_dir(dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            match std::fs::remove_file(entry.path()) {
                // A compaction that was cancelled removes its own file.
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", entry.path().display()), e));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    fn frame(payload: &[u8]) -> Frame {
        let mut frame = Frame::default();
        frame.payload().extend_from_slice(payload);
        frame
    }

    fn log_of(dir: &Path, payloads: &[&[u8]]) -> Position {
        let mut writer = Writer::create(dir, 1).unwrap();
        for payload in payloads {
            writer.append(&mut frame(payload)).unwrap();
        }
        writer.sync().unwrap();
        writer.position()
    }

    fn read(dir: &Path) -> Result<(Vec<Vec<u8>>, End, Position)> {
        let mut reader = Reader::open(dir)?.expect("there is a log");
        let mut payloads = Vec::new();
        let end = reader.read(None, |p| {
            payloads.push(p.to_vec());
            Ok(())
        })?;
        Ok((payloads, end, reader.position()))
    }

    const PAYLOADS: [&[u8]; 3] = [b"one", b"the second", b"3"];

    /// Where each frame of [`PAYLOADS`] begins, and where the file ends.
    fn bounds() -> Vec<usize> {
        PAYLOADS.iter().fold(vec![HEADER], |mut bounds, p| {
            bounds.push(bounds.last().unwrap() + FRAME_HEADER + p.len());
            bounds
        })
    }

    #[test]
    fn what_was_appended_is_read_back_with_the_same_position() {
        let dir = tempfile::tempdir().unwrap();
        let written = log_of(dir.path(), &PAYLOADS);
        let (payloads, end, position) = read(dir.path()).unwrap();
        assert_eq!(payloads, PAYLOADS);
        assert_eq!((end, position), (End::Clean, written));
        assert_eq!(position.fingerprint(), written.fingerprint());
    }

    #[test]
    fn a_file_that_ends_anywhere_keeps_its_whole_frames_and_can_be_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), &PAYLOADS);
        let whole = fs::read(path_in(dir.path())).unwrap();
        for cut in HEADER..=whole.len() {
            fs::write(path_in(dir.path()), &whole[..cut]).unwrap();
            let (payloads, end, position) = read(dir.path()).unwrap();
            let expected = bounds().iter().rposition(|b| *b <= cut).unwrap();
            assert_eq!(payloads, PAYLOADS[..expected], "cut at {cut}");
            let torn = (cut - bounds()[expected]) as u64;
            assert_eq!(end, if torn == 0 { End::Clean } else { End::Torn(torn) }, "cut at {cut}");
            Writer::open(dir.path(), position).unwrap().append(&mut frame(b"more")).unwrap();
            let (payloads, end, _) = read(dir.path()).unwrap();
            assert_eq!(
                (payloads.last().unwrap().as_slice(), end),
                (&b"more"[..], End::Clean),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_file_without_a_whole_header_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), &PAYLOADS);
        let whole = fs::read(path_in(dir.path())).unwrap();
        for cut in 0..HEADER {
            fs::write(path_in(dir.path()), &whole[..cut]).unwrap();
            assert!(matches!(read(dir.path()), Err(Error::Damaged { offset: 0, .. })), "cut at {cut}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found_and_the_frame_named() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), &PAYLOADS);
        let whole = fs::read(path_in(dir.path())).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(path_in(dir.path()), &damaged).unwrap();
            let expected = bounds().into_iter().rfind(|b| *b <= bit / 8).unwrap_or(0) as u64;
            match read(dir.path()) {
                Err(Error::Damaged { offset, .. }) => assert_eq!(offset, expected, "bit {bit}"),
                other => panic!("bit {bit}: {other:?}"),
            }
            assert_eq!(fs::read(path_in(dir.path())).unwrap(), damaged, "a refused file is left as it is");
        }
    }

    #[test]
    fn zeros_to_the_end_are_a_torn_frame_and_zeros_before_data_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), &PAYLOADS);
        let whole = fs::read(path_in(dir.path())).unwrap();
        let mut longer = whole.clone();
        longer.resize(whole.len() + 5000, 0);
        fs::write(path_in(dir.path()), &longer).unwrap();
        assert_eq!(read(dir.path()).unwrap().1, End::Torn(5000));
        *longer.last_mut().unwrap() = 1;
        fs::write(path_in(dir.path()), &longer).unwrap();
        assert!(
            matches!(read(dir.path()), Err(Error::Damaged { offset, .. }) if offset == whole.len() as u64)
        );
    }

    #[test]
    fn a_frame_is_valid_only_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), &[b"same", b"same"]);
        let mut bytes = fs::read(path_in(dir.path())).unwrap();
        let second = bytes.split_off(HEADER + FRAME_HEADER + 4);
        bytes.truncate(HEADER);
        bytes.extend_from_slice(&second);
        fs::write(path_in(dir.path()), &bytes).unwrap();
        assert!(matches!(read(dir.path()), Err(Error::Damaged { offset, .. }) if offset == HEADER as u64));
    }

    #[test]
    fn a_reader_goes_on_when_a_frame_that_was_being_written_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let end = log_of(dir.path(), &PAYLOADS);
        let whole = fs::read(path_in(dir.path())).unwrap();
        fs::write(path_in(dir.path()), &whole[..HEADER]).unwrap();
        let mut reader = Reader::open(dir.path()).unwrap().unwrap();
        let mut seen = 0;
        let file = OpenOptions::new().append(true).open(path_in(dir.path())).unwrap();
        for byte in &whole[HEADER..] {
            io::Write::write_all(&mut &file, &[*byte]).unwrap();
            reader
                .read(None, |_| {
                    seen += 1;
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!((seen, reader.position()), (PAYLOADS.len(), end));
    }

    #[test]
    fn a_newer_format_and_a_foreign_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut newer = header([7; 16], 1);
        newer[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
        let crc = crc32c::crc32c(&newer[..32]);
        newer[32..].copy_from_slice(&crc.to_le_bytes());
        fs::write(path_in(dir.path()), newer).unwrap();
        assert!(matches!(read(dir.path()), Err(Error::Invalid { .. })));
        fs::write(path_in(dir.path()), [b'x'; 100]).unwrap();
        assert!(matches!(read(dir.path()), Err(Error::Damaged { offset: 0, .. })));
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), &PAYLOADS);
        drop(Writer::create_beside(dir.path(), 1).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read(dir.path()).unwrap().0, PAYLOADS);
    }
}
