//! The data: a map in memory, and how it is read from the log.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use handoff::{Error, Result};

use super::log::{End, Frame, Position, Reader, Writer};

/// A change of the data, as it is written in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A key has a value.
    Set(&'a [u8], &'a [u8]),
    /// A key is gone.
    Del(&'a [u8]),
    /// All keys are gone.
    Flush,
    /// The revisions at the beginning of a compacted log, eight bytes a shard.
    Base(&'a [u8]),
}

const SET: u8 = 1;
const DEL: u8 = 2;
const FLUSH: u8 = 3;
const BASE: u8 = 4;

impl<'a> Record<'a> {
    /// Appends the record to a frame's payload.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        match self {
            Self::Set(key, value) => {
                payload.push(SET);
                put(payload, key);
                put(payload, value);
            }
            Self::Del(key) => {
                payload.push(DEL);
                put(payload, key);
            }
            Self::Flush => payload.push(FLUSH),
            Self::Base(revisions) => {
                payload.push(BASE);
                put(payload, revisions);
            }
        }
    }

    /// Takes the first record from a payload.
    fn decode(payload: &mut &'a [u8]) -> Option<Self> {
        let (kind, rest) = payload.split_first()?;
        *payload = rest;
        match *kind {
            SET => Some(Self::Set(take(payload)?, take(payload)?)),
            DEL => take(payload).map(Self::Del),
            FLUSH => Some(Self::Flush),
            BASE => take(payload).map(Self::Base),
            _ => None,
        }
    }

    fn encoded_len(&self) -> u64 {
        let fields = match self {
            Self::Set(key, value) => 8 + key.len() + value.len(),
            Self::Del(bytes) | Self::Base(bytes) => 4 + bytes.len(),
            Self::Flush => 0,
        };
        1 + fields as u64
    }
}

fn put(payload: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("the parser bounds the length of an argument");
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(bytes);
}

fn take<'a>(payload: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = payload.split_at_checked(4)?;
    let length = u32::from_le_bytes(length.try_into().expect("split at four")) as usize;
    let (bytes, rest) = rest.split_at_checked(length)?;
    *payload = rest;
    Some(bytes)
}

/// The keys and values, and the revision of each shard: the number of changes in it since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    map: HashMap<Box<[u8]>, Box<[u8]>>,
    revisions: Vec<u64>,
    live_bytes: u64,
}

impl State {
    /// Returns an empty state.
    pub fn new(shards: u32) -> Self {
        Self { revisions: vec![0; shards as usize], ..Self::default() }
    }

    /// Returns a key's value.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.map.get(key).map(|value| &**value)
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns the keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.map.keys().map(|key| &**key)
    }

    /// Returns the last revision of each shard.
    pub fn revisions(&self) -> &[u64] {
        &self.revisions
    }

    /// Returns what a log of nothing but this state would take, which is also about what it takes in memory.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Makes one change.
    ///
    /// # Errors
    ///
    /// Says what is wrong with a record that no kvd with this number of shards has written.
    pub fn apply(&mut self, record: Record<'_>) -> Result<(), String> {
        match record {
            Record::Set(key, value) => {
                self.count(key);
                self.live_bytes += record.encoded_len();
                if let Some(replaced) = self.map.insert(key.into(), value.into()) {
                    self.live_bytes -= Record::Set(key, &replaced).encoded_len();
                }
            }
            Record::Del(key) => {
                self.count(key);
                if let Some(value) = self.map.remove(key) {
                    self.live_bytes -= Record::Set(key, &value).encoded_len();
                }
            }
            Record::Flush => {
                self.revisions.iter_mut().for_each(|revision| *revision += 1);
                self.map = HashMap::new();
                self.live_bytes = 0;
            }
            Record::Base(bytes) => self.revisions = decode_revisions(bytes, self.revisions.len())?,
        }
        Ok(())
    }

    /// Makes all changes of a frame's payload.
    pub fn apply_payload(&mut self, mut payload: &[u8]) -> Result<(), String> {
        while !payload.is_empty() {
            let record = Record::decode(&mut payload).ok_or("a record of an unknown kind or length")?;
            self.apply(record)?;
        }
        Ok(())
    }

    /// Writes the whole state as records, in frames of about a megabyte.
    pub fn dump<E>(&self, mut write: impl FnMut(&mut Frame) -> Result<(), E>) -> Result<(), E> {
        let mut frame = Frame::default();
        let revisions: Vec<u8> = self.revisions.iter().flat_map(|r| r.to_le_bytes()).collect();
        for (key, value) in &self.map {
            Record::Set(key, value).encode(frame.payload());
            if frame.len() > 1 << 20 {
                write(&mut frame)?;
                frame = Frame::default();
            }
        }
        // Last, as each of the records above has counted a change.
        Record::Base(&revisions).encode(frame.payload());
        write(&mut frame)
    }

    fn count(&mut self, key: &[u8]) {
        let shard = crc32c::crc32c(key) as usize % self.revisions.len();
        self.revisions[shard] += 1;
    }
}

