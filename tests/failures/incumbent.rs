//! What an incumbent's failure does: the healthy successor serves.

use std::time::{Duration, Instant};

use crate::rig::{PATIENCE, Rig, process};

#[test]
fn one_that_is_killed_while_the_successor_warms_up_is_succeeded() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&[], &["at=warm:wait"]);
    let successor = driver.at("warm");
    rig.first.kill();
    rig.first.wait();
    rig.go();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::ZERO), successor);
    rig.expect_no_loss();
}

#[test]
fn one_that_is_killed_in_a_hook_is_succeeded_at_once() {
    for point in ["drain", "stopped", "seal"] {
        let mut rig = Rig::start(&[&format!("at={point}:kill")]);
        let mut driver = rig.swap(&[], &["at=warm:mark"]);
        let successor = driver.at("warm");
        assert_eq!(driver.outcome(), "committed", "{point}: {:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::ZERO), successor, "{point}");
        rig.expect_no_loss();
    }
}

#[test]
fn one_that_is_killed_after_the_seal_is_succeeded_at_once() {
    for point in ["begun", "locked", "opened", "granted"] {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&[], &[&format!("at={point}:wait")]);
        let successor = driver.at(point);
        rig.first.kill();
        rig.first.wait();
        rig.go();
        assert_eq!(driver.outcome(), "committed", "{point}: {:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::ZERO), successor, "{point}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_killed_while_it_stands_by_in_a_trial_leaves_a_successor_that_is_final() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["bake=20000"], &["at=serving:mark"]);
    let successor = driver.at("serving");
    rig.await_status("on trial", "the successor", |status| status.phase == "on-trial");
    rig.first.kill();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::ZERO), successor);
    rig.expect_clean();
}

/// It holds the lock and may wake up: nobody may serve in its place, and nobody kills it.
#[test]
fn one_that_is_stopped_before_it_seals_serves_on_when_it_is_continued() {
    let mut rig = Rig::start(&["at=stopped:stop"]);
    let mut driver = rig.swap(&["deadline=300", "margin=200"], &[]);
    process::await_stopped(rig.first.pid());
    assert_eq!(driver.outcome(), "undecided", "{:#?}", driver.lines());
    rig.first.resume();
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn one_that_is_stopped_while_the_successor_warms_up_serves_on_when_it_is_continued() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["deadline=300", "margin=200"], &["at=warm:wait"]);
    driver.at("warm");
    rig.first.stop();
    rig.go();
    assert_eq!(driver.outcome(), "undecided", "{:#?}", driver.lines());
    rig.first.resume();
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn one_that_is_stopped_in_the_seal_is_killed_and_succeeded() {
    let mut rig = Rig::start(&["at=seal:stop"]);
    let mut driver = rig.swap(&["deadline=400", "margin=200"], &["at=warm:mark"]);
    let successor = driver.at("warm");
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::from_millis(600)), successor);
    rig.expect_clean();
}

#[test]
fn one_that_is_stopped_after_the_seal_is_killed_and_succeeded() {
    for point in ["begun", "locked", "opened"] {
        let mut rig = Rig::start(&[]);
        let keys = ["deadline=700", "margin=200"];
        let mut driver = rig.swap(&keys, &[&format!("at={point}:wait")]);
        let successor = driver.at(point);
        rig.first.stop();
        rig.go();
        assert_eq!(driver.outcome(), "committed", "{point}: {:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::from_millis(900)), successor, "{point}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_stopped_when_it_has_granted_is_not_needed_and_ends_when_it_is_continued() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&[], &["at=granted:wait"]);
    let successor = driver.at("granted");
    rig.first.stop();
    rig.go();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_eq!(rig.settle(&[rig.first.pid()]), successor);
    rig.first.resume();
    assert_eq!(rig.settle(&[]), successor);
    rig.expect_clean();
}

/// It was stopped for longer than it would have waited: the successor's word is there when it wakes up.
#[test]
fn one_that_slept_through_its_own_wait_does_not_kill_the_successor_that_serves() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["stand-by=300", "margin=200"], &["at=granted:wait"]);
    let successor = driver.at("granted");
    rig.first.stop();
    rig.go();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    std::thread::sleep(Duration::from_millis(400));
    rig.first.resume();
    assert_eq!(rig.settle(&[]), successor);
    assert!(rig.first.wait().success());
    rig.expect_clean();
}

#[test]
fn one_that_is_stopped_in_a_trial_is_killed_and_succeeded() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["bake=400", "margin=200"], &["at=serving:mark"]);
    let successor = driver.at("serving");
    rig.await_status("on trial", "the successor", |status| status.phase == "on-trial");
    rig.first.stop();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::from_millis(600)), successor);
    rig.expect_clean();
}

/// Nobody else is left to serve: that it has not decided does not mean that it is hung.
#[test]
fn one_that_takes_long_to_resume_after_a_trial_is_not_killed_meanwhile() {
    let mut rig = Rig::start(&["at=resume:sleep-3000"]);
    let keys = ["bake=600", "stand-by=300", "margin=200"];
    let mut driver = rig.swap(&keys, &["at=serving:mark"]);
    driver.at("serving");
    rig.await_status("on trial", "the successor", |status| status.phase == "on-trial");
    rig.connect().unwrap().abort("the graphs look bad", Instant::now() + PATIENCE).unwrap();
    assert_eq!(driver.outcome(), "operator", "{:#?}", driver.lines());
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}
