mod begin;
mod record;

use std::fs;
use std::io::{ErrorKind, IsTerminal, stdout};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::ValueHint;
use clap::builder::NonEmptyStringValueParser;
use handoff::DataDirLock;
use handoff::chain::Chain;
use handoff::control::Control;
use handoff::data_dir::FILE_NAME;
use handoff::error::Error;
use handoff::fds::Role;
use handoff::journal::timeline::{TextOptions, Timeline, trace};
use handoff::journal::{self, Contents, Event, Follower, HandoffSummary, Journal, Record, Unfinished, utc};
use handoff::proto::driver::{Outcome, Refusal};
use handoff::proto::record::{OwnerRecord, Program, Standing, boot_program};
use handoff::supervisor::Supervisor;
use handoff::sys::{append, terminal};
use serde::Serialize;

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::{duration, logging, out};

/// Begin and keep the journal, and ask it what happened, what is current and where the time went
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    #[command(subcommand)]
    question: Question,
}

const EXAMPLES: &str = r#"
  export HANDOFF_JOURNAL=/var/lib/kv/journal
  handoff journal begin -- handoff drain -- handoff exec-successor kvd-v2
  handoff journal show --follow
  eval "exec $(handoff journal current --data-dir /var/lib/kv)"
  handoff journal timeline --svg last.svg
  handoff journal resume                          # after a driver died"#;

#[derive(clap::Subcommand)]
enum Question {
    Begin(begin::Args),
    Record(record::Args),
    Show(Show),
    Current(Current),
    Timeline(TimelineArgs),
    Resume(Resume),
    Repair(Repair),
}

impl Args {
    /// Returns what follows, where something may.
    pub fn next(&self) -> Option<&Next> {
        match &self.question {
            Question::Begin(args) => Some(&args.next),
            Question::Record(args) => Some(&args.next),
            Question::Show(_)
            | Question::Current(_)
            | Question::Timeline(_)
            | Question::Resume(_)
            | Question::Repair(_) => None,
        }
    }
}

/// Show what happened, one line an event
#[derive(clap::Args)]
#[command(after_help = exit::after_help("
  handoff journal show --follow
  handoff journal show --json | jq 'select(.event.kind == \"rolled_back\")'"))]
struct Show {
    #[command(flatten)]
    file: File,

    /// Go on showing what is added
    #[arg(long, short)]
    follow: bool,

    /// Print each record as it stands in the file, a JSON object a line
    #[arg(long)]
    json: bool,

    /// Show only this handoff, by its id or the beginning of it
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    handoff: Option<String>,
}

/// Show which program is current, and which evidence says so
///
/// The first line is the command to start, in the directory that the daemon was started in, which needs env(1) with --chdir. The owner record in the data directory decides where there is one; the journal comes
/// second.
#[derive(clap::Args)]
#[command(after_help = exit::after_help("
  handoff journal current --data-dir /var/lib/kv
  handoff journal current --json | jq .evidence"))]
struct Current {
    /// Read this journal
    #[arg(long, value_name = "PATH", env = "HANDOFF_JOURNAL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    journal: Option<PathBuf>,

    /// Read the owner record in this data directory [default: the one that the daemon or the journal names]
    #[arg(long, value_name = "DIR", env = "HANDOFF_DATA_DIR", hide_env_values = true, value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// Ask the daemon at this Unix socket which data directory it has
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Show where the time of a handoff went
#[derive(clap::Args)]
#[command(after_help = exit::after_help("
  handoff journal timeline
  handoff journal timeline 1m84h --svg handoff.svg
  handoff journal timeline --trace trace.json     # for ui.perfetto.dev"))]
struct TimelineArgs {
    #[command(flatten)]
    file: File,

    /// Write a picture to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    svg: Option<PathBuf>,

    /// Write all handoffs to this file, for a viewer of trace events
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,

    /// The handoff, or the beginning of its id [default: the last one]
    #[arg(value_name = "ID")]
    handoff: Option<String>,
}

/// Find out how the handoff ended in whose middle a driver died, and write it down
///
/// Running it twice, or when there is nothing to do, is fine.
#[derive(clap::Args)]
#[command(after_help = exit::after_help("
  handoff journal resume --journal /var/lib/kv/journal"))]
struct Resume {
    #[command(flatten)]
    file: File,

