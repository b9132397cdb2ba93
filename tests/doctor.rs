//! `handoff doctor` with real wrappers, a real daemon and real damage. What it says of files is tested where it reads them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use common::said::Said;
use common::{HANDOFF, Kvd, has_sudo, has_tool};
use serde_json::Value;

/// Runs the doctor; returns its exit code and its checks.
fn doctor(args: &[&str]) -> (i32, Vec<Value>) {
    let mut command = Command::new(HANDOFF);
    command.args(["doctor", "--json"]).args(args);
    for name in ["HANDOFF_CONTROL", "HANDOFF_DATA_DIR", "HANDOFF_JOURNAL", "HANDOFF_TRIGGER", "NOTIFY_SOCKET"]
    {
        command.env_remove(name);
    }
    let said = Said::of(command);
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    let checks = report["checks"].as_array().unwrap().clone();
    assert_eq!(said.code == 0, report["ok"].as_bool().unwrap(), "{report}");
    (said.code, checks)
}

/// Returns the findings of one check, each as its verdict and what was found.
fn of(checks: &[Value], name: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ours = checks.iter().filter(|check| check["check"] == name);
    ours.map(|check| (text(&check["verdict"]), text(&check["found"]))).collect()
}

/// What is expected of a wrapper: whether descriptors arrive, and whether the pid stays.
#[track_caller]
fn expect(words: &[&str], passes: bool, stays: bool) {
    let (code, checks) = doctor(&[&["--wrapper"], words].concat());
    let found = of(&checks, "wrapper");
    let is_ok = |part: &str| found.iter().any(|(verdict, text)| verdict == "ok" && text.contains(part));
    assert_eq!(is_ok("passes descriptors on"), passes, "{found:?}");
    assert_eq!(is_ok("becomes the program"), stays, "{found:?}");
    assert_eq!(code, i32::from(!(passes && stays)), "{found:?}");
}

#[test]
fn wrappers_that_become_the_program_pass_everything() {
    expect(&["env", "A=b"], true, true);
    expect(&["sh", "-c", "exec \"$@\"", "sh"], true, true);
    expect(&["nohup"], true, true);
    // Its first process leads no group, so that it need not fork.
    expect(&["setsid"], true, true);
    expect(&["nice", "-n", "1"], true, true);
}

#[test]
fn wrappers_that_stay_in_between_are_found() {
    expect(&["sh", "-c", "\"$@\"; true", "sh"], true, false);
    expect(&["timeout", "60"], true, false);
}

#[test]
fn wrappers_that_close_descriptors_are_found() {
    expect(&["sh", "-c", "exec \"$@\" 4<&-", "sh"], false, true);
    if has_tool("python3", Command::new("python3").arg("--version")) {
        let script = "import subprocess, sys; subprocess.run(sys.argv[1:])";
        expect(&["python3", "-c", script], false, false);
    }
    if has_sudo() {
        let (code, checks) = doctor(&["--wrapper", "sudo", "-n", "-E"]);
        let found = of(&checks, "wrapper");
        assert!(code == 1 && found.iter().any(|(_, text)| text.contains("closes descriptors")), "{found:?}");
    }
}

#[test]
fn an_ignored_signal_and_a_lost_environment_are_found() {
    let (_, checks) = doctor(&["--wrapper", "nohup"]);
    let found = of(&checks, "wrapper");
    assert!(found.iter().any(|(verdict, text)| verdict == "warning" && text.contains("SIGHUP")), "{found:?}");
    let (code, checks) = doctor(&["--wrapper", "env", "-i"]);
    let found = of(&checks, "wrapper");
    assert!(code == 1 && found.iter().any(|(_, text)| text.contains("environment")), "{found:?}");
}

#[test]
fn a_wrapper_that_starts_nothing_or_cannot_be_run_is_an_error() {
    for words in [&["true"][..], &["/nowhere/wrapper"], &["sh", "-c", "exit 3"]] {
        let (code, checks) = doctor(&[&["--wrapper"], words].concat());
        assert_eq!((code, of(&checks, "wrapper").len()), (1, 1), "{checks:?}");
    }
}

#[test]
fn a_daemon_that_serves_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let kvd = Kvd::start(&data, &[]);
    let (data, control) = (data.to_str().unwrap(), data.join("control"));
    let (_, checks) = doctor(&["--data-dir", data, "--control", control.to_str().unwrap()]);
    for (name, part) in
        [("daemon", "serving"), ("record", "generation 1 is final"), ("path", "bytes long"), ("disk", "")]
    {
        let found = of(&checks, name);
        assert!(found.len() == 1 && found[0].1.contains(part) && found[0].0 != "error", "{name}: {found:?}");
    }
    kvd.kill();
    let (_, checks) = doctor(&["--data-dir", data, "--control", control.to_str().unwrap()]);
    assert_eq!(of(&checks, "daemon"), [("ok".to_owned(), "none runs".to_owned())]);
}

#[test]
fn a_damaged_journal_is_an_error_that_names_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let journal_path = journal.to_str().unwrap();
    for note in ["one", "two", "three"] {
        let mut command = Command::new(HANDOFF);
        command.args(["journal", "record", "--journal", journal_path, "--note", note]);
        let said = Said::of(command);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let sound = fs::read(&journal).unwrap();
    let (_, checks) = doctor(&["--journal", journal_path]);
    assert_eq!(of(&checks, "journal")[0].0, "ok", "{checks:?}");
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 0xff;
    fs::write(&journal, damaged).unwrap();
    let (code, checks) = doctor(&["--journal", journal_path]);
    let found = of(&checks, "journal");
    assert!(code == 1 && found[0].1.contains("byte"), "{found:?}");
}

#[test]
fn a_notify_socket_is_looked_for_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let run = || {
        let mut command = Command::new(HANDOFF);
        command.args(["doctor", "--json"]).env("NOTIFY_SOCKET", &path);
        Said::of(command)
    };
    let said = run();
    assert!(said.code == 1 && said.out.contains("cannot be reached"), "{said:?}");
    let _socket = UnixDatagram::bind(&path).unwrap();
    let said = run();
    assert!(said.out.contains("can be reached"), "{said:?}");
}
