//! Triggers that must be refused: refused, written down, nothing started, and no client of the daemon notices.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "rig/process.rs"]
mod process;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::load::{Load, Plan};
use common::{HANDOFF, PATIENCE, eventually, has_sudo};
use handoff::control::Control;
use handoff::error::Error;
use handoff::supervise::client::Client;
use handoff::supervise::wire::{State, Swap};
use handoff::sys::unix;
use process::{Process, example};

/// A supervisor, its daemon under load, and programs that say that they were run.
struct Rig {
    dir: tempfile::TempDir,
    supervisor: Process,
    load: Option<Load>,
    first: u32,
}

impl Rig {
    /// Starts a supervisor that was told these keys; DIR in them is the directory of it all.
    fn start(keys: &[&str]) -> Self {
        Self::start_after(keys, |_| {})
    }

    fn start_after(keys: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users come here too.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for name in ["configured", "allowed", "forbidden"] {
            write_program(&dir.path().join("bin").join(name), dir.path());
        }
        prepare(dir.path());
        let path = dir.path().to_str().unwrap();
        let mut command = Command::new(example("supervisor"));
        command.arg(path).arg("listen=resp=127.0.0.1:0");
        command.args(keys.iter().map(|key| key.replace("DIR", path)));
        command.arg("--").arg(dir.path().join("bin/configured")).args(["--data-dir", path]);
        let supervisor = Process::start(&mut command);
        let mut rig = Self { dir, supervisor, load: None, first: 0 };
        rig.first = rig.settle();
        rig.load = Some(Load::start(&Plan::new(rig.addr(), 4)).unwrap());
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn trigger(&self) -> PathBuf {
        self.path("trigger")
    }

    fn state(&self) -> Option<State> {
        let soon = Instant::now() + Duration::from_secs(10);
        Client::connect(self.trigger()).ok()?.status(soon).ok()
    }

    fn addr(&self) -> SocketAddr {
        let soon = Instant::now() + PATIENCE;
        let status = Control::connect(self.path("control"), "test", soon).unwrap().status(soon).unwrap();
        status.listeners[0].address.parse().unwrap()
    }

    /// Asks as this very user.
    fn swap_to(&self, binary: &Path) -> handoff::Result<bool> {
        let swap = Swap { binary: Some(binary.to_owned()), queue: true, ..Swap::default() };
        let until = Some(Instant::now() + PATIENCE);
        Ok(Client::connect(self.trigger())?.swap(swap, until, &mut |_| {})?.committed)
    }

    #[track_caller]
    fn expect_refused(&self, binary: &Path, why: &str) {
        match self.swap_to(binary) {
            Err(Error::Refused { reason }) => assert!(reason.contains(why), "{}: {reason}", binary.display()),
            other => panic!("{}: {other:?} {:#?}", binary.display(), self.supervisor.lines()),
        }
        self.expect_recorded(&binary.display().to_string());
    }

    /// Says a line as nobody, and returns the last answer.
    fn nobody_says(&self, line: &str) -> String {
        let script = "\
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode() + b'\\n')
for line in s.makefile():
    print(line)
    if 'started' not in line and 'queued' not in line: break
";
        let mut python = Command::new("sudo");
        python.args(["-n", "-u", "nobody", "python3", "-c", script]).arg(self.trigger()).arg(line);
        let Output { stdout, stderr, .. } = python.current_dir("/").output().unwrap();
        String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
    }

    #[track_caller]
    fn expect_nobody_refused(&self, line: &str, why: &str) {
        let said = self.nobody_says(line);
        assert!(said.contains("\"refused\"") && said.contains(why), "{line}: {said}");
    }

    #[track_caller]
    fn expect_recorded(&self, what: &str) {
        let journal = fs::read_to_string(self.path("journal")).unwrap();
        assert!(
            journal.lines().any(|line| line.contains("refused to pid") && line.contains(what)),
            "{journal}"
        );
    }

    /// Which programs were started, in order.
    fn started(&self) -> Vec<String> {
        fs::read_to_string(self.path("ran")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn daemons(&self) -> Vec<u32> {
        let mut pids = process::with_argument(self.dir.path());
        pids.retain(|pid| *pid != self.supervisor.pid());
        pids
    }

    /// Waits until exactly one daemon is left, and is supervised; returns its pid.
    fn settle(&self) -> u32 {
        let mut found = None;
        eventually("one daemon that is supervised", || {
            let serving = self.state().filter(|state| state.doing == "serving");
            found = serving.and_then(|state| Some(state.daemon?.pid));
            found.is_some_and(|pid| self.daemons() == [pid])
        });
        found.unwrap()
    }

    /// Nothing but the first daemon was ever started, it serves, and nobody noticed anything.
    #[track_caller]
    fn expect_untouched(self) {
        assert_eq!(self.settle(), self.first, "{:#?}", self.supervisor.lines());
        assert_eq!(self.started(), ["configured"]);
        self.expect_clean();
    }

    #[track_caller]
    fn expect_clean(mut self) {
        let load = self.load.take().unwrap();
        let before = load.counts().acknowledged;
        eventually("more writes", || load.counts().acknowledged > before + 10);
        let ledger = load.stop();
        assert_eq!(ledger.counts.disturbances(), 0, "{:?}\n{:#?}", ledger.counts, self.supervisor.lines());
        assert_eq!(ledger.read_back(self.addr()).unwrap().lost, 0);
    }
}

impl Drop for Rig {
    /// Nothing outlives its test, whatever came of it.
    fn drop(&mut self) {
        self.supervisor.kill();
        for pid in process::with_argument(self.dir.path()) {
            process::signal(pid, "KILL");
        }
        drop(self.load.take().map(Load::stop));
    }
}

/// A daemon that first says, in a file, by which name it was written.
fn write_program(path: &Path, dir: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let ran = dir.join("ran");
    let text = format!(
        "#!/bin/sh\necho {name} >>'{}'\nexec '{HANDOFF}' kvd --version-label {name} \"$@\"\n",
        ran.display()
    );
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

fn uid_of_nobody() -> String {
    let id = Command::new("id").args(["-u", "nobody"]).output().unwrap();
    String::from_utf8(id.stdout).unwrap().trim().to_owned()
}

fn swap_line(binary: &Path) -> String {
    format!("{{\"type\":\"swap\",\"binary\":\"{}\"}}", binary.display())
}

// Who asks.

#[test]
fn a_user_who_is_not_allowed_is_refused_whatever_he_asks_for() {
    if !has_sudo() {
        return;
    }
    let rig = Rig::start(&["uid=54321"]);
    for line in [
        "{\"type\":\"swap\"}",
        "{\"type\":\"reexec\"}",
        "{\"type\":\"status\"}",
        &swap_line(&rig.path("bin/allowed")),
    ] {
        rig.expect_nobody_refused(line, "may not ask this supervisor");
        rig.expect_recorded("may not ask this supervisor");
    }
    rig.expect_untouched();
}

#[test]
fn where_nobody_else_may_ask_the_socket_is_not_even_there_for_him() {
    if !has_sudo() {
        return;
    }
    let rig = Rig::start(&[]);
    let said = rig.nobody_says("{\"type\":\"swap\"}");
    assert!(said.contains("PermissionError"), "{said}");
    rig.expect_untouched();
}

#[test]
fn another_user_may_give_no_arguments_and_start_no_successor() {
    if !has_sudo() {
        return;
    }
    let rig = Rig::start(&[&format!("uid={}", uid_of_nobody())]);
    let spawn = "{\"type\":\"spawn\",\"handoff\":\"h\",\"binary\":\"/bin/sh\",\"args\":[]}";
    for (line, why) in [
        ("{\"type\":\"swap\",\"args\":[\"--fail\",\"unhealthy\"]}", "may not give arguments"),
        ("{\"type\":\"swap\",\"args\":[]}", "may not give arguments"),
        (spawn, "may ask for swaps alone"),
        ("{\"type\":\"reexec\"}", "may ask for swaps alone"),
    ] {
        rig.expect_nobody_refused(line, why);
        rig.expect_recorded(why);
    }
    rig.expect_untouched();
}

// For which program.

#[test]
fn a_program_is_known_by_its_file_and_not_by_any_name_of_it() {
    let rig = Rig::start(&["allow=DIR/bin/allowed", "allow=DIR/shelf/"]);
    let forbidden = rig.path("bin/forbidden");
    fs::create_dir(rig.path("shelf")).unwrap();
    fs::hard_link(&forbidden, rig.path("bin/allowed-hard")).unwrap();
    symlink(&forbidden, rig.path("bin/allowed-soft")).unwrap();
    symlink(&forbidden, rig.path("shelf/allowed")).unwrap();
    symlink(rig.path("bin"), rig.path("shelf/bin")).unwrap();
    fs::copy(rig.path("bin/allowed"), rig.path("bin/copy")).unwrap();
    for name in [
        "bin/forbidden",
        "bin/allowed-hard",
        "bin/allowed-soft",
        "bin/../bin/forbidden",
        "bin/allowed/../forbidden",
        "shelf/allowed",
        "shelf/bin/forbidden",
        "shelf/../bin/forbidden",
        "./bin//forbidden",
        "bin/copy",
    ] {
        let path = rig.path(name);
        // The one through a file is refused by the kernel.
        let why = if name == "bin/allowed/../forbidden" { "Not a directory" } else { "none of the allowed" };
        rig.expect_refused(&path, why);
    }
    for name in ["bin/allowed", "allowed", "configured", "../bin/allowed", ""] {
        rig.expect_refused(Path::new(name), "no full path");
    }
    rig.expect_untouched();
}

#[test]
fn a_descriptor_is_no_way_around_the_list() {
    let rig = Rig::start(&["allow=DIR/bin/allowed"]);
    // It is this process's to name, and the supervisor's own is another.
    let forbidden = fs::File::open(rig.path("bin/forbidden")).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&forbidden);
    rig.expect_refused(
        Path::new(&format!("/proc/{}/fd/{number}", std::process::id())),
        "none of the allowed",
    );
    for number in 0..32 {
        for form in ["/proc/self/fd", "/dev/fd"] {
            rig.expect_refused(Path::new(&format!("{form}/{number}")), "");
        }
    }
    rig.expect_refused(Path::new("/proc/self/exe"), "none of the allowed");
    rig.expect_untouched();
}

#[test]
fn what_is_no_program_is_refused() {
    let rig = Rig::start(&["allow=DIR/bin/"]);
    fs::write(rig.path("bin/text"), "text").unwrap();
    fs::create_dir(rig.path("bin/directory")).unwrap();
    assert!(Command::new("mkfifo").arg(rig.path("bin/fifo")).status().unwrap().success());
    for name in ["text", "directory", "fifo", "missing"] {
        rig.expect_refused(&rig.path("bin").join(name), "");
    }
    rig.expect_untouched();
}

/// One that runs to and fro between two programs under one name, as fast as it can, until it is dropped.
struct Juggler {
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Juggler {
    fn start(name: PathBuf, put: impl Fn(&str, &Path) + Send + 'static) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let beside = name.with_extension("beside");
            for program in ["allowed", "forbidden"].iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                put(program, &beside);
                fs::rename(&beside, &name).unwrap();
                // rename(2) leaves both names where they are one file already.
                let _ = fs::remove_file(&beside);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Juggler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn expect_never_forbidden(put: fn(&Path, &Path)) {
    let rig = Rig::start(&["allow=DIR/bin/allowed"]);
    let current = rig.path("current");
    let bin = rig.path("bin");
    put(&bin.join("allowed"), &current);
    let juggler = Juggler::start(current.clone(), move |program, beside| put(&bin.join(program), beside));
    let (mut refused, mut swapped) = (0, 0);
    let until = Instant::now() + PATIENCE;
    while (refused < 10 || swapped < 5) && Instant::now() < until {
        match rig.swap_to(&current) {
            Ok(committed) => swapped += i32::from(committed),
            Err(Error::Refused { .. }) => refused += 1,
            Err(e) => panic!("{e}"),
        }
    }
    drop(juggler);
    assert!(refused > 0 && swapped > 0, "{refused} refused, {swapped} swapped: the race was never run");
    rig.settle();
    let started = rig.started();
    assert!(!started.iter().any(|name| name == "forbidden"), "{started:?}");
    rig.expect_recorded("none of the allowed");
    rig.expect_clean();
}

#[test]
fn a_symbolic_link_that_is_swapped_at_the_last_moment_never_runs_the_forbidden_one() {
    expect_never_forbidden(|program, name| symlink(program, name).unwrap());
}

#[test]
fn a_name_that_is_renamed_over_at_the_last_moment_never_runs_the_forbidden_one() {
    expect_never_forbidden(|program, name| fs::hard_link(program, name).unwrap());
}

#[test]
fn what_others_may_write_is_run_for_nobody_else() {
    if !has_sudo() {
        return;
    }
    let keys = [
        &format!("uid={}", uid_of_nobody()),
        "allow=DIR/bin/allowed",
        "allow=DIR/open/",
        "allow=DIR/open/one",
    ];
    let rig = Rig::start_after(&keys, |dir| {
        fs::set_permissions(dir.join("bin/allowed"), Permissions::from_mode(0o757)).unwrap();
        fs::create_dir(dir.join("open")).unwrap();
        fs::set_permissions(dir.join("open"), Permissions::from_mode(0o777)).unwrap();
        write_program(&dir.join("open/program"), dir);
    });
    // The file itself, and a directory in which a program of everybody's could be put.
    rig.expect_nobody_refused(&swap_line(&rig.path("bin/allowed")), "others may write");
    rig.expect_nobody_refused(&swap_line(&rig.path("open/program")), "none of the allowed");
    // Whoever may write to the directory chooses what the allowed name is.
    let place = Command::new("sudo")
        .args(["-n", "-u", "nobody", "ln", "-s"])
        .arg(rig.path("bin/forbidden"))
        .arg(rig.path("open/one"))
        .status();
    assert!(place.unwrap().success());
    for name in ["open/one", "bin/forbidden"] {
        rig.expect_nobody_refused(&swap_line(&rig.path(name)), "none of the allowed");
        rig.expect_recorded("none of the allowed");
    }
    // His own file, by whatever name.
    let place = Command::new("sudo")
        .args(["-n", "-u", "nobody", "cp"])
        .arg(rig.path("bin/forbidden"))
        .arg(rig.path("open/his"))
        .status();
    assert!(place.unwrap().success());
    rig.expect_nobody_refused(&swap_line(&rig.path("open/his")), "");
    rig.expect_untouched();
}

#[test]
fn the_configured_program_is_run_for_nobody_else_where_others_could_replace_it() {
    if !has_sudo() {
        return;
    }
    let rig = Rig::start(&[&format!("uid={}", uid_of_nobody())]);
    fs::set_permissions(rig.path("bin"), Permissions::from_mode(0o777)).unwrap();
    rig.expect_nobody_refused("{\"type\":\"swap\"}", "others may write");
    rig.expect_nobody_refused(&swap_line(&rig.path("bin/configured")), "others may write");
    fs::set_permissions(rig.path("bin"), Permissions::from_mode(0o755)).unwrap();
    rig.expect_untouched();
}

// What comes along.

#[test]
fn nothing_of_a_clients_environment_reaches_the_successor() {
    let rig = Rig::start(&[]);
    let mark = "hostile-b3a1";
    let mut ask = Command::new(HANDOFF);
    ask.args(["trigger", "--json", "--trigger"]).arg(rig.trigger()).stdin(Stdio::null());
    ask.env("PATH", format!("/{mark}:/usr/bin")).env("LD_PRELOAD", format!("/{mark}.so"));
    ask.env("NOTIFY_SOCKET", format!("/{mark}")).env("LISTEN_FDS", "3").env("LISTEN_FDNAMES", mark);
    ask.env("LISTEN_PID", "1").env("HANDOFF_ID", mark).env("HANDOFF_JOURNAL", format!("/{mark}"));
    ask.env("HANDOFF_CONTROL", format!("/{mark}")).env("HANDOFF_DATA_DIR", format!("/{mark}"));
    ask.env("HANDOFF_FDS", format!("{mark}=3")).env("WATCHDOG_USEC", "1").env(mark, "1");
    let said = ask.output().unwrap();
    assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
    // Nor what a request has no field for.
    let line = format!(
        "{{\"type\":\"swap\",\"env\":[[\"LD_PRELOAD\",\"{mark}\"]],\"directory\":\"/{mark}\",\"data_dir\":\"/{mark}\"}}\n"
    );
    let mut raw = UnixStream::connect(rig.trigger()).unwrap();
    raw.write_all(line.as_bytes()).unwrap();
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    let verdict = BufReader::new(&raw).lines().map(Result::unwrap).find(|line| line.contains("\"verdict\""));
    assert!(verdict.unwrap().contains("committed"));
    let pid = rig.settle();
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environ = String::from_utf8_lossy(&environ).replace('\0', "\n");
    // Its NOTIFY_SOCKET is the supervisor's own.
    for word in [mark, "WATCHDOG_USEC", "LD_PRELOAD"] {
        assert!(!environ.contains(word), "{environ}");
    }
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert!(!cwd.display().to_string().contains(mark), "{}", cwd.display());
    assert_eq!(rig.started(), ["configured"; 3]);
    rig.expect_clean();
}

// How.

fn connect(rig: &Rig) -> UnixStream {
    let stranger = UnixStream::connect(rig.trigger()).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    stranger
}

/// What is said to him until he is shown the door.
fn rest(mut stranger: &UnixStream) -> String {
    let mut said = String::new();
    // A reset after the answer is how a close with something unread looks.
    let _ = stranger.read_to_string(&mut said);
    said
}

/// Waits until the supervisor has no more open than before.
fn expect_nothing_kept(rig: &Rig, before: usize) {
    eventually("what strangers brought to be closed", || descriptors(rig) <= before);
}

fn descriptors(rig: &Rig) -> usize {
    fs::read_dir(format!("/proc/{}/fd", rig.supervisor.pid())).unwrap().count()
}

#[test]
fn garbage_is_refused_and_nothing_of_it_is_kept() {
    let rig = Rig::start(&[]);
    let before = descriptors(&rig);
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\n",
        b"{}\n",
        b"null\n",
        b"{\"type\":\"swap\",\"binary\":7}\n",
        b"{\"type\":\"swap\",\"bake_ms\":-1}\n",
        b"{\"type\":\"Swap\"}\n",
        b"{\"type\":\"spawn\"}\n",
        b"\xff\xfe\x00\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
    ] {
        let mut stranger = connect(&rig);
        stranger.write_all(garbage).unwrap();
        let mut line = String::new();
        BufReader::new(&stranger).read_line(&mut line).unwrap();
        assert!(line.contains("\"refused\""), "{}: {line}", String::from_utf8_lossy(garbage));
    }
    // Its end comes before the last byte is taken.
    let mut stranger = connect(&rig);
    let _ = stranger.write_all(&vec![b'{'; 4 << 20]);
    rest(&stranger);
    // Nesting is no way to exhaust a stack.
    let mut stranger = connect(&rig);
    let _ = stranger.write_all(&[&b"{\"type\":"[..], &vec![b'['; 200_000], b"\n"].concat());
    drop(stranger);
    expect_nothing_kept(&rig, before);
    rig.expect_untouched();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let rig = Rig::start(&[]);
    let before = descriptors(&rig);
    let null = fs::File::open("/dev/null").unwrap();
    let hundred: Vec<BorrowedFd<'_>> = (0..100).map(|_| null.as_fd()).collect();
    for (line, count) in [
        (&b"{\"type\":\"status\"}\n"[..], 100),
        (b"{\"type\":\"status\"}\n", 1),
        (b"{\"type\":\"dance\"}\n", 1),
        (b"{\"type\":\"stat", 1),
        (b"{\"type\":\"spawn\",\"handoff\":\"h\",\"binary\":\"/nowhere\",\"args\":[]}\n", 1),
        (b"{\"type\":\"spawn\",\"handoff\":\"h\",\"binary\":\"/nowhere\",\"args\":[]}\n", 2),
    ] {
        let stranger = connect(&rig);
        unix::send(stranger.as_fd(), line, &hundred[..count]).unwrap();
        stranger.shutdown(Shutdown::Write).unwrap();
        rest(&stranger);
    }
    expect_nothing_kept(&rig, before);
    rig.expect_untouched();
}

#[test]
fn a_flood_delays_neither_a_swap_nor_who_else_asks() {
    let rig = Rig::start(&[&format!("uid={}", uid_of_nobody())]);
    let flood: Vec<UnixStream> = (0..40)
        .map(|n| {
            let mut stranger = connect(&rig);
            // Some are silent, some are slow, and some never take their answer.
            let said = ["", "{\"type\":\"sta", "{\"type\":\"status\"}\n"][n % 3];
            stranger.write_all(said.as_bytes()).unwrap();
            stranger
        })
        .collect();
    assert!(rig.swap_to(&rig.path("bin/configured")).unwrap());
    assert_eq!(rig.state().unwrap().swaps, [("committed".to_owned(), 1)]);
    drop(flood);
    rig.settle();
    assert_eq!(rig.started(), ["configured"; 2]);
    rig.expect_clean();
}

#[test]
fn a_flood_of_another_user_leaves_room_for_who_runs_the_supervisor() {
    if !has_sudo() {
        return;
    }
    let rig = Rig::start(&[&format!("uid={}", uid_of_nobody())]);
    let script = "\
import socket, sys, time
open_ = []
for n in range(60):
    s = socket.socket(socket.AF_UNIX)
    s.setblocking(False)
    try: s.connect(sys.argv[1])
    except BlockingIOError: break
    open_.append(s)
print('flooded', flush=True)
sys.stdin.read()
";
    let mut flood = Command::new("sudo")
        .args(["-n", "-u", "nobody", "python3", "-c", script])
        .arg(rig.trigger())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(flood.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "flooded\n");
    assert!(rig.swap_to(&rig.path("bin/configured")).unwrap());
    drop(flood.stdin.take());
    flood.wait().unwrap();
    rig.settle();
    rig.expect_clean();
}

#[test]
fn a_client_that_goes_away_at_any_moment_leaves_nothing_behind() {
    let rig = Rig::start(&["allow=DIR/bin/allowed"]);
    let before = descriptors(&rig);
    let line = swap_line(&rig.path("bin/forbidden")) + "\n";
    // After every byte of a request that is refused.
    for length in 0..=line.len() {
        let mut stranger = UnixStream::connect(rig.trigger()).unwrap();
        stranger.write_all(&line.as_bytes()[..length]).unwrap();
        if length % 2 == 0 {
            stranger.shutdown(Shutdown::Both).unwrap();
        }
    }
    expect_nothing_kept(&rig, before);
    eventually("the refusal to be written down", || {
        fs::read_to_string(rig.path("journal")).unwrap().contains("none of the allowed programs")
    });
    rig.expect_untouched();
}

#[test]
fn a_swap_goes_on_without_the_client_that_asked_for_it() {
    let rig = Rig::start(&[]);
    for swaps in 1..=3 {
        let mut stranger = UnixStream::connect(rig.trigger()).unwrap();
        stranger.write_all(b"{\"type\":\"swap\",\"queue\":true}\n").unwrap();
        drop(stranger);
        let ended = |state: State| state.swaps.iter().map(|(_, count)| count).sum::<u64>();
        eventually("the swap to end", || rig.state().map(ended) == Some(swaps));
    }
    assert_ne!(rig.settle(), rig.first);
    assert_eq!(rig.started(), ["configured"; 4]);
    rig.expect_clean();
}

/// What a driver asked for that is dead by now.
#[test]
fn a_successor_whose_driver_is_gone_goes_too() {
    let rig = Rig::start(&[]);
    let before = descriptors(&rig);
    for handoff in ["h1", "h2"] {
        let (ours, theirs) = unix::pair().unwrap();
        let binary = rig.path("bin/configured");
        let path = rig.path("").display().to_string();
        let line = format!(
            "{{\"type\":\"spawn\",\"handoff\":\"{handoff}\",\"binary\":\"{}\",\"args\":[\"--data-dir\",\"{path}\"]}}\n",
            binary.display()
        );
        let stranger = connect(&rig);
        unix::send(stranger.as_fd(), line.as_bytes(), &[theirs.as_fd()]).unwrap();
        let mut answer = String::new();
        BufReader::new(&stranger).read_line(&mut answer).unwrap();
        assert!(answer.contains("\"spawned\""), "{answer}");
        drop((ours, theirs, stranger));
    }
    assert_eq!(rig.settle(), rig.first);
    expect_nothing_kept(&rig, before);
    rig.expect_clean();
}
