//! How a daemon and its handoffs do, as OpenMetrics text (version 1.0 of that specification), for Prometheus and its like.
//!
//! What is not known is left out: there is no sample that means "unknown". What is counted over handoffs comes from the journal's files, so a
//! counter begins with the oldest of them, and `_created` says when that was begun; when the oldest file goes, it begins anew.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::journal::{Actor, HandoffSummary, History, Measurements, Outcome, handoffs};
use crate::proto::record::{Reading, Standing};
use crate::proto::wire::Status;
use crate::supervise::wire::State;
use crate::sys::append::create_new;

/// What an HTTP server that gives the text out says of it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The upper bounds of all histograms, in microseconds, and as they are written.
const BOUNDS: [(u64, &str); 13] = [
    (100, "0.0001"),
    (300, "0.0003"),
    (1_000, "0.001"),
    (3_000, "0.003"),
    (10_000, "0.01"),
    (30_000, "0.03"),
    (100_000, "0.1"),
    (300_000, "0.3"),
    (1_000_000, "1.0"),
    (3_000_000, "3.0"),
    (10_000_000, "10.0"),
    (30_000_000, "30.0"),
    (60_000_000, "60.0"),
];

/// The phases of an incumbent, by their names; a daemon of another release may be in another one.
const PHASES: [&str; 19] = [
    "serving",
    "prepared",
    "draining",
    "drained",
    "sealing",
    "unlocking",
    "sealed",
    "attached",
    "standing-by",
    "baking",
    "finalizing",
    "stepping-down",
    "undoing",
    "fencing",
    "locking",
    "recording",
    "resuming",
    "gone",
    "on-trial",
];
const ROLES: [&str; 2] = ["incumbent", "successor"];
const STANDINGS: [&str; 2] = ["trial", "final"];
/// What a supervisor does, by its own words.
const DOINGS: [&str; 5] = ["starting", "serving", "swapping", "waiting", "stopping"];

/// Where the figures come from; what is missing is not told of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// What the daemon answers; nothing where it does not answer.
    pub status: Option<&'a Status>,
    /// What the lock file says.
    pub record: Option<&'a Reading>,
    /// What the journal says.
    pub journal: Option<&'a History>,
    /// What the supervisor answers.
    pub supervisor: Option<&'a State>,
}

/// Returns the text, with its end mark.
#[must_use]
pub fn text(sources: &Sources<'_>) -> String {
    let mut text = Text::default();
    text.gauge(
        "handoff_up",
        None,
        "Whether a daemon answers on the control socket.",
        [(vec![], flag(sources.status.is_some()))],
    );
    if let Some(status) = sources.status {
        text.status(status);
    }
    if let Some(reading) = sources.record {
        text.record(reading);
    }
    if let Some(history) = sources.journal {
        text.journal(history);
    }
    if let Some(state) = sources.supervisor {
        text.supervisor(state);
    }
    text.0 + "# EOF\n"
}

/// Writes the text to a file that others read at any moment: it is written beside, and then renamed over the one before.
///
/// The file is for everybody to read. Nothing is synced: after a crash it is written anew.
///
/// # Errors
///
/// [`Error::Io`] says the path. The file is then as it was.
pub fn write_file(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    let beside = beside(path)?;
    let write = || {
        discard(&beside)?;
        let mut file = create_new(&beside)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| {
        // What is left there is discarded by the next one.
        let _ = discard(&beside);
        Error::io(format!("write the metrics to {}", path.display()), e)
    })
}

/// A name that no collector of `*.prom` takes for one of its files.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::Invalid {
        detail: format!("{} has no file name: expected the path of a file for metrics", path.display()),
    })?;
    let mut beside = name.to_owned();
    beside.push(".writing");
    Ok(path.with_file_name(beside))
}

fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

