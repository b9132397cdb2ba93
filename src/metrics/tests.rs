#![allow(clippy::unwrap_used)]

#[path = "../../tests/common/openmetrics.rs"]
mod openmetrics;

use std::os::unix::fs::MetadataExt;

use self::openmetrics::{Exposition, parse, read};
use super::*;
use crate::drainable::StateSnapshot;
use crate::journal::{Event, Record, Stamp};
use crate::proto::party::ProcessId;
use crate::proto::record::{Owner, OwnerRecord};
use crate::proto::wire::{ListenerStatus, Progress};

fn status() -> Status {
    Status {
        role: "incumbent".into(),
        phase: "draining".into(),
        process: ProcessId { pid: 7, start_ticks: 7, boot_id: "b".into() },
        build_id: "v\"1\"\\\n".into(),
        binary: "/bin/kvd".into(),
        generation: 4,
        data_dir: "/data".into(),
        lock_file: ".handoff.lock".into(),
        handoff: Some(Progress {
            handoff: "h1".into(),
            age_ms: 1_250,
            left_ms: None,
            successor: None,
            incumbent: None,
        }),
        state: StateSnapshot { shard_count: 2, open_conns: 16, last_revision_per_shard: vec![5, 9] },
        listeners: vec![
            ListenerStatus { name: "http".into(), address: "127.0.0.1:80".into(), queue: Some((3, 128)) },
            ListenerStatus { name: "udp".into(), address: "127.0.0.1:53".into(), queue: None },
        ],
        locked: true,
        uptime_ms: 3_600_001,
    }
}

fn reading(standing: Standing) -> Reading {
    let owner = Owner {
        pid: 7,
        start_ticks: 7,
        boot_id: "b".into(),
        binary: "/bin/kvd".into(),
        args: vec![],
        build_id: "v1".into(),
        directory: None,
    };
    let record =
        OwnerRecord { generation: 4, standing, owner, previous: None, written_ms: 1_772_366_400_250 };
    let mut reading = Reading::default();
    (reading.record, reading.torn, reading.sequence) = (Some(record), vec![4096], 11);
    reading
}

/// Records as they come, each a millisecond after the one before.
struct Log(Vec<Record>);

impl Log {
    fn add(&mut self, handoff: &str, actor: Actor, mono_us: u64, event: Event) {
        let stamp = Stamp { wall_ms: 5_000 + mono_us / 1_000, mono_us, boot_id: "b".into(), pid: 7 };
        let seq = self.0.len() as u64 + 1;
        self.0.push(Record { seq, handoff: handoff.to_owned(), stamp, actor, event });
    }

    fn phase(&mut self, handoff: &str, actor: Actor, mono_us: u64, name: &str) {
        self.add(handoff, actor, mono_us, Event::Phase { name: name.to_owned() });
    }

    fn end(&mut self, handoff: &str, event: Event) {
        self.add(handoff, Actor::Driver, 900_000, event);
    }

    fn history(self) -> History {
        History { records: self.0, files: 1, since_ms: Some(5_000), ..History::default() }
    }
}

fn committed(gap_us: Option<u64>) -> Event {
    Event::Committed { generation: 2, binary: "/bin/kvd".into(), args: vec![], build_id: "v2".into(), gap_us }
}

fn rolled_back(cause: Option<&str>) -> Event {
    Event::RolledBack { reason: "it died".into(), cause: cause.map(str::to_owned) }
}

fn of_journal(history: &History) -> Exposition {
    parse(&text(&Sources { journal: Some(history), ..Sources::default() }))
}

#[test]
fn nothing_known_is_nothing_told() {
    assert_eq!(
        text(&Sources::default()),
        "# TYPE handoff_up gauge\n# HELP handoff_up Whether a daemon answers on the control socket.\n\
         handoff_up 0\n# EOF\n"
    );
}

