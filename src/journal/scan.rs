//! A whole file of lines: what is sound in it, what is bad, and whether it is ours at all.

use std::ops::Range;
use std::path::Path;

use super::record::{self, FORMAT, Fault, Header, Line, OPENING, Record};
use crate::error::{Error, Result};

/// More zeros than this are not a header that a power failure kept from the disk.
const ZEROS_MAX: usize = 4096;

/// What stands in a file, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scan {
    pub header: Option<Header>,
    pub records: Vec<Sound>,
    /// Neither records nor the end of one that was being written; in order, none touching another.
    pub bad: Vec<Bad>,
    /// A last line that has no newline or is not sound.
    pub tail: Option<Range<usize>>,
}

/// A sound record and where it stands, its newline included.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sound {
    pub range: Range<usize>,
    pub record: Record,
}

/// A part that is no sound record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    /// Empty where something is missing.
    pub range: Range<usize>,
    pub detail: String,
}

/// Tells the lines of a file apart.
pub(crate) fn scan(bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let mut start = 0;
    while start < bytes.len() {
        let newline = bytes[start..].iter().position(|b| *b == b'\n');
        let end = newline.map_or(bytes.len(), |at| start + at + 1);
        scan.take_line(bytes, start..end);
        start = end;
    }
    if scan.header.is_none()
        && !scan.records.is_empty()
        && scan.bad.first().is_none_or(|bad| bad.range.start > 0)
    {
        scan.bad.insert(0, Bad { range: 0..0, detail: "expected a header, found none".into() });
    }
    scan
}

impl Scan {
    fn take_line(&mut self, bytes: &[u8], range: Range<usize>) {
        let text = bytes[range.clone()].strip_suffix(b"\n");
        match text.map(record::decode) {
            Some(Ok(line)) => self.keep(line, range),
            _ => self.take_unsound(bytes, range),
        }
    }

    /// Takes a line that is cut or damaged. A newline that is gone leaves two records in one line, found by how each opens.
    fn take_unsound(&mut self, bytes: &[u8], range: Range<usize>) {
        let ends_file = range.end == bytes.len();
        let terminated = bytes[range.end - 1] == b'\n';
        let text = range.start..range.end - usize::from(terminated);
        let mut starts = openings(bytes, &text);
        let last = starts.pop().expect("a line has a beginning");
        for (at, start) in starts.iter().enumerate() {
            let end = *starts.get(at + 1).unwrap_or(&last);
            self.take_unterminated(bytes, *start..end);
        }
        match record::decode(&bytes[last..text.end]) {
            Ok(line) if terminated => self.keep(line, last..range.end),
            // Sound bytes were written as they are by somebody: they are not the rest of a write that was cut.
            Err(fault @ Fault::Meaning(_)) if terminated => self.condemn(last..range.end, fault.to_string()),
            Err(fault) if !ends_file => self.condemn(last..range.end, fault.to_string()),
            Ok(_) | Err(_) => self.tail = Some(self.reclaim_torn(range.start, last)..range.end),
        }
    }

    /// Takes a part between two openings, which ought to end with a newline and does not.
    fn take_unterminated(&mut self, bytes: &[u8], range: Range<usize>) {
        if let Ok(line) = record::decode(&bytes[range.start..range.end - 1]) {
            self.keep(line, range.start..range.end - 1);
            let detail = format!("expected a newline, found the byte {:#04x}", bytes[range.end - 1]);
            return self.condemn(range.end - 1..range.end, detail);
        }
        match record::decode(&bytes[range.clone()]) {
            Ok(line) => {
                self.keep(line, range.clone());
                self.condemn(range.end..range.end, "expected a newline, found the next record".into());
            }
            Err(fault) => self.condemn(range, fault.to_string()),
        }
    }

    /// Returns where the torn tail begins: with the line, if there is nothing sound in it.
    fn reclaim_torn(&mut self, line: usize, piece: usize) -> usize {
        let all_torn = |bad: &mut Bad| bad.range == (line..piece);
        self.bad.pop_if(all_torn).map_or(piece, |bad| bad.range.start)
    }

    fn keep(&mut self, line: Line, range: Range<usize>) {
        match line {
            Line::Header(header) if range.start == 0 => self.header = Some(header),
            Line::Header(_) => self.condemn(range, "expected a record, found a second header".into()),
            Line::Record(record) => self.records.push(Sound { range, record }),
        }
    }

    fn condemn(&mut self, range: Range<usize>, detail: String) {
        match self.bad.last_mut() {
            Some(bad) if bad.range.end == range.start && !bad.range.is_empty() => bad.range.end = range.end,
            _ => self.bad.push(Bad { range, detail }),
        }
    }

