//! A client that is not ours, and does not know of swaps: redis-benchmark.
//!
//! Without keep-alive it sees nothing of them. With it, a drain closes each connection after its last answer, between two
//! requests, as any server may; redis-benchmark never reconnects, and gives up with `Server closed the connection`. A client that
//! reconnects, as client libraries do, loses nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::load::{Load, Plan};
use common::{HANDOFF, Kvd, Serving, eventually, has_redis_tools, wait_for_exit};
use handoff::supervisor::{Measured, SpawnSpec, Supervisor};

const SWAPS: usize = 50;
/// A client whose SYN found the accept queue full sends it again after a second.
const SYN_RETRANSMISSION: Duration = Duration::from_secs(1);

struct Rig {
    dir: tempfile::TempDir,
    supervisor: Supervisor,
    first: Kvd,
    serving: Option<Serving>,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = Kvd::start(dir.path(), &[]);
        let supervisor =
            Supervisor::new(dir.path().join("control")).unwrap().with_journal(dir.path().join("journal"));
        Self { dir, supervisor, first, serving: None }
    }

    fn swap(&mut self) -> Measured {
        let args = ["kvd", "--data-dir", self.dir.path().to_str().unwrap()].map(str::to_owned).to_vec();
        let spec = SpawnSpec { binary: PathBuf::from(HANDOFF), args, ..SpawnSpec::default() };
        let outcome = self.supervisor.perform_handoff(spec).unwrap();
        assert!(outcome.committed, "{outcome:?}");
        let code = match self.serving.replace(Serving(outcome.child.unwrap())) {
            Some(mut before) => wait_for_exit(&mut before.0).code(),
            None => self.first.wait().code(),
        };
        assert_eq!(code, Some(0));
        outcome.measured
    }

    fn benchmark(&self, args: &[&str]) -> Child {
        Command::new("redis-benchmark")
            .args(["-q", "-t", "set", "-c", "20", "-r", "100000", "-p", &self.first.port()])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Waits for a benchmark; returns its exit code and what it said.
fn result_of(benchmark: Child) -> (Option<i32>, String) {
    let output = benchmark.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn redis_benchmark_without_keep_alive_runs_through_fifty_swaps_without_an_error() {
    if !has_redis_tools() {
        return;
    }
    let mut rig = Rig::start();
    let ledger = Load::start(&Plan::new(rig.first.addr, 4)).unwrap();
    let mut swaps = 0;
    while swaps < SWAPS {
        let mut benchmark = rig.benchmark(&["-k", "0", "-n", "20000"]);
        let before = swaps;
        while benchmark.try_wait().unwrap().is_none() {
            rig.swap();
            swaps += 1;
        }
        let (code, said) = result_of(benchmark);
        assert!(code == Some(0) && !said.to_lowercase().contains("error"), "{code:?}: {said}");
        assert!(swaps > before, "no swap fitted into the benchmark");
    }
    let ledger = ledger.stop();
    assert_eq!(ledger.counts.disturbances(), 0, "{:?}", ledger.counts);
    let found = ledger.read_back(rig.first.addr).unwrap();
    assert!(found.checked > 0 && found.lost == 0, "{found}");
}

#[test]
fn redis_benchmark_with_keep_alive_sees_an_orderly_close_and_no_reset() {
    if !has_redis_tools() {
        return;
    }
    let mut rig = Rig::start();
    let ledger = Load::start(&Plan { keep_alive: true, ..Plan::new(rig.first.addr, 4) }).unwrap();
    // More than it can do before the swap.
    let benchmark = rig.benchmark(&["-k", "1", "-n", "100000000"]);
    eventually("writes", || ledger.counts().acknowledged > 500);
    rig.swap();
    let (code, said) = result_of(benchmark);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Server closed the connection") && !said.contains("reset"), "{said}");

    let before = ledger.counts().acknowledged;
    eventually("writes after the swap", || ledger.counts().acknowledged > before + 500);
    let ledger = ledger.stop();
    let counts = &ledger.counts;
    assert_eq!(
        (counts.refused, counts.reset, counts.errors, counts.contradictions),
        (0, 0, 0, 0),
        "{counts:?}"
    );
    assert_eq!(ledger.read_back(rig.first.addr).unwrap().lost, 0);
}

#[test]
fn no_client_waits_for_a_retransmission_while_the_accept_queue_has_room() {
    let mut rig = Rig::start();
    let load = Load::start(&Plan::new(rig.first.addr, 32)).unwrap();
    let mut measured = vec![];
    for _ in 0..10 {
        let before = load.counts().acknowledged;
        eventually("writes", || load.counts().acknowledged > before + 200);
        measured.push(rig.swap());
    }
    let ledger = load.stop();
    let counts = &ledger.counts;
    let gap_us_max = measured.iter().filter_map(|measured| measured.gap_us).max().unwrap();
    let peak = measured.iter().filter_map(|measured| measured.queue_peak).max();
    println!(
        "longest connect {} us, longest answer {} us, longest gap {gap_us_max} us, queue peak {peak:?}",
        counts.connect_us_max, counts.answer_us_max
    );
    for measured in &measured {
        assert_eq!(measured.overflows, Some(0), "{measured:?}");
        assert!(measured.queue_peak < measured.queue_limit, "{measured:?}");
    }
    assert!(Duration::from_micros(counts.connect_us_max) < SYN_RETRANSMISSION, "{counts:?}");
    assert!(Duration::from_micros(counts.answer_us_max) < SYN_RETRANSMISSION, "{counts:?}");
    assert_eq!(counts.disturbances(), 0, "{counts:?}");
    assert_eq!(ledger.read_back(rig.first.addr).unwrap().lost, 0);
}
