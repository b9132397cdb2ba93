//! What a successor's failure does: nothing, before it is granted.

use std::time::Duration;

use crate::rig::{Rig, process};

/// Before the grant the incumbent takes back what it gave, and its clients have noticed nothing.
fn rolled_back(point: &str, what: &str, keys: &[&str], limit_ms: u64, reasons: &[&str]) {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(keys, &[&format!("at={point}:{what}")]);
    let outcome = driver.outcome();
    assert!(reasons.contains(&outcome.as_str()), "{point}:{what}: {outcome} {:#?}", driver.lines());
    let serving = rig.settle_within(Duration::from_millis(limit_ms));
    assert_eq!(serving, rig.first.pid(), "{point}:{what}");
    rig.expect_clean();
}

/// What a dead successor leaves behind is seen as the end of its connections or of its process.
const DEATH: [&str; 3] = ["successor-lost", "lease-lost", "failed"];

#[test]
fn one_that_ends_before_it_is_warm_changes_nothing() {
    for point in ["start", "warm"] {
        for what in ["kill", "exit", "panic", "error"] {
            rolled_back(point, what, &[], 0, &DEATH);
        }
    }
}

#[test]
fn one_that_never_gets_warm_is_ended_in_time() {
    for point in ["start", "warm"] {
        for what in ["hang", "stop"] {
            rolled_back(point, what, &["warm-up=300"], 300 + 1000, &["driver", "deadline"]);
        }
    }
}

#[test]
fn one_that_ends_with_the_data_sealed_is_undone_at_once() {
    for point in ["begun", "locked", "opened"] {
        for what in ["kill", "exit", "panic", "error"] {
            rolled_back(point, what, &[], 0, &DEATH);
        }
    }
}

#[test]
fn one_that_hangs_with_the_data_sealed_is_killed_at_the_deadline() {
    for point in ["begun", "locked", "opened"] {
        for what in ["hang", "stop"] {
            rolled_back(point, what, &["deadline=400"], 400, &["deadline"]);
        }
    }
}

/// After the grant without a trial the data is the successor's: its program starts again, in the incumbent's process.
fn succeeded_by_its_program(what: &str, keys: &[&str], limit_ms: u64) {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(keys, &[&format!("at=granted:{what}"), "say=new"]);
    assert_eq!(driver.outcome(), "committed", "{what}: {:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::from_millis(limit_ms)), rig.first.pid(), "{what}");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", rig.first.pid())).unwrap();
    assert!(String::from_utf8_lossy(&arguments).contains("say=new"), "{what}: its own program serves");
    rig.expect_clean();
}

#[test]
fn one_that_dies_when_it_was_granted_is_succeeded_by_its_own_program() {
    for what in ["kill", "exit", "panic"] {
        succeeded_by_its_program(what, &[], 0);
    }
}

#[test]
fn one_that_hangs_when_it_was_granted_is_killed_and_succeeded_by_its_own_program() {
    for what in ["hang", "stop"] {
        succeeded_by_its_program(what, &["stand-by=300"], 300);
    }
}

#[test]
fn one_that_fails_on_trial_is_undone_with_its_writes_kept() {
    for (point, what) in [("granted", "kill"), ("granted", "exit"), ("serving", "kill"), ("serving", "exit")]
    {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&["bake=20000"], &[&format!("at={point}:{what}")]);
        let outcome = driver.outcome();
        assert!(DEATH.contains(&outcome.as_str()), "{point}:{what}: {outcome} {:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid(), "{point}:{what}");
        rig.expect_no_loss();
    }
}

#[test]
fn one_that_hangs_on_trial_is_killed_when_the_trial_ends() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["bake=300", "stand-by=300"], &["at=serving:stop"]);
    assert_eq!(driver.outcome(), "successor-hung", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::from_millis(600)), rig.first.pid());
    rig.expect_no_loss();
}

#[test]
fn one_that_is_not_fit_is_refused() {
    for (say, reason) in
        [("unhealthy", "unhealthy"), ("stale", "stale-revision"), ("fingerprint", "fingerprint")]
    {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&[], &[&format!("say={say}")]);
        assert_eq!(driver.outcome(), reason, "{:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid());
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_killed_or_stopped_while_it_waits_is_undone() {
    for what in ["KILL", "STOP"] {
        let mut rig = Rig::start(&["at=stopped:wait"]);
        let mut driver = rig.swap(&["deadline=2000"], &["at=warm:mark"]);
        let successor = driver.at("warm");
        rig.first.at("stopped");
        process::signal(successor, what);
        if what == "STOP" {
            process::await_stopped(successor);
        }
        rig.go();
        let outcome = driver.outcome();
        assert!(
            ["successor-lost", "deadline", "lease-lost"].contains(&outcome.as_str()),
            "{what}: {outcome}"
        );
        assert_eq!(rig.settle_within(Duration::from_millis(2000)), rig.first.pid(), "{what}");
        rig.expect_clean();
    }
}

#[test]
fn one_that_gets_ready_just_after_the_deadline_is_killed_before_it_can_write() {
    for late_ms in [0, 2, 10] {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&["deadline=300"], &[&format!("at=opened:sleep-{}", 300 + late_ms)]);
        assert_eq!(driver.outcome(), "deadline", "{:#?}", driver.lines());
        assert_eq!(rig.settle_within(Duration::from_millis(300)), rig.first.pid());
        rig.expect_clean();
    }
}

#[test]
fn one_that_is_slow_within_its_deadline_commits_without_a_sign_of_life_meanwhile() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["margin=100"], &["at=locked:sleep-3000"]);
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
#[ignore = "takes twelve seconds; the check script runs it"]
fn one_that_opens_for_twelve_seconds_commits() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["deadline=60000"], &["at=locked:sleep-12000"]);
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn a_warm_up_longer_than_the_deadline_commits() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&["deadline=1000", "margin=100"], &["at=warm:sleep-2000"]);
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}