fn decode_revisions(bytes: &[u8], shards: usize) -> Result<Vec<u64>, String> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    if chunks.len() != shards || !rest.is_empty() {
        return Err(format!(
            "the revisions of a compacted log are {} bytes for {shards} shards",
            bytes.len()
        ));
    }
    Ok(chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect())
}

/// The data as far as it was read, while another process may still be writing it.
pub struct Warm {
    dir: PathBuf,
    shards: Option<u32>,
    loaded: Option<(Reader, State)>,
}

/// The data, read to the end, and the log open for writing.
pub struct Opened {
    /// The data.
    pub state: State,
    /// The log.
    pub writer: Writer,
    /// How many bytes of an incomplete last frame were cut.
    pub torn: u64,
    /// How many bytes of the log were read by [`Warm::finish`].
    pub tail: u64,
}

impl Warm {
    /// Reads what is in the log now, without the lock and without writing: what a successor does before `begin`.
    ///
    /// `shards` is the number that the caller wants, or `None` for whatever the log has.
    ///
    /// # Errors
    ///
    /// When the log cannot be read at all. Whether its end is incomplete or damaged is not judged here, as
    /// somebody may be writing it.
    pub fn open(dir: &Path, shards: Option<u32>) -> Result<Self> {
        let mut warm = Self { dir: dir.to_owned(), shards, loaded: None };
        warm.read_from_the_start()?;
        Ok(warm)
    }

    /// Reads what was added since, and opens the log for writing. To be called with the lock held.
    ///
    /// If the log was replaced meanwhile by a compaction, or does not continue what was read, it is read again in full.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when the log is wrong anywhere but in an incomplete last frame; nothing was changed then.
    pub fn finish(mut self) -> Result<Opened> {
        if !self.is_current()? {
            self.read_from_the_start()?;
        }
        let Some((mut reader, mut state)) = self.loaded.take() else { return create(&self.dir, self.shards) };
        let before = reader.position().len;
        let torn = match reader.read(None, |payload| state.apply_payload(payload))? {
            End::Clean => 0,
            End::Torn(bytes) => bytes,
        };
        let tail = reader.position().len - before;
        Ok(Opened { state, writer: Writer::open(&self.dir, reader.position())?, torn, tail })
    }

    /// Returns the state and the position that were reached, as a process that sealed it keeps them.
    pub fn keep(dir: &Path, state: State, at: Position) -> Result<Self> {
        let mut warm = Self { dir: dir.to_owned(), shards: Some(at.shards), loaded: None };
        if let Some(mut reader) = Reader::open(dir)?
            && reader.skip_to(at)?
        {
            warm.loaded = Some((reader, state));
        }
        Ok(warm)
    }

