mod commands;
mod commit;
mod compact;
mod conn;
mod daemon;
mod data;
#[cfg(test)]
mod drain_tests;
mod fault;
mod log;
mod resp;
mod server;
mod store;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use handoff::sys::reactor;
use handoff::sys::signals::Terminations;

use crate::exit::Exit;
use crate::logging;
use daemon::Daemon;
use data::Settings;
use fault::{Fault, Point};
use store::Warm;

/// Run a small key-value store that redis-cli can talk to, and that can be handed over while it serves
///
/// Every write is on disk before it is acknowledged. It is the demonstration daemon: its source is the
/// tutorial of an integration.
#[derive(clap::Args)]
pub struct Args {
    /// Listen on this address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6379")]
    listen: SocketAddr,

    /// Keep the data in this directory
    #[arg(long, value_name = "DIR", env = "HANDOFF_DATA_DIR")]
    data_dir: PathBuf,

    /// Answer drivers on this Unix socket
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL")]
    control: Option<PathBuf>,

    /// Call the listening socket this in the fd table
    #[arg(long, value_name = "NAME", default_value = "resp")]
    name: String,

    /// Count revisions in so many shards; must be what the data directory has, if it has any
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    shards: Option<u32>,

    /// Accept so many connections at a time
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_clients: usize,

    /// Refuse writes when the data takes more than this
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_memory: u64,

    /// Call this build so in INFO and in handoffs
    #[arg(long, value_name = "LABEL", default_value = env!("CARGO_PKG_VERSION"))]
    version_label: String,

    /// Compact a log of at least so many bytes when less than half of it is live
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, hide_short_help = true)]
    compact_from: u64,

    /// Fail on purpose, for demonstrations and tests
    #[arg(long, value_name = "FAULT", help = fail_help(), hide_short_help = true)]
    fail: Vec<Fault>,
}

fn fail_help() -> String {
    format!("Fail on purpose, for demonstrations and tests: {}", fault::NAMES)
}

/// Serves until a signal, a SHUTDOWN, or a failure that there is no way on from.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    logging::to_stderr("kvd");
    fault::strike(&args.fail, Point::Start);
    allow_many_connections(args.max_clients);
    let terminations = Terminations::catch().context("catch signals")?;
    std::fs::create_dir_all(&args.data_dir).with_context(|| format!("create {}", args.data_dir.display()))?;
    if args.control.is_some() {
        bail!("listen for drivers: handoffs need the library's part that is not there yet");
    }
    let warm = Warm::open(&args.data_dir, args.shards).context("read the data")?;
    let listener = reactor::listen(args.listen).with_context(|| format!("listen on {}", args.listen))?;
    let opened = warm.finish().context("open the data")?;
    serve(&args, opened, false, vec![listener], terminations)
}

/// Some descriptors besides those of the clients.
const OWN_DESCRIPTORS: u64 = 64;

fn allow_many_connections(max_clients: usize) {
    let needed = max_clients as u64 + OWN_DESCRIPTORS;
    match reactor::allow_open_files(needed) {
        Ok(allowed) if allowed < needed => {
            tracing::warn!(
                "--max-clients {max_clients} needs {needed} open files, and {allowed} are allowed"
            );
        }
        Ok(_) => {}
        Err(e) => tracing::warn!("unable to read the limit of open files: {e}"),
    }
}

/// What ends the process.
enum Ending {
    /// Somebody asked for it: a signal's name, or SHUTDOWN.
    Asked(&'static str),
    /// The event loop cannot go on.
    Failed(handoff::Error),
}

fn serve(
    args: &Args,
    opened: store::Opened,
    sealed: bool,
    listeners: Vec<TcpListener>,
    terminations: Terminations,
) -> anyhow::Result<Exit> {
    let (end, endings) = mpsc::channel();
    let config = server::Config {
        settings: Settings {
            dir: args.data_dir.clone(),
            compact_from: args.compact_from,
            max_memory: args.max_memory << 20,
        },
        identity: server::Identity {
            build_id: args.version_label.clone(),
            role: "cold start",
            generation: Arc::new(Mutex::new(None)),
        },
        max_clients: args.max_clients,
        on_shutdown: ask_to_end(end.clone()),
    };
    let failed = end.clone();
    let on_end = move |e| drop(failed.send(Ending::Failed(e)));
    let address = listeners[0].local_addr().context("read the address of the listener")?;
    let handle = server::start(opened, sealed, listeners, config, on_end).context("start serving")?;
    handle.accept().context("accept connections")?;
    tracing::info!("kvd {} serves on {address}", args.version_label);
    fault::arm(&args.fail);
    watch_signals(terminations, end);
    let daemon = Daemon::new(handle, args.fail.clone());
    end_of(&daemon, &endings)
}

/// Waits for the end of the process and makes it an orderly one.
fn end_of(daemon: &Daemon, endings: &Receiver<Ending>) -> anyhow::Result<Exit> {
    match endings.recv().context("wait for the end")? {
        Ending::Asked(by) => {
            tracing::info!("stopping: {by}");
            daemon.stop().context("stop in order")?;
            Ok(Exit::Done)
        }
        Ending::Failed(e) => Err(e).context("go on serving"),
    }
}

/// What a SHUTDOWN does. If nobody listens any more, the process is ending already.
fn ask_to_end(end: Sender<Ending>) -> Box<dyn Fn() + Send> {
    Box::new(move || drop(end.send(Ending::Asked("SHUTDOWN"))))
}

fn watch_signals(mut terminations: Terminations, end: Sender<Ending>) {
    std::thread::spawn(move || {
        while let Ok(signal) = terminations.wait() {
            if end.send(Ending::Asked(signal.name())).is_err() {
                return;
            }
        }
    });
}
