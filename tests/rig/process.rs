//! Processes that are started, listened to, stopped and killed.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A child, and the lines that it and its descendants write on standard error.
pub struct Process {
    child: Child,
    said: Arc<(Mutex<Said>, Condvar)>,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        command.env("NO_COLOR", "1");
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let said = Arc::default();
        listen(child.stderr.take().unwrap(), Arc::clone(&said));
        Self { child, said }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&self) {
        signal(self.pid(), "KILL");
    }

    pub fn stop(&self) {
        stop(self.pid());
    }

    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    /// Waits for its end; it must not take longer than anything may.
    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "pid {} does not end: {:#?}", self.pid(), self.lines());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for a driver's end, and returns the word for its outcome.
    pub fn outcome(&mut self) -> String {
        self.wait();
        let line = self.line(&format!("driver {} outcome ", self.pid()));
        line.split(' ').nth(3).unwrap().to_owned()
    }

    /// Waits until a probe or a driver is at a point, and returns its pid.
    pub fn at(&self, point: &str) -> u32 {
        let line = self.line(&format!(" at {point}"));
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Waits for a line that contains `text` and returns it.
    pub fn line(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut said = self.said.0.lock().unwrap();
        loop {
            if let Some(line) = said.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!said.ended && !left.is_zero(), "no line with {text:?} in {:#?}", said.lines);
            said = self.said.1.wait_timeout(said, left).unwrap().0;
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.said.0.lock().unwrap().lines.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(stderr: impl Read + Send + 'static, said: Arc<(Mutex<Said>, Condvar)>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            said.0.lock().unwrap().lines.push(line);
            said.1.notify_all();
        }
        said.0.lock().unwrap().ended = true;
        said.1.notify_all();
    });
}

pub fn signal(pid: u32, name: &str) {
    // It may have ended already.
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status();
}

/// Stops a process and waits until it is.
pub fn stop(pid: u32) {
    signal(pid, "STOP");
    await_stopped(pid);
}

pub fn await_stopped(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while state(pid) != Some('T') {
        assert!(Instant::now() < until, "pid {pid} is not stopped but {:?}", state(pid));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a process has ended.
pub fn await_end(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while state(pid).is_some_and(|state| state != 'Z') {
        assert!(Instant::now() < until, "pid {pid} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Returns the living processes that have this path among their arguments; a tracer does not count.
pub fn with_argument(path: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| names(*pid, path) && state(*pid).is_some_and(|state| state != 'Z')).collect()
}

fn names(pid: u32, path: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_tracer = line.starts_with(b"strace\0");
    !is_tracer && line.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_bytes())
}

/// Returns an example's program. `cargo test` builds them, `cargo test --test NAME` does not.
pub fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().with_file_name("examples").join(name);
    let age = |path: &Path| path.metadata().and_then(|meta| meta.modified());
    BUILT.get_or_init(|| {
        if !matches!((age(&path), age(&test)), (Ok(built), Ok(now)) if built >= now) {
            build_examples(&test);
        }
    });
    path
}

fn build_examples(test: &Path) {
    let release = test.components().any(|part| part.as_os_str() == "release");
    let profile = if release { "release" } else { "test" };
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--examples", "--profile", profile]);
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
}
