//! The demonstration: that it finds nothing wrong with what is right, and something wrong with what is not.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const HANDOFF: &str = env!("CARGO_BIN_EXE_handoff");
/// The exit code for a promise that was not kept.
const CHECK_FAILED: i32 = 2;

fn demo(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(HANDOFF);
    command.args(["demo", "--json", "--data-dir"]).arg(dir).args(args).stdin(Stdio::null());
    command.output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Returns the processes that were told of this directory.
fn processes_of(dir: &Path) -> Vec<String> {
    let command_lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    command_lines.filter(|line| line.contains(dir.to_str().unwrap())).collect()
}

#[test]
fn every_scenario_ends_as_it_should_and_nothing_is_lost_refused_reset_or_left_behind() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    let output = demo(&dir, &["--seconds", "5"]);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["ok"], true);
    let totals = &report["totals"];
    for none in [
        "lost_writes",
        "refused",
        "reset",
        "eof_before_answer",
        "timed_out",
        "errors",
        "contradictions",
        "processes_left",
    ] {
        assert_eq!(totals[none], 0, "{none}: {report:#}");
    }
    let scenarios = report["scenarios"].as_array().unwrap();
    for what in
        ["hangs", "stale", "baking", "driver is killed", "incumbent is killed", "aborted by the operator"]
    {
        let named = |row: &&Value| row["scenario"].as_str().unwrap().contains(what);
        assert!(scenarios.iter().filter(named).count() > 0, "{what}: {report:#}");
    }
    assert!(scenarios.iter().all(|row| row["acknowledged_writes"].as_u64() > Some(0)), "{report:#}");
    assert!(totals["swaps"].as_u64() >= Some(10) && totals["rollbacks"].as_u64() >= Some(10), "{report:#}");
    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), Vec::<String>::new());
}

#[test]
fn a_release_that_loses_one_acknowledged_write_is_found_out() {
    let temp = tempfile::tempdir().unwrap();
    let output = demo(&temp.path().join("data"), &["--seconds", "1", "--sabotage", "lose-a-write"]);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(CHECK_FAILED), "{report:#}");
    assert_eq!((&report["ok"], &report["totals"]["lost_writes"]), (&false.into(), &1.into()), "{report:#}");
    assert_eq!(report["scenarios"][0]["lost_writes"], 1, "{report:#}");
}

#[test]
fn an_unexpected_outcome_fails_the_demonstration_though_no_client_noticed() {
    let temp = tempfile::tempdir().unwrap();
    let output = demo(&temp.path().join("data"), &["--seconds", "1", "--sabotage", "unhealthy"]);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(CHECK_FAILED), "{report:#}");
    assert_eq!(report["totals"]["lost_writes"], 0);
    assert_eq!(report["scenarios"][0]["as_expected"], false);
    assert_eq!(report["scenarios"][0]["outcome"], "rolled back (unhealthy)");
}

/// Starts a demonstration that would go on for minutes, and returns it in the middle of its swaps.
fn running_demo(dir: &Path) -> Child {
    let mut command = Command::new(HANDOFF);
    command.args(["demo", "--seconds", "600", "--data-dir"]).arg(dir).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("a swap: committed")));
    assert!(!processes_of(dir).is_empty());
    child
}

#[test]
fn an_interrupted_demonstration_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    let mut child = running_demo(&dir);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(5), None));
    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), Vec::<String>::new());
}

#[test]
fn a_demonstration_that_is_killed_leaves_nothing_behind_either() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    let mut child = running_demo(&dir);
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while dir.exists() || !processes_of(&dir).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", processes_of(&dir));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_kept_is_the_data_the_journal_and_the_log_and_nothing_runs() {
    let temp = tempfile::tempdir().unwrap();
    let mut command = Command::new(HANDOFF);
    command.args(["demo", "--seconds", "1", "--clients", "2", "--keep", "--data-dir"]).arg(temp.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("all as promised") && said.contains("handoff swap"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    for name in ["kv.log", "journal", "log"] {
        assert!(temp.path().join(name).exists(), "{name}");
    }
    assert_eq!(processes_of(temp.path()), Vec::<String>::new());
}
