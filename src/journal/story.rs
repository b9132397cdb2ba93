//! What the records tell: which handoffs there were, how they ended, and which binary is the current one.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::record::{Actor, Event, Measurements, Record, Stamp, utc};

/// One handoff.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HandoffSummary {
    /// Its id.
    pub id: String,
    /// What was asked for: the `Begun` event, where the file still has it. Where several links told what they knew, the last one's
    /// word counts, and what it did not know is an earlier one's.
    pub begun: Option<Event>,
    /// Its first record.
    pub started: Stamp,
    /// Its last record.
    pub last: Stamp,
    /// The phases that were reached, in the file's order.
    pub phases: Vec<Mark>,
    /// What was measured, where a driver lived to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measurements>,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was known how it ended.
    pub ended: Option<Stamp>,
}

/// A phase that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The phase.
    pub name: String,
    /// Who reached it.
    pub actor: Actor,
    /// When.
    #[serde(flatten)]
    pub stamp: Stamp,
}

/// How a handoff ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The successor serves.
    Committed {
        /// From the incumbent's last accept to the successor's first, in microseconds, where it was measured.
        gap_us: Option<u64>,
    },
    /// The incumbent serves on.
    RolledBack {
        /// Why.
        reason: String,
        /// The same as a word, where whoever wrote it knew one.
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// The incumbent has sealed and ended without a successor.
    Retired,
    /// A recovery asked what is true, and it was none of these.
    Recovered {
        /// What it found.
        conclusion: String,
    },
    /// The driver did not know, and nobody has asked since.
    Undecided {
        /// What it knew.
        detail: String,
    },
    /// Nothing was recorded: the driver died, or the handoff is going on.
    Unfinished,
}

/// The handoff that was going on when the driver died, or that is going on now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unfinished {
    /// The handoff; its outcome is `Unfinished` or `Undecided`.
    pub handoff: HandoffSummary,
    /// The last phase that was reached.
    pub last_phase: Option<Mark>,
}

/// The binary that the journal takes to be the current one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Current {
    /// The program.
    pub binary: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Its build id.
    pub build_id: String,
    /// The generation that it serves as.
    pub generation: u64,
    /// What says so.
    pub evidence: Evidence,
}

/// The record that names the current binary. Prints as a phrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The handoff that it was committed by; none for a cold start.
    pub handoff: Option<String>,
    /// The record's number.
    pub seq: u64,
    /// When it was written, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// Returns the handoffs, in the order in which they began.
#[must_use]
pub fn handoffs(records: &[Record]) -> Vec<HandoffSummary> {
    let mut handoffs: Vec<HandoffSummary> = Vec::new();
    for record in records.iter().filter(|record| !record.handoff.is_empty()) {
        // The one that a record belongs to is nearly always the newest.
        match handoffs.iter_mut().rev().find(|handoff| handoff.id == record.handoff) {
            Some(handoff) => handoff.take(record),
            None => handoffs.push(HandoffSummary::beginning_with(record)),
        }
    }
    handoffs
}

/// Returns the newest handoff if it is not known how it ended.
///
/// An older one is not asked for: that a later one could begin shows that it was over.
#[must_use]
pub fn unfinished(records: &[Record]) -> Option<Unfinished> {
    let handoff = handoffs(records).pop().filter(|handoff| handoff.ended.is_none())?;
    let last_phase = handoff.phases.last().cloned();
    Some(Unfinished { handoff, last_phase })
}

/// Returns the binary of the newest record that a successor has taken over or that a daemon was started.
#[must_use]
pub fn current(records: &[Record]) -> Option<Current> {
    records.iter().rev().find_map(current_of)
}

/// Returns the positions of the records that a rotation must not lose.
pub(super) fn carried(records: &[Record]) -> Vec<usize> {
    let current = records.iter().rposition(|record| current_of(record).is_some());
    let unfinished = unfinished(records).map(|unfinished| unfinished.handoff.id);
    let must_stay = |at: &usize| Some(*at) == current || Some(&records[*at].handoff) == unfinished.as_ref();
    (0..records.len()).filter(must_stay).collect()
}

