//! What a driver's failure does: nothing. Closing the lease undoes what it began, and what it passed on it has no part in.

use std::time::Duration;

use crate::rig::{Rig, process};

#[test]
fn one_that_is_killed_before_it_passes_the_lease_is_undone_at_once() {
    for phase in ["preparing", "warming", "rearming", "draining", "sealing", "deciding"] {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&[&format!("at={phase}:kill")], &[]);
        driver.wait();
        assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid(), "{phase}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_killed_during_a_hook_is_undone_when_the_hook_returns() {
    for point in ["stopped", "seal"] {
        let mut rig = Rig::start(&[&format!("at={point}:wait")]);
        let mut driver = rig.swap(&[], &[]);
        rig.first.at(point);
        driver.kill();
        driver.wait();
        rig.await_status("undoing", point, |status| status.phase == "undoing");
        rig.go();
        assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid(), "{point}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_killed_after_it_passed_the_lease_is_not_missed() {
    for point in ["begun", "locked", "granted"] {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&[], &[&format!("at={point}:wait")]);
        let successor = driver.at(point);
        driver.kill();
        driver.wait();
        rig.go();
        assert_eq!(rig.settle_within(Duration::ZERO), successor, "{point}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_killed_during_a_trial_is_not_missed() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["bake=500", "at=baking:kill"], &["at=serving:mark"]);
    let successor = driver.at("serving");
    driver.wait();
    assert_eq!(rig.settle_within(Duration::from_millis(500)), successor);
    rig.expect_clean();
}

/// The driver stops itself, the incumbent goes back to serving by itself and on time, and the driver finds that out.
#[test]
fn one_that_is_frozen_for_longer_than_the_deadline_is_undone_on_time_and_finds_out() {
    for phase in ["rearming", "draining", "sealing", "deciding"] {
        let mut rig = Rig::start(&[]);
        let keys = ["deadline=400", "warm-up=400", "margin=200", &format!("at={phase}:stop")];
        let mut driver = rig.swap(&keys, &["at=warm:mark"]);
        let successor = driver.at("warm");
        process::await_stopped(driver.pid());
        rig.await_status("serving again", phase, |status| status.phase == "serving");
        // It has waited for longer than any driver could take.
        process::await_end(successor);
        assert_eq!(rig.settle(&[driver.pid()]), rig.first.pid(), "{phase}");
        driver.resume();
        let outcome = driver.outcome();
        assert!(
            ["deadline", "lease-lost"].contains(&outcome.as_str()),
            "{phase}: {outcome} {:#?}",
            driver.lines()
        );
        assert_eq!(rig.settle(&[]), rig.first.pid(), "{phase}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_frozen_before_it_spawns_is_undone_when_the_warm_up_should_be_over() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["warm-up=300", "margin=200", "at=warming:stop"], &[]);
    process::await_stopped(driver.pid());
    assert_eq!(rig.settle(&[driver.pid()]), rig.first.pid());
    driver.resume();
    assert_ne!(driver.outcome(), "committed");
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn one_that_is_frozen_in_the_middle_of_a_slow_seal_is_undone_on_time() {
    let mut rig = Rig::start(&["at=seal:wait"]);
    let mut driver = rig.swap(&["deadline=400", "margin=200"], &[]);
    rig.first.at("seal");
    driver.stop();
    rig.await_status("undoing", "it", |status| status.phase == "undoing");
    rig.go();
    rig.await_status("serving", "it", |status| status.phase == "serving");
    driver.resume();
    assert_eq!(driver.outcome(), "deadline", "{:#?}", driver.lines());
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn one_that_is_frozen_after_it_passed_the_lease_is_not_missed() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&[], &["at=begun:wait"]);
    let successor = driver.at("begun");
    driver.stop();
    rig.go();
    assert_eq!(rig.settle(&[driver.pid()]), successor);
    driver.resume();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    rig.expect_clean();
}

#[test]
fn one_that_died_while_idle_or_busy_is_followed_by_another_that_can_swap() {
    for phase in ["preparing", "draining", "deciding"] {
        let mut rig = Rig::start(&[]);
        let journal = format!("journal={}", rig.journal().display());
        rig.swap(&[&journal, &format!("at={phase}:kill")], &[]).wait();
        rig.settle(&[]);
        let mut second = rig.swap(&[&journal], &[]);
        assert_eq!(second.outcome(), "committed", "{phase}: {:#?}", second.lines());
        assert_ne!(rig.settle(&[]), rig.first.pid(), "{phase}");
        rig.expect_clean();
    }
}

#[test]
fn a_second_one_is_told_busy_with_id_phase_and_age() {
    let mut rig = Rig::start(&["at=stopped:wait"]);
    let mut first = rig.swap(&[], &[]);
    rig.first.at("stopped");
    let handoff = rig.status().unwrap().handoff.unwrap().handoff;
    let mut second = rig.swap(&[], &[]);
    assert_eq!(second.outcome(), "refused");
    let said = second.line("outcome refused");
    assert!(said.contains(&handoff) && said.contains("phase draining") && said.contains(" ms "), "{said}");
    rig.go();
    assert_eq!(first.outcome(), "committed", "{:#?}", first.lines());
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn one_that_is_asked_to_stop_undoes_what_it_can() {
    for phase in ["warming", "draining", "sealing"] {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&[&format!("at={phase}:cancel")], &[]);
        assert_eq!(driver.outcome(), "operator", "{phase}: {:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid(), "{phase}");
        rig.expect_clean();
    }
}
