//! The owner record: who owns a data directory, in a file that no crash can leave without an answer.
//!
//! The file is one page of header and [`SLOTS`] slots of a page each, all written when it is created, so that its size
//! and its blocks never change again and a sync of the data is all that a record needs. A slot is text: one line with
//! sequence and checksum, one line of JSON, and zeros. The slot with the highest sequence counts.
//!
//! A record goes to the slot with the oldest one. Two slots would do if every record were synced. With records that are
//! not (a successor on trial writes one), a power failure could tear both: the one being written, and the one before it.
//! The third slot keeps a record that is known to be on disk, without a second sync in the gap.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The format that this release writes, and the highest that it reads.
pub const FORMAT: u32 = 1;
/// The length of a slot and of the header, in bytes: one page, so that a slot is written in one piece.
pub const SLOT_LEN: usize = 4096;
/// The number of slots.
pub const SLOTS: usize = 3;
/// The length of the file, in bytes.
pub const FILE_LEN: usize = SLOT_LEN * (1 + SLOTS);

/// The process that owns the data.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks after boot (field 22 of proc_pid_stat(5)).
    pub start_ticks: u64,
    /// The boot in which it runs (random(4), `/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Its program.
    #[serde(with = "path_text")]
    pub binary: PathBuf,
    /// Its arguments, without the program's name; left out of the file where they do not fit.
    pub args: Vec<String>,
    /// The build id that it announced, in hexadecimal digits.
    pub build_id: String,
    /// The directory that it was started in, which its arguments may be relative to; left out where it is not known, and of
    /// the file where it does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_text::option")]
    pub directory: Option<PathBuf>,
}

impl Owner {
    /// Returns what to run to start this owner again.
    pub fn program(&self) -> Program {
        Program {
            binary: self.binary.clone(),
            args: self.args.clone(),
            build_id: self.build_id.clone(),
            directory: self.directory.clone(),
        }
    }
}

/// What to run to start a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// The executable.
    #[serde(with = "path_text")]
    pub binary: PathBuf,
    /// Its arguments, without the program's name; left out of the file where they do not fit.
    pub args: Vec<String>,
    /// The build id that it announced, in hexadecimal digits.
    pub build_id: String,
    /// The directory to start it in, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_text::option")]
    pub directory: Option<PathBuf>,
}

/// Whether the owner may still be replaced by the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It may: the data is still in a form that its predecessor reads.
    Trial,
    /// The data is the owner's for good.
    Final,
}

/// Who owns the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// Counts the owners; a successor that finds another generation than it was told came too late.
    pub generation: u64,
    /// Whether the owner may still be replaced by the one before it.
    pub standing: Standing,
    /// The owner.
    pub owner: Owner,
    /// The program of the owner before: what to start after a reboot if this one is on trial.
    #[serde(default)]
    pub previous: Option<Program>,
    /// When it was written, in milliseconds of wall-clock time since 1970.
    pub written_ms: u64,
}

/// Returns the program to start after a reboot: the owner's, or its predecessor's if the owner is on trial.
///
/// A trial without a predecessor is the first owner ever: it is the only program there is.
pub fn boot_program(record: &OwnerRecord) -> Program {
    match (record.standing, &record.previous) {
        (Standing::Trial, Some(previous)) => previous.clone(),
        (Standing::Trial, None) | (Standing::Final, _) => record.owner.program(),
    }
}

/// What a lock file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The newest intact record; `None` before the first one.
    pub record: Option<OwnerRecord>,
    /// Whether arguments were left out of that record because they did not fit.
    pub args_dropped: bool,
    /// The slots whose last write was cut short, each with its offset in the file, in bytes.
    pub torn: Vec<u64>,
    /// Whether the file was not completely created: it holds no record, and must be written anew.
    pub unfinished: bool,
    /// The sequence of the newest record, 0 before the first one.
    pub(crate) sequence: u64,
    /// The highest sequence that is known to be on disk.
    pub(crate) durable: u64,
    slots: [SlotState; SLOTS],
}

