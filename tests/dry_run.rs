//! `handoff swap --dry-run`: what each check finds, and that nothing is changed by it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::load::Answer;
use common::said::Said;
use common::{HANDOFF, Kvd, PATIENCE, command, eventually, wait_for_exit};
use handoff::DataDirLock;
use handoff::control::Control;
use handoff::journal::{Actor, Event, Journal};
use handoff::proto::wire::Status;
use handoff::sys::process::{PidFd, Signal};
use handoff::sys::{format, unix};
use serde_json::Value;

/// A kvd that serves in a directory of its own.
struct Rig {
    dir: tempfile::TempDir,
    kvd: Kvd,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let mut command = command(&dir.path().join("data"), &["--version-label", "v1"]);
        command.current_dir(home);
        let kvd = Kvd::spawn(command);
        // Another release, as far as anybody can tell.
        program(&dir.path().join("next"), b"#!/bin/sh\nexec kvd \"$@\"\n");
        Self { dir, kvd }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lock_file(&self) -> PathBuf {
        self.path("data/.handoff.lock")
    }

    fn command(&self, options: &[&str]) -> Command {
        self.command_for(&[HANDOFF], options, self.path("next").to_str().unwrap())
    }

    fn command_for(&self, prefix: &[&str], options: &[&str], program: &str) -> Command {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).args(["swap", "--dry-run"]).args(options).arg(program);
        command.env("HANDOFF_CONTROL", self.path("data/control"));
        command.env("HANDOFF_JOURNAL", self.path("journal")).stdin(Stdio::null());
        command
    }

    fn check(&self) -> Checked {
        Checked::by(self.command(&["--json"]))
    }

    fn check_program(&self, program: &str) -> Checked {
        Checked::by(self.command_for(&[HANDOFF], &["--json"], program))
    }

    fn status(&self) -> Status {
        let deadline = Instant::now() + PATIENCE;
        Control::connect(self.path("data/control"), "test", deadline).unwrap().status(deadline).unwrap()
    }
}

fn program(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What a dry run said.
#[derive(Debug)]
struct Checked {
    code: i32,
    report: Value,
}

impl Checked {
    fn by(command: Command) -> Self {
        let said = Said::of(command);
        assert_eq!(said.err, "", "{said:?}");
        Self { code: said.code, report: said.json() }
    }

    fn of(&self, check: &str) -> Vec<&Value> {
        self.report["checks"].as_array().unwrap().iter().filter(|found| found["check"] == check).collect()
    }

    /// Expects that one finding of this check came out so, and the exit code that belongs to it.
    #[track_caller]
    fn expect(&self, check: &str, verdict: &str, part: &str) -> &Self {
        let [found] = self.of(check)[..] else { panic!("one {check} in {self:#?}") };
        let text = format!("{}; {}", found["found"], found["advice"]);
        assert_eq!(found["verdict"], verdict, "{self:#?}");
        assert!(text.contains(part), "{part:?} in {text}");
        assert_eq!(found["advice"].is_null(), verdict == "ok", "{found}");
        assert_eq!(self.code, i32::from(self.report["errors"] != 0), "{self:#?}");
        assert_eq!(self.report["ok"], self.code == 0, "{self:#?}");
        if verdict == "error" {
            assert_eq!(self.code, 1, "{self:#?}");
        }
        self
    }

    /// Expects that nothing else is wrong.
    #[track_caller]
    fn alone(&self) {
        assert_eq!(self.report["errors"], 1, "{self:#?}");
    }
}

/// A file's inode, mode, times and bytes.
type Found = (u64, u32, [i64; 4], Vec<u8>);

/// Everything that there is in a directory.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).chain([dir.clone()]) {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() && path != dir {
                dirs.push(path.clone());
            }
            let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { vec![] };
            let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
            found.insert(path, (meta.ino(), meta.mode(), times, bytes));
        }
    }
    found
}

// ---- All is well.

#[test]
fn nothing_at_all_is_changed() {
    let rig = Rig::start();
    drop(Journal::open(rig.path("journal")).unwrap());
    assert_eq!(rig.kvd.call(&["SET", "a", "1"]), Answer::Simple("OK".to_owned()));
    let before = (snapshot(rig.dir.path()), rig.status(), rig.kvd.stderr.so_far());
    for options in [&["--json"][..], &[]] {
        Said::of(rig.command(options)).expect(0);
    }
    let after = (snapshot(rig.dir.path()), rig.status(), rig.kvd.stderr.so_far());
    assert_eq!(before.0, after.0);
    let still = |status: Status| Status { uptime_ms: 0, ..status };
    assert_eq!(still(before.1), still(after.1));
    assert_eq!(before.2, after.2, "nothing is logged");
    assert_eq!(rig.kvd.call(&["GET", "a"]), Answer::Bulk(Some(b"1".to_vec())));
}

