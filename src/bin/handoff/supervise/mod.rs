mod complete;
mod draft;
mod faults;
mod load;
mod paths;
mod show;
mod source;
mod start;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use clap::ValueHint;
use handoff::listen::Listen;
use handoff::supervise::{self, Ended, Own, Settings};
use handoff::sys::end;
use serde::Serialize;

use crate::exit::{self, Exit};
use crate::{link, logging, out};

use faults::Fault;
pub use load::is_supervisor;
use load::{Flags, Loaded, Needed, Sources};
use show::Effective;
use start::Start;

/// Be the one process that a service manager watches: hold the sockets, start the daemon, swap it when asked, and stay
///
/// The daemon is started with the sockets, started again by policy when it dies, and replaced on `handoff trigger` and on SIGHUP; its
/// supervisor's pid never changes. If this process is killed, the daemon serves on; started again, it finds the daemon, fetches the
/// sockets from it and watches it.
///
/// With --config, the file says everything, and the options count more than the file. Without it, the options and PROG must say what is
/// needed. `handoff-supervisor` is the same command.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Read this configuration, handoff.toml by custom; SIGHUP reads it again
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,

    /// Check all that can be checked, change nothing, and print the configuration that counts
    ///
    /// It reads back to the same. Comments say which program a start would run, and why.
    #[arg(long)]
    check: bool,

    /// Print what --check says as one JSON object
    #[arg(long, requires = "check")]
    json: bool,

    /// Have the daemon's control socket at this path
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, required_unless_present = "config")]
    control: Option<PathBuf>,

    /// Be asked at this path [default: trigger beside the control socket]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    trigger: Option<PathBuf>,

    /// Have the daemon's data in this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, required_unless_present = "config")]
    data_dir: Option<PathBuf>,

    /// Write what happens to this journal [default: journal in the data directory]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    journal: Option<PathBuf>,

    /// Hold a socket and call it NAME, as hold-fds does; may be given several times
    ///
    /// It takes the place of a listener of this name in the configuration.
    #[arg(long, value_name = "NAME=ADDRESS[,OPTION...]")]
    listen: Vec<Listen>,

    /// Write a newline to this descriptor once the first daemon is ready, as s6 expects
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    ready_fd: Option<i32>,

    /// Start the program that is named here, whatever the owner record says
    #[arg(long)]
    ignore_record: bool,

    /// The daemon's program, instead of binary and args; a name without a slash is looked up in PATH
    #[arg(value_name = "PROG", value_hint = ValueHint::CommandName, required_unless_present = "config")]
    program: Option<String>,

    /// Its arguments
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true, value_hint = ValueHint::AnyPath)]
    args: Vec<String>,
}

const EXAMPLES: &str = "
  handoff supervise --config /etc/kv/handoff.toml
  handoff supervise --config /etc/kv/handoff.toml --check
  handoff supervise --control /run/kv/control --data-dir /var/lib/kv -- kvd --data-dir /var/lib/kv --control /run/kv/control
  exec handoff-supervisor --config handoff.toml --ready-fd 3    # in a run script of s6";

/// Checks, or supervises until the end.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let (check, json) = (args.check, args.json);
    let sources = sources(args);
    if check {
        return self::check(&sources, json);
    }
    logging::to_stderr("supervise");
    // A supervisor that comes back must find its daemon, also where a disk is full or a deploy is about to replace the program.
    match sources.load(|settings| Start::of(settings).needs()) {
        Ok(Loaded { settings, warnings }) => {
            for warning in warnings {
                out::say("supervise", "warning", &format!("unable to {warning}"));
            }
            supervise(settings, sources)
        }
        Err(faults) => Ok(refuse(&faults)),
    }
}

/// Reads and checks a configuration alone.
///
/// # Errors
///
/// Everything that is wrong, each a phrase that reads after "unable to".
pub fn read(config: &Path) -> Result<Settings, Vec<String>> {
    let sources = Sources { config: Some(config.to_owned()), flags: Flags::default() };
    let loaded = sources.load(|_| Needed::Everything).map(|loaded| loaded.settings);
    loaded.map_err(|faults| faults.iter().map(Fault::to_string).collect())
}

fn sources(args: Args) -> Sources {
    Sources {
        config: args.config,
        flags: Flags {
            control: args.control,
            trigger: args.trigger,
            data_dir: args.data_dir,
            journal: args.journal,
            listen: args.listen,
            ready_fd: args.ready_fd,
            ignore_record: args.ignore_record,
            words: args.program.into_iter().chain(args.args).collect(),
        },
    }
}

fn refuse(faults: &[Fault]) -> Exit {
    for fault in faults {
        out::say("supervise", "fatal", &format!("unable to {fault}"));
    }
    Exit::Usage
}

/// What `--check` says, for programs.
#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    errors: &'a [Fault],
    configuration: Option<Effective>,
    start: Option<Start>,
}

fn check(sources: &Sources, json: bool) -> anyhow::Result<Exit> {
    logging::quietly("supervise");
    match sources.load(|_| Needed::Everything) {
        Ok(Loaded { settings, .. }) => {
            let (configuration, start) = (Effective::from(&settings), Start::of(&settings));
            let _ = if json {
                let (configuration, start) = (Some(configuration), Some(start));
                out::json(&Checked { ok: true, errors: &[], configuration, start })?
            } else {
                out::text(&(configuration.toml()? + "\n" + &start.comments()))?
            };
            Ok(Exit::Done)
        }
        Err(faults) => {
            if json {
                let _ = out::json(&Checked { ok: false, errors: &faults, configuration: None, start: None })?;
            }
            Ok(refuse(&faults))
        }
    }
}

fn supervise(settings: Settings, sources: Sources) -> anyhow::Result<Exit> {
    let program = link::own_program()?;
    let say = |level: &str, text: &str| out::say("supervise", level, text);
    let own = Own::new(env!("CARGO_PKG_VERSION"), program, move || sources.reload(), say);
    let ended = supervise::run(settings, own).map_err(|e| exit::attempt(e, "supervise the daemon"))?;
    Ok(match ended {
        Ended::Stopped => Exit::Done,
        Ended::Followed(Some(status)) => follow(status),
        Ended::Followed(None) => {
            out::say(
                "supervise",
                "fatal",
                "the daemon is gone; it was started by another supervisor, so that how it ended is not known",
            );
            Exit::NothingServing
        }
        Ended::Blocked(who) => {
            out::say("supervise", "fatal", &format!("unable to start the daemon: {who}"));
            Exit::Refused
        }
    })
}

/// Ends as the daemon did, so that the policies of a service manager apply to it.
fn follow(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        end::die_of_number(signal);
    }
    // One of the signals that have no name here: as a shell has it.
    std::process::exit(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1))
}
