//! `handoff swap --step` at a real terminal: every answer, and whatever happens while a person thinks.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::load::{Answer, Connection};
use common::said::Said;
use common::{HANDOFF, Kvd, PATIENCE, command, eventually, wait_for_exit};
use handoff::control::Control;
use handoff::proto::wire::Status;
use handoff::supervisor::{Event, SpawnSpec, Supervisor, Wish};
use handoff::sys::process::{PidFd, Signal};
use nix::fcntl::OFlag;
use nix::sys::termios::{Termios, tcgetattr};

/// A kvd that serves, and what it takes to swap it.
struct Rig {
    dir: tempfile::TempDir,
    first: Kvd,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = Kvd::spawn(command(&dir.path().join("data"), &["--version-label", "v1"]));
        Self { dir, first }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("data/control")
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn successor(&self) -> Vec<String> {
        let data_dir = self.dir.path().join("data").display().to_string();
        [HANDOFF, "kvd", "--data-dir", &data_dir, "--version-label", "v2"].map(str::to_owned).to_vec()
    }

    /// Steps through a swap at a terminal of its own.
    fn step(&self, options: &[&str]) -> Terminal {
        self.step_with(options, "/bin/sh")
    }

    fn step_with(&self, options: &[&str], shell: &str) -> Terminal {
        let mut command = Command::new("setsid");
        command.args(["--ctty", HANDOFF, "swap", "--step"]).args(options).args(self.successor());
        command.env("HANDOFF_CONTROL", self.control()).env("HANDOFF_JOURNAL", self.journal());
        command.env("SHELL", shell).env("PS1", "$ ").env_remove("ENV");
        Terminal::run(command)
    }

    fn status(&self) -> Option<Status> {
        let deadline = Instant::now() + Duration::from_secs(5);
        Control::connect(self.control(), "test", deadline).ok()?.status(deadline).ok()
    }

    /// Asks the store itself who it is.
    fn serving(&self) -> String {
        let mut connection = Connection::open(self.first.addr, PATIENCE).unwrap();
        let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).unwrap() else {
            panic!("INFO has no text")
        };
        let info = String::from_utf8(info).unwrap();
        info.lines().find_map(|line| line.strip_prefix("build_id:")).unwrap().trim().to_owned()
    }

    /// Returns the pid of the successor that waits: the only other process that works on this data directory.
    fn waiting(&self, driver: u32) -> u32 {
        let data = self.dir.path().join("data").display().to_string();
        let is_it = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains(&data) && *pid != driver && *pid != self.first.child.id()
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(is_it).expect("a successor waits")
    }
}

impl Drop for Rig {
    /// A successor is nobody's child here.
    fn drop(&mut self) {
        for _ in 0..2 {
            let Some(status) = self.status() else { return };
            kill(status.process.pid);
        }
    }
}

fn kill(pid: u32) {
    if let Ok(process) = PidFd::open(pid) {
        // It may have ended already.
        let _ = process.signal(Signal::SIGKILL);
        let _ = process.wait_dead(Instant::now() + PATIENCE);
    }
}

/// A terminal, what a command has shown on it, and who sits at it.
struct Terminal {
    person: Option<File>,
    /// The terminal itself, to see how it is set.
    device: File,
    before: Termios,
    screen: Arc<(Mutex<String>, Condvar)>,
    over: Arc<AtomicBool>,
    child: Child,
    /// How much of the screen has been read.
    read: usize,
}

impl Terminal {
    fn run(mut command: Command) -> Self {
        let (person, device) = pseudo_terminal();
        let before = tcgetattr(&device).unwrap();
        let slave = || Stdio::from(device.try_clone().unwrap());
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        drop(command);
        let screen: Arc<(Mutex<String>, Condvar)> = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        watch(person.try_clone().unwrap(), Arc::clone(&screen), Arc::clone(&over));
        Self { person: Some(person), device, before, screen, over, child, read: 0 }
    }

    /// Waits until this is shown, behind all that was waited for before.
    #[track_caller]
    fn shows(&mut self, text: &str) -> &mut Self {
        let deadline = Instant::now() + PATIENCE;
        let mut screen = self.screen.0.lock().unwrap();
        loop {
            if let Some(at) = screen[self.read..].find(text) {
                self.read += at + text.len();
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} is not shown behind byte {}:\n{}", self.read, *screen);
            screen = self.screen.1.wait_timeout(screen, left).unwrap().0;
        }
        drop(screen);
        self
    }

