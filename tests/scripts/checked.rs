//! deploy-checked.sh.

use std::process::Command;

use crate::common::said::Said;
use crate::common::{eventually, wait_for_exit};
use crate::rig::{Rig, Way, expect, kill, signal_group};

macro_rules! each_way {
    ($($name:ident)*) => {
        mod dash { $(#[test] fn $name() { super::$name(super::Way::Dash) })* }
        mod bash { $(#[test] fn $name() { super::$name(super::Way::Bash) })* }
    };
}

each_way! {
    only_what_passes_the_check_is_kept
    a_trial_that_ends_without_the_script_is_found_out_about
    a_trial_that_is_interrupted_is_undone
    a_deploy_that_is_interrupted_before_any_step_leaves_the_old_one
    a_deploy_whose_chain_is_killed_before_any_step_is_undone
    a_trial_without_any_script_ends_by_itself
    a_daemon_that_is_killed_while_it_stands_by_is_not_missed
}

fn start(way: Way) -> Option<Rig> {
    Rig::start(way, "deploy-checked.sh", &[])
}

const QUICK: [(&str, &str); 2] = [("CHECKS", "3"), ("CHECK_INTERVAL", "0.1")];
/// A check that passes, for a trial that does not end.
const LONG: [(&str, &str); 3] = [("CHECK", "true"), ("CHECKS", "10000"), ("CHECK_INTERVAL", "0.1")];

fn checked_by(check: &str) -> Vec<(&str, &str)> {
    [("CHECK", check)].into_iter().chain(QUICK).collect()
}

fn only_what_passes_the_check_is_kept(way: Way) {
    let Some(mut rig) = start(way) else { return };
    expect(Said::of(rig.deploy("v2", &[], &[])), 100, "usage: CHECK=COMMAND ");
    // The check can ask the daemon, and what it prints is nobody's business.
    let asks = "handoff status | grep -q on-trial && echo noise";
    let said = rig.expect("v2", &[], &checked_by(asks), 0, "committed ");
    assert_eq!((said.out.lines().count(), said.err.as_str()), (1, ""), "{said:?}");
    rig.expect_serving("v2");
    let journal = rig.journal();
    assert!(journal.contains(" committed: generation 2") && !journal.contains("recovered"), "{journal}");

    for (check, part) in
        [("false", "failed with code 1: false"), ("sleep 600", "failed with code 124: sleep 600")]
    {
        let mut env = checked_by(check);
        env.push(("CHECK_TIMEOUT", "1"));
        let said = rig.expect("v3", &[], &env, 3, part);
        assert!(said.err.contains("rolled back: the old program serves"), "{said:?}");
        rig.expect_serving("v2");
        assert!(rig.journal().lines().last().unwrap().contains(part));
    }
    for fault in ["crash-at-start", "crash-after-begin", "stale", "unhealthy", "crash-when-ready"] {
        let said = rig.expect("v3", &[fault], &checked_by("true"), 3, "rolled back: the old program serves");
        assert!(said.out.starts_with("rolled back ") && said.out.lines().count() == 1, "{fault}: {said:?}");
        rig.expect_serving("v2");
    }
    for (fault, limit) in
        [("hang-while-warm", ("WARM_UP", "300ms")), ("hang-after-begin", ("DEADLINE", "1s"))]
    {
        let mut env = checked_by("true");
        env.push(limit);
        rig.expect("v3", &[fault], &env, 4, "it took too long");
        rig.expect_serving("v2");
    }
    let missing = Said::of({
        let mut command = rig.script();
        command.arg("/nowhere/kvd").envs(checked_by("true"));
        command
    });
    expect(missing, 127, "was not found, and nothing was changed");
    let nowhere = rig.path("nowhere").display().to_string();
    let mut wrong = checked_by("true");
    wrong.push(("HANDOFF_CONTROL", &nowhere));
    rig.expect("v3", &[], &wrong, 111, "unable to connect to ");
    rig.expect_serving("v2");
    rig.expect_clean();
}

fn a_trial_that_ends_without_the_script_is_found_out_about(way: Way) {
    let Some(mut rig) = start(way) else { return };
    // By somebody at a prompt.
    for (word, code, serves) in [("abort", 3, "v1"), ("commit", 0, "v2")] {
        let child = rig.until("on-trial", rig.deploy("v2", &[], &LONG));
        Said::of(rig.handoff(&[word])).expect(0);
        let ended = if code == 0 { ": committed" } else { ": rolled back" };
        expect(Said::by(child), code, ended);
        rig.expect_serving(serves);
    }
    // By its time.
    let mut short = LONG.to_vec();
    short.push(("BAKE", "1s"));
    rig.expect("v3", &[], &short, 0, ": committed");
    rig.expect_serving("v3");
    rig.expect_clean();

    // By its death, of which clients notice something.
    let Some(mut rig) = start(way) else { return };
    rig.expect("v2", &["crash-after-serving-ms=500"], &LONG, 3, "rolled back: the old program serves");
    rig.expect_serving("v1");
    rig.expect_nothing_lost();
}

fn a_trial_that_is_interrupted_is_undone(way: Way) {
    let Some(mut rig) = start(way) else { return };
    for signal in ["INT", "TERM", "HUP"] {
        let child = rig.until("on-trial", rig.deploy("v2", &[], &LONG));
        signal_group(&child, signal);
        let said = expect(Said::by(child), 3, "it was stopped on request");
        assert!(said.out.contains("rolled back "), "{said:#?}");
        rig.expect_serving("v1");
    }
    rig.expect_clean();
}

const STEPS: [&str; 5] = ["journal begin", "exec-successor", "drain", "commit --until-serving", "commit"];

fn a_deploy_that_is_interrupted_before_any_step_leaves_the_old_one(way: Way) {
    let Some(mut rig) = start(way) else { return };
    for step in STEPS {
        // `commit` is also the beginning of the step before it, which is passed once.
        if step == "commit" {
            continue;
        }
        let paused = rig.pause("v2", step, &checked_by("true"));
        signal_group(&paused.child, "INT");
        let code = if step == "journal begin" { 1 } else { 3 };
        paused.said().expect(code);
        rig.expect_serving("v1");
    }
    rig.expect_clean();
}

fn a_deploy_whose_chain_is_killed_before_any_step_is_undone(way: Way) {
    let Some(mut rig) = start(way) else { return };
    for step in ["journal begin", "exec-successor", "drain"] {
        let paused = rig.pause("v2", step, &checked_by("true"));
        kill(paused.chain());
        if step == "drain" {
            paused.go();
        }
        let code = if step == "journal begin" { 1 } else { 3 };
        expect(paused.said(), code, "the chain was killed by signal 9");
        rig.expect_serving("v1");
    }
    // On trial: the first call is there to undo it.
    let child = rig.until("on-trial", rig.deploy("v2", &[], &LONG));
    kill(chain_of(child.id()));
    expect(Said::by(child), 3, "the chain was killed by signal 9");
    rig.expect_serving("v1");
    rig.expect_clean();
}

fn chain_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

fn a_trial_without_any_script_ends_by_itself(way: Way) {
    let Some(mut rig) = start(way) else { return };
    let mut env = LONG.to_vec();
    env.push(("BAKE", "2s"));
    let mut child = rig.until("on-trial", rig.deploy("v2", &[], &env));
    signal_group(&child, "KILL");
    wait_for_exit(&mut child);
    rig.expect_serving("v2");
    let resumed: Command = rig.handoff(&["journal", "resume"]);
    expect(Said::of(resumed), 0, ": committed");
    rig.expect_clean();
}

fn a_daemon_that_is_killed_while_it_stands_by_is_not_missed(way: Way) {
    let Some(mut rig) = start(way) else { return };
    let child = rig.until("on-trial", rig.deploy("v2", &[], &LONG));
    rig.first.child.kill().unwrap();
    eventually("the end of the trial", || rig.status().is_some_and(|status| status.role == "incumbent"));
    expect(Said::by(child), 0, ": committed");
    rig.expect_serving("v2");
    rig.expect_nothing_lost();
}
