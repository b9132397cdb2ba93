//! A line of the journal: what it holds, and how it is written and checked.

use std::fmt;
use std::path::PathBuf;

use crate::proto::party::ProcessId;
use serde::{Deserialize, Serialize};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// What every line begins with; eight hexadecimal digits follow. It cannot occur inside a JSON string.
pub(crate) const OPENING: &[u8] = b"{\"crc\":\"";
const DIGITS: usize = 8;
/// Where the checksummed bytes begin: behind the opening, the digits and the closing quote.
const BODY: usize = OPENING.len() + DIGITS + 1;
/// What the body of a header begins with, in this format and all later ones.
const HEADER_BODY: &[u8] = b",\"journal\":\"handoff\",\"format\":";

/// What a journal file says of itself: its first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The format of the file.
    pub format: u32,
    /// The file's own id.
    #[serde(default)]
    pub file: String,
    /// The id of the file that this one continues.
    #[serde(default)]
    pub rotated_from: Option<String>,
    /// When the file was begun, in milliseconds since 1970.
    #[serde(default)]
    pub wall_ms: u64,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number; it goes on across rotations. A number that is missing was lost to damage, which a `Repaired` record tells.
    pub seq: u64,
    /// The id of the handoff that it belongs to; empty for what belongs to none.
    pub handoff: String,
    /// When and in which process it happened.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Who did it.
    pub actor: Actor,
    /// What it was.
    pub event: Event,
}

/// When, and in which process, something happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
    /// `CLOCK_MONOTONIC`, in microseconds: comparable between all processes of one boot.
    pub mono_us: u64,
    /// The boot that `mono_us` and `pid` belong to.
    pub boot_id: String,
    /// The process.
    pub pid: u32,
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Actor {
    /// Whatever runs the swap.
    Driver,
    /// The daemon that serves.
    Incumbent,
    /// The daemon that is to take over.
    Successor,
    /// The long-lived parent.
    Supervisor,
    /// A person, or a script on their behalf.
    Operator,
    /// An actor that a newer version knows.
    #[serde(untagged)]
    Other(String),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A handoff was asked for: who wants what.
    Begun {
        /// The successor's program; none for a planned stop, or where it is not known yet.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "path_text::option")]
        binary: Option<PathBuf>,
        /// The successor's arguments, without the program's name.
        #[serde(default)]
        args: Vec<String>,
        /// The successor's build id, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        build_id: Option<String>,
        /// The incumbent's control socket; empty where it is not known yet.
        #[serde(with = "path_text")]
        control: PathBuf,
        /// The data directory, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "path_text::option")]
        data_dir: Option<PathBuf>,
        /// The lock file's name in it; `.handoff.lock` where it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lock_file: Option<String>,
        /// The generation that serves, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        /// The process that serves, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incumbent: Option<ProcessId>,
        /// Who asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Box<Requester>>,
        /// The process that was started as the successor, where it was started first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        successor: Option<ProcessId>,
    },
    /// A phase was reached.
    Phase {
        /// Its name: `prepare`, `spawn`, `waiting`, `drain`, `drained`, `seal`, `sealed`, `begin`, `attached`, `ready`,
        /// `grant`, `serving`, `bake`, `finalize`, `done`, or one that a newer version knows.
        name: String,
    },
    /// The successor has taken over for good.
    Committed {
        /// The generation that serves now.
        generation: u64,
        /// Its program.
        #[serde(with = "path_text")]
        binary: PathBuf,
        /// Its arguments, without the program's name.
        #[serde(default)]
        args: Vec<String>,
        /// Its build id.
        build_id: String,
        /// From the incumbent's last accept to the successor's first, in microseconds, where it was measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gap_us: Option<u64>,
    },
    /// The incumbent serves on.
    RolledBack {
        /// Why, for people.
        reason: String,
        /// The same as a word ([`Reason::kind`](crate::proto::Reason::kind)), where whoever wrote it knew one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// The incumbent has sealed and ended without a successor: a planned stop.
    Retired,
    /// What the driver has measured beside the phases; it stands before how the handoff ended.
    Measured(Measurements),
    /// The driver does not know how the handoff ended.
    Undecided {
        /// What it knows.
        detail: String,
    },
    /// A recovery asked what is true. It follows the `Committed` or `RolledBack` that it found, if it found one.
    Recovered {
        /// What it found, and what it did.
        conclusion: String,
    },
    /// A daemon began to serve without a handoff.
    Started {
        /// Its generation.
        generation: u64,
        /// Its program.
        #[serde(with = "path_text")]
        binary: PathBuf,
        /// Its arguments, without the program's name.
        #[serde(default)]
        args: Vec<String>,
        /// Its build id.
        build_id: String,
    },
    /// Something that a person or a script wanted to have written down.
    Note {
        /// What.
        text: String,
    },
    /// A part of the journal itself was bad, and was taken out.
    Repaired {
        /// Where it was, in bytes from the beginning of the file.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// The file that it was moved to; none for a torn last record, which nobody was told had been written.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "path_text::option")]
        moved_to: Option<PathBuf>,
        /// What was wrong with it.
        detail: String,
    },
    /// An event that a newer version knows, as it stands in the file.
    #[serde(untagged)]
    Unknown(serde_json::Value),
}

/// What a driver measures in a handoff beside its phases and its gap. What is not known is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurements {
    /// From the driver's first question to the end, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
    /// Client connections that were open when the drain began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conns_at_drain: Option<u32>,
    /// Of those, how many were still open when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conns_remaining: Option<u32>,
    /// The most connections that were seen in the accept queues of the listening TCP sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_peak: Option<u32>,
    /// How many fit into the smallest of those queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<u32>,
    /// Connections that found a queue full, on the whole machine (or network namespace), from beginning to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflows: Option<u64>,
}

