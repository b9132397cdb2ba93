//! What can be known of a swap before it is tried. Nothing here changes anything: no lease is taken, no lock, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::control::{self, Control};
use handoff::error::Error;
use handoff::journal::{self, Outcome, handoffs, unfinished};
use handoff::proto::record::Standing;
use handoff::proto::wire::{ListenerStatus, Status};
use handoff::sys::format::{self, Elf, Format};
use handoff::sys::lock::{Holder, LockKind};
use handoff::sys::process::{PidFd, ProcessId};
use handoff::sys::resources::{self, Space};
use handoff::sys::spawn::Program;
use handoff::sys::{append, file, queue, unix};
use serde::Serialize;

use crate::duration::{show_ms, show_us};
use crate::exit::Exit;
use crate::out;
use crate::reuse::{self, Reused};

/// How long the daemon may take to say how it is doing.
const ANSWER: Duration = Duration::from_secs(5);
/// How long connections are counted as they arrive.
const COUNTING: Duration = Duration::from_millis(250);
/// How many handoffs of the journal say what gap is to be expected.
const GAPS: usize = 10;
/// The gap where the journal knows none, in microseconds.
const GAP_ASSUMED_US: u64 = 1_000_000;
/// What a handoff needs of the daemon's descriptors and of the successor's, besides listeners and connections.
pub const DESCRIPTORS_SPARE: u64 = 32;
/// How much space is little, in bytes: on the data directory's file system and on the journal's.
const LITTLE_DATA: u64 = 64 << 20;
const LITTLE_JOURNAL: u64 = 1 << 20;

/// How one check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or it could not be told.
    Warning,
    /// A swap would be refused or fail.
    Error,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word.
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    pub fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn error(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Error, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn line(&self) -> String {
        let advice = self.advice.as_ref().map_or(String::new(), |advice| format!("; {advice}"));
        out::one_line(&format!("{:<7} {:<11} {}{advice}", self.verdict.word(), self.check, self.found))
    }
}

/// What all checks found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether a swap is expected to go well.
    pub ok: bool,
    pub errors: usize,
    pub warnings: usize,
    pub checks: Vec<Finding>,
}

impl Report {
    pub fn of(checks: Vec<Finding>) -> Self {
        let count = |verdict| checks.iter().filter(|finding| finding.verdict == verdict).count();
        let (errors, warnings) = (count(Verdict::Error), count(Verdict::Warning));
        Self { ok: errors == 0, errors, warnings, checks }
    }

    /// Says all of it on standard output, and returns the exit code.
    ///
    /// # Errors
    ///
    /// Standard output cannot be written to.
    pub fn say(&self, json: bool) -> anyhow::Result<Exit> {
        self.say_as(json, "nothing stands in the way of a swap", "a swap would be refused or fail")
    }

    /// As [`say`](Self::say), where it is not about a swap that is about to be made.
    ///
    /// # Errors
    ///
    /// As [`say`](Self::say).
    pub fn say_as(&self, json: bool, fine: &str, wrong: &str) -> anyhow::Result<Exit> {
        let _ = if json { out::json(self)? } else { out::text(&self.text(fine, wrong))? };
        Ok(if self.ok { Exit::Done } else { Exit::Refused })
    }

    fn text(&self, fine: &str, wrong: &str) -> String {
        let mut lines: Vec<String> = self.checks.iter().map(Finding::line).collect();
        let expected = if self.ok { fine } else { wrong };
        let counts = [(self.checks.len(), "check"), (self.errors, "error"), (self.warnings, "warning")];
        let counts = counts.map(|(n, what)| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
        lines.push(format!("{expected}: {}", counts.join(", ")));
        lines.join("\n") + "\n"
    }
}

/// What is to be checked.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Where the daemon answers.
    pub control: &'a Path,
    pub journal: Option<&'a Path>,
    /// What is to be started; nothing where only the daemon is of interest.
    pub program: Option<&'a Path>,
    /// Its arguments, where they are not the daemon's.
    pub args: Option<&'a [String]>,
    pub cgroup: Option<&'a Path>,
}

