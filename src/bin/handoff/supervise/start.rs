//! Which program a start would take, and why. Nothing is changed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::control::{Control, is_absent};
use handoff::data_dir::FILE_NAME;
use handoff::proto::record::{OwnerRecord, Program, Standing, boot_program};
use handoff::supervise::Settings;
use handoff::sys::spawn;
use serde::Serialize;

use super::load::Needed;
use crate::out;

/// How long a daemon may take to say that it serves.
const ANSWER: Duration = Duration::from_secs(2);

/// What a start would come to.
#[derive(Debug, Serialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Start {
    /// Nothing is started.
    Serving { why: String },
    /// What the owner record says.
    Record { binary: PathBuf, args: Vec<String>, directory: Option<PathBuf>, why: String },
    /// What the configuration says.
    Configuration { binary: PathBuf, args: Vec<String>, directory: Option<PathBuf>, why: String },
    /// It cannot be told.
    Unknown { why: String },
}

impl Start {
    /// Finds it out.
    pub fn of(settings: &Settings) -> Self {
        if let Some(why) = serving(settings) {
            return Self::Serving { why };
        }
        let lock_file = settings.data_dir.join(FILE_NAME);
        if !lock_file.exists() {
            return Self::configured(settings, "there is no owner record");
        }
        match DataDirLock::read_record(&lock_file) {
            Err(e) => Self::Unknown { why: e.to_string() },
            Ok(reading) => match reading.record {
                None => Self::configured(settings, "there is no owner record"),
                Some(_) if settings.ignore_record => {
                    Self::configured(settings, "the owner record is to be ignored")
                }
                Some(_) if reading.args_dropped => {
                    Self::configured(settings, "the owner record had no room for the arguments")
                }
                Some(record) => Self::recorded(settings, &record),
            },
        }
    }

    fn configured(settings: &Settings, why: impl Into<String>) -> Self {
        let (binary, args) = (settings.binary.clone(), settings.args.clone());
        Self::Configuration { binary, args, directory: settings.directory.clone(), why: why.into() }
    }

    fn recorded(settings: &Settings, record: &OwnerRecord) -> Self {
        let Program { binary, args, directory, .. } = boot_program(record);
        if let Err(e) = spawn::Program::open(&binary) {
            return Self::configured(settings, format!("the owner record's program is gone: {e}"));
        }
        let generation = record.generation;
        let why = match record.standing {
            Standing::Final => format!("generation {generation} in the owner record is final"),
            Standing::Trial => format!(
                "generation {generation} in the owner record is on trial, so that the one before it counts"
            ),
        };
        Self::Record { binary, args, directory, why }
    }

    /// What a start needs of this machine.
    pub fn needs(&self) -> Needed {
        match self {
            Self::Serving { .. } => Needed::Nothing,
            Self::Record { .. } => Needed::NoProgram,
            Self::Configuration { .. } | Self::Unknown { .. } => Needed::Everything,
        }
    }

    /// Returns it as comments of a configuration.
    pub fn comments(&self) -> String {
        let (lines, why) = match self {
            Self::Serving { why } => (vec!["a start would start nothing".to_owned()], why),
            Self::Unknown { why } => (vec!["it cannot be told what a start would run".to_owned()], why),
            Self::Record { binary, args, directory, why }
            | Self::Configuration { binary, args, directory, why } => {
                let mut lines = vec![format!("a start would run: {}", out::command_line(binary, args))];
                lines.extend(directory.as_ref().map(|directory| format!("in: {}", directory.display())));
                (lines, why)
            }
        };
        let lines = lines.iter().chain([why]).map(|line| format!("# {}\n", out::one_line(line)));
        lines.collect()
    }
}

/// Returns who serves, if anybody does or holds the lock.
fn serving(settings: &Settings) -> Option<String> {
    let deadline = Instant::now() + ANSWER;
    let answer = Control::connect(&settings.control, "handoff supervise", deadline)
        .and_then(|mut daemon| daemon.status(deadline));
    match answer {
        Ok(status) => return Some(format!("{} serves already, and would be watched", status.process)),
        Err(e) if !is_absent(&e) => return Some(format!("somebody has the control socket: {e}")),
        Err(_) => {}
    }
    let holders = DataDirLock::who(settings.data_dir.join(FILE_NAME)).unwrap_or_default();
    let holder = holders.first()?;
    Some(format!("the lock is held by {holder}, which would be waited for"))
}
