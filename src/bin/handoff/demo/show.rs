//! What a demonstration shows while it runs.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::report::{Report, Row};
use crate::out;

/// Shows one line an outcome, and on a terminal also what is going on.
pub struct Show {
    /// Draws on standard error, and nothing where that is no terminal.
    bar: ProgressBar,
    json: bool,
    terminal: bool,
    /// Unless NO_COLOR asks for none.
    colours: bool,
}

impl Show {
    /// Returns a show of so many scenarios.
    pub fn new(json: bool, scenarios: usize) -> Self {
        let bar = ProgressBar::new(scenarios as u64);
        let style = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg} ({elapsed})")
            .expect("the template is a literal");
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        let terminal = if json { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { bar, json, terminal, colours }
    }

    /// Says what is being done.
    pub fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Says something that stays.
    pub fn say(&self, line: &str) {
        if self.json {
            // Standard output is for the object at the end; this draws only on a terminal.
            self.bar.println(line);
            return;
        }
        // A reader that has gone misses the rest; the exit code still tells.
        self.bar.suspend(|| drop(out::line(line)));
    }

    /// Says what came of a scenario.
    pub fn outcome(&self, row: &Row) {
        let mark = match (self.terminal, self.colours, row.as_expected) {
            (true, true, true) => "\u{1b}[32m✓\u{1b}[0m",
            (true, true, false) => "\u{1b}[31m✗\u{1b}[0m",
            (true, false, true) => "✓",
            (true, false, false) => "✗",
            (false, _, true) => "ok    ",
            (false, _, false) => "FAILED",
        };
        self.say(&format!("{mark} {}", row.line()));
        self.bar.inc(1);
    }

    /// Shows all of it, and what to do next.
    pub fn end(&self, report: &Report, hint: &str) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        // As above.
        let _ = match self.json {
            true => out::json(report)?,
            false => out::text(&format!("\n{report}\n{hint}\n"))?,
        };
        Ok(())
    }
}