    /// Waits for the question in this phase.
    #[track_caller]
    fn asks(&mut self, phase: &str) -> &mut Self {
        self.shows(&format!("{phase}: the ")).shows(" then the daemon undoes").shows("[?]: ")
    }

    fn types(&mut self, text: &str) -> &mut Self {
        self.person.as_ref().unwrap().write_all(text.as_bytes()).unwrap();
        self
    }

    fn screen(&self) -> String {
        self.screen.0.lock().unwrap().clone()
    }

    /// Waits for the end, and expects the terminal as it was found.
    #[track_caller]
    fn ends(&mut self, code: i32) -> &mut Self {
        let status = wait_for_exit(&mut self.child);
        assert_eq!(status.code(), Some(code), "{}", self.screen());
        assert_eq!(tcgetattr(&self.device).unwrap(), self.before, "{}", self.screen());
        self
    }

    /// The window is closed.
    fn close(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.person = None;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns both ends, which no process inherits by accident: the terminal is closed when the first one is.
fn pseudo_terminal() -> (File, File) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let person = nix::pty::posix_openpt(flags).unwrap();
    nix::pty::grantpt(&person).unwrap();
    nix::pty::unlockpt(&person).unwrap();
    let path = nix::pty::ptsname_r(&person).unwrap();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
    let device = options.open(path).unwrap();
    (File::from(OwnedFd::from(person)), device)
}

/// Reads what is shown, until nobody wants to know any more.
fn watch(mut person: File, screen: Arc<(Mutex<String>, Condvar)>, over: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while !over.load(Ordering::Relaxed) {
            let soon = Instant::now() + Duration::from_millis(20);
            let wants = handoff::sys::poll::Want::Read;
            if !handoff::sys::poll::wait_one(person.as_fd(), wants, Some(soon)).unwrap() {
                continue;
            }
            match person.read(&mut buffer) {
                Ok(n @ 1..) => screen.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
            }
            screen.1.notify_all();
        }
    });
}

// ---- Answers.

#[test]
fn each_pause_is_shown_and_goes_on_at_a_word_a_letter_or_enter() {
    let mut rig = Rig::start();
    let mut terminal = rig.step(&[]);
    let idle = rig.first.connect();
    terminal.asks("warm");
    assert_eq!(rig.status().unwrap().phase, "prepared");
    assert!(terminal.screen().contains("connections: 1 left; accept queue: 0 of "), "{}", terminal.screen());
    drop(idle);
    terminal.types("continue\n").asks("drained");
    assert_eq!(rig.status().unwrap().phase, "drained");
    terminal.types("c\n").asks("sealed");
    assert_eq!(rig.status().unwrap().phase, "sealed");
    terminal.types("\n").shows("committed ").ends(0);
    assert_eq!(rig.serving(), "v2");
    assert_eq!(rig.first.wait().code(), Some(0));
}

#[test]
fn every_way_to_say_no_undoes_it_in_every_pause() {
    let rig = Rig::start();
    // The last ones: the end of the input, alone and behind half a line, and Ctrl-C.
    for (phase, steps) in [("warm", 0), ("drained", 1), ("sealed", 2)] {
        for no in ["a\n", "Abort\n", "\u{4}", "contin\u{4}\u{4}", "\u{3}", "contin\u{3}"] {
            let mut terminal = rig.step(&[]);
            for asked in ["warm", "drained"].iter().take(steps) {
                terminal.asks(asked).types("\n");
            }
            terminal.asks(phase).types(no).shows("rolled back ").shows(&format!(" while {phase}, ")).ends(3);
            assert_eq!(rig.serving(), "v1", "{phase} {no:?}");
        }
    }
}

#[test]
fn help_status_and_nonsense_ask_again() {
    let rig = Rig::start();
    let mut terminal = rig.step(&[]);
    terminal.asks("warm").types("?\n").shows("open $SHELL").shows("[?]: ");
    terminal.types("yes\n").shows("none of these").shows("[?]: ");
    terminal.types("s\n").shows("warm: the ").shows("incumbent prepared: pid ").shows("listener");
    terminal.shows("handoff ").shows(" left").asks("warm");
    terminal.types("status\n").shows("incumbent prepared: pid ").asks("warm");
    terminal.types("a\n").ends(3);
}

