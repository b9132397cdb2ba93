//! A picture that stands alone: no script, no font and no style from elsewhere.

use super::{Bar, Panel, Timeline};
use crate::journal::record::Actor;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Where the bars begin: right of the names.
const LEFT: f64 = 200.0;
/// Where the time axis ends: the room right of it is for the length of a bar that ends there.
const RIGHT: f64 = 860.0;
const HEAD: f64 = 96.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
/// A phase that took no time is still seen.
const BAR_MIN: f64 = 2.0;
const AXIS: f64 = 30.0;
const PANEL_TITLE: f64 = 34.0;
const PANEL_GAP: f64 = 22.0;
const FOOT: f64 = 44.0;
/// What fits a line of the head in its type.
const HEAD_CHARS: usize = 120;
const NAME_CHARS: usize = 14;
/// A bar that is wider holds its own length.
const BAR_WITH_LABEL: f64 = 80.0;
const TICKS_MAX: u64 = 8;

const STYLE: &str = "
  .page { fill: #ffffff } .ink { fill: #1f2937 } .dim { fill: #6b7280 } .grid { stroke: #e5e7eb } .rule { stroke: #9ca3af }
  .gap { fill: #fecaca; fill-opacity: .55 } .gap-edge { stroke: #dc2626 } .gap-ink { fill: #b91c1c; font-weight: 600 }
  .driver { fill: #64748b } .incumbent { fill: #2563eb } .successor { fill: #059669 }
  .supervisor { fill: #7c3aed } .operator { fill: #b45309 } .other { fill: #0e7490 } .on-bar { fill: #ffffff }
  text { font: 13px ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif }
  .title { font-size: 18px; font-weight: 600 } .small { font-size: 11px } .number { font-variant-numeric: tabular-nums }
  @media (prefers-color-scheme: dark) {
    .page { fill: #111827 } .ink { fill: #f3f4f6 } .dim { fill: #9ca3af } .grid { stroke: #1f2937 } .rule { stroke: #6b7280 }
    .gap { fill: #7f1d1d } .gap-edge { stroke: #f87171 } .gap-ink { fill: #fca5a5 }
    .driver { fill: #94a3b8 } .incumbent { fill: #60a5fa } .successor { fill: #34d399 }
    .supervisor { fill: #a78bfa } .operator { fill: #fbbf24 } .other { fill: #22d3ee } .on-bar { fill: #111827 }
  }
";

impl Timeline {
    /// Returns the timeline as an SVG document, with the gap highlighted, and enlarged where it is thin.
    #[must_use]
    pub fn svg(&self) -> String {
        let panels = self.panels();
        let mut top = HEAD;
        let mut body = self.head();
        for panel in &panels {
            let (drawn, bottom) = self.panel(panel, top);
            body.push_str(&drawn);
            top = bottom + PANEL_GAP;
        }
        body.push_str(&self.legend(top));
        let (height, title) = (top + FOOT - PANEL_GAP, escape(&format!("Handoff {}", self.handoff)));
        let summary = escape(&self.summary());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-labelledby=\"title summary\">\n\
             <title id=\"title\">{title}</title>\n<desc id=\"summary\">{summary}</desc>\n<style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n{body}</svg>\n"
        )
    }

    fn head(&self) -> String {
        let title = text(MARGIN, 34.0, "title ink", &short(&format!("Handoff {}", self.handoff), HEAD_CHARS));
        let summary = text(MARGIN, 57.0, "ink", &short(&self.summary(), HEAD_CHARS));
        title + &summary + &text(MARGIN, 76.0, "dim small", &short(&self.heading(), HEAD_CHARS + 20))
    }

    /// Returns a panel and where it ends.
    fn panel(&self, panel: &Panel, top: f64) -> (String, f64) {
        let title = panel
            .title
            .as_ref()
            .map_or_else(String::new, |t| text(MARGIN, top + 16.0, "gap-ink", &capital(t)));
        let top = if panel.title.is_some() { top + PANEL_TITLE } else { top + 14.0 };
        #[allow(clippy::cast_precision_loss, reason = "a picture has few rows")]
        let bottom = top + ROW * panel.bars.len().max(1) as f64;
        let mut drawn = title + &panel.gap(self, top, bottom) + &panel.axis(top, bottom);
        let mut row = top;
        for bar in &panel.bars {
            drawn.push_str(&panel.bar(bar, row));
            row += ROW;
        }
        (drawn, bottom + AXIS)
    }

    fn legend(&self, top: f64) -> String {
        let mut actors: Vec<&Actor> = self.bars.iter().map(|bar| &bar.actor).collect();
        actors.sort();
        actors.dedup();
        let mut x = MARGIN;
        let mut drawn = String::new();
        for actor in actors {
            let name = short(&actor.to_string(), NAME_CHARS);
            drawn.push_str(&rect(x, top - 9.0, 11.0, 11.0, class(actor), ""));
            drawn.push_str(&text(x + 17.0, top, "dim small", &name));
            x += 40.0 + text_width(&name, 6.4);
        }
        if let Some(gap) = self.gap {
            let how = if gap.measured { "measured at the listeners" } else { "from the drain to its end" };
            drawn.push_str(&rect(x, top - 9.0, 11.0, 11.0, "gap", ""));
            drawn.push_str(&text(x + 17.0, top, "dim small", &format!("nobody accepts ({how})")));
        }
        drawn
    }
}

impl Panel {
    fn x(&self, us: u64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "pixels need less")]
        let part = us.saturating_sub(self.start_us) as f64 / (self.end_us - self.start_us) as f64;
        LEFT + (RIGHT - LEFT) * part.min(1.0)
    }

    fn bar(&self, bar: &Bar, top: f64) -> String {
        let (start, end) = (self.x(bar.start_us), self.x(bar.end_us));
        // One at the very end is drawn before it.
        let x = start.min(RIGHT - BAR_MIN);
        let width = (end - start).max(BAR_MIN);
        let baseline = top + ROW / 2.0 + 4.5;
        let tip = format!("{} ({}, pid {}): {}", bar.name, bar.actor, bar.pid, bar.label());
        let name = text(MARGIN, baseline, "ink", &short(&bar.name, NAME_CHARS));
        let actor = text_end(LEFT - 14.0, baseline, "dim small", &short(&bar.actor.to_string(), NAME_CHARS));
        let drawn = rect(x, top + (ROW - BAR) / 2.0, width, BAR, class(&bar.actor), &tip);
        let label = if width > BAR_WITH_LABEL {
            text_end(x + width - 6.0, baseline, "on-bar small number", &bar.label())
        } else {
            text(x + width + 6.0, baseline, "ink small number", &bar.label())
        };
        name + &actor + &drawn + &label
    }

    fn gap(&self, timeline: &Timeline, top: f64, bottom: f64) -> String {
        let Some(gap) = timeline.gap else { return String::new() };
        let (start, end) = (self.x(gap.start_us), self.x(gap.end_us));
        let band =
            rect(start, top - 2.0, (end - start).max(1.0), bottom - top + 4.0, "gap", "nobody accepts");
        let edges = line(start, top - 2.0, bottom + 2.0, "gap-edge")
            + &line(end, top - 2.0, bottom + 2.0, "gap-edge");
        if self.title.is_some() {
            return band;
        }
        let label = format!("gap {}", gap.label());
        // Over the band, as far right as the picture allows.
        let half = text_width(&label, 6.6) / 2.0;
        let x = f64::midpoint(start, end).clamp(LEFT + half, RIGHT - half);
        band + &edges + &text_mid(x, top - 8.0, "gap-ink small", &label)
    }

    fn axis(&self, top: f64, bottom: f64) -> String {
        let step = tick_step(self.end_us - self.start_us);
        let ticks = (0..).map(|n| n * step).take_while(|us| *us <= self.end_us - self.start_us);
        let drawn = ticks.map(|us| {
            let x = self.x(self.start_us + us);
            line(x, top, bottom, "grid")
                + &text_mid(x, bottom + 16.0, "dim small number", &tick_label(us, step))
        });
        let rule = format!("<path class=\"rule\" d=\"M{LEFT} {bottom}H{RIGHT}\"/>\n");
        drawn.collect::<String>() + &rule
    }
}

/// Returns the smallest round step, of the 1, 2, 5 series, that needs few enough ticks.
fn tick_step(len_us: u64) -> u64 {
    let steps =
        (0..).flat_map(|power| [1, 2, 5].map(|digit: u64| digit.saturating_mul(10u64.saturating_pow(power))));
    let mut fitting = steps.filter(|step| len_us / step <= TICKS_MAX);
    fitting.next().expect("the steps grow")
}

/// Returns a tick's time in the unit of the steps between the ticks, without digits that it does not have.
fn tick_label(us: u64, step: u64) -> String {
    let (unit, name) = match step {
        0..500 => (1, "µs"),
        500..500_000 => (1_000, "ms"),
        _ => (1_000_000, "s"),
    };
    if us.is_multiple_of(unit) {
        return format!("{} {name}", us / unit);
    }
    #[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
    let value = us as f64 / unit as f64;
    format!("{value:.1} {name}")
}

fn class(actor: &Actor) -> &'static str {
    match actor {
        Actor::Driver => "driver",
        Actor::Incumbent => "incumbent",
        Actor::Successor => "successor",
        Actor::Supervisor => "supervisor",
        Actor::Operator => "operator",
        Actor::Other(_) => "other",
    }
}

fn rect(x: f64, y: f64, width: f64, height: f64, class: &str, tip: &str) -> String {
    let tip = if tip.is_empty() { String::new() } else { format!("<title>{}</title>", escape(tip)) };
    format!(
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\">{tip}</rect>\n"
    )
}

fn line(x: f64, top: f64, bottom: f64, class: &str) -> String {
    format!("<path class=\"{class}\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>\n")
}

fn text(x: f64, y: f64, class: &str, text: &str) -> String {
    anchored("start", x, y, class, text)
}

fn text_mid(x: f64, y: f64, class: &str, text: &str) -> String {
    anchored("middle", x, y, class, text)
}

fn text_end(x: f64, y: f64, class: &str, text: &str) -> String {
    anchored("end", x, y, class, text)
}

fn anchored(anchor: &str, x: f64, y: f64, class: &str, text: &str) -> String {
    format!(
        "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n",
        escape(text)
    )
}

fn text_width(text: &str, per_char: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "labels are short")]
    let chars = text.chars().count() as f64;
    chars * per_char
}

fn short(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars - 1).chain(['…']).collect()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Escapes for XML, which has no place for control characters at all.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!([1, 312, 1_000, 1_204_000, 60_000_000].map(tick_step), [1, 50, 200, 200_000, 10_000_000]);
        for len in [0, 1, 7, 99, 123_456, u64::MAX / 2, u64::MAX] {
            assert!(len / tick_step(len) <= TICKS_MAX, "{len}");
        }
        assert_eq!(tick_label(400, 200), "400 µs");
        assert_eq!(tick_label(1_500, 500), "1.5 ms");
        assert_eq!(tick_label(20_000, 10_000), "20 ms");
        assert_eq!(tick_label(1_500_000, 500_000), "1.5 s");
    }

    #[test]
    fn a_text_cannot_leave_its_element() {
        assert_eq!(escape("<script>&\"\u{1b}"), "&lt;script&gt;&amp;&quot;\u{fffd}");
    }
}
