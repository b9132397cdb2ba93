//! Where the time of a handoff went: for a terminal, as a picture, and for trace viewers.
//!
//! A bar reaches from one phase to the next. Lengths come from the monotonic clock; only across a reboot, where it begins
//! anew, from the wall clock, and then they are marked as such.

mod svg;
mod text;
mod trace;

use super::record::{Actor, Event, Stamp, micros, utc};
use super::story::{HandoffSummary, Outcome};

pub use text::TextOptions;
pub use trace::trace;

/// The phase in which the incumbent stops accepting, as those who ask for it and those who do it name it.
const GAP_BEGINS: [&str; 2] = ["drain", "draining"];
/// The phase in which the successor accepts.
const GAP_ENDS: &str = "serving";
/// A gap that takes less than one part in so many is too thin to be read, and is drawn a second time.
const ENLARGE_BELOW: u64 = 4;

/// The phases of one handoff as stretches of time. All times are microseconds since its first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The handoff's id.
    pub handoff: String,
    /// What was asked for, as a phrase; empty where the journal does not say.
    pub request: String,
    /// How it ended, as a phrase.
    pub outcome: String,
    /// The wall clock at its beginning, in milliseconds since 1970.
    pub wall_ms: u64,
    /// One bar for each phase, in the order of time.
    pub bars: Vec<Bar>,
    /// From the first record to the last.
    pub total_us: u64,
    /// When nobody accepted.
    pub gap: Option<Gap>,
}

/// A phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Who reached it.
    pub actor: Actor,
    /// The process that said so.
    pub pid: u32,
    /// When it was reached.
    pub start_us: u64,
    /// When the next one was.
    pub end_us: u64,
    /// The machine was started anew in between: the length comes from the wall clock.
    pub across_reboot: bool,
}

/// The time in which nobody accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the incumbent stopped.
    pub start_us: u64,
    /// When the successor accepted, or it was over otherwise.
    pub end_us: u64,
    /// It was measured at the listeners; otherwise it reaches from the drain to the end.
    pub measured: bool,
}

impl Timeline {
    /// Lays out the phases of a handoff.
    #[must_use]
    pub fn of(handoff: &HandoffSummary) -> Self {
        let points = placed(points(handoff));
        let total_us = points.last().map_or(0, |point| point.at_us);
        Self {
            handoff: handoff.id.clone(),
            request: handoff.begun.as_ref().map_or_else(String::new, Event::to_string),
            outcome: handoff.outcome.to_string(),
            wall_ms: handoff.started.wall_ms,
            gap: gap(&points, total_us, &handoff.outcome),
            bars: points
                .windows(2)
                .filter_map(|pair| Bar::between(&pair[0], &pair[1]))
                .chain(instant(&points))
                .collect(),
            total_us,
        }
    }

    /// Returns one line that says it all: `committed, gap 312 µs, 1.20 s in all`.
    fn summary(&self) -> String {
        let gap = self.gap.map_or_else(String::new, |gap| format!(", gap {}", gap.label()));
        format!("{}{gap}, {} in all", self.outcome, micros(self.total_us))
    }

    fn heading(&self) -> String {
        let request = if self.request.is_empty() { String::new() } else { format!("  {}", self.request) };
        format!("{}{request}", utc(self.wall_ms))
    }

    /// Returns what is to be drawn: the whole, and the gap alone where it would be too thin in the whole.
    fn panels(&self) -> Vec<Panel> {
        let whole = Panel { title: None, start_us: 0, end_us: self.total_us.max(1), bars: self.bars.clone() };
        let thin = self.gap.filter(|gap| gap.len_us() > 0 && gap.len_us() < self.total_us / ENLARGE_BELOW);
        std::iter::once(whole).chain(thin.map(|gap| self.enlarged(gap))).collect()
    }

    fn enlarged(&self, gap: Gap) -> Panel {
        let within = |bar: &&Bar| bar.end_us > gap.start_us && bar.start_us < gap.end_us;
        let cut = |bar: &Bar| Bar {
            start_us: bar.start_us.max(gap.start_us),
            end_us: bar.end_us.min(gap.end_us),
            ..bar.clone()
        };
        let bars = self.bars.iter().filter(within).map(cut).collect();
        let title = Some(format!("the gap, enlarged: {}", gap.label()));
        Panel { title, start_us: gap.start_us, end_us: gap.end_us, bars }
    }
}

