use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueHint;
use handoff::DataDirLock;
use handoff::chain::Chain;
use handoff::control::Control;
use handoff::data_dir::FILE_NAME;
use handoff::error::Error;
use handoff::journal::{history, utc};
use handoff::metrics::{self, Sources};
use handoff::proto::record::{OwnerRecord, Program, Reading, Standing, boot_program};
use handoff::proto::wire::{Progress, Status};
use handoff::supervise::client::Client;
use handoff::supervise::wire::State;
use handoff::sys::lock::Holder;
use serde::Serialize;

use crate::duration::show_ms;
use crate::exit::{self, Exit};
use crate::link::Next;
use crate::{duration, logging, out};

/// Show what is running: the daemon, its lock, its sockets and a handoff in progress
///
/// If nobody answers, it shows what the data directory says: who holds the lock, and what to start.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Ask the daemon at this Unix socket [default: control in the data directory]
    #[arg(
        long,
        value_name = "PATH",
        env = "HANDOFF_CONTROL",
        hide_env_values = true,
        value_hint = ValueHint::FilePath,
        required_unless_present = "data_dir"
    )]
    control: Option<PathBuf>,

    /// Look into this data directory if nobody answers
    #[arg(long, value_name = "DIR", env = "HANDOFF_DATA_DIR", hide_env_values = true, value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// Wait so long for an answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_some)]
    timeout: Duration,

    /// Print one JSON object
    #[arg(long, conflicts_with = "metrics")]
    json: bool,

    /// Print OpenMetrics text, for Prometheus and its like
    #[arg(long)]
    metrics: bool,

    /// With --metrics: count the handoffs of this journal and its old files
    #[arg(long, value_name = "PATH", env = "HANDOFF_JOURNAL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    journal: Option<PathBuf>,

    /// With --metrics: ask the supervisor at this Unix socket too
    #[arg(long, value_name = "PATH", env = "HANDOFF_TRIGGER", hide_env_values = true, value_hint = ValueHint::FilePath)]
    trigger: Option<PathBuf>,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  handoff status --control /run/kv/control
  handoff status --data-dir /var/lib/kv           # also where nothing runs: what to start
  handoff status --json | jq .status.phase
  handoff status --metrics --journal /var/lib/kv/journal";

/// Asks, looks, and tells.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("status");
    let next = args.next.open("status")?;
    let found = Found::look(args);
    let _ = match () {
        () if args.json => out::json(&found)?,
        () if args.metrics => out::text(&found.metrics(args))?,
        () => out::text(&found.text())?,
    };
    match next {
        Some(next) if found.answers => Ok(next.exec("status", &Chain::inherit()?)),
        _ => Ok(if found.answers { Exit::Done } else { Exit::Refused }),
    }
}

/// Returns what this command shows of the daemon at a control path.
pub fn describe(control: &Path, timeout: Duration) -> String {
    Found::at(control.to_owned(), None, timeout).text()
}

#[derive(Serialize)]
struct Found {
    /// Whether a daemon answered.
    answers: bool,
    control: PathBuf,
    /// Why nobody answered.
    error: Option<String>,
    status: Option<Status>,
    lock_file: Option<PathBuf>,
    /// Who has the lock, as far as this user can see.
    holders: Vec<Holder>,
    record: Option<OwnerRecord>,
    /// All that the lock file says, where it could be read.
    #[serde(skip)]
    reading: Option<Reading>,
    /// Offsets of slots whose last write was cut short.
    torn_slots: Vec<u64>,
    record_error: Option<String>,
    /// What to start, where nobody answers and nobody has the lock.
    start: Option<Program>,
}

impl Found {
    fn look(args: &Args) -> Self {
        Self::at(control_path(args), args.data_dir.as_deref(), args.timeout)
    }

    fn at(control: PathBuf, data_dir: Option<&Path>, timeout: Duration) -> Self {
        let deadline = Instant::now() + timeout;
        let answer =
            Control::connect(&control, "handoff status", deadline).and_then(|mut c| c.status(deadline));
        let (status, error) = match answer {
            Ok(status) => (Some(status), None),
            Err(e) => (None, Some(e.to_string())),
        };
        let lock_file = lock_file(status.as_ref(), data_dir);
        let holders = lock_file.as_ref().and_then(|path| DataDirLock::who(path).ok()).unwrap_or_default();
        let (known, record_error) = match lock_file.as_ref().map(DataDirLock::read_record) {
            Some(Ok(reading)) => (Some(reading), None),
            Some(Err(e)) => (None, Some(e.to_string())),
            None => (None, None),
        };
        let reading = known.clone().unwrap_or_default();
        let idle = status.is_none() && holders.is_empty();
        Self {
            answers: status.is_some(),
            control,
            error,
            status,
            lock_file,
            holders,
            start: reading.record.as_ref().filter(|_| idle).map(boot_program),
            record: reading.record,
            torn_slots: reading.torn,
            reading: known,
            record_error,
        }
    }

