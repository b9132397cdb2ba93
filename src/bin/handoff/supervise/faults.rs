//! What is wrong with a configuration, and where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file, counted from 1.
    Line { line: usize, column: usize },
    /// The command line.
    Flag(&'static str),
    /// Neither: it is a default, or it is missing.
    Unset,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    #[serde(serialize_with = "as_path")]
    file: Option<PathBuf>,
    line: Option<usize>,
    column: Option<usize>,
    /// The option of the command line, where it came from there.
    flag: Option<&'static str>,
    /// The key, where one is to blame.
    key: Option<String>,
    /// What is wrong, and what was expected.
    text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(flag) = self.flag {
            return write!(f, "use {flag}: {}", self.text);
        }
        match &self.file {
            Some(file) => write!(f, "read {}", file.display())?,
            None => f.write_str("use the defaults")?,
        }
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ": line {line}, column {column}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// All that is wrong, and where each value comes from.
#[derive(Debug, Default)]
pub struct Faults {
    file: Option<PathBuf>,
    places: BTreeMap<String, Place>,
    list: Vec<Fault>,
}

impl Faults {
    pub fn of(file: Option<&Path>) -> Self {
        Self { file: file.map(Path::to_owned), ..Self::default() }
    }

    /// Says where a value comes from.
    pub fn place(&mut self, key: &str, place: Place) {
        self.places.insert(key.to_owned(), place);
    }

    pub fn is_set(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Adds one about a value, which names where that comes from.
    pub fn add(&mut self, key: &str, text: impl Into<String>) {
        let place = self.places.get(key).copied().unwrap_or(Place::Unset);
        self.add_at(place, Some(key), text);
    }

    /// Adds one at a place.
    pub fn add_at(&mut self, place: Place, key: Option<&str>, text: impl Into<String>) {
        let (line, column, flag) = match place {
            Place::Line { line, column } => (Some(line), Some(column), None),
            Place::Flag(flag) => (None, None, Some(flag)),
            Place::Unset => (None, None, None),
        };
        let (file, key) = (self.file.clone(), key.map(str::to_owned));
        self.list.push(Fault { file, line, column, flag, key, text: text.into() });
    }

    /// Returns those that were added, in the order of the file, and begins anew.
    pub fn take(&mut self) -> Vec<Fault> {
        in_order(std::mem::take(&mut self.list))
    }

    pub fn into_list(mut self) -> Vec<Fault> {
        self.take()
    }
}

/// Returns them in the order of the file, without what would be said twice.
pub fn in_order(mut list: Vec<Fault>) -> Vec<Fault> {
    list.sort_by_key(|fault| (fault.line.unwrap_or(usize::MAX), fault.column));
    list.dedup();
    list
}

fn as_path<S: Serializer>(path: &Option<PathBuf>, s: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(s)
}
