//! The text of a configuration as a table whose keys are taken one by one: what is left over at the end is not known, and what is not
//! of the right type is said to be so, with its place.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use handoff::suggest;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::faults::{Faults, Place};
use crate::duration::LONGEST;

/// More than any configuration has, in bytes.
const LARGEST: u64 = 1 << 20;

/// Reads a file, or says why it cannot be read.
pub fn read(path: &Path, faults: &mut Faults) -> Option<String> {
    match read_bytes(path).map(String::from_utf8) {
        Ok(Ok(text)) => Some(text),
        Ok(Err(e)) => {
            let at = e.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(&e.as_bytes()[..at]).into_owned();
            faults.add_at(place_of(&text, at), None, "it is no text: expected UTF-8");
            None
        }
        Err(e) => {
            faults.add_at(Place::Unset, None, e.to_string());
            None
        }
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    if meta.is_file() && meta.len() > LARGEST {
        return Err(io::Error::other(format!(
            "it is {} bytes long, and a configuration is at most {LARGEST}",
            meta.len()
        )));
    }
    fs::read(path)
}

/// Returns where a byte is.
fn place_of(text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place::Line { line: 1 + before.matches('\n').count(), column: 1 + before[line_start..].chars().count() }
}

/// Parses a text and has its table read, unless it is no TOML.
pub fn parse(text: &str, faults: &mut Faults, read: impl FnOnce(Section<'_>)) {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return read(Section {
            text,
            prefix: String::new(),
            place: Place::Unset,
            table: table.get_ref(),
            faults,
        });
    }
    for e in errors {
        let place = e.span().map_or(Place::Unset, |span| place_of(text, span.start));
        faults.add_at(place, None, format!("it is no TOML: {}", e.message()));
    }
}

/// A table, and what it is called in messages.
pub struct Section<'a> {
    text: &'a str,
    /// What stands before a key: nothing, or `restart.`.
    prefix: String,
    /// Where it begins; the file as a whole has no place.
    place: Place,
    table: &'a DeTable<'a>,
    faults: &'a mut Faults,
}

impl<'a> Section<'a> {
    /// Says of every key that is none of these that it is not known.
    pub fn expect(&mut self, known: &[&'static str]) {
        for key in self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let there_are = match suggest::nearest(name, known) {
                Some(near) => format!("perhaps {near}"),
                None => format!("there are {}", known.join(", ")),
            };
            let place = place_of(self.text, key.span().start);
            let name = format!("{}{name}", self.prefix);
            self.faults.add_at(place, Some(&name), format!("there is no such key; {there_are}"));
        }
    }

    /// Returns a key's full name.
    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns what this table is called.
    pub fn own_key(&self) -> String {
        self.prefix.trim_end_matches('.').to_owned()
    }

    /// Says that something is wrong with a key's value.
    pub fn fault(&mut self, key: &str, text: impl Into<String>) {
        let key = self.key(key);
        self.faults.add(&key, text);
    }

    /// Says that a key is missing, unless it is there and wrong.
    pub fn missing(&mut self, key: &str, expected: &str) {
        if self.table.get(key).is_none() {
            let (place, name) = (self.place, self.key(key));
            self.faults.add_at(place, Some(&name), format!("it is missing: expected {expected}"));
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    fn value(&mut self, key: &str) -> Option<&'a DeValue<'a>> {
        let value = self.table.get(key)?;
        let (place, name) = (place_of(self.text, value.span().start), self.key(key));
        self.faults.place(&name, place);
        Some(value.get_ref())
    }

    fn typed<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&DeValue<'_>) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        match read(value) {
            Some(read) => Some(read),
            None => {
                let found = shown(value);
                self.fault(key, format!("expected {expected}, not {found}"));
                None
            }
        }
    }

    /// Reads a text, which must not be empty and must be fit for a path or an argument.
    pub fn text(&mut self, key: &str, expected: &str) -> Option<String> {
        let text = self.typed(key, expected, |value| value.as_str().map(str::to_owned))?;
        if text.is_empty() {
            self.fault(key, format!("it is empty: expected {expected}"));
            return None;
        }
        self.without_nul(key, text)
    }

    fn without_nul(&mut self, key: &str, text: String) -> Option<String> {
        if text.contains('\0') {
            self.fault(key, "it has a byte 0 in it, which nothing can be given");
            return None;
        }
        Some(text)
    }

