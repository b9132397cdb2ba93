//! What is done when the daemon dies by itself.

use crate::common::{HANDOFF, eventually};
use crate::{Rig, process};

#[test]
fn the_supervisor_ends_as_the_daemon_did() {
    let mut rig = Rig::start(&[], &[]);
    process::signal(rig.settle(), "KILL");
    assert_eq!(rig.supervisor.wait().code(), Some(128 + 9), "{:#?}", rig.supervisor.lines());
    // One that could not be started as well.
    let mut rig = Rig::begin(&[], &["sh", "-c", "exit 7"]);
    assert_eq!(rig.supervisor.wait().code(), Some(7), "{:#?}", rig.supervisor.lines());
    // How one ended that is no child is not known.
    let mut rig = Rig::start(&[], &[]);
    rig.kill_supervisor();
    rig.start_again();
    process::signal(rig.settle(), "KILL");
    assert_eq!(rig.supervisor.wait().code(), Some(6), "{:#?}", rig.supervisor.lines());
}

#[test]
fn a_daemon_that_was_killed_is_started_again_on_the_same_sockets() {
    let rig = Rig::start(&["policy=on-failure"], &["--version-label", "v0"]);
    assert!(rig.swap(rig.to("v1", &[])).unwrap().committed);
    let load = rig.load();
    let mut last = rig.settle();
    for _ in 0..3 {
        let before = load.counts().acknowledged;
        eventually("writes", || load.counts().acknowledged > before + 30);
        process::signal(last, "KILL");
        eventually("another daemon", || rig.await_serving() != last);
        last = rig.settle();
    }
    assert_eq!(rig.serving(), "v1", "what the record names, and not what is configured");
    assert_eq!(rig.state().unwrap().restarts, 3);
    rig.expect_no_loss(load);
    rig.stop();
}

#[test]
fn one_that_dies_too_often_is_followed() {
    let mut rig = Rig::start(&["policy=always", "max=2", "delay=1"], &[]);
    let pid = rig.settle();
    process::signal(pid, "KILL");
    for restart in 1..=2 {
        eventually("a restart", || rig.state().is_some_and(|state| state.restarts == restart));
        process::signal(rig.settle(), "KILL");
    }
    assert_eq!(rig.supervisor.wait().code(), Some(128 + 9), "{:#?}", rig.supervisor.lines());
}

#[test]
fn a_program_that_was_replaced_is_started_again_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("kvd");
    std::fs::copy(HANDOFF, &copy).unwrap();
    let rig = Rig::begin(&["policy=always"], &[copy.to_str().unwrap(), "kvd"]);
    let first = rig.await_serving();
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copy, "no program").unwrap();
    process::signal(first, "KILL");
    eventually("another daemon", || rig.await_serving() != first);
    rig.settle();
    rig.stop();
}

#[test]
fn one_that_is_not_ready_in_time_is_ended() {
    let mut rig = Rig::begin(&["ready-within=300"], &["sh", "-c", "exec sleep 600"]);
    assert_eq!(rig.supervisor.wait().code(), Some(128 + 15), "{:#?}", rig.supervisor.lines());
    rig.supervisor.line("timed out waiting for the daemon to be ready");
    let mut rig = Rig::begin(&["ready=false", "ready-within=500"], &[HANDOFF, "kvd"]);
    assert!(rig.supervisor.wait().code().is_some());
    assert_eq!(rig.daemons(), [0; 0]);
}

#[test]
fn orphans_are_reaped() {
    let script = "(sleep 0.01 & sleep 0.02 &); exec \"$@\"";
    let rig = Rig::begin(&[], &["sh", "-c", script, "sh", HANDOFF, "kvd"]);
    rig.await_serving();
    let supervisor = rig.state().unwrap().pid;
    for label in ["v1", "v2"] {
        assert!(rig.swap(rig.to(label, &[])).is_ok());
    }
    // Each sleep became the supervisor's child when its shell ended, and none of them stays.
    eventually("all to be reaped", || crate::zombies_of(supervisor) == 0);
    rig.stop();
}
