//! How it is known that a daemon serves.

use crate::rig::{Rig, handoff, said, spec, words};

#[test]
fn each_way_to_be_ready_is_seen() {
    for (options, faults) in [
        (&["--ready", "notify"][..], &["v1", "notify"][..]),
        (&["--ready", "fd", "--env", "READY_FD={ready}"], &["v1", "line"]),
        (&["--ready", "fd:9", "--env", "READY_FD=9"], &["v1", "line"]),
        (&["--ready", "tcp"], &["v1"]),
        (&["--ready", "tcp:web"], &["v1"]),
        (&["--ready", "http:/"], &["v1"]),
        (&["--ready", "http:/=503@web"], &["v1", "sick"]),
        (&["--ready", "log:^v1 counts from [0-9]+"], &["v1"]),
        (&["--ready", "exec:test -n \"$HANDOFF_PID\""], &["v1"]),
        (&["--ready", "alive:50ms"], &["v1"]),
        (&["--ready", "log:counts", "--ready", "tcp", "--ready", "http:/"], &["v1"]),
    ] {
        let rig = Rig::start(options, faults);
        assert_eq!(rig.ask(), "v1 1", "{options:?}");
    }
}

#[test]
fn what_does_not_hold_is_named() {
    std::thread::scope(|scope| {
        for (ready, fault, why) in [
            ("tcp", "hang", "tcp: not yet"),
            ("notify", "hang", "notify: not yet"),
            ("log:nothing", "hang", "log:nothing: not yet"),
            ("http:/", "sick", "http:/: it answers 503"),
            ("http:/=204", "well", "http:/=204: it answers 200"),
            ("exec:exit 3", "well", "exec:exit 3: exit status: 3"),
            ("tcp:wbe", "well", "there is no listener wbe"),
        ] {
            // Long enough for an answer on a machine that has much else to do.
            scope.spawn(move || expect_missing(ready, fault, why));
        }
    });
}

fn expect_missing(ready: &str, fault: &str, why: &str) {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--listen", "web=127.0.0.1:0", "--ready", ready, "--ready-timeout", "8s"];
    let output = handoff().args(words(dir.path(), &spec(&options, &["v1", fault]))).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(6), "{ready}: {said}");
    assert!(said.contains(why), "{ready}: {said}");
    assert!(handoff::DataDirLock::who(dir.path().join("data")).unwrap().is_empty());
}

#[test]
fn a_daemon_goes_on_to_write_through_its_wrap_when_a_line_has_said_that_it_serves() {
    let rig = Rig::start(&["--ready", "log:counts"], &["v1"]);
    rig.first.signal(handoff::sys::process::Signal::SIGUSR1);
    rig.first.said.wait_for("v1 got USR1");
}
