//! What the kernel is asked to do inside the gap, in all three processes, as strace sees it.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::load::{Load, Plan};
use common::{HANDOFF, Kvd, PATIENCE, eventually, example, has_strace, wait_for_exit};
use handoff::DataDirLock;

/// What makes something durable, or changes a name, besides what marks the ends of the gap.
const WATCHED: &str =
    "trace=sendmsg,accept4,fdatasync,fsync,sync,syncfs,sync_file_range,msync,rename,renameat,renameat2";
const DELAY: Duration = Duration::from_millis(20);
/// The record of who owns the data, and the only file that may be synced in the gap.
const RECORD: &str = "/.handoff.lock>";

/// What a swap under load did between `drained` and the successor's first `accept4`.
struct Gap {
    length: Duration,
    /// The calls, without those that mark its ends.
    calls: Vec<String>,
}

impl Gap {
    fn syncs_of_the_record(&self) -> usize {
        self.calls.iter().filter(|call| call.starts_with("fdatasync(") && call.contains(RECORD)).count()
    }
}

/// Swaps a kvd under load with the journal on. Everybody is traced.
fn swap(bake: Duration, inject: &[&str]) -> Gap {
    let dir = tempfile::tempdir().unwrap();
    let (data, journal) = (dir.path().join("data"), dir.path().join("journal"));
    let (incumbent_log, driver_log) = (dir.path().join("incumbent.trace"), dir.path().join("driver.trace"));
    let _end = EndOf(data.clone());
    let data_arg = data.to_str().unwrap();
    let kvd = [HANDOFF, "kvd", "--data-dir", data_arg];
    let mut incumbent = strace(&incumbent_log, inject);
    let mut incumbent = Kvd::spawn({
        incumbent.args(kvd).args(["--listen", "127.0.0.1:0"]);
        incumbent
    });
    let load = Load::start(&Plan::new(incumbent.addr, 4)).unwrap();
    eventually("writes", || load.counts().acknowledged > 50);

    let mut driver = strace(&driver_log, inject);
    driver.arg(example("driver")).arg(data.join("control")).arg(&journal);
    driver.arg(bake.as_millis().to_string()).args(kvd).stdout(Stdio::null());
    let mut driver = driver.spawn().unwrap();
    assert_eq!(incumbent.wait().code(), Some(0), "{:#?}", incumbent.stderr.so_far());
    let before = load.counts().acknowledged;
    eventually("writes after the swap", || load.counts().acknowledged > before + 50);

    let ledger = load.stop();
    assert_eq!(ledger.counts.disturbances(), 0, "{:?}", ledger.counts);
    assert_eq!(ledger.read_back(incumbent.addr).unwrap().lost, 0);
    // The driver ends by itself; its strace goes on as long as the successor.
    let journal_says = || std::fs::read_to_string(&journal).unwrap().contains("\"committed\"");
    eventually("the driver's last word", journal_says);
    drop(_end);
    wait_for_exit(&mut driver);
    read_gap(&incumbent_log, &driver_log)
}

fn strace(log: &Path, inject: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "--seccomp-bpf", "-yy", "-ttt", "-s", "80", "-e", WATCHED]).args(inject);
    strace.arg("-o").arg(log).arg("--");
    strace
}

/// Ends who holds the lock of a data directory, and with it its strace.
struct EndOf(PathBuf);

impl Drop for EndOf {
    fn drop(&mut self) {
        for holder in DataDirLock::who(&self.0).unwrap_or_default() {
            let _ = Command::new("kill").args(["-9", &holder.pid.to_string()]).status();
        }
    }
}

/// A call as it was made: when, in microseconds, and which.
type Call = (u64, String);

fn read_gap(incumbent: &Path, driver: &Path) -> Gap {
    let (incumbent, driver) = (calls(incumbent), calls(driver));
    let drained = incumbent
        .iter()
        .find(|(_, call)| call.starts_with("sendmsg(") && call.contains(r#"\"type\":\"drained\""#))
        .expect("the incumbent says drained");
    let accepted = driver
        .iter()
        .find(|(at, call)| *at > drained.0 && call.starts_with("accept4(") && call.contains("<TCP"))
        .expect("the successor accepts");
    let mut inside: Vec<Call> = incumbent
        .iter()
        .chain(&driver)
        .filter(|(at, call)| (drained.0..accepted.0).contains(at) && !is_ordinary(call))
        .cloned()
        .collect();
    inside.sort();
    let length = Duration::from_micros(accepted.0 - drained.0);
    Gap { length, calls: inside.into_iter().map(|(_, call)| call).collect() }
}

fn is_ordinary(call: &str) -> bool {
    call.starts_with("sendmsg(") || call.starts_with("accept4(")
}

fn calls(log: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(log).unwrap();
    let call = |line: &str| {
        let mut words = line.split_once(' ')?.1.trim_start().splitn(2, ' ');
        let at = (words.next()?.parse::<f64>().ok()? * 1e6) as u64;
        // What is finished later counts from where it began; signals and exits are no calls.
        let call = words.next()?;
        call.starts_with(|first: char| first.is_ascii_lowercase()).then(|| (at, call.to_owned()))
    };
    text.lines().filter_map(call).collect()
}

#[test]
fn in_the_gap_one_thing_is_synced_and_nothing_is_renamed() {
    if !has_strace() {
        return;
    }
    let gap = swap(Duration::ZERO, &[]);
    assert_eq!((gap.syncs_of_the_record(), gap.calls.len()), (1, 1), "{:#?}", gap.calls);
}

#[test]
fn in_the_gap_of_a_trial_nothing_is_synced() {
    if !has_strace() {
        return;
    }
    let gap = swap(Duration::from_millis(300), &[]);
    assert!(gap.calls.is_empty(), "{:#?}", gap.calls);
}

#[test]
fn slow_syncs_make_the_gap_longer_by_one_of_them_at_most() {
    if !has_strace() {
        return;
    }
    // The shortest of some: a neighbour on the machine makes any of them longer.
    let shortest = |inject: &[&str]| {
        let gaps: Vec<Gap> = (0..3).map(|_| swap(Duration::ZERO, inject)).collect();
        for gap in &gaps {
            assert_eq!((gap.syncs_of_the_record(), gap.calls.len()), (1, 1), "{:#?}", gap.calls);
        }
        gaps.iter().map(|gap| gap.length).min().unwrap()
    };
    let undelayed = shortest(&[]);
    let delay = format!("inject=fdatasync:delay_enter={}", DELAY.as_micros());
    let delayed = shortest(&["-e", &delay]);
    println!("the gap, traced: {undelayed:?}, and with slow syncs {delayed:?}");
    assert!(delayed >= DELAY, "strace did not delay anything: {delayed:?}");
    assert!(delayed < undelayed + DELAY * 2, "{undelayed:?} became {delayed:?}");
    assert!(delayed < PATIENCE);
}
