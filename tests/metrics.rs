//! `handoff status --metrics`: what it prints of a real daemon and of real swaps is OpenMetrics, to the letter.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/openmetrics.rs"]
mod openmetrics;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{HANDOFF, Kvd, has_tool};
use handoff::control::Control;
use openmetrics::{Exposition, parse};

/// A daemon, and a journal of what becomes of it.
struct Place {
    dir: tempfile::TempDir,
    kvd: Option<Kvd>,
}

impl Place {
    fn serving() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kvd = Kvd::start(&dir.path().join("data"), &[]);
        Self { dir, kvd: Some(kvd) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn handoff(&self, words: &[&str]) -> Output {
        let mut command = Command::new(HANDOFF);
        command.args(words).stdin(Stdio::null());
        command.env("HANDOFF_CONTROL", self.path("data").join("control"));
        command.env("HANDOFF_DATA_DIR", self.path("data"));
        command.env("HANDOFF_JOURNAL", self.path("journal"));
        command.env_remove("HANDOFF_TRIGGER").output().unwrap()
    }

    fn swap(&self, fault: &[&str]) -> Option<i32> {
        let data = self.path("data");
        let mut words = vec!["swap", HANDOFF, "kvd", "--listen", "127.0.0.1:0", "--data-dir"];
        words.push(data.to_str().unwrap());
        words.extend(fault);
        self.handoff(&words).status.code()
    }

    fn text(&self) -> (String, Option<i32>) {
        let said = self.handoff(&["status", "--metrics"]);
        (String::from_utf8(said.stdout).unwrap(), said.status.code())
    }

    #[track_caller]
    fn metrics(&self) -> Exposition {
        parse(&self.text().0)
    }
}

impl Drop for Place {
    /// Ends whoever serves: a successor is nobody's child here.
    fn drop(&mut self) {
        let soon = std::time::Instant::now() + common::PATIENCE;
        let asked = Control::connect(self.path("data").join("control"), "test", soon);
        if let Ok(status) = asked.and_then(|mut control| control.status(soon)) {
            let _ = Command::new("kill").args(["-KILL", &status.process.pid.to_string()]).status();
        }
    }
}

#[test]
fn a_swap_and_a_rollback_are_told_with_their_figures() {
    let place = Place::serving();
    assert_eq!(place.swap(&[]), Some(0));
    assert_eq!(place.swap(&["--fail", "unhealthy"]), Some(3));
    let told = place.metrics();
    let count = |labels: &[(&str, &str)]| told.value("handoff_handoffs_total", labels);
    assert_eq!(count(&[("outcome", "committed")]), 1.0);
    assert_eq!(count(&[("outcome", "rolled-back"), ("reason", "unhealthy")]), 1.0);
    assert_eq!(told.value("handoff_unfinished", &[]), 0.0);

    assert_eq!(told.value("handoff_gap_seconds_count", &[]), 1.0);
    assert!(told.value("handoff_gap_seconds_sum", &[]) > 0.0);
    for (actor, phase, count) in
        [("driver", "warming", 2.0), ("incumbent", "draining", 2.0), ("incumbent", "sealed", 2.0)]
    {
        let labels = [("actor", actor), ("phase", phase)];
        assert_eq!(told.value("handoff_phase_duration_seconds_count", &labels), count, "{actor} {phase}");
    }
    assert_eq!(told.value("handoff_last_connections_at_drain", &[]), 0.0);
    assert!(told.value("handoff_last_accept_queue_limit", &[]) > 0.0);
    assert!(told.value("handoff_last_duration_seconds", &[]) > 0.0);

    assert_eq!(told.value("handoff_up", &[]), 1.0);
    assert_eq!(told.value("handoff_lock_held", &[]), 1.0);
    // A start, a successor, and the incumbent that took the data back.
    assert_eq!(told.value("handoff_generation", &[]), told.value("handoff_serving_generation", &[]));
    assert!(told.value("handoff_lock_epoch", &[]) >= told.value("handoff_generation", &[]));
    assert_eq!(told.value("handoff_standing", &[("handoff_standing", "final")]), 1.0);
    assert!(told.value("handoff_journal_records", &[]) > 10.0);
    assert_eq!(told.value("handoff_journal_damaged", &[]), 0.0);
}

#[test]
fn where_nobody_serves_the_record_and_the_journal_still_speak() {
    let mut place = Place::serving();
    assert_eq!(place.swap(&["--fail", "unhealthy"]), Some(3));
    place.kvd.take().unwrap().kill();
    let (text, code) = place.text();
    let told = parse(&text);
    assert_eq!((told.value("handoff_up", &[]), code), (0.0, Some(1)));
    assert_eq!(told.find("handoff_uptime_seconds", &[]), None);
    assert!(told.value("handoff_generation", &[]) > 0.0);
    let undone = [("outcome", "rolled-back"), ("reason", "unhealthy")];
    assert_eq!(told.value("handoff_handoffs_total", &undone), 1.0);
}

#[test]
fn what_cannot_be_read_is_left_out_and_said() {
    let place = Place::serving();
    let trigger = place.path("nobody");
    let said = place.handoff(&["status", "--metrics", "--trigger", trigger.to_str().unwrap()]);
    let told = parse(&String::from_utf8(said.stdout).unwrap());
    assert_eq!((told.value("handoff_up", &[]), said.status.code()), (1.0, Some(0)));
    assert!(told.family("handoff_handoffs").is_none() && told.family("handoff_supervisor_state").is_none());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("open the journal") && said.contains("is the supervisor running"), "{said}");

