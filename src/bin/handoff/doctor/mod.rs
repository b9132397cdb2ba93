mod here;
mod service;
mod shell;
mod unit;
mod wrapper;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueHint;
use handoff::listen::Address;
use handoff::supervise::Settings;

use crate::checks::{self, Finding, Report};
use crate::exit::{self, Exit};
use crate::{logging, supervise};

/// Say what would go wrong, before it does
///
/// It looks at a configuration and what it names, at units of systemd and service directories of runit and s6, at wrappers, and at this machine, and
/// changes nothing. One line a check: ok, warning or error, what was found, and what to do about it. It exits with 1 where there is an error.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Look at this configuration of handoff supervise, and at what it names
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,

    /// Look at this control socket
    #[arg(long, value_name = "PATH", env = "HANDOFF_CONTROL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,

    /// Look at this trigger socket
    #[arg(long, value_name = "PATH", env = "HANDOFF_TRIGGER", hide_env_values = true, value_hint = ValueHint::FilePath)]
    trigger: Option<PathBuf>,

    /// Look at this data directory: its file system and its owner record
    #[arg(long, value_name = "DIR", env = "HANDOFF_DATA_DIR", hide_env_values = true, value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// Look at this journal
    #[arg(long, value_name = "PATH", env = "HANDOFF_JOURNAL", hide_env_values = true, value_hint = ValueHint::FilePath)]
    journal: Option<PathBuf>,

    /// Look at this unit of systemd and its drop-ins; may be given several times
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    unit: Vec<PathBuf>,

    /// Look at this service directory of runit or s6; may be given several times
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    service: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Run this command, to the end of the line, with a probe as the program behind it: do descriptors, pid, environment and signals arrive?
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    wrapper: Vec<OsString>,

    /// Be the probe
    #[arg(long, value_name = "NAME", hide = true)]
    probe: Option<String>,
}

const EXAMPLES: &str = "
  handoff doctor --config /etc/kv/handoff.toml
  handoff doctor --config /etc/kv/handoff.toml --unit /etc/systemd/system/kv.service
  handoff doctor --config handoff.toml --service /etc/s6/kv
  handoff doctor --wrapper sudo -u kv
  handoff doctor --json --data-dir /var/lib/kv | jq '.checks[] | select(.verdict != \"ok\")'";

/// What the files of a service manager are compared with.
#[derive(Debug, Default)]
struct Plan {
    control: Option<PathBuf>,
    trigger: Option<PathBuf>,
    /// How long a planned stop may take.
    stop: Duration,
    listeners: usize,
    has_inet: bool,
    ready_fd: Option<i32>,
}

/// As the configuration has it by default.
const STOP: Duration = Duration::from_secs(35);

impl Plan {
    fn of(args: &Args, settings: Option<&Settings>) -> Self {
        let sockets =
            || settings.iter().flat_map(|settings| &settings.listeners).flat_map(|listen| &listen.sockets);
        Self {
            control: args.control.clone().or_else(|| settings.map(|settings| settings.control.clone())),
            trigger: args.trigger.clone().or_else(|| settings.map(|settings| settings.trigger.clone())),
            stop: settings.map_or(STOP, |settings| settings.limits.stop),
            listeners: sockets().count(),
            has_inet: sockets().any(|spec| matches!(spec.address, Address::Inet { .. })),
            ready_fd: settings.and_then(|settings| settings.ready_fd),
        }
    }
}

/// Looks at all that was named.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("doctor");
    if let Some(name) = &args.probe {
        return wrapper::probe(name).map(|()| Exit::Done);
    }
    let mut findings = vec![];
    let settings = args.config.as_deref().and_then(|config| configuration(config, &mut findings));
    let settings = settings.as_ref();
    let plan = Plan::of(args, settings);
    findings.extend(sockets(&plan));
    let gap_us = files(args, settings, &plan, &mut findings);
    findings.extend(settings.map(|settings| here::backlogs(settings, gap_us)).unwrap_or_default());
    // What the service manager sets is not in the environment of a prompt.
    findings.push(here::limit(plan.listeners));
    findings.push(here::notify(std::env::var_os("NOTIFY_SOCKET").as_deref()));
    findings.extend(args.unit.iter().flat_map(|path| unit::check(path, &plan)));
    findings.extend(args.service.iter().flat_map(|dir| service::check(dir, &plan)));
    if !args.wrapper.is_empty() {
        findings.extend(wrapper::check(&args.wrapper));
    }
    Report::of(findings).say_as(args.json, "nothing is in the way", "something would go wrong")
}

fn configuration(config: &Path, findings: &mut Vec<Finding>) -> Option<Settings> {
    match supervise::read(config) {
        Ok(settings) => {
            findings.push(Finding::ok("config", format!("{} can be used", config.display())));
            Some(settings)
        }
        Err(faults) => {
            let finding = |fault: String| {
                Finding::error("config", format!("unable to {fault}"), "see handoff-supervise(1)")
            };
            findings.extend(faults.into_iter().map(finding));
            None
        }
    }
}

fn sockets(plan: &Plan) -> Vec<Finding> {
    let mut findings = vec![];
    if let Some(control) = &plan.control {
        findings.extend([checks::path(control), here::daemon(control)]);
    }
    findings.extend(plan.trigger.as_deref().map(here::trigger));
    findings
}

/// Returns the longest of the last gaps, in microseconds.
fn files(args: &Args, settings: Option<&Settings>, plan: &Plan, findings: &mut Vec<Finding>) -> Option<u64> {
    let data_dir = args.data_dir.as_ref().or_else(|| settings.map(|settings| &settings.data_dir));
    if let Some(dir) = data_dir.filter(|dir| dir.exists() || args.data_dir.is_some()) {
        findings.extend([checks::file_system(dir), here::record(dir, plan.control.as_deref())]);
    }
    let journal = args.journal.as_ref().or_else(|| settings.map(|settings| &settings.journal))?;
    checks::journal_at(journal, findings)
}
