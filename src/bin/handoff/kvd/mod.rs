//! The demonstration daemon, and the tutorial of an integration.
//!
//! What a handoff asks of a daemon is in two files: this one is its life (find out the role, lock, read, announce, serve,
//! end) and `daemon.rs` has the hooks. The rest is an ordinary small store: `server` and `conn` (sockets), `commands` and `resp`
//! (the protocol), `data`, `store`, `commit`, `log` and `compact` (what is in memory and how it gets to the disk).

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
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use clap::ValueHint;
use handoff::drainable::ReadinessSnapshot;
use handoff::sys::reactor;
use handoff::sys::signals::Terminations;
use handoff::{DataDirLock, Incumbent, Inherited, Role, Served, Stopper, Successor, detect_role};

use crate::exit::{self, Exit};
use crate::logging;
use daemon::Daemon;
use data::Settings;
use fault::{Fault, Point};
use server::{Handle, Identity};
use store::{Opened, Warm};

/// Run a small key-value store that redis-cli can talk to, and that can be handed over while it serves
///
/// Every write is on disk before it is acknowledged. It is the demonstration daemon: its source is the
/// tutorial of an integration.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Listen on this address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6379")]
    listen: SocketAddr,

    /// Keep the data in this directory
    #[arg(long, value_name = "DIR", env = "HANDOFF_DATA_DIR", hide_env_values = true, value_hint = ValueHint::DirPath)]
    data_dir: PathBuf,

    /// Answer drivers on this Unix socket [default: control in the data directory]
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = ValueHint::FilePath)]
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
    #[arg(long, value_name = "LABEL", default_value = env!("CARGO_PKG_VERSION"), overrides_with = "version_label")]
    version_label: String,

    /// Compact a log of at least so many bytes when less than half of it is live
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, hide_short_help = true)]
    compact_from: u64,

    /// Fail on purpose, for demonstrations and tests
    #[arg(long, value_name = "FAULT", help = fail_help(), hide_short_help = true)]
    fail: Vec<Fault>,
}

const EXAMPLES: &str = "
  handoff kvd --data-dir data                     # then: redis-cli set name value
  handoff kvd --listen 127.0.0.1:0 --data-dir data --control /run/kv/control";

impl Args {
    fn control_path(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| self.data_dir.join("control"))
    }
}

fn fail_help() -> String {
    format!("Fail on purpose, for demonstrations and tests: {}", fault::NAMES)
}

/// Starts, or takes over from an incumbent, and serves until it is handed over or asked to stop.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    // First of all: it takes what was inherited out of the environment, and no other thread may run yet.
    let role = detect_role().context("find out whether to take over")?;
    logging::to_stderr("kvd");
    fault::strike(&args.fail, Point::Start);
    allow_many_connections(args.max_clients);
    let (daemon, incumbent) = match role {
        Role::ColdStart { inherited } => cold_start(&args, inherited)?,
        Role::Successor(successor) => match take_over(&args, successor) {
            Err(e) if is_undone(&e) => return Ok(exit::fatal_as("kvd", &e, Exit::RolledBack)),
            taken => taken?,
        },
    };
    let served = incumbent.serve(&daemon).context("go on serving")?;
    end(&daemon, served)
}

/// What serving takes: the daemon, and its part in handoffs.
type Running = (Daemon, Incumbent);

/// Starts where nobody serves: lock, read, serve.
fn cold_start(args: &Args, mut inherited: Inherited) -> anyhow::Result<Running> {
    let dir = &args.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let lock = DataDirLock::acquire_or_break_stale(dir).context("lock the data directory")?;
    let opened = Warm::open(dir, args.shards).and_then(Warm::finish).context("open the data")?;
    let listener = match inherited.take(&args.name) {
        Some(listener) => listener,
        None => reactor::listen(args.listen).with_context(|| format!("listen on {}", args.listen))?,
    };
    let incumbent = Incumbent::bind_cold_start(args.control_path(), lock)
        .and_then(|incumbent| incumbent.with_build_id(args.version_label.as_bytes()))
        .and_then(|incumbent| incumbent.with_listener(&args.name, &listener))
        .context("answer drivers")?;
    let server = start_server(args, opened, false, listener, "cold start")?;
    go_live(args, server, incumbent)
}

