//! Bars for a terminal.

use std::fmt::Write;

use super::{Bar, Panel, Timeline};

/// The narrowest drawing, in columns: names, a bar and a length.
const WIDTH_MIN: usize = 48;
/// Names are cut to this many columns.
const NAME_MAX: usize = 16;
const LENGTH: usize = 9;
const RED: &str = "\u{1b}[31m";
const PLAIN: &str = "\u{1b}[0m";

/// How bars are drawn on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The terminal's columns.
    pub width: usize,
    /// Whether the gap is red.
    pub colour: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { width: 80, colour: false }
    }
}

impl Timeline {
    /// Returns the timeline as lines of text, none wider than asked for unless that is less than 48 columns.
    #[must_use]
    pub fn text(&self, options: &TextOptions) -> String {
        let width = options.width.max(WIDTH_MIN);
        let mut lines = vec![
            fit(&format!("handoff {}: {}", self.handoff, self.summary()), width),
            fit(&self.heading(), width),
        ];
        for panel in self.panels() {
            lines.push(String::new());
            lines.extend(panel.title.as_ref().map(|title| fit(title, width)));
            lines.extend(panel.bars.iter().map(|bar| self.line(bar, &panel, width, options.colour)));
        }
        if self.gap.is_some() {
            lines.push(String::new());
            lines.push(fit("█ within the gap  ▒ outside it", width));
        }
        lines.iter().fold(String::new(), |mut text, line| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
            text
        })
    }

    fn line(&self, bar: &Bar, panel: &Panel, width: usize, colour: bool) -> String {
        let column =
            |text: fn(&Bar) -> String| self.bars.iter().map(|bar| columns(&text(bar))).max().unwrap_or(0);
        let names = column(|bar| bar.name.clone()).min(NAME_MAX);
        let actors = column(|bar| bar.actor.to_string()).min(NAME_MAX);
        let room = width - names - actors - LENGTH - 5;
        format!(
            "{} {} |{}|{:>LENGTH$}",
            fit(&bar.name, names),
            fit(&bar.actor.to_string(), actors),
            self.cells(bar, panel, room, colour),
            bar.label(),
        )
    }

    /// Draws a bar: at least one cell, and all that it touches.
    fn cells(&self, bar: &Bar, panel: &Panel, room: usize, colour: bool) -> String {
        let scale = Scale { start_us: panel.start_us, len_us: panel.end_us - panel.start_us, room };
        let (first, end) = scale.cells(bar.start_us, bar.end_us);
        let gap = self.gap.filter(|gap| bar.start_us < gap.end_us && bar.end_us > gap.start_us);
        let (red_first, red_end) = gap.map_or((end, end), |gap| {
            scale.cells(gap.start_us.max(bar.start_us), gap.end_us.min(bar.end_us))
        });
        let cells = |glyph: &str, from: usize, to: usize| glyph.repeat(to.saturating_sub(from));
        let red = cells("█", red_first, red_end);
        let red = if colour && !red.is_empty() { format!("{RED}{red}{PLAIN}") } else { red };
        let before = cells(" ", 0, first) + &cells("▒", first, red_first);
        before + &red + &cells("▒", red_end, end) + &cells(" ", end, room)
    }
}

/// A stretch of time on a row of cells.
struct Scale {
    start_us: u64,
    len_us: u64,
    room: usize,
}

impl Scale {
    /// Returns the first cell that a stretch touches and the one behind its last.
    fn cells(&self, start_us: u64, end_us: u64) -> (usize, usize) {
        let first = self.cell(start_us, 0).min(self.room - 1);
        let end = self.cell(end_us, self.len_us - 1).clamp(first + 1, self.room);
        (first, end)
    }

    fn cell(&self, us: u64, round: u64) -> usize {
        let cells = (u128::from(us.saturating_sub(self.start_us)) * self.room as u128 + u128::from(round))
            / u128::from(self.len_us);
        usize::try_from(cells).unwrap_or(self.room)
    }
}

/// Returns the text in exactly so many columns: cut, or followed by spaces. Nothing in it can move the cursor.
fn fit(text: &str, width: usize) -> String {
    let mut fitted = String::new();
    let mut used = 0;
    for char in text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }) {
        if used + char_columns(char) > width {
            break;
        }
        used += char_columns(char);
        fitted.push(char);
    }
    fitted + &" ".repeat(width - used)
}

fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

/// Returns how many columns a terminal gives a character: names are ours or a newer version's, so the wide blocks of
/// East Asian scripts and emoji and the combining marks of European ones are enough.
fn char_columns(char: char) -> usize {
    match char {
        '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200f}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_to_its_columns() {
        assert_eq!(fit("drain", 7), "drain  ");
        assert_eq!(fit("drain", 3), "dra");
        assert_eq!(fit("日本語", 5), "日本 ");
        assert_eq!(fit("e\u{301}e", 1), "e\u{301}");
        assert_eq!(fit("a\u{1b}[2J", 9), "a\u{fffd}[2J    ");
    }

    #[test]
    fn a_bar_never_leaves_its_row_and_never_vanishes() {
        for (start, end) in [(0, 0), (0, 1), (999, 1000), (1000, 1000), (0, 1000), (500, 500), (2000, 3000)] {
            let (first, behind) = Scale { start_us: 0, len_us: 1000, room: 10 }.cells(start, end);
            assert!(first < behind && behind <= 10, "{start}..{end}: {first}..{behind}");
        }
        assert_eq!(Scale { start_us: 100, len_us: 100, room: 10 }.cells(120, 150), (2, 5));
    }
}
