//! The texts of the options, as what they mean.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use handoff::sys::process::Signal;
use handoff::wrap::ready::{Matcher, Ready};
use handoff::wrap::sequence::{Sequence, Step};
use regex::Regex;

use crate::duration;

/// The forms of `--ready`, for help and errors.
pub const READY: &str =
    "notify, fd[:N], tcp[:NAME], unix[:NAME], http:PATH[=STATUS][@NAME], exec:COMMAND, log:REGEX, alive:TIME";

/// Reads what must hold before the daemon serves.
pub fn ready(text: &str) -> Result<Ready, String> {
    let (word, value) = match text.split_once(':') {
        Some((word, value)) => (word, Some(value)),
        None => (text, None),
    };
    let name = || value.map(str::to_owned);
    match (word, value) {
        (_, Some("")) => Err(format!("{word}: needs something after the colon")),
        ("notify", None) => Ok(Ready::Notify),
        ("fd", None) => Ok(Ready::Fd(None)),
        ("fd", Some(number)) => Ok(Ready::Fd(Some(descriptor(number)?))),
        ("tcp", _) => Ok(Ready::Tcp(name())),
        ("unix", _) => Ok(Ready::Unix(name())),
        ("http", Some(value)) => http(value),
        ("exec", Some(command)) => Ok(Ready::Exec(command.to_owned())),
        ("log", Some(pattern)) => log(pattern),
        ("alive", Some(length)) => Ok(Ready::Alive(duration::parse(length)?)),
        _ => Err(format!("{text:?} is none of {READY}")),
    }
}

fn http(value: &str) -> Result<Ready, String> {
    let (value, listener) = match value.rsplit_once('@') {
        Some((value, name)) => (value, Some(name.to_owned())),
        None => (value, None),
    };
    // A path may have a query, and that an equals sign.
    let with_status =
        value.rsplit_once('=').and_then(|(path, status)| Some((path, status.parse::<u16>().ok()?)));
    let (path, status) = match with_status {
        Some((path, status @ 100..=599)) => (path, Some(status)),
        _ => (value, None),
    };
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("{path:?} is no path of a request: it begins with a slash"));
    }
    Ok(Ready::Http { path: path.to_owned(), status, listener })
}

fn log(pattern: &str) -> Result<Ready, String> {
    let regex = Regex::new(pattern).map_err(|e| e.to_string())?;
    let matches = Arc::new(move |line: &str| regex.is_match(line));
    Ok(Ready::Log(Matcher { text: pattern.to_owned(), matches }))
}

/// Reads `TERM` or `QUIT,5s,TERM`: signals, and how long to wait for the end after each.
pub fn sequence(text: &str) -> Result<Sequence, String> {
    let steps: Vec<Step> = text.split(',').map(step).collect::<Result<_, _>>()?;
    if !matches!(steps.first(), Some(Step::Signal(_))) {
        return Err("it begins with a signal, such as TERM".to_owned());
    }
    Ok(Sequence(steps))
}

fn step(text: &str) -> Result<Step, String> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return duration::parse(text).map(Step::Wait);
    }
    signal(text).map(Step::Signal)
}

fn signal(text: &str) -> Result<Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse().map_err(|_| format!("{text:?} is neither a signal, such as QUIT, nor a time, such as 5s"))
}

/// Reads `NAME=NUMBER`.
pub fn place(text: &str) -> Result<(String, i32), String> {
    let (name, number) = text.split_once('=').ok_or("it is NAME=NUMBER, such as http=5")?;
    handoff::fds::check_name(name).map_err(|e| e.to_string())?;
    Ok((name.to_owned(), descriptor(number)?))
}

fn descriptor(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(number @ 3..=1_000_000) => Ok(number),
        Ok(_) => Err(format!("{text} is no descriptor to choose: 0 to 2 are the standard ones")),
        Err(_) => Err(format!("{text:?} is no descriptor number")),
    }
}

/// Reads `NAME=TEMPLATE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is NAME=VALUE".to_owned()),
    }
}

/// The control socket where none is named.
pub fn control_in(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("control")
}

/// What is waited for where nothing is asked for: that every stream listener is accepted from; without one, that the daemon lives for a second.
pub fn usual(has_inet: bool, has_unix: bool) -> Vec<Ready> {
    let mut usual = vec![];
    if has_inet {
        usual.push(Ready::Tcp(None));
    }
    if has_unix {
        usual.push(Ready::Unix(None));
    }
    if usual.is_empty() {
        usual.push(Ready::Alive(Duration::from_secs(1)));
    }
    usual
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_form_is_read_and_shown_as_it_was_written() {
        for text in [
            "notify",
            "fd",
            "fd:7",
            "tcp",
            "tcp:web",
            "unix:s",
            "http:/x?a=b",
            "http:/x=204@web",
            "exec:test -e x",
            "log:^up$",
            "alive:1500ms",
        ] {
            assert_eq!(ready(text).unwrap().to_string(), text);
        }
        for text in ["", "tpc", "fd:1", "http:", "http:x", "log:(", "alive", "notify:x", "exec:"] {
            assert!(ready(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sequence_is_signals_and_times() {
        let expected = vec![
            Step::Signal(Signal::SIGQUIT),
            Step::Wait(Duration::from_secs(5)),
            Step::Signal(Signal::SIGTERM),
        ];
        assert_eq!(sequence("QUIT,5s,SIGTERM").unwrap(), Sequence(expected));
        for text in ["", "5s", "TERM,", "WHAT", "TERM,5x"] {
            assert!(sequence(text).is_err(), "{text}");
        }
    }
}
