//! Swaps between `handoff kvd` and the daemon in `tests/python`, which speaks the protocol with Python's standard library.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::load::{Answer, Connection, Load, Plan};
use common::{HANDOFF, Kvd, PATIENCE, Serving, command, eventually, run_to_end, wait_for_exit};
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
    first: Kvd,
    serving: Option<Serving>,
}

impl Rig {
    /// Starts a kvd.
    fn kvd(python: PathBuf, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first =
            Kvd::start(&data(dir.path()), &[&["--control", text(&control(dir.path()))], args].concat());
        Self { dir, python, first, serving: None }
    }

    /// Starts the incumbent in Python, on a data directory that is not there yet, after this code.
    fn python(python: PathBuf, before: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (program, args) = script(&python, dir.path(), "incumbent", before);
        let mut command = Command::new(program);
        command.args(args);
        Self { dir, python, first: Kvd::spawn(command), serving: None }
    }

    fn load(&self) -> Load {
        Load::start(&Plan::new(self.addr(), 8)).unwrap()
    }

    fn addr(&self) -> SocketAddr {
        self.first.addr
    }

    fn successor_in_python(&self) -> Program {
        self.successor_after("")
    }

    /// A successor in Python, after code that makes it fail.
    fn successor_after(&self, before: &str) -> Program {
        script(&self.python, self.dir.path(), "successor", before)
    }

    fn successor_in_rust(&self, args: &[&str]) -> Program {
        let (data, control) = (data(self.dir.path()), control(self.dir.path()));
        let own = ["kvd", "--data-dir", text(&data), "--control", text(&control)];
        (HANDOFF.into(), own.iter().chain(args).map(|arg| (*arg).to_owned()).collect())
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
        Supervisor::new(control(self.dir.path())).unwrap().perform_handoff(spec).unwrap()
    }