#[test]
fn a_status_is_told_as_it_stands() {
    let status = status();
    let told = parse(&text(&Sources { status: Some(&status), ..Sources::default() }));
    assert_eq!(told.value("handoff_up", &[]), 1.0);
    assert_eq!(told.value("handoff_phase", &[("handoff_phase", "draining")]), 1.0);
    assert_eq!(told.value("handoff_phase", &[("handoff_phase", "serving")]), 0.0);
    assert_eq!(told.value("handoff_role", &[("handoff_role", "incumbent")]), 1.0);
    assert_eq!(told.value("handoff_uptime_seconds", &[]), 3600.001);
    assert_eq!(told.value("handoff_lock_held", &[]), 1.0);
    assert_eq!(told.value("handoff_revision", &[("shard", "1")]), 9.0);
    let http = [("listener", "http"), ("address", "127.0.0.1:80")];
    assert_eq!(told.value("handoff_accept_queue_length", &http), 3.0);
    assert_eq!(told.value("handoff_accept_queue_limit", &http), 128.0);
    assert_eq!(
        told.family("handoff_accept_queue_length").unwrap().samples.len(),
        1,
        "of UDP nothing is known"
    );
    assert_eq!(told.value("handoff_in_progress_seconds", &[]), 1.25);
    let build = &told.family("handoff_build").unwrap().samples[0];
    assert_eq!(build.labels["build_id"], "v\"1\"\\\n", "what it says of itself comes back whole");
}

#[test]
fn a_phase_that_this_release_does_not_know_is_a_state_too() {
    let status = Status { phase: "teleporting".into(), ..status() };
    let told = parse(&text(&Sources { status: Some(&status), ..Sources::default() }));
    assert_eq!(told.value("handoff_phase", &[("handoff_phase", "teleporting")]), 1.0);
}

#[test]
fn the_record_tells_generation_epoch_and_standing() {
    for (standing, name) in [(Standing::Trial, "trial"), (Standing::Final, "final")] {
        let reading = reading(standing);
        let told = parse(&text(&Sources { record: Some(&reading), ..Sources::default() }));
        assert_eq!(told.value("handoff_generation", &[]), 4.0);
        assert_eq!(told.value("handoff_lock_epoch", &[]), 11.0);
        assert_eq!(told.value("handoff_standing", &[("handoff_standing", name)]), 1.0);
        assert_eq!(told.value("handoff_record_torn_slots", &[]), 1.0);
        assert_eq!(told.value("handoff_record_timestamp_seconds", &[]), 1_772_366_400.25);
    }
    let none = Reading::default();
    let told = parse(&text(&Sources { record: Some(&none), ..Sources::default() }));
    assert_eq!(told.find("handoff_generation", &[]), None);
}

#[test]
fn handoffs_are_counted_by_how_they_ended() {
    let mut log = Log(vec![]);
    log.end("h1", committed(Some(250)));
    log.end("h2", committed(None));
    log.end("h3", rolled_back(Some("deadline")));
    log.end("h4", rolled_back(None));
    log.end("h5", Event::Retired);
    log.end("h6", Event::Recovered { conclusion: "nobody serves".into() });
    // Another one began, and nobody will ask any more.
    log.end("h7", Event::Undecided { detail: "?".into() });
    log.phase("h8", Actor::Driver, 1, "draining");
    let told = of_journal(&log.history());
    let count = |labels: &[(&str, &str)]| told.value("handoff_handoffs_total", labels);
    assert_eq!(count(&[("outcome", "committed")]), 2.0);
    assert_eq!(count(&[("outcome", "rolled-back")]), 1.0);
    assert_eq!(count(&[("outcome", "rolled-back"), ("reason", "deadline")]), 1.0);
    assert_eq!(count(&[("outcome", "retired")]), 1.0);
    assert_eq!(count(&[("outcome", "recovered")]), 1.0);
    assert_eq!(count(&[("outcome", "undecided")]), 1.0);
    assert_eq!(told.value("handoff_unfinished", &[]), 1.0, "the last one goes on");
    assert_eq!(told.value("handoff_handoffs_created", &[("outcome", "committed")]), 5.0);
    assert_eq!(told.value("handoff_gap_seconds_count", &[]), 1.0, "where it was measured");
    assert_eq!(told.value("handoff_gap_seconds_bucket", &[("le", "0.0001")]), 0.0);
    assert_eq!(told.value("handoff_gap_seconds_bucket", &[("le", "0.0003")]), 1.0);
    assert_eq!(told.value("handoff_gap_seconds_sum", &[]), 0.00025);
}