    /// Returns an error where the file is not ours or of a format that this version does not know.
    pub(crate) fn check_ours(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        match &self.header {
            Some(header) if header.format > FORMAT => {
                Err(Error::NewerFormat { path: path.into(), ours: FORMAT, found: header.format })
            }
            Some(_) => Ok(()),
            None if bytes.is_empty() || !self.records.is_empty() => Ok(()),
            None if record::may_be_a_header(bytes) => Ok(()),
            None if bytes.len() <= ZEROS_MAX && bytes.iter().all(|b| *b == 0) => Ok(()),
            None => Err(Error::Foreign { path: path.into(), detail: foreign(bytes) }),
        }
    }

    /// Returns an error where the file is not ours, or where anything but its end is bad.
    pub(crate) fn check_sound(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.check_ours(path, bytes)?;
        match self.bad.first() {
            None => Ok(()),
            Some(Bad { range, detail }) => {
                let offset = u64::try_from(range.start).expect("a file's offset fits");
                Err(Error::Damaged { path: path.into(), offset, detail: detail.clone() })
            }
        }
    }
}

/// Returns where a line may begin in `range`: at its start, and at every opening after that.
fn openings(bytes: &[u8], range: &Range<usize>) -> Vec<usize> {
    let text = &bytes[range.clone()];
    let later = text.windows(OPENING.len()).enumerate().skip(1).filter(|(_, window)| *window == OPENING);
    std::iter::once(range.start).chain(later.map(|(at, _)| range.start + at)).collect()
}

fn foreign(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(24)];
    format!(
        "expected a journal of handoff, found a file that begins with {:?}",
        String::from_utf8_lossy(start)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Actor, Event, Stamp};

    /// The same bytes in every run and every process, so that a seed that fails once fails always.
    fn journal() -> Vec<u8> {
        let stamp = Stamp { wall_ms: 1_700_000_000_000, mono_us: 42, boot_id: "b".into(), pid: 4711 };
        let record = |seq: usize| {
            let event = Event::Note { text: "n".repeat(seq % 7) };
            Record { seq: seq as u64, handoff: "h".into(), stamp: stamp.clone(), actor: Actor::Driver, event }
        };
        let header =
            Header { format: FORMAT, file: "f".into(), rotated_from: None, wall_ms: 1_700_000_000_000 };
        (1..12).map(|seq| record(seq).encode()).fold(header.encode(), |text, line| [text, line].concat())
    }

    /// Where the header ends: its bytes are as they were written, but for a newline that may have been lost.
    fn header_end(header: &Header, bytes: &[u8]) -> usize {
        let text = header.encode().len() - 1;
        text + usize::from(bytes.get(text) == Some(&b'\n'))
    }

    /// Xorshift: the same changes every time, from a seed that a failure prints.
    fn next(seed: &mut u64, below: usize) -> usize {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        usize::try_from(*seed % below as u64).unwrap_or(0)
    }

    fn change(bytes: &mut Vec<u8>, seed: &mut u64) {
        let (from, to) = (next(seed, bytes.len()), next(seed, bytes.len()));
        match next(seed, 6) {
            0 => bytes[from] ^= 1 << next(seed, 8),
            1 => drop(bytes.drain(from.min(to)..from.max(to))),
            2 => bytes.insert(from, b'\n'),
            3 => bytes.splice(from..from, OPENING.iter().copied()).for_each(drop),
            4 => bytes[from.min(to)..from.max(to)].fill(0),
            _ => bytes.extend_from_within(from.min(to)..from.max(to)),
        }
        bytes.push(b'\n');
    }

    #[test]
    fn whatever_happened_to_a_file_every_byte_of_it_is_accounted_for_once() {
        for first in 1..20_000u64 {
            let (mut seed, mut bytes) = (first, journal());
            for _ in 0..=next(&mut seed, 5) {
                change(&mut bytes, &mut seed);
            }
            let scan = scan(&bytes);
            let mut parts: Vec<_> = scan.header.iter().map(|header| 0..header_end(header, &bytes)).collect();
            parts.extend(scan.records.iter().map(|sound| sound.range.clone()));
            parts.extend(scan.bad.iter().map(|bad| bad.range.clone()).chain(scan.tail.clone()));
            parts.sort_by_key(|part| (part.start, part.end));
            let mut end = 0;
            for part in &parts {
                assert_eq!(part.start, end, "seed {first}: {parts:?}");
                end = part.end;
            }
            assert_eq!(end, bytes.len(), "seed {first}: {parts:?}");
        }
    }
}
