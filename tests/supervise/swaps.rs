//! Swaps by the trigger socket and by signals.

use std::time::{Duration, Instant};

use handoff::supervise::wire::Swap;
use handoff::supervisor::{Outcome, SpawnSpec, Supervisor};

use crate::common::load::Load;
use crate::common::{HANDOFF, Serving, eventually};
use crate::process::example;
use crate::{Rig, process};

fn more(load: &Load) {
    let before = load.counts().acknowledged;
    eventually("more writes", || load.counts().acknowledged > before + 30);
}

#[test]
fn clients_do_not_notice_swaps_that_are_committed_or_rolled_back() {
    let rig = Rig::start(&["deadline=2000"], &["--version-label", "v0"]);
    let load = rig.load();
    let supervisor = rig.state().unwrap().pid;
    for round in 1..=4 {
        more(&load);
        let outcome = rig.swap(rig.to(&format!("v{round}"), &[])).unwrap();
        assert!(outcome.committed, "{outcome:?}");
        assert_eq!(rig.serving(), format!("v{round}"));
    }
    for fault in ["crash-at-start", "crash-after-begin", "hang-after-begin", "stale", "unhealthy"] {
        let outcome = rig.swap(rig.to("bad", &["--fail", fault])).unwrap();
        assert!(matches!(outcome.outcome, Outcome::RolledBack(_)), "{fault}: {outcome:?}");
        assert_eq!(rig.serving(), "v4", "{fault}");
        more(&load);
    }
    rig.settle();
    let state = rig.state().unwrap();
    assert_eq!((state.pid, state.is_child), (supervisor, true));
    assert_eq!(state.swaps, [("committed".to_owned(), 4), ("rolled-back".to_owned(), 5)]);
    rig.expect_clean(load);
    assert_eq!(zombies_are_reaped(supervisor), 0);
    rig.stop();
}

fn zombies_are_reaped(supervisor: u32) -> usize {
    eventually("all zombies to be reaped", || crate::zombies_of(supervisor) == 0);
    crate::zombies_of(supervisor)
}

#[test]
fn a_trial_is_undone_when_its_health_check_fails_and_kept_when_it_passes() {
    let rig =
        Rig::start(&["health=test ! -e \"$(dirname $HANDOFF_CONTROL)/sick\""], &["--version-label", "v0"]);
    let load = rig.load();
    std::fs::write(rig.dir().join("sick"), "").unwrap();
    let bake = |ms| Swap { bake_ms: Some(ms), ..rig.to("v1", &[]) };
    let outcome = rig.swap(bake(600_000)).unwrap();
    assert!(outcome.abort_reason.unwrap().to_string().contains("health check"));
    assert_eq!(rig.serving(), "v0");
    std::fs::remove_file(rig.dir().join("sick")).unwrap();
    assert!(rig.swap(bake(300)).unwrap().committed);
    assert_eq!(rig.serving(), "v1");
    rig.settle();
    rig.expect_clean(load);
    rig.stop();
}

#[test]
fn a_request_waits_for_its_turn_or_is_told_that_the_supervisor_is_busy() {
    let rig = Rig::start(&[], &["--fail", "slow-drain-ms=700"]);
    let first = rig.swap_meanwhile(rig.to("v1", &[]));
    let second = rig.swap_meanwhile(Swap { queue: true, ..rig.to("v2", &[]) });
    let busy = rig.swap(rig.to("v3", &[])).unwrap_err();
    assert!(matches!(busy, handoff::Error::Busy { .. }), "{busy}");
    assert!(first.join().unwrap().unwrap().committed);
    assert!(second.join().unwrap().unwrap().committed);
    assert_eq!(rig.serving(), "v2");
    rig.stop();
}

#[test]
fn a_client_that_goes_away_does_not_end_its_swap() {
    let rig = Rig::start(&[], &["--fail", "slow-drain-ms=300", "--version-label", "v0"]);
    let mut client = rig.client();
    let told = client.swap(rig.to("v1", &[]), Some(Instant::now() + Duration::from_millis(50)), &mut |_| {});
    assert!(told.is_err());
    drop(client);
    eventually("the swap to be committed", || rig.state().unwrap().swaps == [("committed".to_owned(), 1)]);
    rig.settle();
    assert_eq!(rig.serving(), "v1");
    rig.stop();
}

#[test]
fn a_swap_by_somebody_else_is_adopted() {
    let rig = Rig::start(&[], &["--version-label", "v0"]);
    let load = rig.load();
    let args = rig.to("v1", &[]).args.unwrap();
    let spec = SpawnSpec { binary: HANDOFF.into(), args, ..SpawnSpec::default() };
    let outcome = Supervisor::new(rig.control()).unwrap().perform_handoff(spec).unwrap();
    assert!(outcome.committed, "{outcome:?}");
    let next = Serving(outcome.child.unwrap());
    assert_eq!(rig.settle(), next.0.id());
    assert!(!rig.state().unwrap().is_child);
    assert!(rig.swap(rig.to("v2", &[])).unwrap().committed);
    drop(next);
    assert!(rig.state().unwrap().is_child);
    assert_eq!(rig.serving(), "v2");
    rig.expect_clean(load);
    rig.stop();
}

#[test]
fn a_hangup_swaps_to_what_is_configured_by_then() {
    let rig = Rig::start(&[], &["--version-label", "v0"]);
    let args = rig.to("v1", &[]).args.unwrap();
    std::fs::write(rig.dir().join("reload"), "").unwrap();
    rig.signal("HUP");
    rig.supervisor.line("the configuration cannot be used");
    std::fs::write(rig.dir().join("reload"), format!("{HANDOFF}\n{}", args.join("\n"))).unwrap();
    rig.signal("HUP");
    rig.supervisor.line("swap ");
    rig.settle();
    assert_eq!(rig.serving(), "v1");
    rig.stop();
}

#[test]
fn a_stop_during_a_swap_undoes_the_swap_first() {
    for phase in ["slow-drain-ms=60000", "slow-seal-ms=500"] {
        let mut rig = Rig::start(&["stop=5000", "grace=3000"], &["--fail", phase]);
        let swap = rig.swap_meanwhile(rig.to("v1", &[]));
        eventually("the swap to drain", || rig.daemon().is_some_and(|status| status.phase != "serving"));
        rig.signal("TERM");
        assert_eq!(rig.supervisor.wait().code(), Some(0), "{:#?}", rig.supervisor.lines());
        assert_eq!(rig.daemons(), [0; 0], "{:#?}", rig.supervisor.lines());
        // It was told how it ended, if there was time for that.
        drop(swap.join());
    }
}

#[test]
fn one_that_lingers_after_its_handoff_is_ended_before_the_next_swap() {
    let probe = example("probe");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let (control, data) = (dir.path().join("control"), data.display().to_string());
    let words =
        [probe.to_str().unwrap(), control.to_str().unwrap(), &data, "at=ended:hang"].map(str::to_owned);
    let keys = ["data=data", "listen=http=127.0.0.1:0", "linger=300", "--"];
    let rig = Rig::begin_exactly(dir, &keys, &words);
    let first = rig.await_serving();
    let to = Swap { args: Some(words[1..3].to_vec()), ..Swap::default() };
    assert!(rig.swap(to.clone()).unwrap().committed);
    // It waits for the first to go, though nothing is said of a queue.
    assert!(rig.swap(to).unwrap().committed);
    assert!(!rig.daemons().contains(&first), "{:#?}", rig.supervisor.lines());
    rig.supervisor.line("lingers after a handoff");
    process::await_end(first);
}
