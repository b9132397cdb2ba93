//! How a swap goes, for a person at a terminal.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use handoff::supervisor::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::duration::show_ms;
use crate::out;

/// When to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// On a terminal
    Auto,
    /// Also elsewhere, a line for each phase
    Always,
    /// Not at all
    Never,
}

/// Where it is shown.
pub enum Progress {
    /// One line that changes, on a terminal.
    Bar(ProgressBar),
    /// A line for each phase.
    Lines,
    /// Nowhere.
    Quiet,
}

impl Progress {
    pub fn new(when: When) -> Self {
        match (when, stderr().is_terminal()) {
            (When::Never, _) | (When::Auto, false) => Self::Quiet,
            (When::Always, false) => Self::Lines,
            (When::Auto | When::Always, true) => Self::Bar(bar()),
        }
    }

    pub fn show(&self, event: &Event<'_>) {
        match (self, event) {
            (Self::Quiet, _) | (_, Event::Phase("done")) | (Self::Lines, Event::Tick { .. }) => {}
            (Self::Lines, Event::Phase(phase)) => out::say("swap", "info", phase),
            (Self::Bar(bar), event) => {
                bar.set_message(message(event));
                bar.tick();
            }
        }
    }
}

impl Drop for Progress {
    /// The summary stands alone.
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("it is a constant"));
    bar
}

fn message(event: &Event<'_>) -> String {
    match event {
        Event::Phase(phase) => (*phase).to_owned(),
        Event::Tick { phase, open_conns, queue, left } => {
            let conns = open_conns.map(|n| format!("{n} connections left"));
            let queue = queue.map(|(len, limit)| format!("accept queue {len}/{limit}"));
            let left = left.map(|left| format!("{} left", show_ms(whole_tenths(left))));
            let parts: Vec<String> = [conns, queue, left].into_iter().flatten().collect();
            format!("{phase}: {}", parts.join(", "))
        }
    }
}

fn whole_tenths(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX) / 100 * 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_says_what_is_known() {
        let left = Some(Duration::from_millis(24_123));
        let tick = Event::Tick { phase: "draining", open_conns: Some(12), queue: Some((3, 4096)), left };
        assert_eq!(message(&tick), "draining: 12 connections left, accept queue 3/4096, 24.1s left");
    }
}