    /// Ask the daemon at this Unix socket [default: the one that the journal names]
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,

    /// Ask for so long about a handoff that is still going on
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    wait: Duration,
}

/// Move the damaged parts of a journal into files beside it, and keep every sound record
#[derive(clap::Args)]
#[command(after_help = exit::after_help("
  handoff journal repair /var/lib/kv/journal"),
    override_usage = "handoff journal repair [--journal PATH | PATH]")]
struct Repair {
    /// Repair this journal
    #[arg(
        long,
        value_name = "PATH",
        env = "HANDOFF_JOURNAL",
        hide_env_values = true,
        required_unless_present = "path"
    )]
    journal: Option<PathBuf>,

    /// The same, and it outweighs the variable
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    path: Option<PathBuf>,
}

impl Repair {
    fn journal(&self) -> &Path {
        self.path.as_ref().or(self.journal.as_ref()).expect("clap requires one of them")
    }
}

#[derive(clap::Args)]
struct File {
    /// Read this journal
    #[arg(long, value_name = "PATH", env = "HANDOFF_JOURNAL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    journal: PathBuf,
}

/// Between two looks at a journal that is followed.
const LOOK: Duration = Duration::from_millis(100);
/// How long a daemon may take to say which data directory it has.
const ANSWER: Duration = Duration::from_secs(5);

pub fn run(args: Args) -> anyhow::Result<Exit> {
    logging::quietly(args.question.name());
    let path = args.question.journal();
    let answered = match &args.question {
        Question::Begin(args) => return begin::run(args),
        Question::Record(args) => return record::run(args),
        Question::Show(args) => show(args),
        Question::Current(args) => current(args),
        Question::Timeline(args) => timeline(args),
        Question::Resume(args) => resume(args),
        Question::Repair(args) => repair(args),
    };
    match answered.map_err(|e| e.downcast::<Error>()) {
        Ok(exit) => Ok(exit),
        Err(Ok(e)) => Ok(unreadable("journal", path, e)),
        Err(Err(e)) => Err(e),
    }
}

impl Question {
    fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => begin::NAME,
            Self::Record(_) => record::NAME,
            _ => "journal",
        }
    }

    fn journal(&self) -> Option<&Path> {
        match self {
            Self::Show(Show { file, .. })
            | Self::Timeline(TimelineArgs { file, .. })
            | Self::Resume(Resume { file, .. }) => Some(&file.journal),
            Self::Current(args) => args.journal.as_deref(),
            // They say themselves what is wrong.
            Self::Begin(_) | Self::Record(_) => None,
            Self::Repair(args) => Some(args.journal()),
        }
    }
}

/// Says why a journal cannot be used, and what to do about it.
pub fn unreadable(command: &str, journal: Option<&Path>, e: Error) -> Exit {
    let next = match (&e, journal) {
        (Error::Damaged { path, .. }, Some(journal)) if same(path, journal) => {
            format!("handoff journal repair {}", out::command_line(journal, &[]))
        }
        (Error::Foreign { .. }, _) => "name another journal".to_owned(),
        (Error::Io { attempt, source }, Some(_)) if attempt.starts_with("open the journal ") => {
            let next = match source.kind() {
                ErrorKind::NotFound => {
                    "name another journal; a swap or handoff journal begin makes a new one"
                }
                ErrorKind::PermissionDenied => "run this as the user whose it is, or as root",
                _ => return exit::fatal(command, &e.into()),
            };
            return exit::fatal_as(command, &anyhow!("{attempt}: {source}; next: {next}"), Exit::System);
        }
        _ => return exit::fatal(command, &exit::attempt(e, "use the journal")),
    };
    exit::fatal_as(command, &anyhow!("read the journal: {e}; next: {next}"), Exit::Refused)
}