    /// What cannot be had is said, and left out of the text.
    fn metrics(&self, args: &Args) -> String {
        let journal = args.journal.as_ref().and_then(|path| known(history(path)));
        if let Some(damage) = journal.as_ref().and_then(|history| history.damage.as_ref()) {
            out::say("status", "warning", damage);
        }
        let supervisor = args.trigger.as_ref().and_then(|path| known(supervisor(path, args.timeout)));
        metrics::text(&Sources {
            status: self.status.as_ref(),
            record: self.reading.as_ref(),
            journal: journal.as_ref(),
            supervisor: supervisor.as_ref(),
        })
    }

    fn text(&self) -> String {
        let mut lines = match &self.status {
            Some(status) => serving(status),
            None => vec![self.silence()],
        };
        lines.extend(self.record_lines());
        lines.extend(self.lock_line());
        if let Some(status) = &self.status {
            lines.extend(status.listeners.iter().map(|listener| {
                let queue = listener.queue.map_or_else(String::new, |(n, of)| format!(", queue {n}/{of}"));
                row("listener", &format!("{} {}{queue}", listener.name, listener.address))
            }));
            lines.push(row("handoff", &status.handoff.as_ref().map_or("none".to_owned(), in_progress)));
        }
        lines.extend(self.start.as_ref().map(|program| row("start", &out::start_line(program))));
        lines.iter().fold(String::new(), |text, line| text + &out::one_line(line) + "\n")
    }

    fn silence(&self) -> String {
        let why = self.error.as_deref().unwrap_or("no reason is known");
        format!("nobody answers at {}: {why}", self.control.display())
    }

    fn record_lines(&self) -> Vec<String> {
        let mut lines = vec![];
        match (&self.record, &self.record_error) {
            (Some(record), _) => {
                let standing = match record.standing {
                    Standing::Trial => "on trial",
                    Standing::Final => "final",
                };
                let (owner, since) = (&record.owner, utc(record.written_ms));
                let owner = format!("pid {} ({})", owner.pid, out::build(&owner.build_id));
                let generation = record.generation;
                lines.push(row(
                    "record",
                    &format!("generation {generation}, {standing}, owner {owner}, since {since}"),
                ));
            }
            (None, Some(error)) => lines.push(row("record", error)),
            (None, None) if self.lock_file.is_some() => lines.push(row("record", "none")),
            (None, None) => {}
        }
        if !self.torn_slots.is_empty() {
            let at: Vec<String> = self.torn_slots.iter().map(u64::to_string).collect();
            let text = format!("a crash cut a write short at byte {}; the other slots count", at.join(", "));
            lines.push(row("torn", &text));
        }
        lines
    }

    fn lock_line(&self) -> Option<String> {
        self.lock_file.as_ref()?;
        let holders: Vec<String> = self.holders.iter().map(Holder::to_string).collect();
        Some(match holders.is_empty() {
            true => row("lock", "nobody holds it, as far as this user can see"),
            false => row("lock", &format!("held by {}", holders.join("; "))),
        })
    }
}

fn known<T>(asked: handoff::Result<T>) -> Option<T> {
    asked.inspect_err(|e| out::say("status", "warning", &format!("left out of the metrics: {e}"))).ok()
}

fn supervisor(trigger: &Path, timeout: Duration) -> handoff::Result<State> {
    Client::connect(trigger)?.status(Instant::now() + timeout)
}

fn control_path(args: &Args) -> PathBuf {
    match (&args.control, &args.data_dir) {
        (Some(control), _) => control.clone(),
        (None, Some(dir)) => dir.join("control"),
        (None, None) => unreachable!("clap requires one of them"),
    }
}

fn lock_file(status: Option<&Status>, data_dir: Option<&Path>) -> Option<PathBuf> {
    match status {
        Some(status) => Some(PathBuf::from(&status.data_dir).join(&status.lock_file)),
        None => data_dir.map(|dir| dir.join(FILE_NAME)),
    }
}

fn serving(status: &Status) -> Vec<String> {
    let state = &status.state;
    let revisions: Vec<String> = state.last_revision_per_shard.iter().map(u64::to_string).collect();
    let up = show_ms(status.uptime_ms);
    vec![
        format!("{} {}: {}, up {up}", status.role, status.phase, status.process),
        row("program", &format!("{} ({})", status.binary, out::build(&status.build_id))),
        row(
            "data",
            &format!(
                "{}, {} connections, revisions {}{}",
                status.data_dir,
                state.open_conns,
                revisions.join(" "),
                if status.locked { "" } else { ", lock released" }
            ),
        ),
    ]
}

fn in_progress(handoff: &Progress) -> String {
    let mut parts = vec![format!("{} for {}", handoff.handoff, show_ms(handoff.age_ms))];
    parts.extend(handoff.left_ms.map(|left| format!("{} left", show_ms(left))));
    parts.extend(handoff.incumbent.as_ref().map(|process| format!("incumbent {process}")));
    parts.extend(handoff.successor.as_ref().map(|process| format!("successor {process}")));
    parts.join(", ")
}

fn row(name: &str, text: &str) -> String {
    format!("{name:<9} {text}")
}

/// What [`Control::connect`] says when there is nobody.
pub fn is_absence(e: &Error) -> bool {
    matches!(e, Error::Io { .. } | Error::PeerLost { .. } | Error::TimedOut { .. })
}