/// What a slot is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SlotState {
    #[default]
    Empty,
    Torn,
    Intact(u64),
}

/// Why a lock file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Bytes are not what this or an earlier release wrote.
    Damaged {
        /// The offset of the first bad byte, or of the slot in which it is.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// A later release wrote it.
    Newer {
        /// Its format.
        found: u32,
    },
}

/// One record, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotWrite {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// One slot.
    pub bytes: Vec<u8>,
    /// The record's sequence.
    pub sequence: u64,
    /// Whether what is in the file must be synced before this is written.
    pub sync_first: bool,
    /// Whether arguments were left out because they did not fit.
    pub args_dropped: bool,
}

/// A record that does not fit into a slot, even without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oversized {
    /// The bytes that it takes.
    pub takes: usize,
    /// The bytes that there are.
    pub room: usize,
}

impl fmt::Display for Oversized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the owner record takes {} bytes without its arguments and {} fit: use a shorter path for the binary",
            self.takes, self.room
        )
    }
}

/// Returns the bytes of a lock file without a record.
pub fn blank() -> Vec<u8> {
    let mut file = blank_text().into_bytes();
    file.resize(FILE_LEN, 0);
    file
}

/// Zeros are behind it.
fn blank_text() -> String {
    format!("{FORMAT_LINE}{FORMAT}\n{EXPLANATION}")
}

/// Reads a lock file from its first [`FILE_LEN`] bytes, or from fewer if it is shorter.
pub fn decode(file: &[u8]) -> Result<Reading, Defect> {
    let slots: Vec<Slot<'_>> = file.chunks_exact(SLOT_LEN).skip(1).take(SLOTS).map(read_slot).collect();
    if slots.iter().all(|slot| matches!(slot, Slot::Empty)) && is_part_of_blank(file) {
        let unfinished = file.len() < FILE_LEN || !file.starts_with(blank_text().as_bytes());
        return Ok(Reading { unfinished, ..Reading::default() });
    }
    check_header(file)?;
    if slots.len() < SLOTS {
        return Err(damaged(file.len(), format!("expected {FILE_LEN} bytes, found {}", file.len())));
    }
    if slots.iter().all(|slot| matches!(slot, Slot::Torn)) {
        return Err(damaged(SLOT_LEN, "expected an intact record in one of the slots, found none".into()));
    }
    assemble(&slots)
}

impl Reading {
    /// Lays out the next record; `known_durable` is the highest sequence that the caller itself knows to be on disk.
    ///
    /// # Errors
    ///
    /// The record does not fit, even without its arguments.
    pub fn next_write(&self, record: &OwnerRecord, known_durable: u64) -> Result<SlotWrite, Oversized> {
        let durable = self.durable.max(known_durable);
        let target = self.oldest_slot();
        let sync_first = self.loses_what_is_durable(target, durable);
        let durable = if sync_first { self.sequence } else { durable };
        let sequence = self.sequence + 1;
        let (bytes, args_dropped) = encode(record, sequence, durable)?;
        Ok(SlotWrite { offset: slot_offset(target), bytes, sequence, sync_first, args_dropped })
    }

    /// Whether whoever writes next, knowing nothing but the file, can do it without a sync before.
    pub(crate) fn is_settled(&self) -> bool {
        !self.loses_what_is_durable(self.oldest_slot(), self.durable)
    }

    fn oldest_slot(&self) -> usize {
        (0..SLOTS).min_by_key(|&i| self.slots[i].sequence()).expect("there is more than one slot")
    }

    /// One of the slots that stay must be on disk, or be empty as nothing has been overwritten yet. Then, whatever a
    /// power failure does to the rest, that record or a newer one is found; and the one that goes is older than it.
    fn loses_what_is_durable(&self, target: usize, durable: u64) -> bool {
        let kept = || (0..SLOTS).filter(|i| *i != target).map(|i| self.slots[i]);
        let oldest_kept = kept().map(SlotState::sequence).filter(|sequence| *sequence > 0).min();
        !kept().any(|slot| slot == SlotState::Empty) && oldest_kept.is_some_and(|oldest| oldest > durable)
    }
}