impl Subject<'_> {
    /// Checks all of it.
    pub fn check(&self) -> Report {
        let mut findings = vec![path(self.control)];
        let status = self.ask(&mut findings);
        let opened = self.program.map(|program| open(program, &mut findings));
        if let Some(status) = &status {
            if let Some(Some(program)) = &opened {
                findings.push(build(program, status));
            }
            if self.program.is_some() {
                findings.extend(arguments(self.args, status));
            }
            findings.extend(of_daemon(status));
        }
        let journal = self.journal.map(|path| journal_at(path, &mut findings));
        if self.journal.is_none() {
            findings.push(Finding::ok("journal", "none is given: nothing is written down"));
        }
        if let Some(status) = &status {
            findings.extend(queues(&status.listeners, journal.flatten()));
        }
        findings.extend(self.cgroup.map(cgroup));
        Report::of(findings)
    }

    fn ask(&self, findings: &mut Vec<Finding>) -> Option<Status> {
        let deadline = Instant::now() + ANSWER;
        let mut daemon = match Control::connect(self.control, "handoff check", deadline) {
            Ok(daemon) => daemon,
            Err(e) => {
                findings.push(unanswered(&e));
                return None;
            }
        };
        let speaks = daemon.hello().versions;
        match daemon.status(deadline) {
            Ok(status) => {
                let (process, min, max) = (&status.process, speaks.min, speaks.max);
                let versions =
                    if min == max { format!("version {min}") } else { format!("versions {min} to {max}") };
                let found = format!("{process} answers and speaks {versions} of the protocol");
                findings.push(Finding::ok("control", found));
                findings.push(lease(&status));
                Some(status)
            }
            Err(e) => {
                findings.push(Finding::error("control", e.to_string(), "look at the daemon's log"));
                None
            }
        }
    }
}

// ---- The daemon's answer.

pub fn path(control: &Path) -> Finding {
    let Ok(full) = std::path::absolute(control) else {
        let found = format!("{} has no full path", control.display());
        return Finding::error("path", found, "give the path of the daemon's control socket");
    };
    let length = full.as_os_str().len();
    // The successor binds `.NAME.PID` and renames it.
    let beside = length + 2 + "4194304".len();
    let found = format!("{} is {length} bytes long, of {}", full.display(), unix::PATH_MAX);
    if length > unix::PATH_MAX {
        return Finding::error("path", found, "use a shorter directory such as /run/NAME");
    }
    if let Err(e) = unix::check_directory(&full) {
        return Finding::error("path", e.to_string(), "a successor refuses to bind there");
    }
    match full.parent() {
        Some(dir) if !resources::may_write(dir) => {
            let found = format!("{} may not be written to by this user", dir.display());
            Finding::error("path", found, "the successor, started by this user, cannot bind there")
        }
        _ if beside > unix::PATH_MAX => Finding::warning(
            "path",
            found,
            "a successor binds beside it, with up to 9 bytes more: use a shorter one",
        ),
        _ => Finding::ok("path", found),
    }
}

fn unanswered(e: &Error) -> Finding {
    let advice = match e {
        Error::Version { .. } => "use the handoff of the daemon's release",
        Error::Refused { .. } => "run this as the daemon's user, or as root",
        Error::TimedOut { .. } => "the daemon hangs or was stopped: look at it first",
        e if control::is_absent(e) => "start the daemon, or give its control path",
        _ => "is it a daemon that speaks this protocol?",
    };
    Finding::error("control", e.to_string(), advice)
}

fn lease(status: &Status) -> Finding {
    match &status.handoff {
        None if status.phase == "serving" => Finding::ok("lease", "it is free: no handoff is in progress"),
        None => {
            let found = format!("the daemon is {}", status.phase);
            Finding::error("lease", found, "wait until it serves")
        }
        Some(handoff) => {
            let (id, age) = (&handoff.handoff, show_ms(handoff.age_ms));
            let found = format!("handoff {id} has been in progress for {age} and is {}", status.phase);
            Finding::error("lease", found, "wait for its end, or handoff commit or abort")
        }
    }
}

