//! How a swap goes, for a person at a terminal.

use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
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

/// Shows what it is told, in a thread of its own: a terminal that was stopped must not stop a swap in its gap.
pub struct Progress {
    /// None where nothing is shown.
    news: Option<Sender<News>>,
    thread: Option<JoinHandle<()>>,
    /// Whether it has made room for somebody else on the terminal.
    hushed: bool,
}

enum News {
    Phase(String),
    Tick(String),
    /// Clear the terminal, and say so.
    Hush(SyncSender<()>),
}

/// How long clearing the terminal may take: one that was stopped must not stop the swap.
const CLEARING: Duration = Duration::from_millis(200);

impl Progress {
    pub fn new(command: &'static str, when: When) -> Self {
        match (when, stderr().is_terminal()) {
            (When::Never, _) | (When::Auto, false) => Self { news: None, thread: None, hushed: false },
            (When::Always, false) => Self::shown_by(move |told| lines(command, told)),
            (When::Auto | When::Always, true) => Self::shown_by(draw),
        }
    }

    fn shown_by(show: impl FnOnce(&Receiver<News>) + Send + 'static) -> Self {
        let (news, told) = channel();
        let thread = Some(std::thread::spawn(move || show(&told)));
        Self { news: Some(news), thread, hushed: false }
    }

    /// Whether anything is shown.
    pub fn is_shown(&self) -> bool {
        self.news.is_some()
    }

    /// Whether it is one line that changes, rather than one for each phase.
    pub fn is_drawn(&self) -> bool {
        self.is_shown() && stderr().is_terminal()
    }

    /// Shows something that happened.
    pub fn tell(&self, what: &str) {
        if let Some(news) = &self.news {
            // As in `show`.
            let _ = news.send(News::Phase(what.to_owned()));
        }
    }

    /// Shows what is being waited for; only on a terminal.
    pub fn wait_for(&self, what: String) {
        if let Some(news) = &self.news {
            // As in `show`.
            let _ = news.send(News::Tick(what));
        }
    }

    /// Clears the terminal for somebody else, and shows nothing until it is to [go on](Self::go_on).
    pub fn hush(&mut self) {
        let Some(news) = self.news.as_ref().filter(|_| !self.hushed) else { return };
        self.hushed = true;
        let (cleared, clear) = sync_channel(1);
        if news.send(News::Hush(cleared)).is_ok() {
            // A terminal that takes so long does not show anything anyway.
            let _ = clear.recv_timeout(CLEARING);
        }
    }

    /// Shows again what it is told.
    pub fn go_on(&mut self) {
        self.hushed = false;
    }

    pub fn show(&self, event: &Event<'_>) {
        let Some(news) = self.news.as_ref().filter(|_| !self.hushed) else { return };
        let told = match event {
            // The summary says how it ended.
            Event::Phase("done") => return,
            Event::Phase(phase) => News::Phase((*phase).to_owned()),
            Event::Tick { .. } => News::Tick(message(event)),
        };
        // A thread that ended shows nothing any more, and nothing depends on it.
        let _ = news.send(told);
    }
}

impl Drop for Progress {
    /// The summary stands alone.
    fn drop(&mut self) {
        self.news = None;
        if let Some(thread) = self.thread.take() {
            // What it could not show is not worth a word.
            let _ = thread.join();
        }
    }
}

/// A line for each phase.
fn lines(command: &str, told: &Receiver<News>) {
    for news in told {
        match news {
            News::Phase(phase) => out::say(command, "info", &phase),
            News::Tick(_) => {}
            // Who asked may have gone on without it.
            News::Hush(cleared) => _ = cleared.send(()),
        }
    }
}

/// One line that changes.
fn draw(told: &Receiver<News>) {
    let mut shown: Option<ProgressBar> = None;
    for news in told {
        match news {
            News::Phase(text) | News::Tick(text) => {
                let bar = shown.get_or_insert_with(bar);
                bar.set_message(text);
                bar.tick();
            }
            News::Hush(cleared) => {
                clear(shown.take());
                // Who asked may have gone on without it.
                let _ = cleared.send(());
            }
        }
    }
    clear(shown);
}

fn clear(shown: Option<ProgressBar>) {
    if let Some(bar) = shown {
        bar.finish_and_clear();
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
