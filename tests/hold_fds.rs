//! `handoff hold-fds`, as a link: each kind of socket is served by the program that follows, and what is wrong is said.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{HANDOFF, Kvd, run_to_end};

/// Runs `handoff hold-fds` with these words, and waits for its end.
fn hold(words: &[&str]) -> Output {
    Command::new(HANDOFF).arg("hold-fds").args(words).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_next_program_finds_its_sockets_in_order_from_three_on() {
    let dir = tempfile::tempdir().unwrap();
    let admin = format!("admin=unix:{}", dir.path().join("admin").display());
    let script =
        "echo $LISTEN_FDS $LISTEN_FDNAMES; [ $LISTEN_PID = $$ ] && readlink /proc/$$/fd/3 /proc/$$/fd/4";
    let output = hold(&["--listen", "http=127.0.0.1:0", "--listen", &admin, "--", "sh", "-c", script]);
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "2 http:admin", "{said}{}", text(&output.stderr));
    assert!(lines[1].starts_with("socket:") && lines[2].starts_with("socket:"), "{said}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_cold_start_chain_serves_and_the_same_words_start_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let kvd = Kvd::spawn(cold_start(&data));
    assert_eq!(kvd.call(&["PING"]), common::load::Answer::Simple("PONG".to_owned()));
    // The incumbent has the port: nothing is bound, and the next program gets a copy of its socket.
    let control = data.join("control");
    let listen = format!("resp={}", kvd.addr);
    let script = "echo $LISTEN_FDNAMES; ls -l /proc/$$/fd | grep -c socket:";
    let words = ["--from-incumbent", "--control", control.to_str().unwrap(), "--listen", &listen];
    let output = hold(&[&words[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(text(&output.stdout), "resp\n1\n", "{}", text(&output.stderr));
    // Without it the port is taken, and it is said by whom.
    let output = hold(&["--listen", &listen, "--", "true"]);
    assert_eq!(output.status.code(), Some(111));
    let expected = format!("taken by pid {}", kvd.child.id());
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
}

/// Binds, locks, becomes the daemon: each with the pid that was started.
fn cold_start(data: &Path) -> Command {
    let mut command = Command::new(HANDOFF);
    command.args(["hold-fds", "--listen", "resp=127.0.0.1:0", "--", HANDOFF, "lock"]).arg(data);
    command.args([HANDOFF, "kvd", "--data-dir"]).arg(data);
    command
}

#[test]
fn where_no_incumbent_answers_the_sockets_are_bound_if_it_is_known_where() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    let from = ["--from-incumbent", "--control", control.to_str().unwrap()];
    let output =
        hold(&[&from[..], &["--listen", "a=127.0.0.1:0", "--", "sh", "-c", "echo $LISTEN_FDNAMES"]].concat());
    assert_eq!(text(&output.stdout), "a\n", "{}", text(&output.stderr));
    let output = hold(&[&from[..], &["--", "true"]].concat());
    assert_eq!(output.status.code(), Some(111));
    assert!(text(&output.stderr).contains("is the daemon running"), "{}", text(&output.stderr));
}

#[test]
fn what_is_wrong_is_one_line_and_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let nowhere = format!("a={}", dir.path().join("none/socket").display());
    for (words, code, expected) in [
        (&["--listen", "a=127.0.0.1:0"][..], 100, "a program must follow"),
        (&["--", "touch"], 100, "give --listen NAME=ADDRESS"),
        (&["--inherit", "--", "touch"], 100, "nothing was inherited"),
        (&["--from-incumbent", "--", "touch"], 100, "HANDOFF_CONTROL"),
        (&["--listen", "a=127.0.0.1:x", "--", "touch"], 100, "is no port"),
        (&["--listen", &nowhere, "--", "touch"], 111, "make it first"),
        (&["--listen", "a=@x", "--listen", "a=@y", "--", "touch"], 100, "two listeners are called a"),
        (&["--listen", "a=127.0.0.1:0", "--", "handoff-no-such-program"], 127, "handoff-no-such-program"),
    ] {
        let mut command = Command::new(HANDOFF);
        let touched = words.contains(&"touch").then_some(&mark);
        command
            .arg("hold-fds")
            .args(words)
            .args(touched)
            .env_remove("HANDOFF_CONTROL")
            .env_remove("HANDOFF_DATA_DIR");
        let (found, said) = run_to_end(command);
        assert_eq!(found, code, "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?}: {said}");
        assert!(!mark.exists());
    }
}