impl SlotState {
    fn sequence(self) -> u64 {
        match self {
            Self::Empty | Self::Torn => 0,
            Self::Intact(sequence) => sequence,
        }
    }
}

// The first line of a lock file. It is followed by the format's number.
const FORMAT_LINE: &str = "handoff lock file, format ";
// Never changed within a format: an unfinished file is recognised by being a part of it.
const EXPLANATION: &str = "\
This file is the lock of the data directory that it is in: whoever holds flock(2) on it may write there.
Do not remove, rename, copy or edit it, even when nothing runs: a second lock file is a second owner.
`handoff lock --who` names the processes that hold it. The pages below say who owns the data.
";

enum Slot<'a> {
    Empty,
    Torn,
    Intact { sequence: u64, durable: u64, body: &'a [u8] },
}

/// A slot's line of JSON.
#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(flatten)]
    record: OwnerRecord,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    args_dropped: bool,
}

fn is_part_of_blank(file: &[u8]) -> bool {
    let text = blank_text();
    let (start, rest) = file.split_at(file.len().min(text.len()));
    let is_part = |(found, blank): (&u8, u8)| *found == 0 || *found == blank;
    file.len() <= FILE_LEN
        && start.iter().zip(text.bytes()).all(is_part)
        && rest.chunks(SLOT_LEN).all(is_zeros)
}

fn is_zeros(page: &[u8]) -> bool {
    *page == [0; SLOT_LEN][..page.len()]
}

fn check_header(file: &[u8]) -> Result<(), Defect> {
    let line = file.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let number = line.strip_prefix(FORMAT_LINE.as_bytes()).and_then(|digits| str::from_utf8(digits).ok());
    let format =
        number.and_then(|digits| digits.parse::<u32>().ok().filter(|format| format.to_string() == digits));
    match format {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => Err(Defect::Newer { found }),
        Some(_) | None => {
            let found = String::from_utf8_lossy(&line[..line.len().min(40)]).escape_debug().to_string();
            Err(damaged(0, format!("expected the first line of a lock file of handoff, found \"{found}\"")))
        }
    }
}

fn assemble(slots: &[Slot<'_>]) -> Result<Reading, Defect> {
    let mut reading = Reading::default();
    for (i, slot) in slots.iter().enumerate() {
        match slot {
            Slot::Empty => {}
            Slot::Torn => {
                reading.slots[i] = SlotState::Torn;
                reading.torn.push(slot_offset(i));
            }
            Slot::Intact { sequence, durable, body } => {
                reading.slots[i] = SlotState::Intact(*sequence);
                reading.durable = reading.durable.max(*durable);
                if *sequence > reading.sequence {
                    reading.sequence = *sequence;
                    (reading.record, reading.args_dropped) = parse_body(body, slot_offset(i))?;
                }
            }
        }
    }
    Ok(reading)
}

fn read_slot(slot: &[u8]) -> Slot<'_> {
    if is_zeros(slot) {
        return Slot::Empty;
    }
    parse_slot(slot).unwrap_or(Slot::Torn)
}

/// Writes the slot's first line again from what was read: so one number has one spelling, and no bit of it is free.
fn parse_slot(slot: &[u8]) -> Option<Slot<'_>> {
    let head = str::from_utf8(slot.get(..head_line(0, 0, 0, 0).len())?).ok()?;
    let mut fields =
        head.trim_end().split(' ').map(|field| field.split_once('=').map_or(field, |(_, value)| value));
    let (_name, sequence, durable) =
        (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let length: usize = fields.next()?.parse().ok()?;
    let checksum = u32::from_str_radix(fields.next()?, 16).ok()?;
    let body = slot.get(head.len()..head.len().checked_add(length)?)?;
    let intact = head_line(sequence, durable, length, checksum) == head && checksum == checksum_of(slot);
    (intact && sequence > 0).then_some(Slot::Intact { sequence, durable, body })
}

