//! Swaps of `handoff kvd` by the library's supervisor, under a load that keeps a ledger.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::load::{Answer, Connection, Load, Plan};
use common::{HANDOFF, Kvd, PATIENCE, Serving, command, eventually, run_to_end, wait_for_exit};
use handoff::supervisor::{HandoffOutcome, SpawnSpec, Supervisor};

/// A data directory, the kvd that serves it, and what it takes to swap it.
struct Rig {
    dir: tempfile::TempDir,
    first: Kvd,
    supervisor: Supervisor,
}

impl Rig {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = Kvd::start(dir.path(), args);
        let supervisor = Supervisor::new(dir.path().join("control")).unwrap();
        Self { dir, first, supervisor }
    }

    fn swap(&self, label: &str, args: &[&str], change: impl FnOnce(&mut SpawnSpec)) -> HandoffOutcome {
        let mut spec = SpawnSpec {
            binary: PathBuf::from(HANDOFF),
            args: successor_args(self.dir.path(), label, args),
            drain_grace: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            ..SpawnSpec::default()
        };
        change(&mut spec);
        self.supervisor.perform_handoff(spec).unwrap()
    }

    fn serving(&self) -> String {
        let mut connection = Connection::open(self.first.addr, PATIENCE).unwrap();
        match connection.call(&["INFO", "handoff"]).unwrap() {
            Answer::Bulk(Some(info)) => field(&String::from_utf8(info).unwrap(), "build_id"),
            other => panic!("{other:?}"),
        }
    }
}