/// Who asked for a handoff.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// The user's number.
    pub uid: u32,
    /// The user's name, where this machine's list has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user who became that one, as sudo(8) says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// The terminal, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<String>,
    /// The command line, the program's name first.
    #[serde(default)]
    pub command: Vec<String>,
}

/// A sound line.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives for one line, and a box would be an allocation for each"
)]
pub(crate) enum Line {
    Header(Header),
    Record(Record),
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not begin as every line does.
    Opening,
    /// Its bytes are not those that were written.
    Checksum { stated: String, computed: String },
    /// Its bytes are those that were written, but they do not say what a record says.
    Meaning(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => {
                f.write_str("expected a line that begins with {\"crc\":\" and eight hexadecimal digits")
            }
            Self::Checksum { stated, computed } => {
                write!(f, "expected the checksum {stated}, found bytes whose checksum is {computed}")
            }
            Self::Meaning(detail) => {
                write!(f, "expected a record, found sound bytes that are none: {detail}")
            }
        }
    }
}

impl Header {
    /// Returns the line, with its newline.
    pub(crate) fn encode(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Whole<'a> {
            journal: &'static str,
            #[serde(flatten)]
            header: &'a Header,
        }
        seal(&Whole { journal: "handoff", header: self })
    }
}

impl Record {
    /// Returns the line, with its newline.
    pub(crate) fn encode(&self) -> Vec<u8> {
        seal(self)
    }
}

fn seal(body: &impl Serialize) -> Vec<u8> {
    let mut body = serde_json::to_string(body).expect("every field is a string, a number or a list of them");
    body.replace_range(..1, ",");
    format!("{{\"crc\":\"{:08x}\"{body}\n", crc32c::crc32c(body.as_bytes())).into_bytes()
}

/// Checks and reads a line, without its newline.
pub(crate) fn decode(line: &[u8]) -> Result<Line, Fault> {
    let digits = line.strip_prefix(OPENING).and_then(|rest| rest.get(..DIGITS)).ok_or(Fault::Opening)?;
    let body = line.get(BODY..).ok_or(Fault::Opening)?;
    if !digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) || line[BODY - 1] != b'"' {
        return Err(Fault::Opening);
    }
    let computed = format!("{:08x}", crc32c::crc32c(body));
    if digits != computed.as_bytes() {
        return Err(Fault::Checksum { stated: String::from_utf8_lossy(digits).into_owned(), computed });
    }
    // The checksum is one more field of the object, and fields that a reader does not know are ignored.
    let read = if body.starts_with(HEADER_BODY) {
        serde_json::from_slice(line).map(Line::Header)
    } else {
        serde_json::from_slice(line).map(Line::Record)
    };
    read.map_err(|e| Fault::Meaning(e.to_string()))
}

/// Returns whether these bytes can be a cut or damaged header: they agree with one, digits aside, as far as they go.
pub(crate) fn may_be_a_header(line: &[u8]) -> bool {
    let fixed = OPENING.iter().copied().map(Some);
    let pattern =
        fixed.chain([None; DIGITS]).chain([Some(b'"')]).chain(HEADER_BODY.iter().copied().map(Some));
    line.iter().zip(pattern).all(|(byte, expected)| expected.is_none_or(|expected| expected == *byte))
}