#[test]
fn a_journal_that_is_not_there_is_not_made() {
    let rig = Rig::start();
    rig.check().expect("journal", "ok", "will be made");
    assert!(!rig.path("journal").exists());
    let mut command = rig.command(&["--json"]);
    command.env_remove("HANDOFF_JOURNAL");
    Checked::by(command).expect("journal", "ok", "nothing is written down");
}

#[test]
fn when_all_is_well_every_check_says_so_on_a_line() {
    let rig = Rig::start();
    drop(Journal::open(rig.path("journal")).unwrap());
    let mut command = rig.command(&[]);
    // Not this machine's limits.
    let own =
        Command::new("prlimit").args(["--pid", &rig.kvd.child.id().to_string(), "--nofile=256:"]).status();
    assert!(own.unwrap().success());
    command.env_remove("RUST_LOG");
    let said = Said::of(command).expect(0);
    let checks = [
        "path",
        "control",
        "lease",
        "program",
        "build",
        "arguments",
        "record",
        "lock",
        "disk",
        "data",
        "descriptors",
        "limit",
        "signals",
        "journal",
        "queue",
    ];
    let lines: Vec<&str> = said.out.lines().collect();
    let (summary, lines) = lines.split_last().unwrap();
    assert!(summary.starts_with("nothing stands in the way of a swap: 15 checks, 0 errors, "), "{said:#?}");
    let found: Vec<&str> = lines.iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(found, checks, "{said:#?}");
    for line in lines {
        // This machine's disk and its other clients are not the test's to choose.
        let is_others = ["warning data ", "warning queue "].iter().any(|start| line.starts_with(start));
        assert!(line.starts_with("ok ") || is_others, "{line}");
    }
}

// ---- The daemon.

#[test]
fn a_daemon_that_does_not_answer_is_said_and_the_rest_is_checked() {
    let mut rig = Rig::start();
    rig.kvd.signal("STOP");
    rig.check()
        .expect("control", "error", "the daemon hangs or was stopped")
        .expect("program", "ok", "script");
    rig.kvd.signal("CONT");
    rig.kvd.child.kill().unwrap();
    rig.kvd.wait();
    rig.check().expect("control", "error", "start the daemon").expect("journal", "ok", "").alone();
}

#[test]
fn a_daemon_of_another_protocol_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let listener = UnixListener::bind(dir.path().join("control")).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let process = r#"{"pid":1,"start_ticks":1,"boot_id":"x"}"#;
        let hello =
            format!(r#"{{"type":"hello","versions":{{"min":90,"max":91}},"actor":"x","process":{process}}}"#);
        client.write_all(hello.as_bytes()).unwrap();
        client.write_all(b"\n").unwrap();
        // Until the other end has read it and goes away.
        let _ = client.read_to_end(&mut vec![]);
    });
    let mut command = Command::new(HANDOFF);
    command.args(["swap", "--dry-run", "--json", "--control"]).arg(dir.path().join("control")).arg("true");
    Checked::by(command).expect("control", "error", "the handoff of the daemon's release");
    answering.join().unwrap();
}

#[test]
fn a_handoff_in_progress_has_the_lease_the_journal_and_the_record() {
    let rig = Rig::start();
    let data = rig.path("data").display().to_string();
    let mut swap = Command::new(HANDOFF);
    swap.args(["swap", "--bake", "10m", HANDOFF, "kvd", "--data-dir", &data, "--version-label", "v2"]);
    swap.env("HANDOFF_CONTROL", rig.path("data/control")).env("HANDOFF_JOURNAL", rig.path("journal"));
    let mut driver = swap.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    eventually("the trial", || rig.status().phase == "on-trial");
    let checked = rig.check();
    checked.expect("lease", "error", "and is on-trial");
    checked.expect("record", "error", "on trial");
    checked.expect("journal", "error", &format!("held by pid {}", driver.id()));
    let mut abort = Command::new(HANDOFF);
    Said::of({
        abort.arg("abort").env("HANDOFF_CONTROL", rig.path("data/control"));
        abort
    })
    .expect(0);
    assert_eq!(wait_for_exit(&mut driver).code(), Some(3));
    rig.check().expect("lease", "ok", "free");
}