/// Goes on with the journal that this process inherited, if it is the one at the path.
pub fn inherited(chain: &Chain, path: &Path) -> handoff::Result<Option<Journal>> {
    let Some(fd) = chain.get(&Role::Journal) else { return Ok(None) };
    let fd = fd.try_clone_to_owned().map_err(|e| Error::io("copy the journal's descriptor", e))?;
    let file = fs::File::from(fd);
    if !append::is_at(&file, path).map_err(|e| Error::io(format!("look at {}", path.display()), e))? {
        return Ok(None);
    }
    Journal::adopt(file.into(), path).map(Some)
}

fn same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

// ---- show

fn show(args: &Show) -> anyhow::Result<Exit> {
    let contents = match args.follow {
        // There need not be a file yet.
        true => return follow(args),
        false => journal::read(&args.file.journal)?,
    };
    let shown = print(args, &contents)?;
    tell_of_torn_tail(&contents);
    if contents.records.is_empty() {
        out::say("journal", "info", &format!("{} is empty", args.file.journal.display()));
    } else if shown == Shown::Nothing {
        let id = args.handoff.as_deref().unwrap_or_default();
        return Ok(exit::fatal_as("journal", &anyhow!("find handoff {id}"), Exit::Refused));
    }
    Ok(Exit::Done)
}

fn tell_of_torn_tail(contents: &Contents) {
    if let Some(tail) = &contents.torn_tail {
        let (offset, len) = (tail.offset, tail.bytes.len());
        let text = format!(
            "the last record is torn: {len} bytes at byte {offset}; the next driver cuts it off, and says so"
        );
        out::say("journal", "warning", &text);
    }
}

/// Reads a journal, and says what is not read of it.
fn read(path: &Path) -> anyhow::Result<Vec<Record>> {
    let contents = journal::read(path)?;
    tell_of_torn_tail(&contents);
    Ok(contents.records)
}

fn follow(args: &Show) -> anyhow::Result<Exit> {
    let mut follower = Follower::new(&args.file.journal);
    while print(args, &follower.poll()?)? != Shown::ToNobody {
        sleep(LOOK);
    }
    Ok(Exit::Done)
}

#[derive(PartialEq, Eq)]
enum Shown {
    Something,
    Nothing,
    /// Whoever read it is gone.
    ToNobody,
}

fn print(args: &Show, contents: &Contents) -> anyhow::Result<Shown> {
    let mut shown = Shown::Nothing;
    for (record, line) in contents.records.iter().zip(&contents.lines) {
        if args.handoff.as_ref().is_some_and(|id| !record.handoff.starts_with(id)) {
            continue;
        }
        let text = if args.json { line.clone() } else { record.to_string() };
        if let ControlFlow::Break(()) = out::line(&text)? {
            return Ok(Shown::ToNobody);
        }
        shown = Shown::Something;
    }
    Ok(shown)
}

// ---- current

#[derive(Serialize)]
struct Answer {
    program: Program,
    /// `owner-record` or `journal`.
    decided_by: &'static str,
    /// What says so, in words, the deciding one first.
    evidence: Vec<String>,
    record: Option<OwnerRecord>,
    journal: Option<journal::Current>,
}

fn current(args: &Current) -> anyhow::Result<Exit> {
    let records = match &args.journal {
        Some(path) if path.exists() => read(path)?,
        Some(_) | None => vec![],
    };
    let in_journal = journal::current(&records);
    let lock_file = lock_file(args, &records);
    let reading = lock_file.as_ref().map(DataDirLock::read_record).transpose()?.unwrap_or_default();
    let Some(answer) = Answer::of(reading.record, lock_file.as_deref(), in_journal, reading.args_dropped)
    else {
        let journal = match &args.journal {
            Some(path) if path.exists() => format!("no record of the journal {}", path.display()),
            Some(path) => format!("no journal, as there is none at {},", path.display()),
            None => "no journal".to_owned(),
        };
        let nowhere = anyhow!(
            "find out which program is current: no owner record and {journal} says so; next: give --data-dir or --journal"
        );
        return Ok(exit::fatal_as("journal", &nowhere, Exit::Refused));
    };
    if args.json {
        let _ = out::json(&answer)?;
        return Ok(Exit::Done);
    }
    let command = out::start_line(&answer.program);
    // The command alone goes to a program that reads it; the evidence is for people.
    let _ = out::line(&command)?;
    answer.evidence.iter().for_each(|line| out::say("journal", "info", line));
    Ok(Exit::Done)
}

