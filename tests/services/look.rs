//! What is true of a service at a moment.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::control::Control;
use handoff::proto::record::{OwnerRecord, Standing, boot_program};
use handoff::proto::wire::Status;
use handoff::supervise::client::Client;
use handoff::supervise::wire::State;

use crate::common::load::{Answer, Connection};
use crate::rig::Service;

/// How long whoever is looked at may take to answer; it is looked at again.
const BRIEFLY: Duration = Duration::from_secs(5);

/// A process of a service.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub words: Vec<String>,
}

impl Process {
    /// Returns whether it is what `handoff COMMAND` became.
    pub fn runs(&self, command: &str) -> bool {
        // `s6-supervise kvd` is none.
        !self.words[0].starts_with("s6-") && self.words.get(1).is_some_and(|word| word == command)
    }
}

/// Returns all processes that were started for the service in this directory, at any remove: they have its `bin` in their PATH.
pub fn processes(dir: &Path) -> Vec<Process> {
    let mark = dir.join("bin");
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| process(pid, mark.as_os_str().as_bytes())).collect()
}

fn process(pid: u32, mark: &[u8]) -> Option<Process> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environ.windows(mark.len()).any(|part| part == mark).then_some(())?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(") ")?.1.split(' ').next()?;
    // What is being killed may still have its environment.
    (!matches!(state, "Z" | "X")).then(|| Process { pid, words: words.collect() })
}

/// Returns the children of a process that nobody has waited for.
fn unreaped(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let is_dead = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    children.filter(is_dead).collect()
}

pub fn status(control: &Path) -> Option<Status> {
    let deadline = Instant::now() + BRIEFLY;
    Control::connect(control, "test", deadline).ok()?.status(deadline).ok()
}

pub fn supervising(trigger: &Path) -> Option<State> {
    Client::connect(trigger).ok()?.status(Instant::now() + BRIEFLY).ok()
}

/// Asks the store itself who it is: its pid, and its label.
pub fn who_serves(addr: std::net::SocketAddr) -> Option<(u32, String)> {
    let mut connection = Connection::open(addr, BRIEFLY).ok()?;
    let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).ok()? else { return None };
    let info = String::from_utf8(info).ok()?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("pid:")?.parse().ok()?, field("build_id:")?.to_owned()))
}

/// Returns the label of the program that the owner record says to start, if there is one.
pub fn recorded(data: &Path) -> Option<String> {
    let record = record(data)?;
    let args = boot_program(&record).args;
    let at = args.iter().position(|arg| arg == "--version-label")?;
    args.get(at + 1).cloned()
}

pub fn record(data: &Path) -> Option<OwnerRecord> {
    DataDirLock::read_record(data).ok()?.record
}

/// A service at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The pid that the service manager watches.
    pub supervisor: u32,
    /// The pid of the daemon.
    pub daemon: u32,
    /// What it is.
    pub label: String,
}

/// One supervisor, which the service manager watches; one daemon, which the supervisor watches, which answers, serves, has the lock and owns the data.
pub fn settled(service: &Service) -> Result<Settled, String> {
    let says = |what: &str| Err(what.to_owned());
    let Some(pid) = service.pid() else { return says("the service is not up") };
    let Some(state) = supervising(&service.trigger()) else {
        return says("the supervisor does not answer");
    };
    let Some(status) = status(&service.control()) else { return says("the daemon does not answer") };
    let all = processes(service.dir());
    let pids = |command: &str| -> Vec<u32> {
        all.iter().filter(|process| process.runs(command)).map(|process| process.pid).collect()
    };
    let (supervisors, daemons) = (pids("supervise"), pids("kvd"));
    let holders = DataDirLock::who(service.data()).map_err(|e| e.to_string())?;
    let holders: Vec<u32> = holders.iter().map(|holder| holder.pid).collect();
    let Some(record) = record(&service.data()) else { return says("there is no owner record") };
    let daemon = status.process.pid;
    let owns = record.owner.pid == daemon && record.owner.start_ticks == status.process.start_ticks;
    let serves = who_serves(service.addr);
    let wrong = match () {
        () if state.pid != pid => "another supervisor answers than the service manager watches",
        () if supervisors != [pid] => "not exactly one supervisor is there",
        () if state.doing != "serving" => "the supervisor is busy",
        () if status.phase != "serving" || status.handoff.is_some() => "a handoff is still going on",
        () if daemons != [daemon] => "not exactly one daemon is there",
        () if state.daemon.as_ref() != Some(&status.process) => "the supervisor watches another daemon",
        () if holders != [daemon] => "the lock is not held by the daemon",
        () if !owns || record.standing != Standing::Final => "the owner record is not the daemon's for good",
        () if serves.as_ref().is_none_or(|(pid, _)| *pid != daemon) => "another daemon serves",
        () if !unreaped(pid).is_empty() => "somebody died and was not waited for",
        () => return Ok(Settled { supervisor: pid, daemon, label: serves.unwrap_or_default().1 }),
    };
    Err(format!(
        "{wrong}: the service manager watches {pid}, {state:?}, {status:?}, daemons {daemons:?}, supervisors {supervisors:?}, \
         holders {holders:?}, {record:?}, serves {serves:?}"
    ))
}