impl Bar {
    /// Returns its length, in microseconds.
    #[must_use]
    pub fn len_us(&self) -> u64 {
        self.end_us - self.start_us
    }

    fn label(&self) -> String {
        let about = if self.across_reboot { "~" } else { "" };
        format!("{about}{}", micros(self.len_us()))
    }

    fn between(here: &Point, next: &Point) -> Option<Self> {
        let (name, actor, pid) = (here.name.clone()?, here.actor.clone(), here.stamp.pid);
        let across_reboot = here.stamp.boot_id != next.stamp.boot_id;
        Some(Self { name, actor, pid, start_us: here.at_us, end_us: next.at_us, across_reboot })
    }
}

impl Gap {
    /// Returns its length, in microseconds.
    #[must_use]
    pub fn len_us(&self) -> u64 {
        self.end_us - self.start_us
    }

    fn label(&self) -> String {
        let about = if self.measured { "" } else { "~" };
        format!("{about}{}", micros(self.len_us()))
    }
}

/// A stretch of time with the bars in it.
struct Panel {
    title: Option<String>,
    start_us: u64,
    end_us: u64,
    bars: Vec<Bar>,
}

/// A phase that was reached, or the end, which has no name.
struct Point {
    name: Option<String>,
    actor: Actor,
    stamp: Stamp,
    at_us: u64,
}

fn points(handoff: &HandoffSummary) -> Vec<Point> {
    let point = |name: Option<&str>, actor: &Actor, stamp: &Stamp| Point {
        name: name.map(str::to_owned),
        actor: actor.clone(),
        stamp: stamp.clone(),
        at_us: 0,
    };
    let mut points = Vec::new();
    if handoff.begun.is_some() {
        points.push(point(Some("begun"), &Actor::Driver, &handoff.started));
    }
    points.extend(handoff.phases.iter().map(|mark| point(Some(&mark.name), &mark.actor, &mark.stamp)));
    points.push(point(None, &Actor::Driver, handoff.ended.as_ref().unwrap_or(&handoff.last)));
    points
}

/// Puts the points in the order of time and says when they were.
fn placed(mut points: Vec<Point>) -> Vec<Point> {
    // What the incumbent reports is written when the gap is over, after what happened later. Other boots have other clocks.
    for boot in points.chunk_by_mut(|a, b| a.stamp.boot_id == b.stamp.boot_id) {
        boot.sort_by_key(|point| point.stamp.mono_us);
    }
    // An end that is not the last point ends nothing.
    let last = points.len() - 1;
    let mut at = 0;
    points.retain(|point| (point.name.is_some() || at == last, at += 1).0);
    for next in 1..points.len() {
        let (before, after) = (&points[next - 1], &points[next]);
        points[next].at_us = before.at_us + between(&before.stamp, &after.stamp);
    }
    points
}

fn between(before: &Stamp, after: &Stamp) -> u64 {
    if before.boot_id == after.boot_id {
        after.mono_us.saturating_sub(before.mono_us)
    } else {
        // The wall clock may have been set back in between.
        after.wall_ms.saturating_sub(before.wall_ms) * 1_000
    }
}

/// Returns a bar without length for a phase that nothing follows.
fn instant(points: &[Point]) -> Option<Bar> {
    let last = points.last()?;
    Bar::between(last, last)
}

fn gap(points: &[Point], total_us: u64, outcome: &Outcome) -> Option<Gap> {
    let reached = |names: &[&str]| {
        points.iter().find(|p| p.name.as_deref().is_some_and(|name| names.contains(&name))).map(|p| p.at_us)
    };
    let end_us = reached(&[GAP_ENDS]).unwrap_or(total_us);
    match outcome {
        Outcome::Committed { gap_us: Some(gap_us) } => {
            Some(Gap { start_us: end_us.saturating_sub(*gap_us), end_us, measured: true })
        }
        _ => {
            let start_us = reached(&GAP_BEGINS).filter(|start| *start <= end_us)?;
            Some(Gap { start_us, end_us, measured: false })
        }
    }
}

#[cfg(test)]
mod tests;
