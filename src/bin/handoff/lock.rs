use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::chain::{Chain, DATA_DIR_VAR};
use handoff::data_dir::{FILE_NAME, LockOptions};
use handoff::error::Error;
use handoff::journal::utc;
use handoff::sys::lock::{Holder, Holding, LockKind};
use handoff::sys::{poll, process};
use serde::Serialize;

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::progress::{Progress, When};
use crate::{duration, logging, out};

/// Take a data directory's lock and become the next program, which has it
///
/// The lock is that of the library: a daemon that knows handoff takes it over, and any other keeps it for as long as it runs, with
/// every process that inherits the descriptor. A lock that the chain has already is used as it is.
///
/// With --who, print every process that has the lock, and exit with 0 if there is one and with 1 if it is free. Processes of other
/// users are all seen only by root.
#[derive(clap::Args, Debug, PartialEq)]
#[command(
    after_help = exit::after_help(EXAMPLES),
    override_usage = "handoff lock [OPTIONS] DIR [--] PROG...\n       handoff lock --who [--json] [DIR]"
)]
pub struct Args {
    /// Wait so long while another process has the lock, or `forever`, instead of failing at once
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration::parse_wait)]
    wait: Duration,

    /// The lock file's name in the directory, where the daemon has chosen one of its own
    #[arg(long, value_name = "NAME", default_value = FILE_NAME)]
    lock_file: OsString,

    /// Take a lock on a network file system, which only one machine may ever mount
    #[arg(long)]
    allow_network_fs: bool,

    /// Show who is waited for: auto is only on a terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    progress: When,

    /// Print who has the lock
    #[arg(long)]
    who: bool,

    /// Print one JSON object
    #[arg(long, requires = "who")]
    json: bool,

    /// The data directory, which must be there; with --who, HANDOFF_DATA_DIR may say it
    // The first word, whatever the environment says: `handoff lock kvd` must never be a lock on ./kvd one day and a program the next.
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath, required_unless_present = "who")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  exec handoff hold-fds --listen redis=127.0.0.1:6379 -- handoff lock /var/lib/kv -- kvd
  handoff lock --wait 10s /var/lib/kv tar -cf kv.tar /var/lib/kv
  handoff lock --who /var/lib/kv";

impl Args {
    /// Reads a command line without an option, which is a directory and a program: `None` for any other.
    ///
    /// In a chain of links a parser that knows all options takes longer than taking the lock.
    pub fn plain(words: &[OsString]) -> Option<Self> {
        let [_, command, dir, next @ ..] = words else { return None };
        if command != "lock" || dir.as_encoded_bytes().first().is_none_or(|byte| *byte == b'-') {
            return None;
        }
        Some(Self {
            wait: Duration::ZERO,
            lock_file: FILE_NAME.into(),
            allow_network_fs: false,
            progress: When::Auto,
            who: false,
            json: false,
            dir: Some(dir.into()),
            next: Next::new(next),
        })
    }
}

/// Takes the lock and hands it on, or says who has it.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("lock");
    if args.who { who(args) } else { take(args) }
}

// ---- Taking it.

fn take(args: &Args) -> anyhow::Result<Exit> {
    let next = match args.next.require("lock", "the lock lives only as long as the program that has it") {
        Ok(next) => next,
        Err(exit) => return Ok(exit),
    };
    // It starts no thread before this.
    let mut chain = Chain::inherit()?;
    let dir = args.dir.as_ref().expect("clap requires DIR");
    let lock =
        acquire(args, dir, &mut chain).map_err(|e| exit::attempt(e, format!("lock {}", dir.display())))?;
    chain.set_var(DATA_DIR_VAR, lock.dir());
    Ok(next.exec("lock", &chain))
}

/// Between two looks at who has it, while somebody watches.
const LOOK: Duration = Duration::from_millis(250);

fn acquire(args: &Args, dir: &Path, chain: &mut Chain) -> handoff::Result<DataDirLock> {
    let options = DataDirLock::options().file_name(&args.lock_file).allow_network_fs(args.allow_network_fs);
    if args.wait.is_zero() {
        return chain.lock(&options, dir);
    }
    let progress = Progress::new("lock", args.progress);
    if progress.is_shown() {
        wait_visibly(&options, args, &progress, |options| chain.lock(options, dir))
    } else {
        chain.lock(&options.wait(args.wait), dir)
    }
}

