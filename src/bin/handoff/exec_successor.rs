use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use handoff::chain::{Chain, JOURNAL_VAR};
use handoff::error::Error;
use handoff::fds::{self, HANDOFF_FDS, LISTEN_START, Role};
use handoff::steps::{Inherited, Stayed, Steps};
use handoff::supervisor::{Event, SpawnSpec};
use handoff::sys::spawn::{Image, Program, Spawn};

use crate::exit::{self, Exit};
use crate::link::{self, Opened};
use crate::phase::{self, Common, Watcher};
use crate::reuse::{self, Reused};
use crate::swap::{self, Output};
use crate::{duration, logging};

/// Become the daemon's new program, or start it
///
/// Without an option this process becomes PROG, which inherits the sealed lease: same pid, and the gap contains the start of
/// PROG. With --warm, PROG is started in a session of its own while the daemon serves on, and when it is warm this process
/// becomes NEXT, which comes after `--`. With --wait, PROG is started on a sealed lease, and this command says how it ended.
#[derive(clap::Args)]
#[command(
    after_help = exit::after_help(EXAMPLES),
    override_usage = "handoff exec-successor [OPTIONS] PROG [ARGS]...\n       \
                      handoff exec-successor --warm [OPTIONS] PROG [ARGS]... -- NEXT...\n       \
                      handoff exec-successor --wait [OPTIONS] PROG [ARGS]..."
)]
pub struct Args {
    #[command(flatten)]
    common: Common,

    /// Start PROG, wait until it is warm, and become the program after `--`
    #[arg(long, conflicts_with = "wait")]
    warm: bool,

    /// Start PROG on a sealed lease, and wait for the verdict
    #[arg(long)]
    wait: bool,

    /// Undo the handoff if PROG is not warm after so long
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse_some, requires = "warm")]
    warm_up_limit: Duration,

    /// Set a variable in PROG's environment, which is otherwise that of this command; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = swap::variable)]
    env: Vec<(String, String)>,

    /// Where PROG's standard output and error go, where it is started
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = Output::Daemon)]
    output: Output,

    /// Start PROG in this control group, which must be for it alone
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    cgroup: Option<PathBuf>,

    /// Have the supervisor at this trigger socket start PROG, as its own child; with --warm or --wait
    #[arg(long, value_name = "TRIGGER", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["output", "cgroup"])]
    via: Option<PathBuf>,

    /// Start PROG without arguments if none are given, instead of with the daemon's
    #[arg(long)]
    no_reuse_args: bool,

    /// The program and its arguments [default: those of the running daemon]
    #[arg(value_name = "PROG", required = true, trailing_var_arg = true, allow_hyphen_values = true, value_hint = clap::ValueHint::CommandWithArguments)]
    words: Vec<OsString>,
}

const EXAMPLES: &str = "
  handoff drain -- handoff exec-successor kvd-v2                                  # become it
  handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit         # start it first
  handoff drain -- sh -c 'handoff exec-successor --wait kvd-v2 || handoff abort'  # start it on the sealed lease
  handoff exec-successor --warm --via /run/kv/trigger kvd-v2 -- handoff drain -- handoff commit  # a supervisor starts it";

/// What comes before the `--` that ends PROG's arguments, and what after it.
type Split<'a> = (&'a [OsString], Option<&'a [OsString]>);

/// Becomes the program, or starts it.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("exec-successor");
    check_via(args)?;
    let (words, next) = split(args);
    let (name, own_args) = words.split_first().ok_or_else(|| {
        let detail = "PROG is missing".to_owned();
        exit::attempt(Error::Invalid { detail }, "start the successor")
    })?;
    // Before anything is asked of anybody.
    let program = open(name)?;
    let next = next.map(|next| link::open_words("exec-successor", next)).transpose()?;
    next.iter().try_for_each(|next| next.check_ahead("exec-successor"))?;
    let chain = phase::chain(&args.common)?;
    let found = phase::held(&chain)?;
    match (args.warm, found) {
        (true, None) => warm(args, chain, program, own_args, next),
        (true, Some(found)) => Err(phase::wrong_order(&found)),
        (false, Some(found)) if is_sealed(&found) => sealed(args, chain, &found, program, own_args),
        (false, Some(found)) => Err(phase::wrong_order(&found)),
        (false, None) => Err(phase::no_lease(
            "`handoff drain` comes before it, unless PROG is to be started first, with --warm",
        )),
    }
}

