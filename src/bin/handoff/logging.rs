//! What happens, on standard error: one line an event, one write a line, no time stamps, as whoever keeps the log adds them.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, fmt as subscriber};

use crate::out;

/// Whether `--verbose` was given.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Makes every later [`to_stderr`] and [`quietly`] print everything.
pub fn be_verbose() {
    VERBOSE.store(true, Ordering::Relaxed);
}

/// Prints events of level `info` and above, or what HANDOFF_LOG or RUST_LOG asks for, as `handoff COMMAND: LEVEL: ...`.
pub fn to_stderr(command: &'static str) {
    install(command, Level::INFO);
}

/// As [`to_stderr`], for commands that say nothing where all is well.
pub fn quietly(command: &'static str) {
    install(command, Level::WARN);
}

fn install(command: &'static str, usual: Level) {
    let verbose = VERBOSE.load(Ordering::Relaxed);
    let chosen = ["HANDOFF_LOG", "RUST_LOG"].into_iter().any(|name| std::env::var_os(name).is_some());
    if !verbose && !chosen {
        let plain = tracing::subscriber::set_global_default(Plain { command, least: usual });
        return plain.expect("a command installs one once");
    }
    let level = if verbose { Level::DEBUG } else { usual };
    let filter = EnvFilter::try_from_env("HANDOFF_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(level.as_str()));
    let lines = Lines { command };
    subscriber().with_env_filter(filter).with_writer(std::io::stderr).event_format(lines).init();
}

/// Prints what is important enough. A link of a chain must start fast, and what can do more takes longer to set up than all the
/// link's own work.
struct Plain {
    command: &'static str,
    least: Level,
}

impl Subscriber for Plain {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.least
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.least.into())
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        out::say(self.command, word_for(event.metadata().level()), &text.0);
    }

    // No span is enabled.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event's message and fields, as [`Lines`] prints them.
struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // A string takes everything.
        let _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }
}

struct Lines {
    command: &'static str,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(out, "handoff {}: {}: ", self.command, word_for(event.metadata().level()))?;
        ctx.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

fn word_for(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A subscriber that keeps what an event comes to.
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().expect("no panic under it").push(text.0);
        }
    }

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic under it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn both_ways_print_the_same() {
        use tracing_subscriber::layer::SubscriberExt;
        let (kept, written) = (Arc::new(Mutex::new(vec![])), Written::default());
        let sink = written.clone();
        let full = subscriber()
            .with_writer(move || sink.clone())
            .event_format(Lines { command: "lock" })
            .finish()
            .with(Kept(Arc::clone(&kept)));
        tracing::subscriber::with_default(full, || {
            tracing::warn!("plain");
            tracing::warn!(path = %"/a b", count = 3, name = "n", is = true, "with fields");
            tracing::warn!(
                error = &std::io::Error::other("why") as &dyn std::error::Error,
                "with {}",
                "a cause"
            );
            tracing::warn!(only = ?Some(1));
        });
        let said =
            String::from_utf8(written.0.lock().expect("no panic under it").clone()).expect("it is text");
        let said: Vec<&str> =
            said.lines().map(|line| line.trim_start_matches("handoff lock: warning: ")).collect();
        assert_eq!(*kept.lock().expect("no panic under it"), said);
    }
}