type Labels = Vec<(&'static str, String)>;

/// The text, one family after the other.
#[derive(Default)]
struct Text(String);

impl Text {
    fn status(&mut self, status: &Status) {
        let build = vec![
            ("build_id", status.build_id.clone()),
            ("binary", status.binary.clone()),
            ("handoff", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        self.family("handoff_build", "info", None, "The program that serves.");
        self.sample("handoff_build_info", &build, "1");
        self.states("handoff_role", "What the daemon that answers is.", &ROLES, &status.role);
        self.states("handoff_phase", "Where in a handoff the daemon is.", &PHASES, &status.phase);
        self.single(
            "handoff_serving_generation",
            "The generation that the daemon serves as.",
            status.generation,
        );
        self.single(
            "handoff_lock_held",
            "Whether the daemon holds the data directory's lock.",
            u64::from(status.locked),
        );
        let up = seconds(status.uptime_ms.saturating_mul(1_000));
        self.gauge(
            "handoff_uptime_seconds",
            Some("seconds"),
            "For how long the daemon has served.",
            [(vec![], up)],
        );
        let conns = u64::from(status.state.open_conns);
        self.single("handoff_open_connections", "Client connections that are open.", conns);
        let revisions = status.state.last_revision_per_shard.iter().enumerate();
        let revisions = revisions.map(|(n, revision)| (vec![("shard", n.to_string())], revision.to_string()));
        self.gauge("handoff_revision", None, "The last revision of each shard.", revisions);
        self.listeners(status);
        let age =
            status.handoff.iter().map(|handoff| (vec![], seconds(handoff.age_ms.saturating_mul(1_000))));
        let help = "For how long the handoff in progress has gone on.";
        self.gauge("handoff_in_progress_seconds", Some("seconds"), help, age);
    }

    fn listeners(&mut self, status: &Status) {
        let queues = |of: fn((u32, u32)) -> u32| {
            status.listeners.iter().filter_map(move |listener| {
                let labels = vec![("listener", listener.name.clone()), ("address", listener.address.clone())];
                Some((labels, of(listener.queue?).to_string()))
            })
        };
        let help = "Connections in the accept queue.";
        self.gauge("handoff_accept_queue_length", None, help, queues(|(len, _)| len));
        let help = "How many connections fit into the accept queue.";
        self.gauge("handoff_accept_queue_limit", None, help, queues(|(_, limit)| limit));
    }

    fn record(&mut self, reading: &Reading) {
        if let Some(record) = &reading.record {
            self.single(
                "handoff_generation",
                "The generation in the owner record: how many owners the data has had.",
                record.generation,
            );
            let help =
                "The number of the owner record, which goes up with each that is written under the lock.";
            self.single("handoff_lock_epoch", help, reading.sequence);
            let standing = match record.standing {
                Standing::Trial => "trial",
                Standing::Final => "final",
            };
            let help = "Whether the owner may still be replaced by the one before it.";
            self.states("handoff_standing", help, &STANDINGS, standing);
            let help = "When the owner record was written.";
            let at = [(vec![], seconds(record.written_ms.saturating_mul(1_000)))];
            self.gauge("handoff_record_timestamp_seconds", Some("seconds"), help, at);
        }
        let help = "Slots of the lock file whose last write was cut short.";
        self.single("handoff_record_torn_slots", help, reading.torn.len() as u64);
    }

    fn journal(&mut self, history: &History) {
        let tally = Tally::of(history);
        let help = "Handoffs by how they ended, and by the reason where one was undone and it is known.";
        self.family("handoff_handoffs", "counter", None, help);
        for ((outcome, reason), count) in &tally.outcomes {
            let reason = reason.iter().map(|reason| ("reason", reason.clone()));
            let labels: Labels = std::iter::once(("outcome", (*outcome).to_owned())).chain(reason).collect();
            self.counted("handoff_handoffs", &labels, *count, tally.since_ms);
        }
        self.single(
            "handoff_unfinished",
            "Whether it is not known how the last handoff ended: it goes on, or its driver died.",
            u64::from(tally.open),
        );
        let help = "From the incumbent's last accept to the successor's first.";
        self.family("handoff_gap_seconds", "histogram", Some("seconds"), help);
        self.distribution("handoff_gap_seconds", &[], &tally.gaps, tally.since_ms);
        if !tally.phases.is_empty() {
            let help = "How long the phases of handoffs took, as each party saw its own.";
            self.family("handoff_phase_duration_seconds", "histogram", Some("seconds"), help);
        }
        for ((actor, phase), lengths) in &tally.phases {
            let labels = [("actor", actor.clone()), ("phase", phase.clone())];
            self.distribution("handoff_phase_duration_seconds", &labels, lengths, tally.since_ms);
        }
        let help = "Connections that found an accept queue full in a handoff, on the whole machine.";
        self.family("handoff_accept_queue_overflows", "counter", None, help);
        self.counted("handoff_accept_queue_overflows", &[], tally.overflows, tally.since_ms);
        self.last(&tally.last.unwrap_or_default());
        self.files(history);
    }

    /// What was measured in the last handoff that has ended.
    fn last(&mut self, last: &Measurements) {
        let mut known = |name, help, value: Option<u64>| {
            self.gauge(name, None, help, value.map(|value| (vec![], value.to_string())));
        };
        known(
            "handoff_last_accept_queue_peak",
            "The most connections in an accept queue in the last handoff.",
            last.queue_peak.map(u64::from),
        );
        known(
            "handoff_last_accept_queue_limit",
            "How many fitted into the smallest of those queues.",
            last.queue_limit.map(u64::from),
        );
        known(
            "handoff_last_connections_at_drain",
            "Client connections that were open when the drain of the last handoff began.",
            last.conns_at_drain.map(u64::from),
        );
        known(
            "handoff_last_connections_remaining",
            "Of those, how many were still open when it ended.",
            last.conns_remaining.map(u64::from),
        );
        let help = "How long the last handoff took, from the driver's first question to its end.";
        let total = last.total_ms.map(|ms| (vec![], seconds(ms.saturating_mul(1_000))));
        self.gauge("handoff_last_duration_seconds", Some("seconds"), help, total);
    }

    fn files(&mut self, history: &History) {
        let records = history.records.len() as u64;
        self.single("handoff_journal_records", "Records in the journal and its old files.", records);
        self.single("handoff_journal_files", "Files of the journal that were read.", history.files as u64);
        let help = "Whether the last record of the journal is not whole: torn, or being written.";
        self.single("handoff_journal_torn", help, u64::from(history.torn));
        let help = "Whether a file of the journal is damaged: see handoff journal repair.";
        self.single("handoff_journal_damaged", help, u64::from(history.damage.is_some()));
    }

    fn supervisor(&mut self, state: &State) {
        let help = "What the supervisor does.";
        self.states("handoff_supervisor_state", help, &DOINGS, &state.doing);
        let help = "How often the daemon was started again since the supervisor started.";
        self.family("handoff_supervisor_restarts", "counter", None, help);
        self.sample("handoff_supervisor_restarts_total", &[], &state.restarts.to_string());
        if !state.swaps.is_empty() {
            let help = "Swaps since the supervisor started, by how they ended.";
            self.family("handoff_supervisor_swaps", "counter", None, help);
        }
        for (outcome, count) in &state.swaps {
            let labels = [("outcome", outcome.clone())];
            self.sample("handoff_supervisor_swaps_total", &labels, &count.to_string());
        }
        let help = "Requests that wait for what goes on.";
        self.single("handoff_supervisor_queued_requests", help, state.queued as u64);
        let help = "Whether the daemon is the supervisor's child.";
        self.single("handoff_supervisor_is_parent", help, u64::from(state.is_child));
    }

    // ---- The form.

    fn family(&mut self, name: &str, kind: &str, unit: Option<&str>, help: &str) {
        self.0 += &format!("# TYPE {name} {kind}\n");
        if let Some(unit) = unit {
            self.0 += &format!("# UNIT {name} {unit}\n");
        }
        self.0 += &format!("# HELP {name} {}\n", escaped(help));
    }

    fn sample(&mut self, name: &str, labels: &[(&'static str, String)], value: &str) {
        let pairs: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        let labels = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
        self.0 += &format!("{name}{labels} {value}\n");
    }

    /// A family of which nothing is known is left out.
    fn gauge(
        &mut self,
        name: &str,
        unit: Option<&str>,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, String)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.family(name, "gauge", unit, help);
        }
        for (labels, value) in samples {
            self.sample(name, &labels, &value);
        }
    }

    fn single(&mut self, name: &str, help: &str, value: u64) {
        self.gauge(name, None, help, [(vec![], value.to_string())]);
    }

    fn states(&mut self, name: &'static str, help: &str, known: &[&str], now: &str) {
        self.family(name, "stateset", None, help);
        let other = Some(now).filter(|now| !known.contains(now));
        for state in known.iter().copied().chain(other) {
            self.sample(name, &[(name, state.to_owned())], &flag(state == now));
        }
    }

    fn counted(&mut self, name: &str, labels: &[(&'static str, String)], count: u64, since_ms: Option<u64>) {
        self.sample(&format!("{name}_total"), labels, &count.to_string());
        self.created(name, labels, since_ms);
    }

    fn created(&mut self, name: &str, labels: &[(&'static str, String)], since_ms: Option<u64>) {
        if let Some(ms) = since_ms {
            self.sample(&format!("{name}_created"), labels, &seconds(ms.saturating_mul(1_000)));
        }
    }

    fn distribution(
        &mut self,
        name: &str,
        labels: &[(&'static str, String)],
        lengths: &Lengths,
        since_ms: Option<u64>,
    ) {
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        let mut within = 0;
        for (bound, count) in bounds.zip(lengths.buckets) {
            within += count;
            let labels: Labels = labels.iter().cloned().chain([("le", bound.to_owned())]).collect();
            self.sample(&format!("{name}_bucket"), &labels, &within.to_string());
        }
        self.sample(&format!("{name}_count"), labels, &within.to_string());
        self.sample(&format!("{name}_sum"), labels, &seconds(lengths.sum_us));
        self.created(name, labels, since_ms);
    }
}

/// What is counted over all handoffs.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    outcomes: BTreeMap<(&'static str, Option<String>), u64>,
    gaps: Lengths,
    phases: BTreeMap<(String, String), Lengths>,
    overflows: u64,
    last: Option<Measurements>,
    /// Whether it is not known yet how the last one ended.
    open: bool,
    /// When the oldest file was begun.
    since_ms: Option<u64>,
}

/// Lengths of time, by how many are within each bound.
#[derive(Debug, Default, PartialEq)]
struct Lengths {
    buckets: [u64; BOUNDS.len() + 1],
    sum_us: u64,
}

impl Tally {
    fn of(history: &History) -> Self {
        let mut tally = Self { since_ms: history.since_ms, ..Self::default() };
        // A series that is there from the beginning shows its first increase.
        for outcome in ["committed", "rolled-back", "retired", "recovered", "undecided"] {
            tally.outcomes.insert((outcome, None), 0);
        }
        let mut handoffs = handoffs(&history.records);
        // It may still be decided or asked about, and what is counted must not be taken back.
        tally.open = handoffs.pop_if(|last| last.ended.is_none()).is_some();
        for handoff in &handoffs {
            tally.add(handoff);
        }
        tally
    }

    fn add(&mut self, handoff: &HandoffSummary) {
        let outcome = match &handoff.outcome {
            Outcome::Committed { gap_us } => {
                gap_us.iter().for_each(|gap| self.gaps.add(*gap));
                ("committed", None)
            }
            Outcome::RolledBack { cause, .. } => ("rolled-back", cause.clone()),
            Outcome::Retired => ("retired", None),
            Outcome::Recovered { .. } => ("recovered", None),
            // Nobody will ask any more: a later one has begun.
            Outcome::Undecided { .. } | Outcome::Unfinished => ("undecided", None),
        };
        *self.outcomes.entry(outcome).or_default() += 1;
        for actor in [Actor::Driver, Actor::Incumbent] {
            self.add_phases(handoff, &actor);
        }
        if let Some(measured) = handoff.measured {
            self.overflows = self.overflows.saturating_add(measured.overflows.unwrap_or(0));
        }
        self.last = handoff.measured.or(self.last);
    }

    /// A phase lasts until the next one of the same party. The last one has no end, and is one.
    fn add_phases(&mut self, handoff: &HandoffSummary, actor: &Actor) {
        let mut marks: Vec<_> = handoff.phases.iter().filter(|mark| mark.actor == *actor).collect();
        marks.sort_by_key(|mark| mark.stamp.mono_us);
        for pair in marks.windows(2) {
            let (mark, next) = (pair[0], pair[1]);
            // Another boot has another clock.
            if mark.stamp.boot_id == next.stamp.boot_id {
                let lengths = self.phases.entry((actor.to_string(), mark.name.clone())).or_default();
                lengths.add(next.stamp.mono_us - mark.stamp.mono_us);
            }
        }
    }
}

impl Lengths {
    fn add(&mut self, us: u64) {
        let at = BOUNDS.iter().position(|(bound, _)| us <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

fn flag(is: bool) -> String {
    u8::from(is).to_string()
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests;