    /// Returns how many bytes of the log have been read.
    #[cfg(test)]
    pub fn len(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |(reader, _)| reader.position().len)
    }

    fn read_from_the_start(&mut self) -> Result<()> {
        self.loaded = None;
        let Some(mut reader) = Reader::open(&self.dir)? else { return Ok(()) };
        let shards = check_shards(self.shards, reader.position().shards)?;
        let mut state = State::new(shards);
        match reader.read(None, |payload| state.apply_payload(payload)) {
            // Judged in `finish`, where nobody else writes.
            Ok(_) | Err(Error::Damaged { .. }) => {}
            Err(e) => return Err(e),
        }
        self.loaded = Some((reader, state));
        Ok(())
    }

    /// Whether the file at the log's path is the one that was read, and at least as long.
    fn is_current(&self) -> Result<bool> {
        let Some((reader, _)) = &self.loaded else { return Ok(false) };
        Ok(Reader::open(&self.dir)?.is_some_and(|now| now.continues(reader.position())))
    }
}

fn check_shards(wanted: Option<u32>, found: u32) -> Result<u32> {
    match wanted {
        _ if found == 0 => Err(Error::Invalid { detail: "the log has no shards".into() }),
        Some(wanted) if wanted != found => Err(Error::Invalid {
            detail: format!("the log has {found} shards, and --shards asks for {wanted}"),
        }),
        _ => Ok(found),
    }
}