/// Paths as JSON strings, and as lists of bytes where they are not UTF-8: what was run is never guessed.
mod path_text {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => s.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(s),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
        Ok(match Stored::deserialize(d)? {
            Stored::Text(text) => text.into(),
            Stored::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }

    pub mod option {
        use super::{Deserializer, Path, PathBuf, Serializer};

        #[allow(clippy::ref_option, reason = "serde's `with` passes a reference to the field")]
        pub fn serialize<S: Serializer, P: AsRef<Path>>(path: &Option<P>, s: S) -> Result<S::Ok, S::Error> {
            match path {
                Some(path) => super::serialize(path.as_ref(), s),
                None => s.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PathBuf>, D::Error> {
            super::deserialize(d).map(Some)
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Driver => "driver",
            Self::Incumbent => "incumbent",
            Self::Successor => "successor",
            Self::Supervisor => "supervisor",
            Self::Operator => "operator",
            Self::Other(name) => name,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun { binary, control, by, .. } => {
                f.write_str("begun")?;
                by.as_ref().map_or(Ok(()), |by| write!(f, " by {by}"))?;
                let from = control.display();
                match (binary, control.as_os_str().is_empty()) {
                    (Some(binary), false) => write!(f, ": {} is to take over from {from}", binary.display()),
                    (Some(binary), true) => write!(f, ": {} is to take over", binary.display()),
                    (None, false) => write!(f, ": with {from}"),
                    (None, true) => write!(f, ": with a daemon that was not named"),
                }
            }
            Self::Phase { name } => write!(f, "{name}"),
            Self::Committed { generation, binary, build_id, gap_us, .. } => {
                write!(f, "committed: generation {generation}, {} ({build_id})", binary.display())?;
                gap_us.map_or(Ok(()), |gap| write!(f, ", gap {}", micros(gap)))
            }
            Self::RolledBack { reason, .. } => write!(f, "rolled back: {reason}"),
            Self::Retired => f.write_str("retired: the data is sealed, and nobody serves"),
            Self::Measured(measured) => write!(f, "measured: {measured}"),
            Self::Undecided { detail } => write!(f, "undecided: {detail}"),
            Self::Recovered { conclusion } => write!(f, "recovered: {conclusion}"),
            Self::Started { generation, binary, build_id, .. } => {
                write!(f, "started: generation {generation}, {} ({build_id})", binary.display())
            }
            Self::Note { text } => write!(f, "note: {text}"),
            Self::Repaired { offset, bytes, moved_to, detail } => {
                write!(f, "repaired: {bytes} bytes at {offset}: {detail}")?;
                moved_to.as_ref().map_or(Ok(()), |path| write!(f, "; moved to {}", path.display()))
            }
            Self::Unknown(value) => write!(f, "unknown event: {value}"),
        }
    }
}

/// What is known, as a list.
impl fmt::Display for Measurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conns = self.conns_at_drain.map(|conns| match self.conns_remaining {
            Some(left) => format!("{conns} connections, {left} left by the drain"),
            None => format!("{conns} connections"),
        });
        let queue = self.queue_peak.map(|peak| match self.queue_limit {
            Some(limit) => format!("queue {peak}/{limit}"),
            None => format!("queue {peak}"),
        });
        let overflows = self.overflows.map(|overflows| format!("{overflows} overflows"));
        let total = self.total_ms.map(|ms| format!("{} in all", micros(ms.saturating_mul(1_000))));
        let known: Vec<String> = [conns, queue, overflows, total].into_iter().flatten().collect();
        f.write_str(if known.is_empty() { "nothing" } else { "" })?;
        f.write_str(&known.join(", "))
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => f.write_str(user)?,
            None => write!(f, "user {}", self.uid)?,
        }
        if let Some(user) = self.sudo_user.as_ref().filter(|user| Some(*user) != self.user.as_ref()) {
            write!(f, " (sudo by {user})")?;
        }
        self.tty.as_ref().map_or(Ok(()), |tty| write!(f, " on {tty}"))
    }
}

/// One line for people: when, which handoff, who, what.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handoff = if self.handoff.is_empty() { "-" } else { &self.handoff };
        let line = format!(
            "{} {:>6} {handoff:13} {}[{}] {}",
            utc(self.stamp.wall_ms),
            self.seq,
            self.actor,
            self.stamp.pid,
            self.event
        );
        // What a stranger's file says must not move the cursor of the terminal it is shown on.
        f.write_str(&line.replace(char::is_control, "\u{fffd}"))
    }
}

