//! From one wrapped daemon to the next, and back where that fails.

use handoff::DataDirLock;
use handoff::sys::process::Signal;

use crate::common::eventually;
use crate::rig::{Load, Rig, signal, spec};

#[test]
fn swaps_between_two_wraps_disturb_nobody_and_lose_nothing() {
    let rig = Rig::start(&[], &["v1"]);
    let load = Load::start(&rig.address);
    for label in ["v2", "v3", "v4"] {
        load.go_on();
        rig.expect_commit(&[], &spec(&[], &[label]));
        assert!(rig.ask().starts_with(label));
    }
    load.go_on();
    // What was asked here was written too.
    let asked = 3;
    let (errors, acknowledged) = load.end();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(rig.count(), acknowledged + asked);
}

#[test]
fn a_successor_whose_daemon_ends_at_once_is_undone_and_says_how_it_ended() {
    let rig = Rig::start(&[], &["v1"]);
    let load = Load::start(&rig.address);
    load.go_on();
    let (code, said) = rig.swap(&[], &spec(&[], &["v2", "exit-at-once"]));
    assert_eq!(code, 3, "{said}");
    rig.first.said.wait_for("the daemon ended before it was ready: exit status: 7");
    load.go_on();
    load.expect_undisturbed(&rig);
}

#[test]
fn a_successor_whose_daemon_does_not_get_ready_is_undone() {
    let rig = Rig::start(&[], &["v1"]);
    let load = Load::start(&rig.address);
    let (code, said) = rig.swap(&[], &spec(&["--ready-timeout", "300ms"], &["v2", "hang"]));
    assert_eq!(code, 3, "{said}");
    rig.first.said.wait_for("the daemon to be ready within 0.3 s (tcp: not yet)");
    load.go_on();
    load.expect_undisturbed(&rig);
}

#[test]
fn a_check_that_fails_is_quoted_and_the_incumbents_daemon_is_not_touched() {
    let rig = Rig::start(&[], &["v1"]);
    let before = rig.daemon();
    let (code, said) = rig.swap(&[], &spec(&["--check", "echo no such directive; exit 3"], &["v2"]));
    assert_eq!(code, 3, "{said}");
    rig.first.said.wait_for("the check failed: exit status: 3: no such directive");
    assert_eq!(rig.daemon(), before);
    rig.expect_commit(&[], &spec(&["--check", "test {web} = 3 && test \"$LISTEN_FDS\" = 1"], &["v2"]));
}

#[test]
fn a_successor_that_is_killed_takes_its_daemon_along() {
    let rig = Rig::start(&[], &["v1"]);
    let load = Load::start(&rig.address);
    load.go_on();
    let swap = rig.swap_command(&[], &spec(&[], &["v2", "hang"])).spawn().unwrap();
    let mut swap = crate::common::Serving(swap);
    let first = rig.first.child.id();
    // It is killed in the moment in which its daemon runs, and may have the data open.
    let successor = || {
        let holders = DataDirLock::who(rig.path().join("data")).unwrap_or_default();
        let took = holders.iter().find(|holder| holder.inherited_from.is_none() && holder.pid != first)?;
        holders.iter().any(|holder| holder.inherited_from == Some(took.pid)).then_some(took.pid)
    };
    eventually("the successor's daemon", || successor().is_some());
    signal(successor().unwrap(), Signal::SIGKILL);
    assert_eq!(crate::common::wait_for_exit(&mut swap.0).code(), Some(3));
    load.go_on();
    load.expect_undisturbed(&rig);
}

#[test]
fn a_trial_whose_daemon_is_sick_or_dies_is_undone_with_what_it_wrote() {
    let rig = Rig::start(&[], &["v1"]);
    let load = Load::start(&rig.address);
    load.go_on();
    let health = ["--health", "http:/", "--health-timeout", "60s", "--health-interval", "50ms"];
    let (code, said) = rig.swap(&["--bake", "10m"], &spec(&health, &["v2", "sick"]));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("it answers 503"), "{said}");
    load.go_on();
    let (code, said) = rig.swap(&["--bake", "10m"], &spec(&[], &["v3", "die-later"]));
    assert_eq!(code, 3, "{said}");
    load.go_on();
    // A daemon that dies cuts what it is answering, and may have written it.
    let (_, acknowledged) = load.end();
    assert!(rig.count() >= acknowledged, "{} of {acknowledged}", rig.count());
    assert!(rig.ask().starts_with("v1"));
}

#[test]
fn a_trial_that_goes_well_is_committed() {
    let rig = Rig::start(&[], &["v1"]);
    let health = ["--health", "http:/", "--health-timeout", "60s", "--health-interval", "20ms"];
    rig.expect_commit(&["--bake", "300ms"], &spec(&health, &["v2"]));
    assert!(rig.ask().starts_with("v2"));
}

#[test]
fn daemons_that_may_overlap_do() {
    let rig = Rig::start(&["--overlap"], &["v1"]);
    let load = Load::start(&rig.address);
    load.go_on();
    rig.expect_commit(&[], &spec(&["--overlap"], &["v2"]));
    load.go_on();
    let (code, said) = rig.swap(&[], &spec(&["--overlap", "--ready-timeout", "300ms"], &["v3", "hang"]));
    assert_eq!(code, 3, "{said}");
    load.go_on();
    // Two that count in one file at once may count differently; nobody was turned away.
    let (errors, _) = load.end();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(rig.ask().starts_with("v2"));
}
