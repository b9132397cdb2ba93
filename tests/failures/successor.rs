//! What a successor's failure does: nothing, before it is granted.

use std::time::Duration;

use crate::rig::Rig;

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
