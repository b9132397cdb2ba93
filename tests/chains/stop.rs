//! A planned stop: the daemon ends in order, with nobody after it.

use handoff::DataDirLock;

use crate::common::eventually;
use crate::rig::Rig;

/// Stops it under load, and starts another one that finds everything.
fn stop(line: &str) {
    let mut rig = Rig::start(&[]);
    let said = rig.expect(line, 0);
    assert!(said.contains("retired "), "{said}");
    assert!(said.contains("the data is sealed, and nobody serves"), "{said}");
    rig.first.as_mut().unwrap().expect(0);
    assert!(DataDirLock::who(rig.data()).unwrap().is_empty());
    assert!(rig.alive().is_empty());
    // Nobody listens, so the load is refused from here on.
    let ledger = rig.stop_load();
    let bad = (ledger.counts.timed_out, ledger.counts.errors, ledger.counts.contradictions);
    assert_eq!(bad, (0, 0, 0), "{:?}", ledger.counts);
    let data = rig.data();
    rig.begin(&["handoff", "kvd", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()], &[]);
    let found = ledger.read_back(rig.addr).unwrap();
    assert!(found.lost == 0 && found.checked > 0, "{found}");
    rig.settle();
    rig.expect_clean();
}

#[test]
fn a_planned_stop_leaves_every_acknowledged_write_on_the_disk_and_the_lock_free() {
    for line in [
        "exec handoff drain --exit",
        "exec handoff journal begin -- handoff drain --exit",
        "exec handoff drain --no-seal -- handoff drain --exit",
        "exec handoff drain --no-seal -- handoff seal -- handoff drain --exit",
        "exec handoff drain -- handoff drain --exit",
        "printf 'handoff seal\\nhandoff drain --exit\\n' | handoff drain --no-seal -- sh",
    ] {
        stop(line);
    }
}

#[test]
fn a_program_after_a_planned_stop_runs_when_nobody_serves() {
    let mut rig = Rig::start(&[]);
    let data = rig.data();
    let said = rig.expect(
        &format!("handoff drain --exit -- handoff lock --wait 10s {} ls {}", data.display(), data.display()),
        0,
    );
    assert!(said.contains("kv.log"), "{said}");
    rig.first.as_mut().unwrap().expect(0);
    rig.stop_load();
}

#[test]
fn a_socket_that_a_chain_holds_over_a_planned_stop_is_served_by_the_next_daemon() {
    for stop in
        ["hold-fds --from-incumbent -- handoff drain --exit", "drain --no-seal -- handoff drain --exit"]
    {
        let mut rig = Rig::start(&[]);
        let data = rig.data();
        let chain = rig.sh(&format!(
            "exec handoff {stop} -- handoff lock {} -- handoff kvd --version-label v2",
            data.display()
        ));
        let pid = rig.expect_succeeded();
        assert_eq!(pid, chain.pid(), "{stop}");
        // It was stopped and started, and the socket was there all the time.
        rig.expect_clean();
    }
}

#[test]
fn a_stop_of_a_daemon_that_dies_meanwhile_says_so() {
    let mut rig = Rig::start(&["--fail", "slow-seal-ms=600000"]);
    let mut run = rig.sh("exec handoff drain --exit");
    rig.await_phase("sealing");
    rig.first.as_mut().unwrap().kill();
    let status = run.wait();
    assert!(matches!(status.code(), Some(5 | 6)), "{status} {}", run.said());
    eventually("nobody", || rig.alive().is_empty());
    rig.stop_load();
}

#[test]
fn a_planned_stop_leaves_word_of_what_to_start() {
    let mut rig = Rig::start(&[]);
    rig.expect("handoff drain --exit", 0);
    rig.first.as_mut().unwrap().expect(0);
    let said = rig.expect(&format!("handoff status --data-dir {}", rig.data().display()), 1);
    assert!(said.contains("start ") && said.contains("kvd --listen"), "{said}");
    rig.stop_load();
}
