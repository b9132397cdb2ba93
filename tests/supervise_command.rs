//! `handoff supervise`, `handoff trigger` and `handoff-supervisor` as commands: what they read, what they say, and how they end.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use common::said::Said;
use common::{HANDOFF, Lines, eventually, wait_for_exit};
use serde_json::Value;

/// The other name.
const SUPERVISOR: &str = env!("CARGO_BIN_EXE_handoff-supervisor");

/// A supervisor with a kvd, in a directory of its own.
struct Rig {
    dir: tempfile::TempDir,
    supervisor: Option<(Child, Lines)>,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap(), supervisor: None };
        fs::set_permissions(rig.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        rig.link(HANDOFF);
        rig.configure(&["kvd", "--listen", "127.0.0.1:0", "--data-dir", "data", "--control", "control"], "");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the configured program a link to this one.
    fn link(&self, program: impl AsRef<Path>) {
        let _ = fs::remove_file(self.path("program"));
        std::os::unix::fs::symlink(program, self.path("program")).unwrap();
    }

    /// Writes the configuration, in which every path is relative.
    fn configure(&self, args: &[&str], more: &str) {
        let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
        let text = format!(
            "control_socket = \"control\"\ndata_dir = \"data\"\nbinary = \"./program\"\ndirectory = \".\"\nargs = [{}]\n{more}",
            args.join(", ")
        );
        fs::write(self.path("handoff.toml"), text).unwrap();
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in
            ["HANDOFF_CONTROL", "HANDOFF_DATA_DIR", "HANDOFF_JOURNAL", "HANDOFF_TRIGGER", "NOTIFY_SOCKET"]
        {
            command.env_remove(name);
        }
        command
    }

    /// Starts it, and waits until it serves.
    fn start(&mut self) {
        let mut command = self.command(HANDOFF, &["supervise", "--config", "handoff.toml"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Lines::of(child.stderr.take().unwrap());
        self.supervisor = Some((child, lines));
        eventually("the supervisor to serve", || {
            self.state().is_some_and(|state| state["doing"] == "serving")
        });
    }

    fn run(&self, words: &[&str]) -> Said {
        Said::of(self.command(HANDOFF, words))
    }

    fn trigger(&self, words: &[&str]) -> Said {
        self.run(&[&["trigger", "--trigger", "trigger"], words].concat())
    }

    fn state(&self) -> Option<Value> {
        let said = self.trigger(&["--status", "--json"]);
        (said.code == 0).then(|| serde_json::from_str(&said.out).unwrap())
    }

    fn daemon(&self) -> Option<u32> {
        let said = self.run(&["status", "--control", "control", "--json"]);
        let status: Value = serde_json::from_str(&said.out).ok()?;
        u32::try_from(status["status"]["process"]["pid"].as_u64()?).ok()
    }

    fn signal(&self, pid: u32, name: &str) {
        assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
    }

    fn pid(&self) -> u32 {
        self.supervisor.as_ref().unwrap().0.id()
    }

    fn end(&mut self) -> ExitStatus {
        let (mut child, _) = self.supervisor.take().unwrap();
        wait_for_exit(&mut child)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some((mut child, lines)) = self.supervisor.take() {
            if std::thread::panicking() {
                eprintln!("{:#?}", lines.so_far());
            }
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(pid) = self.daemon() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

#[test]
fn a_supervisor_ends_of_the_signal_that_its_daemon_died_of_and_leaves_no_core() {
    for (name, number) in [("KILL", 9), ("SEGV", 11), ("ABRT", 6)] {
        let mut rig = Rig::new();
        rig.start();
        rig.signal(rig.daemon().unwrap(), name);
        let status = rig.end();
        assert_eq!((status.signal(), status.core_dumped()), (Some(number), false), "{name}: {status}");
    }
}

#[test]
fn a_stop_is_code_0_and_ends_the_daemon() {
    let mut rig = Rig::new();
    rig.start();
    rig.signal(rig.pid(), "TERM");
    assert_eq!(rig.end().code(), Some(0));
    assert_eq!(rig.daemon(), None);
}

#[test]
fn hanging_up_reads_the_configuration_again_and_a_broken_one_changes_nothing() {
    let mut rig = Rig::new();
    rig.start();
    let before = rig.daemon().unwrap();
    rig.configure(&["kvd"], "colour = \"red\"\n");
    rig.signal(rig.pid(), "HUP");
    let said = rig.supervisor.as_ref().unwrap().1.wait_for("colour");
    assert!(said.contains("line 6, column 1: colour: there is no such key"), "{said}");
    assert_eq!(rig.daemon(), Some(before));
    let args = ["kvd", "--data-dir", "data", "--control", "control", "--version-label", "v2"];
    rig.configure(&args, "");
    rig.signal(rig.pid(), "HUP");
    eventually("another daemon", || rig.daemon().is_some_and(|pid| pid != before));
    let said = rig.run(&["status", "--control", "control"]);
    assert!(said.out.contains("(v2)"), "{said:?}");
}

#[test]
fn a_supervisor_that_comes_back_needs_no_program_and_no_other_file_to_find_its_daemon() {
    let mut rig = Rig::new();
    rig.start();
    let daemon = rig.daemon();
    rig.signal(rig.pid(), "KILL");
    rig.end();
    rig.link("/nowhere/kvd");
    rig.configure(&["kvd"], "metrics_file = \"/nowhere/metrics\"\n");
    rig.start();
    rig.supervisor
        .as_ref()
        .unwrap()
        .1
        .wait_for("warning: unable to read handoff.toml: line 6, column 16: metrics_file");
    assert_eq!(rig.daemon(), daemon);
    let state = rig.state().unwrap();
    assert_eq!(state["is_child"], false, "{state}");
    let said = rig.trigger(&[]);
    assert_ne!(said.code, 0, "{said:?}");
    assert_eq!(rig.daemon(), daemon);
}

#[test]
fn a_trigger_that_is_interrupted_says_that_the_swap_goes_on() {
    let mut rig = Rig::new();
    rig.start();
    let before = rig.daemon();
    let mut command = rig.command(HANDOFF, &["trigger", "--trigger", "trigger", "--progress", "always"]);
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).args(["--bake", "2s"]).spawn().unwrap();
    let lines = Lines::of(child.stderr.take().unwrap());
    lines.wait_for("started");
    rig.signal(child.id(), "INT");
    assert_eq!(wait_for_exit(&mut child).code(), Some(5));
    lines.wait_for("interrupted by SIGINT: the swap goes on");
    eventually("the swap", || {
        let state = rig.state().unwrap();
        state["doing"] == "serving" && state["swaps"].to_string().contains("committed")
    });
    assert_ne!(rig.daemon(), before);
}

#[test]
fn a_verdict_that_takes_too_long_is_undecided() {
    let mut rig = Rig::new();
    rig.start();
    let said = rig.trigger(&["--bake", "1h", "--timeout", "2s"]);
    assert_eq!(said.code, 5, "{said:?}");
    let said = rig.trigger(&["--json"]);
    let outcome: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, &outcome["outcome"]), (1, &Value::from("refused")), "{said:?}");
}

#[test]
fn the_supervisors_name_becomes_the_command_beside_it_or_the_one_in_path() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let own = home.join("handoff-supervisor");
    fs::copy(SUPERVISOR, &own).unwrap();
    let show = |path: &Path, name: &str| {
        let script = format!("#!/bin/sh\necho {name} \"$@\"; ps -o pid= -p $$ >/dev/null; echo $$\n");
        fs::write(path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let run = |path: &str| {
        let mut command = Command::new(&own);
        let child = command
            .args(["--config", "a b"])
            .env("PATH", path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        (Said::by(child), pid)
    };
    let (said, _) = run("/nowhere");
    assert!(
        said.code == 127 && said.err.starts_with("handoff-supervisor: fatal: unable to find program handoff"),
        "{said:?}"
    );
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("handoff"), "").unwrap();
    let (said, _) = run(elsewhere.to_str().unwrap());
    assert_eq!(said.code, 126, "{said:?}");
    show(&elsewhere.join("handoff"), "in-path");
    let path = format!("{}:/usr/bin:/bin", elsewhere.display());
    let (said, pid) = run(&path);
    assert_eq!(said.out, format!("in-path --config a b\n{pid}\n"), "{said:?}");
    show(&home.join("handoff"), "beside");
    let (said, pid) = run(&path);
    assert_eq!(said.out, format!("beside --config a b\n{pid}\n"), "{said:?}");
}

#[test]
fn the_supervisors_name_is_the_same_command() {
    let rig = Rig::new();
    let by_name = Said::of(rig.command(SUPERVISOR, &["--config", "handoff.toml", "--check"]));
    let by_word = rig.run(&["supervise", "--config", "handoff.toml", "--check"]);
    assert_eq!((by_name.code, &by_name.out), (0, &by_word.out), "{by_name:?}");
    let version = Said::of(rig.command(SUPERVISOR, &["--version"]));
    assert!(version.out.starts_with("handoff "), "{version:?}");
}

#[test]
fn what_is_printed_reads_back_to_the_same_from_anywhere() {
    let rig = Rig::new();
    let listeners = "bake_secs = 0.25\nhealth = \"true # \\\"quoted\\\"\"\n[env]\nA = \"b\\nc\"\n[[listeners]]\nname = \"a\"\naddr = \":8000-8002\"\n\
        [[listeners]]\nname = \"b\"\naddr = \"./with, comma\"\nmode = 0o600\n[[listeners]]\nname = \"c\"\naddr = \"udp6:[::1]:53\"\nrcvbuf = \"64k\"\n\
        [[listeners]]\nname = \"d\"\naddr = \"seqpacket:@kv\"\nbacklog = 7\n";
    rig.configure(&["kvd"], listeners);
    let first = rig.run(&["supervise", "--config", "handoff.toml", "--check"]);
    assert_eq!(first.code, 0, "{first:?}");
    fs::create_dir(rig.path("elsewhere")).unwrap();
    fs::write(rig.path("elsewhere/effective.toml"), &first.out).unwrap();
    let second = rig.run(&["supervise", "--config", "elsewhere/effective.toml", "--check"]);
    assert_eq!(second.out, first.out);
}