/// Where the owner record is: as was said, as the daemon says, or as the journal says, in this order.
fn lock_file(args: &Current, records: &[Record]) -> Option<PathBuf> {
    let asked = || {
        let deadline = Instant::now() + ANSWER;
        let mut control =
            Control::connect(args.control.as_ref()?, "handoff journal current", deadline).ok()?;
        let running = control.status(deadline).ok()?;
        Some(PathBuf::from(running.data_dir).join(running.lock_file))
    };
    let noted = || {
        records.iter().rev().find_map(|record| match &record.event {
            Event::Begun { data_dir: Some(dir), lock_file, .. } => {
                Some(dir.join(lock_file.as_deref().unwrap_or(FILE_NAME)))
            }
            _ => None,
        })
    };
    args.data_dir.as_ref().map(|dir| dir.join(FILE_NAME)).or_else(asked).or_else(noted)
}

impl Answer {
    fn of(
        record: Option<OwnerRecord>,
        lock_file: Option<&Path>,
        in_journal: Option<journal::Current>,
        args_dropped: bool,
    ) -> Option<Self> {
        let mut evidence = vec![];
        let mut program = None;
        if let (Some(record), Some(path)) = (&record, lock_file) {
            program = Some(boot_program(record));
            evidence.push(of_record(record, path, args_dropped));
        }
        if let Some(noted) = &in_journal {
            // A rollback and a restart count generations, and change nothing about the program.
            let agrees = program.as_ref().map(|program| is_the_same(program, noted));
            let word = match agrees {
                Some(true) => "the journal agrees",
                Some(false) => "the journal knows of another program",
                None => "the journal says so, and there is no owner record",
            };
            evidence.push(format!("{word}: generation {}, {}", noted.generation, noted.evidence));
        }
        let decided_by = if program.is_some() { "owner-record" } else { "journal" };
        let program = program.or_else(|| in_journal.as_ref().map(program_of))?;
        Some(Self { program, decided_by, evidence, record, journal: in_journal })
    }
}

fn of_record(record: &OwnerRecord, path: &Path, args_dropped: bool) -> String {
    let standing = match record.standing {
        Standing::Trial => "on trial, so that the program before it is to be started",
        Standing::Final => "final",
    };
    let dropped = if args_dropped { "; arguments did not fit into it and are missing" } else { "" };
    let (generation, since) = (record.generation, utc(record.written_ms));
    format!(
        "the owner record in {}: generation {generation}, {standing}, since {since}{dropped}",
        path.display()
    )
}

/// The journal does not know in which directory a program was started.
fn program_of(current: &journal::Current) -> Program {
    Program {
        binary: current.binary.clone(),
        args: current.args.clone(),
        build_id: current.build_id.clone(),
        directory: None,
    }
}

fn is_the_same(program: &Program, noted: &journal::Current) -> bool {
    (&program.binary, &program.args, &program.build_id) == (&noted.binary, &noted.args, &noted.build_id)
}

// ---- timeline

fn timeline(args: &TimelineArgs) -> anyhow::Result<Exit> {
    let handoffs = journal::handoffs(&read(&args.file.journal)?);
    let Some(handoff) = chosen(&handoffs, args.handoff.as_deref()) else {
        let wanted = args.handoff.as_deref().map_or("a handoff".to_owned(), |id| format!("handoff {id}"));
        let e = anyhow!("find {wanted} in {}", args.file.journal.display());
        return Ok(exit::fatal_as("journal", &e, Exit::Refused));
    };
    let timeline = Timeline::of(handoff);
    if let Some(path) = &args.svg {
        fs::write(path, timeline.svg()).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.trace {
        let all: Vec<Timeline> = handoffs.iter().map(Timeline::of).collect();
        fs::write(path, trace(&all)).with_context(|| format!("write {}", path.display()))?;
    }
    if args.svg.is_none() && args.trace.is_none() {
        let _ = out::text(&timeline.text(&drawing()))?;
    }
    Ok(Exit::Done)
}

fn chosen<'a>(handoffs: &'a [HandoffSummary], id: Option<&str>) -> Option<&'a HandoffSummary> {
    match id {
        Some(id) => handoffs.iter().rev().find(|handoff| handoff.id.starts_with(id)),
        None => handoffs.last(),
    }
}

