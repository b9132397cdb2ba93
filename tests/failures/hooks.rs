//! What a hook's failure does: the incumbent serves again before anybody is told.

use std::time::Duration;

use crate::rig::Rig;

#[test]
fn one_that_fails_is_undone_at_once() {
    for (point, reason) in [("drain", "drain-failed"), ("stopped", "drain-failed"), ("seal", "seal-failed")] {
        for what in ["error", "panic"] {
            let mut rig = Rig::start(&[&format!("at={point}:{what}")]);
            let mut driver = rig.swap(&[], &[]);
            assert_eq!(driver.outcome(), reason, "{point}:{what}: {:#?}", driver.lines());
            assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid(), "{point}:{what}");
            rig.expect_clean();
        }
    }
}

#[test]
fn a_drain_that_fails_after_it_stopped_accepting_is_undone_before_the_driver_is_told() {
    let mut rig = Rig::start(&["at=stopped:error", "at=resume:wait"]);
    let mut driver = rig.swap(&[], &[]);
    rig.first.at("resume");
    rig.await_status("resuming", "the incumbent", |status| status.phase == "resuming");
    assert!(!driver.lines().iter().any(|line| line.contains("outcome") || line.contains("dismissing")));
    rig.go();
    assert_eq!(driver.outcome(), "drain-failed", "{:#?}", driver.lines());
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn a_drain_past_its_grace_is_undone_when_it_returns() {
    let mut rig = Rig::start(&["at=stopped:sleep-900"]);
    let mut driver = rig.swap(&["grace=100", "deadline=300"], &[]);
    rig.await_status("undoing", "the incumbent", |status| status.phase == "undoing");
    assert_eq!(driver.outcome(), "deadline", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::from_millis(900)), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn an_incumbent_that_cannot_resume_is_succeeded_by_the_successor_that_waits() {
    for what in ["error", "panic"] {
        let mut rig = Rig::start(&["at=seal:error", &format!("at=resume:{what}")]);
        let mut driver = rig.swap(&[], &["at=warm:mark"]);
        let successor = driver.at("warm");
        assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::ZERO), successor);
        rig.expect_clean();
    }
}

#[test]
fn an_incumbent_that_cannot_resume_without_a_successor_says_that_nobody_serves() {
    let mut rig = Rig::start(&["at=resume:error"]);
    let mut driver = rig.swap(&[], &["say=unhealthy"]);
    assert_eq!(driver.outcome(), "nothing-serving", "{:#?}", driver.lines());
    assert!(!rig.first.wait().success());
    assert!(rig.settle_or_restart(Duration::ZERO), "nobody was left");
    rig.expect_clean();
}
