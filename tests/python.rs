//! Swaps between `tests/examples/counter.rs` and the counter in `tests/python`, which speaks the protocol with Python's standard library.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{HANDOFF, PATIENCE, Serving, eventually, example, run_to_end, wait_for_exit};
use handoff::DataDirLock;
use handoff::control::Control;
use handoff::proto::record::Standing;
use handoff::proto::wire::Status;
use handoff::supervisor::{HandoffOutcome, SpawnSpec, Supervisor};

/// Where the programs are.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python");

/// Prints the interpreter itself: what is called python3 may be a script that looks for one.
const WHICH: &str =
    "import os, sys; assert sys.version_info >= (3, 10); print(os.readlink('/proc/self/exe'))";

/// Returns the interpreter; says loudly that a test is skipped if there is none, and fails in CI.
fn python() -> Option<PathBuf> {
    let found = Command::new("python3").args(["-c", WHICH]).output();
    if let Ok(output) = found.as_ref()
        && output.status.success()
    {
        return Some(PathBuf::from(String::from_utf8(output.stdout.clone()).unwrap().trim()));
    }
    eprintln!("skipped: needs python3 (3.10 or later)");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have python3: {found:?}");
    None
}

/// What to start: a program and its arguments.
type Program = (PathBuf, Vec<String>);

/// A data directory, the daemon that was started first, and what it takes to swap it.
struct Rig {
    dir: tempfile::TempDir,
    python: PathBuf,
    address: SocketAddr,
    first: Serving,
    serving: Option<Serving>,
}

impl Rig {
    /// Starts the counter in Rust.
    fn rust(python: &Path) -> Self {
        Self::start(python, Self::in_rust)
    }

    /// Starts the incumbent in Python, after this code.
    fn python(python: &Path, before: &str) -> Self {
        Self::start(python, |rig| rig.script("incumbent", before))
    }

    fn start(python: &Path, program: impl FnOnce(&Self) -> Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let nothing = Command::new("true").spawn().unwrap();
        let python = python.to_owned();
        let mut rig = Self { dir, python, address: a_free_address(), first: Serving(nothing), serving: None };
        let first = rig.run(program(&rig));
        let mut nothing = std::mem::replace(&mut rig.first, Serving(first));
        nothing.0.wait().unwrap();
        rig.expect_owner(rig.first.0.id());
        rig
    }