// ---- The program.

fn open(name: &Path, findings: &mut Vec<Finding>) -> Option<Program> {
    match Program::open(name) {
        Ok(program) => {
            findings.push(runnable(&program));
            Some(program)
        }
        Err(e) => {
            findings.push(Finding::error(
                "program",
                e.to_string(),
                "name a program that this user may execute",
            ));
            None
        }
    }
}

fn runnable(program: &Program) -> Finding {
    let path = program.path().display();
    match format::of(program) {
        Ok(Format::Elf(elf)) => loadable(program.path(), &elf),
        Ok(Format::Script(interpreter)) => match Program::open(&interpreter) {
            Ok(_) => Finding::ok("program", format!("{path} is a script for {}", interpreter.display())),
            Err(e) => Finding::error(
                "program",
                format!("{path} is a script, and its interpreter: {e}"),
                "install it",
            ),
        },
        Ok(Format::Unreadable) => {
            let found = format!("{path} may be executed and not read: what it is cannot be told");
            Finding::warning("program", found, "let this user read it")
        }
        Ok(Format::Unknown) => foreign(format!("{path} is neither a binary nor a script with #!")),
        Err(e) => Finding::error("program", format!("{path} cannot be read: {e}"), "look at its disk"),
    }
}

fn loadable(path: &Path, elf: &Elf) -> Finding {
    let path = path.display();
    let kind = format!("{path} is a {}-bit binary for {}", elf.bits, elf.machine_name());
    let is_ours = |own: &Elf| (own.machine, own.bits) == (elf.machine, elf.bits);
    if let Ok(Format::Elf(own)) = format::own()
        && !is_ours(&own)
    {
        let here = format!("{kind}, and this machine runs {}-bit {}", own.bits, own.machine_name());
        let may_run = matches!((own.machine, elf.machine), (62, 3) | (183, 40));
        if may_run {
            return Finding::warning("program", here, "it may run, or not: try it with --version");
        }
        return foreign(here);
    }
    match &elf.interpreter {
        Some(interpreter) if !interpreter.exists() => {
            let found = format!("{kind}, and its loader {} is missing", interpreter.display());
            Finding::error("program", found, "install its C library, or link it statically")
        }
        _ => Finding::ok("program", kind),
    }
}

fn foreign(found: String) -> Finding {
    match format::has_handlers() {
        true => Finding::warning("program", found, "a handler of binfmt_misc may run it, or not"),
        false => Finding::error("program", found, "build it for this machine"),
    }
}

fn build(program: &Program, status: &Status) -> Finding {
    // What runs, also where another file has its path by now.
    let running = Program::open(Path::new(&format!("/proc/{}/exe", status.process.pid))).ok();
    match program.build_id() {
        Ok(id) => {
            let is_same = running.and_then(|running| running.build_id().ok()).as_ref() == Some(&id);
            let found = format!("the program's build id is {}", out::build(&id));
            if is_same || id == status.build_id {
                return Finding::warning(
                    "build",
                    found + ", that of the running one",
                    "is it the new release?",
                );
            }
            Finding::ok("build", found + ", and another one runs")
        }
        Err(e) => {
            Finding::warning("build", format!("the program has no build id: {e}"), "let this user read it")
        }
    }
}

fn arguments(given: Option<&[String]>, status: &Status) -> Vec<Finding> {
    let show = |args: &[String]| match args {
        [] => "none".to_owned(),
        [program, rest @ ..] => out::command_line(program, rest),
    };
    if let Some(args) = given {
        return vec![Finding::ok("arguments", show(args))];
    }
    match reuse::of_status(status) {
        Ok(Reused { args, directory }) => {
            let found = Finding::ok("arguments", format!("{}, those of the daemon", show(&args)));
            let directory = directory.filter(|directory| !directory.is_dir()).map(|directory| {
                let found = format!("the daemon's working directory {} is gone", directory.display());
                Finding::error("directory", found, "make it again, or give PROG's arguments after it")
            });
            [Some(found), directory].into_iter().flatten().collect()
        }
        Err(e) => vec![Finding::error("arguments", format!("{e:#}"), "see what is said of the owner record")],
    }
}