#[test]
fn what_may_still_be_decided_is_not_counted_and_never_taken_back() {
    let mut log = Log(vec![]);
    log.end("h1", Event::Undecided { detail: "?".into() });
    let before = of_journal(&History { records: log.0.clone(), ..History::default() });
    assert_eq!(before.value("handoff_handoffs_total", &[("outcome", "undecided")]), 0.0);
    assert_eq!(before.value("handoff_unfinished", &[]), 1.0);
    log.end("h1", committed(None));
    let after = of_journal(&log.history());
    assert_eq!(after.value("handoff_handoffs_total", &[("outcome", "undecided")]), 0.0);
    assert_eq!(after.value("handoff_handoffs_total", &[("outcome", "committed")]), 1.0);
    assert_eq!(after.value("handoff_unfinished", &[]), 0.0);
}

#[test]
fn a_phase_lasts_until_the_next_one_of_the_same_party() {
    let mut log = Log(vec![]);
    log.phase("h1", Actor::Driver, 1_000, "warming");
    log.phase("h1", Actor::Driver, 21_000, "draining");
    log.phase("h1", Actor::Driver, 24_000, "done");
    // Written down late, as an incumbent's account is.
    log.phase("h1", Actor::Incumbent, 21_100, "draining");
    log.phase("h1", Actor::Incumbent, 21_150, "drained");
    log.phase("h1", Actor::Successor, 23_000, "serving");
    log.end("h1", committed(None));
    let told = of_journal(&log.history());
    let of = |sample: &str, actor: &str, phase: &str| {
        told.find(&format!("handoff_phase_duration_seconds_{sample}"), &[("actor", actor), ("phase", phase)])
    };
    assert_eq!(of("sum", "driver", "warming"), Some(0.02));
    assert_eq!(of("sum", "driver", "draining"), Some(0.003));
    assert_eq!(of("sum", "incumbent", "draining"), Some(0.00005));
    assert_eq!(of("count", "driver", "done"), None, "the last one is an end");
    assert_eq!(of("count", "successor", "serving"), None);
}

#[test]
fn a_phase_across_a_reboot_has_no_length() {
    let mut log = Log(vec![]);
    log.phase("h1", Actor::Driver, 900_000, "draining");
    log.phase("h1", Actor::Driver, 1_000, "sealing");
    log.0[1].stamp.boot_id = "another".into();
    log.end("h1", rolled_back(None));
    assert!(of_journal(&log.history()).family("handoff_phase_duration_seconds").is_none());
}

#[test]
fn overflows_are_summed_up_and_the_last_handoff_is_told_by_itself() {
    let mut log = Log(vec![]);
    let measured = |peak, overflows| {
        Event::Measured(Measurements { queue_peak: Some(peak), overflows, ..Measurements::default() })
    };
    log.end("h1", measured(40, Some(2)));
    log.end("h1", committed(None));
    log.end("h2", measured(3, Some(5)));
    log.end("h2", rolled_back(None));
    log.end("h3", rolled_back(None));
    let told = of_journal(&log.history());
    assert_eq!(told.value("handoff_accept_queue_overflows_total", &[]), 7.0);
    assert_eq!(told.value("handoff_last_accept_queue_peak", &[]), 3.0);
    assert_eq!(told.find("handoff_last_connections_at_drain", &[]), None);
}

#[test]
fn lengths_at_a_bound_are_within_it_and_the_longest_are_counted_too() {
    let mut lengths = Lengths::default();
    for us in [0, 100, 101, 60_000_000, 60_000_001, u64::MAX] {
        lengths.add(us);
    }
    assert_eq!((lengths.buckets[0], lengths.buckets[1]), (2, 1));
    assert_eq!((lengths.buckets[BOUNDS.len() - 1], lengths.buckets[BOUNDS.len()]), (1, 2));
}