    fn run(&self, (program, args): Program) -> Child {
        Command::new(program).args(args).spawn().unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn args(&self) -> [String; 3] {
        [self.path("control"), self.path("data"), self.address.to_string()]
    }

    fn in_rust(&self) -> Program {
        (example("counter"), self.args().to_vec())
    }

    fn in_python(&self) -> Program {
        self.after("")
    }

    /// A successor in Python, after code that makes it fail.
    fn after(&self, before: &str) -> Program {
        self.script("successor", before)
    }

    /// One of the two programs; after code that changes it, where there is any.
    fn script(&self, name: &str, before: &str) -> Program {
        // Not compiled into files beside the sources.
        let mut args = vec!["-B".to_owned()];
        if before.is_empty() {
            args.push(format!("{HERE}/{name}.py"));
        } else {
            let run = format!("runpy.run_path('{HERE}/{name}.py', run_name='__main__')");
            let code = format!("import os, runpy, sys, time; sys.path.insert(0, '{HERE}')\n{before}\n{run}");
            args.extend(["-c".to_owned(), code]);
        }
        args.extend(self.args());
        (self.python.clone(), args)
    }

    fn swap(&self, (binary, args): Program, change: impl FnOnce(&mut SpawnSpec)) -> HandoffOutcome {
        let mut spec = SpawnSpec {
            binary,
            args,
            drain_grace: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            ..SpawnSpec::default()
        };
        change(&mut spec);
        Supervisor::new(self.path("control")).unwrap().perform_handoff(spec).unwrap()
    }

    /// Swaps, and demands that the new process serves and the one before it has ended.
    fn commit(&mut self, program: Program) {
        let shown = format!("{program:?}");
        let outcome = self.swap(program, |_| {});
        assert!(outcome.committed, "{shown}: {outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        self.expect_owner(next.0.id());
        let mut before = self.serving.replace(next);
        let before = &mut before.as_mut().unwrap_or(&mut self.first).0;
        assert_eq!(wait_for_exit(before).code(), Some(0));
    }

    /// Swaps, and demands that the successor comes to nothing.
    fn roll_back(&self, program: Program, change: impl FnOnce(&mut SpawnSpec)) -> String {
        let shown = format!("{program:?}");
        let before = self.status().process;
        let outcome = self.swap(program, change);
        assert!(!outcome.committed && outcome.child.is_none(), "{shown}: {outcome:#?}");
        let status = self.status();
        assert_eq!((status.process, status.locked), (before.clone(), true), "{shown}");
        self.expect_owner(before.pid);
        outcome.abort_reason.unwrap().to_string()
    }

    fn status(&self) -> Status {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = Control::connect(self.path("control"), "test", until);
            match asked.and_then(|mut control| control.status(until)) {
                Ok(status) => return status,
                // It has just started, or handed over: whoever follows answers.
                Err(e) => assert!(Instant::now() < until, "{e}"),
            }
        }
    }

    /// Demands that this process answers, serves, holds the lock and owns the data for good.
    fn expect_owner(&self, pid: u32) {
        eventually("its word that it serves", || {
            let status = self.status();
            status.process.pid == pid && status.phase == "serving" && status.locked
        });
        let record = DataDirLock::read_record(self.path("data")).unwrap();
        assert!(record.torn.is_empty(), "{record:?}");
        let record = record.record.unwrap();
        let own = (record.owner.pid, record.standing, record.generation);
        assert_eq!(own, (pid, Standing::Final, self.status().generation));
        let holders = DataDirLock::who(self.path("data")).unwrap();
        assert_eq!(holders.iter().map(|holder| holder.pid).collect::<Vec<_>>(), [pid]);
    }

    fn load(&self) -> Load {
        Load::start(self.address)
    }

    /// Returns the answer; nothing if the connection ended without one.
    fn ask(&self, request: &str) -> String {
        ask(self.address, request).unwrap()
    }
}

/// The counter takes an address and not a port of the kernel's choice. These are below those that the kernel gives to
/// clients (net.ipv4.ip_local_port_range), so none of them takes it before the counter does.
fn a_free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 450).unwrap() * 20;
    let addresses = std::iter::repeat_with(|| {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        SocketAddr::from(([127, 0, 0, 1], port))
    });
    addresses
        .take(1000)
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port among a thousand")
}

fn ask(address: SocketAddr, request: &str) -> std::io::Result<String> {
    answer_on(TcpStream::connect(address)?, request)
}

