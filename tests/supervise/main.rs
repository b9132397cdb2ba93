//! The supervisor's engine with real processes: kvd under a load that keeps a ledger, and everything killed that can be.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../rig/process.rs"]
mod process;

mod deaths;
mod reexec;
mod requests;
mod restarts;
mod swaps;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::load::{Answer, Connection, Load, Plan};
use common::{HANDOFF, PATIENCE, eventually};
use handoff::control::Control;
use handoff::proto::wire::Status;
use handoff::supervise::client::{Client, News};
use handoff::supervise::wire::{State, Swap};
use handoff::supervisor::HandoffOutcome;
use process::{Process, example};

/// A directory, the supervisor that works in it, and those that did before.
pub struct Rig {
    dir: tempfile::TempDir,
    supervisor: Process,
    before: Vec<Process>,
    command: Vec<String>,
    is_killed: bool,
}

impl Rig {
    /// Starts a supervisor of a kvd and waits until that serves.
    pub fn start(keys: &[&str], args: &[&str]) -> Self {
        let rig = Self::begin(keys, &[&[HANDOFF, "kvd"], args].concat());
        rig.await_serving();
        rig
    }

    /// Starts a supervisor; the daemon gets its data directory at the end.
    pub fn begin(keys: &[&str], program: &[&str]) -> Self {
        Self::begin_in(tempfile::tempdir().unwrap(), keys, program)
    }

    pub fn begin_in(dir: tempfile::TempDir, keys: &[&str], program: &[&str]) -> Self {
        let path = dir.path().to_str().unwrap();
        let own = [path, "listen=resp=127.0.0.1:0"];
        let words = [&own[..], keys, &["--"], program, &["--data-dir", path]].concat();
        let command: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let supervisor = Process::start(Command::new(example("supervisor")).args(&command));
        Self { dir, supervisor, before: vec![], command, is_killed: false }
    }

    /// The same with nothing added.
    pub fn begin_exactly(dir: tempfile::TempDir, keys: &[&str], program: &[String]) -> Self {
        let words = std::iter::once(dir.path().to_str().unwrap()).chain(keys.iter().copied());
        let command: Vec<String> = words.map(str::to_owned).chain(program.iter().cloned()).collect();
        let supervisor = Process::start(Command::new(example("supervisor")).args(&command));
        Self { dir, supervisor, before: vec![], command, is_killed: false }
    }

    /// Starts the supervisor again when it has ended, as a service manager does.
    pub fn start_again(&mut self) {
        if self.is_killed {
            self.supervisor.wait();
        }
        self.is_killed = false;
        let next = Process::start(Command::new(example("supervisor")).args(&self.command));
        self.before.push(std::mem::replace(&mut self.supervisor, next));
    }

    pub fn kill_supervisor(&mut self) {
        self.supervisor.kill();
        self.is_killed = true;
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn control(&self) -> PathBuf {
        self.dir().join("control")
    }

    /// Returns the daemon's status, where one answers.
    pub fn daemon(&self) -> Option<Status> {
        let soon = Instant::now() + Duration::from_secs(2);
        Control::connect(self.control(), "test", soon).and_then(|mut control| control.status(soon)).ok()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.dir().join("trigger")).unwrap()
    }

    pub fn state(&self) -> Option<State> {
        let soon = Instant::now() + Duration::from_secs(10);
        Client::connect(self.dir().join("trigger")).ok()?.status(soon).ok()
    }

    /// Waits until the supervisor knows of a daemon that serves, and returns its pid.
    pub fn await_serving(&self) -> u32 {
        let mut pid = None;
        eventually("a daemon that is supervised", || {
            pid = self
                .state()
                .filter(|state| state.doing == "serving")
                .and_then(|state| Some(state.daemon?.pid));
            pid.is_some()
        });
        pid.unwrap()
    }

    pub fn addr(&self) -> SocketAddr {
        self.daemon().unwrap().listeners[0].address.parse().unwrap()
    }

    pub fn load(&self) -> Load {
        Load::start(&Plan::new(self.addr(), 6)).unwrap()
    }

