//! How a wrap ends: as its daemon did, or with it.

use std::os::unix::process::ExitStatusExt;

use handoff::sys::process::Signal;

use crate::common::eventually;
use crate::rig::{Rig, Wrap, handoff, said, spec, words};

#[test]
fn a_wrap_ends_as_its_daemon_did() {
    for (told, code, signal) in
        [("die 5", Some(5), None), ("kill 9", None, Some(9)), ("kill 6", None, Some(6))]
    {
        let mut rig = Rig::start(&[], &["v1"]);
        rig.tell(told);
        let status = rig.first.wait();
        assert_eq!((status.code(), status.signal()), (code, signal), "{told}");
        assert!(!rig.is_locked());
    }
}

#[test]
fn what_a_daemon_leaves_when_it_fails_is_killed() {
    let mut rig = Rig::start(&[], &["v1", "leave-child"]);
    rig.tell("die 5");
    assert_eq!(rig.first.wait().code(), Some(5));
    rig.first.said.wait_for("left processes behind, which are killed");
    assert!(!rig.is_locked());
}

#[test]
fn a_wrap_that_is_asked_to_stop_ends_its_daemon_in_order() {
    let mut rig = Rig::start(&[], &["v1"]);
    rig.first.signal(Signal::SIGTERM);
    assert_eq!(rig.first.wait().code(), Some(0));
    rig.first.said.wait_for("v1 ends");
    assert!(!rig.is_locked());
}

#[test]
fn a_daemon_that_does_not_stop_in_time_is_killed() {
    let mut rig = Rig::start(&["--stop-grace", "300ms"], &["v1", "ignore-term"]);
    rig.first.signal(Signal::SIGTERM);
    assert_eq!(rig.first.wait().signal(), Some(9));
    assert!(!rig.is_locked());
}

#[test]
fn a_second_request_to_stop_kills_at_once() {
    let mut rig = Rig::start(&["--stop-grace", "10m"], &["v1", "ignore-term"]);
    rig.first.signal(Signal::SIGTERM);
    rig.first.said.wait_for("v1 ignores it");
    rig.first.signal(Signal::SIGTERM);
    assert_eq!(rig.first.wait().signal(), Some(9));
}

#[test]
fn a_wrap_that_is_asked_to_stop_before_its_daemon_is_ready_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let words = words(dir.path(), &spec(&["--listen", "web=127.0.0.1:0"], &["v1", "hang"]));
    let mut wrap = Wrap::start(handoff().args(&words));
    let data = dir.path().join("data");
    let holders = || handoff::DataDirLock::who(&data).unwrap_or_default();
    eventually("the daemon", || holders().len() == 2);
    wrap.signal(Signal::SIGTERM);
    assert_eq!(wrap.wait().code(), Some(6));
    assert_eq!(holders().len(), 0);
}

#[test]
fn other_signals_are_for_the_daemon() {
    let rig = Rig::start(&[], &["v1"]);
    rig.first.signal(Signal::SIGUSR1);
    rig.first.said.wait_for("v1 got USR1");
    rig.first.signal(Signal::SIGHUP);
    rig.first.said.wait_for("v1 got HUP");
    assert_eq!(rig.ask(), "v1 1");
}

#[test]
fn a_daemon_that_fails_at_the_start_is_how_its_wrap_fails() {
    let dir = tempfile::tempdir().unwrap();
    let words = words(dir.path(), &spec(&["--listen", "web=127.0.0.1:0"], &["v1", "exit-at-once"]));
    let output = handoff().args(&words).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(
        said(&output).contains("the daemon ended before it was ready: exit status: 7"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_daemon_outlives_a_wrap_that_is_killed_and_keeps_the_lock() {
    let mut rig = Rig::start(&[], &["v1"]);
    let daemon = rig.daemon();
    rig.first.signal(Signal::SIGKILL);
    rig.first.wait();
    assert_eq!(rig.ask(), "v1 1");
    let listen = format!("web={}", rig.address);
    let output = handoff().args(words(rig.path(), &spec(&["--listen", &listen], &["v2"]))).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(&format!("pid {daemon} (")), "{}", said(&output));
    assert_eq!(rig.ask(), "v1 2");

    let second =
        Wrap::start(handoff().args(words(rig.path(), &spec(&["--listen", &listen, "--take-over"], &["v2"]))));
    second.said.wait_for(" serves");
    assert_eq!(rig.ask(), "v2 3");
    rig.first = second;
}

#[test]
fn those_who_started_a_wrap_are_told_when_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let address = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
    let words =
        words(dir.path(), &spec(&["--listen", "web=127.0.0.1:0", "--ready", "notify"], &["v1", "notify"]));
    let mut wrap = Wrap::start(handoff().env("NOTIFY_SOCKET", &address).args(&words));
    let pid = wrap.child.id();
    let mut said = vec![];
    let mut buffer = [0; 1024];
    while !said.iter().any(|line: &String| line.contains("READY=1")) {
        let length = manager.recv(&mut buffer).unwrap();
        said.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert!(said.iter().any(|line| line.contains("STATUS=counting")), "{said:?}");
    assert!(said.iter().any(|line| line.contains(&format!("MAINPID={pid}"))), "{said:?}");
    wrap.signal(Signal::SIGTERM);
    assert_eq!(wrap.wait().code(), Some(0));
}
