//! A supervisor as a program of its own: what the tests of the library's engine run.
//!
//! `supervisor DIR [KEY=VALUE]... -- PROGRAM [ARG]...` keeps the program's data, sockets and journal in DIR. Keys: listen (as hold-fds has it; may be
//! repeated), data (the data directory in DIR), policy, max, bake, health, stop, linger, grace, deadline, delay and ready-within (in milliseconds), ready (a command), uid, allow (may be repeated), ready-fd, metrics (a file), program (what
//! it becomes anew), version. A file `DIR/reload` holds, a word a line, what is to be the program and its arguments from the next SIGHUP on.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use handoff::supervise::{self, Ended, Health, Limits, Own, Policy, Readiness, ReadyBy, Restart, Settings};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (settings, program, version) = read(&args)?;
    let again = args.clone();
    let reload = move || reload(&again);
    let program = program.map_or_else(std::env::current_exe, Ok)?;
    let ended = match supervise::run(settings, Own::new(version, program, reload, say)) {
        Ok(ended) => ended,
        Err(e) => {
            say("fatal", &e.to_string());
            return Ok(ExitCode::from(111));
        }
    };
    say("info", &format!("ended: {ended:?}"));
    Ok(match ended {
        Ended::Stopped => ExitCode::SUCCESS,
        Ended::Followed(Some(status)) => {
            let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
            ExitCode::from(u8::try_from(code)?)
        }
        Ended::Followed(None) => ExitCode::from(6),
        Ended::Blocked(_) => ExitCode::from(1),
    })
}

fn say(level: &str, text: &str) {
    let line = format!("supervisor {}: {level}: {text}\n", std::process::id());
    // Who reads it may be gone.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

fn reload(args: &[String]) -> handoff::Result<Settings> {
    let invalid = |detail: String| handoff::Error::Invalid { detail };
    let (mut settings, ..) = read(args).map_err(|e| invalid(e.to_string()))?;
    let path = Path::new(&args[0]).join("reload");
    if let Ok(text) = std::fs::read_to_string(path) {
        let mut words = text.lines().map(str::to_owned);
        settings.binary =
            words.next().filter(|word| !word.is_empty()).ok_or_else(|| invalid("no program".into()))?.into();
        settings.args = words.collect();
    }
    Ok(settings)
}

fn read(args: &[String]) -> Result<(Settings, Option<PathBuf>, String), Box<dyn Error>> {
    let mut args = args.iter();
    let dir = PathBuf::from(args.next().ok_or("usage: supervisor DIR [KEY=VALUE]... -- PROGRAM [ARG]...")?);
    let mut settings = settings(&dir);
    let (mut program, mut version) = (None, "1".to_owned());
    for arg in args.by_ref().take_while(|arg| *arg != "--") {
        let (key, value) = arg.split_once('=').ok_or(format!("{arg}: expected KEY=VALUE"))?;
        let ms = || value.parse().map(Duration::from_millis);
        let limits = &mut settings.limits;
        match key {
            "listen" => settings.listeners.push(value.parse()?),
            "policy" => {
                settings.restart.policy = match value {
                    "never" => Policy::Never,
                    "on-failure" => Policy::OnFailure,
                    _ => Policy::Always,
                }
            }
            "max" => settings.restart.max = value.parse()?,
            "delay" => settings.restart.delay = ms()?,
            "bake" => limits.bake = Some(ms()?),
            "stop" => limits.stop = ms()?,
            "linger" => limits.linger = ms()?,
            "grace" => limits.drain_grace = ms()?,
            "deadline" => limits.deadline = ms()?,
            "health" => {
                let (interval, timeout) = (Duration::from_millis(50), Duration::from_secs(30));
                settings.health = Some(Health { command: value.to_owned(), interval, timeout });
            }
            "data" => settings.data_dir = dir.join(value),
            "ready" => settings.readiness.by = ReadyBy::Command(value.to_owned()),
            "ready-within" => settings.readiness.timeout = ms()?,
            "uid" => settings.allowed_uids.push(value.parse()?),
            "allow" => settings.allowed_binaries.push(value.into()),
            "ready-fd" => settings.ready_fd = Some(value.parse()?),
            "metrics" => settings.metrics_file = Some(value.into()),
            "program" => program = Some(value.into()),
            "version" => version = value.to_owned(),
            _ => return Err(format!("{arg}: unknown key").into()),
        }
    }
    settings.binary = args.next().ok_or("no program")?.into();
    settings.args = args.cloned().collect();
    Ok((settings, program, version))
}

fn settings(dir: &Path) -> Settings {
    let seconds = Duration::from_secs;
    Settings {
        control: dir.join("control"),
        trigger: dir.join("trigger"),
        data_dir: dir.to_owned(),
        journal: dir.join("journal"),
        binary: PathBuf::new(),
        args: vec![],
        env: vec![],
        directory: None,
        listeners: vec![],
        ignore_record: false,
        limits: Limits {
            drain_grace: seconds(20),
            deadline: seconds(60),
            warm_up: seconds(60),
            stand_by: seconds(20),
            bake: None,
            stop: seconds(40),
            linger: seconds(30),
        },
        health: None,
        readiness: Readiness { by: ReadyBy::Control, timeout: seconds(60) },
        restart: Restart {
            policy: Policy::Never,
            delay: Duration::from_millis(50),
            delay_max: seconds(1),
            max: 5,
            window: seconds(60),
        },
        allowed_uids: vec![],
        allowed_binaries: vec![],
        ready_fd: None,
        metrics_file: None,
    }
}