#[test]
fn a_daemon_without_descriptors_to_spare_is_named_with_what_to_do() {
    let rig = Rig::start();
    let pid = rig.kvd.child.id().to_string();
    let limit = |limit: &str| {
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:")]).status();
        assert!(status.unwrap().success());
    };
    limit("30");
    rig.check().expect("descriptors", "error", &format!("prlimit --pid {pid} --nofile=")).alone();
    limit("1000");
    let sh = |limit: &str| {
        let script = format!("ulimit -S -n {limit}; exec \"$0\" \"$@\"");
        let next = rig.path("next").display().to_string();
        Checked::by(rig.command_for(&["sh", "-c", &script, HANDOFF], &["--json"], &next))
    };
    sh("20").expect("limit", "error", "the listeners alone need 33").alone();
    sh("200").expect("limit", "warning", "ulimit -n 1000");
    sh("1000").expect("limit", "ok", "1000 descriptors");
}

// ---- The program.

/// A binary for this machine's word size, with a loader or none.
fn elf(machine: u16, loader: &[u8]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64 + 56, 0);
    elf[18..20].copy_from_slice(&machine.to_le_bytes());
    elf[32] = 64;
    (elf[54], elf[56]) = (56, 1);
    elf[64] = if loader.is_empty() { 0 } else { 3 };
    elf[72] = 120;
    elf[96] = u8::try_from(loader.len()).unwrap();
    elf.extend(loader);
    elf
}

#[test]
fn a_program_that_cannot_run_is_told_from_one_that_can() {
    let rig = Rig::start();
    let ours = match format::own().unwrap() {
        format::Format::Elf(elf) => elf.machine,
        other => panic!("{other:?}"),
    };
    // What no kernel knows may be somebody's whom this machine has been told of.
    let foreign = if format::has_handlers() { "warning" } else { "error" };
    let cases: [(&str, Vec<u8>, u32, &str, &str); 8] = [
        ("a script", b"#!/bin/sh\n".to_vec(), 0o755, "ok", "script for /bin/sh"),
        ("a script without its interpreter", b"#!/no/such/sh\n".to_vec(), 0o755, "error", "/no/such/sh"),
        ("text", b"echo\n".to_vec(), 0o755, foreign, "neither a binary nor a script"),
        ("another machine's", elf(22, b""), 0o755, foreign, "64-bit binary for s390"),
        (
            "one without its loader",
            elf(ours, b"/no/such/ld.so\0"),
            0o755,
            "error",
            "/no/such/ld.so is missing",
        ),
        ("a static one", elf(ours, b""), 0o755, "ok", "64-bit binary"),
        ("one with its loader", elf(ours, b"/bin/sh\0"), 0o755, "ok", "64-bit binary"),
        ("one that may not run", b"#!/bin/sh\n".to_vec(), 0o644, "error", "may execute"),
    ];
    for (name, bytes, mode, verdict, part) in cases {
        let path = rig.path("program");
        program(&path, &bytes);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        eprintln!("{name}");
        rig.check_program(path.to_str().unwrap()).expect("program", verdict, part);
    }
    rig.check_program("/no/such/program").expect("program", "error", "/no/such/program").alone();
    rig.check_program("no-such-program").expect("program", "error", "PATH").alone();
    rig.check_program(HANDOFF).expect("program", "ok", "binary").expect(
        "build",
        "warning",
        "is it the new release?",
    );
    rig.check().expect("build", "ok", "another one runs");
}

#[test]
fn the_arguments_are_the_daemons_or_those_that_are_given() {
    let rig = Rig::start();
    rig.check().expect("arguments", "ok", "--version-label v1, those of the daemon");
    let mut command = rig.command(&["--json"]);
    command.args(["kvd", "--port", "1"]);
    Checked::by(command).expect("arguments", "ok", "kvd --port 1");
    Checked::by(rig.command(&["--json", "--no-reuse-args"])).expect("arguments", "ok", "none");
    fs::remove_dir(rig.path("home")).unwrap();
    rig.check().expect("directory", "error", "/home").alone();
}

// ---- The data directory.

#[test]
fn a_record_that_cannot_be_read_or_is_anothers_is_an_error() {
    let rig = Rig::start();
    let lock_file = rig.lock_file();
    let sound = fs::read(&lock_file).unwrap();
    let write =
        |bytes: &[u8]| File::options().write(true).open(&lock_file).unwrap().write_all(bytes).unwrap();
    write(&vec![0xa5; sound.len()]);
    rig.check().expect("record", "error", "").expect("arguments", "error", "the owner record");
    write(&sound);
    rig.check().expect("record", "ok", "generation 1 of pid");

    let other = Rig::start();
    write(&fs::read(other.lock_file()).unwrap());
    rig.check().expect("record", "error", "another daemon has taken");
    write(&sound);
}

