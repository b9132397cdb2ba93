#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::*;
use crate::journal::record::Record;
use crate::journal::story::handoffs;

const PHASES: [(&str, Actor, u64); 13] = [
    ("prepare", Actor::Driver, 800),
    ("spawn", Actor::Driver, 1_300),
    ("waiting", Actor::Successor, 84_000),
    ("drain", Actor::Driver, 84_300),
    ("drained", Actor::Incumbent, 84_372),
    ("seal", Actor::Driver, 84_391),
    ("sealed", Actor::Incumbent, 84_421),
    ("begin", Actor::Driver, 84_437),
    ("attached", Actor::Incumbent, 84_470),
    ("ready", Actor::Successor, 84_560),
    ("grant", Actor::Incumbent, 84_584),
    ("serving", Actor::Successor, 84_701),
    ("done", Actor::Successor, 85_120),
];

fn stamp(mono_us: u64) -> Stamp {
    let boot = 5_000_000;
    let wall_ms = 1_772_366_400_250 + mono_us / 1_000;
    Stamp { wall_ms, mono_us: boot + mono_us, boot_id: "boot-1".into(), pid: 4711 }
}

fn record(actor: Actor, mono_us: u64, event: Event) -> Record {
    Record { seq: 1, handoff: "1kk9xq3m07d2p".into(), stamp: stamp(mono_us), actor, event }
}

fn begun() -> Record {
    let event = Event::Begun {
        binary: Some("/usr/local/bin/kvd-v2".into()),
        args: vec![],
        build_id: None,
        control: "/run/kv/control.sock".into(),
        data_dir: None,
        lock_file: None,
        generation: None,
        incumbent: None,
        by: None,
        successor: None,
    };
    record(Actor::Driver, 0, event)
}

fn phase((name, actor, at): &(&str, Actor, u64)) -> Record {
    record(actor.clone(), *at, Event::Phase { name: (*name).into() })
}

fn committed() -> Record {
    let event = Event::Committed {
        generation: 2,
        binary: "/usr/local/bin/kvd-v2".into(),
        args: vec![],
        build_id: "v2".into(),
        gap_us: Some(312),
    };
    record(Actor::Driver, 85_400, event)
}

fn timeline(records: &[Record]) -> Timeline {
    Timeline::of(&handoffs(records)[0])
}

fn usual() -> Timeline {
    let records: Vec<_> =
        [begun()].into_iter().chain(PHASES.iter().map(phase)).chain([committed()]).collect();
    timeline(&records)
}

#[test]
fn a_bar_reaches_from_one_phase_to_the_next_and_the_last_to_the_end() {
    let timeline = usual();
    let bars: Vec<_> = timeline.bars.iter().map(|b| (b.name.as_str(), b.start_us, b.end_us)).collect();
    assert_eq!(bars[..3], [("begun", 0, 800), ("prepare", 800, 1_300), ("spawn", 1_300, 84_000)]);
    assert_eq!(bars[13], ("done", 85_120, 85_400));
    assert_eq!((bars.len(), timeline.total_us), (14, 85_400));
    assert_eq!(timeline.gap, Some(Gap { start_us: 84_389, end_us: 84_701, measured: true }));
}

#[test]
fn what_was_written_down_late_stands_where_it_happened() {
    let mut late: Vec<_> =
        [begun()].into_iter().chain(PHASES.iter().map(phase)).chain([committed()]).collect();
    late[1..].reverse();
    assert_eq!(timeline(&late).bars, usual().bars);
}

#[test]
fn without_a_measured_gap_it_reaches_from_the_drain_to_the_end() {
    let reason = "the successor died".to_owned();
    let end = record(Actor::Driver, 99_000, Event::RolledBack { reason, cause: None });
    let records: Vec<_> = PHASES[..7].iter().map(phase).chain([end]).collect();
    let timeline = timeline(&records);
    assert_eq!(timeline.gap, Some(Gap { start_us: 83_500, end_us: 98_200, measured: false }));
    assert!(timeline.outcome.contains("died"));
    assert_eq!(self::timeline(&[phase(&PHASES[0])]).gap, None);
}

#[test]
fn a_reboot_is_bridged_by_the_wall_clock_and_marked() {
    let mut after =
        record(Actor::Operator, 0, Event::Recovered { conclusion: "the incumbent serves".into() });
    after.stamp = Stamp { wall_ms: 1_772_366_442_250, mono_us: 9, boot_id: "boot-2".into(), pid: 1 };
    let timeline = timeline(&[begun(), phase(&PHASES[3]), after]);
    assert!(!timeline.bars[0].across_reboot);
    let last = timeline.bars.last().unwrap();
    assert_eq!((last.name.as_str(), last.across_reboot, last.len_us()), ("drain", true, 41_916_000));
    assert!(timeline.text(&TextOptions::default()).contains("~41.9 s"));
}

