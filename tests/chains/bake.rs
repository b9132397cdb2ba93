//! Chains whose successor serves on trial first.

use crate::rig::{Rig, Run};

const WARM: &str =
    "exec handoff exec-successor --warm kvd-v2 -- handoff drain --bake 60s -- handoff commit --until-serving";
const IN_PLACE: &str = "exec handoff drain --bake 60s -- handoff exec-successor kvd-v2";
const STARTED: &str = "exec handoff drain --bake 60s -- handoff exec-successor --wait kvd-v2";

/// A successor on trial; with the process that stays, where one does.
fn on_trial(line: &str) -> (Rig, Run) {
    let rig = Rig::start(&[]);
    let mut run = rig.sh(line);
    rig.await_phase("on-trial");
    if line == WARM {
        // The driver has no further role.
        run.expect(0);
        run.wait_for("baking ");
    }
    assert_eq!(rig.label(), "v2");
    rig.await_writes();
    (rig, run)
}

#[test]
fn a_trial_that_a_chain_began_can_be_committed_early() {
    for line in [WARM, STARTED, IN_PLACE] {
        let (mut rig, mut run) = on_trial(line);
        let said = rig.expect("handoff commit", 0);
        assert!(said.contains("committed ") && said.contains("serves generation"), "{said}");
        let pid = rig.expect_succeeded();
        match line {
            IN_PLACE => assert_eq!(pid, run.pid()),
            _ => run.expect(0),
        }
        rig.expect_clean();
    }
}

#[test]
fn a_trial_that_a_chain_began_can_be_aborted_with_its_writes_kept() {
    for (line, code) in [(WARM, 0), (STARTED, 3), (IN_PLACE, 3)] {
        let (rig, mut run) = on_trial(line);
        let said = rig.expect("handoff abort --reason 'the error rate went up'", 0);
        assert!(said.contains("rolled back "), "{said}");
        rig.expect_undone();
        run.expect(code);
        rig.expect_clean();
    }
}

#[test]
fn a_trial_that_a_chain_began_ends_by_itself() {
    for line in [WARM, STARTED, IN_PLACE] {
        let mut rig = Rig::start(&[]);
        let run = rig.sh(&line.replace("--bake 60s", "--bake 300ms"));
        rig.expect_succeeded();
        rig.expect_clean();
        drop(run);
    }
}

#[test]
fn a_chain_goes_on_during_a_trial_and_settles_it_itself() {
    let end = [("handoff commit", 0, true), ("handoff abort", 0, false)];
    for (last, code, kept) in end {
        let mut rig = Rig::start(&[]);
        rig.expect(&format!("{WARM} -- sh -c 'handoff status && {last}'"), code);
        if kept {
            rig.expect_succeeded();
        } else {
            rig.expect_undone();
        }
        rig.expect_clean();
    }
}

#[test]
fn a_chain_without_until_serving_waits_for_the_end_of_the_trial() {
    let mut rig = Rig::start(&[]);
    let said = rig.expect(
        "handoff journal begin -- handoff exec-successor --warm kvd-v2 -- handoff drain --bake 400ms -- handoff commit",
        0,
    );
    assert!(said.contains(" bake 4"), "{said}");
    rig.expect_succeeded();
    rig.expect_clean();
}

#[test]
fn a_trial_whose_successor_dies_is_undone() {
    for line in [WARM, STARTED, IN_PLACE] {
        let rig = Rig::start(&[]);
        let mut run = rig.sh_with(line, &[("KVD_FAIL", "--fail crash-after-serving-ms=300")]);
        rig.await_phase("on-trial");
        rig.expect_undone();
        run.wait();
        rig.expect_no_loss();
    }
}

#[test]
fn a_chain_that_is_killed_during_a_trial_is_not_missed() {
    let mut rig = Rig::start(&[]);
    let mut run =
        rig.sh("exec handoff exec-successor --warm kvd-v2 -- handoff drain --bake 700ms -- handoff commit");
    rig.await_phase("on-trial");
    run.kill();
    rig.expect_succeeded();
    rig.expect_clean();
}