    /// Swaps, and demands that the new process serves and the one before it has ended.
    fn commit(&mut self, program: Program) {
        let shown = format!("{program:?}");
        let outcome = self.swap(program, |_| {});
        assert!(outcome.committed, "{shown}: {outcome:#?}\n{:#?}", self.first.stderr.so_far());
        let next = Serving(outcome.child.unwrap());
        self.expect_owner(next.0.id());
        match self.serving.replace(next) {
            Some(mut before) => assert_eq!(wait_for_exit(&mut before.0).code(), Some(0)),
            None => assert_eq!(self.first.wait().code(), Some(0)),
        }
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
            let asked = Control::connect(control(self.dir.path()), "test", until);
            match asked.and_then(|mut control| control.status(until)) {
                Ok(status) => return status,
                // It has just handed over: whoever follows answers.
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
        let record = DataDirLock::read_record(data(self.dir.path())).unwrap();
        assert!(record.torn.is_empty(), "{record:?}");
        let record = record.record.unwrap();
        let own = (record.owner.pid, record.standing, record.generation);
        assert_eq!(own, (pid, Standing::Final, self.status().generation));
        let holders = DataDirLock::who(data(self.dir.path())).unwrap();
        assert_eq!(holders.iter().map(|holder| holder.pid).collect::<Vec<_>>(), [pid]);
    }

    /// Demands that nobody was disturbed and that everything that was acknowledged is there.
    fn expect_clean(&self, load: Load) {
        let before = load.counts().acknowledged;
        eventually("more writes", || load.counts().acknowledged > before + 50);
        let ledger = load.stop();
        assert_eq!(ledger.counts.disturbances(), 0, "{:?}\n{:#?}", ledger.counts, self.first.stderr.so_far());
        let found = ledger.read_back(self.addr()).unwrap();
        assert_eq!(found.lost, 0, "{found}");
    }
}

/// One of the two programs; after code that changes it, where there is any.
fn script(python: &Path, dir: &Path, name: &str, before: &str) -> Program {
    let own = [text(&control(dir)), text(&data(dir)), "127.0.0.1:0"].map(str::to_owned);
    // Not compiled into files beside the sources.
    let flag = "-B".to_owned();
    let start = match before {
        "" => vec![flag, format!("{HERE}/{name}.py")],
        _ => vec![
            flag,
            "-c".to_owned(),
            format!(
                "import os, runpy, sys; sys.path.insert(0, '{HERE}')\n{before}\nrunpy.run_path('{HERE}/{name}.py', run_name='__main__')"
            ),
        ],
    };
    (python.to_owned(), start.into_iter().chain(own).collect())
}

/// Code that does something when a message of this kind is to be sent: before or after it.
fn when_sending(kind: &str, before: &str, after: &str) -> String {
    format!(
        "import peer\n\
         send = peer.Peer.send\n\
         def changed(self, type, *more, **fields):\n    \
             if type == '{kind}': {before}\n    \
             send(self, type, *more, **fields)\n    \
             if type == '{kind}': {after}\n\
         peer.Peer.send = changed"
    )
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

fn control(dir: &Path) -> PathBuf {
    dir.join("control")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn data_goes_from_rust_to_python_and_back_under_load() {
    let Some(python) = python() else { return };
    // So small that there are compactions on the way.
    let compacting = ["--compact-from", "20000"];
    let mut rig = Rig::kvd(python, &[&compacting[..], &["--shards", "3"]].concat());
    let load = rig.load();
    for round in 1..=6u64 {
        eventually("writes", || load.counts().acknowledged > round * 200);
        let next = match round {
            // Rust to Python, Python to Python, Python to Rust, and again.
            1 | 2 | 4 | 5 => rig.successor_in_python(),
            _ => rig.successor_in_rust(&compacting),
        };
        rig.commit(next);
    }
    rig.expect_clean(load);
}

#[test]
fn a_python_incumbent_starts_from_nothing_and_its_data_outlives_its_death() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(python, "");
    assert_eq!(rig.first.call(&["SET", "greeting", "hello"]), Answer::Simple("OK".into()));
    let load = rig.load();
    eventually("writes", || load.counts().acknowledged > 100);
    rig.commit(rig.successor_in_python());
    eventually("writes", || load.counts().acknowledged > 200);
    rig.commit(rig.successor_in_rust(&[]));
    rig.expect_clean(load);
    let generation = rig.status().generation;
    // What a supervisor would start again, first one and then the other.
    for program in [rig.successor_in_python(), rig.successor_in_rust(&["--listen", "127.0.0.1:0"])] {
        rig.serving.take();
        let mut command = Command::new(program.0);
        let next = Kvd::spawn({
            command.args(program.1);
            command
        });
        assert_eq!(next.call(&["GET", "greeting"]), Answer::Bulk(Some("hello".into())));
        rig.expect_owner(next.child.id());
        assert!(rig.status().generation > generation);
        next.kill();
    }
}

#[test]
fn handoff_status_shows_a_python_incumbent() {
    let Some(python) = python() else { return };
    let rig = Rig::python(python, "");
    let status = |args: &[&str]| {
        let output = Command::new(HANDOFF)
            .args(["status", "--control", text(&control(rig.dir.path()))])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (shown, pid) = (status(&[]), rig.first.child.id());
    for expected in [
        format!("incumbent serving: pid {pid}, "),
        format!("record    generation 1, final, owner pid {pid} (python), "),
        format!("lock      held by pid {pid} "),
        format!("listener  resp {}", rig.addr()),
        "handoff   none".to_owned(),
    ] {
        assert!(shown.contains(&expected), "no {expected:?} in\n{shown}");
    }
    assert!(status(&["--json"]).contains(&format!("\"pid\":{pid}")));
}

#[test]
fn a_bad_successor_is_rolled_back_by_a_python_incumbent() {
    let Some(python) = python() else { return };
    let rig = Rig::python(python, "");
    let load = rig.load();
    for (fault, expected) in [
        ("crash-at-start", "died"),
        ("exit-while-warm", "exit status: 0"),
        ("crash-after-begin", "died"),
        ("hang-after-begin", "deadline"),
        ("slow-open-ms=60000", "deadline"),
        ("stale", "other data than was sealed"),
        ("unhealthy", "not healthy"),
    ] {
        let before = load.counts().acknowledged;
        let program = rig.successor_in_rust(&["--fail", fault]);
        let reason = rig.roll_back(program, |spec| {
            if expected == "deadline" {
                spec.deadline = Duration::from_secs(2);
            }
        });
        assert!(reason.contains(expected), "{fault}: {reason}");
        eventually("more writes", || load.counts().acknowledged > before + 50);
    }
    for kind in ["hello", "waiting", "attach", "ready"] {
        let before = load.counts().acknowledged;
        let program = rig.successor_after(&when_sending(kind, "os._exit(7)", "pass"));
        let reason = rig.roll_back(program, |_| {});
        assert!(reason.contains("exit status: 7"), "{kind}: {reason}");
        eventually("more writes", || load.counts().acknowledged > before + 50);
    }
    // One that says who it is when it was undone already, and one that is granted and then does nothing.
    let late = when_sending("attach", "import time; time.sleep(3)", "pass");
    let reason = rig.roll_back(rig.successor_after(&late), |spec| spec.deadline = Duration::from_secs(2));
    assert!(reason.contains("deadline"), "{reason}");
    let hangs = "import lock, time\nlock.Lock.write = lambda *_: time.sleep(600)";
    let reason = rig.roll_back(rig.successor_after(hangs), |spec| spec.stand_by = Duration::from_millis(500));
    assert!(reason.contains("neither served nor died"), "{reason}");
    rig.expect_clean(load);
}

#[test]
fn a_python_successor_that_dies_or_is_told_to_go_changes_nothing_for_a_rust_incumbent() {
    let Some(python) = python() else { return };
    let mut rig = Rig::kvd(python, &[]);
    let load = rig.load();
    for kind in ["hello", "waiting", "attach", "ready"] {
        let program = rig.successor_after(&when_sending(kind, "os._exit(7)", "pass"));
        let reason = rig.roll_back(program, |_| {});
        assert!(reason.contains("exit status: 7"), "{kind}: {reason}");
    }
    let unfit = "import log\nseal = log.Log.seal\nlog.Log.seal = lambda self: seal(self) | {'last_revision_per_shard': [0]}";
    let reason = rig.roll_back(rig.successor_after(unfit), |_| {});
    assert!(reason.contains("other data than was sealed"), "{reason}");
    // It says that it cannot be on trial, and the incumbent takes the data back.
    rig.roll_back(rig.successor_in_python(), |spec| spec.bake = Some(Duration::from_secs(60)));
    let before = load.counts().acknowledged;
    eventually("more writes", || load.counts().acknowledged > before + 50);
    rig.commit(rig.successor_in_python());
    rig.expect_clean(load);
}

#[test]
fn a_python_incumbent_that_is_killed_when_it_has_sealed_is_succeeded() {
    let Some(python) = python() else { return };
    for in_rust in [true, false] {
        let mut rig = Rig::python(python.clone(), &when_sending("sealed", "pass", "os.kill(os.getpid(), 9)"));
        let load = rig.load();
        eventually("writes", || load.counts().acknowledged > 100);
        let next = if in_rust { rig.successor_in_rust(&[]) } else { rig.successor_in_python() };
        let outcome = rig.swap(next, |_| {});
        assert!(outcome.committed, "{outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        assert!(rig.first.wait().code().is_none(), "it was not killed");
        rig.expect_owner(next.0.id());
        rig.expect_clean(load);
    }
}

#[test]
fn a_rust_incumbent_that_is_killed_is_succeeded_by_python() {
    let Some(python) = python() else { return };
    // While it serves, when it has sealed, and when it waits to hear what was opened.
    for kind in ["waiting", "attach", "ready"] {
        let mut rig = Rig::kvd(python.clone(), &[]);
        rig.first.call(&["SET", "greeting", "hello"]);
        let kill = format!("os.kill({}, 9)", rig.first.child.id());
        let outcome = rig.swap(rig.successor_after(&when_sending(kind, &kill, "pass")), |_| {});
        assert!(outcome.committed, "{kind}: {outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        assert!(rig.first.wait().code().is_none(), "it was not killed");
        rig.expect_owner(next.0.id());
        assert_eq!(rig.first.call(&["GET", "greeting"]), Answer::Bulk(Some("hello".into())), "{kind}");
    }
}

#[test]
fn a_successor_that_dies_with_its_record_made_is_succeeded_by_its_program_in_either_language() {
    let Some(python) = python() else { return };
    let rig = Rig::kvd(python.clone(), &[]);
    let load = rig.load();
    // Only a successor has a channel: the same program as a cold start does not fail.
    let dies = "import store\nif 'channel=' in os.environ['HANDOFF_FDS']: store.Store.serve = lambda self: os._exit(7)";
    let outcome = rig.swap(rig.successor_after(dies), |_| {});
    assert!(outcome.committed && outcome.child.is_none(), "{outcome:#?}");
    rig.expect_owner(rig.first.child.id());
    assert_eq!(rig.status().binary, text(&python), "it is the successor's program by now");
    // And back: the process stays the same.
    let outcome = rig.swap(rig.successor_in_rust(&["--fail", "crash-when-ready"]), |_| {});
    assert!(outcome.committed && outcome.child.is_none(), "{outcome:#?}");
    rig.expect_owner(rig.first.child.id());
    assert!(rig.status().binary.ends_with("/handoff"), "it is the successor's program by now");
    rig.expect_clean(load);
}

#[test]
fn an_incumbent_that_hangs_with_its_data_sealed_is_killed_and_succeeded() {
    let Some(python) = python() else { return };
    for in_rust in [true, false] {
        let mut rig = if in_rust { Rig::kvd(python.clone(), &[]) } else { Rig::python(python.clone(), "") };
        rig.first.call(&["SET", "greeting", "hello"]);
        // Each thread stops by itself.
        let stop = format!(
            "import glob, time\n\
             def stop(tasks='/proc/{0}/task/*/stat'):\n    \
                 os.kill({0}, 19)\n    \
                 while {{open(stat).read().rpartition(')')[2].split()[0] for stat in glob.glob(tasks)}} != {{'T'}}:\n        \
                     time.sleep(0.001)\n",
            rig.first.child.id()
        );
        let program = rig.successor_after(&(stop + &when_sending("ready", "stop()", "pass")));
        let outcome = rig.swap(program, |spec| {
            spec.deadline = Duration::from_secs(2);
            spec.margin = Duration::from_millis(500);
        });
        assert!(outcome.committed, "{outcome:#?}");
        let next = Serving(outcome.child.unwrap());
        assert!(rig.first.wait().code().is_none(), "it was not killed");
        rig.expect_owner(next.0.id());
        assert_eq!(rig.first.call(&["GET", "greeting"]), Answer::Bulk(Some("hello".into())));
    }
}

/// A driver by hand: lines of JSON over a socket.
struct Driver {
    lines: BufReader<UnixStream>,
}

impl Driver {
    fn connect(rig: &Rig) -> Self {
        let socket = UnixStream::connect(control(rig.dir.path())).unwrap();
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
    let rig = Rig::python(python, "");
    let load = rig.load();
    let pid = rig.first.child.id();
    let mut generation = rig.status().generation;
    for phase in ["prepared", "drained", "sealed"] {
        for end in ["closed", "aborted", "deadline", "protocol", "operator"] {
            let before = load.counts().acknowledged;
            let mut driver = Driver::connect(&rig);
            let mut watch = Driver::connect(&rig);
            assert_eq!(watch.ask(r#"{"type":"watch"}"#), "accepted");
            let deadline = Duration::from_millis(if end == "deadline" { 5000 } else { 60_000 });
            assert_eq!(driver.prepare("by-hand", deadline), "prepared");
            assert!(phase == "prepared" || driver.drain() == "drained");
            assert!(phase != "sealed" || driver.seal() == "sealed");
            // The lease answers what anybody may ask, and somebody else is told that it is taken.
            assert_eq!(driver.ask(r#"{"type":"status"}"#), "status-report");
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
            eventually("more writes", || load.counts().acknowledged > before + 20);
        }
    }
    rig.expect_owner(pid);
    rig.expect_clean(load);
}

#[test]
fn strangers_are_refused_by_a_python_incumbent_and_do_not_disturb_it() {
    let Some(python) = python() else { return };
    let mut rig = Rig::python(python, "");
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
    rig.commit(rig.successor_in_python());
    rig.expect_clean(load);
}

#[test]
fn a_python_successor_takes_over_in_place() {
    let Some(python) = python() else { return };
    for in_rust in [true, false] {
        let mut rig = if in_rust { Rig::kvd(python.clone(), &[]) } else { Rig::python(python.clone(), "") };
        let load = rig.load();
        eventually("writes", || load.counts().acknowledged > 100);
        // The driver has said everything and is gone when the program starts, in its place.
        let (program, args) = rig.successor_in_python();
        let mut link = Command::new(&rig.python);
        link.args(["-B", &format!("{HERE}/in_place.py"), text(&control(rig.dir.path()))]);
        let next = Serving(link.arg(program).args(args).stdin(Stdio::null()).spawn().unwrap());
        rig.expect_owner(next.0.id());
        assert_eq!(rig.first.wait().code(), Some(0));
        rig.expect_clean(load);
    }
}

#[test]
fn a_descriptor_that_was_used_again_is_refused_by_python_and_named() {
    let Some(python) = python() else { return };
    let mut command = Command::new(python);
    command.args(["-B", &format!("{HERE}/successor.py"), "control", "data", "127.0.0.1:0"]);
    command.env("HANDOFF_FDS", "channel=0@inode:1:2");
    let (code, said) = run_to_end(command);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("descriptor 0") && said.contains("channel"), "{said}");
}

#[test]
fn a_second_python_daemon_on_the_same_data_is_refused() {
    let Some(python) = python() else { return };
    let rig = Rig::python(python, "");
    let (program, args) = script(&rig.python, rig.dir.path(), "incumbent", "");
    let mut second = Command::new(program);
    second.args(args);
    let (code, said) = run_to_end(second);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("unable to lock"), "{said}");
    // And a kvd by what the Python daemon holds.
    assert_eq!(run_to_end(command(&data(rig.dir.path()), &[])).0, 1);
    let mut connection = Connection::open(rig.addr(), PATIENCE).unwrap();
    assert_eq!(connection.call(&["PING"]).unwrap(), Answer::Simple("PONG".into()));
}

#[test]
fn each_file_is_short_and_needs_nothing_but_the_standard_library() {
    let Some(python) = python() else { return };
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(HERE).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "py"));
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines < 100, "{} has {lines} lines", file.display());
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