/// Returns a length of time as people write it: `312 µs`, `1.20 ms`, `3.04 s`.
#[must_use]
pub fn micros(us: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let us_f = us as f64;
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => scaled(us_f / 1e3, "ms"),
        1_000_000..600_000_000 => scaled(us_f / 1e6, "s"),
        _ => format!("{} min", us / 60_000_000),
    }
}

fn scaled(value: f64, unit: &str) -> String {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// Returns a time of the wall clock as RFC 3339 writes it: `2026-03-01T12:00:00.250Z`.
#[must_use]
pub fn utc(wall_ms: u64) -> String {
    let (days, ms) = (wall_ms / 86_400_000, wall_ms % 86_400_000);
    // Days to a date of the civil calendar, with years that begin in March so that the leap day comes last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + later;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn record(event: Event) -> Record {
        let stamp = Stamp { wall_ms: 1_772_366_400_250, mono_us: 42, boot_id: "b".into(), pid: 7 };
        Record { seq: 3, handoff: "h1".into(), stamp, actor: Actor::Driver, event }
    }

    fn round_trip(record: &Record) -> Record {
        let line = record.encode();
        match decode(line.strip_suffix(b"\n").unwrap()).unwrap() {
            Line::Record(record) => record,
            Line::Header(header) => panic!("{header:?}"),
        }
    }

    /// Two versions read each other's journals: this very text must stay readable, and stay what is written.
    #[test]
    fn the_format_is_what_it_was() {
        let drain = record(Event::Phase { name: "drain".into() });
        let line = concat!(
            r#"{"crc":"6efa7239","seq":3,"handoff":"h1","wall_ms":1772366400250,"mono_us":42,"boot_id":"b","pid":7,"#,
            r#""actor":"driver","event":{"kind":"phase","name":"drain"}}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(drain.encode()).unwrap(), line);
        let measured = record(Event::Measured(Measurements {
            total_ms: Some(1204),
            conns_at_drain: Some(16),
            conns_remaining: Some(0),
            queue_peak: Some(12),
            queue_limit: Some(4096),
            overflows: Some(0),
        }));
        let line = concat!(
            r#"{"crc":"9270c56f","seq":3,"handoff":"h1","wall_ms":1772366400250,"mono_us":42,"boot_id":"b","pid":7,"#,
            r#""actor":"driver","event":{"kind":"measured","total_ms":1204,"conns_at_drain":16,"conns_remaining":0,"#,
            r#""queue_peak":12,"queue_limit":4096,"overflows":0}}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(measured.encode()).unwrap(), line);
        assert_eq!(round_trip(&measured), measured);
        let header = Header { format: 1, file: "f".into(), rotated_from: None, wall_ms: 5 };
        let line = concat!(
            r#"{"crc":"bcd459b7","journal":"handoff","format":1,"file":"f","rotated_from":null,"wall_ms":5}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(header.encode()).unwrap(), line);
    }

    #[test]
    fn a_beginning_says_what_is_known_of_it() {
        let begun = |rest: &str| {
            let text = format!(r#"{{"kind":"begun","control":""{rest}}}"#);
            serde_json::from_str::<Event>(&text).unwrap().to_string()
        };
        assert_eq!(begun(""), "begun: with a daemon that was not named");
        assert_eq!(begun(r#","binary":"/bin/kvd""#), "begun: /bin/kvd is to take over");
        let by = r#","by":{"uid":0,"user":"root","sudo_user":"ann","tty":"/dev/pts/1"}"#;
        assert_eq!(begun(by), "begun by root (sudo by ann) on /dev/pts/1: with a daemon that was not named");
        assert_eq!(begun(r#","by":{"uid":7}"#), "begun by user 7: with a daemon that was not named");
    }

    #[test]
    fn every_event_reads_back_as_it_was_written() {
        let odd = PathBuf::from(OsString::from_vec(b"/bin/\xff\n\"kvd".to_vec()));
        let events = [
            Event::Begun {
                binary: Some(odd.clone()),
                args: vec!["--x={\"crc\":\"".into(), "ü\n\u{0}".into()],
                build_id: Some("v2".into()),
                control: odd.clone(),
                data_dir: Some("/data".into()),
                lock_file: Some("lock".into()),
                generation: Some(u64::MAX),
                incumbent: None,
                by: Some(Box::new(Requester {
                    uid: 1000,
                    user: Some("ann".into()),
                    sudo_user: None,
                    tty: Some("/dev/pts/1".into()),
                    command: vec!["handoff".into(), "journal".into()],
                })),
                successor: Some(ProcessId { pid: 8, start_ticks: 9, boot_id: "b".into() }),
            },
            Event::Begun {
                binary: None,
                args: vec![],
                build_id: None,
                control: "/c".into(),
                data_dir: None,
                lock_file: None,
                generation: None,
                incumbent: None,
                by: None,
                successor: None,
            },
            Event::Phase { name: "drain".into() },
            Event::Committed {
                generation: 2,
                binary: odd.clone(),
                args: vec![],
                build_id: "v2".into(),
                gap_us: Some(312),
            },
            Event::RolledBack { reason: "died".into(), cause: Some("successor-lost".into()) },
            Event::Undecided { detail: "?".into() },
            Event::Recovered { conclusion: "nothing to do".into() },
            Event::Started {
                generation: 1,
                binary: "/bin/kvd".into(),
                args: vec!["-p".into()],
                build_id: "v1".into(),
            },
            Event::Note { text: "by hand".into() },
            Event::Repaired { offset: 1, bytes: 2, moved_to: Some(odd), detail: "cut".into() },
        ];
        for event in events {
            let record = record(event);
            let line = record.encode();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one record is one line");
            assert_eq!(round_trip(&record), record);
        }
    }

    #[test]
    fn an_event_or_an_actor_of_a_newer_version_is_kept_as_it_stands() {
        let raw = serde_json::json!({"kind": "teleported", "to": "mars"});
        let newer = Record { actor: Actor::Other("oracle".into()), ..record(Event::Unknown(raw)) };
        assert_eq!(round_trip(&newer), newer);
        assert!(newer.to_string().contains("teleported"));
    }

    #[test]
    fn a_rollback_without_a_cause_is_read_and_written_as_before() {
        let text = r#"{"kind":"rolled_back","reason":"it died"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert_eq!(event, Event::RolledBack { reason: "it died".into(), cause: None });
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
    }

    #[test]
    fn what_was_measured_is_listed_as_far_as_it_is_known() {
        let shown = |measured| Event::Measured(measured).to_string();
        assert_eq!(shown(Measurements::default()), "measured: nothing");
        let all = Measurements {
            total_ms: Some(1204),
            conns_at_drain: Some(16),
            conns_remaining: Some(2),
            queue_peak: Some(12),
            queue_limit: Some(4096),
            overflows: Some(0),
        };
        let expected =
            "measured: 16 connections, 2 left by the drain, queue 12/4096, 0 overflows, 1.20 s in all";
        assert_eq!(shown(all), expected);
    }

    #[test]
    fn a_known_event_without_a_field_we_need_is_kept_as_unknown() {
        let raw = serde_json::json!({"kind": "rolled_back", "because": "renamed in a newer version"});
        let newer = record(Event::Unknown(raw));
        assert_eq!(round_trip(&newer), newer);
    }

    #[test]
    fn every_flip_of_every_byte_of_a_line_is_noticed() {
        let line = record(Event::Phase { name: "drain".into() }).encode();
        let line = line.strip_suffix(b"\n").unwrap();
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut bad = line.to_vec();
                bad[at] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn sound_bytes_that_are_no_record_are_told_from_damage() {
        let line = seal(&serde_json::json!({"seq": "three"}));
        assert!(matches!(decode(line.strip_suffix(b"\n").unwrap()), Err(Fault::Meaning(_))));
    }

    #[test]
    fn every_cut_of_a_header_may_be_one_and_other_texts_may_not() {
        let header = Header { format: 9, file: "f".into(), rotated_from: None, wall_ms: 5 }.encode();
        assert!((0..header.len()).all(|cut| may_be_a_header(&header[..cut])));
        for other in ["[", "{\"a", "{}", "#!/bin/sh", "{\"crc\":\"00000000\",\"seq\":1"] {
            assert!(!may_be_a_header(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn what_is_shown_cannot_move_the_cursor() {
        let shown = record(Event::Note { text: "\u{1b}[2J\nfake line".into() }).to_string();
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }

    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_400_001), "2000-02-29T00:00:00.001Z");
        assert_eq!(utc(1_772_366_400_250), "2026-03-01T12:00:00.250Z");
        assert_eq!(utc(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
        let lengths = [312, 1_204, 20_100, 999_000, 3_040_000, 725_000_000].map(micros);
        assert_eq!(lengths, ["312 µs", "1.20 ms", "20.1 ms", "999 ms", "3.04 s", "12 min"]);
    }
}
