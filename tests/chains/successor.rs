//! A successor that is not fit, in each of the ways in which a chain can start it.

use crate::rig::Rig;

const WARM: &str = "handoff exec-successor --warm --warm-up-limit 500ms kvd-v2 -- handoff drain --deadline 700ms -- handoff commit";
const STARTED: &str = "handoff drain --deadline 700ms -- sh -c 'exec handoff exec-successor --wait kvd-v2'";
const IN_PLACE: &str = "exec handoff drain --deadline 700ms -- handoff exec-successor kvd-v2";
const IN_ONE: &str = "handoff swap --warm-up-limit 500ms --deadline 700ms kvd-v2";

/// Runs a chain whose successor has this fault: the incumbent serves on.
#[track_caller]
fn undone(rig: &Rig, line: &str, fault: &str, code: i32) {
    let mut run = rig.sh_with(line, &[("KVD_FAIL", &format!("--fail {fault}"))]);
    run.leave();
    let status = run.wait();
    assert_eq!(status.code(), Some(code), "{fault}, {line}: {}", run.said());
    rig.expect_undone();
}

#[test]
fn an_unfit_successor_that_a_chain_starts_is_undone_and_the_exit_code_says_how() {
    for line in [WARM, STARTED, IN_ONE] {
        let rig = Rig::start(&[]);
        for (fault, code) in [
            ("crash-at-start", 3),
            ("exit-while-warm", 3),
            ("crash-after-begin", 3),
            ("stale", 3),
            ("unhealthy", 3),
            ("hang-while-warm", 4),
            ("hang-after-begin", 4),
            ("slow-open-ms=60000", 4),
        ] {
            undone(&rig, line, fault, code);
        }
        rig.expect_clean();
    }
}

#[test]
fn an_unfit_successor_in_place_is_undone_and_says_so_itself() {
    let rig = Rig::start(&[]);
    for (fault, code) in [("exit-while-warm", 0), ("stale", 3), ("unhealthy", 3)] {
        undone(&rig, IN_PLACE, fault, code);
    }
    for (fault, signal) in
        [("crash-at-start", 6), ("crash-after-begin", 6), ("hang-after-begin", 9), ("slow-open-ms=60000", 9)]
    {
        use std::os::unix::process::ExitStatusExt;
        let mut run = rig.sh_with(IN_PLACE, &[("KVD_FAIL", &format!("--fail {fault}"))]);
        assert_eq!(run.wait().signal(), Some(signal), "{fault}: {}", run.said());
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_successor_in_place_that_hangs_before_it_takes_the_lease_up_is_out_of_the_way_at_the_deadline() {
    let rig = Rig::start(&[]);
    let mut run = rig.sh_with(IN_PLACE, &[("KVD_FAIL", "--fail hang-while-warm")]);
    rig.await_phase("sealed");
    // It is nobody's to kill: the terminal or the service manager that started it has it.
    assert_eq!(rig.settle_beside(&[run.pid()]), rig.first_pid());
    run.kill();
    rig.expect_undone();
    rig.expect_clean();
}

#[test]
fn a_successor_that_dies_when_it_is_granted_is_followed_by_its_own_program() {
    for line in [WARM, STARTED, IN_PLACE, IN_ONE] {
        let rig = Rig::start(&[]);
        let mut run = rig.sh_with(line, &[("KVD_FAIL", "--fail crash-when-ready")]);
        run.leave();
        run.wait();
        // The data is the new version's: its program is started, in the incumbent's process.
        crate::common::eventually("the program of the successor", || crate::rig::runs(rig.first_pid(), "v2"));
        assert_eq!(rig.settle(), rig.first_pid(), "{line}");
        assert_eq!(rig.label(), "v2");
        rig.expect_clean();
    }
}