    /// Reads one of several words.
    pub fn word<T: Copy>(&mut self, key: &str, words: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<&'static str> = words.iter().map(|(name, _)| *name).collect();
        let text = self
            .typed(key, &format!("one of {}", names.join(", ")), |value| value.as_str().map(str::to_owned))?;
        let found = words.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let near =
                suggest::nearest(&text, &names).map_or(String::new(), |near| format!(" (perhaps {near})"));
            self.fault(key, format!("expected one of {}, not {text:?}{near}", names.join(", ")));
        }
        found
    }

    pub fn switch(&mut self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", |value| value.as_bool())
    }

    /// Reads a whole number within limits.
    pub fn number(&mut self, key: &str, least: i64, most: i64) -> Option<i64> {
        let expected = format!("a whole number from {least} to {most}");
        self.typed(key, &expected, |value| {
            value.as_integer().and_then(integer).filter(|n| (least..=most).contains(n))
        })
    }

    /// Reads a length of time in seconds.
    pub fn seconds(&mut self, key: &str) -> Option<Duration> {
        let seconds = self.typed(key, "a number of seconds, such as 25 or 0.5", |value| match value {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            #[allow(clippy::cast_precision_loss, reason = "what is so long is refused below")]
            DeValue::Integer(number) => Some(integer(number).map_or(f64::INFINITY, |n| n as f64)),
            _ => None,
        })?;
        if seconds.is_nan() {
            self.fault(key, "expected a number of seconds, such as 25 or 0.5, not nan");
            return None;
        }
        if seconds > LONGEST.as_secs_f64() {
            let most = LONGEST.as_secs();
            let found = self.table.get(key).map_or(String::new(), |value| shown(value.get_ref()));
            self.fault(key, format!("expected at most {most} seconds, which is ten years, not {found}"));
            return None;
        }
        if seconds < 0.0 {
            self.fault(key, format!("expected 0 seconds or more, not {seconds}"));
            return None;
        }
        Some(Duration::from_secs_f64(seconds))
    }

    /// As [`seconds`](Self::seconds), for what has to take some time.
    pub fn some_seconds(&mut self, key: &str, otherwise: &str) -> Option<Duration> {
        let seconds = self.seconds(key)?;
        if seconds.is_zero() {
            self.fault(key, format!("expected more than 0 seconds{otherwise}"));
            return None;
        }
        Some(seconds)
    }

    /// Reads a list of texts.
    pub fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.each(key, "a list of strings", |section, key, value| match value.as_str().map(str::to_owned) {
            Some(text) => section.without_nul(key, text),
            None => {
                section.fault(key, format!("expected a string, not {}", shown(value)));
                None
            }
        })
    }

    /// Reads a list of whole numbers within limits.
    pub fn numbers(&mut self, key: &str, least: i64, most: i64) -> Option<Vec<i64>> {
        let expected = format!("a list of whole numbers from {least} to {most}");
        self.each(key, &expected, |section, key, value| {
            let number = value.as_integer().and_then(integer).filter(|n| (least..=most).contains(n));
            if number.is_none() {
                let text = format!("expected a whole number from {least} to {most}, not {}", shown(value));
                section.fault(key, text);
            }
            number
        })
    }

    fn each<T>(
        &mut self,
        key: &str,
        expected: &str,
        mut read: impl FnMut(&mut Self, &str, &DeValue<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.typed(key, expected, |value| value.as_array().map(|_| ()))?;
        let array = self.table.get(key)?.get_ref().as_array()?;
        let mut items = Vec::with_capacity(array.len());
        for (n, item) in array.iter().enumerate() {
            let item_key = format!("{key}[{n}]");
            let (place, name) = (place_of(self.text, item.span().start), self.key(&item_key));
            self.faults.place(&name, place);
            items.extend(read(self, &item_key, item.get_ref()));
        }
        Some(items)
    }

    /// Has a table in this one read.
    pub fn section<T>(&mut self, key: &str, read: impl FnOnce(Section<'_>) -> T) -> Option<T> {
        self.typed(key, &format!("a table, written [{key}]"), |value| value.as_table().map(|_| ()))?;
        let value = self.table.get(key)?;
        self.nested(&self.key(key), value, read)
    }

    /// Has every table of a list in this one read.
    pub fn sections<T>(&mut self, key: &str, mut read: impl FnMut(Section<'_>) -> Option<T>) -> Vec<T> {
        let expected = format!("tables, each written [[{key}]]");
        let is_array = |value: &DeValue<'_>| value.as_array().map(|_| ());
        if self.typed(key, &expected, is_array).is_none() {
            return vec![];
        }
        let Some(array) = self.table.get(key).and_then(|value| value.get_ref().as_array()) else {
            return vec![];
        };
        let mut found = vec![];
        for (n, value) in array.iter().enumerate() {
            let name = format!("{}[{n}]", self.key(key));
            if value.get_ref().is_table() {
                found.extend(self.nested(&name, value, &mut read).flatten());
            } else {
                let place = place_of(self.text, value.span().start);
                let text = format!("expected a table, written [[{key}]], not {}", shown(value.get_ref()));
                self.faults.add_at(place, Some(&name), text);
            }
        }
        found
    }

    fn nested<T>(
        &mut self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        read: impl FnOnce(Section<'_>) -> T,
    ) -> Option<T> {
        Some(read(Section {
            text: self.text,
            prefix: format!("{name}."),
            place: place_of(self.text, value.span().start),
            table: value.get_ref().as_table()?,
            faults: self.faults,
        }))
    }

    /// Returns the keys of a table whose keys are anything.
    pub fn names(&self) -> Vec<String> {
        self.table.keys().map(|key| key.get_ref().to_string()).collect()
    }

    /// Reads a text that may be empty.
    pub fn any_text(&mut self, key: &str, expected: &str) -> Option<String> {
        let text = self.typed(key, expected, |value| value.as_str().map(str::to_owned))?;
        self.without_nul(key, text)
    }

    /// Reads what is a text or a whole number, as a text; bits are written as in a shell.
    pub fn text_or_number(&mut self, key: &str, expected: &str, radix: u32) -> Option<String> {
        let text = self.typed(key, expected, |value| match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(number) if number.radix() == radix => Some(number.as_str().to_owned()),
            _ => None,
        })?;
        self.without_nul(key, text)
    }
}

fn integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// How long a value may be in a message, in characters.
const SHOWN: usize = 40;

/// Returns what was found, as it is said.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() <= SHOWN => format!("the string {text:?}"),
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