fn answer_on(stream: TcpStream, request: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(&stream, "{request}")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Clients that increment, one connection after another, and a ledger of what they were told.
struct Load {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Ledger>>,
}

#[derive(Default)]
struct Ledger {
    answers: Vec<u64>,
    refused: u64,
    unanswered: u64,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = || {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut ledger = Ledger::default();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(stream) = TcpStream::connect(address) else {
                        ledger.refused += 1;
                        continue;
                    };
                    // One that is silent for too long while its daemon drains gets no answer.
                    match answer_on(stream, "incr").unwrap_or_default().parse() {
                        Ok(value) => {
                            ledger.answers.push(value);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) => ledger.unanswered += 1,
                    }
                }
                ledger
            })
        };
        let clients = (0..4).map(|_| client()).collect();
        Self { address, stop, answered, clients }
    }

    /// Waits until so many more were answered.
    fn goes_on(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("increments", || self.answered.load(Ordering::Relaxed) >= before + more);
    }

    /// Demands that every increment that was answered is on disk, and counted once, and that nobody was refused.
    fn expect_clean(self) {
        self.goes_on(50);
        self.stop.store(true, Ordering::Relaxed);
        let ledgers: Vec<Ledger> = self.clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert_eq!(ledgers.iter().map(|ledger| ledger.refused).sum::<u64>(), 0, "refused");
        let mut answers: Vec<u64> = ledgers.iter().flat_map(|ledger| ledger.answers.clone()).collect();
        let answered = answers.len() as u64;
        answers.sort_unstable();
        answers.dedup();
        assert_eq!(answers.len() as u64, answered, "no value was given twice");
        let value: u64 = ask(self.address, "get").unwrap().parse().unwrap();
        let unanswered = ledgers.iter().map(|ledger| ledger.unanswered).sum::<u64>();
        assert!(
            (answered..=answered + unanswered).contains(&value) && answers.last() <= Some(&value),
            "{answered} answered, {unanswered} not, the last {:?}, and it is {value}",
            answers.last()
        );
    }
}

/// Code that does something when a message of this kind is to be sent: before or after it.
fn when_sending(kind: &str, before: &str, after: &str) -> String {
    format!(
        "import handoff\n\
         send = handoff.Peer.send\n\
         def changed(self, type, *more, **fields):\n    \
             if type == '{kind}': {before}\n    \
             send(self, type, *more, **fields)\n    \
             if type == '{kind}': {after}\n\
         handoff.Peer.send = changed"
    )
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn increments_are_kept_through_swaps_in_every_direction() {
    let Some(python) = python() else { return };
    let mut rig = Rig::rust(&python);
    let load = rig.load();
    for round in 1..=9 {
        load.goes_on(50);
        let next = match round {
            // Rust to Python, Python to Python, Python to Rust, and again.
            3 | 6 | 9 => rig.in_rust(),
            _ => rig.in_python(),
        };
        rig.commit(next);
    }
    load.expect_clean();
}

#[test]
fn a_python_incumbent_starts_from_nothing_and_its_data_outlives_its_death() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(&python, "");
    let load = rig.load();
    load.goes_on(100);
    rig.commit(rig.in_python());
    load.goes_on(100);
    rig.commit(rig.in_rust());
    load.expect_clean();
    // What a supervisor would start again, one after the other.
    for program in [rig.in_python(), rig.script("incumbent", ""), rig.in_rust()] {
        let (value, generation) = (rig.ask("get"), rig.status().generation);
        drop(rig.serving.take());
        rig.serving = Some(Serving(rig.run(program)));
        rig.expect_owner(rig.serving.as_ref().unwrap().0.id());
        assert_eq!(rig.ask("get"), value);
        assert_eq!(rig.status().generation, generation + 1);
    }
}

#[test]
fn a_client_of_a_python_incumbent_gets_the_answers_to_what_it_sent_and_then_the_end() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(&python, "");
    let stream = TcpStream::connect(rig.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    (&stream).write_all(b"incr\nnonsense\n").unwrap();
    assert_eq!(lines.next().unwrap(), "1");
    assert_eq!(lines.next().unwrap(), "expected incr or get");
    (&stream).write_all(b"incr\nincr\nget\ninc").unwrap();
    assert_eq!(lines.next().unwrap(), "2");
    rig.commit(rig.in_python());
    assert_eq!(
        [lines.next(), lines.next(), lines.next()],
        [Some("3".to_owned()), Some("3".to_owned()), None]
    );
    assert_eq!(rig.ask("get"), "3", "what was cut short is no request");
}