fn wait_visibly(
    options: &LockOptions,
    args: &Args,
    progress: &Progress,
    mut lock: impl FnMut(&LockOptions) -> handoff::Result<DataDirLock>,
) -> handoff::Result<DataDirLock> {
    let (start, deadline) = (Instant::now(), poll::after(args.wait));
    let mut wait = Duration::ZERO;
    let mut named = String::new();
    loop {
        let (path, holders) = match lock(&options.clone().wait(wait)) {
            Err(Error::Locked { path, holders }) => (path, holders),
            done => return done,
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(Error::Locked { path, holders });
        }
        let held = Error::Locked { path, holders }.to_string();
        let held = held.trim_start_matches("unable to ").to_owned();
        if named != held && !progress.is_drawn() {
            out::say("lock", "info", &format!("waiting to {held}"));
        }
        let waited = duration::show_ms(start.elapsed().as_secs() * 1000);
        let of = if args.wait == Duration::MAX {
            String::new()
        } else {
            format!(" of {}", duration::show_ms(millis(args.wait)))
        };
        progress.wait_for(format!("{waited}{of}: waiting to {held}"));
        named = held;
        wait = left.map_or(LOOK, |left| left.min(LOOK));
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

// ---- Saying who has it.

/// What is known of a lock.
#[derive(Serialize)]
struct Known {
    lock_file: PathBuf,
    locked: bool,
    holders: Vec<KnownHolder>,
    /// Whether it is locked, and nobody can be seen to hold it.
    unseen: bool,
    /// The processes that took the lock, whether they still have it or not.
    taken_by: Vec<u32>,
}

#[derive(Serialize)]
struct KnownHolder {
    #[serde(flatten)]
    holder: Holder,
    /// The user's name, where this machine's list has it.
    user: Option<String>,
    inherited: bool,
    started_ms: u64,
    /// The same, as RFC 3339 writes it.
    started: String,
}

fn who(args: &Args) -> anyhow::Result<Exit> {
    if !args.next.is_empty() {
        let detail =
            "--who starts no program: options go before the directory, and nothing comes after it".to_owned();
        return Err(exit::attempt(Error::Invalid { detail }, "say who has the lock"));
    }
    let dir = args
        .dir
        .clone()
        .or_else(|| std::env::var_os(DATA_DIR_VAR).filter(|dir| !dir.is_empty()).map(PathBuf::from));
    let Some(dir) = dir else {
        let detail = format!("name the data directory, or set {DATA_DIR_VAR}");
        return Err(exit::attempt(Error::Invalid { detail }, "say who has the lock"));
    };
    let path = lock_file(args, &dir)?;
    let known = Known::of(DataDirLock::holding(&path)?, path);
    let _ = if args.json { out::json(&known)? } else { out::text(&known.text())? };
    Ok(if known.locked { Exit::Done } else { Exit::Refused })
}

/// The directory must be there; its lock file need not.
fn lock_file(args: &Args, dir: &Path) -> handoff::Result<PathBuf> {
    let found = dir.canonicalize().map_err(|e| Error::io(format!("find {}", dir.display()), e))?;
    Ok(if found.is_dir() { found.join(&args.lock_file) } else { found })
}

impl Known {
    fn of(holding: Holding, lock_file: PathBuf) -> Self {
        Self {
            lock_file,
            locked: holding.locked,
            unseen: holding.locked && holding.holders.is_empty(),
            holders: holding.holders.into_iter().map(KnownHolder::of).collect(),
            taken_by: holding.takers,
        }
    }

    fn text(&self) -> String {
        let path = self.lock_file.display();
        if !self.locked {
            return format!("{path}: nobody is seen to hold it\n");
        }
        if self.unseen {
            let takers: Vec<String> =
                self.taken_by.iter().map(|pid| format!("; pid {pid} took it")).collect();
            return format!(
                "{path}: held by no process that this user can see: another user's, another container's, or a copy in \
                 flight in a socket{}\n",
                takers.join("")
            );
        }
        let rows = std::iter::once(["PID", "USER", "STARTED", "LOCK", "COMMAND"].map(str::to_owned));
        table(&rows.chain(self.holders.iter().map(|holder| self.row(holder))).collect::<Vec<_>>())
    }

    fn row(&self, known: &KnownHolder) -> [String; 5] {
        let holder = &known.holder;
        let has_it = |pid: u32| self.holders.iter().any(|other| other.holder.pid == pid);
        let mut how = match holder.inherited_from {
            Some(pid) if has_it(pid) => format!("inherited from {pid}"),
            Some(pid) => format!("inherited from {pid}, which has it no more"),
            None => "took it".to_owned(),
        };
        if holder.kind == LockKind::Fcntl {
            how += " (fcntl)";
        }
        let user = known.user.clone().unwrap_or_else(|| holder.uid.to_string());
        [holder.pid.to_string(), user, known.started.clone(), how, out::one_line(&holder.command)]
    }
}

impl KnownHolder {
    fn of(holder: Holder) -> Self {
        let started_ms = holder.started_ms();
        Self {
            user: process::user_name(holder.uid),
            inherited: holder.inherited_from.is_some(),
            started_ms,
            started: utc(started_ms),
            holder,
        }
    }
}

/// Lines up the columns; the last one is as long as it is.
fn table(rows: &[[String; 5]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}  {}\n", cells.join("  "), row[4])
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;
    use crate::words;

    #[test]
    fn a_line_without_options_is_read_as_the_parser_reads_it() {
        for (line, is_plain) in [
            ("handoff lock /data kvd --listen x", true),
            ("handoff lock data -- kvd --listen -- x", true),
            ("handoff lock data --wait 1s kvd", true),
            ("handoff lock data", true),
            ("handoff lock --wait 1s data kvd", false),
            ("handoff lock -- data kvd", false),
            ("handoff lock - kvd", false),
            ("handoff --verbose lock data kvd", false),
        ] {
            let all: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let mut definition = crate::definition(None);
            let parsed =
                definition.clone().try_get_matches_from_mut(words::end_options(&definition, all.clone()));
            let matches = parsed.unwrap_or_else(|e| panic!("{line}: {e}"));
            let parsed = Args::from_arg_matches(matches.subcommand_matches("lock").expect("it is this one"));
            let parsed = parsed.unwrap_or_else(|e| panic!("{line}: {}", e.format(&mut definition)));
            let plain = Args::plain(&all);
            assert_eq!(plain.is_some(), is_plain, "{line}");
            assert!(plain.is_none_or(|plain| plain == parsed), "{line}: {parsed:?}");
        }
    }
}