#[test]
fn the_bounds_are_written_as_they_are_counted() {
    for (us, bound) in BOUNDS {
        let micros = bound.parse::<f64>().unwrap() * 1e6;
        assert!((micros - us as f64).abs() < 0.001, "{bound}");
    }
}

#[test]
fn a_supervisor_tells_of_restarts_and_swaps() {
    let state = State {
        pid: 1,
        version: "0.1.0".into(),
        doing: "serving".into(),
        age_ms: 5,
        daemon: None,
        is_child: true,
        listeners: vec!["http".into()],
        restarts: 3,
        swaps: vec![("committed".into(), 30), ("rolled-back".into(), 2)],
        queued: 1,
    };
    let told = parse(&text(&Sources { supervisor: Some(&state), ..Sources::default() }));
    assert_eq!(told.value("handoff_supervisor_restarts_total", &[]), 3.0);
    assert_eq!(told.value("handoff_supervisor_swaps_total", &[("outcome", "committed")]), 30.0);
    assert_eq!(told.value("handoff_supervisor_state", &[("handoff_supervisor_state", "serving")]), 1.0);
    assert_eq!(told.value("handoff_supervisor_queued_requests", &[]), 1.0);
}

#[test]
fn a_file_appears_whole_for_everybody_and_nothing_is_left_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handoff.prom");
    // Somebody was killed while writing.
    fs::write(dir.path().join("handoff.prom.writing"), "half").unwrap();
    for text in ["one\n", "two\n"] {
        write_file(&path, text).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing/handoff.prom");
    let said = write_file(&path, "x").unwrap_err().to_string();
    assert!(said.contains("write the metrics to") && said.contains("missing/handoff.prom"), "{said}");
    // A directory is in its place.
    let path = dir.path().join("taken");
    fs::create_dir(&path).unwrap();
    assert!(write_file(&path, "x").is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left");
    assert!(matches!(write_file("/", "x"), Err(Error::Invalid { .. })));
}

/// What a symbolic link beside the file leads to is not written.
#[test]
fn a_link_that_lies_in_the_way_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("m.writing")).unwrap();
    write_file(dir.path().join("m"), "x").unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn the_reader_of_these_tests_refuses_what_the_specification_does() {
    for (wrong, text) in [
        ("no end", "a 1\n"),
        ("text behind the end", "# EOF\n\n"),
        ("an empty line", "# TYPE a gauge\n\na 1\n# EOF\n"),
        ("no type's sample", "# TYPE a counter\na 1\n# EOF\n"),
        ("a unit that is not in the name", "# TYPE a gauge\n# UNIT a seconds\na 1\n# EOF\n"),
        ("the same twice", "# TYPE a gauge\na 1\na 2\n# EOF\n"),
        ("interleaved families", "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\na{x=\"1\"} 1\n# EOF\n"),
        ("a family twice", "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\n# EOF\n"),
        ("a name of two families", "# TYPE a counter\na_total 1\n# TYPE a_total gauge\na_total 1\n# EOF\n"),
        ("not a number", "# TYPE a gauge\na NaN\n# EOF\n"),
        ("a bad escape", "# TYPE a gauge\na{x=\"\\t\"} 1\n# EOF\n"),
        ("metadata behind a sample", "# TYPE a gauge\na 1\n# HELP a b\n# EOF\n"),
        (
            "a histogram without an end",
            "# TYPE a histogram\na_bucket{le=\"1.0\"} 1\na_count 1\na_sum 1\n# EOF\n",
        ),
        ("no state", "# TYPE a stateset\na{a=\"x\"} 0\n# EOF\n"),
        ("a counter that went below nothing", "# TYPE a counter\na_total -1\n# EOF\n"),
        ("a comment", "# nothing\n# EOF\n"),
    ] {
        assert!(read(text).is_err(), "{wrong}: {text}");
    }
    let whole = "# TYPE a counter\n# HELP a b \\\"c\\\"\na_total{x=\"1\\\\\"} 1\n# EOF\n";
    assert_eq!(parse(whole).value("a_total", &[("x", "1\\")]), 1.0);
}
