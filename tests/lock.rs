//! The data directory's lock between real processes.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use handoff::{DataDirLock, Error};
use tempfile::tempdir;

// Far more than any machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_conflict_names_the_process_that_has_the_lock() {
    let dir = tempdir().unwrap();
    let holder = Helper::start("hold", dir.path());
    let Err(Error::Locked { path, holders }) = DataDirLock::acquire(&dir) else {
        panic!("two have the lock")
    };
    assert_eq!(path, dir.path().canonicalize().unwrap().join(".handoff.lock"));
    let named = holders.iter().find(|found| found.pid == holder.child.id()).unwrap();
    assert_eq!(named.inherited_from, None);
    assert!(named.command.contains("role --exact"), "{named}");
}

#[test]
fn a_copy_that_outlives_the_taker_is_named_with_where_it_came_from_and_is_not_broken() {
    let dir = tempdir().unwrap();
    let mut taker = Helper::start("leave a copy with a child", dir.path());
    let child: u32 = taker.said.parse().unwrap();
    // Waiting would close it, and it is what keeps the child.
    let stdin = taker.child.stdin.take();
    assert!(taker.child.wait().unwrap().success());
    for refused in [DataDirLock::acquire(&dir), DataDirLock::acquire_or_break_stale(&dir)] {
        let Err(Error::Locked { holders, .. }) = refused else { panic!("a living process had the lock") };
        let [holder] = holders.as_slice() else { panic!("expected one holder: {holders:?}") };
        assert_eq!((holder.pid, holder.inherited_from), (child, Some(taker.child.id())));
    }
    drop(stdin);
    DataDirLock::options().wait(DEADLINE).acquire(&dir).unwrap();
}

#[test]
fn the_lock_of_a_process_that_was_just_killed_is_waited_for() {
    let dir = tempdir().unwrap();
    for _ in 0..20 {
        let mut owner = Helper::start("hold", dir.path());
        owner.child.kill().unwrap();
        DataDirLock::acquire_or_break_stale(&dir).unwrap();
    }
}

#[test]
fn a_lock_that_is_really_held_is_refused_at_once() {
    let dir = tempdir().unwrap();
    let holder = Helper::start("hold", dir.path());
    let start = Instant::now();
    let Err(Error::Locked { holders, .. }) = DataDirLock::acquire_or_break_stale(&dir) else {
        panic!("it was broken")
    };
    assert!(start.elapsed() < Duration::from_secs(1), "a living holder is not waited for");
    assert!(holders.iter().any(|found| found.pid == holder.child.id()));
}

#[test]
fn a_lock_is_passed_on_by_its_descriptor() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let passed = lock.try_clone_fd().unwrap();
    let mut heir =
        Helper::wait_ready(spawn_with_stdin(Helper::command("adopt standard input", dir.path()), passed));
    assert!(lock.holders().unwrap().iter().any(|found| found.inherited_from == Some(std::process::id())));
    drop(lock);
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })), "the heir has it now");
    heir.child.kill().unwrap();
    DataDirLock::options().wait(DEADLINE).acquire(&dir).unwrap();
}

#[test]
fn a_child_program_does_not_inherit_the_lock_by_accident() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    // Until it has become the program it is a copy of this process.
    while lock.holders().unwrap().iter().any(|found| found.pid == child.id()) {
        assert!(Instant::now() < deadline, "the descriptor went through exec");
        thread::yield_now();
    }
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// Consumes the command, which keeps its copy of the descriptor.
fn spawn_with_stdin(mut command: Command, fd: OwnedFd) -> Child {
    command.stdin(fd).spawn().unwrap()
}

/// What a helper process does; does nothing in the test run itself.
#[test]
fn role() {
    let Ok(role) = std::env::var("HANDOFF_TEST_ROLE") else { return };
    let dir = std::env::var_os("HANDOFF_TEST_DIR").unwrap();
    match role.as_str() {
        "hold" => {
            let _lock = DataDirLock::acquire(&dir).unwrap();
            println!("\nready");
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        #[expect(clippy::zombie_processes, reason = "the child is to outlive this process")]
        "leave a copy with a child" => {
            let copy = DataDirLock::acquire(&dir).unwrap().try_clone_fd().unwrap();
            // It outlives this process. Nothing comes in, so nothing goes out to the lock file.
            let child = Command::new("cat").stdin(Stdio::inherit()).stdout(copy).spawn().unwrap();
            println!("\nready {}", child.id());
        }
        "adopt standard input" => {
            let inherited = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
            let _lock = DataDirLock::adopt(inherited, Path::new(&dir)).unwrap();
            println!("\nready");
            thread::sleep(DEADLINE);
        }
        other => panic!("unknown role {other}"),
    }
}

/// This test program, started again to play a role; killed when dropped.
struct Helper {
    child: Child,
    said: String,
    _stdout: BufReader<ChildStdout>,
}

impl Helper {
    fn start(role: &str, dir: &Path) -> Self {
        Self::wait_ready(Self::command(role, dir).stdin(Stdio::piped()).spawn().unwrap())
    }

    fn command(role: &str, dir: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["role", "--exact", "--nocapture"]).stdout(Stdio::piped());
        command.env("HANDOFF_TEST_ROLE", role).env("HANDOFF_TEST_DIR", dir);
        command
    }

    fn wait_ready(mut child: Child) -> Self {
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the helper ended before it was ready");
        }
        let said = line.trim_start_matches("ready").trim().to_owned();
        Self { child, said, _stdout: stdout }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