#[test]
fn a_handoff_of_one_record_is_drawn_too() {
    for records in [vec![begun()], vec![phase(&PHASES[0])], vec![committed()]] {
        let timeline = timeline(&records);
        assert!(!timeline.text(&TextOptions { width: 0, colour: true }).is_empty());
        assert!(timeline.svg().ends_with("</svg>\n"));
        assert!(trace(&[timeline]).starts_with('['));
    }
}

#[test]
fn the_text_keeps_to_its_width_whatever_the_names_are() {
    let odd = phase(&("日本語の段階という長い名前\u{1b}[2J", Actor::Other("ö".repeat(40)), 90_000));
    let records: Vec<_> = [begun()].into_iter().chain(PHASES.iter().map(phase)).chain([odd]).collect();
    for width in [48, 61, 80, 200] {
        let text = timeline(&records).text(&TextOptions { width, colour: false });
        assert!(!text.contains('\u{1b}'));
        for line in text.lines() {
            // Two columns each for the wide characters that are left of it.
            let wide = line.chars().filter(|c| ('\u{2e80}'..='\u{a4cf}').contains(c)).count();
            assert!(line.chars().count() + wide <= width, "{line:?} is wider than {width}");
        }
    }
}

#[test]
fn the_text_is_what_a_terminal_shows() {
    let expected = "\
handoff 1kk9xq3m07d2p: committed, gap 312 µs, 85.4 ms in all
2026-03-01T12:00:00.250Z  begun: /usr/local/bin/kvd-v2 is to take over from /run
";
    let text = usual().text(&TextOptions::default());
    assert!(text.starts_with(expected), "{text}");
    let sealed = text.lines().filter(|line| line.starts_with("sealed")).collect::<Vec<_>>();
    assert_eq!(sealed.len(), 2, "in the whole, and in the enlarged gap: {text}");
    assert!(sealed[1].contains("██"), "{text}");
    assert!(sealed[1].ends_with("16 µs"), "{text}");
}

#[test]
fn only_with_colour_is_there_an_escape() {
    let with = usual().text(&TextOptions { width: 80, colour: true });
    assert!(with.contains("\u{1b}[31m█"));
    let without = with.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
    assert_eq!(without, usual().text(&TextOptions::default()));
}

#[test]
fn the_trace_is_an_array_of_events_that_viewers_load() {
    let events: Vec<Value> = serde_json::from_str(&trace(&[usual(), usual()])).unwrap();
    let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(complete.len(), 2 * (14 + 1));
    assert!(
        complete
            .iter()
            .all(|e| e["ts"].is_u64() && e["dur"].is_u64() && e["pid"].is_u64() && e["tid"].is_u64())
    );
    let spawn = complete.iter().find(|event| event["name"] == "spawn").unwrap();
    assert_eq!((spawn["ts"].as_u64(), spawn["dur"].as_u64()), (Some(1_772_366_400_251_300), Some(82_700)));
    let gap = complete.iter().find(|event| event["name"] == "gap").unwrap();
    assert_eq!(gap["dur"], 312);
    let names: Vec<_> =
        events.iter().filter(|e| e["ph"] == "M").map(|e| e["args"]["name"].as_str().unwrap()).collect();
    assert_eq!(names[..5], ["handoff 1kk9xq3m07d2p", "driver", "incumbent", "successor", "gap"]);
    assert_ne!(events[0]["pid"], events.last().unwrap()["pid"], "each handoff is a process of its own");
}

#[test]
fn the_picture_stands_alone_and_holds_every_phase() {
    let svg = usual().svg();
    for (name, ..) in &PHASES {
        assert!(svg.contains(&format!(">{name}</text>")), "{name}");
    }
    assert!(svg.contains("gap 312 µs"));
    let addresses: Vec<_> = svg.match_indices("http").collect();
    assert_eq!(addresses.len(), 1, "nothing but the name space is named");
    // For looking at it: HANDOFF_SVG=/tmp/timeline.svg cargo test --lib the_picture
    if let Some(path) = std::env::var_os("HANDOFF_SVG") {
        std::fs::write(path, svg).unwrap();
    }
}

#[test]
fn a_phase_cannot_put_markup_into_the_picture() {
    let svg = timeline(&[phase(&("</text><script>", Actor::Other("\"&".into()), 1)), committed()]).svg();
    assert!(!svg.contains("<script>") && svg.contains("&lt;/text&gt;"));
}
