use std::path::{Path, PathBuf};
use std::time::Instant;

use handoff::chain::{Chain, ID_VAR, JOURNAL_VAR};
use handoff::control::Control;
use handoff::error::Error;
use handoff::fds::Role;
use handoff::journal::{self, Actor, Event, Journal, Requester, Unfinished, new_handoff_id};
use handoff::proto::driver::{Outcome, Refusal};
use handoff::proto::wire::Status;
use handoff::supervisor::Supervisor;

use super::{ANSWER, named_control, phrase, unreadable};
use crate::exit::{self, Exit};
use crate::link::Next;
use crate::out;

/// Hold the journal, record that a handoff begins, and become the next program, which has the journal
///
/// What is recorded: a new id, who asks for it and with which command line, and which daemon serves now, if it is named and
/// answers. Later links add what they do. While the chain lives, nobody else can begin a handoff with this journal. A handoff
/// that a dead driver has left open is settled first, as `handoff journal resume` does.
#[derive(clap::Args)]
#[command(
    after_help = exit::after_help(EXAMPLES),
    override_usage = "handoff journal begin [OPTIONS] --journal PATH [--] PROG..."
)]
pub struct Args {
    /// Write to this journal, and make it if there is none
    #[arg(long, value_name = "PATH", env = "HANDOFF_JOURNAL", hide_env_values = true)]
    journal: PathBuf,

    /// Ask the daemon at this Unix socket who it is
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true)]
    control: Option<PathBuf>,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  handoff journal begin -- handoff drain -- handoff exec-successor kvd-v2
  handoff journal begin sh                        # a shell that holds the journal";

pub const NAME: &str = "journal begin";

/// Begins, and hands the journal on.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let why = "the journal is let go as soon as the last process that has it ends";
    let next = match args.next.require(NAME, why) {
        Ok(next) => next,
        Err(exit) => return Ok(exit),
    };
    let mut chain = Chain::inherit()?;
    if chain.get(&Role::Journal).is_some() {
        return Ok(exit::fatal(NAME, &exit::attempt(begun_before(), "begin a handoff")));
    }
    let running = match incumbent(args) {
        Ok(running) => running,
        Err(exit) => return Ok(exit),
    };
    let (journal, id) = match begin(args, running.as_ref()) {
        Ok(begun) => begun,
        Err(Stop::Unreadable(e)) => return Ok(unreadable(NAME, Some(&args.journal), e)),
        Err(Stop::StillOpen(id, why)) => return Ok(still_open(args, &id, &why)),
    };
    let path = journal.path().to_owned();
    chain.set_var(JOURNAL_VAR, &path);
    chain.set_var(ID_VAR, &id);
    chain.add(Role::Journal, journal);
    let exit = next.exec(NAME, &chain);
    take_back(chain, &path, &id);
    Ok(exit)
}

fn begun_before() -> Error {
    let id = std::env::var(ID_VAR).unwrap_or_else(|_| "of an unknown id".to_owned());
    Error::Invalid { detail: format!("this chain has begun handoff {id} already, and holds its journal") }
}

/// Asks who serves. Nobody has to be named, and whoever is named need not answer: the next link will see.
fn incumbent(args: &Args) -> Result<Option<Status>, Exit> {
    let Some(control) = &args.control else { return Ok(None) };
    let deadline = Instant::now() + ANSWER;
    let asked =
        Control::connect(control, "handoff journal begin", deadline).and_then(|mut c| c.status(deadline));
    match asked {
        Ok(Status { handoff: Some(handoff), phase, .. }) => {
            let (handoff, age_ms) = (handoff.handoff, handoff.age_ms);
            let busy = phrase(&Outcome::Refused(Refusal::Busy { handoff, phase, age_ms }));
            Err(exit::fatal_as(NAME, &anyhow::anyhow!("begin a handoff: {busy}"), Exit::Refused))
        }
        Ok(running) => Ok(Some(running)),
        Err(e) => {
            let why = e.to_string();
            let why = why.trim_start_matches("unable to ");
            let text = format!("unable to ask the daemon who it is, which is recorded as unknown: {why}");
            out::say(NAME, "warning", &text);
            Ok(None)
        }
    }
}