fn head_line(sequence: u64, durable: u64, length: usize, checksum: u32) -> String {
    format!("owner sequence={sequence:020} durable={durable:020} length={length:04} crc32c={checksum:08x}\n")
}

/// The checksum of the whole slot, with the checksum's own digits taken as zeros.
fn checksum_of(slot: &[u8]) -> u32 {
    let end = head_line(0, 0, 0, 0).len() - 1;
    let so_far = crc32c::crc32c_append(crc32c::crc32c(&slot[..end - 8]), b"00000000");
    crc32c::crc32c_append(so_far, &slot[end..])
}

/// An intact slot that cannot be parsed is not torn, and what is older is not the answer.
fn parse_body(body: &[u8], offset: u64) -> Result<(Option<OwnerRecord>, bool), Defect> {
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => Ok((Some(body.record), body.args_dropped)),
        Err(e) => Err(Defect::Damaged {
            offset,
            detail: format!("expected an owner record, found other JSON: {e}"),
        }),
    }
}

fn encode(record: &OwnerRecord, sequence: u64, durable: u64) -> Result<(Vec<u8>, bool), Oversized> {
    let room = SLOT_LEN - head_line(0, 0, 0, 0).len();
    let mut body = Body { record: record.clone(), args_dropped: false };
    let mut json = to_line(&body);
    // The arguments are what cannot be learned anywhere else once the owner is gone.
    for drop in [drop_directories, drop_args] {
        if json.len() > room {
            drop(&mut body);
            json = to_line(&body);
        }
    }
    if json.len() > room {
        return Err(Oversized { takes: json.len(), room });
    }
    Ok((fill_slot(&json, sequence, durable), body.args_dropped))
}

fn to_line(body: &Body) -> Vec<u8> {
    let mut line = serde_json::to_vec(body).expect("a record has no maps with keys that are not strings");
    line.push(b'\n');
    line
}

fn drop_directories(body: &mut Body) {
    body.record.owner.directory = None;
    if let Some(previous) = &mut body.record.previous {
        previous.directory = None;
    }
}

fn drop_args(body: &mut Body) {
    body.args_dropped = true;
    body.record.owner.args.clear();
    if let Some(previous) = &mut body.record.previous {
        previous.args.clear();
    }
}

fn fill_slot(json: &[u8], sequence: u64, durable: u64) -> Vec<u8> {
    let mut slot = head_line(sequence, durable, json.len(), 0).into_bytes();
    let head_len = slot.len();
    slot.extend_from_slice(json);
    slot.resize(SLOT_LEN, 0);
    let head = head_line(sequence, durable, json.len(), checksum_of(&slot));
    slot[..head_len].copy_from_slice(head.as_bytes());
    slot
}

fn slot_offset(slot: usize) -> u64 {
    ((1 + slot) * SLOT_LEN) as u64
}

fn damaged(offset: usize, detail: String) -> Defect {
    Defect::Damaged { offset: offset as u64, detail }
}

/// A path as a string, or as a list of bytes where it is not UTF-8: serde would refuse it.
mod path_text {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Utf8(String),
        Bytes(Vec<u8>),
    }

    pub(super) mod option {
        use super::{Deserializer, Path, PathBuf, Serializer};

        #[allow(clippy::ref_option, reason = "serde's `with` passes a reference to the field")]
        pub(in super::super) fn serialize<S: Serializer, P: AsRef<Path>>(
            path: &Option<P>,
            s: S,
        ) -> Result<S::Ok, S::Error> {
            match path {
                Some(path) => super::serialize(path.as_ref(), s),
                None => s.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            d: D,
        ) -> Result<Option<PathBuf>, D::Error> {
            super::deserialize(d).map(Some)
        }
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => text.serialize(s),
            None => path.as_os_str().as_bytes().serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
        Ok(match Text::deserialize(d)? {
            Text::Utf8(text) => PathBuf::from(text),
            Text::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
mod tests;