fn current_of(record: &Record) -> Option<Current> {
    let handoff = match &record.event {
        Event::Committed { .. } => Some(record.handoff.clone()),
        _ => None,
    };
    match &record.event {
        Event::Committed { generation, binary, args, build_id, .. }
        | Event::Started { generation, binary, args, build_id } => Some(Current {
            binary: binary.clone(),
            args: args.clone(),
            build_id: build_id.clone(),
            generation: *generation,
            evidence: Evidence { handoff, seq: record.seq, wall_ms: record.stamp.wall_ms },
        }),
        _ => None,
    }
}

impl HandoffSummary {
    fn beginning_with(record: &Record) -> Self {
        let mut handoff = Self {
            id: record.handoff.clone(),
            begun: None,
            started: record.stamp.clone(),
            last: record.stamp.clone(),
            phases: Vec::new(),
            measured: None,
            outcome: Outcome::Unfinished,
            ended: None,
        };
        handoff.take(record);
        handoff
    }

    fn take(&mut self, record: &Record) {
        self.last = record.stamp.clone();
        match &record.event {
            begun @ Event::Begun { .. } => self.begun = Some(joined(self.begun.take(), begun.clone())),
            Event::Phase { name } => {
                self.phases.push(Mark {
                    name: name.clone(),
                    actor: record.actor.clone(),
                    stamp: record.stamp.clone(),
                });
            }
            Event::Committed { gap_us, .. } => self.end(Outcome::Committed { gap_us: *gap_us }, record),
            Event::RolledBack { reason, cause } => {
                self.end(Outcome::RolledBack { reason: reason.clone(), cause: cause.clone() }, record);
            }
            Event::Measured(measured) => self.measured = Some(*measured),
            Event::Retired => self.end(Outcome::Retired, record),
            // The Committed or RolledBack that it found stands before it, and says more.
            Event::Recovered { conclusion } if self.ended.is_none() => {
                self.end(Outcome::Recovered { conclusion: conclusion.clone() }, record);
            }
            Event::Undecided { detail } if self.ended.is_none() => {
                self.outcome = Outcome::Undecided { detail: detail.clone() };
            }
            Event::Recovered { .. }
            | Event::Undecided { .. }
            | Event::Started { .. }
            | Event::Note { .. }
            | Event::Repaired { .. }
            | Event::Unknown(_) => {}
        }
    }

    fn end(&mut self, outcome: Outcome, record: &Record) {
        self.outcome = outcome;
        self.ended = Some(record.stamp.clone());
    }
}

/// Returns what two `Begun` events know together. The program and its arguments are one piece of news.
fn joined(earlier: Option<Event>, later: Event) -> Event {
    let Some(Event::Begun {
        binary: binary_before,
        args: args_before,
        build_id: build_id_before,
        control: control_before,
        data_dir: data_dir_before,
        lock_file: lock_file_before,
        generation: generation_before,
        incumbent: incumbent_before,
        by: by_before,
        successor: successor_before,
    }) = earlier
    else {
        return later;
    };
    let Event::Begun {
        binary,
        args,
        build_id,
        control,
        data_dir,
        lock_file,
        generation,
        incumbent,
        by,
        successor,
    } = later
    else {
        return later;
    };
    let is_named = binary.is_some();
    Event::Begun {
        binary: binary.or(binary_before),
        args: if is_named { args } else { args_before },
        build_id: if is_named { build_id } else { build_id_before },
        control: if control.as_os_str().is_empty() { control_before } else { control },
        data_dir: data_dir.or(data_dir_before),
        lock_file: lock_file.or(lock_file_before),
        generation: generation.or(generation_before),
        incumbent: incumbent.or(incumbent_before),
        by: by.or(by_before),
        successor: successor.or(successor_before),
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.handoff {
            Some(id) => write!(f, "handoff {id} committed it at {}", utc(self.wall_ms))?,
            None => write!(f, "it was started at {}", utc(self.wall_ms))?,
        }
        write!(f, " (record {} of the journal)", self.seq)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed { .. } => f.write_str("committed"),
            Self::RolledBack { reason, .. } => write!(f, "rolled back: {reason}"),
            Self::Retired => f.write_str("retired"),
            Self::Recovered { conclusion } => write!(f, "recovered: {conclusion}"),
            Self::Undecided { detail } => write!(f, "undecided: {detail}"),
            Self::Unfinished => f.write_str("unfinished"),
        }
    }
}