/// Takes over from an incumbent: warm up beside it, and when it has sealed, lock, read the rest, and serve once granted.
fn take_over(args: &Args, successor: Successor) -> anyhow::Result<Running> {
    let successor = successor.handshake(args.version_label.as_bytes()).context("speak with the driver")?;
    // The incumbent still serves and writes. What is read now need not be read in the gap.
    let warm = Warm::open(&args.data_dir, args.shards).context("read the data")?;
    fault::strike(&args.fail, Point::Warm);
    let mut begun = successor.wait_for_begin().context("wait for the incumbent")?;

    fault::strike(&args.fail, Point::Begun);
    let lock = DataDirLock::acquire(&args.data_dir).context("lock the data directory")?;
    let opened = warm.finish().context("open the data")?;
    let listener =
        begun.take_listener(&args.name).with_context(|| format!("find a listener named {}", args.name))?;
    let readiness = ReadinessSnapshot {
        listening_on: vec![address_of(&listener)?],
        healthz_ok: !args.fail.contains(&Fault::Unhealthy),
        advertised_revision_per_shard: advertised(args, &opened),
    };
    let fingerprint = opened.writer.position().fingerprint();
    // Without a seal it died first, and this is a start as after any crash.
    let sealed = begun.sealed().is_some();
    // Everything but accepting is done before the grant, so that the gap is short.
    let server = start_server(args, opened, sealed, listener, "successor")?;
    let incumbent = begun
        .with_fingerprint(fingerprint)
        .announce_and_bind(readiness, args.control_path(), lock)
        .context("take over")?;
    fault::strike(&args.fail, Point::Granted);
    go_live(args, server, incumbent)
}

/// Whether the handoff was undone, and the incumbent serves: in a chain that this process has ended, nobody else says so.
fn is_undone(e: &anyhow::Error) -> bool {
    matches!(e.downcast_ref(), Some(handoff::Error::Aborted { .. }))
}

fn advertised(args: &Args, opened: &Opened) -> Vec<u64> {
    let stale = u64::from(args.fail.contains(&Fault::Stale));
    opened.state.revisions().iter().map(|revision| revision.saturating_sub(stale)).collect()
}

/// A running server, and what its SHUTDOWN command calls.
type Server = (Handle, ShutdownCommand);

/// Starts the server, which accepts nothing yet.
fn start_server(
    args: &Args,
    opened: Opened,
    sealed: bool,
    listener: TcpListener,
    role: &'static str,
) -> anyhow::Result<Server> {
    let stop = ShutdownCommand::default();
    let theirs = stop.clone();
    let config = server::Config {
        settings: Settings {
            dir: args.data_dir.clone(),
            compact_from: args.compact_from,
            max_memory: args.max_memory << 20,
        },
        identity: Identity { build_id: args.version_label.clone(), role },
        max_clients: args.max_clients,
        loses_a_write: args.fail.contains(&Fault::LoseAWrite),
        on_shutdown: Box::new(move || theirs.stop()),
    };
    let handle = server::start(opened, sealed, vec![listener], config, die).context("start serving")?;
    Ok((handle, stop))
}

/// Accepts: from here on, writes are acknowledged.
fn go_live(args: &Args, server: Server, incumbent: Incumbent) -> anyhow::Result<Running> {
    let (handle, shutdown) = server;
    // Until here a signal simply ends the process, as nobody depends on it yet.
    let terminations = Terminations::catch().context("catch signals")?;
    stop_on_signals(terminations, incumbent.stopper());
    shutdown.is(incumbent.stopper());
    let address = handle.accept(incumbent.generation()).context("accept connections")?;
    tracing::info!("kvd {} serves on {address}", args.version_label);
    fault::arm(&args.fail);
    Ok((Daemon::new(handle, args.fail.clone()), incumbent))
}

fn address_of(listener: &TcpListener) -> anyhow::Result<String> {
    Ok(listener.local_addr().context("read the listener's address")?.to_string())
}

/// What the SHUTDOWN command calls; it exists before there is anything to stop.
#[derive(Clone, Default)]
struct ShutdownCommand(Arc<OnceLock<Stopper>>);

impl ShutdownCommand {
    fn is(&self, stopper: Stopper) {
        self.0.set(stopper).expect("it is set once");
    }

    fn stop(&self) {
        self.0.get().iter().for_each(|stopper| stopper.stop());
    }
}

/// The event loop cannot go on: what is on disk is known only after reading it again, which a new process does.
fn die(e: handoff::Error) {
    let code = exit::fatal("kvd", &anyhow::Error::from(e).context("go on serving"));
    std::process::exit(code as i32);
}

/// Ends in order, in the way that its last handoff asks for.
fn end(daemon: &Daemon, served: Served) -> anyhow::Result<Exit> {
    match served {
        Served::Committed { handoff } => {
            tracing::info!("handed over in {handoff}");
            daemon.say_goodbye();
            Ok(Exit::Done)
        }
        Served::Retired { handoff } => {
            tracing::info!("retired in {handoff}: the data is sealed");
            daemon.say_goodbye();
            Ok(Exit::Done)
        }
        Served::SteppedDown { reason } => {
            tracing::warn!("stepped down: {reason}");
            daemon.say_goodbye();
            Ok(Exit::RolledBack)
        }
        Served::Superseded(successor) => {
            tracing::warn!("the successor has made the data its own and died: becoming its program");
            Err(successor.exec()).context("become the successor's program")
        }
        Served::Stopped => {
            tracing::info!("stopping");
            daemon.stop().context("stop in order")?;
            Ok(Exit::Done)
        }
    }
}

fn stop_on_signals(mut terminations: Terminations, stopper: Stopper) {
    std::thread::spawn(move || {
        while let Ok(signal) = terminations.wait() {
            tracing::info!("asked to stop: {}", signal.name());
            stopper.stop();
        }
    });
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