/// Why no handoff was begun.
enum Stop {
    Unreadable(Error),
    /// The one before it is not over, as far as anybody can tell.
    StillOpen(String, String),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Unreadable(e)
    }
}

fn begin(args: &Args, running: Option<&Status>) -> Result<(Journal, String), Stop> {
    let mut journal = Journal::open(&args.journal)?;
    settle(args, &mut journal)?;
    let id = new_handoff_id();
    journal.append(&id, Actor::Driver, begun(args, running)?)?;
    // While the incumbent serves; no later link syncs within the gap.
    journal.sync()?;
    Ok((journal, id))
}

fn begun(args: &Args, running: Option<&Status>) -> handoff::Result<Event> {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path)
            .map_err(|e| Error::io(format!("find the full path of {}", path.display()), e))
    };
    Ok(Event::Begun {
        binary: None,
        args: vec![],
        build_id: None,
        control: args.control.as_ref().map(absolute).transpose()?.unwrap_or_default(),
        data_dir: running.map(|status| PathBuf::from(&status.data_dir)),
        lock_file: running.map(|status| status.lock_file.clone()),
        generation: running.map(|status| status.generation),
        incumbent: running.map(|status| status.process.clone()),
        by: Some(Box::new(Requester::of_this_process())),
        successor: None,
    })
}

/// Finds out how the handoff ended that a dead driver has left open: while this process holds the journal, it has no other.
fn settle(args: &Args, journal: &mut Journal) -> Result<(), Stop> {
    let Some(open) = journal::unfinished(&journal.contents()?.records) else { return Ok(()) };
    let Some(control) = args.control.clone().or_else(|| named_control(&open)) else {
        return settle_without_daemon(journal, open);
    };
    let Some(recovered) = Supervisor::new(control)?.resume_in(journal)? else { return Ok(()) };
    let ended = phrase(&recovered.outcome);
    if journal::unfinished(&journal.contents()?.records).is_some() {
        return Err(Stop::StillOpen(recovered.handoff_id, ended));
    }
    let id = &recovered.handoff_id;
    out::say(NAME, "warning", &format!("handoff {id} was left open by a driver that died: {ended}"));
    Ok(())
}

/// A chain that ended before it came to a daemon has changed nothing.
fn settle_without_daemon(journal: &mut Journal, open: Unfinished) -> Result<(), Stop> {
    let id = open.handoff.id;
    // An operator's phases say nothing of a daemon.
    if open.handoff.phases.iter().any(|phase| phase.actor != Actor::Operator) {
        let why = "no daemon is named that could say how it ended: give --control".to_owned();
        return Err(Stop::StillOpen(id, why));
    }
    let conclusion = "no daemon was named, and none was asked for anything".to_owned();
    out::say(NAME, "warning", &format!("handoff {id} was left open by a driver that died: {conclusion}"));
    journal.append(&id, Actor::Driver, Event::Recovered { conclusion })?;
    Ok(())
}

fn still_open(args: &Args, id: &str, why: &str) -> Exit {
    let next = out::command_line(
        "handoff",
        &["journal", "resume", "--journal", &args.journal.to_string_lossy()].map(str::to_owned),
    );
    let e = anyhow::anyhow!(
        "begin a handoff: handoff {id}, of a driver that died, is not over: {why}; next: {next}"
    );
    exit::fatal_as(NAME, &e, Exit::Refused)
}

/// Nothing was asked of anybody: the next begin need not ask how it ended.
fn take_back(mut chain: Chain, path: &Path, id: &str) {
    let Some(fd) = chain.take(&Role::Journal) else { return };
    let reason = "the next program of the chain could not be started".to_owned();
    let noted = Journal::adopt(fd, path)
        .and_then(|mut journal| journal.append(id, Actor::Driver, Event::RolledBack { reason, cause: None }));
    if let Err(e) = noted {
        out::say(NAME, "warning", &format!("the journal misses a record: {e}"));
    }
}