#[test]
fn a_lock_that_is_not_the_daemons_alone_is_named_with_who_has_it() {
    let rig = Rig::start();
    rig.check().expect("lock", "ok", &format!("held by pid {}", rig.kvd.child.id()));

    // A lock of the other family, as s6-setlock takes.
    let file = File::options().read(true).write(true).open(rig.lock_file()).unwrap();
    let lock = nix::libc::flock {
        l_type: i16::try_from(nix::libc::F_WRLCK).unwrap(),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&lock)).unwrap();
    rig.check().expect("lock", "error", &format!("pid {}", std::process::id())).alone();
    drop(file);

    // Another file has its place: whose lock the daemon has is nobody's business any more.
    fs::copy(rig.lock_file(), rig.path("copy")).unwrap();
    fs::rename(rig.path("copy"), rig.lock_file()).unwrap();
    rig.check().expect("lock", "error", "nobody has").alone();
    let mut holder = Command::new("flock");
    let mut holder = holder.arg(rig.lock_file()).args(["sh", "-c", "echo; exec cat"]);
    holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    rig.check().expect("lock", "error", "and not by the daemon").alone();
    drop(holder.stdin.take());
    wait_for_exit(&mut holder);
}

#[test]
fn a_lock_that_a_helper_inherited_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let script = r#"sleep 600 >/dev/null 2>&1 & exec "$0" kvd --listen 127.0.0.1:0 --data-dir "$1""#;
    let mut chain = Command::new(HANDOFF);
    chain.arg("lock").arg(&data).args(["sh", "-c", script, HANDOFF]).arg(&data).stdin(Stdio::null());
    let kvd = Kvd::spawn(chain);
    let holders = DataDirLock::who(&data).unwrap();
    let helper = holders.iter().find(|holder| holder.pid != kvd.child.id()).unwrap();
    let mut command = Command::new(HANDOFF);
    command.args(["swap", "--dry-run", "--json", "--control"]).arg(data.join("control")).arg(HANDOFF);
    let checked = Checked::by(command);
    let process = PidFd::open(helper.pid).unwrap();
    process.signal(Signal::SIGKILL).unwrap();
    checked.expect("lock", "warning", &format!("pid {} (sleep 600)", helper.pid));
}

#[test]
fn a_full_disk_is_found_under_the_data_and_under_the_journal() {
    let rig = Rig::start();
    let disk = rig.path("disk");
    fs::create_dir(&disk).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&disk).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: needs to mount a tmpfs");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to mount a tmpfs");
        return;
    }
    let _mounted = Mounted(disk.clone());
    let journal = disk.join("journal");
    let check = || {
        let mut command = rig.command(&["--json"]);
        command.env("HANDOFF_JOURNAL", &journal);
        Checked::by(command)
    };
    check().expect("journal", "warning", "0 MiB free");
    drop(Journal::open(&journal).unwrap());
    check().expect("journal", "warning", "0 MiB free");
    let mut filling = File::create(disk.join("filling")).unwrap();
    while filling.write_all(&[0; 512]).is_ok() {}
    check().expect("journal", "error", "full").alone();
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// ---- The journal.

