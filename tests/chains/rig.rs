//! A kvd with a load, the programs that a chain finds in its PATH, and what must be true in the end.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::control::Control;
use handoff::proto::record::Standing;
use handoff::proto::wire::Status;

use crate::common::load::{Answer, Connection, Counts, Load, Plan};
use crate::common::{HANDOFF, PATIENCE, eventually, wait_for_exit};

/// The next version of the daemon: it goes by another name, and fails as it is told to.
const KVD_V2: &str = "#!/bin/sh
if [ \"$1\" = kvd ]; then shift; fi
until [ -z \"$KVD_WAITS_FOR\" ] || [ -e \"$KVD_WAITS_FOR\" ]; do sleep 0.01; done
exec handoff kvd --version-label v2 $KVD_FAIL \"$@\"
";
/// A daemon that is started with no more than its environment.
const KVD: &str = "#!/bin/sh\nexec handoff kvd --name http\n";
/// A link at which a chain stops, until it is killed.
const CUT: &str = "#!/bin/sh\necho cut $$\nexec sleep 600\n";

/// How long whoever is looked at may take to answer; it is looked at again.
const BRIEFLY: Duration = Duration::from_millis(500);

/// A data directory, the daemon that was started first, and its load.
pub struct Rig {
    dir: tempfile::TempDir,
    pub first: Option<Run>,
    pub addr: SocketAddr,
    load: Option<Load>,
    runs: AtomicU32,
}

impl Rig {
    /// Starts a kvd, and a load on it.
    pub fn start(args: &[&str]) -> Self {
        let mut rig = Self::prepare();
        let mut words = vec!["handoff", "kvd", "--listen", "127.0.0.1:0", "--data-dir"];
        let data = rig.data();
        words.push(data.to_str().unwrap());
        words.extend(args);
        rig.begin(&words, &[]);
        rig
    }

    /// What it takes to start one.
    pub fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        std::os::unix::fs::symlink(HANDOFF, bin.join("handoff")).unwrap();
        for (name, text, mode) in [
            ("kvd", KVD, 0o755),
            ("kvd-v2", KVD_V2, 0o755),
            ("cut", CUT, 0o755),
            ("not-executable", CUT, 0o644),
        ] {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        Self { dir, first: None, addr: ([127, 0, 0, 1], 0).into(), load: None, runs: AtomicU32::new(0) }
    }

    /// Starts the first daemon, and the load.
    pub fn begin(&mut self, words: &[&str], env: &[(&str, &str)]) {
        let first = self.run_with(words, env);
        let line = first.wait_for(" serves on ");
        let addr: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
        self.addr = ([127, 0, 0, 1], addr.port()).into();
        self.first = Some(first);
        let prefix = format!("load-{}", self.runs.load(Ordering::Relaxed));
        self.load = Some(Load::start(&Plan { prefix, ..Plan::new(self.addr, 2) }).unwrap());
        self.await_writes();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn control(&self) -> PathBuf {
        self.path("data").join("control")
    }

    /// The pid of the daemon that was started first.
    pub fn first_pid(&self) -> u32 {
        self.first.as_ref().unwrap().pid()
    }

    /// A command that finds the programs and the daemon.
    fn command(&self, words: &[&str]) -> Command {
        let inherited = std::env::var("PATH").unwrap();
        let path = format!("{}:{inherited}", self.path("bin").display());
        // Looked up there too.
        let (program, args) = words.split_first().unwrap();
        let own = self.path("bin").join(program);
        let mut command = if own.exists() { Command::new(own) } else { Command::new(program) };
        command
            .args(args)
            .env("PATH", path)
            .env("HANDOFF_CONTROL", self.control())
            .env("HANDOFF_JOURNAL", self.path("journal"))
            .env_remove("HANDOFF_LOG")
            .env_remove("RUST_LOG");
        command
    }

    /// Starts a program; what it says goes to a file, which nobody has to read.
    pub fn run_with(&self, words: &[&str], env: &[(&str, &str)]) -> Run {
        let mut command = self.command(words);
        command.envs(env.iter().copied());
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let said = self.path(&format!("said-{number}"));
        let file = fs::File::create(&said).unwrap();
        command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
        Run { child: command.spawn().unwrap(), said }
    }

    /// Starts what a shell is to run; a single command it becomes.
    pub fn sh(&self, script: &str) -> Run {
        self.sh_with(script, &[])
    }

    pub fn sh_with(&self, script: &str, env: &[(&str, &str)]) -> Run {
        self.run_with(&["sh", "-c", script], env)
    }

    /// Runs what a shell is to run to its end, in a successor's place with this fault, and demands this exit code.
    #[track_caller]
    pub fn expect(&self, script: &str, code: i32) -> String {
        self.expect_with(script, &[], code)
    }

    #[track_caller]
    pub fn expect_with(&self, script: &str, env: &[(&str, &str)], code: i32) -> String {
        let mut run = self.sh_with(script, env);
        drop(run.child.stdin.take());
        let status = run.wait();
        assert_eq!(status.code(), Some(code), "{script}: {status} {}", run.said());
        run.said()
    }

    pub fn status(&self) -> Option<Status> {
        let soon = Instant::now() + BRIEFLY;
        Control::connect(self.control(), "test", soon).and_then(|mut control| control.status(soon)).ok()
    }

    /// Waits until the daemon is in this phase.
    pub fn await_phase(&self, phase: &str) -> Status {
        let mut found = None;
        eventually(phase, || {
            found = self.status();
            found.as_ref().is_some_and(|status| status.phase == phase)
        });
        found.unwrap()
    }

    /// Waits until more writes are acknowledged.
    pub fn await_writes(&self) {
        let load = self.load.as_ref().unwrap();
        let before = load.counts().acknowledged;
        let until = Instant::now() + PATIENCE;
        while load.counts().acknowledged <= before + 4 {
            assert!(Instant::now() < until, "no writes: {:?}\n{}", load.counts(), self.everything_said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks the store itself which version it is.
    pub fn label(&self) -> String {
        let mut connection = Connection::open(self.addr, PATIENCE).unwrap();
        let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).unwrap() else {
            panic!("INFO has no text")
        };
        let info = String::from_utf8(info).unwrap();
        info.lines().find_map(|line| line.strip_prefix("build_id:")).unwrap().trim().to_owned()
    }

    /// Waits for the end of the story, and returns the pid of the one that is left.
    #[track_caller]
    pub fn settle(&self) -> u32 {
        self.settle_beside(&[])
    }

    /// As [`settle`](Self::settle), where these are known to be alive besides.
    #[track_caller]
    pub fn settle_beside(&self, known: &[u32]) -> u32 {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.look(known);
            match found {
                Ok(pid) => {
                    self.await_writes();
                    return pid;
                }
                Err(wrong) => assert!(Instant::now() < until, "{wrong}\n{}", self.everything_said()),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn look(&self, known: &[u32]) -> Result<u32, String> {
        let Some(status) = self.status() else { return Err("nobody answers".to_owned()) };
        let pid = status.process.pid;
        if status.phase != "serving" || status.handoff.is_some() {
            return Err(format!("a handoff goes on: {}", status.phase));
        }
        let alive: Vec<u32> = self.alive().into_iter().filter(|pid| !known.contains(pid)).collect();
        if alive != [pid] {
            return Err(format!("{pid} serves, and these are alive: {}", commands(&alive)));
        }
        let holders: Vec<u32> =
            DataDirLock::who(self.data()).unwrap().iter().map(|holder| holder.pid).collect();
        if holders != [pid] {
            return Err(format!("{pid} serves, and the lock is held by {holders:?}"));
        }
        let record = DataDirLock::read_record(self.data()).unwrap().record;
        let is_owner = |record: &handoff::proto::record::OwnerRecord| {
            record.owner.pid == pid && record.standing == Standing::Final
        };
        if !record.as_ref().is_some_and(is_owner) {
            return Err(format!("{pid} serves, and the owner record is {record:?}"));
        }
        match children_of(pid) {
            children if children.is_empty() => Ok(pid),
            children => Err(format!("{pid} serves, and has the children {}", commands(&children))),
        }
    }

    /// The incumbent serves, and nothing is left of what was tried.
    #[track_caller]
    pub fn expect_undone(&self) {
        assert_eq!(self.settle(), self.first_pid(), "{}", self.everything_said());
    }

    /// The next version serves. Returns its pid.
    #[track_caller]
    pub fn expect_succeeded(&mut self) -> u32 {
        let first = self.first.as_mut().unwrap();
        let status = first.wait();
        assert_eq!(status.code(), Some(0), "{}", self.everything_said());
        let pid = self.settle();
        assert_eq!(self.label(), "v2");
        pid
    }

    /// The processes of this rig that are alive.
    pub fn alive(&self) -> Vec<u32> {
        let mine = self.dir.path().as_os_str().as_bytes();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_mine = |pid: &u32| {
            let names =
                |file: &str| fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|text| contains(&text, mine));
            names("environ") || names("cmdline")
        };
        pids.filter(is_mine).collect()
    }

    /// Ends the load: everything that was acknowledged is there, and nobody noticed anything.
    #[track_caller]
    pub fn expect_clean(mut self) {
        let counts = self.ledger();
        assert_eq!(counts.disturbances(), 0, "{counts:?}\n{}", self.everything_said());
    }

    /// As [`expect_clean`](Self::expect_clean), where somebody was killed that had accepted connections.
    #[track_caller]
    pub fn expect_no_loss(mut self) {
        let counts = self.ledger();
        let bad = (counts.refused, counts.timed_out, counts.errors, counts.contradictions);
        assert_eq!(bad, (0, 0, 0, 0), "{counts:?}\n{}", self.everything_said());
    }

    /// Ends the load where nobody serves for now.
    pub fn stop_load(&mut self) -> crate::common::load::Ledger {
        self.load.take().unwrap().stop()
    }

    fn ledger(&mut self) -> Counts {
        self.await_writes();
        let ledger = self.load.take().unwrap().stop();
        let found = ledger.read_back(self.addr).unwrap();
        assert_eq!(found.lost, 0, "{found}\n{}", self.everything_said());
        assert!(found.checked > 0);
        ledger.counts
    }

    /// The socket that serves, as a link in /proc leads to it.
    pub fn listening_inode(&self) -> String {
        let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{:04X}", self.addr.port());
        let listens = |fields: &Vec<&str>| fields[1].ends_with(&port) && fields[3] == "0A";
        let mut lines = tcp.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let fields = lines.find(listens).unwrap();
        format!("socket:[{}]", fields[9])
    }

    pub fn everything_said(&self) -> String {
        let said = (0..self.runs.load(Ordering::Relaxed)).map(|number| {
            let text = fs::read(self.path(&format!("said-{number}"))).unwrap_or_default();
            format!("--- {number}\n{}", String::from_utf8_lossy(&text))
        });
        said.collect()
    }
}

impl Drop for Rig {
    /// Nothing outlives its test.
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let alive = self.alive();
            alive.iter().for_each(|pid| signal(*pid, "KILL"));
            if alive.is_empty() || Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(load) = self.load.take() {
            // Its requests end: nobody is left who could leave them open.
            drop(load.stop());
        }
    }
}

/// A program that was started, and what it and those who write for it have said.
pub struct Run {
    pub child: Child,
    said: PathBuf,
}

impl Run {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its pid, once it has become this program.
    pub fn pid_when_running(&self, program: &str) -> u32 {
        eventually(program, || runs(self.pid(), program));
        self.pid()
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.said).unwrap()).into_owned()
    }

    /// Waits for a line that contains this, and returns it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = self.said();
            let whole = said.rfind('\n').map_or("", |end| &said[..end]);
            if let Some(line) = whole.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "no line with {text:?} in: {said}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
    }

    /// Types a command whose exit code is then said, and returns that.
    #[track_caller]
    pub fn asks(&mut self, line: &str, mark: &str) -> i32 {
        self.types(&format!("{line}; echo {mark}=$?"));
        self.wait_for(&format!("{mark}=")).rsplit('=').next().unwrap().parse().unwrap()
    }

    /// Ends its input: a shell leaves.
    pub fn leave(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn kill(&mut self) {
        signal(self.pid(), "KILL");
        assert_eq!(self.wait().signal(), Some(9), "{}", self.said());
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child)
    }

    #[track_caller]
    pub fn expect(&mut self, code: i32) {
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "{status} {}", self.said());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, name: &str) {
    // It may have ended already.
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status();
}

/// All children, also those that are dead and were not waited for.
pub fn children_of(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|text| text.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn commands(pids: &[u32]) -> String {
    let command = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid} ({})", String::from_utf8_lossy(&line).replace('\0', " "))
    };
    pids.iter().map(command).collect::<Vec<_>>().join(", ")
}

/// Where a process's descriptors lead to, without the standard ones.
pub fn descriptors(pid: u32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut found: Vec<(i32, String)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .filter(|(number, _)| *number > 2)
        .collect();
    found.sort();
    found
}

/// The names of the variables that a process was started with.
pub fn variables(pid: u32) -> Vec<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let name = |entry: &[u8]| String::from_utf8_lossy(entry).split('=').next().unwrap().to_owned();
    let mut names: Vec<String> =
        environ.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()).map(name).collect();
    names.sort();
    names
}

/// A chain of these links of ours.
pub fn chain(links: &[&str]) -> String {
    links.iter().map(|link| format!("handoff {link}")).collect::<Vec<_>>().join(" -- ")
}

/// The same, cut before the link of this number by another program.
pub fn cut_chain(links: &[&str], at: usize, cutter: &str) -> String {
    format!("exec {} -- {cutter}", chain(&links[..at]))
}

/// Whether a process runs a program with this argument.
pub fn runs(pid: u32, argument: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
}