// ---- The data directory and the process.

fn of_daemon(status: &Status) -> Vec<Finding> {
    let dir = PathBuf::from(&status.data_dir);
    let lock_file = dir.join(&status.lock_file);
    vec![
        record(&lock_file, status),
        lock(&lock_file, status.process.pid),
        file_system(&dir),
        data(&dir),
        descriptors(status),
        limit(status),
        fence(&status.process),
    ]
}

fn record(lock_file: &Path, status: &Status) -> Finding {
    let fault = |found: String, advice: &str| Finding::error("record", found, advice);
    let reading = match DataDirLock::read_record(lock_file) {
        Ok(reading) => reading,
        Err(e @ Error::NewerFormat { .. }) => return fault(e.to_string(), "use a handoff that knows it"),
        Err(e) => {
            return fault(e.to_string(), "the owner record cannot be trusted: find out what wrote to it");
        }
    };
    let Some(record) = reading.record else {
        return fault(
            format!("{} has no owner record", lock_file.display()),
            "is this the daemon's directory?",
        );
    };
    let (pid, generation) = (record.owner.pid, record.generation);
    let found = format!("generation {generation} of pid {pid}");
    match record.standing {
        Standing::Trial => fault(found + " is on trial", "handoff commit or abort ends the trial"),
        Standing::Final if pid != status.process.pid || generation != status.generation => {
            let answers = (status.process.pid, status.generation);
            let found = format!("{found}, and pid {} of generation {} answers", answers.0, answers.1);
            fault(found, "another daemon has taken this data directory")
        }
        Standing::Final if !reading.torn.is_empty() => {
            let found = format!("{found} is final; a crash cut a write short in another slot");
            Finding::warning("record", found, "the next swap writes over it")
        }
        Standing::Final => Finding::ok("record", found + " is final"),
    }
}

fn lock(lock_file: &Path, incumbent: u32) -> Finding {
    let path = lock_file.display();
    let holding = match DataDirLock::holding(lock_file) {
        Ok(holding) => holding,
        Err(e) => {
            return Finding::error("lock", e.to_string(), "the daemon's directory cannot be seen from here");
        }
    };
    let list =
        |holders: &[&Holder]| holders.iter().map(|holder| holder.to_string()).collect::<Vec<_>>().join("; ");
    let all: Vec<&Holder> = holding.holders.iter().collect();
    let strangers: Vec<&Holder> = all.iter().copied().filter(|holder| holder.pid != incumbent).collect();
    if !holding.locked {
        return Finding::error(
            "lock",
            format!("nobody has {path}"),
            "the daemon has lost it, or another file took its place",
        );
    }
    if all.iter().any(|holder| holder.kind == LockKind::Fcntl) {
        let found = format!("{path} has a lock of fcntl(2): {}", list(&all));
        return Finding::error(
            "lock",
            found,
            "a successor refuses to share it: end that process, or give it a file of its own",
        );
    }
    if all.is_empty() {
        let found = format!("{path} is locked, by nobody that this user can see");
        return Finding::warning("lock", found, "run this as root to see who");
    }
    if strangers.len() == all.len() {
        let found = format!("{path} is held by {}, and not by the daemon, pid {incumbent}", list(&all));
        return Finding::error("lock", found, "end whoever has it");
    }
    match strangers.is_empty() {
        true => Finding::ok("lock", format!("held by {}", list(&all))),
        false => Finding::warning(
            "lock",
            format!("held by {}", list(&all)),
            "a process that inherited it keeps the data locked after a crash: let the daemon close it there",
        ),
    }
}

pub fn file_system(dir: &Path) -> Finding {
    match file::network_kind_of(dir) {
        Ok(kind) => on_network(dir, kind),
        Err(e) => Finding::error(
            "disk",
            format!("{} cannot be looked at: {e}", dir.display()),
            "is it mounted here?",
        ),
    }
}