    std::fs::write(
        place.path("journal"),
        "{\"crc\":\"00000000\",\"journal\":\"handoff\",\"format\":1}\n\n\n",
    )
    .unwrap();
    let (text, _) = place.text();
    assert_eq!(parse(&text).value("handoff_journal_damaged", &[]), 1.0);
}

#[test]
fn handoffs_in_rotated_files_are_counted_too() {
    let place = Place::serving();
    assert_eq!(place.swap(&["--fail", "unhealthy"]), Some(3));
    let long = "x".repeat(100_000);
    let small = handoff::journal::Options { max_bytes: 50_000, ..handoff::journal::Options::default() };
    let mut journal = handoff::journal::Journal::open_with(place.path("journal"), &small).unwrap();
    let note = handoff::journal::Event::Note { text: long };
    journal.append("", handoff::journal::Actor::Operator, note).unwrap();
    let begun = serde_json::from_str(r#"{"kind":"begun","control":""}"#).unwrap();
    journal.append("later", handoff::journal::Actor::Driver, begun).unwrap();
    drop(journal);
    assert!(place.path("journal.1").exists());
    let told = place.metrics();
    let undone = [("outcome", "rolled-back"), ("reason", "unhealthy")];
    assert_eq!(told.value("handoff_handoffs_total", &undone), 1.0);
    assert_eq!(told.value("handoff_journal_files", &[]), 2.0);
    assert_eq!(told.value("handoff_unfinished", &[]), 1.0, "the later one");
}

/// Prometheus's own library, in its strictest reading.
#[test]
#[ignore = "it fetches prometheus_client from PyPI with pip: cargo test --test metrics -- --ignored"]
fn prometheus_reads_the_same() {
    if !has_tool("python3-pip", Command::new("python3").args(["-m", "pip", "--version"])) {
        return;
    }
    let place = Place::serving();
    assert_eq!(place.swap(&[]), Some(0));
    assert_eq!(place.swap(&["--fail", "unhealthy"]), Some(3));
    let library = place.path("library");
    let mut install = Command::new("python3");
    install
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
        .arg(&library)
        .arg("prometheus_client");
    assert!(install.status().unwrap().success(), "pip could not install prometheus_client");
    let (text, _) = place.text();
    std::fs::write(place.path("text"), &text).unwrap();
    let script = "\
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(open(sys.argv[1], newline='').read()):
    print(family.name, len(family.samples))
";
    let mut python = Command::new("python3");
    let read =
        python.args(["-c", script]).arg(place.path("text")).env("PYTHONPATH", &library).output().unwrap();
    let said = String::from_utf8_lossy(&read.stdout);
    assert!(read.status.success(), "{}\n{text}", String::from_utf8_lossy(&read.stderr));
    let told = parse(&text);
    let families: Vec<&str> = said.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(families.len() > 25, "{said}");
    for (name, count) in said.lines().map(|line| line.split_once(' ').unwrap()) {
        let ours = told.family(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(ours.samples.len().to_string(), count, "{name}");
    }
}
