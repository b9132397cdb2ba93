//! A stateful daemon whose every step can be made to fail: what the tests of failures run.
//!
//! `probe CONTROL DATA_DIR [at=POINT:WHAT]... [say=READINESS] [limit=KEY:MS]...`
//!
//! One connection carries one line and its answer: `ADD ID` writes an id to the log durably, `ALL` lists the ids, `PID` tells
//! the process. Points: start, warm, begun, locked, opened, granted, serving, drain, stopped (a drain that has stopped
//! accepting), seal, resume, ended. At each that is named, `probe PID at POINT` is written to standard error, and then this happens:
//! kill, stop, hang, exit, panic, error, full, wait (for the file `go` beside the data directory), sleep-MS, or mark.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use handoff::drainable::ReadinessSnapshot;
use handoff::sys::poll::{self, Waker, Want};
use handoff::{
    DataDirLock, DrainReport, Drainable, Incumbent, Limits, Role, SealReport, Served, StateSnapshot,
    detect_role,
};

/// Writes a line in one piece: several processes share the pipe.
macro_rules! say {
    ($($part:tt)*) => {{
        let line = format!("{}\n", format_args!($($part)*));
        // Who reads it may be gone.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

/// Of the data directory: a successor that says another one has opened something else. All zeros would not be compared.
const FINGERPRINT: [u8; 32] = [1; 32];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say!("probe {}: {e}", std::process::id());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let plan = Arc::new(Plan::from_args()?);
    plan.reach("start")?;
    plan.check_listen_vars();
    let started = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            let listener = inherited.take("http").ok_or("a cold start needs the listener http")?;
            let lock = DataDirLock::acquire_or_break_stale(&plan.data)?;
            plan.start_helper(&lock)?;
            let store = Store::open(&plan.data)?;
            let incumbent =
                Incumbent::bind_cold_start(&plan.control, lock)?.with_listener("http", &listener)?;
            (incumbent, listener, store)
        }
        Role::Successor(successor) => take_over(&plan, successor)?,
    };
    let (incumbent, listener, store) = started;
    let daemon = Daemon::start(Arc::clone(&plan), store, listener)?;
    plan.reach_later("serving");
    match incumbent.with_limits(plan.limits()).serve(Arc::clone(&daemon))? {
        Served::Superseded(superseded) => Err(superseded.exec().into()),
        Served::Committed { .. } | Served::Retired { .. } | Served::SteppedDown { .. } | Served::Stopped => {
            plan.reach("ended")?;
            Ok(())
        }
    }
}

type Started = (Incumbent, TcpListener, Store);

fn take_over(plan: &Plan, successor: handoff::Successor) -> Result<Started, Box<dyn Error>> {
    let successor = successor.handshake(vec![])?;
    plan.reach("warm")?;
    let mut successor = successor.wait_for_begin()?;
    plan.reach("begun")?;
    let listener = successor.take_listener("http").ok_or("no listener was passed")?;
    let lock = DataDirLock::acquire(&plan.data)?;
    plan.reach("locked")?;
    let store = Store::open(&plan.data)?;
    plan.reach("opened")?;
    let revision = store.revision();
    let readiness = ReadinessSnapshot {
        listening_on: vec![listener.local_addr()?.to_string()],
        healthz_ok: !plan.says("unhealthy"),
        advertised_revision_per_shard: vec![if plan.says("stale") {
            revision.saturating_sub(1)
        } else {
            revision
        }],
    };
    if plan.says("fingerprint") {
        successor = successor.with_fingerprint([7; 32]);
    }
    let incumbent = successor.announce_and_bind(readiness, &plan.control, lock)?;
    plan.reach("granted")?;
    Ok((incumbent, listener, store))
}

/// What is to go wrong, and where.
struct Plan {
    control: PathBuf,
    data: PathBuf,
    at: Vec<(String, String)>,
    says: Vec<String>,
    limits: Vec<(String, u64)>,
}