fn on_network(dir: &Path, kind: Option<&str>) -> Finding {
    let dir = dir.display();
    match kind {
        None => Finding::ok("disk", format!("{dir} is on a local file system, whose locks hold")),
        Some(kind) => Finding::warning(
            "disk",
            format!("{dir} is on {kind}, where a lock may not hold between machines"),
            "only one machine may ever mount it, and the successor must allow it as the daemon does",
        ),
    }
}

fn data(dir: &Path) -> Finding {
    if !resources::may_write(dir) {
        let found = format!("{} may not be written to by this user", dir.display());
        return Finding::error("data", found, "the successor runs as this user: run this as the daemon's");
    }
    match resources::space(dir) {
        Ok(space) => space_for("data", dir, space, LITTLE_DATA),
        Err(e) => Finding::warning(
            "data",
            format!("the space in {} is not known: {e}", dir.display()),
            "look at its disk",
        ),
    }
}

fn space_for(check: &'static str, path: &Path, space: Space, little: u64) -> Finding {
    let found = format!("{} has {} MiB free", path.display(), space.free >> 20);
    if space.read_only {
        return Finding::error(
            check,
            format!("{} is on a file system that is read-only", path.display()),
            "mount it for writing",
        );
    }
    if space.free == 0 || space.files == Some(0) {
        return Finding::error(
            check,
            format!("the file system of {} is full", path.display()),
            "make room first",
        );
    }
    if space.free < little {
        return Finding::warning(check, found, "make room first: what cannot be written undoes the swap");
    }
    Finding::ok(check, found)
}

fn descriptors(status: &Status) -> Finding {
    let pid = status.process.pid;
    let needed = status.listeners.len() as u64 + DESCRIPTORS_SPARE;
    match resources::descriptors_of(pid) {
        Ok(found) => budget(pid, found.open, found.limit, needed),
        Err(e) => Finding::warning(
            "descriptors",
            format!("those of pid {pid} are not known: {e}"),
            "run this as its user",
        ),
    }
}

fn budget(pid: u32, open: Option<u64>, limit: u64, needed: u64) -> Finding {
    let Some(open) = open else {
        let found = format!("how many pid {pid} has open, of {limit}, is not this user's to see");
        return Finding::warning("descriptors", found, "run this as its user");
    };
    let found = format!("pid {pid} has {open} of {limit}, and a handoff needs {needed}");
    match open.saturating_add(needed) {
        all if all > limit => Finding::error(
            "descriptors",
            found,
            format!("raise its limit: prlimit --pid {pid} --nofile={}:", 2 * all),
        ),
        all if all > limit / 10 * 9 => {
            Finding::warning("descriptors", found, "raise its limit before it has more clients")
        }
        _ => Finding::ok("descriptors", found),
    }
}

/// What is started here has this process's limit, unless it raises it.
fn limit(status: &Status) -> Finding {
    let listeners = status.listeners.len() as u64 + DESCRIPTORS_SPARE;
    let conns = u64::from(status.state.open_conns);
    let daemons = resources::descriptors_of(status.process.pid).ok().map(|found| found.limit);
    match resources::own_limit() {
        Ok(own) => heir(own, daemons, listeners, conns),
        Err(e) => Finding::warning("limit", format!("it is not known: {e}"), "see ulimit -n"),
    }
}

pub fn heir(own: u64, daemons: Option<u64>, listeners: u64, conns: u64) -> Finding {
    let found = format!("the successor may have {own} descriptors");
    if listeners > own {
        let found = format!("{found}, and the listeners alone need {listeners}");
        return Finding::error("limit", found, format!("ulimit -n {}", 2 * (listeners + conns)));
    }
    if listeners + conns > own {
        let found = format!("{found}, and {conns} connections are open");
        return Finding::warning("limit", found, format!("ulimit -n {}", 2 * (listeners + conns)));
    }
    match daemons.filter(|daemons| *daemons > own) {
        Some(daemons) => Finding::warning(
            "limit",
            format!("{found}, and the daemon {daemons}"),
            format!("ulimit -n {daemons}"),
        ),
        None => Finding::ok("limit", found),
    }
}

