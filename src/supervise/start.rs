//! Starts the daemon where nobody serves: which program, with which sockets, and when it is ready.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::who::Daemon;
use super::{ReadyBy, Settings};
use crate::chain::{CONTROL_VAR, DATA_DIR_VAR, ID_VAR, JOURNAL_VAR};
use crate::control::Control;
use crate::data_dir::DataDirLock;
use crate::error::{Error, Result};
use crate::fds::{Plan, Role};
use crate::health::{self, Check};
use crate::journal::{Actor, Event, Journal};
use crate::listen;
use crate::proto::record::{self, boot_program};
use crate::proto::wire::Status;
use crate::sys::process::PidFd;
use crate::sys::spawn::{Image, Program, Spawn};

/// Between two questions to a daemon that is not ready yet.
const PAUSE: Duration = Duration::from_millis(10);
/// How long it may take for an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// The variables of this process that are not for the daemon.
pub(super) const OWN_VARS: [&str; 5] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", ID_VAR, JOURNAL_VAR];

/// What is to be run.
#[derive(Debug)]
pub(super) struct Command {
    pub program: Program,
    pub args: Vec<String>,
    pub directory: Option<PathBuf>,
    /// What there is to say of the choice.
    pub remark: Option<String>,
}

/// A daemon that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub child: Child,
    pub leader: PidFd,
    /// Sockets that were bound for it.
    pub bound: Vec<(String, OwnedFd)>,
    pub program: PathBuf,
    pub remark: Option<String>,
}