#[test]
fn what_was_typed_before_the_question_is_no_answer_to_it() {
    let rig = Rig::start();
    let mut terminal = rig.step(&[]);
    // Had the others been answers, this would be a commit.
    terminal.asks("warm").types("c\nc\nc\nc\n").asks("drained").types("a\n").ends(3);
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn a_shell_in_a_pause_knows_the_handoff_and_comes_back() {
    let rig = Rig::start();
    let mut terminal = rig.step(&[]);
    terminal.asks("warm").types("\n").asks("drained").types("shell\n").shows("A shell in the pause");
    let id = rig.status().unwrap().handoff.unwrap().handoff;
    terminal.types("echo \"id=$HANDOFF_ID.\"\n").shows(&format!("id={id}."));
    terminal.types(&format!("{HANDOFF} status\n")).shows("incumbent drained: pid ").shows(&id).shows(" left");
    // Ctrl-C in it is the shell's.
    terminal.shows("$ ").types("\u{3}").shows("^C").shows("$ ");
    terminal.types("echo sti''ll\n").shows("still");
    terminal.types("exit\n").asks("drained");
    terminal.types("\n").asks("sealed").types("h\n").shows("A shell in the pause");
    terminal.types("exit 7\n").asks("sealed").types("\n").shows("committed ").ends(0);
    assert_eq!(rig.serving(), "v2");
}

fn script(dir: &Path, body: &str) -> String {
    let path = dir.join("shell");
    fs::write(&path, format!("#!/bin/bash\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_terminal_that_a_dying_shell_leaves_behind_is_put_right() {
    let rig = Rig::start();
    // It takes the terminal for a group of its own, as shells do, and dies of something that it cannot clean up after.
    let shell = script(rig.dir.path(), "set -m; (stty raw -echo </dev/tty; kill -9 $$; kill -9 $BASHPID)");
    let mut terminal = rig.step_with(&[], &shell);
    terminal.asks("warm").types("h\n").asks("warm").types("a\n").shows("rolled back ").ends(3);
}

#[test]
fn a_shell_that_cannot_be_run_is_said_and_asked_again() {
    let rig = Rig::start();
    let mut terminal = rig.step_with(&[], "/no/such/shell");
    terminal.asks("warm").types("h\n").shows("/no/such/shell").asks("warm").types("a\n").ends(3);
}

// ---- What happens while a person thinks.

/// Walks to a pause.
fn paused(rig: &Rig, options: &[&str], phase: &str) -> Terminal {
    let mut terminal = rig.step(options);
    for asked in ["warm", "drained", "sealed"] {
        terminal.asks(asked);
        if asked == phase {
            return terminal;
        }
        terminal.types("\n");
    }
    panic!("{phase} is no pause")
}

#[test]
fn a_daemon_that_dies_in_a_pause_is_succeeded_at_once() {
    for phase in ["warm", "drained", "sealed"] {
        let rig = Rig::start();
        let mut terminal = paused(&rig, &[], phase);
        kill(rig.first.child.id());
        terminal.shows("the daemon has died").shows("committed ").ends(0);
        assert_eq!(rig.serving(), "v2", "{phase}");
    }
}

#[test]
fn a_successor_that_dies_in_a_pause_is_said_at_once() {
    let rig = Rig::start();
    for phase in ["warm", "drained", "sealed"] {
        let mut terminal = paused(&rig, &[], phase);
        kill(rig.waiting(terminal.child.id()));
        terminal.shows("the handoff is being undone").shows("the successor died").ends(3);
        assert_eq!(rig.serving(), "v1", "{phase}");
    }
}

#[test]
fn a_driver_that_dies_in_a_pause_leaves_the_daemon_serving() {
    let rig = Rig::start();
    for phase in ["warm", "drained", "sealed"] {
        let terminal = paused(&rig, &[], phase);
        kill(terminal.child.id());
        eventually("the end of the handoff", || {
            rig.status().is_some_and(|status| status.phase == "serving" && status.handoff.is_none())
        });
        assert_eq!(rig.serving(), "v1", "{phase}");
    }
}

#[test]
fn a_closed_terminal_undoes_the_handoff() {
    let rig = Rig::start();
    for phase in ["warm", "sealed"] {
        let mut terminal = paused(&rig, &[], phase);
        terminal.close();
        let status = wait_for_exit(&mut terminal.child);
        assert_eq!(status.code(), Some(3), "{phase}");
        assert_eq!(rig.serving(), "v1", "{phase}");
    }
}

#[test]
fn an_abort_from_elsewhere_ends_a_pause_at_once() {
    let rig = Rig::start();
    let mut terminal = paused(&rig, &[], "drained");
    let mut abort = Command::new(HANDOFF);
    abort.arg("abort").env("HANDOFF_CONTROL", rig.control()).stdin(Stdio::null());
    Said::of(abort).expect(0);
    terminal.shows("rolled back ").ends(3);
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn the_deadline_passes_in_a_pause_and_half_an_answer_is_nobodys() {
    let rig = Rig::start();
    let mut terminal = rig.step(&["--warm-up-limit", "5s"]);
    terminal.asks("warm").shows("the handoff is being undone").shows("rolled back ").ends(4);
    for phase in ["drained", "sealed"] {
        let mut terminal = paused(&rig, &["--deadline", "4s"], phase);
        terminal.types("contin").shows("the handoff is being undone").shows("rolled back ").ends(4);
        // Whoever reads the terminal next does not find it.
        terminal.types("whole\n");
        let mut line = [0; 6];
        terminal.device.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"whole\n", "{phase}");
    }
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn the_deadline_passes_while_the_person_is_in_a_shell() {
    let rig = Rig::start();
    let mut terminal = paused(&rig, &["--deadline", "4s"], "drained");
    terminal.types("h\n").shows("A shell in the pause");
    terminal.shows("the handoff is being undone").shows("rolled back ").shows("leave this shell");
    assert_eq!(rig.serving(), "v1");
    // The shell is the person's.
    terminal.types("echo sti''ll\n").shows("still").types("exit\n").shows("rolled back ").ends(4);
}

#[test]
fn a_command_that_is_asked_to_stop_does_not_wait_for_its_shell() {
    let rig = Rig::start();
    let mut terminal = paused(&rig, &[], "warm");
    terminal.types("h\n").shows("A shell in the pause").types("echo he''re\n").shows("here");
    let driver = PidFd::open(terminal.child.id()).unwrap();
    driver.signal(Signal::SIGTERM).unwrap();
    terminal.shows("leave this shell");
    driver.signal(Signal::SIGTERM).unwrap();
    terminal.ends(3);
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn a_daemon_that_hangs_in_a_pause_is_put_out_of_the_way() {
    let rig = Rig::start();
    let mut terminal = paused(&rig, &["--deadline", "3s"], "sealed");
    rig.first.signal("STOP");
    terminal.shows("the daemon has died").shows("committed ").ends(0);
    assert_eq!(rig.serving(), "v2");
}

// ---- Without a person.

#[test]
fn without_a_terminal_it_is_a_wrong_command_line() {
    let rig = Rig::start();
    let mut command = Command::new(HANDOFF);
    command.args(["swap", "--step"]).args(rig.successor()).stdin(Stdio::null());
    let said = Said::of({
        command.env("HANDOFF_CONTROL", rig.control());
        command
    })
    .expect(100);
    assert!(said.err.contains("standard input is not a terminal"), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    assert_eq!(rig.status().unwrap().generation, 1);
}

#[test]
fn the_librarys_driver_holds_until_its_observer_goes_on() {
    let rig = Rig::start();
    let words = rig.successor();
    let spec = SpawnSpec {
        binary: words[0].clone().into(),
        args: words[1..].to_vec(),
        step: true,
        ..SpawnSpec::default()
    };
    let (mut held, mut seen) = (vec![], vec![]);
    let supervisor = Supervisor::new(rig.control()).unwrap();
    let outcome = supervisor
        .perform_observed(spec, &mut |event| match event {
            Event::Phase(phase) => {
                held.push(((*phase).to_owned(), 0));
                // It is too early: nothing is said of this phase yet, and in most there is nothing to hold.
                Wish::Continue
            }
            Event::Tick { phase, open_conns, left, .. } => {
                let (name, ticks) = held.last_mut().unwrap();
                *ticks += 1;
                if *ticks < 5 || !["warm", "drained", "sealed"].contains(phase) {
                    return Wish::Continue;
                }
                assert_eq!(name, phase);
                seen.push((name.clone(), open_conns.is_some(), left.is_some()));
                Wish::GoOn
            }
        })
        .unwrap();
    assert!(outcome.committed, "{outcome:?}");
    let expected = ["warm", "drained", "sealed"].map(|phase| (phase.to_owned(), true, true));
    assert_eq!(seen, expected);
    drop(common::Serving(outcome.child.unwrap()));
}