fn drawing() -> TextOptions {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let usual = TextOptions::default();
    let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    TextOptions { width: terminal::columns(stdout().as_fd()).or(asked).unwrap_or(usual.width), colour }
}

// ---- resume

fn resume(args: &Resume) -> anyhow::Result<Exit> {
    let contents = journal::read(&args.file.journal)?;
    let Some(open) = journal::unfinished(&contents.records) else {
        // Otherwise it is cut, and that is said.
        tell_of_torn_tail(&contents);
        let _ = out::line("nothing was left open")?;
        return Ok(Exit::Done);
    };
    let control = args.control.clone().or_else(|| named_control(&open)).ok_or_else(|| Error::Invalid {
        detail: "the journal does not say where the daemon answers: give --control".to_owned(),
    })?;
    let supervisor = Supervisor::new(control)?.with_journal(&args.file.journal).with_patience(args.wait);
    let recovered = match Chain::inherit()?.take(&Role::Journal) {
        Some(fd) => supervisor.resume_in(&mut Journal::adopt(fd, &args.file.journal)?)?,
        None => supervisor.resume_from_journal()?,
    };
    match recovered {
        Some(recovered) => {
            let _ = out::line(&format!("handoff {}: {}", recovered.handoff_id, phrase(&recovered.outcome)))?;
            Ok(match recovered.outcome {
                // It was asked how it ended, and that is known.
                Outcome::Committed | Outcome::RolledBack(_) | Outcome::Retired => Exit::Done,
                other => Exit::for_outcome(&other),
            })
        }
        None => {
            let _ = out::line("nothing was left open")?;
            Ok(Exit::Done)
        }
    }
}

/// Returns where the daemon answers, as the handoff's beginning has it.
fn named_control(open: &Unfinished) -> Option<PathBuf> {
    match &open.handoff.begun {
        Some(Event::Begun { control, .. }) => {
            Some(control.clone()).filter(|path| !path.as_os_str().is_empty())
        }
        _ => None,
    }
}

/// Returns how a handoff ended, in words.
pub fn phrase(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Committed => "committed".to_owned(),
        Outcome::RolledBack(reason) => format!("rolled back: {reason}"),
        Outcome::Retired => "retired".to_owned(),
        Outcome::Refused(Refusal::Busy { handoff, phase, age_ms }) => {
            let age = crate::duration::show_ms(*age_ms);
            format!("busy: handoff {handoff} has been going on for {age} and is in phase {phase}")
        }
        Outcome::Refused(Refusal::Declined(reason)) => format!("refused: {reason}"),
        Outcome::Refused(Refusal::Lost) => "the incumbent went away before it answered".to_owned(),
        Outcome::NothingServing(detail) => format!("nothing serves: {detail}"),
        Outcome::Undecided(detail) => format!("undecided: {detail}"),
    }
}

// ---- repair

fn repair(args: &Repair) -> anyhow::Result<Exit> {
    let repair = journal::repair(args.journal())?;
    if repair.moved.is_empty() {
        let _ = out::line(&format!("sound: {} records", repair.records_kept))?;
    }
    for moved in &repair.moved {
        let (bytes, offset, detail) = (moved.bytes, moved.offset, out::one_line(&moved.detail));
        let place = moved
            .moved_to
            .as_ref()
            .map_or("nothing to move".to_owned(), |to| format!("moved to {}", to.display()));
        let _ = out::line(&format!("{bytes} bytes at byte {offset}: {detail}; {place}"))?;
    }
    if !repair.moved.is_empty() {
        let _ = out::line(&format!("{} sound records are kept", repair.records_kept))?;
    }
    Ok(Exit::Done)
}
