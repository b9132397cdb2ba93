//! What daemons do that nobody expects of them: each is handled, or named.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::common::{Serving, eventually, wait_for_exit};
use crate::rig::{Load, Rig, spec};

#[test]
fn a_daemon_that_goes_into_the_background_is_followed() {
    let mut rig = Rig::start(&[], &["v1", "background"]);
    rig.first.said.wait_for("gone into the background");
    assert_eq!(rig.ask(), "v1 1");
    rig.expect_commit(&[], &spec(&[], &["v2", "background"]));
    assert_eq!(rig.ask(), "v2 2");
    assert_eq!(rig.first.wait().code(), Some(0));
}

#[test]
fn how_a_daemon_in_the_background_ends_is_how_its_wrap_ends() {
    let mut rig = Rig::start(&[], &["v1", "background"]);
    rig.tell("die 5");
    assert_eq!(rig.first.wait().code(), Some(5));
}

#[test]
fn a_process_that_is_left_with_the_lock_is_named_and_the_handoff_undone() {
    let rig = Rig::start(&[], &["v1", "leave-child"]);
    let (code, said) = rig.swap(&["--drain-grace", "500ms"], &spec(&[], &["v2"]));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("left at the end of the grace: pid "), "{said}");
    assert!(said.contains("daemon.py v1"), "{said}");
    // The daemon itself had ended.
    assert_eq!(rig.ask(), "v1 1");
}

#[test]
fn what_is_left_is_killed_where_that_was_asked_for() {
    let rig = Rig::start(&["--drain", "TERM,KILL"], &["v1", "leave-child"]);
    rig.expect_commit(&["--drain-grace", "1s"], &spec(&[], &["v2"]));
    assert_eq!(rig.ask(), "v2 1");
}

#[test]
fn a_daemon_that_ignores_its_signal_serves_on() {
    let rig = Rig::start(&[], &["v1", "ignore-term"]);
    let before = rig.daemon();
    let (code, said) = rig.swap(&["--drain-grace", "300ms"], &spec(&[], &["v2"]));
    assert_eq!(code, 3, "{said}");
    assert_eq!((rig.ask().as_str(), rig.daemon()), ("v1 1", before));
}

#[test]
fn a_second_signal_ends_what_the_first_one_does_not() {
    let rig = Rig::start(&["--drain", "TERM,100ms,QUIT"], &["v1", "ignore-term"]);
    rig.expect_commit(&[], &spec(&[], &["v2"]));
    assert_eq!(rig.ask(), "v2 1");
}

#[test]
fn a_command_can_ask_the_daemon_to_end_and_its_failure_undoes_the_handoff() {
    let rig = Rig::start(&["--drain-cmd", "kill -QUIT $HANDOFF_PID"], &["v1", "ignore-term"]);
    rig.expect_commit(&[], &spec(&["--drain-cmd", "exit 4"], &["v2"]));
    let (code, said) = rig.swap(&[], &spec(&[], &["v3"]));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("the command failed: exit status: 4"), "{said}");
    assert_eq!(rig.ask(), "v2 1");
}

#[test]
fn a_daemon_that_ends_after_the_handoff_was_undone_is_started_again() {
    let rig = Rig::start(&[], &["v1", "slow-end"]);
    let before = rig.daemon();
    let (code, said) = rig.swap(&["--drain-grace", "300ms"], &spec(&[], &["v2"]));
    assert_eq!(code, 3, "{said}");
    rig.first.said.wait_for("is started again when it ends after all");
    rig.go();
    rig.first.said.wait_for("starting it again");
    eventually("the daemon to serve again", || rig.find_daemon().is_some_and(|pid| pid != before));
    assert_eq!(rig.ask(), "v1 1");
}

#[test]
fn a_listener_that_the_daemon_shut_down_listens_again() {
    let rig = Rig::start(&[], &["v1", "shutdown"]);
    rig.expect_commit(&[], &spec(&[], &["v2"]));
    rig.first.said.wait_for("shut the listener down");
    assert_eq!(rig.ask(), "v2 1");
}

#[test]
fn a_path_that_the_daemon_removed_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web");
    let rig = Rig::start_at(dir, path.display().to_string(), &[], &["v1", "unlink"]);
    let ask = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"x").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert_eq!(ask(), "v1 1\n");
    rig.expect_commit(&[], &spec(&[], &["v2", "unlink"]));
    rig.first.said.wait_for("removed the socket's path");
    assert_eq!(ask(), "v2 2\n");
    rig.expect_commit(&[], &spec(&[], &["v3"]));
    assert_eq!(ask(), "v3 3\n");
}

#[test]
fn flags_that_a_daemon_set_on_its_listener_are_not_its_successors() {
    let rig = Rig::start(&[], &["v1", "nonblock"]);
    assert!(rig.is_nonblocking());
    rig.expect_commit(&[], &spec(&[], &["v2"]));
    assert!(!rig.is_nonblocking());
    assert_eq!(rig.ask(), "v2 1");
}

#[test]
fn children_that_outlive_the_daemon_are_waited_for() {
    let rig = Rig::start(&[], &["v1", "slow-child"]);
    let load = Load::start(&rig.address);
    load.go_on();
    let mut swap = Serving(rig.swap_command(&[], &spec(&[], &["v2"])).spawn().unwrap());
    rig.first.said.wait_for("v1 ends");
    assert!(swap.0.try_wait().unwrap().is_none());
    assert!(!rig.path().join("data/tally.late").exists());
    rig.go();
    assert_eq!(wait_for_exit(&mut swap.0).code(), Some(0));
    assert!(rig.path().join("data/tally.late").exists());
    load.go_on();
    load.expect_undisturbed(&rig);
}
