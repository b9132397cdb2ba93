//! The health check of a successor on trial: a command that is run again and again.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::process::PidFd;
use crate::sys::spawn::{Image, Program, Spawn};
use crate::sys::tree::{self, Tree};

/// How much of what a check said is quoted, in bytes: the end, where errors are.
const QUOTE_MAX: usize = 400;
/// How long the processes of a check may take to die, and what they wrote to arrive.
const DYING: Duration = Duration::from_secs(1);
/// Between two looks at whether the trial is over.
const LOOK: Duration = Duration::from_millis(20);

/// What to run, and how often.
#[derive(Clone, Debug)]
pub struct Check {
    /// For `sh -c`.
    pub command: String,
    /// Between the end of one run and the next one.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Passed on as HANDOFF_CONTROL.
    pub control: PathBuf,
}

/// Runs a check until it fails or is dropped.
#[derive(Debug)]
pub struct Monitor {
    over: Arc<AtomicBool>,
    failures: Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Begins, in a thread of its own.
    pub fn start(check: Check) -> Self {
        let (sender, failures) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&over);
        let thread = std::thread::spawn(move || watch(&check, &theirs, &sender));
        Self { over, failures, thread: Some(thread) }
    }

    /// Returns why a check failed, once.
    pub fn failure(&self) -> Option<String> {
        self.failures.try_recv().ok()
    }
}

impl Drop for Monitor {
    /// No run of the check outlives the trial.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has said what it had to say.
            let _ = thread.join();
        }
    }
}

fn watch(check: &Check, over: &AtomicBool, failures: &Sender<String>) {
    while !over.load(Ordering::Relaxed) {
        match run(check, over) {
            Ok(None) => {}
            Ok(Some(failure)) => return tell(failures, format!("the health check failed: {failure}")),
            Err(e) => return tell(failures, format!("the health check could not be run: {e}")),
        }
        let next = Instant::now() + check.interval;
        while Instant::now() < next && !over.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK.min(next.saturating_duration_since(Instant::now())));
        }
    }
}

fn tell(failures: &Sender<String>, text: String) {
    // Nobody asks any more when the trial is over.
    let _ = failures.send(text);
}

/// Runs the check once; returns what is wrong, or nothing where that is not asked any more.
pub(crate) fn run(check: &Check, over: &AtomicBool) -> Result<Option<String>> {
    let shell = Program::open(Path::new("sh"))?;
    let (reader, writer) = io::pipe().map_err(|e| Error::io("make a pipe", e))?;
    let mut image = Image::new(&shell);
    image.args = ["-c".into(), OsString::from(&check.command)].to_vec();
    image.env.retain(|(name, _)| name != "HANDOFF_CONTROL");
    image.env.push(("HANDOFF_CONTROL".into(), check.control.clone().into()));
    let mut spawn = Spawn::new(image);
    // Its own session: what it starts is killed with it, and nothing else is.
    spawn.new_session = true;
    (spawn.stdout, spawn.stderr) = (Some(writer.as_fd()), Some(writer.as_fd()));
    let mut child = spawn.spawn()?;
    drop(writer);
    let said = collect(reader);
    let leader = PidFd::open(child.id()).map_err(|e| Error::io("watch the health check", e))?;
    let in_time = wait(&leader, Instant::now() + check.timeout, over)?;
    // Before the leader is reaped, so that its number is nobody else's.
    let killed = tree::kill(Some(&leader), &Tree::Session { sid: child.id() }, Instant::now() + DYING);
    if let Err(e) = killed {
        tracing::warn!("unable to end what the health check has started: {e}");
    }
    let status = child.wait().map_err(|e| Error::io("wait for the health check", e))?;
    if status.success() || over.load(Ordering::Relaxed) {
        return Ok(None);
    }
    // What escaped from its session may keep the pipe open for longer than anybody wants to know.
    let said = said.recv_timeout(DYING).unwrap_or_default();
    let ended = if in_time { status.to_string() } else { format!("no end after {:?}", check.timeout) };
    Ok(Some(if said.is_empty() { ended } else { format!("{ended}: {said}") }))
}

/// Returns whether it ended by itself.
fn wait(leader: &PidFd, deadline: Instant, over: &AtomicBool) -> Result<bool> {
    while Instant::now() < deadline && !over.load(Ordering::Relaxed) {
        let until = deadline.min(Instant::now() + LOOK);
        if leader.wait_dead(until).map_err(|e| Error::io("wait for the health check", e))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads all of it, so that the check never waits for a reader, and keeps the end.
fn collect(mut reader: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..n]);
            kept.drain(..kept.len().saturating_sub(QUOTE_MAX));
        }
        // Nobody asks what a check said that passed.
        let _ = sender.send(String::from_utf8_lossy(&kept).trim().to_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(command: &str) -> Option<String> {
        let check = Check {
            command: command.to_owned(),
            interval: Duration::ZERO,
            timeout: Duration::from_millis(300),
            control: "/run/x".into(),
        };
        run(&check, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn a_check_passes_or_says_why_not() {
        assert_eq!(outcome("exit 0"), None);
        assert_eq!(outcome("echo out; echo err >&2; exit 7").unwrap(), "exit status: 7: out\nerr");
        assert_eq!(outcome("test \"$HANDOFF_CONTROL\" = /run/x"), None);
        assert!(outcome("seq 1 100000; exit 1").unwrap().ends_with("99999\n100000"));
    }

    #[test]
    fn a_check_that_hangs_is_killed_with_all_that_it_started() {
        let said = outcome("sleep 1000 & echo $!; wait").unwrap();
        assert!(said.starts_with("no end after 300ms: "), "{said}");
        let pid: u32 = said.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(
            PidFd::open(pid).is_err() || PidFd::open(pid).unwrap().is_dead().unwrap(),
            "pid {pid} is left over"
        );
    }
}
