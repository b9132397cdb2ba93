//! What the process-level tests share: a kvd to start, to talk to and to kill, and the load with its ledger.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

#[path = "../../src/bin/handoff/load.rs"]
pub mod load;
pub mod said;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use load::{Answer, Connection};

/// Long enough for any machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command under test.
pub const HANDOFF: &str = env!("CARGO_BIN_EXE_handoff");

/// A running `handoff kvd`, killed when it is dropped.
pub struct Kvd {
    pub child: Child,
    pub addr: SocketAddr,
    pub stderr: Lines,
}

impl Kvd {
    /// Starts one on a free port and waits until it serves.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::spawn(command(dir, args))
    }

    /// Starts what `command` says, which must be a kvd in the end.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Lines::of(child.stderr.take().unwrap());
        let line = stderr.wait_for(" serves on ");
        let addr = line.rsplit(' ').next().unwrap().parse().unwrap();
        Self { child, addr, stderr }
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.addr, PATIENCE).unwrap()
    }

    pub fn call(&self, words: &[&str]) -> Answer {
        self.connect().call(words).unwrap()
    }

    pub fn port(&self) -> String {
        self.addr.port().to_string()
    }

    /// Kills it as `kill -9` does, and reaps it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child)
    }
}

impl Drop for Kvd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the command that starts a kvd on a free port.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(HANDOFF);
    command.args(["kvd", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir).args(args);
    command
}

/// Runs a kvd that is expected to end by itself; returns its exit code and what it said.
pub fn run_to_end(mut command: Command) -> (i32, String) {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    let status = wait_for_exit(&mut child);
    (status.code().expect("it was not killed"), reading.join().unwrap())
}

/// Waits for a process to end; kills it and fails if that takes too long.
pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("pid {} did not end", child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a condition; fails if that takes too long.
pub fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The lines that a process writes, as they come.
#[derive(Clone)]
pub struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    pub fn of(stderr: ChildStderr) -> Self {
        let lines = Self(Arc::default());
        let theirs = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                theirs.update(|written| written.lines.push(line));
            }
            theirs.update(|written| written.ended = true);
        });
        lines
    }

    fn update(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// Waits for a line that contains `text`, and returns it.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut written = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = written.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!written.ended && !left.is_zero(), "no line with {text:?} in {:#?}", written.lines);
            written = self.0.1.wait_timeout(written, left).unwrap().0;
        }
    }

    /// Returns all lines so far.
    pub fn so_far(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }
}

/// Returns whether the Redis tools are there; says loudly that a test is skipped if not, and fails in CI.
pub fn has_redis_tools() -> bool {
    has_tool("redis-tools", Command::new("redis-cli").arg("--version"))
}

/// Returns whether strace is there and allowed to trace; says loudly that a test is skipped if not, and fails in CI.
pub fn has_strace() -> bool {
    has_tool("strace", Command::new("strace").args(["-f", "--seccomp-bpf", "-e", "trace=none", "true"]))
}

/// Returns whether sudo can make this user another one; says loudly that a test is skipped if not, and fails in CI.
pub fn has_sudo() -> bool {
    has_tool("sudo", Command::new("sudo").args(["-n", "-u", "nobody", "true"]))
}

/// Returns whether script(1) is there, which gives a program a terminal; says loudly that a test is skipped if not, and fails in CI.
pub fn has_script() -> bool {
    has_tool("bsdutils", Command::new("script").arg("--version"))
}

/// Returns whether a tool of a Debian package is there; says loudly that a test is skipped if not, and fails in CI.
pub fn has_tool(package: &str, command: &mut Command) -> bool {
    let there = command.output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: needs {package}");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {package}");
    }
    there
}

/// Returns where an example of this package is, which `cargo test` builds beside the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(built.exists(), "{} is not built: run cargo build --examples", built.display());
    built
}

/// Ends the daemon that serves with the test.
pub struct Serving(pub Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
