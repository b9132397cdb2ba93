mod parse;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::ValueHint;
use handoff::chain::{CONTROL_VAR, DATA_DIR_VAR};
use handoff::drainable::ReadinessSnapshot;
use handoff::listen::{self, Listen};
use handoff::sys::brood;
use handoff::sys::signals::Signals;
use handoff::sys::spawn::Program;
use handoff::wrap::ready::Ready;
use handoff::wrap::sequence::Sequence;
use handoff::wrap::sockets::{Layout, Sockets};
use handoff::wrap::{Drain, Keeper, Settings, orphans};
use handoff::{
    DataDirLock, Error, HandshookSuccessor, Incumbent, Inherited, Role, Served, Stopper, Successor,
    detect_role, notify,
};

use crate::exit::{self, Exit};
use crate::{duration, link, logging};

/// Run a daemon that knows nothing of handoff, and let it take part in swaps
///
/// This process speaks the protocol for DAEMON, which it starts with the listening sockets and the data directory's lock. In a swap, the
/// incumbent's DAEMON is asked to end (--drain), and when all of its processes are gone the successor's is started; when that serves (--ready),
/// the handoff is committed. If anything fails before that, the incumbent starts its DAEMON again.
///
/// In DAEMON's arguments and in --env, {NAME} stands for the descriptor number of the socket NAME, and {NAME.addr}, {NAME.host} and {NAME.port} for
/// where it listens. Exit codes below are those of this command itself; otherwise it ends as DAEMON did, with the same code or by the same
/// signal.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES), override_usage = "handoff wrap [OPTIONS] [--] DAEMON [ARGS]...")]
pub struct Args {
    /// Answer drivers on this Unix socket [default: control in the data directory]
    #[arg(long, value_name = "PATH", env = CONTROL_VAR, hide_env_values = true, value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,

    /// The directory that the daemon writes to, where the lock and the owner record are; with --overlap, one for this command alone
    #[arg(long, value_name = "DIR", env = DATA_DIR_VAR, hide_env_values = true, value_hint = ValueHint::DirPath)]
    data_dir: PathBuf,

    /// Bind a socket and call it NAME, unless it is inherited; may be given several times
    #[arg(long, value_name = "NAME=ADDRESS[,OPTION...]")]
    listen: Vec<Listen>,

    /// Put a socket at this descriptor
    #[arg(long, value_name = "NAME=NUMBER", value_parser = parse::place)]
    fd: Vec<(String, i32)>,

    /// Do not tell the daemon of its sockets by LISTEN_FDS
    #[arg(long)]
    no_listen_fds: bool,

    /// Make a socket the daemon's standard input
    #[arg(long, value_name = "NAME")]
    stdin: Option<String>,

    /// Set a variable for the daemon; may be given several times
    #[arg(long, value_name = "NAME=TEMPLATE", value_parser = parse::variable)]
    env: Vec<(String, String)>,

    /// Ask the daemon to end by these signals, with times to wait in between: QUIT,5s,TERM. With KILL at the end, what is left is killed
    #[arg(long, value_name = "SIGNALS", default_value = "TERM", value_parser = parse::sequence)]
    drain: Sequence,

    /// Ask the daemon to end by this command, for sh -c, which has its pid in HANDOFF_PID
    #[arg(long, value_name = "COMMAND", conflicts_with = "drain")]
    drain_cmd: Option<String>,

    /// What must hold before the daemon serves; may be given several times [default: tcp and unix, for the listeners there are]
    #[arg(long, value_name = "SPEC", value_parser = parse::ready, long_help = ready_help())]
    ready: Vec<Ready>,

    /// How long the daemon may take to be ready
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_some)]
    ready_timeout: Duration,

    /// Before the incumbent drains, run this command, for sh -c, with the daemon's sockets and variables; it must succeed
    #[arg(long, value_name = "COMMAND")]
    check: Option<String>,

    /// While it serves on trial, probe the daemon so again and again; a failure undoes the trial
    #[arg(long, value_name = "SPEC", value_parser = parse::ready)]
    health: Option<Ready>,

    /// Between two probes of --health
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse_some)]
    health_interval: Duration,

    /// How long a probe of --health may take; one that takes longer has failed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_some)]
    health_timeout: Duration,

    /// Start the daemon before the incumbent's drains: for daemons without data of their own
    #[arg(long)]
    overlap: bool,

    /// Where a daemon has the lock whose own wrap was killed, end it as --drain says, and start
    #[arg(long)]
    take_over: bool,

    /// How long the daemon has to end when this command is asked to stop, before it is killed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    stop_grace: Duration,

    /// Call this build so in handoffs [default: the daemon's build id]
    #[arg(long, value_name = "LABEL")]
    version_label: Option<String>,

    /// Write a newline to this descriptor and close it when the daemon serves, as s6 expects
    #[arg(long, value_name = "NUMBER")]
    ready_fd: Option<i32>,

    /// The daemon and its arguments
    #[arg(value_name = "DAEMON", required = true, trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    daemon: Vec<OsString>,
}

