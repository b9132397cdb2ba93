//! A configuration, from a file and from the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use handoff::error::Error;
use handoff::listen::Listen;
use handoff::supervise::Settings;

use super::complete;
use super::draft::{self, Draft};
use super::faults::{self, Fault, Faults, Place};
use super::{paths, source};

/// Where a configuration comes from. It can be read again and again.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config: Option<PathBuf>,
    pub flags: Flags,
}

/// What the command line says; it counts more than the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub control: Option<PathBuf>,
    pub trigger: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub journal: Option<PathBuf>,
    pub listen: Vec<Listen>,
    pub ready_fd: Option<i32>,
    pub ignore_record: bool,
    /// The program and its arguments, where it names one.
    pub words: Vec<String>,
}

/// What the machine must have of what a configuration names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// All of it.
    Everything,
    /// All but the program that is configured: another one is started.
    NoProgram,
    /// Nothing now: a daemon serves, and is to be found again whatever has become of the rest.
    Nothing,
}

/// A configuration that can be used, and what stands in its way later.
#[derive(Debug)]
pub struct Loaded {
    pub settings: Settings,
    pub warnings: Vec<Fault>,
}

impl Sources {
    /// Reads and checks all of it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong.
    pub fn load(&self, needed: impl FnOnce(&Settings) -> Needed) -> Result<Loaded, Vec<Fault>> {
        let mut faults = Faults::of(self.config.as_deref());
        let complete = self.draft(&mut faults).and_then(|draft| complete::complete(draft, &mut faults));
        let Some(complete) = complete else { return Err(faults.into_list()) };
        let needed = needed(&complete.settings);
        let of_the_file = faults.take();
        paths::check(&complete, &mut faults);
        if needed == Needed::Everything {
            paths::check_binary(&complete.settings, &mut faults);
        }
        let of_the_machine = faults.take();
        match (of_the_file.is_empty(), of_the_machine.is_empty() || needed == Needed::Nothing) {
            (true, true) => Ok(Loaded { settings: complete.settings, warnings: of_the_machine }),
            _ => Err(faults::in_order(of_the_file.into_iter().chain(of_the_machine).collect())),
        }
    }

    /// As [`load`](Self::load), for a supervisor that is told to read it again.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] says everything that is wrong.
    pub fn reload(&self) -> handoff::Result<Settings> {
        let loaded = self.load(|_| Needed::Everything);
        loaded.map(|loaded| loaded.settings).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
            Error::Invalid { detail: format!("unable to {}", faults.join("; unable to ")) }
        })
    }

    fn draft(&self, faults: &mut Faults) -> Option<Draft> {
        let mut draft = match &self.config {
            Some(config) => {
                let text = source::read(config, faults)?;
                let dir = directory_of(config);
                let mut draft = None;
                source::parse(&text, faults, |file| draft = Some(Draft::read(file, &dir)));
                draft?
            }
            None => Draft::default(),
        };
        self.flags.apply(&mut draft, faults);
        Some(draft)
    }
}

/// Relative paths in a file are relative to where it is, whatever the working directory.
fn directory_of(config: &Path) -> PathBuf {
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    config.parent().map_or_else(|| config.clone(), Path::to_owned)
}

impl Flags {
    fn apply(&self, draft: &mut Draft, faults: &mut Faults) {
        let mut path = |to: &mut Option<PathBuf>, key, flag, given: &Option<PathBuf>| {
            if let Some(given) = given {
                *to = Some(std::path::absolute(given).unwrap_or_else(|_| given.clone()));
                faults.place(key, Place::Flag(flag));
            }
        };
        path(&mut draft.control, "control_socket", "--control", &self.control);
        path(&mut draft.trigger, "trigger_socket", "--trigger", &self.trigger);
        path(&mut draft.data_dir, "data_dir", "--data-dir", &self.data_dir);
        path(&mut draft.journal, "journal", "--journal", &self.journal);
        draft.ready_fd = self.ready_fd.or(draft.ready_fd);
        draft.ignore_record |= self.ignore_record;
        self.apply_words(draft, faults);
        for (n, listen) in self.listen.iter().enumerate() {
            self.apply_listen(n, listen, draft, faults);
        }
    }

    fn apply_words(&self, draft: &mut Draft, faults: &mut Faults) {
        let Some((program, args)) = self.words.split_first() else { return };
        let here = std::env::current_dir().unwrap_or_default();
        draft.binary = Some(draft::program(&here, program));
        draft.args = args.to_vec();
        faults.place("binary", Place::Flag("PROG"));
    }

    /// It takes the place of what the file calls by the same name.
    fn apply_listen(&self, n: usize, listen: &Listen, draft: &mut Draft, faults: &mut Faults) {
        let is_own = |name: &str| name.starts_with("--listen");
        for (key, other) in &mut draft.listeners {
            if !is_own(key) {
                other.sockets.retain(|spec| listen.sockets.iter().all(|own| own.name != spec.name));
            }
        }
        let key = format!("--listen[{n}]");
        for name in ["name", "addr", "owner", "group"] {
            faults.place(&format!("{key}.{name}"), Place::Flag("--listen"));
        }
        draft.listeners.push((key, listen.clone()));
    }
}

/// Returns whether this is the name of the supervisor's own program.
pub fn is_supervisor(argv0: &OsStr) -> bool {
    Path::new(argv0).file_name().is_some_and(|name| name == "handoff-supervisor")
}