impl Plan {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        let mut args = std::env::args().skip(1);
        let mut path = || args.next().map(PathBuf::from).ok_or("usage: probe CONTROL DATA_DIR [OPTION]...");
        let (control, data) = (path()?, path()?);
        let mut plan = Self { control, data, at: vec![], says: vec![], limits: vec![] };
        for arg in args {
            match arg.split_once('=').ok_or(format!("{arg}: expected NAME=VALUE"))? {
                ("at", fault) => {
                    let (point, what) =
                        fault.split_once(':').ok_or(format!("{fault}: expected POINT:WHAT"))?;
                    plan.at.push((point.to_owned(), what.to_owned()));
                }
                ("say", what) => plan.says.push(what.to_owned()),
                ("limit", limit) => {
                    let (key, ms) = limit.split_once(':').ok_or(format!("{limit}: expected KEY:MS"))?;
                    plan.limits.push((key.to_owned(), ms.parse()?));
                }
                _ => return Err(format!("{arg}: unknown option").into()),
            }
        }
        Ok(plan)
    }

    fn says(&self, what: &str) -> bool {
        self.says.iter().any(|said| said == what)
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for (key, ms) in &self.limits {
            match key.as_str() {
                "step-down" => limits.step_down = Duration::from_millis(*ms),
                "fence" => limits.fence = Duration::from_millis(*ms),
                other => panic!("unknown limit {other}"),
            }
        }
        limits
    }

    /// A daemon that reads the variables of sd_listen_fds(3) itself, before the library does.
    fn check_listen_vars(&self) {
        if self.says("listen-fds") {
            let var = |name| std::env::var(name).unwrap_or_default();
            let meant = var("LISTEN_PID") == std::process::id().to_string();
            say!("probe {} listen-fds {} {meant}", std::process::id(), var("LISTEN_FDS"));
        }
    }

    /// A process that has a copy of the lock's descriptor, and outlives this one.
    fn start_helper(&self, lock: &DataDirLock) -> Result<(), Box<dyn Error>> {
        if self.says("helper") {
            let mut helper = Command::new("sh");
            helper.args(["-c", "exec <&0; while :; do sleep 600 <&-; done", "helper"]).arg(&self.data);
            let helper = helper.stdin(lock.try_clone_fd()?).stderr(std::process::Stdio::null()).spawn()?;
            say!("probe {} at helping", helper.id());
        }
        Ok(())
    }

    fn reach(&self, point: &str) -> handoff::Result<()> {
        for (_, what) in self.at.iter().filter(|(at, _)| at == point) {
            say!("probe {} at {point}", std::process::id());
            self.suffer(what)?;
        }
        Ok(())
    }

    /// On a thread of its own, beside the one that serves.
    fn reach_later(self: &Arc<Self>, point: &'static str) {
        let plan = Arc::clone(self);
        std::thread::spawn(move || {
            if let Err(e) = plan.reach(point) {
                say!("probe: {e}");
                std::process::exit(1);
            }
        });
    }

    fn suffer(&self, what: &str) -> handoff::Result<()> {
        match what {
            "mark" => Ok(()),
            "kill" => signal("KILL"),
            "stop" => signal("STOP"),
            "hang" => loop {
                std::thread::park();
            },
            "exit" => std::process::exit(0),
            "panic" => panic!("as asked"),
            "error" => Err(handoff::Error::hook("as asked")),
            "full" => self.fill(),
            "wait" => {
                let go = self.data.with_file_name("go");
                while !go.exists() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
            other => match other.strip_prefix("sleep-").and_then(|ms| ms.parse().ok()) {
                Some(ms) => {
                    std::thread::sleep(Duration::from_millis(ms));
                    Ok(())
                }
                None => panic!("unknown fault {other}"),
            },
        }
    }

    /// Writes until the disk is full, which is what a seal that flushes its memory would find.
    fn fill(&self) -> handoff::Result<()> {
        let path = self.data.join("filling");
        let mut file = File::create(&path)?;
        loop {
            if let Err(e) = file.write_all(&[0; 4096]) {
                std::fs::remove_file(path)?;
                return Err(e.into());
            }
        }
    }
}

/// SIGSTOP returns when somebody continues the process.
fn signal(name: &str) -> handoff::Result<()> {
    Command::new("kill").arg(format!("-{name}")).arg(std::process::id().to_string()).status()?;
    Ok(())
}

