//! A person or a service manager asks a link to stop, or the terminal closes.

use std::os::unix::process::ExitStatusExt;

use crate::common::{eventually, has_script};
use crate::rig::{Rig, signal};

const WARM: &str = "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit";
const WARM_BY_STEPS: &str =
    "exec handoff exec-successor --warm kvd-v2 -- handoff drain --no-seal -- handoff seal -- handoff commit";
const STARTED: &str = "exec handoff drain -- handoff exec-successor --wait kvd-v2";
const IN_PLACE: &str = "exec handoff drain -- handoff exec-successor kvd-v2";
const IN_PLACE_BY_STEPS: &str =
    "exec handoff drain --no-seal -- handoff seal -- handoff exec-successor kvd-v2";
const STOP: &str = "exec handoff drain --exit";

/// Sends each signal when the incumbent is in this phase; the link says that it was undone.
fn asked_to_stop(rig: &Rig, lines: &[&str], phase: &str, fault: &str) {
    for line in lines {
        for name in ["INT", "TERM", "HUP"] {
            let mut run = rig.sh_with(line, &[("KVD_FAIL", fault)]);
            rig.await_phase(phase);
            signal(run.pid(), name);
            run.expect(3);
            run.wait_for(&format!("was asked to stop by SIG{name}; the incumbent serves"));
            rig.expect_undone();
        }
    }
}

#[test]
fn a_link_that_is_asked_to_stop_while_the_daemon_drains_or_seals_undoes_the_handoff() {
    for (fault, phase) in [("slow-drain-ms=600000", "draining"), ("slow-seal-ms=600000", "sealing")] {
        let rig = Rig::start(&["--fail", fault]);
        let lines = [WARM, WARM_BY_STEPS, STARTED, IN_PLACE, IN_PLACE_BY_STEPS, STOP];
        asked_to_stop(&rig, &lines, phase, "");
        rig.expect_clean();
    }
}

#[test]
fn a_link_that_is_asked_to_stop_while_the_successor_starts_undoes_the_handoff() {
    let rig = Rig::start(&[]);
    asked_to_stop(&rig, &[WARM], "prepared", "--fail hang-while-warm");
    for name in ["INT", "TERM", "HUP"] {
        let mut run = rig.sh_with(STARTED, &[("KVD_FAIL", "--fail hang-while-warm")]);
        // Between two links it would be the signal's to end it.
        let is_new = |pid: &u32| *pid != rig.first_pid() && *pid != run.pid();
        eventually("the successor", || rig.alive().iter().any(is_new));
        signal(run.pid(), name);
        run.expect(3);
        rig.expect_undone();
    }
    asked_to_stop(&rig, &[WARM, STARTED], "attached", "--fail hang-after-begin");
    rig.expect_clean();
}

#[test]
fn a_shell_that_is_killed_by_a_signal_undoes_the_handoff() {
    let rig = Rig::start(&[]);
    for line in [
        "exec handoff exec-successor --warm kvd-v2 -- cut",
        "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- cut",
        "exec handoff drain --no-seal -- cut",
        "exec handoff drain -- cut",
    ] {
        for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
            let mut run = rig.sh(line);
            run.wait_for("cut ");
            // The link has put back what it caught: the next program dies of it.
            signal(run.pid(), name);
            assert_eq!(run.wait().signal(), Some(number), "{line}");
            rig.expect_undone();
        }
    }
    rig.expect_clean();
}

#[test]
fn a_successor_in_place_that_is_asked_to_stop_before_it_serves_is_undone() {
    let rig = Rig::start(&[]);
    for name in ["INT", "TERM", "HUP"] {
        let mut run = rig.sh_with(IN_PLACE, &[("KVD_FAIL", "--fail hang-after-begin")]);
        rig.await_phase("attached");
        signal(run.pid(), name);
        assert!(run.wait().signal().is_some());
        rig.expect_undone();
    }
    rig.expect_clean();
}

/// Runs a line in a terminal of its own.
fn in_terminal(rig: &Rig, line: &str, env: &[(&str, &str)]) -> crate::rig::Run {
    rig.run_with(&["script", "-q", "-c", line, "/dev/null"], env)
}

#[test]
fn a_terminal_that_closes_on_a_link_at_work_undoes_what_can_be_undone() {
    if !has_script() {
        return;
    }
    let rig = Rig::start(&[]);
    for line in [WARM, STARTED] {
        let mut terminal = in_terminal(&rig, line, &[("KVD_FAIL", "--fail slow-open-ms=60000")]);
        rig.await_phase("attached");
        terminal.kill();
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_terminal_that_closes_does_not_disturb_a_chain_that_ignores_it() {
    if !has_script() {
        return;
    }
    for line in [WARM, STARTED] {
        let mut rig = Rig::start(&[]);
        // As nohup(1) does it, whose output would go elsewhere.
        let line = format!("trap '' HUP; {line}");
        let mut terminal = in_terminal(&rig, &line, &[("KVD_FAIL", "--fail slow-open-ms=700")]);
        rig.await_phase("attached");
        terminal.kill();
        rig.expect_succeeded();
        rig.expect_clean();
    }
}

#[test]
fn a_terminal_that_closes_on_the_shell_that_holds_the_lease_undoes_the_handoff() {
    if !has_script() {
        return;
    }
    let rig = Rig::start(&[]);
    for line in [
        "exec handoff exec-successor --warm kvd-v2 -- cut",
        "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- cut",
        "exec handoff drain -- cut",
    ] {
        let mut terminal = in_terminal(&rig, line, &[]);
        terminal.wait_for("cut ");
        terminal.kill();
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_daemon_that_a_chain_has_started_outlives_its_terminal() {
    if !has_script() {
        return;
    }
    let mut rig = Rig::start(&[]);
    let mut terminal = in_terminal(&rig, WARM, &[]);
    terminal.expect(0);
    let pid = rig.expect_succeeded();
    // In a session of its own, without a terminal.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!((fields[3], fields[4]), (pid.to_string().as_str(), "0"), "session and terminal");
    eventually("its parent's end", || fields[1] != terminal.pid().to_string());
    rig.expect_clean();
}
