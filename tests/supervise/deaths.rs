//! The supervisor's own death, the daemon's, and everybody's.

use handoff::supervise::wire::Swap;

use crate::common::eventually;
use crate::{Rig, process};

#[test]
fn a_supervisor_that_was_killed_is_followed_by_one_that_adopts_the_daemon() {
    let mut rig = Rig::start(&[], &["--version-label", "v0"]);
    let load = rig.load();
    for round in 1..=3 {
        let pid = rig.settle();
        rig.kill_supervisor();
        rig.start_again();
        assert_eq!(rig.settle(), pid);
        let state = rig.state().unwrap();
        assert_eq!((state.is_child, state.listeners), (false, vec!["resp".to_owned()]));
        assert!(rig.swap(rig.to(&format!("v{round}"), &[])).unwrap().committed);
    }
    assert_eq!(rig.serving(), "v3");
    rig.expect_clean(load);
    rig.stop();
}

#[test]
fn a_supervisor_that_was_killed_in_a_swap_leaves_one_daemon_that_serves() {
    for (incumbent, successor, phase) in [
        ("slow-drain-ms=300", "", "draining"),
        ("slow-seal-ms=300", "", "sealing"),
        ("slow-drain-ms=0", "slow-open-ms=300", "attached"),
        ("slow-drain-ms=0", "slow-open-ms=300", "sealed"),
    ] {
        let mut rig = Rig::start(&[], &["--version-label", "v0", "--fail", incumbent]);
        let load = rig.load();
        let args: &[&str] = if successor.is_empty() { &[] } else { &["--fail", successor] };
        let swap = rig.swap_meanwhile(rig.to("v1", args));
        eventually("the phase", || {
            rig.daemon().is_some_and(|status| {
                status.phase == phase || (phase == "sealed" && status.handoff.is_some())
            })
        });
        rig.kill_supervisor();
        assert!(swap.join().unwrap().is_err());
        rig.start_again();
        rig.settle();
        assert!(rig.swap(rig.to("v2", &[])).unwrap().committed, "{phase}");
        rig.expect_clean(load);
        rig.stop();
    }
}

#[test]
fn a_trial_outlives_the_supervisor_that_began_it() {
    let mut rig = Rig::start(&[], &["--version-label", "v0"]);
    let load = rig.load();
    let swap = rig.swap_meanwhile(Swap { bake_ms: Some(1500), ..rig.to("v1", &[]) });
    eventually("the trial", || rig.daemon().is_some_and(|status| status.role == "successor"));
    rig.kill_supervisor();
    assert!(swap.join().unwrap().is_err());
    rig.start_again();
    rig.settle();
    assert_eq!(rig.serving(), "v1");
    rig.expect_clean(load);
    rig.stop();
}

#[test]
fn the_right_program_is_started_when_everybody_was_killed() {
    for (bake_ms, expected) in [(None, "v1"), (Some(600_000), "v0")] {
        let mut rig = Rig::start(&[], &["--version-label", "v0"]);
        let load = rig.load();
        let swap = rig.swap_meanwhile(Swap { bake_ms, ..rig.to("v1", &[]) });
        match bake_ms {
            Some(_) => eventually("the trial", || {
                rig.daemon().is_some_and(|status| status.role == "successor" && status.phase == "baking")
                    || rig.daemon().is_some_and(|status| status.role == "successor")
            }),
            None => {
                rig.settle();
                eventually("the swap", || rig.state().unwrap().swaps == [("committed".to_owned(), 1)]);
            }
        }
        let before = load.counts().acknowledged;
        eventually("writes", || load.counts().acknowledged > before + 30);
        // At once, as when the machine fails: nobody finds out that another one has died.
        let all = [vec![rig.supervisor.pid()], rig.daemons()].concat();
        all.iter().for_each(|pid| process::stop(*pid));
        all.iter().for_each(|pid| process::signal(*pid, "KILL"));
        drop(swap.join());
        rig.kill_supervisor();
        let ledger = load.stop();
        rig.start_again();
        rig.settle();
        assert_eq!(rig.serving(), expected);
        let found = ledger.read_back(rig.addr()).unwrap();
        assert_eq!(found.lost, 0, "{found}");
        rig.stop();
    }
}

#[test]
fn a_second_supervisor_is_refused_while_the_first_one_lives() {
    let mut rig = Rig::start(&[], &[]);
    let pid = rig.settle();
    rig.start_again();
    assert_eq!(rig.supervisor.wait().code(), Some(111));
    rig.supervisor.line("listens at");
    std::mem::swap(&mut rig.supervisor, rig.before.last_mut().unwrap());
    assert_eq!(rig.await_serving(), pid);
}

#[test]
fn a_daemon_that_hangs_is_ended_by_signals_when_the_supervisor_stops() {
    let rig = Rig::start(&["stop=500"], &[]);
    process::stop(rig.settle());
    rig.stop();
}