/// A daemon that hangs when it has sealed must be killed by somebody.
fn fence(daemon: &ProcessId) -> Finding {
    let pid = daemon.pid;
    if ProcessId::of(pid).ok().as_ref() != Some(daemon) {
        let found = format!("pid {pid} is not the daemon here: it runs in another pid namespace");
        return Finding::warning("signals", found, "run this where the daemon runs");
    }
    match PidFd::open(pid).and_then(|process| process.may_signal()) {
        Ok(true) => Finding::ok(
            "signals",
            format!("pid {pid} may be killed by this user, should it hang when it has sealed"),
        ),
        Ok(false) => Finding::warning(
            "signals",
            format!("pid {pid} may not be killed by this user, should it hang when it has sealed"),
            "run this as its user, or as root",
        ),
        Err(e) => Finding::warning("signals", format!("pid {pid}: {e}"), "look at the daemon"),
    }
}

// ---- The journal.

/// Returns the longest of the last gaps, in microseconds.
pub fn journal_at(path: &Path, findings: &mut Vec<Finding>) -> Option<u64> {
    match journal_of(path) {
        Ok((finding, gap_us)) => {
            findings.push(finding);
            gap_us
        }
        Err(finding) => {
            findings.push(finding);
            None
        }
    }
}

fn journal_of(path: &Path) -> Result<(Finding, Option<u64>), Finding> {
    let shown = path.display();
    let error = |found: String, advice: &str| Finding::error("journal", found, advice);
    let file = match append::open_append(path, false) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((unborn(path), None)),
        Err(e) => {
            return Err(error(
                format!("{shown} cannot be opened for appending: {e}"),
                "let this user write to it",
            ));
        }
    };
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    if !is_file {
        return Err(error(format!("{shown} is not a regular file"), "name another journal"));
    }
    let holders: Vec<String> = append::holders(&file).iter().map(Holder::to_string).collect();
    if !holders.is_empty() {
        return Err(error(
            format!("{shown} is held by {}", holders.join("; ")),
            "wait for that driver's end",
        ));
    }
    let repair = format!("handoff journal repair {}", out::command_line(path, &[]));
    let contents = journal::read(path).map_err(|e| {
        let advice =
            if matches!(e, Error::Damaged { .. }) { repair.as_str() } else { "name another journal" };
        error(e.to_string(), advice)
    })?;
    let gaps = handoffs(&contents.records).into_iter().rev().filter_map(|handoff| match handoff.outcome {
        Outcome::Committed { gap_us } => gap_us,
        _ => None,
    });
    let gap_us = gaps.take(GAPS).max();
    let space = resources::space(path).ok().map(|space| space_for("journal", path, space, LITTLE_JOURNAL));
    if let Some(short) = space.filter(|finding| finding.verdict != Verdict::Ok) {
        return Ok((short, gap_us));
    }
    if let Some(open) = unfinished(&contents.records) {
        let found = format!("{shown} has handoff {} left open by a driver that died", open.handoff.id);
        return Ok((
            Finding::warning("journal", found, "the swap settles it first, as handoff journal resume does"),
            gap_us,
        ));
    }
    if let Some(torn) = &contents.torn_tail {
        let found = format!("{shown} has a torn last record at byte {}", torn.offset);
        return Ok((Finding::warning("journal", found, "the swap cuts it and says so"), gap_us));
    }
    let found = format!("{shown} is sound, free and may be appended to: {} records", contents.records.len());
    Ok((Finding::ok("journal", found), gap_us))
}