    /// Returns the version label of the one who serves.
    pub fn serving(&self) -> String {
        let mut connection = Connection::open(self.addr(), PATIENCE).unwrap();
        let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).unwrap() else {
            panic!("no info")
        };
        let info = String::from_utf8(info).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("build_id:")).unwrap();
        line.trim().to_owned()
    }

    /// Returns what to swap to: the same program with another label, and faults.
    pub fn to(&self, label: &str, args: &[&str]) -> Swap {
        let own = ["kvd", "--data-dir", self.dir().to_str().unwrap(), "--version-label", label];
        let args = own.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        Swap { args: Some(args), ..Swap::default() }
    }

    pub fn swap(&self, swap: Swap) -> handoff::Result<HandoffOutcome> {
        self.client().swap(swap, Some(Instant::now() + PATIENCE), &mut |_| {})
    }

    /// Asks for a swap in a thread of its own; it has begun, or waits, when this returns.
    pub fn swap_meanwhile(&self, swap: Swap) -> std::thread::JoinHandle<handoff::Result<HandoffOutcome>> {
        let mut client = self.client();
        let (sender, receiver) = std::sync::mpsc::channel::<News>();
        let thread = std::thread::spawn(move || {
            client.swap(swap, Some(Instant::now() + PATIENCE), &mut |news| sender.send(news).unwrap_or(()))
        });
        receiver.recv_timeout(PATIENCE).unwrap();
        thread
    }

    pub fn signal(&self, name: &str) {
        process::signal(self.supervisor.pid(), name);
    }

    /// Returns all who live and were told of this directory: kvd by its name, the probe by its control path.
    fn processes(&self) -> Vec<u32> {
        [self.dir(), &self.control()].into_iter().flat_map(process::with_argument).collect()
    }

    /// Returns the daemons that live.
    pub fn daemons(&self) -> Vec<u32> {
        let mut pids = self.processes();
        pids.retain(|pid| {
            *pid != self.supervisor.pid() && !self.before.iter().any(|other| other.pid() == *pid)
        });
        pids
    }

    /// Waits until exactly one daemon is left, and it serves and is supervised; returns its pid.
    pub fn settle(&self) -> u32 {
        let mut found = None;
        eventually("one daemon that serves", || {
            let serving =
                self.daemon().filter(|status| status.phase == "serving" && status.handoff.is_none());
            let known = self.state().filter(|state| state.doing == "serving").and_then(|state| state.daemon);
            let pid = serving.map(|status| status.process.pid);
            found =
                pid.filter(|pid| self.daemons() == [*pid] && known.is_some_and(|known| known.pid == *pid));
            found.is_some()
        });
        found.unwrap()
    }

    /// Ends the load and demands that nothing that was acknowledged is lost, and that nobody was disturbed.
    pub fn expect_clean(&self, load: Load) {
        let before = load.counts().acknowledged;
        eventually("more writes", || load.counts().acknowledged > before + 20);
        let ledger = load.stop();
        assert_eq!(ledger.counts.disturbances(), 0, "{:?}\n{:#?}", ledger.counts, self.supervisor.lines());
        let found = ledger.read_back(self.addr()).unwrap();
        assert_eq!(found.lost, 0, "{found}");
    }

    /// The same, where the daemon was killed: what it had accepted is reset.
    pub fn expect_no_loss(&self, load: Load) {
        let before = load.counts().acknowledged;
        eventually("more writes", || load.counts().acknowledged > before + 20);
        let ledger = load.stop();
        assert_eq!((ledger.counts.refused, ledger.counts.contradictions), (0, 0), "{:?}", ledger.counts);
        let found = ledger.read_back(self.addr()).unwrap();
        assert_eq!(found.lost, 0, "{found}");
    }

    /// Has the supervisor stop; nobody is left.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.supervisor.wait();
        assert_eq!(status.code(), Some(0), "{:#?}", self.supervisor.lines());
        assert_eq!(self.daemons(), [0; 0], "{:#?}", self.supervisor.lines());
        assert!(!self.dir().join("trigger").exists());
    }
}

impl Drop for Rig {
    /// Nothing outlives its test, whatever came of it.
    fn drop(&mut self) {
        self.supervisor.kill();
        for pid in self.processes() {
            process::signal(pid, "KILL");
        }
    }
}

/// Returns how many children of a process have ended and were not reaped.
pub fn zombies_of(parent: u32) -> usize {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = pids.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let is_one = |stat: &String| {
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or(vec![], |(_, rest)| rest.split(' ').collect());
        fields.first() == Some(&"Z") && fields.get(1) == Some(&parent.to_string().as_str())
    };
    stats.filter(is_one).count()
}