#[test]
fn handoff_status_shows_a_python_incumbent() {
    let Some(python) = python() else { return };
    let rig = Rig::python(&python, "");
    let status = |args: &[&str]| {
        let output = Command::new(HANDOFF)
            .args(["status", "--control", &rig.path("control")])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (shown, pid) = (status(&[]), rig.first.0.id());
    for expected in [
        format!("incumbent serving: pid {pid}, "),
        format!("record    generation 1, final, owner pid {pid} (python), "),
        format!("lock      held by pid {pid} "),
        format!("listener  tcp {}", rig.address),
        "handoff   none".to_owned(),
    ] {
        assert!(shown.contains(&expected), "no {expected:?} in\n{shown}");
    }
    assert!(status(&["--json"]).contains(&format!("\"pid\":{pid}")));
}

#[test]
fn a_bad_successor_is_rolled_back_by_a_python_incumbent() {
    let Some(python) = python() else { return };
    let rig = Rig::python(&python, "");
    let load = rig.load();
    for kind in ["hello", "waiting", "attach", "ready"] {
        let reason = rig.roll_back(rig.after(&when_sending(kind, "os._exit(7)", "pass")), |_| {});
        assert!(reason.contains("exit status: 7"), "{kind}: {reason}");
        load.goes_on(20);
    }
    let soon = |spec: &mut SpawnSpec| spec.deadline = Duration::from_secs(2);
    for (before, expected) in [
        // One that says who it is when it was undone already, and one that never opens the data.
        (when_sending("attach", "time.sleep(3)", "pass"), "deadline"),
        ("import counter\ncounter.Counter.open = lambda _: time.sleep(600)".to_owned(), "deadline"),
        (when_sending("ready", "fields['healthz_ok'] = False", "pass"), "not healthy"),
        (
            when_sending("ready", "fields['advertised_revision_per_shard'] = [0]", "pass"),
            "other data than was sealed",
        ),
        (
            when_sending("ready", "fields['data_dir_fingerprint'] = '1' * 64", "pass"),
            "other data than was sealed",
        ),
    ] {
        let reason = rig.roll_back(rig.after(&before), soon);
        assert!(reason.contains(expected), "{before}: {reason}");
        load.goes_on(20);
    }
    // One that is granted and then does nothing.
    let hangs = "import lock\nlock.Lock.write = lambda _: time.sleep(600)";
    let reason = rig.roll_back(rig.after(hangs), |spec| spec.stand_by = Duration::from_millis(500));
    assert!(reason.contains("neither served nor died"), "{reason}");
    // And in Rust: no daemon at all, one that has its data elsewhere, and one that is to be on trial.
    assert!(rig.roll_back(("false".into(), vec![]), |_| {}).contains("exit status: 1"));
    let other = tempfile::tempdir().unwrap();
    let (counter, mut args) = rig.in_rust();
    args[1] = text(other.path()).to_owned();
    rig.roll_back((counter, args), |_| {});
    load.goes_on(20);
    let mut swap = Command::new(HANDOFF);
    swap.args(["swap", "--bake", "1m", "--control", &rig.path("control")]).arg(example("counter"));
    let (code, said) = run_to_end(swap);
    assert!(code == 1 && said.contains("expected no trial"), "{code}: {said}");
    rig.expect_owner(rig.first.0.id());
    load.expect_clean();
}

#[test]
fn a_python_successor_that_dies_or_is_told_to_go_changes_nothing_for_a_rust_incumbent() {
    let Some(python) = python() else { return };
    let mut rig = Rig::rust(&python);
    let load = rig.load();
    for kind in ["hello", "waiting", "attach", "ready"] {
        let reason = rig.roll_back(rig.after(&when_sending(kind, "os._exit(7)", "pass")), |_| {});
        assert!(reason.contains("exit status: 7"), "{kind}: {reason}");
    }
    let unfit = when_sending("ready", "fields['advertised_revision_per_shard'] = [0]", "pass");
    let reason = rig.roll_back(rig.after(&unfit), |_| {});
    assert!(reason.contains("other data than was sealed"), "{reason}");
    // It says that it cannot be on trial, and the incumbent takes the data back.
    rig.roll_back(rig.in_python(), |spec| spec.bake = Some(Duration::from_secs(60)));
    load.goes_on(50);
    let left = std::fs::read_dir(rig.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
    left.sort_unstable();
    // One that was killed, or left at once, had no time to remove its own.
    left.retain(|name| !name.starts_with("control."));
    assert_eq!(left, ["control", "data"]);
    rig.commit(rig.in_python());
    load.expect_clean();
}

#[test]
fn a_python_incumbent_that_is_killed_when_it_has_sealed_is_succeeded() {
    let Some(python) = python() else { return };
    for in_rust in [true, false] {
        let mut rig = Rig::python(&python, &when_sending("sealed", "pass", "os.kill(os.getpid(), 9)"));
        let load = rig.load();
        load.goes_on(100);
        let outcome = rig.swap(if in_rust { rig.in_rust() } else { rig.in_python() }, |_| {});
        assert!(outcome.committed, "{outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        assert!(wait_for_exit(&mut rig.first.0).code().is_none(), "it was not killed");
        rig.expect_owner(next.0.id());
        load.expect_clean();
    }
}

#[test]
fn a_rust_incumbent_that_is_killed_is_succeeded_by_python() {
    let Some(python) = python() else { return };
    // While it serves, when it has sealed, and when it waits to hear what was opened.
    for kind in ["waiting", "attach", "ready"] {
        let mut rig = Rig::rust(&python);
        assert_eq!(rig.ask("incr"), "1");
        let kill = format!("os.kill({}, 9)", rig.first.0.id());
        let outcome = rig.swap(rig.after(&when_sending(kind, &kill, "pass")), |_| {});
        assert!(outcome.committed, "{kind}: {outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        assert!(wait_for_exit(&mut rig.first.0).code().is_none(), "it was not killed");
        rig.expect_owner(next.0.id());
        assert_eq!(rig.ask("incr"), "2", "{kind}");
    }
}

#[test]
fn a_successor_that_dies_with_its_record_made_is_succeeded_by_its_program_in_either_language() {
    let Some(python) = python() else { return };
    // Only a successor has a channel: the same program as a cold start does not fail.
    let dies = "import counter\nif 'channel=' in os.environ.get('HANDOFF_FDS', ''): counter.Counter.accept = lambda _: os._exit(7)";
    for in_rust in [true, false] {
        let rig = if in_rust { Rig::rust(&python) } else { Rig::python(&python, "") };
        let load = rig.load();
        load.goes_on(50);
        let outcome = rig.swap(rig.after(dies), |_| {});
        assert!(outcome.committed && outcome.child.is_none(), "{outcome:#?}");
        // In the process of the incumbent.
        rig.expect_owner(rig.first.0.id());
        let record = DataDirLock::read_record(rig.path("data")).unwrap().record.unwrap();
        assert!(record.owner.args.iter().any(|arg| arg.contains("successor.py")), "{record:?}");
        load.expect_clean();
    }
}

#[test]
fn an_incumbent_that_hangs_with_its_data_sealed_is_killed_and_succeeded() {
    let Some(python) = python() else { return };
    for in_rust in [true, false] {
        let mut rig = if in_rust { Rig::rust(&python) } else { Rig::python(&python, "") };
        assert_eq!(rig.ask("incr"), "1");
        // Each thread stops by itself.
        let stop = format!(
            "import glob\n\
             def stop(tasks='/proc/{0}/task/*/stat'):\n    \
                 os.kill({0}, 19)\n    \
                 while {{open(stat).read().rpartition(')')[2].split()[0] for stat in glob.glob(tasks)}} != {{'T'}}:\n        \
                     time.sleep(0.001)\n",
            rig.first.0.id()
        );
        let outcome = rig.swap(rig.after(&(stop + &when_sending("ready", "stop()", "pass"))), |spec| {
            spec.deadline = Duration::from_secs(2);
            spec.margin = Duration::from_millis(500);
        });
        assert!(outcome.committed, "{outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        assert!(wait_for_exit(&mut rig.first.0).code().is_none(), "it was not killed");
        rig.expect_owner(next.0.id());
        assert_eq!(rig.ask("incr"), "2");
    }
}

/// A driver by hand: lines of JSON over a socket.
struct Driver {
    lines: BufReader<UnixStream>,
}

impl Driver {
    fn connect(rig: &Rig) -> Self {
        let socket = UnixStream::connect(rig.path("control")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut driver = Self { lines: BufReader::new(socket) };
        let process = r#"{"pid":1,"start_ticks":1,"boot_id":""}"#;
        let hello = format!(
            r#"{{"type":"hello","versions":{{"min":1,"max":9}},"actor":"test","process":{process}}}"#
        );
        assert_eq!(driver.ask(&hello), "hello");
        driver
    }

    /// Sends a line, and returns the type of the next one.
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.lines.get_mut(), "{line}").unwrap();
        self.hear()["type"].as_str().unwrap().to_owned()
    }

    fn hear(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn prepare(&mut self, id: &str, deadline: Duration) -> String {
        let millis = deadline.as_millis();
        self.ask(&format!(
            r#"{{"type":"prepare","handoff":"{id}","deadline_ms":{millis},"stand_by_ms":10000}}"#
        ))
    }

    /// Demands that what anybody may ask is answered.
    fn expect_answers(&mut self) {
        for (question, answer) in
            [("status", "status-report"), ("listeners", "listener-list"), ("stdio", "stdio-copies")]
        {
            assert_eq!(self.ask(&format!(r#"{{"type":"{question}"}}"#)), answer);
        }
    }

    fn drain(&mut self) -> String {
        self.ask(r#"{"type":"drain","grace_ms":10000}"#)
    }

    fn seal(&mut self) -> String {
        self.ask(r#"{"type":"seal"}"#)
    }
}

#[test]
fn a_python_incumbent_goes_back_to_serving_from_each_phase() {
    let Some(python) = python() else { return };
    let rig = Rig::python(&python, "");
    let load = rig.load();
    let pid = rig.first.0.id();
    let mut generation = rig.status().generation;
    for phase in ["prepared", "drained", "sealed"] {
        for end in ["closed", "aborted", "deadline", "protocol", "operator"] {
            let mut driver = Driver::connect(&rig);
            let mut watch = Driver::connect(&rig);
            assert_eq!(watch.ask(r#"{"type":"watch"}"#), "accepted");
            let deadline = Duration::from_millis(if end == "deadline" { 5000 } else { 60_000 });
            assert_eq!(driver.prepare("by-hand", deadline), "prepared");
            assert!(phase == "prepared" || driver.drain() == "drained");
            assert!(phase != "sealed" || driver.seal() == "sealed");
            // The lease answers what anybody may ask, and somebody else is told that it is taken.
            driver.expect_answers();
            watch.expect_answers();
            let status = rig.status();
            assert_eq!((status.phase.as_str(), status.locked), (phase, phase != "sealed"));
            let mut other = Driver::connect(&rig);
            assert_eq!(other.prepare("another", deadline), "busy");
            assert_eq!(other.ask(r#"{"type":"seal"}"#), "refused");
            let reason = match end {
                "closed" => "lease-lost",
                "aborted" => {
                    let abort = r#"{"type":"abort","reason":"x","cause":{"kind":"not-warm"}}"#;
                    assert_eq!(driver.ask(abort), "aborted");
                    "not-warm"
                }
                "protocol" => {
                    let none =
                        if phase == "sealed" { r#"{"type":"attach"}"# } else { r#"{"type":"granted"}"# };
                    assert_eq!(driver.ask(none), "aborted");
                    "protocol"
                }
                "operator" => {
                    assert_eq!(other.ask(r#"{"type":"abort","reason":"enough"}"#), "accepted");
                    "operator"
                }
                _ => "deadline",
            };
            if end == "closed" {
                drop(driver);
            }
            let verdict = watch.hear();
            assert_eq!(
                (verdict["type"].as_str(), verdict["handoff"].as_str(), verdict["outcome"].as_str()),
                (Some("verdict"), Some("by-hand"), Some("rolled-back")),
                "{phase}, {end}"
            );
            assert_eq!(verdict["reason"]["kind"], reason, "{phase}");
            // Once the lock was let go, others may have read the record: it goes on.
            generation += u64::from(phase == "sealed");
            eventually("the end of the handoff", || rig.status().handoff.is_none());
            assert_eq!((rig.status().generation, rig.status().phase.as_str()), (generation, "serving"));
            load.goes_on(20);
        }
    }
    rig.expect_owner(pid);
    load.expect_clean();
}

#[test]
fn strangers_are_refused_by_a_python_incumbent_and_do_not_disturb_it() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(&python, "");
    let load = rig.load();
    for garbage in [
        "nonsense",
        "[1]",
        "{}",
        r#"{"type":["prepare"]}"#,
        r#"{"type":"prepare"}"#,
        r#"{"type":"prepare","handoff":"x","deadline_ms":"soon","stand_by_ms":1}"#,
        r#"{"type":"attach"}"#,
        r#"{"type":"from-the-future"}"#,
        r#"{"type":"hello","versions":{"min":7,"max":9}}"#,
    ] {
        let mut stranger = Driver::connect(&rig);
        let answer = stranger.ask(garbage);
        assert!(answer == "refused" || answer == "prepared" || answer == "aborted", "{garbage}: {answer}");
    }
    eventually("the end of what strangers began", || rig.status().handoff.is_none());
    // Also who has the lease, and then makes no sense.
    for garbage in [r#"{"type":"drain"}"#, r#"{"type":"drain","grace_ms":"soon"}"#, r#"{"type":"prepare"}"#] {
        let mut driver = Driver::connect(&rig);
        assert_eq!(driver.prepare("by-hand", PATIENCE), "prepared");
        assert_eq!(driver.ask(garbage), "aborted", "{garbage}");
        eventually("the end of the handoff", || rig.status().handoff.is_none());
        load.goes_on(20);
    }
    rig.commit(rig.in_python());
    load.expect_clean();
}

#[test]
fn a_planned_stop_ends_a_python_incumbent_and_is_told_to_those_who_watch() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(&python, "");
    assert_eq!(rig.ask("incr"), "1");
    let mut driver = Driver::connect(&rig);
    let mut watch = Driver::connect(&rig);
    assert_eq!(watch.ask(r#"{"type":"watch"}"#), "accepted");
    // Too early, it undoes.
    assert_eq!(driver.prepare("too-early", PATIENCE), "prepared");
    assert_eq!(driver.ask(r#"{"type":"retire"}"#), "aborted");
    assert_eq!(watch.hear()["outcome"], "rolled-back");
    let mut stop = Command::new(HANDOFF);
    stop.args(["drain", "--exit", "--control", &rig.path("control")]);
    let (code, said) = run_to_end(stop);
    assert_eq!(code, 0, "{said}");
    assert_eq!(watch.hear()["outcome"], "retired");
    assert_eq!(wait_for_exit(&mut rig.first.0).code(), Some(0));
    assert!(DataDirLock::who(rig.path("data")).unwrap().is_empty());
    // What comes next finds it all.
    rig.serving = Some(Serving(rig.run(rig.in_rust())));
    rig.expect_owner(rig.serving.as_ref().unwrap().0.id());
    assert_eq!(rig.ask("incr"), "2");
}

#[test]
fn a_python_successor_takes_over_in_place() {
    let Some(python) = python() else { return };
    for in_rust in [true, false] {
        let mut rig = if in_rust { Rig::rust(&python) } else { Rig::python(&python, "") };
        let load = rig.load();
        load.goes_on(50);
        // The driver has said everything and is gone when the program starts, in its place.
        let (program, args) = rig.in_python();
        let mut chain = Command::new(HANDOFF);
        chain.env("HANDOFF_CONTROL", rig.path("control")).args(["drain", "--", HANDOFF, "exec-successor"]);
        let next = Serving(chain.arg(program).args(args).stdin(Stdio::null()).spawn().unwrap());
        rig.expect_owner(next.0.id());
        assert_eq!(wait_for_exit(&mut rig.first.0).code(), Some(0));
        load.expect_clean();
    }
}

#[test]
fn a_descriptor_that_was_closed_or_used_again_is_refused_by_python_and_named() {
    let Some(python) = python() else { return };
    for (entry, is) in [("channel=0@inode:1:2", "is inode:"), ("listener.tcp=77@cookie:1", "is closed")] {
        let mut command = Command::new(&python);
        command.args(["-B", &format!("{HERE}/successor.py"), "control", "data", "127.0.0.1:0"]);
        command.env("HANDOFF_FDS", entry);
        let (code, said) = run_to_end(command);
        assert_eq!(code, 1, "{said}");
        let (name, rest) = entry.split_once('=').unwrap();
        let number = rest.split('@').next().unwrap();
        assert!(
            said.contains(&format!("descriptor {number} should be {name}")) && said.contains(is),
            "{said}"
        );
    }
}

#[test]
fn a_second_python_daemon_on_the_same_data_is_refused() {
    let Some(python) = python() else { return };
    let rig = Rig::python(&python, "");
    for (program, expected) in [
        (rig.script("incumbent", ""), "unable to lock"),
        (rig.in_python(), "unable to lock"),
        (rig.in_rust(), "counter: fatal: "),
    ] {
        let mut second = Command::new(program.0);
        second.args(program.1);
        let (code, said) = run_to_end(second);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(expected), "{said}");
    }
    rig.expect_owner(rig.first.0.id());
    assert_eq!(rig.ask("incr"), "1");
}

/// Three records in a row go into three slots; the next one into the oldest. A torn slot is passed over and used again.
#[test]
fn a_torn_record_is_passed_over_by_python_and_its_slot_used_again() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(&python, "");
    for _ in 0..3 {
        rig.commit(rig.in_python());
    }
    drop(rig.serving.take());
    // Generation 3 is in the third slot, and 4 in the first.
    let path = Path::new(&rig.path("data")).join(".handoff.lock");
    let mut file = std::fs::read(&path).unwrap();
    file[4096 + 200] ^= 1;
    std::fs::write(&path, &file).unwrap();
    let torn = DataDirLock::read_record(rig.path("data")).unwrap();
    assert_eq!((torn.torn.len(), torn.record.unwrap().generation), (1, 3));
    rig.serving = Some(Serving(rig.run(rig.in_python())));
    rig.expect_owner(rig.serving.as_ref().unwrap().0.id());
    assert_eq!(rig.status().generation, 4);
}

#[test]
fn each_file_is_short_and_needs_nothing_but_the_standard_library() {
    let Some(python) = python() else { return };
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(HERE).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "py"));
    assert_eq!(files.len(), 7, "README tells of them: {files:?}");
    for file in files {
        let written = std::fs::read_to_string(&file).unwrap();
        let (lines, widest) =
            (written.lines().count(), written.lines().map(|line| line.chars().count()).max().unwrap());
        assert!(lines < 100 && widest <= 120, "{}: {lines} lines, {widest} columns", file.display());
        let imports = "import ast, os, sys\n\
            tree = ast.parse(open(sys.argv[1]).read())\n\
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}\n\
            names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}\n\
            ours = {name[:-3] for name in os.listdir(os.path.dirname(sys.argv[1]))}\n\
            print(*names - ours - sys.stdlib_module_names)";
        let output = Command::new(&python).args(["-c", imports]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "", "{}", file.display());
    }
}