fn create(dir: &Path, shards: Option<u32>) -> Result<Opened> {
    let shards = shards.unwrap_or(1);
    Ok(Opened { state: State::new(shards), writer: Writer::create(dir, shards)?, torn: 0, tail: 0 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::log;
    use super::*;

    fn frame(records: &[Record<'_>]) -> Frame {
        let mut frame = Frame::default();
        records.iter().for_each(|r| r.encode(frame.payload()));
        frame
    }

    fn append(writer: &mut Writer, records: &[Record<'_>]) {
        writer.append(&mut frame(records)).unwrap();
    }

    fn open(dir: &Path) -> Opened {
        Warm::open(dir, None).unwrap().finish().unwrap()
    }

    #[test]
    fn changes_are_read_back_and_counted_in_their_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 4).unwrap();
        let mut state = State::new(4);
        let records =
            [Record::Set(b"a", b"1"), Record::Set(b"b", b"2"), Record::Del(b"a"), Record::Set(b"c", b"")];
        records.iter().for_each(|r| state.apply(*r).unwrap());
        append(&mut writer, &records);
        let opened = open(dir.path());
        assert_eq!(opened.state, state);
        assert_eq!(opened.state.revisions().iter().sum::<u64>(), 4);
        assert_eq!(opened.writer.position(), writer.position());
        assert_eq!((state.get(b"a"), state.get(b"b"), state.len()), (None, Some(&b"2"[..]), 2));
    }

    #[test]
    fn a_dump_reads_back_as_the_same_state_with_the_same_revisions() {
        let mut state = State::new(3);
        for i in 0..5000u32 {
            state.apply(Record::Set(&(i % 700).to_le_bytes(), &[7; 400])).unwrap();
        }
        state.apply(Record::Del(&3u32.to_le_bytes())).unwrap();
        let mut read_back = State::new(3);
        let mut frames = 0;
        let copy = |frame: &mut Frame| {
            frames += 1;
            read_back.apply_payload(&frame.payload()[log::FRAME_HEADER..])
        };
        state.dump(copy).unwrap();
        assert_eq!(read_back, state);
        state.apply(Record::Flush).unwrap();
        assert_eq!((state.len(), state.live_bytes()), (0, 0));
        assert_eq!(frames, 1);
    }

    #[test]
    fn a_warm_reader_finishes_with_the_tail_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 1).unwrap();
        append(&mut writer, &[Record::Set(b"a", &[1; 10_000])]);
        let warm = Warm::open(dir.path(), None).unwrap();
        append(&mut writer, &[Record::Set(b"b", b"2")]);
        let opened = warm.finish().unwrap();
        assert!((1..100).contains(&opened.tail), "read {} bytes", opened.tail);
        assert_eq!(opened.state, open(dir.path()).state);
        assert_eq!(opened.writer.position().fingerprint(), writer.position().fingerprint());
    }

    #[test]
    fn a_warm_reader_reads_everything_again_after_a_compaction() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 1).unwrap();
        append(&mut writer, &[Record::Set(b"a", b"1")]);
        let warm = Warm::open(dir.path(), None).unwrap();
        let mut compacted = Writer::create_beside(dir.path(), 1).unwrap();
        append(&mut compacted, &[Record::Set(b"a", b"2"), Record::Set(b"b", &[0; 1000])]);
        compacted.rename_into_place(dir.path()).unwrap();
        let opened = warm.finish().unwrap();
        assert_eq!(opened.state.get(b"a"), Some(&b"2"[..]));
        assert_eq!(opened.writer.position(), compacted.position());
    }

    #[test]
    fn a_warm_reader_of_an_empty_directory_finds_the_log_that_appeared() {
        let dir = tempfile::tempdir().unwrap();
        let warm = Warm::open(dir.path(), None).unwrap();
        append(&mut Writer::create(dir.path(), 2).unwrap(), &[Record::Set(b"a", b"1")]);
        assert_eq!(warm.finish().unwrap().state.get(b"a"), Some(&b"1"[..]));
    }

    #[test]
    fn what_was_sealed_is_continued_without_reading_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 1).unwrap();
        append(&mut writer, &[Record::Set(b"a", &[1; 10_000])]);
        let sealed = open(dir.path());
        append(&mut writer, &[Record::Set(b"b", b"the successor's, on trial")]);
        let opened =
            Warm::keep(dir.path(), sealed.state, sealed.writer.position()).unwrap().finish().unwrap();
        assert!((1..100).contains(&opened.tail), "read {} bytes", opened.tail);
        assert_eq!(opened.state, open(dir.path()).state);
    }

    #[test]
    fn a_log_that_does_not_continue_what_was_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 1).unwrap();
        let start = writer.position();
        append(&mut writer, &[Record::Set(b"a", b"1")]);
        let sealed = open(dir.path());
        let mut other = Writer::open(dir.path(), start).unwrap();
        append(&mut other, &[Record::Set(b"z", b"1")]);
        let opened =
            Warm::keep(dir.path(), sealed.state, sealed.writer.position()).unwrap().finish().unwrap();
        assert_eq!((opened.state.get(b"a"), opened.state.get(b"z")), (None, Some(&b"1"[..])));
    }

    #[test]
    fn a_torn_end_is_tolerated_while_warm_and_cut_at_the_finish() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 1).unwrap();
        append(&mut writer, &[Record::Set(b"a", b"1")]);
        let whole = std::fs::read(log::path_in(dir.path())).unwrap();
        append(&mut writer, &[Record::Set(b"a", b"2")]);
        let longer = std::fs::read(log::path_in(dir.path())).unwrap();
        std::fs::write(log::path_in(dir.path()), &longer[..longer.len() - 1]).unwrap();
        let warm = Warm::open(dir.path(), None).unwrap();
        assert_eq!(warm.len(), whole.len() as u64);
        let opened = warm.finish().unwrap();
        assert_eq!(opened.torn, (longer.len() - 1 - whole.len()) as u64);
        assert_eq!(opened.state.get(b"a"), Some(&b"1"[..]));
        assert_eq!(std::fs::read(log::path_in(dir.path())).unwrap(), whole);
    }

    #[test]
    fn damage_is_refused_at_the_finish_and_the_file_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), 1).unwrap();
        append(&mut writer, &[Record::Set(b"a", b"1")]);
        append(&mut writer, &[Record::Set(b"b", b"1")]);
        let mut bytes = std::fs::read(log::path_in(dir.path())).unwrap();
        bytes[log::HEADER + log::FRAME_HEADER] ^= 1;
        std::fs::write(log::path_in(dir.path()), &bytes).unwrap();
        let refused = Warm::open(dir.path(), None).unwrap().finish();
        assert!(matches!(refused, Err(Error::Damaged { offset, .. }) if offset == log::HEADER as u64));
        assert_eq!(std::fs::read(log::path_in(dir.path())).unwrap(), bytes);
    }

    #[test]
    fn another_number_of_shards_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Writer::create(dir.path(), 2).unwrap();
        assert!(matches!(Warm::open(dir.path(), Some(3)), Err(Error::Invalid { .. })));
        assert_eq!(open(dir.path()).state.revisions().len(), 2);
    }
}
