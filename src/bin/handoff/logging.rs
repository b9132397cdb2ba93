//! What happens, on standard error: one line an event, one write a line, no time stamps, as whoever keeps the log adds them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, fmt as subscriber};

/// Whether `--verbose` was given.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Makes every later [`to_stderr`] and [`quietly`] print everything.
pub fn be_verbose() {
    VERBOSE.store(true, Ordering::Relaxed);
}

/// Prints events of level `info` and above, or what HANDOFF_LOG or RUST_LOG asks for, as `handoff COMMAND: LEVEL: ...`.
pub fn to_stderr(command: &'static str) {
    install(command, "info");
}

/// As [`to_stderr`], for commands that say nothing where all is well.
pub fn quietly(command: &'static str) {
    install(command, "warn");
}

fn install(command: &'static str, usual: &str) {
    let level = if VERBOSE.load(Ordering::Relaxed) { "debug" } else { usual };
    let filter = EnvFilter::try_from_env("HANDOFF_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(level));
    let lines = Lines { command };
    subscriber().with_env_filter(filter).with_writer(std::io::stderr).event_format(lines).init();
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
