//! The trace-event format that chrome://tracing, Perfetto and speedscope load.

use serde_json::{Value, json};

use super::{Bar, Timeline};
use crate::journal::record::Actor;

/// The thread of the gap. The actors come after it.
const GAP_TID: u32 = 0;

/// Returns the handoffs as a JSON array of trace events: a process for each handoff, a thread for each actor.
///
/// Phases are complete events (`"ph":"X"`) with `ts` and `dur` in microseconds; `ts` counts from 1970, so that handoffs and
/// other traces of the same machine stand side by side.
#[must_use]
pub fn trace(timelines: &[Timeline]) -> String {
    let events: Vec<Value> =
        (1u32..).zip(timelines).flat_map(|(pid, timeline)| events(pid, timeline)).collect();
    // One event a line, for those who read it without a viewer.
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

fn events(pid: u32, timeline: &Timeline) -> Vec<Value> {
    let mut actors: Vec<&Actor> = timeline.bars.iter().map(|bar| &bar.actor).collect();
    actors.sort();
    actors.dedup();
    let threads: Vec<(u32, &Actor)> = (GAP_TID + 1..).zip(actors).collect();
    let epoch_us = timeline.wall_ms * 1_000;

    let mut events = vec![name(pid, GAP_TID, "process_name", &format!("handoff {}", timeline.handoff))];
    events.extend(threads.iter().map(|(tid, actor)| name(pid, *tid, "thread_name", &actor.to_string())));
    for bar in &timeline.bars {
        let thread = threads.iter().find(|(_, actor)| **actor == bar.actor);
        let (tid, _) = thread.expect("every bar's actor has a thread");
        events.push(phase(pid, *tid, epoch_us, bar));
    }
    if let Some(gap) = timeline.gap {
        events.push(name(pid, GAP_TID, "thread_name", "gap"));
        events.push(json!({
            "name": "gap", "cat": "gap", "ph": "X", "pid": pid, "tid": GAP_TID,
            "ts": epoch_us + gap.start_us, "dur": gap.len_us(),
            "args": { "measured": gap.measured, "outcome": timeline.outcome },
        }));
    }
    events
}

fn name(pid: u32, tid: u32, what: &str, name: &str) -> Value {
    json!({ "name": what, "ph": "M", "pid": pid, "tid": tid, "args": { "name": name } })
}

fn phase(pid: u32, tid: u32, epoch_us: u64, bar: &Bar) -> Value {
    json!({
        "name": bar.name, "cat": "phase", "ph": "X", "pid": pid, "tid": tid,
        "ts": epoch_us + bar.start_us, "dur": bar.len_us(),
        "args": { "pid": bar.pid, "across_reboot": bar.across_reboot },
    })
}