fn check_via(args: &Args) -> anyhow::Result<()> {
    if args.via.is_none() || args.warm || args.wait {
        return Ok(());
    }
    let detail = "--via needs --warm or --wait: in place this process becomes PROG itself, and no supervisor starts it";
    Err(exit::attempt(Error::Invalid { detail: detail.to_owned() }, "start the successor"))
}

/// Checks what will be run, for a link that comes before.
///
/// # Errors
///
/// The exit code, after it was said what is wrong.
pub fn check(command: &str, args: &Args) -> Result<(), Exit> {
    check_via(args).map_err(|e| exit::fatal(command, &e))?;
    let (words, next) = split(args);
    link::open_words(command, words)?;
    match next {
        Some(next) => link::open_words(command, next)?.check_ahead(command),
        None => Ok(()),
    }
}

/// Only --warm has something behind it; without, `--` is an argument like any other.
fn split(args: &Args) -> Split<'_> {
    let end = args.words.iter().position(|word| word == "--").filter(|_| args.warm);
    match end {
        Some(end) => (&args.words[..end], Some(&args.words[end + 1..])),
        None => (&args.words, None),
    }
}

fn open(name: &OsString) -> anyhow::Result<Program> {
    Program::open(Path::new(name)).map_err(|e| link::unusable("exec-successor", e).into())
}

fn is_sealed(found: &Inherited) -> bool {
    !found.has_successor && (found.phase == "sealed" || found.phase == "widowed")
}

fn warm(
    args: &Args,
    chain: Chain,
    program: Program,
    own_args: &[OsString],
    next: Option<Opened>,
) -> anyhow::Result<Exit> {
    if next.is_none() {
        return Err(phase::no_lease(
            "after --warm, PROG and its arguments, `--` and a program must follow that goes on with the handoff, such as \
             `handoff drain -- handoff commit`",
        ));
    }
    let control = &args.common.control;
    let asking = |e| exit::attempt(e, format!("ask the daemon at {}", control.display()));
    let running = swap::ask(control).map_err(asking)?;
    let reused = reused(args, own_args, || reuse::of_running(control, &running))?;
    let spec = SpawnSpec { warm_up: args.warm_up_limit, ..spawn_spec(args, SpawnSpec::default(), reused)? };
    let mut watcher = Watcher::new("exec-successor", args.common.progress)?;
    let mut observer = |event: &Event<'_>| watcher.observe(event);
    let steps = Steps::begin_warm(control, spec, program, &chain, &mut observer)
        .map_err(|e| exit::attempt(e, "start the successor"))?;
    phase::go_on("exec-successor", steps, chain, next, &args.common)
}

fn sealed(
    args: &Args,
    mut chain: Chain,
    found: &Inherited,
    program: Program,
    own_args: &[OsString],
) -> anyhow::Result<Exit> {
    let reused = reused(args, own_args, || reuse::of_lock_file(&found.lock_file, found.incumbent))?;
    let spec = spawn_spec(args, found.spec.clone(), reused)?;
    let (arguments, directory) = (spec.args.clone(), spec.directory.clone());
    let mut watcher = Watcher::new("exec-successor", args.common.progress)?;
    let mut observer = |event: &Event<'_>| watcher.observe(event);
    let unable = |e| exit::attempt(e, "start the successor");
    let mut steps =
        Steps::resume_or_begin(&args.common.control, spec, &chain, &mut observer).map_err(unable)?;
    if steps.has_ended() {
        return phase::end("exec-successor", steps, &mut chain, None, &args.common);
    }
    if args.wait {
        phase::let_go(&mut chain);
        steps.spawn(program, &chain).map_err(unable)?;
        return phase::end("exec-successor", steps, &mut chain, None, &args.common);
    }
    for (name, value) in &args.env {
        chain.set_env(name, value);
    }
    if let Some(directory) = directory {
        std::env::set_current_dir(&directory)
            .with_context(|| format!("go to the daemon's directory {}", directory.display()))?;
    }
    leave_recorder(&chain, &args.common.control, found);
    let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
    match steps.exec_successor(&mut chain, &program, &arguments) {
        Stayed::Ended(steps) => phase::end("exec-successor", *steps, &mut chain, None, &args.common),
        Stayed::Failed(e @ Error::Io { .. }) => Ok(link::unusable("exec-successor", e)),
        Stayed::Failed(e) => Err(unable(e)),
    }
}