/// Starts the daemon. The lock is taken first and passed on to it: so it is decided here that nobody else serves, and whoever looks in the next instant
/// finds it held.
///
/// # Errors
///
/// [`Error::Locked`] where somebody was faster; a socket cannot be bound, or the program not be run.
pub(super) fn start(settings: &Settings, listeners: &[(String, OwnedFd)], kept: &[Kept]) -> Result<Started> {
    let lock = match DataDirLock::acquire_or_break_stale(&settings.data_dir) {
        Ok(lock) => Some(lock),
        // The daemon makes it.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let command = choose(settings, kept)?;
    let bound =
        listen::bind_missing(&settings.listeners, |name| listeners.iter().any(|(other, _)| other == name))?;
    let all: Result<Vec<(String, OwnedFd)>> = listeners.iter().chain(&bound).map(copy).collect();
    let all = all?;
    let mut plan = Plan::new(&all);
    if let Some(lock) = &lock {
        plan = plan.with(Role::Lock, lock.try_clone_fd()?);
    }
    let mut image = Image::new(&command.program);
    image.args = command.args.iter().map(OsString::from).collect();
    image.env = environment(settings);
    plan.install(&mut image)?;
    let spawn = Spawn { new_session: true, directory: command.directory.clone(), ..Spawn::new(image) };
    let mut child = spawn.spawn()?;
    match PidFd::open(child.id()) {
        Ok(leader) => {
            let program = command.program.path().to_owned();
            Ok(Started { child, leader, bound, program, remark: command.remark })
        }
        Err(e) => {
            // Nobody could watch it.
            let _ = child.kill();
            let _ = child.wait();
            Err(Error::io(format!("watch pid {}", child.id()), e))
        }
    }
}

/// Starts a successor for a driver elsewhere, which speaks over this channel; returns its pid.
///
/// # Errors
///
/// It cannot be run.
pub(super) fn start_successor(
    settings: &Settings,
    listeners: &[(String, OwnedFd)],
    program: Program,
    asked: &super::wire::Spawn,
    channel: OwnedFd,
) -> Result<(u32, PidFd)> {
    let plan = Plan::new(listeners).with(Role::Channel, channel);
    let mut image = Image::new(&program);
    image.args = asked.args.iter().map(OsString::from).collect();
    image.env = environment(settings);
    for (name, value) in &asked.env {
        image.env.retain(|(other, _)| other.as_os_str() != name.as_str());
        image.env.push((name.into(), value.into()));
    }
    plan.install(&mut image)?;
    let directory = asked.directory.clone().or_else(|| settings.directory.clone());
    let mut child = Spawn { new_session: true, directory, ..Spawn::new(image) }.spawn()?;
    let pid = child.id();
    match PidFd::open(pid) {
        Ok(leader) => Ok((pid, leader)),
        Err(e) => {
            // Nobody could watch it.
            let _ = child.kill();
            let _ = child.wait();
            Err(Error::io(format!("watch pid {pid}"), e))
        }
    }
}

pub(super) fn copy((name, fd): &(String, OwnedFd)) -> Result<(String, OwnedFd)> {
    let copy = fd.try_clone().map_err(|e| Error::io(format!("copy listener {name}"), e))?;
    Ok((name.clone(), copy))
}

/// What the daemon's environment has besides this process's.
pub(super) fn variables(settings: &Settings) -> Vec<(String, String)> {
    let own = [(CONTROL_VAR, &settings.control), (DATA_DIR_VAR, &settings.data_dir)];
    let own = own.into_iter().map(|(name, path)| (name.to_owned(), path.display().to_string()));
    own.chain(settings.env.iter().cloned()).collect()
}

fn environment(settings: &Settings) -> Vec<(OsString, OsString)> {
    let set = variables(settings);
    let is_inherited = |name: &OsString| {
        !OWN_VARS.iter().any(|own| name == own)
            && !set.iter().any(|(other, _)| name.as_os_str() == other.as_str())
    };
    let inherited = std::env::vars_os().filter(|(name, _)| is_inherited(name));
    inherited.chain(set.iter().map(|(name, value)| (name.into(), value.into()))).collect()
}

/// A program that a daemon runs or ran, by its opened file: starting it again does not depend on what is at its path by then.
#[derive(Debug)]
pub(super) struct Kept {
    /// What the daemon said of it.
    pub named: (PathBuf, String),
    pub file: OwnedFd,
}

impl Kept {
    pub fn of(daemon: &Daemon) -> Option<Self> {
        let program = Program::of_process(daemon.process.pid).ok()?;
        let file = std::os::fd::AsFd::as_fd(&program).try_clone_to_owned().ok()?;
        Some(Self { named: daemon.program.clone()?, file })
    }

    fn is(&self, program: &record::Program) -> bool {
        self.named.0 == program.binary && self.named.1 == program.build_id
    }
}

/// The owner record says which program, as it also does after a power failure.
fn choose(settings: &Settings, kept: &[Kept]) -> Result<Command> {
    let configured = |remark| {
        Ok(Command {
            program: Program::open(&settings.binary)?,
            args: settings.args.clone(),
            directory: settings.directory.clone(),
            remark,
        })
    };
    if settings.ignore_record {
        return configured(None);
    }
    let Some(record) = DataDirLock::read_record(&settings.data_dir)?.record else { return configured(None) };
    let named = boot_program(&record);
    let opened = match kept.iter().find(|kept| kept.is(&named)).map(|kept| kept.file.try_clone()) {
        Some(Ok(file)) => Ok(Program::adopt(file, named.binary.clone())),
        _ => Program::open(&named.binary),
    };
    match opened {
        Ok(program) => Ok(Command {
            program,
            args: named.args,
            directory: named.directory.or(settings.directory.clone()),
            remark: None,
        }),
        Err(e) => configured(Some(format!(
            "the owner record names {}, which cannot be run ({e}): starting the configured {}",
            named.binary.display(),
            settings.binary.display()
        ))),
    }
}

/// Waits until the daemon is ready, or nobody waits for that any more.
///
/// # Errors
///
/// It was not in time. That it died is for whoever watches its process.
pub(super) fn await_ready(
    settings: &Settings,
    said_ready: &AtomicBool,
    over: &AtomicBool,
) -> Result<Option<Status>> {
    let until = Instant::now() + settings.readiness.timeout;
    while !over.load(Ordering::Relaxed) {
        if Instant::now() >= until {
            return Err(Error::TimedOut { waiting_for: "the daemon to be ready".to_owned() });
        }
        let has_said = settings.readiness.by != ReadyBy::Notify || said_ready.load(Ordering::Relaxed);
        if has_said
            && let Some(status) = serving(&settings.control)
            && passes(settings, over)?
        {
            return Ok(Some(status));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

fn serving(control: &Path) -> Option<Status> {
    let deadline = Instant::now() + ANSWER;
    let status = Control::connect(control, "handoff supervisor", deadline).ok()?.status(deadline).ok()?;
    (status.phase == "serving").then_some(status)
}

fn passes(settings: &Settings, over: &AtomicBool) -> Result<bool> {
    let ReadyBy::Command(command) = &settings.readiness.by else { return Ok(true) };
    let check = Check {
        command: command.clone(),
        interval: Duration::ZERO,
        timeout: settings.readiness.timeout,
        control: settings.control.clone(),
    };
    Ok(health::run(&check, over)?.is_none() && !over.load(Ordering::Relaxed))
}

/// Writes down that a daemon began to serve without a handoff.
pub(super) fn note_started(settings: &Settings, status: &Status) -> Result<()> {
    let record = DataDirLock::read_record(&settings.data_dir)?.record;
    let args = record.map(|record| record.owner.args).unwrap_or_default();
    let event = Event::Started {
        generation: status.generation,
        binary: PathBuf::from(&status.binary),
        args,
        build_id: status.build_id.clone(),
    };
    let mut journal = Journal::open(&settings.journal)?;
    journal.append("", Actor::Supervisor, event)?;
    journal.sync()
}

/// Writes down what there is to remember of a request that was refused, and the like.
pub(super) fn note(journal: &Path, text: String) -> Result<()> {
    Journal::open(journal)?.append("", Actor::Supervisor, Event::Note { text }).map(drop)
}