fn unborn(path: &Path) -> Finding {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !resources::may_write(dir) || !dir.is_dir() {
        let found = format!("{} does not exist, and this user cannot make it", path.display());
        return Finding::error("journal", found, "make its directory, and let this user write to it");
    }
    match resources::space(dir).map(|space| space_for("journal", dir, space, LITTLE_JOURNAL)) {
        Ok(short) if short.verdict != Verdict::Ok => short,
        _ => Finding::ok("journal", format!("{} will be made", path.display())),
    }
}

// ---- The gap.

pub fn queues(listeners: &[ListenerStatus], gap_us: Option<u64>) -> Vec<Finding> {
    let rate = arrival_rate();
    let longest = queue::longest().ok();
    listeners.iter().map(|listener| room(listener, gap_us, rate, longest)).collect()
}

/// Connections a second, to all listeners of the network namespace: more than to any one of them.
fn arrival_rate() -> Option<u64> {
    let before = (queue::arrivals().ok()?, Instant::now());
    std::thread::sleep(COUNTING);
    let made = queue::arrivals().ok()?.saturating_sub(before.0);
    let ms = u64::try_from(before.1.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    Some((made * 1000).div_ceil(ms))
}

fn room(listener: &ListenerStatus, gap_us: Option<u64>, rate: Option<u64>, longest: Option<u32>) -> Finding {
    let name = format!("{} {}", listener.name, listener.address);
    let Some((len, limit)) = listener.queue else {
        return Finding::ok("queue", format!("{name} has no accept queue that the kernel tells of"));
    };
    let gap = gap_us.map_or_else(
        || format!("{} is assumed for a gap, as no journal knows one", show_us(GAP_ASSUMED_US)),
        |gap| format!("the longest of the last gaps was {}", show_us(gap)),
    );
    let Some(rate) = rate else {
        let found = format!("{name} has room for {limit}, and how many arrive is not known");
        return Finding::warning("queue", found, "compare it with what arrives in a gap");
    };
    let expected = u64::from(len) + rate.saturating_mul(gap_us.unwrap_or(GAP_ASSUMED_US)).div_ceil(1_000_000);
    let found = format!(
        "{name} has room for {limit}, and {expected} are expected: at most {rate} arrive a second, and {gap}"
    );
    if expected <= u64::from(limit) {
        return Finding::ok("queue", found);
    }
    let advice = match longest {
        Some(longest) if longest <= limit => format!(
            "whoever finds it full is late by a second or more: raise net.core.somaxconn, which is {longest}"
        ),
        _ => "whoever finds it full is late by a second or more: let the daemon listen with a longer backlog"
            .to_owned(),
    };
    Finding::warning("queue", found, advice)
}

// ---- The control group.

fn cgroup(dir: &Path) -> Finding {
    let (shown, procs) = (dir.display(), dir.join("cgroup.procs"));
    let error = |found: String, advice: &str| Finding::error("cgroup", found, advice);
    let members = match fs::read_to_string(&procs) {
        Ok(members) => members,
        Err(e) => {
            return error(
                format!("{shown} is no control group that can be read: {e}"),
                "make one for the successor",
            );
        }
    };
    if !resources::may_write(&procs) {
        return error(
            format!("{} may not be written to by this user", procs.display()),
            "delegate it to this user",
        );
    }
    if !members.trim().is_empty() {
        let pids: Vec<&str> = members.split_whitespace().collect();
        let found = format!("{shown} has processes already: {}", pids.join(" "));
        return error(found, "make one for the successor alone");
    }
    match dir.join("cgroup.kill").exists() {
        true => Finding::ok("cgroup", format!("{shown} is empty and may be joined")),
        false => Finding::warning(
            "cgroup",
            format!("{shown} has no cgroup.kill"),
            "before Linux 5.14 its processes are killed one by one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(finding: &Finding, verdict: Verdict, part: &str) {
        assert_eq!(finding.verdict, verdict, "{finding:?}");
        assert!(finding.line().contains(part), "{part:?} in {}", finding.line());
        assert_eq!(finding.advice.is_none(), verdict == Verdict::Ok, "{finding:?}");
    }

    fn listener(queue: Option<(u32, u32)>) -> ListenerStatus {
        ListenerStatus { name: "http".to_owned(), address: "127.0.0.1:80".to_owned(), queue }
    }

    #[test]
    fn a_queue_must_hold_what_arrives_in_a_gap() {
        use Verdict::{Ok, Warning};
        for (queue, gap_us, rate, longest, verdict, part) in [
            (Some((0, 128)), Some(100_000), Some(1280), Some(4096), Ok, "128 are expected"),
            (Some((1, 128)), Some(100_000), Some(1280), Some(4096), Warning, "longer backlog"),
            (
                Some((0, 128)),
                Some(100_000),
                Some(1281),
                Some(128),
                Warning,
                "raise net.core.somaxconn, which is 128",
            ),
            (Some((0, 128)), None, Some(129), Some(4096), Warning, "1.0s is assumed for a gap"),
            (Some((0, 128)), None, Some(0), None, Ok, "0 are expected"),
            (Some((0, 128)), None, None, None, Warning, "not known"),
            (None, None, Some(5), None, Ok, "no accept queue"),
        ] {
            expect(&room(&listener(queue), gap_us, rate, longest), verdict, part);
        }
    }

    #[test]
    fn descriptors_must_last_for_the_handoff() {
        expect(&budget(1, Some(10), 1024, 33), Verdict::Ok, "10 of 1024");
        expect(&budget(1, Some(900), 1024, 33), Verdict::Warning, "before it has more clients");
        expect(&budget(1, Some(1000), 1024, 33), Verdict::Error, "--nofile=2066:");
        expect(&budget(1, None, 1024, 33), Verdict::Warning, "not this user's to see");
        expect(&heir(1024, Some(1024), 33, 100), Verdict::Ok, "1024 descriptors");
        expect(&heir(1024, Some(4096), 33, 100), Verdict::Warning, "ulimit -n 4096");
        expect(&heir(100, None, 33, 100), Verdict::Warning, "100 connections are open");
        expect(&heir(20, None, 33, 100), Verdict::Error, "the listeners alone need 33");
    }

    #[test]
    fn a_disk_must_have_room_and_be_writable() {
        let space = Space { free: 1 << 30, size: 1 << 31, files: Some(10), read_only: false };
        let found = |space| space_for("data", Path::new("/d"), space, LITTLE_DATA);
        expect(&found(space), Verdict::Ok, "1024 MiB free");
        expect(&found(Space { free: 1 << 20, ..space }), Verdict::Warning, "/d has 1 MiB free");
        expect(&found(Space { free: 0, ..space }), Verdict::Error, "full");
        expect(&found(Space { files: Some(0), ..space }), Verdict::Error, "full");
        expect(&found(Space { read_only: true, ..space }), Verdict::Error, "read-only");
    }

    #[test]
    fn a_lock_on_a_network_is_doubtful() {
        expect(&on_network(Path::new("/d"), None), Verdict::Ok, "/d is on a local file system");
        expect(&on_network(Path::new("/d"), Some("nfs")), Verdict::Warning, "/d is on nfs");
    }

    #[test]
    fn a_pid_of_another_namespace_is_nobody_here() {
        let stranger = ProcessId { pid: std::process::id(), start_ticks: 1, boot_id: "another".to_owned() };
        expect(&fence(&stranger), Verdict::Warning, "another pid namespace");
    }

    #[test]
    fn warnings_do_not_forbid_a_swap_and_errors_do() {
        let (ok, warning) = (Finding::ok("a", "x"), Finding::warning("b", "y", "do"));
        let report = Report::of(vec![ok.clone(), warning.clone()]);
        assert!(
            report.ok
                && report
                    .text("nothing stands in the way of a swap", "")
                    .ends_with("nothing stands in the way of a swap: 2 checks, 0 errors, 1 warning\n")
        );
        let report = Report::of(vec![ok, warning, Finding::error("c", "z", "undo")]);
        assert!(
            !report.ok
                && report
                    .text("", "it would fail")
                    .contains("\nerror   c           z; undo\nit would fail: ")
        );
    }
}