/// Leaves a process behind that writes down how it ends, where there is a journal: this one is the daemon by then.
fn leave_recorder(chain: &Chain, control: &Path, found: &Inherited) {
    let Some(fd) = chain.get(&Role::Journal) else { return };
    let spec = &found.spec;
    let patience = spec.deadline + spec.stand_by + spec.bake.unwrap_or_default() + 2 * spec.margin;
    if let Err(e) = start_recorder(fd, control, patience) {
        tracing::warn!(
            "how the handoff ends is not written down before `handoff journal resume` is run: {e}"
        );
    }
}

fn start_recorder(journal: BorrowedFd<'_>, control: &Path, patience: Duration) -> anyhow::Result<()> {
    let program = Program::open(Path::new("/proc/self/exe"))?;
    let path = std::env::var_os(JOURNAL_VAR).context("learn the journal's path")?;
    let nobody = std::fs::OpenOptions::new().write(true).open("/dev/null").context("open /dev/null")?;
    let mut recorder = Image::new(&program);
    recorder.argv0 = "handoff".into();
    let wait = format!("{}ms", patience.as_millis());
    recorder.args = ["journal", "resume", "--wait", &wait, "--journal"].map(OsString::from).to_vec();
    recorder.args.extend([path, "--control".into(), control.into()]);
    let table = fds::render(&[(Role::Journal, LISTEN_START, journal)])?;
    recorder.env.retain(|(name, _)| name != HANDOFF_FDS);
    recorder.env.push((HANDOFF_FDS.into(), table.into()));
    recorder.fds = vec![(LISTEN_START, journal)];
    let mut spawn = Spawn::new(recorder);
    (spawn.new_session, spawn.orphan, spawn.stdout) = (true, true, Some(nobody.as_fd()));
    // It has only started the recorder, and has ended.
    spawn.spawn()?.wait().context("wait for the recorder's start")?;
    Ok(())
}

/// The daemon's own arguments, where none are given and it is not forbidden.
fn reused(
    args: &Args,
    own_args: &[OsString],
    known: impl FnOnce() -> anyhow::Result<Reused>,
) -> anyhow::Result<Reused> {
    if !own_args.is_empty() || args.no_reuse_args {
        let args = own_args.iter().map(text).collect::<anyhow::Result<_>>()?;
        return Ok(Reused { args, directory: None });
    }
    known()
}

/// The journal and the owner record hold text.
fn text(arg: &OsString) -> anyhow::Result<String> {
    let unusable = |arg: OsString| {
        let detail = format!("the argument {} is not UTF-8, as the owner record is", arg.display());
        exit::attempt(Error::Invalid { detail }, "start the successor")
    };
    arg.clone().into_string().map_err(unusable)
}

fn spawn_spec(args: &Args, agreed: SpawnSpec, reused: Reused) -> anyhow::Result<SpawnSpec> {
    Ok(SpawnSpec {
        args: reused.args,
        directory: reused.directory,
        env: args.env.clone(),
        cgroup: args.cgroup.clone().map(std::path::absolute).transpose().context("find the control group")?,
        output: args.output.into(),
        via: args.via.clone(),
        ..agreed
    })
}