const EXAMPLES: &str = "
  handoff wrap --data-dir /run/web --overlap --listen http=:80 -- my-web-server
  handoff wrap --data-dir /var/lib/app --listen http=127.0.0.1:8000 --ready http:/health \\
    -- my-web-server --fd {http}
  handoff swap --control /run/web/control handoff wrap --data-dir /run/web --overlap -- my-web-server";

fn ready_help() -> String {
    "What must hold before the daemon serves; may be given several times, and then all must hold\n\n\
     notify: it says READY=1 on its NOTIFY_SOCKET.\n\
     fd[:N]: it writes a line to descriptor N, or to the one that {ready} stands for.\n\
     tcp[:NAME], unix[:NAME]: it accepts a connection, which is more than that a connection can be made.\n\
     http:PATH[=STATUS][@NAME]: it answers with this status, or with any from 200 to 399.\n\
     exec:COMMAND: this command of sh -c succeeds.\n\
     log:REGEX: it writes such a line to standard output or error.\n\
     alive:TIME: it lives for so long, which proves little.\n\n\
     By default: tcp and unix for all stream listeners, and alive:1s where there is none."
        .to_owned()
}

impl Args {
    fn control_path(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| parse::control_in(&self.data_dir))
    }

    fn drain(&self) -> Drain {
        match &self.drain_cmd {
            Some(command) => Drain::Command(command.clone()),
            None => Drain::Sequence(self.drain.clone()),
        }
    }

    fn settings(&self, program: Program, sockets: &Sockets) -> Settings {
        let has =
            |is_inet: bool| sockets.iter().any(|socket| socket.is_stream() && socket.is_inet() == is_inet);
        let ready =
            if self.ready.is_empty() { parse::usual(has(true), has(false)) } else { self.ready.clone() };
        Settings {
            program,
            args: self.daemon[1..].to_vec(),
            env: self.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            layout: Layout {
                listen_fds: !self.no_listen_fds,
                at: self.fd.clone(),
                stdin: self.stdin.clone(),
            },
            drain: self.drain(),
            ready,
            ready_timeout: self.ready_timeout,
            overlap: self.overlap,
            stop_grace: self.stop_grace,
            data_dir: self.data_dir.clone(),
        }
    }

    /// What this build is called: the label, or the build id of the daemon's program.
    fn build_id(&self, program: &Program) -> Vec<u8> {
        match &self.version_label {
            Some(label) => label.clone().into_bytes(),
            None => program.build_id().ok().and_then(|id| from_hex(&id)).unwrap_or_default(),
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Starts, or takes over from an incumbent, and serves until it is handed over, asked to stop, or the daemon ends.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    // First of all: it takes what was inherited out of the environment, and no other thread may run yet.
    let role = detect_role().context("find out whether to take over")?;
    logging::to_stderr("wrap");
    let program = match Program::open(Path::new(&args.daemon[0])) {
        Ok(program) => program,
        Err(e) => return Ok(link::unusable("wrap", e)),
    };
    let (keeper, incumbent) = match role {
        Role::ColdStart { inherited } => match cold_start(&args, program, inherited)? {
            Ok(running) => running,
            Err(exit) => return Ok(exit),
        },
        Role::Successor(successor) => match take_over(&args, program, successor) {
            Ok(running) => running,
            Err(e) => return Ok(fail_undone(&e)),
        },
    };
    serve(&args, &keeper, incumbent)
}

/// What serving takes: the daemon's keeper, and its part in handoffs.
type Running = (Arc<Keeper>, Incumbent);

fn fail_undone(e: &anyhow::Error) -> Exit {
    // One that was said already is not said again.
    e.downcast_ref::<Exit>().copied().unwrap_or_else(|| exit::fatal_as("wrap", e, undone(e)))
}

fn undone(e: &anyhow::Error) -> Exit {
    match e.downcast_ref() {
        Some(Error::TimedOut { .. }) => Exit::TimedOut,
        _ => Exit::RolledBack,
    }
}

/// Starts where nobody serves.
fn cold_start(
    args: &Args,
    program: Program,
    mut inherited: Inherited,
) -> anyhow::Result<Result<Running, Exit>> {
    let dir = &args.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let lock = lock(args)?;
    let passed =
        inherited.names().into_iter().filter_map(|name| Some((name.clone(), inherited.take_fd(&name)?)));
    let sockets = Sockets::new(all_sockets(args, passed.collect())?).context("use the listeners")?;
    let build_id = args.build_id(&program);
    let settings = args.settings(program, &sockets);
    let keeper = Keeper::new(settings, sockets).context("prepare the daemon")?;
    keeper.pass_lock(lock.try_clone_fd()?);
    keeper.watch(Signals::catch().context("catch signals")?)?;
    // Before the daemon starts: it writes from then on.
    let mut incumbent = Incumbent::bind_cold_start(args.control_path(), lock)
        .and_then(|incumbent| incumbent.with_build_id(build_id))
        .context("answer drivers")?;
    for socket in keeper.sockets().iter() {
        incumbent = incumbent.with_listener(&socket.name, socket.as_fd()).context("answer drivers")?;
    }
    if let Err(e) = keeper.start(&mut || Ok(())) {
        return Ok(Err(not_started(&keeper, e)));
    }
    Ok(Ok((keeper, incumbent)))
}

fn lock(args: &Args) -> anyhow::Result<DataDirLock> {
    let dir = &args.data_dir;
    match DataDirLock::acquire_or_break_stale(dir) {
        Err(Error::Locked { .. }) if args.take_over => {
            orphans::end(dir, &args.drain, args.stop_grace)
                .map_err(|e| exit::attempt(e, "end the daemon that has the lock"))?;
            DataDirLock::acquire_or_break_stale(dir)
        }
        locked => locked,
    }
    .context("lock the data directory")
}

/// Says why there is no daemon, and ends as it did.
fn not_started(keeper: &Keeper, e: Error) -> Exit {
    let did_end = matches!(e, Error::Refused { .. });
    let asked = keeper.was_asked_to_end();
    let exit =
        exit::fatal_as("wrap", &anyhow::Error::from(e).context("start the daemon"), Exit::NothingServing);
    match keeper.ended() {
        Some(status) if did_end && !asked && !status.success() => brood::end_as(status),
        _ => exit,
    }
}

/// Takes over from an incumbent: check beside it, and when its daemon is gone, lock, start, and serve when that is granted.
fn take_over(args: &Args, program: Program, successor: Successor) -> anyhow::Result<Running> {
    let build_id = args.build_id(&program);
    let successor = successor.handshake(build_id).context("speak with the driver")?;
    let keeper = prepare(args, program, &successor)?;
    if let Some(command) = &args.check {
        keeper.check(command).context("go on")?;
    }
    if args.overlap {
        keeper.is_beside_another(true);
        keeper.watch(Signals::catch().context("catch signals")?)?;
        keeper.start(&mut || Ok(())).context("start the daemon beside the incumbent's")?;
    }
    let taken = begin(args, &keeper, successor);
    if taken.is_err() {
        keeper.give_up();
    }
    taken.map(|incumbent| (keeper, incumbent))
}

fn prepare(args: &Args, program: Program, successor: &HandshookSuccessor) -> anyhow::Result<Arc<Keeper>> {
    let copies = successor.listeners().map(|(name, fd)| Ok((name.to_owned(), fd.try_clone_to_owned()?)));
    let copies = copies.collect::<std::io::Result<_>>().context("copy the listeners")?;
    let sockets = Sockets::new(all_sockets(args, copies)?).context("use the listeners")?;
    let settings = args.settings(program, &sockets);
    Keeper::new(settings, sockets).context("prepare the daemon")
}

fn begin(args: &Args, keeper: &Arc<Keeper>, successor: HandshookSuccessor) -> anyhow::Result<Incumbent> {
    keeper.is_expendable(true);
    let begun = successor.wait_for_begin().context("wait for the incumbent");
    keeper.is_expendable(false);
    let mut begun = begun?;
    let lock = DataDirLock::acquire(&args.data_dir).context("lock the data directory")?;
    keeper.is_beside_another(false);
    if !args.overlap {
        keeper.pass_lock(lock.try_clone_fd()?);
        keeper.watch(Signals::catch().context("catch signals")?)?;
        if let Err(e) = keeper.start(&mut || begun.check()) {
            let why = e.to_string();
            let e = anyhow::Error::from(e).context("start the daemon");
            let exit = undone(&e);
            // Said first: when the incumbent hears of it, this process has no time left.
            let exit = exit::fatal_as("wrap", &e, exit);
            begun.give_up(why);
            return Err(exit.into());
        }
    }
    let readiness = ReadinessSnapshot {
        listening_on: keeper.sockets().iter().map(|socket| socket.kind.local_address.clone()).collect(),
        healthz_ok: !keeper.has_fallen(),
        // What was sealed is what there is: the daemon that wrote it is gone, and this one does not say what it found.
        advertised_revision_per_shard: begun
            .sealed()
            .map(|sealed| sealed.last_revision_per_shard.clone())
            .unwrap_or_default(),
    };
    let mut incumbent = begun.announce_and_bind(readiness, args.control_path(), lock).context("take over")?;
    for socket in keeper.sockets().iter() {
        incumbent = incumbent.with_listener(&socket.name, socket.as_fd()).context("answer drivers")?;
    }
    Ok(incumbent)
}

/// The sockets that were asked for in their order, bound where they did not come, and then the others that came.
fn all_sockets(args: &Args, mut passed: Vec<(String, OwnedFd)>) -> anyhow::Result<Vec<(String, OwnedFd)>> {
    let is_there = |name: &str| passed.iter().any(|(other, _)| other == name);
    let mut all =
        listen::bind_missing(&args.listen, is_there).map_err(|e| exit::attempt(e, "bind the listeners"))?;
    all.append(&mut passed);
    let asked: Vec<&str> =
        args.listen.iter().flat_map(|listen| &listen.sockets).map(|spec| spec.name.as_str()).collect();
    all.sort_by_key(|(name, _)| asked.iter().position(|asked| asked == name).unwrap_or(usize::MAX));
    Ok(all)
}

fn serve(args: &Args, keeper: &Arc<Keeper>, incumbent: Incumbent) -> anyhow::Result<Exit> {
    keeper.reports_to(incumbent.stopper());
    if let Some(health) = args.health.clone() {
        watch_health(keeper, incumbent.stopper(), health, (args.health_interval, args.health_timeout));
    }
    tell_ready(args);
    let served = match incumbent.serve(keeper) {
        Ok(served) => served,
        Err(e) => {
            keeper.kill();
            let e = anyhow::Error::from(e).context("go on serving");
            return Ok(exit::fatal_as("wrap", &e, Exit::NothingServing));
        }
    };
    end(keeper, served)
}

/// Whoever started this learns that it serves.
fn tell_ready(args: &Args) {
    notify::tell_ready("the daemon serves");
    if let Some(number) = args.ready_fd
        && let Err(error) = notify::say_ready(number)
    {
        tracing::warn!(number, %error, "unable to say that the daemon serves");
    }
    tracing::info!("{} serves", Path::new(&args.daemon[0]).display());
}

/// Ends in the way that the last handoff asks for, or as the daemon did.
fn end(keeper: &Keeper, served: Served) -> anyhow::Result<Exit> {
    match served {
        Served::Committed { handoff } => {
            tracing::info!("handed over in {handoff}");
            Ok(Exit::Done)
        }
        Served::Retired { handoff } => {
            tracing::info!("retired in {handoff}: the data is synced");
            Ok(Exit::Done)
        }
        Served::SteppedDown { reason } => {
            tracing::warn!("stepped down: {reason}");
            Ok(Exit::RolledBack)
        }
        Served::Superseded(successor) => {
            tracing::warn!("the successor has made the data its own and died: becoming its program");
            Err(successor.exec()).context("become the successor's program")
        }
        Served::Stopped => {
            keeper.stop();
            match keeper.ended() {
                Some(status) if status.success() => Ok(Exit::Done),
                Some(status) => brood::end_as(status),
                None if keeper.has_fallen() => Ok(Exit::NothingServing),
                None => Ok(Exit::Done),
            }
        }
    }
}

/// Probes for as long as the trial lasts.
fn watch_health(keeper: &Arc<Keeper>, stopper: Stopper, health: Ready, times: (Duration, Duration)) {
    let (interval, timeout) = times;
    let keeper = Arc::clone(keeper);
    std::thread::spawn(move || {
        while stopper.is_on_trial() {
            if let Err(error) = keeper.probe(&health, timeout) {
                return stopper.undo_trial(format!("the daemon's health: {health}: {error}"));
            }
            std::thread::sleep(interval);
        }
    });
}