fn successor_args(dir: &Path, label: &str, args: &[&str]) -> Vec<String> {
    let own = ["kvd", "--data-dir", dir.to_str().unwrap(), "--version-label", label];
    own.iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

fn field(info: &str, name: &str) -> String {
    let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim_end().to_owned()
}

#[test]
fn clients_do_not_notice_swaps_and_lose_nothing() {
    let mut rig = Rig::start(&["--version-label", "v0", "--compact-from", "200000"]);
    let load = Load::start(&Plan::new(rig.first.addr, 8)).unwrap();
    let mut serving: Option<Serving> = None;
    for round in 1..=10u64 {
        eventually("writes", || load.counts().acknowledged > round * 50);
        let label = format!("v{round}");
        let outcome = rig.swap(&label, &["--compact-from", "200000"], |_| {});
        assert!(outcome.committed, "{outcome:#?}\n{:#?}", rig.first.stderr.so_far());
        let next = Serving(outcome.child.unwrap());
        match serving.replace(next) {
            Some(mut before) => assert_eq!(wait_for_exit(&mut before.0).code(), Some(0)),
            None => assert_eq!(rig.first.wait().code(), Some(0)),
        }
        assert_eq!(rig.serving(), label);
    }
    let ledger = load.stop();
    assert_eq!(ledger.counts.disturbances(), 0, "{:?}", ledger.counts);
    let found = ledger.read_back(rig.first.addr).unwrap();
    assert_eq!(found.lost, 0, "{found}");
}

#[test]
fn clients_that_keep_connections_lose_no_acknowledged_write_in_a_swap() {
    let rig = Rig::start(&[]);
    let load = Load::start(&Plan { keep_alive: true, ..Plan::new(rig.first.addr, 8) }).unwrap();
    eventually("writes", || load.counts().acknowledged > 500);
    let outcome = rig.swap("v2", &[], |_| {});
    assert!(outcome.committed, "{outcome:#?}\n{:#?}", rig.first.stderr.so_far());
    let _last = Serving(outcome.child.unwrap());
    eventually("writes to the successor", || load.counts().acknowledged > 1500);
    let ledger = load.stop();
    let counts = &ledger.counts;
    assert_eq!(
        (counts.reset, counts.refused, counts.errors, counts.contradictions),
        (0, 0, 0, 0),
        "{counts:?}"
    );
    assert_eq!(ledger.read_back(rig.first.addr).unwrap().lost, 0);
}

#[test]
fn a_bad_successor_is_rolled_back_and_its_incumbent_serves_on() {
    let rig = Rig::start(&["--version-label", "good"]);
    let load = Load::start(&Plan::new(rig.first.addr, 8)).unwrap();
    for fault in [
        "crash-at-start",
        "exit-while-warm",
        "crash-after-begin",
        "hang-after-begin",
        "stale",
        "unhealthy",
        "slow-open-ms=60000",
    ] {
        let before = load.counts().acknowledged;
        let outcome = rig.swap("bad", &["--fail", fault], |spec| spec.deadline = Duration::from_millis(700));
        assert!(!outcome.committed, "{fault}");
        assert!(outcome.abort_reason.is_some() && outcome.child.is_none(), "{fault}: {outcome:?}");
        assert_eq!(rig.serving(), "good", "{fault}");
        eventually("more writes", || load.counts().acknowledged > before + 50);
    }
    let ledger = load.stop();
    assert_eq!(ledger.counts.disturbances(), 0, "{:?}", ledger.counts);
    assert_eq!(ledger.read_back(rig.first.addr).unwrap().lost, 0);
}

#[test]
fn an_incumbent_whose_drain_or_seal_fails_serves_on() {
    for fault in ["fail-drain", "fail-seal"] {
        let rig = Rig::start(&["--version-label", "good", "--fail", fault]);
        let load = Load::start(&Plan::new(rig.first.addr, 8)).unwrap();
        eventually("writes", || load.counts().acknowledged > 100);
        let outcome = rig.swap("v2", &[], |_| {});
        assert!(!outcome.committed, "{fault}");
        assert_eq!(rig.serving(), "good", "{fault}");
        let ledger = load.stop();
        assert_eq!(ledger.counts.disturbances(), 0, "{fault}: {:?}", ledger.counts);
        assert_eq!(ledger.read_back(rig.first.addr).unwrap().lost, 0);
    }
}

#[test]
fn a_successor_that_dies_while_baking_is_undone_with_its_writes_kept() {
    let rig = Rig::start(&["--version-label", "good"]);
    let load = Load::start(&Plan::new(rig.first.addr, 8)).unwrap();
    eventually("writes", || load.counts().acknowledged > 100);
    let outcome = rig.swap("bad", &["--fail", "crash-after-serving-ms=300"], |spec| {
        spec.bake = Some(Duration::from_secs(20))
    });
    assert!(!outcome.committed, "{outcome:?}");
    assert_eq!(rig.serving(), "good");
    let ledger = load.stop();
    let counts = &ledger.counts;
    // The connections that it had died with it; nothing that it had acknowledged did.
    assert_eq!((counts.refused, counts.errors, counts.contradictions), (0, 0, 0), "{counts:?}");
    assert_eq!(ledger.read_back(rig.first.addr).unwrap().lost, 0);
}

#[test]
fn a_second_kvd_on_the_same_data_is_refused_and_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = Kvd::start(dir.path(), &[]);
    let (code, said) = run_to_end(command(dir.path(), &[]));
    assert_eq!(code, 1, "{said}");
    assert!(said.starts_with("handoff kvd: fatal: unable to lock the data directory: "), "{said}");
    assert!(said.contains(&format!("pid {}", first.child.id())), "{said}");
    assert_eq!(first.call(&["PING"]), Answer::Simple("PONG".into()));
}

#[test]
fn a_damaged_log_found_by_a_successor_is_rolled_back() {
    let rig = Rig::start(&["--version-label", "good"]);
    for i in 0..20 {
        rig.first.call(&["SET", &format!("k{i}"), "value"]);
    }
    let log = rig.dir.path().join("kv.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let outcome = rig.swap("v2", &[], |_| {});
    assert!(!outcome.committed, "{outcome:?}");
    assert_eq!(rig.serving(), "good");
}