/// The ids that were written, in a file of lines.
struct Store {
    path: PathBuf,
    file: File,
    ids: Vec<String>,
}

impl Store {
    /// Reads, and creates only what is not there: a successor must not write.
    fn open(data: &Path) -> std::io::Result<Self> {
        let path = data.join("log");
        let mut file = File::options().read(true).append(true).create(true).open(&path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(Self { path, file, ids: text.lines().map(str::to_owned).collect() })
    }

    fn revision(&self) -> u64 {
        self.ids.len() as u64
    }

    fn add(&mut self, id: &str) -> std::io::Result<()> {
        self.file.write_all(format!("{id}\n").as_bytes())?;
        self.file.sync_data()?;
        self.ids.push(id.to_owned());
        Ok(())
    }
}

/// One thread that accepts and answers, and can be made to pause between two requests.
struct Daemon {
    plan: Arc<Plan>,
    store: Mutex<Store>,
    gate: Mutex<Gate>,
    moved: Condvar,
    waker: Waker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closing,
    Closed,
}

impl Daemon {
    fn start(plan: Arc<Plan>, store: Store, listener: TcpListener) -> std::io::Result<Arc<Self>> {
        let daemon = Arc::new(Self {
            plan,
            store: Mutex::new(store),
            gate: Mutex::new(Gate::Open),
            moved: Condvar::new(),
            waker: Waker::new()?,
        });
        let serving = Arc::clone(&daemon);
        std::thread::spawn(move || serving.accept(&listener));
        Ok(daemon)
    }

    fn accept(&self, listener: &TcpListener) {
        loop {
            self.pass_gate();
            let sources = [(listener.as_fd(), Want::Read), (self.waker.as_fd(), Want::Read)];
            let ready = poll::wait(&sources, None).expect("two open descriptors can be polled");
            self.waker.clear();
            if !ready[0] || *self.gate.lock().expect("no panic under it") != Gate::Open {
                continue;
            }
            let answered = listener.accept().and_then(|(connection, _)| self.answer(connection));
            if let Err(e) = answered {
                // Descriptors may have run out; without a pause the log would.
                say!("probe: {e}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn pass_gate(&self) {
        let mut gate = self.gate.lock().expect("no panic under it");
        while *gate != Gate::Open {
            *gate = Gate::Closed;
            self.moved.notify_all();
            gate = self.moved.wait(gate).expect("no panic under it");
        }
    }

    fn answer(&self, mut connection: TcpStream) -> std::io::Result<()> {
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut line = String::new();
        BufReader::new(&connection).read_line(&mut line)?;
        let mut store = self.store.lock().expect("no panic under it");
        match line.trim_end().split_once(' ') {
            Some(("ADD", id)) => {
                store.add(id)?;
                writeln!(connection, "OK")
            }
            _ if line == "ALL\n" => writeln!(connection, "{}", store.ids.join(" ")),
            _ => writeln!(connection, "{}", std::process::id()),
        }
    }

    fn close_gate(&self) {
        let mut gate = self.gate.lock().expect("no panic under it");
        *gate = if *gate == Gate::Open { Gate::Closing } else { *gate };
        self.waker.ring();
        while *gate != Gate::Closed {
            gate = self.moved.wait(gate).expect("no panic under it");
        }
    }
}

impl Drainable for Daemon {
    fn drain(&self, _deadline: Instant) -> handoff::Result<DrainReport> {
        self.plan.reach("drain")?;
        self.close_gate();
        self.plan.reach("stopped")?;
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> handoff::Result<SealReport> {
        self.plan.reach("seal")?;
        let revision = self.store.lock().expect("no panic under it").revision();
        Ok(SealReport { last_revision_per_shard: vec![revision], data_dir_fingerprint: FINGERPRINT })
    }

    fn resume_after_abort(&self) -> handoff::Result<()> {
        self.plan.reach("resume")?;
        let mut store = self.store.lock().expect("no panic under it");
        *store = Store::open(store.path.parent().expect("it was joined"))?;
        *self.gate.lock().expect("no panic under it") = Gate::Open;
        self.moved.notify_all();
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 1, open_conns: 0, last_revision_per_shard: vec![] }
    }
}
