//! `handoff lock` as a link, and `handoff lock --who`.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::said::Said;
use common::{HANDOFF, Kvd, eventually, has_tool, wait_for_exit};
use handoff::DataDirLock;
use handoff::sys::unix;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde_json::Value;

/// A directory with a data directory in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data").canonicalize().unwrap()
    }

    /// Runs a shell in the directory, for which `$H` is the command and `$D` the data directory.
    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).envs([("H", HANDOFF.as_ref()), ("D", self.data().as_os_str())]);
        bare(&mut command).current_dir(self.dir.path());
        command
    }

    fn run(&self, script: &str) -> Said {
        Said::of(self.shell(script))
    }

    fn who(&self) -> Value {
        let said = self.run("$H lock --who --json $D");
        assert_eq!(said.code, i32::from(said.json()["locked"] == false), "{said:?}");
        said.json()
    }

    /// Starts a chain that ends in a program that waits until its standard input closes.
    fn hold(&self, chain: &str) -> Held {
        let mut command = self.shell(&format!("exec {chain} sh -c 'echo here; read line'"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        Held(child)
    }

    /// The same, with a child that has the lock too, and sleeps.
    fn hold_with_sleeper(&self) -> (Held, u32) {
        let held =
            self.hold("$H lock $D sh -c 'sleep 300 >/dev/null 2>&1 & echo $! >sleeper; exec \"$@\"' -");
        let sleeper = fs::read_to_string(self.dir.path().join("sleeper")).unwrap().trim().parse().unwrap();
        eventually("the sleeper", || name_of(sleeper) == "sleep");
        (held, sleeper)
    }
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn bare(command: &mut Command) -> &mut Command {
    for name in ["HANDOFF_FDS", "HANDOFF_DATA_DIR", "HANDOFF_LOG", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null())
}

/// A process that has the lock until it is released.
struct Held(Child);

impl Held {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn release(mut self) {
        drop(self.0.stdin.take());
        wait_for_exit(&mut self.0);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- As a link.

#[test]
fn a_chain_that_has_the_lock_uses_it_and_does_not_block_on_itself() {
    let place = Place::new();
    std::os::unix::fs::symlink("data", place.dir.path().join("link")).unwrap();
    for dirs in [&["$D", "$D"][..], &["$D", "data", "link", "./data/."]] {
        let chain: Vec<String> = dirs.iter().map(|dir| format!("$H lock {dir} env")).collect();
        let said =
            place.run(&format!("{} sh -c 'echo $HANDOFF_FDS; echo $HANDOFF_DATA_DIR'", chain.join(" ")));
        let said = said.expect(0);
        let lines: Vec<&str> = said.out.lines().collect();
        assert!(lines[0].starts_with("lock=") && !lines[0].contains(' '), "one copy of one lock: {said:?}");
        assert_eq!((Path::new(lines[1]), said.err.as_str()), (place.data().as_path(), ""));
    }
}

#[test]
fn several_locks_in_one_chain_are_all_held_by_its_last_program() {
    let place = Place::new();
    fs::create_dir(place.dir.path().join("other")).unwrap();
    let held = place.hold("$H lock $D -- $H lock other -- $H lock --lock-file .second.lock $D");
    for file in ["data/.handoff.lock", "other/.handoff.lock", "data/.second.lock"] {
        let holding = DataDirLock::holding(place.dir.path().join(file)).unwrap();
        let pids: Vec<u32> = holding.holders.iter().map(|holder| holder.pid).collect();
        assert_eq!((pids, holding.takers), (vec![held.pid()], vec![held.pid()]), "{file}");
    }
    place.run("$H lock other true").expect(1);
}

#[test]
fn a_chain_that_was_robbed_of_its_lock_takes_it_again_or_waits_for_it() {
    if !has_tool("util-linux", Command::new("flock").arg("--version")) {
        return;
    }
    let place = Place::new();
    let robbed = "N=${HANDOFF_FDS#lock=}; flock -u ${N%%@*}; echo unlocked >&2; read go; \
                  exec $H lock \"$@\" $D sh last";
    fs::write(place.dir.path().join("robbed"), robbed).unwrap();
    // What the chain passes on must be the description that is locked now.
    let last = "echo ${HANDOFF_FDS##* }; flock -n $D/.handoff.lock true && echo free || echo held";
    fs::write(place.dir.path().join("last"), last).unwrap();
    for (wait, is_stolen, code) in [("0s", false, 0), ("0s", true, 1), ("60s", true, 0)] {
        let mut chain = place.shell(&format!("exec $H lock $D sh robbed --wait {wait}"));
        let mut chain =
            chain.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut err = BufReader::new(chain.stderr.take().unwrap());
        err.read_line(&mut String::new()).unwrap();
        let mut thief = is_stolen.then(|| place.hold("$H lock $D"));
        drop(chain.stdin.take());
        if code == 0 && is_stolen {
            eventually("the chain to ask again", || name_of(chain.id()) == "handoff");
            thief.take().unwrap().release();
        }
        let (status, mut out) = (wait_for_exit(&mut chain), String::new());
        chain.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(status.code(), Some(code), "{out}");
        assert_eq!(out.starts_with("lock=") && out.ends_with("\nheld\n"), code == 0, "{out}");
    }
}

#[test]
fn a_lock_that_is_held_fails_at_once_and_every_holder_is_named() {
    let place = Place::new();
    let (held, sleeper) = place.hold_with_sleeper();
    let start = Instant::now();
    let said = place.run("$H lock $D touch ran").expect(1);
    assert!(start.elapsed() < Duration::from_secs(20), "it does not wait");
    let lock = place.data().join(".handoff.lock");
    let start = format!("handoff lock: fatal: unable to lock {}: held by pid ", lock.display());
    assert!(said.err.starts_with(&start) && said.err.lines().count() == 1, "{said:?}");
    assert!(said.err.contains(&format!("pid {} (", held.pid())), "{said:?}");
    let inherited = format!("pid {sleeper} (sleep 300), which inherited it from pid {}", held.pid());
    assert!(said.err.contains(&inherited), "{said:?}");
    assert!(!place.dir.path().join("ran").exists());
    held.release();
    // It lives as long as any process that has it.
    place.run("$H lock $D true").expect(1);
    place.run(&format!("kill -9 {sleeper}")).expect(0);
    place.run("$H lock --wait 60s $D true").expect(0);
}

#[test]
fn a_wait_ends_with_its_limit_or_with_the_lock() {
    let place = Place::new();
    let held = place.hold("$H lock $D");
    let start = Instant::now();
    let said = place.run("$H lock --wait 300ms $D touch ran").expect(1);
    assert!(start.elapsed() >= Duration::from_millis(300), "{said:?}");
    assert!(said.err.contains("held by pid "), "{said:?}");
    let waiting = place.shell("exec $H lock --wait forever --progress always $D touch ran");
    let mut waiting = { waiting }.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(
        line.starts_with("handoff lock: info: waiting to lock ") && line.contains("held by pid "),
        "{line}"
    );
    assert!(!place.dir.path().join("ran").exists());
    held.release();
    assert_eq!(wait_for_exit(&mut waiting).code(), Some(0));
    assert!(place.dir.path().join("ran").exists());
    for time in ["ever", "-1s", ""] {
        place.run(&format!("$H lock --wait '{time}' $D true")).expect(100);
    }
}

#[test]
fn a_wait_on_a_terminal_shows_who_is_waited_for() {
    if !has_tool("bsdutils", Command::new("script").arg("--version")) {
        return;
    }
    let place = Place::new();
    let held = place.hold("$H lock $D");
    for (when, shown) in [("auto", true), ("never", false)] {
        let script = format!("script -qec \"$H lock --wait 1s --progress {when} $D true\" /dev/null");
        let mut command = place.shell(&script);
        command.env("TERM", "xterm").env("COLUMNS", "200");
        let said = Said::of(command).expect(1);
        assert_eq!(said.out.contains(" of 1.0s: waiting to lock "), shown, "{when}: {said:?}");
        assert!(said.out.contains(&format!("held by pid {}", held.pid())), "{said:?}");
    }
}

#[test]
fn a_wrong_command_line_takes_nothing() {
    let place = Place::new();
    for (script, part) in [
        ("$H lock $D", "a program must follow"),
        ("$H lock $D --", "a program must follow"),
        ("$H lock", "required"),
        ("HANDOFF_DATA_DIR=$D $H lock", "required"),
        ("$H lock '' true", "DIR"),
        ("$H lock --lock-file a/b $D true", "must be a name in the data directory, not \"a/b\""),
        ("$H lock --lock-file '' $D true", "must be a name in the data directory, not \"\""),
        ("$H lock --wiat 1s $D true", "--wiat"),
        ("$H lock --json $D true", "--who"),
        ("$H lock --who $D true", "--who starts no program"),
        ("$H lock --who $D --json", "options go before the directory"),
        ("$H lock --who", "name the data directory, or set HANDOFF_DATA_DIR"),
    ] {
        let said = place.run(script).expect(100);
        assert!(said.err.contains(part) && said.out.is_empty(), "{script}: {said:?}");
    }
    assert!(!place.data().join(".handoff.lock").exists());
    // With a variable that could stand for the directory, the first word is the directory all the same.
    let said = place.run("HANDOFF_DATA_DIR=$D $H lock -- true").expect(100);
    assert!(said.err.contains("a program must follow"), "{said:?}");
}

#[test]
fn a_directory_that_is_not_there_is_not_made() {
    let place = Place::new();
    let said = place.run("$H lock nowhere true").expect(111);
    assert!(
        said.err.contains("find the data directory nowhere, which must be there: No such file"),
        "{said:?}"
    );
    assert!(!place.dir.path().join("nowhere").exists());
    // Before the lock: a program that cannot be run takes none.
    place.run("$H lock $D no-such-program").expect(127);
    assert!(!place.data().join(".handoff.lock").exists());
}

#[test]
fn options_of_the_program_are_the_programs() {
    let place = Place::new();
    let said = place.run("$H lock $D echo --wait forever --who").expect(0);
    assert_eq!(said.out, "--wait forever --who\n");
    let said = place.run("$H lock $D -- echo -- -x").expect(0);
    assert_eq!(said.out, "-- -x\n");
}

#[test]
fn a_daemon_that_knows_handoff_adopts_the_lock_and_hands_it_over() {
    let place = Place::new();
    let mut command =
        place.shell("exec $H lock $D $H kvd --listen 127.0.0.1:0 --data-dir $D --version-label v1");
    command.stdin(Stdio::null());
    let mut kvd = Kvd::spawn(command);
    let who = place.who();
    assert_eq!(who["holders"].as_array().unwrap().len(), 1, "{who}");
    assert_eq!(
        (&who["holders"][0]["pid"], &who["holders"][0]["inherited"]),
        (&kvd.child.id().into(), &false.into())
    );
    // Had kvd another copy, its seal would not release the lock, and the successor could not have it.
    let swap = "$H swap --json --control $D/control $H kvd --data-dir $D --version-label v2";
    let swapped = place.run(swap).expect(0).json();
    assert_eq!(kvd.wait().code(), Some(0));
    let who = place.who();
    assert_eq!(who["holders"][0]["pid"], swapped["pid"], "{who}");
    place.run(&format!("kill {}", swapped["pid"])).expect(0);
    place.run("$H lock --wait 60s $D true").expect(0);
}

#[test]
fn a_daemon_that_knows_nothing_of_handoff_keeps_the_lock_by_inheritance() {
    let place = Place::new();
    let held = place.hold("$H lock $D env -u HANDOFF_FDS nohup");
    assert_eq!(place.who()["holders"][0]["pid"], held.pid());
    let refused = Said::of({
        let mut kvd = common::command(&place.data(), &[]);
        bare(&mut kvd);
        kvd
    });
    assert!(refused.code == 1 && refused.err.contains("held by pid "), "{refused:?}");
    held.release();
    assert_eq!(place.who()["locked"], false);
}

// ---- Who has it.

#[test]
fn who_tells_those_who_took_it_from_those_who_inherited_it() {
    let place = Place::new();
    let (held, sleeper) = place.hold_with_sleeper();
    let said = place.run("$H lock --who $D").expect(0);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["PID", "USER", "STARTED", "LOCK", "COMMAND"]
    );
    let line = |pid: u32| lines.iter().find(|line| line.starts_with(&format!("{pid} "))).unwrap();
    assert!(line(held.pid()).contains("Z  took it ") && line(held.pid()).contains("  sh -c "), "{said:?}");
    let inherited = format!("Z  inherited from {}  sleep 300", held.pid());
    assert!(line(sleeper).contains(&inherited), "{said:?}");

    let who = place.who();
    assert_eq!(who["lock_file"], place.data().join(".handoff.lock").to_str().unwrap());
    let holders = who["holders"].as_array().unwrap();
    let holder = |pid: u32| holders.iter().find(|holder| holder["pid"] == pid).unwrap();
    assert_eq!(
        (&holder(sleeper)["inherited"], &holder(sleeper)["inherited_from"]),
        (&true.into(), &held.pid().into())
    );
    assert_eq!(
        (&holder(held.pid())["inherited"], &holder(held.pid())["inherited_from"]),
        (&false.into(), &Value::Null)
    );
    for holder in holders {
        let started = holder["started_ms"].as_u64().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = i128::from(u64::try_from(now.as_millis()).unwrap()) - i128::from(started);
        assert!((-1_000..600_000).contains(&age), "{holder}");
        assert_eq!(holder["started"], handoff::journal::utc(started));
        assert_eq!(
            (&holder["kind"], &holder["uid"]),
            (&"flock".into(), &nix::unistd::getuid().as_raw().into())
        );
    }
    held.release();
    let said = place.run("$H lock --who $D").expect(0);
    assert!(said.out.contains(", which has it no more  sleep 300"), "{said:?}");
    place.run(&format!("kill -9 {sleeper}")).expect(0);
    eventually("the lock to be free", || place.who()["locked"] == false);
}

#[test]
fn who_of_a_lock_that_is_free_says_so_and_exits_with_one() {
    let place = Place::new();
    let said = place.run("$H lock --who $D").expect(1);
    assert_eq!(
        said.out,
        format!("{}: nobody is seen to hold it\n", place.data().join(".handoff.lock").display())
    );
    assert!(!place.data().join(".handoff.lock").exists(), "it only looks");
    place.run("$H lock $D true").expect(0);
    let said = place.run("HANDOFF_DATA_DIR=$D $H lock --who --json").expect(1);
    assert_eq!((&said.json()["locked"], &said.json()["holders"]), (&false.into(), &serde_json::json!([])));
    place.run("$H lock --who $D/.handoff.lock").expect(1);
    let said = place.run("$H lock --who nowhere").expect(111);
    assert!(said.err.contains("unable to find nowhere: No such file"), "{said:?}");
}

#[test]
fn who_finds_a_lock_of_another_name() {
    let place = Place::new();
    let held = place.hold("$H lock --lock-file db.lock $D");
    place.run("$H lock --who $D").expect(1);
    let said = place.run("$H lock --who --lock-file db.lock $D").expect(0);
    assert!(said.out.contains(&held.pid().to_string()), "{said:?}");
}

#[test]
fn who_copes_with_a_copy_in_flight() {
    let place = Place::new();
    let lock = DataDirLock::acquire(place.data()).unwrap();
    let copy = lock.try_clone_fd().unwrap();
    let (end, other_end) = unix::pair().unwrap();
    unix::send(end.as_fd(), b"x", &[copy.as_fd()]).unwrap();
    drop((lock, copy));
    let said = place.run("$H lock --who $D").expect(0);
    let taker = std::process::id();
    assert!(said.out.contains("held by no process that this user can see"), "{said:?}");
    assert!(
        said.out.contains("a copy in flight in a socket")
            && said.out.contains(&format!("; pid {taker} took it"))
    );
    let who = place.who();
    assert_eq!((&who["unseen"], &who["taken_by"]), (&true.into(), &serde_json::json!([taker])));
    let said = place.run("$H lock $D true").expect(1);
    assert!(said.err.contains("a descriptor in flight"), "{said:?}");
    drop((end, other_end));
    eventually("the lock to be free", || place.who()["locked"] == false);
}

#[test]
fn who_copes_with_processes_of_other_users() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root, to be another user");
        return;
    }
    let place = Place::new();
    // The program may be where nobody else may go.
    let program = place.dir.path().join("handoff");
    fs::copy(HANDOFF, &program).unwrap();
    let who = |json: &str| {
        let mut command = Command::new(&program);
        command.args(["lock", "--who"]).args(Some(json).filter(|json| !json.is_empty())).arg(place.data());
        bare(&mut command).uid(65_534).gid(65_534).current_dir("/");
        Said::of(command)
    };
    let held = place.hold("$H lock $D");
    let seen = who("--json").expect(0).json();
    assert_eq!(
        (&seen["holders"][0]["pid"], &seen["holders"][0]["user"]),
        (&held.pid().into(), &"root".into())
    );
    held.release();
    // Its taker is gone, and who has it is not for this user to see.
    place.run("$H lock $D sh -c 'sleep 300 >/dev/null 2>&1 & echo $! >sleeper'").expect(0);
    let said = who("").expect(0);
    assert!(said.out.contains("held by no process that this user can see: another user's"), "{said:?}");
    let sleeper = fs::read_to_string(place.dir.path().join("sleeper")).unwrap();
    assert_eq!(place.who()["holders"][0]["pid"].to_string(), sleeper.trim(), "root sees it");
    place.run(&format!("kill -9 {sleeper}")).expect(0);
}

#[test]
fn locks_of_the_other_family_keep_us_out_and_are_shown_as_such() {
    let place = Place::new();
    place.run("$H lock $D true").expect(0);
    let file = File::options().write(true).open(place.data().join(".handoff.lock")).unwrap();
    let lock = libc::flock { l_type: libc::F_WRLCK as _, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&file, FcntlArg::F_SETLK(&lock)).unwrap();
    let who = place.who();
    assert_eq!(
        (&who["holders"][0]["pid"], &who["holders"][0]["kind"]),
        (&std::process::id().into(), &"fcntl".into())
    );
    let said = place.run("$H lock --who $D").expect(0);
    assert!(said.out.contains("  took it (fcntl)  "), "{said:?}");
    let said = place.run("$H lock --wait 50ms $D true").expect(1);
    assert!(said.err.contains(", by a lock of fcntl(2)"), "{said:?}");
    let mut waiting = place
        .shell("exec $H lock --wait 60s --progress always $D true")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("waiting to lock"), "{line}");
    drop(file);
    assert_eq!(wait_for_exit(&mut waiting).code(), Some(0));
}

#[test]
fn a_lock_of_s6_is_seen_and_an_outer_lock_passes_through() {
    if !has_tool("s6", Command::new("s6-setlock").args([OsStr::new("/dev/null"), OsStr::new("true")])) {
        return;
    }
    let place = Place::new();
    place.run("$H lock $D true").expect(0);
    let held = place.hold("s6-setlock $D/.handoff.lock");
    let who = place.who();
    assert_eq!(
        (&who["holders"][0]["pid"], &who["holders"][0]["kind"]),
        (&held.pid().into(), &"fcntl".into())
    );
    let said = place.run("$H lock $D true").expect(1);
    assert!(said.err.contains(&format!("held by pid {} (", held.pid())), "{said:?}");
    held.release();
    // Two links of different makes, each with a lock of its own.
    let held = place.hold("s6-setlock outer $H lock $D");
    assert_eq!(place.who()["holders"][0]["pid"], held.pid());
    place.run("s6-setlock -n outer true").expect(1);
    held.release();
    place.run("s6-setlock -n outer true").expect(0);
}
