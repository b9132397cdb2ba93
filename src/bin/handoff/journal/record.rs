use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::builder::NonEmptyStringValueParser;
use handoff::chain::{Chain, ID_VAR, JOURNAL_VAR};
use handoff::error::Error;
use handoff::fds::Role;
use handoff::journal::{self, Actor, Event, Journal, Options};

use super::{inherited, unreadable};
use crate::exit::{self, Exit};
use crate::link::Next;
use crate::{duration, out};

/// Write a note or a phase of one's own into the journal, and become the next program, if one follows
///
/// In a chain, and in a shell that holds its journal, it goes into that journal. Anywhere else the journal is opened for it.
/// Without --note and --phase, all words are the note, and no program can follow.
#[derive(clap::Args)]
#[command(
    after_help = exit::after_help(EXAMPLES),
    override_usage = "handoff journal record [OPTIONS] <--note TEXT|--phase NAME> [--] [PROG]...\n       \
                      handoff journal record [OPTIONS] TEXT..."
)]
pub struct Args {
    /// Write to this journal [default: HANDOFF_JOURNAL, or the one that the chain holds]
    #[arg(long, value_name = "PATH")]
    journal: Option<PathBuf>,

    /// Write a note
    #[arg(long, value_name = "TEXT", conflicts_with = "phase", value_parser = NonEmptyStringValueParser::new())]
    note: Option<String>,

    /// Write that a phase was reached: it becomes a part of the timeline
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    phase: Option<String>,

    /// Write it to this handoff [default: HANDOFF_ID, or to none]
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    handoff: Option<String>,

    /// Wait so long, or `forever`, for a journal that another driver holds
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_wait)]
    wait: Duration,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  handoff journal record 'rolled out by the pipeline, build 4711'
  handoff journal begin -- handoff drain -- handoff journal record --phase snapshot -- \\
    handoff exec-successor kvd-v2";

pub const NAME: &str = "journal record";

/// Writes it, and goes on with the chain.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let event = match event(args) {
        Ok(event) => event,
        Err(e) => return Ok(exit::fatal(NAME, &exit::attempt(e, "write to the journal"))),
    };
    // What was written in words is no program.
    let is_link = args.note.is_some() || args.phase.is_some();
    let next = match is_link.then(|| args.next.open(NAME)).transpose() {
        Ok(next) => next.flatten(),
        Err(exit) => return Ok(exit),
    };
    let chain = Chain::inherit()?;
    let path = match path(args, &chain) {
        Ok(path) => path,
        Err(e) => return Ok(exit::fatal(NAME, &exit::attempt(e, "write to the journal"))),
    };
    match write(args, &chain, &path, event) {
        Ok(Written::Done) => {}
        Ok(Written::NoSuchHandoff(id)) => {
            let e = anyhow!("find handoff {id} in {}", path.display());
            return Ok(exit::fatal_as(NAME, &e, Exit::Refused));
        }
        Err(e) => return Ok(unreadable(NAME, Some(&path), e)),
    }
    Ok(next.map_or(Exit::Done, |next| next.exec(NAME, &chain)))
}

fn event(args: &Args) -> handoff::Result<Event> {
    if let Some(name) = &args.phase {
        return Ok(Event::Phase { name: name.clone() });
    }
    if let Some(text) = &args.note {
        return Ok(Event::Note { text: text.clone() });
    }
    let invalid = |detail: &str| Err(Error::Invalid { detail: detail.to_owned() });
    // The end of the options cannot be told from the text any more: `record -- PROG` must not write PROG down and drop the chain.
    if std::env::args_os().any(|word| word == "--") {
        return invalid("give it by --note or --phase where a program follows");
    }
    let text = args.next.text();
    if text.trim().is_empty() {
        invalid("there is nothing to write: give a note, or --phase")
    } else {
        Ok(Event::Note { text })
    }
}

fn path(args: &Args, chain: &Chain) -> handoff::Result<PathBuf> {
    let named = || std::env::var_os(JOURNAL_VAR).filter(|path| !path.is_empty()).map(PathBuf::from);
    let held = || chain.path_of(&Role::Journal);
    args.journal.clone().or_else(named).or_else(held).ok_or_else(|| Error::Invalid {
        detail: format!("no journal is named: give --journal, or set {JOURNAL_VAR}"),
    })
}

enum Written {
    Done,
    NoSuchHandoff(String),
}

fn write(args: &Args, chain: &Chain, path: &Path, event: Event) -> handoff::Result<Written> {
    let (mut journal, is_ours) = match inherited(chain, path)? {
        Some(journal) => (journal, false),
        None => (Journal::open_with(path, &Options { wait: args.wait, ..Options::default() })?, true),
    };
    let from_chain = || std::env::var(ID_VAR).ok().filter(|id| !id.is_empty());
    let id = match (&args.handoff, from_chain()) {
        (Some(id), _) if is_known(&journal, id)? => id.clone(),
        (Some(id), _) => return Ok(Written::NoSuchHandoff(id.clone())),
        // Whoever began it wrote it there.
        (None, Some(id)) if !is_ours || is_known(&journal, &id)? => id,
        (None, Some(id)) => {
            let text =
                format!("handoff {id}, which {ID_VAR} names, is not in {}: written to none", path.display());
            out::say(NAME, "warning", &text);
            String::new()
        }
        (None, None) => String::new(),
    };
    journal.append(&id, Actor::Operator, event)?;
    if is_ours {
        // Within a chain somebody else knows when there is time for that.
        journal.sync()?;
    }
    Ok(Written::Done)
}

/// A handoff of which nobody knows anything else would look like one that was left open.
fn is_known(journal: &Journal, id: &str) -> handoff::Result<bool> {
    Ok(journal::handoffs(&journal.contents()?.records).iter().any(|handoff| handoff.id == id))
}