#[test]
fn every_fault_of_a_journal_has_its_line() {
    let rig = Rig::start();
    let path = rig.path("journal");
    let begun = Event::Begun {
        binary: Some("/bin/kvd".into()),
        args: vec![],
        build_id: None,
        control: rig.path("data/control"),
        data_dir: None,
        incumbent: None,
        lock_file: None,
        generation: None,
        by: None,
        successor: None,
    };
    let committed = Event::Committed {
        generation: 2,
        binary: "/bin/kvd".into(),
        args: vec![],
        build_id: String::new(),
        gap_us: Some(12_345),
    };

    let mut journal = Journal::open(&path).unwrap();
    rig.check().expect("journal", "error", &format!("held by pid {}", std::process::id())).alone();
    journal.append("h1", Actor::Driver, begun).unwrap();
    drop(journal);
    rig.check().expect("journal", "warning", "handoff h1 left open");
    Journal::open(&path).unwrap().append("h1", Actor::Driver, committed).unwrap();
    rig.check().expect("journal", "ok", "2 records").expect(
        "queue",
        "ok",
        "the longest of the last gaps was 12.3ms",
    );

    let sound = fs::read(&path).unwrap();
    fs::write(&path, &sound[..sound.len() - 5]).unwrap();
    rig.check().expect("journal", "warning", "handoff h1 left open");
    fs::write(&path, [&sound[..], b"{\"crc\":\"torn"].concat()).unwrap();
    rig.check().expect("journal", "warning", &format!("torn last record at byte {}", sound.len()));
    let mut damaged = sound.clone();
    let at = sound.iter().position(|byte| *byte == b'\n').unwrap() + 30;
    damaged[at] ^= 1;
    fs::write(&path, &damaged).unwrap();
    rig.check().expect("journal", "error", "handoff journal repair ").alone();
    assert_eq!(fs::read(&path).unwrap(), damaged, "nothing is repaired");
    fs::write(&path, "a stranger's\nfile\n").unwrap();
    rig.check().expect("journal", "error", "name another journal").alone();

    for (name, part) in [("home", "appending"), ("no/such/journal", "this user cannot make it")] {
        let mut command = rig.command(&["--json"]);
        command.env("HANDOFF_JOURNAL", rig.path(name));
        Checked::by(command).expect("journal", "error", part).alone();
    }
    nix::unistd::mkfifo(&rig.path("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut command = rig.command(&["--json"]);
    command.env("HANDOFF_JOURNAL", rig.path("fifo"));
    Checked::by(command).expect("journal", "error", "not a regular file").alone();
}

// ---- The control path, and the control group.

#[test]
fn a_control_path_that_a_successor_could_not_take_over_is_found() {
    let rig = Rig::start();
    fs::set_permissions(rig.path("data"), fs::Permissions::from_mode(0o777)).unwrap();
    rig.check().expect("path", "error", "others may write").alone();
    fs::set_permissions(rig.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = rig.command(&["--json"]);
    command.env("HANDOFF_CONTROL", rig.path(&"x".repeat(unix::PATH_MAX)));
    Checked::by(command).expect("path", "error", "a shorter directory");
    let close = unix::PATH_MAX - rig.dir.path().as_os_str().len() - 3;
    let mut command = rig.command(&["--json"]);
    command.env("HANDOFF_CONTROL", rig.path(&"x".repeat(close)));
    Checked::by(command).expect("path", "warning", "with up to 9 bytes more");
}

#[test]
fn a_control_group_must_be_one_and_be_empty() {
    let rig = Rig::start();
    let check = |dir: &Path| Checked::by(rig.command(&["--json", "--cgroup", dir.to_str().unwrap()]));
    check(&rig.path("home")).expect("cgroup", "error", "is no control group").alone();
    assert!(rig.check().of("cgroup").is_empty(), "nobody asked for one");
    // What looks like one, as far as files go.
    let group = rig.path("group");
    fs::create_dir(&group).unwrap();
    fs::write(group.join("cgroup.procs"), "17\n18\n").unwrap();
    check(&group).expect("cgroup", "error", "has processes already: 17 18").alone();
    fs::write(group.join("cgroup.procs"), "").unwrap();
    check(&group).expect("cgroup", "warning", "no cgroup.kill");
    fs::write(group.join("cgroup.kill"), "").unwrap();
    check(&group).expect("cgroup", "ok", "is empty");
}

#[test]
fn another_user_is_told_what_is_not_his() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root, to be another user");
    }
    let rig = Rig::start();
    // The command and the way to the socket are for everybody; what the daemon owns is not.
    fs::copy(HANDOFF, rig.path("handoff")).unwrap();
    for (path, mode) in [("", 0o755), ("handoff", 0o755), ("data", 0o711), ("data/control", 0o666)] {
        fs::set_permissions(rig.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let nobody =
        ["setpriv", "--reuid=65534", "--clear-groups", rig.dir.path().join("handoff").to_str().unwrap()]
            .map(str::to_owned);
    let prefix: Vec<&str> = nobody.iter().map(String::as_str).collect();
    let next = rig.path("next").display().to_string();
    let checked = Checked::by(rig.command_for(&prefix, &["--json"], &next));
    checked.expect("path", "error", "cannot bind there");
    checked.expect("journal", "error", "this user cannot make it");
    assert_eq!(checked.code, 1);
}

#[test]
fn it_is_one_or_the_other() {
    let rig = Rig::start();
    let said = Said::of(rig.command(&["--step"])).expect(100);
    assert!(said.err.contains("cannot be used with"), "{said:?}");
}
