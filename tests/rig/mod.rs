//! A probe that serves, a driver to swap it, a load with a ledger, and the check of what is left in the end.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod ledger;
pub mod process;

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::control::Control;
use handoff::proto::record::{OwnerRecord, Standing};
use handoff::proto::wire::Status;

pub use ledger::{Disturbed, Load, ask, ask_for};
pub use process::{Process, example};

/// Long enough for any machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long whoever is looked at may take to answer; it is looked at again.
const BRIEFLY: Duration = Duration::from_millis(500);

/// What a machine under load may add to a deadline.
pub const SLACK: Duration = Duration::from_secs(4);

/// A daemon, its data directory and its listening socket, which the rig holds open as a holder would.
pub struct Rig {
    dir: tempfile::TempDir,
    pub listener: TcpListener,
    pub first: Process,
    pub load: Option<Load>,
    since: Instant,
}

impl Rig {
    /// Starts a probe as a cold start, with a load on it.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    pub fn start_in(dir: tempfile::TempDir, args: &[&str]) -> Self {
        let mut rig = Self::start_idle(dir, "probe", args);
        rig.load = Some(Load::start(rig.addr(), 2));
        rig
    }

    /// Starts any of the examples, without a load.
    pub fn start_idle(dir: tempfile::TempDir, program: &str, args: &[&str]) -> Self {
        let data = dir.path().join("data");
        // It may be a file system of its own.
        let _ = std::fs::create_dir(&data);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = cold_start(dir.path(), &listener, program, args);
        let rig = Self { dir, listener, first, load: None, since: Instant::now() };
        rig.await_status("serving", "the first one", |status| status.phase == "serving");
        rig
    }

    /// Starts a probe as a supervisor would, after everybody died.
    pub fn restart(&mut self) {
        self.first = cold_start(self.dir.path(), &self.listener, "probe", &[]);
    }

    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// Lets those go on that wait for it.
    pub fn go(&self) {
        std::fs::write(self.dir.path().join("go"), "").unwrap();
    }

    /// Starts a driver: its keys, then what the successor gets. Times are generous unless they are given.
    pub fn swap(&mut self, keys: &[&str], successor: &[&str]) -> Process {
        self.swap_for(&example("probe"), keys, successor)
    }

    pub fn swap_for(&mut self, program: &Path, keys: &[&str], successor: &[&str]) -> Process {
        self.since = Instant::now();
        Process::start(&mut self.driver(program, keys, successor))
    }

    pub fn driver(&self, program: &Path, keys: &[&str], successor: &[&str]) -> Command {
        let mut command = Command::new(example("swapper"));
        command.arg(self.control()).arg(self.data()).arg(program);
        command.args(["deadline=20000", "warm-up=20000", "stand-by=20000", "margin=1000"]);
        command.args(keys).arg("--").args(successor);
        command
    }

    /// Writes a shell script that can stand between a driver and a daemon.
    pub fn script(&self, body: &str) -> PathBuf {
        let path = self.dir.path().join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    pub fn connect(&self) -> handoff::Result<Control> {
        Control::connect(self.control(), "test", Instant::now() + PATIENCE)
    }

    pub fn status(&self) -> handoff::Result<Status> {
        self.connect()?.status(Instant::now() + PATIENCE)
    }

    /// Waits until the daemon at the control path says so.
    pub fn await_status(&self, what: &str, of: &str, said: impl Fn(&Status) -> bool) -> Status {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.connect_briefly();
            match status {
                Some(status) if said(&status) => return status,
                status => assert!(Instant::now() < until, "{of}: not {what}: {status:?}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn connect_briefly(&self) -> Option<Status> {
        let soon = Instant::now() + BRIEFLY;
        Control::connect(self.control(), "test", soon).and_then(|mut control| control.status(soon)).ok()
    }

    /// Waits for the end of the story: one process of this rig is left, it serves, has the lock and owns the data. Returns its
    /// pid. Processes that are expected to be stopped are let out of account.
    pub fn settle(&self, stopped: &[u32]) -> u32 {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.look(stopped);
            match found.verdict() {
                Ok(pid) => return pid,
                Err(wrong) if Instant::now() > until => panic!("{wrong}\n{found:#?}\n{}", self.said()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// As [`settle`](Self::settle), and within so long from the beginning of the last swap.
    pub fn settle_within(&self, limit: Duration) -> u32 {
        let pid = self.settle(&[]);
        let took = self.since.elapsed();
        assert!(took < limit + SLACK, "it took {took:?}, which is more than {limit:?}\n{}", self.said());
        pid
    }

    /// As [`settle_within`](Self::settle_within), where perhaps nobody is left; returns whether one had to be started.
    pub fn settle_or_restart(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.look(&[]);
            if found.alive.is_empty() {
                self.restart();
                self.settle(&[]);
                return true;
            }
            if found.verdict().is_ok() || Instant::now() > until {
                self.settle_within(limit);
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn look(&self, stopped: &[u32]) -> Found {
        let mut alive = process::with_argument(&self.data());
        alive.retain(|pid| !stopped.contains(pid));
        Found {
            alive,
            answers: ask_for(self.addr(), "PID", BRIEFLY).ok().and_then(|pid| pid.trim().parse().ok()),
            status: self.connect_briefly(),
            holders: DataDirLock::who(self.data()).unwrap().iter().map(|holder| holder.pid).collect(),
            record: DataDirLock::read_record(self.data()).unwrap().record,
        }
    }

    /// Ends the load and demands that nothing that was acknowledged is lost, and that nobody was disturbed.
    pub fn expect_clean(self) {
        self.expect_ledger(|disturbed| disturbed.total() == 0);
    }

    /// As [`expect_clean`](Self::expect_clean), where the process that served was killed: what it had accepted is reset.
    pub fn expect_no_loss(self) {
        self.expect_ledger(|disturbed| disturbed.refused == 0 && disturbed.late == 0);
    }

    fn expect_ledger(mut self, fair: impl Fn(&Disturbed) -> bool) {
        let load = self.load.take().unwrap();
        // Whoever serves now does serve.
        load.await_more(5);
        let ledger = load.stop();
        let all = ask(self.addr(), "ALL").unwrap();
        let found: std::collections::HashSet<&str> = all.split_whitespace().collect();
        let lost: Vec<&String> =
            ledger.acknowledged.iter().filter(|id| !found.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "of {} writes {} are lost: {lost:?}", ledger.acknowledged.len(), lost.len());
        assert!(fair(&ledger.disturbed), "{:?}\n{}", ledger.disturbed, self.said());
    }

    fn said(&self) -> String {
        let mut said = String::from("the first one said:\n");
        for line in self.first.lines() {
            let _ = writeln!(said, "  {line}");
        }
        said
    }
}

impl Drop for Rig {
    /// Nothing outlives its test, whatever came of it.
    fn drop(&mut self) {
        drop(self.load.take());
        for pid in process::with_argument(&self.data()) {
            process::signal(pid, "KILL");
        }
    }
}

/// What is true of a rig's processes.
#[derive(Debug)]
struct Found {
    alive: Vec<u32>,
    answers: Option<u32>,
    status: Option<Status>,
    holders: Vec<u32>,
    record: Option<OwnerRecord>,
}

impl Found {
    fn verdict(&self) -> Result<u32, &'static str> {
        let [alive] = self.alive[..] else { return Err("not exactly one process is left") };
        let Some(status) = &self.status else { return Err("nobody answers at the control path") };
        let Some(record) = &self.record else { return Err("there is no owner record") };
        let is_owner = record.owner.pid == alive && record.owner.start_ticks == status.process.start_ticks;
        match () {
            () if self.answers != Some(alive) => Err("it does not serve"),
            () if status.process.pid != alive => Err("another process answers at the control path"),
            () if status.phase != "serving" || status.handoff.is_some() => Err("a handoff is still going on"),
            () if self.holders != [alive] => Err("the lock is not held by the one that serves"),
            () if !is_owner || record.standing != Standing::Final => {
                Err("the owner record is of somebody else")
            }
            () => Ok(alive),
        }
    }
}

/// The socket is standard input for a moment: a shell can put it where it belongs, and knows the pid.
pub fn cold_start(dir: &Path, listener: &TcpListener, program: &str, args: &[&str]) -> Process {
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(example(program));
    command.arg(dir.join("control")).arg(dir.join("data")).args(args);
    command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    Process::start(&mut command)
}
